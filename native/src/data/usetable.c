/* Use tables: made, adopted and dropped. use.h has the layout and the argument.
 *
 * Each table is open twice. The description handed to the client holds flock(LOCK_SH); ours holds nothing, and asks
 * for LOCK_EX without waiting: the answer no means that a process with the other description still runs, a forked
 * child included. (A mapping is a use of the description: closing the descriptor alone gives nothing up.) The client
 * writes into the table as it likes, so nothing in it is believed.
 *
 * It may also truncate the file, so the server never maps it: the mapping would be a SIGBUS, the read is a short one,
 * and what a client cut away of its table was empty. A look is: generations raised, seq_cst fence, pread. On tmpfs
 * pread copies from the very page that the client has mapped, after the fence like any load; so a slot that was set
 * before its holder's fence and before ours is in the copy. Only a slot that changes during the copy may be seen
 * half: one just being set is refused by the new generation, one just being cleared is no longer in use. */
#include "storage.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"

#define ORPHAN_LOOK_NS 1000000000u /* how often to look at orphans that stand in nobody's way */
#define SLOTS_FIRST 60u            /* so many slots are read with the head of a table */

static bool held_by_someone(int fd) {
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return false;
    return true; /* EWOULDBLOCK; on any other error the safe answer is the same */
}

static void entry_free(struct crail_use_entry *e) {
    if (e->fd >= 0)
        close(e->fd);
    free(e->path);
}

/* ---- on the loop ------------------------------------------------------------ */

static int on_use_add(struct crail_storage *s, void *arg) {
    struct crail_use_entry *e = arg;
    if (s->table_count == s->table_cap) {
        uint32_t cap = s->table_cap ? s->table_cap * 2 : 16;
        struct crail_use_entry *all = realloc(s->tables, cap * sizeof(*all));
        if (!all)
            return -ENOMEM;
        s->tables = all;
        s->table_cap = cap;
    }
    e->handle = s->next_handle++;
    if (e->orphan && s->orphan_count++ == 0)
        s->orphans_due_ns = crail_clock_ns() + ORPHAN_LOOK_NS;
    s->tables[s->table_count++] = *e;
    crail_loop_arm(s);
    return 0;
}

/* The holder is gone: so are its slots. */
static void drop(struct crail_storage *s, uint32_t i) {
    struct crail_use_entry *e = &s->tables[i];
    assert(e->orphan && s->orphan_count > 0);
    s->orphan_count--;
    unlink(e->path);
    entry_free(e);
    s->tables[i] = s->tables[--s->table_count];
}

uint32_t crail_use_probe_orphans(struct crail_storage *s) {
    for (uint32_t i = s->table_count; s->orphan_count && i-- > 0;)
        if (s->tables[i].orphan && !held_by_someone(s->tables[i].fd))
            drop(s, i);
    s->orphans_due_ns = crail_clock_ns() + ORPHAN_LOOK_NS;
    return s->orphan_count;
}

static int on_use_closed(struct crail_storage *s, void *arg) {
    uint32_t handle = *(const uint32_t *)arg;
    for (uint32_t i = 0; i < s->table_count; i++) {
        struct crail_use_entry *e = &s->tables[i];
        if (e->handle != handle)
            continue;
        if (!e->orphan && s->orphan_count++ == 0)
            s->orphans_due_ns = crail_clock_ns() + ORPHAN_LOOK_NS;
        e->orphan = true;
        if (!held_by_someone(e->fd))
            drop(s, i);
        crail_loop_arm(s);
        return 0;
    }
    return -ENOENT;
}

int crail_storage_use_closed(crail_storage *s, uint32_t handle) {
    return crail_storage_call(s, on_use_closed, &handle);
}

/* ---- the look at the slots ---------------------------------------------------- */

