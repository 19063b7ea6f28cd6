/* fsck: walks everything from the root and the lists, counts, and compares with what the engine believes. */
#include "meta/engine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct fsck {
    const struct crail_meta *m;
    char *why;
    size_t why_bytes;
    uint64_t nodes, files, directories, inline_bytes;
    uint64_t in_hash;                        /* nodes reached that have to be in the hash */
    uint64_t bytes;                          /* of the arena, by what was reached */
    uint64_t used;                           /* granules of nodes on servers that are not lost */
    uint64_t doomed;                         /* nodes of removed trees */
    uint64_t ready, building;                /* indexes */
    uint64_t holds;                          /* by the lists of the sessions */
    uint64_t held;                           /* by the lists of the nodes */
    uint64_t due, owned, evictable, members; /* extras that say so */
    struct crail_quota *jobs;                /* by slot: what was found to be charged */
    uint8_t **seen;     /* per server and region, a byte per granule: a run of a node begins there */
    uint32_t **pins;    /* likewise, how many readers hold the run that begins there */
    crail_ref *streams; /* named by holds, as often as they are */
    uint32_t streams_n;
};
#define REGIONS 64u

__attribute__((format(printf, 2, 3))) static int bad(struct fsck *f, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(f->why, f->why_bytes, format, args);
    va_end(args);
    return -EUCLEAN;
}

#define CHECK(f, condition, ...)        \
    do {                                \
        if (!(condition))               \
            return bad(f, __VA_ARGS__); \
    } while (0)

typedef unsigned long long ull;

/* ---- one node --------------------------------------------------------------------- */

static int check_runs(struct fsck *f, const struct crail_node *n) {
    const struct crail_run *run = crail_value_runs_of(f->m, n);
    uint64_t granules = 0;
    for (uint32_t i = 0; i < n->extents; i++) {
        const struct crail_server *sv = crail_server_find(f->m, run[i].server);
        CHECK(f, sv, "node %llu lies on an unknown server", (ull)n->id);
        granules += run[i].granules;
        if (sv->state == CRAIL_SERVER_LOST)
            continue;
        CHECK(f, run[i].region < sv->regions_n && run[i].granule < sv->regions[run[i].region].granules,
              "node %llu lies outside of its server", (ull)n->id);
        const struct crail_run_record *rec = crail_run_record_of(f->m, &run[i]);
        CHECK(f, rec->state == CRAIL_RUN_USED && rec->len == run[i].granules, "node %llu: a run of it is not used",
              (ull)n->id);
        uint8_t *seen = &f->seen[(run[i].server - 1) * REGIONS + run[i].region][run[i].granule];
        CHECK(f, !*seen, "node %llu: a run of it is owned twice", (ull)n->id);
        *seen = 1;
        f->used += rec->len;
    }
    CHECK(f, !n->extents || granules * CRAIL_GRANULE >= n->size, "node %llu: its runs are too short", (ull)n->id);
    return 0;
}

static int check_leaf(struct fsck *f, crail_ref ref, const struct crail_node *n) {
    CHECK(f, crail_node_is_leaf(n) || n->kind == CRAIL_KIND_BARRIER, "node %llu is of no kind", (ull)n->id);
    f->files++;
    if (!crail_node_is_leaf(n)) {
        const char *why = crail_barrier_check(f->m, ref);
        CHECK(f, !why, "barrier %llu: %s", (ull)n->id, why);
        return 0;
    }
    if (n->extents) {
        f->bytes += n->data ? crail_arena_cost(n->extents * (uint32_t)sizeof(struct crail_run)) : 0;
        return check_runs(f, n);
    }
    CHECK(f, n->size <= CRAIL_INLINE_MAX && !n->data == (n->size <= CRAIL_NODE_TINY),
          "node %llu: its inline value is misplaced", (ull)n->id);
    f->bytes += n->data ? crail_arena_cost((uint32_t)n->size) : 0;
    f->inline_bytes += n->size;
    return 0;
}

