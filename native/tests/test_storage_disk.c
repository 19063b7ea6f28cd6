/* The storage server with its region in a file: transfers, generations, and a disk that fails. sources: data base */
#include "storage_kit.h"

#define GENERATIONS_AT CRAIL_GRANULE
#define DATA_AT (GENERATIONS_AT + GRANULES * 8u)
#define FILE_BYTES (DATA_AT + (size_t)GRANULES * CRAIL_GRANULE)

static char file_path[128], faults_path[128];

static crail_storage *start_on(int fd) {
    crail_storage *s;
    assert(crail_storage_start_tuned(&tuning, &s) == 0);
    assert(crail_storage_failed_fd(s) == -1);
    assert(crail_storage_region_add_file(s, fd, GENERATIONS_AT, DATA_AT, GRANULES) == 0);
    assert(crail_storage_identity(s, NUMBER, mac_key) == 0);
    return s;
}

/* A world on the file at file_path, which is new or was there. */
static struct world begin_on_file(void) {
    struct world w = {.memory_fd = open(file_path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600)};
    if (w.memory_fd < 0)
        w.memory_fd = open(file_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert(w.memory_fd >= 0 && ftruncate(w.memory_fd, FILE_BYTES) == 0);
    w.s = start_on(w.memory_fd);
    return w;
}

static void stop(struct world *w) {
    crail_storage_stop(w->s);
    close(w->memory_fd);
}

static void end_on_file(struct world *w) {
    stop(w);
    unlink(file_path);
    unlink(faults_path);
    tuning = crail_storage_tuning_default;
}

static void set_faults(const char *text) {
    char temporary[160];
    snprintf(temporary, sizeof(temporary), "%s.new", faults_path);
    FILE *f = fopen(temporary, "w");
    assert(f && fputs(text, f) >= 0 && fclose(f) == 0 && rename(temporary, faults_path) == 0);
}

/* ---- bytes ---------------------------------------------------------------------- */

static void test_a_place_that_is_not_all_there_is_refused(void) {
    struct world w = begin_on_file();
    assert(crail_storage_region_add_file(w.s, w.memory_fd, 100, DATA_AT, 8) == -EINVAL);
    assert(crail_storage_region_add_file(w.s, w.memory_fd, GENERATIONS_AT, DATA_AT + 1, 8) == -EINVAL);
    assert(crail_storage_region_add_file(w.s, w.memory_fd, GENERATIONS_AT, DATA_AT, GRANULES + 1) == -EINVAL);
    assert(crail_storage_region_add_file(w.s, w.memory_fd, GENERATIONS_AT, DATA_AT, 0) == -EINVAL);
    int other = memfd_create("other", MFD_CLOEXEC);
    assert(ftruncate(other, FILE_BYTES) == 0);
    assert(crail_storage_region_add_file(w.s, other, GENERATIONS_AT, DATA_AT, 8) == -EINVAL);
    assert(crail_storage_region_add_file(w.s, -1, GENERATIONS_AT, DATA_AT, 8) == -EBADF);
    close(other);
    end_on_file(&w);
}

static void test_bytes_written_are_the_bytes_read_at_any_offset(void) {
    struct world w = begin_on_file();
    int fd = data_connection(&w, 1);
    size_t n = 3u << 20;
    uint8_t *model = calloc(1, n), *data = malloc(n), *back = malloc(n);
    unsigned seed = 11;
    for (int i = 0; i < 60; i++) {
        size_t from = (size_t)rand_r(&seed) % n;
        size_t bytes = (size_t)rand_r(&seed) % (i % 3 ? 9000 : n - from);
        if (bytes > n - from)
            bytes = n - from;
        fill(data, bytes, (uint32_t)i);
        memcpy(model + from, data, bytes);
        assert(ask(fd, request(CRAIL_DATA_WRITE, 3, 800, 0, from, bytes), data) == 0);
        from = (size_t)rand_r(&seed) % n, bytes = (size_t)rand_r(&seed) % (n - from);
        assert(ask(fd, request(CRAIL_DATA_READ, 3, 800, 0, from, bytes), NULL) == 0);
        recv_all(fd, back, bytes);
        assert(memcmp(back, model + from, bytes) == 0);
    }
    assert(ask(fd, request(CRAIL_DATA_READ, 3, 1, 0, 4096, 0), NULL) == 0);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 3, 1, 0, 0, 0), data) == 0);
    assert(ask(fd, request(CRAIL_DATA_FLUSH, 3, 800, 0, 0, 0), NULL) == 0);
    crail_storage_stats st = stats(&w);
    assert(st.reads == 61 && st.writes == 61 && st.flushes == 1 && st.disk_errors == 0 && st.disk_errno == 0);
    close(fd);
    free(model), free(data), free(back);
    end_on_file(&w);
}

