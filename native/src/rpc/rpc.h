/* The namenode's loop: what its files know of each other.
 *
 * One thread owns everything here. Other threads reach it through the mailbox only (mailbox.c), and take events
 * out of a ring that has a lock of its own (event.c).
 *
 *   loop.c     the turn: look at the connections, serve what is ready, background work, deadlines
 *   conn.c     the bytes of one connection: frames in, replies out, slow readers
 *   ring.c     the same through shared memory: bells, and when to wait for the next request without sleeping
 *   session.c  sessions and lanes: who they are, when they end
 *   lane.c     a lane's turn: the next frame, exactly once, waiting
 *   vector.c   the operations of one request, in slices
 *   spot.c     paths that somebody waits at or watches, and what a change does to them (wait.h)
 *   wait.c     requests that wait, and their late replies
 *   watch.c    watches and their events
 *   retire.c   servers and their retire channels
 *   durable.c  cuts: when they begin and end, the rows of lanes, who waits until something is durable
 *   load.c     rows of an earlier life
 *
 * Ownership: a session owns its lanes, a lane owns its connection and the record of its last reply. Endpoints
 * (whatever epoll points at) are freed at the end of a turn only, since events of the same turn may still name
 * them. */
#ifndef CRAIL_RPC_H
#define CRAIL_RPC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/list.h"
#include "base/ring.h"
#include "meta/meta.h"
#include "crail/api.h"
#include "crail/status.h"
#include "crail/wire.h"
#include "rpc/wait.h"

/* ---- bounds and times ---------------------------------------------------- */

#define CRAIL_RPC_INPUT_BYTES (16u << 10)     /* first input buffer of a connection */
#define CRAIL_RPC_CHUNK_BYTES (256u << 10)    /* at most this much in one recv or send: they hold the loop */
#define CRAIL_RPC_LARGE_BYTES (64u << 10)     /* buffers beyond this are given back when the connection is idle */
#define CRAIL_RPC_RECORD_BYTES (256u << 10)   /* a record beyond this is given back when the next one comes */
#define CRAIL_RPC_REPLY_BYTES_MAX (64u << 20) /* a vector of listings stops being answered there */
#define CRAIL_RPC_LANES_MAX 4096u             /* lane numbers of one session */
#define CRAIL_RPC_DESCRIPTION_MAX (64u << 10)
#define CRAIL_RPC_EVENTS_MAX 4096u
#define CRAIL_RPC_CLOCK_EVERY 16u /* operations between two looks at the clock */
#define CRAIL_RPC_OP_BYTES 2048u  /* so many bytes in and out count as one more of them */
#define CRAIL_RPC_LOOK_NS 10000u  /* while rings keep the loop busy: between two looks at everybody else */
#define CRAIL_RPC_IDLE_NS (2 * CRAIL_RING_SPIN_NS_MAX) /* rings that are idle for longer sleep */
#define CRAIL_RPC_PREEMPTED_NS 30000u                  /* between two looks of a spin: the core was somebody else's */
#define CRAIL_RPC_AWAKE_MAX 64u                        /* rings that are looked at in each turn */

#define CRAIL_CUT_CHANGED_MAX (1u << 18) /* nodes: writers wait for a cut beyond this */

/* Times of the loop; tests shorten them. */
struct crail_rpc_tuning {
    uint64_t slice_ns;      /* service in one turn, before the loop looks at its connections again */
    uint64_t step_ns;       /* background work in one turn */
    uint64_t drain_ns;      /* a client that reads nothing for so long is dropped */
    uint64_t space_wait_ns; /* an ALLOC waits so long for memory that is on its way back */
    uint64_t order_wait_ns; /* retire orders are gathered for so long */
    uint64_t idle_ns;       /* a large buffer that was not used for so long is given back */
    uint64_t lag_ns;        /* writers wait when a change is not durable for so long */
};
extern const struct crail_rpc_tuning crail_rpc_tuning_default;

/* ---- what epoll points at ------------------------------------------------ */

enum crail_rpc_kind { CRAIL_RPC_MAILBOX, CRAIL_RPC_CONN, CRAIL_RPC_BELL, CRAIL_RPC_CHANNEL, CRAIL_RPC_TIMER };

