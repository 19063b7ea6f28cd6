/* The wide door of the native core, read by C and by cffi alike: setup, servers, statistics. What runs per
 * operation of a client goes through native/python/ instead.
 *
 * Every int returns 0 or a positive answer, or -errno, or a negated code of status.h. Outputs come last and are
 * set only on success. Functions may be called from any thread unless they say otherwise; none calls Python. */
#ifndef CRAIL_API_H
#define CRAIL_API_H

#include <stdint.h>

/* ---- the core itself ----------------------------------------------------- */

#define CRAIL_API_VERSION 1
int crail_api_version(void);
/* "NOT_FOUND" for 1001 and so on, NULL for a number that is no status. */
const char *crail_status_name(int status);
/* Is this build the test build whose guards can be switched off (CRAILPY_TEST_GUARDS_OFF)? */
int crail_test_guards(void);
/* A failpoint of a process that does not pass it in C (base/failpoint.c): 0, or -errno when it is told to fail. */
int crail_test_failpoint(const char *name);
/* What stands for a location class of this name in struct crail_options: never 0, the same everywhere. */
uint32_t crail_location(const char *name, uint32_t len);
uint64_t crail_mac(const uint8_t *key16, const void *data, uint64_t size);

/* What a lane on this host speaks through instead of its socket: sealed memory, and the bell by which the namenode is
 * woken. Both descriptors go to both ends (as pairs, in this order) and stay the caller's. */
int crail_ring_make(int *fds2);

/* One row of the namenode's database (rows.h), at an address divisible by 8: its bytes. -ENOSPC. */
int crail_row_make(uint32_t table, const void *key, uint16_t key_len, const void *value, uint32_t value_len, void *out,
                   uint32_t out_size);
/* Is this one whole row, at an address divisible by 8, and its checksum right? 0 or -EUCLEAN. */
int crail_row_verify(const void *row, uint64_t bytes);
/* Where a row lies among others, and its key as the database has it: one byte for the table, then the row's key with
 * integers turned round, then zeroes. */
typedef struct {
    uint8_t key[16];
    uint64_t begin, end; /* bytes */
} crail_row_place;
/* How many of each table there are; the index is enum crail_row_table. */
typedef struct {
    uint32_t kept[6], gone[6];
} crail_row_counts;
/* Whole rows at an address divisible by 8, in the order of the database: those that are kept, then those that are gone;
 * of several with one key the last one only. There is room for `room` of them: -ENOSPC. -EUCLEAN, -ENOMEM. */
int crail_rows_order(const void *rows, uint64_t bytes, crail_row_place *out, uint64_t room, crail_row_counts *counts);
/* How many rows these are: the room that they need, at most. -EUCLEAN. */
int64_t crail_rows_count(const void *rows, uint64_t bytes);

/* ---- namenode: one loop thread that owns the tree ------------------------ */

typedef struct crail_namenode crail_namenode;

typedef struct {
    uint64_t arena_bytes_max;
    uint64_t session_grace_ms; /* a session without any connection and without a BYE ends after this */
    uint8_t mac_key[16];
    uint32_t durability; /* enum crail_durability */
    int32_t grants_fd;   /* a file for the grant map, or -1; stays the caller's */
} crail_namenode_options;

enum crail_durability { CRAIL_DURABILITY_NONE = 0, CRAIL_DURABILITY_GROUP = 1, CRAIL_DURABILITY_SYNC = 2 };

