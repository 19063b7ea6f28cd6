/* Gather: what a map task writes by partition, until it is handed on in their order (client/compute/shuffle.py). Short
 * pieces are copied behind each other, partition by partition; a long one that nobody changes is kept as it is. */
#include <stdlib.h>
#include <string.h>

#include "door.h"

#define SHORT_BYTES_MAX (64u << 10)
#define BLOCK_BYTES_MIN 64u /* each block of a partition is twice as large as the one before */
#define ROOM_BYTES_FIRST (64u << 10)
#define ROOM_BYTES_MAX (64u << 20)
#define JOINED_BYTES_MAX (256u << 10) /* up to here all is copied once more, into one piece */

/* `data` lies in `owner`, one of what is kept: a block of our memory, of which `used` bytes are written, or all of an
 * object that was given to us. */
struct piece {
    struct piece *next;
    PyObject *owner;
    uint8_t *data;
    size_t used, size;
    bool is_given;
};

struct part {
    struct piece *first, *last;
};

/* What was written and is not handed on yet. */
struct run {
    struct part *parts; /* of each partition; NULL: nothing was written */
    uint64_t bytes;
    PyObject *kept; /* list: rooms, which are bytes that nobody has yet, and what was given to us */
    PyObject *room; /* borrowed from it: */
    uint8_t *free;
    size_t free_bytes, room_bytes; /* what is left of it, and the size of the next */
};

typedef struct {
    PyObject_HEAD uint32_t partitions;
    struct run run;
} Gather;

/* ---- memory ---------------------------------------------------------------------- */

static void run_end(struct run *r) {
    free(r->parts);
    Py_XDECREF(r->kept);
}

/* 0, or -1. Anything can have been written meanwhile: what is collected may run code. */
static int run_begin(struct run *r, uint32_t partitions) {
    PyObject *kept = PyList_New(0);
    if (r->parts || !kept) {
        Py_XDECREF(kept);
        return r->parts ? 0 : -1;
    }
    /* pages of partitions without data are never there */
    struct part *parts = calloc(partitions, sizeof(*parts));
    if (!parts) {
        Py_DECREF(kept);
        PyErr_NoMemory();
        return -1;
    }
    *r = (struct run){.parts = parts, .kept = kept, .room_bytes = ROOM_BYTES_FIRST};
    return 0;
}

/* Takes the reference over. */
static int keep(struct run *r, PyObject *object) {
    int rc = object ? PyList_Append(r->kept, object) : -1;
    Py_XDECREF(object);
    return rc;
}

static uint8_t *take_room(struct run *r, size_t bytes) {
    bytes = (bytes + 7) & ~(size_t)7;
    if (r->free_bytes < bytes) {
        size_t size = bytes > r->room_bytes ? bytes : r->room_bytes;
        PyObject *room = call_new_bytes(size);
        if (keep(r, room))
            return NULL;
        r->room = room;
        r->free = (uint8_t *)PyBytes_AsString(room);
        r->free_bytes = size;
        r->room_bytes = r->room_bytes < ROOM_BYTES_MAX / 16 ? 16 * r->room_bytes : ROOM_BYTES_MAX;
    }
    uint8_t *found = r->free;
    r->free += bytes;
    r->free_bytes -= bytes;
    return found;
}

static struct piece *add_piece(struct run *r, struct part *part, struct piece like) {
    struct piece *p = (struct piece *)(void *)take_room(r, sizeof(*p));
    if (!p)
        return NULL;
    *p = like;
    p->next = NULL;
    if (part->last)
        part->last->next = p;
    else
        part->first = p;
    part->last = p;
    return p;
}

/* ---- writing ----------------------------------------------------------------------- */

/* Room for so many bytes at the end of the partition, in one piece. */
static uint8_t *extend_part(struct run *r, struct part *part, size_t n) {
    struct piece *last = part->last;
    if (!last || last->is_given || last->size - last->used < n) {
        size_t size = last && !last->is_given ? 2 * last->size : BLOCK_BYTES_MIN;
        size = size < SHORT_BYTES_MAX ? size : SHORT_BYTES_MAX;
        size = size > n ? size : n;
        uint8_t *data = take_room(r, size);
        struct piece block = {.owner = r->room, .data = data, .size = size};
        last = data ? add_piece(r, part, block) : NULL;
        if (!last)
            return NULL;
    }
    last->used += n;
    return last->data + last->used - n;
}

