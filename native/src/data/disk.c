/* The disk behind file regions: a few threads that wait for it, so that the loop never does.
 *
 * The loop submits jobs; a thread does one and puts it among the finished; the loop calls its `done`. Whatever goes
 * wrong is remembered (`failed`) and not forgotten before the server is started again: after a failed write nobody
 * knows what the kernel still has, and a medium that fails once is nowhere to put anything. */
#include "storage.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"

#define LOOK_NS 100000000u /* how often to look for buffers that nobody moves */

static uint64_t round_up(uint64_t n) {
    return (n + CRAIL_GRANULE - 1) & ~(uint64_t)(CRAIL_GRANULE - 1);
}

/* ---- on the threads --------------------------------------------------------------- */

static int read_exact(int fd, uint8_t *to, uint64_t bytes, uint64_t at) {
    int rc = crail_fault("disk-read");
    while (rc == 0 && bytes) {
        ssize_t n = pread(fd, to, bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? -errno : -EIO; /* the file has become shorter */
        to += n, at += (uint64_t)n, bytes -= (uint64_t)n;
    }
    return rc;
}

static int write_exact(int fd, const uint8_t *from, uint64_t bytes, uint64_t at) {
    int rc = crail_fault("disk-write");
    while (rc == 0 && bytes) {
        ssize_t n = pwrite(fd, from, bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? -errno : -ENOSPC;
        from += n, at += (uint64_t)n, bytes -= (uint64_t)n;
    }
    return rc;
}

/* What is before and behind the bytes of this write in their granules comes from the disk. `granule` is room for one.
 */
static int fill_edges(int fd, const struct crail_job *job, uint8_t *granule) {
    uint64_t end = job->skip + job->bytes, whole = round_up(end);
    int rc = 0;
    if (job->skip) {
        rc = read_exact(fd, granule, CRAIL_GRANULE, job->at);
        if (rc == 0)
            memcpy(job->buffer, granule, job->skip);
    }
    if (rc || end == whole)
        return rc;
    rc = read_exact(fd, granule, CRAIL_GRANULE, job->at + whole - CRAIL_GRANULE);
    if (rc == 0)
        memcpy(job->buffer + end, granule + CRAIL_GRANULE - (whole - end), whole - end);
    return rc;
}

static int job_do(int fd, const struct crail_job *job, uint8_t *granule) {
    uint64_t bytes = round_up(job->skip + job->bytes);
    int rc;
    switch (job->kind) {
    case CRAIL_JOB_READ:
        return read_exact(fd, job->buffer, bytes, job->at);
    case CRAIL_JOB_WRITE:
        rc = fill_edges(fd, job, granule);
        return rc ? rc : write_exact(fd, job->buffer, bytes, job->at);
    case CRAIL_JOB_SYNC:
        rc = crail_fault("disk-sync");
        return rc ? rc : fdatasync(fd) ? -errno : 0;
    }
    assert(!"a job is of one of its kinds");
    return -EINVAL;
}

static void wake(int fd) {
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof(one));
    assert(n == sizeof(one)); /* an eventfd takes 2^64 - 2 of these */
    (void)n;
}

static void *work(void *arg) {
    struct crail_disk *d = arg;
    _Alignas(CRAIL_GRANULE) uint8_t granule[CRAIL_GRANULE];
    pthread_mutex_lock(&d->mutex);
    for (;;) {
        while (crail_list_empty(&d->queue) && !d->stopping)
            pthread_cond_wait(&d->wanted, &d->mutex);
        if (crail_list_empty(&d->queue))
            break;
        struct crail_job *job = CRAIL_LIST_OF(d->queue.next, struct crail_job, link);
        crail_list_remove(&job->link);
        pthread_mutex_unlock(&d->mutex);
        job->rc = job_do(d->fd, job, granule);
        pthread_mutex_lock(&d->mutex);
        crail_list_push(&d->finished, &job->link);
        wake(d->wake.fd);
    }
    pthread_mutex_unlock(&d->mutex);
    return NULL;
}

/* ---- on the loop -------------------------------------------------------------------- */

static bool overlaps_one(const struct crail_disk *d, const struct crail_job *job) {
    for (const struct crail_list *l = d->writes.next; l != &d->writes; l = l->next) {
        const struct crail_job *other = CRAIL_LIST_OF(l, struct crail_job, write_link);
        if (job->at < other->at + round_up(other->skip + other->bytes) &&
            other->at < job->at + round_up(job->skip + job->bytes))
            return true;
    }
    return false;
}

static void enqueue(struct crail_disk *d, struct crail_job *job) {
    pthread_mutex_lock(&d->mutex);
    crail_list_push(&d->queue, &job->link);
    pthread_cond_signal(&d->wanted);
    pthread_mutex_unlock(&d->mutex);
}

void crail_disk_submit(struct crail_storage *s, struct crail_job *job) {
    struct crail_disk *d = &s->disk;
    assert(d->fd >= 0 && job->at % CRAIL_GRANULE == 0 && job->skip < CRAIL_GRANULE);
    assert(job->skip + job->bytes <= CRAIL_DISK_BUFFER_BYTES);
    crail_list_init(&job->link);
    crail_list_init(&job->write_link);
    if (job->kind == CRAIL_JOB_WRITE) {
        if (overlaps_one(d, job)) {
            crail_list_push(&d->held, &job->link);
            return;
        }
        crail_list_push(&d->writes, &job->write_link);
    }
    enqueue(d, job);
}

/* A write has ended: those that waited for it begin. */
static void release_held(struct crail_disk *d) {
    for (struct crail_list *l = d->held.next, *next; l != &d->held; l = next) {
        next = l->next;
        struct crail_job *job = CRAIL_LIST_OF(l, struct crail_job, link);
        if (overlaps_one(d, job))
            continue;
        crail_list_push(&d->writes, &job->write_link);
        crail_list_remove(&job->link);
        enqueue(d, job);
    }
}

static void note_failure(struct crail_storage *s, int rc) {
    s->stats.disk_errors++;
    if (s->disk.failed)
        return;
    s->disk.failed = rc;
    s->stats.disk_errno = (uint64_t)-rc;
    wake(s->disk.failed_fd);
}

static void job_end(struct crail_storage *s, struct crail_job *job) {
    crail_list_remove(&job->link);
    if (job->kind == CRAIL_JOB_WRITE) {
        crail_list_remove(&job->write_link);
        release_held(&s->disk);
    }
    if (job->rc)
        note_failure(s, job->rc);
    job->done(s, job);
}

static void take_finished(struct crail_storage *s) {
    struct crail_list list;
    crail_list_init(&list);
    pthread_mutex_lock(&s->disk.mutex);
    crail_list_splice(&list, &s->disk.finished);
    pthread_mutex_unlock(&s->disk.mutex);
    while (!crail_list_empty(&list))
        job_end(s, CRAIL_LIST_OF(list.next, struct crail_job, link));
}

static void disk_ready(struct crail_storage *s, struct crail_source *source, uint32_t events) {
    (void)events;
    uint64_t count;
    ssize_t n = read(source->fd, &count, sizeof(count));
    (void)n;
    take_finished(s);
}

int crail_disk_status(int rc) {
    return rc == 0 ? 0 : rc == -ENOSPC || rc == -EDQUOT ? CRAIL_E_OUT_OF_SPACE : CRAIL_E_DATA_LOST;
}

/* ---- buffers --------------------------------------------------------------------------- */

uint8_t *crail_disk_buffer_take(struct crail_storage *s) {
    struct crail_disk *d = &s->disk;
    if (!d->buffers_free || !crail_list_empty(&d->waiting))
        return NULL;
    return d->buffers + (size_t)d->free[--d->buffers_free] * CRAIL_DISK_BUFFER_BYTES;
}

void crail_disk_tick(struct crail_storage *s, uint64_t now_ns) {
    struct crail_disk *d = &s->disk;
    if (!d->look_ns || now_ns < d->look_ns)
        return;
    d->look_ns = crail_list_empty(&d->waiting) ? 0 : now_ns + LOOK_NS;
    if (d->look_ns && now_ns > s->tuning.keep_ns)
        crail_conns_press(s, now_ns - s->tuning.keep_ns);
}

/* ---- beginning and end -------------------------------------------------------------------- */

static int take_buffers(struct crail_storage *s) {
    struct crail_disk *d = &s->disk;
    uint32_t n = s->tuning.buffers;
    d->free = malloc(n * sizeof(*d->free));
    if (!d->free)
        return -ENOMEM;
    void *memory = mmap(NULL, ((size_t)n + 1) * CRAIL_DISK_BUFFER_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    d->buffers = memory;
    s->rounds.job.buffer = d->buffers + (size_t)n * CRAIL_DISK_BUFFER_BYTES;
    for (uint32_t i = 0; i < n; i++)
        d->free[d->buffers_free++] = n - 1 - i; /* the same few are used again and again */
    return 0;
}

/* Signals are the owner's, as in server.c. */
static int start_threads(struct crail_disk *d) {
    sigset_t all, before;
    sigfillset(&all);
    int rc = pthread_sigmask(SIG_SETMASK, &all, &before);
    while (rc == 0 && d->threads_count < CRAIL_DISK_THREADS) {
        rc = pthread_create(&d->threads[d->threads_count], NULL, work, d);
        if (rc == 0)
            pthread_setname_np(d->threads[d->threads_count++], "crail-disk");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -rc;
}

static int on_disk_open(struct crail_storage *s, void *arg) {
    (void)arg;
    return crail_loop_add(s, &s->disk.wake, EPOLLIN);
}

int crail_disk_open(struct crail_storage *s, int fd) {
    struct crail_disk *d = &s->disk;
    assert(d->fd < 0 && !d->threads_count);
    d->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (d->fd < 0)
        return -errno;
    int rc = take_buffers(s);
    d->wake = (struct crail_source){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .ready = disk_ready};
    d->failed_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (rc == 0)
        rc = d->wake.fd < 0 || d->failed_fd < 0 ? -errno : crail_storage_call(s, on_disk_open, NULL);
    return rc ? rc : start_threads(d);
}

static void stop_threads(struct crail_disk *d) {
    pthread_mutex_lock(&d->mutex);
    d->stopping = true;
    pthread_cond_broadcast(&d->wanted);
    pthread_mutex_unlock(&d->mutex);
    while (d->threads_count)
        pthread_join(d->threads[--d->threads_count], NULL);
}

void crail_disk_drain(struct crail_storage *s) {
    /* What is held gets its turn when what it waits for is finished, and only then may the threads end. */
    while (!crail_list_empty(&s->disk.writes)) {
        uint64_t count;
        struct pollfd wait = {s->disk.wake.fd, POLLIN, 0};
        poll(&wait, 1, -1);
        ssize_t n = read(s->disk.wake.fd, &count, sizeof(count));
        (void)n;
        take_finished(s);
    }
    stop_threads(&s->disk);
    take_finished(s);
    assert(crail_list_empty(&s->disk.held));
}

void crail_disk_free(struct crail_storage *s) {
    struct crail_disk *d = &s->disk;
    assert(!d->threads_count);
    if (d->buffers)
        munmap(d->buffers, ((size_t)s->tuning.buffers + 1) * CRAIL_DISK_BUFFER_BYTES);
    free(d->free);
    if (d->wake.fd >= 0)
        close(d->wake.fd);
    if (d->failed_fd >= 0)
        close(d->failed_fd);
    if (d->fd >= 0)
        close(d->fd);
    pthread_cond_destroy(&d->wanted);
    pthread_mutex_destroy(&d->mutex);
}
