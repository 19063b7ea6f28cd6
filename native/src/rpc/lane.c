/* A lane's turn: take the next frame, see whether it is new, execute it, answer; until nothing is left or the time is
 * over. A lane is in at most one list, the one its state names.
 *
 * Exactly once: `last_seq` and `record` change together, when a recorded vector is complete. A recorded vector that
 * has begun is always finished, even if its connection dies: the lane then keeps the connection's input buffer
 * (`orphan`), and a new connection's frames wait until it is done. But one that waits for space has changed nothing so
 * far: it goes with its connection, as if it had never come. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "rpc/rpc.h"

#define EVICT_SLACK_NS 1000000 /* the engine goes by another clock */

/* ---- states -------------------------------------------------------------- */

const char *crail_rpc_lane_state_name(enum crail_rpc_lane_state state) {
    static const char *const names[] = {"idle", "ready", "wait-step", "wait-space", "wait-commit", "wait-durable"};
    assert(state < sizeof names / sizeof *names);
    return names[state];
}

/* Those who wait for memory stand in the order of their deadlines, also when they come back after a try. */
static void push_by_deadline(struct crail_list *head, struct crail_rpc_lane *lane) {
    struct crail_list *after = head->prev;
    while (after != head && CRAIL_LIST_OF(after, struct crail_rpc_lane, link)->vec.space_until > lane->vec.space_until)
        after = after->prev;
    crail_list_push(after->next, &lane->link); /* before the next one */
}

void crail_rpc_lane_move(crail_namenode *nn, struct crail_rpc_lane *lane, enum crail_rpc_lane_state state) {
    crail_list_remove(&lane->link);
    lane->state = state;
    switch (state) {
    case CRAIL_RPC_LANE_IDLE:
        break;
    case CRAIL_RPC_LANE_READY:
        crail_list_push(&nn->ready, &lane->link);
        break;
    case CRAIL_RPC_LANE_WAIT_STEP:
        crail_list_push(&nn->wait_step, &lane->link);
        break;
    case CRAIL_RPC_LANE_WAIT_SPACE:
        push_by_deadline(&nn->wait_space, lane);
        break;
    case CRAIL_RPC_LANE_WAIT_COMMIT:
        crail_list_push(&nn->durable.wait_commit, &lane->link);
        break;
    case CRAIL_RPC_LANE_WAIT_DURABLE:
        crail_list_push(&nn->durable.wait_durable, &lane->link);
        break;
    }
}

void crail_rpc_lanes_wake(crail_namenode *nn, struct crail_list *waiting) {
    while (!crail_list_empty(waiting))
        crail_rpc_lane_move(nn, CRAIL_LIST_OF(waiting->next, struct crail_rpc_lane, link), CRAIL_RPC_LANE_READY);
}

/* What was evicted for them may be kept by a reader, and then no confirmation wakes them; and what a cut holds comes
 * back when the next one is durable. */
static void wait_for_space(crail_namenode *nn, struct crail_rpc_lane *lane) {
    crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_WAIT_SPACE);
    crail_rpc_durable_want(nn);
    if (nn->evict_at <= nn->now_ns)
        nn->evict_at = nn->now_ns + CRAIL_META_EVICT_AGAIN_NS + EVICT_SLACK_NS;
}

uint64_t crail_rpc_lanes_evict_at(const crail_namenode *nn) {
    bool helps = !crail_list_empty(&nn->wait_space) && crail_meta_may_evict(nn->meta);
    return helps ? nn->evict_at : UINT64_MAX;
}

void crail_rpc_lane_deadlines(crail_namenode *nn) {
    if (crail_rpc_lanes_evict_at(nn) <= nn->now_ns)
        crail_rpc_lanes_wake(nn, &nn->wait_space);
    while (!crail_list_empty(&nn->wait_space)) {
        struct crail_rpc_lane *lane = CRAIL_LIST_OF(nn->wait_space.next, struct crail_rpc_lane, link);
        if (lane->vec.space_until > nn->now_ns)
            break;
        crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY); /* the last try */
    }
}

/* ---- ends ---------------------------------------------------------------- */

static void forget_vector(struct crail_rpc_lane *lane) {
    lane->vec.frame = NULL;
    free(lane->orphan);
    lane->orphan = NULL;
}

/* A vector that has begun and done nothing: an ALLOC that waited for space, in vain; granted now, it would be to
 * nobody.
 */
static void forget_begun(struct crail_rpc_lane *lane) {
    lane->record.len = 0; /* the one before it is overwritten */
    forget_vector(lane);
}

void crail_rpc_lane_lost_conn(crail_namenode *nn, struct crail_rpc_lane *lane) {
    struct crail_rpc_conn *c = lane->conn;
    if (lane->orphan)
        return;        /* the vector is an earlier connection's and goes on */
    lane->held = NULL; /* asked for again, it comes from the record */
    if (lane->vec.frame && lane->vec.recorded && lane->vec.next) {
        lane->orphan = c->in;
        c->in = NULL;
        return;
    }
    if (lane->vec.frame && lane->vec.recorded)
        forget_begun(lane);
    forget_vector(lane);
    crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_IDLE);
}