struct crail_rpc_endpoint {
    enum crail_rpc_kind kind;
    int fd;         /* -1: closed, waits in the grave for the end of the turn */
    uint32_t armed; /* the epoll events asked for */
    struct crail_list grave;
};

/* ---- lanes --------------------------------------------------------------- */

/* A request in execution. */
struct crail_rpc_vector {
    const uint8_t *frame;         /* NULL: none */
    uint32_t count, next;         /* operations, and the one that comes next */
    uint32_t offset;              /* of the next one in the frame */
    uint32_t ahead, ahead_offset; /* the next one to prefetch */
    bool recorded;                /* it has a sequence number: its reply is the lane's record */
    bool bye;                     /* the session wishes to end */
    uint64_t needs;               /* the epoch that must be durable before its reply goes out; 0: none */
    uint64_t space_until;         /* 0: did not yet wait for memory */
    uint64_t space_epoch;         /* memory comes back when that is durable; 0: none does */
    struct crail_buf *reply;
};

struct crail_rpc_conn {
    struct crail_rpc_endpoint end; /* first: epoll's pointer */
    struct crail_rpc_lane *lane;   /* NULL once closed */
    struct crail_rpc_ring *ring;   /* NULL: its bytes go through the socket */
    uint8_t *in;                   /* in_cap bytes, in_len of them received, those before in_pos done with */
    uint32_t in_cap, in_len, in_pos;
    bool readable;     /* epoll says so, and nobody has read since */
    bool blocked;      /* no more is taken; EPOLLOUT is armed, or the client rings */
    const uint8_t *tx; /* what is left of a reply: in `out`, in the lane's record, or of late ones */
    size_t tx_left;
    const uint8_t *reply; /* the lane's reply, while late ones are being sent */
    size_t reply_left;
    struct crail_rpc_party *party; /* what waits; NULL: nothing ever did */
    struct crail_buf out;
    struct crail_list drain; /* while the client keeps a reply waiting; in the order of drain_since */
    struct crail_list large; /* while a buffer is large and unused; in the order of large_since */
    uint64_t drain_since, large_since;
};

/* A connection's ring. The bell is an eventfd that the client writes to and nobody reads: epoll tells of each write
 * (EPOLLET). So the loop trusts nothing that the client could do to it. */
struct crail_rpc_ring {
    struct crail_rpc_endpoint end; /* first: epoll's pointer; the bell */
    struct crail_rpc_conn *conn;   /* NULL once closed */
    struct crail_ring ring;
    struct crail_list awake; /* in nn->awake while the loop looks at it by itself and no bell is needed */
    uint64_t idle_since;     /* then: when it got there, */
    uint64_t follows_by;     /* and when the next request will be here, by the client's word */
};

enum crail_rpc_lane_state {
    CRAIL_RPC_LANE_IDLE,         /* waits for its connection, or has none */
    CRAIL_RPC_LANE_READY,        /* in nn->ready */
    CRAIL_RPC_LANE_WAIT_STEP,    /* in nn->wait_step: the tree has something to prepare first */
    CRAIL_RPC_LANE_WAIT_SPACE,   /* in nn->wait_space: memory is on its way back */
    CRAIL_RPC_LANE_WAIT_COMMIT,  /* in nn->durable.wait_commit: its vector may not begin before a cut is durable */
    CRAIL_RPC_LANE_WAIT_DURABLE, /* in nn->durable.wait_durable: its reply may not go out yet */
};

/* Where the lane stands with its row. */
enum crail_rpc_row {
    CRAIL_RPC_ROW_SAME,    /* as the last cut has it, or never used */
    CRAIL_RPC_ROW_CHANGED, /* in durable.changed */
    CRAIL_RPC_ROW_IN_CUT,  /* in durable.cut_lanes: the cut that is being written has still to write it */
};

