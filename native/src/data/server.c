/* The storage server's loop: one thread, epoll, a mailbox. See storage.h for who owns what.
 *
 * A call from another thread is a struct on the caller's stack in a list; the caller sleeps until the loop has run
 * it. Stopping is such a call too, so the loop always ends between two rounds. */
#include "storage.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define EVENTS_MAX 64

const struct crail_storage_tuning crail_storage_tuning_default = {
    .stall_ns = 60000000000,
    .keep_ns = 5000000000,
    .buffers = 256,
    .connections_max = 16384,
};

/* ---- sources ---------------------------------------------------------------- */

int crail_loop_add(struct crail_storage *s, struct crail_source *source, uint32_t events) {
    assert(source->fd >= 0 && source->ready);
    struct epoll_event e = {.events = events, .data.ptr = source};
    if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, source->fd, &e))
        return -errno;
    source->watched = events;
    return 0;
}

void crail_loop_watch(struct crail_storage *s, struct crail_source *source, uint32_t events) {
    if (source->watched == events)
        return;
    struct epoll_event e = {.events = events, .data.ptr = source};
    int rc = epoll_ctl(s->epoll_fd, EPOLL_CTL_MOD, source->fd, &e);
    assert(rc == 0); /* it is in the set, and changing takes no memory */
    (void)rc;
    source->watched = events;
}

void crail_loop_shut(struct crail_storage *s, struct crail_source *source) {
    assert(source->fd >= 0);
    /* Deleted by name: the description may live on elsewhere, and epoll watches descriptions. */
    epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    close(source->fd);
    source->fd = -1;
}

void crail_loop_close(struct crail_storage *s, struct crail_source *source) {
    if (source->fd >= 0)
        crail_loop_shut(s, source);
    source->next_dead = s->dead;
    s->dead = source;
}

static void bury(struct crail_storage *s) {
    while (s->dead) {
        struct crail_source *source = s->dead;
        s->dead = source->next_dead;
        free(source);
    }
}

/* ---- the timer ---------------------------------------------------------------- */

void crail_loop_arm(struct crail_storage *s) {
    uint64_t due = s->retire.due_ns;
    if (s->orphan_count && (!due || s->orphans_due_ns < due))
        due = s->orphans_due_ns;
    if (s->disk.look_ns && (!due || s->disk.look_ns < due))
        due = s->disk.look_ns;
    if (due == s->timer_ns)
        return;
    struct itimerspec t = {.it_value = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)}};
    int rc = timerfd_settime(s->timer.fd, TFD_TIMER_ABSTIME, &t, NULL);
    assert(rc == 0);
    (void)rc;
    s->timer_ns = due;
}

static void timer_ready(struct crail_storage *s, struct crail_source *source, uint32_t events) {
    (void)events;
    uint64_t fired;
    if (read(source->fd, &fired, sizeof(fired)) < 0)
        return; /* set anew since epoll spoke */
    s->timer_ns = 0;
    uint64_t now = crail_clock_ns();
    crail_retire_tick(s, now);
    if (s->orphan_count && now >= s->orphans_due_ns)
        crail_use_probe_orphans(s);
    crail_disk_tick(s, now);
    crail_loop_arm(s);
}

/* ---- the mailbox ---------------------------------------------------------------- */

int crail_storage_call(struct crail_storage *s, int (*fn)(struct crail_storage *s, void *arg), void *arg) {
    assert(!pthread_equal(pthread_self(), s->thread));
    struct crail_mail mail = {.fn = fn, .arg = arg};
    pthread_mutex_lock(&s->mailbox.mutex);
    *s->mailbox.last = &mail;
    s->mailbox.last = &mail.next;
    uint64_t one = 1;
    ssize_t n = write(s->wake.fd, &one, sizeof(one));
    assert(n == sizeof(one)); /* an eventfd takes 2^64 - 2 of these */
    (void)n;
    while (!mail.done)
        pthread_cond_wait(&s->mailbox.done, &s->mailbox.mutex);
    pthread_mutex_unlock(&s->mailbox.mutex);
    return mail.rc;
}

static void wake_ready(struct crail_storage *s, struct crail_source *source, uint32_t events) {
    (void)events;
    uint64_t count;
    ssize_t n = read(source->fd, &count, sizeof(count));
    (void)n;
    pthread_mutex_lock(&s->mailbox.mutex);
    struct crail_mail *list = s->mailbox.first;
    s->mailbox.first = NULL;
    s->mailbox.last = &s->mailbox.first;
    pthread_mutex_unlock(&s->mailbox.mutex);
    for (struct crail_mail *mail = list; mail; mail = mail->next)
        mail->rc = mail->fn(s, mail->arg);
    pthread_mutex_lock(&s->mailbox.mutex);
    for (struct crail_mail *mail = list, *next; mail; mail = next) {
        next = mail->next; /* its stack frame may be gone once the mutex is free, not before */
        mail->done = true;
    }
    pthread_cond_broadcast(&s->mailbox.done);
    pthread_mutex_unlock(&s->mailbox.mutex);
}

/* ---- the thread -------------------------------------------------------------------- */

