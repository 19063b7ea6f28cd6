/* The namenode's part of the wide door: argument checks, the socket's options, and a mail to the loop. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/rpc.h"

#define LIVE_MAX 4096
#define TCP_KEEPALIVE_S 10
#define TCP_DEAD_MS 30000 /* sent and not acknowledged for so long: the peer is gone */

/* ---- descriptors --------------------------------------------------------- */

static void set_option(int fd, int level, int name, int value) {
    setsockopt(fd, level, name, &value, sizeof value);
}

/* Makes a connection fit for the loop. A failure closes it. */
static int prepare(int fd) {
    int type = 0, domain = 0;
    socklen_t n = sizeof type;
    int flags = fcntl(fd, F_GETFL);
    int rc = 0;
    if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) ||
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &n) || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ||
        fcntl(fd, F_SETFD, FD_CLOEXEC))
        rc = -errno;
    else if (type != SOCK_STREAM)
        rc = -CRAIL_E_INVALID_ARGUMENT;
    if (rc) {
        if (fd >= 0)
            close(fd);
        return rc;
    }
    if (domain == AF_INET || domain == AF_INET6) {
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, TCP_KEEPALIVE_S);
        set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, TCP_KEEPALIVE_S);
        set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, TCP_DEAD_MS);
    }
    return 0;
}

/* ---- sessions and lanes -------------------------------------------------- */

static int session_open(crail_namenode *nn, void *args) {
    return crail_rpc_session_open(nn, *(uint64_t *)args);
}

int crail_namenode_session_open(crail_namenode *nn, uint64_t session) {
    return crail_rpc_post(nn, session_open, &session);
}

struct attach {
    int fd;
    uint64_t session;
    uint32_t lane;
    struct crail_rpc_ring *ring;
};

static int lane_attach(crail_namenode *nn, void *args) {
    const struct attach *a = args;
    return crail_rpc_lane_attach(nn, a->fd, a->session, a->lane, a->ring);
}

int crail_namenode_lane_attach(crail_namenode *nn, int fd, uint64_t session, uint32_t lane, const int *ring_fds2) {
    struct attach a = {.fd = fd, .session = session, .lane = lane};
    int rc = prepare(fd);
    if (rc)
        return rc;
    if (ring_fds2) { /* mapped here: the loop has no time for it */
        rc = crail_rpc_ring_new(ring_fds2, &a.ring);
        if (rc) {
            close(fd);
            return rc;
        }
    }
    return crail_rpc_post(nn, lane_attach, &a);
}

static int hang_up(crail_namenode *nn, void *args) {
    (void)args;
    crail_rpc_sessions_hang_up(nn);
    return 0;
}

int crail_namenode_hang_up(crail_namenode *nn) {
    return crail_rpc_post(nn, hang_up, NULL);
}

/* ---- servers ------------------------------------------------------------- */

struct server {
    uint32_t number, regions, state, description_size;
    struct crail_meta_place place;
    int fd;
    const uint32_t *granules;
    const uint64_t *const *generations;
    const void *description;
    crail_namenode_stats *stats;
};

static int server_add(crail_namenode *nn, void *args) {
    struct server *s = args;
    return crail_rpc_server_add(nn, s->regions, s->granules, s->generations, s->place, s->description,
                                s->description_size, &s->number);
}

int crail_namenode_server_add(crail_namenode *nn, uint32_t regions, const uint32_t *granules,
                              const uint64_t *const *generations, uint32_t storage_class, uint32_t location,
                              const void *description, uint32_t description_size, uint32_t *number) {
    if (!granules || !number || (description_size && !description) || description_size > CRAIL_RPC_DESCRIPTION_MAX ||
        storage_class >= CRAIL_CLASS_ANY)
        return -CRAIL_E_INVALID_ARGUMENT;
    struct server s = {.regions = regions,
                       .granules = granules,
                       .generations = generations,
                       .place = {location, (uint8_t)storage_class},
                       .description = description,
                       .description_size = description_size};
    int rc = crail_rpc_post(nn, server_add, &s);
    if (!rc)
        *number = s.number;
    return rc;
}

static int server_describe(crail_namenode *nn, void *args) {
    const struct server *s = args;
    int rc = crail_rpc_server_describe(nn, s->number, s->description, s->description_size);
    return rc ? rc : crail_meta_server_place(nn->meta, s->number, s->place);
}

int crail_namenode_server_describe(crail_namenode *nn, uint32_t number, uint32_t storage_class, uint32_t location,
                                   const void *description, uint32_t size) {
    if ((size && !description) || size > CRAIL_RPC_DESCRIPTION_MAX || storage_class > CRAIL_CLASS_ANY)
        return -CRAIL_E_INVALID_ARGUMENT;
    struct server s = {.number = number,
                       .place = {location, (uint8_t)storage_class},
                       .description = description,
                       .description_size = size};
    return crail_rpc_post(nn, server_describe, &s);
}

static int server_set(crail_namenode *nn, void *args) {
    const struct server *s = args;
    return crail_rpc_server_set(nn, s->number, s->state);
}

int crail_namenode_server_set(crail_namenode *nn, uint32_t number, uint32_t state) {
    if (state < CRAIL_SERVER_UP || state > CRAIL_SERVER_LOST)
        return -CRAIL_E_INVALID_ARGUMENT;
    struct server s = {.number = number, .state = state};
    return crail_rpc_post(nn, server_set, &s);
}

static int server_channel(crail_namenode *nn, void *args) {
    const struct server *s = args;
    return crail_rpc_server_channel(nn, s->number, s->fd);
}

