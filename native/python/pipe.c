/* Pipe: how an open file moves its bytes between a buffer and a list of extents. Through shared memory as any call
 * does; over TCP on a data connection of its own (native/src/client/pipe.c), so that reading is ahead of the reader
 * and writing behind the writer. The extents come from the caller each time, as bytes: it knows which are its own. */
#include <string.h>

#include "door.h"

typedef struct {
    PyObject_HEAD HotClient *client;
    PyObject *owner; /* what client->owner only borrows */
    PyObject *path;  /* for errors */
    struct crail_pipe s;
    bool is_busy;
} Pipe;

static PyTypeObject *pipe_type;

PyObject *client_pipe(PyObject *self, PyObject *path) {
    HotClient *client = (HotClient *)self;
    struct call c = {.self = client};
    if (call_set_path(&c, path))
        return NULL;
    if (!client->client) {
        call_fail(&c, CRAIL_E_CLOSED, 0);
        return NULL;
    }
    if (call_follow_fork(client))
        return NULL;
    Pipe *st = PyObject_New(Pipe, pipe_type);
    if (!st)
        return NULL;
    st->client = (HotClient *)Py_NewRef(self);
    st->owner = Py_NewRef(client->owner);
    st->path = Py_NewRef(path);
    st->is_busy = false;
    T->pipe_open(&st->s, client->client);
    return (PyObject *)st;
}

static void pipe_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Pipe *st = (Pipe *)self;
    T->pipe_close(&st->s);
    Py_DECREF(st->client);
    Py_DECREF(st->owner);
    Py_DECREF(st->path);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* ---- a call of a pipe ---------------------------------------------------- */

static int begin(struct call *c, Pipe *st, PyObject *timeout) {
    c->self = st->client;
    if (call_set_path(c, st->path))
        return -1;
    if (!T->pipe_is_ours(&st->s) || st->client->client != st->s.client)
        return call_fail(c, CRAIL_E_CLOSED, 0);
    if (st->is_busy) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is using this pipe");
        return -1;
    }
    st->is_busy = true; /* also while the lane is being had */
    if (call_begin(c, st->client, timeout, 0) == 0)
        return 0;
    st->is_busy = false;
    return -1;
}

static void end(struct call *c, Pipe *st) {
    if (c->lane)
        call_end(c);
    st->is_busy = false;
}

static uint64_t bytes_of(const struct crail_extent *e) {
    return (uint64_t)e->granules * CRAIL_GRANULE;
}

static uint64_t capacity(const struct crail_range *v) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < v->count; i++)
        n += bytes_of(&v->extents[i]);
    return n;
}

/* What a failure over TCP means. The connection ends. 0: nothing was lost, try once more; 1: the location is out of
 * date; -1. */
static int failed(struct call *c, Pipe *st, int rc, uint32_t server, int *failures) {
    bool was_clean = st->s.writes == 0;
    T->pipe_abort(&st->s);
    if (rc == -EPIPE && was_clean && ++*failures == 1)
        return 0;
    if (rc == -CRAIL_E_STALE_LOCATION)
        return 1;
    int status = rc == -ETIMEDOUT ? CRAIL_E_DEADLINE : rc <= -CRAIL_STATUS_BASE ? -rc : CRAIL_E_UNAVAILABLE;
    return call_fail(c, status, server);
}

/* Runs handlers after -EINTR. When one raises, what was on its way is given up. */
static int interrupted(Pipe *st) {
    if (!PyErr_CheckSignals())
        return 0;
    T->pipe_abort(&st->s);
    return -1;
}

static int settle(struct call *c, Pipe *st) {
    while (st->s.writes) {
        int rc, failures = 1;
        uint32_t server = st->s.data.server;
        Py_BEGIN_ALLOW_THREADS rc = T->pipe_settle(&st->s, call_deadline(c));
        Py_END_ALLOW_THREADS if (rc == -EINTR) rc = interrupted(st);
        else if (rc) rc = failed(c, st, rc, server, &failures);
        if (rc)
            return rc;
    }
    return 0;
}

enum way { BY_MEMORY = 2, BY_TCP = 3 }; /* else as failed() */

