/* The part of the wide door that is about the core itself. */
#include <stddef.h>

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

uint32_t crail_location(const char *name, uint32_t len) {
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (uint32_t i = 0; i < len; i++)
        hash = (hash ^ (uint8_t)name[i]) * 16777619u;
    return hash ? hash : 1;
}

uint64_t crail_mac(const uint8_t *key16, const void *data, uint64_t size) {
    return crail_siphash(key16, data, size);
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
