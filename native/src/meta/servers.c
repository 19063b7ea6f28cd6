/* Storage servers: their granules by state, and the orders to retire. Where grants come from is in placement.c.
 *
 * A run goes FREE -> GRANT -> USED -> DUE -> PENDING -> FREE; a grant may also go straight to DUE. set_state() is the
 * one setter and keeps the counts. A retired run raises the generation of its first granule only: an extent is named
 * by its first granule and that granule's generation, so whoever held an older extent, wherever it overlapped,
 * finds the generation of *its* first granule raised.
 *
 * A LOST server is a stub: its memory goes to the graves, which are emptied in steps. */
#include "meta/engine.h"

#include <stdlib.h>
#include <sys/mman.h>

#define REGIONS_MAX 64u
#define GRAVE_STEP_BYTES (1u << 20)

/* ---- finding and counting ---------------------------------------------------- */

struct crail_server *crail_server_find(const struct crail_meta *m, uint32_t number) {
    return number >= 1 && number <= m->servers_n ? m->servers[number - 1] : NULL;
}

static struct crail_region *region_of(const struct crail_server *sv, const struct crail_run *run) {
    assert(sv && run->region < sv->regions_n);
    return &sv->regions[run->region];
}

struct crail_run_record *crail_run_record_of(const struct crail_meta *m, const struct crail_run *run) {
    return &region_of(crail_server_find(m, run->server), run)->record[run->granule];
}

uint64_t crail_run_generation(const struct crail_meta *m, const struct crail_run *run) {
    const struct crail_server *sv = crail_server_find(m, run->server);
    return sv->state == CRAIL_SERVER_LOST ? 0 : region_of(sv, run)->generation[run->granule];
}

static uint32_t count_of(enum crail_run_state state) {
    switch (state) {
    case CRAIL_RUN_USED:
    case CRAIL_RUN_HELD:
        return CRAIL_COUNT_USED;
    case CRAIL_RUN_GRANT:
        return CRAIL_COUNT_GRANTED;
    case CRAIL_RUN_DUE:
    case CRAIL_RUN_PENDING:
    case CRAIL_RUN_MARKED:
        return CRAIL_COUNT_RETIRING;
    default:
        return CRAIL_COUNT_FREE; /* INNER: just taken from there, or about to go there */
    }
}

static void set_state(struct crail_server *sv, struct crail_run_record *rec, enum crail_run_state state) {
    uint64_t *from = &sv->count[count_of(rec->state)], *to = &sv->count[count_of(state)];
    assert(*from >= rec->len);
    *from -= rec->len;
    *to += rec->len;
    rec->state = state;
}

/* ---- taking --------------------------------------------------------------------- */

void crail_run_taken(struct crail_server *sv, uint32_t region, uint32_t first, uint32_t granules,
                     struct crail_run *out) {
    struct crail_run_record *rec = &sv->regions[region].record[first];
    *rec = (struct crail_run_record){.len = granules};
    set_state(sv, rec, CRAIL_RUN_GRANT);
    *out = (struct crail_run){sv->number, region, first, granules};
}

void crail_run_untake(struct crail_meta *m, const struct crail_run *run) {
    struct crail_server *sv = crail_server_find(m, run->server);
    struct crail_region *r = region_of(sv, run);
    set_state(sv, &r->record[run->granule], CRAIL_RUN_INNER);
    crail_region_give(r, run->granule, run->granules);
}

/* ---- using and retiring ----------------------------------------------------------- */

void crail_run_use(struct crail_meta *m, const struct crail_run *run) {
    struct crail_server *sv = crail_server_find(m, run->server);
    struct crail_run_record *rec = &region_of(sv, run)->record[run->granule];
    assert(rec->state == CRAIL_RUN_GRANT && rec->len == run->granules);
    rec->prev = rec->next = 0;
    set_state(sv, rec, CRAIL_RUN_USED);
}

