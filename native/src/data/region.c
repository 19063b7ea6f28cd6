/* Regions: the memory that clients map too, or a place in a file, and their generations. Mapped and read on the
 * caller's thread (touching gigabytes takes seconds), entered into the list on the loop's; never unmapped before the
 * loop has ended. */
#include "storage.h"

#include "base/map.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE_BYTES 4096u

static size_t memory_bytes(uint32_t granules) {
    return (size_t)granules * CRAIL_GRANULE;
}
static size_t generation_bytes(uint32_t granules) {
    return (size_t)granules * sizeof(uint64_t);
}

/* Takes the space of the file now, so that no later store finds the file system full. */
static int allocate(int fd, size_t bytes) {
    if (fallocate(fd, 0, 0, (off_t)bytes) == 0 || errno == EOPNOTSUPP)
        return 0;
    return -errno;
}

/* Collapsing what has pages already would copy them one by one, under the eyes of those that use them. */
static bool is_empty(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_blocks == 0;
}

/* Before 5.14 the pages are touched by hand; the contents stay. */
static int populate_memory(int fd, void *memory, size_t bytes) {
    int rc;
    if (is_empty(fd))
        crail_map_collapse(fd, memory, bytes);
    do
        rc = madvise(memory, bytes, MADV_POPULATE_WRITE);
    while (rc && (errno == EAGAIN || errno == EINTR));
    if (rc == 0)
        return 0;
    if (errno != EINVAL)
        return errno == EFAULT ? -ENOSPC : -errno;
    rc = allocate(fd, bytes);
    for (size_t at = 0; rc == 0 && at < bytes; at += PAGE_BYTES)
        __atomic_fetch_or((uint8_t *)memory + at, 0, __ATOMIC_RELAXED);
    return rc;
}

static int on_region_add(struct crail_storage *s, void *arg) {
    if (s->serving || s->region_count == CRAIL_STORAGE_REGIONS_MAX)
        return s->serving ? -EBUSY : -ENOSPC;
    struct crail_region *all = realloc(s->regions, (s->region_count + 1) * sizeof(*all));
    if (!all)
        return -ENOMEM;
    s->regions = all;
    all[s->region_count] = *(struct crail_region *)arg;
    return (int)s->region_count++;
}

int crail_storage_region_add(crail_storage *s, int fd, int generations_fd, uint32_t granules, int populate) {
    if (granules == 0)
        return -EINVAL;
    struct crail_region region = {.granules = granules};
    void *memory = NULL, *generations = NULL;
    int rc = crail_map_file(fd, memory_bytes(granules), PROT_READ | PROT_WRITE, &memory);
    if (rc)
        return rc;
    rc = crail_map_file(generations_fd, generation_bytes(granules), PROT_READ | PROT_WRITE, &generations);
    if (rc)
        goto out;
    rc = allocate(generations_fd, generation_bytes(granules));
    if (rc)
        goto out;
    /* Huge pages come only to what is touched after this: the caller must not have allocated the file page by page. */
    madvise(memory, memory_bytes(granules), MADV_HUGEPAGE);
    if (populate)
        rc = populate_memory(fd, memory, memory_bytes(granules));
    if (rc)
        goto out;
    region.memory = memory;
    region.generations = generations;
    rc = crail_storage_call(s, on_region_add, &region);
    if (rc >= 0)
        return rc;
out:
    if (generations)
        munmap(generations, generation_bytes(granules));
    munmap(memory, memory_bytes(granules));
    return rc;
}

/* ---- in a file ---------------------------------------------------------------- */

/* All zeros, as a mapping of its own: O_DIRECT wants it aligned. */
static int map_generations(struct crail_region *r) {
    void *at =
        mmap(NULL, crail_generation_bytes(r->granules), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return -errno;
    r->generations = at;
    size_t words = crail_generation_bytes(r->granules) / PAGE_BYTES / 64 + 1;
    r->changed = calloc(words, sizeof(uint64_t));
    r->being_written = calloc(words, sizeof(uint64_t));
    return r->changed && r->being_written ? 0 : -ENOMEM;
}

static int read_generations(int fd, struct crail_region *r) {
    uint8_t *to = (uint8_t *)r->generations;
    for (size_t done = 0, bytes = crail_generation_bytes(r->granules); done < bytes;) {
        ssize_t n = pread(fd, to + done, bytes - done, (off_t)(r->generations_at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? -errno : -EINVAL;
        done += (size_t)n;
    }
    return 0;
}

static void region_free(struct crail_region *r) {
    if (r->memory) {
        munmap(r->memory, memory_bytes(r->granules));
        munmap(r->generations, generation_bytes(r->granules));
    } else if (r->generations) {
        munmap(r->generations, crail_generation_bytes(r->granules));
    }
    free(r->changed);
    free(r->being_written);
}

/* Is it the file that we have, if we have one? */
static bool is_our_file(const struct crail_storage *s, int fd) {
    struct stat ours, given;
    if (s->disk.fd < 0)
        return true;
    return fstat(s->disk.fd, &ours) == 0 && fstat(fd, &given) == 0 && ours.st_dev == given.st_dev &&
           ours.st_ino == given.st_ino;
}

int crail_storage_region_add_file(crail_storage *s, int fd, uint64_t generations_at, uint64_t data_at,
                                  uint32_t granules) {
    struct crail_region r = {.granules = granules, .generations_at = generations_at, .data_at = data_at};
    off_t end = lseek(fd, 0, SEEK_END); /* of a device, too */
    if (end < 0)
        return -errno;
    if (granules == 0 || generations_at % CRAIL_GRANULE || data_at % CRAIL_GRANULE || !is_our_file(s, fd) ||
        (uint64_t)end < data_at || (uint64_t)end - data_at < memory_bytes(granules))
        return -EINVAL;
    int rc = map_generations(&r);
    if (rc == 0)
        rc = read_generations(fd, &r);
    if (rc == 0 && s->disk.fd < 0)
        rc = crail_disk_open(s, fd);
    if (rc == 0)
        rc = crail_storage_call(s, on_region_add, &r);
    if (rc < 0)
        region_free(&r);
    return rc;
}

int crail_storage_failed_fd(crail_storage *s) {
    return s->disk.failed_fd;
}

/* ---- all of them ----------------------------------------------------------------- */

struct region_call {
    uint32_t number;
    struct crail_region region;
};

static int on_region_look(struct crail_storage *s, void *arg) {
    struct region_call *call = arg;
    if (call->number >= s->region_count)
        return -EINVAL;
    call->region = s->regions[call->number];
    return 0;
}

int crail_storage_generations(crail_storage *s, uint32_t region, uint64_t *out, uint32_t granules) {
    struct region_call call = {.number = region};
    int rc = crail_storage_call(s, on_region_look, &call);
    if (rc)
        return rc;
    if (granules != call.region.granules)
        return -EINVAL;
    for (uint32_t i = 0; i < granules; i++)
        out[i] = atomic_load_explicit(&call.region.generations[i], memory_order_relaxed);
    return 0;
}

bool crail_region_holds(const struct crail_storage *s, uint32_t region, uint32_t granule, uint32_t granules) {
    return region < s->region_count && granules > 0 && (uint64_t)granule + granules <= s->regions[region].granules;
}

void crail_regions_free(struct crail_storage *s) {
    for (uint32_t i = 0; i < s->region_count; i++)
        region_free(&s->regions[i]);
    free(s->regions);
    s->regions = NULL;
    s->region_count = 0;
}