struct crail_rpc_lane {
    struct crail_list link; /* in the list that `state` names */
    enum crail_rpc_lane_state state;
    uint32_t number;
    struct crail_rpc_session *session;
    struct crail_list of_session;
    struct crail_rpc_conn *conn; /* NULL: none at the moment */
    struct crail_rpc_vector vec;
    uint8_t *orphan; /* the input that `vec` lies in, taken over from a connection that died */
    uint64_t last_seq;
    struct crail_buf record;      /* the whole reply to last_seq; empty: lost for want of memory */
    uint64_t record_needs;        /* the epoch that must be durable before the record goes out; 0: none */
    const struct crail_buf *held; /* WAIT_DURABLE: the reply that goes out then */
    uint64_t held_needs;
    struct crail_list of_rows; /* in the list that `row` names */
    enum crail_rpc_row row;
    bool is_stored;      /* some cut has a row of it */
    bool takes_any;      /* of an earlier life: the next number may be any above last_seq */
    uint64_t half_seq;   /* of a vector that an earlier life left half-way, its reply so far in the record; 0: none */
    uint32_t half_count; /* operations of it that were done */
};

struct crail_rpc_session {
    struct crail_rpc_session *next; /* in its bucket */
    uint64_t id;
    struct crail_meta_session *meta;
    struct crail_list lanes;
    uint32_t conns;
    struct crail_list grace; /* in nn->grace while conns is 0; in the order of grace_since */
    uint64_t grace_since;
    bool is_local;  /* its last connection was a unix socket: index of nn->grace and nn->grace_ns */
    bool is_loaded; /* of an earlier life of the namenode */
    struct crail_list watches;
    uint32_t watches_count;
    uint64_t watch_bytes;
};

/* ---- servers ------------------------------------------------------------- */

struct crail_rpc_server;

struct crail_rpc_channel {
    struct crail_rpc_endpoint end;   /* first: epoll's pointer */
    struct crail_rpc_server *server; /* NULL once closed */
    struct crail_list link;          /* in nn->channels */
    uint32_t in_len;
    uint32_t tx_pos, tx_len; /* of `out` */
    uint32_t in_flight;      /* extents ordered here and not confirmed */
    uint32_t doubtful;       /* extents that may be confirmed twice (see crail_rpc_server_set) */
    uint64_t due_since;      /* 0: nothing is due */
    union {
        struct crail_retire_frame head;
        uint8_t bytes[sizeof(struct crail_retire_frame) + CRAIL_RETIRES_MAX * sizeof(struct crail_retire)];
    } in, out;
};

#define CRAIL_RPC_REGIONS_MAX 64u

struct crail_rpc_server {
    uint32_t number, regions;
    uint32_t state; /* enum crail_meta_server_state */
    uint64_t granules;
    uint32_t region_granules[CRAIL_RPC_REGIONS_MAX]; /* of a loaded one */
    bool is_awaited;                                 /* of an earlier life, and has not said yet what it holds */
    uint64_t away_until_ns;                          /* of one that is DOWN: so long it is waited for */
    void *description;
    uint32_t description_size;
    struct crail_rpc_channel *channel;
};

/* ---- cuts ---------------------------------------------------------------- */

enum crail_rpc_cut {
    CRAIL_RPC_CUT_NONE,
    CRAIL_RPC_CUT_WRITING, /* in steps, by the loop */
    CRAIL_RPC_CUT_GIVEN,   /* written; its rows are whoever's commits them until crail_namenode_cut_done() */
};

struct crail_rpc_durable {
    uint32_t kind; /* enum crail_durability */
    enum crail_rpc_cut cut;
    bool failing;                /* the last commit failed: nobody may promise anything */
    bool was_wanted;             /* `is_wanted` was said for the next cut */
    uint64_t epoch;              /* of the cut */
    uint64_t done;               /* every change of this epoch and those before is durable */
    uint64_t version;            /* the last one given when the cut began... */
    uint64_t done_version;       /* ... and when that did which is durable */
    uint64_t changed_ns, cut_ns; /* when the oldest change was made: since the cut, and within it; 0: none was */
    struct crail_list changed;   /* lanes whose row differs from what the last cut has... */
    struct crail_list cut_lanes; /* ... and those that this one has still to write */
    struct crail_buf rows;       /* the engine's part of the cut */
    bool is_loading;             /* rows of an earlier life came */
    bool has_bounds;             /* those of its counters did */
    bool keeps_lanes;            /* the last cut failed in the engine: `lanes` is of the next one, too */
    struct crail_buf lanes;      /* ours; room for all of it is made when the cut begins */
    struct crail_buf gone;       /* rows of lanes that ended since: of the next cut */
    struct crail_list wait_commit, wait_durable; /* lanes */
    struct crail_list parties;                   /* whose late replies wait until something is durable */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t turned;
    bool is_wanted;  /* somebody waits for the next cut */
    bool is_written; /* the cut is: its rows can be taken */
    bool is_over;    /* crail_namenode_cut_wake() */
};

