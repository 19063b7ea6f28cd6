/* Servers of an earlier life: which of their runs are known after the load, and what becomes of the rest when they
 * register again. Until then what lies between the known runs has no state (its records are zero), and counts as
 * retiring. */
#include "meta/engine.h"

#include <stdlib.h>

/* ---- claims ------------------------------------------------------------------------ */

static int by_place(const void *a, const void *b) {
    const struct crail_claim *x = a, *y = b;
    if (x->run.server != y->run.server)
        return x->run.server < y->run.server ? -1 : 1;
    if (x->run.region != y->run.region)
        return x->run.region < y->run.region ? -1 : 1;
    if (x->run.granule != y->run.granule)
        return x->run.granule < y->run.granule ? -1 : 1;
    return (x->session != NULL) - (y->session != NULL); /* what a cut says comes before the grant map */
}

/* Is it a run that the server can have? */
static bool is_possible(const struct crail_server *sv, const struct crail_run *run) {
    if (!sv || !run->granules)
        return false;
    if (sv->state == CRAIL_SERVER_LOST)
        return true;
    return run->region < sv->regions_n && run->granule < sv->regions[run->region].granules &&
           run->granules <= sv->regions[run->region].granules - run->granule;
}

static bool overlap(const struct crail_claim *first, const struct crail_claim *next) {
    return first->run.server == next->run.server && first->run.region == next->run.region &&
           first->run.granule + first->run.granules > next->run.granule;
}

/* Makes grants void that are not possible, or overlap; true of nodes' runs: *wrong. */
static int claims_agree(const struct crail_meta *m, struct crail_claim *claims, uint64_t n,
                        const struct crail_claim **wrong) {
    struct crail_claim *before = NULL; /* the last one that holds */
    for (uint64_t i = 0; i < n; i++) {
        struct crail_claim *c = &claims[i];
        const struct crail_server *sv = crail_server_find(m, c->run.server);
        *wrong = c;
        if (!is_possible(sv, &c->run) || (c->session && sv->state == CRAIL_SERVER_LOST)) {
            c->is_void = true;
            if (!c->session)
                return -EUCLEAN;
        } else if (sv->state == CRAIL_SERVER_LOST) {
            continue;
        } else if (before && overlap(before, c)) {
            if (!c->session && !before->session)
                return -EUCLEAN;
            (c->session ? c : before)->is_void = true;
        }
        if (!c->is_void)
            before = c;
    }
    *wrong = NULL;
    return 0;
}

static int live_push(struct crail_server *sv, const struct crail_run *run) {
    if (sv->live_n == sv->live_cap) {
        uint32_t cap = sv->live_cap ? sv->live_cap * 2 : 64;
        struct crail_live *p = realloc(sv->live, cap * sizeof(*p));
        if (!p)
            return -ENOMEM;
        sv->live = p;
        sv->live_cap = cap;
    }
    sv->live[sv->live_n++] = (struct crail_live){run->region, run->granule, run->granules, 0};
    return 0;
}

int crail_claims_loaded(struct crail_meta *m, struct crail_claim *claims, uint64_t n,
                        const struct crail_claim **wrong) {
    if (n)
        qsort(claims, n, sizeof(*claims), by_place);
    int rc = claims_agree(m, claims, n, wrong);
    for (uint64_t i = 0; i < n && !rc; i++) {
        const struct crail_claim *c = &claims[i];
        struct crail_server *sv = crail_server_find(m, c->run.server);
        if (c->is_void || sv->state == CRAIL_SERVER_LOST)
            continue;
        if (c->session)
            rc = crail_session_reserve(m, c->session, 1);
        if (!rc)
            rc = live_push(sv, &c->run);
        if (rc)
            return -ENOMEM;
        crail_run_claim(sv, c);
        if (c->session)
            crail_session_grant_again(m, c->session, &c->run, c->slot);
    }
    return rc;
}

/* ---- registering again ---------------------------------------------------------------- */

uint32_t crail_meta_server_live(const struct crail_meta *m, uint32_t number, uint32_t from, struct crail_live *out,
                                uint32_t max) {
    const struct crail_server *sv = crail_server_find(m, number);
    if (!sv || !sv->is_unknown || sv->state == CRAIL_SERVER_LOST || from >= sv->live_n)
        return 0;
    uint32_t n = sv->live_n - from < max ? sv->live_n - from : max;
    memcpy(out, sv->live + from, n * sizeof(*out));
    return n;
}

static int busy_by_place(const void *a, const void *b) {
    const struct crail_retire *x = a, *y = b;
    if (x->region != y->region)
        return x->region < y->region ? -1 : 1;
    return (x->granule > y->granule) - (x->granule < y->granule);
}

