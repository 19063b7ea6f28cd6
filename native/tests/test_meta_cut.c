/* Cuts and loads: what a cut says is what was true when it began, whatever happened while it was written, and an engine
 * made of it is the same. sources: meta base */
#include "base/crc32c.h"
#include "cut_kit.h"

#define SECOND 1000000000ll
#define SESSIONS 6u
#define SERVERS_MAX 24u
#define GRANULES 200u
#define GRANTS 12u

struct grant {
    uint32_t session, n;
    uint64_t bytes;
    struct crail_extent e[CRAIL_EXTENTS_MAX];
};

/* A random life that dies now and then. */
struct life {
    struct kit k;
    struct db db;
    uint64_t seed, next_id, next_token;
    struct crail_meta_session *s[SESSIONS];
    uint64_t recent_token[32];
    uint64_t job[4];
    uint32_t grants_n;
    struct grant grant[GRANTS];
    uint32_t servers;
    uint64_t generation[SERVERS_MAX + 1][2][GRANULES]; /* as the servers have them */
    struct crail_buf rows;                             /* of the cut that is being written */
    bool is_given_up[SERVERS_MAX + 1];                 /* in any of its lives */
    bool is_cutting, is_strict;
    struct facts want;
    uint32_t cuts, loads, strict;
    int grants_fd;
};

static uint32_t pick(struct life *w, uint32_t below) {
    return kit_random(&w->seed, below);
}

static const char *random_path(struct life *w) {
    static char path[256];
    static const char *const names[] = {"a", "b", "cc", "q",
                                        "a-name-that-does-not-fit-into-a-node-because-it-is-longer-than-48-bytes"};
    if (pick(w, 3) == 0) {
        sprintf(path, "/wide/%u", pick(w, 200));
        return path;
    }
    *path = 0;
    for (uint32_t depth = 1 + pick(w, 3); depth; depth--)
        sprintf(path + strlen(path), "/%s", names[pick(w, 5)]);
    return path;
}

static void random_session(struct life *w) {
    w->k.s = w->s[pick(w, SESSIONS)];
}

static void random_options(struct life *w) {
    struct crail_options o = {.storage_class = CRAIL_CLASS_ANY};
    if (pick(w, 3))
        return;
    o.flags |= pick(w, 3) == 0 ? CRAIL_OPTION_TTL : 0;
    o.ttl_ns = o.flags ? (1 + pick(w, 5)) * (uint64_t)SECOND : 0;
    o.flags |= pick(w, 4) == 0 ? CRAIL_OPTION_SESSION : 0;
    o.flags |= pick(w, 4) == 0 ? CRAIL_OPTION_EVICTABLE : 0;
    o.flags |= pick(w, 6) == 0 ? CRAIL_OPTION_DELETE_AFTER_READ : 0;
    o.job = pick(w, 4) == 0 ? w->job[pick(w, 4)] : 0;
    kit_with(&w->k, o);
}

static uint64_t new_token(struct life *w) {
    uint64_t token = ++w->next_token;
    w->recent_token[token % 32] = token;
    return token;
}

static int parents(struct life *w) {
    return pick(w, 3) ? CRAIL_OPF_PARENTS : 0;
}

static void do_put(struct life *w) {
    char value[CRAIL_INLINE_MAX];
    uint32_t size = pick(w, 3) ? pick(w, 40) : pick(w, sizeof(value) + 1);
    memset(value, (int)pick(w, 256), sizeof(value));
    random_options(w);
    kit_put(&w->k, parents(w), random_path(w), value, size);
}

static void do_put_item(struct life *w) {
    char value[40] = "an item";
    kit_put(&w->k, CRAIL_OPF_QUEUE, pick(w, 2) ? "/q" : random_path(w), value, pick(w, sizeof(value)));
}

