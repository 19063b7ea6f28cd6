/* The test build's switches: CRAILPY_TEST_GUARDS_OFF=name,name,... leaves out the named guards, so that a test can
 * show that its attack bites without them. Ordinary builds have crail_guard_on() as a constant (use.h). Names:
 *
 *   slot, generation        a client names no slot, or does not compare the generation (use.h)
 *   tcp-slot, tcp-generation, key   the same two on the server's side, and the key of an extent
 *   retire-scan             the server confirms without a look at the slots
 *   retire-generation       the server does not raise the generation
 *   retire-durable          the server confirms before the generation is on the disk
 *
 * CRAILPY_TEST_FAULTS=path names a file that makes the disk fail, as long as it is there and says so: lines of
 * `disk-read ERRNO`, `disk-write ERRNO`, `disk-sync ERRNO`, with the number; with 0 it stands still as
 * long as the file says so. */
#include "use.h"

#ifdef CRAIL_TEST_GUARDS

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *off_list = "", *faults_path = "";
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void read_environment(void) {
    const char *value = getenv("CRAILPY_TEST_GUARDS_OFF");
    if (value && *value)
        off_list = strdup(value);
    value = getenv("CRAILPY_TEST_FAULTS");
    if (value && *value)
        faults_path = strdup(value);
    if (!off_list || !faults_path)
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

/* What the file says of this name; -1: nothing. */
static int look_up(const char *name) {
    char word[64];
    int number = 0, found = -1;
    FILE *file = *faults_path ? fopen(faults_path, "re") : NULL;
    while (file && found < 0 && fscanf(file, "%63s %d", word, &number) == 2)
        found = strcmp(word, name) == 0 ? number : -1;
    if (file)
        fclose(file);
    return found;
}

int crail_fault(const char *name) {
    int number;
    pthread_once(&once, read_environment);
    while ((number = look_up(name)) == 0)
        usleep(1000);
    return number > 0 ? -number : 0;
}

#else

/* ISO C wants a translation unit to hold something. */
typedef int crail_guards_are_constant;

#endif
