/* Paths: what is well formed, and where it leads.
 *
 * A path begins with "/", is UTF-8, has no NUL, no empty component, no "." or "..", no component above 255 bytes, and
 * no slash at its end. "/" alone is the root. */
#include "meta/engine.h"

#include <stdlib.h>

/* ---- syntax --------------------------------------------------------------- */

static bool is_continuation(uint8_t c) {
    return (c & 0xc0) == 0x80;
}

/* Bytes of the UTF-8 sequence that begins at p with a byte above 0x7f; 0 if it is malformed, overlong, a surrogate
 * or beyond U+10FFFF. */
static uint32_t utf8_sequence(const uint8_t *p, uint32_t left) {
    uint8_t c = p[0];
    if (c >= 0xc2 && c <= 0xdf)
        return left >= 2 && is_continuation(p[1]) ? 2 : 0;
    if (c >= 0xe0 && c <= 0xef) {
        if (left < 3 || !is_continuation(p[1]) || !is_continuation(p[2]))
            return 0;
        if ((c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f))
            return 0;
        return 3;
    }
    if (c >= 0xf0 && c <= 0xf4) {
        if (left < 4 || !is_continuation(p[1]) || !is_continuation(p[2]) || !is_continuation(p[3]))
            return 0;
        if ((c == 0xf0 && p[1] < 0x90) || (c == 0xf4 && p[1] > 0x8f))
            return 0;
        return 4;
    }
    return 0;
}

/* Eight bytes at once that are all in 0x01..0x7f. */
static bool plain_ascii8(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return !((v | (v - 0x0101010101010101ull)) & 0x8080808080808080ull);
}

bool crail_path_text_valid(const char *text, uint32_t len) {
    const uint8_t *p = (const uint8_t *)text, *end = p + len;
    while (p < end) {
        if (end - p >= 8 && plain_ascii8(p)) {
            p += 8;
        } else if (*p && *p < 0x80) {
            p++;
        } else {
            uint32_t n = *p ? utf8_sequence(p, (uint32_t)(end - p)) : 0;
            if (!n)
                return false;
            p += n;
        }
    }
    return true;
}

/* The length of one component is in bounds and it is neither "." nor "..". */
static bool component_valid(const char *p, uint32_t len) {
    if (len == 0 || len > CRAIL_NAME_MAX)
        return false;
    return !(p[0] == '.' && (len == 1 || (len == 2 && p[1] == '.')));
}

bool crail_path_name_valid(const char *name, uint32_t len) {
    return component_valid(name, len) && !memchr(name, '/', len) && crail_path_text_valid(name, len);
}

/* Length of the component at p, up to the next slash or the end. */
static uint32_t component_len(const char *p, const char *end) {
    const char *slash = memchr(p, '/', (size_t)(end - p));
    return (uint32_t)((slash ? slash : end) - p);
}

/* Components and text of "/a/b/c", or of nothing at all. */
static bool components_valid(const char *path, uint32_t len) {
    const char *end = path + len;
    for (const char *p = path; p < end;) {
        p++;
        uint32_t n = component_len(p, end);
        if (!component_valid(p, n))
            return false;
        p += n;
    }
    return crail_path_text_valid(path, len);
}

/* ---- the latest directories ------------------------------------------------- */

static uint32_t prefix_hash(const struct crail_meta *m, const char *text, uint32_t len) {
    return (uint32_t)crail_names_hash_text(m, text, len);
}

static struct crail_prefix *prefix_slot(const struct crail_meta *m, uint32_t hash) {
    return &m->prefixes[hash % CRAIL_PREFIX_SLOTS];
}

static crail_ref prefix_find(const struct crail_meta *m, uint32_t hash, const char *text, uint32_t len) {
    const struct crail_prefix *p = prefix_slot(m, hash);
    bool hit = p->shape == m->shape && p->hash == hash && p->len == len && memcmp(p->text, text, len) == 0;
    return hit ? p->dir : 0;
}

static void prefix_keep(struct crail_meta *m, uint32_t hash, const char *text, uint32_t len, crail_ref dir) {
    struct crail_prefix *p = prefix_slot(m, hash);
    p->shape = m->shape;
    p->hash = hash;
    p->dir = dir;
    p->len = len;
    memcpy(p->text, text, len);
}

void crail_path_forget(struct crail_meta *m) {
    m->shape++;
}

/* ---- walking ------------------------------------------------------------------ */

/* Follows the directories of `path` (valid, without the last component). 0, NOT_FOUND with w->gap, NOT_CONTAINER. */
static int walk_directories(struct crail_meta *m, const char *path, uint32_t len, struct crail_walk *w) {
    const char *end = path + len;
    w->dir = m->root;
    for (const char *p = path; p < end;) {
        p++;
        uint32_t n = component_len(p, end);
        crail_ref next = crail_names_find(m, w->dir, crail_names_hash(m, w->dir, p, n), p, n);
        if (!next) {
            w->gap = (uint32_t)(p - path);
            return CRAIL_E_NOT_FOUND;
        }
        if (!crail_node_is_container(crail_node_at(m, next)))
            return CRAIL_E_NOT_CONTAINER;
        w->dir = next;
        p += n;
    }
    return 0;
}

