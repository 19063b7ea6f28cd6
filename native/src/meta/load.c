/* An earlier life of the engine, made again out of its rows.
 *
 * Rows come in any order, so the first pass only makes a record of each node, and notes beside it what can be looked up
 * later. The end sorts the nodes by id and then goes over all of them a few times: parents, removed trees, places in
 * the tree, jobs, what else the extras say, items, runs, charges. In the order of ids the items of a queue are in the
 * order of the queue, and most nodes come after their parents.
 *
 * A node whose way up ends before the root belongs to a tree that was being removed: that is done again, row by row.
 * One whose owner is gone (session or job) was to be removed, too. All else that does not fit together is damage, and
 * the load fails with a sentence. */
#include "meta/engine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/rows.h"

typedef unsigned long long ull;

struct loaded {
    uint64_t id, parent;
    crail_ref ref;
    uint32_t up; /* place of its parent + 1, or 0 */
};

enum way { UNKNOWN, PASSED, REACHES_ROOT, ENDS };

/* What a row said that is looked up at the end. */
struct beside {
    crail_ref ref;
    uint8_t parts; /* enum crail_node_part */
    struct crail_life_part life;
    struct crail_job_part job;
    struct crail_item_part item;
};

struct loaded_session {
    uint64_t id;
    struct crail_meta_session *s;
    struct crail_session_job *jobs;
    uint32_t jobs_n;
};

struct crail_load {
    struct crail_meta_load_listener listener;
    struct crail_load_report report;
    struct loaded *nodes;
    uint64_t nodes_n, nodes_cap;
    struct beside *beside;
    uint64_t beside_n, beside_cap;
    struct loaded_session *sessions;
    uint64_t sessions_n, sessions_cap;
    struct crail_claim *claims;
    uint64_t claims_n, claims_cap;
    crail_ref *ownerless;
    uint64_t ownerless_n, ownerless_cap;
    bool has_root;
    uint8_t *way; /* enum way, by place in `nodes` */
    char *why;
    size_t why_bytes;
};

__attribute__((format(printf, 2, 3))) static int bad(struct crail_load *l, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(l->why, l->why_bytes, format, args);
    va_end(args);
    return -EUCLEAN;
}

/* Room for one more. */
static int more(void **p, uint64_t n, uint64_t *cap, size_t bytes) {
    if (n < *cap)
        return 0;
    uint64_t wanted = *cap ? *cap * 2 : 1024;
    void *grown = realloc(*p, wanted * bytes);
    if (!grown)
        return -ENOMEM;
    *p = grown;
    *cap = wanted;
    return 0;
}

int crail_meta_load_begin(struct crail_meta *m, struct crail_meta_load_listener listener) {
    assert(m->cut && !m->load && m->nodes == 1);
    m->load = calloc(1, sizeof(*m->load));
    if (!m->load)
        return -ENOMEM;
    m->load->listener = listener;
    return 0;
}

void crail_load_close(struct crail_meta *m) {
    struct crail_load *l = m->load;
    if (!l)
        return;
    for (uint64_t i = 0; i < l->sessions_n; i++)
        free(l->sessions[i].jobs);
    free(l->nodes);
    free(l->beside);
    free(l->sessions);
    free(l->claims);
    free(l->ownerless);
    free(l->way);
    free(l);
    m->load = NULL;
}

/* ---- rows of nodes -------------------------------------------------------------------- */

/* A row that is being read. */
struct reading {
    uint64_t id;
    struct crail_node_row head;
    struct beside beside;
    struct crail_barrier_part barrier;
    const char *name;
    const uint8_t *value, *attributes;
};

static bool take(const uint8_t **at, const uint8_t *end, void *part, size_t bytes) {
    if ((size_t)(end - *at) < bytes)
        return false;
    memcpy(part, *at, bytes);
    *at += bytes;
    return true;
}

