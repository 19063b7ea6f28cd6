/* What the namenode does to a value or its attributes by itself: INCR, TRUNCATE, SETATTR. sources: meta base */
#include "meta_kit.h"

/* ---- counters ------------------------------------------------------------------------- */

static struct answer incr(struct kit *k, const char *path, int64_t by) {
    return kit_op(k, CRAIL_OP_INCR, 0, path, NULL, 0, 0, (uint64_t)by, 0);
}

static void NUMBER(struct kit *k, const char *path, int64_t by, int64_t wanted, const char *text) {
    int64_t got;
    struct answer a = incr(k, path, by);
    WANT(a, OK);
    assert(a.r.data_len == sizeof(got));
    memcpy(&got, a.data, sizeof(got));
    uint64_t version = a.r.version;
    assert(got == wanted);
    a = kit_get(k, path);
    WANT(a, OK);
    assert(a.r.version == version && a.r.size == strlen(text) && memcmp(a.data, text, a.r.size) == 0);
}

static void a_counter_counts_in_text_that_everybody_reads(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    NUMBER(&k, "/n", 5, 5, "5");
    NUMBER(&k, "/n", -8, -3, "-3");
    NUMBER(&k, "/n", 0, -3, "-3");
    WANT(kit_put(&k, 0, "/n", "0041", 4), OK);
    NUMBER(&k, "/n", 1, 42, "42");
    WANT(kit_put(&k, 0, "/n", "9223372036854775806", 19), OK);
    NUMBER(&k, "/n", 1, INT64_MAX, "9223372036854775807");
    WANT(incr(&k, "/n", 1), E(INVALID_ARGUMENT));
    NUMBER(&k, "/n", INT64_MIN, -1, "-1");
    NUMBER(&k, "/n", -INT64_MAX, INT64_MIN, "-9223372036854775808");
    WANT(incr(&k, "/n", -1), E(INVALID_ARGUMENT));
    NUMBER(&k, "/n", 1, -INT64_MAX, "-9223372036854775807");
    WANT(incr(&k, "/no/n", 1), E(NOT_FOUND));
    WANT(kit_op(&k, CRAIL_OP_INCR, CRAIL_OPF_PARENTS, "/no/n", NULL, 0, 0, 1, 0), OK);
    WANT(incr(&k, "/", 1), E(IS_CONTAINER));
    kit_check(&k);
    kit_close(&k);
}

static void what_is_no_number_is_not_counted(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 16);
    static const char *const bad[] = {"",
                                      "-",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1\n",
                                      "1.0",
                                      "0x1",
                                      "9223372036854775808",
                                      "a",
                                      "--1",
                                      "-9223372036854775809",
                                      "99999999999999999999",
                                      "1-"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        WANT(kit_put(&k, 0, "/n", bad[i], (uint32_t)strlen(bad[i])), OK);
        uint64_t version = kit_stat(&k, "/n").r.version;
        WANT(incr(&k, "/n", 1), E(INVALID_ARGUMENT));
        assert(kit_stat(&k, "/n").r.version == version);
    }
    struct answer a = kit_alloc(&k, 0, 5000);
    struct crail_extent e = extent_at(&a, 0);
    WANT(kit_commit(&k, 0, "/n", &e, 1, 0, 5000), OK);
    WANT(incr(&k, "/n", 1), E(INVALID_ARGUMENT));
    kit_check(&k);
    kit_close(&k);
}

/* ---- truncate --------------------------------------------------------------------------- */

static struct answer truncate_to(struct kit *k, int flags, const char *path, uint64_t version, uint64_t size) {
    return kit_op(k, CRAIL_OP_TRUNCATE, flags, path, NULL, 0, 0, version, size);
}

static void truncate_cuts_or_fills_with_zeros_as_one_version(void) {
    struct kit k;
    char want[CRAIL_INLINE_MAX] = {0};
    static const uint32_t sizes[] = {0, 1, 15, 16, 17, 100, 4095, 4096, 16, 4096, 17, 0};
    kit_open(&k, 64 << 20);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    WANT(kit_put(&k, 0, "/a", "abcdefghijklmnopqrstuvwxyz", 26), OK);
    memcpy(want, "abcdefghijklmnopqrstuvwxyz", 26);
    uint32_t was = 26;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        uint64_t version = kit_stat(&k, "/a").r.version;
        WANT(truncate_to(&k, CRAIL_OPF_IF_VERSION, "/a", version - 1, sizes[i]), E(VERSION_CONFLICT));
        WANT(truncate_to(&k, CRAIL_OPF_IF_VERSION, "/a", version, sizes[i]), OK);
        if (sizes[i] < was)
            memset(want + sizes[i], 0, sizeof(want) - sizes[i]);
        was = sizes[i];
        struct answer a = kit_get(&k, "/a");
        assert(a.r.size == was && a.r.version > version && memcmp(a.data, want, was) == 0);
        version = a.r.version;
        a = truncate_to(&k, 0, "/a", 0, was); /* changes nothing */
        assert(a.r.version == version && kit_get(&k, "/a").r.version == version);
        kit_check(&k);
    }
    WANT(truncate_to(&k, 0, "/a", 0, CRAIL_INLINE_MAX + 1), E(INVALID_ARGUMENT));
    WANT(truncate_to(&k, 0, "/b", 0, 0), E(NOT_FOUND));
    WANT(truncate_to(&k, 0, "/", 0, 0), E(IS_CONTAINER));
    WANT(kit_remove(&k, 0, "/a"), OK);
    assert(stats_of(&k).arena_bytes_used == bytes);
    kit_close(&k);
}

