/* The client core against a namenode of a few lines.
 * sources: client base */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/client.h"

/* client/ is linked without data/, where the guards of the test build live */
bool crail_guard_on(const char *name) {
    (void)name;
    return true;
}

#define CLAIM(text) printf("  %s\n", text)

static crail_client *new_client(uint32_t lanes_max) {
    crail_client *c;
    crail_client_options o = {.lanes_max = lanes_max, .inline_max = CRAIL_INLINE_MAX, .grants_ahead = 1};
    assert(crail_client_new(&o, &c) == 0);
    return c;
}

/* Checks lane 0 out with one end of a socket pair; the other end is the namenode's. */
static struct crail_lane *open_lane(crail_client *c, int *peer) {
    struct crail_lane *lane;
    int pair[2];
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    assert(crail_lane_checkout(c, 0, &lane) == -EAGAIN);
    assert(crail_client_lane_add(c, lane->number, pair[0], 1, NULL) == 0);
    *peer = pair[1];
    return lane;
}

static void add_op(struct crail_lane *lane, uint16_t code, const char *text) {
    uint8_t *path, *data;
    struct crail_op op = {.code = code, .path_len = (uint16_t)strlen(text)};
    assert(crail_lane_op(lane, &op, &path, &data) == 0);
    memcpy(path, text, strlen(text));
}

static struct crail_frame take_request(int peer) {
    uint8_t bytes[65536];
    struct crail_frame f;
    ssize_t n = recv(peer, bytes, sizeof(bytes), 0);
    assert(n >= (ssize_t)sizeof(f));
    memcpy(&f, bytes, sizeof(f));
    assert((size_t)n == f.size && f.size % 8 == 0);
    return f;
}

static void answer(int peer, uint64_t id, uint32_t count, uint64_t version) {
    struct {
        struct crail_frame f;
        struct crail_result r[4];
    } reply = {.f = {.magic = CRAIL_FRAME_MAGIC, .id = id, .count = count}};
    reply.f.size = (uint32_t)(sizeof(reply.f) + count * sizeof(reply.r[0]));
    for (uint32_t i = 0; i < count; i++)
        reply.r[i].version = version + i;
    assert(send(peer, &reply, reply.f.size, 0) == (ssize_t)reply.f.size);
}

static void a_request_and_its_reply(void) {
    int peer;
    const void *data;
    crail_client *c = new_client(4);
    struct crail_lane *lane = open_lane(c, &peer);
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_MKDIR, "/a");
    add_op(lane, CRAIL_OP_MKDIR, "/bcdefghi");
    assert(crail_lane_send(lane) == 0);
    struct crail_frame f = take_request(peer);
    assert(f.count == 2 && f.seq == 1 && f.id == 1);
    assert(crail_lane_receive(lane, 0) == -EAGAIN);
    answer(peer, f.id, 2, 7);
    assert(crail_lane_receive(lane, 1000000) == 0);
    assert(crail_lane_result(lane, &data)->version == 7);
    assert(crail_lane_result(lane, &data)->version == 8);
    assert(!crail_lane_result(lane, &data));
    crail_lane_checkin(lane);
    close(peer);
    crail_client_free(c);
    CLAIM("a request and its reply; a reply that is late shows itself");
}

static void a_repeated_request_keeps_its_number(void) {
    int peer, second[2];
    const void *data;
    crail_client *c = new_client(4);
    struct crail_lane *lane = open_lane(c, &peer);
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_MKDIR, "/a");
    assert(crail_lane_send(lane) == 0);
    struct crail_frame first = take_request(peer);
    close(peer);
    assert(crail_lane_receive(lane, 0) == -EPIPE);
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, second) == 0);
    assert(crail_client_lane_add(c, lane->number, second[0], 0, NULL) == 0);
    crail_lane_send_again(lane);
    assert(crail_lane_send(lane) == 0);
    struct crail_frame again = take_request(second[1]);
    assert(again.seq == first.seq && again.id == first.id);
    answer(second[1], again.id, 1, 3);
    assert(crail_lane_receive(lane, 0) == 0 && crail_lane_result(lane, &data)->version == 3);
    crail_lane_checkin(lane);
    close(second[1]);
    crail_client_free(c);
    CLAIM("a request that is sent again has the number of the first");
}

