/* Servers and their retire channels. Freed extents come due in the tree; they are ordered from the storage server in
 * frames, and are free again when it confirms.
 *
 * Orders are gathered for a moment, so that steady overwriting costs a fraction of a system call per value, and go
 * at once where memory is short. What is ordered and not confirmed has no bound but the server's granules: an order
 * waits as long as somebody looks at its extent, and must not keep the others from coming back. Only what the socket
 * has not taken holds up the next frame. A channel that breaks loses nothing: with the next one
 * crail_meta_server_set(UP) makes every unconfirmed order due again, and orders are idempotent. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "rpc/rpc.h"

#define ORDER_EXTENTS 256u /* so many are worth a frame */
#define ORDER_PART 64u     /* so is this part of the server's memory */
#define SHORT_PART 8u      /* less than this part free: memory is short */
#define FRAMES_PER_TURN 2u /* per channel */

/* ---- the channel --------------------------------------------------------- */

static void close_channel(crail_namenode *nn, struct crail_rpc_channel *ch, bool tell) {
    struct crail_rpc_server *s = ch->server;
    assert(s && s->channel == ch);
    crail_rpc_endpoint_close(nn, &ch->end);
    crail_list_remove(&ch->link);
    s->channel = NULL;
    ch->server = NULL;
    s->away_until_ns = nn->now_ns + nn->grace_ns[0];
    if (tell)
        crail_rpc_events_post(&nn->events, CRAIL_EVENT_SERVER_CHANNEL_CLOSED, s->number, 0);
}

static int open_channel(crail_namenode *nn, struct crail_rpc_server *s, int fd) {
    struct crail_rpc_channel *ch = calloc(1, sizeof *ch);
    if (!ch)
        return -ENOMEM;
    int rc = crail_rpc_endpoint_open(nn, &ch->end, CRAIL_RPC_CHANNEL, fd);
    if (rc) {
        free(ch);
        return rc;
    }
    crail_list_init(&ch->link);
    crail_list_push(&nn->channels, &ch->link);
    ch->server = s;
    s->channel = ch;
    return 0;
}

/* ---- orders -------------------------------------------------------------- */

/* False: the channel is closed. */
static bool flush(crail_namenode *nn, struct crail_rpc_channel *ch) {
    ssize_t n = send(ch->end.fd, ch->out.bytes + ch->tx_pos, ch->tx_len - ch->tx_pos, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        close_channel(nn, ch, true);
        return false;
    }
    if (n > 0)
        ch->tx_pos += (uint32_t)n;
    if (ch->tx_pos == ch->tx_len)
        ch->tx_pos = ch->tx_len = 0;
    /* Confirmations are read in any case: they are what lets the server read on. */
    crail_rpc_arm(nn, &ch->end, ch->tx_len ? EPOLLIN | EPOLLOUT : EPOLLIN);
    return true;
}

static bool memory_is_short(crail_namenode *nn, const struct crail_rpc_server *s) {
    if (!crail_list_empty(&nn->wait_space))
        return true;
    struct crail_meta_stats st;
    return crail_meta_server_stats(nn->meta, s->number, &st) == 0 && st.granules_free < s->granules / SHORT_PART;
}

static bool worth_a_frame(crail_namenode *nn, const struct crail_rpc_channel *ch, uint32_t extents, uint64_t granules) {
    return extents >= ORDER_EXTENTS || granules > ch->server->granules / ORDER_PART ||
           ch->due_since + nn->tuning.order_wait_ns <= nn->now_ns || memory_is_short(nn, ch->server);
}

static bool can_order(const struct crail_rpc_channel *ch) {
    return !ch->tx_len;
}

