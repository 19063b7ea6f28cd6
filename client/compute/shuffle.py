"""Shuffles: what map tasks write by partition, and reduce tasks read by partition.

A map output is one file, `PATH/MAP` with the map's number in ten digits, which appears at once and
whole (docs/PROTOCOL.md has its bytes). A reader gets all maps' locations by one request for each
thousand of them (CRAIL_OP_COLUMN), and then reads its segments where they lie. So a stage of M maps
and R reducers costs O(M + R) requests. docs/adr/0006-compute.md tells why it is so.
"""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import pairwise
from operator import add, index
from struct import Struct, error

from crailpy import native
from crailpy.errors import (
    ClosedError,
    CrailError,
    DataLostError,
    DeadlineError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
    StaleLocationError,
    UnavailableError,
    VersionConflictError,
)

from .. import requests
from .stores import address_of, current, store_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, NoReturn

    from ..files import File
    from ..store import Store

    #: (name, version, size, kind, partitions, lost server, extents) of a map output
    Entry = tuple[str, int, int, int, int, int, bytes]

MAPS_MAX = 10**10
PARTITIONS_MAX = 1 << 24
GATHER_BYTES_MAX = 64 << 20  # of a map output in memory; beyond it, a run is written out
NOTHING = native.Gather(1)  # of a writer that has ended
IN_FLIGHT_BYTES_MAX = 48 << 20  # of what is read into memory of our own at once
TAIL_BYTES_MAX = 4096  # of a map output, read at once where its table is no longer
BATCH = 64  # views that are made at once: each holds a use slot
PAGE_EARLY = 128  # entries that a reader asks for while not all maps are there

_FILE = 1  # kind of a map output
WHOLE = 0xFFFFFFFF
_END = Struct("<IIQ")  # runs, partitions, magic
_PAIR = Struct("<QQ")
_OFFSET = 8  # bytes of one in a table
_MAGIC = int.from_bytes(b"CRSHUFL1", "little")
# version, size, data_len, partitions, server, name_len, kind, extents
_COLUMN = Struct("<QQIIIHBB")
_EXTENT = 32


def shuffle(store: Store, path: str, *, partitions: int, **placement: Any) -> Shuffle:
    """The shuffle of `partitions` partitions below the directory `path`; costs no request.

    `placement` holds for the map outputs. With `job=`, an attempt that is still at work when the
    job has ended cannot commit (NotFoundError). Without, its output would outlive the job, wherever
    `path` lies. Raises InvalidArgumentError."""
    return Shuffle(store, path, partitions, placement)


def _shuffle_at(address: Any, path: str, partitions: int, placement: dict[str, Any]) -> Shuffle:
    """In another process: all that come to it share one connection."""
    made = Shuffle(store_at(address), path, partitions, placement)
    made._address = address
    return made


