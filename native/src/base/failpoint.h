/* Failpoints: places with a name, at which the test build can be made to die, to wait or to fail, so that a test can
 * see what the others make of it (docs/TESTING.md). In ordinary builds there are none. */
#ifndef CRAIL_FAILPOINT_H
#define CRAIL_FAILPOINT_H

#ifdef CRAIL_TEST_GUARDS
void crail_failpoint(const char *name);
/* At a place that can fail: 0, or -errno when it is told to. */
int crail_failpoint_error(const char *name);
#else
static inline void crail_failpoint(const char *name) {
    (void)name;
}
static inline int crail_failpoint_error(const char *name) {
    (void)name;
    return 0;
}
#endif

#endif
