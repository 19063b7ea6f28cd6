/* The table at the end of a map output (struct crail_partitions_end in wire.h): where the bytes of a partition are.
 * What it says is checked against the value that it was found in, and not believed beyond that. */
#ifndef CRAIL_BASE_PARTITIONS_H
#define CRAIL_BASE_PARTITIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "crail/wire.h"

struct crail_partitions {
    uint32_t runs, count;
    uint64_t table; /* where in the value it begins, and the bytes of the runs end */
};

/* From the last bytes of a value of `size`, which has as many. False: they are no end of a map output. */
static inline bool crail_partitions_read(const void *last, uint64_t size, struct crail_partitions *out) {
    struct crail_partitions_end end;
    memcpy(&end, last, sizeof(end));
    uint64_t room = (size - sizeof(end)) / sizeof(uint64_t), offsets = (uint64_t)end.runs * (end.partitions + 1ull);
    if (end.magic != CRAIL_PARTITIONS_MAGIC || !end.runs || !end.partitions || offsets > room)
        return false;
    *out = (struct crail_partitions){end.runs, end.partitions, size - sizeof(end) - offsets * sizeof(uint64_t)};
    return true;
}

/* Where in the value the two offsets of a partition are, in the table of that run. */
static inline uint64_t crail_partitions_entry(const struct crail_partitions *p, uint32_t run, uint32_t partition) {
    return p->table + ((uint64_t)run * (p->count + 1ull) + partition) * sizeof(uint64_t);
}

/* Takes the two of them. False: they lie. */
static inline bool crail_partitions_bounds(const struct crail_partitions *p, const void *entry, uint64_t *from,
                                           uint64_t *to) {
    memcpy(from, entry, sizeof(*from));
    memcpy(to, (const uint8_t *)entry + sizeof(*from), sizeof(*to));
    return *from <= *to && *to <= p->table;
}

#endif
