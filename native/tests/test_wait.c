/* Requests that wait, and watches: overtaking replies, deadlines, cancel, crowds, connections that die, slow readers.
 *     test_wait [seed]
 * sources: rpc meta base api/api_namenode.c */
#include <pthread.h>
#include <stdlib.h>

#include "rpc_kit.h"

#define LONG_MS 60000u

static unsigned seed = 1;
static bool whole; /* this test saw a long work done at once */

/* ---- asking -------------------------------------------------------------- */

static void ask(int fd, uint64_t id, struct crail_op o, const char *path) {
    frame(&Q, id, 0);
    op_full(&Q, o, path, NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
}

static struct crail_op waits(uint16_t code, uint32_t ms) {
    return (struct crail_op){.code = code, .flags = CRAIL_OPF_WAIT, .count = ms};
}

static void ask_get(int fd, uint64_t id, const char *path, uint32_t ms) {
    ask(fd, id, waits(CRAIL_OP_GET, ms), path);
}

/* The next reply has this id. Its status. */
static int answered(int fd, uint64_t id) {
    CHECK(take(fd, &R));
    CHECK(R.head.id == id && R.head.count == 1 && R.head.seq == 0);
    return -result(&R, 0)->status;
}

static bool says(const char *text) {
    const struct crail_result *r = result(&R, 0);
    return r->status == 0 && r->data_len == strlen(text) && !memcmp(r + 1, text, r->data_len);
}

static bool silent(int fd) {
    struct end *e = ring_of(fd);
    struct pollfd p = {fd, POLLIN, 0};
    return e ? !crail_ring_readable(&e->ring) : poll(&p, 1, 0) == 0;
}

static int put(int fd, uint64_t seq, const char *path, const char *text) {
    return one(fd, seq, CRAIL_OP_PUT, path, text, (uint32_t)strlen(text));
}

static uint64_t cancel(int fd, uint64_t id, uint64_t of) {
    ask(fd, id, (struct crail_op){.code = CRAIL_OP_CANCEL, .arg0 = of}, "");
    CHECK(answered(fd, id) == 0);
    return result(&R, 0)->size;
}

/* Until the loop has forgotten all but `n` waiters; they are freed in slices. */
static void until_waiters(uint64_t n) {
    uint64_t from = crail_clock_ns();
    while (stats().waiters != n)
        CHECK(crail_clock_ns() - from < 10000000000u);
}

/* Until the loop has done with all but `n` waiters. Other threads' calls are served between two of its slices: so they
 * see some of the way, unless it was one step, or the machine let us see nothing of it. Turns are not timed: who else
 * runs here would be in them. */
static void until_waiters_in_slices(uint64_t n) {
    uint64_t before = stats().waiters, seen = before, steps = 0, from = crail_clock_ns();
    while (seen != n) {
        uint64_t now = stats().waiters;
        steps += now != seen;
        seen = now;
        CHECK(crail_clock_ns() - from < 20000000000u);
    }
    printf("  %u waiters in at least %u steps, longest turn %.0f us\n", (unsigned)(before - n), (unsigned)steps,
           (double)stats().step_ns_max / 1e3);
    whole |= steps < 4;
}

/* ---- waiting ------------------------------------------------------------- */

static void test_a_reply_overtakes_one_that_waits(void) {
    start(5000);
    int fd = client(1), other = client(2);
    ask_get(fd, 1, "/k", LONG_MS);
    ask_get(fd, 2, "/l", LONG_MS);
    ask(fd, 3, (struct crail_op){.code = CRAIL_OP_PING}, "");
    CHECK(answered(fd, 3) == 0); /* the lane is free */
    CHECK(stats().waiters == 2 && silent(fd));
    CHECK(put(other, 1, "/l", "second") == 0);
    CHECK(answered(fd, 2) == 0 && says("second"));
    CHECK(put(other, 2, "/k", "first") == 0);
    CHECK(answered(fd, 1) == 0 && says("first"));
    close(fd);
    close(other);
    until_waiters(0);
    end();
}

static void test_an_answer_that_is_there_does_not_wait(void) {
    start(5000);
    int fd = client(1);
    CHECK(put(fd, 1, "/k", "v") == 0);
    ask_get(fd, 1, "/k", LONG_MS);
    CHECK(answered(fd, 1) == 0 && says("v"));
    ask_get(fd, 2, "/", LONG_MS); /* nor does a mistake */
    CHECK(answered(fd, 2) == CRAIL_E_IS_CONTAINER);
    ask_get(fd, 3, "bad", LONG_MS);
    CHECK(answered(fd, 3) == CRAIL_E_INVALID_PATH);
    ask_get(fd, 4, "/none", 0); /* no time to wait */
    CHECK(answered(fd, 4) == CRAIL_E_DEADLINE);
    close(fd);
    end();
}

static void test_one_that_waits_is_alone(void) {
    start(5000);
    int fd = client(1);
    frame(&Q, 1, 0);
    op_full(&Q, waits(CRAIL_OP_GET, 5), "/k", NULL, 0);
    op_full(&Q, waits(CRAIL_OP_GET, 5), "/l", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == -CRAIL_E_INVALID_ARGUMENT && result(&R, 1)->status == -CRAIL_E_INVALID_ARGUMENT);
    frame(&Q, 2, 1);
    op_full(&Q, waits(CRAIL_OP_GET, 5), "/k", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == -CRAIL_E_INVALID_ARGUMENT);
    ask_get(fd, 3, "/k", CRAIL_WAIT_MS_MAX + 1);
    CHECK(answered(fd, 3) == CRAIL_E_INVALID_ARGUMENT);
    ask_get(fd, 4, "/k", LONG_MS);
    ask_get(fd, 4, "/k", LONG_MS); /* nobody could tell their replies apart */
    CHECK(answered(fd, 4) == CRAIL_E_PROTOCOL);
    close(fd);
    end();
}

static void test_stat_waits_for_a_version_and_for_nothing(void) {
    start(5000);
    int fd = client(1), other = client(2);
    frame(&Q, 1, 1);
    op(&Q, CRAIL_OP_PUT, "/k", "a", 1);
    call(other, &Q, &R);
    uint64_t version = result(&R, 0)->version;
    struct crail_op newer = waits(CRAIL_OP_STAT, LONG_MS), gone = waits(CRAIL_OP_STAT, LONG_MS);
    newer.flags |= CRAIL_OPF_IF_VERSION;
    newer.arg0 = version + 1;
    gone.flags |= CRAIL_OPF_ABSENT;
    ask(fd, 1, newer, "/k");
    ask(fd, 2, gone, "/k");
    CHECK(one(fd, 0, CRAIL_OP_PING, "", NULL, 0) == 0); /* both have arrived */
    CHECK(put(other, 2, "/other", "x") == 0 && stats().waiters == 2);
    CHECK(put(other, 3, "/k", "b") == 0);
    CHECK(answered(fd, 1) == 0 && result(&R, 0)->version > version && stats().waiters == 1);
    CHECK(one(other, 4, CRAIL_OP_REMOVE, "/k", NULL, 0) == 0);
    CHECK(answered(fd, 2) == 0);
    close(fd);
    close(other);
    end();
}

static void test_deadlines_pass_in_order(void) {
    start(5000);
    enum { N = 300 };
    int fd = client(1);
    uint32_t ms[N];
    uint64_t from = crail_clock_ns();
    for (uint32_t i = 0; i < N; i++) {
        ms[i] = 1 + (uint32_t)rand_r(&seed) % 200;
        char path[32];
        snprintf(path, sizeof path, "/d/%u", i % 7);
        ask_get(fd, i, path, ms[i]);
    }
    uint32_t before = 0;
    for (uint32_t i = 0; i < N; i++) {
        CHECK(take(fd, &R) && result(&R, 0)->status == -CRAIL_E_DEADLINE);
        uint32_t late = ms[R.head.id];
        CHECK(crail_clock_ns() - from >= late * 1000000ull);
        /* Asked one after the other, so a little out of order by their own clocks. */
        CHECK(late + (crail_clock_ns() - from) / 1000000 >= before);
        before = late > before ? late : before;
        ms[R.head.id] = 0;
    }
    for (uint32_t i = 0; i < N; i++)
        CHECK(ms[i] == 0); /* each once */
    CHECK(silent(fd) && stats().waiters == 0);
    close(fd);
    end();
}

static void test_nothing_runs_while_all_wait(void) {
    start(5000);
    int fd = client(1);
    for (uint32_t i = 0; i < 1000; i++)
        ask_get(fd, i, "/k", LONG_MS);
    until_waiters(1000);
    uint64_t before = stats().loop_cpu_ns;
    usleep(300000);
    uint64_t spent = stats().loop_cpu_ns - before;
    printf("  %u us of 300 ms\n", (unsigned)(spent / 1000));
    CHECK(spent < 3000000);
    close(fd);
    end();
}

/* ---- cancel -------------------------------------------------------------- */

static void test_cancel(void) {
    start(5000);
    int fd = client(1), other = client(2);
    ask_get(fd, 1, "/k", LONG_MS);
    CHECK(cancel(other, 9, 1) == 0); /* ids are of a connection */
    CHECK(cancel(fd, 2, 1) == 1 && cancel(fd, 3, 1) == 0);
    CHECK(put(other, 1, "/k", "v") == 0 && silent(fd));
    CHECK(cancel(fd, 4, 77) == 0);
    close(fd);
    close(other);
    end();
}

/* Either the reply comes, before the cancel's, or the cancel says 1: never both, never neither. */
static void test_cancel_races_with_the_change(void) {
    start(5000);
    int fd = client(1), other = client(2);
    uint64_t id = 0, seq = 0, won = 0;
    char path[32];
    for (int round = 0; round < 2000; round++) {
        uint64_t waiting = ++id, cancelling = ++id;
        snprintf(path, sizeof path, "/r/%d", round);
        ask_get(fd, waiting, path, LONG_MS);
        if (rand_r(&seed) % 2) {
            ask(fd, ++id, (struct crail_op){.code = CRAIL_OP_PING}, ""); /* lets the other catch up */
            CHECK(answered(fd, id) == 0);
        }
        struct request q = {0};
        frame(&q, 1, ++seq);
        op(&q, CRAIL_OP_PUT, path, "v", 1);
        send_all(other, q.b.data, q.b.len);
        crail_buf_free(&q.b);
        ask(fd, cancelling, (struct crail_op){.code = CRAIL_OP_CANCEL, .arg0 = waiting}, "");
        CHECK(take(fd, &R));
        if (R.head.id == waiting) {
            CHECK(says("v") && take(fd, &R) && R.head.id == cancelling && result(&R, 0)->size == 0);
        } else {
            CHECK(R.head.id == cancelling && result(&R, 0)->size == 1);
            won++;
        }
        CHECK(take(other, &R) && silent(fd));
    }
    printf("  %u of 2000 cancels came first\n", (unsigned)won);
    CHECK(stats().waiters == 0);
    close(fd);
    close(other);
    end();
}

/* ---- crowds -------------------------------------------------------------- */

#define CROWD 10000u

static void crowd_waits(int fd, const char *path) {
    struct crail_buf all = {0};
    for (uint64_t i = 0; i < CROWD; i++) {
        frame(&Q, i, 0);
        op_full(&Q, waits(CRAIL_OP_GET, LONG_MS), path, NULL, 0);
        CHECK(crail_buf_append_padded(&all, Q.b.data, Q.b.len) == 0);
    }
    send_all(fd, all.data, all.len);
    crail_buf_free(&all);
}

struct taker {
    int fd;
    uint64_t n;
};

static void *takes_in_order(void *arg) {
    const struct taker *t = arg;
    struct reply r = {0};
    for (uint64_t i = 0; i < t->n; i++)
        CHECK(take(t->fd, &r) && r.head.id == i && result(&r, 0)->status == 0);
    crail_buf_free(&r.b);
    return NULL;
}

static void test_ten_thousand_on_a_key_wake_in_order_and_in_slices(void) {
    start(5000);
    int fd = client(1), other = client(2);
    crowd_waits(fd, "/k");
    until_waiters(CROWD);
    CHECK(put(other, 1, "/k", "v") == 0);
    pthread_t reader; /* so that they are held up by nothing but the slices */
    struct taker t = {fd, CROWD};
    CHECK(pthread_create(&reader, NULL, takes_in_order, &t) == 0);
    until_waiters_in_slices(0);
    pthread_join(reader, NULL);
    close(fd);
    close(other);
    end();
}

static void test_a_thousand_connections_wake(void) {
    start(5000);
    enum { N = 400 };
    int fd[N], other = client(5000);
    for (int i = 0; i < N; i++) {
        fd[i] = client((uint64_t)i + 1);
        ask_get(fd[i], 7, "/k", LONG_MS);
    }
    until_waiters(N);
    CHECK(put(other, 1, "/k", "v") == 0);
    for (int i = 0; i < N; i++) {
        CHECK(answered(fd[i], 7) == 0 && says("v"));
        close(fd[i]);
    }
    close(other);
    end();
}

static void test_a_connection_that_dies_is_forgotten(void) {
    start(5000);
    CHECK(crail_namenode_session_open(nn, 1) == 0);
    int other = client(2);
    for (int round = 0; round < 3; round++) {
        int fd = attach(1, 0);
        crowd_waits(fd, round == 1 ? "/a/b/c" : "/k");
        if (round == 1)
            until_waiters(CROWD);
        else
            CHECK(one(other, 0, CRAIL_OP_PING, "", NULL, 0) == 0); /* in the middle of it */
        close(fd);
        if (round == 1)
            until_waiters_in_slices(0);
        CHECK(put(other, 2 * (uint64_t)round + 1, "/k", "v") == 0);
        until_waiters(0);
        CHECK(one(other, 2 * (uint64_t)round + 2, CRAIL_OP_REMOVE, "/k", NULL, 0) == 0);
    }
    close(other);
    end();
}

static void test_the_bound_of_one_connection(void) {
    start(5000);
    int fd = client(1), other = client(2);
    struct crail_buf all = {0};
    for (uint64_t i = 0; i < CRAIL_RPC_WAITERS_MAX + 1; i++) {
        frame(&Q, i, 0);
        op_full(&Q, waits(CRAIL_OP_GET, LONG_MS), "/k", NULL, 0);
        CHECK(crail_buf_append_padded(&all, Q.b.data, Q.b.len) == 0);
    }
    send_all(fd, all.data, all.len);
    CHECK(answered(fd, CRAIL_RPC_WAITERS_MAX) == CRAIL_E_NO_MEMORY);
    CHECK(stats().waiters == CRAIL_RPC_WAITERS_MAX);
    crail_buf_free(&all);
    ask_get(other, 1, "/k", LONG_MS); /* others are free to */
    until_waiters(CRAIL_RPC_WAITERS_MAX + 1);
    CHECK(cancel(fd, 70000, 5) == 1);
    close(fd);
    until_waiters_in_slices(1);
    close(other);
    end();
}

static void test_long_paths_are_charged(void) {
    start(5000);
    int fd = client(1);
    char path[CRAIL_PATH_MAX + 1];
    for (uint64_t i = 0; i < 9000 && silent(fd);
         i++) { /* each of 2,000 names that nobody else has: more than 64 MiB in all */
        int at = snprintf(path, sizeof path, "/%u", (unsigned)i);
        for (; at + 2 < 4090; at += 2)
            memcpy(path + at, "/x", 3);
        ask_get(fd, i, path, LONG_MS);
    }
    CHECK(take(fd, &R) && result(&R, 0)->status == -CRAIL_E_NO_MEMORY);
    printf("  %u waited\n", (unsigned)R.head.id);
    CHECK(R.head.id > 6000);
    close(fd);
    until_waiters(0);
    end();
}

/* ---- late replies -------------------------------------------------------- */

static void test_late_replies_stand_between_other_replies(void) {
    start(60000);
    int fd = client(1), other = client(2);
    static char value[CRAIL_INLINE_MAX + 1];
    memset(value, 'v', CRAIL_INLINE_MAX);
    CHECK(put(other, 1, "/v", value) == 0);
    char path[32];
    for (uint64_t i = 0; i < 500; i++) {
        snprintf(path, sizeof path, "/w/%d", (int)i);
        ask_get(fd, 1000 + i, path, LONG_MS);
    }
    frame(&Q, 1, 0);
    for (int i = 0; i < 1024; i++)
        op(&Q, CRAIL_OP_GET, "/v", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len); /* 4 MiB of reply, which nobody reads for now */
    for (uint64_t i = 0; i < 500; i++) {
        snprintf(path, sizeof path, "/w/%d", (int)i);
        CHECK(put(other, 2 + i, path, value) == 0);
    }
    ask(fd, 2, (struct crail_op){.code = CRAIL_OP_PING}, "");
    uint64_t vectors = 0, pings = 0, late = 0;
    while (vectors + pings + late < 502) {
        CHECK(take(fd, &R));
        vectors += R.head.id == 1;
        pings += R.head.id == 2;
        late += R.head.id >= 1000;
        for (uint32_t i = 0; i < R.head.count && R.head.id != 2; i += 100)
            CHECK(result(&R, i)->status == 0 && result(&R, i)->data_len == CRAIL_INLINE_MAX);
    }
    CHECK(vectors == 1 && pings == 1 && late == 500 && silent(fd) && stats().waiters == 0);
    close(fd);
    close(other);
    end();
}

static void test_who_does_not_take_late_replies_is_dropped(void) {
    tuning.drain_ns = 100000000;
    start(60000);
    int slow = client(1), other = client(2);
    static char value[CRAIL_INLINE_MAX + 1];
    memset(value, 'v', CRAIL_INLINE_MAX);
    crowd_waits(slow, "/v");
    until_waiters(CROWD);
    CHECK(put(other, 1, "/v", value) == 0);
    uint64_t from = crail_clock_ns();
    while (stats().lanes == 2 || stats().waiters)
        CHECK(crail_clock_ns() - from < 10000000000u);
    CHECK(one(other, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    close(slow);
    close(other);
    end();
}

static void test_late_replies_to_a_slow_reader_are_not_made_ahead(void) {
    start(60000);
    int slow = client(1), other = client(2);
    static char value[CRAIL_INLINE_MAX + 1];
    memset(value, 'v', CRAIL_INLINE_MAX);
    crowd_waits(slow, "/v");
    until_waiters(CROWD);
    CHECK(put(other, 1, "/v", value) == 0);
    CHECK(one(other, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    usleep(20000);
    CHECK(stats().waiters > CROWD / 2); /* of 40 MiB only what the socket took, and a little ahead */
    CHECK(one(other, 2, CRAIL_OP_REMOVE, "/v", NULL, 0) == 0);
    uint64_t found = 0;
    for (; stats().waiters + found < CROWD || !silent(slow); found++)
        CHECK(take(slow, &R) && result(&R, 0)->data_len == CRAIL_INLINE_MAX);
    printf("  %u had it, %u still wait\n", (unsigned)found, (unsigned)stats().waiters);
    CHECK(stats().waiters == CROWD - found && found < CROWD);
    value[1] = 0;
    CHECK(put(other, 3, "/v", value) == 0);
    for (; found < CROWD; found++)
        CHECK(take(slow, &R) && says("v"));
    CHECK(stats().waiters == 0);
    close(slow);
    close(other);
    end();
}

/* ---- what moves above ---------------------------------------------------- */

static void test_a_renamed_directory_wakes_below_both_names(void) {
    start(5000);
    int fd = client(1), other = client(2);
    CHECK(put(other, 1, "/from/a/b", "v") == 0);
    struct crail_op gone = waits(CRAIL_OP_STAT, LONG_MS);
    gone.flags |= CRAIL_OPF_ABSENT;
    ask_get(fd, 1, "/to/a/b", LONG_MS);
    ask(fd, 2, gone, "/from/a/b");
    ask(fd, 3, gone, "/from");
    until_waiters(3);
    CHECK(one(other, 2, CRAIL_OP_RENAME, "/from", "/to", 3) == 0);
    for (int i = 0; i < 3; i++) {
        CHECK(take(fd, &R) && result(&R, 0)->status == 0);
        CHECK(R.head.id != 1 || says("v"));
    }
    ask(fd, 4, gone, "/to/a/b");
    until_waiters(1);
    CHECK(one(other, 3, CRAIL_OP_RMTREE, "/to", NULL, 0) == 0);
    CHECK(answered(fd, 4) == 0 && stats().waiters == 0);
    ask_get(fd, 5, "/leaf/below", LONG_MS); /* a leaf comes above it: nothing can ever be there */
    until_waiters(1);
    CHECK(put(other, 4, "/leaf", "v") == 0);
    CHECK(answered(fd, 5) == CRAIL_E_NOT_CONTAINER);
    close(fd);
    close(other);
    end();
}

static void test_a_crowd_below_a_renamed_directory(void) {
    start(5000);
    int fd = client(1), other = client(2);
    CHECK(one(other, 1, CRAIL_OP_MKDIR, "/from", NULL, 0) == 0);
    for (uint64_t i = 0; i < 3000; i++) {
        char path[64];
        snprintf(path, sizeof path, "/to/%u/%u", (unsigned)i % 50, (unsigned)i);
        ask_get(fd, i, path, LONG_MS);
    }
    until_waiters(3000);
    for (uint64_t i = 0; i < 3000; i += 3) {
        char path[64];
        snprintf(path, sizeof path, "/from/%u/%u", (unsigned)i % 50, (unsigned)i);
        CHECK(put(other, 2 + i / 3, path, "v") == 0);
    }
    CHECK(one(other, 1002, CRAIL_OP_RENAME, "/from", "/to", 3) == 0);
    for (int i = 0; i < 1000; i++)
        CHECK(take(fd, &R) && R.head.id % 3 == 0 && says("v"));
    CHECK(stats().waiters == 2000 && silent(fd));
    close(fd);
    close(other);
    end();
}

/* ---- watches ------------------------------------------------------------- */

static int watch(int fd, uint64_t token, const char *path) {
    ask(fd, 1, (struct crail_op){.code = CRAIL_OP_WATCH, .arg0 = token}, path);
    return answered(fd, 1);
}

/* Events after `seen`; their number. */
static uint32_t next(int fd, uint64_t token, uint64_t seen) {
    ask(fd, 2, (struct crail_op){.code = CRAIL_OP_NEXT, .arg0 = token, .arg1 = seen}, "");
    CHECK(answered(fd, 2) == 0);
    return result(&R, 0)->count;
}

/* The i-th event of the reply in R. */
static const struct crail_event *event_at(uint32_t i) {
    const uint8_t *p = (const uint8_t *)(result(&R, 0) + 1);
    while (i--)
        p += crail_pad8((uint32_t)sizeof(struct crail_event) + ((const struct crail_event *)(const void *)p)->path_len);
    return (const void *)p;
}

static bool is(uint32_t i, enum crail_event_kind kind, const char *path) {
    const struct crail_event *e = event_at(i);
    return e->kind == kind && e->path_len == strlen(path) && !memcmp(e + 1, path, e->path_len);
}

static void end_hold(int fd, uint64_t seq, uint64_t token, int status) {
    frame(&Q, 3, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_END, .arg0 = token}, "", NULL, 0);
    call(fd, &Q, &R);
    CHECK(-result(&R, 0)->status == status);
}

static void test_a_watch_sees_its_node_and_all_below(void) {
    start(5000);
    int fd = client(1), other = client(2);
    CHECK(watch(fd, 7, "/a") == 0 && watch(fd, 8, "/") == 0 && watch(fd, 9, "/a/b") == 0 && stats().watches == 3);
    CHECK(watch(fd, 7, "/a") == 0 && watch(fd, 7, "/b") == CRAIL_E_INVALID_ARGUMENT && stats().watches == 3);
    CHECK(watch(fd, 5, "a") == CRAIL_E_INVALID_PATH);
    CHECK(next(fd, 7, 0) == 0);
    CHECK(put(other, 1, "/a/b/c", "v") == 0);
    CHECK(put(other, 2, "/ab", "not below") == 0);
    CHECK(one(other, 3, CRAIL_OP_REMOVE, "/a/b/c", NULL, 0) == 0);
    CHECK(next(fd, 7, 0) == 4 && result(&R, 0)->version == 4);
    CHECK(is(0, CRAIL_CHANGE_PUT, "/a") && is(1, CRAIL_CHANGE_PUT, "/a/b") && is(2, CRAIL_CHANGE_PUT, "/a/b/c"));
    CHECK(is(3, CRAIL_CHANGE_DELETE, "/a/b/c") && event_at(2)->version > event_at(1)->version);
    CHECK(next(fd, 7, 0) == 4); /* the reply was lost */
    CHECK(next(fd, 7, 3) == 1 && is(0, CRAIL_CHANGE_DELETE, "/a/b/c"));
    CHECK(next(fd, 7, 1) == 1); /* what was acknowledged stays so */
    CHECK(next(fd, 7, 4) == 0 && result(&R, 0)->version == 4);
    CHECK(next(fd, 9, 0) == 3 && is(0, CRAIL_CHANGE_PUT, "/a/b"));
    CHECK(next(fd, 8, 0) == 5 && is(3, CRAIL_CHANGE_PUT, "/ab"));
    ask(fd, 2, (struct crail_op){.code = CRAIL_OP_NEXT, .arg0 = 7, .arg1 = 5}, "");
    CHECK(answered(fd, 2) == CRAIL_E_INVALID_ARGUMENT);
    ask(fd, 2, (struct crail_op){.code = CRAIL_OP_NEXT, .arg0 = 77}, "");
    CHECK(answered(fd, 2) == CRAIL_E_NOT_FOUND);
    end_hold(fd, 1, 7, 0);
    end_hold(fd, 2, 7, CRAIL_E_NOT_FOUND);
    CHECK(stats().watches == 2);
    close(fd);
    close(other);
    end();
}

static void test_next_waits(void) {
    start(5000);
    int fd = client(1), other = client(2);
    CHECK(watch(fd, 7, "/a") == 0);
    struct crail_op o = waits(CRAIL_OP_NEXT, LONG_MS);
    o.arg0 = 7;
    ask(fd, 10, o, "");
    ask(fd, 11, o, "");
    until_waiters(2);
    CHECK(put(other, 1, "/b", "v") == 0 && silent(fd));
    CHECK(put(other, 2, "/a", "v") == 0);
    CHECK(answered(fd, 10) == 0 && result(&R, 0)->count == 1 && is(0, CRAIL_CHANGE_PUT, "/a"));
    CHECK(answered(fd, 11) == 0 && result(&R, 0)->count == 1);
    o.arg1 = 1;
    o.count = 20;
    ask(fd, 12, o, "");
    CHECK(answered(fd, 12) == CRAIL_E_DEADLINE);
    o.count = LONG_MS;
    ask(fd, 13, o, "");
    until_waiters(1);
    end_hold(other, 3, 7, CRAIL_E_NOT_FOUND); /* tokens are of a session */
    frame(&Q, 14, 1);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_END, .arg0 = 7}, "", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
    for (int i = 0; i < 2; i++) {
        CHECK(take(fd, &R));
        CHECK(result(&R, 0)->status == (R.head.id == 13 ? -CRAIL_E_NOT_FOUND : 0));
    }
    CHECK(stats().watches == 0 && stats().waiters == 0);
    close(fd);
    close(other);
    end();
}

static void test_who_waits_for_a_watch_does_not_go_over_to_the_next_of_its_token(void) {
    start(5000);
    int fd = client(1);
    CHECK(watch(fd, 7, "/a") == 0);
    struct crail_op o = waits(CRAIL_OP_NEXT, LONG_MS);
    o.arg0 = 7;
    ask(fd, 10, o, "");
    until_waiters(1);
    frame(&Q, 11, 1); /* both in one turn: the waiter has its own after them */
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_END, .arg0 = 7}, "", NULL, 0);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_WATCH, .arg0 = 7}, "/b", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
    for (int i = 0; i < 2; i++) {
        CHECK(take(fd, &R));
        CHECK(result(&R, 0)->status == (R.head.id == 10 ? -CRAIL_E_NOT_FOUND : 0));
    }
    CHECK(stats().watches == 1 && stats().waiters == 0);
    close(fd);
    end();
}

