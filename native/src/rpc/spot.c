/* Spots: the paths that somebody is interested in, and what a change does to them (wait.h). */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/siphash.h"
#include "rpc/rpc.h"

#define RECHECK_AT_ONCE 64u /* spots below something that went that are looked at within the change itself */
#define RECHECK_SOME 16u

/* ---- finding ------------------------------------------------------------- */

static uint32_t hash_of(const struct crail_rpc_waits *w, const struct crail_rpc_spot *parent, const char *name,
                        uint32_t len) {
    uint64_t h = crail_siphash(w->key, name, len) ^ (parent->item.hash * 0x9e3779b97f4a7c15u);
    return (uint32_t)(h ^ h >> 32);
}

static struct crail_rpc_spot *find(const struct crail_rpc_waits *w, const struct crail_rpc_spot *parent,
                                   const char *name, uint32_t len, uint32_t hash) {
    for (struct crail_table_item *i = crail_table_find(&w->spots, hash); i; i = crail_table_again(i)) {
        struct crail_rpc_spot *s = CRAIL_TABLE_OF(i, struct crail_rpc_spot, item);
        if (s->parent == parent && s->name_len == len && memcmp(s->name, name, len) == 0)
            return s;
    }
    return NULL;
}

/* The next component of a path: *p stands before its slash, and behind it afterwards. False at the end. */
static bool next_name(const char **p, const char *end, const char **name, uint32_t *len) {
    if (end - *p <= 1) /* nothing, or the slash of the root */
        return false;
    *name = *p + 1;
    const char *slash = memchr(*name, '/', (size_t)(end - *name));
    *p = slash ? slash : end;
    *len = (uint32_t)(*p - *name);
    return true;
}

uint32_t crail_rpc_spot_path(const struct crail_rpc_spot *spot, char *out) {
    uint32_t len = 0;
    for (const struct crail_rpc_spot *s = spot; s->parent; s = s->parent)
        len += s->name_len + 1u;
    assert(len <= CRAIL_PATH_MAX);
    if (!len) {
        out[0] = '/';
        return 1;
    }
    uint32_t at = len;
    for (const struct crail_rpc_spot *s = spot; s->parent; s = s->parent) {
        at -= s->name_len;
        memcpy(out + at, s->name, s->name_len);
        out[--at] = '/';
    }
    return len;
}

/* ---- made and freed ------------------------------------------------------ */

static uint32_t bytes_of(uint32_t name_len) {
    return (uint32_t)sizeof(struct crail_rpc_spot) + name_len;
}

/* One that nobody refers to yet, but whose parent does not go any more. */
static struct crail_rpc_spot *make(struct crail_rpc_waits *w, struct crail_rpc_spot *parent, const char *name,
                                   uint32_t len, uint32_t hash) {
    struct crail_rpc_spot *s = calloc(1, bytes_of(len));
    if (!s)
        return NULL;
    s->item.hash = hash;
    if (parent && crail_table_insert(&w->spots, &s->item)) {
        free(s);
        return NULL;
    }
    s->parent = parent;
    s->name_len = (uint8_t)len;
    memcpy(s->name, name, len);
    crail_list_init(&s->children);
    crail_list_init(&s->sibling);
    crail_list_init(&s->recheck);
    for (int i = 0; i < CRAIL_RPC_LINES; i++) {
        struct crail_rpc_line *line = &s->line[i];
        crail_list_init(&line->waiters);
        crail_list_init(&line->mark);
        crail_list_init(&line->woken);
        line->spot = s;
    }
    if (parent) {
        crail_list_push(&parent->children, &s->sibling);
        parent->refs++;
    }
    return s;
}

