/* The B+tree behind the ordered index of one directory. Its entries are the children, in byte order of their names.
 *
 * Beside each entry stands a key: the eight bytes of the name that follow the index's prefix, big-endian. Keys are
 * monotone in the names (a name before the prefix has 0, one after it the largest), so a comparison of keys decides
 * unless they are equal; only then the names are looked at.
 *
 * The key of an inner entry is a lower bound of what is below it and at least as large as the keys left of it; among
 * equal keys the first name below decides. The first key of an inner node is never looked at. A tree node is freed
 * when it is empty; half-empty ones are left alone. */
#include "meta/engine.h"

#include <stdio.h>

#define FANOUT 169u
#define DEPTH_MAX 8u

struct tree_node {
    uint16_t n;
    uint16_t level;       /* 0: a leaf */
    crail_ref prev, next; /* among leaves; `next` also in the list of dying trees */
    uint32_t reserved;
    uint64_t key[FANOUT];
    crail_ref ref[FANOUT]; /* children: nodes of the namespace in a leaf, tree nodes above */
};
#define TREE_NODE_BYTES 2048u
_Static_assert(sizeof(struct tree_node) <= TREE_NODE_BYTES, "one record of the arena");

/* A name with its key. */
struct want {
    uint64_t key;
    const char *name;
    uint32_t len;
};

static struct tree_node *tree_at(const struct crail_meta *m, crail_ref ref) {
    return crail_arena_at(&m->arena, ref);
}

/* ---- order ------------------------------------------------------------------- */

static uint64_t key_of(const struct crail_index *ix, const char *name, uint32_t len) {
    uint32_t common = len < ix->prefix_len ? len : ix->prefix_len;
    int c = memcmp(name, ix->prefix, common);
    if (c > 0)
        return UINT64_MAX;
    if (c < 0 || len < ix->prefix_len)
        return 0;
    uint64_t key = 0;
    uint32_t rest = len - common;
    memcpy(&key, name + common, rest < 8 ? rest : 8);
    return __builtin_bswap64(key);
}

static struct want want_name(const struct crail_index *ix, const char *name, uint32_t len) {
    return (struct want){key_of(ix, name, len), name, len};
}

static struct want want_child(const struct crail_meta *m, const struct crail_index *ix, crail_ref child) {
    const struct crail_node *n = crail_node_at(m, child);
    return want_name(ix, crail_node_name(m, n), n->name_len);
}

/* Compares the name of a child with what is wanted. */
static int child_compare(const struct crail_meta *m, crail_ref child, const struct want *w) {
    const struct crail_node *n = crail_node_at(m, child);
    return crail_name_compare(crail_node_name(m, n), n->name_len, w->name, w->len);
}

/* The first child of the namespace below a tree node, which is not empty. */
static crail_ref first_below(const struct crail_meta *m, crail_ref ref) {
    const struct tree_node *t = tree_at(m, ref);
    while (t->level)
        t = tree_at(m, t->ref[0]);
    return t->ref[0];
}

/* The branch of an inner node that the name belongs to. */
static uint32_t branch_of(const struct crail_meta *m, const struct tree_node *t, const struct want *w) {
    uint32_t lo = 1, hi = t->n;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        bool at_or_before = t->key[mid] < w->key;
        if (t->key[mid] == w->key)
            at_or_before = child_compare(m, first_below(m, t->ref[mid]), w) <= 0;
        if (at_or_before)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo - 1;
}

