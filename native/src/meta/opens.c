/* OPEN and APPEND: a session's hold on a version that it reads, and on the right to write behind one.
 *
 * What a reader holds are runs, not nodes: each run counts its readers (crail_run_pin), and one that its node lets go
 * of is retired with the last of them. So overwriting, removing and appending need not know who reads.
 *
 * Appending. The extents of a leaf are filled in order, so that only the last one has room behind the committed bytes,
 * and whoever has the append right gets the key to write there. The right ends with COMMIT, which says that all writing
 * is done. If it ends otherwise (END, the end of the session), its holder may be paused in the middle of a write, with
 * the extent named in a use slot: nothing would keep it from going on later, on bytes that others have committed by
 * then. The generation cannot be raised without taking the value from its readers. So that tail is closed for good
 * (CRAIL_NODE_TAIL_CLOSED): the next appender gets no key for it, copies its bytes to the beginning of a new extent,
 * and its COMMIT puts that in the place of the tail, which is retired like any run. Who is still writing there writes
 * behind the size of versions that are gone. */
#include "meta/engine.h"

/* ---- what is kept ----------------------------------------------------------------- */

uint32_t crail_kept_bytes(uint32_t extents) {
    return (uint32_t)(sizeof(struct crail_kept) + extents * sizeof(struct crail_extent));
}

crail_ref crail_kept_new(struct crail_meta *m, const struct crail_extent *e, uint32_t n, uint64_t size,
                         uint64_t version) {
    crail_ref ref = crail_arena_alloc(&m->arena, crail_kept_bytes(n));
    if (!ref)
        return 0;
    struct crail_kept *k = crail_kept_at(m, ref);
    *k = (struct crail_kept){.version = version, .size = size, .count = n};
    memcpy(k->extents, e, n * sizeof(*e));
    return ref;
}

void crail_kept_pin(struct crail_meta *m, crail_ref ref) {
    struct crail_kept *k = crail_kept_at(m, ref);
    assert(!k->is_pinned);
    k->is_pinned = true;
    for (uint32_t i = 0; i < k->count; i++) {
        struct crail_run run = crail_extent_run(&k->extents[i]);
        crail_run_pin(m, &run);
    }
}

void crail_kept_free(struct crail_meta *m, crail_ref ref) {
    struct crail_kept *k = crail_kept_at(m, ref);
    for (uint32_t i = 0; k->is_pinned && i < k->count; i++) {
        struct crail_run run = crail_extent_run(&k->extents[i]);
        crail_run_unpin(m, &run);
    }
    crail_arena_free(&m->arena, ref, crail_kept_bytes(k->count));
}

int crail_kept_answer(struct crail_call *c, crail_ref ref) {
    const struct crail_kept *k = crail_kept_at(c->m, ref);
    for (uint32_t i = 0; i < k->count; i++) {
        struct crail_run run = crail_extent_run(&k->extents[i]);
        if (crail_run_is_lost(c->m, &run)) {
            c->r->server = k->extents[i].server;
            return CRAIL_E_DATA_LOST;
        }
    }
    c->r->version = k->version;
    c->r->size = k->size;
    c->r->kind = CRAIL_KIND_FILE;
    c->r->flags = k->flags;
    c->r->count = (uint16_t)k->count;
    c->r->data_len = k->count * (uint32_t)sizeof(struct crail_extent);
    memcpy(c->out, k->extents, c->r->data_len);
    return 0;
}

/* The result of a GET, as a record: its extents are in the reply. */
crail_ref crail_kept_from_answer(struct crail_call *c) {
    crail_ref ref = crail_kept_new(c->m, (const struct crail_extent *)c->out, c->r->count, c->r->size, c->r->version);
    if (ref)
        crail_kept_at(c->m, ref)->flags = c->r->flags;
    return ref;
}

/* ---- OPEN ---------------------------------------------------------------------------- */

