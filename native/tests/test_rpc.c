/* The namenode's loop over socketpairs: framing, exactly once, sessions, slices, slow readers, retire channels.
 * sources: rpc meta base api/api_namenode.c
 * With the argument `bench` it measures round trips instead. */
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>

#include "base/siphash.h"
#include "rpc_kit.h"

/* ---- frames -------------------------------------------------------------- */

static void test_ping_put_get(void) {
    start(1000);
    int fd = client(1);
    CHECK(one(fd, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    CHECK(one(fd, 1, CRAIL_OP_PUT, "/a/b", "hello", 5) == 0);
    frame(&Q, 5, 0);
    op(&Q, CRAIL_OP_GET, "/a/b", NULL, 0);
    op(&Q, CRAIL_OP_GET, "/a/c", NULL, 0);
    op(&Q, CRAIL_OP_PING, "", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0 && result(&R, 0)->data_len == 5 && !memcmp(result(&R, 0) + 1, "hello", 5));
    CHECK(result(&R, 1)->status == -CRAIL_E_NOT_FOUND && result(&R, 2)->status == 0);
    crail_namenode_stats st = stats();
    CHECK(st.requests == 3 && st.operations == 5 && st.gets == 2 && st.puts == 1 && st.lanes == 1 && st.sessions == 1 &&
          st.protocol_errors == 0 && st.loop_cpu_ns > 0);
    close(fd);
    end();
}

static void test_frames_in_pieces_and_in_crowds(void) {
    start(1000);
    int fd = client(1);
    frame(&Q, 9, 0);
    op(&Q, CRAIL_OP_PING, "", NULL, 0);
    for (size_t i = 0; i < Q.b.len; i++)
        send_all(fd, Q.b.data + i, 1);
    CHECK(take(fd, &R) && R.head.id == 9);
    struct crail_buf many = {0};
    for (uint64_t i = 0; i < 500; i++) {
        frame(&Q, i, 0);
        op(&Q, CRAIL_OP_STAT, "/", NULL, 0);
        CHECK(crail_buf_append_padded(&many, Q.b.data, Q.b.len) == 0);
    }
    send_all(fd, many.data, many.len);
    for (uint64_t i = 0; i < 500; i++)
        CHECK(take(fd, &R) && R.head.id == i && result(&R, 0)->status == 0);
    crail_buf_free(&many);
    close(fd);
    end();
}

static void test_a_frame_of_megabytes(void) {
    tuning.idle_ns = 20000000;
    start(1000);
    int fd = client(1);
    static uint8_t value[CRAIL_INLINE_MAX];
    char path[32];
    for (int round = 0; round < 3; round++) {
        frame(&Q, 3, 1 + (uint64_t)round);
        for (int i = 0; i < 1024; i++) {
            snprintf(path, sizeof path, "/big/%d", i);
            op(&Q, CRAIL_OP_PUT, path, value, sizeof value);
        }
        call(fd, &Q, &R);
        for (uint32_t i = 0; i < 1024; i++)
            CHECK(result(&R, i)->status == 0);
        frame(&Q, 4, 0);
        for (int i = 0; i < 1024; i++) {
            snprintf(path, sizeof path, "/big/%d", i);
            op(&Q, CRAIL_OP_GET, path, NULL, 0);
        }
        call(fd, &Q, &R);
        CHECK(R.b.len == 1024 * (32 + sizeof value));
        usleep(50000); /* the large buffers are given back, and come again */
    }
    close(fd);
    end();
}

static void garbage(void (*spoil)(struct request *)) {
    static uint64_t session = 100;
    uint64_t before = stats().protocol_errors;
    int fd = client(session++);
    frame(&Q, 1, 0);
    op(&Q, CRAIL_OP_STAT, "/x", NULL, 0);
    op(&Q, CRAIL_OP_STAT, "/y", NULL, 0);
    spoil(&Q);
    send_all(fd, Q.b.data, Q.b.len);
    CHECK(closed(fd));
    CHECK(stats().protocol_errors == before + 1);
    close(fd);
}

static struct crail_op *op_of(struct request *r) {
    return (void *)(r->b.data + sizeof(struct crail_frame));
}
static void spoil_magic(struct request *r) {
    head_of(r)->magic++;
}
static void spoil_size(struct request *r) {
    head_of(r)->size--;
}
static void spoil_size_max(struct request *r) {
    head_of(r)->size = CRAIL_FRAME_BYTES_MAX + 8;
}
static void spoil_size_min(struct request *r) {
    head_of(r)->size = 32;
}
static void spoil_count(struct request *r) {
    head_of(r)->count = 3;
}
static void spoil_count_less(struct request *r) {
    head_of(r)->count = 1;
}
static void spoil_count_zero(struct request *r) {
    head_of(r)->count = 0;
}
static void spoil_count_max(struct request *r) {
    head_of(r)->count = 1025;
}
static void spoil_flags(struct request *r) {
    head_of(r)->flags = 1;
}
static void spoil_path(struct request *r) {
    op_of(r)->path_len = 60000;
}
static void spoil_data(struct request *r) {
    op_of(r)->data_len = 0xfffffff8;
}
static void spoil_options(struct request *r) {
    op_of(r)->options_len = 1;
}

static void test_garbage_closes_the_connection(void) {
    start(1000);
    void (*spoils[])(struct request *) = {spoil_magic, spoil_size,       spoil_size_max,   spoil_size_min,
                                          spoil_count, spoil_count_less, spoil_count_zero, spoil_count_max,
                                          spoil_flags, spoil_path,       spoil_data,       spoil_options};
    for (size_t i = 0; i < sizeof spoils / sizeof *spoils; i++)
        garbage(spoils[i]);
    end();
}

static void test_random_bytes_do_no_harm(void) {
    start(60000);
    CHECK(crail_namenode_session_open(nn, 1) == 0);
    unsigned seed = 12345;
    for (int round = 0; round < 3000; round++) {
        int pair[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        int rc = crail_namenode_lane_attach(nn, pair[1], 1, (uint32_t)rand_r(&seed) % 4), fd = pair[0];
        CHECK(rc == 0 || rc == -CRAIL_E_SESSION_LOST);
        if (rc) { /* a BYE got through */
            CHECK(crail_namenode_session_open(nn, 1) == 0);
            close(fd);
            continue;
        }
        frame(&Q, 1, (uint64_t)(rand_r(&seed) % 3));
        for (int i = rand_r(&seed) % 4; i >= 0; i--)
            op(&Q, (uint16_t)(rand_r(&seed) % 28), "/p/q", "0123456789abcdef0123456789abcdef", 32);
        for (int i = rand_r(&seed) % 4; i > 0; i--) {
            size_t at = (size_t)rand_r(&seed) % Q.b.len;
            if (i & 1 && at >= 4)
                Q.b.data[at] = (uint8_t)rand_r(&seed);
            else
                Q.b.data[at & ~(size_t)7] ^= (uint8_t)(1u << (rand_r(&seed) % 8));
        }
        send(fd, Q.b.data, Q.b.len, MSG_NOSIGNAL);
        if (round % 3 == 0)
            stats();
        close(fd);
    }
    end();
}

/* ---- exactly once -------------------------------------------------------- */

static void test_exactly_once(void) {
    start(1000);
    int fd = client(1);
    CHECK(one(fd, 0, CRAIL_OP_PUT, "/x", "1", 1) == -CRAIL_E_PROTOCOL); /* changes without a number */
    CHECK(one(fd, 2, CRAIL_OP_PUT, "/x", "1", 1) == -CRAIL_E_PROTOCOL); /* a gap */
    CHECK(one(fd, 1, CRAIL_OP_MKDIR, "/d", NULL, 0) == 0);
    frame(&Q, 77, 2);
    op(&Q, CRAIL_OP_MKDIR, "/e", NULL, 0);
    op(&Q, CRAIL_OP_MKDIR, "/e", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0 && result(&R, 1)->status == -CRAIL_E_EXISTS);
    CHECK(!(result(&R, 0)->flags & CRAIL_RESF_REPLAY));
    close(fd);
    fd = attach(1, 0); /* the same again on another connection, under another id */
    head_of(&Q)->id = 78;
    for (int i = 0; i < 2; i++) {
        call(fd, &Q, &R);
        CHECK(result(&R, 0)->status == 0 && result(&R, 1)->status == -CRAIL_E_EXISTS);
        CHECK((result(&R, 0)->flags & CRAIL_RESF_REPLAY) && (result(&R, 1)->flags & CRAIL_RESF_REPLAY));
    }
    CHECK(stats().replays == 2);
    CHECK(one(fd, 2, CRAIL_OP_MKDIR, "/f", NULL, 0) == -CRAIL_E_PROTOCOL); /* not the same request */
    CHECK(one(fd, 1, CRAIL_OP_MKDIR, "/d", NULL, 0) == -CRAIL_E_UNAVAILABLE);
    CHECK(one(fd, 0, CRAIL_OP_STAT, "/f", NULL, 0) == -CRAIL_E_NOT_FOUND);
    int other = attach(1, 1); /* lanes count for themselves */
    CHECK(one(other, 1, CRAIL_OP_MKDIR, "/g", NULL, 0) == 0);
    CHECK(one(fd, 3, CRAIL_OP_MKDIR, "/h", NULL, 0) == 0);
    close(fd);
    close(other);
    end();
}

static void test_a_dying_connection_does_not_stop_a_vector(void) {
    tuning.slice_ns = 1; /* sixteen operations a turn */
    start(5000);
    CHECK(crail_namenode_session_open(nn, 1) == 0);
    char path[32];
    uint64_t replays = 0;
    for (uint64_t seq = 1; seq <= 40; seq++) {
        int fd = attach(1, 0);
        frame(&Q, seq, seq);
        for (int i = 0; i < 1000; i++) {
            snprintf(path, sizeof path, "/s%d/%d", (int)seq, i);
            op_full(&Q, (struct crail_op){.code = CRAIL_OP_PUT, .flags = CRAIL_OPF_IF_ABSENT | CRAIL_OPF_PARENTS}, path,
                    "v", 1);
        }
        send_all(fd, Q.b.data, Q.b.len);
        if (seq % 4)
            usleep((useconds_t)(seq * 20)); /* somewhere in the middle */
        int again;
        if (seq % 2) { /* closed by the client, or replaced while it lives */
            close(fd);
            again = attach(1, 0);
        } else {
            again = attach(1, 0);
            close(fd);
        }
        call(again, &Q, &R);
        for (uint32_t i = 0; i < 1000; i++)
            CHECK(result(&R, i)->status == 0);
        replays += (result(&R, 0)->flags & CRAIL_RESF_REPLAY) != 0;
        close(again);
    }
    CHECK(stats().replays == replays);
    CHECK(stats().files == 40 * 1000);
    printf("  %d of 40 vectors outlived their connection\n", (int)replays);
    end();
}

static void test_slices_let_others_through(void) {
    start(5000);
    int heavy = client(1), light = client(2);
    char path[32];
    frame(&Q, 1, 1);
    for (int i = 0; i < 1024; i++) {
        snprintf(path, sizeof path, "/h/%d", i);
        op(&Q, CRAIL_OP_PUT, path, path, sizeof path);
    }
    for (uint64_t seq = 1; seq < 20; seq++) {
        head_of(&Q)->seq = seq;
        send_all(heavy, Q.b.data, Q.b.len);
        CHECK(one(light, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
        CHECK(take(heavy, &R) && R.head.count == 1024);
    }
    printf("  longest turn %.0f us\n", (double)stats().step_ns_max / 1e3);
    close(heavy);
    close(light);
    end();
}

/* ---- sessions ------------------------------------------------------------ */

static void test_bye(void) {
    start(60000);
    int fd = client(5), other = attach(5, 1);
    CHECK(crail_namenode_session_open(nn, 5) == -EEXIST);
    frame(&Q, 1, 1);
    op(&Q, CRAIL_OP_MKDIR, "/d", NULL, 0);
    op(&Q, CRAIL_OP_BYE, "", NULL, 0);
    op(&Q, CRAIL_OP_MKDIR, "/e", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0 && result(&R, 1)->status == 0);
    CHECK(result(&R, 2)->status == -CRAIL_E_SESSION_LOST);
    CHECK(closed(fd) && closed(other));
    crail_namenode_event e = event();
    CHECK(e.kind == CRAIL_EVENT_SESSION_ENDED && e.session == 5);
    crail_namenode_event none;
    CHECK(crail_namenode_events_take(nn, &none, 1) == 0);
    struct pollfd p = {crail_namenode_event_fd(nn), POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(crail_namenode_lane_attach(nn, pair[1], 5, 0) == -CRAIL_E_SESSION_LOST);
    CHECK(closed(pair[0]));
    CHECK(crail_namenode_lane_attach(nn, -1, 5, 0) == -EBADF);
    close(pair[0]);
    close(fd);
    close(other);
    CHECK(stats().sessions == 0 && stats().lanes == 0);
    end();
}

static void test_the_grace(void) {
    start(60);
    CHECK(crail_namenode_session_open(nn, 1) == 0); /* nobody ever comes */
    int stays = client(2), goes = client(3);
    crail_namenode_event e = event();
    CHECK(e.kind == CRAIL_EVENT_SESSION_ENDED && e.session == 1);
    uint64_t from = crail_clock_ns();
    close(goes);
    e = event();
    CHECK(e.session == 3 && crail_clock_ns() - from >= 59000000);
    CHECK(one(stays, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    close(stays);
    stays = attach(2, 0); /* back in time */
    usleep(100000);
    CHECK(one(stays, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    for (uint64_t s = 100; s < 1100; s++) /* the table grows, and empties itself */
        CHECK(crail_namenode_session_open(nn, s) == 0);
    for (int i = 0; i < 1000; i++)
        CHECK(event().kind == CRAIL_EVENT_SESSION_ENDED);
    CHECK(stats().sessions == 1);
    close(stays);
    end();
}

static void test_who_does_not_read_is_dropped(void) {
    tuning.drain_ns = 100000000;
    start(60000);
    int slow = client(1), quick = client(2), late = client(3);
    static uint8_t value[CRAIL_INLINE_MAX];
    CHECK(one(quick, 1, CRAIL_OP_PUT, "/v", value, sizeof value) == 0);
    frame(&Q, 1, 0);
    for (int i = 0; i < 1024; i++)
        op(&Q, CRAIL_OP_GET, "/v", NULL, 0);
    send_all(slow, Q.b.data, Q.b.len);
    send_all(late, Q.b.data, Q.b.len);
    for (int i = 0; i < 10; i++)
        CHECK(one(quick, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    usleep(50000);
    CHECK(take(late, &R) && result(&R, 1023)->status == 0); /* late, but not too late */
    call(late, &Q, &R);
    uint64_t from = crail_clock_ns();
    while (stats().lanes == 3 && crail_clock_ns() - from < 5000000000)
        usleep(10000);
    CHECK(stats().lanes == 2);
    char some[4096]; /* what is left ends early */
    while (recv(slow, some, sizeof some, 0) > 0)
        ;
    CHECK(one(late, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    close(slow);
    close(quick);
    close(late);
    end();
}

static void test_listing_waits_for_its_index(void) {
    start(5000);
    int fd = client(1);
    char path[32];
    uint64_t seq = 0;
    for (int k = 0; k < 20; k++) {
        frame(&Q, 1, ++seq);
        for (int i = 0; i < 1000; i++) {
            snprintf(path, sizeof path, "/l/%06d", k * 1000 + i);
            op(&Q, CRAIL_OP_PUT, path, "x", 1);
        }
        call(fd, &Q, &R);
    }
    frame(&Q, 1, 0);
    for (int i = 0; i < 3; i++)
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_LIST, .arg0 = 1000}, "/l", NULL, 0);
    call(fd, &Q, &R);
    for (uint32_t i = 0; i < 3; i++)
        CHECK(result(&R, i)->status == 0 && result(&R, i)->count > 0 && (result(&R, i)->flags & CRAIL_RESF_MORE));
    int dies = attach(1, 1); /* asks, and is gone before the answer */
    CHECK(one(fd, ++seq, CRAIL_OP_RENAME, "/l", "/m", 2) == 0);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_LIST, .arg0 = 1000}, "/m", NULL, 0);
    send_all(dies, Q.b.data, Q.b.len);
    close(dies);
    CHECK(one(fd, ++seq, CRAIL_OP_RMTREE, "/m", NULL, 0) == 0);
    while (stats().background_pending)
        ;
    printf("  longest turn %.0f us\n", (double)stats().step_ns_max / 1e3);
    close(fd);
    end();
}

/* ---- servers ------------------------------------------------------------- */

static uint32_t server(uint32_t granules, int *channel) {
    uint32_t number;
    CHECK(crail_namenode_server_add(nn, 1, &granules, NULL, 0, 0, "where", 5, &number) == 0);
    if (channel) {
        int fd[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
        CHECK(crail_namenode_server_channel(nn, number, fd[1]) == 0);
        *channel = fd[0];
    }
    return number;
}

/* One frame of orders. False: closed. */
static bool orders(int fd, struct crail_buf *b) {
    struct crail_retire_frame head;
    if (!recv_all(fd, &head, sizeof head))
        return false;
    CHECK(head.magic == CRAIL_RETIRE_MAGIC && head.count && head.count <= CRAIL_RETIRES_MAX);
    CHECK(head.size == sizeof head + head.count * sizeof(struct crail_retire));
    b->len = 0;
    CHECK(crail_buf_append_padded(b, &head, sizeof head) == 0 && crail_buf_reserve(b, head.size) == 0);
    CHECK(recv_all(fd, b->data + b->len, head.size - sizeof head));
    b->len = head.size;
    return true;
}

static void *confirms_all(void *arg) {
    int fd = *(int *)arg;
    struct crail_buf b = {0};
    while (orders(fd, &b))
        send_all(fd, b.data, b.len);
    crail_buf_free(&b);
    close(fd);
    return NULL;
}

static struct crail_extent X[CRAIL_EXTENTS_MAX];

static int alloc(int fd, uint64_t seq, uint64_t bytes, uint32_t *n) {
    frame(&Q, seq, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_ALLOC, .arg1 = bytes}, "", NULL, 0);
    call(fd, &Q, &R);
    *n = result(&R, 0)->count;
    memcpy(X, result(&R, 0) + 1, *n * sizeof *X);
    return result(&R, 0)->status;
}

static int commit(int fd, uint64_t seq, const char *path, uint64_t bytes, uint32_t n) {
    frame(&Q, seq, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_COMMIT, .count = n, .arg1 = bytes}, path, X,
            (uint32_t)(n * sizeof *X));
    call(fd, &Q, &R);
    return result(&R, 0)->status;
}

static int release(int fd, uint64_t seq, uint32_t n) {
    frame(&Q, seq, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_RELEASE, .count = n}, "", X, (uint32_t)(n * sizeof *X));
    call(fd, &Q, &R);
    return result(&R, 0)->status;
}

static void test_the_description_of_a_server(void) {
    start(1000);
    int fd = client(1);
    uint32_t number = server(16, NULL);
    for (int round = 0; round < 2; round++) {
        frame(&Q, 1, 0);
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_SERVER, .arg0 = number}, "", NULL, 0);
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_SERVER, .arg0 = number + 1}, "", NULL, 0);
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_SERVER, .arg0 = 0}, "", NULL, 0);
        call(fd, &Q, &R);
        CHECK(result(&R, 0)->status == 0 && result(&R, 0)->data_len == (round ? 7 : 5));
        CHECK(!memcmp(result(&R, 0) + 1, round ? "another" : "where", result(&R, 0)->data_len));
        CHECK(result(&R, 1)->status == -CRAIL_E_NOT_FOUND && result(&R, 2)->status == -CRAIL_E_NOT_FOUND);
        CHECK(crail_namenode_server_describe(nn, number, 0, 0, "another", 7) == 0);
    }
    CHECK(crail_namenode_server_describe(nn, 9, 0, 0, "x", 1) == -ENOENT);
    CHECK(crail_namenode_server_set(nn, 9, 1) == -ENOENT);
    CHECK(crail_namenode_server_set(nn, number, 4) == -CRAIL_E_INVALID_ARGUMENT);
    crail_namenode_stats st;
    CHECK(crail_namenode_server_stats(nn, 9, &st) == -ENOENT);
    CHECK(crail_namenode_server_stats(nn, number, &st) == 0 && st.granules_total == 16);
    close(fd);
    end();
}

static void test_a_small_store_is_overwritten_for_ever(void) {
    start(1000);
    int fd = client(1), channel;
    server(64, &channel);
    pthread_t t;
    CHECK(pthread_create(&t, NULL, confirms_all, &channel) == 0);
    uint64_t seq = 0;
    for (int i = 0; i < 500; i++) {
        uint32_t n;
        CHECK(alloc(fd, ++seq, 20 * CRAIL_GRANULE, &n) == 0 && n > 0);
        CHECK(commit(fd, ++seq, i & 1 ? "/a" : "/b", 20 * CRAIL_GRANULE, n) == 0);
    }
    close(fd);
    end();
    CHECK(pthread_join(t, NULL) == 0);
}

static void test_an_alloc_waits_and_gives_up(void) {
    tuning.space_wait_ns = 80000000;
    start(5000);
    int fd = client(1), channel;
    server(64, &channel);
    uint32_t n, m;
    CHECK(alloc(fd, 1, 40 * CRAIL_GRANULE, &n) == 0);
    uint64_t from = crail_clock_ns();
    CHECK(alloc(fd, 2, 40 * CRAIL_GRANULE, &m) == -CRAIL_E_OUT_OF_SPACE); /* nothing is coming: at once */
    CHECK(crail_clock_ns() - from < 70000000);
    CHECK(alloc(fd, 3, 4 * CRAIL_GRANULE, &n) == 0 && release(fd, 4, n) == 0);
    from = crail_clock_ns();
    CHECK(alloc(fd, 5, 40 * CRAIL_GRANULE, &m) == -CRAIL_E_OUT_OF_SPACE); /* little is coming, and never arrives */
    CHECK(crail_clock_ns() - from >= 80000000);
    /* One asks, dies, and asks again elsewhere, while the memory comes back: one grant. */
    frame(&Q, 6, 6);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_ALLOC, .arg1 = 24 * CRAIL_GRANULE}, "", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
    usleep(10000);
    close(fd);
    fd = attach(1, 0);
    send_all(fd, Q.b.data, Q.b.len);
    usleep(10000);
    struct crail_buf b = {0};
    CHECK(orders(channel, &b));
    send_all(channel, b.data, b.len);
    CHECK(take(fd, &R) && result(&R, 0)->status == 0 && (result(&R, 0)->flags & CRAIL_RESF_REPLAY));
    crail_namenode_stats st = stats();
    CHECK(st.granules_granted == 64 && st.granules_retiring == 0 && st.allocs == 5);
    crail_buf_free(&b);
    close(fd);
    close(channel);
    end();
}

static void test_channels_break_and_come_back(void) {
    start(5000);
    int fd = client(1), channel;
    uint32_t number = server(1024, &channel), n;
    struct crail_buf b = {0};
    uint64_t seq = 0;
    CHECK(alloc(fd, ++seq, 8 * CRAIL_GRANULE, &n) == 0 && release(fd, ++seq, n) == 0);
    CHECK(orders(channel, &b)); /* taken, and never confirmed */
    close(channel);
    crail_namenode_event e = event();
    CHECK(e.kind == CRAIL_EVENT_SERVER_CHANNEL_CLOSED && e.server == number);
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_DOWN) == 0);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(crail_namenode_server_channel(nn, number, pair[1]) == 0);
    channel = pair[0];
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_UP) == 0); /* said twice: no harm */
    CHECK(orders(channel, &b));                                         /* again */
    CHECK(stats().granules_retiring == 8);
    /* Down and up while the orders are under way: confirmed twice, taken once. */
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_DOWN) == 0);
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_UP) == 0);
    struct crail_buf b2 = {0};
    CHECK(orders(channel, &b2));
    send_all(channel, b.data, b.len);
    send_all(channel, b2.data, b2.len);
    while (stats().granules_retiring)
        usleep(1000);
    CHECK(alloc(fd, ++seq, 8 * CRAIL_GRANULE, &n) == 0 && release(fd, ++seq, n) == 0);
    CHECK(orders(channel, &b));
    /* Another channel replaces this one, quietly. */
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(crail_namenode_server_channel(nn, number, pair[1]) == 0);
    CHECK(closed(channel));
    close(channel);
    channel = pair[0];
    CHECK(orders(channel, &b));
    for (size_t i = 0; i < b.len; i++) /* in pieces */
        send_all(channel, b.data + i, 1);
    while (stats().granules_retiring)
        usleep(1000);
    send_all(channel, b.data, b.len); /* what was not ordered */
    CHECK(closed(channel));
    e = event();
    CHECK(e.kind == CRAIL_EVENT_SERVER_CHANNEL_CLOSED && e.server == number);
    CHECK(stats().protocol_errors == 1);
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_LOST) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(crail_namenode_server_channel(nn, number, pair[1]) == -CRAIL_E_DATA_LOST);
    crail_buf_free(&b);
    crail_buf_free(&b2);
    close(pair[0]);
    close(channel);
    close(fd);
    end();
}

