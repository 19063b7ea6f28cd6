/* Sessions and their lanes. A session is found by its number, and ends by BYE or when it has had no connection for
 * the grace. A lane lives as long as its session: its record is what makes a repeated request harmless. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/rpc.h"

#define BUCKETS_LOG2_FIRST 6

/* ---- the table ----------------------------------------------------------- */

static struct crail_rpc_session **bucket(crail_namenode *nn, uint64_t id) {
    return &nn->buckets[(id * 0x9e3779b97f4a7c15u) >> (64 - nn->buckets_log2)];
}

static struct crail_rpc_session *find(crail_namenode *nn, uint64_t id) {
    struct crail_rpc_session *s = *bucket(nn, id);
    while (s && s->id != id)
        s = s->next;
    return s;
}

static void link_session(crail_namenode *nn, struct crail_rpc_session *s) {
    struct crail_rpc_session **b = bucket(nn, s->id);
    s->next = *b;
    *b = s;
}

static void unlink_session(crail_namenode *nn, struct crail_rpc_session *s) {
    struct crail_rpc_session **at = bucket(nn, s->id);
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
}

/* Twice the buckets; where there is no memory for them the chains get longer, nothing else. */
static void grow(crail_namenode *nn) {
    uint64_t n = (uint64_t)1 << nn->buckets_log2;
    struct crail_rpc_session **old = nn->buckets;
    struct crail_rpc_session **buckets = calloc(2 * n, sizeof *buckets);
    if (!buckets)
        return;
    nn->buckets = buckets;
    nn->buckets_log2++;
    for (uint64_t i = 0; i < n; i++) {
        for (struct crail_rpc_session *s = old[i], *next; s; s = next) {
            next = s->next;
            link_session(nn, s);
        }
    }
    free(old);
}

int crail_rpc_sessions_init(crail_namenode *nn) {
    nn->buckets_log2 = BUCKETS_LOG2_FIRST;
    nn->buckets = calloc((size_t)1 << BUCKETS_LOG2_FIRST, sizeof *nn->buckets);
    return nn->buckets ? 0 : -ENOMEM;
}

void crail_rpc_sessions_destroy(crail_namenode *nn) {
    for (uint64_t i = 0; i < (uint64_t)1 << nn->buckets_log2; i++)
        while (nn->buckets[i])
            crail_rpc_session_end(nn, nn->buckets[i]);
    free(nn->buckets);
}

/* ---- from open to end ---------------------------------------------------- */

static void grace_from_now(crail_namenode *nn, struct crail_rpc_session *s) {
    s->grace_since = nn->now_ns;
    crail_list_push(&nn->grace[s->is_local], &s->grace);
}

static void enter(crail_namenode *nn, struct crail_rpc_session *s, uint64_t id) {
    s->id = id;
    crail_list_init(&s->lanes);
    crail_list_init(&s->grace);
    crail_list_init(&s->watches);
    grace_from_now(nn, s);
    if (nn->stats.sessions >= (uint64_t)1 << nn->buckets_log2)
        grow(nn);
    link_session(nn, s);
    nn->stats.sessions++;
}

int crail_rpc_session_open(crail_namenode *nn, uint64_t id) {
    if (find(nn, id))
        return -EEXIST;
    struct crail_rpc_session *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    int rc = crail_meta_session_open(nn->meta, id, &s->meta);
    if (rc) {
        free(s);
        return rc;
    }
    enter(nn, s, id);
    return 0;
}

int crail_rpc_session_loaded(crail_namenode *nn, uint64_t id, struct crail_meta_session *meta) {
    struct crail_rpc_session *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->meta = meta;
    s->is_loaded = true;
    enter(nn, s, id);
    return 0;
}

