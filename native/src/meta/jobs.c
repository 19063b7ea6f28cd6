/* Jobs: a directory and all below it, and nodes elsewhere that name the job, live as long as somebody holds it, and are
 * charged to it.
 *
 * What lies below the directory of a job has CRAIL_NODE_IN_JOB, so that nobody else pays for looking; it is charged to
 * that job and to those that its directory lies in. Neither a container with something in it nor a job's directory ever
 * crosses the border of a job, so the flag and the sums stay right without a walk down. A removed node notes the job
 * around it (hash_next) and is charged until it is freed, so a job's record outlives the job. */
#include "meta/engine.h"

#include <stdlib.h>

#include "base/clock.h"

static uint32_t slot_of(uint64_t number) {
    return (uint32_t)(number & CRAIL_JOB_SLOTS);
}

/* Also one that has ended; 0 if there is none. */
static crail_ref record_of(const struct crail_meta *m, uint64_t number) {
    uint32_t slot = slot_of(number);
    crail_ref job = slot < m->jobs_cap ? m->jobs[slot] : 0;
    return job && crail_job_at(m, job)->number == number ? job : 0;
}

crail_ref crail_job_find(const struct crail_meta *m, uint64_t number) {
    crail_ref job = record_of(m, number);
    return job && !crail_job_at(m, job)->ended ? job : 0;
}

crail_ref crail_job_of(const struct crail_meta *m, crail_ref dir) {
    for (;;) {
        const struct crail_node *n = crail_node_at(m, dir);
        if (n->extra && crail_extra_at(m, n->extra)->own_job)
            return crail_extra_at(m, n->extra)->own_job;
        if (!(n->flags & CRAIL_NODE_IN_JOB))
            return 0;
        if (!n->parent)
            return n->hash_next;
        dir = n->parent;
    }
}

crail_ref crail_job_around(const struct crail_meta *m, const struct crail_node *n) {
    if (!(n->flags & CRAIL_NODE_IN_JOB))
        return 0;
    return n->parent ? crail_job_of(m, n->parent) : n->hash_next;
}

/* ---- sums --------------------------------------------------------------------------- */

static bool fits(const struct crail_job *j, int64_t nodes, int64_t bytes) {
    return (nodes <= 0 || !j->quota.nodes || j->nodes + (uint64_t)nodes <= j->quota.nodes) &&
           (bytes <= 0 || !j->quota.bytes || j->bytes + (uint64_t)bytes <= j->quota.bytes);
}

static bool is_around(const struct crail_meta *m, crail_ref inner, crail_ref job) {
    while (inner && inner != job)
        inner = crail_job_at(m, inner)->outer;
    return inner != 0;
}

bool crail_jobs_fit(const struct crail_meta *m, crail_ref inner, int64_t nodes, int64_t bytes, crail_ref own,
                    int64_t own_nodes, int64_t own_bytes) {
    for (crail_ref job = inner; job; job = crail_job_at(m, job)->outer) {
        if (!fits(crail_job_at(m, job), nodes, bytes))
            return false;
        if (job == own)
            own = 0;
    }
    return !own || fits(crail_job_at(m, own), own_nodes, own_bytes);
}

bool crail_jobs_fit_move(const struct crail_meta *m, const struct crail_node *n, crail_ref to, int64_t nodes,
                         int64_t bytes) {
    crail_ref from = crail_job_around(m, n), own = n->extra ? record_of(m, crail_extra_at(m, n->extra)->job) : 0;
    for (crail_ref job = to; job; job = crail_job_at(m, job)->outer)
        if (job != own && !is_around(m, from, job) && !fits(crail_job_at(m, job), nodes, bytes))
            return false;
    return true;
}

static void free_if_over(struct crail_meta *m, crail_ref ref) {
    const struct crail_job *j = crail_job_at(m, ref);
    if (!j->ended || j->node || j->nodes || j->members || j->listed)
        return;
    assert(!j->bytes && !j->holders);
    m->jobs[slot_of(j->number)] = 0;
    m->jobs_n--;
    crail_arena_free(&m->arena, ref, sizeof(*j));
}

static void charge(struct crail_meta *m, crail_ref job, int64_t nodes, int64_t bytes) {
    struct crail_job *j = crail_job_at(m, job);
    j->nodes += (uint64_t)nodes;
    j->bytes += (uint64_t)bytes;
    assert((int64_t)j->nodes >= 0 && (int64_t)j->bytes >= 0);
    free_if_over(m, job);
}

static void charge_own(struct crail_meta *m, crail_ref inner, const struct crail_node *n, int64_t nodes,
                       int64_t bytes) {
    crail_ref own = n->extra ? record_of(m, crail_extra_at(m, n->extra)->job) : 0;
    if (own && !is_around(m, inner, own))
        charge(m, own, nodes, bytes);
}

