/* CRC-32C (Castagnoli), as in iSCSI and ext4. Any thread. */
#ifndef CRAIL_CRC32C_H
#define CRAIL_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Of `bytes` more, behind what `crc` is of; 0 in the beginning. */
uint32_t crail_crc32c(uint32_t crc, const void *data, size_t bytes);

#endif
