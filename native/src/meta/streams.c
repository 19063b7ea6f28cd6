/* STREAM and FOLLOW: what may be seen of a value before it is committed.
 *
 * A stream is found by the path at which its value will appear; there need be no node yet, or it may be another
 * version. Its writer tells the extents and how many bytes are complete in them. Who follows has a hold on the stream,
 * and reads grants of another session: nothing keeps those from being retired, and the generations in the locations
 * are what tells the reader so. With the commit the stream gets the version: its runs are pinned once, for all who
 * follow, until the last of them is through. */
#include "meta/engine.h"

/* ---- streams by path ---------------------------------------------------------------- */

static uint32_t hash_of(const struct crail_meta *m, const char *path, uint32_t len) {
    return (uint32_t)crail_names_hash_text(m, path, len);
}

static bool is_at(const struct crail_meta *m, const struct crail_stream *st, uint32_t hash, const char *path,
                  uint32_t len) {
    return st->hash == hash && st->path_len == len && memcmp(crail_arena_at(&m->arena, st->path), path, len) == 0;
}

/* The latest one that is being written for this path, or 0. */
static crail_ref find(const struct crail_meta *m, const char *path, uint32_t len) {
    uint32_t hash = hash_of(m, path, len);
    crail_ref ref = m->stream_buckets[hash % CRAIL_STREAM_BUCKETS];
    while (ref && !is_at(m, crail_stream_at(m, ref), hash, path, len))
        ref = crail_stream_at(m, ref)->hash_next;
    return ref;
}

static void unlist(struct crail_meta *m, crail_ref ref) {
    struct crail_stream *st = crail_stream_at(m, ref);
    crail_ref *at = &m->stream_buckets[st->hash % CRAIL_STREAM_BUCKETS];
    while (*at != ref) {
        assert(*at);
        at = &crail_stream_at(m, *at)->hash_next;
    }
    *at = st->hash_next;
    crail_arena_free(&m->arena, st->path, st->path_len);
    st->path = 0;
}

static void unref(struct crail_meta *m, crail_ref ref) {
    struct crail_stream *st = crail_stream_at(m, ref);
    if (--st->refs)
        return;
    assert(st->state != CRAIL_STREAM_WRITING);
    if (st->kept)
        crail_kept_free(m, st->kept);
    crail_arena_free(&m->arena, ref, sizeof(*st));
}

/* A stream of one, or 0 without memory. */
static crail_ref stream_new(struct crail_meta *m, crail_ref kept, enum crail_stream_state state) {
    crail_ref ref = crail_arena_alloc(&m->arena, sizeof(struct crail_stream));
    if (ref)
        *crail_stream_at(m, ref) = (struct crail_stream){.kept = kept, .refs = 1, .state = (uint8_t)state};
    return ref;
}

static int enlist(struct crail_call *c, crail_ref ref) {
    struct crail_stream *st = crail_stream_at(c->m, ref);
    st->path = crail_arena_alloc(&c->m->arena, c->op->path_len);
    if (!st->path)
        return CRAIL_E_NO_MEMORY;
    memcpy(crail_arena_at(&c->m->arena, st->path), c->path, c->op->path_len);
    st->path_len = c->op->path_len;
    st->hash = hash_of(c->m, c->path, c->op->path_len);
    st->session = c->s->slot;
    st->token = c->op->arg0;
    crail_ref *bucket = &c->m->stream_buckets[st->hash % CRAIL_STREAM_BUCKETS];
    st->hash_next = *bucket;
    *bucket = ref;
    return 0;
}

/* ---- STREAM ------------------------------------------------------------------------------ */

/* What is told, with the keys for reading; 0 and *kept, or a status. */
static int told(struct crail_call *c, crail_ref *kept) {
    struct crail_extent e[CRAIL_EXTENTS_MAX];
    uint32_t n = c->op->count;
    uint64_t granules = 0;
    memcpy(e, c->data, n * sizeof(e[0]));
    for (uint32_t i = 0; i < n; i++) {
        if (!crail_session_owns(c->m, c->s, &e[i]))
            return CRAIL_E_STALE_LOCATION;
        e[i].key = crail_extent_key(c->m->mac_key, &e[i], CRAIL_RIGHT_READ);
        granules += e[i].granules;
    }
    if (c->op->arg1 > granules * CRAIL_GRANULE)
        return CRAIL_E_INVALID_ARGUMENT;
    *kept = crail_kept_new(c->m, e, n, c->op->arg1, 0);
    return *kept ? 0 : CRAIL_E_NO_MEMORY;
}

