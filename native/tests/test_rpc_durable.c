/* Cuts in the namenode's loop: what a lane's row remembers, who waits until something is durable, who is slowed.
 * sources: rpc meta base api/api_namenode.c */
#include <stdlib.h>

#include "base/rows.h"
#include "rpc_kit.h"

/* ---- a database, as small as possible -------------------------------------- */

#define ROWS_MAX 4096
static struct {
    struct crail_row *row[ROWS_MAX];
    uint32_t n;
} db;

static struct crail_row **find_row(const struct crail_row *row) {
    for (uint32_t i = 0; i < db.n; i++)
        if (db.row[i]->table == row->table && db.row[i]->key_len == row->key_len &&
            !memcmp(crail_row_key(db.row[i]), crail_row_key(row), row->key_len))
            return &db.row[i];
    return NULL;
}

static void apply(const uint8_t *rows, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes;) {
        const struct crail_row *row;
        CHECK(crail_row_check(rows + at, bytes - at, &row) == 0);
        at += row->size;
        struct crail_row **old = find_row(row);
        if (old) {
            free(*old);
            *old = db.row[--db.n];
        }
        if (row->gone)
            continue;
        CHECK(db.n < ROWS_MAX);
        db.row[db.n] = malloc(row->size);
        CHECK(db.row[db.n]);
        memcpy(db.row[db.n++], row, row->size);
    }
}

static void wipe(void) {
    while (db.n)
        free(db.row[--db.n]);
}

/* Makes a cut and keeps its rows; its epoch, 0 if nothing changed. */
static uint64_t cut(void) {
    crail_namenode_cut c;
    int rc = crail_namenode_cut_make(nn, &c);
    CHECK(rc >= 0);
    if (!rc)
        return 0;
    apply(c.rows[0], c.bytes[0]);
    apply(c.rows[1], c.bytes[1]);
    return c.epoch;
}

static void commit_all(void) {
    uint64_t epoch = cut();
    if (epoch)
        CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
}

static crail_namenode_loaded loaded;

/* The namenode dies; another one goes on from what is in the database. */
static void restart(void) {
    char why[256] = "";
    crail_namenode_stop(nn);
    free_ends();
    start(5000);
    for (uint32_t i = 0; i < db.n; i++) {
        int rc = crail_namenode_load(nn, db.row[i], db.row[i]->size, why, sizeof why);
        if (rc)
            fprintf(stderr, "load: %s\n", why);
        CHECK(rc == 0);
    }
    CHECK(crail_namenode_load_end(nn, &loaded, why, sizeof why) == 0);
    commit_all(); /* the bounds of this life */
}

static void begin_durable(uint32_t kind) {
    durability = kind;
    start(5000);
    commit_all();
}

static void end_durable(void) {
    end();
    wipe();
    durability = CRAIL_DURABILITY_NONE;
}

/* ---- small things ------------------------------------------------------------ */

static void send_op(int fd, uint64_t seq, uint16_t code, const char *path) {
    frame(&Q, seq + 1000, seq);
    op(&Q, code, path, "v", code == CRAIL_OP_PUT);
    send_all(fd, Q.b.data, Q.b.len);
}

/* Nothing has been sent to us. The loop has had a turn since whatever we did before. */
static bool silent(int fd) {
    stats();
    struct end *e = ring_of(fd);
    char c;
    if (e)
        return !crail_ring_readable(&e->ring);
    return recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) < 0;
}

static int status_of(int fd) {
    CHECK(take(fd, &R));
    return result(&R, 0)->status;
}

static int64_t incr(int fd, uint64_t seq, const char *path) {
    frame(&Q, seq, seq);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_INCR, .arg0 = 1}, path, NULL, 0);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0);
    int64_t number;
    memcpy(&number, result(&R, 0) + 1, sizeof number);
    return number;
}

