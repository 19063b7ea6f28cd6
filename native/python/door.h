/* The hot door: what Python calls per operation (get, put, views, vectors). Limited API, so that one wheel serves
 * every later Python.
 *
 * The interpreter's lock. A small call keeps it: send, then one receive that waits at most a tick of the kernel's
 * clock. Giving it up would cost a busy neighbour thread's whole switch interval (5 ms) per call. It is given up for
 * waits beyond that tick, for large copies, and for data over TCP. A lane whose replies were late lately gives it up
 * at once (lane->patience).
 *
 * Signals. -EINTR from the core comes back here, where PyErr_CheckSignals() runs the handlers; if none raises, the
 * call goes on with what is left of its deadline. */
#ifndef CRAILPY_DOOR_H
#define CRAILPY_DOOR_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "client/hot.h"

#define TIMEOUT_NS_MAX (365ll * 86400 * 1000000000)
#define KEEP_LOCK_BYTES_MAX (64u << 10) /* longer copies and frames give the interpreter's lock up */
#define KEEP_LOCK_OPS_MAX 64u
#define CALL_WHOLE_PIECE_MIN (256u << 10) /* shorter pieces of a long value are better copied through the caches */
#define GRANT_AHEAD_BYTES_MAX (16u << 20) /* larger values pay one more request instead of holding space */

extern const struct crail_hot_table *T; /* the core */

typedef struct {
    PyObject_HEAD crail_client *client;
    PyObject *owner; /* borrowed: the Store, which owns us. Answers _open_lane, _attach, _error, _after_fork */
    int64_t timeout_ns;
    uint64_t lanes_opened; /* with each new one, it may be another namenode that answers */
    uint16_t prefix_len;
    char prefix[CRAIL_PATH_MAX];
} HotClient;

/* One call in progress: a lane, a deadline, and what to name in errors. */
struct call {
    HotClient *self;
    crail_client *client; /* the lane's: stays good while the lane is ours, whatever becomes of self->client */
    struct crail_lane *lane;
    int64_t timeout_ns;
    int64_t deadline_ns; /* 0 until somebody needed it: the common call never reads the clock */
    PyObject *key;       /* borrowed: what `path` was made from, for errors; NULL: the call is about no path */
    const char *path;
    Py_ssize_t path_len;
    bool gives_up_early;  /* who writes may do so elsewhere: a server is not waited for up to the deadline */
    bool is_unreachable;  /* and one was not reached; the exception says why */
    bool is_refused;      /* or its disk failed under a write */
    uint32_t troublesome; /* which server that was */
    bool was_restarted;   /* a transfer was: an earlier data connection may still bring bytes */
    uint32_t wait_ms;     /* how long the namenode may set the request aside (CRAIL_OPF_WAIT), 0: not at all */
    bool has_options;
    struct crail_options options; /* of the node that is made */
};

/* ---- call.c: each gives 0, or -1 with an exception set --------------------- */

/* Are there as many arguments as the method takes? If not, TypeError is set. */
bool call_arguments(const char *name, Py_ssize_t n, Py_ssize_t want);
/* `reserve`: see crail_lane_checkout(). */
int call_begin(struct call *c, HotClient *self, PyObject *timeout, uint32_t reserve);
void call_end(struct call *c);
/* 0; 1: what is no path whatever the namenode thinks of it; -1: no str, with an exception set. */
int call_path_of(struct call *c, PyObject *key);
/* The same, but what is no path is an InvalidPathError already. */
int call_set_path(struct call *c, PyObject *key);
/* `options` is bytes: a struct crail_options, or none. `wait_ms` an int. */
int call_set_options(struct call *c, PyObject *options);
int call_set_wait(struct call *c, PyObject *wait_ms);
/* Adds an op with c->path, below the client's prefix, and c->options. 1: the frame is full. */
int call_op(struct call *c, uint16_t code, uint16_t flags, const void *data, uint32_t data_len, uint32_t count,
            uint64_t arg0, uint64_t arg1);
/* The same with all that an op can bring: its head but for path_len, options (NULL: none) and data. */
int call_whole_op(struct call *c, const struct crail_op *op, const void *options, const void *data);
/* Adds an op that names no path; ALLOC goes with c->options and waits for c->wait_ms. */
int call_plain_op(struct call *c, uint16_t code, const struct crail_extent *extents, uint32_t extents_count,
                  uint64_t arg1);
