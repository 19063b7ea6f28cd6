/* Flows: see flow.h. */
#include "flow.h"

#include <assert.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "crail/status.h"

#define PARTS_MAX 64                  /* frames of one sendmsg */
#define RECEIVE_BYTES_MIN (64u << 10) /* room for a receive: most replies need no second one */
#define INPUT_BYTES_KEPT (1u << 20)   /* an empty input buffer is no larger */
#define REPLY_BYTES_MAX (128u << 20)  /* no honest reply is longer */
#define BUCKETS_FIRST 64u

static struct crail_frame *head_of(const struct crail_flow_frame *f) {
    return (void *)f->out.data;
}

static uint32_t bytes_of(const struct crail_op *op) {
    return (uint32_t)sizeof(*op) + crail_pad8((uint32_t)op->path_len + op->options_len + op->data_len);
}

/* ---- frames by their id --------------------------------------------------- */

static struct crail_flow_frame **bucket(const struct crail_flow *p, uint64_t id) {
    return &p->buckets[id & (p->buckets_count - 1)]; /* ids are consecutive: no hash is better */
}

/* Twice the buckets; where there is no memory for them the chains get longer, nothing else. */
static void grow(struct crail_flow *p) {
    uint32_t n = p->buckets_count ? 2 * p->buckets_count : BUCKETS_FIRST, old_n = p->buckets_count;
    struct crail_flow_frame **buckets = calloc(n, sizeof(*buckets)), **old = p->buckets;
    if (!buckets)
        return;
    p->buckets = buckets;
    p->buckets_count = n;
    for (uint32_t i = 0; i < old_n; i++) {
        for (struct crail_flow_frame *f = old[i], *next; f; f = next) {
            next = f->same_hash;
            f->same_hash = *bucket(p, f->id);
            *bucket(p, f->id) = f;
        }
    }
    free(old);
}

struct crail_flow_frame *crail_flow_find(struct crail_flow *p, uint64_t id) {
    struct crail_flow_frame *f = p->buckets_count ? *bucket(p, id) : NULL;
    while (f && f->id != id)
        f = f->same_hash;
    return f;
}

static void take_out(struct crail_flow *p, struct crail_flow_frame *f) {
    struct crail_flow_frame **at = bucket(p, f->id);
    while (*at != f)
        at = &(*at)->same_hash;
    *at = f->same_hash;
    if (p->tx == f) { /* only what is out, or never will be: half a frame must not stay on the wire */
        assert(p->tx_at == 0);
        p->tx = f->link.next == &p->sent ? NULL : CRAIL_LIST_OF(f->link.next, struct crail_flow_frame, link);
    }
    crail_list_remove(&f->link);
    p->frames_count--;
}

void crail_flow_frame_free(struct crail_flow *p, struct crail_flow_frame *f) {
    for (uint32_t i = 0; i < f->count; i++)
        p->owner->forget(&f->entries[i]);
    crail_buf_free(&f->out);
    free(f->entries);
    free(f);
}

void crail_flow_remove(struct crail_flow *p, struct crail_flow_frame *f) {
    take_out(p, f);
    crail_flow_frame_free(p, f);
}

void crail_flow_init(struct crail_flow *p, bool is_recorded, const struct crail_flow_owner *owner) {
    *p = (struct crail_flow){.owner = owner, .fd = -1, .is_recorded = is_recorded};
    crail_list_init(&p->queued);
    crail_list_init(&p->sent);
}

static void remove_all(struct crail_flow *p, struct crail_list *list) {
    while (!crail_list_empty(list))
        crail_flow_remove(p, CRAIL_LIST_OF(list->next, struct crail_flow_frame, link));
}

void crail_flow_free(struct crail_flow *p) {
    p->tx = NULL;
    p->tx_at = 0;
    remove_all(p, &p->queued);
    remove_all(p, &p->sent);
    free(p->buckets);
    crail_buf_free(&p->in);
    p->buckets = NULL;
    p->buckets_count = 0;
}

