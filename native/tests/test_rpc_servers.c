/* The namenode's loop: storage servers, their retire channels, and memory on its way back.
 * sources: rpc meta base api/api_namenode.c */
#include "rpc_kit.h"

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
    tuning.space_wait_ns = 500000000;
    start(5000);
    int fd = client(1), channel;
    server(64, &channel);
    uint32_t n, m;
    CHECK(alloc(fd, 1, 40 * CRAIL_GRANULE, &n) == 0);
    uint64_t from = crail_clock_ns();
    CHECK(alloc(fd, 2, 40 * CRAIL_GRANULE, &m) == -CRAIL_E_OUT_OF_SPACE); /* nothing is coming: at once */
    CHECK(crail_clock_ns() - from < 400000000);
    CHECK(alloc(fd, 3, 4 * CRAIL_GRANULE, &n) == 0 && release(fd, 4, n) == 0);
    from = crail_clock_ns();
    CHECK(alloc(fd, 5, 40 * CRAIL_GRANULE, &m) == -CRAIL_E_OUT_OF_SPACE); /* little is coming, and never arrives */
    CHECK(crail_clock_ns() - from >= 500000000);
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
    CHECK(take(fd, &R) && result(&R, 0)->status == 0);
    crail_namenode_stats st = stats();
    CHECK(st.granules_granted == 64 && st.granules_retiring == 0 && st.allocs == 5);
    crail_buf_free(&b);
    close(fd);
    close(channel);
    end();
}

static void ask_space(int fd, uint64_t seq) {
    frame(&Q, seq, seq);
    op_full(
        &Q,
        (struct crail_op){.code = CRAIL_OP_ALLOC, .flags = CRAIL_OPF_WAIT, .count = 60000, .arg1 = 64 * CRAIL_GRANULE},
        "", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
}

/* Nothing tells when a lane begins to wait: the requests behind it on its connection are not answered, but those of
 * others are, one turn of the loop after the other. */
static void turns(int fd, int n) {
    while (n--)
        CHECK(one(fd, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
}

/* As between a server's recovery and its channel, when the namenode has been restarted. */
static void test_memory_of_a_server_whose_channel_is_still_to_come_is_waited_for(void) {
    start(5000);
    int fd = client(1), other = client(2), channel;
    uint32_t number = server(64, &channel), n;
    CHECK(alloc(fd, 1, 64 * CRAIL_GRANULE, &n) == 0);
    close(channel);
    CHECK(event().kind == CRAIL_EVENT_SERVER_CHANNEL_CLOSED);
    CHECK(release(fd, 2, n) == 0);
    frame(&Q, 3, 3);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_ALLOC, .arg1 = 24 * CRAIL_GRANULE}, "", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
    turns(other, 10);
    CHECK(stats().allocs == 1);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(crail_namenode_server_channel(nn, number, pair[1]) == 0);
    struct crail_buf b = {0};
    CHECK(orders(pair[0], &b));
    send_all(pair[0], b.data, b.len);
    CHECK(take(fd, &R) && result(&R, 0)->status == 0);
    crail_buf_free(&b);
    close(fd);
    close(other);
    close(pair[0]);
    end();
}

/* A server that is restarted is away for a moment: who asks for its memory meanwhile waits for it, for the grace. */
static void test_who_needs_a_server_that_went_down_waits_for_it(void) {
    start(200);
    int fd = client(1), other = client(2), channel;
    uint32_t number = server(64, &channel), n;
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_DOWN) == 0);
    frame(&Q, 1, 1);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_ALLOC, .arg1 = 24 * CRAIL_GRANULE}, "", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
    turns(other, 10);
    CHECK(stats().allocs == 0);
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_UP) == 0);
    CHECK(take(fd, &R) && result(&R, 0)->status == 0);
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_DOWN) == 0);
    uint64_t from = crail_clock_ns();
    CHECK(alloc(fd, 2, 24 * CRAIL_GRANULE, &n) == -CRAIL_E_OUT_OF_SPACE);
    CHECK(crail_clock_ns() - from >= 190000000);
    CHECK(crail_namenode_server_set(nn, number, CRAIL_SERVER_LOST) == 0); /* for good */
    CHECK(alloc(fd, 3, 24 * CRAIL_GRANULE, &n) == -CRAIL_E_OUT_OF_SPACE);
    close(fd);
    close(other);
    close(channel);
    end();
}

