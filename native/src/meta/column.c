/* COLUMN: what GET would say of each child of a directory, page by page as LIST; of map outputs within their nodes only
 * the bytes of one partition. It may wait until the directory has so many children. */
#include "meta/engine.h"

#include "base/partitions.h"

#define FETCH_AHEAD 8u

/* The extents need the generations of their first granules, the values their bytes: by now the node is there. */
static void fetch_value(const struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    if (!crail_node_is_leaf(n))
        return;
    if (n->extents)
        crail_run_fetch(m, crail_value_runs_of(m, n));
    else
        __builtin_prefetch(crail_value_bytes(m, n));
}

static void fetch_node(const struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    __builtin_prefetch(n);
    __builtin_prefetch(&n->id);
}

/* ---- one entry ------------------------------------------------------------------ */

/* Copies the partition out of every run of the value; *bytes: how many. False: the table lies. */
static bool put_partition(const struct crail_partitions *p, const uint8_t *value, uint32_t partition, uint8_t *to,
                          uint32_t *bytes) {
    for (uint32_t run = 0; run < p->runs; run++) {
        uint64_t from, until;
        if (!crail_partitions_bounds(p, value + crail_partitions_entry(p, run, partition), &from, &until) ||
            until - from > p->table - *bytes) /* runs that overlap */
            return false;
        memcpy(to + *bytes, value + from, until - from);
        *bytes += (uint32_t)(until - from);
    }
    return true;
}

/* Of a value within its node: fills in what the entry says of it, and its bytes. */
static void put_inline(const struct crail_meta *m, const struct crail_node *n, uint32_t partition,
                       struct crail_column *e, uint8_t *to) {
    const uint8_t *value = crail_value_bytes(m, n);
    struct crail_partitions p = {0};
    if (n->size >= sizeof(struct crail_partitions_end))
        crail_partitions_read(value + n->size - sizeof(struct crail_partitions_end), n->size, &p);
    e->partitions = p.count;
    if (partition == CRAIL_COLUMN_WHOLE) {
        memcpy(to, value, n->size);
        e->data_len = (uint32_t)n->size;
    } else if (partition < p.count && !put_partition(&p, value, partition, to, &e->data_len)) {
        e->partitions = e->data_len = 0;
    }
}

/* What the entry will have at most, beside its head. */
static uint32_t room_of(const struct crail_node *n) {
    uint32_t inlined = crail_node_is_leaf(n) && !n->extents ? (uint32_t)n->size : 0;
    return crail_pad8(n->name_len) + n->extents * (uint32_t)sizeof(struct crail_extent) + crail_pad8(inlined);
}

/* Appends one entry, for which there is room. */
static void put_entry(const struct crail_meta *m, const struct crail_node *n, uint32_t partition,
                      struct crail_buf *reply) {
    struct crail_column e = {.version = n->version, .size = n->size, .name_len = n->name_len, .kind = n->kind};
    uint8_t *head = reply->data + reply->len, *p = head + sizeof(e);
    memcpy(p, crail_node_name(m, n), n->name_len);
    memset(p + n->name_len, 0, crail_pad8(n->name_len) - n->name_len);
    p += crail_pad8(n->name_len);
    if (crail_node_is_leaf(n)) {
        e.server = crail_node_lost_server(m, n);
        e.extents = e.server ? 0 : n->extents;
        crail_node_locations(m, n, e.extents, p);
        p += e.extents * sizeof(struct crail_extent);
        if (!n->extents)
            put_inline(m, n, partition, &e, p);
    }
    memset(p + e.data_len, 0, crail_pad8(e.data_len) - e.data_len);
    p += crail_pad8(e.data_len);
    memcpy(head, &e, sizeof(e));
    reply->len += (size_t)(p - head);
}

/* ---- a page ---------------------------------------------------------------------- */