void crail_rpc_lane_free(crail_namenode *nn, struct crail_rpc_lane *lane) {
    assert(!lane->conn);
    crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_IDLE);
    crail_list_remove(&lane->of_session);
    crail_rpc_lane_row_gone(nn, lane);
    forget_vector(lane);
    crail_buf_free(&lane->record);
    free(lane);
}

/* ---- sending ------------------------------------------------------------- */

/* What follows a send: true if the lane may go on at once. */
static bool sent(crail_namenode *nn, struct crail_rpc_lane *lane, enum crail_rpc_sent how) {
    if (how == CRAIL_RPC_SENT_PART)
        crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY);
    return how == CRAIL_RPC_SENT_ALL;
}

/* `needs`: the epoch that must be durable before. */
static bool reply(crail_namenode *nn, struct crail_rpc_lane *lane, const struct crail_buf *b, uint64_t needs) {
    if (crail_rpc_durable_awaited(nn, needs)) {
        lane->held = b;
        lane->held_needs = needs;
        crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_WAIT_DURABLE);
        return false;
    }
    crail_failpoint("reply");
    nn->stats.requests++;
    return sent(nn, lane, crail_rpc_conn_send(nn, lane->conn, b->data, b->len));
}

/* ---- exactly once -------------------------------------------------------- */

static bool refuse(crail_namenode *nn, struct crail_rpc_lane *lane, const uint8_t *frame, int status) {
    struct crail_rpc_conn *c = lane->conn;
    if (crail_rpc_vector_refuse(frame, status, &c->out)) {
        crail_rpc_conn_close(nn, c);
        return false;
    }
    return reply(nn, lane, &c->out, 0);
}

/* The record, marked as one, under the id of the request that asked for it. */
static bool replay(crail_namenode *nn, struct crail_rpc_lane *lane, const struct crail_frame *asked) {
    struct crail_frame *head = (void *)lane->record.data;
    head->id = asked->id;
    size_t at = sizeof *head;
    for (uint32_t i = 0; i < head->count; i++) {
        struct crail_result *r = (void *)(lane->record.data + at);
        r->flags |= CRAIL_RESF_REPLAY;
        at += sizeof *r + crail_pad8(r->data_len);
    }
    assert(at == lane->record.len && at == head->size);
    nn->stats.replays++;
    return reply(nn, lane, &lane->record, lane->record_needs);
}

static bool begin(crail_namenode *nn, struct crail_rpc_lane *lane, const uint8_t *frame, struct crail_buf *b) {
    if (crail_rpc_vector_begin(&lane->vec, frame, b) == 0)
        return true;
    crail_rpc_conn_close(nn, lane->conn); /* nothing was executed: the client may repeat it */
    return false;
}

/* False: the lane waits until something is durable before it executes its vector. */
static bool may_change(crail_namenode *nn, struct crail_rpc_lane *lane) {
    if (!crail_rpc_durable_slows(nn) || crail_rpc_vector_is_bye(&lane->vec))
        return true;
    crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_WAIT_COMMIT);
    return false;
}

/* The next number: its vector begins, or waits before it does. */
static bool begin_recorded(crail_namenode *nn, struct crail_rpc_lane *lane, const uint8_t *frame) {
    crail_rpc_lane_touch(nn, lane);
    /* Whoever asks for the next number has the reply to this one. */
    if (lane->record.cap > CRAIL_RPC_RECORD_BYTES)
        crail_buf_free(&lane->record);
    lane->takes_any = false;
    lane->half_seq = 0;
    if (!begin(nn, lane, frame, &lane->record))
        return false;
    return may_change(nn, lane);
}

/* The vector that an earlier life left half-way: its first part is in the record, the rest is executed. */
static bool resume(crail_namenode *nn, struct crail_rpc_lane *lane, const uint8_t *frame) {
    const struct crail_frame *head = (const void *)frame, *record = (const void *)lane->record.data;
    if (!lane->record.len)
        return refuse(nn, lane, frame, CRAIL_E_UNAVAILABLE);
    if (head->count != record->count)
        return refuse(nn, lane, frame, CRAIL_E_PROTOCOL);
    crail_rpc_lane_touch(nn, lane);
    crail_rpc_vector_resume(&lane->vec, frame, lane->half_count, &lane->record);
    lane->takes_any = false;
    lane->half_seq = 0;
    return may_change(nn, lane);
}

