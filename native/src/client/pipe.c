/* Pipes: the data connection of one open file, so that what was asked ahead, or is not confirmed yet, may stay on
 * its way between two calls. Only where the bytes go over TCP; through shared memory a call is done when it returns.
 *
 * Reading, requests are sent ahead of the reader and their replies received straight into whatever buffer comes next.
 * Writing, the reply to a write is taken when a later call finds it, or by settling. A connection serves in order, so
 * that a read behind a write sees it.
 *
 * The connection is one of a lane's: taken from it, and given back when nothing is on its way. */
#include <assert.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "client.h"

#define PIECE_BYTES_MAX (4ull << 20)
#define AHEAD_BYTES (1ull << 20) /* asked beyond what is wanted, once reading is sequential */

void crail_pipe_open(struct crail_pipe *st, crail_client *c) {
    *st = (struct crail_pipe){.client = c, .data.fd = -1, .fork_epoch = crail_fork_child_epoch};
    crail_client_ref(c);
}

bool crail_pipe_is_ours(const struct crail_pipe *st) {
    return st->client && st->fork_epoch == crail_fork_child_epoch;
}

static bool is_idle(const struct crail_pipe *st) {
    return !st->asks_count && !st->writes && !st->out_sent;
}

static void disconnect(struct crail_pipe *st) {
    if (st->data.fd >= 0) {
        shutdown(st->data.fd, SHUT_RDWR); /* a forked child may have a copy */
        close(st->data.fd);
    }
    st->data.fd = -1;
    st->asks_count = 0;
    st->writes = 0;
    st->out_sent = st->in_got = 0;
}

void crail_pipe_close(struct crail_pipe *st) {
    if (crail_pipe_is_ours(st)) {
        disconnect(st);
        crail_client_unref(st->client);
    } else if (st->client && st->data.fd >= 0) {
        close(st->data.fd); /* the parent's goes on: no shutdown, and nothing of its client is touched */
    }
    st->client = NULL;
    st->data.fd = -1;
}

bool crail_pipe_reaches(const struct crail_pipe *st, uint32_t server) {
    return st->data.fd >= 0 && st->data.server == server;
}

void crail_pipe_put_back(struct crail_pipe *st, struct crail_lane *lane) {
    assert(!st->writes);
    if (st->data.fd >= 0 && is_idle(st) && crail_lane_data_give(lane, st->data))
        st->data.fd = -1;
    disconnect(st);
}

void crail_pipe_take(struct crail_pipe *st, struct crail_lane *lane, uint32_t server) {
    crail_pipe_put_back(st, lane);
    st->data = crail_lane_data_take(lane, server);
    assert(st->data.fd >= 0);
}

void crail_pipe_abort(struct crail_pipe *st) {
    disconnect(st);
}

/* ---- sending and receiving -------------------------------------------------- */

/* 0: try again. */
static int socket_error(int64_t deadline_ns) {
    if (errno == EINTR)
        return -EINTR;
    if (errno == EAGAIN)
        return crail_now_ns() >= deadline_ns ? -ETIMEDOUT : 0;
    return -EPIPE;
}

/* Sends st->request and then `bytes` of data; goes on where an earlier attempt was interrupted. */
static int send_request(struct crail_pipe *st, const uint8_t *data, uint64_t bytes, int64_t deadline_ns) {
    uint64_t head = sizeof(st->request);
    while (st->out_sent < head + bytes) {
        uint64_t of_data = st->out_sent > head ? st->out_sent - head : 0;
        struct iovec part[2] = {{(uint8_t *)&st->request + st->out_sent, head - st->out_sent},
                                {bytes ? (void *)(uintptr_t)(data + of_data) : NULL, bytes - of_data}};
        bool is_head_sent = st->out_sent >= head;
        struct msghdr m = {.msg_iov = part + is_head_sent, .msg_iovlen = (bytes ? 2u : 1u) - is_head_sent};
        ssize_t n = sendmsg(st->data.fd, &m, MSG_NOSIGNAL);
        int rc = n < 0 ? socket_error(deadline_ns) : 0;
        if (rc)
            return rc;
        if (n > 0)
            st->out_sent += (uint64_t)n;
    }
    st->out_sent = 0;
    return 0;
}

/* A part of st->reply: with MSG_DONTWAIT -EAGAIN if it is not all there. */
static int receive_reply(struct crail_pipe *st, int flags, int64_t deadline_ns) {
    while (st->in_got < sizeof(st->reply)) {
        ssize_t n = recv(st->data.fd, (uint8_t *)&st->reply + st->in_got, sizeof(st->reply) - st->in_got, flags);
        if (n == 0)
            return -EPIPE;
        if (n < 0) {
            if (flags && errno == EAGAIN)
                return -EAGAIN;
            int rc = socket_error(deadline_ns);
            if (rc)
                return rc;
            continue;
        }
        st->in_got += (uint32_t)n;
    }
    st->in_got = 0;
    return st->reply.magic == CRAIL_DATA_MAGIC ? 0 : -EPIPE;
}

static void begin_request(struct crail_pipe *st, enum crail_data_code code, const struct crail_extent *e,
                          uint64_t within, uint64_t n) {
    if (st->out_sent) /* the interrupted one, which is the same */
        return;
    st->request = (struct crail_data_request){
        .magic = CRAIL_DATA_MAGIC, .code = code, .id = ++st->id, .extent = *e, .offset = within, .length = n};
}

/* ---- writing ---------------------------------------------------------------- */

