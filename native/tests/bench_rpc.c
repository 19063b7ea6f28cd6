/* Round trips through the namenode's loop, beside those of a bare echo; all on one core.
 *
 *   gcc -std=gnu11 -D_GNU_SOURCE -O2 -pthread -Inative/include -Inative/src native/tests/bench_rpc.c \
 *       native/src/{rpc,meta,base}/[a-z]*.c native/src/api/api_namenode.c -o /tmp/bench_rpc && /tmp/bench_rpc */
#include <sched.h>
#include <sys/epoll.h>

#include "rpc_kit.h"

static void *echo(void *arg) {
    int fd = *(int *)arg, ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    char b[8192];
    for (;;) {
        CHECK(epoll_wait(ep, &ev, 1, -1) == 1);
        ssize_t n = recv(fd, b, sizeof b, MSG_DONTWAIT);
        if (n <= 0)
            break;
        CHECK(send(fd, b, (size_t)n, MSG_NOSIGNAL) == n);
    }
    close(ep);
    close(fd);
    return NULL;
}

static double round_trips(int fd, struct request *q, size_t reply_bytes) {
    static uint8_t b[1 << 16];
    int n = 200000;
    double best = 1e9;
    for (int k = 0; k < 5; k++) {
        uint64_t from = crail_clock_ns();
        for (int i = 0; i < n; i++) {
            CHECK(send(fd, q->b.data, q->b.len, 0) == (ssize_t)q->b.len);
            CHECK(recv_all(fd, b, reply_bytes));
        }
        double ns = (double)(crail_clock_ns() - from) / n;
        best = ns < best ? ns : best;
    }
    return best;
}

int main(void) {
    tuning = crail_rpc_tuning_default;
    cpu_set_t core;
    CPU_ZERO(&core);
    CPU_SET(1 % sysconf(_SC_NPROCESSORS_ONLN), &core);
    sched_setaffinity(0, sizeof core, &core); /* the threads inherit it */
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pthread_t t;
    CHECK(pthread_create(&t, NULL, echo, &pair[1]) == 0);
    frame(&Q, 1, 0);
    op(&Q, CRAIL_OP_PING, "", NULL, 0);
    printf("echo (epoll, recv, send)   %7.0f ns\n", round_trips(pair[0], &Q, Q.b.len));
    close(pair[0]);
    CHECK(pthread_join(t, NULL) == 0);

    start(5000);
    int fd = client(1);
    printf("ping                       %7.0f ns\n", round_trips(fd, &Q, 64));
    static uint8_t value[1024];
    char path[32];
    for (uint64_t i = 1; i <= 100000; i++) {
        snprintf(path, sizeof path, "/bench/k%06d", (int)i);
        CHECK(one(fd, i, CRAIL_OP_PUT, path, value, sizeof value) == 0);
    }
    frame(&Q, 1, 0);
    op(&Q, CRAIL_OP_GET, "/bench/k000777", NULL, 0);
    printf("get 1 KiB                  %7.0f ns\n", round_trips(fd, &Q, 64 + 1024));
    frame(&Q, 1, 0);
    for (int i = 0; i < 32; i++) {
        snprintf(path, sizeof path, "/bench/k%06d", 1 + i * 3001);
        op(&Q, CRAIL_OP_GET, path, NULL, 0);
    }
    printf("get 32 x 1 KiB, per value  %7.0f ns\n", round_trips(fd, &Q, 32 + 32 * (32 + 1024)) / 32);
    uint64_t from = crail_clock_ns();
    for (uint64_t i = 100001; i <= 300000; i++) {
        snprintf(path, sizeof path, "/bench/k%06d", (int)(i * 7919 % 100000));
        CHECK(one(fd, i, CRAIL_OP_PUT, path, value, sizeof value) == 0);
    }
    printf("put 1 KiB, over            %7.0f ns\n", (double)(crail_clock_ns() - from) / 200000);
    crail_namenode_stats st = stats();
    printf("loop CPU per request       %7.0f ns, longest turn %.0f us\n", (double)st.loop_cpu_ns / (double)st.requests,
           (double)st.step_ns_max / 1e3);
    close(fd);
    end();
    crail_buf_free(&Q.b);
    return 0;
}
