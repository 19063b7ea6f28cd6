/* Waiters: requests that were set aside until something changes (wait.h). Each has its request copied, stands in one
 * line, and in a heap by deadline. Nothing here runs while nothing changes and no deadline passes.
 *
 * A try executes the request again, straight into the late replies of its connection. Late replies are frames of
 * their own: they go out between two replies of the lane (conn.c), at most CRAIL_RPC_LATE_BYTES ahead of what the
 * client has taken; beyond that a waiter is parked until the client has taken more. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/clock.h"
#include "base/siphash.h"
#include "rpc/rpc.h"

#define TRIES_TO_CLOCK 8u
#define TRY_BYTES 512u      /* so many bytes of path and of answer count as one more try */
#define SERVE_NS_MIN 20000u /* waiters go on under any load */

/* ---- by id --------------------------------------------------------------- */

static uint32_t hash_of(const struct crail_rpc_waits *w, const struct crail_rpc_party *p, uint64_t id) {
    uint64_t key[2] = {(uintptr_t)p, id};
    return (uint32_t)crail_siphash(w->key, key, sizeof key);
}

static struct crail_rpc_waiter *find(const struct crail_rpc_waits *w, const struct crail_rpc_party *p, uint64_t id) {
    for (struct crail_table_item *i = crail_table_find(&w->by_id, hash_of(w, p, id)); i; i = crail_table_again(i)) {
        struct crail_rpc_waiter *at = CRAIL_TABLE_OF(i, struct crail_rpc_waiter, item);
        if (at->party == p && at->id == id)
            return at;
    }
    return NULL;
}

/* ---- by deadline --------------------------------------------------------- */

static void heap_set(struct crail_rpc_waits *w, uint32_t at, struct crail_rpc_waiter *waiter) {
    w->heap[at] = waiter;
    waiter->heap_at = at;
}

/* Lets the waiter find its place, which is free, up or down from `at`. */
static void heap_settle(struct crail_rpc_waits *w, uint32_t at, struct crail_rpc_waiter *waiter) {
    while (at && w->heap[(at - 1) / 2]->deadline_ns > waiter->deadline_ns) {
        heap_set(w, at, w->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < w->heap_count && w->heap[child + 1]->deadline_ns < w->heap[child]->deadline_ns)
            child++;
        if (child >= w->heap_count || w->heap[child]->deadline_ns >= waiter->deadline_ns)
            break;
        heap_set(w, at, w->heap[child]);
        at = child;
    }
    heap_set(w, at, waiter);
}

static int heap_reserve(struct crail_rpc_waits *w) {
    if (w->heap_count < w->heap_cap)
        return 0;
    uint32_t cap = w->heap_cap ? 2 * w->heap_cap : 64;
    struct crail_rpc_waiter **heap = realloc(w->heap, cap * sizeof(struct crail_rpc_waiter *));
    if (!heap)
        return -ENOMEM;
    w->heap = heap;
    w->heap_cap = cap;
    return 0;
}

static void heap_add(struct crail_rpc_waits *w, struct crail_rpc_waiter *waiter) {
    w->heap_count++;
    heap_settle(w, w->heap_count - 1, waiter);
}

static void heap_remove(struct crail_rpc_waits *w, struct crail_rpc_waiter *waiter) {
    assert(w->heap[waiter->heap_at] == waiter);
    struct crail_rpc_waiter *last = w->heap[--w->heap_count];
    if (last != waiter)
        heap_settle(w, waiter->heap_at, last);
}

uint64_t crail_rpc_waits_deadline(const crail_namenode *nn) {
    return nn->waits.heap_count ? nn->waits.heap[0]->deadline_ns : UINT64_MAX;
}

/* ---- parties ------------------------------------------------------------- */

static struct crail_rpc_party *party_of(struct crail_rpc_conn *c) {
    if (c->party)
        return c->party;
    struct crail_rpc_party *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    crail_list_init(&p->waiters);
    crail_list_init(&p->parked);
    crail_list_init(&p->gate);
    crail_list_init(&p->link);
    p->conn = c;
    c->party = p;
    return p;
}

void crail_rpc_party_leave(crail_namenode *nn, struct crail_rpc_party *p) {
    assert(p->conn);
    p->conn = NULL;
    crail_list_remove(&p->gate);
    crail_buf_free(&p->late);
    crail_buf_free(&p->out);
    crail_list_push(&nn->waits.leaving, &p->link);
}

/* Bytes that the client has still to take before it gets more. */
static size_t backlog(const struct crail_rpc_party *p) {
    return p->late.len + p->conn->tx_left + p->conn->reply_left;
}

