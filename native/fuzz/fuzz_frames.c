/* What clients say to the namenode: frames of operations over sockets and rings, whole, in pieces and as rubbish, from
 * lanes of two sessions, with a storage server that confirms what it likes. */
#include <sys/eventfd.h>

#include "namenode.h"

#define FRAME_ROOM 65536u
#define OPS_MAX 8u
#define LOOK_EVERY 32

static const char *const paths[] = {
    "/",    "/a", "/a/b", "/a/b/c", "/d", "/q",  "/q/1", "/t",  "/t/x", "/m",
    "/m/y", "/r", "/j",   "/j/z",   "",   "/..", "x",    "/a/", "//",   "/a//b",
};

static const uint16_t codes[] = {
    CRAIL_OP_PING,   CRAIL_OP_GET,    CRAIL_OP_STAT,     CRAIL_OP_LIST,   CRAIL_OP_SERVER,  CRAIL_OP_CANCEL,
    CRAIL_OP_NEXT,   CRAIL_OP_PUT,    CRAIL_OP_COMMIT,   CRAIL_OP_ALLOC,  CRAIL_OP_RELEASE, CRAIL_OP_MKDIR,
    CRAIL_OP_RENAME, CRAIL_OP_REMOVE, CRAIL_OP_RMTREE,   CRAIL_OP_BYE,    CRAIL_OP_INCR,    CRAIL_OP_SETATTR,
    CRAIL_OP_ACK,    CRAIL_OP_END,    CRAIL_OP_TRUNCATE, CRAIL_OP_OPEN,   CRAIL_OP_TAKE,    CRAIL_OP_ENTER,
    CRAIL_OP_APPEND, CRAIL_OP_WATCH,  CRAIL_OP_STREAM,   CRAIL_OP_FOLLOW, CRAIL_OP_JOB,     CRAIL_OP_ATTRIBUTES,
    CRAIL_OP_PUT,    CRAIL_OP_ALLOC,  CRAIL_OP_COMMIT,   CRAIL_OP_COLUMN,
};

/* ---- operations made of the script ------------------------------------------------------ */

static uint16_t make_path(struct fuzz_input *in, uint8_t *to) {
    uint8_t which = fuzz_u8(in);
    size_t n;
    if (which < 224) {
        const char *path = paths[which % (sizeof paths / sizeof *paths)];
        n = strlen(path);
        memcpy(to, path, n);
    } else if (which < 240) { /* long, of long or short names */
        n = which < 232 ? 600 : 5000;
        memset(to, 'n', n);
        for (size_t i = 0; i < n; i += which % 2 ? 2 : 200)
            to[i] = '/';
    } else {
        const uint8_t *raw = fuzz_bytes(in, which - 239, &n);
        memcpy(to, raw, n);
    }
    return (uint16_t)n;
}

static void make_options(struct fuzz_input *in, uint8_t *to) {
    struct crail_options o = {
        .ttl_ns = fuzz_value(in) * 1000000u,
        .job = fuzz_u8(in) % 4,
        .location = fuzz_u8(in) % 2,
        .flags = fuzz_u8(in),
        .storage_class = CRAIL_CLASS_ANY,
        .stripe = fuzz_u8(in) % 5,
    };
    if (fuzz_u8(in) == 255) {
        o.storage_class = fuzz_u8(in);
        o.reserved = fuzz_u8(in);
    }
    memcpy(to, &o, sizeof o);
}

static uint32_t make_extents(struct fuzz_input *in, uint8_t *to, uint32_t *count) {
    *count = fuzz_u8(in) % 4;
    for (uint32_t i = 0; i < *count; i++) {
        struct crail_extent e = w.known[fuzz_u8(in) % KNOWN_EXTENTS];
        uint8_t spoil = fuzz_u8(in); /* mostly not at all */
        if (spoil >= 240)
            ((uint8_t *)&e)[fuzz_u8(in) % sizeof e] = fuzz_u8(in);
        memcpy(to + i * sizeof e, &e, sizeof e);
    }
    return *count * (uint32_t)sizeof(struct crail_extent);
}

