"""Every cold operation, described once: what is asked of the namenode, and what its answer means.

A function here is pure. It gives a `Request`, which the synchronous and the asynchronous face send
in their own ways, and whose `decode` makes the value of the result. The codes and structs are those
of native/include/crail/wire.h; what the operations mean is told in docs/NAMESPACE.md.
"""

from __future__ import annotations

import time
from operator import index
from struct import Struct

from crailpy.errors import (
    CrailError,
    DeadlineError,
    ExistsError,
    InvalidArgumentError,
    InvalidPathError,
    NotContainerError,
    NotEmptyError,
    NotFoundError,
    QuotaExceededError,
)
from crailpy.units import parse_size

from . import listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from crailpy.model import Event, NodeInfo

    from .listing import TierOf

    Buffer = bytes | bytearray | memoryview
    #: an error's class to what it means here
    Reasons = Mapping[type[CrailError], str]
    #: version, size, kind, flags, count, data of a result
    Result = tuple[int, int, int, int, int, bytes]

# operations
PING, GET, STAT, LIST, SERVER, ATTRIBUTES, NEXT, COLUMN = 1, 2, 3, 4, 5, 7, 8, 9
PUT, COMMIT, MKDIR, RENAME, REMOVE, RMTREE, BYE = 16, 17, 20, 21, 22, 23, 24
INCR, SETATTR, ACK, END, TRUNCATE = 25, 26, 27, 28, 29
TAKE, ENTER, WATCH, JOB = 49, 50, 52, 55
# their flags
IF_ABSENT, IF_VERSION, PARENTS, EXIST_OK, OVERWRITE, LEAF_ONLY = 1, 2, 4, 8, 16, 32
WAIT, ABSENT, QUEUE, EDIT = 1 << 8, 1 << 9, 1 << 10, 1 << 12
# flags of results
INLINE, MORE, DELETE_AFTER_READ = 1, 2, 8
# kinds
DIRECTORY, TABLE, MULTIFILE, QUEUE_KIND, BARRIER = 2, 3, 4, 5, 6

SECONDS_MAX = 86400.0 * 365 * 100
INLINE_MAX = 4096  # bytes of a value kept inside its node
PAGE = 1024  # entries of one page of a listing
PATH_MAX = 4096  # bytes
ATTRIBUTES_MAX = 65536  # bytes of a node's user attributes, heads included
WAIT_AT_ONCE = (
    15.0  # seconds: a longer wait is several requests, so that a lost reply costs no more
)

WAY_BACK = 0.5  # seconds beyond its deadline, for the answer of a wait that has a timeout

_ATTRIBUTE = Struct("<HHI")  # name_len, -, value_len
_GONE = 0xFFFFFFFF
_EVENT = Struct("<QHHI")  # version, kind, path_len, -
_QUOTA = Struct("<QQ")
_I64 = Struct("<q")

NO_COUNTER: dict[type[CrailError], str] = {
    InvalidArgumentError: "the value is no counter, or the sum does not fit 64 bits"
}
TOO_MANY_ATTRIBUTES: Reasons = {
    InvalidArgumentError: f"the attributes of a node have at most {ATTRIBUTES_MAX} bytes together,"
    " and the root, the items of a queue and the directories of jobs have no ttl of their own"
}
NOT_IN_HERE: dict[type[CrailError], str] = {
    InvalidArgumentError: "tables, multifiles and queues hold no containers, and a job's directory"
    " has no other life"
}
NO_RENAME: Reasons = {
    InvalidArgumentError: "cannot be moved: the root, barriers and items of queues stay, nothing"
    " goes into itself, no container into a table, multifile or queue or, with what is in it,"
    " across the border of a job"
}
NO_REMOVAL: Reasons = {InvalidArgumentError: "the root and the items of queues cannot be removed"}
NO_BARRIER: Reasons = {
    InvalidArgumentError: "the barrier is one of another number of members, or in a table,"
    " multifile or queue, which hold none"
}
SHORT_BUFFER = "the buffer is shorter than the value from the offset on, or that is outside of it"
NEGATIVE_RANGE = "a range has no negative offset or length"
NO_WATCH: Reasons = {
    QuotaExceededError: "this session has all the watches that it may have, or has left too many"
    " of their events unread"
}
NO_ITEM: Reasons = {NotFoundError: "the queue is empty, or there is none"}

#: What says that there is no job any more where it was.
JOB_ENDED = (NotFoundError, NotContainerError, ExistsError, NotEmptyError)

#: The value of `absent` (and of `default` in `get`) that means: raise NotFoundError.
RAISE: Any = object()
#: Nothing is there. Below a value nothing can be: who asks whether there is something hears no.
ABSENT_ERRORS = (NotFoundError, NotContainerError)
ABSENT_STATUSES = (NotFoundError.status, NotContainerError.status)