int crail_op_open(struct crail_call *c) {
    crail_ref held = crail_hold_find(c->m, c->s, c->op->arg0);
    if (held) {
        const struct crail_hold *h = crail_hold_at(c->m, held);
        return h->kind == CRAIL_HOLD_OPEN && h->record ? crail_kept_answer(c, h->record) : CRAIL_E_INVALID_ARGUMENT;
    }
    int rc = crail_op_get(c);
    if (rc || !c->r->count) /* an inline value: there is nothing to keep */
        return rc;
    crail_ref kept = crail_kept_from_answer(c);
    crail_ref ref = kept ? crail_hold_add(c->m, c->s, CRAIL_HOLD_OPEN, c->op->arg0, 0) : 0;
    if (!ref) {
        if (kept)
            crail_kept_free(c->m, kept);
        return CRAIL_E_NO_MEMORY;
    }
    crail_kept_pin(c->m, kept);
    crail_hold_at(c->m, ref)->record = kept;
    return 0;
}

void crail_open_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why) {
    (void)why;
    if (h->record)
        crail_kept_free(m, h->record);
}

/* ---- APPEND ---------------------------------------------------------------------------- */

static uint64_t capacity(const struct crail_run *run, uint32_t n) {
    uint64_t granules = 0;
    for (uint32_t i = 0; i < n; i++)
        granules += run[i].granules;
    return granules * CRAIL_GRANULE;
}

/* The hold of whoever has the append right of a node, or 0. */
static crail_ref appender_of(const struct crail_meta *m, const struct crail_node *n) {
    crail_ref ref = n->extra ? crail_extra_at(m, n->extra)->holds : 0;
    while (ref && crail_hold_at(m, ref)->kind != CRAIL_HOLD_APPEND)
        ref = crail_hold_at(m, ref)->node_next;
    return ref;
}

/* The key for writing to the last extent. It tells that run in its generation from every other, whatever the node is
 * called by now and whichever version it has. */
static uint64_t tail_key(const struct crail_meta *m, const struct crail_node *n) {
    const struct crail_run *run = &crail_value_runs_of(m, n)[n->extents - 1];
    struct crail_extent e = {run->server, run->region, run->granule, run->granules, 0, 0};
    e.generation = crail_run_generation(m, run);
    return crail_extent_key(m->mac_key, &e, CRAIL_RIGHT_WRITE);
}

/* As GET; the last extent with the key for writing (*key, 0: none was given), or the flag that it is closed. */
static int append_answer(struct crail_call *c, const struct crail_node *n, uint64_t *key) {
    struct crail_extent last;
    int rc = crail_op_get(c);
    *key = 0;
    if (rc || !c->r->count)
        return rc;
    if (n->flags & CRAIL_NODE_TAIL_CLOSED) {
        c->r->flags |= CRAIL_RESF_TAIL_CLOSED;
        return 0;
    }
    uint8_t *at = c->out + c->r->data_len - sizeof(last);
    memcpy(&last, at, sizeof(last));
    *key = last.key = tail_key(c->m, n);
    memcpy(at, &last, sizeof(last));
    return 0;
}

int crail_op_append(struct crail_call *c) {
    struct crail_walk w;
    int rc = crail_walk_existing(c, &w);
    if (rc)
        return rc;
    struct crail_node *n = crail_node_at(c->m, w.node);
    if (!crail_node_is_leaf(n))
        return CRAIL_E_IS_CONTAINER;
    if (n->flags & CRAIL_NODE_ITEM)
        return CRAIL_E_INVALID_ARGUMENT;
    crail_ref held = crail_hold_find(c->m, c->s, c->op->arg0), right = appender_of(c->m, n);
    if (held && held != right)
        return CRAIL_E_INVALID_ARGUMENT;
    if (!held && right)
        return crail_flag(c, CRAIL_OPF_WAIT) ? CRAIL_META_WAIT : CRAIL_E_DEADLINE;
    if (held && crail_hold_at(c->m, held)->number != n->version)
        return CRAIL_E_VERSION_CONFLICT; /* his COMMIT could not succeed, and this tail's key is not his */
    uint64_t key;
    rc = append_answer(c, n, &key);
    if (rc || held)
        return rc;
    held = crail_hold_add(c->m, c->s, CRAIL_HOLD_APPEND, c->op->arg0, w.node);
    if (!held)
        return CRAIL_E_NO_MEMORY;
    crail_hold_at(c->m, held)->number = n->version;
    crail_hold_at(c->m, held)->size = key;
    return 0;
}

