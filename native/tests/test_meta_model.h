/* A random life of the meta room against the simplest model there is: a flat array of paths, and a byte per granule
 * that says whether it was handed out and not yet confirmed free. Part of test_meta_life.c. */

#define MODEL_MAX 3000u
#define MODEL_SERVERS 40u
#define MODEL_GRANULES 300u
#define MODEL_SECOND 1000000000ll

struct entry {
    char path[400];
    int kind;
    bool is_inline;
    uint64_t version, size;
    uint8_t fill;
    uint64_t filled; /* bytes of an inline value that are `fill`; zeros follow */
    bool is_number;  /* made by INCR */
    int64_t number;
    int64_t ttl, expires; /* 0: none, never */
    bool owned;           /* by the session */
    uint32_t extents_n;
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
};

struct grant {
    uint32_t n;
    uint64_t bytes;
    struct crail_extent e[CRAIL_EXTENTS_MAX];
};

struct model {
    struct kit k;
    uint64_t seed;
    uint32_t n;
    struct entry entry[MODEL_MAX]; /* the root is not among them */
    uint32_t grants_n;
    struct grant grant[16];
    uint32_t servers_n;
    enum crail_meta_server_state state[MODEL_SERVERS + 1];
    uint8_t taken[MODEL_SERVERS + 1][2][MODEL_GRANULES];
};

static uint32_t pick(struct model *w, uint32_t below) {
    return kit_random(&w->seed, below);
}

static struct entry *model_find(struct model *w, const char *path) {
    for (uint32_t i = 0; i < w->n; i++)
        if (strcmp(w->entry[i].path, path) == 0)
            return &w->entry[i];
    return NULL;
}

static bool is_below(const char *path, const char *dir) {
    size_t n = strlen(dir);
    return strncmp(path, dir, n) == 0 && path[n] == '/';
}

static uint32_t children(struct model *w, const char *dir) {
    uint32_t n = 0;
    size_t len = strlen(dir);
    for (uint32_t i = 0; i < w->n; i++)
        n += is_below(w->entry[i].path, dir) && !strchr(w->entry[i].path + len + 1, '/');
    return n;
}

/* What the directories above a path make of an operation on it. */
static int above(struct model *w, const char *path) {
    char dir[400];
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path), path);
        const struct entry *e = model_find(w, dir);
        if (!e)
            return E(NOT_FOUND);
        if (e->kind == CRAIL_KIND_FILE)
            return E(NOT_CONTAINER);
    }
    return OK;
}

/* What the container that holds it, or would hold what is missing above it, says to a node of this kind. */
static int taken_in(struct model *w, const char *path, int kind) {
    char dir[400];
    snprintf(dir, sizeof(dir), "%.*s", (int)(strrchr(path, '/') - path), path);
    while (*dir && !model_find(w, dir)) {
        *strrchr(dir, '/') = 0;
        kind = CRAIL_KIND_DIRECTORY;
    }
    int in = *dir ? model_find(w, dir)->kind : CRAIL_KIND_DIRECTORY;
    bool fine = in == CRAIL_KIND_DIRECTORY || (in != CRAIL_KIND_QUEUE && kind == CRAIL_KIND_FILE);
    return fine ? OK : E(INVALID_ARGUMENT);
}

/* The next operation says this of the node's end; now and then nothing. */
static struct crail_options random_life(struct model *w) {
    struct crail_options o = {.storage_class = CRAIL_CLASS_ANY};
    if (pick(w, 6) == 0) {
        o.flags |= CRAIL_OPTION_TTL;
        o.ttl_ns = (1 + pick(w, 3)) * (uint64_t)MODEL_SECOND;
    }
    if (pick(w, 20) == 0)
        o.flags |= CRAIL_OPTION_SESSION;
    if (o.flags)
        kit_with(&w->k, o);
    return o;
}

static void model_life(struct model *w, struct entry *e, const struct crail_options *o) {
    e->owned = o->flags & CRAIL_OPTION_SESSION;
    e->ttl = (int64_t)o->ttl_ns;
    e->expires = e->ttl ? w->k.now_ns + e->ttl : 0;
}

static struct entry *model_add(struct model *w, const char *path, int kind) {
    assert(w->n < MODEL_MAX);
    struct entry *e = &w->entry[w->n++];
    memset(e, 0, sizeof(*e));
    strcpy(e->path, path);
    e->kind = kind;
    return e;
}

