/* Lanes: the pool, and one request and its reply on a connection.
 *
 * The connection is a blocking socket whose receive timeout is one tick of the kernel's clock. So the common call is
 * two system calls, send and recv, and a reply that is late shows itself by -EAGAIN without a clock being read.
 *
 * With a ring the bytes go through shared memory. In a dense stream the namenode waits awake for the next request, and
 * we wait awake for the reply for a moment, so that no system call is made at all. Then we nap for that tick; and who
 * waits longer sleeps on the socket, by which the namenode wakes us with a byte, or ends. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "client.h"

#define RECEIVE_BYTES_MIN (64u << 10)             /* room for a receive: most replies need no second one */
#define BUFFER_BYTES_KEPT (4u << 20)              /* a lane that was checked in keeps no larger buffers */
#define REPLY_BYTES_MAX (64u << 20)               /* a vector's largest honest reply is far below */
#define CLOSE_NS (CRAIL_RING_SPIN_NS_MAX - 10000) /* a request follows the reply before closely within this */
#define DENSE_REQUESTS 32u                        /* so many more such requests than others make a dense stream... */
#define DENSITY_MAX 64u                           /* ... and what is beyond this is forgotten */
#define PAUSE_COST 8u                             /* another request counts as much as so many close ones */
#define THOUGHT_NS 15000 /* who thinks longer than this, mostly, works on something: on values of 1 MiB, say */
#define WAKE_NS 40000    /* until a namenode that was rung answers, where its core has to wake first */

/* ---- the pool ------------------------------------------------------------ */

/* A forked child may have copies of the descriptors: the peers must learn of the end all the same. */
static void end_connection(int fd) {
    shutdown(fd, SHUT_RDWR);
    close(fd);
}

static void data_disconnect(struct crail_lane *lane) {
    while (lane->data_count)
        end_connection(lane->data[--lane->data_count].fd);
}

static void namenode_disconnect(struct crail_lane *lane) {
    if (lane->fd >= 0)
        end_connection(lane->fd);
    lane->fd = -1;
    if (!crail_ring_is_open(&lane->ring))
        return;
    crail_ring_close(&lane->ring);
    close(lane->bell);
}

static void disconnect(struct crail_lane *lane) {
    namenode_disconnect(lane);
    data_disconnect(lane);
}

static void lane_free(struct crail_lane *lane) {
    disconnect(lane);
    crail_buf_free(&lane->out);
    crail_buf_free(&lane->in);
    free(lane);
}

/* A lane of a new number, in the table. NULL without memory. The lock is held. */
static struct crail_lane *lane_new(crail_client *c) {
    struct crail_lane *lane = calloc(1, sizeof(*lane));
    if (!lane)
        return NULL;
    lane->client = c;
    lane->number = c->lanes_count;
    lane->fd = -1;
    assert(!c->lanes[lane->number]);
    c->lanes[c->lanes_count++] = lane;
    return lane;
}

int crail_lane_checkout(crail_client *c, uint32_t reserve, struct crail_lane **out) {
    int rc = 0;
    pthread_mutex_lock(&c->lock);
    struct crail_lane *lane = c->is_closed ? NULL : c->free_lanes;
    if (c->is_closed)
        rc = -CRAIL_E_CLOSED;
    else if (lane)
        c->free_lanes = lane->next_free;
    else if (c->lanes_count >= c->options.lanes_max + reserve)
        rc = -EBUSY;
    else if (!(lane = lane_new(c)))
        rc = -ENOMEM;
    if (lane) {
        assert(!lane->checked_out);
        lane->checked_out = true;
        crail_client_ref(c);
        *out = lane;
        rc = lane->fd < 0 ? -EAGAIN : 0;
    }
    pthread_mutex_unlock(&c->lock);
    return rc;
}

static void shrink(struct crail_buf *b) {
    if (b->cap > BUFFER_BYTES_KEPT)
        crail_buf_free(b);
}

void crail_lane_checkin(struct crail_lane *lane) {
    crail_client *c = lane->client;
    shrink(&lane->out);
    shrink(&lane->in);
    pthread_mutex_lock(&c->lock);
    assert(lane->checked_out);
    lane->checked_out = false;
    if (c->is_closed) {
        c->lanes[lane->number] = NULL;
        lane_free(lane);
    } else {
        lane->next_free = c->free_lanes;
        c->free_lanes = lane;
        pthread_cond_signal(&c->lane_freed);
    }
    pthread_mutex_unlock(&c->lock);
    crail_client_unref(c);
}

