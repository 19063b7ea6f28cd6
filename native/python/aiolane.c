/* The type AsyncLane: submitting, connections, end. */
#include <errno.h>
#include <string.h>

#include "aiolane.h"

PyTypeObject *async_batch_type;

/* ---- one operation ----------------------------------------------------------- */

/* What an operation needs beside its path. */
struct submission {
    struct crail_op op;
    const void *options, *data;
    int64_t deadline_ns;
    uint8_t decode;
    bool is_alone;
    uint64_t frame; /* out: its id */
};

static int fail_with(AsyncLane *l, int status, PyObject *about) {
    struct crail_flow_entry e = {.about = about};
    PyObject *error = async_error(l, status, &e, 0);
    if (error) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return -1;
}

/* May anything be asked of the lane? */
static int check_usable(AsyncLane *l) {
    if (l->is_closed || l->close_due || l->fork_epoch != *T->fork_child_epoch)
        return fail_with(l, CRAIL_E_CLOSED, NULL);
    return 0;
}

int async_want_flush(AsyncLane *l) {
    if (l->flush_due)
        return 0;
    PyObject *r = PyObject_CallFunctionObjArgs(l->call_soon, l->on_flush, NULL);
    if (!r)
        return -1;
    Py_DECREF(r);
    l->flush_due = true;
    return 0;
}

/* Is it what a key can be? If not, TypeError is set. */
static bool check_key(PyObject *key) {
    if (PyUnicode_Check(key))
        return true;
    PyErr_Format(PyExc_TypeError, "a key is a str like '/job/part-0', not %R", (PyObject *)Py_TYPE(key));
    return false;
}

/* The path's bytes; NULL with an exception set. *n without the prefix, which the root of a namespace goes without, and
 * what is no path has none: so it is refused by the namenode, among many by itself. */
static const char *path_of(AsyncLane *l, PyObject *key, Py_ssize_t *n, uint16_t *prefix) {
    *prefix = 0;
    *n = 0;
    if (key == Py_None)
        return "";
    if (!check_key(key))
        return NULL;
    const char *s = PyUnicode_AsUTF8AndSize(key, n);
    if (!s)
        PyErr_Clear(); /* lone surrogates: no UTF-8 */
    if (!s || *n + l->prefix_len > (Py_ssize_t)CRAIL_PATH_MAX) {
        *n = 0;
        return "";
    }
    *prefix = s[0] == '/' ? l->prefix_len : 0;
    if (*prefix && *n == 1)
        *n = 0;
    return s;
}

/* Puts the operation into the frame that goes next. Borrows `waiter` (NULL: nobody waits) and `key`. */
static int submit(AsyncLane *l, struct submission *s, PyObject *key, PyObject *waiter, uint32_t index) {
    uint8_t *path, *data;
    uint16_t prefix;
    Py_ssize_t n;
    struct crail_flow_entry *e;
    const char *text = path_of(l, key, &n, &prefix);
    if (!text || async_want_flush(l))
        return -1;
    s->op.path_len = (uint16_t)(prefix + n);
    int rc = T->flow_op(&l->flow, &s->op, s->is_alone, &path, &data, &e, &s->frame);
    if (rc == -EMSGSIZE)
        return fail_with(l, CRAIL_E_INVALID_ARGUMENT, key);
    if (rc) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(path, l->prefix, prefix);
    memcpy(path + prefix, text, (size_t)n);
    if (s->op.options_len)
        memcpy(path + s->op.path_len, s->options, s->op.options_len);
    if (s->op.data_len)
        memcpy(data, s->data, s->op.data_len);
    e->waiter = Py_XNewRef(waiter);
    e->about = Py_XNewRef(key == Py_None ? NULL : key);
    e->decode = s->decode;
    e->index = index;
    e->deadline_ns = s->deadline_ns;
    if (s->deadline_ns < l->earliest_ns)
        l->earliest_ns = s->deadline_ns;
    return 0;
}

static int set_deadline(AsyncLane *l, struct submission *s, PyObject *timeout) {
    int64_t timeout_ns;
    if (call_parse_timeout(timeout, l->timeout_ns, &timeout_ns))
        return -1;
    s->deadline_ns = timeout_ns == TIMEOUT_NS_MAX ? CRAIL_FLOW_NEVER : T->now_ns() + timeout_ns;
    return 0;
}

