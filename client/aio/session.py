"""The cold half of an asynchronous store: its registration at a namenode, the lanes on it, and the
storage servers within reach.

Three lanes, each opened at its first use. *reads* carries what changes nothing, any number of
frames in flight. *changes* carries what is recorded: one frame in flight, and in the next all that
became ready meanwhile, because the namenode keeps the last reply of a lane only (ADR 3). *space*
is the same for grants of memory, which may wait for it and must not hold up what would free some.
"""

from __future__ import annotations

import asyncio
import os
import socket
from _thread import get_ident
from typing import TYPE_CHECKING, Any

from crailpy import channel, hello, native
from crailpy.errors import (
    CrailError,
    InvalidArgumentError,
    SessionLostError,
    UnavailableError,
)
from crailpy.model import MAPPED_TIERS

from ..session import (
    NEED_SERVER,
    NEED_WRITABLE,
    RETRY_FIRST,
    RETRY_MAX,
    no_shared_memory,
    server_away,
    unix_of,
)
from .lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..session import Address

HELLO_TIMEOUT = 10.0  # seconds: a peer that does not answer for so long is not there
DATA_CONNECTIONS_MAX = 8  # to one storage server; further transfers wait for one
BYE_TIMEOUT = 1.0
_SERVER, _BYE = 5, 24

#: A peer that is not there at the moment.
ABSENT = (ConnectionError, FileNotFoundError, TimeoutError, BlockingIOError)


class OutOfDate(Exception):
    """A location no longer holds what it did, or its server cannot be reached: ask the namenode
    again."""


class Away(OutOfDate):
    """A storage server cannot be reached, or the connection to it broke: `error` says so to who
    cannot do without it."""

    def __init__(self, error: CrailError) -> None:
        super().__init__(str(error))
        self.error = error


