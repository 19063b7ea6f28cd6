/* What comes back on an AsyncLane, and what does not come in time. */
#include <errno.h>

#include "aiolane.h"

#define RECEIVES_MAX 16 /* of one call: then the loop's other callbacks have their turn */

/* ---- waiters --------------------------------------------------------------- */

static PyObject *future_of(const struct crail_flow_entry *e) {
    PyObject *waiter = e->waiter;
    return Py_TYPE(waiter) == async_batch_type ? ((AsyncBatch *)waiter)->future : waiter;
}

static bool is_dead(const struct crail_flow_entry *e) {
    static PyObject *done;
    if (!done && !(done = PyUnicode_InternFromString("done")))
        return PyErr_Clear(), false;
    PyObject *r = PyObject_CallMethodObjArgs(future_of(e), done, NULL);
    if (!r)
        PyErr_Clear();
    Py_XDECREF(r);
    return r == Py_True;
}

static void forget(struct crail_flow_entry *e) {
    PyObject *waiter = e->waiter, *about = e->about;
    e->waiter = e->about = NULL;
    Py_XDECREF(waiter);
    Py_XDECREF(about);
}

const struct crail_flow_owner async_owner = {.is_dead = is_dead, .forget = forget};

/* A future that is done already belongs to a caller who has given up; and a loop may be closed. Neither matters. */
static void set(PyObject *future, const char *method, PyObject *value) {
    PyObject *r = value ? PyObject_CallMethod(future, method, "O", value) : NULL;
    if (!r)
        PyErr_Clear();
    Py_XDECREF(r);
}

static void set_result(PyObject *future, PyObject *value) {
    static PyObject *name;
    if (!name && !(name = PyUnicode_InternFromString("set_result"))) {
        PyErr_Clear();
        return;
    }
    PyObject *r = PyObject_CallMethodObjArgs(future, name, value, NULL);
    if (!r)
        PyErr_Clear();
    Py_XDECREF(r);
}

static void settle_batch(AsyncBatch *b, Py_ssize_t index, PyObject *outcome) {
    if (PyList_SetItem(b->results, index, outcome))
        PyErr_Clear();
    if (--b->left == 0)
        set_result(b->future, b->results);
}

void async_settle(AsyncLane *l, struct crail_flow_entry *e, PyObject *value, PyObject *error) {
    (void)l;
    PyObject *waiter = e->waiter;
    if (waiter && Py_TYPE(waiter) == async_batch_type) {
        settle_batch((AsyncBatch *)waiter, e->index, value ? value : error);
    } else {
        if (waiter && value)
            set_result(waiter, value);
        else if (waiter)
            set(waiter, "set_exception", error);
        Py_XDECREF(value);
        Py_XDECREF(error);
    }
    forget(e);
}

void async_fail(AsyncLane *l, struct crail_flow_entry *e, PyObject *error) {
    (void)l;
    if (e->waiter)
        set(future_of(e), "set_exception", error);
    Py_XDECREF(error);
    forget(e);
}

PyObject *async_error(AsyncLane *l, int status, const struct crail_flow_entry *e, uint32_t server) {
    PyObject *error = PyObject_CallFunction(l->error, "iOI", status < 0 ? -status : status,
                                            e->about ? (PyObject *)e->about : Py_None, server);
    if (!error) { /* no memory, or the interpreter is going down: what was raised is what we have */
        PyObject *type, *trace;
        PyErr_Fetch(&type, &error, &trace);
        PyErr_NormalizeException(&type, &error, &trace);
        Py_XDECREF(type);
        Py_XDECREF(trace);
    }
    return error;
}

/* ---- replies ---------------------------------------------------------------- */

static PyObject *raw(const struct crail_result *r, const struct crail_flow_entry *deadline_of) {
    const char *data = (const char *)(r + 1);
    if (deadline_of)
        return Py_BuildValue("KKiiiy#d", (unsigned long long)r->version, (unsigned long long)r->size, (int)r->kind,
                             (int)r->flags, (int)r->count, data, (Py_ssize_t)r->data_len,
                             deadline_of->deadline_ns == CRAIL_FLOW_NEVER ? Py_HUGE_VAL
                                                                          : (double)deadline_of->deadline_ns / 1e9);
    return Py_BuildValue("KKiiiy#", (unsigned long long)r->version, (unsigned long long)r->size, (int)r->kind,
                         (int)r->flags, (int)r->count, data, (Py_ssize_t)r->data_len);
}

static PyObject *decode(const struct crail_flow_entry *e, const struct crail_result *r) {
    switch (e->decode & ~DECODE_MISSING_NONE) {
    case DECODE_VERSION:
        return PyLong_FromUnsignedLongLong(r->version);
    case DECODE_VALUE:
        if ((r->flags & (CRAIL_RESF_INLINE | CRAIL_RESF_DELETE_AFTER_READ)) == CRAIL_RESF_INLINE)
            return PyBytes_FromStringAndSize((const char *)(r + 1), r->data_len);
        return raw(r, e);
    default:
        return raw(r, NULL);
    }
}

