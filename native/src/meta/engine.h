/* What the files of the meta room share: the records in the arena, the engine itself, and each file's face.
 * Nothing here leaves the room. One thread. */
#ifndef CRAIL_META_ENGINE_H
#define CRAIL_META_ENGINE_H

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/buf.h"
#include "base/list.h"
#include "base/siphash.h"
#include "crail/rows.h"
#include "crail/status.h"
#include "meta/arena.h"
#include "meta/granules.h"
#include "meta/meta.h"

/* ---- nodes ---------------------------------------------------------------- */

#define CRAIL_NODE_NAME 48u /* bytes of a name that fit in the node */
#define CRAIL_NODE_TINY 16u /* bytes of a value that fit in the node */

enum crail_node_flags {
    CRAIL_NODE_INDEX_FAILED = 1 << 0, /* of a container: its index ran out of memory since it was last listed */
    CRAIL_NODE_ITEM = 1 << 1,         /* of a leaf: it lies in a queue, where only the queue's operations touch it */
    CRAIL_NODE_IN_JOB = 1 << 2,       /* it lies below the directory of a job */
    CRAIL_NODE_TAIL_CLOSED = 1 << 3,  /* of a leaf: nobody may write behind its bytes any more, see opens.c */
    CRAIL_NODE_BROKEN = 1 << 4,       /* of a barrier: a member died before it opened */
    CRAIL_NODE_STORED = 1 << 5,       /* a cut has had a row of it */
    CRAIL_NODE_FLUSHED = 1 << 6,      /* of a leaf: its extents are durable where they lie, its client says */
};

/* The state of an item, behind its name. */
enum crail_item_state { CRAIL_ITEM_FRESH = 1, CRAIL_ITEM_RETURNED, CRAIL_ITEM_TAKEN };
struct crail_item {
    char digits[24];
    crail_ref left, right, up; /* in the heap of those that came back */
    uint8_t rank;
    uint8_t state; /* enum crail_item_state */
};

/* A node never moves: children name their parent by its ref. The first cache line is all that a lookup that passes
 * by has to touch. */
struct crail_node {
    crail_ref hash_next; /* of a removed one: the job that it is still charged to */
    uint32_t hash;
    crail_ref parent; /* 0 in the root and in the tops of removed trees */
    uint8_t name_len;
    uint8_t kind;    /* enum crail_kind */
    uint8_t extents; /* of a file; 0: the value is inline */
    uint8_t flags;   /* enum crail_node_flags */
    union {
        char name[CRAIL_NODE_NAME];
        crail_ref name_ref;     /* of a name that does not fit */
        struct crail_item item; /* of an item of a queue */
    };

    uint64_t id;
    uint64_t version;
    uint64_t size; /* bytes of a file, entries of a container */
    int64_t mtime_ns;
    crail_ref sib_next, sib_prev; /* the children of one container, latest first */
    union {
        crail_ref first_child;
        crail_ref data; /* inline value above CRAIL_NODE_TINY, or the runs of a file of more than one extent */
    };
    crail_ref extra; /* struct crail_extra; 0 for nearly all */
    union {
        uint8_t tiny[CRAIL_NODE_TINY];
        struct crail_run run; /* of a file of one extent */
        crail_ref index;      /* of a container: struct crail_index, or 0 */
        struct {
            crail_ref index, fresh, returned;
        } queue; /* see queue.c */
        struct {
            uint64_t rounds;        /* how often it has opened */
            uint32_t members, here; /* of the present round: wanted, and waiting */
        } barrier;
    };
};
_Static_assert(sizeof(struct crail_node) == 128, "two cache lines");
_Static_assert(offsetof(struct crail_node, id) == 64, "the first is for lookups");

/* A value made ready before anything is changed, so that publishing it cannot fail. */
struct crail_value {
    uint64_t size;
    uint8_t extents;
    bool is_flushed; /* CRAIL_NODE_FLUSHED; the maker's to set */
    crail_ref data;
    union {
        uint8_t tiny[CRAIL_NODE_TINY];
        struct crail_run run;
    };
};

/* What few nodes have: holds, attributes, an end. A record of the arena, made when it is needed and freed when it says
 * nothing any more, or with its node. */
struct crail_extra {
    crail_ref node;
    crail_ref holds;  /* first of the node's, linked through node_next */
    uint32_t session; /* with CRAIL_OPTION_SESSION: the slot of its owner */
    uint16_t options; /* enum crail_option_flags */
    uint16_t reserved;
    int64_t ttl_ns;                   /* with CRAIL_OPTION_TTL */
    int64_t expires_ns;               /* 0: never */
    uint32_t due;                     /* place in the heap of those that expire + 1, or 0 */
    uint32_t evict_server;            /* number of the server in whose list of evictable nodes it is, or 0 */
    uint64_t job;                     /* number of the one that it belongs to by its own option, or 0 */
    crail_ref own_job;                /* the job whose directory it is, or 0 */
    crail_ref owned_prev, owned_next; /* extras of one owner */
    crail_ref job_prev, job_next;     /* extras of one job */
    crail_ref evict_prev, evict_next; /* extras of one server, oldest commit first */
    crail_ref attributes;             /* struct crail_attribute ... in the order of names, or 0 */
    uint32_t attributes_bytes;
};

/* A job; a record of the arena. It is charged for every node below its directory, and for those that belong to it by
 * their option and lie elsewhere. It stays, ended, until the last of them is freed. */
#define CRAIL_JOB_SLOTS ((1u << 24) - 1)
struct crail_job {
    uint64_t number;   /* the slot in the bits of CRAIL_JOB_SLOTS */
    crail_ref node;    /* its directory; 0: gone */
    crail_ref outer;   /* the job that its directory lies in, or 0 */
    crail_ref members; /* extras of those that belong to it by option */
    crail_ref ending;  /* next among those that ended and still have members */
    uint32_t holders;
    bool ended;
    bool listed; /* among those that ended and still have members */
    int64_t ttl_ns;
    struct crail_quota quota;
    uint64_t bytes, nodes; /* charged */
};

