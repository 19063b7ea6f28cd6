"""The cold half of a store: it opens what the native core runs on.

A `Session` is this process's registration at a namenode. The core calls it back (through the
`Store`) when it needs a connection of a lane or a storage server within reach; nothing here runs
per operation.
"""

from __future__ import annotations

import os
import socket
import time
from _thread import allocate_lock

from crailpy import hello, native
from crailpy.errors import CrailError, ProtocolError, SessionLostError, UnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

RETRY_FIRST = 0.01  # seconds until the next attempt to reach somebody who is not there; doubles
RETRY_MAX = 0.5
DEFAULT_PORT = 9060
LANES_MAX = 128

# what the core needs of a server (native/src/client/client.h)
NEED_SERVER = 1
NEED_WRITABLE = 2

#: Errors of connect(2) that say that nobody can be reached there at the moment.
_ABSENT = (ConnectionError, FileNotFoundError, TimeoutError, BlockingIOError)


class Address:
    """`crail://host:port[,host:port]` or `crail+unix:///path`, taken apart.

    Raises ValueError for anything else."""

    __slots__ = ("hosts", "text", "unix")

    def __init__(self, text: str) -> None:
        self.text = text
        self.unix: str | None = None
        self.hosts: list[tuple[str, int]] = []
        if text.startswith("crail+unix://"):
            self.unix = text[len("crail+unix://") :]
            if not self.unix.startswith("/"):
                raise ValueError(f"{text!r}: crail+unix:// takes an absolute path")
            return
        if not text.startswith("crail://"):
            raise ValueError(f"{text!r} is no address: crail://host:port or crail+unix:///path")
        for part in text[len("crail://") :].rstrip("/").split(","):
            host, _, port = part.rpartition(":")
            if not host:
                host, port = part, str(DEFAULT_PORT)
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"{text!r}: {part!r} is not host:port")
            self.hosts.append((host.strip("[]"), int(port)))


