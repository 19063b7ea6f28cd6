/* The storage server: regions, and transfers over its data connections. sources: data base */
#include "storage_kit.h"

/* ---- regions ------------------------------------------------------------------ */

static void test_region_too_small_for_its_granules_is_refused(void) {
    crail_storage *s;
    assert(crail_storage_start(&s) == 0);
    int m = memfd_create("m", 0), g = memfd_create("g", 0);
    assert(ftruncate(m, 8 * CRAIL_GRANULE) == 0 && ftruncate(g, 64) == 0);
    assert(crail_storage_region_add(s, m, g, 9, 0) == -EINVAL);
    assert(crail_storage_region_add(s, m, g, 0, 0) == -EINVAL);
    assert(ftruncate(g, 63) == 0);
    assert(crail_storage_region_add(s, m, g, 8, 0) == -EINVAL);
    assert(ftruncate(g, 64) == 0);
    assert(crail_storage_region_add(s, m, g, 8, 1) == 0);
    assert(crail_storage_region_add(s, m, g, 8, 0) == 1);
    assert(crail_storage_region_add(s, 1000, g, 8, 0) == -EBADF);
    uint64_t gen[8];
    assert(crail_storage_generations(s, 1, gen, 8) == 0);
    assert(crail_storage_generations(s, 2, gen, 8) == -EINVAL);
    assert(crail_storage_generations(s, 0, gen, 7) == -EINVAL);
    close(m), close(g);
    crail_storage_stop(s);
}

/* ---- data --------------------------------------------------------------------- */

static void test_bytes_written_are_the_bytes_read(int tcp) {
    struct world w = begin();
    int fd = data_connection(&w, tcp);
    assert(crail_storage_region_add(w.s, w.memory_fd, w.generations_fd, GRANULES, 0) == -EBUSY);
    size_t n = 3u << 20;
    uint8_t *a = malloc(n), *b = malloc(n);
    fill(a, n, 1);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 3, 800, 0, 5, n), a) == 0);
    assert(ask(fd, request(CRAIL_DATA_READ, 3, 800, 0, 5, n), NULL) == 0);
    recv_all(fd, b, n);
    assert(memcmp(a, b, n) == 0);
    assert(ask(fd, request(CRAIL_DATA_READ, 3, 1, 0, 4096, 0), NULL) == 0);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 3, 1, 0, 0, 0), a) == 0);
    crail_storage_stats st = stats(&w);
    assert(st.reads == 2 && st.writes == 2 && st.bytes_in == n && st.bytes_out == n && st.connections == 1);
    assert(st.refused == 0 && st.protocol_errors == 0 && st.loop_cpu_ns > 0);
    close(fd);
    free(a), free(b);
    end(&w);
}

static void test_pipelined_requests_are_answered_in_order(void) {
    struct world w = begin();
    int fd = data_connection(&w, 1);
    uint8_t data[4096], back[4096];
    struct crail_data_request q[64];
    for (uint32_t i = 0; i < 32; i++) {
        fill(data, sizeof(data), i);
        q[2 * i] = request(CRAIL_DATA_WRITE, i, 1, i == 5 ? 99 : 0, 0, sizeof(data)); /* one is refused */
        q[2 * i + 1] = request(CRAIL_DATA_READ, i, 1, 0, 0, sizeof(data));
        send_all(fd, &q[2 * i], sizeof(q[0]));
        send_all(fd, data, sizeof(data));
        send_all(fd, &q[2 * i + 1], sizeof(q[0]));
    }
    for (uint32_t i = 0; i < 32; i++) {
        assert(reply_to(fd, &q[2 * i]) == (i == 5 ? CRAIL_E_STALE_LOCATION : 0));
        assert(reply_to(fd, &q[2 * i + 1]) == 0);
        recv_all(fd, back, sizeof(back));
        fill(data, sizeof(data), i);
        assert(i == 5 ? back[0] == 0 && back[4095] == 0 : memcmp(data, back, sizeof(back)) == 0);
    }
    close(fd);
    end(&w);
}

