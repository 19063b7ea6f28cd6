/* ALLOC, COMMIT, RELEASE: grants of a session, and how they become values. */
#include "meta/engine.h"

#define EVICTIONS_AT_ONCE 32u

static uint64_t granules_of(uint64_t bytes) {
    return bytes / CRAIL_GRANULE + (bytes % CRAIL_GRANULE != 0);
}

/* Appends a fresh grant to the result, with the key for writing. */
static void put_grant(struct crail_call *c, const struct crail_run *run) {
    struct crail_extent e = {run->server, run->region, run->granule, run->granules, 0, 0};
    e.generation = crail_run_generation(c->m, run);
    e.key = crail_extent_key(c->m->mac_key, &e, CRAIL_RIGHT_WRITE);
    memcpy(c->out + c->r->data_len, &e, sizeof(e));
    c->r->data_len += sizeof(e);
    c->r->count++;
}

static bool is_striped(const struct crail_call *c) {
    return c->options.stripe > 1;
}

static uint32_t take(struct crail_call *c, struct crail_run *runs) {
    uint64_t granules = granules_of(c->op->arg1);
    if (crail_flag(c, CRAIL_OPF_IF_PLENTY))
        return crail_runs_take_if_plenty(c->m, &c->options, granules, runs);
    if (is_striped(c))
        return crail_runs_take_striped(c->m, &c->options, granules, runs);
    return crail_runs_take(c->m, &c->options, granules, crail_flag(c, CRAIL_OPF_ONE_EXTENT) ? 1 : CRAIL_EXTENTS_MAX,
                           runs);
}

/* Evicts until enough is free or on its way back; the grant gets it when it is tried again. What has been on its way
 * for long may be pinned by a reader: then more goes. One run that is not there although as much is free is not worth
 * anybody's value: who asked takes pieces. */
static void make_room(struct crail_call *c) {
    struct crail_meta *m = c->m;
    uint64_t granules = granules_of(c->op->arg1);
    bool late = c->now_ns - m->evicted_ns > CRAIL_META_EVICT_AGAIN_NS;
    for (uint32_t i = 0; i < EVICTIONS_AT_ONCE; i++) {
        struct crail_room room = crail_runs_room(m, &c->options);
        bool coming = room.retiring && room.free + room.retiring >= granules;
        if (room.free >= granules && crail_flag(c, CRAIL_OPF_ONE_EXTENT))
            return;
        if ((coming && !late) || granules > room.total || !crail_life_evict(m, &c->options))
            return;
        m->evicted_ns = c->now_ns;
        late = false;
    }
}

/* Where nothing else is said, a grant is looked for where the server is. */
static void prefer_like(struct crail_call *c, uint64_t server) {
    struct crail_options *o = &c->options;
    const struct crail_server *sv = server <= UINT32_MAX ? crail_server_find(c->m, (uint32_t)server) : NULL;
    if (!sv || o->flags & CRAIL_OPTION_STRICT)
        return;
    if (o->storage_class == CRAIL_CLASS_ANY)
        o->storage_class = sv->storage_class;
    if (!o->location)
        o->location = sv->location;
}

static bool alloc_allowed(const struct crail_call *c) {
    bool ahead = crail_flag(c, CRAIL_OPF_IF_PLENTY);
    return c->op->arg1 && !(c->options.flags & ~CRAIL_OPTIONS_KNOWN) && !c->options.reserved &&
           !(is_striped(c) && (ahead || crail_flag(c, CRAIL_OPF_ONE_EXTENT))) &&
           !(ahead && crail_flag(c, CRAIL_OPF_WAIT));
}

int crail_op_alloc(struct crail_call *c) {
    struct crail_run runs[CRAIL_EXTENTS_MAX];
    if (!alloc_allowed(c))
        return CRAIL_E_INVALID_ARGUMENT;
    prefer_like(c, c->op->arg0);
    if (crail_session_reserve(c->m, c->s, CRAIL_EXTENTS_MAX))
        return CRAIL_E_NO_MEMORY;
    uint32_t n = take(c, runs);
    if (!n) {
        if (!crail_flag(c, CRAIL_OPF_IF_PLENTY))
            make_room(c);
        return CRAIL_E_OUT_OF_SPACE;
    }
    crail_session_grant(c->m, c->s, runs, n);
    for (uint32_t i = 0; i < n; i++) {
        put_grant(c, &runs[i]);
        c->r->size += (uint64_t)runs[i].granules * CRAIL_GRANULE;
    }
    return 0;
}

/* ---- what a client names as its own --------------------------------------------- */

static bool same_run(const struct crail_extent *a, const struct crail_extent *b) {
    return a->granule == b->granule && a->region == b->region && a->server == b->server;
}

static bool named_twice(const struct crail_extent *e, uint32_t n) {
    for (uint32_t i = 1; i < n; i++)
        for (uint32_t k = 0; k < i; k++)
            if (same_run(&e[i], &e[k]))
                return true;
    return false;
}

static bool on_lost_server(const struct crail_meta *m, const struct crail_extent *e) {
    const struct crail_server *sv = crail_server_find(m, e->server);
    return sv && sv->state == CRAIL_SERVER_LOST;
}

