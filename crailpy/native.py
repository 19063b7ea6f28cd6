"""The only importer of the two doors, `crailpy._native` (cffi) and `crailpy._hot`.

Handles, buffers, and return codes -> exceptions. No other file touches `ffi` or `lib`. The C
functions may be called from any thread (native/include/crail/api.h); a closed handle raises
ClosedError.
"""

from __future__ import annotations

from itertools import chain
from os import close, environ, getpid

from crailpy import _hot, _native, errors
from crailpy._hot import AsyncLane as AsyncLane
from crailpy._hot import Client as Client
from crailpy._hot import Copy as Copy
from crailpy._hot import Flat as Flat
from crailpy._hot import Follower as Follower
from crailpy._hot import Gather as Gather
from crailpy._hot import Landing as Landing
from crailpy._hot import Pipe as Pipe
from crailpy._hot import View as View
from crailpy._hot import pin as pin
from crailpy._hot import view as view
from crailpy.errors import ClosedError, NoMemoryError, ProtocolError, from_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

ffi = _native.ffi
lib = _native.lib

API_VERSION = 1

SERVER_UP = 1
SERVER_DOWN = 2
SERVER_LOST = 3

LIVE_MAX = 4096  # runs in one answer of server_live()
DURABILITIES = ("none", "group", "sync")  # enum crail_durability

EVENT_SESSION_ENDED: int = lib.CRAIL_EVENT_SESSION_ENDED
EVENT_CHANNEL_CLOSED: int = lib.CRAIL_EVENT_SERVER_CHANNEL_CLOSED


def status_names() -> dict[int, str]:
    """The statuses that the core knows, and their names."""
    names = {}
    for number in range(errors.STATUS_BASE + 1, errors.STATUS_BASE + 100):
        name = lib.crail_status_name(number)
        if name == ffi.NULL:
            break
        names[number] = ffi.string(name).decode()
    return names


def _compare_with_core() -> None:
    """The core and this package must be of one build. Raises ImportError."""
    if lib.crail_api_version() != API_VERSION or lib.CRAIL_API_VERSION != API_VERSION:
        raise ImportError(
            f"crailpy._native has api version {lib.crail_api_version()}, this is {API_VERSION}:"
            " reinstall crailpy (in a checkout: make dev)"
        )
    known = status_names()
    ours = {number: cls.code for number, cls in errors.BY_STATUS.items()}
    if known != ours:
        wrong = sorted(known.items() ^ ours.items())
        raise ImportError(f"errors.py and status.h differ: {wrong}: reinstall crailpy")


_compare_with_core()
_hot.bind(int(ffi.cast("uintptr_t", lib.crail_hot_table())))


def check(rc: int, path: str | None = None, server: str | int | None = None) -> int:
    """A return code of the core: raises what it says, or returns it."""
    if rc < 0:
        raise from_status(rc, path, server)
    return rc


def mac(key: bytes, data: bytes) -> int:
    """SipHash-2-4 of `data` under a key of 16 bytes."""
    if len(key) != 16:
        raise ValueError("a key has 16 bytes")
    return int(lib.crail_mac(key, data, len(data)))


def make_ring() -> list[int]:
    """What a lane on this host speaks through instead of its socket: descriptors of its memory and
    of the namenode's bell. Raises OSError, NoMemoryError."""
    out = ffi.new("int[2]")
    check(lib.crail_ring_make(out))
    return list(out)


def _pair(fds: Sequence[int] | None) -> Any:
    if fds is None:
        return ffi.NULL
    if len(fds) != 2:
        raise ProtocolError(f"a ring is two descriptors, not {len(fds)}")
    return ffi.new("int[2]", list(fds))


def location_number(location: str) -> int:
    """What stands for a location class of this name on the wire: never 0."""
    name = location.encode()
    return int(lib.crail_location(name, len(name)))


