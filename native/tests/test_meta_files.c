/* OPEN, APPEND, STREAM, FOLLOW: who keeps which granules, and who may write where. sources: meta base */
#include "meta/engine.h"
#include "meta_kit.h"

#define GRANULES 4096u

static struct answer kit_open_version(struct kit *k, const char *path, uint64_t token) {
    return kit_op(k, CRAIL_OP_OPEN, 0, path, NULL, 0, 0, token, 0);
}

static struct answer kit_append(struct kit *k, int flags, const char *path, uint64_t token) {
    return kit_op(k, CRAIL_OP_APPEND, flags, path, NULL, 0, flags & CRAIL_OPF_WAIT ? 10 : 0, token, 0);
}

static struct answer kit_stream(struct kit *k, const char *path, const struct crail_extent *e, uint32_t n,
                                uint64_t token, uint64_t bytes) {
    return kit_op(k, CRAIL_OP_STREAM, 0, path, e, n * 32, n, token, bytes);
}

static struct answer kit_follow(struct kit *k, int flags, const char *path, uint64_t token, uint64_t seen) {
    return kit_op(k, CRAIL_OP_FOLLOW, flags, path, NULL, 0, flags & CRAIL_OPF_WAIT ? 10 : 0, token, seen);
}

/* Grants of so many granules, as one extent. */
static struct crail_extent grant(struct kit *k, uint32_t granules) {
    struct answer a = kit_alloc(k, CRAIL_OPF_ONE_EXTENT, (uint64_t)granules * CRAIL_GRANULE);
    WANT(a, OK);
    return extent_at(&a, 0);
}

static struct crail_extent value(struct kit *k, const char *path, uint32_t granules, uint64_t bytes) {
    struct crail_extent e = grant(k, granules);
    WANT(kit_commit(k, CRAIL_OPF_PARENTS, path, &e, 1, 0, bytes), OK);
    return e;
}

static bool may_write(const struct kit *k, const struct crail_extent *e) {
    return e->key == crail_extent_key(k->m->mac_key, e, CRAIL_RIGHT_WRITE);
}

static struct crail_meta_session *another_session(struct kit *k) {
    struct crail_meta_session *s;
    assert(crail_meta_session_open(k->m, ++k->next_session, &s) == 0);
    return s;
}

/* Everything is as it was in an empty store. */
static void all_is_free(struct kit *k, uint32_t server) {
    kit_settle(k);
    kit_retire(k, server);
    assert(stats_of(k).granules_free == GRANULES && stats_of(k).holds == 0);
    kit_check(k);
}

/* ---- OPEN -------------------------------------------------------------------------- */

static void readers_keep_their_version_until_the_last_is_through(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    for (int how = 0; how < 4; how++) {
        struct crail_extent e = value(&k, "/d/a", 16, 50000);
        struct answer a = kit_open_version(&k, "/d/a", 1);
        WANT(a, OK);
        struct crail_extent seen = extent_at(&a, 0);
        assert(a.r.size == 50000 && seen.granule == e.granule && !may_write(&k, &seen));
        WANT(kit_open_version(&k, "/d/a", 2), OK);
        if (how == 0)
            WANT(kit_put(&k, 0, "/d/a", "x", 1), OK);
        else if (how == 1)
            WANT(kit_remove(&k, 0, "/d/a"), OK);
        else if (how == 2)
            WANT(kit_rmtree(&k, "/d"), OK);
        else
            value(&k, "/d/a", 8, 10);
        kit_settle(&k);
        kit_check(&k);
        kit_retire(&k, sv);
        assert(stats_of(&k).granules_used == (how == 3 ? 24 : 16));
        a = kit_open_version(&k, "/d/a", 1); /* a lost reply: the same answer */
        WANT(a, OK);
        assert(a.r.size == 50000 && extent_at(&a, 0).generation == seen.generation);
        WANT(kit_end(&k, 1), OK);
        kit_retire(&k, sv);
        assert(stats_of(&k).granules_used == (how == 3 ? 24 : 16));
        WANT(kit_end(&k, 2), OK);
        kit_check(&k);
        kit_retire(&k, sv);
        assert(stats_of(&k).granules_used == (how == 3 ? 8 : 0));
        if (how != 2)
            WANT(kit_rmtree(&k, "/d"), OK);
        all_is_free(&k, sv);
    }
    kit_close(&k);
}

