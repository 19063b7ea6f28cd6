/* What is new in a log: a directory of entries that are named by their numbers, each made exclusively after the one
 * before it (docs/adr/0006-compute.md, "Model"). follow() fetches it; a Follower also adds up what is like the entry
 * before, which is most of what is ever pushed to a model. */
#include <string.h>

#include "door.h"

#define DIGITS 10 /* of an entry's name, so that names are in the order of the numbers */
#define NUMBER_MAX 9999999999ull
#define AHEAD_FIRST 2 /* entries that are asked for at once; the first are cheap */
#define AHEAD_MAX 64

/* The path of an entry: the folder's with the number in its last bytes. */
struct entry_path {
    char text[CRAIL_PATH_MAX];
    Py_ssize_t folder_len;
};

/* One entry of a reply. It stays there until the lane's next request. */
struct entry {
    const struct crail_result *result;
    const void *data;
};

/* ---- asking -------------------------------------------------------------------- */

static int path_begin(struct call *c, struct entry_path *p, PyObject *folder) {
    if (call_set_path(c, folder))
        return -1;
    if (c->path_len + 1 + DIGITS + c->self->prefix_len > (Py_ssize_t)CRAIL_PATH_MAX)
        return call_fail(c, CRAIL_E_INVALID_PATH, 0);
    p->folder_len = c->path_len;
    memcpy(p->text, c->path, (size_t)c->path_len);
    p->text[c->path_len] = '/';
    return 0;
}

static void name_entry(struct entry_path *p, uint64_t number) {
    char *end = p->text + p->folder_len + 1 + DIGITS;
    for (int i = 1; i <= DIGITS; i++, number /= 10)
        end[-i] = (char)('0' + number % 10);
}

/* Asks for `ahead` entries after `number`, the last of them first, and at the end for the folder: what was not there
 * before that was, nobody has pushed. */
static int ask(struct call *c, struct entry_path *p, uint64_t number, int ahead) {
    T->lane_begin(c->lane);
    c->path = p->text;
    c->path_len = p->folder_len + 1 + DIGITS;
    for (; ahead; ahead--) {
        name_entry(p, number + (uint64_t)ahead);
        if (call_op(c, CRAIL_OP_GET, 0, NULL, 0, 0, 0, 0))
            return -1;
    }
    c->path_len = p->folder_len;
    return call_op(c, CRAIL_OP_GET, 0, NULL, 0, 0, 0, 0) || call_exchange(c) ? -1 : 0;
}

/* The reply: how many entries there are before the first that is not there; -1. */
static int take(struct call *c, int ahead, struct entry *entries) {
    int there = ahead;
    struct entry e;
    for (int i = ahead - 1; i >= 0; i--) {
        e.result = call_result(c, &e.data);
        if (!e.result)
            return -1;
        if (call_is_absent(e.result->status))
            there = i;
        else if (e.result->status)
            return call_fail(c, e.result->status, e.result->server);
        entries[i] = e;
    }
    e.result = call_result(c, &e.data);
    if (!e.result || e.result->status == -CRAIL_E_IS_CONTAINER)
        return e.result ? there : -1;
    return call_fail(c, e.result->status ? e.result->status : CRAIL_E_NOT_CONTAINER, e.result->server);
}

/* ---- follow -------------------------------------------------------------------- */

static PyObject *entry_tuple(const struct entry *e) {
    unsigned long long version = e->result->version, size = e->result->size;
    if (!(e->result->flags & CRAIL_RESF_INLINE))
        return Py_BuildValue("KKO", version, size, Py_None);
    return Py_BuildValue("KKy#", version, size, (const char *)e->data, (Py_ssize_t)e->result->data_len);
}

static PyObject *list_of(const struct entry *entries, int n) {
    PyObject *list = PyList_New(n);
    for (int i = 0; list && i < n; i++) {
        PyObject *tuple = entry_tuple(&entries[i]);
        if (!tuple || PyList_SetItem(list, i, tuple))
            Py_CLEAR(list);
    }
    return list;
}

/* follow(folder, number, ahead, timeout) -> the entries after `number`, in order, at most `ahead` of them: of each its
 * version, its size, and its bytes or, if they are not kept in the node, None. Raises NotFoundError when the folder has
 * gone. */