class AsyncSession:
    """One registration, for one loop of one process. `prefix`: bytes before every path."""

    def __init__(
        self,
        address: Address,
        *,
        token: str | None,
        transport: str | None,
        timeout: float,
        prefix: bytes,
    ) -> None:
        self.address = address
        self.token = token
        self.transport = transport
        self.timeout = timeout
        self.prefix = prefix
        self.loop = asyncio.get_running_loop()
        self.core = native.ClientHandle(lanes_max=1)
        self.number = 0
        self.cluster = ""
        self.durability = "none"  # of what lies with the namenode
        self.is_known = False  # has anybody ever been there?
        self.closed = False
        self.on_new_session: list[Callable[[], None]] = []
        self._key = b""
        self._pid = os.getpid()
        self._thread = get_ident()
        self._lock = asyncio.Lock()  # opening a session
        self._reaching = asyncio.Lock()
        self._unix: str | None = address.unix
        self._presences: list[socket.socket] = []
        self._described: dict[int, dict[str, Any]] = {}
        self._data: dict[int, DataConnections] = {}
        self.reads = Lane(self, 0, recorded=False)
        self.changes = Lane(self, 1, recorded=True)
        self.space = Lane(self, 2, recorded=True)

    @property
    def is_of_this_process(self) -> bool:
        """False in a child that was forked since."""
        return self._pid == os.getpid()

    @property
    def is_over(self) -> bool:
        """True when nothing can be sent any more: the loop ended, or we are in a forked child."""
        return self.loop.is_closed() or not self.is_of_this_process

    def check_loop(self) -> None:
        """Raises InvalidArgumentError in another event loop than the one it is for."""
        if self.loop.is_running() and get_ident() == self._thread:
            return  # without the system call that asking for the loop is (Python 3.11)
        if asyncio.get_running_loop() is not self.loop:
            raise InvalidArgumentError(
                "the store was connected in another event loop",
                hint="connect in each event loop; asyncio.run() makes a new one every time",
            )

    def new_future(self) -> asyncio.Future[Any]:
        """Of every request: so none is made in a loop where its answer would never come."""
        self.check_loop()
        return self.loop.create_future()

    # -- lanes ---------------------------------------------------------------------

    async def open_lane(self, number: int) -> tuple[socket.socket, int]:
        """A connection whose hello is done, and the session that it belongs to: the one we have,
        or a new one if the namenode knows it no more. Raises OSError if nobody is there, and what
        the namenode answers with."""
        no_unix = self.transport not in (None, "shm") and self.address.unix is None
        for _ in range(4):  # a redirect, a session that is gone, a socket that is not there
            session = self.number
            try:
                if session:
                    found = await self._say_lane(number, session, no_unix)
                else:
                    async with self._lock:  # one opens the session for all
                        found = await self._say_lane(number, self.number, no_unix)
            except SessionLostError:
                if self.number == session:
                    self.number, self._key = 0, b""
                continue
            except OSError as error:
                if isinstance(error, CrailError) or no_unix:
                    raise
                if not (self._unix and self.address.hosts):
                    raise
                no_unix = True
                continue
            if found:
                self.is_known = True
                return found
        raise UnavailableError(f"no session to be had at {self.address.text}")

    async def _say_lane(
        self, number: int, session: int, no_unix: bool
    ) -> tuple[socket.socket, int] | None:
        """One hello of a lane; None after a redirect. `session` 0 opens one: under the lock."""
        fields = {"role": "lane", "lane": number, "host": hello.host_identity()}
        if no_unix:
            fields["no_unix"] = True
        if session:
            fields |= {"session": session, "session_key": self._key}
        sock, reply = await self._dial(fields, no_unix)
        if "redirect" in reply:
            sock.close()
            self._unix = reply["redirect"]
            self.is_known = True
            return None
        self.durability = reply.get("durability", "none")
        if not session:
            self._enter(reply)
        return sock, reply["session"]

    async def _dial(
        self, fields: dict[str, Any], no_unix: bool
    ) -> tuple[socket.socket, dict[str, Any]]:
        if self._unix and not no_unix:
            return await channel.connect(
                self._unix, fields, token=self.token, timeout=HELLO_TIMEOUT
            )
        why = ""  # not the error, which would hold this frame
        for host in self.address.hosts:
            try:
                return await channel.connect(host, fields, token=self.token, timeout=HELLO_TIMEOUT)
            except OSError as error:
                if isinstance(error, CrailError):
                    raise
                why = str(error)
        raise ConnectionError(why)

    def _enter(self, reply: dict[str, Any]) -> None:
        """A new session. A namenode that was started anew counts its servers anew: what we know by
        their numbers is of another life."""
        cluster = reply.get("cluster", "")
        if self.cluster and self.cluster != cluster:
            self.core.forget_servers()
            self._described.clear()
        self.cluster = cluster
        self._key = reply["session_key"]
        self.number = reply["session"]
        self._drop_data()
        for forget in self.on_new_session:
            forget()

    def end_connection(self, sock: socket.socket) -> None:
        """Closes it so that the peer learns of it, though a forked child may have a copy."""
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        channel.close(sock, self.loop)

    def unreachable(self, why: BaseException) -> UnavailableError:
        """The namenode is not there."""
        return UnavailableError(
            f"cannot reach {self.address.text}: {why}",
            hint="is it running there? `crailpy up` starts a store on this machine",
        )

    async def admin(self, method: str, params: dict[str, Any]) -> Any:
        """One question to the namenode's control plane, on a connection of its own."""
        fields = {"role": "admin", "method": method, "params": params}
        sock, reply = await self._dial(fields, self._unix is None)
        sock.close()
        return reply["result"]

    # -- storage servers ----------------------------------------------------------------

    async def reach(self, server: int, need: int, deadline: float) -> bool:
        """Brings a storage server within reach. True: through shared memory, for what is needed
        (NEED_SERVER, NEED_WRITABLE); False: over TCP.

        Raises Away when it does not come until the deadline, UnavailableError for one that cannot
        be reached as was asked for, and what the server answers with."""
        pause = RETRY_FIRST
        while True:
            try:
                async with asyncio.timeout_at(deadline), self._reaching:
                    return await self._reach_once(server, need)
            except CrailError:
                raise
            except ABSENT as error:
                self._described.pop(server, None)  # it may be back elsewhere
                if deadline - self.loop.time() <= pause:
                    raise Away(server_away(server, error)) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX)

    async def describe(self, server: int) -> dict[str, Any]:
        """What its registration left."""
        about = self._described.get(server)
        if about is None:
            future, _ = self.reads.native.call(
                _SERVER, 0, None, b"", b"", 0, server, 0, False, HELLO_TIMEOUT
            )
            about = self._described[server] = hello.unpack((await future)[5])
        return about

    async def is_on_disk(self, server: int) -> bool:
        """Is what is written there durable once it was flushed?"""
        return (await self.describe(server))["tier"] not in MAPPED_TIERS

    async def _reach_once(self, server: int, need: int) -> bool:
        about = await self.describe(server)
        unix = unix_of(about)
        if not unix or about["tier"] not in MAPPED_TIERS or self.transport not in (None, "shm"):
            if self.transport == "shm":
                raise no_shared_memory(server, unix)
            return False
        if need == NEED_SERVER and not self.core.has_server(server):
            await self._attach_shm(server, unix)
        elif need == NEED_WRITABLE and not self.core.is_writable(server):
            await self._attach_writable(server, unix)
        return True

    def _credentials(self, role: str) -> dict[str, Any]:
        return {"role": role, "session": self.number, "session_key": self._key}

    async def _attach_shm(self, server: int, unix: str) -> None:
        sock, reply, fds = await channel.connect_for_descriptors(
            unix, self._credentials("shm") | {"write": False}, timeout=HELLO_TIMEOUT
        )
        try:
            self.core.server_shm(server, reply["regions"], fds)
        except BaseException:
            sock.close()
            raise
        finally:
            for fd in fds:
                os.close(fd)
        self._presences.append(sock)

    async def _attach_writable(self, server: int, unix: str) -> None:
        sock, _, fds = await channel.connect_for_descriptors(
            unix, self._credentials("shm") | {"write": True}, timeout=HELLO_TIMEOUT
        )
        try:
            self.core.server_writable(server, fds)
        finally:
            sock.close()
            for fd in fds:
                os.close(fd)

    async def data_connections(self, server: int) -> DataConnections:
        """The data connections to a server."""
        found = self._data.get(server)
        if found is None:
            about = await self.describe(server)
            fields = self._credentials("data") | {"number": server}
            unix = unix_of(about) if self.transport is None else None
            where = unix or (about["host"], about["port"])
            found = self._data.setdefault(server, DataConnections(self, where, fields))
        return found

    def forget_server(self, server: int) -> None:
        """A data connection failed: it may be back elsewhere."""
        self._described.pop(server, None)
        connections = self._data.pop(server, None)
        if connections is not None:
            connections.close()

    def _drop_data(self) -> None:
        for connections in self._data.values():
            connections.close()
        self._data.clear()

    # -- end ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Fails what waits with ClosedError, takes leave of the namenode and closes what is open.
        Views that are alive keep their memory. May be called twice."""
        if self.closed:
            return
        if self.is_over:
            self.abort()
            return
        self.closed = True
        tasks = [self.reads.close(), self.space.close()]
        try:
            if self.number:
                await self._take_leave()
        finally:
            tasks.append(self.changes.close())
            self._close_rest()
        for task in tasks:
            if task is not None:
                await asyncio.wait([task])

    async def _take_leave(self) -> None:
        future, _ = self.changes.native.call(
            _BYE, 0, None, b"", b"", 0, 0, 0, True, min(BYE_TIMEOUT, self.timeout)
        )
        try:
            await future
        except CrailError:
            pass  # then the namenode learns it from the sockets

    def abort(self) -> None:
        """The end without a word: of a store that nobody closed."""
        if self.closed:
            return
        self.closed = True
        whole = self.is_of_this_process and not self.loop.is_closed()
        for lane in (self.reads, self.changes, self.space):
            if whole:
                lane.close()
            else:
                lane.abandon()
        self._close_rest()

    def _close_rest(self) -> None:
        self._drop_data()
        self.core.close()
        for sock in self._presences:
            sock.close()
        self._presences.clear()


class DataConnections:
    """Connections to one storage server, each used by one transfer at a time."""

    def __init__(
        self, session: AsyncSession, where: tuple[str, int] | str, fields: dict[str, Any]
    ) -> None:
        self._session = session
        self._where = where
        self._fields = fields
        self._free: list[socket.socket] = []
        self._room = asyncio.Semaphore(DATA_CONNECTIONS_MAX)
        self._closed = False

    async def take(self, deadline: float) -> socket.socket:
        """A connection of our own, to be handed to keep() or end(). Raises OSError, also when the
        server does not answer until the deadline."""
        await self._room.acquire()
        try:
            while self._free:
                sock = self._free.pop()
                if sock.fileno() >= 0:
                    return sock
            sock, _ = await channel.connect(
                self._where, self._fields, token=self._session.token,
                timeout=min(HELLO_TIMEOUT, deadline - self._session.loop.time()),
            )  # fmt: skip
        except BaseException:
            self._room.release()
            raise
        return sock

    def keep(self, sock: socket.socket) -> None:
        """It is between two requests."""
        self._room.release()
        if self._closed:
            sock.close()
        else:
            self._free.append(sock)

    def end(self, sock: socket.socket) -> None:
        """It is in the middle of something: with it ends what the server does for us."""
        self._room.release()
        self._session.end_connection(sock)

    def close(self) -> None:
        self._closed = True
        for sock in self._free:
            sock.close()
        self._free.clear()