static void do_edit(struct life *w) {
    if (pick(w, 2))
        kit_op(&w->k, CRAIL_OP_INCR, 0, pick(w, 2) ? "/wide/count" : random_path(w), NULL, 0, 0, pick(w, 100), 0);
    else
        kit_op(&w->k, CRAIL_OP_TRUNCATE, 0, random_path(w), NULL, 0, 0, 0, pick(w, 60));
}

static void do_make(struct life *w) {
    enum crail_kind kind = (enum crail_kind)(CRAIL_KIND_DIRECTORY + pick(w, 4));
    if (pick(w, 4) == 0)
        kit_make(&w->k, 0, CRAIL_KIND_QUEUE, "/q");
    else if (pick(w, 3) == 0)
        random_options(w), kit_make(&w->k, parents(w), kind, random_path(w));
    else
        kit_mkdir(&w->k, parents(w), random_path(w));
}

static void do_remove(struct life *w) {
    kit_remove(&w->k, 0, random_path(w));
}

static void do_rmtree(struct life *w) {
    if (pick(w, 4) == 0)
        kit_rmtree(&w->k, pick(w, 10) ? random_path(w) : "/wide");
}

static void do_rename(struct life *w) {
    char from[256];
    strcpy(from, random_path(w));
    kit_rename(&w->k, pick(w, 2) ? CRAIL_OPF_OVERWRITE : 0, from, random_path(w));
}

static void do_attributes(struct life *w) {
    uint8_t data[64];
    struct crail_attribute head = {.name_len = 2, .value_len = pick(w, 4) ? pick(w, 20) : CRAIL_ATTRIBUTE_GONE};
    memset(data, 'v', sizeof(data));
    memcpy(data, &head, sizeof(head));
    data[sizeof(head) + 1] = (uint8_t)('a' + pick(w, 5));
    uint32_t bytes = (uint32_t)sizeof(head) + 2 + (head.value_len == CRAIL_ATTRIBUTE_GONE ? 0 : head.value_len);
    random_options(w);
    kit_op(&w->k, CRAIL_OP_SETATTR, 0, random_path(w), data, pick(w, 3) ? bytes : 0, 0, 0, 0);
}

static void do_job(struct life *w) {
    static const char *const paths[] = {"/j1", "/a/j", "/j2/deep/j", "/j1/inner"};
    struct crail_quota quota = {pick(w, 2) ? 1 << 20 : 0, pick(w, 2) ? 100 : 0};
    uint32_t i = pick(w, 4);
    if (pick(w, 2))
        kit_with(&w->k, (struct crail_options){.flags = CRAIL_OPTION_TTL,
                                               .ttl_ns = (uint64_t)SECOND * (1 + pick(w, 3)),
                                               .storage_class = CRAIL_CLASS_ANY});
    struct answer a =
        kit_op(&w->k, CRAIL_OP_JOB, CRAIL_OPF_PARENTS, paths[i], &quota, sizeof(quota), 0, new_token(w), 0);
    if (a.status == OK)
        w->job[i] = a.r.version;
    else
        kit_put(&w->k, CRAIL_OPF_PARENTS, "/j1/inner/file", "12345", 5);
}

static void do_queue(struct life *w) {
    const char *path = pick(w, 2) ? "/q" : random_path(w);
    kit_op(&w->k, CRAIL_OP_TAKE, 0, path, NULL, 0, 0, new_token(w), 0);
    if (pick(w, 3) == 0)
        kit_op(&w->k, CRAIL_OP_ACK, 0, NULL, NULL, 0, 0, w->recent_token[pick(w, 32)], 0);
}

static void do_barrier(struct life *w) {
    kit_op(&w->k, CRAIL_OP_ENTER, CRAIL_OPF_PARENTS, pick(w, 2) ? "/barrier" : "/a/barrier", NULL, 0, 0, new_token(w),
           2 + pick(w, 2));
}

static void do_end(struct life *w) {
    kit_end(&w->k, w->recent_token[pick(w, 32)]);
}