typedef struct {
    /* metadata */
    uint64_t nodes, files, directories;
    uint64_t arena_bytes_used, arena_bytes_reserved, values_inline_bytes;
    uint64_t granules_total, granules_free, granules_used, granules_granted, granules_retiring;
    uint64_t background_pending;
    /* connections */
    uint64_t sessions, lanes, rings; /* rings: lanes that speak through one */
    uint64_t waiters, watches;       /* requests that were set aside until something changes; WATCH */
    /* since the start */
    uint64_t requests;   /* frames answered */
    uint64_t operations; /* in them */
    uint64_t replays;    /* mutating vectors answered from a lane's record */
    uint64_t gets, puts, commits, allocs;
    uint64_t bytes_in, bytes_out;
    uint64_t protocol_errors; /* connections dropped for what they sent */
    uint64_t step_ns_max;     /* longest time that the loop spent between two looks at its connections */
    uint64_t loop_cpu_ns;     /* CPU time of the loop thread */
    /* durability; all 0 where there is none */
    uint64_t epoch, epoch_durable; /* that changes of now belong to, and the last one that is durable */
    uint64_t nodes_changed;        /* since the last cut, as rows */
    uint64_t durable_lag_ns;       /* age of the oldest change that is not durable */
    uint64_t cuts;                 /* that are durable, since the start */
    uint64_t commits_failing;      /* 1: the last commit failed, and whoever changes something waits */
} crail_namenode_stats;

enum { CRAIL_EVENT_SESSION_ENDED = 1, CRAIL_EVENT_SERVER_CHANNEL_CLOSED = 2 };

typedef struct {
    uint32_t kind;
    uint32_t server; /* SERVER_CHANNEL_CLOSED: its number */
    uint64_t session;
} crail_namenode_event;

int crail_namenode_start(const crail_namenode_options *options, crail_namenode **out);
/* Ends the thread, closes every connection, frees everything. The pointer is dead afterwards. */
void crail_namenode_stop(crail_namenode *nn);

/* A session exists from here until BYE, or until it has had no connection for the grace (at most a second of it if the
 * last one was a unix socket). -EEXIST. */
int crail_namenode_session_open(crail_namenode *nn, uint64_t session);
/* Hands over a connection whose hello is done: it is lane `lane` of the session from now on. An older connection of
 * the same lane is closed. Takes the descriptor in any case. CRAIL_E_SESSION_LOST if the session is unknown.
 * ring_fds2: of crail_ring_make(), or NULL for a lane that speaks through its socket. With a ring the socket is there
 * for its end, and for the bytes by which the client is woken. */
int crail_namenode_lane_attach(crail_namenode *nn, int fd, uint64_t session, uint32_t lane, const int *ring_fds2);

/* A new incarnation of a storage server: `regions` sizes in granules, optionally the generations of each region
 * (NULL: all 0), its storage class (0..254: grants come from low ones first) and location class (crail_location(), or
 * 0), and the description that CRAIL_OP_SERVER gives to clients. *number names it for ever. */
int crail_namenode_server_add(crail_namenode *nn, uint32_t regions, const uint32_t *granules,
                              const uint64_t *const *generations, uint32_t storage_class, uint32_t location,
                              const void *description, uint32_t description_size, uint32_t *number);
/* Replaces its classes and its description (after a restart on another port). Storage class 255: no grant comes from
 * there any more. */
int crail_namenode_server_describe(crail_namenode *nn, uint32_t number, uint32_t storage_class, uint32_t location,
                                   const void *description, uint32_t size);
/* state: enum crail_meta_server_state: 1 up, 2 down, 3 lost for ever. */
int crail_namenode_server_set(crail_namenode *nn, uint32_t number, uint32_t state);
/* The retire channel of the server. Takes the descriptor. An event tells when it closes. */
int crail_namenode_server_channel(crail_namenode *nn, uint32_t number, int fd);
/* A server that was loaded is down, and its memory is of no use, until it has said what it holds. First it is told what
 * it has to keep: its live runs, region, granule and granules of each, from the `from`-th on, by place; how many, at
 * most `max` and 4096; 0: no more, or it has been here. */
int crail_namenode_server_live(crail_namenode *nn, uint32_t number, uint32_t from, uint32_t *out, uint32_t max);
/* Then it says what it has (crail_storage_retire_others()): the generations of its `count` granules, one region behind
 * the other, and its busy runs. It is up now. *lost: so many live extents are not there any more. -EINVAL: it is not
 * waited for, or has other granules; -EPROTO: those are no such runs. */