static int write_copy(Gather *g, uint32_t partition, const void *data, size_t n) {
    struct run *r = &g->run;
    if (!r->parts && run_begin(r, g->partitions))
        return -1;
    uint8_t *to = n ? extend_part(r, &r->parts[partition], n) : NULL;
    if (n && !to)
        return -1;
    if (n)
        memcpy(to, data, n);
    r->bytes += n;
    return 0;
}

/* Takes the reference over: to bytes, or a flat view of them. */
static int write_given(Gather *g, uint32_t partition, PyObject *owner, size_t n) {
    struct run *r = &g->run;
    if (!r->parts && run_begin(r, g->partitions)) {
        Py_DECREF(owner);
        return -1;
    }
    struct piece given = {.owner = owner, .used = n, .size = n, .is_given = true};
    if (keep(r, owner) || !add_piece(r, &r->parts[partition], given))
        return -1;
    r->bytes += n;
    return 0;
}

static int write_bytes(Gather *g, uint32_t partition, PyObject *bytes) {
    size_t n = (size_t)PyBytes_Size(bytes);
    return n < SHORT_BYTES_MAX ? write_copy(g, partition, PyBytes_AsString(bytes), n)
                               : write_given(g, partition, Py_NewRef(bytes), n);
}

/* What lies scattered, put together. */
static int write_scattered(Gather *g, uint32_t partition, PyObject *data) {
    Py_buffer b;
    if (PyObject_GetBuffer(data, &b, PyBUF_FULL_RO) || call_check_data(&b))
        return -1;
    PyObject *bytes = call_new_bytes((uint64_t)b.len);
    int rc = bytes ? PyBuffer_ToContiguous(PyBytes_AsString(bytes), &b, b.len, 'C') : -1;
    PyBuffer_Release(&b);
    if (!rc)
        rc = write_bytes(g, partition, bytes);
    Py_XDECREF(bytes);
    return rc;
}

/* All of a read-only buffer, which nobody changes through that; NULL without an exception where it cannot be had. */
static PyObject *flat_view(PyObject *data) {
    PyObject *view = PyMemoryView_FromObject(data);
    PyObject *flat = view ? PyObject_CallMethod(view, "cast", "s", "B") : NULL;
    Py_XDECREF(view);
    if (!flat)
        PyErr_Clear(); /* of records, say */
    return flat;
}

/* Is that why its buffer could not be had? Then there is no exception any more. */
static bool is_scattered(PyObject *data) {
    PyObject *type, *value, *trace;
    Py_buffer b;
    PyErr_Fetch(&type, &value, &trace);
    bool is_error = PyObject_GetBuffer(data, &b, PyBUF_C_CONTIGUOUS);
    if (!is_error)
        PyBuffer_Release(&b);
    bool found = is_error && (PyErr_ExceptionMatches(PyExc_BufferError) || PyErr_ExceptionMatches(PyExc_ValueError));
    PyErr_Restore(type, value, trace);
    if (found)
        PyErr_Clear();
    return found;
}

static int write_buffer(Gather *g, uint32_t partition, PyObject *data) {
    Py_buffer b;
    if (call_data_of(data, &b))
        return is_scattered(data) ? write_scattered(g, partition, data) : -1;
    size_t n = (size_t)b.len;
    PyObject *flat = n >= SHORT_BYTES_MAX && b.readonly ? flat_view(data) : NULL;
    int rc = flat ? write_given(g, partition, flat, n) : write_copy(g, partition, b.buf, n);
    PyBuffer_Release(&b);
    return rc;
}

/* write(partition, data) -> bytes gathered so far. IndexError: there is no such partition. */
static PyObject *gather_write(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    Gather *g = (Gather *)self;
    if (!call_arguments("write", n, 2))
        return NULL;
    Py_ssize_t partition = PyNumber_AsSsize_t(args[0], PyExc_IndexError);
    if (partition == -1 && PyErr_Occurred())
        return NULL;
    if (partition < 0 || partition >= (Py_ssize_t)g->partitions) {
        PyErr_SetString(PyExc_IndexError, "no such partition");
        return NULL;
    }
    if (PyBytes_CheckExact(args[1]) ? write_bytes(g, (uint32_t)partition, args[1])
                                    : write_buffer(g, (uint32_t)partition, args[1]))
        return NULL;
    return PyLong_FromUnsignedLongLong(g->run.bytes);
}

/* ---- handing on ---------------------------------------------------------------------- */

