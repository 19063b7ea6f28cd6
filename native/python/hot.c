/* The module crailpy._hot: binds itself to the core's table, and offers Client and View. */
#include <string.h>

#include "aiolane.h"
#include "door.h"

const struct crail_hot_table *T;

/* Client(core: int, owner, prefix: bytes, timeout) */
static int client_init(PyObject *self, PyObject *args, PyObject *kw) {
    HotClient *c = (HotClient *)self;
    unsigned long long core;
    PyObject *owner;
    const char *prefix;
    Py_ssize_t prefix_len;
    double timeout;
    if (kw && PyDict_Size(kw)) {
        PyErr_SetString(PyExc_TypeError, "Client takes no keyword arguments");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "KOy#d", &core, &owner, &prefix, &prefix_len, &timeout))
        return -1;
    if (!T || prefix_len >= (Py_ssize_t)CRAIL_PATH_MAX || !(timeout >= 0)) {
        PyErr_SetString(PyExc_ValueError, "unbound core, prefix too long, or negative timeout");
        return -1;
    }
    c->client = (crail_client *)(uintptr_t)core;
    c->owner = owner;
    c->timeout_ns = timeout * 1e9 >= (double)TIMEOUT_NS_MAX ? TIMEOUT_NS_MAX : (int64_t)(timeout * 1e9);
    c->prefix_len = (uint16_t)prefix_len;
    memcpy(c->prefix, prefix, (size_t)prefix_len);
    return 0;
}

static void client_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* rebind(core: int): another core client, after a fork; 0 when the store is closed. */
static PyObject *client_rebind(PyObject *self, PyObject *core) {
    unsigned long long address = PyLong_AsUnsignedLongLong(core);
    if (PyErr_Occurred())
        return NULL;
    ((HotClient *)self)->client = (crail_client *)(uintptr_t)address;
    Py_RETURN_NONE;
}

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))client_##name, METH_FASTCALL, doc}

static PyMethodDef client_methods[] = {
    FAST(get, "get(key, wait_ms, timeout) -> bytes"),
    FAST(get_range, "get_range(key, offset, length, timeout) -> bytes"),
    FAST(get_into, "get_into(key, buffer, offset, timeout) -> int"),
    FAST(get_view, "get_view(key, wait_ms, timeout) -> View"),
    FAST(put, "put(key, data, flags, if_version, options, wait_ms, timeout) -> version"),
    FAST(flush, "flush(extents, timeout): what was written into them is durable, where they lie on a disk"),
    FAST(put_parts, "put_parts(key, list of data, flags, if_version, options, wait_ms, timeout) -> version"),
    FAST(alloc, "alloc(path, sizes, flags, options, like, wait_ms, shown, timeout) -> (extents, status of shown)"),
    {"follower", client_follower, METH_VARARGS,
     "follower(folder, number, version, lanes_opened, names, found, alike) -> Follower"},
    {"pipe", client_pipe, METH_O, "pipe(path) -> Pipe"},
    FAST(get_many, "get_many(keys, none_if_missing, timeout) -> (values, indexes to ask again, what goes now)"),
    FAST(put_many, "put_many(items, start, out, flags, options, timeout) -> where it stopped"),
    FAST(follow, "follow(folder, number, ahead, timeout) -> entries after it: (version, size, bytes or None) each"),
    FAST(segments,
         "segments(path, page, at, max, partition, partitions, expected, timeout) -> (list, at, done, name, far)"),
    FAST(gather, "gather(path, list of (extents, size, offset, buffer), timeout): fills every buffer"),
    FAST(call, "call(code, flags, key, data, count, options, arg0, arg1, timeout)"
               " -> (version, size, kind, flags, count, data)"),
    FAST(call_many, "call_many(code, flags, keys, timeout) -> [(status, version, size, kind, flags, count, data)]"),
    {"rebind", client_rebind, METH_O, "rebind(core)"},
    {NULL, NULL, 0, NULL},
};

static PyObject *client_lanes_opened(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((HotClient *)self)->lanes_opened);
}

static PyGetSetDef client_getset[] = {
    {"lanes_opened", client_lanes_opened, NULL, "So many: with each, another namenode may answer.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot client_slots[] = {
    {Py_tp_init, client_init},
    {Py_tp_dealloc, client_dealloc},
    {Py_tp_methods, client_methods},
    {Py_tp_getset, client_getset},
    {Py_tp_doc, "Operations of one store. timeout: seconds, or None for the store's own."},
    {0, NULL},
};

static PyType_Spec client_spec = {
    .name = "crailpy._hot.Client",
    .basicsize = sizeof(HotClient),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = client_slots,
};

/* bind(table: int): the address that crail_hot_table() of crailpy._native gives. */
static PyObject *bind(PyObject *module, PyObject *address) {
    (void)module;
    const struct crail_hot_table *t = (const void *)(uintptr_t)PyLong_AsUnsignedLongLong(address);
    if (PyErr_Occurred())
        return NULL;
    if (!t || t->size != sizeof(*t) || t->api_version != CRAIL_API_VERSION) {
        PyErr_SetString(PyExc_ImportError, "crailpy._hot and crailpy._native are not of one build: reinstall crailpy");
        return NULL;
    }
    T = t;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"bind", bind, METH_O, "bind(table): must come first"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "crailpy._hot", .m_doc = "The hot door of the native core.",
    .m_size = -1,          .m_methods = functions,
};

PyMODINIT_FUNC PyInit__hot(void) {
    PyObject *m = PyModule_Create(&module);
    if (!m)
        return NULL;
    PyObject *client = PyType_FromSpec(&client_spec);
    view_type = (PyTypeObject *)PyType_FromSpec(&view_spec);
    PyObject *pipe = pipe_type_new(), *rows = rows_type_new(), *follower = follower_type_new(),
             *gather = gather_type_new();
    if (!client || !view_type || !pipe || !rows || !follower || !gather || PyModule_AddObjectRef(m, "Client", client) ||
        PyModule_AddObjectRef(m, "View", (PyObject *)view_type) || PyModule_AddObjectRef(m, "Pipe", pipe) ||
        PyModule_AddObjectRef(m, "Rows", rows) || PyModule_AddObjectRef(m, "Gather", gather) ||
        PyModule_AddObjectRef(m, "Follower", follower) || async_add(m)) {
        Py_DECREF(m);
        return NULL;
    }
    Py_DECREF(client);
    return m;
}
