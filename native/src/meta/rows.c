/* What is durable of nodes, sessions and servers, as rows: see crail/rows.h. load.c reads them again. */
#include "base/rows.h"

#include "meta/engine.h"

/* The hold of whoever has taken an item, or NULL. */
static const struct crail_hold *taker_of(const struct crail_meta *m, const struct crail_node *n) {
    crail_ref ref = n->extra ? crail_extra_at(m, n->extra)->holds : 0;
    while (ref && crail_hold_at(m, ref)->kind != CRAIL_HOLD_ITEM)
        ref = crail_hold_at(m, ref)->node_next;
    return ref ? crail_hold_at(m, ref) : NULL;
}

static bool has_life(const struct crail_extra *x) {
    return x->options || x->job || x->expires_ns;
}

static uint8_t parts_of(const struct crail_meta *m, const struct crail_node *n) {
    const struct crail_extra *x = n->extra ? crail_extra_at(m, n->extra) : NULL;
    uint8_t parts = 0;
    if (x && has_life(x))
        parts |= CRAIL_PART_LIFE;
    if (x && x->own_job)
        parts |= CRAIL_PART_JOB;
    if (n->flags & CRAIL_NODE_ITEM)
        parts |= CRAIL_PART_ITEM;
    if (n->kind == CRAIL_KIND_BARRIER)
        parts |= CRAIL_PART_BARRIER;
    if (n->flags & CRAIL_NODE_FLUSHED)
        parts |= CRAIL_PART_FLUSHED;
    return parts;
}

static uint32_t value_bytes(const struct crail_node *n) {
    if (!crail_node_is_leaf(n))
        return 0;
    return n->extents ? n->extents * (uint32_t)sizeof(struct crail_extent_part) : (uint32_t)n->size;
}

static uint32_t row_bytes(const struct crail_node *n, uint8_t parts, uint32_t attributes) {
    uint32_t bytes = (uint32_t)sizeof(struct crail_node_row) + n->name_len + value_bytes(n) + attributes;
    bytes += parts & CRAIL_PART_LIFE ? (uint32_t)sizeof(struct crail_life_part) : 0;
    bytes += parts & CRAIL_PART_JOB ? (uint32_t)sizeof(struct crail_job_part) : 0;
    bytes += parts & CRAIL_PART_ITEM ? (uint32_t)sizeof(struct crail_item_part) : 0;
    bytes += parts & CRAIL_PART_BARRIER ? (uint32_t)sizeof(struct crail_barrier_part) : 0;
    return bytes;
}

static uint8_t *put(uint8_t *at, const void *part, size_t bytes) {
    if (bytes)
        memcpy(at, part, bytes);
    return at + bytes;
}

static uint8_t *put_life(const struct crail_meta *m, const struct crail_extra *x, uint8_t *at) {
    struct crail_life_part life = {
        .job = x->job, .ttl_ns = x->ttl_ns, .expires_ns = x->expires_ns, .options = x->options};
    if (x->options & CRAIL_OPTION_SESSION)
        life.session = m->sessions[x->session]->id;
    return put(at, &life, sizeof(life));
}

static uint8_t *put_job(const struct crail_meta *m, const struct crail_extra *x, uint8_t *at) {
    const struct crail_job *j = crail_job_at(m, x->own_job);
    struct crail_job_part job = {j->number, j->ttl_ns, j->quota.bytes, j->quota.nodes};
    return put(at, &job, sizeof(job));
}

static uint8_t *put_item(const struct crail_meta *m, const struct crail_node *n, uint8_t *at) {
    const struct crail_hold *h = taker_of(m, n);
    struct crail_item_part item = {.state = n->item.state};
    if (h) {
        item.session = m->sessions[h->session]->id;
        item.token = h->token;
    }
    return put(at, &item, sizeof(item));
}

static uint8_t *put_barrier(const struct crail_node *n, uint8_t *at) {
    struct crail_barrier_part barrier = {n->barrier.rounds, n->barrier.members, !!(n->flags & CRAIL_NODE_BROKEN)};
    return put(at, &barrier, sizeof(barrier));
}

