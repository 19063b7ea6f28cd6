/* The arena: see arena.h. */
#include "meta/arena.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GROW_BYTES (16ull << 20)
#define WHOLE CRAIL_ARENA_CLASSES /* the class of records that fill their chunk */

/* Classes are numbered from 1, so that 0 can mean a free chunk. */
static uint32_t class_of(uint32_t bytes) {
    if (bytes <= 1024)
        return (bytes + 15) / 16;
    if (bytes <= 2048)
        return 64 + (bytes - 1024 + 127) / 128;
    return 72 + (bytes - 2048 + 255) / 256;
}

static uint32_t class_bytes(uint32_t class) {
    if (class <= 64)
        return class * 16;
    if (class <= 72)
        return 1024 + (class - 64) * 128;
    return 2048 + (class - 72) * 256;
}

/* 4096 is class 80 == WHOLE by that count, so whole chunks are one further. */
_Static_assert(CRAIL_ARENA_CLASSES == 80, "class_of");

static uint32_t class_asked(uint32_t bytes) {
    assert(bytes > 0 && (bytes <= CRAIL_ARENA_SMALL_MAX || bytes == CRAIL_ARENA_CHUNK));
    return bytes == CRAIL_ARENA_CHUNK ? WHOLE + 1 : class_of(bytes);
}

static uint32_t record_bytes(uint32_t class) {
    return class > WHOLE ? CRAIL_ARENA_CHUNK : class_bytes(class);
}

static uint32_t chunk_records(uint32_t class) {
    return CRAIL_ARENA_CHUNK / record_bytes(class);
}

uint32_t crail_arena_cost(uint32_t bytes) {
    return record_bytes(class_asked(bytes));
}

int crail_arena_open(struct crail_arena *a, uint64_t bytes_max, uint32_t head_bytes) {
    int rc;
    uint32_t head = 1 + (head_bytes + CRAIL_ARENA_CHUNK - 1) / CRAIL_ARENA_CHUNK;
    if (bytes_max > CRAIL_ARENA_BYTES_MAX)
        bytes_max = CRAIL_ARENA_BYTES_MAX;
    memset(a, 0, sizeof(*a));
    a->chunks_max = (uint32_t)(bytes_max / CRAIL_ARENA_CHUNK);
    if (a->chunks_max < head + 1)
        a->chunks_max = head + 1;
    a->map_bytes = (uint64_t)a->chunks_max * CRAIL_ARENA_CHUNK;
    a->fd = memfd_create("crail-meta", MFD_CLOEXEC);
    if (a->fd < 0)
        return -errno;
    a->base = mmap(NULL, a->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, a->fd, 0);
    if (a->base == MAP_FAILED) {
        rc = -errno;
        goto out_fd;
    }
    a->chunk = mmap(NULL, a->chunks_max * sizeof(*a->chunk), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->chunk == MAP_FAILED) {
        rc = -errno;
        goto out_map;
    }
    a->file_bytes = (uint64_t)head * CRAIL_ARENA_CHUNK;
    if (ftruncate(a->fd, (off_t)a->file_bytes)) {
        rc = -errno;
        goto out_chunk;
    }
    a->chunks = head;
    a->bytes_reserved = a->file_bytes;
    return 0;

out_chunk:
    munmap(a->chunk, a->chunks_max * sizeof(*a->chunk));
out_map:
    munmap(a->base, a->map_bytes);
out_fd:
    close(a->fd);
    return rc;
}

void crail_arena_close(struct crail_arena *a) {
    munmap(a->chunk, a->chunks_max * sizeof(*a->chunk));
    munmap(a->base, a->map_bytes);
    close(a->fd);
}

static void list_push(struct crail_arena *a, uint32_t *head, uint32_t i) {
    a->chunk[i].prev = 0;
    a->chunk[i].next = *head;
    if (*head)
        a->chunk[*head].prev = i;
    *head = i;
}

static void list_remove(struct crail_arena *a, uint32_t *head, uint32_t i) {
    struct crail_arena_chunk *c = &a->chunk[i];
    if (c->prev)
        a->chunk[c->prev].next = c->next;
    else
        *head = c->next;
    if (c->next)
        a->chunk[c->next].prev = c->prev;
}

/* A chunk from the free ones or from the end of the file; 0 if there is none. */
static uint32_t chunk_take(struct crail_arena *a) {
    uint32_t i = a->free_chunks;
    if (i) {
        list_remove(a, &a->free_chunks, i);
        return i;
    }
    if (a->chunks == a->chunks_max)
        return 0;
    uint64_t end = (uint64_t)(a->chunks + 1) * CRAIL_ARENA_CHUNK;
    if (end > a->file_bytes) {
        uint64_t bytes = end + GROW_BYTES < a->map_bytes ? end + GROW_BYTES : a->map_bytes;
        if (ftruncate(a->fd, (off_t)bytes))
            return 0;
        a->file_bytes = bytes;
    }
    a->bytes_reserved += CRAIL_ARENA_CHUNK;
    return a->chunks++;
}

static uint32_t *partial_list(struct crail_arena *a, uint32_t class) {
    assert(class >= 1 && class <= WHOLE + 1);
    return &a->partial[class - 1];
}

static crail_ref chunk_ref(uint32_t i) {
    return i * (CRAIL_ARENA_CHUNK / 16);
}

static uint32_t chunk_start(struct crail_arena *a, uint32_t class) {
    uint32_t i = chunk_take(a);
    if (!i)
        return 0;
    a->chunk[i] = (struct crail_arena_chunk){.class = class};
    list_push(a, partial_list(a, class), i);
    return i;
}

crail_ref crail_arena_alloc(struct crail_arena *a, uint32_t bytes) {
    uint32_t class = class_asked(bytes);
    uint32_t *list = partial_list(a, class);
    uint32_t i = *list ? *list : chunk_start(a, class);
    if (!i)
        return 0;
    struct crail_arena_chunk *c = &a->chunk[i];
    crail_ref ref = c->free;
    if (ref)
        memcpy(&c->free, crail_arena_at(a, ref), sizeof(c->free));
    else
        ref = chunk_ref(i) + c->fresh++ * (record_bytes(class) / 16);
    c->used++;
    if (!c->free && c->fresh == chunk_records(class))
        list_remove(a, list, i);
    a->bytes_used += record_bytes(class);
    return ref;
}

void crail_arena_free(struct crail_arena *a, crail_ref ref, uint32_t bytes) {
    uint32_t class = class_asked(bytes);
    uint32_t i = ref / (CRAIL_ARENA_CHUNK / 16);
    struct crail_arena_chunk *c = &a->chunk[i];
    assert(i < a->chunks && c->class == class && c->used);
    uint32_t *list = partial_list(a, class);
#ifdef __SANITIZE_ADDRESS__
    memset(crail_arena_at(a, ref), 0xdd, record_bytes(class)); /* a use after this free shall show */
#endif
    if (!c->free && c->fresh == chunk_records(class))
        list_push(a, list, i);
    memcpy(crail_arena_at(a, ref), &c->free, sizeof(c->free));
    c->free = ref;
    c->used--;
    a->bytes_used -= record_bytes(class);
    /* The last partial chunk of a class stays, so that one record to and fro does not move chunks. */
    if (c->used == 0 && (*list != i || c->next)) {
        list_remove(a, list, i);
        c->class = 0;
        list_push(a, &a->free_chunks, i);
    }
}
