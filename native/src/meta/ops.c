/* One operation in, one result out: the rules of each code, then its handler. A handler checks everything first and
 * changes afterwards, so that one that fails has changed nothing. COMMIT, ALLOC and RELEASE are in extents.c, RENAME
 * and the removals in moves.c, LIST in list.c, COLUMN in column.c, INCR and TRUNCATE in edits.c, attributes in
 * attributes.c, JOB in jobs.c, END in holds.c. */
#include "meta/engine.h"

/* ---- shared steps ------------------------------------------------------------- */

int crail_walk_existing(struct crail_call *c, struct crail_walk *w) {
    int rc = crail_path_walk(c->m, c->path, c->op->path_len, w);
    if (rc)
        return rc;
    return w->node ? 0 : CRAIL_E_NOT_FOUND;
}

int crail_create_allowed(const struct crail_call *c, int walked, const struct crail_walk *w, enum crail_kind kind) {
    return crail_tree_takes(crail_node_at(c->m, w->dir), walked ? CRAIL_KIND_DIRECTORY : kind);
}

int crail_leaf_allowed(const struct crail_call *c, int walked, const struct crail_walk *w) {
    bool gap = walked == CRAIL_E_NOT_FOUND;
    if (walked && !(gap && crail_flag(c, CRAIL_OPF_PARENTS)))
        return walked;
    const struct crail_node *n = w->node ? crail_node_at(c->m, w->node) : NULL;
    if (n && !crail_node_is_leaf(n))
        return crail_node_is_container(n) ? CRAIL_E_IS_CONTAINER : CRAIL_E_EXISTS;
    if (n ? n->flags & CRAIL_NODE_ITEM : crail_create_allowed(c, walked, w, CRAIL_KIND_FILE))
        return CRAIL_E_INVALID_ARGUMENT;
    if (n && crail_flag(c, CRAIL_OPF_IF_ABSENT))
        return CRAIL_E_EXISTS;
    if (crail_flag(c, CRAIL_OPF_IF_VERSION) && (n ? n->version : 0) != c->op->arg0)
        return CRAIL_E_VERSION_CONFLICT;
    return 0;
}

int crail_leaf_find(struct crail_call *c, int *walked, struct crail_walk *w) {
    *walked = 0;
    if (crail_flag(c, CRAIL_OPF_QUEUE))
        return crail_queue_walk_item(c, w);
    *walked = crail_path_walk(c->m, c->path, c->op->path_len, w);
    return crail_leaf_allowed(c, *walked, w);
}

crail_ref crail_node_make(struct crail_call *c, int walked, struct crail_walk *w, enum crail_kind kind) {
    uint32_t made = 0;
    if (walked && crail_tree_make_parents(c->m, c->path, c->op->path_len, w, c->now_ns, &made))
        return 0;
    crail_ref ref = crail_tree_create(c->m, w->dir, w->name, w->name_len, w->hash, kind, c->now_ns);
    if (!ref)
        crail_tree_unmake(c->m, w->dir, made);
    else if (made && c->m->listening)
        crail_change_tell_made(c->m, c->path, (uint32_t)(w->name - c->path) - 1, w->dir, made);
    return ref;
}

int crail_leaf_publish(struct crail_call *c, int walked, struct crail_walk *w, const struct crail_value *v) {
    struct crail_life life = {0};
    bool plain = !c->op->options_len && !c->m->jobs_n && !(w->node && crail_node_at(c->m, w->node)->extra);
    int rc = plain ? 0 : crail_life_prepare(c, walked, w, v->size, &life);
    if (rc)
        return rc;
    if (w->node) {
        crail_node_touch(c->m, w->node);
        crail_node_at(c->m, w->node)->version = ++c->m->last_version;
    } else {
        w->node = crail_node_make(c, walked, w, CRAIL_KIND_FILE);
    }
    if (!w->node) {
        crail_life_discard(c->m, &life);
        return CRAIL_E_NO_MEMORY;
    }
    struct crail_node *n = crail_node_at(c->m, w->node);
    crail_value_publish(c->m, n, v);
    n->mtime_ns = c->now_ns;
    crail_say(c, n);
    if (!plain)
        crail_life_apply(c, w->node, &life);
    if (crail_flag(c, CRAIL_OPF_QUEUE))
        crail_queue_added(c->m, w->node);
    crail_changed_node(c->m, CRAIL_CHANGE_PUT, w->node);
    return 0;
}

