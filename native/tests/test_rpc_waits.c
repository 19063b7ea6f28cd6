/* Requests that wait: overtaking replies, deadlines, cancel, crowds, connections that die, slow readers.
 *     test_rpc_waits [seed]
 * sources: rpc meta base api/api_namenode.c */
#include <pthread.h>

#include "wait_kit.h"

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

/* ---- deep paths ---------------------------------------------------------- */

static void test_a_deep_path_is_one_spot_until_another_parts_from_it(void) {
    start(5000);
    int fd = client(1), other = client(2);
    char deep[CRAIL_PATH_MAX + 1], path[CRAIL_PATH_MAX + 1];
    uint32_t len = deep_path(deep, CRAIL_PATH_MAX / 2);
    ask_get(fd, 1, deep, LONG_MS);
    until_waiters(1);
    CHECK(spots() == 2);                 /* and the root */
    for (uint32_t i = 0; i < 100; i++) { /* each parts from it elsewhere, or is on its way */
        memcpy(path, deep, len + 1);
        path[4 + 40 * i] = 0;
        if (i % 2)
            memcpy(path + 1 + 40 * i, "yyy", 3);
        ask_get(fd, 2 + i, path, LONG_MS);
    }
    until_waiters(101);
    CHECK(spots() == 2 + 50 + 2 * 50);
    for (uint64_t i = 0; i < 100; i++)
        CHECK(cancel(fd, 1000 + i, 2 + (i * 37) % 100) == 1);
    CHECK(spots() == 2); /* in whatever order they go, what they parted is whole again */
    CHECK(put(other, 1, deep, "v") == 0);
    CHECK(answered(fd, 1) == 0 && says("v") && spots() == 0);
    close(fd);
    close(other);
    end();
}

/* The least time of a PUT that makes this many directories, beside one who waits for its path and one on the way. */
static uint64_t put_ns(uint32_t names) {
    char path[CRAIL_PATH_MAX + 1], half[CRAIL_PATH_MAX + 1];
    uint64_t least = UINT64_MAX;
    deep_path(path, names);
    deep_path(half, names / 2);
    for (uint64_t round = 0; round < 7; round++) {
        start(5000);
        int fd = client(1), other = client(2);
        ask_get(fd, 1, path, LONG_MS);
        ask_get(fd, 2, half, LONG_MS);
        until_waiters(2);
        uint64_t from = crail_clock_ns();
        CHECK(put(other, 1, path, "v") == 0);
        uint64_t took = crail_clock_ns() - from;
        least = took < least ? took : least;
        for (int i = 0; i < 2; i++) {
            CHECK(take(fd, &R) && (R.head.id == 1 || R.head.id == 2));
            CHECK(R.head.id == 1 ? says("v") : result(&R, 0)->status == -CRAIL_E_IS_CONTAINER);
        }
        close(fd);
        close(other);
        end();
    }
    return least;
}

/* Eight times the depth costs eight times as much, or less; told one by one from the root it was sixty times. */
static void test_who_waits_makes_deep_parents_no_worse_than_longer(void) {
    uint64_t shallow = put_ns(CRAIL_PATH_MAX / 16), deep = put_ns(CRAIL_PATH_MAX / 2);
    printf("  %u names: %.0f us, %u names: %.0f us\n", CRAIL_PATH_MAX / 16, (double)shallow / 1e3, CRAIL_PATH_MAX / 2,
           (double)deep / 1e3);
    CHECK(deep < 24 * shallow);
}

/* Requests that wait at random paths of a small tree that changes at random: what is there at the end has been
 * answered, what is not there waits. */
static void test_whoever_waits_for_what_came_was_answered(void) {
    start(5000);
    enum { WAITERS = 400 };
    int fd = client(1), other = client(2);
    static char at[WAITERS][64];
    bool waiting[WAITERS];
    for (uint64_t i = 0; i < WAITERS; i++) {
        random_path(at[i], 6);
        ask(fd, i, waits(CRAIL_OP_STAT, LONG_MS), at[i]);
        waiting[i] = true;
    }
    ask(fd, 9999, (struct crail_op){.code = CRAIL_OP_PING}, ""); /* all of them stand, or were answered */
    while (take(fd, &R) && R.head.id != 9999)
        waiting[R.head.id] = false;
    for (uint64_t i = 0; i < 40; i++)
        change_at_random(other, 1 + i);
    until_told();
    ask(fd, 10000, (struct crail_op){.code = CRAIL_OP_PING}, "");
    while (take(fd, &R) && R.head.id != 10000)
        waiting[R.head.id] = false;
    while (!silent(fd)) {
        CHECK(take(fd, &R));
        waiting[R.head.id] = false;
    }
    uint32_t still = 0;
    for (uint64_t i = 0; i < WAITERS; i++) {
        still += waiting[i];
        bool is_there = one(other, 0, CRAIL_OP_STAT, at[i], NULL, 0) == 0;
        CHECK(!is_there || !waiting[i]);
    }
    printf("  %u of %u still wait\n", (unsigned)still, WAITERS);
    CHECK(stats().waiters == still);
    close(fd);
    close(other);
    end();
}

int main(int argc, char **argv) {
    static const struct rpc_test tests[] = {
        T(test_a_reply_overtakes_one_that_waits),
        T(test_an_answer_that_is_there_does_not_wait),
        T(test_one_that_waits_is_alone),
        T(test_stat_waits_for_a_version_and_for_nothing),
        T(test_deadlines_pass_in_order),
        T(test_nothing_runs_while_all_wait),
        T(test_cancel),
        T(test_cancel_races_with_the_change),
        T(test_ten_thousand_on_a_key_wake_in_order_and_in_slices),
        T(test_a_thousand_connections_wake),
        T(test_a_connection_that_dies_is_forgotten),
        T(test_the_bound_of_one_connection),
        T(test_long_paths_are_charged),
        T(test_late_replies_stand_between_other_replies),
        T(test_who_does_not_take_late_replies_is_dropped),
        T(test_late_replies_to_a_slow_reader_are_not_made_ahead),
        T(test_a_renamed_directory_wakes_below_both_names),
        T(test_a_crowd_below_a_renamed_directory),
        T(test_a_deep_path_is_one_spot_until_another_parts_from_it),
        T(test_who_waits_makes_deep_parents_no_worse_than_longer),
        T(test_whoever_waits_for_what_came_was_answered),
    };
    return run_seeded(tests, sizeof tests / sizeof *tests, argc, argv);
}