static uint8_t *put_value(const struct crail_meta *m, const struct crail_node *n, uint8_t *at) {
    if (!crail_node_is_leaf(n))
        return at;
    if (!n->extents)
        return put(at, crail_value_bytes(m, n), n->size);
    const struct crail_run *run = crail_value_runs_of(m, n);
    for (uint32_t i = 0; i < n->extents; i++) {
        struct crail_extent_part e = {run[i].server, run[i].region, run[i].granule, run[i].granules, 0};
        e.generation = crail_run_generation(m, &run[i]);
        at = put(at, &e, sizeof(e));
    }
    return at;
}

/* The value of the row of a node of the tree. */
static void put_node(const struct crail_meta *m, const struct crail_node *n, uint8_t parts, uint8_t *at) {
    const struct crail_extra *x = n->extra ? crail_extra_at(m, n->extra) : NULL;
    struct crail_node_row row = {.parent = n->parent ? crail_node_at(m, n->parent)->id : 0,
                                 .version = n->version,
                                 .size = crail_node_is_leaf(n) ? n->size : 0,
                                 .mtime_ns = n->mtime_ns,
                                 .attributes = x ? x->attributes_bytes : 0,
                                 .kind = n->kind,
                                 .parts = parts,
                                 .extents = crail_node_is_leaf(n) ? n->extents : 0,
                                 .name_len = n->name_len};
    at = put(at, &row, sizeof(row));
    at = parts & CRAIL_PART_LIFE ? put_life(m, x, at) : at;
    at = parts & CRAIL_PART_JOB ? put_job(m, x, at) : at;
    at = parts & CRAIL_PART_ITEM ? put_item(m, n, at) : at;
    at = parts & CRAIL_PART_BARRIER ? put_barrier(n, at) : at;
    at = put(at, crail_node_name(m, n), n->name_len);
    at = put_value(m, n, at);
    if (row.attributes)
        put(at, crail_arena_at(&m->arena, x->attributes), row.attributes);
}

static int row_of_living(const struct crail_meta *m, crail_ref ref, struct crail_buf *rows) {
    const struct crail_node *n = crail_node_at(m, ref);
    uint8_t parts = parts_of(m, n), *key, *value;
    uint32_t bytes = row_bytes(n, parts, n->extra ? crail_extra_at(m, n->extra)->attributes_bytes : 0);
    if (crail_row_begin(rows, sizeof(n->id), bytes, &key, &value))
        return -ENOMEM;
    memcpy(key, &n->id, sizeof(n->id));
    put_node(m, n, parts, value);
    crail_row_finish(rows, CRAIL_TABLE_NODE, sizeof(n->id), bytes);
    return 0;
}

/* From now on durable cuts may name its runs. */
static void runs_stored(struct crail_meta *m, const struct crail_node *n) {
    const struct crail_run *run = crail_value_runs_of(m, n);
    for (uint32_t i = 0; i < n->extents; i++)
        crail_run_stored(m, &run[i]);
}

int crail_row_of_node(struct crail_meta *m, crail_ref ref, struct crail_buf *rows) {
    struct crail_node *n = crail_node_at(m, ref);
    if (!n->parent && ref != m->root) /* off the tree, or a tomb */
        return n->flags & CRAIL_NODE_STORED
                   ? crail_row_append(rows, CRAIL_TABLE_NODE, true, &n->id, sizeof(n->id), NULL, 0)
                   : 0;
    if (row_of_living(m, ref, rows))
        return -ENOMEM;
    n->flags |= CRAIL_NODE_STORED;
    if (crail_node_is_leaf(n))
        runs_stored(m, n);
    crail_row_remember(m, ref);
    return 0;
}

/* ---- what a row was, for tests ------------------------------------------------------------ */