static void send_code_with_options(int fd, uint64_t seq, uint16_t code, uint16_t flags) {
    struct crail_options o = {.flags = flags, .storage_class = CRAIL_CLASS_ANY};
    struct crail_op head = {.code = code, .path_len = 2, .options_len = sizeof o};
    frame(&Q, seq, seq);
    CHECK(crail_buf_reserve(&Q.b, 128) == 0);
    uint8_t *at = Q.b.data + Q.b.len;
    memset(at, 0, 72);
    memcpy(at, &head, sizeof head);
    memcpy(at + sizeof head, "/o", 2);
    memcpy(at + sizeof head + 2, &o, sizeof o);
    Q.b.len += 72;
    head_of(&Q)->count = 1;
    head_of(&Q)->size = (uint32_t)Q.b.len;
    send_all(fd, Q.b.data, Q.b.len);
}

static void send_with_options(int fd, uint64_t seq, uint16_t flags) {
    send_code_with_options(fd, seq, CRAIL_OP_PUT, flags);
}

/* ---- exactly once ------------------------------------------------------------- */

static void test_a_record_outlives_the_namenode(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1);
    CHECK(incr(fd, 1, "/n") == 1 && incr(fd, 2, "/n") == 2);
    commit_all();
    close(fd);
    restart();
    CHECK(loaded.sessions == 1 && loaded.lanes == 1 && loaded.lanes_dropped == 0);
    CHECK(crail_namenode_session_open(nn, 1) == -EEXIST);
    fd = attach(1, 0);
    CHECK(incr(fd, 2, "/n") == 2 && result(&R, 0)->flags & CRAIL_RESF_REPLAY);
    CHECK(incr(fd, 3, "/n") == 3);
    close(fd);
    end_durable();
}

static void test_what_was_lost_with_the_last_interval_is_done_again_once(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1), other = attach(1, 1);
    CHECK(incr(fd, 1, "/n") == 1);
    commit_all();
    CHECK(incr(fd, 2, "/n") == 2 && incr(fd, 3, "/n") == 3 && incr(other, 1, "/n") == 4); /* nobody keeps these */
    close(fd);
    close(other);
    restart();
    fd = attach(1, 0);
    other = attach(1, 1);
    CHECK(incr(fd, 4, "/n") == 2); /* its reply was on its way */
    CHECK(incr(fd, 4, "/n") == 2 && result(&R, 0)->flags & CRAIL_RESF_REPLAY);
    CHECK(one(fd, 6, CRAIL_OP_MKDIR, "/d", NULL, 0) == -CRAIL_E_PROTOCOL); /* once only */
    CHECK(incr(other, 2, "/n") == 3);                                      /* a lane that the cut did not know */
    CHECK(one(other, 4, CRAIL_OP_MKDIR, "/d", NULL, 0) == -CRAIL_E_PROTOCOL);
    close(fd);
    close(other);
    end_durable();
}

#define CROWD 8u /* lanes that take turns, so that a cut finds some of their vectors half-way */
#define INCRS 1000u

static void counters(uint64_t seq, uint32_t lane) {
    char path[16];
    snprintf(path, sizeof path, "/half%u", lane);
    frame(&Q, seq, seq);
    for (uint32_t i = 0; i < INCRS; i++)
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_INCR, .arg0 = 1}, path, NULL, 0);
}

static void check_counters(int64_t before) {
    for (uint32_t i = 0; i < INCRS; i++) {
        int64_t number;
        memcpy(&number, result(&R, i) + 1, sizeof number);
        CHECK(result(&R, i)->status == 0 && number == before + i + 1);
    }
}

/* A lane whose vector the cut found half-way, or -1. */
static int half_lane(void) {
    for (uint32_t i = 0; i < db.n; i++) {
        struct crail_row_lane value;
        uint32_t lane;
        if (db.row[i]->table != CRAIL_TABLE_LANE)
            continue;
        memcpy(&value, crail_row_value(db.row[i]), sizeof value);
        memcpy(&lane, crail_row_key(db.row[i]) + 8, sizeof lane);
        if (value.half_seq)
            return (int)lane;
    }
    return -1;
}

/* All lanes send a vector, a cut is made meanwhile, and they hang up. True: it found some half-way. */
static bool crowd_is_cut(uint64_t seq) {
    int fd[CROWD];
    for (uint32_t lane = 0; lane < CROWD; lane++) {
        fd[lane] = attach(1, lane);
        counters(seq, lane);
        send_all(fd[lane], Q.b.data, Q.b.len);
    }
    commit_all();
    for (uint32_t lane = 0; lane < CROWD; lane++)
        hang_up(fd[lane]);
    return half_lane() >= 0;
}

