/* Cuts, as the loop sees them (docs/adr/0004-durable-metadata.md). One thread asks for a cut (crail_namenode_cut_make),
 * the loop writes it in steps, the thread commits it and says so (crail_namenode_cut_done); then the next may begin.
 *
 * The engine writes its own rows; ours are those of lanes. A lane that is touched before the cut that it belongs to has
 * written it is written at that moment. So no row is of another time than the cut's beginning, and none of it can fail:
 * the room was made when the cut began.
 *
 * A reply that may not go out yet stays where it is, in the lane's record or its connection's output, and the lane in
 * WAIT_DURABLE. What must be durable is an epoch: that of the change, or of any change that the answer may tell of. */
#include <assert.h>
#include <errno.h>
#include <malloc.h>
#include <time.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/rows.h"
#include "rpc/rpc.h"

#define WRITE_MS_MAX 60000u
#define WRITTEN_TO_CLOCK 16384u     /* bytes */
#define ROWS_KEPT_BYTES (16u << 20) /* of memory for rows, from one cut to the next: it need not be touched anew */
#define HEAP_KEPT_BYTES (32 << 20)  /* likewise of what a commit takes for its pages */
/* More than commits may lag. Of the number of a job 40 bits count, and each life begins at its bound. */
#define BOUNDS_AHEAD ((uint64_t)1 << 32)
#define JOBS_AHEAD ((uint64_t)1 << 24)

/* ---- who waits for the next cut -------------------------------------------- */

static void want(crail_namenode *nn) {
    struct crail_rpc_durable *d = &nn->durable;
    if (d->was_wanted)
        return;
    d->was_wanted = true;
    pthread_mutex_lock(&d->lock);
    d->is_wanted = true;
    pthread_cond_broadcast(&d->turned);
    pthread_mutex_unlock(&d->lock);
}

uint64_t crail_rpc_durable_changed(const crail_namenode *nn) {
    uint64_t epoch = crail_meta_epoch(nn->meta);
    return crail_meta_changed(nn->meta) ? epoch : epoch - 1;
}

static uint16_t option_flags(const struct crail_op *op) {
    struct crail_options o;
    if (!op->options_len)
        return 0;
    memcpy(&o, (const char *)(op + 1) + op->path_len, sizeof o);
    return o.flags;
}

int crail_rpc_durable_allowed(const crail_namenode *nn, const struct crail_op *op) {
    bool asks = option_flags(op) & (CRAIL_OPTION_SYNC | CRAIL_OPTION_GROUP);
    return asks && nn->durable.kind == CRAIL_DURABILITY_NONE ? CRAIL_E_INVALID_ARGUMENT : 0;
}

static uint64_t max_u64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static bool tells_of_absence(const struct crail_op *op, const struct crail_result *r) {
    return r->status || (op->code == CRAIL_OP_STAT && op->flags & CRAIL_OPF_ABSENT);
}

/* Of an answer to a question, in a cluster where nobody sees what may still be lost. */
static uint64_t needs_to_tell(const crail_namenode *nn, const struct crail_op *op, const struct crail_result *r) {
    const struct crail_rpc_durable *d = &nn->durable;
    switch (op->code) {
    case CRAIL_OP_ALLOC: /* grants need no commit */
    case CRAIL_OP_RELEASE:
    case CRAIL_OP_PING:
    case CRAIL_OP_SERVER:
    case CRAIL_OP_CANCEL:
    case CRAIL_OP_WATCH:
        return 0;
    case CRAIL_OP_GET:
    case CRAIL_OP_STAT:
    case CRAIL_OP_OPEN:
    case CRAIL_OP_APPEND:
        return max_u64(tells_of_absence(op, r) ? crail_meta_removed(nn->meta) : crail_meta_moved(nn->meta),
                       r->version > d->done_version ? crail_rpc_durable_changed(nn) : 0);
    default:
        return crail_rpc_durable_changed(nn);
    }
}

/* While commits fail nobody begins a vector that is recorded. These change something durable without being that. */
static bool is_kept_back(const crail_namenode *nn, const struct crail_op *op, const struct crail_result *r) {
    bool changes = op->code == CRAIL_OP_TAKE || op->code == CRAIL_OP_ENTER || op->code == CRAIL_OP_JOB;
    return nn->durable.failing && changes && !r->status;
}