int crail_leaf_publish_or_discard(struct crail_call *c, int walked, struct crail_walk *w, struct crail_value *v) {
    int rc = crail_leaf_publish(c, walked, w, v);
    if (rc)
        crail_value_discard(c->m, v);
    return rc;
}

/* What a request that may wait makes of a walk that found nothing. */
static int absent(const struct crail_call *c, int status) {
    return status == CRAIL_E_NOT_FOUND && crail_flag(c, CRAIL_OPF_WAIT) ? CRAIL_META_WAIT : status;
}

void crail_node_locations(const struct crail_meta *m, const struct crail_node *n, uint32_t count, uint8_t *out) {
    const struct crail_run *run = crail_value_runs_of(m, n);
    for (uint32_t i = 0; i < count; i++) {
        bool lost = crail_run_is_lost(m, &run[i]);
        struct crail_extent e = {run[i].server, run[i].region, run[i].granule, run[i].granules, 0, 0};
        e.generation = crail_run_generation(m, &run[i]);
        e.key = lost ? 0 : crail_extent_key(m->mac_key, &e, CRAIL_RIGHT_READ);
        memcpy(out + i * sizeof(e), &e, sizeof(e));
    }
}

/* Appends the locations of a file to the data of the result. */
static void put_locations(struct crail_call *c, const struct crail_node *n) {
    crail_node_locations(c->m, n, n->extents, c->out + c->r->data_len);
    c->r->data_len += n->extents * (uint32_t)sizeof(struct crail_extent);
    c->r->count = n->extents;
}

uint32_t crail_node_lost_server(const struct crail_meta *m, const struct crail_node *n) {
    const struct crail_run *run = crail_value_runs_of(m, n);
    for (uint32_t i = 0; i < n->extents; i++)
        if (crail_run_is_lost(m, &run[i]))
            return run[i].server;
    return 0;
}

/* ---- handlers ------------------------------------------------------------------ */

int crail_leaf_answer(struct crail_call *c, const struct crail_node *n) {
    c->r->server = crail_node_lost_server(c->m, n);
    if (c->r->server)
        return CRAIL_E_DATA_LOST;
    crail_say(c, n);
    if (n->extra && crail_extra_at(c->m, n->extra)->options & CRAIL_OPTION_DELETE_AFTER_READ)
        c->r->flags = CRAIL_RESF_DELETE_AFTER_READ;
    if (n->extents) {
        put_locations(c, n);
        return 0;
    }
    c->r->flags |= CRAIL_RESF_INLINE;
    memcpy(c->out + c->r->data_len, crail_value_bytes(c->m, n), n->size);
    c->r->data_len += (uint32_t)n->size;
    return 0;
}

int crail_op_get(struct crail_call *c) {
    struct crail_walk w;
    int rc = crail_walk_existing(c, &w);
    if (rc)
        return absent(c, rc);
    const struct crail_node *n = crail_node_at(c->m, w.node);
    return crail_node_is_leaf(n) ? crail_leaf_answer(c, n) : CRAIL_E_IS_CONTAINER;
}

static void stat_extra(const struct crail_meta *m, const struct crail_node *n, struct crail_stat *st) {
    const struct crail_extra *x = crail_extra_at(m, n->extra);
    st->expires_ns = x->expires_ns == INT64_MAX ? 0 : x->expires_ns;
    st->job = x->job;
    st->flags = x->options;
}

/* STAT that waits until nothing is there: its answer has no data. */
static int stat_absent(struct crail_call *c) {
    struct crail_walk w;
    if (crail_flag(c, CRAIL_OPF_IF_VERSION))
        return CRAIL_E_INVALID_ARGUMENT;
    int rc = crail_walk_existing(c, &w);
    if (rc == 0)
        return CRAIL_META_WAIT;
    return rc == CRAIL_E_NOT_FOUND || rc == CRAIL_E_NOT_CONTAINER ? 0 : rc;
}

