/* The meta room: columns, that is what GET would say of every child, of map outputs one partition.
 *     test_meta_column [seed]
 * sources: meta base */
#include "base/partitions.h"
#include "meta_kit.h"

#define GRANULE CRAIL_GRANULE

static uint64_t seed = 20261121;

static struct answer column(struct kit *k, const char *path, const char *after, uint64_t max, uint32_t partition) {
    return kit_op(k, CRAIL_OP_COLUMN, 0, path, after, (uint32_t)strlen(after), 0, max, partition);
}

/* One entry of a page, taken apart. */
struct entry {
    struct crail_column head;
    char name[CRAIL_NAME_MAX + 1];
    const uint8_t *extents, *data;
};

static const uint8_t *entry_at(const uint8_t *p, struct entry *e) {
    memcpy(&e->head, p, sizeof(e->head));
    p += sizeof(e->head);
    memcpy(e->name, p, e->head.name_len);
    e->name[e->head.name_len] = 0;
    p += crail_pad8(e->head.name_len);
    e->extents = p;
    e->data = p + e->head.extents * sizeof(struct crail_extent);
    return e->data + crail_pad8(e->head.data_len);
}

/* A map output of `runs` runs: partition p of run r is the text "r:p", p times. Its bytes. */
static uint32_t make_output(uint8_t *out, uint32_t runs, uint32_t partitions) {
    uint64_t offsets[1024];
    uint32_t at = 0, n = 0;
    for (uint32_t r = 0; r < runs; r++) {
        for (uint32_t p = 0; p < partitions; p++) {
            offsets[n++] = at;
            for (uint32_t i = 0; i < p; i++)
                at += (uint32_t)sprintf((char *)out + at, "%u:%u", r, p);
        }
        offsets[n++] = at;
    }
    struct crail_partitions_end end = {runs, partitions, CRAIL_PARTITIONS_MAGIC};
    memcpy(out + at, offsets, n * sizeof(offsets[0]));
    at += n * (uint32_t)sizeof(offsets[0]);
    memcpy(out + at, &end, sizeof(end));
    return at + (uint32_t)sizeof(end);
}

static void put_extents(struct kit *k, const char *path, uint64_t bytes) {
    struct answer a = kit_alloc(k, 0, bytes);
    WANT(a, OK);
    struct crail_extent e[CRAIL_EXTENTS_MAX];
    uint32_t n = a.r.count;
    memcpy(e, a.data, n * sizeof(e[0]));
    WANT(kit_commit(k, CRAIL_OPF_PARENTS, path, e, n, 0, bytes), OK);
}

/* ---- what it shows --------------------------------------------------------------------------- */

static void an_entry_says_what_get_says(void) {
    struct kit k;
    struct entry e;
    kit_open(&k, 64 << 20);
    kit_server(&k, 1, 1000);
    put_extents(&k, "/d/a", 10 * GRANULE + 7);
    WANT(kit_put(&k, 0, "/d/b", "inline value", 12), OK);
    WANT(kit_put(&k, 0, "/d/c", "", 0), OK);
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/d/e/below", "x", 1), OK);
    struct answer a = column(&k, "/d", "", 0, CRAIL_COLUMN_WHOLE);
    WANT(a, OK);
    assert(a.r.count == 4 && a.r.size == 4 && a.r.kind == CRAIL_KIND_DIRECTORY && !a.r.flags);
    uint8_t page[4096];
    const uint8_t *p = memcpy(page, a.data, a.r.data_len), *end = page + a.r.data_len;
    for (const char *name = "abc"; *name; name++) {
        char path[8];
        snprintf(path, sizeof(path), "/d/%c", *name);
        struct answer got = kit_get(&k, path);
        p = entry_at(p, &e);
        assert(strcmp(e.name, path + 3) == 0 && e.head.version == got.r.version && e.head.size == got.r.size);
        assert(e.head.kind == CRAIL_KIND_FILE && !e.head.server && !e.head.partitions);
        assert(e.head.extents == got.r.count);
        if (e.head.extents)
            assert(memcmp(e.extents, got.data, got.r.data_len) == 0 && !e.head.data_len);
        else
            assert(e.head.data_len == got.r.data_len && memcmp(e.data, got.data, got.r.data_len) == 0);
    }
    p = entry_at(p, &e);
    assert(p == end && strcmp(e.name, "e") == 0 && e.head.kind == CRAIL_KIND_DIRECTORY);
    assert(!e.head.extents && !e.head.data_len);
    kit_close(&k);
}

