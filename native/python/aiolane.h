/* AsyncLane: a flow (client/flow.h) whose waiters are futures of an event loop. Python watches the descriptor, opens
 * connections and arms one timer; whatever happens per operation happens here.
 *
 * Everything runs on the loop's thread with the interpreter's lock. Calling into Python may run anything, close()
 * included: between `busy++` and `busy--` close() only asks for the end (close_due), so that no frame goes away under
 * the one who walks over it. */
#ifndef CRAILPY_AIOLANE_H
#define CRAILPY_AIOLANE_H

#include "door.h"

enum decode {
    DECODE_RAW,     /* (version, size, kind, flags, count, data) */
    DECODE_VALUE,   /* bytes; or as RAW with the deadline in seconds behind it, if there is more to do */
    DECODE_VERSION, /* int */
    DECODE_CANCEL,  /* of a CANCEL: 1 means that the frame gets no reply any more */
};
#define DECODE_MISSING_NONE 0x80 /* None where there is nothing, not NotFoundError */

typedef struct {
    PyObject_HEAD crail_client *core;
    struct crail_flow flow;
    PyObject *create_future, *call_soon, *on_flush, *error;
    int64_t timeout_ns;
    int64_t earliest_ns; /* no deadline is before this */
    unsigned fork_epoch;
    uint32_t busy;
    bool flush_due, is_closed, close_due;
    uint16_t prefix_len;
    char prefix[CRAIL_PATH_MAX];
} AsyncLane;

/* One future for many operations. */
typedef struct {
    PyObject_HEAD PyObject *future;
    PyObject *results; /* list: a value or an exception each */
    Py_ssize_t left;
} AsyncBatch;

/* Adds all that is asynchronous to the module. */
int async_add(PyObject *module);
extern PyTypeObject *async_batch_type;
extern const struct crail_flow_owner async_owner;

/* Gives the entry its value or its error (one of them NULL; takes the reference over), and forgets its waiter. */
void async_settle(AsyncLane *l, struct crail_flow_entry *e, PyObject *value, PyObject *error);
/* A failure of the call as a whole: also of a batch. Takes the reference over. */
void async_fail(AsyncLane *l, struct crail_flow_entry *e, PyObject *error);
PyObject *async_error(AsyncLane *l, int status, const struct crail_flow_entry *e, uint32_t server);
/* Asks the loop for a flush at the end of this tick. */
int async_want_flush(AsyncLane *l);
void async_close_if_due(AsyncLane *l);
/* Fails what is late. */
void async_expire(AsyncLane *l, int64_t now_ns);
/* A CANCEL of the frame, which nobody waits for. */
void async_take_back(AsyncLane *l, uint64_t frame);

PyObject *async_reap(PyObject *self, PyObject *unused);
PyObject *async_tick(PyObject *self, PyObject *unused);

/* aiocopy.c */
extern PyType_Spec copy_spec, landing_spec, flat_spec;
extern PyMethodDef async_functions[];

#endif
