/* What a storage server that is broken, or means harm, answers to a client that reads and writes over data
 * connections: transfers (client/io.c) and pipes (client/pipe.c). A call ends with the bytes or with an error that is
 * in its contract, and writes nowhere but into the buffer it was given. */
#include "fuzz.h"

#include "client/client.h"
#include "crail/api.h"

#define SERVERS 2u
#define EXTENTS 3u
#define BUFFER (EXTENTS * 4u * CRAIL_GRANULE)
#define CALLS_MAX 60
#define SAID_MAX 60000u

static struct {
    crail_client *client;
    struct crail_lane *lane;
    int peers[SERVERS]; /* the servers' ends of the latest connections, or -1 */
    struct crail_extent extents[EXTENTS];
    uint64_t bytes; /* of the value */
    int64_t deadline_ns;
} w;

static uint8_t buffer[BUFFER + 64];

/* ---- the servers -------------------------------------------------------------------- */

/* All that a server is going to say over a new connection, before it hangs up: replies that are good by what the
 * script foresees of the ids and lengths that will be asked for, or are not. */
static void say_replies(struct fuzz_input *in, int fd, bool is_read) {
    static uint8_t body[4 * CRAIL_GRANULE];
    uint64_t id = 0;
    for (int i = fuzz_u8(in) % 8; i > 0; i--) {
        uint8_t how = fuzz_u8(in);
        struct crail_data_reply r = {.magic = CRAIL_DATA_MAGIC, .length = is_read ? 1 + fuzz_u16(in) % sizeof body : 0};
        if (how % 4 == 0) /* as a transfer counts, by bytes */
            r.id = id;
        else
            r.id = how % 4 == 1 ? fuzz_u8(in) : i;
        if (how >= 128)
            r.length = how % 2 ? w.bytes : fuzz_u8(in) % 5 * (uint64_t)CRAIL_GRANULE;
        if (how >= 200)
            r.status = how % 2 ? -(int32_t)(CRAIL_STATUS_BASE + fuzz_u8(in) % 22) : (int32_t)fuzz_value(in) - 40;
        if (how >= 240)
            ((uint8_t *)&r)[fuzz_u8(in) % sizeof r] = fuzz_u8(in);
        size_t n = is_read && r.status == 0 && r.length <= sizeof body ? r.length : 0;
        id += r.length;
        if (fuzz_say(fd, &r, sizeof r) && n)
            fuzz_say(fd, body, n);
    }
}

static void server_connect(struct fuzz_input *in, uint32_t server, bool is_read) {
    int pair[2], *peer = &w.peers[server % SERVERS];
    if (*peer >= 0)
        close(*peer);
    fuzz_pair(pair);
    *peer = pair[1];
    say_replies(in, pair[1], is_read);
    shutdown(pair[1], SHUT_WR);
    CHECK(crail_client_server_tcp(w.client, server, w.lane->number, pair[0], 1) == 0);
}

static void servers_hear(void) {
    static uint8_t requests[65536];
    for (uint32_t i = 0; i < SERVERS; i++)
        while (w.peers[i] >= 0 && __real_recv(w.peers[i], requests, sizeof requests, MSG_DONTWAIT) > 0) {
        }
}

/* ---- the client ---------------------------------------------------------------------- */

/* 0, an error that ends a call, or what has to be done first. */
static bool is_answer(int rc) {
    return rc == 0 || rc == -EPIPE || rc == -EINTR || rc == -ETIMEDOUT ||
           (rc < -CRAIL_STATUS_BASE && rc >= -CRAIL_STATUS_BASE - 1000);
}

static void check_buffer(void) {
    for (size_t i = BUFFER; i < sizeof buffer; i++)
        CHECK(buffer[i] == 0xee);
}

/* A transfer as the hot door makes it. */
static void transfer(struct fuzz_input *in, bool is_write) {
    struct crail_io io = {.client = w.client,
                          .lane = w.lane,
                          .extents = w.extents,
                          .extents_count = EXTENTS,
                          .is_write = is_write,
                          .value_bytes = w.bytes,
                          .offset = fuzz_u16(in) % w.bytes,
                          .buffer = buffer,
                          .deadline_ns = w.deadline_ns};
    io.length = 1 + fuzz_u16(in) % (w.bytes - io.offset);
    for (int i = 0, failures = 0; i < CALLS_MAX && failures < 3; i++) {
        int rc = crail_io_run(&io);
        servers_hear();
        CHECK(is_answer(rc) || rc == CRAIL_NEED_SERVER || rc == CRAIL_NEED_CALL_AGAIN);
        CHECK(io.done <= io.length && (rc || io.done == io.length));
        if (rc == 0 || rc < -CRAIL_STATUS_BASE || rc == -ETIMEDOUT)
            break;
        if (rc == -EPIPE || rc == -EINTR)
            crail_io_restart(&io), failures++;
        else if (rc == CRAIL_NEED_SERVER)
            server_connect(in, io.server, !is_write), failures++;
    }
    crail_io_end(&io);
}

