/* What the fuzz targets share. An input is a script, read byte by byte: what it means is each target's, and whatever
 * it is, it has a meaning, so that a mutation of a good input is a good input too.
 *
 * Nothing here depends on anything but the input: the clock stands still but for what the script and each look at it
 * add, and a socket takes and gives as many bytes as the script's mood says. The program is linked with --wrap for the
 * calls below (native/tests/run.py has the list), so what is tested is the very code that serves. */
#ifndef CRAIL_FUZZ_H
#define CRAIL_FUZZ_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x)                                                    \
    do {                                                            \
        if (!(x)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
            abort();                                                \
        }                                                           \
    } while (0)

#define FUZZ_BYTES_MAX 8192u /* of one input: longer ones say nothing new */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- the script -------------------------------------------------------------- */

struct fuzz_input {
    const uint8_t *at, *end;
};

/* Zeros behind the end. */
static inline uint64_t fuzz_number(struct fuzz_input *in, int bytes) {
    uint64_t n = 0;
    for (int i = 0; i < bytes && in->at < in->end; i++)
        n |= (uint64_t)*in->at++ << (8 * i);
    return n;
}

static inline uint8_t fuzz_u8(struct fuzz_input *in) {
    return (uint8_t)fuzz_number(in, 1);
}
static inline uint16_t fuzz_u16(struct fuzz_input *in) {
    return (uint16_t)fuzz_number(in, 2);
}

/* Up to `n` bytes of the script where they lie. */
static inline const uint8_t *fuzz_bytes(struct fuzz_input *in, size_t n, size_t *got) {
    const uint8_t *p = in->at;
    *got = (size_t)(in->end - in->at) < n ? (size_t)(in->end - in->at) : n;
    in->at += *got;
    return p;
}

/* A number that is often small, often near a power of two, and sometimes anything. */
static inline uint64_t fuzz_value(struct fuzz_input *in) {
    uint8_t how = fuzz_u8(in);
    if (how < 192)
        return how % 96;
    if (how < 240)
        return ((uint64_t)1 << ((how - 192) * 4 % 64)) + (uint64_t)(how % 3) - 1;
    return fuzz_number(in, 8);
}

/* ---- the clock ----------------------------------------------------------------- */

#define FUZZ_LOOK_NS 200u /* passes with each look at the clock */

static bool fuzz_runs; /* else the calls below are those of the system */
static uint64_t fuzz_now_ns;

int __real_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t) {
    if (!fuzz_runs)
        return __real_clock_gettime(clock, t);
    fuzz_now_ns += FUZZ_LOOK_NS;
    uint64_t now = fuzz_now_ns + (clock == CLOCK_REALTIME ? 700000000000000000u : 0);
    *t = (struct timespec){.tv_sec = (time_t)(now / 1000000000u), .tv_nsec = (long)(now % 1000000000u)};
    return 0;
}

ssize_t __real_getrandom(void *to, size_t n, unsigned flags);
ssize_t __wrap_getrandom(void *to, size_t n, unsigned flags);
ssize_t __wrap_getrandom(void *to, size_t n, unsigned flags) {
    if (!fuzz_runs)
        return __real_getrandom(to, n, flags);
    memset(to, 0x5a, n);
    return (ssize_t)n;
}

/* ---- sockets ------------------------------------------------------------------- */

static uint64_t fuzz_mood; /* 0: every call moves all that it can */

enum fuzz_whim { FUZZ_ALL, FUZZ_SOME, FUZZ_INTERRUPTED, FUZZ_NOT_NOW };

/* How the next call on a socket goes; FUZZ_SOME: *n was made smaller. */
static inline enum fuzz_whim fuzz_whim(size_t *n) {
    if (!fuzz_runs || !fuzz_mood)
        return FUZZ_ALL;
    fuzz_mood = fuzz_mood * 6364136223846793005u + 1442695040888963407u;
    uint32_t r = (uint32_t)(fuzz_mood >> 33);
    if (r % 16 == 1)
        return FUZZ_INTERRUPTED;
    if (r % 16 == 2)
        return FUZZ_NOT_NOW;
    if (r % 16 < 8 && *n > 1) {
        *n = 1 + (r >> 8) % (*n < 64 ? *n - 1 : 64);
        return FUZZ_SOME;
    }
    return FUZZ_ALL;
}

static inline bool fuzz_refuses(size_t *n) {
    enum fuzz_whim whim = fuzz_whim(n);
    if (whim == FUZZ_INTERRUPTED)
        errno = EINTR;
    else if (whim == FUZZ_NOT_NOW)
        errno = EAGAIN;
    return whim == FUZZ_INTERRUPTED || whim == FUZZ_NOT_NOW;
}

ssize_t __real_recv(int fd, void *to, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *to, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *to, size_t n, int flags) {
    return fuzz_refuses(&n) ? -1 : __real_recv(fd, to, n, flags);
}

ssize_t __real_send(int fd, const void *from, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *from, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *from, size_t n, int flags) {
    return fuzz_refuses(&n) ? -1 : __real_send(fd, from, n, flags);
}

ssize_t __real_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags) {
    size_t n = m->msg_iovlen ? m->msg_iov[0].iov_len : 0, all = n;
    if (fuzz_refuses(&n))
        return -1;
    if (n == all)
        return __real_sendmsg(fd, m, flags);
    struct iovec part = {m->msg_iov[0].iov_base, n};
    struct msghdr less = {.msg_iov = &part, .msg_iovlen = 1};
    return __real_sendmsg(fd, &less, flags);
}

/* A loop that would sleep sees at once that there is nothing. */
int __real_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms) {
    return __real_epoll_wait(fd, events, max, fuzz_runs ? 0 : timeout_ms);
}

/* The driver's own side: as much as the socket takes, without moods. False: the other side is gone, or full. */
static inline bool fuzz_say(int fd, const void *data, size_t n) {
    return fd >= 0 && __real_send(fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)n;
}

static inline void fuzz_pair(int pair[2]) {
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
}

/* ---- one input ------------------------------------------------------------------- */

static int fuzz_fd_first; /* the lowest descriptor that was free */

static inline int fuzz_fd_free(void) {
    int fd = dup(STDERR_FILENO);
    CHECK(fd >= 0);
    close(fd);
    return fd;
}

/* The first two bytes are the sockets' mood. */
static inline struct fuzz_input fuzz_begin(const uint8_t *data, size_t size) {
    struct fuzz_input in = {data, data + (size < FUZZ_BYTES_MAX ? size : FUZZ_BYTES_MAX)};
    fuzz_fd_first = fuzz_fd_free();
    fuzz_now_ns = 1000000000000000000u;
    fuzz_mood = fuzz_u16(&in);
    fuzz_runs = true;
    return in;
}

/* Everything is closed and freed: no descriptor may be left (of memory the sanitizer says so). */
static inline int fuzz_end(void) {
    fuzz_runs = false;
    CHECK(fuzz_fd_free() == fuzz_fd_first);
    return 0;
}

#endif
