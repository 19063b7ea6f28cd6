/* One call: check a lane out, send, wait, reconnect where needed, move bulk data. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "door.h"

#define RESEND_NS_FIRST 1000000000ll /* a reply this late may have been lost: ask again on a new connection */
#define LOOK_AT_SIGNALS_NS 100000000ll
#define REACH_NS_MAX 250000000ll /* for a server in whose place another will do */
#define LATE_CALLS 16            /* so many calls of a lane give the lock up at once after a late reply */

int64_t call_deadline(struct call *c) {
    if (!c->deadline_ns) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        c->deadline_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec + c->timeout_ns;
    }
    return c->deadline_ns;
}

static int64_t time_left(struct call *c) {
    struct timespec t;
    int64_t deadline = call_deadline(c);
    clock_gettime(CLOCK_MONOTONIC, &t);
    return deadline - ((int64_t)t.tv_sec * 1000000000 + t.tv_nsec);
}

static double deadline_seconds(struct call *c) {
    return (double)call_deadline(c) / 1e9;
}

/* ---- arguments and errors ------------------------------------------------ */

bool call_arguments(const char *name, Py_ssize_t n, Py_ssize_t want) {
    if (n == want)
        return true;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, want, n);
    return false;
}

PyObject *call_error(struct call *c, int status, uint32_t server) {
    return PyObject_CallMethod(c->self->owner, "_error", "iOI", status < 0 ? -status : status,
                               c->key ? c->key : Py_None, server);
}

int call_fail(struct call *c, int status, uint32_t server) {
    PyObject *error = call_error(c, status, server);
    if (error) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return -1;
}

/* ---- lanes --------------------------------------------------------------- */

static int open_lane(struct call *c, bool is_mutating, int attempt) {
    PyObject *r = PyObject_CallMethod(c->self->owner, "_open_lane", "IOid", c->lane->number,
                                      is_mutating ? Py_True : Py_False, attempt, deadline_seconds(c));
    Py_XDECREF(r);
    c->self->lanes_opened++;
    return r ? 0 : -1;
}

/* The call ends without its reply, and its lane without its connection: the session stays. An exception is set. */
static void discard_lane(struct call *c) {
    PyObject *type, *value, *trace;
    T->lane_discard(c->lane);
    c->lane = NULL;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *r = PyObject_CallMethod(c->self->owner, "_stay", NULL);
    Py_XDECREF(r);
    PyErr_Restore(type, value, trace); /* instead of another, a second interruption */
}

int call_refuse(const char *why) {
    PyErr_Clear(); /* what a conversion said of it */
    PyObject *errors = PyImport_ImportModule("crailpy.errors");
    PyObject *type = errors ? PyObject_GetAttrString(errors, "InvalidArgumentError") : NULL;
    if (type)
        PyErr_SetString(type, why);
    Py_XDECREF(type);
    Py_XDECREF(errors);
    return -1;
}

int call_parse_timeout(PyObject *timeout, int64_t own_ns, int64_t *out) {
    *out = own_ns;
    if (timeout == Py_None)
        return 0;
    double seconds = PyFloat_AsDouble(timeout);
    if (!(seconds >= 0))
        return call_refuse("timeout is a number of seconds, 0 or more");
    *out = seconds * 1e9 >= (double)TIMEOUT_NS_MAX ? TIMEOUT_NS_MAX : (int64_t)(seconds * 1e9);
    return 0;
}

