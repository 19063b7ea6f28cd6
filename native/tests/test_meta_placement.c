/* Where grants come from: classes, locations, stripes. sources: meta base */
#include "meta_kit.h"

#define HERE 11u
#define THERE 22u

static struct crail_options where(uint8_t class, uint32_t location, uint8_t stripe, uint16_t flags) {
    return (struct crail_options){.storage_class = class, .location = location, .stripe = stripe, .flags = flags};
}

static struct answer alloc(struct kit *k, struct crail_options o, uint64_t granules) {
    kit_with(k, o);
    return kit_alloc(k, 0, granules * CRAIL_GRANULE);
}

static uint32_t server_of(struct kit *k, struct crail_options o, uint64_t granules) {
    struct answer a = alloc(k, o, granules);
    WANT(a, OK);
    assert(a.r.count == 1);
    return extent_at(&a, 0).server;
}

static void tiers_fill_by_the_order_of_their_class(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t file = kit_server_at(&k, 1, 8, 2, 0), dram = kit_server_at(&k, 1, 8, 0, 0),
             nvmf = kit_server_at(&k, 1, 8, 1, 0);
    struct crail_options any = where(CRAIL_CLASS_ANY, 0, 0, 0);
    for (uint32_t i = 0; i < 6; i++)
        assert(server_of(&k, any, 4) == (i < 2 ? dram : i < 4 ? nvmf : file));
    WANT(alloc(&k, any, 1), E(OUT_OF_SPACE));
    kit_check(&k);
    kit_close(&k);
}

static void a_class_is_preferred_or_a_must(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t dram = kit_server_at(&k, 1, 8, 0, 0), file = kit_server_at(&k, 1, 8, 2, 0);
    assert(server_of(&k, where(2, 0, 0, 0), 8) == file);
    WANT(alloc(&k, where(2, 0, 0, CRAIL_OPTION_STRICT), 1), E(OUT_OF_SPACE));
    WANT(alloc(&k, where(1, 0, 0, CRAIL_OPTION_STRICT), 1), E(OUT_OF_SPACE));
    assert(server_of(&k, where(2, 0, 0, 0), 4) == dram);
    assert(server_of(&k, where(0, 0, 0, CRAIL_OPTION_STRICT), 4) == dram);
    kit_check(&k);
    kit_close(&k);
}

static void a_location_is_preferred_within_the_class(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t dram_there = kit_server_at(&k, 1, 8, 0, THERE), dram_here = kit_server_at(&k, 1, 8, 0, HERE),
             file_here = kit_server_at(&k, 1, 8, 2, HERE);
    for (uint32_t i = 0; i < 4; i++) {
        assert(server_of(&k, where(CRAIL_CLASS_ANY, HERE, 0, 0), 1) == dram_here);
        assert(server_of(&k, where(CRAIL_CLASS_ANY, THERE, 0, 0), 1) == dram_there);
    }
    struct answer a = alloc(&k, where(CRAIL_CLASS_ANY, HERE, 0, 0), 8);
    struct crail_extent last = extent_at(&a, 0);
    assert(last.server == file_here); /* the location counts more */
    assert(server_of(&k, where(0, HERE, 0, 0), 4) == dram_here);
    assert(server_of(&k, where(0, HERE, 0, 0), 4) == dram_there); /* than the class that was asked for */
    WANT(alloc(&k, where(0, HERE, 0, CRAIL_OPTION_STRICT), 1), E(OUT_OF_SPACE));
    WANT(alloc(&k, where(CRAIL_CLASS_ANY, 33, 0, CRAIL_OPTION_STRICT), 1), E(OUT_OF_SPACE));
    assert(crail_meta_server_place(k.m, file_here, (struct crail_meta_place){33, 7}) == 0); /* it came back so */
    kit_retire(&k, file_here);
    assert(crail_meta_server_place(k.m, 9, (struct crail_meta_place){33, 7}) == -ENOENT);
    WANT(kit_release(&k, &last, 1), OK);
    kit_retire(&k, file_here);
    assert(server_of(&k, where(7, 33, 0, CRAIL_OPTION_STRICT), 8) == file_here);
    kit_check(&k);
    kit_close(&k);
}

static void a_fragmented_class_is_filled_before_the_next_and_gathered_over_all_at_last(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t dram = kit_server_at(&k, 1, 16, 0, 0);
    struct crail_extent e[16];
    for (uint32_t i = 0; i < 16; i++) {
        struct answer a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 0, 0), 1);
        e[i] = extent_at(&a, 0);
    }
    for (uint32_t i = 0; i < 16; i += 2)
        WANT(kit_release(&k, &e[i], 1), OK);
    kit_retire(&k, dram);
    uint32_t file = kit_server_at(&k, 1, 16, 2, 0);
    struct answer a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 0, 0), 4);
    WANT(a, OK);
    assert(a.r.count == 4 && extent_at(&a, 0).server == dram && extent_at(&a, 3).server == dram);
    assert(server_of(&k, where(CRAIL_CLASS_ANY, 0, 0, 0), 8) == file);
    a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 0, 0), 10);
    WANT(a, OK);
    uint32_t on_dram = 0;
    for (uint32_t i = 0; i < a.r.count; i++)
        on_dram += extent_at(&a, i).server == dram ? extent_at(&a, i).granules : 0;
    assert(on_dram == 2);
    kit_check(&k);
    kit_close(&k);
}

