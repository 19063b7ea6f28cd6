/* Jobs: who holds one, when it ends, what it is charged with. sources: meta base */
#include "meta_kit.h"

#define SECOND (1000000000ll)

static struct answer job(struct kit *k, const char *path, uint64_t token, int64_t ttl_s, uint64_t bytes,
                         uint64_t nodes) {
    struct crail_quota q = {bytes, nodes};
    kit_with(k, (struct crail_options){
                    .flags = CRAIL_OPTION_TTL, .ttl_ns = (uint64_t)(ttl_s * SECOND), .storage_class = CRAIL_CLASS_ANY});
    return kit_op(k, CRAIL_OP_JOB, CRAIL_OPF_PARENTS, path, &q, sizeof(q), 0, token, 0);
}

static uint64_t begin(struct kit *k, const char *path, uint64_t token, int64_t ttl_s, uint64_t bytes, uint64_t nodes) {
    struct answer a = job(k, path, token, ttl_s, bytes, nodes);
    WANT(a, OK);
    assert(a.r.version && a.r.kind == CRAIL_KIND_DIRECTORY);
    return a.r.version;
}

static struct answer put_in(struct kit *k, uint64_t number, const char *path, uint32_t size) {
    static const char value[CRAIL_INLINE_MAX];
    kit_with(k, (struct crail_options){.job = number, .storage_class = CRAIL_CLASS_ANY});
    return kit_put(k, CRAIL_OPF_PARENTS, path, value, size);
}

static struct answer put(struct kit *k, const char *path, uint32_t size) {
    static const char value[CRAIL_INLINE_MAX];
    return kit_put(k, CRAIL_OPF_PARENTS, path, value, size);
}

static const struct crail_job *job_at(struct kit *k, uint64_t number) {
    crail_ref ref = crail_job_find(k->m, number);
    assert(ref);
    return crail_job_at(k->m, ref);
}

static void CHARGED(struct kit *k, uint64_t number, uint64_t nodes, uint64_t bytes) {
    const struct crail_job *j = job_at(k, number);
    if (j->nodes != nodes || j->bytes != bytes) {
        fprintf(stderr, "charged with %" PRIu64 " nodes, %" PRIu64 " bytes\n", j->nodes, j->bytes);
        abort();
    }
    kit_check(k);
}

/* ---- holders ------------------------------------------------------------------------ */

static void a_job_goes_at_once_when_its_last_holder_says_so(void) {
    struct kit k;
    struct crail_meta_session *other;
    kit_open(&k, 64 << 20);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    assert(crail_meta_session_open(k.m, 99, &other) == 0);
    struct crail_meta_session *mine = k.s;
    uint64_t number = begin(&k, "/jobs/a", 1, 60, 0, 0);
    assert(begin(&k, "/jobs/a", 1, 60, 0, 0) == number && stats_of(&k).holds == 1); /* the same token again */
    WANT(job(&k, "/jobs/b", 1, 60, 0, 0), E(INVALID_ARGUMENT));                     /* a token in use */
    k.s = other;
    assert(begin(&k, "/jobs/a", 1, 60, 0, 0) == number);
    assert(begin(&k, "/jobs/a", 2, 60, 0, 0) == number);
    k.s = mine;
    WANT(put(&k, "/jobs/a/x/y", 10), OK);
    WANT(put_in(&k, number, "/elsewhere/z", 10), OK);
    WANT(kit_end(&k, 1), OK);
    kit_settle(&k);
    WANT(kit_get(&k, "/jobs/a/x/y"), OK);
    k.s = other;
    WANT(kit_end(&k, 1), OK);
    WANT(kit_get(&k, "/jobs/a/x/y"), OK);
    WANT(kit_end(&k, 2), OK);
    WANT(kit_stat(&k, "/jobs/a"), E(NOT_FOUND));
    kit_settle(&k);
    WANT(kit_get(&k, "/elsewhere/z"), E(NOT_FOUND));
    WANT(put_in(&k, number, "/elsewhere/z", 10), E(NOT_FOUND)); /* no such job any more */
    assert(stats_of(&k).jobs == 0 && stats_of(&k).holds == 0 && stats_of(&k).nodes == 3);
    WANT(kit_rmtree(&k, "/jobs"), OK);
    WANT(kit_rmtree(&k, "/elsewhere"), OK);
    assert(stats_of(&k).arena_bytes_used == bytes);
    kit_check(&k);
    kit_close(&k);
}

