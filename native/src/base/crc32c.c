/* CRC-32C: by the processor's instruction where it has one, else a byte at a time from a table. */
#include "base/crc32c.h"

#include <string.h>

#define POLYNOMIAL 0x82f63b78u /* reflected */

static uint32_t table[256];
static uint32_t (*chosen)(uint32_t crc, const uint8_t *p, size_t bytes);

static uint32_t by_table(uint32_t crc, const uint8_t *p, size_t bytes) {
    while (bytes--)
        crc = crc >> 8 ^ table[(crc ^ *p++) & 255];
    return crc;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const uint8_t *p, size_t bytes) {
    uint64_t wide = crc, word;
    for (; bytes >= sizeof(word); p += sizeof(word), bytes -= sizeof(word)) {
        memcpy(&word, p, sizeof(word));
        wide = __builtin_ia32_crc32di(wide, word);
    }
    for (crc = (uint32_t)wide; bytes--; p++)
        crc = __builtin_ia32_crc32qi(crc, *p);
    return crc;
}
#endif

/* Before main, so that no thread finds it half made. */
__attribute__((constructor)) static void choose(void) {
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? POLYNOMIAL : 0);
    }
    chosen = by_table;
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2"))
        chosen = by_instruction;
#endif
}

uint32_t crail_crc32c(uint32_t crc, const void *data, size_t bytes) {
    return ~chosen(~crc, data, bytes);
}