int crail_namenode_server_recovered(crail_namenode *nn, uint32_t number, const uint64_t *generations, uint64_t count,
                                    const uint32_t *busy, uint32_t busy_n, uint32_t *lost);
/* The granule counts of one server, other fields 0. */
int crail_namenode_server_stats(crail_namenode *nn, uint32_t number, crail_namenode_stats *out);

/* Rows of an earlier life (rows.h), in pieces of whole rows at addresses divisible by 8, sessions before lanes; before
 * anything else is done. -EUCLEAN with a sentence in `why`, and then the namenode is of no more use. */
int crail_namenode_load(crail_namenode *nn, const void *rows, uint64_t bytes, char *why, uint32_t why_size);

typedef struct {
    uint64_t nodes, sessions, servers, grants, lanes;
    uint64_t orphans;   /* nodes of trees that were being removed; they go */
    uint64_t ownerless; /* nodes whose session or job had ended; they go */
    uint64_t lanes_dropped;
} crail_namenode_loaded;
int crail_namenode_load_end(crail_namenode *nn, crail_namenode_loaded *out, char *why, uint32_t why_size);
/* Cuts, for one thread that commits them. Waits until somebody waits for a cut: 1; 0: nobody in this time; -ECANCELED:
 * crail_namenode_cut_wake() was called. */
int crail_namenode_cut_wait(crail_namenode *nn, uint32_t timeout_ms);
void crail_namenode_cut_wake(crail_namenode *nn);

typedef struct {
    uint64_t epoch;
    const void *rows[2]; /* no key is in both; valid until crail_namenode_cut_done() says that they are durable */
    uint64_t bytes[2];
} crail_namenode_cut;
/* Makes a cut and waits until it is written: 1; 0: nothing has changed. One that is not done is given again. -ENOMEM,
 * -ETIMEDOUT. */
int crail_namenode_cut_make(crail_namenode *nn, crail_namenode_cut *out);
/* The cut of this epoch is durable; or it is not, and there is to be another try: until that is reported no change is
 * acknowledged. -EINVAL. */
int crail_namenode_cut_done(crail_namenode *nn, uint64_t epoch, int ok);
/* Closes every lane's connection; their sessions stay. So that nothing changes any more before the last cut. */
int crail_namenode_hang_up(crail_namenode *nn);
/* Asks for the next cut if something is not durable; *epoch must be, then all is that was done before. 0: it is. */
int crail_namenode_cut_want(crail_namenode *nn, uint64_t *epoch);

int crail_namenode_stats_read(crail_namenode *nn, crail_namenode_stats *out);
/* An eventfd that is readable while events wait. Belongs to the namenode. */
int crail_namenode_event_fd(crail_namenode *nn);
/* Takes up to `max` events; returns how many. */
int crail_namenode_events_take(crail_namenode *nn, crail_namenode_event *out, uint32_t max);
/* The full invariant check, on the loop thread (stops service meanwhile). 0 or -EUCLEAN and a sentence. */
int crail_namenode_check(crail_namenode *nn, char *why, uint32_t why_size);

/* ---- storage server: one loop thread that serves regions over TCP and retires extents ---------------------- */

typedef struct crail_storage crail_storage;

typedef struct {
    uint64_t bytes_in, bytes_out, reads, writes, refused;
    uint64_t retires_ordered, retires_confirmed, retires_waiting;
    uint64_t use_tables, connections;
    uint64_t protocol_errors;
    uint64_t loop_cpu_ns;
    uint64_t flushes;
    uint64_t disk_errors; /* things that the disk did not do */
    uint64_t disk_errno;  /* why not, the first time; 0: it never failed. It counts as failed from then on */
} crail_storage_stats;

/* `number` is not known before registration; see crail_storage_identity(). */
int crail_storage_start(crail_storage **out);
void crail_storage_stop(crail_storage *s);

