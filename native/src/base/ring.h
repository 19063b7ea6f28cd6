/* A lane's bytes through shared memory: two streams, requests and replies, each with one writer and one reader. The
 * ring moves bytes and nothing else: frames, liveness and the bells by which a sleeper is woken are its users'.
 *
 * The peer is not believed. An end keeps its own counts to itself and only publishes them; what the peer publishes is
 * loaded once and bounded, and bytes are copied out before anybody looks at them. So the worst that a peer can do is
 * to make its own stream nonsense (-EPROTO). The memory is sealed: nobody can cut it short under a mapping.
 *
 * Two ways to sleep. A *nap* is a short one on a futex in the ring itself: the cheapest there is. A *sleep* is the
 * user's own, on whatever descriptor he has, and the peer is told to ring it: for those who watch other things too.
 *
 * No wake-up is lost. A sleeper stores its flag, then loads the other's count; the other stores its count, then loads
 * the flag. All four are sequentially consistent, so they have one order, and whichever store comes second is followed
 * by a load that sees the first: either the sleeper sees the bytes and stays up, or the other sees the flag and rings.
 * Whoever takes the flag down rings, so that one sleep is worth one ring; the flag is the futex, so that a nap whose
 * flag is down already does not begin. */
#ifndef CRAIL_RING_H
#define CRAIL_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CRAIL_RING_BYTES (64u << 10)   /* of each stream; longer frames pass in pieces */
#define CRAIL_RING_SPIN_NS 20000u      /* how long an end waits awake for one that thinks briefly */
#define CRAIL_RING_SPIN_NS_MAX 150000u /* no request is waited for awake for longer */

/* One stream in shared memory. A line of cache for each word, by who changes it and how often. */
struct crail_ring_stream {
    _Alignas(64) _Atomic uint64_t written; /* bytes since the start: the writer's */
    _Alignas(64) _Atomic uint64_t taken;   /* the reader's */
    _Alignas(64) _Atomic uint32_t reader_sleeps;
    _Alignas(64) _Atomic uint32_t writer_sleeps;
};

struct crail_ring_memory {
    uint32_t magic, bytes;
    struct crail_ring_stream requests, replies;
    /* The client's word for it, changed seldom: its next request will follow within so many ns (0: who knows); and on
     * which core it sits. */
    _Alignas(64) _Atomic uint32_t follows_ns, client_core;
    _Alignas(4096) uint8_t request_bytes[CRAIL_RING_BYTES];
    uint8_t reply_bytes[CRAIL_RING_BYTES];
};

/* One end. Zeroed: there is none. */
struct crail_ring {
    struct crail_ring_memory *memory;
    struct crail_ring_stream *in, *out;
    uint8_t *in_bytes, *out_bytes;
    uint64_t taken;     /* of `in`, by us */
    uint64_t written;   /* to `out`, by us */
    uint64_t out_taken; /* of `out`, by the peer, as of the last look */
};

/* Memory for a ring: a descriptor, or -errno. */
int crail_ring_create(void);
/* Maps it. The descriptor stays the caller's. -EPROTO: this is no ring of ours. */
int crail_ring_open(struct crail_ring *r, int memory_fd, bool is_server);
void crail_ring_close(struct crail_ring *r);

static inline bool crail_ring_is_open(const struct crail_ring *r) {
    return r->memory != NULL;
}

/* As read(2) and write(2) that never wait: bytes moved, 0 where nothing or nothing more can be, -EPROTO. */
ssize_t crail_ring_read(struct crail_ring *r, void *to, size_t n);
ssize_t crail_ring_write(struct crail_ring *r, const void *from, size_t n);

/* Is there something to read (or to complain about)? */
static inline bool crail_ring_readable(const struct crail_ring *r) {
    return atomic_load_explicit(&r->in->written, memory_order_acquire) != r->taken;
}

/* Has the peer copied out all that we wrote? */
static inline bool crail_ring_is_drained(const struct crail_ring *r) {
    return atomic_load_explicit(&r->out->taken, memory_order_acquire) == r->written;
}

/* Before a sleep: false if there is something to read, or to write to, after all. */
bool crail_ring_sleep_for_bytes(struct crail_ring *r);
bool crail_ring_sleep_for_room(struct crail_ring *r);
/* A nap of a tick at most. 0: look again; -EAGAIN: the tick is over; -EINTR. */
int crail_ring_nap_for_bytes(struct crail_ring *r);
int crail_ring_nap_for_room(struct crail_ring *r);
/* After a write, and after a read: wakes a peer that naps. True: it sleeps, and must be rung. */
bool crail_ring_wake_reader(struct crail_ring *r);
bool crail_ring_wake_writer(struct crail_ring *r);

/* ---- whether to spin ------------------------------------------------------ */

/* A spin that finds nothing has stood in somebody's way, perhaps the peer's own on a shared core. After one that
 * failed so many waits pass without another try; twice as many after the next. A few that found something halve that
 * again, so that who works in bursts is not punished for each pause. */
struct crail_ring_pace {
    uint32_t skip;    /* waits left without a spin */
    uint32_t penalty; /* `skip` after the next failure */
    uint32_t good;    /* spins in a row that found something */
};

bool crail_ring_may_spin(struct crail_ring_pace *p);
void crail_ring_spun(struct crail_ring_pace *p, bool found);

/* One breath between two looks: lets the sibling of this core work. */
static inline void crail_ring_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
