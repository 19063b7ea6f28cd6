/* Watches: WATCH begins one, NEXT reads it, END ends it. All watches of one path read one log (wait.h), each from where
 * it is; a change costs one event per watched path above it, however many watch.
 *
 * NEXT names the last event that arrived, and gets those after it: so a lost reply loses nothing. A chunk of the log
 * goes when no watch has an event in it left, or when the log is too long; a watch that still had some there has lost
 * them, and its next answer begins with RESYNC.
 *
 * Memory is charged to sessions. A watch pays for its spot, whoever else stands there; a log is paid for by who is last
 * in reading it. A session that has used up its bytes gets no further watch, and its logs grow no longer. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "rpc/rpc.h"

/* ---- logs ---------------------------------------------------------------- */

static struct crail_rpc_chunk *chunk_at(struct crail_list *link) {
    return CRAIL_LIST_OF(link, struct crail_rpc_chunk, link);
}

static struct crail_rpc_chunk *oldest(struct crail_rpc_log *log) {
    return crail_list_empty(&log->chunks) ? NULL : chunk_at(log->chunks.next);
}

static struct crail_rpc_chunk *youngest(struct crail_rpc_log *log) {
    return crail_list_empty(&log->chunks) ? NULL : chunk_at(log->chunks.prev);
}

/* ---- whose bytes they are -------------------------------------------------- */

/* Another number of bytes, and another payer (NULL at the log's end). */
static void log_charge(struct crail_rpc_log *log, struct crail_rpc_session *payer, uint32_t bytes) {
    if (log->payer) {
        assert(log->payer->watch_bytes >= log->bytes);
        log->payer->watch_bytes -= log->bytes;
    }
    log->bytes = bytes;
    log->payer = payer;
    if (payer)
        payer->watch_bytes += bytes;
    assert(payer || !bytes);
}

static struct crail_rpc_session *laggard(const struct crail_rpc_log *log) {
    if (crail_list_empty(&log->watches))
        return NULL;
    return CRAIL_LIST_OF(log->watches.next, struct crail_rpc_watch, of_log)->session;
}

/* What a watch of this path costs at most: its log, its spot, and the one where its path parts from others. */
static uint32_t watch_bytes(uint32_t path_len) {
    return (uint32_t)(sizeof(struct crail_rpc_watch) + sizeof(struct crail_rpc_log) + sizeof(struct crail_rpc_chunk) +
                      2 * sizeof(struct crail_rpc_spot)) +
           2 * path_len;
}

/* ---- chunks ---------------------------------------------------------------- */

static void chunk_free(struct crail_rpc_log *log, struct crail_rpc_chunk *chunk) {
    log_charge(log, log->payer, log->bytes - chunk->cap);
    crail_list_remove(&chunk->link);
    free(chunk);
}

/* The last chunk stays: readers that have all of it wait there for more. */
static void trim(struct crail_rpc_log *log) {
    while (oldest(log) != youngest(log) && !oldest(log)->readers)
        chunk_free(log, oldest(log));
}

static bool fits(const struct crail_rpc_log *log, uint32_t bytes) {
    return log->bytes + bytes <= CRAIL_RPC_LOG_BYTES_MAX &&
           (!log->payer || log->payer->watch_bytes + bytes <= CRAIL_RPC_WATCH_BYTES_MAX);
}

/* One for `bytes` of events, after the oldest ones where there is no room. NULL without memory. */
static struct crail_rpc_chunk *chunk_add(struct crail_rpc_log *log, uint32_t bytes) {
    log_charge(log, laggard(log), log->bytes);
    while (oldest(log) && !fits(log, bytes))
        chunk_free(log, oldest(log));
    struct crail_rpc_chunk *chunk = fits(log, bytes) ? malloc(sizeof *chunk + bytes) : NULL;
    if (!chunk)
        return NULL;
    *chunk = (struct crail_rpc_chunk){.serial = ++log->serial, .first = log->last + 1, .cap = bytes};
    crail_list_init(&chunk->link);
    crail_list_push(&log->chunks, &chunk->link);
    log_charge(log, log->payer, log->bytes + bytes);
    return chunk;
}

static void log_empty(struct crail_rpc_log *log) {
    while (oldest(log))
        chunk_free(log, oldest(log));
}