/* Appends entries up to the bound of a page. *put: how many. 0 or -ENOMEM. */
static int put_page(const struct crail_meta *m, const crail_ref *child, uint32_t n, uint32_t partition, uint32_t *put,
                    struct crail_buf *reply) {
    size_t start = reply->len;
    for (uint32_t i = 0; i < n && i < 2 * FETCH_AHEAD; i++)
        fetch_node(m, child[i]);
    for (uint32_t i = 0; i < n && i < FETCH_AHEAD; i++)
        fetch_value(m, child[i]);
    for (*put = 0; *put < n; ++*put) {
        const struct crail_node *node = crail_node_at(m, child[*put]);
        uint32_t bytes = (uint32_t)sizeof(struct crail_column) + room_of(node);
        if (*put && reply->len - start + bytes > CRAIL_COLUMN_BYTES_MAX)
            return 0;
        if (*put + 2 * FETCH_AHEAD < n)
            fetch_node(m, child[*put + 2 * FETCH_AHEAD]);
        if (*put + FETCH_AHEAD < n)
            fetch_value(m, child[*put + FETCH_AHEAD]);
        if (crail_buf_reserve(reply, bytes))
            return -ENOMEM;
        put_entry(m, node, partition, reply);
    }
    return 0;
}

/* The directory, once it has the children that are waited for. 0, CRAIL_META_WAIT, a status. */
static int find(struct crail_call *c, uint32_t awaited, const struct crail_node **dir, crail_ref *ref) {
    struct crail_walk w;
    int rc = crail_walk_existing(c, &w);
    bool waits = crail_flag(c, CRAIL_OPF_WAIT);
    if (rc == CRAIL_E_NOT_FOUND && waits) {
        c->m->missing = awaited ? awaited : 1;
        return CRAIL_META_WAIT;
    }
    if (rc)
        return rc;
    *ref = w.node;
    *dir = crail_node_at(c->m, w.node);
    if (!crail_node_is_container(*dir))
        return CRAIL_E_NOT_CONTAINER;
    if (!waits || (*dir)->size >= awaited)
        return 0;
    c->m->missing = awaited - (*dir)->size;
    return CRAIL_META_WAIT;
}

/* Appends the whole result itself. 0; CRAIL_META_AGAIN, CRAIL_META_WAIT or -ENOMEM (nothing appended); or a status. */
int crail_op_column(struct crail_call *c, struct crail_buf *reply) {
    crail_ref child[CRAIL_LIST_ENTRIES_MAX + 1], ref;
    const struct crail_node *dir;
    uint32_t partition = (uint32_t)c->op->arg1, awaited = (uint32_t)(c->op->arg1 >> 32);
    uint32_t n = 0, put = 0, max = CRAIL_LIST_ENTRIES_MAX;
    size_t start = reply->len;
    if (c->op->data_len > CRAIL_NAME_MAX || (awaited && !crail_flag(c, CRAIL_OPF_WAIT)))
        return CRAIL_E_INVALID_ARGUMENT;
    if (c->op->arg0 && c->op->arg0 < max)
        max = (uint32_t)c->op->arg0;
    int rc = find(c, awaited, &dir, &ref);
    if (rc)
        return rc;
    rc = crail_index_page(c->m, ref, c->op->data_len ? c->data : "", c->op->data_len, max + 1, child, &n);
    bool is_unready =
        rc == CRAIL_META_AGAIN && crail_flag(c, CRAIL_OPF_WAIT); /* who was set aside is not kept waiting */
    if (rc && !is_unready)
        return rc < 0 ? -rc : rc;
    reply->len += sizeof(struct crail_result);
    if (put_page(c->m, child, n < max ? n : max, partition, &put, reply)) {
        reply->len = start;
        return -ENOMEM;
    }
    struct crail_result *r = (struct crail_result *)(reply->data + start);
    *r = (struct crail_result){.data_len = (uint32_t)(reply->len - start - sizeof(*r)),
                               .version = dir->version,
                               .size = dir->size,
                               .count = (uint16_t)put,
                               .kind = dir->kind,
                               .flags = is_unready || put < n ? CRAIL_RESF_MORE : 0};
    return 0;
}

uint64_t crail_meta_missing(const struct crail_meta *m) {
    return m->missing;
}
