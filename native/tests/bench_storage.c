/* How close the storage server's TCP path comes to a raw loopback stream, measured in one run: a plain blocking
 * client moves 16 MiB per request through the server's loop; beside it one thread send()s 1 MiB pieces to another
 * that recv()s into a buffer. The two take turns, so that a change of the machine's mood meets both,
 * and client and server sit on two processors: whether the scheduler puts both on one makes more of a difference than
 * all else.
 *
 *   gcc -std=gnu11 -D_GNU_SOURCE -O2 -pthread -Inative/include -Inative/src native/tests/bench_storage.c \
 *       native/src/data/[a-z]*.c native/src/base/[a-z]*.c -o /tmp/bench_storage && /tmp/bench_storage */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/siphash.h"
#include "crail/api.h"
#include "crail/wire.h"

#define MIB (1u << 20)
#define ROUNDS 15
#define REPEATS 16

static const uint8_t mac_key[16] = "bench bench benc";

/* Keeps this thread, and what it starts, on one processor. */
static void stay_on(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof(set), &set); /* with one processor only: as it comes */
}

static void tcp_pair(int *a, int *b) {
    int l = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(at);
    assert(bind(l, (struct sockaddr *)&at, size) == 0 && listen(l, 1) == 0);
    assert(getsockname(l, (struct sockaddr *)&at, &size) == 0);
    *a = socket(AF_INET, SOCK_STREAM, 0);
    assert(connect(*a, (struct sockaddr *)&at, size) == 0);
    *b = accept(l, NULL, NULL);
    assert(*b >= 0);
    close(l);
    int one = 1;
    setsockopt(*a, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(*b, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void send_all(int fd, const void *data, size_t n, size_t piece) {
    for (const uint8_t *p = data; n;) {
        ssize_t k = send(fd, p, n < piece ? n : piece, MSG_NOSIGNAL);
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

struct raw {
    int fd;
    size_t bytes;
    uint8_t *buffer;
};

static void *raw_sender(void *arg) {
    struct raw *r = arg;
    stay_on(1);
    for (int i = 0; i < REPEATS; i++)
        send_all(r->fd, r->buffer, r->bytes, MIB);
    return NULL;
}

static double raw_stream(int a, int b, size_t bytes, uint8_t *from, uint8_t *to) {
    struct raw r = {a, bytes, from};
    pthread_t t;
    uint64_t begin = crail_clock_ns();
    pthread_create(&t, NULL, raw_sender, &r);
    for (int i = 0; i < REPEATS; i++)
        recv_all(b, to, bytes);
    double s = (double)(crail_clock_ns() - begin) * 1e-9;
    pthread_join(t, NULL);
    return (double)bytes * REPEATS / s;
}

static double transfer(int fd, uint16_t code, struct crail_extent e, size_t bytes, uint8_t *buffer, int repeats) {
    e.key = crail_extent_key(mac_key, &e, code == CRAIL_DATA_READ ? CRAIL_RIGHT_READ : CRAIL_RIGHT_WRITE);
    uint64_t begin = crail_clock_ns();
    for (int i = 0; i < repeats; i++) {
        struct crail_data_request q = {.magic = CRAIL_DATA_MAGIC, .code = code, .extent = e, .length = bytes};
        struct crail_data_reply reply;
        size_t body = code == CRAIL_DATA_WRITE ? bytes : 0, first = body < MIB ? body : MIB;
        struct iovec part[2] = {{&q, sizeof(q)}, {buffer, first}};
        struct msghdr m = {.msg_iov = part, .msg_iovlen = 2};
        ssize_t n = sendmsg(fd, &m, MSG_NOSIGNAL);
        assert(n >= (ssize_t)sizeof(q));
        send_all(fd, buffer + n - sizeof(q), body - ((size_t)n - sizeof(q)), MIB);
        recv_all(fd, &reply, sizeof(reply));
        assert(reply.status == 0);
        if (code == CRAIL_DATA_READ)
            recv_all(fd, buffer, bytes);
    }
    return (double)bytes * repeats / ((double)(crail_clock_ns() - begin) * 1e-9);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n) {
    qsort(v, (size_t)n, sizeof(*v), compare);
    return v[n / 2];
}

int main(void) {
    size_t bytes = 16 * MIB, granules = bytes / CRAIL_GRANULE;
    int memory = memfd_create("region", 0), generations = memfd_create("gen", 0);
    assert(ftruncate(memory, (off_t)bytes) == 0 && ftruncate(generations, (off_t)(granules * 8)) == 0);
    crail_storage *s;
    stay_on(1);
    assert(crail_storage_start(&s) == 0);
    stay_on(0);
    assert(crail_storage_region_add(s, memory, generations, (uint32_t)granules, 1) == 0);
    assert(crail_storage_identity(s, 1, mac_key) == 0);
    int a, b, raw_a, raw_b;
    tcp_pair(&a, &b);
    tcp_pair(&raw_a, &raw_b);
    assert(crail_storage_data_attach(s, b) == 0);
    uint8_t *from = malloc(bytes), *to = malloc(bytes);
    memset(from, 1, bytes), memset(to, 2, bytes);
    struct crail_extent e = {.server = 1, .granules = (uint32_t)granules};

    double raw[ROUNDS], read[ROUNDS], write[ROUNDS], read_part[ROUNDS], write_part[ROUNDS];
    raw_stream(raw_a, raw_b, bytes, from, to);
    transfer(a, CRAIL_DATA_WRITE, e, bytes, from, 4);
    for (int i = 0; i < ROUNDS; i++) {
        raw[i] = raw_stream(raw_a, raw_b, bytes, from, to);
        read[i] = transfer(a, CRAIL_DATA_READ, e, bytes, to, REPEATS);
        write[i] = transfer(a, CRAIL_DATA_WRITE, e, bytes, from, REPEATS);
        read_part[i] = read[i] / raw[i], write_part[i] = write[i] / raw[i];
    }
    double m = median(raw, ROUNDS);
    printf("raw   %6.2f GB/s  (%.2f .. %.2f)\n", m / 1e9, raw[0] / 1e9, raw[ROUNDS - 1] / 1e9);
    double r = median(read, ROUNDS), w = median(write, ROUNDS);
    printf("read  %6.2f GB/s  (%.2f .. %.2f)  x %.2f\n", r / 1e9, read[0] / 1e9, read[ROUNDS - 1] / 1e9,
           median(read_part, ROUNDS));
    printf("write %6.2f GB/s  (%.2f .. %.2f)  x %.2f\n", w / 1e9, write[0] / 1e9, write[ROUNDS - 1] / 1e9,
           median(write_part, ROUNDS));

    e.granules = 16;
    r = transfer(a, CRAIL_DATA_READ, e, 16384, to, 20000), w = transfer(a, CRAIL_DATA_WRITE, e, 16384, from, 20000);
    printf("16 KiB round trips: read %.1f us, write %.1f us\n", 16384e6 / r, 16384e6 / w);
    crail_storage_stats st;
    crail_storage_stats_read(s, &st);
    printf("loop cpu %.2f s\n", (double)st.loop_cpu_ns * 1e-9);
    close(a), close(raw_a), close(raw_b);
    crail_storage_stop(s);
    free(from), free(to);
    return 0;
}
