/* What the failpoints of a process do is said by CRAILPY_FAILPOINTS, or, if that begins with a slash, by the file of
 * this name: it may come, change and go (by rename) while the process runs. `name=action`, one per line or with
 * semicolons between, and `@n` behind an action that only the n-th passing meets, counted from when it was said:
 *
 *   kill                 SIGKILL to the own process
 *   kill-in:US           the same by another thread, so many microseconds later: the thread that passes goes on
 *   kill-at-fdatasync    the process dies when the passing thread calls fdatasync(2) next
 *   pause:MS             the passing thread sleeps
 *   error:ERRNO          the place fails so; only places in reach of crail_failpoint_error() can
 *
 * Before it acts, it adds the line `name action pid ns-of-the-monotonic-clock` to the file CRAILPY_FAILPOINTS_LOG. What
 * cannot be understood ends the process: a test that arms nothing would test nothing. */
#include "base/failpoint.h"

#ifdef CRAIL_TEST_GUARDS

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

/* All of them, of C and of Python, each passed at one place. */
static const char *const names[] = {
    /* the namenode's loop */
    "cut-asked",        /* a cut is asked for, something has changed, and nothing of it has begun */
    "bounds-before",    /* the cut has begun in the tree, and the bounds of the counters are not in it */
    "bounds-after",     /* they are */
    "cut-begun",        /* the set is taken over, and no node is written */
    "cut-step",         /* between two steps of the writing */
    "durable-noted",    /* the commit's epoch is durable, and nobody has been told */
    "reply",            /* a reply is about to go out, whatever it had to wait for */
    "grant-noted",      /* a grant is in the grant map, and its reply is not out */
    "retire-ordered",   /* orders are sent, and not confirmed */
    "retire-done",      /* a confirmation has come, and what it frees is not free */
    "retire-free",      /* it is free, and nobody has it */
    "load-rows",        /* at the start: a piece of the rows is in the tree */
    "load-linked",      /* at the start: all of them are, and the lanes are not */
    "server-recovered", /* a storage server has said what it has, and the tree knows it */
    /* the namenode's Python */
    "cut-made",         /* the rows of a cut lie in memory */
    "commit-begun",     /* in the transaction: rows that go are deleted */
    "commit-put",       /* in the transaction: all is done but the commit */
    "committed",        /* durable, and the core does not know */
    "bounds-new",       /* at the start: the bounds of this life are not committed */
    "bounds-committed", /* at the start: they are, and nobody is served */
    "state-made",       /* a new database is whole, and does not have its name */
    "session-made",     /* a session is open, and its row is not durable */
    "session-durable",  /* it is, and the client has not heard of it */
    "register-begun",   /* REGISTER: the server is known again, and that is not durable */
    "register-durable", /* it is, and the server has not heard of it */
    "recover-sent",     /* a part of the live runs goes out to a server that asked for them */
    "recovered-heard",  /* RECOVERED: all of it is here, and the tree knows nothing of it */
    "repair-written",   /* fsck --repair: the new database is whole, beside the old one */
    "repair-kept",      /* fsck --repair: the old one has another name, too */
    "repair-placed",    /* fsck --repair: the new one has its place */
    /* the storage server's loop */
    "generations-raised", /* of the orders of a frame; none is confirmed */
    "retire-confirmed",   /* confirmations are to go out */
    "round-written",      /* file tier: generations are written, and fdatasync has not been called */
    "round-durable",      /* file tier: it has returned, and nothing is confirmed */
    "others-raised",      /* recovery: some of what the namenode does not know is retired */
    "others-seen",        /* recovery: all of it, and what is busy is known; nobody has been told */
    /* the storage server's Python */
    "registered",     /* the namenode has let it in; it has not recovered */
    "recovered-told", /* the namenode has heard what it has; there is no channel for orders */
    /* the client */
    "commit-unsent", /* all is written, and the COMMIT is not sent */
    "commit-sent",   /* it is, and there is no reply */
    "view-held",     /* a view names its extent, and is nobody's yet */
};

/* ---- what is said ---------------------------------------------------------- */

enum action { KILL, KILL_IN, KILL_AT_FDATASYNC, PAUSE, ERROR };

static const char *const actions[] = {"kill", "kill-in", "kill-at-fdatasync", "pause", "error"};

#define ARMED_MAX 32
struct armed {
    char name[48];
    enum action action;
    unsigned long number, only; /* what stands behind ':' and '@'; only 0: every passing */
    unsigned long passed;
};