static void do_open(struct life *w) {
    int op = pick(w, 2) ? CRAIL_OP_OPEN : CRAIL_OP_APPEND;
    kit_op(&w->k, op, 0, random_path(w), NULL, 0, 0, new_token(w), 0);
}

static void do_alloc(struct life *w) {
    if (w->grants_n == GRANTS)
        return;
    struct grant *g = &w->grant[w->grants_n];
    g->bytes = 1 + pick(w, 60000);
    g->session = pick(w, SESSIONS);
    w->k.s = w->s[g->session];
    struct answer a = kit_alloc(&w->k, 0, g->bytes);
    for (g->n = 0; a.status == OK && g->n < a.r.count; g->n++)
        g->e[g->n] = extent_at(&a, g->n);
    w->grants_n += a.status == OK;
}

static void forget_grant(struct life *w, uint32_t i) {
    w->grant[i] = w->grant[--w->grants_n];
}

static void do_commit(struct life *w) {
    if (!w->grants_n)
        return;
    uint32_t i = pick(w, w->grants_n);
    struct grant g = w->grant[i];
    w->k.s = w->s[g.session];
    if (pick(w, 5) == 0) {
        kit_release(&w->k, g.e, g.n);
        forget_grant(w, i);
        return;
    }
    random_options(w);
    struct answer a = kit_commit(&w->k, parents(w), random_path(w), g.e, g.n, 0, g.bytes);
    if (a.status == OK || a.status == E(STALE_LOCATION))
        forget_grant(w, i);
}

static void open_session(struct life *w, uint32_t i) {
    uint64_t id = ++w->next_id;
    assert(crail_meta_session_open(w->k.m, id, &w->s[i]) == 0);
}

static void do_session(struct life *w) {
    uint32_t at = pick(w, SESSIONS);
    crail_meta_session_end(w->k.m, w->s[at]);
    for (uint32_t i = w->grants_n; i--;)
        if (w->grant[i].session == at)
            forget_grant(w, i);
    open_session(w, at);
}

static void do_time(struct life *w) {
    w->k.now_ns += pick(w, 2) * SECOND;
    crail_meta_clock(w->k.m, w->k.now_ns);
}

static void do_server(struct life *w) {
    uint32_t number = w->servers ? 1 + pick(w, w->servers) : 0;
    if (w->servers < 2 || (w->servers < SERVERS_MAX && pick(w, 10) == 0)) {
        char note[32];
        w->servers = kit_server_at(&w->k, 2, GRANULES, (uint8_t)pick(w, 3), pick(w, 3));
        memset(w->generation[w->servers], 0,
               sizeof(w->generation[0])); /* the number may be one of a life that is lost */
        sprintf(note, "server %u", w->servers);
        assert(crail_meta_server_note(w->k.m, w->servers, note, (uint32_t)strlen(note)) == 0);
        return;
    }
    if (pick(w, 3) == 0)
        crail_meta_server_place(w->k.m, number, (struct crail_meta_place){pick(w, 4), (uint8_t)pick(w, 4)});
    else {
        bool is_lost = pick(w, 12) == 0;
        enum crail_meta_server_state state = is_lost      ? CRAIL_SERVER_LOST
                                             : pick(w, 4) ? CRAIL_SERVER_UP
                                                          : CRAIL_SERVER_DOWN;
        crail_meta_server_set(w->k.m, number, state);
        w->is_given_up[number] |= is_lost;
        w->is_strict &= !is_lost; /* its generations go with it, from what the cut has still to write too */
    }
}

static void do_retire(struct life *w) {
    struct crail_retire order[20];
    uint32_t number = 1 + pick(w, w->servers), n = crail_meta_retires_take(w->k.m, number, order, 20);
    for (uint32_t i = 0; i < n; i++) {
        if (pick(w, 10) == 0)
            continue;
        w->generation[number][order[i].region][order[i].granule] = order[i].generation;
        assert(crail_meta_retires_done(w->k.m, number, &order[i], 1) == 0);
    }
}