static void model_add_parents(struct model *w, const char *path) {
    char dir[400];
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path), path);
        if (!model_find(w, dir))
            model_add(w, dir, CRAIL_KIND_DIRECTORY)->version = kit_stat(&w->k, dir).r.version;
    }
}

static void model_remove(struct model *w, struct entry *e) {
    *e = w->entry[--w->n];
}

static void model_remove_tree(struct model *w, const char *top) {
    char path[400];
    strcpy(path, top);
    for (uint32_t i = w->n; i--;)
        if (strcmp(w->entry[i].path, path) == 0 || is_below(w->entry[i].path, path))
            model_remove(w, &w->entry[i]);
}

/* One to four components of few names, one of them long; or a name in the wide directory. */
static void random_path(struct model *w, char *out) {
    static const char *const names[] = {"a", "b", "cc", "\xc3\xa9t\xc3\xa9",
                                        "a-name-that-does-not-fit-into-a-node-because-it-is-longer-than-48-bytes"};
    if (pick(w, 3) == 0) {
        sprintf(out, "/wide/common-%u", pick(w, 700));
        return;
    }
    *out = 0;
    for (uint32_t depth = 1 + pick(w, 4); depth; depth--)
        sprintf(out + strlen(out), "/%s", names[pick(w, 5)]);
}

static void take(struct model *w, const struct crail_extent *e) {
    assert(w->state[e->server] == CRAIL_SERVER_UP);
    for (uint32_t i = 0; i < e->granules; i++) {
        assert(!w->taken[e->server][e->region][e->granule + i]);
        w->taken[e->server][e->region][e->granule + i] = 1;
    }
}

/* ---- the operations ------------------------------------------------------------------ */

/* The conditions of PUT and COMMIT. */
static int publish_status(struct model *w, const char *path, int flags, uint64_t version) {
    const struct entry *e = model_find(w, path);
    int rc = above(w, path);
    if (rc && !(rc == E(NOT_FOUND) && flags & CRAIL_OPF_PARENTS))
        return rc;
    if (e && e->kind != CRAIL_KIND_FILE)
        return E(IS_CONTAINER);
    if (!e && taken_in(w, path, CRAIL_KIND_FILE))
        return taken_in(w, path, CRAIL_KIND_FILE);
    if (e && flags & CRAIL_OPF_IF_ABSENT)
        return E(EXISTS);
    if (flags & CRAIL_OPF_IF_VERSION && (e ? e->version : 0) != version)
        return E(VERSION_CONFLICT);
    return OK;
}

static int publish_flags(struct model *w, const char *path, uint64_t *version) {
    const struct entry *e = model_find(w, path);
    *version = pick(w, 2) ? (e ? e->version : 0) : pick(w, 100);
    int flags = pick(w, 2) ? CRAIL_OPF_PARENTS : 0;
    if (pick(w, 8) == 0)
        flags |= CRAIL_OPF_IF_ABSENT;
    if (pick(w, 8) == 0)
        flags |= CRAIL_OPF_IF_VERSION;
    return flags;
}

static struct entry *published(struct model *w, const char *path, const struct answer *a, uint64_t size) {
    struct crail_result r = a->r;
    model_add_parents(w, path);
    struct entry *e = model_find(w, path);
    if (!e)
        e = model_add(w, path, CRAIL_KIND_FILE);
    assert(r.version > e->version);
    e->version = r.version;
    e->size = size;
    e->is_number = false;
    e->number = 0;
    return e;
}

static void do_put(struct model *w) {
    char path[400], value[CRAIL_INLINE_MAX];
    uint64_t version;
    random_path(w, path);
    uint32_t size = pick(w, 3) ? pick(w, 40) : pick(w, sizeof(value) + 1);
    uint8_t fill = (uint8_t)pick(w, 256);
    memset(value, fill, sizeof(value));
    int flags = publish_flags(w, path, &version);
    int want = publish_status(w, path, flags, version);
    struct crail_options life = random_life(w);
    struct answer a = kit_op(&w->k, CRAIL_OP_PUT, flags, path, value, size, 0, version, 0);
    WANT(a, want);
    if (want)
        return;
    struct entry *e = published(w, path, &a, size);
    model_life(w, e, &life);
    e->is_inline = true;
    e->fill = fill;
    e->filled = size;
    e->extents_n = 0;
}

/* What keeps what was said of the node's end begins its time again. */
static void renewed(struct model *w, struct entry *e, const struct answer *a) {
    assert(a->r.version > e->version);
    e->version = a->r.version;
    e->expires = e->ttl ? w->k.now_ns + e->ttl : 0;
}

