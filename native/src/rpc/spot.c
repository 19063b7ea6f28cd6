/* Spots: the paths that somebody is interested in, and what a change does to them (wait.h).
 *
 * A spot has the text of its path from its parent on, of as many names as no other path branches off in. So a path
 * that nobody shares is one spot, however deep, and there are at most twice as many spots as paths. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/siphash.h"
#include "rpc/rpc.h"

#define RECHECK_AT_ONCE 64u /* spots below something that went that are looked at within the change itself */
#define RECHECK_SOME 16u
#define MADE_EVENTS_MAX 128u /* of one change that makes directories */

/* ---- finding ------------------------------------------------------------- */

static uint32_t hash_of(const struct crail_rpc_waits *w, const struct crail_rpc_spot *parent, const char *name,
                        uint32_t len) {
    uint64_t h = crail_siphash(w->key, name, len) ^ ((uintptr_t)parent * 0x9e3779b97f4a7c15u);
    return (uint32_t)(h ^ h >> 32);
}

/* Length of the name that a text ("/a/b") begins with. */
static uint32_t first_name(const char *text, uint32_t len) {
    assert(len > 1 && text[0] == '/');
    const char *slash = memchr(text + 1, '/', len - 1);
    return slash ? (uint32_t)(slash - text) - 1 : len - 1;
}

static uint32_t hash_of_text(const struct crail_rpc_waits *w, const struct crail_rpc_spot *parent, const char *text,
                             uint32_t len) {
    return hash_of(w, parent, text + 1, first_name(text, len));
}

static bool ends_name(const char *text, uint32_t len, uint32_t at) {
    return at == len || text[at] == '/';
}

/* Bytes of the whole names that both texts begin with. */
static uint32_t common(const char *a, uint32_t a_len, const char *b, uint32_t b_len) {
    uint32_t n = a_len < b_len ? a_len : b_len, at = 0;
    while (at < n && a[at] == b[at])
        at++;
    while (!(ends_name(a, a_len, at) && ends_name(b, b_len, at)))
        at--;
    return at;
}

/* The child whose text begins with the same name as `rest`, and *same: bytes of the whole names that agree. If that is
 * all of its text, the path leads to it or past it; if it is all of `rest`, the path ends there or on the way. */
static struct crail_rpc_spot *child_towards(const struct crail_rpc_waits *w, const struct crail_rpc_spot *at,
                                            const char *rest, uint32_t len, uint32_t *same) {
    uint32_t hash = hash_of_text(w, at, rest, len);
    for (struct crail_table_item *i = crail_table_find(&w->spots, hash); i; i = crail_table_again(i)) {
        struct crail_rpc_spot *s = CRAIL_TABLE_OF(i, struct crail_rpc_spot, item);
        if (s->parent != at)
            continue;
        *same = common(s->text, s->text_len, rest, len);
        if (*same)
            return s;
    }
    return NULL;
}

/* A path is its text, but the root's is none. */
static uint32_t text_len_of(uint32_t path_len) {
    return path_len > 1 ? path_len : 0;
}

uint32_t crail_rpc_spot_path(const struct crail_rpc_spot *spot, char *out) {
    uint32_t len = 0;
    for (const struct crail_rpc_spot *s = spot; s->parent; s = s->parent)
        len += s->text_len;
    assert(len <= CRAIL_PATH_MAX);
    if (!len) {
        out[0] = '/';
        return 1;
    }
    uint32_t at = len;
    for (const struct crail_rpc_spot *s = spot; s->parent; s = s->parent) {
        at -= s->text_len;
        memcpy(out + at, s->text, s->text_len);
    }
    return len;
}

/* ---- made and freed ------------------------------------------------------ */

/* One in no list and no table, that nobody refers to. */
static struct crail_rpc_spot *make(const char *text, uint32_t len) {
    struct crail_rpc_spot *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->text = malloc(len ? len : 1);
    if (!s->text) {
        free(s);
        return NULL;
    }
    memcpy(s->text, text, len);
    s->text_len = (uint16_t)len;
    s->children_needed = UINT64_MAX;
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
    return s;
}

/* One in no list and no table any more. */
static void spot_free(struct crail_rpc_spot *s) {
    assert(!s->log && !s->cursor && crail_list_empty(&s->recheck));
    for (int i = 0; i < CRAIL_RPC_LINES; i++) {
        crail_list_remove(&s->line[i].mark);
        crail_list_remove(&s->line[i].woken);
        assert(crail_list_empty(&s->line[i].waiters));
    }
    free(s->text);
    free(s);
}

