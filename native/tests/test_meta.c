/* The claims of the meta room, one function each, and then a long random life against a simple model.
 *     test_meta [seed [steps]]
 * sources: meta base */
#include <errno.h>

#include "meta/engine.h"
#include "meta_kit.h"

/* ---- paths ----------------------------------------------------------------------- */

static void malformed_paths_are_refused(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    static const char *const bad[] = {"a",
                                      "a/b",
                                      "//",
                                      "/a/",
                                      "/a//b",
                                      "/.",
                                      "/..",
                                      "/a/..",
                                      "/a/./b",
                                      "/\xff",
                                      "/\xc0\xaf",
                                      "/\xed\xa0\x80",
                                      "/\xe2\x82",
                                      "/../a",
                                      "/ab\x80"
                                      "cdefghij",
                                      "/\xf4\x90\x80\x80",
                                      "/a\x80"
                                      "/b"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        WANT(kit_get(&k, bad[i]), E(INVALID_PATH));
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, bad[i], "x", 1), E(INVALID_PATH));
        WANT(kit_rename(&k, 0, "/none", bad[i]), E(INVALID_PATH));
    }
    struct crail_op op = {.code = CRAIL_OP_STAT, .path_len = 4};
    WANT(kit_do(&k, op, "/a\0b", NULL), E(INVALID_PATH));
    op.path_len = 0;
    WANT(kit_do(&k, op, "", NULL), E(INVALID_PATH));
    static const char *const good[] = {"/...", "/..a", "/.a", "/\xc3\xa9", "/\xf0\x9f\x98\x80", "/a b", "/\x01\x7f"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        WANT(kit_put(&k, 0, good[i], "x", 1), OK);
        WANT(kit_get(&k, good[i]), OK);
    }
    kit_check(&k);
    kit_close(&k);
}

static void names_and_paths_may_be_as_long_as_said(void) {
    struct kit k;
    char path[CRAIL_PATH_MAX + 2];
    kit_open(&k, 64 << 20);
    memset(path, 'n', sizeof(path));
    path[0] = '/';
    path[256] = 0;
    WANT(kit_put(&k, 0, path, "x", 1), OK);
    WANT(kit_get(&k, path), OK);
    path[256] = 'n';
    path[257] = 0;
    WANT(kit_put(&k, 0, path, "x", 1), E(INVALID_PATH));
    memset(path, 'd', sizeof(path));
    for (uint32_t i = 0; i < CRAIL_PATH_MAX; i += 128)
        path[i] = '/';
    path[CRAIL_PATH_MAX] = 0;
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, "x", 1), OK);
    WANT(kit_get(&k, path), OK);
    path[CRAIL_PATH_MAX] = 'd';
    path[CRAIL_PATH_MAX + 1] = 0;
    WANT(kit_get(&k, path), E(INVALID_PATH));
    kit_check(&k);
    kit_close(&k);
}

static void the_middle_of_a_path_must_be_directories(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(kit_put(&k, 0, "/f", "x", 1), OK);
    WANT(kit_get(&k, "/f/g"), E(NOT_CONTAINER));
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/f/g/h", "x", 1), E(NOT_CONTAINER));
    WANT(kit_get(&k, "/d/g"), E(NOT_FOUND));
    WANT(kit_put(&k, 0, "/d/g", "x", 1), E(NOT_FOUND));
    WANT(kit_mkdir(&k, 0, "/d/g"), E(NOT_FOUND));
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/d/e/g", "x", 1), OK);
    WANT(kit_get(&k, "/d/e"), E(IS_CONTAINER));
    WANT(kit_put(&k, 0, "/d", "x", 1), E(IS_CONTAINER));
    WANT(kit_put(&k, 0, "/", "x", 1), E(IS_CONTAINER));
    WANT(kit_list(&k, "/f", "", 0), E(NOT_CONTAINER));
    WANT(kit_mkdir(&k, 0, "/d"), E(EXISTS));
    WANT(kit_mkdir(&k, CRAIL_OPF_EXIST_OK, "/d"), OK);
    WANT(kit_mkdir(&k, CRAIL_OPF_EXIST_OK, "/f"), E(EXISTS));
    WANT(kit_mkdir(&k, CRAIL_OPF_EXIST_OK, "/"), OK);
    WANT(kit_mkdir(&k, 0, "/"), E(EXISTS));
    kit_check(&k);
    kit_close(&k);
}