static int op_stat(struct crail_call *c) {
    struct crail_walk w;
    if (c->op->flags && !crail_flag(c, CRAIL_OPF_WAIT))
        return CRAIL_E_INVALID_ARGUMENT;
    if (crail_flag(c, CRAIL_OPF_ABSENT))
        return stat_absent(c);
    int rc = crail_walk_existing(c, &w);
    if (rc)
        return absent(c, rc);
    const struct crail_node *n = crail_node_at(c->m, w.node);
    if (crail_flag(c, CRAIL_OPF_IF_VERSION) && n->version < c->op->arg0)
        return CRAIL_META_WAIT;
    struct crail_stat st = {.id = n->id,
                            .version = n->version,
                            .size = n->size,
                            .mtime_ns = n->mtime_ns,
                            .kind = n->kind,
                            .extents = n->extents};
    if (n->extra)
        stat_extra(c->m, n, &st);
    if (n->flags & CRAIL_NODE_FLUSHED)
        st.flags |= CRAIL_STAT_FLUSHED;
    memcpy(c->out, &st, sizeof(st));
    c->r->data_len = sizeof(st);
    c->r->version = n->version;
    c->r->size = n->size;
    c->r->kind = n->kind;
    put_locations(c, n);
    return 0;
}

static int op_put(struct crail_call *c) {
    struct crail_walk w;
    struct crail_value v;
    if (c->op->data_len > CRAIL_INLINE_MAX)
        return CRAIL_E_INVALID_ARGUMENT;
    int walked = 0, rc = crail_leaf_find(c, &walked, &w);
    if (!rc)
        rc = crail_value_inline(c->m, c->data, c->op->data_len, &v);
    return rc ? rc : crail_leaf_publish_or_discard(c, walked, &w, &v);
}

int crail_node_make_empty(struct crail_call *c, int walked, struct crail_walk *w, enum crail_kind kind) {
    struct crail_life life;
    int rc = crail_create_allowed(c, walked, w, kind);
    if (!rc)
        rc = crail_life_prepare(c, walked, w, 0, &life);
    if (rc)
        return rc;
    w->node = crail_node_make(c, walked, w, kind);
    if (!w->node) {
        crail_life_discard(c->m, &life);
        return CRAIL_E_NO_MEMORY;
    }
    crail_life_apply(c, w->node, &life);
    crail_changed_node(c->m, CRAIL_CHANGE_PUT, w->node);
    return 0;
}

static int op_mkdir(struct crail_call *c) {
    struct crail_walk w;
    uint64_t kind = c->op->arg0 ? c->op->arg0 : CRAIL_KIND_DIRECTORY;
    if (kind < CRAIL_KIND_DIRECTORY || kind > CRAIL_KIND_QUEUE)
        return CRAIL_E_INVALID_ARGUMENT;
    int walked = crail_path_walk(c->m, c->path, c->op->path_len, &w);
    if (walked && !(walked == CRAIL_E_NOT_FOUND && crail_flag(c, CRAIL_OPF_PARENTS)))
        return walked;
    bool same = w.node && crail_node_at(c->m, w.node)->kind == kind;
    if (w.node && !(same && crail_flag(c, CRAIL_OPF_EXIST_OK)))
        return CRAIL_E_EXISTS;
    int rc = same ? 0 : crail_node_make_empty(c, walked, &w, (enum crail_kind)kind);
    if (!rc)
        crail_say(c, crail_node_at(c->m, w.node));
    return rc;
}

/* ---- rules ----------------------------------------------------------------------- */

enum payload { NO_DATA, BYTES, EXTENTS };

struct rule {
    int (*run)(struct crail_call *c); /* fills the result in */
    uint16_t flags;                   /* allowed */
    bool path;                        /* takes one; else path_len is 0 */
    enum payload payload;
    enum { NONE, HOW_DURABLE, ANY } options; /* that it may bring: none, one that says this and no more, any */
    /* Instead of `run`, where the result may be large: appends all of it, or nothing and returns a status. */
    int (*append)(struct crail_call *c, struct crail_buf *reply);
};

#define PUBLISH_FLAGS (CRAIL_OPF_IF_ABSENT | CRAIL_OPF_IF_VERSION | CRAIL_OPF_PARENTS)

