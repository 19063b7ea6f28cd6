/* Retiring all that a namenode does not know any more.
 *
 * One that was started again knows the runs of its rows and of its grants, and of the rest only that it may have been
 * in use until a moment ago. So the generation of every granule outside is raised (which one begins an extent, nobody
 * can say), then, after a fence, all slots are looked at once, as for an order: what one of them names outside is
 * *busy*, as long as its mark says. The rest is free. The namenode orders the busy runs in the usual way.
 *
 * A region may have 25 million granules, so generations are raised in steps between which the loop does all else, and
 * what is found is sorted on the caller's thread. Meanwhile there is no channel, so nothing is ordered or confirmed.
 *
 * Marks that overlap are of extents of different ages: somebody is just finding out that his is stale. A later look
 * does not see him. If he stays all the same, he wrote the mark by hand; then the runs are one, and a slot that names
 * anything in a busy run counts for all of it, so that no other holder is harmed. */
#include "storage.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/failpoint.h"

#define STEP 16384u /* granules and runs in one turn of the loop */
#define LOOKS_MAX 20u
#define PAUSE_NS 1000000
#define DURABLE_PATIENCE_NS 30000000000u
#define GENERATIONS_PER_PAGE (CRAIL_GRANULE / sizeof(uint64_t))

/* ---- generations, in steps ----------------------------------------------------- */

struct sweep {
    const struct crail_stretch *live;
    uint32_t live_n, live_i, region, granule; /* it has come so far */
    uint32_t round;                           /* the last round that has to be durable; 0: none */
};

static void raise(struct crail_storage *s, uint32_t region, uint32_t first, uint32_t n) {
    struct crail_region *r = &s->regions[region];
    if (!n || !crail_guard_on("retire-generation"))
        return;
    for (uint32_t g = first; g < first + n; g++) /* only this thread writes generations */
        atomic_store_explicit(&r->generations[g], atomic_load_explicit(&r->generations[g], memory_order_relaxed) + 1,
                              memory_order_release);
    for (uint64_t g = first; g < (uint64_t)first + n; g += GENERATIONS_PER_PAGE - g % GENERATIONS_PER_PAGE)
        crail_round_note(s, region, (uint32_t)g);
}

/* 1: some is left. */
static int on_raise(struct crail_storage *s, void *arg) {
    struct sweep *w = arg;
    for (uint32_t budget = STEP; budget && w->region < s->region_count;) {
        const struct crail_stretch *next = w->live_i < w->live_n ? &w->live[w->live_i] : NULL;
        if (next && next->region != w->region)
            next = NULL;
        uint32_t end = next ? next->granule : s->regions[w->region].granules;
        uint32_t n = end - w->granule < budget ? end - w->granule : budget;
        raise(s, w->region, w->granule, n);
        budget -= n;
        w->granule += n;
        if (w->granule < end)
            break;
        budget -= budget != 0;
        w->granule = next ? end + next->granules : 0;
        w->region += !next;
        w->live_i += next != NULL;
    }
    crail_failpoint("others-raised");
    if (w->region < s->region_count)
        return 1;
    crail_round_begin(s);
    w->round = s->rounds.is_changed ? s->rounds.now : s->rounds.is_running ? s->rounds.written : 0;
    return 0;
}

/* ---- the look --------------------------------------------------------------------- */

void crail_others_note(struct crail_storage *s, uint64_t mark) {
    struct crail_others *o = &s->others;
    if (o->marks_n == o->marks_cap) {
        uint32_t cap = o->marks_cap ? o->marks_cap * 2 : 256;
        uint64_t *marks = realloc(o->marks, cap * sizeof(*marks));
        if (!marks) {
            o->is_short = true;
            return;
        }
        o->marks = marks;
        o->marks_cap = cap;
    }
    o->marks[o->marks_n++] = mark;
}

static int on_look(struct crail_storage *s, void *arg) {
    struct crail_others *o = &s->others;
    (void)arg;
    crail_use_probe_orphans(s);
    o->marks_n = 0;
    o->is_looking = true;
    o->is_short = false;
    atomic_thread_fence(memory_order_seq_cst);
    crail_conns_see(s);
    bool all_seen = crail_use_tables_see(s);
    o->is_looking = false;
    return o->is_short ? -ENOMEM : all_seen ? 0 : -EIO;
}

