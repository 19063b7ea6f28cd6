/* alloc: the next extents of a value that is written as a stream. One request brings those that are needed, some ahead
 * of need while space is plenty, and tells those who follow what is complete by now (CRAIL_OP_STREAM). */
#include <string.h>

#include "door.h"

#define AHEAD_MAX 15u

struct extension {
    uint64_t sizes[1 + AHEAD_MAX]; /* bytes; those behind the first are ahead of need */
    uint32_t sizes_count;
    uint16_t flags;    /* of the first ALLOC */
    uint64_t like;     /* a server in whose place it should lie, or 0 */
    bool is_shown;     /* there is something to be told: */
    uint64_t token;    /* of the stream */
    uint64_t complete; /* bytes, in these extents */
    uint32_t count;
    struct crail_extent extents[CRAIL_EXTENTS_MAX];
};

/* What came of it. */
struct extended {
    int shown, granted; /* statuses: of STREAM, and of the first ALLOC */
    uint32_t server;    /* that an error is about */
    uint32_t count;
    struct crail_extent extents[CRAIL_EXTENTS_MAX + AHEAD_MAX];
};

/* ---- arguments ------------------------------------------------------------------------ */

/* A tuple of numbers. 0, or -1. */
static int parse_sizes(PyObject *arg, struct extension *x) {
    Py_ssize_t n = PyTuple_Size(arg);
    if (n < 0)
        return -1;
    if (n < 1 || n > (Py_ssize_t)(1 + AHEAD_MAX)) {
        PyErr_Format(PyExc_ValueError, "1 to %u sizes", 1 + AHEAD_MAX);
        return -1;
    }
    for (x->sizes_count = 0; x->sizes_count < n; x->sizes_count++)
        x->sizes[x->sizes_count] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(arg, x->sizes_count));
    return PyErr_Occurred() ? -1 : 0;
}

/* None, or (extents, token, bytes). */
static int parse_shown(PyObject *arg, struct extension *x) {
    const char *bytes;
    Py_ssize_t n;
    x->is_shown = arg != Py_None;
    if (!x->is_shown)
        return 0;
    if (!PyArg_ParseTuple(arg, "y#KK", &bytes, &n, &x->token, &x->complete))
        return -1;
    x->count = (uint32_t)((size_t)n / sizeof(struct crail_extent));
    if ((size_t)n > sizeof(x->extents) || (size_t)n % sizeof(struct crail_extent)) {
        PyErr_Format(PyExc_ValueError, "not up to %u extents", CRAIL_EXTENTS_MAX);
        return -1;
    }
    memcpy(x->extents, bytes, (size_t)n);
    return 0;
}

/* ---- the request ------------------------------------------------------------------------ */

static bool is_vector(const struct extension *x) {
    return x->is_shown || x->sizes_count > 1;
}

static int add_stream(struct call *c, const struct extension *x) {
    struct crail_op op = {.code = CRAIL_OP_STREAM,
                          .data_len = x->count * (uint32_t)sizeof(struct crail_extent),
                          .count = x->count,
                          .arg0 = x->token,
                          .arg1 = x->complete};
    return call_whole_op(c, &op, NULL, x->extents);
}

/* Waits for space only if it is alone: the namenode allows no other. */
static int add_alloc(struct call *c, const struct extension *x, uint32_t i) {
    struct call pathless = *c;
    bool waits = c->wait_ms && !is_vector(x);
    struct crail_op op = {.code = CRAIL_OP_ALLOC,
                          .flags = i ? CRAIL_OPF_IF_PLENTY : (uint16_t)(x->flags | (waits ? CRAIL_OPF_WAIT : 0)),
                          .count = waits ? c->wait_ms : 0,
                          .arg0 = x->like,
                          .arg1 = x->sizes[i]};
    pathless.path = NULL;
    pathless.path_len = 0;
    return call_whole_op(&pathless, &op, c->has_options ? &c->options : NULL, NULL);
}

/* The next result's extents, if it has any. Its status is 0 or less; 1: the reply makes no sense. */
static int take_extents(struct call *c, struct extended *out) {
    const void *data;
    const struct crail_result *r = call_result(c, &data);
    uint32_t room = (uint32_t)(sizeof(out->extents) / sizeof(out->extents[0])) - out->count;
    if (!r)
        return 1;
    if (r->status) {
        out->server = r->server;
        return r->status;
    }
    if (r->count > room || r->data_len < r->count * sizeof(out->extents[0])) {
        call_fail(c, CRAIL_E_PROTOCOL, 0);
        return 1;
    }
    memcpy(out->extents + out->count, data, r->count * sizeof(out->extents[0]));
    out->count += r->count;
    return 0;
}

/* One request. 0, whatever the statuses are; -1 with an exception. */
static int exchange(struct call *c, const struct extension *x, struct extended *out) {
    *out = (struct extended){0};
    T->lane_begin(c->lane);
    int rc = x->is_shown ? add_stream(c, x) : 0;
    for (uint32_t i = 0; !rc && i < x->sizes_count; i++)
        rc = add_alloc(c, x, i);
    if (rc || call_exchange(c))
        return -1;
    if (x->is_shown)
        out->shown = take_extents(c, out);
    for (uint32_t i = 0; out->shown <= 0 && i < x->sizes_count; i++) {
        rc = take_extents(c, out);
        if (i == 0)
            out->granted = rc;
        if (rc > 0)
            return -1;
    }
    return out->shown > 0 ? -1 : 0;
}

/* What was granted ahead, where what is needed was not. 0, or -1. */
static int release(struct call *c, const struct extended *out) {
    if (!out->count)
        return 0;
    T->lane_begin(c->lane);
    return call_plain_op(c, CRAIL_OP_RELEASE, out->extents, out->count, 0) || call_exchange(c) ? -1 : 0;
}

/* Without space it is tried once more: alone, so that the namenode may wait for what is on its way back, and after
 * what this lane holds ahead was given back. */
static int extend(struct call *c, struct extension *x, struct extended *out) {
    for (;;) {
        if (exchange(c, x, out))
            return -1;
        if (out->granted != -CRAIL_E_OUT_OF_SPACE)
            return 0;
        bool again = is_vector(x);
        int held = release(c, out) ? -1 : call_release_held(c);
        if (held < 0)
            return -1;
        if (!again && !held)
            return 0;
        x->is_shown = false;
        x->sizes_count = 1;
    }
}

/* alloc(path, sizes, flags, options, like, wait_ms, shown, timeout) -> (bytes, int): the extents granted, for at least
 * sizes[0] bytes, perhaps some for the further sizes; and the status of what was to be shown. `shown`: None or
 * (extents, token, bytes that are complete in them). */
PyObject *client_alloc(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    struct extension x = {0};
    struct extended out;
    if (!call_arguments("alloc", n, 8) || parse_sizes(args[1], &x) || call_set_options(&c, args[3]) ||
        call_set_wait(&c, args[5]) || parse_shown(args[6], &x) || call_set_path(&c, args[0]))
        return NULL;
    x.flags = (uint16_t)PyLong_AsLong(args[2]);
    x.like = PyLong_AsUnsignedLongLong(args[4]);
    if (PyErr_Occurred() || call_begin(&c, c.self, args[7], 0))
        return NULL;
    int rc = extend(&c, &x, &out);
    if (!rc && out.granted)
        rc = call_fail(&c, out.granted, out.server);
    if (c.lane)
        call_end(&c);
    return rc ? NULL
              : Py_BuildValue("y#i", (const char *)out.extents, (Py_ssize_t)(out.count * sizeof(struct crail_extent)),
                              -out.shown);
}
