/* The storage server's core over socketpairs and loopback. sources: data base
 *
 * Test threads play the namenode and the clients. Use tables lie in a temporary folder that is removed, by a parent
 * process that runs no test, so also when a test fails. */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/siphash.h"
#include "crail/api.h"
#include "crail/status.h"
#include "crail/wire.h"
#include "data/storage.h"

#define GRANULES 1024u
#define NUMBER 7u

static const uint8_t mac_key[16] = "0123456789abcdef";
static char folder[64];
static struct crail_storage_tuning tuning;

struct world {
    crail_storage *s;
    uint8_t *memory;
    _Atomic uint64_t *generations;
    int memory_fd, generations_fd;
    uint32_t granules;
};

static struct world begin_with(uint32_t granules) {
    struct world w = {.memory_fd = memfd_create("m", MFD_CLOEXEC), .generations_fd = memfd_create("g", MFD_CLOEXEC)};
    w.granules = granules;
    size_t bytes = (size_t)granules * CRAIL_GRANULE;
    assert(ftruncate(w.memory_fd, (off_t)bytes) == 0 && ftruncate(w.generations_fd, granules * 8) == 0);
    w.memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w.memory_fd, 0);
    w.generations = mmap(NULL, granules * 8, PROT_READ, MAP_SHARED, w.generations_fd, 0);
    assert(w.memory != MAP_FAILED && (void *)w.generations != MAP_FAILED);
    assert(crail_storage_start_tuned(&tuning, &w.s) == 0);
    int populate = granules == GRANULES;
    assert(crail_storage_region_add(w.s, w.memory_fd, w.generations_fd, granules, populate) == 0);
    assert(crail_storage_identity(w.s, NUMBER, mac_key) == 0);
    return w;
}

static struct world begin(void) {
    return begin_with(GRANULES);
}

static void end(struct world *w) {
    crail_storage_stop(w->s);
    munmap(w->memory, (size_t)w->granules * CRAIL_GRANULE);
    munmap((void *)w->generations, w->granules * 8);
    tuning = crail_storage_tuning_default;
    close(w->memory_fd);
    close(w->generations_fd);
}

static crail_storage_stats stats(struct world *w) {
    crail_storage_stats out;
    assert(crail_storage_stats_read(w->s, &out) == 0);
    return out;
}

static void tcp_pair(int pair[2]) {
    int l = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(at);
    assert(bind(l, (struct sockaddr *)&at, size) == 0 && listen(l, 1) == 0);
    assert(getsockname(l, (struct sockaddr *)&at, &size) == 0);
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    assert(connect(pair[0], (struct sockaddr *)&at, size) == 0);
    pair[1] = accept(l, NULL, NULL);
    assert(pair[1] >= 0);
    close(l);
}

static int data_connection(struct world *w, int tcp) {
    int pair[2];
    if (tcp)
        tcp_pair(pair);
    else
        assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    assert(crail_storage_data_attach(w->s, pair[1]) == 0);
    return pair[0];
}

static int channel(struct world *w) {
    int pair[2];
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    assert(crail_storage_channel(w->s, pair[1]) == 0);
    return pair[0];
}

static void send_all(int fd, const void *data, size_t n) {
    for (const uint8_t *p = data; n;) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        assert(k > 0);
        p += k, n -= (size_t)k;
    }
}

static void recv_all(int fd, void *data, size_t n) {
    for (uint8_t *p = data; n;) {
        ssize_t k = recv(fd, p, n, 0);
        assert(k > 0);
        p += k, n -= (size_t)k;
    }
}

static bool readable(int fd, int timeout_ms) {
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, timeout_ms) == 1;
}

static void expect_closed(int fd) {
    uint8_t byte;
    assert(readable(fd, 10000));
    ssize_t n = recv(fd, &byte, 1, 0);
    assert(n == 0 || (n < 0 && errno == ECONNRESET));
    close(fd);
}

static struct crail_data_request request(uint16_t code, uint32_t granule, uint32_t granules, uint64_t generation,
                                         uint64_t offset, uint64_t length) {
    static _Atomic uint64_t id;
    struct crail_data_request q = {.magic = CRAIL_DATA_MAGIC, .code = code, .id = ++id};
    q.extent =
        (struct crail_extent){.server = NUMBER, .granule = granule, .granules = granules, .generation = generation};
    q.offset = offset, q.length = length;
    q.extent.key = crail_extent_key(mac_key, &q.extent, code == CRAIL_DATA_READ ? CRAIL_RIGHT_READ : CRAIL_RIGHT_WRITE);
    return q;
}

/* Receives a reply to `q` and returns its status (positive). */
static int reply_to(int fd, const struct crail_data_request *q) {
    struct crail_data_reply r;
    recv_all(fd, &r, sizeof(r));
    assert(r.magic == CRAIL_DATA_MAGIC && r.id == q->id && r.reserved == 0);
    assert(r.length == (r.status == 0 && q->code == CRAIL_DATA_READ ? q->length : 0));
    return -r.status;
}

static int ask(int fd, struct crail_data_request q, const void *data) {
    send_all(fd, &q, sizeof(q));
    if (q.code == CRAIL_DATA_WRITE)
        send_all(fd, data, q.length);
    return reply_to(fd, &q);
}

static void fill(uint8_t *p, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
}