void crail_rpc_session_end(crail_namenode *nn, struct crail_rpc_session *s) {
    while (!crail_list_empty(&s->lanes)) {
        struct crail_rpc_lane *lane = CRAIL_LIST_OF(s->lanes.next, struct crail_rpc_lane, of_session);
        if (lane->conn)
            crail_rpc_conn_close(nn, lane->conn);
        crail_rpc_lane_free(nn, lane);
    }
    assert(s->conns == 0);
    crail_list_remove(&s->grace);
    crail_rpc_watches_end(nn, s);
    crail_meta_session_end(nn->meta, s->meta);
    nn->changed = true;
    unlink_session(nn, s);
    nn->stats.sessions--;
    crail_rpc_events_post(&nn->events, CRAIL_EVENT_SESSION_ENDED, 0, s->id);
    free(s);
}

void crail_rpc_sessions_hang_up(crail_namenode *nn) {
    for (uint64_t i = 0; i < (uint64_t)1 << nn->buckets_log2; i++) {
        for (struct crail_rpc_session *s = nn->buckets[i]; s; s = s->next) {
            for (struct crail_list *l = s->lanes.next; l != &s->lanes; l = l->next) {
                struct crail_rpc_lane *lane = CRAIL_LIST_OF(l, struct crail_rpc_lane, of_session);
                if (lane->conn)
                    crail_rpc_conn_close(nn, lane->conn);
            }
        }
    }
}

void crail_rpc_session_conn_gained(struct crail_rpc_session *s, int fd) {
    int domain = 0;
    socklen_t n = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &n);
    s->is_local = domain == AF_UNIX;
    s->conns++;
    crail_list_remove(&s->grace);
}

void crail_rpc_session_conn_lost(crail_namenode *nn, struct crail_rpc_session *s) {
    assert(s->conns > 0);
    if (--s->conns == 0)
        grace_from_now(nn, s);
}

void crail_rpc_session_deadlines(crail_namenode *nn) {
    for (int reach = 0; reach < 2; reach++) {
        while (!crail_list_empty(&nn->grace[reach])) {
            struct crail_rpc_session *s = CRAIL_LIST_OF(nn->grace[reach].next, struct crail_rpc_session, grace);
            if (s->grace_since + nn->grace_ns[reach] > nn->now_ns)
                break;
            crail_rpc_session_end(nn, s);
            if (crail_clock_ns() >= nn->turn_end_ns)
                return; /* the rest in the next turn: a crowd may die at once */
        }
    }
}

/* ---- lanes --------------------------------------------------------------- */

static struct crail_rpc_lane *lane_of(struct crail_rpc_session *s, uint32_t number) {
    for (struct crail_list *l = s->lanes.next; l != &s->lanes; l = l->next) {
        struct crail_rpc_lane *lane = CRAIL_LIST_OF(l, struct crail_rpc_lane, of_session);
        if (lane->number == number)
            return lane;
    }
    struct crail_rpc_lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        return NULL;
    crail_list_init(&lane->link);
    crail_list_init(&lane->of_session);
    crail_list_init(&lane->of_rows);
    lane->takes_any = s->is_loaded; /* what it did after the last cut is lost, and its numbers with it */
    lane->number = number;
    lane->session = s;
    crail_list_push(&s->lanes, &lane->of_session);
    return lane;
}

int crail_rpc_lane_loaded(crail_namenode *nn, uint64_t session, uint32_t number, struct crail_rpc_lane **out) {
    struct crail_rpc_session *s = number < CRAIL_RPC_LANES_MAX ? find(nn, session) : NULL;
    if (!s)
        return 1;
    *out = lane_of(s, number);
    if (!*out)
        return -ENOMEM;
    (*out)->is_stored = true;
    return 0;
}

int crail_rpc_lane_attach(crail_namenode *nn, int fd, uint64_t session, uint32_t number, struct crail_rpc_ring *ring) {
    struct crail_rpc_session *s = find(nn, session);
    struct crail_rpc_lane *lane = s && number < CRAIL_RPC_LANES_MAX ? lane_of(s, number) : NULL;
    if (!lane) {
        close(fd);
        crail_rpc_ring_free(ring);
        return !s ? -CRAIL_E_SESSION_LOST : number < CRAIL_RPC_LANES_MAX ? -ENOMEM : -CRAIL_E_INVALID_ARGUMENT;
    }
    if (lane->conn)
        crail_rpc_conn_close(nn, lane->conn);
    return crail_rpc_conn_open(nn, fd, lane, ring);
}