/* More of what it began as: the same extents first, and not fewer bytes. */
static bool continues(const struct crail_meta *m, crail_ref old_ref, crail_ref new_ref) {
    const struct crail_kept *old = crail_kept_at(m, old_ref), *new = crail_kept_at(m, new_ref);
    return new->count >= old->count &&new->size >=
               old->size &&memcmp(old->extents, new->extents, old->count * sizeof(old->extents[0])) ==
           0;
}

static int stream_goes_on(struct crail_call *c, crail_ref held, crail_ref kept) {
    const struct crail_hold *h = crail_hold_at(c->m, held);
    struct crail_stream *st = h->kind == CRAIL_HOLD_STREAM ? crail_stream_at(c->m, h->record) : NULL;
    if (!st || st->state != CRAIL_STREAM_WRITING || !continues(c->m, st->kept, kept))
        return CRAIL_E_INVALID_ARGUMENT;
    crail_kept_free(c->m, st->kept);
    st->kept = kept;
    return 0;
}

static int stream_begins(struct crail_call *c, crail_ref kept) {
    crail_ref ref = stream_new(c->m, kept, CRAIL_STREAM_WRITING);
    if (!ref)
        return CRAIL_E_NO_MEMORY;
    crail_ref held = enlist(c, ref) ? 0 : crail_hold_add(c->m, c->s, CRAIL_HOLD_STREAM, c->op->arg0, 0);
    if (held) {
        crail_hold_at(c->m, held)->record = ref;
        return 0;
    }
    if (crail_stream_at(c->m, ref)->path)
        unlist(c->m, ref);
    crail_arena_free(&c->m->arena, ref, sizeof(struct crail_stream));
    return CRAIL_E_NO_MEMORY;
}

int crail_op_stream(struct crail_call *c) {
    struct crail_walk w;
    crail_ref kept, held = crail_hold_find(c->m, c->s, c->op->arg0);
    int rc = crail_path_walk(c->m, c->path, c->op->path_len, &w);
    if (rc && rc != CRAIL_E_NOT_FOUND)
        return rc;
    rc = told(c, &kept);
    if (rc)
        return rc;
    rc = held ? stream_goes_on(c, held, kept) : stream_begins(c, kept);
    if (rc)
        crail_kept_free(c->m, kept);
    else
        crail_changed(c->m, CRAIL_CHANGE_LOOK, c->path, c->op->path_len, 0);
    return rc;
}

void crail_stream_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why) {
    (void)why;
    struct crail_stream *st = h->record ? crail_stream_at(m, h->record) : NULL;
    if (st && st->state == CRAIL_STREAM_WRITING) {
        st->state = CRAIL_STREAM_DISCARDED;
        crail_changed(m, CRAIL_CHANGE_LOOK, crail_arena_at(&m->arena, st->path), st->path_len, 0);
        unlist(m, h->record);
    }
    if (st)
        unref(m, h->record);
}

/* The one that this session writes there, beginning with this extent, or 0. */
static crail_ref find_own(const struct crail_call *c, const struct crail_extent *e) {
    uint32_t hash = hash_of(c->m, c->path, c->op->path_len);
    crail_ref ref = c->m->stream_buckets[hash % CRAIL_STREAM_BUCKETS];
    for (; ref; ref = crail_stream_at(c->m, ref)->hash_next) {
        const struct crail_stream *st = crail_stream_at(c->m, ref);
        const struct crail_extent *first = crail_kept_at(c->m, st->kept)->extents;
        if (st->session == c->s->slot && is_at(c->m, st, hash, c->path, c->op->path_len) &&
            e->server == first->server && e->region == first->region && e->granule == first->granule)
            break;
    }
    return ref;
}

