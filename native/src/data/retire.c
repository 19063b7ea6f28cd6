/* Retiring: orders come over the channel from the namenode, confirmations go back.
 *
 * An order raises the generation of its first granule; after a fence every slot is looked at; what no slot names is
 * confirmed at once, the rest waits and is looked at again, 0.5 ms later, then twice that, up to 50 ms. What waits
 * is bounded: each order has a slot or a connection that names it. With its channel everything that waits is
 * forgotten, because the namenode orders again over the next one; raised generations stay raised. */
#include "storage.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define BACKOFF_FIRST_NS 500000u
#define BACKOFF_LAST_NS 50000000u
#define FRAMES_PER_TURN 8
#define UNSENT_BYTES_MAX (1u << 20) /* beyond this no further order is read */

struct crail_channel {
    struct crail_source source; /* first: the loop frees it */
    struct crail_buf out;
    size_t sent; /* of out */
    size_t in_len;
    union {
        struct crail_retire_frame head;
        uint8_t bytes[sizeof(struct crail_retire_frame) + CRAIL_RETIRES_MAX * sizeof(struct crail_retire)];
    } in;
};

static void channel_drop(struct crail_storage *s) {
    struct crail_channel *c = s->retire.channel;
    if (!c)
        return;
    crail_buf_free(&c->out);
    s->retire.channel = NULL;
    s->retire.count = 0;
    s->retire.due_ns = 0;
    crail_loop_arm(s);
    crail_loop_close(s, &c->source);
}

/* ---- the hash of what waits -------------------------------------------------- */

/* Position in the index for the word: where it is, or the empty place where it belongs. */
static uint32_t index_place(const struct crail_retire_state *r, uint64_t word) {
    uint32_t mask = r->index_cap - 1;
    uint32_t at = (uint32_t)((word * 0x9e3779b97f4a7c15ull) >> 32) & mask;
    while (r->index[at]) {
        const struct crail_retire *w = &r->waiting[r->index[at] - 1];
        if (crail_use_word(w->region, w->granule) == word)
            break;
        at = (at + 1) & mask;
    }
    return at;
}

/* Room for `n` orders: the list, the marks and an index at most half full. */
static int reserve(struct crail_retire_state *r, uint32_t n) {
    if (n > r->cap || !r->cap) {
        uint32_t cap = r->cap ? r->cap : CRAIL_RETIRES_MAX;
        while (cap < n)
            cap *= 2;
        struct crail_retire *waiting = realloc(r->waiting, cap * sizeof(*waiting));
        if (!waiting)
            return -ENOMEM;
        r->waiting = waiting;
        bool *named = realloc(r->named, cap * sizeof(*named));
        if (!named)
            return -ENOMEM;
        r->named = named;
        r->cap = cap;
    }
    uint32_t index_cap = 2048;
    while (index_cap < 2 * n)
        index_cap *= 2;
    if (index_cap > r->index_cap) {
        uint32_t *index = realloc(r->index, index_cap * sizeof(*index));
        if (!index)
            return -ENOMEM;
        r->index = index;
        r->index_cap = index_cap;
    }
    return 0;
}

static void index_build(struct crail_retire_state *r) {
    memset(r->index, 0, r->index_cap * sizeof(*r->index));
    memset(r->named, 0, r->count * sizeof(*r->named));
    for (uint32_t i = 0; i < r->count; i++)
        r->index[index_place(r, crail_use_word(r->waiting[i].region, r->waiting[i].granule))] = i + 1;
}

/* Adds the orders, once each. Room is reserved, the index built. False: an order contradicts one that waits. */
static bool add_orders(struct crail_retire_state *r, const struct crail_retire *orders, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = index_place(r, crail_use_word(orders[i].region, orders[i].granule));
        if (r->index[at]) {
            struct crail_retire *known = &r->waiting[r->index[at] - 1];
            if (known->granules != orders[i].granules)
                return false;
            if (known->generation < orders[i].generation)
                known->generation = orders[i].generation;
            continue;
        }
        assert(r->count < r->cap);
        r->named[r->count] = false;
        r->waiting[r->count++] = orders[i];
        r->index[at] = r->count;
    }
    return true;
}

/* ---- the look at the slots ------------------------------------------------------ */

static void see(struct crail_retire_state *r, uint64_t word) {
    uint32_t i = r->index[index_place(r, word)];
    if (i)
        r->named[i - 1] = true;
}

