/* What the tests and the benchmark of the meta room share: one call per operation, and what claims are made with. */
#ifndef CRAIL_TEST_META_KIT_H
#define CRAIL_TEST_META_KIT_H

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "base/siphash.h"
#include "crail/status.h"
#include "meta/engine.h"

struct kit {
    struct crail_meta *m;
    struct crail_meta_session *s;
    struct crail_buf reply;
    int64_t now_ns;
    uint64_t next_session;
    const struct crail_options *options; /* of the next operation, which takes them */
};

/* The result of the latest operation; its data lies in the kit's reply. */
struct answer {
    int status; /* 0, a positive status, or KIT_WAITS */
    struct crail_result r;
    const uint8_t *data;
};

#define KIT_WAITS (-1) /* there is no answer yet */

#define OK 0
#define E(name) CRAIL_E_##name
#define WANT(answer, status_wanted)                                                                      \
    do {                                                                                                 \
        int got_ = (answer).status;                                                                      \
        if (got_ != (status_wanted)) {                                                                   \
            fprintf(stderr, "%s:%d: status %d, wanted %d\n", __FILE__, __LINE__, got_, (status_wanted)); \
            abort();                                                                                     \
        }                                                                                                \
    } while (0)
#define RUN(claim) (claim(), printf("ok %s\n", #claim), fflush(stdout))

static inline uint64_t kit_clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void kit_open(struct kit *k, uint64_t arena_bytes) {
    struct crail_meta_options o = {arena_bytes, 0x1234567890abcdefull, "0123456789abcde"};
    memset(k, 0, sizeof(*k));
    assert(crail_meta_new(&o, &k->m) == 0);
    assert(crail_meta_session_open(k->m, ++k->next_session, &k->s) == 0);
    k->now_ns = 1000000000ll * 1700000000;
}

static inline void kit_close(struct kit *k) {
    crail_meta_free(k->m);
    crail_buf_free(&k->reply);
}

static inline void kit_check(const struct kit *k) {
    char why[256] = "";
    if (crail_meta_check(k->m, why, sizeof(why))) {
        fprintf(stderr, "crail_meta_check: %s\n", why);
        abort();
    }
}

static inline void kit_settle(struct kit *k) {
    while (crail_meta_step(k->m, 100000)) {
    }
}

/* Time passes, and what is due by then is done. */
static inline void kit_pass(struct kit *k, int64_t ns) {
    k->now_ns += ns;
    crail_meta_clock(k->m, k->now_ns);
    kit_settle(k);
}

/* The next operation brings these options. */
static inline void kit_with(struct kit *k, struct crail_options options) {
    static _Thread_local struct crail_options kept;
    kept = options;
    k->options = &kept;
}

/* The operation with its bytes laid out as in a frame: path and data side by side, not aligned. */
static inline struct answer kit_do(struct kit *k, struct crail_op op, const void *path, const void *data) {
    static _Thread_local char frame[1 << 17];
    struct answer a = {0};
    int rc;
    if (op.path_len)
        memcpy(frame, path, op.path_len);
    if (k->options) {
        op.options_len = sizeof(*k->options);
        memcpy(frame + op.path_len, k->options, sizeof(*k->options));
        k->options = NULL;
    }
    const char *options = frame + op.path_len;
    if (op.data_len)
        memcpy(frame + op.path_len + op.options_len, data, op.data_len);
    crail_meta_prefetch(k->m, &op, frame);
    do {
        k->reply.len = 0;
        rc = crail_meta_execute(k->m, k->s, &op, frame, options, options + op.options_len, ++k->now_ns, &k->reply);
        assert(rc == 0 || k->reply.len == 0);
        assert(rc == 0 || (rc == CRAIL_META_AGAIN && (op.code == CRAIL_OP_LIST || op.code == CRAIL_OP_COLUMN)) ||
               (rc == CRAIL_META_WAIT && op.flags & CRAIL_OPF_WAIT));
        if (rc == CRAIL_META_AGAIN)
            crail_meta_step(k->m, 20000);
    } while (rc == CRAIL_META_AGAIN);
    if (rc == CRAIL_META_WAIT)
        return (struct answer){.status = KIT_WAITS};
    memcpy(&a.r, k->reply.data, sizeof(a.r));
    a.status = -a.r.status;
    a.data = k->reply.data + sizeof(a.r);
    assert(k->reply.len == sizeof(a.r) + crail_pad8(a.r.data_len));
    assert(!a.status || (a.status > CRAIL_STATUS_BASE && !a.r.data_len && !a.r.count && !a.r.version));
    return a;
}

