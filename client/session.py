"""The cold half of a store: it opens what the native core runs on.

A `Session` is this process's registration at a namenode. The core calls it back (through the
`Store`) when it needs a connection of a lane or a storage server within reach; nothing here runs
per operation.
"""

from __future__ import annotations

import os
import socket
import time
from _thread import LockType, allocate_lock

from crailpy import hello, native
from crailpy.errors import (
    CrailError,
    DeadlineError,
    SessionLostError,
    UnavailableError,
)
from crailpy.model import MAPPED_TIERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from crailpy.errors import OutOfSpaceError

    Describe = Callable[[int, float], bytes]  # (server, timeout in seconds)

RETRY_FIRST = 0.005  # seconds until the next attempt to reach somebody who is not there; doubles
RETRY_MAX = 0.5
DEFAULT_PORT = 9060
LANES_MAX = 128
PRESENCE_LANE = 4095  # of the namenode's; none of the core's
LOCK_MAX = 86400.0 * 365  # what a lock can wait

# what the core needs of a server (native/src/client/client.h)
NEED_SERVER = 1
NEED_WRITABLE = 2

#: Somebody was there, and went: as a namenode that is started again.
CUT = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
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


class _Held:
    """A lock held for a `with` block. Raises DeadlineError, also for a signal handler that
    interrupted the holder."""

    __slots__ = ("_deadline", "_lock")

    def __init__(self, lock: LockType, deadline: float) -> None:
        self._lock = lock
        self._deadline = deadline

    def __enter__(self) -> None:
        left = min(self._deadline - time.monotonic(), LOCK_MAX)
        if not self._lock.acquire(timeout=max(0.0, left)):
            raise DeadlineError("another call of this store is still connecting")

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