#ifdef CRAIL_TEST_GUARDS
/* Of all that a row says but what changes without its node: when a child came or went, and generations. */
static uint64_t sum_of(const struct crail_meta *m, crail_ref ref) {
    const uint8_t key[16] = {0};
    struct crail_buf b = {0};
    struct crail_node_row row;
    struct crail_extent_part e;
    const struct crail_node *n = crail_node_at(m, ref);
    if (row_of_living(m, ref, &b))
        return 0;
    uint8_t *value = b.data + sizeof(struct crail_row) + sizeof(n->id);
    memcpy(&row, value, sizeof(row));
    row.mtime_ns = crail_node_is_container(n) ? 0 : row.mtime_ns;
    memcpy(value, &row, sizeof(row));
    uint32_t bytes = row_bytes(n, row.parts, row.attributes);
    uint8_t *at = value + bytes - row.attributes - value_bytes(n);
    for (uint32_t i = 0; i < row.extents; i++, at += sizeof(e))
        memset(at + offsetof(struct crail_extent_part, generation), 0, sizeof(e.generation));
    uint64_t sum = crail_siphash(key, value, bytes);
    crail_buf_free(&b);
    return sum | 1;
}

void crail_row_remember(struct crail_meta *m, crail_ref ref) {
    m->cut->sums_of_rows[ref / CRAIL_MARK_REFS] = sum_of(m, ref);
}

bool crail_row_is_the_latest(const struct crail_meta *m, crail_ref ref) {
    return m->cut->sums_of_rows[ref / CRAIL_MARK_REFS] == sum_of(m, ref);
}
#else
void crail_row_remember(struct crail_meta *m, crail_ref ref) {
    (void)m;
    (void)ref;
}

bool crail_row_is_the_latest(const struct crail_meta *m, crail_ref ref) {
    (void)m;
    (void)ref;
    return true;
}
#endif

/* ---- sessions and servers ------------------------------------------------------------------- */

static uint32_t jobs_of(const struct crail_meta *m, const struct crail_meta_session *s) {
    uint32_t n = 0;
    for (crail_ref ref = s->jobs; ref; ref = crail_hold_at(m, ref)->record)
        n++;
    return n;
}

int crail_row_of_session(const struct crail_meta *m, const struct crail_meta_session *s, struct crail_buf *rows) {
    uint8_t *key, *value;
    if (s->is_over)
        return crail_row_append(rows, CRAIL_TABLE_SESSION, true, &s->id, sizeof(s->id), NULL, 0);
    struct crail_session_row row = {.jobs = jobs_of(m, s)};
    uint32_t bytes = (uint32_t)(sizeof(row) + row.jobs * sizeof(struct crail_session_job));
    if (crail_row_begin(rows, sizeof(s->id), bytes, &key, &value))
        return -ENOMEM;
    memcpy(key, &s->id, sizeof(s->id));
    value = put(value, &row, sizeof(row));
    for (crail_ref ref = s->jobs; ref; ref = crail_hold_at(m, ref)->record) {
        const struct crail_hold *h = crail_hold_at(m, ref);
        struct crail_session_job job = {h->token, crail_job_of_hold(m, h)->number};
        value = put(value, &job, sizeof(job));
    }
    crail_row_finish(rows, CRAIL_TABLE_SESSION, sizeof(s->id), bytes);
    return 0;
}

int crail_row_of_server(const struct crail_server *sv, struct crail_buf *rows) {
    struct crail_server_row row = {.state = (uint8_t)sv->state,
                                   .storage_class = sv->storage_class,
                                   .location = sv->location,
                                   .note = sv->note_bytes};
    uint8_t *key, *value;
    row.regions = sv->state == CRAIL_SERVER_LOST ? 0 : (uint16_t)sv->regions_n;
    uint32_t bytes = (uint32_t)(sizeof(row) + row.regions * sizeof(uint32_t) + sv->note_bytes);
    if (crail_row_begin(rows, sizeof(sv->number), bytes, &key, &value))
        return -ENOMEM;
    memcpy(key, &sv->number, sizeof(sv->number));
    value = put(value, &row, sizeof(row));
    for (uint32_t i = 0; i < row.regions; i++)
        value = put(value, &sv->regions[i].granules, sizeof(uint32_t));
    put(value, sv->note, sv->note_bytes);
    crail_row_finish(rows, CRAIL_TABLE_SERVER, sizeof(sv->number), bytes);
    return 0;
}