PyObject *client_follow(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    struct call c = {.self = (HotClient *)self};
    struct entry entries[AHEAD_MAX];
    struct entry_path path;
    if (!call_arguments("follow", n, 4) || path_begin(&c, &path, args[0]))
        return NULL;
    uint64_t number = PyLong_AsUnsignedLongLong(args[1]);
    long ahead = PyLong_AsLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (ahead < 1 || ahead > AHEAD_MAX || number > NUMBER_MAX - AHEAD_MAX) {
        PyErr_Format(PyExc_ValueError, "1 to %d entries of a log, which has %llu at most", AHEAD_MAX, NUMBER_MAX);
        return NULL;
    }
    if (call_begin(&c, c.self, args[3], 0))
        return NULL;
    int there = ask(&c, &path, number, (int)ahead) ? -1 : take(&c, (int)ahead, entries);
    PyObject *found = there < 0 ? NULL : list_of(entries, there);
    if (c.lane)
        call_end(&c);
    return found;
}

/* ---- what is alike ------------------------------------------------------------- */

/* Values that begin and end as one that was seen, and add an array of numbers to one that is kept. */
struct alike {
    PyObject *head; /* bytes */
    PyObject *sum;  /* bytes: the array as of now */
    PyObject *key, *make, *type;
    Py_ssize_t size, at, told; /* of such a value; where its array begins; bytes of facts at its end */
    char kind;                 /* of numpy.dtype.kind: i, u, f or c */
    int width;                 /* bytes of a number; of a complex one, of its halves */
};

static void alike_clear(struct alike *a) {
    Py_CLEAR(a->head);
    Py_CLEAR(a->sum);
    Py_CLEAR(a->key);
    Py_CLEAR(a->make);
    Py_CLEAR(a->type);
}

/* (head, size, at, told, kind, width, sum, key, make, type). 0, or -1. */
static int alike_parse(struct alike *a, PyObject *tuple) {
    const char *kind;
    PyObject *head, *sum, *key, *make, *type;
    if (!PyArg_ParseTuple(tuple, "SnnnsiSOOO", &head, &a->size, &a->at, &a->told, &kind, &a->width, &sum, &key, &make,
                          &type))
        return -1;
    a->kind = kind[0];
    bool is_whole = a->kind == 'i' || a->kind == 'u';
    bool is_known =
        is_whole ? a->width == 1 || a->width == 2 || a->width == 4 || a->width == 8 : a->width == 4 || a->width == 8;
    Py_ssize_t bytes = PyBytes_Size(sum);
    if (!is_known || a->at < 0 || a->told < 0 || PyBytes_Size(head) > a->at || a->at > a->size ||
        a->told > a->size - a->at || a->size - a->at - a->told != bytes || bytes % a->width) {
        PyErr_SetString(PyExc_ValueError, "there are no such values");
        return -1;
    }
    a->head = Py_NewRef(head);
    a->sum = Py_NewRef(sum);
    a->key = Py_NewRef(key);
    a->make = Py_NewRef(make);
    a->type = Py_NewRef(type);
    return 0;
}

static bool is_alike(const struct alike *a, const struct entry *e) {
    return a->head && e->result->flags & CRAIL_RESF_INLINE && (Py_ssize_t)e->result->data_len == a->size &&
           memcmp(e->data, PyBytes_AsString(a->head), (size_t)PyBytes_Size(a->head)) == 0;
}

/* to = a + b, of n numbers anywhere in memory; whole ones wrap around. */
#define ADD(type)                                                                       \
    static void add_##type(uint8_t *to, const uint8_t *a, const uint8_t *b, size_t n) { \
        for (size_t i = 0; i < n; i++) {                                                \
            type x, y;                                                                  \
            memcpy(&x, a + i * sizeof(x), sizeof(x));                                   \
            memcpy(&y, b + i * sizeof(y), sizeof(y));                                   \
            x = (type)(x + y);                                                          \
            memcpy(to + i * sizeof(x), &x, sizeof(x));                                  \
        }                                                                               \
    }
ADD(uint8_t)
ADD(uint16_t)
ADD(uint32_t)
ADD(uint64_t)
ADD(float)
ADD(double)

/* The sum with the value's array, as new bytes. */
static PyObject *alike_sum(const struct alike *a, const struct entry *e) {
    Py_ssize_t bytes = PyBytes_Size(a->sum);
    PyObject *sum = PyBytes_FromStringAndSize(NULL, bytes);
    if (!sum)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AsString(sum);
    const uint8_t *kept = (const uint8_t *)PyBytes_AsString(a->sum), *more = (const uint8_t *)e->data + a->at;
    size_t n = (size_t)(bytes / a->width);
    if (a->kind == 'f' || a->kind == 'c')
        (a->width == 4 ? add_float : add_double)(to, kept, more, n);
    else
        (a->width == 1   ? add_uint8_t
         : a->width == 2 ? add_uint16_t
         : a->width == 4 ? add_uint32_t
                         : add_uint64_t)(to, kept, more, n);
    return sum;
}

