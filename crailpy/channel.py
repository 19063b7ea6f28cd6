"""The hello and the control messages on asyncio: raw sockets, exact lengths. For services.

Imported by the servers only: the synchronous client must not load asyncio.
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
    """Dials (host, port) or the path of a unix socket and says hello as a service.

    Raises OSError when the peer is absent, and what it answers with."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout):
        if isinstance(hosts, str):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            where: Any = hosts
        else:
            found = await loop.getaddrinfo(*hosts, type=socket.SOCK_STREAM)
            sock = socket.socket(found[0][0], socket.SOCK_STREAM)
            where = found[0][4]
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, where)
            if not isinstance(hosts, str):
                hello.tune_tcp(sock)
            request = {"version": hello.VERSION, **fields}
            await send(sock, request)
            reply = await receive(sock)
            if "challenge" in reply:
                answer = hello.answer(reply, token, request["role"])
                await send(sock, request | {"proof": answer})
                reply = await receive(sock)
            hello.raise_error(reply)
        except BaseException:
            sock.close()
            raise
    return sock, reply


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
            handler = self._handlers.get(message["m"])
            if handler is None:
                raise ProtocolError(f"unknown method {message['m']!r}")
            reply["ok"] = await handler(message)
        except CrailError as error:
            reply |= hello.error_reply(error)
        await self._send(reply)

    def _settle(self, reply: dict[str, Any]) -> None:
        future = self._waiting.get(reply.get("id", 0))
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