/* Where each partition begins, and the last one ends, in a value that has `at` bytes before. */
static PyObject *table_of(const struct run *r, uint32_t partitions, uint64_t at) {
    PyObject *table = PyBytes_FromStringAndSize(NULL, ((Py_ssize_t)partitions + 1) * (Py_ssize_t)sizeof(at));
    uint8_t *to = table ? (uint8_t *)PyBytes_AsString(table) : NULL;
    for (uint32_t i = 0; to && i <= partitions; i++, to += sizeof(at)) {
        memcpy(to, &at, sizeof(at));
        for (struct piece *p = r->parts && i < partitions ? r->parts[i].first : NULL; p; p = p->next)
            at += p->used;
    }
    return table;
}

/* Copies it to `to`. 0, or -1. */
static int copy_piece(const struct piece *p, uint8_t *to) {
    Py_buffer b = {.buf = p->data};
    if (p->is_given && PyObject_GetBuffer(p->owner, &b, PyBUF_SIMPLE))
        return -1;
    memcpy(to, b.buf, p->used);
    if (p->is_given)
        PyBuffer_Release(&b);
    return 0;
}

static PyObject *joined(const struct run *r, uint32_t partitions) {
    PyObject *all = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)r->bytes);
    uint8_t *to = all ? (uint8_t *)PyBytes_AsString(all) : NULL;
    for (uint32_t i = 0; all && i < partitions; i++)
        for (struct piece *p = r->parts[i].first; all && p; to += p->used, p = p->next)
            if (copy_piece(p, to))
                Py_CLEAR(all);
    return all;
}

static PyObject *object_of(const struct piece *p) {
    if (p->is_given)
        return Py_NewRef(p->owner);
    Py_ssize_t from = (const char *)p->data - PyBytes_AsString(p->owner);
    PyObject *view = PyMemoryView_FromObject(p->owner);
    PyObject *object = view ? PySequence_GetSlice(view, from, from + (Py_ssize_t)p->used) : NULL;
    Py_XDECREF(view);
    return object;
}

static PyObject *pieces_of(const struct run *r, uint32_t partitions) {
    PyObject *list = PyList_New(0);
    if (!list || !r->bytes)
        return list;
    int rc = 0;
    if (r->bytes <= JOINED_BYTES_MAX)
        rc = call_append(list, joined(r, partitions));
    else
        for (uint32_t i = 0; !rc && i < partitions; i++)
            for (struct piece *p = r->parts[i].first; !rc && p; p = p->next)
                rc = call_append(list, object_of(p));
    if (rc)
        Py_CLEAR(list);
    return list;
}

/* take(at) -> (pieces, table, bytes): all that was written, in the order of partitions, and nothing is left, whatever
 * comes of it; `at`: bytes of the value before it. */
static PyObject *gather_take(PyObject *self, PyObject *at) {
    Gather *g = (Gather *)self;
    uint64_t before = PyLong_AsUnsignedLongLong(at);
    if (PyErr_Occurred())
        return NULL;
    struct run r = g->run;
    g->run = (struct run){0};
    PyObject *table = table_of(&r, g->partitions, before);
    PyObject *pieces = table ? pieces_of(&r, g->partitions) : NULL;
    run_end(&r);
    if (pieces)
        return Py_BuildValue("NNK", pieces, table, (unsigned long long)r.bytes);
    Py_XDECREF(table);
    return NULL;
}

/* ---- the type -------------------------------------------------------------------------- */

/* Gather(partitions) */
static int gather_init(PyObject *self, PyObject *args, PyObject *kw) {
    Gather *g = (Gather *)self;
    Py_ssize_t partitions;
    if (!PyArg_ParseTuple(args, "n", &partitions))
        return -1;
    if (g->partitions || partitions < 1 || partitions >= (Py_ssize_t)UINT32_MAX || (kw && PyDict_Size(kw))) {
        PyErr_SetString(PyExc_ValueError, "Gather takes a number of partitions, once");
        return -1;
    }
    g->partitions = (uint32_t)partitions;
    return 0;
}

static void gather_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    run_end(&((Gather *)self)->run);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef gather_methods[] = {
    {"write", (PyCFunction)(void (*)(void))gather_write, METH_FASTCALL, "write(partition, data) -> bytes gathered"},
    {"take", gather_take, METH_O, "take(at) -> (pieces, table, bytes)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gather_slots[] = {
    {Py_tp_init, gather_init},
    {Py_tp_dealloc, gather_dealloc},
    {Py_tp_methods, gather_methods},
    {Py_tp_doc, "Gather(partitions): what a map task writes, by partition."},
    {0, NULL},
};

static PyType_Spec gather_spec = {
    .name = "crailpy._hot.Gather",
    .basicsize = sizeof(Gather),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = gather_slots,
};

PyObject *gather_type_new(void) {
    return PyType_FromSpec(&gather_spec);
}