static void a_late_reply_is_not_taken_for_the_next(void) {
    int peer;
    const void *data;
    crail_client *c = new_client(4);
    struct crail_lane *lane = open_lane(c, &peer);
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_GET, "/a");
    assert(crail_lane_send(lane) == 0);
    uint64_t late = take_request(peer).id;
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_GET, "/b");
    assert(crail_lane_send(lane) == 0);
    uint64_t present = take_request(peer).id;
    answer(peer, late, 1, 100);
    answer(peer, present, 1, 200);
    assert(crail_lane_receive(lane, 0) == 0 && crail_lane_result(lane, &data)->version == 200);
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_GET, "/c");
    assert(crail_lane_send(lane) == 0);
    answer(peer, present + 5, 1, 300);
    assert(crail_lane_receive(lane, 0) == -EPIPE);
    crail_lane_discard(lane);
    close(peer);
    crail_client_free(c);
    CLAIM("a late reply is skipped, one to no question breaks the connection");
}

static void garbage_breaks_the_connection(void) {
    static const struct crail_frame wrong[] = {
        {.magic = 1, .size = 64, .count = 1, .id = 1},
        {.magic = CRAIL_FRAME_MAGIC, .size = 63, .count = 1, .id = 1},
        {.magic = CRAIL_FRAME_MAGIC, .size = 8, .count = 1, .id = 1},
        {.magic = CRAIL_FRAME_MAGIC, .size = 0xfffffff8, .count = 1, .id = 1},
        {.magic = CRAIL_FRAME_MAGIC, .size = 32, .count = 2, .id = 1},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        int peer;
        crail_client *c = new_client(1);
        struct crail_lane *lane = open_lane(c, &peer);
        crail_lane_begin(lane);
        add_op(lane, CRAIL_OP_GET, "/a");
        assert(crail_lane_send(lane) == 0);
        assert(send(peer, &wrong[i], sizeof(wrong[i]), 0) == sizeof(wrong[i]));
        assert(crail_lane_receive(lane, 0) == -EPIPE);
        crail_lane_discard(lane);
        close(peer);
        crail_client_free(c);
    }
    CLAIM("replies that make no sense break the connection and nothing else");
}

static void the_pool_is_bounded(void) {
    int peers[3];
    crail_client *c = new_client(2);
    struct crail_lane *a = open_lane(c, &peers[0]), *b = open_lane(c, &peers[1]), *other;
    assert(crail_lane_checkout(c, 0, &other) == -EBUSY);
    assert(crail_lane_wait(c, 1000000) == -ETIMEDOUT);
    assert(crail_lane_checkout(c, 1, &other) == -EAGAIN && other->number == 2);
    crail_lane_discard(other);
    crail_lane_checkin(b);
    assert(crail_lane_checkout(c, 0, &other) == 0 && other == b);
    crail_lane_checkin(b);
    crail_client_close(c);
    assert(crail_lane_checkout(c, 0, &other) == -CRAIL_E_CLOSED);
    crail_lane_checkin(a);
    crail_client_free(c);
    close(peers[0]), close(peers[1]);
    CLAIM("lanes are bounded, waited for, and closed with their client");
}

static void a_discarded_lane_keeps_its_number_and_its_grants(void) {
    int peer;
    char byte;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_lane(c, &peer), *again;
    struct crail_extent e = {.granules = 3}, out[4];
    assert(crail_lane_grant_keep(lane, &e));
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_MKDIR, "/a");
    assert(crail_lane_send(lane) == 0);
    take_request(peer);
    crail_lane_discard(lane);
    assert(recv(peer, &byte, 1, 0) == 0);
    assert(crail_lane_checkout(c, 0, &again) == -EAGAIN && again == lane && lane->is_lost);
    assert(crail_lane_grants_drop(lane, out, 4) == 1 && out[0].granules == 3);
    crail_lane_checkin(lane);
    close(peer);
    crail_client_free(c);
    CLAIM("a call that ends without its reply costs a connection, no number and no grant");
}