/* Submits it with a future of its own, which is the result. */
static PyObject *submit_one(AsyncLane *l, struct submission *s, PyObject *key) {
    PyObject *future = check_usable(l) ? NULL : PyObject_CallFunctionObjArgs(l->create_future, NULL);
    if (future && submit(l, s, key, future, 0))
        Py_CLEAR(future);
    return future;
}

/* get(key, missing_none, timeout) -> future of bytes (or None, or a tuple: see DECODE_VALUE) */
static PyObject *lane_get(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    struct submission s = {.op = {.code = CRAIL_OP_GET}, .decode = DECODE_VALUE};
    if (!call_arguments("get", n, 3) || set_deadline(l, &s, args[2]))
        return NULL;
    if (args[1] == Py_True)
        s.decode |= DECODE_MISSING_NONE;
    return submit_one(l, &s, args[0]);
}

/* The options: none, or the whole struct. */
static int take_options(struct submission *s, PyObject *options) {
    char *bytes;
    Py_ssize_t n;
    if (PyBytes_AsStringAndSize(options, &bytes, &n))
        return -1;
    if (n != 0 && n != (Py_ssize_t)sizeof(struct crail_options)) {
        PyErr_SetString(PyExc_ValueError, "options are none, or a struct crail_options");
        return -1;
    }
    s->options = bytes;
    s->op.options_len = (uint16_t)n;
    return 0;
}

/* put(key, data, flags, options, if_version, timeout) -> future of the version; None: too large to travel inline */
static PyObject *lane_put(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    Py_buffer b;
    struct submission s = {.op = {.code = CRAIL_OP_PUT}, .decode = DECODE_VERSION};
    if (!call_arguments("put", n, 6))
        return NULL;
    s.op.flags = (uint16_t)PyLong_AsLong(args[2]);
    s.op.arg0 = PyLong_AsUnsignedLongLong(args[4]);
    if (PyErr_Occurred() || take_options(&s, args[3]) || set_deadline(l, &s, args[5]) || check_usable(l) ||
        !check_key(args[0]) || call_data_of(args[1], &b))
        return NULL;
    PyObject *r;
    if ((uint64_t)b.len > l->core->options.inline_max) {
        r = Py_NewRef(Py_None);
    } else {
        s.data = b.buf;
        s.op.data_len = (uint32_t)b.len;
        r = submit_one(l, &s, args[0]);
    }
    PyBuffer_Release(&b);
    return r;
}

/* The plain call's arguments: (code, flags, key or None, data, options, count, arg0, arg1). */
static int take_call(struct submission *s, PyObject *const *args, Py_buffer *b) {
    s->op.code = (uint16_t)PyLong_AsLong(args[0]);
    s->op.flags = (uint16_t)PyLong_AsLong(args[1]);
    s->op.count = (uint32_t)PyLong_AsUnsignedLong(args[5]);
    s->op.arg0 = PyLong_AsUnsignedLongLong(args[6]);
    s->op.arg1 = PyLong_AsUnsignedLongLong(args[7]);
    if (PyErr_Occurred() || take_options(s, args[4]) || call_data_of(args[3], b))
        return -1;
    if ((uint64_t)b->len > CRAIL_FRAME_BYTES_MAX) {
        PyBuffer_Release(b);
        PyErr_SetString(PyExc_ValueError, "data of a plain call must fit into a frame");
        return -1;
    }
    s->data = b->buf;
    s->op.data_len = (uint32_t)b->len;
    return 0;
}

/* call(code, flags, key, data, options, count, arg0, arg1, alone, timeout) -> (future of (version, size, kind, flags,
 * count, data), id of the frame, which cancel() takes where it is alone in it) */
static PyObject *lane_call(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    Py_buffer b;
    struct submission s = {.decode = DECODE_RAW};
    if (!call_arguments("call", n, 10))
        return NULL;
    s.is_alone = args[8] == Py_True;
    if (set_deadline(l, &s, args[9]) || take_call(&s, args, &b))
        return NULL;
    PyObject *future = submit_one(l, &s, args[2]);
    PyBuffer_Release(&b);
    return future ? Py_BuildValue("NK", future, (unsigned long long)s.frame) : NULL;
}

