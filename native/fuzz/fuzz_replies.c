/* What a namenode that is broken, or means harm, answers to a client: to a lane over its socket or its ring, and to a
 * flow. Whatever comes, a call ends, and what it gives out lies in what was received. */
#include "fuzz.h"

#include "client/client.h"
#include "client/flow.h"
#include "crail/api.h"

#define OPS_MAX 8u
#define REPLY_ROOM 8192u
#define RECEIVES_MAX 200

/* ---- replies made of the script --------------------------------------------------------- */

/* Mostly a good reply to the request with this id and this many operations. */
static size_t make_reply(struct fuzz_input *in, uint64_t id, uint32_t count, uint8_t *to) {
    struct crail_frame f = {.magic = CRAIL_FRAME_MAGIC, .count = count, .id = id};
    uint8_t how = fuzz_u8(in);
    size_t at = sizeof f, n;
    for (uint32_t i = 0; i < count; i++) {
        struct crail_result r = {.status = how % 16 == 3 ? -(int32_t)CRAIL_E_NOT_FOUND : how == 198 ? INT32_MIN : 0};
        uint8_t data = fuzz_u8(in);
        r.data_len = data % 80;
        r.size = r.data_len;
        r.flags = data >= 128 ? CRAIL_RESF_INLINE : 0;
        r.count = data / 16;
        if (data == 255)
            r.data_len = (uint32_t)fuzz_value(in);
        n = data == 255 ? 0 : crail_pad8(r.data_len);
        memset(to + at, 0, sizeof r + n);
        memcpy(to + at, &r, sizeof r);
        at += sizeof r + n;
    }
    f.size = (uint32_t)at;
    if (how >= 200)
        f.id += fuzz_u8(in) % 4 - 2u;
    if (how >= 220)
        f.count = fuzz_u8(in) % 4 ? count + 1 : (uint32_t)fuzz_value(in);
    if (how >= 235)
        f.size = (uint32_t)fuzz_value(in) * 8;
    if (how >= 245)
        ((uint8_t *)&f)[fuzz_u8(in) % sizeof f] = fuzz_u8(in);
    memcpy(to, &f, sizeof f);
    return at;
}

static size_t make_rubbish(struct fuzz_input *in, uint8_t *to) {
    size_t n;
    const uint8_t *raw = fuzz_bytes(in, fuzz_u8(in), &n);
    memcpy(to, raw, n);
    return n;
}

static bool lies_within(const void *p, size_t n, const struct crail_buf *b) {
    const uint8_t *at = p;
    return at >= b->data && at <= b->data + b->len && n <= (size_t)(b->data + b->len - at);
}

/* ---- a lane ------------------------------------------------------------------------------- */

static struct {
    crail_client *client;
    struct crail_lane *lane;
    int peer;               /* the namenode's end, or -1 */
    struct crail_ring ring; /* likewise; zeroed without one */
    int bell;
} l;

static void peer_gone(void) {
    if (l.peer >= 0)
        close(l.peer);
    l.peer = -1;
    if (!crail_ring_is_open(&l.ring))
        return;
    crail_ring_close(&l.ring);
    close(l.bell);
}

static void lane_connect(bool with_ring, bool fresh) {
    int pair[2], fds[2];
    peer_gone();
    fuzz_pair(pair);
    CHECK(!with_ring || (crail_ring_make(fds) == 0 && crail_ring_open(&l.ring, fds[0], true) == 0));
    CHECK(crail_client_lane_add(l.client, l.lane->number, pair[0], fresh, with_ring ? fds : NULL) == 0);
    l.peer = pair[1];
    if (!with_ring)
        return;
    l.bell = fds[1];
    close(fds[0]);
}

static void lane_say(const void *data, size_t n) {
    if (!crail_ring_is_open(&l.ring)) {
        fuzz_say(l.peer, data, n);
        return;
    }
    crail_ring_write(&l.ring, data, n);
    if (crail_ring_wake_reader(&l.ring))
        fuzz_say(l.peer, "", 1);
}

static void lane_poke(struct fuzz_input *in) {
    struct crail_ring_memory *m = l.ring.memory;
    if (!crail_ring_is_open(&l.ring))
        return;
    _Atomic uint64_t *counts[] = {&m->requests.written, &m->requests.taken, &m->replies.written, &m->replies.taken};
    *counts[fuzz_u8(in) % 4] += fuzz_value(in);
}