/* Finds the directory of the last component, at best without looking at the tree or checking the text again. */
static int walk_to_parent(struct crail_meta *m, const char *path, uint32_t len, struct crail_walk *w) {
    if (len > CRAIL_PREFIX_BYTES)
        return components_valid(path, len) ? walk_directories(m, path, len, w) : CRAIL_E_INVALID_PATH;
    uint32_t hash = prefix_hash(m, path, len);
    w->dir = prefix_find(m, hash, path, len);
    if (w->dir)
        return 0;
    if (!components_valid(path, len))
        return CRAIL_E_INVALID_PATH;
    int rc = walk_directories(m, path, len, w);
    if (rc == 0)
        prefix_keep(m, hash, path, len, w->dir);
    return rc;
}

int crail_path_walk(struct crail_meta *m, const char *path, uint32_t len, struct crail_walk *w) {
    *w = (struct crail_walk){0};
    if (len == 0 || len > CRAIL_PATH_MAX || path[0] != '/')
        return CRAIL_E_INVALID_PATH;
    if (len == 1) {
        w->node = m->root;
        return 0;
    }
    const char *slash = memrchr(path, '/', len);
    w->name = slash + 1;
    w->name_len = (uint32_t)(path + len - w->name);
    if (!component_valid(w->name, w->name_len) || !crail_path_text_valid(w->name, w->name_len))
        return CRAIL_E_INVALID_PATH;
    int rc = walk_to_parent(m, path, (uint32_t)(slash - path), w);
    if (rc)
        return rc;
    w->hash = crail_names_hash(m, w->dir, w->name, w->name_len);
    w->node = crail_names_find(m, w->dir, w->hash, w->name, w->name_len);
    return 0;
}

/* ---- fetching ahead -------------------------------------------------------------- */

/* An announced lookup goes through its stages while later ones are announced: the directory's slot, the bucket, the
 * node, the value; or the next node of the chain, and then its value. AHEAD_STAGE announcements are between two of
 * them, time enough for memory to answer. What was noted may be outdated by the next stage, and what a ref names may
 * be anything by then: only slots, buckets and memory of the arena are read, and a fetch never faults. A directory
 * without a slot is not fetched for: the operation itself will give it one. */

#define AHEAD_STAGE 4u
_Static_assert(4 * AHEAD_STAGE < CRAIL_META_AHEAD, "the last stage comes before the operation");

static void fetch_node(const struct crail_meta *m, crail_ref ref) {
    const uint8_t *node = crail_arena_at(&m->arena, ref);
    __builtin_prefetch(node);
    __builtin_prefetch(node + 64);
}

static void ahead_bucket(struct crail_meta *m, struct crail_ahead *a) {
    const struct crail_prefix *p = prefix_slot(m, a->prefix);
    if (!a->name || p->hash != a->prefix || p->shape != m->shape)
        return;
    a->dir = p->dir;
    a->hash = crail_names_hash_in(m, a->dir, a->name);
    __builtin_prefetch(crail_names_bucket(m, a->hash));
}

static void ahead_node(struct crail_meta *m, struct crail_ahead *a) {
    if (!a->dir)
        return;
    a->node = *crail_names_bucket(m, a->hash);
    fetch_node(m, a->node);
}

static void ahead_value(struct crail_meta *m, struct crail_ahead *a) {
    if (!a->node || !crail_arena_holds(&m->arena, a->node, sizeof(struct crail_node)))
        return;
    const struct crail_node *n = crail_node_at(m, a->node);
    if (n->hash != a->hash) {
        a->node = n->hash_next;
        fetch_node(m, a->node);
        return;
    }
    if (n->kind == CRAIL_KIND_FILE && n->data)
        __builtin_prefetch(crail_arena_at(&m->arena, n->data));
    a->node = 0;
}

static struct crail_ahead *announced(struct crail_meta *m, uint32_t stage) {
    return &m->ahead[(m->ahead_next + CRAIL_META_AHEAD - stage * AHEAD_STAGE) % CRAIL_META_AHEAD];
}

void crail_meta_prefetch(struct crail_meta *m, const struct crail_op *op, const char *path) {
    struct crail_ahead *a = announced(m, 0);
    uint32_t len = op->path_len;
    const char *slash = len > 1 && len <= CRAIL_PATH_MAX && path[0] == '/' ? memrchr(path, '/', len) : NULL;
    *a = (struct crail_ahead){0};
    if (slash) {
        a->prefix = prefix_hash(m, path, (uint32_t)(slash - path));
        a->name = crail_names_hash_text(m, slash + 1, (uint32_t)(path + len - slash - 1));
        __builtin_prefetch(prefix_slot(m, a->prefix));
    }
    ahead_bucket(m, announced(m, 1));
    ahead_node(m, announced(m, 2));
    ahead_value(m, announced(m, 3));
    ahead_value(m, announced(m, 4));
    m->ahead_next = (m->ahead_next + 1) % CRAIL_META_AHEAD;
}