uint64_t crail_rpc_durable_needs(crail_namenode *nn, const struct crail_op *op, const struct crail_result *r) {
    const struct crail_rpc_durable *d = &nn->durable;
    if (d->kind == CRAIL_DURABILITY_NONE)
        return 0;
    if (d->kind == CRAIL_DURABILITY_GROUP && is_kept_back(nn, op, r))
        return crail_rpc_durable_changed(nn);
    if (d->kind == CRAIL_DURABILITY_GROUP && !op->options_len)
        return 0;
    uint16_t flags = option_flags(op);
    bool is_sync = flags & CRAIL_OPTION_SYNC || (d->kind == CRAIL_DURABILITY_SYNC && !(flags & CRAIL_OPTION_GROUP));
    return is_sync ? needs_to_tell(nn, op, r) : 0;
}

bool crail_rpc_durable_awaited(crail_namenode *nn, uint64_t needs) {
    if (needs <= nn->durable.done)
        return false;
    if (nn->durable.cut == CRAIL_RPC_CUT_NONE || needs > nn->durable.epoch)
        want(nn);
    return true;
}

static uint64_t lag_ns(const crail_namenode *nn) {
    const struct crail_rpc_durable *d = &nn->durable;
    uint64_t since = d->cut_ns ? d->cut_ns : d->changed_ns;
    return since && since < nn->now_ns ? nn->now_ns - since : 0;
}

bool crail_rpc_durable_slows(crail_namenode *nn) {
    const struct crail_rpc_durable *d = &nn->durable;
    if (d->kind == CRAIL_DURABILITY_NONE)
        return false;
    bool much = crail_meta_changed(nn->meta) > CRAIL_CUT_CHANGED_MAX || lag_ns(nn) > nn->tuning.lag_ns;
    if (much)
        want(nn);
    return much || d->failing;
}

void crail_rpc_durable_want(crail_namenode *nn) {
    if (nn->durable.kind != CRAIL_DURABILITY_NONE)
        want(nn);
}

/* ---- rows of lanes --------------------------------------------------------- */

struct lane_key {
    uint64_t session;
    uint32_t lane;
};
#define LANE_KEY_BYTES 12

static struct lane_key key_of(const struct crail_rpc_lane *lane) {
    return (struct lane_key){lane->session->id, lane->number};
}

/* The vector that the cut finds half-way, or NULL: one that has done nothing yet has only cost the record. */
static const struct crail_frame *half_of(const struct crail_rpc_lane *lane) {
    const struct crail_rpc_vector *v = &lane->vec;
    return v->frame && v->recorded && v->next ? (const void *)v->frame : NULL;
}

/* Bytes of the record that the row keeps. A reply too large for the loop to copy at once is not kept; asked for again,
 * it is one of which nobody knows how it went. */
static uint32_t record_bytes(const struct crail_rpc_lane *lane) {
    bool is_begun = lane->vec.frame && lane->vec.recorded && !lane->vec.next;
    return is_begun || lane->record.len > CRAIL_RPC_RECORD_BYTES ? 0 : (uint32_t)lane->record.len;
}

static size_t row_bytes(const struct crail_rpc_lane *lane) {
    return sizeof(struct crail_row) + crail_pad8(LANE_KEY_BYTES + sizeof(struct crail_row_lane) + record_bytes(lane));
}

static void row_move(crail_namenode *nn, struct crail_rpc_lane *lane, enum crail_rpc_row row) {
    crail_list_remove(&lane->of_rows);
    lane->row = row;
    if (row == CRAIL_RPC_ROW_CHANGED)
        crail_list_push(&nn->durable.changed, &lane->of_rows);
}

static void write_lane(crail_namenode *nn, struct crail_rpc_lane *lane) {
    assert(lane->row == CRAIL_RPC_ROW_IN_CUT);
    struct crail_buf *b = &nn->durable.lanes;
    struct lane_key key = key_of(lane);
    const struct crail_frame *half = half_of(lane);
    struct crail_row_lane value = {.last_seq = lane->last_seq};
    if (half) {
        value.half_seq = half->seq;
        value.half_count = lane->vec.next;
    }
    uint32_t n = record_bytes(lane);
    uint8_t *key_at, *value_at;
    int rc = crail_row_begin(b, LANE_KEY_BYTES, (uint32_t)sizeof value + n, &key_at, &value_at);
    assert(rc == 0); /* there is room */
    (void)rc;
    memcpy(key_at, &key, LANE_KEY_BYTES);
    memcpy(value_at, &value, sizeof value);
    if (n)
        memcpy(value_at + sizeof value, lane->record.data, n);
    crail_row_finish(b, CRAIL_TABLE_LANE, LANE_KEY_BYTES, (uint32_t)sizeof value + n);
    lane->is_stored = true;
    row_move(nn, lane, CRAIL_RPC_ROW_SAME);
}

