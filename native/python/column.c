/* What a reader of a shuffle does with a page of a column (CRAIL_OP_COLUMN): segments() makes views of all that is
 * within reach without a request, gather() reads what is not, many ranges of many values at once. */
#include <stdio.h>
#include <string.h>

#include "base/partitions.h"
#include "door.h"

#define END_BYTES sizeof(struct crail_partitions_end)

/* ---- a page ------------------------------------------------------------------ */

struct entry {
    struct crail_column head;
    const char *name;
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    const uint8_t *data;
};

/* The entry at byte *at of the page, which moves behind it. False: it is none. */
static bool next_entry(const uint8_t *page, size_t size, size_t *at, struct entry *e) {
    const uint8_t *p = page + *at;
    size_t left = size - *at;
    if (left < sizeof(e->head))
        return false;
    memcpy(&e->head, p, sizeof(e->head));
    size_t name = crail_pad8(e->head.name_len), extents = e->head.extents * sizeof(e->extents[0]);
    left -= sizeof(e->head);
    if (!e->head.name_len || e->head.extents > CRAIL_EXTENTS_MAX || e->head.data_len > left ||
        name + extents + crail_pad8(e->head.data_len) > left)
        return false;
    p += sizeof(e->head);
    e->name = (const char *)p;
    memcpy(e->extents, p + name, extents);
    e->data = p + name + extents;
    *at += sizeof(e->head) + name + extents + crail_pad8(e->head.data_len);
    return true;
}

/* Is it the output of this map: its number in ten digits? */
static bool is_of_map(const struct entry *e, uint64_t map) {
    char digits[24];
    int n = snprintf(digits, sizeof(digits), "%010llu", (unsigned long long)map);
    return e->head.name_len == n && memcmp(e->name, digits, (size_t)n) == 0;
}

/* ---- what shared memory reaches -------------------------------------------------- */

/* What is asked of entries, and what became of them. */
struct column {
    uint32_t partition, partitions;
    PyObject *out;  /* list */
    Py_ssize_t far; /* so many of it are no views */
};

/* 0: shared memory reaches all of it; 1: it does not; -1. */
static int reach(struct call *c, const struct entry *e) {
    for (uint32_t i = 0; i < e->head.extents; i++) {
        uint32_t server = e->extents[i].server;
        if (T->client_find(c->client, server))
            continue;
        if (T->lane_has_data(c->lane, server))
            return 1;
        if (call_attach(c, server, CRAIL_NEED_SERVER))
            return -1;
        if (!T->client_find(c->client, server))
            return 1;
    }
    return 0;
}

static int fetch(struct call *c, const struct entry *e, uint64_t at, void *to, uint64_t n) {
    return call_transfer(c, e->extents, e->head.extents, e->head.size, at, n, to, false);
}

static PyObject *view_of_copy(const void *data, uint64_t n, uint64_t version) {
    PyObject *b = PyBytes_FromStringAndSize(data, (Py_ssize_t)n);
    return b ? view_from_bytes(b, version, false) : NULL;
}

/* Appends a view of bytes [from, to) of the value: in place if they lie in one extent and a use slot is free, else of a
 * copy. 0; 1: the location is out of date; -1. */
static int append_view(struct call *c, const struct entry *e, uint64_t from, uint64_t to, PyObject *out) {
    struct crail_range value = {e->extents, e->head.extents, e->head.size};
    struct crail_pin pin;
    uint64_t within, n = to - from;
    if (!n)
        return call_append(out, view_of_copy("", 0, e->head.version));
    const struct crail_extent *x = &e->extents[T->range_locate(&value, from, &within)];
    int rc = T->pin_take(c->client, x, within + n, &pin); /* refuses what goes beyond the extent */
    if (rc == -CRAIL_E_STALE_LOCATION)
        return 1;
    if (rc == 0) {
        pin.data += within;
        return call_append(out, view_from_pin(&pin, n, e->head.version, false));
    }
    PyObject *b = call_new_bytes(n);
    if (!b)
        return -1;
    rc = fetch(c, e, from, PyBytes_AsString(b), n);
    if (rc == 0)
        return call_append(out, view_from_bytes(b, e->head.version, false));
    Py_DECREF(b);
    return rc;
}

/* Appends a view for each run of a value in shared memory. 0; 1: something is wrong with it, and what was appended is
 * gone again; -1. */
