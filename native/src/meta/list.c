/* LIST: one page of a directory. */
#include "meta/engine.h"

#define FETCH_AHEAD 8u

static void fetch(const struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    __builtin_prefetch(n);
    __builtin_prefetch(&n->id);
}

/* Appends one entry. 0 or -ENOMEM. */
static int put_entry(const struct crail_meta *m, crail_ref ref, struct crail_buf *reply) {
    const struct crail_node *n = crail_node_at(m, ref);
    uint32_t bytes = (uint32_t)sizeof(struct crail_dirent) + n->name_len, padded = crail_pad8(bytes);
    if (crail_buf_reserve(reply, padded))
        return -ENOMEM;
    struct crail_dirent d = {.version = n->version,
                             .size = n->size,
                             .mtime_ns = n->mtime_ns,
                             .name_len = n->name_len,
                             .kind = n->kind,
                             .is_inline = n->kind == CRAIL_KIND_FILE && !n->extents,
                             .is_flushed = !!(n->flags & CRAIL_NODE_FLUSHED)};
    uint8_t *p = reply->data + reply->len;
    memset(p + padded - 8, 0, 8);
    memcpy(p, &d, sizeof(d));
    memcpy(p + sizeof(d), crail_node_name(m, n), n->name_len);
    reply->len += padded;
    return 0;
}

static int put_page(const struct crail_meta *m, const crail_ref *child, uint32_t n, struct crail_buf *reply) {
    for (uint32_t i = 0; i < n && i < FETCH_AHEAD; i++)
        fetch(m, child[i]);
    for (uint32_t i = 0; i < n; i++) {
        if (i + FETCH_AHEAD < n)
            fetch(m, child[i + FETCH_AHEAD]);
        if (put_entry(m, child[i], reply))
            return -ENOMEM;
    }
    return 0;
}

/* Appends the whole result itself. 0; CRAIL_META_AGAIN or -ENOMEM (nothing appended); or a status. */
int crail_op_list(struct crail_call *c, struct crail_buf *reply) {
    crail_ref child[CRAIL_LIST_ENTRIES_MAX + 1];
    struct crail_walk w;
    uint32_t n, max = CRAIL_LIST_ENTRIES_MAX;
    size_t start = reply->len;
    if (c->op->data_len > CRAIL_NAME_MAX)
        return CRAIL_E_INVALID_ARGUMENT;
    if (c->op->arg0 && c->op->arg0 < max)
        max = (uint32_t)c->op->arg0;
    int rc = crail_walk_existing(c, &w);
    if (rc)
        return rc;
    const struct crail_node *dir = crail_node_at(c->m, w.node);
    if (!crail_node_is_container(dir))
        return CRAIL_E_NOT_CONTAINER;
    const char *after = c->op->data_len ? c->data : "";
    rc = crail_index_page(c->m, w.node, after, c->op->data_len, max + 1, child, &n);
    if (rc)
        return rc < 0 ? -rc : rc;
    bool more = n > max;
    n = more ? max : n;
    reply->len += sizeof(struct crail_result);
    if (put_page(c->m, child, n, reply)) {
        reply->len = start;
        return -ENOMEM;
    }
    struct crail_result *r = (struct crail_result *)(reply->data + start);
    *r = (struct crail_result){.data_len = (uint32_t)(reply->len - start - sizeof(*r)),
                               .version = dir->version,
                               .size = dir->size,
                               .count = (uint16_t)n,
                               .kind = dir->kind,
                               .flags = more ? CRAIL_RESF_MORE : 0};
    return 0;
}