/* Reads [from, to) of the file into the same place of the copy. The part that is there, or -errno. */
static ssize_t read_part(int fd, struct crail_use_table *copy, size_t from, size_t to) {
    size_t at = from;
    while (at < to) {
        ssize_t n = pread(fd, (uint8_t *)copy + at, to - at, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        at += (size_t)n;
    }
    return (ssize_t)at;
}

static size_t end_of_slot(uint32_t slots) {
    return offsetof(struct crail_use_table, slot) + slots * sizeof(uint64_t);
}

/* How many slots are there to be seen in the copy, or -errno. Most tables have few: one call reads those. */
static int read_slots(int fd, struct crail_use_table *copy) {
    ssize_t have = read_part(fd, copy, 0, end_of_slot(SLOTS_FIRST));
    if (have < (ssize_t)end_of_slot(0))
        return have < 0 ? (int)have : 0;
    uint32_t high = atomic_load_explicit(&copy->high_water, memory_order_relaxed);
    if (high > CRAIL_USE_SLOTS)
        high = CRAIL_USE_SLOTS; /* the client writes here what it likes */
    if (high > SLOTS_FIRST && have == (ssize_t)end_of_slot(SLOTS_FIRST))
        have = read_part(fd, copy, (size_t)have, end_of_slot(high));
    if (have < 0)
        return (int)have;
    uint32_t whole = (uint32_t)(((size_t)have - end_of_slot(0)) / sizeof(uint64_t));
    return (int)(whole < high ? whole : high);
}

bool crail_use_tables_see(struct crail_storage *s) {
    for (uint32_t i = 0; i < s->table_count; i++) {
        int slots = read_slots(s->tables[i].fd, s->table_copy);
        if (slots < 0)
            return false;
        for (int k = 0; k < slots; k++) {
            uint64_t word = atomic_load_explicit(&s->table_copy->slot[k], memory_order_relaxed);
            if (word)
                crail_retire_see(s, word);
        }
    }
    atomic_thread_fence(memory_order_acquire); /* a slot seen empty: what its holder did before is done */
    return true;
}

/* ---- on the caller's thread ---------------------------------------------------- */

static int fill_new_table(int fd, uint64_t session) {
    struct {
        uint64_t magic, session;
        uint32_t high_water, slots;
    } head = {CRAIL_USE_MAGIC, session, 0, CRAIL_USE_SLOTS};
    _Static_assert(sizeof(head) == offsetof(struct crail_use_table, reserved), "the beginning of a table");
    if (ftruncate(fd, sizeof(struct crail_use_table)))
        return -errno;
    if (fallocate(fd, 0, 0, sizeof(struct crail_use_table)) && errno != EOPNOTSUPP)
        return -errno;
    ssize_t n = pwrite(fd, &head, sizeof(head), 0);
    return n == (ssize_t)sizeof(head) ? 0 : n < 0 ? -errno : -EIO;
}

/* The description for the client: of the very file at hand, and locked. */
static int open_for_client(const char *path, int own_fd) {
    struct stat ours, theirs;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    int rc = 0;
    if (fstat(own_fd, &ours) || fstat(fd, &theirs) || flock(fd, LOCK_SH | LOCK_NB))
        rc = -errno;
    else if (ours.st_dev != theirs.st_dev || ours.st_ino != theirs.st_ino)
        rc = -ESTALE;
    if (rc) {
        close(fd);
        return rc;
    }
    return fd;
}

int crail_storage_use_create(crail_storage *s, const char *path, uint64_t session, uint32_t *handle) {
    struct crail_use_entry e = {.path = strdup(path), .fd = -1};
    if (!e.path)
        return -ENOMEM;
    int client_fd = -1, rc;
    e.fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (e.fd < 0) {
        rc = -errno;
        entry_free(&e);
        return rc;
    }
    rc = fill_new_table(e.fd, session);
    if (rc)
        goto out;
    rc = client_fd = open_for_client(path, e.fd);
    if (rc < 0)
        goto out;
    rc = crail_storage_call(s, on_use_add, &e);
    if (rc)
        goto out;
    *handle = e.handle;
    return client_fd;
out:
    if (client_fd >= 0)
        close(client_fd);
    unlink(path);
    entry_free(&e);
    return rc;
}

static int check_left_table(int fd) {
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    if (!S_ISREG(st.st_mode) || st.st_size != (off_t)sizeof(struct crail_use_table))
        return -EINVAL;
    uint64_t magic = 0;
    ssize_t n = pread(fd, &magic, sizeof(magic), 0);
    if (n < 0)
        return -errno;
    return n == (ssize_t)sizeof(magic) && magic == CRAIL_USE_MAGIC ? 0 : -EINVAL;
}

int crail_storage_use_adopt(crail_storage *s, const char *path) {
    struct crail_use_entry e = {.path = strdup(path), .fd = -1, .orphan = true};
    if (!e.path)
        return -ENOMEM;
    int rc;
    e.fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (e.fd < 0) {
        rc = errno == ELOOP ? -EINVAL : -errno;
        goto out;
    }
    rc = check_left_table(e.fd);
    if (rc)
        goto out;
    if (!held_by_someone(e.fd)) {
        rc = unlink(path) ? -errno : 1;
        goto out;
    }
    rc = crail_storage_call(s, on_use_add, &e);
    if (rc == 0)
        return 0;
out:
    entry_free(&e);
    return rc;
}

void crail_use_tables_free(struct crail_storage *s) {
    for (uint32_t i = 0; i < s->table_count; i++)
        entry_free(&s->tables[i]);
    free(s->tables);
    s->tables = NULL;
    s->table_count = s->table_cap = s->orphan_count = 0;
}
