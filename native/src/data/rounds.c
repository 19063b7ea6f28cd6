/* Rounds: how the generations of file regions get to the disk. An extent must not be used again under a generation that
 * a crash could take back, so a retire is confirmed when the round that holds its generation is durable (retire.c).
 *
 * A round writes the pages of generations that changed before it began, one run of pages at a time, then syncs. What
 * changes meanwhile is for the next one; there is one at a time. The numbers may wrap: no order waits for half of them.
 */
#include "storage.h"

#include <assert.h>
#include <string.h>

#include "base/failpoint.h"

#define PER_PAGE (CRAIL_GRANULE / sizeof(uint64_t))
#define WORD_BITS 64u

static uint32_t pages_of(const struct crail_region *r) {
    return (uint32_t)(crail_generation_bytes(r->granules) / CRAIL_GRANULE);
}

uint32_t crail_round_of(const struct crail_storage *s, uint32_t region) {
    return s->regions[region].memory ? 0 : s->rounds.now;
}

bool crail_round_is_durable(const struct crail_storage *s, uint32_t round) {
    return round == 0 || (int32_t)(s->rounds.durable - round) >= 0 || !crail_guard_on("retire-durable");
}

void crail_round_note(struct crail_storage *s, uint32_t region, uint32_t granule) {
    struct crail_region *r = &s->regions[region];
    if (r->memory)
        return;
    uint32_t page = (uint32_t)(granule / PER_PAGE);
    r->changed[page / WORD_BITS] |= 1ull << (page % WORD_BITS);
    s->rounds.is_changed = true;
}

static void run_next(struct crail_storage *s);

static void is_synced(struct crail_storage *s, struct crail_job *job) {
    struct crail_rounds *o = &s->rounds;
    if (job->rc)
        return; /* the disk has failed: no other round, and what waits for this one goes on waiting */
    crail_failpoint("round-durable");
    o->is_running = false;
    o->durable = o->written;
    crail_retire_round_done(s);
    crail_round_begin(s);
}

static void is_written(struct crail_storage *s, struct crail_job *job) {
    if (job->rc == 0)
        run_next(s);
}

/* The next page from (o->region, o->page) on that is to be written; false: there is none. */
static bool find_page(struct crail_storage *s) {
    struct crail_rounds *o = &s->rounds;
    for (; o->region < s->region_count; o->region++, o->page = 0) {
        const struct crail_region *r = &s->regions[o->region];
        for (uint32_t pages = r->memory ? 0 : pages_of(r); o->page < pages;) {
            uint64_t word = r->being_written[o->page / WORD_BITS] >> (o->page % WORD_BITS);
            if (word) {
                o->page += (uint32_t)__builtin_ctzll(word);
                return true;
            }
            o->page += WORD_BITS - o->page % WORD_BITS;
        }
    }
    return false;
}

/* Copies the run of pages that begins there; how many. */
static uint32_t copy_run(struct crail_storage *s) {
    struct crail_rounds *o = &s->rounds;
    struct crail_region *r = &s->regions[o->region];
    uint64_t *to = (uint64_t *)o->job.buffer;
    uint32_t n = 0, most = CRAIL_DISK_BUFFER_BYTES / CRAIL_GRANULE;
    for (uint32_t pages = pages_of(r); n < most && o->page < pages; n++, o->page++) {
        uint64_t *word = &r->being_written[o->page / WORD_BITS], bit = 1ull << (o->page % WORD_BITS);
        if (!(*word & bit))
            break;
        *word &= ~bit;
        for (uint32_t i = 0; i < PER_PAGE; i++)
            to[n * PER_PAGE + i] = atomic_load_explicit(&r->generations[o->page * PER_PAGE + i], memory_order_relaxed);
    }
    return n;
}

static void run_next(struct crail_storage *s) {
    struct crail_rounds *o = &s->rounds;
    o->job.kind = CRAIL_JOB_SYNC;
    o->job.bytes = 0;
    o->job.done = is_synced;
    if (find_page(s)) {
        o->job.kind = CRAIL_JOB_WRITE;
        o->job.at = s->regions[o->region].generations_at + (uint64_t)o->page * CRAIL_GRANULE;
        o->job.bytes = copy_run(s) * CRAIL_GRANULE;
        o->job.done = is_written;
    } else {
        crail_failpoint("round-written");
    }
    crail_disk_submit(s, &o->job);
}

void crail_round_begin(struct crail_storage *s) {
    struct crail_rounds *o = &s->rounds;
    if (!o->is_changed || o->is_running || s->disk.failed || s->stopping)
        return;
    o->is_running = true;
    o->is_changed = false;
    o->written = o->now;
    o->now = o->now + 1 ? o->now + 1 : 1;
    for (uint32_t i = 0; i < s->region_count; i++) {
        struct crail_region *r = &s->regions[i];
        uint64_t *empty = r->being_written;
        r->being_written = r->changed;
        r->changed = empty;
    }
    o->region = o->page = 0;
    run_next(s);
}
