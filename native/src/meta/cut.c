/* What has changed since the last cut, and the writing of a cut.
 *
 * A node is marked before it changes (crail_node_touch), by its place in the arena, so that marking takes no memory. A
 * cut takes the marks over; the loop writes their nodes in the order of their places, in steps. One that is touched
 * before its turn is written right then. So the rows say what was true when the cut began.
 *
 * A node that is freed leaves its record behind while its row has to be deleted (a tomb: of kind CRAIL_KIND_NONE, and
 * marked), so that this takes no memory either, and no other node gets its place and its marks. Tombs are freed when
 * the cut that deleted their rows is complete. A node that no cut has had leaves nothing.
 *
 * If `rows` cannot grow the cut has failed: all its marks go back to those that have changed, with the tombs. */
#include "meta/engine.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "crail/rows.h"

#define TOMBS_PER_LOOK 64u
#define WORDS_PER_LOOK 64u
#define NODES_PER_LOOK 32u
#define BYTES_PER_LOOK 16384u

enum cut_phase { IDLE, WRITING, CLEANING, FAILING };

/* ---- marks --------------------------------------------------------------------- */

static size_t bits_bytes(uint64_t words) {
    return words * sizeof(uint64_t);
}

static size_t sums_bytes(uint64_t words) {
    return (words + 63) / 64 * sizeof(uint64_t);
}

