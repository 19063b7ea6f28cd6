"""The hello and the control messages on asyncio: raw sockets, exact lengths.

For the services and the asynchronous client: the synchronous one must not load asyncio.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from crailpy import hello
from crailpy.errors import AuthError, CrailError, ProtocolError, UnavailableError

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


async def receive(sock: socket.socket) -> dict[str, Any]:
    """One message and not a byte more. Raises ConnectionError at the end, ProtocolError."""
    head = await _receive_exact(sock, hello.HEAD_BYTES)
    return hello.unpack(await _receive_exact(sock, hello.size_of(head)))


async def _receive_exact(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    parts = b""
    while len(parts) < size:
        part = await loop.sock_recv(sock, size - len(parts))
        if not part:
            raise ConnectionResetError("the connection was closed")
        parts += part
    return parts


async def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """Sends one message. Raises ConnectionError, ProtocolError."""
    await asyncio.get_running_loop().sock_sendall(sock, hello.pack(message))


def take_descriptor(sock: socket.socket) -> int:
    """The descriptor of a socket that asyncio has nothing left to do with, to hand to C."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(sock.fileno())
    loop.remove_writer(sock.fileno())
    return sock.detach()


def close(sock: socket.socket, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Closes a socket that the loop may still be watching for somebody who was cancelled: the
    number of its descriptor may be another's before the loop gets to forget it."""
    loop = loop or asyncio.get_running_loop()
    if sock.fileno() >= 0 and not loop.is_closed():
        loop.remove_reader(sock.fileno())
        loop.remove_writer(sock.fileno())
    sock.close()


def check_peer(sock: socket.socket) -> None:
    """Raises AuthError unless the process at the other end of a unix socket is ours or root's."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid not in (0, os.getuid()):
        raise AuthError(f"this store belongs to user {os.getuid()}, you are user {uid}")


async def connect(
    hosts: tuple[str, int] | str,
    fields: dict[str, Any],
    *,
    token: str | None,
    timeout: float,
) -> tuple[socket.socket, dict[str, Any]]:
    """Dials (host, port) or the path of a unix socket and says hello.

    Raises OSError when the peer is absent, and what it answers with."""
    async with asyncio.timeout(timeout):
        sock = await _dial(hosts)
        try:
            request = {"version": hello.VERSION, **fields}
            await send(sock, request)
            reply = await receive(sock)
            if "challenge" in reply:
                answer = hello.answer(reply, token, request["role"])
                await send(sock, request | {"proof": answer})
                reply = await receive(sock)
            hello.raise_error(reply)
        except BaseException:
            close(sock)
            raise
    return sock, reply


async def _dial(hosts: tuple[str, int] | str) -> socket.socket:
    loop = asyncio.get_running_loop()
    where: Any = hosts
    if isinstance(hosts, str):
        hello.check_unix(hosts)
        family: int = socket.AF_UNIX
    else:
        family, where = await _resolve(*hosts)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
        if family != socket.AF_UNIX:
            hello.tune_tcp(sock)
    except BaseException:
        close(sock)
        raise
    return sock


async def _resolve(host: str, port: int) -> tuple[int, Any]:
    """Family and address. A numeric one needs no resolver, which would be a thread."""
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]


async def connect_for_descriptors(
    path: str, fields: dict[str, Any], *, timeout: float
) -> tuple[socket.socket, dict[str, Any], list[int]]:
    """Like connect() to a unix socket, for a reply that brings descriptors; they are the caller's
    to close. None is open when it raises."""
    async with asyncio.timeout(timeout):
        sock = await _dial(path)
        fds: list[int] = []
        try:
            await send(sock, {"version": hello.VERSION, **fields})
            await _readable(sock)
            head, fds, flags, _ = socket.recv_fds(sock, hello.HEAD_BYTES, hello.DESCRIPTORS_MAX)
            if not head:
                raise ConnectionResetError("the connection was closed during the hello")
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("descriptors were lost on the way", hint="raise `ulimit -n`")
            head += await _receive_exact(sock, hello.HEAD_BYTES - len(head))
            reply = hello.unpack(await _receive_exact(sock, hello.size_of(head)))
            hello.raise_error(reply)
            for fd in fds:
                os.set_inheritable(fd, False)
        except BaseException:
            close(sock)
            for fd in fds:
                os.close(fd)
            raise
    return sock, reply, fds


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock.fileno(), _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Channel:
    """A control connection after its hello: both ends may call, and answer, at any time.

    `handlers` has a coroutine function per method that the other side may call; what it returns is
    the answer. run() serves until the connection ends and must be awaited by its owner."""

    def __init__(self, sock: socket.socket, handlers: dict[str, Handler]) -> None:
        self._sock = sock
        self._handlers = handlers
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._sending = asyncio.Lock()
        self._closed = False

    async def call(self, method: str, fields: dict[str, Any], *, timeout: float) -> Any:
        """Asks the other side. Raises UnavailableError when the connection ends, TimeoutError, and
        what the other side answers with."""
        if self._closed:
            raise UnavailableError("the control connection is closed")
        self._last += 1
        number = self._last
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._send({**fields, "m": method, "id": number})
                return await future
        finally:
            del self._waiting[number]

    async def run(self) -> None:
        """Serves until the connection ends, and then closes it. Raises ProtocolError."""
        try:
            while True:
                message = await receive(self._sock)
                if "m" in message:
                    await self._answer(message)
                else:
                    self._settle(message)
        except OSError:
            pass  # the end
        finally:
            self.close()
            self._sock.close()

    async def _answer(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"id": message.get("id")}
        try:
            method = message["m"]
            handler = self._handlers.get(method) if isinstance(method, str) else None
            if handler is None:
                raise ProtocolError(f"unknown method {method!r}")
            reply["ok"] = await handler(message)
        except CrailError as error:
            reply |= hello.error_reply(error)
        await self._send(reply)

    def _settle(self, reply: dict[str, Any]) -> None:
        number = reply.get("id")
        future = self._waiting.get(number) if isinstance(number, int) else None
        if future is None or future.done():
            return  # its caller has given up
        try:
            hello.raise_error(reply)
        except CrailError as error:
            future.set_exception(error)
        else:
            future.set_result(reply.get("ok"))

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._sending:
            await send(self._sock, message)

    def close(self) -> None:
        """Ends the connection, so that run() returns. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(UnavailableError("the control connection was lost"))
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