static void test_requests_without_right_or_reason_are_refused(void) {
    struct world w = begin();
    int fd = data_connection(&w, 0);
    static uint8_t data[300000];
    struct crail_data_request q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 100);
    q.extent.server++;
    assert(ask(fd, q, NULL) == CRAIL_E_STALE_LOCATION);
    q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 100);
    q.extent.granules = 5; /* a longer run than the key is for */
    assert(ask(fd, q, NULL) == CRAIL_E_AUTH);
    q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 100);
    q.code = CRAIL_DATA_WRITE; /* the key reads only */
    assert(ask(fd, q, data) == CRAIL_E_AUTH);
    q = request(CRAIL_DATA_WRITE, 0, 100, 1, 0, sizeof(data)); /* refused, the bytes are dropped */
    assert(ask(fd, q, data) == CRAIL_E_STALE_LOCATION);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 4, 0, 1, 4 * 4096), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 4, 0, UINT64_MAX, 2), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 4, 0, 2, UINT64_MAX), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 0, 0, 0, 0), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, GRANULES - 1, 2, 0, 0, 1), NULL) == CRAIL_E_INVALID_ARGUMENT);
    assert(ask(fd, request(CRAIL_DATA_READ, UINT32_MAX, UINT32_MAX, 0, 0, 1), NULL) == CRAIL_E_INVALID_ARGUMENT);
    q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 1);
    q.extent.region = 1;
    assert(ask(fd, q, NULL) == CRAIL_E_INVALID_ARGUMENT);
    for (size_t i = 0; i < 300000; i++)
        assert(w.memory[i] == 0);
    crail_storage_stats st = stats(&w);
    assert(st.refused == 11 && st.reads == 0 && st.writes == 0 && st.protocol_errors == 0);
    close(fd);
    end(&w);
}

static void test_before_registration_nothing_is_served(void) {
    struct world w = {0};
    assert(crail_storage_start(&w.s) == 0);
    int fd = data_connection(&w, 0);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 1, 0, 0, 1), NULL) == CRAIL_E_UNAVAILABLE);
    close(fd);
    crail_storage_stop(w.s);
}

static void test_garbage_closes_the_connection(void) {
    struct world w = begin();
    uint8_t noise[4096];
    for (uint32_t i = 0; i < 20; i++) {
        int fd = data_connection(&w, i & 1);
        fill(noise, sizeof(noise), i);
        send(fd, noise, 64 + i * 100, MSG_NOSIGNAL);
        expect_closed(fd);
    }
    for (int i = 0; i < 3; i++) {
        int fd = data_connection(&w, 0);
        struct crail_data_request q = request(CRAIL_DATA_READ, 0, 1, 0, 0, 1);
        if (i == 0)
            q.flags = 1;
        if (i == 1)
            q.code = 4;
        if (i == 2)
            q.magic++;
        send_all(fd, &q, sizeof(q));
        expect_closed(fd);
    }
    assert(stats(&w).protocol_errors == 23 && stats(&w).connections == 0);
    int fd = data_connection(&w, 1);
    close(fd); /* a short life is no error */
    fd = data_connection(&w, 1);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 1, 0, 0, 0), NULL) == 0);
    assert(stats(&w).protocol_errors == 23);
    close(fd);
    end(&w);
}

struct stream {
    struct world *w;
    uint32_t granule;
};

static void *stream_thread(void *arg) {
    struct stream *t = arg;
    int fd = data_connection(t->w, t->granule & 1);
    size_t n = 256u << 10;
    uint8_t *a = malloc(n), *b = malloc(n);
    for (uint32_t i = 0; i < 20; i++) {
        fill(a, n, t->granule * 1000 + i);
        assert(ask(fd, request(CRAIL_DATA_WRITE, t->granule * 64, 64, 0, 0, n), a) == 0);
        assert(ask(fd, request(CRAIL_DATA_READ, t->granule * 64, 64, 0, 0, n), NULL) == 0);
        recv_all(fd, b, n);
        assert(memcmp(a, b, n) == 0);
    }
    free(a), free(b);
    close(fd);
    return NULL;
}

static void test_connections_share_the_loop(void) {
    struct world w = begin();
    pthread_t threads[8];
    struct stream streams[8];
    for (uint32_t i = 0; i < 8; i++) {
        streams[i] = (struct stream){&w, i};
        pthread_create(&threads[i], NULL, stream_thread, &streams[i]);
    }
    for (uint32_t i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    end(&w);
}

int main(void) {
    tests_begin();
    test_region_too_small_for_its_granules_is_refused();
    test_bytes_written_are_the_bytes_read(0);
    test_bytes_written_are_the_bytes_read(1);
    test_pipelined_requests_are_answered_in_order();
    test_requests_without_right_or_reason_are_refused();
    test_before_registration_nothing_is_served();
    test_garbage_closes_the_connection();
    test_connections_share_the_loop();
    return tests_end();
}