static void do_incr(struct model *w) {
    char path[400];
    random_path(w, path);
    struct entry *e = model_find(w, path);
    int want = publish_status(w, path, 0, 0);
    if (!want && e && !(e->is_inline && e->is_number))
        return; /* what the bytes of others say is a matter of luck */
    int64_t by = (int64_t)pick(w, 2000) - 1000, got;
    struct answer a = kit_op(&w->k, CRAIL_OP_INCR, 0, path, NULL, 0, 0, (uint64_t)by, 0);
    WANT(a, want);
    if (want)
        return;
    if (!e)
        e = model_add(w, path, CRAIL_KIND_FILE);
    renewed(w, e, &a);
    e->number += by;
    e->is_number = e->is_inline = true;
    e->size = a.r.size;
    memcpy(&got, a.data, sizeof(got));
    assert(got == e->number);
}

static void truncated(struct model *w, struct entry *e, const char *path, uint64_t size, int want) {
    uint64_t was = kit_stat(&w->k, path).r.size;
    struct answer a = kit_op(&w->k, CRAIL_OP_TRUNCATE, 0, path, NULL, 0, 0, 0, size);
    WANT(a, want);
    if (!want && was == size)
        assert(a.r.version == e->version);
    else if (!want)
        renewed(w, e, &a);
}

static void do_truncate(struct model *w) {
    char path[400];
    random_path(w, path);
    struct entry *e = model_find(w, path);
    uint64_t size = pick(w, 5) ? pick(w, 40) : pick(w, CRAIL_INLINE_MAX + 100);
    int want = above(w, path) ? above(w, path) : publish_status(w, path, 0, 0);
    if (!want && !e)
        want = E(NOT_FOUND);
    if (!want && (size > CRAIL_INLINE_MAX || (!e->is_inline && size)))
        want = E(INVALID_ARGUMENT);
    truncated(w, e, path, size, want);
    if (want)
        return;
    if (e->is_number) { /* of its digits nothing is left */
        size = 0;
        truncated(w, e, path, size, OK);
    }
    e->is_number = false;
    e->is_inline = true;
    e->extents_n = 0;
    e->filled = e->filled < size ? e->filled : size;
    e->size = size;
}

/* Seconds pass, and what has expired goes with all below. */
static void do_time(struct model *w) {
    kit_pass(&w->k, (1 + pick(w, 2)) * MODEL_SECOND);
    for (uint32_t i = 0; i < w->n; i++) {
        if (w->entry[i].expires && w->entry[i].expires <= w->k.now_ns) {
            model_remove_tree(w, w->entry[i].path);
            i = UINT32_MAX; /* again from the first */
        }
    }
}

static void do_alloc(struct model *w) {
    if (w->grants_n == 16)
        return;
    struct grant *g = &w->grant[w->grants_n];
    g->bytes = 1 + pick(w, pick(w, 4) ? 40000 : 400000);
    struct answer a = kit_alloc(&w->k, pick(w, 2) ? CRAIL_OPF_ONE_EXTENT : 0, g->bytes);
    assert(a.status == OK || a.status == E(OUT_OF_SPACE));
    if (a.status)
        return;
    g->n = a.r.count;
    uint64_t granules = 0;
    for (uint32_t i = 0; i < g->n; i++) {
        g->e[i] = extent_at(&a, i);
        take(w, &g->e[i]);
        granules += g->e[i].granules;
    }
    assert(granules * 4096 >= g->bytes && granules * 4 <= 5 * ((g->bytes + 4095) / 4096));
    w->grants_n++;
}

static bool on_lost(const struct model *w, const struct crail_extent *e, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (w->state[e[i].server] == CRAIL_SERVER_LOST)
            return true;
    return false;
}

static void forget_grant(struct model *w, uint32_t i) {
    w->grant[i] = w->grant[--w->grants_n];
}