/* They come again, and have all of it done, once. */
static void crowd_is_done(uint64_t seq) {
    for (uint32_t lane = 0; lane < CROWD; lane++) {
        int fd = attach(1, lane);
        counters(seq, lane);
        call(fd, &Q, &R);
        check_counters((int64_t)(seq - 1) * INCRS);
        hang_up(fd);
    }
}

static void test_vectors_that_the_cut_found_half_way_are_finished(void) {
    uint32_t halves = 0;
    tuning.slice_ns = 1; /* sixteen operations a turn */
    begin_durable(CRAIL_DURABILITY_GROUP);
    CHECK(crail_namenode_session_open(nn, 1) == 0);
    uint64_t seq = 1;
    for (; halves < 3 && seq <= 300; seq++) {
        halves += crowd_is_cut(seq);
        restart();
        crowd_is_done(seq);
        commit_all();
    }
    printf("  %u of %u cuts found a vector half-way\n", halves, (uint32_t)seq - 1);
    CHECK(halves > 0);
    end_durable();
}

/* What is left of a vector is executed for whoever asks again, and waits like one that begins. */
static void test_the_rest_of_a_vector_waits_while_commits_fail(void) {
    uint64_t seq = 1;
    tuning.slice_ns = 1;
    begin_durable(CRAIL_DURABILITY_GROUP);
    CHECK(crail_namenode_session_open(nn, 1) == 0);
    for (; !crowd_is_cut(seq); seq++) {
        CHECK(seq < 300);
        crowd_is_done(seq);
    }
    restart();
    uint32_t half = (uint32_t)half_lane();
    int fd = attach(1, CROWD), again = attach(1, half);
    CHECK(one(fd, 1, CRAIL_OP_PUT, "/x", "1", 1) == 0);
    uint64_t epoch = cut();
    CHECK(crail_namenode_cut_done(nn, epoch, 0) == 0);
    counters(seq, half);
    send_all(again, Q.b.data, Q.b.len);
    CHECK(silent(again));
    CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
    CHECK(take(again, &R));
    check_counters((int64_t)(seq - 1) * INCRS);
    close(fd);
    close(again);
    end_durable();
}

static void test_rows_go_with_their_session(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1), other = client(2);
    CHECK(incr(fd, 1, "/n") == 1 && incr(other, 1, "/n") == 2);
    commit_all();
    CHECK(one(fd, 2, CRAIL_OP_BYE, "", NULL, 0) == 0);
    CHECK(closed(fd));
    commit_all();
    restart();
    CHECK(loaded.sessions == 1 && loaded.lanes == 1 && loaded.lanes_dropped == 0);
    close(fd);
    close(other);
    end_durable();
}

static void test_damaged_rows_are_refused(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1);
    CHECK(incr(fd, 1, "/n") == 1);
    commit_all();
    close(fd);
    for (uint32_t i = 0; i < db.n; i++) {
        char why[256] = "";
        crail_namenode_stop(nn);
        free_ends();
        start(5000);
        db.row[i]->crc ^= 1;
        CHECK(crail_namenode_load(nn, db.row[i], db.row[i]->size, why, sizeof why) == -EUCLEAN && *why);
        db.row[i]->crc ^= 1;
    }
    restart();
    end_durable();
}

/* ---- sync --------------------------------------------------------------------- */

static void test_sync_answers_when_it_is_durable(void) {
    begin_durable(CRAIL_DURABILITY_SYNC);
    int fd = client(1), reader = client(2);
    send_op(fd, 1, CRAIL_OP_PUT, "/x");
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
    uint64_t epoch = cut();
    CHECK(epoch && silent(fd));
    CHECK(crail_namenode_cut_done(nn, epoch, 0) == 0);
    CHECK(silent(fd) && stats().commits_failing);
    CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
    CHECK(status_of(fd) == 0 && !stats().commits_failing);
    CHECK(one(reader, 0, CRAIL_OP_GET, "/x", NULL, 0) == 0); /* no wait: it is durable */
    close(fd);
    close(reader);
    end_durable();
}

