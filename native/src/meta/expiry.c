/* Extras in the order of their expiry: a binary heap whose cells lie in chunks of the arena, so that growing never
 * moves anything. Each extra knows its place. */
#include "meta/engine.h"

static crail_ref *cell(const struct crail_meta *m, uint32_t i) {
    crail_ref *cells = crail_arena_at(&m->arena, m->expiry.segment[i / CRAIL_EXPIRY_SEGMENT]);
    return &cells[i % CRAIL_EXPIRY_SEGMENT];
}

static int64_t time_at(const struct crail_meta *m, uint32_t i) {
    return crail_extra_at(m, *cell(m, i))->expires_ns;
}

static void place(struct crail_meta *m, uint32_t i, crail_ref ref) {
    *cell(m, i) = ref;
    crail_extra_at(m, ref)->due = i + 1;
}

/* Finds the place for `ref`, beginning at `i`, whose cell is free to take. */
static void settle(struct crail_meta *m, uint32_t i, crail_ref ref) {
    int64_t at = crail_extra_at(m, ref)->expires_ns;
    for (; i && time_at(m, (i - 1) / 2) > at; i = (i - 1) / 2)
        place(m, i, *cell(m, (i - 1) / 2));
    for (uint32_t child; (child = 2 * i + 1) < m->expiry.count; i = child) {
        child += child + 1 < m->expiry.count && time_at(m, child + 1) < time_at(m, child);
        if (time_at(m, child) >= at)
            break;
        place(m, i, *cell(m, child));
    }
    place(m, i, ref);
}

int crail_expiry_reserve(struct crail_meta *m) {
    uint32_t i = m->expiry.count / CRAIL_EXPIRY_SEGMENT;
    if (i == CRAIL_EXPIRY_SEGMENTS_MAX)
        return CRAIL_E_NO_MEMORY;
    if (!m->expiry.segment[i])
        m->expiry.segment[i] = crail_arena_alloc(&m->arena, CRAIL_ARENA_CHUNK);
    return m->expiry.segment[i] ? 0 : CRAIL_E_NO_MEMORY;
}

/* Gives back the segments behind the last one in use, that of a reservation too. */
static void shrink(struct crail_meta *m) {
    uint32_t used = (m->expiry.count + CRAIL_EXPIRY_SEGMENT - 1) / CRAIL_EXPIRY_SEGMENT;
    for (uint32_t i = used; i < used + 2 && i < CRAIL_EXPIRY_SEGMENTS_MAX && m->expiry.segment[i]; i++) {
        crail_arena_free(&m->arena, m->expiry.segment[i], CRAIL_ARENA_CHUNK);
        m->expiry.segment[i] = 0;
    }
}

static void take_out(struct crail_meta *m, struct crail_extra *x) {
    uint32_t i = x->due - 1, last = --m->expiry.count;
    crail_ref moved = *cell(m, last);
    x->due = 0;
    x->expires_ns = 0;
    if (i != last)
        settle(m, i, moved);
    shrink(m);
}

void crail_expiry_set(struct crail_meta *m, struct crail_extra *x, int64_t expires_ns) {
    assert(expires_ns >= 0);
    if (expires_ns == 0) {
        if (x->due)
            take_out(m, x);
        return;
    }
    x->expires_ns = expires_ns;
    uint32_t i = x->due ? x->due - 1 : m->expiry.count++;
    settle(m, i, crail_node_at(m, x->node)->extra);
}

crail_ref crail_expiry_first(const struct crail_meta *m) {
    return m->expiry.count ? crail_extra_at(m, *cell(m, 0))->node : 0;
}
