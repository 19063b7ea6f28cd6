"""The door of a service: listens, hears the hello, and hands each visitor to the handler of its
role.

A visitor has `hello_timeout` seconds from the accept until it was answered; at most VISITORS_MAX
are in the door of a listener at once, further ones wait in the kernel's backlog.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from crailpy import channel, hello
from crailpy.errors import AuthError, CrailError, ProtocolError

from . import peers, ports

log = logging.getLogger("crailpy.reception")

VISITORS_MAX = 512
BACKLOG = 1024
ACCEPT_PAUSE = 0.05  # seconds, when descriptors have run out
REFUSAL_TIMEOUT = 0.2  # seconds, to be rid of the words why


class Visit:
    """A connection whose hello was heard. The handler answers once with reply() and then keeps the
    socket, or takes its descriptor."""

    def __init__(
        self, sock: socket.socket, request: dict[str, Any], *, unix: bool, limit: asyncio.Timeout
    ) -> None:
        self.sock = sock
        self.request = request
        self.unix = unix
        self.answered = False
        self._limit = limit

    async def reply(self, fields: dict[str, Any]) -> None:
        """Sends the reply; from here on there is no time limit."""
        self.answered = True
        await channel.send(self.sock, fields)
        self._limit.reschedule(None)

    async def reply_with_descriptors(self, fields: dict[str, Any], fds: list[int]) -> None:
        """Sends the reply with descriptors beside it; they stay the caller's."""
        self.answered = True
        message = hello.pack(fields)
        # The socket is new and the message small: the kernel takes the first part at once.
        sent = socket.send_fds(self.sock, [message], fds)
        await asyncio.get_running_loop().sock_sendall(self.sock, message[sent:])
        self._limit.reschedule(None)

    def take(self) -> int:
        """The descriptor, to hand to C; the visit is over."""
        return channel.take_descriptor(self.sock)

    async def gone(self) -> None:
        """Returns when the visitor has closed its end."""
        loop = asyncio.get_running_loop()
        try:
            while await loop.sock_recv(self.sock, 4096):
                pass
        except OSError:
            pass

    def number(self, name: str, bits: int) -> int:
        """A field that is an unsigned number of so many bits. Raises ProtocolError."""
        value = self.request.get(name)
        if type(value) is not int or not 0 <= value < 1 << bits:
            raise ProtocolError(f"{self.request.get('role')}: {name} is {value!r}")
        return value


Handler = Callable[[Visit], Awaitable[None]]