static void of_an_output_within_its_node_only_the_partition_is_shown(void) {
    struct kit k;
    struct entry e;
    uint8_t value[CRAIL_INLINE_MAX];
    char want[CRAIL_INLINE_MAX];
    kit_open(&k, 64 << 20);
    for (uint32_t runs = 1; runs <= 3; runs++) {
        uint32_t size = make_output(value, runs, 9);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/s/0000000001", value, size), OK);
        for (uint32_t p = 0; p < 9; p++) {
            uint32_t n = 0;
            for (uint32_t i = 0; i < runs * p; i++)
                n += (uint32_t)sprintf(want + n, "%u:%u", i / p, p);
            struct answer a = column(&k, "/s", "", 0, p);
            WANT(a, OK);
            entry_at(a.data, &e);
            assert(e.head.partitions == 9 && e.head.size == size && !e.head.extents);
            assert(e.head.data_len == n && memcmp(e.data, want, n) == 0);
        }
        entry_at(column(&k, "/s", "", 0, 9).data, &e); /* one that it does not have */
        assert(e.head.partitions == 9 && !e.head.data_len);
    }
    kit_close(&k);
}

/* Whatever the table says, the bytes come out of the value (the sanitizers look), and what makes no sense is none. */
static void a_table_that_lies_shows_nothing(void) {
    struct kit k;
    struct entry e;
    uint8_t value[CRAIL_INLINE_MAX];
    uint32_t refused = 0;
    kit_open(&k, 64 << 20);
    for (uint32_t round = 0; round < 4000; round++) {
        uint32_t size = make_output(value, 1 + kit_random(&seed, 3), 1 + kit_random(&seed, 9));
        uint32_t cut = kit_random(&seed, 4) ? 0 : kit_random(&seed, size);
        for (uint32_t i = kit_random(&seed, 4); i--;) /* in the table, mostly */
            value[size - 1 - kit_random(&seed, size < 200 ? size : 200)] = (uint8_t)kit_random(&seed, 256);
        uint8_t *exact = malloc(size - cut + 1u);
        memcpy(exact, value + cut, size - cut);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/s/x", exact, size - cut), OK);
        free(exact);
        struct answer a = column(&k, "/s", "", 0, kit_random(&seed, 10));
        WANT(a, OK);
        entry_at(a.data, &e);
        assert(e.head.size == size - cut && e.head.data_len <= e.head.size);
        assert(e.head.partitions || !e.head.data_len);
        refused += !e.head.partitions;
    }
    assert(refused > 100 && refused < 3900);
    kit_close(&k);
}

static void a_value_on_a_lost_server_names_it(void) {
    struct kit k;
    struct entry e;
    kit_open(&k, 64 << 20);
    uint32_t server = kit_server(&k, 1, 1000);
    put_extents(&k, "/d/a", GRANULE);
    assert(crail_meta_server_set(k.m, server, CRAIL_SERVER_LOST) == 0);
    WANT(kit_get(&k, "/d/a"), E(DATA_LOST));
    struct answer a = column(&k, "/d", "", 0, 0);
    WANT(a, OK);
    entry_at(a.data, &e);
    assert(e.head.server == server && !e.head.extents && e.head.size == GRANULE);
    kit_close(&k);
}

/* ---- pages ------------------------------------------------------------------------------------ */

/* All entries of a directory by pages; each name once, in order. How many. */
static uint32_t walk(struct kit *k, const char *path, uint64_t max, uint32_t partition) {
    struct entry e;
    char after[CRAIL_NAME_MAX + 1] = "";
    uint32_t n = 0;
    for (bool more = true; more;) {
        struct answer a = column(k, path, after, max, partition);
        WANT(a, OK);
        assert(a.r.count <= (max ? max : CRAIL_LIST_ENTRIES_MAX));
        const uint8_t *p = a.data;
        for (uint32_t i = 0; i < a.r.count; i++) {
            p = entry_at(p, &e);
            assert(strcmp(after, e.name) < 0);
            strcpy(after, e.name);
        }
        assert(p == a.data + a.r.data_len);
        n += a.r.count;
        more = a.r.flags & CRAIL_RESF_MORE;
        assert(!more || a.r.count);
    }
    return n;
}

static void pages_show_every_child_once_in_order(void) {
    struct kit k;
    char path[64];
    static char value[CRAIL_INLINE_MAX];
    static const uint32_t sizes[] = {0, 1, 64, 65, 256, 257, 3000};
    kit_open(&k, 256 << 20);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        WANT(kit_mkdir(&k, 0, "/d"), OK);
        for (uint32_t c = 0; c < sizes[i]; c++) {
            sprintf(path, "/d/%010u", c * 7919 % 3001);
            WANT(kit_put(&k, 0, path, value, c % 5 ? 16 : CRAIL_INLINE_MAX), OK);
        }
        for (uint32_t max = 0; max < 100; max = max * 3 + 1) {
            assert(walk(&k, "/d", max, 0) == sizes[i]);
            assert(walk(&k, "/d", max, CRAIL_COLUMN_WHOLE) == sizes[i]);
        }
        WANT(kit_rmtree(&k, "/d"), OK);
        kit_settle(&k);
    }
    kit_close(&k);
}

