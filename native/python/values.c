/* get, get_range, get_into, get_view, put, put_parts: one value each. */
#include <string.h>
#include <sys/mman.h>

#include "door.h"

#define HUGE_PAGE (2u << 20)
#define HUGE_RESULT_BYTES_MIN (4u << 20)
#define GIVE_BACK_NS 500000000ll
#define ELSEWHERE_TRIES 8
#define WAIT_MS_AT_ONCE 15000u

/* Where a value is: in the reply (data), or in extents. */
struct found {
    bool is_inline, goes_when_read;
    const void *data;
    uint64_t size, version;
    uint32_t count;
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
};

static int find(struct call *c, struct found *f) {
    const void *data;
    T->lane_begin(c->lane);
    if (call_op(c, CRAIL_OP_GET, c->wait_ms ? CRAIL_OPF_WAIT : 0, NULL, 0, c->wait_ms, 0, 0) || call_exchange(c))
        return -1;
    const struct crail_result *r = call_result(c, &data);
    if (!r)
        return -1;
    if (r->status)
        return call_fail(c, r->status, r->server);
    f->size = r->size;
    f->version = r->version;
    f->is_inline = r->flags & CRAIL_RESF_INLINE;
    f->goes_when_read = r->flags & CRAIL_RESF_DELETE_AFTER_READ;
    f->data = data;
    if (f->is_inline)
        return r->data_len == r->size ? 0 : call_fail(c, CRAIL_E_PROTOCOL, 0);
    return call_extents(c, r, data, f->extents, &f->count);
}

/* Memory that is new each time costs a page fault per 4 KiB, ten times the copy; huge pages make that one per 2 MiB. */
PyObject *call_new_bytes(uint64_t n) {
    if (n > (uint64_t)PY_SSIZE_T_MAX - 64)
        return PyErr_NoMemory();
    PyObject *b = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
    if (b && n >= HUGE_RESULT_BYTES_MIN) {
        uintptr_t at = (uintptr_t)PyBytes_AsString(b);
        uintptr_t from = (at + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
        uintptr_t to = (at + n) & ~(uintptr_t)(HUGE_PAGE - 1);
        if (to > from)
            madvise((void *)from, to - from, MADV_HUGEPAGE);
    }
    return b;
}

/* Starts a call on `key`. On -1 nothing is held. */
static int start(struct call *c, PyObject *self, PyObject *key, PyObject *timeout) {
    c->self = (HotClient *)self;
    if (call_set_path(c, key))
        return -1;
    return call_begin(c, (HotClient *)self, timeout, 0);
}

/* Ends a call that failed or not; after a failed exchange the lane is gone already. */
static void finish(struct call *c) {
    if (c->lane)
        call_end(c);
}

/* ---- reading ------------------------------------------------------------- */

/* `n` bytes of what was found, from `from` on, as new bytes. 0; 1: the location is out of date, ask again; -1. */
static int found_bytes(struct call *c, const struct found *f, uint64_t from, uint64_t n, PyObject **out) {
    *out = f->is_inline ? PyBytes_FromStringAndSize((const char *)f->data + from, (Py_ssize_t)n) : call_new_bytes(n);
    if (!*out)
        return -1;
    if (f->is_inline || n == 0)
        return 0;
    int rc = call_transfer(c, f->extents, f->count, f->size, from, n, PyBytes_AsString(*out), false);
    if (rc)
        Py_CLEAR(*out);
    return rc;
}

/* Bytes [offset, offset + length) of the value, cut at its end; length -1: all the rest. */
static PyObject *read_bytes(struct call *c, struct found *f, int64_t offset, int64_t length) {
    PyObject *b;
    for (;;) {
        if (find(c, f))
            return NULL;
        uint64_t from = (uint64_t)offset < f->size ? (uint64_t)offset : f->size;
        uint64_t n = f->size - from;
        if (length >= 0 && (uint64_t)length < n)
            n = (uint64_t)length;
        if (found_bytes(c, f, from, n, &b) <= 0)
            return b;
    }
}

/* get(key, wait_ms, timeout) -> bytes */
PyObject *client_get(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    struct found f;
    if (!call_arguments("get", n, 3) || call_set_wait(&c, args[1]) || start(&c, self, args[0], args[2]))
        return NULL;
    PyObject *b = read_bytes(&c, &f, 0, -1);
    finish(&c);
    if (b && f.goes_when_read && call_delivered(&c, args[0], f.version))
        Py_CLEAR(b);
    return b;
}

/* Has the conversion of a number failed? One too large is an InvalidArgumentError then. */
static bool out_of_range(void) {
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError))
        call_refuse("offset and length are below 2**63");
    return PyErr_Occurred() != NULL;
}

