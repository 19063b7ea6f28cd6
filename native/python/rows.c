/* Rows of a cut as whoever commits them wants them, one after the other: a pair of bytes each. So a row costs no
 * bytecode. */
#include <string.h>

#include "crail/api.h"
#include "door.h"

typedef struct {
    PyObject ob_base;
    Py_buffer data, places; /* crail_row_place */
    Py_ssize_t at, end;     /* in places */
    Py_ssize_t key_bytes;   /* 0: keys are texts */
    int keys_only;
} Rows;

static void rows_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyBuffer_Release(&((Rows *)self)->data);
    PyBuffer_Release(&((Rows *)self)->places);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* Rows(data, places, first, count, key_bytes, keys_only) */
static int rows_init(PyObject *self, PyObject *args, PyObject *kw) {
    Rows *r = (Rows *)self;
    PyObject *data, *places;
    Py_ssize_t first, count;
    if (r->data.obj || r->places.obj || (kw && PyDict_Size(kw))) {
        PyErr_SetString(PyExc_TypeError, "Rows takes no keyword arguments, and these once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "OOnnnp", &data, &places, &first, &count, &r->key_bytes, &r->keys_only) ||
        PyObject_GetBuffer(data, &r->data, PyBUF_SIMPLE) || PyObject_GetBuffer(places, &r->places, PyBUF_SIMPLE))
        return -1;
    Py_ssize_t room = r->places.len / (Py_ssize_t)sizeof(crail_row_place);
    if (first < 0 || count < 0 || first > room || count > room - first || r->key_bytes < 0 ||
        r->key_bytes > (Py_ssize_t)sizeof(((crail_row_place *)0)->key)) {
        PyErr_SetString(PyExc_ValueError, "there are no such places");
        return -1;
    }
    r->at = first;
    r->end = first + count;
    return 0;
}

static PyObject *row_of(const Rows *r, const crail_row_place *p) {
    if (p->begin > p->end || p->end > (uint64_t)r->data.len) {
        PyErr_SetString(PyExc_ValueError, "a row lies elsewhere");
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)r->data.buf + p->begin, (Py_ssize_t)(p->end - p->begin));
}

static PyObject *rows_next(PyObject *self) {
    Rows *r = (Rows *)self;
    if (r->at == r->end)
        return NULL;
    const crail_row_place *p = (const crail_row_place *)r->places.buf + r->at++;
    size_t key_bytes = r->key_bytes ? (size_t)r->key_bytes : strnlen((const char *)p->key, sizeof p->key);
    PyObject *key = PyBytes_FromStringAndSize((const char *)p->key, (Py_ssize_t)key_bytes);
    if (!key || r->keys_only)
        return key;
    PyObject *row = row_of(r, p), *pair = row ? PyTuple_New(2) : NULL;
    if (!pair) {
        Py_DECREF(key);
        Py_XDECREF(row);
        return NULL;
    }
    PyTuple_SetItem(pair, 0, key);
    PyTuple_SetItem(pair, 1, row);
    return pair;
}

static PyType_Slot rows_slots[] = {
    {Py_tp_init, rows_init},
    {Py_tp_dealloc, rows_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, rows_next},
    {Py_tp_doc, "Rows(data, places, first, count, key_bytes, keys_only): an iterator of (key, row), or of keys."
                " `places` is as crail_rows_order() leaves it; key_bytes 0: keys are texts."},
    {0, NULL},
};

static PyType_Spec rows_spec = {
    .name = "crailpy._hot.Rows",
    .basicsize = sizeof(Rows),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = rows_slots,
};

PyObject *rows_type_new(void) {
    return PyType_FromSpec(&rows_spec);
}