static void malformed_operations_are_invalid_arguments(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    static char big[CRAIL_INLINE_MAX + 1];
    for (uint32_t code = 0; code < 70000; code += code < 40 ? 1 : 997) {
        bool known = (code >= 2 && code <= 4) || code == CRAIL_OP_ATTRIBUTES || (code >= 16 && code <= 23) ||
                     code == CRAIL_OP_INCR || code == CRAIL_OP_SETATTR || code == CRAIL_OP_END ||
                     code == CRAIL_OP_TRUNCATE;
        struct crail_op op = {.code = (uint16_t)code, .path_len = 2};
        if (!known && code < 65536)
            WANT(kit_do(&k, op, "/a", NULL), E(INVALID_ARGUMENT));
        if (!known)
            continue;
        op.flags = 1 << 15;
        WANT(kit_do(&k, op, "/a", NULL), E(INVALID_ARGUMENT));
        op.flags = 0;
        op.options_len = 1;
        WANT(kit_do(&k, op, "/a", NULL), E(INVALID_ARGUMENT));
        op.options_len = 0;
        op.count = 1;
        WANT(kit_do(&k, op, "/a", NULL), E(INVALID_ARGUMENT));
    }
    WANT(kit_put(&k, 0, "/a", big, sizeof(big)), E(INVALID_ARGUMENT));
    WANT(kit_put(&k, CRAIL_OPF_OVERWRITE, "/a", big, 1), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_GET, 0, "/a", "x", 1, 0, 0, 0), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_LIST, 0, "/", big, 256, 0, 0, 0), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_COMMIT, 0, "/a", big, 33, 1, 0, 1), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_COMMIT, 0, "/a", big, 65 * 32, 65, 0, 1), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_RELEASE, 0, NULL, NULL, 0, 0, 0, 0), E(INVALID_ARGUMENT));
    WANT(kit_alloc(&k, 0, 0), E(INVALID_ARGUMENT));
    kit_check(&k);
    kit_close(&k);
}

/* ---- values ------------------------------------------------------------------------ */

static void an_inline_value_comes_back_as_it_was_put(void) {
    struct kit k;
    uint8_t v[CRAIL_INLINE_MAX];
    kit_open(&k, 64 << 20);
    for (uint32_t i = 0; i < sizeof(v); i++)
        v[i] = (uint8_t)(i * 7);
    for (uint32_t n = 0; n <= sizeof(v); n += n < 64 ? 1 : 61) {
        uint64_t before = stats_of(&k).arena_bytes_used;
        struct answer put = kit_put(&k, 0, "/v", v, n);
        WANT(put, OK);
        struct answer a = kit_get(&k, "/v");
        WANT(a, OK);
        assert(a.r.flags == CRAIL_RESF_INLINE && a.r.data_len == n && a.r.size == n);
        assert(a.r.version == put.r.version && a.r.kind == CRAIL_KIND_FILE && memcmp(a.data, v, n) == 0);
        assert(stats_of(&k).values_inline_bytes == n && (n == 0 || before <= stats_of(&k).arena_bytes_used));
    }
    kit_check(&k);
    kit_close(&k);
}