static void a_job_outlives_its_last_session_by_its_ttl(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    struct crail_meta_session *mine = k.s;
    struct crail_meta_session *other, *third;
    assert(crail_meta_session_open(k.m, 99, &other) == 0 && crail_meta_session_open(k.m, 100, &third) == 0);
    k.s = other;
    uint64_t number = begin(&k, "/j", 5, 60, 0, 0);
    WANT(put(&k, "/j/x", 1), OK);
    k.s = mine;
    crail_meta_session_end(k.m, other);
    kit_pass(&k, 59 * SECOND);
    WANT(kit_get(&k, "/j/x"), OK);
    k.s = third;
    assert(begin(&k, "/j", 7, 60, 0, 0) == number); /* somebody holds it again */
    k.s = mine;
    kit_pass(&k, 100 * SECOND);
    WANT(kit_get(&k, "/j/x"), OK);
    crail_meta_session_end(k.m, third);
    kit_pass(&k, 59 * SECOND);
    WANT(kit_get(&k, "/j/x"), OK);
    struct answer a = kit_stat(&k, "/j");
    struct crail_stat st;
    memcpy(&st, a.data, sizeof(st));
    assert(st.expires_ns > k.now_ns && st.expires_ns < k.now_ns + 2 * SECOND);
    kit_pass(&k, SECOND);
    WANT(kit_stat(&k, "/j"), E(NOT_FOUND));
    assert(stats_of(&k).jobs == 0 && stats_of(&k).nodes == 1);
    kit_check(&k);
    kit_close(&k);
}

static void a_job_without_ttl_goes_with_its_last_session(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    struct crail_meta_session *mine = k.s, *other;
    assert(crail_meta_session_open(k.m, 99, &other) == 0);
    k.s = other;
    begin(&k, "/j", 5, 0, 0, 0);
    k.s = mine;
    crail_meta_session_end(k.m, other);
    kit_settle(&k);
    WANT(kit_stat(&k, "/j"), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
}

static void who_removes_the_directory_ends_the_job(void) {
    struct kit k;
    char path[32];
    kit_open(&k, 64 << 20);
    uint64_t number = begin(&k, "/j", 1, 60, 0, 0);
    for (uint32_t i = 0; i < 300; i++) {
        sprintf(path, "/j/%u", i);
        WANT(put(&k, path, 1), OK);
        sprintf(path, "/member-%u", i);
        WANT(put_in(&k, number, path, 100), OK);
    }
    CHARGED(&k, number, 600, 300 + 30000);
    WANT(kit_rmtree(&k, "/j"), OK);
    assert(begin(&k, "/j", 2, 60, 0, 0) != number); /* a new one under the old name */
    do
        kit_check(&k);
    while (crail_meta_step(k.m, 0));
    assert(stats_of(&k).nodes == 2 && stats_of(&k).jobs == 1 && stats_of(&k).holds == 1);
    WANT(kit_end(&k, 1), E(NOT_FOUND));
    WANT(kit_end(&k, 2), OK);
    assert(stats_of(&k).jobs == 0);
    kit_check(&k);
    kit_close(&k);
}

static void only_an_empty_directory_becomes_a_job(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    WANT(put(&k, "/full/leaf", 1), OK);
    WANT(kit_mkdir(&k, 0, "/empty"), OK);
    WANT(kit_make(&k, 0, CRAIL_KIND_TABLE, "/table"), OK);
    WANT(job(&k, "/full", 1, 1, 0, 0), E(NOT_EMPTY));
    WANT(job(&k, "/full/leaf", 1, 1, 0, 0), E(NOT_CONTAINER));
    WANT(job(&k, "/full/leaf/x", 1, 1, 0, 0), E(NOT_CONTAINER));
    WANT(job(&k, "/table", 1, 1, 0, 0), E(EXISTS));
    WANT(job(&k, "/table/x", 1, 1, 0, 0), E(INVALID_ARGUMENT));
    WANT(job(&k, "/", 1, 1, 0, 0), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_JOB, 0, "/no/way", NULL, 0, 0, 1, 0), E(NOT_FOUND));
    WANT(job(&k, "/empty", 1, 1, 0, 0), OK);
    kit_with(&k, (struct crail_options){.flags = CRAIL_OPTION_TTL, .ttl_ns = 5});
    WANT(kit_op(&k, CRAIL_OP_SETATTR, 0, "/empty", NULL, 0, 0, 0, 0), E(INVALID_ARGUMENT));
    kit_check(&k);
    kit_close(&k);
}

