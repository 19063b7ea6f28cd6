/* Holds: found by session and token, ended by END, with their session, with their node. sources: meta base */
#include "meta_kit.h"

static crail_ref node_of(struct kit *k, const char *path) {
    struct crail_walk w;
    assert(crail_path_walk(k->m, path, (uint32_t)strlen(path), &w) == 0 && w.node);
    return w.node;
}

static void a_hold_is_found_by_its_session_and_token_until_it_ends(void) {
    struct kit k;
    struct crail_meta_session *other;
    kit_open(&k, 64 << 20);
    assert(crail_meta_session_open(k.m, 77, &other) == 0);
    WANT(kit_put(&k, 0, "/a", "x", 1), OK);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    crail_ref a = node_of(&k, "/a");
    for (uint64_t token = 1; token <= 5000; token++) {
        assert(crail_hold_add(k.m, k.s, CRAIL_HOLD_OPEN, token, token % 3 ? a : 0));
        assert(crail_hold_add(k.m, other, CRAIL_HOLD_OPEN, token, a));
    }
    assert(stats_of(&k).holds == 10000);
    kit_check(&k);
    for (uint64_t token = 1; token <= 5000; token++) {
        assert(crail_hold_at(k.m, crail_hold_find(k.m, k.s, token))->kind == CRAIL_HOLD_OPEN);
        assert(crail_hold_at(k.m, crail_hold_find(k.m, other, token))->kind == CRAIL_HOLD_OPEN);
        WANT(kit_end(&k, token), OK);
        WANT(kit_end(&k, token), E(NOT_FOUND));
        assert(!crail_hold_find(k.m, k.s, token) && crail_hold_find(k.m, other, token));
    }
    kit_check(&k);
    crail_meta_session_end(k.m, other);
    kit_settle(&k);
    assert(stats_of(&k).holds == 0 && stats_of(&k).arena_bytes_used == bytes);
    kit_check(&k);
    kit_close(&k);
}

static void a_node_that_goes_ends_its_holds_however_many_they_are(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(kit_mkdir(&k, 0, "/d"), OK);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    WANT(kit_mkdir(&k, 0, "/d/e"), OK);
    WANT(kit_put(&k, 0, "/d/e/f", "x", 1), OK);
    WANT(kit_put(&k, 0, "/d/g", "x", 1), OK);
    const char *const held[] = {"/d/e", "/d/e/f", "/d/g"};
    for (uint64_t token = 1; token <= 300; token++)
        assert(crail_hold_add(k.m, k.s, CRAIL_HOLD_OPEN, token, node_of(&k, held[token % 3])));
    WANT(kit_remove(&k, 0, "/d/g"), OK);
    WANT(kit_get(&k, "/d/g"), E(NOT_FOUND));
    kit_check(&k);
    WANT(kit_rmtree(&k, "/d/e"), OK);
    kit_check(&k);
    kit_settle(&k);
    assert(stats_of(&k).holds == 0 && stats_of(&k).background_pending == 0);
    assert(stats_of(&k).arena_bytes_used == bytes);
    WANT(kit_end(&k, 1), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

static void between_the_steps_a_removed_tree_is_as_it_should_be(void) {
    struct kit k;
    char path[32];
    kit_open(&k, 64 << 20);
    for (uint32_t i = 0; i < 100; i++) {
        sprintf(path, "/d/%u", i);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, "x", 1), OK);
    }
    assert(crail_hold_add(k.m, k.s, CRAIL_HOLD_OPEN, 1, node_of(&k, "/d")));
    WANT(kit_rmtree(&k, "/d"), OK);
    do
        kit_check(&k); /* its hold is gone, and its children are not yet */
    while (crail_meta_step(k.m, 0));
    assert(stats_of(&k).nodes == 1);
    kit_close(&k);
}

static void a_dying_session_and_a_dying_node_may_share_holds(void) {
    struct kit k;
    struct crail_meta_session *other;
    kit_open(&k, 64 << 20);
    assert(crail_meta_session_open(k.m, 77, &other) == 0);
    WANT(kit_put(&k, 0, "/a", "x", 1), OK);
    for (uint64_t token = 1; token <= 1000; token++)
        assert(crail_hold_add(k.m, other, CRAIL_HOLD_MEMBER, token, node_of(&k, "/a")));
    crail_meta_session_end(k.m, other);
    WANT(kit_remove(&k, 0, "/a"), OK);
    do
        kit_check(&k);
    while (crail_meta_step(k.m, 0));
    assert(stats_of(&k).holds == 0 && stats_of(&k).nodes == 1);
    kit_check(&k);
    kit_close(&k);
}

static void without_memory_a_hold_is_refused_and_nothing_is_left(void) {
    struct kit k;
    kit_open(&k, 1 << 20);
    WANT(kit_put(&k, 0, "/a", "x", 1), OK);
    uint64_t token = 1;
    while (crail_hold_add(k.m, k.s, CRAIL_HOLD_OPEN, token, node_of(&k, "/a")))
        token++;
    assert(token > 100);
    kit_check(&k);
    assert(!crail_hold_find(k.m, k.s, token));
    while (--token)
        WANT(kit_end(&k, token), OK);
    assert(stats_of(&k).holds == 0);
    kit_check(&k);
    kit_close(&k);
}

int main(void) {
    RUN(a_hold_is_found_by_its_session_and_token_until_it_ends);
    RUN(a_node_that_goes_ends_its_holds_however_many_they_are);
    RUN(between_the_steps_a_removed_tree_is_as_it_should_be);
    RUN(a_dying_session_and_a_dying_node_may_share_holds);
    RUN(without_memory_a_hold_is_refused_and_nothing_is_left);
    return 0;
}