static const struct rule rules[] = {
    [CRAIL_OP_GET] = {crail_op_get, CRAIL_OPF_WAIT, true, NO_DATA, NONE, NULL},
    [CRAIL_OP_STAT] = {op_stat, CRAIL_OPF_WAIT | CRAIL_OPF_IF_VERSION | CRAIL_OPF_ABSENT, true, NO_DATA, NONE, NULL},
    [CRAIL_OP_LIST] = {NULL, 0, true, BYTES, NONE, crail_op_list},
    [CRAIL_OP_COLUMN] = {NULL, CRAIL_OPF_WAIT, true, BYTES, NONE, crail_op_column},
    [CRAIL_OP_PUT] = {op_put, PUBLISH_FLAGS | CRAIL_OPF_QUEUE | CRAIL_OPF_EDIT, true, BYTES, ANY, NULL},
    [CRAIL_OP_COMMIT] = {crail_op_commit,
                         PUBLISH_FLAGS | CRAIL_OPF_QUEUE | CRAIL_OPF_GRANT_AGAIN | CRAIL_OPF_APPEND | CRAIL_OPF_EDIT |
                             CRAIL_OPF_FLUSHED,
                         true, EXTENTS, ANY, NULL},
    [CRAIL_OP_ALLOC] = {crail_op_alloc, CRAIL_OPF_ONE_EXTENT | CRAIL_OPF_WAIT | CRAIL_OPF_IF_PLENTY, false, NO_DATA,
                        ANY, NULL},
    [CRAIL_OP_RELEASE] = {crail_op_release, 0, false, EXTENTS, NONE, NULL},
    [CRAIL_OP_MKDIR] = {op_mkdir, CRAIL_OPF_PARENTS | CRAIL_OPF_EXIST_OK, true, NO_DATA, ANY, NULL},
    [CRAIL_OP_RENAME] = {crail_op_rename, CRAIL_OPF_OVERWRITE, true, BYTES, HOW_DURABLE, NULL},
    [CRAIL_OP_REMOVE] = {crail_op_remove, CRAIL_OPF_LEAF_ONLY | CRAIL_OPF_IF_VERSION, true, NO_DATA, HOW_DURABLE, NULL},
    [CRAIL_OP_RMTREE] = {crail_op_rmtree, 0, true, NO_DATA, HOW_DURABLE, NULL},
    [CRAIL_OP_INCR] = {crail_op_incr, CRAIL_OPF_PARENTS, true, NO_DATA, ANY, NULL},
    [CRAIL_OP_SETATTR] = {crail_op_setattr, 0, true, BYTES, ANY, NULL},
    [CRAIL_OP_ATTRIBUTES] = {NULL, 0, true, NO_DATA, NONE, crail_op_attributes},
    [CRAIL_OP_TRUNCATE] = {crail_op_truncate, CRAIL_OPF_IF_VERSION, true, NO_DATA, HOW_DURABLE, NULL},
    [CRAIL_OP_JOB] = {crail_op_job, CRAIL_OPF_PARENTS, true, BYTES, ANY, NULL},
    [CRAIL_OP_TAKE] = {crail_op_take, CRAIL_OPF_WAIT, true, NO_DATA, NONE, NULL},
    [CRAIL_OP_ACK] = {crail_op_ack, 0, false, NO_DATA, NONE, NULL},
    [CRAIL_OP_ENTER] = {crail_op_enter, CRAIL_OPF_WAIT | CRAIL_OPF_PARENTS | CRAIL_META_OPF_AGAIN, true, NO_DATA, NONE,
                        NULL},
    [CRAIL_OP_END] = {crail_op_end, 0, false, NO_DATA, NONE, NULL},
    [CRAIL_OP_OPEN] = {crail_op_open, 0, true, NO_DATA, NONE, NULL},
    [CRAIL_OP_APPEND] = {crail_op_append, CRAIL_OPF_WAIT, true, NO_DATA, NONE, NULL},
    [CRAIL_OP_STREAM] = {crail_op_stream, 0, true, EXTENTS, NONE, NULL},
    [CRAIL_OP_FOLLOW] = {crail_op_follow, CRAIL_OPF_WAIT, true, NO_DATA, NONE, NULL},
};

static bool well_formed(const struct crail_op *op, const struct rule *rule) {
    if ((op->options_len && (rule->options == NONE || op->options_len != sizeof(struct crail_options))) ||
        (op->flags & ~rule->flags) || (!rule->path && op->path_len))
        return false;
    bool may_be_none = op->flags & CRAIL_OPF_APPEND; /* what was there had room */
    if (rule->payload == EXTENTS)
        return op->count >= !may_be_none && op->count <= CRAIL_EXTENTS_MAX &&
               op->data_len == op->count * sizeof(struct crail_extent);
    uint32_t count_max = op->flags & CRAIL_OPF_WAIT ? CRAIL_WAIT_MS_MAX : 0;
    return op->count <= count_max && (rule->payload == BYTES || op->data_len == 0);
}

