/* Figures of the meta room: nanoseconds per operation over a million nodes, bytes per node, longest call.
 *     bench_meta [nodes [bytes of a value]]
 * Vectors of 1,000 operations as the rpc room makes them: announced ahead, executed in order. */
#include "meta_kit.h"

#define VECTOR 1000u
#define PATH_BYTES 64u

static uint64_t longest_ns;
static struct kit k;
static struct crail_op op[VECTOR];
static char path[VECTOR][PATH_BYTES];
static char value[4096];
static uint32_t value_bytes = 16;
static uint32_t side; /* directories at the top, directories in each, files in each */

/* Time of this thread only, so that other processes do not count. */
static uint64_t own_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void longest(uint64_t start) {
    uint64_t took = own_ns() - start;
    if (took > longest_ns)
        longest_ns = took;
}

static void path_of(char *out, uint32_t i) {
    sprintf(out, "/part-%03u/block-%03u/item-%06u", i / side / side, i / side % side, i % side);
}

/* Executes the vector; the time is without making the paths. */
static uint64_t run_vector(uint32_t n, bool ahead, bool watch) {
    uint64_t start = own_ns();
    k.reply.len = 0;
    for (uint32_t i = 0; ahead && i < CRAIL_META_AHEAD && i < n; i++)
        crail_meta_prefetch(k.m, &op[i], path[i]);
    for (uint32_t i = 0; i < n; i++) {
        if (ahead && i + CRAIL_META_AHEAD < n)
            crail_meta_prefetch(k.m, &op[i + CRAIL_META_AHEAD], path[i + CRAIL_META_AHEAD]);
        uint64_t one = watch ? own_ns() : 0;
        int rc = crail_meta_execute(k.m, k.s, &op[i], path[i], NULL, value, 1, &k.reply);
        if (watch)
            longest(one);
        struct crail_result r;
        assert(rc == 0);
        (void)rc;
        memcpy(&r, k.reply.data, sizeof(r));
        assert(r.status == 0);
    }
    return own_ns() - start;
}

static void phase(const char *what, int code, uint32_t all, bool random, bool ahead, bool watch) {
    uint64_t seed = 88172645463325252ull, took = 0, n = 0;
    longest_ns = 0;
    for (uint32_t done = 0; done < all; done += VECTOR) {
        for (uint32_t i = 0; i < VECTOR; i++) {
            path_of(path[i], random ? kit_random(&seed, all) : done + i);
            op[i] = (struct crail_op){.code = (uint16_t)code,
                                      .path_len = (uint16_t)strlen(path[i]),
                                      .flags = code == CRAIL_OP_PUT ? CRAIL_OPF_PARENTS : 0,
                                      .data_len = code == CRAIL_OP_PUT ? value_bytes : 0};
        }
        took += run_vector(VECTOR, ahead, watch);
        n += VECTOR;
    }
    if (watch)
        printf("%-44s %7.1f us\n", what, (double)longest_ns / 1000);
    else
        printf("%-44s %7.0f ns\n", what, (double)took / (double)n);
}