/* The number of the request in `out`, if its reply may bring extents, else 0. */
static uint64_t seq_of_grant(const struct crail_lane *lane) {
    const struct crail_frame *f = (const struct crail_frame *)lane->out.data;
    if (!lane->is_mutating || !lane->out.len || !f->magic || f->count != 1)
        return 0;
    const struct crail_op *op = (const struct crail_op *)(f + 1);
    bool asks = op->code == CRAIL_OP_ALLOC || (op->code == CRAIL_OP_COMMIT && op->flags & CRAIL_OPF_GRANT_AGAIN);
    return asks ? f->seq : 0;
}

void crail_lane_discard(struct crail_lane *lane) {
    uint64_t seq = seq_of_grant(lane);
    lane->seq_given_up = seq ? seq : lane->seq_given_up;
    disconnect(lane);
    lane->is_lost = true;
    crail_lane_begin(lane);
    crail_lane_checkin(lane);
}

int crail_lane_wait(crail_client *c, int64_t timeout_ns) {
    int64_t until = crail_now_ns() + timeout_ns;
    struct timespec t = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    int rc = 0;
    pthread_mutex_lock(&c->lock);
    while (rc == 0 && !c->is_closed && !c->free_lanes && c->lanes_count >= c->options.lanes_max)
        rc = pthread_cond_timedwait(&c->lane_freed, &c->lock, &t);
    pthread_mutex_unlock(&c->lock);
    return -rc;
}

static int set_socket(int fd) {
    struct timeval tick = {.tv_usec = 1000};
    int on = 1;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof(tick)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tick, sizeof(tick)) < 0)
        return -errno;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* refused by a unix socket, and not needed there */
    return 0;
}

static int ring_open(const int *fds2, struct crail_ring *ring, int *bell) {
    int rc = crail_ring_open(ring, fds2[0], false);
    if (rc)
        return rc;
    *bell = fcntl(fds2[1], F_DUPFD_CLOEXEC, 0);
    rc = *bell < 0 ? -errno : 0;
    if (rc)
        crail_ring_close(ring);
    return rc;
}

int crail_client_lane_add(crail_client *c, uint32_t number, int fd, int fresh, const int *ring_fds2) {
    struct crail_ring ring = {0};
    int bell = -1, rc = set_socket(fd);
    if (!rc && ring_fds2)
        rc = ring_open(ring_fds2, &ring, &bell);
    pthread_mutex_lock(&c->lock);
    struct crail_lane *lane = number < CRAIL_CLIENT_LANES_MAX ? c->lanes[number] : NULL;
    if (!rc && !lane)
        rc = -EINVAL;
    if (!rc && c->is_closed)
        rc = -CRAIL_E_CLOSED;
    if (rc) {
        pthread_mutex_unlock(&c->lock);
        close(fd);
        crail_ring_close(&ring);
        if (bell >= 0)
            close(bell);
        return rc;
    }
    assert(lane->checked_out);
    if (lane->fd >= 0)
        atomic_fetch_add(&c->reconnects, 1);
    namenode_disconnect(lane);
    lane->fd = fd;
    lane->ring = ring;
    lane->bell = bell;
    lane->pace = (struct crail_ring_pace){0};
    lane->follows_ns = 0;
    lane->long_thoughts = 0;
    lane->core = 0;
    lane->density = 0;
    if (fresh) {
        lane->seq_last = 0;
        lane->seq_given_up = 0; /* it went with its session */
        lane->is_lost = false;
        lane->grants_count = 0;
        data_disconnect(lane); /* their keys were of another life */
        if (lane->is_mutating && lane->out.len)
            ((struct crail_frame *)lane->out.data)->seq = ++lane->seq_last;
    }
    pthread_mutex_unlock(&c->lock);
    return 0;
}

/* ---- the stream: the socket, or the ring ---------------------------------- */

static int wait_readable(int fd, int64_t timeout_ns) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    struct timespec t = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    int n = ppoll(&p, 1, &t, NULL);
    return n < 0 ? -errno : n == 0 ? -EAGAIN : 0;
}

/* Waits for bytes of the ring: a tick, or on the socket, which also tells of the connection's end. 0: look again. */
static int wait_for_bytes(struct crail_lane *lane, int64_t timeout_ns) {
    uint8_t bells[64];
    if (!timeout_ns)
        return crail_ring_nap_for_bytes(&lane->ring);
    if (!crail_ring_sleep_for_bytes(&lane->ring))
        return 0;
    int rc = wait_readable(lane->fd, timeout_ns);
    if (rc)
        return rc;
    ssize_t n = recv(lane->fd, bells, sizeof(bells), 0);
    if (n > 0 || crail_ring_readable(&lane->ring)) /* its last words may be there */
        return 0;
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return -errno;
    if (!crail_ring_is_drained(&lane->ring)) /* it ended, and never had the whole request */
        lane->out_sent = 0;
    return -EPIPE;
}