/* get_range(key, offset, length, timeout) -> bytes */
PyObject *client_get_range(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {0};
    struct found f;
    if (!call_arguments("get_range", n, 4))
        return NULL;
    int64_t offset = PyLong_AsLongLong(args[1]), length = PyErr_Occurred() ? -1 : PyLong_AsLongLong(args[2]);
    if (out_of_range() || start(&c, self, args[0], args[3]))
        return NULL;
    PyObject *b = NULL;
    if (offset < 0 || length < 0)
        call_fail(&c, CRAIL_E_INVALID_ARGUMENT, 0);
    else
        b = read_bytes(&c, &f, offset, length);
    finish(&c);
    return b;
}

/* Fills `to` with the value from `offset` on. The number of bytes, or -1. */
static int64_t read_into(struct call *c, struct found *f, int64_t offset, uint8_t *to, uint64_t room) {
    for (;;) {
        if (find(c, f))
            return -1;
        if ((uint64_t)offset > f->size || f->size - (uint64_t)offset > room)
            return call_fail(c, CRAIL_E_INVALID_ARGUMENT, 0);
        uint64_t n = f->size - (uint64_t)offset;
        if (f->is_inline) {
            memcpy(to, (const uint8_t *)f->data + offset, n);
            return (int64_t)n;
        }
        int rc = n ? call_transfer(c, f->extents, f->count, f->size, (uint64_t)offset, n, to, false) : 0;
        if (rc <= 0)
            return rc ? -1 : (int64_t)n;
    }
}

/* get_into(key, buffer, offset, timeout) -> int */
PyObject *client_get_into(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {0};
    struct found f;
    Py_buffer buffer;
    if (!call_arguments("get_into", n, 4))
        return NULL;
    int64_t offset = PyLong_AsLongLong(args[2]), got;
    if (out_of_range() || PyObject_GetBuffer(args[1], &buffer, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS))
        return NULL;
    if (start(&c, self, args[0], args[3])) {
        PyBuffer_Release(&buffer);
        return NULL;
    }
    if (offset < 0)
        got = call_fail(&c, CRAIL_E_INVALID_ARGUMENT, 0);
    else
        got = read_into(&c, &f, offset, buffer.buf, (uint64_t)buffer.len);
    finish(&c);
    PyBuffer_Release(&buffer);
    if (got >= 0 && offset == 0 && f.goes_when_read && call_delivered(&c, args[0], f.version))
        return NULL;
    return got < 0 ? NULL : PyLong_FromLongLong(got);
}

/* A pin on the value if it is one extent in shared memory. 0; 1: location out of date; 2: no pin to be had; -1. */
static int try_pin(struct call *c, const struct found *f, struct crail_pin *pin) {
    if (f->count != 1 || T->lane_has_data(c->lane, f->extents[0].server))
        return 2;
    int rc = T->pin_take(c->client, f->extents, f->size, pin);
    if (rc == CRAIL_NEED_SERVER) {
        if (call_attach(c, f->extents[0].server, rc))
            return -1;
        rc = T->pin_take(c->client, f->extents, f->size, pin);
    }
    return rc == 0 ? 0 : rc == -CRAIL_E_STALE_LOCATION ? 1 : 2;
}

static PyObject *read_view(struct call *c) {
    struct found f;
    struct crail_pin pin;
    PyObject *b;
    for (;;) {
        if (find(c, &f))
            return NULL;
        int rc = f.is_inline ? 2 : try_pin(c, &f, &pin);
        if (rc < 0)
            return NULL;
        if (rc == 0)
            return view_from_pin(&pin, f.size, f.version, f.goes_when_read);
        if (rc == 1) {
            struct timespec t;
            clock_gettime(CLOCK_MONOTONIC, &t);
            if (call_deadline(c) < (int64_t)t.tv_sec * 1000000000 + t.tv_nsec) {
                call_fail(c, CRAIL_E_DEADLINE, f.extents[0].server);
                return NULL;
            }
            continue;
        }
        rc = found_bytes(c, &f, 0, f.size, &b);
        if (rc <= 0)
            return rc ? NULL : view_from_bytes(b, f.version, f.goes_when_read);
    }
}

/* get_view(key, wait_ms, timeout) -> View */
PyObject *client_get_view(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    if (!call_arguments("get_view", n, 3) || call_set_wait(&c, args[1]) || start(&c, self, args[0], args[2]))
        return NULL;
    PyObject *v = read_view(&c);
    finish(&c);
    return v;
}

