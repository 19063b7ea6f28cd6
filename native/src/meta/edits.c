/* INCR and TRUNCATE: new versions that the namenode makes out of an inline value by itself. */
#include "meta/engine.h"

#include <inttypes.h>
#include <stdio.h>

#define NUMBER_DIGITS_MAX 20u /* "-9223372036854775808" */

/* Is this the decimal text of an int64, as INCR writes it? */
static bool number_read(const char *text, uint64_t len, int64_t *out) {
    bool minus = len && text[0] == '-';
    int64_t value = 0;
    if (len <= minus || len > NUMBER_DIGITS_MAX)
        return false;
    for (uint64_t i = minus; i < len; i++) {
        int digit = text[i] - '0';
        if (digit < 0 || digit > 9 || __builtin_mul_overflow(value, 10, &value) ||
            __builtin_sub_overflow(value, digit, &value)) /* downwards: the least has no positive */
            return false;
    }
    if (!minus && value == INT64_MIN)
        return false;
    *out = minus ? value : -value;
    return true;
}

int crail_op_incr(struct crail_call *c) {
    struct crail_walk w;
    struct crail_value v;
    char text[NUMBER_DIGITS_MAX + 1];
    int64_t number = 0;
    int walked = crail_path_walk(c->m, c->path, c->op->path_len, &w);
    int rc = crail_leaf_allowed(c, walked, &w);
    if (rc)
        return rc;
    const struct crail_node *n = w.node ? crail_node_at(c->m, w.node) : NULL;
    if (n && (n->extents || !number_read(crail_value_bytes(c->m, n), n->size, &number)))
        return CRAIL_E_INVALID_ARGUMENT;
    if (__builtin_add_overflow(number, (int64_t)c->op->arg0, &number))
        return CRAIL_E_INVALID_ARGUMENT;
    uint32_t len = (uint32_t)snprintf(text, sizeof(text), "%" PRId64, number);
    rc = crail_value_inline(c->m, text, len, &v);
    if (!rc)
        rc = crail_leaf_publish_or_discard(c, walked, &w, &v);
    if (rc)
        return rc;
    memcpy(c->out, &number, sizeof(number));
    c->r->data_len = sizeof(number);
    return 0;
}

int crail_op_truncate(struct crail_call *c) {
    struct crail_walk w;
    struct crail_value v;
    uint8_t bytes[CRAIL_INLINE_MAX];
    uint64_t size = c->op->arg1;
    int walked = crail_path_walk(c->m, c->path, c->op->path_len, &w);
    int rc = crail_leaf_allowed(c, walked, &w);
    if (rc)
        return rc;
    if (!w.node)
        return CRAIL_E_NOT_FOUND;
    const struct crail_node *n = crail_node_at(c->m, w.node);
    if (size > CRAIL_INLINE_MAX || (n->extents && size))
        return CRAIL_E_INVALID_ARGUMENT; /* the bytes are not here */
    if (size == n->size) {
        crail_say(c, n);
        return 0;
    }
    uint64_t kept = n->extents ? 0 : n->size < size ? n->size : size;
    if (kept)
        memcpy(bytes, crail_value_bytes(c->m, n), kept);
    memset(bytes + kept, 0, size - kept);
    rc = crail_value_inline(c->m, bytes, (uint32_t)size, &v);
    return rc ? rc : crail_leaf_publish_or_discard(c, walked, &w, &v);
}
