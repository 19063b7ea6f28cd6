/* What a thread asks of the scheduler is what it gets, and nothing else of it changes.
 * sources: base */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/thread.h"

/* As the kernel tells it: size and policy, flags, nice and priority, and then this (struct sched_attr). */
static uint64_t slice_ns(void) {
    uint64_t words[6] = {sizeof words};
    return syscall(SYS_sched_getattr, 0, words, sizeof words, 0) == 0 ? words[3] : 0;
}

static void *asks(void *arg) {
    (void)arg;
    assert(setpriority(PRIO_PROCESS, 0, 5) == 0); /* of this thread, in Linux */
    errno = EXDEV;
    crail_thread_is_brief();
    assert(errno == EXDEV);
    assert(getpriority(PRIO_PROCESS, 0) == 5);
    uint64_t runtime_ns = slice_ns();
    assert(runtime_ns == 100000 || runtime_ns == 0); /* 0: a kernel that knows no slices */
    return NULL;
}

int main(void) {
    pthread_t thread;
    assert(pthread_create(&thread, NULL, asks, NULL) == 0);
    assert(pthread_join(thread, NULL) == 0);
    printf("  a brief thread has short slices, and keeps its priority and errno\n");
    return 0;
}
