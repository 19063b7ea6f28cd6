/* The storage server: when an extent is confirmed, and who holds it up. sources: data base */
#include "storage_kit.h"

/* ---- retiring ------------------------------------------------------------------ */

static void test_what_no_slot_names_is_confirmed_at_once(void) {
    struct world w = begin();
    int ch = channel(&w);
    static struct crail_retire orders[CRAIL_RETIRES_MAX], done[CRAIL_RETIRES_MAX];
    for (uint32_t i = 0; i < CRAIL_RETIRES_MAX; i++)
        orders[i] = one_order(i, 1, i + 1);
    order(ch, orders, CRAIL_RETIRES_MAX);
    for (uint32_t got = 0; got < CRAIL_RETIRES_MAX;) {
        uint32_t n = confirmed(ch, done + got, CRAIL_RETIRES_MAX - got);
        got += n;
    }
    assert(memcmp(orders, done, sizeof(orders)) == 0);
    uint64_t gen[GRANULES];
    assert(crail_storage_generations(w.s, 0, gen, GRANULES) == 0);
    for (uint32_t i = 0; i < GRANULES; i++)
        assert(gen[i] == i + 1 && atomic_load(&w.generations[i]) == i + 1);
    orders[0] = one_order(10, 1, 3); /* an older order lowers nothing, and is confirmed */
    order(ch, orders, 1);
    assert(confirmed(ch, done, 1) == 1 && done[0].generation == 3 && done[0].granule == 10);
    assert(atomic_load(&w.generations[10]) == 11);
    crail_storage_stats st = stats(&w);
    assert(st.retires_ordered == 1025 && st.retires_confirmed == 1025 && st.retires_waiting == 0);
    close(ch);
    end(&w);
}

static void test_a_named_extent_waits_for_its_slot(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle, other;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    int use2 = crail_storage_use_create(w.s, path_of("use-2", path), 2, &other);
    assert(use >= 0 && use2 >= 0 && handle != other);
    assert(crail_storage_use_create(w.s, path, 2, &other) == -EEXIST);
    struct crail_use_table *t = map_table(use);
    assert(t->magic == CRAIL_USE_MAGIC && t->session == 1 && t->slots == CRAIL_USE_SLOTS);
    assert(crail_use_enter(t, 17, 0, 4, 1, 0, w.generations));
    int ch = channel(&w);
    struct crail_retire orders[3] = {one_order(0, 4, 1), one_order(4, 2, 1), one_order(6, 2, 1)}, done[3];
    order(ch, orders, 3);
    assert(confirmed(ch, done, 3) == 2 && done[0].granule == 0 && done[1].granule == 6);
    order(ch, orders + 1, 1); /* again: still one that waits */
    assert(!crail_use_enter(t, 18, 0, 4, 1, 0, w.generations) && atomic_load(&t->slot[18]) == 0);
    assert(crail_use_enter(t, 18, 0, 4, 1, 1, w.generations)); /* the next life of the granule counts too */
    assert(!readable(ch, 120) && stats(&w).retires_waiting == 1);
    crail_use_leave(t, 17);
    assert(!readable(ch, 120));
    crail_use_leave(t, 18);
    assert(confirmed(ch, done, 3) == 1 && memcmp(done, orders + 1, sizeof(done[0])) == 0);
    assert(!readable(ch, 120) && stats(&w).retires_waiting == 0);
    /* The client writes nonsense into its table: nobody falls over it. */
    atomic_store(&t->high_water, UINT32_MAX);
    for (uint32_t i = 0; i < CRAIL_USE_SLOTS; i++)
        atomic_store(&t->slot[i], UINT64_MAX - i);
    t->magic = t->slots = 0;
    orders[0].generation = 2;
    order(ch, orders, 1);
    assert(confirmed(ch, done, 1) == 1);
    munmap(t, sizeof(*t));
    close(use), close(use2), close(ch);
    assert(crail_storage_use_closed(w.s, handle) == 0 && crail_storage_use_closed(w.s, other) == 0);
    assert(crail_storage_use_closed(w.s, handle) == -ENOENT && stats(&w).use_tables == 0);
    end(&w);
    assert(access(path, F_OK) != 0);
}