/* ---- operations ------------------------------------------------------------ */

static struct crail_flow_frame *new_frame(struct crail_flow *p) {
    if (p->frames_count >= p->buckets_count)
        grow(p);
    if (!p->buckets_count)
        return NULL;
    struct crail_flow_frame *f = calloc(1, sizeof(*f));
    if (!f || crail_buf_reserve(&f->out, sizeof(struct crail_frame))) {
        free(f);
        return NULL;
    }
    memset(f->out.data, 0, sizeof(struct crail_frame));
    f->out.len = sizeof(struct crail_frame);
    f->id = ++p->id_last;
    f->same_hash = *bucket(p, f->id);
    *bucket(p, f->id) = f;
    crail_list_init(&f->link);
    crail_list_push(&p->queued, &f->link);
    p->frames_count++;
    return f;
}

static bool has_room(const struct crail_flow *p, const struct crail_flow_frame *f, size_t bytes) {
    return !f->is_alone && f->count < (p->is_recorded ? CRAIL_VECTOR_OPS_MAX : CRAIL_FLOW_OPS_MAX) &&
           f->out.len + bytes <= CRAIL_FRAME_BYTES_MAX;
}

static int reserve_entry(struct crail_flow_frame *f) {
    if (f->count < f->room)
        return 0;
    uint32_t room = f->room ? 4 * f->room : 4;
    struct crail_flow_entry *entries = realloc(f->entries, room * sizeof(*entries));
    if (!entries)
        return -ENOMEM;
    f->entries = entries;
    f->room = room;
    return 0;
}

int crail_flow_op(struct crail_flow *p, const struct crail_op *op, bool is_alone, uint8_t **path, uint8_t **data,
                  struct crail_flow_entry **entry, uint64_t *frame) {
    size_t bytes = bytes_of(op);
    if (sizeof(struct crail_frame) + bytes > CRAIL_FRAME_BYTES_MAX)
        return -EMSGSIZE;
    struct crail_flow_frame *f =
        crail_list_empty(&p->queued) ? NULL : CRAIL_LIST_OF(p->queued.prev, struct crail_flow_frame, link);
    if (!f || is_alone || !has_room(p, f, bytes))
        f = new_frame(p);
    if (!f)
        return -ENOMEM;
    if (reserve_entry(f) || crail_buf_reserve(&f->out, bytes)) {
        if (!f->count)
            crail_flow_remove(p, f);
        return -ENOMEM;
    }
    uint8_t *at = f->out.data + f->out.len;
    memcpy(at, op, sizeof(*op));
    memset(at + bytes - 8, 0, bytes > sizeof(*op) ? 8 : 0);
    *path = at + sizeof(*op);
    *data = *path + op->path_len + op->options_len;
    *entry = &f->entries[f->count++];
    **entry = (struct crail_flow_entry){.code = op->code, .deadline_ns = CRAIL_FLOW_NEVER};
    *frame = f->id;
    f->is_alone = is_alone;
    f->waits = is_alone && !p->is_recorded && (op->flags & CRAIL_OPF_WAIT);
    f->out.len += bytes;
    return 0;
}

/* Takes the operations out of a frame that nobody waits for. False: none is left. */
static bool compact(struct crail_flow *p, struct crail_flow_frame *f, bool and_unasked) {
    size_t from = sizeof(struct crail_frame), to = from;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < f->count; i++) {
        struct crail_flow_entry *e = &f->entries[i];
        size_t n = bytes_of((const struct crail_op *)(f->out.data + from));
        if (e->is_dropped || (and_unasked && !e->waiter) || (e->waiter && p->owner->is_dead(e))) {
            p->owner->forget(e);
        } else {
            if (to != from) {
                memmove(f->out.data + to, f->out.data + from, n);
                f->entries[kept] = *e;
            }
            kept++;
            to += n;
        }
        from += n;
    }
    f->count = kept;
    f->out.len = to;
    return kept > 0;
}