static uint32_t make_attributes(struct fuzz_input *in, uint8_t *to) {
    uint32_t n = 0;
    for (int i = fuzz_u8(in) % 5; i > 0; i--) {
        struct crail_attribute a = {.name_len = fuzz_u8(in) % 4, .value_len = fuzz_u8(in)};
        if (a.value_len > 200)
            a.value_len = a.value_len > 230 ? CRAIL_ATTRIBUTE_GONE : 16000;
        uint32_t value = a.value_len == CRAIL_ATTRIBUTE_GONE ? 0 : a.value_len;
        memcpy(to + n, &a, sizeof a);
        memset(to + n + sizeof a, 'a' + fuzz_u8(in) % 3, a.name_len + value);
        n += (uint32_t)sizeof a + a.name_len + value;
    }
    return n;
}

/* The end of a value becomes that of a map output. */
static void make_table(uint8_t *value, uint32_t n, uint8_t how) {
    struct crail_partitions_end end = {1 + how % 2, how % 3, CRAIL_PARTITIONS_MAGIC};
    uint32_t at = n - (uint32_t)sizeof end, offsets = end.runs * (end.partitions + 1);
    memcpy(value + at, &end, sizeof end);
    for (uint64_t from = 0; offsets-- && at >= sizeof from; from += how % 7) {
        at -= (uint32_t)sizeof from;
        memcpy(value + at, &from, sizeof from);
    }
}

/* The data of an operation: mostly what its code wants. */
static uint32_t make_data(struct fuzz_input *in, struct crail_op *op, uint8_t *to) {
    uint8_t how = fuzz_u8(in);
    size_t n;
    if (how >= 224) {
        const uint8_t *raw = fuzz_bytes(in, fuzz_u8(in), &n);
        memcpy(to, raw, n);
        return (uint32_t)n;
    }
    switch (op->code) {
    case CRAIL_OP_COMMIT:
    case CRAIL_OP_RELEASE:
    case CRAIL_OP_STREAM:
        return make_extents(in, to, &op->count);
    case CRAIL_OP_RENAME:
        return make_path(in, to);
    case CRAIL_OP_SETATTR:
        return make_attributes(in, to);
    case CRAIL_OP_JOB:
        memset(to, how % 4, sizeof(struct crail_quota));
        return sizeof(struct crail_quota);
    case CRAIL_OP_PUT:
        n = how < 160 ? how % 40 : (how - 150) * 64u;
        memset(to, how, n);
        if (how % 40 > 15 && n > 15) /* a map output, whose table mostly makes sense */
            make_table(to, (uint32_t)n, how);
        return (uint32_t)n;
    case CRAIL_OP_LIST:
    case CRAIL_OP_COLUMN:
        to[0] = (uint8_t)('a' + how % 8);
        return how % 2;
    }
    return 0;
}

/* Flags: those it mostly has, or one more, or any. */
static uint16_t make_flags(struct fuzz_input *in, uint16_t code) {
    uint8_t how = fuzz_u8(in);
    uint16_t flags = code == CRAIL_OP_PUT || code == CRAIL_OP_COMMIT || code == CRAIL_OP_MKDIR ||
                             code == CRAIL_OP_INCR || code == CRAIL_OP_JOB
                         ? CRAIL_OPF_PARENTS
                         : 0;
    if (how >= 240)
        return fuzz_u16(in);
    return how < 128 ? flags : flags ^ (uint16_t)(1 << how % 12);
}