def _nothing(result: Result) -> None:
    return None


def _version(result: Result) -> int:
    return result[0]


class Request:
    """One operation. `data` may be any buffer; `options` is a struct crail_options or nothing.
    With `wait`, in seconds, the namenode sets it aside until there is an answer: `wait_pieces`
    says how long at once. `absent` is the value instead of ABSENT_ERRORS. `reasons`: what a status
    means of this operation, where its own words say little."""

    __slots__ = (
        "code", "flags", "path", "data", "arg0", "arg1", "count", "options", "wait", "decode",
        "absent", "reasons",
    )  # fmt: skip

    def __init__(
        self,
        code: int,
        path: str | None = None,
        *,
        flags: int = 0,
        data: Buffer = b"",
        arg0: int = 0,
        arg1: int = 0,
        count: int = 0,
        options: bytes = b"",
        wait: float | None = None,
        decode: Callable[[Result], Any] = _nothing,
        absent: Any = RAISE,
        reasons: Reasons = {},  # noqa: B006 (nobody changes it)
    ) -> None:
        self.code = code
        self.path = path
        self.flags = flags
        self.data = data
        self.arg0 = arg0
        self.arg1 = arg1
        self.count = count
        self.options = options
        self.wait = wait
        self.decode = decode
        self.absent = absent
        self.reasons = reasons

    def explain(self, error: CrailError) -> None:
        """Gives an error of this request the words of its reason."""
        reason = self.reasons.get(type(error))
        if reason is not None:
            error.retell(reason)


class WaitPieces:
    """Cuts a `wait` in seconds into requests: `next_ms()` is how long the next one may be set aside
    (milliseconds, at least 1), and `over(error)` raises the DeadlineError of the last one."""

    __slots__ = ("_until",)

    def __init__(self, wait: float) -> None:
        self._until = time.monotonic() + seconds(wait, "wait")

    def next_ms(self) -> int:
        left = min(self._until - time.monotonic(), WAIT_AT_ONCE)
        return max(1, int(left * 1000) + (left > 0))

    def over(self, error: DeadlineError) -> None:
        if time.monotonic() >= self._until:
            raise error


def seconds(value: Any, what: str) -> float:
    """A time that fits the wire; not negative, and a number."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or not value >= 0:
        raise InvalidArgumentError(f"{what}={value!r} is no number of seconds")
    return min(float(value), SECONDS_MAX)


def wait_ms(seconds: float) -> int:
    """A wait as it travels: milliseconds, at most a day."""
    return min(round(seconds * 1000), 86400 * 1000)


# ---- the connection -----------------------------------------------------------------------------


def ping() -> Request:
    return Request(PING)


def describe_server(number: int) -> Request:
    """The description that a server's registration left: bytes."""
    return Request(SERVER, arg0=number, decode=lambda r: r[5])


def bye() -> Request:
    return Request(BYE)


# ---- one node -----------------------------------------------------------------------------------


def stat(path: str, tier_of: TierOf | None = None, kept: str = "none") -> Request:
    """NodeInfo. `tier_of` names the tier of a server, by its number; `kept`: what the namenode
    promises."""
    return Request(STAT, path, decode=lambda r: listing.node_info(path, r[5], tier_of, kept))


def exists(path: str) -> Request:
    return Request(STAT, path, decode=lambda r: True, absent=False)


def several(paths: Iterable[str]) -> list[str]:
    """The paths of a call as a list of our own, as the caller may change his meanwhile. One path
    by itself is refused, or it would be one of each letter: InvalidArgumentError."""
    if isinstance(paths, str | bytes):
        raise InvalidArgumentError(f"{paths!r} is one path: several are wanted, as in a list")
    return list(paths)


def delete(key: str, missing_ok: bool) -> Request:
    absent = None if missing_ok else RAISE
    return Request(REMOVE, key, flags=LEAF_ONLY, absent=absent, reasons=NO_REMOVAL)


def delivered(key: str, version: int) -> Request:
    """Deletes a value that has served, if its version is still this one: all of one that goes when
    it was read has been read, or what only held a place is needed no more."""
    return Request(REMOVE, key, flags=LEAF_ONLY | IF_VERSION, arg0=version, absent=None)


def remove(path: str) -> Request:
    return Request(REMOVE, path, reasons=NO_REMOVAL)


def rmtree(path: str) -> Request:
    return Request(RMTREE, path, reasons=NO_REMOVAL)


#: By whether a job was named, and whether parents are made: what can be absent then.
_ABSENCE = {
    (True, True): "the job is over",
    (True, False): "the job is over, or there is no parent",
    (False, False): "there is no parent",
}


def explain_absence(error: Any, parents: bool, options: bytes) -> None:
    """Gives what a request that makes a node was answered its reason, if it is a NotFoundError:
    what is made can be absent only through its parent and its job."""
    if isinstance(error, NotFoundError):
        for words in _absence(parents, options).values():
            error.retell(words)


