/* The client core: a pool of lanes, the storage servers within reach, and the copy between them.
 *
 * Who may call what: the pool and the table of servers are guarded by client->lock. A lane belongs to the thread
 * that checked it out until it checks it in; nothing of a lane is locked. Attached servers are never taken apart
 * before the client is freed, so that a pointer to one stays good without a lock.
 *
 * A client lives as long as its owner, any lane that is checked out, and any view into its mappings (`refs`). */
#ifndef CRAIL_CLIENT_H
#define CRAIL_CLIENT_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ring.h"
#include "crail/api.h"
#include "crail/status.h"
#include "crail/wire.h"
#include "data/use.h"

#define CRAIL_CLIENT_LANES_MAX 256u
#define CRAIL_CLIENT_SERVERS_MAX 1024u
#define CRAIL_CLIENT_REGIONS_MAX 64u
#define CRAIL_LANE_GRANTS 8u
#define CRAIL_LANE_GRANT_BYTES_MAX (32u << 20)
#define CRAIL_LANE_DATA_CONNECTIONS 64u
#define CRAIL_COPY_PIECE (16u << 20) /* bytes copied before the caller may look at its signals */
#define CRAIL_POPULATE_BLOCK (2u << 20)
#define CRAIL_SLOTS_FOR_CALLS (2 * CRAIL_CLIENT_LANES_MAX) /* use slots that views leave free */

/* Answers of the client core beside -errno and status codes: what the caller must do before it goes on. */
enum crail_client_need {
    CRAIL_NEED_SERVER = 1,     /* attach io->server for reading */
    CRAIL_NEED_WRITABLE = 2,   /* the same for writing */
    CRAIL_NEED_CALL_AGAIN = 3, /* a piece is done; look at signals and come back */
};

/* One mapped view of a region: for reading, or for writing. */
struct crail_mapping {
    uint8_t *base;
    _Atomic uint64_t *populated; /* a bit per CRAIL_POPULATE_BLOCK */
};

struct crail_client_region {
    uint64_t bytes;
    uint32_t granules;
    struct crail_mapping readable, writable;
    const _Atomic uint64_t *generations;
};

/* A storage server within reach by shared memory. Immutable after it was published, but for the writable mappings
 * (set once) and the free slots (guarded by slots_lock). */
struct crail_attachment {
    uint32_t server;
    uint32_t regions;
    struct crail_client_region region[CRAIL_CLIENT_REGIONS_MAX];
    int use_fd;
    struct crail_use_table *use;
    pthread_mutex_t slots_lock;
    uint32_t slots_free_count;
    uint16_t slots_free[CRAIL_USE_SLOTS];
    atomic_bool is_writable;
    atomic_bool is_dropped;
};

struct crail_data_connection {
    uint32_t server;
    int fd;
    bool is_disk; /* what is written there is durable after a FLUSH */
};

struct crail_lane {
    crail_client *client;
    uint32_t number;
    int fd;                 /* -1: broken, needs a new connection */
    struct crail_ring ring; /* if open, the bytes go through it, and the socket only wakes us, or ends */
    int bell;               /* the namenode's, or -1 */
    struct crail_ring_pace pace;
    uint32_t density;       /* requests of late that were sent soon after the reply before, less those that were not */
    uint32_t core;          /* as told to the namenode */
    uint32_t long_thoughts; /* of late, between reply and request */
    uint32_t follows_ns;    /* the present request is one of a dense stream, which the namenode was told */
    bool may_spin;          /* the present request's reply was not waited for awake yet */
    bool was_rung;          /* it found the namenode asleep */
    int64_t replied_ns;     /* when the last reply was here; kept with a ring only */
    bool checked_out;
    bool is_lost;     /* a request ended without its reply: nobody here knows what the namenode executed last */
    bool is_mutating; /* the frame in `out` carries a sequence number */
    uint8_t patience; /* calls left for which the interpreter's lock is given up before waiting */
    uint64_t id_last, seq_last;
    uint64_t seq_given_up; /* of a request that may have been granted extents, which nobody has seen; 0: none */
    struct crail_buf out;  /* the request; kept whole until its reply is here, so that it can be sent again */
    size_t out_sent;       /* 0 again where the connection ended and the namenode cannot have executed it */
    struct crail_buf in;
    size_t in_at; /* where the next result starts */
    uint32_t grants_count;
    struct crail_extent grants[CRAIL_LANE_GRANTS];
    uint32_t data_count;
    struct crail_data_connection data[CRAIL_LANE_DATA_CONNECTIONS];
    struct crail_lane *next_free;
};

