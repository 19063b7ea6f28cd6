/* The meta room: listings and the ordered indexes behind them.
 * sources: meta base */
#include "meta_kit.h"

/* ---- listing ------------------------------------------------------------------------------- */

struct listed {
    uint32_t n;
    char name[4096][32];
};

static void list_all(struct kit *k, const char *path, uint32_t page, struct listed *l) {
    char after[256] = "";
    l->n = 0;
    for (bool more = true; more;) {
        struct answer a = kit_list(k, path, after, page);
        WANT(a, OK);
        assert(!page || a.r.count <= page);
        for (uint32_t i = 0; i < a.r.count; i++) {
            const struct crail_dirent *d = (const struct crail_dirent *)a.data;
            const char *name = (const char *)(d + 1);
            assert(d->name_len && d->name_len < sizeof(l->name[0]));
            memcpy(after, name, d->name_len);
            after[d->name_len] = 0;
            if (l->n)
                assert(strcmp(l->name[l->n - 1], after) < 0);
            strcpy(l->name[l->n++], after);
            a.data += crail_pad8((uint32_t)sizeof(*d) + d->name_len);
        }
        more = a.r.flags & CRAIL_RESF_MORE;
        assert(!more || a.r.count);
    }
}

static void pages_show_every_name_once_in_order(void) {
    static struct listed l;
    struct kit k;
    char path[64];
    static const uint32_t sizes[] = {0, 1, 64, 65, 256, 257, 3000};
    kit_open(&k, 64 << 20);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        WANT(kit_mkdir(&k, 0, "/d"), OK);
        for (uint32_t c = 0; c < sizes[i]; c++) {
            sprintf(path, "/d/n%u", c * 7919 % 3001);
            WANT(kit_put(&k, 0, path, "x", 1), OK);
        }
        for (uint32_t page = 0; page < 100; page = page * 3 + 1) {
            list_all(&k, "/d", page, &l);
            assert(l.n == sizes[i]);
        }
        kit_check(&k);
        WANT(kit_list(&k, "/d", "n\xff", 0), OK);
        assert(kit_list(&k, "/d", "n\xff", 0).r.count == 0);
        WANT(kit_rmtree(&k, "/d"), OK);
        kit_settle(&k);
    }
    kit_close(&k);
}

static void a_listing_is_right_while_its_index_is_built(void) {
    static struct listed l;
    struct kit k;
    char path[64];
    kit_open(&k, 64 << 20);
    WANT(kit_mkdir(&k, 0, "/d"), OK);
    for (uint32_t i = 0; i < 2000; i++) {
        sprintf(path, "/d/name%05u", i * 2);
        WANT(kit_put(&k, 0, path, "x", 1), OK);
    }
    struct crail_op list = {.code = CRAIL_OP_LIST, .path_len = 2};
    k.reply.len = 0;
    assert(crail_meta_execute(k.m, k.s, &list, "/d", NULL, NULL, ++k.now_ns, &k.reply) == CRAIL_META_AGAIN);
    assert(stats_of(&k).background_pending == 1);
    uint64_t seed = 4711;
    uint32_t there = 2000;
    while (crail_meta_step(k.m, 0)) {
        uint32_t i = kit_random(&seed, 4000);
        sprintf(path, "/d/name%05u", i);
        if (kit_remove(&k, 0, path).status == OK) {
            there--;
        } else {
            WANT(kit_put(&k, 0, path, "y", 1), OK);
            there++;
        }
        sprintf(path, "/d/%c%05u", 'a' + (int)kit_random(&seed, 26), i); /* outside of the prefix */
        uint64_t before = kit_stat(&k, "/d").r.size;
        WANT(kit_put(&k, 0, path, "y", 1), OK);
        there += (uint32_t)(kit_stat(&k, "/d").r.size - before);
        kit_check(&k);
    }
    list_all(&k, "/d", 0, &l);
    assert(l.n == there);
    kit_check(&k);
    kit_close(&k);
}

static void an_index_survives_churn_and_is_dropped_when_cold(void) {
    static struct listed l;
    struct kit k;
    char path[64];
    kit_open(&k, 256 << 20);
    WANT(kit_mkdir(&k, 0, "/d"), OK);
    uint64_t bare = stats_of(&k).arena_bytes_used;
    for (uint32_t i = 0; i < 4000; i++) {
        sprintf(path, "/d/common%05u", i);
        WANT(kit_put(&k, 0, path, "x", 1), OK);
    }
    list_all(&k, "/d", 0, &l);
    for (uint32_t i = 0; i < 4000; i++) { /* same eight bytes after the prefix: decided by the whole names */
        sprintf(path, "/d/common%05u", i);
        WANT(kit_remove(&k, 0, path), OK);
        sprintf(path, "/d/commonAAAAAAAA%u", i % 1000 + i / 1000 * 7);
        kit_put(&k, 0, path, "x", 1);
        if (i % 97 == 0)
            kit_check(&k);
    }
    list_all(&k, "/d", 100, &l);
    assert(l.n == kit_stat(&k, "/d").r.size);
    for (uint32_t i = 0; i < l.n; i++) {
        sprintf(path, "/d/%s", l.name[i]);
        WANT(kit_remove(&k, 0, path), OK);
    }
    list_all(&k, "/d", 0, &l);
    assert(l.n == 0);
    kit_check(&k);
    k.now_ns += 120ll * 1000000000;
    WANT(kit_get(&k, "/none"), E(NOT_FOUND));
    kit_settle(&k);
    assert(stats_of(&k).arena_bytes_used == bare);
    kit_check(&k);
    kit_close(&k);
}