static int by_place(const void *a, const void *b) {
    const struct crail_stretch *x = a, *y = b;
    if (x->region != y->region)
        return x->region < y->region ? -1 : 1;
    return (x->granule > y->granule) - (x->granule < y->granule);
}

/* The first stretch behind this place. */
static uint32_t first_behind(const struct crail_stretch *all, uint32_t n, uint32_t region, uint32_t granule) {
    uint32_t low = 0;
    while (low < n) {
        uint32_t middle = low + (n - low) / 2;
        const struct crail_stretch *m = &all[middle];
        if (m->region < region || (m->region == region && m->granule <= granule))
            low = middle + 1;
        else
            n = middle;
    }
    return low;
}

/* The one in which this place lies, or NULL. */
static struct crail_stretch *find(struct crail_stretch *all, uint32_t n, uint32_t region, uint32_t granule) {
    uint32_t i = first_behind(all, n, region, granule);
    struct crail_stretch *at = i ? &all[i - 1] : NULL;
    return at && at->region == region && granule - at->granule < at->granules ? at : NULL;
}

/* What a mark names outside of what lives; false: nothing. Marks are what clients write: none is believed. */
static bool stretch_of(const struct crail_storage *s, const struct sweep *w, uint64_t mark, struct crail_stretch *out) {
    uint64_t word = mark & CRAIL_USE_WORD_MASK;
    if (!word)
        return false;
    uint32_t region = (uint32_t)((word - 1) >> 32), granule = (uint32_t)(word - 1);
    if (!crail_region_holds(s, region, granule, 1) || find((struct crail_stretch *)w->live, w->live_n, region, granule))
        return false;
    uint32_t next = first_behind(w->live, w->live_n, region, granule), end = s->regions[region].granules;
    if (next < w->live_n && w->live[next].region == region)
        end = w->live[next].granule;
    uint64_t length = crail_use_length(mark);
    *out = (struct crail_stretch){region, granule, end - granule};
    if (length && length < out->granules)
        out->granules = (uint32_t)length;
    return true;
}

/* Puts those that overlap together; how many are left. *mixed: two had different beginnings. */
static uint32_t merge(struct crail_stretch *all, uint32_t n, bool *mixed) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct crail_stretch *last = kept ? &all[kept - 1] : NULL;
        if (!last || last->region != all[i].region || all[i].granule - last->granule >= last->granules) {
            all[kept++] = all[i];
            continue;
        }
        uint32_t from = all[i].granule - last->granule;
        *mixed |= from != 0;
        if (from + all[i].granules > last->granules)
            last->granules = from + all[i].granules;
    }
    return kept;
}

/* Takes one look: who is busy, in *out. Also: do some overlap? */
static int look(struct crail_storage *s, const struct sweep *w, struct crail_stretch **out, uint32_t *n, bool *mixed) {
    int rc = crail_storage_call(s, on_look, NULL);
    if (rc)
        return rc;
    const struct crail_others *o = &s->others; /* the loop is done with the marks */
    struct crail_stretch *all = malloc((o->marks_n + 1) * sizeof(*all));
    if (!all)
        return -ENOMEM;
    uint32_t found = 0;
    for (uint32_t i = 0; i < o->marks_n; i++)
        found += stretch_of(s, w, o->marks[i], &all[found]);
    qsort(all, found, sizeof(*all), by_place);
    *mixed = false;
    *n = merge(all, found, mixed);
    *out = all;
    return 0;
}

static void pause_a_moment(void) {
    nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
}