static void see_table(struct crail_retire_state *r, const struct crail_use_table *t) {
    uint32_t high = atomic_load_explicit(&t->high_water, memory_order_acquire);
    if (high > CRAIL_USE_SLOTS)
        high = CRAIL_USE_SLOTS; /* the client writes here what it likes */
    for (uint32_t i = 0; i < high; i++) {
        uint64_t word = atomic_load_explicit(&t->slot[i], memory_order_acquire);
        if (word)
            see(r, word);
    }
}

static int confirm_frame(struct crail_channel *c, const struct crail_retire *done, uint32_t n) {
    struct crail_retire_frame head = {.magic = CRAIL_RETIRE_MAGIC, .count = n};
    head.size = (uint32_t)(sizeof(head) + n * sizeof(*done));
    int rc = crail_buf_append_padded(&c->out, &head, sizeof(head));
    return rc ? rc : crail_buf_append_padded(&c->out, done, n * sizeof(*done));
}

/* Confirms what no slot names; the rest moves up. 0 or -ENOMEM (then the channel is of no use any more). */
static int confirm_unnamed(struct crail_storage *s) {
    struct crail_retire_state *r = &s->retire;
    struct crail_retire batch[CRAIL_RETIRES_MAX];
    uint32_t kept = 0, n = 0;
    int rc = 0;
    for (uint32_t i = 0; i < r->count && rc == 0; i++) {
        if (r->named[i]) {
            r->waiting[kept++] = r->waiting[i];
            continue;
        }
        batch[n++] = r->waiting[i];
        s->stats.retires_confirmed++;
        if (n == CRAIL_RETIRES_MAX) {
            rc = confirm_frame(r->channel, batch, n);
            n = 0;
        }
    }
    if (n && rc == 0)
        rc = confirm_frame(r->channel, batch, n);
    r->count = kept;
    return rc;
}

/* The index is built. Generations were raised before; the fence and the one in crail_use_enter() do the rest. */
static int scan(struct crail_storage *s) {
    struct crail_retire_state *r = &s->retire;
    atomic_thread_fence(memory_order_seq_cst);
    if (crail_guard_on("retire-scan")) {
        for (uint32_t i = 0; i < s->table_count; i++)
            see_table(r, s->tables[i].table);
        crail_conns_words(s, see);
    }
    return confirm_unnamed(s);
}

static void set_due(struct crail_storage *s, uint64_t backoff_ns) {
    s->retire.backoff_ns = backoff_ns;
    s->retire.due_ns = s->retire.count ? crail_clock_ns() + backoff_ns : 0;
    crail_loop_arm(s);
}

/* ---- the channel ------------------------------------------------------------------ */

