/* A namenode whose loop turns when the target says so, with clients and one storage server at the other ends of
 * socketpairs. Every reply is looked at; after the script everybody goes, and all that was lent must be back. */
#ifndef CRAIL_FUZZ_NAMENODE_H
#define CRAIL_FUZZ_NAMENODE_H

#include "fuzz.h"
#include "thread.h"

#include "rpc/loop.c"

#include "base/ring.h"
#include "meta/meta.h"

#define LANES 4u
#define SESSIONS 2u
#define REGIONS 2u
#define GRANULES 48u /* of each region */
#define TURNS_MAX 400
#define KNOWN_EXTENTS 16u
#define ASKED 32u
#define REPLY_ROOM (1u << 20)
#define GRACE_MS 5000u
#define FAR_NS (3600ull * 1000000000u)

struct lane {
    int fd; /* -1: not connected */
    uint64_t session;
    uint32_t number;
    uint64_t seq, id;
    bool astray; /* other numbers than these may have been said */
    struct crail_ring ring;
    int bell;
    uint8_t *in; /* REPLY_ROOM bytes, in_len of them received */
    size_t in_len;
    struct {
        uint64_t id;
        uint32_t count;
        uint16_t codes[8];
    } asked[ASKED]; /* by id modulo: what the cooked requests were */
};

static struct {
    crail_namenode *nn;
    struct lane lanes[LANES];
    uint64_t sessions_last;
    int channel; /* our end, or -1 */
    uint32_t server;
    struct crail_extent known[KNOWN_EXTENTS]; /* that replies named, the latest last in turn */
    uint32_t known_count;
    uint64_t version; /* that a reply named */
    struct crail_buf orders;
} w;

/* ---- turns --------------------------------------------------------------------- */

static inline void turns(void) {
    for (int i = 0; i < TURNS_MAX; i++) {
        turn(w.nn);
        if (i && !w.nn->background && crail_list_empty(&w.nn->ready) && crail_list_empty(&w.nn->wait_step))
            return;
    }
}

static inline void pass(uint64_t ns) {
    fuzz_now_ns += ns;
    turns();
}

/* ---- replies --------------------------------------------------------------------- */

static inline void learn(const struct crail_extent *e, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        CHECK(e[i].server == w.server && e[i].region < REGIONS && e[i].granules);
        CHECK(e[i].granule < GRANULES && e[i].granules <= GRANULES - e[i].granule);
        w.known[w.known_count++ % KNOWN_EXTENTS] = e[i];
    }
}

static inline void check_listing(const struct crail_result *r, const uint8_t *at) {
    const uint8_t *end = at + r->data_len;
    for (uint32_t i = 0; i < r->count; i++) {
        struct crail_dirent d;
        CHECK((size_t)(end - at) >= sizeof d);
        memcpy(&d, at, sizeof d);
        CHECK(d.name_len && d.name_len <= CRAIL_NAME_MAX);
        CHECK((size_t)(end - at) >= sizeof d + crail_pad8(d.name_len));
        at += sizeof d + crail_pad8(d.name_len);
    }
    CHECK(at == end);
}

static inline void check_column(const struct crail_result *r, const uint8_t *at) {
    const uint8_t *end = at + r->data_len;
    for (uint32_t i = 0; i < r->count; i++) {
        struct crail_column c;
        CHECK((size_t)(end - at) >= sizeof c);
        memcpy(&c, at, sizeof c);
        at += sizeof c;
        size_t name = crail_pad8(c.name_len), extents = c.extents * sizeof(struct crail_extent);
        CHECK(c.name_len && c.name_len <= CRAIL_NAME_MAX && c.extents <= CRAIL_EXTENTS_MAX);
        CHECK(c.data_len <= CRAIL_INLINE_MAX && c.data_len <= c.size && (!c.extents || !c.data_len));
        CHECK((size_t)(end - at) >= name + extents + crail_pad8(c.data_len));
        learn((const void *)(at + name), c.extents);
        at += name + extents + crail_pad8(c.data_len);
    }
    CHECK(at == end);
}

