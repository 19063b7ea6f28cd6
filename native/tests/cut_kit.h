/* What the tests of cuts and loads share: a database in memory, and all that is durable of an engine as text. */
#ifndef CRAIL_TEST_CUT_KIT_H
#define CRAIL_TEST_CUT_KIT_H

#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/rows.h"
#include "meta_kit.h"

/* ---- the database ---------------------------------------------------------------- */

#define DB_BUCKETS 4096u

struct db_row {
    struct db_row *next;
    struct crail_buf row; /* one whole row */
};

struct db {
    struct db_row *bucket[DB_BUCKETS];
    uint64_t rows;
};

static inline bool db_same_key(const struct crail_row *a, const struct crail_row *b) {
    return a->table == b->table && a->key_len == b->key_len && !memcmp(a + 1, b + 1, a->key_len);
}

static inline struct db_row **db_find(struct db *db, const struct crail_row *row) {
    uint32_t hash = row->table;
    for (uint32_t i = 0; i < row->key_len; i++)
        hash = hash * 31 + crail_row_key(row)[i];
    struct db_row **at = &db->bucket[hash % DB_BUCKETS];
    while (*at && !db_same_key((const struct crail_row *)(*at)->row.data, row))
        at = &(*at)->next;
    return at;
}

static inline void db_remove(struct db *db, struct db_row **at) {
    struct db_row *old = *at;
    *at = old->next;
    crail_buf_free(&old->row);
    free(old);
    db->rows--;
}

/* The rows of one cut, each key at most once. */
static inline void db_apply(struct db *db, const struct crail_buf *rows) {
    const struct crail_row *row;
    for (size_t at = 0; at < rows->len; at += row->size) {
        assert(crail_row_check(rows->data + at, rows->len - at, &row) == 0);
        struct db_row **there = db_find(db, row);
        if (row->gone) {
            if (*there)
                db_remove(db, there);
            continue;
        }
        if (!*there) {
            *there = calloc(1, sizeof(**there));
            db->rows++;
        }
        (*there)->row.len = 0;
        assert(crail_buf_append_padded(&(*there)->row, row, row->size) == 0);
    }
}

static inline void db_free(struct db *db) {
    for (uint32_t i = 0; i < DB_BUCKETS; i++)
        while (db->bucket[i])
            db_remove(db, &db->bucket[i]);
}

/* ---- an engine out of it ----------------------------------------------------------- */

struct known_session {
    uint64_t id;
    struct crail_meta_session *s;
};
struct loaded_facts {
    struct known_session session[64];
    uint32_t sessions, servers;
};

static inline int heard_server(void *ctx, uint32_t number, uint32_t state, const uint32_t *granules, uint32_t regions,
                               struct crail_meta_place place, const void *note, uint32_t note_bytes) {
    struct loaded_facts *f = ctx;
    (void)granules, (void)place, (void)note, (void)note_bytes;
    assert(number == ++f->servers && (state == CRAIL_SERVER_LOST) == (regions == 0));
    return 0;
}

static inline int heard_session(void *ctx, uint64_t id, struct crail_meta_session *s) {
    struct loaded_facts *f = ctx;
    assert(f->sessions < 64);
    f->session[f->sessions++] = (struct known_session){id, s};
    return 0;
}

static inline void kit_open_durable(struct kit *k, int grants_fd) {
    struct crail_meta_options o = {256 << 20, 0x1234567890abcdefull, "0123456789abcde"};
    memset(k, 0, sizeof(*k));
    assert(crail_meta_new(&o, &k->m) == 0);
    assert(crail_meta_durable(k->m, grants_fd) == 0);
    k->now_ns = 1000000000ll * 1700000000;
}

static inline int try_load(struct kit *k, struct db *db, struct loaded_facts *f, struct crail_load_report *report,
                           char *why, size_t why_bytes) {
    const struct crail_row *row;
    memset(f, 0, sizeof(*f));
    assert(crail_meta_load_begin(k->m, (struct crail_meta_load_listener){f, heard_server, heard_session}) == 0);
    for (uint32_t i = 0; i < DB_BUCKETS; i++) {
        for (struct db_row *r = db->bucket[i]; r; r = r->next) {
            assert(crail_row_check(r->row.data, r->row.len, &row) == 0);
            int rc = crail_meta_load(k->m, row, why, why_bytes);
            if (rc)
                return rc;
        }
    }
    return crail_meta_load_end(k->m, report, why, why_bytes);
}