static struct crail_rpc_spot *make_child(struct crail_rpc_waits *w, struct crail_rpc_spot *parent, const char *text,
                                         uint32_t len) {
    struct crail_rpc_spot *s = make(text, len);
    if (!s)
        return NULL;
    s->item.hash = hash_of_text(w, parent, text, len);
    if (crail_table_insert(&w->spots, &s->item)) {
        spot_free(s);
        return NULL;
    }
    s->parent = parent;
    crail_list_push(&parent->children, &s->sibling);
    parent->refs++;
    return s;
}

/* `s` in the place of `old`, which leaves it: the same parent, the same first name. */
static void take_place(struct crail_rpc_waits *w, struct crail_rpc_spot *s, struct crail_rpc_spot *old) {
    crail_table_remove(&w->spots, &old->item);
    s->item.hash = old->item.hash;
    int rc = crail_table_insert(&w->spots, &s->item);
    assert(!rc); /* it has buckets */
    (void)rc;
    s->parent = old->parent;
    crail_list_push(&old->sibling, &s->sibling); /* before it */
    crail_list_remove(&old->sibling);
}

/* A spot on the way to `s`, behind the first `len` bytes of its text. NULL without memory. */
static struct crail_rpc_spot *split(struct crail_rpc_waits *w, struct crail_rpc_spot *s, uint32_t len) {
    assert(len < s->text_len && s->text[len] == '/');
    struct crail_rpc_spot *middle = make(s->text, len);
    if (!middle)
        return NULL;
    take_place(w, middle, s);
    s->text_len = (uint16_t)(s->text_len - len);
    memmove(s->text, s->text + len, s->text_len);
    char *less = realloc(s->text, s->text_len);
    s->text = less ? less : s->text;
    s->item.hash = hash_of_text(w, middle, s->text, s->text_len);
    int rc = crail_table_insert(&w->spots, &s->item);
    assert(!rc);
    (void)rc;
    s->parent = middle;
    crail_list_push(&middle->children, &s->sibling);
    middle->refs = 1;
    return middle;
}

/* Nobody needs this spot but its only child, whose text takes its own in. Without memory for that it stays. */
static void join(struct crail_rpc_waits *w, struct crail_rpc_spot *spot) {
    struct crail_rpc_spot *child = CRAIL_LIST_OF(spot->children.next, struct crail_rpc_spot, sibling);
    assert(spot->refs == 1 && child->parent == spot && spot->children.next == spot->children.prev);
    char *text = realloc(spot->text, (size_t)spot->text_len + child->text_len);
    if (!text)
        return;
    memcpy(text + spot->text_len, child->text, child->text_len);
    free(child->text);
    child->text = text;
    child->text_len = (uint16_t)(spot->text_len + child->text_len);
    spot->text = NULL;
    crail_table_remove(&w->spots, &child->item);
    take_place(w, child, spot);
    spot_free(spot);
}

void crail_rpc_spot_unref(crail_namenode *nn, struct crail_rpc_spot *spot) {
    struct crail_rpc_waits *w = &nn->waits;
    while (spot) {
        assert(spot->refs);
        if (--spot->refs) {
            if (spot->refs == 1 && spot->parent && !crail_list_empty(&spot->children))
                join(w, spot);
            return;
        }
        struct crail_rpc_spot *parent = spot->parent;
        assert(crail_list_empty(&spot->children));
        crail_list_remove(&spot->sibling);
        if (parent) {
            crail_table_remove(&w->spots, &spot->item);
        } else {
            w->root = NULL;
            crail_meta_listen(nn->meta, -1);
        }
        spot_free(spot);
        spot = parent; /* its child was a reference */
    }
}

/* The next spot on the way, made where there is none. NULL without memory. */
static struct crail_rpc_spot *next_towards(struct crail_rpc_waits *w, struct crail_rpc_spot *at, const char *rest,
                                           uint32_t len, uint32_t *made) {
    uint32_t same;
    struct crail_rpc_spot *child = child_towards(w, at, rest, len, &same);
    if (child && same == child->text_len)
        return child;
    struct crail_rpc_spot *s = child ? split(w, child, same) : make_child(w, at, rest, len);
    *made += s ? (uint32_t)sizeof *s + s->text_len : 0;
    return s;
}

