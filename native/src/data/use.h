/* Use slots and generations: the shared memory of the reuse rule (DESIGN of docs/ARCHITECTURE.md, "The reuse rule").
 *
 * Two kinds of files in the directory of a storage server. Clients map both; the server maps the generations, and reads
 * the tables with pread(), because their holders could truncate them (usetable.c has the argument about the fences):
 *
 *   gen-<region>      uint64_t per granule. Only the storage server writes. The generation of an extent is the
 *                     one of its first granule.
 *   use-<number>      one use table per attached process: struct crail_use_table. Only its holder writes.
 *
 * Whoever touches an extent: names it in a slot, fences, compares the generation, touches, clears the slot.
 * Whoever retires an extent: raises the generation, fences, looks at every slot of every living table.
 * The two fences make one of the two sides see the other (Dekker): either the toucher sees the new generation
 * and keeps off, or the retirer sees the slot and waits. The same argument as for hazard pointers (Michael 2004).
 *
 * A table lives as long as the kernel says that somebody holds it: the server takes a shared flock() on an open
 * file description of its own, hands that description to the client, and closes its copy. The lock goes when the
 * last process that inherited the description has ended, even if the server was restarted in between. */
#ifndef CRAIL_USE_H
#define CRAIL_USE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CRAIL_USE_MAGIC 0x31455355204c5243ull
#define CRAIL_USE_SLOTS 4096u

struct crail_use_table {
    uint64_t magic;
    uint64_t session;
    _Atomic uint32_t high_water; /* slots ever used; raised before a slot beyond it is set, never lowered */
    uint32_t slots;              /* CRAIL_USE_SLOTS */
    uint64_t reserved[5];
    _Atomic uint64_t slot[CRAIL_USE_SLOTS]; /* 0, or crail_use_word() */
};
_Static_assert(sizeof(struct crail_use_table) == 64 + 8 * CRAIL_USE_SLOTS, "shared layout");

static inline uint64_t crail_use_word(uint32_t region, uint32_t granule) {
    return (((uint64_t)region << 32) | granule) + 1;
}

/* In the test build each guard can be switched off by name, to show that the attack on it bites. */
#ifdef CRAIL_TEST_GUARDS
bool crail_guard_on(const char *name);
/* What this thing that the disk is asked for fails with: -errno, or 0 (guards.c). */
int crail_fault(const char *name);
#else
static inline bool crail_guard_on(const char *name) {
    (void)name;
    return true;
}
static inline int crail_fault(const char *name) {
    (void)name;
    return 0;
}
#endif

/* Names the extent in slot `i` and says whether its generation still holds. On false the slot is clear again. */
static inline bool crail_use_enter(struct crail_use_table *t, uint32_t i, uint32_t region, uint32_t granule,
                                   uint64_t generation, const _Atomic uint64_t *generations) {
    uint32_t high = atomic_load_explicit(&t->high_water, memory_order_relaxed);
    while (high <= i && !atomic_compare_exchange_weak(&t->high_water, &high, i + 1)) {
    }
    if (crail_guard_on("slot"))
        atomic_store_explicit(&t->slot[i], crail_use_word(region, granule), memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    if (!crail_guard_on("generation") ||
        atomic_load_explicit(&generations[granule], memory_order_acquire) == generation)
        return true;
    atomic_store_explicit(&t->slot[i], 0, memory_order_release);
    return false;
}

static inline void crail_use_leave(struct crail_use_table *t, uint32_t i) {
    atomic_store_explicit(&t->slot[i], 0, memory_order_release);
}

#endif