static int append_views(struct call *c, const struct entry *e, const struct column *col) {
    uint8_t end[END_BYTES], pair[2 * sizeof(uint64_t)];
    struct crail_partitions p;
    Py_ssize_t before = PyList_Size(col->out);
    if (e->head.size < END_BYTES)
        return 1;
    int rc = fetch(c, e, e->head.size - END_BYTES, end, END_BYTES);
    if (!rc && (!crail_partitions_read(end, e->head.size, &p) || p.count != col->partitions))
        rc = 1;
    for (uint32_t run = 0; !rc && run < p.runs; run++) {
        uint64_t from, to;
        rc = fetch(c, e, crail_partitions_entry(&p, run, col->partition), pair, sizeof(pair));
        if (!rc)
            rc = crail_partitions_bounds(&p, pair, &from, &to) ? append_view(c, e, from, to, col->out) : 1;
    }
    if (rc > 0 && PyList_SetSlice(col->out, before, PyList_Size(col->out), NULL))
        return -1;
    return rc;
}

/* ---- segments -------------------------------------------------------------------- */

static PyObject *name_of(const struct entry *e) {
    return PyUnicode_DecodeUTF8(e->name, e->head.name_len, "replace");
}

/* What Python is to look after: (name, version, size, kind, partitions, lost server, extents). */
static PyObject *entry_tuple(const struct entry *e) {
    PyObject *name = name_of(e);
    if (!name)
        return NULL;
    return Py_BuildValue("NKKiIIy#", name, (unsigned long long)e->head.version, (unsigned long long)e->head.size,
                         (int)e->head.kind, e->head.partitions, e->head.server, (const char *)e->extents,
                         (Py_ssize_t)(e->head.extents * sizeof(e->extents[0])));
}

static int append_entry(struct call *c, const struct entry *e, struct column *col) {
    bool is_leaf = e->head.kind == CRAIL_KIND_FILE && !e->head.server;
    if (is_leaf && !e->head.extents && e->head.partitions == col->partitions)
        return call_append(col->out, view_of_copy(e->data, e->head.data_len, e->head.version));
    if (is_leaf && e->head.extents) {
        int rc = reach(c, e);
        if (!rc)
            rc = append_views(c, e, col);
        if (rc <= 0)
            return rc;
    }
    col->far++;
    return call_append(col->out, entry_tuple(e));
}

/* Whatever is raised is about this child. */
static void name_error(PyObject *directory, const struct entry *e) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *name = name_of(e);
    PyObject *path = name ? PyUnicode_FromFormat("%U/%U", directory, name) : NULL;
    if (!path || !value || PyObject_SetAttrString(value, "path", path))
        PyErr_Clear(); /* one that takes no path says what it has to say without */
    Py_XDECREF(name);
    Py_XDECREF(path);
    PyErr_Restore(type, value, trace);
}

struct name {
    const char *text;
    Py_ssize_t len;
};

/* From byte *at of the page on, up to `max` entries, as long as they are of the maps `expected`, ... (negative: of
 * whichever). How many, or -1. */
static Py_ssize_t take_entries(struct call *c, const Py_buffer *page, size_t *at, Py_ssize_t max, int64_t expected,
                               struct column *col, struct name *last) {
    struct entry e;
    Py_ssize_t done = 0;
    for (; done < max && *at < (size_t)page->len; done++) {
        size_t next = *at;
        if (!next_entry(page->buf, (size_t)page->len, &next, &e))
            return call_fail(c, CRAIL_E_PROTOCOL, 0);
        if (expected >= 0 && !is_of_map(&e, (uint64_t)(expected + done)))
            break;
        if (append_entry(c, &e, col)) {
            name_error(c->key, &e);
            return -1;
        }
        *at = next;
        *last = (struct name){e.name, e.head.name_len};
    }
    return done;
}

/* segments(path, page, at, max, partition, partitions, expected, timeout) -> (list, at, done, name, far): of up to
 * `max` entries a view for each run, or a tuple where that needs requests; where the next entry begins; how many
 * entries were done, and the name of the last, as bytes; how many tuples there are. */
PyObject *client_segments(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    struct column col = {0};
    struct name last = {"", 0};
    Py_buffer page;
    if (!call_arguments("segments", n, 8) || call_set_path(&c, args[0]))
        return NULL;
    size_t at = PyLong_AsSize_t(args[2]);
    Py_ssize_t max = PyLong_AsSsize_t(args[3]), done = -1;
    col.partition = (uint32_t)PyLong_AsUnsignedLong(args[4]);
    col.partitions = (uint32_t)PyLong_AsUnsignedLong(args[5]);
    int64_t expected = PyLong_AsLongLong(args[6]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[1], &page, PyBUF_C_CONTIGUOUS))
        return NULL;
    col.out = PyList_New(0);
    if (at > (size_t)page.len || col.partition >= col.partitions) {
        PyErr_SetString(PyExc_ValueError, "no place in the page, or no partition");
    } else if (col.out && !call_begin(&c, c.self, args[7], 0)) {
        done = take_entries(&c, &page, &at, max, expected, &col, &last);
        if (c.lane)
            call_end(&c);
    }
    PyObject *result =
        done < 0 ? NULL : Py_BuildValue("Onny#n", col.out, (Py_ssize_t)at, done, last.text, last.len, col.far);
    Py_XDECREF(col.out);
    PyBuffer_Release(&page);
    return result;
}