void crail_run_retire(struct crail_meta *m, const struct crail_run *run) {
    struct crail_server *sv = crail_server_find(m, run->server);
    if (sv->state == CRAIL_SERVER_LOST)
        return;
    struct crail_region *r = region_of(sv, run);
    struct crail_run_record *rec = &r->record[run->granule];
    assert(rec->state == CRAIL_RUN_GRANT || (rec->state == CRAIL_RUN_USED && !rec->prev) ||
           (rec->state == CRAIL_RUN_HELD && !rec->prev));
    assert(rec->len == run->granules);
    set_state(sv, rec, CRAIL_RUN_DUE);
    crail_run_push_tail(r, &r->due, run->granule);
    sv->due_extents++;
    sv->due_granules += rec->len;
}

/* NULL on a lost server. */
static struct crail_run_record *used_record(struct crail_meta *m, const struct crail_run *run) {
    struct crail_server *sv = crail_server_find(m, run->server);
    if (sv->state == CRAIL_SERVER_LOST)
        return NULL;
    struct crail_run_record *rec = &region_of(sv, run)->record[run->granule];
    assert((rec->state == CRAIL_RUN_USED || rec->state == CRAIL_RUN_HELD) && rec->len == run->granules);
    return rec;
}

void crail_run_drop(struct crail_meta *m, const struct crail_run *run) {
    struct crail_run_record *rec = used_record(m, run);
    if (rec && rec->prev)
        set_state(crail_server_find(m, run->server), rec, CRAIL_RUN_HELD);
    else
        crail_run_retire(m, run);
}

void crail_run_pin(struct crail_meta *m, const struct crail_run *run) {
    struct crail_run_record *rec = used_record(m, run);
    if (rec)
        rec->prev++;
}

void crail_run_unpin(struct crail_meta *m, const struct crail_run *run) {
    struct crail_run_record *rec = used_record(m, run);
    assert(!rec || rec->prev);
    if (rec && --rec->prev == 0 && rec->state == CRAIL_RUN_HELD)
        crail_run_retire(m, run);
}

/* ---- orders ------------------------------------------------------------------------- */

static void order_take(struct crail_server *sv, uint32_t region, struct crail_retire *out) {
    struct crail_region *r = &sv->regions[region];
    uint32_t g = r->due.head - 1;
    struct crail_run_record *rec = &r->record[g];
    crail_run_unlist(r, &r->due, g);
    crail_run_push_tail(r, &r->pending, g);
    set_state(sv, rec, CRAIL_RUN_PENDING);
    sv->due_extents--;
    sv->due_granules -= rec->len;
    *out =
        (struct crail_retire){.region = region, .granule = g, .granules = rec->len, .generation = r->generation[g] + 1};
}

uint32_t crail_meta_retires_take(struct crail_meta *m, uint32_t number, struct crail_retire *out, uint32_t max) {
    struct crail_server *sv = crail_server_find(m, number);
    uint32_t n = 0;
    if (!sv || sv->state == CRAIL_SERVER_LOST)
        return 0;
    while (n < max && sv->due_extents) {
        uint32_t region = sv->take_next;
        while (n < max && sv->regions[region].due.head)
            order_take(sv, region, &out[n++]);
        if (!sv->regions[region].due.head)
            sv->take_next = (region + 1) % sv->regions_n;
    }
    return n;
}

void crail_meta_retires_due(struct crail_meta *m, uint32_t number, uint32_t *extents, uint64_t *granules) {
    const struct crail_server *sv = crail_server_find(m, number);
    *extents = sv ? sv->due_extents : 0;
    *granules = sv ? sv->due_granules : 0;
}

/* The record that a confirmation is about, or NULL if it was not ordered like that. */
static struct crail_run_record *order_find(const struct crail_server *sv, const struct crail_retire *d) {
    if (d->region >= sv->regions_n || d->granule >= sv->regions[d->region].granules)
        return NULL;
    const struct crail_region *r = &sv->regions[d->region];
    struct crail_run_record *rec = &r->record[d->granule];
    bool ordered =
        rec->state == CRAIL_RUN_PENDING && rec->len == d->granules && r->generation[d->granule] + 1 == d->generation;
    return ordered ? rec : NULL;
}

