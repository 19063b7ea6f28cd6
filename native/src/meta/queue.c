/* Queues. An item is a leaf whose name is its version in digits: so the children, which stand latest first, are in the
 * order of the queue. An item is
 *
 *   fresh     never taken: those from `queue.fresh` on to the latest one. None of them is older than any other item.
 *   returned  was taken and came back: in a heap by number, for they come back in any order.
 *   taken     somebody holds it (CRAIL_HOLD_ITEM).
 *
 * So the oldest free one is the first of the heap, or else the first fresh one, and nobody looks at the taken ones. The
 * heap is leftist: the right spine of each item is the shortest way down, so nothing takes more than O(log n). */
#include "meta/engine.h"

#define DIGITS 20u /* of UINT64_MAX */

static struct crail_item *item_of(const struct crail_meta *m, crail_ref ref) {
    assert(crail_node_at(m, ref)->flags & CRAIL_NODE_ITEM);
    return &crail_node_at(m, ref)->item;
}

/* ---- the heap of returned items ------------------------------------------------ */

static uint32_t rank_of(const struct crail_meta *m, crail_ref ref) {
    return ref ? item_of(m, ref)->rank : 0;
}

/* The children of `ref` have changed: puts the lower one to the right. False: its rank is what it was. */
static bool settle(struct crail_meta *m, crail_ref ref) {
    struct crail_item *at = item_of(m, ref);
    uint8_t before = at->rank;
    if (rank_of(m, at->left) < rank_of(m, at->right)) {
        crail_ref left = at->left;
        at->left = at->right;
        at->right = left;
    }
    at->rank = (uint8_t)(rank_of(m, at->right) + 1);
    return at->rank != before;
}

static bool is_older(const struct crail_meta *m, crail_ref a, crail_ref b) {
    return crail_node_at(m, a)->version < crail_node_at(m, b)->version;
}

/* Two heaps into one: down along both right spines, then up to settle what was passed. `up` of the result is 0. */
static crail_ref merge(struct crail_meta *m, crail_ref a, crail_ref b) {
    crail_ref at = 0; /* lowest item of the merged spine so far */
    while (a && b) {
        crail_ref first = is_older(m, a, b) ? a : b;
        struct crail_item *item = item_of(m, first);
        b = first == a ? b : a;
        a = item->right;
        item->up = at;
        if (at)
            item_of(m, at)->right = first;
        at = first;
    }
    crail_ref rest = a ? a : b;
    if (rest)
        item_of(m, rest)->up = at;
    if (!at)
        return rest;
    item_of(m, at)->right = rest;
    for (;; at = item_of(m, at)->up) {
        settle(m, at);
        if (!item_of(m, at)->up)
            return at;
    }
}

static void heap_add(struct crail_meta *m, struct crail_node *queue, crail_ref ref) {
    struct crail_item *item = item_of(m, ref);
    item->left = item->right = 0;
    item->rank = 1;
    item->state = CRAIL_ITEM_RETURNED;
    queue->queue.returned = merge(m, queue->queue.returned, ref);
}

static void heap_remove(struct crail_meta *m, struct crail_node *queue, crail_ref ref) {
    struct crail_item *item = item_of(m, ref);
    crail_ref up = item->up, rest = merge(m, item->left, item->right);
    if (rest)
        item_of(m, rest)->up = up;
    if (!up) {
        assert(queue->queue.returned == ref);
        queue->queue.returned = rest;
        return;
    }
    struct crail_item *above = item_of(m, up);
    if (above->left == ref)
        above->left = rest;
    else
        above->right = rest;
    while (up && settle(m, up))
        up = item_of(m, up)->up;
}

/* ---- items ------------------------------------------------------------------------ */

/* A free item stops being one. */
static void unfree(struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    struct crail_node *queue = crail_node_at(m, n->parent);
    if (n->item.state == CRAIL_ITEM_RETURNED)
        heap_remove(m, queue, ref);
    else if (queue->queue.fresh == ref)
        queue->queue.fresh = n->sib_prev;
}