struct crail_rpc_spot *crail_rpc_spot_get(crail_namenode *nn, const char *path, uint32_t len, uint32_t *made) {
    struct crail_rpc_waits *w = &nn->waits;
    *made = 0;
    if (!w->root) {
        w->root = make("", 0);
        if (!w->root)
            return NULL;
        crail_meta_listen(nn->meta, 1);
    }
    struct crail_rpc_spot *at = w->root;
    for (uint32_t left = text_len_of(len); left; left -= at->text_len) {
        struct crail_rpc_spot *next = next_towards(w, at, path + len - left, left, made);
        if (!next) {
            at->refs++; /* one that was made for this goes again */
            crail_rpc_spot_unref(nn, at);
            return NULL;
        }
        at = next;
    }
    at->refs++;
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
    crail_rpc_line_wake(nn, &spot->line[CRAIL_RPC_LINE_CHILDREN]);
}

void crail_rpc_spot_needs_children(struct crail_rpc_spot *spot, uint64_t missing) {
    if (spot->children_came + missing < spot->children_needed)
        spot->children_needed = spot->children_came + missing;
}

/* Something of this path, relative to the spot, has a new version: a child of it, perhaps a new one? Those who wait for
 * many children do not look again at each: it takes as many as the next of them needs. */
static void note_child(crail_namenode *nn, struct crail_rpc_spot *spot, const char *text, uint32_t len) {
    struct crail_rpc_line *line = &spot->line[CRAIL_RPC_LINE_CHILDREN];
    if (crail_list_empty(&line->waiters) || first_name(text, len) != len - 1)
        return;
    if (++spot->children_came < spot->children_needed)
        return;
    spot->children_needed = UINT64_MAX; /* those who need still more say so */
    crail_rpc_line_wake(nn, line);
}

/* ---- rechecks ------------------------------------------------------------ */

static void cursor_set(crail_namenode *nn, struct crail_rpc_spot *top, struct crail_rpc_spot *to) {
    struct crail_rpc_spot *from = top->cursor;
    to->refs++;
    top->cursor = to;
    if (from)
        crail_rpc_spot_unref(nn, from);
}

static void recheck_begin(crail_namenode *nn, struct crail_rpc_spot *top, enum crail_rpc_recheck kind, bool itself) {
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
    top->recheck_itself = itself; /* else it was told of the change, and needs no more */
    cursor_set(nn, top, top);
}

/* The one behind the cursor in the order of a walk from above; NULL after the last. */
static struct crail_rpc_spot *recheck_next(struct crail_rpc_spot *top) {
    struct crail_rpc_spot *at = top->cursor;
    if (top->recheck_itself) {
        top->recheck_itself = false;
        return top;
    }
    if (!crail_list_empty(&at->children))
        return CRAIL_LIST_OF(at->children.next, struct crail_rpc_spot, sibling);
    while (at != top && at->sibling.next == &at->parent->children)
        at = at->parent;
    return at == top ? NULL : CRAIL_LIST_OF(at->sibling.next, struct crail_rpc_spot, sibling);
}