/* What a session keeps of a node; a record of the arena. Found by (session, token). */
enum crail_hold_kind {
    CRAIL_HOLD_OPEN = 1,
    CRAIL_HOLD_ITEM,
    CRAIL_HOLD_MEMBER,
    CRAIL_HOLD_APPEND,
    CRAIL_HOLD_STREAM,
    CRAIL_HOLD_FOLLOW,
    CRAIL_HOLD_JOB,
    CRAIL_HOLD_KINDS,
};
enum crail_hold_end {
    CRAIL_HOLD_ENDED = 1,   /* by wish: END, or what its kind has instead */
    CRAIL_HOLD_SESSION_END, /* with its session */
    CRAIL_HOLD_NODE_GONE,   /* with its node, if its kind does not outlive it */
};
struct crail_hold {
    uint64_t token;
    crail_ref hash_next;
    uint32_t session; /* slot */
    crail_ref session_prev, session_next;
    crail_ref node; /* 0: of none, or its node is gone */
    crail_ref node_prev, node_next;
    uint8_t kind; /* enum crail_hold_kind */
    uint8_t state;
    uint16_t reserved;
    /* What its kind makes of them (holds.c has the table). */
    crail_ref record;
    uint32_t count;
    uint64_t number, size;
};
_Static_assert(sizeof(struct crail_hold) == 64, "one cache line");

#define CRAIL_STREAM_BUCKETS 4096u

/* ---- the engine ----------------------------------------------------------- */

/* Nodes by (parent, name): linear hashing, chained through the nodes. */
struct crail_names {
    crail_ref *segment; /* in the head of the arena; each holds CRAIL_NAMES_SEGMENT buckets */
    uint32_t buckets;
    uint32_t mask; /* 2^k - 1 with 2^(k-1) < buckets <= 2^k */
    uint64_t count;
};
#define CRAIL_NAMES_SEGMENT (CRAIL_ARENA_CHUNK / 4)
#define CRAIL_NAMES_SEGMENTS_MAX 65536u

/* Extras by the time they expire: a binary heap of refs. */
struct crail_expiry {
    crail_ref *segment; /* in the head of the arena; each holds CRAIL_EXPIRY_SEGMENT */
    uint32_t count;
};
#define CRAIL_EXPIRY_SEGMENT (CRAIL_ARENA_CHUNK / 4)
#define CRAIL_EXPIRY_SEGMENTS_MAX 32768u

/* Directories by the text before the last slash. A slot holds as long as no directory was moved or removed. */
#define CRAIL_PREFIX_SLOTS 65536u
#define CRAIL_PREFIX_BYTES 108u
struct crail_prefix {
    uint64_t shape;
    uint32_t hash;
    crail_ref dir;
    uint32_t len;
    char text[CRAIL_PREFIX_BYTES];
};
_Static_assert(sizeof(struct crail_prefix) == 128, "most texts fit in the first cache line");

/* A lookup announced by crail_meta_prefetch(), in some stage of being fetched. */
struct crail_ahead {
    uint64_t name;   /* hash of its last component; 0: nothing to fetch */
    uint32_t prefix; /* hash of what is before */
    uint32_t hash;   /* in the directory, once that is found */
    crail_ref dir;
    crail_ref node; /* 0: not found yet, or done */
};

struct crail_grave {
    void *addr;
    size_t bytes;
};

/* Nodes by their place in the arena: a bit for each place of a record as long as a node, and one for each word of bits
 * that is not 0. Marking cannot fail. */
struct crail_marks {
    uint64_t *bits, *sums;
    uint64_t count;
};
#define CRAIL_MARK_REFS (uint32_t)(sizeof(struct crail_node) / 16)

/* What has changed, and the cut that is being written; see cut.c. */
struct crail_cut {
    struct crail_marks changed; /* since the latest cut began */
    struct crail_marks cutting; /* of this cut, and not written yet */
    struct crail_marks written; /* of this cut, and written */
    uint64_t words;             /* of bits, in each */
    uint64_t epoch, durable;
    uint64_t removed, moved; /* the epochs in which something was last taken from its place, and put in another one */
    uint64_t at;             /* the word of `cutting` where to go on */
    struct crail_buf *rows;
    size_t rows_begin;
    uint8_t phase;   /* enum cut_phase */
    bool is_failing; /* no memory for a row */
    int result;
    crail_ref tombs;                     /* of freed nodes whose rows this cut has deleted, linked through sib_next */
    uint64_t tombs_n;                    /* all there are */
    struct crail_list sessions, servers; /* changed */
    struct crail_list sessions_over;     /* ended, and their rows are still to be deleted */
    struct crail_list sessions_over_cut; /* the same, by this cut */
    uint64_t sessions_n, servers_n;      /* in the first three lists */
    uint64_t gated;                      /* runs that wait for their epoch */
    bool gate_may_open;                  /* some may have come due */
#ifdef CRAIL_TEST_GUARDS
    uint64_t *sums_of_rows; /* by place: of the latest row */
#endif
};

struct crail_meta {
    struct crail_arena arena;
    struct crail_names names;
    uint64_t hash_seed;
    uint8_t mac_key[16];
    crail_ref root;
    uint64_t shape; /* raised whenever a directory is moved or removed */
    uint64_t last_id, last_version;
    uint64_t nodes, files, directories, inline_bytes;
    int64_t now_ns; /* of the latest operation */
    struct crail_prefix *prefixes;
    struct crail_ahead ahead[CRAIL_META_AHEAD];
    uint32_t ahead_next;