/* ---- writing ------------------------------------------------------------- */

struct grant {
    uint32_t count;
    bool is_durable; /* what was written to it is, on disks */
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
};

/* 0 and a grant; 1: no space; -1. */
static int request_grant(struct call *c, uint64_t size, struct grant *g) {
    const void *data;
    T->lane_begin(c->lane);
    if (call_plain_op(c, CRAIL_OP_ALLOC, NULL, 0, size) || call_exchange(c))
        return -1;
    const struct crail_result *r = call_result(c, &data);
    if (!r)
        return -1;
    if (r->status == -CRAIL_E_OUT_OF_SPACE)
        return 1;
    return r->status ? call_fail(c, r->status, r->server) : call_extents(c, r, data, g->extents, &g->count);
}

int call_release_held(struct call *c) {
    struct crail_extent held[CRAIL_EXTENTS_MAX];
    uint32_t n = T->lane_grants_drop(c->lane, held, CRAIL_EXTENTS_MAX);
    if (!n)
        return 0;
    T->lane_begin(c->lane);
    return call_plain_op(c, CRAIL_OP_RELEASE, held, n, 0) || call_exchange(c) ? -1 : 1;
}

/* Is it all the same where the value lies? Then grants may be held ahead, for whatever comes next. */
static bool lies_anywhere(const struct call *c) {
    const struct crail_options *o = &c->options;
    return !c->has_options || (o->storage_class == CRAIL_CLASS_ANY && !o->location && o->stripe <= 1);
}

/* Space for the value: a grant held ahead, or one request; when the store is full, what we hold ahead goes first, and
 * then we wait for others, as long as was asked for. In pieces, so that a lost reply costs one of them. */
static int allocate(struct call *c, uint64_t size, uint32_t wait_ms, struct grant *g) {
    int rc;
    if (lies_anywhere(c) && T->lane_grant_take(c->lane, size, g->extents)) {
        g->count = 1;
        return 0;
    }
    while ((rc = request_grant(c, size, g)) > 0) {
        wait_ms -= c->wait_ms;
        c->wait_ms = 0;
        rc = call_release_held(c);
        if (rc == 0 && !wait_ms)
            rc = call_fail(c, CRAIL_E_OUT_OF_SPACE, 0);
        if (rc < 0)
            break;
        if (rc == 0)
            c->wait_ms = wait_ms < WAIT_MS_AT_ONCE ? wait_ms : WAIT_MS_AT_ONCE;
    }
    c->wait_ms = 0;
    return rc;
}

/* flush(path, extents, timeout) -> bool: do they all lie on disks? */
PyObject *client_flush(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
    uint32_t count;
    bool is_durable = false;
    if (!call_arguments("flush", n, 3) || call_set_path(&c, args[0]) || call_parse_extents(args[1], extents, &count) ||
        call_begin(&c, c.self, args[2], 0))
        return NULL;
    int rc = call_flush(&c, extents, count, &is_durable);
    if (rc == 1)
        rc = call_fail(&c, CRAIL_E_STALE_LOCATION, 0);
    finish(&c);
    return rc ? NULL : PyBool_FromLong(is_durable);
}

/* The write came to nothing: what was granted is kept for the next one, or given back. Nothing may be kept into which
 * an aborted transfer may still write: then it goes by way of the namenode, whose retire order waits for that. An
 * exception may be set and stays; a failure to give back adds nothing to it: the session's end will do it. */
static void give_back(struct call *c, const struct grant *g, bool is_at_rest) {
    PyObject *type, *value, *trace;
    if (!c->lane)
        return;
    if (is_at_rest && lies_anywhere(c) && g->count == 1 &&
        g->extents[0].granules <= GRANT_AHEAD_BYTES_MAX / CRAIL_GRANULE && T->lane_grant_keep(c->lane, g->extents))
        return;
    PyErr_Fetch(&type, &value, &trace);
    int64_t timeout_ns = c->timeout_ns, deadline_ns = c->deadline_ns;
    c->deadline_ns = 0; /* what was granted must not stay away because the call took too long */
    c->timeout_ns = GIVE_BACK_NS;
    T->lane_begin(c->lane);
    if (call_plain_op(c, CRAIL_OP_RELEASE, g->extents, g->count, 0) || call_exchange(c))
        PyErr_Clear();
    c->timeout_ns = timeout_ns;
    c->deadline_ns = deadline_ns;
    PyErr_Restore(type, value, trace);
}