static void bench_listing(uint32_t all) {
    char name[256] = "", full[64];
    assert(kit_mkdir(&k, 0, "/flat").status == 0);
    uint64_t seed = 7;
    uint32_t *order = malloc(all * sizeof(*order));
    for (uint32_t i = 0; i < all; i++)
        order[i] = i;
    for (uint32_t i = all; i > 1; i--) {
        uint32_t j = kit_random(&seed, i), t = order[i - 1];
        order[i - 1] = order[j];
        order[j] = t;
    }
    uint64_t start = kit_clock_ns();
    for (uint32_t i = 0; i < all; i++) {
        sprintf(full, "/flat/object-%08u", order[i]);
        assert(kit_put(&k, 0, full, value, 16).status == 0);
    }
    printf("%-44s %7.0f ns\n", "create in one directory, random names", (double)(kit_clock_ns() - start) / (double)all);
    uint64_t seen = 0, steps = 0;
    longest_ns = 0;
    start = kit_clock_ns();
    for (bool more = true; more;) {
        struct crail_op list = {.code = CRAIL_OP_LIST, .path_len = 5, .data_len = (uint32_t)strlen(name)};
        uint64_t one = own_ns();
        k.reply.len = 0;
        int rc = crail_meta_execute(k.m, k.s, &list, "/flat", NULL, name, 1, &k.reply);
        longest(one);
        if (rc == CRAIL_META_AGAIN) {
            one = own_ns();
            crail_meta_step(k.m, 50000);
            longest(one);
            steps++;
            continue;
        }
        const struct crail_result *r = (const struct crail_result *)k.reply.data;
        const uint8_t *p = k.reply.data + sizeof(*r);
        for (uint32_t i = 0; i < r->count; i++) {
            const struct crail_dirent *d = (const struct crail_dirent *)p;
            memcpy(name, p + sizeof(*d), d->name_len);
            name[d->name_len] = 0;
            p += crail_pad8((uint32_t)sizeof(*d) + d->name_len);
        }
        seen += r->count;
        more = r->flags & CRAIL_RESF_MORE;
    }
    assert(seen == all);
    printf("%-44s %7.0f ms   %" PRIu64 " steps of 50 us, longest call %.1f us\n", "list all of it, index built first",
           (double)(kit_clock_ns() - start) / 1e6, steps, (double)longest_ns / 1000);
    longest_ns = 0;
    start = kit_clock_ns();
    uint64_t one = own_ns();
    assert(kit_rmtree(&k, "/flat").status == 0);
    longest(one);
    for (bool left = true; left;) {
        one = own_ns();
        left = crail_meta_step(k.m, 50000);
        longest(one);
    }
    printf("%-44s %7.0f ns   longest call %.1f us\n", "rmtree of it, per node",
           (double)(kit_clock_ns() - start) / (double)all, (double)longest_ns / 1000);
    free(order);
}

/* Puts over random keys of one to 64 granules in a half full server, retired as it goes. */
static void bench_granules(void) {
    uint32_t server = kit_server(&k, 4, 1u << 20), keys = 60000, puts = 300000;
    uint64_t seed = 99, took = 0;
    char full[64];
    longest_ns = 0;
    for (uint32_t i = 0; i < puts; i++) {
        uint64_t bytes = 4096ull * (1 + kit_random(&seed, 64));
        sprintf(full, "/big/%u", kit_random(&seed, keys));
        uint64_t start = own_ns();
        struct answer a = kit_alloc(&k, 0, bytes);
        assert(a.status == 0 && a.r.count == 1);
        struct crail_extent e;
        memcpy(&e, a.data, sizeof(e));
        assert(kit_commit(&k, CRAIL_OPF_PARENTS, full, &e, 1, 0, bytes).status == 0);
        longest(start);
        took += own_ns() - start;
        if (i % 64 == 0)
            kit_retire(&k, server);
    }
    printf("%-44s %7.0f ns   longest pair %.1f us\n", "alloc + commit over random keys", (double)took / puts,
           (double)longest_ns / 1000);
    assert(kit_rmtree(&k, "/big").status == 0);
    kit_settle(&k);
    kit_retire(&k, server);
}