static void test_who_waits_for_space_waits_no_longer_than_its_connection(void) {
    start(60000);
    int fd = client(1), other = client(2), channel;
    server(64, &channel);
    uint32_t n;
    CHECK(alloc(other, 1, 64 * CRAIL_GRANULE, &n) == 0);
    ask_space(fd, 1);
    turns(other, 10);
    close(fd);
    fd = attach(1, 0);
    frame(&Q, 7, 0); /* does not stand behind it, and hears that it was not executed */
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_PING}, "", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->version == 0);
    struct crail_buf b = {0};
    CHECK(release(other, 2, n) == 0 && orders(channel, &b));
    send_all(channel, b.data, b.len);
    while (stats().granules_retiring)
        turns(other, 1);
    CHECK(stats().granules_granted == 0); /* to nobody */
    CHECK(alloc(fd, 1, 64 * CRAIL_GRANULE, &n) == 0 && n);
    crail_buf_free(&b);
    close(fd);
    close(other);
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

/* Commits what alloc() gave, as a value that may be evicted. */
static int commit_evictable(int fd, uint64_t seq, const char *path, uint64_t bytes, uint32_t n) {
    uint8_t data[sizeof(struct crail_options) + sizeof X];
    struct crail_options o = {.flags = CRAIL_OPTION_EVICTABLE, .storage_class = CRAIL_CLASS_ANY};
    memcpy(data, &o, sizeof o);
    memcpy(data + sizeof o, X, n * sizeof *X);
    frame(&Q, seq, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_COMMIT, .count = n, .arg1 = bytes}, path, data,
            (uint32_t)(sizeof o + n * sizeof *X));
    struct crail_op *op = (void *)(Q.b.data + sizeof(struct crail_frame));
    op->options_len = sizeof o;
    op->data_len -= (uint32_t)sizeof o;
    call(fd, &Q, &R);
    return result(&R, 0)->status;
}

/* Like a server whose first run a reader keeps: that order is never confirmed. */
static void *confirms_all_but_the_first(void *arg) {
    int fd = *(int *)arg;
    struct crail_buf b = {0};
    CHECK(orders(fd, &b));
    crail_buf_free(&b);
    return confirms_all(arg);
}

static void test_an_alloc_that_waits_evicts_more_where_a_reader_keeps_the_first(void) {
    tuning.space_wait_ns = 200000000;
    start(5000);
    int fd = client(1), channel;
    server(64, &channel);
    pthread_t t;
    CHECK(pthread_create(&t, NULL, confirms_all_but_the_first, &channel) == 0);
    uint32_t n;
    CHECK(alloc(fd, 1, 32 * CRAIL_GRANULE, &n) == 0);
    CHECK(commit_evictable(fd, 2, "/kept", 32 * CRAIL_GRANULE, n) == 0);
    CHECK(alloc(fd, 3, 32 * CRAIL_GRANULE, &n) == 0);
    CHECK(commit_evictable(fd, 4, "/free", 32 * CRAIL_GRANULE, n) == 0);
    frame(&Q, 5, 5);
    op_full(
        &Q,
        (struct crail_op){.code = CRAIL_OP_ALLOC, .flags = CRAIL_OPF_WAIT, .count = 5000, .arg1 = 32 * CRAIL_GRANULE},
        "", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0);
    close(fd);
    end();
    CHECK(pthread_join(t, NULL) == 0);
}

int main(int argc, char **argv) {
    static const struct rpc_test tests[] = {
        T(test_the_description_of_a_server),
        T(test_a_small_store_is_overwritten_for_ever),
        T(test_an_alloc_waits_and_gives_up),
        T(test_memory_of_a_server_whose_channel_is_still_to_come_is_waited_for),
        T(test_who_needs_a_server_that_went_down_waits_for_it),
        T(test_who_waits_for_space_waits_no_longer_than_its_connection),
        T(test_channels_break_and_come_back),
        T(test_many_retirements),
        T(test_orders_that_wait_hold_up_no_others),
        T(test_an_alloc_that_waits_evicts_more_where_a_reader_keeps_the_first),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