static void test_pipelined_requests_are_answered_in_order(void) {
    struct world w = begin_on_file();
    int fd = data_connection(&w, 0);
    uint8_t data[4096], back[4096];
    struct crail_data_request q[64];
    for (uint32_t i = 0; i < 32; i++) {
        fill(data, sizeof(data), i);
        q[2 * i] = request(CRAIL_DATA_WRITE, i, 2, i == 5 ? 99 : 0, 100, sizeof(data)); /* one is refused */
        q[2 * i + 1] = request(CRAIL_DATA_READ, i, 2, 0, 100, sizeof(data));
        send_all(fd, &q[2 * i], sizeof(q[0]));
        send_all(fd, data, sizeof(data));
        send_all(fd, &q[2 * i + 1], sizeof(q[0]));
    }
    for (uint32_t i = 0; i < 32; i++) {
        assert(reply_to(fd, &q[2 * i]) == (i == 5 ? CRAIL_E_STALE_LOCATION : 0));
        assert(reply_to(fd, &q[2 * i + 1]) == 0);
        recv_all(fd, back, sizeof(back));
        fill(data, sizeof(data), i);
        assert(i == 5 || memcmp(data, back, sizeof(back)) == 0);
    }
    close(fd);
    end_on_file(&w);
}

static void test_the_key_for_reading_neither_writes_nor_flushes(void) {
    struct world w = begin_on_file();
    int fd = data_connection(&w, 0);
    uint8_t data[100] = {1};
    struct crail_data_request q = request(CRAIL_DATA_READ, 0, 4, 0, 0, 100);
    q.code = CRAIL_DATA_WRITE;
    assert(ask(fd, q, data) == CRAIL_E_AUTH);
    q.code = CRAIL_DATA_FLUSH, q.length = 0;
    assert(ask(fd, q, NULL) == CRAIL_E_AUTH);
    assert(ask(fd, request(CRAIL_DATA_FLUSH, 0, 4, 1, 0, 0), NULL) == CRAIL_E_STALE_LOCATION);
    q = request(CRAIL_DATA_FLUSH, 0, 4, 0, 0, 1); /* it has no bytes */
    send_all(fd, &q, sizeof(q));
    expect_closed(fd);
    end_on_file(&w);
}

/* Each reads the granule before it writes its half. The disk stands still until both had the time to read. */
static void test_writers_of_one_granule_lose_nothing_to_each_other(void) {
    struct world w = begin_on_file();
    int fds[2] = {data_connection(&w, 0), data_connection(&w, 0)};
    uint8_t data[2][2000], back[4000];
    struct crail_data_request q[2];
    set_faults("disk-write 0\n");
    for (uint32_t i = 0; i < 2; i++) {
        fill(data[i], sizeof(data[i]), i + 1);
        q[i] = request(CRAIL_DATA_WRITE, 8, 2, 0, i * sizeof(data[i]), sizeof(data[i]));
        send_all(fds[i], &q[i], sizeof(q[i]));
        send_all(fds[i], data[i], sizeof(data[i]));
    }
    assert(!readable(fds[0], 50) && !readable(fds[1], 50));
    unlink(faults_path);
    assert(reply_to(fds[0], &q[0]) == 0 && reply_to(fds[1], &q[1]) == 0);
    assert(ask(fds[0], request(CRAIL_DATA_READ, 8, 2, 0, 0, sizeof(back)), NULL) == 0);
    recv_all(fds[0], back, sizeof(back));
    assert(memcmp(back, data, sizeof(back)) == 0);
    close(fds[0]), close(fds[1]);
    end_on_file(&w);
}

/* ---- buffers ------------------------------------------------------------------------- */

struct neighbour {
    struct world *w;
    uint32_t at;
};

static void *write_and_read(void *arg) {
    struct neighbour *n = arg;
    size_t bytes = 75 * CRAIL_GRANULE;
    uint8_t *data = malloc(bytes), *back = malloc(bytes);
    int fd = data_connection(n->w, 0);
    for (uint32_t i = 0; i < 6; i++) {
        fill(data, bytes, n->at + i);
        assert(ask(fd, request(CRAIL_DATA_WRITE, n->at, 80, 0, i, bytes), data) == 0);
        assert(ask(fd, request(CRAIL_DATA_READ, n->at, 80, 0, i, bytes), NULL) == 0);
        recv_all(fd, back, bytes);
        assert(memcmp(back, data, bytes) == 0);
    }
    close(fd);
    free(data), free(back);
    return NULL;
}

