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
    static const uint16_t lengths[TABLES] = {[CRAIL_TABLE_NODE] = 8,
                                             [CRAIL_TABLE_SESSION] = 8,
                                             [CRAIL_TABLE_LANE] = LANE_KEY_BYTES,
                                             [CRAIL_TABLE_SERVER] = 4};
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

/* Puts them in order of byte `i` of their keys, without `bits`; those that are alike stay as they are. */
static void pass(const crail_row_place *from, crail_row_place *to, uint64_t n, uint32_t i, uint8_t bits) {
    uint64_t starts[256] = {0}, at = 0;
    for (uint64_t k = 0; k < n; k++)
        starts[from[k].key[i] & ~bits]++;
    for (uint32_t v = 0; v < 256; v++) {
        uint64_t count = starts[v];
        starts[v] = at;
        at += count;
    }
    for (uint64_t k = 0; k < n; k++)
        to[starts[from[k].key[i] & ~bits]++] = from[k];
}

/* In which bytes their keys differ. */
static void differences(const crail_row_place *places, uint64_t n, uint8_t *differ) {
    uint64_t first[2], word[2], found[2] = {0};
    memcpy(first, places[0].key, sizeof first);
    for (uint64_t k = 1; k < n; k++) {
        memcpy(word, places[k].key, sizeof word);
        found[0] |= word[0] ^ first[0];
        found[1] |= word[1] ^ first[1];
    }
    memcpy(differ, found, sizeof found);
}

/* By key, byte after byte; rows of one key, gone or kept, in the order in which they lie. */
static void sort(crail_row_place *out, crail_row_place *spare, uint64_t n) {
    crail_row_place *from = out, *to = spare;
    uint8_t differ[sizeof out->key];
    if (!n)
        return;
    differences(out, n, differ);
    for (uint32_t i = sizeof differ; i-- > 0;) {
        if (!differ[i])
            continue;
        pass(from, to, n, i, i ? 0 : GONE);
        crail_row_place *swap = from;
        from = to;
        to = swap;
    }
    if (from != out)
        memcpy(out, from, n * sizeof *out);
}

static bool is_replaced(const crail_row_place *p, const crail_row_place *end) {
    return p + 1 < end && (p[0].key[0] & ~GONE) == (p[1].key[0] & ~GONE) &&
           memcmp(p[0].key + 1, p[1].key + 1, sizeof p->key - 1) == 0;
}

/* Those that are kept, then those that are gone; of one key the last one. */
static void split(crail_row_place *out, crail_row_place *spare, uint64_t n, crail_row_counts *counts) {
    uint64_t kept = 0, gone = 0;
    *counts = (crail_row_counts){0};
    for (const crail_row_place *p = out; p < out + n; p++) {
        bool is_gone = p->key[0] & GONE;
        uint8_t table = p->key[0] & (uint8_t)~GONE;
        if (is_replaced(p, out + n))
            continue;
        (is_gone ? counts->gone : counts->kept)[table]++;
        crail_row_place *to = is_gone ? spare + gone++ : out + kept++;
        *to = *p;
        to->key[0] = table;
    }
    memcpy(out + kept, spare, gone * sizeof *out);
}

int crail_row_order(const uint8_t *rows, uint64_t bytes, crail_row_place *out, uint64_t room,
                    crail_row_counts *counts) {
    uint64_t n = 0;
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
    }
    crail_row_place *spare = malloc((n ? n : 1) * sizeof *spare);
    if (!spare)
        return -ENOMEM;
    sort(out, spare, n);
    split(out, spare, n, counts);
    free(spare);
    return 0;
}
