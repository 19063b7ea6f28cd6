/* A storage server whose loop turns when the target says so, with a namenode and clients at the other ends of
 * socketpairs. It must not touch a byte that nobody with a key wrote to, and confirm nothing that is still in use. */
#ifndef CRAIL_FUZZ_STORAGE_H
#define CRAIL_FUZZ_STORAGE_H

#include "fuzz.h"
#include "thread.h"

static void turn_and_lock(pthread_mutex_t *mutex);
#define pthread_cond_wait(cond, mutex) ((void)(cond), turn_and_lock(mutex))
#include "data/server.c"
#undef pthread_cond_wait
#include "data/tcpconn.c"

#include <sys/mman.h>

#define CONNS 3u
#define NUMBER 7u
#define REGIONS 2u
#define GRANULES 16u /* of each region */
#define TURNS 6
#define ROOM (1u << 18)
#define PATTERN(region, i) ((uint8_t)(0x35 + (region) + (i) / 64))

static const uint8_t mac_key[16] = "0123456789abcde";

struct heard {
    uint8_t bytes[ROOM];
    size_t len;
};

static struct {
    struct crail_storage *s;
    int memory_fd[REGIONS], generations_fd[REGIONS]; /* made once */
    uint8_t *memory[REGIONS];
    _Atomic uint64_t *generations[REGIONS];
    uint64_t seen[REGIONS][GRANULES]; /* generations at the last look: they never go back */
    bool writable[REGIONS][GRANULES]; /* somebody with the key may have written there */
    bool all_bets_off;                /* raw bytes may have been a whole request */
    int conns[CONNS], channel;        /* our ends, or -1 */
    uint64_t body[CONNS];             /* bytes still to come of the reply before */
    uint64_t id;
} w;

static struct heard replies[CONNS], confirms;

/* ---- turns ------------------------------------------------------------------------- */

static void turn_and_lock(pthread_mutex_t *mutex) {
    pthread_mutex_unlock(mutex);
    turn(w.s);
    pthread_mutex_lock(mutex);
}

static inline void turns(void) {
    for (int i = 0; i < TURNS; i++)
        turn(w.s);
}

/* Time passes; the timer is the system's and knows nothing of it. */
static inline void pass(uint64_t ns) {
    fuzz_now_ns += ns;
    crail_retire_tick(w.s, crail_clock_ns());
    crail_loop_arm(w.s);
    turns();
}

/* ---- what is heard ------------------------------------------------------------------- */

/* More bytes. False: none, or the other side has closed. */
static inline bool hear_bytes(int *fd, struct heard *h) {
    ssize_t n = *fd < 0 ? 0 : __real_recv(*fd, h->bytes + h->len, ROOM - h->len, MSG_DONTWAIT);
    if (n > 0) {
        h->len += (size_t)n;
        return true;
    }
    if (*fd >= 0 && (n == 0 || errno != EAGAIN)) {
        close(*fd);
        *fd = -1;
    }
    return false;
}

static inline void drop_bytes(struct heard *h, size_t n) {
    h->len -= n;
    memmove(h->bytes, h->bytes + n, h->len);
}

/* Replies are well-formed, whatever was asked. */
static inline void check_replies(uint32_t i) {
    struct heard *h = &replies[i];
    for (;;) {
        size_t body = h->len < w.body[i] ? h->len : w.body[i];
        drop_bytes(h, body);
        w.body[i] -= body;
        struct crail_data_reply r;
        if (w.body[i] || h->len < sizeof r)
            return;
        memcpy(&r, h->bytes, sizeof r);
        CHECK(r.magic == CRAIL_DATA_MAGIC && r.reserved == 0);
        CHECK(r.status == 0 || (r.status < -CRAIL_STATUS_BASE && r.length == 0));
        CHECK(r.length <= (uint64_t)GRANULES * CRAIL_GRANULE);
        w.body[i] = r.length;
        drop_bytes(h, sizeof r);
    }
}

static inline void hear(uint32_t i) {
    while (hear_bytes(&w.conns[i], &replies[i])) {
        check_replies(i);
        turns();
    }
}

/* The reuse rule: the generation is raised, and no transfer under an earlier one goes on. */
static inline void check_confirmed(const struct crail_retire *r) {
    CHECK(r->region < REGIONS && r->granule < GRANULES && r->granules <= GRANULES - r->granule && !r->reserved);
    CHECK(w.generations[r->region][r->granule] >= r->generation);
    for (const struct crail_conn *c = w.s->conns; c; c = c->next)
        CHECK(c->word != crail_use_word(r->region, r->granule) || c->request.extent.generation >= r->generation);
}