static int reach(struct call *c, Pipe *st, uint32_t server) {
    if (T->client_find(c->client, server))
        return BY_MEMORY;
    if (T->pipe_reaches(&st->s, server))
        return BY_TCP;
    int rc = settle(c, st);
    if (rc)
        return rc;
    if (!T->lane_has_data(c->lane, server) && call_attach(c, server, CRAIL_NEED_SERVER))
        return -1;
    if (T->client_find(c->client, server))
        return BY_MEMORY;
    T->pipe_take(&st->s, c->lane, server);
    return BY_TCP;
}

/* ---- read and write --------------------------------------------------------- */

/* One extent's part of a write, from byte `at` of the value on. 0, or as failed(). */
static int write_part(struct call *c, Pipe *st, const struct crail_extent *e, uint64_t within, uint64_t at,
                      uint8_t *data, uint64_t n, uint64_t whole) {
    int failures = 0;
    for (;;) {
        int rc = reach(c, st, e->server);
        if (rc == BY_MEMORY)
            return call_transfer_part(c, e, 1, bytes_of(e), within, n, data, true,
                                      n < CALL_WHOLE_PIECE_MIN ? n : whole);
        if (rc != BY_TCP)
            return rc;
        if (st->s.asks_count) { /* it was reading */
            T->pipe_abort(&st->s);
            continue;
        }
        do {
            Py_BEGIN_ALLOW_THREADS rc = T->pipe_write(&st->s, e, within, at, data, n, call_deadline(c));
            Py_END_ALLOW_THREADS
        } while (rc == -EINTR && (rc = interrupted(st)) == 0 && (rc = -EINTR));
        if (rc == 0 || rc == -1)
            return rc;
        rc = failed(c, st, rc, e->server, &failures);
        if (rc)
            return rc;
    }
}

static int write_all(struct call *c, Pipe *st, const struct crail_range *v, uint64_t at, uint8_t *data, uint64_t n) {
    for (uint64_t done = 0, within, part; done < n; done += part) {
        uint32_t i = T->range_locate(v, at + done, &within);
        part = bytes_of(&v->extents[i]) - within;
        if (part > n - done)
            part = n - done;
        int rc = write_part(c, st, &v->extents[i], within, at + done, data + done, part, v->bytes);
        if (rc)
            return rc;
    }
    return 0;
}

/* As far as one server goes. 0, or as failed(). */
static int read_part(struct call *c, Pipe *st, const struct crail_range *v, uint64_t at, uint8_t *to, uint64_t n,
                     uint64_t *got, int *failures) {
    uint64_t within;
    uint32_t i = T->range_locate(v, at + *got, &within);
    const struct crail_extent *e = &v->extents[i];
    if (T->pipe_is_astray(&st->s, at + *got))
        T->pipe_abort(&st->s);
    int rc = settle(c, st);
    if (!rc)
        rc = reach(c, st, e->server);
    if (rc == BY_MEMORY) {
        uint64_t part = bytes_of(e) - within < n - *got ? bytes_of(e) - within : n - *got;
        rc = call_transfer(c, e, 1, bytes_of(e), within, part, to + *got, false);
        *got += rc ? 0 : part;
        return rc;
    }
    if (rc != BY_TCP)
        return rc;
    Py_BEGIN_ALLOW_THREADS rc = T->pipe_read(&st->s, v, at, to, n, got, call_deadline(c));
    Py_END_ALLOW_THREADS if (rc == 0 || rc == CRAIL_NEED_SERVER) return 0;
    return rc == -EINTR ? interrupted(st) : failed(c, st, rc, e->server, failures);
}