/* Gives back what is the session's among the extents. */
static void let_go(struct crail_call *c, const struct crail_extent *e, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        struct crail_run run = crail_extent_run(&e[i]);
        if (!crail_session_owns(c->m, c->s, &e[i]))
            continue;
        crail_session_drop(c->m, c->s, &run);
        crail_run_retire(c->m, &run);
    }
}

/* Grants on a lost server went with it: naming them again is no mistake, there is just nothing to give back. */
int crail_op_release(struct crail_call *c) {
    struct crail_extent e[CRAIL_EXTENTS_MAX];
    uint32_t n = c->op->count;
    memcpy(e, c->data, n * sizeof(e[0]));
    if (named_twice(e, n))
        return CRAIL_E_STALE_LOCATION;
    for (uint32_t i = 0; i < n; i++)
        if (!on_lost_server(c->m, &e[i]) && !crail_session_owns(c->m, c->s, &e[i]))
            return CRAIL_E_STALE_LOCATION;
    let_go(c, e, n);
    return 0;
}

/* ---- commit -------------------------------------------------------------------------- */

/* All are grants of the session. With one on a lost server the others go too: the value that was written into them
 * cannot be completed. */
static int commit_grants_checked(struct crail_call *c, const struct crail_extent *e, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (on_lost_server(c->m, &e[i])) {
            c->r->server = e[i].server;
            let_go(c, e, n);
            return CRAIL_E_STALE_LOCATION;
        }
    }
    for (uint32_t i = 0; i < n; i++)
        if (!crail_session_owns(c->m, c->s, &e[i]))
            return CRAIL_E_STALE_LOCATION;
    if (named_twice(e, n))
        return CRAIL_E_STALE_LOCATION;
    for (uint32_t i = 0; i < n; i++) {
        struct crail_run run = crail_extent_run(&e[i]);
        crail_session_knows(c->m, c->s, &run);
    }
    return 0;
}

static bool too_small(const struct crail_extent *e, uint32_t n, uint64_t size) {
    uint64_t granules = 0;
    for (uint32_t i = 0; i < n; i++)
        granules += e[i].granules;
    return granules_of(size) > granules;
}

/* Copies the runs that the size needs. Returns how many. A run is never cut: its grantee may still be writing behind
 * the size, and only the generation of the run's first granule, which stays, could keep it off. */
static uint32_t kept_runs(const struct crail_extent *e, uint32_t n, uint64_t size, struct crail_run *kept) {
    uint64_t needed = granules_of(size), held = 0;
    uint32_t k = 0;
    for (; k < n && held < needed; k++) {
        kept[k] = crail_extent_run(&e[k]);
        held += kept[k].granules;
    }
    return k;
}

void crail_grants_turn(struct crail_call *c, const struct crail_extent *e, uint32_t n, uint32_t kept) {
    for (uint32_t i = 0; i < n; i++) {
        struct crail_run run = crail_extent_run(&e[i]);
        crail_session_drop(c->m, c->s, &run);
        if (i < kept)
            crail_run_use(c->m, &run);
        else
            crail_run_retire(c->m, &run);
    }
}

static void grant_again(struct crail_call *c) {
    struct crail_run run;
    if (is_striped(c) || crail_session_reserve(c->m, c->s, 1) ||
        !crail_runs_take_if_plenty(c->m, &c->options, granules_of(c->op->arg1), &run))
        return;
    crail_session_grant(c->m, c->s, &run, 1);
    put_grant(c, &run);
}

int crail_op_commit(struct crail_call *c) {
    struct crail_extent e[CRAIL_EXTENTS_MAX];
    struct crail_run kept[CRAIL_EXTENTS_MAX];
    struct crail_walk w;
    struct crail_value v;
    uint32_t n = c->op->count;
    uint64_t size = c->op->arg1;
    if (size == 0)
        return CRAIL_E_INVALID_ARGUMENT;
    memcpy(e, c->data, n * sizeof(e[0]));
    int rc = commit_grants_checked(c, e, n);
    if (!rc && crail_flag(c, CRAIL_OPF_APPEND))
        return (c->op->flags & ~CRAIL_OPF_FLUSHED) == CRAIL_OPF_APPEND ? crail_op_commit_append(c, e, n)
                                                                       : CRAIL_E_INVALID_ARGUMENT;
    if (!rc && too_small(e, n, size))
        rc = CRAIL_E_INVALID_ARGUMENT;
    if (rc)
        return rc;
    int walked;
    rc = crail_leaf_find(c, &walked, &w);
    uint32_t kept_n = kept_runs(e, n, size, kept);
    if (!rc)
        rc = crail_value_runs(c->m, kept, kept_n, size, &v);
    if (rc)
        return rc;
    v.is_flushed = crail_flag(c, CRAIL_OPF_FLUSHED);
    rc = crail_leaf_publish(c, walked, &w, &v);
    if (rc) {
        crail_value_discard(c->m, &v);
        return rc;
    }
    crail_grants_turn(c, e, n, kept_n);
    crail_streams_committed(c, e, kept_n, w.node);
    if (crail_flag(c, CRAIL_OPF_GRANT_AGAIN))
        grant_again(c);
    return 0;
}