/* post(code, flags, key, data, options, count, arg0, arg1): a call whose answer nobody waits for */
static PyObject *lane_post(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    Py_buffer b;
    struct submission s = {.decode = DECODE_RAW, .deadline_ns = CRAIL_FLOW_NEVER};
    if (!call_arguments("post", n, 8) || check_usable(l) || take_call(&s, args, &b))
        return NULL;
    int rc = submit(l, &s, args[2], NULL, 0);
    PyBuffer_Release(&b);
    return rc ? NULL : Py_NewRef(Py_None);
}

/* ---- many ------------------------------------------------------------------------ */

static AsyncBatch *new_batch(AsyncLane *l, Py_ssize_t n) {
    AsyncBatch *b = check_usable(l) ? NULL : PyObject_New(AsyncBatch, async_batch_type);
    if (!b)
        return NULL;
    b->future = NULL;
    b->left = n;
    b->results = PyList_New(n);
    b->future = b->results ? PyObject_CallFunctionObjArgs(l->create_future, NULL) : NULL;
    if (!b->future)
        Py_CLEAR(b);
    return b;
}

/* The future of a batch that was submitted (rc 0), or NULL; drops the batch. */
static PyObject *end_batch(AsyncBatch *b, int rc) {
    PyObject *future = rc ? NULL : Py_NewRef(b->future);
    PyObject *type, *value, *trace;
    if (rc) { /* what is in frames already is never sent */
        PyErr_Fetch(&type, &value, &trace);
        Py_XDECREF(PyObject_CallMethod(b->future, "cancel", NULL));
        PyErr_Restore(type, value, trace);
    } else if (b->left == 0) {
        Py_XDECREF(PyObject_CallMethod(b->future, "set_result", "O", b->results));
    }
    Py_DECREF(b);
    return future;
}

static PyObject *submit_keys(AsyncLane *l, struct submission *s, PyObject *keys) {
    if (!PyList_Check(keys)) {
        PyErr_SetString(PyExc_TypeError, "keys must be a list");
        return NULL;
    }
    Py_ssize_t n = PyList_Size(keys);
    AsyncBatch *b = new_batch(l, n);
    int rc = 0;
    for (Py_ssize_t i = 0; b && rc == 0 && i < n; i++)
        rc = submit(l, s, PyList_GetItem(keys, i), (PyObject *)b, (uint32_t)i);
    return b ? end_batch(b, rc) : NULL;
}

/* get_many(keys: list, missing_none, timeout) -> future of a list: each as get() has it, or a CrailError */
static PyObject *lane_get_many(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    struct submission s = {.op = {.code = CRAIL_OP_GET}, .decode = DECODE_VALUE};
    if (!call_arguments("get_many", n, 3) || set_deadline(l, &s, args[2]))
        return NULL;
    if (args[1] == Py_True)
        s.decode |= DECODE_MISSING_NONE;
    return submit_keys(l, &s, args[0]);
}

/* call_many(code, flags, keys: list, timeout) -> future of a list: each as call() has it, or a CrailError */
static PyObject *lane_call_many(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    struct submission s = {.decode = DECODE_RAW};
    if (!call_arguments("call_many", n, 4) || set_deadline(l, &s, args[3]))
        return NULL;
    s.op.code = (uint16_t)PyLong_AsLong(args[0]);
    s.op.flags = (uint16_t)PyLong_AsLong(args[1]);
    return PyErr_Occurred() ? NULL : submit_keys(l, &s, args[2]);
}

/* Is it a pair of a key and of data that travels inline? Whatever is wrong with it, put() will say. */
static bool is_inline_item(const AsyncLane *l, PyObject *item) {
    Py_buffer b;
    if (!PyTuple_Check(item) || PyTuple_Size(item) != 2 || !PyUnicode_Check(PyTuple_GetItem(item, 0)))
        return false;
    if (call_data_of(PyTuple_GetItem(item, 1), &b)) {
        PyErr_Clear();
        return false;
    }
    bool fits = (uint64_t)b.len <= l->core->options.inline_max;
    PyBuffer_Release(&b);
    return fits;
}

/* How many of items[from...], up to the first that has to be put by itself. */
static Py_ssize_t count_inline(const AsyncLane *l, PyObject *items, Py_ssize_t from) {
    Py_ssize_t n = PyList_Size(items), i = from;
    while (i < n && is_inline_item(l, PyList_GetItem(items, i)))
        i++;
    return i - from;
}