static void grants_fit_within_a_quarter(void) {
    int peer;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_lane(c, &peer);
    struct crail_extent e = {.granules = 10}, large = {.granules = CRAIL_LANE_GRANT_BYTES_MAX / CRAIL_GRANULE}, out;
    assert(crail_lane_grant_keep(lane, &e));
    assert(!crail_lane_grant_keep(lane, &large));
    for (uint32_t i = 1; i < CRAIL_LANE_GRANTS; i++)
        assert(crail_lane_grant_keep(lane, &e));
    assert(!crail_lane_grant_keep(lane, &e));
    assert(!crail_lane_grant_take(lane, 11 * CRAIL_GRANULE, &out));
    assert(!crail_lane_grant_take(lane, 7 * CRAIL_GRANULE, &out));
    assert(crail_lane_grant_take(lane, 8 * CRAIL_GRANULE, &out) && out.granules == 10);
    crail_lane_checkin(lane);
    close(peer);
    crail_client_free(c);
    CLAIM("a grant held ahead serves values that fill most of it; number and bytes are bounded");
}

/* ---- a ring --------------------------------------------------------------- */

/* As open_lane(); *server is the namenode's end. */
static struct crail_lane *open_ring_lane(crail_client *c, int *peer, struct crail_ring *server, int *bell) {
    struct crail_lane *lane;
    int pair[2], fds[2] = {crail_ring_create(), eventfd(0, EFD_NONBLOCK)};
    assert(fds[0] >= 0 && fds[1] >= 0);
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    int rc = crail_lane_checkout(c, 0, &lane);
    assert(rc == 0 || rc == -EAGAIN);
    assert(crail_client_lane_add(c, lane->number, pair[0], 1, fds) == 0);
    assert(crail_ring_open(server, fds[0], true) == 0);
    close(fds[0]);
    *bell = fds[1];
    *peer = pair[1];
    return lane;
}

static void answer_by_ring(struct crail_ring *server, uint64_t version) {
    uint8_t request[4096];
    struct {
        struct crail_frame f;
        struct crail_result r;
    } reply = {.f = {.magic = CRAIL_FRAME_MAGIC, .size = sizeof(reply), .count = 1}, .r = {.version = version}};
    assert(crail_ring_read(server, request, sizeof(request)) >= (ssize_t)sizeof(struct crail_frame));
    reply.f.id = ((const struct crail_frame *)(const void *)request)->id;
    assert(crail_ring_write(server, &reply, sizeof(reply)) == sizeof(reply));
}

static void a_ring_carries_requests_and_replies(void) {
    int peer, bell;
    eventfd_t times;
    const void *data;
    struct crail_ring server;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_ring_lane(c, &peer, &server, &bell);
    for (uint64_t i = 0; i < 100; i++) { /* soon a dense stream */
        crail_lane_begin(lane);
        add_op(lane, CRAIL_OP_GET, "/a");
        assert(crail_ring_sleep_for_bytes(&server));
        assert(crail_lane_send(lane) == 0);
        assert(eventfd_read(bell, &times) == 0); /* we were rung */
        answer_by_ring(&server, i);
        assert(crail_lane_receive(lane, 0) == 0 && crail_lane_result(lane, &data)->version == i);
    }
    assert(lane->follows_ns == CRAIL_RING_SPIN_NS && server.memory->follows_ns == CRAIL_RING_SPIN_NS);
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_GET, "/a");
    assert(crail_lane_send(lane) == 0);
    assert(crail_lane_receive(lane, 0) == -EAGAIN); /* a tick */
    assert(crail_lane_receive(lane, 1000000) == -EAGAIN);
    assert(!crail_ring_nap_for_bytes(&server)); /* the request */
    answer_by_ring(&server, 7);
    assert(crail_ring_wake_reader(&server) && send(peer, "", 1, 0) == 1); /* it said that it sleeps on the socket */
    assert(crail_lane_receive(lane, 1000000000) == 0 && crail_lane_result(lane, &data)->version == 7);
    crail_lane_checkin(lane);
    crail_client_free(c);
    crail_ring_close(&server);
    close(peer), close(bell);
    CLAIM("a ring carries requests and replies; who waits beyond a tick sleeps on the socket");
}

static uint32_t one_by_ring(struct crail_lane *lane, struct crail_ring *server) {
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_GET, "/a");
    assert(crail_lane_send(lane) == 0);
    answer_by_ring(server, 1);
    assert(crail_lane_receive(lane, 0) == 0);
    return server->memory->follows_ns;
}