    struct crail_server **servers; /* number - 1; LOST ones stay as stubs */
    uint32_t servers_n, servers_cap;
    struct crail_server **up; /* those that grants come from */
    uint32_t up_n, up_next;
    struct crail_meta_session **sessions; /* by slot; NULL where free */
    uint32_t sessions_n;
    crail_ref stream_buckets[CRAIL_STREAM_BUCKETS]; /* of those being written, by path */
    crail_ref *hold_buckets;                        /* CRAIL_HOLD_BUCKETS chains through hash_next */
    uint64_t holds;
    struct crail_meta_listener listener;
    struct crail_expiry expiry;
    crail_ref *jobs; /* by slot; 0 where free */
    uint32_t jobs_cap, jobs_n, jobs_hint;
    uint64_t last_job;
    int64_t evicted_ns; /* when space was last made */
    uint32_t listening; /* what asked to be told; 0: nobody is */
    uint64_t missing;   /* see crail_meta_missing() */

    /* work for crail_meta_step() */
    crail_ref doomed;      /* tops of removed trees, linked through sib_next */
    uint64_t doomed_nodes; /* known to be in them */
    crail_ref dying_trees; /* B+tree nodes to be freed with all below, linked through `next` */
    uint64_t indexes_building;
    crail_ref building;                  /* indexes, linked through `next` */
    crail_ref index_recent, index_stale; /* ends of the list of ready ones */
    uint32_t sessions_dying;
    crail_ref jobs_ending;      /* linked through `ending` */
    struct crail_grave *graves; /* memory of lost servers */
    uint32_t graves_n, graves_cap;

    struct crail_cut *cut;           /* NULL: nothing is durable */
    struct crail_load *load;         /* between crail_meta_load_begin() and _end() */
    struct crail_grantmap *grantmap; /* or NULL */
    int64_t ends_after_ns;
    struct crail_undone {
        uint64_t grants;
        bool is_kept;
        uint32_t session, left; /* whose are looked at, and how many of them */
    } undone;
};

static inline struct crail_node *crail_node_at(const struct crail_meta *m, crail_ref ref) {
    return crail_arena_at(&m->arena, ref);
}

static inline const char *crail_node_name(const struct crail_meta *m, const struct crail_node *n) {
    return n->name_len <= CRAIL_NODE_NAME ? n->name : crail_arena_at(&m->arena, n->name_ref);
}

static inline bool crail_node_is_container(const struct crail_node *n) {
    return n->kind >= CRAIL_KIND_DIRECTORY && n->kind <= CRAIL_KIND_QUEUE;
}

static inline bool crail_node_is_leaf(const struct crail_node *n) {
    return n->kind == CRAIL_KIND_FILE;
}

static inline struct crail_extra *crail_extra_at(const struct crail_meta *m, crail_ref ref) {
    return crail_arena_at(&m->arena, ref);
}

static inline struct crail_hold *crail_hold_at(const struct crail_meta *m, crail_ref ref) {
    return crail_arena_at(&m->arena, ref);
}

/* Byte order of names; a prefix comes first. */
static inline int crail_name_compare(const char *a, uint32_t a_len, const char *b, uint32_t b_len) {
    int c = memcmp(a, b, a_len < b_len ? a_len : b_len);
    return c ? c : (int)a_len - (int)b_len;
}

struct crail_call;

/* ---- rows.c -------------------------------------------------------------------- */

/* Appends the row as it is now, if there has to be one: 0 or -ENOMEM. What a cut has written it has stored. */
int crail_row_of_node(struct crail_meta *m, crail_ref ref, struct crail_buf *rows);
int crail_row_of_session(const struct crail_meta *m, const struct crail_meta_session *s, struct crail_buf *rows);
int crail_row_of_server(const struct crail_server *sv, struct crail_buf *rows);
/* Builds for tests know the latest row of each node again, but for what follows from others. */
void crail_row_remember(struct crail_meta *m, crail_ref ref);
bool crail_row_is_the_latest(const struct crail_meta *m, crail_ref ref);

/* ---- cut.c, load.c ----------------------------------------------------------- */

/* To be called before anything changes in a node that its row says (crail/rows.h), or in an extra or a job that
 * belong to it; once in an operation is enough, for no cut begins or goes on within one. */
void crail_cut_touch(struct crail_meta *m, crail_ref ref);
static inline void crail_node_touch(struct crail_meta *m, crail_ref ref) {
    if (m->cut)
        crail_cut_touch(m, ref);
}
/* Something goes from its place in the tree, or to another one. */
static inline void crail_cut_removes(struct crail_meta *m) {
    if (m->cut)
        m->cut->removed = m->cut->epoch;
}
static inline void crail_cut_moves(struct crail_meta *m) {
    if (m->cut)
        m->cut->removed = m->cut->moved = m->cut->epoch;
}
/* A detached node of which nothing is left but its record: that is freed, now or when its row is. */
void crail_cut_node_free(struct crail_meta *m, crail_ref ref);
/* What the row of a session says is about to change, or has: rows of sessions and servers are written at once. */
void crail_session_touch(struct crail_meta *m, struct crail_meta_session *s);
void crail_server_touch(struct crail_meta *m, struct crail_server *sv);
/* It ends. What is left of it afterwards (true: the cut needs it) is the cut's to free. */
void crail_cut_session_over(struct crail_meta *m, struct crail_meta_session *s);
bool crail_cut_keeps_session(struct crail_meta *m, struct crail_meta_session *s);
/* They are as their rows say. */
void crail_cut_loaded(struct crail_meta *m, crail_ref ref);
void crail_cut_server_loaded(struct crail_meta *m, struct crail_server *sv);
void crail_cut_session_loaded(struct crail_meta *m, struct crail_meta_session *s);
void crail_cut_close(struct crail_meta *m);
/* fsck: NULL, or what is wrong with it. */
const char *crail_cut_check_node(const struct crail_meta *m, crail_ref ref);
void crail_load_close(struct crail_meta *m);

/* ---- grantmap.c ---------------------------------------------------------------- */

