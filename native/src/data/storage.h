/* The storage server's core, seen from inside: one loop thread that serves data connections and retires extents.
 *
 * Everything in struct crail_storage belongs to the loop thread, except the mailbox. Other threads send calls
 * through crail_storage_call() and wait; what is slow (creating files, touching memory) they do before that. So no
 * lock is taken on the data path, and a transfer in progress is an ordinary slot that only this thread looks at.
 *
 * server.c     the thread, the mailbox, start and stop
 * region.c     memory and generations
 * usetable.c   use tables and the locks that say whether they live
 * retire.c     the channel to the namenode, orders, confirmations
 * tcpconn.c    data connections */
#ifndef CRAIL_STORAGE_H
#define CRAIL_STORAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
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
/* Closes the descriptor now and frees the source (which heads its malloc'd struct) at the end of the round. */
void crail_loop_close(struct crail_storage *s, struct crail_source *source);
/* Sets the one timer to the earliest of what retire.c and usetable.c wait for. */
void crail_loop_arm(struct crail_storage *s);

/* Runs `fn` on the loop thread and returns its answer. From any thread but the loop's. */
int crail_storage_call(struct crail_storage *s, int (*fn)(struct crail_storage *s, void *arg), void *arg);

/* ---- regions ---------------------------------------------------------------- */

struct crail_region {
    uint8_t *memory;
    _Atomic uint64_t *generations;
    uint32_t granules;
};

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
void crail_retire_close(struct crail_storage *s);

/* ---- data connections ------------------------------------------------------------ */

struct crail_conn;

/* Calls crail_retire_see() with the word of every extent that a connection is in the middle of. A connection that an
 * order waits for and that has moved no byte for tuning.stall_ns is closed. */
void crail_conns_see(struct crail_storage *s);
void crail_conns_close(struct crail_storage *s);

/* ---- all of it --------------------------------------------------------------------- */

#define CRAIL_SCRATCH_BYTES (256u << 10)

/* Bounds that tests change. */
struct crail_storage_tuning {
    uint64_t stall_ns;        /* a transfer that stands still for so long gives way to a retire order */
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

    struct crail_retire_state retire;
    struct crail_conn *conns;
    uint8_t *scratch; /* where the bytes of refused writes go */

    crail_storage_stats stats;
};

#endif