/* ---- sums and quotas ------------------------------------------------------------------- */

static void a_job_is_charged_for_all_below_and_its_members(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint64_t outer = begin(&k, "/o", 1, 60, 0, 0), inner = begin(&k, "/o/d/i", 2, 60, 0, 0);
    CHARGED(&k, outer, 2, 0);
    WANT(put(&k, "/o/d/i/a/b", 100), OK);
    CHARGED(&k, inner, 2, 100);
    CHARGED(&k, outer, 4, 100);
    WANT(put(&k, "/o/d/i/a/b", 4000), OK);
    WANT(put(&k, "/o/c", 7), OK);
    CHARGED(&k, inner, 2, 4000);
    CHARGED(&k, outer, 5, 4007);
    WANT(put_in(&k, outer, "/o/d/i/m", 10), OK); /* it is charged once, however often it is named */
    CHARGED(&k, outer, 6, 4017);
    WANT(put_in(&k, inner, "/far", 5), OK);
    CHARGED(&k, inner, 4, 4015);
    CHARGED(&k, outer, 6, 4017);
    WANT(put_in(&k, outer, "/far", 6), OK); /* from one to the other */
    CHARGED(&k, inner, 3, 4010);
    CHARGED(&k, outer, 7, 4023);
    WANT(kit_put(&k, 0, "/far", "", 0), OK); /* says nothing of a job */
    CHARGED(&k, outer, 6, 4017);
    WANT(kit_rename(&k, 0, "/o/d/i/m", "/o/m"), OK);
    CHARGED(&k, inner, 2, 4000);
    CHARGED(&k, outer, 6, 4017);
    WANT(kit_rename(&k, 0, "/o/m", "/m"), OK); /* its option still says outer */
    CHARGED(&k, outer, 6, 4017);
    WANT(kit_rename(&k, 0, "/o/c", "/c"), OK);
    CHARGED(&k, outer, 5, 4010);
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/c", "/o/d/i/a/b"), OK);
    CHARGED(&k, inner, 2, 7);
    WANT(kit_rmtree(&k, "/o/d/i/a"), OK);
    kit_settle(&k);
    CHARGED(&k, inner, 0, 0);
    CHARGED(&k, outer, 3, 10);
    WANT(kit_end(&k, 2), OK);
    WANT(kit_end(&k, 1), OK);
    kit_settle(&k);
    assert(stats_of(&k).jobs == 0 && stats_of(&k).nodes == 2); /* "/" and "/far" */
    kit_check(&k);
    kit_close(&k);
}

static void quotas_refuse_before_anything_is_changed(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 64);
    uint64_t number = begin(&k, "/j", 1, 60, 10000, 4);
    WANT(put(&k, "/j/a", 4000), OK);
    WANT(put(&k, "/j/b/c/d", 1), OK);
    CHARGED(&k, number, 4, 4001);
    WANT(put(&k, "/j/e", 1), E(QUOTA_EXCEEDED));
    WANT(kit_mkdir(&k, 0, "/j/e"), E(QUOTA_EXCEEDED));
    WANT(put_in(&k, number, "/far", 1), E(QUOTA_EXCEEDED));
    WANT(job(&k, "/j/e", 2, 1, 0, 0), E(QUOTA_EXCEEDED));
    WANT(kit_op(&k, CRAIL_OP_INCR, 0, "/j/e", NULL, 0, 0, 1, 0), E(QUOTA_EXCEEDED));
    WANT(kit_remove(&k, 0, "/j/b/c/d"), OK);
    WANT(put(&k, "/j/f/g", 1), E(QUOTA_EXCEEDED)); /* two */
    WANT(kit_stat(&k, "/j/f"), E(NOT_FOUND));
    WANT(put(&k, "/j/g", 4000), OK);
    struct answer a = kit_alloc(&k, 0, 8192);
    struct crail_extent e = extent_at(&a, 0);
    WANT(kit_commit(&k, 0, "/j/g", &e, 1, 0, 6001), E(QUOTA_EXCEEDED));
    WANT(kit_commit(&k, 0, "/j/g", &e, 1, 0, 6000), OK);
    CHARGED(&k, number, 4, 10000);
    WANT(put(&k, "/j/a", 4001), E(QUOTA_EXCEEDED));
    WANT(kit_op(&k, CRAIL_OP_TRUNCATE, 0, "/j/a", NULL, 0, 0, 0, 4001), E(QUOTA_EXCEEDED));
    WANT(put(&k, "/j/a", 3999), OK);
    WANT(put(&k, "/x", 2), OK);
    WANT(kit_remove(&k, 0, "/j/b/c"), OK);
    WANT(kit_rename(&k, 0, "/x", "/j/x"), E(QUOTA_EXCEEDED));
    WANT(kit_rename(&k, CRAIL_OPF_OVERWRITE, "/x", "/j/a"), OK);
    CHARGED(&k, number, 3, 6002);
    begin(&k, "/j", 3, 60, 20000, 0); /* who joins may raise it */
    WANT(put(&k, "/j/a", 4096), OK);
    CHARGED(&k, number, 3, 10096);
    kit_close(&k);
}