static inline void hear_confirms(void) {
    while (hear_bytes(&w.channel, &confirms)) {
        struct crail_retire_frame f;
        while (confirms.len >= sizeof f) {
            memcpy(&f, confirms.bytes, sizeof f);
            CHECK(f.magic == CRAIL_RETIRE_MAGIC && !f.flags && f.count && f.count <= CRAIL_RETIRES_MAX);
            CHECK(f.size == sizeof f + f.count * sizeof(struct crail_retire));
            if (confirms.len < f.size)
                break;
            for (uint32_t i = 0; i < f.count; i++) {
                struct crail_retire r;
                memcpy(&r, confirms.bytes + sizeof f + i * sizeof r, sizeof r);
                check_confirmed(&r);
            }
            drop_bytes(&confirms, f.size);
        }
        turns();
    }
}

/* ---- what is said ---------------------------------------------------------------------- */

static inline void hang_up(uint32_t i) {
    if (w.conns[i] >= 0)
        close(w.conns[i]);
    w.conns[i] = -1;
    replies[i].len = w.body[i] = 0;
    turns();
}

static inline void dial(uint32_t i) {
    int pair[2], small = 4096;
    hang_up(i);
    fuzz_pair(pair);
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    CHECK(crail_storage_data_attach(w.s, pair[1]) == 0);
    w.conns[i] = pair[0];
}

static inline void channel_open(void) {
    int pair[2];
    if (w.channel >= 0)
        close(w.channel);
    fuzz_pair(pair);
    CHECK(crail_storage_channel(w.s, pair[1]) == 0);
    w.channel = pair[0];
    confirms.len = 0;
}

/* Bytes of the script as they are. They may be a whole request: the fuzzer reads keys off the comparison. */
static inline void rubbish(struct fuzz_input *in, int fd) {
    size_t n;
    const uint8_t *raw = fuzz_bytes(in, fuzz_u16(in) % 1024, &n);
    w.all_bets_off = true;
    fuzz_say(fd, raw, n);
}

static inline struct crail_extent make_extent(struct fuzz_input *in, enum crail_rights right) {
    uint8_t at = fuzz_u8(in), spoil = fuzz_u8(in);
    struct crail_extent e = {.server = NUMBER, .region = at / 16 % REGIONS, .granule = at % GRANULES};
    e.granules = 1 + spoil % 4;
    e.generation = w.generations[e.region][e.granule];
    if (spoil >= 224)
        e.generation += fuzz_u8(in) - 3u;
    if (spoil >= 240)
        e.granules = (uint32_t)fuzz_value(in);
    if (spoil >= 248)
        e.region = (uint32_t)fuzz_value(in);
    e.key = crail_extent_key(mac_key, &e, right);
    if (spoil == 255)
        e.key ^= 1;
    return e;
}

static inline void note_writable(const struct crail_extent *e) {
    for (uint32_t g = 0; e->region < REGIONS && g < e->granules && e->granule + g < GRANULES; g++)
        w.writable[e->region][e->granule + g] = true;
}

/* A request and, for a write, more or less of its data. */
static inline void ask(struct fuzz_input *in, uint32_t i) {
    static uint8_t data[4 * CRAIL_GRANULE];
    uint8_t how = fuzz_u8(in);
    struct crail_data_request q = {.magic = CRAIL_DATA_MAGIC, .code = 1 + how % 2, .id = ++w.id};
    q.extent = make_extent(in, how % 16 == 4 ? CRAIL_RIGHT_WRITE : how % 2 ? CRAIL_RIGHT_WRITE : CRAIL_RIGHT_READ);
    q.offset = how >= 128 ? fuzz_value(in) * 64 : 0;
    q.length = how >= 64 ? fuzz_u16(in) % (q.extent.granules % 8 * CRAIL_GRANULE + 64) : fuzz_u8(in);
    if (how >= 250)
        ((uint8_t *)&q)[fuzz_u8(in) % sizeof q] = fuzz_u8(in);
    if (how >= 250)
        w.all_bets_off = true;
    if (q.code == CRAIL_DATA_WRITE)
        note_writable(&q.extent);
    fuzz_say(w.conns[i], &q, sizeof q);
    if (q.code != CRAIL_DATA_WRITE)
        return;
    memset(data, how, sizeof data);
    size_t n = q.length < sizeof data ? q.length : sizeof data;
    fuzz_say(w.conns[i], data, how % 16 < 12 ? n : n / 2);
}