static void a_reader_of_a_value_inside_its_node_holds_nothing(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(kit_put(&k, 0, "/a", "hello", 5), OK);
    struct answer a = kit_open_version(&k, "/a", 1);
    WANT(a, OK);
    assert(a.r.flags & CRAIL_RESF_INLINE && memcmp(a.data, "hello", 5) == 0 && stats_of(&k).holds == 0);
    WANT(kit_end(&k, 1), E(NOT_FOUND));
    WANT(kit_open_version(&k, "/", 1), E(IS_CONTAINER));
    WANT(kit_open_version(&k, "/b", 1), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

static void readers_of_a_session_that_ends_let_go(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    struct crail_meta_session *first = k.s, *other = another_session(&k);
    value(&k, "/a", 16, 50000);
    k.s = other;
    for (uint64_t token = 1; token <= 500; token++)
        WANT(kit_open_version(&k, "/a", token), OK);
    k.s = first;
    WANT(kit_remove(&k, 0, "/a"), OK);
    crail_meta_session_end(k.m, other);
    kit_check(&k);
    all_is_free(&k, sv);
    kit_close(&k);
}

static void readers_of_a_lost_server_are_told_so(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    value(&k, "/a", 16, 50000);
    WANT(kit_open_version(&k, "/a", 1), OK);
    assert(crail_meta_server_set(k.m, sv, CRAIL_SERVER_LOST) == 0);
    kit_check(&k);
    WANT(kit_open_version(&k, "/a", 1), E(DATA_LOST));
    WANT(kit_open_version(&k, "/a", 2), E(DATA_LOST));
    WANT(kit_remove(&k, 0, "/a"), OK);
    WANT(kit_end(&k, 1), OK);
    kit_check(&k);
    kit_close(&k);
}

static void a_token_means_one_thing(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, GRANULES);
    value(&k, "/a", 16, 50000);
    value(&k, "/b", 16, 50000);
    WANT(kit_open_version(&k, "/a", 1), OK);
    WANT(kit_append(&k, 0, "/a", 1), E(INVALID_ARGUMENT));
    WANT(kit_follow(&k, 0, "/a", 1, 0), E(INVALID_ARGUMENT));
    WANT(kit_append(&k, 0, "/a", 2), OK);
    WANT(kit_append(&k, 0, "/a", 2), OK);
    WANT(kit_append(&k, 0, "/b", 2), E(INVALID_ARGUMENT));
    WANT(kit_open_version(&k, "/b", 2), E(INVALID_ARGUMENT));
    kit_check(&k);
    kit_close(&k);
}

/* ---- APPEND -------------------------------------------------------------------------- */

static void one_appends_and_the_others_wait(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    value(&k, "/a", 16, 50000);
    struct answer a = kit_append(&k, 0, "/a", 1);
    WANT(a, OK);
    struct crail_extent tail = extent_at(&a, 0);
    assert(may_write(&k, &tail) && !(a.r.flags & CRAIL_RESF_TAIL_CLOSED));
    WANT(kit_append(&k, 0, "/a", 2), E(DEADLINE));
    WANT(kit_append(&k, CRAIL_OPF_WAIT, "/a", 2), KIT_WAITS);
    uint64_t version = kit_get(&k, "/a").r.version;
    a = kit_commit(&k, CRAIL_OPF_APPEND, "/a", NULL, 0, 1, 60000);
    WANT(a, OK);
    assert(a.r.version > version && a.r.size == 60000 && kit_get(&k, "/a").r.size == 60000);
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", NULL, 0, 1, 61000), E(NOT_FOUND)); /* the right ended */
    a = kit_append(&k, CRAIL_OPF_WAIT, "/a", 2);
    WANT(a, OK);
    tail = extent_at(&a, 0);
    assert(may_write(&k, &tail));
    struct crail_extent more[2] = {grant(&k, 4), grant(&k, 4)};
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", more, 2, 2, 200000), E(INVALID_ARGUMENT)); /* it does not fit */
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", more, 2, 2, 59999), E(INVALID_ARGUMENT));
    WANT(kit_commit(&k, CRAIL_OPF_APPEND | CRAIL_OPF_IF_ABSENT, "/a", more, 2, 2, 70000), E(INVALID_ARGUMENT));
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", more, 2, 2, 70000), OK); /* the second was not needed */
    a = kit_get(&k, "/a");
    assert(a.r.count == 2 && a.r.size == 70000 && stats_of(&k).granules_granted == 0);
    kit_check(&k);
    WANT(kit_remove(&k, 0, "/a"), OK);
    all_is_free(&k, sv);
    kit_close(&k);
}

static void readers_do_not_see_what_is_appended(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    value(&k, "/a", 16, 50000);
    WANT(kit_open_version(&k, "/a", 1), OK);
    WANT(kit_append(&k, 0, "/a", 2), OK);
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", NULL, 0, 2, 60000), OK);
    assert(kit_open_version(&k, "/a", 1).r.size == 50000);
    WANT(kit_remove(&k, 0, "/a"), OK);
    kit_retire(&k, sv);
    assert(stats_of(&k).granules_used == 16);
    WANT(kit_end(&k, 1), OK);
    all_is_free(&k, sv);
    kit_close(&k);
}

static void a_right_that_ends_without_commit_closes_the_tail(void) {
    for (int by_session = 0; by_session < 2; by_session++) {
        struct kit k;
        kit_open(&k, 64 << 20);
        uint32_t sv = kit_server(&k, 1, GRANULES);
        struct crail_meta_session *first = k.s, *other = another_session(&k);
        value(&k, "/a", 16, 50000);
        WANT(kit_open_version(&k, "/a", 7), OK);
        k.s = other;
        struct answer a = kit_append(&k, 0, "/a", 1);
        struct crail_extent old = extent_at(&a, 0);
        if (by_session)
            crail_meta_session_end(k.m, other);
        else
            WANT(kit_end(&k, 1), OK);
        kit_settle(&k);
        k.s = first;
        a = kit_append(&k, 0, "/a", 2);
        WANT(a, OK);
        struct crail_extent tail = extent_at(&a, 0), next = grant(&k, 32);
        assert(a.r.flags & CRAIL_RESF_TAIL_CLOSED && !may_write(&k, &tail) && tail.granule == old.granule);
        /* Not even the room behind the committed bytes counts. */
        WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", NULL, 0, 2, 50001), E(INVALID_ARGUMENT));
        WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", &next, 1, 2, 100000), OK);
        a = kit_get(&k, "/a");
        assert(a.r.count == 1 && extent_at(&a, 0).granule == next.granule);
        kit_check(&k);
        kit_retire(&k, sv);
        assert(stats_of(&k).granules_used == 48); /* the old tail has a reader */
        WANT(kit_end(&k, 7), OK);
        a = kit_append(&k, 0, "/a", 3);
        tail = extent_at(&a, 0);
        assert(!(a.r.flags & CRAIL_RESF_TAIL_CLOSED) && may_write(&k, &tail));
        WANT(kit_remove(&k, 0, "/a"), OK); /* with its appender */
        all_is_free(&k, sv);
        kit_close(&k);
    }
}

/* A session that is lost in the middle of its append, before or after somebody renames the file. */
static void a_rename_does_not_open_a_closed_tail(void) {
    for (int after = 0; after < 2; after++) {
        struct kit k;
        kit_open(&k, 64 << 20);
        kit_server(&k, 1, GRANULES);
        struct crail_meta_session *first = k.s, *other = another_session(&k);
        value(&k, "/a", 16, 50000);
        k.s = other;
        WANT(kit_append(&k, 0, "/a", 1), OK);
        if (after)
            crail_meta_session_end(k.m, other);
        k.s = first;
        WANT(kit_rename(&k, 0, "/a", "/b"), OK);
        if (!after)
            crail_meta_session_end(k.m, other);
        kit_settle(&k);
        struct answer a = kit_append(&k, 0, "/b", 2);
        WANT(a, OK);
        struct crail_extent tail = extent_at(&a, 0);
        assert(a.r.flags & CRAIL_RESF_TAIL_CLOSED && !may_write(&k, &tail));
        kit_check(&k);
        kit_close(&k);
    }
}

static void a_tail_without_room_stays_though_it_is_closed(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    value(&k, "/a", 16, 16 * CRAIL_GRANULE);
    WANT(kit_append(&k, 0, "/a", 1), OK);
    WANT(kit_end(&k, 1), OK);
    WANT(kit_append(&k, 0, "/a", 1), OK);
    struct crail_extent e = grant(&k, 4);
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", &e, 1, 1, 17 * CRAIL_GRANULE), OK);
    assert(kit_get(&k, "/a").r.count == 2);
    kit_check(&k);
    WANT(kit_remove(&k, 0, "/a"), OK);
    all_is_free(&k, sv);
    kit_close(&k);
}

static void an_append_to_what_was_replaced_is_refused(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, GRANULES);
    value(&k, "/a", 16, 50000);
    WANT(kit_append(&k, 0, "/a", 1), OK);
    value(&k, "/a", 16, 40000);
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", NULL, 0, 1, 60000), E(VERSION_CONFLICT));
    WANT(kit_end(&k, 1), OK);
    struct answer a = kit_append(&k, 0, "/a", 1);
    WANT(a, OK);
    assert(!(a.r.flags & CRAIL_RESF_TAIL_CLOSED)); /* he had no key for that one */
    kit_check(&k);
    kit_close(&k);
}