/* The chunk that has room for an event: the last one, or one twice as large. */
static struct crail_rpc_chunk *chunk_with(struct crail_rpc_log *log, uint32_t event_bytes) {
    struct crail_rpc_chunk *last = youngest(log);
    if (last && last->cap - last->len >= event_bytes)
        return last;
    uint32_t bytes = last && last->cap ? 2 * last->cap : CRAIL_RPC_CHUNK_BYTES_FIRST;
    bytes = bytes > CRAIL_RPC_CHUNK_BYTES_MAX ? CRAIL_RPC_CHUNK_BYTES_MAX : bytes;
    return chunk_add(log, bytes < event_bytes ? event_bytes : bytes);
}

/* ---- events ---------------------------------------------------------------- */

static uint32_t event_bytes(uint32_t path_len) {
    return crail_pad8((uint32_t)sizeof(struct crail_event) + path_len);
}

static void event_put(uint8_t *to, enum crail_event_kind kind, uint64_t version, const char *path, uint32_t len) {
    struct crail_event e = {.version = version, .kind = (uint16_t)kind, .path_len = (uint16_t)len};
    memset(to + event_bytes(len) - 8, 0, 8);
    memcpy(to, &e, sizeof e);
    memcpy(to + sizeof e, path, len);
}

void crail_rpc_log_add(crail_namenode *nn, struct crail_rpc_spot *spot, enum crail_event_kind kind, uint64_t version,
                       const char *path, uint32_t len) {
    struct crail_rpc_log *log = spot->log;
    uint32_t bytes = event_bytes(len);
    struct crail_rpc_chunk *chunk = chunk_with(log, bytes);
    log->last++;
    log->last_change = nn->waits.changes;
    if (chunk) {
        event_put(chunk->bytes + chunk->len, kind, version, path, len);
        chunk->len += bytes;
    } else {
        log_empty(log); /* no memory: all is lost, and the next answer says so */
    }
    crail_rpc_line_wake(nn, &spot->line[CRAIL_RPC_LINE_NEXT]);
}

/* ---- rechecks ------------------------------------------------------------ */

/* What is at a path. 0 and *version, or a status. */
static int look_up(crail_namenode *nn, const char *path, uint32_t len, uint64_t *version) {
    struct crail_op op = {.code = CRAIL_OP_STAT, .path_len = (uint16_t)len};
    struct crail_buf *b = &nn->waits.scratch;
    b->len = 0;
    if (crail_meta_execute(nn->meta, NULL, &op, path, NULL, NULL, nn->realtime_ns, b))
        return CRAIL_E_NO_MEMORY;
    const struct crail_result *r = (const void *)b->data;
    *version = r->version;
    return -r->status;
}

void crail_rpc_log_recheck(crail_namenode *nn, struct crail_rpc_spot *spot, enum crail_rpc_recheck kind,
                           uint64_t since) {
    struct crail_rpc_log *log = spot->log;
    char path[CRAIL_PATH_MAX];
    uint32_t len = crail_rpc_spot_path(spot, path);
    uint64_t version = log->version;
    enum crail_event_kind event = CRAIL_CHANGE_DELETE;
    bool was_there = log->is_there;
    if (kind == CRAIL_RPC_RECHECK_GONE && log->last_change <= since) {
        log->is_there = false;
        if (!was_there)
            return;
    } else if (kind == CRAIL_RPC_RECHECK_CAME) {
        log->is_there = look_up(nn, path, len, &version) == 0;
        if (log->is_there ? was_there && version == log->version : !was_there)
            return;
        event = log->is_there ? CRAIL_CHANGE_PUT : CRAIL_CHANGE_DELETE;
        version = log->is_there ? version : log->version;
        log->version = version;
    } else { /* something was told since: what it was about is not known any more */
        event = CRAIL_CHANGE_RESYNC;
        version = 0;
    }
    crail_rpc_log_add(nn, spot, event, version, path, len);
}

/* ---- a watch's place ----------------------------------------------------- */

struct crail_rpc_watch *crail_rpc_watch_find(const struct crail_rpc_session *s, uint64_t token) {
    for (struct crail_list *l = s->watches.next; l != &s->watches; l = l->next) {
        struct crail_rpc_watch *w = CRAIL_LIST_OF(l, struct crail_rpc_watch, link);
        if (w->token == token)
            return w;
    }
    return NULL;
}

/* The events that come next are not there any more. */
static bool has_lost_some(const struct crail_rpc_watch *w) {
    struct crail_rpc_log *log = w->spot->log;
    return w->seen < log->last && (!oldest(log) || w->seen + 1 < oldest(log)->first);
}

/* The chunk that it stands in; NULL if the log has dropped that, or there is none. */
static struct crail_rpc_chunk *place(const struct crail_rpc_watch *w) {
    const struct crail_rpc_chunk *first = oldest(w->spot->log);
    return w->chunk && first && w->chunk_serial >= first->serial ? w->chunk : NULL;
}

