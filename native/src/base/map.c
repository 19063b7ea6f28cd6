#include "base/map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* A wish: another thread may take the place before it is used, which costs speed only. */
static void *aligned_place(size_t bytes) {
    if (bytes < CRAIL_HUGE_PAGE)
        return NULL;
    void *room = mmap(NULL, bytes + CRAIL_HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return NULL;
    munmap(room, bytes + CRAIL_HUGE_PAGE);
    return (void *)(((uintptr_t)room + CRAIL_HUGE_PAGE - 1) & ~(uintptr_t)(CRAIL_HUGE_PAGE - 1));
}

int crail_map_file(int fd, size_t bytes, int prot, void **out) {
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    if (st.st_size < 0 || (uint64_t)st.st_size < bytes)
        return -EINVAL;
    void *at = mmap(aligned_place(bytes), bytes, prot, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    *out = at;
    return 0;
}

void crail_map_collapse(int fd, void *memory, size_t bytes) {
    size_t whole = bytes - bytes % CRAIL_HUGE_PAGE;
    for (size_t at = 0; at < whole; at += CRAIL_HUGE_PAGE)
        if (fallocate(fd, 0, (off_t)at, 1))
            return;
    if (whole)
        madvise(memory, whole, MADV_COLLAPSE);
}
