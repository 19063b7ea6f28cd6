/* Flows against a namenode of a few lines.
 * sources: client base */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/flow.h"

/* client/ is linked without data/, where the guards of the test build live */
bool crail_guard_on(const char *name) {
    (void)name;
    return true;
}

#define CLAIM(text) printf("  %s\n", text)

/* A waiter is a number of ours: dead if it is odd. */
static int forgotten;

static bool is_dead(const struct crail_flow_entry *e) {
    return (uintptr_t)e->waiter % 2;
}

static void forget(struct crail_flow_entry *e) {
    forgotten += e->waiter != NULL;
    e->waiter = NULL;
}

static const struct crail_flow_owner owner = {.is_dead = is_dead, .forget = forget};

struct bench {
    struct crail_flow flow;
    int fd, peer;
};

static void connect_flow(struct bench *b, bool fresh) {
    int pair[2];
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    b->fd = pair[0];
    b->peer = pair[1];
    crail_flow_attach(&b->flow, b->fd, fresh);
}

static void start(struct bench *b, bool recorded) {
    forgotten = 0;
    crail_flow_init(&b->flow, recorded, &owner);
    connect_flow(b, true);
}

static void cut(struct bench *b) {
    crail_flow_detach(&b->flow);
    close(b->fd);
    close(b->peer);
}

static void stop(struct bench *b) {
    close(b->fd);
    close(b->peer);
    crail_flow_free(&b->flow);
}

static uint64_t ask(struct bench *b, uint16_t code, uint16_t flags, const char *text, uintptr_t waiter) {
    uint8_t *path, *data;
    uint64_t frame;
    struct crail_flow_entry *e;
    struct crail_op op = {.code = code, .flags = flags, .path_len = (uint16_t)strlen(text), .count = 5000};
    assert(crail_flow_op(&b->flow, &op, flags & CRAIL_OPF_WAIT, &path, &data, &e, &frame) == 0);
    memcpy(path, text, strlen(text));
    e->waiter = (void *)waiter;
    return frame;
}

/* The next request as the namenode sees it. */
static struct crail_frame hear(struct bench *b, uint8_t *room, size_t size) {
    struct crail_frame f;
    assert(recv(b->peer, &f, sizeof(f), MSG_DONTWAIT) == (ssize_t)sizeof(f));
    assert(f.magic == CRAIL_FRAME_MAGIC && f.size % 8 == 0 && f.size - sizeof(f) <= size);
    assert(recv(b->peer, room, f.size - sizeof(f), MSG_DONTWAIT) == (ssize_t)(f.size - sizeof(f)));
    return f;
}

static struct crail_frame hear_head(struct bench *b) {
    static uint8_t room[1 << 20];
    return hear(b, room, sizeof(room));
}

static void say(struct bench *b, uint64_t id, uint32_t count, uint64_t version) {
    struct {
        struct crail_frame f;
        struct crail_result r[300];
    } reply = {.f = {.magic = CRAIL_FRAME_MAGIC, .id = id, .count = count}};
    reply.f.size = (uint32_t)(sizeof(reply.f) + count * sizeof(reply.r[0]));
    for (uint32_t i = 0; i < count; i++)
        reply.r[i].version = version + i;
    assert(send(b->peer, &reply, reply.f.size, 0) == (ssize_t)reply.f.size);
}

/* Receives, and takes the one reply that must be there: the waiter of its first operation, with its version. */
static uintptr_t take(struct bench *b, uint64_t *version) {
    struct crail_flow_frame *f;
    const struct crail_result *r;
    if (crail_flow_reply(&b->flow, &f, &r) != 1) {
        assert(crail_flow_receive(&b->flow, 1) > 0);
        assert(crail_flow_reply(&b->flow, &f, &r) == 1);
    }
    uintptr_t waiter = (uintptr_t)f->entries[0].waiter;
    *version = r->version;
    crail_flow_frame_free(&b->flow, f);
    return waiter;
}

