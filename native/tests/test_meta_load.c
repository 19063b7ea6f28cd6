/* What an engine makes of the rows of an earlier life: removed trees, owners that are gone, damage, servers that come
 * back; cuts without memory; what waits for a durable cut. sources: meta base */
#include "cut_kit.h"

/* For a buffer that cannot grow. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);
const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void) {
    return "allocator_may_return_null=1";
}

#define GRANULES 100u

struct two {
    struct kit k;
    struct db db;
};

static void begin(struct two *t) {
    memset(t, 0, sizeof(*t));
    kit_open_durable(&t->k, -1);
    assert(crail_meta_session_open(t->k.m, ++t->k.next_session, &t->k.s) == 0);
}

static void end(struct two *t) {
    kit_close(&t->k);
    db_free(&t->db);
}

/* The namenode dies; the next one is in its place. */
static struct crail_load_report die(struct two *t) {
    struct loaded_facts f;
    int64_t now_ns = t->k.now_ns;
    kit_close(&t->k);
    kit_open_durable(&t->k, -1);
    t->k.now_ns = now_ns;
    struct crail_load_report report = kit_load(&t->k, &t->db, &f);
    kit_check(&t->k);
    t->k.s = f.sessions ? f.session[0].s : NULL;
    if (!t->k.s)
        assert(crail_meta_session_open(t->k.m, 1000, &t->k.s) == 0);
    return report;
}

static struct crail_extent put_large(struct kit *k, const char *path) {
    struct answer a = kit_alloc(k, 0, 5 * 4096);
    WANT(a, OK);
    struct crail_extent e = extent_at(&a, 0);
    WANT(kit_commit(k, CRAIL_OPF_PARENTS, path, &e, 1, 0, 5 * 4096 - 7), OK);
    return e;
}

static void an_unchanged_engine_has_nothing_to_cut(void) {
    struct two t;
    struct crail_buf rows = {0};
    begin(&t);
    assert(crail_meta_epoch(t.k.m) == 1 && crail_meta_changed(t.k.m) == 2); /* the root and the session */
    kit_cut(&t.k, &t.db);
    assert(crail_meta_epoch(t.k.m) == 2 && crail_meta_changed(t.k.m) == 0 && t.db.rows == 2);
    kit_get(&t.k, "/nothing");
    kit_list(&t.k, "/", "", 10);
    assert(crail_meta_changed(t.k.m) == 0 && crail_meta_cut_begin(t.k.m, &rows) == 0);
    while (crail_meta_cut_step(t.k.m, 0)) {
    }
    assert(rows.len == 0);
    end(&t);
}

static void what_comes_and_goes_between_two_cuts_costs_nothing(void) {
    struct two t;
    begin(&t);
    kit_cut(&t.k, &t.db);
    uint64_t bytes = stats_of(&t.k).arena_bytes_used;
    for (uint32_t i = 0; i < 1000; i++) {
        WANT(kit_put(&t.k, 0, "/f", "a value that is longer than sixteen bytes", 40), OK);
        WANT(kit_remove(&t.k, 0, "/f"), OK);
    }
    assert(crail_meta_changed(t.k.m) == 0 && stats_of(&t.k).arena_bytes_used == bytes);
    end(&t);
}

static void a_removed_tree_is_gone_though_its_rows_are_not(void) {
    struct two t;
    char path[64];
    begin(&t);
    kit_server(&t.k, 1, GRANULES);
    put_large(&t.k, "/tree/deep/er/large");
    for (uint32_t i = 0; i < 3000; i++) {
        sprintf(path, "/tree/d%u/f", i % 50);
        sprintf(path + strlen(path), "%u", i);
        WANT(kit_put(&t.k, CRAIL_OPF_PARENTS, path, "x", 1), OK);
    }
    kit_cut(&t.k, &t.db);
    uint64_t rows = t.db.rows;
    WANT(kit_rmtree(&t.k, "/tree"), OK);
    kit_cut(&t.k, &t.db); /* before a single step of freeing */
    assert(t.db.rows == rows - 1);
    struct crail_load_report r = die(&t);
    assert(r.orphans == 3053 && r.ownerless == 0);
    WANT(kit_stat(&t.k, "/tree"), E(NOT_FOUND));
    kit_settle(&t.k);
    kit_check(&t.k);
    assert(stats_of(&t.k).nodes == 1 && crail_meta_changed(t.k.m) == 3053);
    kit_cut(&t.k, &t.db);
    assert(t.db.rows == 3); /* root, session, server */
    kit_check(&t.k);
    assert(stats_of(&t.k).granules_retiring == GRANULES);
    end(&t);
}

