/* Every byte that C reads from or writes to a connection (docs/PROTOCOL.md tells
 * the story). Little-endian, naturally aligned, no padding: hosts that are not
 * little-endian are refused at compile time rather than byte-swapped. */
#ifndef CRAIL_WIRE_H
#define CRAIL_WIRE_H

#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian");

/* ---- limits -------------------------------------------------------------- */

#define CRAIL_GRANULE 4096u                /* bytes; unit of accounting */
#define CRAIL_NAME_MAX 255u                /* bytes of one path component */
#define CRAIL_PATH_MAX 4096u               /* bytes of a path */
#define CRAIL_INLINE_MAX 4096u             /* bytes of a value kept inside its node */
#define CRAIL_VECTOR_OPS_MAX 1024u         /* operations in one request */
#define CRAIL_FRAME_BYTES_MAX (8u << 20)   /* bytes of one request: a full vector of inline puts fits */
#define CRAIL_EXTENTS_MAX 64u              /* extents of one value */
#define CRAIL_LIST_ENTRIES_MAX 1024u       /* entries of one page of a listing */
#define CRAIL_COLUMN_BYTES_MAX (96u << 10) /* of one page of a column: beyond its first entry */
#define CRAIL_RETIRES_MAX 1024u            /* extents in one retire frame */
#define CRAIL_ATTRIBUTES_MAX 65536u        /* bytes of a node's user attributes, heads included */
#define CRAIL_ATTRIBUTE_EDITS_MAX 256u     /* attributes in one SETATTR */
#define CRAIL_WAIT_MS_MAX (86400u * 1000u)

/* ---- metadata: client <-> namenode --------------------------------------- */

#define CRAIL_FRAME_MAGIC 0x314c5243u /* "CRL1" */

/* Head of a request and of its reply. A reply repeats id and count. */
struct crail_frame {
    uint32_t magic;
    uint32_t size;  /* bytes of the whole frame, this head included; a multiple of 8 */
    uint32_t count; /* operations or results that follow, 1..CRAIL_VECTOR_OPS_MAX */
    uint32_t flags; /* 0 */
    uint64_t id;    /* the caller's; a reply belongs to the request with the same id */
    uint64_t seq;   /* 0: the vector changes nothing. Else the lane's next number (1, 2, ...): exactly once */
};
_Static_assert(sizeof(struct crail_frame) == 32, "wire");

enum crail_op_code {
    /* These change nothing. */
    CRAIL_OP_PING = 1,       /* -> version: the last sequence number that this lane executed */
    CRAIL_OP_GET = 2,        /* path -> the value (inline) or its extents */
    CRAIL_OP_STAT = 3,       /* path -> struct crail_stat [+ extents] */
    CRAIL_OP_LIST = 4,       /* path, data = last name seen, arg0 = entries wanted -> struct crail_dirent ... */
    CRAIL_OP_SERVER = 5,     /* arg0 = server number -> the description its registration left (opaque) */
    CRAIL_OP_CANCEL = 6,     /* arg0 = id of a request of this connection that waits -> size 1: it gets no reply any
                                more; 0: its reply went out already (or it never was) */
    CRAIL_OP_ATTRIBUTES = 7, /* path -> struct crail_attribute ... : the user attributes */
    CRAIL_OP_NEXT = 8,       /* arg0 = token of a watch, arg1 = number of the last event that arrived (0: none did)
                                -> struct crail_event ..., version: the number of the last of them;
                                CRAIL_RESF_MORE: there are more. Without WAIT perhaps none */
    CRAIL_OP_COLUMN = 9, /* path of a container, data = last name seen, arg0 = entries wanted, arg1 = a partition, or
                            CRAIL_COLUMN_WHOLE; with WAIT also, in its upper half, the children that it waits for
                            -> struct crail_column ... . With WAIT, RESF_MORE may come without an entry: to ask
                            again, without */

