/* User attributes: one record with struct crail_attribute heads, names and values as on the wire, in the order of
 * names. An edit is one merge of the record with the sorted changes into a new record. */
#include "meta/engine.h"

#include <stdlib.h>

struct change {
    const char *name, *value;
    uint32_t name_len, value_len; /* CRAIL_ATTRIBUTE_GONE: take it away */
};

/* What a record of so many bytes is asked from the arena as. */
static uint32_t record_bytes(uint32_t bytes) {
    return bytes <= CRAIL_ARENA_SMALL_MAX ? bytes : CRAIL_ARENA_CHUNK;
}
_Static_assert(CRAIL_ATTRIBUTES_MAX <= CRAIL_ARENA_CHUNK, "the largest record is a chunk");

uint32_t crail_attributes_cost(uint32_t bytes) {
    return crail_arena_cost(record_bytes(bytes));
}

void crail_attributes_free(struct crail_meta *m, struct crail_extra *x) {
    if (x->attributes)
        crail_arena_free(&m->arena, x->attributes, record_bytes(x->attributes_bytes));
    x->attributes = 0;
    x->attributes_bytes = 0;
}

/* Reads the attribute at `at` of `bytes`. Where the next one begins; 0 if it is malformed. */
static uint32_t read_one(const uint8_t *p, uint32_t at, uint32_t bytes, struct change *out) {
    struct crail_attribute head;
    if (bytes - at < sizeof(head))
        return 0;
    memcpy(&head, p + at, sizeof(head));
    at += sizeof(head);
    uint32_t value_len = head.value_len == CRAIL_ATTRIBUTE_GONE ? 0 : head.value_len;
    if (!head.name_len || head.name_len > CRAIL_NAME_MAX || head.reserved || bytes - at < head.name_len ||
        bytes - at - head.name_len < value_len)
        return 0;
    const char *name = (const char *)p + at;
    *out = (struct change){name, name + head.name_len, head.name_len, head.value_len};
    return at + head.name_len + value_len;
}

int crail_attributes_loaded(struct crail_meta *m, struct crail_extra *x, const uint8_t *record, uint32_t bytes) {
    struct change before = {0}, one;
    for (uint32_t at = 0; at < bytes; before = one) {
        at = read_one(record, at, bytes, &one);
        if (!at || one.value_len == CRAIL_ATTRIBUTE_GONE || !crail_path_text_valid(one.name, one.name_len) ||
            (before.name && crail_name_compare(before.name, before.name_len, one.name, one.name_len) >= 0))
            return -EUCLEAN;
    }
    x->attributes = crail_arena_alloc(&m->arena, record_bytes(bytes));
    if (!x->attributes)
        return -ENOMEM;
    memcpy(crail_arena_at(&m->arena, x->attributes), record, bytes);
    x->attributes_bytes = bytes;
    return 0;
}

static int compare(const void *a, const void *b) {
    const struct change *x = a, *y = b;
    return crail_name_compare(x->name, x->name_len, y->name, y->name_len);
}

/* The changes of a request, sorted. How many, or -1: malformed, too many, or one named twice. */
static int read_changes(const uint8_t *p, uint32_t bytes, struct change *change) {
    uint32_t n = 0;
    for (uint32_t at = 0; at < bytes; n++) {
        if (n == CRAIL_ATTRIBUTE_EDITS_MAX)
            return -1;
        at = read_one(p, at, bytes, &change[n]);
        if (!at || !crail_path_text_valid(change[n].name, change[n].name_len))
            return -1;
    }
    qsort(change, n, sizeof(change[0]), compare);
    for (uint32_t i = 1; i < n; i++)
        if (!compare(&change[i - 1], &change[i]))
            return -1;
    return (int)n;
}

/* Appends one to what has `bytes` already. The sum; UINT32_MAX: it does not fit. */
static uint32_t append(uint8_t *out, uint32_t bytes, const struct change *c) {
    struct crail_attribute head = {(uint16_t)c->name_len, 0, c->value_len};
    if (bytes == UINT32_MAX || c->value_len > CRAIL_ATTRIBUTES_MAX ||
        bytes + sizeof(head) + c->name_len + c->value_len > CRAIL_ATTRIBUTES_MAX)
        return UINT32_MAX;
    memcpy(out + bytes, &head, sizeof(head));
    memcpy(out + bytes + sizeof(head), c->name, c->name_len);
    if (c->value_len)
        memcpy(out + bytes + sizeof(head) + c->name_len, c->value, c->value_len);
    return bytes + (uint32_t)sizeof(head) + c->name_len + c->value_len;
}