void crail_jobs_charge(struct crail_meta *m, crail_ref inner, const struct crail_node *n, int64_t nodes,
                       int64_t bytes) {
    charge_own(m, inner, n, nodes, bytes);
    for (crail_ref job = inner, outer; job; job = outer) {
        outer = crail_job_at(m, job)->outer;
        charge(m, job, nodes, bytes);
    }
}

/* ---- members by option ------------------------------------------------------------------ */

void crail_job_leave(struct crail_meta *m, struct crail_extra *x) {
    crail_ref job = record_of(m, x->job);
    if (!job)
        return;
    if (x->job_prev)
        crail_extra_at(m, x->job_prev)->job_next = x->job_next;
    else
        crail_job_at(m, job)->members = x->job_next;
    if (x->job_next)
        crail_extra_at(m, x->job_next)->job_prev = x->job_prev;
    x->job_prev = x->job_next = 0;
    x->job = 0;
    free_if_over(m, job);
}

void crail_job_join(struct crail_meta *m, crail_ref node, uint64_t number) {
    struct crail_node *n = crail_node_at(m, node);
    struct crail_extra *x = crail_extra_at(m, n->extra);
    crail_ref inner = crail_job_around(m, n), job = record_of(m, number);
    int64_t bytes = crail_node_is_leaf(n) ? (int64_t)n->size : 0;
    if (x->job) {
        charge_own(m, inner, n, -1, -bytes);
        crail_job_leave(m, x);
    }
    if (!job)
        return;
    struct crail_job *j = crail_job_at(m, job);
    x->job = number;
    x->job_next = j->members;
    if (j->members)
        crail_extra_at(m, j->members)->job_prev = n->extra;
    j->members = n->extra;
    charge_own(m, inner, n, 1, bytes);
}

/* ---- the end ------------------------------------------------------------------------------- */

static void set_ended(struct crail_meta *m, crail_ref ref) {
    struct crail_job *j = crail_job_at(m, ref);
    j->ended = true;
    if (!j->members)
        return;
    j->listed = true;
    j->ending = m->jobs_ending;
    m->jobs_ending = ref;
}

void crail_job_end(struct crail_meta *m, crail_ref ref) {
    const struct crail_job *j = crail_job_at(m, ref);
    if (j->ended)
        return;
    set_ended(m, ref);
    if (crail_tree_reachable(m, j->node))
        crail_tree_remove(m, j->node); /* perhaps the record with it */
}

void crail_job_node_gone(struct crail_meta *m, crail_ref ref) {
    struct crail_job *j = crail_job_at(m, ref);
    j->node = 0;
    if (!j->ended)
        set_ended(m, ref);
    free_if_over(m, ref);
}

bool crail_job_step(struct crail_meta *m) {
    crail_ref ref = m->jobs_ending;
    if (!ref)
        return false;
    struct crail_job *j = crail_job_at(m, ref);
    if (j->members) {
        crail_ref node = crail_extra_at(m, j->members)->node;
        if (crail_tree_reachable(m, node))
            crail_tree_remove(m, node);
        /* What is only freed in steps is a member no longer. */
        if (j->members && crail_extra_at(m, j->members)->node == node) {
            crail_job_join(m, node, 0);
            crail_extra_tidy(m, node);
        }
        return true;
    }
    m->jobs_ending = j->ending;
    j->listed = false;
    free_if_over(m, ref);
    return m->jobs_ending != 0;
}

static void session_leave(struct crail_meta *m, const struct crail_hold *h) {
    struct crail_meta_session *s = m->sessions[h->session];
    crail_ref *at = &s->jobs;
    while (crail_hold_at(m, *at) != h)
        at = &crail_hold_at(m, *at)->record;
    *at = h->record;
    crail_session_touch(m, s);
}

static void session_join(struct crail_meta *m, struct crail_meta_session *s, crail_ref hold) {
    crail_hold_at(m, hold)->record = s->jobs;
    s->jobs = hold;
    crail_session_touch(m, s);
}

void crail_job_hold_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why) {
    struct crail_extra *x = crail_extra_at(m, crail_node_at(m, h->node)->extra);
    struct crail_job *j = crail_job_at(m, x->own_job);
    session_leave(m, h);
    assert(j->holders);
    if (--j->holders || j->ended || why == CRAIL_HOLD_NODE_GONE)
        return;
    if (why == CRAIL_HOLD_ENDED || !j->ttl_ns)
        crail_job_end(m, x->own_job);
    else
        crail_expiry_set(m, x, m->now_ns + j->ttl_ns);
}

/* ---- an earlier life ------------------------------------------------------------------------ */

static bool slots_grow(struct crail_meta *m);

