/* Transfers between a data connection and the disk, through chunks: while one is at the disk, the other is at the
 * socket.
 *
 * The extent stays named (the connection's word) until the last chunk is through, also when the socket is gone: what
 * was given to the disk cannot be called back. The head of a READ's reply waits for the first chunk, so that a disk
 * that does not read can be told; after that the connection can only end. Then the extent is remembered, and the
 * question that comes next, over another connection, is answered. */
#include "conn.h"

#include <assert.h>
#include <errno.h>

#include "base/clock.h"

#define LOOK_NS 100000000u /* see disk.c: from the first that waits to the first look */

static void resume(struct crail_storage *s, struct crail_conn *c) {
    c->is_paused = false;
    c->moved_ns = crail_clock_ns(); /* what it waited for was not its peer */
    crail_list_push(&s->runnable, &c->run_link);
}

/* ---- buffers ---------------------------------------------------------------------- */

void crail_disk_buffer_give(struct crail_storage *s, uint8_t *buffer) {
    struct crail_disk *d = &s->disk;
    if (crail_list_empty(&d->waiting)) {
        assert(d->buffers_free < s->tuning.buffers);
        d->free[d->buffers_free++] = (uint32_t)((size_t)(buffer - d->buffers) / CRAIL_DISK_BUFFER_BYTES);
        return;
    }
    struct crail_conn *c = CRAIL_LIST_OF(d->waiting.next, struct crail_conn, wait_link);
    crail_list_remove(&c->wait_link);
    assert(!c->spare);
    c->spare = buffer;
    resume(s, c);
}

static bool holds_any(const struct crail_conn *c) {
    for (uint32_t i = 0; i < CRAIL_CHUNKS; i++)
        if (c->chunks[i].state != CRAIL_CHUNK_EMPTY)
            return true;
    return false;
}

/* Who has none waits in line; who has one goes on with that. */
static uint8_t *take_buffer(struct crail_storage *s, struct crail_conn *c) {
    uint8_t *buffer = c->spare ? c->spare : crail_disk_buffer_take(s);
    c->spare = NULL;
    if (!buffer && !holds_any(c) && crail_list_empty(&c->wait_link)) {
        crail_list_push(&s->disk.waiting, &c->wait_link);
        if (!s->disk.look_ns) {
            s->disk.look_ns = crail_clock_ns() + LOOK_NS;
            crail_loop_arm(s);
        }
    }
    return buffer;
}

static void chunk_clear(struct crail_storage *s, struct crail_chunk *chunk) {
    chunk->state = CRAIL_CHUNK_EMPTY;
    crail_disk_buffer_give(s, chunk->job.buffer);
    chunk->job.buffer = NULL;
}

void crail_spool_drop(struct crail_storage *s, struct crail_conn *c) {
    crail_list_remove(&c->run_link);
    crail_list_remove(&c->wait_link);
    for (uint32_t i = 0; i < CRAIL_CHUNKS; i++)
        if (c->chunks[i].state == CRAIL_CHUNK_FILLING || c->chunks[i].state == CRAIL_CHUNK_READY)
            chunk_clear(s, &c->chunks[i]);
    if (c->spare)
        crail_disk_buffer_give(s, c->spare);
    c->spare = NULL;
}

bool crail_spool_keeps(const struct crail_conn *c) {
    for (uint32_t i = 0; i < CRAIL_CHUNKS; i++)
        if (c->chunks[i].state == CRAIL_CHUNK_FILLING || c->chunks[i].state == CRAIL_CHUNK_READY)
            return true;
    return false;
}

/* ---- chunks ------------------------------------------------------------------------- */

/* The next chunk of the transfer with a buffer and its place on the disk, or NULL. */
static struct crail_chunk *chunk_plan(struct crail_storage *s, struct crail_conn *c) {
    struct crail_chunk *chunk = &c->chunks[c->chunk_in % CRAIL_CHUNKS];
    uint8_t *buffer = chunk->state == CRAIL_CHUNK_EMPTY ? take_buffer(s, c) : NULL;
    if (!buffer)
        return NULL;
    const struct crail_data_request *q = &c->request;
    uint64_t at = s->regions[q->extent.region].data_at + (uint64_t)q->extent.granule * CRAIL_GRANULE + q->offset;
    at += c->planned;
    uint32_t skip = (uint32_t)(at % CRAIL_GRANULE);
    uint64_t left = q->length - c->planned, room = CRAIL_DISK_BUFFER_BYTES - skip;
    chunk->job = (struct crail_job){
        .at = at - skip, .buffer = buffer, .skip = skip, .bytes = (uint32_t)(left < room ? left : room)};
    chunk->conn = c;
    chunk->moved = 0;
    c->planned += chunk->job.bytes;
    c->chunk_in++;
    return chunk;
}