/* Sends what is left. 0, or -errno when the channel is gone. */
static int channel_flush(struct crail_storage *s, struct crail_channel *c) {
    while (c->sent < c->out.len) {
        ssize_t n = send(c->source.fd, c->out.data + c->sent, c->out.len - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            return -errno;
        c->sent += (size_t)n;
    }
    if (c->sent == c->out.len)
        c->sent = c->out.len = 0;
    else if (c->sent >= UNSENT_BYTES_MAX / 2) {
        memmove(c->out.data, c->out.data + c->sent, c->out.len - c->sent);
        c->out.len -= c->sent;
        c->sent = 0;
    }
    size_t unsent = c->out.len - c->sent;
    crail_loop_watch(s, &c->source, (unsent ? EPOLLOUT : 0) | (unsent < UNSENT_BYTES_MAX ? EPOLLIN : 0));
    return 0;
}

static void raise_generations(struct crail_storage *s, const struct crail_retire *orders, uint32_t n) {
    if (!crail_guard_on("retire-generation"))
        return;
    for (uint32_t i = 0; i < n; i++) {
        _Atomic uint64_t *at = &s->regions[orders[i].region].generations[orders[i].granule];
        /* Only this thread writes generations. */
        if (atomic_load_explicit(at, memory_order_relaxed) < orders[i].generation)
            atomic_store_explicit(at, orders[i].generation, memory_order_release);
    }
}

/* The orders of one whole frame; the index is built and has room. Nothing is done unless all is in order. */
static int take_orders(struct crail_storage *s, const struct crail_retire *orders, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (orders[i].reserved || !crail_region_holds(s, orders[i].region, orders[i].granule, orders[i].granules))
            return -EPROTO;
    if (!add_orders(&s->retire, orders, n))
        return -EPROTO;
    s->stats.retires_ordered += n;
    raise_generations(s, orders, n);
    return 0;
}

static int check_head(const struct crail_retire_frame *h) {
    if (h->magic != CRAIL_RETIRE_MAGIC || h->flags || h->count == 0 || h->count > CRAIL_RETIRES_MAX ||
        h->size != sizeof(*h) + h->count * sizeof(struct crail_retire))
        return -EPROTO;
    return 0;
}

/* Takes the frames that are whole out of the buffer, with one look at the slots for all of them; the rest moves to
 * the buffer's beginning. 0, -EPROTO or -ENOMEM. */
static int take_frames(struct crail_storage *s, struct crail_channel *c) {
    struct crail_retire_state *r = &s->retire;
    int rc = reserve(r, r->count + (uint32_t)(c->in_len / sizeof(struct crail_retire)));
    if (rc)
        return rc;
    index_build(r);
    size_t at = 0;
    while (c->in_len - at >= sizeof(struct crail_retire_frame)) {
        struct crail_retire_frame head;
        memcpy(&head, c->in.bytes + at, sizeof(head));
        rc = check_head(&head);
        if (rc)
            return rc;
        if (c->in_len - at < head.size)
            break;
        /* Frames are multiples of 8 bytes, so the orders lie aligned. */
        const void *orders = c->in.bytes + at + sizeof(head);
        rc = take_orders(s, orders, head.count);
        if (rc)
            return rc;
        at += head.size;
    }
    if (at == 0)
        return 0;
    memmove(c->in.bytes, c->in.bytes + at, c->in_len - at);
    c->in_len -= at;
    rc = scan(s);
    if (rc == 0)
        set_due(s, BACKOFF_FIRST_NS);
    return rc;
}

/* 0, or a reason to close: -EPROTO for what was said, another one for the connection. */
static int channel_read(struct crail_storage *s, struct crail_channel *c) {
    for (int i = 0; i < FRAMES_PER_TURN; i++) {
        assert(c->in_len < sizeof(c->in)); /* a full buffer always held a whole frame */
        ssize_t n = recv(c->source.fd, c->in.bytes + c->in_len, sizeof(c->in) - c->in_len, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? (errno == EAGAIN ? 0 : -errno) : -ECONNRESET;
        c->in_len += (size_t)n;
        int rc = take_frames(s, c);
        if (rc || c->out.len - c->sent >= UNSENT_BYTES_MAX)
            return rc;
    }
    return 0;
}

static void channel_ready(struct crail_storage *s, struct crail_source *source, uint32_t events) {
    struct crail_channel *c = (struct crail_channel *)source;
    int rc = 0;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        rc = channel_read(s, c);
    if (rc == -EPROTO)
        s->stats.protocol_errors++;
    if (rc == 0)
        rc = channel_flush(s, c);
    if (rc)
        channel_drop(s);
}

void crail_retire_tick(struct crail_storage *s, uint64_t now_ns) {
    struct crail_retire_state *r = &s->retire;
    if (!r->due_ns || now_ns < r->due_ns)
        return;
    assert(r->channel && r->count);
    if (s->orphan_count)
        crail_use_probe_orphans(s);
    index_build(r);
    int rc = scan(s);
    if (rc == 0)
        rc = channel_flush(s, r->channel);
    if (rc)
        channel_drop(s);
    else
        set_due(s, r->backoff_ns * 2 < BACKOFF_LAST_NS ? r->backoff_ns * 2 : BACKOFF_LAST_NS);
}

void crail_retire_close(struct crail_storage *s) {
    channel_drop(s);
}

static int on_channel(struct crail_storage *s, void *arg) {
    struct crail_channel *c = arg;
    int rc = crail_loop_add(s, &c->source, EPOLLIN);
    if (rc)
        return rc;
    channel_drop(s);
    s->retire.channel = c;
    s->serving = true;
    return 0;
}

int crail_storage_channel(crail_storage *s, int fd) {
    struct crail_channel *c = calloc(1, sizeof(*c));
    int rc = -ENOMEM;
    if (c) {
        c->source = (struct crail_source){.fd = fd, .ready = channel_ready};
        rc = crail_storage_call(s, on_channel, c);
    }
    if (rc) {
        close(fd);
        free(c);
    }
    return rc;
}