static void test_many_retirements(void) {
    start(5000);
    int fd = client(1), channel;
    server(1 << 20, &channel);
    pthread_t t;
    CHECK(pthread_create(&t, NULL, confirms_all, &channel) == 0);
    uint64_t seq = 0;
    char path[32];
    uint32_t n;
    for (int i = 0; i < 10000; i++) {
        snprintf(path, sizeof path, "/r/%d", i);
        CHECK(alloc(fd, ++seq, CRAIL_GRANULE, &n) == 0);
        frame(&Q, seq + 1, seq + 1);
        seq++;
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_COMMIT, .flags = CRAIL_OPF_PARENTS, .count = n, .arg1 = 100},
                path, X, (uint32_t)(n * sizeof *X));
        call(fd, &Q, &R);
        CHECK(result(&R, 0)->status == 0);
    }
    CHECK(one(fd, ++seq, CRAIL_OP_RMTREE, "/r", NULL, 0) == 0);
    crail_namenode_stats st;
    do
        st = stats();
    while (st.background_pending || st.granules_retiring || st.granules_free != st.granules_total);
    printf("  longest turn %.0f us\n", (double)st.step_ns_max / 1e3);
    close(fd);
    end();
    CHECK(pthread_join(t, NULL) == 0);
}

#define VIEWED 9000u /* deleted values that somebody still looks at */

