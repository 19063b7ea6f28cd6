/* What the tests and the benchmark of the rpc room share: a namenode's loop, and clients and storage servers as small
 * as possible at the other end of socketpairs. */
#ifndef CRAIL_TEST_RPC_KIT_H
#define CRAIL_TEST_RPC_KIT_H

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/ring.h"
#include "base/siphash.h"
#include "rpc/rpc.h"

#define CHECK(x)                                                    \
    do {                                                            \
        if (!(x)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
            abort();                                                \
        }                                                           \
    } while (0)

/* ---- a namenode and a client, as small as possible ------------------------ */

static struct crail_rpc_tuning tuning;
static crail_namenode *nn;
static uint32_t durability; /* enum crail_durability */

static inline void start(uint64_t grace_ms) {
    crail_namenode_options o = {
        .arena_bytes_max = 1u << 30, .session_grace_ms = grace_ms, .durability = durability, .grants_fd = -1};
    memset(o.mac_key, 7, sizeof o.mac_key);
    CHECK(crail_rpc_start(&o, &tuning, &nn) == 0);
}

/* Our ends of rings, by the descriptor and the inode of the socket beside them. */
#define RINGS_MAX 8192
static bool with_rings;
static pthread_mutex_t ends_lock = PTHREAD_MUTEX_INITIALIZER; /* a descriptor may be another thread's next */
static struct end {
    struct end *before; /* those of the same descriptor; all go when the test ends */
    struct crail_ring ring;
    ino_t socket;
    int bell;
} *ends[RINGS_MAX];

static inline ino_t inode(int fd) {
    struct stat st;
    return fstat(fd, &st) ? 0 : st.st_ino;
}

/* NULL: this socket has none. */
static inline struct end *ring_of(int fd) {
    pthread_mutex_lock(&ends_lock);
    struct end *e = fd < RINGS_MAX ? ends[fd] : NULL;
    pthread_mutex_unlock(&ends_lock);
    return e && e->socket == inode(fd) ? e : NULL;
}

/* Closes, where another thread may be given the same descriptor next. */
static inline void hang_up(int fd) {
    pthread_mutex_lock(&ends_lock);
    close(fd);
    pthread_mutex_unlock(&ends_lock);
}

static inline void free_ends(void) {
    pthread_mutex_lock(&ends_lock);
    for (int fd = 0; fd < RINGS_MAX; fd++) {
        if (ends[fd])
            close(ends[fd]->bell); /* those of the others are closed */
        for (struct end *e = ends[fd], *before; e; e = before) {
            before = e->before;
            crail_ring_close(&e->ring);
            free(e);
        }
        ends[fd] = NULL;
    }
    pthread_mutex_unlock(&ends_lock);
}

static inline void end(void) {
    char why[256] = "";
    int rc = crail_namenode_check(nn, why, sizeof why);
    if (rc)
        fprintf(stderr, "check: %s\n", why);
    CHECK(rc == 0);
    crail_namenode_stop(nn);
    nn = NULL;
    free_ends();
    tuning = crail_rpc_tuning_default;
}

static inline crail_namenode_stats stats(void) {
    crail_namenode_stats st;
    CHECK(crail_namenode_stats_read(nn, &st) == 0);
    return st;
}

static inline int attach_pair(const int *pair, uint64_t session, uint32_t lane) {
    if (!with_rings)
        return crail_namenode_lane_attach(nn, pair[1], session, lane, NULL);
    CHECK(pair[0] < RINGS_MAX);
    int fds[2] = {crail_ring_create(), eventfd(0, EFD_NONBLOCK)};
    struct end *e = calloc(1, sizeof *e);
    CHECK(e && fds[0] >= 0 && fds[1] >= 0 && crail_ring_open(&e->ring, fds[0], false) == 0);
    e->bell = fds[1];
    e->socket = inode(pair[0]);
    pthread_mutex_lock(&ends_lock);
    e->before = ends[pair[0]];
    if (e->before)
        close(e->before->bell);
    ends[pair[0]] = e;
    pthread_mutex_unlock(&ends_lock);
    int rc = crail_namenode_lane_attach(nn, pair[1], session, lane, fds);
    close(fds[0]);
    return rc;
}