static void do_commit(struct model *w) {
    char path[400];
    uint64_t version;
    if (!w->grants_n)
        return;
    uint32_t i = pick(w, w->grants_n);
    struct grant g = w->grant[i];
    random_path(w, path);
    int flags = publish_flags(w, path, &version);
    struct crail_options life = {0};
    uint64_t size = pick(w, 3) ? g.bytes : 1 + pick(w, (uint32_t)g.bytes);
    bool lost = on_lost(w, g.e, g.n);
    int want = lost ? E(STALE_LOCATION) : publish_status(w, path, flags, version);
    if (pick(w, 4) == 0)
        flags |= CRAIL_OPF_GRANT_AGAIN;
    life = random_life(w);
    struct answer a = kit_commit(&w->k, flags, path, g.e, g.n, version, size);
    WANT(a, want);
    if (lost || !want)
        forget_grant(w, i);
    if (want)
        return;
    if (a.r.count) {
        struct grant *again = &w->grant[w->grants_n++];
        *again = (struct grant){.n = 1, .bytes = size};
        again->e[0] = extent_at(&a, 0);
        take(w, &again->e[0]);
    }
    struct entry *e = published(w, path, &a, size);
    e->is_inline = false;
    model_life(w, e, &life);
    a = kit_get(&w->k, path);
    e->extents_n = a.r.count;
    for (uint32_t x = 0; x < e->extents_n; x++) {
        e->extents[x] = extent_at(&a, x);
        assert(e->extents[x].granule == g.e[x].granule && e->extents[x].granules <= g.e[x].granules);
    }
}

static void do_release(struct model *w) {
    if (!w->grants_n)
        return;
    uint32_t i = pick(w, w->grants_n);
    WANT(kit_release(&w->k, w->grant[i].e, w->grant[i].n), OK);
    forget_grant(w, i);
}

static void do_get(struct model *w) {
    char path[400];
    random_path(w, path);
    const struct entry *e = model_find(w, path);
    struct answer a = kit_get(&w->k, path);
    if (!e) {
        WANT(a, above(w, path) ? above(w, path) : E(NOT_FOUND));
        return;
    }
    if (e->kind != CRAIL_KIND_FILE) {
        WANT(a, E(IS_CONTAINER));
        return;
    }
    if (!e->is_inline && on_lost(w, e->extents, e->extents_n)) {
        WANT(a, E(DATA_LOST));
        return;
    }
    WANT(a, OK);
    assert(a.r.version == e->version && a.r.size == e->size && a.r.kind == CRAIL_KIND_FILE);
    assert(!!(a.r.flags & CRAIL_RESF_INLINE) == e->is_inline && a.r.count == e->extents_n);
    for (uint32_t i = 0; e->is_inline && i < e->size; i++)
        assert(e->is_number || a.data[i] == (i < e->filled ? e->fill : 0));
    if (e->is_number)
        assert(strtoll(memcpy((char[32]){0}, a.data, e->size), NULL, 10) == e->number);
    if (!e->is_inline)
        assert(memcmp(a.data, e->extents, e->extents_n * sizeof(e->extents[0])) == 0);
    WANT(kit_stat(&w->k, path), OK);
}

static void do_mkdir(struct model *w) {
    char path[400];
    random_path(w, path);
    int flags = (pick(w, 2) ? CRAIL_OPF_PARENTS : 0) | (pick(w, 2) ? CRAIL_OPF_EXIST_OK : 0);
    struct entry *e = model_find(w, path);
    int want = above(w, path);
    if (want == E(NOT_FOUND) && flags & CRAIL_OPF_PARENTS)
        want = OK;
    int kind = pick(w, 2) ? CRAIL_KIND_DIRECTORY : (int)(CRAIL_KIND_DIRECTORY + pick(w, 4));
    if (!want && e && !(e->kind == kind && flags & CRAIL_OPF_EXIST_OK))
        want = E(EXISTS);
    if (!want && !e)
        want = taken_in(w, path, kind);
    struct crail_options life = random_life(w);
    struct answer a = kit_make(&w->k, flags, (enum crail_kind)kind, path);
    WANT(a, want);
    if (want)
        return;
    if (e)
        assert(a.r.version == e->version);
    model_add_parents(w, path);
    if (!e) {
        e = model_add(w, path, kind);
        e->version = a.r.version;
        model_life(w, e, &life);
    }
}

static void do_remove(struct model *w) {
    char path[400];
    random_path(w, path);
    struct entry *e = model_find(w, path);
    int want = e ? OK : above(w, path) ? above(w, path) : E(NOT_FOUND);
    if (e && children(w, path))
        want = E(NOT_EMPTY);
    WANT(kit_remove(&w->k, 0, path), want);
    if (!want)
        model_remove(w, e);
}

