/* Queues and barriers in the engine: each claim, then a long random life against a simple model.
 *     test_meta_queue [seed [steps]]
 * sources: meta base */
#include "meta_kit.h"

#define CHECK(x)                                                    \
    do {                                                            \
        if (!(x)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
            abort();                                                \
        }                                                           \
    } while (0)

static struct answer q_put(struct kit *k, const char *path, const char *text) {
    return kit_op(k, CRAIL_OP_PUT, CRAIL_OPF_QUEUE, path, text, (uint32_t)strlen(text), 0, 0, 0);
}
static struct answer q_take(struct kit *k, const char *path, uint64_t token) {
    return kit_op(k, CRAIL_OP_TAKE, 0, path, NULL, 0, 0, token, 0);
}
static int q_ack(struct kit *k, uint64_t token) {
    return kit_op(k, CRAIL_OP_ACK, 0, NULL, NULL, 0, 0, token, 0).status;
}
static int q_end(struct kit *k, uint64_t token) {
    return kit_op(k, CRAIL_OP_END, 0, NULL, NULL, 0, 0, token, 0).status;
}
static void q_make(struct kit *k, const char *path) {
    CHECK(kit_op(k, CRAIL_OP_MKDIR, 0, path, NULL, 0, 0, CRAIL_KIND_QUEUE, 0).status == 0);
}

static bool says(const struct answer *a, const char *text) {
    size_t n = strlen(text);
    uint64_t number;
    memcpy(&number, a->data, 8);
    return a->status == 0 && a->r.data_len == 8 + n && number == a->r.version && a->r.size == n &&
           (a->r.flags & CRAIL_RESF_INLINE) && memcmp(a->data + 8, text, n) == 0;
}

static bool takes(struct kit *k, const char *path, uint64_t token, const char *text) {
    struct answer a = q_take(k, path, token);
    return says(&a, text);
}

static struct answer enter(struct kit *k, const char *path, uint64_t token, uint64_t n) {
    return kit_op(k, CRAIL_OP_ENTER, CRAIL_OPF_PARENTS, path, NULL, 0, 0, token, n);
}

static struct crail_meta_session *session(struct kit *k) {
    struct crail_meta_session *s;
    CHECK(crail_meta_session_open(k->m, ++k->next_session, &s) == 0);
    return s;
}

/* ---- queues ---------------------------------------------------------------- */

static void the_oldest_free_item_is_taken_and_comes_back_to_its_old_place(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    q_make(&k, "/q");
    CHECK(q_take(&k, "/q", 1).status == CRAIL_E_NOT_FOUND);
    static const char *const texts[] = {"a", "b", "c", "d", "e"};
    for (int i = 0; i < 5; i++)
        CHECK(q_put(&k, "/q", texts[i]).status == 0);
    CHECK(takes(&k, "/q", 1, "a") && takes(&k, "/q", 2, "b") && takes(&k, "/q", 3, "c"));
    CHECK(takes(&k, "/q", 2, "b")); /* the same token again */
    kit_check(&k);
    CHECK(q_end(&k, 3) == 0 && q_end(&k, 1) == 0 && q_end(&k, 1) == CRAIL_E_NOT_FOUND);
    kit_check(&k);
    CHECK(takes(&k, "/q", 11, "a") && takes(&k, "/q", 12, "c") && takes(&k, "/q", 13, "d"));
    CHECK(q_ack(&k, 12) == 0 && q_ack(&k, 12) == CRAIL_E_NOT_FOUND);
    CHECK(kit_stat(&k, "/q").r.size == 4);
    kit_check(&k);
    struct crail_meta_session *mine = k.s, *other = session(&k);
    k.s = other;
    CHECK(q_ack(&k, 11) == CRAIL_E_NOT_FOUND); /* tokens are of a session */
    CHECK(takes(&k, "/q", 11, "e") && q_take(&k, "/q", 12).status == CRAIL_E_NOT_FOUND);
    crail_meta_session_end(k.m, mine);
    kit_settle(&k);
    kit_check(&k);
    CHECK(takes(&k, "/q", 21, "a") && takes(&k, "/q", 22, "b") && takes(&k, "/q", 23, "d"));
    CHECK(q_put(&k, "/q", "f").status == 0 && takes(&k, "/q", 24, "f"));
    kit_check(&k);
    kit_close(&k);
}

