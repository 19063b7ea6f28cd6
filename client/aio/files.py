"""Files whose calls are awaited: `async with await store.open(...)`.

An `AsyncFile` is one version of one value, as `files.File` is. What it changes is its own, in
memory or in granted extents, until `close()` publishes it as one new version. There is no buffer
under it, but for what is small enough to stay in memory altogether. Text lies over it: text.py.
"""

from __future__ import annotations

import asyncio
import io
import sys
import warnings
from typing import TYPE_CHECKING, Any

from crailpy import native
from crailpy.errors import (
    ClosedError,
    CrailError,
    DataLostError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    OutOfSpaceError,
    StaleLocationError,
)

from .. import extents, requests
from .. import placement as place
from ..changed import COPY_BYTES, ELSEWHERE_TRIES, MEMORY_BYTES_MAX, Refused
from ..files import GROW
from ..opened import APPEND, FOLLOW, OPEN, STREAM, TAIL_CLOSED, Mode
from ..session import RETRY_FIRST, RETRY_MAX
from .session import Away, OutOfDate
from .transfer import Making, capacity, room_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from types import TracebackType

    from ..requests import Buffer, Result
    from .connection import Limit
    from .store import AsyncStore
    from .text import AsyncText

LINE_BYTES = 8192  # read at once when lines are looked for


