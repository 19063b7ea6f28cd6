/* What a cut consists of: rows for the database of the namenode, one after the other, each padded to 8 bytes.
 * docs/adr/0004-durable-metadata.md tells what they are for. Little-endian. No row names another by anything but ids.
 */
#ifndef CRAIL_ROWS_H
#define CRAIL_ROWS_H

#include <stdint.h>

#define CRAIL_ROWS_FORMAT 1u

enum crail_row_table {
    CRAIL_TABLE_NODE = 1, /* key: u64 id */
    CRAIL_TABLE_SESSION,  /* key: u64 id */
    CRAIL_TABLE_LANE,     /* key: u64 session, u32 lane (12 bytes) */
    CRAIL_TABLE_SERVER,   /* key: u32 number */
    CRAIL_TABLE_SUPER,    /* key: text */
};

/* Followed by the key, then the value, then zeroes up to the next multiple of 8. `size` is all of it. Keys are as in
 * the enum, little-endian; the database turns integers round. */
struct crail_row {
    uint32_t size;
    uint8_t table;
    uint8_t gone; /* 1: the row is to be deleted; there is no value */
    uint16_t key_len;
    uint32_t value_len;
    uint32_t crc; /* crc32c of key and value; 0 in a row that is gone */
};

/* ---- the value of a NODE ----------------------------------------------------------------
 *
 * The head, the parts that it names in the order of the enum, the name, then the value (of a file: its bytes, or its
 * extents) and the attributes (struct crail_attribute ... as on the wire). None of them is aligned. What follows from
 * other rows is not in it: entries of a container, what a job is charged with; and of a container the time at which a
 * child came or went, which after a load is that of its latest child. */

enum crail_node_part {
    CRAIL_PART_LIFE = 1 << 0,    /* struct crail_life_part */
    CRAIL_PART_JOB = 1 << 1,     /* struct crail_job_part: it is the directory of a job */
    CRAIL_PART_ITEM = 1 << 2,    /* struct crail_item_part: it lies in a queue */
    CRAIL_PART_BARRIER = 1 << 3, /* struct crail_barrier_part */
    CRAIL_PART_FLUSHED = 1 << 4, /* no part: its extents are durable where they lie */
};

struct crail_node_row {
    uint64_t parent; /* id; 0: it is the root */
    uint64_t version;
    uint64_t size; /* bytes of a file, else 0 */
    int64_t mtime_ns;
    uint32_t attributes; /* bytes */
    uint8_t kind;        /* enum crail_kind */
    uint8_t parts;       /* enum crail_node_part */
    uint8_t extents;     /* of a file; 0: the value is here */
    uint8_t name_len;
};

struct crail_life_part {
    uint64_t session;   /* id of its owner, with CRAIL_OPTION_SESSION */
    uint64_t job;       /* that it belongs to by its option, or 0 */
    int64_t ttl_ns;     /* with CRAIL_OPTION_TTL */
    int64_t expires_ns; /* 0: never; INT64_MAX: with the last holder of its job */
    uint16_t options;   /* enum crail_option_flags */
    uint16_t reserved[3];
};

struct crail_job_part {
    uint64_t number;
    int64_t ttl_ns;
    uint64_t quota_bytes, quota_nodes;
};

struct crail_item_part {
    uint64_t session, token; /* who has taken it */
    uint32_t state;          /* 1 fresh, 2 returned, 3 taken */
    uint32_t reserved;
};

struct crail_barrier_part {
    uint64_t rounds;
    uint32_t members;
    uint32_t is_broken;
};

struct crail_extent_part {
    uint32_t server, region, granule, granules;
    uint64_t generation;
};

/* ---- the value of a SESSION, followed by its jobs ------------------------------------------ */

struct crail_session_row {
    uint64_t reserved;
    uint32_t jobs; /* struct crail_session_job, so many */
    uint32_t reserved_too;
};
struct crail_session_job {
    uint64_t token, number;
};

/* ---- the value of a SERVER, followed by the granules of each region (u32) and by the note --- */

struct crail_server_row {
    uint8_t state; /* enum crail_meta_server_state */
    uint8_t storage_class;
    uint16_t regions;
    uint32_t location;
    uint32_t note; /* bytes: what its registration said, the rpc room's */
    uint32_t reserved;
};

/* Value of a lane's row, followed by its record: the reply to half_seq as far as it goes, or else to last_seq. An empty
 * one is lost. */
struct crail_row_lane {
    uint64_t last_seq;   /* of the last vector that is complete */
    uint64_t half_seq;   /* of a vector that the cut found half-way; 0: none */
    uint32_t half_count; /* operations of it that were done */
    uint32_t reserved;
};

/* Value of the row `bounds` of CRAIL_TABLE_SUPER: what the counters do not reach before the next cut is durable. The
 * next life goes on from there. */
struct crail_row_bounds {
    uint64_t epoch; /* of this cut */
    uint64_t id, version, job;
};

#endif
