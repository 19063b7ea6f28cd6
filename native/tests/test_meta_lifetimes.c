/* Nodes that end by themselves: by time, with their session, when space is short. sources: meta base */
#include "meta_kit.h"

#define SECOND (1000000000ll)
#define TTL(seconds) \
    ((struct crail_options){.flags = CRAIL_OPTION_TTL, .ttl_ns = (seconds) * SECOND, .storage_class = CRAIL_CLASS_ANY})
#define FLAGS(f) ((struct crail_options){.flags = (f), .storage_class = CRAIL_CLASS_ANY})

static struct crail_stat stat_of(struct kit *k, const char *path) {
    struct crail_stat st;
    struct answer a = kit_stat(k, path);
    WANT(a, OK);
    memcpy(&st, a.data, sizeof(st));
    return st;
}

static struct answer put_with(struct kit *k, struct crail_options o, const char *path, const char *value) {
    kit_with(k, o);
    return kit_put(k, 0, path, value, (uint32_t)strlen(value));
}

/* ---- time ------------------------------------------------------------------------- */

static void a_node_goes_when_its_time_is_over_and_not_before(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    assert(crail_meta_next_expiry(k.m) == INT64_MAX);
    WANT(put_with(&k, TTL(10), "/a", "x"), OK);
    struct crail_stat st = stat_of(&k, "/a");
    assert(st.flags == CRAIL_OPTION_TTL && st.expires_ns == st.mtime_ns + 10 * SECOND);
    assert(crail_meta_next_expiry(k.m) == st.expires_ns);
    kit_pass(&k, 9 * SECOND);
    WANT(kit_get(&k, "/a"), OK);
    kit_check(&k);
    kit_pass(&k, SECOND);
    WANT(kit_get(&k, "/a"), E(NOT_FOUND));
    assert(crail_meta_next_expiry(k.m) == INT64_MAX && stats_of(&k).arena_bytes_used == bytes);
    kit_check(&k);
    kit_close(&k);
}

static void each_commit_begins_the_time_again_and_says_what_holds(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(put_with(&k, TTL(10), "/a", "1"), OK);
    kit_pass(&k, 8 * SECOND);
    WANT(kit_op(&k, CRAIL_OP_INCR, 0, "/a", NULL, 0, 0, 1, 0), OK);
    kit_pass(&k, 8 * SECOND);
    WANT(kit_op(&k, CRAIL_OP_TRUNCATE, 0, "/a", NULL, 0, 0, 0, 3), OK);
    kit_pass(&k, 8 * SECOND);
    WANT(kit_get(&k, "/a"), OK);
    WANT(put_with(&k, TTL(100), "/a", "2"), OK);
    kit_pass(&k, 99 * SECOND);
    WANT(kit_put(&k, 0, "/a", "3", 1), OK); /* says nothing of an end */
    assert(stat_of(&k, "/a").expires_ns == 0 && crail_meta_next_expiry(k.m) == INT64_MAX);
    kit_pass(&k, 1000 * SECOND);
    WANT(kit_get(&k, "/a"), OK);
    kit_with(&k, TTL(10));
    WANT(kit_op(&k, CRAIL_OP_SETATTR, 0, "/a", NULL, 0, 0, 0, 0), OK);
    kit_with(&k, TTL(0));
    WANT(kit_op(&k, CRAIL_OP_SETATTR, 0, "/a", NULL, 0, 0, 0, 0), OK);
    kit_pass(&k, 1000 * SECOND);
    WANT(kit_get(&k, "/a"), OK);
    kit_check(&k);
    kit_close(&k);
}