/* Else he could write behind a value whose tail nobody would close after him. */
static void an_appender_who_asks_again_gets_no_key_to_another_value(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, GRANULES);
    value(&k, "/a", 16, 50000);
    struct answer a = kit_append(&k, 0, "/a", 1);
    uint64_t version = a.r.version;
    assert(kit_append(&k, 0, "/a", 1).r.version == version);
    value(&k, "/a", 16, 40000);
    WANT(kit_append(&k, 0, "/a", 1), E(VERSION_CONFLICT));
    WANT(kit_end(&k, 1), OK);
    WANT(kit_append(&k, 0, "/a", 1), OK);
    kit_check(&k);
    kit_close(&k);
}

static void an_append_keeps_to_the_number_of_extents(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, GRANULES);
    struct crail_extent e[CRAIL_EXTENTS_MAX];
    for (uint32_t i = 0; i < CRAIL_EXTENTS_MAX; i++)
        e[i] = grant(&k, 1);
    WANT(kit_commit(&k, 0, "/a", e, CRAIL_EXTENTS_MAX, 0, CRAIL_EXTENTS_MAX * CRAIL_GRANULE), OK);
    WANT(kit_append(&k, 0, "/a", 1), OK);
    e[0] = grant(&k, 1);
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", e, 1, 1, CRAIL_EXTENTS_MAX * CRAIL_GRANULE + 1), E(INVALID_ARGUMENT));
    WANT(kit_commit(&k, CRAIL_OPF_APPEND, "/a", NULL, 0, 1, CRAIL_EXTENTS_MAX * CRAIL_GRANULE), OK);
    kit_check(&k);
    kit_close(&k);
}