static int look_until_plain(struct crail_storage *s, const struct sweep *w, struct crail_stretch **out, uint32_t *n) {
    bool mixed = true;
    *out = NULL;
    for (uint32_t looks = 0; looks < LOOKS_MAX && mixed; looks++) {
        free(*out);
        *out = NULL;
        if (looks)
            pause_a_moment();
        int rc = look(s, w, out, n, &mixed);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- busy runs, until their orders are confirmed ------------------------------------ */

uint64_t crail_others_word(struct crail_storage *s, uint64_t word) {
    struct crail_others *o = &s->others;
    const struct crail_stretch *at = find(o->busy, o->busy_n, (uint32_t)((word - 1) >> 32), (uint32_t)(word - 1));
    return at ? crail_use_word(at->region, at->granule) : word;
}

void crail_others_confirmed(struct crail_storage *s, uint32_t region, uint32_t granule) {
    struct crail_others *o = &s->others;
    struct crail_stretch *at = find(o->busy, o->busy_n, region, granule);
    if (!at || at->granule != granule)
        return;
    at->granules = 0;
    if (--o->busy_left == 0)
        o->busy_n = 0;
}

struct install {
    struct crail_stretch *busy;
    uint32_t n;
};

static int on_install(struct crail_storage *s, void *arg) {
    struct install *i = arg;
    struct crail_stretch *old = s->others.busy;
    s->others.busy = i->busy;
    s->others.busy_n = s->others.busy_left = i->n;
    i->busy = old;
    return 0;
}

void crail_others_free(struct crail_storage *s) {
    free(s->others.marks);
    free(s->others.busy);
}

/* ---- all of it ------------------------------------------------------------------------- */

/* From here on nothing is ordered, and regions are fixed. */
static int on_begin(struct crail_storage *s, void *arg) {
    (void)arg;
    crail_retire_close(s);
    s->serving = true;
    return 0;
}

static bool is_plain(const struct crail_storage *s, const struct crail_stretch *live, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (!crail_region_holds(s, live[i].region, live[i].granule, live[i].granules))
            return false;
        if (i &&
            (by_place(&live[i - 1], &live[i]) >= 0 ||
             (live[i].region == live[i - 1].region && live[i].granule - live[i - 1].granule < live[i - 1].granules)))
            return false;
    }
    return true;
}

static int on_is_durable(struct crail_storage *s, void *arg) {
    const struct sweep *w = arg;
    return s->disk.failed ? -EIO : crail_round_is_durable(s, w->round);
}

static int wait_durable(struct crail_storage *s, struct sweep *w) {
    uint64_t until = crail_clock_ns() + DURABLE_PATIENCE_NS;
    while (w->round) {
        int rc = crail_storage_call(s, on_is_durable, w);
        if (rc)
            return rc < 0 ? rc : 0;
        if (crail_clock_ns() > until)
            return -ETIMEDOUT;
        pause_a_moment();
    }
    return 0;
}

/* A disk that has failed takes no generation any more. So nothing outside is free before its server is started again:
 * all of it is busy, and its orders wait as all do there. What lives is served meanwhile. */
static int all_outside(const struct crail_storage *s, const struct sweep *w, struct install *out) {
    uint32_t i = 0, n = 0;
    struct crail_stretch *all = malloc((w->live_n + s->region_count) * sizeof(*all));
    if (!all)
        return -ENOMEM;
    for (uint32_t region = 0; region < s->region_count; region++) {
        uint32_t at = 0, end = s->regions[region].granules;
        for (; i < w->live_n && w->live[i].region == region; i++) {
            if (w->live[i].granule > at)
                all[n++] = (struct crail_stretch){region, at, w->live[i].granule - at};
            at = w->live[i].granule + w->live[i].granules;
        }
        if (at < end)
            all[n++] = (struct crail_stretch){region, at, end - at};
    }
    free(out->busy);
    *out = (struct install){all, n};
    return 0;
}

int crail_storage_retire_others(crail_storage *s, const uint32_t *live, uint32_t n) {
    _Static_assert(sizeof(struct crail_stretch) == 3 * sizeof(uint32_t), "triples of the wide door");
    struct sweep w = {.live = (const void *)live, .live_n = n};
    struct install found = {0};
    crail_storage_call(s, on_begin, NULL);
    if (!is_plain(s, w.live, n))
        return -EINVAL;
    while (crail_storage_call(s, on_raise, &w) == 1) {
    }
    int rc = look_until_plain(s, &w, &found.busy, &found.n);
    if (rc == 0 && (rc = wait_durable(s, &w)) == -EIO)
        rc = all_outside(s, &w, &found);
    crail_failpoint("others-seen");
    if (rc == 0)
        crail_storage_call(s, on_install, &found);
    uint32_t busy = rc ? 0 : s->others.busy_n;
    free(found.busy);
    return rc ? rc : (int)busy;
}

struct copy_call {
    uint32_t *out;
    uint32_t max;
};

static int on_copy(struct crail_storage *s, void *arg) {
    const struct copy_call *c = arg;
    const struct crail_others *o = &s->others;
    uint32_t n = o->busy_n < c->max ? o->busy_n : c->max;
    if (n)
        memcpy(c->out, o->busy, n * sizeof(*o->busy));
    return (int)n;
}

int crail_storage_busy(crail_storage *s, uint32_t *out, uint32_t max) {
    struct copy_call c = {out, max};
    return crail_storage_call(s, on_copy, &c);
}
