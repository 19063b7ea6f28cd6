"""Writes whose data connection was lost on the way, and whose bytes arrive late all the same."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import pytest

from crailpy import errors

from .proxy import HELLO, _exactly

REQUEST_BYTES = 64  # struct crail_data_request (native/include/crail/wire.h)
REPLY = struct.Struct("<Ii")  # magic, status: the start of a reply
SIZE = 100_000
PATIENCE = 30.0  # seconds


class LateProxy:
    """In front of a storage server: of its first data connection it keeps the first write back and
    ends the client's side; `deliver()` lets the server have it. The others pass."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.kept = b""
        self._late: socket.socket | None = None
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.target, timeout=PATIENCE)
                client.settimeout(PATIENCE)
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    head = _exactly(source, 12)
                    assert head.startswith(HELLO)
                    sink.sendall(head + _exactly(source, struct.unpack("<I", head[8:])[0]))
                if self._late is None:
                    self._late = server
                    self.kept = _exactly(client, REQUEST_BYTES + SIZE)
                    client.shutdown(socket.SHUT_RDWR)
                    continue
                for ends in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._pass, args=ends))
                    self._threads[-1].start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)

    def deliver(self) -> int:
        """The write arrives; the server's status."""
        assert self._late
        self._late.sendall(self.kept)
        status: int = REPLY.unpack_from(_exactly(self._late, 32))[1]
        return status

    def close(self) -> None:
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.fixture
def proxied(cluster):
    """A store that reaches the storage server through a LateProxy."""
    with cluster.connect(transport="tcp") as store, cluster.connect(transport="tcp") as other:
        other.put("/late/taken", b"t" * SIZE)
        (server,) = {at["server"] for at in other.stat("/late/taken").locations}
        about = other._session._described[server]
        proxy = LateProxy((about["host"], about["port"]))
        store._session._described[server] = about | {"port": proxy.port}
        try:
            yield store, proxy
        finally:
            proxy.close()
            other.rmtree("/late")


def test_what_was_granted_is_not_kept_after_a_transfer_that_was_begun_again(proxied):
    """Its first bytes may still be on their way: the next value must not lie there."""
    store, proxy = proxied
    lost, found = b"L" * SIZE, b"F" * SIZE
    with pytest.raises(errors.ExistsError):
        store.put("/late/taken", lost, if_absent=True)
    assert lost in proxy.kept, "the first data connection was lost with the value on it"
    store.put("/late/next", found)
    deadline = time.monotonic() + PATIENCE
    while store.status()["namenode"]["granules_retiring"]:
        assert time.monotonic() < deadline
    status = proxy.deliver()
    assert store.get("/late/next") == found
    assert status == -errors.StaleLocationError.status
    assert store.check() is None