/* Publishes what was written. 0 and *version; 1: the grant is no longer ours; -1. */
static int commit(struct call *c, const struct grant *g, uint64_t size, uint16_t flags, uint64_t if_version,
                  uint64_t *version) {
    const void *data;
    if (c->client->options.grants_ahead && lies_anywhere(c) && g->count == 1 && size <= GRANT_AHEAD_BYTES_MAX &&
        T->lane_grant_room(c->lane, size + size / 4 + 2 * CRAIL_GRANULE))
        flags |= CRAIL_OPF_GRANT_AGAIN;
    if (g->is_durable)
        flags |= CRAIL_OPF_FLUSHED;
    T->lane_begin(c->lane);
    if (call_op(c, CRAIL_OP_COMMIT, flags, g->extents, g->count * sizeof(struct crail_extent), g->count, if_version,
                size) ||
        call_exchange(c))
        return -1;
    const struct crail_result *r = call_result(c, &data);
    if (!r)
        return -1;
    if (r->status == -CRAIL_E_STALE_LOCATION)
        return 1;
    if (r->status) {
        /* Executed, and nobody knows how: the extents may be a node's by now. */
        bool unknown = r->status == -CRAIL_E_UNAVAILABLE || r->status == -CRAIL_E_PROTOCOL;
        call_fail(c, r->status, r->server);
        give_back(c, g, !unknown && !c->was_restarted);
        return -1;
    }
    *version = r->version;
    if (r->count == 1 && r->data_len >= sizeof(struct crail_extent)) {
        struct crail_extent next;
        memcpy(&next, data, sizeof(next));
        T->lane_grant_keep(c->lane, &next);
    }
    return 0;
}

/* As request_grant(), from other servers than this one. */
static int request_grant_elsewhere(struct call *c, uint64_t size, uint32_t server, struct grant *g) {
    struct crail_options own = c->options;
    bool had_options = c->has_options;
    if (!had_options)
        c->options = (struct crail_options){.storage_class = CRAIL_CLASS_ANY};
    c->has_options = true;
    c->options.avoid = server;
    int rc = request_grant(c, size, g);
    c->has_options = had_options;
    c->options = own;
    return rc;
}

/* The server of what was granted is not to be reached, or its disk has failed: space on another one, and the exception
 * is gone. Where there is no other: one that is away is waited for, and keeps the grant; a disk does not come back. 0,
 * or -1 with an exception. */
