/* Clients, and the storage servers within their reach by shared memory: mappings, use slots, population. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/map.h"
#include "client.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

unsigned crail_fork_epoch;
unsigned crail_fork_child_epoch;

static void forked_parent(void) {
    crail_fork_epoch++;
}

static void forked_child(void) {
    crail_fork_epoch++;
    crail_fork_child_epoch++;
}

static void watch_forks(void) {
    pthread_atfork(NULL, forked_parent, forked_child);
}

/* ---- clients ------------------------------------------------------------- */

int crail_client_new(const crail_client_options *options, crail_client **out) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (!options->lanes_max || options->lanes_max > CRAIL_CLIENT_LANES_MAX || options->inline_max > CRAIL_INLINE_MAX)
        return -EINVAL;
    pthread_once(&once, watch_forks);
    crail_client *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&c->lane_freed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&c->lock, NULL);
    c->options = *options;
    c->refs = 1;
    c->fork_epoch = crail_fork_child_epoch;
    *out = c;
    return 0;
}

static void unmap(struct crail_mapping *m, uint64_t bytes) {
    if (m->base)
        munmap(m->base, bytes);
    free(m->populated);
    *m = (struct crail_mapping){0};
}

static void attachment_free(struct crail_attachment *a) {
    for (uint32_t i = 0; i < a->regions; i++) {
        struct crail_client_region *r = &a->region[i];
        unmap(&r->readable, r->bytes);
        unmap(&r->writable, r->bytes);
        if (r->generations)
            munmap((void *)(uintptr_t)r->generations, (size_t)r->granules * sizeof(uint64_t));
    }
    if (a->use)
        munmap(a->use, sizeof(*a->use));
    if (a->use_fd >= 0)
        close(a->use_fd); /* with it the lock on the table goes, and with that the table */
    pthread_mutex_destroy(&a->slots_lock);
    free(a);
}

void crail_client_ref(crail_client *c) {
    atomic_fetch_add(&c->refs, 1);
}