static void what_belongs_to_a_session_or_a_job_that_is_gone_goes(void) {
    struct two t;
    struct db_row **at;
    begin(&t);
    kit_with(&t.k, (struct crail_options){.flags = CRAIL_OPTION_SESSION, .storage_class = CRAIL_CLASS_ANY});
    WANT(kit_mkdir(&t.k, 0, "/mine"), OK);
    WANT(kit_put(&t.k, 0, "/mine/f", "x", 1), OK);
    WANT(kit_make(&t.k, 0, CRAIL_KIND_QUEUE, "/q"), OK);
    WANT(kit_put(&t.k, CRAIL_OPF_QUEUE, "/q", "item", 4), OK);
    WANT(kit_op(&t.k, CRAIL_OP_TAKE, 0, "/q", NULL, 0, 0, 7, 0), OK);
    WANT(kit_op(&t.k, CRAIL_OP_JOB, 0, "/job", NULL, 0, 0, 8, 0), OK);
    kit_cut(&t.k, &t.db);
    struct {
        struct crail_row row;
        uint64_t id;
    } key = {{.table = CRAIL_TABLE_SESSION, .key_len = 8}, 1};
    struct crail_load_report r = die(&t);
    assert(r.ownerless == 0 && r.sessions == 1);
    WANT(kit_stat(&t.k, "/mine/f"), OK);
    WANT(kit_op(&t.k, CRAIL_OP_TAKE, 0, "/q", NULL, 0, 0, 9, 0), E(NOT_FOUND)); /* it is held again */
    WANT(kit_op(&t.k, CRAIL_OP_TAKE, 0, "/q", NULL, 0, 0, 7, 0), OK);
    at = db_find(&t.db, &key.row);
    assert(*at);
    db_remove(&t.db, at);
    r = die(&t);
    assert(r.ownerless == 1 && r.sessions == 0);
    WANT(kit_stat(&t.k, "/mine"), E(NOT_FOUND));
    WANT(kit_op(&t.k, CRAIL_OP_TAKE, 0, "/q", NULL, 0, 0, 9, 0), OK);
    WANT(kit_stat(&t.k, "/job"), OK);
    assert(crail_meta_next_expiry(t.k.m) < INT64_MAX); /* nobody holds it: its time has begun */
    crail_meta_ends_after(t.k.m, crail_meta_next_expiry(t.k.m) + 5);
    int64_t last_ns = crail_meta_next_expiry(t.k.m);
    crail_meta_clock(t.k.m, last_ns - 1);
    kit_settle(&t.k);
    WANT(kit_stat(&t.k, "/job"), OK);
    crail_meta_clock(t.k.m, last_ns);
    kit_settle(&t.k);
    WANT(kit_stat(&t.k, "/job"), E(NOT_FOUND));
    kit_check(&t.k);
    end(&t);
}

/* ---- runs --------------------------------------------------------------------------------- */

static void due(struct two *t, uint32_t want) {
    uint32_t extents;
    uint64_t granules;
    kit_settle(&t->k);
    crail_meta_retires_due(t->k.m, 1, &extents, &granules);
    assert(extents == want);
    kit_check(&t->k);
}

static void a_run_is_retired_when_no_durable_cut_names_it(void) {
    struct two t;
    struct crail_buf rows = {0};
    begin(&t);
    kit_server(&t.k, 1, GRANULES);
    put_large(&t.k, "/never-stored");
    WANT(kit_remove(&t.k, 0, "/never-stored"), OK);
    due(&t, 1);
    put_large(&t.k, "/f");
    assert(crail_meta_cut_begin(t.k.m, &rows) == 0); /* epoch 1 */
    WANT(kit_remove(&t.k, 0, "/f"), OK);             /* written before it goes */
    while (crail_meta_cut_step(t.k.m, 1000)) {
    }
    due(&t, 1);
    assert(stats_of(&t.k).granules_retiring == 10);
    crail_meta_durable_up_to(t.k.m, 1); /* now it names the run durably */
    due(&t, 1);
    rows.len = 0;
    assert(crail_meta_cut_begin(t.k.m, &rows) == 0); /* epoch 2 */
    while (crail_meta_cut_step(t.k.m, 1000)) {
    }
    due(&t, 1);
    crail_meta_durable_up_to(t.k.m, 2);
    due(&t, 2);
    crail_buf_free(&rows);
    end(&t);
}