static void has_late(crail_namenode *nn, struct crail_rpc_party *p) {
    if (crail_list_empty(&p->link) && !p->conn->blocked)
        crail_list_push(&nn->waits.late, &p->link);
}

void crail_rpc_party_unblocked(crail_namenode *nn, struct crail_rpc_party *p) {
    has_late(nn, p);
}

/* ---- late replies that wait until something is durable --------------------- */

static bool is_gated(const crail_namenode *nn, const struct crail_rpc_party *p) {
    return p->gated && p->gate_epoch > nn->durable.done;
}

/* All that is in `late` by now waits; but not what comes later, or a stream of replies would never begin. */
static void gate(crail_namenode *nn, struct crail_rpc_party *p, uint64_t needs) {
    if (!crail_rpc_durable_awaited(nn, needs) || (p->gated && p->gate_epoch != needs))
        return;
    p->gated = p->late.len;
    p->gate_epoch = needs;
    crail_list_push(&nn->durable.parties, &p->gate);
}

/* What may go is in `out` now. Behind it may lie what was answered since, which waits for its own epoch, or for a later
 * one. False: there was no memory, and the connection ends, since a reply must not just be missing. */
static bool take_late(crail_namenode *nn, struct crail_rpc_party *p) {
    struct crail_buf rest = p->out, out = p->late;
    size_t tail = p->gated ? out.len - p->gated : 0;
    rest.len = 0;
    p->gated = 0;
    crail_list_remove(&p->gate);
    int rc = crail_buf_append_padded(&rest, out.data + out.len - tail, tail);
    out.len -= tail;
    p->out = out;
    p->late = rest;
    if (rc) {
        crail_rpc_conn_close(nn, p->conn);
        return false;
    }
    if (tail)
        gate(nn, p, crail_rpc_durable_changed(nn));
    return true;
}

void crail_rpc_parties_durable(crail_namenode *nn) {
    struct crail_list *parties = &nn->durable.parties;
    for (struct crail_list *l = parties->next, *next; l != parties; l = next) {
        struct crail_rpc_party *p = CRAIL_LIST_OF(l, struct crail_rpc_party, gate);
        next = l->next;
        if (is_gated(nn, p))
            continue;
        crail_list_remove(&p->gate);
        has_late(nn, p);
    }
}

/* ---- waiters ------------------------------------------------------------- */

static void forget(crail_namenode *nn, struct crail_rpc_waiter *waiter) {
    struct crail_rpc_waits *w = &nn->waits;
    struct crail_rpc_party *p = waiter->party;
    crail_table_remove(&w->by_id, &waiter->item);
    heap_remove(w, waiter);
    crail_list_remove(&waiter->of_line);
    crail_list_remove(&waiter->of_party);
    crail_list_remove(&waiter->retry);
    p->waiters_count--;
    p->waiters_bytes -= waiter->bytes;
    crail_rpc_spot_unref(nn, waiter->spot);
    free(waiter);
    nn->stats.waiters--;
}

static bool may_wait(uint16_t code) {
    switch (code) {
    case CRAIL_OP_GET:
    case CRAIL_OP_STAT:
    case CRAIL_OP_COLUMN:
    case CRAIL_OP_NEXT:
    case CRAIL_OP_TAKE:
    case CRAIL_OP_ENTER:
    case CRAIL_OP_APPEND:
    case CRAIL_OP_FOLLOW:
        return true;
    }
    return false;
}

int crail_rpc_wait_allowed(const struct crail_op *op, bool alone) {
    if (!(op->flags & CRAIL_OPF_WAIT) || !may_wait(op->code))
        return 0;
    return alone && op->count <= CRAIL_WAIT_MS_MAX ? 0 : CRAIL_E_INVALID_ARGUMENT;
}

static enum crail_rpc_line_kind line_of(uint16_t code) {
    return code == CRAIL_OP_TAKE     ? CRAIL_RPC_LINE_TAKE
           : code == CRAIL_OP_NEXT   ? CRAIL_RPC_LINE_NEXT
           : code == CRAIL_OP_COLUMN ? CRAIL_RPC_LINE_CHILDREN
                                     : CRAIL_RPC_LINE_CHANGE;
}

/* The spot where the operation waits, with one more ref. NULL without memory. */
static struct crail_rpc_spot *spot_of(crail_namenode *nn, struct crail_rpc_conn *c, const struct crail_op *op,
                                      uint32_t *made) {
    *made = 0;
    if (op->code != CRAIL_OP_NEXT)
        return crail_rpc_spot_get(nn, (const char *)(op + 1), op->path_len, made);
    struct crail_rpc_watch *watch = crail_rpc_watch_find(c->lane->session, op->arg0);
    assert(watch); /* else it had an answer */
    watch->spot->refs++;
    return watch->spot;
}