static void finish(struct crail_flow_frame *f) {
    struct crail_frame *head = head_of(f);
    assert(f->count > 0 && f->out.len % 8 == 0);
    head->magic = CRAIL_FRAME_MAGIC;
    head->size = (uint32_t)f->out.len;
    head->count = f->count;
    head->id = f->id;
}

/* ---- connections ------------------------------------------------------------ */

void crail_flow_attach(struct crail_flow *p, int fd, bool fresh) {
    assert(p->fd < 0 && fd >= 0);
    p->fd = fd;
    p->tx = crail_list_empty(&p->sent) ? NULL : CRAIL_LIST_OF(p->sent.next, struct crail_flow_frame, link);
    p->tx_at = 0;
    if (fresh)
        p->seq_last = 0;
    for (struct crail_list *l = p->sent.next; l != &p->sent; l = l->next) {
        struct crail_flow_frame *f = CRAIL_LIST_OF(l, struct crail_flow_frame, link);
        p->retries++;
        if (fresh && p->is_recorded)
            head_of(f)->seq = ++p->seq_last;
    }
}

void crail_flow_detach(struct crail_flow *p) {
    p->fd = -1;
    p->tx = NULL;
    p->tx_at = 0;
    p->in.len = p->in_at = 0;
    for (struct crail_list *l = p->sent.next, *next; !p->is_recorded && l != &p->sent; l = next) {
        struct crail_flow_frame *f = CRAIL_LIST_OF(l, struct crail_flow_frame, link);
        next = l->next;
        if (!compact(p, f, true))
            crail_flow_remove(p, f);
        else
            finish(f);
    }
}

/* What is left of the time that the namenode was asked to wait. */
static void tell_time_left(struct crail_flow_frame *f, int64_t now_ns) {
    struct crail_op *op = (void *)(f->out.data + sizeof(struct crail_frame));
    int64_t left = (f->entries[0].deadline_ns - now_ns) / 1000000;
    if (f->may_be_done && left < op->count)
        op->count = left > 0 ? (uint32_t)left : 0;
}

/* Moves to `sent` what may go out now. */
static void admit(struct crail_flow *p, int64_t now_ns) {
    while (!crail_list_empty(&p->queued) && (!p->is_recorded || crail_list_empty(&p->sent))) {
        struct crail_flow_frame *f = CRAIL_LIST_OF(p->queued.next, struct crail_flow_frame, link);
        if (!compact(p, f, false)) {
            crail_flow_remove(p, f);
            continue;
        }
        finish(f);
        head_of(f)->seq = p->is_recorded ? ++p->seq_last : 0;
        crail_list_remove(&f->link);
        crail_list_push(&p->sent, &f->link);
        f->is_sent = true;
        f->sent_ns = now_ns;
        p->requests++;
        if (!p->tx)
            p->tx = f;
    }
}

static int gather(struct crail_flow *p, struct iovec *part, int64_t now_ns) {
    int n = 0;
    size_t skip = p->tx_at;
    for (struct crail_list *l = &p->tx->link; l != &p->sent && n < PARTS_MAX; l = l->next, skip = 0) {
        struct crail_flow_frame *f = CRAIL_LIST_OF(l, struct crail_flow_frame, link);
        if (f->waits && !skip)
            tell_time_left(f, now_ns);
        f->sent_ns = now_ns;
        part[n++] = (struct iovec){f->out.data + skip, f->out.len - skip};
    }
    return n;
}

/* `n` more bytes are out. */
static void advance(struct crail_flow *p, size_t n) {
    while (n) {
        size_t left = p->tx->out.len - p->tx_at;
        p->tx->may_be_done = true;
        if (n < left) {
            p->tx_at += n;
            return;
        }
        n -= left;
        p->tx_at = 0;
        struct crail_list *next = p->tx->link.next;
        p->tx = next == &p->sent ? NULL : CRAIL_LIST_OF(next, struct crail_flow_frame, link);
    }
}