void crail_append_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why) {
    if (!h->node || why == CRAIL_HOLD_NODE_GONE)
        return;
    struct crail_node *n = crail_node_at(m, h->node);
    /* h->size is the key that was given, 0 after a COMMIT. Another tail: another value, to which he had no key. The
     * version would not tell: a rename makes a new one of the same value. */
    if (h->size && n->extents && tail_key(m, n) == h->size)
        n->flags |= CRAIL_NODE_TAIL_CLOSED;
    if (crail_tree_reachable(m, h->node))
        crail_changed_node(m, CRAIL_CHANGE_LOOK, h->node);
}

/* ---- COMMIT of an append ------------------------------------------------------------------- */

/* The hold that the commit is about, if what it was given for is there still. */
static int append_found(struct crail_call *c, crail_ref *held, struct crail_walk *w) {
    *held = crail_hold_find(c->m, c->s, c->op->arg0);
    if (!*held || crail_hold_at(c->m, *held)->kind != CRAIL_HOLD_APPEND)
        return CRAIL_E_NOT_FOUND;
    int rc = crail_walk_existing(c, w);
    if (rc)
        return rc;
    const struct crail_hold *h = crail_hold_at(c->m, *held);
    const struct crail_node *n = crail_node_at(c->m, w->node);
    if (w->node != h->node || n->version != h->number)
        return CRAIL_E_VERSION_CONFLICT;
    return n->extents && c->op->arg1 >= n->size ? 0 : CRAIL_E_INVALID_ARGUMENT;
}

/* How many of the node's runs stay: all, but for a closed tail that is not full. */
static uint32_t runs_staying(const struct crail_meta *m, const struct crail_node *n) {
    bool goes = n->flags & CRAIL_NODE_TAIL_CLOSED && n->size < capacity(crail_value_runs_of(m, n), n->extents);
    return n->extents - goes;
}

/* Takes the node to its new size. *used: how many of the new extents it has from now on. */
static int grow(struct crail_call *c, struct crail_walk *w, const struct crail_extent *e, uint32_t n_new,
                uint32_t *used) {
    struct crail_run all[CRAIL_EXTENTS_MAX];
    struct crail_node *n = crail_node_at(c->m, w->node);
    struct crail_value v;
    struct crail_life life = {0};
    uint32_t staying = runs_staying(c->m, n), total = staying;
    memcpy(all, crail_value_runs_of(c->m, n), staying * sizeof(all[0]));
    for (uint32_t i = 0; i < n_new && capacity(all, total) < c->op->arg1; i++) {
        if (total == CRAIL_EXTENTS_MAX)
            return CRAIL_E_INVALID_ARGUMENT;
        all[total++] = crail_extent_run(&e[i]);
    }
    if (capacity(all, total) < c->op->arg1)
        return CRAIL_E_INVALID_ARGUMENT;
    int rc = crail_value_runs(c->m, all, total, c->op->arg1, &v);
    if (rc)
        return rc;
    v.is_flushed = crail_flag(c, CRAIL_OPF_FLUSHED) && n->flags & CRAIL_NODE_FLUSHED;
    rc = crail_life_prepare(c, 0, w, v.size, &life);
    if (rc) {
        crail_value_discard(c->m, &v);
        return rc;
    }
    crail_node_touch(c->m, w->node);
    n->version = ++c->m->last_version;
    crail_value_replace(c->m, n, &v, staying);
    n->mtime_ns = c->now_ns;
    crail_life_apply(c, w->node, &life);
    *used = total - staying;
    return 0;
}

int crail_op_commit_append(struct crail_call *c, const struct crail_extent *e, uint32_t n_new) {
    struct crail_walk w;
    crail_ref held;
    uint32_t used = 0;
    int rc = append_found(c, &held, &w);
    if (rc)
        return rc;
    struct crail_hold *h = crail_hold_at(c->m, held);
    const struct crail_node *n = crail_node_at(c->m, w.node);
    bool grows = c->op->arg1 > n->size;
    if (grows)
        rc = grow(c, &w, e, n_new, &used);
    if (rc)
        return rc;
    crail_grants_turn(c, e, n_new, used);
    h->size = 0; /* the tail is at rest */
    crail_hold_end(c->m, held, CRAIL_HOLD_ENDED);
    crail_say(c, n);
    if (grows)
        crail_changed_node(c->m, CRAIL_CHANGE_PUT, w.node);
    return 0;
}
