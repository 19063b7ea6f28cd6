/* Retiring: orders come over the channel from the namenode, confirmations go back.
 *
 * An order raises the generation of its first granule; after a fence every slot is looked at; what no slot names is
 * confirmed at once, the rest waits and is looked at again, 0.5 ms later, then twice that, up to 50 ms. As many may
 * wait as there are granules (views can live for long), and they must not stop the rest: an order is looked for in an
 * index, a look at the slots is for CRAIL_LOOK_MAX orders at most, the newest at each tick and the older ones in
 * turn, and ticks take at most a part of the loop's time. With its channel everything that waits is forgotten,
 * because the namenode orders again over the next one; raised generations stay raised. */
#include "storage.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/failpoint.h"

#define BACKOFF_FIRST_NS 500000u
#define BACKOFF_LAST_NS 50000000u
#define LOOK_REST 20u /* after a tick the loop has so many times its duration for all else */
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
    s->retire.count = s->retire.cursor = 0;
    memset(s->retire.index, 0, s->retire.index_cap * sizeof(*s->retire.index));
    s->retire.due_ns = 0;
    crail_loop_arm(s);
    crail_loop_close(s, &c->source);
}

/* ---- the hash of what waits -------------------------------------------------- */

static uint64_t word_of(const struct crail_retire *w) {
    return crail_use_word(w->region, w->granule);
}

static uint32_t hash(uint64_t word) {
    return (uint32_t)((word * 0x9e3779b97f4a7c15ull) >> 32);
}

/* Position in the index for the word: where it is, or the empty place where it belongs. */
static uint32_t index_place(const struct crail_retire_state *r, uint64_t word) {
    uint32_t mask = r->index_cap - 1, at = hash(word) & mask;
    while (r->index[at] && word_of(&r->waiting[r->index[at] - 1]) != word)
        at = (at + 1) & mask;
    return at;
}

/* What follows the removed one moves back, so that no search ends before it (Knuth 6.4, algorithm R). */
static void index_remove(struct crail_retire_state *r, uint64_t word) {
    uint32_t mask = r->index_cap - 1, hole = index_place(r, word);
    assert(r->index[hole]);
    for (uint32_t at = (hole + 1) & mask; r->index[at]; at = (at + 1) & mask) {
        uint32_t home = hash(word_of(&r->waiting[r->index[at] - 1])) & mask;
        if (((at - home) & mask) < ((at - hole) & mask))
            continue;
        r->index[hole] = r->index[at];
        hole = at;
    }
    r->index[hole] = 0;
}

static int index_grow(struct crail_retire_state *r, uint32_t cap) {
    uint32_t *index = calloc(cap, sizeof(*index));
    if (!index)
        return -ENOMEM;
    free(r->index);
    r->index = index;
    r->index_cap = cap;
    for (uint32_t i = 0; i < r->count; i++)
        r->index[index_place(r, word_of(&r->waiting[i]))] = i + 1;
    return 0;
}

/* Room for `n` orders: the list, and an index at most half full. */
static int reserve(struct crail_retire_state *r, uint32_t n) {
    if (n > r->cap) {
        uint32_t cap = r->cap ? r->cap : CRAIL_RETIRES_MAX;
        while (cap < n)
            cap *= 2;
        struct crail_retire *waiting = realloc(r->waiting, cap * sizeof(*waiting));
        if (!waiting)
            return -ENOMEM;
        r->waiting = waiting;
        r->cap = cap;
    }
    uint32_t index_cap = r->index_cap ? r->index_cap : 2 * CRAIL_RETIRES_MAX;
    while (index_cap < 2 * n)
        index_cap *= 2;
    return index_cap > r->index_cap ? index_grow(r, index_cap) : 0;
}

int crail_retire_init(struct crail_storage *s) {
    struct crail_retire_state *r = &s->retire;
    r->look.words = malloc(2 * CRAIL_LOOK_MAX * sizeof(*r->look.words));
    r->look.named = malloc(2 * CRAIL_LOOK_MAX * sizeof(*r->look.named));
    return r->look.words && r->look.named ? reserve(r, CRAIL_RETIRES_MAX) : -ENOMEM;
}

void crail_retire_free(struct crail_storage *s) {
    free(s->retire.waiting);
    free(s->retire.index);
    free(s->retire.look.words);
    free(s->retire.look.named);
}

/* Adds the orders, once each; in the list, `reserved` is the round that makes the generation durable. Room is reserved.
 * False: an order contradicts one that waits. */
