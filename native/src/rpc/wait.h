/* Requests that wait, and watches: what somebody is interested in, by path.
 *
 * A *spot* is a path that somebody waits at or watches, or one above where such paths part: a sparse copy of the tree
 * of names. The engine tells each change (crail_meta_listener); from the root of the spots down along the path every
 * watched spot notes an event, and the spot of the path itself wakes those who wait there. If something went or came
 * with all that is below it, the spots below are looked at too, later and in slices (a *recheck*).
 *
 * At a spot, requests stand in *lines*, in the order of their arrival. A line that was woken is gone through in slices
 * of the loop: each request is executed again and either answered or left standing. A *party* is what one connection
 * has waiting; it outlives the connection until its requests are freed, which may take several slices. */
#ifndef CRAIL_RPC_WAIT_H
#define CRAIL_RPC_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/list.h"
#include "base/table.h"
#include "crail/api.h"
#include "crail/wire.h"

#define CRAIL_RPC_WAITERS_MAX 65536u           /* of one connection */
#define CRAIL_RPC_WAITER_BYTES_MAX (64u << 20) /* likewise, with the spots made for them */
#define CRAIL_RPC_LATE_BYTES (256u << 10)      /* a connection with so much to take is asked for patience */
#define CRAIL_RPC_WATCHES_MAX 1024u            /* of one session */
#define CRAIL_RPC_WATCH_BYTES_MAX \
    (16u << 20)                           /* likewise, with their spots and the events that they have still to read */
#define CRAIL_RPC_CHUNK_BYTES_FIRST 1024u /* of events; each next one is twice as large... */
#define CRAIL_RPC_CHUNK_BYTES_MAX (16u << 10) /* ... up to this */
#define CRAIL_RPC_LOG_BYTES_MAX (1u << 20)    /* of the chunks of one watched path */
#define CRAIL_RPC_NEXT_BYTES (64u << 10)
#define CRAIL_RPC_NEXT_EVENTS 1024u

struct crail_rpc_conn;
struct crail_rpc_session;

/* ---- spots and lines ----------------------------------------------------- */

enum crail_rpc_line_kind {
    CRAIL_RPC_LINE_CHANGE,   /* for the node at the path: GET, STAT, ENTER, FOLLOW */
    CRAIL_RPC_LINE_TAKE,     /* for an item of the queue: when one gets none, those behind it get none either */
    CRAIL_RPC_LINE_NEXT,     /* for an event */
    CRAIL_RPC_LINE_CHILDREN, /* for more of them in the directory at the path: COLUMN */
    CRAIL_RPC_LINES,
};

struct crail_rpc_line {
    struct crail_list waiters; /* and, while the line is being gone through, `mark` */
    struct crail_list mark;    /* those before it had their try */
    struct crail_list woken;   /* in waits.woken while the mark stands in the line */
    struct crail_rpc_spot *spot;
    bool again; /* woken once more since the mark left the head */
};

struct crail_rpc_log;

/* What happened to the node above. */
enum crail_rpc_recheck {
    CRAIL_RPC_RECHECK_GONE,   /* it went with all below */
    CRAIL_RPC_RECHECK_CAME,   /* it came, perhaps with something below */
    CRAIL_RPC_RECHECK_UNSURE, /* one soon after the other: what is there now does not tell what happened */
};

struct crail_rpc_spot {
    struct crail_table_item item;  /* in waits.spots, by parent and first name */
    struct crail_rpc_spot *parent; /* NULL: the root */
    struct crail_list children, sibling;
    uint32_t refs; /* waiters, watches, children, rechecks, and whoever is just looking at it */
    uint16_t text_len;
    bool recheck_itself; /* it is to be looked at, too, and before those below */
    char *text;          /* its path from its parent on: "/a/b". Two children begin with different names */
    struct crail_rpc_line line[CRAIL_RPC_LINES];
    uint64_t children_came;        /* while somebody waited for them; an overwritten one counts, too */
    uint64_t children_needed;      /* when so many came, those who wait for children look again */
    struct crail_rpc_log *log;     /* of its events; NULL: not watched */
    struct crail_list recheck;     /* in waits.rechecks while there is a cursor */
    struct crail_rpc_spot *cursor; /* of the recheck of all below: the spot looked at last; NULL: none is going on */
    enum crail_rpc_recheck recheck_kind;
    uint64_t recheck_since; /* number of the change that asked for it */
};

/* The events at one path and below it, in the order of time. All watches of the path read the same log. */
struct crail_rpc_chunk {
    struct crail_list link;
    uint64_t serial;  /* in its log */
    uint64_t first;   /* number of its first event */
    uint32_t readers; /* watches whose next event is in here, or will be */
    uint32_t len, cap;
    _Alignas(8) uint8_t bytes[]; /* struct crail_event ... */
};

struct crail_rpc_log {
    struct crail_list chunks;
    struct crail_list watches;       /* that which went on in its reading longest ago is the first... */
    struct crail_rpc_session *payer; /* ... and its session was charged with the chunks when the last one came */
    uint32_t bytes;                  /* of all chunks */
    uint64_t serial;                 /* of the last chunk */
    uint64_t last;                   /* number of the last event */
    uint64_t last_change;            /* number of the change that it told */
    bool is_there;                   /* the node of this very path, as far as we were told... */
    uint64_t version;                /* ... and its version */
};

struct crail_rpc_watch {
    struct crail_list link; /* in its session's list */
    struct crail_list of_log;
    struct crail_rpc_session *session;
    uint64_t token;
    struct crail_rpc_spot *spot;
    uint32_t bytes;                /* charged to its session, beside the log */
    uint64_t seen;                 /* number of the last event that arrived */
    struct crail_rpc_chunk *chunk; /* where the next one is or will be, as long as the log has that chunk */
    uint64_t chunk_serial;
};