static void pipe_reach(struct fuzz_input *in, struct crail_pipe *p, uint32_t server, bool is_read) {
    if (crail_pipe_reaches(p, server))
        return;
    if (p->writes)
        crail_pipe_abort(p);
    if (!crail_lane_has_data(w.lane, server))
        server_connect(in, server, is_read);
    crail_pipe_take(p, w.lane, server);
}

static int pipe_read(struct fuzz_input *in, struct crail_pipe *p, uint64_t at, uint64_t n) {
    struct crail_range value = {w.extents, EXTENTS, w.bytes};
    uint64_t got = 0, within;
    int rc = CRAIL_NEED_SERVER;
    for (int i = 0; rc && i < 8; i++) {
        if (rc == CRAIL_NEED_SERVER)
            pipe_reach(in, p, w.extents[crail_range_locate(&value, at + got, &within)].server, true);
        if (crail_pipe_is_astray(p, at + got) || p->writes)
            crail_pipe_abort(p),
                pipe_reach(in, p, w.extents[crail_range_locate(&value, at + got, &within)].server, true);
        rc = crail_pipe_read(p, &value, at, buffer, n, &got, w.deadline_ns);
        servers_hear();
        CHECK((is_answer(rc) || rc == CRAIL_NEED_SERVER) && got <= n && (rc || got == n));
        if (rc && rc != -EINTR && rc != CRAIL_NEED_SERVER)
            return rc;
    }
    return rc;
}

static int pipe_write(struct fuzz_input *in, struct crail_pipe *p, uint32_t extent, uint64_t n) {
    const struct crail_extent *e = &w.extents[extent];
    int rc = -EINTR;
    if (p->asks_count)
        crail_pipe_abort(p);
    pipe_reach(in, p, e->server, false);
    for (int i = 0; rc == -EINTR && i < 8; i++) {
        rc = crail_pipe_write(p, e, 0, 0, buffer, n, w.deadline_ns);
        servers_hear();
        CHECK(is_answer(rc));
    }
    return rc;
}

static void pipe_calls(struct fuzz_input *in) {
    struct crail_pipe p;
    crail_pipe_open(&p, w.client);
    for (int i = fuzz_u8(in) % 16; i > 0 && in->at < in->end; i--) {
        uint8_t what = fuzz_u8(in);
        uint64_t at = what >= 128 ? p.read_end : fuzz_u16(in), n = 1 + fuzz_u16(in);
        at %= w.bytes;
        int rc;
        if (what % 4 < 2)
            rc = pipe_read(in, &p, at, 1 + n % (w.bytes - at));
        else if (what % 4 == 2)
            rc = pipe_write(in, &p, what % EXTENTS, 1 + n % (w.extents[what % EXTENTS].granules * CRAIL_GRANULE));
        else
            rc = crail_pipe_settle(&p, w.deadline_ns);
        CHECK(is_answer(rc) || rc == CRAIL_NEED_SERVER);
        if (rc)
            crail_pipe_abort(&p);
    }
    if (p.writes)
        crail_pipe_abort(&p);
    crail_pipe_put_back(&p, w.lane);
    crail_pipe_close(&p);
}

/* ---- one input ------------------------------------------------------------------------ */

static void prepare(struct fuzz_input *in) {
    crail_client_options o = {.lanes_max = 1, .inline_max = CRAIL_INLINE_MAX};
    int pair[2];
    memset(buffer, 0xee, sizeof buffer);
    w.peers[0] = w.peers[1] = -1;
    w.bytes = 0;
    for (uint32_t i = 0; i < EXTENTS; i++) {
        w.extents[i] =
            (struct crail_extent){.server = fuzz_u8(in) % SERVERS, .granule = i, .granules = 1 + fuzz_u8(in) % 4};
        w.bytes += w.extents[i].granules * CRAIL_GRANULE;
    }
    w.bytes -= fuzz_u16(in) % (w.extents[EXTENTS - 1].granules * CRAIL_GRANULE);
    CHECK(crail_client_new(&o, &w.client) == 0);
    CHECK(crail_lane_checkout(w.client, 0, &w.lane) == -EAGAIN);
    fuzz_pair(pair);
    CHECK(crail_client_lane_add(w.client, w.lane->number, pair[0], 1, NULL) == 0);
    close(pair[1]);
    w.deadline_ns = crail_now_ns() + 1000000; /* some thousand looks at the clock away */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_input in = fuzz_begin(data, size);
    prepare(&in);
    while (in.at < in.end) {
        uint8_t what = fuzz_u8(&in);
        w.deadline_ns = crail_now_ns() + 1000000;
        if (what % 4 == 3)
            pipe_calls(&in);
        else
            transfer(&in, what % 2);
        check_buffer();
    }
    crail_lane_checkin(w.lane);
    crail_client_free(w.client);
    for (uint32_t i = 0; i < SERVERS; i++)
        if (w.peers[i] >= 0)
            close(w.peers[i]);
    return fuzz_end();
}
