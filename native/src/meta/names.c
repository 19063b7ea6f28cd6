/* The index of all nodes by (parent, name): linear hashing (Litwin 1980). Two buckets are split per insert and two
 * merged per removal at most, so that no operation ever pays for growth. The chains go through the nodes; with two
 * buckets per node most lookups touch one node only. */
#include "meta/engine.h"

#define BUCKETS_MIN CRAIL_NAMES_SEGMENT
#define BUCKETS_MAX (1u << 30)
#define BUCKETS_PER_NODE 2u /* and as many are split per insert, else it would not be kept */
#define SPLIT_AHEAD 4u

int crail_names_open(struct crail_meta *m) {
    struct crail_names *t = &m->names;
    t->segment = (crail_ref *)(m->arena.base + CRAIL_ARENA_CHUNK);
    crail_ref first = crail_arena_alloc(&m->arena, CRAIL_ARENA_CHUNK);
    if (!first)
        return -ENOMEM;
    memset(crail_arena_at(&m->arena, first), 0, CRAIL_ARENA_CHUNK);
    t->segment[0] = first;
    t->buckets = BUCKETS_MIN;
    t->mask = BUCKETS_MIN - 1;
    return 0;
}

/* ---- the hash: 128-bit multiply and fold, keyed against chosen collisions ---- */

#define K0 0xa0761d6478bd642full
#define K1 0xe7037ed1a0b428dbull

static inline uint64_t fold(uint64_t a, uint64_t b) {
    unsigned __int128 r = (unsigned __int128)a * b;
    return (uint64_t)r ^ (uint64_t)(r >> 64);
}

static inline uint64_t load64(const char *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static inline uint64_t load32(const char *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

uint64_t crail_names_hash_text(const struct crail_meta *m, const char *p, uint32_t len) {
    uint64_t seed = m->hash_seed ^ K0 ^ len, a = 0, b = 0;
    for (; len > 16; len -= 16, p += 16)
        seed = fold(load64(p) ^ K1, load64(p + 8) ^ seed);
    if (len >= 8) {
        a = load64(p);
        b = load64(p + len - 8);
    } else if (len >= 4) {
        a = load32(p);
        b = load32(p + len - 4);
    } else if (len) {
        a = (uint64_t)(uint8_t)p[0] << 16 | (uint64_t)(uint8_t)p[len >> 1] << 8 | (uint8_t)p[len - 1];
    }
    return fold(a ^ K1, b ^ seed);
}

uint32_t crail_names_hash_in(const struct crail_meta *m, crail_ref parent, uint64_t text) {
    return (uint32_t)fold(text ^ ((uint64_t)parent << 32 | parent), m->hash_seed ^ K0);
}

uint32_t crail_names_hash(const struct crail_meta *m, crail_ref parent, const char *name, uint32_t len) {
    return crail_names_hash_in(m, parent, crail_names_hash_text(m, name, len));
}

/* ---- buckets ------------------------------------------------------------------ */

uint32_t crail_names_bucket_of(const struct crail_names *t, uint32_t hash) {
    uint32_t b = hash & t->mask;
    return b < t->buckets ? b : b & (t->mask >> 1);
}

static crail_ref *bucket_at(const struct crail_meta *m, uint32_t b) {
    crail_ref *cells = crail_arena_at(&m->arena, m->names.segment[b / CRAIL_NAMES_SEGMENT]);
    return &cells[b % CRAIL_NAMES_SEGMENT];
}

crail_ref *crail_names_bucket(const struct crail_meta *m, uint32_t hash) {
    return bucket_at(m, crail_names_bucket_of(&m->names, hash));
}

crail_ref crail_names_find(const struct crail_meta *m, crail_ref parent, uint32_t hash, const char *name,
                           uint32_t len) {
    for (crail_ref ref = *crail_names_bucket(m, hash); ref;) {
        const struct crail_node *n = crail_node_at(m, ref);
        if (n->hash == hash && n->parent == parent && n->name_len == len &&
            memcmp(crail_node_name(m, n), name, len) == 0)
            return ref;
        ref = n->hash_next;
    }
    return 0;
}

/* Gives one more bucket its share of an old one. */
static void split_one(struct crail_meta *m) {
    struct crail_names *t = &m->names;
    uint32_t fresh = t->buckets;
    if (fresh == BUCKETS_MAX)
        return;
    if (fresh % CRAIL_NAMES_SEGMENT == 0) {
        crail_ref segment = crail_arena_alloc(&m->arena, CRAIL_ARENA_CHUNK);
        if (!segment)
            return;
        t->segment[fresh / CRAIL_NAMES_SEGMENT] = segment;
    }
    if (fresh > t->mask)
        t->mask = t->mask * 2 + 1;
    crail_ref *old_cell = bucket_at(m, fresh & (t->mask >> 1));
    crail_ref *new_cell = bucket_at(m, fresh);
    crail_ref ref = *old_cell;
    t->buckets++;
    *old_cell = *new_cell = 0;
    while (ref) {
        struct crail_node *n = crail_node_at(m, ref);
        crail_ref next = n->hash_next;
        crail_ref *cell = (n->hash & t->mask) == fresh ? new_cell : old_cell;
        n->hash_next = *cell;
        *cell = ref;
        ref = next;
    }
    /* The buckets after this one are split next: their nodes may come from memory meanwhile. */
    if (fresh % CRAIL_NAMES_SEGMENT < CRAIL_NAMES_SEGMENT - SPLIT_AHEAD)
        __builtin_prefetch(crail_node_at(m, old_cell[SPLIT_AHEAD]));
}

/* Gives the last bucket's nodes back to the one they came from. */
static void merge_one(struct crail_meta *m) {
    struct crail_names *t = &m->names;
    uint32_t last = t->buckets - 1;
    crail_ref *end = bucket_at(m, last & (t->mask >> 1));
    while (*end)
        end = &crail_node_at(m, *end)->hash_next;
    *end = *bucket_at(m, last);
    t->buckets = last;
    if (last == (t->mask >> 1) + 1)
        t->mask >>= 1;
    if (last % CRAIL_NAMES_SEGMENT == 0) {
        crail_arena_free(&m->arena, t->segment[last / CRAIL_NAMES_SEGMENT], CRAIL_ARENA_CHUNK);
        t->segment[last / CRAIL_NAMES_SEGMENT] = 0;
    }
}

void crail_names_insert(struct crail_meta *m, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    crail_ref *cell = crail_names_bucket(m, n->hash);
    n->hash_next = *cell;
    *cell = ref;
    m->names.count++;
    for (uint32_t i = 0; i < BUCKETS_PER_NODE && m->names.count * BUCKETS_PER_NODE > m->names.buckets; i++)
        split_one(m);
}

void crail_names_remove(struct crail_meta *m, crail_ref ref) {
    struct crail_node *n = crail_node_at(m, ref);
    crail_ref *cell = crail_names_bucket(m, n->hash);
    while (*cell != ref) {
        assert(*cell);
        cell = &crail_node_at(m, *cell)->hash_next;
    }
    *cell = n->hash_next;
    n->hash_next = 0;
    m->names.count--;
    /* The exact inverse of the insert, so that the memory depends on the number of nodes alone. */
    for (uint32_t i = 0;
         i < BUCKETS_PER_NODE && m->names.buckets > BUCKETS_MIN && m->names.buckets > m->names.count * BUCKETS_PER_NODE;
         i++)
        merge_one(m);
}