/* The storage server: keeps the first VIEWED orders waiting, confirms all others. */
static void *confirms_what_nobody_views(void *arg) {
    int fd = *(int *)arg;
    struct crail_buf b = {0};
    uint32_t kept = 0;
    while (orders(fd, &b)) {
        const struct crail_retire_frame *head = (const void *)b.data;
        uint32_t keep = head->count < VIEWED - kept ? head->count : VIEWED - kept;
        kept += keep;
        if (keep == head->count)
            continue;
        struct crail_retire_frame less = *head;
        less.count -= keep;
        less.size -= keep * (uint32_t)sizeof(struct crail_retire);
        send_all(fd, &less, sizeof less);
        send_all(fd, b.data + sizeof less + keep * sizeof(struct crail_retire), less.size - sizeof less);
    }
    crail_buf_free(&b);
    close(fd);
    return NULL;
}

static void test_orders_that_wait_hold_up_no_others(void) {
    tuning.space_wait_ns = 5000000000;
    start(5000);
    int fd = client(1), channel;
    server(VIEWED + 64, &channel);
    pthread_t t;
    CHECK(pthread_create(&t, NULL, confirms_what_nobody_views, &channel) == 0);
    uint64_t seq = 0;
    uint32_t n;
    for (uint32_t i = 0; i < VIEWED + 1000; i++) {
        CHECK(alloc(fd, ++seq, CRAIL_GRANULE, &n) == 0);
        CHECK(release(fd, ++seq, n) == 0);
    }
    crail_namenode_stats st;
    do
        st = stats();
    while (st.granules_retiring > VIEWED);
    CHECK(st.granules_retiring == VIEWED && st.granules_free == 64);
    close(fd);
    end();
    CHECK(pthread_join(t, NULL) == 0);
}

