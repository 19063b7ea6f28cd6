/* Nodes: made, linked into the tree, moved, given values, freed.
 *
 * A node in the tree is in the hash, in the list of its parent's children, counted in its parent's size, and in its
 * parent's ordered index if there is one. */
#include "meta/engine.h"

static bool name_is_apart(uint32_t len) {
    return len > CRAIL_NODE_NAME;
}

/* ---- making and linking ------------------------------------------------------ */

static void siblings_add(struct crail_meta *m, struct crail_node *dir, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    n->sib_prev = 0;
    n->sib_next = dir->first_child;
    if (dir->first_child)
        crail_node_at(m, dir->first_child)->sib_prev = ref;
    dir->first_child = ref;
    dir->size++;
}

static void siblings_remove(struct crail_meta *m, struct crail_node *dir, struct crail_node *n) {
    if (n->sib_prev)
        crail_node_at(m, n->sib_prev)->sib_next = n->sib_next;
    else
        dir->first_child = n->sib_next;
    if (n->sib_next)
        crail_node_at(m, n->sib_next)->sib_prev = n->sib_prev;
    n->sib_next = n->sib_prev = 0;
    assert(dir->size);
    dir->size--;
}

static void attach(struct crail_meta *m, crail_ref dir_ref, crail_ref ref, int64_t now_ns) {
    struct crail_node *dir = crail_node_at(m, dir_ref);
    assert(crail_node_is_container(dir));
    crail_names_insert(m, ref);
    siblings_add(m, dir, ref);
    dir->mtime_ns = now_ns;
    if (dir->index)
        crail_index_added(m, dir, ref);
}

void crail_tree_detach(struct crail_meta *m, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    struct crail_node *dir = crail_node_at(m, n->parent);
    crail_ref job = crail_job_around(m, n);
    assert(n->parent && crail_node_is_container(dir));
    crail_node_touch(m, ref);
    if (n->flags & CRAIL_NODE_ITEM)
        crail_queue_leaving(m, ref);
    if (dir->index)
        crail_index_removing(m, dir, ref);
    crail_names_remove(m, ref);
    siblings_remove(m, dir, n);
    n->parent = 0;
    n->hash_next = job;
    bool reachable = dir->parent || dir == crail_node_at(m, m->root); /* else: inside of a removed tree */
    if (crail_node_is_container(n) && reachable)
        crail_path_forget(m);
}

/* Stores the name; `name_ref` is a record for it where it does not fit. */
static void name_set(struct crail_meta *m, struct crail_node *n, const char *name, uint32_t len, crail_ref name_ref) {
    n->name_len = (uint8_t)len;
    if (name_is_apart(len)) {
        n->name_ref = name_ref;
        memcpy(crail_arena_at(&m->arena, name_ref), name, len);
    } else {
        memcpy(n->name, name, len);
    }
}

static void name_free(struct crail_meta *m, struct crail_node *n) {
    if (name_is_apart(n->name_len))
        crail_arena_free(&m->arena, n->name_ref, n->name_len);
}

static void count_node(struct crail_meta *m, const struct crail_node *n, int64_t by) {
    m->nodes += (uint64_t)by;
    if (crail_node_is_container(n))
        m->directories += (uint64_t)by;
    else
        m->files += (uint64_t)by;
}

/* What a node has from where it lies. */
static uint8_t flags_below(const struct crail_meta *m, const struct crail_node *dir) {
    bool in_job = dir->flags & CRAIL_NODE_IN_JOB || (dir->extra && crail_extra_at(m, dir->extra)->own_job);
    return (in_job ? CRAIL_NODE_IN_JOB : 0) | (dir->kind == CRAIL_KIND_QUEUE ? CRAIL_NODE_ITEM : 0);
}

crail_ref crail_tree_record(struct crail_meta *m, const char *name, uint32_t len, enum crail_kind kind) {
    crail_ref name_ref = 0;
    if (crail_tree_move_prepare(m, len, &name_ref))
        return 0;
    crail_ref ref = crail_arena_alloc(&m->arena, sizeof(struct crail_node));
    if (!ref) {
        if (name_ref)
            crail_arena_free(&m->arena, name_ref, len);
        return 0;
    }
    struct crail_node *n = crail_node_at(m, ref);
    memset(n, 0, sizeof(*n));
    n->kind = (uint8_t)kind;
    name_set(m, n, name, len, name_ref);
    count_node(m, n, 1);
    return ref;
}

void crail_tree_place(struct crail_meta *m, crail_ref ref, crail_ref dir, uint32_t hash) {
    struct crail_node *n = crail_node_at(m, ref);
    const struct crail_node *above = crail_node_at(m, dir);
    n->hash = hash;
    n->parent = dir;
    n->flags |= flags_below(m, above);
    attach(m, dir, ref, above->mtime_ns > n->mtime_ns ? above->mtime_ns : n->mtime_ns);
}

