"""The hello: what both ends of every connection say before anything else (docs/PROTOCOL.md).

`"CRAILPY1"`, a little-endian u32 length, a msgpack map. The upper half of this file has no I/O; the
lower half is what a blocking client needs. The asyncio side is in crailpy.channel.

Each side reads by exact length and the client waits for the whole reply, so that the descriptor can
go to C without a byte left in a Python buffer.
"""

from __future__ import annotations

import os
import socket
import time

import msgpack

from crailpy.errors import AuthError, CrailError, InvalidArgumentError, ProtocolError, from_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "HEAD_BYTES",
    "VERSION",
    "close_all",
    "connect_tcp",
    "connect_unix",
    "error_reply",
    "exchange",
    "exchange_with_descriptors",
    "host_identity",
    "pack",
    "proof",
    "raise_error",
    "receive",
    "send",
    "session_key",
    "size_of",
    "unpack",
]

VERSION = 1
MAGIC = b"CRAILPY1"
HEAD_BYTES = len(MAGIC) + 4
MESSAGE_BYTES_MAX = 65536
WORDS_MAX = 2000  # characters of a refusal's message, and of its hint
DESCRIPTORS_MAX = 253  # of one message: SCM_MAX_FD of Linux

TCP_DEAD_MS = 30_000  # sent and not acknowledged for so long: the peer is gone
TCP_IDLE_S = 10  # quiet for so long: ask the peer's kernel


# ---- bytes, no I/O -------------------------------------------------------------------------------

MOMENT = 0.005  # seconds: what an interrupted call can spare


def pack(message: dict[str, Any]) -> bytes:
    """The bytes of a message. Raises ProtocolError if it is too long."""
    body: bytes = msgpack.packb(message)
    if len(body) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {len(body)} bytes is longer than {MESSAGE_BYTES_MAX}")
    return MAGIC + len(body).to_bytes(4, "little") + body


def size_of(head: bytes) -> int:
    """The length of the body, from the HEAD_BYTES before it. Raises ProtocolError."""
    if len(head) != HEAD_BYTES or not head.startswith(MAGIC):
        raise ProtocolError("the other side does not speak crailpy's protocol")
    size = int.from_bytes(head[len(MAGIC) :], "little")
    if size > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {size} bytes is longer than {MESSAGE_BYTES_MAX}")
    return size


def unpack(body: bytes) -> dict[str, Any]:
    """The message of a body. Raises ProtocolError for what is no map."""
    try:
        message = msgpack.unpackb(body)
    except Exception as error:
        raise ProtocolError(f"not msgpack: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message is a map")
    return message


def error_reply(error: BaseException) -> dict[str, Any]:
    """The reply that refuses: `{"error": {code, message, hint}}`. Words that quote a long message
    are cut, so that the reply is not too long itself."""
    code, message, hint = "ERROR", f"{type(error).__name__}: {error}", None
    if isinstance(error, CrailError):
        code, message, hint = error.code, error.message, error.hint
    return {"error": {"code": code, "message": _cut(message), "hint": hint and _cut(hint)}}


def _cut(words: str) -> str:
    return words if len(words) <= WORDS_MAX else words[:WORDS_MAX] + "..."


def raise_error(reply: dict[str, Any]) -> None:
    """Raises what the reply refuses with, if it does."""
    error = reply.get("error")
    if error is None:
        return
    if not isinstance(error, dict):
        raise ProtocolError("an error is a map")
    code, message, hint = error.get("code"), error.get("message"), error.get("hint")
    raise from_code(
        str(code),
        None if message is None else str(message),
        hint=None if hint is None else str(hint),
    )


def proof(token: str, nonce: bytes, role: str) -> bytes:
    """What answers a challenge: HMAC-SHA256 of nonce and role under the token."""
    import hmac

    return hmac.digest(token.encode(), nonce + role.encode(), "sha256")


def session_key(cluster_key: bytes, session: int) -> bytes:
    """The 16 bytes by which everybody who has the cluster's key recognises a session."""
    from crailpy.native import mac

    number = session.to_bytes(8, "little")
    return b"".join(
        mac(cluster_key, half + number).to_bytes(8, "little") for half in (b"session0", b"session1")
    )


_identity = ""


def host_identity() -> str:
    """Equal for two processes that can reach each other's unix sockets and shared memory: same
    boot, same mount namespace, same user."""
    global _identity
    if not _identity:
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                boot = file.read().strip()
            mounts = os.stat("/proc/self/ns/mnt").st_ino
        except OSError:  # no /proc: share with nobody
            boot, mounts = os.urandom(16).hex(), 0
        _identity = f"{boot}/{mounts}/{os.getuid()}"
    return _identity


# ---- blocking sockets ----------------------------------------------------------------------------
#
# A peer that is absent is an OSError (ConnectionError, TimeoutError, FileNotFoundError); what it
# answers is a CrailError.