int crail_flow_flush(struct crail_flow *p, int64_t now_ns) {
    assert(p->fd >= 0);
    admit(p, now_ns);
    while (p->tx) {
        struct iovec part[PARTS_MAX];
        struct msghdr m = {.msg_iov = part, .msg_iovlen = (size_t)gather(p, part, now_ns)};
        ssize_t n = sendmsg(p->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EINTR)
            return errno == EAGAIN ? -EAGAIN : -EPIPE;
        if (n > 0)
            advance(p, (size_t)n);
    }
    return 0;
}

/* ---- replies ------------------------------------------------------------------ */

long crail_flow_receive(struct crail_flow *p, int64_t now_ns) {
    size_t rest = p->in.len - p->in_at, want = RECEIVE_BYTES_MIN;
    assert(p->fd >= 0);
    if (p->in_at && rest)
        memmove(p->in.data, p->in.data + p->in_at, rest);
    p->in.len = rest;
    p->in_at = 0;
    if (!rest && p->in.cap > INPUT_BYTES_KEPT)
        crail_buf_free(&p->in);
    if (rest >= sizeof(struct crail_frame)) {
        size_t size = ((const struct crail_frame *)p->in.data)->size;
        want = size - rest > want ? size - rest : want; /* reply() has looked at the size */
    }
    if (crail_buf_reserve(&p->in, want))
        return -ENOMEM;
    ssize_t n;
    do
        n = recv(p->fd, p->in.data + p->in.len, p->in.cap - p->in.len, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n < 0 && errno == EAGAIN ? -EAGAIN : -EPIPE;
    p->in.len += (size_t)n;
    p->received_ns = now_ns;
    return n;
}

const struct crail_result *crail_flow_next(const struct crail_result *r) {
    return (const void *)((const uint8_t *)(r + 1) + (((size_t)r->data_len + 7) & ~(size_t)7));
}

/* Do the results fill the reply exactly, and have they statuses? */
static bool results_fit(const struct crail_frame *f) {
    const uint8_t *at = (const uint8_t *)(f + 1), *end = (const uint8_t *)f + f->size;
    for (uint32_t i = 0; i < f->count; i++) {
        if ((size_t)(end - at) < sizeof(struct crail_result))
            return false;
        const struct crail_result *r = (const void *)at;
        if ((size_t)(end - at) - sizeof(*r) < (((size_t)r->data_len + 7) & ~(size_t)7) || !crail_is_answer(r->status))
            return false;
        at = (const void *)crail_flow_next(r);
    }
    return at == end;
}

/* Is the frame wholly on the wire? Only then may it be answered. */
static bool is_out(const struct crail_flow *p, const struct crail_flow_frame *f) {
    if (!f->is_sent || !f->may_be_done || f == p->tx)
        return false;
    return true;
}

int crail_flow_reply(struct crail_flow *p, struct crail_flow_frame **frame, const struct crail_result **results) {
    size_t there = p->in.len - p->in_at;
    if (there < sizeof(struct crail_frame))
        return 0;
    const struct crail_frame *head = (const void *)(p->in.data + p->in_at);
    if (head->magic != CRAIL_FRAME_MAGIC || head->size < sizeof(*head) || head->size > REPLY_BYTES_MAX ||
        head->size % 8)
        return -EPIPE;
    if (there < head->size)
        return 0;
    struct crail_flow_frame *f = crail_flow_find(p, head->id);
    if (!f || !is_out(p, f) || head->count != f->count || !results_fit(head))
        return -EPIPE;
    take_out(p, f);
    p->in_at += head->size;
    *frame = f;
    *results = (const void *)(head + 1);
    return 1;
}

int64_t crail_flow_silent_since(const struct crail_flow *p) {
    for (struct crail_list *l = p->sent.next; p->fd >= 0 && l != &p->sent; l = l->next) {
        const struct crail_flow_frame *f = CRAIL_LIST_OF(l, struct crail_flow_frame, link);
        if (!f->waits)
            return f->sent_ns > p->received_ns ? f->sent_ns : p->received_ns;
    }
    return CRAIL_FLOW_NEVER;
}