static void a_pause_does_not_end_a_dense_stream(void) {
    int peer, bell;
    struct crail_ring server;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_ring_lane(c, &peer, &server, &bell);
    for (int i = 0; i < 300; i++) {
        usleep(500);
        assert(one_by_ring(lane, &server) == 0);
    }
    for (int i = 0; i < 1000; i++)
        one_by_ring(lane, &server);
    usleep(500);
    assert(one_by_ring(lane, &server) != 0);
    for (int i = 0; i < 10; i++) {
        usleep(500);
        one_by_ring(lane, &server);
    }
    assert(server.memory->follows_ns == 0);
    crail_lane_checkin(lane);
    crail_client_free(c);
    crail_ring_close(&server);
    close(peer), close(bell);
    CLAIM("a pause does not end a dense stream, many do, and who asks seldom never makes one");
}

/* The namenode's connection ends before, or after, it took the request. */
static void a_request_left_in_the_ring_was_not_executed(void) {
    for (int taken = 0; taken < 2; taken++) {
        int peer, bell;
        uint8_t request[4096];
        struct crail_ring server;
        crail_client *c = new_client(1);
        struct crail_lane *lane = open_ring_lane(c, &peer, &server, &bell);
        crail_lane_begin(lane);
        add_op(lane, CRAIL_OP_MKDIR, "/a");
        assert(crail_lane_send(lane) == 0 && lane->out_sent > 0);
        if (taken)
            assert(crail_ring_read(&server, request, sizeof(request)) > 0);
        close(peer);
        assert(crail_lane_receive(lane, 1000000) == -EPIPE);
        assert((lane->out_sent > 0) == taken);
        crail_lane_discard(lane);
        crail_client_free(c);
        crail_ring_close(&server);
        close(bell);
    }
    CLAIM("a request that the namenode never took out of the ring may be sent elsewhere");
}

static void a_lying_ring_breaks_the_connection(void) {
    int peer, bell;
    struct crail_ring server;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_ring_lane(c, &peer, &server, &bell);
    crail_lane_begin(lane);
    add_op(lane, CRAIL_OP_MKDIR, "/a");
    assert(crail_lane_send(lane) == 0);
    server.memory->replies.written = UINT64_MAX / 2;
    assert(crail_lane_receive(lane, 0) == -EPIPE);
    crail_lane_discard(lane);
    crail_client_free(c);
    crail_ring_close(&server);
    close(peer), close(bell);
    CLAIM("a ring whose counts make no sense breaks the connection");
}

static void begin_long_request(struct crail_lane *lane) {
    uint8_t *to, *data;
    crail_lane_begin(lane);
    for (int i = 0; i < 40; i++) {
        struct crail_op op = {.code = CRAIL_OP_PUT, .path_len = 2, .data_len = 4000};
        assert(crail_lane_op(lane, &op, &to, &data) == 0);
        memcpy(to, "/a", 2);
        memset(data, i, 4000);
    }
}

static void a_long_request_passes_in_pieces(void) {
    int peer, bell;
    static uint8_t piece[CRAIL_RING_BYTES];
    size_t total = 0;
    struct crail_ring server;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_ring_lane(c, &peer, &server, &bell);
    begin_long_request(lane);
    while (total < lane->out.len) {
        int rc = crail_lane_send(lane); /* full: a tick, and again */
        assert(rc == (lane->out_sent == lane->out.len ? 0 : -EAGAIN));
        ssize_t n = crail_ring_read(&server, piece, sizeof(piece));
        assert(n > 0 && memcmp(piece, lane->out.data + total, (size_t)n) == 0);
        total += (size_t)n;
    }
    assert(lane->out_sent == total && total > 2 * CRAIL_RING_BYTES);
    crail_lane_discard(lane);
    crail_client_free(c);
    crail_ring_close(&server);
    close(peer), close(bell);
    CLAIM("a request longer than the ring passes in pieces");
}