static void order(int fd, const struct crail_retire *orders, uint32_t n) {
    struct crail_retire_frame h = {.magic = CRAIL_RETIRE_MAGIC, .count = n};
    h.size = (uint32_t)(sizeof(h) + n * sizeof(*orders));
    send_all(fd, &h, sizeof(h));
    send_all(fd, orders, n * sizeof(*orders));
}

static uint32_t confirmed(int fd, struct crail_retire *out, uint32_t max) {
    struct crail_retire_frame h;
    recv_all(fd, &h, sizeof(h));
    assert(h.magic == CRAIL_RETIRE_MAGIC && h.flags == 0 && h.count >= 1 && h.count <= max);
    assert(h.size == sizeof(h) + h.count * sizeof(*out));
    recv_all(fd, out, h.count * sizeof(*out));
    return h.count;
}

static struct crail_retire one_order(uint32_t granule, uint32_t granules, uint64_t generation) {
    return (struct crail_retire){.granule = granule, .granules = granules, .generation = generation};
}

static char *path_of(const char *name, char *out) {
    snprintf(out, 128, "%s/%s", folder, name);
    return out;
}

static struct crail_use_table *map_table(int fd) {
    struct crail_use_table *t = mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert(t != MAP_FAILED);
    return t;
}

/* ---- regions ------------------------------------------------------------------ */

static void test_region_too_small_for_its_granules_is_refused(void) {
    crail_storage *s;
    assert(crail_storage_start(&s) == 0);
    int m = memfd_create("m", 0), g = memfd_create("g", 0);
    assert(ftruncate(m, 8 * CRAIL_GRANULE) == 0 && ftruncate(g, 64) == 0);
    assert(crail_storage_region_add(s, m, g, 9, 0) == -EINVAL);
    assert(crail_storage_region_add(s, m, g, 0, 0) == -EINVAL);
    assert(ftruncate(g, 63) == 0);
    assert(crail_storage_region_add(s, m, g, 8, 0) == -EINVAL);
    assert(ftruncate(g, 64) == 0);
    assert(crail_storage_region_add(s, m, g, 8, 1) == 0);
    assert(crail_storage_region_add(s, m, g, 8, 0) == 1);
    assert(crail_storage_region_add(s, 1000, g, 8, 0) == -EBADF);
    uint64_t gen[8];
    assert(crail_storage_generations(s, 1, gen, 8) == 0);
    assert(crail_storage_generations(s, 2, gen, 8) == -EINVAL);
    assert(crail_storage_generations(s, 0, gen, 7) == -EINVAL);
    close(m), close(g);
    crail_storage_stop(s);
}

/* ---- data --------------------------------------------------------------------- */

static void test_bytes_written_are_the_bytes_read(int tcp) {
    struct world w = begin();
    int fd = data_connection(&w, tcp);
    assert(crail_storage_region_add(w.s, w.memory_fd, w.generations_fd, GRANULES, 0) == -EBUSY);
    size_t n = 3u << 20;
    uint8_t *a = malloc(n), *b = malloc(n);
    fill(a, n, 1);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 3, 800, 0, 5, n), a) == 0);
    assert(ask(fd, request(CRAIL_DATA_READ, 3, 800, 0, 5, n), NULL) == 0);
    recv_all(fd, b, n);
    assert(memcmp(a, b, n) == 0);
    assert(ask(fd, request(CRAIL_DATA_READ, 3, 1, 0, 4096, 0), NULL) == 0);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 3, 1, 0, 0, 0), a) == 0);
    crail_storage_stats st = stats(&w);
    assert(st.reads == 2 && st.writes == 2 && st.bytes_in == n && st.bytes_out == n && st.connections == 1);
    assert(st.refused == 0 && st.protocol_errors == 0 && st.loop_cpu_ns > 0);
    close(fd);
    free(a), free(b);
    end(&w);
}

static void test_pipelined_requests_are_answered_in_order(void) {
    struct world w = begin();
    int fd = data_connection(&w, 1);
    uint8_t data[4096], back[4096];
    struct crail_data_request q[64];
    for (uint32_t i = 0; i < 32; i++) {
        fill(data, sizeof(data), i);
        q[2 * i] = request(CRAIL_DATA_WRITE, i, 1, i == 5 ? 99 : 0, 0, sizeof(data)); /* one is refused */
        q[2 * i + 1] = request(CRAIL_DATA_READ, i, 1, 0, 0, sizeof(data));
        send_all(fd, &q[2 * i], sizeof(q[0]));
        send_all(fd, data, sizeof(data));
        send_all(fd, &q[2 * i + 1], sizeof(q[0]));
    }
    for (uint32_t i = 0; i < 32; i++) {
        assert(reply_to(fd, &q[2 * i]) == (i == 5 ? CRAIL_E_STALE_LOCATION : 0));
        assert(reply_to(fd, &q[2 * i + 1]) == 0);
        recv_all(fd, back, sizeof(back));
        fill(data, sizeof(data), i);
        assert(i == 5 ? back[0] == 0 && back[4095] == 0 : memcmp(data, back, sizeof(back)) == 0);
    }
    close(fd);
    end(&w);
}