static void a_run_whose_generation_is_another_is_lost_by_name(void) {
    struct two t;
    uint64_t found[GRANULES];
    const uint64_t *generations[] = {found};
    struct crail_live live[4];
    uint32_t lost = 0;
    begin(&t);
    kit_server(&t.k, 1, GRANULES);
    struct crail_extent a = put_large(&t.k, "/a"), b = put_large(&t.k, "/b");
    kit_cut(&t.k, &t.db);
    die(&t);
    assert(crail_meta_server_live(t.k.m, 1, 0, live, 4) == 2 && live[0].granules == 5 && !live[0].granule);
    WANT(kit_op(&t.k, CRAIL_OP_OPEN, 0, "/b", NULL, 0, 0, 5, 0), OK); /* nobody knows it yet */
    for (uint32_t i = 0; i < GRANULES; i++)
        found[i] = i == b.granule ? 9 : i < 10 ? 0 : 1;
    assert(crail_meta_server_recovered(t.k.m, 1, generations, NULL, 0, &lost) == 0 && lost == 1);
    kit_check(&t.k);
    struct answer got = kit_get(&t.k, "/a");
    WANT(got, OK);
    assert(extent_at(&got, 0).granule == a.granule && got.r.size == 5 * 4096 - 7);
    got = kit_get(&t.k, "/b");
    WANT(got, E(DATA_LOST));
    WANT(kit_op(&t.k, CRAIL_OP_OPEN, 0, "/b", NULL, 0, 0, 5, 0), E(DATA_LOST));
    WANT(kit_op(&t.k, CRAIL_OP_END, 0, "", NULL, 0, 0, 5, 0), OK);
    kit_cut(&t.k, &t.db);
    WANT(kit_remove(&t.k, 0, "/b"), OK);
    kit_cut(&t.k, &t.db);
    kit_settle(&t.k);
    struct crail_retire order;
    assert(crail_meta_retires_take(t.k.m, 1, &order, 1) == 1 && order.granule == b.granule && order.generation == 10);
    end(&t);
}

static void a_loaded_tail_is_closed(void) {
    struct two t;
    begin(&t);
    kit_server(&t.k, 1, GRANULES);
    put_large(&t.k, "/f");
    WANT(kit_op(&t.k, CRAIL_OP_APPEND, 0, "/f", NULL, 0, 0, 5, 0), OK); /* he may write behind the value from now on */
    kit_cut(&t.k, &t.db);
    die(&t);
    struct answer a = kit_op(&t.k, CRAIL_OP_APPEND, 0, "/f", NULL, 0, 0, 5, 0);
    WANT(a, OK);
    assert(a.r.flags & CRAIL_RESF_TAIL_CLOSED);
    end(&t);
}

static void a_grant_outlives_the_namenode_that_gave_it(void) {
    struct two t;
    struct loaded_facts f;
    struct kit k;
    uint32_t lost;
    int fd = memfd_create("grants", 0);
    memset(&t, 0, sizeof(t));
    kit_open_durable(&t.k, fd);
    assert(crail_meta_session_open(t.k.m, 1, &t.k.s) == 0);
    kit_server(&t.k, 1, GRANULES);
    kit_cut(&t.k, &t.db);
    struct answer a = kit_alloc(&t.k, 0, 4096);
    struct crail_extent held = extent_at(&a, 0), committed = put_large(&t.k, "/f"); /* of no cut */
    a = kit_alloc(&t.k, 0, 3 * 4096);
    struct crail_extent released = extent_at(&a, 0);
    WANT(kit_release(&t.k, &released, 1), OK);
    kit_open_durable(&k, fd);
    assert(kit_load(&k, &t.db, &f).grants == 2 && f.sessions == 1);
    k.s = f.session[0].s;
    kit_check(&k);
    assert(crail_session_owns(k.m, k.s, &held) && !crail_session_owns(k.m, k.s, &released));
    WANT(kit_stat(&k, "/f"), E(NOT_FOUND));
    WANT(kit_commit(&k, 0, "/f", &committed, 1, 0, 5 * 4096 - 7), OK); /* he repeats it, the server still away */
    assert(crail_meta_server_recovered(k.m, 1, NULL, NULL, 0, &lost) == 0 && !lost);
    kit_cut(&k, &t.db);
    kit_settle(&k);
    kit_check(&k);
    kit_close(&k);
    kit_open_durable(&k, fd);
    assert(kit_load(&k, &t.db, &f).grants == 1); /* the other one has become a node's for good */
    kit_check(&k);
    kit_close(&k);
    end(&t);
    close(fd);
}