/* A result to a request of which we know the code: does its data make sense? */
static inline void check_result(uint16_t code, const struct crail_result *r) {
    const void *data = r + 1;
    if (r->status || code == CRAIL_OP_SERVER)
        return;
    w.version = r->version ? r->version : w.version;
    switch (code) {
    case CRAIL_OP_GET:
    case CRAIL_OP_OPEN:
        if (r->flags & CRAIL_RESF_INLINE)
            CHECK(r->size == r->data_len);
        else
            CHECK(r->data_len == r->count * sizeof(struct crail_extent));
        if (!(r->flags & CRAIL_RESF_INLINE))
            learn(data, r->count);
        return;
    case CRAIL_OP_ALLOC:
        CHECK(r->count && r->data_len == r->count * sizeof(struct crail_extent));
        learn(data, r->count);
        return;
    case CRAIL_OP_LIST:
        check_listing(r, data);
        return;
    case CRAIL_OP_COLUMN:
        check_column(r, data);
        return;
    case CRAIL_OP_STAT:
        CHECK(r->data_len >= sizeof(struct crail_stat));
        return;
    }
}

/* One whole reply of `f->size` bytes. */
static inline void check_reply(struct lane *l, const struct crail_frame *f) {
    const uint8_t *at = (const uint8_t *)(f + 1), *end = (const uint8_t *)f + f->size;
    bool known = l->asked[f->id % ASKED].id == f->id && f->id;
    CHECK(f->count && f->count <= CRAIL_VECTOR_OPS_MAX && f->flags == 0);
    if (known)
        CHECK(f->count == l->asked[f->id % ASKED].count);
    for (uint32_t i = 0; i < f->count; i++) {
        const struct crail_result *r = (const void *)at;
        CHECK((size_t)(end - at) >= sizeof *r);
        CHECK((size_t)(end - at) - sizeof *r >= crail_pad8(r->data_len));
        CHECK(r->status == 0 || (r->status < -CRAIL_STATUS_BASE && r->status >= -CRAIL_E_NO_MEMORY));
        if (known)
            check_result(l->asked[f->id % ASKED].codes[i], r);
        at += sizeof *r + crail_pad8(r->data_len);
    }
    CHECK(at == end);
}

static inline void check_replies(struct lane *l) {
    while (l->in_len >= sizeof(struct crail_frame)) {
        const struct crail_frame *f = (const void *)l->in;
        CHECK(f->magic == CRAIL_FRAME_MAGIC && f->size % 8 == 0 && f->size >= sizeof *f);
        if (f->size > REPLY_ROOM) { /* an honest vector of many listings: of no more interest */
            l->in_len = 0;
            return;
        }
        if (l->in_len < f->size)
            return;
        check_reply(l, f);
        l->in_len -= f->size;
        memmove(l->in, l->in + f->size, l->in_len);
    }
}

static inline void hang_up(struct lane *l) {
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
    l->in_len = 0;
    if (crail_ring_is_open(&l->ring)) {
        crail_ring_close(&l->ring);
        close(l->bell);
    }
}

/* Bytes moved; 0: nothing is there now; -1: the namenode has closed. */
static inline ssize_t read_some(struct lane *l) {
    uint8_t *to = l->in + l->in_len;
    size_t room = REPLY_ROOM - l->in_len;
    if (crail_ring_is_open(&l->ring)) {
        ssize_t n = crail_ring_read(&l->ring, to, room);
        if (n > 0 && crail_ring_wake_writer(&l->ring))
            eventfd_write(l->bell, 1);
        if (n > 0)
            return n;
        n = __real_recv(l->fd, to, room, MSG_DONTWAIT); /* bells */
        return n > 0 || (n < 0 && errno == EAGAIN) ? 0 : -1;
    }
    ssize_t n = __real_recv(l->fd, to, room, MSG_DONTWAIT);
    return n > 0 ? n : n < 0 && errno == EAGAIN ? 0 : -1;
}