static void test_a_watch_that_is_not_read_loses_the_oldest_and_says_so(void) {
    start(5000);
    enum { PATHS = 100, ROUNDS = 1200 };
    int fd = client(1), other = client(2);
    CHECK(watch(fd, 7, "/w") == 0 && watch(fd, 8, "/") == 0);
    char path[64];
    uint64_t seen = 0, got = 0, resyncs = 0;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        frame(&Q, 1, round + 1);
        for (int i = 0; i < PATHS; i++) {
            snprintf(path, sizeof path, "/w/%d", i);
            op(&Q, CRAIL_OP_PUT, path, "v", 1);
        }
        call(other, &Q, &R);
        while (next(fd, 8, seen)) { /* this one keeps up */
            for (uint32_t i = 0; i < result(&R, 0)->count; i++)
                resyncs += event_at(i)->kind == CRAIL_CHANGE_RESYNC;
            got += result(&R, 0)->count;
            CHECK(result(&R, 0)->version == seen + result(&R, 0)->count);
            seen = result(&R, 0)->version;
        }
    }
    CHECK(!resyncs && got == 1 + ROUNDS * PATHS);
    uint32_t n = next(fd, 7, 0);
    CHECK(n > 1 && is(0, CRAIL_CHANGE_RESYNC, "/w") &&
          is(1, CRAIL_CHANGE_PUT, "/w/0") == is(101, CRAIL_CHANGE_PUT, "/w/0"));
    uint64_t first = result(&R, 0)->version, all = n - 1;
    CHECK(next(fd, 7, 0) == n && is(0, CRAIL_CHANGE_RESYNC, "/w")); /* and again, if that was lost */
    for (uint64_t at = first; (n = next(fd, 7, at)); at = result(&R, 0)->version) {
        CHECK(result(&R, 0)->version == at + n);
        for (uint32_t i = 0; i < n; i++)
            CHECK(event_at(i)->kind == CRAIL_CHANGE_PUT);
        all += n;
    }
    printf("  %u of %u events were kept\n", (unsigned)all, 1 + ROUNDS * PATHS);
    CHECK(all >= 4096 && all < ROUNDS * PATHS);
    close(fd);
    close(other);
    end();
}