class Session:
    """One process's session: dials, says hello, hands descriptors to the core."""

    def __init__(
        self,
        address: Address,
        *,
        token: str | None,
        transport: str | None,
        timeout: float,
        ring: bool = True,
    ) -> None:
        self.address = address
        self.token = token
        self.transport = transport
        self.ring = ring
        self.core = native.ClientHandle(lanes_max=LANES_MAX)
        self.number = 0
        self.cluster = ""
        self.durability = "none"  # of what lies with the namenode
        self._key = b""
        self._lane_sessions: dict[int, int] = {}
        self._lock = allocate_lock()
        self._describe_lock = allocate_lock()
        self._unix: str | None = address.unix
        self._presences: list[socket.socket] = []
        self._described: dict[int, dict[str, Any]] = {}
        self._is_known = False  # has anybody ever been there?
        self._closed = False
        self._staying = 0  # the session that has a connection for this

    @property
    def shares_host(self) -> bool:
        """Does it reach the namenode as one on the same host?"""
        return self.transport != "tcp" and self._unix is not None

    # -- reaching somebody -------------------------------------------------

    def _retry(self, deadline: float, what: str, attempt: Callable[[], Any]) -> Any:
        """Calls `attempt` until it does not fail for the peer's absence, or until the deadline.

        A store that was never reached fails at once if nobody listens: then the address is the
        likelier cause."""
        pause = RETRY_FIRST
        while True:
            try:
                return attempt()
            except CrailError:
                raise  # an answer, not an absence
            except _ABSENT as error:
                left = deadline - time.monotonic()
                self._is_known |= isinstance(error, CUT)
                if not self._is_known or left <= pause:
                    raise UnavailableError(
                        f"cannot reach {what}: {error}",
                        hint="is it running there? `crailpy up` starts a store on this machine",
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, RETRY_MAX)

    def _dial(self, deadline: float, *, no_unix: bool) -> socket.socket:
        timeout = max(0.001, deadline - time.monotonic())
        if self._unix and not no_unix:
            return hello.connect_unix(self._unix, timeout)
        why = ""  # not the error: that would hold this frame, and with it the caller's views
        for host, port in self.address.hosts:
            try:
                return hello.connect_tcp(host, port, timeout)
            except OSError as error:
                why = str(error)
        raise ConnectionError(why)

    def _say(self, sock: socket.socket, deadline: float, fields: dict[str, Any]) -> dict[str, Any]:
        """One hello; closes the socket unless it is accepted."""
        try:
            return hello.exchange(sock, fields, token=self.token, deadline=deadline)
        except BaseException:
            sock.close()
            raise

    def _say_for_descriptors(
        self, sock: socket.socket, deadline: float, fields: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int]]:
        """The same on a unix socket, for a reply that may bring descriptors."""
        try:
            return hello.exchange_with_descriptors(
                sock, fields, token=self.token, deadline=deadline
            )
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
        old = self._lane_sessions.get(number)
        sock, session, ring = self._retry(
            deadline,
            self.address.text,
            lambda: self._open_lane_once(number, old, mutating, deadline, ring=self.ring),
        )
        self._lane_sessions[number] = session
        self._is_known = True
        try:
            self.core.lane_add(number, sock.detach(), old != session, ring or None)
        finally:
            hello.close_all(ring)
        self.core.promise(self.durability == "sync")

    def stay(self) -> None:
        """A connection broke that may have been the only one, and who computes for an hour opens no
        other: so that the namenode, on this machine, does not take us for dead, one is opened that
        is never used. It waits for nothing, for its caller is being interrupted, and raises
        nothing; a namenode elsewhere gives us the time until the next call."""
        session = self.number
        if self._closed or not session or not self._unix or session == self._staying:
            return
        fields = {"role": "lane", "lane": PRESENCE_LANE, "host": hello.host_identity()}
        try:
            fields |= {"session": session, "session_key": self._key}
            sock = hello.leave_word(self._unix, fields, self.token)
        except (OSError, CrailError, KeyError):
            return
        self._staying = session
        self._presences.append(sock)
        if self._closed:  # by another thread, meanwhile
            sock.close()

    def connect_lane(self, number: int, deadline: float) -> socket.socket:
        """A connection of lane `number` whose hello is done, for a caller that speaks wire.h
        itself: the core does not get it. Raises what `connect` raises, and OSError."""
        return self._open_lane_once(number, None, False, deadline, ring=False)[0]

    def _locked(self, deadline: float) -> _Held:
        return _Held(self._lock, deadline)

    def _describing(self, deadline: float) -> _Held:
        return _Held(self._describe_lock, deadline)

    def _open_lane_once(
        self, number: int, old: int | None, mutating: bool, deadline: float, *, ring: bool
    ) -> tuple[socket.socket, int, list[int]]:
        """A connection of the lane, the session that it belongs to, and the descriptors of its
        ring: none where it is not asked for or not to be had."""
        no_unix = self.transport not in (None, "shm") and self.address.unix is None
        for _ in range(4):  # a redirect, a session that is gone, a socket that is not there
            session = self.number
            if mutating and old is not None and old != session:
                raise outcome_unknown(self.address.text)
            try:
                if session:
                    found = self._say_lane(number, session, no_unix, ring, deadline)
                else:
                    with self._locked(deadline):  # one caller opens the session for all
                        found = self._say_lane(number, self.number, no_unix, ring, deadline)
            except SessionLostError:
                if mutating:
                    raise outcome_unknown(self.address.text) from None
                with self._locked(deadline):
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
                return found
        raise UnavailableError(f"no session to be had at {self.address.text}")

    def _say_lane(
        self, number: int, session: int, no_unix: bool, ring: bool, deadline: float
    ) -> tuple[socket.socket, int, list[int]] | None:
        """One hello of a lane; None after a redirect. `session` 0 opens one: under the lock."""
        fields = {"role": "lane", "lane": number, "host": hello.host_identity()}
        if no_unix:
            fields["no_unix"] = True
        if session:
            fields |= {"session": session, "session_key": self._key}
        sock = self._dial(deadline, no_unix=no_unix)
        fds: list[int] = []
        if ring and sock.family == socket.AF_UNIX:
            reply, fds = self._say_for_descriptors(sock, deadline, fields | {"ring": True})
        else:
            reply = self._say(sock, deadline, fields)
        if "redirect" in reply:
            sock.close()
            self._unix = reply["redirect"]
            self._is_known = True
            return None
        self.durability = reply.get("durability", "none")
        if not session:
            self._enter_cluster(reply.get("cluster", ""))
            self._key = reply["session_key"]
            self.number = reply["session"]
        return sock, reply["session"], fds

    def _enter_cluster(self, cluster: str) -> None:
        """A namenode that was started anew counts its servers anew: what we know by their numbers
        is of another life."""
        if self.cluster and self.cluster != cluster:
            self.core.forget_servers()
            self._described.clear()
        self.cluster = cluster

    # -- storage servers ----------------------------------------------------

    def attach(
        self, server: int, lane: int, need: int, deadline: float, describe: Describe
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
                    raise server_away(server, error) from error
            time.sleep(pause)
            pause = min(pause * 2, RETRY_MAX)

    def _attach_once(
        self, server: int, lane: int, need: int, deadline: float, describe: Describe
    ) -> None:
        about = self._described.get(server)
        if about is None:
            with self._describing(deadline):  # one caller asks, on the one lane kept for that
                about = self._described.get(server)
                if about is None:
                    left = max(0.0, deadline - time.monotonic())
                    about = self._described[server] = hello.unpack(describe(server, left))
        unix = unix_of(about)
        if unix and about["tier"] in MAPPED_TIERS and self.transport in (None, "shm"):
            with self._locked(deadline):
                if need == NEED_SERVER and not self.core.has_server(server):
                    self._attach_shm(server, unix, deadline)
                elif need == NEED_WRITABLE and not self.core.is_writable(server):
                    self._attach_writable(server, unix, deadline)
            return
        if self.transport == "shm":
            raise no_shared_memory(server, unix)
        timeout = max(0.001, deadline - time.monotonic())
        if unix and self.transport is None:
            sock = hello.connect_unix(unix, timeout)
        else:
            sock = hello.connect_tcp(about["host"], about["port"], timeout)
        self._say(sock, deadline, self._credentials("data") | {"number": server})
        self.core.server_tcp(server, lane, sock.detach(), about["tier"] not in MAPPED_TIERS)

    def _credentials(self, role: str) -> dict[str, Any]:
        return {"role": role, "session": self.number, "session_key": self._key}

    def _attach_shm(self, server: int, unix: str, deadline: float) -> None:
        sock, reply, fds = self._receive_descriptors(unix, deadline, write=False)
        try:
            self.core.server_shm(server, reply["regions"], fds)
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
        fields = self._credentials("shm") | {"write": write}
        return sock, *self._say_for_descriptors(sock, deadline, fields)

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
        self._closed = True
        self.core.close()
        for sock in self._presences:
            sock.close()
        self._presences.clear()

    def abandon(self) -> None:
        """In a forked child: what the parent opened stays open here and is never used."""
        for sock in self._presences:
            sock.detach()
        self._presences.clear()


def unix_of(about: dict[str, Any]) -> str | None:
    """The unix socket of a storage server, if we can reach it."""
    unix: str | None = about.get("unix")
    return unix if unix and about.get("host_identity") == hello.host_identity() else None


def no_shared_memory(server: int, unix: str | None) -> UnavailableError:
    """transport="shm" was asked for, and is not to be had."""
    why = "has its blocks on a disk" if unix else "is not on this host"
    return UnavailableError(
        f"storage server {server} {why}",
        server=str(server),
        hint="transport='shm' was asked for; leave it out to use a connection",
    )


def server_away(server: int, why: BaseException) -> CrailError:
    """A storage server is not there, or it does not answer in time."""
    hint = "`crailpy status` lists the servers and whether they are up"
    if isinstance(why, TimeoutError):
        return DeadlineError("no answer in time", server=str(server), hint=hint)
    return UnavailableError(
        f"cannot reach storage server {server}: {why}", server=str(server), hint=hint
    )


def explain_space(error: OutOfSpaceError, facts: dict[str, Any]) -> None:
    """There may be another reason than full servers: none, as just after a namenode's start.
    `facts`: the namenode's `status`."""
    if facts and not any(server["state"] == "up" for server in facts["servers"]):
        error.retell("no storage server is there (yet)")
        error.hint = "crailpy status shows them, crailpy storage starts one"


def explain_deadline(error: DeadlineError, facts: dict[str, Any]) -> None:
    """Changes wait while the namenode cannot keep them. `facts`: its `status`."""
    failure = (facts.get("state") or {}).get("failure")
    if failure:
        error.retell(f"the deadline has passed: the namenode cannot keep changes: {failure}")
        error.hint = "all goes on by itself as soon as it can"


def outcome_unknown(where: str) -> UnavailableError:
    return UnavailableError(
        f"outcome unknown: the connection to {where} was lost while a change was on its way, and"
        " the namenode no longer knows this session",
        hint="look whether the change was made before you repeat it",
    )