static void only_its_own_operations_touch_a_queue(void) {
    struct kit k;
    char item[32];
    kit_open(&k, 64 << 20);
    q_make(&k, "/q");
    struct answer a = q_put(&k, "/q", "a");
    snprintf(item, sizeof item, "/q/%020llu", (unsigned long long)a.r.version);
    CHECK(kit_stat(&k, item).status == 0 && kit_list(&k, "/q", "", 10).r.count == 1);
    CHECK(kit_put(&k, 0, "/q/x", "x", 1).status == CRAIL_E_INVALID_ARGUMENT);
    CHECK(kit_put(&k, 0, item, "x", 1).status == CRAIL_E_INVALID_ARGUMENT);
    CHECK(kit_remove(&k, 0, item).status == CRAIL_E_INVALID_ARGUMENT);
    CHECK(kit_rmtree(&k, item).status == CRAIL_E_INVALID_ARGUMENT);
    CHECK(kit_rename(&k, 0, item, "/x").status == CRAIL_E_INVALID_ARGUMENT);
    CHECK(kit_put(&k, 0, "/leaf", "x", 1).status == 0 && kit_mkdir(&k, 0, "/d").status == 0);
    CHECK(kit_rename(&k, 0, "/leaf", "/q/leaf").status == CRAIL_E_INVALID_ARGUMENT);
    CHECK(q_put(&k, "/leaf", "x").status == CRAIL_E_NOT_CONTAINER);
    CHECK(q_put(&k, "/d", "x").status == CRAIL_E_IS_CONTAINER);
    CHECK(q_put(&k, "/none", "x").status == CRAIL_E_NOT_FOUND);
    CHECK(q_take(&k, "/leaf", 1).status == CRAIL_E_NOT_CONTAINER && q_take(&k, "/d", 1).status == CRAIL_E_IS_CONTAINER);
    CHECK(kit_op(&k, CRAIL_OP_PUT, CRAIL_OPF_QUEUE | CRAIL_OPF_IF_ABSENT, "/q", "x", 1, 0, 0, 0).status ==
          CRAIL_E_INVALID_ARGUMENT);
    kit_check(&k);
    kit_close(&k);
}

static void a_queue_moves_with_its_items_and_takers_and_goes_with_them(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    q_make(&k, "/q");
    for (int i = 0; i < 3; i++)
        CHECK(q_put(&k, "/q", "x").status == 0);
    CHECK(takes(&k, "/q", 1, "x") && takes(&k, "/q", 2, "x"));
    CHECK(kit_rename(&k, 0, "/q", "/r").status == 0);
    kit_check(&k);
    CHECK(q_ack(&k, 1) == 0 && q_end(&k, 2) == 0 && kit_stat(&k, "/r").r.size == 2);
    CHECK(takes(&k, "/r", 3, "x"));
    CHECK(kit_remove(&k, 0, "/r").status == CRAIL_E_NOT_EMPTY && kit_rmtree(&k, "/r").status == 0);
    CHECK(q_ack(&k, 3) == CRAIL_E_NOT_FOUND && q_take(&k, "/r", 3).status == CRAIL_E_NOT_FOUND);
    kit_check(&k);
    kit_settle(&k);
    kit_check(&k);
    CHECK(q_ack(&k, 3) == CRAIL_E_NOT_FOUND && q_end(&k, 3) == CRAIL_E_NOT_FOUND);
    struct crail_meta_stats st;
    crail_meta_stats(k.m, &st);
    CHECK(st.nodes == 1 && st.holds == 0);
    kit_close(&k);
}

