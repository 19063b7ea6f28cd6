/* The namenode's loop: what is a frame, and what ends a connection.
 * sources: rpc meta base api/api_namenode.c */
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

int main(int argc, char **argv) {
    static const struct rpc_test tests[] = {
        T(test_ping_put_get),
        T(test_frames_in_pieces_and_in_crowds),
        T(test_a_frame_of_megabytes),
        T(test_garbage_closes_the_connection),
        T(test_random_bytes_do_no_harm),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
