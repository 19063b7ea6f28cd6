/* A data connection, as tcpconn.c (its requests, and memory) and spool.c (the disk) see it. */
#ifndef CRAIL_CONN_H
#define CRAIL_CONN_H

#include "storage.h"

enum crail_conn_state {
    CRAIL_CONN_HEAD = 0, /* receiving a request */
    CRAIL_CONN_FILL,     /* receiving the bytes of a WRITE: into the region, a chunk, or (refused) nowhere */
    CRAIL_CONN_DISK,     /* waiting for the disk; nothing to do for the socket */
    CRAIL_CONN_SEND,     /* sending a reply, with the bytes of a READ */
};

/* What a step says. */
enum {
    CRAIL_STEP_ON = 1,
    CRAIL_STEP_WAIT = 0, /* for the socket */
    CRAIL_STEP_PAUSE = 2 /* for the disk, or a buffer. Else -errno: the connection is over */
};

enum crail_chunk_state {
    CRAIL_CHUNK_EMPTY = 0, /* without a buffer */
    CRAIL_CHUNK_FILLING,   /* from the socket */
    CRAIL_CHUNK_AT_DISK,
    CRAIL_CHUNK_READY, /* to be sent */
};

/* A part of a transfer from or to the disk: job.bytes of it, behind job.skip of others. */
struct crail_chunk {
    struct crail_job job;
    struct crail_conn *conn;
    enum crail_chunk_state state;
    uint32_t moved; /* of job.bytes, through the socket */
};

#define CRAIL_CHUNKS 2u /* one is at the disk while the other is at the socket */

struct crail_conn {
    struct crail_source source; /* first: the loop frees it */
    struct crail_conn *next, **link;
    enum crail_conn_state state;
    uint32_t head_done; /* bytes of `request` received, or of `reply` sent */
    uint64_t word;      /* crail_use_word() of the extent being touched, or 0 */
    uint64_t moved_ns;  /* when a byte of it moved last */
    uint8_t *at;        /* next byte in the region's memory; NULL: dropping, or spooled */
    uint64_t left;      /* bytes still to come or to go */
    struct crail_data_request request;
    struct crail_data_reply reply;

    bool is_spooled; /* the transfer goes through chunks */
    bool is_paused;
    bool is_closing;  /* the socket is gone; the slot stays while a job is at the disk */
    int failure;      /* of the disk, in this transfer: -errno */
    uint32_t jobs;    /* at the disk */
    uint64_t planned; /* bytes that have their chunk */
    uint32_t chunk_in, chunk_out;
    struct crail_chunk chunks[CRAIL_CHUNKS];
    uint8_t *spare;              /* a buffer that it waited for */
    struct crail_list run_link;  /* of storage.runnable */
    struct crail_list wait_link; /* of disk.waiting */
    struct crail_list sync_link; /* of storage.flushing */
};

void crail_conn_init(struct crail_conn *c, int fd,
                     void (*ready)(struct crail_storage *s, struct crail_source *source, uint32_t events));
void crail_conn_reply(struct crail_conn *c, int status, uint64_t bytes);
/* The last job of a closing connection is done. */
void crail_conn_end(struct crail_storage *s, struct crail_conn *c);

/* ---- spool.c ------------------------------------------------------------------ */

/* A request whose bytes lie on the disk was admitted: sets the state. */
void crail_spool_begin(struct crail_storage *s, struct crail_conn *c);
/* 0, or what a READ of this extent is answered since a part of it could not be read. */
int crail_spool_verdict(const struct crail_storage *s, const struct crail_extent *e);
/* In CRAIL_CONN_DISK: is there something to answer? */
int crail_spool_step(struct crail_storage *s, struct crail_conn *c);
/* Where the next bytes of a WRITE go, and how many. STEP_ON, or STEP_PAUSE without a buffer. */
int crail_spool_room(struct crail_storage *s, struct crail_conn *c, uint8_t **to, uint64_t *room);
void crail_spool_received(struct crail_storage *s, struct crail_conn *c, uint64_t n);
/* The next bytes of a READ. STEP_ON, STEP_PAUSE, or -EIO. */
int crail_spool_bytes(struct crail_storage *s, struct crail_conn *c, uint8_t **from, uint64_t *n);
void crail_spool_sent(struct crail_storage *s, struct crail_conn *c, uint64_t n);
/* Gives back all that is not at the disk, and leaves every line. */
void crail_spool_drop(struct crail_storage *s, struct crail_conn *c);
/* Does it keep a buffer that its socket has to do with? */
bool crail_spool_keeps(const struct crail_conn *c);

#endif
