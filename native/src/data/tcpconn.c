/* Data connections: requests of a fixed size, served in order, straight from and into the regions.
 *
 * A connection in the middle of a transfer holds a slot: its `word`, which the looks of this same thread (retire.c)
 * see. The slot begins before the generation is compared and ends with the last byte, or with the connection. No more
 * than a turn's bytes go through one connection before the others have theirs.
 *
 * Tried: asking a writer's socket again after EAGAIN (4 to 30 times) and turns of 4 MiB: no gain that stood out of the
 * noise with client and loop on two processors. SO_RCVLOWAT for writes was tried unpinned only, without a verdict. */
#include "conn.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/siphash.h"

#define TURN_BYTES (1u << 20)
#define STEPS_PER_TURN 64     /* system calls for one connection before the others have theirs */
#define DEAD_PEER_MS 60000    /* a peer that takes nothing for so long in mid-transfer is cut off */
#define DESCRIPTORS_KEPT 256u /* of RLIMIT_NOFILE, for what is no data connection */
#define KEEPALIVE_IDLE_S 30
#define KEEPALIVE_EVERY_S 10
#define KEEPALIVE_PROBES 3

void crail_conn_init(struct crail_conn *c, int fd,
                     void (*ready)(struct crail_storage *s, struct crail_source *source, uint32_t events)) {
    c->source = (struct crail_source){.fd = fd, .ready = ready};
    crail_list_init(&c->run_link);
    crail_list_init(&c->wait_link);
    crail_list_init(&c->sync_link);
}

void crail_conn_end(struct crail_storage *s, struct crail_conn *c) {
    assert(!c->jobs && crail_list_empty(&c->sync_link));
    *c->link = c->next;
    if (c->next)
        c->next->link = c->link;
    crail_loop_close(s, &c->source);
}

/* What was given to the disk cannot be called back: until it is through, the connection stays, without its socket, and
 * names its extent. */
static void conn_close(struct crail_storage *s, struct crail_conn *c) {
    if (c->is_closing)
        return;
    crail_spool_drop(s, c);
    s->stats.connections--;
    if (c->jobs) {
        c->is_closing = true;
        crail_loop_shut(s, &c->source);
    } else {
        crail_conn_end(s, c);
    }
}

/* ---- a request ---------------------------------------------------------------- */

/* Whether the request may touch its bytes: 0 or a status. Nothing of it is believed before its turn here. */
static int admit(struct crail_storage *s, const struct crail_data_request *q) {
    const struct crail_extent *e = &q->extent;
    if (!s->identified)
        return CRAIL_E_UNAVAILABLE;
    if (e->server != s->number)
        return CRAIL_E_STALE_LOCATION;
    uint64_t bytes = (uint64_t)e->granules * CRAIL_GRANULE;
    if (!crail_region_holds(s, e->region, e->granule, e->granules) || q->length > bytes ||
        q->offset > bytes - q->length)
        return CRAIL_E_INVALID_ARGUMENT;
    bool reads = q->code == CRAIL_DATA_READ;
    enum crail_rights right = reads ? CRAIL_RIGHT_READ : CRAIL_RIGHT_WRITE;
    /* Who may write an extent may read it too: a file that is being changed is read back. */
    if (crail_guard_on("key") && crail_extent_key(s->mac_key, e, right) != e->key &&
        !(reads && crail_extent_key(s->mac_key, e, CRAIL_RIGHT_WRITE) == e->key))
        return CRAIL_E_AUTH;
    if (s->regions[e->region].memory)
        return 0;
    return reads ? crail_spool_verdict(s, e) : crail_disk_status(s->disk.failed);
}

/* Slot, fence, generation: as crail_use_enter() does for those who map the region. */
static bool enter(struct crail_storage *s, struct crail_conn *c) {
    const struct crail_extent *e = &c->request.extent;
    if (crail_guard_on("tcp-slot"))
        c->word = crail_use_word(e->region, e->granule);
    c->moved_ns = crail_clock_ns();
    atomic_thread_fence(memory_order_seq_cst);
    const _Atomic uint64_t *generations = s->regions[e->region].generations;
    if (!crail_guard_on("tcp-generation") ||
        atomic_load_explicit(&generations[e->granule], memory_order_acquire) == e->generation)
        return true;
    c->word = 0;
    return false;
}

void crail_conn_reply(struct crail_conn *c, int status, uint64_t bytes) {
    c->reply =
        (struct crail_data_reply){.magic = CRAIL_DATA_MAGIC, .status = -status, .id = c->request.id, .length = bytes};
    c->state = CRAIL_CONN_SEND;
    c->head_done = 0;
    c->left = bytes;
}

