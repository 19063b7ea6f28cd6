/* The namenode's loop: exactly once, slices, sessions and their grace, slow readers, many at once.
 * sources: rpc meta base api/api_namenode.c */
#include <stdlib.h>

#include "rpc_kit.h"

/* ---- exactly once -------------------------------------------------------- */

static void test_exactly_once(void) {
    start(1000);
    int fd = client(1);
    CHECK(one(fd, 0, CRAIL_OP_PUT, "/x", "1", 1) == -CRAIL_E_PROTOCOL); /* changes without a number */
    CHECK(one(fd, 2, CRAIL_OP_PUT, "/x", "1", 1) == -CRAIL_E_PROTOCOL); /* a gap */
    CHECK(one(fd, 1, CRAIL_OP_MKDIR, "/d", NULL, 0) == 0);
    frame(&Q, 77, 2);
    op(&Q, CRAIL_OP_MKDIR, "/e", NULL, 0);
    op(&Q, CRAIL_OP_MKDIR, "/e", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0 && result(&R, 1)->status == -CRAIL_E_EXISTS);
    CHECK(!(result(&R, 0)->flags & CRAIL_RESF_REPLAY));
    close(fd);
    fd = attach(1, 0); /* the same again on another connection, under another id */
    head_of(&Q)->id = 78;
    for (int i = 0; i < 2; i++) {
        call(fd, &Q, &R);
        CHECK(result(&R, 0)->status == 0 && result(&R, 1)->status == -CRAIL_E_EXISTS);
        CHECK((result(&R, 0)->flags & CRAIL_RESF_REPLAY) && (result(&R, 1)->flags & CRAIL_RESF_REPLAY));
    }
    CHECK(stats().replays == 2);
    CHECK(one(fd, 2, CRAIL_OP_MKDIR, "/f", NULL, 0) == -CRAIL_E_PROTOCOL); /* not the same request */
    CHECK(one(fd, 1, CRAIL_OP_MKDIR, "/d", NULL, 0) == -CRAIL_E_UNAVAILABLE);
    CHECK(one(fd, 0, CRAIL_OP_STAT, "/f", NULL, 0) == -CRAIL_E_NOT_FOUND);
    int other = attach(1, 1); /* lanes count for themselves */
    CHECK(one(other, 1, CRAIL_OP_MKDIR, "/g", NULL, 0) == 0);
    CHECK(one(fd, 3, CRAIL_OP_MKDIR, "/h", NULL, 0) == 0);
    close(fd);
    close(other);
    end();
}

static void test_a_dying_connection_does_not_stop_a_vector(void) {
    tuning.slice_ns = 1; /* sixteen operations a turn */
    start(5000);
    CHECK(crail_namenode_session_open(nn, 1) == 0);
    char path[32];
    uint64_t replays = 0;
    for (uint64_t seq = 1; seq <= 40; seq++) {
        int fd = attach(1, 0);
        frame(&Q, seq, seq);
        for (int i = 0; i < 1000; i++) {
            snprintf(path, sizeof path, "/s%d/%d", (int)seq, i);
            op_full(&Q, (struct crail_op){.code = CRAIL_OP_PUT, .flags = CRAIL_OPF_IF_ABSENT | CRAIL_OPF_PARENTS}, path,
                    "v", 1);
        }
        send_all(fd, Q.b.data, Q.b.len);
        if (seq % 4)
            usleep((useconds_t)(seq * 20)); /* somewhere in the middle */
        int again;
        if (seq % 2) { /* closed by the client, or replaced while it lives */
            close(fd);
            again = attach(1, 0);
        } else {
            again = attach(1, 0);
            close(fd);
        }
        call(again, &Q, &R);
        for (uint32_t i = 0; i < 1000; i++)
            CHECK(result(&R, i)->status == 0);
        replays += (result(&R, 0)->flags & CRAIL_RESF_REPLAY) != 0;
        close(again);
    }
    CHECK(stats().replays == replays);
    CHECK(stats().files == 40 * 1000);
    printf("  %d of 40 vectors outlived their connection\n", (int)replays);
    end();
}

static uint32_t operations_to_the_clock(uint64_t bytes) {
    uint32_t n = 1;
    for (nn->ops_to_clock = CRAIL_RPC_CLOCK_EVERY; !crail_rpc_time_over(nn, bytes); n++)
        CHECK(n < 1000);
    return n;
}

static void test_large_operations_look_at_the_clock_sooner(void) {
    nn = calloc(1, sizeof *nn); /* its turn was over long ago */
    CHECK(nn);
    CHECK(operations_to_the_clock(64) == CRAIL_RPC_CLOCK_EVERY);
    CHECK(operations_to_the_clock(3 * CRAIL_RPC_OP_BYTES) == CRAIL_RPC_CLOCK_EVERY / 4);
    CHECK(operations_to_the_clock(64 << 10) == 1);
    free(nn);
    nn = NULL;
}