static void ring_bell(struct crail_lane *lane) {
    eventfd_write(lane->bell, 1);
    lane->was_rung = true;
}

/* Looks for bytes, and once for each request without sleeping: in a dense stream for as long as a namenode that is
 * awake may need, else for as long as one needs that begins at once. Where that does not help, `pace` soon forbids it;
 * not at once, since a namenode that needs this core for it is moved to another one only while we keep this one busy.
 */
static bool spin(struct crail_lane *lane) {
    bool found = crail_ring_readable(&lane->ring), may = lane->may_spin;
    lane->may_spin = false;
    if (found || !may || !crail_ring_may_spin(&lane->pace))
        return found;
    int64_t until = crail_now_ns() + (lane->follows_ns && lane->was_rung ? WAKE_NS : CRAIL_RING_SPIN_NS);
    do {
        for (int i = 0; i < 8 && !found; i++) {
            crail_ring_pause();
            found = crail_ring_readable(&lane->ring);
        }
    } while (!found && crail_now_ns() < until);
    crail_ring_spun(&lane->pace, found);
    return found;
}

/* As recv(2), but -errno. timeout_ns: 0 for a tick. */
static ssize_t stream_read(struct crail_lane *lane, void *to, size_t n, int64_t timeout_ns) {
    if (!crail_ring_is_open(&lane->ring)) {
        int rc = timeout_ns ? wait_readable(lane->fd, timeout_ns) : 0;
        ssize_t got = rc ? rc : recv(lane->fd, to, n, 0);
        return got < 0 && !rc ? -errno : got;
    }
    int rc = spin(lane) || crail_ring_readable(&lane->ring) ? 0 : wait_for_bytes(lane, timeout_ns);
    if (rc)
        return rc;
    if (!crail_ring_readable(&lane->ring))
        return -EAGAIN; /* rung for nothing: the caller knows what time is left */
    ssize_t got = crail_ring_read(&lane->ring, to, n);
    if (got > 0 && crail_ring_wake_writer(&lane->ring))
        ring_bell(lane);
    return got;
}

/* For a tick there was no room: is there nobody any more who makes some? */
static int look_for_end(struct crail_lane *lane) {
    uint8_t bells[64];
    ssize_t n = recv(lane->fd, bells, sizeof(bells), MSG_DONTWAIT);
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
        return -EAGAIN;
    lane->out_sent = 0; /* it never had the whole request */
    return -EPIPE;
}

/* As send(2), but -errno. Waits a tick at most. */
static ssize_t stream_write(struct crail_lane *lane, const void *from, size_t n) {
    if (!crail_ring_is_open(&lane->ring)) {
        ssize_t put = send(lane->fd, from, n, MSG_NOSIGNAL);
        return put < 0 ? -errno : put;
    }
    for (;;) {
        ssize_t put = crail_ring_write(&lane->ring, from, n);
        if (put > 0 && crail_ring_wake_reader(&lane->ring))
            ring_bell(lane);
        if (put)
            return put;
        int rc = crail_ring_nap_for_room(&lane->ring);
        if (rc == -EAGAIN)
            rc = look_for_end(lane);
        if (rc)
            return rc;
    }
}

static const struct crail_op *first_op(const struct crail_lane *lane) {
    return (const struct crail_op *)(lane->out.data + sizeof(struct crail_frame));
}

/* A request is about to be sent: is the stream dense? The namenode hears of it, and waits awake for the next. */
static void note_pace(struct crail_lane *lane) {
    int64_t thought = crail_now_ns() - lane->replied_ns;
    if (thought < CLOSE_NS)
        lane->density += lane->density < DENSITY_MAX;
    else
        lane->density -= lane->density < PAUSE_COST ? lane->density : PAUSE_COST;
    lane->long_thoughts += thought < THOUGHT_NS ? -(lane->long_thoughts > 0) : lane->long_thoughts < DENSE_REQUESTS;
    lane->was_rung = false;
    lane->may_spin = true;
    uint32_t core = (uint32_t)sched_getcpu(), follows_ns = 0;
    if (lane->density >= DENSE_REQUESTS && !(first_op(lane)->flags & CRAIL_OPF_WAIT))
        follows_ns = lane->long_thoughts > DENSE_REQUESTS / 2 ? CRAIL_RING_SPIN_NS_MAX : CRAIL_RING_SPIN_NS;
    if (follows_ns != lane->follows_ns)
        atomic_store_explicit(&lane->ring.memory->follows_ns, follows_ns, memory_order_relaxed);
    lane->follows_ns = follows_ns;
    if (core != lane->core)
        atomic_store_explicit(&lane->ring.memory->client_core, core, memory_order_relaxed);
    lane->core = core;
}