/* As in the file, little-endian. */
struct crail_grant_slot {
    uint64_t session, generation;
    uint64_t epoch; /* 0: it is a grant; else a node's: to be erased when that is durable */
    uint32_t server, region, granule;
    uint32_t granules; /* 0: it says nothing */
    uint32_t next;
    uint32_t undone; /* it had an epoch in an earlier life, and is a grant again */
};
int crail_grantmap_open(struct crail_meta *m, int fd); /* 0, -errno, -ENOMEM, -EUCLEAN */
void crail_grantmap_close(struct crail_meta *m);
int crail_grantmap_reserve(struct crail_meta *m, uint32_t n); /* room for `n` more: 0 or -errno */
/* The slot of a new grant; 0 without a map. */
uint32_t crail_grantmap_note(struct crail_meta *m, uint64_t session, const struct crail_run *run);
/* A slot is erased, now or when what has changed by now is durable. Nothing happens to slot 0. */
void crail_grantmap_erase(struct crail_meta *m, uint32_t slot);
void crail_grantmap_erase_later(struct crail_meta *m, uint32_t slot);
bool crail_grantmap_step(struct crail_meta *m); /* true if more can be erased */
/* Slots of an earlier life, from *i + 1 on, and their end: what was not erased by then is a grant's. */
const struct crail_grant_slot *crail_grantmap_next(const struct crail_meta *m, uint32_t *i);
void crail_grantmap_void(struct crail_meta *m, uint32_t slot); /* one of them is none */
void crail_grantmap_loaded(struct crail_meta *m);
bool crail_grantmap_is_undone(const struct crail_meta *m, uint32_t slot);
void crail_grantmap_known(struct crail_meta *m, uint32_t slot); /* it is not undone any more */

/* ---- names.c --------------------------------------------------------------- */

int crail_names_open(struct crail_meta *m); /* 0 or -ENOMEM */
/* In two steps where the name is known before the parent is. */
uint32_t crail_names_hash(const struct crail_meta *m, crail_ref parent, const char *name, uint32_t len);
uint64_t crail_names_hash_text(const struct crail_meta *m, const char *name, uint32_t len);
uint32_t crail_names_hash_in(const struct crail_meta *m, crail_ref parent, uint64_t text);
crail_ref crail_names_find(const struct crail_meta *m, crail_ref parent, uint32_t hash, const char *name, uint32_t len);
/* The node has its hash, parent and name. Cannot fail: without memory the chains just grow longer. */
void crail_names_insert(struct crail_meta *m, crail_ref ref);
void crail_names_remove(struct crail_meta *m, crail_ref ref);
/* The cell in which the chain of this hash begins. */
crail_ref *crail_names_bucket(const struct crail_meta *m, uint32_t hash);
uint32_t crail_names_bucket_of(const struct crail_names *t, uint32_t hash);

/* ---- path.c ----------------------------------------------------------------- */

/* Where a path leads. */
struct crail_walk {
    crail_ref dir;    /* the directory that holds, or would hold, the last component; 0 for the root itself */
    crail_ref node;   /* what is there, or 0 */
    const char *name; /* the last component */
    uint32_t name_len;
    uint32_t hash;
    uint32_t gap; /* where a directory above is missing: offset of its component; `dir` is the one before */
};

/* 0 (then w->node may still be 0), or a status: INVALID_PATH, NOT_CONTAINER, NOT_FOUND (with w->gap). */
int crail_path_walk(struct crail_meta *m, const char *path, uint32_t len, struct crail_walk *w);
bool crail_path_text_valid(const char *text, uint32_t len); /* UTF-8 without NUL */
bool crail_path_name_valid(const char *name, uint32_t len); /* one component */
void crail_path_forget(struct crail_meta *m);               /* a directory was moved or removed */

/* ---- tree.c ----------------------------------------------------------------- */

/* The record of a new node, off the tree and without numbers. 0 without memory. */
crail_ref crail_tree_record(struct crail_meta *m, const char *name, uint32_t len, enum crail_kind kind);
/* Puts one whose name is not there yet into a container, which has changed then at the latest. */
void crail_tree_place(struct crail_meta *m, crail_ref ref, crail_ref dir, uint32_t hash);
/* A new empty node in `dir`; w->name is not there yet. 0 without memory, and then nothing changed. */
crail_ref crail_tree_create(struct crail_meta *m, crail_ref dir, const char *name, uint32_t len, uint32_t hash,
                            enum crail_kind kind, int64_t now_ns);
/* Makes the missing directories of a walk that ended with a gap and corrects the walk. CRAIL_E_NO_MEMORY changes
 * nothing. *made counts them, for crail_tree_unmake. */
int crail_tree_make_parents(struct crail_meta *m, const char *path, uint32_t len, struct crail_walk *w, int64_t now_ns,
                            uint32_t *made);
/* Undoes crail_tree_make_parents, from `dir` upwards. */
void crail_tree_unmake(struct crail_meta *m, crail_ref dir, uint32_t made);
/* Takes the node out of its directory, the hash and the index. It still exists. */
void crail_tree_detach(struct crail_meta *m, crail_ref ref);
/* Frees a detached node without children and holds: value, extra, name, itself. */
void crail_tree_free(struct crail_meta *m, crail_ref ref);
/* Can a path lead to it? False for what lies in a removed tree and waits to be freed. */
bool crail_tree_reachable(const struct crail_meta *m, crail_ref ref);
/* Its path, into CRAIL_PATH_MAX bytes. Its length; 0 if it is longer (no operation can name it) or not reachable. */
uint32_t crail_tree_path(const struct crail_meta *m, crail_ref ref, char *out);
/* Takes a node of the tree off it and frees it and all below, in steps where they are many. Tells the listener. */
void crail_tree_remove(struct crail_meta *m, crail_ref ref);
/* May a node of this kind be made in, or moved into, this container? 0 or CRAIL_E_INVALID_ARGUMENT. */
int crail_tree_takes(const struct crail_node *dir, enum crail_kind kind);
/* Moves a node; what was there is gone already. 0 or CRAIL_E_NO_MEMORY. */
int crail_tree_move_prepare(struct crail_meta *m, uint32_t name_len, crail_ref *name_ref);
void crail_tree_move(struct crail_meta *m, crail_ref ref, crail_ref dir, const char *name, uint32_t len, uint32_t hash,
                     crail_ref name_ref, int64_t now_ns);