/* The numbers of an operation, as its code has them. */
static void make_numbers(struct fuzz_input *in, const struct lane *l, struct crail_op *op) {
    uint8_t n = fuzz_u8(in);
    op->arg0 = op->arg1 = 0;
    if (op->flags & CRAIL_OPF_WAIT)
        op->count = n * 100u;
    if (op->flags & CRAIL_OPF_IF_VERSION)
        op->arg0 = n < 200 ? w.version : 0;
    else if (op->code == CRAIL_OP_MKDIR)
        op->arg0 = n % 8;
    else if (op->code == CRAIL_OP_CANCEL)
        op->arg0 = l->id - n % 4;
    else if (op->code >= CRAIL_OP_HOLDS_FIRST || op->code == CRAIL_OP_NEXT || op->code == CRAIL_OP_ACK ||
             op->code == CRAIL_OP_END || (op->flags & CRAIL_OPF_APPEND))
        op->arg0 = 1 + n % 6;
    else if (op->code == CRAIL_OP_LIST || op->code == CRAIL_OP_SERVER || op->code == CRAIL_OP_INCR)
        op->arg0 = n;
    if (op->code == CRAIL_OP_ALLOC || op->code == CRAIL_OP_COMMIT || op->code == CRAIL_OP_STREAM)
        op->arg1 = 1 + fuzz_u8(in) * 900u;
    else if (op->code == CRAIL_OP_ENTER)
        op->arg1 = 1 + n / 6 % 3;
    else if (op->code == CRAIL_OP_COLUMN)
        op->arg1 = n % 8 == 7 ? CRAIL_COLUMN_WHOLE : n % 4 | (op->flags & CRAIL_OPF_WAIT ? n / 32ull << 32 : 0);
    else if (op->code == CRAIL_OP_TRUNCATE || op->code == CRAIL_OP_NEXT || op->code == CRAIL_OP_FOLLOW)
        op->arg1 = fuzz_value(in);
}

static size_t make_op(struct fuzz_input *in, const struct lane *l, uint8_t *at, uint16_t *code) {
    struct crail_op op = {.code = codes[fuzz_u8(in) % (sizeof codes / sizeof *codes)]};
    uint8_t spoil = fuzz_u8(in); /* mostly not at all */
    uint8_t *p = at + sizeof op;
    op.flags = make_flags(in, op.code);
    if (op.code != CRAIL_OP_ALLOC && op.code != CRAIL_OP_RELEASE && op.code < CRAIL_OP_ACK)
        op.path_len = make_path(in, p);
    else if (op.code > CRAIL_OP_END)
        op.path_len = make_path(in, p);
    p += op.path_len;
    if (spoil % 4 == 1) {
        make_options(in, p);
        op.options_len = sizeof(struct crail_options);
        p += op.options_len;
    }
    op.data_len = make_data(in, &op, p);
    make_numbers(in, l, &op);
    if (spoil >= 240)
        ((uint64_t *)&op)[1 + spoil % 3] = fuzz_value(in);
    if (spoil >= 250)
        op.code = fuzz_u8(in);
    op.data_len = spoil >= 240 ? op.data_len % 64 : op.data_len;
    memcpy(at, &op, sizeof op);
    *code = op.code;
    return sizeof op + crail_pad8((uint32_t)op.path_len + op.options_len + op.data_len);
}

/* Whether the reply answers this frame for sure: a number that was there before is answered as it was then, and it may
 * have been there if ever the lane said any. */
static bool number_frame(struct fuzz_input *in, struct lane *l, struct crail_frame *f, bool recorded) {
    uint8_t how = fuzz_u8(in);
    f->id = ++l->id;
    if (how >= 232)
        f->seq = how >= 248 ? fuzz_value(in) : l->seq; /* the last one again, or any */
    else if (recorded && how < 224)
        f->seq = ++l->seq;
    l->astray |= how >= 248;
    return !f->seq || (how < 232 && !l->astray);
}

static bool is_recorded(uint16_t code) {
    return code >= CRAIL_OP_RECORDED_FIRST && code < CRAIL_OP_HOLDS_FIRST;
}