static bool nothing_heard(struct bench *b) {
    char byte;
    return recv(b->peer, &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
}

static bool whole_frame_heard(struct bench *b) {
    struct crail_frame f[64];
    ssize_t n = recv(b->peer, f, sizeof(f), MSG_DONTWAIT | MSG_PEEK);
    return n >= (ssize_t)sizeof(f[0]) && n >= (ssize_t)f[0].size;
}

static void replies_in_any_order(void) {
    struct bench b;
    uint64_t version;
    start(&b, false);
    uint64_t wait = ask(&b, CRAIL_OP_STAT, CRAIL_OPF_WAIT, "/w", 2);
    uint64_t a = ask(&b, CRAIL_OP_GET, 0, "/a", 4);
    assert(ask(&b, CRAIL_OP_GET, 0, "/bcdefghij", 6) == a); /* one tick, one frame */
    assert(crail_flow_flush(&b.flow, 1) == 0);
    assert(hear_head(&b).id == wait);
    struct crail_frame f = hear_head(&b);
    assert(f.id == a && f.count == 2 && f.seq == 0);
    assert(crail_flow_silent_since(&b.flow) == 1);
    say(&b, a, 2, 40);
    assert(take(&b, &version) == 4 && version == 40);
    assert(crail_flow_silent_since(&b.flow) == CRAIL_FLOW_NEVER); /* who waits may be silent */
    say(&b, wait, 1, 50);
    assert(take(&b, &version) == 2 && version == 50);
    assert(b.flow.frames_count == 0 && forgotten == 3);
    stop(&b);
    CLAIM("replies come in any order, and a tick's operations go in one frame");
}

static void one_recorded_frame_at_a_time(void) {
    struct bench b;
    uint64_t version;
    start(&b, true);
    ask(&b, CRAIL_OP_PUT, 0, "/1", 2);
    assert(crail_flow_flush(&b.flow, 1) == 0);
    struct crail_frame first = hear_head(&b);
    assert(first.seq == 1 && first.count == 1);
    for (int i = 0; i < 100; i++)
        ask(&b, CRAIL_OP_PUT, 0, "/more", 4);
    assert(crail_flow_flush(&b.flow, 2) == 0);
    assert(nothing_heard(&b));
    cut(&b);
    connect_flow(&b, false); /* the same session: the same bytes under the same number */
    assert(crail_flow_flush(&b.flow, 3) == 0);
    struct crail_frame again = hear_head(&b);
    assert(again.seq == 1 && again.id == first.id && nothing_heard(&b));
    say(&b, again.id, 1, 7);
    assert(take(&b, &version) == 2 && version == 7);
    assert(crail_flow_flush(&b.flow, 4) == 0);
    struct crail_frame second = hear_head(&b);
    assert(second.seq == 2 && second.count == 100);
    cut(&b);
    connect_flow(&b, true); /* another session counts from 1 */
    assert(crail_flow_flush(&b.flow, 5) == 0);
    assert(hear_head(&b).seq == 1);
    stop(&b);
    CLAIM("a recorded flow has one frame in flight, and the rest gathers behind it");
}

static void what_was_given_up_is_not_sent(void) {
    struct bench b;
    uint8_t room[256];
    uint64_t version;
    start(&b, true);
    ask(&b, CRAIL_OP_PUT, 0, "/dead-one", 1);
    ask(&b, CRAIL_OP_PUT, 0, "/alive", 2);
    ask(&b, CRAIL_OP_PUT, 0, "/dead-too", 3);
    ask(&b, CRAIL_OP_RELEASE, 0, "", 0); /* nobody asks for the answer, and it is wanted all the same */
    assert(crail_flow_flush(&b.flow, 1) == 0);
    struct crail_frame f = hear(&b, room, sizeof(room));
    const struct crail_op *op = (const void *)room;
    assert(f.count == 2 && memcmp(op + 1, "/alive", 6) == 0 && forgotten == 2);
    say(&b, f.id, 2, 9);
    assert(take(&b, &version) == 2);
    ask(&b, CRAIL_OP_PUT, 0, "/dead", 1);
    assert(crail_flow_flush(&b.flow, 1) == 0);
    assert(nothing_heard(&b) && b.flow.seq_last == 1 && b.flow.frames_count == 0);
    stop(&b);
    CLAIM("what was given up before it was sent never is, and costs no sequence number");
}

static void reads_go_out_again(void) {
    struct bench b;
    uint8_t room[256];
    uint64_t version;
    start(&b, false);
    uint64_t a = ask(&b, CRAIL_OP_GET, 0, "/a", 2);
    ask(&b, CRAIL_OP_GET, 0, "/b", 4);
    uint64_t wait = ask(&b, CRAIL_OP_STAT, CRAIL_OPF_WAIT, "/w", 6);
    crail_flow_find(&b.flow, wait)->entries[0].deadline_ns = 3000000000;
    assert(crail_flow_flush(&b.flow, 1) == 0);
    crail_flow_find(&b.flow, a)->entries[1].waiter = (void *)1; /* its caller gives up */
    cut(&b);
    assert(b.flow.frames_count == 2);
    connect_flow(&b, true);
    assert(crail_flow_flush(&b.flow, 2000000000) == 0);
    struct crail_frame f = hear(&b, room, sizeof(room));
    assert(f.id == a && f.count == 1);
    f = hear(&b, room, sizeof(room));
    assert(f.id == wait && ((struct crail_op *)room)->count == 1000); /* what is left of its time */
    say(&b, a, 1, 1);
    assert(take(&b, &version) == 2);
    crail_flow_remove(&b.flow, crail_flow_find(&b.flow, wait));
    assert(b.flow.frames_count == 0);
    stop(&b);
    CLAIM("reads go out again on the next connection, without those that nobody waits for");
}

static void refuse(struct bench *b, const void *bytes, size_t n) {
    struct crail_flow_frame *f;
    const struct crail_result *r;
    assert(send(b->peer, bytes, n, 0) == (ssize_t)n);
    assert(crail_flow_receive(&b->flow, 1) == (long)n);
    assert(crail_flow_reply(&b->flow, &f, &r) == -EPIPE);
    cut(b);
    connect_flow(b, false);
    assert(crail_flow_flush(&b->flow, 1) == 0);
    hear_head(b);
}

static void nonsense_is_refused(void) {
    struct bench b;
    start(&b, false);
    uint64_t id = ask(&b, CRAIL_OP_GET, 0, "/a", 2);
    ask(&b, CRAIL_OP_GET, 0, "/b", 2);
    assert(crail_flow_flush(&b.flow, 1) == 0);
    hear_head(&b);
    uint64_t unsent = ask(&b, CRAIL_OP_GET, CRAIL_OPF_WAIT, "/c", 2);
    struct {
        struct crail_frame f;
        struct crail_result r[2];
    } m = {.f = {.magic = CRAIL_FRAME_MAGIC, .size = sizeof(m), .count = 2, .id = id}};
    struct crail_frame good = m.f;
    m.f.magic = 1;
    refuse(&b, &m, sizeof(m));
    m.f = good, m.f.size = 33;
    refuse(&b, &m, sizeof(m));
    m.f = good, m.f.size = UINT32_MAX & ~7u;
    refuse(&b, &m, sizeof(m));
    m.f = good, m.f.id = 99;
    refuse(&b, &m, sizeof(m));
    m.f = good, m.f.count = 1;
    refuse(&b, &m, sizeof(m));
    m.f = good, m.r[1].data_len = UINT32_MAX;
    refuse(&b, &m, sizeof(m));
    m.r[1].data_len = 8;
    refuse(&b, &m, sizeof(m));
    (void)unsent;
    stop(&b);
    CLAIM("replies that make no sense end the connection");
}

/* Frames by the hundred through a socket that takes little at a time, answered backwards. */
static void many_in_flight(void) {
    enum { N = 3000 };
    struct bench b;
    uint64_t version, ids[N];
    int served = 0, taken = 0, small = 4096;
    static uint8_t seen[2 * N + 2];
    start(&b, false);
    setsockopt(b.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    for (int i = 0; i < N; i++)
        ids[i] = ask(&b, CRAIL_OP_GET, CRAIL_OPF_WAIT, "/a-path-of-some-length", (uintptr_t)(2 * i + 2));
    while (served < N) {
        int rc = crail_flow_flush(&b.flow, 1);
        assert(rc == 0 || rc == -EAGAIN);
        while (whole_frame_heard(&b)) {
            assert(hear_head(&b).id == ids[served]);
            served++;
        }
    }
    for (int i = N; i-- > 0;) {
        say(&b, ids[i], 1, (uint64_t)i);
        uintptr_t waiter = take(&b, &version);
        assert(waiter == (uintptr_t)(2 * i + 2) && version == (uint64_t)i && !seen[waiter]++);
        taken++;
    }
    assert(taken == N && b.flow.frames_count == 0);
    stop(&b);
    CLAIM("thousands in flight each get their own reply");
}

int main(void) {
    replies_in_any_order();
    one_recorded_frame_at_a_time();
    what_was_given_up_is_not_sent();
    reads_go_out_again();
    nonsense_is_refused();
    many_in_flight();
    return 0;
}
