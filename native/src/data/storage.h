/* The storage server's core, seen from inside: one loop thread that serves data connections and retires extents.
 *
 * Everything in struct crail_storage belongs to the loop thread, except the mailbox. Other threads send calls
 * through crail_storage_call() and wait; what is slow (creating files, touching memory) they do before that. So no
 * lock is taken on the data path, and a transfer in progress is an ordinary slot that only this thread looks at.
 *
 * server.c     the thread, the mailbox, start and stop
 * region.c     memory, or places in a file, and generations
 * usetable.c   use tables and the locks that say whether they live
 * retire.c     the channel to the namenode, orders, confirmations
 * tcpconn.c    data connections
 * spool.c      what goes through a data connection from or to the disk
 * disk.c       the disk of file regions, and the threads that wait for it
 * rounds.c     how the generations of file regions get to the disk */
#ifndef CRAIL_STORAGE_H
#define CRAIL_STORAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/list.h"
#include "crail/api.h"
#include "crail/status.h"
#include "crail/wire.h"
#include "use.h"

#define CRAIL_STORAGE_REGIONS_MAX 4096u

/* ---- the loop (server.c) --------------------------------------------------- */

/* Something that epoll watches. The events of one epoll_wait may name a source that an earlier event of the same
 * round closed: a closed source has fd -1 and lives on in the list of the dead until the round is over. */
struct crail_source {
    int fd;
    uint32_t watched; /* the events that epoll was told */
    void (*ready)(struct crail_storage *s, struct crail_source *source, uint32_t events);
    struct crail_source *next_dead;
};

int crail_loop_add(struct crail_storage *s, struct crail_source *source, uint32_t events);
/* Changes what is waited for; costs nothing when it is that already. */
void crail_loop_watch(struct crail_storage *s, struct crail_source *source, uint32_t events);
/* Closes the descriptor now, if it is open, and frees the source (which heads its malloc'd struct) at the end of the
 * round. */
void crail_loop_close(struct crail_storage *s, struct crail_source *source);
/* Closes the descriptor only. */
void crail_loop_shut(struct crail_storage *s, struct crail_source *source);
/* Sets the one timer to the earliest of what retire.c, usetable.c and disk.c wait for. */
void crail_loop_arm(struct crail_storage *s);

/* Runs `fn` on the loop thread and returns its answer. From any thread but the loop's. */
int crail_storage_call(struct crail_storage *s, int (*fn)(struct crail_storage *s, void *arg), void *arg);

/* ---- regions ---------------------------------------------------------------- */

/* Its bytes lie in memory that clients map too; or, where `memory` is NULL, in the file of s->disk. */
struct crail_region {
    uint8_t *memory;
    uint64_t data_at, generations_at;  /* bytes into the file */
    _Atomic uint64_t *generations;     /* shared with clients; of a file: a private copy */
    uint64_t *changed, *being_written; /* of a file: a bit per page of generations (rounds.c) */
    uint32_t granules;
};

static inline size_t crail_generation_bytes(uint32_t granules) {
    return ((size_t)granules * sizeof(uint64_t) + CRAIL_GRANULE - 1) & ~(size_t)(CRAIL_GRANULE - 1);
}

/* Is this a run of granules inside a region of ours? Never trusts its numbers. */
bool crail_region_holds(const struct crail_storage *s, uint32_t region, uint32_t granule, uint32_t granules);
void crail_regions_free(struct crail_storage *s);

/* ---- use tables -------------------------------------------------------------- */

struct crail_use_entry {
    char *path;
    int fd; /* our own description, for asking whether anyone else holds the lock, and for reading the slots */
    uint32_t handle;
    bool orphan; /* the holder's socket is gone, or was an earlier process's; only the lock still speaks for it */
};

/* Drops the orphans whose lock is free. Returns how many are left. */
uint32_t crail_use_probe_orphans(struct crail_storage *s);
/* Calls crail_retire_see() with every word in every table. False: a table could not be read, so that nobody knows. */
bool crail_use_tables_see(struct crail_storage *s);
void crail_use_tables_free(struct crail_storage *s);