/* Its session lives on, and does not know that it has it. */
static void what_a_death_has_undone_is_taken_back_from_who_does_not_commit_it_again(void) {
    struct two t;
    struct loaded_facts f;
    struct kit k;
    int fd = memfd_create("grants", 0);
    memset(&t, 0, sizeof(t));
    kit_open_durable(&t.k, fd);
    assert(crail_meta_session_open(t.k.m, 1, &t.k.s) == 0);
    kit_server(&t.k, 1, GRANULES);
    kit_cut(&t.k, &t.db);
    struct answer a = kit_alloc(&t.k, 0, 4096);
    struct crail_extent held = extent_at(&a, 0), said_again = put_large(&t.k, "/f"), undone = put_large(&t.k, "/g"),
                        refused = put_large(&t.k, "/h");
    for (int life = 2; life <= 3; life++) { /* it is known longer than one of them */
        kit_open_durable(&k, fd);
        assert(kit_load(&k, &t.db, &f).grants == 4);
        if (life == 2)
            kit_close(&k);
    }
    k.s = f.session[0].s;
    crail_meta_ends_after(k.m, k.now_ns + 5);
    int64_t until = crail_meta_undone_until(k.m);
    assert(until > k.now_ns + 5 && crail_meta_next_expiry(k.m) == until);
    kit_pass(&k, until - k.now_ns - 1);
    assert(crail_session_owns(k.m, k.s, &held) && crail_session_owns(k.m, k.s, &undone));
    WANT(kit_commit(&k, 0, "/f", &said_again, 1, 0, 5 * 4096 - 7), OK);
    WANT(kit_commit(&k, CRAIL_OPF_IF_ABSENT, "/f", &refused, 1, 0, 5 * 4096 - 7), E(EXISTS)); /* he keeps it */
    crail_meta_undone_keep(k.m, true);
    kit_pass(&k, 1);
    assert(crail_meta_next_expiry(k.m) == INT64_MAX && crail_session_owns(k.m, k.s, &undone));
    crail_meta_undone_keep(k.m, false);
    kit_pass(&k, 0);
    assert(crail_session_owns(k.m, k.s, &held) && crail_session_owns(k.m, k.s, &refused));
    assert(!crail_session_owns(k.m, k.s, &undone));
    assert(stats_of(&k).granules_granted == 6 && stats_of(&k).granules_used == 5);
    assert(!crail_meta_undone_until(k.m) && crail_meta_next_expiry(k.m) == INT64_MAX);
    WANT(kit_commit(&k, 0, "/g", &undone, 1, 0, 5 * 4096 - 7), E(STALE_LOCATION));
    kit_check(&k);
    kit_close(&k);
    end(&t);
    close(fd);
}

/* ---- without memory ----------------------------------------------------------------------------- */