/* ---- Follower ------------------------------------------------------------------- */

/* Follows the log for a process that has what was asked for as of some entry. */
typedef struct {
    PyObject_HEAD HotClient *client;
    PyObject *owner;  /* what client->owner only borrows */
    PyObject *folder; /* str */
    PyObject *names;  /* what was asked for */
    PyObject *found;  /* dict: and is handed out for it */
    PyObject *facts;  /* list of bytes: of the values that were added, in their order */
    struct alike alike;
    PyObject *rest; /* list of entries that were not added, or NULL */
    int rest_ahead; /* so many were asked for */
    bool is_stale;  /* the sum is newer than what `found` has */
    bool is_busy;   /* a thread is in it, which may have given up the interpreter's lock */
    unsigned fork_epoch;
    uint64_t lanes_opened;    /* when the last entry was known to be in the log */
    uint64_t number, version; /* of the last entry */
} Follower;

static PyTypeObject *follower_type;

/* follower(folder, number, version, lanes_opened, names, found, alike or None): behind that entry, for who asks for
 * `names`. */
PyObject *client_follower(PyObject *self, PyObject *args) {
    PyObject *folder, *names, *found, *alike;
    unsigned long long number, version, lanes_opened;
    if (!PyArg_ParseTuple(args, "UKKKOO!O", &folder, &number, &version, &lanes_opened, &names, &PyDict_Type, &found,
                          &alike))
        return NULL;
    struct alike parsed = {0};
    PyObject *facts = PyList_New(0);
    Follower *f =
        facts && (alike == Py_None || !alike_parse(&parsed, alike)) ? PyObject_New(Follower, follower_type) : NULL;
    if (!f) {
        Py_XDECREF(facts);
        alike_clear(&parsed);
        return NULL;
    }
    f->client = (HotClient *)Py_NewRef(self);
    f->owner = Py_NewRef(f->client->owner);
    f->folder = Py_NewRef(folder);
    f->names = Py_NewRef(names);
    f->found = Py_NewRef(found);
    f->facts = facts;
    f->alike = parsed;
    f->rest = NULL;
    f->rest_ahead = 0;
    f->is_stale = f->is_busy = false;
    f->fork_epoch = *T->fork_child_epoch;
    f->lanes_opened = lanes_opened;
    f->number = number;
    f->version = version;
    return (PyObject *)f;
}

static void follower_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Follower *f = (Follower *)self;
    alike_clear(&f->alike);
    Py_DECREF(f->client);
    Py_DECREF(f->owner);
    Py_DECREF(f->folder);
    Py_DECREF(f->names);
    Py_DECREF(f->found);
    Py_DECREF(f->facts);
    Py_XDECREF(f->rest);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* Adds one entry, all of it or nothing. */
static int add_entry(Follower *f, const struct entry *e) {
    Py_ssize_t told = f->alike.told;
    PyObject *sum = alike_sum(&f->alike, e);
    PyObject *facts =
        sum && told ? PyBytes_FromStringAndSize((const char *)e->data + f->alike.size - told, told) : NULL;
    if (!sum || (told && (!facts || PyList_Append(f->facts, facts)))) {
        Py_XDECREF(sum);
        Py_XDECREF(facts);
        return -1;
    }
    Py_XDECREF(facts);
    Py_DECREF(f->alike.sum);
    f->alike.sum = sum;
    f->is_stale = true;
    f->number++;
    f->version = e->result->version;
    return 0;
}

/* How many of the entries were added, in order: up to the first that is not alike. -1. */
static int add_up(Follower *f, const struct entry *entries, int n) {
    for (int i = 0; i < n; i++) {
        if (!is_alike(&f->alike, &entries[i]))
            return i;
        if (add_entry(f, &entries[i]))
            return -1;
    }
    return n;
}

/* Adds up to the end of the log. 1: there is something else, the rest; or another namenode may have answered, which has
 * lost what came last, and nothing is known. 0, or -1. */
static int catch_up(Follower *f, struct call *c, struct entry_path *p) {
    struct entry entries[AHEAD_MAX];
    for (int ahead = AHEAD_FIRST;; ahead = ahead < AHEAD_MAX / 4 ? 4 * ahead : AHEAD_MAX) {
        int there = ask(c, p, f->number, ahead) ? -1 : take(c, ahead, entries);
        if (there >= 0 && c->self->lanes_opened != f->lanes_opened)
            return 1;
        int added = there < 0 ? -1 : add_up(f, entries, there);
        if (added < 0)
            return -1;
        if (added < there) {
            f->rest = list_of(entries + added, there - added);
            f->rest_ahead = ahead - added;
            return f->rest ? 1 : -1;
        }
        if (there < ahead)
            return 0;
    }
}

