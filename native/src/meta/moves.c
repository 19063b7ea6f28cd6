/* RENAME, REMOVE, RMTREE. */
#include "meta/engine.h"

/* Is `dir` the node or below it? Goes up from a directory that a path led to, so at most a path's depth. */
static bool is_within(const struct crail_meta *m, crail_ref dir, crail_ref node) {
    while (dir && dir != node)
        dir = crail_node_at(m, dir)->parent;
    return dir == node;
}

/* May `n` take the place of `old`? */
static int overwrite_allowed(const struct crail_node *n, const struct crail_node *old) {
    bool container = crail_node_is_container(n);
    if (crail_node_is_container(old) != container)
        return container ? CRAIL_E_NOT_CONTAINER : CRAIL_E_IS_CONTAINER;
    if (n->kind != old->kind)
        return CRAIL_E_EXISTS;
    return container && old->size ? CRAIL_E_NOT_EMPTY : 0;
}

/* A container with something in it stays on its side of a job's border, and quotas hold. A job's directory stays even
 * when it looks empty: what was removed from it may still be charged to the jobs around it, until it is freed. */
static int borders_allow(const struct crail_meta *m, const struct crail_node *n, const struct crail_walk *to) {
    crail_ref from_job = crail_job_around(m, n), to_job = crail_job_of(m, to->dir);
    if (from_job == to_job)
        return 0;
    const struct crail_node *old = to->node ? crail_node_at(m, to->node) : NULL;
    bool leaf = crail_node_is_leaf(n);
    if (!leaf && (n->size || (n->extra && crail_extra_at(m, n->extra)->own_job)))
        return CRAIL_E_INVALID_ARGUMENT;
    int64_t bytes = leaf ? (int64_t)n->size - (int64_t)(old ? old->size : 0) : 0;
    return crail_jobs_fit_move(m, n, to_job, !old, bytes) ? 0 : CRAIL_E_QUOTA_EXCEEDED;
}

/* May `from` go to the end of the walk `to`? */
static int rename_allowed(const struct crail_call *c, crail_ref from, const struct crail_walk *to) {
    const struct crail_node *n = crail_node_at(c->m, from);
    if (n->kind == CRAIL_KIND_BARRIER || n->flags & CRAIL_NODE_ITEM)
        return CRAIL_E_INVALID_ARGUMENT;
    if (crail_node_is_container(n) && is_within(c->m, to->dir, from))
        return CRAIL_E_INVALID_ARGUMENT;
    int rc = to->dir ? crail_tree_takes(crail_node_at(c->m, to->dir), n->kind) : 0;
    if (!rc && to->node)
        rc = crail_flag(c, CRAIL_OPF_OVERWRITE) ? overwrite_allowed(n, crail_node_at(c->m, to->node)) : CRAIL_E_EXISTS;
    return !rc && c->m->jobs_n ? borders_allow(c->m, n, to) : rc;
}

int crail_op_rename(struct crail_call *c) {
    struct crail_walk from, to;
    crail_ref name_ref;
    int rc = crail_walk_existing(c, &from);
    int rc_to = crail_path_walk(c->m, c->data, c->op->data_len, &to);
    if (rc || rc_to)
        return rc_to == CRAIL_E_INVALID_PATH || !rc ? rc_to : rc;
    if (from.node == c->m->root)
        return CRAIL_E_INVALID_ARGUMENT;
    struct crail_node *n = crail_node_at(c->m, from.node);
    if (to.node != from.node) {
        rc = rename_allowed(c, from.node, &to);
        if (!rc)
            rc = crail_tree_move_prepare(c->m, to.name_len, &name_ref);
        if (rc)
            return rc;
        if (to.node) {
            crail_tree_detach(c->m, to.node);
            crail_reap_tree(c->m, to.node);
        }
        crail_changed(c->m, CRAIL_CHANGE_DELETE, c->path, c->op->path_len, n->version);
        crail_tree_move(c->m, from.node, to.dir, to.name, to.name_len, to.hash, name_ref, c->now_ns);
        crail_changed(c->m, CRAIL_CHANGE_PUT, c->data, c->op->data_len, n->version);
    }
    crail_say(c, n);
    return 0;
}

static int walk_to_removed(struct crail_call *c, struct crail_walk *w) {
    int rc = crail_walk_existing(c, w);
    if (rc)
        return rc;
    bool fixed = w->node == c->m->root || crail_node_at(c->m, w->node)->flags & CRAIL_NODE_ITEM;
    return fixed ? CRAIL_E_INVALID_ARGUMENT : 0;
}

static void remove_at(struct crail_call *c, const struct crail_walk *w) {
    const struct crail_node *n = crail_node_at(c->m, w->node);
    c->r->version = n->version;
    c->r->kind = n->kind;
    crail_tree_remove(c->m, w->node);
}

int crail_op_remove(struct crail_call *c) {
    struct crail_walk w;
    int rc = walk_to_removed(c, &w);
    if (rc)
        return rc;
    const struct crail_node *n = crail_node_at(c->m, w.node);
    if (crail_node_is_container(n) && crail_flag(c, CRAIL_OPF_LEAF_ONLY))
        return CRAIL_E_IS_CONTAINER;
    if (crail_node_is_container(n) && n->size)
        return CRAIL_E_NOT_EMPTY;
    if (crail_flag(c, CRAIL_OPF_IF_VERSION) && n->version != c->op->arg0)
        return CRAIL_E_VERSION_CONFLICT;
    remove_at(c, &w);
    return 0;
}

int crail_op_rmtree(struct crail_call *c) {
    struct crail_walk w;
    int rc = walk_to_removed(c, &w);
    if (rc)
        return rc;
    remove_at(c, &w);
    return 0;
}