/* A job is back. False: it was the last one of a connection that is gone. */
static bool is_back(struct crail_storage *s, struct crail_conn *c, int rc) {
    assert(c->jobs > 0);
    c->jobs--;
    if (rc && !c->failure)
        c->failure = rc;
    if (c->is_closing && !c->jobs)
        crail_conn_end(s, c);
    return !c->is_closing;
}

static void chunk_submit(struct crail_storage *s, struct crail_chunk *chunk, enum crail_job_kind kind,
                         void (*done)(struct crail_storage *s, struct crail_job *job)) {
    chunk->state = CRAIL_CHUNK_AT_DISK;
    chunk->job.kind = kind;
    chunk->job.done = done;
    chunk->conn->jobs++;
    crail_disk_submit(s, &chunk->job);
}

/* ---- reading -------------------------------------------------------------------------- */

static void remember_bad(struct crail_storage *s, const struct crail_extent *e) {
    struct crail_bad *bad = &s->bad[s->bad_next++ % CRAIL_BAD_MAX];
    *bad = (struct crail_bad){crail_use_word(e->region, e->granule), e->generation};
}

int crail_spool_verdict(const struct crail_storage *s, const struct crail_extent *e) {
    uint64_t word = crail_use_word(e->region, e->granule);
    for (uint32_t i = 0; i < CRAIL_BAD_MAX; i++)
        if (s->bad[i].word == word && s->bad[i].generation == e->generation)
            return CRAIL_E_DATA_LOST;
    return 0;
}

static void is_read(struct crail_storage *s, struct crail_job *job) {
    struct crail_chunk *chunk = CRAIL_LIST_OF(job, struct crail_chunk, job);
    struct crail_conn *c = chunk->conn;
    chunk->state = CRAIL_CHUNK_READY;
    if (job->rc)
        remember_bad(s, &c->request.extent);
    if (job->rc || c->is_closing)
        chunk_clear(s, chunk);
    if (is_back(s, c, job->rc))
        resume(s, c);
}

static void read_ahead(struct crail_storage *s, struct crail_conn *c) {
    while (!c->failure && c->planned < c->request.length) {
        struct crail_chunk *chunk = chunk_plan(s, c);
        if (!chunk)
            return;
        chunk_submit(s, chunk, CRAIL_JOB_READ, is_read);
    }
}

int crail_spool_bytes(struct crail_storage *s, struct crail_conn *c, uint8_t **from, uint64_t *n) {
    read_ahead(s, c);
    struct crail_chunk *chunk = &c->chunks[c->chunk_out % CRAIL_CHUNKS];
    if (c->failure)
        return -EIO;
    if (chunk->state != CRAIL_CHUNK_READY)
        return CRAIL_STEP_PAUSE;
    *from = chunk->job.buffer + chunk->job.skip + chunk->moved;
    *n = chunk->job.bytes - chunk->moved;
    return CRAIL_STEP_ON;
}

void crail_spool_sent(struct crail_storage *s, struct crail_conn *c, uint64_t n) {
    struct crail_chunk *chunk = &c->chunks[c->chunk_out % CRAIL_CHUNKS];
    assert(chunk->state == CRAIL_CHUNK_READY && n <= chunk->job.bytes - chunk->moved);
    chunk->moved += (uint32_t)n;
    if (chunk->moved < chunk->job.bytes)
        return;
    c->chunk_out++;
    chunk_clear(s, chunk);
}

/* ---- writing ----------------------------------------------------------------------------- */

static void is_written(struct crail_storage *s, struct crail_job *job) {
    struct crail_chunk *chunk = CRAIL_LIST_OF(job, struct crail_chunk, job);
    struct crail_conn *c = chunk->conn;
    chunk_clear(s, chunk);
    if (is_back(s, c, job->rc))
        resume(s, c);
}