/* Into the table, the heap, the line, its party. 0 or -ENOMEM. */
static int enroll(crail_namenode *nn, struct crail_rpc_waiter *waiter) {
    struct crail_rpc_waits *w = &nn->waits;
    waiter->item.hash = hash_of(w, waiter->party, waiter->id);
    if (heap_reserve(w) || crail_table_insert(&w->by_id, &waiter->item))
        return -ENOMEM;
    heap_add(w, waiter);
    crail_list_init(&waiter->of_line);
    crail_list_init(&waiter->of_party);
    crail_list_init(&waiter->retry);
    crail_list_push(&waiter->spot->line[line_of(waiter->op.code)].waiters, &waiter->of_line);
    crail_list_push(&waiter->party->waiters, &waiter->of_party);
    waiter->party->waiters_count++;
    waiter->party->waiters_bytes += waiter->bytes;
    nn->stats.waiters++;
    return 0;
}

/* It was just executed, and stands in its line: when is it to look again? */
static void waits_on(crail_namenode *nn, struct crail_rpc_waiter *waiter) {
    if (waiter->op.code == CRAIL_OP_COLUMN)
        crail_rpc_spot_needs_children(waiter->spot, crail_meta_missing(nn->meta));
}

int crail_rpc_wait_begin(crail_namenode *nn, struct crail_rpc_conn *c, uint64_t id, const struct crail_op *op) {
    struct crail_rpc_party *p = party_of(c);
    if (op->count == 0)
        return CRAIL_E_DEADLINE;
    if (!p || p->waiters_count >= CRAIL_RPC_WAITERS_MAX || p->waiters_bytes >= CRAIL_RPC_WAITER_BYTES_MAX)
        return CRAIL_E_NO_MEMORY;
    if (find(&nn->waits, p, id))
        return CRAIL_E_PROTOCOL; /* two of one id: nobody could tell their replies apart */
    uint32_t more = op->path_len + (op->code == CRAIL_OP_COLUMN ? op->data_len : 0); /* the cursor */
    uint32_t bytes = (uint32_t)sizeof(struct crail_rpc_waiter) + more, made;
    struct crail_rpc_waiter *waiter = malloc(bytes);
    struct crail_rpc_spot *spot = waiter ? spot_of(nn, c, op, &made) : NULL;
    if (!spot) {
        free(waiter);
        return CRAIL_E_NO_MEMORY;
    }
    *waiter = (struct crail_rpc_waiter){
        .party = p,
        .spot = spot,
        .id = id,
        .deadline_ns = crail_clock_ns() + (uint64_t)op->count * 1000000u,
        .bytes = bytes + made,
        .op = *op,
    };
    memcpy(waiter + 1, op + 1, more);
    if (op->code == CRAIL_OP_ENTER) /* it is a member by now; if that is ended meanwhile, it does not come back */
        waiter->op.flags |= CRAIL_META_OPF_AGAIN;
    if (enroll(nn, waiter)) {
        crail_rpc_spot_unref(nn, spot);
        free(waiter);
        return CRAIL_E_NO_MEMORY;
    }
    waits_on(nn, waiter);
    return 0;
}

bool crail_rpc_wait_cancel(crail_namenode *nn, struct crail_rpc_conn *c, uint64_t id) {
    struct crail_rpc_waiter *waiter = c && c->party ? find(&nn->waits, c->party, id) : NULL;
    if (waiter)
        forget(nn, waiter);
    return waiter != NULL;
}

/* ---- tries --------------------------------------------------------------- */

static void end_reply(crail_namenode *nn, struct crail_rpc_waiter *waiter, size_t start) {
    struct crail_rpc_party *p = waiter->party;
    struct crail_frame head = {
        .magic = CRAIL_FRAME_MAGIC, .size = (uint32_t)(p->late.len - start), .count = 1, .id = waiter->id};
    memcpy(p->late.data + start, &head, sizeof head);
    nn->stats.requests++;
    nn->stats.operations++;
    nn->stats.gets += waiter->op.code == CRAIL_OP_GET;
    gate(nn, p, crail_rpc_durable_needs(nn, &waiter->op, (const void *)(p->late.data + start + sizeof head)));
    has_late(nn, p);
    forget(nn, waiter);
}

