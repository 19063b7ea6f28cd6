/* Which rings are awake, and what the loop spins for: its turns are taken here by hand, one after the other.
 * sources: rpc meta base api/api_namenode.c */
#include <pthread.h>
#include <sys/epoll.h>

/* No thread of its own, and a look never waits: `sleeps` counts those that would have. */
static int sleeps;

static int epoll_look(int fd, struct epoll_event *events, int max, int ms) {
    sleeps += ms != 0;
    return epoll_wait(fd, events, max, 0);
}
static int no_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg) {
    (void)thread, (void)attributes, (void)run, (void)arg;
    return 0;
}
static int no_join(pthread_t thread, void **result) {
    (void)thread, (void)result;
    return 0;
}

#define epoll_wait epoll_look
#define pthread_create no_thread
#define pthread_join no_join
#include "rpc/loop.c"
#undef epoll_wait
#undef pthread_create
#undef pthread_join

#include "rpc_kit.h"

static uint64_t ids;

static void begin(void) {
    with_rings = true;
    start(60000);
    crail_rpc_mailbox_end(nn); /* what is asked of the loop is done at once */
}

static void finish(void) {
    CHECK(crail_rpc_rings_check(nn));
    end();
    with_rings = false;
}

static void ask(int fd, uint32_t follows_ns) {
    atomic_store(&ring_of(fd)->ring.memory->follows_ns, follows_ns);
    frame(&Q, ++ids, 0);
    op(&Q, CRAIL_OP_PING, "", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
}

static bool is_asleep(int fd) {
    return atomic_load(&ring_of(fd)->ring.memory->requests.reader_sleeps) != 0;
}

/* The reply, however many turns it takes. */
static bool hear(int fd) {
    while (!crail_ring_readable(&ring_of(fd)->ring))
        turn(nn);
    return take(fd, &R);
}

/* Takes turns until the loop would sleep. */
static void rest(void) {
    for (int before = sleeps; sleeps == before;)
        turn(nn);
}

static void test_a_ring_is_awake_until_the_loop_sleeps(void) {
    begin();
    int a = client(1), b = client(2);
    rest();
    CHECK(is_asleep(a) && is_asleep(b));
    ask(a, 0);
    turn(nn); /* the one in which it was rung */
    CHECK(hear(a) && !is_asleep(a) && is_asleep(b) && nn->awake_count == 1);
    ask(a, 0); /* no bell: the loop looks for itself */
    turn(nn);
    CHECK(hear(a) && R.head.id == ids);
    rest();
    CHECK(is_asleep(a) && nn->awake_count == 0);
    close(a);
    close(b);
    finish();
}

#define TRIES 1000 /* a promise is short: it may be over before we get our next turn */

/* The loop spins for this client after its request. */
static void spin_for(int fd) {
    for (int i = 0; i < TRIES; i++) {
        nn->pace = (struct crail_ring_pace){0};
        ask(fd, CRAIL_RING_SPIN_NS_MAX);
        turn(nn);
        CHECK(hear(fd));
        int before = sleeps;
        turn(nn);
        if (nn->spin_until && sleeps == before)
            return;
        rest();
    }
    CHECK(!"never in so many tries");
}

static void test_a_promise_is_waited_for_awake_and_expires(void) {
    begin();
    int a = client(1), b = client(2);
    rest();
    spin_for(a);
    rest();
    CHECK(!nn->spin_until && is_asleep(a) && nn->pace.skip);
    spin_for(a); /* the last that it says; others go on without a promise */
    for (uint64_t until = crail_clock_ns() + 2 * CRAIL_RING_SPIN_NS_MAX; crail_clock_ns() < until;) {
    }
    ask(b, 0);
    turn(nn);
    CHECK(hear(b));
    int before = sleeps;
    turn(nn);
    turn(nn);
    CHECK(sleeps > before && !nn->spin_until);
    close(a);
    close(b);
    finish();
}

/* Does `a` go to sleep while the loop spins for `b` all the time? */
static bool dozes(int a, int b) {
    ask(a, 0);
    ask(b, CRAIL_RING_SPIN_NS_MAX);
    turn(nn);
    CHECK(hear(a) && hear(b));
    for (int before = sleeps; !is_asleep(a);) {
        nn->pace = (struct crail_ring_pace){0};
        ask(b, CRAIL_RING_SPIN_NS_MAX);
        CHECK(hear(b));
        turn(nn);
        if (sleeps != before)
            return false;
    }
    return true;
}

static void test_whoever_is_idle_for_long_goes_to_sleep_though_the_loop_does_not(void) {
    begin();
    int a = client(1), b = client(2), tries = 0;
    do
        rest();
    while (!dozes(a, b) && ++tries < TRIES);
    CHECK(tries < TRIES);
    ask(a, 0);
    rest();
    CHECK(hear(a));
    close(a);
    close(b);
    finish();
}

static void test_nobody_spins_for_a_client_that_is_gone(void) {
    begin();
    int a = client(1), tries = 0;
    do {
        rest();
        spin_for(a);
        close(a);
        while (nn->awake_count && nn->spin_until) /* it is heard of at the next look at everybody */
            turn(nn);
        rest();
        CHECK(nn->awake_count == 0 && !nn->spin_until);
        a = client(2 + (uint64_t)tries);
    } while (nn->pace.skip && ++tries < TRIES); /* else the spin was over before that */
    CHECK(tries < TRIES);
    close(a);
    finish();
}

/* A reply that overtakes nothing makes its lane listen again while its ring is awake. */
static void test_late_replies_leave_the_count_of_those_awake_right(void) {
    begin();
    int a = client(1), b = client(2);
    for (uint64_t i = 1; i < 2 * CRAIL_RPC_AWAKE_MAX; i++) {
        frame(&Q, ++ids, 0);
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_STAT, .flags = CRAIL_OPF_WAIT, .count = 60000}, "/k", NULL, 0);
        send_all(a, Q.b.data, Q.b.len);
        turn(nn);
        frame(&Q, ++ids, 2 * i - 1);
        op(&Q, CRAIL_OP_PUT, "/k", "x", 1);
        send_all(b, Q.b.data, Q.b.len);
        CHECK(hear(b) && R.head.id == ids);
        CHECK(hear(a) && R.head.id == ids - 1 && crail_rpc_rings_check(nn));
        frame(&Q, ++ids, 2 * i);
        op(&Q, CRAIL_OP_REMOVE, "/k", NULL, 0);
        send_all(b, Q.b.data, Q.b.len);
        CHECK(hear(b));
    }
    rest();
    CHECK(nn->awake_count == 0 && is_asleep(a) && is_asleep(b));
    close(a);
    close(b);
    finish();
}

static void test_looks_that_lost_the_core_count_as_failed(void) {
    begin();
    int a = client(1);
    rest();
    ask(a, CRAIL_RING_SPIN_NS_MAX);
    turn(nn);
    CHECK(hear(a) && nn->awake_count == 1);
    uint64_t by = CRAIL_LIST_OF(nn->awake.next, struct crail_rpc_ring, awake)->follows_by;
    CHECK(crail_rpc_rings_spin(nn, false, by - 1, false) && nn->spin_until == by);
    CHECK(!crail_rpc_rings_spin(nn, true, by - 1, true));
    CHECK(!nn->spin_until && nn->pace.skip);
    close(a);
    finish();
}

int main(int argc, char **argv) {
    static const struct rpc_test tests[] = {
        T(test_a_ring_is_awake_until_the_loop_sleeps),
        T(test_a_promise_is_waited_for_awake_and_expires),
        T(test_whoever_is_idle_for_long_goes_to_sleep_though_the_loop_does_not),
        T(test_nobody_spins_for_a_client_that_is_gone),
        T(test_late_replies_leave_the_count_of_those_awake_right),
        T(test_looks_that_lost_the_core_count_as_failed),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
