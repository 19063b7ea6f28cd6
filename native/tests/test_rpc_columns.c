/* Columns that wait until their directory has so many children.
 *     test_rpc_columns [seed]
 * sources: rpc meta base api/api_namenode.c */
#include <pthread.h>

#include "wait_kit.h"

static void ask_column(int fd, uint64_t id, const char *path, uint32_t children) {
    struct crail_op o = waits(CRAIL_OP_COLUMN, LONG_MS);
    o.arg1 = (uint64_t)children << 32;
    ask(fd, id, o, path);
}

static void put_child(int fd, uint64_t seq, const char *directory, uint32_t i) {
    char path[64];
    snprintf(path, sizeof path, "%s/%010u", directory, i);
    CHECK(put(fd, seq, path, "v") == 0);
}

static void test_it_is_answered_when_there_are_as_many(void) {
    start(5000);
    int fd = client(1), other = client(2);
    for (uint32_t i = 1; i <= 10; i++)
        ask_column(fd, i, "/d", i);
    until_waiters(10);
    for (uint32_t i = 1; i <= 10; i++) {
        put_child(other, i, "/d", i);
        CHECK(answered(fd, i) == 0 && result(&R, 0)->count == i && result(&R, 0)->size == i);
        CHECK(stats().waiters == 10 - i && silent(fd));
    }
    close(fd);
    close(other);
    end();
}

static void test_those_below_and_beside_wake_nobody(void) {
    start(5000);
    int fd = client(1), other = client(2);
    CHECK(put(other, 1, "/d/1", "v") == 0);
    ask_column(fd, 1, "/d", 2);
    until_waiters(1);
    CHECK(put(other, 2, "/d/1", "again") == 0); /* overwritten: there is one, still */
    CHECK(put(other, 3, "/e/1", "v") == 0 && put(other, 4, "/dd", "v") == 0);
    until_told();
    CHECK(silent(fd) && stats().waiters == 1);
    CHECK(put(other, 5, "/d/2/below/it", "v") == 0); /* a directory made on the way is a child, too */
    CHECK(answered(fd, 1) == 0 && result(&R, 0)->count == 2);
    CHECK(put(other, 6, "/from", "v") == 0);
    ask_column(fd, 2, "/d", 3);
    until_waiters(1);
    CHECK(one(other, 7, CRAIL_OP_RENAME, "/from", "/d/3", 4) == 0);
    CHECK(answered(fd, 2) == 0 && result(&R, 0)->count == 3);
    ask_column(fd, 3, "/d", 4);
    until_waiters(1);
    CHECK(one(other, 8, CRAIL_OP_MKDIR, "/d/4", NULL, 0) == 0);
    CHECK(answered(fd, 3) == 0 && result(&R, 0)->count == 4);
    close(fd);
    close(other);
    end();
}

static void test_a_child_that_goes_is_missed_again(void) {
    start(5000);
    int fd = client(1), other = client(2);
    put_child(other, 1, "/d", 1);
    put_child(other, 2, "/d", 2);
    ask_column(fd, 1, "/d", 3);
    until_waiters(1);
    CHECK(one(other, 3, CRAIL_OP_REMOVE, "/d/0000000001", NULL, 0) == 0);
    put_child(other, 4, "/d", 3);
    until_told();
    CHECK(silent(fd) && stats().waiters == 1);
    put_child(other, 5, "/d", 4);
    CHECK(answered(fd, 1) == 0 && result(&R, 0)->count == 3);
    close(fd);
    close(other);
    end();
}

static void test_the_directory_may_go_and_come_while_it_waits(void) {
    start(5000);
    int fd = client(1), other = client(2);
    put_child(other, 1, "/top/d", 1);
    ask_column(fd, 1, "/top/d", 2);
    until_waiters(1);
    CHECK(one(other, 2, CRAIL_OP_RMTREE, "/top", NULL, 0) == 0);
    until_told();
    CHECK(silent(fd) && stats().waiters == 1);
    put_child(other, 3, "/other", 1);
    put_child(other, 4, "/other", 2);
    CHECK(one(other, 5, CRAIL_OP_MKDIR, "/top", NULL, 0) == 0);
    CHECK(one(other, 6, CRAIL_OP_RENAME, "/other", "/top/d", 6) == 0); /* with two in it */
    CHECK(answered(fd, 1) == 0 && result(&R, 0)->count == 2);
    ask_column(fd, 2, "/top/d", 3);
    until_waiters(1);
    CHECK(one(other, 7, CRAIL_OP_RMTREE, "/top/d", NULL, 0) == 0);
    CHECK(put(other, 8, "/top/d", "a leaf") == 0);
    CHECK(answered(fd, 2) == CRAIL_E_NOT_CONTAINER);
    close(fd);
    close(other);
    end();
}