/* True if all is looked at: `top` may be gone then. */
static bool recheck_step(crail_namenode *nn, struct crail_rpc_spot *top) {
    struct crail_rpc_spot *at = recheck_next(top);
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

/* Something came or went with all below it: at the spot, which was told, or on the way to it. */
static void below(crail_namenode *nn, struct crail_rpc_spot *spot, enum crail_event_kind kind, bool itself) {
    if (!itself && crail_list_empty(&spot->children))
        return;
    if (kind == CRAIL_CHANGE_PUT) {
        recheck_begin(nn, spot, CRAIL_RPC_RECHECK_CAME, itself);
        return;
    }
    /* What they were told last is enough to know what to tell now: so where they are few, no later change comes
     * between. */
    recheck_begin(nn, spot, CRAIL_RPC_RECHECK_GONE, itself);
    for (uint32_t i = 0; i < RECHECK_AT_ONCE; i++)
        if (recheck_step(nn, spot))
            return;
}

static void note_there(struct crail_rpc_spot *spot, bool is_there, uint64_t version) {
    if (!spot->log)
        return;
    spot->log->is_there = is_there;
    spot->log->version = version;
}

/* The engine's listener. Kind 0: no event, but those who wait there should look again. */
static void changed(void *ctx, enum crail_event_kind kind, const char *path, uint32_t len, uint64_t version) {
    crail_namenode *nn = ctx;
    struct crail_rpc_waits *w = &nn->waits;
    struct crail_rpc_spot *at = w->root;
    uint32_t left = text_len_of(len), same;
    w->changes++;
    for (;;) {
        if (at->log && kind)
            crail_rpc_log_add(nn, at, kind, version, path, len);
        if (!left)
            break;
        if (kind == CRAIL_CHANGE_PUT)
            note_child(nn, at, path + len - left, left);
        struct crail_rpc_spot *child = child_towards(w, at, path + len - left, left, &same);
        if (!child)
            return;
        if (same < child->text_len) {
            if (same == left && kind)
                below(nn, child, kind, true);
            return;
        }
        at = child;
        left -= same;
    }
    if (kind)
        note_there(at, kind == CRAIL_CHANGE_PUT, version);
    wake_spot(nn, at);
    if (kind)
        below(nn, at, kind, false);
}

/* ---- directories made above a node --------------------------------------- */

/* They are the names of a path behind its first `above` bytes. A change that makes thousands of them, under as many
 * watches, would tell millions of events: from MADE_EVENTS_MAX on a watch is told to look for itself. */
struct made {
    const char *path;
    uint32_t len, above, count;
    uint64_t version; /* of the first; the next ones follow */
    uint32_t events;  /* told so far */
};

static uint32_t names_in(const char *text, uint32_t len) {
    uint32_t n = 0;
    for (const char *end = text + len; (text = memchr(text, '/', (size_t)(end - text))); text++)
        n++;
    return n;
}

/* Events for a watched spot at the first `at` bytes of the path. `before`: how many of the directories are above it. */
static void tell_made(crail_namenode *nn, struct crail_rpc_spot *spot, struct made *m, uint32_t at, uint32_t before) {
    uint32_t end = at > m->above ? at - 1 : m->above; /* somewhere in the name before the first to be told */
    uint32_t n = m->count - before;
    if (m->events + n > MADE_EVENTS_MAX) {
        crail_rpc_log_add(nn, spot, CRAIL_CHANGE_RESYNC, 0, at ? m->path : "/", at ? at : 1);
        return;
    }
    m->events += n;
    for (uint64_t version = m->version + before; end < m->len; version++) {
        const char *slash = memchr(m->path + end + 1, '/', m->len - end - 1);
        end = slash ? (uint32_t)(slash - m->path) : m->len;
        crail_rpc_log_add(nn, spot, CRAIL_CHANGE_PUT, version, m->path, end);
    }
}

/* The engine's listener for directories that were made on the way to a node. They are empty: what lies below them in
 * other places is as absent as before, and needs no recheck. */
static void made(void *ctx, const char *path, uint32_t len, uint32_t count, uint64_t version) {
    crail_namenode *nn = ctx;
    struct crail_rpc_waits *w = &nn->waits;
    struct crail_rpc_spot *at = w->root;
    struct made m = {path, len, len, count, version, 0};
    uint32_t done = 0, names = 0, same; /* bytes of the path, and directories in them */
    for (uint32_t i = 0; i < count; i++)
        m.above = (uint32_t)((const char *)memrchr(path, '/', m.above) - path);
    w->changes++;
    for (;;) {
        bool is_made = done > m.above;
        if (at->log)
            tell_made(nn, at, &m, done, is_made ? names - 1 : 0);
        if (is_made) {
            note_there(at, true, version + names - 1);
            wake_spot(nn, at);
        }
        if (done == len)
            return;
        crail_rpc_line_wake(nn, &at->line[CRAIL_RPC_LINE_CHILDREN]);
        at = child_towards(w, at, path + done, len - done, &same);
        if (!at || same < at->text_len)
            return;
        uint32_t from = done > m.above ? done : m.above;
        done += same;
        names += done > from ? names_in(path + from, done - from) : 0;
    }
}

/* ---- start and end ------------------------------------------------------- */

int crail_rpc_waits_init(crail_namenode *nn) {
    struct crail_rpc_waits *w = &nn->waits;
    struct crail_list *lists[] = {&w->woken, &w->retries, &w->rechecks, &w->late, &w->leaving};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        crail_list_init(lists[i]);
    if (getrandom(w->key, sizeof w->key, 0) != sizeof w->key)
        return -errno;
    crail_meta_listener_set(nn->meta, (struct crail_meta_listener){.ctx = nn, .changed = changed, .made = made});
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
