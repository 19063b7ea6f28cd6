"""Lanes in shared memory: whoever holds the memory may write what he likes, and harms himself."""

from __future__ import annotations

import os
import random
import struct

import pytest

import crailpy
from crailpy import errors

from .proxy import DroppingRingProxy
from .rings import READER_SLEEPS, REPLIES, REQUESTS, RING, TAKEN, WRITTEN, open_lane
from .test_bad_frames import GARBAGE, frame, op


@pytest.fixture
def unix(cluster):
    with cluster.connect() as store:
        return store.status()["unix"]


@pytest.fixture
def lane(unix):
    """A raw lane with a ring, its hello done."""
    sock, ring = open_lane(unix)
    yield sock, ring
    sock.close()
    ring.close()


def rings(store: crailpy.Store) -> int:
    return store.status()["namenode"]["rings"]


def test_lanes_here_have_rings_unless_told_otherwise(cluster, monkeypatch):
    with cluster.connect() as watcher:
        before = rings(watcher)
        assert before > 0
        for options in ({"ring": False}, {"transport": "tcp"}):
            with cluster.connect(**options) as store:
                store.put("/lane", b"1")
                assert rings(watcher) == before
        monkeypatch.setenv("CRAILPY_RING", "0")
        with cluster.connect() as store:
            store.put("/lane", b"1")
            assert rings(watcher) == before


LIES = {
    "more written than fits": (REQUESTS + WRITTEN, RING + 1),
    "written far beyond": (REQUESTS + WRITTEN, 1 << 63),
    "written backwards": (REQUESTS + WRITTEN, (1 << 64) - 1),
}


@pytest.mark.parametrize("what", sorted(LIES))
def test_a_hostile_ring_drops_only_its_client(cluster, lane, what):
    sock, ring = lane
    with cluster.connect() as store:
        store.put("/alive", b"1")
        ring.store(*LIES[what])
        ring.ring()
        assert sock.recv(1) == b"", "the namenode closes"
        assert store.get("/alive") == b"1"


def test_a_client_that_lies_about_what_it_took_is_dropped(cluster, lane):
    sock, ring = lane
    with cluster.connect() as store:
        store.put("/long", bytes(4096))
        ring.store(REPLIES + TAKEN, 12345)
        ring.write(frame(*[op(2, b"/long")] * 40))  # a reply longer than the ring
        ring.ring()
        assert sock.recv(1) == b""
        assert store.get("/long") == bytes(4096)


@pytest.mark.parametrize("what", sorted(GARBAGE))
def test_a_frame_that_makes_no_sense_ends_its_ring(cluster, lane, what):
    sock, ring = lane
    ring.write(GARBAGE[what] + bytes(64))
    ring.ring()
    assert sock.recv(1) == b""
    with cluster.connect() as store:
        store.put("/alive", b"1")


def test_memory_scribbled_over_at_random_harms_nobody_else(cluster, unix):
    rng = random.Random(seed := int(os.environ.get("CRAILPY_SEED", "1")))
    print("seed", seed)
    with cluster.connect() as store:
        store.put("/alive", b"1")
        for _ in range(50):
            sock, ring = open_lane(unix)
            for _ in range(20):
                at = rng.randrange(64, REPLIES + 256) & ~3
                struct.pack_into("<I", ring.memory, at, rng.getrandbits(32) >> rng.randrange(32))
                ring.memory[4096 : 4096 + 64] = rng.randbytes(64)
                ring.ring()
            assert store.get("/alive") == b"1"
            sock.close()
            ring.close()
        assert store.check() is None


def test_the_memory_of_a_ring_cannot_be_cut_short(unix):
    sock, ring = open_lane(unix)
    with pytest.raises((PermissionError, SystemError, ValueError)):
        ring.memory.resize(4096)
    sock.close()
    ring.close()


def test_a_client_that_does_not_read_is_not_served_on(cluster, lane):
    """The namenode waits for room, and goes on where it stopped."""
    _, ring = lane
    with cluster.connect() as store:
        store.put("/long", bytes(4096))
        ring.write(frame(*[op(2, b"/long")] * 40))
        ring.ring()
        got = b""
        while len(got) < 40 * 4096:
            got += ring.read()
            if ring.woke_writer():
                ring.ring()
            assert store.get("/long") == bytes(4096)
        assert struct.unpack_from("<I", got, 4)[0] == len(got)


def test_the_bell_is_not_read_by_the_namenode(lane):
    """So that nobody can make it wait there."""
    sock, ring = lane
    os.eventfd_write(ring.bell, (1 << 64) - 3)
    os.set_blocking(ring.bell, True)
    assert os.eventfd_read(ring.bell) > 0
    ring.write(frame(op(1)))
    ring.store(REPLIES + READER_SLEEPS, 1)
    ring.ring()
    assert sock.recv(64) == b"\0", "a byte wakes who sleeps on the socket"
    assert struct.unpack_from("<I", ring.read(), 8)[0] == 1


# ---- exactly once ------------------------------------------------------------------------------


@pytest.fixture
def dropping(cluster, unix, tmp_path):
    path = str(tmp_path / "proxy.sock")
    with (
        DroppingRingProxy(unix, path, k=4) as proxy,
        crailpy.connect(f"crail+unix://{path}", timeout=30) as store,
    ):
        yield store
        assert proxy.dropped > 0
        assert proxy.rings > 0


def test_create_exclusive_by_ring_succeeds_once_and_says_so(dropping):
    for i in range(12):
        dropping.put(f"/ring-once/{i}", b"mine", if_absent=True)
        with pytest.raises(errors.ExistsError):
            dropping.put(f"/ring-once/{i}", b"other", if_absent=True)


def test_rename_and_delete_by_ring_are_not_repeated(dropping):
    for i in range(12):
        dropping.put(f"/ring-move/a{i}", str(i).encode())
        dropping.rename(f"/ring-move/a{i}", f"/ring-move/b{i}")
        assert dropping.get(f"/ring-move/b{i}") == str(i).encode()
        dropping.delete(f"/ring-move/b{i}")
        with pytest.raises(errors.NotFoundError):
            dropping.delete(f"/ring-move/b{i}")


def test_put_many_by_ring_gives_each_version_once(dropping):
    seen = []
    for i in range(12):
        versions = dropping.put_many([(f"/ring-many/{n}", bytes([i])) for n in range(50)])
        seen += versions
        info = dropping.stat_many([f"/ring-many/{n}" for n in range(50)])
        assert [x.version for x in info] == versions
    assert seen == sorted(set(seen))
