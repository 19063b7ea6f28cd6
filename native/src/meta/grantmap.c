/* The grant map: a file in which every grant has a slot while it is one, so that after a SIGKILL of the namenode the
 * runs that sessions may be writing to are known, whatever the last durable cut says. It is written through a shared
 * mapping: what a process has stored there outlives it without any system call. A crash of the machine may lose the
 * latest stores, or bring back what was erased; that takes the sessions, too, so a slot is only ever believed as far as
 * nothing speaks against it.
 *
 * The slot of a grant that became a node's is erased when the cut that has the node is durable: until then the run is
 * found in one place or the other, and a COMMIT that is repeated after a restart finds its grants. Its record names the
 * slot (`next`) meanwhile. Everything else erases a slot at once. What a restart finds to have been a node's, and not
 * to be one any more (is undone), is taken back when those who may repeat their COMMIT have had the time: nobody else
 * knows of it.
 *
 * Slot 0 is the head of the file. Free slots are linked through `next`, those that wait for their epoch likewise. */
#include "meta/engine.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"

#define MAGIC 0x70616d746e617267ull /* "grantmap" */
#define SLOTS_MAX (1u << 24)
#define SLOTS_STEP 16384u
#define ERASED_PER_STEP 64u

struct crail_grantmap {
    struct crail_grant_slot *slot;
    int fd;
    uint32_t slots; /* in the file */
    uint32_t fresh; /* those from here on were never used in this life */
    uint32_t free, free_n;
    uint32_t first, last; /* of those that wait */
};

static size_t bytes_of(uint32_t slots) {
    return (size_t)slots * sizeof(struct crail_grant_slot);
}

static int grow(struct crail_grantmap *g, uint32_t slots) {
    if (slots > SLOTS_MAX)
        return -ENOSPC;
    int rc = posix_fallocate(g->fd, 0, (off_t)bytes_of(slots)); /* so that no store finds the disk full */
    if (rc)
        return -rc;
    g->slots = slots;
    return 0;
}

int crail_grantmap_open(struct crail_meta *m, int fd) {
    struct stat st;
    struct crail_grantmap *g = calloc(1, sizeof(*g));
    if (!g)
        return -ENOMEM;
    m->grantmap = g;
    g->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (g->fd < 0 || fstat(g->fd, &st))
        return -errno;
    bool is_new = st.st_size == 0;
    uint64_t slots = (uint64_t)st.st_size / sizeof(*g->slot);
    int rc = grow(g, slots < SLOTS_STEP ? SLOTS_STEP : slots < SLOTS_MAX ? (uint32_t)slots : SLOTS_MAX);
    if (rc)
        return rc;
    void *p = mmap(NULL, bytes_of(SLOTS_MAX), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, g->fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    g->slot = p;
    if (is_new)
        g->slot[0].session = MAGIC;
    g->fresh = 1;
    return g->slot[0].session == MAGIC ? 0 : -EUCLEAN;
}

void crail_grantmap_close(struct crail_meta *m) {
    struct crail_grantmap *g = m->grantmap;
    if (!g)
        return;
    if (g->slot)
        munmap(g->slot, bytes_of(SLOTS_MAX));
    if (g->fd >= 0)
        close(g->fd);
    free(g);
    m->grantmap = NULL;
}

int crail_grantmap_reserve(struct crail_meta *m, uint32_t n) {
    struct crail_grantmap *g = m->grantmap;
    if (!g || g->free_n + (g->slots - g->fresh) >= n)
        return 0;
    return grow(g, g->slots + SLOTS_STEP + n);
}

static void slot_free(struct crail_grantmap *g, uint32_t i) {
    g->slot[i].next = g->free;
    g->free = i;
    g->free_n++;
}

static uint32_t slot_take(struct crail_grantmap *g) {
    uint32_t i = g->free;
    if (!i) {
        assert(g->fresh < g->slots);
        return g->fresh++;
    }
    g->free = g->slot[i].next;
    g->free_n--;
    return i;
}

uint32_t crail_grantmap_note(struct crail_meta *m, uint64_t session, const struct crail_run *run) {
    struct crail_grantmap *g = m->grantmap;
    if (!g)
        return 0;
    uint32_t i = slot_take(g);
    struct crail_grant_slot *s = &g->slot[i];
    *s = (struct crail_grant_slot){.session = session,
                                   .generation = crail_run_generation(m, run),
                                   .server = run->server,
                                   .region = run->region,
                                   .granule = run->granule};
    __atomic_store_n(&s->granules, run->granules, __ATOMIC_RELEASE); /* now it says something */
    crail_failpoint("grant-noted");
    return i;
}

void crail_grantmap_erase(struct crail_meta *m, uint32_t i) {
    struct crail_grantmap *g = m->grantmap;
    if (!i)
        return;
    __atomic_store_n(&g->slot[i].granules, 0, __ATOMIC_RELEASE);
    if (!g->slot[i].epoch)
        slot_free(g, i);
}

void crail_grantmap_erase_later(struct crail_meta *m, uint32_t i) {
    struct crail_grantmap *g = m->grantmap;
    if (!i)
        return;
    g->slot[i].epoch = m->cut->epoch;
    g->slot[i].next = 0;
    if (g->last)
        g->slot[g->last].next = i;
    else
        g->first = i;
    g->last = i;
}

/* The run does not name the slot any longer. */
static void run_forget(struct crail_meta *m, const struct crail_grant_slot *s) {
    struct crail_run run = {s->server, s->region, s->granule, s->granules};
    if (crail_server_find(m, s->server)->state != CRAIL_SERVER_LOST)
        crail_run_record_of(m, &run)->next = 0;
}

bool crail_grantmap_step(struct crail_meta *m) {
    struct crail_grantmap *g = m->grantmap;
    for (uint32_t n = 0; g && g->first && g->slot[g->first].epoch <= m->cut->durable; n++) {
        if (n == ERASED_PER_STEP)
            return true;
        uint32_t i = g->first;
        struct crail_grant_slot *s = &g->slot[i];
        g->first = s->next;
        if (!g->first)
            g->last = 0;
        if (s->granules)
            run_forget(m, s);
        s->epoch = 0;
        crail_grantmap_erase(m, i);
    }
    return false;
}

/* ---- an earlier life's ------------------------------------------------------------- */

const struct crail_grant_slot *crail_grantmap_next(const struct crail_meta *m, uint32_t *i) {
    struct crail_grantmap *g = m->grantmap;
    while (g && ++*i < g->slots)
        if (g->slot[*i].granules)
            return &g->slot[*i];
    return NULL;
}

void crail_grantmap_void(struct crail_meta *m, uint32_t slot) {
    m->grantmap->slot[slot].granules = 0;
}

bool crail_grantmap_is_undone(const struct crail_meta *m, uint32_t i) {
    return i && (m->grantmap->slot[i].epoch || m->grantmap->slot[i].undone);
}

void crail_grantmap_known(struct crail_meta *m, uint32_t i) {
    assert(i && m->grantmap->slot[i].undone);
    m->grantmap->slot[i].undone = 0;
}

void crail_grantmap_loaded(struct crail_meta *m) {
    struct crail_grantmap *g = m->grantmap;
    if (!g)
        return;
    g->fresh = g->slots;
    for (uint32_t i = g->slots; --i;) {
        g->slot[i].undone = crail_grantmap_is_undone(m, i);
        __atomic_store_n(&g->slot[i].epoch, 0, __ATOMIC_RELEASE); /* the mark is there before */
        if (!g->slot[i].granules)
            slot_free(g, i);
    }
}
