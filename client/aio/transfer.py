"""Values in extents: moving their bytes without holding up the loop.

Through shared memory the loop's own thread copies, a piece at a time, under a use slot (the client
core does slot and generation); other callbacks run between the pieces. Over TCP the loop's sockets
carry requests of wire.h; the server does slot and generation, and answers in order.

Leaving early, by cancellation or deadline, gives everything back: the slot, the buffer, the data
connection (ended, because it is in the middle of something) and the grant. A grant whose transfer
over TCP was cut short is released through the namenode, whose retire order waits until the server
has seen the connection end; it is never used again from here (the reuse rule).
"""

from __future__ import annotations

import asyncio
import math
import socket
from errno import ENOBUFS
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from crailpy import native
from crailpy.errors import (
    CrailError,
    DataLostError,
    NoMemoryError,
    OutOfSpaceError,
    ProtocolError,
    StaleLocationError,
    UnavailableError,
    from_status,
)

from ..changed import ELSEWHERE_TRIES
from ..connection import STATUS_TIMEOUT
from ..extents import EXTENTS_MAX, GRANULE
from ..placement import avoiding, is_sync
from ..session import NEED_SERVER, NEED_WRITABLE, RETRY_FIRST, RETRY_MAX, explain_space, server_away
from .session import Away, OutOfDate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .connection import Limit
    from .session import AsyncSession

    #: version, size, kind, flags, count, data of a result
    Result = tuple[int, int, int, int, int, bytes]

PIECE = 4 << 20  # bytes copied before the loop goes on: a fraction of a millisecond
REQUEST_BYTES = 16 << 20  # of one request over TCP
GRANT_AHEAD_BYTES_MAX = 16 << 20  # larger values pay one more request instead of holding space
GRANTS_MAX = 8  # held ahead
GRANTS_BYTES_MAX = 32 << 20
REACH_S = 0.25  # for a server in whose place another will do

_EXTENT = Struct("<IIIIQQ")  # server, region, granule, granules, generation, key
_DATA_REQUEST = Struct("<IHHQ32sQQ")  # magic, code, flags, id, extent, offset, length
_DATA_REPLY = Struct("<IiQQQ")  # magic, status, id, length, -
_DATA_MAGIC = 0x31445243
_READ, _WRITE, _FLUSH = 1, 2, 3
_DONE, _AGAIN = 0, 3  # of Copy.step(), beside NEED_SERVER and NEED_WRITABLE
_STALE = -StaleLocationError.status
_COMMIT, _ALLOC, _RELEASE = 17, 18, 19
_GRANT_AGAIN, _ONE_EXTENT, _WAIT, _IF_PLENTY = 1 << 6, 1 << 7, 1 << 8, 1 << 13
_FLUSHED = 1 << 14


class Making(NamedTuple):
    """How a value is made: flags and struct crail_options of wire.h, the version that it takes the
    place of where the flags ask for one, and seconds to wait for space."""

    flags: int = 0
    options: bytes = b""
    if_version: int = 0
    wait_space: float = 0.0


def extents_of(result: Result) -> list[bytes]:
    """The extents of a result, each as its 32 bytes. Raises ProtocolError if they cannot hold its
    value."""
    _, size, _, _, count, data = result[:6]
    n = _EXTENT.size
    extents = [data[i * n : (i + 1) * n] for i in range(count)]
    if sum(room_of(extent) for extent in extents if len(extent) == n) < size:
        raise ProtocolError("a value is larger than its extents")
    return extents


def room_of(extent: bytes) -> int:
    """Bytes that fit."""
    granules: int = _EXTENT.unpack(extent)[3]
    return granules * GRANULE


def capacity(extents: list[bytes]) -> int:
    """Bytes that fit into all of them."""
    return sum(map(room_of, extents))