static void large_items_keep_their_extents_until_they_are_acknowledged(void) {
    struct kit k;
    struct crail_meta_stats st;
    kit_open(&k, 64 << 20);
    uint32_t server = kit_server(&k, 1, 64);
    q_make(&k, "/q");
    struct answer a = kit_alloc(&k, CRAIL_OPF_ONE_EXTENT, 10000);
    struct crail_extent e;
    memcpy(&e, a.data, sizeof e);
    CHECK(kit_commit(&k, CRAIL_OPF_QUEUE, "/q", &e, 1, 0, 10000).status == 0);
    a = q_take(&k, "/q", 1);
    CHECK(a.status == 0 && a.r.count == 1 && a.r.data_len == 8 + 32 && a.r.size == 10000);
    CHECK(!(a.r.flags & CRAIL_RESF_INLINE) && memcmp(a.data + 8, &e, 24) == 0);
    kit_check(&k);
    CHECK(kit_retire(&k, server) == 0 && q_ack(&k, 1) == 0 && kit_retire(&k, server) == 1);
    crail_meta_stats(k.m, &st);
    CHECK(st.granules_free == 64);
    kit_check(&k);
    kit_close(&k);
}

static void items_that_expire_leave_wherever_they_stand(void) {
    struct kit k;
    static char frame[64];
    kit_open(&k, 64 << 20);
    q_make(&k, "/q");
    for (int i = 0; i < 30; i++) {
        struct crail_options o = {.ttl_ns = i % 3 ? 0 : 1000000, .storage_class = CRAIL_CLASS_ANY};
        o.flags = i % 3 ? 0 : CRAIL_OPTION_TTL;
        struct crail_op op = {.code = CRAIL_OP_PUT, .flags = CRAIL_OPF_QUEUE, .path_len = 2, .data_len = 1};
        op.options_len = sizeof o;
        memcpy(frame, "/qx", 3);
        k.reply.len = 0;
        CHECK(crail_meta_execute(k.m, k.s, &op, frame, &o, frame + 2, ++k.now_ns, &k.reply) == 0);
        CHECK(((struct crail_result *)(void *)k.reply.data)->status == 0);
    }
    for (uint64_t i = 0; i < 20; i++)
        CHECK(takes(&k, "/q", i, "x"));
    for (uint64_t i = 0; i < 20; i += 2)
        CHECK(q_end(&k, i) == 0);
    k.now_ns += 2000000;
    CHECK(kit_stat(&k, "/q").status == 0); /* lets the time be known */
    kit_settle(&k);
    kit_check(&k);
    CHECK(kit_stat(&k, "/q").r.size == 20);
    uint64_t taken = 0;
    while (takes(&k, "/q", 100 + taken, "x"))
        taken++;
    kit_check(&k);
    CHECK(taken == 13); /* 20 are left, and seven of them are held */
    kit_close(&k);
}

static void a_hundred_thousand_items_come_back_in_order(void) {
    enum { N = 100000 };
    struct kit k;
    kit_open(&k, 256 << 20);
    q_make(&k, "/q");
    struct crail_meta_session *first = k.s;
    for (uint64_t i = 0; i < N; i++)
        CHECK(q_put(&k, "/q", "x").status == 0);
    for (uint64_t i = 0; i < N; i++)
        CHECK(q_take(&k, "/q", i).status == 0);
    k.s = session(&k);
    uint64_t longest = 0, at = kit_clock_ns();
    crail_meta_session_end(k.m, first);
    do {
        uint64_t now = kit_clock_ns();
        longest = now - at > longest ? now - at : longest;
        at = now;
    } while (crail_meta_step(k.m, 1));
    printf("  longest step %u us\n", (unsigned)(longest / 1000));
    uint64_t before = 0;
    for (uint64_t i = 0; i < N; i++) {
        struct answer a = q_take(&k, "/q", i);
        CHECK(a.status == 0 && a.r.version > before);
        before = a.r.version;
    }
    kit_check(&k);
    kit_close(&k);
}

/* ---- barriers --------------------------------------------------------------- */

