/* Transfers: a range of a value, cut by extent, copied through shared memory or sent over data connections.
 *
 * Through shared memory each extent is named in a use slot and its generation compared before the first byte, and
 * the slot is cleared after the last. Over TCP all requests of a transfer are sent ahead and their replies read in
 * order, straight into the caller's buffer; the server does the naming. */
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "client.h"

#define TICK_MS 100

/* ---- cutting ------------------------------------------------------------- */

uint32_t crail_range_locate(const struct crail_range *value, uint64_t at, uint64_t *within) {
    uint32_t i = 0;
    while (i + 1 < value->count && at >= (uint64_t)value->extents[i].granules * CRAIL_GRANULE) {
        at -= (uint64_t)value->extents[i].granules * CRAIL_GRANULE;
        i++;
    }
    *within = at;
    return i;
}

static uint32_t locate(const struct crail_io *io, uint64_t at, uint64_t *within) {
    struct crail_range value = {io->extents, io->extents_count, io->value_bytes};
    return crail_range_locate(&value, at, within);
}

/* Bytes from `at` (of the value) that lie in one extent and in this transfer. */
static uint64_t run_length(const struct crail_io *io, uint32_t extent, uint64_t within, uint64_t left) {
    uint64_t room = (uint64_t)io->extents[extent].granules * CRAIL_GRANULE - within;
    return left < room ? left : room;
}

/* ---- shared memory ------------------------------------------------------- */

static void leave_slot(struct crail_io *io) {
    if (!io->slot_of)
        return;
    crail_attachment_leave(io->slot_of, io->slot);
    atomic_fetch_sub_explicit(&io->client->slots_used, 1, memory_order_relaxed);
    io->slot_of = NULL;
}

static int enter_slot(struct crail_io *io, struct crail_attachment *a, uint32_t extent) {
    if (io->slot_of && io->slot_extent == extent)
        return 0;
    leave_slot(io);
    int rc = crail_attachment_enter(a, &io->extents[extent], 0, &io->slot);
    if (rc == -CRAIL_E_STALE_LOCATION)
        atomic_fetch_add_explicit(&io->client->stale_locations, 1, memory_order_relaxed);
    if (rc)
        return rc;
    io->slot_of = a;
    io->slot_extent = extent;
    atomic_fetch_add_explicit(&io->client->slots_used, 1, memory_order_relaxed);
    return 0;
}

static int copy_piece(struct crail_io *io, struct crail_attachment *a, uint32_t i, uint64_t within) {
    const struct crail_extent *e = &io->extents[i];
    if (io->is_write && !atomic_load_explicit(&a->is_writable, memory_order_acquire))
        return CRAIL_NEED_WRITABLE;
    int rc = enter_slot(io, a, i);
    if (rc)
        return rc;
    uint64_t n = run_length(io, i, within, io->length - io->done);
    uint64_t piece = io->piece_bytes ? io->piece_bytes : CRAIL_COPY_PIECE;
    if (n > piece)
        n = piece;
    struct crail_client_region *r = &a->region[e->region];
    struct crail_mapping *m = io->is_write ? &r->writable : &r->readable;
    uint64_t at = (uint64_t)e->granule * CRAIL_GRANULE + within;
    assert(at + n <= r->bytes);
    crail_mapping_populate(m, r->bytes, at, n);
    if (io->is_write)
        crail_copy(m->base + at, io->buffer + io->done, n, io->whole);
    else
        crail_copy(io->buffer + io->done, m->base + at, n, io->whole);
    io->done += n;
    return 0;
}

/* ---- TCP ----------------------------------------------------------------- */

static struct crail_data_connection *data_of(struct crail_lane *lane, uint32_t server) {
    for (uint32_t i = 0; i < lane->data_count; i++)
        if (lane->data[i].server == server)
            return &lane->data[i];
    return NULL;
}