    /* These are recorded: the frame carries a sequence number. */
    CRAIL_OP_PUT = 16,      /* path, data = value of at most CRAIL_INLINE_MAX bytes -> version */
    CRAIL_OP_COMMIT = 17,   /* path, data = count extents, arg1 = size -> version [+ extents granted anew] */
    CRAIL_OP_ALLOC = 18,    /* arg1 = bytes -> extents granted to the session. arg0: 0, or a server whose storage class
                               and location are preferred where the options say none */
    CRAIL_OP_RELEASE = 19,  /* data = count extents of this session's grants, given back */
    CRAIL_OP_MKDIR = 20,    /* path, arg0 = the container's kind (0: a directory) */
    CRAIL_OP_RENAME = 21,   /* path = from, data = to (a path) */
    CRAIL_OP_REMOVE = 22,   /* path: a leaf, or (unless LEAF_ONLY) an empty container */
    CRAIL_OP_RMTREE = 23,   /* path: anything and all below it */
    CRAIL_OP_BYE = 24,      /* the session ends now, by its own wish */
    CRAIL_OP_INCR = 25,     /* path, arg0 = what to add (int64) -> version, data = the new number (int64) */
    CRAIL_OP_SETATTR = 26,  /* path, options = lifetime (added to what holds), data = at most CRAIL_ATTRIBUTE_EDITS_MAX
                               of  struct crail_attribute, each name once -> version, the one it had: the value is the
                               same. Its mtime is now */
    CRAIL_OP_ACK = 27,      /* arg0 = token of a taken item: it leaves its queue for good */
    CRAIL_OP_END = 28,      /* arg0 = token: what it holds ends as it does with its session */
    CRAIL_OP_TRUNCATE = 29, /* path, arg1 = size -> version: a leaf within CRAIL_INLINE_MAX, cut or filled with zeros;
                               one above only to 0. One of that size stays as it is, with its version */

    /* These make a hold: something of a node that the session keeps until END, or until it ends itself. arg0 is its
     * token, a number of the client's choice, unique in its session; the same operation with the same token again
     * changes nothing and has the same answer. So they need no sequence number. */
    CRAIL_OP_OPEN = 48,   /* path -> as GET; the extents of this version stay readable until END */
    CRAIL_OP_TAKE = 49,   /* path of a queue -> as GET, of its oldest free item, which is this session's until ACK or
                             END. data of the result begins with the item's number (uint64), which is its version.
                             No free item: CRAIL_E_NOT_FOUND, or WAIT */
    CRAIL_OP_ENTER = 50,  /* path, arg1 = members -> version: rounds that this barrier has seen. The place is kept until
                             END, also when the wait is over: a long wait is one ENTER after the other with the same
                             token, and so is the question after a lost reply. Whoever gives up says END */
    CRAIL_OP_APPEND = 51, /* path -> as GET; the append right of the leaf. Its last extent carries a key for writing,
                             unless CRAIL_RESF_TAIL_CLOSED. Who has it waits for nobody: another gets
                             CRAIL_E_DEADLINE, or WAITs */
    CRAIL_OP_WATCH = 52,  /* path: events of this node and all below it are kept from now on, for NEXT. More watches, or
                             memory for them, than a session may have: CRAIL_E_QUOTA_EXCEEDED */
    CRAIL_OP_STREAM = 53, /* path, data = count extents of the session's grants, arg1 = bytes that are complete in them:
                             what FOLLOW may show of a value that is being written. Again with more; the
                             COMMIT of the same extents ends it */
    CRAIL_OP_FOLLOW = 54, /* path, arg1 = bytes already seen -> size, extents; CRAIL_RESF_MORE: still being written */
    CRAIL_OP_JOB = 55,    /* path = its directory, options.ttl_ns, data = struct crail_quota -> version: its number */
};
#define CRAIL_OP_RECORDED_FIRST 16
#define CRAIL_OP_HOLDS_FIRST 48