static void an_edit_keeps_what_was_said_and_adds_to_it(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 16);
    kit_with(&k, (struct crail_options){.flags = CRAIL_OPTION_TTL | CRAIL_OPTION_SESSION,
                                        .ttl_ns = 10 * SECOND,
                                        .storage_class = CRAIL_CLASS_ANY});
    WANT(kit_put(&k, 0, "/a", "1", 1), OK);
    kit_pass(&k, 8 * SECOND);
    WANT(kit_put(&k, CRAIL_OPF_EDIT, "/a", "2", 1), OK);
    struct crail_stat st = stat_of(&k, "/a");
    assert(st.flags == (CRAIL_OPTION_TTL | CRAIL_OPTION_SESSION) && st.expires_ns == st.mtime_ns + 10 * SECOND);
    struct answer a = kit_alloc(&k, 0, 5000);
    struct crail_extent e = extent_at(&a, 0);
    kit_with(&k, FLAGS(CRAIL_OPTION_EVICTABLE));
    WANT(kit_commit(&k, CRAIL_OPF_EDIT, "/a", &e, 1, 0, 5000), OK);
    st = stat_of(&k, "/a");
    assert(st.flags == (CRAIL_OPTION_TTL | CRAIL_OPTION_SESSION | CRAIL_OPTION_EVICTABLE) && st.expires_ns);
    kit_with(&k, TTL(50));
    WANT(kit_put(&k, CRAIL_OPF_EDIT, "/a", "3", 1), OK);
    st = stat_of(&k, "/a");
    assert(st.flags & CRAIL_OPTION_SESSION && st.expires_ns == st.mtime_ns + 50 * SECOND);
    WANT(kit_put(&k, CRAIL_OPF_EDIT, "/new", "4", 1), OK);
    assert(stat_of(&k, "/new").flags == 0);
    kit_check(&k);
    kit_close(&k);
}

static void a_container_goes_with_all_below(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_with(&k, TTL(10));
    WANT(kit_mkdir(&k, 0, "/d"), OK);
    kit_with(&k, TTL(5));
    WANT(kit_make(&k, 0, CRAIL_KIND_TABLE, "/d/t"), OK);
    WANT(put_with(&k, TTL(20), "/d/t/a", "x"), OK);
    WANT(kit_put(&k, 0, "/d/b", "x", 1), OK);
    kit_pass(&k, 5 * SECOND);
    WANT(kit_get(&k, "/d/t/a"), E(NOT_FOUND));
    WANT(kit_get(&k, "/d/b"), OK);
    kit_pass(&k, 5 * SECOND);
    WANT(kit_stat(&k, "/d"), E(NOT_FOUND));
    assert(stats_of(&k).nodes == 1 && crail_meta_next_expiry(k.m) == INT64_MAX);
    kit_check(&k);
    kit_close(&k);
}

static void many_expire_in_order_whatever_came_between(void) {
    struct kit k;
    uint64_t seed = 4711;
    char path[32];
    kit_open(&k, 256 << 20);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    enum { ALL = 40000 }; /* more than two chunks of the heap hold */
    static uint32_t ends[ALL];
    for (uint32_t i = 0; i < ALL; i++) {
        sprintf(path, "/%u", i);
        ends[i] = 1 + kit_random(&seed, 100);
        WANT(put_with(&k, TTL((int64_t)ends[i] * 1000), path, "x"), OK);
    }
    kit_check(&k);
    for (uint32_t i = 0; i < ALL; i += 3) {
        sprintf(path, "/%u", i);
        if (i % 2)
            WANT(kit_remove(&k, 0, path), OK);
        else
            WANT(put_with(&k, TTL((int64_t)(ends[i] = 50) * 1000), path, "y"), OK);
        if (i % 2)
            ends[i] = 0;
    }
    kit_check(&k);
    for (uint32_t t = 10; t <= 110; t += 20) {
        kit_pass(&k, (t == 10 ? 10 : 20) * 1000 * SECOND);
        for (uint32_t i = 0; i < ALL; i += 7) {
            sprintf(path, "/%u", i);
            WANT(kit_get(&k, path), ends[i] > t ? OK : E(NOT_FOUND));
        }
        kit_check(&k);
    }
    assert(stats_of(&k).nodes == 1 && stats_of(&k).arena_bytes_used == bytes);
    kit_close(&k);
}