class Reception:
    """Listens on any number of sockets for the roles given.

    With a `token`, every visitor has to prove that it knows it, whatever its role. Unix sockets
    are open to our own user and root only; so is TCP with `own_user`, which is for loopback."""

    def __init__(
        self,
        roles: dict[str, Handler],
        *,
        token: str | None,
        hello_timeout: float,
        own_user: bool = False,
    ) -> None:
        self._roles = roles
        self._token = token
        self._hello_timeout = hello_timeout
        self._own_user = own_user
        self._listeners: list[tuple[socket.socket, asyncio.Task[None]]] = []
        self._visits: set[asyncio.Task[None]] = set()
        self._paths: list[str] = []

    def listen_tcp(self, host: str, port: int) -> int:
        """Listens on host and port (0: any free one); returns the port. Raises OSError."""
        sock: socket.socket | None = None
        try:
            sock = ports.bound(host, port)
            self._listen(sock, unix=False)
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno == errno.EADDRINUSE:
                raise OSError(
                    error.errno, f"port {port} of {host} is taken: is one running already?"
                ) from None
            raise
        return int(sock.getsockname()[1])

    def listen_unix(self, path: str) -> None:
        """Listens on a unix socket; what lies there from an earlier life is replaced. The folder
        must be closed to others (private_folder). Raises OSError."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(path)
            os.chmod(path, 0o600)
            self._listen(sock, unix=True)
        except BaseException:
            sock.close()
            raise
        self._paths.append(path)

    def _listen(self, sock: socket.socket, *, unix: bool) -> None:
        sock.listen(BACKLOG)
        sock.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._accept(sock, unix))
        self._listeners.append((sock, task))

    async def _accept(self, listener: socket.socket, unix: bool) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(VISITORS_MAX)  # of this listener: the others stay open
        while True:
            await room.acquire()
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the visitor has gone already
                room.release()
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("cannot accept: %s: raise `ulimit -n`", error)
                    await asyncio.sleep(ACCEPT_PAUSE)
                continue
            except BaseException:
                room.release()
                raise
            task = loop.create_task(self._receive(sock, unix, room))
            self._visits.add(task)
            task.add_done_callback(self._visits.discard)

    async def _receive(self, sock: socket.socket, unix: bool, room: asyncio.Semaphore) -> None:
        """One visitor, from the accept to the end of its handler."""
        visit: Visit | None = None
        in_the_door = True

        def leave_the_door() -> None:
            nonlocal in_the_door
            if in_the_door:
                in_the_door = False
                room.release()

        try:
            async with asyncio.timeout(self._hello_timeout) as limit:
                sock.setblocking(False)
                if unix:
                    channel.check_peer(sock)
                else:
                    hello.tune_tcp(sock)
                    if self._own_user:
                        peers.check_owner(sock)
                visit = Visit(sock, await self._hear(sock), unix=unix, limit=limit)
                role = visit.request.get("role")
                handler = self._roles.get(role) if isinstance(role, str) else None
                if handler is None:
                    raise ProtocolError(
                        f"role {role!r} is not served here", hint=f"here: {', '.join(self._roles)}"
                    )
                leave_the_door()
                await handler(visit)
        except TimeoutError:
            log.info("a visitor did not finish its hello in time")
        except (OSError, CrailError) as error:
            leave_the_door()
            if isinstance(error, CrailError) and not (visit and visit.answered):
                await self._refuse(sock, error)
        except Exception as error:
            log.exception("a visit failed")
            leave_the_door()
            if not (visit and visit.answered):
                await self._refuse(sock, error)
        finally:
            leave_the_door()
            sock.close()

    async def _refuse(self, sock: socket.socket, error: BaseException) -> None:
        if sock.fileno() < 0:
            return
        try:
            async with asyncio.timeout(REFUSAL_TIMEOUT):
                await channel.send(sock, hello.error_reply(error))
        except (OSError, TimeoutError):
            pass

    async def _hear(self, sock: socket.socket) -> dict[str, Any]:
        """The hello, proven if there is a token. Raises AuthError, ProtocolError, OSError."""
        request = await channel.receive(sock)
        if request.get("version") != hello.VERSION:
            raise ProtocolError(
                f"version {request.get('version')!r} of the protocol is not {hello.VERSION}",
                hint="install the same crailpy at both ends",
            )
        if self._token is None:
            return request
        nonce = os.urandom(16)
        await channel.send(sock, {"challenge": nonce})
        role = request.get("role")
        request = await channel.receive(sock)
        given = request.get("proof")
        wanted = hello.proof(self._token, nonce, str(role))
        if (
            request.get("role") != role
            or not isinstance(given, bytes)
            or not hmac.compare_digest(given, wanted)
        ):
            raise AuthError("the token is wrong", hint="set token= or $CRAILPY_TOKEN")
        return request

    async def close(self) -> None:
        """Stops listening and ends all visits. May be called twice."""
        tasks = [task for _, task in self._listeners] + list(self._visits)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock, _ in self._listeners:
            sock.close()
        self._listeners.clear()
        for path in self._paths:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self._paths.clear()


def check_exposure(host: str, token: str | None, insecure: bool) -> None:
    """Raises AuthError for a service that would be open to the network without a token."""
    if token or insecure:
        return
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return  # listening will say what is wrong
    if all(str(where[0]).startswith("127.") or where[0] == "::1" for *_, where in found):
        return
    raise AuthError(
        f"{host} can be reached from the network, and there is no token",
        hint="give --token or $CRAILPY_TOKEN; or --insecure, which lets everybody who can connect"
        " read and change everything",
    )