static void test_a_watch_below_what_comes_and_goes(void) {
    start(5000);
    int fd = client(1), other = client(2);
    CHECK(put(other, 1, "/x/j/k", "v") == 0);
    CHECK(watch(fd, 7, "/y/j") == 0 && watch(fd, 8, "/x/j/k") == 0 && watch(fd, 9, "/x/none") == 0);
    CHECK(one(other, 2, CRAIL_OP_RENAME, "/x", "/y", 2) == 0);
    stats(); /* the recheck is over */
    CHECK(next(fd, 7, 0) == 1 && is(0, CRAIL_CHANGE_PUT, "/y/j"));
    CHECK(next(fd, 8, 0) == 1 && is(0, CRAIL_CHANGE_DELETE, "/x/j/k"));
    CHECK(next(fd, 9, 0) == 0);
    frame(&Q, 1, 3); /* gone and made again in one breath */
    op(&Q, CRAIL_OP_RMTREE, "/y", NULL, 0);
    op(&Q, CRAIL_OP_PUT, "/y/j", "w", 1);
    call(other, &Q, &R);
    stats();
    CHECK(next(fd, 7, 1) == 2 && is(0, CRAIL_CHANGE_DELETE, "/y/j") && is(1, CRAIL_CHANGE_PUT, "/y/j"));
    close(fd);
    close(other);
    end();
}

