/* How nodes end by themselves: their time is over, their session is, space is short. (Jobs are in jobs.c.)
 *
 * What an operation's options say is checked and reserved before anything is changed (prepare), and noted in the
 * node's extra when it has its value (apply). A new version by PUT or COMMIT says everything anew; SETATTR, and what
 * edits a value that is there (INCR, TRUNCATE, an append, what comes with CRAIL_OPF_EDIT), adds to what was said. A
 * time to live begins again with each. */
#include "meta/engine.h"

#define FLAGS_OF_LIFE \
    (CRAIL_OPTION_SESSION | CRAIL_OPTION_DELETE_AFTER_READ | CRAIL_OPTION_EVICTABLE | CRAIL_OPTION_TTL)
#define FLAGS_OF_LEAVES (CRAIL_OPTION_DELETE_AFTER_READ | CRAIL_OPTION_EVICTABLE)
#define EXPIRIES_PER_STEP 8u

/* What holds of the node afterwards. */
struct wanted {
    uint16_t options;
    int64_t ttl_ns;
    uint64_t job;
};

/* Does the operation say everything anew, or does it add to what was said? */
static bool says_anew(const struct crail_op *op) {
    bool publishes = op->code == CRAIL_OP_PUT || op->code == CRAIL_OP_COMMIT;
    return publishes && !(op->flags & (CRAIL_OPF_APPEND | CRAIL_OPF_EDIT));
}

static struct wanted wanted_of(const struct crail_call *c, const struct crail_extra *x) {
    const struct crail_options *o = &c->options;
    struct wanted w = {0};
    if (x && !says_anew(c->op))
        w = (struct wanted){x->options, x->ttl_ns, x->job};
    w.options |= o->flags & FLAGS_OF_LIFE;
    if (o->job)
        w.job = o->job;
    if (o->flags & CRAIL_OPTION_TTL)
        w.ttl_ns = (int64_t)o->ttl_ns;
    if (!w.ttl_ns)
        w.options &= (uint16_t)~CRAIL_OPTION_TTL;
    return w;
}

static int options_allowed(const struct crail_call *c, const struct crail_extra *x, bool leaf) {
    const struct crail_options *o = &c->options;
    if (o->flags & ~CRAIL_OPTIONS_KNOWN || o->reserved || (!leaf && o->flags & FLAGS_OF_LEAVES) ||
        o->ttl_ns > CRAIL_TTL_NS_MAX)
        return CRAIL_E_INVALID_ARGUMENT;
    if (x && x->own_job && (o->flags & FLAGS_OF_LIFE || o->job))
        return CRAIL_E_INVALID_ARGUMENT; /* the directory of a job ends with the job */
    return o->job && !crail_job_find(c->m, o->job) ? CRAIL_E_NOT_FOUND : 0;
}

int64_t crail_life_nodes_made(const struct crail_call *c, int walked, const struct crail_walk *w) {
    int64_t n = !w->node;
    for (const char *p = c->path + w->gap; walked && p < w->name; p++)
        n += *p == '/';
    return n;
}

static bool quotas_allow(const struct crail_call *c, int walked, const struct crail_walk *w, uint64_t size,
                         uint64_t job) {
    const struct crail_meta *m = c->m;
    const struct crail_node *n = w->node ? crail_node_at(m, w->node) : NULL;
    crail_ref inner = n ? crail_job_around(m, n) : crail_job_of(m, w->dir);
    int64_t bytes = n && !crail_node_is_leaf(n) ? 0 : (int64_t)size - (int64_t)(n ? n->size : 0);
    bool member = n && n->extra && crail_extra_at(m, n->extra)->job == job;
    return crail_jobs_fit(m, inner, crail_life_nodes_made(c, walked, w), bytes, crail_job_find(m, job), !member,
                          member ? bytes : (int64_t)size);
}

int crail_life_prepare(struct crail_call *c, int walked, const struct crail_walk *w, uint64_t size,
                       struct crail_life *life) {
    struct crail_meta *m = c->m;
    const struct crail_node *n = w->node ? crail_node_at(m, w->node) : NULL;
    const struct crail_extra *x = n && n->extra ? crail_extra_at(m, n->extra) : NULL;
    bool leaf = n ? crail_node_is_leaf(n) : c->op->code != CRAIL_OP_MKDIR;
    *life = (struct crail_life){0};
    struct wanted want = wanted_of(c, x);
    int rc = options_allowed(c, x, leaf);
    if (rc)
        return rc;
    if (m->jobs_n && !quotas_allow(c, walked, w, size, want.job))
        return CRAIL_E_QUOTA_EXCEEDED;
    if (want.options & CRAIL_OPTION_TTL && !(x && x->due) && crail_expiry_reserve(m))
        return CRAIL_E_NO_MEMORY;
    if (!x && (want.options || want.job)) {
        life->spare = crail_arena_alloc(&m->arena, sizeof(struct crail_extra));
        if (!life->spare)
            return CRAIL_E_NO_MEMORY;
    }
    return 0;
}