/* The runs of a server that are known, by place: those of the load and the busy ones, merged. */
struct known {
    const struct crail_server *sv;
    const struct crail_retire *busy;
    uint32_t busy_n, live_i, busy_i;
    bool is_busy; /* the one that known_next() gave */
};

static bool known_next(struct known *k, struct crail_live *out) {
    const struct crail_live *l = k->live_i < k->sv->live_n ? &k->sv->live[k->live_i] : NULL;
    const struct crail_retire *b = k->busy_i < k->busy_n ? &k->busy[k->busy_i] : NULL;
    if (!l && !b)
        return false;
    k->is_busy = !l || (b && (b->region < l->region || (b->region == l->region && b->granule < l->granule)));
    *out = k->is_busy ? (struct crail_live){b->region, b->granule, b->granules, 0} : *l;
    k->live_i += !k->is_busy;
    k->busy_i += k->is_busy;
    return true;
}

/* Do the busy runs lie in the regions, and beside all others? */
static bool busy_fit(const struct crail_server *sv, const struct crail_retire *busy, uint32_t n) {
    struct known k = {sv, busy, n, 0, 0, false};
    struct crail_live run;
    uint32_t region = 0, end = 0;
    while (known_next(&k, &run)) {
        if (run.region >= sv->regions_n || !run.granules || run.granule >= sv->regions[run.region].granules ||
            run.granules > sv->regions[run.region].granules - run.granule)
            return false;
        if (run.region == region && run.granule < end)
            return false;
        region = run.region;
        end = run.granule + run.granules;
    }
    return true;
}

/* The server's generations of a run, behind the first `from` granules. */
static void generations_copy(struct crail_server *sv, const uint64_t *const *generations, uint32_t region,
                             uint32_t first, uint32_t granules, uint32_t from) {
    const uint64_t *of = generations ? generations[region] : NULL;
    if (of && granules > from)
        memcpy(sv->regions[region].generation + first + from, of + first + from, (granules - from) * sizeof(*of));
}

static void live_take(struct crail_server *sv, const uint64_t *const *generations, uint32_t *lost) {
    for (uint32_t i = 0; i < sv->live_n; i++) {
        const struct crail_live *run = &sv->live[i];
        const uint64_t *of = generations ? generations[run->region] : NULL;
        crail_run_compare(sv, run, of ? of[run->granule] : 0, lost);
        generations_copy(sv, generations, run->region, run->granule, run->granules, 1);
    }
}

/* What lies between the known runs is free, with the generations that the server has. */
static void gap_take(struct crail_server *sv, const uint64_t *const *generations, uint32_t region, uint32_t first,
                     uint32_t end) {
    if (first == end)
        return;
    generations_copy(sv, generations, region, first, end - first, 0);
    crail_run_unknown_free(sv, region, first, end - first);
}

static void gaps_take(struct crail_server *sv, const uint64_t *const *generations, const struct crail_retire *busy,
                      uint32_t n) {
    struct known k = {sv, busy, n, 0, 0, false};
    struct crail_live run;
    uint32_t region = 0, end = 0;
    while (known_next(&k, &run)) {
        for (; region < run.region; region++, end = 0)
            gap_take(sv, generations, region, end, sv->regions[region].granules);
        gap_take(sv, generations, region, end, run.granule);
        end = run.granule + run.granules;
    }
    for (; region < sv->regions_n; region++, end = 0)
        gap_take(sv, generations, region, end, sv->regions[region].granules);
}

int crail_meta_server_recovered(struct crail_meta *m, uint32_t number, const uint64_t *const *generations,
                                const struct crail_retire *busy, uint32_t busy_n, uint32_t *lost) {
    struct crail_server *sv = crail_server_find(m, number);
    *lost = 0;
    if (!sv)
        return -ENOENT;
    if (!sv->is_unknown || sv->state == CRAIL_SERVER_LOST)
        return -EINVAL;
    struct crail_retire *sorted = malloc((busy_n + 1) * sizeof(*sorted));
    if (!sorted)
        return -ENOMEM;
    if (busy_n)
        memcpy(sorted, busy, busy_n * sizeof(*sorted));
    qsort(sorted, busy_n, sizeof(*sorted), busy_by_place);
    if (!busy_fit(sv, sorted, busy_n)) {
        free(sorted);
        return -EPROTO;
    }
    live_take(sv, generations, lost);
    gaps_take(sv, generations, sorted, busy_n);
    for (uint32_t i = 0; i < busy_n; i++) {
        generations_copy(sv, generations, sorted[i].region, sorted[i].granule, sorted[i].granules, 0);
        crail_run_busy(sv, &sorted[i]);
    }
    free(sorted);
    free(sv->live);
    sv->live = NULL;
    sv->live_n = sv->live_cap = 0;
    sv->is_unknown = false;
    return crail_meta_server_set(m, number, CRAIL_SERVER_UP);
}
