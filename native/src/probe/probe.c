/* The machine's own limits, for `crailpy bench`: what a round trip, a stream and a memcpy cost here and now, without
 * any store. The bench takes batches of these samples between batches of its own calls.
 *
 * A peer is another process that runs crail_probe_echo_serve() on its end of a connected stream socket; the caller
 * runs crail_probe_round_trips() on the other end. Every request starts with struct head: how many bytes it has and
 * how many are to come back. So one pair of functions measures small round trips and, with sizes of many MiB, the
 * stream in either direction. A handle belongs to one thread at a time; the functions block. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "crail/api.h"
#include "crail/wire.h"

#define PIECE_BYTES (1u << 20)    /* of a stream: what one send() is given */
#define ECHO_BYTES_MIN (1u << 16) /* the peer's buffer before anybody asks for more */
#define TRANSFER_BYTES_MAX (1ull << 30)
#define REPLY_BYTES_MAX (64u << 20) /* of a metadata frame */

struct head {
    uint64_t request_bytes; /* this head included */
    uint64_t reply_bytes;
};
_Static_assert(sizeof(struct head) == 16, "probe head");

struct crail_probe {
    int fd;         /* the caller's; not closed here */
    uint64_t bytes; /* of each buffer */
    uint8_t *out;
    uint8_t *in;
};

struct crail_probe_memory {
    uint64_t bytes; /* of each of the two */
    uint8_t *source;
    uint8_t *target;
    uint64_t at; /* where the next copy begins, in both */
};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Private memory with every page touched, or NULL. */
static uint8_t *touched_memory(uint64_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    memset(p, 0x5a, bytes);
    return p;
}

