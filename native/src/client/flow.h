/* A flow: one connection to the namenode with many requests in flight, for callers that wait elsewhere (an event
 * loop). Operations are packed into frames as they come; flush sends what may go, reply hands out whole replies in
 * whatever order they arrive.
 *
 * A flow is either of two kinds. An unrecorded one (is_recorded false) carries operations without sequence numbers:
 * any number of frames in flight, sent again after a lost connection. A recorded one has one frame in flight, because
 * the namenode keeps the last reply of a lane and no more: what comes meanwhile gathers in the next frame. So
 * exactly-once holds with thousands of changes under way, and a crowd of them costs one round trip.
 *
 * Nothing here is locked, nothing blocks; the descriptor belongs to the caller. */
#ifndef CRAIL_FLOW_H
#define CRAIL_FLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/list.h"
#include "crail/wire.h"

#define CRAIL_FLOW_OPS_MAX 256u /* of an unrecorded frame: the first answer does not wait for a thousand others */
#define CRAIL_FLOW_NEVER INT64_MAX

/* Who asked for one operation. */
struct crail_flow_entry {
    void *waiter;        /* the owner's; NULL: nobody asks for the answer */
    void *about;         /* the owner's */
    int64_t deadline_ns; /* CLOCK_MONOTONIC, or CRAIL_FLOW_NEVER */
    uint64_t target;     /* CANCEL: the frame that it takes back */
    uint32_t index;      /* the owner's */
    uint16_t code;       /* of the operation */
    uint8_t decode;      /* the owner's */
    bool is_dropped;     /* given up; where it was not sent yet, it never is */
};

struct crail_flow_frame {
    struct crail_list link;             /* in queued or sent */
    struct crail_flow_frame *same_hash; /* in buckets */
    struct crail_buf out;               /* the bytes, kept until the reply is here */
    struct crail_flow_entry *entries;   /* one for each operation */
    uint32_t count, room;
    uint64_t id;
    int64_t sent_ns;
    bool is_alone; /* takes no second operation */
    bool waits;    /* its reply may take as long as it likes, and be overtaken */
    bool is_sent;
    bool may_be_done; /* bytes of it went out, on this connection or an earlier one */
};

struct crail_flow_owner {
    bool (*is_dead)(const struct crail_flow_entry *e); /* nobody waits for it any more */
    void (*forget)(struct crail_flow_entry *e);        /* it leaves: give back waiter and about */
};

struct crail_flow {
    const struct crail_flow_owner *owner;
    int fd; /* -1: no connection. The caller's */
    bool is_recorded;
    uint64_t id_last, seq_last;
    uint32_t frames_count;
    struct crail_list queued, sent; /* in order */
    struct crail_flow_frame **buckets;
    uint32_t buckets_count;      /* a power of two, or 0 */
    struct crail_flow_frame *tx; /* first of `sent` that is not out yet */
    size_t tx_at;                /* bytes of it that are */
    struct crail_buf in;
    size_t in_at;        /* where the next reply starts */
    int64_t received_ns; /* the last sign of life */
    uint64_t requests, retries;
};

void crail_flow_init(struct crail_flow *p, bool is_recorded, const struct crail_flow_owner *owner);
/* Forgets every entry and frees everything. */
void crail_flow_free(struct crail_flow *p);

/* Room for one operation in the frame that goes next (is_alone: in one of its own). The caller fills *path, *options
 * (op->options_len bytes, after the path) and *data, and the entry. 0, -ENOMEM, -EMSGSIZE. */
int crail_flow_op(struct crail_flow *p, const struct crail_op *op, bool is_alone, uint8_t **path, uint8_t **data,
                  struct crail_flow_entry **entry, uint64_t *frame);

/* A connection whose hello is done; what was in flight goes out again. fresh: of another session, so a recorded flow
 * counts from 1 again. */
void crail_flow_attach(struct crail_flow *p, int fd, bool fresh);
/* The connection is gone. Unrecorded operations that nobody waits for are forgotten. */
void crail_flow_detach(struct crail_flow *p);

/* Sends what may be sent. 0: all of it, -EAGAIN: the socket is full, -EPIPE. */
int crail_flow_flush(struct crail_flow *p, int64_t now_ns);
/* One receive. The number of bytes, -EAGAIN, -EPIPE, -ENOMEM. */
long crail_flow_receive(struct crail_flow *p, int64_t now_ns);
/* 1: a frame that was answered, taken out of the flow, and the first of its results. The caller ends with
 * crail_flow_frame_free(); the results are valid until the next receive. 0: no whole reply yet. -EPIPE: nonsense. */
int crail_flow_reply(struct crail_flow *p, struct crail_flow_frame **frame, const struct crail_result **results);
/* The result after `r`; its data lie behind it. */
const struct crail_result *crail_flow_next(const struct crail_result *r);

struct crail_flow_frame *crail_flow_find(struct crail_flow *p, uint64_t id);
/* Takes a frame that is queued, or that will not be answered, out of the flow and frees it. */
void crail_flow_remove(struct crail_flow *p, struct crail_flow_frame *f);
/* Forgets its entries and frees it. */
void crail_flow_frame_free(struct crail_flow *p, struct crail_flow_frame *f);
/* When the oldest frame in flight that does not wait went out, or the last sign of life if that was later;
 * CRAIL_FLOW_NEVER if there is none. */
int64_t crail_flow_silent_since(const struct crail_flow *p);

#endif