/* Takes replies until no more than `left` writes are without theirs; at least those that are here. */
static int confirm(struct crail_pipe *st, uint32_t left, int64_t deadline_ns) {
    while (st->writes) {
        int rc = receive_reply(st, st->writes > left ? 0 : MSG_DONTWAIT, deadline_ns);
        if (rc)
            return rc == -EAGAIN ? 0 : rc;
        if (st->reply.id != st->id - st->writes + 1 || st->reply.length)
            return -EPIPE;
        st->writes--;
        rc = crail_data_status(&st->reply);
        if (rc)
            return rc;
    }
    return 0;
}

int crail_pipe_settle(struct crail_pipe *st, int64_t deadline_ns) {
    return confirm(st, 0, deadline_ns);
}

int crail_pipe_arrived(struct crail_pipe *st, uint64_t size, uint64_t *until) {
    int rc = confirm(st, CRAIL_PIPE_WRITES_MAX, 0);
    *until = size;
    for (uint32_t i = 0; i < st->writes; i++) {
        uint64_t at = st->write_at[(st->id - i) % CRAIL_PIPE_WRITES_MAX];
        if (at < *until)
            *until = at;
    }
    return rc;
}

int crail_pipe_write(struct crail_pipe *st, const struct crail_extent *e, uint64_t within, uint64_t at,
                     const uint8_t *data, uint64_t n, int64_t deadline_ns) {
    assert(crail_pipe_reaches(st, e->server) && !st->asks_count);
    int rc = st->out_sent ? 0 : confirm(st, CRAIL_PIPE_WRITES_MAX - 1, deadline_ns);
    if (rc)
        return rc;
    begin_request(st, CRAIL_DATA_WRITE, e, within, n);
    rc = send_request(st, data, n, deadline_ns);
    if (rc)
        return rc;
    st->write_at[st->id % CRAIL_PIPE_WRITES_MAX] = at;
    st->writes++;
    atomic_fetch_add_explicit(&st->client->bytes_out, n, memory_order_relaxed);
    return 0;
}

/* ---- reading ---------------------------------------------------------------- */

bool crail_pipe_is_astray(const struct crail_pipe *st, uint64_t at) {
    return st->asks_count && st->asks[st->asks_first].at != at;
}

int crail_pipe_ask(struct crail_pipe *st, const struct crail_range *value, uint64_t from, uint64_t until,
                   int64_t deadline_ns) {
    assert(!crail_pipe_is_astray(st, from) && !st->writes && until <= value->bytes);
    while (st->asks_count < CRAIL_PIPE_ASKS) {
        const struct crail_pipe_ask *last = &st->asks[(st->asks_first + st->asks_count - 1) % CRAIL_PIPE_ASKS];
        uint64_t at = st->asks_count ? last->at + last->bytes : from, within;
        if (at >= until)
            break;
        uint32_t i = crail_range_locate(value, at, &within);
        const struct crail_extent *e = &value->extents[i];
        if (e->server != st->data.server)
            break;
        uint64_t n = (uint64_t)e->granules * CRAIL_GRANULE - within;
        if (n > until - at)
            n = until - at;
        if (n > PIECE_BYTES_MAX)
            n = PIECE_BYTES_MAX;
        begin_request(st, CRAIL_DATA_READ, e, within, n);
        int rc = send_request(st, NULL, 0, deadline_ns);
        if (rc)
            return rc;
        st->asks[(st->asks_first + st->asks_count++) % CRAIL_PIPE_ASKS] =
            (struct crail_pipe_ask){.id = st->id, .at = at, .bytes = n};
    }
    return 0;
}

/* Bytes of the oldest ask into the buffer. */
static int receive_bytes(struct crail_pipe *st, uint8_t *to, uint64_t room, uint64_t *got, int64_t deadline_ns) {
    struct crail_pipe_ask *first = &st->asks[st->asks_first];
    if (!first->is_begun) {
        int rc = receive_reply(st, 0, deadline_ns);
        if (rc)
            return rc;
        if (st->reply.id != first->id)
            return -EPIPE;
        rc = crail_data_status(&st->reply);
        if (rc)
            return rc;
        if (st->reply.length != first->bytes)
            return -EPIPE;
        first->is_begun = true;
    }
    ssize_t n = recv(st->data.fd, to, room < first->bytes ? room : first->bytes, 0);
    if (n == 0)
        return -EPIPE;
    if (n < 0)
        return socket_error(deadline_ns);
    *got += (uint64_t)n;
    first->at += (uint64_t)n;
    first->bytes -= (uint64_t)n;
    if (!first->bytes) {
        st->asks_first = (st->asks_first + 1) % CRAIL_PIPE_ASKS;
        st->asks_count--;
    }
    return 0;
}

int crail_pipe_read(struct crail_pipe *st, const struct crail_range *value, uint64_t at, uint8_t *to, uint64_t n,
                    uint64_t *got, int64_t deadline_ns) {
    bool is_sequential = at && at == st->read_end;
    assert(!crail_pipe_is_astray(st, at + *got) && !st->writes);
    uint64_t until = at + n + (is_sequential ? AHEAD_BYTES : 0);
    if (until > value->bytes)
        until = value->bytes;
    while (*got < n) {
        int rc = crail_pipe_ask(st, value, at + *got, until, deadline_ns);
        if (rc)
            return rc;
        if (!st->asks_count)
            return CRAIL_NEED_SERVER;
        uint64_t before = *got;
        rc = receive_bytes(st, to + *got, n - *got, got, deadline_ns);
        atomic_fetch_add_explicit(&st->client->bytes_in, *got - before, memory_order_relaxed);
        if (rc)
            return rc;
    }
    st->read_end = at + n;
    return 0;
}