void crail_rpc_spot_unref(crail_namenode *nn, struct crail_rpc_spot *spot) {
    struct crail_rpc_waits *w = &nn->waits;
    while (spot) {
        assert(spot->refs);
        if (--spot->refs)
            return;
        struct crail_rpc_spot *parent = spot->parent;
        assert(!spot->log && !spot->cursor && crail_list_empty(&spot->children));
        for (int i = 0; i < CRAIL_RPC_LINES; i++) {
            crail_list_remove(&spot->line[i].mark);
            crail_list_remove(&spot->line[i].woken);
            assert(crail_list_empty(&spot->line[i].waiters));
        }
        crail_list_remove(&spot->sibling);
        if (parent) {
            crail_table_remove(&w->spots, &spot->item);
        } else {
            w->root = NULL;
            crail_meta_listen(nn->meta, -1);
        }
        free(spot);
        spot = parent; /* its child was a reference */
    }
}

struct crail_rpc_spot *crail_rpc_spot_get(crail_namenode *nn, const char *path, uint32_t len, uint32_t *made) {
    struct crail_rpc_waits *w = &nn->waits;
    const char *p = path, *end = path + len, *name;
    uint32_t n;
    *made = 0;
    if (!w->root) {
        w->root = make(w, NULL, "", 0, 0);
        if (!w->root)
            return NULL;
        crail_meta_listen(nn->meta, 1);
    }
    struct crail_rpc_spot *at = w->root;
    at->refs++;
    while (next_name(&p, end, &name, &n)) {
        uint32_t hash = hash_of(w, at, name, n);
        struct crail_rpc_spot *child = find(w, at, name, n, hash);
        if (!child) {
            child = make(w, at, name, n, hash);
            *made += child ? bytes_of(n) : 0;
        }
        if (child)
            child->refs++;
        crail_rpc_spot_unref(nn, at);
        if (!child)
            return NULL;
        at = child;
    }
    return at;
}

/* ---- lines --------------------------------------------------------------- */

void crail_rpc_line_wake(crail_namenode *nn, struct crail_rpc_line *line) {
    if (crail_list_empty(&line->waiters))
        return;
    if (!crail_list_empty(&line->woken)) {
        line->again = true;
        return;
    }
    crail_list_push(line->waiters.next, &line->mark); /* before the first */
    crail_list_push(&nn->waits.woken, &line->woken);
}

static void wake_spot(crail_namenode *nn, struct crail_rpc_spot *spot) {
    crail_rpc_line_wake(nn, &spot->line[CRAIL_RPC_LINE_CHANGE]);
    crail_rpc_line_wake(nn, &spot->line[CRAIL_RPC_LINE_TAKE]);
}

/* ---- rechecks ------------------------------------------------------------ */

static void cursor_set(crail_namenode *nn, struct crail_rpc_spot *top, struct crail_rpc_spot *to) {
    struct crail_rpc_spot *from = top->cursor;
    to->refs++;
    top->cursor = to;
    if (from)
        crail_rpc_spot_unref(nn, from);
}

static void recheck_begin(crail_namenode *nn, struct crail_rpc_spot *top, enum crail_rpc_recheck kind) {
    bool is_going = top->cursor != NULL;
    if (!is_going) {
        top->refs++;
        crail_list_push(&nn->waits.rechecks, &top->recheck);
        top->recheck_kind = kind;
    } else if (kind == CRAIL_RPC_RECHECK_GONE || top->recheck_kind == CRAIL_RPC_RECHECK_CAME) {
        top->recheck_kind = kind;
    } else {
        top->recheck_kind = CRAIL_RPC_RECHECK_UNSURE;
    }
    top->recheck_since = nn->waits.changes;
    cursor_set(nn, top, top);
}

