/* View: a read-only buffer over a value in shared memory. Counts its buffers; the use slot is given back when the
 * view was released (or is gone) and the last buffer has died. */
#include "door.h"

PyTypeObject *view_type;

typedef struct {
    PyObject_HEAD struct crail_pin pin; /* .client NULL: none */
    PyObject *bytes;                    /* the copy, where no pin could be had */
    const void *data;
    Py_ssize_t nbytes;
    uint64_t version;
    Py_ssize_t exports;
    PyObject *on_end; /* called once, when the value is let go */
    bool copied, goes_when_read;
    bool released;
} View;

static View *view_new(uint64_t nbytes, uint64_t version, bool goes_when_read) {
    View *v = PyObject_New(View, view_type);
    if (!v)
        return NULL;
    v->pin = (struct crail_pin){0};
    v->bytes = NULL;
    v->nbytes = (Py_ssize_t)nbytes;
    v->version = version;
    v->exports = 0;
    v->on_end = NULL;
    v->goes_when_read = goes_when_read;
    v->copied = true;
    v->released = false;
    return v;
}

PyObject *view_from_pin(const struct crail_pin *pin, uint64_t nbytes, uint64_t version, bool goes_when_read) {
    View *v = view_new(nbytes, version, goes_when_read);
    if (!v) {
        struct crail_pin copy = *pin;
        T->pin_release(&copy);
        return NULL;
    }
    v->pin = *pin;
    v->copied = false;
    v->data = pin->data;
    return (PyObject *)v;
}

PyObject *view_from_bytes(PyObject *bytes, uint64_t version, bool goes_when_read) {
    View *v = view_new((uint64_t)PyBytes_Size(bytes), version, goes_when_read);
    if (!v) {
        Py_DECREF(bytes);
        return NULL;
    }
    v->bytes = bytes;
    v->data = PyBytes_AsString(bytes);
    return (PyObject *)v;
}

/* Runs in destructors: what on_end raises is reported, never passed on. */
static void call_on_end(PyObject *on_end) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *r = PyObject_CallNoArgs(on_end);
    if (!r)
        PyErr_WriteUnraisable(on_end);
    Py_XDECREF(r);
    Py_DECREF(on_end);
    PyErr_Restore(type, value, trace);
}

static void unpin(View *v) {
    PyObject *on_end = v->on_end;
    if (v->pin.client) {
        T->pin_release(&v->pin);
        v->pin.client = NULL;
    }
    Py_CLEAR(v->bytes);
    v->on_end = NULL;
    if (on_end)
        call_on_end(on_end);
}

static void view_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    unpin((View *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int view_getbuffer(PyObject *self, Py_buffer *buffer, int flags) {
    View *v = (View *)self;
    if (v->released) {
        PyErr_SetString(PyExc_BufferError, "the view was released");
        buffer->obj = NULL;
        return -1;
    }
    int rc = PyBuffer_FillInfo(buffer, self, (void *)(uintptr_t)v->data, v->nbytes, 1, flags);
    if (!rc)
        v->exports++;
    return rc;
}

static void view_releasebuffer(PyObject *self, Py_buffer *buffer) {
    View *v = (View *)self;
    (void)buffer;
    if (--v->exports == 0 && v->released)
        unpin(v);
}

static PyObject *view_release(PyObject *self, PyObject *unused) {
    View *v = (View *)self;
    (void)unused;
    v->released = true;
    if (v->exports == 0)
        unpin(v);
    Py_RETURN_NONE;
}

/* on_end(callable): it is called, without arguments, when the view was released (or is gone) and its last buffer has
 * died. */
static PyObject *view_on_end(PyObject *self, PyObject *callable) {
    View *v = (View *)self;
    if (v->released || v->on_end) {
        PyErr_SetString(PyExc_ValueError, "the view was released, or has its on_end already");
        return NULL;
    }
    v->on_end = Py_NewRef(callable);
    Py_RETURN_NONE;
}

static PyObject *view_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *view_exit(PyObject *self, PyObject *args) {
    return view_release(self, args);
}

static PyObject *view_tobytes(PyObject *self, PyObject *unused) {
    (void)unused;
    return PyBytes_FromObject(self);
}

static Py_ssize_t view_length(PyObject *self) {
    return ((View *)self)->nbytes;
}

static PyObject *get_version(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((View *)self)->version);
}

static PyObject *get_nbytes(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromSsize_t(((View *)self)->nbytes);
}

static PyObject *get_copied(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(((View *)self)->copied);
}

static PyObject *get_goes_when_read(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(((View *)self)->goes_when_read);
}

static PyMethodDef view_methods[] = {
    {"release", view_release, METH_NOARGS,
     "No new buffers; the value is unpinned when the last buffer has died. May be called twice."},
    {"tobytes", view_tobytes, METH_NOARGS, "A copy of the value as bytes."},
    {"on_end", view_on_end, METH_O, "Has the callable called when the value is let go: once, by whichever thread."},
    {"__enter__", view_enter, METH_NOARGS, NULL},
    {"__exit__", view_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef view_getset[] = {
    {"version", get_version, NULL, "Version of the value.", NULL},
    {"nbytes", get_nbytes, NULL, "Bytes of the value.", NULL},
    {"copied", get_copied, NULL, "True if the bytes had to be copied: the transport does not share memory.", NULL},
    {"goes_when_read", get_goes_when_read, NULL, "True if the value is to be removed when it was read.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot view_slots[] = {
    {Py_tp_dealloc, view_dealloc},
    {Py_tp_methods, view_methods},
    {Py_tp_getset, view_getset},
    {Py_bf_getbuffer, view_getbuffer},
    {Py_bf_releasebuffer, view_releasebuffer},
    {Py_sq_length, view_length},
    {Py_tp_doc, "A read-only buffer over a value, without a copy where the transport allows."},
    {0, NULL},
};

PyType_Spec view_spec = {
    .name = "crailpy._hot.View",
    .basicsize = sizeof(View),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = view_slots,
};
