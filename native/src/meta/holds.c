/* Holds: what a session keeps of a node until it says END, or ends itself.
 *
 * A hold is in the hash by (session, token), in the list of its session, and in the list of its node unless it has
 * none. Ending is one way for all: out of the three, then what its kind says, then the record is freed. A node that
 * goes takes its holds with it, or leaves them without a node where their kind says what becomes of them then. */
#include "meta/engine.h"

#include <sys/mman.h>

#define BUCKET_BYTES (CRAIL_HOLD_BUCKETS * sizeof(crail_ref)) /* touched where holds are */

/* ---- what each kind does -------------------------------------------------------- */

struct hold_rules {
    /* It has ended and is in no list any more; h->node still says of which node (0: of none, or gone), whose extra may
     * be gone. NULL: nothing follows. */
    void (*ended)(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why);
    /* Its node is about to be freed, and the hold goes on without. NULL: it ends with its node. */
    void (*orphaned)(struct crail_meta *m, struct crail_hold *h, crail_ref node);
    bool in_row; /* the row of its node says something of it */
};

static const struct hold_rules kinds[CRAIL_HOLD_KINDS] = {
    [CRAIL_HOLD_OPEN] = {crail_open_ended, NULL, false},
    [CRAIL_HOLD_ITEM] = {crail_item_hold_ended, NULL, true},
    [CRAIL_HOLD_MEMBER] = {crail_member_hold_ended, crail_member_hold_orphaned, true},
    [CRAIL_HOLD_APPEND] = {crail_append_ended, NULL, false},
    [CRAIL_HOLD_STREAM] = {crail_stream_ended, NULL, false},
    [CRAIL_HOLD_FOLLOW] = {crail_follow_ended, NULL, false},
    [CRAIL_HOLD_JOB] = {crail_job_hold_ended, NULL, true},
};

/* ---- by token ---------------------------------------------------------------------- */

int crail_holds_open(struct crail_meta *m) {
    void *p = mmap(NULL, BUCKET_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    m->hold_buckets = p;
    return 0;
}

void crail_holds_close(struct crail_meta *m) {
    munmap(m->hold_buckets, BUCKET_BYTES);
}

static crail_ref *bucket(const struct crail_meta *m, uint32_t session, uint64_t token) {
    char key[sizeof(token) + sizeof(session)];
    memcpy(key, &token, sizeof(token));
    memcpy(key + sizeof(token), &session, sizeof(session));
    return &m->hold_buckets[crail_names_hash_text(m, key, sizeof(key)) % CRAIL_HOLD_BUCKETS];
}

crail_ref crail_hold_find(const struct crail_meta *m, const struct crail_meta_session *s, uint64_t token) {
    crail_ref ref = *bucket(m, s->slot, token);
    while (ref && (crail_hold_at(m, ref)->token != token || crail_hold_at(m, ref)->session != s->slot))
        ref = crail_hold_at(m, ref)->hash_next;
    return ref;
}

/* ---- lists --------------------------------------------------------------------------- */

static void session_add(struct crail_meta *m, struct crail_meta_session *s, crail_ref ref) {
    struct crail_hold *h = crail_hold_at(m, ref);
    h->session = s->slot;
    h->session_next = s->holds;
    if (s->holds)
        crail_hold_at(m, s->holds)->session_prev = ref;
    s->holds = ref;
    s->holds_n++;
}

static void session_remove(struct crail_meta *m, struct crail_hold *h) {
    struct crail_meta_session *s = m->sessions[h->session];
    if (h->session_prev)
        crail_hold_at(m, h->session_prev)->session_next = h->session_next;
    else
        s->holds = h->session_next;
    if (h->session_next)
        crail_hold_at(m, h->session_next)->session_prev = h->session_prev;
    s->holds_n--;
}

static void node_add(struct crail_meta *m, struct crail_extra *x, crail_ref ref) {
    struct crail_hold *h = crail_hold_at(m, ref);
    h->node = x->node;
    h->node_next = x->holds;
    if (x->holds)
        crail_hold_at(m, x->holds)->node_prev = ref;
    x->holds = ref;
}

/* The node's extra stays, perhaps with nothing to say. */
static void node_remove(struct crail_meta *m, struct crail_hold *h) {
    struct crail_extra *x = crail_extra_at(m, crail_node_at(m, h->node)->extra);
    if (h->node_prev)
        crail_hold_at(m, h->node_prev)->node_next = h->node_next;
    else
        x->holds = h->node_next;
    if (h->node_next)
        crail_hold_at(m, h->node_next)->node_prev = h->node_prev;
    h->node_prev = h->node_next = 0;
}

/* ---- from add to end ------------------------------------------------------------------- */

void crail_hold_link(struct crail_meta *m, struct crail_meta_session *s, crail_ref ref, enum crail_hold_kind kind,
                     uint64_t token, crail_ref node) {
    struct crail_hold *h = crail_hold_at(m, ref);
    *h = (struct crail_hold){.token = token, .kind = (uint8_t)kind};
    session_add(m, s, ref);
    if (node)
        node_add(m, crail_extra_at(m, crail_node_at(m, node)->extra), ref);
    crail_ref *b = bucket(m, s->slot, token);
    h->hash_next = *b;
    *b = ref;
    m->holds++;
}

crail_ref crail_hold_add(struct crail_meta *m, struct crail_meta_session *s, enum crail_hold_kind kind, uint64_t token,
                         crail_ref node) {
    assert(!crail_hold_find(m, s, token) && !s->dying);
    crail_ref ref = crail_arena_alloc(&m->arena, sizeof(struct crail_hold));
    if (!ref)
        return 0;
    if (node && !crail_extra_make(m, node)) {
        crail_arena_free(&m->arena, ref, sizeof(struct crail_hold));
        return 0;
    }
    crail_hold_link(m, s, ref, kind, token, node);
    return ref;
}

void crail_hold_end(struct crail_meta *m, crail_ref ref, enum crail_hold_end why) {
    struct crail_hold *h = crail_hold_at(m, ref);
    if (h->node && kinds[h->kind].in_row)
        crail_node_touch(m, h->node);
    crail_ref *at = bucket(m, h->session, h->token);
    while (*at != ref) {
        assert(*at);
        at = &crail_hold_at(m, *at)->hash_next;
    }
    *at = h->hash_next;
    session_remove(m, h);
    if (h->node)
        node_remove(m, h);
    if (h->node && why != CRAIL_HOLD_NODE_GONE)
        crail_extra_tidy(m, h->node);
    if (kinds[h->kind].ended)
        kinds[h->kind].ended(m, h, why);
    crail_arena_free(&m->arena, ref, sizeof(*h));
    m->holds--;
}

bool crail_holds_node_gone(struct crail_meta *m, crail_ref node, uint32_t max) {
    const struct crail_extra *x = crail_extra_at(m, crail_node_at(m, node)->extra);
    while (x->holds && max--) {
        struct crail_hold *h = crail_hold_at(m, x->holds);
        if (!kinds[h->kind].orphaned) {
            crail_hold_end(m, x->holds, CRAIL_HOLD_NODE_GONE);
            continue;
        }
        node_remove(m, h);
        h->node = 0;
        kinds[h->kind].orphaned(m, h, node);
    }
    return x->holds != 0;
}

int crail_op_end(struct crail_call *c) {
    crail_ref ref = crail_hold_find(c->m, c->s, c->op->arg0);
    if (!ref)
        return CRAIL_E_NOT_FOUND;
    crail_hold_end(c->m, ref, CRAIL_HOLD_ENDED);
    return 0;
}