static void a_value_in_extents_is_only_emptied(void) {
    struct kit k;
    kit_open(&k, 64 << 20);
    uint32_t sv = kit_server(&k, 1, 16);
    struct answer a = kit_alloc(&k, 0, 5000);
    struct crail_extent e = extent_at(&a, 0);
    WANT(kit_commit(&k, 0, "/a", &e, 1, 0, 5000), OK);
    WANT(truncate_to(&k, 0, "/a", 0, 100), E(INVALID_ARGUMENT));
    WANT(truncate_to(&k, 0, "/a", 0, 0), OK);
    assert(kit_get(&k, "/a").r.flags == CRAIL_RESF_INLINE && kit_retire(&k, sv) == 1);
    kit_check(&k);
    kit_close(&k);
}

/* ---- attributes --------------------------------------------------------------------------- */

struct edits {
    uint8_t bytes[200000];
    uint32_t n;
};

static void add(struct edits *e, const char *name, uint32_t name_len, const void *value, uint32_t value_len) {
    struct crail_attribute head = {(uint16_t)name_len, 0, value_len};
    memcpy(e->bytes + e->n, &head, sizeof(head));
    memcpy(e->bytes + e->n + sizeof(head), name, name_len);
    e->n += (uint32_t)sizeof(head) + name_len;
    if (value_len != CRAIL_ATTRIBUTE_GONE) {
        memcpy(e->bytes + e->n, value, value_len);
        e->n += value_len;
    }
}

static struct answer set(struct kit *k, const char *path, const struct edits *e) {
    return kit_op(k, CRAIL_OP_SETATTR, 0, path, e->bytes, e->n, 0, 0, 0);
}

static struct answer set_one(struct kit *k, const char *path, const char *name, const char *value) {
    static struct edits e;
    e.n = 0;
    add(&e, name, (uint32_t)strlen(name), value, value ? (uint32_t)strlen(value) : CRAIL_ATTRIBUTE_GONE);
    return set(k, path, &e);
}

/* All of them as "name=value;..." */
static const char *attributes(struct kit *k, const char *path) {
    static char text[4096];
    struct answer a = kit_op(k, CRAIL_OP_ATTRIBUTES, 0, path, NULL, 0, 0, 0, 0);
    uint32_t n = 0;
    WANT(a, OK);
    *text = 0;
    for (const uint8_t *p = a.data; p < a.data + a.r.size; n++) {
        struct crail_attribute head;
        memcpy(&head, p, sizeof(head));
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%.*s=%.*s;", head.name_len,
                 (const char *)p + sizeof(head), (int)head.value_len, (const char *)p + sizeof(head) + head.name_len);
        p += sizeof(head) + head.name_len + head.value_len;
    }
    assert(n == a.r.count && a.r.data_len == a.r.size);
    return text;
}

static void attributes_are_set_replaced_and_taken_away_together(void) {
    struct kit k;
    struct edits *e = calloc(1, sizeof(*e));
    kit_open(&k, 64 << 20);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    WANT(kit_put(&k, 0, "/a", "x", 1), OK);
    uint64_t version = kit_stat(&k, "/a").r.version;
    assert(strcmp(attributes(&k, "/a"), "") == 0);
    WANT(set_one(&k, "/a", "user.b", "2"), OK);
    WANT(set_one(&k, "/a", "user.a", "1"), OK);
    WANT(set_one(&k, "/a", "user.c", ""), OK);
    assert(strcmp(attributes(&k, "/a"), "user.a=1;user.b=2;user.c=;") == 0);
    add(e, "user.d", 6, "4", 1);
    add(e, "user.b", 6, "22", 2);
    add(e, "user.a", 6, NULL, CRAIL_ATTRIBUTE_GONE);
    add(e, "user.none", 9, NULL, CRAIL_ATTRIBUTE_GONE);
    struct answer a = set(&k, "/a", e);
    WANT(a, OK);
    assert(a.r.version == version && kit_stat(&k, "/a").r.version == version);
    assert(strcmp(attributes(&k, "/a"), "user.b=22;user.c=;user.d=4;") == 0);
    kit_check(&k);
    e->n = 0;
    WANT(set(&k, "/a", e), OK); /* nothing: "it counts as changed now" */
    assert(strcmp(attributes(&k, "/a"), "user.b=22;user.c=;user.d=4;") == 0);
    kit_check(&k);
    WANT(kit_put(&k, 0, "/a", "y", 1), OK); /* another value, the same node */
    WANT(kit_rename(&k, 0, "/a", "/b"), OK);
    assert(strcmp(attributes(&k, "/b"), "user.b=22;user.c=;user.d=4;") == 0);
    WANT(set_one(&k, "/", "on the root", "too"), OK);
    assert(strcmp(attributes(&k, "/"), "on the root=too;") == 0);
    WANT(set_one(&k, "/", "on the root", NULL), OK);
    WANT(kit_remove(&k, 0, "/b"), OK);
    assert(stats_of(&k).arena_bytes_used == bytes);
    WANT(kit_op(&k, CRAIL_OP_ATTRIBUTES, 0, "/b", NULL, 0, 0, 0, 0), E(NOT_FOUND));
    kit_check(&k);
    kit_close(&k);
    free(e);
}