/* A frame of orders, mostly good ones. */
static inline void order(struct fuzz_input *in) {
    struct {
        struct crail_retire_frame head;
        struct crail_retire orders[40];
    } f = {.head = {.magic = CRAIL_RETIRE_MAGIC, .count = 1 + fuzz_u8(in) % 40}};
    for (uint32_t i = 0; i < f.head.count; i++) {
        uint8_t at = fuzz_u8(in), how = fuzz_u8(in);
        struct crail_retire *r = &f.orders[i];
        *r = (struct crail_retire){.region = at / 16 % REGIONS, .granule = at % GRANULES, .granules = 1};
        r->generation = w.generations[r->region][r->granule] + how % 4;
        if (how >= 224)
            r->granules = how >= 240 ? (uint32_t)fuzz_value(in) : 1u + how % 4;
        if (how >= 252)
            ((uint8_t *)r)[fuzz_u8(in) % sizeof *r] = fuzz_u8(in);
    }
    f.head.size = (uint32_t)(sizeof f.head + f.head.count * sizeof *f.orders);
    size_t size = f.head.size;
    uint8_t spoil = fuzz_u8(in);
    if (spoil >= 250)
        ((uint8_t *)&f.head)[fuzz_u8(in) % sizeof f.head] = fuzz_u8(in);
    fuzz_say(w.channel, &f, spoil >= 240 && spoil < 250 ? size / 2 : size);
}

/* ---- one input -------------------------------------------------------------------------- */

static inline void look_through(void) {
    crail_storage_stats st;
    CHECK(crail_storage_stats_read(w.s, &st) == 0);
    CHECK(st.retires_confirmed <= st.retires_ordered && st.retires_waiting <= REGIONS * GRANULES);
    for (uint32_t r = 0; r < REGIONS; r++) {
        for (uint32_t g = 0; g < GRANULES; g++) {
            CHECK(w.generations[r][g] >= w.seen[r][g]);
            w.seen[r][g] = w.generations[r][g];
            const uint8_t *p = w.memory[r] + (size_t)g * CRAIL_GRANULE;
            for (size_t i = 0; !w.writable[r][g] && !w.all_bets_off && i < CRAIL_GRANULE; i += 64)
                CHECK(p[i] == PATTERN(r, (size_t)g * CRAIL_GRANULE + i) && p[i + 63] == p[i]);
        }
    }
}

static inline void *map_file(const char *name, size_t bytes, int *fd) {
    *fd = memfd_create(name, MFD_CLOEXEC);
    CHECK(*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0);
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

/* Before the first fuzz_begin(): these stay open. */
static inline void storage_prepare(void) {
    for (uint32_t r = 0; r < REGIONS && !w.memory[r]; r++) {
        w.memory[r] = map_file("memory", GRANULES * (size_t)CRAIL_GRANULE, &w.memory_fd[r]);
        w.generations[r] = map_file("generations", GRANULES * sizeof(uint64_t), &w.generations_fd[r]);
    }
}

static inline void storage_begin(void) {
    memset(w.seen, 0, sizeof w.seen);
    memset(w.writable, 0, sizeof w.writable);
    w.all_bets_off = false;
    w.id = 0;
    w.channel = -1;
    CHECK(crail_storage_start(&w.s) == 0);
    for (uint32_t r = 0; r < REGIONS; r++) {
        for (size_t i = 0; i < GRANULES * (size_t)CRAIL_GRANULE; i += 64)
            memset(w.memory[r] + i, PATTERN(r, i), 64);
        memset((void *)w.generations[r], 0, GRANULES * sizeof(uint64_t));
        CHECK(crail_storage_region_add(w.s, w.memory_fd[r], w.generations_fd[r], GRANULES, 0) == (int)r);
    }
    CHECK(crail_storage_identity(w.s, NUMBER, mac_key) == 0);
    for (uint32_t i = 0; i < CONNS; i++) {
        w.conns[i] = -1;
        dial(i);
    }
    channel_open();
}

/* Everybody goes: nothing is in use any more, so that all that was ordered is confirmed. */
static inline void storage_end(void) {
    crail_storage_stats st;
    fuzz_mood = 0;
    turns();
    hear_confirms();
    for (uint32_t i = 0; i < CONNS; i++)
        hang_up(i);
    for (int i = 0; w.channel >= 0 && i < 3; i++) {
        pass(1000000000);
        hear_confirms();
    }
    look_through();
    CHECK(crail_storage_stats_read(w.s, &st) == 0);
    CHECK(st.connections == 0 && st.retires_waiting == 0);
    crail_storage_stop(w.s);
    if (w.channel >= 0)
        close(w.channel);
}

#endif
