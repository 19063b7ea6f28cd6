/* What the namenode says to a storage server over the retire channel, while transfers hold some of the extents. */
#include "storage.h"

static void play(struct fuzz_input *in) {
    uint8_t what = fuzz_u8(in);
    switch (what % 8) {
    case 0:
    case 1:
        rubbish(in, w.channel);
        break;
    case 2:
        channel_open();
        break;
    case 3:
        pass((uint64_t)fuzz_u8(in) * fuzz_u8(in) * 10000);
        break;
    case 4:
        if (w.conns[0] < 0)
            dial(0);
        ask(in, 0);
        break;
    default:
        order(in);
    }
    turns();
    if (what < 192) /* else it does not read for now */
        hear_confirms();
    if (what % 32 == 4)
        hear(0);
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