/* True if all is looked at: `top` may be gone then. */
static bool recheck_step(crail_namenode *nn, struct crail_rpc_spot *top) {
    struct crail_rpc_spot *at = top->cursor;
    if (crail_list_empty(&at->children)) {
        while (at != top && at->sibling.next == &at->parent->children)
            at = at->parent;
        at = at == top ? NULL : CRAIL_LIST_OF(at->sibling.next, struct crail_rpc_spot, sibling);
    } else {
        at = CRAIL_LIST_OF(at->children.next, struct crail_rpc_spot, sibling);
    }
    if (!at) {
        struct crail_rpc_spot *last = top->cursor;
        top->cursor = NULL;
        crail_list_remove(&top->recheck);
        crail_rpc_spot_unref(nn, last);
        crail_rpc_spot_unref(nn, top);
        return true;
    }
    cursor_set(nn, top, at);
    wake_spot(nn, at);
    if (at->log)
        crail_rpc_log_recheck(nn, at, top->recheck_kind, top->recheck_since);
    return false;
}

void crail_rpc_recheck_some(crail_namenode *nn) {
    struct crail_list *list = &nn->waits.rechecks;
    uint32_t left = RECHECK_SOME;
    do { /* at least one: a path of two thousand names takes a while to look up, and may be watched */
        recheck_step(nn, CRAIL_LIST_OF(list->next, struct crail_rpc_spot, recheck));
    } while (--left && !crail_list_empty(list) && crail_clock_ns() < nn->turn_end_ns);
}

/* ---- changes ------------------------------------------------------------- */

static void below(crail_namenode *nn, struct crail_rpc_spot *spot, enum crail_event_kind kind) {
    if (crail_list_empty(&spot->children))
        return;
    if (kind == CRAIL_CHANGE_PUT) {
        recheck_begin(nn, spot, CRAIL_RPC_RECHECK_CAME);
        return;
    }
    /* What they were told last is enough to know what to tell now: so where they are few, no later change comes
     * between. */
    recheck_begin(nn, spot, CRAIL_RPC_RECHECK_GONE);
    for (uint32_t i = 0; i < RECHECK_AT_ONCE; i++)
        if (recheck_step(nn, spot))
            return;
}

/* The engine's listener. Kind 0: no event, but those who wait there should look again. */
static void changed(void *ctx, enum crail_event_kind kind, const char *path, uint32_t len, uint64_t version) {
    crail_namenode *nn = ctx;
    struct crail_rpc_waits *w = &nn->waits;
    struct crail_rpc_spot *at = w->root;
    const char *p = path, *end = path + len, *name;
    uint32_t n;
    w->changes++;
    while (at) {
        if (at->log && kind)
            crail_rpc_log_add(nn, at, kind, version, path, len);
        if (!next_name(&p, end, &name, &n))
            break;
        at = find(w, at, name, n, hash_of(w, at, name, n));
    }
    if (!at)
        return;
    if (at->log && kind) {
        at->log->is_there = kind == CRAIL_CHANGE_PUT;
        at->log->version = version;
    }
    wake_spot(nn, at);
    if (kind)
        below(nn, at, kind);
}

/* ---- start and end ------------------------------------------------------- */

int crail_rpc_waits_init(crail_namenode *nn) {
    struct crail_rpc_waits *w = &nn->waits;
    struct crail_list *lists[] = {&w->woken, &w->retries, &w->rechecks, &w->late, &w->leaving};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        crail_list_init(lists[i]);
    if (getrandom(w->key, sizeof w->key, 0) != sizeof w->key)
        return -errno;
    crail_meta_listener_set(nn->meta, (struct crail_meta_listener){.ctx = nn, .changed = changed});
    return 0;
}

void crail_rpc_waits_destroy(crail_namenode *nn) {
    struct crail_rpc_waits *w = &nn->waits;
    while (!crail_list_empty(&w->leaving))
        crail_rpc_waits_serve(nn);
    while (!crail_list_empty(&w->rechecks))
        crail_rpc_recheck_some(nn);
    assert(!w->root && !w->heap_count && !nn->stats.watches);
    crail_table_free(&w->spots);
    crail_table_free(&w->by_id);
    free(w->heap);
    crail_buf_free(&w->scratch);
}
