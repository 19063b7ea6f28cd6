"""TCP ports: who serves binds to one here, and so does who keeps one for somebody that is to serve.

Sockets that are bound here share their port until one of them listens. A port that anybody holds is
given to nobody who asks for any free one.
"""

from __future__ import annotations

import socket


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to host and port (0: any free one). Raises OSError."""
    family, _, _, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except BaseException:
        sock.close()
        raise
    return sock