/* Bytes that wake a sleeper may lie on the socket; its end is seen behind them. */
static void a_long_request_is_not_waited_with_when_nobody_reads_it_any_more(void) {
    int peer, bell;
    struct crail_ring server;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_ring_lane(c, &peer, &server, &bell);
    begin_long_request(lane);
    assert(send(peer, "12", 2, 0) == 2);
    assert(crail_lane_send(lane) == -EAGAIN && lane->out_sent == CRAIL_RING_BYTES);
    assert(crail_lane_send(lane) == -EAGAIN && lane->out_sent == CRAIL_RING_BYTES);
    close(peer);
    assert(crail_lane_send(lane) == -EPIPE && lane->out_sent == 0);
    crail_lane_discard(lane);
    crail_client_free(c);
    crail_ring_close(&server);
    close(bell);
    CLAIM("a long request is not waited with when nobody reads it any more");
}

/* ---- shared memory ------------------------------------------------------- */

#define GRANULES 4096u

struct shared {
    int memory, generations, use;
    uint8_t *bytes;
    _Atomic uint64_t *generation;
    struct crail_use_table *table;
};

static void *make(int *fd, size_t bytes) {
    *fd = memfd_create("test", MFD_CLOEXEC);
    assert(*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0);
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    assert(p != MAP_FAILED);
    return p;
}

static struct shared attach(crail_client *c, uint32_t server) {
    struct shared s;
    uint32_t granules = GRANULES;
    s.bytes = make(&s.memory, (size_t)GRANULES * CRAIL_GRANULE);
    s.generation = make(&s.generations, GRANULES * 8);
    s.table = make(&s.use, sizeof(*s.table));
    s.table->magic = CRAIL_USE_MAGIC;
    s.table->slots = CRAIL_USE_SLOTS;
    assert(crail_client_server_shm(c, server, 1, &s.memory, &s.generations, &granules, s.use) == 0);
    assert(crail_client_server_shm(c, server, 1, &s.memory, &s.generations, &granules, s.use) == -EEXIST);
    return s;
}

static void detach(struct shared *s) {
    munmap(s->bytes, (size_t)GRANULES * CRAIL_GRANULE);
    munmap((void *)(uintptr_t)s->generation, GRANULES * 8);
    munmap(s->table, sizeof(*s->table));
    close(s->memory), close(s->generations), close(s->use);
}

static uint32_t slots_named(const struct shared *s) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < CRAIL_USE_SLOTS; i++)
        n += s->table->slot[i] != 0;
    return n;
}

static int run(struct crail_io *io) {
    int rc;
    while ((rc = crail_io_run(io)) == CRAIL_NEED_CALL_AGAIN) {
    }
    return rc;
}

static void values_are_cut_by_extent(void) {
    crail_client *c = new_client(1);
    struct shared s = attach(c, 3);
    struct crail_extent e[2] = {{.server = 3, .granule = 100, .granules = 2},
                                {.server = 3, .granule = 7, .granules = 3}};
    size_t size = 5 * CRAIL_GRANULE - 100;
    uint8_t *from = malloc(size), *to = malloc(size);
    for (size_t i = 0; i < size; i++)
        from[i] = (uint8_t)(i * 7 + i / 251);
    struct crail_io out = {.client = c,
                           .extents = e,
                           .extents_count = 2,
                           .is_write = true,
                           .value_bytes = size,
                           .length = size,
                           .buffer = from};
    assert(crail_io_run(&out) == CRAIL_NEED_WRITABLE && out.server == 3);
    assert(crail_client_server_writable(c, 3, 1, &s.memory) == 0);
    assert(run(&out) == 0);
    assert(slots_named(&s) == 1); /* still in the last extent */
    crail_io_end(&out);
    assert(slots_named(&s) == 0);
    assert(memcmp(s.bytes + 100 * CRAIL_GRANULE, from, 2 * CRAIL_GRANULE) == 0);
    assert(memcmp(s.bytes + 7 * CRAIL_GRANULE, from + 2 * CRAIL_GRANULE, size - 2 * CRAIL_GRANULE) == 0);
    for (size_t at = 0; at < size; at += 3001) {
        struct crail_io in = {.client = c,
                              .extents = e,
                              .extents_count = 2,
                              .value_bytes = size,
                              .offset = at,
                              .length = size - at,
                              .buffer = to};
        assert(run(&in) == 0);
        crail_io_end(&in);
        assert(memcmp(to, from + at, size - at) == 0);
    }
    free(from), free(to);
    crail_client_free(c);
    detach(&s);
    CLAIM("a value is written to its extents in order and read back from any offset");
}

