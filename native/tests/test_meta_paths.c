/* The meta room: paths, values inside nodes, moving and removing.
 * sources: meta base */
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
        bool known = (code >= 2 && code <= 4) || code == CRAIL_OP_ATTRIBUTES || code == CRAIL_OP_COLUMN ||
                     (code >= 16 && code <= 23) || code == CRAIL_OP_INCR || code == CRAIL_OP_SETATTR ||
                     code == CRAIL_OP_END || code == CRAIL_OP_TRUNCATE;
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

static void paths_that_are_too_long_are_not_hashed_ahead(void) {
    struct kit k;
    static char path[UINT16_MAX];
    kit_open(&k, 1 << 20);
    memset(path, 'x', sizeof(path));
    path[0] = '/';
    for (uint32_t len = CRAIL_PATH_MAX; len < sizeof(path); len += 1000) {
        path[len - 2] = '/';
        uint32_t at = k.m->ahead_next;
        crail_meta_prefetch(k.m, &(struct crail_op){.path_len = (uint16_t)len}, path);
        assert((k.m->ahead[at].prefix != 0) == (len == CRAIL_PATH_MAX));
    }
    kit_close(&k);
}

int main(void) {
    RUN(malformed_paths_are_refused);
    RUN(paths_that_are_too_long_are_not_hashed_ahead);
    RUN(names_and_paths_may_be_as_long_as_said);
    RUN(the_middle_of_a_path_must_be_directories);
    RUN(malformed_operations_are_invalid_arguments);
    RUN(an_inline_value_comes_back_as_it_was_put);
    RUN(versions_grow_across_removal_and_conditions_hold);
    RUN(a_full_arena_refuses_and_changes_nothing);
    RUN(rename_follows_its_rules);
    RUN(a_moved_directory_is_not_found_by_its_old_path);
    RUN(remove_and_rmtree_follow_their_rules);
    return 0;
}
