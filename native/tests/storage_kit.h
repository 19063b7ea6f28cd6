/* What the tests of the storage server's core share: a server over socketpairs and loopback, to which the test plays
 * namenode and clients. Use tables lie in a temporary folder that is removed, by a parent process that runs no test, so
 * also when a test fails. */
#ifndef CRAIL_TEST_STORAGE_KIT_H
#define CRAIL_TEST_STORAGE_KIT_H

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

static inline struct world begin_with(uint32_t granules) {
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

static inline struct world begin(void) {
    return begin_with(GRANULES);
}

static inline void end(struct world *w) {
    crail_storage_stop(w->s);
    munmap(w->memory, (size_t)w->granules * CRAIL_GRANULE);
    munmap((void *)w->generations, w->granules * 8);
    tuning = crail_storage_tuning_default;
    close(w->memory_fd);
    close(w->generations_fd);
}

static inline crail_storage_stats stats(struct world *w) {
    crail_storage_stats out;
    assert(crail_storage_stats_read(w->s, &out) == 0);
    return out;
}

static inline void tcp_pair(int pair[2]) {
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

static inline int data_connection(struct world *w, int tcp) {
    int pair[2];
    if (tcp)
        tcp_pair(pair);
    else
        assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    assert(crail_storage_data_attach(w->s, pair[1]) == 0);
    return pair[0];
}

static inline int channel(struct world *w) {
    int pair[2];
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    assert(crail_storage_channel(w->s, pair[1]) == 0);
    return pair[0];
}

static inline void send_all(int fd, const void *data, size_t n) {
    for (const uint8_t *p = data; n;) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        assert(k > 0);
        p += k, n -= (size_t)k;
    }
}

static inline void recv_all(int fd, void *data, size_t n) {
    for (uint8_t *p = data; n;) {
        ssize_t k = recv(fd, p, n, 0);
        assert(k > 0);
        p += k, n -= (size_t)k;
    }
}

static inline bool readable(int fd, int timeout_ms) {
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, timeout_ms) == 1;
}

static inline void expect_closed(int fd) {
    uint8_t byte;
    assert(readable(fd, 10000));
    ssize_t n = recv(fd, &byte, 1, 0);
    assert(n == 0 || (n < 0 && errno == ECONNRESET));
    close(fd);
}

static inline struct crail_data_request request(uint16_t code, uint32_t granule, uint32_t granules, uint64_t generation,
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
static inline int reply_to(int fd, const struct crail_data_request *q) {
    struct crail_data_reply r;
    recv_all(fd, &r, sizeof(r));
    assert(r.magic == CRAIL_DATA_MAGIC && r.id == q->id && r.reserved == 0);
    assert(r.length == (r.status == 0 && q->code == CRAIL_DATA_READ ? q->length : 0));
    return -r.status;
}

static inline int ask(int fd, struct crail_data_request q, const void *data) {
    send_all(fd, &q, sizeof(q));
    if (q.code == CRAIL_DATA_WRITE)
        send_all(fd, data, q.length);
    return reply_to(fd, &q);
}

static inline void fill(uint8_t *p, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
}

static inline void order(int fd, const struct crail_retire *orders, uint32_t n) {
    struct crail_retire_frame h = {.magic = CRAIL_RETIRE_MAGIC, .count = n};
    h.size = (uint32_t)(sizeof(h) + n * sizeof(*orders));
    send_all(fd, &h, sizeof(h));
    send_all(fd, orders, n * sizeof(*orders));
}

static inline uint32_t confirmed(int fd, struct crail_retire *out, uint32_t max) {
    struct crail_retire_frame h;
    recv_all(fd, &h, sizeof(h));
    assert(h.magic == CRAIL_RETIRE_MAGIC && h.flags == 0 && h.count >= 1 && h.count <= max);
    assert(h.size == sizeof(h) + h.count * sizeof(*out));
    recv_all(fd, out, h.count * sizeof(*out));
    return h.count;
}

static inline struct crail_retire one_order(uint32_t granule, uint32_t granules, uint64_t generation) {
    return (struct crail_retire){.granule = granule, .granules = granules, .generation = generation};
}

static inline char *path_of(const char *name, char *out) {
    snprintf(out, 128, "%s/%s", folder, name);
    return out;
}

static inline struct crail_use_table *map_table(int fd) {
    struct crail_use_table *t = mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert(t != MAP_FAILED);
    return t;
}

/* ---- beginning and end ---------------------------------------------------------- */

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

/* Returns in the child that runs the tests; the parent removes what they left, and ends as the child did. */
static inline void tests_in_a_child(void) {
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

static inline void tests_begin(void) {
    tuning = crail_storage_tuning_default;
    strcpy(folder, "/dev/shm/crailpy-test-XXXXXX");
    if (!mkdtemp(folder)) {
        strcpy(folder, "/tmp/crailpy-test-XXXXXX");
        assert(mkdtemp(folder));
    }
    tests_in_a_child();
    alarm(120);
}

static inline int tests_end(void) {
    assert(rmdir(folder) == 0); /* nothing was left in it */
    puts("storage: ok");
    return 0;
}

#endif