/* ---- many at once -------------------------------------------------------- */

static void *busy_client(void *arg) {
    uint64_t session = (uint64_t)(uintptr_t)arg;
    struct request q = {0};
    struct reply r = {0};
    CHECK(crail_namenode_session_open(nn, session) == 0);
    char path[48];
    int fd = -1;
    for (uint64_t seq = 1; seq <= 400; seq++) {
        if (fd < 0)
            fd = attach(session, 0);
        frame(&q, seq, seq);
        for (int i = 0; i < 20; i++) {
            snprintf(path, sizeof path, "/t%d/%d", (int)session, i);
            op(&q, CRAIL_OP_PUT, path, &seq, sizeof seq);
        }
        send_all(fd, q.b.data, q.b.len);
        if (seq % 7 == 0) { /* breaks off, and repeats */
            close(fd);
            fd = attach(session, 0);
            send_all(fd, q.b.data, q.b.len);
        }
        CHECK(take(fd, &r) && r.head.id == seq);
        for (uint32_t i = 0; i < 20; i++)
            CHECK(result(&r, i)->status == 0);
        frame(&q, seq, 0);
        snprintf(path, sizeof path, "/t%d/3", (int)session);
        op(&q, CRAIL_OP_GET, path, NULL, 0);
        call(fd, &q, &r);
        CHECK(!memcmp(result(&r, 0) + 1, &seq, sizeof seq));
        if (seq % 50 == 0)
            stats();
    }
    CHECK(one(fd, 401, CRAIL_OP_BYE, "", NULL, 0) == 0);
    close(fd);
    crail_buf_free(&q.b);
    crail_buf_free(&r.b);
    return NULL;
}

