"""A proxy in front of the namenode that executes requests but drops some of their replies."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from typing import Self

from crailpy import hello, native
from crailpy.errors import CrailError

from .rings import RingEnd

HELLO = b"CRAILPY1"
FRAME = struct.Struct("<IIIIQQ")  # magic, size, count, flags, id, seq (native/include/crail/wire.h)
OP = struct.Struct("<HH")  # code, flags: the start of an operation
HOLDS_FIRST = 48
WAIT = 1 << 8


class DroppingProxy:
    """Forwards every connection to `target`; of the replies to requests that change something or
    make a hold (or, with `waits`, that may wait) every `k`-th is dropped, in turn by silence and by
    cutting the connection."""

    def __init__(self, target: tuple[str, int], k: int, *, waits: bool = False) -> None:
        self.target = target
        self.k = k
        self.waits = waits
        self.mutations = 0
        self.dropped = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = self._listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _listen(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"crail://127.0.0.1:{listener.getsockname()[1]}"
        return listener

    def _dial(self) -> socket.socket:
        return socket.create_connection(self.target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in [self._listener, *self._sockets]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def cut(self) -> None:
        """Ends every connection that there is."""
        for sock in self._sockets[:]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = self._dial()
            except OSError:  # the target is away: so are we
                client.close()
                continue
            self._sockets += [client, server]
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        try:
            for source, sink in ((client, server), (server, client)):
                head = _exactly(source, 12)
                assert head.startswith(HELLO)
                (length,) = struct.unpack("<I", head[8:])
                sink.sendall(head + _exactly(source, length))
            while self._one_request(client, server):
                pass
        except (OSError, EOFError):
            pass
        for sock in (client, server):
            sock.close()

    def _one_request(self, client: socket.socket, server: socket.socket) -> bool:
        request, _ = _frame(client)
        server.sendall(request)
        reply, _ = _frame(server)
        word = self._verdict(request)
        if word == "pass":
            client.sendall(reply)
        return word != "cut"

    def _verdict(self, request: bytes) -> str:
        """What becomes of the reply: "pass", "silence" (the client has to notice by itself) or
        "cut"."""
        code, flags = OP.unpack_from(request, FRAME.size)
        changes = FRAME.unpack_from(request)[5] or code >= HOLDS_FIRST
        if not (flags & WAIT if self.waits else changes):
            return "pass"
        with self._lock:
            self.mutations += 1
            if self.mutations % self.k:
                return "pass"
            self.dropped += 1
            return "silence" if self.dropped % 2 else "cut"


class DroppingRingProxy(DroppingProxy):
    """The same at a unix socket, for lanes that ask for a ring: they get one of the proxy's, and
    the namenode is spoken to through a socket."""

    def __init__(self, target: str, path: str, k: int) -> None:
        self.path = path
        self.rings = 0
        super().__init__((target, 0), k)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        return listener

    def _dial(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.target[0])
        return server

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        try:
            deadline = time.monotonic() + 10
            request = hello.receive(client, deadline)
            wants = request.pop("ring", False)
            hello.send(server, request, deadline)
            reply = hello.receive(server, deadline)
            if wants and "session" in reply:
                self._serve_ring(client, server, reply)
            else:
                hello.send(client, reply, deadline)
        except (OSError, EOFError, CrailError):
            pass
        for sock in (client, server):
            sock.close()

    def _serve_ring(
        self, client: socket.socket, server: socket.socket, reply: dict[str, object]
    ) -> None:
        fds = native.make_ring()
        socket.send_fds(client, [hello.pack(reply | {"ring": True})], fds)
        ring = RingEnd(fds, server=True)
        self.rings += 1
        client.setblocking(False)
        server.settimeout(10)
        waiting = b""
        try:
            while True:
                came = ring.read()
                waiting += came
                if came and ring.woke_writer():
                    client.send(b"\0")
                size = FRAME.unpack_from(waiting)[1] if len(waiting) >= FRAME.size else 0
                if size and len(waiting) >= size:
                    request, waiting = waiting[:size], waiting[size:]
                    server.sendall(request)
                    answer, _ = _frame(server)
                    word = self._verdict(request)
                    if word == "cut":
                        return
                    if word == "pass":
                        ring.write(answer)
                        if ring.woke_reader():  # of a nap it wakes by itself
                            client.send(b"\0")
                elif _has_ended(client):
                    return
        finally:
            ring.close()


def _has_ended(sock: socket.socket) -> bool:
    """Waits a little, too."""
    if not select.select([sock], [], [], 0.0005)[0]:
        return False
    return sock.recv(64) == b""


def _exactly(sock: socket.socket, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        piece = sock.recv(n - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _frame(sock: socket.socket) -> tuple[bytes, int]:
    head = _exactly(sock, FRAME.size)
    _, size, _, _, _, seq = FRAME.unpack(head)
    return head + _exactly(sock, size - FRAME.size), seq
