/* Connections whose bytes go through shared memory. The socket stays: its end is the connection's end, and a byte on
 * it wakes a client that sleeps there. The client wakes us by the bell.
 *
 * Asleep or awake. A ring whose connection is idle is awake first: its flag is down, so that a client makes no system
 * call to send, and the loop looks at it in each turn (crail_rpc_rings_look). When the loop is about to sleep, all put
 * their flags up (crail_rpc_rings_sleep), so that who asks while it works need not ring. While it goes on without sleep
 * those that have been idle for long go to sleep by themselves; so there are few to look at.
 *
 * And the loop may spin: look again and again before it sleeps. That saves both ends all system calls, and harms
 * whoever needs this core. So it does that only in a dense stream, after a request for as long as its client says that
 * it thinks (CRAIL_RING_SPIN_NS_MAX at most), and not for a while after it found nothing, or others had its core
 * meanwhile (crail_ring_pace): where all share one core, or neighbours want it, it soon stops by itself. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/rpc.h"

/* ---- open and close ------------------------------------------------------ */

int crail_rpc_ring_new(const int *fds2, struct crail_rpc_ring **out) {
    struct crail_rpc_ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return -ENOMEM;
    crail_list_init(&ring->awake);
    crail_list_init(&ring->end.grave);
    ring->end.fd = fcntl(fds2[1], F_DUPFD_CLOEXEC, 0);
    int rc = ring->end.fd < 0 ? -errno : crail_ring_open(&ring->ring, fds2[0], true);
    if (rc) {
        crail_rpc_ring_free(ring);
        return rc;
    }
    *out = ring;
    return 0;
}

void crail_rpc_ring_free(struct crail_rpc_ring *ring) {
    if (!ring)
        return;
    assert(!ring->conn);
    crail_ring_close(&ring->ring);
    if (ring->end.fd >= 0)
        close(ring->end.fd);
    free(ring);
}

static void look_away(crail_namenode *nn, struct crail_rpc_ring *ring) {
    if (crail_list_empty(&ring->awake))
        return;
    crail_list_remove(&ring->awake);
    nn->awake_count--;
}

int crail_rpc_ring_open(crail_namenode *nn, struct crail_rpc_ring *ring, struct crail_rpc_conn *c) {
    int rc = crail_rpc_endpoint_open(nn, &ring->end, CRAIL_RPC_BELL, ring->end.fd);
    if (rc)
        return rc;
    crail_rpc_arm(nn, &ring->end, EPOLLIN | EPOLLET);
    ring->conn = c;
    nn->stats.rings++;
    return 0;
}

void crail_rpc_ring_close(crail_namenode *nn, struct crail_rpc_ring *ring) {
    look_away(nn, ring);
    if (!nn->awake_count)
        nn->spin_until = 0; /* there is nobody left to spin for */
    crail_ring_close(&ring->ring);
    crail_rpc_endpoint_close(nn, &ring->end);
    ring->conn = NULL;
    nn->stats.rings--;
}

/* ---- bytes and bells ----------------------------------------------------- */