static void test_watches_go_with_their_session(void) {
    start(30);
    int fd = client(1), other = client(2);
    char path[32];
    for (uint64_t i = 0; i < CRAIL_RPC_WATCHES_MAX; i++) {
        snprintf(path, sizeof path, "/w/%d", (int)i);
        CHECK(watch(fd, i, path) == 0);
    }
    CHECK(watch(fd, 5000, "/w") == CRAIL_E_QUOTA_EXCEEDED);
    close(fd);
    CHECK(event().session == 1);
    CHECK(stats().watches == 0);
    CHECK(put(other, 1, "/w/1", "v") == 0);
    close(other);
    end();
}

/* ---- queues and barriers -------------------------------------------------- */

static void q_make(int fd, uint64_t seq, const char *path) {
    frame(&Q, 1, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_MKDIR, .arg0 = CRAIL_KIND_QUEUE}, path, NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0);
}

static void q_put(int fd, uint64_t seq, const char *path, const char *text) {
    frame(&Q, 1, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_PUT, .flags = CRAIL_OPF_QUEUE}, path, text, (uint32_t)strlen(text));
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0);
}

static void ask_take(int fd, uint64_t id, const char *path, uint64_t token) {
    struct crail_op o = waits(CRAIL_OP_TAKE, LONG_MS);
    o.arg0 = token;
    ask(fd, id, o, path);
}