static void test_requests_without_right_or_reason_are_refused(void) {
    struct world w = begin();
    int fd = data_connection(&w, 0);
    static uint8_t data[300000];
    struct crail_data_request q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 100);
    q.extent.server++;
    assert(ask(fd, q, NULL) == CRAIL_E_STALE_LOCATION);
    q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 100);
    q.extent.granules = 5; /* a longer run than the key is for */
    assert(ask(fd, q, NULL) == CRAIL_E_AUTH);
    q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 100);
    q.code = CRAIL_DATA_WRITE; /* the key reads only */
    assert(ask(fd, q, data) == CRAIL_E_AUTH);
    q = request(CRAIL_DATA_WRITE, 0, 100, 1, 0, sizeof(data)); /* refused, the bytes are dropped */
    assert(ask(fd, q, data) == CRAIL_E_STALE_LOCATION);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 4, 0, 1, 4 * 4096), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 4, 0, UINT64_MAX, 2), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 4, 0, 2, UINT64_MAX), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 0, 0, 0, 0), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, GRANULES - 1, 2, 0, 0, 1), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, UINT32_MAX, UINT32_MAX, 0, 0, 1), NULL) == CRAIL_E_INVALID_ARGUMENT);
    q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 1);
    q.extent.region = 1;
    assert(ask(fd, q, NULL) == CRAIL_E_INVALID_ARGUMENT);
    for (size_t i = 0; i < 300000; i++)
        assert(w.memory[i] == 0);
    crail_storage_stats st = stats(&w);
    assert(st.refused == 11 && st.reads == 0 && st.writes == 0 && st.protocol_errors == 0);
    close(fd);
    end(&w);
}

static void test_before_registration_nothing_is_served(void) {
    struct world w = {0};
    assert(crail_storage_start(&w.s) == 0);
    int fd = data_connection(&w, 0);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 1, 0, 0, 1), NULL) == CRAIL_E_UNAVAILABLE);
    close(fd);
    crail_storage_stop(w.s);
}

static void test_garbage_closes_the_connection(void) {
    struct world w = begin();
    uint8_t noise[4096];
    for (uint32_t i = 0; i < 20; i++) {
        int fd = data_connection(&w, i & 1);
        fill(noise, sizeof(noise), i);
        send(fd, noise, 64 + i * 100, MSG_NOSIGNAL);
        expect_closed(fd);
    }
    for (int i = 0; i < 3; i++) {
        int fd = data_connection(&w, 0);
        struct crail_data_request q = request(CRAIL_DATA_READ, 0, 1, 0, 0, 1);
        if (i == 0)
            q.flags = 1;
        if (i == 1)
            q.code = 3;
        if (i == 2)
            q.magic++;
        send_all(fd, &q, sizeof(q));
        expect_closed(fd);
    }
    assert(stats(&w).protocol_errors == 23 && stats(&w).connections == 0);
    int fd = data_connection(&w, 1);
    close(fd); /* a short life is no error */
    fd = data_connection(&w, 1);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 1, 0, 0, 0), NULL) == 0);
    assert(stats(&w).protocol_errors == 23);
    close(fd);
    end(&w);
}

struct stream {
    struct world *w;
    uint32_t granule;
};

static void *stream_thread(void *arg) {
    struct stream *t = arg;
    int fd = data_connection(t->w, t->granule & 1);
    size_t n = 256u << 10;
    uint8_t *a = malloc(n), *b = malloc(n);
    for (uint32_t i = 0; i < 20; i++) {
        fill(a, n, t->granule * 1000 + i);
        assert(ask(fd, request(CRAIL_DATA_WRITE, t->granule * 64, 64, 0, 0, n), a) == 0);
        assert(ask(fd, request(CRAIL_DATA_READ, t->granule * 64, 64, 0, 0, n), NULL) == 0);
        recv_all(fd, b, n);
        assert(memcmp(a, b, n) == 0);
    }
    free(a), free(b);
    close(fd);
    return NULL;
}