int crail_job_loaded(struct crail_meta *m, crail_ref node, const struct crail_job_part *part) {
    uint32_t slot = slot_of(part->number);
    struct crail_extra *x = crail_extra_make(m, node);
    if (!part->number || slot == CRAIL_JOB_SLOTS)
        return -EUCLEAN;
    while (x && slot >= m->jobs_cap)
        if (!slots_grow(m))
            return -ENOMEM;
    if (x && m->jobs[slot])
        return -EUCLEAN;
    crail_ref job = x ? crail_arena_alloc(&m->arena, sizeof(struct crail_job)) : 0;
    if (!job)
        return -ENOMEM;
    *crail_job_at(m, job) = (struct crail_job){
        .number = part->number, .node = node, .ttl_ns = part->ttl_ns, .quota = {part->quota_bytes, part->quota_nodes}};
    x->own_job = job;
    m->jobs[slot] = job;
    m->jobs_n++;
    uint64_t count = part->number / (CRAIL_JOB_SLOTS + 1ull);
    m->last_job = count > m->last_job ? count : m->last_job;
    return 0;
}

void crail_job_placed(struct crail_meta *m, crail_ref job) {
    struct crail_job *j = crail_job_at(m, job);
    j->outer = crail_job_around(m, crail_node_at(m, j->node));
}

void crail_job_unheld(struct crail_meta *m, crail_ref job) {
    const struct crail_job *j = crail_job_at(m, job);
    struct crail_extra *x = crail_extra_at(m, crail_node_at(m, j->node)->extra);
    if (j->holders || x->expires_ns != INT64_MAX)
        return;
    crail_node_touch(m, j->node);
    crail_expiry_set(m, x, crail_clock_realtime_ns() + j->ttl_ns);
}

int crail_job_hold_loaded(struct crail_meta *m, struct crail_meta_session *s, uint64_t token, uint64_t number) {
    crail_ref job = crail_job_find(m, number);
    if (!job)
        return 0; /* it was over, and the session had not been told */
    if (crail_hold_find(m, s, token))
        return -EUCLEAN;
    crail_ref hold = crail_hold_add(m, s, CRAIL_HOLD_JOB, token, crail_job_at(m, job)->node);
    if (!hold)
        return -ENOMEM;
    crail_hold_at(m, hold)->record = s->jobs;
    s->jobs = hold;
    crail_job_at(m, job)->holders++;
    return 0;
}

/* ---- JOB ---------------------------------------------------------------------------------------- */

/* What a new job takes, all of it before anything is changed. */
struct parts {
    crail_ref job, hold, extra;
    uint32_t slot;
};

static void parts_discard(struct crail_meta *m, const struct parts *p) {
    if (p->job)
        crail_arena_free(&m->arena, p->job, sizeof(struct crail_job));
    if (p->hold)
        crail_arena_free(&m->arena, p->hold, sizeof(struct crail_hold));
    if (p->extra)
        crail_arena_free(&m->arena, p->extra, sizeof(struct crail_extra));
}

static bool slots_grow(struct crail_meta *m) {
    uint32_t cap = m->jobs_cap ? m->jobs_cap * 2 : 64;
    crail_ref *p = cap <= CRAIL_JOB_SLOTS ? realloc(m->jobs, cap * sizeof(*p)) : NULL;
    if (!p)
        return false;
    memset(p + m->jobs_cap, 0, (cap - m->jobs_cap) * sizeof(*p));
    m->jobs_hint = m->jobs_cap;
    m->jobs = p;
    m->jobs_cap = cap;
    return true;
}

static bool slot_find(struct crail_meta *m, uint32_t *slot) {
    if (m->jobs_n == m->jobs_cap && !slots_grow(m))
        return false;
    while (m->jobs[m->jobs_hint])
        m->jobs_hint = (m->jobs_hint + 1) % m->jobs_cap;
    *slot = m->jobs_hint;
    return true;
}

static bool parts_take(struct crail_meta *m, bool fresh, struct parts *p) {
    *p = (struct parts){.hold = crail_arena_alloc(&m->arena, sizeof(struct crail_hold))};
    if (fresh) {
        p->job = crail_arena_alloc(&m->arena, sizeof(struct crail_job));
        p->extra = crail_arena_alloc(&m->arena, sizeof(struct crail_extra));
    }
    if (p->hold && (!fresh || (p->job && p->extra && !crail_expiry_reserve(m) && slot_find(m, &p->slot))))
        return true;
    parts_discard(m, p);
    return false;
}

/* Makes the job of a directory that is none. */
static void job_begin(struct crail_meta *m, crail_ref node, const struct parts *p) {
    struct crail_extra *x = crail_extra_give(m, node, p->extra);
    struct crail_job *j = crail_job_at(m, p->job);
    *j = (struct crail_job){.number = ++m->last_job * (CRAIL_JOB_SLOTS + 1ull) + p->slot, .node = node};
    j->outer = crail_job_around(m, crail_node_at(m, node));
    x->own_job = p->job;
    x->options &= (uint16_t)~CRAIL_OPTION_TTL; /* it ends with the job now */
    x->ttl_ns = 0;
    m->jobs[p->slot] = p->job;
    m->jobs_n++;
}