static void a_container_with_something_in_it_stays_on_its_side_of_the_border(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint64_t number = begin(&k, "/j", 1, 60, 0, 3);
    WANT(put(&k, "/out/leaf", 1), OK);
    WANT(put(&k, "/j/in/leaf", 1), OK);
    WANT(kit_rename(&k, 0, "/out", "/j/out"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/j/in", "/in"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/j/in", "/j/in-too"), OK);
    WANT(kit_rename(&k, 0, "/out/leaf", "/j/in-too/leaf-2"), OK);
    CHARGED(&k, number, 3, 2);
    WANT(kit_rename(&k, 0, "/out", "/j/out"), E(QUOTA_EXCEEDED));
    WANT(kit_remove(&k, 0, "/j/in-too/leaf-2"), OK);
    WANT(kit_rename(&k, 0, "/out", "/j/out"), OK);
    WANT(put(&k, "/j/out/leaf", 1), E(QUOTA_EXCEEDED)); /* what is made in it is charged now */
    WANT(kit_rename(&k, 0, "/j/out", "/out"), OK);
    WANT(put(&k, "/out/leaf", 1), OK);
    CHARGED(&k, number, 2, 1);
    /* The job itself moves with all that is in it, but not into another one, or out. */
    WANT(kit_rename(&k, 0, "/j", "/elsewhere"), OK);
    WANT(put(&k, "/elsewhere/b", 1), OK);
    CHARGED(&k, number, 3, 2);
    begin(&k, "/k", 2, 60, 0, 0);
    WANT(kit_rename(&k, 0, "/elsewhere", "/k/j"), E(INVALID_ARGUMENT));
    uint64_t empty = begin(&k, "/empty", 3, 60, 0, 0);
    WANT(kit_rename(&k, 0, "/empty", "/k/empty"), E(INVALID_ARGUMENT));
    WANT(put(&k, "/empty/x", 9), OK);
    CHARGED(&k, empty, 1, 9);
    kit_close(&k);
}

static void what_belongs_to_a_job_moves_into_it_though_it_is_full(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint64_t number = begin(&k, "/j", 1, 60, 100, 1);
    WANT(put_in(&k, number, "/member", 100), OK);
    WANT(put(&k, "/other", 1), OK);
    CHARGED(&k, number, 1, 100);
    WANT(kit_rename(&k, 0, "/other", "/j/other"), E(QUOTA_EXCEEDED));
    WANT(kit_rename(&k, 0, "/member", "/j/member"), OK);
    CHARGED(&k, number, 1, 100);
    WANT(kit_rename(&k, 0, "/j/member", "/member"), OK);
    CHARGED(&k, number, 1, 100);
    kit_close(&k);
}

/* What was removed from a job is charged until it is freed, to all that were around it then: though the job's directory
 * is empty, it stays among them. */