void crail_rpc_lane_touch(crail_namenode *nn, struct crail_rpc_lane *lane) {
    struct crail_rpc_durable *d = &nn->durable;
    if (d->kind == CRAIL_DURABILITY_NONE || lane->row == CRAIL_RPC_ROW_CHANGED)
        return;
    if (lane->row == CRAIL_RPC_ROW_IN_CUT)
        write_lane(nn, lane);
    row_move(nn, lane, CRAIL_RPC_ROW_CHANGED);
    if (!d->changed_ns)
        d->changed_ns = nn->now_ns;
}

/* Where there is no memory the row stays; at the next start it is of no session, and dropped. */
void crail_rpc_lane_row_gone(crail_namenode *nn, struct crail_rpc_lane *lane) {
    if (lane->row == CRAIL_RPC_ROW_IN_CUT)
        write_lane(nn, lane);
    row_move(nn, lane, CRAIL_RPC_ROW_SAME);
    struct lane_key key = key_of(lane);
    if (lane->is_stored)
        crail_row_append(&nn->durable.gone, CRAIL_TABLE_LANE, true, &key, LANE_KEY_BYTES, NULL, 0);
}

/* ---- a cut ----------------------------------------------------------------- */

/* Room for all that write_lane() will append. 0 or -ENOMEM. */
static int make_room(crail_namenode *nn) {
    struct crail_rpc_durable *d = &nn->durable;
    size_t bytes = sizeof(struct crail_row) + 64;
    for (struct crail_list *l = d->changed.next; l != &d->changed; l = l->next)
        bytes += row_bytes(CRAIL_LIST_OF(l, struct crail_rpc_lane, of_rows));
    if (!d->keeps_lanes)
        d->lanes.len = 0;
    return crail_buf_reserve(&d->lanes, bytes + d->gone.len);
}

/* Bounds of the counters that hold when this cut is durable. */
static void write_bounds(crail_namenode *nn) {
    struct crail_rpc_durable *d = &nn->durable;
    struct crail_meta_counters now;
    crail_meta_counters(nn->meta, &now);
    d->version = now.last_version;
    struct crail_row_bounds bounds = {.epoch = d->epoch,
                                      .id = now.last_id + BOUNDS_AHEAD,
                                      .version = now.last_version + BOUNDS_AHEAD,
                                      .job = now.last_job + JOBS_AHEAD};
    int rc = crail_row_append(&d->lanes, CRAIL_TABLE_SUPER, false, "bounds", 6, &bounds, sizeof bounds);
    assert(rc == 0);
    (void)rc;
}

/* 1: it has begun, or one is under way that nobody has seen the end of; 0: there is nothing to write. */
static int cut_begin(crail_namenode *nn, void *args) {
    struct crail_rpc_durable *d = &nn->durable;
    (void)args;
    if (d->cut != CRAIL_RPC_CUT_NONE)
        return 1;
    if (!crail_meta_changed(nn->meta) && crail_list_empty(&d->changed) && !d->gone.len && d->epoch)
        return 0;
    int rc = crail_failpoint_error("cut-asked");
    if (!rc)
        rc = make_room(nn);
    uint64_t epoch = crail_meta_epoch(nn->meta);
    d->rows.len = 0;
    if (!rc)
        rc = crail_meta_cut_begin(nn->meta, &d->rows);
    if (rc)
        return rc;
    d->epoch = epoch;
    crail_failpoint("bounds-before");
    write_bounds(nn);
    crail_failpoint("bounds-after");
    rc = crail_buf_append_padded(&d->lanes, d->gone.data, d->gone.len);
    assert(rc == 0); /* there is room */
    d->gone.len = 0;
    crail_list_splice(&d->cut_lanes, &d->changed);
    for (struct crail_list *l = d->cut_lanes.next; l != &d->cut_lanes; l = l->next)
        CRAIL_LIST_OF(l, struct crail_rpc_lane, of_rows)->row = CRAIL_RPC_ROW_IN_CUT;
    if (!d->cut_ns)
        d->cut_ns = d->changed_ns;
    d->changed_ns = 0;
    d->cut = CRAIL_RPC_CUT_WRITING;
    d->was_wanted = false;
    pthread_mutex_lock(&d->lock);
    d->is_wanted = d->is_written = false;
    pthread_mutex_unlock(&d->lock);
    crail_failpoint("cut-begun");
    return 1;
}