static struct {
    pthread_mutex_t lock;
    bool was_read;
    struct stat file; /* from which `armed` was read */
    uint32_t count;
    struct armed armed[ARMED_MAX];
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void give_up(const char *why, const char *what) {
    fprintf(stderr, "CRAILPY_FAILPOINTS: %s: %s\n", why, what);
    abort();
}

static bool is_name(const char *name) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

static unsigned long error_number(const char *text) {
    const struct {
        const char *name;
        unsigned long number;
    } known[] = {{"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EROFS", EROFS}, {"ENOMEM", ENOMEM}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, text) == 0)
            return known[i].number;
    give_up("no error that is known here", text);
    return 0;
}

/* name=action[:number][@n] */
static void arm(char *said) {
    char *equals = strchr(said, '='), *word = equals ? equals + 1 : NULL;
    char *at = word ? strchr(word, '@') : NULL, *colon = word ? strchr(word, ':') : NULL;
    for (char *cut[] = {equals, at, colon}, **c = cut; c < cut + 3; c++)
        if (*c)
            **c = 0;
    struct armed *a = &state.armed[state.count];
    if (!word || !is_name(said) || strlen(said) >= sizeof a->name || state.count == ARMED_MAX)
        give_up("no failpoint, or too many", said);
    *a = (struct armed){.only = at ? strtoul(at + 1, NULL, 10) : 0};
    strcpy(a->name, said);
    size_t i = 0;
    while (i < sizeof actions / sizeof *actions && strcmp(actions[i], word) != 0)
        i++;
    if (i == sizeof actions / sizeof *actions)
        give_up("no action", word);
    a->action = (enum action)i;
    a->number = !colon ? 0 : a->action == ERROR ? error_number(colon + 1) : strtoul(colon + 1, NULL, 10);
    state.count++;
}

static void arm_all(char *text) {
    char *rest = NULL;
    state.count = 0;
    for (char *said = strtok_r(text, ";\n", &rest); said; said = strtok_r(NULL, ";\n", &rest))
        arm(said);
}

static void read_file(const char *path) {
    char text[4096];
    struct stat now;
    if (stat(path, &now)) {
        state.count = 0;
        state.file = (struct stat){0};
        return;
    }
    if (now.st_ino == state.file.st_ino && now.st_mtim.tv_sec == state.file.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == state.file.st_mtim.tv_nsec)
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n < 0 ? 0 : n] = 0;
    state.file = now;
    arm_all(text);
}

static void read_all(void) {
    const char *value = getenv("CRAILPY_FAILPOINTS");
    if (value && *value == '/')
        read_file(value);
    else if (value && !state.was_read)
        arm_all(strdup(value));
    state.was_read = true;
}

/* ---- what is done ------------------------------------------------------------ */

static void note(const struct armed *a) {
    const char *path = getenv("CRAILPY_FAILPOINTS_LOG");
    int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0)
        return;
    char line[160];
    int n = snprintf(line, sizeof line, "%s %s %d %llu\n", a->name, actions[a->action], (int)getpid(),
                     (unsigned long long)crail_clock_ns());
    if (write(fd, line, (size_t)n) != n)
        give_up("cannot note a hit", path);
    close(fd);
}

static void sleep_us(unsigned long us) {
    struct timespec t = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    while (nanosleep(&t, &t) && errno == EINTR) {
    }
}

static void *kill_late(void *us) {
    sleep_us((unsigned long)(uintptr_t)us);
    kill(getpid(), SIGKILL);
    return NULL;
}

/* By the kernel: it knows what this thread calls before it does it. */
static void kill_at(long call) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        give_up("this kernel has no seccomp filters", strerror(errno));
}

static int act(const struct armed *a) {
    pthread_t thread;
    note(a);
    switch (a->action) {
    case KILL:
        kill(getpid(), SIGKILL);
        pause();
        break;
    case KILL_IN:
        if (pthread_create(&thread, NULL, kill_late, (void *)(uintptr_t)a->number))
            give_up("no thread", a->name);
        pthread_detach(thread);
        break;
    case KILL_AT_FDATASYNC:
        kill_at(SYS_fdatasync);
        break;
    case PAUSE:
        sleep_us(a->number * 1000);
        break;
    case ERROR:
        return -(int)a->number;
    }
    return 0;
}

int crail_failpoint_error(const char *name) {
    struct armed now = {.passed = 0};
    if (!getenv("CRAILPY_FAILPOINTS"))
        return 0;
    pthread_mutex_lock(&state.lock);
    if (!is_name(name))
        give_up("not in the list", name);
    read_all();
    for (uint32_t i = 0; i < state.count; i++) {
        struct armed *a = &state.armed[i];
        if (strcmp(a->name, name) == 0 && (++a->passed == a->only || !a->only))
            now = *a;
    }
    pthread_mutex_unlock(&state.lock);
    return now.passed ? act(&now) : 0;
}

void crail_failpoint(const char *name) {
    if (crail_failpoint_error(name))
        give_up("this place cannot fail", name);
}

#else

/* ISO C wants a translation unit to hold something. */
typedef int crail_failpoints_are_none;

#endif