static bool take_parts(const uint8_t **at, const uint8_t *end, struct reading *r) {
    uint8_t parts = r->beside.parts = r->head.parts;
    return (!(parts & CRAIL_PART_LIFE) || take(at, end, &r->beside.life, sizeof(r->beside.life))) &&
           (!(parts & CRAIL_PART_JOB) || take(at, end, &r->beside.job, sizeof(r->beside.job))) &&
           (!(parts & CRAIL_PART_ITEM) || take(at, end, &r->beside.item, sizeof(r->beside.item))) &&
           (!(parts & CRAIL_PART_BARRIER) || take(at, end, &r->barrier, sizeof(r->barrier)));
}

static uint64_t value_bytes(const struct crail_node_row *head) {
    return head->extents ? head->extents * sizeof(struct crail_extent_part) : head->size;
}

/* Do kind, parts and sizes agree? */
static bool head_is_right(const struct crail_node_row *h) {
    const uint8_t known = CRAIL_PART_LIFE | CRAIL_PART_JOB | CRAIL_PART_ITEM | CRAIL_PART_BARRIER | CRAIL_PART_FLUSHED;
    bool is_file = h->kind == CRAIL_KIND_FILE, is_barrier = h->kind == CRAIL_KIND_BARRIER;
    if (!h->kind || h->kind > CRAIL_KIND_BARRIER || h->parts & ~known || h->extents > CRAIL_EXTENTS_MAX ||
        h->attributes > CRAIL_ATTRIBUTES_MAX)
        return false;
    if (!!(h->parts & CRAIL_PART_BARRIER) != is_barrier || (h->parts & CRAIL_PART_ITEM && !is_file) ||
        (h->parts & CRAIL_PART_JOB && (h->kind != CRAIL_KIND_DIRECTORY || !(h->parts & CRAIL_PART_LIFE))))
        return false;
    if ((!is_file && (h->size || h->extents)) || (h->parts & CRAIL_PART_FLUSHED && !h->extents))
        return false;
    return h->extents ? h->size > 0 : h->size <= CRAIL_INLINE_MAX;
}

/* NULL, or what is wrong with the row. */
static const char *read_row(const struct crail_row *row, struct reading *r) {
    const uint8_t *at = crail_row_value(row), *end = at + row->value_len;
    memset(r, 0, sizeof(*r));
    if (row->key_len != sizeof(r->id))
        return "its key is of another length";
    memcpy(&r->id, crail_row_key(row), sizeof(r->id));
    if (!take(&at, end, &r->head, sizeof(r->head)) || !head_is_right(&r->head) || !take_parts(&at, end, r))
        return "its head makes no sense";
    if ((uint64_t)(end - at) != r->head.name_len + value_bytes(&r->head) + r->head.attributes)
        return "its lengths do not add up";
    r->name = (const char *)at;
    r->value = at + r->head.name_len;
    r->attributes = r->value + value_bytes(&r->head);
    if (!r->id || (r->beside.item.state > CRAIL_ITEM_TAKEN) ||
        (r->head.parts & CRAIL_PART_ITEM && (!r->beside.item.state || r->head.name_len != 20)))
        return "it has no id, or is no item";
    if (r->head.parts & CRAIL_PART_BARRIER && !r->barrier.members)
        return "it is a barrier of nobody";
    if (r->head.parent ? !crail_path_name_valid(r->name, r->head.name_len) : r->head.name_len != 0)
        return "its name is none";
    return NULL;
}

static int load_extents(struct crail_meta *m, const struct reading *r, struct crail_value *v) {
    struct crail_load *l = m->load;
    struct crail_run runs[CRAIL_EXTENTS_MAX];
    uint64_t granules = 0;
    for (uint32_t i = 0; i < r->head.extents; i++) {
        struct crail_extent_part e;
        memcpy(&e, r->value + i * sizeof(e), sizeof(e));
        if (more((void **)&l->claims, l->claims_n, &l->claims_cap, sizeof(*l->claims)))
            return -ENOMEM;
        runs[i] = (struct crail_run){e.server, e.region, e.granule, e.granules};
        l->claims[l->claims_n++] = (struct crail_claim){.run = runs[i], .generation = e.generation, .node = r->id};
        granules += e.granules;
    }
    if (granules * CRAIL_GRANULE < r->head.size)
        return bad(l, "node %llu: its extents are too short", (ull)r->id);
    if (crail_value_runs(m, runs, r->head.extents, r->head.size, v))
        return -ENOMEM;
    v->is_flushed = r->head.parts & CRAIL_PART_FLUSHED;
    return 0;
}