def tune_tcp(sock: socket.socket) -> None:
    """No delay, and the kernel watches whether the peer is alive."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, TCP_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, TCP_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_DEAD_MS)


def connect_tcp(host: str, port: int, timeout: float) -> socket.socket:
    """A connection, within `timeout` seconds. Raises OSError."""
    sock = socket.create_connection((host, port), timeout)
    try:
        tune_tcp(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def check_unix(path: str) -> None:
    """Raises InvalidArgumentError for a path that is too long for a socket."""
    if len(os.fsencode(path)) > 107:
        raise InvalidArgumentError(f"a unix socket's path has at most 107 bytes: {path!r}")


def connect_unix(path: str, timeout: float) -> socket.socket:
    """A connection to a unix socket, within `timeout` seconds. Raises OSError;
    InvalidArgumentError for a path that is too long for a socket."""
    check_unix(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _limit(sock: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer within the deadline")
    sock.settimeout(left)


def _receive_exact(sock: socket.socket, size: int, deadline: float) -> bytes:
    parts = b""
    while len(parts) < size:
        _limit(sock, deadline)
        part = sock.recv(size - len(parts))
        if not part:
            raise ConnectionResetError("the connection was closed during the hello")
        parts += part
    return parts


def send(sock: socket.socket, message: dict[str, Any], deadline: float) -> None:
    """Sends one message until `deadline` (of time.monotonic). Raises OSError."""
    _limit(sock, deadline)
    sock.sendall(pack(message))


def receive(sock: socket.socket, deadline: float) -> dict[str, Any]:
    """Receives one message and not a byte more. Raises OSError, ProtocolError."""
    head = _receive_exact(sock, HEAD_BYTES, deadline)
    return unpack(_receive_exact(sock, size_of(head), deadline))


def exchange(
    sock: socket.socket,
    fields: dict[str, Any],
    *,
    token: str | None = None,
    deadline: float,
) -> dict[str, Any]:
    """One hello of a client and its reply, a challenge answered on the way. The socket blocks
    without a time limit afterwards.

    Raises OSError when the peer is absent, AuthError and the other errors that it answers with,
    ProtocolError."""
    request = {"version": VERSION, **fields}
    send(sock, request, deadline)
    reply = receive(sock, deadline)
    if "challenge" in reply:
        send(sock, request | {"proof": answer(reply, token, request["role"])}, deadline)
        reply = receive(sock, deadline)
    raise_error(reply)
    sock.settimeout(None)
    return reply


def leave_word(path: str, fields: dict[str, Any], token: str | None) -> socket.socket:
    """A connection to a unix socket on which the hello was sent, and its reply is never read: so
    this does not wait, but a moment for a challenge where there is a token. Raises OSError, and
    what it is answered with."""
    check_unix(path)
    request = {"version": VERSION, **fields}
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
        sock.sendall(pack(request))
        if token is not None:
            reply = receive(sock, time.monotonic() + MOMENT)
            sock.sendall(pack(request | {"proof": answer(reply, token, request["role"])}))
    except BaseException:
        sock.close()
        raise
    return sock


def answer(reply: dict[str, Any], token: str | None, role: str) -> bytes:
    """The proof that a challenge asks for. Raises AuthError without a token."""
    if not token:
        raise AuthError("the cluster asks for a token", hint="set token= or $CRAILPY_TOKEN")
    nonce = reply["challenge"]
    if not isinstance(nonce, bytes):
        raise ProtocolError("a challenge is bytes")
    return proof(token, nonce, role)


def exchange_with_descriptors(
    sock: socket.socket,
    fields: dict[str, Any],
    *,
    token: str | None = None,
    deadline: float,
) -> tuple[dict[str, Any], list[int]]:
    """Like exchange() on a unix socket, for a reply that may bring descriptors; they are the
    caller's to close.

    Raises the same errors, and leaves no descriptor open then."""
    request = {"version": VERSION, **fields}
    send(sock, request, deadline)
    reply, fds = _receive_with_descriptors(sock, deadline)
    if "challenge" in reply:
        close_all(fds)
        send(sock, request | {"proof": answer(reply, token, request["role"])}, deadline)
        reply, fds = _receive_with_descriptors(sock, deadline)
    try:
        raise_error(reply)
        sock.settimeout(None)
    except BaseException:
        close_all(fds)
        raise
    return reply, fds


def _receive_with_descriptors(
    sock: socket.socket, deadline: float
) -> tuple[dict[str, Any], list[int]]:
    _limit(sock, deadline)
    head, fds, flags, _ = socket.recv_fds(sock, HEAD_BYTES, DESCRIPTORS_MAX)
    try:
        if not head:
            raise ConnectionResetError("the connection was closed during the hello")
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError("descriptors were lost on the way", hint="raise `ulimit -n`")
        head += _receive_exact(sock, HEAD_BYTES - len(head), deadline)
        reply = unpack(_receive_exact(sock, size_of(head), deadline))
        for fd in fds:
            os.set_inheritable(fd, False)
    except BaseException:
        close_all(fds)
        raise
    return reply, fds


def close_all(fds: list[int]) -> None:
    """Closes descriptors."""
    for fd in fds:
        os.close(fd)
