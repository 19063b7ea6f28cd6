/* The meta room as a whole: many nodes, damage, and a long random life against a simple model.
 *     test_meta_life [seed [steps]]
 * sources: meta base */
#include "meta_kit.h"

static void many_nodes_come_and_go_and_leave_nothing(void) {
    struct kit k;
    char path[64];
    kit_open(&k, 256 << 20);
    uint64_t bare = stats_of(&k).arena_bytes_used;
    for (uint32_t i = 0; i < 60000; i++) {
        sprintf(path, "/%u/%u", i % 300, i);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, &i, 4), OK);
    }
    kit_check(&k);
    double each = (double)(stats_of(&k).arena_bytes_used - bare) / (double)stats_of(&k).nodes;
    assert(each < 150);
    for (uint32_t i = 0; i < 60000; i += 2) {
        sprintf(path, "/%u/%u", i % 300, i);
        WANT(kit_remove(&k, 0, path), OK);
    }
    kit_check(&k);
    for (uint32_t i = 0; i < 60000; i++) {
        sprintf(path, "/%u/%u", i % 300, i);
        WANT(kit_get(&k, path), i % 2 ? OK : E(NOT_FOUND));
    }
    for (uint32_t i = 0; i < 300; i++) {
        sprintf(path, "/%u", i);
        WANT(kit_rmtree(&k, path), OK);
    }
    kit_settle(&k);
    kit_check(&k);
    assert(stats_of(&k).arena_bytes_used == bare);
    kit_close(&k);
}

/* A node and a value of 128 bytes may take each other's place: what was noted for a lookup is then a value's bytes. */
static void an_announced_lookup_follows_no_freed_node(void) {
    struct kit k;
    uint64_t seed = 7;
    char path[32];
    uint8_t wild[sizeof(struct crail_node)];
    memset(wild, 0xee, sizeof(wild));
    kit_open(&k, 1 << 24);
    assert(kit_mkdir(&k, 0, "/d").status == 0);
    for (uint32_t i = 0; i < 200000; i++) {
        sprintf(path, "/d/%u", kit_random(&seed, 64));
        if (kit_random(&seed, 2))
            kit_put(&k, 0, path, wild, sizeof(wild));
        else
            kit_remove(&k, 0, path);
    }
    kit_check(&k);
    kit_close(&k);
}

static void damage_is_found_by_the_check(void) {
    struct kit k;
    char why[256];
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 100);
    struct answer a = kit_alloc(&k, 0, 5 * 4096);
    struct crail_extent e = extent_at(&a, 0);
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/d/f", "x", 1), OK);
    WANT(kit_commit(&k, 0, "/d/g", &e, 1, 0, 5 * 4096), OK);
    kit_check(&k);
    struct crail_node *root = crail_node_at(k.m, k.m->root), *dir = crail_node_at(k.m, root->first_child);
    struct crail_run_record *rec = &k.m->servers[0]->regions[0].record[0];
    struct {
        void *at;
        uint8_t flip;
    } damage[] = {{&root->size, 1},        {&dir->parent, 1},
                  {&dir->hash, 4},         {&dir->name, 1},
                  {&rec->next + 1, 1}, /* its state */
                  {&rec->len, 1},          {&k.m->nodes, 1},
                  {&k.m->inline_bytes, 1}, {&k.m->arena.bytes_used, 16},
                  {&k.m->names.count, 1},  {&k.m->servers[0]->count[CRAIL_COUNT_FREE], 1}};
    for (size_t i = 0; i < sizeof(damage) / sizeof(damage[0]); i++) {
        *(uint8_t *)damage[i].at ^= damage[i].flip;
        if (crail_meta_check(k.m, why, sizeof(why)) != -EUCLEAN) {
            fprintf(stderr, "damage %zu was not found\n", i);
            abort();
        }
        *(uint8_t *)damage[i].at ^= damage[i].flip;
        kit_check(&k);
    }
    kit_close(&k);
}

#include "test_meta_model.h"

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : kit_clock_ns() | 1;
    uint32_t steps = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 20000;
    RUN(many_nodes_come_and_go_and_leave_nothing);
    RUN(an_announced_lookup_follows_no_freed_node);
    RUN(damage_is_found_by_the_check);
    printf("seed %" PRIu64 " steps %u\n", seed, steps);
    fflush(stdout);
    a_random_life_agrees_with_the_model(seed, steps);
    printf("ok a_random_life_agrees_with_the_model\n");
    return 0;
}
