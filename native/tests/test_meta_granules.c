/* The meta room: granules, grants, extents, servers that come and go.
 * sources: meta base */
#include "meta_kit.h"

/* ---- granules ---------------------------------------------------------------------------------- */

static void a_grant_becomes_a_value_and_is_reused_only_when_retired(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, 16);
    uint8_t mac[16] = "0123456789abcde";
    struct answer a = kit_alloc(&k, 0, 9 * 4096); /* rounded to 10 */
    WANT(a, OK);
    struct crail_extent e = extent_at(&a, 0);
    assert(e.granules == 10 && e.generation == 0 && e.key == crail_extent_key(mac, &e, CRAIL_RIGHT_WRITE));
    WANT(kit_commit(&k, 0, "/v", &e, 1, 0, 11 * 4096), E(INVALID_ARGUMENT));
    struct crail_extent wrong = e;
    wrong.generation++;
    WANT(kit_commit(&k, 0, "/v", &wrong, 1, 0, 100), E(STALE_LOCATION));
    wrong = e;
    wrong.granules--;
    WANT(kit_commit(&k, 0, "/v", &wrong, 1, 0, 100), E(STALE_LOCATION));
    wrong = e;
    wrong.granule = UINT32_MAX;
    WANT(kit_commit(&k, 0, "/v", &wrong, 1, 0, 100), E(STALE_LOCATION));
    WANT(kit_commit(&k, 0, "/x/v", &e, 1, 0, 100), E(NOT_FOUND)); /* the grant stays */
    WANT(kit_commit(&k, CRAIL_OPF_IF_VERSION, "/v", &e, 1, 3, 100), E(VERSION_CONFLICT));
    WANT(kit_commit(&k, 0, "/v", &e, 1, 0, 3 * 4096 - 5), OK);
    WANT(kit_commit(&k, 0, "/v", &e, 1, 0, 100), E(STALE_LOCATION));
    kit_check(&k);
    a = kit_get(&k, "/v");
    WANT(a, OK);
    struct crail_extent r = extent_at(&a, 0);
    assert(r.granules == 10 && r.granule == e.granule && a.r.size == 3 * 4096 - 5 && !a.r.flags); /* never cut */
    assert(r.key == crail_extent_key(mac, &r, CRAIL_RIGHT_READ));
    struct crail_meta_stats st = stats_of(&k);
    assert(st.granules_used == 10 && st.granules_retiring == 0 && st.granules_free == 6 && !st.granules_granted);
    WANT(kit_remove(&k, 0, "/v"), OK);
    WANT(kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 14 * 4096), E(OUT_OF_SPACE));
    struct crail_retire order[4], bad;
    assert(crail_meta_retires_take(k.m, sv, order, 4) == 1);
    assert(order[0].granule == e.granule && order[0].granules == 10 && order[0].generation == 1);
    bad = order[0];
    bad.generation = 2;
    assert(crail_meta_retires_done(k.m, sv, &bad, 1) == -EPROTO);
    order[1] = order[0];
    assert(crail_meta_retires_done(k.m, sv, order, 2) == -EPROTO);
    kit_check(&k);
    assert(crail_meta_retires_done(k.m, sv, order, 1) == 0);
    assert(crail_meta_retires_done(k.m, sv, order, 1) == -EPROTO);
    a = kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 16 * 4096);
    WANT(a, OK);
    e = extent_at(&a, 0);
    assert(e.granules == 16 && e.generation == 1);
    WANT(kit_alloc(&k, 0, 1), E(OUT_OF_SPACE));
    kit_check(&k);
    kit_close(&k);
}

