/* The engine as a whole: made, stepped, counted, freed. */
#include "meta/engine.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define NAMES_BYTES (CRAIL_NAMES_SEGMENTS_MAX * (uint32_t)sizeof(crail_ref))
#define HEAD_BYTES (NAMES_BYTES + CRAIL_EXPIRY_SEGMENTS_MAX * (uint32_t)sizeof(crail_ref))
#define PREFIX_TABLE_BYTES (CRAIL_PREFIX_SLOTS * sizeof(struct crail_prefix)) /* touched where directories are used */

int crail_meta_new(const struct crail_meta_options *options, struct crail_meta **out) {
    int rc = -ENOMEM;
    struct crail_meta *m = calloc(1, sizeof(*m));
    if (!m)
        return -ENOMEM;
    m->prefixes = mmap(NULL, PREFIX_TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->prefixes == MAP_FAILED)
        goto out_meta;
    rc = crail_arena_open(&m->arena, options->arena_bytes_max, HEAD_BYTES);
    if (rc)
        goto out_prefixes;
    m->hash_seed = options->hash_seed;
    memcpy(m->mac_key, options->mac_key, sizeof(m->mac_key));
    m->shape = 1; /* the empty slots of the prefixes say 0 */
    rc = crail_names_open(m);
    if (rc)
        goto out_arena;
    m->expiry.segment = (crail_ref *)(m->arena.base + CRAIL_ARENA_CHUNK + NAMES_BYTES);
    rc = crail_holds_open(m);
    if (rc)
        goto out_arena;
    m->root = crail_tree_create(m, 0, "", 0, 0, CRAIL_KIND_DIRECTORY, 0);
    if (!m->root) {
        rc = -ENOMEM;
        goto out_holds;
    }
    *out = m;
    return 0;

out_holds:
    crail_holds_close(m);
out_arena:
    crail_arena_close(&m->arena);
out_prefixes:
    munmap(m->prefixes, PREFIX_TABLE_BYTES);
out_meta:
    free(m);
    return rc;
}

void crail_meta_free(struct crail_meta *m) {
    crail_load_close(m);
    crail_cut_close(m);
    for (uint32_t i = 0; i < m->sessions_n; i++) {
        if (m->sessions[i])
            free(m->sessions[i]->grants);
        free(m->sessions[i]);
    }
    free(m->sessions);
    crail_servers_close(m);
    crail_holds_close(m);
    free(m->jobs);
    crail_arena_close(&m->arena);
    munmap(m->prefixes, PREFIX_TABLE_BYTES);
    free(m);
}

void crail_meta_clock(struct crail_meta *m, int64_t now_ns) {
    m->now_ns = now_ns;
}

/* ---- background --------------------------------------------------------------------- */

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A little of every kind of work, so that none waits for another. True if some is left. */
static bool step_once(struct crail_meta *m) {
    bool left = crail_session_step(m);
    left |= crail_undone_step(m);
    left |= crail_life_step(m);
    left |= crail_reap_step(m);
    left |= crail_job_step(m); /* after it: with its directory goes a job */
    left |= crail_btree_free_step(m);
    left |= crail_index_step(m);
    left |= crail_servers_step(m);
    return left;
}

bool crail_meta_step(struct crail_meta *m, uint64_t budget_ns) {
    uint64_t start = clock_ns();
    crail_index_drop_cold(m);
    while (step_once(m))
        if (clock_ns() - start >= budget_ns)
            return true;
    return false;
}

/* ---- facts ---------------------------------------------------------------------------- */

static void add_server(const struct crail_server *sv, struct crail_meta_stats *out) {
    out->granules_total += sv->granules;
    out->granules_free += sv->count[CRAIL_COUNT_FREE];
    out->granules_used += sv->count[CRAIL_COUNT_USED];
    out->granules_granted += sv->count[CRAIL_COUNT_GRANTED];
    out->granules_retiring += sv->count[CRAIL_COUNT_RETIRING];
}

void crail_meta_stats(const struct crail_meta *m, struct crail_meta_stats *out) {
    *out = (struct crail_meta_stats){.nodes = m->nodes,
                                     .files = m->files,
                                     .directories = m->directories,
                                     .arena_bytes_used = m->arena.bytes_used,
                                     .arena_bytes_reserved = m->arena.bytes_reserved,
                                     .values_inline_bytes = m->inline_bytes,
                                     .holds = m->holds,
                                     .jobs = m->jobs_n,
                                     .background_pending = m->doomed_nodes + m->indexes_building};
    for (uint32_t i = 0; i < m->servers_n; i++)
        add_server(m->servers[i], out);
}

int crail_meta_server_stats(const struct crail_meta *m, uint32_t number, struct crail_meta_stats *out) {
    const struct crail_server *sv = crail_server_find(m, number);
    if (!sv)
        return -ENOENT;
    *out = (struct crail_meta_stats){0};
    add_server(sv, out);
    return 0;
}
