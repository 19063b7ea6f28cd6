#include "base/table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static uint32_t bucket_of(const struct crail_table *t, uint32_t hash) {
    uint32_t mask = (2u << (31 - __builtin_clz(t->buckets))) - 1; /* the smallest 2^k - 1 >= buckets */
    uint32_t b = hash & mask;
    return b < t->buckets ? b : b & (mask >> 1);
}

static struct crail_table_item **bucket(const struct crail_table *t, uint32_t b) {
    return &t->segment[b / CRAIL_TABLE_SEGMENT][b % CRAIL_TABLE_SEGMENT];
}

/* Room for one bucket more. 0 or -ENOMEM. */
static int make_room(struct crail_table *t) {
    if (t->buckets % CRAIL_TABLE_SEGMENT)
        return 0;
    uint32_t n = t->buckets / CRAIL_TABLE_SEGMENT;
    if (n == t->segments_cap) {
        uint32_t cap = n ? 2 * n : 16;
        struct crail_table_item ***p = realloc(t->segment, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        t->segment = p;
        t->segments_cap = cap;
    }
    t->segment[n] = calloc(CRAIL_TABLE_SEGMENT, sizeof *t->segment[n]);
    return t->segment[n] ? 0 : -ENOMEM;
}

/* One bucket more takes its items from the one that had them so far. */
static int grow(struct crail_table *t) {
    if (t->buckets > UINT32_MAX / 2)
        return 0;
    int rc = make_room(t);
    if (rc)
        return rc;
    uint32_t fresh = t->buckets++;
    if (!fresh)
        return 0;
    uint32_t half = 1u << (31 - __builtin_clz(fresh));
    struct crail_table_item **at = bucket(t, fresh - half), **to = bucket(t, fresh);
    while (*at) {
        struct crail_table_item *item = *at;
        if (bucket_of(t, item->hash) != fresh) {
            at = &item->next;
            continue;
        }
        *at = item->next;
        item->next = NULL;
        *to = item;
        to = &item->next;
    }
    return 0;
}

int crail_table_insert(struct crail_table *t, struct crail_table_item *item) {
    if (t->count >= t->buckets && grow(t) && !t->buckets)
        return -ENOMEM;
    struct crail_table_item **b = bucket(t, bucket_of(t, item->hash));
    item->next = *b;
    *b = item;
    t->count++;
    return 0;
}

void crail_table_remove(struct crail_table *t, struct crail_table_item *item) {
    struct crail_table_item **at = bucket(t, bucket_of(t, item->hash));
    while (*at != item) {
        assert(*at);
        at = &(*at)->next;
    }
    *at = item->next;
    t->count--;
}

static struct crail_table_item *from(struct crail_table_item *item, uint32_t hash) {
    while (item && item->hash != hash)
        item = item->next;
    return item;
}

struct crail_table_item *crail_table_find(const struct crail_table *t, uint32_t hash) {
    return t->buckets ? from(*bucket(t, bucket_of(t, hash)), hash) : NULL;
}

struct crail_table_item *crail_table_again(struct crail_table_item *item) {
    return from(item->next, item->hash);
}

void crail_table_free(struct crail_table *t) {
    assert(!t->count);
    for (uint32_t i = 0; i * CRAIL_TABLE_SEGMENT < t->buckets; i++)
        free(t->segment[i]);
    free(t->segment);
    *t = (struct crail_table){0};
}
