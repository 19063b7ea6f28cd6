/* What ends by itself, on a loop that nobody disturbs: nodes by time and with their session, an ALLOC's patience.
 * sources: rpc meta base api/api_namenode.c */
#include "rpc_kit.h"

#define LONG_MS 20000u
#define MS 1000000ull

/* One operation with options, sent; its answer is taken later. */
static void ask(int fd, uint64_t seq, struct crail_op o, const struct crail_options *options, const char *path) {
    uint8_t rest[256];
    uint32_t path_len = (uint32_t)strlen(path);
    struct crail_frame head = {.magic = CRAIL_FRAME_MAGIC, .count = 1, .id = 7, .seq = seq};
    o.path_len = (uint16_t)path_len;
    o.options_len = options ? sizeof *options : 0;
    uint32_t bytes = path_len + o.options_len, padded = crail_pad8((uint32_t)sizeof o + bytes) - (uint32_t)sizeof o;
    CHECK(padded <= sizeof rest);
    memset(rest, 0, sizeof rest);
    memcpy(rest, path, path_len);
    if (options)
        memcpy(rest + path_len, options, sizeof *options);
    head.size = (uint32_t)(sizeof head + sizeof o) + padded;
    send_all(fd, &head, sizeof head);
    send_all(fd, &o, sizeof o);
    send_all(fd, rest, padded);
}

static int answered(int fd) {
    CHECK(take(fd, &R));
    return result(&R, 0)->status;
}

static int ask_and_take(int fd, uint64_t seq, struct crail_op o, const struct crail_options *options,
                        const char *path) {
    ask(fd, seq, o, options, path);
    return answered(fd);
}

static int until_absent(int fd, const char *path) {
    struct crail_op o = {.code = CRAIL_OP_STAT, .flags = CRAIL_OPF_WAIT | CRAIL_OPF_ABSENT, .count = LONG_MS};
    return ask_and_take(fd, 0, o, NULL, path);
}

static void a_node_expires_though_nobody_asks_for_anything(void) {
    start(5000);
    int fd = client(1);
    struct crail_options o = {.flags = CRAIL_OPTION_TTL, .ttl_ns = 150 * MS, .storage_class = CRAIL_CLASS_ANY};
    uint64_t from = crail_clock_ns();
    CHECK(ask_and_take(fd, 1, (struct crail_op){.code = CRAIL_OP_PUT}, &o, "/short") == 0);
    o.ttl_ns = 3600000 * MS;
    CHECK(ask_and_take(fd, 2, (struct crail_op){.code = CRAIL_OP_PUT}, &o, "/long") == 0);
    CHECK(until_absent(fd, "/short") == 0);
    CHECK(crail_clock_ns() - from >= 150 * MS && crail_clock_ns() - from < LONG_MS * MS / 2);
    CHECK(one(fd, 0, CRAIL_OP_STAT, "/long", NULL, 0) == 0);
    uint64_t cpu = stats().loop_cpu_ns;
    usleep(100000); /* the other one is far away: the loop sleeps */
    CHECK(stats().loop_cpu_ns - cpu < 20 * MS);
    close(fd);
    end();
}

static void what_a_session_owns_goes_when_nobody_is_left_of_it(void) {
    start(60);
    int fd = client(1), owner = client(2);
    struct crail_options o = {.flags = CRAIL_OPTION_SESSION, .storage_class = CRAIL_CLASS_ANY};
    CHECK(ask_and_take(owner, 1, (struct crail_op){.code = CRAIL_OP_MKDIR}, &o, "/mine") == 0);
    for (uint64_t i = 0; i < 300; i++) {
        char path[32];
        snprintf(path, sizeof path, "/mine/%d", (int)i);
        CHECK(one(owner, 2 + i, CRAIL_OP_PUT, path, "x", 1) == 0);
    }
    close(owner);
    CHECK(until_absent(fd, "/mine") == 0);
    while (stats().nodes > 1)
        usleep(1000);
    close(fd);
    end();
}

static void a_job_goes_by_its_ttl_when_its_holder_died(void) {
    start(60);
    int fd = client(1), holder = client(2);
    struct crail_options o = {.flags = CRAIL_OPTION_TTL, .ttl_ns = 100 * MS, .storage_class = CRAIL_CLASS_ANY};
    struct crail_op job = {.code = CRAIL_OP_JOB, .arg0 = 5};
    CHECK(ask_and_take(holder, 0, job, &o, "/job") == 0);
    CHECK(one(holder, 1, CRAIL_OP_PUT, "/job/a", "x", 1) == 0);
    uint64_t from = crail_clock_ns();
    close(holder);
    CHECK(until_absent(fd, "/job") == 0);
    CHECK(crail_clock_ns() - from >= 160 * MS);
    close(fd);
    end();
}