/* ---- stripes ------------------------------------------------------------------------------ */

static uint32_t STRIPED(const struct answer *a, uint32_t n, uint32_t granules) {
    uint64_t servers = 0;
    WANT(*a, OK);
    assert(a->r.count == n);
    for (uint32_t i = 0; i < n; i++) {
        struct crail_extent e = extent_at(a, i);
        assert(e.granules == granules && !(servers >> e.server & 1));
        servers |= 1ull << e.server;
    }
    return n;
}

static void a_stripe_is_equal_runs_on_distinct_servers(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    for (uint32_t i = 0; i < 5; i++)
        kit_server_at(&k, 2, 64, i == 4 ? 2 : 0, 0);
    struct answer a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 4, 0), 36);
    STRIPED(&a, 4, 9); /* nine is no class of runs: stripes are equal all the same */
    struct crail_extent e[4];
    for (uint32_t i = 0; i < 4; i++)
        e[i] = extent_at(&a, i);
    WANT(kit_commit(&k, 0, "/a", e, 4, 0, 36 * 4096), OK);
    assert(kit_get(&k, "/a").r.count == 4);
    a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 4, 0), 35);
    STRIPED(&a, 4, 9);
    a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 5, 0), 50);
    STRIPED(&a, 5, 10); /* the last one on another class */
    a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 4, 0), 3);
    STRIPED(&a, 3, 1);
    a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 4, 0), 1);
    STRIPED(&a, 1, 1);
    kit_with(&k, where(CRAIL_CLASS_ANY, 0, 4, 0));
    WANT(kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 4096), E(INVALID_ARGUMENT));
    kit_check(&k);
    kit_close(&k);
}

static void fewer_servers_than_asked_are_used_unless_it_is_strict(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 64);
    kit_server(&k, 1, 64);
    kit_server(&k, 1, 4);
    struct answer a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 8, 0), 12);
    STRIPED(&a, 3, 4);
    a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 8, 0), 12); /* one is full now */
    STRIPED(&a, 2, 6);
    uint64_t free = stats_of(&k).granules_free;
    WANT(alloc(&k, where(CRAIL_CLASS_ANY, 0, 4, CRAIL_OPTION_STRICT), 12), E(OUT_OF_SPACE));
    WANT(alloc(&k, where(CRAIL_CLASS_ANY, 0, 3, CRAIL_OPTION_STRICT), 12), E(OUT_OF_SPACE));
    assert(stats_of(&k).granules_free == free);
    a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 2, CRAIL_OPTION_STRICT), 12);
    STRIPED(&a, 2, 6);
    a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 2, 0), stats_of(&k).granules_free);
    WANT(a, OK);
    WANT(alloc(&k, where(CRAIL_CLASS_ANY, 0, 2, 0), 1), E(OUT_OF_SPACE));
    kit_check(&k);
    kit_close(&k);
}

static void a_grant_goes_where_a_server_is_if_nothing_else_is_said(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t dram = kit_server_at(&k, 1, 8, 0, HERE), file = kit_server_at(&k, 1, 8, 2, THERE);
    struct crail_options said = where(0, 0, 0, 0);
    struct answer a = kit_op(&k, CRAIL_OP_ALLOC, 0, NULL, NULL, 0, 0, file, 4096);
    assert(extent_at(&a, 0).server == file);
    kit_with(&k, where(0, HERE, 0, 0));
    a = kit_op(&k, CRAIL_OP_ALLOC, 0, NULL, NULL, 0, 0, file, 4096);
    assert(extent_at(&a, 0).server == dram);
    said.flags = CRAIL_OPTION_STRICT; /* of the class, and not of the place beside it */
    kit_with(&k, said);
    a = kit_op(&k, CRAIL_OP_ALLOC, 0, NULL, NULL, 0, 0, file, 4096);
    assert(extent_at(&a, 0).server == dram);
    a = kit_op(&k, CRAIL_OP_ALLOC, 0, NULL, NULL, 0, 0, file, 8 * 4096); /* no room there */
    WANT(a, OK);
    WANT(kit_op(&k, CRAIL_OP_ALLOC, 0, NULL, NULL, 0, 0, UINT64_MAX, 4096), OK); /* there is none such */
    kit_check(&k);
    kit_close(&k);
}