/* The first place in a leaf that is not before the name. */
static uint32_t place_of(const struct crail_meta *m, const struct tree_node *t, const struct want *w) {
    uint32_t lo = 0, hi = t->n;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        bool before = t->key[mid] < w->key;
        if (t->key[mid] == w->key)
            before = child_compare(m, t->ref[mid], w) < 0;
        if (before)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The way from the root to a leaf. */
struct way {
    uint32_t depth; /* tree nodes above the leaf */
    crail_ref node[DEPTH_MAX];
    uint32_t branch[DEPTH_MAX]; /* in the leaf: the place */
};

static void find_way(const struct crail_meta *m, const struct crail_index *ix, const struct want *w, struct way *way) {
    crail_ref ref = ix->root;
    way->depth = 0;
    for (;;) {
        const struct tree_node *t = tree_at(m, ref);
        assert(way->depth < DEPTH_MAX);
        way->node[way->depth] = ref;
        if (!t->level)
            break;
        way->branch[way->depth] = branch_of(m, t, w);
        ref = t->ref[way->branch[way->depth++]];
    }
    way->branch[way->depth] = place_of(m, tree_at(m, ref), w);
}

/* ---- inserting ------------------------------------------------------------------ */

static crail_ref tree_new(struct crail_meta *m, uint32_t level) {
    crail_ref ref = crail_arena_alloc(&m->arena, TREE_NODE_BYTES);
    if (ref)
        memset(tree_at(m, ref), 0, offsetof(struct tree_node, key));
    if (ref)
        tree_at(m, ref)->level = (uint16_t)level;
    return ref;
}

static void entry_put(struct tree_node *t, uint32_t at, uint64_t key, crail_ref ref) {
    uint32_t after = t->n - at;
    assert(t->n < FANOUT && at <= t->n);
    memmove(&t->key[at + 1], &t->key[at], after * sizeof(t->key[0]));
    memmove(&t->ref[at + 1], &t->ref[at], after * sizeof(t->ref[0]));
    t->key[at] = key;
    t->ref[at] = ref;
    t->n++;
}

static void entry_cut(struct tree_node *t, uint32_t at) {
    uint32_t after = t->n - at - 1;
    memmove(&t->key[at], &t->key[at + 1], after * sizeof(t->key[0]));
    memmove(&t->ref[at], &t->ref[at + 1], after * sizeof(t->ref[0]));
    t->n--;
}

/* Moves the upper part of a full node to the fresh one on its right. Where names come in order the part is small (or
 * large), so that the nodes left behind are full. Returns how many entries stay. */
static uint32_t split(struct crail_meta *m, crail_ref left_ref, crail_ref right_ref, uint32_t at) {
    struct tree_node *left = tree_at(m, left_ref), *right = tree_at(m, right_ref);
    uint32_t keep = FANOUT / 2;
    if (at == FANOUT)
        keep = FANOUT - 1;
    else if (at <= 1)
        keep = 1;
    right->n = (uint16_t)(FANOUT - keep);
    memcpy(right->key, &left->key[keep], right->n * sizeof(right->key[0]));
    memcpy(right->ref, &left->ref[keep], right->n * sizeof(right->ref[0]));
    left->n = (uint16_t)keep;
    if (!left->level) {
        right->prev = left_ref;
        right->next = left->next;
        if (left->next)
            tree_at(m, left->next)->prev = right_ref;
        left->next = right_ref;
    }
    return keep;
}

/* Gets the tree nodes that inserting on this way will need: one per full node, and one for a new root. */
static int reserve_fresh(struct crail_meta *m, const struct way *way, crail_ref *fresh, uint32_t *n) {
    uint32_t need = 0;
    int32_t d = (int32_t)way->depth;
    while (d >= 0 && tree_at(m, way->node[d])->n == FANOUT) {
        need++;
        d--;
    }
    if (d < 0)
        need++;
    for (*n = 0; *n < need; ++*n) {
        fresh[*n] = tree_new(m, 0);
        if (!fresh[*n]) {
            while (*n)
                crail_arena_free(&m->arena, fresh[--*n], TREE_NODE_BYTES);
            return -ENOMEM;
        }
    }
    return 0;
}

static void grow_root(struct crail_meta *m, struct crail_index *ix, crail_ref root, uint64_t key, crail_ref right) {
    struct tree_node *t = tree_at(m, root);
    t->level = (uint16_t)(tree_at(m, ix->root)->level + 1);
    t->n = 2;
    t->key[0] = 0;
    t->ref[0] = ix->root;
    t->key[1] = key;
    t->ref[1] = right;
    ix->root = root;
}

int crail_btree_insert(struct crail_meta *m, struct crail_index *ix, crail_ref child) {
    struct want w = want_child(m, ix, child);
    struct way way;
    crail_ref fresh[DEPTH_MAX + 1];
    uint32_t fresh_n;
    if (!ix->root && !(ix->root = tree_new(m, 0)))
        return -ENOMEM;
    find_way(m, ix, &w, &way);
    if (way.depth + 1 >= DEPTH_MAX || reserve_fresh(m, &way, fresh, &fresh_n))
        return -ENOMEM;
    uint64_t key = w.key;
    crail_ref ref = child;
    uint32_t at = way.branch[way.depth];
    ix->entries++;
    for (int32_t d = (int32_t)way.depth; d >= 0; d--) {
        crail_ref left = way.node[d];
        struct tree_node *t = tree_at(m, left);
        if (t->n < FANOUT) {
            entry_put(t, at, key, ref);
            assert(fresh_n == 0);
            return 0;
        }
        crail_ref right = fresh[--fresh_n];
        tree_at(m, right)->level = t->level;
        uint32_t keep = split(m, left, right, at);
        if (at <= keep)
            entry_put(t, at, key, ref);
        else
            entry_put(tree_at(m, right), at - keep, key, ref);
        key = tree_at(m, right)->key[0];
        ref = right;
        at = d ? way.branch[d - 1] + 1 : 0;
    }
    grow_root(m, ix, fresh[--fresh_n], key, ref);
    assert(fresh_n == 0);
    return 0;
}

/* ---- removing --------------------------------------------------------------------- */

static void leaf_unlink(struct crail_meta *m, const struct tree_node *t) {
    if (t->prev)
        tree_at(m, t->prev)->next = t->next;
    if (t->next)
        tree_at(m, t->next)->prev = t->prev;
}

bool crail_btree_remove(struct crail_meta *m, struct crail_index *ix, crail_ref child) {
    struct want w = want_child(m, ix, child);
    struct way way;
    if (!ix->root)
        return false;
    find_way(m, ix, &w, &way);
    uint32_t d = way.depth;
    struct tree_node *t = tree_at(m, way.node[d]);
    if (way.branch[d] == t->n || t->ref[way.branch[d]] != child)
        return false;
    ix->entries--;
    for (;; d--) {
        t = tree_at(m, way.node[d]);
        entry_cut(t, way.branch[d]);
        if (t->n)
            break;
        if (!t->level)
            leaf_unlink(m, t);
        crail_arena_free(&m->arena, way.node[d], TREE_NODE_BYTES);
        if (d == 0) {
            ix->root = 0;
            return true;
        }
    }
    while (ix->root && tree_at(m, ix->root)->level && tree_at(m, ix->root)->n == 1) {
        crail_ref old = ix->root;
        ix->root = tree_at(m, old)->ref[0];
        crail_arena_free(&m->arena, old, TREE_NODE_BYTES);
    }
    return true;
}

/* ---- reading ------------------------------------------------------------------------ */

uint32_t crail_btree_after(const struct crail_meta *m, const struct crail_index *ix, const char *name, uint32_t len,
                           uint32_t max, crail_ref *out) {
    struct want w = want_name(ix, name, len);
    struct way way;
    uint32_t n = 0;
    if (!ix->root)
        return 0;
    find_way(m, ix, &w, &way);
    const struct tree_node *t = tree_at(m, way.node[way.depth]);
    uint32_t at = way.branch[way.depth];
    if (at < t->n && t->key[at] == w.key && child_compare(m, t->ref[at], &w) == 0)
        at++;
    for (;;) {
        for (; at < t->n && n < max; at++)
            out[n++] = t->ref[at];
        if (n == max || !t->next)
            return n;
        t = tree_at(m, t->next);
        at = 0;
    }
}

/* ---- freeing in steps ------------------------------------------------------------------ */

static void dying_push(struct crail_meta *m, crail_ref ref) {
    tree_at(m, ref)->next = m->dying_trees;
    m->dying_trees = ref;
}

void crail_btree_drop(struct crail_meta *m, struct crail_index *ix) {
    if (ix->root)
        dying_push(m, ix->root);
    ix->root = 0;
}

bool crail_btree_free_step(struct crail_meta *m) {
    crail_ref ref = m->dying_trees;
    if (!ref)
        return false;
    struct tree_node *t = tree_at(m, ref);
    m->dying_trees = t->next;
    if (t->level)
        for (uint32_t i = 0; i < t->n; i++)
            dying_push(m, t->ref[i]);
    crail_arena_free(&m->arena, ref, TREE_NODE_BYTES);
    return m->dying_trees != 0;
}

/* ---- checking ------------------------------------------------------------------------------ */

static uint64_t bytes_below(const struct crail_meta *m, crail_ref ref) {
    const struct tree_node *t = tree_at(m, ref);
    uint64_t bytes = TREE_NODE_BYTES;
    for (uint32_t i = 0; t->level && i < t->n; i++)
        bytes += bytes_below(m, t->ref[i]);
    return bytes;
}

uint64_t crail_btree_dying_bytes(const struct crail_meta *m) {
    uint64_t bytes = 0;
    for (crail_ref ref = m->dying_trees; ref; ref = tree_at(m, ref)->next)
        bytes += bytes_below(m, ref);
    return bytes;
}

struct check {
    const struct crail_meta *m;
    const struct crail_index *ix;
    crail_ref last; /* child seen last */
    crail_ref last_leaf;
    uint64_t entries, bytes;
};

static bool check_leaf(struct check *c, const struct tree_node *t, crail_ref ref, uint64_t low, uint64_t high) {
    const struct crail_meta *m = c->m;
    if (t->prev != c->last_leaf || (c->last_leaf && tree_at(m, c->last_leaf)->next != ref))
        return false;
    c->last_leaf = ref;
    for (uint32_t i = 0; i < t->n; i++) {
        struct want w = want_child(m, c->ix, t->ref[i]);
        if (crail_node_at(m, t->ref[i])->parent != c->ix->dir || t->key[i] != w.key || w.key < low || w.key > high)
            return false;
        if (c->last && child_compare(m, c->last, &w) >= 0)
            return false;
        c->last = t->ref[i];
        c->entries++;
    }
    return true;
}

static bool check_below(struct check *c, crail_ref ref, uint64_t low, uint64_t high) {
    const struct tree_node *t = tree_at(c->m, ref);
    c->bytes += TREE_NODE_BYTES;
    if (t->n == 0 || t->n > FANOUT)
        return false;
    if (!t->level)
        return check_leaf(c, t, ref, low, high);
    for (uint32_t i = 0; i < t->n; i++) {
        uint64_t from = i ? t->key[i] : low, to = i + 1 < t->n ? t->key[i + 1] : high;
        if (from > to || from < low || to > high || tree_at(c->m, t->ref[i])->level + 1 != t->level)
            return false;
        if (!check_below(c, t->ref[i], from, to))
            return false;
    }
    return true;
}

int crail_btree_check(const struct crail_meta *m, const struct crail_index *ix, uint64_t *entries, uint64_t *bytes,
                      char *why, size_t why_bytes) {
    struct check c = {.m = m, .ix = ix};
    bool good = !ix->root || check_below(&c, ix->root, 0, UINT64_MAX);
    if (!good || c.entries != ix->entries || (c.last_leaf && tree_at(m, c.last_leaf)->next)) {
        snprintf(why, why_bytes, "the ordered index of node %llu is out of order",
                 (unsigned long long)crail_node_at(m, ix->dir)->id);
        return -EUCLEAN;
    }
    *entries = c.entries;
    *bytes += c.bytes;
    return 0;
}