/* Nobody will answer the frame any more: whoever still looks at its future learns it. */
static void taken_back(AsyncLane *l, uint64_t id) {
    struct crail_flow_frame *f = T->flow_find(&l->flow, id);
    if (!f || !f->waits)
        return;
    if (f->entries[0].waiter) {
        PyObject *r = PyObject_CallMethod(future_of(&f->entries[0]), "cancel", NULL);
        if (!r)
            PyErr_Clear();
        Py_XDECREF(r);
    }
    T->flow_remove(&l->flow, f);
}

static void take_result(AsyncLane *l, struct crail_flow_entry *e, const struct crail_result *r) {
    if (e->decode == DECODE_CANCEL && r->status == 0 && r->size)
        taken_back(l, e->target);
    if (!e->waiter)
        return;
    PyObject *value = NULL, *error = NULL;
    if ((e->decode & DECODE_MISSING_NONE) && call_is_absent(r->status))
        value = Py_NewRef(Py_None);
    else if (r->status)
        error = async_error(l, r->status, e, r->server);
    else if (!(value = decode(e, r)))
        error = (PyErr_Clear(), PyObject_CallFunction(PyExc_MemoryError, NULL));
    async_settle(l, e, value, error);
}

static void take_reply(AsyncLane *l, struct crail_flow_frame *f, const struct crail_result *r) {
    for (uint32_t i = 0; i < f->count; i++, r = T->flow_next(r))
        take_result(l, &f->entries[i], r);
    T->flow_frame_free(&l->flow, f);
}

/* 0: all that is there was taken, or enough for now; -EPIPE. */
static int reap(AsyncLane *l) {
    for (int i = 0; i < RECEIVES_MAX; i++) {
        struct crail_flow_frame *f;
        const struct crail_result *r;
        int rc;
        long n = T->flow_receive(&l->flow, T->now_ns());
        if (n < 0)
            return n == -EAGAIN ? 0 : -EPIPE;
        while (!l->close_due && (rc = T->flow_reply(&l->flow, &f, &r)) == 1)
            take_reply(l, f, r);
        if (l->close_due)
            return 0;
        if (rc < 0)
            return rc;
        if (l->flow.in.len < l->flow.in.cap) /* there was no more: spare the kernel the question */
            return 0;
    }
    return 0;
}

/* reap() -> 0; 1: there is something to flush; -1: the connection is lost */
PyObject *async_reap(PyObject *self, PyObject *unused) {
    AsyncLane *l = (AsyncLane *)self;
    (void)unused;
    if (l->is_closed || l->flow.fd < 0)
        return PyLong_FromLong(0);
    l->busy++;
    int rc = reap(l);
    l->busy--;
    async_close_if_due(l);
    return PyLong_FromLong(rc ? -1 : !l->is_closed && !crail_list_empty(&l->flow.queued));
}

/* ---- deadlines ----------------------------------------------------------------- */

static void late(AsyncLane *l, struct crail_flow_frame *f, struct crail_flow_entry *e) {
    async_fail(l, e, async_error(l, CRAIL_E_DEADLINE, e, 0));
    e->is_dropped = true;
    e->deadline_ns = CRAIL_FLOW_NEVER;
    if (f->waits && f->is_sent)
        async_take_back(l, f->id);
}

static void expire(AsyncLane *l, struct crail_list *list, int64_t now_ns) {
    for (struct crail_list *at = list->next; at != list; at = at->next) {
        struct crail_flow_frame *f = CRAIL_LIST_OF(at, struct crail_flow_frame, link);
        for (uint32_t i = 0; i < f->count; i++) {
            struct crail_flow_entry *e = &f->entries[i];
            if (e->waiter && e->deadline_ns <= now_ns)
                late(l, f, e);
            else if (e->waiter && e->deadline_ns < l->earliest_ns)
                l->earliest_ns = e->deadline_ns;
        }
    }
}

void async_expire(AsyncLane *l, int64_t now_ns) {
    if (l->is_closed || l->earliest_ns > now_ns)
        return;
    l->earliest_ns = CRAIL_FLOW_NEVER;
    l->busy++;
    expire(l, &l->flow.sent, now_ns);
    expire(l, &l->flow.queued, now_ns);
    l->busy--;
    async_close_if_due(l);
}

/* tick() -> (deadline before which nothing more is late, time of the last sign of life that a reply is missing since),
 * both in seconds, infinity for none */
PyObject *async_tick(PyObject *self, PyObject *unused) {
    AsyncLane *l = (AsyncLane *)self;
    (void)unused;
    async_expire(l, T->now_ns());
    int64_t since = l->is_closed ? CRAIL_FLOW_NEVER : T->flow_silent_since(&l->flow);
    return Py_BuildValue("dd", l->earliest_ns == CRAIL_FLOW_NEVER ? Py_HUGE_VAL : (double)l->earliest_ns / 1e9,
                         since == CRAIL_FLOW_NEVER ? Py_HUGE_VAL : (double)since / 1e9);
}
