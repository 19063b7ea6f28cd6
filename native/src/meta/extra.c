/* The extras of nodes: made when somebody has something to say, freed when nothing is left of it. */
#include "meta/engine.h"

struct crail_extra *crail_extra_make(struct crail_meta *m, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    if (n->extra)
        return crail_extra_at(m, n->extra);
    crail_ref extra = crail_arena_alloc(&m->arena, sizeof(struct crail_extra));
    if (!extra)
        return NULL;
    n->extra = extra;
    struct crail_extra *x = crail_extra_at(m, extra);
    memset(x, 0, sizeof(*x));
    x->node = ref;
    return x;
}

static void release(struct crail_meta *m, struct crail_node *n) {
    crail_arena_free(&m->arena, n->extra, sizeof(struct crail_extra));
    n->extra = 0;
}

bool crail_extra_says_nothing(const struct crail_extra *x) {
    return !x->holds && !x->options && !x->job && !x->attributes;
}

void crail_extra_tidy(struct crail_meta *m, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    if (n->extra && crail_extra_says_nothing(crail_extra_at(m, n->extra)))
        release(m, n);
}

void crail_extra_free(struct crail_meta *m, struct crail_node *n) {
    assert(!crail_extra_at(m, n->extra)->holds);
    release(m, n);
}