static void test_more_transfers_than_buffers_all_come_to_their_end(void) {
    tuning.buffers = 2;
    struct world w = begin_on_file();
    pthread_t threads[12];
    struct neighbour all[12];
    for (uint32_t i = 0; i < 12; i++) {
        all[i] = (struct neighbour){&w, i * 80};
        assert(pthread_create(&threads[i], NULL, write_and_read, &all[i]) == 0);
    }
    for (int i = 0; i < 12; i++)
        pthread_join(threads[i], NULL);
    end_on_file(&w);
}

static void test_who_keeps_a_buffer_and_stands_still_makes_way(void) {
    tuning.buffers = 2;
    tuning.keep_ns = 50000000;
    struct world w = begin_on_file();
    int idle[2];
    uint8_t byte = 1;
    for (int i = 0; i < 2; i++) {
        idle[i] = data_connection(&w, 0);
        struct crail_data_request q = request(CRAIL_DATA_WRITE, (uint32_t)i, 1, 0, 0, 4096);
        send_all(idle[i], &q, sizeof(q));
        send_all(idle[i], &byte, 1);
    }
    while (stats(&w).bytes_in < 2) { /* both have begun */
    }
    int fd = data_connection(&w, 0);
    static uint8_t data[4096];
    assert(ask(fd, request(CRAIL_DATA_WRITE, 5, 1, 0, 0, sizeof(data)), data) == 0);
    expect_closed(idle[0]);
    expect_closed(idle[1]);
    close(fd);
    end_on_file(&w);
}

/* ---- generations -------------------------------------------------------------------------- */

static void test_a_confirmed_generation_is_on_the_disk(void) {
    struct world w = begin_on_file();
    int ch = channel(&w);
    static struct crail_retire orders[512], done[512];
    for (uint32_t i = 0; i < 512; i++)
        orders[i] = one_order(2 * i, 1, i + 7);
    order(ch, orders, 512);
    static uint64_t on_disk[GRANULES];
    int fd = open(file_path, O_RDONLY | O_CLOEXEC);
    for (uint32_t got = 0; got < 512;) {
        uint32_t n = confirmed(ch, done, 512);
        assert(pread(fd, on_disk, sizeof(on_disk), GENERATIONS_AT) == sizeof(on_disk));
        for (uint32_t i = 0; i < n; i++)
            assert(done[i].reserved == 0 && on_disk[done[i].granule] == done[i].generation);
        got += n;
    }
    close(fd);
    close(ch);
    stop(&w);
    w = begin_on_file(); /* another process would find the same */
    uint64_t gen[GRANULES];
    assert(crail_storage_generations(w.s, 0, gen, GRANULES) == 0);
    for (uint32_t i = 0; i < GRANULES; i++)
        assert(gen[i] == (i % 2 ? 0 : i / 2 + 7));
    fd = data_connection(&w, 0);
    uint8_t data[10];
    assert(ask(fd, request(CRAIL_DATA_WRITE, 0, 1, 0, 0, 10), data) == CRAIL_E_STALE_LOCATION);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 0, 1, 7, 0, 10), data) == 0);
    close(fd);
    end_on_file(&w);
}

static void test_what_cannot_be_made_durable_is_not_confirmed(void) {
    struct world w = begin_on_file();
    set_faults("disk-sync 5\n");
    int ch = channel(&w);
    struct crail_retire o = one_order(4, 2, 1), done[1];
    order(ch, &o, 1);
    assert(readable(crail_storage_failed_fd(w.s), 60000));
    assert(!readable(ch, 150));
    crail_storage_stats st = stats(&w);
    assert(st.retires_waiting == 1 && st.disk_errno == EIO && st.disk_errors == 1);
    stop(&w);
    close(ch);
    unlink(faults_path);
    w = begin_on_file(); /* the namenode orders again */
    ch = channel(&w);
    order(ch, &o, 1);
    assert(confirmed(ch, done, 1) == 1 && done[0].granule == 4);
    close(ch);
    end_on_file(&w);
}

