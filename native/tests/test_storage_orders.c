/* The storage server: its retire channel, and as many orders as there are views. sources: data base */
#include "storage_kit.h"

/* ---- as many orders as there are views ---------------------------------------------- */

#define VIEW_TABLES 25u
#define VIEWS 100000u /* named extents, of one granule each */

struct views {
    struct world w;
    int use[VIEW_TABLES], channel;
    struct crail_use_table *table[VIEW_TABLES];
    bool confirmed[VIEWS + 1];
};

static void views_begin(struct views *v) {
    char path[128], name[16];
    uint32_t handle;
    *v = (struct views){.w = begin_with(VIEWS + 1)};
    v->channel = channel(&v->w);
    for (uint32_t i = 0; i < VIEW_TABLES; i++) {
        snprintf(name, sizeof(name), "use-%u", i);
        v->use[i] = crail_storage_use_create(v->w.s, path_of(name, path), i, &handle);
        v->table[i] = map_table(v->use[i]);
    }
    for (uint32_t i = 0; i < VIEWS; i++)
        assert(crail_use_enter(v->table[i / 4096], i % 4096, 0, i, 1, 0, v->w.generations));
}

static void views_end(struct views *v) {
    for (uint32_t i = 0; i < VIEW_TABLES; i++) {
        munmap(v->table[i], sizeof(*v->table[i]));
        close(v->use[i]);
        assert(crail_storage_use_closed(v->w.s, i + 1) == 0);
    }
    close(v->channel);
    end(&v->w);
}

static void views_order(struct views *v, uint32_t first, uint32_t n) {
    struct crail_retire orders[CRAIL_RETIRES_MAX];
    for (uint32_t i = 0; i < n; i += CRAIL_RETIRES_MAX) {
        uint32_t part = n - i < CRAIL_RETIRES_MAX ? n - i : CRAIL_RETIRES_MAX;
        for (uint32_t k = 0; k < part; k++)
            orders[k] = one_order(first + i + k, 1, 1);
        order(v->channel, orders, part);
    }
}

/* Takes `n` confirmations, each of its own. */
static void views_confirmed(struct views *v, uint32_t n) {
    struct crail_retire done[CRAIL_RETIRES_MAX];
    while (n) {
        assert(readable(v->channel, 60000));
        uint32_t part = confirmed(v->channel, done, CRAIL_RETIRES_MAX);
        assert(part <= n);
        n -= part;
        for (uint32_t i = 0; i < part; i++) {
            assert(!v->confirmed[done[i].granule]);
            v->confirmed[done[i].granule] = true;
        }
    }
}

static void test_orders_that_wait_hold_up_no_others(void) {
    static struct views v;
    views_begin(&v);
    views_order(&v, 0, VIEWS);
    while (stats(&v.w).retires_waiting < VIEWS)
        usleep(10000);
    uint64_t from = crail_clock_ns(), cpu = stats(&v.w).loop_cpu_ns;
    usleep(500000);
    double busy = (double)(stats(&v.w).loop_cpu_ns - cpu) / (double)(crail_clock_ns() - from);
    from = crail_clock_ns();
    views_order(&v, VIEWS, 1); /* nobody looks at it */
    views_confirmed(&v, 1);
    double fresh_ms = (double)(crail_clock_ns() - from) / 1e6;
    views_order(&v, 5000, 1024); /* they wait already */
    for (uint32_t i = 0; i < VIEWS; i += 1000)
        crail_use_leave(v.table[i / 4096], i % 4096);
    from = crail_clock_ns();
    views_confirmed(&v, VIEWS / 1000);
    printf("%u orders wait: loop %.1f %% busy, a new one confirmed in %.2f ms, all that are free in %.0f ms\n", VIEWS,
           100 * busy, fresh_ms, (double)(crail_clock_ns() - from) / 1e6);
    assert(stats(&v.w).retires_waiting == VIEWS - VIEWS / 1000 && busy < 0.2 && !readable(v.channel, 50));
    for (uint32_t i = 0; i < VIEWS; i++)
        crail_use_leave(v.table[i / 4096], i % 4096);
    views_confirmed(&v, VIEWS - VIEWS / 1000);
    assert(stats(&v.w).retires_waiting == 0);
    views_end(&v);
}

