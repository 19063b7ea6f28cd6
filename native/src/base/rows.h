/* Rows of a cut, written and checked: see crail/rows.h. */
#ifndef CRAIL_BASE_ROWS_H
#define CRAIL_BASE_ROWS_H

#include <stdbool.h>

#include "base/buf.h"
#include "crail/api.h"
#include "crail/rows.h"

/* Room for a row at the end of `b`, whose key and value are to be written by the caller: *key and *value point there
 * until `b` grows. crail_row_finish() makes it a row. 0 or -ENOMEM, and then nothing changed. */
int crail_row_begin(struct crail_buf *b, uint16_t key_len, uint32_t value_len, uint8_t **key, uint8_t **value);
void crail_row_finish(struct crail_buf *b, enum crail_row_table table, uint16_t key_len, uint32_t value_len);

/* A whole row; one that is gone has no value. 0 or -ENOMEM, and then nothing changed. */
int crail_row_append(struct crail_buf *b, enum crail_row_table table, bool gone, const void *key, uint16_t key_len,
                     const void *value, uint32_t value_len);

/* The row at the beginning of these bytes: it is whole, its lengths agree and its crc is right. 0 or -EUCLEAN. */
int crail_row_check(const uint8_t *at, size_t left, const struct crail_row **row);

/* Rows behind each other, in the order of the database (api.h, crail_rows_count and crail_rows_order): their lengths
 * are looked at, and not their checksums. */
int64_t crail_row_count(const uint8_t *rows, uint64_t bytes);
int crail_row_order(const uint8_t *rows, uint64_t bytes, crail_row_place *out, uint64_t room, crail_row_counts *counts);

static inline const uint8_t *crail_row_key(const struct crail_row *row) {
    return (const uint8_t *)(row + 1);
}
static inline const uint8_t *crail_row_value(const struct crail_row *row) {
    return crail_row_key(row) + row->key_len;
}

#endif