static inline struct answer kit_op(struct kit *k, int code, int flags, const char *path, const void *data,
                                   uint32_t data_len, uint32_t count, uint64_t arg0, uint64_t arg1) {
    struct crail_op op = {.code = (uint16_t)code,
                          .flags = (uint16_t)flags,
                          .path_len = path ? (uint16_t)strlen(path) : 0,
                          .data_len = data_len,
                          .count = count,
                          .arg0 = arg0,
                          .arg1 = arg1};
    return kit_do(k, op, path, data);
}

static inline struct crail_extent extent_at(const struct answer *a, uint32_t i) {
    struct crail_extent e;
    assert(i < a->r.count);
    memcpy(&e, a->data + i * sizeof(e), sizeof(e));
    return e;
}

static inline struct crail_meta_stats stats_of(const struct kit *k) {
    struct crail_meta_stats st;
    crail_meta_stats(k->m, &st);
    return st;
}

static inline struct answer kit_get(struct kit *k, const char *path) {
    return kit_op(k, CRAIL_OP_GET, 0, path, NULL, 0, 0, 0, 0);
}
static inline struct answer kit_stat(struct kit *k, const char *path) {
    return kit_op(k, CRAIL_OP_STAT, 0, path, NULL, 0, 0, 0, 0);
}
static inline struct answer kit_put(struct kit *k, int flags, const char *path, const void *v, uint32_t n) {
    return kit_op(k, CRAIL_OP_PUT, flags, path, v, n, 0, 0, 0);
}
static inline struct answer kit_mkdir(struct kit *k, int flags, const char *path) {
    return kit_op(k, CRAIL_OP_MKDIR, flags, path, NULL, 0, 0, 0, 0);
}
static inline struct answer kit_make(struct kit *k, int flags, enum crail_kind kind, const char *path) {
    return kit_op(k, CRAIL_OP_MKDIR, flags, path, NULL, 0, 0, kind, 0);
}
static inline struct answer kit_end(struct kit *k, uint64_t token) {
    return kit_op(k, CRAIL_OP_END, 0, NULL, NULL, 0, 0, token, 0);
}
static inline struct answer kit_rename(struct kit *k, int flags, const char *from, const char *to) {
    return kit_op(k, CRAIL_OP_RENAME, flags, from, to, (uint32_t)strlen(to), 0, 0, 0);
}
static inline struct answer kit_remove(struct kit *k, int flags, const char *path) {
    return kit_op(k, CRAIL_OP_REMOVE, flags, path, NULL, 0, 0, 0, 0);
}
static inline struct answer kit_rmtree(struct kit *k, const char *path) {
    return kit_op(k, CRAIL_OP_RMTREE, 0, path, NULL, 0, 0, 0, 0);
}
static inline struct answer kit_list(struct kit *k, const char *path, const char *after, uint64_t max) {
    return kit_op(k, CRAIL_OP_LIST, 0, path, after, (uint32_t)strlen(after), 0, max, 0);
}
static inline struct answer kit_alloc(struct kit *k, int flags, uint64_t bytes) {
    return kit_op(k, CRAIL_OP_ALLOC, flags, NULL, NULL, 0, 0, 0, bytes);
}
static inline struct answer kit_release(struct kit *k, const struct crail_extent *e, uint32_t n) {
    return kit_op(k, CRAIL_OP_RELEASE, 0, NULL, e, n * 32, n, 0, 0);
}
static inline struct answer kit_commit(struct kit *k, int flags, const char *path, const struct crail_extent *e,
                                       uint32_t n, uint64_t arg0, uint64_t bytes) {
    return kit_op(k, CRAIL_OP_COMMIT, flags, path, e, n * 32, n, arg0, bytes);
}

static inline uint32_t kit_server_at(struct kit *k, uint32_t regions, uint32_t granules, uint8_t storage_class,
                                     uint32_t location) {
    struct crail_meta_region r[64] = {{0}};
    uint32_t number;
    for (uint32_t i = 0; i < regions; i++)
        r[i].granules = granules;
    assert(crail_meta_server_add(k->m, r, regions, NULL, (struct crail_meta_place){location, storage_class}, &number) ==
           0);
    return number;
}

static inline uint32_t kit_server(struct kit *k, uint32_t regions, uint32_t granules) {
    return kit_server_at(k, regions, granules, 0, 0);
}

/* Plays the storage server: takes and confirms what is due. Returns how many orders. */
static inline uint32_t kit_retire(struct kit *k, uint32_t server) {
    struct crail_retire order[64];
    uint32_t all = 0, n;
    while ((n = crail_meta_retires_take(k->m, server, order, 64))) {
        assert(crail_meta_retires_done(k->m, server, order, n) == 0);
        all += n;
    }
    return all;
}

static inline uint32_t kit_random(uint64_t *state, uint32_t below) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)((*state >> 20) % below);
}

#endif