enum crail_op_flags {
    CRAIL_OPF_IF_ABSENT = 1 << 0,   /* PUT, COMMIT: create-exclusive */
    CRAIL_OPF_IF_VERSION = 1 << 1,  /* PUT, COMMIT, REMOVE, TRUNCATE: only if the version is arg0 (0: only if absent).
                                       STAT with WAIT: until the version is at least arg0 */
    CRAIL_OPF_PARENTS = 1 << 2,     /* whatever makes a node: make missing directories above */
    CRAIL_OPF_EXIST_OK = 1 << 3,    /* MKDIR: an existing container of that kind is fine */
    CRAIL_OPF_OVERWRITE = 1 << 4,   /* RENAME: replace an existing leaf, or an empty container by one of its kind */
    CRAIL_OPF_LEAF_ONLY = 1 << 5,   /* REMOVE: a container is CRAIL_E_IS_CONTAINER */
    CRAIL_OPF_GRANT_AGAIN = 1 << 6, /* COMMIT: grant arg1 bytes anew in the reply, if space is plenty */
    CRAIL_OPF_ONE_EXTENT = 1 << 7,  /* ALLOC: one contiguous run or CRAIL_E_OUT_OF_SPACE */
    CRAIL_OPF_WAIT = 1 << 8,        /* alone in its frame: if the answer would be "not yet", wait for up to `count`
                                       milliseconds. GET, STAT, COLUMN, TAKE, ENTER, APPEND, NEXT, FOLLOW leave their
                                       lane meanwhile, and their reply may overtake or be overtaken; ALLOC keeps it.
                                       Nothing in time: CRAIL_E_DEADLINE (ALLOC: CRAIL_E_OUT_OF_SPACE). More than 65536
                                       of them on one connection, or 64 MiB with their paths: CRAIL_E_NO_MEMORY. The id
                                       of one that waits is not used for another: CRAIL_E_PROTOCOL */
    CRAIL_OPF_ABSENT = 1 << 9,      /* STAT with WAIT: until nothing is there */
    CRAIL_OPF_QUEUE = 1 << 10,      /* PUT, COMMIT: path is a queue, the value becomes its youngest item */
    CRAIL_OPF_APPEND = 1 << 11,     /* COMMIT: the leaf grows to arg1 bytes; arg0 = token of the append right, which
                                       ends; data = the extents that come after those it has (perhaps none) */
    CRAIL_OPF_EDIT = 1 << 12,       /* PUT, COMMIT: the value of a node is changed, the node stays what it is: what was
                                       said of its end holds on, and the options add to it */
    CRAIL_OPF_IF_PLENTY = 1 << 13,  /* ALLOC: one run, ahead of need, and only while space is plenty; it evicts nothing
                                       and waits for nothing */
    CRAIL_OPF_FLUSHED = 1 << 14,    /* COMMIT: every byte that was written lies on a disk and is durable there
                                       (CRAIL_DATA_FLUSH). What STAT and LIST say of the value is taken from this */
};

/* One operation: this head, path_len bytes of path, options_len of struct crail_options (none or all of it), data_len
 * bytes of data, zeros up to a multiple of 8. */
struct crail_op {
    uint16_t code;
    uint16_t flags;
    uint16_t path_len;
    uint16_t options_len;
    uint32_t data_len;
    uint32_t count; /* extents in data, where there are any; with WAIT: milliseconds */
    uint64_t arg0;
    uint64_t arg1;
};
_Static_assert(sizeof(struct crail_op) == 32, "wire");

enum crail_option_flags {
    CRAIL_OPTION_SESSION = 1 << 0,           /* dies with this session */
    CRAIL_OPTION_DELETE_AFTER_READ = 1 << 1, /* its reader removes it, see CRAIL_RESF_DELETE_AFTER_READ */
    CRAIL_OPTION_EVICTABLE = 1 << 2,         /* may go when space is short */
    CRAIL_OPTION_STRICT = 1 << 3,            /* this class and location or CRAIL_E_OUT_OF_SPACE */
    CRAIL_OPTION_TTL = 1 << 4,               /* ttl_ns counts (SETATTR: 0 takes the limit away) */
    CRAIL_OPTION_SYNC = 1 << 5,              /* the reply goes out when the change is durable */
    CRAIL_OPTION_GROUP = 1 << 6,             /* ... when it will be within the group interval, whatever the cluster
                                                says. Either is CRAIL_E_INVALID_ARGUMENT where nothing is durable */
};

/* How a node is made, or where memory is granted. All zeros but storage_class is what holds without it. */
struct crail_options {
    uint64_t ttl_ns;       /* after its last commit */
    uint64_t job;          /* number of a job that it belongs to, 0: none */
    uint32_t location;     /* crail_location() of a location class, 0: any */
    uint16_t flags;        /* enum crail_option_flags */
    uint8_t storage_class; /* CRAIL_CLASS_ANY or the class of the tier */
    uint8_t stripe;        /* ALLOC: equal runs on so many servers (0, 1: no) */
    uint32_t avoid;        /* a server that no grant is to come from: it refused what was to be written; 0: none */
    uint32_t reserved;     /* 0 */
};
_Static_assert(sizeof(struct crail_options) == 32, "wire");
#define CRAIL_CLASS_ANY 255u

