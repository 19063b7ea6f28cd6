/* Who listens is told each change; what waits is not answered before it holds. sources: meta base */
#include "meta_kit.h"

static char told[4096];

static void note(void *ctx, enum crail_event_kind kind, const char *path, uint32_t len, uint64_t version) {
    size_t at = strlen(told);
    assert(ctx == told && version);
    snprintf(told + at, sizeof(told) - at, "%s%c%.*s", at ? " " : "", kind == CRAIL_CHANGE_PUT ? '+' : '-', (int)len,
             path);
}

static void note_made(void *ctx, const char *path, uint32_t len, uint32_t count, uint64_t version) {
    uint32_t names = 0, nth = 0;
    for (uint32_t at = 0; at < len; at++)
        names += path[at] == '/';
    for (uint32_t at = 1; at <= len; at++) {
        if (at < len && path[at] != '/')
            continue;
        if (++nth > names - count)
            note(ctx, CRAIL_CHANGE_PUT, path, at, version++);
    }
}

static void TOLD(const char *wanted) {
    if (strcmp(told, wanted)) {
        fprintf(stderr, "told \"%s\", wanted \"%s\"\n", told, wanted);
        abort();
    }
    *told = 0;
}

static void who_listens_is_told_of_every_change(void) {
    struct kit k;
    struct crail_extent e;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 64);
    crail_meta_listener_set(k.m, (struct crail_meta_listener){told, note, note_made});
    WANT(kit_put(&k, 0, "/silence", "x", 1), OK);
    TOLD("");
    crail_meta_listen(k.m, 1);
    crail_meta_listen(k.m, 1);
    WANT(kit_put(&k, 0, "/a", "x", 1), OK);
    WANT(kit_put(&k, 0, "/a", "y", 1), OK);
    TOLD("+/a +/a");
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/one/two/three/leaf", "x", 1), OK);
    TOLD("+/one +/one/two +/one/two/three +/one/two/three/leaf");
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/one/two/4/5", "x", 1), OK);
    TOLD("+/one/two/4 +/one/two/4/5");
    WANT(kit_mkdir(&k, CRAIL_OPF_PARENTS, "/p/q"), OK);
    WANT(kit_mkdir(&k, CRAIL_OPF_EXIST_OK, "/p/q"), OK);
    TOLD("+/p +/p/q");
    struct answer a = kit_alloc(&k, 0, 5000);
    e = extent_at(&a, 0);
    WANT(kit_commit(&k, 0, "/p/large", &e, 1, 0, 5000), OK);
    TOLD("+/p/large");
    WANT(kit_rename(&k, 0, "/p", "/one/p"), OK);
    TOLD("-/p +/one/p");
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/a", "/one/p/large"), OK);
    TOLD("-/a +/one/p/large");
    WANT(kit_rename(&k, 0, "/one", "/one"), OK);
    TOLD("");
    WANT(kit_remove(&k, 0, "/one/p/large"), OK);
    WANT(kit_rmtree(&k, "/one"), OK);
    kit_settle(&k);
    TOLD("-/one/p/large -/one");
    WANT(kit_put(&k, CRAIL_OPF_IF_ABSENT, "/silence", "x", 1), E(EXISTS));
    WANT(kit_get(&k, "/silence"), OK);
    crail_meta_listen(k.m, -1);
    WANT(kit_remove(&k, 0, "/silence"), OK);
    TOLD("-/silence");
    crail_meta_listen(k.m, -1);
    WANT(kit_put(&k, 0, "/silence", "x", 1), OK);
    TOLD("");
    kit_close(&k);
}

static void a_path_is_built_as_it_was_walked(void) {
    struct kit k;
    struct crail_walk w;
    char path[CRAIL_PATH_MAX + 1], out[CRAIL_PATH_MAX];
    kit_open(&k, 64 << 20);
    assert(crail_tree_path(k.m, k.m->root, out) == 1 && out[0] == '/');
    for (uint32_t len = 2; len <= CRAIL_PATH_MAX; len += 2)
        memcpy(path + len - 2, "/x", 2);
    path[CRAIL_PATH_MAX] = 0;
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, "x", 1), OK);
    assert(crail_path_walk(k.m, path, CRAIL_PATH_MAX, &w) == 0);
    assert(crail_tree_path(k.m, w.node, out) == CRAIL_PATH_MAX && memcmp(out, path, CRAIL_PATH_MAX) == 0);
    WANT(kit_rename(&k, 0, "/x", "/xx"), OK);
    assert(crail_tree_path(k.m, w.node, out) == 0 && crail_tree_reachable(k.m, w.node));
    WANT(kit_rmtree(&k, "/xx"), OK);
    assert(!crail_tree_reachable(k.m, w.node) && crail_tree_path(k.m, w.node, out) == 0);
    kit_settle(&k);
    kit_close(&k);
}