class Shuffle:
    """Where map tasks leave their output, by partition, for reduce tasks. Small; it pickles, with
    the address of its store. Its directory is made by the first map output, and goes with the job
    that it lies in, or by `Store.rmtree`."""

    def __init__(
        self, store: Store, path: str, partitions: int, placement: dict[str, Any] | None = None
    ) -> None:
        if not isinstance(path, str) or not path.startswith("/"):
            raise InvalidArgumentError(f"shuffle({path!r}): a path like /job/stage-1")
        if not 1 <= index(partitions) <= PARTITIONS_MAX:
            raise InvalidArgumentError(f"partitions={partitions}: 1 to {PARTITIONS_MAX}", path=path)
        self._store = store
        self._address: Any = None  # of a store that is not given, but this process's
        self._placement = dict(placement or {})
        self._parents = bool(self._placement.pop("parents", True))
        if self._placement.get("job") is not None:
            from ..placement import job_number

            self._placement["job"] = job_number(self._placement["job"])  # what others know it by
        if self._placement:
            from ..placement import pack

            pack(**self._placement)  # what is wrong with it is said here
        #: The directory, and how many partitions each map output has.
        self.path = path.rstrip("/") or "/"
        self.partitions = index(partitions)

    def writer(self, map_id: int, attempt: int = 0, *, timeout: float | None = None) -> Writer:
        """What the task of this number writes its partitions with: a context manager.

        A task may be tried more than once, also at the same time: the first attempt that commits
        is the map's output, and nothing is left of the others; `attempt` is only told. Raises
        InvalidArgumentError."""
        if not 0 <= index(map_id) < MAPS_MAX:
            raise InvalidArgumentError(f"map_id={map_id}: 0 to {MAPS_MAX - 1}", path=self.path)
        self._connect()
        return Writer(self, index(map_id), attempt, timeout)

    def reader(
        self,
        partition: int,
        *,
        maps: int | None = None,
        wait: float | None = None,
        timeout: float | None = None,
    ) -> Iterator[native.View]:
        """The segments of a partition: a view for each map output, in the order of their numbers
        (of an output that was too large for its writer's memory, one for each run; an empty segment
        has an empty view). Where memory is shared, nothing is copied. The bytes of a view stay as
        long as it, or a buffer of it, is held; held views keep their bytes in the store.

        `maps`: so many outputs there will be; what is not there yet is waited for, `wait` seconds
        in all (None: the store's timeout; the time between two views does not count), while views
        come out as soon as their turn is sure: at once, where the maps count from 0. Without it,
        what is there is read; with `wait`, once there is something. `timeout`: of each request.

        Raises NotFoundError (there is no directory), DeadlineError (not all came), DataLostError
        (names the map output that is to be made again), VersionConflictError (one was removed and
        made again meanwhile), ProtocolError (something else is among them, or an output of another
        number of partitions), InvalidArgumentError."""
        if not 0 <= index(partition) < self.partitions:
            raise InvalidArgumentError(
                f"partition={partition}: 0 to {self.partitions - 1}", path=self.path
            )
        if maps is not None:
            maps = index(maps)
            if not 0 <= maps <= WHOLE:
                raise InvalidArgumentError(f"maps={maps} is no number of maps", path=self.path)
        if wait is not None:
            wait = requests.seconds(wait, "wait")
        self._connect()
        return _read(self, index(partition), maps, wait, timeout)

    def sizes(self, *, timeout: float | None = None) -> list[int]:
        """The bytes of every partition, over all map outputs that are there. Raises as `reader`."""
        self._connect()
        n = self.partitions + 1
        sums = [0] * n  # of the offsets: their differences are those of the sums
        for table in _tables(self, timeout):
            with memoryview(table).cast("Q") as offsets:
                for at in range(0, len(offsets), n):
                    sums = list(map(add, sums, offsets[at : at + n]))
        return [end - start for start, end in pairwise(sums)]

    def _connect(self) -> None:
        if self._address is not None:
            self._store = current(self._store, self._address)

    def _map_path(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path != "/" else f"/{name}"

    def __reduce__(self) -> tuple[Any, ...]:
        placement = self._placement if self._parents else {**self._placement, "parents": False}
        return _shuffle_at, (address_of(self._store), self.path, self.partitions, placement)

    def __repr__(self) -> str:
        return f"<crailpy.Shuffle {self.path} partitions={self.partitions}>"


# ---- writing ------------------------------------------------------------------------------------


class Writer:
    """One attempt of a map task, for one thread. Nothing has a name until `commit()`: `abort()`, an
    exception out of its `with` block, or its process's death leave nothing. Leaving the block
    otherwise commits."""

    __slots__ = (
        "_store", "_partitions", "_placement", "_parents", "_timeout", "_gather", "_written",
        "_tables", "_file", "_done", "path", "attempt", "committed",
    )  # fmt: skip

    def __init__(self, shuffle: Shuffle, map_id: int, attempt: int, timeout: float | None) -> None:
        self._store = shuffle._store
        self._partitions = shuffle.partitions
        self._placement = shuffle._placement
        self._parents = shuffle._parents
        self._timeout = timeout
        self._gather = native.Gather(shuffle.partitions)
        self._written = 0  # bytes of runs before what it has
        self._tables: list[bytes] = []
        self._file: File | None = None  # once a run was written out
        self._done = False
        self.path = shuffle._map_path(f"{map_id:010}")
        self.attempt = attempt
        #: After commit(): is this attempt the map's output? None before, and after abort().
        self.committed: bool | None = None

    def write(self, partition: int, data: Any) -> None:
        """Adds `data` (anything with a buffer) to a partition, in any order of partitions. `bytes`
        and read-only buffers of 64 KiB and more are not copied before commit(): what they show may
        not change until then. Others are. Raises InvalidArgumentError, ClosedError, and once what
        was gathered is written out, what `open(...).write` does."""
        if self._done:
            self._refuse(partition)
        try:
            gathered = self._gather.write(partition, data)
        except IndexError:
            self._refuse(partition)
        if gathered > GATHER_BYTES_MAX:
            self._write_out()

    def _refuse(self, partition: int) -> NoReturn:
        if self._done:
            raise ClosedError("the map output was committed or aborted", path=self.path)
        raise InvalidArgumentError(
            f"partition={partition}: 0 to {self._partitions - 1}", path=self.path
        )

    def _take_run(self) -> list[Any]:
        """What was gathered, in the order of partitions; its table is noted."""
        pieces, table, size = self._gather.take(self._written)
        self._tables.append(table)
        self._written += size
        return pieces

    def _take_end(self) -> list[bytes]:
        return [*self._tables, _END.pack(len(self._tables), self._partitions, _MAGIC)]

    def _write_out(self) -> None:
        """Another run, into extents that nobody knows of yet. An attempt that is too late for sure
        keeps nothing more."""
        from ..files import File
        from ..opened import Mode
        from ..placement import at_home

        try:
            if self._file is None and self.committed is None:
                placed = dict(at_home(self._store._homes, self.path, self._placement))
                placed["parents"] = self._parents
                mode = Mode("xb", self.path)
                self._file = File(self._store, self.path, mode, self._timeout, placed)
        except ExistsError:
            self.committed = False
        try:
            run = self._take_run()
            if self._file is not None:
                self._append(run)
        except BaseException:  # some of it is missing
            self._end()
            raise

    def _append(self, parts: list[Any]) -> None:
        from ..objects import gathered

        assert self._file is not None
        for part in gathered(parts):
            self._file.write(part)

    def commit(self) -> bool:
        """Publishes the output, at once and whole. False: another attempt was first, and of this
        one nothing is left. Raises ClosedError, OutOfSpaceError, QuotaExceededError and what else
        `put` raises; then, too, nothing is left."""
        if self._done:
            self._refuse(0)
        try:
            if self.committed is None:
                self._publish()
                self.committed = True
        except ExistsError:
            self.committed = False
        finally:
            self._end()
        return bool(self.committed)

    def _publish(self) -> None:
        run = self._take_run()
        if self._file is not None:
            self._append([*run, *self._take_end()])
            self._file.close()
            return
        parts = [*run, *self._take_end()]
        if sum(map(len, parts)) > requests.INLINE_MAX:
            from ..objects import gathered

            parts = gathered(parts)
        flags = requests.IF_ABSENT | (requests.PARENTS if self._parents else 0)
        put = self._store._door.put_parts
        self._store._put(put, self.path, parts, flags, 0, self._timeout, self._placement)

    def abort(self) -> None:
        """Gives up: nothing is left. May be called twice, and after commit(), which stands."""
        self._end()

    def _end(self) -> None:
        self._done = True
        self._gather, self._tables = NOTHING, []
        file, self._file = self._file, None
        if file is not None and not file.closed:
            file.discard()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.abort()
        elif not self._done:
            self.commit()

    def __repr__(self) -> str:
        return f"<crailpy.compute.Writer {self.path} attempt={self.attempt}>"


# ---- reading ------------------------------------------------------------------------------------


def _ask(
    shuffle: Shuffle, partition: int, cursor: bytes, timeout: float | None, entries: int = 0
) -> tuple[bytes, int, bool]:
    """A page of the column behind the name `cursor`; how many children there are; is there more?
    `entries`: of so many at most; 0: of as many as fit."""
    _, there, _, flags, _, page = shuffle._store._door.call(
        requests.COLUMN, 0, shuffle.path, cursor, 0, b"", entries, partition, timeout
    )
    return page, there, bool(flags & requests.MORE)


def _await(
    shuffle: Shuffle, partition: int, cursor: bytes, children: int, wait: float, timeout: Any
) -> tuple[bytes, int, bool]:
    """The same as soon as there are so many children, within `wait` seconds: else DeadlineError."""
    store = shuffle._store
    _, there, _, flags, _, page = store._wait(
        lambda ms, timeout: store._door.call(
            requests.COLUMN, requests.WAIT, shuffle.path, cursor, ms, b"", PAGE_EARLY,
            partition | children << 32, timeout,
        ),
        wait,
        timeout,
    )  # fmt: skip
    return page, there, bool(flags & requests.MORE)


class _Patience:
    """What a reader does while not all maps are there: it waits for half of those that are missing,
    so that many who wait cost few requests."""

    def __init__(self, shuffle: Shuffle, partition: int, maps: int | None, wait: float | None):
        self._shuffle = shuffle
        self._partition = partition
        self._maps = maps
        self._waits = maps is not None or wait is not None
        self._needed = maps if maps is not None else int(self._waits)  # outputs
        self._left = shuffle._store._timeout if wait is None else wait  # seconds
        self._target = 0 if maps is not None or wait is None else 1  # children to wait for
        self._there = 0
        self.is_whole = False

    def page(self, cursor: bytes, timeout: float | None) -> tuple[bytes, bool]:
        """The next page and whether there are more. `is_whole`: all maps are there."""
        try:
            page, there, more = self._page(cursor, timeout)
        except NotFoundError:
            if not self._waits:
                raise
            page, there, more = b"", 0, False
        self._there = there
        self.is_whole = there >= self._needed
        return page, more

    def _page(self, cursor: bytes, timeout: float | None) -> tuple[bytes, int, bool]:
        if not self._target:
            return _ask(self._shuffle, self._partition, cursor, timeout)
        began = time.monotonic()
        try:
            return _await(self._shuffle, self._partition, cursor, self._target, self._left, timeout)
        except DeadlineError as error:
            raise self._late() from error
        finally:
            self._left = max(0.0, self._left - (time.monotonic() - began))
            self._target = 0

    def _late(self) -> DeadlineError:
        """Counts once more: fewer than were waited for may have come."""
        with suppress(CrailError):
            partition, timeout = self._partition, requests.WAY_BACK
            self._there = _ask(self._shuffle, partition, b"", timeout, entries=1)[1]
        wanted = "" if self._maps is None else f" of {self._maps}"
        return DeadlineError(
            f"{self._there}{wanted} map outputs are there, and the time to wait is over",
            path=self._shuffle.path,
        )

    def wait_next(self) -> None:
        """The next page is to come when there are more."""
        self._target = self._there + max(1, ((self._maps or 1) - self._there + 1) // 2)


def _read(
    shuffle: Shuffle, partition: int, maps: int | None, wait: float | None, timeout: float | None
) -> Iterator[native.View]:
    """Behind Shuffle.reader()."""
    door = shuffle._store._door
    patience = _Patience(shuffle, partition, maps, wait)
    cursor, done = b"", 0
    while True:
        page, more = patience.page(cursor, timeout)
        whole = patience.is_whole
        at, size = 0, len(page)
        while at < size:
            # Until all are there, only those that nobody can come before any more.
            pieces, at, n, name, far = door.segments(
                shuffle.path, page, at, BATCH, partition, shuffle.partitions,
                -1 if whole else done, timeout,
            )  # fmt: skip
            if not n:
                break
            done += n
            cursor = name
            yield from _far_views(shuffle, pieces, partition, timeout) if far else pieces
        if whole and not more:
            return
        if at < size or not more:
            patience.wait_next()


# ---- what is not within reach -------------------------------------------------------------------


def _far_views(
    shuffle: Shuffle, pieces: Sequence[Any], partition: int, timeout: float | None
) -> Iterator[native.View]:
    """The pieces in order, where entries stand for views that are still to be read."""
    bounds = iter(_bounds(shuffle, [p for p in pieces if type(p) is tuple], partition, timeout))
    parts: list[Any] = []  # views, and (entry, first byte, end)
    for piece in pieces:
        if type(piece) is tuple:
            parts += [(piece, start, end) for start, end in next(bounds)]
        else:
            parts.append(piece)
    ready: list[native.View] = []  # in reverse
    for i, part in enumerate(parts):
        if type(part) is not tuple:
            yield part
            continue
        if not ready:
            ready = _segments(shuffle, parts[i:], timeout)[::-1]
        yield ready.pop()


def _segments(shuffle: Shuffle, parts: Iterable[Any], timeout: float | None) -> list[native.View]:
    """Views of the first of the parts that are to be read, as many as may be in flight at once."""
    asked: list[tuple[Entry, int, native.Landing]] = []
    room = IN_FLIGHT_BYTES_MAX
    for part in parts:
        if type(part) is not tuple:
            continue
        entry, start, end = part
        room -= end - start
        if room < 0 and asked:
            break
        asked.append((entry, start, native.Landing(end - start)))
    _fill(shuffle, [each for each in asked if len(memoryview(each[2]))], timeout)
    return [native.view(landing.take(), entry[1], False) for entry, _, landing in asked]


def _bounds(
    shuffle: Shuffle, entries: list[Entry], partition: int, timeout: float | None
) -> list[list[tuple[int, int]]]:
    """For each entry where its segments are, one for each run: (first byte, end)."""
    table = (shuffle.partitions + 1) * _OFFSET
    back = _END.size + table - partition * _OFFSET  # from the end of the value to our place
    near = back <= TAIL_BYTES_MAX  # in the last table: then one range has all that we need
    ends, last = [], []
    for entry in entries:
        _check(shuffle, entry, _END.size + table)
        last.append((entry, entry[2] - back, bytearray(back if near else _PAIR.size)))
        ends.append((entry, entry[2] - _END.size, bytearray(0 if near else _END.size)))
    _fill(shuffle, last if near else [*ends, *last], timeout)
    found: list[list[Any]] = []
    for (entry, end_at, end), (_, at, tail) in zip(ends, last, strict=True):
        runs = _runs(shuffle, entry, end or tail[-_END.size :])
        more = [(entry, at - (runs - 1 - i) * table, bytearray(16)) for i in range(runs - 1)]
        found.append([*more, (entry, end_at - runs * table, tail[: _PAIR.size])])
    _fill(shuffle, [part for parts in found for part in parts[:-1]], timeout)
    return [_checked(shuffle, parts) for parts in found]


def _checked(shuffle: Shuffle, found: list[Any]) -> list[tuple[int, int]]:
    entry, table, _ = found[-1]
    bounds = [_PAIR.unpack(pair) for _, _, pair in found]
    if not all(start <= end <= table for start, end in bounds):
        raise _no_output(shuffle, entry)
    return bounds


def _runs(shuffle: Shuffle, entry: Entry, end: bytes | bytearray) -> int:
    """From the last bytes of a map output. Raises ProtocolError."""
    runs, partitions, magic = _END.unpack(end)
    room = (entry[2] - _END.size) // _OFFSET
    if magic != _MAGIC or not runs or runs * (partitions + 1) > room:
        raise _no_output(shuffle, entry)
    if partitions != shuffle.partitions:
        raise _other_partitions(shuffle, entry, partitions)
    return int(runs)


def _check(shuffle: Shuffle, entry: Entry, bytes_min: int) -> None:
    """Is it a map output whose bytes are to be had? Raises ProtocolError, DataLostError."""
    _, _, size, kind, partitions, server, extents = entry
    if server:
        raise DataLostError(
            "the map output is lost with its storage server",
            path=_path_of(shuffle, entry),
            server=str(server),
            hint="remove it and run its map task again",
        )
    if kind != _FILE or (not extents and not partitions):
        raise _no_output(shuffle, entry)
    if not extents:
        raise _other_partitions(shuffle, entry, partitions)
    if size < bytes_min:
        raise _no_output(shuffle, entry)


def _path_of(shuffle: Shuffle, entry: Entry) -> str:
    return shuffle._map_path(entry[0])


def _no_output(shuffle: Shuffle, entry: Entry) -> ProtocolError:
    return ProtocolError(
        f"this is no map output of {shuffle.partitions} partitions", path=_path_of(shuffle, entry)
    )


def _other_partitions(shuffle: Shuffle, entry: Entry, partitions: int) -> ProtocolError:
    return ProtocolError(
        f"the map output has {partitions} partitions, not {shuffle.partitions}",
        path=_path_of(shuffle, entry),
    )


def _fill(shuffle: Shuffle, parts: list[tuple[Entry, int, Any]], timeout: float | None) -> None:
    """Fills the buffers of (entry, first byte, buffer): all at once, or where something has moved
    or failed one by one, by asking anew where it is."""
    if not parts:
        return
    try:
        ranges = [(entry[6], entry[2], at, buffer) for entry, at, buffer in parts]
        shuffle._store._door.gather(shuffle.path, ranges, timeout)
        return
    except (StaleLocationError, UnavailableError, DataLostError):
        pass
    for part in parts:
        _fill_one(shuffle, *part, timeout)


def _fill_one(shuffle: Shuffle, entry: Entry, at: int, buffer: Any, timeout: float | None) -> None:
    """The same for one, from where it is now, and only if it is still what it was: in another
    version other bytes are there. Raises VersionConflictError."""
    store, path = shuffle._store, _path_of(shuffle, entry)
    until = time.monotonic() + (store._timeout if timeout is None else timeout)
    while True:
        version, size, _, _, _, whence = store._door.call(
            requests.GET, 0, path, b"", 0, b"", 0, 0, timeout
        )
        if version != entry[1]:
            raise VersionConflictError(
                "the map output was replaced while it was read",
                path=path,
                hint="read the partition again from its beginning",
            )
        try:
            store._door.gather(path, [(whence, size, at, buffer)], timeout)
            return
        except StaleLocationError:  # it has moved once more
            if time.monotonic() >= until:
                raise DeadlineError(path=path) from None


# ---- sizes --------------------------------------------------------------------------------------


def _tables(shuffle: Shuffle, timeout: float | None) -> Iterator[bytes | bytearray]:
    """The tables of every map output that is there."""
    cursor, more = b"", True
    while more:
        page, _, more = _ask(shuffle, WHOLE, cursor, timeout)
        far = []
        for entry, value in entries_of(page):
            cursor = entry[0].encode()
            if value and entry[4] == shuffle.partitions:
                runs = _runs(shuffle, entry, value[-_END.size :])
                yield value[-_END.size - runs * (shuffle.partitions + 1) * _OFFSET : -_END.size]
            else:
                _check(shuffle, entry, _END.size)
                far.append(entry)
        yield from _far_tables(shuffle, far, timeout)


def _far_tables(
    shuffle: Shuffle, entries: list[Entry], timeout: float | None
) -> Iterator[bytearray]:
    ends = [(entry, entry[2] - _END.size, bytearray(_END.size)) for entry in entries]
    _fill(shuffle, ends, timeout)
    asked: list[Any] = []
    room = IN_FLIGHT_BYTES_MAX
    for entry, end_at, end in ends:
        n = _runs(shuffle, entry, end) * (shuffle.partitions + 1) * _OFFSET
        if asked and n > room:
            _fill(shuffle, asked, timeout)
            yield from (table for _, _, table in asked)
            asked, room = [], IN_FLIGHT_BYTES_MAX
        asked.append((entry, end_at - n, bytearray(n)))
        room -= n
    _fill(shuffle, asked, timeout)
    yield from (table for _, _, table in asked)


def entries_of(page: bytes) -> Iterator[tuple[Entry, bytes]]:
    """The entries of a page, each with the value that it brought. Raises ProtocolError."""
    at = 0
    while at < len(page):
        try:
            head = _COLUMN.unpack_from(page, at)
        except error:
            raise ProtocolError("a page of a column ends within an entry") from None
        version, size, data_len, partitions, server, name_len, kind, extents = head
        at += _COLUMN.size
        name = page[at : at + name_len].decode(errors="replace")
        at += name_len + -name_len % 8
        whence = page[at : at + extents * _EXTENT]
        at += extents * _EXTENT
        value = page[at : at + data_len]
        at += data_len + -data_len % 8
        yield (name, version, size, kind, partitions, server, whence), value


__all__ = ["Shuffle", "Writer", "shuffle"]