static inline int attach(uint64_t session, uint32_t lane) {
    int fd[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    CHECK(attach_pair(fd, session, lane) == 0);
    return fd[0];
}

/* As send(2) and recv(2) on a blocking socket, also through its ring. */
static inline ssize_t put_some(int fd, const void *data, size_t n) {
    struct end *e = ring_of(fd);
    if (!e)
        return send(fd, data, n, MSG_NOSIGNAL);
    ssize_t k;
    while ((k = crail_ring_write(&e->ring, data, n)) == 0)
        crail_ring_nap_for_room(&e->ring);
    if (k > 0 && crail_ring_wake_reader(&e->ring))
        eventfd_write(e->bell, 1);
    return k;
}

static inline ssize_t take_some(int fd, void *data, size_t n) {
    struct end *e = ring_of(fd);
    char byte;
    if (!e)
        return recv(fd, data, n, 0);
    ssize_t k;
    while ((k = crail_ring_read(&e->ring, data, n)) == 0) {
        if (crail_ring_nap_for_bytes(&e->ring) && recv(fd, &byte, 1, MSG_DONTWAIT) == 0 &&
            !crail_ring_readable(&e->ring))
            return 0;
    }
    if (k > 0 && crail_ring_wake_writer(&e->ring))
        eventfd_write(e->bell, 1);
    return k;
}

static inline int client(uint64_t session) {
    CHECK(crail_namenode_session_open(nn, session) == 0);
    return attach(session, 0);
}

struct request {
    struct crail_buf b;
};

static inline void frame(struct request *r, uint64_t id, uint64_t seq) {
    struct crail_frame head = {.magic = CRAIL_FRAME_MAGIC, .id = id, .seq = seq};
    r->b.len = 0;
    CHECK(crail_buf_append_padded(&r->b, &head, sizeof head) == 0);
}

static inline struct crail_frame *head_of(struct request *r) {
    return (void *)r->b.data;
}

static inline void op_full(struct request *r, struct crail_op op, const char *path, const void *data, uint32_t n) {
    op.path_len = (uint16_t)strlen(path);
    op.data_len = n;
    size_t bytes = crail_pad8((uint32_t)sizeof op + op.path_len + n);
    CHECK(crail_buf_reserve(&r->b, bytes) == 0);
    uint8_t *p = r->b.data + r->b.len;
    memset(p, 0, bytes);
    memcpy(p, &op, sizeof op);
    memcpy(p + sizeof op, path, op.path_len);
    if (n)
        memcpy(p + sizeof op + op.path_len, data, n);
    r->b.len += bytes;
    struct crail_frame *head = (void *)r->b.data;
    head->count++;
    head->size = (uint32_t)r->b.len;
}

static inline void op(struct request *r, uint16_t code, const char *path, const void *data, uint32_t n) {
    op_full(r, (struct crail_op){.code = code, .flags = code == CRAIL_OP_PUT ? CRAIL_OPF_PARENTS : 0}, path, data, n);
}

static inline void send_all(int fd, const void *data, size_t n) {
    for (const uint8_t *p = data; n;) {
        ssize_t k = put_some(fd, p, n);
        CHECK(k > 0);
        p += k;
        n -= (size_t)k;
    }
}

static inline bool recv_all(int fd, void *data, size_t n) {
    for (uint8_t *p = data; n;) {
        ssize_t k = take_some(fd, p, n);
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

struct reply {
    struct crail_frame head;
    struct crail_buf b;
};

/* False: the connection has been closed. */
static inline bool take(int fd, struct reply *r) {
    if (!recv_all(fd, &r->head, sizeof r->head))
        return false;
    CHECK(r->head.magic == CRAIL_FRAME_MAGIC && r->head.size % 8 == 0);
    r->b.len = 0;
    CHECK(crail_buf_reserve(&r->b, r->head.size) == 0);
    r->b.len = r->head.size - sizeof r->head;
    CHECK(recv_all(fd, r->b.data, r->b.len));
    return true;
}

static inline struct crail_result *result(struct reply *r, uint32_t i) {
    size_t at = 0;
    for (uint32_t k = 0; k < i; k++)
        at += sizeof(struct crail_result) + crail_pad8(((struct crail_result *)(void *)(r->b.data + at))->data_len);
    CHECK(at + sizeof(struct crail_result) <= r->b.len);
    return (void *)(r->b.data + at);
}

static inline void call(int fd, struct request *q, struct reply *r) {
    send_all(fd, q->b.data, q->b.len);
    CHECK(take(fd, r));
    CHECK(r->head.id == ((struct crail_frame *)(void *)q->b.data)->id);
    CHECK(r->head.count == ((struct crail_frame *)(void *)q->b.data)->count);
}

static inline int one(int fd, uint64_t seq, uint16_t code, const char *path, const void *data, uint32_t n) {
    struct request q = {0};
    struct reply r = {0};
    frame(&q, seq + 1000, seq);
    op(&q, code, path, data, n);
    call(fd, &q, &r);
    int status = result(&r, 0)->status;
    crail_buf_free(&q.b);
    crail_buf_free(&r.b);
    return status;
}

static inline bool closed(int fd) {
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1);
    char c;
    return recv(fd, &c, 1, MSG_DONTWAIT) <= 0;
}

static inline crail_namenode_event event(void) {
    struct pollfd p = {crail_namenode_event_fd(nn), POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1);
    crail_namenode_event e;
    CHECK(crail_namenode_events_take(nn, &e, 1) == 1);
    return e;
}

static struct request Q;
static struct reply R;

/* ---- storage servers ------------------------------------------------------ */

static inline uint32_t server(uint32_t granules, int *channel) {
    uint32_t number;
    CHECK(crail_namenode_server_add(nn, 1, &granules, NULL, 0, 0, "where", 5, &number) == 0);
    if (channel) {
        int fd[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
        CHECK(crail_namenode_server_channel(nn, number, fd[1]) == 0);
        *channel = fd[0];
    }
    return number;
}

/* One frame of orders. False: closed. */
static inline bool orders(int fd, struct crail_buf *b) {
    struct crail_retire_frame head;
    if (!recv_all(fd, &head, sizeof head))
        return false;
    CHECK(head.magic == CRAIL_RETIRE_MAGIC && head.count && head.count <= CRAIL_RETIRES_MAX);
    CHECK(head.size == sizeof head + head.count * sizeof(struct crail_retire));
    b->len = 0;
    CHECK(crail_buf_append_padded(b, &head, sizeof head) == 0 && crail_buf_reserve(b, head.size) == 0);
    CHECK(recv_all(fd, b->data + b->len, head.size - sizeof head));
    b->len = head.size;
    return true;
}

static inline void *confirms_all(void *arg) {
    int fd = *(int *)arg;
    struct crail_buf b = {0};
    while (orders(fd, &b))
        send_all(fd, b.data, b.len);
    crail_buf_free(&b);
    close(fd);
    return NULL;
}

static struct crail_extent X[CRAIL_EXTENTS_MAX];

static inline int alloc(int fd, uint64_t seq, uint64_t bytes, uint32_t *n) {
    frame(&Q, seq, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_ALLOC, .arg1 = bytes}, "", NULL, 0);
    call(fd, &Q, &R);
    *n = result(&R, 0)->count;
    memcpy(X, result(&R, 0) + 1, *n * sizeof *X);
    return result(&R, 0)->status;
}

static inline int commit(int fd, uint64_t seq, const char *path, uint64_t bytes, uint32_t n) {
    frame(&Q, seq, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_COMMIT, .count = n, .arg1 = bytes}, path, X,
            (uint32_t)(n * sizeof *X));
    call(fd, &Q, &R);
    return result(&R, 0)->status;
}

static inline int release(int fd, uint64_t seq, uint32_t n) {
    frame(&Q, seq, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_RELEASE, .count = n}, "", X, (uint32_t)(n * sizeof *X));
    call(fd, &Q, &R);
    return result(&R, 0)->status;
}

/* ---- running --------------------------------------------------------------- */

struct rpc_test {
    const char *name;
    void (*run)(void);
};
#define T(name) {#name, name}

/* All of them, or those with the program's argument in their name; then all again with lanes that have rings. */
static inline int run_tests(const struct rpc_test *tests, size_t n, int argc, char **argv) {
    tuning = crail_rpc_tuning_default;
    for (size_t i = 0; i < 2 * n; i++) {
        if (argc > 1 && !strstr(tests[i % n].name, argv[1]))
            continue;
        with_rings = i >= n;
        printf("%s%s\n", tests[i % n].name, with_rings ? ", with rings" : "");
        fflush(stdout);
        tests[i % n].run();
    }
    printf("all passed\n");
    crail_buf_free(&Q.b);
    crail_buf_free(&R.b);
    return 0;
}

#endif
