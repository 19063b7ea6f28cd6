/* What rings add to the namenode's loop: peers that lie in them, bells for nothing, streams that are waited for awake.
 * sources: rpc meta base api/api_namenode.c */
#include "rpc_kit.h"

static void lie_written(struct end *e) {
    atomic_store(&e->ring.memory->requests.written, e->ring.written + CRAIL_RING_BYTES + 1);
}
static void lie_written_back(struct end *e) {
    atomic_store(&e->ring.memory->requests.written, e->ring.written - 1);
}
static void lie_taken(struct end *e) {
    atomic_store(&e->ring.memory->replies.taken, e->ring.taken + 1000000);
}
static void lie_bytes(struct end *e) {
    memset(e->ring.memory->request_bytes, 0xa5, CRAIL_RING_BYTES);
    atomic_store(&e->ring.memory->requests.written, e->ring.written + 64);
}
static void lie_everything(struct end *e) {
    unsigned seed = 7;
    volatile uint8_t *bytes = (void *)e->ring.memory;
    for (size_t i = 0; i < sizeof *e->ring.memory; i++)
        bytes[i] = (uint8_t)rand_r(&seed);
}

static void test_a_lying_ring_drops_its_client_only(void) {
    void (*lies[])(struct end *) = {lie_written, lie_written_back, lie_taken, lie_bytes, lie_everything};
    with_rings = true;
    start(60000);
    static uint8_t value[CRAIL_INLINE_MAX];
    int honest = client(1);
    CHECK(one(honest, 1, CRAIL_OP_PUT, "/v", value, sizeof value) == 0);
    for (uint64_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        int liar = client(10 + i);
        CHECK(one(liar, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
        frame(&Q, 9, 0);
        for (int k = 0; k < 100; k++) /* a reply longer than the ring: it has to believe what we have taken */
            op(&Q, CRAIL_OP_GET, "/v", NULL, 0);
        if (lies[i] == lie_taken)
            send_all(liar, Q.b.data, Q.b.len);
        lies[i](ring_of(liar));
        eventfd_write(ring_of(liar)->bell, 1);
        CHECK(closed(liar));
        close(liar);
        CHECK(one(honest, 0, CRAIL_OP_GET, "/v", NULL, 0) == 0);
    }
    CHECK(stats().rings == 1 && stats().lanes == 1 && stats().protocol_errors >= 4);
    close(honest);
    end();
    with_rings = false;
}

static void test_the_socket_beside_a_ring_is_silent(void) {
    with_rings = true;
    start(60000);
    int fd = client(1), other = client(2);
    CHECK(stats().rings == 2);
    for (int i = 0; i < 1000; i++) /* bells for nothing */
        eventfd_write(ring_of(other)->bell, 1u << 30);
    CHECK(send(fd, "x", 1, 0) == 1);
    CHECK(closed(fd));
    CHECK(one(other, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    CHECK(stats().rings == 1 && stats().protocol_errors == 1);
    close(fd);
    close(other);
    end();
    with_rings = false;
}

/* In a dense stream the loop waits awake; others are looked at all the same, and it sleeps when the stream ends. */
static void test_a_dense_stream_starves_nobody(void) {
    with_rings = true;
    start(60000);
    int dense = client(1);
    with_rings = false;
    int sparse = client(2);
    CHECK(one(dense, 1, CRAIL_OP_PUT, "/v", "v", 1) == 0);
    atomic_store(&ring_of(dense)->ring.memory->follows_ns, CRAIL_RING_SPIN_NS);
    for (int i = 0; i < 20000; i++) {
        CHECK(one(dense, 0, CRAIL_OP_GET, "/v", NULL, 0) == 0);
        if (i % 1000 == 0)
            CHECK(one(sparse, 0, CRAIL_OP_GET, "/v", NULL, 0) == 0);
    }
    usleep(1000);
    uint64_t before = stats().loop_cpu_ns;
    usleep(200000);
    CHECK(stats().loop_cpu_ns - before < 20000000);
    close(dense);
    close(sparse);
    end();
}

/* Those beyond go to sleep at once, and are rung. */
static void test_more_rings_than_are_looked_at_all_get_answers(void) {
    enum { CLIENTS = CRAIL_RPC_AWAKE_MAX + 16 };
    static int fds[CLIENTS];
    with_rings = true;
    start(60000);
    for (uint64_t i = 0; i < CLIENTS; i++) {
        fds[i] = client(i + 1);
        atomic_store(&ring_of(fds[i])->ring.memory->follows_ns, CRAIL_RING_SPIN_NS_MAX);
    }
    for (uint64_t round = 0; round < 200; round++) {
        for (int i = 0; i < CLIENTS; i++) {
            frame(&Q, round, 0);
            op(&Q, CRAIL_OP_PING, "", NULL, 0);
            send_all(fds[i], Q.b.data, Q.b.len);
        }
        for (int i = 0; i < CLIENTS; i++)
            CHECK(take(fds[i], &R) && R.head.id == round);
    }
    for (int i = 0; i < CLIENTS; i++)
        close(fds[i]);
    end();
    with_rings = false;
}

int main(int argc, char **argv) {
    static const struct rpc_test tests[] = {
        T(test_a_lying_ring_drops_its_client_only),
        T(test_the_socket_beside_a_ring_is_silent),
        T(test_a_dense_stream_starves_nobody),
        T(test_more_rings_than_are_looked_at_all_get_answers),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