static void what_is_granted_ahead_is_one_run_and_evicts_nothing(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 64);
    struct answer a = kit_alloc(&k, 0, 40 * 4096);
    struct crail_extent e = extent_at(&a, 0);
    kit_with(&k, where(CRAIL_CLASS_ANY, 0, 0, CRAIL_OPTION_EVICTABLE));
    WANT(kit_commit(&k, 0, "/e", &e, 1, 0, 40 * 4096), OK);
    a = kit_alloc(&k, CRAIL_OPF_IF_PLENTY, 8 * 4096);
    assert(!a.status && a.r.count == 1);
    WANT(kit_alloc(&k, CRAIL_OPF_IF_PLENTY, 4096), E(OUT_OF_SPACE)); /* a quarter is free, and stays so */
    WANT(kit_get(&k, "/e"), OK);
    WANT(kit_alloc(&k, CRAIL_OPF_IF_PLENTY | CRAIL_OPF_WAIT, 4096), E(INVALID_ARGUMENT));
    kit_with(&k, where(CRAIL_CLASS_ANY, 0, 2, 0));
    WANT(kit_alloc(&k, CRAIL_OPF_IF_PLENTY, 4096), E(INVALID_ARGUMENT));
    kit_check(&k);
    kit_close(&k);
}

/* ---- eviction ------------------------------------------------------------------------------ */

static void only_what_helps_is_evicted(void) {
    struct kit k;
    struct crail_extent e;
    kit_open(&k, 64 << 20);
    kit_server_at(&k, 1, 8, 0, 0);
    kit_server_at(&k, 1, 8, 2, 0);
    for (uint8_t class = 0; class <= 2; class += 2) {
        struct answer a = alloc(&k, where(class, 0, 0, CRAIL_OPTION_STRICT), 8);
        e = extent_at(&a, 0);
        kit_with(&k, where(CRAIL_CLASS_ANY, 0, 0, CRAIL_OPTION_EVICTABLE));
        WANT(kit_commit(&k, 0, class ? "/file" : "/dram", &e, 1, 0, 8 * 4096), OK);
    }
    WANT(alloc(&k, where(2, 0, 0, CRAIL_OPTION_STRICT), 8), E(OUT_OF_SPACE));
    WANT(kit_stat(&k, "/dram"), OK); /* though it is older */
    WANT(kit_stat(&k, "/file"), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

static void a_run_longer_than_any_evicts_nothing_while_its_pieces_are_free(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server_at(&k, 1, 8, 0, 0);
    kit_server_at(&k, 1, 8, 0, 0);
    struct answer a = alloc(&k, where(CRAIL_CLASS_ANY, 0, 0, 0), 1);
    struct crail_extent e = extent_at(&a, 0);
    kit_with(&k, where(CRAIL_CLASS_ANY, 0, 0, CRAIL_OPTION_EVICTABLE));
    WANT(kit_commit(&k, 0, "/kept", &e, 1, 0, 4096), OK);
    WANT(kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 12 * 4096), E(OUT_OF_SPACE));
    WANT(kit_stat(&k, "/kept"), OK);
    a = kit_alloc(&k, 0, 12 * 4096);
    assert(a.status == 0 && a.r.count == 2);
    WANT(kit_stat(&k, "/kept"), OK);
    WANT(kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 4 * 4096), E(OUT_OF_SPACE)); /* three are free */
    WANT(kit_stat(&k, "/kept"), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

static void a_server_that_is_closed_or_to_be_avoided_grants_nothing(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t one = kit_server_at(&k, 1, 16, 2, 0), other = kit_server_at(&k, 1, 16, 2, 0);
    struct crail_options o = where(2, 0, 0, CRAIL_OPTION_STRICT);
    struct answer a = alloc(&k, o, 4);
    struct crail_extent first = extent_at(&a, 0);
    o.avoid = one;
    assert(server_of(&k, o, 4) == other && server_of(&k, o, 4) == other);
    o.avoid = 0;
    assert(crail_meta_server_place(k.m, other, (struct crail_meta_place){0, CRAIL_CLASS_ANY}) == 0);
    assert(server_of(&k, o, 4) == one && server_of(&k, o, 4) == one);
    o.avoid = one;
    WANT(alloc(&k, o, 4), E(OUT_OF_SPACE));
    /* What it has granted may be committed and given back as ever. */
    WANT(kit_commit(&k, 0, "/a", &first, 1, 0, 4096), OK);
    WANT(kit_remove(&k, 0, "/a"), OK);
    kit_retire(&k, first.server);
    assert(crail_meta_server_place(k.m, other, (struct crail_meta_place){0, 2}) == 0);
    assert(server_of(&k, o, 4) == other);
    kit_check(&k);
    kit_close(&k);
}

int main(void) {
    RUN(tiers_fill_by_the_order_of_their_class);
    RUN(a_class_is_preferred_or_a_must);
    RUN(a_location_is_preferred_within_the_class);
    RUN(a_server_that_is_closed_or_to_be_avoided_grants_nothing);
    RUN(a_fragmented_class_is_filled_before_the_next_and_gathered_over_all_at_last);
    RUN(a_stripe_is_equal_runs_on_distinct_servers);
    RUN(fewer_servers_than_asked_are_used_unless_it_is_strict);
    RUN(a_grant_goes_where_a_server_is_if_nothing_else_is_said);
    RUN(what_is_granted_ahead_is_one_run_and_evicts_nothing);
    RUN(only_what_helps_is_evicted);
    RUN(a_run_longer_than_any_evicts_nothing_while_its_pieces_are_free);
    return 0;
}
