/* Every byte that C reads from or writes to a connection (docs/PROTOCOL.md tells
 * the story). Little-endian, naturally aligned, no padding: hosts that are not
 * little-endian are refused at compile time rather than byte-swapped. */
#ifndef CRAIL_WIRE_H
#define CRAIL_WIRE_H

#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian");

/* ---- limits -------------------------------------------------------------- */

#define CRAIL_GRANULE 4096u              /* bytes; unit of accounting */
#define CRAIL_NAME_MAX 255u              /* bytes of one path component */
#define CRAIL_PATH_MAX 4096u             /* bytes of a path */
#define CRAIL_INLINE_MAX 4096u           /* bytes of a value kept inside its node */
#define CRAIL_VECTOR_OPS_MAX 1024u       /* operations in one request */
#define CRAIL_FRAME_BYTES_MAX (8u << 20) /* bytes of one request: a full vector of inline puts fits */
#define CRAIL_EXTENTS_MAX 64u            /* extents of one value */
#define CRAIL_LIST_ENTRIES_MAX 1024u     /* entries of one page of a listing */
#define CRAIL_RETIRES_MAX 1024u          /* extents in one retire frame */

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
    CRAIL_OP_PING = 1,     /* -> version: the last sequence number that this lane executed */
    CRAIL_OP_GET = 2,      /* path -> the value (inline) or its extents */
    CRAIL_OP_STAT = 3,     /* path -> struct crail_stat [+ extents] */
    CRAIL_OP_LIST = 4,     /* path, data = last name seen, arg0 = entries wanted -> struct crail_dirent ... */
    CRAIL_OP_SERVER = 5,   /* arg0 = server number -> the description its registration left (opaque) */
    CRAIL_OP_PUT = 16,     /* path, data = value of at most CRAIL_INLINE_MAX bytes -> version */
    CRAIL_OP_COMMIT = 17,  /* path, data = count extents, arg1 = size -> version [+ extents granted anew] */
    CRAIL_OP_ALLOC = 18,   /* arg1 = bytes -> extents granted to the session */
    CRAIL_OP_RELEASE = 19, /* data = count extents of this session's grants, given back */
    CRAIL_OP_MKDIR = 20,   /* path */
    CRAIL_OP_RENAME = 21,  /* path = from, data = to (a path) */
    CRAIL_OP_REMOVE = 22,  /* path: a leaf, or (unless LEAF_ONLY) an empty container */
    CRAIL_OP_RMTREE = 23,  /* path: anything and all below it */
    CRAIL_OP_BYE = 24,     /* the session ends now, by its own wish */
};
#define CRAIL_OP_MUTATING_FIRST 16

enum crail_op_flags {
    CRAIL_OPF_IF_ABSENT = 1 << 0,   /* PUT, COMMIT: create-exclusive */
    CRAIL_OPF_IF_VERSION = 1 << 1,  /* PUT, COMMIT: only if the version is arg0 (0: only if absent) */
    CRAIL_OPF_PARENTS = 1 << 2,     /* PUT, COMMIT, MKDIR: make missing directories above */
    CRAIL_OPF_EXIST_OK = 1 << 3,    /* MKDIR: an existing directory is fine */
    CRAIL_OPF_OVERWRITE = 1 << 4,   /* RENAME: replace an existing leaf, or an empty directory by a directory */
    CRAIL_OPF_LEAF_ONLY = 1 << 5,   /* REMOVE: a container is CRAIL_E_IS_CONTAINER */
    CRAIL_OPF_GRANT_AGAIN = 1 << 6, /* COMMIT: grant arg1 bytes anew in the reply, if space is plenty */
    CRAIL_OPF_ONE_EXTENT = 1 << 7,  /* ALLOC: one contiguous run or CRAIL_E_OUT_OF_SPACE */
};

/* One operation: this head, path_len bytes of path, data_len bytes of data, zeros up to a multiple of 8. */
struct crail_op {
    uint16_t code;
    uint16_t flags;
    uint16_t path_len;
    uint16_t reserved; /* 0 */
    uint32_t data_len;
    uint32_t count; /* extents in data, where there are any */
    uint64_t arg0;
    uint64_t arg1;
};
_Static_assert(sizeof(struct crail_op) == 32, "wire");

enum crail_result_flags {
    CRAIL_RESF_INLINE = 1 << 0, /* data is the value itself; without it data is `count` extents */
    CRAIL_RESF_MORE = 1 << 1,   /* LIST: more entries follow the last one */
    CRAIL_RESF_REPLAY = 1 << 2, /* answered from the record of the lane: done before, not again */
};

/* One result: this head, data_len bytes, zeros up to a multiple of 8. */
struct crail_result {
    int32_t status; /* 0 or a negated enum crail_status */
    uint32_t data_len;
    uint64_t version;
    uint64_t size;  /* bytes of the value; LIST: entries of the directory */
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
    uint64_t size;    /* bytes; of a directory: entries */
    int64_t mtime_ns; /* since the epoch, UTC */
    uint32_t kind;
    uint32_t extents; /* that follow this struct */
};
_Static_assert(sizeof(struct crail_stat) == 40, "wire");

/* One entry of a listing: this head, the name, zeros up to a multiple of 8. */
struct crail_dirent {
    uint64_t version;
    uint64_t size;
    int64_t mtime_ns;
    uint16_t name_len;
    uint8_t kind;
    uint8_t is_inline;
    uint32_t reserved;
};
_Static_assert(sizeof(struct crail_dirent) == 32, "wire");

/* ---- data: client <-> storage server over TCP ---------------------------- */

#define CRAIL_DATA_MAGIC 0x31445243u /* "CRD1" */

enum crail_data_code {
    CRAIL_DATA_READ = 1,
    CRAIL_DATA_WRITE = 2,
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

/* A good READ is followed by `length` bytes. A refused WRITE's bytes are read and dropped. */
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