/* What is handed out, as of the last entry. */
static int freshen(Follower *f) {
    if (!f->is_stale)
        return 0;
    PyObject *array = PyObject_CallFunctionObjArgs(f->alike.make, f->alike.sum, f->alike.type, NULL);
    int rc = array ? PyDict_SetItem(f->found, f->alike.key, array) : -1;
    Py_XDECREF(array);
    f->is_stale = rc;
    return rc;
}

/* Is it what was asked for before? 0, 1, or -1. */
static int is_same(const Follower *f, PyObject *names) {
    if (names == f->names)
        return 1;
    if (!PyUnicode_CheckExact(names) && !PyList_CheckExact(names)) /* else == may be anything */
        return 0;
    return PyObject_RichCompareBool(names, f->names, Py_EQ);
}

static int enter(Follower *f) {
    if (f->is_busy)
        return call_refuse("a model is used by one thread at a time");
    f->is_busy = true;
    return 0;
}

/* As catch_up(), in a call of its own, and fresh then. */
static int follow_up(Follower *f, PyObject *names, PyObject *timeout) {
    struct call c = {.self = f->client};
    struct entry_path path;
    int same = is_same(f, names);
    if (same <= 0 || f->number > NUMBER_MAX - 2 * AHEAD_MAX)
        return same < 0 ? -1 : 1;
    if (path_begin(&c, &path, f->folder) || call_begin(&c, c.self, timeout, 0))
        return -1;
    int rc = catch_up(f, &c, &path);
    if (c.lane)
        call_end(&c);
    return rc < 0 || freshen(f) ? -1 : rc;
}

/* pull(names, timeout) -> dict, or None where that takes more than adding up: then state() says how far it came, and
 * rest() what comes next. Raises NotFoundError when the folder has gone. */
static PyObject *follower_pull(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    Follower *f = (Follower *)self;
    if (!call_arguments("pull", n, 2))
        return NULL;
    if (f->fork_epoch != *T->fork_child_epoch)
        Py_RETURN_NONE;
    if (enter(f))
        return NULL;
    Py_CLEAR(f->rest);
    int rc = follow_up(f, args[0], args[1]);
    f->is_busy = false;
    if (rc < 0)
        return NULL;
    if (rc)
        Py_RETURN_NONE;
    return PyDict_Copy(f->found);
}

/* state() -> (number, version, found, facts): of the last entry; the facts of what was added since it was asked. */
static PyObject *follower_state(PyObject *self, PyObject *unused) {
    Follower *f = (Follower *)self;
    (void)unused;
    if (enter(f))
        return NULL;
    PyObject *none = PyList_New(0);
    int rc = none ? freshen(f) : -1;
    f->is_busy = false;
    if (rc) {
        Py_XDECREF(none);
        return NULL;
    }
    PyObject *facts = f->facts;
    f->facts = none;
    return Py_BuildValue("KKON", (unsigned long long)f->number, (unsigned long long)f->version, f->found, facts);
}

/* rest() -> (entries, n), once: of the n entries asked for last, those behind the last that was added, as follow() has
 * them; None if all were added, or nothing was asked. */
static PyObject *follower_rest(PyObject *self, PyObject *unused) {
    Follower *f = (Follower *)self;
    (void)unused;
    if (!f->rest)
        Py_RETURN_NONE;
    PyObject *rest = f->rest;
    f->rest = NULL;
    return Py_BuildValue("Ni", rest, f->rest_ahead);
}

static PyMethodDef follower_methods[] = {
    {"pull", (PyCFunction)(void (*)(void))follower_pull, METH_FASTCALL, "pull(names, timeout) -> dict or None"},
    {"rest", follower_rest, METH_NOARGS, "rest() -> (entries, n) or None"},
    {"state", follower_state, METH_NOARGS, "state() -> (number, version, found, facts)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot follower_slots[] = {
    {Py_tp_dealloc, follower_dealloc},
    {Py_tp_methods, follower_methods},
    {Py_tp_doc, "What is new in a log, added up as long as it is like what came before; of client.follower()."},
    {0, NULL},
};

static PyType_Spec follower_spec = {
    .name = "crailpy._hot.Follower",
    .basicsize = sizeof(Follower),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = follower_slots,
};

PyObject *follower_type_new(void) {
    follower_type = (PyTypeObject *)PyType_FromSpec(&follower_spec);
    return (PyObject *)follower_type;
}