/* ---- waiters ------------------------------------------------------------- */

struct crail_rpc_party {
    struct crail_rpc_conn *conn; /* NULL: it has ended */
    struct crail_list waiters;
    uint32_t waiters_count;
    uint64_t waiters_bytes;
    struct crail_list parked; /* waiters whose try waits until the connection has taken more */
    struct crail_list link;   /* in waits.late while there are late replies that may go; in waits.leaving at the end */
    struct crail_buf late, out; /* whole frames: those to come, and those being sent */
    size_t gated;               /* the first so many bytes of `late` may go when gate_epoch is durable; 0: all may */
    uint64_t gate_epoch;
    struct crail_list gate; /* in nn->durable.parties meanwhile */
};

/* A request that waits, copied off its lane. */
struct crail_rpc_waiter {
    struct crail_table_item item; /* in waits.by_id, by party and id */
    struct crail_list of_line, of_party;
    struct crail_list retry; /* in waits.retries or its party's `parked` */
    struct crail_rpc_party *party;
    struct crail_rpc_spot *spot;
    uint64_t id;
    uint64_t deadline_ns;
    uint32_t heap_at;
    uint32_t bytes;     /* charged to its party */
    struct crail_op op; /* then its path, and the data of a COLUMN */
};

struct crail_rpc_waits {
    struct crail_table spots, by_id;
    uint8_t key[16];                 /* of their hashes */
    struct crail_rpc_spot *root;     /* NULL: nobody is interested in anything */
    uint64_t changes;                /* told so far */
    struct crail_list woken;         /* lines */
    struct crail_list retries;       /* waiters that were parked */
    struct crail_list rechecks;      /* spots */
    struct crail_list late, leaving; /* parties */
    struct crail_rpc_waiter **heap;  /* by deadline */
    uint32_t heap_count, heap_cap;
    uint32_t tried_bytes; /* of the last try: its path, and what it was answered */
    struct crail_buf scratch;
};

/* ---- spot.c -------------------------------------------------------------- */

int crail_rpc_waits_init(crail_namenode *nn);
/* Every connection and session is gone. */
void crail_rpc_waits_destroy(crail_namenode *nn);
/* The spot of a valid path, with one more ref. *made: bytes that it took. NULL without memory. */
struct crail_rpc_spot *crail_rpc_spot_get(crail_namenode *nn, const char *path, uint32_t len, uint32_t *made);
void crail_rpc_spot_unref(crail_namenode *nn, struct crail_rpc_spot *spot);
/* The path of a spot, into CRAIL_PATH_MAX bytes. Returns its length. */
uint32_t crail_rpc_spot_path(const struct crail_rpc_spot *spot, char *out);
/* Those who stand there get another try. */
void crail_rpc_line_wake(crail_namenode *nn, struct crail_rpc_line *line);
/* One who waits there for children needs at least so many more of them. */
void crail_rpc_spot_needs_children(struct crail_rpc_spot *spot, uint64_t missing);
/* Looks at a few of the spots below one that came or went. */
void crail_rpc_recheck_some(crail_namenode *nn);

/* ---- wait.c -------------------------------------------------------------- */

/* May this operation be set aside, if it has to wait? 0, or the status that it gets instead of being executed. */
int crail_rpc_wait_allowed(const struct crail_op *op, bool alone);
/* Sets the operation of a request aside: its reply comes later. 0 or a status. */
int crail_rpc_wait_begin(crail_namenode *nn, struct crail_rpc_conn *c, uint64_t id, const struct crail_op *op);
/* Takes a waiting request back: it gets no reply. False: there is none of this id. */
bool crail_rpc_wait_cancel(crail_namenode *nn, struct crail_rpc_conn *c, uint64_t id);
/* The connection ends, and with it all that waits on it. */
void crail_rpc_party_leave(crail_namenode *nn, struct crail_rpc_party *p);
/* Something has become durable. */
void crail_rpc_parties_durable(crail_namenode *nn);
/* Late replies may go out, perhaps. */
void crail_rpc_party_unblocked(crail_namenode *nn, struct crail_rpc_party *p);
/* Work for this turn: those who were woken, late replies, and what is left of connections. */
void crail_rpc_waits_serve(crail_namenode *nn);
bool crail_rpc_waits_pending(const crail_namenode *nn);
/* When the first wait is over; UINT64_MAX for never. */
uint64_t crail_rpc_waits_deadline(const crail_namenode *nn);
void crail_rpc_wait_deadlines(crail_namenode *nn);

/* ---- watch.c ------------------------------------------------------------- */

/* WATCH, NEXT, END: each appends one result, or gives CRAIL_META_WAIT or -ENOMEM. END gives 1 if the token is of no
 * watch: then it is of something else. */
int crail_rpc_watch_begin(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op, const char *path,
                          struct crail_buf *reply);
int crail_rpc_watch_next(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op,
                         struct crail_buf *reply);
int crail_rpc_watch_end(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op,
                        struct crail_buf *reply);
/* The watch of this token, or NULL. */
struct crail_rpc_watch *crail_rpc_watch_find(const struct crail_rpc_session *s, uint64_t token);
/* With their session. */
void crail_rpc_watches_end(crail_namenode *nn, struct crail_rpc_session *s);
/* Notes an event in a spot's log. */
void crail_rpc_log_add(crail_namenode *nn, struct crail_rpc_spot *spot, enum crail_event_kind kind, uint64_t version,
                       const char *path, uint32_t len);
/* What a recheck makes of a watched spot. CAME asks the engine, so it is not for the engine's listener. */
void crail_rpc_log_recheck(crail_namenode *nn, struct crail_rpc_spot *spot, enum crail_rpc_recheck kind,
                           uint64_t since);

#endif