/* The whole request is there. 0 or -EPROTO. */
static int request_begin(struct crail_storage *s, struct crail_conn *c) {
    const struct crail_data_request *q = &c->request;
    if (q->magic != CRAIL_DATA_MAGIC || q->flags || q->code < CRAIL_DATA_READ || q->code > CRAIL_DATA_FLUSH ||
        (q->code == CRAIL_DATA_FLUSH && q->length))
        return -EPROTO;
    int status = admit(s, q);
    if (status == 0 && !enter(s, c))
        status = CRAIL_E_STALE_LOCATION;
    c->at = NULL;
    c->left = q->code == CRAIL_DATA_WRITE ? q->length : 0;
    if (status == 0 && !s->regions[q->extent.region].memory) {
        crail_spool_begin(s, c);
        return 0;
    }
    if (status == 0)
        c->at = s->regions[q->extent.region].memory + (uint64_t)q->extent.granule * CRAIL_GRANULE + q->offset;
    else
        s->stats.refused++;
    if (q->code == CRAIL_DATA_READ) {
        crail_conn_reply(c, status, status ? 0 : q->length);
        return 0;
    }
    c->reply.status = status; /* until crail_conn_reply(): the verdict on what is being received */
    if (c->left)
        c->state = CRAIL_CONN_FILL;
    else
        crail_conn_reply(c, status, 0);
    return 0;
}

/* The last byte is through: so is the slot. */
static void transfer_end(struct crail_storage *s, struct crail_conn *c) {
    if (c->reply.status == 0) {
        if (c->request.code == CRAIL_DATA_READ)
            s->stats.reads++;
        else if (c->request.code == CRAIL_DATA_WRITE)
            s->stats.writes++;
        else
            s->stats.flushes++;
    }
    c->word = 0;
    c->at = NULL;
    c->is_spooled = false;
    c->state = CRAIL_CONN_HEAD;
    c->head_done = 0;
}

/* ---- the steps: one system call each ------------------------------------------------ */

/* What recv() and send() leave: CRAIL_STEP_ON after progress. */
static int step_answer(ssize_t n) {
    if (n > 0)
        return CRAIL_STEP_ON;
    if (n == 0)
        return -ECONNRESET;
    if (errno == EAGAIN || errno == EINTR)
        return errno == EINTR ? CRAIL_STEP_ON : CRAIL_STEP_WAIT;
    return -errno;
}

static int step_head(struct crail_storage *s, struct crail_conn *c) {
    ssize_t n =
        recv(c->source.fd, (uint8_t *)&c->request + c->head_done, sizeof(c->request) - c->head_done, MSG_DONTWAIT);
    if (n > 0) {
        c->head_done += (uint32_t)n;
        if (c->head_done == sizeof(c->request)) {
            int rc = request_begin(s, c);
            return rc ? rc : CRAIL_STEP_ON;
        }
    }
    return step_answer(n);
}

/* Where the next bytes of a WRITE go, and how many. */
static int room_for(struct crail_storage *s, struct crail_conn *c, uint8_t **to, uint64_t *room) {
    if (c->is_spooled)
        return crail_spool_room(s, c, to, room);
    *to = c->at ? c->at : s->scratch;
    *room = c->at || c->left < CRAIL_SCRATCH_BYTES ? c->left : CRAIL_SCRATCH_BYTES;
    return CRAIL_STEP_ON;
}

static int step_fill(struct crail_storage *s, struct crail_conn *c, uint64_t *budget) {
    uint8_t *to;
    uint64_t want;
    int rc = room_for(s, c, &to, &want);
    if (rc != CRAIL_STEP_ON)
        return rc;
    ssize_t n = recv(c->source.fd, to, want < *budget ? want : *budget, MSG_DONTWAIT);
    if (n <= 0)
        return step_answer(n);
    s->stats.bytes_in += (uint64_t)n;
    *budget -= (uint64_t)n;
    c->left -= (uint64_t)n;
    if (c->is_spooled) {
        crail_spool_received(s, c, (uint64_t)n);
        return CRAIL_STEP_ON;
    }
    if (c->at)
        c->at += n;
    if (c->left == 0) {
        c->word = 0; /* the bytes are in; the reply touches nothing */
        crail_conn_reply(c, c->reply.status, 0);
    }
    return CRAIL_STEP_ON;
}

static int step_send(struct crail_storage *s, struct crail_conn *c, uint64_t *budget) {
    uint8_t *from = c->at;
    uint64_t head = sizeof(c->reply) - c->head_done, body = c->left;
    if (c->is_spooled && c->left) {
        int rc = crail_spool_bytes(s, c, &from, &body);
        if (rc != CRAIL_STEP_ON)
            return rc;
    }
    if (body > *budget)
        body = *budget;
    struct iovec part[2] = {{(uint8_t *)&c->reply + c->head_done, head}, {from, body}};
    struct msghdr message = {.msg_iov = head ? part : part + 1, .msg_iovlen = (head ? 1u : 0u) + (body ? 1u : 0u)};
    ssize_t n = sendmsg(c->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
        uint64_t of_head = (uint64_t)n < head ? (uint64_t)n : head;
        uint64_t of_body = (uint64_t)n - of_head;
        c->head_done += (uint32_t)of_head;
        if (of_body) {
            s->stats.bytes_out += of_body;
            *budget -= of_body;
            c->left -= of_body;
            if (c->is_spooled)
                crail_spool_sent(s, c, of_body);
            else
                c->at += of_body;
        }
        if (c->head_done == sizeof(c->reply) && c->left == 0)
            transfer_end(s, c);
    }
    return step_answer(n);
}