def runs(extents: list[bytes], offset: int, length: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Cuts bytes [offset, offset + length) of a value by extent: (extent, where in it, where in the
    range, bytes)."""
    at, done = offset, 0
    for extent in extents:
        room = room_of(extent)
        if at >= room:
            at -= room
            continue
        n = min(room - at, length - done)
        if n <= 0:
            return
        yield extent, at, done, n
        at, done = 0, done + n


class Transfers:
    """The large values of one session, and the extents that it holds ahead."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._core = session.core.address
        self._grants: list[bytes] = []
        session.on_new_session.append(self._grants.clear)

    @property
    def grants_held(self) -> int:
        """Extents that are granted ahead."""
        return len(self._grants)

    # -- moving bytes -----------------------------------------------------------------

    async def read(
        self, extents: list[bytes], offset: int, buffer: Any, size: int, deadline: float
    ) -> None:
        """Fills `buffer`, of `size` bytes, from byte `offset` of the value on. The deadline is for
        reaching its servers. Raises OutOfDate, and Away."""
        await self._move(extents, offset, buffer, size, False, deadline)

    async def write(
        self, extents: list[bytes], offset: int, data: Any, size: int, deadline: float
    ) -> None:
        """The other way round. Whatever it raises, bytes may be under way over TCP: release the
        extents, or write the same bytes again and no others."""
        await self._move(extents, offset, data, size, True, deadline)

    async def _move(
        self,
        extents: list[bytes],
        offset: int,
        buffer: Any,
        size: int,
        is_write: bool,
        deadline: float,
    ) -> None:
        with memoryview(buffer) as flat:
            for extent, within, at, n in runs(extents, offset, size):
                with flat[at : at + n] as part:
                    if not await self._copy(extent, within, part, is_write, deadline):
                        await self._transmit(extent, within, part, is_write, deadline)

    async def _copy(
        self, extent: bytes, within: int, part: memoryview, is_write: bool, deadline: float
    ) -> bool:
        """One run through shared memory. False: the server shares none with us."""
        server = _EXTENT.unpack(extent)[0]
        copy = native.Copy(self._core, extent, within, part, is_write)
        try:
            while (state := copy.step(PIECE)) != _DONE:
                if state == _AGAIN:
                    await asyncio.sleep(0)
                elif state in (NEED_SERVER, NEED_WRITABLE):
                    if not await self._session.reach(server, state, deadline):
                        return False
                elif state == _STALE:
                    raise OutOfDate
                elif state == -ENOBUFS:
                    raise NoMemoryError("all use slots are taken by views", server=str(server))
                else:
                    raise from_status(state, server=str(server))
        finally:
            copy.close()
        return True

    async def _transmit(
        self, extent: bytes, within: int, part: memoryview, is_write: bool, deadline: float
    ) -> None:
        """One run over a data connection."""
        exchange = self._send if is_write else self._receive
        await self._converse(extent, lambda sock: exchange(sock, extent, within, part), deadline)

    async def _converse(
        self,
        extent: bytes,
        exchange: Callable[[socket.socket], Awaitable[int]],
        deadline: float,
    ) -> None:
        """Lets `exchange`, which gives a status, have a data connection to the extent's server."""
        server = _EXTENT.unpack(extent)[0]
        try:
            connections = await self._session.data_connections(server)
            sock = await connections.take(deadline)
            try:
                status = await exchange(sock)
            except BaseException:
                connections.end(sock)
                raise
            connections.keep(sock)
        except OSError as error:
            if isinstance(error, CrailError):
                raise
            self._session.forget_server(server)
            raise Away(server_away(server, error)) from error
        if status == _STALE:
            raise OutOfDate
        if status:
            raise from_status(status, server=str(server))

    async def _send(self, sock: socket.socket, extent: bytes, within: int, part: memoryview) -> int:
        loop = self._session.loop
        for at in range(0, len(part), REQUEST_BYTES):
            n = min(REQUEST_BYTES, len(part) - at)
            head = _DATA_REQUEST.pack(_DATA_MAGIC, _WRITE, 0, at, extent, within + at, n)
            await loop.sock_sendall(sock, head)
            with part[at : at + n] as piece:
                await loop.sock_sendall(sock, piece)
            status = await self._reply(sock, at, 0)
            if status:
                return status
        return 0

    async def _receive(
        self, sock: socket.socket, extent: bytes, within: int, part: memoryview
    ) -> int:
        loop = self._session.loop
        sizes = [
            (at, min(REQUEST_BYTES, len(part) - at)) for at in range(0, len(part), REQUEST_BYTES)
        ]
        for at, n in sizes:  # few and short: one after the other is already served
            head = _DATA_REQUEST.pack(_DATA_MAGIC, _READ, 0, at, extent, within + at, n)
            await loop.sock_sendall(sock, head)
        failed = 0
        for at, n in sizes:
            status = await self._reply(sock, at, n)
            if status:
                failed = failed or status
            else:
                await self._receive_exact(sock, part, at, n)
        return failed

    async def _reply(self, sock: socket.socket, number: int, length: int) -> int:
        head = bytearray(_DATA_REPLY.size)
        with memoryview(head) as view:
            await self._receive_exact(sock, view, 0, len(head))
        magic, status, about, n, _ = _DATA_REPLY.unpack(head)
        if magic != _DATA_MAGIC or about != number or (not status and n != length):
            raise ConnectionError("the storage server answered another question")
        return int(status)

    async def _receive_exact(
        self, sock: socket.socket, into: memoryview, at: int, size: int
    ) -> None:
        loop = self._session.loop
        end = at + size
        while at < end:
            with into[at:end] as rest:
                n = await loop.sock_recv_into(sock, rest)
            if n == 0:
                raise ConnectionResetError("the storage server closed the connection")
            at += n

    async def make_durable(self, extents: list[bytes], options: bytes, deadline: float) -> int:
        """Makes what was written into the extents durable where they lie on disks, if that is
        promised: before the commit, whose flag it returns if they all do. Raises OutOfDate, Away,
        DataLostError, OutOfSpaceError."""
        if not is_sync(options, self._session.durability):
            return 0
        flag = _FLUSHED
        for server, extent in {_EXTENT.unpack(extent)[0]: extent for extent in extents}.items():
            if await self._session.is_on_disk(server):
                await self._converse(extent, partial(self._send_flush, extent), deadline)
            else:
                flag = 0
        return flag

    async def _send_flush(self, extent: bytes, sock: socket.socket) -> int:
        head = _DATA_REQUEST.pack(_DATA_MAGIC, _FLUSH, 0, 0, extent, 0, 0)
        await self._session.loop.sock_sendall(sock, head)
        return await self._reply(sock, 0, 0)

    # -- views -------------------------------------------------------------------------

    async def pin(
        self, result: Result, goes_when_read: bool, deadline: float
    ) -> native.View | None:
        """A view into shared memory; None: a copy it must be. Raises OutOfDate."""
        extents = extents_of(result)
        if len(extents) != 1:
            return None
        server = _EXTENT.unpack(extents[0])[0]
        while True:
            found = native.pin(self._core, extents[0], result[1], result[0], goes_when_read)
            if isinstance(found, native.View):
                return found
            if found == _STALE:
                raise OutOfDate
            if found != NEED_SERVER or not await self._session.reach(server, found, deadline):
                return None

    # -- writing --------------------------------------------------------------------------

    async def put(self, key: str, parts: list[native.Flat], how: Making, limit: Limit) -> int:
        """Space, bytes, commit: the new version. The value is the parts in order. Raises as
        Store.put."""
        size = sum(memoryview(part).nbytes for part in parts)
        while True:
            extents = await self._grant(key, size, how.options, how.wait_space)
            try:
                flushed = await self._write_somewhere(key, extents, parts, how.options, limit)
            except OutOfDate:
                self.release(extents)
                await asyncio.sleep(0)
                continue
            except BaseException:
                self._give_back(extents, at_rest=self._is_shared(extents))
                raise
            try:
                durably = how._replace(flags=how.flags | flushed)
                return await self.commit(key, extents, size, durably, ahead=True)
            except StaleLocationError:
                self.release(extents)  # some of it may be ours still
                await asyncio.sleep(0)

    async def _write_somewhere(
        self,
        key: str,
        extents: list[bytes],
        parts: list[native.Flat],
        options: bytes,
        limit: Limit,
    ) -> int:
        """Writes to what was granted, and makes it durable as `make_durable` does. Where its server
        is away, or its disk refuses, other extents take their place in the list; where there are
        none, the server is waited for, and a disk is not. Raises OutOfDate, and what the disk's
        server said."""
        pause, tries = RETRY_FIRST, 0
        while True:
            early = tries < ELSEWHERE_TRIES
            until = self.early(limit.deadline) if early else limit.deadline
            try:
                at = 0
                for part in parts:
                    n = memoryview(part).nbytes
                    await self._move(extents, at, part, n, True, until)
                    at += n
                return await self.make_durable(extents, options, until)
            except Away as away:
                limit.reason = away.error
            except (DataLostError, OutOfSpaceError) as refusal:
                elsewhere = avoiding(options, int(refusal.server or 0))
                if not early or not await self.exchange(extents, elsewhere):
                    raise
                tries += 1
                continue
            tries += 1
            if early and await self.exchange(extents, options):
                continue
            tries = ELSEWHERE_TRIES
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX)

    def early(self, deadline: float) -> float:
        """Until when a server is waited for in whose place another will do."""
        now = self._session.loop.time()
        return now + min(REACH_S, max(0.0, deadline - now) / 4)

    async def exchange(self, extents: list[bytes], options: bytes) -> bool:
        """Other extents, of the same size, in the place of these, which nothing good was written
        to. False: there are none. The old ones go only then, so that they are not granted again."""
        flags = _ONE_EXTENT if len(extents) == 1 else 0
        future = self._ask(capacity(extents), flags, options, 0, 0, False)
        try:
            others = await self._space(future)
        except asyncio.CancelledError:
            self._leave(future)
            raise
        if not others:
            return False
        self.release(extents)
        extents[:] = others
        return True

    def _is_shared(self, extents: list[bytes]) -> bool:
        """Do all of them lie in shared memory? Then only our own copies reach them, and those have
        ended."""
        return all(self._session.core.has_server(_EXTENT.unpack(extent)[0]) for extent in extents)

    async def _grant(self, key: str, size: int, options: bytes, wait_space: float) -> list[bytes]:
        if not options:
            held = self._take_grant(size)
            if held is not None:
                return [held]
        return await self.allocate(key, size, options, wait_space)

    async def extend(
        self,
        key: str,
        sizes: list[int],
        missing: int,
        options: bytes,
        wait_space: float,
        like: int,
    ) -> list[bytes]:
        """The next extents of a value that grows, in one request: for sizes[0] bytes, and, while
        space is plenty, for the others. Without space for sizes[0], for `missing` bytes. `like`: a
        server in whose place they should lie, or 0. Raises OutOfSpaceError."""
        asked = [
            self._ask(size, _IF_PLENTY if i else 0, options, like, 0, False)
            for i, size in enumerate(sizes)
        ]
        first: list[bytes] = []
        ahead: list[bytes] = []
        try:
            first += await self._space(asked[0])
            for at in range(1, len(asked)):
                ahead += await self._space(asked[at])
        except BaseException:
            for future in asked:
                self._leave(future)
            raise
        if first:
            return first + ahead
        self.release(ahead)
        return await self.allocate(key, missing, options, wait_space, like)

    async def allocate(
        self, key: str, size: int, options: bytes, wait_space: float, like: int = 0
    ) -> list[bytes]:
        """Extents for `size` bytes, the caller's to commit or to release. Raises
        OutOfSpaceError."""
        alone = False
        while True:
            ms = math.ceil(wait_space * 1000) if alone else 0
            future = self._ask(size, _WAIT if ms else 0, options, like, ms, alone)
            try:
                result = await asyncio.shield(future)
                return extents_of((0, size, *result[2:]))
            except asyncio.CancelledError:
                self._leave(future)
                raise
            except OutOfSpaceError as error:
                error.path = key
                if alone:
                    await self._explain_space(error)
                    raise
            if self._grants:  # what we hold ahead goes first
                held_ahead = self._grants[:]
                self._grants.clear()
                self.release(held_ahead)
            # Alone in its frame it waits at the namenode for what is on its way back.
            alone = True

    async def _explain_space(self, error: OutOfSpaceError) -> None:
        try:
            async with asyncio.timeout(STATUS_TIMEOUT):
                explain_space(error, await self._session.admin("status", {}))
        except (CrailError, OSError):
            pass

    def _ask(
        self, size: int, flags: int, options: bytes, like: int, ms: int, alone: bool
    ) -> asyncio.Future[Result]:
        future, _ = self._session.space.native.call(
            _ALLOC, flags, None, b"", options, ms, like, size, alone, math.inf
        )
        return future

    async def _space(self, future: asyncio.Future[Result]) -> list[bytes]:
        """What was granted; nothing where there is no space."""
        try:
            result = await asyncio.shield(future)
        except OutOfSpaceError:
            return []
        return extents_of((0, 0, *result[2:]))

    def _leave(self, future: asyncio.Future[Result]) -> None:
        """Nobody wants this grant any more."""
        if not future.cancelled() and not self._session.space.native.withdraw(future):
            future.add_done_callback(self._nobody_took)

    def _nobody_took(self, future: asyncio.Future[Result]) -> None:
        """A grant whose caller had given up."""
        if not future.cancelled() and future.exception() is None:
            self._give_back(extents_of((0, 0, *future.result()[2:])), at_rest=True)

    async def commit(
        self,
        key: str,
        extents: list[bytes],
        size: int,
        how: Making,
        *,
        ahead: bool = False,
    ) -> int:
        """Publishes what was written; `ahead`: and gets a grant of that size for the next. The
        extents are given back if that fails, but for StaleLocationError."""
        flags = how.flags
        again = ahead and size <= GRANT_AHEAD_BYTES_MAX and len(extents) == 1 and not how.options
        if again and self._has_room(size + size // 4 + 2 * GRANULE):
            flags |= _GRANT_AGAIN
        changes = self._session.changes.native
        future, _ = changes.call(
            _COMMIT, flags, key, b"".join(extents), how.options, len(extents), how.if_version, size,
            False, math.inf,
        )  # fmt: skip
        try:
            result = await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.cancelled() or changes.withdraw(future):
                self._give_back(extents, at_rest=True)
            else:
                future.add_done_callback(lambda done: self._settled(done, extents))
            raise
        except CrailError as error:
            self._not_committed(error, extents)
            raise
        self._take_again(result)
        return result[0]

    def _settled(self, future: asyncio.Future[Result], extents: list[bytes]) -> None:
        """A commit whose caller had given up."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._take_again(future.result())
        elif isinstance(error, StaleLocationError):
            self.release(extents)
        elif isinstance(error, CrailError):
            self._not_committed(error, extents)

    def _not_committed(self, error: CrailError, extents: list[bytes]) -> None:
        # UnavailableError, ProtocolError: it may be committed; then the session's end will tell. A
        # stale grant is put()'s to release.
        if not isinstance(error, UnavailableError | ProtocolError | StaleLocationError):
            self._give_back(extents, at_rest=True)

    # -- grants ---------------------------------------------------------------------------------

    def _take_grant(self, size: int) -> bytes | None:
        need = -(-size // GRANULE) * GRANULE
        for i, extent in enumerate(self._grants):
            if need <= room_of(extent) <= need + need // 4:
                return self._grants.pop(i)
        return None

    def _has_room(self, size: int) -> bool:
        held = sum(map(room_of, self._grants))
        return len(self._grants) < GRANTS_MAX and held + size <= GRANTS_BYTES_MAX

    def _take_again(self, result: Result) -> None:
        if result[4] == 1 and len(result[5]) >= _EXTENT.size:
            self._give_back([result[5][: _EXTENT.size]], at_rest=True)

    def _give_back(self, extents: list[bytes], *, at_rest: bool) -> None:
        """Keeps it for the next value, or releases it."""
        if (
            at_rest
            and len(extents) == 1
            and room_of(extents[0]) <= GRANT_AHEAD_BYTES_MAX
            and self._has_room(room_of(extents[0]))
        ):
            self._grants += extents
        else:
            self.release(extents)

    def release(self, extents: list[bytes]) -> None:
        """Gives them back to the namenode, which waits for what is on its way into them."""
        while extents and not self._session.closed:  # else they go with the session
            some, extents = extents[:EXTENTS_MAX], extents[EXTENTS_MAX:]
            self._session.changes.native.post(
                _RELEASE, 0, None, b"".join(some), b"", len(some), 0, 0
            )