static bool is_item(const char *text) {
    const struct crail_result *r = result(&R, 0);
    return r->status == 0 && r->data_len == 8 + strlen(text) &&
           !memcmp((const uint8_t *)(r + 1) + 8, text, r->data_len - 8);
}

static void test_takers_are_served_in_the_order_of_their_arrival(void) {
    start(5000);
    enum { N = 2000 };
    int fd[3] = {client(1), client(2), client(3)}, other = client(4);
    char text[16];
    q_make(other, 1, "/q");
    for (uint64_t i = 0; i < N; i++) {
        ask_take(fd[i % 3], i, "/q", i);
        until_waiters(i + 1); /* the connections are read in any order: so one after the other */
    }
    uint64_t operations = stats().operations;
    for (uint64_t i = 0; i < N; i++) {
        snprintf(text, sizeof text, "%d", (int)i);
        q_put(other, i + 2, "/q", text);
        CHECK(answered(fd[i % 3], i) == 0 && is_item(text));
    }
    CHECK(stats().operations - operations == 2 * N && stats().waiters == 0);
    for (int i = 0; i < 3; i++)
        close(fd[i]);
    close(other);
    end();
}

static void test_an_item_of_a_session_that_ends_goes_to_who_waits(void) {
    start(30);
    int dies = client(1), fd = client(2), other = client(3);
    q_make(other, 1, "/q");
    q_put(other, 2, "/q", "a");
    q_put(other, 3, "/q", "b");
    ask_take(dies, 1, "/q", 1);
    CHECK(answered(dies, 1) == 0 && is_item("a"));
    ask_take(dies, 2, "/q", 2);
    CHECK(answered(dies, 2) == 0 && is_item("b"));
    ask_take(fd, 1, "/q", 1);
    ask_take(fd, 2, "/q", 2);
    ask_take(fd, 3, "/q", 3);
    until_waiters(3);
    close(dies);
    CHECK(answered(fd, 1) == 0 && is_item("a"));
    CHECK(answered(fd, 2) == 0 && is_item("b"));
    end_hold(fd, 1, 1, 0); /* gives it back: the third has it now */
    CHECK(answered(fd, 3) == 0 && is_item("a"));
    ask_take(fd, 4, "/q", 4);
    until_waiters(1);
    CHECK(one(other, 4, CRAIL_OP_RMTREE, "/q", NULL, 0) == 0);
    CHECK(answered(fd, 4) == CRAIL_E_NOT_FOUND);
    close(fd);
    close(other);
    end();
}