/* ---- the disk (disk.c) --------------------------------------------------------- */

#define CRAIL_DISK_THREADS 4u
#define CRAIL_DISK_BUFFER_BYTES (256u << 10)

enum crail_job_kind { CRAIL_JOB_READ, CRAIL_JOB_WRITE, CRAIL_JOB_SYNC };

/* One thing for the disk to do. It belongs to the threads from crail_disk_submit() until its `done` is called, on the
 * loop; else to the loop. */
struct crail_job {
    enum crail_job_kind kind;
    uint64_t at;     /* in the file, a multiple of CRAIL_GRANULE */
    uint8_t *buffer; /* aligned likewise, and as long as whole granules need */
    uint32_t skip;   /* bytes of the first granule that come before what this is about */
    uint32_t bytes;  /* that this is about: what a write leaves of its first and last granule stays as it is */
    int rc;          /* 0 or -errno, once done */
    void (*done)(struct crail_storage *s, struct crail_job *job);
    struct crail_list link;       /* of what is to be done, or is done, or waits for another write */
    struct crail_list write_link; /* of the writes under way */
};

struct crail_disk {
    int fd; /* -1: there is none */
    pthread_t threads[CRAIL_DISK_THREADS];
    uint32_t threads_count;
    pthread_mutex_t mutex; /* guards the next three */
    pthread_cond_t wanted;
    struct crail_list queue, finished;
    bool stopping;

    struct crail_source wake; /* something is finished */
    struct crail_list writes; /* under way: no two at the same granules */
    struct crail_list held;   /* writes that wait for one of those */
    uint8_t *buffers;
    uint32_t buffers_free;
    uint32_t *free;            /* their numbers */
    struct crail_list waiting; /* connections that want a buffer */
    uint64_t look_ns;          /* at those that keep theirs from the waiting; 0: nobody waits */
    int failed;                /* -errno of what went wrong first; 0: all is well */
    int failed_fd;             /* an eventfd, readable from then on */
};

/* Starts the threads. On the caller's thread, before anything is served. 0 or -errno. */
int crail_disk_open(struct crail_storage *s, int fd);
void crail_disk_submit(struct crail_storage *s, struct crail_job *job);
/* NULL: there is none, or others come first. */
uint8_t *crail_disk_buffer_take(struct crail_storage *s);
/* To the first that waits, else back. */
void crail_disk_buffer_give(struct crail_storage *s, uint8_t *buffer);
void crail_disk_tick(struct crail_storage *s, uint64_t now_ns);
/* What a failure of the disk is to a client. */
int crail_disk_status(int rc);
/* Ends the threads when all is done that was submitted. On the loop. */
void crail_disk_drain(struct crail_storage *s);
void crail_disk_free(struct crail_storage *s);

/* ---- rounds (rounds.c) -------------------------------------------------------------- */

struct crail_rounds {
    uint32_t now;     /* what is raised now becomes durable with this one; never 0 */
    uint32_t durable; /* the last one that is */
    uint32_t written; /* the one under way */
    bool is_changed, is_running;
    uint32_t region, page; /* it has come so far */
    struct crail_job job;
};

/* Which round makes this region's generations durable, as they are raised now. 0: none has to. */
uint32_t crail_round_of(const struct crail_storage *s, uint32_t region);
bool crail_round_is_durable(const struct crail_storage *s, uint32_t round);
/* The generation of the granule was raised. */
void crail_round_note(struct crail_storage *s, uint32_t region, uint32_t granule);
/* Begins a round if there is something for one and none is under way. */
void crail_round_begin(struct crail_storage *s);

/* ---- retiring ------------------------------------------------------------------ */

struct crail_channel;

#define CRAIL_LOOK_MAX 8192u /* orders in one look at the slots */