static void an_empty_job_stays_on_its_side_while_its_removed_tree_is_freed(void) {
    struct kit k;
    char path[32];
    kit_open(&k, 64 << 20);
    begin(&k, "/a", 1, 60, 0, 0);
    begin(&k, "/b", 2, 60, 0, 0);
    uint64_t job = begin(&k, "/a/j", 3, 60, 0, 0);
    for (int i = 0; i < 4; i++) {
        sprintf(path, "/a/j/c/%d", i);
        WANT(put(&k, path, 1), OK);
    }
    WANT(kit_rmtree(&k, "/a/j/c"), OK);
    WANT(kit_rename(&k, 0, "/a/j", "/b/j"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/a/j", "/j"), E(INVALID_ARGUMENT));
    WANT(kit_rename(&k, 0, "/a/j", "/a/i"), OK);
    kit_check(&k);
    kit_settle(&k);
    CHARGED(&k, job, 0, 0);
    kit_close(&k);
}

static void a_directory_with_a_ttl_that_becomes_a_job_ends_with_the_job(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_with(&k, (struct crail_options){.flags = CRAIL_OPTION_TTL, .ttl_ns = SECOND, .storage_class = CRAIL_CLASS_ANY});
    WANT(kit_mkdir(&k, 0, "/d"), OK);
    begin(&k, "/d", 1, 60, 0, 0);
    kit_check(&k);
    kit_pass(&k, 5 * SECOND);
    WANT(kit_stat(&k, "/d"), OK);
    kit_check(&k);
    WANT(kit_end(&k, 1), OK);
    WANT(kit_stat(&k, "/d"), E(NOT_FOUND));
    kit_settle(&k);
    kit_check(&k);
    kit_close(&k);
}

/* A random life of nested jobs, checked by the engine's own walk over everything. */
static void random_paths_in_and_out_of_jobs_are_charged_exactly(uint64_t seed) {
    struct kit k;
    kit_open(&k, 256 << 20);
    static const char *const dirs[] = {"/p", "/j", "/j/k", "/j/k/l", "/p/q", "/j/d"};
    uint64_t token = 0, number[3] = {0};
    char from[64], to[64];
    for (uint32_t i = 0; i < 6000; i++) {
        sprintf(from, "%s/%u", dirs[kit_random(&seed, 6)], kit_random(&seed, 12));
        sprintf(to, "%s/%u", dirs[kit_random(&seed, 6)], kit_random(&seed, 12));
        uint32_t which = kit_random(&seed, 3);
        switch (kit_random(&seed, 10)) {
        case 0: {
            struct answer a = job(&k, dirs[1 + which], ++token, 1 + kit_random(&seed, 3), kit_random(&seed, 30000),
                                  kit_random(&seed, 40));
            if (!a.status)
                number[which] = a.r.version;
            break;
        }
        case 1:
            kit_end(&k, 1 + kit_random(&seed, (uint32_t)token + 1));
            break;
        case 2:
        case 3:
            put(&k, from, kit_random(&seed, 3000));
            break;
        case 4:
            put_in(&k, number[which], from, kit_random(&seed, 3000));
            break;
        case 5:
            kit_mkdir(&k, CRAIL_OPF_PARENTS, from);
            break;
        case 6:
        case 7:
            kit_rename(&k, CRAIL_OPF_OVERWRITE, from, to);
            break;
        case 8:
            kit_random(&seed, 9) ? kit_remove(&k, 0, from) : kit_rmtree(&k, dirs[kit_random(&seed, 6)]);
            break;
        case 9:
            crail_meta_session_end(k.m, k.s);
            assert(crail_meta_session_open(k.m, ++k.next_session, &k.s) == 0);
            k.now_ns += kit_random(&seed, 4) ? 0 : 2 * SECOND;
            break;
        }
        if (kit_random(&seed, 2))
            crail_meta_step(k.m, 0);
        kit_check(&k);
    }
    crail_meta_session_end(k.m, k.s);
    kit_pass(&k, 10 * SECOND);
    assert(crail_meta_session_open(k.m, ++k.next_session, &k.s) == 0);
    assert(stats_of(&k).jobs == 0 && stats_of(&k).holds == 0);
    kit_check(&k);
    kit_close(&k);
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : kit_clock_ns() | 1;
    RUN(a_job_goes_at_once_when_its_last_holder_says_so);
    RUN(a_job_outlives_its_last_session_by_its_ttl);
    RUN(a_job_without_ttl_goes_with_its_last_session);
    RUN(who_removes_the_directory_ends_the_job);
    RUN(only_an_empty_directory_becomes_a_job);
    RUN(a_job_is_charged_for_all_below_and_its_members);
    RUN(quotas_refuse_before_anything_is_changed);
    RUN(a_container_with_something_in_it_stays_on_its_side_of_the_border);
    RUN(what_belongs_to_a_job_moves_into_it_though_it_is_full);
    RUN(an_empty_job_stays_on_its_side_while_its_removed_tree_is_freed);
    RUN(a_directory_with_a_ttl_that_becomes_a_job_ends_with_the_job);
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    random_paths_in_and_out_of_jobs_are_charged_exactly(seed);
    printf("ok random_paths_in_and_out_of_jobs_are_charged_exactly\n");
    return 0;
}
