/* Rows of a cut: see rows.h. */
#include "base/rows.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/crc32c.h"

static uint64_t size_of(uint16_t key_len, uint32_t value_len) {
    return (sizeof(struct crail_row) + key_len + (uint64_t)value_len + 7) & ~7ull;
}

int crail_row_begin(struct crail_buf *b, uint16_t key_len, uint32_t value_len, uint8_t **key, uint8_t **value) {
    uint64_t size = size_of(key_len, value_len);
    assert(b->len % 8 == 0 && size <= UINT32_MAX);
    if (crail_buf_reserve(b, size))
        return -ENOMEM;
    *key = b->data + b->len + sizeof(struct crail_row);
    *value = *key + key_len;
    return 0;
}

void crail_row_finish(struct crail_buf *b, enum crail_row_table table, uint16_t key_len, uint32_t value_len) {
    uint64_t size = size_of(key_len, value_len);
    uint8_t *at = b->data + b->len;
    struct crail_row row = {
        .size = (uint32_t)size, .table = (uint8_t)table, .key_len = key_len, .value_len = value_len};
    uint32_t used = (uint32_t)sizeof(row) + key_len + value_len;
    assert(b->len + size <= b->cap);
    row.crc = crail_crc32c(0, at + sizeof(row), (size_t)key_len + value_len);
    memcpy(at, &row, sizeof(row));
    memset(at + used, 0, size - used);
    b->len += size;
}

int crail_row_append(struct crail_buf *b, enum crail_row_table table, bool gone, const void *key, uint16_t key_len,
                     const void *value, uint32_t value_len) {
    uint8_t *k, *v;
    assert(!gone || !value_len);
    if (crail_row_begin(b, key_len, value_len, &k, &v))
        return -ENOMEM;
    memcpy(k, key, key_len);
    if (value_len)
        memcpy(v, value, value_len);
    struct crail_row *row = (struct crail_row *)(b->data + b->len);
    crail_row_finish(b, table, key_len, value_len);
    if (gone) {
        row->gone = 1;
        row->crc = 0;
    }
    return 0;
}

int crail_row_check(const uint8_t *at, size_t left, const struct crail_row **row) {
    const struct crail_row *r = (const struct crail_row *)at;
    if (left < sizeof(*r) || (uintptr_t)at % 8 || r->size > left || r->size != size_of(r->key_len, r->value_len) ||
        r->gone > 1)
        return -EUCLEAN;
    uint32_t crc = r->gone ? 0 : crail_crc32c(0, crail_row_key(r), (size_t)r->key_len + r->value_len);
    if ((r->gone && r->value_len) || r->crc != crc)
        return -EUCLEAN;
    *row = r;
    return 0;
}
