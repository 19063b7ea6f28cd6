/* The ring: bytes in order through any sizes, no lost wake-up, and a peer that is not believed.
 * sources: base */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/ring.h"

#define CLAIM(text) printf("  %s\n", text)

/* Both ends in one mapping, so that the thread sanitizer sees that they are the same memory. */
struct pair {
    struct crail_ring server, client;
};

static struct pair pair_open(void) {
    struct pair p;
    int fd = crail_ring_create();
    assert(fd >= 0);
    assert(crail_ring_open(&p.server, fd, true) == 0);
    close(fd);
    p.client = p.server;
    p.client.in = p.server.out, p.client.out = p.server.in;
    p.client.in_bytes = p.server.out_bytes, p.client.out_bytes = p.server.in_bytes;
    return p;
}

/* ---- a stream between two threads ------------------------------------------ */

#define STREAM_BYTES (24u << 20)

struct end {
    struct crail_ring *ring;
    bool naps; /* in the ring; else sleeps on its bell */
    int bell, peers_bell;
    unsigned seed;
};

static uint8_t expected(uint64_t at) {
    return (uint8_t)(at * 31 + at / 257);
}

static void rest(struct end *e, bool for_room) {
    if (e->naps) {
        int rc = for_room ? crail_ring_nap_for_room(e->ring) : crail_ring_nap_for_bytes(e->ring);
        assert(rc == 0 || rc == -EAGAIN || rc == -EINTR);
        return;
    }
    if (!(for_room ? crail_ring_sleep_for_room(e->ring) : crail_ring_sleep_for_bytes(e->ring)))
        return;
    struct pollfd p = {.fd = e->bell, .events = POLLIN};
    eventfd_t times;
    assert(poll(&p, 1, 60000) == 1); /* a wake-up that is lost ends the test */
    eventfd_read(e->bell, &times);
}

static void *writes(void *arg) {
    struct end *e = arg;
    uint8_t *piece = malloc(2 * CRAIL_RING_BYTES);
    for (uint64_t at = 0; at < STREAM_BYTES;) {
        size_t n = 1 + (size_t)rand_r(&e->seed) % (rand_r(&e->seed) % 8 ? 300 : 2 * CRAIL_RING_BYTES);
        n = n < STREAM_BYTES - at ? n : STREAM_BYTES - at;
        for (size_t i = 0; i < n; i++)
            piece[i] = expected(at + i);
        for (size_t sent = 0; sent < n;) {
            ssize_t k = crail_ring_write(e->ring, piece + sent, n - sent);
            assert(k >= 0);
            if (k && crail_ring_wake_reader(e->ring))
                eventfd_write(e->peers_bell, 1);
            if (!k)
                rest(e, true);
            sent += (size_t)k;
        }
        at += n;
    }
    free(piece);
    return NULL;
}

static void *reads(void *arg) {
    struct end *e = arg;
    uint8_t *piece = malloc(2 * CRAIL_RING_BYTES);
    for (uint64_t at = 0; at < STREAM_BYTES;) {
        size_t n = 1 + (size_t)rand_r(&e->seed) % (rand_r(&e->seed) % 8 ? 300 : 2 * CRAIL_RING_BYTES);
        ssize_t k = crail_ring_read(e->ring, piece, n);
        assert(k >= 0);
        if (k && crail_ring_wake_writer(e->ring))
            eventfd_write(e->peers_bell, 1);
        if (!k)
            rest(e, false);
        for (ssize_t i = 0; i < k; i++)
            assert(piece[i] == expected(at + (uint64_t)i));
        at += (uint64_t)k;
    }
    free(piece);
    return NULL;
}

static void stream(bool writer_naps, bool reader_naps) {
    struct pair p = pair_open();
    pthread_t thread;
    int bells[2] = {eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK)};
    struct end w = {&p.client, writer_naps, bells[0], bells[1], 1}, r = {&p.server, reader_naps, bells[1], bells[0], 2};
    assert(pthread_create(&thread, NULL, reads, &r) == 0);
    writes(&w);
    pthread_join(thread, NULL);
    assert(crail_ring_is_drained(&p.client) && !crail_ring_readable(&p.server));
    close(bells[0]), close(bells[1]);
    crail_ring_close(&p.server);
}

static void bytes_arrive_in_order_and_nobody_sleeps_for_ever(void) {
    stream(false, false);
    stream(true, true);
    stream(true, false);
    CLAIM("pieces of any size arrive in order; ends that sleep or nap are woken");
}

/* ---- one round trip after another: each end sleeps for each message --------- */

#define TURNS 20000

static void *answers(void *arg) {
    struct end *e = arg;
    for (uint32_t i = 0; i < TURNS; i++) {
        uint32_t got;
        while (crail_ring_read(e->ring, &got, sizeof got) == 0)
            rest(e, false);
        assert(got == i);
        assert(crail_ring_write(e->ring, &got, sizeof got) == sizeof got);
        if (crail_ring_wake_reader(e->ring))
            eventfd_write(e->peers_bell, 1);
    }
    return NULL;
}

static void every_message_wakes(void) {
    struct pair p = pair_open();
    pthread_t thread;
    int bells[2] = {eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK)};
    struct end c = {&p.client, false, bells[0], bells[1], 1}, s = {&p.server, false, bells[1], bells[0], 2};
    assert(pthread_create(&thread, NULL, answers, &s) == 0);
    for (uint32_t i = 0, got; i < TURNS; i++) {
        assert(crail_ring_write(c.ring, &i, sizeof i) == sizeof i);
        if (crail_ring_wake_reader(c.ring))
            eventfd_write(c.peers_bell, 1);
        while (crail_ring_read(c.ring, &got, sizeof got) == 0)
            rest(&c, false);
        assert(got == i);
    }
    pthread_join(thread, NULL);
    close(bells[0]), close(bells[1]);
    crail_ring_close(&p.server);
    CLAIM("of two ends that sleep at every turn none misses the other's message");
}