static void leave_chunk(struct crail_rpc_watch *w) {
    struct crail_rpc_chunk *chunk = place(w);
    if (chunk) {
        assert(chunk->readers);
        chunk->readers--;
    }
    w->chunk = NULL;
}

/* Into the one with the event after `seen`; the last one if that is still to come. */
static void enter_chunk(struct crail_rpc_watch *w) {
    struct crail_rpc_log *log = w->spot->log;
    struct crail_list *l = log->chunks.prev;
    if (!oldest(log) || has_lost_some(w))
        return;
    while (chunk_at(l)->first > w->seen + 1)
        l = l->prev;
    w->chunk = chunk_at(l);
    w->chunk_serial = w->chunk->serial;
    w->chunk->readers++;
}

static void saw(struct crail_rpc_watch *w, uint64_t seen) {
    if (seen <= w->seen)
        return;
    leave_chunk(w);
    w->seen = seen;
    enter_chunk(w);
    trim(w->spot->log);
    crail_list_push(&w->spot->log->watches, &w->of_log);
}

/* ---- begin and end ------------------------------------------------------- */

static int log_make(crail_namenode *nn, struct crail_rpc_spot *spot, const char *path, uint32_t len) {
    struct crail_rpc_log *log = calloc(1, sizeof *log);
    if (!log)
        return CRAIL_E_NO_MEMORY;
    crail_list_init(&log->chunks);
    crail_list_init(&log->watches);
    if (!chunk_add(log, 0)) { /* the first, for no event yet: so every watch has a place */
        free(log);
        return CRAIL_E_NO_MEMORY;
    }
    log->is_there = look_up(nn, path, len, &log->version) == 0;
    spot->log = log;
    return 0;
}

static void log_leave(struct crail_rpc_spot *spot, struct crail_rpc_watch *w) {
    struct crail_rpc_log *log = spot->log;
    leave_chunk(w);
    trim(log);
    crail_list_remove(&w->of_log);
    if (crail_list_empty(&log->watches)) {
        log_empty(log);
        free(log);
        spot->log = NULL;
    } else {
        log_charge(log, laggard(log), log->bytes);
    }
}

static int watch_make(crail_namenode *nn, struct crail_rpc_session *s, uint64_t token, const char *path, uint32_t len) {
    uint32_t made;
    struct crail_rpc_watch *w = calloc(1, sizeof *w);
    struct crail_rpc_spot *spot = w ? crail_rpc_spot_get(nn, path, len, &made) : NULL;
    if (!spot || (!spot->log && log_make(nn, spot, path, len))) {
        if (spot)
            crail_rpc_spot_unref(nn, spot);
        free(w);
        return CRAIL_E_NO_MEMORY;
    }
    crail_list_init(&w->link);
    crail_list_init(&w->of_log);
    w->token = token;
    w->spot = spot;
    w->session = s;
    w->seen = spot->log->last;
    w->bytes = watch_bytes(len);
    enter_chunk(w);
    crail_list_push(&spot->log->watches, &w->of_log);
    crail_list_push(&s->watches, &w->link);
    s->watches_count++;
    s->watch_bytes += w->bytes;
    nn->stats.watches++;
    return 0;
}

static void end(crail_namenode *nn, struct crail_rpc_session *s, struct crail_rpc_watch *w) {
    struct crail_rpc_spot *spot = w->spot;
    crail_list_remove(&w->link);
    s->watches_count--;
    s->watch_bytes -= w->bytes;
    nn->stats.watches--;
    log_leave(spot, w);
    crail_rpc_line_wake(nn, &spot->line[CRAIL_RPC_LINE_NEXT]); /* who waits for it learns that it is gone */
    crail_rpc_spot_unref(nn, spot);
    free(w);
}

void crail_rpc_watches_end(crail_namenode *nn, struct crail_rpc_session *s) {
    while (!crail_list_empty(&s->watches))
        end(nn, s, CRAIL_LIST_OF(s->watches.next, struct crail_rpc_watch, link));
    assert(!s->watch_bytes);
}

/* ---- operations ---------------------------------------------------------- */

static int answer(struct crail_buf *b, const struct crail_result *r) {
    return crail_buf_append_padded(b, r, sizeof *r);
}

static int answer_status(struct crail_buf *b, int status) {
    return answer(b, &(struct crail_result){.status = -status});
}