static inline struct crail_load_report kit_load(struct kit *k, struct db *db, struct loaded_facts *f) {
    char why[256] = "";
    struct crail_load_report report;
    if (try_load(k, db, f, &report, why, sizeof(why))) {
        fprintf(stderr, "crail_meta_load: %s\n", why);
        abort();
    }
    return report;
}

/* A whole cut, at once. */
static inline void kit_cut(struct kit *k, struct db *db) {
    struct crail_buf rows = {0};
    assert(crail_meta_cut_begin(k->m, &rows) == 0);
    while (crail_meta_cut_step(k->m, 1000000)) {
    }
    assert(crail_meta_cut_result(k->m) == 0);
    db_apply(db, &rows);
    crail_meta_durable_up_to(k->m, crail_meta_epoch(k->m) - 1);
    crail_buf_free(&rows);
}

/* ---- what is durable, as text -------------------------------------------------------- */

struct facts {
    struct crail_buf text;
    char **line;
    uint32_t n;
};

__attribute__((format(printf, 2, 3))) static inline void say(struct facts *f, const char *format, ...) {
    char text[8192];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    assert(len >= 0 && (size_t)len < sizeof(text) && !crail_buf_reserve(&f->text, (size_t)len + 1));
    memcpy(f->text.data + f->text.len, text, (size_t)len);
    f->text.len += (size_t)len;
}

static inline uint64_t sum(const void *data, size_t n) {
    static const uint8_t key[16] = "a key of sixteen";
    return crail_siphash(key, data, n);
}

static inline void say_extra(struct facts *f, const struct crail_meta *m, const struct crail_extra *x) {
    say(f, " options %u ttl %" PRId64 " ends %" PRId64 " job %" PRIu64 " owner %" PRIu64, x->options, x->ttl_ns,
        x->expires_ns, x->job, x->options & CRAIL_OPTION_SESSION ? m->sessions[x->session]->id : 0);
    if (x->attributes)
        say(f, " attributes %u %" PRIx64, x->attributes_bytes,
            sum(crail_arena_at(&m->arena, x->attributes), x->attributes_bytes));
    if (x->own_job) {
        const struct crail_job *j = crail_job_at(m, x->own_job);
        say(f, " is job %" PRIu64 " ttl %" PRId64 " quota %" PRIu64 " %" PRIu64, j->number, j->ttl_ns, j->quota.bytes,
            j->quota.nodes);
    }
    for (crail_ref h = x->holds; h; h = crail_hold_at(m, h)->node_next)
        if (crail_hold_at(m, h)->kind == CRAIL_HOLD_ITEM)
            say(f, " taken by %" PRIu64 " %" PRIu64, m->sessions[crail_hold_at(m, h)->session]->id,
                crail_hold_at(m, h)->token);
}

static inline void say_value(struct facts *f, const struct crail_meta *m, const struct crail_node *n) {
    if (!n->extents)
        say(f, " value %" PRIx64, sum(crail_value_bytes(m, n), n->size));
    for (uint32_t i = 0; i < n->extents; i++) {
        const struct crail_run *run = &crail_value_runs_of(m, n)[i];
        say(f, " run %u.%u.%u+%u g%" PRIu64, run->server, run->region, run->granule, run->granules,
            crail_run_generation(m, run));
    }
}

static inline bool extra_says(const struct crail_extra *x) {
    return x->options || x->job || x->attributes || x->own_job || x->due || x->holds;
}

