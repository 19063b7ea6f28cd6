/* Rows in the order of the database, beside the same order found the slow way; what is no row is refused.
 * sources: base */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rows.h"

#define CLAIM(text) printf("  %s\n", text)
#define ROWS 3000u

static uint64_t state = 20;

static uint32_t draw(uint32_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33) % n;
}

/* One of a few keys of each table, so that many come twice. */
static void append(struct crail_buf *b) {
    static const char *names[] = {"format", "bounds", "key"};
    uint64_t id = draw(3) ? draw(1000) : (uint64_t)draw(50) << 40;
    uint8_t lane[12];
    memcpy(lane, &id, 8);
    memcpy(lane + 8, &(uint32_t){draw(3)}, 4);
    uint32_t number = draw(300);
    bool gone = draw(3) == 0;
    char value[100] = "value";
    uint32_t value_len = gone ? 0 : draw(sizeof value);
    int rc;
    switch (draw(8)) {
    case 0:
        rc = crail_row_append(b, CRAIL_TABLE_SESSION, gone, &id, 8, value, value_len);
        break;
    case 1:
        rc = crail_row_append(b, CRAIL_TABLE_LANE, gone, lane, 12, value, value_len);
        break;
    case 2:
        rc = crail_row_append(b, CRAIL_TABLE_SERVER, gone, &number, 4, value, value_len);
        break;
    case 3:
        number %= 3;
        rc = crail_row_append(b, CRAIL_TABLE_SUPER, gone, names[number], (uint16_t)strlen(names[number]), value,
                              value_len);
        break;
    default:
        rc = crail_row_append(b, CRAIL_TABLE_NODE, gone, &id, 8, value, value_len);
    }
    assert(rc == 0);
}

static const struct crail_row *row(const struct crail_buf *b, uint64_t at) {
    return (const void *)(b->data + at);
}

static bool same_key(const struct crail_row *a, const struct crail_row *b) {
    return a->table == b->table && a->key_len == b->key_len &&
           memcmp(crail_row_key(a), crail_row_key(b), a->key_len) == 0;
}

/* How many rows of this fate have no later one of their key. */
static uint64_t latest(const struct crail_buf *b, bool gone) {
    uint64_t n = 0;
    for (uint64_t at = 0; at < b->len; at += row(b, at)->size) {
        bool is_latest = row(b, at)->gone == gone;
        for (uint64_t later = at + row(b, at)->size; is_latest && later < b->len; later += row(b, later)->size)
            is_latest = !same_key(row(b, at), row(b, later));
        n += is_latest;
    }
    return n;
}

static uint32_t sum(const uint32_t *counts) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < 6; i++)
        n += counts[i];
    return n;
}

static void check_run(const struct crail_buf *b, const crail_row_place *p, const uint32_t *counts, bool gone) {
    uint32_t n = sum(counts), found[6] = {0};
    for (uint32_t i = 0; i < n; i++) {
        const struct crail_row *r = row(b, p[i].begin);
        assert(p[i].end == p[i].begin + r->size && r->gone == gone && p[i].key[0] == r->table);
        assert(r->table == CRAIL_TABLE_SUPER || p[i].key[r->key_len >= 8 ? 8 : 4] == crail_row_key(r)[0]);
        assert(!i || memcmp(p[i - 1].key, p[i].key, sizeof p->key) < 0);
        found[r->table]++;
    }
    assert(memcmp(found, counts, sizeof found) == 0);
}

static void rows_come_in_order_and_the_last_of_a_key_counts(uint32_t n) {
    struct crail_buf b = {0};
    crail_row_counts counts;
    crail_row_place *places = calloc(n + 1, sizeof *places);
    for (uint32_t i = 0; i < n; i++)
        append(&b);
    assert(crail_row_count(b.data, b.len) == n);
    assert(crail_row_order(b.data, b.len, places, n, &counts) == 0);
    uint32_t kept = sum(counts.kept), gone = sum(counts.gone);
    check_run(&b, places, counts.kept, false);
    check_run(&b, places + kept, counts.gone, true);
    assert(kept == latest(&b, false) && gone == latest(&b, true));
    if (n)
        assert(crail_row_order(b.data, b.len, places, n - 1, &counts) == -ENOSPC);
    free(places);
    crail_buf_free(&b);
}

static void what_is_no_row_is_refused(void) {
    struct crail_buf b = {0};
    crail_row_counts counts;
    crail_row_place places[4];
    uint64_t id = 7;
    assert(crail_row_append(&b, CRAIL_TABLE_NODE, false, &id, 8, "abc", 3) == 0);
    uint64_t len = b.len;
    struct crail_row *r = (void *)b.data, whole = *r;
    for (uint64_t bytes = 1; bytes < len; bytes++)
        assert(crail_row_count(b.data, bytes) == -EUCLEAN);
#define REFUSED(field, what)                                              \
    r->field = what;                                                      \
    assert(crail_row_order(b.data, len, places, 4, &counts) == -EUCLEAN); \
    *r = whole
    REFUSED(size, 0);
    REFUSED(size, 12);
    REFUSED(size, UINT32_MAX);
    REFUSED(table, 0);
    REFUSED(table, CRAIL_TABLE_SUPER + 1);
    REFUSED(key_len, 4);
    REFUSED(key_len, UINT16_MAX);
    assert(crail_row_order(b.data, len, places, 4, &counts) == 0 && counts.kept[CRAIL_TABLE_NODE] == 1);
    assert(crail_row_append(&b, CRAIL_TABLE_SUPER, false, "a name of sixteen", 16, NULL, 0) == 0);
    assert(crail_row_order(b.data, b.len, places, 4, &counts) == -EUCLEAN);
    crail_buf_free(&b);
    CLAIM("what is no row is refused");
}

int main(void) {
    const uint32_t sizes[] = {0, 1, 2, 3, 10, 100, ROWS};
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        rows_come_in_order_and_the_last_of_a_key_counts(sizes[i]);
    CLAIM("rows come in order, and of one key the last one");
    what_is_no_row_is_refused();
    return 0;
}
