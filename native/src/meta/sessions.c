/* Sessions, their grants, and how they end. A session keeps its grants in an array; the record of a granted run names
 * the session's slot and its place in that array, so that owning, taking and dropping are O(1). A session that ends
 * with many grants or holds becomes a dying one and is emptied in steps. */
#include "meta/engine.h"

#include <stdlib.h>

#define GRANTS_PER_STEP 256u
#define HOLDS_PER_STEP 32u
#define OWNED_PER_STEP 16u
#define UNDONE_NS 1000000000 /* a COMMIT that is repeated comes at once, or with the next try to reach us */

int crail_meta_session_open(struct crail_meta *m, uint64_t id, struct crail_meta_session **out) {
    uint32_t slot = 0;
    while (slot < m->sessions_n && m->sessions[slot])
        slot++;
    if (slot == m->sessions_n) {
        uint32_t n = m->sessions_n ? m->sessions_n * 2 : 16;
        struct crail_meta_session **p = realloc(m->sessions, n * sizeof(*p));
        if (!p)
            return -ENOMEM;
        memset(p + m->sessions_n, 0, (n - m->sessions_n) * sizeof(*p));
        m->sessions = p;
        m->sessions_n = n;
    }
    struct crail_meta_session *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->id = id;
    s->slot = slot;
    crail_list_init(&s->changed);
    m->sessions[slot] = s;
    crail_session_touch(m, s);
    *out = s;
    return 0;
}

static struct crail_run grant_run(const struct crail_meta *m, const struct crail_grant *g) {
    struct crail_run run = {g->server, g->region, g->granule, 0};
    run.granules = crail_run_record_of(m, &run)->len;
    return run;
}

static void take_back(struct crail_meta *m, struct crail_meta_session *s, uint32_t place) {
    struct crail_run run = grant_run(m, &s->grants[place]);
    crail_session_drop(m, s, &run);
    crail_run_retire(m, &run);
}

/* Ends some of what the session has; frees it with the last. True if some is left. */
static bool session_empty(struct crail_meta *m, struct crail_meta_session *s) {
    for (uint32_t i = 0; s->n && i < GRANTS_PER_STEP; i++)
        take_back(m, s, s->n - 1);
    for (uint32_t i = 0; s->holds && i < HOLDS_PER_STEP; i++)
        crail_hold_end(m, s->holds, CRAIL_HOLD_SESSION_END);
    for (uint32_t i = 0; s->owned && i < OWNED_PER_STEP; i++)
        crail_life_owner_gone(m, s);
    if (s->n || s->holds || s->owned)
        return true;
    m->sessions[s->slot] = NULL;
    m->sessions_dying -= s->dying;
    free(s->grants);
    if (!crail_cut_keeps_session(m, s))
        free(s);
    return false;
}

void crail_meta_session_end(struct crail_meta *m, struct crail_meta_session *s) {
    assert(!s->dying);
    crail_cut_session_over(m, s);
    if (session_empty(m, s)) {
        s->dying = true;
        m->sessions_dying++;
    }
}

bool crail_session_step(struct crail_meta *m) {
    for (uint32_t i = 0; m->sessions_dying && i < m->sessions_n; i++) {
        if (m->sessions[i] && m->sessions[i]->dying) {
            session_empty(m, m->sessions[i]);
            break;
        }
    }
    return m->sessions_dying != 0;
}

int64_t crail_meta_undone_until(const struct crail_meta *m) {
    return m->undone.grants ? m->ends_after_ns + UNDONE_NS : 0;
}

void crail_meta_undone_keep(struct crail_meta *m, bool is_kept) {
    m->undone.is_kept = is_kept;
}

int64_t crail_undone_due(const struct crail_meta *m) {
    return m->undone.grants && !m->undone.is_kept ? crail_meta_undone_until(m) : INT64_MAX;
}

/* From the last grant of each session to its first: whatever is dropped meanwhile, what moves to its place was looked
 * at. */
