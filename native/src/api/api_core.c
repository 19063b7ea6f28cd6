/* The part of the wide door that is about the core itself. */
#include <errno.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/ring.h"
#include "base/rows.h"
#include "base/siphash.h"
#include "client/hot.h"
#include "crail/api.h"
#include "crail/status.h"

int crail_api_version(void) {
    return CRAIL_API_VERSION;
}

const char *crail_status_name(int status) {
    switch (status) {
#define CRAIL_STATUS_CASE(name, number) \
    case CRAIL_E_##name:                \
        return #name;
        CRAIL_STATUS_LIST(CRAIL_STATUS_CASE)
#undef CRAIL_STATUS_CASE
    default:
        return NULL;
    }
}

int crail_test_guards(void) {
#ifdef CRAIL_TEST_GUARDS
    return 1;
#else
    return 0;
#endif
}

int crail_test_failpoint(const char *name) {
    return crail_failpoint_error(name);
}

int crail_ring_make(int *fds2) {
    if (!fds2)
        return -EINVAL;
    int memory = crail_ring_create();
    if (memory < 0)
        return memory;
    int bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (bell < 0) {
        int rc = -errno;
        close(memory);
        return rc;
    }
    fds2[0] = memory;
    fds2[1] = bell;
    return 0;
}

uint32_t crail_location(const char *name, uint32_t len) {
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (uint32_t i = 0; i < len; i++)
        hash = (hash ^ (uint8_t)name[i]) * 16777619u;
    return hash ? hash : 1;
}

uint64_t crail_mac(const uint8_t *key16, const void *data, uint64_t size) {
    return crail_siphash(key16, data, size);
}

int crail_row_make(uint32_t table, const void *key, uint16_t key_len, const void *value, uint32_t value_len, void *out,
                   uint32_t out_size) {
    if (table < CRAIL_TABLE_NODE || table > CRAIL_TABLE_SUPER || !key || !key_len || (value_len && !value) || !out ||
        value_len > UINT32_MAX / 2)
        return -CRAIL_E_INVALID_ARGUMENT;
    struct crail_buf b = {0};
    int rc = crail_row_append(&b, (enum crail_row_table)table, false, key, key_len, value, value_len);
    if (!rc)
        rc = b.len <= out_size ? (int)b.len : -ENOSPC;
    if (rc > 0)
        memcpy(out, b.data, b.len);
    crail_buf_free(&b);
    return rc;
}

int crail_row_verify(const void *row, uint64_t bytes) {
    const struct crail_row *r;
    int rc = row ? crail_row_check(row, bytes, &r) : -EUCLEAN;
    return rc ? rc : r->size == bytes ? 0 : -EUCLEAN;
}

int64_t crail_rows_count(const void *rows, uint64_t bytes) {
    return rows || !bytes ? crail_row_count(rows, bytes) : -CRAIL_E_INVALID_ARGUMENT;
}

int crail_rows_order(const void *rows, uint64_t bytes, crail_row_place *out, uint64_t room, crail_row_counts *counts) {
    if ((bytes && !rows) || !out || !counts)
        return -CRAIL_E_INVALID_ARGUMENT;
    return crail_row_order(rows, bytes, out, room, counts);
}

const void *crail_hot_table(void) {
    static const struct crail_hot_table table = {.size = sizeof(table),
                                                 .api_version = CRAIL_API_VERSION,
                                                 .fork_child_epoch = &crail_fork_child_epoch,
#define CRAIL_HOT_VALUE(name) .name = crail_##name,
                                                 CRAIL_HOT_FUNCTIONS(CRAIL_HOT_VALUE)
#undef CRAIL_HOT_VALUE
    };
    return &table;
}