class Session:
    """One process's session: dials, says hello, hands descriptors to the core."""

    def __init__(
        self, address: Address, *, token: str | None, transport: str | None, timeout: float
    ) -> None:
        self.address = address
        self.token = token
        self.transport = transport
        self.core = native.ClientHandle(lanes_max=LANES_MAX)
        self.number = 0
        self.cluster = ""
        self._key = b""
        self._lane_sessions: dict[int, int] = {}
        self._lock = allocate_lock()
        self._unix: str | None = address.unix
        self._presences: list[socket.socket] = []
        self._described: dict[int, dict[str, Any]] = {}
        self._established = False

    # -- reaching somebody -------------------------------------------------

    def _retry(self, deadline: float, what: str, attempt: Callable[[], Any]) -> Any:
        """Calls `attempt` until it does not fail for the peer's absence, or until the deadline.

        A store that was never reached fails at once: then the address is the likelier cause."""
        pause = RETRY_FIRST
        while True:
            try:
                return attempt()
            except CrailError:
                raise  # an answer, not an absence
            except _ABSENT as error:
                left = deadline - time.monotonic()
                if not self._established or left <= pause:
                    raise UnavailableError(
                        f"cannot reach {what}: {error}",
                        server=what,
                        hint="is it running there? `crailpy up` starts a store on this machine",
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, RETRY_MAX)

    def _dial(self, deadline: float, *, no_unix: bool) -> socket.socket:
        timeout = max(0.001, deadline - time.monotonic())
        if self._unix and not no_unix:
            return hello.connect_unix(self._unix, timeout)
        error: OSError | None = None
        for host, port in self.address.hosts:
            try:
                return hello.connect_tcp(host, port, timeout)
            except OSError as e:
                error = e
        raise ConnectionError(str(error)) from error

    def _say(self, sock: socket.socket, deadline: float, fields: dict[str, Any]) -> dict[str, Any]:
        """One hello; closes the socket unless it is accepted."""
        try:
            return hello.exchange(sock, fields, token=self.token, deadline=deadline)
        except BaseException:
            sock.close()
            raise

    # -- lanes ---------------------------------------------------------------

    def open_lane(self, number: int, mutating: bool, attempt: int, deadline: float) -> None:
        """Gives lane `number` of the core a new connection.

        `mutating`: a request that changes something may have been executed on the old one; then a
        session that is gone means that nobody can say whether it was (UnavailableError).
        """
        if attempt > 2:  # it is answering, and closing again: do not spin
            time.sleep(min(0.05 * attempt, max(0.0, deadline - time.monotonic()), RETRY_MAX))
        with self._lock:
            old = self._lane_sessions.get(number)
            sock = self._retry(
                deadline,
                self.address.text,
                lambda: self._open_lane_once(number, old, mutating, deadline),
            )
            fresh = old != self.number
            self._lane_sessions[number] = self.number
            self._established = True
        self.core.lane_add(number, sock.detach(), fresh)

    def _open_lane_once(
        self, number: int, old: int | None, mutating: bool, deadline: float
    ) -> socket.socket:
        no_unix = self.transport not in (None, "shm") and self.address.unix is None
        for _ in range(4):  # a redirect, a session that is gone, a socket that is not there
            if mutating and old is not None and old != self.number:
                raise _outcome_unknown(self.address.text)
            fields = {"role": "lane", "lane": number, "host": hello.host_identity()}
            if no_unix:
                fields["no_unix"] = True
            if self.number:
                fields |= {"session": self.number, "session_key": self._key}
            try:
                sock = self._dial(deadline, no_unix=no_unix)
            except OSError:
                if self._unix and self.address.hosts and not no_unix:
                    no_unix = True
                    continue
                raise
            try:
                reply = self._say(sock, deadline, fields)
            except SessionLostError:
                if mutating:
                    raise _outcome_unknown(self.address.text) from None
                self._forget()
                continue
            if "redirect" in reply:
                sock.close()
                self._unix = reply["redirect"]
                continue
            self.number, self._key = reply["session"], reply["session_key"]
            self.cluster = reply.get("cluster", "")
            return sock
        raise UnavailableError(f"no session to be had at {self.address.text}")

    def _forget(self) -> None:
        self.number, self._key = 0, b""

    # -- storage servers ----------------------------------------------------

    def attach(
        self, server: int, lane: int, need: int, deadline: float, describe: Callable[[int], bytes]
    ) -> None:
        """Brings a storage server within reach of the core: shared memory, else TCP.

        `describe` fetches the description its registration left at the namenode.
        Raises UnavailableError, DeadlineError, DataLostError."""
        pause = RETRY_FIRST
        while True:
            try:
                self._attach_once(server, lane, need, deadline, describe)
                return
            except CrailError:
                raise
            except _ABSENT as error:
                self._described.pop(server, None)  # it may be back elsewhere
                if deadline - time.monotonic() <= pause:
                    raise UnavailableError(
                        f"cannot reach storage server {server}: {error}",
                        server=str(server),
                        hint="`crailpy status` lists the servers and whether they are up",
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, RETRY_MAX)

    def _attach_once(
        self, server: int, lane: int, need: int, deadline: float, describe: Callable[[int], bytes]
    ) -> None:
        about = self._described.get(server)
        if about is None:
            about = self._described[server] = hello.unpack(describe(server))
        unix: str = about.get("unix") or ""
        shares = unix and about.get("host_identity") == hello.host_identity()
        if shares and self.transport in (None, "shm"):
            with self._lock:
                if need == NEED_SERVER and not self.core.has_server(server):
                    self._attach_shm(server, unix, deadline)
                elif need == NEED_WRITABLE and not self.core.is_writable(server):
                    self._attach_writable(server, unix, deadline)
            return
        if self.transport == "shm":
            raise UnavailableError(
                f"storage server {server} is not on this host",
                server=str(server),
                hint="transport='shm' was asked for; leave it out to use TCP",
            )
        timeout = max(0.001, deadline - time.monotonic())
        sock = hello.connect_tcp(about["host"], about["port"], timeout)
        self._say(sock, deadline, self._credentials("data") | {"number": server})
        self.core.server_tcp(server, lane, sock.detach())

    def _credentials(self, role: str) -> dict[str, Any]:
        return {"role": role, "session": self.number, "session_key": self._key}

    def _attach_shm(self, server: int, unix: str, deadline: float) -> None:
        sock, reply, fds = self._receive_descriptors(unix, deadline, write=False)
        try:
            granules = reply["regions"]
            n = len(granules)
            if len(fds) != 2 * n + 1:
                raise ProtocolError(f"storage server {server} sent {len(fds)} descriptors")
            # per region memory, generations; last the use table
            self.core.server_shm(server, fds[0 : 2 * n : 2], fds[1 : 2 * n : 2], granules, fds[-1])
        except BaseException:
            sock.close()
            raise
        finally:
            for fd in fds:
                os.close(fd)
        self._presences.append(sock)

    def _attach_writable(self, server: int, unix: str, deadline: float) -> None:
        sock, _, fds = self._receive_descriptors(unix, deadline, write=True)
        try:
            self.core.server_writable(server, fds)
        finally:
            sock.close()
            for fd in fds:
                os.close(fd)

    def _receive_descriptors(
        self, unix: str, deadline: float, *, write: bool
    ) -> tuple[socket.socket, dict[str, Any], list[int]]:
        sock = hello.connect_unix(unix, max(0.001, deadline - time.monotonic()))
        try:
            reply, fds = hello.exchange_with_descriptors(
                sock, self._credentials("shm") | {"write": write}, deadline=deadline
            )
        except BaseException:
            sock.close()
            raise
        return sock, reply, fds

    # -- administration, end ---------------------------------------------------

    def admin(self, method: str, params: dict[str, Any], deadline: float) -> Any:
        """One question to the namenode's control plane, on a connection of its own."""
        sock = self._retry(deadline, self.address.text, lambda: self._dial(deadline, no_unix=False))
        fields = {"role": "admin", "method": method, "params": params}
        try:
            return self._say(sock, deadline, fields)["result"]
        finally:
            sock.close()

    def close(self) -> None:
        """Closes what is open. Views that are alive keep their memory, and through the lock on the
        use table their pins."""
        self.core.close()
        for sock in self._presences:
            sock.close()
        self._presences.clear()

    def abandon(self) -> None:
        """In a forked child: what the parent opened stays open here and is never used."""
        for sock in self._presences:
            sock.detach()
        self._presences.clear()


def _outcome_unknown(where: str) -> UnavailableError:
    return UnavailableError(
        f"outcome unknown: the connection to {where} was lost while a change was on its way, and"
        " the namenode no longer knows this session",
        hint="look whether the change was made before you repeat it",
    )
