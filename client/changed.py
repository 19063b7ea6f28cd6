"""How a file changes: in memory, then in extents of its own, elsewhere when a disk refuses them."""

from __future__ import annotations

import sys
import time
from collections import deque

from crailpy.errors import (
    DataLostError,
    DeadlineError,
    InvalidArgumentError,
    OutOfSpaceError,
    StaleLocationError,
    UnavailableError,
)

from . import extents, requests
from . import placement as place
from .opened import STREAM, Opened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from crailpy.native import Pipe

MEMORY_BYTES_MAX = 256 << 10  # a value up to this is written by one put
COPY_BYTES = 4 << 20
ZEROS = bytes(MEMORY_BYTES_MAX)
BEHIND_BYTES_MAX = 8 << 20  # kept of what a disk has not answered yet
ELSEWHERE_TRIES = 8  # extents that may lie at a server that is away, before it is waited for

_ONE_EXTENT = 128  # flag of ALLOC (native/include/crail/wire.h)


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


class Changed(Opened):
    """An opened value and what was written of it, which nobody else sees until it is published.
    Committed bytes are never written again."""

    # -- writing ---------------------------------------------------------------------

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

    # -- extents ---------------------------------------------------------------------

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

    def _edge_at(self) -> int:
        """Where in the extents those begin that nothing was written to."""
        at = room = 0
        while room < self._edge:
            room += extents.capacity(self._extents[at : at + extents.EXTENT_BYTES])
            at += extents.EXTENT_BYTES
        return at

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

    # -- elsewhere -------------------------------------------------------------------

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

    # -- for those who follow --------------------------------------------------------

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
