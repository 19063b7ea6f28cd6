/* Removed trees: unlinked at once, freed in steps. The tops of removed trees form a list; a step takes children off
 * the first top. A child that has children, or is held, becomes a top itself, so there is no recursion, and no node is
 * freed while another one, or a hold, still names it. */
#include "meta/engine.h"

#define NODES_PER_STEP 16u
#define HOLDS_AT_ONCE 8u

static void doom(struct crail_meta *m, crail_ref top) {
    struct crail_node *n = crail_node_at(m, top);
    assert(!n->parent && !n->sib_next && !n->sib_prev);
    if (crail_node_is_container(n)) {
        if (n->index)
            crail_index_drop(m, n);
        m->doomed_nodes += n->size;
    }
    n->sib_next = m->doomed;
    m->doomed = top;
}

/* Something has to go before the node itself can. */
static bool takes_steps(const struct crail_meta *m, const struct crail_node *n) {
    return (crail_node_is_container(n) && n->first_child) || crail_node_is_held(m, n);
}

void crail_reap_tree(struct crail_meta *m, crail_ref top) {
    if (!takes_steps(m, crail_node_at(m, top))) {
        crail_tree_free(m, top);
        return;
    }
    m->doomed_nodes++;
    doom(m, top);
}

static void reap_one(struct crail_meta *m) {
    crail_ref top = m->doomed;
    struct crail_node *n = crail_node_at(m, top);
    if (n->extra && crail_holds_node_gone(m, top, HOLDS_AT_ONCE))
        return;
    crail_ref child = crail_node_is_container(n) ? n->first_child : 0;
    if (!child) {
        m->doomed = n->sib_next;
        n->sib_next = 0;
        crail_tree_free(m, top);
        m->doomed_nodes--;
        return;
    }
    struct crail_node *c = crail_node_at(m, child);
    crail_ref next = c->sib_next;
    if (next) {
        __builtin_prefetch(crail_node_at(m, next));
        __builtin_prefetch(&crail_node_at(m, next)->id);
    }
    crail_tree_detach(m, child);
    if (takes_steps(m, c)) {
        doom(m, child);
    } else {
        crail_tree_free(m, child);
        m->doomed_nodes--;
    }
}

bool crail_reap_step(struct crail_meta *m) {
    for (uint32_t i = 0; i < NODES_PER_STEP && m->doomed; i++)
        reap_one(m);
    return m->doomed != 0;
}