/* Begins the frame's vector, or answers it at once. False: the lane cannot go on now. */
static bool admit(crail_namenode *nn, struct crail_rpc_lane *lane, const uint8_t *frame) {
    const struct crail_frame *head = (const void *)frame;
    if (head->seq == 0)
        return begin(nn, lane, frame, &lane->conn->out);
    if (lane->half_seq && head->seq == lane->half_seq)
        return resume(nn, lane, frame);
    if (head->seq == lane->last_seq + 1 || (lane->takes_any && head->seq > lane->last_seq))
        return begin_recorded(nn, lane, frame);
    if (head->seq > lane->last_seq)
        return refuse(nn, lane, frame, CRAIL_E_PROTOCOL);
    const struct crail_frame *record = (const void *)lane->record.data;
    if (head->seq < lane->last_seq || lane->record.len == 0)
        return refuse(nn, lane, frame, CRAIL_E_UNAVAILABLE); /* executed, and nobody knows how it went */
    if (head->count != record->count)
        return refuse(nn, lane, frame, CRAIL_E_PROTOCOL); /* another request under the same number */
    return replay(nn, lane, head);
}

/* ---- the turn ------------------------------------------------------------ */

/* The next frame: from the buffer, else by one receive if there is something. False: the lane cannot go on now. */
static bool next_frame(crail_namenode *nn, struct crail_rpc_lane *lane) {
    struct crail_rpc_conn *c = lane->conn;
    for (;;) {
        const uint8_t *frame;
        switch (crail_rpc_conn_frame(c, &frame)) {
        case CRAIL_RPC_FRAME_WHOLE:
            return admit(nn, lane, frame);
        case CRAIL_RPC_FRAME_GARBAGE:
            crail_rpc_conn_refuse(nn, c);
            return false;
        case CRAIL_RPC_FRAME_NONE:
            break;
        }
        if (!c->readable) {
            crail_rpc_conn_idle(nn, c);
            return false;
        }
        c->readable = false;
        if (!crail_rpc_conn_receive(nn, c))
            return false;
    }
}

/* The vector is complete. False: the lane cannot go on now, or is gone. */
static bool complete(crail_namenode *nn, struct crail_rpc_lane *lane) {
    struct crail_rpc_vector *v = &lane->vec;
    const struct crail_buf *b = v->reply;
    bool bye = v->bye, orphan = lane->orphan != NULL;
    uint64_t needs = v->needs;
    if (v->recorded) {
        lane->last_seq = ((const struct crail_frame *)(const void *)v->frame)->seq;
        lane->record_needs = needs;
    }
    forget_vector(lane);
    bool on = orphan || reply(nn, lane, b, bye ? 0 : needs);
    if (bye) {
        crail_rpc_session_end(nn, lane->session);
        return false;
    }
    return on;
}

/* There was no memory for the reply of a vector that has begun. */
static void broken(crail_namenode *nn, struct crail_rpc_lane *lane) {
    if (lane->vec.recorded) {
        lane->last_seq = ((const struct crail_frame *)(const void *)lane->vec.frame)->seq;
        crail_buf_free(&lane->record);
    }
    forget_vector(lane);
    if (lane->conn)
        crail_rpc_conn_close(nn, lane->conn);
}

/* Executes the vector that has begun. False: the lane cannot go on now, or is gone. */
static bool execute(crail_namenode *nn, struct crail_rpc_lane *lane) {
    switch (crail_rpc_vector_run(nn, lane)) {
    case CRAIL_RPC_RUN_DONE:
        return complete(nn, lane);
    case CRAIL_RPC_RUN_SLICED:
        crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY);
        return false;
    case CRAIL_RPC_RUN_STEP:
        crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_WAIT_STEP);
        return false;
    case CRAIL_RPC_RUN_SPACE:
        if (lane->orphan) {
            forget_begun(lane);
            return true;
        }
        wait_for_space(nn, lane);
        return false;
    case CRAIL_RPC_RUN_ASIDE:
        forget_vector(lane);
        return true;
    case CRAIL_RPC_RUN_BROKEN:
        broken(nn, lane);
        return false;
    }
    assert(0 && "a run without an end");
    return false;
}

void crail_rpc_lane_serve(crail_namenode *nn, struct crail_rpc_lane *lane) {
    assert(lane->state == CRAIL_RPC_LANE_READY);
    crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_IDLE);
    const struct crail_buf *held = lane->held;
    lane->held = NULL;
    if (held && !reply(nn, lane, held, lane->held_needs))
        return;
    for (;;) {
        if (lane->vec.frame) {
            if (!execute(nn, lane))
                return;
            struct crail_rpc_conn *c = lane->conn;
            if (c && c->in_pos < c->in_len && crail_clock_ns() >= nn->turn_end_ns) {
                crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY);
                return;
            }
        }
        struct crail_rpc_conn *c = lane->conn;
        if (!c || c->blocked)
            return;
        if (c->tx_left) {
            if (!sent(nn, lane, crail_rpc_conn_flush(nn, c)))
                return;
        }
        if (!next_frame(nn, lane))
            return;
    }
}