struct crail_quota {
    uint64_t bytes, nodes; /* 0: no limit */
};
_Static_assert(sizeof(struct crail_quota) == 16, "wire");

/* One user attribute: this head, the name, the value; no padding. In SETATTR, value_len CRAIL_ATTRIBUTE_GONE (and no
 * value) takes it away. */
struct crail_attribute {
    uint16_t name_len;
    uint16_t reserved;
    uint32_t value_len;
};
_Static_assert(sizeof(struct crail_attribute) == 8, "wire");
#define CRAIL_ATTRIBUTE_GONE UINT32_MAX

enum crail_event_kind {
    CRAIL_CHANGE_PUT = 1,    /* a node appeared, or a leaf has a new version */
    CRAIL_CHANGE_DELETE = 2, /* a node went, with all below it (also: was moved away) */
    CRAIL_CHANGE_RESYNC = 3, /* some were lost: look again */
};
/* One event: this head, the path, zeros up to a multiple of 8. */
struct crail_event {
    uint64_t version;
    uint16_t kind;
    uint16_t path_len;
    uint32_t reserved;
};
_Static_assert(sizeof(struct crail_event) == 16, "wire");

enum crail_result_flags {
    CRAIL_RESF_INLINE = 1 << 0,            /* data is the value itself; without it data is `count` extents */
    CRAIL_RESF_MORE = 1 << 1,              /* LIST, COLUMN: more entries follow the last one; FOLLOW: more bytes will
                                              come */
    CRAIL_RESF_REPLAY = 1 << 2,            /* answered from the record of the lane: done before, not again */
    CRAIL_RESF_DELETE_AFTER_READ = 1 << 3, /* who has read it all says REMOVE with IF_VERSION */
    CRAIL_RESF_TAIL_CLOSED = 1 << 4,       /* APPEND: the last extent must not be written. If it has room, the first new
                                              extent begins with its bytes and takes its place */
};

/* One result: this head, data_len bytes, zeros up to a multiple of 8. */
struct crail_result {
    int32_t status; /* 0 or a negated enum crail_status */
    uint32_t data_len;
    uint64_t version;
    uint64_t size;  /* bytes of the value; LIST, COLUMN: entries of the directory */
    uint16_t count; /* extents or entries in data */
    uint8_t kind;   /* enum crail_kind */
    uint8_t flags;
    uint32_t server; /* the server an error is about, 0 if none */
};
_Static_assert(sizeof(struct crail_result) == 32, "wire");

enum crail_kind {
    CRAIL_KIND_NONE = 0,
    CRAIL_KIND_FILE = 1,
    CRAIL_KIND_DIRECTORY = 2,
    CRAIL_KIND_TABLE = 3,     /* holds leaves only */
    CRAIL_KIND_MULTIFILE = 4, /* holds leaves only, which read as one stream in the order of their names */
    CRAIL_KIND_QUEUE = 5,     /* holds items, named by their numbers, which only TAKE and ACK touch */
    CRAIL_KIND_BARRIER = 6,   /* neither leaf nor container */
};

/* A run of granules on one server. The server number names one incarnation of one server and is never reused
 * by a namenode; the generation is that of the first granule when the run was granted. */
struct crail_extent {
    uint32_t server;
    uint32_t region;
    uint32_t granule;  /* first */
    uint32_t granules; /* how many */
    uint64_t generation;
    uint64_t key; /* crail_extent_key(): what the TCP server checks */
};
_Static_assert(sizeof(struct crail_extent) == 32, "wire");

struct crail_stat {
    uint64_t id;
    uint64_t version;
    uint64_t size;      /* bytes; of a directory: entries */
    int64_t mtime_ns;   /* since the epoch, UTC */
    int64_t expires_ns; /* likewise; 0: never */
    uint64_t job;       /* that it belongs to by its own option, 0: none */
    uint32_t kind;
    uint16_t extents; /* that follow this struct */
    uint16_t flags;   /* enum crail_option_flags, CRAIL_STAT_FLUSHED */
};
_Static_assert(sizeof(struct crail_stat) == 56, "wire");
#define CRAIL_STAT_FLUSHED (1u << 15) /* as CRAIL_OPF_FLUSHED said */