def test_guards() -> bool:
    """Is this the test build whose guards can be switched off?"""
    return bool(lib.crail_test_guards())


def _no_failpoint(name: str) -> None:
    """Does nothing."""


def _failpoint(name: str) -> None:
    rc = lib.crail_test_failpoint(name.encode())
    if rc:
        raise OSError(-rc, "a failpoint", name)


failpoint = _failpoint if test_guards() and "CRAILPY_FAILPOINTS" in environ else _no_failpoint
"""A place where the test build can be made to die, to wait or to fail, by its name in
native/src/base/failpoint.c (docs/TESTING.md). Raises OSError where it is told to fail."""


# ---- rows of the namenode's database (native/include/crail/rows.h) -----------------------------


def row_make(table: int, key: bytes, value: bytes) -> bytes:
    """One row as it lies in a cut and in the database."""
    room = 64 + len(key) + len(value)
    out = ffi.new("uint64_t[]", room // 8 + 1)
    size = check(lib.crail_row_make(table, key, len(key), value, len(value), out, room))
    return bytes(ffi.buffer(out, size))


def row_is_whole(row: bytes) -> bool:
    """Do its lengths agree, and is its checksum right?"""
    room = ffi.new("uint64_t[]", len(row) // 8 + 1)
    ffi.memmove(room, row, len(row))
    return int(lib.crail_row_verify(room, len(row))) == 0


_KEY_BYTES = (0, 9, 9, 13, 5, 0)  # in the database, by table; 0: it is a text
_new_unzeroed = ffi.new_allocator(should_clear_after_alloc=False)


class Rows:
    """Rows behind each other, in the order of the database; of several with one key the last one
    counts. What they lie in must stay while they are used. Raises NoMemoryError, ProtocolError
    where they are none."""

    def __init__(self, data: Any) -> None:
        self._data = data
        at = ffi.from_buffer("char[]", data)
        room = _checked_rows(lib.crail_rows_count(at, len(at)))
        counts = ffi.new("crail_row_counts *")
        try:
            places = _new_unzeroed("crail_row_place[]", room)
        except MemoryError:
            raise NoMemoryError from None
        _checked_rows(lib.crail_rows_order(at, len(at), places, room, counts))
        self._places = ffi.buffer(places)
        self._kept, self._gone = list(counts.kept), list(counts.gone)

    def puts(self) -> Iterator[tuple[bytes, bytes]]:
        """(key in the database, row) of those that are kept."""
        return self._of(0, self._kept, keys_only=False)

    def gone(self) -> Iterator[bytes]:
        """The keys of those that are gone."""
        return self._of(sum(self._kept), self._gone, keys_only=True)

    def _of(self, first: int, counts: list[int], *, keys_only: bool) -> Iterator[Any]:
        each = []
        for count, key_bytes in zip(counts, _KEY_BYTES, strict=True):
            each.append(_hot.Rows(self._data, self._places, first, count, key_bytes, keys_only))
            first += count
        return chain.from_iterable(each)


def _checked_rows(rc: int) -> int:
    if rc == -EUCLEAN:
        raise ProtocolError("these are no rows of a database")
    return check(rc)


class Cut:
    """One cut: its rows are views that are valid until cut_done() says that they are durable."""

    def __init__(self, epoch: int, parts: list[memoryview]) -> None:
        self.epoch = epoch
        self._parts = parts

    def in_order(self) -> list[Rows]:
        """Its rows; no key is in two of them. Raises NoMemoryError."""
        return [Rows(part) for part in self._parts]


def _fields(struct: Any) -> dict[str, int]:
    return {name: int(getattr(struct, name)) for name, _ in ffi.typeof(struct).fields}


class _Handle:
    """A pointer of the core that lives until close()."""

    what = "store"  # in messages

    def __init__(self, pointer: Any) -> None:
        self._pointer: Any = pointer

    @property
    def _open(self) -> Any:
        if self._pointer is None:
            raise ClosedError(f"the {self.what} is closed")
        return self._pointer

    @property
    def closed(self) -> bool:
        """Has close() been called?"""
        return self._pointer is None

    def _take(self) -> Any:
        pointer, self._pointer = self._pointer, None
        return pointer


EUCLEAN = 117


def _said(rc: int, why: Any) -> str | None:
    """None if all is well, else the sentence of the core. Raises what is not about its data."""
    if rc >= 0:
        return None
    if rc != -EUCLEAN:
        raise from_status(rc)
    return ffi.string(why).decode(errors="replace") or str(from_status(rc))


class Namenode(_Handle):
    """The namenode's loop thread and the tree that it owns.

    `session_grace` in seconds, `mac_key` the 16 bytes of the cluster's key; `durability`: one of
    DURABILITIES, and unless it is "none", cuts are to be made and committed. `grants`: descriptor
    of the file for the grant map, which stays the caller's. Raises NoMemoryError, OSError."""

    def __init__(
        self,
        *,
        arena_bytes_max: int,
        session_grace: float,
        mac_key: bytes,
        durability: str = "none",
        grants: int | None = None,
    ) -> None:
        options = ffi.new("crail_namenode_options *")
        options.arena_bytes_max = arena_bytes_max
        options.session_grace_ms = max(1, round(session_grace * 1000))
        ffi.memmove(options.mac_key, mac_key, 16)
        options.durability = DURABILITIES.index(durability)
        options.grants_fd = -1 if grants is None else grants
        out = ffi.new("crail_namenode **")
        check(lib.crail_namenode_start(options, out))
        super().__init__(out[0])

    def close(self) -> None:
        """Ends the thread and every connection. May be called twice."""
        pointer = self._take()
        if pointer is not None:
            lib.crail_namenode_stop(pointer)

    def hang_up(self) -> None:
        """Closes every lane's connection; their sessions stay."""
        check(lib.crail_namenode_hang_up(self._open))

    def session_open(self, session: int) -> None:
        """Raises ExistsError if there is such a session."""
        check(lib.crail_namenode_session_open(self._open, session))

    def lane_attach(
        self, fd: int, session: int, lane: int, ring: Sequence[int] | None = None
    ) -> None:
        """Takes the descriptor in any case; those of `ring` (make_ring) stay the caller's. Raises
        SessionLostError."""
        check(lib.crail_namenode_lane_attach(self._open, fd, session, lane, _pair(ring)))

    def server_add(
        self, regions: Sequence[int], storage_class: int, location: str, description: bytes
    ) -> int:
        """A new incarnation, its regions in granules, all of generation 0; its rank among the
        others and its location class ("": none). Returns its number."""
        granules = ffi.new("uint32_t[]", list(regions))
        number = ffi.new("uint32_t *")
        check(
            lib.crail_namenode_server_add(
                self._open,
                len(regions),
                granules,
                ffi.NULL,
                storage_class,
                location_number(location) if location else 0,
                description,
                len(description),
                number,
            )
        )
        return int(number[0])

    def server_describe(
        self, number: int, storage_class: int, location: str, description: bytes
    ) -> None:
        """Replaces its rank, its location class and what clients are told about it."""
        check(
            lib.crail_namenode_server_describe(
                self._open,
                number,
                storage_class,
                location_number(location) if location else 0,
                description,
                len(description),
            ),
            server=number,
        )

    def server_set(self, number: int, state: int) -> None:
        """SERVER_UP, SERVER_DOWN or, for ever, SERVER_LOST."""
        check(lib.crail_namenode_server_set(self._open, number, state), server=number)

    def server_channel(self, number: int, fd: int) -> None:
        """The retire channel. Takes the descriptor in any case."""
        check(lib.crail_namenode_server_channel(self._open, number, fd), server=number)

    def server_live(self, number: int, first: int) -> bytes:
        """Of a server of an earlier life, the runs that it has to keep, from the `first`-th on: up
        to LIVE_MAX triples of u32 (region, granule, granules), little-endian. Empty: no more."""
        out = ffi.new("uint32_t[]", 3 * LIVE_MAX)
        n = check(lib.crail_namenode_server_live(self._open, number, first, out, LIVE_MAX))
        return bytes(ffi.buffer(out, 12 * n))

    def server_recovered(self, number: int, generations: bytes | bytearray, busy: bytes) -> int:
        """What that server has, now that it has retired the rest: the generations of all granules,
        u64, one region behind the other, and its busy runs as triples. It is up. Returns how many
        live extents are lost. Raises InvalidArgumentError, ProtocolError."""
        lost = ffi.new("uint32_t *")
        runs = ffi.new("uint32_t[]", len(busy) // 4 + 1)
        ffi.memmove(runs, busy, len(busy))
        data = ffi.from_buffer("uint64_t[]", generations)
        rc = lib.crail_namenode_server_recovered(
            self._open, number, data, len(generations) // 8, runs, len(busy) // 12, lost
        )
        check(rc, server=number)
        return int(lost[0])

    def server_stats(self, number: int) -> dict[str, int]:
        """The granule counts of one server."""
        out = ffi.new("crail_namenode_stats *")
        check(lib.crail_namenode_server_stats(self._open, number, out), server=number)
        return {name: n for name, n in _fields(out[0]).items() if name.startswith("granules_")}

    def stats(self) -> dict[str, int]:
        """The fields of crail_namenode_stats."""
        out = ffi.new("crail_namenode_stats *")
        check(lib.crail_namenode_stats_read(self._open, out))
        return _fields(out[0])

    def event_fd(self) -> int:
        """Readable while events wait; belongs to the namenode."""
        return check(lib.crail_namenode_event_fd(self._open))

    def events(self) -> list[tuple[int, int, int]]:
        """Takes what waits: (kind, server, session) of each event."""
        room = 64
        out = ffi.new("crail_namenode_event[]", room)
        taken: list[tuple[int, int, int]] = []
        while True:
            n = check(lib.crail_namenode_events_take(self._open, out, room))
            taken += [(int(e.kind), int(e.server), int(e.session)) for e in out[0:n]]
            if n < room:
                return taken

    def load(self, rows: bytes) -> str | None:
        """Whole rows of an earlier life, sessions before lanes; before anything else is done. None,
        or the sentence that says what is damaged. Raises NoMemoryError."""
        why = ffi.new("char[]", 512)
        room = ffi.new("uint64_t[]", len(rows) // 8 + 1)
        ffi.memmove(room, rows, len(rows))
        return _said(lib.crail_namenode_load(self._open, room, len(rows), why, 512), why)

    def load_end(self) -> tuple[dict[str, int], str | None]:
        """Puts them together: the fields of crail_namenode_loaded, and the same as load()."""
        why = ffi.new("char[]", 512)
        out = ffi.new("crail_namenode_loaded *")
        said = _said(lib.crail_namenode_load_end(self._open, out, why, 512), why)
        return _fields(out[0]), said

    def cut_wait(self, timeout: float) -> bool | None:
        """Waits until somebody waits for a cut: True; False: nobody in this time, in seconds; None:
        cut_wake() was called."""
        rc = int(lib.crail_namenode_cut_wait(self._open, max(0, round(timeout * 1000))))
        return None if rc < 0 else rc == 1

    def cut_wake(self) -> None:
        """Ends cut_wait(), now and for ever."""
        lib.crail_namenode_cut_wake(self._open)

    def cut_make(self) -> Cut | None:
        """Makes a cut and waits until it is written. None: nothing has changed. Raises
        NoMemoryError."""
        out = ffi.new("crail_namenode_cut *")
        if not check(lib.crail_namenode_cut_make(self._open, out)):
            return None
        parts = [memoryview(ffi.buffer(out.rows[i], out.bytes[i])) for i in (0, 1) if out.bytes[i]]
        return Cut(int(out.epoch), parts)

    def cut_done(self, epoch: int, ok: bool) -> None:
        """This cut is durable, and its rows are gone; or it is not, and there is to be another try:
        until that is reported no change is acknowledged."""
        check(lib.crail_namenode_cut_done(self._open, epoch, ok))

    def cut_want(self) -> int:
        """Asks for a cut if something is not durable: the epoch that has to be, 0 if all is."""
        out = ffi.new("uint64_t *")
        check(lib.crail_namenode_cut_want(self._open, out))
        return int(out[0])

    def check(self) -> str | None:
        """The full invariant check; None, or the sentence that says what is broken."""
        why = ffi.new("char[]", 512)
        return _said(lib.crail_namenode_check(self._open, why, 512), why)


class Storage(_Handle):
    """A storage server's loop thread. Raises NoMemoryError."""

    def __init__(self) -> None:
        out = ffi.new("crail_storage **")
        check(lib.crail_storage_start(out))
        super().__init__(out[0])
        self.regions = 0  # how many it has

    def close(self) -> None:
        """Ends the thread and every connection, unmaps the regions. May be called twice."""
        pointer = self._take()
        if pointer is not None:
            lib.crail_storage_stop(pointer)

    def region_add(self, fd: int, generations_fd: int, granules: int, *, populate: bool) -> int:
        """Maps a region and its generations; the caller keeps the descriptors. Returns its number.
        Only before the first connection."""
        number = check(
            lib.crail_storage_region_add(self._open, fd, generations_fd, granules, populate)
        )
        self.regions = number + 1
        return number

    def region_add_file(self, fd: int, generations_at: int, data_at: int, granules: int) -> int:
        """A region in a file: its generations and its data begin at these bytes. The caller keeps
        the descriptor. Returns its number. Only before the first connection. Raises
        InvalidArgumentError if not all of it is there."""
        number = check(
            lib.crail_storage_region_add_file(self._open, fd, generations_at, data_at, granules)
        )
        self.regions = number + 1
        return number

    def failed_fd(self) -> int | None:
        """Readable once the disk has failed (stats: `disk_errno`); None without regions in a file.
        Belongs to the storage."""
        fd: int = lib.crail_storage_failed_fd(self._open)
        return None if fd < 0 else fd

    def identity(self, number: int, mac_key: bytes) -> None:
        """What registration gave."""
        if len(mac_key) != 16:
            raise ValueError("a key has 16 bytes")
        check(lib.crail_storage_identity(self._open, number, mac_key))

    def data_attach(self, fd: int) -> None:
        """A client's data connection. Takes the descriptor in any case."""
        check(lib.crail_storage_data_attach(self._open, fd))

    def channel(self, fd: int) -> None:
        """The retire channel. Takes the descriptor in any case."""
        check(lib.crail_storage_channel(self._open, fd))

    def retire_others(self, live: bytes) -> bytes:
        """Retires all but the `live` runs (triples of u32: region, granule, granules; by place) and
        ends the retire channel. Returns likewise the runs outside that somebody is still using.
        Takes milliseconds per million granules, and, of a file, what the disk takes. Raises
        InvalidArgumentError, OSError, NoMemoryError."""
        runs = ffi.new("uint32_t[]", len(live) // 4 + 1)
        ffi.memmove(runs, live, len(live))
        n = check(lib.crail_storage_retire_others(self._open, runs, len(live) // 12))
        out = ffi.new("uint32_t[]", 3 * n + 1)
        n = check(lib.crail_storage_busy(self._open, out, n))
        return bytes(ffi.buffer(out, 12 * n))

    def generations(self, region: int, granules: int) -> bytearray:
        """Those of a region: a u64 of each of its granules."""
        out = bytearray(8 * granules)
        data = ffi.from_buffer("uint64_t[]", out, require_writable=True)
        check(lib.crail_storage_generations(self._open, region, data, granules))
        return out

    def use_create(self, path: str, session: int) -> tuple[int, int]:
        """A use table at `path`: (descriptor that holds its lock, to pass on and close; handle)."""
        handle = ffi.new("uint32_t *")
        fd = check(lib.crail_storage_use_create(self._open, path.encode(), session, handle), path)
        return fd, int(handle[0])

    def use_adopt(self, path: str) -> bool:
        """Takes the table that an earlier process left; False if nobody held it any more and the
        file was removed."""
        return check(lib.crail_storage_use_adopt(self._open, path.encode()), path) == 0

    def use_closed(self, handle: int) -> None:
        """The socket of the table's holder has closed."""
        check(lib.crail_storage_use_closed(self._open, handle))

    def stats(self) -> dict[str, int]:
        """The fields of crail_storage_stats."""
        out = ffi.new("crail_storage_stats *")
        check(lib.crail_storage_stats_read(self._open, out))
        return _fields(out[0])


# ---- the client's side -----------------------------------------------------------------------


class ClientHandle(_Handle):
    """The core of one store: its lanes, and the storage servers within its reach."""

    def __init__(
        self, *, lanes_max: int, inline_max: int = 4096, grants_ahead: bool = True
    ) -> None:
        options = ffi.new("crail_client_options *")
        options.lanes_max = lanes_max
        options.inline_max = inline_max
        options.grants_ahead = grants_ahead
        out = ffi.new("crail_client **")
        check(lib.crail_client_new(options, out))
        super().__init__(out[0])
        self._pid = getpid()
        self._attached: set[int] = set()
        self._writable: set[int] = set()

    @property
    def address(self) -> int:
        """What the hot door is given."""
        return int(ffi.cast("uintptr_t", self._open))

    def is_of_this_process(self) -> bool:
        """False in a child that was forked since: then nothing here may be used."""
        return self._pid == getpid()

    def close(self) -> None:
        """Closes the lanes; memory that views use stays mapped. May be called twice."""
        pointer = self._take()
        if pointer is not None:
            lib.crail_client_free(pointer)

    def __del__(self) -> None:
        if getattr(self, "_pid", 0) == getpid():
            self.close()

    def _open_or_close(self, fd: int) -> Any:
        if self.closed:
            close(fd)
        return self._open

    def lane_add(self, lane: int, fd: int, fresh: bool, ring: Sequence[int] | None = None) -> None:
        """Gives a lane its connection. Takes the descriptor in any case; those of `ring` stay the
        caller's."""
        check(lib.crail_client_lane_add(self._open_or_close(fd), lane, fd, fresh, _pair(ring)))

    def forget_servers(self) -> None:
        """Drops every attached server: their numbers mean others from now on."""
        for server in self._attached:
            check(lib.crail_client_server_drop(self._open, server))
        self._attached.clear()
        self._writable.clear()

    def has_server(self, server: int) -> bool:
        """Is this server attached by shared memory?"""
        return server in self._attached

    def is_writable(self, server: int) -> bool:
        """May it be written to as well?"""
        return server in self._writable

    def server_shm(
        self,
        server: int,
        granules: Sequence[int],
        fds: Sequence[int],
    ) -> None:
        """Maps a server's regions for reading, with the descriptors that its hello brought: of each
        region memory and generations, last the use table. The caller keeps them. Raises
        ProtocolError if there are more or fewer."""
        n = len(granules)
        if len(fds) != 2 * n + 1:
            raise ProtocolError(f"storage server {server} sent {len(fds)} descriptors")
        memory, generations = list(fds[0 : 2 * n : 2]), list(fds[1 : 2 * n : 2])
        check(
            lib.crail_client_server_shm(
                self._open, server, n, memory, generations, list(granules), fds[-1]
            ),
            server=server,
        )  # fmt: skip
        self._attached.add(server)

    def server_writable(self, server: int, region_fds: Sequence[int]) -> None:
        """Maps them for writing too. The caller keeps the descriptors."""
        check(
            lib.crail_client_server_writable(self._open, server, len(region_fds), list(region_fds)),
            server=server,
        )
        self._writable.add(server)

    def server_tcp(self, server: int, lane: int, fd: int, is_disk: bool) -> None:
        """Gives a lane a data connection. Takes the descriptor in any case. `is_disk`: what is
        written there is durable once it was flushed."""
        pointer = self._open_or_close(fd)
        check(lib.crail_client_server_tcp(pointer, server, lane, fd, is_disk), server=server)

    def promise(self, is_sync: bool) -> None:
        """What the cluster promises of a change whose call does not say."""
        check(lib.crail_client_promise(self._open, is_sync))

    def stats(self) -> dict[str, int]:
        """The fields of crail_client_stats."""
        out = ffi.new("crail_client_stats *")
        check(lib.crail_client_stats_read(self._open, out))
        return _fields(out[0])


# ---- probes ------------------------------------------------------------------------------------


class Probe(_Handle):
    """The calling end of an echo, over a connected socket that the caller keeps and closes.

    For one thread at a time. `bytes_max` bounds requests and replies."""

    def __init__(self, fd: int, bytes_max: int) -> None:
        out = ffi.new("crail_probe **")
        check(lib.crail_probe_open(fd, bytes_max, out))
        super().__init__(out[0])

    def close(self) -> None:
        """Gives the buffers back. May be called twice."""
        pointer = self._take()
        if pointer is not None:
            lib.crail_probe_close(pointer)

    def round_trips(self, request: int, reply: int, count: int) -> list[int]:
        """Nanoseconds of each of `count` round trips; both sizes in bytes, at least 16."""
        ns = ffi.new("uint64_t[]", count)
        check(lib.crail_probe_round_trips(self._open, request, reply, count, ns))
        return list(ffi.unpack(ns, count))


class ProbeMemory(_Handle):
    """Two private, touched areas of half of `bytes_total` each: `source` and `target`, views that
    are valid until close()."""

    def __init__(self, bytes_total: int) -> None:
        out = ffi.new("crail_probe_memory **")
        check(lib.crail_probe_memory_open(bytes_total, out))
        super().__init__(out[0])
        size = bytes_total // 2
        self.source = memoryview(ffi.buffer(lib.crail_probe_memory_source(out[0]), size))
        self.target = memoryview(ffi.buffer(lib.crail_probe_memory_target(out[0]), size))

    def close(self) -> None:
        """Gives the memory back. May be called twice."""
        self.source.release()
        self.target.release()
        pointer = self._take()
        if pointer is not None:
            lib.crail_probe_memory_close(pointer)

    def copies(self, size: int, span: int, count: int) -> list[int]:
        """Nanoseconds of each of `count` memcpys, going round in the first `span` bytes."""
        ns = ffi.new("uint64_t[]", count)
        check(lib.crail_probe_memory_copies(self._open, size, span, count, ns))
        return list(ffi.unpack(ns, count))


def probe_frames(fd: int, frames: bytes, rounds: int) -> tuple[int, int]:
    """Drives a lane whose hello is done with frames (wire.h) that lie one behind the other.

    Returns (operations done, operations that failed)."""
    done = ffi.new("uint64_t *")
    failed = ffi.new("uint64_t *")
    data = ffi.from_buffer(frames)
    check(lib.crail_probe_frames(fd, data, len(frames), rounds, done, failed))
    return int(done[0]), int(failed[0])


def probe_echo_serve(fd: int) -> None:
    """The other end of a Probe, in another process: answers until that end closes."""
    check(lib.crail_probe_echo_serve(fd))
