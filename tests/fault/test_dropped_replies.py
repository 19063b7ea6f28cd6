"""Exactly once: replies are lost, effects are not doubled."""

from __future__ import annotations

import socket
import struct

import pytest

import crailpy
from crailpy import errors

from .proxy import FRAME, OP, DroppingProxy, _frame

COMMIT = 17
UNAVAILABLE = 1013


@pytest.fixture
def store(cluster):
    host, port = cluster.address.removeprefix("crail://").split(":")
    with (
        DroppingProxy((host, int(port)), k=4) as proxy,
        crailpy.connect(proxy.address, transport="tcp", timeout=30) as store,
    ):
        yield store
        assert proxy.dropped > 0


def test_create_exclusive_succeeds_once_and_says_so(store):
    for i in range(12):
        store.put(f"/once/{i}", b"mine", if_absent=True)
        with pytest.raises(errors.ExistsError):
            store.put(f"/once/{i}", b"other", if_absent=True)


def test_rename_and_delete_are_not_repeated(store):
    for i in range(12):
        store.put(f"/move/a{i}", str(i).encode())
        store.rename(f"/move/a{i}", f"/move/b{i}")
        assert store.get(f"/move/b{i}") == str(i).encode()
        store.delete(f"/move/b{i}")
        with pytest.raises(errors.NotFoundError):
            store.delete(f"/move/b{i}")


def test_put_many_gives_each_version_once(store):
    seen = []
    for i in range(12):
        versions = store.put_many([(f"/many/{n}", bytes([i])) for n in range(50)])
        seen += versions
        info = store.stat_many([f"/many/{n}" for n in range(50)])
        assert [x.version for x in info] == versions
    assert seen == sorted(set(seen))


def test_large_values_survive_lost_replies_and_leak_no_granule(store):
    data = bytes(range(256)) * 1024
    before = store.status()["namenode"]["granules_used"]
    for i in range(12):
        store.put("/bulk", data[i:])
        assert store.get("/bulk") == data[i:]
    store.delete("/bulk")
    assert store.status()["namenode"]["granules_used"] == before


class ForgettingProxy(DroppingProxy):
    """Says of the first commit that nobody knows how it went; it was executed."""

    def _one_request(self, client: socket.socket, server: socket.socket) -> bool:
        request, _ = _frame(client)
        server.sendall(request)
        reply, _ = _frame(server)
        if OP.unpack_from(request, FRAME.size)[0] == COMMIT and not self.dropped:
            self.dropped += 1
            status = struct.pack("<i", -UNAVAILABLE)
            reply = reply[: FRAME.size] + status + reply[FRAME.size + 4 :]
        client.sendall(reply)
        return True


def test_what_may_have_been_committed_is_not_written_again(cluster):
    host, port = cluster.address.removeprefix("crail://").split(":")
    one, other = b"1" * 100_000, b"2" * 100_000
    with (
        ForgettingProxy((host, int(port)), k=1) as proxy,
        crailpy.connect(proxy.address, transport="tcp") as store,
    ):
        with pytest.raises(errors.UnavailableError):
            store.put("/unknown/one", one)
        assert store.get("/unknown/one") == one
        store.put("/unknown/other", other)
        assert store.get("/unknown/one") == one
        assert store.get("/unknown/other") == other
        store.rmtree("/unknown")