/* Takes what the namenode has said to this lane. */
static inline void hear(struct lane *l) {
    for (int i = 0; l->fd >= 0 && i < TURNS_MAX; i++) {
        ssize_t n = read_some(l);
        if (n < 0)
            hang_up(l);
        if (n <= 0)
            return;
        l->in_len += (size_t)n;
        check_replies(l);
        turns();
    }
}

/* ---- lanes ------------------------------------------------------------------------- */

static inline void say(struct lane *l, const void *data, size_t n) {
    if (l->fd < 0)
        return;
    if (!crail_ring_is_open(&l->ring)) {
        fuzz_say(l->fd, data, n);
        return;
    }
    crail_ring_write(&l->ring, data, n);
    if (crail_ring_wake_reader(&l->ring))
        eventfd_write(l->bell, 1);
}

/* A connection of this lane, in place of another; of a new session, if its own is gone. */
static inline void dial(struct lane *l, bool with_ring) {
    int pair[2], ring[2], small = 4096;
    hang_up(l);
    turns();
    fuzz_pair(pair);
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    CHECK(!with_ring || crail_ring_make(ring) == 0);
    CHECK(!with_ring || crail_ring_open(&l->ring, ring[0], false) == 0);
    int rc = crail_namenode_lane_attach(w.nn, pair[1], l->session, l->number, with_ring ? ring : NULL);
    CHECK(rc == 0 || rc == -CRAIL_E_SESSION_LOST);
    l->fd = pair[0];
    if (with_ring) {
        l->bell = ring[1];
        close(ring[0]);
    }
    if (!rc)
        return;
    hang_up(l);
    l->session = ++w.sessions_last;
    l->seq = 0;
    l->astray = false;
    CHECK(crail_namenode_session_open(w.nn, l->session) == 0);
    dial(l, with_ring);
}

/* ---- the storage server ------------------------------------------------------------ */

static inline void channel_open(void) {
    int pair[2];
    if (w.channel >= 0)
        close(w.channel);
    fuzz_pair(pair);
    int rc = crail_namenode_server_channel(w.nn, w.server, pair[1]);
    w.channel = pair[0];
    w.orders.len = 0;
    if (rc) {
        CHECK(rc == -CRAIL_E_DATA_LOST);
        close(w.channel);
        w.channel = -1;
    }
}

/* Takes the orders that are there, whole frames of them. */
static inline void hear_orders(void) {
    while (w.channel >= 0) {
        CHECK(crail_buf_reserve(&w.orders, 65536) == 0);
        ssize_t n = __real_recv(w.channel, w.orders.data + w.orders.len, 65536, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            close(w.channel);
            w.channel = -1;
            return;
        }
        w.orders.len += (size_t)n;
        turns();
    }
}

/* The next order frame out of what was heard, or NULL; it must be well-formed. */
static inline const struct crail_retire *next_orders(size_t *at, uint32_t *n) {
    const struct crail_retire_frame *f = (const void *)(w.orders.data + *at);
    size_t there = w.orders.len - *at;
    if (there < sizeof *f)
        return NULL;
    CHECK(f->magic == CRAIL_RETIRE_MAGIC && f->flags == 0 && f->count && f->count <= CRAIL_RETIRES_MAX);
    CHECK(f->size == sizeof *f + f->count * sizeof(struct crail_retire));
    if (there < f->size)
        return NULL;
    *at += f->size;
    *n = f->count;
    const struct crail_retire *orders = (const void *)(f + 1);
    for (uint32_t i = 0; i < f->count; i++) {
        CHECK(orders[i].region < REGIONS && orders[i].reserved == 0 && orders[i].granules);
        CHECK(orders[i].granule < GRANULES && orders[i].granules <= GRANULES - orders[i].granule);
    }
    return orders;
}