static int begin(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op, const char *path) {
    uint64_t version;
    if (op->flags || op->options_len || op->data_len || op->count || op->arg1)
        return CRAIL_E_INVALID_ARGUMENT;
    int rc = look_up(nn, path, op->path_len, &version);
    if (rc && rc != CRAIL_E_NOT_FOUND)
        return rc;
    const struct crail_rpc_watch *w = crail_rpc_watch_find(s, op->arg0);
    if (w) {
        char its[CRAIL_PATH_MAX];
        uint32_t len = crail_rpc_spot_path(w->spot, its);
        bool same = len == op->path_len && memcmp(its, path, len) == 0;
        return same ? 0 : CRAIL_E_INVALID_ARGUMENT;
    }
    if (s->watches_count >= CRAIL_RPC_WATCHES_MAX ||
        s->watch_bytes + watch_bytes(op->path_len) > CRAIL_RPC_WATCH_BYTES_MAX)
        return CRAIL_E_QUOTA_EXCEEDED;
    return watch_make(nn, s, op->arg0, path, op->path_len);
}

int crail_rpc_watch_begin(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op, const char *path,
                          struct crail_buf *reply) {
    return answer_status(reply, begin(nn, s, op, path));
}

int crail_rpc_watch_end(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op,
                        struct crail_buf *reply) {
    struct crail_rpc_watch *w = crail_rpc_watch_find(s, op->arg0);
    if (!w)
        return 1;
    if (answer_status(reply, 0))
        return -ENOMEM;
    end(nn, s, w);
    return 0;
}

/* Copies events from the watch's place on, as many as an answer takes. 0 or -ENOMEM. */
static int copy_events(struct crail_rpc_watch *w, struct crail_buf *b, struct crail_result *r) {
    struct crail_rpc_log *log = w->spot->log;
    struct crail_rpc_chunk *chunk = place(w) ? place(w) : oldest(log);
    uint64_t number = chunk ? chunk->first : log->last + 1;
    for (; number <= log->last; chunk = chunk_at(chunk->link.next)) {
        for (uint32_t at = 0; at < chunk->len; number++) {
            const struct crail_event *e = (const void *)(chunk->bytes + at);
            uint32_t bytes = event_bytes(e->path_len);
            at += bytes;
            if (number <= w->seen)
                continue;
            if (r->count == CRAIL_RPC_NEXT_EVENTS || r->data_len + bytes > CRAIL_RPC_NEXT_BYTES) {
                r->flags |= CRAIL_RESF_MORE;
                return 0;
            }
            if (crail_buf_append_padded(b, e, bytes))
                return -ENOMEM;
            r->count++;
            r->data_len += bytes;
            r->version = number;
        }
    }
    return 0;
}

/* 0 or -ENOMEM. */
static int put_resync(const struct crail_rpc_watch *w, struct crail_buf *b, struct crail_result *r) {
    char path[CRAIL_PATH_MAX];
    uint32_t len = crail_rpc_spot_path(w->spot, path), bytes = event_bytes(len);
    if (crail_buf_reserve(b, bytes))
        return -ENOMEM;
    event_put(b->data + b->len, CRAIL_CHANGE_RESYNC, 0, path, len);
    b->len += bytes;
    r->count = 1;
    r->data_len = bytes;
    r->version = w->spot->log->last; /* where nothing else is left */
    return 0;
}

static int next_events(struct crail_rpc_watch *w, struct crail_buf *b) {
    struct crail_result r = {.version = w->seen};
    size_t start = b->len;
    int rc = answer(b, &r);
    if (!rc && has_lost_some(w))
        rc = put_resync(w, b, &r);
    if (!rc)
        rc = copy_events(w, b, &r);
    if (rc) {
        b->len = start;
        return rc;
    }
    r.size = r.count;
    memcpy(b->data + start, &r, sizeof r);
    return 0;
}

int crail_rpc_watch_next(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op,
                         struct crail_buf *reply) {
    struct crail_rpc_watch *w = crail_rpc_watch_find(s, op->arg0);
    (void)nn;
    if (op->flags & ~CRAIL_OPF_WAIT || op->path_len || op->options_len || op->data_len ||
        (op->count && !(op->flags & CRAIL_OPF_WAIT)))
        return answer_status(reply, CRAIL_E_INVALID_ARGUMENT);
    if (!w)
        return answer_status(reply, CRAIL_E_NOT_FOUND);
    if (op->arg1 > w->spot->log->last)
        return answer_status(reply, CRAIL_E_INVALID_ARGUMENT);
    saw(w, op->arg1);
    if (w->seen == w->spot->log->last && op->flags & CRAIL_OPF_WAIT)
        return CRAIL_META_WAIT;
    return next_events(w, reply);
}