struct crail_retire_state {
    struct crail_channel *channel; /* NULL while there is none; then nothing waits */
    struct crail_retire *waiting;  /* at most one per first granule; about in the order of their coming */
    uint32_t count, cap;
    uint32_t *index; /* hash of word -> position in `waiting` + 1; at most half full */
    uint32_t index_cap;
    uint32_t cursor;             /* old orders are looked at in turn, downwards: those below come next */
    uint64_t backoff_ns, due_ns; /* due_ns 0: nothing waits */
    uint64_t rest_until_ns;      /* no tick before: the last one was long */
    struct {                     /* the look at the slots that is going on */
        uint64_t *words;         /* hash set of the words looked for, 2 * CRAIL_LOOK_MAX places; 0: empty */
        bool *named;             /* by place: it is in some slot */
        uint32_t mask;           /* places in use - 1 */
        uint64_t now_ns;
    } look;
};

int crail_retire_init(struct crail_storage *s);
void crail_retire_free(struct crail_storage *s);
/* During a look: somebody names this extent. Is it one that an order looked at waits for? */
bool crail_retire_see(struct crail_storage *s, uint64_t word);
/* The timer fired: look at the slots again if it is time. */
void crail_retire_tick(struct crail_storage *s, uint64_t now_ns);
/* A round is durable: look again. */
void crail_retire_round_done(struct crail_storage *s);
void crail_retire_close(struct crail_storage *s);

/* An extent that could not be read. */
struct crail_bad {
    uint64_t word, generation;
};
#define CRAIL_BAD_MAX 64u /* the latest are remembered */

/* ---- data connections ------------------------------------------------------------ */

struct crail_conn;

/* Calls crail_retire_see() with the word of every extent that a connection is in the middle of. A connection that an
 * order waits for and that has moved no byte for tuning.stall_ns is closed. */
void crail_conns_see(struct crail_storage *s);
void crail_conns_close(struct crail_storage *s);
/* Goes on with the connections that a disk, or a free buffer, has something for. */
void crail_conns_run(struct crail_storage *s);
/* Others wait for a buffer: closes those that keep one and have not moved a byte since `since_ns`. */
void crail_conns_press(struct crail_storage *s, uint64_t since_ns);

/* ---- all of it --------------------------------------------------------------------- */

#define CRAIL_SCRATCH_BYTES (256u << 10)

/* Bounds that tests change. */
struct crail_storage_tuning {
    uint64_t stall_ns;        /* a transfer that stands still for so long gives way to a retire order */
    uint64_t keep_ns;         /* likewise one with a buffer, to those that wait for one */
    uint32_t buffers;         /* of CRAIL_DISK_BUFFER_BYTES */
    uint32_t connections_max; /* data connections; fewer where RLIMIT_NOFILE is low */
};
extern const struct crail_storage_tuning crail_storage_tuning_default;

int crail_storage_start_tuned(const struct crail_storage_tuning *tuning, crail_storage **out);

struct crail_mail {
    int (*fn)(struct crail_storage *s, void *arg);
    void *arg;
    int rc;
    bool done;
    struct crail_mail *next;
};

struct crail_storage {
    pthread_t thread;
    struct crail_storage_tuning tuning; /* set before the thread starts */
    struct {
        pthread_mutex_t mutex;
        pthread_cond_t done;
        struct crail_mail *first, **last;
    } mailbox;

    int epoll_fd;
    struct crail_source wake, timer;
    struct crail_source *dead;
    uint64_t timer_ns; /* what the timer is set to; 0: off */
    bool stopping;

    bool serving;    /* there has been a connection or a channel: regions are fixed */
    bool identified; /* number and key are known */
    uint32_t number;
    uint8_t mac_key[16];

    struct crail_region *regions;
    uint32_t region_count;

    struct crail_use_entry *tables;
    struct crail_use_table *table_copy; /* what was read of the one being looked at */
    uint32_t table_count, table_cap, orphan_count, next_handle;
    uint64_t orphans_due_ns;

    struct crail_disk disk;
    struct crail_rounds rounds;

    struct crail_retire_state retire;
    struct crail_conn *conns;
    struct crail_list runnable;    /* connections that can go on without a word from their socket */
    struct crail_list flushing[2]; /* connections whose FLUSH is under way; comes next */
    struct crail_job sync;
    struct crail_bad bad[CRAIL_BAD_MAX];
    uint32_t bad_next;
    uint8_t *scratch; /* where the bytes of refused writes go */

    crail_storage_stats stats;
};

#endif