static struct answer wait_stat(struct kit *k, int flags, const char *path, uint64_t version) {
    return kit_op(k, CRAIL_OP_STAT, CRAIL_OPF_WAIT | flags, path, NULL, 0, 1000, version, 0);
}

static struct answer wait_get(struct kit *k, const char *path) {
    return kit_op(k, CRAIL_OP_GET, CRAIL_OPF_WAIT, path, NULL, 0, 1000, 0, 0);
}

static void what_waits_is_answered_when_it_holds_and_not_before(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(wait_get(&k, "/d/a"), KIT_WAITS);
    WANT(wait_stat(&k, 0, "/d/a", 0), KIT_WAITS);
    WANT(wait_stat(&k, CRAIL_OPF_ABSENT, "/d/a", 0), OK);
    uint64_t version = kit_put(&k, CRAIL_OPF_PARENTS, "/d/a", "value", 5).r.version;
    struct answer a = wait_get(&k, "/d/a");
    WANT(a, OK);
    assert(a.r.size == 5 && memcmp(a.data, "value", 5) == 0 && a.r.version == version);
    WANT(wait_stat(&k, 0, "/d/a", 0), OK);
    WANT(wait_stat(&k, CRAIL_OPF_IF_VERSION, "/d/a", version), OK);
    WANT(wait_stat(&k, CRAIL_OPF_IF_VERSION, "/d/a", version + 1), KIT_WAITS);
    WANT(wait_stat(&k, CRAIL_OPF_ABSENT, "/d/a", 0), KIT_WAITS);
    version = kit_put(&k, 0, "/d/a", "other", 5).r.version;
    WANT(wait_stat(&k, CRAIL_OPF_IF_VERSION, "/d/a", version), OK);
    WANT(kit_remove(&k, 0, "/d/a"), OK);
    a = wait_stat(&k, CRAIL_OPF_ABSENT, "/d/a", 0);
    WANT(a, OK);
    assert(a.r.data_len == 0 && a.r.kind == CRAIL_KIND_NONE);
    WANT(wait_stat(&k, CRAIL_OPF_IF_VERSION, "/d/a", version), KIT_WAITS);
    kit_close(&k);
}

static void what_will_never_hold_does_not_wait(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(kit_put(&k, 0, "/leaf", "x", 1), OK);
    WANT(wait_get(&k, "/"), E(IS_CONTAINER));
    WANT(wait_get(&k, "/leaf/below"), E(NOT_CONTAINER));
    WANT(wait_stat(&k, 0, "/leaf/below", 0), E(NOT_CONTAINER));
    WANT(wait_stat(&k, CRAIL_OPF_ABSENT, "/leaf/below", 0), OK);
    WANT(wait_get(&k, "no"), E(INVALID_PATH));
    WANT(wait_stat(&k, CRAIL_OPF_ABSENT, "no", 0), E(INVALID_PATH));
    WANT(wait_stat(&k, CRAIL_OPF_ABSENT | CRAIL_OPF_IF_VERSION, "/leaf", 1), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_STAT, CRAIL_OPF_ABSENT, "/leaf", NULL, 0, 0, 0, 0), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_STAT, CRAIL_OPF_IF_VERSION, "/leaf", NULL, 0, 0, 9, 0), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_GET, CRAIL_OPF_WAIT, "/leaf", NULL, 0, CRAIL_WAIT_MS_MAX + 1, 0, 0), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_PUT, CRAIL_OPF_WAIT, "/leaf", "x", 1, 5, 0, 0), E(INVALID_ARGUMENT));
    kit_close(&k);
}

int main(void) {
    RUN(who_listens_is_told_of_every_change);
    RUN(a_path_is_built_as_it_was_walked);
    RUN(what_waits_is_answered_when_it_holds_and_not_before);
    RUN(what_will_never_hold_does_not_wait);
    return 0;
}