static void a_raised_generation_is_refused(void) {
    uint8_t buffer[64];
    int peer;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_lane(c, &peer);
    struct shared s = attach(c, 1);
    struct crail_extent e = {.server = 1, .granule = 5, .granules = 1};
    struct crail_pin pin, refused;
    assert(crail_pin_take(c, &e, 64, &pin) == 0);
    assert(s.table->slot[0] == crail_use_mark(0, 5, 1) && s.table->high_water == 1);
    s.generation[5] = 1;
    assert(crail_pin_take(c, &e, 64, &refused) == -CRAIL_E_STALE_LOCATION);
    struct crail_io io = {.client = c,
                          .lane = lane,
                          .extents = &e,
                          .extents_count = 1,
                          .value_bytes = 64,
                          .length = 64,
                          .buffer = buffer};
    assert(crail_io_run(&io) == -CRAIL_E_STALE_LOCATION);
    crail_io_end(&io);
    assert(slots_named(&s) == 1);
    crail_pin_release(&pin);
    assert(slots_named(&s) == 0);
    e = (struct crail_extent){.server = 1, .granule = GRANULES - 1, .granules = 2};
    assert(crail_pin_take(c, &e, 64, &refused) == -CRAIL_E_STALE_LOCATION);
    e = (struct crail_extent){.server = 2};
    assert(crail_pin_take(c, &e, 64, &refused) == CRAIL_NEED_SERVER);
    crail_lane_checkin(lane);
    close(peer);
    crail_client_free(c);
    detach(&s);
    CLAIM("an extent whose generation was raised is not touched; a pin keeps its slot until released");
}

/* ---- reads ahead ------------------------------------------------------------------ */

/* The storage server's end: the next request, and its answer of the granule's number in every byte. */
static struct crail_data_request take_data_request(int peer) {
    struct crail_data_request q;
    assert(recv(peer, &q, sizeof(q), MSG_WAITALL) == (ssize_t)sizeof(q));
    assert(q.magic == CRAIL_DATA_MAGIC && q.code == CRAIL_DATA_READ);
    return q;
}

static void answer_data(int peer, const struct crail_data_request *q, int status) {
    static uint8_t bytes[CRAIL_GRANULE];
    struct crail_data_reply r = {
        .magic = CRAIL_DATA_MAGIC, .status = status, .id = q->id, .length = status ? 0 : q->length};
    memset(bytes, (int)q->extent.granule, sizeof(bytes));
    assert(q->length <= sizeof(bytes));
    assert(send(peer, &r, sizeof(r), 0) == (ssize_t)sizeof(r));
    assert(!r.length || send(peer, bytes, r.length, 0) == (ssize_t)r.length);
}

static int data_pair(crail_client *c, struct crail_lane *lane, uint32_t server) {
    int pair[2];
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    assert(crail_client_server_tcp(c, server, lane->number, pair[0], 0) == 0);
    return pair[1];
}