crail_ref crail_tree_create(struct crail_meta *m, crail_ref dir, const char *name, uint32_t len, uint32_t hash,
                            enum crail_kind kind, int64_t now_ns) {
    crail_ref ref = crail_tree_record(m, name, len, kind);
    if (!ref)
        return 0;
    struct crail_node *n = crail_node_at(m, ref);
    n->hash = hash;
    n->parent = dir;
    n->flags = dir ? flags_below(m, crail_node_at(m, dir)) : 0;
    n->id = ++m->last_id;
    n->version = ++m->last_version;
    n->mtime_ns = now_ns;
    crail_node_touch(m, ref);
    if (dir)
        attach(m, dir, ref, now_ns);
    if (n->flags & CRAIL_NODE_IN_JOB)
        crail_jobs_charge(m, crail_job_of(m, dir), n, 1, 0);
    return ref;
}

void crail_tree_free(struct crail_meta *m, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    assert(!n->parent && ref != m->root);
    if (crail_node_is_container(n)) {
        assert(!n->first_child && !n->size);
        if (n->index)
            crail_index_drop(m, n);
    } else if (crail_node_is_leaf(n)) {
        crail_value_publish(m, n, &(struct crail_value){0});
    }
    if (n->flags & CRAIL_NODE_IN_JOB || n->extra)
        crail_jobs_charge(m, crail_job_around(m, n), n, -1, 0);
    if (n->extra)
        crail_extra_free(m, n);
    name_free(m, n);
    count_node(m, n, -1);
    if (m->cut)
        crail_cut_node_free(m, ref);
    else
        crail_arena_free(&m->arena, ref, sizeof(*n));
}

int crail_tree_make_parents(struct crail_meta *m, const char *path, uint32_t len, struct crail_walk *w, int64_t now_ns,
                            uint32_t *made) {
    const char *p = path + w->gap;
    *made = 0;
    while (p < w->name) {
        uint32_t n = (uint32_t)((const char *)memchr(p, '/', (size_t)(path + len - p)) - p);
        crail_ref dir =
            crail_tree_create(m, w->dir, p, n, crail_names_hash(m, w->dir, p, n), CRAIL_KIND_DIRECTORY, now_ns);
        if (!dir) {
            crail_tree_unmake(m, w->dir, *made);
            return CRAIL_E_NO_MEMORY;
        }
        w->dir = dir;
        ++*made;
        p += n + 1;
    }
    w->hash = crail_names_hash(m, w->dir, w->name, w->name_len);
    return 0;
}

void crail_tree_unmake(struct crail_meta *m, crail_ref dir, uint32_t made) {
    while (made--) {
        crail_ref above = crail_node_at(m, dir)->parent;
        crail_tree_detach(m, dir);
        crail_tree_free(m, dir);
        dir = above;
    }
}

void crail_tree_remove(struct crail_meta *m, crail_ref ref) {
    crail_node_at(m, crail_node_at(m, ref)->parent)->mtime_ns = m->now_ns;
    crail_changed_node(m, CRAIL_CHANGE_DELETE, ref);
    crail_cut_removes(m);
    crail_tree_detach(m, ref);
    crail_reap_tree(m, ref);
}

bool crail_tree_reachable(const struct crail_meta *m, crail_ref ref) {
    while (crail_node_at(m, ref)->parent)
        ref = crail_node_at(m, ref)->parent;
    return ref == m->root;
}

uint32_t crail_tree_path(const struct crail_meta *m, crail_ref ref, char *out) {
    char text[CRAIL_PATH_MAX];
    uint32_t at = CRAIL_PATH_MAX;
    const struct crail_node *n = crail_node_at(m, ref);
    for (; n->parent; n = crail_node_at(m, n->parent)) {
        if (at < n->name_len + 1u)
            return 0;
        at -= n->name_len;
        memcpy(text + at, crail_node_name(m, n), n->name_len);
        text[--at] = '/';
    }
    if (n != crail_node_at(m, m->root))
        return 0;
    if (at == CRAIL_PATH_MAX)
        text[--at] = '/';
    memcpy(out, text + at, CRAIL_PATH_MAX - at);
    return CRAIL_PATH_MAX - at;
}

int crail_tree_takes(const struct crail_node *dir, enum crail_kind kind) {
    switch (dir->kind) {
    case CRAIL_KIND_DIRECTORY:
        return 0;
    case CRAIL_KIND_TABLE:
    case CRAIL_KIND_MULTIFILE:
        return kind == CRAIL_KIND_FILE ? 0 : CRAIL_E_INVALID_ARGUMENT;
    default: /* a queue: its own operations make its items */
        return CRAIL_E_INVALID_ARGUMENT;
    }
}

/* ---- moving -------------------------------------------------------------------- */