bool crail_undone_step(struct crail_meta *m) {
    struct crail_undone *u = &m->undone;
    for (uint32_t i = 0; crail_undone_due(m) <= m->now_ns && i < GRANTS_PER_STEP; i++) {
        struct crail_meta_session *s = u->session < m->sessions_n ? m->sessions[u->session] : NULL;
        if (s && u->left > s->n)
            u->left = s->n;
        if (!s || !u->left) {
            u->session = u->session < m->sessions_n ? u->session + 1 : 0;
            u->left = UINT32_MAX;
        } else if (s->grants[--u->left].is_undone) {
            take_back(m, s, u->left);
        }
    }
    return crail_undone_due(m) <= m->now_ns;
}

int crail_session_reserve(struct crail_meta *m, struct crail_meta_session *s, uint32_t n) {
    int rc = crail_grantmap_reserve(m, n);
    if (rc)
        return rc;
    if (s->n + n <= s->cap)
        return 0;
    uint32_t cap = s->cap ? s->cap * 2 : 8;
    while (cap < s->n + n)
        cap *= 2;
    struct crail_grant *p = realloc(s->grants, cap * sizeof(*p));
    if (!p)
        return -ENOMEM;
    s->grants = p;
    s->cap = cap;
    return 0;
}

void crail_session_grant(struct crail_meta *m, struct crail_meta_session *s, const struct crail_run *runs, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        crail_session_grant_again(m, s, &runs[i], crail_grantmap_note(m, s->id, &runs[i]));
}

void crail_session_grant_again(struct crail_meta *m, struct crail_meta_session *s, const struct crail_run *run,
                               uint32_t slot) {
    struct crail_run_record *rec = crail_run_record_of(m, run);
    assert(s->n < s->cap && rec->state == CRAIL_RUN_GRANT);
    rec->prev = s->n;
    rec->next = s->slot;
    bool is_undone = crail_grantmap_is_undone(m, slot);
    s->grants[s->n++] = (struct crail_grant){run->server, run->region, run->granule, slot, is_undone};
    m->undone.grants += is_undone;
}

bool crail_session_owns(const struct crail_meta *m, const struct crail_meta_session *s, const struct crail_extent *e) {
    const struct crail_server *sv = crail_server_find(m, e->server);
    if (!sv || sv->state == CRAIL_SERVER_LOST || e->region >= sv->regions_n)
        return false;
    const struct crail_region *r = &sv->regions[e->region];
    if (e->granule >= r->granules)
        return false;
    const struct crail_run_record *rec = &r->record[e->granule];
    /* The key tells a grant of this namenode's life from one of an earlier life that had the same numbers. */
    return rec->state == CRAIL_RUN_GRANT && rec->next == s->slot && rec->len == e->granules &&
           r->generation[e->granule] == e->generation && e->key == crail_extent_key(m->mac_key, e, CRAIL_RIGHT_WRITE);
}

/* Removes one place from the array; the last grant moves there. */
static void place_remove(struct crail_meta *m, struct crail_meta_session *s, uint32_t place) {
    struct crail_grant last = s->grants[--s->n];
    m->undone.grants -= s->grants[place].is_undone;
    if (place == s->n)
        return;
    s->grants[place] = last;
    struct crail_run run = {last.server, last.region, last.granule, 0};
    crail_run_record_of(m, &run)->prev = place;
}

void crail_session_knows(struct crail_meta *m, struct crail_meta_session *s, const struct crail_run *run) {
    struct crail_grant *g = &s->grants[crail_run_record_of(m, run)->prev];
    if (!g->is_undone)
        return;
    g->is_undone = 0;
    m->undone.grants--;
    crail_grantmap_known(m, g->slot);
}

void crail_session_drop(struct crail_meta *m, struct crail_meta_session *s, const struct crail_run *run) {
    struct crail_run_record *rec = crail_run_record_of(m, run);
    assert(rec->state == CRAIL_RUN_GRANT && rec->next == s->slot && rec->prev < s->n);
    uint32_t slot = s->grants[rec->prev].slot;
    place_remove(m, s, rec->prev);
    rec->prev = 0;
    rec->next = slot;
}

void crail_sessions_forget_server(struct crail_meta *m, uint32_t number) {
    for (uint32_t i = 0; i < m->sessions_n; i++) {
        struct crail_meta_session *s = m->sessions[i];
        for (uint32_t k = s ? s->n : 0; k--;)
            if (s->grants[k].server == number) {
                crail_grantmap_erase(m, s->grants[k].slot);
                place_remove(m, s, k);
            }
    }
}