static void test_many_at_once(void) {
    start(5000);
    pthread_t t[8];
    for (uintptr_t i = 0; i < 8; i++)
        CHECK(pthread_create(&t[i], NULL, busy_client, (void *)(i + 1)) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(event().kind == CRAIL_EVENT_SESSION_ENDED);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_join(t[i], NULL) == 0);
    CHECK(stats().sessions == 0 && stats().puts == 8 * 400 * 20);
    end();
}

static void test_stop_in_the_middle(void) {
    for (int i = 0; i < 20; i++) {
        start(5000);
        int fd = client(1), channel;
        server(64, &channel);
        frame(&Q, 1, 1);
        for (int k = 0; k < 1024; k++)
            op(&Q, CRAIL_OP_PUT, "/a/b", "x", 1);
        send_all(fd, Q.b.data, Q.b.len);
        usleep((useconds_t)i * 20);
        crail_namenode_stop(nn);
        close(fd);
        close(channel);
    }
    crail_namenode_options none = {0};
    CHECK(crail_namenode_start(&none, &nn) == -CRAIL_E_INVALID_ARGUMENT);
}

/* ---- measuring ----------------------------------------------------------- */

static void *echo(void *arg) {
    int fd = *(int *)arg, ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    char b[8192];
    for (;;) {
        CHECK(epoll_wait(ep, &ev, 1, -1) == 1);
        ssize_t n = recv(fd, b, sizeof b, MSG_DONTWAIT);
        if (n <= 0)
            break;
        CHECK(send(fd, b, (size_t)n, MSG_NOSIGNAL) == n);
    }
    close(ep);
    close(fd);
    return NULL;
}

