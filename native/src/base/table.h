/* A hash of items that live inside their objects, by linear hashing: it grows by one bucket per item, so no insertion
 * is longer than another. The caller compares; the items keep their hash. Never shrinks. */
#ifndef CRAIL_TABLE_H
#define CRAIL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CRAIL_TABLE_SEGMENT 1024u /* buckets that are allocated together */

struct crail_table_item {
    struct crail_table_item *next;
    uint32_t hash;
};

/* Zero is a valid empty table. */
struct crail_table {
    struct crail_table_item ***segment;
    uint32_t segments_cap;
    uint32_t buckets;
    uint64_t count;
};

#define CRAIL_TABLE_OF(item, type, member) ((type *)(void *)((char *)(item) - offsetof(type, member)))

/* The item has its hash. 0; -ENOMEM only while the table has no bucket at all: later the chains just grow longer. */
int crail_table_insert(struct crail_table *t, struct crail_table_item *item);
void crail_table_remove(struct crail_table *t, struct crail_table_item *item);
/* The first item with this hash, then the next one after `item`; NULL after the last. */
struct crail_table_item *crail_table_find(const struct crail_table *t, uint32_t hash);
struct crail_table_item *crail_table_again(struct crail_table_item *item);
/* It is empty. */
void crail_table_free(struct crail_table *t);

#endif