static int check_index(struct fsck *f, crail_ref ref, const struct crail_node *n) {
    const struct crail_index *ix = crail_arena_at(&f->m->arena, n->index);
    uint64_t entries;
    CHECK(f, ix->dir == ref, "node %llu: its index is another's", (ull)n->id);
    f->bytes += crail_arena_cost(sizeof(*ix));
    if (crail_btree_check(f->m, ix, &entries, &f->bytes, f->why, f->why_bytes))
        return -EUCLEAN;
    bool ready = ix->state == CRAIL_INDEX_READY;
    f->ready += ready;
    f->building += !ready;
    uint64_t outside = 0;
    for (crail_ref c = ix->cursor; c; c = crail_node_at(f->m, c)->sib_next)
        outside++;
    if (ix->state == CRAIL_INDEX_PREFIX)
        CHECK(f, entries == 0, "node %llu: its index is filled too early", (ull)n->id);
    else
        CHECK(f, entries + outside == n->size, "node %llu: its index has %llu of %llu", (ull)n->id, (ull)entries,
              (ull)n->size);
    return 0;
}

static int check_container(struct fsck *f, crail_ref ref, const struct crail_node *n) {
    uint64_t children = 0;
    crail_ref prev = 0;
    f->directories++;
    for (crail_ref c = n->first_child; c; c = crail_node_at(f->m, c)->sib_next) {
        const struct crail_node *child = crail_node_at(f->m, c);
        CHECK(f, child->parent == ref && child->sib_prev == prev, "node %llu: its children are misled", (ull)n->id);
        prev = c;
        children++;
    }
    const char *why = n->kind == CRAIL_KIND_QUEUE ? crail_queue_check(f->m, ref) : NULL;
    CHECK(f, !why, "queue %llu: %s", (ull)n->id, why);
    CHECK(f, children == n->size, "node %llu has %llu children, not %llu", (ull)n->id, (ull)children, (ull)n->size);
    return n->index ? check_index(f, ref, n) : 0;
}

static int check_extra(struct fsck *f, crail_ref ref, const struct crail_node *n) {
    const struct crail_extra *x = crail_extra_at(f->m, n->extra);
    crail_ref prev = 0;
    f->bytes += crail_arena_cost(sizeof(*x));
    CHECK(f, x->node == ref, "node %llu: its extra is another's", (ull)n->id);
    f->bytes += x->attributes ? crail_attributes_cost(x->attributes_bytes) : 0;
    CHECK(f, !x->due == !x->expires_ns && !!(x->options & CRAIL_OPTION_TTL) == (x->due && !x->own_job),
          "node %llu: its end is misnoted", (ull)n->id);
    f->due += x->due != 0;
    f->owned += !!(x->options & CRAIL_OPTION_SESSION);
    f->evictable += x->evict_server != 0;
    f->members += x->job != 0;
    for (crail_ref h = x->holds; h; prev = h, h = crail_hold_at(f->m, h)->node_next, f->held++)
        CHECK(f, crail_hold_at(f->m, h)->node == ref && crail_hold_at(f->m, h)->node_prev == prev,
              "node %llu: its holds are misled", (ull)n->id);
    /* What a removed tree has to say is taken from it in steps, and the rest goes with the node. */
    CHECK(f, !crail_extra_says_nothing(x) || !crail_tree_reachable(f->m, ref), "node %llu: its extra says nothing",
          (ull)n->id);
    return 0;
}

/* Adds the node to what its jobs should be charged with. */
static void count_in_jobs(struct fsck *f, const struct crail_node *n) {
    const struct crail_meta *m = f->m;
    uint64_t own = n->extra ? crail_extra_at(m, n->extra)->job : 0, bytes = crail_node_is_leaf(n) ? n->size : 0;
    for (crail_ref job = crail_job_around(m, n); job; job = crail_job_at(m, job)->outer) {
        struct crail_quota *sum = &f->jobs[crail_job_at(m, job)->number & CRAIL_JOB_SLOTS];
        sum->nodes++;
        sum->bytes += bytes;
        if (crail_job_at(m, job)->number == own)
            own = 0;
    }
    if (own) {
        f->jobs[own & CRAIL_JOB_SLOTS].nodes++;
        f->jobs[own & CRAIL_JOB_SLOTS].bytes += bytes;
    }
}