static int go_elsewhere(struct call *c, uint64_t size, struct grant *g) {
    struct grant other;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    int rc = request_grant_elsewhere(c, size, c->troublesome, &other);
    if (rc > 0 && c->is_refused) {
        PyErr_Restore(type, value, trace);
        return -1;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    if (rc < 0)
        return -1;
    c->gives_up_early = rc == 0;
    if (rc == 0) {
        give_back(c, g, false);
        *g = other;
    }
    return c->lane ? 0 : call_fail(c, CRAIL_E_UNAVAILABLE, 0);
}

/* What a value is made of: its bytes in order. */
struct parts {
    Py_buffer *b;
    Py_ssize_t count;
    uint64_t bytes; /* of all */
};

/* As call_transfer(): each part from where it is. */
static int write_parts(struct call *c, const struct parts *p, const struct grant *g) {
    uint64_t at = 0;
    for (Py_ssize_t i = 0; i < p->count; i++) {
        uint64_t n = (uint64_t)p->b[i].len, whole = n < CALL_WHOLE_PIECE_MIN ? n : p->bytes;
        int rc = n ? call_transfer_part(c, g->extents, g->count, p->bytes, at, n, p->b[i].buf, true, whole) : 0;
        if (rc)
            return rc;
        at += n;
    }
    return 0;
}

/* Writes the bytes to where there is space, and flushes them there if that is promised; a server that is away, or whose
 * disk fails, is avoided. As call_transfer(). */
static int write_somewhere(struct call *c, const struct parts *p, struct grant *g) {
    for (int tries = 0;; tries++) {
        c->gives_up_early = tries == 0 || (c->gives_up_early && tries < ELSEWHERE_TRIES);
        c->is_unreachable = c->is_refused = false;
        int rc = write_parts(c, p, g);
        g->is_durable = false;
        if (!rc && call_is_sync(c))
            rc = call_flush(c, g->extents, g->count, &g->is_durable);
        if (rc >= 0 || !(c->is_unreachable || (c->is_refused && tries < ELSEWHERE_TRIES)))
            return rc;
        if (go_elsewhere(c, p->bytes, g))
            return -1;
    }
}

static int put_extents(struct call *c, const struct parts *p, uint16_t flags, uint64_t if_version, uint32_t wait_ms,
                       uint64_t *version) {
    struct grant g;
    for (;;) {
        if (allocate(c, p->bytes, wait_ms, &g))
            return -1;
        int rc = write_somewhere(c, p, &g);
        if (rc)
            give_back(c, &g, rc < 0 && !c->was_restarted && T->client_find(c->client, g.extents[0].server));
        if (rc == 0 && (rc = commit(c, &g, p->bytes, flags, if_version, version)) == 1)
            give_back(c, &g, false); /* some of it may be ours still */
        if (rc <= 0)
            return rc;
        if (!c->lane)
            return call_fail(c, CRAIL_E_UNAVAILABLE, 0);
    }
}

static int put_inline(struct call *c, const struct parts *p, uint16_t flags, uint64_t if_version, uint64_t *version) {
    uint8_t gathered[CRAIL_INLINE_MAX];
    const void *data, *value = p->count == 1 ? p->b[0].buf : gathered;
    assert(p->bytes <= sizeof(gathered));
    uint64_t at = 0;
    for (Py_ssize_t i = 0; p->count > 1 && i < p->count; at += (uint64_t)p->b[i++].len)
        memcpy(gathered + at, p->b[i].buf, (size_t)p->b[i].len);
    T->lane_begin(c->lane);
    if (call_op(c, CRAIL_OP_PUT, flags, value, (uint32_t)p->bytes, 0, if_version, 0) || call_exchange(c))
        return -1;
    const struct crail_result *r = call_result(c, &data);
    if (!r)
        return -1;
    if (r->status)
        return call_fail(c, r->status, r->server);
    *version = r->version;
    return 0;
}

/* The call of put() and put_parts(), but for what is put: args are (key, -, flags, if_version, options, wait_ms,
 * timeout). flags and options as on the wire; wait_ms: how long for space. */
static PyObject *put(PyObject *self, PyObject *const *args, const struct parts *p) {
    struct call c = {.self = (HotClient *)self};
    uint64_t version = 0;
    if (call_set_options(&c, args[4]) || call_set_wait(&c, args[5]))
        return NULL;
    uint32_t wait_ms = c.wait_ms;
    c.wait_ms = 0; /* allocate() will wait, no other request */
    uint16_t flags = (uint16_t)PyLong_AsLong(args[2]);
    uint64_t if_version = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred() || start(&c, self, args[0], args[6]))
        return NULL;
    int rc = p->bytes <= c.client->options.inline_max ? put_inline(&c, p, flags, if_version, &version)
                                                      : put_extents(&c, p, flags, if_version, wait_ms, &version);
    finish(&c);
    return rc ? NULL : PyLong_FromUnsignedLongLong(version);
}

/* put(key, data, flags, if_version, options, wait_ms, timeout) -> int */
PyObject *client_put(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    Py_buffer b;
    if (!call_arguments("put", n, 7) || call_data_of(args[1], &b))
        return NULL;
    struct parts p = {&b, 1, (uint64_t)b.len};
    PyObject *version = put(self, args, &p);
    PyBuffer_Release(&b);
    return version;
}

/* The buffers of a list. 0, or -1; p->count of them are to be released in both cases. */
static int parts_of(PyObject *list, struct parts *p) {
    Py_ssize_t n = PyList_Size(list);
    *p = (struct parts){0};
    if (n < 0)
        return -1;
    p->b = PyMem_Malloc(((size_t)n + 1) * sizeof(*p->b));
    if (!p->b)
        return PyErr_NoMemory(), -1;
    for (; p->count < n; p->count++) {
        PyObject *part = PyList_GetItem(list, p->count);
        Py_XINCREF(part); /* getting a buffer may run Python */
        int rc = part ? call_data_of(part, &p->b[p->count]) : -1;
        Py_XDECREF(part);
        if (rc)
            return -1;
        p->bytes += (uint64_t)p->b[p->count].len;
    }
    return 0;
}

/* put_parts(key, list of data, flags, if_version, options, wait_ms, timeout) -> int: one value */
PyObject *client_put_parts(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct parts p;
    if (!call_arguments("put_parts", n, 7))
        return NULL;
    PyObject *version = parts_of(args[1], &p) ? NULL : put(self, args, &p);
    while (p.count)
        PyBuffer_Release(&p.b[--p.count]);
    PyMem_Free(p.b);
    return version;
}