void crail_streams_committed(struct crail_call *c, const struct crail_extent *e, uint32_t kept, crail_ref node) {
    struct crail_extent own[CRAIL_EXTENTS_MAX];
    crail_ref ref = find_own(c, e);
    if (!ref)
        return;
    struct crail_stream *st = crail_stream_at(c->m, ref);
    const struct crail_node *n = crail_node_at(c->m, node);
    memcpy(own, e, kept * sizeof(own[0]));
    for (uint32_t i = 0; i < kept; i++)
        own[i].key = crail_extent_key(c->m->mac_key, &own[i], CRAIL_RIGHT_READ);
    crail_kept_free(c->m, st->kept);
    st->kept = crail_kept_new(c->m, own, kept, n->size, n->version);
    st->state = st->kept ? CRAIL_STREAM_COMMITTED : CRAIL_STREAM_DISCARDED;
    if (st->kept)
        crail_kept_pin(c->m, st->kept);
    unlist(c->m, ref);
    crail_hold_end(c->m, crail_hold_find(c->m, c->s, st->token), CRAIL_HOLD_ENDED);
}

/* ---- FOLLOW -------------------------------------------------------------------------------- */

static int follow_answer(struct crail_call *c, crail_ref ref) {
    const struct crail_stream *st = crail_stream_at(c->m, ref);
    if (st->state == CRAIL_STREAM_DISCARDED)
        return CRAIL_E_DATA_LOST;
    bool is_writing = st->state == CRAIL_STREAM_WRITING;
    if (is_writing && crail_kept_at(c->m, st->kept)->size <= c->op->arg1 && crail_flag(c, CRAIL_OPF_WAIT))
        return CRAIL_META_WAIT;
    int rc = crail_kept_answer(c, st->kept);
    c->r->flags |= is_writing ? CRAIL_RESF_MORE : 0;
    return rc;
}

/* Somebody begins to follow; the stream has this ref for him already. */
static int follow_begins(struct crail_call *c, crail_ref ref) {
    crail_ref held = crail_hold_add(c->m, c->s, CRAIL_HOLD_FOLLOW, c->op->arg0, 0);
    if (!held) {
        unref(c->m, ref);
        return CRAIL_E_NO_MEMORY;
    }
    crail_hold_at(c->m, held)->record = ref;
    return follow_answer(c, ref);
}

/* Nothing is being written there: what is there is followed to its end at once. */
static int follow_version(struct crail_call *c) {
    int rc = crail_op_get(c);
    if (rc || !c->r->count)
        return rc;
    crail_ref kept = crail_kept_from_answer(c);
    crail_ref ref = kept ? stream_new(c->m, kept, CRAIL_STREAM_COMMITTED) : 0;
    if (!ref) {
        if (kept)
            crail_kept_free(c->m, kept);
        return CRAIL_E_NO_MEMORY;
    }
    crail_kept_pin(c->m, kept);
    c->r->data_len = 0;
    return follow_begins(c, ref);
}

/* The token follows already. He waits at his path, so that has to be the stream's while one can wait for it. */
static int follow_again(struct crail_call *c, const struct crail_hold *h) {
    struct crail_walk w;
    if (h->kind != CRAIL_HOLD_FOLLOW || !h->record)
        return CRAIL_E_INVALID_ARGUMENT;
    if (crail_path_walk(c->m, c->path, c->op->path_len, &w) == CRAIL_E_INVALID_PATH)
        return CRAIL_E_INVALID_PATH;
    const struct crail_stream *st = crail_stream_at(c->m, h->record);
    uint32_t hash = hash_of(c->m, c->path, c->op->path_len);
    if (st->state == CRAIL_STREAM_WRITING && !is_at(c->m, st, hash, c->path, c->op->path_len))
        return CRAIL_E_INVALID_ARGUMENT;
    return follow_answer(c, h->record);
}

int crail_op_follow(struct crail_call *c) {
    crail_ref held = crail_hold_find(c->m, c->s, c->op->arg0);
    if (held)
        return follow_again(c, crail_hold_at(c->m, held));
    crail_ref ref = find(c->m, c->path, c->op->path_len);
    if (!ref)
        return follow_version(c);
    crail_stream_at(c->m, ref)->refs++;
    return follow_begins(c, ref);
}

void crail_follow_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why) {
    (void)why;
    if (h->record)
        unref(m, h->record);
}
