/* The granules of one region, cut into runs. Every granule belongs to exactly one run; the record of a run's first
 * granule says what it is. Records of inner granules are zero, but the last one of a free run, which says where the
 * run begins so that a neighbour can join it.
 *
 * Free runs lie in lists by size class, two levels as in TLSF (Masmano et al. 2004): with requests rounded up to a
 * class, taking and giving back are O(1) however many granules there are. */
#ifndef CRAIL_META_GRANULES_H
#define CRAIL_META_GRANULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

struct crail_meta;
struct crail_options;
struct crail_live;
struct crail_retire;
struct crail_server_row;

struct crail_run {
    uint32_t server, region, granule, granules;
};

enum crail_run_state {
    CRAIL_RUN_INNER = 0,
    CRAIL_RUN_FREE,
    CRAIL_RUN_FREE_END, /* last granule of a free run of more than one: `len` is the run's */
    CRAIL_RUN_USED,     /* of a node; `prev`: how many readers hold it */
    CRAIL_RUN_GRANT,    /* of a session: `prev` its place among the grants, `next` the slot of the session */
    CRAIL_RUN_DUE,      /* freed; the order to retire it has not been taken */
    CRAIL_RUN_PENDING,  /* freed; the order is out */
    CRAIL_RUN_MARKED,   /* a PENDING one within crail_meta_retires_done() */
    CRAIL_RUN_HELD,     /* of no node any more, but `prev` readers hold it; counts as used */
    CRAIL_RUN_GATED,    /* freed; a durable cut may name it until that of its epoch is durable */
    CRAIL_RUN_STATES,
};

struct crail_run_record {
    uint32_t len;
    uint32_t prev, next; /* in the list of its state; granule + 1, 0 ends */
    uint32_t state : 7;  /* enum crail_run_state */
    uint32_t stored : 1; /* of a node's: a cut has named it */
    uint32_t epoch : 24; /* of a GATED one */
};

/* 1..8, then four steps per power of two. */
#define CRAIL_RUN_CLASSES 124u

struct crail_run_list {
    uint32_t head, tail; /* granule + 1 */
};

struct crail_region {
    uint32_t granules;
    struct crail_run_record *record;
    uint64_t *generation; /* of every granule, as on the server once all orders are confirmed */
    uint64_t class_map[2];
    struct crail_run_list free[CRAIL_RUN_CLASSES];
    struct crail_run_list due, pending, gated;
};

/* Smallest class whose runs are all of at least `granules`; largest class that a run of `granules` belongs to. */
uint32_t crail_run_class_up(uint32_t granules);
uint32_t crail_run_class_down(uint32_t granules);
uint32_t crail_run_class_granules(uint32_t class);
/* Rounded up to a class: by at most a quarter. */
uint64_t crail_run_round(uint64_t granules);

/* All of it is free, or (`is_unknown`) of no state until somebody says. 0, -ENOMEM */
int crail_region_open(struct crail_region *r, uint32_t granules, const uint64_t *generations, bool is_unknown);

/* A free run of exactly `granules`, which has to be a class. False if there is none. The run is INNER until set. */
bool crail_region_take(struct crail_region *r, uint32_t granules, uint32_t *first);
/* One of the largest free runs, cut to at most `granules_max`. */
bool crail_region_take_large(struct crail_region *r, uint32_t granules_max, uint32_t *first, uint32_t *granules);
int crail_region_largest_class(const struct crail_region *r); /* -1: nothing is free */
/* The run becomes free and joins its neighbours. */
void crail_region_give(struct crail_region *r, uint32_t first, uint32_t granules);

void crail_run_push_tail(struct crail_region *r, struct crail_run_list *list, uint32_t granule);
void crail_run_unlist(struct crail_region *r, struct crail_run_list *list, uint32_t granule);

/* ---- servers.c ------------------------------------------------------------ */

enum { CRAIL_COUNT_FREE, CRAIL_COUNT_USED, CRAIL_COUNT_GRANTED, CRAIL_COUNT_RETIRING, CRAIL_COUNTS };

struct crail_server {
    uint32_t number;
    uint32_t state;    /* enum crail_meta_server_state */
    uint32_t location; /* 0: nobody said */
    uint8_t storage_class;
    uint32_t regions_n;
    struct crail_region *regions; /* NULL when LOST */
    uint64_t granules;            /* all; the counts add up to it */
    uint64_t count[CRAIL_COUNTS];
    uint32_t due_extents;
    uint64_t due_granules;
    uint32_t take_next;               /* region that retires are taken from first */
    uint32_t evict_first, evict_last; /* refs of extras: evictable nodes that begin here, oldest commit first */
    uint32_t gated_extents;           /* that wait for a cut */
    struct crail_list changed;        /* among those whose rows have changed */
    uint8_t *note;                    /* of the rpc room, for its row */
    uint32_t note_bytes;
    bool is_unknown;         /* loaded, and not registered again: see load.c */
    struct crail_live *live; /* of one that is unknown: its runs at the load, in order */
    uint32_t live_n, live_cap;
};

