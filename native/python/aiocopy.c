/* Large values for an event loop: copies in pieces between which the loop goes on, memory for results, views. */
#include <errno.h>

#include "aiolane.h"

/* ---- Copy: a run of one extent, through shared memory ------------------------ */

typedef struct {
    PyObject_HEAD crail_client *core;
    struct crail_extent extent;
    struct crail_io io;
    Py_buffer buffer;
} Copy;

static void copy_end(Copy *c) {
    if (!c->core)
        return;
    if (c->core->fork_epoch == *T->fork_child_epoch) { /* else: the parent's slot, the parent's client */
        T->io_end(&c->io);
        T->client_unref(c->core);
    }
    PyBuffer_Release(&c->buffer);
    c->core = NULL;
}

/* Copy(core, extent: bytes, within, buffer, is_write): as many bytes as the buffer has, from byte `within` of the
 * extent on */
static int copy_init(PyObject *self, PyObject *args, PyObject *kw) {
    Copy *c = (Copy *)self;
    unsigned long long core, within;
    const char *extent;
    Py_ssize_t extent_len;
    PyObject *buffer;
    int is_write;
    if ((kw && PyDict_Size(kw)) || c->core) {
        PyErr_SetString(PyExc_TypeError, "Copy takes no keyword arguments, once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "Ky#KOp", &core, &extent, &extent_len, &within, &buffer, &is_write))
        return -1;
    if (!T || !core || extent_len != (Py_ssize_t)sizeof(c->extent)) {
        PyErr_SetString(PyExc_ValueError, "unbound core, or not one extent");
        return -1;
    }
    if (PyObject_GetBuffer(buffer, &c->buffer, is_write ? PyBUF_C_CONTIGUOUS : PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS))
        return -1;
    memcpy(&c->extent, extent, sizeof(c->extent));
    uint64_t room = (uint64_t)c->extent.granules * CRAIL_GRANULE, n = (uint64_t)c->buffer.len;
    if (within > room || n > room - within) {
        PyBuffer_Release(&c->buffer);
        PyErr_SetString(PyExc_ValueError, "the run is not within the extent");
        return -1;
    }
    c->core = (crail_client *)(uintptr_t)core;
    T->client_ref(c->core);
    c->io = (struct crail_io){.client = c->core,
                              .extents = &c->extent,
                              .extents_count = 1,
                              .is_write = is_write,
                              .value_bytes = room,
                              .offset = within,
                              .length = n,
                              .buffer = c->buffer.buf,
                              .whole = n};
    return 0;
}

/* step(bytes_max) -> 0: done; 3: come back; 1, 2: attach the server first (for reading, for writing); -CRAIL_E_...:
 * the location is out of date; -ENOBUFS: no use slot is free. The interpreter's lock is kept: there is no other thread.
 */
static PyObject *copy_step(PyObject *self, PyObject *bytes_max) {
    Copy *c = (Copy *)self;
    unsigned long long piece = PyLong_AsUnsignedLongLong(bytes_max);
    if (PyErr_Occurred())
        return NULL;
    if (!c->core || c->core->fork_epoch != *T->fork_child_epoch) {
        PyErr_SetString(PyExc_ValueError, "the copy has ended");
        return NULL;
    }
    c->io.piece_bytes = piece;
    return PyLong_FromLong(T->io_run(&c->io));
}

static PyObject *copy_close(PyObject *self, PyObject *unused) {
    (void)unused;
    copy_end((Copy *)self);
    Py_RETURN_NONE;
}

static void copy_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    copy_end((Copy *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef copy_methods[] = {
    {"step", copy_step, METH_O, "step(bytes_max) -> int"},
    {"close", copy_close, METH_NOARGS, "Gives slot and buffer back. May be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot copy_slots[] = {
    {Py_tp_init, copy_init},
    {Py_tp_dealloc, copy_dealloc},
    {Py_tp_methods, copy_methods},
    {Py_tp_doc, "A copy between a buffer and an extent in shared memory, in pieces."},
    {0, NULL},
};

PyType_Spec copy_spec = {
    .name = "crailpy._hot.Copy",
    .basicsize = sizeof(Copy),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = copy_slots,
};

/* ---- Landing: bytes that are written before anybody has them ------------------- */

typedef struct {
    PyObject_HEAD PyObject *bytes;
    Py_ssize_t exports;
} Landing;

static int landing_init(PyObject *self, PyObject *args, PyObject *kw) {
    Landing *l = (Landing *)self;
    unsigned long long n;
    if ((kw && PyDict_Size(kw)) || l->bytes || !PyArg_ParseTuple(args, "K", &n)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "Landing takes a number of bytes, once");
        return -1;
    }
    l->bytes = call_new_bytes(n);
    return l->bytes ? 0 : -1;
}

static int landing_getbuffer(PyObject *self, Py_buffer *buffer, int flags) {
    Landing *l = (Landing *)self;
    if (!l->bytes) {
        PyErr_SetString(PyExc_BufferError, "the bytes were taken");
        buffer->obj = NULL;
        return -1;
    }
    int rc = PyBuffer_FillInfo(buffer, self, PyBytes_AsString(l->bytes), PyBytes_Size(l->bytes), 0, flags);
    if (!rc)
        l->exports++;
    return rc;
}

static void landing_releasebuffer(PyObject *self, Py_buffer *buffer) {
    (void)buffer;
    ((Landing *)self)->exports--;
}

/* take() -> bytes; nothing writes to them any more */
static PyObject *landing_take(PyObject *self, PyObject *unused) {
    Landing *l = (Landing *)self;
    (void)unused;
    if (!l->bytes || l->exports) {
        PyErr_SetString(PyExc_BufferError, "there are buffers left, or the bytes were taken");
        return NULL;
    }
    PyObject *bytes = l->bytes;
    l->bytes = NULL;
    return bytes;
}

static void landing_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(((Landing *)self)->bytes);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef landing_methods[] = {
    {"take", landing_take, METH_NOARGS, "take() -> bytes"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot landing_slots[] = {
    {Py_tp_init, landing_init},
    {Py_tp_dealloc, landing_dealloc},
    {Py_tp_methods, landing_methods},
    {Py_bf_getbuffer, landing_getbuffer},
    {Py_bf_releasebuffer, landing_releasebuffer},
    {Py_tp_doc, "A buffer that becomes bytes without a copy."},
    {0, NULL},
};

PyType_Spec landing_spec = {
    .name = "crailpy._hot.Landing",
    .basicsize = sizeof(Landing),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = landing_slots,
};

/* ---- Flat: any buffer as bytes ---------------------------------------------------- */

typedef struct {
    PyObject_HEAD Py_buffer of;
    bool is_writable;
} Flat;

/* Flat(buffer, writable): a C-contiguous buffer of whatever shape and format, as that many bytes */
static int flat_init(PyObject *self, PyObject *args, PyObject *kw) {
    Flat *f = (Flat *)self;
    PyObject *buffer;
    int writable;
    if ((kw && PyDict_Size(kw)) || f->of.obj) {
        PyErr_SetString(PyExc_TypeError, "Flat takes no keyword arguments, once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "Op", &buffer, &writable))
        return -1;
    f->is_writable = writable;
    return writable ? PyObject_GetBuffer(buffer, &f->of, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
                    : call_data_of(buffer, &f->of);
}

static int flat_getbuffer(PyObject *self, Py_buffer *buffer, int flags) {
    Flat *f = (Flat *)self;
    return PyBuffer_FillInfo(buffer, self, f->of.buf, f->of.len, !f->is_writable, flags);
}

static void flat_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (((Flat *)self)->of.obj)
        PyBuffer_Release(&((Flat *)self)->of);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot flat_slots[] = {
    {Py_tp_init, flat_init},
    {Py_tp_dealloc, flat_dealloc},
    {Py_bf_getbuffer, flat_getbuffer},
    {Py_tp_doc, "Any C-contiguous buffer as bytes."},
    {0, NULL},
};

PyType_Spec flat_spec = {
    .name = "crailpy._hot.Flat",
    .basicsize = sizeof(Flat),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = flat_slots,
};

/* ---- views ------------------------------------------------------------------------ */

/* pin(core, extent: bytes, size, version, goes_when_read) -> View; 1: attach the server first; -CRAIL_E_...: out of
 * date; another negative number: no pin is to be had, copy */
static PyObject *pin(PyObject *module, PyObject *args) {
    unsigned long long core, size, version;
    const char *bytes;
    Py_ssize_t n;
    int goes_when_read;
    struct crail_extent extent;
    struct crail_pin pin;
    (void)module;
    if (!PyArg_ParseTuple(args, "Ky#KKp", &core, &bytes, &n, &size, &version, &goes_when_read))
        return NULL;
    if (!T || !core || n != (Py_ssize_t)sizeof(extent)) {
        PyErr_SetString(PyExc_ValueError, "unbound core, or not one extent");
        return NULL;
    }
    memcpy(&extent, bytes, sizeof(extent));
    int rc = T->pin_take((crail_client *)(uintptr_t)core, &extent, size, &pin);
    return rc ? PyLong_FromLong(rc) : view_from_pin(&pin, size, version, goes_when_read);
}

/* view(bytes, version, goes_when_read) -> View of a copy */
static PyObject *view(PyObject *module, PyObject *args) {
    PyObject *bytes;
    unsigned long long version;
    int goes_when_read;
    (void)module;
    if (!PyArg_ParseTuple(args, "SKp", &bytes, &version, &goes_when_read))
        return NULL;
    return view_from_bytes(Py_NewRef(bytes), version, goes_when_read);
}

PyMethodDef async_functions[] = {
    {"pin", pin, METH_VARARGS, "pin(core, extent, size, version, goes_when_read) -> View or int"},
    {"view", view, METH_VARARGS, "view(bytes, version, goes_when_read) -> View"},
    {NULL, NULL, 0, NULL},
};
