/* Where grants come from: the servers that are up, neither closed nor to be avoided, in the order of how well they fit
 * what was asked (class before location), then of their storage class; those that fit alike take turns. Within one rank
 * a contiguous run is looked for first, then pieces; only what no single rank can give is gathered over all. */
#include "meta/engine.h"

#define RANK_NONE UINT32_MAX
#define RANK_OTHER_CLASS 512u
#define RANK_OTHER_LOCATION 256u /* above every storage class */

static uint32_t rank_of(const struct crail_server *sv, const struct crail_options *where) {
    if (sv->storage_class == CRAIL_CLASS_ANY || sv->number == where->avoid)
        return RANK_NONE;
    bool class_off = where->storage_class != CRAIL_CLASS_ANY && sv->storage_class != where->storage_class;
    bool location_off = where->location && sv->location != where->location;
    if (where->flags & CRAIL_OPTION_STRICT && (class_off || location_off))
        return RANK_NONE;
    return (class_off ? RANK_OTHER_CLASS : 0) + (location_off ? RANK_OTHER_LOCATION : 0) + sv->storage_class;
}

bool crail_server_eligible(const struct crail_server *sv, const struct crail_options *where) {
    return rank_of(sv, where) != RANK_NONE;
}

/* The best rank that is not before `from`; RANK_NONE if there is none. */
static uint32_t next_rank(const struct crail_meta *m, const struct crail_options *where, uint32_t from) {
    uint32_t best = RANK_NONE;
    for (uint32_t i = 0; i < m->up_n; i++) {
        uint32_t rank = rank_of(m->up[i], where);
        if (rank >= from && rank < best)
            best = rank;
    }
    return best;
}

/* Sums over one rank, or, with RANK_NONE, over all that are eligible. */
static struct crail_room room_in(const struct crail_meta *m, const struct crail_options *where, uint32_t rank) {
    struct crail_room room = {0};
    for (uint32_t i = 0; i < m->up_n; i++) {
        const struct crail_server *sv = m->up[i];
        uint32_t its = rank_of(sv, where);
        if (its == RANK_NONE || (rank != RANK_NONE && its != rank))
            continue;
        room.servers++;
        room.free += sv->count[CRAIL_COUNT_FREE];
        room.retiring += sv->count[CRAIL_COUNT_RETIRING];
        room.total += sv->granules;
    }
    return room;
}

struct crail_room crail_runs_room(const struct crail_meta *m, const struct crail_options *where) {
    return room_in(m, where, RANK_NONE);
}

/* The i-th server in turn, if it is of the rank (RANK_NONE: eligible); else NULL. */
static struct crail_server *server_in(const struct crail_meta *m, const struct crail_options *where, uint32_t rank,
                                      uint32_t i) {
    struct crail_server *sv = m->up[(m->up_next + i) % m->up_n];
    uint32_t its = rank_of(sv, where);
    return its != RANK_NONE && (rank == RANK_NONE || its == rank) ? sv : NULL;
}

static bool take_from(struct crail_server *sv, uint32_t granules, struct crail_run *out) {
    uint32_t first;
    for (uint32_t region = 0; region < sv->regions_n; region++) {
        if (crail_region_take(&sv->regions[region], granules, &first)) {
            crail_run_taken(sv, region, first, granules, out);
            return true;
        }
    }
    return false;
}

/* One run of the class `granules`, from the servers of the rank in turn. */
static bool take_contiguous(struct crail_meta *m, const struct crail_options *where, uint32_t rank, uint64_t granules,
                            struct crail_run *out) {
    if (granules > UINT32_MAX / 2)
        return false;
    for (uint32_t i = 0; i < m->up_n; i++) {
        struct crail_server *sv = server_in(m, where, rank, i);
        if (sv && take_from(sv, (uint32_t)granules, out))
            return true;
    }
    return false;
}

/* The server and region with one of the largest free runs. */
static struct crail_server *largest_at(const struct crail_meta *m, const struct crail_options *where, uint32_t rank,
                                       uint32_t *region) {
    struct crail_server *best = NULL;
    int best_class = -1;
    for (uint32_t i = 0; i < m->up_n; i++) {
        struct crail_server *sv = server_in(m, where, rank, i);
        for (uint32_t k = 0; sv && k < sv->regions_n; k++) {
            int class = crail_region_largest_class(&sv->regions[k]);
            if (class > best_class) {
                best_class = class;
                best = sv;
                *region = k;
            }
        }
    }
    return best;
}