static void test_nobody_sees_what_may_still_be_lost(void) {
    begin_durable(CRAIL_DURABILITY_SYNC);
    int fd = client(1), reader = client(2);
    for (uint64_t seq = 1; seq <= 3; seq++) {
        const uint16_t codes[] = {CRAIL_OP_PUT, CRAIL_OP_PUT, CRAIL_OP_REMOVE};
        send_op(fd, seq, codes[seq - 1], "/x");
        CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
        send_op(reader, 0, CRAIL_OP_GET, "/x");
        CHECK(silent(reader));
        commit_all();
        CHECK(status_of(fd) == 0);
        CHECK(status_of(reader) == (seq == 3 ? -CRAIL_E_NOT_FOUND : 0));
    }
    close(fd);
    close(reader);
    end_durable();
}

/* Of a STAT that waits until nothing is there; GET and STAT of what went without an operation of its own. */
static void test_nobody_sees_an_absence_that_may_still_be_lost(void) {
    begin_durable(CRAIL_DURABILITY_SYNC);
    int fd = client(1), reader = client(2), waiter = attach(2, 1);
    send_with_options(fd, 1, CRAIL_OPTION_SESSION);
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
    commit_all();
    CHECK(status_of(fd) == 0);
    uint64_t nodes = stats().nodes;
    frame(&Q, 7, 0);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_STAT, .flags = CRAIL_OPF_WAIT | CRAIL_OPF_ABSENT, .count = 60000},
            "/o", NULL, 0);
    send_all(waiter, Q.b.data, Q.b.len);
    while (stats().waiters < 1)
        sched_yield();
    CHECK(one(fd, 2, CRAIL_OP_BYE, "", NULL, 0) == 0);
    while (stats().nodes == nodes || stats().waiters)
        sched_yield();
    send_op(reader, 0, CRAIL_OP_GET, "/o");
    CHECK(silent(reader) && silent(waiter));
    commit_all();
    CHECK(status_of(reader) == -CRAIL_E_NOT_FOUND && status_of(waiter) == 0);
    close(fd);
    close(reader);
    close(waiter);
    end_durable();
}

static void test_late_replies_wait_too(void) {
    begin_durable(CRAIL_DURABILITY_SYNC);
    int fd = client(1), waiter = client(2);
    char path[8];
    for (uint64_t i = 1; i <= 2; i++) {
        snprintf(path, sizeof path, "/w%u", (unsigned)i);
        frame(&Q, i, 0);
        op_full(&Q, (struct crail_op){.code = CRAIL_OP_GET, .flags = CRAIL_OPF_WAIT, .count = 60000}, path, NULL, 0);
        send_all(waiter, Q.b.data, Q.b.len);
    }
    while (stats().waiters < 2)
        sched_yield();
    send_op(fd, 1, CRAIL_OP_PUT, "/w1");
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
    uint64_t epoch = cut(); /* holds the first; the second comes in the next */
    int second = attach(1, 1);
    send_op(second, 1, CRAIL_OP_PUT, "/w2");
    while (stats().waiters)
        sched_yield();
    CHECK(silent(waiter));
    CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
    CHECK(status_of(waiter) == 0 && R.head.id == 1 && status_of(fd) == 0);
    CHECK(silent(waiter) && silent(second));
    commit_all();
    CHECK(status_of(waiter) == 0 && R.head.id == 2 && status_of(second) == 0);
    close(fd);
    close(second);
    close(waiter);
    end_durable();
}

/* Columns, as listings: what they show, and how many children there are. */
static void test_nobody_sees_a_column_that_may_still_be_lost(void) {
    begin_durable(CRAIL_DURABILITY_SYNC);
    int fd = client(1), reader = client(2), waiter = client(3);
    frame(&Q, 7, 0);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_COLUMN, .flags = CRAIL_OPF_WAIT, .count = 60000, .arg1 = 1ull << 32},
            "/d", NULL, 0);
    send_all(waiter, Q.b.data, Q.b.len);
    while (stats().waiters < 1)
        sched_yield();
    send_op(fd, 1, CRAIL_OP_PUT, "/d/x");
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
    while (stats().waiters)
        sched_yield();
    send_op(reader, 0, CRAIL_OP_COLUMN, "/d");
    CHECK(silent(reader) && silent(waiter));
    commit_all();
    CHECK(status_of(fd) == 0 && status_of(reader) == 0 && result(&R, 0)->count == 1);
    CHECK(status_of(waiter) == 0 && result(&R, 0)->count == 1);
    close(fd);
    close(reader);
    close(waiter);
    end_durable();
}

