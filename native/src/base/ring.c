#include "base/ring.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x31524c43u /* "CLR1" */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
/* A tick of the kernel's clock and a little more: a timer that fires before the next tick has to be set up in the
 * processor, which costs a virtual machine dearly, and is set for nothing nearly always. */
#define NAP_NS 5000000
#define PENALTY_FIRST 2u
#define PENALTY_MAX 64u
#define GOOD_ENOUGH 4u

_Static_assert((CRAIL_RING_BYTES & (CRAIL_RING_BYTES - 1)) == 0, "positions are counts modulo the size");
_Static_assert(sizeof(struct crail_ring_memory) % 4096 == 0, "whole pages");

/* ---- memory --------------------------------------------------------------- */

static int set_up(int fd) {
    struct crail_ring_memory *m;
    if (ftruncate(fd, sizeof *m) < 0)
        return -errno;
    m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m == MAP_FAILED)
        return -errno;
    m->magic = MAGIC;
    m->bytes = CRAIL_RING_BYTES;
    munmap(m, 4096);
    return fcntl(fd, F_ADD_SEALS, SEALS) < 0 ? -errno : 0;
}

int crail_ring_create(void) {
    int fd = memfd_create("crailpy-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    int rc = set_up(fd);
    if (rc)
        close(fd);
    return rc ? rc : fd;
}

int crail_ring_open(struct crail_ring *r, int memory_fd, bool is_server) {
    struct stat st;
    int seals = fcntl(memory_fd, F_GET_SEALS);
    if (seals < 0 || fstat(memory_fd, &st) < 0)
        return -errno;
    if ((seals & SEALS) != SEALS || st.st_size != sizeof *r->memory)
        return -EPROTO;
    /* Populated now, on the thread that connects: page faults would hold the loop. */
    struct crail_ring_memory *m =
        mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory_fd, 0);
    if (m == MAP_FAILED)
        return -errno;
    if (m->magic != MAGIC || m->bytes != CRAIL_RING_BYTES) {
        munmap(m, sizeof *m);
        return -EPROTO;
    }
    madvise(m, sizeof *m, MADV_DONTFORK); /* a forked child never uses its parent's */
    *r = (struct crail_ring){.memory = m,
                             .in = is_server ? &m->requests : &m->replies,
                             .out = is_server ? &m->replies : &m->requests,
                             .in_bytes = is_server ? m->request_bytes : m->reply_bytes,
                             .out_bytes = is_server ? m->reply_bytes : m->request_bytes};
    return 0;
}

void crail_ring_close(struct crail_ring *r) {
    if (r->memory)
        munmap(r->memory, sizeof *r->memory);
    *r = (struct crail_ring){0};
}

/* ---- bytes ---------------------------------------------------------------- */

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

ssize_t crail_ring_read(struct crail_ring *r, void *to, size_t n) {
    uint64_t there = atomic_load_explicit(&r->in->written, memory_order_acquire) - r->taken;
    if (there > CRAIL_RING_BYTES)
        return -EPROTO;
    n = min_size(n, there);
    if (!n)
        return 0;
    size_t at = r->taken % CRAIL_RING_BYTES, first = min_size(n, CRAIL_RING_BYTES - at);
    memcpy(to, r->in_bytes + at, first);
    memcpy((uint8_t *)to + first, r->in_bytes, n - first);
    r->taken += n;
    atomic_store(&r->in->taken, r->taken);
    return (ssize_t)n;
}

ssize_t crail_ring_write(struct crail_ring *r, const void *from, size_t n) {
    uint64_t used = r->written - r->out_taken;
    if (CRAIL_RING_BYTES - used < n) { /* as of the last look: look again */
        r->out_taken = atomic_load_explicit(&r->out->taken, memory_order_acquire);
        used = r->written - r->out_taken;
        if (used > CRAIL_RING_BYTES) {
            r->out_taken = r->written - CRAIL_RING_BYTES; /* whatever comes next sees a full ring */
            return -EPROTO;
        }
    }
    n = min_size(n, CRAIL_RING_BYTES - used);
    if (!n)
        return 0;
    size_t at = r->written % CRAIL_RING_BYTES, first = min_size(n, CRAIL_RING_BYTES - at);
    memcpy(r->out_bytes + at, from, first);
    memcpy(r->out_bytes, (const uint8_t *)from + first, n - first);
    r->written += n;
    atomic_store(&r->out->written, r->written);
    return (ssize_t)n;
}

/* ---- sleep ---------------------------------------------------------------- */

enum { AWAKE, SLEEPS, NAPS }; /* what the flags say */

/* Says how this end is about to wait for bytes. False: they are there. */
static bool no_bytes(struct crail_ring *r, uint32_t how) {
    atomic_store(&r->in->reader_sleeps, how);
    if (atomic_load(&r->in->written) == r->taken)
        return true;
    atomic_store_explicit(&r->in->reader_sleeps, AWAKE, memory_order_relaxed);
    return false;
}

static bool no_room(struct crail_ring *r, uint32_t how) {
    atomic_store(&r->out->writer_sleeps, how);
    if (r->written - atomic_load(&r->out->taken) == CRAIL_RING_BYTES)
        return true;
    atomic_store_explicit(&r->out->writer_sleeps, AWAKE, memory_order_relaxed);
    return false;
}

bool crail_ring_sleep_for_bytes(struct crail_ring *r) {
    return no_bytes(r, SLEEPS);
}

bool crail_ring_sleep_for_room(struct crail_ring *r) {
    return no_room(r, SLEEPS);
}

static int nap(_Atomic uint32_t *flag) {
    struct timespec tick = {.tv_nsec = NAP_NS};
    if (syscall(SYS_futex, flag, FUTEX_WAIT, NAPS, &tick, NULL, 0) == 0 || errno == EAGAIN)
        return 0;
    return errno == ETIMEDOUT ? -EAGAIN : -errno;
}

int crail_ring_nap_for_bytes(struct crail_ring *r) {
    return no_bytes(r, NAPS) ? nap(&r->in->reader_sleeps) : 0;
}

int crail_ring_nap_for_room(struct crail_ring *r) {
    return no_room(r, NAPS) ? nap(&r->out->writer_sleeps) : 0;
}

static bool wake(_Atomic uint32_t *flag) {
    uint32_t how = atomic_load(flag) == AWAKE ? AWAKE : atomic_exchange(flag, AWAKE);
    if (how == NAPS)
        syscall(SYS_futex, flag, FUTEX_WAKE, 1, NULL, NULL, 0);
    return how == SLEEPS;
}

bool crail_ring_wake_reader(struct crail_ring *r) {
    return wake(&r->out->reader_sleeps);
}

bool crail_ring_wake_writer(struct crail_ring *r) {
    return wake(&r->in->writer_sleeps);
}

/* ---- whether to spin ------------------------------------------------------ */

bool crail_ring_may_spin(struct crail_ring_pace *p) {
    if (!p->skip)
        return true;
    p->skip--;
    return false;
}

void crail_ring_spun(struct crail_ring_pace *p, bool found) {
    if (found) {
        if (++p->good % GOOD_ENOUGH == 0 && p->penalty > PENALTY_FIRST)
            p->penalty /= 2;
        return;
    }
    p->good = 0;
    if (p->penalty < PENALTY_FIRST)
        p->penalty = PENALTY_FIRST;
    p->skip = p->penalty;
    if (p->penalty < PENALTY_MAX)
        p->penalty *= 2;
}