static void test_slices_let_others_through(void) {
    start(5000);
    int heavy = client(1), light = client(2);
    char path[32];
    frame(&Q, 1, 1);
    for (int i = 0; i < 1024; i++) {
        snprintf(path, sizeof path, "/h/%d", i);
        op(&Q, CRAIL_OP_PUT, path, path, sizeof path);
    }
    for (uint64_t seq = 1; seq < 20; seq++) {
        head_of(&Q)->seq = seq;
        send_all(heavy, Q.b.data, Q.b.len);
        CHECK(one(light, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
        CHECK(take(heavy, &R) && R.head.count == 1024);
    }
    printf("  longest turn %.0f us\n", (double)stats().step_ns_max / 1e3);
    close(heavy);
    close(light);
    end();
}

/* ---- sessions ------------------------------------------------------------ */

static void test_bye(void) {
    start(60000);
    int fd = client(5), other = attach(5, 1);
    CHECK(crail_namenode_session_open(nn, 5) == -EEXIST);
    frame(&Q, 1, 1);
    op(&Q, CRAIL_OP_MKDIR, "/d", NULL, 0);
    op(&Q, CRAIL_OP_BYE, "", NULL, 0);
    op(&Q, CRAIL_OP_MKDIR, "/e", NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0 && result(&R, 1)->status == 0);
    CHECK(result(&R, 2)->status == -CRAIL_E_SESSION_LOST);
    CHECK(closed(fd) && closed(other));
    crail_namenode_event e = event();
    CHECK(e.kind == CRAIL_EVENT_SESSION_ENDED && e.session == 5);
    crail_namenode_event none;
    CHECK(crail_namenode_events_take(nn, &none, 1) == 0);
    struct pollfd p = {crail_namenode_event_fd(nn), POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(attach_pair(pair, 5, 0) == -CRAIL_E_SESSION_LOST);
    CHECK(closed(pair[0]));
    CHECK(crail_namenode_lane_attach(nn, -1, 5, 0, NULL) == -EBADF);
    close(pair[0]);
    close(fd);
    close(other);
    CHECK(stats().sessions == 0 && stats().lanes == 0);
    end();
}

static void test_the_grace(void) {
    start(60);
    CHECK(crail_namenode_session_open(nn, 1) == 0); /* nobody ever comes */
    int stays = client(2), goes = client(3);
    crail_namenode_event e = event();
    CHECK(e.kind == CRAIL_EVENT_SESSION_ENDED && e.session == 1);
    uint64_t from = crail_clock_ns();
    close(goes);
    e = event();
    CHECK(e.session == 3 && crail_clock_ns() - from >= 59000000);
    CHECK(one(stays, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    close(stays);
    stays = attach(2, 0); /* back in time */
    usleep(100000);
    CHECK(one(stays, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    for (uint64_t s = 100; s < 1100; s++) /* the table grows, and empties itself */
        CHECK(crail_namenode_session_open(nn, s) == 0);
    for (int i = 0; i < 1000; i++)
        CHECK(event().kind == CRAIL_EVENT_SESSION_ENDED);
    CHECK(stats().sessions == 1);
    close(stays);
    end();
}

static void test_who_does_not_read_is_dropped(void) {
    tuning.drain_ns = 1000000000;
    start(60000);
    int slow = client(1), quick = client(2), late = client(3);
    static uint8_t value[CRAIL_INLINE_MAX];
    CHECK(one(quick, 1, CRAIL_OP_PUT, "/v", value, sizeof value) == 0);
    frame(&Q, 1, 0);
    for (int i = 0; i < 1024; i++)
        op(&Q, CRAIL_OP_GET, "/v", NULL, 0);
    send_all(slow, Q.b.data, Q.b.len);
    send_all(late, Q.b.data, Q.b.len);
    for (int i = 0; i < 10; i++)
        CHECK(one(quick, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    usleep(50000);
    CHECK(take(late, &R) && result(&R, 1023)->status == 0); /* late, but not too late */
    call(late, &Q, &R);
    uint64_t from = crail_clock_ns();
    while (stats().lanes == 3 && crail_clock_ns() - from < 5000000000)
        usleep(10000);
    CHECK(stats().lanes == 2);
    char some[4096]; /* what is left ends early */
    while (take_some(slow, some, sizeof some) > 0)
        ;
    CHECK(one(late, 0, CRAIL_OP_PING, "", NULL, 0) == 0);
    close(slow);
    close(quick);
    close(late);
    end();
}

static void test_listing_waits_for_its_index(void) {
    start(5000);
    int fd = client(1);
    char path[32];
    uint64_t seq = 0;
    for (int k = 0; k < 20; k++) {
        frame(&Q, 1, ++seq);
        for (int i = 0; i < 1000; i++) {
            snprintf(path, sizeof path, "/l/%06d", k * 1000 + i);
            op(&Q, CRAIL_OP_PUT, path, "x", 1);
        }
        call(fd, &Q, &R);
    }
    frame(&Q, 1, 0);
    for (int i = 0; i < 3; i++)
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_LIST, .arg0 = 1000}, "/l", NULL, 0);
    call(fd, &Q, &R);
    for (uint32_t i = 0; i < 3; i++)
        CHECK(result(&R, i)->status == 0 && result(&R, i)->count > 0 && (result(&R, i)->flags & CRAIL_RESF_MORE));
    int dies = attach(1, 1); /* asks, and is gone before the answer */
    CHECK(one(fd, ++seq, CRAIL_OP_RENAME, "/l", "/m", 2) == 0);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_LIST, .arg0 = 1000}, "/m", NULL, 0);
    send_all(dies, Q.b.data, Q.b.len);
    close(dies);
    CHECK(one(fd, ++seq, CRAIL_OP_RMTREE, "/m", NULL, 0) == 0);
    while (stats().background_pending)
        ;
    printf("  longest turn %.0f us\n", (double)stats().step_ns_max / 1e3);
    close(fd);
    end();
}

/* ---- many at once -------------------------------------------------------- */

static void *busy_client(void *arg) {
    uint64_t session = (uint64_t)(uintptr_t)arg;
    struct request q = {0};
    struct reply r = {0};
    CHECK(crail_namenode_session_open(nn, session) == 0);
    char path[48];
    int fd = -1;
    for (uint64_t seq = 1; seq <= 400; seq++) {
        if (fd < 0)
            fd = attach(session, 0);
        frame(&q, seq, seq);
        for (int i = 0; i < 20; i++) {
            snprintf(path, sizeof path, "/t%d/%d", (int)session, i);
            op(&q, CRAIL_OP_PUT, path, &seq, sizeof seq);
        }
        send_all(fd, q.b.data, q.b.len);
        if (seq % 7 == 0) { /* breaks off, and repeats */
            hang_up(fd);
            fd = attach(session, 0);
            send_all(fd, q.b.data, q.b.len);
        }
        CHECK(take(fd, &r) && r.head.id == seq);
        for (uint32_t i = 0; i < 20; i++)
            CHECK(result(&r, i)->status == 0);
        frame(&q, seq, 0);
        snprintf(path, sizeof path, "/t%d/3", (int)session);
        op(&q, CRAIL_OP_GET, path, NULL, 0);
        call(fd, &q, &r);
        CHECK(!memcmp(result(&r, 0) + 1, &seq, sizeof seq));
        if (seq % 50 == 0)
            stats();
    }
    CHECK(one(fd, 401, CRAIL_OP_BYE, "", NULL, 0) == 0);
    hang_up(fd);
    crail_buf_free(&q.b);
    crail_buf_free(&r.b);
    return NULL;
}

static void test_many_at_once(void) {
    start(5000);
    pthread_t t[8];
    for (uintptr_t i = 0; i < 8; i++)
        CHECK(pthread_create(&t[i], NULL, busy_client, (void *)(i + 1)) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(event().kind == CRAIL_EVENT_SESSION_ENDED);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_join(t[i], NULL) == 0);
    CHECK(stats().sessions == 0 && stats().puts == 8 * 400 * 20);
    end();
}

static void test_stop_in_the_middle(void) {
    for (int i = 0; i < 20; i++) {
        start(5000);
        int fd = client(1), channel;
        server(64, &channel);
        frame(&Q, 1, 1);
        for (int k = 0; k < 1024; k++)
            op(&Q, CRAIL_OP_PUT, "/a/b", "x", 1);
        send_all(fd, Q.b.data, Q.b.len);
        usleep((useconds_t)i * 20);
        crail_namenode_stop(nn);
        close(fd);
        close(channel);
    }
    crail_namenode_options none = {0};
    CHECK(crail_namenode_start(&none, &nn) == -CRAIL_E_INVALID_ARGUMENT);
}

int main(int argc, char **argv) {
    static const struct rpc_test tests[] = {
        T(test_exactly_once),
        T(test_a_dying_connection_does_not_stop_a_vector),
        T(test_large_operations_look_at_the_clock_sooner),
        T(test_slices_let_others_through),
        T(test_bye),
        T(test_the_grace),
        T(test_who_does_not_read_is_dropped),
        T(test_listing_waits_for_its_index),
        T(test_many_at_once),
        T(test_stop_in_the_middle),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
