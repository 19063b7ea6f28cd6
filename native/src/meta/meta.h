/* The metadata engine: the namespace, the granules, the grants. One thread owns it; it does no I/O, takes no lock,
 * never blocks, and knows nothing of connections (the rpc room calls it).
 *
 * Everything it keeps (nodes, names, inline values, indexes, extent lists) lies in one memfd arena and refers to
 * each other by 32-bit offsets in units of 16 bytes, never by pointer.
 *
 * Bounds: crail_meta_execute() takes at most about 20 us for any operation; what would take longer (freeing a tree,
 * building the ordered index of a large directory) is done by crail_meta_step() in pieces. */
#ifndef CRAIL_META_H
#define CRAIL_META_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crail/wire.h"

struct crail_meta;
struct crail_meta_session; /* the grants of one session */
struct crail_buf;          /* base/buf.h: growing bytes of a reply */

struct crail_meta_options {
    uint64_t arena_bytes_max; /* refuse with CRAIL_E_NO_MEMORY beyond; at most 64 GiB */
    uint64_t hash_seed;
    uint8_t mac_key[16]; /* shared with the storage servers; see crail_extent_key() */
};

/* 0, -ENOMEM, -errno of memfd_create or mmap. */
int crail_meta_new(const struct crail_meta_options *options, struct crail_meta **out);
void crail_meta_free(struct crail_meta *m);

/* ---- sessions ------------------------------------------------------------ */

int crail_meta_session_open(struct crail_meta *m, uint64_t id, struct crail_meta_session **out);
/* Every grant of the session is freed (that is: retired first), every hold ends, in steps where they are many. The
 * pointer is dead afterwards. */
void crail_meta_session_end(struct crail_meta *m, struct crail_meta_session *s);

/* ---- operations ---------------------------------------------------------- */

/* The request asks for something that crail_meta_step() has still to prepare (the index behind a listing):
 * nothing was written to `reply`; call again after some steps. */
#define CRAIL_META_AGAIN 1
/* The request has CRAIL_OPF_WAIT and what it waits for is not there: nothing was written to `reply`; call again when
 * something changed at its path, and answer CRAIL_E_DEADLINE when its time is over. */
#define CRAIL_META_WAIT 2
/* Among the flags of such a request when it is called again. */
#define CRAIL_META_OPF_AGAIN (1u << 15)
/* A change that is no event: but who waits at the path should look again. */
#define CRAIL_CHANGE_NONE ((enum crail_event_kind)0)

/* An ALLOC without room evicts and fails, and does well to come again when the memory is back. But a reader may keep
 * it: so one that comes after this time evicts more, while there is something to evict. */
#define CRAIL_META_EVICT_AGAIN_NS (50ll * 1000000)
bool crail_meta_may_evict(const struct crail_meta *m);

/* Executes one operation and appends exactly one struct crail_result, its data and padding, to `reply`. Bad input
 * of every kind becomes a status in that result. Returns 0, CRAIL_META_AGAIN (only for CRAIL_OP_LIST) or
 * CRAIL_META_WAIT; -ENOMEM if the reply buffer could not grow, and then nothing was changed. The caller has checked
 * that path, options and data lie inside the frame, and nothing else. `options` counts if options_len is not 0, and
 * need not be aligned. PING, SERVER and BYE never come here: they belong to the rpc room. `now_ns` is CLOCK_REALTIME.
 */
int crail_meta_execute(struct crail_meta *m, struct crail_meta_session *s, const struct crail_op *op, const char *path,
                       const void *options, const void *data, int64_t now_ns, struct crail_buf *reply);

/* Fetches what a later crail_meta_execute() of a read will touch; called once for each operation of a vector,
 * CRAIL_META_AHEAD of them before the one that is executed next. */
#define CRAIL_META_AHEAD 20u
void crail_meta_prefetch(struct crail_meta *m, const struct crail_op *op, const char *path);

/* Somebody who wants to know what changes. Called within crail_meta_execute(), crail_meta_step() and
 * crail_meta_session_end(), after each change; must not call back into the engine. The path is not terminated and
 * lasts as long as the call. Of a tree that goes only the top is told; a rename tells the DELETE of the source and the
 * PUT of the target; CRAIL_CHANGE_NONE means that those who wait there should look again. A node below so long a path
 * that no operation can name it is not told. */