/* ---- gather ---------------------------------------------------------------------- */

#define ASKED_MAX 256u /* requests on their way: few enough that a server always takes them in */
#define ASKED_BYTES_MAX (48u << 20)

/* One of the ranges: (extents, size, offset, buffer). */
struct range {
    PyObject *tuple;
    Py_buffer buffer;
    struct crail_io io;
};

/* 0, or -1. It is to be released in both cases. */
static int range_parse(struct call *c, PyObject *tuple, struct range *r) {
    const char *extents;
    Py_ssize_t n;
    PyObject *buffer;
    unsigned long long size, offset;
    *r = (struct range){.tuple = Py_NewRef(tuple)};
    if (!PyArg_ParseTuple(tuple, "y#KKO", &extents, &n, &size, &offset, &buffer) ||
        PyObject_GetBuffer(buffer, &r->buffer, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS))
        return -1;
    r->io = (struct crail_io){.extents = (const void *)extents,
                              .extents_count = (uint32_t)((size_t)n / sizeof(struct crail_extent)),
                              .value_bytes = size,
                              .offset = offset,
                              .length = (uint64_t)r->buffer.len,
                              .buffer = r->buffer.buf,
                              .whole = (uint64_t)r->buffer.len};
    if (offset <= size && r->io.length <= size - offset && (size_t)n % sizeof(struct crail_extent) == 0)
        return call_io_prepare(c, &r->io);
    PyErr_SetString(PyExc_ValueError, "the range is not within the value");
    return -1;
}

static void range_release(struct range *r) {
    if (r->buffer.obj)
        PyBuffer_Release(&r->buffer);
    Py_XDECREF(r->tuple);
}

/* Asks for what may come over TCP of ranges up to n, in order, and as much as may be on its way at once: of those
 * before *asked all was asked for, but of the last one perhaps. `at` is the next that is to come. After a failure all
 * of them are to be asked for again. */
static void ask_ahead(struct range *r, Py_ssize_t at, Py_ssize_t *asked, Py_ssize_t n) {
    uint64_t bytes = 0;
    for (Py_ssize_t i = at; i < *asked; i++)
        bytes += r[i].io.length;
    int rc = *asked > at ? T->io_ask(&r[*asked - 1].io) : 1;
    while (rc == 1 && *asked < n && *asked - at < (Py_ssize_t)ASKED_MAX && bytes < ASKED_BYTES_MAX) {
        bytes += r[*asked].io.length;
        rc = T->io_ask(&r[(*asked)++].io);
    }
    if (rc >= 0)
        return;
    while (*asked > at)
        T->io_restart(&r[--*asked].io);
}

/* 0; 1: a location is out of date; -1. */
static int gather_ranges(struct call *c, struct range *r, Py_ssize_t n) {
    int rc = 0;
    for (Py_ssize_t at = 0, asked = 0; !rc && at < n; at++) {
        asked = asked < at ? at : asked;
        if (asked < n && asked - at < (Py_ssize_t)ASKED_MAX / 2) {
            Py_BEGIN_ALLOW_THREADS ask_ahead(r, at, &asked, n);
            Py_END_ALLOW_THREADS
        }
        rc = call_io_run(c, &r[at].io);
        while (r[at].io.was_restarted && asked > at + 1) /* their connection has ended, too */
            T->io_restart(&r[--asked].io);
    }
    return rc;
}

/* gather(path, list of (extents, size, offset, buffer), timeout) -> None: fills every buffer. Raises StaleLocationError
 * where one of the locations is out of date. */
PyObject *client_gather(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    if (!call_arguments("gather", n, 3) || call_set_path(&c, args[0]))
        return NULL;
    Py_ssize_t count = PyList_Size(args[1]), parsed = 0;
    struct range *r = count < 0 ? NULL : PyMem_Malloc(((size_t)count + 1) * sizeof(*r));
    if (!r)
        return count < 0 ? NULL : PyErr_NoMemory();
    int rc = call_begin(&c, c.self, args[2], 0);
    if (!rc) {
        while (!rc && parsed < count && parsed < PyList_Size(args[1])) {
            rc = range_parse(&c, PyList_GetItem(args[1], parsed), &r[parsed]);
            parsed++;
        }
        if (!rc)
            rc = gather_ranges(&c, r, parsed);
        if (c.lane)
            call_end(&c);
    }
    while (parsed)
        range_release(&r[--parsed]);
    PyMem_Free(r);
    if (rc > 0)
        call_fail(&c, CRAIL_E_STALE_LOCATION, 0);
    if (rc)
        return NULL;
    Py_RETURN_NONE;
}