/* Sends the request and has its reply when it returns 0. On -1 the lane is gone. */
int call_exchange(struct call *c);
/* The next result; NULL with ProtocolError set if there is none. */
const struct crail_result *call_result(struct call *c, const void **data);
int64_t call_deadline(struct call *c);
/* Moves a range of a value between its extents and the buffer. 1: the location is out of date, ask again. */
int call_transfer(struct call *c, const struct crail_extent *extents, uint32_t count, uint64_t value_bytes,
                  uint64_t offset, uint64_t length, void *buffer, bool is_write);
/* The same in steps: a transfer that is filled in but for client, lane and deadline; then it is run to its end. */
int call_io_prepare(struct call *c, struct crail_io *io);
int call_io_run(struct call *c, struct crail_io *io);
/* The buffer of what is to be stored: C-contiguous, and bytes that mean something elsewhere. Raises TypeError,
 * BufferError; InvalidArgumentError for Python objects, whose memory is addresses. 0, or -1. */
int call_data_of(PyObject *data, Py_buffer *b);
/* The same of a buffer that has its format; -1: it is released. */
int call_check_data(Py_buffer *b);
/* The extents of a value as the caller keeps them, at most CRAIL_EXTENTS_MAX. 0, or -1. */
int call_parse_extents(PyObject *arg, struct crail_extent *out, uint32_t *count);
/* Is what the call changes to be durable when it is answered? */
bool call_is_sync(const struct call *c);
/* Makes what was written into the extents durable, where they lie on a disk: before a COMMIT that promises so.
 * *is_durable: they all do. 1: a location is out of date. */
int call_flush(struct call *c, const struct crail_extent *extents, uint32_t count, bool *is_durable);
/* In a forked child: has the owner open a session of its own first. */
int call_follow_fork(HotClient *self);
/* The same for a part of a transfer of `whole` bytes: a long one goes around the caches. */
int call_transfer_part(struct call *c, const struct crail_extent *extents, uint32_t count, uint64_t value_bytes,
                       uint64_t offset, uint64_t length, void *buffer, bool is_write, uint64_t whole);
/* Has the server attached, by asking the owner. */
int call_attach(struct call *c, uint32_t server, int need);
/* Is nothing there? Below a value nothing can be. */
static inline bool call_is_absent(int status) {
    return status == -CRAIL_E_NOT_FOUND || status == -CRAIL_E_NOT_CONTAINER;
}

/* Raises what the status means, with path and server. Returns -1. */
int call_fail(struct call *c, int status, uint32_t server);
PyObject *call_error(struct call *c, int status, uint32_t server);
/* Copies a result's extents out of the reply. 0, or -1 with ProtocolError set. */
int call_extents(struct call *c, const struct crail_result *r, const void *data, struct crail_extent *out,
                 uint32_t *count);

/* Raises InvalidArgumentError, in place of what is raised. Returns -1. */
int call_refuse(const char *why);
/* The seconds of a timeout argument, `own_ns` for None. Raises InvalidArgumentError. */
int call_parse_timeout(PyObject *timeout, int64_t own_ns, int64_t *out);
/* Bytes that are not filled yet, on huge pages where that pays. */
PyObject *call_new_bytes(uint64_t n);
/* Takes the reference to `item` over; NULL has failed already. */
static inline int call_append(PyObject *list, PyObject *item) {
    int rc = item ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    return rc;
}

/* ---- the methods ----------------------------------------------------------- */

PyObject *client_get(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_get_range(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_get_into(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_get_view(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_put(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_put_parts(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_alloc(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_flush(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_pipe(PyObject *self, PyObject *path);
PyObject *client_get_many(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_put_many(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_follow(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_follower(PyObject *self, PyObject *args);
PyObject *client_segments(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_gather(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_call(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *client_call_many(PyObject *self, PyObject *const *args, Py_ssize_t n);

/* Gives back what this process holds ahead and does not use. 0: nothing; 1: something; -1. */
int call_release_held(struct call *c);
/* Tells the owner that all of a value that goes when it was read has been: after the lane was given back. */
int call_delivered(struct call *c, PyObject *key, uint64_t version);

/* ---- view.c ---------------------------------------------------------------- */

extern PyType_Spec view_spec;
extern PyTypeObject *view_type;
/* Takes the pin over. */
PyObject *view_from_pin(const struct crail_pin *pin, uint64_t nbytes, uint64_t version, bool goes_when_read);
/* Takes the reference to `bytes` over. */
PyObject *view_from_bytes(PyObject *bytes, uint64_t version, bool goes_when_read);

/* ---- pipe.c ---------------------------------------------------------------- */

PyObject *pipe_type_new(void);
PyObject *follower_type_new(void);
PyObject *gather_type_new(void);
PyObject *rows_type_new(void);

#endif
