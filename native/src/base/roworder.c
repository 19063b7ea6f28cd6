/* The order in which the database gets the rows of a cut, so that whoever commits them has nothing left to do for each.
 * The rows stay where they are: what is sorted are their places. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/rows.h"

#define LANE_KEY_BYTES 12u
#define TABLES (sizeof(((crail_row_counts *)0)->kept) / sizeof(uint32_t))
#define GONE 0x80u /* in the first byte of a key while it is sorted: what is gone comes last */

_Static_assert(CRAIL_TABLE_SUPER < TABLES && TABLES <= GONE, "each table has a count");
_Static_assert(LANE_KEY_BYTES < sizeof(((crail_row_place *)0)->key), "a key of integers fits in");

/* The head of the row at `at`, whose lengths agree. NULL: there is none. */
static const struct crail_row *row_at(const uint8_t *rows, uint64_t bytes, uint64_t at) {
    const struct crail_row *r = (const void *)(rows + at);
    bool is_whole = bytes - at >= sizeof(*r) && r->size >= sizeof(*r) + r->key_len && r->size <= bytes - at &&
                    r->size % 8 == 0 && r->table >= CRAIL_TABLE_NODE && r->table <= CRAIL_TABLE_SUPER;
    return is_whole ? r : NULL;
}

int64_t crail_row_count(const uint8_t *rows, uint64_t bytes) {
    int64_t n = 0;
    for (uint64_t at = 0; at < bytes; n++) {
        const struct crail_row *r = row_at(rows, bytes, at);
        if (!r)
            return -EUCLEAN;
        at += r->size;
    }
    return n;
}

static void turn_round(uint8_t *to, const uint8_t *from, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++)
        to[i] = from[bytes - 1 - i];
}

/* 0 or -EUCLEAN. */
static int key_of(const struct crail_row *r, crail_row_place *p) {
    static const uint16_t lengths[TABLES] = {
        [CRAIL_TABLE_NODE] = 8, [CRAIL_TABLE_SESSION] = 8, [CRAIL_TABLE_LANE] = LANE_KEY_BYTES, [CRAIL_TABLE_SERVER] = 4};
    const uint8_t *key = crail_row_key(r);
    memset(p->key, 0, sizeof p->key);
    p->key[0] = (uint8_t)(r->table | (r->gone ? GONE : 0));
    if (r->table == CRAIL_TABLE_SUPER) {
        if (!r->key_len || r->key_len >= sizeof p->key || memchr(key, 0, r->key_len))
            return -EUCLEAN;
        memcpy(p->key + 1, key, r->key_len);
        return 0;
    }
    if (r->key_len != lengths[r->table])
        return -EUCLEAN;
    if (r->table == CRAIL_TABLE_LANE) {
        turn_round(p->key + 1, key, 8);
        turn_round(p->key + 9, key + 8, 4);
    } else {
        turn_round(p->key + 1, key, r->key_len);
    }
    return 0;
}

static uint64_t word(const uint8_t *at) {
    uint64_t w;
    memcpy(&w, at, sizeof w);
    return __builtin_bswap64(w);
}

static int compare_keys(const crail_row_place *a, const crail_row_place *b, uint64_t mask) {
    uint64_t x = word(a->key) & mask, y = word(b->key) & mask;
    if (x == y)
        x = word(a->key + 8), y = word(b->key + 8);
    return (x > y) - (x < y);
}

/* Rows of one key, gone or kept, are neighbours, the last one behind the others. */
static int by_key(const void *a, const void *b) {
    const crail_row_place *p = a, *q = b;
    int order = compare_keys(p, q, ~((uint64_t)GONE << 56));
    return order ? order : (p->begin > q->begin) - (p->begin < q->begin);
}

static bool is_replaced(const crail_row_place *p, const crail_row_place *end) {
    return p + 1 < end && compare_keys(p, p + 1, ~((uint64_t)GONE << 56)) == 0;
}

/* Those that are kept go to the front. Those that are gone are few, or all there is: they are put in order behind. */
static int by_fate(const void *a, const void *b) {
    return compare_keys(a, b, ~0ull);
}

static uint64_t split(crail_row_place *out, uint64_t n, crail_row_counts *counts) {
    uint64_t left = 0;
    bool is_mixed = false;
    for (crail_row_place *p = out; p < out + n; p++) {
        if (is_replaced(p, out + n))
            continue;
        bool gone = p->key[0] & GONE;
        (gone ? counts->gone : counts->kept)[p->key[0] & ~GONE]++;
        is_mixed |= gone;
        out[left++] = *p;
    }
    if (is_mixed)
        qsort(out, left, sizeof *out, by_fate);
    for (crail_row_place *p = out; p < out + left; p++)
        p->key[0] &= (uint8_t)~GONE;
    return left;
}

int crail_row_order(const uint8_t *rows, uint64_t bytes, crail_row_place *out, uint64_t room,
                    crail_row_counts *counts) {
    uint64_t n = 0;
    bool is_sorted = true;
    for (uint64_t at = 0; at < bytes; n++) {
        const struct crail_row *r = row_at(rows, bytes, at);
        if (!r)
            return -EUCLEAN;
        if (n == room)
            return -ENOSPC;
        if (key_of(r, out + n))
            return -EUCLEAN;
        out[n].begin = at;
        out[n].end = at += r->size;
        is_sorted = is_sorted && (!n || by_key(out + n - 1, out + n) < 0);
    }
    if (!is_sorted)
        qsort(out, n, sizeof *out, by_key);
    *counts = (crail_row_counts){0};
    split(out, n, counts);
    return 0;
}
