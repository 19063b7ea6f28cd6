/* The two clocks, in nanoseconds. Both are read in the vdso: no system call. */
#ifndef CRAIL_CLOCK_H
#define CRAIL_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t crail_clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Since the epoch, UTC: what a node's mtime is. */
static inline int64_t crail_clock_realtime_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