void crail_life_discard(struct crail_meta *m, struct crail_life *life) {
    if (life->spare)
        crail_arena_free(&m->arena, life->spare, sizeof(struct crail_extra));
    life->spare = 0;
}

/* ---- owners ----------------------------------------------------------------------------- */

static void owner_leave(struct crail_meta *m, struct crail_extra *x) {
    if (x->owned_prev)
        crail_extra_at(m, x->owned_prev)->owned_next = x->owned_next;
    else
        m->sessions[x->session]->owned = x->owned_next;
    if (x->owned_next)
        crail_extra_at(m, x->owned_next)->owned_prev = x->owned_prev;
    x->owned_prev = x->owned_next = 0;
}

static void owner_join(struct crail_meta *m, struct crail_meta_session *s, crail_ref ref) {
    struct crail_extra *x = crail_extra_at(m, ref);
    x->session = s->slot;
    x->owned_next = s->owned;
    if (s->owned)
        crail_extra_at(m, s->owned)->owned_prev = ref;
    s->owned = ref;
}

void crail_life_owner_gone(struct crail_meta *m, struct crail_meta_session *s) {
    struct crail_extra *x = crail_extra_at(m, s->owned);
    crail_ref node = x->node;
    crail_node_touch(m, node);
    owner_leave(m, x);
    x->options &= (uint16_t)~CRAIL_OPTION_SESSION;
    if (crail_tree_reachable(m, node))
        crail_tree_remove(m, node);
    else
        crail_extra_tidy(m, node);
}

/* ---- eviction --------------------------------------------------------------------------- */

static void evict_leave(struct crail_meta *m, struct crail_extra *x) {
    if (!x->evict_server)
        return;
    struct crail_server *sv = crail_server_find(m, x->evict_server);
    if (x->evict_prev)
        crail_extra_at(m, x->evict_prev)->evict_next = x->evict_next;
    else
        sv->evict_first = x->evict_next;
    if (x->evict_next)
        crail_extra_at(m, x->evict_next)->evict_prev = x->evict_prev;
    else
        sv->evict_last = x->evict_prev;
    x->evict_prev = x->evict_next = x->evict_server = 0;
}

/* As the one with the latest commit. */
static void evict_join(struct crail_meta *m, const struct crail_node *n) {
    struct crail_extra *x = crail_extra_at(m, n->extra);
    struct crail_server *sv = crail_server_find(m, crail_value_runs_of(m, n)->server);
    x->evict_server = sv->number;
    x->evict_prev = sv->evict_last;
    if (sv->evict_last)
        crail_extra_at(m, sv->evict_last)->evict_next = n->extra;
    else
        sv->evict_first = n->extra;
    sv->evict_last = n->extra;
}

/* The oldest of those that are first on their servers, or 0. */
static crail_ref evict_oldest(const struct crail_meta *m, const struct crail_options *where) {
    uint64_t oldest = UINT64_MAX;
    crail_ref node = 0;
    for (uint32_t i = 0; i < m->up_n; i++) {
        const struct crail_server *sv = m->up[i];
        if (!sv->evict_first || !crail_server_eligible(sv, where))
            continue;
        crail_ref first = crail_extra_at(m, sv->evict_first)->node;
        if (crail_node_at(m, first)->version < oldest) {
            oldest = crail_node_at(m, first)->version;
            node = first;
        }
    }
    return node;
}

bool crail_life_evict(struct crail_meta *m, const struct crail_options *where) {
    crail_ref node = evict_oldest(m, where);
    if (!node)
        return false;
    evict_leave(m, crail_extra_at(m, crail_node_at(m, node)->extra));
    if (crail_tree_reachable(m, node)) /* else it is on its way out already */
        crail_tree_remove(m, node);
    return true;
}