static void what_expires_is_done_in_steps(void) {
    struct kit k;
    char path[32];
    kit_open(&k, 256 << 20);
    for (uint32_t i = 0; i < 5000; i++) {
        sprintf(path, "/%u", i);
        WANT(put_with(&k, TTL(1), path, "x"), OK);
    }
    crail_meta_clock(k.m, k.now_ns + 2 * SECOND);
    assert(crail_meta_step(k.m, 0) && stats_of(&k).nodes > 4900);
    kit_check(&k);
    kit_settle(&k);
    assert(stats_of(&k).nodes == 1);
    kit_close(&k);
}

/* ---- sessions ---------------------------------------------------------------------- */

static void what_a_session_owns_goes_with_it(void) {
    struct kit k;
    struct crail_meta_session *other;
    char path[32];
    kit_open(&k, 64 << 20);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    assert(crail_meta_session_open(k.m, 99, &other) == 0);
    struct crail_meta_session *mine = k.s;
    k.s = other;
    kit_with(&k, FLAGS(CRAIL_OPTION_SESSION));
    WANT(kit_mkdir(&k, 0, "/s"), OK);
    for (uint32_t i = 0; i < 500; i++) {
        sprintf(path, "/s/%u", i);
        WANT(i % 2 ? put_with(&k, FLAGS(CRAIL_OPTION_SESSION), path, "x") : kit_put(&k, 0, path, "x", 1), OK);
    }
    WANT(put_with(&k, FLAGS(CRAIL_OPTION_SESSION), "/alone", "x"), OK);
    WANT(put_with(&k, FLAGS(CRAIL_OPTION_SESSION), "/taken", "x"), OK);
    WANT(put_with(&k, FLAGS(CRAIL_OPTION_SESSION), "/given", "x"), OK);
    k.s = mine;
    WANT(put_with(&k, FLAGS(CRAIL_OPTION_SESSION), "/taken", "y"), OK);
    WANT(kit_put(&k, 0, "/given", "y", 1), OK);
    assert(stat_of(&k, "/given").flags == 0 && stat_of(&k, "/taken").flags == CRAIL_OPTION_SESSION);
    kit_check(&k);
    crail_meta_session_end(k.m, other);
    kit_check(&k);
    kit_settle(&k);
    WANT(kit_stat(&k, "/s"), E(NOT_FOUND));
    WANT(kit_stat(&k, "/alone"), E(NOT_FOUND));
    WANT(kit_get(&k, "/taken"), OK);
    WANT(kit_get(&k, "/given"), OK);
    assert(stats_of(&k).nodes == 3);
    WANT(kit_remove(&k, 0, "/taken"), OK);
    WANT(kit_remove(&k, 0, "/given"), OK);
    assert(stats_of(&k).arena_bytes_used == bytes);
    kit_check(&k);
    kit_close(&k);
}

static void a_session_may_end_while_its_tree_is_being_freed(void) {
    struct kit k;
    char path[32];
    kit_open(&k, 64 << 20);
    struct crail_meta_session *mine = k.s;
    assert(crail_meta_session_open(k.m, 99, &k.s) == 0);
    WANT(kit_mkdir(&k, CRAIL_OPF_PARENTS, "/d/e"), OK);
    for (uint32_t i = 0; i < 400; i++) {
        sprintf(path, "/d/e/%u", i);
        WANT(put_with(&k, FLAGS(CRAIL_OPTION_SESSION), path, "x"), OK);
    }
    WANT(kit_rmtree(&k, "/d"), OK);
    crail_meta_session_end(k.m, k.s);
    k.s = mine;
    do
        kit_check(&k);
    while (crail_meta_step(k.m, 0));
    assert(stats_of(&k).nodes == 1);
    kit_check(&k);
    kit_close(&k);
}