static int read_all(struct call *c, Pipe *st, const struct crail_range *v, uint64_t at, uint8_t *to, uint64_t n) {
    int failures = 0;
    for (uint64_t got = 0; got < n;) {
        int rc = read_part(c, st, v, at, to, n, &got, &failures);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- methods ------------------------------------------------------------------ */

/* What the end of a call was, with an exception for a location that is out of date. */
static int outcome(struct call *c, int rc) {
    return rc == 1 ? call_fail(c, CRAIL_E_STALE_LOCATION, 0) : rc;
}

/* The first arguments of whatever reads: extents, size, offset. 0, or -1. */
static int parse_value(PyObject *const *args, struct crail_extent *extents, struct crail_range *v, uint64_t *at) {
    *v = (struct crail_range){.extents = extents};
    if (call_parse_extents(args[0], extents, &v->count))
        return -1;
    v->bytes = PyLong_AsUnsignedLongLong(args[1]);
    *at = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred())
        return -1;
    if (v->bytes <= capacity(v))
        return 0;
    PyErr_SetString(PyExc_ValueError, "the value is longer than its extents");
    return -1;
}

static uint64_t left_from(const struct crail_range *v, uint64_t at, uint64_t n) {
    uint64_t left = at < v->bytes ? v->bytes - at : 0;
    return n < left ? n : left;
}

static int read_call(Pipe *st, PyObject *timeout, const struct crail_range *v, uint64_t at, void *to, uint64_t n) {
    struct call c = {0};
    if (!n)
        return 0;
    if (begin(&c, st, timeout))
        return -1;
    int rc = outcome(&c, read_all(&c, st, v, at, to, n));
    end(&c, st);
    return rc;
}

/* read(extents, size, offset, buffer, timeout) -> int */
static PyObject *pipe_read(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    struct crail_range v;
    uint64_t at;
    Py_buffer b;
    if (!call_arguments("read", n, 5) || parse_value(args, extents, &v, &at) ||
        PyObject_GetBuffer(args[3], &b, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS))
        return NULL;
    uint64_t want = left_from(&v, at, (uint64_t)b.len);
    int rc = read_call((Pipe *)self, args[4], &v, at, b.buf, want);
    PyBuffer_Release(&b);
    return rc ? NULL : PyLong_FromUnsignedLongLong(want);
}

/* read_bytes(extents, size, offset, length, timeout) -> bytes */
static PyObject *pipe_read_bytes(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    struct crail_range v;
    uint64_t at;
    if (!call_arguments("read_bytes", n, 5) || parse_value(args, extents, &v, &at))
        return NULL;
    uint64_t want = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    want = left_from(&v, at, want);
    PyObject *b = call_new_bytes(want);
    if (b && read_call((Pipe *)self, args[4], &v, at, PyBytes_AsString(b), want))
        Py_CLEAR(b);
    return b;
}

/* write(extents, offset, data, timeout, gives_up_early) -> None */
static PyObject *pipe_write(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {0};
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    struct crail_range v = {.extents = extents};
    Py_buffer b;
    if (!call_arguments("write", n, 5) || call_parse_extents(args[0], extents, &v.count))
        return NULL;
    c.gives_up_early = args[4] == Py_True;
    v.bytes = capacity(&v);
    uint64_t at = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred() || call_data_of(args[2], &b))
        return NULL;
    int rc = -1;
    if (at > v.bytes || (uint64_t)b.len > v.bytes - at)
        PyErr_SetString(PyExc_ValueError, "the extents end before the data");
    else
        rc = begin(&c, (Pipe *)self, args[3]);
    if (!rc) {
        rc = outcome(&c, write_all(&c, (Pipe *)self, &v, at, b.buf, (uint64_t)b.len));
        end(&c, (Pipe *)self);
    }
    PyBuffer_Release(&b);
    if (rc)
        return NULL;
    Py_RETURN_NONE;
}

/* settle(timeout) -> None */
static PyObject *pipe_settle(PyObject *self, PyObject *timeout) {
    struct call c = {0};
    Pipe *st = (Pipe *)self;
    if (begin(&c, st, timeout))
        return NULL;
    int rc = outcome(&c, settle(&c, st));
    end(&c, st);
    if (rc)
        return NULL;
    Py_RETURN_NONE;
}

static int arrived(struct call *c, Pipe *st, uint64_t size, uint64_t *until) {
    int rc, failures = 1;
    uint32_t server = st->s.data.server;
    do
        rc = T->pipe_arrived(&st->s, size, until);
    while (rc == -EINTR && (rc = interrupted(st)) == 0 && (rc = -EINTR));
    return rc == 0 || rc == -1 ? rc : failed(c, st, rc, server, &failures);
}

/* arrived(size, timeout) -> int */
static PyObject *pipe_arrived(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {0};
    Pipe *st = (Pipe *)self;
    if (!call_arguments("arrived", n, 2))
        return NULL;
    uint64_t size = PyLong_AsUnsignedLongLong(args[0]), until = size;
    if (PyErr_Occurred())
        return NULL;
    if (st->s.writes) {
        if (begin(&c, st, args[1]))
            return NULL;
        int rc = outcome(&c, arrived(&c, st, size, &until));
        end(&c, st);
        if (rc)
            return NULL;
    }
    return PyLong_FromUnsignedLongLong(until);
}