/* The old record with the changes, into `out`. Its bytes; UINT32_MAX: too many. */
static uint32_t merge(const uint8_t *old, uint32_t old_bytes, const struct change *change, uint32_t n, uint8_t *out) {
    uint32_t bytes = 0, i = 0, at = 0;
    struct change kept;
    while (at < old_bytes || i < n) {
        uint32_t next = at < old_bytes ? read_one(old, at, old_bytes, &kept) : 0;
        int order = at == old_bytes ? 1 : i == n ? -1 : compare(&kept, &change[i]);
        assert(at == old_bytes || next);
        if (order < 0)
            bytes = append(out, bytes, &kept);
        else if (change[i].value_len != CRAIL_ATTRIBUTE_GONE)
            bytes = append(out, bytes, &change[i]);
        if (order <= 0)
            at = next;
        i += order >= 0;
    }
    return bytes;
}

/* The record that the changes make of what the node has; none without changes. 0; INVALID_ARGUMENT, NO_MEMORY. */
static int record_make(struct crail_call *c, const struct crail_extra *x, crail_ref *record, uint32_t *bytes) {
    struct change change[CRAIL_ATTRIBUTE_EDITS_MAX];
    uint8_t merged[CRAIL_ATTRIBUTES_MAX];
    const uint8_t *old = x && x->attributes ? crail_arena_at(&c->m->arena, x->attributes) : NULL;
    int n = read_changes(c->data, c->op->data_len, change);
    *record = 0;
    *bytes = 0;
    if (n <= 0)
        return n ? CRAIL_E_INVALID_ARGUMENT : 0;
    *bytes = merge(old, old ? x->attributes_bytes : 0, change, (uint32_t)n, merged);
    if (*bytes == UINT32_MAX)
        return CRAIL_E_INVALID_ARGUMENT;
    if (!*bytes)
        return 0;
    *record = crail_arena_alloc(&c->m->arena, record_bytes(*bytes));
    if (!*record)
        return CRAIL_E_NO_MEMORY;
    memcpy(crail_arena_at(&c->m->arena, *record), merged, *bytes);
    return 0;
}

static void record_drop(struct crail_meta *m, crail_ref record, uint32_t bytes) {
    if (record)
        crail_arena_free(&m->arena, record, record_bytes(bytes));
}

/* The node keeps its version: what a reader has read is as it was. */
int crail_op_setattr(struct crail_call *c) {
    struct crail_meta *m = c->m;
    struct crail_walk w;
    struct crail_life life;
    crail_ref record = 0;
    uint32_t bytes = 0;
    int rc = crail_walk_existing(c, &w);
    if (rc)
        return rc;
    struct crail_node *n = crail_node_at(m, w.node);
    if (n->flags & CRAIL_NODE_ITEM || (w.node == m->root && c->op->options_len))
        return CRAIL_E_INVALID_ARGUMENT;
    rc = record_make(c, n->extra ? crail_extra_at(m, n->extra) : NULL, &record, &bytes);
    if (rc)
        return rc;
    rc = crail_life_prepare(c, 0, &w, crail_node_is_leaf(n) ? n->size : 0, &life);
    if (!rc && record && !n->extra && !life.spare && !(life.spare = crail_extra_spare(m)))
        rc = CRAIL_E_NO_MEMORY;
    if (rc) {
        record_drop(m, record, bytes);
        crail_life_discard(m, &life);
        return rc;
    }
    crail_node_touch(m, w.node);
    if (life.spare)
        crail_extra_give(m, w.node, life.spare);
    life.spare = 0;
    if (n->extra && c->op->data_len) {
        crail_attributes_free(m, crail_extra_at(m, n->extra));
        crail_extra_at(m, n->extra)->attributes = record;
        crail_extra_at(m, n->extra)->attributes_bytes = bytes;
    }
    if (c->op->options_len)
        crail_life_apply(c, w.node, &life);
    crail_extra_tidy(m, w.node);
    n->mtime_ns = c->now_ns;
    crail_say(c, n);
    return 0;
}

int crail_op_attributes(struct crail_call *c, struct crail_buf *reply) {
    struct crail_walk w;
    struct crail_result *r;
    uint8_t *data;
    int rc = crail_walk_existing(c, &w);
    if (rc)
        return rc;
    const struct crail_node *n = crail_node_at(c->m, w.node);
    const struct crail_extra *x = n->extra ? crail_extra_at(c->m, n->extra) : NULL;
    uint32_t bytes = x ? x->attributes_bytes : 0;
    if (crail_result_append(reply, bytes, &r, &data))
        return -ENOMEM;
    if (bytes)
        memcpy(data, crail_arena_at(&c->m->arena, x->attributes), bytes);
    struct change ignored;
    for (uint32_t at = 0; at < bytes; r->count++)
        at = read_one(data, at, bytes, &ignored);
    r->version = n->version;
    r->size = bytes;
    r->kind = n->kind;
    return 0;
}