static void test_slots_end_with_the_last_process_that_holds_the_table(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    struct crail_use_table *t = map_table(use);
    assert(crail_use_enter(t, 0, 0, 0, 1, 0, w.generations));
    int child_has = dup(use); /* what a forked child would inherit: the same description */
    close(use);
    assert(crail_storage_use_closed(w.s, handle) == 0 && stats(&w).use_tables == 1);
    int ch = channel(&w);
    struct crail_retire orders[1] = {one_order(0, 1, 1)}, done[1];
    order(ch, orders, 1);
    assert(!readable(ch, 120));
    close(child_has);
    assert(!readable(ch, 120)); /* the mapping is a use of the description, and holds it as well */
    munmap(t, sizeof(*t));      /* the slot stays set: it dies with its holder */
    assert(confirmed(ch, done, 1) == 1);
    assert(stats(&w).use_tables == 0 && access(path, F_OK) != 0);
    close(ch);
    end(&w);
}

static void test_a_table_outlives_the_server(void) {
    struct world w = begin();
    char path[128], dead[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    int gone = crail_storage_use_create(w.s, path_of("use-2", dead), 2, &handle);
    struct crail_use_table *t = map_table(use);
    assert(crail_use_enter(t, 0, 0, 9, 1, 0, w.generations));
    close(gone);
    end(&w);
    assert(access(path, F_OK) == 0 && access(dead, F_OK) == 0);

    w = begin();
    assert(crail_storage_use_adopt(w.s, path) == 0);
    assert(crail_storage_use_adopt(w.s, dead) == 1 && access(dead, F_OK) != 0);
    assert(crail_storage_use_adopt(w.s, dead) == -ENOENT);
    int fd = open(dead, O_RDWR | O_CREAT, 0600);
    assert(crail_storage_use_adopt(w.s, dead) == -EINVAL && access(dead, F_OK) == 0);
    assert(ftruncate(fd, sizeof(*t)) == 0);
    assert(crail_storage_use_adopt(w.s, dead) == -EINVAL);
    assert(crail_storage_use_adopt(w.s, folder) < 0);
    close(fd);
    unlink(dead);
    int ch = channel(&w);
    struct crail_retire orders[1] = {one_order(9, 1, 1)}, done[1];
    order(ch, orders, 1);
    assert(!readable(ch, 120) && stats(&w).use_tables == 1);
    close(use);
    munmap(t, sizeof(*t));
    assert(confirmed(ch, done, 1) == 1 && access(path, F_OK) != 0 && stats(&w).use_tables == 0);
    close(ch);
    end(&w);
}

static void test_an_orphan_nobody_waits_for_goes_too(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    assert(crail_storage_use_closed(w.s, handle) == 0 && stats(&w).use_tables == 1);
    close(use);
    uint64_t limit = crail_clock_ns() + 10000000000u;
    while (stats(&w).use_tables) {
        assert(crail_clock_ns() < limit);
        usleep(20000);
    }
    assert(access(path, F_OK) != 0);
    end(&w);
}

static void test_a_transfer_over_tcp_holds_its_extent(void) {
    struct world w = begin();
    int ch = channel(&w), writer = data_connection(&w, 1), reader = data_connection(&w, 0);
    uint8_t half[4096];
    memset(half, 5, sizeof(half));
    struct crail_data_request q = request(CRAIL_DATA_WRITE, 0, 2, 0, 0, 8192);
    send_all(writer, &q, sizeof(q));
    send_all(writer, half, sizeof(half));
    struct crail_data_request big = request(CRAIL_DATA_READ, 8, 1000, 0, 0, 1000 * 4096); /* more than a buffer holds */
    send_all(reader, &big, sizeof(big));
    assert(reply_to(reader, &big) == 0);
    while (stats(&w).bytes_in < 4096) {
    }
    struct crail_retire orders[3] = {one_order(0, 2, 1), one_order(8, 1000, 1), one_order(2, 6, 1)}, done[3];
    order(ch, orders, 3);
    assert(confirmed(ch, done, 3) == 1 && done[0].granule == 2 && !readable(ch, 120));
    int late = data_connection(&w, 0);
    assert(ask(late, request(CRAIL_DATA_READ, 0, 2, 0, 0, 1), NULL) == CRAIL_E_STALE_LOCATION);
    close(late);
    send_all(writer, half, sizeof(half));
    assert(reply_to(writer, &q) == 0);
    assert(confirmed(ch, done, 3) == 1 && done[0].granule == 0);
    close(reader); /* in mid-read */
    assert(confirmed(ch, done, 3) == 1 && done[0].granule == 8);

    q = request(CRAIL_DATA_WRITE, 0, 2, 1, 0, 8192); /* and a writer that dies in mid-write */
    send_all(writer, &q, sizeof(q));
    while (stats(&w).retires_waiting == 0) {
        orders[0] = one_order(0, 2, 2);
        order(ch, orders, 1);
        if (readable(ch, 20)) /* the order was faster than the request: the request is stale */
            break;
    }
    close(writer);
    assert(confirmed(ch, done, 3) == 1 && done[0].granule == 0 && done[0].generation == 2);
    close(ch);
    end(&w);
}

static void test_a_transfer_that_stands_still_gives_way(void) {
    tuning.stall_ns = 1000000000;
    struct world w = begin();
    int ch = channel(&w), stalled = data_connection(&w, 1), unasked = data_connection(&w, 0);
    uint8_t byte = 5;
    struct crail_data_request q = request(CRAIL_DATA_WRITE, 0, 2, 0, 0, 8192);
    struct crail_data_request q2 = request(CRAIL_DATA_WRITE, 4, 1, 0, 0, 2);
    send_all(stalled, &q, sizeof(q)), send_all(unasked, &q2, sizeof(q2));
    send_all(stalled, &byte, 1), send_all(unasked, &byte, 1);
    while (stats(&w).bytes_in < 2) {
    }
    struct crail_retire orders[1] = {one_order(0, 2, 1)}, done[1];
    order(ch, orders, 1);
    for (int i = 0; i < 15; i++) { /* slow is not still */
        assert(!readable(ch, 100) && !readable(stalled, 0));
        send_all(stalled, &byte, 1);
    }
    uint64_t from = crail_clock_ns();
    expect_closed(stalled);
    assert(crail_clock_ns() - from > 500000000);
    assert(confirmed(ch, done, 1) == 1 && stats(&w).connections == 1);
    send_all(unasked, &byte, 1); /* older than that, and in nobody's way */
    assert(reply_to(unasked, &q2) == 0);
    close(unasked), close(ch);
    end(&w);
}

static void test_there_are_not_more_connections_than_allowed(void) {
    tuning.connections_max = 3;
    struct world w = begin();
    int fd[3], pair[2];
    for (int i = 0; i < 3; i++)
        fd[i] = data_connection(&w, 0);
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    assert(crail_storage_data_attach(w.s, pair[1]) == -EMFILE);
    expect_closed(pair[0]);
    close(fd[0]);
    while (stats(&w).connections == 3) {
    }
    fd[0] = data_connection(&w, 0);
    assert(ask(fd[0], request(CRAIL_DATA_READ, 0, 1, 0, 0, 0), NULL) == 0);
    close(fd[0]);
    while (stats(&w).connections == 3) {
    }
    struct rlimit before, few;
    assert(getrlimit(RLIMIT_NOFILE, &before) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    few = before, few.rlim_cur = 4; /* half of so few is for connections */
    assert(setrlimit(RLIMIT_NOFILE, &few) == 0);
    int rc = crail_storage_data_attach(w.s, pair[1]);
    assert(setrlimit(RLIMIT_NOFILE, &before) == 0 && rc == -EMFILE);
    close(pair[0]), close(fd[1]), close(fd[2]);
    end(&w);
}

int main(void) {
    tests_begin();
    test_what_no_slot_names_is_confirmed_at_once();
    test_a_named_extent_waits_for_its_slot();
    test_slots_end_with_the_last_process_that_holds_the_table();
    test_a_table_outlives_the_server();
    test_an_orphan_nobody_waits_for_goes_too();
    test_a_transfer_over_tcp_holds_its_extent();
    test_a_transfer_that_stands_still_gives_way();
    test_there_are_not_more_connections_than_allowed();
    return tests_end();
}