static void test_connections_share_the_loop(void) {
    struct world w = begin();
    pthread_t threads[8];
    struct stream streams[8];
    for (uint32_t i = 0; i < 8; i++) {
        streams[i] = (struct stream){&w, i};
        pthread_create(&threads[i], NULL, stream_thread, &streams[i]);
    }
    for (uint32_t i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    end(&w);
}

/* ---- retiring ------------------------------------------------------------------ */

static void test_what_no_slot_names_is_confirmed_at_once(void) {
    struct world w = begin();
    int ch = channel(&w);
    static struct crail_retire orders[CRAIL_RETIRES_MAX], done[CRAIL_RETIRES_MAX];
    for (uint32_t i = 0; i < CRAIL_RETIRES_MAX; i++)
        orders[i] = one_order(i, 1, i + 1);
    order(ch, orders, CRAIL_RETIRES_MAX);
    for (uint32_t got = 0; got < CRAIL_RETIRES_MAX;) {
        uint32_t n = confirmed(ch, done + got, CRAIL_RETIRES_MAX - got);
        got += n;
    }
    assert(memcmp(orders, done, sizeof(orders)) == 0);
    uint64_t gen[GRANULES];
    assert(crail_storage_generations(w.s, 0, gen, GRANULES) == 0);
    for (uint32_t i = 0; i < GRANULES; i++)
        assert(gen[i] == i + 1 && atomic_load(&w.generations[i]) == i + 1);
    orders[0] = one_order(10, 1, 3); /* an older order lowers nothing, and is confirmed */
    order(ch, orders, 1);
    assert(confirmed(ch, done, 1) == 1 && done[0].generation == 3 && done[0].granule == 10);
    assert(atomic_load(&w.generations[10]) == 11);
    crail_storage_stats st = stats(&w);
    assert(st.retires_ordered == 1025 && st.retires_confirmed == 1025 && st.retires_waiting == 0);
    close(ch);
    end(&w);
}

static void test_a_named_extent_waits_for_its_slot(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle, other;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    int use2 = crail_storage_use_create(w.s, path_of("use-2", path), 2, &other);
    assert(use >= 0 && use2 >= 0 && handle != other);
    assert(crail_storage_use_create(w.s, path, 2, &other) == -EEXIST);
    struct crail_use_table *t = map_table(use);
    assert(t->magic == CRAIL_USE_MAGIC && t->session == 1 && t->slots == CRAIL_USE_SLOTS);
    assert(crail_use_enter(t, 17, 0, 4, 0, w.generations));
    int ch = channel(&w);
    struct crail_retire orders[3] = {one_order(0, 4, 1), one_order(4, 2, 1), one_order(6, 2, 1)}, done[3];
    order(ch, orders, 3);
    assert(confirmed(ch, done, 3) == 2 && done[0].granule == 0 && done[1].granule == 6);
    order(ch, orders + 1, 1); /* again: still one that waits */
    assert(!crail_use_enter(t, 18, 0, 4, 0, w.generations) && atomic_load(&t->slot[18]) == 0);
    assert(crail_use_enter(t, 18, 0, 4, 1, w.generations)); /* the next life of the granule counts too */
    assert(!readable(ch, 120) && stats(&w).retires_waiting == 1);
    crail_use_leave(t, 17);
    assert(!readable(ch, 120));
    crail_use_leave(t, 18);
    assert(confirmed(ch, done, 3) == 1 && memcmp(done, orders + 1, sizeof(done[0])) == 0);
    assert(!readable(ch, 120) && stats(&w).retires_waiting == 0);
    /* The client writes nonsense into its table: nobody falls over it. */
    atomic_store(&t->high_water, UINT32_MAX);
    for (uint32_t i = 0; i < CRAIL_USE_SLOTS; i++)
        atomic_store(&t->slot[i], UINT64_MAX - i);
    t->magic = t->slots = 0;
    orders[0].generation = 2;
    order(ch, orders, 1);
    assert(confirmed(ch, done, 1) == 1);
    munmap(t, sizeof(*t));
    close(use), close(use2), close(ch);
    assert(crail_storage_use_closed(w.s, handle) == 0 && crail_storage_use_closed(w.s, other) == 0);
    assert(crail_storage_use_closed(w.s, handle) == -ENOENT && stats(&w).use_tables == 0);
    end(&w);
    assert(access(path, F_OK) != 0);
}

static void test_slots_end_with_the_last_process_that_holds_the_table(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    struct crail_use_table *t = map_table(use);
    assert(crail_use_enter(t, 0, 0, 0, 0, w.generations));
    int child_has = dup(use); /* what a forked child would inherit: the same description */
    close(use);
    assert(crail_storage_use_closed(w.s, handle) == 0 && stats(&w).use_tables == 1);
    int ch = channel(&w);
    struct crail_retire orders[1] = {one_order(0, 1, 1)}, done[1];
    order(ch, orders, 1);
    assert(!readable(ch, 120));
    close(child_has);
    assert(!readable(ch, 120)); /* the mapping is a use of the description, and holds it as well */
    munmap(t, sizeof(*t));      /* the slot stays set: it dies with its holder */
    assert(confirmed(ch, done, 1) == 1);
    assert(stats(&w).use_tables == 0 && access(path, F_OK) != 0);
    close(ch);
    end(&w);
}

static void test_a_table_outlives_the_server(void) {
    struct world w = begin();
    char path[128], dead[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    int gone = crail_storage_use_create(w.s, path_of("use-2", dead), 2, &handle);
    struct crail_use_table *t = map_table(use);
    assert(crail_use_enter(t, 0, 0, 9, 0, w.generations));
    close(gone);
    end(&w);
    assert(access(path, F_OK) == 0 && access(dead, F_OK) == 0);

    w = begin();
    assert(crail_storage_use_adopt(w.s, path) == 0);
    assert(crail_storage_use_adopt(w.s, dead) == 1 && access(dead, F_OK) != 0);
    assert(crail_storage_use_adopt(w.s, dead) == -ENOENT);
    int fd = open(dead, O_RDWR | O_CREAT, 0600);
    assert(crail_storage_use_adopt(w.s, dead) == -EINVAL && access(dead, F_OK) == 0);
    assert(ftruncate(fd, sizeof(*t)) == 0);
    assert(crail_storage_use_adopt(w.s, dead) == -EINVAL);
    assert(crail_storage_use_adopt(w.s, folder) < 0);
    close(fd);
    unlink(dead);
    int ch = channel(&w);
    struct crail_retire orders[1] = {one_order(9, 1, 1)}, done[1];
    order(ch, orders, 1);
    assert(!readable(ch, 120) && stats(&w).use_tables == 1);
    close(use);
    munmap(t, sizeof(*t));
    assert(confirmed(ch, done, 1) == 1 && access(path, F_OK) != 0 && stats(&w).use_tables == 0);
    close(ch);
    end(&w);
}

static void test_an_orphan_nobody_waits_for_goes_too(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    assert(crail_storage_use_closed(w.s, handle) == 0 && stats(&w).use_tables == 1);
    close(use);
    uint64_t limit = crail_clock_ns() + 10000000000u;
    while (stats(&w).use_tables) {
        assert(crail_clock_ns() < limit);
        usleep(20000);
    }
    assert(access(path, F_OK) != 0);
    end(&w);
}

static void test_a_transfer_over_tcp_holds_its_extent(void) {
    struct world w = begin();
    int ch = channel(&w), writer = data_connection(&w, 1), reader = data_connection(&w, 0);
    uint8_t half[4096];
    memset(half, 5, sizeof(half));
    struct crail_data_request q = request(CRAIL_DATA_WRITE, 0, 2, 0, 0, 8192);
    send_all(writer, &q, sizeof(q));
    send_all(writer, half, sizeof(half));
    struct crail_data_request big = request(CRAIL_DATA_READ, 8, 1000, 0, 0, 1000 * 4096); /* more than a buffer holds */
    send_all(reader, &big, sizeof(big));
    assert(reply_to(reader, &big) == 0);
    while (stats(&w).bytes_in < 4096) {
    }
    struct crail_retire orders[3] = {one_order(0, 2, 1), one_order(8, 1000, 1), one_order(2, 6, 1)}, done[3];
    order(ch, orders, 3);
    assert(confirmed(ch, done, 3) == 1 && done[0].granule == 2 && !readable(ch, 120));
    int late = data_connection(&w, 0);
    assert(ask(late, request(CRAIL_DATA_READ, 0, 2, 0, 0, 1), NULL) == CRAIL_E_STALE_LOCATION);
    close(late);
    send_all(writer, half, sizeof(half));
    assert(reply_to(writer, &q) == 0);
    assert(confirmed(ch, done, 3) == 1 && done[0].granule == 0);
    close(reader); /* in mid-read */
    assert(confirmed(ch, done, 3) == 1 && done[0].granule == 8);

    q = request(CRAIL_DATA_WRITE, 0, 2, 1, 0, 8192); /* and a writer that dies in mid-write */
    send_all(writer, &q, sizeof(q));
    while (stats(&w).retires_waiting == 0) {
        orders[0] = one_order(0, 2, 2);
        order(ch, orders, 1);
        if (readable(ch, 20)) /* the order was faster than the request: the request is stale */
            break;
    }
    close(writer);
    assert(confirmed(ch, done, 3) == 1 && done[0].granule == 0 && done[0].generation == 2);
    close(ch);
    end(&w);
}

static void test_a_transfer_that_stands_still_gives_way(void) {
    tuning.stall_ns = 1000000000;
    struct world w = begin();
    int ch = channel(&w), stalled = data_connection(&w, 1), unasked = data_connection(&w, 0);
    uint8_t byte = 5;
    struct crail_data_request q = request(CRAIL_DATA_WRITE, 0, 2, 0, 0, 8192);
    struct crail_data_request q2 = request(CRAIL_DATA_WRITE, 4, 1, 0, 0, 2);
    send_all(stalled, &q, sizeof(q)), send_all(unasked, &q2, sizeof(q2));
    send_all(stalled, &byte, 1), send_all(unasked, &byte, 1);
    while (stats(&w).bytes_in < 2) {
    }
    struct crail_retire orders[1] = {one_order(0, 2, 1)}, done[1];
    order(ch, orders, 1);
    for (int i = 0; i < 15; i++) { /* slow is not still */
        assert(!readable(ch, 100) && !readable(stalled, 0));
        send_all(stalled, &byte, 1);
    }
    uint64_t from = crail_clock_ns();
    expect_closed(stalled);
    assert(crail_clock_ns() - from > 500000000);
    assert(confirmed(ch, done, 1) == 1 && stats(&w).connections == 1);
    send_all(unasked, &byte, 1); /* older than that, and in nobody's way */
    assert(reply_to(unasked, &q2) == 0);
    close(unasked), close(ch);
    end(&w);
}

static void test_there_are_not_more_connections_than_allowed(void) {
    tuning.connections_max = 3;
    struct world w = begin();
    int fd[3], pair[2];
    for (int i = 0; i < 3; i++)
        fd[i] = data_connection(&w, 0);
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    assert(crail_storage_data_attach(w.s, pair[1]) == -EMFILE);
    expect_closed(pair[0]);
    close(fd[0]);
    while (stats(&w).connections == 3) {
    }
    fd[0] = data_connection(&w, 0);
    assert(ask(fd[0], request(CRAIL_DATA_READ, 0, 1, 0, 0, 0), NULL) == 0);
    close(fd[0]);
    while (stats(&w).connections == 3) {
    }
    struct rlimit before, few;
    assert(getrlimit(RLIMIT_NOFILE, &before) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    few = before, few.rlim_cur = 4; /* half of so few is for connections */
    assert(setrlimit(RLIMIT_NOFILE, &few) == 0);
    int rc = crail_storage_data_attach(w.s, pair[1]);
    assert(setrlimit(RLIMIT_NOFILE, &before) == 0 && rc == -EMFILE);
    close(pair[0]), close(fd[1]), close(fd[2]);
    end(&w);
}

/* ---- as many orders as there are views ---------------------------------------------- */

#define VIEW_TABLES 25u
#define VIEWS 100000u /* named extents, of one granule each */

struct views {
    struct world w;
    int use[VIEW_TABLES], channel;
    struct crail_use_table *table[VIEW_TABLES];
    bool confirmed[VIEWS + 1];
};

static void views_begin(struct views *v) {
    char path[128], name[16];
    uint32_t handle;
    *v = (struct views){.w = begin_with(VIEWS + 1)};
    v->channel = channel(&v->w);
    for (uint32_t i = 0; i < VIEW_TABLES; i++) {
        snprintf(name, sizeof(name), "use-%u", i);
        v->use[i] = crail_storage_use_create(v->w.s, path_of(name, path), i, &handle);
        v->table[i] = map_table(v->use[i]);
    }
    for (uint32_t i = 0; i < VIEWS; i++)
        assert(crail_use_enter(v->table[i / 4096], i % 4096, 0, i, 0, v->w.generations));
}

static void views_end(struct views *v) {
    for (uint32_t i = 0; i < VIEW_TABLES; i++) {
        munmap(v->table[i], sizeof(*v->table[i]));
        close(v->use[i]);
        assert(crail_storage_use_closed(v->w.s, i + 1) == 0);
    }
    close(v->channel);
    end(&v->w);
}

static void views_order(struct views *v, uint32_t first, uint32_t n) {
    struct crail_retire orders[CRAIL_RETIRES_MAX];
    for (uint32_t i = 0; i < n; i += CRAIL_RETIRES_MAX) {
        uint32_t part = n - i < CRAIL_RETIRES_MAX ? n - i : CRAIL_RETIRES_MAX;
        for (uint32_t k = 0; k < part; k++)
            orders[k] = one_order(first + i + k, 1, 1);
        order(v->channel, orders, part);
    }
}

/* Takes `n` confirmations, each of its own. */
static void views_confirmed(struct views *v, uint32_t n) {
    struct crail_retire done[CRAIL_RETIRES_MAX];
    while (n) {
        assert(readable(v->channel, 10000));
        uint32_t part = confirmed(v->channel, done, CRAIL_RETIRES_MAX);
        assert(part <= n);
        n -= part;
        for (uint32_t i = 0; i < part; i++) {
            assert(!v->confirmed[done[i].granule]);
            v->confirmed[done[i].granule] = true;
        }
    }
}

static void test_orders_that_wait_hold_up_no_others(void) {
    static struct views v;
    views_begin(&v);
    views_order(&v, 0, VIEWS);
    while (stats(&v.w).retires_waiting < VIEWS)
        usleep(10000);
    uint64_t from = crail_clock_ns(), cpu = stats(&v.w).loop_cpu_ns;
    usleep(500000);
    double busy = (double)(stats(&v.w).loop_cpu_ns - cpu) / (double)(crail_clock_ns() - from);
    from = crail_clock_ns();
    views_order(&v, VIEWS, 1); /* nobody looks at it */
    views_confirmed(&v, 1);
    double fresh_ms = (double)(crail_clock_ns() - from) / 1e6;
    views_order(&v, 5000, 1024); /* they wait already */
    for (uint32_t i = 0; i < VIEWS; i += 1000)
        crail_use_leave(v.table[i / 4096], i % 4096);
    from = crail_clock_ns();
    views_confirmed(&v, VIEWS / 1000);
    printf("%u orders wait: loop %.1f %% busy, a new one confirmed in %.2f ms, all that are free in %.0f ms\n", VIEWS,
           100 * busy, fresh_ms, (double)(crail_clock_ns() - from) / 1e6);
    assert(stats(&v.w).retires_waiting == VIEWS - VIEWS / 1000 && busy < 0.2 && !readable(v.channel, 50));
    for (uint32_t i = 0; i < VIEWS; i++)
        crail_use_leave(v.table[i / 4096], i % 4096);
    views_confirmed(&v, VIEWS - VIEWS / 1000);
    assert(stats(&v.w).retires_waiting == 0);
    views_end(&v);
}

static void test_a_table_cut_short_names_what_is_left(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    struct crail_use_table *t = map_table(use);
    static const uint32_t slots[] = {3, 100, 2000};
    for (uint32_t i = 0; i < 3; i++)
        assert(crail_use_enter(t, slots[i], 0, i, 0, w.generations));
    int ch = channel(&w);
    struct crail_retire orders[3] = {one_order(0, 1, 1), one_order(1, 1, 1), one_order(2, 1, 1)}, done[3];
    order(ch, orders, 3);
    assert(!readable(ch, 120));
    static const int cuts[] = {64 + 8 * 2000 + 7, 64 + 8 * 100, 20}; /* into a word, before one, into the head */
    for (uint32_t i = 3; i-- > 0;) {
        assert(ftruncate(use, cuts[2 - i]) == 0);
        assert(confirmed(ch, done, 3) == 1 && done[0].granule == i && (i == 0 || !readable(ch, 120)));
    }
    assert(ftruncate(use, 0) == 0);
    orders[0].generation = 2;
    order(ch, orders, 1);
    assert(confirmed(ch, done, 1) == 1);
    munmap(t, sizeof(*t));
    close(use), close(ch);
    assert(crail_storage_use_closed(w.s, handle) == 0);
    end(&w);
}

static void test_a_new_channel_replaces_the_old(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    struct crail_use_table *t = map_table(use);
    assert(crail_use_enter(t, 0, 0, 3, 0, w.generations));
    int first = channel(&w);
    struct crail_retire orders[1] = {one_order(3, 1, 1)}, done[1];
    order(first, orders, 1);
    while (stats(&w).retires_waiting == 0) {
    }
    int second = channel(&w);
    expect_closed(first);
    assert(stats(&w).retires_waiting == 0);
    crail_use_leave(t, 0);
    assert(!readable(second, 120)); /* the old order is forgotten */
    order(second, orders, 1);
    assert(confirmed(second, done, 1) == 1);
    close(second);
    int third = channel(&w); /* an end seen before a replacement is no different */
    order(third, orders, 1);
    assert(confirmed(third, done, 1) == 1);
    munmap(t, sizeof(*t));
    close(use), close(third);
    assert(crail_storage_use_closed(w.s, handle) == 0);
    end(&w);
}

static void test_bad_orders_close_the_channel_and_do_nothing(void) {
    struct world w = begin();
    struct crail_retire bad[] = {
        {.region = 1, .granules = 1, .generation = 9},
        {.granule = GRANULES, .granules = 1, .generation = 9},
        {.granule = 1, .granules = GRANULES, .generation = 9},
        {.granule = UINT32_MAX, .granules = UINT32_MAX, .generation = 9},
        {.granule = 1, .granules = 0, .generation = 9},
        {.granule = 1, .granules = 1, .reserved = 1, .generation = 9},
    };
    uint64_t errors = 0;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++, errors++) {
        int ch = channel(&w);
        struct crail_retire orders[2] = {one_order(0, 1, 9), bad[i]};
        order(ch, orders, 2);
        expect_closed(ch);
    }
    struct crail_retire twice[2] = {one_order(0, 1, 9), one_order(0, 2, 9)};
    int ch = channel(&w);
    order(ch, twice, 2);
    expect_closed(ch);
    struct crail_retire_frame heads[] = {
        {.magic = 1, .size = 40, .count = 1},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 16, .count = 0},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 41, .count = 1},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 40, .count = 1, .flags = 1},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 16 + 24 * 1025, .count = 1025},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 40, .count = 0x0aaaaaab},
    };
    errors++;
    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++, errors++) {
        ch = channel(&w);
        send_all(ch, &heads[i], sizeof(heads[i]));
        expect_closed(ch);
    }
    assert(stats(&w).protocol_errors == errors && stats(&w).retires_ordered == 0);
    for (uint32_t i = 0; i < GRANULES; i++)
        assert(atomic_load(&w.generations[i]) == 0);
    end(&w);
}