static void space_in_pieces_is_granted_in_pieces_or_not_at_all(void) {
    struct kit k;
    struct crail_extent e[40];
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 2, 20);
    for (uint32_t i = 0; i < 40; i++) {
        struct answer a = kit_alloc(&k, 0, 1);
        WANT(a, OK);
        e[i] = extent_at(&a, 0);
    }
    for (uint32_t i = 0; i < 40; i++)
        if (e[i].granule % 2)
            WANT(kit_release(&k, &e[i], 1), OK);
    kit_retire(&k, sv);
    kit_check(&k);
    WANT(kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 2 * 4096), E(OUT_OF_SPACE));
    WANT(kit_alloc(&k, 0, 21 * 4096), E(OUT_OF_SPACE));
    WANT(kit_alloc(&k, 0, UINT64_MAX), E(OUT_OF_SPACE));
    assert(stats_of(&k).granules_free == 20);
    struct answer a = kit_alloc(&k, 0, 20 * 4096);
    WANT(a, OK);
    assert(a.r.count == 20 && a.r.size == 20 * 4096);
    struct crail_extent all[20];
    memcpy(all, a.data, sizeof(all));
    all[1] = all[0];
    WANT(kit_commit(&k, 0, "/v", all, 20, 0, 4096 * 20), E(STALE_LOCATION));
    WANT(kit_release(&k, all, 2), E(STALE_LOCATION));
    memcpy(all, a.data, sizeof(all));
    WANT(kit_commit(&k, 0, "/v", all, 20, 0, 17 * 4096 + 1), OK); /* the other two are retired */
    a = kit_get(&k, "/v");
    assert(a.r.count == 18);
    kit_check(&k);
    WANT(kit_put(&k, 0, "/v", "inline now", 10), OK);
    assert(kit_retire(&k, sv) == 20 && stats_of(&k).granules_free == 20);
    kit_check(&k);
    kit_close(&k);
}

static void commit_grants_again_while_space_is_plenty(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 100);
    struct answer a = kit_alloc(&k, 0, 10 * 4096);
    uint32_t commits = 0;
    char path[16];
    while (a.r.count) {
        struct crail_extent e = extent_at(&a, 0);
        assert(e.granules == 10);
        sprintf(path, "/v%u", commits++);
        a = kit_commit(&k, CRAIL_OPF_GRANT_AGAIN, path, &e, 1, 0, 10 * 4096);
        WANT(a, OK);
    }
    assert(commits == 8); /* the ninth would have left less than a quarter */
    kit_check(&k);
    kit_close(&k);
}

static void grants_go_round_the_servers_that_are_up(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv[3], seen[4] = {0};
    for (uint32_t i = 0; i < 3; i++)
        sv[i] = kit_server(&k, 1, 1000);
    for (uint32_t i = 0; i < 30; i++) {
        struct answer a = kit_alloc(&k, 0, 4096);
        seen[extent_at(&a, 0).server]++;
    }
    assert(seen[1] == 10 && seen[2] == 10 && seen[3] == 10);
    assert(crail_meta_server_set(k.m, sv[1], CRAIL_SERVER_DOWN) == 0);
    for (uint32_t i = 0; i < 30; i++) {
        struct answer a = kit_alloc(&k, 0, 4096);
        assert(extent_at(&a, 0).server != sv[1]);
    }
    assert(crail_meta_server_set(k.m, 9, CRAIL_SERVER_DOWN) == -ENOENT);
    kit_check(&k);
    kit_close(&k);
}

static void orders_are_due_again_when_a_server_comes_back(void) {
    struct kit k;
    struct crail_retire order[8];
    uint32_t extents;
    uint64_t granules;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, 100);
    struct answer a = kit_alloc(&k, 0, 3 * 4096);
    struct crail_extent e = extent_at(&a, 0);
    WANT(kit_release(&k, &e, 1), OK);
    WANT(kit_release(&k, &e, 1), E(STALE_LOCATION));
    crail_meta_retires_due(k.m, sv, &extents, &granules);
    assert(extents == 1 && granules == 3);
    assert(crail_meta_retires_take(k.m, sv, order, 8) == 1);
    assert(crail_meta_retires_take(k.m, sv, order + 1, 8) == 0);
    crail_meta_server_set(k.m, sv, CRAIL_SERVER_DOWN);
    kit_check(&k);
    crail_meta_server_set(k.m, sv, CRAIL_SERVER_UP);
    assert(crail_meta_retires_done(k.m, sv, order, 1) == -EPROTO);
    assert(crail_meta_retires_take(k.m, sv, order + 1, 7) == 1);
    assert(memcmp(&order[0], &order[1], sizeof(order[0])) == 0);
    assert(crail_meta_retires_done(k.m, sv, order, 1) == 0);
    assert(stats_of(&k).granules_free == 100);
    kit_check(&k);
    kit_close(&k);
}