static void cooked(struct fuzz_input *in, struct lane *l) {
    static _Alignas(8) uint8_t bytes[FRAME_ROOM + OPS_MAX * 70000u];
    struct crail_frame *f = (void *)bytes;
    bool recorded = false;
    memset(bytes, 0, FRAME_ROOM);
    uint8_t many = fuzz_u8(in);
    *f = (struct crail_frame){.magic = CRAIL_FRAME_MAGIC, .count = many < 160 ? 1 : many % OPS_MAX + 1};
    size_t at = sizeof *f;
    uint16_t asked[OPS_MAX];
    for (uint32_t i = 0; i < f->count; i++) {
        at += make_op(in, l, bytes + at, &asked[i]);
        recorded |= is_recorded(asked[i]);
    }
    f->size = (uint32_t)at;
    bool fresh = number_frame(in, l, f, recorded);
    l->asked[f->id % ASKED].id = fresh ? f->id : 0;
    l->asked[f->id % ASKED].count = f->count;
    memcpy(l->asked[f->id % ASKED].codes, asked, sizeof asked);
    if (fuzz_u8(in) >= 240) { /* something in it does not fit */
        bytes[fuzz_u16(in) % at] ^= fuzz_u8(in);
        memset(l->asked, 0, sizeof l->asked); /* perhaps its id */
        l->astray = true;                     /* or its number */
    }
    say(l, bytes, at);
}

/* ---- the rest of the script ---------------------------------------------------------------- */

static void rubbish(struct fuzz_input *in, struct lane *l) {
    size_t n;
    const uint8_t *raw = fuzz_bytes(in, fuzz_u16(in) % 2048, &n);
    l->astray = true;
    say(l, raw, n);
}

/* A client that writes what it likes into the ring. */
static void poke(struct fuzz_input *in, struct lane *l) {
    if (!crail_ring_is_open(&l->ring))
        return;
    struct crail_ring_memory *m = l->ring.memory;
    uint8_t what = fuzz_u8(in);
    uint64_t value = fuzz_value(in);
    _Atomic uint64_t *counts[] = {&m->requests.written, &m->requests.taken, &m->replies.written, &m->replies.taken};
    _Atomic uint32_t *flags[] = {&m->requests.reader_sleeps,
                                 &m->requests.writer_sleeps,
                                 &m->replies.reader_sleeps,
                                 &m->replies.writer_sleeps,
                                 &m->follows_ns,
                                 &m->client_core};
    if (what % 2)
        *counts[what / 2 % 4] += value;
    else
        *flags[what / 2 % 6] = (uint32_t)value;
    eventfd_write(l->bell, 1);
    turns();
    if (what % 2 && what / 2 % 4 > 1) { /* our own end would not know its place any more */
        hang_up(l);
        turns();
    }
}

static void server_part(struct fuzz_input *in) {
    uint8_t what = fuzz_u8(in);
    size_t n;
    if (what < 160) {
        confirm_all();
    } else if (what < 200) {
        channel_open();
    } else if (what < 240) {
        const uint8_t *raw = fuzz_bytes(in, what, &n);
        fuzz_say(w.channel, raw, n);
    } else {
        crail_namenode_server_set(w.nn, w.server, what == 255 ? CRAIL_SERVER_LOST : 1 + what % 2);
        hear_orders();
    }
}

static void play(struct fuzz_input *in) {
    static const uint64_t times[] = {100000, 3000000, 250000000, 2000000000, 61000000000, FAR_NS};
    uint8_t what = fuzz_u8(in);
    struct lane *l = &w.lanes[what / 8 % LANES];
    switch (what % 8) {
    case 0:
        rubbish(in, l);
        break;
    case 1:
        dial(l, what >= 128);
        break;
    case 2:
        server_part(in);
        break;
    case 3:
        pass(times[fuzz_u8(in) % (sizeof times / sizeof *times)]);
        break;
    case 4:
        poke(in, l);
        break;
    default:
        if (l->fd < 0)
            dial(l, what >= 224);
        cooked(in, l);
    }
    turns();
    if (what < 192) /* else it does not read for now */
        hear(l);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_input in = fuzz_begin(data, size);
    namenode_begin();
    for (int i = 1; in.at < in.end; i++) {
        play(&in);
        if (i % LOOK_EVERY == 0)
            look_through();
    }
    namenode_end();
    return fuzz_end();
}