static void test_confirmations_nobody_reads_are_kept(void) {
    struct world w = begin();
    int ch = channel(&w);
    static struct crail_retire orders[CRAIL_RETIRES_MAX], done[CRAIL_RETIRES_MAX];
    for (uint32_t i = 0; i < CRAIL_RETIRES_MAX; i++)
        orders[i] = one_order(i, 1, 1);
    uint64_t sent = 0, got = 0;
    struct pollfd p = {ch, POLLOUT, 0};
    while (sent < 200 && poll(&p, 1, 200) == 1) { /* until nothing more goes in: it stopped reading */
        order(ch, orders, CRAIL_RETIRES_MAX);
        sent++;
    }
    while (got < sent * CRAIL_RETIRES_MAX)
        got += confirmed(ch, done, CRAIL_RETIRES_MAX);
    assert(got == sent * CRAIL_RETIRES_MAX && !readable(ch, 50));
    close(ch);
    end(&w);
}

/* ---- the reuse rule, attacked ----------------------------------------------------- */

#define ATTACK_ROUNDS 400

struct attack {
    struct world *w;
    struct crail_use_table *t;
    uint32_t slot;
    _Atomic uint64_t owner; /* the generation whose bytes lie in the extent now */
    _Atomic bool over;
    _Atomic uint64_t wrong, entered;
};