void crail_queue_leaving(struct crail_meta *m, crail_ref ref) {
    if (item_of(m, ref)->state != CRAIL_ITEM_TAKEN)
        unfree(m, ref);
}

static void wake_takers(struct crail_meta *m, crail_ref queue) {
    crail_changed_node(m, CRAIL_CHANGE_NONE, queue);
}

int crail_queue_walk(struct crail_call *c, struct crail_walk *w) {
    int rc = crail_walk_existing(c, w);
    if (rc)
        return rc;
    const struct crail_node *n = crail_node_at(c->m, w->node);
    if (n->kind != CRAIL_KIND_QUEUE)
        return crail_node_is_container(n) ? CRAIL_E_IS_CONTAINER : CRAIL_E_NOT_CONTAINER;
    return 0;
}

int crail_queue_walk_item(struct crail_call *c, struct crail_walk *w) {
    if (crail_flag(c, CRAIL_OPF_IF_ABSENT | CRAIL_OPF_IF_VERSION | CRAIL_OPF_PARENTS))
        return CRAIL_E_INVALID_ARGUMENT;
    int rc = crail_queue_walk(c, w);
    if (rc)
        return rc;
    uint64_t number = c->m->last_version + 1; /* that of the node which comes next */
    for (uint32_t i = DIGITS; i--; number /= 10)
        c->item_name[i] = (char)('0' + number % 10);
    *w = (struct crail_walk){.dir = w->node, .name = c->item_name, .name_len = DIGITS};
    w->hash = crail_names_hash(c->m, w->dir, w->name, w->name_len);
    return 0;
}

void crail_queue_added(struct crail_meta *m, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    struct crail_node *queue = crail_node_at(m, n->parent);
    _Static_assert(DIGITS <= offsetof(struct crail_item, left), "the name is before what we keep behind it");
    assert(n->name_len == DIGITS && queue->first_child == ref);
    n->flags |= CRAIL_NODE_ITEM;
    n->item.left = n->item.right = n->item.up = 0;
    n->item.rank = 0;
    n->item.state = CRAIL_ITEM_FRESH;
    if (!queue->queue.fresh)
        queue->queue.fresh = ref;
    wake_takers(m, n->parent);
}

void crail_queue_loaded(struct crail_meta *m, crail_ref ref, enum crail_item_state state) {
    struct crail_node *queue = crail_node_at(m, crail_node_at(m, ref)->parent);
    item_of(m, ref)->state = (uint8_t)state;
    if (state == CRAIL_ITEM_RETURNED)
        heap_add(m, queue, ref);
    else if (state == CRAIL_ITEM_FRESH && !queue->queue.fresh)
        queue->queue.fresh = ref;
}

/* ---- TAKE, ACK, and the end of a hold ----------------------------------------------- */

void crail_item_hold_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why) {
    if (why == CRAIL_HOLD_NODE_GONE)
        return;
    struct crail_node *n = crail_node_at(m, h->node);
    if (!n->parent) /* its queue is being freed */
        return;
    heap_add(m, crail_node_at(m, n->parent), h->node);
    wake_takers(m, n->parent);
}

/* The item that the session holds under this token. */
static int held_item(const struct crail_call *c, crail_ref hold, crail_ref *item) {
    const struct crail_hold *h = crail_hold_at(c->m, hold);
    if (h->kind != CRAIL_HOLD_ITEM)
        return CRAIL_E_INVALID_ARGUMENT;
    *item = h->node;
    return crail_tree_reachable(c->m, h->node) ? 0 : CRAIL_E_NOT_FOUND;
}

static int answer_item(struct crail_call *c, crail_ref ref) {
    const struct crail_node *n = crail_node_at(c->m, ref);
    memcpy(c->out, &n->version, sizeof(n->version)); /* its number */
    c->r->data_len = sizeof(n->version);
    return crail_leaf_answer(c, n);
}