/* Values: made ready, published, dropped. 0 or CRAIL_E_NO_MEMORY. */
int crail_value_inline(struct crail_meta *m, const void *bytes, uint32_t size, struct crail_value *v);
int crail_value_runs(struct crail_meta *m, const struct crail_run *runs, uint32_t n, uint64_t size,
                     struct crail_value *v);
void crail_value_discard(struct crail_meta *m, struct crail_value *v); /* memory only, runs untouched */
void crail_value_publish(struct crail_meta *m, struct crail_node *n, const struct crail_value *v);
/* The same, where the node has the first `staying` runs of the value already. */
void crail_value_replace(struct crail_meta *m, struct crail_node *n, const struct crail_value *v, uint32_t staying);
const void *crail_value_bytes(const struct crail_meta *m, const struct crail_node *n);
const struct crail_run *crail_value_runs_of(const struct crail_meta *m, const struct crail_node *n);

/* ---- dirindex.c, btree.c ------------------------------------------------------ */

/* The ordered index of a large container; a record of the arena. */
enum crail_index_state { CRAIL_INDEX_PREFIX = 1, CRAIL_INDEX_FILL, CRAIL_INDEX_READY };
struct crail_index {
    crail_ref dir;
    crail_ref root;       /* of the B+tree */
    crail_ref cursor;     /* while building: the next child to look at */
    crail_ref prev, next; /* among those in building, or the ready ones by last listing */
    uint64_t entries;
    int64_t listed_ns;
    uint8_t state;
    uint8_t prefix_len; /* what all names began with when it was built */
    char prefix[CRAIL_NAME_MAX];
};

#define CRAIL_INDEX_SORT_MAX 64u   /* children of a directory that is sorted on the spot */
#define CRAIL_INDEX_BUILD_MAX 256u /* children of a directory whose index is built within one operation */
#define CRAIL_INDEX_COLD_NS (60ll * 1000000000)

/* Gathers up to `max` children with names above `after`, in order. 0, CRAIL_META_AGAIN while the index is being
 * built, -CRAIL_E_NO_MEMORY. */
int crail_index_page(struct crail_meta *m, crail_ref dir, const char *after, uint32_t after_len, uint32_t max,
                     crail_ref *out, uint32_t *n);
void crail_index_added(struct crail_meta *m, struct crail_node *dir, crail_ref child);
/* Called while the child is still in the list of siblings. */
void crail_index_removing(struct crail_meta *m, struct crail_node *dir, crail_ref child);
void crail_index_drop(struct crail_meta *m, struct crail_node *dir);
bool crail_index_step(struct crail_meta *m); /* a few microseconds of building; true if some is left */
void crail_index_drop_cold(struct crail_meta *m);

int crail_btree_insert(struct crail_meta *m, struct crail_index *ix, crail_ref child);  /* 0 or -ENOMEM */
bool crail_btree_remove(struct crail_meta *m, struct crail_index *ix, crail_ref child); /* false: was not in it */
uint32_t crail_btree_after(const struct crail_meta *m, const struct crail_index *ix, const char *name, uint32_t len,
                           uint32_t max, crail_ref *out);
bool crail_btree_free_step(struct crail_meta *m); /* frees one B+tree node of the dying; true if some are left */
void crail_btree_drop(struct crail_meta *m, struct crail_index *ix);
/* 0, or -EUCLEAN with a sentence. *bytes grows by what it occupies. */
int crail_btree_check(const struct crail_meta *m, const struct crail_index *ix, uint64_t *entries, uint64_t *bytes,
                      char *why, size_t why_bytes);
uint64_t crail_btree_dying_bytes(const struct crail_meta *m); /* of the trees that crail_btree_free_step() has left */

/* ---- reap.c ------------------------------------------------------------------- */

/* A detached node and all below: at once if there is nothing below and nobody holds it, else in steps. */
void crail_reap_tree(struct crail_meta *m, crail_ref top);
bool crail_reap_step(struct crail_meta *m);

/* ---- extra.c -------------------------------------------------------------------- */

/* The node's extra, made if it has none. NULL without memory. */
struct crail_extra *crail_extra_make(struct crail_meta *m, crail_ref node);
/* In two steps, the first of which can fail (0): a record, and giving it to a node. One that has an extra keeps it. */
crail_ref crail_extra_spare(struct crail_meta *m);
struct crail_extra *crail_extra_give(struct crail_meta *m, crail_ref node, crail_ref spare);
bool crail_extra_says_nothing(const struct crail_extra *x);
/* Frees it if it says nothing. To be called by whoever took something out of it. */
void crail_extra_tidy(struct crail_meta *m, crail_ref node);
/* With the node. There are no holds. */
void crail_extra_free(struct crail_meta *m, struct crail_node *n);

/* ---- expiry.c ------------------------------------------------------------------- */

int crail_expiry_reserve(struct crail_meta *m); /* room for one more: 0 or CRAIL_E_NO_MEMORY */
/* Moves it to another time; 0: out of the heap. One that was not in it needs a reservation. */
void crail_expiry_set(struct crail_meta *m, struct crail_extra *x, int64_t expires_ns);
crail_ref crail_expiry_first(const struct crail_meta *m); /* the node that expires first, or 0 */

/* ---- life.c --------------------------------------------------------------------- */

#define CRAIL_OPTIONS_KNOWN                                                                                 \
    (CRAIL_OPTION_SESSION | CRAIL_OPTION_DELETE_AFTER_READ | CRAIL_OPTION_EVICTABLE | CRAIL_OPTION_STRICT | \
     CRAIL_OPTION_TTL | CRAIL_OPTION_SYNC | CRAIL_OPTION_GROUP)
#define CRAIL_TTL_NS_MAX ((uint64_t)INT64_MAX / 4) /* so that no sum with the time of day overflows */

/* What an operation's options say of a node's end, made ready before anything is changed. */
struct crail_life {
    crail_ref spare; /* an extra for a node that has none, or 0 */
};

