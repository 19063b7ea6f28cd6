/* What the tests of waiting share: requests that are set aside, and a run of every test through sockets and rings. */
#ifndef CRAIL_TEST_WAIT_KIT_H
#define CRAIL_TEST_WAIT_KIT_H

#include <stdlib.h>

#include "rpc_kit.h"

#define LONG_MS 60000u
#define CROWD 10000u

static unsigned seed = 1;
static bool whole; /* this test saw a long work done at once */

/* ---- asking -------------------------------------------------------------- */

static inline void ask(int fd, uint64_t id, struct crail_op o, const char *path) {
    frame(&Q, id, 0);
    op_full(&Q, o, path, NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
}

static inline struct crail_op waits(uint16_t code, uint32_t ms) {
    return (struct crail_op){.code = code, .flags = CRAIL_OPF_WAIT, .count = ms};
}

static inline void ask_get(int fd, uint64_t id, const char *path, uint32_t ms) {
    ask(fd, id, waits(CRAIL_OP_GET, ms), path);
}

/* The next reply has this id. Its status. */
static inline int answered(int fd, uint64_t id) {
    CHECK(take(fd, &R));
    CHECK(R.head.id == id && R.head.count == 1 && R.head.seq == 0);
    return -result(&R, 0)->status;
}

static inline bool says(const char *text) {
    const struct crail_result *r = result(&R, 0);
    return r->status == 0 && r->data_len == strlen(text) && !memcmp(r + 1, text, r->data_len);
}

static inline bool silent(int fd) {
    struct end *e = ring_of(fd);
    struct pollfd p = {fd, POLLIN, 0};
    return e ? !crail_ring_readable(&e->ring) : poll(&p, 1, 0) == 0;
}

static inline int put(int fd, uint64_t seq, const char *path, const char *text) {
    return one(fd, seq, CRAIL_OP_PUT, path, text, (uint32_t)strlen(text));
}

static inline uint64_t cancel(int fd, uint64_t id, uint64_t of) {
    ask(fd, id, (struct crail_op){.code = CRAIL_OP_CANCEL, .arg0 = of}, "");
    CHECK(answered(fd, id) == 0);
    return result(&R, 0)->size;
}

/* Until the loop has forgotten all but `n` waiters; they are freed in slices. */
static inline void until_waiters(uint64_t n) {
    uint64_t from = crail_clock_ns();
    while (stats().waiters != n)
        CHECK(crail_clock_ns() - from < 10000000000u);
}

/* Until the loop has done with all but `n` waiters. Other threads' calls are served between two of its slices: so they
 * see some of the way, unless it was one step, or the machine let us see nothing of it. Turns are not timed: who else
 * runs here would be in them. */
static inline void until_waiters_in_slices(uint64_t n) {
    uint64_t before = stats().waiters, seen = before, steps = 0, from = crail_clock_ns();
    while (seen != n) {
        uint64_t now = stats().waiters;
        steps += now != seen;
        seen = now;
        CHECK(crail_clock_ns() - from < 20000000000u);
    }
    printf("  %u waiters in at least %u steps, longest turn %.0f us\n", (unsigned)(before - n), (unsigned)steps,
           (double)stats().step_ns_max / 1e3);
    whole |= steps < 4;
}

/* A path of one to `names` names, of two kinds and two lengths. */
static inline void random_path(char *out, int names) {
    static const char *const name[] = {"/a", "/bb"};
    int n = 1 + rand_r(&seed) % names;
    for (*out = 0; n--;)
        strcat(out, name[rand_r(&seed) % 2]);
}

/* One change in the tree of random paths; many are refused. */
static inline void change_at_random(int fd, uint64_t seq) {
    char path[64], to[64];
    random_path(path, 6);
    random_path(to, 4);
    switch (rand_r(&seed) % 8) {
    case 0:
        one(fd, seq, CRAIL_OP_RENAME, path, to, (uint32_t)strlen(to));
        return;
    case 1:
        one(fd, seq, CRAIL_OP_RMTREE, path, NULL, 0);
        return;
    case 2:
        one(fd, seq, CRAIL_OP_REMOVE, path, NULL, 0);
        return;
    case 3:
        one(fd, seq, CRAIL_OP_MKDIR, path, NULL, 0);
        return;
    default:
        put(fd, seq, path, "v");
    }
}

/* ---- looking inside ------------------------------------------------------ */

static inline int count_spots(crail_namenode *in, void *out) {
    *(uint64_t *)out = in->waits.spots.count + (in->waits.root != NULL);
    return 0;
}

/* How many paths, and places where paths part, the namenode remembers. */
static inline uint64_t spots(void) {
    uint64_t n;
    CHECK(crail_rpc_post(nn, count_spots, &n) == 0);
    return n;
}

static inline int are_pending(crail_namenode *in, void *out) {
    *(bool *)out = crail_rpc_waits_pending(in);
    return 0;
}

/* Until rechecks and tries, which go in slices, are over. */
static inline void until_told(void) {
    uint64_t from = crail_clock_ns();
    for (bool pending = true; pending;) {
        CHECK(crail_rpc_post(nn, are_pending, &pending) == 0);
        CHECK(crail_clock_ns() - from < 10000000000u);
    }
}

/* "/x/x..." of `names` names. Its length. */
static inline uint32_t deep_path(char *out, uint32_t names) {
    for (uint32_t i = 0; i < names; i++)
        memcpy(out + 2 * i, "/x", 3);
    return 2 * names;
}

/* ---- running ------------------------------------------------------------- */

/* As run_tests(), but the program's argument is the seed, and what is to be seen in slices is tried again. */
static inline int run_seeded(const struct rpc_test *tests, size_t n, int argc, char **argv) {
    seed = argc > 1 ? (unsigned)atoi(argv[1]) : (unsigned)crail_clock_ns();
    printf("seed %u\n", seed);
    tuning = crail_rpc_tuning_default;
    for (size_t i = 0; i < 2 * n; i++) {
        int left = 8; /* what is one step is one every time */
        with_rings = i >= n;
        do {
            printf("%s%s\n", tests[i % n].name, with_rings ? ", with rings" : "");
            fflush(stdout);
            whole = false;
            tests[i % n].run();
        } while (whole && --left);
        CHECK(!whole);
    }
    crail_buf_free(&Q.b);
    crail_buf_free(&R.b);
    printf("all passed\n");
    return 0;
}

#endif
