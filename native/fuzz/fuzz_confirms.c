/* What a storage server says to the namenode over the retire channel: confirmations of what was ordered, of what was
 * not, of half of it, twice, and rubbish; while a client puts and deletes. */
#include <sys/eventfd.h>

#include "namenode.h"

#define ORDERS_KNOWN 64u
#define LOOK_EVERY 8

static struct crail_retire known[ORDERS_KNOWN];
static uint32_t known_count;

/* ---- the client --------------------------------------------------------------------- */

static struct crail_op *add_op(struct crail_frame *f, struct crail_op op, const void *path, const void *data) {
    uint8_t *at = (uint8_t *)f + f->size;
    memset(at, 0, sizeof op + 64 + op.data_len);
    memcpy(at, &op, sizeof op);
    memcpy(at + sizeof op, path, op.path_len);
    if (op.data_len)
        memcpy(at + sizeof op + op.path_len, data, op.data_len);
    f->size += (uint32_t)sizeof op + crail_pad8(op.path_len + op.data_len);
    f->count++;
    return (void *)at;
}

/* One recorded request, and its reply. */
static void ask(struct lane *l, struct crail_op op, const char *path, const void *data) {
    static _Alignas(8) uint8_t bytes[8192];
    struct crail_frame *f = (void *)bytes;
    if (l->fd < 0)
        dial(l, false);
    *f = (struct crail_frame){.magic = CRAIL_FRAME_MAGIC, .size = sizeof *f, .id = ++l->id, .seq = ++l->seq};
    op.path_len = (uint16_t)strlen(path);
    add_op(f, op, path, data);
    l->asked[f->id % ASKED].id = f->id;
    l->asked[f->id % ASKED].count = 1;
    l->asked[f->id % ASKED].codes[0] = op.code;
    say(l, f, f->size);
    turns();
    hear(l);
}

static void client_part(struct fuzz_input *in) {
    static const char *const paths[] = {"/a", "/b", "/c", "/d"};
    uint8_t what = fuzz_u8(in);
    struct lane *l = &w.lanes[what / 16 % LANES];
    const char *path = paths[what / 64];
    const struct crail_extent *e = &w.known[(w.known_count - 1 - what % 3) % KNOWN_EXTENTS];
    switch (what % 8) {
    case 0:
        ask(l, (struct crail_op){.code = CRAIL_OP_REMOVE}, path, NULL);
        break;
    case 1:
        ask(l, (struct crail_op){.code = CRAIL_OP_RELEASE, .count = 1, .data_len = sizeof *e}, "", e);
        break;
    case 2:
        hang_up(l);
        break;
    case 3: /* and waits, perhaps, for memory that is on its way back */
        ask(l, (struct crail_op){.code = CRAIL_OP_ALLOC, .arg1 = 40 * CRAIL_GRANULE}, "", NULL);
        break;
    default:
        ask(l, (struct crail_op){.code = CRAIL_OP_ALLOC, .arg1 = 1 + what * 100u}, "", NULL);
        e = &w.known[(w.known_count - 1) % KNOWN_EXTENTS];
        ask(l, (struct crail_op){.code = CRAIL_OP_COMMIT, .count = 1, .data_len = sizeof *e, .arg1 = 1}, path, e);
    }
}

/* ---- the storage server ---------------------------------------------------------------- */

static void learn_orders(void) {
    size_t at = 0;
    uint32_t n;
    hear_orders();
    for (const struct crail_retire *o; (o = next_orders(&at, &n));)
        for (uint32_t i = 0; i < n; i++)
            known[known_count++ % ORDERS_KNOWN] = o[i];
    w.orders.len = 0;
}

static void confirm_some(struct fuzz_input *in) {
    struct {
        struct crail_retire_frame head;
        struct crail_retire done[16];
    } f = {.head = {.magic = CRAIL_RETIRE_MAGIC, .count = 1 + fuzz_u8(in) % 16}};
    for (uint32_t i = 0; i < f.head.count; i++) {
        uint8_t how = fuzz_u8(in); /* the latest first, mostly; some again */
        f.done[i] = known[(known_count - 1 - (how < 128 ? i : how % ORDERS_KNOWN)) % ORDERS_KNOWN];
        if (how >= 250)
            ((uint8_t *)&f.done[i])[fuzz_u8(in) % sizeof *f.done] = fuzz_u8(in);
    }
    f.head.size = (uint32_t)(sizeof f.head + f.head.count * sizeof *f.done);
    size_t size = f.head.size;
    uint8_t spoil = fuzz_u8(in);
    if (spoil >= 250)
        ((uint8_t *)&f.head)[fuzz_u8(in) % sizeof f.head] = fuzz_u8(in);
    fuzz_say(w.channel, &f, spoil >= 240 && spoil < 250 ? size / 2 : size);
}

static void rubbish(struct fuzz_input *in) {
    size_t n;
    const uint8_t *raw = fuzz_bytes(in, fuzz_u16(in) % 1024, &n);
    fuzz_say(w.channel, raw, n);
}

static void play(struct fuzz_input *in) {
    uint8_t what = fuzz_u8(in);
    switch (what % 8) {
    case 0:
        rubbish(in);
        break;
    case 1:
        channel_open();
        break;
    case 2:
        if (what >= 64)
            crail_namenode_server_set(w.nn, w.server, what == 250 ? CRAIL_SERVER_LOST : 1 + what / 8 % 2);
        break;
    case 3:
        pass(fuzz_u8(in) * 1000000ull);
        break;
    case 4:
    case 5:
        learn_orders();
        confirm_some(in);
        break;
    default:
        client_part(in);
    }
    turns();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_input in = fuzz_begin(data, size);
    namenode_begin();
    memset(known, 0, sizeof known);
    known_count = 0;
    for (int i = 1; in.at < in.end; i++) {
        play(&in);
        if (i % LOOK_EVERY == 0)
            look_through();
    }
    namenode_end();
    return fuzz_end();
}