/* The client sleeps on its socket. If that is full of such bytes already, it will not sleep. */
static void wake_client(const struct crail_rpc_ring *ring) {
    send(ring->conn->end.fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

ssize_t crail_rpc_ring_read(struct crail_rpc_ring *ring, void *to, size_t n) {
    ssize_t got = crail_ring_read(&ring->ring, to, n);
    if (got > 0 && crail_ring_wake_writer(&ring->ring))
        wake_client(ring);
    return got ? got : -EAGAIN;
}

ssize_t crail_rpc_ring_write(struct crail_rpc_ring *ring, const void *from, size_t n) {
    ssize_t put = crail_ring_write(&ring->ring, from, n);
    if (put > 0 && crail_ring_wake_reader(&ring->ring))
        wake_client(ring);
    return put ? put : -EAGAIN;
}

void crail_rpc_ring_event(crail_namenode *nn, struct crail_rpc_ring *ring) {
    struct crail_rpc_conn *c = ring->conn;
    struct crail_rpc_lane *lane = c->lane;
    if (!c->blocked && (lane->vec.frame || lane->held || c->tx_left))
        return; /* busy: looks for itself before it rests */
    bool was_blocked = c->blocked;
    c->readable = !was_blocked;
    c->blocked = false;
    if (was_blocked && c->party)
        crail_rpc_party_unblocked(nn, c->party);
    look_away(nn, ring);
    if (lane->state == CRAIL_RPC_LANE_IDLE)
        crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY);
}

/* ---- awake or asleep ----------------------------------------------------- */

static void ready(crail_namenode *nn, struct crail_rpc_ring *ring) {
    look_away(nn, ring);
    ring->conn->readable = true;
    crail_rpc_lane_move(nn, ring->conn->lane, CRAIL_RPC_LANE_READY);
}

/* When its next request will be here, by the client's word; 0: it does not say. */
static uint64_t follows_by(const struct crail_rpc_ring *ring) {
    uint32_t ns = atomic_load_explicit(&ring->ring.memory->follows_ns, memory_order_relaxed);
    return ns ? crail_clock_ns() + (ns < CRAIL_RING_SPIN_NS_MAX ? ns : CRAIL_RING_SPIN_NS_MAX) : 0;
}

/* What is there already waits for its turn, too: a client that writes as fast as we read does not hold the loop. */
void crail_rpc_ring_idle(crail_namenode *nn, struct crail_rpc_ring *ring) {
    look_away(nn, ring); /* a late reply may have made its lane ready meanwhile */
    bool came = crail_ring_readable(&ring->ring);
    if (!came && nn->awake_count < CRAIL_RPC_AWAKE_MAX) {
        ring->idle_since = nn->now_ns;
        ring->follows_by = follows_by(ring);
        crail_list_push(&nn->awake, &ring->awake);
        nn->awake_count++;
    } else if (came || !crail_ring_sleep_for_bytes(&ring->ring)) {
        ready(nn, ring);
    }
}

bool crail_rpc_rings_look(crail_namenode *nn) {
    bool found = false;
    for (struct crail_list *l = nn->awake.next, *next; l != &nn->awake; l = next) {
        struct crail_rpc_ring *ring = CRAIL_LIST_OF(l, struct crail_rpc_ring, awake);
        next = l->next;
        if (!crail_ring_readable(&ring->ring))
            continue;
        found = true;
        ready(nn, ring);
    }
    return found;
}

bool crail_rpc_rings_sleep(crail_namenode *nn, uint64_t before) {
    bool slept = true;
    while (!crail_list_empty(&nn->awake)) {
        struct crail_rpc_ring *ring = CRAIL_LIST_OF(nn->awake.next, struct crail_rpc_ring, awake);
        if (ring->idle_since > before)
            break;
        look_away(nn, ring);
        if (crail_ring_sleep_for_bytes(&ring->ring))
            continue;
        ready(nn, ring);
        slept = false;
    }
    return slept;
}

bool crail_rpc_rings_check(const crail_namenode *nn) {
    uint32_t count = 0;
    for (const struct crail_list *l = nn->awake.next; l != &nn->awake; l = l->next) {
        const struct crail_rpc_conn *c = CRAIL_LIST_OF(l, const struct crail_rpc_ring, awake)->conn;
        if (!c || (c->lane->state != CRAIL_RPC_LANE_IDLE && c->lane->state != CRAIL_RPC_LANE_READY))
            return false;
        count++;
    }
    return count == nn->awake_count && count <= CRAIL_RPC_AWAKE_MAX;
}

/* ---- spinning ------------------------------------------------------------ */

/* When somebody's next request will be here. */
static uint64_t last_follows_by(const crail_namenode *nn) {
    uint64_t by = 0;
    for (const struct crail_list *l = nn->awake.next; l != &nn->awake; l = l->next) {
        uint64_t its = CRAIL_LIST_OF(l, const struct crail_rpc_ring, awake)->follows_by;
        by = its > by ? its : by;
    }
    return by;
}

/* Where the only client and the loop share a core, no spin can succeed, and the scheduler keeps them together: each
 * sleeps while the other works. So the loop goes elsewhere, where it may; what it is allowed stays as it was. (Several
 * clients keep both of them moving.) */
static void part_from_client(const crail_namenode *nn) {
    cpu_set_t all, others;
    int here = sched_getcpu();
    if (crail_list_empty(&nn->awake) || nn->awake.next->next != &nn->awake)
        return;
    const struct crail_rpc_ring *ring = CRAIL_LIST_OF(nn->awake.next, const struct crail_rpc_ring, awake);
    if (here < 0 || atomic_load_explicit(&ring->ring.memory->client_core, memory_order_relaxed) != (uint32_t)here ||
        sched_getaffinity(0, sizeof all, &all))
        return;
    others = all;
    CPU_CLR(here, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
        sched_setaffinity(0, sizeof all, &all);
}

bool crail_rpc_rings_spin(crail_namenode *nn, bool found, uint64_t now, bool preempted) {
    if (nn->spin_until && (found || preempted || now >= nn->spin_until)) {
        nn->spin_until = 0;
        crail_ring_spun(&nn->pace, found && !preempted);
        if (!found && !preempted)
            part_from_client(nn);
        return false;
    }
    if (found || nn->spin_until)
        return !found;
    uint64_t by = last_follows_by(nn);
    if (by <= now || !crail_ring_may_spin(&nn->pace))
        return false;
    nn->spin_until = by;
    return true;
}