static void ask_enter_at(int fd, uint64_t id, const char *path, uint64_t token, uint64_t n) {
    struct crail_op o = waits(CRAIL_OP_ENTER, LONG_MS);
    o.flags |= CRAIL_OPF_PARENTS;
    o.arg0 = token;
    o.arg1 = n;
    ask(fd, id, o, path);
}

static void ask_enter(int fd, uint64_t id, uint64_t token, uint64_t n) {
    ask_enter_at(fd, id, "/b", token, n);
}

static void test_a_barrier_of_ten_thousand(void) {
    start(5000);
    int fd = client(1), other = client(2);
    for (uint64_t round = 1; round <= 2; round++) {
        for (uint64_t i = 0; i + 1 < CROWD; i++)
            ask_enter(fd, i, round * CROWD + i, CROWD);
        until_waiters(CROWD - 1);
        CHECK(silent(fd));
        ask_enter(other, 1, round, CROWD);
        CHECK(answered(other, 1) == 0 && result(&R, 0)->version == round);
        for (uint64_t i = 0; i + 1 < CROWD; i++)
            CHECK(answered(fd, i) == 0 && result(&R, 0)->version == round);
    }
    close(fd);
    close(other);
    end();
}

static void test_a_barrier_breaks_for_all_when_a_session_ends(void) {
    start(30);
    int dies = client(1), fd = client(2), other = client(3);
    ask_enter(dies, 1, 1, 4);
    ask_enter(fd, 1, 1, 4);
    ask_enter(fd, 2, 2, 4);
    until_waiters(3);
    close(dies);
    CHECK(answered(fd, 1) == CRAIL_E_BARRIER_BROKEN && answered(fd, 2) == CRAIL_E_BARRIER_BROKEN);
    ask_enter(other, 1, 1, 4);
    CHECK(answered(other, 1) == CRAIL_E_BARRIER_BROKEN);
    CHECK(one(other, 1, CRAIL_OP_REMOVE, "/b", NULL, 0) == 0);
    ask_enter(other, 2, 2, 2);
    until_waiters(1);
    CHECK(one(fd, 1, CRAIL_OP_REMOVE, "/b", NULL, 0) == 0); /* while one waits */
    CHECK(answered(other, 2) == CRAIL_E_BARRIER_BROKEN);
    close(fd);
    close(other);
    end();
}