/* Checks the options, the quotas (of `size` bytes at the end of the walk) and reserves. 0 or a status. */
int crail_life_prepare(struct crail_call *c, int walked, const struct crail_walk *w, uint64_t size,
                       struct crail_life *life);
/* How many nodes the operation makes at the end of the walk, with those above. */
int64_t crail_life_nodes_made(const struct crail_call *c, int walked, const struct crail_walk *w);
void crail_life_discard(struct crail_meta *m, struct crail_life *life);
/* The node has its value. Cannot fail. */
void crail_life_apply(struct crail_call *c, crail_ref node, struct crail_life *life);
/* Before the extra is freed: out of every list. */
void crail_life_leave(struct crail_meta *m, struct crail_extra *x);
/* Removes what has expired. True if some is left. */
bool crail_life_step(struct crail_meta *m);
/* What a row says of the end of a node in the tree; `s` is its owner, with CRAIL_OPTION_SESSION. 0 or -ENOMEM. */
int crail_life_loaded(struct crail_meta *m, crail_ref node, const struct crail_life_part *life,
                      struct crail_meta_session *s);
/* The same of one that may be evicted; to be called in the order of versions. */
void crail_life_evictable_loaded(struct crail_meta *m, crail_ref node);
/* Removes one of the nodes that the session owns. */
void crail_life_owner_gone(struct crail_meta *m, struct crail_meta_session *s);
/* Removes the evictable node with the oldest commit among those on a server that is eligible. False: none is. */
bool crail_life_evict(struct crail_meta *m, const struct crail_options *where);

/* ---- jobs.c --------------------------------------------------------------------- */

/* The job with this number, if it has not ended; or 0. */
crail_ref crail_job_find(const struct crail_meta *m, uint64_t number);
/* The innermost job that what lies in this container is charged to; 0: none. */
crail_ref crail_job_of(const struct crail_meta *m, crail_ref dir);
/* The same of a node: by its place. */
crail_ref crail_job_around(const struct crail_meta *m, const struct crail_node *n);
/* Do these more fit into `inner` and all around it, and these into `own`, unless that is among them? */
bool crail_jobs_fit(const struct crail_meta *m, crail_ref inner, int64_t nodes, int64_t bytes, crail_ref own,
                    int64_t own_nodes, int64_t own_bytes);
/* Does a node that moves into `to` fit there? What is around it now, or is its own job, has it already. */
bool crail_jobs_fit_move(const struct crail_meta *m, const struct crail_node *n, crail_ref to, int64_t nodes,
                         int64_t bytes);
/* Charges `inner`, all around it, and the job that the node belongs to by its option. */
void crail_jobs_charge(struct crail_meta *m, crail_ref inner, const struct crail_node *n, int64_t nodes, int64_t bytes);
/* The node belongs to another job by its option (0: to none). The number is a living job's. */
void crail_job_join(struct crail_meta *m, crail_ref node, uint64_t number);
void crail_job_leave(struct crail_meta *m, struct crail_extra *x); /* the node is being freed */
void crail_job_end(struct crail_meta *m, crail_ref job);
void crail_job_node_gone(struct crail_meta *m, crail_ref job); /* its directory is being freed */
void crail_job_hold_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why);
/* The job that a hold of that kind is on. */
static inline struct crail_job *crail_job_of_hold(const struct crail_meta *m, const struct crail_hold *h) {
    return crail_arena_at(&m->arena, crail_extra_at(m, crail_node_at(m, h->node)->extra)->own_job);
}
bool crail_job_step(struct crail_meta *m);
/* The job that a row says is a directory's. 0, -ENOMEM, -EUCLEAN (its number is another's). */
int crail_job_loaded(struct crail_meta *m, crail_ref node, const struct crail_job_part *part);
/* All directories are known to be below jobs or not: what lies around this one? */
void crail_job_placed(struct crail_meta *m, crail_ref job);
/* One that nobody holds after all ends when its time is over, from now on. */
void crail_job_unheld(struct crail_meta *m, crail_ref job);
/* A session holds a job, if there is one of that number. 0, -ENOMEM, -EUCLEAN (the token is in use). */
int crail_job_hold_loaded(struct crail_meta *m, struct crail_meta_session *s, uint64_t token, uint64_t number);
int crail_op_job(struct crail_call *c);

static inline struct crail_job *crail_job_at(const struct crail_meta *m, crail_ref ref) {
    return crail_arena_at(&m->arena, ref);
}

/* ---- attributes.c, edits.c -------------------------------------------------------- */

int crail_op_setattr(struct crail_call *c);
int crail_op_attributes(struct crail_call *c, struct crail_buf *reply);
uint32_t crail_attributes_cost(uint32_t bytes); /* of a record, in the arena */
void crail_attributes_free(struct crail_meta *m, struct crail_extra *x);
/* A record out of a row. 0, -ENOMEM, -EUCLEAN (it is none). */
int crail_attributes_loaded(struct crail_meta *m, struct crail_extra *x, const uint8_t *record, uint32_t bytes);
int crail_op_incr(struct crail_call *c);
int crail_op_truncate(struct crail_call *c);

/* ---- holds.c ---------------------------------------------------------------------- */

#define CRAIL_HOLD_BUCKETS (1u << 18)

int crail_holds_open(struct crail_meta *m); /* 0 or -ENOMEM */
void crail_holds_close(struct crail_meta *m);
/* A new hold on `node` (0: on none); its token is not in use in this session. 0 without memory. */
crail_ref crail_hold_add(struct crail_meta *m, struct crail_meta_session *s, enum crail_hold_kind kind, uint64_t token,
                         crail_ref node);
/* The same with a record that is there already, on a node that has an extra. */
void crail_hold_link(struct crail_meta *m, struct crail_meta_session *s, crail_ref ref, enum crail_hold_kind kind,
                     uint64_t token, crail_ref node);