class AsyncFile:
    """One version of a value as a raw file, for one task at a time; see `Store.open`. Leaving an
    `async with` block by an exception, and `discard()`, publish nothing."""

    def __init__(
        self,
        store: AsyncStore,
        path: str,
        mode: str,
        follow: bool,
        timeout: float | None,
        placement: dict[str, Any],
    ) -> None:
        taken = Mode(mode, path)
        if follow and (taken.writes or not taken.reads):
            raise InvalidArgumentError("follow=True reads: mode r or rb", path=path)
        self._closed = True  # until it is open
        self._store = store
        self._transfers = store._transfers
        self._timeout = timeout
        placement = dict(placement)
        self._parents = bool(placement.pop("parents", True))
        self._placement = placement
        self._options, self._wait_space = place.pack(**placement)
        self._like = 0  # what is edited lies on this server, perhaps among others
        self._stripe = place.stripe_of(self._options)
        self._mode = taken
        self._follow = follow
        self.name = path
        self.mode = mode
        #: The version that is read, or the one that was published, after close().
        self.version: int | None = None
        self._at = 0
        self._size = 0
        self._token = 0  # of the hold that keeps what was opened; 0: none
        self._stream_token = 0  # of what is announced to those who follow; 0: nothing was
        self._announced = 0
        self._flags = 0  # of the result that opened it
        self._memory: bytes | bytearray | None = b""
        self._extents: list[bytes] = []
        self._room = 0  # bytes that fit into the extents
        self._edge = 0  # of the room: behind it are extents that nothing was written to
        self._twice = 0  # bytes from the start among which are some that were sent twice
        self._fixed = 0  # bytes from the start that may not be written: they are committed
        self._granted = 0  # the last so many extents are grants of ours
        self._tail_closed = False
        self._dirty = taken.creates
        self._avoid = 0  # the server whose disk refused something last
        self._broken = False  # a write was cut short: what lies where is not known
        self._line = b""  # of what was read ahead for lines
        self._made = 0  # version of the empty value that an append began with; 0: there was one
        self._sequential = True  # everything up to _at was read in order
        self._unread = 0  # bytes or characters that text over it has read ahead

    # -- opening -----------------------------------------------------------------

    async def _open(self) -> AsyncFile:
        if self._mode.creates:
            if self._mode.exclusive:
                await self._check_absent()
            self._memory = bytearray()
        else:
            self._token = self._store._token()
            if self._mode.appends:
                try:
                    found = await self._ask_for_append()
                except BaseException:
                    self._unmake()
                    raise
            else:
                found = await self._ask(FOLLOW if self._follow else OPEN, self._follow)
            self._opened(found)
            if self._mode.appends:
                self._at = self._size
        self._closed = False
        return self

    async def _check_absent(self) -> None:
        try:
            await self._store._run(requests.Request(requests.STAT, self.name), self._timeout)
        except NotFoundError:
            return
        raise ExistsError(path=self.name)

    async def _ask(
        self, code: int, waits: bool, seen: int = 0, *, left: float | None = None
    ) -> Result:
        """Asks within the deadline; `waits`: the namenode answers when it can."""
        limit = max(0.0, self._deadline() - self._now()) if left is None else left
        request = requests.Request(
            code, self.name, arg0=self._token, arg1=seen, wait=limit if waits else None,
            decode=lambda result: result,
        )  # fmt: skip
        timeout = requests.WAY_BACK if waits else limit
        result: Result = await self._store._hold(request, self._token, timeout)
        return result

    async def _ask_for_append(self) -> Result:
        deadline = self._deadline()  # one for all that is asked
        while True:
            left = max(0.0, deadline - self._now())
            try:
                return await self._ask(APPEND, True, left=left)
            except NotFoundError:
                try:
                    self._made = await self._store.put(
                        self.name, b"", if_absent=True, parents=self._parents, timeout=left,
                        **self._placement,
                    )  # fmt: skip
                except ExistsError:
                    pass

    def _unmake(self) -> None:
        """Nothing was appended to the empty value made for it: it goes, unless another has made
        something of it. Said before the append right ends, so that nobody appends meanwhile."""
        made, self._made = self._made, 0
        if made:
            self._store._post(requests.delivered(self.name, made))

    def _opened(self, found: Result) -> None:
        """Takes over what OPEN, APPEND or FOLLOW found."""
        self.version, self._size, _, self._flags, _, data = found
        if self._flags & requests.INLINE:
            self._memory = data
            return
        self._memory = None
        self._extents = [data[i : i + 32] for i in range(0, len(data), 32)]
        self._room = self._edge = capacity(self._extents)
        self._fixed = self._size if self._mode.appends else sys.maxsize
        self._tail_closed = bool(self._flags & TAIL_CLOSED)
        if self._mode.writes:
            servers = extents.servers(data)
            self._like = servers[0]
            if self._stripe == 1:  # what is said to the edit itself counts more
                self._stripe = len(servers)

    # -- what it can do --------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Was it closed, or never opened?"""
        return self._closed

    def _check(self, may: bool = True, what: str = "") -> None:
        if self._closed:
            raise ClosedError("the file is closed", path=self.name)
        if not may:
            raise io.UnsupportedOperation(f"not {what}")
        if self._broken:
            raise DataLostError("a write to this file was cut short", path=self.name)

    def readable(self) -> bool:
        self._check()
        return self._mode.reads

    def writable(self) -> bool:
        self._check()
        return self._mode.writes

    def seekable(self) -> bool:
        self._check()
        return True

    def tell(self) -> int:
        """Where the next read or write begins."""
        self._check()
        return self._at - len(self._line)

    async def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a byte; returns it. Raises InvalidArgumentError."""
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}
        if whence not in bases or bases[whence] + offset < 0:
            raise InvalidArgumentError(f"cannot seek to {offset} from {whence}", path=self.name)
        at = bases[whence] + offset
        self._sequential = self._sequential and at == self.tell()
        self._at, self._line = at, b""
        return at

    def _deadline(self) -> float:
        return self._store._deadline(self._timeout)

    def _now(self) -> float:
        return self._store._session.loop.time()

    # -- reading -----------------------------------------------------------------------

    async def _read_into(self, buffer: Any, size: int, at: int) -> None:
        if self._memory is None:
            await self._read_from(self._extents, buffer, size, at)
            return
        with memoryview(buffer) as to, memoryview(self._memory) as data:
            to[:] = data[at : at + size]

    async def _read_from(self, extents: list[bytes], buffer: Any, size: int, at: int) -> None:
        deadline = self._deadline()
        pause = 0.0
        async with self._store._limit(deadline, self.name) as limit:
            while True:
                try:
                    await self._transfers.read(extents, at, buffer, size, deadline)
                    return
                except Away as away:
                    limit.reason = away.error
                except OutOfDate as error:
                    raise await self._lost() from error
                await asyncio.sleep(pause)
                pause = min(max(2 * pause, RETRY_FIRST), RETRY_MAX)

    async def _lost(self) -> DataLostError:
        """What a location that is out of date means: a writer that we follow may have gone."""
        if self._follow:
            try:
                await self._ask(FOLLOW, False)
            except DataLostError as error:
                return error
            except CrailError:
                pass
        return DataLostError(
            "the memory that this file lies in went away with its server or its session",
            path=self.name,
        )

    async def _has_more(self) -> bool:
        """At the end of what a writer has shown: waits until there is more. False: that was all."""
        if not self._follow or not self._flags & requests.MORE:
            return False
        self._opened(await self._ask(FOLLOW, True, self._size))
        return True

    async def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as there is something; 0 at the end."""
        self._check(self._mode.reads, "readable")
        await self.seek(self.tell())
        flat = native.Flat(buffer, True)
        with memoryview(flat) as room:
            while not (n := min(room.nbytes, max(0, self._size - self._at))) and room.nbytes:
                if not await self._has_more():
                    await self._delivered()
                    return 0
            with room[:n] as part:
                await self._read_into(part, n, self._at)
        self._at += n
        return n

    async def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, fewer only at the end; -1: all the rest."""
        self._check(self._mode.reads, "readable")
        await self.seek(self.tell())
        wanted = sys.maxsize if size is None or size < 0 else size
        data = await self._read(wanted)
        if len(data) < wanted:
            await self._delivered()
        return data

    async def _read(self, left: int) -> bytes:
        parts: list[bytes] = []
        while left:
            n = min(left, max(0, self._size - self._at))
            if n:
                landing = native.Landing(n)
                await self._read_into(landing, n, self._at)
                parts.append(landing.take())
                self._at += n
                left -= n
            elif not await self._has_more():
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def readline(self) -> bytes:
        """Up to and with the next newline; b"" at the end."""
        self._check(self._mode.reads, "readable")
        ahead, self._line = self._line, b""
        while (end := ahead.find(b"\n") + 1) == 0:
            more = await self._read(LINE_BYTES)
            if not more:
                await self._delivered()
                return ahead
            ahead += more
        self._line = ahead[end:]
        return ahead[:end]

    async def readlines(self) -> list[bytes]:
        """The rest, line by line."""
        return [line async for line in self]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line

    async def _delivered(self) -> None:
        """It was read to its end: a value that goes when it was read goes now, if that was in
        order."""
        goes = self._flags & requests.DELETE_AFTER_READ and not self._mode.writes
        if goes and self._sequential and self._at == self._size:
            self._flags &= ~requests.DELETE_AFTER_READ
            assert self.version is not None
            await self._store._delivered(self.name, self.version)

    # -- writing -----------------------------------------------------------------------

    async def write(self, data: Buffer) -> int:
        """Writes all of `data`; returns its bytes. Do not change it meanwhile."""
        self._check(self._mode.writes, "writable")
        at = self._size if self._mode.appends else self.tell()
        with memoryview(native.Flat(data, False)) as flat:
            if flat.nbytes:
                await self._write_at(flat, at)
            self._at, self._line = at + flat.nbytes, b""
            return flat.nbytes

    async def writelines(self, lines: Iterable[Buffer]) -> None:
        """Writes each; none is given an end."""
        for line in lines:
            await self.write(line)

    async def _write_at(self, data: memoryview, at: int) -> None:
        """Writes from byte `at` on; what lies between the end and `at` becomes zeros."""
        await self._somewhere(lambda: self._write_here(data, at), at + data.nbytes)

    async def _somewhere(self, step: Callable[[], Awaitable[None]], room: int = 0) -> None:
        """Does the step. A disk may refuse bytes of ours: what it has taken can still be read
        there, and moves to other servers, with room for `room` bytes, and the step is done again.
        Where there are none, what the disk's server said is raised."""
        for tries in range(ELSEWHERE_TRIES + 1):
            try:
                await step()
                return
            except Refused as refused:
                if tries == ELSEWHERE_TRIES or not refused.server:
                    raise refused.error from None
                self._avoid = refused.server
                try:
                    if self._memory is None:
                        await self._take_over(self._size, room)
                except Refused:
                    continue  # all is as it was: the step will say so again
                except OutOfSpaceError:
                    raise refused.error from None
                self._broken = False

    async def _write_here(self, data: memoryview, at: int) -> None:
        if self._memory is None and at < max(self._fixed, self._twice):
            await self._take_over(self._size, 0)
        if at > self._size:
            await self._fill(at)
        end = at + data.nbytes
        if self._memory is None:
            await self._reserve(end)
        elif end > MEMORY_BYTES_MAX:
            await self._leave_memory(end)
        if self._memory is not None:
            if not isinstance(self._memory, bytearray):
                self._memory = bytearray(self._memory)
            self._memory[at:end] = data
        else:
            await self._put_bytes(data, at)
        self._dirty = True
        self._size = max(self._size, end)

    async def _put_bytes(self, data: Any, at: int) -> None:
        """Writes to the extents, which reach that far."""
        self._broken = True  # until all of it is there
        deadline = self._deadline()
        with memoryview(data) as flat:
            old = min(max(self._edge - at, 0), flat.nbytes)
            async with self._store._limit(deadline, self.name) as limit:
                if old:
                    with flat[:old] as part:
                        await self._send(part, at, limit)
                if old < flat.nbytes:
                    with flat[old:] as part:
                        await self._send_to_fresh(part, at + old, limit)
        self._broken = False

    async def _send(self, part: memoryview, at: int, limit: Limit) -> None:
        pause = 0.0
        while True:
            try:
                await self._transfers.write(self._extents, at, part, part.nbytes, limit.deadline)
                return
            except Away as away:
                # Of the attempt before, bytes may still arrive: nothing else may be written there.
                limit.reason = away.error
                self._twice = max(self._twice, at + part.nbytes)
            except OutOfDate as error:
                raise await self._lost() from error
            except (DataLostError, OutOfSpaceError) as error:
                raise Refused(error) from error
            await asyncio.sleep(pause)
            pause = min(max(2 * pause, RETRY_FIRST), RETRY_MAX)

    async def _send_to_fresh(self, part: memoryview, at: int, limit: Limit) -> None:
        """Writes to extents that nothing was written to before. Where their server is away, others
        take their place; where there are none, it is waited for."""
        for _ in range(ELSEWHERE_TRIES):
            until = self._transfers.early(limit.deadline)
            try:
                await self._transfers.write(self._extents, at, part, part.nbytes, until)
                break
            except Away as away:
                limit.reason = away.error
            except OutOfDate as error:
                raise await self._lost() from error
            except (DataLostError, OutOfSpaceError) as error:
                raise Refused(error) from error
            if not await self._go_elsewhere():
                await self._send(part, at, limit)
                break
        else:
            await self._send(part, at, limit)
        while self._edge < at + part.nbytes:
            self._edge += room_of(self._extents[self._edge_at()])

    def _edge_at(self) -> int:
        """How many extents there are before those that nothing was written to."""
        n = room = 0
        while room < self._edge:
            room += room_of(self._extents[n])
            n += 1
        return n

    def _where(self, stripe: int) -> bytes:
        """Options for the next extents."""
        options = place.with_stripe(self._options, stripe)
        return place.avoiding(options, self._avoid) if self._avoid else options

    async def _go_elsewhere(self) -> bool:
        """Others in the place of the extents that nothing was written to; False: there are none."""
        n = self._edge_at()
        fresh = self._extents[n:]
        options = self._where(1 if len(fresh) == 1 else self._stripe)
        granted = self._granted - len(fresh)
        if not await self._transfers.exchange(fresh, options):
            return False
        self._extents, self._granted = self._extents[:n], granted
        self._extend(fresh)
        return True

    async def _fill(self, until: int) -> None:
        """Zeros from the end on."""
        zeros = bytes(min(MEMORY_BYTES_MAX, until - self._size))
        while self._size < until:
            with memoryview(zeros)[: until - self._size] as part:
                await self._write_at(part, self._size)

    async def _take_over(self, size: int, room: int) -> None:
        """Copies the first `size` bytes to where we may write: into memory if they are few and no
        more than that is wanted, else into new extents with room for `room` bytes."""
        old, granted, edge, twice = self._extents, self._granted, self._edge, self._twice
        memory = bytearray(size) if max(size, room) <= MEMORY_BYTES_MAX else None
        if memory is not None:
            if size:
                await self._read_from(old, memory, size, 0)
            self._extents, self._granted, self._edge, self._twice = [], 0, 0, 0
        else:
            new = await self._allot(max(size, room), 0, 0)
            if new is None:
                raise OutOfSpaceError("free memory is in too many pieces", path=self.name)
            self._extents, self._granted, self._edge, self._twice = new, len(new), 0, 0
            try:
                await self._move(old, 0, size, 0)
            except BaseException:
                self._give_back(self._extents)
                self._extents, self._granted, self._edge, self._twice = old, granted, edge, twice
                self._broken = False  # all is as it was
                raise
        self._memory = memory
        self._room = capacity(self._extents)
        self._size = size
        self._fixed = 0
        self._tail_closed = False
        if self._stream_token:  # who follows reads what is given back now
            self._store._end(self._stream_token)
        self._stream_token = self._announced = 0
        self._give_back(old[len(old) - granted :])

    async def _move(self, extents: list[bytes], start: int, end: int, to: int) -> None:
        """Copies bytes [start, end) of other extents into ours, from byte `to` on."""
        piece = bytearray(min(COPY_BYTES, end - start))
        for at in range(start, end, COPY_BYTES):
            n = min(COPY_BYTES, end - at)
            with memoryview(piece)[:n] as part:
                await self._read_from(extents, part, n, at)
                await self._put_bytes(part, to + at - start)

    async def _leave_memory(self, end: int) -> None:
        """What was in memory goes on in extents, with room up to `end`."""
        memory = self._memory
        new = await self._allot(end, 0, 0)
        if new is None:
            raise OutOfSpaceError("free memory is in too many pieces", path=self.name)
        self._memory = None
        self._extend(new)
        try:
            if memory:
                await self._put_bytes(memory, 0)
        except BaseException:
            self._give_back(self._extents)
            self._extents, self._granted, self._room, self._edge, self._twice = [], 0, 0, 0, 0
            self._memory = memory
            self._broken = False
            raise

    async def _reserve(self, end: int) -> None:
        """Extents for the bytes up to `end`."""
        if self._tail_closed:
            await self._replace_tail(end)
        if end <= self._room:
            return
        allot = self._allot(end - self._room, self._room, len(self._extents))
        told = self._mode.creates and self._size > self._announced and self._room
        new = await (self._announcing(allot) if told else allot)
        if new is None:
            await self._take_over(self._size, end)
        else:
            self._extend(new)

    async def _announcing(self, allot: Awaitable[list[bytes] | None]) -> list[bytes] | None:
        """What `allot` comes to; in the same frame, for both begin in one turn of the loop, those
        who follow are told what is written so far."""
        allotted = asyncio.ensure_future(allot)
        announced = asyncio.ensure_future(self._announce())
        try:
            await announced
            return await allotted
        except BaseException:
            announced.cancel()
            allotted.cancel()
            allotted.add_done_callback(self._left)
            raise

    def _left(self, allotted: asyncio.Future[list[bytes] | None]) -> None:
        if not allotted.cancelled() and not allotted.exception():
            self._give_back(allotted.result() or [])

    def _extend(self, new: list[bytes]) -> None:
        self._extents = self._extents + new
        self._granted += len(new)
        self._room = capacity(self._extents)

    async def _allot(self, missing: int, room: int, count: int) -> list[bytes] | None:
        """Extents for `missing` bytes more, beside `count` that have `room`, and some ahead of
        need. None if they would be too many."""
        stripe = self._stripe if count + self._stripe <= extents.EXTENTS_SLOW else 1
        sizes = extents.next_sizes(missing, room, count, room > 0 and self._granted > 0)
        options = self._where(stripe)
        async with self._store._limit(self._deadline() + self._wait_space, self.name):
            new = await self._transfers.extend(
                self.name, sizes if stripe == 1 else sizes[:1], missing, options,
                self._wait_space, self._like,
            )  # fmt: skip
        if count + len(new) <= extents.EXTENTS_MAX:
            return new
        self._give_back(new)
        return None

    async def _replace_tail(self, end: int) -> None:
        """The last extent may not be written, though it is not full: what an appender before us
        left behind, alive or not, may still be on its way into it. Its bytes move to a new one."""
        if self._fixed == self._room:
            self._tail_closed = False
            return
        whole, kept, tail = self._extents, self._extents[:-1], self._extents[-1:]
        start = self._room - room_of(tail[0])
        new = await self._allot(max(end, self._fixed) - start, start, len(kept))
        if new is None:
            await self._take_over(self._size, end)
            return
        self._extents, self._edge = kept, start
        self._extend(new)
        try:
            await self._move(tail, 0, self._fixed - start, start)
        except BaseException:
            self._give_back(self._extents[len(kept) :])
            self._extents, self._granted = whole, 0
            self._room = self._edge = capacity(whole)
            self._broken = False
            raise
        self._tail_closed = False

    def _give_back(self, extents: list[bytes]) -> None:
        if extents:
            self._transfers.release(extents)

    async def truncate(self, size: int | None = None) -> int:
        """Cuts it to `size` bytes, or fills it up with zeros; returns `size`."""
        self._check(self._mode.writes, "writable")
        size = self.tell() if size is None else size
        if size < 0:
            raise InvalidArgumentError(f"cannot truncate to {size}", path=self.name)
        if size > self._size:
            await self._fill(size)
        elif size < self._size:
            await self._somewhere(lambda: self._cut(size))
        return size

    async def _cut(self, size: int) -> None:
        if self._memory is not None:
            self._memory = bytearray(memoryview(self._memory)[:size])
        elif size < self._fixed:
            await self._take_over(size, size)
        self._size = size
        self._dirty = True

    async def flush(self) -> None:
        """Shows what is written so far to those who follow (mode w or x)."""
        self._check()
        if not self._mode.creates or self._size <= self._announced:
            return
        if self._memory is not None:
            await self._somewhere(lambda: self._leave_memory(self._size))
        await self._announce()

    async def _announce(self) -> None:
        if self._size <= self._announced:
            return
        token = self._stream_token = self._stream_token or self._store._token()
        shown = self._extents[: self._edge_at()]
        request = requests.Request(
            STREAM, self.name, data=b"".join(shown), arg0=token, arg1=self._size, count=len(shown)
        )
        await self._store._hold(request, token, self._timeout)
        self._announced = self._size

    # -- the end -----------------------------------------------------------------------

    async def _publish(self) -> None:
        arg0 = self.version or 0
        flags = requests.PARENTS if self._parents else 0
        if self._mode.exclusive:
            flags |= requests.IF_ABSENT
        elif not self._mode.creates:
            flags |= requests.IF_VERSION | requests.EDIT
        if self._memory is not None and self._like and self._size > requests.INLINE_MAX:
            # to where the value lies that is edited
            await self._somewhere(lambda: self._leave_memory(self._size))
        if self._memory is not None or self._size == 0:
            data = self._memory if self._memory is not None and self._size else b""
            self.version = await self._store._put(
                self._store._certain, self.name, data, flags, arg0, self._timeout, self._placement
            )
            return
        if self._fixed:  # appended behind what was committed
            flags, arg0 = GROW, self._token
        flags |= await self._make_durable()
        kept = self._extents[len(self._extents) - self._granted :]
        self._granted = 0  # the commit's, or it gives them back
        try:
            async with self._store._limit(self._deadline(), self.name):
                self.version = await self._transfers.commit(
                    self.name, kept, self._size, Making(flags, self._options, arg0)
                )
        except StaleLocationError as error:
            self._give_back(kept)
            raise await self._lost() from error
        except NotFoundError as error:
            requests.explain_absence(error, self._parents, self._options)
            raise
        self._stream_token = 0  # it ended with the commit
        if self._fixed:
            self._token = 0

    async def _make_durable(self) -> int:
        """What was written is durable where it lies on disks, if that is promised: the flag that
        says so."""
        written = len(self._extents) - self._granted if self._fixed else 0
        if self._fixed and self._fixed < capacity(self._extents[:written]):
            written -= 1  # the tail of what was there, which has room, was written too
        pause = RETRY_FIRST
        async with self._store._limit(self._deadline(), self.name) as limit:
            while True:
                try:
                    return await self._transfers.make_durable(
                        self._extents[written:], self._options, limit.deadline
                    )
                except Away as away:
                    limit.reason = away.error
                except OutOfDate as error:
                    raise await self._lost() from error
                except (DataLostError, OutOfSpaceError) as error:
                    error.path = self.name
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_MAX)

    async def close(self) -> None:
        """Publishes what was written. May be called twice. Raises as `put`, and
        VersionConflictError (mode r+: another version was published meanwhile)."""
        if self._closed:
            return
        self._closed = True
        try:
            is_at_its_end = self._at - len(self._line) == self._size > 0
            if is_at_its_end and not self._unread and not self._flags & requests.MORE:
                await self._delivered()  # its reader knew the size, and saw no empty read
            if self._dirty:
                if self._broken:
                    raise DataLostError("a write to this file was cut short", path=self.name)
                await self._publish()
            self._made = 0
        finally:
            self._let_go()

    async def discard(self) -> None:
        """Closes without publishing anything."""
        if not self._closed:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        granted, self._granted = self._granted, 0
        if self._stream_token:
            self._store._end(self._stream_token)
        self._give_back(self._extents[len(self._extents) - granted :])
        self._unmake()
        if self._token:
            self._store._end(self._token)
        self._token = self._stream_token = 0
        self._memory = b""
        self._extents = []

    async def __aenter__(self) -> AsyncFile:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            await self.discard()
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        self._closed = True
        try:
            self._let_go()
        except (CrailError, RuntimeError):
            pass  # the store is closed, or its loop
        warnings.warn(f"unclosed file {self.name!r}", ResourceWarning, stacklevel=2, source=self)


async def open_file(
    store: AsyncStore,
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
) -> AsyncFile | AsyncText:
    """What `AsyncStore.open` does."""
    placement = dict(place.at_home(store._homes, path, placement))
    if buffering < -1:
        raise InvalidArgumentError(f"buffering={buffering}", path=path)
    file = AsyncFile(store, path, mode, follow, timeout, placement)
    if not Mode(mode, path).text:
        if (encoding, errors, newline) != (None, None, None):
            raise InvalidArgumentError("encoding, errors and newline are for text modes", path=path)
        return await file._open()
    if buffering == 0:
        raise InvalidArgumentError("text is always buffered", path=path)
    from .text import AsyncText

    text = AsyncText(file, encoding, errors, newline, buffering)  # refuses before it is opened
    await file._open()
    return text


__all__ = ["AsyncFile", "open_file"]