def explain_queue(error: NotFoundError, options: bytes) -> None:
    """The same of what is put into a queue."""
    error.retell("the job is over, or there is no queue" if any(options[8:16]) else "no such queue")


def _absence(parents: bool, options: bytes) -> dict[type[CrailError], str]:
    words = _ABSENCE.get((any(options[8:16]), parents))
    return {NotFoundError: words} if words else {}


def conditions(flags: int, if_absent: bool, if_version: int | None) -> tuple[int, int]:
    """`flags` with what a put is conditional on, and the version for if_version."""
    if if_absent:
        flags |= IF_ABSENT
    if if_version is None:
        return flags, 0
    return flags | IF_VERSION, unsigned(if_version, "if_version")


def truncate(path: str, size: int) -> Request:
    """Of a value that lies within its node; a larger one is a new value (`files`)."""
    return Request(TRUNCATE, path, arg1=unsigned(size, "size"), decode=_version)


def incr(path: str, by: int, parents: bool, options: bytes) -> Request:
    by = whole(by, "by")
    if not -(1 << 63) <= by < 1 << 63:
        raise InvalidArgumentError(f"{by} is no number of 64 bits", path=path)
    return Request(
        INCR,
        path,
        flags=PARENTS if parents else 0,
        arg0=by % (1 << 64),
        options=options,
        decode=lambda r: _I64.unpack(r[5])[0],
        reasons=NO_COUNTER | _absence(parents, options),
    )


# ---- attributes ---------------------------------------------------------------------------------


def set_attributes(path: str, attributes: Mapping[str, Buffer | None], options: bytes) -> Request:
    """`attributes`: name to value, or to None, which takes it away."""
    parts = []
    for name, value in attributes.items():
        coded = name.encode()
        body = b"" if value is None else bytes(value)
        if not coded or len(coded) > 255:
            raise InvalidArgumentError(f"{name!r} is no name of an attribute", path=path)
        parts.append(_ATTRIBUTE.pack(len(coded), 0, _GONE if value is None else len(body)))
        parts += [coded, body]
    data = b"".join(parts)
    if len(data) > ATTRIBUTES_MAX:
        raise InvalidArgumentError(
            f"the attributes of a node have at most {ATTRIBUTES_MAX} bytes", path=path
        )
    return Request(
        SETATTR, path, data=data, options=options, decode=_version, reasons=TOO_MANY_ATTRIBUTES
    )


def attributes(path: str) -> Request:
    """The user attributes: dict of str to bytes."""
    return Request(ATTRIBUTES, path, decode=lambda r: _attributes(r[5]))


def _attributes(data: bytes) -> dict[str, bytes]:
    found = {}
    at = 0
    while at < len(data):
        name_len, _, value_len = _ATTRIBUTE.unpack_from(data, at)
        at += _ATTRIBUTE.size
        name = data[at : at + name_len].decode()
        at += name_len
        found[name] = data[at : at + value_len]
        at += value_len
    return found


# ---- the tree -----------------------------------------------------------------------------------


def mkdir(
    path: str, *, parents: bool, exist_ok: bool, kind: int = 0, options: bytes = b""
) -> Request:
    """`kind`: of the container, 0 for a directory."""
    flags = (PARENTS if parents else 0) | (EXIST_OK if exist_ok else 0)
    reasons = NOT_IN_HERE | _absence(parents, options)
    return Request(MKDIR, path, flags=flags, arg0=kind, options=options, reasons=reasons)


def rename(prefix: str, src: str, dst: str, overwrite: bool) -> Request:
    """`prefix`: of the store's namespace. The core puts it before `src`."""
    if not isinstance(dst, str):
        raise TypeError(f"a path is a str, not {type(dst).__name__}")
    if not dst.startswith("/"):  # never behind the prefix: it would lead out of the namespace
        raise InvalidPathError(path=dst)
    to = (prefix + dst if dst != "/" else prefix or "/").encode("utf-8", "surrogatepass")
    if len(to) > PATH_MAX:
        raise InvalidPathError(path=dst)
    return Request(RENAME, src, flags=OVERWRITE if overwrite else 0, data=to, reasons=NO_RENAME)


def list_page(path: str, cursor: bytes) -> Request:
    """(page for `listing`, cursor of the next page or None). `cursor`: b"" for the first."""
    return Request(LIST, path, data=cursor, arg0=PAGE, decode=_page)


def _page(result: Result) -> tuple[bytes, bytes | None]:
    _, _, _, flags, _, page = result
    return page, listing.names(page)[-1].encode() if flags & MORE else None


# ---- waiting ------------------------------------------------------------------------------------


