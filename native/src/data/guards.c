/* The test build's switches: CRAILPY_TEST_GUARDS_OFF=name,name,... leaves out the named guards, so that a test can
 * show that its attack bites without them. Ordinary builds have crail_guard_on() as a constant (use.h). Names:
 *
 *   slot, generation        a client names no slot, or does not compare the generation (use.h)
 *   tcp-slot, tcp-generation, key   the same two on the server's side, and the key of an extent
 *   retire-scan             the server confirms without a look at the slots
 *   retire-generation       the server does not raise the generation */
#include "use.h"

#ifdef CRAIL_TEST_GUARDS

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const char *off_list = "";
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void read_environment(void) {
    const char *value = getenv("CRAILPY_TEST_GUARDS_OFF");
    if (value && *value)
        off_list = strdup(value);
    if (!off_list)
        abort(); /* a test build without its switches would test nothing */
}

bool crail_guard_on(const char *name) {
    pthread_once(&once, read_environment);
    if (!*off_list)
        return true;
    size_t length = strlen(name);
    for (const char *at = off_list; *at;) {
        size_t part = strcspn(at, ",");
        if (part == length && memcmp(at, name, length) == 0)
            return false;
        at += part + (at[part] == ',');
    }
    return true;
}

#else

/* ISO C wants a translation unit to hold something. */
typedef int crail_guards_are_constant;

#endif