static int check_node(struct fsck *f, crail_ref ref) {
    const struct crail_node *n = crail_node_at(f->m, ref);
    f->nodes++;
    f->bytes += crail_arena_cost(sizeof(*n));
    f->bytes += n->name_len > CRAIL_NODE_NAME ? crail_arena_cost(n->name_len) : 0;
    CHECK(f, n->id && n->id <= f->m->last_id && n->version <= f->m->last_version, "node %llu has an unborn number",
          (ull)n->id);
    if (n->parent) {
        const char *name = crail_node_name(f->m, n);
        uint32_t hash = crail_names_hash(f->m, n->parent, name, n->name_len);
        CHECK(f, hash == n->hash, "node %llu has a wrong hash", (ull)n->id);
        CHECK(f, crail_names_find(f->m, n->parent, hash, name, n->name_len) == ref, "node %llu is not in the hash",
              (ull)n->id);
        f->in_hash++;
    }
    int rc = n->extra ? check_extra(f, ref, n) : 0;
    if (rc)
        return rc;
    count_in_jobs(f, n);
    const char *why = crail_cut_check_node(f->m, ref);
    CHECK(f, !why, "node %llu: %s", (ull)n->id, why);
    return crail_node_is_container(n) ? check_container(f, ref, n) : check_leaf(f, ref, n);
}

/* A node and all below, without recursion: down by first child, on by sibling, up by parent. */
static int check_below(struct fsck *f, crail_ref top) {
    crail_ref ref = top;
    for (;;) {
        int rc = check_node(f, ref);
        if (rc)
            return rc;
        const struct crail_node *n = crail_node_at(f->m, ref);
        if (crail_node_is_container(n) && n->first_child) {
            ref = n->first_child;
            continue;
        }
        while (ref != top && !crail_node_at(f->m, ref)->sib_next)
            ref = crail_node_at(f->m, ref)->parent;
        if (ref == top)
            return 0;
        ref = crail_node_at(f->m, ref)->sib_next;
    }
}

static int check_tree(struct fsck *f) {
    int rc = check_below(f, f->m->root);
    uint64_t living = f->nodes;
    for (crail_ref top = f->m->doomed; top && !rc; top = crail_node_at(f->m, top)->sib_next)
        rc = check_below(f, top);
    f->doomed = f->nodes - living;
    return rc;
}

/* ---- totals of the tree ---------------------------------------------------------------- */

static int check_names(struct fsck *f) {
    const struct crail_names *t = &f->m->names;
    uint64_t count = 0;
    for (uint32_t b = 0; b < t->buckets; b++) {
        const crail_ref *cells = crail_arena_at(&f->m->arena, t->segment[b / CRAIL_NAMES_SEGMENT]);
        for (crail_ref ref = cells[b % CRAIL_NAMES_SEGMENT]; ref; ref = crail_node_at(f->m, ref)->hash_next) {
            CHECK(f, crail_names_bucket_of(t, crail_node_at(f->m, ref)->hash) == b, "a node is in a wrong bucket");
            CHECK(f, ++count <= t->count, "the hash has more nodes than it counts");
        }
    }
    f->bytes += (uint64_t)((t->buckets + CRAIL_NAMES_SEGMENT - 1) / CRAIL_NAMES_SEGMENT) * CRAIL_ARENA_CHUNK;
    CHECK(f, count == t->count && count == f->in_hash, "the hash has %llu nodes, the tree %llu", (ull)count,
          (ull)f->in_hash);
    return 0;
}

static int check_kept(struct fsck *f, crail_ref ref) {
    const struct crail_kept *k = crail_kept_at(f->m, ref);
    f->bytes += crail_arena_cost(crail_kept_bytes(k->count));
    for (uint32_t i = 0; k->is_pinned && i < k->count; i++) {
        const struct crail_extent *e = &k->extents[i];
        const struct crail_server *sv = crail_server_find(f->m, e->server);
        if (sv->state == CRAIL_SERVER_LOST)
            continue;
        CHECK(f, e->region < sv->regions_n && e->granule < sv->regions[e->region].granules,
              "an open version lies outside of server %u", e->server);
        f->pins[(e->server - 1) * REGIONS + e->region][e->granule]++;
    }
    return 0;
}

/* What a hold keeps. Streams are shared, and looked at when all are known. */
static int check_record(struct fsck *f, const struct crail_hold *h) {
    if (h->kind == CRAIL_HOLD_OPEN)
        return check_kept(f, h->record);
    if (h->kind == CRAIL_HOLD_STREAM || h->kind == CRAIL_HOLD_FOLLOW)
        f->streams[f->streams_n++] = h->record;
    return 0;
}