crail_ref crail_hold_find(const struct crail_meta *m, const struct crail_meta_session *s, uint64_t token);
/* Ends it: what its kind does then, and the record is freed. */
void crail_hold_end(struct crail_meta *m, crail_ref ref, enum crail_hold_end why);
static inline bool crail_node_is_held(const struct crail_meta *m, const struct crail_node *n) {
    return n->extra && crail_extra_at(m, n->extra)->holds;
}
/* The node goes: up to `max` of its holds end, or lose it. True if some are left. */
bool crail_holds_node_gone(struct crail_meta *m, crail_ref node, uint32_t max);
int crail_op_end(struct crail_call *c);

/* ---- queue.c, barrier.c ------------------------------------------------------------- */

/* A walk to a queue. */
int crail_queue_walk(struct crail_call *c, struct crail_walk *w);
/* PUT and COMMIT with QUEUE: a walk to the item that the operation will make. */
int crail_queue_walk_item(struct crail_call *c, struct crail_walk *w);
void crail_queue_added(struct crail_meta *m, crail_ref item);   /* it was just made */
void crail_queue_leaving(struct crail_meta *m, crail_ref item); /* it still is in its queue */
void crail_queue_loaded(struct crail_meta *m, crail_ref item, enum crail_item_state state); /* in the order of ids */
void crail_item_hold_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why);
int crail_op_take(struct crail_call *c);
int crail_op_ack(struct crail_call *c);
void crail_member_hold_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why);
void crail_member_hold_orphaned(struct crail_meta *m, struct crail_hold *h, crail_ref node);
int crail_op_enter(struct crail_call *c);
/* fsck: NULL, or what is wrong. */
const char *crail_queue_check(const struct crail_meta *m, crail_ref queue);
const char *crail_barrier_check(const struct crail_meta *m, crail_ref barrier);

/* ---- opens.c, streams.c ------------------------------------------------------------- */

/* A version that somebody reads, or a stream: a record of the arena. */
struct crail_kept {
    uint64_t version, size;
    uint32_t count;
    bool is_pinned;
    uint8_t flags;                 /* of the result */
    struct crail_extent extents[]; /* with the keys for reading */
};
static inline struct crail_kept *crail_kept_at(const struct crail_meta *m, crail_ref ref) {
    return crail_arena_at(&m->arena, ref);
}
uint32_t crail_kept_bytes(uint32_t extents);
crail_ref crail_kept_new(struct crail_meta *m, const struct crail_extent *e, uint32_t n, uint64_t size,
                         uint64_t version); /* 0 without memory */
crail_ref crail_kept_from_answer(struct crail_call *c);
void crail_kept_pin(struct crail_meta *m, crail_ref ref); /* its runs are a node's */
void crail_kept_free(struct crail_meta *m, crail_ref ref);
int crail_kept_answer(struct crail_call *c, crail_ref ref); /* 0 or CRAIL_E_DATA_LOST */

static inline struct crail_run crail_extent_run(const struct crail_extent *e) {
    return (struct crail_run){e->server, e->region, e->granule, e->granules};
}

int crail_op_open(struct crail_call *c);
int crail_op_append(struct crail_call *c);
int crail_op_stream(struct crail_call *c);
int crail_op_follow(struct crail_call *c);
/* The part of COMMIT behind the check of its grants. */
int crail_op_commit_append(struct crail_call *c, const struct crail_extent *e, uint32_t n_new);
/* The first `kept` extents of a commit have become the node's: those who follow them go on reading it. */
void crail_streams_committed(struct crail_call *c, const struct crail_extent *e, uint32_t kept, crail_ref node);
void crail_open_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why);
void crail_append_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why);
void crail_stream_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why);
void crail_follow_ended(struct crail_meta *m, struct crail_hold *h, enum crail_hold_end why);

/* A value that is being written, by the path at which it will appear; a record of the arena. */
enum crail_stream_state { CRAIL_STREAM_WRITING = 1, CRAIL_STREAM_COMMITTED, CRAIL_STREAM_DISCARDED };
struct crail_stream {
    crail_ref hash_next; /* while it is being written */
    crail_ref path, kept;
    uint32_t hash;
    uint32_t refs;    /* its writer, those who follow */
    uint32_t session; /* slot of the writer */
    uint64_t token;   /* of its hold */
    uint16_t path_len;
    uint8_t state; /* enum crail_stream_state */
};
static inline struct crail_stream *crail_stream_at(const struct crail_meta *m, crail_ref ref) {
    return crail_arena_at(&m->arena, ref);
}

/* ---- change.c --------------------------------------------------------------------- */

/* Tells the listener, if somebody listens. */
void crail_change_tell(struct crail_meta *m, enum crail_event_kind kind, const char *path, uint32_t len,
                       uint64_t version);
void crail_change_tell_node(struct crail_meta *m, enum crail_event_kind kind, crail_ref ref);
/* Of `count` directories that were made one in the other, the last of them being `dir` at this path. */
void crail_change_tell_made(struct crail_meta *m, const char *path, uint32_t len, crail_ref dir, uint32_t count);
/* A node whose path is at hand. */
static inline void crail_changed(struct crail_meta *m, enum crail_event_kind kind, const char *path, uint32_t len,
                                 uint64_t version) {
    if (m->listening)
        crail_change_tell(m, kind, path, len, version);
}
/* A node of the tree whose path is not at hand. */
/* No event: but who waits there has reason to look again. */
#define CRAIL_CHANGE_LOOK ((enum crail_event_kind)0)
static inline void crail_changed_node(struct crail_meta *m, enum crail_event_kind kind, crail_ref ref) {
    if (m->listening)
        crail_change_tell_node(m, kind, ref);
}

/* ---- sessions.c ---------------------------------------------------------------- */

struct crail_grant {
    uint32_t server, region, granule;
    uint32_t slot : 31;     /* in the grant map, or 0 */
    uint32_t is_undone : 1; /* it was a node's, of which the death of the namenode has left nothing */
};
struct crail_meta_session {
    uint64_t id;
    uint32_t slot;
    bool dying;
    struct crail_grant *grants; /* the run record of each names its place here */
    uint32_t n, cap;
    crail_ref holds; /* the latest, linked through session_next */
    crail_ref jobs;  /* those of them that are of jobs, linked through `record` */
    uint32_t holds_n;
    crail_ref owned;           /* extras of the nodes that go with it */
    struct crail_list changed; /* among the changed ones, or those whose rows are to be deleted */
    bool is_over;              /* it has ended: its row is gone, or will be with the next cut */
    bool is_stored;            /* a cut has had a row of it */
    bool is_kept;              /* it is freed but for its row */
};