/* ---- cuts and deaths -------------------------------------------------------------------- */

static bool jobs_are_reachable(const struct crail_meta *m) {
    for (uint32_t i = 0; i < m->jobs_cap; i++)
        if (m->jobs[i] &&
            !(crail_job_at(m, m->jobs[i])->node && crail_tree_reachable(m, crail_job_at(m, m->jobs[i])->node)))
            return false;
    return true;
}

static void cut_begins(struct life *w) {
    w->rows.len = 0;
    w->want = facts_of(w->k.m);
    /* What a session or a job leaves when it ends goes in steps here, and at once in a load. */
    w->is_strict = !w->k.m->sessions_dying && !w->k.m->jobs_ending && jobs_are_reachable(w->k.m);
    assert(crail_meta_cut_begin(w->k.m, &w->rows) == 0);
    assert(crail_meta_cut_begin(w->k.m, &w->rows) == -EBUSY);
    w->is_cutting = true;
}

static void recover_servers(struct life *w, struct kit *k, bool takes_over) {
    static uint64_t found[2][GRANULES];
    struct crail_live live[64];
    for (uint32_t number = 1; number <= k->m->servers_n; number++) {
        uint8_t is_live[2][GRANULES] = {{0}};
        struct crail_retire busy[8];
        uint32_t busy_n = 0, from = 0, n, lost;
        if (k->m->servers[number - 1]->state == CRAIL_SERVER_LOST || pick(w, 5) == 0)
            continue;
        assert(crail_meta_server_set(k->m, number, CRAIL_SERVER_UP) == -EINVAL);
        while ((n = crail_meta_server_live(k->m, number, from, live, 1 + pick(w, 64)))) {
            for (uint32_t i = 0; i < n; i++)
                memset(&is_live[live[i].region][live[i].granule], 1, live[i].granules);
            from += n;
        }
        for (uint32_t r = 0; r < 2; r++) {
            for (uint32_t g = 0; g < GRANULES; g++) {
                found[r][g] = w->generation[number][r][g] + !is_live[r][g];
                if (!is_live[r][g] && busy_n < 8 && pick(w, 20) == 0) {
                    is_live[r][g] = 1;
                    busy[busy_n++] = (struct crail_retire){r, g, 1, 0, 0};
                }
            }
        }
        const uint64_t *generations[2] = {found[0], found[1]};
        struct crail_retire outside = {0, GRANULES, 1, 0, 0};
        assert(crail_meta_server_recovered(k->m, number, generations, &outside, 1, &lost) == -EPROTO);
        assert(crail_meta_server_recovered(k->m, number, generations, busy, busy_n, &lost) == 0);
        assert(!lost || w->is_given_up[number]);
        assert(crail_meta_server_recovered(k->m, number, generations, busy, busy_n, &lost) == -EINVAL);
        if (takes_over)
            memcpy(w->generation[number], found, sizeof(found));
    }
    kit_check(k);
}

/* Every grant of the first life whose session and server the second one knows is one there, too. */
static void grants_survive(struct life *w, struct kit *k, const struct loaded_facts *f) {
    for (uint32_t i = 0; i < w->grants_n; i++) {
        const struct grant *g = &w->grant[i];
        const struct known_session *at = NULL;
        for (uint32_t x = 0; x < f->sessions; x++)
            at = f->session[x].id == w->s[g->session]->id ? &f->session[x] : at;
        for (uint32_t e = 0; at && e < g->n; e++) {
            const struct crail_server *now = crail_server_find(w->k.m, g->e[e].server);
            const struct crail_server *then = crail_server_find(k->m, g->e[e].server);
            if (then && then->state != CRAIL_SERVER_LOST && now->state != CRAIL_SERVER_LOST)
                assert(crail_session_owns(k->m, at->s, &g->e[e]));
        }
    }
}