static void a_cut_without_memory_is_made_up_by_the_next_one(void) {
    struct two t;
    struct crail_buf rows = {0}, full;
    char path[32];
    begin(&t);
    for (uint32_t i = 0; i < 500; i++) {
        sprintf(path, "/d/%u", i);
        WANT(kit_put(&t.k, CRAIL_OPF_PARENTS, path, "x", 1), OK);
    }
    kit_cut(&t.k, &t.db);
    for (uint32_t i = 0; i < 500; i += 2) {
        sprintf(path, "/d/%u", i);
        WANT(i % 4 ? kit_remove(&t.k, 0, path) : kit_put(&t.k, 0, path, "y", 1), OK);
    }
    assert(crail_meta_cut_begin(t.k.m, &rows) == 0);
    size_t begun = rows.len;
    crail_meta_cut_step(t.k.m, 0);
    assert(rows.len > begun);
    full = rows;
    rows = (struct crail_buf){.len = 1ull << 60, .cap = 1ull << 60};
    WANT(kit_put(&t.k, 0, "/d/496", "z", 1), OK); /* its row cannot be written any more */
    WANT(kit_remove(&t.k, 0, "/d/492"), OK);
    while (crail_meta_cut_step(t.k.m, 0))
        WANT(kit_put(&t.k, 0, "/d/1", "z", 1), OK);
    assert(crail_meta_cut_result(t.k.m) == -ENOMEM && rows.len == 0);
    crail_buf_free(&full);
    kit_check(&t.k);
    struct facts want = facts_of(t.k.m);
    kit_cut(&t.k, &t.db);
    assert(crail_meta_changed(t.k.m) == 0);
    kit_check(&t.k);
    assert(die(&t).orphans == 0);
    struct facts got = facts_of(t.k.m);
    same_facts(&want, &got);
    facts_free(&want);
    facts_free(&got);
    end(&t);
}

/* ---- damage ---------------------------------------------------------------------------------------- */

/* What a load says of these rows and those of the engine. */
static void refused(struct two *t, const struct crail_buf *more, const char *sentence) {
    struct kit k;
    struct loaded_facts f;
    struct crail_load_report report;
    struct db db = {0};
    char why[256] = "";
    for (uint32_t i = 0; i < DB_BUCKETS; i++)
        for (struct db_row *r = t->db.bucket[i]; r; r = r->next)
            db_apply(&db, &r->row);
    db_apply(&db, more);
    kit_open_durable(&k, -1);
    int rc = try_load(&k, &db, &f, &report, why, sizeof(why));
    if (rc != -EUCLEAN || strcmp(why, sentence) != 0) {
        fprintf(stderr, "wanted \"%s\"\ngot %d \"%s\"\n", sentence, rc, why);
        abort();
    }
    kit_close(&k);
    db_free(&db);
}

struct made_row {
    struct crail_node_row head;
    char name[8];
    struct crail_extent_part e;
};

static struct crail_buf row_of(uint64_t id, uint64_t parent, enum crail_kind kind, const char *name,
                               const struct crail_extent_part *e) {
    struct crail_buf b = {0};
    uint8_t value[256];
    struct crail_node_row head = {.parent = parent,
                                  .version = id,
                                  .kind = (uint8_t)kind,
                                  .name_len = (uint8_t)strlen(name),
                                  .extents = e != NULL,
                                  .size = e ? 100 : 0};
    uint32_t n = (uint32_t)(sizeof(head) + strlen(name));
    memcpy(value, &head, sizeof(head));
    memcpy(value + sizeof(head), name, strlen(name));
    if (e)
        memcpy(value + n, e, sizeof(*e));
    assert(crail_row_append(&b, CRAIL_TABLE_NODE, false, &id, 8, value, n + (e ? (uint32_t)sizeof(*e) : 0)) == 0);
    return b;
}

static void refused_node(struct two *t, struct crail_buf row, const char *sentence) {
    refused(t, &row, sentence);
    crail_buf_free(&row);
}

static void what_does_not_fit_together_is_refused_by_name(void) {
    struct two t;
    begin(&t);
    kit_server(&t.k, 1, GRANULES);
    put_large(&t.k, "/d/large"); /* ids: 2 and 3 */
    kit_cut(&t.k, &t.db);
    struct crail_extent_part twice = {1, 0, 4, 5, 0}, beyond = {1, 0, 98, 5, 0}, nowhere = {7, 0, 0, 1, 0};
    refused_node(&t, row_of(9, 3, CRAIL_KIND_FILE, "f", NULL), "node 9, \"f\" in 3: it lies in what is no container");
    refused_node(&t, row_of(9, 2, CRAIL_KIND_FILE, "large", NULL), "node 9, \"large\" in 2: another one has its name");
    refused_node(&t, row_of(9, 9, CRAIL_KIND_DIRECTORY, "d", NULL), "node 9: it lies within itself");
    refused_node(&t, row_of(9, 2, CRAIL_KIND_FILE, "a/b", NULL), "node 9: its name is none");
    refused_node(&t, row_of(9, 2, CRAIL_KIND_FILE, "..", NULL), "node 9: its name is none");
    refused_node(&t, row_of(9, 0, CRAIL_KIND_DIRECTORY, "", NULL), "node 9: it lies nowhere");
    refused_node(&t, row_of(9, 2, (enum crail_kind)9, "k", NULL), "node 9: its head makes no sense");
    refused_node(&t, row_of(9, 2, CRAIL_KIND_FILE, "f", &twice),
                 "node 9: granules 4.. of region 0 of server 1 are not there, or another's");
    refused_node(&t, row_of(9, 2, CRAIL_KIND_FILE, "f", &beyond),
                 "node 9: granules 98.. of region 0 of server 1 are not there, or another's");
    refused_node(&t, row_of(9, 2, CRAIL_KIND_FILE, "f", &nowhere),
                 "node 9: granules 0.. of region 0 of server 7 are not there, or another's");
    struct crail_buf gone = {0};
    uint64_t root = 1;
    assert(crail_row_append(&gone, CRAIL_TABLE_NODE, true, &root, 8, NULL, 0) == 0);
    refused_node(&t, gone, "the root has no row, and 2 others have");
    end(&t);
}