static void test_a_replay_waits_like_the_reply(void) {
    begin_durable(CRAIL_DURABILITY_SYNC);
    int fd = client(1);
    send_op(fd, 1, CRAIL_OP_PUT, "/x");
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
    uint64_t epoch = cut();
    hang_up(fd);
    fd = attach(1, 0);
    send_op(fd, 1, CRAIL_OP_PUT, "/x");
    CHECK(silent(fd));
    CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
    CHECK(status_of(fd) == 0 && result(&R, 0)->flags & CRAIL_RESF_REPLAY);
    close(fd);
    end_durable();
}

static void test_an_operation_may_ask_for_more_or_less(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1);
    CHECK(one(fd, 1, CRAIL_OP_PUT, "/x", "1", 1) == 0);
    send_with_options(fd, 2, CRAIL_OPTION_SYNC);
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1 && silent(fd));
    commit_all();
    CHECK(status_of(fd) == 0);
    close(fd);
    end_durable();
    begin_durable(CRAIL_DURABILITY_SYNC);
    fd = client(1);
    send_with_options(fd, 1, CRAIL_OPTION_GROUP);
    CHECK(status_of(fd) == 0);
    close(fd);
    commit_all();
    end_durable();
    start(5000);
    fd = client(1);
    for (uint64_t seq = 1; seq <= 2; seq++) {
        send_with_options(fd, seq, seq == 1 ? CRAIL_OPTION_SYNC : CRAIL_OPTION_GROUP);
        CHECK(status_of(fd) == -CRAIL_E_INVALID_ARGUMENT);
    }
    close(fd);
    end();
}

static void test_a_removal_may_ask_for_more_and_for_nothing_else(void) {
    static const uint16_t codes[] = {CRAIL_OP_REMOVE, CRAIL_OP_RMTREE, CRAIL_OP_TRUNCATE};
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1);
    uint64_t seq = 0;
    for (uint32_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        CHECK(one(fd, ++seq, CRAIL_OP_PUT, "/o", "1", 1) == 0);
        send_code_with_options(fd, ++seq, codes[i], CRAIL_OPTION_SYNC | CRAIL_OPTION_EVICTABLE);
        CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
        commit_all();
        CHECK(status_of(fd) == -CRAIL_E_INVALID_ARGUMENT);
        send_code_with_options(fd, ++seq, codes[i], CRAIL_OPTION_SYNC);
        CHECK(crail_namenode_cut_wait(nn, 5000) == 1 && silent(fd));
        commit_all();
        CHECK(status_of(fd) == 0);
    }
    close(fd);
    end_durable();
}

/* ---- slowing --------------------------------------------------------------------- */

static void test_writers_wait_while_commits_fail_and_readers_do_not(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1), lost = client(2);
    CHECK(one(fd, 1, CRAIL_OP_PUT, "/x", "1", 1) == 0);
    uint64_t epoch = cut();
    CHECK(crail_namenode_cut_done(nn, epoch, 0) == 0);
    send_op(fd, 2, CRAIL_OP_PUT, "/y");
    send_op(lost, 1, CRAIL_OP_PUT, "/z");
    CHECK(silent(fd) && silent(lost));
    int reader = attach(1, 1);
    CHECK(one(reader, 0, CRAIL_OP_GET, "/x", NULL, 0) == 0);
    CHECK(one(reader, 0, CRAIL_OP_GET, "/y", NULL, 0) == -CRAIL_E_NOT_FOUND);
    hang_up(lost); /* it has done nothing: it goes with its connection */
    CHECK(one(reader, 1, CRAIL_OP_BYE, "", NULL, 0) == 0);
    CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
    CHECK(closed(fd)); /* its session ended */
    reader = attach(2, 0);
    CHECK(one(reader, 0, CRAIL_OP_GET, "/z", NULL, 0) == -CRAIL_E_NOT_FOUND);
    CHECK(one(reader, 1, CRAIL_OP_PUT, "/z", "1", 1) == 0);
    close(reader);
    end_durable();
}