struct crail_meta_listener {
    void *ctx;
    void (*changed)(void *ctx, enum crail_event_kind kind, const char *path, uint32_t len, uint64_t version);
    /* The last `count` names of the path are of directories that were made on the way to a node, which is told next.
     * Their versions follow each other from `version` on. Instead of a PUT for each. */
    void (*made)(void *ctx, const char *path, uint32_t len, uint32_t count, uint64_t version);
};
void crail_meta_listener_set(struct crail_meta *m, struct crail_meta_listener listener);
/* +1, -1: it is called while the sum is above 0. */
void crail_meta_listen(struct crail_meta *m, int by);

/* Sets the engine's clock (CLOCK_REALTIME): what has expired by then goes in the next steps. Each operation sets it
 * too. */
void crail_meta_clock(struct crail_meta *m, int64_t now_ns);
/* When crail_meta_step() has to be called even if nothing else happens; INT64_MAX: never. */
int64_t crail_meta_next_expiry(const struct crail_meta *m);

/* Does background work for about `budget_ns`. True if some is left. */
bool crail_meta_step(struct crail_meta *m, uint64_t budget_ns);

/* ---- storage servers and granules ---------------------------------------- */

struct crail_meta_region {
    uint32_t granules;
    uint32_t reserved;
};

struct crail_meta_place {
    uint32_t location;     /* crail_location() of its location class, 0: nobody said */
    uint8_t storage_class; /* 0..254: grants come from low ones first */
};

/* A new incarnation of a server with regions 0..n-1, all granules of which are free at the generations given
 * (`generations[r]` is an array of `regions[r].granules`, or NULL for all zero). *number (1, 2, ...) names it for
 * ever. -ENOMEM, -EINVAL (no region, or more than 64; no storage class). */
int crail_meta_server_add(struct crail_meta *m, const struct crail_meta_region *regions, uint32_t n,
                          const uint64_t *const *generations, struct crail_meta_place place, uint32_t *number);

/* It lies elsewhere now, or its medium is another. Storage class CRAIL_CLASS_ANY closes it: no grant comes from there,
 * all else goes on. -ENOENT for an unknown number. */
int crail_meta_server_place(struct crail_meta *m, uint32_t number, struct crail_meta_place place);

enum crail_meta_server_state {
    CRAIL_SERVER_UP = 1,   /* grants come from it */
    CRAIL_SERVER_DOWN = 2, /* connection lost: no new grants; what it holds may come back with it */
    CRAIL_SERVER_LOST = 3, /* this incarnation will not return: reading its extents is CRAIL_E_DATA_LOST, and
                              freeing them just forgets them. Final. */
};
/* -ENOENT for an unknown number. On UP every retire order that was not confirmed is due again. */
int crail_meta_server_set(struct crail_meta *m, uint32_t number, enum crail_meta_server_state state);

/* Takes up to `max` retire orders that are due for the server. Each stays pending until it is confirmed.
 * A freed extent becomes due at once; its generation + 1 is in the order. */
uint32_t crail_meta_retires_take(struct crail_meta *m, uint32_t number, struct crail_retire *out, uint32_t max);
/* How many are due on this server and not yet taken, in extents and granules. */
void crail_meta_retires_due(struct crail_meta *m, uint32_t number, uint32_t *extents, uint64_t *granules);
/* The server confirms: the granules are free from now on. -EPROTO for what was not ordered; nothing changes then. */
int crail_meta_retires_done(struct crail_meta *m, uint32_t number, const struct crail_retire *done, uint32_t n);

/* ---- facts --------------------------------------------------------------- */

struct crail_meta_stats {
    uint64_t nodes, files, directories; /* directories: containers of every kind, the root too; files: all else */
    uint64_t arena_bytes_used;          /* by living records, rounding included */
    uint64_t arena_bytes_reserved;      /* taken from the machine */
    uint64_t granules_total, granules_free, granules_used, granules_granted, granules_retiring;
    uint64_t values_inline_bytes;
    uint64_t holds, jobs;
    uint64_t background_pending; /* nodes of removed trees still to be freed + indexes in building */
};
void crail_meta_stats(const struct crail_meta *m, struct crail_meta_stats *out);
/* Per server: the same five granule counts. -ENOENT. */
int crail_meta_server_stats(const struct crail_meta *m, uint32_t number, struct crail_meta_stats *out);

/* Walks everything and checks every invariant: tree, hash, index, allocator, accounting. Slow; for tests and
 * fsck. 0, or -EUCLEAN with a sentence in `why`. */
int crail_meta_check(const struct crail_meta *m, char *why, size_t why_bytes);

#endif
