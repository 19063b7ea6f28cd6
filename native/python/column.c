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

static int append_owned(PyObject *list, PyObject *item) {
    if (!item)
        return -1;
    int rc = PyList_Append(list, item);
    Py_DECREF(item);
    return rc;
}

/* ---- what shared memory reaches -------------------------------------------------- */

/* What is asked of an entry. */
struct column {
    uint32_t partition, partitions;
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
        return append_owned(out, view_of_copy("", 0, e->head.version));
    const struct crail_extent *x = &e->extents[T->range_locate(&value, from, &within)];
    int rc = T->pin_take(c->client, x, within + n, &pin); /* refuses what goes beyond the extent */
    if (rc == -CRAIL_E_STALE_LOCATION)
        return 1;
    if (rc == 0) {
        pin.data += within;
        return append_owned(out, view_from_pin(&pin, n, e->head.version, false));
    }
    PyObject *b = call_new_bytes(n);
    if (!b)
        return -1;
    rc = fetch(c, e, from, PyBytes_AsString(b), n);
    if (rc == 0)
        return append_owned(out, view_from_bytes(b, e->head.version, false));
    Py_DECREF(b);
    return rc;
}

/* Appends a view for each run of a value in shared memory. 0; 1: something is wrong with it, and what was appended is
 * gone again; -1. */
static int append_views(struct call *c, const struct entry *e, const struct column *col, PyObject *out) {
    uint8_t end[END_BYTES], pair[2 * sizeof(uint64_t)];
    struct crail_partitions p;
    Py_ssize_t before = PyList_Size(out);
    if (e->head.size < END_BYTES)
        return 1;
    int rc = fetch(c, e, e->head.size - END_BYTES, end, END_BYTES);
    if (!rc && (!crail_partitions_read(end, e->head.size, &p) || p.count != col->partitions))
        rc = 1;
    for (uint32_t run = 0; !rc && run < p.runs; run++) {
        uint64_t from, to;
        rc = fetch(c, e, crail_partitions_entry(&p, run, col->partition), pair, sizeof(pair));
        if (!rc)
            rc = crail_partitions_bounds(&p, pair, &from, &to) ? append_view(c, e, from, to, out) : 1;
    }
    if (rc > 0 && PyList_SetSlice(out, before, PyList_Size(out), NULL))
        return -1;
    return rc;
}

/* ---- segments -------------------------------------------------------------------- */

/* What Python is to look after: (name, version, size, kind, partitions, lost server, extents). */
static PyObject *entry_tuple(const struct entry *e) {
    return Py_BuildValue("s#KKiIIy#", e->name, (Py_ssize_t)e->head.name_len, (unsigned long long)e->head.version,
                         (unsigned long long)e->head.size, (int)e->head.kind, e->head.partitions, e->head.server,
                         (const char *)e->extents, (Py_ssize_t)(e->head.extents * sizeof(e->extents[0])));
}

static int append_entry(struct call *c, const struct entry *e, const struct column *col, PyObject *out) {
    bool is_leaf = e->head.kind == CRAIL_KIND_FILE && !e->head.server;
    if (is_leaf && !e->head.extents && e->head.partitions == col->partitions)
        return append_owned(out, view_of_copy(e->data, e->head.data_len, e->head.version));
    if (is_leaf && e->head.extents) {
        int rc = reach(c, e);
        if (!rc)
            rc = append_views(c, e, col, out);
        if (rc <= 0)
            return rc;
    }
    return append_owned(out, entry_tuple(e));
}

/* Whatever is raised is about this child. */
static void name_error(PyObject *directory, const struct entry *e) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *name = PyUnicode_DecodeUTF8(e->name, e->head.name_len, "replace");
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
                               const struct column *col, PyObject *out, struct name *last) {
    struct entry e;
    Py_ssize_t done = 0;
    for (; done < max && *at < (size_t)page->len; done++) {
        size_t next = *at;
        if (!next_entry(page->buf, (size_t)page->len, &next, &e))
            return call_fail(c, CRAIL_E_PROTOCOL, 0);
        if (expected >= 0 && !is_of_map(&e, (uint64_t)(expected + done)))
            break;
        if (append_entry(c, &e, col, out)) {
            name_error(c->key, &e);
            return -1;
        }
        *at = next;
        *last = (struct name){e.name, e.head.name_len};
    }
    return done;
}

/* segments(path, page, at, max, partition, partitions, expected, timeout) -> (list, at, done, name): of up to `max`
 * entries a view for each run, or a tuple where that needs requests; where the next entry begins; how many entries
 * were done, and the name of the last, as bytes. */
PyObject *client_segments(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    struct column col;
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
    PyObject *out = PyList_New(0);
    if (at > (size_t)page.len || col.partition >= col.partitions) {
        PyErr_SetString(PyExc_ValueError, "no place in the page, or no partition");
    } else if (out && !call_begin(&c, c.self, args[7], 0)) {
        done = take_entries(&c, &page, &at, max, expected, &col, out, &last);
        if (c.lane)
            call_end(&c);
    }
    PyObject *result = done < 0 ? NULL : Py_BuildValue("Onny#", out, (Py_ssize_t)at, done, last.text, last.len);
    Py_XDECREF(out);
    PyBuffer_Release(&page);
    return result;
}

/* ---- gather ---------------------------------------------------------------------- */

/* One of the ranges: (extents, size, offset, buffer). 0, or -1. */
static int gather_one(struct call *c, PyObject *range) {
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    uint32_t count;
    PyObject *whence, *buffer;
    unsigned long long size, offset;
    Py_buffer b;
    if (!PyArg_ParseTuple(range, "OKKO", &whence, &size, &offset, &buffer) ||
        call_parse_extents(whence, extents, &count) ||
        PyObject_GetBuffer(buffer, &b, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS))
        return -1;
    int rc = -1;
    if (offset > size || (uint64_t)b.len > size - offset)
        PyErr_SetString(PyExc_ValueError, "the range is not within the value");
    else
        rc = b.len ? call_transfer(c, extents, count, size, offset, (uint64_t)b.len, b.buf, false) : 0;
    PyBuffer_Release(&b);
    return rc > 0 ? call_fail(c, CRAIL_E_STALE_LOCATION, 0) : rc;
}

/* gather(path, list of (extents, size, offset, buffer), timeout) -> None: fills every buffer. Raises StaleLocationError
 * where one of the locations is out of date. */
PyObject *client_gather(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    if (!call_arguments("gather", n, 3) || call_set_path(&c, args[0]))
        return NULL;
    Py_ssize_t count = PyList_Size(args[1]);
    if (count < 0 || call_begin(&c, c.self, args[2], 0))
        return NULL;
    int rc = 0;
    for (Py_ssize_t i = 0; !rc && i < count && i < PyList_Size(args[1]); i++) {
        PyObject *range = Py_NewRef(PyList_GetItem(args[1], i)); /* to attach a server runs Python */
        rc = gather_one(&c, range);
        Py_DECREF(range);
    }
    if (c.lane)
        call_end(&c);
    if (rc)
        return NULL;
    Py_RETURN_NONE;
}
