/* The extras of nodes: made when somebody has something to say, freed when nothing is left of it. */
#include "meta/engine.h"

crail_ref crail_extra_spare(struct crail_meta *m) {
    return crail_arena_alloc(&m->arena, sizeof(struct crail_extra));
}

struct crail_extra *crail_extra_give(struct crail_meta *m, crail_ref ref, crail_ref spare) {
    struct crail_node *n = crail_node_at(m, ref);
    if (n->extra) {
        crail_arena_free(&m->arena, spare, sizeof(struct crail_extra));
        return crail_extra_at(m, n->extra);
    }
    n->extra = spare;
    struct crail_extra *x = crail_extra_at(m, spare);
    memset(x, 0, sizeof(*x));
    x->node = ref;
    return x;
}

struct crail_extra *crail_extra_make(struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    if (n->extra)
        return crail_extra_at(m, n->extra);
    crail_ref spare = crail_extra_spare(m);
    return spare ? crail_extra_give(m, ref, spare) : NULL;
}

static void release(struct crail_meta *m, struct crail_node *n) {
    crail_arena_free(&m->arena, n->extra, sizeof(struct crail_extra));
    n->extra = 0;
}

bool crail_extra_says_nothing(const struct crail_extra *x) {
    return !x->holds && !x->options && !x->job && !x->attributes && !x->own_job && !x->due;
}

void crail_extra_tidy(struct crail_meta *m, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    if (n->extra && crail_extra_says_nothing(crail_extra_at(m, n->extra)))
        release(m, n);
}

void crail_extra_free(struct crail_meta *m, struct crail_node *n) {
    struct crail_extra *x = crail_extra_at(m, n->extra);
    assert(!x->holds);
    crail_life_leave(m, x);
    crail_attributes_free(m, x);
    release(m, n);
}
