"""Whose process is at the other end of a TCP connection within this host."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from crailpy.errors import AuthError

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
ESTABLISHED = 1  # else the other end is closed, and what the kernel says of its owner is nothing


def check_owner(sock: socket.socket) -> None:
    """Raises AuthError unless the process at the other end is ours or root's."""
    uid = owner(sock)
    if uid not in (0, os.getuid()):
        raise AuthError(
            f"this store belongs to user {os.getuid()}, you are user {uid}",
            hint="a store for several users needs a token",
        )


def owner(sock: socket.socket) -> int | None:
    """The user at the other end; None if there is nobody."""
    here, there = sock.getsockname()[:2], sock.getpeername()[:2]
    try:
        return _ask_kernel(sock.family, there, here)
    except OSError:  # a kernel without tcp_diag, or no such socket
        return _look_up(sock.family, there, here)


def _ask_kernel(family: int, local: Any, remote: Any) -> int | None:
    """One question about one socket: some microseconds, however many there are."""
    ends = (socket.inet_pton(family, host).ljust(16, b"\0") for host in (local[0], remote[0]))
    ask = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    ask += struct.pack("!HH16s16s", local[1], remote[1], *ends) + struct.pack("=Iq", 0, -1)
    head = struct.pack("=IHHII", 16 + len(ask), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG) as kernel:
        kernel.send(head + ask)
        reply = kernel.recv(4096, socket.MSG_DONTWAIT)
    if struct.unpack_from("=H", reply, 4) != (SOCK_DIAG_BY_FAMILY,):
        raise OSError("the kernel does not know this socket")
    state, uid = struct.unpack_from("=xB62xI", reply, 16)
    return uid if state == ESTABLISHED else None


def _look_up(family: int, local: Any, remote: Any) -> int | None:
    """The same from the table of all sockets: some milliseconds."""
    wanted = [_as_in_table(family, *local), _as_in_table(family, *remote), f"{ESTABLISHED:02X}"]
    with open("/proc/net/tcp" if family == socket.AF_INET else "/proc/net/tcp6") as table:
        rows = (line.split() for line in table)
        return next((int(row[7]) for row in rows if row[1:4] == wanted), None)


def _as_in_table(family: int, host: str, port: int) -> str:
    packed = socket.inet_pton(family, host)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
