/* Children of a directory in order of their names.
 *
 * Small directories are sorted on the spot. A larger one gets an index at its first listing: one pass over the
 * children finds the prefix that their names share, a second one fills the B+tree (btree.c). Both passes go along the
 * list of siblings, which grows at its head only: what is added meanwhile lies behind the cursor, so in the second
 * pass it is put into the tree at once; what the cursor points at and goes away moves the cursor on.
 *
 * An index that has not been asked for a minute is dropped, so is one that ran out of memory. */
#include "meta/engine.h"

#include <stdlib.h>

#define PREFIX_PER_STEP 64u
#define FILL_PER_STEP 16u

static struct crail_index *index_at(const struct crail_meta *m, crail_ref ref) {
    return crail_arena_at(&m->arena, ref);
}

/* ---- small directories ----------------------------------------------------------- */

static int compare_children(const void *a, const void *b, void *context) {
    const struct crail_meta *m = context;
    const struct crail_node *x = crail_node_at(m, *(const crail_ref *)a);
    const struct crail_node *y = crail_node_at(m, *(const crail_ref *)b);
    return crail_name_compare(crail_node_name(m, x), x->name_len, crail_node_name(m, y), y->name_len);
}

static uint32_t page_sorted(struct crail_meta *m, const struct crail_node *dir, const char *after, uint32_t after_len,
                            uint32_t max, crail_ref *out) {
    crail_ref child[CRAIL_INDEX_SORT_MAX];
    uint32_t n = 0;
    for (crail_ref ref = dir->first_child; ref; ref = crail_node_at(m, ref)->sib_next) {
        const struct crail_node *c = crail_node_at(m, ref);
        if (crail_name_compare(crail_node_name(m, c), c->name_len, after, after_len) > 0)
            child[n++] = ref;
    }
    qsort_r(child, n, sizeof(child[0]), compare_children, m);
    n = n < max ? n : max;
    memcpy(out, child, n * sizeof(child[0]));
    return n;
}

/* ---- lists of indexes -------------------------------------------------------------- */

static void building_push(struct crail_meta *m, crail_ref ref) {
    struct crail_index *ix = index_at(m, ref);
    ix->prev = 0;
    ix->next = m->building;
    if (m->building)
        index_at(m, m->building)->prev = ref;
    m->building = ref;
    m->indexes_building++;
}

static void building_remove(struct crail_meta *m, struct crail_index *ix) {
    if (ix->prev)
        index_at(m, ix->prev)->next = ix->next;
    else
        m->building = ix->next;
    if (ix->next)
        index_at(m, ix->next)->prev = ix->prev;
    m->indexes_building--;
}

static void recent_push(struct crail_meta *m, crail_ref ref) {
    struct crail_index *ix = index_at(m, ref);
    ix->prev = 0;
    ix->next = m->index_recent;
    if (m->index_recent)
        index_at(m, m->index_recent)->prev = ref;
    else
        m->index_stale = ref;
    m->index_recent = ref;
}

static void recent_remove(struct crail_meta *m, struct crail_index *ix) {
    if (ix->prev)
        index_at(m, ix->prev)->next = ix->next;
    else
        m->index_recent = ix->next;
    if (ix->next)
        index_at(m, ix->next)->prev = ix->prev;
    else
        m->index_stale = ix->prev;
}

static void index_touch(struct crail_meta *m, crail_ref ref) {
    struct crail_index *ix = index_at(m, ref);
    ix->listed_ns = m->now_ns;
    if (ix->state == CRAIL_INDEX_READY && m->index_recent != ref) {
        recent_remove(m, ix);
        recent_push(m, ref);
    }
}

/* ---- building ------------------------------------------------------------------------ */

static int index_start(struct crail_meta *m, crail_ref dir_ref) {
    struct crail_node *dir = crail_node_at(m, dir_ref);
    crail_ref ref = crail_arena_alloc(&m->arena, sizeof(struct crail_index));
    if (!ref)
        return -CRAIL_E_NO_MEMORY;
    struct crail_index *ix = index_at(m, ref);
    const struct crail_node *first = crail_node_at(m, dir->first_child);
    memset(ix, 0, sizeof(*ix));
    ix->dir = dir_ref;
    ix->cursor = dir->first_child;
    ix->state = CRAIL_INDEX_PREFIX;
    ix->prefix_len = first->name_len;
    memcpy(ix->prefix, crail_node_name(m, first), first->name_len);
    dir->index = ref;
    building_push(m, ref);
    return 0;
}

void crail_index_drop(struct crail_meta *m, struct crail_node *dir) {
    struct crail_index *ix = index_at(m, dir->index);
    if (ix->state == CRAIL_INDEX_READY)
        recent_remove(m, ix);
    else
        building_remove(m, ix);
    crail_btree_drop(m, ix);
    crail_arena_free(&m->arena, dir->index, sizeof(*ix));
    dir->index = 0;
}