/* A region: `fd` of its memory (allocated, `granules` * 4096 bytes) and `generations_fd` of its generation file
 * (`granules` * 8 bytes). Both are mapped read-write and the descriptors duplicated; the caller keeps its own.
 * Regions are numbered 0, 1, ... in the order of the calls. Returns the number. Only before the first connection.
 * populate: touch the whole mapping now (with huge pages where the file system gives them). */
int crail_storage_region_add(crail_storage *s, int fd, int generations_fd, uint32_t granules, int populate);
/* A region in a file or on a device instead, which no client maps: its bytes lie at `data_at` and its generations, 8
 * bytes each, at `generations_at` of `fd`, both multiples of 4096, and so are the lengths that are taken there. `fd` is
 * the same for all regions of a server, open for reading and writing, with O_DIRECT where that can be had; the caller
 * keeps its own. -EINVAL: another fd, or not all of it is there. */
int crail_storage_region_add_file(crail_storage *s, int fd, uint64_t generations_at, uint64_t data_at,
                                  uint32_t granules);
/* An eventfd that is readable once the disk has failed; belongs to the storage. -1 without file regions. */
int crail_storage_failed_fd(crail_storage *s);
/* Copies the generations of the region, `granules` of them, to `out`. */
int crail_storage_generations(crail_storage *s, uint32_t region, uint64_t *out, uint32_t granules);

/* What registration gave: the number of this incarnation and the key of extent keys. */
int crail_storage_identity(crail_storage *s, uint32_t number, const uint8_t *mac_key16);
/* A client's data connection, its hello done. Takes the descriptor. -EMFILE: there are too many (16384, or what
 * RLIMIT_NOFILE leaves when 256 descriptors are kept for all else). */
int crail_storage_data_attach(crail_storage *s, int fd);
/* The retire channel to the namenode. Takes the descriptor; replaces an older one. */
int crail_storage_channel(crail_storage *s, int fd);

/* For a namenode that was started again and knows only the `n` runs of `live` (region, granule and granules of each, by
 * place and apart): retires all else. The retire channel ends; the generations of all granules outside are raised, in
 * steps, and, of file regions, durable when this returns. Then how many runs outside are busy because somebody is using
 * them: they are to be ordered; where the disk has failed, all that is outside. Again is harmless. -EINVAL: not such
 * runs; -ETIMEDOUT: the disk; -ENOMEM. */
int crail_storage_retire_others(crail_storage *s, const uint32_t *live, uint32_t n);
/* The busy runs of the last time, likewise: up to `max`; how many. A confirmed one has 0 granules. */
int crail_storage_busy(crail_storage *s, uint32_t *out, uint32_t max);

/* A use table for a process that maps the regions: creates `path` (0600), and returns a descriptor with an
 * open file description of its own that holds the shared lock: pass it on, then close it. The table counts until
 * nobody holds that lock. *handle names it. */
int crail_storage_use_create(crail_storage *s, const char *path, uint64_t session, uint32_t *handle);
/* Takes a table that an earlier process left at `path`. -ENOENT, -EINVAL; 1 and the file removed if nobody holds it. */
int crail_storage_use_adopt(crail_storage *s, const char *path);
/* The socket of the holder has closed: drop the table and its file if its lock is free; else keep it and look again
 * whenever it matters. */
int crail_storage_use_closed(crail_storage *s, uint32_t handle);

int crail_storage_stats_read(crail_storage *s, crail_storage_stats *out);

/* ---- client: set up here, used through the hot door ----------------------- */

typedef struct crail_client crail_client;

typedef struct {
    uint32_t lanes_max;
    uint32_t inline_max;   /* bytes up to which a value travels with its request */
    uint32_t grants_ahead; /* 1: keep extents granted ahead */
} crail_client_options;

typedef struct {
    uint64_t requests, retries, reconnects;
    uint64_t stale_locations; /* generation mismatches seen before or while touching an extent */
    uint64_t bytes_in, bytes_out;
    uint64_t slots_used; /* use slots named right now */
    uint64_t lanes;
    uint64_t grants_held;
} crail_client_stats;

