/* The namenode's thread: look at the connections, serve what is ready for a bounded time, do some background work,
 * look again. A quiet single request costs three system calls: epoll_wait, recv, send; through a ring two or none. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"
#include "rpc/rpc.h"

#define EVENTS_PER_LOOK 64
/* On this host a socket closes when its holder closes it or is gone; there is no network that could have done it. */
#define GRACE_LOCAL_NS_MAX 1000000000u
#define STEP_NS_MIN 30000u /* background work goes on under any load */

const struct crail_rpc_tuning crail_rpc_tuning_default = {
    .slice_ns = 120000,
    .step_ns = 100000,
    .drain_ns = 60000000000,
    .space_wait_ns = 200000000,
    .order_wait_ns = 2000000,
    .idle_ns = 1000000000,
    .lag_ns = 2000000000,
};

/* ---- endpoints ----------------------------------------------------------- */

void crail_rpc_arm(crail_namenode *nn, struct crail_rpc_endpoint *end, uint32_t events) {
    assert(end->fd >= 0);
    if (end->armed == events)
        return;
    struct epoll_event ev = {.events = events, .data.ptr = end};
    int rc = epoll_ctl(nn->epoll_fd, EPOLL_CTL_MOD, end->fd, &ev);
    assert(rc == 0);
    (void)rc;
    end->armed = events;
}