static void order(crail_namenode *nn, struct crail_rpc_channel *ch) {
    for (uint32_t frames = 0; frames < FRAMES_PER_TURN && can_order(ch); frames++) {
        uint32_t extents;
        uint64_t granules;
        crail_meta_retires_due(nn->meta, ch->server->number, &extents, &granules);
        if (!extents) {
            ch->due_since = 0;
            return;
        }
        if (!ch->due_since)
            ch->due_since = nn->now_ns;
        if (!worth_a_frame(nn, ch, extents, granules))
            return;
        struct crail_retire *orders = (void *)(ch->out.bytes + sizeof ch->out.head);
        uint32_t n = crail_meta_retires_take(nn->meta, ch->server->number, orders, CRAIL_RETIRES_MAX);
        assert(n > 0 && n <= CRAIL_RETIRES_MAX);
        ch->tx_len = (uint32_t)(sizeof ch->out.head + n * sizeof *orders);
        ch->out.head = (struct crail_retire_frame){.magic = CRAIL_RETIRE_MAGIC, .size = ch->tx_len, .count = n};
        ch->in_flight += n;
        if (n == extents)
            ch->due_since = 0;
        if (!flush(nn, ch))
            return;
        crail_failpoint("retire-ordered");
    }
}

void crail_rpc_retires_order(crail_namenode *nn) {
    if (!nn->changed && crail_rpc_retires_deadline(nn) > nn->now_ns)
        return;
    nn->changed = false;
    for (struct crail_list *l = nn->channels.next, *next; l != &nn->channels; l = next) {
        next = l->next;
        order(nn, CRAIL_LIST_OF(l, struct crail_rpc_channel, link));
    }
}

uint64_t crail_rpc_retires_deadline(crail_namenode *nn) {
    uint64_t at = UINT64_MAX;
    for (struct crail_list *l = nn->channels.next; l != &nn->channels; l = l->next) {
        struct crail_rpc_channel *ch = CRAIL_LIST_OF(l, struct crail_rpc_channel, link);
        if (ch->due_since && can_order(ch) && ch->due_since + nn->tuning.order_wait_ns < at)
            at = ch->due_since + nn->tuning.order_wait_ns;
    }
    return at;
}

static bool retires_at(const crail_namenode *nn, const struct crail_rpc_server *s) {
    struct crail_meta_stats st;
    return crail_meta_server_stats(nn->meta, s->number, &st) == 0 && st.granules_retiring;
}

bool crail_rpc_retires_coming(crail_namenode *nn) {
    for (uint32_t i = 0; i < nn->servers_count; i++)
        if (nn->servers[i]->channel && retires_at(nn, nn->servers[i]))
            return true;
    return false;
}

/* ---- confirmations ------------------------------------------------------- */

/* False: the server confirms what was not ordered. */
static bool confirm(crail_namenode *nn, struct crail_rpc_channel *ch, const struct crail_retire *done, uint32_t n) {
    int rc = -EPROTO;
    crail_failpoint("retire-done");
    if (!ch->doubtful) {
        rc = crail_meta_retires_done(nn->meta, ch->server->number, done, n);
        ch->in_flight -= rc || ch->in_flight < n ? 0 : n;
        return rc == 0;
    }
    for (uint32_t i = 0; i < n; i++) { /* one by one: some may be confirmed for the second time */
        rc = crail_meta_retires_done(nn->meta, ch->server->number, done + i, 1);
        if (rc && !ch->doubtful)
            return false;
        if (rc)
            ch->doubtful--;
        else if (ch->in_flight)
            ch->in_flight--;
    }
    return true;
}

/* Takes the whole frames out of the input. False: garbage. */
static bool take_frames(crail_namenode *nn, struct crail_rpc_channel *ch) {
    while (ch->in_len >= sizeof ch->in.head) {
        const struct crail_retire_frame head = ch->in.head;
        if (head.magic != CRAIL_RETIRE_MAGIC || head.flags || !head.count || head.count > CRAIL_RETIRES_MAX ||
            head.size != sizeof head + head.count * sizeof(struct crail_retire))
            return false;
        if (ch->in_len < head.size)
            break;
        if (!confirm(nn, ch, (const void *)(ch->in.bytes + sizeof head), head.count))
            return false;
        ch->in_len -= head.size;
        memmove(ch->in.bytes, ch->in.bytes + head.size, ch->in_len);
        crail_failpoint("retire-free");
        crail_rpc_lanes_wake(nn, &nn->wait_space);
    }
    return true;
}