static void reads_of_many_values_are_asked_ahead(void) {
    enum { VALUES = 5 };
    int peer;
    crail_client *c = new_client(1);
    struct crail_lane *lane = open_lane(c, &peer);
    int servers[2] = {data_pair(c, lane, 1), data_pair(c, lane, 2)};
    struct crail_extent e[VALUES];
    struct crail_io io[VALUES];
    uint8_t got[VALUES][200];
    for (uint32_t i = 0; i < VALUES; i++) {
        e[i] = (struct crail_extent){.server = 1 + i % 2, .granule = 10 + i, .granules = 1};
        io[i] = (struct crail_io){.client = c,
                                  .lane = lane,
                                  .extents = &e[i],
                                  .extents_count = 1,
                                  .value_bytes = 4000,
                                  .offset = 100 * i,
                                  .length = 40 * i, /* the first: nothing */
                                  .buffer = got[i],
                                  .deadline_ns = INT64_MAX};
        assert(crail_io_ask(&io[i]) == 1 && crail_io_ask(&io[i]) == 1);
    }
    for (uint32_t i = 1; i < VALUES; i++) { /* all are there before the first is answered */
        struct crail_data_request q = take_data_request(servers[i % 2]);
        assert(q.extent.granule == 10 + i && q.offset == 100 * i && q.length == 40 * i);
        if (i < 4)
            answer_data(servers[i % 2], &q, 0);
        else
            answer_data(servers[i % 2], &q, -CRAIL_E_STALE_LOCATION);
    }
    for (uint32_t i = 0; i < 4; i++) {
        assert(run(&io[i]) == 0 && io[i].done == 40 * i);
        for (uint32_t at = 0; at < 40 * i; at++)
            assert(got[i][at] == 10 + i);
        crail_io_end(&io[i]);
    }
    assert(run(&io[4]) == -CRAIL_E_STALE_LOCATION);
    crail_io_end(&io[4]);
    assert(!crail_lane_has_data(lane, 1) && crail_lane_has_data(lane, 2)); /* its connection ended, the other not */

    /* What is longer than a few pieces is not asked for at once: until it is, nothing else may be. */
    struct crail_extent large = {.server = 2, .granules = 3 * CRAIL_COPY_PIECE / CRAIL_GRANULE};
    struct crail_io long_one = {.client = c,
                                .lane = lane,
                                .extents = &large,
                                .extents_count = 1,
                                .value_bytes = 3ull * CRAIL_COPY_PIECE,
                                .length = 3ull * CRAIL_COPY_PIECE,
                                .buffer = got[0],
                                .deadline_ns = INT64_MAX};
    assert(crail_io_ask(&long_one) == 0 && long_one.tcp_asked == 2ull * CRAIL_COPY_PIECE);
    crail_io_restart(&long_one);
    assert(long_one.tcp_asked == 0 && !crail_lane_has_data(lane, 2));
    assert(crail_io_ask(&io[2]) == 1); /* it has been read */
    io[2].done = io[2].tcp_asked = 0;
    assert(crail_io_ask(&io[2]) == 0); /* nobody to ask */
    close(servers[0]), close(servers[1]), close(peer);
    crail_lane_checkin(lane);
    crail_client_free(c);
    CLAIM("reads of many values are asked for before the first is there");
}

static void views_leave_slots_for_calls(void) {
    crail_client *c = new_client(1);
    struct shared s = attach(c, 1);
    static struct crail_pin pins[CRAIL_USE_SLOTS];
    struct crail_extent e = {.server = 1, .granules = 1};
    uint32_t n = 0;
    while (crail_pin_take(c, &e, 1, &pins[n]) == 0)
        n++;
    assert(n == CRAIL_USE_SLOTS - CRAIL_SLOTS_FOR_CALLS);
    crail_client_close(c);
    crail_client_free(c); /* the views keep the mappings */
    while (n)
        crail_pin_release(&pins[--n]);
    assert(slots_named(&s) == 0);
    detach(&s);
    CLAIM("views cannot take the last slots, and outlive their client");
}

static void copies_are_exact(void) {
    size_t n = (5u << 20) + 77;
    uint8_t *from = malloc(n + 64), *to = malloc(n + 64);
    for (size_t i = 0; i < n + 64; i++)
        from[i] = (uint8_t)(i ^ (i >> 8) ^ (i >> 16));
    for (size_t shift = 0; shift < 40; shift += 13) {
        memset(to, 0xee, n + 64);
        crail_copy(to + shift, from + 3, n, n);
        assert(memcmp(to + shift, from + 3, n) == 0);
        for (size_t i = 0; i < shift; i++)
            assert(to[i] == 0xee);
        assert(to[shift + n] == 0xee);
    }
    free(from), free(to);
    CLAIM("long copies with non-temporal stores touch exactly their bytes");
}

int main(void) {
    a_request_and_its_reply();
    a_repeated_request_keeps_its_number();
    a_late_reply_is_not_taken_for_the_next();
    garbage_breaks_the_connection();
    the_pool_is_bounded();
    a_discarded_lane_keeps_its_number_and_its_grants();
    grants_fit_within_a_quarter();
    a_ring_carries_requests_and_replies();
    a_pause_does_not_end_a_dense_stream();
    a_request_left_in_the_ring_was_not_executed();
    a_lying_ring_breaks_the_connection();
    a_long_request_passes_in_pieces();
    a_long_request_is_not_waited_with_when_nobody_reads_it_any_more();
    values_are_cut_by_extent();
    a_raised_generation_is_refused();
    reads_of_many_values_are_asked_ahead();
    views_leave_slots_for_calls();
    copies_are_exact();
    return 0;
}