/* Enters with the generation of the moment, and must find that no other life began before it left. */
static void *attacker(void *arg) {
    struct attack *a = arg;
    while (!atomic_load(&a->over)) {
        uint64_t generation = atomic_load(&a->owner);
        if (!crail_use_enter(a->t, a->slot, 0, 0, generation, a->w->generations))
            continue;
        atomic_fetch_add(&a->entered, 1);
        for (int i = 0; i < 200; i++)
            if (atomic_load(&a->owner) != generation)
                atomic_fetch_add(&a->wrong, 1);
        crail_use_leave(a->t, a->slot);
    }
    return NULL;
}

static void test_no_reader_outlives_a_confirmed_retire(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    struct attack a = {.w = &w, .t = map_table(use), .slot = 3};
    int ch = channel(&w);
    pthread_t thread;
    pthread_create(&thread, NULL, attacker, &a);
    struct crail_retire done[1];
    for (uint64_t generation = 1; generation <= ATTACK_ROUNDS; generation++) {
        struct crail_retire orders[1] = {one_order(0, 1, generation)};
        order(ch, orders, 1);
        assert(confirmed(ch, done, 1) == 1 && done[0].generation == generation);
        atomic_store(&a.owner, generation); /* the granule has a new owner */
    }
    atomic_store(&a.over, true);
    pthread_join(thread, NULL);
    assert(atomic_load(&a.wrong) == 0);
    munmap(a.t, sizeof(*a.t));
    close(use), close(ch);
    assert(crail_storage_use_closed(w.s, handle) == 0);
    end(&w);
}