static uint32_t lane_ask(struct fuzz_input *in) {
    uint32_t count = 1 + fuzz_u8(in) % OPS_MAX;
    crail_lane_begin(l.lane);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *path, *data;
        struct crail_op op = {.code = 1 + fuzz_u8(in) % 60, .path_len = 2};
        CHECK(crail_lane_op(l.lane, &op, &path, &data) == 0);
        memcpy(path, "/a", 2);
    }
    return count;
}

/* Sends and receives, as a call does, until there is an answer or the connection is of no use. */
static bool lane_exchange(void) {
    for (int i = 0; i < RECEIVES_MAX; i++) {
        int rc = crail_lane_send(l.lane);
        if (!rc)
            rc = crail_lane_receive(l.lane, 1);
        CHECK(rc == 0 || rc == -EINTR || rc == -EAGAIN || rc == -EPIPE);
        if (rc == 0 || rc == -EPIPE)
            return rc == 0;
    }
    return false;
}

static void lane_results(uint32_t count) {
    const struct crail_result *r;
    const void *data;
    for (uint32_t i = 0; (r = crail_lane_result(l.lane, &data)); i++) {
        CHECK(lies_within(r, sizeof *r, &l.lane->in) && lies_within(data, r->data_len, &l.lane->in));
        CHECK(crail_is_answer(r->status));
        if (i < count && r->status == 0 && r->count && r->data_len >= sizeof(struct crail_extent))
            crail_lane_grant_keep(l.lane, data);
    }
}

/* One call: a request, what the namenode says to it (all of it, before it hangs up), and perhaps another try. */
static void lane_call(struct fuzz_input *in) {
    static uint8_t bytes[REPLY_ROOM];
    struct crail_extent e;
    uint8_t how = fuzz_u8(in);
    lane_connect(how % 2, how >= 240);
    uint32_t count = lane_ask(in);
    for (int tries = how / 2 % 4; tries >= 0; tries--) {
        uint64_t id = l.lane->id_last + (((struct crail_frame *)l.lane->out.data)->magic == 0);
        for (int i = fuzz_u8(in) % 4; i > 0; i--) {
            uint8_t what = fuzz_u8(in);
            lane_say(bytes,
                     what >= 240 ? make_rubbish(in, bytes) : make_reply(in, what >= 200 ? id - 1 : id, count, bytes));
        }
        if (how >= 200)
            lane_poke(in);
        shutdown(l.peer, SHUT_WR);
        if (lane_exchange()) {
            lane_results(count);
            break;
        }
        lane_connect(how % 2, how >= 250);
        crail_lane_send_again(l.lane);
    }
    crail_lane_grant_take(l.lane, fuzz_value(in) * 100, &e);
}

static void lane_part(struct fuzz_input *in) {
    crail_client_options o = {.lanes_max = 2, .inline_max = CRAIL_INLINE_MAX, .grants_ahead = 1};
    l.peer = -1;
    CHECK(crail_client_new(&o, &l.client) == 0);
    while (in->at < in->end) {
        CHECK(crail_lane_checkout(l.client, 0, &l.lane) <= 0);
        lane_call(in);
        if (fuzz_u8(in) % 2)
            crail_lane_checkin(l.lane);
        else
            crail_lane_discard(l.lane);
    }
    crail_client_free(l.client);
    peer_gone();
}

/* ---- a flow --------------------------------------------------------------------------------- */

static struct crail_flow flow;
static int flow_peer;
static int64_t flow_now;
static uint32_t asked, forgotten;

static bool is_dead(const struct crail_flow_entry *e) {
    return (uintptr_t)e->waiter % 4 == 3;
}

static void forget(struct crail_flow_entry *e) {
    forgotten += e->waiter != NULL;
    e->waiter = NULL;
}

static const struct crail_flow_owner owner = {.is_dead = is_dead, .forget = forget};

static void flow_cut(void) {
    int fd = flow.fd;
    if (fd < 0)
        return;
    crail_flow_detach(&flow);
    close(fd);
    close(flow_peer);
}