static int data_fd(const struct crail_lane *lane, uint32_t server) {
    for (uint32_t i = 0; i < lane->data_count; i++)
        if (lane->data[i].server == server)
            return lane->data[i].fd;
    return -1;
}

/* After any failure in mid-transfer the stream has no known position: the connection ends, and with it whatever the
 * server was doing for us. */
void crail_lane_data_drop(struct crail_lane *lane, uint32_t server) {
    int fd = crail_lane_data_take(lane, server).fd;
    if (fd < 0)
        return;
    shutdown(fd, SHUT_RDWR); /* a forked child may have a copy */
    close(fd);
}

bool crail_lane_has_data(const struct crail_lane *lane, uint32_t server) {
    return data_fd(lane, server) >= 0;
}

struct crail_data_connection crail_lane_data_take(struct crail_lane *lane, uint32_t server) {
    struct crail_data_connection *data = data_of(lane, server), taken = {server, -1, false};
    if (data) {
        taken = *data;
        *data = lane->data[--lane->data_count];
    }
    return taken;
}

bool crail_lane_data_give(struct crail_lane *lane, struct crail_data_connection data) {
    if (data_of(lane, data.server) || lane->data_count == CRAIL_LANE_DATA_CONNECTIONS)
        return false;
    lane->data[lane->data_count++] = data;
    return true;
}

int crail_client_server_tcp(crail_client *c, uint32_t server, uint32_t number, int fd, int is_disk) {
    struct timeval tick = {.tv_usec = TICK_MS * 1000};
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof(tick));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tick, sizeof(tick));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    pthread_mutex_lock(&c->lock);
    struct crail_lane *lane = number < CRAIL_CLIENT_LANES_MAX ? c->lanes[number] : NULL;
    if (lane) {
        assert(lane->checked_out);
        crail_lane_data_drop(lane, server);
        if (lane->data_count == CRAIL_LANE_DATA_CONNECTIONS) /* of a server that may be gone for long */
            crail_lane_data_drop(lane, lane->data[0].server);
        crail_lane_data_give(lane, (struct crail_data_connection){server, fd, is_disk});
    }
    pthread_mutex_unlock(&c->lock);
    if (!lane)
        close(fd);
    return lane ? 0 : -EINVAL;
}

/* 0: try again. A signal ends the attempt: who wants to go on after its handler calls crail_io_restart(). */
static int socket_error(const struct crail_io *io) {
    if (errno == EINTR)
        return -EINTR;
    if (errno == EAGAIN)
        return crail_now_ns() >= io->deadline_ns ? -ETIMEDOUT : 0;
    return -EPIPE;
}

static int send_all(struct crail_io *io, int fd, struct iovec *part, int parts, int flags) {
    while (parts) {
        struct msghdr m = {.msg_iov = part, .msg_iovlen = (size_t)parts};
        ssize_t n = sendmsg(fd, &m, MSG_NOSIGNAL | flags);
        if (n < 0) {
            int rc = socket_error(io);
            if (rc)
                return rc;
            continue;
        }
        while (parts && (size_t)n >= part->iov_len) {
            n -= (ssize_t)part->iov_len;
            part++, parts--;
        }
        if (parts) {
            part->iov_base = (uint8_t *)part->iov_base + n;
            part->iov_len -= (size_t)n;
        }
    }
    return 0;
}

static int receive_all(struct crail_io *io, int fd, void *to, size_t bytes) {
    for (size_t got = 0; got < bytes;) {
        ssize_t n = recv(fd, (uint8_t *)to + got, bytes - got, 0);
        if (n == 0)
            return -EPIPE;
        if (n < 0) {
            int rc = socket_error(io);
            if (rc)
                return rc;
            continue;
        }
        got += (size_t)n;
    }
    return 0;
}