/* ---- the loop ------------------------------------------------------------ */

/* A call from another thread. Lies on the caller's stack: the caller waits. */
struct crail_rpc_mail {
    struct crail_rpc_mail *next;
    int (*call)(crail_namenode *nn, void *args);
    void *args;
    int rc;
    bool done;
};

struct crail_rpc_mailbox {
    struct crail_rpc_endpoint end; /* first: epoll's pointer; the eventfd */
    pthread_mutex_t lock;          /* guards the fields below */
    pthread_cond_t done;
    struct crail_rpc_mail *head, **tail;
    bool ended; /* the loop takes no more mail: callers execute themselves, one at a time */
};

struct crail_rpc_events {
    pthread_mutex_t lock; /* guards all */
    int fd;
    uint32_t first, count;
    uint64_t dropped; /* the ring was full: nobody takes events */
    crail_namenode_event ring[CRAIL_RPC_EVENTS_MAX];
};

struct crail_namenode {
    struct crail_meta *meta;
    struct crail_rpc_tuning tuning;
    uint64_t grace_ns[2]; /* of sessions far away, and on this host */
    int epoll_fd;
    struct crail_rpc_endpoint timer; /* a timerfd: set far more rarely than the loop turns */
    uint64_t timer_at;               /* what it is set to, UINT64_MAX: not */
    pthread_t thread;
    bool stopping;
    bool background; /* crail_meta_step() has work left */
    bool changed;    /* something may have come due for retirement since the last look */

    uint64_t now_ns;      /* monotonic, at the last turn */
    uint64_t looked_ns;   /* the same at the last look at all connections: rings are served without one */
    uint64_t turn_end_ns; /* service stops there in this turn */
    int64_t realtime_ns;
    uint32_t ops_to_clock; /* operations until the next look at the clock */
    uint64_t excused_ns;   /* part since the last look that does not count as a stall (the invariant check) */

    struct crail_list ready, wait_step, wait_space; /* lanes */
    uint64_t evict_at;              /* who waits for memory asks again then, if something can be evicted */
    struct crail_list drain, large; /* connections */
    struct crail_list grace[2];     /* sessions: far away, and on this host */
    struct crail_list channels;
    struct crail_list grave; /* endpoints */
    struct crail_list awake; /* rings, by idle_since */
    uint32_t awake_count;
    struct crail_ring_pace pace; /* of the loop's spins */
    uint64_t spin_until;         /* 0: none has begun */

    struct crail_rpc_waits waits;
    struct crail_rpc_durable durable;

    struct crail_rpc_session **buckets;
    uint32_t buckets_log2;

    struct crail_rpc_server **servers; /* by number - 1 */
    uint32_t servers_count;

    struct crail_rpc_mailbox mailbox;
    struct crail_rpc_events events;
    crail_namenode_stats stats; /* the counters; the rest is filled in when asked */
};

/* ---- loop.c -------------------------------------------------------------- */

int crail_rpc_start(const crail_namenode_options *options, const struct crail_rpc_tuning *tuning, crail_namenode **out);
/* Asks epoll for other events. */
void crail_rpc_arm(crail_namenode *nn, struct crail_rpc_endpoint *end, uint32_t events);
int crail_rpc_endpoint_open(crail_namenode *nn, struct crail_rpc_endpoint *end, enum crail_rpc_kind kind, int fd);
/* Closes the descriptor now; the memory goes at the end of the turn. */
void crail_rpc_endpoint_close(crail_namenode *nn, struct crail_rpc_endpoint *end);
/* Another operation has been done, with so many bytes in and out: is the time of this turn over? Looks at the clock now
 * and then. */
bool crail_rpc_time_over(crail_namenode *nn, uint64_t bytes);

/* ---- mailbox.c ----------------------------------------------------------- */