/* All of it, a piece per call. 0 or -errno. */
static int send_all(int fd, const uint8_t *data, uint64_t bytes) {
    while (bytes) {
        size_t piece = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
        ssize_t n = send(fd, data, piece, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        data += n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

/* At least `bytes_min` of at most `bytes_max`: as many as came, or 0 at a clean end before the first byte, or
 * -errno; -ECONNRESET at an end in the middle. */
static ssize_t receive(int fd, uint8_t *into, uint64_t bytes_min, uint64_t bytes_max) {
    uint64_t got = 0;
    while (got < bytes_min) {
        ssize_t n = recv(fd, into + got, bytes_max - got, 0);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (n == 0)
            return got ? -ECONNRESET : 0;
        got += (uint64_t)n;
    }
    return (ssize_t)got;
}

/* ---- the peer ------------------------------------------------------------- */

/* Makes *buffer have room for `bytes`, keeping its first `keep`. 0 or -ENOMEM. */
static int grow(uint8_t **buffer, uint64_t *have, uint64_t bytes, uint64_t keep) {
    if (bytes <= *have)
        return 0;
    uint8_t *larger = touched_memory(bytes);
    if (!larger)
        return -ENOMEM;
    memcpy(larger, *buffer, keep);
    munmap(*buffer, *have);
    *buffer = larger;
    *have = bytes;
    return 0;
}

static int echo_one(int fd, uint8_t **buffer, uint64_t *have) {
    struct head head;
    ssize_t got = receive(fd, *buffer, sizeof head, *have);
    if (got <= 0)
        return (int)got;
    memcpy(&head, *buffer, sizeof head);
    if (head.request_bytes < sizeof head || head.request_bytes > TRANSFER_BYTES_MAX ||
        head.reply_bytes > TRANSFER_BYTES_MAX || (uint64_t)got > head.request_bytes)
        return -EPROTO;
    uint64_t most = head.request_bytes > head.reply_bytes ? head.request_bytes : head.reply_bytes;
    int rc = grow(buffer, have, most, (uint64_t)got);
    if (rc)
        return rc;
    uint64_t rest = head.request_bytes - (uint64_t)got;
    if (rest) {
        ssize_t more = receive(fd, *buffer + got, rest, rest);
        if (more <= 0)
            return more ? (int)more : -ECONNRESET;
    }
    rc = send_all(fd, *buffer, head.reply_bytes);
    return rc ? rc : 1;
}

int crail_probe_echo_serve(int fd) {
    uint64_t have = ECHO_BYTES_MIN;
    uint8_t *buffer = touched_memory(have);
    if (!buffer)
        return -ENOMEM;
    int rc;
    do {
        rc = echo_one(fd, &buffer, &have);
    } while (rc > 0);
    munmap(buffer, have);
    return rc;
}

/* ---- round trips and streams ---------------------------------------------- */

int crail_probe_open(int fd, uint64_t bytes_max, crail_probe **out) {
    if (fd < 0 || bytes_max < sizeof(struct head) || bytes_max > TRANSFER_BYTES_MAX)
        return -EINVAL;
    crail_probe *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    p->fd = fd;
    p->bytes = bytes_max;
    p->out = touched_memory(bytes_max);
    p->in = touched_memory(bytes_max);
    if (!p->out || !p->in) {
        crail_probe_close(p);
        return -ENOMEM;
    }
    *out = p;
    return 0;
}

void crail_probe_close(crail_probe *p) {
    if (!p)
        return;
    if (p->out)
        munmap(p->out, p->bytes);
    if (p->in)
        munmap(p->in, p->bytes);
    free(p);
}

int crail_probe_round_trips(crail_probe *p, uint64_t request_bytes, uint64_t reply_bytes, uint32_t count,
                            uint64_t *ns) {
    struct head head = {.request_bytes = request_bytes, .reply_bytes = reply_bytes};
    if (!p || !ns || request_bytes < sizeof head || request_bytes > p->bytes || reply_bytes < 1 ||
        reply_bytes > p->bytes)
        return -EINVAL;
    memcpy(p->out, &head, sizeof head);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t begin = now_ns();
        int rc = send_all(p->fd, p->out, request_bytes);
        if (rc)
            return rc;
        ssize_t got = receive(p->fd, p->in, reply_bytes, reply_bytes);
        if (got <= 0)
            return got ? (int)got : -ECONNRESET;
        ns[i] = now_ns() - begin;
    }
    return 0;
}

/* ---- memcpy ---------------------------------------------------------------- */

int crail_probe_memory_open(uint64_t bytes_total, crail_probe_memory **out) {
    if (bytes_total < 2)
        return -EINVAL;
    crail_probe_memory *m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    m->bytes = bytes_total / 2;
    m->source = touched_memory(m->bytes);
    m->target = touched_memory(m->bytes);
    if (!m->source || !m->target) {
        crail_probe_memory_close(m);
        return -ENOMEM;
    }
    *out = m;
    return 0;
}

void crail_probe_memory_close(crail_probe_memory *m) {
    if (!m)
        return;
    if (m->source)
        munmap(m->source, m->bytes);
    if (m->target)
        munmap(m->target, m->bytes);
    free(m);
}

void *crail_probe_memory_source(crail_probe_memory *m) {
    return m->source;
}

void *crail_probe_memory_target(crail_probe_memory *m) {
    return m->target;
}

/* memcpy as a program calls it: size and alignment unknown to the compiler, the result not to be left out. */
__attribute__((noinline)) static void copy(void *target, const void *source, size_t bytes) {
    memcpy(target, source, bytes);
    __asm__ volatile("" ::: "memory");
}

int crail_probe_memory_copies(crail_probe_memory *m, uint64_t bytes, uint64_t span, uint32_t count, uint64_t *ns) {
    if (!m || !ns || bytes < 1 || span < bytes || span > m->bytes)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        if (m->at + bytes > span)
            m->at = 0;
        uint64_t begin = now_ns();
        copy(m->target + m->at, m->source + m->at, bytes);
        ns[i] = now_ns() - begin;
        m->at += bytes;
    }
    return 0;
}

/* ---- a driver for the namenode --------------------------------------------- */

/* Counts the results of one reply that are no success. -EPROTO for a reply that cannot be read. */
static int64_t reply_failures(const uint8_t *reply, uint32_t size, uint32_t count) {
    int64_t failures = 0;
    uint64_t at = sizeof(struct crail_frame);
    for (uint32_t i = 0; i < count; i++) {
        struct crail_result result;
        if (size - at < sizeof result)
            return -EPROTO;
        memcpy(&result, reply + at, sizeof result);
        failures += result.status != 0;
        at += sizeof result;
        if (size - at < result.data_len || result.data_len > REPLY_BYTES_MAX)
            return -EPROTO;
        at += crail_pad8(result.data_len);
        if (at > size)
            return -EPROTO;
    }
    return failures;
}

/* Sends one frame and reads its reply. The failed results in it, or -errno. */
static int64_t exchange(int fd, const uint8_t *request, uint8_t **reply, uint64_t *have) {
    struct crail_frame sent, head;
    memcpy(&sent, request, sizeof sent);
    int rc = send_all(fd, request, sent.size);
    if (rc)
        return rc;
    ssize_t got = receive(fd, *reply, sizeof head, *have);
    if (got <= 0)
        return got ? got : -ECONNRESET;
    memcpy(&head, *reply, sizeof head);
    if (head.magic != CRAIL_FRAME_MAGIC || head.id != sent.id || head.count != sent.count || head.size < sizeof head ||
        head.size > REPLY_BYTES_MAX || (uint64_t)got > head.size)
        return -EPROTO;
    rc = grow(reply, have, head.size, (uint64_t)got);
    if (rc)
        return rc;
    uint64_t rest = head.size - (uint64_t)got;
    if (rest) {
        ssize_t more = receive(fd, *reply + got, rest, rest);
        if (more <= 0)
            return more ? more : -ECONNRESET;
    }
    return reply_failures(*reply, head.size, head.count);
}

int crail_probe_frames(int fd, const void *frames, uint64_t size, uint32_t rounds, uint64_t *operations,
                       uint64_t *failures) {
    uint64_t have = CRAIL_FRAME_BYTES_MAX, done = 0, failed = 0;
    uint8_t *reply = touched_memory(have);
    int rc = 0;
    if (!reply)
        return -ENOMEM;
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint64_t at = 0; at < size;) {
            struct crail_frame head;
            const uint8_t *frame = (const uint8_t *)frames + at;
            if (size - at < sizeof head) {
                rc = -EINVAL;
                goto out;
            }
            memcpy(&head, frame, sizeof head);
            if (head.size < sizeof head || head.size > size - at) {
                rc = -EINVAL;
                goto out;
            }
            int64_t n = exchange(fd, frame, &reply, &have);
            if (n < 0) {
                rc = (int)n;
                goto out;
            }
            failed += (uint64_t)n;
            done += head.count;
            at += head.size;
        }
    }
    *operations = done;
    *failures = failed;
out:
    munmap(reply, have);
    return rc;
}