/* May the directory at the end of this walk be a job's? */
static int job_allowed(const struct crail_call *c, int walked, const struct crail_walk *w) {
    if (walked && !(walked == CRAIL_E_NOT_FOUND && crail_flag(c, CRAIL_OPF_PARENTS)))
        return walked;
    if (w->node == c->m->root)
        return CRAIL_E_INVALID_ARGUMENT;
    if (!w->node) {
        bool fit = crail_jobs_fit(c->m, crail_job_of(c->m, w->dir), crail_life_nodes_made(c, walked, w), 0, 0, 0, 0);
        int rc = crail_create_allowed(c, walked, w, CRAIL_KIND_DIRECTORY);
        return rc || fit ? rc : CRAIL_E_QUOTA_EXCEEDED;
    }
    const struct crail_node *n = crail_node_at(c->m, w->node);
    if (crail_node_is_leaf(n))
        return CRAIL_E_NOT_CONTAINER;
    if (n->kind != CRAIL_KIND_DIRECTORY)
        return CRAIL_E_EXISTS;
    bool is_job = n->extra && crail_extra_at(c->m, n->extra)->own_job;
    return is_job || !n->size ? 0 : CRAIL_E_NOT_EMPTY;
}

/* The same token again: the same answer. */
static int job_again(struct crail_call *c, crail_ref hold, const struct crail_walk *w) {
    const struct crail_hold *h = crail_hold_at(c->m, hold);
    if (h->kind != CRAIL_HOLD_JOB || !w->node || h->node != w->node)
        return CRAIL_E_INVALID_ARGUMENT;
    c->r->version = crail_job_at(c->m, crail_extra_at(c->m, crail_node_at(c->m, w->node)->extra)->own_job)->number;
    c->r->kind = CRAIL_KIND_DIRECTORY;
    return 0;
}

/* Who brings a limit or a time to live sets it for all. */
static void job_terms(struct crail_call *c, struct crail_job *j) {
    struct crail_quota quota = {0};
    if (c->op->data_len)
        memcpy(&quota, c->data, sizeof(quota));
    if (quota.bytes)
        j->quota.bytes = quota.bytes;
    if (quota.nodes)
        j->quota.nodes = quota.nodes;
    if (c->options.flags & CRAIL_OPTION_TTL)
        j->ttl_ns = (int64_t)c->options.ttl_ns;
}

int crail_op_job(struct crail_call *c) {
    struct crail_meta *m = c->m;
    struct crail_walk w;
    struct parts p;
    if ((c->op->data_len && c->op->data_len != sizeof(struct crail_quota)) || c->options.job ||
        c->options.flags & ~(CRAIL_OPTION_TTL | CRAIL_OPTION_SYNC | CRAIL_OPTION_GROUP) ||
        c->options.ttl_ns > CRAIL_TTL_NS_MAX)
        return CRAIL_E_INVALID_ARGUMENT;
    int walked = crail_path_walk(m, c->path, c->op->path_len, &w);
    crail_ref hold = crail_hold_find(m, c->s, c->op->arg0);
    if (hold)
        return walked && walked != CRAIL_E_NOT_FOUND ? walked : job_again(c, hold, &w);
    int rc = job_allowed(c, walked, &w);
    if (rc)
        return rc;
    const struct crail_node *n = w.node ? crail_node_at(m, w.node) : NULL;
    bool is_new = !n || !n->extra || !crail_extra_at(m, n->extra)->own_job;
    if (!parts_take(m, is_new, &p))
        return CRAIL_E_NO_MEMORY;
    bool made = !w.node;
    if (made)
        w.node = crail_node_make(c, walked, &w, CRAIL_KIND_DIRECTORY);
    if (!w.node) {
        parts_discard(m, &p);
        return CRAIL_E_NO_MEMORY;
    }
    crail_node_touch(m, w.node);
    if (is_new)
        job_begin(m, w.node, &p);
    if (made)
        crail_changed_node(m, CRAIL_CHANGE_PUT, w.node);
    struct crail_extra *x = crail_extra_at(m, crail_node_at(m, w.node)->extra);
    struct crail_job *j = crail_job_at(m, x->own_job);
    job_terms(c, j);
    crail_hold_link(m, c->s, p.hold, CRAIL_HOLD_JOB, c->op->arg0, w.node);
    session_join(m, c->s, p.hold);
    crail_expiry_set(m, x, INT64_MAX); /* its place in the heap is kept for the end */
    j->holders++;
    c->r->version = j->number;
    c->r->kind = CRAIL_KIND_DIRECTORY;
    return 0;
}
