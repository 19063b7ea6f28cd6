/* What a cut consists of: rows for the database of the namenode, one after the other, each padded to 8 bytes.
 * docs/adr/0004-durable-metadata.md tells what they are for. Little-endian. No row names another by anything but ids.
 */
#ifndef CRAIL_ROWS_H
#define CRAIL_ROWS_H

#include <stdint.h>

#define CRAIL_ROWS_FORMAT 1u

enum crail_table {
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

#endif