int crail_rpc_mailbox_init(struct crail_rpc_mailbox *box);
void crail_rpc_mailbox_destroy(struct crail_rpc_mailbox *box);
/* Runs `call` on the loop thread and returns what it returned. Any thread but the loop's. */
int crail_rpc_post(crail_namenode *nn, int (*call)(crail_namenode *nn, void *args), void *args);
/* Loop thread: executes what is there. */
void crail_rpc_mailbox_serve(crail_namenode *nn);
/* Loop thread, at its end: the same, and takes no more. */
void crail_rpc_mailbox_end(crail_namenode *nn);

/* ---- event.c ------------------------------------------------------------- */

int crail_rpc_events_init(struct crail_rpc_events *e);
void crail_rpc_events_destroy(struct crail_rpc_events *e);
void crail_rpc_events_post(struct crail_rpc_events *e, uint32_t kind, uint32_t server, uint64_t session);
uint32_t crail_rpc_events_take(struct crail_rpc_events *e, crail_namenode_event *out, uint32_t max);

/* ---- conn.c -------------------------------------------------------------- */

/* Takes descriptor and ring (may be NULL) in any case. */
int crail_rpc_conn_open(crail_namenode *nn, int fd, struct crail_rpc_lane *lane, struct crail_rpc_ring *ring);
/* Tells the lane (crail_rpc_lane_lost_conn) and the session. */
void crail_rpc_conn_close(crail_namenode *nn, struct crail_rpc_conn *c);
/* Closes for what the peer sent. */
void crail_rpc_conn_refuse(crail_namenode *nn, struct crail_rpc_conn *c);
void crail_rpc_conn_event(crail_namenode *nn, struct crail_rpc_conn *c, uint32_t events);
/* One recv. False: the connection is closed. */
bool crail_rpc_conn_receive(crail_namenode *nn, struct crail_rpc_conn *c);

enum crail_rpc_frame { CRAIL_RPC_FRAME_NONE, CRAIL_RPC_FRAME_WHOLE, CRAIL_RPC_FRAME_GARBAGE };
/* Takes the next whole and valid frame out of the input; it stays where it is until the next receive. */
enum crail_rpc_frame crail_rpc_conn_frame(struct crail_rpc_conn *c, const uint8_t **frame);

enum crail_rpc_sent { CRAIL_RPC_SENT_ALL, CRAIL_RPC_SENT_PART, CRAIL_RPC_SENT_BLOCKED, CRAIL_RPC_SENT_CLOSED };
/* `data` stays untouched until all is sent. Late replies that are being sent go first. */
enum crail_rpc_sent crail_rpc_conn_send(crail_namenode *nn, struct crail_rpc_conn *c, const uint8_t *data, size_t n);
enum crail_rpc_sent crail_rpc_conn_flush(crail_namenode *nn, struct crail_rpc_conn *c);
/* Nothing more to do for it at the moment: listens again, and notes large buffers. */
void crail_rpc_conn_idle(crail_namenode *nn, struct crail_rpc_conn *c);
/* Drops clients that do not read, gives back large buffers. */
void crail_rpc_conn_deadlines(crail_namenode *nn);

/* ---- ring.c -------------------------------------------------------------- */

/* Any thread. The descriptors of crail_ring_make() stay the caller's. */
int crail_rpc_ring_new(const int *fds2, struct crail_rpc_ring **out);
/* One that was never opened, or NULL. */
void crail_rpc_ring_free(struct crail_rpc_ring *ring);
int crail_rpc_ring_open(crail_namenode *nn, struct crail_rpc_ring *ring, struct crail_rpc_conn *c);
void crail_rpc_ring_close(crail_namenode *nn, struct crail_rpc_ring *ring);
/* The bell was rung: there may be bytes, or room. */
void crail_rpc_ring_event(crail_namenode *nn, struct crail_rpc_ring *ring);
/* As read(2) and write(2), but -errno; they wake a client that sleeps for it. */
ssize_t crail_rpc_ring_read(struct crail_rpc_ring *ring, void *to, size_t n);
ssize_t crail_rpc_ring_write(struct crail_rpc_ring *ring, const void *from, size_t n);
/* The connection waits for its next request; its lane is ready if that is there. */
void crail_rpc_ring_idle(crail_namenode *nn, struct crail_rpc_ring *ring);
/* Takes what came to those that are awake. True: a lane is ready. */
bool crail_rpc_rings_look(crail_namenode *nn);
/* Puts to sleep whoever is idle since `before`. False: something came after all, and a lane is ready. */
bool crail_rpc_rings_sleep(crail_namenode *nn, uint64_t before);
/* After a look: shall the loop look again instead of sleeping? `preempted`: it was off its core since the one before.
 */
