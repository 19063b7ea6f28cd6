/* The bytes of one connection. Level-triggered and lazy: EPOLLIN stays armed while requests come one at a time; only
 * a connection that sends while it is not being read (a vector in slices, a reply that the client does not take) has
 * it switched off, and on again when it is idle.
 *
 * in:  [done with | received | room]; frames are served where they lie. The buffer grows by what really came (it
 *      doubles when it is full), never by what a header announces.
 * out: one reply at a time; the next frame is looked at when it is gone. Replies to requests that waited (wait.c) go
 * out between two of them. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rpc/rpc.h"

/* ---- open and close ------------------------------------------------------ */

int crail_rpc_conn_open(crail_namenode *nn, int fd, struct crail_rpc_lane *lane, struct crail_rpc_ring *ring) {
    assert(!lane->conn);
    struct crail_rpc_conn *c = calloc(1, sizeof *c);
    int rc = c ? crail_rpc_endpoint_open(nn, &c->end, CRAIL_RPC_CONN, fd) : -ENOMEM;
    if (rc) {
        close(fd);
        crail_rpc_ring_free(ring);
        free(c);
        return rc;
    }
    rc = ring ? crail_rpc_ring_open(nn, ring, c) : 0;
    if (rc) {
        crail_rpc_endpoint_close(nn, &c->end);
        crail_rpc_ring_free(ring);
        return rc;
    }
    crail_list_init(&c->drain);
    crail_list_init(&c->large);
    c->lane = lane;
    c->ring = ring;
    lane->conn = c;
    nn->stats.lanes++;
    crail_rpc_session_conn_gained(lane->session, fd);
    if (ring)
        crail_rpc_ring_event(nn, ring); /* the client was quicker, perhaps */
    return 0;
}

void crail_rpc_conn_close(crail_namenode *nn, struct crail_rpc_conn *c) {
    struct crail_rpc_lane *lane = c->lane;
    assert(lane && lane->conn == c);
    crail_rpc_endpoint_close(nn, &c->end);
    if (c->ring)
        crail_rpc_ring_close(nn, c->ring);
    c->ring = NULL;
    crail_list_remove(&c->drain);
    crail_list_remove(&c->large);
    if (c->party)
        crail_rpc_party_leave(nn, c->party);
    c->party = NULL;
    crail_rpc_lane_lost_conn(nn, lane); /* may take `in` away */
    lane->conn = NULL;
    c->lane = NULL;
    free(c->in);
    c->in = NULL;
    crail_buf_free(&c->out);
    nn->stats.lanes--;
    crail_rpc_session_conn_lost(nn, lane->session);
}

void crail_rpc_conn_refuse(crail_namenode *nn, struct crail_rpc_conn *c) {
    nn->stats.protocol_errors++;
    crail_rpc_conn_close(nn, c);
}

/* Beside a ring the socket is silent. */
static void silent_event(crail_namenode *nn, struct crail_rpc_conn *c) {
    uint8_t byte;
    ssize_t n = recv(c->end.fd, &byte, 1, MSG_DONTWAIT);
    if (n > 0)
        crail_rpc_conn_refuse(nn, c);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        crail_rpc_conn_close(nn, c);
}

void crail_rpc_conn_event(crail_namenode *nn, struct crail_rpc_conn *c, uint32_t events) {
    struct crail_rpc_lane *lane = c->lane;
    if (c->ring) {
        silent_event(nn, c);
        return;
    }
    bool busy = lane->vec.frame || lane->held || c->tx_left;
    if ((events & (EPOLLERR | EPOLLHUP)) && (busy || !(events & EPOLLIN))) {
        /* Cannot be switched off, so it is acted upon; an idle one is read first: its last words may be there. */
        crail_rpc_conn_close(nn, c);
        return;
    }
    if (events & EPOLLIN) {
        if (busy) {
            crail_rpc_arm(nn, &c->end, c->end.armed & ~(uint32_t)EPOLLIN);
        } else {
            c->readable = true;
            if (lane->state == CRAIL_RPC_LANE_IDLE) /* else it keeps its place in the queue */
                crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY);
        }
    }
    if ((events & EPOLLOUT) && c->blocked) {
        c->blocked = false;
        if (c->party)
            crail_rpc_party_unblocked(nn, c->party);
        if (lane->state == CRAIL_RPC_LANE_IDLE)
            crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY);
    }
}