/* Value and attributes. */
static int load_content(struct crail_meta *m, const struct reading *r, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    struct crail_value v;
    int rc = 0;
    if (crail_node_is_leaf(n)) {
        if (r->head.extents)
            rc = load_extents(m, r, &v);
        else if (crail_value_inline(m, r->value, (uint32_t)r->head.size, &v))
            rc = -ENOMEM;
        if (rc)
            return rc;
        crail_value_publish(m, n, &v);
        /* Whoever had the right to append may still be writing there, see opens.c. */
        n->flags |= n->extents ? CRAIL_NODE_TAIL_CLOSED : 0;
    }
    if (!r->head.attributes)
        return 0;
    struct crail_extra *x = crail_extra_make(m, ref);
    rc = x ? crail_attributes_loaded(m, x, r->attributes, r->head.attributes) : -ENOMEM;
    return rc == -EUCLEAN ? bad(m->load, "node %llu: its attributes are malformed", (ull)r->id) : rc;
}

/* The root is there already. */
static crail_ref record_for(struct crail_meta *m, const struct reading *r) {
    return r->head.parent ? crail_tree_record(m, r->name, r->head.name_len, (enum crail_kind)r->head.kind) : m->root;
}

static int load_node(struct crail_meta *m, const struct crail_row *row) {
    struct crail_load *l = m->load;
    struct reading r;
    const char *wrong = read_row(row, &r);
    if (!wrong && !r.head.parent && (r.id != crail_node_at(m, m->root)->id || r.head.kind != CRAIL_KIND_DIRECTORY))
        wrong = "it lies nowhere";
    if (wrong)
        return bad(l, "node %llu: %s", (ull)r.id, wrong);
    bool has_more = r.head.parts & ~(CRAIL_PART_BARRIER | CRAIL_PART_FLUSHED);
    if (more((void **)&l->nodes, l->nodes_n, &l->nodes_cap, sizeof(*l->nodes)) ||
        (has_more && more((void **)&l->beside, l->beside_n, &l->beside_cap, sizeof(*l->beside))))
        return -ENOMEM;
    crail_ref ref = record_for(m, &r);
    if (!ref)
        return -ENOMEM;
    struct crail_node *n = crail_node_at(m, ref);
    l->has_root |= ref == m->root;
    n->id = r.id;
    n->version = r.head.version;
    n->mtime_ns = r.head.mtime_ns;
    if (n->kind == CRAIL_KIND_BARRIER) {
        n->barrier.rounds = r.barrier.rounds;
        n->barrier.members = r.barrier.members;
        n->flags |= r.barrier.is_broken ? CRAIL_NODE_BROKEN : 0;
    }
    l->nodes[l->nodes_n++] = (struct loaded){r.id, r.head.parent, ref, 0};
    if (has_more) {
        r.beside.ref = ref;
        l->beside[l->beside_n++] = r.beside;
    }
    return load_content(m, &r, ref);
}

/* ---- rows of sessions and servers --------------------------------------------------------- */

static int load_session(struct crail_meta *m, const struct crail_row *row) {
    struct crail_load *l = m->load;
    struct crail_session_row head;
    struct loaded_session in = {0};
    const uint8_t *at = crail_row_value(row), *end = at + row->value_len;
    if (row->key_len != sizeof(in.id) || !take(&at, end, &head, sizeof(head)) ||
        (uint64_t)(end - at) != head.jobs * sizeof(*in.jobs))
        return bad(l, "a session: its lengths do not add up");
    memcpy(&in.id, crail_row_key(row), sizeof(in.id));
    if (more((void **)&l->sessions, l->sessions_n, &l->sessions_cap, sizeof(*l->sessions)))
        return -ENOMEM;
    in.jobs_n = head.jobs;
    in.jobs = malloc(head.jobs * sizeof(*in.jobs) + 1);
    if (!in.jobs)
        return -ENOMEM;
    memcpy(in.jobs, at, head.jobs * sizeof(*in.jobs));
    l->sessions[l->sessions_n++] = in; /* it frees the jobs */
    if (crail_meta_session_open(m, in.id, &l->sessions[l->sessions_n - 1].s))
        return -ENOMEM;
    crail_cut_session_loaded(m, l->sessions[l->sessions_n - 1].s);
    return 0;
}