static inline void orders_drop(size_t n) {
    w.orders.len -= n;
    memmove(w.orders.data, w.orders.data + n, w.orders.len);
}

/* Confirms all orders, one frame for each. */
static inline void confirm_all(void) {
    size_t at = 0;
    uint32_t n;
    hear_orders();
    for (const struct crail_retire *o; w.channel >= 0 && (o = next_orders(&at, &n));) {
        fuzz_say(w.channel, (const struct crail_retire_frame *)(const void *)o - 1,
                 sizeof(struct crail_retire_frame) + n * sizeof *o);
        turns();
    }
    orders_drop(at);
}

/* ---- one input --------------------------------------------------------------------- */

static inline void look_through(void) {
    char why[256] = "";
    crail_namenode_stats st;
    if (crail_namenode_check(w.nn, why, sizeof why)) {
        fprintf(stderr, "check: %s\n", why);
        abort();
    }
    CHECK(crail_namenode_stats_read(w.nn, &st) == 0);
    CHECK(st.granules_total == st.granules_free + st.granules_used + st.granules_granted + st.granules_retiring);
}

static inline void namenode_begin(void) {
    static uint8_t *room;
    static const uint32_t granules[REGIONS] = {GRANULES, GRANULES};
    crail_namenode_options o = {.arena_bytes_max = 4u << 20, .session_grace_ms = GRACE_MS};
    memset(o.mac_key, 7, sizeof o.mac_key);
    memset(&w, 0, sizeof w);
    w.channel = -1;
    CHECK(crail_buf_reserve(&w.orders, 1) == 0);
    CHECK(crail_rpc_start(&o, &crail_rpc_tuning_default, &w.nn) == 0);
    crail_rpc_mailbox_end(w.nn); /* from here on a call from outside is executed by who makes it */
    turns();                     /* which knows the time from the latest turn */
    CHECK(crail_namenode_server_add(w.nn, REGIONS, granules, NULL, 0, 0, "where", 5, &w.server) == 0);
    channel_open();
    if (!room)
        room = malloc(LANES * (size_t)REPLY_ROOM);
    CHECK(room);
    for (w.sessions_last = 0; w.sessions_last < SESSIONS;)
        CHECK(crail_namenode_session_open(w.nn, ++w.sessions_last) == 0);
    for (uint32_t i = 0; i < LANES; i++) {
        w.lanes[i].in = room + i * (size_t)REPLY_ROOM;
        w.lanes[i].fd = -1;
        w.lanes[i].session = 1 + i % SESSIONS;
        w.lanes[i].number = i / SESSIONS;
    }
}

/* Everybody goes, and what is left belongs to nodes. */
static inline void namenode_end(void) {
    crail_namenode_stats st;
    fuzz_mood = 0;
    for (uint32_t i = 0; i < LANES; i++) {
        turns();
        hear(&w.lanes[i]);
        hang_up(&w.lanes[i]);
    }
    turns();
    for (uint32_t i = 0; i < 8; i++)
        pass(2ull * GRACE_MS * 1000000u);
    if (crail_namenode_server_set(w.nn, w.server, CRAIL_SERVER_UP) == 0) {
        channel_open(); /* what was ordered and not confirmed is ordered again */
        for (int i = 0; i < 8; i++) {
            pass(crail_rpc_tuning_default.order_wait_ns * 2);
            confirm_all();
        }
    }
    look_through();
    CHECK(crail_namenode_stats_read(w.nn, &st) == 0);
    CHECK(!st.sessions && !st.lanes && !st.rings && !st.waiters && !st.watches && !st.granules_granted);
    CHECK(w.channel < 0 || !st.granules_retiring);
    crail_namenode_stop(w.nn);
    if (w.channel >= 0)
        close(w.channel);
    crail_buf_free(&w.orders);
}

#endif