/* ---- a full ring ------------------------------------------------------------- */

static void a_full_ring_takes_no_more(void) {
    struct pair p = pair_open();
    static uint8_t bytes[CRAIL_RING_BYTES + 100];
    assert(crail_ring_write(&p.client, bytes, 100) == 100);
    assert(crail_ring_read(&p.server, bytes, sizeof bytes) == 100);
    assert(crail_ring_write(&p.client, bytes, sizeof bytes) == CRAIL_RING_BYTES);
    assert(crail_ring_write(&p.client, bytes, 1) == 0 && !crail_ring_is_drained(&p.client));
    assert(crail_ring_nap_for_room(&p.client) == -EAGAIN);
    assert(crail_ring_sleep_for_room(&p.client));
    assert(crail_ring_read(&p.server, bytes, 1) == 1);
    assert(crail_ring_wake_writer(&p.server) && !crail_ring_wake_writer(&p.server));
    assert(!crail_ring_sleep_for_room(&p.client) && !crail_ring_wake_writer(&p.server));
    assert(crail_ring_write(&p.client, bytes, 2) == 1);
    assert(crail_ring_nap_for_bytes(&p.client) == -EAGAIN && !crail_ring_wake_reader(&p.server));
    crail_ring_close(&p.server);
    CLAIM("a full ring takes no more, an empty one gives nothing; one sleep is worth one ring");
}

/* ---- the peer is not believed ------------------------------------------------ */

static void a_peer_that_lies_breaks_its_stream_only(void) {
    static const uint64_t lies[] = {CRAIL_RING_BYTES + 1, 1ull << 40, UINT64_MAX, UINT64_MAX - CRAIL_RING_BYTES};
    uint8_t bytes[256];
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct pair p = pair_open();
        atomic_store(&p.server.in->written, lies[i]);
        assert(crail_ring_readable(&p.server) && crail_ring_read(&p.server, bytes, sizeof bytes) == -EPROTO);
        assert(!crail_ring_sleep_for_bytes(&p.server));
        atomic_store(&p.server.in->taken, lies[i]); /* ours, in his hands: nobody reads it back */
        atomic_store(&p.server.in->written, 8);
        assert(crail_ring_read(&p.server, bytes, sizeof bytes) == 8);
        atomic_store(&p.server.out->taken, 1);
        static uint8_t much[CRAIL_RING_BYTES];
        assert(crail_ring_write(&p.server, much, sizeof much) == CRAIL_RING_BYTES);
        atomic_store(&p.server.out->taken, p.server.written + 1 + lies[i] / 2);
        assert(crail_ring_write(&p.server, bytes, 1) == -EPROTO);
        assert(crail_ring_write(&p.server, bytes, 1) == -EPROTO);
        assert(!crail_ring_sleep_for_room(&p.server));
        crail_ring_close(&p.server);
    }
    CLAIM("counts that make no sense are an error, and own counts are never read back");
}

static void memory_is_checked_and_sealed(void) {
    struct crail_ring r;
    int fd = crail_ring_create(), loose = memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert(fd >= 0 && loose >= 0 && ftruncate(loose, sizeof(struct crail_ring_memory)) == 0);
    assert(ftruncate(fd, 4096) < 0 && errno == EPERM);
    assert(ftruncate(fd, 1 << 30) < 0 && errno == EPERM);
    assert(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
    assert(crail_ring_open(&r, loose, false) == -EPROTO);
    assert(fcntl(loose, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    assert(crail_ring_open(&r, loose, false) == -EPROTO); /* no magic */
    assert(crail_ring_open(&r, 0x7ffffff, false) == -EBADF);
    assert(crail_ring_open(&r, fd, false) == 0);
    crail_ring_close(&r);
    crail_ring_close(&r);
    close(fd), close(loose);
    CLAIM("memory that could be cut short is refused, ours cannot be");
}

static void failed_spins_become_rare(void) {
    struct crail_ring_pace p = {0};
    uint32_t spins = 0, waits = 100000;
    for (uint32_t i = 0; i < waits; i++) {
        if (!crail_ring_may_spin(&p))
            continue;
        spins++;
        crail_ring_spun(&p, false);
    }
    assert(spins > 10 && spins < waits / 50);
    while (!crail_ring_may_spin(&p)) {
    }
    for (int i = 0; i < 1000; i++) {
        assert(crail_ring_may_spin(&p));
        crail_ring_spun(&p, true);
    }
    crail_ring_spun(&p, false);
    for (waits = 0; !crail_ring_may_spin(&p); waits++) {
    }
    assert(waits > 0 && waits < 10);
    uint32_t spins_in_bursts = 0, bursts = 1000, burst = 20;
    for (uint32_t i = 0; i < bursts * burst; i++) { /* whoever works in bursts fails once in each */
        if (!crail_ring_may_spin(&p))
            continue;
        spins_in_bursts++;
        crail_ring_spun(&p, i % burst != 0);
    }
    assert(spins_in_bursts > bursts * burst * 3 / 4);
    CLAIM("spins that find nothing become rare; after some that did, one failure costs little");
}

int main(void) {
    a_full_ring_takes_no_more();
    a_peer_that_lies_breaks_its_stream_only();
    memory_is_checked_and_sealed();
    failed_spins_become_rare();
    every_message_wakes();
    bytes_arrive_in_order_and_nobody_sleeps_for_ever();
    return 0;
}
