/* A growing run of bytes. Owned by one thread at a time; zero is a valid empty buffer. */
#ifndef CRAIL_BUF_H
#define CRAIL_BUF_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct crail_buf {
    uint8_t *data;
    size_t len;
    size_t cap;
};

/* Room for `n` more bytes at data + len. 0 or -ENOMEM. */
static inline int crail_buf_reserve(struct crail_buf *b, size_t n) {
    if (b->cap - b->len >= n)
        return 0;
    size_t cap = b->cap ? b->cap * 2 : 4096;
    while (cap - b->len < n)
        cap *= 2;
    uint8_t *data = realloc(b->data, cap);
    if (!data)
        return -ENOMEM;
    b->data = data;
    b->cap = cap;
    return 0;
}

/* Appends and zero-pads to a multiple of 8. 0 or -ENOMEM. */
static inline int crail_buf_append_padded(struct crail_buf *b, const void *data, size_t n) {
    size_t padded = (n + 7) & ~(size_t)7;
    int rc = crail_buf_reserve(b, padded);
    if (rc)
        return rc;
    if (!n)
        return 0; /* perhaps there is no memory yet */
    memcpy(b->data + b->len, data, n);
    memset(b->data + b->len + n, 0, padded - n);
    b->len += padded;
    return 0;
}

static inline void crail_buf_free(struct crail_buf *b) {
    free(b->data);
    *b = (struct crail_buf){0};
}

#endif
