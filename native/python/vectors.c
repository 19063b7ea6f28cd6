/* get_many, put_many, and the plain call behind everything that is not worth a method of its own. */
#include "door.h"

#define PLAIN_DATA_MAX (128u << 10) /* names, paths, extents, attributes */

/* One of many keys, for its request. One that cannot be a path goes as an empty one: the namenode refuses that among
 * the results of the others. */
static int one_path(struct call *c, PyObject *key) {
    int rc = key ? call_path_of(c, key) : -1;
    if (rc > 0)
        c->path_len = 0;
    return rc < 0 ? -1 : 0;
}

/* The same, for the error that its result is. */
static int name_path(struct call *c, PyObject *key) {
    return !key || call_path_of(c, key) < 0 ? -1 : 0;
}

/* Fills the request with ops for keys[from...] until the list or the frame is full; returns the first left over. */
static Py_ssize_t fill(struct call *c, PyObject *keys, Py_ssize_t from, uint16_t code, uint16_t flags) {
    Py_ssize_t i = from, n = PyList_Size(keys);
    T->lane_begin(c->lane);
    for (; i < n; i++) {
        if (one_path(c, PyList_GetItem(keys, i))) /* kept alive by the list it stands in */
            return -1;
        int rc = call_op(c, code, flags, NULL, 0, 0, 0, 0);
        if (rc < 0)
            return -1;
        if (rc)
            break;
    }
    return i;
}

/* ---- get_many ------------------------------------------------------------ */

/* One result as bytes. None goes to the list and the index to `again` where the caller has to ask once more: the
 * location was out of date. An absent key is None where that was asked for, else an exception object. */
static PyObject *one_value(struct call *c, const struct crail_result *r, const void *data, bool none_if_missing,
                           bool *again) {
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    uint32_t count;
    if (none_if_missing && call_is_absent(r->status))
        return Py_NewRef(Py_None);
    if (r->status)
        return call_error(c, r->status, r->server);
    if (r->flags & CRAIL_RESF_INLINE)
        return PyBytes_FromStringAndSize(data, r->data_len);
    if (call_extents(c, r, data, extents, &count))
        return NULL;
    PyObject *b = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)r->size);
    if (!b)
        return NULL;
    int rc = call_transfer(c, extents, count, r->size, 0, r->size, PyBytes_AsString(b), false);
    if (rc == 0)
        return b;
    Py_DECREF(b);
    if (rc < 0)
        return NULL;
    *again = true;
    return Py_NewRef(Py_None);
}

static int take_values(struct call *c, PyObject *keys, Py_ssize_t from, Py_ssize_t to, PyObject *out, PyObject *again,
                       PyObject *delivered, bool none_if_missing) {
    const void *data;
    for (Py_ssize_t i = from; i < to; i++) {
        bool is_again = false;
        const struct crail_result *r = call_result(c, &data);
        if (!r)
            return -1;
        if (!(r->flags & CRAIL_RESF_INLINE) && name_path(c, PyList_GetItem(keys, i)))
            return -1;
        PyObject *value = one_value(c, r, data, none_if_missing, &is_again);
        if (!value || PyList_SetItem(out, i, value))
            return -1;
        if (is_again && call_append(again, PyLong_FromSsize_t(i)))
            return -1;
        if (!is_again && (r->flags & CRAIL_RESF_DELETE_AFTER_READ) &&
            call_append(delivered, Py_BuildValue("OK", PyList_GetItem(keys, i), (unsigned long long)r->version)))
            return -1;
    }
    return 0;
}

/* get_many(keys: list, none_if_missing, timeout) -> (values: list of bytes, None or CrailError, indexes to ask again,
 * (key, version) of each value that goes now that it was read) */