static void order_finish(struct crail_server *sv, const struct crail_retire *d) {
    struct crail_region *r = &sv->regions[d->region];
    r->generation[d->granule] = d->generation;
    crail_run_unlist(r, &r->pending, d->granule);
    set_state(sv, &r->record[d->granule], CRAIL_RUN_INNER);
    crail_region_give(r, d->granule, d->granules);
}

int crail_meta_retires_done(struct crail_meta *m, uint32_t number, const struct crail_retire *done, uint32_t n) {
    struct crail_server *sv = crail_server_find(m, number);
    if (!sv)
        return -EPROTO;
    if (sv->state == CRAIL_SERVER_LOST)
        return 0;
    for (uint32_t i = 0; i < n; i++) {
        struct crail_run_record *rec = order_find(sv, &done[i]);
        if (!rec) {
            while (i--)
                sv->regions[done[i].region].record[done[i].granule].state = CRAIL_RUN_PENDING;
            return -EPROTO;
        }
        rec->state = CRAIL_RUN_MARKED; /* so that one named twice is refused */
    }
    for (uint32_t i = 0; i < n; i++)
        order_finish(sv, &done[i]);
    return 0;
}

/* ---- coming and going ------------------------------------------------------------------ */

static void region_bury(struct crail_meta *m, struct crail_region *r) {
    assert(m->graves_n + 2 <= m->graves_cap);
    m->graves[m->graves_n++] = (struct crail_grave){r->record, (size_t)r->granules * sizeof(*r->record)};
    m->graves[m->graves_n++] = (struct crail_grave){r->generation, (size_t)r->granules * sizeof(*r->generation)};
}

/* Room for one more server, in all arrays that its life may need. */
static int servers_reserve(struct crail_meta *m, uint32_t regions) {
    uint32_t graves = m->graves_n + 2 * regions;
    for (uint32_t i = 0; i < m->servers_n; i++)
        if (m->servers[i]->regions)
            graves += 2 * m->servers[i]->regions_n;
    if (graves > m->graves_cap) {
        struct crail_grave *p = realloc(m->graves, graves * sizeof(*p));
        if (!p)
            return -ENOMEM;
        m->graves = p;
        m->graves_cap = graves;
    }
    if (m->servers_n < m->servers_cap)
        return 0;
    uint32_t cap = m->servers_cap ? m->servers_cap * 2 : 16;
    struct crail_server **up = realloc(m->up, cap * sizeof(*up));
    if (!up)
        return -ENOMEM;
    m->up = up;
    struct crail_server **servers = realloc(m->servers, cap * sizeof(*servers));
    if (!servers)
        return -ENOMEM;
    m->servers = servers;
    m->servers_cap = cap;
    return 0;
}

static void regions_bury(struct crail_meta *m, struct crail_server *sv, uint32_t n) {
    while (n--)
        region_bury(m, &sv->regions[n]);
    free(sv->regions);
    sv->regions = NULL;
}

int crail_meta_server_add(struct crail_meta *m, const struct crail_meta_region *regions, uint32_t n,
                          const uint64_t *const *generations, struct crail_meta_place place, uint32_t *number) {
    if (n == 0 || n > REGIONS_MAX || place.storage_class == CRAIL_CLASS_ANY)
        return -EINVAL;
    for (uint32_t i = 0; i < n; i++)
        if (regions[i].granules == 0 || regions[i].granules > UINT32_MAX / 2)
            return -EINVAL;
    struct crail_server *sv = calloc(1, sizeof(*sv));
    if (!sv || servers_reserve(m, n))
        goto out_of_memory;
    sv->regions = calloc(n, sizeof(*sv->regions));
    if (!sv->regions)
        goto out_of_memory;
    for (uint32_t i = 0; i < n; i++) {
        if (crail_region_open(&sv->regions[i], regions[i].granules, generations ? generations[i] : NULL)) {
            regions_bury(m, sv, i);
            goto out_of_memory;
        }
        sv->granules += regions[i].granules;
    }
    sv->regions_n = n;
    sv->storage_class = place.storage_class;
    sv->location = place.location;
    sv->count[CRAIL_COUNT_FREE] = sv->granules;
    sv->state = CRAIL_SERVER_UP;
    m->servers[m->servers_n++] = sv;
    m->up[m->up_n++] = sv;
    *number = sv->number = m->servers_n;
    return 0;

out_of_memory:
    free(sv);
    return -ENOMEM;
}

