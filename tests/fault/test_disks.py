"""Disks that fail: typed errors, writes that go elsewhere, and a server that gets nothing more.

The storage servers run the test build, whose disks fail as a file says (native/src/data/guards.c);
the clients run the ordinary one."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from pathlib import Path

import pytest

import crailpy
from crailpy import errors

from ..integration.kit import Call, until

ROOT = Path(__file__).parents[2]
GUARDED = ROOT / "build" / "guards"  # `make guards`: the test build
MIB = 1 << 20
VALUE = os.urandom(MIB + 5)


class Disks:
    """What the disks of a cluster's servers fail with, by server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, server: int) -> Path:
        return self.folder / f"faults-{server}"

    def fail(self, server: int, what: str, number: int) -> None:
        new = self.folder / "new"
        new.write_text(f"{what} {number}\n")
        new.rename(self.path(server))

    def mend(self, server: int) -> None:
        self.path(server).unlink()


@pytest.fixture
def disks(tmp_path):
    return Disks(tmp_path)


@pytest.fixture
def cluster(disks, tmp_path, monkeypatch):
    """Two servers of the file tier, none of memory."""
    assert GUARDED.exists(), "`make guards` builds what this test needs; `make test` does it"
    monkeypatch.setenv("PYTHONPATH", str(GUARDED))
    monkeypatch.chdir(tmp_path)  # `python -m` looks at the current folder first
    with crailpy.LocalCluster(servers=0, capacity="64MiB", heartbeat=60) as cluster:
        for number in range(2):
            monkeypatch.setenv("CRAILPY_TEST_FAULTS", str(disks.path(number)))
            cluster.add_server(tier="file")
        yield cluster


def states(store) -> list[str]:
    return [server["state"] for server in store.status()["servers"]]


def server_of(store, path: str) -> int:
    (place,) = store.stat(path).locations
    return place["server"]


def fill(store, count: int = 4) -> list[str]:
    """Values on both servers."""
    paths = [f"/v{i}" for i in range(count)]
    for path in paths:
        store.put(path, VALUE)
    assert {server_of(store, path) for path in paths} == {1, 2}
    return paths


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("transport", [None, "tcp"])
def test_a_write_that_a_disk_refuses_goes_to_another(cluster, disks, number, transport):
    with cluster.connect(transport=transport) as store:
        before = fill(store)
        disks.fail(0, "disk-write", number)
        for i in range(6):
            store.put(f"/new{i}", VALUE)
            assert server_of(store, f"/new{i}") == 2
            assert store.get(f"/new{i}") == VALUE
        # told at once, though the next ordinary heartbeat is a minute away
        until(lambda: states(store) == ["failed", "up"])
        facts = store.status()["servers"][0]
        assert facts["failed"] == os.strerror(number)
        disks.mend(0)
        for i in range(6):  # nothing more is placed there, mended or not
            store.put(f"/later{i}", VALUE)
            assert server_of(store, f"/later{i}") == 2
        for path in before:  # what it has can be read, replaced and removed
            assert store.get(path) == VALUE
            store.put(path, VALUE)
            assert server_of(store, path) == 2
            store.delete(path)


def test_the_asynchronous_face_goes_to_another_too(cluster, disks):
    async def main() -> None:
        async with await crailpy.aio.connect(cluster.address) as store:
            disks.fail(1, "disk-write", errno.EIO)
            await asyncio.gather(*(store.put(f"/a{i}", VALUE) for i in range(12)))
            for i in range(12):
                assert await store.get(f"/a{i}") == VALUE
                (place,) = (await store.stat(f"/a{i}")).locations
                assert place["server"] == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EIO, errors.DataLostError), (errno.ENOSPC, errors.OutOfSpaceError)]
)
def test_when_no_disk_is_left_the_error_says_which_and_why(cluster, disks, number, error):
    with cluster.connect(timeout=20) as store:
        disks.fail(0, "disk-write", number)
        disks.fail(1, "disk-write", number)
        began = time.monotonic()
        with pytest.raises(error) as raised:
            store.put("/v", VALUE)
        assert time.monotonic() - began < 10
        assert raised.value.path == "/v"
        assert raised.value.server in ("1", "2")
        assert not store.exists("/v")
        until(lambda: states(store) == ["failed", "failed"])
        with pytest.raises(errors.OutOfSpaceError):  # nobody is asked any more
            store.put("/v", VALUE)

    async def main() -> None:
        async with await crailpy.aio.connect(cluster.address) as store:
            with pytest.raises(errors.OutOfSpaceError):
                await store.put("/v", VALUE)

    asyncio.run(main())