int crail_rpc_endpoint_open(crail_namenode *nn, struct crail_rpc_endpoint *end, enum crail_rpc_kind kind, int fd) {
    end->kind = kind;
    end->fd = fd;
    end->armed = EPOLLIN;
    crail_list_init(&end->grave);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = end};
    return epoll_ctl(nn->epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

void crail_rpc_endpoint_close(crail_namenode *nn, struct crail_rpc_endpoint *end) {
    assert(end->fd >= 0);
    /* Explicitly: where a forked child holds a copy, close() alone would leave it in the epoll set. */
    epoll_ctl(nn->epoll_fd, EPOLL_CTL_DEL, end->fd, NULL);
    close(end->fd);
    end->fd = -1;
    crail_list_push(&nn->grave, &end->grave);
}

static void bury(crail_namenode *nn) {
    while (!crail_list_empty(&nn->grave)) {
        struct crail_rpc_endpoint *end = CRAIL_LIST_OF(nn->grave.next, struct crail_rpc_endpoint, grave);
        crail_list_remove(&end->grave);
        free(end); /* the endpoint is the first member of whatever it is; its buffers went when it closed */
    }
}

/* ---- the turn ------------------------------------------------------------ */

bool crail_rpc_time_over(crail_namenode *nn, uint64_t bytes) {
    uint64_t weight = 1 + bytes / CRAIL_RPC_OP_BYTES;
    if (nn->ops_to_clock > weight) {
        nn->ops_to_clock -= (uint32_t)weight;
        return false;
    }
    nn->ops_to_clock = CRAIL_RPC_CLOCK_EVERY;
    nn->realtime_ns = crail_clock_realtime_ns();
    return crail_clock_ns() >= nn->turn_end_ns;
}

static void timer_set(crail_namenode *nn, uint64_t at) {
    struct itimerspec t = {.it_value = {.tv_sec = (time_t)(at / 1000000000u), .tv_nsec = (long)(at % 1000000000u)}};
    int rc = timerfd_settime(nn->timer.fd, TFD_TIMER_ABSTIME, &t, NULL);
    assert(rc == 0);
    (void)rc;
    nn->timer_at = at;
}

static void timer_fired(crail_namenode *nn) {
    uint64_t times;
    if (read(nn->timer.fd, &times, sizeof times) == sizeof times)
        nn->timer_at = UINT64_MAX;
}

static void dispatch(crail_namenode *nn, struct crail_rpc_endpoint *end, uint32_t events) {
    if (end->fd < 0)
        return; /* closed earlier in this turn */
    switch (end->kind) {
    case CRAIL_RPC_CONN:
        crail_rpc_conn_event(nn, (struct crail_rpc_conn *)end, events);
        return;
    case CRAIL_RPC_BELL:
        crail_rpc_ring_event(nn, (struct crail_rpc_ring *)end);
        return;
    case CRAIL_RPC_CHANNEL:
        crail_rpc_channel_event(nn, (struct crail_rpc_channel *)end, events);
        return;
    case CRAIL_RPC_TIMER:
        timer_fired(nn);
        return;
    case CRAIL_RPC_MAILBOX:
        crail_rpc_mailbox_serve(nn);
        return;
    }
    assert(0 && "an endpoint without a kind");
}

/* Lanes go to the tail when their slice is over, so everybody gets a turn. */
static void serve_ready(crail_namenode *nn) {
    while (!crail_list_empty(&nn->ready)) {
        struct crail_rpc_lane *lane = CRAIL_LIST_OF(nn->ready.next, struct crail_rpc_lane, link);
        crail_rpc_lane_serve(nn, lane);
        if (!crail_list_empty(&nn->ready) && crail_clock_ns() >= nn->turn_end_ns)
            return;
    }
}

static uint64_t min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* When the next node expires, by the clock of the loop. */
static uint64_t expiry_ns(const crail_namenode *nn) {
    int64_t at = crail_meta_next_expiry(nn->meta);
    if (at == INT64_MAX)
        return UINT64_MAX;
    return at <= nn->realtime_ns ? nn->now_ns : nn->now_ns + (uint64_t)(at - nn->realtime_ns);
}

static void background(crail_namenode *nn) {
    uint64_t spent = crail_clock_ns() - nn->now_ns;
    uint64_t total = nn->tuning.slice_ns + nn->tuning.step_ns / 2;
    uint64_t budget = spent < total ? total - spent : 0;
    if (budget > nn->tuning.step_ns)
        budget = nn->tuning.step_ns;
    if (budget < STEP_NS_MIN)
        budget = STEP_NS_MIN;
    bool before = nn->background || expiry_ns(nn) <= nn->now_ns;
    if (nn->durable.cut == CRAIL_RPC_CUT_WRITING) {
        budget /= 2;
        crail_rpc_durable_step(nn, budget);
    }
    crail_meta_clock(nn->meta, nn->realtime_ns);
    crail_meta_undone_keep(nn->meta, nn->durable.failing || !crail_list_empty(&nn->durable.wait_commit));
    nn->background = crail_meta_step(nn->meta, budget);
    nn->changed |= before || nn->background; /* what it frees comes due */
    crail_rpc_lanes_wake(nn, &nn->wait_step);
}

/* When something has to be done even if nobody sends anything. The lists are in the order of time. */
static uint64_t next_deadline(crail_namenode *nn) {
    uint64_t at = min_u64(min_u64(crail_rpc_retires_deadline(nn), expiry_ns(nn)), crail_rpc_waits_deadline(nn));
    at = min_u64(at, crail_rpc_lanes_evict_at(nn));
    if (!crail_list_empty(&nn->wait_space))
        at = min_u64(at, CRAIL_LIST_OF(nn->wait_space.next, struct crail_rpc_lane, link)->vec.space_until);
    if (!crail_list_empty(&nn->drain))
        at =
            min_u64(at, CRAIL_LIST_OF(nn->drain.next, struct crail_rpc_conn, drain)->drain_since + nn->tuning.drain_ns);
    if (!crail_list_empty(&nn->large))
        at = min_u64(at, CRAIL_LIST_OF(nn->large.next, struct crail_rpc_conn, large)->large_since + nn->tuning.idle_ns);
    for (int reach = 0; reach < 2; reach++)
        if (!crail_list_empty(&nn->grace[reach]))
            at = min_u64(at, CRAIL_LIST_OF(nn->grace[reach].next, struct crail_rpc_session, grace)->grace_since +
                                 nn->grace_ns[reach]);
    return at;
}

static void deadlines(crail_namenode *nn) {
    if (next_deadline(nn) > nn->now_ns)
        return;
    crail_rpc_lane_deadlines(nn);
    crail_rpc_wait_deadlines(nn);
    crail_rpc_conn_deadlines(nn);
    crail_rpc_session_deadlines(nn);
}

/* 0: do not wait; -1: until something happens. A timeout given to epoll_wait() would set and clear a timer of the
 * kernel in every turn, which costs a virtual machine two exits: 4 us a turn while a retire order ripens. So the timer
 * stands by itself, and fires early rather than being moved back. */
static int wait_ms(crail_namenode *nn) {
    if (nn->background || nn->durable.cut == CRAIL_RPC_CUT_WRITING || !crail_list_empty(&nn->ready) ||
        crail_rpc_waits_pending(nn))
        return 0;
    assert(crail_list_empty(&nn->wait_step));
    uint64_t at = next_deadline(nn);
    if (at == UINT64_MAX)
        return -1;
    if (at <= crail_clock_ns())
        return 0;
    if (at < nn->timer_at)
        timer_set(nn, at);
    return -1;
}

/* Everybody, through epoll; but while requests keep coming through rings, only these, and the others from time to
 * time. The number of events. */
static int look(crail_namenode *nn, struct epoll_event *events) {
    for (uint64_t before = 0;;) {
        uint64_t now = crail_clock_ns();
        bool found = crail_rpc_rings_look(nn);
        int ms = found ? 0 : wait_ms(nn);
        bool preempted = before && now - before > CRAIL_RPC_PREEMPTED_NS;
        bool works = !found && !ms; /* in the background: that neither ends a spin well nor badly */
        nn->spin_until = works ? 0 : nn->spin_until;
        bool spins = !works && crail_rpc_rings_spin(nn, found, now, preempted);
        if ((found || spins) && now - nn->looked_ns < CRAIL_RPC_LOOK_NS) {
            if (found)
                return 0;
            before = now;
            crail_ring_pause();
            continue;
        }
        bool stays = spins || !ms;
        if (!crail_rpc_rings_sleep(nn, stays ? now - CRAIL_RPC_IDLE_NS : UINT64_MAX))
            stays = true;
        int n = epoll_wait(nn->epoll_fd, events, EVENTS_PER_LOOK, stays ? 0 : ms);
        assert(n >= 0 || errno == EINTR);
        nn->looked_ns = crail_clock_ns();
        nn->excused_ns = 0;
        return n;
    }
}

static void turn(crail_namenode *nn) {
    struct epoll_event events[EVENTS_PER_LOOK];
    int n = look(nn, events);
    nn->now_ns = crail_clock_ns();
    nn->realtime_ns = crail_clock_realtime_ns();
    nn->turn_end_ns = nn->now_ns + nn->tuning.slice_ns;
    nn->ops_to_clock = CRAIL_RPC_CLOCK_EVERY;
    for (int i = 0; i < n; i++)
        dispatch(nn, events[i].data.ptr, events[i].events);
    serve_ready(nn);
    crail_rpc_waits_serve(nn);
    background(nn);
    deadlines(nn);
    crail_rpc_retires_order(nn);
    bury(nn);
    uint64_t held = crail_clock_ns() - nn->looked_ns - nn->excused_ns;
    if (held > nn->stats.step_ns_max)
        nn->stats.step_ns_max = held;
}

static void *loop(void *arg) {
    crail_namenode *nn = arg;
    pthread_setname_np(pthread_self(), "crail-namenode");
    crail_thread_is_brief();
    while (!nn->stopping)
        turn(nn);
    crail_rpc_mailbox_end(nn);
    return NULL;
}

/* ---- start and stop ------------------------------------------------------ */

static int spawn(crail_namenode *nn) {
    sigset_t all, before;
    sigfillset(&all); /* signals belong to Python's main thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&nn->thread, NULL, loop, nn);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -rc;
}

static int meta_start(crail_namenode *nn, const crail_namenode_options *options) {
    struct crail_meta_options mo = {.arena_bytes_max = options->arena_bytes_max};
    memcpy(mo.mac_key, options->mac_key, sizeof mo.mac_key);
    if (getrandom(&mo.hash_seed, sizeof mo.hash_seed, 0) != sizeof mo.hash_seed)
        return -errno;
    return crail_meta_new(&mo, &nn->meta);
}

int crail_rpc_start(const crail_namenode_options *options, const struct crail_rpc_tuning *tuning,
                    crail_namenode **out) {
    crail_namenode *nn = calloc(1, sizeof *nn);
    if (!nn)
        return -ENOMEM;
    int timer_fd = -1;
    nn->tuning = *tuning;
    nn->grace_ns[0] = options->session_grace_ms * 1000000u;
    nn->grace_ns[1] = min_u64(nn->grace_ns[0], GRACE_LOCAL_NS_MAX);
    struct crail_list *lists[] = {&nn->ready,    &nn->wait_step, &nn->wait_space, &nn->drain, &nn->large,
                                  &nn->grace[0], &nn->grace[1],  &nn->channels,   &nn->grave, &nn->awake};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        crail_list_init(lists[i]);
    int rc = crail_rpc_sessions_init(nn);
    if (rc)
        goto out_nn;
    rc = crail_rpc_events_init(&nn->events);
    if (rc)
        goto out_sessions;
    rc = crail_rpc_mailbox_init(&nn->mailbox);
    if (rc)
        goto out_events;
    nn->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    rc = nn->epoll_fd < 0 ? -errno : 0;
    if (rc)
        goto out_mailbox;
    rc = crail_rpc_endpoint_open(nn, &nn->mailbox.end, CRAIL_RPC_MAILBOX, nn->mailbox.end.fd);
    if (rc)
        goto out_epoll;
    nn->timer_at = UINT64_MAX;
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    rc = timer_fd < 0 ? -errno : crail_rpc_endpoint_open(nn, &nn->timer, CRAIL_RPC_TIMER, timer_fd);
    if (rc)
        goto out_timer;
    rc = meta_start(nn, options);
    if (rc)
        goto out_timer;
    rc = crail_rpc_durable_init(nn, options->durability, options->grants_fd);
    if (rc)
        goto out_durable;
    rc = crail_rpc_waits_init(nn);
    if (rc)
        goto out_durable;
    rc = spawn(nn);
    if (rc)
        goto out_durable;
    *out = nn;
    return 0;
out_durable:
    crail_rpc_durable_destroy(nn);

    crail_meta_free(nn->meta);
out_timer:
    if (timer_fd >= 0)
        close(timer_fd);
out_epoll:
    close(nn->epoll_fd);
out_mailbox:
    crail_rpc_mailbox_destroy(&nn->mailbox);
out_events:
    crail_rpc_events_destroy(&nn->events);
out_sessions:
    crail_rpc_sessions_destroy(nn);
out_nn:
    free(nn);
    return rc;
}

int crail_namenode_start(const crail_namenode_options *options, crail_namenode **out) {
    if (!options || !out || !options->arena_bytes_max || options->session_grace_ms > 86400000u * 365u ||
        options->durability > CRAIL_DURABILITY_SYNC)
        return -CRAIL_E_INVALID_ARGUMENT;
    return crail_rpc_start(options, &crail_rpc_tuning_default, out);
}

static int stop(crail_namenode *nn, void *args) {
    (void)args;
    nn->stopping = true;
    return 0;
}

void crail_namenode_stop(crail_namenode *nn) {
    if (!nn)
        return;
    crail_rpc_post(nn, stop, NULL);
    pthread_join(nn->thread, NULL);
    crail_rpc_sessions_destroy(nn);
    crail_rpc_waits_destroy(nn);
    crail_rpc_servers_destroy(nn);
    crail_rpc_durable_destroy(nn);
    bury(nn);
    assert(crail_list_empty(&nn->ready) && crail_list_empty(&nn->channels));
    crail_meta_free(nn->meta);
    close(nn->timer.fd);
    close(nn->epoll_fd);
    crail_rpc_mailbox_destroy(&nn->mailbox);
    crail_rpc_events_destroy(&nn->events);
    free(nn);
}