static double round_trips(int fd, struct request *q, size_t reply_bytes) {
    static uint8_t b[1 << 16];
    int n = 200000;
    double best = 1e9;
    for (int k = 0; k < 5; k++) {
        uint64_t from = crail_clock_ns();
        for (int i = 0; i < n; i++) {
            CHECK(send(fd, q->b.data, q->b.len, 0) == (ssize_t)q->b.len);
            CHECK(recv_all(fd, b, reply_bytes));
        }
        double ns = (double)(crail_clock_ns() - from) / n;
        best = ns < best ? ns : best;
    }
    return best;
}

static void bench(void) {
    cpu_set_t core;
    CPU_ZERO(&core);
    CPU_SET(1 % sysconf(_SC_NPROCESSORS_ONLN), &core);
    sched_setaffinity(0, sizeof core, &core); /* the threads inherit it */
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pthread_t t;
    CHECK(pthread_create(&t, NULL, echo, &pair[1]) == 0);
    frame(&Q, 1, 0);
    op(&Q, CRAIL_OP_PING, "", NULL, 0);
    printf("echo (epoll, recv, send)   %7.0f ns\n", round_trips(pair[0], &Q, Q.b.len));
    close(pair[0]);
    CHECK(pthread_join(t, NULL) == 0);

    start(5000);
    int fd = client(1);
    printf("ping                       %7.0f ns\n", round_trips(fd, &Q, 64));
    static uint8_t value[1024];
    char path[32];
    for (uint64_t i = 1; i <= 100000; i++) {
        snprintf(path, sizeof path, "/bench/k%06d", (int)i);
        CHECK(one(fd, i, CRAIL_OP_PUT, path, value, sizeof value) == 0);
    }
    frame(&Q, 1, 0);
    op(&Q, CRAIL_OP_GET, "/bench/k000777", NULL, 0);
    printf("get 1 KiB                  %7.0f ns\n", round_trips(fd, &Q, 64 + 1024));
    frame(&Q, 1, 0);
    for (int i = 0; i < 32; i++) {
        snprintf(path, sizeof path, "/bench/k%06d", 1 + i * 3001);
        op(&Q, CRAIL_OP_GET, path, NULL, 0);
    }
    printf("get 32 x 1 KiB, per value  %7.0f ns\n", round_trips(fd, &Q, 32 + 32 * (32 + 1024)) / 32);
    uint64_t from = crail_clock_ns();
    for (uint64_t i = 100001; i <= 300000; i++) {
        snprintf(path, sizeof path, "/bench/k%06d", (int)(i * 7919 % 100000));
        CHECK(one(fd, i, CRAIL_OP_PUT, path, value, sizeof value) == 0);
    }
    printf("put 1 KiB, over            %7.0f ns\n", (double)(crail_clock_ns() - from) / 200000);
    crail_namenode_stats st = stats();
    printf("loop CPU per request       %7.0f ns, longest turn %.0f us\n", (double)st.loop_cpu_ns / (double)st.requests,
           (double)st.step_ns_max / 1e3);
    close(fd);
    end();
}