static bool add_orders(struct crail_storage *s, const struct crail_retire *orders, uint32_t n) {
    struct crail_retire_state *r = &s->retire;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = index_place(r, word_of(&orders[i]));
        if (r->index[at]) {
            struct crail_retire *known = &r->waiting[r->index[at] - 1];
            if (known->granules != orders[i].granules)
                return false;
            if (known->generation < orders[i].generation)
                known->generation = orders[i].generation;
            known->reserved = crail_round_of(s, orders[i].region);
            continue;
        }
        assert(r->count < r->cap);
        r->waiting[r->count] = orders[i];
        r->waiting[r->count++].reserved = crail_round_of(s, orders[i].region);
        r->index[at] = r->count;
    }
    return true;
}

/* The order at `from` goes to `to`, where none is any more. */
static void move(struct crail_retire_state *r, uint32_t to, uint32_t from) {
    if (to == from)
        return;
    uint32_t at = index_place(r, word_of(&r->waiting[from]));
    assert(to < from && r->index[at] == from + 1);
    r->index[at] = to + 1;
    r->waiting[to] = r->waiting[from];
}

/* ---- the look at the slots ------------------------------------------------------ */

static uint32_t look_place(const struct crail_retire_state *r, uint64_t word) {
    uint32_t at = hash(word) & r->look.mask;
    while (r->look.words[at] && r->look.words[at] != word)
        at = (at + 1) & r->look.mask;
    return at;
}

/* The look is for `n` orders from `first` on. */
static void look_begin(struct crail_retire_state *r, uint32_t first, uint32_t n) {
    assert(n <= CRAIL_LOOK_MAX && first + n <= r->count);
    uint32_t places = 64;
    while (places < 2 * n)
        places *= 2;
    r->look.mask = places - 1;
    r->look.now_ns = crail_clock_ns();
    memset(r->look.words, 0, places * sizeof(*r->look.words));
    memset(r->look.named, 0, places * sizeof(*r->look.named));
    for (uint32_t i = first; i < first + n; i++) {
        uint64_t word = word_of(&r->waiting[i]);
        r->look.words[look_place(r, word)] = word;
    }
}

bool crail_retire_see(struct crail_storage *s, uint64_t mark) {
    struct crail_retire_state *r = &s->retire;
    uint64_t word = mark & CRAIL_USE_WORD_MASK;
    if (s->others.is_looking) {
        crail_others_note(s, mark);
        return false;
    }
    if (!word)
        return false; /* clients write what they like */
    if (s->others.busy_n)
        word = crail_others_word(s, word);
    uint32_t at = look_place(r, word);
    if (r->look.words[at] != word)
        return false;
    return r->look.named[at] = true;
}

static int confirm_frame(struct crail_channel *c, const struct crail_retire *done, uint32_t n) {
    struct crail_retire_frame head = {.magic = CRAIL_RETIRE_MAGIC, .count = n};
    head.size = (uint32_t)(sizeof(head) + n * sizeof(*done));
    crail_failpoint("retire-confirmed");
    int rc = crail_buf_append_padded(&c->out, &head, sizeof(head));
    return rc ? rc : crail_buf_append_padded(&c->out, done, n * sizeof(*done));
}

/* Confirms what no slot names, in the order of its coming; the rest moves up, and the last ones fill the gap. 0 or
 * -ENOMEM (then the channel is of no use any more). */
static int confirm_unnamed(struct crail_storage *s, uint32_t first, uint32_t n) {
    struct crail_retire_state *r = &s->retire;
    struct crail_retire batch[CRAIL_RETIRES_MAX];
    uint32_t kept = first, end = first + n, done = 0;
    int rc = 0;
    for (uint32_t i = first; i < end; i++) {
        uint64_t word = word_of(&r->waiting[i]);
        if (rc || r->look.named[look_place(r, word)] || !crail_round_is_durable(s, r->waiting[i].reserved)) {
            move(r, kept++, i);
            continue;
        }
        batch[done] = r->waiting[i];
        batch[done++].reserved = 0;
        index_remove(r, word);
        if (s->others.busy_n)
            crail_others_confirmed(s, r->waiting[i].region, r->waiting[i].granule);
        s->stats.retires_confirmed++;
        if (done == CRAIL_RETIRES_MAX) {
            rc = confirm_frame(r->channel, batch, done);
            done = 0;
        }
    }
    if (done && rc == 0)
        rc = confirm_frame(r->channel, batch, done);
    while (kept < end && r->count > end)
        move(r, kept++, --r->count);
    if (r->count == end)
        r->count = kept;
    return rc;
}