int crail_client_new(const crail_client_options *options, crail_client **out);
/* No new calls; lanes close, memory stays mapped until the last view has gone. May be called twice. */
void crail_client_close(crail_client *c);
/* After close, and after the last use: the memory. Also when a forked child drops its parent's client. */
void crail_client_free(crail_client *c);

/* A lane: a connection to the namenode whose hello is done. The number is the one the hello named; a lane that lost
 * its connection gets a new one under the same number. Takes the descriptor. `fresh`: the session is new, so the
 * lane counts from 1 again and holds no grants. ring_fds2: as crail_namenode_lane_attach(). */
int crail_client_lane_add(crail_client *c, uint32_t lane, int fd, int fresh, const int *ring_fds2);

/* A storage server on this host. Descriptors are duplicated or mapped; the caller keeps its own.
 * `region_fds` open for reading only, `generation_fds` likewise, `use_fd` for writing. */
int crail_client_server_shm(crail_client *c, uint32_t server, uint32_t regions, const int *region_fds,
                            const int *generation_fds, const uint32_t *granules, int use_fd);
/* The same regions, open for writing: needed before the first put. */
int crail_client_server_writable(crail_client *c, uint32_t server, uint32_t regions, const int *region_fds);
/* A data connection of one lane to a server over TCP. Takes the descriptor. `is_disk`: what is written there is durable
 * once it was flushed. */
int crail_client_server_tcp(crail_client *c, uint32_t server, uint32_t lane, int fd, int is_disk);
/* This server is known and neither shm nor tcp can reach it at the moment: calls get CRAIL_E_UNAVAILABLE. */
int crail_client_server_drop(crail_client *c, uint32_t server);

/* What the cluster promises of a change whose call does not say: is it sync? */
int crail_client_promise(crail_client *c, int is_sync);

int crail_client_stats_read(crail_client *c, crail_client_stats *out);
/* The table of functions that the hot door is bound to (struct crail_hot_table of native/src/client/hot.h). */
const void *crail_hot_table(void);

/* ---- probes: the machine's own limits, for `crailpy bench` ------------------ */

/* One end of a connected stream socket in another process: reads a request, sends what it asks for, until the other
 * end closes. 0 at a clean end. */
int crail_probe_echo_serve(int fd);

typedef struct crail_probe crail_probe;
/* The other end, with two private, touched buffers of `bytes_max`. The caller keeps `fd`, and closes it. */
int crail_probe_open(int fd, uint64_t bytes_max, crail_probe **out);
void crail_probe_close(crail_probe *p);
/* `count` times: send request_bytes (at least 16, in pieces of 1 MiB), receive reply_bytes (at least 1); the time of
 * each to ns[]. -EINVAL for sizes beyond bytes_max. */
int crail_probe_round_trips(crail_probe *p, uint64_t request_bytes, uint64_t reply_bytes, uint32_t count, uint64_t *ns);

typedef struct crail_probe_memory crail_probe_memory;
/* Two private, touched areas, of half of bytes_total each. */
int crail_probe_memory_open(uint64_t bytes_total, crail_probe_memory **out);
void crail_probe_memory_close(crail_probe_memory *m);
void *crail_probe_memory_source(crail_probe_memory *m);
void *crail_probe_memory_target(crail_probe_memory *m);
/* `count` times memcpy of `bytes` from one area to the other, going on where the last copy ended and round within
 * the first `span` bytes of both; the time of each to ns[]. */
int crail_probe_memory_copies(crail_probe_memory *m, uint64_t bytes, uint64_t span, uint32_t count, uint64_t *ns);

/* Sends the frames (wire.h) that lie one behind the other in `frames`, each after the reply to the one before, all
 * of it `rounds` times, over a lane whose hello is done. */
int crail_probe_frames(int fd, const void *frames, uint64_t size, uint32_t rounds, uint64_t *operations,
                       uint64_t *failures);

#endif
