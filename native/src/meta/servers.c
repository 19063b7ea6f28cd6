/* Storage servers: their granules by state, and the orders to retire. Where grants come from is in placement.c.
 *
 * A run goes FREE -> GRANT -> USED -> DUE -> PENDING -> FREE; a grant may also go straight to DUE. One that a cut has
 * named waits between USED and DUE until the cut that no longer names it is durable (GATED). set_state() is the one
 * setter and keeps the counts. A retired run raises the generation of its first granule only: an extent is named
 * by its first granule and that granule's generation, so whoever held an older extent, wherever it overlapped,
 * finds the generation of *its* first granule raised.
 *
 * A LOST server is a stub: its memory goes to the graves, which are emptied in steps. */
#include "meta/engine.h"

#include <stdlib.h>
#include <sys/mman.h>

#define REGIONS_MAX 64u
#define SERVERS_MAX (1u << 20) /* that rows may tell of */
#define GRAVE_STEP_BYTES (1u << 20)
#define GATED_PER_STEP 64u
#define EPOCH_BITS 24u
#define GENERATION_LOST (1ull << 63) /* among the generations: another than that of the node's value is there */

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

void crail_run_fetch(const struct crail_meta *m, const struct crail_run *run) {
    const struct crail_server *sv = crail_server_find(m, run->server);
    if (sv->state != CRAIL_SERVER_LOST)
        __builtin_prefetch(&region_of(sv, run)->generation[run->granule]);
}

bool crail_run_is_lost(const struct crail_meta *m, const struct crail_run *run) {
    const struct crail_server *sv = crail_server_find(m, run->server);
    return sv->state == CRAIL_SERVER_LOST || region_of(sv, run)->generation[run->granule] & GENERATION_LOST;
}