/* Answers with a status. Without memory even for that the connection ends: a reply must not just be missing. */
static void answer(crail_namenode *nn, struct crail_rpc_waiter *waiter, int status) {
    struct crail_buf *b = &waiter->party->late;
    struct crail_result r = {.status = -status};
    size_t start = b->len;
    if (crail_buf_reserve(b, sizeof(struct crail_frame) + sizeof r)) {
        crail_rpc_conn_close(nn, waiter->party->conn);
        return;
    }
    b->len += sizeof(struct crail_frame);
    crail_buf_append_padded(b, &r, sizeof r);
    end_reply(nn, waiter, start);
}

enum tried { ANSWERED, WAITS, PARKED };

/* Its watch has ended, and another may have begun under the same token: that one's changes come to another line. */
static bool lost_watch(const struct crail_rpc_waiter *waiter) {
    if (waiter->op.code != CRAIL_OP_NEXT)
        return false;
    const struct crail_rpc_watch *watch = crail_rpc_watch_find(waiter->party->conn->lane->session, waiter->op.arg0);
    return !watch || watch->spot != waiter->spot;
}

/* A waiter that was answered, or whose connection has ended, is gone. */
static enum tried try(crail_namenode *nn, struct crail_rpc_waiter *waiter) {
    struct crail_rpc_party *p = waiter->party;
    nn->waits.tried_bytes = waiter->op.path_len;
    if (!p->conn) {
        forget(nn, waiter);
        return ANSWERED;
    }
    crail_list_remove(&waiter->retry);
    if (backlog(p) > CRAIL_RPC_LATE_BYTES) {
        crail_list_push(&p->parked, &waiter->retry);
        has_late(nn, p);
        return PARKED;
    }
    if (lost_watch(waiter)) {
        answer(nn, waiter, CRAIL_E_NOT_FOUND);
        return ANSWERED;
    }
    struct crail_buf *b = &p->late;
    size_t start = b->len;
    int rc = crail_buf_reserve(b, sizeof(struct crail_frame));
    if (!rc) {
        b->len += sizeof(struct crail_frame);
        rc = crail_rpc_operation(nn, p->conn->lane->session, &waiter->op, b);
    }
    if (rc)
        b->len = start;
    nn->waits.tried_bytes += (uint32_t)(b->len - start);
    if (rc == CRAIL_META_WAIT) {
        waits_on(nn, waiter);
        return WAITS;
    }
    if (rc)
        answer(nn, waiter, CRAIL_E_NO_MEMORY);
    else
        end_reply(nn, waiter, start);
    return ANSWERED;
}

/* ---- slices -------------------------------------------------------------- */

struct slice {
    uint64_t end_ns;
    uint32_t left; /* tries until the next look at the clock */
};

static struct slice slice_of(const crail_namenode *nn) {
    uint64_t least = crail_clock_ns() + SERVE_NS_MIN;
    return (struct slice){least < nn->turn_end_ns ? nn->turn_end_ns : least, TRIES_TO_CLOCK};
}

/* After work of so many bytes, of path and answer: many take as long as many tries. */
static bool is_over(struct slice *s, uint32_t bytes) {
    uint32_t weight = 1 + bytes / TRY_BYTES;
    if (s->left > weight) {
        s->left -= weight;
        return false;
    }
    s->left = TRIES_TO_CLOCK;
    return crail_clock_ns() >= s->end_ns;
}

void crail_rpc_wait_deadlines(crail_namenode *nn) {
    struct crail_rpc_waits *w = &nn->waits;
    if (crail_rpc_waits_deadline(nn) > nn->now_ns)
        return;
    struct slice slice = slice_of(nn);
    while (crail_rpc_waits_deadline(nn) <= nn->now_ns) {
        struct crail_rpc_waiter *waiter = w->heap[0];
        if (try(nn, waiter) != ANSWERED) /* it may have been woken and not had its turn yet */
            answer(nn, waiter, CRAIL_E_DEADLINE);
        if (is_over(&slice, w->tried_bytes))
            return;
    }
}

/* The line has been gone through. */
static void line_rest(crail_namenode *nn, struct crail_rpc_line *line) {
    bool again = line->again;
    crail_list_remove(&line->mark);
    crail_list_remove(&line->woken);
    line->again = false;
    if (again)
        crail_rpc_line_wake(nn, line);
}

static void line_serve(crail_namenode *nn, struct crail_rpc_line *line, struct slice *slice) {
    struct crail_rpc_spot *spot = line->spot;
    bool is_queue = line == &spot->line[CRAIL_RPC_LINE_TAKE];
    spot->refs++;
    do {
        struct crail_list *next = line->mark.next;
        if (next == &line->waiters) {
            line_rest(nn, line);
            break;
        }
        struct crail_rpc_waiter *waiter = CRAIL_LIST_OF(next, struct crail_rpc_waiter, of_line);
        crail_list_push(next->next, &line->mark); /* behind it */
        if (try(nn, waiter) == WAITS && is_queue) {
            line_rest(nn, line);
            break;
        }
    } while (!is_over(slice, nn->waits.tried_bytes));
    crail_rpc_spot_unref(nn, spot);
}