static void test_a_table_cut_short_names_what_is_left(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    struct crail_use_table *t = map_table(use);
    static const uint32_t slots[] = {3, 100, 2000};
    for (uint32_t i = 0; i < 3; i++)
        assert(crail_use_enter(t, slots[i], 0, i, 1, 0, w.generations));
    int ch = channel(&w);
    struct crail_retire orders[3] = {one_order(0, 1, 1), one_order(1, 1, 1), one_order(2, 1, 1)}, done[3];
    order(ch, orders, 3);
    assert(!readable(ch, 120));
    static const int cuts[] = {64 + 8 * 2000 + 7, 64 + 8 * 100, 20}; /* into a word, before one, into the head */
    for (uint32_t i = 3; i-- > 0;) {
        assert(ftruncate(use, cuts[2 - i]) == 0);
        assert(confirmed(ch, done, 3) == 1 && done[0].granule == i && (i == 0 || !readable(ch, 120)));
    }
    assert(ftruncate(use, 0) == 0);
    orders[0].generation = 2;
    order(ch, orders, 1);
    assert(confirmed(ch, done, 1) == 1);
    munmap(t, sizeof(*t));
    close(use), close(ch);
    assert(crail_storage_use_closed(w.s, handle) == 0);
    end(&w);
}

static void test_a_new_channel_replaces_the_old(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    struct crail_use_table *t = map_table(use);
    assert(crail_use_enter(t, 0, 0, 3, 1, 0, w.generations));
    int first = channel(&w);
    struct crail_retire orders[1] = {one_order(3, 1, 1)}, done[1];
    order(first, orders, 1);
    while (stats(&w).retires_waiting == 0) {
    }
    int second = channel(&w);
    expect_closed(first);
    assert(stats(&w).retires_waiting == 0);
    crail_use_leave(t, 0);
    assert(!readable(second, 120)); /* the old order is forgotten */
    order(second, orders, 1);
    assert(confirmed(second, done, 1) == 1);
    close(second);
    int third = channel(&w); /* an end seen before a replacement is no different */
    order(third, orders, 1);
    assert(confirmed(third, done, 1) == 1);
    munmap(t, sizeof(*t));
    close(use), close(third);
    assert(crail_storage_use_closed(w.s, handle) == 0);
    end(&w);
}

static void test_bad_orders_close_the_channel_and_do_nothing(void) {
    struct world w = begin();
    struct crail_retire bad[] = {
        {.region = 1, .granules = 1, .generation = 9},
        {.granule = GRANULES, .granules = 1, .generation = 9},
        {.granule = 1, .granules = GRANULES, .generation = 9},
        {.granule = UINT32_MAX, .granules = UINT32_MAX, .generation = 9},
        {.granule = 1, .granules = 0, .generation = 9},
        {.granule = 1, .granules = 1, .reserved = 1, .generation = 9},
    };
    uint64_t errors = 0;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++, errors++) {
        int ch = channel(&w);
        struct crail_retire orders[2] = {one_order(0, 1, 9), bad[i]};
        order(ch, orders, 2);
        expect_closed(ch);
    }
    struct crail_retire twice[2] = {one_order(0, 1, 9), one_order(0, 2, 9)};
    int ch = channel(&w);
    order(ch, twice, 2);
    expect_closed(ch);
    struct crail_retire_frame heads[] = {
        {.magic = 1, .size = 40, .count = 1},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 16, .count = 0},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 41, .count = 1},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 40, .count = 1, .flags = 1},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 16 + 24 * 1025, .count = 1025},
        {.magic = CRAIL_RETIRE_MAGIC, .size = 40, .count = 0x0aaaaaab},
    };
    errors++;
    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++, errors++) {
        ch = channel(&w);
        send_all(ch, &heads[i], sizeof(heads[i]));
        expect_closed(ch);
    }
    assert(stats(&w).protocol_errors == errors && stats(&w).retires_ordered == 0);
    for (uint32_t i = 0; i < GRANULES; i++)
        assert(atomic_load(&w.generations[i]) == 0);
    end(&w);
}

static void test_confirmations_nobody_reads_are_kept(void) {
    struct world w = begin();
    int ch = channel(&w);
    static struct crail_retire orders[CRAIL_RETIRES_MAX], done[CRAIL_RETIRES_MAX];
    for (uint32_t i = 0; i < CRAIL_RETIRES_MAX; i++)
        orders[i] = one_order(i, 1, 1);
    uint64_t sent = 0, got = 0;
    struct pollfd p = {ch, POLLOUT, 0};
    while (sent < 200 && poll(&p, 1, 200) == 1) { /* until nothing more goes in: it stopped reading */
        order(ch, orders, CRAIL_RETIRES_MAX);
        sent++;
    }
    while (got < sent * CRAIL_RETIRES_MAX)
        got += confirmed(ch, done, CRAIL_RETIRES_MAX);
    assert(got == sent * CRAIL_RETIRES_MAX && !readable(ch, 50));
    close(ch);
    end(&w);
}

int main(void) {
    tests_begin();
    test_a_table_cut_short_names_what_is_left();
    test_orders_that_wait_hold_up_no_others();
    test_a_new_channel_replaces_the_old();
    test_bad_orders_close_the_channel_and_do_nothing();
    test_confirmations_nobody_reads_are_kept();
    return tests_end();
}
