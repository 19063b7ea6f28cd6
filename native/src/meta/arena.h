/* The arena: one memfd in which everything of the namespace lies, so that it can be shared or remapped as a whole.
 * Records are named by crail_ref, their offset in units of 16 bytes; 0 names nothing. Owned by one thread.
 *
 * The file is cut into chunks of 64 KiB. A chunk holds records of one size class, or is one record by itself.
 * Invariant: a chunk is in the `partial` list of its class exactly if it has room and is in use. */
#ifndef CRAIL_META_ARENA_H
#define CRAIL_META_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t crail_ref;

#define CRAIL_ARENA_CHUNK 65536u
#define CRAIL_ARENA_SMALL_MAX 4096u /* bytes; above this only CRAIL_ARENA_CHUNK itself can be had */
#define CRAIL_ARENA_CLASSES 80u     /* 16..1024 by 16, ..2048 by 128, ..4096 by 256 */
#define CRAIL_ARENA_BYTES_MAX (64ull << 30)

struct crail_arena_chunk {
    uint32_t class;      /* 1..CRAIL_ARENA_CLASSES, one more: one record of a whole chunk; 0: free */
    uint32_t used;       /* living records */
    uint32_t fresh;      /* records ever handed out; those above were never touched */
    crail_ref free;      /* head of the records given back, linked through their first four bytes */
    uint32_t prev, next; /* chunk numbers, in the partial list of the class or the list of free chunks */
};

struct crail_arena {
    uint8_t *base;
    int fd;
    uint32_t chunks, chunks_max;
    uint64_t file_bytes, map_bytes;
    uint64_t bytes_used; /* living records, rounded to their class */
    uint64_t bytes_reserved;
    struct crail_arena_chunk *chunk; /* one per chunk of the mapping, touched lazily */
    uint32_t partial[CRAIL_ARENA_CLASSES + 1];
    uint32_t free_chunks; /* chunk 0 is never a member, so 0 ends every list */
};

/* Reserves `bytes_max` of address space. The first `head_bytes` after chunk 0 are the caller's for ever, zeroed.
 * 0 or -errno. */
int crail_arena_open(struct crail_arena *a, uint64_t bytes_max, uint32_t head_bytes);
void crail_arena_close(struct crail_arena *a);

/* A record of at least `bytes` (1..4096, or CRAIL_ARENA_CHUNK), not cleared. 0 when the arena is full. */
crail_ref crail_arena_alloc(struct crail_arena *a, uint32_t bytes);
/* Gives it back; `bytes` as they were asked for. */
void crail_arena_free(struct crail_arena *a, crail_ref ref, uint32_t bytes);
/* What a record of `bytes` costs. */
uint32_t crail_arena_cost(uint32_t bytes);

static inline void *crail_arena_at(const struct crail_arena *a, crail_ref ref) {
    return a->base + (uint64_t)ref * 16;
}

/* Do `bytes` from there lie in memory that the arena has taken? They need not be a record: for those who only peek. */
static inline bool crail_arena_holds(const struct crail_arena *a, crail_ref ref, uint32_t bytes) {
    return (uint64_t)ref * 16 + bytes <= (uint64_t)a->chunks * CRAIL_ARENA_CHUNK;
}

#endif