static void a_barrier_opens_when_all_are_there_again_and_again(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    for (uint64_t round = 1; round <= 3; round++) {
        uint64_t t = 10 * round;
        CHECK(enter(&k, "/b/x", t + 1, 3).status == CRAIL_E_DEADLINE);
        CHECK(enter(&k, "/b/x", t + 2, 3).status == CRAIL_E_DEADLINE);
        CHECK(enter(&k, "/b/x", t + 1, 3).status == CRAIL_E_DEADLINE); /* the same member */
        CHECK(enter(&k, "/b/x", t + 3, 4).status == CRAIL_E_INVALID_ARGUMENT);
        kit_check(&k);
        struct answer a = enter(&k, "/b/x", t + 3, 3);
        CHECK(a.status == 0 && a.r.version == round);
        for (uint64_t i = 1; i <= 3; i++)
            CHECK(enter(&k, "/b/x", t + i, 3).r.version == round); /* asked again */
        kit_check(&k);
        if (round == 1)
            for (uint64_t i = 1; i <= 3; i++)
                CHECK(q_end(&k, t + i) == 0);
    }
    CHECK(enter(&k, "/b", 90, 3).status == CRAIL_E_IS_CONTAINER);
    CHECK(enter(&k, "/c", 91, 0).status == CRAIL_E_INVALID_ARGUMENT);
    CHECK(kit_get(&k, "/b/x").status == CRAIL_E_IS_CONTAINER);
    CHECK(kit_list(&k, "/b/x", "", 1).status == CRAIL_E_NOT_CONTAINER);
    CHECK(kit_rename(&k, 0, "/b/x", "/y").status == CRAIL_E_INVALID_ARGUMENT);
    CHECK(enter(&k, "/alone", 92, 1).r.version == 1);
    kit_check(&k);
    kit_close(&k);
}

static void who_leaves_does_not_break_it_who_dies_does(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    struct crail_meta_session *mine = k.s, *dies = session(&k);
    CHECK(enter(&k, "/b", 1, 2).status == CRAIL_E_DEADLINE && q_end(&k, 1) == 0);
    CHECK(enter(&k, "/b", 2, 2).status == CRAIL_E_DEADLINE);
    k.s = dies;
    CHECK(enter(&k, "/b", 1, 2).r.version == 1); /* opened with the one that is there */
    CHECK(enter(&k, "/c", 2, 3).status == CRAIL_E_DEADLINE);
    k.s = mine;
    CHECK(enter(&k, "/c", 3, 3).status == CRAIL_E_DEADLINE);
    crail_meta_session_end(k.m, dies);
    CHECK(enter(&k, "/b", 2, 2).r.version == 1); /* it had opened before */
    CHECK(enter(&k, "/c", 3, 3).status == CRAIL_E_BARRIER_BROKEN);
    CHECK(enter(&k, "/c", 4, 3).status == CRAIL_E_BARRIER_BROKEN);
    kit_check(&k);
    CHECK(kit_remove(&k, 0, "/c").status == 0);
    CHECK(enter(&k, "/c", 3, 3).status == CRAIL_E_BARRIER_BROKEN); /* it is of the one that was removed */
    CHECK(enter(&k, "/c", 5, 2).status == CRAIL_E_DEADLINE);       /* a new one */
    kit_settle(&k);
    kit_check(&k);
    CHECK(enter(&k, "/c", 3, 3).status == CRAIL_E_BARRIER_BROKEN && q_end(&k, 3) == 0);
    CHECK(kit_rmtree(&k, "/c").status == 0 && kit_remove(&k, 0, "/b").status == 0);
    CHECK(enter(&k, "/c", 5, 2).status == CRAIL_E_BARRIER_BROKEN);
    kit_settle(&k);
    CHECK(enter(&k, "/c", 5, 2).status == CRAIL_E_BARRIER_BROKEN);
    CHECK(enter(&k, "/b", 2, 2).r.version == 1); /* removed after it had opened: the answer stays */
    kit_check(&k);
    kit_close(&k);
}

/* ---- a random life ------------------------------------------------------------ */

enum { SESSIONS = 4, TOKENS = 40, ITEMS = 60 };

struct model {
    uint64_t item[ITEMS]; /* numbers, oldest first */
    int taker[ITEMS];     /* session * TOKENS + token, -1: free */
    int n;
};

static void model_remove(struct model *q, int i) {
    for (q->n--; i < q->n; i++) {
        q->item[i] = q->item[i + 1];
        q->taker[i] = q->taker[i + 1];
    }
}