/* The chunk that is being filled, or NULL. */
static struct crail_chunk *filling(struct crail_conn *c) {
    struct crail_chunk *last = &c->chunks[(c->chunk_in + CRAIL_CHUNKS - 1) % CRAIL_CHUNKS];
    return last->state == CRAIL_CHUNK_FILLING ? last : NULL;
}

int crail_spool_room(struct crail_storage *s, struct crail_conn *c, uint8_t **to, uint64_t *room) {
    struct crail_chunk *chunk = filling(c);
    if (c->failure) { /* the rest goes nowhere */
        if (chunk)
            chunk_clear(s, chunk);
        *to = s->scratch;
        *room = c->left < CRAIL_SCRATCH_BYTES ? c->left : CRAIL_SCRATCH_BYTES;
        return CRAIL_STEP_ON;
    }
    if (!chunk) {
        chunk = chunk_plan(s, c);
        if (!chunk)
            return CRAIL_STEP_PAUSE;
        chunk->state = CRAIL_CHUNK_FILLING;
    }
    *to = chunk->job.buffer + chunk->job.skip + chunk->moved;
    *room = chunk->job.bytes - chunk->moved;
    return CRAIL_STEP_ON;
}

void crail_spool_received(struct crail_storage *s, struct crail_conn *c, uint64_t n) {
    struct crail_chunk *chunk = filling(c);
    if (!c->failure) {
        chunk->moved += (uint32_t)n;
        if (chunk->moved == chunk->job.bytes)
            chunk_submit(s, chunk, CRAIL_JOB_WRITE, is_written);
    }
    if (c->left == 0)
        c->state = CRAIL_CONN_DISK;
}

/* ---- flushing ---------------------------------------------------------------------------- */

static void sync_begin(struct crail_storage *s);

static void is_synced(struct crail_storage *s, struct crail_job *job) {
    struct crail_list done;
    crail_list_init(&done);
    crail_list_splice(&done, &s->flushing[0]);
    while (!crail_list_empty(&done)) {
        struct crail_conn *c = CRAIL_LIST_OF(done.next, struct crail_conn, sync_link);
        crail_list_remove(&c->sync_link);
        if (is_back(s, c, job->rc))
            resume(s, c);
    }
    sync_begin(s);
}

/* Those that came while one was under way share the next: what they have written may have been too late for it. */
static void sync_begin(struct crail_storage *s) {
    if (!crail_list_empty(&s->flushing[0]) || crail_list_empty(&s->flushing[1]))
        return;
    crail_list_splice(&s->flushing[0], &s->flushing[1]);
    s->sync = (struct crail_job){.kind = CRAIL_JOB_SYNC, .done = is_synced};
    crail_disk_submit(s, &s->sync);
}

/* ---- a request ------------------------------------------------------------------------------ */

void crail_spool_begin(struct crail_storage *s, struct crail_conn *c) {
    c->is_spooled = true;
    c->failure = 0;
    c->planned = 0;
    c->chunk_in = c->chunk_out = 0;
    c->state = CRAIL_CONN_DISK;
    switch (c->request.code) {
    case CRAIL_DATA_READ:
        read_ahead(s, c);
        break;
    case CRAIL_DATA_WRITE:
        if (c->left)
            c->state = CRAIL_CONN_FILL;
        break;
    default:
        assert(c->request.code == CRAIL_DATA_FLUSH);
        c->jobs++;
        crail_list_push(&s->flushing[1], &c->sync_link);
        sync_begin(s);
    }
}

int crail_spool_step(struct crail_storage *s, struct crail_conn *c) {
    bool is_read = c->request.code == CRAIL_DATA_READ;
    if (is_read)
        read_ahead(s, c);
    if (is_read && !c->failure && c->request.length) {
        if (c->chunks[c->chunk_out % CRAIL_CHUNKS].state != CRAIL_CHUNK_READY)
            return CRAIL_STEP_PAUSE;
        crail_conn_reply(c, 0, c->request.length);
        return CRAIL_STEP_ON;
    }
    if (c->jobs)
        return CRAIL_STEP_PAUSE;
    crail_spool_drop(s, c);
    c->is_spooled = false;
    c->word = 0;
    crail_conn_reply(c, crail_disk_status(c->failure), 0);
    return CRAIL_STEP_ON;
}