static void take_over(struct life *w, struct kit *k, const struct loaded_facts *f, int grants_fd) {
    uint32_t old[GRANTS];
    for (uint32_t i = 0; i < w->grants_n; i++)
        old[i] = (uint32_t)w->s[w->grant[i].session]->id;
    kit_close(&w->k);
    close(w->grants_fd);
    w->grants_fd = grants_fd;
    w->k = *k;
    for (uint32_t i = 0; i < SESSIONS; i++)
        w->s[i] = NULL;
    uint32_t n = 0;
    for (uint32_t i = 0; i < f->sessions; i++) {
        if (n < SESSIONS)
            w->s[n++] = f->session[i].s;
        else
            crail_meta_session_end(k->m, f->session[i].s);
    }
    while (n < SESSIONS)
        open_session(w, n++);
    for (uint32_t i = w->grants_n; i--;) {
        uint32_t at = 0;
        while (at < SESSIONS && w->s[at]->id != old[i])
            at++;
        w->grant[i].session = at;
        bool is_there = at < SESSIONS; /* on a server that was lost they were forgotten */
        for (uint32_t e = 0; is_there && e < w->grant[i].n; e++)
            is_there = crail_session_owns(k->m, w->s[at], &w->grant[i].e[e]);
        if (is_there)
            continue;
        forget_grant(w, i);
        old[i] = old[w->grants_n];
    }
    w->servers = k->m->servers_n;
    for (uint32_t number = 1; number <= w->servers; number++) /* though the cut may not know of it yet */
        if (w->is_given_up[number])
            assert(crail_meta_server_set(k->m, number, CRAIL_SERVER_LOST) == 0);
    kit_check(&w->k);
}

static int copy_file(int fd) {
    static uint8_t bytes[1 << 16];
    int copy = memfd_create("grants", 0);
    off_t at = 0;
    for (ssize_t n; (n = pread(fd, bytes, sizeof(bytes), at)) > 0; at += n)
        assert(pwrite(copy, bytes, (size_t)n, at) == n);
    return copy;
}

/* The namenode dies and another one reads what it left. */
static void die(struct life *w) {
    struct kit k;
    struct loaded_facts f;
    int grants_fd = copy_file(w->grants_fd);
    kit_open_durable(&k, grants_fd);
    k.now_ns = w->k.now_ns;
    kit_load(&k, &w->db, &f);
    crail_meta_counters_set(k.m,
                            &(struct crail_meta_counters){w->k.m->last_id, w->k.m->last_version, w->k.m->last_job});
    if (w->is_strict) {
        struct facts got = facts_of(k.m);
        same_facts(&w->want, &got);
        facts_free(&got);
        w->strict++;
    }
    kit_check(&k);
    grants_survive(w, &k, &f);
    bool takes_over = pick(w, 2);
    recover_servers(w, &k, takes_over);
    w->loads++;
    if (takes_over) {
        take_over(w, &k, &f, grants_fd);
        return;
    }
    kit_settle(&k);
    kit_check(&k);
    kit_close(&k);
    close(grants_fd);
}

static void cut_ends(struct life *w) {
    w->is_cutting = false;
    w->cuts++;
    assert(crail_meta_cut_result(w->k.m) == 0);
    db_apply(&w->db, &w->rows);
    if (pick(w, 2))
        crail_meta_durable_up_to(w->k.m, crail_meta_epoch(w->k.m) - 1);
    if (pick(w, 3) == 0)
        die(w);
    facts_free(&w->want);
}

static void do_cut(struct life *w) {
    if (!w->is_cutting)
        cut_begins(w);
    else if (!crail_meta_cut_step(w->k.m, 0))
        cut_ends(w);
}

/* A server may say of itself that it is huge; a check of it takes long. */
static bool is_small(const struct crail_meta *m) {
    for (uint32_t i = 0; i < m->servers_n; i++)
        if (m->servers[i]->granules > 1 << 20)
            return false;
    return true;
}