struct crail_client {
    pthread_mutex_t lock;
    pthread_cond_t lane_freed;
    atomic_uint refs;
    bool is_closed;
    atomic_bool is_sync; /* where a call does not say how durable a change is to be: is it sync? */
    unsigned fork_epoch; /* of the process that made it */
    crail_client_options options;
    uint32_t lanes_count; /* numbers in use: 0 .. lanes_count - 1, checked out or not */
    struct crail_lane *lanes[CRAIL_CLIENT_LANES_MAX];
    struct crail_lane *free_lanes;
    _Atomic uint32_t servers_count;
    struct crail_attachment *_Atomic servers[CRAIL_CLIENT_SERVERS_MAX];
    _Atomic uint64_t requests, retries, reconnects, stale_locations, bytes_in, bytes_out, slots_used;
};

/* Counts the forks that this process has seen: as parent and as child, and as child alone. A view made before a fork
 * is shared with the child and never clears its slot; a client made before a fork is dead in the child. */
extern unsigned crail_fork_epoch;
extern unsigned crail_fork_child_epoch;

/* ---- lane.c -------------------------------------------------------------- */

/* 0 and *lane; -EAGAIN and *lane: it needs a connection first, and if it is lost then a PING, whose version is the last
 * sequence number executed; -EBUSY: all lanes are out; CRAIL_E_CLOSED. `reserve`: lanes beyond lanes_max that this
 * caller may use, for calls on which other calls wait. */
int crail_lane_checkout(crail_client *c, uint32_t reserve, struct crail_lane **lane);
void crail_lane_checkin(struct crail_lane *lane);
/* Instead of checkin, when a call ends without its reply. The connection ends; number and grants stay for the next. */
void crail_lane_discard(struct crail_lane *lane);
/* After -EBUSY: waits for a checkin. 0 or -ETIMEDOUT. */
int crail_lane_wait(crail_client *c, int64_t timeout_ns);

/* A request: begin, any number of ops, send until 0, receive until 0, then results one by one. */
void crail_lane_begin(struct crail_lane *lane);
/* Room for an op with its path, options and data; the caller fills *path, and *data with both others. -ENOMEM,
 * -EMSGSIZE (frame full). */
int crail_lane_op(struct crail_lane *lane, const struct crail_op *op, uint8_t **path, uint8_t **data);
uint32_t crail_lane_ops(const struct crail_lane *lane);
/* 0, -EINTR (call again), -EAGAIN (the socket is full: call again), -EPIPE (nothing of the lane's connection is to
 * be trusted any more: reconnect and send again). */
int crail_lane_send(struct crail_lane *lane);
void crail_lane_send_again(struct crail_lane *lane);
/* Waits at most one tick of the kernel's clock (timeout_ns = 0) or timeout_ns. 0, -EINTR, -EAGAIN (nothing yet),
 * -EPIPE (as above; also for a reply that makes no sense). */
int crail_lane_receive(struct crail_lane *lane, int64_t timeout_ns);
/* The next result and its data, or NULL after the last, and for one that makes no sense. Valid until the next begin. */
const struct crail_result *crail_lane_result(struct crail_lane *lane, const void **data);

/* Grants held ahead: takes one that fits `size` (no more than a quarter too large). */
bool crail_lane_grant_take(struct crail_lane *lane, uint64_t size, struct crail_extent *out);
/* May one more of `size` bytes be held? */
bool crail_lane_grant_room(const struct crail_lane *lane, uint64_t size);
/* Keeps a grant. False if there is no room. */
bool crail_lane_grant_keep(struct crail_lane *lane, const struct crail_extent *extent);
/* Takes grants for giving them back: this lane's, then those of lanes that nobody uses. Returns how many. */
uint32_t crail_lane_grants_drop(struct crail_lane *lane, struct crail_extent *out, uint32_t max);

/* ---- io.c ---------------------------------------------------------------- */

/* A transfer between a buffer and a run of a value's extents. Zeroed, then filled by the caller down to `buffer`;
 * the rest is the transfer's own. crail_io_run() until it gives 0 or an error, then crail_io_end() in any case. */