static int submit_item(AsyncLane *l, struct submission *s, PyObject *item, AsyncBatch *batch, uint32_t index) {
    Py_buffer b;
    if (call_data_of(PyTuple_GetItem(item, 1), &b))
        return -1;
    s->data = b.buf;
    s->op.data_len = (uint32_t)b.len;
    int rc = (uint64_t)b.len > l->core->options.inline_max /* it has grown meanwhile */
                 ? fail_with(l, CRAIL_E_INVALID_ARGUMENT, PyTuple_GetItem(item, 0))
                 : submit(l, s, PyTuple_GetItem(item, 0), (PyObject *)batch, index);
    PyBuffer_Release(&b);
    return rc;
}

/* put_many(items: list of (key, data), from, flags, options, timeout) -> (future of a list: version or CrailError each,
 * how many): items[from...] up to the end or to the first that is to be put by itself: it is too large to travel
 * inline, or there is something wrong with it */
static PyObject *lane_put_many(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    struct submission s = {.op = {.code = CRAIL_OP_PUT}, .decode = DECODE_VERSION};
    if (!call_arguments("put_many", n, 5) || take_options(&s, args[3]) || set_deadline(l, &s, args[4]))
        return NULL;
    Py_ssize_t from = PyLong_AsSsize_t(args[1]);
    s.op.flags = (uint16_t)PyLong_AsLong(args[2]);
    if (PyErr_Occurred() || check_usable(l))
        return NULL;
    if (!PyList_Check(args[0]) || from < 0) {
        PyErr_SetString(PyExc_TypeError, "items must be a list");
        return NULL;
    }
    Py_ssize_t count = count_inline(l, args[0], from);
    AsyncBatch *b = count < 0 ? NULL : new_batch(l, count);
    int rc = 0;
    for (Py_ssize_t i = 0; b && rc == 0 && i < count; i++)
        rc = submit_item(l, &s, PyList_GetItem(args[0], from + i), b, (uint32_t)i);
    PyObject *future = b ? end_batch(b, rc) : NULL;
    return future ? Py_BuildValue("Nn", future, count) : NULL;
}

/* ---- giving up --------------------------------------------------------------------- */

void async_take_back(AsyncLane *l, uint64_t frame) {
    uint8_t *path, *data;
    uint64_t id;
    struct crail_flow_entry *e;
    struct crail_op op = {.code = CRAIL_OP_CANCEL, .arg0 = frame};
    if (async_want_flush(l)) {
        PyErr_Clear(); /* the loop is closed */
        return;
    }
    if (T->flow_op(&l->flow, &op, false, &path, &data, &e, &id))
        return; /* no memory: then the namenode's own time limit ends the wait */
    e->decode = DECODE_CANCEL;
    e->target = frame;
}

/* cancel(id) -> bool: the caller of a call that was alone in its frame has given up. True: it never went out. If its
 * future is still open, it gets the answer that may be on its way already, or is cancelled if none comes */
static PyObject *lane_cancel(PyObject *self, PyObject *id) {
    AsyncLane *l = (AsyncLane *)self;
    uint64_t number = PyLong_AsUnsignedLongLong(id);
    if (PyErr_Occurred())
        return NULL;
    struct crail_flow_frame *f = l->is_closed || l->close_due ? NULL : T->flow_find(&l->flow, number);
    if (f && !f->is_sent && !l->busy) {
        T->flow_remove(&l->flow, f);
        Py_RETURN_TRUE;
    }
    if (f && f->waits) {
        if (f->entries[0].waiter && async_owner.is_dead(&f->entries[0])) {
            async_owner.forget(&f->entries[0]);
            f->entries[0].is_dropped = true;
        }
        if (f->is_sent)
            async_take_back(l, number);
    }
    Py_RETURN_FALSE;
}

/* withdraw(future) -> bool: True if what it asks for was not sent yet, and never will be */
static PyObject *lane_withdraw(PyObject *self, PyObject *future) {
    AsyncLane *l = (AsyncLane *)self;
    for (struct crail_list *at = l->flow.queued.next; at != &l->flow.queued; at = at->next) {
        struct crail_flow_frame *f = CRAIL_LIST_OF(at, struct crail_flow_frame, link);
        for (uint32_t i = 0; i < f->count; i++) {
            if (f->entries[i].waiter != future)
                continue;
            f->entries[i].is_dropped = true;
            async_owner.forget(&f->entries[i]);
            Py_RETURN_TRUE;
        }
    }
    Py_RETURN_FALSE;
}