/* ---- space -------------------------------------------------------------------------- */

static int channel;

static void one_server(uint32_t granules) {
    uint32_t number;
    int fd[2];
    CHECK(crail_namenode_server_add(nn, 1, &granules, NULL, 0, 0, "where", 5, &number) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    CHECK(crail_namenode_server_channel(nn, number, fd[1]) == 0);
    channel = fd[0];
}

/* Takes the next orders and confirms them. */
static void confirm(void) {
    uint8_t bytes[65536];
    struct crail_retire_frame head;
    CHECK(recv_all(channel, &head, sizeof head) && head.size <= sizeof bytes);
    CHECK(recv_all(channel, bytes, head.size - sizeof head));
    send_all(channel, &head, sizeof head);
    send_all(channel, bytes, head.size - sizeof head);
}

static struct crail_op alloc_of(uint64_t granules, uint32_t wait_ms) {
    return (struct crail_op){
        .code = CRAIL_OP_ALLOC, .flags = CRAIL_OPF_WAIT, .count = wait_ms, .arg1 = granules * CRAIL_GRANULE};
}

static void an_alloc_waits_as_long_as_it_says(void) {
    start(5000);
    int holder = client(1), fd = client(2);
    one_server(8);
    CHECK(ask_and_take(holder, 1, alloc_of(8, 0), NULL, "") == 0);
    struct crail_extent all;
    memcpy(&all, result(&R, 0) + 1, sizeof all);
    uint64_t from = crail_clock_ns();
    CHECK(ask_and_take(fd, 1, alloc_of(8, 120), NULL, "") == -CRAIL_E_OUT_OF_SPACE); /* nothing is coming */
    CHECK(crail_clock_ns() - from >= 120 * MS);
    CHECK(ask_and_take(fd, 2, alloc_of(8, 0), NULL, "") == -CRAIL_E_OUT_OF_SPACE);
    ask(fd, 3, alloc_of(8, LONG_MS), NULL, "");
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 300) == 0); /* longer than the loop waits by itself */
    frame(&Q, 1, 2);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_RELEASE, .count = 1}, "", &all, sizeof all);
    call(holder, &Q, &R);
    CHECK(result(&R, 0)->status == 0);
    confirm();
    CHECK(answered(fd) == 0 && result(&R, 0)->count == 1);
    close(fd);
    close(holder);
    close(channel);
    end();
}

static void an_alloc_that_waits_gets_what_it_evicts(void) {
    start(5000);
    int fd = client(1);
    one_server(8);
    struct crail_options evictable = {.flags = CRAIL_OPTION_EVICTABLE, .storage_class = CRAIL_CLASS_ANY};
    for (uint64_t i = 0; i < 2; i++) {
        CHECK(ask_and_take(fd, 1 + 2 * i, alloc_of(4, 0), NULL, "") == 0);
        struct {
            struct crail_frame head;
            struct crail_op op;
            char path[2];
            struct crail_options options;
            struct crail_extent extent;
            char pad[6];
        } __attribute__((packed)) commit = {
            .head = {.magic = CRAIL_FRAME_MAGIC, .size = sizeof commit, .count = 1, .id = 1, .seq = 2 + 2 * i},
            .op = {.code = CRAIL_OP_COMMIT,
                   .path_len = 2,
                   .options_len = sizeof(struct crail_options),
                   .data_len = sizeof(struct crail_extent),
                   .count = 1,
                   .arg1 = 4 * CRAIL_GRANULE},
            .path = {'/', (char)('a' + i)},
            .options = evictable};
        memcpy(&commit.extent, result(&R, 0) + 1, sizeof commit.extent);
        send_all(fd, &commit, sizeof commit);
        CHECK(answered(fd) == 0);
    }
    ask(fd, 5, alloc_of(3, LONG_MS), NULL, "");
    confirm();
    CHECK(answered(fd) == 0 && result(&R, 0)->count == 1);
    CHECK(one(fd, 0, CRAIL_OP_STAT, "/a", NULL, 0) == -CRAIL_E_NOT_FOUND);
    CHECK(one(fd, 0, CRAIL_OP_STAT, "/b", NULL, 0) == 0);
    close(fd);
    close(channel);
    end();
}

int main(void) {
    static void (*const tests[])(void) = {
        a_node_expires_though_nobody_asks_for_anything, what_a_session_owns_goes_when_nobody_is_left_of_it,
        a_job_goes_by_its_ttl_when_its_holder_died,     an_alloc_waits_as_long_as_it_says,
        an_alloc_that_waits_gets_what_it_evicts,
    };
    tuning = crail_rpc_tuning_default;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        tests[i]();
    crail_buf_free(&Q.b);
    crail_buf_free(&R.b);
    printf("all passed\n");
    return 0;
}