def wait(
    path: str, version: int | None, absent: bool, seconds: float, kept: str = "none"
) -> Request:
    """NodeInfo of what is there at last, or None when nothing is (`absent`)."""
    if absent and version is not None:
        raise InvalidArgumentError("wait for a version, or for nothing, not both", path=path)
    if absent:
        return Request(STAT, path, flags=ABSENT, wait=seconds, absent=None)
    flags = 0 if version is None else IF_VERSION
    return Request(
        STAT,
        path,
        flags=flags,
        arg0=unsigned(version or 0, "version"),
        wait=seconds,
        decode=lambda r: listing.node_info(path, r[5], None, kept),
    )


def watch(prefix: str, token: int) -> Request:
    return Request(WATCH, prefix, arg0=token, reasons=NO_WATCH)


def next_events(namespace: str, token: int, last: int, seconds: float) -> Request:
    """(events, number of the last of them), after the one of number `last`. `namespace` is taken
    off their paths."""
    return Request(
        NEXT,
        arg0=token,
        arg1=last,
        wait=seconds,
        decode=lambda r: (_events(len(namespace.encode()), r[5]), r[0]),
    )


def _events(prefix_len: int, data: bytes) -> list[Event]:
    from crailpy.model import Event

    found = []
    at = 0
    while at < len(data):
        version, kind, path_len, _ = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        path = data[at + prefix_len : at + path_len].decode()
        at += (path_len + 7) & ~7
        name = Event.KINDS[kind] or ""
        found.append(Event(name, path or "/", version) if name != "resync" else Event(name))
    return found


def enter(path: str, members: int, token: int, seconds: float) -> Request:
    """A place in a barrier: the number of rounds it has seen, when all members are there."""
    members = whole(members, "n")
    if not 0 < members < 1 << 32:
        raise InvalidArgumentError(f"a barrier of {members} members", path=path)
    return Request(
        ENTER,
        path,
        flags=PARENTS,
        arg0=token,
        arg1=members,
        wait=seconds,
        decode=_version,
        reasons=NO_BARRIER,
    )


# ---- queues, holds, jobs ------------------------------------------------------------------------


def take(path: str, token: int, seconds: float | None) -> Request:
    """The oldest free item: (its number, the bytes that follow, the whole result)."""
    return Request(TAKE, path, arg0=token, wait=seconds, decode=lambda r: r, reasons=NO_ITEM)


def ack(token: int) -> Request:
    return Request(ACK, arg0=token)


def end(token: int) -> Request:
    """What the token holds ends as it does with its session."""
    return Request(END, arg0=token, absent=None)


def job(
    path: str, token: int, quota_bytes: int | str | None, quota_nodes: int | None, options: bytes
) -> Request:
    """A share in a job: its number."""
    if isinstance(quota_bytes, str):
        quota_bytes = parse_size(quota_bytes)
    quota = _QUOTA.pack(
        unsigned(quota_bytes or 0, "quota_bytes"), unsigned(quota_nodes or 0, "quota_nodes")
    )
    return Request(
        JOB, path, flags=PARENTS, arg0=token, data=quota, options=options, decode=_version
    )


def job_again(path: str, token: int) -> Request:
    """The same share in another session, if there is a job still: its number."""
    return Request(JOB, path, arg0=token, decode=_version)


def whole(value: Any, what: str) -> int:
    """Whatever is a whole number, NumPy's too. Raises InvalidArgumentError."""
    try:
        number: int = index(value)
    except TypeError:
        raise InvalidArgumentError(f"{what}={value!r} is no whole number") from None
    return number


def unsigned(value: Any, what: str) -> int:
    """The same for one of 64 bits without a sign."""
    number = whole(value, what)
    if not 0 <= number < 1 << 64:
        raise InvalidArgumentError(f"{what}={number} is out of its range")
    return number


# ---- many nodes at once -------------------------------------------------------------------------

#: What one item of many may raise, and the others need not know.
FAULTS_OF_ITEM = (CrailError, TypeError, ValueError, BufferError)


def pair(item: Any) -> tuple[Any, Any]:
    """An item of put_many: key and data."""
    if not isinstance(item, tuple) or len(item) != 2:
        raise TypeError("put_many takes pairs of key and data")
    return item


def node_infos(
    paths: list[str],
    results: list[tuple[Any, ...]],
    error: Callable[[int, str, int], CrailError],
    tier_of: TierOf | None = None,
    kept_at: Callable[[str], str] = lambda path: "none",
) -> list[NodeInfo | CrailError | None]:
    """What a vector of STATs answered (status before the rest of each result); None for what is
    absent, `error` makes the others."""
    return [
        listing.node_info(path, r[6], tier_of, kept_at(path))
        if not r[0]
        else None
        if -r[0] in ABSENT_STATUSES
        else error(-r[0], path, 0)
        for path, r in zip(paths, results, strict=True)
    ]