int crail_op_take(struct crail_call *c) {
    struct crail_walk w;
    crail_ref item = 0, hold = crail_hold_find(c->m, c->s, c->op->arg0);
    int rc = hold ? held_item(c, hold, &item) : crail_queue_walk(c, &w);
    if (rc || hold)
        return rc ? rc : answer_item(c, item);
    const struct crail_node *queue = crail_node_at(c->m, w.node);
    item = queue->queue.returned ? queue->queue.returned : queue->queue.fresh;
    if (!item)
        return crail_flag(c, CRAIL_OPF_WAIT) ? CRAIL_META_WAIT : CRAIL_E_NOT_FOUND;
    crail_node_touch(c->m, item);
    if (!crail_hold_add(c->m, c->s, CRAIL_HOLD_ITEM, c->op->arg0, item))
        return CRAIL_E_NO_MEMORY;
    unfree(c->m, item);
    item_of(c->m, item)->state = CRAIL_ITEM_TAKEN;
    return answer_item(c, item);
}

int crail_op_ack(struct crail_call *c) {
    crail_ref item, hold = crail_hold_find(c->m, c->s, c->op->arg0);
    int rc = hold ? held_item(c, hold, &item) : CRAIL_E_NOT_FOUND;
    if (rc)
        return rc;
    crail_hold_end(c->m, hold, CRAIL_HOLD_NODE_GONE); /* it goes: so it does not come back */
    crail_tree_remove(c->m, item);
    return 0;
}

/* ---- fsck ----------------------------------------------------------------------------- */

static uint32_t holds_of(const struct crail_meta *m, const struct crail_node *n) {
    uint32_t holds = 0;
    for (crail_ref h = n->extra ? crail_extra_at(m, n->extra)->holds : 0; h; h = crail_hold_at(m, h)->node_next)
        holds += crail_hold_at(m, h)->kind == CRAIL_HOLD_ITEM;
    return holds;
}

/* Is this returned item where the heap's order wants it? */
static bool heap_is_right_at(const struct crail_meta *m, const struct crail_node *queue, crail_ref ref) {
    const struct crail_item *item = item_of(m, ref);
    uint32_t left = rank_of(m, item->left), right = rank_of(m, item->right);
    if (left < right || item->rank != right + 1)
        return false;
    if (!item->up)
        return queue->queue.returned == ref;
    const struct crail_item *above = item_of(m, item->up);
    return above->state == CRAIL_ITEM_RETURNED && (above->left == ref) != (above->right == ref) &&
           is_older(m, item->up, ref);
}

const char *crail_queue_check(const struct crail_meta *m, crail_ref ref) {
    const struct crail_node *queue = crail_node_at(m, ref);
    bool may_be_fresh = true, reachable = crail_tree_reachable(m, ref);
    crail_ref oldest_fresh = 0;
    uint64_t returned = 0, before = UINT64_MAX;
    for (crail_ref i = queue->first_child; i; i = crail_node_at(m, i)->sib_next) {
        const struct crail_node *n = crail_node_at(m, i);
        if (!(n->flags & CRAIL_NODE_ITEM) || !crail_node_is_leaf(n) || n->version >= before)
            return "its items are out of order";
        before = n->version;
        may_be_fresh &= n->item.state == CRAIL_ITEM_FRESH;
        if (n->item.state == CRAIL_ITEM_FRESH) {
            if (!may_be_fresh)
                return "a fresh item is older than one that was taken";
            oldest_fresh = i;
        }
        if (n->item.state == CRAIL_ITEM_RETURNED && !heap_is_right_at(m, queue, i))
            return "an item that came back is misplaced";
        returned += n->item.state == CRAIL_ITEM_RETURNED;
        if (reachable && holds_of(m, n) != (n->item.state == CRAIL_ITEM_TAKEN))
            return "an item is held though it is free, or taken by nobody";
    }
    if (queue->queue.fresh != oldest_fresh || !queue->queue.returned != !returned)
        return "its free items are lost";
    return NULL;
}