static void a_row_of_which_a_bit_is_wrong_is_none(void) {
    const struct crail_row *row;
    uint64_t seed = kit_clock_ns() | 1;
    printf("seed %" PRIu64 "\n", seed);
    for (uint32_t size = 0; size < 40; size++) {
        struct crail_buf b = {0};
        uint64_t key = 77;
        assert(crail_row_append(&b, CRAIL_TABLE_NODE, false, &key, 8, "0123456789012345678901234567890123456789",
                                size) == 0);
        uint32_t used = (uint32_t)sizeof(*row) + 8 + size;
        assert(crail_row_check(b.data, b.len, &row) == 0 && crail_row_check(b.data, b.len - 1, &row) == -EUCLEAN);
        for (uint32_t bit = 0; bit < used * 8; bit++) {
            if (bit / 8 == offsetof(struct crail_row, table)) /* of which the reader has to think */
                continue;
            b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
            assert(crail_row_check(b.data, b.len, &row) == -EUCLEAN);
            b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        crail_buf_free(&b);
    }
    /* Rows of noise: refused or loaded, but nothing breaks. */
    struct kit k;
    for (uint32_t i = 0; i < 3000; i++) {
        struct crail_buf b = {0};
        uint64_t key = kit_random(&seed, 4);
        uint8_t value[160];
        char why[256];
        for (uint32_t n = 0; n < sizeof(value); n++)
            value[n] = kit_random(&seed, 3) ? 0 : (uint8_t)kit_random(&seed, 8);
        enum crail_row_table table = (enum crail_row_table)(CRAIL_TABLE_NODE + kit_random(&seed, 5));
        assert(crail_row_append(&b, table, false, &key, kit_random(&seed, 2) ? 8 : 4, value, kit_random(&seed, 160)) ==
               0);
        assert(crail_row_check(b.data, b.len, &row) == 0);
        if (i % 100 == 0) {
            if (i)
                kit_close(&k);
            kit_open_durable(&k, -1);
            assert(crail_meta_load_begin(k.m, (struct crail_meta_load_listener){NULL, NULL, NULL}) == 0);
        }
        crail_meta_load(k.m, row, why, sizeof(why));
        crail_buf_free(&b);
        if (i == 2999)
            kit_close(&k);
    }
}

int main(void) {
    RUN(an_unchanged_engine_has_nothing_to_cut);
    RUN(what_comes_and_goes_between_two_cuts_costs_nothing);
    RUN(a_removed_tree_is_gone_though_its_rows_are_not);
    RUN(what_belongs_to_a_session_or_a_job_that_is_gone_goes);
    RUN(a_run_is_retired_when_no_durable_cut_names_it);
    RUN(a_run_whose_generation_is_another_is_lost_by_name);
    RUN(a_loaded_tail_is_closed);
    RUN(a_grant_outlives_the_namenode_that_gave_it);
    RUN(what_a_death_has_undone_is_taken_back_from_who_does_not_commit_it_again);
    RUN(a_cut_without_memory_is_made_up_by_the_next_one);
    RUN(what_does_not_fit_together_is_refused_by_name);
    RUN(a_row_of_which_a_bit_is_wrong_is_none);
    return 0;
}
