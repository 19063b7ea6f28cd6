#include "base/thread.h"

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLICE_NS 100000 /* the shortest there is */

/* struct sched_attr of the kernel, in its first size. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

_Static_assert(sizeof(struct attributes) == 48, "SCHED_ATTR_SIZE_VER0");

void crail_thread_is_brief(void) {
    int before = errno;
    struct attributes a = {.size = sizeof a};
    /* Somebody who gave us another policy knows what he wants. */
    if (!syscall(SYS_sched_getattr, 0, &a, sizeof a, 0) && a.policy == 0) {
        a.runtime_ns = SLICE_NS;
        syscall(SYS_sched_setattr, 0, &a, 0);
    }
    errno = before;
}