int crail_meta_server_place(struct crail_meta *m, uint32_t number, struct crail_meta_place place) {
    struct crail_server *sv = crail_server_find(m, number);
    if (!sv)
        return -ENOENT;
    sv->storage_class = place.storage_class;
    sv->location = place.location;
    return 0;
}

/* Unconfirmed orders are due again, in their old sequence. */
static void orders_again(struct crail_server *sv) {
    for (uint32_t i = 0; i < sv->regions_n; i++) {
        struct crail_region *r = &sv->regions[i];
        while (r->pending.head) {
            uint32_t g = r->pending.head - 1;
            crail_run_unlist(r, &r->pending, g);
            crail_run_push_tail(r, &r->due, g);
            set_state(sv, &r->record[g], CRAIL_RUN_DUE);
            sv->due_extents++;
            sv->due_granules += r->record[g].len;
        }
    }
}

static void up_remove(struct crail_meta *m, const struct crail_server *sv) {
    for (uint32_t i = 0; i < m->up_n; i++) {
        if (m->up[i] == sv) {
            m->up[i] = m->up[--m->up_n];
            return;
        }
    }
}

static void server_lose(struct crail_meta *m, struct crail_server *sv) {
    crail_sessions_forget_server(m, sv->number);
    regions_bury(m, sv, sv->regions_n);
    memset(sv->count, 0, sizeof(sv->count));
    sv->granules = sv->due_granules = 0;
    sv->due_extents = 0;
}

int crail_meta_server_set(struct crail_meta *m, uint32_t number, enum crail_meta_server_state state) {
    struct crail_server *sv = crail_server_find(m, number);
    if (!sv)
        return -ENOENT;
    if (sv->state == CRAIL_SERVER_LOST)
        return state == CRAIL_SERVER_LOST ? 0 : -EINVAL;
    if (state != CRAIL_SERVER_UP && state != CRAIL_SERVER_DOWN && state != CRAIL_SERVER_LOST)
        return -EINVAL;
    up_remove(m, sv);
    sv->state = state;
    if (state == CRAIL_SERVER_UP) {
        m->up[m->up_n++] = sv;
        orders_again(sv);
    } else if (state == CRAIL_SERVER_LOST) {
        server_lose(m, sv);
    }
    return 0;
}

bool crail_servers_step(struct crail_meta *m) {
    if (!m->graves_n)
        return false;
    struct crail_grave *g = &m->graves[m->graves_n - 1];
    size_t bytes = g->bytes % GRAVE_STEP_BYTES ? g->bytes % GRAVE_STEP_BYTES : GRAVE_STEP_BYTES;
    g->bytes -= bytes;
    munmap((uint8_t *)g->addr + g->bytes, bytes);
    if (!g->bytes)
        m->graves_n--;
    return m->graves_n != 0;
}

void crail_servers_close(struct crail_meta *m) {
    for (uint32_t i = 0; i < m->servers_n; i++) {
        if (m->servers[i]->regions)
            regions_bury(m, m->servers[i], m->servers[i]->regions_n);
        free(m->servers[i]);
    }
    while (crail_servers_step(m)) {
    }
    free(m->graves);
    free(m->servers);
    free(m->up);
}