PyObject *client_get_many(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {0};
    if (!call_arguments("get_many", n, 3))
        return NULL;
    if (!PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "keys must be a list");
        return NULL;
    }
    bool none_if_missing = PyObject_IsTrue(args[1]) == 1;
    Py_ssize_t total = PyList_Size(args[0]);
    PyObject *out = PyList_New(total), *again = PyList_New(0), *delivered = PyList_New(0);
    int rc = !out || !again || !delivered ? -1 : call_begin(&c, (HotClient *)self, args[2], 0);
    bool is_begun = rc == 0;
    for (Py_ssize_t from = 0; rc == 0 && from < total;) {
        Py_ssize_t to = fill(&c, args[0], from, CRAIL_OP_GET, 0);
        if (to < 0 || call_exchange(&c) || take_values(&c, args[0], from, to, out, again, delivered, none_if_missing))
            rc = -1;
        from = to;
    }
    if (is_begun && c.lane)
        call_end(&c);
    PyObject *result = rc ? NULL : PyTuple_Pack(3, out, again, delivered);
    Py_XDECREF(out);
    Py_XDECREF(again);
    Py_XDECREF(delivered);
    return result;
}

/* ---- put_many ------------------------------------------------------------ */

/* Adds items[i] = (key, data) to the request. 0; 1: the frame is full; 2: too large to travel inline; -1. */
static int add_item(struct call *c, PyObject *items, Py_ssize_t i, uint16_t flags) {
    Py_buffer b;
    PyObject *item = PyList_GetItem(items, i);
    if (!item || !PyTuple_Check(item) || PyTuple_Size(item) != 2) {
        PyErr_SetString(PyExc_TypeError, "put_many takes pairs of key and data");
        return -1;
    }
    if (one_path(c, PyTuple_GetItem(item, 0)) || call_data_of(PyTuple_GetItem(item, 1), &b))
        return -1;
    int rc = (uint64_t)b.len > c->client->options.inline_max
                 ? 2
                 : call_op(c, CRAIL_OP_PUT, flags, b.buf, (uint32_t)b.len, 0, 0, 0);
    PyBuffer_Release(&b);
    return rc;
}

static int take_versions(struct call *c, PyObject *items, Py_ssize_t from, Py_ssize_t to, PyObject *out) {
    const void *data;
    for (Py_ssize_t i = from; i < to; i++) {
        const struct crail_result *r = call_result(c, &data);
        if (!r)
            return -1;
        if (r->status && name_path(c, PyTuple_GetItem(PyList_GetItem(items, i), 0)))
            return -1;
        if (call_append(out, r->status ? call_error(c, r->status, r->server) : PyLong_FromUnsignedLongLong(r->version)))
            return -1;
    }
    return 0;
}

/* The exception that an item no request can carry has raised, for its place among the results; NULL for any other. */
static PyObject *fault_of_item(void) {
    PyObject *type, *value, *trace;
    if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError) &&
        !PyErr_ExceptionMatches(PyExc_BufferError))
        return NULL;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
}

/* put_many(items: list of (key, data), from, out: list, flags, options, timeout) -> int
 * Puts items[from...] in order, appending a version or an exception each to `out`, up to the end or to the first value
 * that is too large for a vector; returns where it stopped. */
PyObject *client_put_many(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {0};
    if (!call_arguments("put_many", n, 6) || call_set_options(&c, args[4]))
        return NULL;
    if (!PyList_Check(args[0]) || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "items and out must be lists");
        return NULL;
    }
    Py_ssize_t at = PyLong_AsSsize_t(args[1]), total = PyList_Size(args[0]);
    uint16_t flags = (uint16_t)PyLong_AsLong(args[3]);
    if (PyErr_Occurred() || call_begin(&c, (HotClient *)self, args[5], 0))
        return NULL;
    int rc = 0;
    while (rc != 2 && rc >= 0 && at < total) {
        Py_ssize_t from = at;
        T->lane_begin(c.lane);
        while (at < total && (rc = add_item(&c, args[0], at, flags)) == 0)
            at++;
        PyObject *fault = rc < 0 ? fault_of_item() : NULL;
        if (rc < 0 && !fault)
            break;
        if (at > from && (call_exchange(&c) || take_versions(&c, args[0], from, at, args[2]))) {
            Py_XDECREF(fault);
            rc = -1;
        } else if (fault) {
            rc = call_append(args[2], fault);
            at++;
        }
    }
    if (c.lane)
        call_end(&c);
    return rc < 0 ? NULL : PyLong_FromSsize_t(at);
}

/* ---- the plain call ------------------------------------------------------ */