/* ---- reading once ---------------------------------------------------------------------- */

static void who_reads_it_all_may_remove_that_version(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(put_with(&k, FLAGS(CRAIL_OPTION_DELETE_AFTER_READ), "/a", "x"), OK);
    struct answer a = kit_get(&k, "/a");
    WANT(a, OK);
    assert(a.r.flags == (CRAIL_RESF_INLINE | CRAIL_RESF_DELETE_AFTER_READ));
    uint64_t read = a.r.version;
    WANT(put_with(&k, FLAGS(CRAIL_OPTION_DELETE_AFTER_READ), "/a", "y"), OK);
    WANT(kit_op(&k, CRAIL_OP_REMOVE, CRAIL_OPF_IF_VERSION, "/a", NULL, 0, 0, read, 0), E(VERSION_CONFLICT));
    read = kit_get(&k, "/a").r.version;
    WANT(kit_op(&k, CRAIL_OP_REMOVE, CRAIL_OPF_IF_VERSION | CRAIL_OPF_LEAF_ONLY, "/a", NULL, 0, 0, read, 0), OK);
    WANT(kit_get(&k, "/a"), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

/* ---- space ------------------------------------------------------------------------------ */

static uint64_t commit_with(struct kit *k, struct crail_options o, const char *path, uint64_t bytes) {
    struct answer a = kit_alloc(k, CRAIL_OPF_ONE_EXTENT, bytes);
    WANT(a, OK);
    struct crail_extent e = extent_at(&a, 0);
    kit_with(k, o);
    a = kit_commit(k, 0, path, &e, 1, 0, bytes);
    WANT(a, OK);
    return a.r.version;
}

static void the_oldest_evictable_values_go_when_a_grant_finds_no_space(void) {
    struct kit k;
    char path[16];
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, 32);
    commit_with(&k, FLAGS(0), "/kept", 4096 * 8);
    for (uint32_t i = 0; i < 6; i++) {
        sprintf(path, "/%u", i);
        commit_with(&k, FLAGS(CRAIL_OPTION_EVICTABLE), path, 4096 * 4);
    }
    WANT(kit_alloc(&k, 0, 4096), E(OUT_OF_SPACE)); /* nothing is free: the oldest begins to go */
    WANT(kit_stat(&k, "/0"), E(NOT_FOUND));
    WANT(kit_stat(&k, "/1"), OK);
    kit_check(&k);
    WANT(kit_alloc(&k, 0, 4096), E(OUT_OF_SPACE)); /* its space is on its way: no other has to go */
    WANT(kit_stat(&k, "/1"), OK);
    assert(kit_retire(&k, sv) == 1);
    WANT(kit_alloc(&k, 0, 4096), OK);
    /* One commit makes a value the youngest. */
    struct answer a = kit_alloc(&k, 0, 4096 * 2);
    WANT(a, OK);
    struct crail_extent e = extent_at(&a, 0);
    kit_with(&k, FLAGS(CRAIL_OPTION_EVICTABLE));
    WANT(kit_commit(&k, 0, "/1", &e, 1, 0, 4096), OK);
    kit_retire(&k, sv);
    WANT(kit_alloc(&k, 0, 4096 * 12), E(OUT_OF_SPACE));
    WANT(kit_stat(&k, "/2"), E(NOT_FOUND));
    WANT(kit_stat(&k, "/3"), E(NOT_FOUND));
    WANT(kit_stat(&k, "/1"), OK);
    kit_retire(&k, sv);
    WANT(kit_alloc(&k, 0, 4096 * 12), OK);
    WANT(kit_alloc(&k, 0, 4096 * 33), E(OUT_OF_SPACE)); /* more than there is: nothing goes for it */
    WANT(kit_stat(&k, "/1"), OK);
    WANT(kit_stat(&k, "/kept"), OK);
    kit_check(&k);
    kit_close(&k);
}

static void what_is_pinned_on_its_way_does_not_keep_others_from_going(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 16);
    commit_with(&k, FLAGS(CRAIL_OPTION_EVICTABLE), "/a", 4096 * 8);
    commit_with(&k, FLAGS(CRAIL_OPTION_EVICTABLE), "/b", 4096 * 8);
    WANT(kit_alloc(&k, 0, 4096), E(OUT_OF_SPACE));
    WANT(kit_stat(&k, "/a"), E(NOT_FOUND)); /* but a view keeps its bytes */
    WANT(kit_alloc(&k, 0, 4096), E(OUT_OF_SPACE));
    WANT(kit_stat(&k, "/b"), OK);
    k.now_ns += SECOND;
    WANT(kit_alloc(&k, 0, 4096), E(OUT_OF_SPACE));
    WANT(kit_stat(&k, "/b"), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

/* ---- refusals ---------------------------------------------------------------------------- */

static void options_that_make_no_sense_are_refused_and_change_nothing(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(put_with(&k, FLAGS(1 << 15), "/a", "x"), E(INVALID_ARGUMENT));
    WANT(put_with(&k, (struct crail_options){.reserved = 1}, "/a", "x"), E(INVALID_ARGUMENT));
    WANT(put_with(&k, (struct crail_options){.flags = CRAIL_OPTION_TTL, .ttl_ns = UINT64_MAX}, "/a", "x"),
         E(INVALID_ARGUMENT));
    WANT(put_with(&k, (struct crail_options){.job = 12345}, "/a", "x"), E(NOT_FOUND));
    kit_with(&k, FLAGS(CRAIL_OPTION_EVICTABLE));
    WANT(kit_mkdir(&k, 0, "/d"), E(INVALID_ARGUMENT));
    kit_with(&k, TTL(1));
    WANT(kit_op(&k, CRAIL_OP_SETATTR, 0, "/", NULL, 0, 0, 0, 0), E(INVALID_ARGUMENT));
    kit_with(&k, TTL(1));
    WANT(kit_get(&k, "/"), E(INVALID_ARGUMENT)); /* takes none */
    assert(stats_of(&k).nodes == 1);
    kit_check(&k);
    kit_close(&k);
}

static void a_full_arena_refuses_a_node_with_an_end_and_changes_nothing(void) {
    struct kit k;
    char path[32];
    kit_open(&k, 2 << 20);
    uint32_t i = 0;
    struct answer a;
    do {
        sprintf(path, "/dir-%u/leaf", i++);
        kit_with(&k, TTL(1));
        a = kit_put(&k, CRAIL_OPF_PARENTS, path, "x", 1);
    } while (!a.status);
    WANT(a, E(NO_MEMORY));
    assert(i > 100);
    WANT(kit_get(&k, path), E(NOT_FOUND));
    kit_check(&k);
    kit_pass(&k, 2 * SECOND);
    kit_check(&k);
    kit_close(&k);
}

int main(void) {
    RUN(a_node_goes_when_its_time_is_over_and_not_before);
    RUN(each_commit_begins_the_time_again_and_says_what_holds);
    RUN(an_edit_keeps_what_was_said_and_adds_to_it);
    RUN(a_container_goes_with_all_below);
    RUN(many_expire_in_order_whatever_came_between);
    RUN(what_expires_is_done_in_steps);
    RUN(what_a_session_owns_goes_with_it);
    RUN(a_session_may_end_while_its_tree_is_being_freed);
    RUN(who_reads_it_all_may_remove_that_version);
    RUN(the_oldest_evictable_values_go_when_a_grant_finds_no_space);
    RUN(what_is_pinned_on_its_way_does_not_keep_others_from_going);
    RUN(options_that_make_no_sense_are_refused_and_change_nothing);
    RUN(a_full_arena_refuses_a_node_with_an_end_and_changes_nothing);
    return 0;
}
