"""Edits of a value: what they keep, what they cost in time, what they leave as it is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from typing import Any

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

STAT = struct.Struct("<6QIHH")  # id, version, size, mtime, expires, job, kind, extents, flags
SESSION, DELETE_AFTER_READ, EVICTABLE, TTL = 1, 2, 4, 16
SMALL, MEDIUM, LARGE = 100, 100_000, 1_000_000


@pytest.fixture(scope="module")
def varied():
    """A server that values go to first, and one that they go to when it is said."""
    with crailpy.LocalCluster(dram="32MiB") as cluster:
        cluster.add_server(storage_class=2, location="there")
        yield cluster


@pytest.fixture
def store(varied):
    with varied.connect() as store:
        yield store


class Sync:
    """The calls of an edit, made at once."""

    def __init__(self, cluster, transport):
        self.store = cluster.connect(transport=transport)

    def edit(self, path, mode, at, data, size):
        with self.store.open(path, mode) as file:
            if at is not None:
                file.seek(at)
            file.write(data)
            if size is not None:
                file.truncate(size)

    def truncate(self, path, size, **options):
        self.store.truncate(path, size, **options)

    def close(self):
        self.store.close()


class Awaited:
    """The same by the asynchronous face."""

    def __init__(self, cluster, transport):
        self.loop = asyncio.new_event_loop()
        self.store = crailpy.aio.connect(cluster.address, transport=transport)
        self.loop.run_until_complete(self.store.__aenter__())

    def edit(self, path, mode, at, data, size):
        async def work():
            async with await self.store.open(path, mode) as file:
                if at is not None:
                    await file.seek(at)
                await file.write(data)
                if size is not None:
                    await file.truncate(size)

        self.loop.run_until_complete(work())

    def truncate(self, path, size, **options):
        self.loop.run_until_complete(self.store.truncate(path, size, **options))

    def close(self):
        self.loop.run_until_complete(self.store.close())
        self.loop.close()


FACES = [(Sync, "shm"), (Sync, "tcp"), (Awaited, "shm"), (Awaited, "tcp")]

#: the size before, the edit, the value after
FORMS = {
    "r+ within the node": (
        SMALL,
        lambda face, path: face.edit(path, "r+b", 10, b"new", None),
        lambda old: old[:10] + b"new" + old[13:],
    ),
    "r+ out of the node": (
        SMALL,
        lambda face, path: face.edit(path, "r+b", 50, b"n" * MEDIUM, None),
        lambda old: old[:50] + b"n" * MEDIUM,
    ),
    "r+ of few extents": (
        MEDIUM,
        lambda face, path: face.edit(path, "r+b", 10, b"new", None),
        lambda old: old[:10] + b"new" + old[13:],
    ),
    "r+ of much": (
        LARGE,
        lambda face, path: face.edit(path, "r+b", LARGE - 5, b"n" * MEDIUM, None),
        lambda old: old[: LARGE - 5] + b"n" * MEDIUM,
    ),
    "r+ into the node": (
        LARGE,
        lambda face, path: face.edit(path, "r+b", 10, b"new", SMALL),
        lambda old: old[:10] + b"new" + old[13:SMALL],
    ),
    "truncate within the node": (
        SMALL,
        lambda face, path: face.truncate(path, 2 * SMALL),
        lambda old: old + bytes(SMALL),
    ),
    "truncate out of the node": (
        SMALL,
        lambda face, path: face.truncate(path, MEDIUM),
        lambda old: old + bytes(MEDIUM - SMALL),
    ),
    "truncate of few extents": (
        MEDIUM,
        lambda face, path: face.truncate(path, MEDIUM - 1),
        lambda old: old[:-1],
    ),
    "truncate of much": (
        LARGE,
        lambda face, path: face.truncate(path, LARGE + MEDIUM),
        lambda old: old + bytes(MEDIUM),
    ),
    "truncate into the node": (
        LARGE,
        lambda face, path: face.truncate(path, SMALL),
        lambda old: old[:SMALL],
    ),
    "truncate to nothing": (LARGE, lambda face, path: face.truncate(path, 0), lambda old: b""),
    "append within the node": (
        SMALL,
        lambda face, path: face.edit(path, "ab", None, b"new", None),
        lambda old: old + b"new",
    ),
    "append out of the node": (
        SMALL,
        lambda face, path: face.edit(path, "ab", None, b"n" * MEDIUM, None),
        lambda old: old + b"n" * MEDIUM,
    ),
    "append where there is room": (
        LARGE,
        lambda face, path: face.edit(path, "ab", None, b"new", None),
        lambda old: old + b"new",
    ),
    "append where there is none": (
        LARGE,
        lambda face, path: face.edit(path, "ab", None, b"n" * LARGE, None),
        lambda old: old + b"n" * LARGE,
    ),
}


def facts(store, path):
    return STAT.unpack_from(store._call(3, 0, path)[5])


@pytest.mark.parametrize(("kind", "transport"), FACES, ids=[f"{k.__name__}-{t}" for k, t in FACES])
@pytest.mark.parametrize("form", FORMS)
def test_an_edit_keeps_lifetime_owner_attributes_and_place(varied, store, kind, transport, form):
    size, edit, after = FORMS[form]
    old = bytes(i % 251 for i in range(size))
    with store.job("edits") as job, contextlib.closing(kind(varied, transport)) as face:
        store.put(
            "/e/v", old, ttl=1000, job=job, session=True, evictable=True, delete_after_read=True,
            location="there",
        )  # fmt: skip
        store.setattr("/e/v", **{"user.a": b"kept"})
        before = facts(store, "/e/v")
        there = {extent["server"] for extent in store.stat("/e/v").locations}
        edit(face, "/e/v")
        now = facts(store, "/e/v")
        assert now[0] == before[0], "the same node"
        assert now[1] > before[1], "another version"
        assert now[8] == SESSION | DELETE_AFTER_READ | EVICTABLE | TTL
        assert now[4] - now[3] == 1000 * 10**9, "its time began again"
        assert now[5] == job.number
        assert store.attributes("/e/v") == {"user.a": b"kept"}
        if there:
            assert {extent["server"] for extent in store.stat("/e/v").locations} <= there
        assert store.get("/e/v") == after(old)
        assert not store.exists("/e/v"), "it goes when it was read"


@pytest.mark.parametrize(("kind", "transport"), FACES, ids=[f"{k.__name__}-{t}" for k, t in FACES])
def test_an_edited_value_stays_on_as_many_servers(varied, store, kind, transport):
    with contextlib.closing(kind(varied, transport)) as face:
        for edit in ("r+ of much", "truncate of much", "append where there is none"):
            store.put("/e/s", bytes(LARGE), stripe=2)
            FORMS[edit][1](face, "/e/s")
            sizes = {}
            for extent in store.stat("/e/s").locations:
                sizes[extent["server"]] = sizes.get(extent["server"], 0) + extent["bytes"]
            assert len(sizes) == 2
            assert max(sizes.values()) <= 1.5 * min(sizes.values())
    store.delete("/e/s")


def test_what_an_edit_says_itself_is_added(store):
    for size in (SMALL, MEDIUM, LARGE):
        store.put("/e/more", bytes(size), ttl=1000)
        with store.open("/e/more", "r+b", evictable=True) as file:
            file.write(b"x")
        with store.open("/e/more", "ab", ttl=50) as file:
            file.write(b"y")
        now = facts(store, "/e/more")
        assert now[8] == EVICTABLE | TTL
        assert now[4] - now[3] == 50 * 10**9
        store.put("/e/more", b"")
        assert facts(store, "/e/more")[8] == 0, "a new value says everything anew"


@pytest.mark.parametrize(("kind", "transport"), FACES, ids=[f"{k.__name__}-{t}" for k, t in FACES])
@pytest.mark.parametrize("size", [0, SMALL, 4096, MEDIUM, LARGE])
def test_a_truncate_to_the_same_size_changes_nothing(varied, store, kind, transport, size):
    store.put("/e/same", bytes(size), ttl=1000)
    before = facts(store, "/e/same")
    with contextlib.closing(kind(varied, transport)) as face:
        face.truncate("/e/same", size)
        assert facts(store, "/e/same") == before
        face.truncate("/e/same", size + 1)
    assert facts(store, "/e/same")[1] > before[1]


class Slow:
    """A way to the namenode on which each reply takes its time."""

    def __init__(self, target, seconds):
        self.seconds = seconds
        self.slows = False
        self._target = target
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"crail://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._ending = threading.Event()
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for args in ((client, server, False), (server, client, True)):
                self._threads.append(threading.Thread(target=self._carry, args=args))
                self._threads[-1].start()

    def _carry(self, source, sink, is_reply):
        try:
            while data := source.recv(1 << 16):
                if is_reply and self.slows:
                    self._ending.wait(self.seconds)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self):
        self._ending.set()
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join()


class Through:
    """Stands for a cluster, behind a slow way."""

    def __init__(self, way):
        self.address = way.address

    def connect(self, **options: Any):
        return crailpy.connect(self.address, **options)


@pytest.mark.parametrize("kind", [Sync, Awaited])
def test_a_truncate_has_one_deadline_for_all_its_requests(varied, store, kind):
    host, port = varied.address.removeprefix("crail://").split(":")
    store.put("/e/slow", bytes(LARGE))
    with (
        contextlib.closing(Slow((host, int(port)), 0.4)) as way,
        contextlib.closing(kind(Through(way), "tcp")) as face,
    ):
        face.truncate("/e/slow", LARGE + 1)  # all that there is to connect is connected
        way.slows = True
        begin = time.monotonic()
        with pytest.raises(errors.DeadlineError):  # at least four requests of 0.4 s
            face.truncate("/e/slow", LARGE // 2, timeout=1)
        took = time.monotonic() - begin
        way.slows = False
    assert took < 1 + 3, "what it holds is given back within a second each"
    assert store.stat("/e/slow").size in (LARGE + 1, LARGE // 2), "one or the other"
    assert store.check() is None