/* True: all of them are written. */
static bool write_lanes(crail_namenode *nn, uint64_t until) {
    struct crail_rpc_durable *d = &nn->durable;
    size_t looked = d->lanes.len;
    while (!crail_list_empty(&d->cut_lanes)) {
        write_lane(nn, CRAIL_LIST_OF(d->cut_lanes.next, struct crail_rpc_lane, of_rows));
        if (d->lanes.len - looked < WRITTEN_TO_CLOCK)
            continue;
        if (crail_clock_ns() >= until)
            return crail_list_empty(&d->cut_lanes);
        looked = d->lanes.len;
    }
    return true;
}

void crail_rpc_durable_step(crail_namenode *nn, uint64_t budget_ns) {
    struct crail_rpc_durable *d = &nn->durable;
    if (d->cut != CRAIL_RPC_CUT_WRITING)
        return;
    if (crail_meta_cut_step(nn->meta, budget_ns) || !write_lanes(nn, crail_clock_ns() + budget_ns))
        return;
    d->keeps_lanes = crail_meta_cut_result(nn->meta) != 0; /* then there is none, and all of it is of the next one */
    d->failing |= d->keeps_lanes;
    d->cut = d->keeps_lanes ? CRAIL_RPC_CUT_NONE : CRAIL_RPC_CUT_GIVEN;
    pthread_mutex_lock(&d->lock);
    d->is_written = true;
    pthread_cond_broadcast(&d->turned);
    pthread_mutex_unlock(&d->lock);
}

/* ---- what is durable ------------------------------------------------------- */

static void wake_held(crail_namenode *nn) {
    struct crail_rpc_durable *d = &nn->durable;
    for (struct crail_list *l = d->wait_durable.next, *next; l != &d->wait_durable; l = next) {
        struct crail_rpc_lane *lane = CRAIL_LIST_OF(l, struct crail_rpc_lane, link);
        next = l->next;
        if (lane->held_needs <= d->done)
            crail_rpc_lane_move(nn, lane, CRAIL_RPC_LANE_READY);
    }
}

struct done {
    uint64_t epoch;
    bool ok;
    struct crail_buf rows, lanes; /* of the cut, for the caller to free: to unmap megabytes holds the loop */
};

/* The memory that is not worth keeping for the next cut. */
static struct crail_buf let_go(struct crail_buf *b) {
    struct crail_buf large = {0};
    if (b->cap > ROWS_KEPT_BYTES) {
        large = *b;
        *b = (struct crail_buf){0};
    }
    b->len = 0;
    return large;
}

static int cut_done(crail_namenode *nn, void *args) {
    struct crail_rpc_durable *d = &nn->durable;
    struct done *done = args;
    if (done->epoch != d->epoch || d->cut != CRAIL_RPC_CUT_GIVEN)
        return -EINVAL;
    d->failing = !done->ok;
    if (!done->ok)
        return 0;
    d->cut = CRAIL_RPC_CUT_NONE;
    done->rows = let_go(&d->rows);
    done->lanes = let_go(&d->lanes);
    d->done = d->epoch;
    d->done_version = d->version;
    d->cut_ns = 0;
    nn->stats.cuts++;
    crail_failpoint("durable-noted");
    crail_meta_durable_up_to(nn->meta, d->done);
    nn->changed = true; /* what waited for it comes due */
    crail_rpc_lanes_wake(nn, &d->wait_commit);
    wake_held(nn);
    crail_rpc_parties_durable(nn);
    return 0;
}

/* ---- the thread that commits ------------------------------------------------ */