bool crail_rpc_rings_spin(crail_namenode *nn, bool found, uint64_t now, bool preempted);
bool crail_rpc_rings_check(const crail_namenode *nn);

/* ---- session.c ----------------------------------------------------------- */

int crail_rpc_sessions_init(crail_namenode *nn);
void crail_rpc_sessions_destroy(crail_namenode *nn);
int crail_rpc_session_open(crail_namenode *nn, uint64_t id);
/* Closes its connections, frees its grants, tells the world. Every lane of it is gone afterwards. */
void crail_rpc_session_end(crail_namenode *nn, struct crail_rpc_session *s);
/* Closes all connections of all lanes. */
void crail_rpc_sessions_hang_up(crail_namenode *nn);
void crail_rpc_session_conn_gained(struct crail_rpc_session *s, int fd);
void crail_rpc_session_conn_lost(crail_namenode *nn, struct crail_rpc_session *s);
/* Takes descriptor and ring in any case. */
int crail_rpc_lane_attach(crail_namenode *nn, int fd, uint64_t session, uint32_t number, struct crail_rpc_ring *ring);
void crail_rpc_session_deadlines(crail_namenode *nn);
/* One of an earlier life: its grace begins. */
int crail_rpc_session_loaded(crail_namenode *nn, uint64_t id, struct crail_meta_session *meta);
/* A lane of such a session. 0, 1 (there is no such session), -ENOMEM. */
int crail_rpc_lane_loaded(crail_namenode *nn, uint64_t session, uint32_t number, struct crail_rpc_lane **out);

/* ---- lane.c -------------------------------------------------------------- */

void crail_rpc_lane_move(crail_namenode *nn, struct crail_rpc_lane *lane, enum crail_rpc_lane_state state);
const char *crail_rpc_lane_state_name(enum crail_rpc_lane_state state);
/* Serves a lane that was ready, until nothing is left or the time of the turn is over. The lane may be gone
 * afterwards (BYE). */
void crail_rpc_lane_serve(crail_namenode *nn, struct crail_rpc_lane *lane);
/* Its connection is closing: a vector that must be finished keeps the input, another is forgotten. */
void crail_rpc_lane_lost_conn(crail_namenode *nn, struct crail_rpc_lane *lane);
void crail_rpc_lane_free(crail_namenode *nn, struct crail_rpc_lane *lane);
/* Everything in the list gets another try. */
void crail_rpc_lanes_wake(crail_namenode *nn, struct crail_list *waiting);
void crail_rpc_lane_deadlines(crail_namenode *nn);
/* When those who wait for memory ask again for what can be evicted, UINT64_MAX: never. */
uint64_t crail_rpc_lanes_evict_at(const crail_namenode *nn);

/* ---- vector.c ------------------------------------------------------------ */

enum crail_rpc_run {
    CRAIL_RPC_RUN_DONE,   /* the reply is complete */
    CRAIL_RPC_RUN_SLICED, /* the time of the turn is over */
    CRAIL_RPC_RUN_STEP,   /* waits for crail_meta_step() */
    CRAIL_RPC_RUN_SPACE,  /* waits for memory */
    CRAIL_RPC_RUN_ASIDE,  /* waits elsewhere: the lane goes on, without a reply */
    CRAIL_RPC_RUN_BROKEN, /* no memory for the reply */
};
int crail_rpc_vector_begin(struct crail_rpc_vector *v, const uint8_t *frame, struct crail_buf *reply);
/* The same for one whose first operations were done in an earlier life: their results are in `reply`. */
void crail_rpc_vector_resume(struct crail_rpc_vector *v, const uint8_t *frame, uint32_t done, struct crail_buf *reply);
/* Does it only say good-bye? */
bool crail_rpc_vector_is_bye(const struct crail_rpc_vector *v);
enum crail_rpc_run crail_rpc_vector_run(crail_namenode *nn, struct crail_rpc_lane *lane);
/* Executes one operation for a session and appends its result. 0; CRAIL_META_AGAIN, CRAIL_META_WAIT or -ENOMEM: nothing
 * was appended. Not for those that are of a lane or its connection: PING, BYE, CANCEL. */