/* ---- a request ----------------------------------------------------------- */

void crail_lane_begin(struct crail_lane *lane) {
    lane->out.len = 0;
    lane->out_sent = 0;
    lane->is_mutating = false;
    lane->in.len = 0;
    lane->in_at = 0;
}

int crail_lane_op(struct crail_lane *lane, const struct crail_op *op, uint8_t **path, uint8_t **data) {
    struct crail_buf *b = &lane->out;
    size_t head = b->len ? 0 : sizeof(struct crail_frame);
    size_t body = sizeof(*op) + crail_pad8((uint32_t)op->path_len + op->options_len + op->data_len);
    if (b->len + head + body > CRAIL_FRAME_BYTES_MAX || crail_lane_ops(lane) >= CRAIL_VECTOR_OPS_MAX)
        return -EMSGSIZE;
    int rc = crail_buf_reserve(b, head + body);
    if (rc)
        return rc;
    if (head) {
        memset(b->data, 0, head);
        b->len = head;
    }
    uint8_t *at = b->data + b->len;
    memcpy(at, op, sizeof(*op));
    memset(at + body - 8, 0, body > sizeof(*op) ? 8 : 0);
    *path = at + sizeof(*op);
    *data = *path + op->path_len; /* options come first, where the op has some */
    b->len += body;
    ((struct crail_frame *)b->data)->count++;
    if (op->code >= CRAIL_OP_RECORDED_FIRST && op->code < CRAIL_OP_HOLDS_FIRST)
        lane->is_mutating = true;
    return 0;
}

uint32_t crail_lane_ops(const struct crail_lane *lane) {
    return lane->out.len ? ((const struct crail_frame *)lane->out.data)->count : 0;
}

static void finish_frame(struct crail_lane *lane) {
    struct crail_frame *f = (struct crail_frame *)lane->out.data;
    assert(f->count > 0 && lane->out.len % 8 == 0);
    f->magic = CRAIL_FRAME_MAGIC;
    f->size = (uint32_t)lane->out.len;
    f->id = ++lane->id_last;
    f->seq = lane->is_mutating ? ++lane->seq_last : 0;
    atomic_fetch_add_explicit(&lane->client->requests, 1, memory_order_relaxed);
}

static bool is_commit(const struct crail_lane *lane) {
    return first_op(lane)->code == CRAIL_OP_COMMIT;
}

int crail_lane_send(struct crail_lane *lane) {
    if (((struct crail_frame *)lane->out.data)->magic == 0)
        finish_frame(lane);
    if (is_commit(lane))
        crail_failpoint("commit-unsent");
    if (crail_ring_is_open(&lane->ring) && !lane->out_sent)
        note_pace(lane);
    while (lane->out_sent < lane->out.len) {
        ssize_t n = stream_write(lane, lane->out.data + lane->out_sent, lane->out.len - lane->out_sent);
        if (n < 0)
            return n == -EINTR || n == -EAGAIN ? (int)n : -EPIPE;
        lane->out_sent += (size_t)n;
    }
    if (is_commit(lane))
        crail_failpoint("commit-sent");
    return 0;
}

void crail_lane_send_again(struct crail_lane *lane) {
    lane->out_sent = 0;
    lane->in.len = 0;
    atomic_fetch_add_explicit(&lane->client->retries, 1, memory_order_relaxed);
}

/* Is there a whole reply in `in`, and is it ours? 0, -EAGAIN (read on), -EPIPE. */
static int check_reply(struct crail_lane *lane) {
    const struct crail_frame *sent = (const struct crail_frame *)lane->out.data;
    while (lane->in.len >= sizeof(struct crail_frame)) {
        const struct crail_frame *f = (const struct crail_frame *)lane->in.data;
        if (f->magic != CRAIL_FRAME_MAGIC || f->size < sizeof(*f) || f->size > REPLY_BYTES_MAX || f->size % 8)
            return -EPIPE;
        if (lane->in.len < f->size)
            return -EAGAIN;
        if (f->id == sent->id) {
            lane->in_at = sizeof(*f);
            return f->count == sent->count && lane->in.len == f->size ? 0 : -EPIPE;
        }
        if (f->id > sent->id) /* an answer to a question that was never asked */
            return -EPIPE;
        size_t rest = lane->in.len - f->size; /* a late reply to a copy that was sent before */
        memmove(lane->in.data, lane->in.data + f->size, rest);
        lane->in.len = rest;
    }
    return -EAGAIN;
}