int main(int argc, char **argv) {
    tuning = crail_rpc_tuning_default;
    if (argc > 1 && !strcmp(argv[1], "bench")) {
        bench();
    } else {
        static const struct {
            const char *name;
            void (*run)(void);
        } tests[] = {
#define T(name) {#name, name}
            T(test_ping_put_get),
            T(test_frames_in_pieces_and_in_crowds),
            T(test_a_frame_of_megabytes),
            T(test_garbage_closes_the_connection),
            T(test_random_bytes_do_no_harm),
            T(test_exactly_once),
            T(test_a_dying_connection_does_not_stop_a_vector),
            T(test_slices_let_others_through),
            T(test_bye),
            T(test_the_grace),
            T(test_who_does_not_read_is_dropped),
            T(test_listing_waits_for_its_index),
            T(test_the_description_of_a_server),
            T(test_a_small_store_is_overwritten_for_ever),
            T(test_an_alloc_waits_and_gives_up),
            T(test_channels_break_and_come_back),
            T(test_many_retirements),
            T(test_orders_that_wait_hold_up_no_others),
            T(test_many_at_once),
            T(test_stop_in_the_middle),
#undef T
        };
        for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
            if (argc > 1 && !strstr(tests[i].name, argv[1]))
                continue;
            printf("%s\n", tests[i].name);
            fflush(stdout);
            tests[i].run();
        }
        printf("all passed\n");
    }
    crail_buf_free(&Q.b);
    crail_buf_free(&R.b);
    return 0;
}