void crail_client_unref(crail_client *c) {
    if (atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    for (uint32_t i = 0; i < c->servers_count; i++)
        attachment_free(c->servers[i]);
    pthread_cond_destroy(&c->lane_freed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void crail_client_free(crail_client *c) {
    if (c->fork_epoch != crail_fork_child_epoch)
        return; /* the parent's: its locks may be held for ever, its mappings may have views */
    crail_client_close(c);
    crail_client_unref(c);
}

int crail_client_promise(crail_client *c, int is_sync) {
    c->is_sync = is_sync;
    return 0;
}

int crail_client_stats_read(crail_client *c, crail_client_stats *out) {
    crail_client_stats s = {
        .requests = c->requests,
        .retries = c->retries,
        .reconnects = c->reconnects,
        .stale_locations = c->stale_locations,
        .bytes_in = c->bytes_in,
        .bytes_out = c->bytes_out,
        .slots_used = c->slots_used,
    };
    pthread_mutex_lock(&c->lock);
    s.lanes = c->lanes_count;
    for (uint32_t i = 0; i < CRAIL_CLIENT_LANES_MAX; i++)
        s.grants_held += c->lanes[i] ? c->lanes[i]->grants_count : 0;
    pthread_mutex_unlock(&c->lock);
    *out = s;
    return 0;
}

/* ---- attaching ----------------------------------------------------------- */

static int map_region(struct crail_mapping *m, int fd, uint64_t bytes, int prot) {
    void *p;
    uint64_t blocks = (bytes + CRAIL_POPULATE_BLOCK - 1) / CRAIL_POPULATE_BLOCK;
    uint64_t *populated = calloc((blocks + 63) / 64, sizeof(uint64_t));
    if (!populated)
        return -ENOMEM;
    int rc = crail_map_file(fd, bytes, prot, &p);
    if (rc) {
        free(populated);
        return rc;
    }
    madvise(p, bytes, MADV_HUGEPAGE);
    m->base = p;
    m->populated = (_Atomic uint64_t *)populated;
    return 0;
}

struct crail_attachment *crail_client_find(crail_client *c, uint32_t server) {
    uint32_t n = atomic_load_explicit(&c->servers_count, memory_order_acquire);
    for (uint32_t i = n; i-- > 0;)
        if (c->servers[i]->server == server)
            return c->servers[i]->is_dropped ? NULL : c->servers[i];
    return NULL;
}

static int fill_attachment(struct crail_attachment *a, const int *region_fds, const int *generation_fds,
                           const uint32_t *granules, int use_fd) {
    for (uint32_t i = 0; i < a->regions; i++) {
        struct crail_client_region *r = &a->region[i];
        void *generations;
        r->granules = granules[i];
        r->bytes = (uint64_t)granules[i] * CRAIL_GRANULE;
        int rc = map_region(&r->readable, region_fds[i], r->bytes, PROT_READ);
        if (!rc)
            rc = crail_map_file(generation_fds[i], (uint64_t)granules[i] * sizeof(uint64_t), PROT_READ, &generations);
        if (rc)
            return rc;
        r->generations = generations;
    }
    void *use;
    int rc = crail_map_file(use_fd, sizeof(struct crail_use_table), PROT_READ | PROT_WRITE, &use);
    if (rc)
        return rc;
    a->use = use;
    if (a->use->magic != CRAIL_USE_MAGIC || a->use->slots != CRAIL_USE_SLOTS)
        return -EPROTO;
    a->use_fd = fcntl(use_fd, F_DUPFD_CLOEXEC, 0);
    return a->use_fd < 0 ? -errno : 0;
}

int crail_client_server_shm(crail_client *c, uint32_t server, uint32_t regions, const int *region_fds,
                            const int *generation_fds, const uint32_t *granules, int use_fd) {
    if (!regions || regions > CRAIL_CLIENT_REGIONS_MAX)
        return -EINVAL;
    struct crail_attachment *a = calloc(1, sizeof(*a));
    if (!a)
        return -ENOMEM;
    a->server = server;
    a->regions = regions;
    a->use_fd = -1;
    pthread_mutex_init(&a->slots_lock, NULL);
    for (uint32_t i = 0; i < CRAIL_USE_SLOTS; i++)
        a->slots_free[i] = (uint16_t)(CRAIL_USE_SLOTS - 1 - i);
    a->slots_free_count = CRAIL_USE_SLOTS;
    int rc = fill_attachment(a, region_fds, generation_fds, granules, use_fd);
    if (rc) {
        attachment_free(a);
        return rc;
    }
    pthread_mutex_lock(&c->lock);
    if (crail_client_find(c, server)) {
        rc = -EEXIST; /* two threads asked at once: the first one's stays */
    } else if (c->servers_count == CRAIL_CLIENT_SERVERS_MAX) {
        rc = -ENOSPC;
    } else {
        c->servers[c->servers_count] = a;
        atomic_fetch_add_explicit(&c->servers_count, 1, memory_order_release);
    }
    pthread_mutex_unlock(&c->lock);
    if (rc)
        attachment_free(a);
    return rc;
}

int crail_client_server_writable(crail_client *c, uint32_t server, uint32_t regions, const int *region_fds) {
    struct crail_attachment *a = crail_client_find(c, server);
    if (!a || regions != a->regions)
        return -EINVAL;
    int rc = 0;
    pthread_mutex_lock(&c->lock);
    for (uint32_t i = 0; i < regions && !rc && !a->is_writable; i++)
        if (!a->region[i].writable.base)
            rc = map_region(&a->region[i].writable, region_fds[i], a->region[i].bytes, PROT_READ | PROT_WRITE);
    if (!rc)
        atomic_store_explicit(&a->is_writable, true, memory_order_release);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

int crail_client_server_drop(crail_client *c, uint32_t server) {
    struct crail_attachment *a = crail_client_find(c, server);
    if (a)
        a->is_dropped = true;
    return 0;
}

/* ---- use slots ----------------------------------------------------------- */

int crail_attachment_enter(struct crail_attachment *a, const struct crail_extent *e, uint32_t reserve, uint32_t *slot) {
    if (e->region >= a->regions || e->granule >= a->region[e->region].granules ||
        e->granules > a->region[e->region].granules - e->granule)
        return -CRAIL_E_STALE_LOCATION;
    pthread_mutex_lock(&a->slots_lock);
    int rc = a->slots_free_count > reserve ? 0 : -ENOBUFS;
    uint32_t i = rc ? 0 : a->slots_free[--a->slots_free_count];
    pthread_mutex_unlock(&a->slots_lock);
    if (rc)
        return rc;
    if (!crail_use_enter(a->use, i, e->region, e->granule, e->granules, e->generation,
                         a->region[e->region].generations)) {
        crail_attachment_leave(a, i);
        return -CRAIL_E_STALE_LOCATION;
    }
    *slot = i;
    return 0;
}

void crail_attachment_leave(struct crail_attachment *a, uint32_t slot) {
    crail_use_leave(a->use, slot);
    pthread_mutex_lock(&a->slots_lock);
    assert(a->slots_free_count < CRAIL_USE_SLOTS);
    a->slots_free[a->slots_free_count++] = (uint16_t)slot;
    pthread_mutex_unlock(&a->slots_lock);
}

/* ---- population ---------------------------------------------------------- */

/* Page faults one by one cost more than the copy: the kernel fills the page tables of a whole block in one call.
 * Whole blocks, so that small extents soon find theirs filled. Asking as a reader is right for writing too: the pages
 * exist (the server allocated them), a shared mapping gets them with all its rights, and only read faults are served
 * sixteen pages at a time: four times faster. A refusal is no error: then faults do it. */
void crail_mapping_populate(struct crail_mapping *m, uint64_t region_bytes, uint64_t at, uint64_t n) {
    uint64_t first = at / CRAIL_POPULATE_BLOCK, last = (at + n - 1) / CRAIL_POPULATE_BLOCK;
    for (uint64_t b = first; b <= last; b++) {
        uint64_t bit = 1ull << (b % 64);
        if (atomic_load_explicit(&m->populated[b / 64], memory_order_relaxed) & bit)
            continue;
        uint64_t from = b * CRAIL_POPULATE_BLOCK;
        uint64_t bytes = region_bytes - from < CRAIL_POPULATE_BLOCK ? region_bytes - from : CRAIL_POPULATE_BLOCK;
        madvise(m->base + from, bytes, MADV_POPULATE_READ);
        atomic_fetch_or_explicit(&m->populated[b / 64], bit, memory_order_relaxed);
    }
}