static int step(struct crail_storage *s, struct crail_conn *c, uint64_t *budget) {
    switch (c->state) {
    case CRAIL_CONN_HEAD:
        return step_head(s, c);
    case CRAIL_CONN_FILL:
        return step_fill(s, c, budget);
    case CRAIL_CONN_DISK:
        return crail_spool_step(s, c);
    case CRAIL_CONN_SEND:
        return step_send(s, c, budget);
    }
    assert(!"a connection is in one of its states");
    return -EPROTO;
}

static void conn_turn(struct crail_storage *s, struct crail_conn *c) {
    uint64_t budget = TURN_BYTES;
    int rc = CRAIL_STEP_ON;
    for (int i = 0; rc == CRAIL_STEP_ON && budget && i < STEPS_PER_TURN; i++)
        rc = step(s, c, &budget);
    if (c->word && budget < TURN_BYTES)
        c->moved_ns = crail_clock_ns();
    if (rc == -EPROTO)
        s->stats.protocol_errors++;
    c->is_paused = rc == CRAIL_STEP_PAUSE;
    if (rc < 0)
        conn_close(s, c);
    else if (c->state == CRAIL_CONN_DISK && !c->is_paused) /* its turn is over before the socket was asked */
        crail_list_push(&s->runnable, &c->run_link);
    else
        crail_loop_watch(s, &c->source, c->is_paused ? 0 : c->state == CRAIL_CONN_SEND ? EPOLLOUT : EPOLLIN);
}

static void conn_ready(struct crail_storage *s, struct crail_source *source, uint32_t events) {
    struct crail_conn *c = (struct crail_conn *)source;
    if (!c->is_paused)
        conn_turn(s, c); /* an error comes out of the next call on the socket */
    else if (events & (EPOLLHUP | EPOLLERR))
        conn_close(s, c); /* nobody is there any more for what the disk will say */
}

void crail_conns_run(struct crail_storage *s) {
    while (!crail_list_empty(&s->runnable)) {
        struct crail_conn *c = CRAIL_LIST_OF(s->runnable.next, struct crail_conn, run_link);
        crail_list_remove(&c->run_link);
        conn_turn(s, c);
    }
}

/* ---- coming and going ------------------------------------------------------------------ */

void crail_conns_see(struct crail_storage *s) {
    for (struct crail_conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        if (!c->word || !crail_retire_see(s, c->word))
            continue;
        /* Its client is stopped, or means harm. One that comes back finds the connection closed and asks again. */
        if (s->retire.look.now_ns >= c->moved_ns + s->tuning.stall_ns)
            conn_close(s, c);
    }
}

void crail_conns_press(struct crail_storage *s, uint64_t since_ns) {
    for (struct crail_conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        if (!c->is_closing && c->moved_ns < since_ns && crail_spool_keeps(c))
            conn_close(s, c);
    }
}

void crail_conns_close(struct crail_storage *s) {
    for (struct crail_conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        conn_close(s, c);
    }
}

/* A socketpair knows none of this, and does not need it. */
static void set_tcp_options(int fd) {
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S},
        {IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_EVERY_S},
        {IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, DEAD_PEER_MS},
    };
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(options[i].value));
}

/* How many there may be: descriptors are left for all else. */
static uint64_t connections_max(const struct crail_storage *s) {
    struct rlimit files;
    uint64_t max = s->tuning.connections_max;
    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur == RLIM_INFINITY)
        return max;
    uint64_t left = files.rlim_cur >= 2 * DESCRIPTORS_KEPT ? files.rlim_cur - DESCRIPTORS_KEPT : files.rlim_cur / 2;
    return left < max ? left : max;
}

static int on_data_attach(struct crail_storage *s, void *arg) {
    struct crail_conn *c = arg;
    if (s->stats.connections >= connections_max(s))
        return -EMFILE;
    int rc = crail_loop_add(s, &c->source, EPOLLIN);
    if (rc)
        return rc;
    c->next = s->conns;
    c->link = &s->conns;
    if (c->next)
        c->next->link = &c->next;
    s->conns = c;
    s->stats.connections++;
    s->serving = true;
    return 0;
}

int crail_storage_data_attach(crail_storage *s, int fd) {
    struct crail_conn *c = calloc(1, sizeof(*c));
    int rc = -ENOMEM;
    if (c) {
        crail_conn_init(c, fd, conn_ready);
        set_tcp_options(fd);
        rc = crail_storage_call(s, on_data_attach, c);
    }
    if (rc) {
        close(fd);
        free(c);
    }
    return rc;
}
