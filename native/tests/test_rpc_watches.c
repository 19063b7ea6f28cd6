/* Watches and their events, and what is waited for beside a value: items of queues, barriers.
 *     test_rpc_watches [seed]
 * sources: rpc meta base api/api_namenode.c */
#include "wait_kit.h"

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

/* ---- deep watches, and what watches cost ----------------------------------- */

static struct crail_rpc_session *first_session(crail_namenode *in, uint64_t id) {
    for (uint64_t i = 0; i < (uint64_t)1 << in->buckets_log2; i++)
        for (struct crail_rpc_session *s = in->buckets[i]; s; s = s->next)
            if (s->id == id)
                return s;
    return NULL;
}

static int read_charge(crail_namenode *in, void *arg) {
    uint64_t *id = arg;
    *id = first_session(in, *id)->watch_bytes;
    return 0;
}

/* Bytes that the watches of a session are charged with. */
static uint64_t charge(uint64_t session) {
    CHECK(crail_rpc_post(nn, read_charge, &session) == 0);
    return session;
}

static void test_a_deep_watch_costs_its_path_and_little_else(void) {
    start(5000);
    int fd = client(1), other = client(2);
    char path[CRAIL_PATH_MAX + 1];
    for (uint64_t i = 0; i < CRAIL_RPC_WATCHES_MAX; i++) {
        uint32_t len = deep_path(path, CRAIL_PATH_MAX / 2);
        snprintf(path, 9, "/%07u", (unsigned)i);
        path[8] = '/';
        CHECK(strlen(path) == len && watch(fd, i, path) == 0);
    }
    CHECK(spots() == 1 + CRAIL_RPC_WATCHES_MAX);
    CHECK(charge(1) < CRAIL_RPC_WATCHES_MAX * (2 * CRAIL_PATH_MAX + 2048) && charge(1) < CRAIL_RPC_WATCH_BYTES_MAX);
    CHECK(put(other, 1, path, "v") == 0); /* 2,047 directories and a value under it: the last is its own */
    CHECK(next(fd, CRAIL_RPC_WATCHES_MAX - 1, 0) == 1 && is(0, CRAIL_CHANGE_PUT, path));
    for (uint64_t i = 0; i < CRAIL_RPC_WATCHES_MAX; i++)
        end_hold(fd, 1 + i, i, 0);
    CHECK(charge(1) == 0 && spots() == 0);
    close(fd);
    close(other);
    end();
}

static void test_made_parents_are_told_to_every_watch_on_their_way(void) {
    start(5000);
    int fd = client(1), other = client(2);
    CHECK(put(other, 1, "/e/f", "v") == 0);
    CHECK(watch(fd, 1, "/") == 0 && watch(fd, 2, "/e") == 0 && watch(fd, 3, "/e/a") == 0 &&
          watch(fd, 4, "/e/a/b/c") == 0 && watch(fd, 5, "/e/a/b/c/d/x") == 0 && watch(fd, 6, "/e/a/q") == 0);
    CHECK(put(other, 2, "/e/a/b/c/d", "v") == 0);
    for (uint64_t token = 1; token <= 2; token++) {
        CHECK(next(fd, token, 0) == 4 && is(0, CRAIL_CHANGE_PUT, "/e/a") && is(1, CRAIL_CHANGE_PUT, "/e/a/b"));
        CHECK(is(2, CRAIL_CHANGE_PUT, "/e/a/b/c") && is(3, CRAIL_CHANGE_PUT, "/e/a/b/c/d"));
        for (uint32_t i = 0; i + 1 < 4; i++)
            CHECK(event_at(i)->version + 1 == event_at(i + 1)->version);
    }
    CHECK(next(fd, 3, 0) == 4 && is(0, CRAIL_CHANGE_PUT, "/e/a"));
    uint64_t version = event_at(2)->version;
    CHECK(next(fd, 4, 0) == 2 && is(0, CRAIL_CHANGE_PUT, "/e/a/b/c") && is(1, CRAIL_CHANGE_PUT, "/e/a/b/c/d"));
    CHECK(event_at(0)->version == version);
    ask(fd, 9, (struct crail_op){.code = CRAIL_OP_STAT}, "/e/a/b/c");
    CHECK(answered(fd, 9) == 0 && result(&R, 0)->version == version);
    CHECK(next(fd, 5, 0) == 0 && next(fd, 6, 0) == 0);
    CHECK(one(other, 3, CRAIL_OP_RMTREE, "/e", NULL, 0) == 0); /* what was told of them is known */
    CHECK(next(fd, 4, 2) == 1 && is(0, CRAIL_CHANGE_DELETE, "/e/a/b/c"));
    CHECK(next(fd, 6, 0) == 0);
    close(fd);
    close(other);
    end();
}