/* ---- STREAM, FOLLOW --------------------------------------------------------------------- */

static void a_follower_sees_what_is_complete_and_then_the_version(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    struct crail_meta_session *writer = k.s, *reader = another_session(&k);
    k.s = reader;
    WANT(kit_follow(&k, 0, "/d/a", 1, 0), E(NOT_FOUND));
    WANT(kit_follow(&k, CRAIL_OPF_WAIT, "/d/a", 1, 0), KIT_WAITS);
    k.s = writer;
    struct crail_extent e[2] = {grant(&k, 4), grant(&k, 8)};
    WANT(kit_stream(&k, "/d/a", e, 1, 9, 4 * CRAIL_GRANULE + 1), E(INVALID_ARGUMENT));
    WANT(kit_stream(&k, "/d/a", e, 1, 9, 5000), OK);
    k.s = reader;
    struct answer a = kit_follow(&k, CRAIL_OPF_WAIT, "/d/a", 1, 0);
    WANT(a, OK);
    struct crail_extent seen = extent_at(&a, 0);
    assert(a.r.flags == CRAIL_RESF_MORE && a.r.size == 5000 && a.r.count == 1 && !may_write(&k, &seen));
    WANT(kit_follow(&k, CRAIL_OPF_WAIT, "/d/a", 1, 5000), KIT_WAITS);
    kit_check(&k);
    k.s = writer;
    WANT(kit_stream(&k, "/d/a", e, 1, 9, 4999), E(INVALID_ARGUMENT)); /* not less than before */
    WANT(kit_stream(&k, "/d/a", e + 1, 1, 9, 6000), E(INVALID_ARGUMENT));
    WANT(kit_stream(&k, "/d/a", e, 2, 9, 20000), OK);
    k.s = reader;
    a = kit_follow(&k, CRAIL_OPF_WAIT, "/d/a", 1, 5000);
    assert(a.r.size == 20000 && a.r.count == 2 && a.r.flags == CRAIL_RESF_MORE);
    k.s = writer;
    WANT(kit_commit(&k, CRAIL_OPF_PARENTS, "/d/a", e, 2, 0, 30000), OK);
    WANT(kit_end(&k, 9), E(NOT_FOUND)); /* it ended with the commit */
    WANT(kit_rmtree(&k, "/d"), OK);
    kit_settle(&k);
    kit_retire(&k, sv);
    kit_check(&k);
    k.s = reader;
    a = kit_follow(&k, CRAIL_OPF_WAIT, "/d/a", 1, 20000);
    WANT(a, OK);
    assert(a.r.size == 30000 && a.r.flags == 0 && a.r.version && stats_of(&k).granules_used == 12);
    WANT(kit_end(&k, 1), OK);
    all_is_free(&k, sv);
    kit_close(&k);
}

