/* Connections whose bytes go through shared memory. The socket stays: its end is the connection's end, and a byte on
 * it wakes a client that sleeps there. The client wakes us by the bell.
 *
 * Asleep or awake. A ring whose connection is idle either sleeps (its flag is up, the client will ring) or spins (its
 * flag is down and the loop looks at it again and again, crail_rpc_rings_look). Spinning saves both ends all system
 * calls, and harms whoever needs this core. So it is done only
 *   - in a dense stream, and after a reply for as long as the client says that it thinks, 100 us at most;
 *   - while all busy lanes and this thread can have a core each: else a client needs ours to send its request;
 *   - not for a while after it found nothing (crail_ring_pace). */
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
    crail_list_init(&ring->spin);
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
    crail_list_remove(&ring->spin);
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
    crail_list_remove(&ring->spin);
    if (lane->state == CRAIL_RPC_LANE_IDLE)
        crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY);
}

/* ---- awake or asleep ----------------------------------------------------- */

/* Asked again and again: others may move us at any time. */
static uint32_t cores_allowed(void) {
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) ? 1 : (uint32_t)CPU_COUNT(&allowed);
}

void crail_rpc_crowd_count(crail_namenode *nn, struct crail_rpc_lane *lane) {
    if (lane->crowd != nn->crowd_epoch) {
        lane->crowd = nn->crowd_epoch;
        nn->crowd_now++;
    }
    if (--nn->crowd_left)
        return;
    nn->crowd = nn->crowd_now;
    nn->cores = nn->stats.rings ? cores_allowed() : 0;
    nn->crowd_now = 0;
    nn->crowd_left = CRAIL_RPC_CROWD;
    nn->crowd_epoch++;
}

static bool may_spin(crail_namenode *nn, struct crail_rpc_ring *ring) {
    uint32_t follows_ns = atomic_load_explicit(&ring->ring.memory->follows_ns, memory_order_relaxed);
    ring->spin_ns = follows_ns < CRAIL_RING_SPIN_NS_MAX ? follows_ns : CRAIL_RING_SPIN_NS_MAX;
    return follows_ns && nn->crowd < nn->cores && crail_ring_may_spin(&ring->pace);
}

static void ready(crail_namenode *nn, struct crail_rpc_ring *ring) {
    crail_list_remove(&ring->spin);
    ring->conn->readable = true;
    crail_rpc_lane_move(nn, ring->conn->lane, CRAIL_RPC_LANE_READY);
}

/* What is there already waits for its turn, too: a client that writes as fast as we read does not hold the loop. */
void crail_rpc_ring_idle(crail_namenode *nn, struct crail_rpc_ring *ring) {
    bool came = crail_ring_readable(&ring->ring);
    if (!came && may_spin(nn, ring)) {
        ring->spin_since = crail_clock_ns();
        crail_list_push(&nn->spinning, &ring->spin);
    } else if (came || !crail_ring_sleep_for_bytes(&ring->ring)) {
        ready(nn, ring);
    }
}

/* Where client and loop share a core, no spin can succeed, and the scheduler keeps them together: each sleeps while the
 * other works. So the loop goes elsewhere, where it may; what it is allowed stays as it was. */
static void part_from(const struct crail_rpc_ring *ring) {
    cpu_set_t all, others;
    int here = sched_getcpu();
    if (here < 0 || atomic_load_explicit(&ring->ring.memory->client_core, memory_order_relaxed) != (uint32_t)here ||
        sched_getaffinity(0, sizeof all, &all))
        return;
    others = all;
    CPU_CLR(here, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
        sched_setaffinity(0, sizeof all, &all);
}

bool crail_rpc_rings_look(crail_namenode *nn) {
    bool found = false;
    if (crail_list_empty(&nn->spinning))
        return false;
    uint64_t now = crail_clock_ns();
    for (struct crail_list *l = nn->spinning.next, *next; l != &nn->spinning; l = next) {
        struct crail_rpc_ring *ring = CRAIL_LIST_OF(l, struct crail_rpc_ring, spin);
        next = l->next;
        bool came = crail_ring_readable(&ring->ring), late = now - ring->spin_since >= ring->spin_ns;
        if (came || late)
            crail_ring_spun(&ring->pace, came);
        if (!came && late) {
            crail_list_remove(&ring->spin);
            came = !crail_ring_sleep_for_bytes(&ring->ring);
            if (!came)
                part_from(ring);
        }
        if (came)
            ready(nn, ring);
        found |= came;
    }
    return found;
}
