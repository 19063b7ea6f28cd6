/* Before the file of a loop is included: its thread does not run by itself. The target takes the turns, and what is
 * left for the thread to do it does when it is joined. */
#ifndef CRAIL_FUZZ_THREAD_H
#define CRAIL_FUZZ_THREAD_H

#include <pthread.h>

static void *(*fuzz_thread_run)(void *arg);
static void *fuzz_thread_arg;

static inline int fuzz_thread_create(pthread_t *out, const pthread_attr_t *how, void *(*run)(void *), void *arg) {
    (void)how;
    *out = (pthread_t)0;
    fuzz_thread_run = run;
    fuzz_thread_arg = arg;
    return 0;
}

static inline int fuzz_thread_join(pthread_t thread, void **out) {
    (void)thread;
    (void)out;
    fuzz_thread_run(fuzz_thread_arg);
    return 0;
}

#define pthread_create fuzz_thread_create
#define pthread_join fuzz_thread_join
#define pthread_setname_np(thread, name) ((void)(thread))

#endif