struct crail_io {
    crail_client *client;
    struct crail_lane *lane; /* NULL: through shared memory only */
    const struct crail_extent *extents;
    uint32_t extents_count;
    bool is_write;
    uint64_t value_bytes;
    uint64_t offset; /* in the value */
    uint64_t length; /* offset + length <= value_bytes */
    uint8_t *buffer;
    int64_t deadline_ns;  /* CLOCK_MONOTONIC */
    uint64_t piece_bytes; /* copied before the caller comes up for air; 0: CRAIL_COPY_PIECE */
    uint64_t whole;       /* bytes of all that this is a part of: the way to copy is chosen by that */

    uint64_t done;
    uint32_t server; /* what a need or an error is about */
    struct crail_attachment *slot_of;
    uint32_t slot;
    uint32_t slot_extent;
    uint64_t tcp_asked; /* bytes for which requests were sent */
    bool was_restarted; /* what an earlier data connection brought may still be on its way into the extents */
};

/* 0: all is done. CRAIL_NEED_*. -CRAIL_E_STALE_LOCATION: ask the namenode again. -EPIPE: the data connection broke.
 * -EINTR: a signal; look at it, then crail_io_restart() and run on. -ETIMEDOUT, -ENOBUFS (no free use slot). */
int crail_io_run(struct crail_io *io);
/* Asks for bytes of a read that come over TCP, ahead of crail_io_run(); others may be asked for on the same lane, and
 * are to be run in the same order. 1: all of it was asked for, or shared memory reaches it; 0: there is more to ask, so
 * nothing else may be asked for yet; else as crail_io_run(), and crail_io_restart() is due, for all that were asked. */
int crail_io_ask(struct crail_io *io);
/* Goes on from the last whole piece, on new data connections. */
void crail_io_restart(struct crail_io *io);
void crail_io_end(struct crail_io *io);
/* Has the lane a data connection to this server? */
bool crail_lane_has_data(const struct crail_lane *lane, uint32_t server);

/* All that was written to the extent's server, and answered, is durable when this returns 0. In memory there is nothing
 * to do, and *is_durable is false. To be called for each server before a COMMIT that promises sync. CRAIL_NEED_SERVER,
 * -EINTR, -EPIPE (the connection ended), -ETIMEDOUT, or the negative status that the server gave. The caller closes the
 * connection after a failure (crail_lane_data_drop). */
int crail_io_flush(struct crail_lane *lane, const struct crail_extent *extent, int64_t deadline_ns, bool *is_durable);
void crail_lane_data_drop(struct crail_lane *lane, uint32_t server);

/* What a data reply says: 0, a negated status, or -EPIPE for what is none. */
static inline int crail_data_status(const struct crail_data_reply *r) {
    return crail_is_answer(r->status) ? r->status : -EPIPE;
}

/* Takes a data connection out of the lane, fd -1 if it has none; gives one to it, false if it has one or no room. */
struct crail_data_connection crail_lane_data_take(struct crail_lane *lane, uint32_t server);
bool crail_lane_data_give(struct crail_lane *lane, struct crail_data_connection data);

/* The bytes of a value: they fill its extents in order, each to its end before the next. */
struct crail_range {
    const struct crail_extent *extents;
    uint32_t count;
    uint64_t bytes;
};
/* Which extent holds byte `at`, and where in it. */
uint32_t crail_range_locate(const struct crail_range *value, uint64_t at, uint64_t *within);

/* A pointer into shared memory to the whole value, which must be one extent; the slot stays named until
 * crail_pin_release(). As crail_io_run(); -EOPNOTSUPP if it is not one extent in shared memory; -ENOBUFS if there is
 * no free slot. */
struct crail_pin {
    crail_client *client;
    struct crail_attachment *attachment;
    uint32_t slot;
    unsigned fork_epoch;
    const uint8_t *data;
};
int crail_pin_take(crail_client *c, const struct crail_extent *extent, uint64_t bytes, struct crail_pin *out);
void crail_pin_release(struct crail_pin *pin);

/* ---- pipe.c ------------------------------------------------------------ */

#define CRAIL_PIPE_ASKS 8u
#define CRAIL_PIPE_WRITES_MAX 16u