static int by_ref(const void *a, const void *b) {
    const crail_ref *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static int check_streams(struct fsck *f) {
    qsort(f->streams, f->streams_n, sizeof(f->streams[0]), by_ref);
    for (uint32_t i = 0, n; i < f->streams_n; i += n) {
        const struct crail_stream *st = crail_stream_at(f->m, f->streams[i]);
        for (n = 1; i + n < f->streams_n && f->streams[i + n] == f->streams[i];)
            n++;
        CHECK(f, st->refs == n, "a stream counts %u holds, not %u", st->refs, n);
        CHECK(f, (st->path != 0) == (st->state == CRAIL_STREAM_WRITING), "a stream is listed wrongly");
        f->bytes += crail_arena_cost(sizeof(*st)) + (st->path ? crail_arena_cost(st->path_len) : 0);
        int rc = st->kept ? check_kept(f, st->kept) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

static int check_holds_of(struct fsck *f, const struct crail_meta_session *s) {
    crail_ref prev = 0;
    uint32_t n = 0;
    for (crail_ref ref = s->holds; ref; prev = ref, ref = crail_hold_at(f->m, ref)->session_next, n++) {
        const struct crail_hold *h = crail_hold_at(f->m, ref);
        CHECK(f, h->session == s->slot && h->session_prev == prev && h->kind && h->kind < CRAIL_HOLD_KINDS,
              "session %llu: its holds are misled", (ull)s->id);
        CHECK(f, crail_hold_find(f->m, s, h->token) == ref, "session %llu: hold %llu is not found", (ull)s->id,
              (ull)h->token);
        f->bytes += crail_arena_cost(sizeof(*h));
        f->held -= h->node != 0;
        int rc = h->record ? check_record(f, h) : 0;
        if (rc)
            return rc;
    }
    CHECK(f, n == s->holds_n, "session %llu has %u holds, not %u", (ull)s->id, n, s->holds_n);
    f->holds += n;
    return 0;
}

static int check_holds(struct fsck *f) {
    int rc = 0;
    for (uint32_t i = 0; i < f->m->sessions_n && !rc; i++)
        rc = f->m->sessions[i] ? check_holds_of(f, f->m->sessions[i]) : 0;
    if (rc)
        return rc;
    CHECK(f, f->holds == f->m->holds && !f->held, "%llu holds are counted, %llu are there", (ull)f->m->holds,
          (ull)f->holds);
    return check_streams(f);
}

/* The lists that extras are in, by their other ends. */
static int check_ends(struct fsck *f) {
    const struct crail_meta *m = f->m;
    int64_t latest = 0;
    uint64_t owned = 0, evictable = 0, segments = 0;
    for (uint32_t i = 0; i < m->expiry.count; i++) {
        const crail_ref *cells = crail_arena_at(&m->arena, m->expiry.segment[i / CRAIL_EXPIRY_SEGMENT]);
        const struct crail_extra *x = crail_extra_at(m, cells[i % CRAIL_EXPIRY_SEGMENT]);
        uint32_t above = i ? (i - 1) / 2 : 0;
        cells = crail_arena_at(&m->arena, m->expiry.segment[above / CRAIL_EXPIRY_SEGMENT]);
        latest = crail_extra_at(m, cells[above % CRAIL_EXPIRY_SEGMENT])->expires_ns;
        CHECK(f, x->due == i + 1 && x->expires_ns >= latest, "the heap of those that expire is wrong");
    }
    while (segments < CRAIL_EXPIRY_SEGMENTS_MAX && m->expiry.segment[segments])
        segments++;
    f->bytes += segments * CRAIL_ARENA_CHUNK;
    for (uint32_t i = 0; i < m->sessions_n; i++)
        for (crail_ref x = m->sessions[i] ? m->sessions[i]->owned : 0; x; x = crail_extra_at(m, x)->owned_next, owned++)
            CHECK(f, crail_extra_at(m, x)->session == i, "session %llu owns another's node", (ull)m->sessions[i]->id);
    for (uint32_t i = 0; i < m->servers_n; i++)
        for (crail_ref x = m->servers[i]->evict_first; x; x = crail_extra_at(m, x)->evict_next, evictable++)
            CHECK(f, crail_extra_at(m, x)->evict_server == i + 1, "server %u: an evictable node is another's", i + 1);
    CHECK(f, m->expiry.count == f->due && owned == f->owned && evictable == f->evictable,
          "nodes that end by themselves: %u, %llu, %llu listed; %llu, %llu, %llu there", m->expiry.count, (ull)owned,
          (ull)evictable, (ull)f->due, (ull)f->owned, (ull)f->evictable);
    return 0;
}

static uint64_t members_of(const struct crail_meta *m, const struct crail_job *j) {
    uint64_t n = 0;
    for (crail_ref x = j->members; x; x = crail_extra_at(m, x)->job_next)
        n += crail_extra_at(m, x)->job == j->number;
    return n;
}

static int check_jobs(struct fsck *f) {
    const struct crail_meta *m = f->m;
    uint64_t members = 0;
    uint32_t jobs = 0;
    for (uint32_t slot = 0; slot < m->jobs_cap; slot++) {
        if (!m->jobs[slot])
            continue;
        const struct crail_job *j = crail_job_at(m, m->jobs[slot]);
        jobs++;
        members += members_of(m, j);
        f->bytes += crail_arena_cost(sizeof(*j));
        CHECK(f, (j->number & CRAIL_JOB_SLOTS) == slot, "job %llu is in a wrong slot", (ull)j->number);
        CHECK(f, j->nodes == f->jobs[slot].nodes && j->bytes == f->jobs[slot].bytes,
              "job %llu is charged with %llu nodes and %llu bytes, it has %llu and %llu", (ull)j->number, (ull)j->nodes,
              (ull)j->bytes, (ull)f->jobs[slot].nodes, (ull)f->jobs[slot].bytes);
        CHECK(f, !j->node || crail_extra_at(m, crail_node_at(m, j->node)->extra)->own_job == m->jobs[slot],
              "job %llu: its directory is another's", (ull)j->number);
        CHECK(f, j->node || j->nodes || j->members || j->listed, "job %llu is over and still there", (ull)j->number);
    }
    CHECK(f, jobs == m->jobs_n && members == f->members, "jobs: %u with %llu members, %u with %llu there", m->jobs_n,
          (ull)members, jobs, (ull)f->members);
    return 0;
}

static int check_totals(struct fsck *f) {
    const struct crail_meta *m = f->m;
    uint64_t ready = 0, building = 0;
    for (crail_ref r = m->index_recent; r; r = ((struct crail_index *)crail_arena_at(&m->arena, r))->next)
        ready++;
    for (crail_ref r = m->building; r; r = ((struct crail_index *)crail_arena_at(&m->arena, r))->next)
        building++;
    f->bytes += crail_btree_dying_bytes(m);
    f->bytes += m->cut ? m->cut->tombs_n * crail_arena_cost(sizeof(struct crail_node)) : 0;
    CHECK(f, ready == f->ready && building == f->building && building == m->indexes_building,
          "the lists of indexes are wrong");
    CHECK(f, f->nodes == m->nodes && f->files == m->files && f->directories == m->directories,
          "%llu nodes are counted, %llu are there", (ull)m->nodes, (ull)f->nodes);
    CHECK(f, f->inline_bytes == m->inline_bytes, "inline values: %llu bytes counted, %llu there", (ull)m->inline_bytes,
          (ull)f->inline_bytes);
    CHECK(f, m->doomed_nodes <= f->doomed && !m->doomed_nodes == !f->doomed, "removed nodes: %llu counted, %llu there",
          (ull)m->doomed_nodes, (ull)f->doomed);
    CHECK(f, f->bytes == m->arena.bytes_used, "arena: %llu bytes in use, %llu reached", (ull)m->arena.bytes_used,
          (ull)f->bytes);
    return 0;
}

/* ---- granules ------------------------------------------------------------------------------ */

static uint64_t list_length(const struct crail_region *r, const struct crail_run_list *list,
                            enum crail_run_state state) {
    uint64_t n = 0;
    uint32_t prev = 0;
    for (uint32_t at = list->head; at; prev = at, at = r->record[at - 1].next, n++)
        if (r->record[at - 1].state != state || r->record[at - 1].prev != prev || n > r->granules)
            return UINT64_MAX;
    return list->tail == prev ? n : UINT64_MAX;
}

/* Is this record in the array of the session that it names? */
static bool grant_known(const struct crail_meta *m, uint32_t server, uint32_t region, uint32_t granule,
                        const struct crail_run_record *rec) {
    const struct crail_meta_session *s = rec->next < m->sessions_n ? m->sessions[rec->next] : NULL;
    if (!s || rec->prev >= s->n)
        return false;
    const struct crail_grant *g = &s->grants[rec->prev];
    return g->server == server && g->region == region && g->granule == granule;
}

struct region_sums {
    uint64_t granules[CRAIL_RUN_STATES], runs[CRAIL_RUN_STATES]; /* by state */
    uint64_t unknown;                                            /* granules of no run */
};

static int check_run(struct fsck *f, const struct crail_server *sv, uint32_t region, uint32_t g) {
    const struct crail_region *r = &sv->regions[region];
    const struct crail_run_record *rec = &r->record[g];
    CHECK(f, rec->len && rec->len <= r->granules - g, "server %u: granule %u begins no run", sv->number, g);
    for (uint32_t i = 1; i < rec->len; i++) {
        bool end = rec->state == CRAIL_RUN_FREE && i + 1 == rec->len;
        const struct crail_run_record *inner = &r->record[g + i];
        CHECK(f, inner->state == (end ? CRAIL_RUN_FREE_END : CRAIL_RUN_INNER) && inner->len == (end ? rec->len : 0),
              "server %u: granule %u within a run is marked", sv->number, g + i);
    }
    uint32_t pins = f->pins[(sv->number - 1) * REGIONS + region][g];
    if (rec->state == CRAIL_RUN_USED || rec->state == CRAIL_RUN_HELD)
        CHECK(f, rec->prev == pins, "server %u: granule %u counts %u readers, not %u", sv->number, g, rec->prev, pins);
    else
        CHECK(f, !pins, "server %u: granule %u is read and not in use", sv->number, g);
    CHECK(f, rec->state != CRAIL_RUN_HELD || pins, "server %u: granule %u is held by nobody", sv->number, g);
    if (rec->state == CRAIL_RUN_USED)
        CHECK(f, f->seen[(sv->number - 1) * REGIONS + region][g], "server %u: granule %u is used by nobody", sv->number,
              g);
    if (rec->state == CRAIL_RUN_GRANT)
        CHECK(f, grant_known(f->m, sv->number, region, g, rec), "server %u: granule %u is granted to nobody",
              sv->number, g);
    return 0;
}

static int check_region(struct fsck *f, const struct crail_server *sv, uint32_t region, struct region_sums *sums) {
    const struct crail_region *r = &sv->regions[region];
    uint64_t runs[CRAIL_RUN_STATES] = {0};
    bool was_free = false;
    for (uint32_t g = 0; g < r->granules; g += r->record[g].len) {
        for (; sv->is_unknown && g < r->granules && !r->record[g].len; g++)
            sums->unknown++;
        if (g == r->granules)
            break;
        int rc = check_run(f, sv, region, g);
        if (rc)
            return rc;
        const struct crail_run_record *rec = &r->record[g];
        CHECK(f,
              rec->state < CRAIL_RUN_STATES && rec->state != CRAIL_RUN_INNER && rec->state != CRAIL_RUN_FREE_END &&
                  rec->state != CRAIL_RUN_MARKED,
              "server %u: granule %u has no state", sv->number, g);
        CHECK(f, !(was_free && rec->state == CRAIL_RUN_FREE), "server %u: granule %u is free and was not joined",
              sv->number, g);
        was_free = rec->state == CRAIL_RUN_FREE;
        runs[rec->state]++;
        sums->runs[rec->state]++;
        sums->granules[rec->state] += rec->len;
    }
    uint64_t listed = 0;
    for (uint32_t c = 0; c < CRAIL_RUN_CLASSES; c++) {
        bool mapped = r->class_map[c / 64] >> (c % 64) & 1;
        CHECK(f, mapped == (r->free[c].head != 0), "server %u: the map of free classes is wrong", sv->number);
        listed += list_length(r, &r->free[c], CRAIL_RUN_FREE);
    }
    CHECK(f, listed == runs[CRAIL_RUN_FREE], "server %u: free runs are not all listed", sv->number);
    CHECK(f,
          list_length(r, &r->due, CRAIL_RUN_DUE) == runs[CRAIL_RUN_DUE] &&
              list_length(r, &r->pending, CRAIL_RUN_PENDING) == runs[CRAIL_RUN_PENDING] &&
              list_length(r, &r->gated, CRAIL_RUN_GATED) == runs[CRAIL_RUN_GATED],
          "server %u: orders are not all listed", sv->number);
    return 0;
}

static int check_server(struct fsck *f, const struct crail_server *sv, uint64_t *used, uint64_t *grants) {
    struct region_sums sums = {0};
    for (uint32_t i = 0; i < sv->regions_n; i++) {
        int rc = check_region(f, sv, i, &sums);
        if (rc)
            return rc;
    }
    const uint64_t *g = sums.granules;
    CHECK(f,
          sv->count[CRAIL_COUNT_FREE] == g[CRAIL_RUN_FREE] &&
              sv->count[CRAIL_COUNT_USED] == g[CRAIL_RUN_USED] + g[CRAIL_RUN_HELD] &&
              sv->count[CRAIL_COUNT_GRANTED] == g[CRAIL_RUN_GRANT] &&
              sv->count[CRAIL_COUNT_RETIRING] ==
                  g[CRAIL_RUN_DUE] + g[CRAIL_RUN_PENDING] + g[CRAIL_RUN_GATED] + sums.unknown,
          "server %u: the counts of granules are wrong", sv->number);
    CHECK(f,
          sv->due_extents == sums.runs[CRAIL_RUN_DUE] && sv->due_granules == g[CRAIL_RUN_DUE] &&
              sv->gated_extents == sums.runs[CRAIL_RUN_GATED],
          "server %u: the count of due orders is wrong", sv->number);
    *used += g[CRAIL_RUN_USED];
    *grants += sums.runs[CRAIL_RUN_GRANT];
    return 0;
}

static int check_granules(struct fsck *f) {
    uint64_t used = 0, grants = 0, held = 0;
    for (uint32_t i = 0; i < f->m->servers_n; i++) {
        const struct crail_server *sv = f->m->servers[i];
        int rc = sv->state == CRAIL_SERVER_LOST ? 0 : check_server(f, sv, &used, &grants);
        if (rc)
            return rc;
    }
    for (uint32_t i = 0; i < f->m->sessions_n; i++)
        held += f->m->sessions[i] ? f->m->sessions[i]->n : 0;
    CHECK(f, used == f->used, "granules of nodes: %llu used, %llu named", (ull)used, (ull)f->used);
    CHECK(f, grants == held, "grants: %llu runs, %llu in sessions", (ull)grants, (ull)held);
    return 0;
}

static void seen_free(struct fsck *f) {
    free(f->jobs);
    for (uint32_t i = 0; f->seen && i < f->m->servers_n * REGIONS; i++)
        free(f->seen[i]);
    for (uint32_t i = 0; f->pins && i < f->m->servers_n * REGIONS; i++)
        free(f->pins[i]);
    free(f->seen);
    free(f->pins);
    free(f->streams);
}

static int seen_make(struct fsck *f) {
    f->seen = calloc(f->m->servers_n * REGIONS + 1, sizeof(*f->seen));
    f->pins = calloc(f->m->servers_n * REGIONS + 1, sizeof(*f->pins));
    f->streams = calloc(f->m->holds + 1, sizeof(*f->streams));
    f->jobs = calloc(f->m->jobs_cap + 1, sizeof(*f->jobs));
    if (!f->seen || !f->pins || !f->streams || !f->jobs)
        return -ENOMEM;
    for (uint32_t i = 0; i < f->m->servers_n; i++) {
        const struct crail_server *sv = f->m->servers[i];
        for (uint32_t k = 0; sv->regions && k < sv->regions_n; k++) {
            f->seen[i * REGIONS + k] = calloc(sv->regions[k].granules, 1);
            f->pins[i * REGIONS + k] = calloc(sv->regions[k].granules, sizeof(uint32_t));
            if (!f->seen[i * REGIONS + k] || !f->pins[i * REGIONS + k])
                return -ENOMEM;
        }
    }
    return 0;
}

int crail_meta_check(const struct crail_meta *m, char *why, size_t why_bytes) {
    struct fsck f = {.m = m, .why = why, .why_bytes = why_bytes};
    int rc = seen_make(&f);
    if (rc)
        bad(&f, "no memory for the check");
    if (!rc)
        rc = check_tree(&f);
    if (!rc)
        rc = check_names(&f);
    if (!rc)
        rc = check_holds(&f);
    if (!rc)
        rc = check_ends(&f);
    if (!rc)
        rc = check_jobs(&f);
    if (!rc)
        rc = check_totals(&f);
    if (!rc)
        rc = check_granules(&f);
    seen_free(&f);
    return rc;
}