int crail_lane_receive(struct crail_lane *lane, int64_t timeout_ns) {
    for (;;) {
        size_t want = RECEIVE_BYTES_MIN;
        if (lane->in.len >= sizeof(struct crail_frame)) {
            size_t size = ((struct crail_frame *)lane->in.data)->size;
            want = size > lane->in.len ? size - lane->in.len : want;
        }
        if (crail_buf_reserve(&lane->in, want))
            return -ENOMEM;
        ssize_t n = stream_read(lane, lane->in.data + lane->in.len, lane->in.cap - lane->in.len, timeout_ns);
        if (n <= 0)
            return n == -EINTR || n == -EAGAIN ? (int)n : -EPIPE;
        lane->in.len += (size_t)n;
        int rc = check_reply(lane);
        if (rc == 0 && crail_ring_is_open(&lane->ring))
            lane->replied_ns = crail_now_ns();
        if (rc != -EAGAIN)
            return rc;
    }
}

const struct crail_result *crail_lane_result(struct crail_lane *lane, const void **data) {
    if (lane->in.len - lane->in_at < sizeof(struct crail_result))
        return NULL;
    const struct crail_result *r = (const struct crail_result *)(lane->in.data + lane->in_at);
    size_t body = sizeof(*r) + (((size_t)r->data_len + 7) & ~(size_t)7);
    if (lane->in.len - lane->in_at < body || !crail_is_answer(r->status))
        return NULL;
    *data = r + 1;
    lane->in_at += body;
    return r;
}

/* ---- grants held ahead --------------------------------------------------- */

bool crail_lane_grant_take(struct crail_lane *lane, uint64_t size, struct crail_extent *out) {
    uint64_t need = (size + CRAIL_GRANULE - 1) / CRAIL_GRANULE;
    for (uint32_t i = 0; i < lane->grants_count; i++) {
        const struct crail_extent *e = &lane->grants[i];
        if (e->granules < need || e->granules > need + need / 4)
            continue;
        *out = *e;
        lane->grants[i] = lane->grants[--lane->grants_count];
        return true;
    }
    return false;
}

bool crail_lane_grant_room(const struct crail_lane *lane, uint64_t size) {
    uint64_t bytes = size;
    for (uint32_t i = 0; i < lane->grants_count; i++)
        bytes += (uint64_t)lane->grants[i].granules * CRAIL_GRANULE;
    return lane->grants_count < CRAIL_LANE_GRANTS && bytes <= CRAIL_LANE_GRANT_BYTES_MAX;
}

bool crail_lane_grant_keep(struct crail_lane *lane, const struct crail_extent *extent) {
    if (!crail_lane_grant_room(lane, (uint64_t)extent->granules * CRAIL_GRANULE))
        return false;
    lane->grants[lane->grants_count++] = *extent;
    return true;
}

static uint32_t drop_some(struct crail_lane *lane, struct crail_extent *out, uint32_t max) {
    uint32_t n = 0;
    while (n < max && lane->grants_count)
        out[n++] = lane->grants[--lane->grants_count];
    return n;
}

uint32_t crail_lane_grants_drop(struct crail_lane *lane, struct crail_extent *out, uint32_t max) {
    crail_client *c = lane->client;
    uint32_t n = drop_some(lane, out, max);
    pthread_mutex_lock(&c->lock);
    for (struct crail_lane *l = c->free_lanes; l && n < max; l = l->next_free)
        n += drop_some(l, out + n, max - n);
    pthread_mutex_unlock(&c->lock);
    return n;
}

/* ---- closing ------------------------------------------------------------- */

void crail_client_close(crail_client *c) {
    pthread_mutex_lock(&c->lock);
    c->is_closed = true;
    for (uint32_t i = 0; i < CRAIL_CLIENT_LANES_MAX; i++) {
        struct crail_lane *lane = c->lanes[i];
        if (!lane)
            continue;
        if (lane->checked_out) { /* its caller will find the connection closed, and discard it */
            if (lane->fd >= 0)
                shutdown(lane->fd, SHUT_RDWR);
            continue;
        }
        c->lanes[i] = NULL;
        lane_free(lane);
    }
    c->free_lanes = NULL;
    pthread_cond_broadcast(&c->lane_freed);
    pthread_mutex_unlock(&c->lock);
}
