/* What a thread asks of the scheduler changes nothing else of it.
 * sources: base */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>

#include "base/thread.h"

static void *asks(void *arg) {
    (void)arg;
    assert(setpriority(PRIO_PROCESS, 0, 5) == 0); /* of this thread, in Linux */
    errno = EXDEV;
    crail_thread_is_brief();
    assert(errno == EXDEV);
    assert(getpriority(PRIO_PROCESS, 0) == 5);
    return NULL;
}

int main(void) {
    pthread_t thread;
    assert(pthread_create(&thread, NULL, asks, NULL) == 0);
    assert(pthread_join(thread, NULL) == 0);
    printf("  a brief thread keeps its priority, and errno\n");
    return 0;
}