static void do_rmtree(struct model *w) {
    char path[400];
    if (pick(w, 100) == 0)
        strcpy(path, "/wide");
    else
        random_path(w, path);
    int want = model_find(w, path) ? OK : above(w, path) ? above(w, path) : E(NOT_FOUND);
    WANT(kit_rmtree(&w->k, path), want);
    if (!want)
        model_remove_tree(w, path);
}

static int rename_status(struct model *w, const char *from, const char *to, int flags) {
    const struct entry *f = model_find(w, from), *t = model_find(w, to);
    if (!f)
        return above(w, from) ? above(w, from) : E(NOT_FOUND);
    if (above(w, to))
        return above(w, to);
    if (f == t)
        return OK;
    if (is_below(to, from) || taken_in(w, to, f->kind))
        return E(INVALID_ARGUMENT);
    if (!t)
        return OK;
    if (!(flags & CRAIL_OPF_OVERWRITE))
        return E(EXISTS);
    if ((f->kind == CRAIL_KIND_FILE) != (t->kind == CRAIL_KIND_FILE))
        return f->kind == CRAIL_KIND_FILE ? E(IS_CONTAINER) : E(NOT_CONTAINER);
    if (f->kind != t->kind)
        return E(EXISTS);
    return children(w, to) ? E(NOT_EMPTY) : OK;
}

/* Trees can be moved below each other without end; the model's paths have one. */
static bool fits_below(struct model *w, const char *from, const char *to) {
    for (uint32_t i = 0; i < w->n; i++) {
        const char *path = w->entry[i].path;
        if (is_below(path, from) && strlen(to) + strlen(path) - strlen(from) >= sizeof(w->entry[i].path))
            return false;
    }
    return true;
}

static void do_rename(struct model *w) {
    char from[400], to[400], moved[800];
    random_path(w, from);
    random_path(w, to);
    if (!fits_below(w, from, to))
        return;
    int flags = pick(w, 2) ? CRAIL_OPF_OVERWRITE : 0;
    int want = rename_status(w, from, to, flags);
    struct answer a = kit_rename(&w->k, flags, from, to);
    WANT(a, want);
    if (want || strcmp(from, to) == 0)
        return;
    if (model_find(w, to))
        model_remove(w, model_find(w, to));
    model_find(w, from)->version = a.r.version;
    for (uint32_t i = 0; i < w->n; i++) {
        char *path = w->entry[i].path;
        if (strcmp(path, from) != 0 && !is_below(path, from))
            continue;
        snprintf(moved, sizeof(moved), "%s%s", to, path + strlen(from));
        assert(strlen(moved) < sizeof(w->entry[i].path));
        strcpy(path, moved);
    }
}

static void do_list(struct model *w) {
    char path[400] = "/wide", full[800];
    static char last[256];
    if (pick(w, 2))
        random_path(w, path);
    const struct entry *dir = model_find(w, path);
    if (!dir || dir->kind == CRAIL_KIND_FILE)
        return;
    if (pick(w, 2)) { /* only begins to build the index */
        struct crail_op op = {.code = CRAIL_OP_LIST, .path_len = (uint16_t)strlen(path)};
        w->k.reply.len = 0;
        if (crail_meta_execute(w->k.m, w->k.s, &op, path, NULL, NULL, ++w->k.now_ns, &w->k.reply))
            return;
    }
    uint32_t seen = 0, page = 1 + pick(w, 300);
    last[0] = 0;
    for (bool more = true; more;) {
        struct answer a = kit_list(&w->k, path, last, page);
        WANT(a, OK);
        for (uint32_t i = 0; i < a.r.count; i++) {
            struct crail_dirent d;
            char name[256];
            memcpy(&d, a.data, sizeof(d));
            snprintf(name, sizeof(name), "%.*s", d.name_len, (const char *)a.data + sizeof(d));
            assert(strcmp(last, name) < 0);
            strcpy(last, name);
            a.data += crail_pad8((uint32_t)sizeof(d) + d.name_len);
            snprintf(full, sizeof(full), "%s/%s", path, name);
            const struct entry *e = model_find(w, full);
            assert(e && e->kind == d.kind && e->version == d.version);
            assert(d.is_inline == (e->kind == CRAIL_KIND_FILE && e->is_inline));
        }
        seen += a.r.count;
        more = a.r.flags & CRAIL_RESF_MORE;
    }
    assert(seen == children(w, path));
}