static void send_job(int fd, uint64_t id) {
    frame(&Q, id, 0);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_JOB, .flags = CRAIL_OPF_PARENTS, .arg0 = id}, "/jobs/j", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
}

/* A job is begun, and an item taken, by requests that nobody records. */
static void test_what_is_held_is_not_told_of_while_commits_fail(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1), late = attach(1, 1), second = attach(1, 2);
    struct crail_op mkdir = {.code = CRAIL_OP_MKDIR, .arg0 = CRAIL_KIND_QUEUE};
    frame(&Q, 1, 1);
    op_full(&Q, mkdir, "/q", NULL, 0);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_PUT, .flags = CRAIL_OPF_QUEUE}, "/q", "i", 1);
    call(fd, &Q, &R);
    CHECK(result(&R, 0)->status == 0 && result(&R, 1)->status == 0);
    uint64_t epoch = cut();
    CHECK(crail_namenode_cut_done(nn, epoch, 0) == 0);
    send_job(fd, 9);
    frame(&Q, 2, 0);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_TAKE, .arg0 = 5}, "/q", NULL, 0);
    send_all(late, Q.b.data, Q.b.len);
    while (stats().nodes_changed < 3) /* the session, the directory of the job and that around it, the item */
        sched_yield();
    CHECK(silent(fd) && silent(late));
    CHECK(one(second, 0, CRAIL_OP_TAKE, "/q", NULL, 0) == -CRAIL_E_NOT_FOUND); /* nothing was changed */
    CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
    CHECK(silent(fd) && silent(late)); /* they are of the next cut */
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
    commit_all();
    CHECK(status_of(fd) == 0 && status_of(late) == 0);
    close(fd);
    close(late);
    close(second);
    end_durable();
}

static void test_writers_wait_for_a_commit_that_lags(void) {
    tuning.lag_ns = 0;
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1);
    CHECK(one(fd, 1, CRAIL_OP_PUT, "/x", "1", 1) == 0);
    while (!stats().durable_lag_ns) /* a turn of the loop has one time */
        sched_yield();
    send_op(fd, 2, CRAIL_OP_PUT, "/y");
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1 && silent(fd));
    CHECK(one(attach(1, 1), 0, CRAIL_OP_GET, "/x", NULL, 0) == 0);
    commit_all();
    CHECK(status_of(fd) == 0);
    close(fd);
    end_durable();
}

static void test_who_waits_for_cuts_is_woken(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    CHECK(crail_namenode_cut_wait(nn, 0) == 0);
    int fd = client(1);
    CHECK(one(fd, 1, CRAIL_OP_PUT, "/x", "1", 1) == 0);
    uint64_t epoch = 0;
    CHECK(crail_namenode_cut_want(nn, &epoch) == 0 && epoch);
    CHECK(crail_namenode_cut_wait(nn, 5000) == 1);
    commit_all();
    CHECK(stats().epoch_durable == epoch);
    CHECK(crail_namenode_cut_want(nn, &epoch) == 0 && epoch == 0);
    crail_namenode_cut_wake(nn);
    CHECK(crail_namenode_cut_wait(nn, 5000) == -ECANCELED);
    close(fd);
    end_durable();
}

/* What was freed may be used again when that is durable, however long the commit takes. */
static void test_who_needs_memory_waits_for_the_commit_that_frees_it(void) {
    uint32_t n;
    int channel;
    pthread_t t;
    tuning.space_wait_ns = 200000000; /* the other thread confirms within it */
    begin_durable(CRAIL_DURABILITY_GROUP);
    server(4, &channel);
    CHECK(pthread_create(&t, NULL, confirms_all, &channel) == 0);
    int fd = client(1);
    CHECK(alloc(fd, 1, 4 * 4096, &n) == 0 && commit(fd, 2, "/all", 4 * 4096, n) == 0);
    commit_all();
    CHECK(one(fd, 3, CRAIL_OP_REMOVE, "/all", NULL, 0) == 0);
    uint64_t epoch = cut();
    frame(&Q, 4, 4);
    op_full(&Q, (struct crail_op){.code = CRAIL_OP_ALLOC, .arg1 = 4 * 4096}, "", NULL, 0);
    send_all(fd, Q.b.data, Q.b.len);
    uint64_t until = crail_clock_ns() + 2 * tuning.space_wait_ns;
    while (crail_clock_ns() < until)
        CHECK(silent(fd));
    CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
    CHECK(status_of(fd) == 0);
    CHECK(alloc(fd, 5, 4096, &n) == -CRAIL_E_OUT_OF_SPACE); /* nothing is on its way */
    close(fd);
    end_durable();
    CHECK(pthread_join(t, NULL) == 0);
}