/* Generations were raised before; the fence and the one in crail_use_enter() do the rest (usetable.c). */
static int look(struct crail_storage *s, uint32_t first, uint32_t n) {
    if (n == 0)
        return 0;
    look_begin(&s->retire, first, n);
    atomic_thread_fence(memory_order_seq_cst);
    if (crail_guard_on("retire-scan")) {
        crail_conns_see(s);
        if (!crail_use_tables_see(s))
            return 0; /* nobody knows: all of it waits */
    }
    return confirm_unnamed(s, first, n);
}

/* The newest, which are the likeliest to be free soon, and as many of the older ones, in turn. */
static int look_again(struct crail_storage *s) {
    struct crail_retire_state *r = &s->retire;
    uint32_t newest = r->count < CRAIL_LOOK_MAX ? r->count : CRAIL_LOOK_MAX, older = r->count - newest;
    int rc = look(s, older, newest);
    if (rc || !older)
        return rc;
    uint32_t end = r->cursor && r->cursor < older ? r->cursor : older;
    uint32_t n = end < CRAIL_LOOK_MAX ? end : CRAIL_LOOK_MAX;
    r->cursor = end - n;
    return look(s, r->cursor, n);
}

static void set_due(struct crail_storage *s, uint64_t due_ns) {
    s->retire.due_ns = s->retire.count ? due_ns : 0;
    crail_loop_arm(s);
}

/* Something new waits. What is due already stays due: ticks come no oftener for it. */
static void set_due_soon(struct crail_storage *s) {
    struct crail_retire_state *r = &s->retire;
    uint64_t due = crail_clock_ns() + BACKOFF_FIRST_NS;
    if (due < r->rest_until_ns)
        due = r->rest_until_ns;
    r->backoff_ns = BACKOFF_FIRST_NS;
    set_due(s, r->due_ns && r->due_ns < due ? r->due_ns : due);
}

/* After a tick that began at `from_ns`. The more there is to look at, the sooner comes the next part of it. */
static void set_due_later(struct crail_storage *s, uint64_t from_ns) {
    struct crail_retire_state *r = &s->retire;
    uint64_t now = crail_clock_ns(), last = BACKOFF_LAST_NS / (1 + r->count / CRAIL_LOOK_MAX);
    r->backoff_ns = r->backoff_ns * 2 < last ? r->backoff_ns * 2 : last;
    r->rest_until_ns = now + (now - from_ns) * LOOK_REST;
    uint64_t due = now + r->backoff_ns;
    set_due(s, due < r->rest_until_ns ? r->rest_until_ns : due);
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
        /* Also one that was raised before: over a channel that ended before its round was durable, perhaps. */
        crail_round_note(s, orders[i].region, orders[i].granule);
    }
}

/* The orders of one whole frame; room is reserved. Nothing is done unless all is in order. */
static int take_orders(struct crail_storage *s, const struct crail_retire *orders, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (orders[i].reserved || !crail_region_holds(s, orders[i].region, orders[i].granule, orders[i].granules))
            return -EPROTO;
    if (!add_orders(s, orders, n))
        return -EPROTO;
    s->stats.retires_ordered += n;
    raise_generations(s, orders, n);
    crail_failpoint("generations-raised");
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
    uint32_t known = r->count;
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
    crail_round_begin(s);
    rc = look(s, known, r->count - known);
    if (rc == 0 && r->count > known)
        set_due_soon(s);
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

static void tick(struct crail_storage *s, uint64_t now_ns) {
    struct crail_retire_state *r = &s->retire;
    assert(r->channel && r->count);
    if (s->orphan_count)
        crail_use_probe_orphans(s);
    int rc = look_again(s);
    if (rc == 0)
        rc = channel_flush(s, r->channel);
    if (rc)
        channel_drop(s);
    else
        set_due_later(s, now_ns);
}

void crail_retire_tick(struct crail_storage *s, uint64_t now_ns) {
    if (s->retire.due_ns && now_ns >= s->retire.due_ns)
        tick(s, now_ns);
}

void crail_retire_round_done(struct crail_storage *s) {
    uint64_t now = crail_clock_ns();
    if (s->retire.channel && s->retire.count && now >= s->retire.rest_until_ns)
        tick(s, now); /* else its time will come */
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