int crail_namenode_server_channel(crail_namenode *nn, uint32_t number, int fd) {
    struct server s = {.number = number, .fd = fd};
    int rc = prepare(fd);
    return rc ? rc : crail_rpc_post(nn, server_channel, &s);
}

/* ---- servers of an earlier life ------------------------------------------ */

struct live {
    uint32_t number, from, max;
    struct crail_live *out;
};

static int server_live(crail_namenode *nn, void *args) {
    const struct live *l = args;
    return (int)crail_meta_server_live(nn->meta, l->number, l->from, l->out, l->max);
}

int crail_namenode_server_live(crail_namenode *nn, uint32_t number, uint32_t from, uint32_t *out, uint32_t max) {
    struct crail_live runs[LIVE_MAX];
    struct live l = {number, from, max < LIVE_MAX ? max : LIVE_MAX, runs};
    if (!out)
        return -CRAIL_E_INVALID_ARGUMENT;
    int n = crail_rpc_post(nn, server_live, &l);
    for (int i = 0; i < n; i++) {
        *out++ = runs[i].region;
        *out++ = runs[i].granule;
        *out++ = runs[i].granules;
    }
    return n;
}

struct recovered {
    uint32_t number, busy_n, lost;
    const uint64_t *generations;
    uint64_t count;
    struct crail_retire *busy;
};

static int server_recovered(crail_namenode *nn, void *args) {
    struct recovered *r = args;
    return crail_rpc_server_recovered(nn, r->number, r->generations, r->count, r->busy, r->busy_n, &r->lost);
}

int crail_namenode_server_recovered(crail_namenode *nn, uint32_t number, const uint64_t *generations, uint64_t count,
                                    const uint32_t *busy, uint32_t busy_n, uint32_t *lost) {
    if (!generations || (busy_n && !busy) || !lost)
        return -CRAIL_E_INVALID_ARGUMENT;
    struct recovered r = {.number = number, .busy_n = busy_n, .generations = generations, .count = count};
    r.busy = calloc(busy_n + 1u, sizeof *r.busy);
    if (!r.busy)
        return -ENOMEM;
    for (uint32_t i = 0; i < busy_n; i++)
        r.busy[i] =
            (struct crail_retire){.region = busy[3 * i], .granule = busy[3 * i + 1], .granules = busy[3 * i + 2]};
    int rc = crail_rpc_post(nn, server_recovered, &r);
    free(r.busy);
    if (rc >= 0)
        *lost = r.lost;
    return rc;
}

/* ---- facts --------------------------------------------------------------- */

static void copy_granules(const struct crail_meta_stats *from, crail_namenode_stats *to) {
    to->granules_total = from->granules_total;
    to->granules_free = from->granules_free;
    to->granules_used = from->granules_used;
    to->granules_granted = from->granules_granted;
    to->granules_retiring = from->granules_retiring;
}

static int server_stats(crail_namenode *nn, void *args) {
    struct server *s = args;
    struct crail_meta_stats ms = {0};
    int rc = crail_meta_server_stats(nn->meta, s->number, &ms);
    copy_granules(&ms, s->stats);
    return rc;
}

int crail_namenode_server_stats(crail_namenode *nn, uint32_t number, crail_namenode_stats *out) {
    crail_namenode_stats st = {0};
    struct server s = {.number = number, .stats = &st};
    if (!out)
        return -CRAIL_E_INVALID_ARGUMENT;
    int rc = crail_rpc_post(nn, server_stats, &s);
    if (!rc)
        *out = st;
    return rc;
}

static int stats_read(crail_namenode *nn, void *args) {
    crail_namenode_stats *out = args;
    struct crail_meta_stats ms = {0};
    struct timespec cpu = {0};
    crail_meta_stats(nn->meta, &ms);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    *out = nn->stats; /* the counters that the loop keeps */
    copy_granules(&ms, out);
    out->nodes = ms.nodes;
    out->files = ms.files;
    out->directories = ms.directories;
    out->arena_bytes_used = ms.arena_bytes_used;
    out->arena_bytes_reserved = ms.arena_bytes_reserved;
    out->values_inline_bytes = ms.values_inline_bytes;
    out->background_pending = ms.background_pending;
    crail_rpc_durable_stats(nn, out);
    out->loop_cpu_ns = (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec;
    return 0;
}

int crail_namenode_stats_read(crail_namenode *nn, crail_namenode_stats *out) {
    return out ? crail_rpc_post(nn, stats_read, out) : -CRAIL_E_INVALID_ARGUMENT;
}

struct check {
    char *why;
    uint32_t why_size;
};

static int check(crail_namenode *nn, void *args) {
    const struct check *c = args;
    uint64_t from = crail_clock_ns();
    int rc = crail_meta_check(nn->meta, c->why, c->why_size);
    if (!rc && !crail_rpc_rings_check(nn)) {
        snprintf(c->why, c->why_size, "the rings that are awake are not those that are counted");
        rc = -EUCLEAN;
    }
    nn->excused_ns += crail_clock_ns() - from; /* asked for, and said to stop the service */
    return rc;
}

int crail_namenode_check(crail_namenode *nn, char *why, uint32_t why_size) {
    struct check c = {why, why_size};
    return why && why_size ? crail_rpc_post(nn, check, &c) : -CRAIL_E_INVALID_ARGUMENT;
}

/* ---- events -------------------------------------------------------------- */

int crail_namenode_event_fd(crail_namenode *nn) {
    return nn->events.fd;
}

int crail_namenode_events_take(crail_namenode *nn, crail_namenode_event *out, uint32_t max) {
    return out ? (int)crail_rpc_events_take(&nn->events, out, max) : -CRAIL_E_INVALID_ARGUMENT;
}