static void test_a_namenode_that_came_back_gets_nothing_of_a_failed_disk_but_what_lives(void) {
    struct world w = begin_on_file();
    uint8_t data[100] = {7}, back[100];
    int fd = data_connection(&w, 0);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 4, 3, 0, 0, 100), data) == 0);
    set_faults("disk-write 5\n");
    const uint32_t live[] = {0, 4, 3, 0, 10, 2};
    const struct {
        uint32_t region, granule, granules;
    } rest[] = {{0, 0, 4}, {0, 7, 3}, {0, 12, GRANULES - 12}};
    uint32_t busy[9];
    for (int again = 0; again < 2; again++) { /* it fails meanwhile, and then it has failed */
        assert(crail_storage_retire_others(w.s, live, 2) == 3);
        assert(crail_storage_busy(w.s, busy, 9) == 3 && memcmp(busy, rest, sizeof(rest)) == 0);
        unlink(faults_path);
    }
    int ch = channel(&w);
    struct crail_retire o = one_order(7, 3, 100);
    order(ch, &o, 1);
    assert(!readable(ch, 150)); /* it waits for good */
    assert(ask(fd, request(CRAIL_DATA_READ, 4, 3, 0, 0, 100), NULL) == 0);
    recv_all(fd, back, sizeof(back));
    assert(memcmp(data, back, sizeof(back)) == 0);
    close(fd), close(ch);
    end_on_file(&w);
}

static void until_bytes_in(struct world *w, uint64_t n) {
    while (stats(w).bytes_in < n) {
    }
}

/* A write that the disk is in the middle of holds up the order for its extent, also when its client has gone: else the
 * bytes would come when the extent is somebody else's. */
static void test_an_order_waits_for_a_write_whose_client_has_gone(void) {
    struct world w = begin_on_file();
    uint8_t data[CRAIL_GRANULE] = {0};
    int fd = data_connection(&w, 0), ch = channel(&w), file = open(file_path, O_RDONLY | O_CLOEXEC);
    struct crail_data_request q = request(CRAIL_DATA_WRITE, 9, 1, 0, 0, sizeof(data));
    send_all(fd, &q, sizeof(q));
    send_all(fd, data, 1);
    until_bytes_in(&w, 1);
    struct crail_retire o = one_order(9, 1, 1), done[1];
    order(ch, &o, 1);
    for (uint64_t on_disk = 0; on_disk != 1;)
        assert(pread(file, &on_disk, sizeof(on_disk), GENERATIONS_AT + 9 * 8) == sizeof(on_disk));
    assert(!readable(ch, 100));
    set_faults("disk-write 0\n");
    send_all(fd, data, sizeof(data) - 1);
    until_bytes_in(&w, sizeof(data));
    close(fd);
    while (stats(&w).connections) {
    }
    assert(!readable(ch, 150));
    unlink(faults_path);
    assert(confirmed(ch, done, 1) == 1 && done[0].granule == 9);
    close(ch), close(file);
    end_on_file(&w);
}

/* The same for a reader that stands still in the middle: what it has not got yet is still to be read. */
static void test_an_order_waits_for_a_reader_in_the_middle(void) {
    struct world w = begin_on_file();
    size_t n = 4u << 20; /* more than sockets and buffers take */
    uint8_t *data = malloc(n), *back = malloc(n);
    int fd = data_connection(&w, 0), ch = channel(&w);
    fill(data, n, 4);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 0, 1024, 0, 0, n), data) == 0);
    struct crail_data_request q = request(CRAIL_DATA_READ, 0, 1024, 0, 0, n);
    send_all(fd, &q, sizeof(q));
    assert(reply_to(fd, &q) == 0);
    struct crail_retire o = one_order(0, 1024, 1), done[1];
    order(ch, &o, 1);
    assert(!readable(ch, 150));
    recv_all(fd, back, n);
    assert(memcmp(data, back, n) == 0);
    assert(confirmed(ch, done, 1) == 1);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 1024, 0, 0, n), NULL) == CRAIL_E_STALE_LOCATION);
    close(fd), close(ch);
    free(data), free(back);
    end_on_file(&w);
}

/* ---- failure ---------------------------------------------------------------------------------- */

static void test_a_disk_that_fails_is_told_of_and_written_no_more(void) {
    struct world w = begin_on_file();
    int fd = data_connection(&w, 0);
    size_t n = 2u << 20;
    uint8_t *data = malloc(n), *back = malloc(n);
    fill(data, n, 3);
    assert(ask(fd, request(CRAIL_DATA_WRITE, 0, 512, 0, 0, n), data) == 0);
    assert(!readable(crail_storage_failed_fd(w.s), 0));
    set_faults("disk-write 28\n");
    assert(ask(fd, request(CRAIL_DATA_WRITE, 512, 512, 0, 0, n), data) == CRAIL_E_OUT_OF_SPACE);
    assert(readable(crail_storage_failed_fd(w.s), 60000));
    assert(stats(&w).disk_errno == ENOSPC);
    unlink(faults_path); /* too late: nobody knows what is there */
    assert(ask(fd, request(CRAIL_DATA_WRITE, 512, 512, 0, 0, n), data) == CRAIL_E_OUT_OF_SPACE);
    assert(ask(fd, request(CRAIL_DATA_FLUSH, 0, 512, 0, 0, 0), NULL) == CRAIL_E_OUT_OF_SPACE);
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 512, 0, 0, n), NULL) == 0); /* what is there can be read */
    recv_all(fd, back, n);
    assert(memcmp(data, back, n) == 0);
    close(fd);
    free(data), free(back);
    end_on_file(&w);
}