/* ---- in ------------------------------------------------------------------ */

/* Room for another receive. False: no memory. */
static bool make_room(struct crail_rpc_conn *c) {
    if (c->in_pos) {
        memmove(c->in, c->in + c->in_pos, c->in_len - c->in_pos);
        c->in_len -= c->in_pos;
        c->in_pos = 0;
    }
    if (c->in_len < c->in_cap)
        return true;
    uint32_t cap = c->in_cap ? 2 * c->in_cap : CRAIL_RPC_INPUT_BYTES;
    assert(cap <= 2 * CRAIL_FRAME_BYTES_MAX); /* a full buffer without a whole frame holds less than one */
    uint8_t *in = realloc(c->in, cap);
    if (!in)
        return false;
    c->in = in;
    c->in_cap = cap;
    return true;
}

/* As recv(2), but -errno, through whatever the connection has. */
static ssize_t stream_read(struct crail_rpc_conn *c, void *to, size_t n) {
    if (c->ring)
        return crail_rpc_ring_read(c->ring, to, n);
    ssize_t got = recv(c->end.fd, to, n, MSG_DONTWAIT);
    return got < 0 ? -errno : got;
}

static ssize_t stream_write(struct crail_rpc_conn *c, const void *from, size_t n) {
    if (c->ring)
        return crail_rpc_ring_write(c->ring, from, n);
    ssize_t put = send(c->end.fd, from, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    return put < 0 ? -errno : put;
}

bool crail_rpc_conn_receive(crail_namenode *nn, struct crail_rpc_conn *c) {
    assert(!c->lane->held && (!c->lane->vec.frame || c->lane->orphan)); /* nothing points into the buffer */
    if (!make_room(c)) {
        crail_rpc_conn_close(nn, c);
        return false;
    }
    size_t room = c->in_cap - c->in_len;
    ssize_t n = stream_read(c, c->in + c->in_len, room < CRAIL_RPC_CHUNK_BYTES ? room : CRAIL_RPC_CHUNK_BYTES);
    if (n > 0) {
        c->in_len += (uint32_t)n;
        nn->stats.bytes_in += (uint64_t)n;
        return true;
    }
    if (n == -EAGAIN || n == -EINTR)
        return true;
    if (n == -EPROTO)
        crail_rpc_conn_refuse(nn, c);
    else
        crail_rpc_conn_close(nn, c);
    return false;
}

/* Do the operations fill the frame exactly? */
static bool operations_fit(const uint8_t *frame, const struct crail_frame *head) {
    uint64_t at = sizeof *head;
    for (uint32_t i = 0; i < head->count; i++) {
        if (head->size - at < sizeof(struct crail_op))
            return false;
        const struct crail_op *op = (const void *)(frame + at);
        uint64_t bytes = (sizeof *op + (uint64_t)op->path_len + op->options_len + op->data_len + 7) & ~(uint64_t)7;
        if ((op->options_len && op->options_len != sizeof(struct crail_options)) || bytes > head->size - at)
            return false;
        at += bytes;
    }
    return at == head->size;
}

enum crail_rpc_frame crail_rpc_conn_frame(struct crail_rpc_conn *c, const uint8_t **frame) {
    uint32_t there = c->in_len - c->in_pos;
    if (there < sizeof(struct crail_frame)) {
        if (!there)
            c->in_pos = c->in_len = 0;
        return CRAIL_RPC_FRAME_NONE;
    }
    const uint8_t *p = c->in + c->in_pos;
    const struct crail_frame *head = (const void *)p;
    assert((uintptr_t)p % 8 == 0);
    if (head->magic != CRAIL_FRAME_MAGIC || head->flags || head->size % 8 || head->size > CRAIL_FRAME_BYTES_MAX ||
        head->size < sizeof *head + sizeof(struct crail_op) || !head->count || head->count > CRAIL_VECTOR_OPS_MAX)
        return CRAIL_RPC_FRAME_GARBAGE;
    if (there < head->size)
        return CRAIL_RPC_FRAME_NONE;
    if (!operations_fit(p, head))
        return CRAIL_RPC_FRAME_GARBAGE;
    c->in_pos += head->size;
    *frame = p;
    return CRAIL_RPC_FRAME_WHOLE;
}

/* ---- out ----------------------------------------------------------------- */

/* The client took something, or begins to keep us waiting: its time starts now. */
static void drain_from_now(crail_namenode *nn, struct crail_rpc_conn *c) {
    c->drain_since = nn->now_ns;
    crail_list_push(&nn->drain, &c->drain);
}

enum crail_rpc_sent crail_rpc_conn_flush(crail_namenode *nn, struct crail_rpc_conn *c) {
    assert(c->tx_left && !c->blocked);
    size_t want = c->tx_left < CRAIL_RPC_CHUNK_BYTES ? c->tx_left : CRAIL_RPC_CHUNK_BYTES;
    ssize_t n = stream_write(c, c->tx, want);
    if (n < 0 && n != -EAGAIN && n != -EINTR) {
        crail_rpc_conn_close(nn, c);
        return CRAIL_RPC_SENT_CLOSED;
    }
    if (n > 0) {
        c->tx += n;
        c->tx_left -= (size_t)n;
        nn->stats.bytes_out += (uint64_t)n;
    }
    if (!c->tx_left && c->reply_left) {
        c->tx = c->reply;
        c->tx_left = c->reply_left;
        c->reply_left = 0;
        drain_from_now(nn, c);
        return CRAIL_RPC_SENT_PART;
    }
    if (!c->tx_left) {
        crail_list_remove(&c->drain);
        return CRAIL_RPC_SENT_ALL;
    }
    if (n > 0 || crail_list_empty(&c->drain))
        drain_from_now(nn, c);
    if (n > 0 && (size_t)n == want)
        return CRAIL_RPC_SENT_PART; /* the kernel may take more: after the others had their turn */
    if (c->ring && !crail_ring_sleep_for_room(&c->ring->ring))
        return CRAIL_RPC_SENT_PART;
    c->blocked = true;
    if (!c->ring)
        crail_rpc_arm(nn, &c->end, EPOLLOUT); /* and not EPOLLIN: who does not read is not read */
    return CRAIL_RPC_SENT_BLOCKED;
}

enum crail_rpc_sent crail_rpc_conn_send(crail_namenode *nn, struct crail_rpc_conn *c, const uint8_t *data, size_t n) {
    assert(!c->reply_left && n);
    if (c->tx_left) {
        c->reply = data;
        c->reply_left = n;
        return c->blocked ? CRAIL_RPC_SENT_BLOCKED : CRAIL_RPC_SENT_PART;
    }
    c->tx = data;
    c->tx_left = n;
    return crail_rpc_conn_flush(nn, c);
}

/* ---- idle ---------------------------------------------------------------- */

void crail_rpc_conn_idle(crail_namenode *nn, struct crail_rpc_conn *c) {
    assert(!c->tx_left && !c->blocked);
    if (c->ring)
        crail_rpc_ring_idle(nn, c->ring);
    crail_rpc_arm(nn, &c->end, EPOLLIN);
    if (c->in_cap > CRAIL_RPC_LARGE_BYTES || c->out.cap > CRAIL_RPC_LARGE_BYTES) {
        c->large_since = nn->now_ns;
        crail_list_push(&nn->large, &c->large);
    }
}

static void shrink(struct crail_rpc_conn *c) {
    if (c->lane->state != CRAIL_RPC_LANE_IDLE || c->tx_left)
        return; /* in use; it is noted again when it is idle */
    crail_buf_free(&c->out);
    if (c->in_len == c->in_pos) {
        free(c->in);
        c->in = NULL;
        c->in_cap = c->in_len = c->in_pos = 0;
    }
}

void crail_rpc_conn_deadlines(crail_namenode *nn) {
    while (!crail_list_empty(&nn->drain)) {
        struct crail_rpc_conn *c = CRAIL_LIST_OF(nn->drain.next, struct crail_rpc_conn, drain);
        if (c->drain_since + nn->tuning.drain_ns > nn->now_ns)
            break;
        crail_rpc_conn_close(nn, c);
    }
    while (!crail_list_empty(&nn->large)) {
        struct crail_rpc_conn *c = CRAIL_LIST_OF(nn->large.next, struct crail_rpc_conn, large);
        if (c->large_since + nn->tuning.idle_ns > nn->now_ns)
            break;
        crail_list_remove(&c->large);
        shrink(c);
    }
}