static void turn(struct crail_storage *s) {
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(s->epoll_fd, events, EVENTS_MAX, -1);
    for (int i = 0; i < n; i++) {
        struct crail_source *source = events[i].data.ptr;
        if (source->fd >= 0)
            source->ready(s, source, events[i].events);
    }
    crail_conns_run(s);
    bury(s);
}

static void *loop(void *arg) {
    struct crail_storage *s = arg;
    while (!s->stopping)
        turn(s);
    crail_retire_close(s);
    crail_conns_close(s);
    crail_disk_drain(s);
    assert(!s->conns);
    bury(s);
    return NULL;
}

/* Signals are the owner's: the thread is born with all of them blocked. */
static int start_thread(struct crail_storage *s) {
    sigset_t all, before;
    sigfillset(&all);
    int rc = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (rc)
        return -rc;
    rc = pthread_create(&s->thread, NULL, loop, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc)
        return -rc;
    pthread_setname_np(s->thread, "crail-storage");
    return 0;
}

static void close_fd(int fd) {
    if (fd >= 0)
        close(fd);
}

static void storage_free(struct crail_storage *s) {
    crail_use_tables_free(s);
    crail_regions_free(s);
    crail_disk_free(s);
    crail_retire_free(s);
    free(s->table_copy);
    free(s->scratch);
    close_fd(s->timer.fd);
    close_fd(s->wake.fd);
    close_fd(s->epoll_fd);
    pthread_cond_destroy(&s->mailbox.done);
    pthread_mutex_destroy(&s->mailbox.mutex);
    free(s);
}

static int open_sources(struct crail_storage *s) {
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (s->epoll_fd < 0)
        return -errno;
    s->wake = (struct crail_source){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .ready = wake_ready};
    if (s->wake.fd < 0)
        return -errno;
    s->timer =
        (struct crail_source){.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), .ready = timer_ready};
    if (s->timer.fd < 0)
        return -errno;
    int rc = crail_loop_add(s, &s->wake, EPOLLIN);
    return rc ? rc : crail_loop_add(s, &s->timer, EPOLLIN);
}

static int take_buffers(struct crail_storage *s) {
    s->scratch = malloc(CRAIL_SCRATCH_BYTES);
    s->table_copy = malloc(sizeof(*s->table_copy));
    return s->scratch && s->table_copy ? crail_retire_init(s) : -ENOMEM;
}

/* There is none until a region lies on one. */
static void init_disk(struct crail_disk *d) {
    d->fd = d->wake.fd = d->failed_fd = -1;
    pthread_mutex_init(&d->mutex, NULL);
    pthread_cond_init(&d->wanted, NULL);
    crail_list_init(&d->queue);
    crail_list_init(&d->finished);
    crail_list_init(&d->writes);
    crail_list_init(&d->held);
    crail_list_init(&d->waiting);
}

int crail_storage_start_tuned(const struct crail_storage_tuning *tuning, crail_storage **out) {
    struct crail_storage *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->tuning = *tuning;
    s->epoll_fd = s->wake.fd = s->timer.fd = -1;
    pthread_mutex_init(&s->mailbox.mutex, NULL);
    pthread_cond_init(&s->mailbox.done, NULL);
    s->mailbox.last = &s->mailbox.first;
    s->next_handle = 1;
    s->rounds.now = 1;
    init_disk(&s->disk);
    crail_list_init(&s->runnable);
    crail_list_init(&s->flushing[0]);
    crail_list_init(&s->flushing[1]);
    int rc = take_buffers(s);
    if (rc == 0)
        rc = open_sources(s);
    if (rc == 0)
        rc = start_thread(s);
    if (rc) {
        storage_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

int crail_storage_start(crail_storage **out) {
    return crail_storage_start_tuned(&crail_storage_tuning_default, out);
}

static int on_stop(struct crail_storage *s, void *arg) {
    (void)arg;
    s->stopping = true;
    return 0;
}

void crail_storage_stop(crail_storage *s) {
    crail_storage_call(s, on_stop, NULL);
    pthread_join(s->thread, NULL);
    storage_free(s);
}

/* ---- small calls ---------------------------------------------------------------------- */

struct identity_call {
    uint32_t number;
    const uint8_t *key;
};

static int on_identity(struct crail_storage *s, void *arg) {
    const struct identity_call *call = arg;
    s->number = call->number;
    memcpy(s->mac_key, call->key, sizeof(s->mac_key));
    s->identified = true;
    return 0;
}

int crail_storage_identity(crail_storage *s, uint32_t number, const uint8_t *mac_key16) {
    struct identity_call call = {number, mac_key16};
    return crail_storage_call(s, on_identity, &call);
}

static int on_stats(struct crail_storage *s, void *arg) {
    crail_storage_stats *out = arg;
    struct timespec cpu = {0};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    *out = s->stats;
    out->retires_waiting = s->retire.count;
    out->use_tables = s->table_count;
    out->loop_cpu_ns = (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec;
    return 0;
}

int crail_storage_stats_read(crail_storage *s, crail_storage_stats *out) {
    return crail_storage_call(s, on_stats, out);
}