static struct crail_data_request request_for(const struct crail_io *io, uint32_t extent, uint64_t within, uint64_t n) {
    return (struct crail_data_request){
        .magic = CRAIL_DATA_MAGIC,
        .code = io->is_write ? CRAIL_DATA_WRITE : CRAIL_DATA_READ,
        .id = io->tcp_asked,
        .extent = io->extents[extent],
        .offset = within,
        .length = n,
    };
}

static uint64_t piece_length(const struct crail_io *io, uint32_t extent, uint64_t within, uint64_t left) {
    uint64_t n = run_length(io, extent, within, left);
    return n < CRAIL_COPY_PIECE ? n : CRAIL_COPY_PIECE;
}

/* Reads: asks for two pieces ahead, so that the server is never without work. Stops before an extent that shared
 * memory reaches, and before a server that has no connection yet while there are replies to read. */
static int ask_ahead(struct crail_io *io) {
    if (io->tcp_asked < io->done)
        io->tcp_asked = io->done;
    while (io->tcp_asked < io->length && io->tcp_asked < io->done + 2ull * CRAIL_COPY_PIECE) {
        uint64_t within;
        uint32_t i = locate(io, io->offset + io->tcp_asked, &within);
        uint64_t n = piece_length(io, i, within, io->length - io->tcp_asked);
        uint32_t server = io->extents[i].server;
        int fd = data_fd(io->lane, server);
        if (fd < 0 || crail_client_find(io->client, server))
            return io->tcp_asked > io->done ? 0 : CRAIL_NEED_SERVER;
        struct crail_data_request q = request_for(io, i, within, n);
        struct iovec part = {&q, sizeof(q)};
        int rc = send_all(io, fd, &part, 1, 0);
        if (rc)
            return rc;
        io->tcp_asked += n;
    }
    return 0;
}

static int take_reply(struct crail_io *io, int fd, uint64_t id, uint64_t n) {
    struct crail_data_reply reply;
    int rc = receive_all(io, fd, &reply, sizeof(reply));
    if (rc)
        return rc;
    if (reply.magic != CRAIL_DATA_MAGIC || reply.id != id)
        return -EPIPE;
    rc = crail_data_status(&reply);
    if (rc)
        return rc;
    return reply.length == (io->is_write ? 0 : n) ? 0 : -EPIPE;
}

static int tcp_read_piece(struct crail_io *io, uint32_t i, uint64_t within) {
    int rc = ask_ahead(io);
    if (rc)
        return rc;
    uint64_t n = piece_length(io, i, within, io->length - io->done);
    int fd = data_fd(io->lane, io->server);
    if (fd < 0)
        return -EPIPE;
    rc = take_reply(io, fd, io->done, n);
    if (!rc)
        rc = receive_all(io, fd, io->buffer + io->done, n);
    if (!rc)
        io->done += n;
    return rc;
}

static int tcp_write_piece(struct crail_io *io, uint32_t i, uint64_t within) {
    uint64_t n = piece_length(io, i, within, io->length - io->done);
    int fd = data_fd(io->lane, io->server);
    if (fd < 0)
        return CRAIL_NEED_SERVER;
    struct crail_data_request q = request_for(io, i, within, n);
    struct iovec parts[2] = {{&q, sizeof(q)}, {io->buffer + io->done, n}};
    int rc = send_all(io, fd, parts, 2, 0);
    if (!rc)
        rc = take_reply(io, fd, q.id, n);
    if (!rc)
        io->done += n, io->tcp_asked = io->done;
    return rc;
}

int crail_io_flush(struct crail_lane *lane, const struct crail_extent *extent, int64_t deadline_ns, bool *is_durable) {
    struct crail_io io = {.client = lane->client, .lane = lane, .is_write = true, .deadline_ns = deadline_ns};
    *is_durable = false;
    if (crail_client_find(lane->client, extent->server))
        return 0;
    const struct crail_data_connection *data = data_of(lane, extent->server);
    if (!data)
        return CRAIL_NEED_SERVER;
    if (!data->is_disk)
        return 0;
    struct crail_data_request q = {.magic = CRAIL_DATA_MAGIC, .code = CRAIL_DATA_FLUSH, .extent = *extent};
    struct iovec part = {&q, sizeof(q)};
    int rc = send_all(&io, data->fd, &part, 1, 0);
    if (!rc)
        rc = take_reply(&io, data->fd, q.id, 0);
    *is_durable = !rc;
    return rc;
}