static void test_who_gave_up_at_a_barrier_does_not_come_back(void) {
    start(5000);
    int fd = client(1), other = client(2);
    ask_enter(fd, 1, 1, 2); /* its client gives up: END, while the request still waits */
    until_waiters(1);
    end_hold(fd, 1, 1, 0);
    ask_enter(other, 1, 1, 2);
    until_waiters(2);
    ask_enter(other, 2, 2, 2);
    CHECK(answered(other, 2) == 0 && result(&R, 0)->version == 1);
    CHECK(answered(other, 1) == 0);
    CHECK(answered(fd, 1) == CRAIL_E_CLOSED);
    ask_enter(other, 3, 3, 2);
    until_waiters(1);
    ask(fd, 2, (struct crail_op){.code = CRAIL_OP_STAT}, "/b");
    CHECK(answered(fd, 2) == 0 && silent(other));
    close(fd);
    close(other);
    end();
}

/* Who waits at a path that leads to his barrier no more would never hear of it. */
static void test_who_waits_at_a_barrier_that_is_renamed_is_told(void) {
    start(5000);
    int fd = client(1), other = client(2);
    ask_enter_at(fd, 1, "/d/b", 1, 2);
    until_waiters(1);
    ask_enter_at(fd, 2, "/d/x", 1, 2); /* a member there, and not here */
    CHECK(answered(fd, 2) == CRAIL_E_NOT_FOUND);
    ask_enter_at(fd, 3, "no path", 1, 2);
    CHECK(answered(fd, 3) == CRAIL_E_INVALID_PATH);
    CHECK(one(other, 1, CRAIL_OP_RENAME, "/d", "/e", 2) == 0);
    CHECK(answered(fd, 1) == CRAIL_E_NOT_FOUND);
    ask_enter_at(fd, 4, "/e/b", 1, 2); /* still the member that he was */
    until_waiters(1);
    ask_enter_at(other, 2, "/e/b", 1, 2);
    CHECK(answered(other, 2) == 0);
    CHECK(answered(fd, 4) == 0 && result(&R, 0)->version == 1);
    close(fd);
    close(other);
    end();
}

/* ---- all at once --------------------------------------------------------- */