/* First pass, one child: shortens the prefix to what this name shares with it. */
static void prefix_fold(struct crail_meta *m, struct crail_index *ix) {
    const struct crail_node *c = crail_node_at(m, ix->cursor);
    const char *name = crail_node_name(m, c);
    uint32_t n = 0;
    while (n < ix->prefix_len && n < c->name_len && name[n] == ix->prefix[n])
        n++;
    ix->prefix_len = (uint8_t)n;
    ix->cursor = c->sib_next;
}

/* Second pass, one child. */
static int fill_one(struct crail_meta *m, struct crail_index *ix) {
    crail_ref ref = ix->cursor;
    ix->cursor = crail_node_at(m, ref)->sib_next;
    if (ix->cursor) {
        __builtin_prefetch(crail_node_at(m, ix->cursor));
        __builtin_prefetch(&crail_node_at(m, ix->cursor)->id);
    }
    return crail_btree_insert(m, ix, ref);
}

/* Goes on for up to `max` children; when the last pass is through the index is ready. -ENOMEM drops it. */
static int build_some(struct crail_meta *m, crail_ref ref) {
    struct crail_index *ix = index_at(m, ref);
    struct crail_node *dir = crail_node_at(m, ix->dir);
    if (ix->state == CRAIL_INDEX_PREFIX) {
        for (uint32_t i = 0; i < PREFIX_PER_STEP && ix->cursor && ix->prefix_len; i++)
            prefix_fold(m, ix);
        if (ix->cursor && ix->prefix_len)
            return 0;
        ix->state = CRAIL_INDEX_FILL;
        ix->cursor = dir->first_child;
    }
    for (uint32_t i = 0; i < FILL_PER_STEP && ix->cursor; i++) {
        if (fill_one(m, ix)) {
            crail_index_drop(m, dir);
            dir->flags |= CRAIL_NODE_INDEX_FAILED; /* whoever waits for it shall be told */
            return -ENOMEM;
        }
    }
    if (!ix->cursor) {
        building_remove(m, ix);
        ix->state = CRAIL_INDEX_READY;
        ix->listed_ns = m->now_ns;
        recent_push(m, ref);
    }
    return 0;
}

bool crail_index_step(struct crail_meta *m) {
    if (m->building)
        build_some(m, m->building);
    return m->building != 0;
}

/* ---- kept up ---------------------------------------------------------------------------- */

void crail_index_added(struct crail_meta *m, struct crail_node *dir, crail_ref child) {
    struct crail_index *ix = index_at(m, dir->index);
    if (ix->state != CRAIL_INDEX_PREFIX && crail_btree_insert(m, ix, child))
        crail_index_drop(m, dir);
}

void crail_index_removing(struct crail_meta *m, struct crail_node *dir, crail_ref child) {
    struct crail_index *ix = index_at(m, dir->index);
    if (ix->cursor == child)
        ix->cursor = crail_node_at(m, child)->sib_next;
    bool was_in = crail_btree_remove(m, ix, child);
    assert(was_in || ix->state != CRAIL_INDEX_READY);
    (void)was_in;
}

void crail_index_drop_cold(struct crail_meta *m) {
    if (!m->index_stale)
        return;
    struct crail_index *ix = index_at(m, m->index_stale);
    if (m->now_ns - ix->listed_ns > CRAIL_INDEX_COLD_NS)
        crail_index_drop(m, crail_node_at(m, ix->dir));
}

/* ---- pages -------------------------------------------------------------------------------- */

int crail_index_page(struct crail_meta *m, crail_ref dir_ref, const char *after, uint32_t after_len, uint32_t max,
                     crail_ref *out, uint32_t *n) {
    struct crail_node *dir = crail_node_at(m, dir_ref);
    if (!dir->index && dir->size <= CRAIL_INDEX_SORT_MAX) {
        *n = page_sorted(m, dir, after, after_len, max, out);
        return 0;
    }
    bool failed = dir->flags & CRAIL_NODE_INDEX_FAILED;
    dir->flags &= (uint8_t)~CRAIL_NODE_INDEX_FAILED;
    if (failed || (!dir->index && index_start(m, dir_ref)))
        return -CRAIL_E_NO_MEMORY;
    bool at_once = dir->size <= CRAIL_INDEX_BUILD_MAX;
    while (at_once && index_at(m, dir->index)->state != CRAIL_INDEX_READY)
        if (build_some(m, dir->index))
            return -CRAIL_E_NO_MEMORY;
    index_touch(m, dir->index);
    struct crail_index *ix = index_at(m, dir->index);
    if (ix->state != CRAIL_INDEX_READY)
        return CRAIL_META_AGAIN;
    *n = crail_btree_after(m, ix, after, after_len, max, out);
    return 0;
}
