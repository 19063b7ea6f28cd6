/* The run allocator of one region: see granules.h. */
#include "meta/engine.h"

#include <sys/mman.h>

#define LARGE_LOOKS 16u

/* ---- size classes ----------------------------------------------------------- */

uint32_t crail_run_class_down(uint32_t granules) {
    assert(granules);
    if (granules <= 8)
        return granules - 1;
    uint32_t log = 31 - (uint32_t)__builtin_clz(granules); /* >= 3 */
    return 7 + (log - 3) * 4 + ((granules >> (log - 2)) & 3);
}

uint32_t crail_run_class_granules(uint32_t class) {
    if (class < 8)
        return class + 1;
    uint32_t log = 3 + (class - 7) / 4;
    return (4 + (class - 7) % 4) << (log - 2);
}

uint32_t crail_run_class_up(uint32_t granules) {
    uint32_t class = crail_run_class_down(granules);
    return crail_run_class_granules(class) == granules ? class : class + 1;
}

uint64_t crail_run_round(uint64_t granules) {
    if (granules > UINT32_MAX / 2)
        return granules;
    return crail_run_class_granules(crail_run_class_up((uint32_t)granules));
}

/* ---- lists ------------------------------------------------------------------- */

static void list_push_head(struct crail_region *r, struct crail_run_list *list, uint32_t granule) {
    struct crail_run_record *rec = &r->record[granule];
    rec->prev = 0;
    rec->next = list->head;
    if (list->head)
        r->record[list->head - 1].prev = granule + 1;
    else
        list->tail = granule + 1;
    list->head = granule + 1;
}

void crail_run_push_tail(struct crail_region *r, struct crail_run_list *list, uint32_t granule) {
    struct crail_run_record *rec = &r->record[granule];
    rec->prev = list->tail;
    rec->next = 0;
    if (list->tail)
        r->record[list->tail - 1].next = granule + 1;
    else
        list->head = granule + 1;
    list->tail = granule + 1;
}

void crail_run_unlist(struct crail_region *r, struct crail_run_list *list, uint32_t granule) {
    struct crail_run_record *rec = &r->record[granule];
    if (rec->prev)
        r->record[rec->prev - 1].next = rec->next;
    else
        list->head = rec->next;
    if (rec->next)
        r->record[rec->next - 1].prev = rec->prev;
    else
        list->tail = rec->prev;
    rec->prev = rec->next = 0;
}

/* ---- free runs ------------------------------------------------------------------ */

static void free_list_add(struct crail_region *r, uint32_t first, uint32_t len) {
    uint32_t class = crail_run_class_down(len);
    r->record[first] = (struct crail_run_record){.len = len, .state = CRAIL_RUN_FREE};
    if (len > 1)
        r->record[first + len - 1] = (struct crail_run_record){.len = len, .state = CRAIL_RUN_FREE_END};
    list_push_head(r, &r->free[class], first);
    r->class_map[class / 64] |= 1ull << (class % 64);
}

/* Takes a free run off its list and makes both its ends INNER. Returns its length. */
static uint32_t free_list_remove(struct crail_region *r, uint32_t first) {
    uint32_t len = r->record[first].len;
    uint32_t class = crail_run_class_down(len);
    assert(r->record[first].state == CRAIL_RUN_FREE);
    crail_run_unlist(r, &r->free[class], first);
    if (!r->free[class].head)
        r->class_map[class / 64] &= ~(1ull << (class % 64));
    r->record[first] = r->record[first + len - 1] = (struct crail_run_record){0};
    return len;
}

/* The first class at or above with a free run, or -1. */
static int class_with_run(const struct crail_region *r, uint32_t class) {
    if (class < 64) {
        uint64_t low = r->class_map[0] & (~0ull << class);
        if (low)
            return __builtin_ctzll(low);
        class = 64;
    }
    uint64_t high = class < 128 ? r->class_map[1] & (~0ull << (class - 64)) : 0;
    return high ? 64 + __builtin_ctzll(high) : -1;
}

int crail_region_largest_class(const struct crail_region *r) {
    if (r->class_map[1])
        return 127 - __builtin_clzll(r->class_map[1]);
    return r->class_map[0] ? 63 - __builtin_clzll(r->class_map[0]) : -1;
}

static void take_front(struct crail_region *r, uint32_t first, uint32_t granules) {
    uint32_t len = free_list_remove(r, first);
    assert(len >= granules);
    if (len > granules)
        free_list_add(r, first + granules, len - granules);
}

bool crail_region_take(struct crail_region *r, uint32_t granules, uint32_t *first) {
    int class = class_with_run(r, crail_run_class_up(granules));
    if (class < 0)
        return false;
    *first = r->free[class].head - 1;
    take_front(r, *first, granules);
    return true;
}

bool crail_region_take_large(struct crail_region *r, uint32_t granules_max, uint32_t *first, uint32_t *granules) {
    int class = crail_region_largest_class(r);
    if (class < 0)
        return false;
    *first = r->free[class].head - 1;
    /* Runs of one class differ by up to a quarter: look at a few. */
    uint32_t next = r->record[*first].next;
    for (uint32_t i = 0; i < LARGE_LOOKS && next; i++, next = r->record[next - 1].next)
        if (r->record[next - 1].len > r->record[*first].len)
            *first = next - 1;
    uint32_t len = r->record[*first].len;
    *granules = len < granules_max ? len : granules_max;
    take_front(r, *first, *granules);
    return true;
}

void crail_region_give(struct crail_region *r, uint32_t first, uint32_t granules) {
    uint32_t end = first + granules;
    assert(granules && end <= r->granules);
    r->record[first] = (struct crail_run_record){0};
    if (end < r->granules && r->record[end].state == CRAIL_RUN_FREE)
        granules += free_list_remove(r, end);
    if (first > 0) {
        const struct crail_run_record *left = &r->record[first - 1];
        if (left->state == CRAIL_RUN_FREE || left->state == CRAIL_RUN_FREE_END) {
            first -= left->len;
            granules += free_list_remove(r, first);
        }
    }
    free_list_add(r, first, granules);
}

/* ---- opening ------------------------------------------------------------------- */

static void *zeroed_lazily(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

int crail_region_open(struct crail_region *r, uint32_t granules, const uint64_t *generations, bool is_unknown) {
    *r = (struct crail_region){.granules = granules};
    r->record = zeroed_lazily((size_t)granules * sizeof(*r->record));
    if (!r->record)
        return -ENOMEM;
    r->generation = zeroed_lazily((size_t)granules * sizeof(*r->generation));
    if (!r->generation) {
        munmap(r->record, (size_t)granules * sizeof(*r->record));
        return -ENOMEM;
    }
    if (generations)
        memcpy(r->generation, generations, (size_t)granules * sizeof(*r->generation));
    if (!is_unknown)
        free_list_add(r, 0, granules);
    return 0;
}