static void what_is_discarded_is_lost_to_its_followers(void) {
    for (int how = 0; how < 3; how++) {
        struct kit k;
        kit_open(&k, 64 << 20);
        uint32_t sv = kit_server(&k, 1, GRANULES);
        struct crail_meta_session *reader = k.s, *writer = another_session(&k);
        k.s = writer;
        struct crail_extent e = grant(&k, 4);
        WANT(kit_stream(&k, "/a", &e, 1, 9, 5000), OK);
        k.s = reader;
        WANT(kit_follow(&k, 0, "/a", 1, 0), OK);
        k.s = writer;
        if (how == 0)
            WANT(kit_end(&k, 9), OK);
        else if (how == 1)
            crail_meta_session_end(k.m, writer);
        else
            assert(crail_meta_server_set(k.m, sv, CRAIL_SERVER_LOST) == 0);
        k.s = reader;
        WANT(kit_follow(&k, CRAIL_OPF_WAIT, "/a", 1, how == 2 ? 0 : 5000), E(DATA_LOST));
        kit_check(&k);
        if (how < 2)
            WANT(kit_follow(&k, 0, "/a", 2, 0), E(NOT_FOUND));
        WANT(kit_end(&k, 1), OK);
        kit_check(&k);
        kit_close(&k);
    }
}

static void what_is_complete_is_followed_to_its_end(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    WANT(kit_put(&k, 0, "/small", "x", 1), OK);
    assert(kit_follow(&k, CRAIL_OPF_WAIT, "/small", 1, 0).r.flags == CRAIL_RESF_INLINE && stats_of(&k).holds == 0);
    value(&k, "/a", 4, 5000);
    struct answer a = kit_follow(&k, CRAIL_OPF_WAIT, "/a", 1, 0);
    assert(a.r.size == 5000 && a.r.flags == 0 && a.r.data_len == 32 && stats_of(&k).holds == 1);
    WANT(kit_remove(&k, 0, "/a"), OK);
    a = kit_follow(&k, 0, "/a", 1, 5000);
    assert(a.status == OK && a.r.size == 5000);
    WANT(kit_end(&k, 1), OK);
    all_is_free(&k, sv);
    kit_close(&k);
}

/* What a request waits at is its path: so it is looked at although the token says it all. */
static void a_token_that_follows_does_not_wait_at_another_path(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, GRANULES);
    struct crail_extent e = grant(&k, 4);
    WANT(kit_stream(&k, "/a", &e, 1, 1, 100), OK);
    WANT(kit_follow(&k, CRAIL_OPF_WAIT, "/a", 2, 100), KIT_WAITS);
    WANT(kit_follow(&k, CRAIL_OPF_WAIT, "/b", 2, 100), E(INVALID_ARGUMENT));
    WANT(kit_follow(&k, CRAIL_OPF_WAIT, "no path", 2, 100), E(INVALID_PATH));
    char *path = malloc(CRAIL_PATH_MAX + 3);
    for (uint32_t i = 0; i <= CRAIL_PATH_MAX; i += 2)
        memcpy(path + i, "/a", 3);
    WANT(kit_follow(&k, CRAIL_OPF_WAIT, path, 2, 100), E(INVALID_PATH));
    free(path);
    WANT(kit_follow(&k, CRAIL_OPF_WAIT, "/a", 2, 99), OK);
    WANT(kit_end(&k, 1), OK);
    WANT(kit_end(&k, 2), OK);
    WANT(kit_release(&k, &e, 1), OK);
    all_is_free(&k, sv);
    kit_close(&k);
}

/* ---- all at once --------------------------------------------------------------------------- */

#define SESSIONS 3
#define TOKENS 12