static const struct rule *rule_of(const struct crail_op *op) {
    bool known = op->code < sizeof(rules) / sizeof(rules[0]) && (rules[op->code].run || rules[op->code].append);
    return known ? &rules[op->code] : NULL;
}

/* And nothing else? */
static bool says_how_durable(const struct crail_options *o) {
    return !(o->flags & ~(CRAIL_OPTION_SYNC | CRAIL_OPTION_GROUP)) && !o->ttl_ns && !o->job && !o->location &&
           o->storage_class == CRAIL_CLASS_ANY && o->stripe <= 1 && !o->avoid && !o->reserved;
}

static const struct crail_options NO_OPTIONS = {.storage_class = CRAIL_CLASS_ANY};

/* Ends the result: what is kept of a failed one, and the padding. */
static void finish(struct crail_call *c, int rc, struct crail_buf *reply) {
    struct crail_result *r = c->r;
    if (rc)
        *r = (struct crail_result){.status = -rc, .server = r->server};
    uint32_t padded = crail_pad8(r->data_len);
    assert(rc >= 0 && padded <= CRAIL_REPLY_BYTES_MAX);
    memset(c->out + r->data_len, 0, padded - r->data_len);
    reply->len += sizeof(*r) + padded;
}

int crail_result_append(struct crail_buf *reply, uint32_t bytes, struct crail_result **r, uint8_t **data) {
    uint32_t padded = crail_pad8(bytes);
    if (crail_buf_reserve(reply, sizeof(**r) + padded))
        return -ENOMEM;
    *r = (struct crail_result *)(reply->data + reply->len);
    **r = (struct crail_result){.data_len = bytes};
    *data = (uint8_t *)(*r + 1);
    memset(*data + bytes, 0, padded - bytes);
    reply->len += sizeof(**r) + padded;
    return 0;
}

/* Points the call at the place of its result. 0 or -ENOMEM. */
static int begin(struct crail_call *c, struct crail_buf *reply) {
    if (crail_buf_reserve(reply, sizeof(struct crail_result) + CRAIL_REPLY_BYTES_MAX))
        return -ENOMEM;
    c->r = (struct crail_result *)(reply->data + reply->len);
    c->out = (uint8_t *)(c->r + 1);
    *c->r = (struct crail_result){0};
    return 0;
}

/* An answer that is not due yet, or for which there is no memory: nothing is appended. */
static bool unanswered(int rc) {
    return rc && rc < CRAIL_STATUS_BASE;
}

static int run_append(struct crail_call *c, const struct rule *rule, struct crail_buf *reply) {
    int rc = rule->append(c, reply);
    if (rc == 0 || unanswered(rc))
        return rc;
    if (begin(c, reply)) /* the reply may have moved */
        return -ENOMEM;
    finish(c, rc, reply);
    return 0;
}

static int run(struct crail_call *c, const struct rule *rule, struct crail_buf *reply) {
    if (rule->append)
        return run_append(c, rule, reply);
    int rc = rule->run(c);
    if (unanswered(rc))
        return rc;
    finish(c, rc, reply);
    return 0;
}

int crail_meta_execute(struct crail_meta *m, struct crail_meta_session *s, const struct crail_op *op, const char *path,
                       const void *options, const void *data, int64_t now_ns, struct crail_buf *reply) {
    struct crail_call c = {m, s, op, path, data, NO_OPTIONS, now_ns, NULL, NULL, ""};
    const struct rule *rule = rule_of(op);
    if (begin(&c, reply))
        return -ENOMEM;
    m->now_ns = now_ns;
    if (!rule || !well_formed(op, rule)) {
        finish(&c, CRAIL_E_INVALID_ARGUMENT, reply);
        return 0;
    }
    if (op->options_len)
        memcpy(&c.options, options, sizeof(c.options));
    if (rule->options == HOW_DURABLE && !says_how_durable(&c.options)) {
        finish(&c, CRAIL_E_INVALID_ARGUMENT, reply);
        return 0;
    }
    return run(&c, rule, reply);
}