static void flow_connect(bool fresh) {
    int pair[2];
    flow_cut();
    fuzz_pair(pair);
    flow_peer = pair[1];
    crail_flow_attach(&flow, pair[0], fresh);
}

static void flow_ask(struct fuzz_input *in) {
    uint8_t how = fuzz_u8(in), *path, *data;
    struct crail_op op = {.code = 1 + how % 60, .path_len = 1 + how % 9, .count = 5000};
    struct crail_flow_entry *e;
    uint64_t frame;
    bool waits = how >= 200;
    op.flags = waits ? CRAIL_OPF_WAIT : 0;
    CHECK(crail_flow_op(&flow, &op, waits, &path, &data, &e, &frame) == 0);
    memset(path, 'p', op.path_len);
    e->waiter = (void *)(uintptr_t)(1 + how % 8);
    e->deadline_ns = waits ? flow_now + 1000000000 : CRAIL_FLOW_NEVER;
    asked++;
}

static void flow_reply(struct fuzz_input *in) {
    static uint8_t bytes[REPLY_ROOM];
    uint64_t id = flow.id_last - fuzz_u8(in) % 6;
    const struct crail_flow_frame *f = crail_flow_find(&flow, id);
    uint32_t count = f ? f->count : 1;
    fuzz_say(flow_peer, bytes, make_reply(in, id, count < 40 ? count : 40, bytes));
}

static void take_reply(struct crail_flow_frame *f, const struct crail_result *r) {
    for (uint32_t i = 0; i < f->count; i++, r = crail_flow_next(r)) {
        CHECK(lies_within(r, sizeof *r, &flow.in) && lies_within(r + 1, r->data_len, &flow.in));
        CHECK(crail_is_answer(r->status));
        uint64_t target = f->entries[i].waiter ? flow.id_last - (uintptr_t)f->entries[i].waiter : 0;
        struct crail_flow_frame *other = f->entries[i].code == CRAIL_OP_CANCEL ? crail_flow_find(&flow, target) : NULL;
        if (other && other->waits && r->status == 0 && r->size)
            crail_flow_remove(&flow, other); /* it was taken back */
    }
    crail_flow_frame_free(&flow, f);
}

/* As the owner of a flow does when its socket is readable. */
static void flow_reap(void) {
    for (int i = 0; flow.fd >= 0 && i < RECEIVES_MAX; i++) {
        struct crail_flow_frame *f;
        const struct crail_result *r;
        long n = crail_flow_receive(&flow, ++flow_now);
        int rc = n < 0 ? 0 : 1;
        while (rc == 1 && (rc = crail_flow_reply(&flow, &f, &r)) == 1)
            take_reply(f, r);
        CHECK(rc == 0 || rc == -EPIPE);
        if (n == -EAGAIN)
            return;
        if (n < 0 || rc < 0)
            flow_connect(false);
    }
}

static void flow_hear(void) {
    static uint8_t requests[65536];
    while (flow.fd >= 0 && __real_recv(flow_peer, requests, sizeof requests, MSG_DONTWAIT) > 0) {
    }
}

static void flow_step(struct fuzz_input *in) {
    static uint8_t bytes[256];
    uint8_t what = fuzz_u8(in);
    switch (what % 8) {
    case 0:
        fuzz_say(flow_peer, bytes, make_rubbish(in, bytes));
        break;
    case 1:
        flow_connect(what >= 128);
        break;
    case 2:
    case 3:
        flow_reply(in);
        break;
    case 4:
        if (flow.fd >= 0 && crail_flow_flush(&flow, ++flow_now) == -EPIPE)
            flow_connect(false);
        flow_hear();
        break;
    case 5:
        flow_reap();
        break;
    default:
        flow_ask(in);
    }
    crail_flow_silent_since(&flow);
}

static void flow_part(struct fuzz_input *in, bool is_recorded) {
    asked = forgotten = 0;
    flow_now = 1;
    crail_flow_init(&flow, is_recorded, &owner);
    flow_connect(true);
    while (in->at < in->end)
        flow_step(in);
    flow_cut();
    crail_flow_free(&flow);
    CHECK(asked == forgotten); /* each one once */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_input in = fuzz_begin(data, size);
    uint8_t what = fuzz_u8(&in);
    if (what % 2)
        lane_part(&in);
    else
        flow_part(&in, what % 4);
    return fuzz_end();
}