static void *zeroed_lazily(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static int marks_open(struct crail_marks *k, uint64_t words) {
    k->bits = zeroed_lazily(bits_bytes(words));
    k->sums = zeroed_lazily(sums_bytes(words));
    return k->bits && k->sums ? 0 : -ENOMEM;
}

static void marks_close(struct crail_marks *k, uint64_t words) {
    if (k->bits)
        munmap(k->bits, bits_bytes(words));
    if (k->sums)
        munmap(k->sums, sums_bytes(words));
}

static bool is_marked(const struct crail_marks *k, crail_ref ref) {
    uint32_t i = ref / CRAIL_MARK_REFS;
    return k->bits[i / 64] >> (i % 64) & 1;
}

static void mark(struct crail_marks *k, crail_ref ref) {
    uint32_t i = ref / CRAIL_MARK_REFS;
    k->bits[i / 64] |= 1ull << (i % 64);
    k->sums[i / 4096] |= 1ull << (i / 64 % 64);
    k->count++;
}

/* False: it was not. */
static bool unmark(struct crail_marks *k, crail_ref ref) {
    uint32_t i = ref / CRAIL_MARK_REFS;
    if (!is_marked(k, ref))
        return false;
    k->bits[i / 64] &= ~(1ull << (i % 64));
    if (!k->bits[i / 64])
        k->sums[i / 4096] &= ~(1ull << (i / 64 % 64));
    k->count--;
    return true;
}

/* The first word with a mark, from this one on; `words` if there is none. */
static uint64_t next_word(const struct crail_marks *k, uint64_t from, uint64_t words) {
    uint64_t mask = ~0ull << (from % 64);
    for (uint64_t s = from / 64; s * 64 < words; s++, mask = ~0ull)
        if (k->sums[s] & mask)
            return s * 64 + (uint64_t)__builtin_ctzll(k->sums[s] & mask);
    return words;
}

/* All marks of one word of `from` go to `to`, or nowhere. */
static void move_word(struct crail_marks *from, struct crail_marks *to, uint64_t word) {
    uint64_t bits = from->bits[word];
    if (to && bits) {
        to->count += (uint64_t)__builtin_popcountll(bits & ~to->bits[word]);
        to->bits[word] |= bits;
        to->sums[word / 64] |= 1ull << (word % 64);
    }
    from->count -= (uint64_t)__builtin_popcountll(bits);
    from->bits[word] = 0;
    from->sums[word / 64] &= ~(1ull << (word % 64));
}

static crail_ref ref_of(uint64_t word, uint32_t bit) {
    return (crail_ref)(word * 64 + bit) * CRAIL_MARK_REFS;
}

/* ---- open and close -------------------------------------------------------------- */

int crail_meta_durable(struct crail_meta *m, int grants_fd) {
    assert(!m->cut && m->nodes == 1 && !m->servers_n);
    struct crail_cut *cut = calloc(1, sizeof(*cut));
    if (!cut)
        return -ENOMEM;
    m->cut = cut;
    cut->epoch = 1;
    cut->words = (uint64_t)m->arena.chunks_max * (CRAIL_ARENA_CHUNK / sizeof(struct crail_node) / 64);
    crail_list_init(&cut->sessions);
    crail_list_init(&cut->servers);
    crail_list_init(&cut->sessions_over);
    crail_list_init(&cut->sessions_over_cut);
    if (marks_open(&cut->changed, cut->words) || marks_open(&cut->cutting, cut->words) ||
        marks_open(&cut->written, cut->words))
        return -ENOMEM;
#ifdef CRAIL_TEST_GUARDS
    cut->sums_of_rows = zeroed_lazily(cut->words * 64 * sizeof(uint64_t));
    if (!cut->sums_of_rows)
        return -ENOMEM;
#endif
    crail_node_touch(m, m->root);
    return grants_fd < 0 ? 0 : crail_grantmap_open(m, grants_fd);
}

static void sessions_free(struct crail_list *list) {
    while (!crail_list_empty(list)) {
        struct crail_meta_session *s = CRAIL_LIST_OF(list->next, struct crail_meta_session, changed);
        crail_list_remove(&s->changed);
        if (s->is_kept)
            free(s);
    }
}

void crail_cut_close(struct crail_meta *m) {
    struct crail_cut *cut = m->cut;
    if (!cut)
        return;
    sessions_free(&cut->sessions_over);
    sessions_free(&cut->sessions_over_cut);
    marks_close(&cut->changed, cut->words);
    marks_close(&cut->cutting, cut->words);
    marks_close(&cut->written, cut->words);
#ifdef CRAIL_TEST_GUARDS
    if (cut->sums_of_rows)
        munmap(cut->sums_of_rows, cut->words * 64 * sizeof(uint64_t));
#endif
    crail_grantmap_close(m);
    free(cut);
    m->cut = NULL;
}

uint64_t crail_meta_epoch(const struct crail_meta *m) {
    return m->cut ? m->cut->epoch : 0;
}

uint64_t crail_meta_removed(const struct crail_meta *m) {
    return m->cut ? m->cut->removed : 0;
}

uint64_t crail_meta_moved(const struct crail_meta *m) {
    return m->cut ? m->cut->moved : 0;
}

uint64_t crail_meta_changed(const struct crail_meta *m) {
    return m->cut ? m->cut->changed.count + m->cut->sessions_n + m->cut->servers_n : 0;
}

bool crail_meta_gated(const struct crail_meta *m) {
    return m->cut && m->cut->gated;
}

int crail_meta_cut_result(const struct crail_meta *m) {
    return m->cut->result;
}

void crail_meta_counters(const struct crail_meta *m, struct crail_meta_counters *out) {
    *out = (struct crail_meta_counters){m->last_id, m->last_version, m->last_job};
}

static void raise_to(uint64_t *counter, uint64_t at_least) {
    *counter = *counter > at_least ? *counter : at_least;
}

void crail_meta_counters_set(struct crail_meta *m, const struct crail_meta_counters *at_least) {
    raise_to(&m->last_id, at_least->last_id);
    raise_to(&m->last_version, at_least->last_version);
    raise_to(&m->last_job, at_least->last_job);
}

void crail_meta_ends_after(struct crail_meta *m, int64_t ns) {
    m->ends_after_ns = ns;
}

/* ---- nodes ------------------------------------------------------------------------- */

/* The node's row goes to the cut, if there has to be one. */
static void write_node(struct crail_meta *m, crail_ref ref) {
    struct crail_cut *cut = m->cut;
    struct crail_node *n = crail_node_at(m, ref);
    unmark(&cut->cutting, ref);
    mark(&cut->written, ref);
    if (n->kind == CRAIL_KIND_NONE) {
        n->sib_next = cut->tombs;
        cut->tombs = ref;
    }
    if (crail_row_of_node(m, ref, cut->rows))
        cut->is_failing = true;
}

void crail_cut_touch(struct crail_meta *m, crail_ref ref) {
    struct crail_cut *cut = m->cut;
    if (is_marked(&cut->changed, ref))
        return;
    if (cut->phase == WRITING && is_marked(&cut->cutting, ref))
        write_node(m, ref);
    mark(&cut->changed, ref);
}

void crail_cut_node_free(struct crail_meta *m, crail_ref ref) {
    struct crail_cut *cut = m->cut;
    struct crail_node *n = crail_node_at(m, ref);
    if (n->flags & CRAIL_NODE_STORED) {
        crail_cut_touch(m, ref);
        n->kind = CRAIL_KIND_NONE;
        n->parent = 0;
        cut->tombs_n++;
        return;
    }
    /* What a cut that is under way should say of it: nothing, it was off the tree before. */
    unmark(&cut->changed, ref);
    unmark(&cut->cutting, ref);
    unmark(&cut->written, ref);
    crail_arena_free(&m->arena, ref, sizeof(*n));
}

void crail_cut_loaded(struct crail_meta *m, crail_ref ref) {
    unmark(&m->cut->changed, ref);
    crail_node_at(m, ref)->flags |= CRAIL_NODE_STORED;
    crail_row_remember(m, ref);
}

/* ---- sessions and servers -------------------------------------------------------------- */

void crail_session_touch(struct crail_meta *m, struct crail_meta_session *s) {
    if (!m->cut || s->is_over || !crail_list_empty(&s->changed))
        return;
    crail_list_push(&m->cut->sessions, &s->changed);
    m->cut->sessions_n++;
}

void crail_cut_session_over(struct crail_meta *m, struct crail_meta_session *s) {
    if (!m->cut)
        return;
    s->is_over = true;
    if (!crail_list_empty(&s->changed))
        m->cut->sessions_n--;
    crail_list_remove(&s->changed);
    if (!s->is_stored)
        return;
    crail_list_push(&m->cut->sessions_over, &s->changed);
    m->cut->sessions_n++;
}

bool crail_cut_keeps_session(struct crail_meta *m, struct crail_meta_session *s) {
    s->is_kept = m->cut && !crail_list_empty(&s->changed);
    return s->is_kept;
}

void crail_server_touch(struct crail_meta *m, struct crail_server *sv) {
    if (!m->cut || !crail_list_empty(&sv->changed))
        return;
    crail_list_push(&m->cut->servers, &sv->changed);
    m->cut->servers_n++;
}

void crail_cut_server_loaded(struct crail_meta *m, struct crail_server *sv) {
    if (!crail_list_empty(&sv->changed))
        m->cut->servers_n--;
    crail_list_remove(&sv->changed);
}

void crail_cut_session_loaded(struct crail_meta *m, struct crail_meta_session *s) {
    if (!crail_list_empty(&s->changed))
        m->cut->sessions_n--;
    crail_list_remove(&s->changed);
    s->is_stored = true;
}

/* All that is in the three lists. 0 or -ENOMEM. */
static int write_lists(struct crail_meta *m) {
    struct crail_cut *cut = m->cut;
    int rc = 0;
    for (struct crail_list *l = cut->sessions.next; l != &cut->sessions && !rc; l = l->next)
        rc = crail_row_of_session(m, CRAIL_LIST_OF(l, struct crail_meta_session, changed), cut->rows);
    for (struct crail_list *l = cut->sessions_over.next; l != &cut->sessions_over && !rc; l = l->next)
        rc = crail_row_of_session(m, CRAIL_LIST_OF(l, struct crail_meta_session, changed), cut->rows);
    for (struct crail_list *l = cut->servers.next; l != &cut->servers && !rc; l = l->next)
        rc = crail_row_of_server(CRAIL_LIST_OF(l, struct crail_server, changed), cut->rows);
    return rc;
}

static void empty_lists(struct crail_cut *cut) {
    while (!crail_list_empty(&cut->sessions)) {
        struct crail_meta_session *s = CRAIL_LIST_OF(cut->sessions.next, struct crail_meta_session, changed);
        s->is_stored = true;
        crail_list_remove(&s->changed);
    }
    crail_list_splice(&cut->sessions_over_cut, &cut->sessions_over);
    while (!crail_list_empty(&cut->servers))
        crail_list_remove(cut->servers.next);
    cut->sessions_n = cut->servers_n = 0;
}

/* ---- a cut, from its beginning to its end --------------------------------------------- */

int crail_meta_cut_begin(struct crail_meta *m, struct crail_buf *rows) {
    struct crail_cut *cut = m->cut;
    if (cut->phase != IDLE)
        return -EBUSY;
    assert(!cut->cutting.count && !cut->written.count && !cut->tombs);
    cut->rows = rows;
    cut->rows_begin = rows->len;
    if (write_lists(m)) {
        rows->len = cut->rows_begin;
        return -ENOMEM;
    }
    empty_lists(cut);
    struct crail_marks empty = cut->cutting;
    cut->cutting = cut->changed;
    cut->changed = empty;
    cut->epoch++;
    cut->at = 0;
    cut->is_failing = false;
    cut->result = 0;
    cut->phase = WRITING;
    return 0;
}

static void phase_set(struct crail_cut *cut, enum cut_phase phase) {
    cut->phase = (uint8_t)phase;
    cut->at = 0;
}

/* What the nodes of a word will be read for. */
static void fetch(const struct crail_meta *m, uint64_t word) {
    for (uint64_t bits = m->cut->cutting.bits[word]; bits; bits &= bits - 1) {
        const struct crail_node *n = crail_node_at(m, ref_of(word, (uint32_t)__builtin_ctzll(bits)));
        __builtin_prefetch(n);
        __builtin_prefetch(&n->id);
    }
}

/* A few nodes. True if some are left. */
static bool write_some(struct crail_meta *m) {
    struct crail_cut *cut = m->cut;
    size_t begin = cut->rows->len;
    for (uint32_t i = 0; i < NODES_PER_LOOK && cut->rows->len - begin < BYTES_PER_LOOK && !cut->is_failing; i++) {
        uint64_t word = next_word(&cut->cutting, cut->at, cut->words);
        if (word == cut->words)
            return false;
        if (word != cut->at || !i)
            fetch(m, word);
        cut->at = word;
        write_node(m, ref_of(word, (uint32_t)__builtin_ctzll(cut->cutting.bits[word])));
    }
    return true;
}

/* The tombs of the cut are freed, and its marks taken away. */
static bool clean_some(struct crail_meta *m) {
    struct crail_cut *cut = m->cut;
    for (uint32_t i = 0; i < WORDS_PER_LOOK && cut->at < cut->words; i++) {
        cut->at = next_word(&cut->written, cut->at, cut->words);
        if (cut->at < cut->words)
            move_word(&cut->written, NULL, cut->at);
    }
    for (uint32_t i = 0; i < TOMBS_PER_LOOK && cut->tombs; i++) {
        crail_ref tomb = cut->tombs;
        cut->tombs = crail_node_at(m, tomb)->sib_next;
        crail_arena_free(&m->arena, tomb, sizeof(struct crail_node));
        cut->tombs_n--;
    }
    return cut->at < cut->words || cut->tombs;
}

static bool fail_some(struct crail_meta *m) {
    struct crail_cut *cut = m->cut;
    for (uint32_t i = 0; i < WORDS_PER_LOOK; i++) {
        uint64_t a = next_word(&cut->cutting, cut->at, cut->words), b = next_word(&cut->written, cut->at, cut->words);
        cut->at = a < b ? a : b;
        if (cut->at == cut->words)
            return false;
        move_word(&cut->cutting, &cut->changed, cut->at);
        move_word(&cut->written, &cut->changed, cut->at);
    }
    return true;
}

/* Which sessions and servers it was is not known any more; there are few. */
static void fail_lists(struct crail_meta *m) {
    for (struct crail_list *l = m->cut->sessions_over_cut.next; l != &m->cut->sessions_over_cut; l = l->next)
        m->cut->sessions_n++;
    crail_list_splice(&m->cut->sessions_over, &m->cut->sessions_over_cut);
    for (uint32_t i = 0; i < m->sessions_n; i++)
        if (m->sessions[i])
            crail_session_touch(m, m->sessions[i]);
    for (uint32_t i = 0; i < m->servers_n; i++)
        crail_server_touch(m, m->servers[i]);
}

static void fail(struct crail_meta *m) {
    struct crail_cut *cut = m->cut;
    cut->rows->len = cut->rows_begin;
    cut->tombs = 0; /* they are marked as written, too */
    cut->result = -ENOMEM;
    fail_lists(m);
    phase_set(cut, FAILING);
}

/* A little of what is to be done. False: the cut is over. */
static bool step_once(struct crail_meta *m) {
    struct crail_cut *cut = m->cut;
    switch (cut->phase) {
    case WRITING:
        if (!write_some(m))
            phase_set(cut, CLEANING);
        if (cut->is_failing)
            fail(m);
        return true;
    case CLEANING:
        if (clean_some(m))
            return true;
        sessions_free(&cut->sessions_over_cut);
        break;
    case FAILING:
        if (fail_some(m))
            return true;
        break;
    default:
        return false;
    }
    phase_set(cut, IDLE);
    cut->rows = NULL;
    return false;
}

bool crail_meta_cut_step(struct crail_meta *m, uint64_t budget_ns) {
    uint64_t start = crail_clock_ns();
    while (step_once(m)) {
        crail_failpoint("cut-step");
        if (crail_clock_ns() - start >= budget_ns)
            return true;
    }
    return false;
}

void crail_meta_durable_up_to(struct crail_meta *m, uint64_t epoch) {
    assert(epoch < m->cut->epoch);
    if (epoch > m->cut->durable)
        m->cut->durable = epoch;
    m->cut->gate_may_open = true;
}

/* ---- fsck ------------------------------------------------------------------------------- */

const char *crail_cut_check_node(const struct crail_meta *m, crail_ref ref) {
    const struct crail_cut *cut = m->cut;
    const struct crail_node *n = crail_node_at(m, ref);
    if (!cut || !crail_tree_reachable(m, ref) || is_marked(&cut->changed, ref) ||
        (cut->phase != IDLE && is_marked(&cut->cutting, ref)))
        return NULL;
    if (!(n->flags & CRAIL_NODE_STORED))
        return "it was made, and no cut will have it";
    return crail_row_is_the_latest(m, ref) ? NULL : "it has changed, and no cut will have it";
}