/* Room for `n` more grants, so that crail_session_grant cannot fail. 0, or -errno of the grant map. */
int crail_session_reserve(struct crail_meta *m, struct crail_meta_session *s, uint32_t n);
/* Fresh runs become grants. */
void crail_session_grant(struct crail_meta *m, struct crail_meta_session *s, const struct crail_run *runs, uint32_t n);
/* Is this extent, as it stands, a grant of the session? */
bool crail_session_owns(const struct crail_meta *m, const struct crail_meta_session *s, const struct crail_extent *e);
/* A grant that a slot of the map tells of: the same without a new slot. */
void crail_session_grant_again(struct crail_meta *m, struct crail_meta_session *s, const struct crail_run *run,
                               uint32_t slot);
/* The run stays taken, but is no grant any longer; its slot is that of the run until it is used or retired. */
void crail_session_drop(struct crail_meta *m, struct crail_meta_session *s, const struct crail_run *run);
/* Forgets every grant on a server that is lost. */
void crail_sessions_forget_server(struct crail_meta *m, uint32_t number);
bool crail_session_step(struct crail_meta *m);
/* Takes back what was granted and is undone, once whoever was about to commit it has had the time to come back. */
bool crail_undone_step(struct crail_meta *m);
int64_t crail_undone_due(const struct crail_meta *m); /* INT64_MAX: never */
/* Who commits a grant knows of it, whatever becomes of the COMMIT. */
void crail_session_knows(struct crail_meta *m, struct crail_meta_session *s, const struct crail_run *run);

/* ---- ops.c, list.c, column.c ------------------------------------------------------------- */

/* One operation under way. The handlers return 0 or a status. */
struct crail_call {
    struct crail_meta *m;
    struct crail_meta_session *s;
    const struct crail_op *op;
    const char *path;
    const void *data;
    struct crail_options options; /* where the op brings none: what holds without */
    int64_t now_ns;
    struct crail_result *r; /* in the reply; reserved with CRAIL_REPLY_BYTES_MAX of data after it */
    uint8_t *out;           /* that data */
    char item_name[24];     /* of an item that the operation makes */
};
#define CRAIL_REPLY_BYTES_MAX (CRAIL_INLINE_MAX + 8u) /* a value, or the number and the value of an item */

int crail_op_get(struct crail_call *c);
int crail_op_commit(struct crail_call *c);
int crail_op_alloc(struct crail_call *c);
int crail_op_release(struct crail_call *c);
int crail_op_rename(struct crail_call *c);
int crail_op_remove(struct crail_call *c);
int crail_op_rmtree(struct crail_call *c);
int crail_op_list(struct crail_call *c, struct crail_buf *reply);
int crail_op_column(struct crail_call *c, struct crail_buf *reply);

/* Appends a result of any size, `bytes` of data after its head: *r and *data are in the reply, the head zeroed but for
 * data_len, the padding zeroed. 0 or -ENOMEM. */
int crail_result_append(struct crail_buf *reply, uint32_t bytes, struct crail_result **r, uint8_t **data);

/* The grants stop being grants: the first `kept` become the node's, the rest is retired. */
void crail_grants_turn(struct crail_call *c, const struct crail_extent *e, uint32_t n, uint32_t kept);
/* PUT and COMMIT: where the value goes. 0 or a status; *walked is the walk's. */
int crail_leaf_find(struct crail_call *c, int *walked, struct crail_walk *w);
/* May a value be published at the end of this walk? `walked` is the walk's status. */
int crail_leaf_allowed(const struct crail_call *c, int walked, const struct crail_walk *w);
/* Publishes it, with what the options say of its end. On an error (NO_MEMORY, QUOTA_EXCEEDED, or what is wrong with the
 * options) nothing changed and the value is still the caller's. */
int crail_leaf_publish(struct crail_call *c, int walked, struct crail_walk *w, const struct crail_value *v);
/* The same; the value is gone in any case. */
int crail_leaf_publish_or_discard(struct crail_call *c, int walked, struct crail_walk *w, struct crail_value *v);
/* Nothing is at the end of the walk: may a node of this kind be made there, with what is missing above it? */
int crail_create_allowed(const struct crail_call *c, int walked, const struct crail_walk *w, enum crail_kind kind);
/* A new node at the end of the walk, with the directories above where they are missing. 0 without memory. */
crail_ref crail_node_make(struct crail_call *c, int walked, struct crail_walk *w, enum crail_kind kind);
/* The same of a node without a value, with what the options say of its end. Tells the listener. 0 or a status. */
int crail_node_make_empty(struct crail_call *c, int walked, struct crail_walk *w, enum crail_kind kind);
/* The answer of GET: the value of a leaf behind what is in the result already, or its locations. 0 or DATA_LOST. */
int crail_leaf_answer(struct crail_call *c, const struct crail_node *n);
/* The first `count` extents of a file, as struct crail_extent with the keys for reading. */
void crail_node_locations(const struct crail_meta *m, const struct crail_node *n, uint32_t count, uint8_t *out);
/* A lost server among those that hold the file, or 0. */
uint32_t crail_node_lost_server(const struct crail_meta *m, const struct crail_node *n);
/* A walk to something that must exist. */
int crail_walk_existing(struct crail_call *c, struct crail_walk *w);

/* The result's facts of the node. */
static inline void crail_say(struct crail_call *c, const struct crail_node *n) {
    c->r->version = n->version;
    c->r->size = n->size;
    c->r->kind = n->kind;
}

static inline bool crail_flag(const struct crail_call *c, uint16_t flag) {
    return c->op->flags & flag;
}

#endif