static int load_server(struct crail_meta *m, const struct crail_row *row) {
    struct crail_load *l = m->load;
    struct crail_server_row head;
    uint32_t number, granules[256];
    const uint8_t *at = crail_row_value(row), *end = at + row->value_len;
    if (row->key_len != sizeof(number) || !take(&at, end, &head, sizeof(head)) ||
        head.regions > sizeof(granules) / sizeof(granules[0]) || !take(&at, end, granules, head.regions * 4u) ||
        (uint64_t)(end - at) != head.note)
        return bad(l, "a server: its lengths do not add up");
    memcpy(&number, crail_row_key(row), sizeof(number));
    int rc = crail_server_loaded(m, number, &head, granules, at);
    return rc == -EUCLEAN ? bad(l, "server %u: it makes no sense, or is there twice", number) : rc;
}

int crail_meta_load(struct crail_meta *m, const struct crail_row *row, char *why, size_t why_bytes) {
    m->load->why = why;
    m->load->why_bytes = why_bytes;
    if (row->gone)
        return -EINVAL;
    switch (row->table) {
    case CRAIL_TABLE_NODE:
        return load_node(m, row);
    case CRAIL_TABLE_SESSION:
        return load_session(m, row);
    case CRAIL_TABLE_SERVER:
        return load_server(m, row);
    default:
        return -EINVAL;
    }
}

/* ---- the end: who is whose ------------------------------------------------------------------- */