static struct timespec in_ms(uint32_t ms) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t ns = (uint64_t)t.tv_nsec + ms * 1000000ull;
    return (struct timespec){t.tv_sec + (time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
}

int crail_namenode_cut_wait(crail_namenode *nn, uint32_t timeout_ms) {
    struct crail_rpc_durable *d = &nn->durable;
    struct timespec until = in_ms(timeout_ms);
    int rc = 0;
    pthread_mutex_lock(&d->lock);
    while (rc != ETIMEDOUT && !d->is_wanted && !d->is_over)
        rc = pthread_cond_timedwait(&d->turned, &d->lock, &until);
    rc = d->is_over ? -ECANCELED : d->is_wanted;
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static int cut_want(crail_namenode *nn, void *args) {
    uint64_t needs = nn->durable.kind == CRAIL_DURABILITY_NONE ? 0 : crail_rpc_durable_changed(nn);
    *(uint64_t *)args = crail_rpc_durable_awaited(nn, needs) ? needs : 0;
    return 0;
}

int crail_namenode_cut_want(crail_namenode *nn, uint64_t *epoch) {
    return epoch ? crail_rpc_post(nn, cut_want, epoch) : -CRAIL_E_INVALID_ARGUMENT;
}

void crail_namenode_cut_wake(crail_namenode *nn) {
    struct crail_rpc_durable *d = &nn->durable;
    pthread_mutex_lock(&d->lock);
    d->is_over = true;
    pthread_cond_broadcast(&d->turned);
    pthread_mutex_unlock(&d->lock);
}

int crail_namenode_cut_make(crail_namenode *nn, crail_namenode_cut *out) {
    struct crail_rpc_durable *d = &nn->durable;
    if (!out || d->kind == CRAIL_DURABILITY_NONE)
        return -CRAIL_E_INVALID_ARGUMENT;
    int rc = crail_rpc_post(nn, cut_begin, NULL);
    if (rc <= 0)
        return rc;
    struct timespec until = in_ms(WRITE_MS_MAX);
    pthread_mutex_lock(&d->lock);
    for (rc = 0; rc != ETIMEDOUT && !d->is_written;)
        rc = pthread_cond_timedwait(&d->turned, &d->lock, &until);
    bool is_written = d->is_written;
    pthread_mutex_unlock(&d->lock);
    if (!is_written)
        return -ETIMEDOUT;
    if (d->cut != CRAIL_RPC_CUT_GIVEN)
        return -ENOMEM;
    /* Written: until cut_done() the loop touches none of it. */
    *out = (crail_namenode_cut){
        .epoch = d->epoch, .rows = {d->rows.data, d->lanes.data}, .bytes = {d->rows.len, d->lanes.len}};
    return 1;
}

int crail_namenode_cut_done(crail_namenode *nn, uint64_t epoch, int ok) {
    struct done done = {.epoch = epoch, .ok = ok != 0};
    int rc = crail_rpc_post(nn, cut_done, &done);
    crail_buf_free(&done.rows);
    crail_buf_free(&done.lanes);
    return rc;
}

void crail_rpc_durable_stats(crail_namenode *nn, crail_namenode_stats *out) {
    struct crail_rpc_durable *d = &nn->durable;
    if (d->kind == CRAIL_DURABILITY_NONE)
        return;
    out->epoch = crail_meta_epoch(nn->meta);
    out->epoch_durable = d->done;
    out->nodes_changed = crail_meta_changed(nn->meta);
    out->durable_lag_ns = lag_ns(nn);
    out->commits_failing = d->failing;
}

/* ---- start and end ----------------------------------------------------------- */

int crail_rpc_durable_init(crail_namenode *nn, uint32_t kind, int grants_fd) {
    struct crail_rpc_durable *d = &nn->durable;
    struct crail_list *lists[] = {&d->changed, &d->cut_lanes, &d->wait_commit, &d->wait_durable, &d->parties};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        crail_list_init(lists[i]);
    d->kind = kind;
    if (kind != CRAIL_DURABILITY_NONE) {
        mallopt(M_MMAP_THRESHOLD, 4 << 20); /* so that the rows of a cut grow by remapping, not by copies */
        mallopt(M_TRIM_THRESHOLD, HEAP_KEPT_BYTES);
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->turned, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return kind == CRAIL_DURABILITY_NONE ? 0 : crail_meta_durable(nn->meta, grants_fd);
}

void crail_rpc_durable_destroy(crail_namenode *nn) {
    struct crail_rpc_durable *d = &nn->durable;
    pthread_cond_destroy(&d->turned);
    pthread_mutex_destroy(&d->lock);
    crail_buf_free(&d->rows);
    crail_buf_free(&d->lanes);
    crail_buf_free(&d->gone);
}