static void test_thousands_of_made_parents_under_many_watches_are_a_resync(void) {
    start(5000);
    int fd = client(1), other = client(2);
    char path[CRAIL_PATH_MAX + 1];
    for (uint32_t i = 0; i < 1000; i++) {
        deep_path(path, 1 + 2 * i);
        CHECK(watch(fd, i, path) == 0);
    }
    deep_path(path, CRAIL_PATH_MAX / 2);
    CHECK(put(other, 1, path, "v") == 0);
    uint32_t whole_story = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        uint32_t n = next(fd, i, 0), all = n, above = 1 + 2 * (uint32_t)i;
        char own[CRAIL_PATH_MAX + 1];
        deep_path(own, above);
        bool told = is(0, CRAIL_CHANGE_PUT, own);
        whole_story += told;
        CHECK(told || (n == 2 && is(0, CRAIL_CHANGE_RESYNC, own)));
        for (; result(&R, 0)->flags & CRAIL_RESF_MORE; all += n)
            n = next(fd, i, result(&R, 0)->version);
        CHECK(is(n - 1, CRAIL_CHANGE_PUT, path) && (!told || all == CRAIL_PATH_MAX / 2 - above + 1));
    }
    CHECK(whole_story > 0 && whole_story < 100);
    close(fd);
    close(other);
    end();
}

/* Events of 2 KiB at 40 watches of one session that reads nothing, beside one that keeps up. */
static void test_who_reads_nothing_pays_with_its_oldest_events(void) {
    start(5000);
    enum { WATCHES = 40, PUTS = 400 };
    int fd = client(1), other = client(2), diligent = client(3);
    char path[CRAIL_PATH_MAX + 1], long_path[CRAIL_PATH_MAX + 1];
    uint64_t seen = 0;
    for (uint32_t i = 0; i < WATCHES; i++) {
        deep_path(path, 1 + i);
        CHECK(watch(fd, i, path) == 0);
    }
    CHECK(watch(diligent, 7, "/x") == 0); /* the log of another's */
    uint32_t len = deep_path(long_path, 1000);
    CHECK(put(other, 1, long_path, "v") == 0);
    while (next(diligent, 7, seen))
        seen = result(&R, 0)->version;
    for (uint64_t i = 0; i < PUTS; i++) {
        CHECK(put(other, 2 + i, long_path, "w") == 0);
        CHECK(next(diligent, 7, seen) == 1 && is(0, CRAIL_CHANGE_PUT, long_path));
        seen++;
    }
    CHECK(charge(1) <= CRAIL_RPC_WATCH_BYTES_MAX && charge(1) > CRAIL_RPC_WATCH_BYTES_MAX / 2);
    CHECK(charge(3) < 3 * CRAIL_RPC_CHUNK_BYTES_MAX);
    CHECK(len == 2000 && watch(fd, 5000, "/") == 0); /* small enough, perhaps: then until it is not */
    uint32_t more = 0;
    for (int rc = 0; !rc; more++) {
        deep_path(path, CRAIL_PATH_MAX / 2);
        path[1] = 'y';
        rc = watch(fd, 6000 + more, path);
        CHECK(rc == 0 || rc == CRAIL_E_QUOTA_EXCEEDED);
    }
    CHECK(more < 200);
    for (uint64_t i = 0; i < WATCHES; i++) {
        uint32_t n = next(fd, i, 0);
        deep_path(path, 1 + (uint32_t)i);
        CHECK(n && is(0, CRAIL_CHANGE_RESYNC, path)); /* lost some, and says so */
        CHECK(n == 1 || is(n - 1, CRAIL_CHANGE_PUT, long_path));
        for (uint64_t at = result(&R, 0)->version; next(fd, i, at); at = result(&R, 0)->version)
            ;
    }
    CHECK(watch(fd, 9000, "/other") == 0); /* it has read, and has room again */
    close(fd);
    close(other);
    close(diligent);
    end();
}