static void do_servers(struct model *w) {
    uint32_t number = 1 + pick(w, w->servers_n);
    if (pick(w, 20) == 0 && w->servers_n < MODEL_SERVERS) {
        w->servers_n = kit_server(&w->k, 2, MODEL_GRANULES);
        w->state[w->servers_n] = CRAIL_SERVER_UP;
        return;
    }
    if (w->state[number] == CRAIL_SERVER_LOST)
        return;
    uint32_t up = 0;
    for (uint32_t i = 1; i <= w->servers_n; i++)
        up += w->state[i] == CRAIL_SERVER_UP;
    enum crail_meta_server_state state = pick(w, 2) ? CRAIL_SERVER_UP : CRAIL_SERVER_DOWN;
    if (pick(w, 40) == 0 && up > 1)
        state = CRAIL_SERVER_LOST;
    assert(crail_meta_server_set(w->k.m, number, state) == 0);
    w->state[number] = state;
}

/* Some orders are taken; of these some are confirmed, in a random sequence; the rest is lost with the connection. */
static void do_retire(struct model *w) {
    struct crail_retire order[40];
    uint32_t number = 1 + pick(w, w->servers_n);
    uint32_t n = crail_meta_retires_take(w->k.m, number, order, 1 + pick(w, 40));
    assert(!n || w->state[number] != CRAIL_SERVER_LOST);
    for (uint32_t i = 0; i < n; i++) {
        if (pick(w, 20) == 0)
            continue;
        assert(crail_meta_retires_done(w->k.m, number, &order[i], 1) == 0);
        for (uint32_t g = 0; g < order[i].granules; g++) {
            uint8_t *taken = &w->taken[number][order[i].region][order[i].granule + g];
            assert(*taken);
            *taken = 0;
        }
    }
}

static void do_session(struct model *w) {
    crail_meta_session_end(w->k.m, w->k.s);
    assert(crail_meta_session_open(w->k.m, ++w->k.next_session, &w->k.s) == 0);
    w->grants_n = 0;
    bool owns = false;
    for (uint32_t i = 0; i < w->n; i++)
        owns |= w->entry[i].owned;
    if (owns) /* else what is left to do is done whenever it may be */
        kit_settle(&w->k);
    for (uint32_t i = 0; i < w->n; i++) {
        if (w->entry[i].owned) {
            model_remove_tree(w, w->entry[i].path);
            i = UINT32_MAX;
        }
    }
}

/* Everything goes; nothing may stay behind. */
static void model_end(struct model *w) {
    for (uint32_t i = w->n; i--;)
        if (!strchr(w->entry[i].path + 1, '/'))
            WANT(kit_rmtree(&w->k, w->entry[i].path), OK);
    do_session(w);
    kit_settle(&w->k);
    for (uint32_t i = 1; i <= w->servers_n; i++) {
        if (w->state[i] != CRAIL_SERVER_LOST)
            crail_meta_server_set(w->k.m, i, CRAIL_SERVER_UP);
        kit_retire(&w->k, i);
    }
    struct crail_meta_stats st = stats_of(&w->k);
    assert(st.nodes == 1 && st.files == 0 && st.directories == 1 && st.values_inline_bytes == 0);
    assert(st.granules_free == st.granules_total && st.background_pending == 0);
    kit_check(&w->k);
}

static void a_random_life_agrees_with_the_model(uint64_t seed, uint32_t steps) {
    static void (*const likely[])(struct model *) = {
        do_put,    do_put,    do_put,    do_put,     do_alloc, do_alloc,    do_commit, do_commit,
        do_commit, do_get,    do_get,    do_get,     do_mkdir, do_remove,   do_remove, do_list,
        do_retire, do_retire, do_rename, do_release, do_incr,  do_truncate,
    };
    static void (*const rare[])(struct model *) = {do_rmtree, do_servers, do_session, do_servers, do_rename, do_time};
    struct model *w = calloc(1, sizeof(*w));
    assert(w);
    w->seed = seed | 1;
    kit_open(&w->k, 256 << 20);
    w->servers_n = kit_server(&w->k, 2, MODEL_GRANULES);
    w->state[w->servers_n] = CRAIL_SERVER_UP;
    for (uint32_t i = 0; i < steps; i++) {
        if (pick(w, 25) == 0)
            rare[pick(w, 6)](w);
        else
            likely[pick(w, 22)](w);
        if (pick(w, 3) == 0)
            crail_meta_step(w->k.m, 0);
        if (pick(w, 8) == 0)
            kit_check(&w->k);
        if (w->n > MODEL_MAX - 50)
            break;
    }
    model_end(w);
    kit_close(&w->k);
    free(w);
}