/* Any row, changed in any way and with a right crc: a load refuses it, or is whole. */
static void damage_is_refused_or_harmless(struct life *w, uint32_t times) {
    uint32_t refused = 0;
    for (uint32_t i = 0; i < times; i++) {
        struct db_row *r = NULL;
        struct kit k;
        struct loaded_facts f;
        struct crail_load_report report;
        char why[256] = "";
        while (!r)
            r = w->db.bucket[pick(w, DB_BUCKETS)];
        struct crail_row *row = (struct crail_row *)r->row.data;
        uint32_t n = row->key_len + row->value_len, at = pick(w, n < 70 ? n : pick(w, 4) ? 70 : n);
        uint8_t *byte = r->row.data + sizeof(*row) + at, kept = *byte;
        *byte = pick(w, 2) ? kept ^ (uint8_t)(1 << pick(w, 8)) : (uint8_t)pick(w, 256);
        row->crc = crail_crc32c(0, r->row.data + sizeof(*row), n);
        kit_open_durable(&k, -1);
        int rc = try_load(&k, &w->db, &f, &report, why, sizeof(why));
        assert(rc == -ENOMEM || ((rc == 0) == !*why && (rc == 0 || rc == -EUCLEAN))); /* a table up to a huge number */
        refused += rc != 0;
        if (rc == 0 && is_small(k.m)) {
            kit_check(&k);
            kit_settle(&k);
            kit_check(&k);
        }
        kit_close(&k);
        *byte = kept;
        row->crc = crail_crc32c(0, r->row.data + sizeof(*row), n);
    }
    printf("of %u damaged rows %u are refused\n", times, refused);
    assert(times < 100 || (refused > times / 10 && refused < times));
}

static void a_cut_at_any_moment_is_the_engine_as_it_was(uint64_t seed, uint32_t steps) {
    static void (*const all[])(struct life *) = {
        do_put,    do_put,    do_put,        do_put_item, do_put_item, do_edit,  do_make,
        do_remove, do_rmtree, do_rename,     do_queue,    do_alloc,    do_alloc, do_commit,
        do_commit, do_commit, do_barrier,    do_end,      do_open,     do_job,   do_server,
        do_retire, do_retire, do_attributes, do_cut,      do_cut,      do_cut,   do_cut};
    struct life *w = calloc(1, sizeof(*w));
    w->seed = seed | 1;
    w->grants_fd = memfd_create("grants", 0);
    kit_open_durable(&w->k, w->grants_fd);
    for (uint32_t i = 0; i < SESSIONS; i++)
        open_session(w, i);
    do_server(w);
    do_server(w);
    for (uint32_t i = 0; i < steps; i++) {
        random_session(w);
        all[pick(w, sizeof(all) / sizeof(all[0]))](w);
        w->k.options = NULL;
        if (pick(w, 60) == 0)
            do_session(w);
        if (pick(w, 60) == 0)
            do_time(w);
        if (pick(w, 3) == 0)
            crail_meta_step(w->k.m, 0);
        if (pick(w, 6) == 0)
            kit_check(&w->k);
    }
    printf("%u cuts, %u loads, %u of them compared\n", w->cuts, w->loads, w->strict);
    assert(steps < 2000 || (w->cuts > steps / 200 && w->strict > 10));
    if (w->is_cutting)
        facts_free(&w->want);
    damage_is_refused_or_harmless(w, steps / 20);
    kit_close(&w->k);
    close(w->grants_fd);
    crail_buf_free(&w->rows);
    db_free(&w->db);
    free(w);
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : kit_clock_ns() | 1;
    uint32_t steps = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 5000;
    printf("seed %" PRIu64 " steps %u\n", seed, steps);
    fflush(stdout);
    a_cut_at_any_moment_is_the_engine_as_it_was(seed, steps);
    printf("ok a_cut_at_any_moment_is_the_engine_as_it_was\n");
    return 0;
}