static void a_page_is_bounded_in_bytes(void) {
    struct kit k;
    char path[64];
    static char value[CRAIL_INLINE_MAX];
    kit_open(&k, 64 << 20);
    for (uint32_t c = 0; c < 200; c++) {
        sprintf(path, "/d/%u", c);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, value, sizeof(value)), OK);
    }
    struct answer a = column(&k, "/d", "", 0, CRAIL_COLUMN_WHOLE);
    WANT(a, OK);
    assert(a.r.flags & CRAIL_RESF_MORE && a.r.size == 200);
    assert(a.r.data_len <= CRAIL_COLUMN_BYTES_MAX && a.r.data_len > CRAIL_COLUMN_BYTES_MAX - 2 * sizeof(value));
    kit_close(&k);
}

/* ---- waiting and refusing ---------------------------------------------------------------------- */

static struct answer column_waiting(struct kit *k, const char *path, uint32_t children) {
    return kit_op(k, CRAIL_OP_COLUMN, CRAIL_OPF_WAIT, path, NULL, 0, 1000, 0, (uint64_t)children << 32);
}

static void it_waits_for_children_and_tells_how_many_are_missing(void) {
    struct kit k;
    char path[64];
    kit_open(&k, 64 << 20);
    assert(column_waiting(&k, "/d", 3).status == KIT_WAITS && crail_meta_missing(k.m) == 3);
    assert(column_waiting(&k, "/d", 0).status == KIT_WAITS && crail_meta_missing(k.m) == 1);
    for (uint32_t i = 0; i < 3; i++) {
        sprintf(path, "/d/%u", i);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, "x", 1), OK);
        struct answer a = column_waiting(&k, "/d", 3);
        assert(i < 2 ? a.status == KIT_WAITS && crail_meta_missing(k.m) == 2 - i : a.r.count == 3);
    }
    WANT(column_waiting(&k, "/d", 0), OK);
    WANT(kit_remove(&k, 0, "/d/1"), OK);
    assert(column_waiting(&k, "/d", 3).status == KIT_WAITS && crail_meta_missing(k.m) == 1);
    WANT(kit_rmtree(&k, "/d"), OK);
    assert(column_waiting(&k, "/d", 3).status == KIT_WAITS && crail_meta_missing(k.m) == 3);
    kit_close(&k);
}

/* Who was set aside has to be answered at once; so what is not ready is left to the next request. */
static void with_wait_an_index_that_is_not_ready_is_an_empty_page(void) {
    struct kit k;
    char path[64];
    kit_open(&k, 64 << 20);
    for (uint32_t c = 0; c < 1000; c++) {
        sprintf(path, "/d/%u", c);
        WANT(kit_put(&k, CRAIL_OPF_PARENTS, path, "x", 1), OK);
    }
    struct answer a = column_waiting(&k, "/d", 1000);
    WANT(a, OK);
    assert(a.r.count == 0 && a.r.data_len == 0 && a.r.size == 1000 && a.r.flags == CRAIL_RESF_MORE);
    assert(walk(&k, "/d", 0, 0) == 1000);
    a = column_waiting(&k, "/d", 1000);
    assert(a.r.count == 1000 && !a.r.flags);
    kit_close(&k);
}

static void what_makes_no_sense_is_refused(void) {
    struct kit k;
    char name[300];
    memset(name, 'x', sizeof(name));
    kit_open(&k, 64 << 20);
    WANT(kit_put(&k, CRAIL_OPF_PARENTS, "/d/leaf", "x", 1), OK);
    WANT(column(&k, "/none", "", 0, 0), E(NOT_FOUND));
    WANT(column(&k, "/d/leaf", "", 0, 0), E(NOT_CONTAINER));
    WANT(column(&k, "d", "", 0, 0), E(INVALID_PATH));
    WANT(column_waiting(&k, "/d/leaf", 1), E(NOT_CONTAINER));
    WANT(kit_op(&k, CRAIL_OP_COLUMN, 0, "/d", name, 256, 0, 0, 0), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_COLUMN, 0, "/d", NULL, 0, 0, 0, 1ull << 32), E(INVALID_ARGUMENT));
    WANT(kit_op(&k, CRAIL_OP_COLUMN, CRAIL_OPF_PARENTS, "/d", NULL, 0, 0, 0, 0), E(INVALID_ARGUMENT));
    WANT(column(&k, "/", "", 0, 0), OK);
    kit_close(&k);
}

int main(int argc, char **argv) {
    if (argc > 1)
        seed = strtoull(argv[1], NULL, 10);
    printf("seed %" PRIu64 "\n", seed);
    RUN(an_entry_says_what_get_says);
    RUN(of_an_output_within_its_node_only_the_partition_is_shown);
    RUN(a_table_that_lies_shows_nothing);
    RUN(a_value_on_a_lost_server_names_it);
    RUN(pages_show_every_child_once_in_order);
    RUN(a_page_is_bounded_in_bytes);
    RUN(it_waits_for_children_and_tells_how_many_are_missing);
    RUN(with_wait_an_index_that_is_not_ready_is_an_empty_page);
    RUN(what_makes_no_sense_is_refused);
    return 0;
}