/* Fails what waits in the list, with the same error. */
static void fail_list(AsyncLane *l, struct crail_list *list, PyObject *error) {
    for (struct crail_list *at = list->next; at != list; at = at->next) {
        struct crail_flow_frame *f = CRAIL_LIST_OF(at, struct crail_flow_frame, link);
        for (uint32_t i = 0; i < f->count; i++) {
            async_fail(l, &f->entries[i], Py_NewRef(error));
            f->entries[i].is_dropped = true;
        }
    }
}

static void remove_list(AsyncLane *l, struct crail_list *list) {
    while (!crail_list_empty(list))
        T->flow_remove(&l->flow, CRAIL_LIST_OF(list->next, struct crail_flow_frame, link));
}

/* fail(error, only_sent): without a connection. Ends what is in flight, or all there is */
static PyObject *lane_fail(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    if (!call_arguments("fail", n, 2))
        return NULL;
    if (l->flow.fd >= 0 || l->busy) {
        PyErr_SetString(PyExc_RuntimeError, "fail() is for a lane without a connection");
        return NULL;
    }
    l->busy++;
    fail_list(l, &l->flow.sent, args[0]);
    if (args[1] != Py_True)
        fail_list(l, &l->flow.queued, args[0]);
    l->busy--;
    remove_list(l, &l->flow.sent);
    if (args[1] != Py_True)
        remove_list(l, &l->flow.queued);
    async_close_if_due(l);
    Py_RETURN_NONE;
}

/* ---- connection ----------------------------------------------------------------------- */

/* attach(fd, fresh): a nonblocking connection whose hello is done; stays the caller's */
static PyObject *lane_attach(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    AsyncLane *l = (AsyncLane *)self;
    if (!call_arguments("attach", n, 2))
        return NULL;
    long fd = PyLong_AsLong(args[0]);
    if (PyErr_Occurred() || check_usable(l))
        return NULL;
    if (fd < 0 || l->flow.fd >= 0) {
        PyErr_SetString(PyExc_ValueError, "attach() takes a descriptor, and detach() comes first");
        return NULL;
    }
    uint64_t retries = l->flow.retries;
    T->flow_attach(&l->flow, (int)fd, args[1] == Py_True);
    atomic_fetch_add_explicit(&l->core->retries, l->flow.retries - retries, memory_order_relaxed);
    Py_RETURN_NONE;
}

static PyObject *lane_detach(PyObject *self, PyObject *unused) {
    AsyncLane *l = (AsyncLane *)self;
    (void)unused;
    if (!l->is_closed && !l->busy && l->flow.fd >= 0) {
        l->busy++;
        T->flow_detach(&l->flow);
        l->busy--;
        atomic_fetch_add_explicit(&l->core->reconnects, 1, memory_order_relaxed);
        async_close_if_due(l);
    }
    Py_RETURN_NONE;
}

/* flush() -> 0; 1: wait until the socket takes more; -1: the connection is lost; 2: there is none */
static PyObject *lane_flush(PyObject *self, PyObject *unused) {
    AsyncLane *l = (AsyncLane *)self;
    (void)unused;
    l->flush_due = false;
    async_expire(l, T->now_ns()); /* what is late is not sent */
    if (l->is_closed)
        return PyLong_FromLong(0);
    if (l->flow.fd < 0)
        return PyLong_FromLong(2);
    uint64_t requests = l->flow.requests;
    l->busy++;
    int rc = T->flow_flush(&l->flow, T->now_ns());
    l->busy--;
    atomic_fetch_add_explicit(&l->core->requests, l->flow.requests - requests, memory_order_relaxed);
    async_close_if_due(l);
    return PyLong_FromLong(rc == 0 ? 0 : rc == -EAGAIN ? 1 : -1);
}

/* ---- the object ------------------------------------------------------------------------- */

/* In a forked child the client is the parent's. */
static void release_core(AsyncLane *l) {
    crail_client *core = l->core;
    l->core = NULL;
    if (core && core->fork_epoch == *T->fork_child_epoch)
        T->client_unref(core);
}

