"""A proxy in front of the namenode that executes requests but drops some of their replies."""

from __future__ import annotations

import socket
import struct
import threading

HELLO = b"CRAILPY1"
FRAME = struct.Struct("<IIIIQQ")  # magic, size, count, flags, id, seq (native/include/crail/wire.h)


WAIT = 1 << 8  # of the flags of an operation, which are two bytes after its code


class DroppingProxy:
    """Forwards every connection to `target`; of the replies to requests that change something (or,
    with `waits`, that may wait) every `k`-th is dropped, in turn by silence and by cutting the
    connection."""

    def __init__(self, target: tuple[str, int], k: int, *, waits: bool = False) -> None:
        self.target = target
        self.k = k
        self.waits = waits
        self.mutations = 0
        self.dropped = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"crail://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> DroppingProxy:
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
                server = socket.create_connection(self.target)
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
        request, seq = _frame(client)
        server.sendall(request)
        reply, _ = _frame(server)
        (flags,) = struct.unpack_from("<H", request, FRAME.size + 2)
        if flags & WAIT if self.waits else seq:
            with self._lock:
                self.mutations += 1
                drop = self.mutations % self.k == 0
                self.dropped += drop
            if drop and self.dropped % 2:
                return True  # silence: the client has to notice by itself
            if drop:
                return False
        client.sendall(reply)
        return True


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