/* ---- running ------------------------------------------------------------- */

int crail_io_ask(struct crail_io *io) {
    uint32_t within_reach = 0;
    for (uint32_t i = 0; i < io->extents_count; i++)
        within_reach += crail_client_find(io->client, io->extents[i].server) != NULL;
    if (within_reach)
        return within_reach == io->extents_count;
    int rc = ask_ahead(io);
    return rc < 0 ? rc : rc == 0 && io->tcp_asked == io->length;
}

int crail_io_run(struct crail_io *io) {
    assert(io->offset + io->length <= io->value_bytes);
    if (io->done == io->length)
        return 0;
    uint64_t within;
    uint32_t i = locate(io, io->offset + io->done, &within);
    io->server = io->extents[i].server;
    struct crail_attachment *a = crail_client_find(io->client, io->server);
    int rc;
    if (a)
        rc = copy_piece(io, a, i, within);
    else if (!io->lane)
        return CRAIL_NEED_SERVER;
    else
        rc = io->is_write ? tcp_write_piece(io, i, within) : tcp_read_piece(io, i, within);
    if (rc)
        return rc;
    return io->done == io->length ? 0 : CRAIL_NEED_CALL_AGAIN;
}

void crail_io_restart(struct crail_io *io) {
    leave_slot(io);
    for (uint32_t i = 0; io->lane && i < io->extents_count; i++)
        crail_lane_data_drop(io->lane, io->extents[i].server);
    io->tcp_asked = io->done;
    io->was_restarted = true;
}

void crail_io_end(struct crail_io *io) {
    leave_slot(io);
    if (io->done < io->length)
        crail_io_restart(io);
    _Atomic uint64_t *count = io->is_write ? &io->client->bytes_out : &io->client->bytes_in;
    atomic_fetch_add_explicit(count, io->done, memory_order_relaxed);
}

/* ---- pins ---------------------------------------------------------------- */

int crail_pin_take(crail_client *c, const struct crail_extent *extent, uint64_t bytes, struct crail_pin *out) {
    struct crail_attachment *a = crail_client_find(c, extent->server);
    uint32_t slot;
    if (!a)
        return CRAIL_NEED_SERVER;
    if (bytes > (uint64_t)extent->granules * CRAIL_GRANULE)
        return -EOPNOTSUPP;
    int rc = crail_attachment_enter(a, extent, CRAIL_SLOTS_FOR_CALLS, &slot);
    if (rc) {
        if (rc == -CRAIL_E_STALE_LOCATION)
            atomic_fetch_add_explicit(&c->stale_locations, 1, memory_order_relaxed);
        return rc;
    }
    crail_failpoint("view-held");
    crail_client_ref(c);
    atomic_fetch_add_explicit(&c->slots_used, 1, memory_order_relaxed);
    *out = (struct crail_pin){
        .client = c,
        .attachment = a,
        .slot = slot,
        .fork_epoch = crail_fork_epoch,
        .data = a->region[extent->region].readable.base + (uint64_t)extent->granule * CRAIL_GRANULE,
    };
    return 0;
}

void crail_pin_release(struct crail_pin *pin) {
    /* After a fork the child has this view too, in the same slot: it stays until the kernel says that all of them
     * are gone. */
    if (pin->fork_epoch != crail_fork_epoch)
        return;
    crail_attachment_leave(pin->attachment, pin->slot);
    atomic_fetch_sub_explicit(&pin->client->slots_used, 1, memory_order_relaxed);
    crail_client_unref(pin->client);
}