void crail_rpc_channel_event(crail_namenode *nn, struct crail_rpc_channel *ch, uint32_t events) {
    if (events & EPOLLOUT) {
        nn->changed = true;
        if (ch->tx_len && !flush(nn, ch))
            return;
    }
    if (!(events & ~(uint32_t)EPOLLOUT))
        return;
    ssize_t n = recv(ch->end.fd, ch->in.bytes + ch->in_len, sizeof ch->in.bytes - ch->in_len, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    bool garbage = false;
    if (n > 0) {
        ch->in_len += (uint32_t)n;
        garbage = !take_frames(nn, ch);
    }
    nn->stats.protocol_errors += garbage;
    if (n <= 0 || garbage)
        close_channel(nn, ch, true);
}

/* ---- servers ------------------------------------------------------------- */

struct crail_rpc_server *crail_rpc_server_find(crail_namenode *nn, uint64_t number) {
    return number >= 1 && number <= nn->servers_count ? nn->servers[number - 1] : NULL;
}

static int describe(struct crail_rpc_server *s, const void *description, uint32_t size) {
    void *copy = malloc(size ? size : 1);
    if (!copy)
        return -ENOMEM;
    if (size)
        memcpy(copy, description, size);
    free(s->description);
    s->description = copy;
    s->description_size = size;
    return 0;
}

int crail_rpc_server_describe(crail_namenode *nn, uint32_t number, const void *description, uint32_t size) {
    struct crail_rpc_server *s = crail_rpc_server_find(nn, number);
    int rc = s ? describe(s, description, size) : -ENOENT;
    return rc ? rc : crail_meta_server_note(nn->meta, number, description, size);
}

/* Room for one more server. */
static int grow(crail_namenode *nn) {
    if (nn->servers_count & (nn->servers_count - 1))
        return 0; /* the array doubles when its count is a power of two */
    size_t cap = nn->servers_count ? 2u * nn->servers_count : 1;
    void *servers = realloc(nn->servers, cap * sizeof *nn->servers);
    if (!servers)
        return -ENOMEM;
    nn->servers = servers;
    return 0;
}

int crail_rpc_server_add(crail_namenode *nn, uint32_t regions, const uint32_t *granules,
                         const uint64_t *const *generations, struct crail_meta_place place, const void *description,
                         uint32_t size, uint32_t *number) {
    struct crail_meta_region mr[CRAIL_RPC_REGIONS_MAX] = {0};
    if (!regions || regions > sizeof mr / sizeof *mr)
        return -EINVAL;
    struct crail_rpc_server *s = calloc(1, sizeof *s);
    int rc = s ? grow(nn) : -ENOMEM;
    if (rc)
        goto out;
    for (uint32_t i = 0; i < regions; i++) {
        mr[i].granules = granules[i];
        s->granules += granules[i];
    }
    s->number = nn->servers_count + 1;
    s->state = CRAIL_SERVER_UP;
    nn->servers[nn->servers_count++] = s;
    rc = describe(s, description, size);
    if (!rc)
        rc = crail_meta_server_add(nn->meta, mr, regions, generations, place, number);
    if (rc) {
        nn->servers_count--;
        free(s->description);
        goto out;
    }
    assert(*number == s->number); /* both count 1, 2, ... */
    crail_rpc_lanes_wake(nn, &nn->wait_space);
    return crail_meta_server_note(nn->meta, *number, description, size);
out:
    free(s);
    return rc;
}

int crail_rpc_server_loaded(crail_namenode *nn, uint32_t number, uint32_t state, const uint32_t *granules,
                            uint32_t regions, const void *description, uint32_t size) {
    while (nn->servers_count < number) {
        struct crail_rpc_server *s = calloc(1, sizeof *s);
        int rc = s ? grow(nn) : -ENOMEM;
        if (rc) {
            free(s);
            return rc;
        }
        /* Numbers without a row are of servers that nobody needs any more. */
        s->number = nn->servers_count + 1;
        s->state = CRAIL_SERVER_LOST;
        nn->servers[nn->servers_count++] = s;
    }
    struct crail_rpc_server *s = nn->servers[number - 1];
    s->state = state;
    s->is_awaited = state != CRAIL_SERVER_LOST;
    if (regions > CRAIL_RPC_REGIONS_MAX)
        return -EUCLEAN;
    s->regions = regions;
    for (uint32_t i = 0; i < regions; i++) {
        s->region_granules[i] = granules[i];
        s->granules += granules[i];
    }
    return describe(s, description, size);
}

int crail_rpc_server_set(crail_namenode *nn, uint32_t number, uint32_t state) {
    struct crail_rpc_server *s = crail_rpc_server_find(nn, number);
    if (!s)
        return -ENOENT;
    if (s->state == state)
        return 0; /* also: what is under way on a living channel is not ordered twice */
    int rc = crail_meta_server_set(nn->meta, number, (enum crail_meta_server_state)state);
    if (rc)
        return rc;
    s->state = state;
    s->is_awaited &= state != CRAIL_SERVER_LOST;
    s->away_until_ns = nn->now_ns + nn->grace_ns[0];
    nn->changed = true;
    struct crail_rpc_channel *ch = s->channel;
    if (state == CRAIL_SERVER_LOST && ch)
        close_channel(nn, ch, false);
    if (state == CRAIL_SERVER_UP && ch) {
        /* Down and up again, and the channel lived: what it has been ordered is due again, and will be confirmed
         * twice. */
        ch->doubtful += ch->in_flight;
        ch->in_flight = 0;
    }
    crail_rpc_lanes_wake(nn, &nn->wait_space);
    return 0;
}

/* It is down; or its memory comes back when it has a channel: it has just been recovered, or its channel has broken. */
static bool is_awaited(const crail_namenode *nn, const struct crail_rpc_server *s) {
    return s->state == CRAIL_SERVER_DOWN || (s->state == CRAIL_SERVER_UP && !s->channel && retires_at(nn, s));
}

uint64_t crail_rpc_servers_awaited(const crail_namenode *nn) {
    uint64_t until = 0;
    for (uint32_t i = 0; i < nn->servers_count; i++) {
        const struct crail_rpc_server *s = nn->servers[i];
        if (s->away_until_ns > nn->now_ns && s->away_until_ns > until && is_awaited(nn, s))
            until = s->away_until_ns;
    }
    return until;
}

int crail_rpc_server_recovered(crail_namenode *nn, uint32_t number, const uint64_t *generations, uint64_t count,
                               const struct crail_retire *busy, uint32_t busy_n, uint32_t *lost) {
    struct crail_rpc_server *s = crail_rpc_server_find(nn, number);
    const uint64_t *region[CRAIL_RPC_REGIONS_MAX] = {0};
    if (!s)
        return -ENOENT;
    if (!s->is_awaited || count != s->granules)
        return -EINVAL;
    for (uint32_t i = 0; i < s->regions; i++) {
        region[i] = generations;
        generations += s->region_granules[i];
    }
    uint64_t from = crail_clock_ns();
    int rc = crail_meta_server_recovered(nn->meta, number, region, busy, busy_n, lost);
    nn->excused_ns += crail_clock_ns() - from; /* once per server and life */
    if (rc)
        return rc;
    crail_failpoint("server-recovered");
    s->is_awaited = false;
    s->state = CRAIL_SERVER_UP;
    s->away_until_ns = crail_clock_ns() + nn->grace_ns[0]; /* its channel is */
    nn->changed = true;
    crail_rpc_lanes_wake(nn, &nn->wait_space);
    return 0;
}

int crail_rpc_server_channel(crail_namenode *nn, uint32_t number, int fd) {
    struct crail_rpc_server *s = crail_rpc_server_find(nn, number);
    int rc = !s ? -ENOENT : s->state == CRAIL_SERVER_LOST ? -CRAIL_E_DATA_LOST : s->is_awaited ? -EINVAL : 0;
    if (!rc && s->channel)
        close_channel(nn, s->channel, false);
    if (!rc)
        rc = open_channel(nn, s, fd);
    if (rc) {
        close(fd);
        return rc;
    }
    s->state = CRAIL_SERVER_UP;
    nn->changed = true;
    return crail_meta_server_set(nn->meta, number, CRAIL_SERVER_UP);
}

void crail_rpc_servers_destroy(crail_namenode *nn) {
    for (uint32_t i = 0; i < nn->servers_count; i++) {
        struct crail_rpc_server *s = nn->servers[i];
        if (s->channel)
            close_channel(nn, s->channel, false);
        free(s->description);
        free(s);
    }
    free(nn->servers);
}