/* They go before those of the party that had no try since they were parked the last time, and came later. */
static void unpark(crail_namenode *nn, struct crail_rpc_party *p) {
    crail_list_splice(&p->parked, &nn->waits.retries);
    crail_list_splice(&nn->waits.retries, &p->parked);
}

/* Sends some of what a connection has to take. False: there is no more, or it takes no more for now. */
static bool party_flush(crail_namenode *nn, struct crail_rpc_party *p) {
    struct crail_rpc_conn *c = p->conn;
    if (!c->tx_left && p->late.len && !is_gated(nn, p)) {
        if (!take_late(nn, p))
            return false;
        c->tx = p->out.data;
        c->tx_left = p->out.len;
    }
    enum crail_rpc_sent how = c->tx_left ? crail_rpc_conn_flush(nn, c) : CRAIL_RPC_SENT_ALL;
    if (how == CRAIL_RPC_SENT_CLOSED)
        return false;
    if (how == CRAIL_RPC_SENT_ALL && p->out.cap > CRAIL_RPC_LARGE_BYTES)
        crail_buf_free(&p->out);
    if (backlog(p) <= CRAIL_RPC_LATE_BYTES)
        unpark(nn, p);
    bool deaf = c->ring || !(c->end.armed & EPOLLIN); /* a bell that rang meanwhile was not heeded */
    if (how == CRAIL_RPC_SENT_ALL && c->lane->state == CRAIL_RPC_LANE_IDLE && deaf)
        crail_rpc_lane_move(nn, c->lane, CRAIL_RPC_LANE_READY); /* so that it listens again */
    return how != CRAIL_RPC_SENT_BLOCKED && (how == CRAIL_RPC_SENT_PART || (p->late.len && !is_gated(nn, p)));
}

static void serve_late(crail_namenode *nn, struct slice *slice) {
    struct crail_list *late = &nn->waits.late;
    while (!crail_list_empty(late)) {
        struct crail_rpc_party *p = CRAIL_LIST_OF(late->next, struct crail_rpc_party, link);
        crail_list_remove(&p->link);
        if (!p->conn->blocked && party_flush(nn, p))
            crail_list_push(late, &p->link);
        if (crail_clock_ns() >= slice->end_ns)
            return;
    }
}

static void serve_leaving(crail_namenode *nn, struct slice *slice) {
    struct crail_list *leaving = &nn->waits.leaving;
    while (!crail_list_empty(leaving)) {
        struct crail_rpc_party *p = CRAIL_LIST_OF(leaving->next, struct crail_rpc_party, link);
        if (crail_list_empty(&p->waiters)) {
            crail_list_remove(&p->link);
            free(p);
        } else {
            forget(nn, CRAIL_LIST_OF(p->waiters.next, struct crail_rpc_waiter, of_party));
        }
        if (is_over(slice, 0))
            return;
    }
}

static void serve_woken(crail_namenode *nn, struct slice *slice) {
    struct crail_rpc_waits *w = &nn->waits;
    while (!crail_list_empty(&w->retries)) {
        struct crail_rpc_waiter *waiter = CRAIL_LIST_OF(w->retries.next, struct crail_rpc_waiter, retry);
        try(nn, waiter);
        if (is_over(slice, w->tried_bytes))
            return;
    }
    while (!crail_list_empty(&w->woken)) {
        line_serve(nn, CRAIL_LIST_OF(w->woken.next, struct crail_rpc_line, woken), slice);
        if (crail_clock_ns() >= slice->end_ns)
            return;
    }
}

void crail_rpc_waits_serve(crail_namenode *nn) {
    if (!crail_rpc_waits_pending(nn))
        return;
    struct slice slice = slice_of(nn);
    serve_late(nn, &slice); /* what is left of the last turn, so that backlogs are as short as they can be */
    if (!crail_list_empty(&nn->waits.rechecks))
        crail_rpc_recheck_some(nn);
    serve_woken(nn, &slice);
    serve_late(nn, &slice);
    serve_leaving(nn, &slice);
}

bool crail_rpc_waits_pending(const crail_namenode *nn) {
    const struct crail_rpc_waits *w = &nn->waits;
    return !crail_list_empty(&w->woken) || !crail_list_empty(&w->retries) || !crail_list_empty(&w->rechecks) ||
           !crail_list_empty(&w->late) || !crail_list_empty(&w->leaving);
}
