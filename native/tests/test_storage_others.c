/* The storage server: retiring all that a namenode does not know any more. sources: data base */
#include "storage_kit.h"

static uint32_t busy_runs(struct world *w, const uint32_t *live, uint32_t n, uint32_t *out, uint32_t max) {
    int found = crail_storage_retire_others(w->s, live, n);
    assert(found >= 0 && (uint32_t)found <= max);
    assert(crail_storage_busy(w->s, out, max) == found);
    return (uint32_t)found;
}

struct holder {
    int use;
    uint32_t handle;
};

static struct crail_use_table *table(struct world *w, struct holder *h) {
    static uint32_t tables;
    char path[128], name[32];
    snprintf(name, sizeof(name), "use-%u", ++tables);
    h->use = crail_storage_use_create(w->s, path_of(name, path), 1, &h->handle);
    assert(h->use >= 0);
    return map_table(h->use);
}

static void leave_table(struct world *w, struct crail_use_table *t, struct holder *h) {
    munmap(t, sizeof(*t));
    close(h->use);
    assert(crail_storage_use_closed(w->s, h->handle) == 0);
}

static void test_what_lives_keeps_its_generations_and_all_else_is_raised(void) {
    struct world w = begin();
    uint32_t live[] = {0, 0, 3, 0, 3, 1, 0, 500, 100, 0, GRANULES - 1, 1}, busy[3];
    assert(busy_runs(&w, live, 4, busy, 1) == 0);
    for (uint32_t g = 0; g < GRANULES; g++) {
        bool lives = g < 4 || (g >= 500 && g < 600) || g == GRANULES - 1;
        assert(atomic_load(&w.generations[g]) == !lives);
    }
    assert(busy_runs(&w, live, 4, busy, 1) == 0); /* again: the rest is a life older, that is all */
    assert(atomic_load(&w.generations[0]) == 0 && atomic_load(&w.generations[4]) == 2);
    assert(busy_runs(&w, NULL, 0, busy, 1) == 0);
    assert(atomic_load(&w.generations[0]) == 1 && atomic_load(&w.generations[4]) == 3);
    end(&w);
}

static void test_many_granules_take_many_steps_and_none_is_left_out(void) {
    struct world w = begin_with(200001);
    uint32_t live[3 * 50000], busy[3];
    for (uint32_t i = 0; i < 50000; i++)
        live[3 * i] = 0, live[3 * i + 1] = 4 * i + 1, live[3 * i + 2] = 1 + i % 3;
    assert(busy_runs(&w, live, 50000, busy, 1) == 0);
    for (uint32_t g = 0; g < 200001; g++) {
        bool lives = g < 200000 && g % 4 && g % 4 <= 1 + g / 4 % 3;
        assert(atomic_load(&w.generations[g]) == !lives);
    }
    end(&w);
}