/* ---- switched off, the guards are seen to matter ------------------------------------- */

/* Runs `attempt` in a child with the guard off; returns its exit status. Before any thread of ours exists. */
static int without_guard(const char *name, int (*attempt)(void)) {
    pid_t child = fork();
    assert(child >= 0);
    if (child == 0) {
        setenv("CRAILPY_TEST_GUARDS_OFF", name, 1);
        _exit(attempt());
    }
    int status;
    assert(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* 1: a named extent was confirmed, or its generation stayed. 0: the guards held. */
static int attempt_shm(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-g", path), 1, &handle);
    struct crail_use_table *t = map_table(use);
    assert(crail_use_enter(t, 0, 0, 0, 0, w.generations));
    int ch = channel(&w);
    struct crail_retire orders[1] = {one_order(0, 1, 1)};
    order(ch, orders, 1);
    bool bitten = readable(ch, 200) || crail_use_enter(t, 1, 0, 0, 0, w.generations);
    munmap(t, sizeof(*t));
    close(use), close(ch);
    crail_storage_use_closed(w.s, handle);
    end(&w);
    return bitten;
}

/* 1: the TCP server served what it should not have. */
static int attempt_tcp(void) {
    struct world w = begin();
    int fd = data_connection(&w, 0), ch = channel(&w);
    struct crail_data_request q = request(CRAIL_DATA_READ, 0, 1, 0, 0, 0);
    q.extent.key++;
    bool bitten = ask(fd, q, NULL) == 0;
    bitten |= ask(fd, request(CRAIL_DATA_READ, 0, 1, 1, 0, 0), NULL) == 0;
    uint8_t byte = 1;
    q = request(CRAIL_DATA_WRITE, 0, 1, 0, 0, 2);
    send_all(fd, &q, sizeof(q));
    send_all(fd, &byte, 1);
    while (stats(&w).bytes_in < 1) {
    }
    struct crail_retire orders[1] = {one_order(0, 1, 1)};
    order(ch, orders, 1);
    bitten |= readable(ch, 200);
    close(fd), close(ch);
    end(&w);
    return bitten;
}

static void test_each_guard_is_needed(void) {
#ifdef CRAIL_TEST_GUARDS
    static const char *shm[] = {"slot", "generation", "retire-scan", "retire-generation"};
    static const char *tcp[] = {"tcp-slot", "tcp-generation", "key", "other,key"};
    assert(without_guard("", attempt_shm) == 0 && without_guard("slo,slots", attempt_shm) == 0);
    assert(without_guard("", attempt_tcp) == 0);
    for (size_t i = 0; i < 4; i++) {
        assert(without_guard(shm[i], attempt_shm) == 1);
        assert(without_guard(tcp[i], attempt_tcp) == 1);
    }
#else
    (void)without_guard, (void)attempt_shm, (void)attempt_tcp;
#endif
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

/* Returns in the child that runs the tests; the parent removes what they left, and ends as the child did. */
static void tests_in_a_child(void) {
    pid_t child = fork();
    assert(child >= 0);
    if (child == 0)
        return;
    signal(SIGINT, SIG_IGN); /* the terminal tells the child too */
    int status;
    while (waitpid(child, &status, 0) < 0)
        assert(errno == EINTR);
    nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

int main(void) {
    tuning = crail_storage_tuning_default;
    strcpy(folder, "/dev/shm/crailpy-test-XXXXXX");
    if (!mkdtemp(folder)) {
        strcpy(folder, "/tmp/crailpy-test-XXXXXX");
        assert(mkdtemp(folder));
    }
    tests_in_a_child();
    alarm(120);
    test_each_guard_is_needed();
    test_region_too_small_for_its_granules_is_refused();
    test_bytes_written_are_the_bytes_read(0);
    test_bytes_written_are_the_bytes_read(1);
    test_pipelined_requests_are_answered_in_order();
    test_requests_without_right_or_reason_are_refused();
    test_before_registration_nothing_is_served();
    test_garbage_closes_the_connection();
    test_connections_share_the_loop();
    test_what_no_slot_names_is_confirmed_at_once();
    test_a_named_extent_waits_for_its_slot();
    test_slots_end_with_the_last_process_that_holds_the_table();
    test_a_table_outlives_the_server();
    test_an_orphan_nobody_waits_for_goes_too();
    test_a_transfer_over_tcp_holds_its_extent();
    test_a_table_cut_short_names_what_is_left();
    test_orders_that_wait_hold_up_no_others();
    test_a_transfer_that_stands_still_gives_way();
    test_there_are_not_more_connections_than_allowed();
    test_a_new_channel_replaces_the_old();
    test_bad_orders_close_the_channel_and_do_nothing();
    test_confirmations_nobody_reads_are_kept();
    test_no_reader_outlives_a_confirmed_retire();
    assert(rmdir(folder) == 0); /* nothing was left in it */
    puts("storage: ok");
    return 0;
}
