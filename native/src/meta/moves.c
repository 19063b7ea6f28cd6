/* RENAME, REMOVE, RMTREE. */
#include "meta/engine.h"

/* Is `dir` the node or below it? Goes up from a directory that a path led to, so at most a path's depth. */
static bool is_within(const struct crail_meta *m, crail_ref dir, crail_ref node) {
    while (dir && dir != node)
        dir = crail_node_at(m, dir)->parent;
    return dir == node;
}

/* May `from` take the place of what is at the end of the walk `to`? */
static int rename_allowed(const struct crail_call *c, crail_ref from, const struct crail_walk *to) {
    bool from_dir = crail_node_is_dir(crail_node_at(c->m, from));
    if (from_dir && is_within(c->m, to->dir, from))
        return CRAIL_E_INVALID_ARGUMENT;
    if (!to->node)
        return 0;
    const struct crail_node *old = crail_node_at(c->m, to->node);
    if (!crail_flag(c, CRAIL_OPF_OVERWRITE))
        return CRAIL_E_EXISTS;
    if (crail_node_is_dir(old) != from_dir)
        return from_dir ? CRAIL_E_NOT_CONTAINER : CRAIL_E_IS_CONTAINER;
    return from_dir && old->size ? CRAIL_E_NOT_EMPTY : 0;
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
            crail_tree_free(c->m, to.node);
        }
        crail_tree_move(c->m, from.node, to.dir, to.name, to.name_len, to.hash, name_ref, c->now_ns);
    }
    c->r->version = n->version;
    c->r->size = n->size;
    c->r->kind = n->kind;
    return 0;
}

static int walk_to_removed(struct crail_call *c, struct crail_walk *w) {
    int rc = crail_walk_existing(c, w);
    if (rc)
        return rc;
    return w->node == c->m->root ? CRAIL_E_INVALID_ARGUMENT : 0;
}

static void take_out(struct crail_call *c, const struct crail_walk *w) {
    const struct crail_node *n = crail_node_at(c->m, w->node);
    c->r->version = n->version;
    c->r->kind = n->kind;
    crail_node_at(c->m, w->dir)->mtime_ns = c->now_ns;
    crail_tree_detach(c->m, w->node);
}

int crail_op_remove(struct crail_call *c) {
    struct crail_walk w;
    int rc = walk_to_removed(c, &w);
    if (rc)
        return rc;
    const struct crail_node *n = crail_node_at(c->m, w.node);
    if (crail_node_is_dir(n) && crail_flag(c, CRAIL_OPF_LEAF_ONLY))
        return CRAIL_E_IS_CONTAINER;
    if (crail_node_is_dir(n) && n->size)
        return CRAIL_E_NOT_EMPTY;
    take_out(c, &w);
    crail_tree_free(c->m, w.node);
    return 0;
}

int crail_op_rmtree(struct crail_call *c) {
    struct crail_walk w;
    int rc = walk_to_removed(c, &w);
    if (rc)
        return rc;
    take_out(c, &w);
    crail_reap_tree(c->m, w.node);
    return 0;
}