static int model_held(const struct model *q, int who) {
    for (int i = 0; i < q->n; i++)
        if (q->taker[i] == who)
            return i;
    return -1;
}

static int model_free(const struct model *q) {
    return model_held(q, -1);
}

static void a_random_life(uint64_t seed, int steps) {
    struct kit k;
    struct model q = {0};
    struct crail_meta_session *sessions[SESSIONS];
    uint64_t taken = 0, returned = 0, gone = 0;
    const char *path = "/q";
    kit_open(&k, 64 << 20);
    q_make(&k, path);
    sessions[0] = k.s;
    for (int i = 1; i < SESSIONS; i++)
        sessions[i] = session(&k);
    for (int step = 0; step < steps; step++) {
        int s = (int)kit_random(&seed, SESSIONS), token = (int)kit_random(&seed, TOKENS), who = s * TOKENS + token;
        int i = model_held(&q, who);
        k.s = sessions[s];
        switch (kit_random(&seed, 12)) {
        case 0:
        case 1:
        case 2:
            if (q.n < ITEMS) {
                struct answer a = q_put(&k, path, "x");
                CHECK(a.status == 0);
                q.item[q.n] = a.r.version;
                q.taker[q.n++] = -1;
            }
            break;
        case 3:
        case 4:
        case 5:
        case 6: {
            struct answer a = q_take(&k, path, (uint64_t)token);
            i = i < 0 ? model_free(&q) : i;
            CHECK(i < 0 ? a.status == CRAIL_E_NOT_FOUND : says(&a, "x") && a.r.version == q.item[i]);
            if (i >= 0)
                q.taker[i] = who;
            taken += i >= 0;
            break;
        }
        case 7:
        case 8:
            CHECK(q_ack(&k, (uint64_t)token) == (i < 0 ? CRAIL_E_NOT_FOUND : 0));
            if (i >= 0)
                model_remove(&q, i);
            break;
        case 9:
            CHECK(q_end(&k, (uint64_t)token) == (i < 0 ? CRAIL_E_NOT_FOUND : 0));
            if (i >= 0)
                q.taker[i] = -1;
            returned += i >= 0;
            break;
        case 10:
            if (kit_random(&seed, 10) == 0) {
                crail_meta_session_end(k.m, sessions[s]);
                sessions[s] = k.s = session(&k);
                for (int j = 0; j < q.n; j++)
                    q.taker[j] = q.taker[j] / TOKENS == s && q.taker[j] >= 0 ? -1 : q.taker[j];
                kit_settle(&k);
            }
            break;
        default:
            if (kit_random(&seed, 100) == 0) {
                CHECK(kit_rmtree(&k, path).status == 0);
                if (kit_random(&seed, 2))
                    kit_settle(&k);
                q_make(&k, path);
                q.n = 0;
                gone++;
                for (int t = 0; t < TOKENS && q.n == 0; t++) /* what was taken is not there any more */
                    CHECK(q_ack(&k, (uint64_t)t) == CRAIL_E_NOT_FOUND);
                kit_settle(&k);
            } else if (kit_random(&seed, 20) == 0) {
                const char *to = path[1] == 'q' ? "/r" : "/q";
                CHECK(kit_rename(&k, 0, path, to).status == 0);
                path = to;
            }
        }
        if (step % 64 == 0)
            kit_check(&k);
    }
    printf("  %u taken, %u came back one by one, %u queues removed\n", (unsigned)taken, (unsigned)returned,
           (unsigned)gone);
    kit_check(&k);
    kit_close(&k);
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : kit_clock_ns() | 1;
    the_oldest_free_item_is_taken_and_comes_back_to_its_old_place();
    only_its_own_operations_touch_a_queue();
    a_queue_moves_with_its_items_and_takers_and_goes_with_them();
    large_items_keep_their_extents_until_they_are_acknowledged();
    items_that_expire_leave_wherever_they_stand();
    a_hundred_thousand_items_come_back_in_order();
    a_barrier_opens_when_all_are_there_again_and_again();
    who_leaves_does_not_break_it_who_dies_does();
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    a_random_life(seed, argc > 2 ? atoi(argv[2]) : 30000);
    printf("all passed\n");
    return 0;
}