static void random_step(struct kit *k, uint64_t *random, uint32_t sv) {
    static const char *const paths[] = {"/a", "/b", "/d/a", "/d/b"};
    const char *path = paths[kit_random(random, 4)];
    uint64_t token = 1 + kit_random(random, TOKENS);
    struct crail_extent e[2];
    struct answer a;
    switch (kit_random(random, 11)) {
    case 0:
        kit_open_version(k, path, token);
        break;
    case 1:
        kit_append(k, kit_random(random, 2) ? CRAIL_OPF_WAIT : 0, path, token);
        break;
    case 2:
        kit_follow(k, kit_random(random, 2) ? CRAIL_OPF_WAIT : 0, path, token, kit_random(random, 20000));
        break;
    case 3:
    case 4:
        kit_end(k, token);
        break;
    case 5:
        kit_rmtree(k, kit_random(random, 3) ? path : "/d");
        break;
    case 6:
    case 7:
        a = kit_alloc(k, CRAIL_OPF_ONE_EXTENT, 1 + kit_random(random, 30000));
        if (a.status)
            break;
        e[0] = extent_at(&a, 0);
        if (kit_random(random, 2))
            kit_stream(k, path, e, 1, token, kit_random(random, 5000));
        if (kit_random(random, 3))
            a = kit_commit(k, CRAIL_OPF_PARENTS, path, e, 1, 0, 1 + kit_random(random, 5000));
        else
            a = kit_release(k, e, 1);
        break;
    case 8:
        a = kit_alloc(k, CRAIL_OPF_ONE_EXTENT, 1 + kit_random(random, 30000));
        if (a.status)
            break;
        e[0] = extent_at(&a, 0);
        a = kit_get(k, path);
        if (kit_commit(k, CRAIL_OPF_APPEND, path, e, 1, token, a.r.size + kit_random(random, 9000)).status)
            WANT(kit_release(k, e, 1), OK);
        break;
    case 9:
        kit_put(k, CRAIL_OPF_PARENTS, path, "x", 1);
        break;
    case 10:
        kit_retire(k, sv);
    }
}

static void a_random_life_keeps_its_accounts(void) {
    uint64_t seed = kit_clock_ns(), random = seed;
    struct crail_meta_session *s[SESSIONS];
    struct kit k;
    printf("seed %llu\n", (unsigned long long)seed);
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 2, GRANULES / 2);
    for (int i = 0; i < SESSIONS; i++)
        s[i] = another_session(&k);
    for (int step = 0; step < 20000; step++) {
        uint32_t who = kit_random(&random, SESSIONS);
        k.s = s[who];
        random_step(&k, &random, sv);
        if (kit_random(&random, 500) == 0) {
            crail_meta_session_end(k.m, s[who]);
            kit_settle(&k);
            s[who] = another_session(&k);
        }
        if (step % 50 == 0)
            kit_check(&k);
    }
    for (int i = 0; i < SESSIONS; i++)
        crail_meta_session_end(k.m, s[i]);
    k.s = another_session(&k);
    static const char *const all[] = {"/a", "/b", "/d"};
    for (int i = 0; i < 3; i++)
        kit_rmtree(&k, all[i]);
    all_is_free(&k, sv);
    kit_close(&k);
}

int main(void) {
    RUN(readers_keep_their_version_until_the_last_is_through);
    RUN(a_reader_of_a_value_inside_its_node_holds_nothing);
    RUN(readers_of_a_session_that_ends_let_go);
    RUN(readers_of_a_lost_server_are_told_so);
    RUN(a_token_means_one_thing);
    RUN(one_appends_and_the_others_wait);
    RUN(readers_do_not_see_what_is_appended);
    RUN(a_right_that_ends_without_commit_closes_the_tail);
    RUN(a_tail_without_room_stays_though_it_is_closed);
    RUN(a_rename_does_not_open_a_closed_tail);
    RUN(an_append_to_what_was_replaced_is_refused);
    RUN(an_appender_who_asks_again_gets_no_key_to_another_value);
    RUN(an_append_keeps_to_the_number_of_extents);
    RUN(a_follower_sees_what_is_complete_and_then_the_version);
    RUN(what_is_discarded_is_lost_to_its_followers);
    RUN(what_is_complete_is_followed_to_its_end);
    RUN(a_token_that_follows_does_not_wait_at_another_path);
    RUN(a_random_life_keeps_its_accounts);
    return 0;
}