/* What a watch says of its own path is what is there, however spots parted and were joined meanwhile. */
static void test_the_last_event_of_a_watched_path_is_the_truth(void) {
    start(5000);
    enum { WATCHES = 60, CHANGES = 3000 };
    int fd = client(1), other = client(2);
    static char at[WATCHES][64];
    uint64_t seen[WATCHES] = {0}, events = 0, resyncs = 0, ends = 0;
    int there[WATCHES]; /* -1: not known */
    for (uint64_t i = 0; i < WATCHES; i++)
        at[i][0] = 0;
    for (uint64_t step = 0; step < CHANGES; step++) {
        uint64_t i = (uint64_t)rand_r(&seed) % WATCHES;
        if (!at[i][0] || rand_r(&seed) % 20 == 0) {
            if (at[i][0])
                end_hold(fd, ++ends, i, 0);
            random_path(at[i], 7);
            if (watch(fd, i, at[i])) /* there is a leaf above */
                at[i][0] = 0;
            seen[i] = 0;
            there[i] = at[i][0] && one(fd, 0, CRAIL_OP_STAT, at[i], NULL, 0) == 0;
        }
        change_at_random(other, 1 + step);
        if (step % 50 != 49)
            continue;
        until_told();
        for (uint64_t w = 0; w < WATCHES; w++) {
            uint32_t n = at[w][0] ? next(fd, w, seen[w]) : 0;
            for (uint32_t e = 0; e < n; e++) {
                if (is(e, CRAIL_CHANGE_PUT, at[w]))
                    there[w] = 1;
                else if (is(e, CRAIL_CHANGE_DELETE, at[w]))
                    there[w] = 0;
                else if (is(e, CRAIL_CHANGE_RESYNC, at[w]))
                    there[w] = -1;
                resyncs += is(e, CRAIL_CHANGE_RESYNC, at[w]);
            }
            events += n;
            seen[w] = n ? result(&R, 0)->version : seen[w];
            int is_there = at[w][0] ? one(fd, 0, CRAIL_OP_STAT, at[w], NULL, 0) == 0 : -1;
            CHECK(!at[w][0] || there[w] < 0 || there[w] == is_there);
            there[w] = is_there;
        }
    }
    printf("  %u events, %u of them resync\n", (unsigned)events, (unsigned)resyncs);
    CHECK(events > 1000 && resyncs < events / 4);
    close(fd);
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

/* Each once; in any order, as some are set aside while the client has too much to take. */
static void all_have_entered(int fd, uint64_t round) {
    static bool seen[CROWD];
    memset(seen, 0, sizeof seen);
    for (uint64_t i = 0; i + 1 < CROWD; i++) {
        CHECK(take(fd, &R) && R.head.count == 1 && R.head.id + 1 < CROWD && !seen[R.head.id]);
        CHECK(result(&R, 0)->status == 0 && result(&R, 0)->version == round);
        seen[R.head.id] = true;
    }
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
        all_have_entered(fd, round);
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
    static const struct rpc_test tests[] = {
        T(test_a_watch_sees_its_node_and_all_below),
        T(test_next_waits),
        T(test_who_waits_for_a_watch_does_not_go_over_to_the_next_of_its_token),
        T(test_a_watch_that_is_not_read_loses_the_oldest_and_says_so),
        T(test_a_watch_below_what_comes_and_goes),
        T(test_watches_go_with_their_session),
        T(test_a_deep_watch_costs_its_path_and_little_else),
        T(test_made_parents_are_told_to_every_watch_on_their_way),
        T(test_thousands_of_made_parents_under_many_watches_are_a_resync),
        T(test_who_reads_nothing_pays_with_its_oldest_events),
        T(test_the_last_event_of_a_watched_path_is_the_truth),
        T(test_takers_are_served_in_the_order_of_their_arrival),
        T(test_an_item_of_a_session_that_ends_goes_to_who_waits),
        T(test_a_barrier_of_ten_thousand),
        T(test_a_barrier_breaks_for_all_when_a_session_ends),
        T(test_who_gave_up_at_a_barrier_does_not_come_back),
        T(test_who_waits_at_a_barrier_that_is_renamed_is_told),
        T(test_a_random_life),
    };
    return run_seeded(tests, sizeof tests / sizeof *tests, argc, argv);
}