static void test_it_ends_by_cancel_and_deadline_and_with_its_connection(void) {
    start(5000);
    int fd = client(1), other = client(2);
    ask_column(fd, 1, "/d", 1);
    CHECK(cancel(fd, 2, 1) == 1);
    struct crail_op brief = waits(CRAIL_OP_COLUMN, 20);
    ask(fd, 3, brief, "/d");
    CHECK(answered(fd, 3) == CRAIL_E_DEADLINE);
    ask_column(fd, 4, "/d", 2);
    until_waiters(1);
    close(fd);
    until_waiters(0);
    put_child(other, 1, "/d", 1);
    put_child(other, 2, "/d", 2);
    CHECK(spots() == 0);
    close(other);
    end();
}

/* What it has seen goes along while it waits. */
static void test_the_cursor_is_kept(void) {
    start(5000);
    int fd = client(1), other = client(2);
    put_child(other, 1, "/d", 1);
    struct crail_op o = waits(CRAIL_OP_COLUMN, LONG_MS);
    o.arg1 = 3ull << 32;
    frame(&Q, 1, 0);
    op_full(&Q, o, "/d", "0000000002", 10);
    send_all(fd, Q.b.data, Q.b.len);
    until_waiters(1);
    put_child(other, 2, "/d", 2);
    put_child(other, 3, "/d", 3);
    CHECK(answered(fd, 1) == 0 && result(&R, 0)->count == 1 && result(&R, 0)->size == 3);
    const struct crail_column *e = (const void *)(result(&R, 0) + 1);
    CHECK(e->name_len == 10 && memcmp(e + 1, "0000000003", 10) == 0);
    close(fd);
    close(other);
    end();
}

/* Takes an answer, and asks for half of what is missing. Has its reader all of them? */
static bool read_on(int fd, uint32_t maps, uint64_t *asked) {
    CHECK(take(fd, &R) && result(&R, 0)->status == 0);
    uint32_t there = (uint32_t)result(&R, 0)->size;
    if (there == maps)
        return true;
    ask_column(fd, R.head.id, "/d", there + (maps - there + 1) / 2);
    ++*asked;
    return false;
}

static void test_a_crowd_that_waits_for_many_asks_seldom(void) {
    enum { READERS = 50, MAPS = 200 };
    start(5000);
    int fd = client(1), other = client(2);
    uint64_t asked = READERS;
    uint32_t ready = 0;
    for (uint32_t r = 0; r < READERS; r++)
        ask_column(fd, r, "/d", MAPS / 2);
    until_waiters(READERS);
    for (uint32_t m = 0; m < MAPS; m++) {
        put_child(other, 1 + m, "/d", m);
        until_told();
        while (!silent(fd))
            ready += read_on(fd, MAPS, &asked);
    }
    while (ready < READERS)
        ready += read_on(fd, MAPS, &asked);
    printf("  %u readers of %u maps asked %u times\n", READERS, MAPS, (unsigned)asked);
    CHECK(asked <= READERS * 8 && stats().waiters == 0 && silent(fd));
    close(fd);
    close(other);
    end();
}

/* Columns that wait at random directories of a small tree that changes at random: whoever has enough was answered. */
static void test_whoever_waits_for_children_that_came_was_answered(void) {
    enum { WAITERS = 300 };
    start(5000);
    int fd = client(1), other = client(2);
    static char at[WAITERS][64];
    uint32_t wanted[WAITERS], still = 0;
    bool waiting[WAITERS];
    for (uint64_t i = 0; i < WAITERS; i++) {
        random_path(at[i], 3);
        wanted[i] = 1 + (uint32_t)rand_r(&seed) % 2;
        ask_column(fd, i, at[i], wanted[i]);
        waiting[i] = true;
    }
    until_waiters(WAITERS);
    for (uint64_t i = 0; i < 60; i++)
        change_at_random(other, 1 + i);
    until_told();
    ask(fd, 10000, (struct crail_op){.code = CRAIL_OP_PING}, "");
    while (take(fd, &R) && R.head.id != 10000)
        waiting[R.head.id] = false;
    while (!silent(fd)) {
        CHECK(take(fd, &R));
        waiting[R.head.id] = false;
    }
    for (uint64_t i = 0; i < WAITERS; i++) {
        still += waiting[i];
        ask(other, 20000 + i, (struct crail_op){.code = CRAIL_OP_COLUMN}, at[i]);
        int status = answered(other, 20000 + i);
        CHECK(!waiting[i] || status == CRAIL_E_NOT_FOUND || (status == 0 && result(&R, 0)->size < wanted[i]));
    }
    printf("  %u of %u still wait\n", (unsigned)still, WAITERS);
    CHECK(stats().waiters == still);
    close(fd);
    close(other);
    end();
}

int main(int argc, char **argv) {
    static const struct rpc_test tests[] = {
        T(test_it_is_answered_when_there_are_as_many),
        T(test_those_below_and_beside_wake_nobody),
        T(test_a_child_that_goes_is_missed_again),
        T(test_the_directory_may_go_and_come_while_it_waits),
        T(test_it_ends_by_cancel_and_deadline_and_with_its_connection),
        T(test_the_cursor_is_kept),
        T(test_a_crowd_that_waits_for_many_asks_seldom),
        T(test_whoever_waits_for_children_that_came_was_answered),
    };
    return run_seeded(tests, sizeof tests / sizeof *tests, argc, argv);
}