/* Asks for the first bytes of a range, if they come over TCP. */
static int ask(struct call *c, Pipe *st, const struct crail_range *v, uint64_t at, uint64_t until) {
    uint64_t within;
    int rc = reach(c, st, v->extents[T->range_locate(v, at, &within)].server), failures = 1;
    if (rc != BY_TCP || st->s.asks_count)
        return rc == BY_MEMORY || rc == BY_TCP ? 0 : rc;
    uint32_t server = st->s.data.server;
    do {
        Py_BEGIN_ALLOW_THREADS rc = T->pipe_ask(&st->s, v, at, until, call_deadline(c));
        Py_END_ALLOW_THREADS
    } while (rc == -EINTR && (rc = interrupted(st)) == 0 && (rc = -EINTR));
    return rc == 0 || rc == -1 ? rc : failed(c, st, rc, server, &failures);
}

/* ask(extents, size, offset, length, timeout) -> None */
static PyObject *pipe_ask(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {0};
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    struct crail_range v;
    uint64_t at;
    if (!call_arguments("ask", n, 5) || parse_value(args, extents, &v, &at))
        return NULL;
    uint64_t length = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    length = left_from(&v, at, length);
    if (begin(&c, (Pipe *)self, args[4]))
        return NULL;
    int rc = length ? outcome(&c, ask(&c, (Pipe *)self, &v, at, at + length)) : 0;
    end(&c, (Pipe *)self);
    if (rc)
        return NULL;
    Py_RETURN_NONE;
}

/* behind() -> int: so many writes to a disk are without their answers */
static PyObject *pipe_behind(PyObject *self, PyObject *unused) {
    const struct crail_pipe *s = &((Pipe *)self)->s;
    (void)unused;
    return PyLong_FromUnsignedLong(s->data.is_disk ? s->writes : 0);
}

/* close() -> None: the connection goes back to a lane if nothing is on its way on it. */
static PyObject *pipe_close(PyObject *self, PyObject *unused) {
    struct call c = {0};
    Pipe *st = (Pipe *)self;
    (void)unused;
    if (st->is_busy) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is using this pipe");
        return NULL;
    }
    if (T->pipe_is_ours(&st->s) && st->s.data.fd >= 0 && !st->s.writes && !st->s.asks_count &&
        st->client->client == st->s.client) {
        if (begin(&c, st, Py_None) == 0) {
            T->pipe_put_back(&st->s, c.lane);
            end(&c, st);
        } else {
            PyErr_Clear(); /* no lane to give it to: it ends */
        }
    }
    T->pipe_close(&st->s);
    Py_RETURN_NONE;
}

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))pipe_##name, METH_FASTCALL, doc}

static PyMethodDef pipe_methods[] = {
    FAST(read, "read(extents, size, offset, buffer, timeout) -> int"),
    FAST(read_bytes, "read_bytes(extents, size, offset, length, timeout) -> bytes"),
    FAST(write, "write(extents, offset, data, timeout, gives_up_early): may return while the bytes are on their way"),
    FAST(ask, "ask(extents, size, offset, length, timeout): for bytes that will be read, if they come over TCP"),
    FAST(arrived, "arrived(size, timeout) -> int: so many of the first `size` bytes are there by now"),
    {"behind", pipe_behind, METH_NOARGS, "behind() -> int: so many writes to a disk may be refused still"},
    {"settle", pipe_settle, METH_O, "settle(timeout): waits until everything written is there"},
    {"close", pipe_close, METH_NOARGS, "close(): what is on its way comes to nothing. May be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot pipe_slots[] = {
    {Py_tp_dealloc, pipe_dealloc},
    {Py_tp_methods, pipe_methods},
    {Py_tp_doc, "Moves the bytes of one open file. For one thread at a time, in the process that opened it."},
    {0, NULL},
};

static PyType_Spec pipe_spec = {
    .name = "crailpy._hot.Pipe",
    .basicsize = sizeof(Pipe),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = pipe_slots,
};

PyObject *pipe_type_new(void) {
    PyObject *type = PyType_FromSpec(&pipe_spec);
    pipe_type = (PyTypeObject *)type;
    return type;
}
