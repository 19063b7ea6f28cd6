/* The reuse rule of the storage server, attacked, and with each guard switched off. sources: data base */
#include "storage_kit.h"

/* ---- the reuse rule, attacked ----------------------------------------------------- */

#define ATTACK_ROUNDS 400

struct attack {
    struct world *w;
    struct crail_use_table *t;
    uint32_t slot;
    _Atomic uint64_t owner; /* the generation whose bytes lie in the extent now */
    _Atomic bool over;
    _Atomic uint64_t wrong, entered;
};

/* Enters with the generation of the moment, and must find that no other life began before it left. */
static void *attacker(void *arg) {
    struct attack *a = arg;
    while (!atomic_load(&a->over)) {
        uint64_t generation = atomic_load(&a->owner);
        if (!crail_use_enter(a->t, a->slot, 0, 0, 1, generation, a->w->generations))
            continue;
        atomic_fetch_add(&a->entered, 1);
        for (int i = 0; i < 200; i++)
            if (atomic_load(&a->owner) != generation)
                atomic_fetch_add(&a->wrong, 1);
        crail_use_leave(a->t, a->slot);
    }
    return NULL;
}

static void test_no_reader_outlives_a_confirmed_retire(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-1", path), 1, &handle);
    struct attack a = {.w = &w, .t = map_table(use), .slot = 3};
    int ch = channel(&w);
    pthread_t thread;
    pthread_create(&thread, NULL, attacker, &a);
    struct crail_retire done[1];
    for (uint64_t generation = 1; generation <= ATTACK_ROUNDS; generation++) {
        struct crail_retire orders[1] = {one_order(0, 1, generation)};
        order(ch, orders, 1);
        assert(confirmed(ch, done, 1) == 1 && done[0].generation == generation);
        atomic_store(&a.owner, generation); /* the granule has a new owner */
    }
    atomic_store(&a.over, true);
    pthread_join(thread, NULL);
    assert(atomic_load(&a.wrong) == 0);
    munmap(a.t, sizeof(*a.t));
    close(use), close(ch);
    assert(crail_storage_use_closed(w.s, handle) == 0);
    end(&w);
}

/* ---- switched off, the guards are seen to matter ------------------------------------- */

/* Runs `attempt` in a child with the guard off; returns its exit status. Before any thread of ours exists. */
static int without_guard(const char *name, int (*attempt)(void)) {
    pid_t child = fork();
    assert(child >= 0);
    if (child == 0) {
        setenv("CRAILPY_TEST_GUARDS_OFF", name, 1);
        _exit(attempt());
    }
    int status;
    assert(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* 1: a named extent was confirmed, or its generation stayed. 0: the guards held. */
static int attempt_shm(void) {
    struct world w = begin();
    char path[128];
    uint32_t handle;
    int use = crail_storage_use_create(w.s, path_of("use-g", path), 1, &handle);
    struct crail_use_table *t = map_table(use);
    assert(crail_use_enter(t, 0, 0, 0, 1, 0, w.generations));
    int ch = channel(&w);
    struct crail_retire orders[1] = {one_order(0, 1, 1)};
    order(ch, orders, 1);
    bool bitten = readable(ch, 200) || crail_use_enter(t, 1, 0, 0, 1, 0, w.generations);
    munmap(t, sizeof(*t));
    close(use), close(ch);
    crail_storage_use_closed(w.s, handle);
    end(&w);
    return bitten;
}

/* 1: the TCP server served what it should not have. */
static int attempt_tcp(void) {
    struct world w = begin();
    int fd = data_connection(&w, 0), ch = channel(&w);
    struct crail_data_request q = request(CRAIL_DATA_READ, 0, 1, 0, 0, 0);
    q.extent.key++;
    bool bitten = ask(fd, q, NULL) == 0;
    bitten |= ask(fd, request(CRAIL_DATA_READ, 0, 1, 1, 0, 0), NULL) == 0;
    uint8_t byte = 1;
    q = request(CRAIL_DATA_WRITE, 0, 1, 0, 0, 2);
    send_all(fd, &q, sizeof(q));
    send_all(fd, &byte, 1);
    while (stats(&w).bytes_in < 1) {
    }
    struct crail_retire orders[1] = {one_order(0, 1, 1)};
    order(ch, orders, 1);
    bitten |= readable(ch, 200);
    close(fd), close(ch);
    end(&w);
    return bitten;
}

static void test_each_guard_is_needed(void) {
#ifdef CRAIL_TEST_GUARDS
    static const char *shm[] = {"slot", "generation", "retire-scan", "retire-generation"};
    static const char *tcp[] = {"tcp-slot", "tcp-generation", "key", "other,key"};
    assert(without_guard("", attempt_shm) == 0 && without_guard("slo,slots", attempt_shm) == 0);
    assert(without_guard("", attempt_tcp) == 0);
    for (size_t i = 0; i < 4; i++) {
        assert(without_guard(shm[i], attempt_shm) == 1);
        assert(without_guard(tcp[i], attempt_tcp) == 1);
    }
#else
    (void)without_guard, (void)attempt_shm, (void)attempt_tcp;
#endif
}

int main(void) {
    tests_begin();
    test_each_guard_is_needed();
    test_no_reader_outlives_a_confirmed_retire();
    return tests_end();
}