static void malformed_edits_change_nothing(void) {
    struct kit k;
    struct edits *e = calloc(1, sizeof(*e));
    char name[300];
    kit_open(&k, 64 << 20);
    memset(name, 'n', sizeof(name));
    WANT(kit_put(&k, 0, "/a", "x", 1), OK);
    WANT(set_one(&k, "/a", "kept", "1"), OK);
    WANT(set_one(&k, "/a", "", "1"), E(INVALID_ARGUMENT));
    WANT(set_one(&k, "/a", "\xff", "1"), E(INVALID_ARGUMENT));
    add(e, name, 256, "x", 1);
    WANT(set(&k, "/a", e), E(INVALID_ARGUMENT));
    e->n = 0;
    add(e, "nul\0", 4, "x", 1);
    WANT(set(&k, "/a", e), E(INVALID_ARGUMENT));
    e->n = 0;
    add(e, "twice", 5, "x", 1);
    add(e, "once", 4, "x", 1);
    add(e, "twice", 5, NULL, CRAIL_ATTRIBUTE_GONE);
    WANT(set(&k, "/a", e), E(INVALID_ARGUMENT));
    e->n = 0;
    add(e, "cut short", 9, "0123456789", 10);
    for (uint32_t n = 1; n < 27; n++) {
        e->n = n;
        WANT(set(&k, "/a", e), E(INVALID_ARGUMENT));
    }
    e->n = 0;
    for (uint32_t i = 0; i <= CRAIL_ATTRIBUTE_EDITS_MAX; i++)
        add(e, name, i / 2 + 1, "x", i % 2 ? 1 : 0);
    WANT(set(&k, "/a", e), E(INVALID_ARGUMENT));
    assert(strcmp(attributes(&k, "/a"), "kept=1;") == 0);
    kit_check(&k);
    kit_close(&k);
    free(e);
}

static void a_node_has_64_kib_of_attributes_and_no_more(void) {
    struct kit k;
    struct edits *e = calloc(1, sizeof(*e));
    static char value[CRAIL_ATTRIBUTES_MAX];
    char name[16];
    kit_open(&k, 64 << 20);
    WANT(kit_mkdir(&k, 0, "/d"), OK);
    uint64_t bytes = stats_of(&k).arena_bytes_used;
    add(e, "all", 3, value, CRAIL_ATTRIBUTES_MAX - 11);
    WANT(set(&k, "/d", e), OK);
    kit_check(&k);
    WANT(set_one(&k, "/d", "more", ""), E(INVALID_ARGUMENT));
    WANT(set_one(&k, "/d", "all", ""), OK);
    /* Every size that a record of the arena may have, and many names. */
    for (uint32_t i = 0; i < 400; i++) {
        sprintf(name, "n%u", (i * 7919) % 400);
        e->n = 0;
        add(e, name, (uint32_t)strlen(name), value, i % 40);
        WANT(set(&k, "/d", e), OK);
        kit_check(&k);
    }
    assert(kit_op(&k, CRAIL_OP_ATTRIBUTES, 0, "/d", NULL, 0, 0, 0, 0).r.count == 401);
    for (uint32_t i = 0; i < 400; i++) {
        sprintf(name, "n%u", i);
        WANT(set_one(&k, "/d", name, NULL), OK);
    }
    WANT(set_one(&k, "/d", "all", NULL), OK);
    assert(stats_of(&k).arena_bytes_used == bytes);
    kit_check(&k);
    kit_close(&k);
    free(e);
}

int main(void) {
    RUN(a_counter_counts_in_text_that_everybody_reads);
    RUN(what_is_no_number_is_not_counted);
    RUN(truncate_cuts_or_fills_with_zeros_as_one_version);
    RUN(a_value_in_extents_is_only_emptied);
    RUN(attributes_are_set_replaced_and_taken_away_together);
    RUN(malformed_edits_change_nothing);
    RUN(a_node_has_64_kib_of_attributes_and_no_more);
    return 0;
}