int call_follow_fork(HotClient *self) {
    if (self->client->fork_epoch == *T->fork_child_epoch)
        return 0;
    PyObject *r = PyObject_CallMethod(self->owner, "_after_fork", NULL);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

static int wait_for_lane(struct call *c) {
    crail_client *client = c->self->client;
    int64_t left = time_left(c);
    if (left <= 0)
        return call_fail(c, CRAIL_E_DEADLINE, 0);
    if (left > LOOK_AT_SIGNALS_NS)
        left = LOOK_AT_SIGNALS_NS;
    T->client_ref(client);
    Py_BEGIN_ALLOW_THREADS T->lane_wait(client, left);
    T->client_unref(client);
    Py_END_ALLOW_THREADS return PyErr_CheckSignals();
}

static int checkout(struct call *c, uint32_t reserve) {
    for (;;) {
        HotClient *self = c->self;
        if (!self->client) /* closed, perhaps while we waited */
            return call_fail(c, CRAIL_E_CLOSED, 0);
        if (call_follow_fork(self))
            return -1;
        int rc = T->lane_checkout(self->client, reserve, &c->lane);
        if (rc == 0 || rc == -EAGAIN)
            return -rc;
        if (rc == -ENOMEM)
            return PyErr_NoMemory(), -1;
        if (rc != -EBUSY)
            return call_fail(c, -rc, 0);
        if (wait_for_lane(c))
            return -1;
    }
}

/* After a request without a reply the lane asks what was executed last, and counts on from there. */
static int find_sequence(struct call *c) {
    const void *data;
    if (call_plain_op(c, CRAIL_OP_PING, NULL, 0, 0) || call_exchange(c))
        return -1;
    const struct crail_result *r = call_result(c, &data);
    if (!r)
        return -1;
    c->lane->seq_last = r->version;
    return 0;
}

/* What a call was granted that had given up: the last number that was executed is that request's, so that it is
 * answered from the namenode's record, whatever is asked under it. What it brought goes back. */
static int take_back(struct call *c) {
    struct call plain = {.self = c->self, .lane = c->lane}; /* no options, no waiting */
    const void *data;
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    uint32_t n = 0;
    T->lane_begin(c->lane);
    if (call_plain_op(&plain, CRAIL_OP_ALLOC, NULL, 0, 0))
        return -1;
    c->lane->seq_last--; /* the same again */
    if (call_exchange(c))
        return -1;
    const struct crail_result *r = call_result(c, &data);
    if (!r || (!r->status && r->count && call_extents(c, r, data, extents, &n)))
        return -1;
    T->lane_begin(c->lane);
    return n && (call_plain_op(&plain, CRAIL_OP_RELEASE, extents, n, 0) || call_exchange(c)) ? -1 : 0;
}

/* A lane whose last request ended without its reply, on a new connection in the same session. */
static int settle_lane(struct call *c) {
    if (find_sequence(c))
        return -1;
    if (c->lane->seq_given_up && c->lane->seq_given_up == c->lane->seq_last && take_back(c))
        return -1;
    c->lane->seq_given_up = 0; /* a later one was executed, or it never was */
    c->lane->is_lost = false;
    return 0;
}

static int connect_lane(struct call *c) {
    T->lane_begin(c->lane);
    if (!open_lane(c, false, 0) && (!c->lane->is_lost || !settle_lane(c)))
        return 0;
    if (c->lane)
        discard_lane(c);
    return -1;
}

int call_begin(struct call *c, HotClient *self, PyObject *timeout, uint32_t reserve) {
    c->self = self;
    c->deadline_ns = 0;
    if (call_parse_timeout(timeout, self->timeout_ns, &c->timeout_ns))
        return -1;
    int rc = checkout(c, reserve);
    if (rc < 0)
        return -1;
    c->client = c->lane->client;
    return rc ? connect_lane(c) : 0;
}

void call_end(struct call *c) {
    T->lane_checkin(c->lane);
}

int call_delivered(struct call *c, PyObject *key, uint64_t version) {
    PyObject *r =
        PyObject_CallMethod(c->self->owner, "_delivered", "OKd", key, (unsigned long long)version, deadline_seconds(c));
    Py_XDECREF(r);
    return r ? 0 : -1;
}

/* ---- requests ------------------------------------------------------------ */

int call_path_of(struct call *c, PyObject *key) {
    Py_ssize_t n;
    c->key = key;
    c->path = "";
    c->path_len = 0;
    if (!PyUnicode_Check(key)) {
        PyErr_Format(PyExc_TypeError, "a key is a str like '/job/part-0', not %R", (PyObject *)Py_TYPE(key));
        return -1;
    }
    const char *s = PyUnicode_AsUTF8AndSize(key, &n);
    if (!s) { /* lone surrogates: no UTF-8 */
        PyErr_Clear();
        return 1;
    }
    c->path = s;
    c->path_len = n;
    return n + c->self->prefix_len > (Py_ssize_t)CRAIL_PATH_MAX;
}

int call_set_path(struct call *c, PyObject *key) {
    int rc = call_path_of(c, key);
    return rc > 0 ? call_fail(c, CRAIL_E_INVALID_PATH, 0) : rc;
}

int call_set_options(struct call *c, PyObject *options) {
    char *bytes;
    Py_ssize_t n;
    if (PyBytes_AsStringAndSize(options, &bytes, &n))
        return -1;
    c->has_options = n > 0;
    if (c->has_options && n != sizeof(c->options)) {
        PyErr_SetString(PyExc_ValueError, "options are the bytes of one struct crail_options, or none");
        return -1;
    }
    memcpy(&c->options, bytes, (size_t)n);
    return 0;
}

int call_set_wait(struct call *c, PyObject *wait_ms) {
    unsigned long ms = PyLong_AsUnsignedLong(wait_ms);
    if (PyErr_Occurred())
        return -1;
    if (ms > CRAIL_WAIT_MS_MAX)
        return call_fail(c, CRAIL_E_INVALID_ARGUMENT, 0);
    c->wait_ms = (uint32_t)ms;
    return 0;
}

int call_whole_op(struct call *c, const struct crail_op *head, const void *options, const void *data) {
    uint8_t *path, *to;
    struct crail_op op = *head;
    uint16_t prefix = c->self->prefix_len;
    size_t own = (size_t)c->path_len;
    if (prefix && own == 1 && c->path[0] == '/') /* the root of a namespace is its directory */
        own = 0;
    if (!c->path || !c->path_len || c->path[0] != '/')
        prefix = 0; /* an op without a path; or a key that is none, which the namenode refuses as it stands */
    op.path_len = (uint16_t)(prefix + own);
    op.options_len = options ? (uint16_t)sizeof(struct crail_options) : 0;
    int rc = T->lane_op(c->lane, &op, &path, &to);
    if (rc == -EMSGSIZE)
        return 1;
    if (rc) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(path, c->self->prefix, prefix);
    if (own)
        memcpy(path + prefix, c->path, own);
    if (options)
        memcpy(to, options, op.options_len);
    if (op.data_len)
        memcpy(to + op.options_len, data, op.data_len);
    return 0;
}

int call_op(struct call *c, uint16_t code, uint16_t flags, const void *data, uint32_t data_len, uint32_t count,
            uint64_t arg0, uint64_t arg1) {
    struct crail_op op = {
        .code = code, .flags = flags, .data_len = data_len, .count = count, .arg0 = arg0, .arg1 = arg1};
    return call_whole_op(c, &op, c->has_options ? &c->options : NULL, data);
}

int call_plain_op(struct call *c, uint16_t code, const struct crail_extent *extents, uint32_t extents_count,
                  uint64_t arg1) {
    struct call plain = *c;
    plain.key = NULL;
    plain.path = NULL;
    plain.path_len = 0;
    plain.has_options = c->has_options && code == CRAIL_OP_ALLOC;
    bool waits = c->wait_ms && code == CRAIL_OP_ALLOC;
    return call_op(&plain, code, waits ? CRAIL_OPF_WAIT : 0, extents, extents_count * (uint32_t)sizeof(*extents),
                   waits ? c->wait_ms : extents_count, 0, arg1);
}

/* Gives 0, -EPIPE, or -1 with an exception set. */
static int send_request(struct call *c) {
    for (;;) {
        int rc;
        if (c->lane->out.len - c->lane->out_sent <= KEEP_LOCK_BYTES_MAX && !c->lane->patience) {
            rc = T->lane_send(c->lane);
        } else {
            Py_BEGIN_ALLOW_THREADS rc = T->lane_send(c->lane);
            Py_END_ALLOW_THREADS
        }
        if (rc == 0 || rc == -EPIPE)
            return rc;
        if (PyErr_CheckSignals())
            return -1;
        if (rc == -EAGAIN && time_left(c) <= 0)
            return call_fail(c, CRAIL_E_DEADLINE, 0);
        if (rc == -EAGAIN)
            c->lane->patience = LATE_CALLS;
    }
}

/* Signals are the main thread's. One that comes just before a system call, or to another thread, interrupts nothing: so
 * the main thread never sleeps for long. */
static bool takes_signals(void) {
    return gettid() == getpid();
}

/* Gives 0, -EPIPE (reconnect), -EAGAIN (so late that it may have been lost), or -1 with an exception set. */
static int await_reply(struct call *c, int64_t resend_ns) {
    struct crail_lane *lane = c->lane;
    int rc = -EAGAIN;
    if (!lane->patience && T->lane_ops(lane) <= KEEP_LOCK_OPS_MAX && c->timeout_ns > 0)
        rc = T->lane_receive(lane, 0);
    if (rc == 0 || rc == -EPIPE)
        return rc;
    /* Without the lock: one more tick by the bare receive, which costs no poll, then as long as it takes. */
    int64_t left = time_left(c), resend_at = left - resend_ns;
    int64_t nap = 0; /* at once; 0: not known yet, for asking costs two system calls */
    for (int64_t wait = 0; left > 0 && left > resend_at; wait = left - (resend_at > 0 ? resend_at : 0)) {
        if (PyErr_CheckSignals())
            return -1;
        if (wait > LOOK_AT_SIGNALS_NS && !nap)
            nap = takes_signals() ? LOOK_AT_SIGNALS_NS : INT64_MAX;
        wait = wait > LOOK_AT_SIGNALS_NS && wait > nap ? nap : wait;
        Py_BEGIN_ALLOW_THREADS rc = T->lane_receive(lane, wait);
        Py_END_ALLOW_THREADS if (rc == 0) {
            lane->patience = lane->patience ? lane->patience - 1 : LATE_CALLS;
            return 0;
        }
        if (rc == -EPIPE)
            return rc;
        if (rc == -ENOMEM) {
            PyErr_NoMemory();
            return -1;
        }
        left = time_left(c);
    }
    return left > 0 ? -EAGAIN : call_fail(c, CRAIL_E_DEADLINE, 0);
}

/* How long the namenode may set this request aside. */
static int64_t set_aside_ns(const struct crail_lane *lane) {
    const struct crail_op *op = (const struct crail_op *)(lane->out.data + sizeof(struct crail_frame));
    return op->flags & CRAIL_OPF_WAIT ? (int64_t)op->count * 1000000 : 0;
}

int call_exchange(struct call *c) {
    int64_t resend_ns = RESEND_NS_FIRST + set_aside_ns(c->lane);
    bool maybe_done = false; /* by any of the copies that were sent */
    for (int attempt = 0;; attempt++) {
        int rc = send_request(c);
        if (!rc)
            rc = await_reply(c, resend_ns);
        if (!rc)
            return 0;
        if (rc == -1)
            break;
        maybe_done |= c->lane->out_sent > 0;
        if (rc == -EAGAIN)
            resend_ns *= 2;
        if (time_left(c) <= 0) {
            call_fail(c, CRAIL_E_DEADLINE, 0);
            break;
        }
        if (open_lane(c, c->lane->is_mutating && maybe_done, attempt))
            break;
        T->lane_send_again(c->lane);
    }
    discard_lane(c);
    return -1;
}

const struct crail_result *call_result(struct call *c, const void **data) {
    const struct crail_result *r = T->lane_result(c->lane, data);
    if (!r)
        call_fail(c, CRAIL_E_PROTOCOL, 0);
    return r;
}

int call_extents(struct call *c, const struct crail_result *r, const void *data, struct crail_extent *out,
                 uint32_t *count) {
    if (r->count == 0 || r->count > CRAIL_EXTENTS_MAX || r->data_len < r->count * sizeof(*out))
        return call_fail(c, CRAIL_E_PROTOCOL, 0);
    memcpy(out, data, r->count * sizeof(*out));
    *count = r->count;
    return 0;
}

/* ---- bulk data ----------------------------------------------------------- */

int call_attach(struct call *c, uint32_t server, int need) {
    double until = deadline_seconds(c);
    if (c->gives_up_early) {
        int64_t left = time_left(c), most = left / 4 < REACH_NS_MAX ? left / 4 : REACH_NS_MAX;
        until -= (double)(left - most) / 1e9;
    }
    PyObject *r = PyObject_CallMethod(c->self->owner, "_attach", "IIid", server, c->lane->number, need, until);
    Py_XDECREF(r);
    c->is_unreachable = !r && c->gives_up_early && PyErr_ExceptionMatches(PyExc_OSError);
    c->troublesome = server;
    return r ? 0 : -1;
}

static int run_io(struct crail_io *io) {
    int rc;
    if (io->length - io->done <= KEEP_LOCK_BYTES_MAX && T->client_find(io->client, io->extents[0].server))
        return T->io_run(io);
    Py_BEGIN_ALLOW_THREADS rc = T->io_run(io);
    Py_END_ALLOW_THREADS return rc;
}

/* What an answer of the core asks for before the transfer can go on. 0: go on; 1, -1 as call_transfer. */
static int serve_need(struct call *c, struct crail_io *io, int rc, int *failures) {
    switch (rc) {
    case CRAIL_NEED_CALL_AGAIN:
        return PyErr_CheckSignals();
    case CRAIL_NEED_SERVER:
    case CRAIL_NEED_WRITABLE:
        return call_attach(c, io->server, rc);
    case -EINTR:
        T->io_restart(io);
        return PyErr_CheckSignals();
    case -EPIPE: /* a data connection broke: once it is worth asking this server again, then the namenode */
        T->io_restart(io);
        return ++*failures > 1;
    case -CRAIL_E_STALE_LOCATION:
        return 1;
    case -ENOBUFS:
        return call_fail(c, CRAIL_E_NO_MEMORY, io->server);
    case -ETIMEDOUT:
        return call_fail(c, CRAIL_E_DEADLINE, io->server);
    case -CRAIL_E_DATA_LOST:
    case -CRAIL_E_OUT_OF_SPACE:
        c->is_refused = io->is_write;
        c->troublesome = io->server;
        return call_fail(c, -rc, io->server);
    default:
        return call_fail(c, rc <= -CRAIL_STATUS_BASE ? -rc : CRAIL_E_PROTOCOL, io->server);
    }
}

int call_transfer(struct call *c, const struct crail_extent *extents, uint32_t count, uint64_t value_bytes,
                  uint64_t offset, uint64_t length, void *buffer, bool is_write) {
    return call_transfer_part(c, extents, count, value_bytes, offset, length, buffer, is_write, length);
}

int call_io_prepare(struct call *c, struct crail_io *io) {
    uint64_t room = 0;
    for (uint32_t i = 0; i < io->extents_count; i++)
        room += (uint64_t)io->extents[i].granules * CRAIL_GRANULE;
    io->client = c->client;
    io->lane = c->lane;
    io->deadline_ns = call_deadline(c);
    return room < io->value_bytes ? call_fail(c, CRAIL_E_PROTOCOL, 0) : 0;
}

int call_io_run(struct call *c, struct crail_io *io) {
    int rc, failures = 0;
    for (;;) {
        int need = run_io(io);
        if (need == 0) {
            rc = 0;
            break;
        }
        rc = serve_need(c, io, need, &failures);
        if (rc)
            break;
        if (need != CRAIL_NEED_CALL_AGAIN && time_left(c) <= 0) {
            rc = call_fail(c, CRAIL_E_DEADLINE, io->server);
            break;
        }
    }
    T->io_end(io);
    c->was_restarted |= io->was_restarted;
    if (rc == 1 && time_left(c) <= 0)
        rc = call_fail(c, CRAIL_E_DEADLINE, io->server);
    return rc;
}

int call_transfer_part(struct call *c, const struct crail_extent *extents, uint32_t count, uint64_t value_bytes,
                       uint64_t offset, uint64_t length, void *buffer, bool is_write, uint64_t whole) {
    struct crail_io io = {.extents = extents,
                          .extents_count = count,
                          .is_write = is_write,
                          .value_bytes = value_bytes,
                          .offset = offset,
                          .length = length,
                          .buffer = buffer,
                          .whole = whole};
    return call_io_prepare(c, &io) ? -1 : call_io_run(c, &io);
}

bool call_is_sync(const struct call *c) {
    uint16_t said = c->has_options ? c->options.flags & (CRAIL_OPTION_SYNC | CRAIL_OPTION_GROUP) : 0;
    return said ? said & CRAIL_OPTION_SYNC : c->client->is_sync;
}

/* One server. As call_flush(). */
static int flush_one(struct call *c, const struct crail_extent *e, bool *is_durable) {
    int failures = 0;
    for (;;) {
        int rc;
        Py_BEGIN_ALLOW_THREADS rc = T->io_flush(c->lane, e, call_deadline(c), is_durable);
        Py_END_ALLOW_THREADS if (rc == 0) return 0;
        if (rc == CRAIL_NEED_SERVER) {
            if (call_attach(c, e->server, rc))
                return -1;
            continue;
        }
        T->lane_data_drop(c->lane, e->server);
        if (rc == -EINTR && PyErr_CheckSignals())
            return -1;
        if (rc == -EINTR || (rc == -EPIPE && ++failures == 1))
            continue;
        if (rc == -EPIPE || rc == -CRAIL_E_STALE_LOCATION)
            return 1;
        c->is_refused = rc == -CRAIL_E_DATA_LOST || rc == -CRAIL_E_OUT_OF_SPACE;
        c->troublesome = e->server;
        return call_fail(c, rc == -ETIMEDOUT ? CRAIL_E_DEADLINE : -rc, e->server);
    }
}

static bool names_server(const struct crail_extent *extents, uint32_t count, uint32_t server) {
    for (uint32_t i = 0; i < count; i++)
        if (extents[i].server == server)
            return true;
    return false;
}

int call_flush(struct call *c, const struct crail_extent *extents, uint32_t count, bool *is_durable) {
    *is_durable = true;
    for (uint32_t i = 0; i < count; i++) {
        bool lies_on_disk;
        if (names_server(extents, i, extents[i].server))
            continue;
        int rc = flush_one(c, &extents[i], &lies_on_disk);
        if (rc)
            return rc;
        *is_durable &= lies_on_disk;
    }
    return 0;
}

/* Is there an O in a format of PEP 3118, but in the names of fields, which stand between colons? */
static bool names_objects(const char *format) {
    bool in_name = false;
    for (const char *f = format ? format : ""; *f; f++) {
        in_name ^= *f == ':';
        if (*f == 'O' && !in_name)
            return true;
    }
    return false;
}

/* Of NumPy's arrays. */
static bool has_objects(PyObject *array) {
    PyObject *type = PyObject_GetAttrString(array, "dtype");
    PyObject *has = type ? PyObject_GetAttrString(type, "hasobject") : NULL;
    bool found = has == Py_True;
    Py_XDECREF(type);
    Py_XDECREF(has);
    PyErr_Clear();
    return found;
}

static int refuse_objects(void) {
    return call_refuse("a buffer of Python objects is addresses, no data");
}

int call_check_data(Py_buffer *b) {
    if (!names_objects(b->format))
        return 0;
    PyBuffer_Release(b);
    return refuse_objects();
}

int call_data_of(PyObject *data, Py_buffer *b) {
    if (PyBytes_CheckExact(data))
        return PyObject_GetBuffer(data, b, PyBUF_SIMPLE);
    if (PyObject_GetBuffer(data, b, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError))
            return -1;
        PyErr_Clear(); /* NumPy has no format for times, and says in another way what is beside them */
        return has_objects(data) ? refuse_objects() : PyObject_GetBuffer(data, b, PyBUF_C_CONTIGUOUS);
    }
    return call_check_data(b);
}

int call_parse_extents(PyObject *arg, struct crail_extent *out, uint32_t *count) {
    Py_buffer b;
    if (PyObject_GetBuffer(arg, &b, PyBUF_C_CONTIGUOUS))
        return -1;
    size_t n = (size_t)b.len / sizeof(*out);
    bool good = (size_t)b.len % sizeof(*out) == 0 && n <= CRAIL_EXTENTS_MAX;
    if (good)
        memcpy(out, b.buf, (size_t)b.len);
    PyBuffer_Release(&b);
    *count = (uint32_t)n;
    if (!good)
        PyErr_Format(PyExc_ValueError, "not up to %u extents", CRAIL_EXTENTS_MAX);
    return good ? 0 : -1;
}
