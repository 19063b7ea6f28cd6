/* What each kind of node takes, refuses and becomes. sources: meta base */
#include "meta_kit.h"

static const enum crail_kind containers[] = {CRAIL_KIND_DIRECTORY, CRAIL_KIND_TABLE, CRAIL_KIND_MULTIFILE,
                                             CRAIL_KIND_QUEUE};

static void make_one_of_each(struct kit *k) {
    WANT(kit_put(k, 0, "/file", "x", 1), OK);
    WANT(kit_make(k, 0, CRAIL_KIND_DIRECTORY, "/2"), OK);
    WANT(kit_make(k, 0, CRAIL_KIND_TABLE, "/3"), OK);
    WANT(kit_make(k, 0, CRAIL_KIND_MULTIFILE, "/4"), OK);
    WANT(kit_make(k, 0, CRAIL_KIND_QUEUE, "/5"), OK);
}

static void a_container_is_made_of_its_kind_and_joined_by_its_kind_only(void) {
    struct kit k;
    char path[16];
    kit_open(&k, 64 << 20);
    make_one_of_each(&k);
    for (size_t i = 0; i < 4; i++) {
        sprintf(path, "/%d", containers[i]);
        assert(kit_stat(&k, path).r.kind == containers[i]);
        for (size_t other = 0; other < 4; other++) {
            WANT(kit_make(&k, CRAIL_OPF_EXIST_OK, containers[other], path), i == other ? OK : E(EXISTS));
            WANT(kit_make(&k, 0, containers[other], path), E(EXISTS));
        }
        WANT(kit_get(&k, path), E(IS_CONTAINER));
        WANT(kit_put(&k, 0, path, "x", 1), E(IS_CONTAINER));
        WANT(kit_list(&k, path, "", 0), OK);
        WANT(kit_make(&k, CRAIL_OPF_EXIST_OK, containers[i], "/file"), E(EXISTS));
    }
    WANT(kit_make(&k, 0, CRAIL_KIND_FILE, "/f"), E(INVALID_ARGUMENT));
    WANT(kit_make(&k, 0, CRAIL_KIND_BARRIER, "/b"), E(INVALID_ARGUMENT));
    WANT(kit_make(&k, 0, (enum crail_kind)7, "/b"), E(INVALID_ARGUMENT));
    assert(stats_of(&k).directories == 5);
    kit_check(&k);
    kit_close(&k);
}

static void tables_and_multifiles_take_leaves_and_a_queue_takes_nothing_by_path(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    make_one_of_each(&k);
    for (const char *dir = "34"; *dir; dir++) {
        char path[16];
        sprintf(path, "/%c/leaf", *dir);
        WANT(kit_put(&k, 0, path, "x", 1), OK);
        WANT(kit_put(&k, 0, path, "y", 1), OK);
        sprintf(path, "/%c/box", *dir);
        for (size_t i = 0; i < 4; i++)
            WANT(kit_make(&k, 0, containers[i], path), E(INVALID_ARGUMENT));
        sprintf(path, "/%c/box/leaf", *dir);
        WANT(kit_put(&k, 0, path, "x", 1), E(NOT_FOUND));
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, "x", 1), E(INVALID_ARGUMENT));
        WANT(kit_make(&k, CRAIL_OPF_PARENTS, CRAIL_KIND_TABLE, path), E(INVALID_ARGUMENT));
    }
    WANT(kit_put(&k, 0, "/5/item", "x", 1), E(INVALID_ARGUMENT));
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/5/box/item", "x", 1), E(INVALID_ARGUMENT));
    WANT(kit_mkdir(&k, 0, "/5/box"), E(INVALID_ARGUMENT));
    WANT(kit_make(&k, CRAIL_OPF_PARENTS, CRAIL_KIND_TABLE, "/new/table"), OK);
    assert(kit_stat(&k, "/new").r.kind == CRAIL_KIND_DIRECTORY);
    kit_check(&k);
    kit_close(&k);
}

static void a_rename_respects_the_kinds(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    make_one_of_each(&k);
    WANT(kit_rename(&k, 0, "/file", "/5/file"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/2", "/3/box"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/4", "/3/box"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/file", "/3/file"), OK);
    WANT(kit_rename(&k, 0, "/3/file", "/4/file"), OK);
    WANT(kit_rename(&k, 0, "/4/file", "/file"), OK);
    /* Onto another: an empty container by one of its kind. */
    for (size_t i = 0; i < 4; i++) {
        char from[16], to[16];
        sprintf(from, "/%d", containers[i]);
        WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, from, "/file"), E(NOT_CONTAINER));
        WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/file", from), E(IS_CONTAINER));
        for (size_t other = 0; other < 4; other++) {
            sprintf(to, "/%d", containers[other]);
            if (i != other)
                WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, from, to), E(EXISTS));
        }
        sprintf(to, "/%d-again", containers[i]);
        WANT(kit_make(&k, 0, containers[i], to), OK);
        WANT(kit_rename(&k, 0, from, to), E(EXISTS));
        WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, from, to), OK);
        WANT(kit_rename(&k, 0, to, from), OK);
    }
    WANT(kit_put(&k, 0, "/3/leaf", "x", 1), OK);
    WANT(kit_make(&k, 0, CRAIL_KIND_TABLE, "/t"), OK);
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/t", "/3"), E(NOT_EMPTY));
    WANT(kit_remove(&k, 0, "/3"), E(NOT_EMPTY));
    WANT(kit_rmtree(&k, "/3"), OK);
    kit_settle(&k);
    kit_check(&k);
    kit_close(&k);
}

int main(void) {
    RUN(a_container_is_made_of_its_kind_and_joined_by_its_kind_only);
    RUN(tables_and_multifiles_take_leaves_and_a_queue_takes_nothing_by_path);
    RUN(a_rename_respects_the_kinds);
    return 0;
}