static void test_wrong_runs_are_refused_and_harm_nothing(void) {
    struct world w = begin();
    static const uint32_t wrong[][6] = {
        {0, 5, 0, 0, 9, 1},        /* empty */
        {0, 5, 2, 0, 6, 1},        /* one over the other */
        {0, 5, 2, 0, 5, 2},        /* twice */
        {0, 9, 1, 0, 5, 1},        /* not by place */
        {0, 5, 1, 1, 0, 1},        /* no such region */
        {0, 5, 1, 0, 9, GRANULES}, /* beyond the end */
        {0, 5, 1, 0, UINT32_MAX, 2},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
        assert(crail_storage_retire_others(w.s, wrong[i], 2) == -EINVAL);
    for (uint32_t g = 0; g < GRANULES; g++)
        assert(atomic_load(&w.generations[g]) == 0);
    end(&w);
}

static void test_who_names_something_outside_keeps_it_until_he_leaves(void) {
    struct world w = begin();
    struct holder use;
    struct crail_use_table *t = table(&w, &use);
    uint32_t live[] = {0, 100, 50}, busy[12];
    assert(crail_use_enter(t, 0, 0, 10, 5, 0, w.generations));   /* an extent that the namenode has forgotten */
    assert(crail_use_enter(t, 1, 0, 10, 5, 0, w.generations));   /* twice */
    assert(crail_use_enter(t, 2, 0, 100, 50, 0, w.generations)); /* one that lives */
    assert(crail_use_enter(t, 3, 0, 95, 40, 0, w.generations));  /* it cannot be so long: something lives there */
    assert(busy_runs(&w, live, 1, busy, 4) == 2);
    assert(busy[0] == 0 && busy[1] == 10 && busy[2] == 5 && busy[3] == 0 && busy[4] == 95 && busy[5] == 5);
    assert(!crail_use_enter(t, 4, 0, 10, 5, 0, w.generations)); /* nobody new comes in */
    assert(crail_use_enter(t, 4, 0, 100, 50, 0, w.generations));
    int ch = channel(&w);
    struct crail_retire orders[2] = {one_order(10, 5, 2), one_order(95, 5, 2)}, done[2];
    order(ch, orders, 2);
    assert(!readable(ch, 60));
    crail_use_leave(t, 0);
    crail_use_leave(t, 3);
    assert(confirmed(ch, done, 2) == 1 && done[0].granule == 95);
    assert(!readable(ch, 60));
    crail_use_leave(t, 1);
    assert(confirmed(ch, done, 2) == 1 && done[0].granule == 10);
    assert(atomic_load(&w.generations[10]) == 2 && atomic_load(&w.generations[100]) == 0);
    leave_table(&w, t, &use);
    close(ch);
    end(&w);
}

static void test_a_holder_who_lies_harms_no_other_one(void) {
    struct world w = begin();
    struct holder use, other;
    struct crail_use_table *t = table(&w, &use), *liar = table(&w, &other);
    uint32_t busy[12];
    assert(crail_use_enter(t, 0, 0, 200, 20, 0, w.generations));
    atomic_store(&liar->high_water, 9);
    atomic_store(&liar->slot[0], crail_use_mark(0, 190, 15)); /* it covers the beginning of his */
    atomic_store(&liar->slot[1], UINT64_MAX);
    atomic_store(&liar->slot[2], crail_use_mark(7, 0, 1)); /* no such region */
    atomic_store(&liar->slot[3], 1ull << 63);
    atomic_store(&liar->slot[4], crail_use_mark(0, GRANULES, 1));
    atomic_store(&liar->slot[5], crail_use_word(0, 1000)); /* no length: all up to the end */
    atomic_store(&liar->slot[6], crail_use_mark(0, 0, UINT32_MAX) | crail_use_mark(0, 1010, 1));
    assert(busy_runs(&w, NULL, 0, busy, 4) == 2);
    assert(busy[1] == 190 && busy[2] == 30 && busy[4] == 1000 && busy[5] == GRANULES - 1000);
    int ch = channel(&w);
    struct crail_retire orders[2] = {one_order(190, 30, 2), one_order(1000, 24, 2)}, done[2];
    order(ch, orders, 2);
    for (uint32_t i = 0; i < 9; i++)
        atomic_store(&liar->slot[i], 0);
    assert(confirmed(ch, done, 2) == 1 && done[0].granule == 1000);
    assert(!readable(ch, 60)); /* it is named in the middle, by the one who told the truth */
    crail_use_leave(t, 0);
    assert(confirmed(ch, done, 2) == 1 && done[0].granule == 190 && done[0].granules == 30);
    atomic_store(&liar->slot[0], crail_use_mark(0, 205, 1)); /* now a name like any other */
    orders[0] = one_order(190, 30, 3);
    order(ch, orders, 1);
    assert(confirmed(ch, done, 2) == 1);
    leave_table(&w, t, &use);
    leave_table(&w, liar, &other);
    close(ch);
    end(&w);
}

static void test_the_old_channel_ends_and_what_waited_there_is_forgotten(void) {
    struct world w = begin();
    struct holder use;
    struct crail_use_table *t = table(&w, &use);
    uint32_t busy[3];
    assert(crail_use_enter(t, 0, 0, 4, 3, 0, w.generations));
    int ch = channel(&w);
    struct crail_retire one = one_order(4, 3, 1);
    order(ch, &one, 1);
    while (stats(&w).retires_waiting != 1) {
    }
    assert(busy_runs(&w, NULL, 0, busy, 1) == 1 && busy[1] == 4 && busy[2] == 3);
    expect_closed(ch);
    assert(stats(&w).retires_waiting == 0);
    ch = channel(&w);
    one = one_order(4, 3, 3);
    order(ch, &one, 1);
    assert(!readable(ch, 60));
    crail_use_leave(t, 0);
    assert(confirmed(ch, &one, 1) == 1);
    leave_table(&w, t, &use);
    close(ch);
    end(&w);
}

/* Somebody takes and leaves extents as fast as he can while all is retired: whoever got in before his generation was
 * raised is found. */
struct taker {
    struct world *w;
    struct crail_use_table *t;
    _Atomic bool stop, holds;
    uint32_t granule;
};

static void *take_one(void *arg) {
    struct taker *k = arg;
    for (uint32_t g = 0; !atomic_load(&k->stop); g = (g + 7) % GRANULES) {
        if (crail_use_enter(k->t, 0, 0, g, 1, 0, k->w->generations)) {
            if (g > GRANULES / 2 && atomic_load(&k->w->generations[0])) { /* it has begun: now we stay */
                k->granule = g;
                atomic_store(&k->holds, true);
                return NULL;
            }
            crail_use_leave(k->t, 0);
        }
    }
    return NULL;
}

static void test_a_slot_named_meanwhile_is_found(void) {
    for (uint32_t round = 0; round < 100; round++) {
        struct world w = begin();
        struct holder use;
        struct crail_use_table *t = table(&w, &use);
        struct taker k = {.w = &w, .t = t};
        pthread_t thread;
        uint32_t busy[6];
        assert(pthread_create(&thread, NULL, take_one, &k) == 0);
        int n = crail_storage_retire_others(w.s, NULL, 0);
        atomic_store(&k.stop, true);
        pthread_join(thread, NULL);
        assert(crail_storage_busy(w.s, busy, 2) == n);
        if (atomic_load(&k.holds))
            assert(n == 1 && busy[1] == k.granule && busy[2] == 1);
        leave_table(&w, t, &use);
        end(&w);
    }
}

int main(void) {
    tests_begin();
    test_what_lives_keeps_its_generations_and_all_else_is_raised();
    test_many_granules_take_many_steps_and_none_is_left_out();
    test_wrong_runs_are_refused_and_harm_nothing();
    test_who_names_something_outside_keeps_it_until_he_leaves();
    test_a_holder_who_lies_harms_no_other_one();
    test_the_old_channel_ends_and_what_waited_there_is_forgotten();
    test_a_slot_named_meanwhile_is_found();
    return tests_end();
}
