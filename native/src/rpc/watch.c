/* Watches: WATCH begins one, NEXT reads it, END ends it. All watches of one path read one log (wait.h), each from where
 * it is; a change costs one event per watched path above it, however many watch.
 *
 * NEXT names the last event that arrived, and gets those after it: so a lost reply loses nothing. A chunk of the log
 * goes when no watch has an event in it left, or when the log is too long; a watch that still had some there has lost
 * them, and its next answer begins with RESYNC. */
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

static void chunk_free(struct crail_rpc_log *log, struct crail_rpc_chunk *chunk) {
    crail_list_remove(&chunk->link);
    log->chunks_count--;
    free(chunk);
}

/* The last chunk stays: readers that have all of it wait there for more. */
static void trim(struct crail_rpc_log *log) {
    while (log->chunks_count > 1 && !oldest(log)->readers)
        chunk_free(log, oldest(log));
}

static struct crail_rpc_chunk *chunk_add(struct crail_rpc_log *log) {
    struct crail_rpc_chunk *chunk = malloc(sizeof *chunk);
    if (!chunk)
        return NULL;
    chunk->first = log->last + 1;
    chunk->readers = 0;
    chunk->len = 0;
    crail_list_init(&chunk->link);
    crail_list_push(&log->chunks, &chunk->link);
    log->chunks_count++;
    if (log->chunks_count > CRAIL_RPC_LOG_CHUNKS_MAX)
        chunk_free(log, oldest(log));
    return chunk;
}

static void log_empty(struct crail_rpc_log *log) {
    while (oldest(log))
        chunk_free(log, oldest(log));
}

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
    struct crail_rpc_chunk *chunk = youngest(log);
    uint32_t bytes = event_bytes(len);
    _Static_assert(sizeof(struct crail_event) + CRAIL_PATH_MAX <= CRAIL_RPC_LOG_CHUNK_BYTES, "one fits");
    if (!chunk || chunk->len + bytes > sizeof chunk->bytes)
        chunk = chunk_add(log);
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
    return w->chunk && first && w->chunk_first >= first->first ? w->chunk : NULL;
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
    w->chunk_first = w->chunk->first;
    w->chunk->readers++;
}

static void saw(struct crail_rpc_watch *w, uint64_t seen) {
    if (seen <= w->seen)
        return;
    leave_chunk(w);
    w->seen = seen;
    enter_chunk(w);
    trim(w->spot->log);
}

/* ---- begin and end ------------------------------------------------------- */

static int log_make(crail_namenode *nn, struct crail_rpc_spot *spot, const char *path, uint32_t len) {
    struct crail_rpc_log *log = calloc(1, sizeof *log);
    if (!log)
        return CRAIL_E_NO_MEMORY;
    crail_list_init(&log->chunks);
    if (!chunk_add(log)) { /* the first: so every watch has a place */
        free(log);
        return CRAIL_E_NO_MEMORY;
    }
    log->is_there = look_up(nn, path, len, &log->version) == 0;
    spot->log = log;
    return 0;
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
    w->token = token;
    w->spot = spot;
    w->seen = spot->log->last;
    enter_chunk(w);
    spot->log->watches++;
    crail_list_push(&s->watches, &w->link);
    s->watches_count++;
    nn->stats.watches++;
    return 0;
}

static void end(crail_namenode *nn, struct crail_rpc_session *s, struct crail_rpc_watch *w) {
    struct crail_rpc_spot *spot = w->spot;
    crail_list_remove(&w->link);
    s->watches_count--;
    nn->stats.watches--;
    leave_chunk(w);
    trim(spot->log);
    if (--spot->log->watches == 0) {
        log_empty(spot->log);
        free(spot->log);
        spot->log = NULL;
    }
    crail_rpc_line_wake(nn, &spot->line[CRAIL_RPC_LINE_NEXT]); /* who waits for it learns that it is gone */
    crail_rpc_spot_unref(nn, spot);
    free(w);
}

void crail_rpc_watches_end(crail_namenode *nn, struct crail_rpc_session *s) {
    while (!crail_list_empty(&s->watches))
        end(nn, s, CRAIL_LIST_OF(s->watches.next, struct crail_rpc_watch, link));
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
    if (s->watches_count >= CRAIL_RPC_WATCHES_MAX)
        return CRAIL_E_NO_MEMORY;
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