static void test_what_cannot_be_read_is_lost_and_said_so(void) {
    struct world w = begin_on_file();
    int fd = data_connection(&w, 0);
    uint8_t data[100] = {7}, back[100];
    assert(ask(fd, request(CRAIL_DATA_WRITE, 0, 512, 0, 0, 100), data) == 0);
    set_faults("disk-read 5\n");
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 512, 0, 0, 2u << 20), NULL) == CRAIL_E_DATA_LOST);
    unlink(faults_path);
    /* This extent is bad from now on, as it is; its next life is not. */
    assert(ask(fd, request(CRAIL_DATA_READ, 0, 512, 0, 0, 100), NULL) == CRAIL_E_DATA_LOST);
    assert(ask(fd, request(CRAIL_DATA_READ, 1, 10, 0, 0, 100), NULL) == 0);
    recv_all(fd, back, sizeof(back));
    close(fd);
    end_on_file(&w);
}

static void test_a_flush_that_fails_says_so(void) {
    struct world w = begin_on_file();
    int fd = data_connection(&w, 0), other = data_connection(&w, 0);
    set_faults("disk-sync 5\n");
    struct crail_data_request q = request(CRAIL_DATA_FLUSH, 0, 1, 0, 0, 0),
                              p = request(CRAIL_DATA_FLUSH, 9, 1, 0, 0, 0);
    send_all(fd, &q, sizeof(q));
    send_all(other, &p, sizeof(p));
    assert(reply_to(fd, &q) == CRAIL_E_DATA_LOST);
    assert(reply_to(other, &p) == CRAIL_E_DATA_LOST);
    close(fd), close(other);
    end_on_file(&w);
}

static void test_the_end_waits_for_what_is_at_the_disk(void) {
    static uint8_t data[1u << 20];
    for (int i = 0; i < 8; i++) {
        struct world w = begin_on_file();
        int fds[6];
        for (uint32_t k = 0; k < 6; k++) {
            fds[k] = data_connection(&w, 0);
            struct crail_data_request q =
                request(k % 2 ? CRAIL_DATA_WRITE : CRAIL_DATA_READ, k / 4, 300, 0, 10, sizeof(data));
            send_all(fds[k], &q, sizeof(q));
            if (k % 2)
                send(fds[k], data, sizeof(data) - 5, MSG_DONTWAIT | MSG_NOSIGNAL);
            q = request(CRAIL_DATA_FLUSH, 0, 1, 0, 0, 0);
            if (k == 0)
                send_all(fds[k], &q, sizeof(q));
        }
        end_on_file(&w);
        for (uint32_t k = 0; k < 6; k++)
            close(fds[k]);
    }
}

int main(void) {
    tests_begin();
    path_of("tier", file_path);
    path_of("faults", faults_path);
    setenv("CRAILPY_TEST_FAULTS", faults_path, 1);
    test_a_place_that_is_not_all_there_is_refused();
    test_bytes_written_are_the_bytes_read_at_any_offset();
    test_pipelined_requests_are_answered_in_order();
    test_the_key_for_reading_neither_writes_nor_flushes();
    test_writers_of_one_granule_lose_nothing_to_each_other();
    test_more_transfers_than_buffers_all_come_to_their_end();
    test_who_keeps_a_buffer_and_stands_still_makes_way();
    test_a_confirmed_generation_is_on_the_disk();
    test_what_cannot_be_made_durable_is_not_confirmed();
    test_a_namenode_that_came_back_gets_nothing_of_a_failed_disk_but_what_lives();
    test_an_order_waits_for_a_write_whose_client_has_gone();
    test_an_order_waits_for_a_reader_in_the_middle();
    test_a_disk_that_fails_is_told_of_and_written_no_more();
    test_what_cannot_be_read_is_lost_and_said_so();
    test_a_flush_that_fails_says_so();
    test_the_end_waits_for_what_is_at_the_disk();
    return tests_end();
}