static int by_id(const void *a, const void *b) {
    const struct loaded *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static int sessions_by_id(const void *a, const void *b) {
    const struct loaded_session *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* By id, each once. */
static int sort_nodes(struct crail_load *l) {
    bool is_sorted = true;
    for (uint64_t i = 1; i < l->nodes_n && is_sorted; i++)
        is_sorted = l->nodes[i - 1].id < l->nodes[i].id;
    if (!is_sorted)
        qsort(l->nodes, l->nodes_n, sizeof(*l->nodes), by_id);
    for (uint64_t i = 1; i < l->nodes_n; i++)
        if (l->nodes[i - 1].id == l->nodes[i].id)
            return bad(l, "node %llu: there are two of it", (ull)l->nodes[i].id);
    return 0;
}

static int sort_sessions(struct crail_load *l) {
    if (l->sessions_n)
        qsort(l->sessions, l->sessions_n, sizeof(*l->sessions), sessions_by_id);
    for (uint64_t i = 1; i < l->sessions_n; i++)
        if (l->sessions[i - 1].id == l->sessions[i].id)
            return bad(l, "session %llu: there are two of it", (ull)l->sessions[i].id);
    return 0;
}

static struct crail_meta_session *session_find(const struct crail_load *l, uint64_t id) {
    struct loaded_session key = {.id = id};
    const struct loaded_session *s =
        l->sessions_n ? bsearch(&key, l->sessions, l->sessions_n, sizeof(*l->sessions), sessions_by_id) : NULL;
    return s ? s->s : NULL;
}

static void find_parents(struct crail_load *l) {
    const struct loaded *latest = NULL;
    for (uint64_t i = 0; i < l->nodes_n; i++) {
        struct loaded key = {.id = l->nodes[i].parent};
        if (!latest || latest->id != key.id)
            latest = key.id ? bsearch(&key, l->nodes, l->nodes_n, sizeof(*l->nodes), by_id) : NULL;
        l->nodes[i].up = latest ? (uint32_t)(latest - l->nodes) + 1 : 0;
    }
}

/* Where the way up from each ends. */
static int find_ways(struct crail_meta *m) {
    struct crail_load *l = m->load;
    for (uint64_t i = 0; i < l->nodes_n; i++) {
        uint64_t at = i;
        while (l->way[at] == UNKNOWN) {
            l->way[at] = PASSED;
            if (!l->nodes[at].up)
                l->way[at] = l->nodes[at].ref == m->root ? REACHES_ROOT : ENDS;
            else
                at = l->nodes[at].up - 1;
        }
        if (l->way[at] == PASSED)
            return bad(l, "node %llu: it lies within itself", (ull)l->nodes[at].id);
        uint8_t way = l->way[at];
        for (at = i; l->way[at] == PASSED; at = l->nodes[at].up - 1)
            l->way[at] = way;
    }
    return 0;
}

/* NULL, or why this node cannot lie in that one. */
static const char *misplaced(const struct crail_node *dir, const struct crail_node *n, bool is_item) {
    if (!crail_node_is_container(dir))
        return "it lies in what is no container";
    bool in_queue = dir->kind == CRAIL_KIND_QUEUE;
    if (in_queue != is_item || (!in_queue && crail_tree_takes(dir, (enum crail_kind)n->kind)))
        return "its container does not take such a node";
    return NULL;
}

/* Everything goes to its place. In the order of ids, so that items are in the order of their queue. */
static int place_nodes(struct crail_meta *m) {
    struct crail_load *l = m->load;
    uint64_t beside = 0;
    for (uint64_t i = 0; i < l->nodes_n; i++) {
        const struct loaded *in = &l->nodes[i];
        struct crail_node *n = crail_node_at(m, in->ref);
        while (beside < l->beside_n && crail_node_at(m, l->beside[beside].ref)->id < in->id)
            beside++;
        bool is_item =
            beside < l->beside_n && l->beside[beside].ref == in->ref && l->beside[beside].parts & CRAIL_PART_ITEM;
        n->item.state = is_item ? CRAIL_ITEM_TAKEN : n->item.state; /* of no list of its queue, for now */
        m->last_id = n->id > m->last_id ? n->id : m->last_id;
        m->last_version = n->version > m->last_version ? n->version : m->last_version;
        if (!in->up)
            continue;
        crail_ref dir = l->nodes[in->up - 1].ref;
        const char *wrong = misplaced(crail_node_at(m, dir), n, is_item), *name = crail_node_name(m, n);
        uint32_t hash = crail_names_hash(m, dir, name, n->name_len);
        const struct crail_node *latest = is_item ? crail_node_at(m, dir) : NULL;
        if (!wrong && latest && latest->first_child && crail_node_at(m, latest->first_child)->version >= n->version)
            wrong = "it is older than an item before it";
        if (!wrong && crail_names_find(m, dir, hash, name, n->name_len))
            wrong = "another one has its name";
        if (wrong)
            return bad(l, "node %llu, \"%.*s\" in %llu: %s", (ull)in->id, n->name_len, name,
                       (ull)l->nodes[in->up - 1].id, wrong);
        crail_tree_place(m, in->ref, dir, hash);
    }
    return 0;
}

/* ---- the end: jobs and lives -------------------------------------------------------------------- */

static int beside_by_id(const void *a, const void *b, void *m) {
    uint64_t x = crail_node_at(m, ((const struct beside *)a)->ref)->id;
    uint64_t y = crail_node_at(m, ((const struct beside *)b)->ref)->id;
    return (x > y) - (x < y);
}

/* What lies in a removed tree has nothing to say any more. */
static void keep_reachable(struct crail_meta *m) {
    struct crail_load *l = m->load;
    uint64_t kept = 0;
    for (uint64_t i = 0; i < l->beside_n; i++)
        if (crail_tree_reachable(m, l->beside[i].ref))
            l->beside[kept++] = l->beside[i];
    l->beside_n = kept;
}

static int make_jobs(struct crail_meta *m) {
    struct crail_load *l = m->load;
    for (uint64_t i = 0; i < l->beside_n; i++) {
        const struct beside *b = &l->beside[i];
        int rc = b->parts & CRAIL_PART_JOB ? crail_job_loaded(m, b->ref, &b->job) : 0;
        if (rc)
            return rc == -EUCLEAN ? bad(l, "node %llu: the number of its job, %llu, is none, or another's",
                                        (ull)crail_node_at(m, b->ref)->id, (ull)b->job.number)
                                  : rc;
    }
    return 0;
}

/* The node after this one in a walk from above; 0: it was the last. */
static crail_ref next_below(const struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    if (crail_node_is_container(n) && n->first_child)
        return n->first_child;
    while (ref != m->root && !crail_node_at(m, ref)->sib_next)
        ref = crail_node_at(m, ref)->parent;
    return ref == m->root ? 0 : crail_node_at(m, ref)->sib_next;
}

/* Which nodes lie below a job; then what lies around each job; then what each is charged with. */
static void charge_jobs(struct crail_meta *m) {
    if (!m->jobs_n)
        return;
    for (crail_ref ref = next_below(m, m->root); ref; ref = next_below(m, ref)) {
        struct crail_node *n = crail_node_at(m, ref), *dir = crail_node_at(m, n->parent);
        if (dir->flags & CRAIL_NODE_IN_JOB || (dir->extra && crail_extra_at(m, dir->extra)->own_job))
            n->flags |= CRAIL_NODE_IN_JOB;
    }
    for (uint32_t i = 0; i < m->jobs_cap; i++)
        if (m->jobs[i])
            crail_job_placed(m, m->jobs[i]);
    for (crail_ref ref = next_below(m, m->root); ref; ref = next_below(m, ref)) {
        const struct crail_node *n = crail_node_at(m, ref);
        if (n->flags & CRAIL_NODE_IN_JOB)
            crail_jobs_charge(m, crail_job_around(m, n), n, 1, crail_node_is_leaf(n) ? (int64_t)n->size : 0);
    }
}

static int note_ownerless(struct crail_load *l, crail_ref ref) {
    if (more((void **)&l->ownerless, l->ownerless_n, &l->ownerless_cap, sizeof(*l->ownerless)))
        return -ENOMEM;
    l->ownerless[l->ownerless_n++] = ref;
    return 0;
}

static int make_lives(struct crail_meta *m) {
    struct crail_load *l = m->load;
    for (uint64_t i = 0; i < l->beside_n; i++) {
        struct beside *b = &l->beside[i];
        struct crail_life_part *life = &b->life;
        struct crail_meta_session *s = session_find(l, life->session);
        if (!(b->parts & CRAIL_PART_LIFE))
            continue;
        if (life->options & ~CRAIL_OPTIONS_KNOWN || life->ttl_ns < 0 ||
            (b->parts & CRAIL_PART_JOB && life->options & CRAIL_OPTION_TTL)) /* a job's end is noted by itself */
            return bad(l, "node %llu: its options are unknown", (ull)crail_node_at(m, b->ref)->id);
        bool no_owner = life->options & CRAIL_OPTION_SESSION && !s, no_job = life->job && !crail_job_find(m, life->job);
        if (no_owner || no_job) {
            if (note_ownerless(l, b->ref))
                return -ENOMEM;
            life->options &= (uint16_t) ~(no_owner ? CRAIL_OPTION_SESSION : 0);
            life->job = no_job ? 0 : life->job;
        }
        if (crail_life_loaded(m, b->ref, life, s))
            return -ENOMEM;
    }
    return 0;
}

static int by_version(const void *a, const void *b, void *m) {
    uint64_t x = crail_node_at(m, *(const crail_ref *)a)->version, y = crail_node_at(m, *(const crail_ref *)b)->version;
    return (x > y) - (x < y);
}

static int make_evictable(struct crail_meta *m) {
    struct crail_load *l = m->load;
    uint64_t n = 0;
    crail_ref *refs = malloc((l->beside_n + 1) * sizeof(*refs));
    if (!refs)
        return -ENOMEM;
    for (uint64_t i = 0; i < l->beside_n; i++)
        if (l->beside[i].life.options & CRAIL_OPTION_EVICTABLE && crail_node_at(m, l->beside[i].ref)->extents)
            refs[n++] = l->beside[i].ref;
    qsort_r(refs, n, sizeof(*refs), by_version, m);
    for (uint64_t i = 0; i < n; i++)
        crail_life_evictable_loaded(m, refs[i]);
    free(refs);
    return 0;
}

/* ---- the end: holds ------------------------------------------------------------------------------ */

/* Items in the order of their ids. One whose taker is gone comes back. */
static int make_items(struct crail_meta *m) {
    struct crail_load *l = m->load;
    for (uint64_t i = 0; i < l->beside_n; i++) {
        const struct beside *b = &l->beside[i];
        uint32_t state = b->item.state;
        if (!(b->parts & CRAIL_PART_ITEM))
            continue;
        const struct crail_node *n = crail_node_at(m, b->ref);
        if (state != CRAIL_ITEM_FRESH && crail_node_at(m, n->parent)->queue.fresh)
            return bad(l, "node %llu: it was taken before an older item", (ull)n->id);
        struct crail_meta_session *s = state == CRAIL_ITEM_TAKEN ? session_find(l, b->item.session) : NULL;
        if (s && crail_hold_find(m, s, b->item.token))
            return bad(l, "node %llu: its taker holds another by the same token", (ull)n->id);
        if (s && !crail_hold_add(m, s, CRAIL_HOLD_ITEM, b->item.token, b->ref))
            return -ENOMEM;
        if (state == CRAIL_ITEM_TAKEN && !s)
            state = CRAIL_ITEM_RETURNED;
        crail_queue_loaded(m, b->ref, (enum crail_item_state)state);
    }
    return 0;
}

static int make_job_holds(struct crail_meta *m) {
    struct crail_load *l = m->load;
    for (uint64_t i = 0; i < l->sessions_n; i++) {
        const struct loaded_session *in = &l->sessions[i];
        for (uint32_t k = in->jobs_n; k--;) { /* the latest is the first of the row */
            int rc = crail_job_hold_loaded(m, in->s, in->jobs[k].token, in->jobs[k].number);
            if (rc)
                return rc == -EUCLEAN ? bad(l, "session %llu: it uses a token twice", (ull)in->id) : rc;
        }
    }
    return 0;
}

static int make_runs(struct crail_meta *m) {
    struct crail_load *l = m->load;
    const struct crail_grant_slot *slot;
    const struct crail_claim *wrong;
    for (uint32_t i = 0; (slot = crail_grantmap_next(m, &i));) {
        struct crail_claim c = {.run = {slot->server, slot->region, slot->granule, slot->granules},
                                .generation = slot->generation,
                                .session = session_find(l, slot->session),
                                .slot = i};
        if (!c.session) {
            crail_grantmap_void(m, i);
            continue;
        }
        if (more((void **)&l->claims, l->claims_n, &l->claims_cap, sizeof(*l->claims)))
            return -ENOMEM;
        l->claims[l->claims_n++] = c;
    }
    int rc = crail_claims_loaded(m, l->claims, l->claims_n, &wrong);
    if (rc == -EUCLEAN)
        return bad(l, "node %llu: granules %u.. of region %u of server %u are not there, or another's",
                   (ull)wrong->node, wrong->run.granule, wrong->run.region, wrong->run.server);
    for (uint64_t i = 0; i < l->claims_n && !rc; i++) {
        if (l->claims[i].session && l->claims[i].is_void)
            crail_grantmap_void(m, l->claims[i].slot);
        l->report.grants += l->claims[i].session && !l->claims[i].is_void;
    }
    crail_grantmap_loaded(m);
    return rc;
}

/* ---- the end: all together ------------------------------------------------------------------------- */

static int tell_servers(struct crail_meta *m) {
    const struct crail_meta_load_listener *to = &m->load->listener;
    uint32_t granules[256];
    for (uint32_t i = 0; i < m->servers_n; i++) {
        const struct crail_server *sv = m->servers[i];
        uint32_t regions = sv->state == CRAIL_SERVER_LOST ? 0 : sv->regions_n;
        for (uint32_t k = 0; k < regions; k++)
            granules[k] = sv->regions[k].granules;
        int rc = to->server
                     ? to->server(to->ctx, sv->number, sv->state, granules, regions,
                                  (struct crail_meta_place){sv->location, sv->storage_class}, sv->note, sv->note_bytes)
                     : 0;
        if (rc)
            return rc;
    }
    m->load->report.servers = m->servers_n;
    return 0;
}

static int tell_sessions(struct crail_meta *m) {
    const struct crail_load *l = m->load;
    int rc = 0;
    for (uint64_t i = 0; i < l->sessions_n && !rc; i++)
        if (l->listener.session)
            rc = l->listener.session(l->listener.ctx, l->sessions[i].id, l->sessions[i].s);
    return rc;
}

static int link_all(struct crail_meta *m) {
    struct crail_load *l = m->load;
    l->way = calloc(l->nodes_n + 1, 1);
    if (!l->way)
        return -ENOMEM;
    if (l->nodes_n && !l->has_root)
        return bad(l, "the root has no row, and %llu others have", (ull)l->nodes_n);
    int rc = l->nodes_n < UINT32_MAX ? sort_nodes(l) : -ENOMEM;
    if (!rc)
        rc = sort_sessions(l);
    if (rc)
        return rc;
    find_parents(l);
    rc = find_ways(m);
    if (l->beside_n)
        qsort_r(l->beside, l->beside_n, sizeof(*l->beside), beside_by_id, m);
    if (!rc)
        rc = place_nodes(m);
    if (rc)
        return rc;
    keep_reachable(m);
    rc = make_jobs(m);
    if (rc)
        return rc;
    charge_jobs(m);
    int (*const rest[])(struct crail_meta *) = {make_runs,      make_lives,   make_evictable, make_items,
                                                make_job_holds, tell_servers, tell_sessions};
    for (uint32_t i = 0; i < sizeof(rest) / sizeof(rest[0]) && !rc; i++)
        rc = rest[i](m);
    return rc;
}

/* From here on every change is one. */
static void changes_begin(struct crail_meta *m) {
    struct crail_load *l = m->load;
    for (uint64_t i = 0; i < l->nodes_n; i++)
        crail_cut_loaded(m, l->nodes[i].ref);
    for (uint64_t i = 0; i < l->beside_n; i++) {
        const struct crail_node *n = crail_node_at(m, l->beside[i].ref);
        if (l->beside[i].parts & CRAIL_PART_ITEM && n->item.state != l->beside[i].item.state)
            crail_node_touch(m, l->beside[i].ref);
        if (l->beside[i].parts & CRAIL_PART_JOB)
            crail_job_unheld(m, crail_extra_at(m, n->extra)->own_job);
    }
    for (uint64_t i = 0; i < l->nodes_n; i++) {
        l->report.orphans += l->way[i] == ENDS;
        if (l->way[i] == ENDS && !l->nodes[i].up)
            crail_reap_tree(m, l->nodes[i].ref);
    }
    for (uint64_t i = 0; i < l->ownerless_n; i++) {
        l->report.ownerless++;
        if (crail_tree_reachable(m, l->ownerless[i]))
            crail_tree_remove(m, l->ownerless[i]);
    }
}

int crail_meta_load_end(struct crail_meta *m, struct crail_load_report *report, char *why, size_t why_bytes) {
    struct crail_load *l = m->load;
    l->why = why;
    l->why_bytes = why_bytes;
    int rc = link_all(m);
    if (rc)
        return rc;
    changes_begin(m);
    l->report.nodes = l->nodes_n;
    l->report.sessions = l->sessions_n;
    *report = l->report;
    crail_load_close(m);
    return 0;
}