static void close_now(AsyncLane *l) {
    l->is_closed = true;
    l->close_due = false;
    l->earliest_ns = CRAIL_FLOW_NEVER;
    l->flow.fd = -1;
    for (int i = 0; i < 2; i++) {
        struct crail_list *list = i ? &l->flow.queued : &l->flow.sent;
        l->busy++;
        for (struct crail_list *at = list->next; at != list; at = at->next) {
            struct crail_flow_frame *f = CRAIL_LIST_OF(at, struct crail_flow_frame, link);
            for (uint32_t k = 0; k < f->count; k++)
                if (f->entries[k].waiter)
                    async_fail(l, &f->entries[k], async_error(l, CRAIL_E_CLOSED, &f->entries[k], 0));
        }
        l->busy--;
    }
    T->flow_free(&l->flow);
    release_core(l);
    Py_CLEAR(l->create_future);
    Py_CLEAR(l->call_soon);
    Py_CLEAR(l->on_flush);
}

void async_close_if_due(AsyncLane *l) {
    if (l->close_due && !l->busy && !l->is_closed)
        close_now(l);
}

/* close(): fails every call with ClosedError. May be called twice */
static PyObject *lane_close(PyObject *self, PyObject *unused) {
    AsyncLane *l = (AsyncLane *)self;
    (void)unused;
    if (!l->is_closed) {
        l->close_due = true;
        async_close_if_due(l);
    }
    Py_RETURN_NONE;
}

/* AsyncLane(core, recorded, prefix, timeout, create_future, call_soon, on_flush, error) */
static int lane_init(PyObject *self, PyObject *args, PyObject *kw) {
    AsyncLane *l = (AsyncLane *)self;
    unsigned long long core;
    int recorded;
    const char *prefix;
    Py_ssize_t prefix_len;
    double timeout;
    PyObject *create_future, *call_soon, *on_flush, *error;
    if ((kw && PyDict_Size(kw)) || l->error) {
        PyErr_SetString(PyExc_TypeError, "AsyncLane takes no keyword arguments, once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "Kpy#dOOOO", &core, &recorded, &prefix, &prefix_len, &timeout, &create_future,
                          &call_soon, &on_flush, &error))
        return -1;
    if (!T || !core || prefix_len >= (Py_ssize_t)CRAIL_PATH_MAX || !(timeout >= 0)) {
        PyErr_SetString(PyExc_ValueError, "unbound core, prefix too long, or negative timeout");
        return -1;
    }
    l->core = (crail_client *)(uintptr_t)core;
    T->client_ref(l->core);
    T->flow_init(&l->flow, recorded, &async_owner);
    l->create_future = Py_NewRef(create_future);
    l->call_soon = Py_NewRef(call_soon);
    l->on_flush = Py_NewRef(on_flush);
    l->error = Py_NewRef(error);
    l->timeout_ns = timeout * 1e9 >= (double)TIMEOUT_NS_MAX ? TIMEOUT_NS_MAX : (int64_t)(timeout * 1e9);
    l->earliest_ns = CRAIL_FLOW_NEVER;
    l->fork_epoch = *T->fork_child_epoch;
    l->prefix_len = (uint16_t)prefix_len;
    memcpy(l->prefix, prefix, (size_t)prefix_len);
    return 0;
}

static int visit_list(const struct crail_list *list, visitproc visit, void *arg) {
    for (const struct crail_list *at = list->next; at != list; at = at->next) {
        struct crail_flow_frame *f = CRAIL_LIST_OF(at, struct crail_flow_frame, link);
        for (uint32_t i = 0; i < f->count; i++)
            Py_VISIT((PyObject *)f->entries[i].waiter);
    }
    return 0;
}