def test_a_value_that_cannot_be_read_is_a_typed_error_and_others_are_served(cluster, disks):
    with cluster.connect(timeout=20) as store:
        paths = fill(store)
        bad = next(path for path in paths if server_of(store, path) == 1)
        good = next(path for path in paths if server_of(store, path) == 2)
        disks.fail(0, "disk-read", errno.EIO)
        with pytest.raises(errors.DataLostError) as raised:
            store.get(bad)
        assert (raised.value.path, raised.value.server) == (bad, "1")
        with pytest.raises(errors.DataLostError), store.open(bad, "rb") as file:
            file.read()
        assert store.get(good) == VALUE
        until(lambda: states(store) == ["failed", "up"])


def test_a_read_that_fails_in_the_middle_is_a_typed_error_too(cluster, disks):
    """Its head is on the way already: the connection ends, and the question that is asked again
    is answered. The reader sees none of it."""
    value = os.urandom(12 * MIB)
    with cluster.connect(timeout=20) as store:
        store.put("/v", value)
        number = server_of(store, "/v") - 1
        with store.open("/v", "rb", buffering=0) as file:
            assert file.read(1000) == value[:1000]
            disks.fail(number, "disk-read", errno.EIO)
            with pytest.raises(errors.DataLostError):
                file.readall()
        with pytest.raises(errors.DataLostError):
            store.get("/v")


def test_a_stream_onto_a_disk_that_fails_publishes_nothing_and_the_next_goes_elsewhere(
    cluster, disks
):
    """What was written is not in the writer's memory any more: only he can write it again."""
    with cluster.connect(timeout=20) as store:
        file = store.open("/s", "wb")
        file.write(VALUE)
        file.flush()
        number = server_of_stream(store) - 1
        disks.fail(number, "disk-write", errno.EIO)
        with pytest.raises(errors.DataLostError) as raised, file:
            file.writelines([VALUE] * 8)
        assert raised.value.server == str(number + 1)
        assert not store.exists("/s")
        until(lambda: "failed" in states(store))
        with store.open("/s", "wb") as file:
            for _ in range(8):
                file.write(VALUE)
        assert store.get("/s") == VALUE * 8
        assert {p["server"] for p in store.stat("/s").locations} == {2 - number}


def server_of_stream(store) -> int:
    """The server that has granted something."""
    servers = store.status()["servers"]
    return next(s["number"] for s in servers if s["granules_granted"])


def test_a_server_that_is_started_again_takes_part_again(cluster, disks):
    with cluster.connect() as store:
        fill(store)
        disks.fail(0, "disk-write", errno.EIO)
        for i in range(4):
            store.put(f"/new{i}", VALUE)
        until(lambda: states(store) == ["failed", "up"])
        disks.mend(0)
        cluster.servers[0].stop()
        cluster.servers[0].start()
        until(lambda: states(store) == ["up", "up"])
        fill(store)


def test_a_flush_that_fails_says_so(cluster, disks):
    with cluster.connect() as store:
        extents, _ = store._hot.alloc("/x", (MIB,), 1 << 7, b"", 0, 0, None, None)
        server = int.from_bytes(extents[:4], "little") - 1
        pipe = store._hot.pipe("/x")
        pipe.write(extents, 0, VALUE[:MIB], None, False)
        pipe.settle(None)
        pipe.close()
        store._hot.flush("/x", extents, None)
        disks.fail(server, "disk-sync", errno.EIO)
        with pytest.raises(errors.DataLostError):
            store._hot.flush("/x", extents, None)


def test_a_disk_that_stands_still_is_waited_for_up_to_the_deadline(cluster, disks):
    with cluster.connect(timeout=20) as store:
        fill(store)
        disks.fail(0, "disk-write", 0)
        disks.fail(1, "disk-write", 0)
        began = time.monotonic()
        with pytest.raises(errors.DeadlineError):
            store.put("/slow", VALUE, timeout=1)
        assert time.monotonic() - began < 5
        call = Call(store.put, "/slow", VALUE)
        assert not store.exists("/slow")
        disks.mend(0)
        disks.mend(1)
        call.result()
        assert store.get("/slow") == VALUE
        assert states(store) == ["up", "up"]


def test_after_a_reboot_the_blocks_are_there(cluster):
    """All that lay in memory is gone: the servers' folders."""
    with cluster.connect() as store:
        paths = fill(store)
        for server in cluster.servers:
            server.kill()
            shutil.rmtree(os.path.join(cluster.folder, server.name))
        for server in cluster.servers:
            server.start()
        assert states(store) == ["up", "up"]
        for path in paths:
            assert store.get(path) == VALUE
