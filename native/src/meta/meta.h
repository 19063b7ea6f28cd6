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
struct crail_row;          /* crail/rows.h */

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
/* Of the COLUMN that was the last to be answered so: at least so many children have to come. */
uint64_t crail_meta_missing(const struct crail_meta *m);
/* Among the flags of such a request when it is called again. */
#define CRAIL_META_OPF_AGAIN (1u << 15)
/* A change that is no event: but who waits at the path should look again. */
#define CRAIL_CHANGE_NONE ((enum crail_event_kind)0)

/* An ALLOC without room evicts and fails, and does well to come again when the memory is back. But a reader may keep
 * it: so one that comes after this time evicts more, while there is something to evict. */
#define CRAIL_META_EVICT_AGAIN_NS (50ll * 1000000)
bool crail_meta_may_evict(const struct crail_meta *m);

/* Executes one operation and appends exactly one struct crail_result, its data and padding, to `reply`. Bad input
 * of every kind becomes a status in that result. Returns 0, CRAIL_META_AGAIN (only for CRAIL_OP_LIST, and
 * CRAIL_OP_COLUMN without WAIT) or CRAIL_META_WAIT; -ENOMEM if the reply buffer could not grow, and then nothing was
 * changed. The caller has checked that path, options and data lie inside the frame, and nothing else. `options` counts
 * if options_len is not 0, and need not be aligned. PING, SERVER and BYE never come here: they belong to the rpc room.
 * `now_ns` is CLOCK_REALTIME.
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

/* ---- durability ------------------------------------------------------------
 *
 * docs/adr/0004-durable-metadata.md. The engine notes what changes; a cut writes each changed node, session and server
 * once, as it was when the cut began, however long the writing takes. Rows are those of crail/rows.h, tables NODE,
 * SESSION and SERVER; the rest is the rpc room's. */

/* Turns this on: right after crail_meta_new(). Without it nothing of it costs more than a branch. `grants_fd` is the
 * grant map (see grantmap.c), which is sized here and read by crail_meta_load_end(); it stays the caller's, who may
 * close it. -1: there is none. 0, -ENOMEM, -errno of the file, -EUCLEAN: it is no grant map. */
int crail_meta_durable(struct crail_meta *m, int grants_fd);

/* The epoch that a change made now belongs to: 1 at first, one more with each cut. */
uint64_t crail_meta_epoch(const struct crail_meta *m);
/* The epochs in which anything last left its place, by whatever cause, and last came to another one: what is absent, or
 * was moved, has no version that would tell. 0: never. */
uint64_t crail_meta_removed(const struct crail_meta *m);
uint64_t crail_meta_moved(const struct crail_meta *m);
/* Rows that a cut beginning now would have; 0: it would be empty. */
uint64_t crail_meta_changed(const struct crail_meta *m);

/* A cut of all that has changed begins. Rows are appended to `rows`, which has to live until crail_meta_cut_step() has
 * returned false: in here, in crail_meta_cut_step(), and whenever something is about to change that was not written
 * yet. Sessions and servers are written here, nodes later. -EBUSY: one is being written; -ENOMEM: nothing began. */
int crail_meta_cut_begin(struct crail_meta *m, struct crail_buf *rows);
/* Writes for about `budget_ns`. True if some is left. */
bool crail_meta_cut_step(struct crail_meta *m, uint64_t budget_ns);
/* Of the latest cut that came to its end: 0; -ENOMEM: `rows` could not grow and is as long as when it began, and what
 * it should have held belongs to the next one. */
int crail_meta_cut_result(const struct crail_meta *m);
/* Are there extents that were freed, and wait for that? */
bool crail_meta_gated(const struct crail_meta *m);
/* Every change of an epoch up to this one is durable: extents that were freed in them may be retired. */
void crail_meta_durable_up_to(struct crail_meta *m, uint64_t epoch);

/* What its registration said, in the server's row. 0, -ENOMEM, -ENOENT, -EINVAL (longer than CRAIL_NOTE_MAX). */
#define CRAIL_NOTE_MAX 65536u
int crail_meta_server_note(struct crail_meta *m, uint32_t number, const void *note, uint32_t bytes);

/* Where counting goes on. The caller keeps them below what is durable as their bounds. */
struct crail_meta_counters {
    uint64_t last_id, last_version, last_job;
};
void crail_meta_counters(const struct crail_meta *m, struct crail_meta_counters *out);
/* They only go up. */
void crail_meta_counters_set(struct crail_meta *m, const struct crail_meta_counters *at_least);
/* Nothing expires before this time; what is undone of an earlier life stays granted a moment longer. */
void crail_meta_ends_after(struct crail_meta *m, int64_t ns);
/* When that is taken back of which a death has left no node; 0: there is none. */
int64_t crail_meta_undone_until(const struct crail_meta *m);
/* It stays as long as changes may wait for a commit: who says again that it is there may be among them. */
void crail_meta_undone_keep(struct crail_meta *m, bool is_kept);

/* ---- an earlier life ---------------------------------------------------------
 *
 * Between crail_meta_durable() and the first operation: begin, every row in any order, end. After an error only
 * crail_meta_free() is left to do. */

struct crail_meta_load_listener {
    void *ctx;
    /* Called within crail_meta_load_end(), servers first, by number; they must not call back into the engine. 0, or
     * what crail_meta_load_end() fails with. `granules` is of `regions` numbers. */
    int (*server)(void *ctx, uint32_t number, uint32_t state, const uint32_t *granules, uint32_t regions,
                  struct crail_meta_place place, const void *note, uint32_t note_bytes);
    int (*session)(void *ctx, uint64_t id, struct crail_meta_session *s);
};

struct crail_load_report {
    uint64_t nodes, sessions, servers, grants;
    uint64_t orphans;   /* nodes of trees that were being removed: they go in steps */
    uint64_t ownerless; /* nodes whose session or job had ended: they go, too */
};

/* 0 or -ENOMEM. */
int crail_meta_load_begin(struct crail_meta *m, struct crail_meta_load_listener listener);
/* One row, whose crc is right. -EUCLEAN with a sentence that names it; -EINVAL: not of the engine's tables; -ENOMEM. */
int crail_meta_load(struct crail_meta *m, const struct crail_row *row, char *why, size_t why_bytes);
/* Links and counts everything. 0; -EUCLEAN with a sentence that names the first thing that is wrong; -ENOMEM. */
int crail_meta_load_end(struct crail_meta *m, struct crail_load_report *report, char *why, size_t why_bytes);

/* A server that was loaded is DOWN, and what lies between its runs is unknown (and counts as retiring). When it
 * registers again: it is told of its runs, retires all else by itself, and then says so. */
struct crail_live {
    uint32_t region, granule, granules, reserved;
};
/* Up to `max` runs, the `from`-th first, by region and granule. How many; 0: no more, or not such a server. */
uint32_t crail_meta_server_live(const struct crail_meta *m, uint32_t number, uint32_t from, struct crail_live *out,
                                uint32_t max);
/* It has retired all but those, and these are its generations; `busy` are runs outside which somebody still touches:
 * they are ordered again. *lost: live runs whose generation is not the one they had: reading their nodes is
 * CRAIL_E_DATA_LOST from now on. The server is UP. -ENOENT, -EINVAL (not loaded, or recovered already), -EPROTO (a busy
 * run that is none; nothing changed), -ENOMEM. */
int crail_meta_server_recovered(struct crail_meta *m, uint32_t number, const uint64_t *const *generations,
                                const struct crail_retire *busy, uint32_t busy_n, uint32_t *lost);

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