static int lane_traverse(PyObject *self, visitproc visit, void *arg) {
    AsyncLane *l = (AsyncLane *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(l->create_future);
    Py_VISIT(l->call_soon);
    Py_VISIT(l->on_flush);
    Py_VISIT(l->error);
    if (!l->core)
        return 0;
    int rc = visit_list(&l->flow.sent, visit, arg);
    return rc ? rc : visit_list(&l->flow.queued, visit, arg);
}

/* Nobody is left who could be told: entries go without an answer. */
static int lane_clear(PyObject *self) {
    AsyncLane *l = (AsyncLane *)self;
    if (l->core && !l->is_closed) {
        l->is_closed = true;
        T->flow_free(&l->flow);
    }
    Py_CLEAR(l->create_future);
    Py_CLEAR(l->call_soon);
    Py_CLEAR(l->on_flush);
    Py_CLEAR(l->error);
    return 0;
}

static void lane_dealloc(PyObject *self) {
    AsyncLane *l = (AsyncLane *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    lane_clear(self);
    release_core(l);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *get_frames(PyObject *self, void *unused) {
    (void)unused;
    AsyncLane *l = (AsyncLane *)self;
    return PyLong_FromUnsignedLong(l->is_closed ? 0 : l->flow.frames_count);
}

static PyObject *get_maybe_done(PyObject *self, void *unused) {
    (void)unused;
    AsyncLane *l = (AsyncLane *)self;
    bool is = !l->is_closed && l->flow.is_recorded && !crail_list_empty(&l->flow.sent) &&
              CRAIL_LIST_OF(l->flow.sent.next, struct crail_flow_frame, link)->may_be_done;
    return PyBool_FromLong(is);
}

static PyObject *get_earliest(PyObject *self, void *unused) {
    (void)unused;
    int64_t ns = ((AsyncLane *)self)->earliest_ns;
    return PyFloat_FromDouble(ns == CRAIL_FLOW_NEVER ? Py_HUGE_VAL : (double)ns / 1e9);
}

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))lane_##name, METH_FASTCALL, doc}

static PyMethodDef lane_methods[] = {
    FAST(get, "get(key, missing_none, timeout) -> future"),
    FAST(put, "put(key, data, flags, options, if_version, timeout) -> future, or None if it is too large"),
    FAST(call, "call(code, flags, key, data, options, count, arg0, arg1, alone, timeout) -> (future, id)"),
    FAST(post, "post(code, flags, key, data, options, count, arg0, arg1)"),
    FAST(get_many, "get_many(keys, missing_none, timeout) -> future"),
    FAST(put_many, "put_many(items, from, flags, options, timeout) -> (future, how many)"),
    FAST(call_many, "call_many(code, flags, keys, timeout) -> future"),
    {"cancel", lane_cancel, METH_O, "cancel(id) -> bool"},
    {"withdraw", lane_withdraw, METH_O, "withdraw(future) -> bool"},
    FAST(fail, "fail(error, only_sent)"),
    FAST(attach, "attach(fd, fresh)"),
    {"detach", lane_detach, METH_NOARGS, "detach()"},
    {"flush", lane_flush, METH_NOARGS, "flush() -> int"},
    {"reap", async_reap, METH_NOARGS, "reap() -> int"},
    {"tick", async_tick, METH_NOARGS, "tick() -> (next deadline, silent since)"},
    {"close", lane_close, METH_NOARGS, "close()"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef lane_getset[] = {
    {"frames", get_frames, NULL, "Frames that are queued or in flight.", NULL},
    {"maybe_done", get_maybe_done, NULL, "May a change that is in flight have been executed?", NULL},
    {"earliest", get_earliest, NULL, "No deadline is before this time of the monotonic clock, in seconds.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_init, lane_init},
    {Py_tp_dealloc, lane_dealloc},
    {Py_tp_traverse, lane_traverse},
    {Py_tp_clear, lane_clear},
    {Py_tp_methods, lane_methods},
    {Py_tp_getset, lane_getset},
    {Py_tp_doc, "Many requests in flight on one connection, each with a future."},
    {0, NULL},
};

static PyType_Spec async_lane_spec = {
    .name = "crailpy._hot.AsyncLane",
    .basicsize = sizeof(AsyncLane),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = lane_slots,
};

static void batch_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    AsyncBatch *b = (AsyncBatch *)self;
    Py_CLEAR(b->future);
    Py_CLEAR(b->results);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot batch_slots[] = {
    {Py_tp_dealloc, batch_dealloc},
    {0, NULL},
};

static PyType_Spec async_batch_spec = {
    .name = "crailpy._hot.AsyncBatch",
    .basicsize = sizeof(AsyncBatch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = batch_slots,
};

static int add_type(PyObject *m, const char *name, PyType_Spec *spec) {
    PyObject *type = PyType_FromSpec(spec);
    int rc = type ? PyModule_AddObjectRef(m, name, type) : -1;
    Py_XDECREF(type);
    return rc;
}

int async_add(PyObject *m) {
    async_batch_type = (PyTypeObject *)PyType_FromSpec(&async_batch_spec);
    if (!async_batch_type || add_type(m, "AsyncLane", &async_lane_spec) || add_type(m, "Copy", &copy_spec) ||
        add_type(m, "Landing", &landing_spec) || add_type(m, "Flat", &flat_spec))
        return -1;
    return PyModule_AddFunctions(m, async_functions);
}
