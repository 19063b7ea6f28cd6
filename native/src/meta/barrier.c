/* Barriers. A member is a hold (CRAIL_HOLD_MEMBER) that notes in which round it came: `number` rounds had been before.
 * The round is over for all of it when the barrier's count of rounds is past that number: so opening costs the same for
 * any number of members, and a member that asks again gets its answer until it says END. */
#include "meta/engine.h"

#define MEMBERS_MAX (1u << 20)

enum verdict { WAITING, OPENED, BROKEN };

/* Of a member whose barrier has not been freed. */
static enum verdict verdict_at(const struct crail_meta *m, const struct crail_hold *h, crail_ref node) {
    const struct crail_node *n = crail_node_at(m, node);
    if (n->barrier.rounds > h->number)
        return OPENED;
    return n->flags & CRAIL_NODE_BROKEN || !crail_tree_reachable(m, node) ? BROKEN : WAITING;
}

void crail_member_hold_orphaned(struct crail_meta *m, struct crail_hold *h, crail_ref node) {
    h->state = (uint8_t)verdict_at(m, h, node);
    assert(h->state != WAITING);
}

void crail_member_hold_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why) {
    struct crail_node *n = h->node ? crail_node_at(m, h->node) : NULL;
    if (!n || n->barrier.rounds > h->number)
        return;
    assert(n->barrier.here);
    n->barrier.here--;
    if (why != CRAIL_HOLD_SESSION_END || verdict_at(m, h, h->node) == BROKEN)
        return;
    n->flags |= CRAIL_NODE_BROKEN;
    crail_changed_node(m, CRAIL_CHANGE_NONE, h->node);
}

static int answer(struct crail_call *c, const struct crail_hold *h) {
    c->r->kind = CRAIL_KIND_BARRIER;
    c->r->version = h->number + 1;
    switch (h->node ? verdict_at(c->m, h, h->node) : h->state) {
    case OPENED:
        return 0;
    case BROKEN:
        return CRAIL_E_BARRIER_BROKEN;
    default:
        return crail_flag(c, CRAIL_OPF_WAIT) ? CRAIL_META_WAIT : CRAIL_E_DEADLINE;
    }
}

static int make(struct crail_call *c, int walked, struct crail_walk *w) {
    int rc = crail_node_make_empty(c, walked, w, CRAIL_KIND_BARRIER);
    if (rc)
        return rc;
    crail_node_at(c->m, w->node)->barrier.members = (uint32_t)c->op->arg1;
    return 0;
}

/* The barrier at the end of the path, made if there is nothing. */
static int find(struct crail_call *c, struct crail_walk *w) {
    int walked = crail_path_walk(c->m, c->path, c->op->path_len, w);
    if (walked && !(walked == CRAIL_E_NOT_FOUND && crail_flag(c, CRAIL_OPF_PARENTS)))
        return walked;
    if (!w->node)
        return make(c, walked, w);
    const struct crail_node *n = crail_node_at(c->m, w->node);
    if (n->kind != CRAIL_KIND_BARRIER)
        return crail_node_is_container(n) ? CRAIL_E_IS_CONTAINER : CRAIL_E_EXISTS;
    if (n->flags & CRAIL_NODE_BROKEN)
        return CRAIL_E_BARRIER_BROKEN;
    return n->barrier.members == c->op->arg1 ? 0 : CRAIL_E_INVALID_ARGUMENT;
}

/* The token is a member already. He waits at his path, where he would not hear of a barrier that was renamed: then he
 * is told at once, and may ask again at its new path. */
static int enter_again(struct crail_call *c, const struct crail_hold *h) {
    struct crail_walk w;
    if (h->kind != CRAIL_HOLD_MEMBER)
        return CRAIL_E_INVALID_ARGUMENT;
    int walked = crail_path_walk(c->m, c->path, c->op->path_len, &w);
    if (walked == CRAIL_E_INVALID_PATH)
        return walked;
    int rc = answer(c, h);
    return rc == CRAIL_META_WAIT && w.node != h->node ? CRAIL_E_NOT_FOUND : rc;
}

int crail_op_enter(struct crail_call *c) {
    struct crail_walk w;
    crail_ref hold = crail_hold_find(c->m, c->s, c->op->arg0);
    if (hold)
        return enter_again(c, crail_hold_at(c->m, hold));
    if (c->op->flags & CRAIL_META_OPF_AGAIN)
        return CRAIL_E_CLOSED; /* it was ended while it waited */
    if (!c->op->arg1 || c->op->arg1 > MEMBERS_MAX)
        return CRAIL_E_INVALID_ARGUMENT;
    int rc = find(c, &w);
    if (rc)
        return rc;
    hold = crail_hold_add(c->m, c->s, CRAIL_HOLD_MEMBER, c->op->arg0, w.node);
    if (!hold)
        return CRAIL_E_NO_MEMORY;
    struct crail_node *n = crail_node_at(c->m, w.node);
    crail_hold_at(c->m, hold)->number = n->barrier.rounds;
    if (++n->barrier.here == n->barrier.members) {
        crail_node_touch(c->m, w.node);
        n->barrier.here = 0;
        n->barrier.rounds++;
        crail_changed_node(c->m, CRAIL_CHANGE_NONE, w.node);
    }
    return answer(c, crail_hold_at(c->m, hold));
}

/* ---- fsck ----------------------------------------------------------------------------- */

const char *crail_barrier_check(const struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    uint32_t waiting = 0;
    for (crail_ref h = n->extra ? crail_extra_at(m, n->extra)->holds : 0; h; h = crail_hold_at(m, h)->node_next) {
        if (crail_hold_at(m, h)->kind != CRAIL_HOLD_MEMBER || crail_hold_at(m, h)->number > n->barrier.rounds)
            return "a member of it comes from the future";
        waiting += crail_hold_at(m, h)->number == n->barrier.rounds;
    }
    if (crail_tree_reachable(m, ref) && (waiting != n->barrier.here || waiting >= n->barrier.members))
        return "its members are miscounted";
    return NULL;
}