int crail_tree_move_prepare(struct crail_meta *m, uint32_t name_len, crail_ref *name_ref) {
    *name_ref = 0;
    if (!name_is_apart(name_len))
        return 0;
    *name_ref = crail_arena_alloc(&m->arena, name_len);
    return *name_ref ? 0 : CRAIL_E_NO_MEMORY;
}

void crail_tree_move(struct crail_meta *m, crail_ref ref, crail_ref dir, const char *name, uint32_t len, uint32_t hash,
                     crail_ref name_ref, int64_t now_ns) {
    struct crail_node *n = crail_node_at(m, ref);
    crail_ref from_job = crail_job_around(m, n), to_job = crail_job_of(m, dir);
    int64_t bytes = crail_node_is_leaf(n) ? (int64_t)n->size : 0;
    crail_node_at(m, n->parent)->mtime_ns = now_ns;
    if (from_job != to_job)
        crail_jobs_charge(m, from_job, n, -1, -bytes);
    crail_cut_moves(m);
    crail_tree_detach(m, ref);
    name_free(m, n);
    name_set(m, n, name, len, name_ref);
    n->hash = hash;
    n->parent = dir;
    n->version = ++m->last_version;
    uint8_t own =
        n->flags & (CRAIL_NODE_INDEX_FAILED | CRAIL_NODE_TAIL_CLOSED | CRAIL_NODE_STORED | CRAIL_NODE_FLUSHED);
    n->flags = (uint8_t)(own | flags_below(m, crail_node_at(m, dir)));
    attach(m, dir, ref, now_ns);
    if (from_job != to_job)
        crail_jobs_charge(m, to_job, n, 1, bytes);
}

/* ---- values ---------------------------------------------------------------------- */

int crail_value_inline(struct crail_meta *m, const void *bytes, uint32_t size, struct crail_value *v) {
    *v = (struct crail_value){.size = size};
    if (size <= CRAIL_NODE_TINY) {
        if (size)
            memcpy(v->tiny, bytes, size);
        return 0;
    }
    v->data = crail_arena_alloc(&m->arena, size);
    if (!v->data)
        return CRAIL_E_NO_MEMORY;
    memcpy(crail_arena_at(&m->arena, v->data), bytes, size);
    return 0;
}

static uint32_t runs_bytes(uint32_t n) {
    return n * (uint32_t)sizeof(struct crail_run);
}

int crail_value_runs(struct crail_meta *m, const struct crail_run *runs, uint32_t n, uint64_t size,
                     struct crail_value *v) {
    assert(n >= 1 && n <= CRAIL_EXTENTS_MAX);
    *v = (struct crail_value){.size = size, .extents = (uint8_t)n};
    if (n == 1) {
        v->run = runs[0];
        return 0;
    }
    v->data = crail_arena_alloc(&m->arena, runs_bytes(n));
    if (!v->data)
        return CRAIL_E_NO_MEMORY;
    memcpy(crail_arena_at(&m->arena, v->data), runs, runs_bytes(n));
    return 0;
}

static void data_free(struct crail_meta *m, crail_ref data, uint32_t extents, uint64_t size) {
    if (data)
        crail_arena_free(&m->arena, data, extents ? runs_bytes(extents) : (uint32_t)size);
}

void crail_value_discard(struct crail_meta *m, struct crail_value *v) {
    data_free(m, v->data, v->extents, v->size);
}

const void *crail_value_bytes(const struct crail_meta *m, const struct crail_node *n) {
    assert(!n->extents);
    return n->data ? crail_arena_at(&m->arena, n->data) : n->tiny;
}

const struct crail_run *crail_value_runs_of(const struct crail_meta *m, const struct crail_node *n) {
    return n->data ? crail_arena_at(&m->arena, n->data) : &n->run;
}

void crail_value_replace(struct crail_meta *m, struct crail_node *n, const struct crail_value *v, uint32_t staying) {
    if (n->flags & CRAIL_NODE_IN_JOB || n->extra)
        crail_jobs_charge(m, crail_job_around(m, n), n, 0, (int64_t)v->size - (int64_t)n->size);
    const struct crail_run *old = crail_value_runs_of(m, n);
    assert(staying <= n->extents && staying <= v->extents);
    for (uint32_t i = staying; i < n->extents; i++)
        crail_run_drop(m, &old[i]);
    data_free(m, n->data, n->extents, n->size);
    m->inline_bytes -= n->extents ? 0 : n->size;
    m->inline_bytes += v->extents ? 0 : v->size;
    n->size = v->size;
    n->extents = v->extents;
    n->flags &= (uint8_t) ~(CRAIL_NODE_TAIL_CLOSED | CRAIL_NODE_FLUSHED);
    n->flags |= v->is_flushed ? CRAIL_NODE_FLUSHED : 0;
    n->data = v->data;
    memcpy(n->tiny, v->tiny, sizeof(n->tiny));
}

void crail_value_publish(struct crail_meta *m, struct crail_node *n, const struct crail_value *v) {
    crail_value_replace(m, n, v, 0);
}