/* One entry of a listing: this head, the name, zeros up to a multiple of 8. */
struct crail_dirent {
    uint64_t version;
    uint64_t size;
    int64_t mtime_ns;
    uint16_t name_len;
    uint8_t kind;
    uint8_t is_inline;
    uint8_t is_flushed; /* as CRAIL_OPF_FLUSHED said */
    uint8_t reserved[3];
};
_Static_assert(sizeof(struct crail_dirent) == 32, "wire");

/* One entry of a column, what GET would say of a child: this head, the name, `extents` of struct crail_extent, data_len
 * bytes; zeros up to a multiple of 8 after the name and after the bytes. */
struct crail_column {
    uint64_t version;
    uint64_t size;       /* of the value */
    uint32_t data_len;   /* of a value within its node: all of it, or the bytes of the partition */
    uint32_t partitions; /* the same: how many its table has; 0: it has none */
    uint32_t server;     /* one that is lost, and with it the value; 0: none */
    uint16_t name_len;
    uint8_t kind;    /* enum crail_kind: only leaves have more than their head */
    uint8_t extents; /* 0: the value is within its node */
};
_Static_assert(sizeof(struct crail_column) == 32, "wire");
#define CRAIL_COLUMN_WHOLE UINT32_MAX

/* A map output: its partitions 0, 1, ... one behind the other, which is a *run*, perhaps more runs; then, for each run,
 * `partitions` + 1 offsets (u64, from the beginning of the value) that say where its partitions begin, and where the
 * last one ends; then this. */
struct crail_partitions_end {
    uint32_t runs;
    uint32_t partitions;
    uint64_t magic;
};
_Static_assert(sizeof(struct crail_partitions_end) == 16, "wire");
#define CRAIL_PARTITIONS_MAGIC 0x314c465548535243u /* "CRSHUFL1" */

/* ---- data: client <-> storage server over TCP ---------------------------- */

#define CRAIL_DATA_MAGIC 0x31445243u /* "CRD1" */

enum crail_data_code {
    CRAIL_DATA_READ = 1,
    CRAIL_DATA_WRITE = 2,
    CRAIL_DATA_FLUSH = 3, /* with the key for writing, length 0: what was written into the extent, and answered, before
                             this was sent is durable when it is answered. In memory there is nothing to do */
};

/* A WRITE is followed by `length` bytes. */
struct crail_data_request {
    uint32_t magic;
    uint16_t code;
    uint16_t flags; /* 0 */
    uint64_t id;
    struct crail_extent extent;
    uint64_t offset; /* bytes into the extent */
    uint64_t length;
};
_Static_assert(sizeof(struct crail_data_request) == 64, "wire");

/* A good READ is followed by `length` bytes. A refused WRITE's bytes are read and dropped. CRAIL_E_DATA_LOST,
 * CRAIL_E_OUT_OF_SPACE: the disk failed; other servers will do for a WRITE. A disk that fails in the middle of a good
 * READ ends the connection, and the same READ is refused from then on. */
struct crail_data_reply {
    uint32_t magic;
    int32_t status;
    uint64_t id;
    uint64_t length;
    uint64_t reserved;
};
_Static_assert(sizeof(struct crail_data_reply) == 32, "wire");

/* ---- retire: namenode <-> storage server ---------------------------------- */

#define CRAIL_RETIRE_MAGIC 0x31525243u /* "CRR1" */

/* The namenode orders, the server confirms with the same frame, extent by extent, in any order. Orders are
 * idempotent: a server that has the generation already only waits for the use slots. */
struct crail_retire_frame {
    uint32_t magic;
    uint32_t size;
    uint32_t count; /* of struct crail_retire, at most CRAIL_RETIRES_MAX */
    uint32_t flags; /* 0 */
};
_Static_assert(sizeof(struct crail_retire_frame) == 16, "wire");

struct crail_retire {
    uint32_t region;
    uint32_t granule;
    uint32_t granules;
    uint32_t reserved;
    uint64_t generation; /* to be raised to */
};
_Static_assert(sizeof(struct crail_retire) == 24, "wire");

static inline uint32_t crail_pad8(uint32_t n) {
    return (n + 7u) & ~7u;
}

static inline uint32_t crail_granules(uint64_t bytes) {
    return (uint32_t)((bytes + CRAIL_GRANULE - 1) / CRAIL_GRANULE);
}

#endif