struct crail_pipe_ask {
    uint64_t id;
    uint64_t at, bytes; /* of the value: what is still to come */
    bool is_begun;      /* the head of the reply is here */
};

/* One open file's way over TCP. Used by one thread at a time. */
struct crail_pipe {
    crail_client *client; /* referenced; NULL after close */
    unsigned fork_epoch;
    struct crail_data_connection data; /* fd -1: no connection */
    uint64_t id;                       /* of the last request */
    struct crail_data_request request;
    uint64_t out_sent; /* bytes of the present request with its data: 0 between requests */
    struct crail_data_reply reply;
    uint32_t in_got;
    uint32_t writes;                          /* without their replies yet */
    uint64_t write_at[CRAIL_PIPE_WRITES_MAX]; /* of the value: where each begins, by its id */
    uint32_t asks_first, asks_count;
    struct crail_pipe_ask asks[CRAIL_PIPE_ASKS];
    uint64_t read_end; /* of the latest read */
};

void crail_pipe_open(struct crail_pipe *st, crail_client *c);
/* Whatever is on its way comes to nothing. In a forked child only the copy of the descriptor goes. */
void crail_pipe_close(struct crail_pipe *st);
bool crail_pipe_is_ours(const struct crail_pipe *st); /* open, and of this process */
bool crail_pipe_reaches(const struct crail_pipe *st, uint32_t server);
/* The lane's connection to this server, which it has, becomes the pipe's. All writes are settled. */
void crail_pipe_take(struct crail_pipe *st, struct crail_lane *lane, uint32_t server);
/* The pipe's connection becomes the lane's if nothing is on its way, else it ends. All writes are settled. */
void crail_pipe_put_back(struct crail_pipe *st, struct crail_lane *lane);
/* The connection ends, and with it what is on its way. To be called after any failure but -EINTR. */
void crail_pipe_abort(struct crail_pipe *st);

/* Each: 0; -EINTR (look at signals, then call again with the same arguments); -EPIPE; -ETIMEDOUT; the negative status
 * that a server gave. */
/* `n` bytes into the extent, which the connection reaches, from byte `at` of the value on. Returns while they are on
 * their way: their reply, or that of an earlier one, is what a failure may be about. */
int crail_pipe_write(struct crail_pipe *st, const struct crail_extent *e, uint64_t within, uint64_t at,
                     const uint8_t *data, uint64_t n, int64_t deadline_ns);
/* *until: of the first `size` bytes of the value, how many are there for sure, by the replies that are here. */
int crail_pipe_arrived(struct crail_pipe *st, uint64_t size, uint64_t *until);
/* Waits until no write is on its way. */
int crail_pipe_settle(struct crail_pipe *st, int64_t deadline_ns);
/* Bytes [at + *got, at + n) of the value; *got grows. CRAIL_NEED_SERVER: the next ones lie on another server. */
int crail_pipe_read(struct crail_pipe *st, const struct crail_range *value, uint64_t at, uint8_t *to, uint64_t n,
                    uint64_t *got, int64_t deadline_ns);
/* Asks ahead for bytes [from, until) of the value. */
int crail_pipe_ask(struct crail_pipe *st, const struct crail_range *value, uint64_t from, uint64_t until,
                   int64_t deadline_ns);
/* Was something asked ahead that does not begin with byte `at`? Then only abort helps. */
bool crail_pipe_is_astray(const struct crail_pipe *st, uint64_t at);

/* ---- attach.c ------------------------------------------------------------ */

struct crail_attachment *crail_client_find(crail_client *c, uint32_t server);
/* Names the extent in a free slot, if more than `reserve` are free. 0, -ENOBUFS, -CRAIL_E_STALE_LOCATION. */
int crail_attachment_enter(struct crail_attachment *a, const struct crail_extent *e, uint32_t reserve, uint32_t *slot);
void crail_attachment_leave(struct crail_attachment *a, uint32_t slot);
void crail_mapping_populate(struct crail_mapping *m, uint64_t region_bytes, uint64_t at, uint64_t n);
void crail_client_ref(crail_client *c);
void crail_client_unref(crail_client *c);

/* ---- copy.c -------------------------------------------------------------- */

/* memcpy, with non-temporal stores where the run is long enough for them to win. */
void crail_copy(void *to, const void *from, size_t n, size_t whole);

int64_t crail_now_ns(void);

#endif
