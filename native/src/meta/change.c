/* Who listens is told what changes. Costs one branch per change while nobody listens. */
#include "meta/engine.h"

void crail_meta_listener_set(struct crail_meta *m, struct crail_meta_listener listener) {
    assert(listener.changed && listener.made && !m->listening);
    m->listener = listener;
}

void crail_meta_listen(struct crail_meta *m, int by) {
    assert((by == 1 && m->listener.changed) || (by == -1 && m->listening));
    m->listening += (uint32_t)by;
}

void crail_change_tell(struct crail_meta *m, enum crail_event_kind kind, const char *path, uint32_t len,
                       uint64_t version) {
    m->listener.changed(m->listener.ctx, kind, path, len, version);
}

void crail_change_tell_node(struct crail_meta *m, enum crail_event_kind kind, crail_ref ref) {
    char path[CRAIL_PATH_MAX];
    uint32_t len = crail_tree_path(m, ref, path);
    if (len)
        crail_change_tell(m, kind, path, len, crail_node_at(m, ref)->version);
}

void crail_change_tell_made(struct crail_meta *m, const char *path, uint32_t len, crail_ref dir, uint32_t count) {
    uint64_t last = crail_node_at(m, dir)->version;
    assert(count && last >= count && last <= m->last_version);
    m->listener.made(m->listener.ctx, path, len, count, last - (count - 1));
}
