"""File objects over values, as builtin open() layers them: text over a buffer over a `File`.

A `File` is an io.RawIOBase over one version of one value. What it changes is its own, in a small
buffer or in granted extents, until `close()` publishes it as one new version. Committed bytes are
never written again: "r+" copies them, once, when something is changed; "a" writes behind them.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections import deque

from crailpy.errors import (
    DISCARDED,
    ClosedError,
    CrailError,
    DataLostError,
    DeadlineError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    OutOfSpaceError,
    StaleLocationError,
    UnavailableError,
)

from . import extents, requests
from . import placement as place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from crailpy.native import Pipe

    from .store import Store

BUFFER_BYTES = 64 << 10  # of the buffer that lies over a File
MEMORY_BYTES_MAX = 256 << 10  # a value up to this is written by one put
COPY_BYTES = 4 << 20
ZEROS = bytes(MEMORY_BYTES_MAX)
GIVE_BACK_S = 1.0
BEHIND_BYTES_MAX = 8 << 20  # kept of what a disk has not answered yet
ELSEWHERE_TRIES = 8  # extents that may lie at a server that is away, before it is waited for

# operation codes and flags (native/include/crail/wire.h)
_COMMIT, _RELEASE, OPEN, APPEND, STREAM, FOLLOW = 17, 19, 48, 51, 53, 54
_ONE_EXTENT, GROW, FLUSHED, TAIL_CLOSED = 128, 1 << 11, 1 << 14, 16


class Refused(Exception):
    """A disk fails under what is written: it goes elsewhere, or `error` is raised."""

    def __init__(self, error: DataLostError | OutOfSpaceError) -> None:
        super().__init__(error)
        self.error = error
        self.server = int(error.server or 0)


def rest_of(size: int, pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, int]]:
    """What the pieces, (first byte, bytes) each, leave of the first `size` bytes: (start, end)."""
    at = 0
    for start, end in sorted((first, first + len(data)) for first, data in pieces):
        if start > at:
            yield at, start
        at = max(at, end)
    if at < size:
        yield at, size


class Mode:
    """A mode string, taken apart. Raises InvalidArgumentError."""

    __slots__ = ("appends", "creates", "exclusive", "reads", "text", "writes")

    def __init__(self, mode: str, path: str) -> None:
        kinds = [letter for letter in mode if letter in "rwxa"]
        if len(kinds) != 1 or len(set(mode)) != len(mode) or set(mode) - set("rwxabt+"):
            raise InvalidArgumentError(f"mode {mode!r} is none", path=path)
        if "b" in mode and "t" in mode:
            raise InvalidArgumentError(f"mode {mode!r}: text and binary at once", path=path)
        kind, both = kinds[0], "+" in mode
        self.text = "b" not in mode
        self.reads = kind == "r" or both
        self.writes = kind != "r" or both
        self.creates = kind in "wx"
        self.exclusive = kind == "x"
        self.appends = kind == "a"


class File(io.RawIOBase):
    """One version of a value as a raw file; see `Store.open`. For the process that opened it."""

    def __init__(
        self,
        store: Store,
        path: str,
        mode: Mode,
        timeout: float | None,
        placement: dict[str, Any],
        pipe: Pipe | None = None,
        deadline: float | None = None,
    ) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._done = True  # until it is open: __del__ may come earlier
        self._store = store
        self._door = store._door
        self._own_timeout = timeout  # of each call
        self._deadline = deadline  # or of all of them together
        placement = dict(placement)
        self._parents = bool(placement.pop("parents", True))
        self._placement = placement
        self._options, self._wait_space = place.pack(**placement)
        self._like = 0  # what is edited lies on this server, perhaps among others
        self._stripe = place.stripe_of(self._options)
        self._mode = mode
        self.name = path
        self.mode = "".join(
            ["xb" if mode.exclusive else "ab" if mode.appends else "wb" if mode.creates else "rb",
             "+" if mode.reads and mode.writes else ""]
        )  # fmt: skip
        #: The version that is read, or the one that was published, after close().
        self.version: int | None = None
        self._at = 0
        self._size = 0
        self._token = 0  # of the hold that keeps what was opened; 0: none
        self._flags = 0  # of the result that opened it
        self._memory: bytes | bytearray | None = b""
        self._extents = b""
        self._room = 0  # bytes that fit into the extents
        self._edge = 0  # of the room: behind it are extents that nothing was written to
        self._fixed = 0  # bytes from the start that may not be written: they are committed
        self._granted = 0  # the last so many extents are grants of ours
        self._tail_closed = False
        self._behind: deque[tuple[int, bytes]] = deque()  # written to a disk, perhaps refused
        self._behind_bytes = 0
        self._avoid = 0  # the server whose disk refused something last
        self._rescues = 0
        self._dirty = mode.creates
        self._sequential = True  # everything up to _at was read in order
        self._unread = 0  # bytes that a layer above has read ahead; discard() leaves one too
        self._pipe = pipe  # another file's that was left idle, or made when there is use for it
        self._stream_token = 0  # of what is announced to those who follow; 0: nothing was
        self._announced = 0
        self._closing = False
        self._discards = False
        self._is_broken = False
        self._made = 0  # version of the empty value that an append began with; 0: there was one
        if mode.creates:
            if mode.exclusive:
                self._check_absent()
            self._memory = bytearray()
        else:
            self._open_version()
        self._done = False

    # -- opening -----------------------------------------------------------------

    def _check_absent(self) -> None:
        try:
            self._call(requests.STAT)
        except NotFoundError:
            return
        raise ExistsError(path=self.name)

    def _call(self, code: int, flags: int = 0, **more: Any) -> tuple[Any, ...]:
        more.setdefault("timeout", self._timeout())
        return self._store._call(code, flags, self.name, **more)

    def _call_waiting(
        self, code: int, *, seconds: float | None = None, **more: Any
    ) -> tuple[Any, ...]:
        """An operation that the namenode answers when it can, within the deadline."""
        return self._store._wait(
            lambda ms, timeout: self._call(
                code, requests.WAIT, count=ms, **(more | {"timeout": timeout})
            ),
            self._limit() if seconds is None else seconds,
            requests.WAY_BACK,
        )

    def _timeout(self) -> float | None:
        """Of the next call."""
        if self._deadline is None:
            return self._own_timeout
        return max(0.0, self._deadline - time.monotonic())

    def _limit(self) -> float:
        timeout = self._timeout()
        return self._store._timeout if timeout is None else timeout

    def _open_version(self) -> None:
        appends = self._mode.appends
        self._token = token = self._store._token()
        try:
            found = self._ask_for_append(token) if appends else self._ask_to_open(token)
        except BaseException:
            self._unmake()
            self._end_hold(token, requests.WAY_BACK)  # the answer may be on its way still
            self._token = 0
            raise
        self._opened(found)
        if appends:
            self._at = self._size
        elif self._memory is not None:
            self._token = 0  # there is nothing to hold

    def _opened(self, found: tuple[Any, ...]) -> None:
        """Takes over what OPEN, APPEND or FOLLOW found."""
        self.version, self._size, _, self._flags, _, data = found
        if self._flags & requests.INLINE:
            self._memory = data
        else:
            self._memory = None
            self._extents = data
            self._room = self._edge = extents.capacity(data)
            if self._mode.writes:
                self._lies_on(extents.servers(data))
            self._fixed = self._size if self._mode.appends else sys.maxsize
            self._tail_closed = bool(self._flags & TAIL_CLOSED)

    def _lies_on(self, servers: list[int]) -> None:
        """Where the value is that is edited; what is said to the edit itself counts more."""
        self._like = servers[0]
        if self._stripe == 1:
            self._stripe = len(servers)

    def _ask_to_open(self, token: int) -> tuple[Any, ...]:
        return self._call(OPEN, arg0=token)

    def _ask_for_append(self, token: int) -> tuple[Any, ...]:
        deadline = time.monotonic() + self._limit()  # one for all that is asked
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return self._call_waiting(APPEND, seconds=left, arg0=token)
            except NotFoundError:
                try:
                    self._made = self._store.put(
                        self.name, b"", if_absent=True, parents=self._parents, timeout=left,
                        **self._placement,
                    )  # fmt: skip
                except ExistsError:
                    pass

    def _unmake(self) -> None:
        """Nothing was appended to the empty value made for it: it goes, unless another has made
        something of it. Still under the append right, so that nobody appends to it meanwhile."""
        made, self._made = self._made, 0
        if not made:
            return
        try:
            self._store._run(requests.delivered(self.name, made), GIVE_BACK_S)
        except CrailError:
            pass  # an empty value stays

    def _end_hold(self, token: int, timeout: float = GIVE_BACK_S) -> None:
        if not token:
            return
        try:
            self._store._run(requests.end(token), timeout)
        except CrailError:
            pass  # it ends with the session

    def _check(self) -> None:
        if self.closed:
            raise ClosedError("the file is closed", path=self.name)
        if self._pid != os.getpid():
            raise ClosedError("the file belongs to the process that opened it", path=self.name)

    # -- what it can do --------------------------------------------------------------

    def readable(self) -> bool:
        self._check()
        return self._mode.reads

    def writable(self) -> bool:
        self._check()
        return self._mode.writes

    def seekable(self) -> bool:
        self._check()
        return True

    def _check_may(self, may: bool, what: str) -> None:
        self._check()
        if not may:
            raise io.UnsupportedOperation(f"not {what}")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        if whence not in bases or bases[whence] + offset < 0:
            raise InvalidArgumentError(f"cannot seek to {offset} from {whence}", path=self.name)
        at = bases[whence] + offset
        self._sequential = self._sequential and at == self._at
        self._at = at
        return at

    def tell(self) -> int:
        self._check()
        return self._at

    # -- reading -----------------------------------------------------------------------

    def _moves(self) -> Pipe:
        if self._pipe is None:
            self._pipe = self._door.pipe(self.name)
        return self._pipe

    def _arrive(self) -> None:
        """Before it is read: what a disk may refuse is there, or elsewhere."""
        if self._behind:
            self._somewhere(self._settle)

    def _read_into(self, buffer: Any, at: int) -> int:
        """Fills the buffer from byte `at` on, as far as there is something."""
        if self._memory is not None:
            with memoryview(buffer).cast("B") as to, memoryview(self._memory) as data:
                part = data[at : at + len(to)]
                to[: len(part)] = part
                return len(part)
        try:
            return self._moves().read(self._extents, self._size, at, buffer, self._timeout())
        except StaleLocationError as error:
            raise self._lost() from error

    def _lost(self) -> DataLostError:
        return DataLostError(
            "the memory that this file lies in went away with its server or its session",
            path=self.name,
        )

    def _was_read(self, n: int) -> None:
        self._at += n
        if n == 0 and self._sequential and self._at == self._size:
            self._report_delivery()

    def _is_at_its_end(self) -> bool:
        """All of it was read, in order, though not by an empty read."""
        is_whole = self._at == self._size > 0 and not self._flags & requests.MORE
        return is_whole and self._sequential and not self._mode.writes

    def _report_delivery(self) -> None:
        """It was read to its end, in order: a value that goes when it was read goes now."""
        if self._flags & requests.DELETE_AFTER_READ and not self._mode.writes:
            self._flags &= ~requests.DELETE_AFTER_READ
            assert self.version is not None
            self._store._delivered(self.name, self.version, 0.0)

    def readinto(self, buffer: Any) -> int:
        self._check_may(self._mode.reads, "readable")
        self._arrive()
        with memoryview(buffer) as view:
            n = self._read_into(view, self._at)
            if view.nbytes:
                self._was_read(n)
        return n

    def readall(self) -> bytes:
        self._check_may(self._mode.reads, "readable")
        self._arrive()
        n = max(0, self._size - self._at)
        if self._memory is not None:
            data = bytes(memoryview(self._memory)[self._at :])
        else:
            try:
                data = self._moves().read_bytes(
                    self._extents, self._size, self._at, n, self._timeout()
                )
            except StaleLocationError as error:
                raise self._lost() from error
        self._at += len(data)
        self._was_read(0)
        return data

    def ask(self, length: int) -> None:
        """Has the next `length` bytes on their way, where they come over TCP. A connection that
        broke meanwhile shows when they are read, which tries again."""
        if self._memory is None and self._size > self._at:
            try:
                self._moves().ask(self._extents, self._size, self._at, length, self._timeout())
            except UnavailableError:
                pass
            except StaleLocationError as error:
                raise self._lost() from error

    def leave_pipe(self) -> Pipe | None:
        """Gives its pipe away, for another file; after the last byte was read."""
        pipe, self._pipe = self._pipe, None
        return pipe

    # -- writing -----------------------------------------------------------------------

    def write(self, data: Any) -> int:
        self._check_may(self._mode.writes, "writable")
        with memoryview(data) as view, view.cast("B") as flat:
            if flat.nbytes:
                if self._mode.appends:
                    self._at = self._size
                self._write_at(flat, self._at)
                self._at += flat.nbytes
            return flat.nbytes

    def _write_at(self, data: memoryview, at: int) -> None:
        """Writes from byte `at` on; what lies between the end and `at` becomes zeros."""
        self._somewhere(lambda: self._write_here(data, at), at + data.nbytes)

    def _write_here(self, data: memoryview, at: int) -> None:
        self._own(at)
        if at > self._size:
            self._fill(at)
        end = at + data.nbytes
        if self._memory is None:
            self._reserve(end)
        elif end > MEMORY_BYTES_MAX:
            self._leave_memory(end)
        if self._memory is not None:
            self._memory[at:end] = data  # type: ignore[index]
        else:
            self._put_bytes(data, at)
        self._dirty = True
        self._size = max(self._size, end)

    def _put_bytes(self, data: Any, at: int) -> None:
        """Writes to the extents, which reach that far."""
        self._check_whole()
        self._is_broken = True  # a failure may be about what was written before
        try:
            with memoryview(data) as flat:
                old = min(max(self._edge - at, 0), flat.nbytes)
                if old:
                    with flat[:old] as part:
                        self._moves().write(self._extents, at, part, self._timeout(), False)
                        self._keep(part, at)
                if old < flat.nbytes:
                    with flat[old:] as part:
                        self._put_into_fresh(part, at + old)
                        self._keep(part, at + old)
        except StaleLocationError as error:
            raise self._lost() from error
        except (DataLostError, OutOfSpaceError) as error:
            raise Refused(error) from error
        self._is_broken = False

    def _keep(self, data: memoryview, at: int) -> None:
        """Keeps what a disk may still refuse, in the order in which it was written."""
        pipe = self._moves()
        if not pipe.behind():
            self._forget_behind()
            return
        if self._behind_bytes + data.nbytes > BEHIND_BYTES_MAX:
            until = pipe.arrived(sys.maxsize, self._timeout())
            while self._behind and self._behind[0][0] + len(self._behind[0][1]) <= until:
                self._behind_bytes -= len(self._behind.popleft()[1])
        if self._behind_bytes + data.nbytes > BEHIND_BYTES_MAX:
            pipe.settle(self._timeout())
            self._forget_behind()
            return
        self._behind.append((at, bytes(data)))
        self._behind_bytes += data.nbytes

    def _forget_behind(self) -> None:
        self._behind = deque()
        self._behind_bytes = 0

    def _somewhere(self, step: Callable[[], None], room: int = 0) -> None:
        """Does the step, again where a disk refused bytes of ours, which lie elsewhere by then."""
        while True:
            try:
                step()
                return
            except Refused as refused:
                self._rescue(refused, room)

    def _rescue(self, refused: Refused, room: int = 0) -> None:
        """A disk has refused bytes of ours. What it answered for can still be read there, and the
        rest is in memory: all of it moves to other servers, with room for `room` bytes. Where there
        are none, what the disk's server said is raised."""
        self._rescues += 1
        if self._rescues > ELSEWHERE_TRIES or not refused.server:
            raise refused.error
        self._avoid = refused.server
        if self._memory is not None:  # it is all there
            return
        self._close_pipe()
        self._is_broken = False
        size = self._size
        behind = [(at, data[: size - at]) for at, data in self._behind if at < size]
        try:
            self._take_over(size, room, behind)
        except Refused as again:
            self._is_broken = True
            self._rescue(again, room)
        except OutOfSpaceError:
            self._is_broken = True
            raise refused.error from None
        except BaseException:
            self._is_broken = True
            raise

    def _put_into_fresh(self, data: memoryview, at: int) -> None:
        """Writes to extents that nothing was written to before. Where their server is away, others
        take their place; where there are none, it is waited for."""
        deadline = time.monotonic() + self._limit()
        early = True
        # Of what may be on its way still, a failure must not be taken for one of these.
        others = not at or self._moves().arrived(at, self._timeout()) >= at
        behind = set() if others else set(extents.servers(self._extents[: self._edge_at()]))
        for tries in range(ELSEWHERE_TRIES + 1):
            early = early and tries < ELSEWHERE_TRIES
            left = max(0.0, deadline - time.monotonic())
            try:
                self._moves().write(self._extents, at, data, left, early)
                break
            except (UnavailableError, DeadlineError) as error:
                if not early or int(error.server or 0) in behind:
                    raise
                # Without a server: the namenode did not say in so short a time where it is.
                early = error.server is not None and self._go_elsewhere()
        while self._edge < at + data.nbytes:
            self._edge += extents.capacity(self._extents[self._edge_at() :][: extents.EXTENT_BYTES])

    def _edge_at(self) -> int:
        """Where in the extents those begin that nothing was written to."""
        at = room = 0
        while room < self._edge:
            room += extents.capacity(self._extents[at : at + extents.EXTENT_BYTES])
            at += extents.EXTENT_BYTES
        return at

    def _go_elsewhere(self) -> bool:
        """Other extents in the place of those that nothing was written to; False: there are none.
        The old ones go only then, so that they are not granted again."""
        at = self._edge_at()
        kept, fresh = self._extents[:at], self._extents[at:]
        n = len(fresh) // extents.EXTENT_BYTES
        flags, stripe = (_ONE_EXTENT, 1) if n == 1 else (0, self._stripe)
        try:
            new = self._alloc([extents.capacity(fresh)], flags, 0.0, stripe, None)
        except OutOfSpaceError:
            return False
        if len(kept) + len(new) > extents.EXTENTS_MAX * extents.EXTENT_BYTES:
            self._give_back(new, len(new) // extents.EXTENT_BYTES)
            return False
        self._give_back(fresh, n)
        self._extents, self._granted = kept, self._granted - n
        self._extend(new)
        return True

    def _fill(self, until: int) -> None:
        """Zeros from the end on."""
        while self._size < until:
            n = min(len(ZEROS), until - self._size)
            with memoryview(ZEROS)[:n] as zeros:
                self._write_at(zeros, self._size)

    def _own(self, at: int) -> None:
        """Sees to it that bytes from `at` on are ours to change."""
        if self._memory is not None:
            if not isinstance(self._memory, bytearray):
                self._memory = bytearray(self._memory)
        elif at < self._fixed:
            self._take_over(self._size)

    def _take_over(
        self, size: int, room: int = 0, pieces: Sequence[tuple[int, bytes]] = ()
    ) -> None:
        """Copies the first `size` bytes to where we may write: into memory if they are few and no
        more than that is wanted, else into new extents with room for `room` bytes. `pieces`, where
        they begin and what they are, are not read from where they were written. If it fails, all is
        as it was."""
        behind, kept = self._behind, self._behind_bytes
        self._settle()
        old, granted, source, edge = self._extents, self._granted, self._moves(), self._edge
        memory = bytearray(size) if max(size, room) <= MEMORY_BYTES_MAX else None
        if memory is not None:
            for start, end in rest_of(size, pieces):
                with memoryview(memory)[start:end] as part:
                    self._read_into(part, start)
            for at, data in pieces:
                memory[at : at + len(data)] = data
            self._extents, self._granted, self._edge = b"", 0, 0
        else:
            new = self._allot(max(size, room), 0, 0)
            if new is None:
                raise OutOfSpaceError("free memory is in too many pieces", path=self.name)
            self._pipe, self._extents, self._edge = None, new, 0
            self._granted = len(new) // extents.EXTENT_BYTES
            try:
                for start, end in rest_of(size, pieces):
                    self._move(source, old, start, end, start)
                for at, data in pieces:
                    self._put_bytes(data, at)
            except BaseException:
                self._close_pipe()
                self._give_back(self._extents, self._granted)
                self._pipe, self._extents, self._granted = source, old, granted
                self._edge, self._behind, self._behind_bytes = edge, behind, kept
                self._is_broken = False  # all is as it was
                raise
            source.close()
        self._memory = memory
        self._room = extents.capacity(self._extents)
        self._size = size
        self._fixed = 0
        self._tail_closed = False
        self._end_hold(self._stream_token)  # who follows reads what is given back now
        self._stream_token = self._announced = 0
        self._give_back(old, granted)

    def _move(self, source: Pipe, whence: bytes, start: int, end: int, to: int) -> None:
        """Copies bytes [start, end) of other extents into ours, from byte `to` on."""
        piece = bytearray(min(COPY_BYTES, end - start))
        for at in range(start, end, COPY_BYTES):
            with memoryview(piece)[: min(COPY_BYTES, end - at)] as part:
                try:
                    source.read(whence, end, at, part, self._timeout())
                except StaleLocationError as error:
                    raise self._lost() from error
                self._put_bytes(part, to + at - start)

    def _check_whole(self) -> None:
        if self._is_broken:
            raise DataLostError(
                "an earlier write failed, so that bytes are missing", path=self.name
            )

    def _settle(self) -> None:
        self._check_whole()
        if self._pipe is not None:
            self._is_broken = True
            try:
                self._pipe.settle(self._timeout())
            except StaleLocationError as error:
                raise self._lost() from error
            except (DataLostError, OutOfSpaceError) as error:
                raise Refused(error) from error
            self._is_broken = False
            self._forget_behind()

    def _leave_memory(self, end: int) -> None:
        """What was in memory goes on in extents, with room up to `end`."""
        memory = self._memory
        new = self._allot(end, 0, 0)
        if new is None:
            raise OutOfSpaceError("free memory is in too many pieces", path=self.name)
        self._memory = None
        self._extend(new)
        try:
            if memory:
                self._put_bytes(memory, 0)
        except BaseException:
            self._close_pipe()
            self._give_back(self._extents, self._granted)
            self._extents, self._granted, self._room, self._edge = b"", 0, 0, 0
            self._forget_behind()
            self._memory = memory
            self._is_broken = False
            raise

    def _reserve(self, end: int) -> None:
        """Extents for the bytes up to `end`."""
        if self._tail_closed:
            self._replace_tail(end)
        if end <= self._room:
            return
        count = len(self._extents) // extents.EXTENT_BYTES
        new = self._allot(end - self._room, self._room, count, self._complete())
        if new is None:
            self._take_over(self._size, room=end)
        else:
            self._extend(new)

    def _extend(self, new: bytes) -> None:
        self._extents += new
        self._granted += len(new) // extents.EXTENT_BYTES
        self._room = extents.capacity(self._extents)

    def _allot(
        self, missing: int, room: int, count: int, shown: tuple[bytes, int, int] | None = None
    ) -> bytes | None:
        """Extents for `missing` bytes more, beside `count` that have `room`, and some ahead of
        need. None if they would be too many. `shown`: what is announced in the same request."""
        stripe = self._stripe if count + self._stripe <= extents.EXTENTS_SLOW else 1
        sizes = extents.next_sizes(missing, room, count, room > 0 and self._granted > 0)
        try:
            if stripe > 1:
                new = self._alloc(sizes[:1], 0, 0.0, stripe, shown)
            else:
                new = self._alloc(sizes, _ONE_EXTENT, 0.0, 1, shown)
        except OutOfSpaceError:
            new = self._alloc([missing], 0, self._wait_space, 1, None)
        n = len(new) // extents.EXTENT_BYTES
        if count + n <= extents.EXTENTS_MAX:
            return new
        self._give_back(new, n)
        return None

    def _alloc(
        self,
        sizes: list[int],
        flags: int,
        wait: float,
        stripe: int,
        shown: tuple[bytes, int, int] | None,
    ) -> bytes:
        until = time.monotonic() + wait
        ms = 0
        options = place.with_stripe(self._options, stripe)
        if self._avoid:
            options = place.avoiding(options, self._avoid)
        while True:
            try:
                new, status = self._door.alloc(
                    self.name, tuple(sizes), flags, options, self._like, ms, shown,
                    self._limit() + ms / 1000,
                )  # fmt: skip
            except OutOfSpaceError:
                left = until - time.monotonic()
                if left <= 0:
                    raise
                ms = max(1, int(min(left, requests.WAIT_AT_ONCE) * 1000))
                continue
            if status:
                self._give_back(new, len(new) // extents.EXTENT_BYTES)
                raise self._store._error(status, self.name, 0)
            if shown is not None:
                self._announced = shown[2]
            return bytes(new)

    def _replace_tail(self, end: int) -> None:
        """The last extent may not be written, though it is not full: what an appender before us
        left behind, alive or not, may still be on its way into it. Its bytes move to a new one."""
        if self._fixed == self._room:
            self._tail_closed = False
            return
        n = extents.EXTENT_BYTES
        tail, kept = self._extents[-n:], self._extents[:-n]
        start = self._room - extents.capacity(tail)
        new = self._allot(max(end, self._fixed) - start, start, len(kept) // n)
        if new is None:
            self._take_over(self._size, room=end)
            return
        source = self._door.pipe(self.name)
        whole, self._extents = self._extents, kept
        self._edge = start
        self._extend(new)
        try:
            self._move(source, tail, 0, self._fixed - start, start)
        except BaseException:
            self._give_back(self._extents, self._granted)
            self._extents, self._granted, self._room = whole, 0, extents.capacity(whole)
            self._edge = self._room
            self._forget_behind()
            self._is_broken = False
            raise
        finally:
            source.close()
        self._tail_closed = False

    def flush(self) -> None:
        """Shows what is written so far to those who follow (mode w or x)."""
        super().flush()
        if self._done or self._closing or not self._mode.creates or self._size <= self._announced:
            return
        self._check()
        self._somewhere(self._settle_in_extents, MEMORY_BYTES_MAX + 1)
        self._stream_token = self._stream_token or self._store._token()
        shown = self._extents[: self._edge_at()]
        self._call(
            STREAM, data=shown, count=len(shown) // extents.EXTENT_BYTES,
            arg0=self._stream_token, arg1=self._size,
        )  # fmt: skip
        self._announced = self._size

    def _settle_in_extents(self) -> None:
        """The same, and none of it is in memory."""
        if self._memory is not None:
            self._leave_memory(self._size)
        self._settle()

    def _complete(self) -> tuple[bytes, int, int] | None:
        """What there is to announce, without waiting for what is still on its way."""
        if not self._mode.creates or not self._size:
            return None
        self._check_whole()
        self._is_broken = True
        try:
            until = self._moves().arrived(self._size, self._timeout())
        except StaleLocationError as error:
            raise self._lost() from error
        except (DataLostError, OutOfSpaceError) as error:
            raise Refused(error) from error
        self._is_broken = False
        if until <= self._announced:
            return None
        self._stream_token = self._stream_token or self._store._token()
        return self._extents[: self._edge_at()], self._stream_token, until

    def truncate(self, size: int | None = None) -> int:
        self._check_may(self._mode.writes, "writable")
        size = self._at if size is None else size
        if size < 0:
            raise InvalidArgumentError(f"cannot truncate to {size}", path=self.name)
        if size > self._size:
            self._fill(size)
        elif size < self._size:
            self._shrink(size)
        return size

    def _shrink(self, size: int) -> None:
        self._somewhere(lambda: self._cut(size))

    def _cut(self, size: int) -> None:
        if self._memory is not None:
            self._memory = bytearray(memoryview(self._memory)[:size])
        elif size < self._fixed:
            self._take_over(size)
        self._size = size
        self._dirty = True

    # -- the end -----------------------------------------------------------------------

    def _give_back(self, whence: bytes, granted: int) -> None:
        """Releases the last `granted` extents. They go with the session if that fails."""
        while granted:
            n = min(granted, extents.EXTENTS_MAX)
            at = len(whence) - granted * extents.EXTENT_BYTES
            granted -= n
            try:
                self._store._call(
                    _RELEASE, 0, None, whence[at : at + n * extents.EXTENT_BYTES],
                    count=n, timeout=GIVE_BACK_S,
                )  # fmt: skip
            except CrailError:
                return

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _publish(self) -> None:
        base = self.version or 0
        flags = requests.PARENTS if self._parents else 0
        if self._mode.exclusive:
            flags |= requests.IF_ABSENT
        elif not self._mode.creates:
            flags |= requests.IF_VERSION | requests.EDIT
        edited_there = self._like and self._size > requests.INLINE_MAX
        if self._size and (self._memory is None or edited_there):  # to where what is edited lies
            self._somewhere(self._settle_in_extents, MEMORY_BYTES_MAX + 1)
        if self._memory is not None or self._size == 0:
            data = self._memory if self._memory is not None and self._size else b""
            self.version = self._store._put(
                self._door.put, self.name, data, flags, base, self._timeout(), self._placement
            )
            return
        kept = len(self._extents) // extents.EXTENT_BYTES
        if self._fixed:
            flags, base, kept = GROW, self._token, self._granted
        flags |= self._make_durable()
        n = kept * extents.EXTENT_BYTES
        try:
            self.version = self._call(
                _COMMIT, flags, data=self._extents[len(self._extents) - n :],
                count=kept, arg0=base, arg1=self._size, options=self._options,
            )[0]  # fmt: skip
        except StaleLocationError as error:
            raise self._lost() from error
        except NotFoundError as error:
            requests.explain_absence(error, self._parents, self._options)
            raise
        self._granted = 0
        self._stream_token = 0  # it ended with the commit
        if self._fixed:
            self._token = 0  # the right ended with the commit

    def _make_durable(self) -> int:
        """What was written is durable where it lies on disks, if that is promised: FLUSHED."""
        if not place.is_sync(self._options, self._store._kept):
            return 0
        self._close_pipe()  # the lane is to have its connection
        n = extents.EXTENT_BYTES
        written = len(self._extents) - self._granted * n
        if self._fixed and self._fixed < extents.capacity(self._extents[:written]):
            written -= n  # the tail of what was there, which has room, was written too
        elif not self._fixed:
            written = 0
        try:
            whence = self._extents[written:]
            return FLUSHED if self._door.flush(self.name, whence, self._timeout()) else 0
        except StaleLocationError as error:
            raise self._lost() from error

    def discard(self) -> None:
        """Closes without publishing anything."""
        self._dirty = False
        self._unread = 1
        self._discards = True
        self.close()

    def close(self) -> None:
        if self._done or self.closed:
            super().close()
            return
        self._done = True
        if self._pid != os.getpid():  # the parent's to close
            super().close()
            return
        if self._is_at_its_end() and not self._unread:
            self._report_delivery()  # its reader knew the size, and saw no empty read
        try:
            if self._dirty:
                self._publish()
            if not self._discards:
                self._made = 0
        finally:
            granted, self._granted = self._granted, 0
            token, self._token = self._token, 0
            try:
                self._close_pipe()
                self._end_hold(self._stream_token)
                self._give_back(self._extents, granted)
                self._unmake()
                self._end_hold(token)
            finally:
                self._memory = b""
                super().close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        _forsaken(self, self)


def _forsaken(layer: object, file: File) -> None:
    """Nobody closed it, and nobody will: nothing is published."""
    if getattr(file, "_done", True) or file._pid != os.getpid() or sys.is_finalizing():
        return
    try:
        file.discard()
    finally:  # a warning may be made an error
        import warnings

        warnings.warn(f"unclosed file {file.name!r}", ResourceWarning, stacklevel=3, source=layer)


class Following(File):
    """A File that reads what is still being written, as far as its writer has shown it."""

    def _ask_to_open(self, token: int) -> tuple[Any, ...]:
        return self._call_waiting(FOLLOW, arg0=token)

    def _has_more(self) -> bool:
        """At the end of what was shown: waits until there is more. False: that was all."""
        if not self._flags & requests.MORE:
            return False
        try:
            self._opened(self._call_waiting(FOLLOW, arg0=self._token, arg1=self._size))
        except DataLostError as error:
            raise self._discarded() from error
        return True

    def _discarded(self) -> DataLostError:
        return DataLostError(DISCARDED, path=self.name)

    def _lost(self) -> DataLostError:
        """What a location that is out of date means: mostly that the writer discarded it."""
        try:
            self._call(FOLLOW, arg0=self._token)
        except DataLostError:
            return self._discarded()
        except CrailError:
            pass
        return super()._lost()

    def readinto(self, buffer: Any) -> int:
        n = super().readinto(buffer)
        while n == 0 and len(buffer) and self._has_more():
            n = super().readinto(buffer)
        return n

    def readall(self) -> bytes:
        parts = [super().readall()]
        while self._has_more():
            parts.append(super().readall())
        return b"".join(parts)


class _OverFile:
    """What a buffer or a text layer adds for the File under it."""

    def _file(self) -> File:
        raise NotImplementedError

    @property
    def version(self) -> int | None:
        """The version that is read, or the one that was published, after close()."""
        return self._file().version

    def _read_ahead(self, file: File) -> int:
        """Bytes of the file that lie here and were not taken."""
        return 0

    def discard(self) -> None:
        """Closes without publishing anything."""
        self._file().discard()

    def close(self) -> None:
        try:
            file = self._file()
        except (ValueError, AttributeError):  # detached
            file = None
        if file is not None and not file.closed:
            file._closing = True  # what flushes now is shown by the commit
            file._unread = max(file._unread, self._read_ahead(file))
            try:
                self.flush()  # type: ignore[attr-defined]
            except BaseException:  # what is not all there is not published
                file.discard()
                raise
        super().close()  # type: ignore[misc]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        try:
            file = self._file()
        except (ValueError, AttributeError):  # detached, or never made
            return
        _forsaken(self, file)


class Reader(_OverFile, io.BufferedReader):
    """A buffered File that reads."""

    def _file(self) -> File:
        return self.raw  # type: ignore[return-value]

    def _read_ahead(self, file: File) -> int:
        return file._at - self.tell() if file._pid == os.getpid() else 0


class Writer(_OverFile, io.BufferedWriter):
    """A buffered File that writes."""

    def _file(self) -> File:
        return self.raw  # type: ignore[return-value]

    def flush(self) -> None:
        super().flush()
        self.raw.flush()


class Random(_OverFile, io.BufferedRandom):
    """A buffered File that reads and writes."""

    def _file(self) -> File:
        return self.raw  # type: ignore[return-value]

    def flush(self) -> None:
        super().flush()
        self.raw.flush()


class Text(_OverFile, io.TextIOWrapper):
    """Text over a buffered File."""

    def _file(self) -> File:
        return self.buffer.raw  # type: ignore[attr-defined,no-any-return]

    def _read_ahead(self, file: File) -> int:
        if file._pid != os.getpid() or not file._is_at_its_end():
            return 1
        try:
            return len(self.read(1))  # of what was read and decoded already; nothing is asked for
        except ValueError:  # no text
            return 1


AnyFile = File | Reader | Writer | Random | Text


def open_file(
    store: Store,
    path: str,
    mode: str,
    *,
    follow: bool,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    timeout: float | None,
    placement: dict[str, Any],
) -> AnyFile:
    """What `Store.open` does."""
    taken = Mode(mode, path)
    placement = dict(place.at_home(store._homes, path, placement))
    if not taken.text and (encoding, errors, newline) != (None, None, None):
        raise InvalidArgumentError("encoding, errors and newline are for text modes", path=path)
    if taken.text and buffering == 0:
        raise InvalidArgumentError("text is always buffered", path=path)
    if buffering < -1:
        raise InvalidArgumentError(f"buffering={buffering}", path=path)
    if follow and mode != "rb" and mode != "r" and mode != "rt":
        raise InvalidArgumentError(f"follow is for reading, not for mode {mode!r}", path=path)
    file = (Following if follow else File)(store, path, taken, timeout, placement)
    if buffering == 0:
        return file
    size = buffering if buffering > 1 else BUFFER_BYTES
    layer = Random if taken.reads and taken.writes else Reader if taken.reads else Writer
    try:
        buffered = layer(file, size)
        if not taken.text:
            return buffered
        return Text(buffered, encoding, errors, newline, line_buffering=buffering == 1)
    except BaseException:  # no such encoding
        file.discard()
        raise


__all__ = ["AnyFile", "File", "Random", "Reader", "Text", "Writer", "open_file"]