/* NULL for a number never given. */
struct crail_server *crail_server_find(const struct crail_meta *m, uint32_t number);
struct crail_run_record *crail_run_record_of(const struct crail_meta *m, const struct crail_run *run);
uint64_t crail_run_generation(const struct crail_meta *m, const struct crail_run *run); /* 0 on a lost server */
void crail_run_fetch(const struct crail_meta *m, const struct crail_run *run);          /* it is asked for soon */

/* A run that was cut from the region's free ones becomes CRAIL_RUN_GRANT, without owner yet; and the way back. */
void crail_run_taken(struct crail_server *sv, uint32_t region, uint32_t first, uint32_t granules,
                     struct crail_run *out);
void crail_run_untake(struct crail_meta *m, const struct crail_run *run);
/* A taken run becomes a node's. */
void crail_run_use(struct crail_meta *m, const struct crail_run *run);
/* A node lets go of its run, which is retired at once or with its last reader. */
void crail_run_drop(struct crail_meta *m, const struct crail_run *run);
/* One reader more, or less, of a node's run. */
void crail_run_pin(struct crail_meta *m, const struct crail_run *run);
void crail_run_unpin(struct crail_meta *m, const struct crail_run *run);
/* A used or taken run goes: due to be retired, or forgotten with its server. */
void crail_run_retire(struct crail_meta *m, const struct crail_run *run);
/* What the gate lets through becomes due; memory of lost servers is given back. True if some is left. */
bool crail_servers_step(struct crail_meta *m);
/* A run of a node becomes one that a cut has named. */
void crail_run_stored(struct crail_meta *m, const struct crail_run *run);
/* Of the runs of a value: is what was written there gone? */
bool crail_run_is_lost(const struct crail_meta *m, const struct crail_run *run);

/* ---- recover.c: servers of an earlier life ------------------------------------ */

/* A run that a node's row or the grant map tells of. */
struct crail_claim {
    struct crail_run run;
    uint64_t generation;
    uint64_t node;                      /* id of the node whose it is */
    struct crail_meta_session *session; /* whose grant it is; NULL: a node's */
    uint32_t slot;                      /* of that grant in the map */
    bool is_void;                       /* of a grant that something speaks against */
};

/* A server out of its row. 0, -ENOMEM, -EUCLEAN (known already, or no such server can be). */
int crail_server_loaded(struct crail_meta *m, uint32_t number, const struct crail_server_row *row,
                        const uint32_t *granules, const void *note);
/* All runs there are, of which those of nodes must not overlap; grants that overlap become void. 0; -ENOMEM; -EUCLEAN,
 * and *wrong is one of a node. */
int crail_claims_loaded(struct crail_meta *m, struct crail_claim *claims, uint64_t n, const struct crail_claim **wrong);
/* For recover.c, from servers.c. */
void crail_run_claim(struct crail_server *sv, const struct crail_claim *claim);
void crail_run_busy(struct crail_server *sv, const struct crail_retire *busy);
void crail_run_unknown_free(struct crail_server *sv, uint32_t region, uint32_t first, uint32_t granules);
void crail_run_compare(struct crail_server *sv, const struct crail_live *run, uint64_t found, uint32_t *lost);
void crail_servers_close(struct crail_meta *m);

/* ---- placement.c ----------------------------------------------------------- */

/* Of `where`, storage_class, location, stripe and CRAIL_OPTION_STRICT count. */

/* May a grant that is asked for like this come from there? */
bool crail_server_eligible(const struct crail_server *sv, const struct crail_options *where);

struct crail_room {
    uint32_t servers;
    uint64_t free, retiring, total; /* granules */
};
struct crail_room crail_runs_room(const struct crail_meta *m, const struct crail_options *where);

/* Takes runs of at least `granules` together, as CRAIL_RUN_GRANT without owner yet: one contiguous run if there is
 * one, else up to `runs_max`. 0 if there is no room, and then nothing is taken. */
uint32_t crail_runs_take(struct crail_meta *m, const struct crail_options *where, uint64_t granules, uint32_t runs_max,
                         struct crail_run *out);
/* where->stripe equal runs on as many servers; fewer where there are not so many with room, unless it is strict. */
uint32_t crail_runs_take_striped(struct crail_meta *m, const struct crail_options *where, uint64_t granules,
                                 struct crail_run *out);
/* One run of that class, and only while space is plenty where it would come from first. */
bool crail_runs_take_if_plenty(struct crail_meta *m, const struct crail_options *where, uint64_t granules,
                               struct crail_run *out);

#endif