/* Connections that wait, cancel, change, watch and die, at random; at the end nothing is left of it. */
static void test_a_random_life(void) {
    start(60000);
    enum { CONNS = 6 };
    int fd[CONNS];
    uint64_t seq[CONNS] = {0}, id = 100;
    char path[32], to[32];
    static const uint16_t changes[] = {CRAIL_OP_PUT, CRAIL_OP_PUT, CRAIL_OP_REMOVE, CRAIL_OP_RMTREE, CRAIL_OP_RENAME};
    for (int i = 0; i < CONNS; i++)
        fd[i] = client((uint64_t)i + 1);
    for (int step = 0; step < 20000; step++) {
        int i = rand_r(&seed) % CONNS;
        snprintf(path, sizeof path, "/%d/%d/%d", rand_r(&seed) % 3, rand_r(&seed) % 3, rand_r(&seed) % 3);
        snprintf(to, sizeof to, "/%d/%d", rand_r(&seed) % 3, rand_r(&seed) % 4);
        path[rand_r(&seed) % 3 * 2 + 2] = 0;
        struct crail_op o = waits(CRAIL_OP_GET, 1 + (uint32_t)rand_r(&seed) % 300);
        switch (rand_r(&seed) % 9) {
        case 0:
        case 1:
        case 2:
            o.code = rand_r(&seed) % 2 ? CRAIL_OP_GET : CRAIL_OP_STAT;
            o.flags |= o.code == CRAIL_OP_STAT && rand_r(&seed) % 2 ? CRAIL_OPF_ABSENT : 0;
            ask(fd[i], ++id, o, path);
            break;
        case 3:
            ask(fd[i], ++id, (struct crail_op){.code = CRAIL_OP_CANCEL, .arg0 = id - 1 - (uint64_t)rand_r(&seed) % 9},
                "");
            break;
        case 4:
            ask(fd[i], ++id, (struct crail_op){.code = CRAIL_OP_WATCH, .arg0 = (uint64_t)rand_r(&seed) % 5}, path);
            break;
        case 5:
            o.code = CRAIL_OP_NEXT;
            o.arg0 = (uint64_t)rand_r(&seed) % 5;
            ask(fd[i], ++id, o, "");
            break;
        case 6:
            if (rand_r(&seed) % 50 == 0) {
                close(fd[i]);
                fd[i] = attach((uint64_t)i + 1, 0);
                frame(&Q, ++id, 0); /* what was executed last? */
                op(&Q, CRAIL_OP_PING, "", NULL, 0);
                call(fd[i], &Q, &R);
                seq[i] = result(&R, 0)->version;
            }
            break;
        default:
            frame(&Q, ++id, ++seq[i]);
            op(&Q, changes[rand_r(&seed) % 5], path, to, (uint32_t)strlen(to));
            struct crail_op *made = (void *)(Q.b.data + sizeof(struct crail_frame));
            if (made->code == CRAIL_OP_REMOVE || made->code == CRAIL_OP_RMTREE) {
                frame(&Q, id, seq[i]);
                op(&Q, rand_r(&seed) % 2 ? CRAIL_OP_REMOVE : CRAIL_OP_RMTREE, path, NULL, 0);
            }
            send_all(fd[i], Q.b.data, Q.b.len);
        }
        for (int k = 0; k < CONNS; k++)
            while (!silent(fd[k]))
                CHECK(take(fd[k], &R) && R.head.count == 1);
    }
    for (int i = 0; i < CONNS; i++) {
        ask(fd[i], ++id, (struct crail_op){.code = CRAIL_OP_PING}, "");
        do
            CHECK(take(fd[i], &R));
        while (R.head.id != id);
        frame(&Q, ++id, ++seq[i]);
        op(&Q, CRAIL_OP_BYE, "", NULL, 0);
        send_all(fd[i], Q.b.data, Q.b.len);
        while (take(fd[i], &R))
            CHECK(R.head.count == 1);
    }
    until_waiters(0);
    CHECK(stats().watches == 0 && stats().protocol_errors == 0);
    for (int i = 0; i < CONNS; i++)
        close(fd[i]);
    end();
}

int main(int argc, char **argv) {
    seed = argc > 1 ? (unsigned)atoi(argv[1]) : (unsigned)crail_clock_ns();
    printf("seed %u\n", seed);
    tuning = crail_rpc_tuning_default;
#define TEST(name) {#name, name}
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        TEST(test_a_reply_overtakes_one_that_waits),
        TEST(test_an_answer_that_is_there_does_not_wait),
        TEST(test_one_that_waits_is_alone),
        TEST(test_stat_waits_for_a_version_and_for_nothing),
        TEST(test_deadlines_pass_in_order),
        TEST(test_nothing_runs_while_all_wait),
        TEST(test_cancel),
        TEST(test_cancel_races_with_the_change),
        TEST(test_ten_thousand_on_a_key_wake_in_order_and_in_slices),
        TEST(test_a_thousand_connections_wake),
        TEST(test_a_connection_that_dies_is_forgotten),
        TEST(test_the_bound_of_one_connection),
        TEST(test_long_paths_are_charged),
        TEST(test_late_replies_stand_between_other_replies),
        TEST(test_who_does_not_take_late_replies_is_dropped),
        TEST(test_late_replies_to_a_slow_reader_are_not_made_ahead),
        TEST(test_a_renamed_directory_wakes_below_both_names),
        TEST(test_a_crowd_below_a_renamed_directory),
        TEST(test_a_watch_sees_its_node_and_all_below),
        TEST(test_next_waits),
        TEST(test_who_waits_for_a_watch_does_not_go_over_to_the_next_of_its_token),
        TEST(test_a_watch_that_is_not_read_loses_the_oldest_and_says_so),
        TEST(test_a_watch_below_what_comes_and_goes),
        TEST(test_watches_go_with_their_session),
        TEST(test_takers_are_served_in_the_order_of_their_arrival),
        TEST(test_an_item_of_a_session_that_ends_goes_to_who_waits),
        TEST(test_a_barrier_of_ten_thousand),
        TEST(test_a_barrier_breaks_for_all_when_a_session_ends),
        TEST(test_who_gave_up_at_a_barrier_does_not_come_back),
        TEST(test_who_waits_at_a_barrier_that_is_renamed_is_told),
        TEST(test_a_random_life),
    };
    size_t n = sizeof tests / sizeof *tests;
    for (size_t i = 0; i < 2 * n; i++) {
        int left = 8; /* what is one step is one every time */
        with_rings = i >= n;
        do {
            printf("%s%s\n", tests[i % n].name, with_rings ? ", with rings" : "");
            fflush(stdout);
            whole = false;
            tests[i % n].run();
        } while (whole && --left);
        CHECK(!whole);
    }
    crail_buf_free(&Q.b);
    crail_buf_free(&R.b);
    printf("all passed\n");
    return 0;
}