/* Columns of a directory whose nodes were made in another order, page by page: of extents, of values within nodes. */
static void bench_columns(const char *what, uint32_t extents, uint32_t bytes) {
    enum { MAPS = 20000 };
    char full[64], after[16] = "";
    uint64_t took = 0, seed = 5, entries = 0, pages = 0;
    uint32_t server = extents ? kit_server(&k, 1, MAPS * extents + 4096) : 0;
    for (uint32_t i = 0; i < MAPS; i++) {
        struct crail_extent e[CRAIL_EXTENTS_MAX];
        sprintf(full, "/column/%010u", (i * 7919u) % MAPS);
        for (uint32_t x = 0; x < extents; x++) {
            struct answer a = kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 4096);
            assert(a.status == 0);
            memcpy(&e[x], a.data, sizeof(e[0]));
        }
        struct answer a = extents ? kit_commit(&k, CRAIL_OPF_PARENTS, full, e, extents, 0, extents * 4096ull)
                                  : kit_put(&k, CRAIL_OPF_PARENTS, full, value, bytes);
        assert(a.status == 0);
        for (uint32_t n = kit_random(&seed, 4); n--;) { /* something lies between */
            sprintf(full, "/other/%u.%u", i, n);
            assert(kit_put(&k, CRAIL_OPF_PARENTS, full, value, 64).status == 0);
        }
    }
    assert(kit_op(&k, CRAIL_OP_COLUMN, 0, "/column", NULL, 0, 0, 1, 0).status == 0); /* its index */
    longest_ns = 0;
    for (bool more = true; more; pages++) {
        struct crail_op op = {
            .code = CRAIL_OP_COLUMN, .path_len = 7, .data_len = (uint32_t)strlen(after), .arg1 = CRAIL_COLUMN_WHOLE};
        k.reply.len = 0;
        uint64_t start = own_ns();
        int rc = crail_meta_execute(k.m, k.s, &op, "/column", NULL, after, 1, &k.reply);
        longest(start);
        took += own_ns() - start;
        const struct crail_result *r = (const void *)k.reply.data;
        const uint8_t *p = (const uint8_t *)(r + 1);
        assert(rc == 0 && r->status == 0);
        for (uint32_t i = 0; i < r->count; i++) {
            const struct crail_column *c = (const void *)p;
            memcpy(after, c + 1, c->name_len);
            p += sizeof(*c) + crail_pad8(c->name_len) + c->extents * sizeof(struct crail_extent) +
                 crail_pad8(c->data_len);
        }
        entries += r->count;
        more = r->flags & CRAIL_RESF_MORE;
    }
    assert(entries == MAPS);
    printf("column, %-36s %7.0f ns   %" PRIu64 " pages, longest %.1f us\n", what, (double)took / MAPS, pages,
           (double)longest_ns / 1000);
    assert(kit_rmtree(&k, "/column").status == 0 && kit_rmtree(&k, "/other").status == 0);
    kit_settle(&k);
    if (server)
        kit_retire(&k, server);
}

int main(int argc, char **argv) {
    uint32_t all = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1000000;
    if (argc > 2)
        value_bytes = (uint32_t)strtoul(argv[2], NULL, 10);
    assert(value_bytes <= sizeof(value));
    struct crail_meta_stats before, after;
    for (side = 1; side * side * side < all; side++) {
    }
    kit_open(&k, 16ull << 30);
    crail_meta_stats(k.m, &before);
    phase("create", CRAIL_OP_PUT, all, false, true, false);
    crail_meta_stats(k.m, &after);
    printf("%-44s %7.1f bytes\n", "arena per node, its value included",
           (double)(after.arena_bytes_used - before.arena_bytes_used) / (double)(after.nodes - before.nodes));
    phase("lookup (GET), random, vectors, announced", CRAIL_OP_GET, all, true, true, false);
    phase("lookup (GET), random, not announced", CRAIL_OP_GET, all, true, false, false);
    phase("lookup (GET), in order", CRAIL_OP_GET, all, false, true, false);
    phase("overwrite, random", CRAIL_OP_PUT, all, true, true, false);
    phase("remove", CRAIL_OP_REMOVE, all, false, true, false);
    phase("longest create", CRAIL_OP_PUT, all, false, true, true);
    phase("longest lookup", CRAIL_OP_GET, all, true, true, true);
    phase("longest overwrite", CRAIL_OP_PUT, all, true, true, true);
    phase("longest remove", CRAIL_OP_REMOVE, all, false, true, true);
    bench_listing(all);
    bench_granules();
    bench_columns("an extent each, per map", 1, 0);
    bench_columns("64 extents each, per map", 64, 0);
    bench_columns("400 B within the node, per map", 0, 400);
    bench_columns("4 KiB within the node, per map", 0, 4096);
    kit_close(&k);
    return 0;
}