/* The largest free runs there are, until they add up. How many; 0 if they do not. */
static uint32_t take_pieces(struct crail_meta *m, const struct crail_options *where, uint32_t rank, uint64_t granules,
                            uint32_t runs_max, struct crail_run *out) {
    uint32_t n = 0, region, first, len;
    while (granules && n < runs_max) {
        struct crail_server *sv = largest_at(m, where, rank, &region);
        uint32_t want = granules < UINT32_MAX ? (uint32_t)granules : UINT32_MAX;
        if (!sv || !crail_region_take_large(&sv->regions[region], want, &first, &len))
            break;
        crail_run_taken(sv, region, first, len, &out[n++]);
        granules -= len;
    }
    if (granules == 0)
        return n;
    while (n)
        crail_run_untake(m, &out[--n]);
    return 0;
}

uint32_t crail_runs_take(struct crail_meta *m, const struct crail_options *where, uint64_t granules, uint32_t runs_max,
                         struct crail_run *out) {
    uint32_t n = 0;
    if (granules > crail_runs_room(m, where).free)
        return 0;
    for (uint32_t rank = next_rank(m, where, 0); !n && rank != RANK_NONE; rank = next_rank(m, where, rank + 1)) {
        if (take_contiguous(m, where, rank, crail_run_round(granules), out))
            n = 1;
        else if (granules <= room_in(m, where, rank).free)
            n = take_pieces(m, where, rank, granules, runs_max, out);
    }
    if (!n)
        n = take_pieces(m, where, RANK_NONE, granules, runs_max, out);
    m->up_next += n != 0;
    return n;
}

bool crail_runs_take_if_plenty(struct crail_meta *m, const struct crail_options *where, uint64_t granules,
                               struct crail_run *out) {
    uint32_t rank = next_rank(m, where, 0);
    struct crail_room room = room_in(m, where, rank);
    if (rank == RANK_NONE || room.free <= room.total / 4 ||
        !take_contiguous(m, where, rank, crail_run_round(granules), out))
        return false;
    m->up_next++;
    return true;
}

/* ---- stripes ---------------------------------------------------------------------------- */

/* Up to `n` runs of `granules`, each on another server, the best first. How many. */
static uint32_t take_each(struct crail_meta *m, const struct crail_options *where, uint32_t granules, uint32_t n,
                          struct crail_run *out) {
    uint32_t got = 0;
    for (uint32_t rank = next_rank(m, where, 0); got < n && rank != RANK_NONE; rank = next_rank(m, where, rank + 1)) {
        for (uint32_t i = 0; got < n && i < m->up_n; i++) {
            struct crail_server *sv = server_in(m, where, rank, i);
            got += sv && take_from(sv, granules, &out[got]);
        }
    }
    return got;
}

uint32_t crail_runs_take_striped(struct crail_meta *m, const struct crail_options *where, uint64_t granules,
                                 struct crail_run *out) {
    bool strict = where->flags & CRAIL_OPTION_STRICT;
    uint32_t servers = crail_runs_room(m, where).servers;
    uint64_t n = where->stripe < CRAIL_EXTENTS_MAX ? where->stripe : CRAIL_EXTENTS_MAX;
    if (n > granules)
        n = granules; /* a run has at least one */
    if (strict && servers < n)
        return 0;
    n = n < servers ? n : servers;
    while (n > 1) {
        uint64_t each = (granules + n - 1) / n;
        uint32_t got = each <= UINT32_MAX / 2 ? take_each(m, where, (uint32_t)each, (uint32_t)n, out) : 0;
        if (got == n) {
            m->up_next++;
            return got;
        }
        for (uint32_t i = got; i;)
            crail_run_untake(m, &out[--i]);
        if (strict)
            return 0;
        n = got < n - 1 ? got : n - 1; /* fewer have room for so much: larger runs on those */
    }
    return crail_runs_take(m, where, granules, CRAIL_EXTENTS_MAX, out);
}