static inline void say_node(struct facts *f, const struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    uint64_t parent = n->parent ? crail_node_at(m, n->parent)->id : 0;
    say(f, "%020" PRIu64 " in %" PRIu64 " \"%.*s\" kind %u version %" PRIu64 " size %" PRIu64, n->id, parent,
        n->name_len, crail_node_name(m, n), n->kind, n->version, n->size);
    if (!crail_node_is_container(n))
        say(f, " at %" PRId64, n->mtime_ns);
    if (crail_node_is_leaf(n))
        say_value(f, m, n);
    if (n->flags & CRAIL_NODE_ITEM)
        say(f, " item %u", n->item.state);
    if (n->kind == CRAIL_KIND_BARRIER)
        say(f, " rounds %" PRIu64 " members %u broken %d", n->barrier.rounds, n->barrier.members,
            !!(n->flags & CRAIL_NODE_BROKEN));
    if (n->extra && extra_says(crail_extra_at(m, n->extra))) {
        const struct crail_extra *x = crail_extra_at(m, n->extra);
        if (x->options || x->job || x->attributes || x->own_job || x->due || n->flags & CRAIL_NODE_ITEM)
            say_extra(f, m, x);
    }
    say(f, "\n");
}

static inline void say_session(struct facts *f, const struct crail_meta *m, const struct crail_meta_session *s) {
    say(f, "session %" PRIu64, s->id);
    for (crail_ref h = s->jobs; h; h = crail_hold_at(m, h)->record) /* what is told of one that is over means nothing */
        if (crail_tree_reachable(m, crail_hold_at(m, h)->node))
            say(f, " holds %" PRIu64 " by %" PRIu64, crail_job_of_hold(m, crail_hold_at(m, h))->number,
                crail_hold_at(m, h)->token);
    say(f, "\n");
}

static inline void say_server(struct facts *f, const struct crail_server *sv) {
    bool lost = sv->state == CRAIL_SERVER_LOST;
    say(f, "server %u lost %d class %u location %u note %.*s", sv->number, lost, sv->storage_class, sv->location,
        (int)sv->note_bytes, (const char *)sv->note);
    for (uint32_t i = 0; !lost && i < sv->regions_n; i++)
        say(f, " %u", sv->regions[i].granules);
    say(f, "\n");
}

static inline crail_ref next_node(const struct crail_meta *m, crail_ref ref) {
    const struct crail_node *n = crail_node_at(m, ref);
    if (crail_node_is_container(n) && n->first_child)
        return n->first_child;
    while (ref != m->root && !crail_node_at(m, ref)->sib_next)
        ref = crail_node_at(m, ref)->parent;
    return ref == m->root ? 0 : crail_node_at(m, ref)->sib_next;
}

static inline int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static inline struct facts facts_of(const struct crail_meta *m) {
    struct facts f = {0};
    for (crail_ref ref = m->root; ref; ref = next_node(m, ref))
        say_node(&f, m, ref);
    for (uint32_t i = 0; i < m->sessions_n; i++)
        if (m->sessions[i] && !m->sessions[i]->is_over)
            say_session(&f, m, m->sessions[i]);
    for (uint32_t i = 0; i < m->servers_n; i++)
        say_server(&f, m->servers[i]);
    say(&f, "%s", "");
    f.text.data[f.text.len] = 0;
    f.line = calloc(f.text.len / 8 + 2, sizeof(*f.line));
    for (char *at = (char *)f.text.data, *end; (end = strchr(at, '\n')); at = end + 1) {
        *end = 0;
        f.line[f.n++] = at;
    }
    qsort(f.line, f.n, sizeof(*f.line), by_text);
    return f;
}

static inline void facts_free(struct facts *f) {
    crail_buf_free(&f->text);
    free(f->line);
}

/* Both are sorted: what only one of them has is told. */
static inline void same_facts(const struct facts *want, const struct facts *got) {
    bool same = true;
    for (uint32_t i = 0, k = 0; i < want->n || k < got->n;) {
        int order = i == want->n ? 1 : k == got->n ? -1 : strcmp(want->line[i], got->line[k]);
        if (order)
            fprintf(stderr, "%s %s\n", order < 0 ? "missing" : "too much", order < 0 ? want->line[i] : got->line[k]);
        same &= !order;
        i += order <= 0;
        k += order >= 0;
    }
    if (!same)
        abort();
}

#endif