bool crail_meta_may_evict(const struct crail_meta *m) {
    for (uint32_t i = 0; i < m->up_n; i++)
        if (m->up[i]->evict_first)
            return true;
    return false;
}

/* ---- all together ------------------------------------------------------------------------- */

void crail_life_apply(struct crail_call *c, crail_ref ref, struct crail_life *life) {
    struct crail_meta *m = c->m;
    struct crail_node *n = crail_node_at(m, ref);
    if (life->spare)
        crail_extra_give(m, ref, life->spare);
    life->spare = 0;
    if (!n->extra)
        return;
    struct crail_extra *x = crail_extra_at(m, n->extra);
    struct wanted want = wanted_of(c, x);
    if (x->options & CRAIL_OPTION_SESSION &&
        (!(want.options & CRAIL_OPTION_SESSION) || c->options.flags & CRAIL_OPTION_SESSION)) {
        owner_leave(m, x);
        x->options &= (uint16_t)~CRAIL_OPTION_SESSION;
    }
    if (want.options & CRAIL_OPTION_SESSION && !(x->options & CRAIL_OPTION_SESSION))
        owner_join(m, c->s, n->extra);
    x->options = want.options;
    x->ttl_ns = want.ttl_ns;
    if (!x->own_job)
        crail_expiry_set(m, x, want.options & CRAIL_OPTION_TTL ? c->now_ns + want.ttl_ns : 0);
    if (x->job != want.job)
        crail_job_join(m, ref, want.job);
    evict_leave(m, x);
    if (want.options & CRAIL_OPTION_EVICTABLE && n->extents)
        evict_join(m, n);
    crail_extra_tidy(m, ref);
}

int crail_life_loaded(struct crail_meta *m, crail_ref ref, const struct crail_life_part *life,
                      struct crail_meta_session *s) {
    struct crail_extra *x = crail_extra_make(m, ref);
    bool ends = x && (life->options & CRAIL_OPTION_TTL || x->own_job);
    if (!x || (ends && crail_expiry_reserve(m)))
        return -ENOMEM;
    x->options = life->options;
    x->ttl_ns = life->ttl_ns;
    if (x->options & CRAIL_OPTION_SESSION)
        owner_join(m, s, crail_node_at(m, ref)->extra);
    if (ends)
        crail_expiry_set(m, x, life->expires_ns > 0 ? life->expires_ns : INT64_MAX);
    if (life->job)
        crail_job_join(m, ref, life->job);
    crail_extra_tidy(m, ref);
    return 0;
}

void crail_life_evictable_loaded(struct crail_meta *m, crail_ref ref) {
    evict_join(m, crail_node_at(m, ref));
}

void crail_life_leave(struct crail_meta *m, struct crail_extra *x) {
    if (x->options & CRAIL_OPTION_SESSION)
        owner_leave(m, x);
    evict_leave(m, x);
    crail_expiry_set(m, x, 0);
    crail_job_leave(m, x);
    if (x->own_job)
        crail_job_node_gone(m, x->own_job);
}

static void expire(struct crail_meta *m, crail_ref node) {
    struct crail_extra *x = crail_extra_at(m, crail_node_at(m, node)->extra);
    crail_node_touch(m, node);
    if (x->own_job) {
        crail_expiry_set(m, x, INT64_MAX);
        crail_job_end(m, x->own_job);
        return;
    }
    crail_expiry_set(m, x, 0);
    x->options &= (uint16_t)~CRAIL_OPTION_TTL;
    if (crail_tree_reachable(m, node))
        crail_tree_remove(m, node);
    else
        crail_extra_tidy(m, node);
}

/* When the next node ends; INT64_MAX: never. */
static int64_t first_end(const struct crail_meta *m) {
    crail_ref node = crail_expiry_first(m);
    if (!node)
        return INT64_MAX;
    int64_t at = crail_extra_at(m, crail_node_at(m, node)->extra)->expires_ns;
    return at > m->ends_after_ns ? at : m->ends_after_ns;
}

bool crail_life_step(struct crail_meta *m) {
    if (m->now_ns < m->ends_after_ns)
        return false;
    for (uint32_t i = 0; i < EXPIRIES_PER_STEP && first_end(m) <= m->now_ns; i++)
        expire(m, crail_expiry_first(m));
    return first_end(m) <= m->now_ns;
}

int64_t crail_meta_next_expiry(const struct crail_meta *m) {
    int64_t node = first_end(m), undone = crail_undone_due(m);
    return undone < node ? undone : node;
}