static void versions_grow_across_removal_and_conditions_hold(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint64_t first = kit_put(&k, CRAIL_OPF_IF_ABSENT, "/v", "a", 1).r.version;
    WANT(kit_put(&k, CRAIL_OPF_IF_ABSENT, "/v", "b", 1), E(EXISTS));
    WANT(kit_op(&k, CRAIL_OP_PUT, CRAIL_OPF_IF_VERSION, "/v", "b", 1, 0, first + 1, 0), E(VERSION_CONFLICT));
    WANT(kit_op(&k, CRAIL_OP_PUT, CRAIL_OPF_IF_VERSION, "/v", "b", 1, 0, 0, 0), E(VERSION_CONFLICT));
    struct answer a = kit_op(&k, CRAIL_OP_PUT, CRAIL_OPF_IF_VERSION, "/v", "b", 1, 0, first, 0);
    WANT(a, OK);
    assert(a.r.version > first);
    uint64_t second = a.r.version;
    WANT(kit_remove(&k, 0, "/v"), OK);
    WANT(kit_op(&k, CRAIL_OP_PUT, CRAIL_OPF_IF_VERSION, "/v", "b", 1, 0, second, 0), E(VERSION_CONFLICT));
    a = kit_op(&k, CRAIL_OP_PUT, CRAIL_OPF_IF_VERSION, "/v", "c", 1, 0, 0, 0);
    WANT(a, OK);
    assert(a.r.version > second);
    WANT(kit_op(&k, CRAIL_OP_PUT, CRAIL_OPF_IF_VERSION | CRAIL_OPF_PARENTS, "/x/y/v", "b", 1, 0, 9, 0),
         E(VERSION_CONFLICT));
    WANT(kit_stat(&k, "/x"), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

static void a_full_arena_refuses_and_changes_nothing(void) {
    struct kit k;
    char path[64], value[4096] = "";
    kit_open(&k, 2 << 20);
    int rc = 0;
    uint32_t i = 0;
    for (; !rc; i++) {
        sprintf(path, "/a/b%u/c", i);
        rc = kit_put(&k, CRAIL_OPF_PARENTS, path, value, 4096).status;
    }
    assert(rc == E(NO_MEMORY) && i > 100);
    kit_check(&k);
    assert(stats_of(&k).files == i - 1);
    for (uint32_t n = 0; n < 2000; n++) {
        sprintf(path, "/p%u/q/r/s", n);
        if (kit_put(&k, CRAIL_OPF_PARENTS, path, "", 0).status == E(NO_MEMORY))
            break;
    }
    kit_check(&k);
    WANT(kit_rmtree(&k, "/a"), OK);
    kit_settle(&k);
    WANT(kit_put(&k, 0, "/again", value, 4096), OK);
    kit_check(&k);
    kit_close(&k);
}

/* ---- moving and removing ---------------------------------------------------------------- */

static void rename_follows_its_rules(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/d/e/f", "1", 1), OK);
    WANT(kit_put(&k, 0, "/g", "2", 1), OK);
    WANT(kit_mkdir(&k, 0, "/empty"), OK);
    WANT(kit_rename(&k, 0, "/none", "/x"), E(NOT_FOUND));
    WANT(kit_rename(&k, 0, "/g", "/x/y"), E(NOT_FOUND));
    WANT(kit_rename(&k, 0, "/", "/x"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/d", "/d/e/d"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/d", "/d/x"), E(INVALID_ARGUMENT));
    uint64_t version = kit_stat(&k, "/g").r.version;
    assert(kit_rename(&k, 0, "/g", "/g").r.version == version);
    WANT(kit_rename(&k, 0, "/g", "/d/e/f"), E(EXISTS));
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/g", "/d"), E(IS_CONTAINER));
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/d", "/g"), E(NOT_CONTAINER));
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/empty", "/d"), E(NOT_EMPTY));
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/empty", "/"), E(NOT_EMPTY));
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/d", "/empty"), OK);
    WANT(kit_stat(&k, "/d"), E(NOT_FOUND));
    assert(kit_get(&k, "/empty/e/f").data[0] == '1');
    struct answer a = kit_rename(&k, CRAIL_OPF_OVERWRITE, "/g", "/empty/e/f");
    WANT(a, OK);
    assert(a.r.version > version);
    assert(kit_get(&k, "/empty/e/f").data[0] == '2');
    assert(stats_of(&k).nodes == 4);
    kit_check(&k);
    kit_close(&k);
}

static void a_moved_directory_is_not_found_by_its_old_path(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/a/b/c/f", "1", 1), OK);
    WANT(kit_get(&k, "/a/b/c/f"), OK);
    WANT(kit_rename(&k, 0, "/a/b", "/z"), OK);
    WANT(kit_get(&k, "/a/b/c/f"), E(NOT_FOUND));
    WANT(kit_get(&k, "/z/c/f"), OK);
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/a/b/c/f", "2", 1), OK);
    assert(kit_get(&k, "/a/b/c/f").data[0] == '2' && kit_get(&k, "/z/c/f").data[0] == '1');
    WANT(kit_rmtree(&k, "/a"), OK);
    WANT(kit_get(&k, "/a/b/c/f"), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

static void remove_and_rmtree_follow_their_rules(void) {
    struct kit k;
    char path[64];
    kit_open(&k, 64 << 20);
    struct crail_meta_stats fresh = stats_of(&k);
    WANT(kit_remove(&k, 0, "/"), E(INVALID_ARGUMENT));
    WANT(kit_rmtree(&k, "/"), E(INVALID_ARGUMENT));
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/d/f", "1", 1), OK);
    WANT(kit_remove(&k, 0, "/d"), E(NOT_EMPTY));
    WANT(kit_remove(&k, CRAIL_OPF_LEAF_ONLY, "/d"), E(IS_CONTAINER));
    WANT(kit_remove(&k, CRAIL_OPF_LEAF_ONLY, "/d/f"), OK);
    WANT(kit_remove(&k, 0, "/d"), OK);
    WANT(kit_remove(&k, 0, "/d"), E(NOT_FOUND));
    WANT(kit_rmtree(&k, "/d"), E(NOT_FOUND));
    for (uint32_t i = 0; i < 3000; i++) {
        sprintf(path, "/t/%u/%u/f%u", i % 7, i % 91, i);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, path, 40), OK);
    }
    WANT(kit_rmtree(&k, "/t"), OK);
    WANT(kit_stat(&k, "/t"), E(NOT_FOUND));
    assert(stats_of(&k).background_pending);
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/t/0/0/f0", "new", 3), OK);
    for (int left = 1; left;) {
        left = crail_meta_step(k.m, 0);
        kit_check(&k);
    }
    assert(stats_of(&k).background_pending == 0 && stats_of(&k).nodes == 5);
    WANT(kit_get(&k, "/t/0/0/f0"), OK);
    WANT(kit_rmtree(&k, "/t"), OK);
    kit_settle(&k);
    assert(stats_of(&k).arena_bytes_used == fresh.arena_bytes_used);
    kit_check(&k);
    kit_close(&k);
}

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

/* ---- size ------------------------------------------------------------------------------------------ */

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
    } damage[] = {{&root->size, 1},
                  {&dir->parent, 1},
                  {&dir->hash, 4},
                  {&dir->name, 1},
                  {&rec->state, 1},
                  {&rec->len, 1},
                  {&k.m->nodes, 1},
                  {&k.m->inline_bytes, 1},
                  {&k.m->arena.bytes_used, 16},
                  {&k.m->names.count, 1},
                  {&k.m->servers[0]->count[CRAIL_COUNT_FREE], 1}};
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
    RUN(malformed_paths_are_refused);
    RUN(names_and_paths_may_be_as_long_as_said);
    RUN(the_middle_of_a_path_must_be_directories);
    RUN(malformed_operations_are_invalid_arguments);
    RUN(an_inline_value_comes_back_as_it_was_put);
    RUN(versions_grow_across_removal_and_conditions_hold);
    RUN(a_full_arena_refuses_and_changes_nothing);
    RUN(rename_follows_its_rules);
    RUN(a_moved_directory_is_not_found_by_its_old_path);
    RUN(remove_and_rmtree_follow_their_rules);
    RUN(pages_show_every_name_once_in_order);
    RUN(a_listing_is_right_while_its_index_is_built);
    RUN(an_index_survives_churn_and_is_dropped_when_cold);
    RUN(a_grant_becomes_a_value_and_is_reused_only_when_retired);
    RUN(space_in_pieces_is_granted_in_pieces_or_not_at_all);
    RUN(commit_grants_again_while_space_is_plenty);
    RUN(grants_go_round_the_servers_that_are_up);
    RUN(orders_are_due_again_when_a_server_comes_back);
    RUN(a_lost_server_takes_its_granules_along);
    RUN(a_session_that_ends_gives_its_grants_back);
    RUN(many_nodes_come_and_go_and_leave_nothing);
    RUN(names_that_differ_late_are_still_in_order);
    RUN(several_indexes_live_side_by_side);
    RUN(an_index_without_memory_is_an_error_and_no_endless_wait);
    RUN(large_extents_and_old_generations_are_kept);
    RUN(damage_is_found_by_the_check);
    printf("seed %" PRIu64 " steps %u\n", seed, steps);
    fflush(stdout);
    a_random_life_agrees_with_the_model(seed, steps);
    printf("ok a_random_life_agrees_with_the_model\n");
    return 0;
}