int crail_rpc_operation(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op,
                        struct crail_buf *reply);
/* A reply to `frame` that gives every operation the same status. 0 or -ENOMEM. */
int crail_rpc_vector_refuse(const uint8_t *frame, int status, struct crail_buf *reply);

/* ---- durable.c ------------------------------------------------------------ */

/* kind: enum crail_durability. grants_fd: see crail_meta_durable(). */
int crail_rpc_durable_init(crail_namenode *nn, uint32_t kind, int grants_fd);
void crail_rpc_durable_destroy(crail_namenode *nn);
/* The lane's record or number is about to change. */
void crail_rpc_lane_touch(crail_namenode *nn, struct crail_rpc_lane *lane);
/* The lane ends, and its row with it. */
void crail_rpc_lane_row_gone(crail_namenode *nn, struct crail_rpc_lane *lane);
/* Of the last change that was made: the epoch that it belongs to. */
uint64_t crail_rpc_durable_changed(const crail_namenode *nn);
/* What an operation was answered: the epoch that must be durable before anybody sees it; 0: none. */
uint64_t crail_rpc_durable_needs(crail_namenode *nn, const struct crail_op *op, const struct crail_result *r);
/* Is that epoch still to come? Then somebody waits: the next cut comes soon. */
bool crail_rpc_durable_awaited(crail_namenode *nn, uint64_t needs);
/* Do changes outrun the commits, or do these fail? Then whoever changes something waits before it begins. */
bool crail_rpc_durable_slows(crail_namenode *nn);
/* Somebody waits for what a cut brings, whatever its epoch. */
void crail_rpc_durable_want(crail_namenode *nn);
/* May this operation ask for what its options say? 0 or a status. */
int crail_rpc_durable_allowed(const crail_namenode *nn, const struct crail_op *op);
void crail_rpc_durable_stats(crail_namenode *nn, crail_namenode_stats *out);
/* Writes some of the cut. */
void crail_rpc_durable_step(crail_namenode *nn, uint64_t budget_ns);

/* ---- retire.c ------------------------------------------------------------ */

int crail_rpc_server_add(crail_namenode *nn, uint32_t regions, const uint32_t *granules,
                         const uint64_t *const *generations, struct crail_meta_place place, const void *description,
                         uint32_t size, uint32_t *number);
/* One of an earlier life, which knows the engine. */
int crail_rpc_server_loaded(crail_namenode *nn, uint32_t number, uint32_t state, const uint32_t *granules,
                            uint32_t regions, const void *description, uint32_t size);
int crail_rpc_server_describe(crail_namenode *nn, uint32_t number, const void *description, uint32_t size);
int crail_rpc_server_set(crail_namenode *nn, uint32_t number, uint32_t state);
/* It has retired all but its live runs: crail_meta_server_recovered(). `generations` has all regions, `count` granules,
 * one behind the other. */
int crail_rpc_server_recovered(crail_namenode *nn, uint32_t number, const uint64_t *generations, uint64_t count,
                               const struct crail_retire *busy, uint32_t busy_n, uint32_t *lost);
/* Until when a server that was there, in this life or an earlier one, is waited for; 0: none is, any more. */
uint64_t crail_rpc_servers_awaited(const crail_namenode *nn);
/* Takes the descriptor in any case. */
int crail_rpc_server_channel(crail_namenode *nn, uint32_t number, int fd);
/* NULL if there is none. */
struct crail_rpc_server *crail_rpc_server_find(crail_namenode *nn, uint64_t number);
void crail_rpc_servers_destroy(crail_namenode *nn);
void crail_rpc_channel_event(crail_namenode *nn, struct crail_rpc_channel *ch, uint32_t events);
/* Sends what is due and worth a frame. */
void crail_rpc_retires_order(crail_namenode *nn);
/* When crail_rpc_retires_order() has to be called again, at the latest; UINT64_MAX for never. */
uint64_t crail_rpc_retires_deadline(crail_namenode *nn);
/* Is memory on its way back? */
bool crail_rpc_retires_coming(crail_namenode *nn);

#endif