/* ---- counters, and cuts that nobody came back for ------------------------------------- */

static uint64_t job(int fd, uint64_t token) {
    send_job(fd, token);
    CHECK(status_of(fd) == 0);
    return result(&R, 0)->version;
}

#define LIVES 300u

static void test_numbers_of_jobs_go_up_over_many_lives(void) {
    uint64_t last = 0;
    begin_durable(CRAIL_DURABILITY_GROUP);
    for (uint32_t i = 0; i < LIVES; i++) {
        int fd = client(100 + i);
        frame(&Q, 1, 1);
        op(&Q, CRAIL_OP_RMTREE, "/jobs", NULL, 0);
        call(fd, &Q, &R);
        uint64_t number = job(fd, 7);
        CHECK(number > last);
        last = number;
        close(fd);
        restart(); /* and what was done is lost: no cut had it */
    }
    end_durable();
}

static void test_without_its_bounds_a_state_is_refused(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    char why[256] = "";
    crail_namenode_stop(nn);
    free_ends();
    start(5000);
    for (uint32_t i = 0; i < db.n; i++)
        if (db.row[i]->table != CRAIL_TABLE_SUPER)
            CHECK(crail_namenode_load(nn, db.row[i], db.row[i]->size, why, sizeof why) == 0);
    CHECK(crail_namenode_load_end(nn, &loaded, why, sizeof why) == -EUCLEAN && strstr(why, "bounds"));
    restart();
    end_durable();
}

static void test_a_cut_is_given_again_until_it_is_done(void) {
    begin_durable(CRAIL_DURABILITY_GROUP);
    int fd = client(1);
    CHECK(one(fd, 1, CRAIL_OP_PUT, "/x", "1", 1) == 0);
    uint64_t epoch = cut();
    CHECK(one(fd, 2, CRAIL_OP_PUT, "/x", "2", 1) == 0); /* of the next one */
    CHECK(epoch && cut() == epoch);
    CHECK(crail_namenode_cut_done(nn, epoch, 1) == 0);
    CHECK(cut() == epoch + 1);
    CHECK(crail_namenode_cut_done(nn, epoch + 1, 1) == 0);
    close(fd);
    end_durable();
}

int main(int argc, char **argv) {
    static const struct rpc_test tests[] = {
        T(test_a_record_outlives_the_namenode),
        T(test_what_was_lost_with_the_last_interval_is_done_again_once),
        T(test_vectors_that_the_cut_found_half_way_are_finished),
        T(test_the_rest_of_a_vector_waits_while_commits_fail),
        T(test_rows_go_with_their_session),
        T(test_damaged_rows_are_refused),
        T(test_sync_answers_when_it_is_durable),
        T(test_nobody_sees_what_may_still_be_lost),
        T(test_nobody_sees_an_absence_that_may_still_be_lost),
        T(test_late_replies_wait_too),
        T(test_nobody_sees_a_column_that_may_still_be_lost),
        T(test_a_replay_waits_like_the_reply),
        T(test_an_operation_may_ask_for_more_or_less),
        T(test_a_removal_may_ask_for_more_and_for_nothing_else),
        T(test_writers_wait_while_commits_fail_and_readers_do_not),
        T(test_what_is_held_is_not_told_of_while_commits_fail),
        T(test_writers_wait_for_a_commit_that_lags),
        T(test_who_waits_for_cuts_is_woken),
        T(test_who_needs_memory_waits_for_the_commit_that_frees_it),
        T(test_numbers_of_jobs_go_up_over_many_lives),
        T(test_without_its_bounds_a_state_is_refused),
        T(test_a_cut_is_given_again_until_it_is_done),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