static uint32_t count_of(enum crail_run_state state) {
    switch (state) {
    case CRAIL_RUN_USED:
    case CRAIL_RUN_HELD:
        return CRAIL_COUNT_USED;
    case CRAIL_RUN_GRANT:
        return CRAIL_COUNT_GRANTED;
    case CRAIL_RUN_GATED:
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
    rec->state = state & 0x7f;
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
    assert(rec->state == CRAIL_RUN_GRANT && rec->len == run->granules && !rec->prev);
    crail_grantmap_erase_later(m, rec->next);
    set_state(sv, rec, CRAIL_RUN_USED);
}

static void due_push(struct crail_server *sv, struct crail_region *r, uint32_t granule) {
    struct crail_run_record *rec = &r->record[granule];
    set_state(sv, rec, CRAIL_RUN_DUE);
    crail_run_push_tail(r, &r->due, granule);
    sv->due_extents++;
    sv->due_granules += rec->len;
}

static void gate_push(struct crail_meta *m, struct crail_server *sv, struct crail_region *r, uint32_t granule) {
    struct crail_run_record *rec = &r->record[granule];
    set_state(sv, rec, CRAIL_RUN_GATED);
    rec->stored = 0;
    rec->epoch = m->cut->epoch & ((1u << EPOCH_BITS) - 1);
    crail_run_push_tail(r, &r->gated, granule);
    sv->gated_extents++;
    m->cut->gated++;
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
    crail_grantmap_erase(m, rec->next);
    r->generation[run->granule] &= ~GENERATION_LOST;
    if (rec->stored)
        gate_push(m, sv, r, run->granule);
    else
        due_push(sv, r, run->granule);
}

/* Lets a few runs of the region through whose epoch is durable. How many; fewer than `max`: there are no more. */
static uint32_t gate_open(struct crail_meta *m, struct crail_server *sv, struct crail_region *r, uint32_t max) {
    uint32_t n = 0;
    for (; n < max && r->gated.head; n++) {
        uint32_t g = r->gated.head - 1;
        uint32_t ahead = ((uint32_t)m->cut->durable - r->record[g].epoch) & ((1u << EPOCH_BITS) - 1);
        if (ahead >> (EPOCH_BITS - 1)) /* its epoch is a later one */
            return n;
        crail_run_unlist(r, &r->gated, g);
        r->record[g].epoch = 0;
        due_push(sv, r, g);
        sv->gated_extents--;
        m->cut->gated--;
    }
    return n;
}

/* True if more may come due. */
static bool gates_step(struct crail_meta *m) {
    uint32_t left = GATED_PER_STEP;
    if (!m->cut || !m->cut->gate_may_open)
        return false;
    for (uint32_t i = 0; i < m->servers_n && m->cut->gated; i++) {
        struct crail_server *sv = m->servers[i];
        for (uint32_t k = 0; sv->gated_extents && k < sv->regions_n; k++) {
            left -= gate_open(m, sv, &sv->regions[k], left);
            if (!left)
                return true;
        }
    }
    m->cut->gate_may_open = false;
    return false;
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

void crail_run_stored(struct crail_meta *m, const struct crail_run *run) {
    struct crail_run_record *rec = used_record(m, run);
    if (rec)
        rec->stored = 1;
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
    if (!sv || sv->state == CRAIL_SERVER_LOST || sv->is_unknown)
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

/* Room for one more in the arrays of servers. */
static int array_reserve(struct crail_meta *m) {
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
    return array_reserve(m);
}

static void regions_bury(struct crail_meta *m, struct crail_server *sv, uint32_t n) {
    while (n--)
        region_bury(m, &sv->regions[n]);
    free(sv->regions);
    sv->regions = NULL;
}

/* 0, -ENOMEM, -EINVAL. The server has nothing yet. */
static int regions_open(struct crail_meta *m, struct crail_server *sv, const struct crail_meta_region *regions,
                        uint32_t n, const uint64_t *const *generations) {
    if (n == 0 || n > REGIONS_MAX)
        return -EINVAL;
    for (uint32_t i = 0; i < n; i++)
        if (regions[i].granules == 0 || regions[i].granules > UINT32_MAX / 2)
            return -EINVAL;
    sv->regions = calloc(n, sizeof(*sv->regions));
    if (!sv->regions || servers_reserve(m, n)) {
        free(sv->regions);
        sv->regions = NULL;
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t *of = generations ? generations[i] : NULL;
        if (crail_region_open(&sv->regions[i], regions[i].granules, of, sv->is_unknown)) {
            regions_bury(m, sv, i);
            return -ENOMEM;
        }
        sv->granules += regions[i].granules;
    }
    sv->regions_n = n;
    sv->count[sv->is_unknown ? CRAIL_COUNT_RETIRING : CRAIL_COUNT_FREE] = sv->granules;
    return 0;
}

int crail_meta_server_add(struct crail_meta *m, const struct crail_meta_region *regions, uint32_t n,
                          const uint64_t *const *generations, struct crail_meta_place place, uint32_t *number) {
    if (place.storage_class == CRAIL_CLASS_ANY)
        return -EINVAL;
    struct crail_server *sv = calloc(1, sizeof(*sv));
    int rc = sv ? regions_open(m, sv, regions, n, generations) : -ENOMEM;
    if (rc) {
        free(sv);
        return rc;
    }
    sv->storage_class = place.storage_class;
    sv->location = place.location;
    sv->state = CRAIL_SERVER_UP;
    m->servers[m->servers_n++] = sv;
    m->up[m->up_n++] = sv;
    *number = sv->number = m->servers_n;
    crail_list_init(&sv->changed);
    crail_server_touch(m, sv);
    return 0;
}

int crail_meta_server_place(struct crail_meta *m, uint32_t number, struct crail_meta_place place) {
    struct crail_server *sv = crail_server_find(m, number);
    if (!sv)
        return -ENOENT;
    sv->storage_class = place.storage_class;
    sv->location = place.location;
    crail_server_touch(m, sv);
    return 0;
}

int crail_meta_server_note(struct crail_meta *m, uint32_t number, const void *note, uint32_t bytes) {
    struct crail_server *sv = crail_server_find(m, number);
    uint8_t *copy = sv && bytes <= CRAIL_NOTE_MAX ? malloc(bytes + 1) : NULL;
    if (!copy)
        return !sv ? -ENOENT : bytes > CRAIL_NOTE_MAX ? -EINVAL : -ENOMEM;
    memcpy(copy, note, bytes);
    free(sv->note);
    sv->note = copy;
    sv->note_bytes = bytes;
    crail_server_touch(m, sv);
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
    if (m->cut)
        m->cut->gated -= sv->gated_extents;
    sv->gated_extents = 0;
}

int crail_meta_server_set(struct crail_meta *m, uint32_t number, enum crail_meta_server_state state) {
    struct crail_server *sv = crail_server_find(m, number);
    if (!sv)
        return -ENOENT;
    if (sv->state == CRAIL_SERVER_LOST)
        return state == CRAIL_SERVER_LOST ? 0 : -EINVAL;
    if (state != CRAIL_SERVER_UP && state != CRAIL_SERVER_DOWN && state != CRAIL_SERVER_LOST)
        return -EINVAL;
    if (sv->is_unknown && state == CRAIL_SERVER_UP)
        return -EINVAL; /* it has to say what it holds: crail_meta_server_recovered() */
    up_remove(m, sv);
    sv->state = state;
    crail_server_touch(m, sv);
    if (state == CRAIL_SERVER_UP) {
        m->up[m->up_n++] = sv;
        orders_again(sv);
    } else if (state == CRAIL_SERVER_LOST) {
        server_lose(m, sv);
    }
    return 0;
}

static bool graves_step(struct crail_meta *m) {
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

/* ---- an earlier life ------------------------------------------------------------------------ */

/* Up to this number there are servers now, lost ones where nothing is known. */
static int stubs_make(struct crail_meta *m, uint32_t number) {
    while (m->servers_n < number) {
        struct crail_server *sv = array_reserve(m) ? NULL : calloc(1, sizeof(*sv));
        if (!sv)
            return -ENOMEM;
        crail_list_init(&sv->changed);
        sv->state = CRAIL_SERVER_LOST;
        m->servers[m->servers_n++] = sv;
        sv->number = m->servers_n;
    }
    return 0;
}

int crail_server_loaded(struct crail_meta *m, uint32_t number, const struct crail_server_row *row,
                        const uint32_t *granules, const void *note) {
    struct crail_meta_region regions[REGIONS_MAX] = {{0}};
    bool is_lost = row->state == CRAIL_SERVER_LOST;
    if (!number || number > SERVERS_MAX || !row->state || row->state > CRAIL_SERVER_LOST ||
        row->regions > REGIONS_MAX) /* of class CRAIL_CLASS_ANY: its disk has failed */
        return -EUCLEAN;
    if (stubs_make(m, number))
        return -ENOMEM;
    struct crail_server *sv = crail_server_find(m, number);
    if (sv->note)
        return -EUCLEAN;
    for (uint32_t i = 0; i < row->regions; i++)
        regions[i].granules = granules[i];
    sv->is_unknown = !is_lost;
    int rc = is_lost ? 0 : regions_open(m, sv, regions, row->regions, NULL);
    if (!rc)
        rc = crail_meta_server_note(m, number, note, row->note);
    if (rc)
        return rc == -EINVAL ? -EUCLEAN : rc;
    sv->state = is_lost ? CRAIL_SERVER_LOST : CRAIL_SERVER_DOWN;
    sv->storage_class = row->storage_class;
    sv->location = row->location;
    crail_cut_server_loaded(m, sv);
    return 0;
}

/* Of what was unknown, and counted as retiring, some is known. */
static void known(struct crail_server *sv, uint64_t granules) {
    assert(sv->count[CRAIL_COUNT_RETIRING] >= granules);
    sv->count[CRAIL_COUNT_RETIRING] -= granules;
    sv->count[CRAIL_COUNT_FREE] += granules;
}

void crail_run_claim(struct crail_server *sv, const struct crail_claim *claim) {
    struct crail_region *r = region_of(sv, &claim->run);
    struct crail_run_record *rec = &r->record[claim->run.granule];
    r->generation[claim->run.granule] = claim->generation;
    *rec = (struct crail_run_record){.len = claim->run.granules, .stored = !claim->session};
    known(sv, rec->len);
    set_state(sv, rec, claim->session ? CRAIL_RUN_GRANT : CRAIL_RUN_USED);
}

void crail_run_busy(struct crail_server *sv, const struct crail_retire *busy) {
    struct crail_region *r = &sv->regions[busy->region];
    r->record[busy->granule] = (struct crail_run_record){.len = busy->granules};
    known(sv, busy->granules);
    due_push(sv, r, busy->granule);
}

void crail_run_unknown_free(struct crail_server *sv, uint32_t region, uint32_t first, uint32_t granules) {
    known(sv, granules);
    crail_region_give(&sv->regions[region], first, granules);
}

/* A run is where it was; has it what it had? */
void crail_run_compare(struct crail_server *sv, const struct crail_live *run, uint64_t found, uint32_t *lost) {
    struct crail_region *r = &sv->regions[run->region];
    const struct crail_run_record *rec = &r->record[run->granule];
    bool is_nodes = rec->state == CRAIL_RUN_USED || rec->state == CRAIL_RUN_HELD;
    bool is_lost = is_nodes && r->generation[run->granule] != found;
    *lost += is_lost;
    r->generation[run->granule] = found | (is_lost ? GENERATION_LOST : 0);
}

bool crail_servers_step(struct crail_meta *m) {
    bool left = gates_step(m);
    left |= crail_grantmap_step(m);
    return graves_step(m) || left;
}

void crail_servers_close(struct crail_meta *m) {
    for (uint32_t i = 0; i < m->servers_n; i++) {
        if (m->servers[i]->regions)
            regions_bury(m, m->servers[i], m->servers[i]->regions_n);
        free(m->servers[i]->note);
        free(m->servers[i]->live);
        free(m->servers[i]);
    }
    while (graves_step(m)) {
    }
    free(m->graves);
    free(m->servers);
    free(m->up);
}
