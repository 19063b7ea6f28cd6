/* SipHash-2-4 (Aumasson, Bernstein 2012) with 64-bit output: the MAC behind extent keys and session keys. */
#ifndef CRAIL_SIPHASH_H
#define CRAIL_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

#include "crail/wire.h"

uint64_t crail_siphash(const uint8_t key[16], const void *data, size_t n);

enum crail_rights {
    CRAIL_RIGHT_READ = 1,
    CRAIL_RIGHT_WRITE = 2,
};

/* The key of an extent: a MAC over (server, region, range, generation, one right). Locations of committed values
 * carry the key for reading, grants the key for writing, with which the TCP server lets them be read as well. */
uint64_t crail_extent_key(const uint8_t key[16], const struct crail_extent *e, enum crail_rights right);

#endif