static uint32_t count_pages(struct kit *k, const char *path, uint32_t page) {
    char after[256] = "";
    uint32_t n = 0;
    for (bool more = true; more;) {
        struct answer a = kit_list(k, path, after, page);
        WANT(a, OK);
        n += a.r.count;
        for (uint32_t i = 0; i < a.r.count; i++) {
            const struct crail_dirent *d = (const struct crail_dirent *)a.data;
            char name[256];
            snprintf(name, sizeof(name), "%.*s", d->name_len, (const char *)(d + 1));
            assert(strcmp(after, name) < 0);
            strcpy(after, name);
            a.data += crail_pad8((uint32_t)sizeof(*d) + d->name_len);
        }
        more = a.r.flags & CRAIL_RESF_MORE;
    }
    return n;
}

/* The keys of these names are all equal, on every level of the tree. */
static void names_that_differ_late_are_still_in_order(void) {
    struct kit k;
    char path[64];
    kit_open(&k, 256 << 20);
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/d/z", "", 0), OK);
    uint64_t seed = 5;
    for (uint32_t i = 0; i < 40000; i++) {
        sprintf(path, "/d/dataset-number-%06u", kit_random(&seed, 500000));
        WANT(kit_put(&k, 0, path, "", 0), OK);
        if (i == 20000)
            assert(count_pages(&k, "/d", 0) == kit_stat(&k, "/d").r.size);
    }
    kit_check(&k);
    assert(count_pages(&k, "/d", 333) == kit_stat(&k, "/d").r.size);
    for (uint32_t i = 0; i < 500000; i++) {
        sprintf(path, "/d/dataset-number-%06u", i);
        kit_remove(&k, 0, path);
    }
    kit_check(&k);
    assert(count_pages(&k, "/d", 0) == 1);
    kit_close(&k);
}

static void several_indexes_live_side_by_side(void) {
    struct kit k;
    char path[64];
    kit_open(&k, 256 << 20);
    for (uint32_t i = 0; i < 6000; i++) {
        sprintf(path, "/%u/%c%u", i % 6, 'a' + i % 5, i);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, "", 0), OK);
    }
    struct crail_op list = {.code = CRAIL_OP_LIST, .path_len = 2};
    for (uint32_t i = 0; i < 6; i++) {
        sprintf(path, "/%u", i);
        k.reply.len = 0;
        assert(crail_meta_execute(k.m, k.s, &list, path, NULL, NULL, ++k.now_ns, &k.reply) == CRAIL_META_AGAIN);
    }
    assert(stats_of(&k).background_pending == 6);
    WANT(kit_rmtree(&k, "/3"), OK);
    kit_check(&k);
    for (uint32_t i = 0; i < 20; i++) {
        if (i % 6 == 3)
            continue;
        sprintf(path, "/%u", i % 6);
        assert(count_pages(&k, path, 100) == 1000);
        kit_check(&k);
    }
    WANT(kit_rmtree(&k, "/1"), OK);
    kit_settle(&k);
    kit_check(&k);
    kit_close(&k);
}

static void an_index_without_memory_is_an_error_and_no_endless_wait(void) {
    struct kit k;
    char path[64];
    kit_open(&k, 2 << 20);
    uint32_t i = 0;
    do {
        sprintf(path, "/d/%u", i++);
    } while (kit_put(&k, CRAIL_OPF_PARENTS, path, "", 0).status == OK);
    assert(i > 1000);
    WANT(kit_list(&k, "/d", "", 0), E(NO_MEMORY));
    kit_check(&k);
    for (; i > 300; i--) {
        sprintf(path, "/d/%u", i);
        kit_remove(&k, 0, path);
    }
    assert(count_pages(&k, "/d", 0) == 301);
    kit_check(&k);
    kit_close(&k);
}

int main(void) {
    RUN(pages_show_every_name_once_in_order);
    RUN(a_listing_is_right_while_its_index_is_built);
    RUN(an_index_survives_churn_and_is_dropped_when_cold);
    RUN(names_that_differ_late_are_still_in_order);
    RUN(several_indexes_live_side_by_side);
    RUN(an_index_without_memory_is_an_error_and_no_endless_wait);
    return 0;
}