static void a_lost_server_takes_its_granules_along(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 2, 1000);
    struct answer a = kit_alloc(&k, 0, 4096);
    struct crail_extent e = extent_at(&a, 0), held, due;
    WANT(kit_commit(&k, 0, "/v", &e, 1, 0, 100), OK);
    a = kit_alloc(&k, 0, 4096);
    held = extent_at(&a, 0);
    a = kit_alloc(&k, 0, 4096);
    due = extent_at(&a, 0);
    WANT(kit_release(&k, &due, 1), OK);
    crail_meta_server_set(k.m, sv, CRAIL_SERVER_DOWN);
    WANT(kit_get(&k, "/v"), OK);
    WANT(kit_alloc(&k, 0, 1), E(OUT_OF_SPACE));
    crail_meta_server_set(k.m, sv, CRAIL_SERVER_LOST);
    a = kit_get(&k, "/v");
    WANT(a, E(DATA_LOST));
    assert(a.r.server == sv);
    a = kit_stat(&k, "/v");
    WANT(a, OK);
    WANT(kit_commit(&k, 0, "/w", &held, 1, 0, 100), E(STALE_LOCATION));
    WANT(kit_release(&k, &held, 1), OK);
    kit_check(&k);
    assert(stats_of(&k).granules_total == 0 && stats_of(&k).granules_retiring == 0);
    uint32_t next = kit_server(&k, 1, 10);
    assert(next == sv + 1);
    WANT(kit_put(&k, 0, "/v", "back", 4), OK);
    WANT(kit_get(&k, "/v"), OK);
    kit_settle(&k);
    assert(crail_meta_server_set(k.m, sv, CRAIL_SERVER_UP) == -EINVAL);
    kit_check(&k);
    kit_close(&k);
}

static void a_session_that_ends_gives_its_grants_back(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, 10000);
    for (uint32_t i = 0; i < 3000; i++)
        WANT(kit_alloc(&k, 0, 4096), OK);
    struct crail_meta_session *first = k.s;
    assert(crail_meta_session_open(k.m, 77, &k.s) == 0);
    struct answer a = kit_alloc(&k, 0, 4096);
    struct crail_extent e = extent_at(&a, 0);
    crail_meta_session_end(k.m, first);
    kit_check(&k);
    kit_settle(&k);
    kit_retire(&k, sv);
    assert(stats_of(&k).granules_free == 9999);
    WANT(kit_release(&k, &e, 1), OK);
    crail_meta_session_end(k.m, k.s);
    kit_retire(&k, sv);
    assert(stats_of(&k).granules_free == 10000);
    kit_check(&k);
    kit_close(&k);
}

static void large_extents_and_old_generations_are_kept(void) {
    struct kit k;
    static uint64_t generations[100000];
    kit_open(&k, 64 << 20);
    for (uint32_t i = 0; i < 100000; i++)
        generations[i] = i + 7;
    const uint64_t *table[] = {generations};
    struct crail_meta_region region = {.granules = 100000};
    uint32_t sv;
    assert(crail_meta_server_add(k.m, &region, 0, NULL, (struct crail_meta_place){0, 0}, &sv) == -EINVAL);
    assert(crail_meta_server_add(k.m, &region, 65, NULL, (struct crail_meta_place){0, 0}, &sv) == -EINVAL);
    assert(crail_meta_server_add(k.m, &region, 1, table, (struct crail_meta_place){0, 0}, &sv) == 0);
    struct answer a = kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 50000ull * 4096);
    WANT(a, OK);
    struct crail_extent e = extent_at(&a, 0);
    assert(e.granules == 57344 && e.generation == e.granule + 7);
    WANT(kit_commit(&k, CRAIL_OPF_PARENTS, "/big/one", &e, 1, 0, 50000ull * 4096), OK);
    WANT(kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 50000ull * 4096), E(OUT_OF_SPACE));
    a = kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 42656ull * 4096); /* all that is left: no room to round up */
    WANT(a, OK);
    e = extent_at(&a, 0);
    assert(e.granules == 42656 && stats_of(&k).granules_free == 0);
    WANT(kit_release(&k, &e, 1), OK);
    WANT(kit_rmtree(&k, "/big"), OK);
    kit_settle(&k);
    assert(kit_retire(&k, sv) == 2 && stats_of(&k).granules_free == 100000);
    a = kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 1);
    assert(extent_at(&a, 0).generation == 8);
    kit_check(&k);
    kit_close(&k);
}

int main(void) {
    RUN(a_grant_becomes_a_value_and_is_reused_only_when_retired);
    RUN(space_in_pieces_is_granted_in_pieces_or_not_at_all);
    RUN(commit_grants_again_while_space_is_plenty);
    RUN(grants_go_round_the_servers_that_are_up);
    RUN(orders_are_due_again_when_a_server_comes_back);
    RUN(a_lost_server_takes_its_granules_along);
    RUN(a_session_that_ends_gives_its_grants_back);
    RUN(large_extents_and_old_generations_are_kept);
    return 0;
}
