/* What clients say to a storage server over data connections, while the namenode orders extents back. */
#include "storage.h"

static void play(struct fuzz_input *in) {
    static const uint64_t times[] = {600000, 60000000, 61000000000};
    uint8_t what = fuzz_u8(in);
    uint32_t i = what / 8 % CONNS;
    switch (what % 8) {
    case 0:
        rubbish(in, w.conns[i]);
        break;
    case 1:
        dial(i);
        break;
    case 2:
        order(in);
        break;
    case 3:
        pass(times[fuzz_u8(in) % (sizeof times / sizeof *times)]);
        break;
    default:
        ask(in, i);
    }
    turns();
    hear_confirms();
    if (what < 192) /* else it does not read for now */
        hear(i);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    storage_prepare();
    struct fuzz_input in = fuzz_begin(data, size);
    storage_begin();
    while (in.at < in.end)
        play(&in);
    storage_end();
    return fuzz_end();
}