static PyObject *result_tuple(const struct crail_result *r, const void *data) {
    return Py_BuildValue("iKKiiiy#", r->status, (unsigned long long)r->version, (unsigned long long)r->size,
                         (int)r->kind, (int)r->flags, (int)r->count, (const char *)data, (Py_ssize_t)r->data_len);
}

/* The arguments of a plain call, taken apart; `data` and `options` are to be released. 0, or -1 and nothing held. */
static int parse_call(struct call *c, PyObject *const *args, struct crail_op *op, Py_buffer *data, Py_buffer *options) {
    op->code = (uint16_t)PyLong_AsLong(args[0]);
    op->flags = (uint16_t)PyLong_AsLong(args[1]);
    op->count = (uint32_t)PyLong_AsUnsignedLong(args[4]);
    op->arg0 = PyLong_AsUnsignedLongLong(args[6]);
    op->arg1 = PyLong_AsUnsignedLongLong(args[7]);
    if (PyErr_Occurred() || (args[2] != Py_None && call_set_path(c, args[2])) || call_data_of(args[3], data))
        return -1;
    if (PyObject_GetBuffer(args[5], options, PyBUF_C_CONTIGUOUS)) {
        PyBuffer_Release(data);
        return -1;
    }
    op->data_len = (uint32_t)data->len;
    if (data->len <= (Py_ssize_t)PLAIN_DATA_MAX &&
        (options->len == 0 || options->len == (Py_ssize_t)sizeof(struct crail_options)))
        return 0;
    PyErr_SetString(PyExc_ValueError, "a plain call has at most 128 KiB of data, and options of 32 bytes or none");
    PyBuffer_Release(options);
    PyBuffer_Release(data);
    return -1;
}

/* call(code, flags, key or None, data, count, options, arg0, arg1, timeout)
 * -> (version, size, kind, flags, count, data); raises */
PyObject *client_call(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    struct crail_op op = {0};
    Py_buffer b, options;
    const void *data;
    PyObject *out = NULL;
    if (!call_arguments("call", n, 9) || parse_call(&c, args, &op, &b, &options))
        return NULL;
    if (!call_begin(&c, c.self, args[8], op.code == CRAIL_OP_SERVER ? 1 : 0)) {
        T->lane_begin(c.lane);
        const struct crail_result *r = NULL;
        if (!call_whole_op(&c, &op, options.len ? options.buf : NULL, b.buf) && !call_exchange(&c))
            r = call_result(&c, &data);
        if (r && r->status)
            call_fail(&c, r->status, r->server);
        else if (r)
            out = Py_BuildValue("KKiiiy#", (unsigned long long)r->version, (unsigned long long)r->size, (int)r->kind,
                                (int)r->flags, (int)r->count, (const char *)data, (Py_ssize_t)r->data_len);
        if (c.lane)
            call_end(&c);
    }
    PyBuffer_Release(&options);
    PyBuffer_Release(&b);
    return out;
}

/* call_many(code, flags, keys: list, timeout) -> list of (status, version, size, kind, flags, count, data) */
PyObject *client_call_many(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {0};
    const void *data;
    if (!call_arguments("call_many", n, 4))
        return NULL;
    uint16_t code = (uint16_t)PyLong_AsLong(args[0]), flags = (uint16_t)PyLong_AsLong(args[1]);
    if (!PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "keys must be a list");
        return NULL;
    }
    if (PyErr_Occurred() || call_begin(&c, (HotClient *)self, args[3], 0))
        return NULL;
    PyObject *out = PyList_New(0);
    int rc = out ? 0 : -1;
    Py_ssize_t total = PyList_Size(args[2]);
    for (Py_ssize_t from = 0; rc == 0 && from < total;) {
        Py_ssize_t to = fill(&c, args[2], from, code, flags);
        rc = to < 0 || call_exchange(&c) ? -1 : 0;
        for (Py_ssize_t i = from; rc == 0 && i < to; i++) {
            const struct crail_result *r = call_result(&c, &data);
            rc = r ? call_append(out, result_tuple(r, data)) : -1;
        }
        from = to;
    }
    if (c.lane)
        call_end(&c);
    if (rc)
        Py_CLEAR(out);
    return out;
}
