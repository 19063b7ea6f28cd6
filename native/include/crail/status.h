/* The status codes of crailpy, written once.
 *
 * A function returns 0, or -errno, or one of these negated. On the wire only
 * these travel (as negative numbers). crailpy/errors.py has one exception per
 * code and compares itself with this list when it is imported. */
#ifndef CRAIL_STATUS_H
#define CRAIL_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#define CRAIL_STATUS_BASE 1000

#define CRAIL_STATUS_LIST(X) \
    X(NOT_FOUND, 1)          \
    X(EXISTS, 2)             \
    X(NOT_EMPTY, 3)          \
    X(IS_CONTAINER, 4)       \
    X(NOT_CONTAINER, 5)      \
    X(INVALID_PATH, 6)       \
    X(INVALID_ARGUMENT, 7)   \
    X(VERSION_CONFLICT, 8)   \
    X(OUT_OF_SPACE, 9)       \
    X(QUOTA_EXCEEDED, 10)    \
    X(AUTH, 11)              \
    X(DEADLINE, 12)          \
    X(UNAVAILABLE, 13)       \
    X(SESSION_LOST, 14)      \
    X(STALE_LOCATION, 15)    \
    X(DATA_LOST, 16)         \
    X(CHECKSUM, 17)          \
    X(BARRIER_BROKEN, 18)    \
    X(CLOSED, 19)            \
    X(PROTOCOL, 20)          \
    X(NO_MEMORY, 21)

enum crail_status {
#define CRAIL_STATUS_ENUM(name, number) CRAIL_E_##name = CRAIL_STATUS_BASE + number,
    CRAIL_STATUS_LIST(CRAIL_STATUS_ENUM)
#undef CRAIL_STATUS_ENUM
};

/* Is this an answer that a peer may give: 0, or a negated status, perhaps one of a later version? Everything else is
 * nonsense, and must not be taken for -errno or for what else the core says to its own callers. */
static inline bool crail_is_answer(int32_t status) {
    return status == 0 || (status < -CRAIL_STATUS_BASE && status > -2 * CRAIL_STATUS_BASE);
}

#endif
