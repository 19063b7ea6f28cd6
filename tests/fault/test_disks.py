"""Disks that fail: typed errors, writes that go elsewhere, and a server that gets nothing more.

The storage servers run the test build, whose disks fail as a file says (native/src/data/guards.c);
the clients run the ordinary one."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import shutil
import subprocess
import sys
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


def fail_under_stream(store, disks, what: str, number: int = errno.EIO) -> int:
    """The one server where a stream has its extents, which fails now."""
    server = server_of_stream(store)
    disks.fail(server - 1, what, number)
    return server


@pytest.mark.parametrize(
    ("number", "transport", "piece"),
    [(errno.EIO, None, 5000), (errno.ENOSPC, "tcp", 64 << 10), (errno.EIO, "tcp", 3 * MIB)],
)
def test_a_stream_goes_on_elsewhere_when_its_disk_fails(cluster, disks, number, transport, piece):
    """What the disk has answered is read back, what is on its way is in memory."""
    value = random.Random(piece).randbytes(9 * MIB + 7)
    with cluster.connect(transport=transport, timeout=20) as store:
        with store.open("/s", "wb") as file:
            for at in range(0, len(value), piece):
                if at // MIB == 3 and (at - piece) // MIB != 3:
                    server = fail_under_stream(store, disks, "disk-write", number)
                file.write(value[at : at + piece])
        assert store.get("/s") == value
        assert {place["server"] for place in store.stat("/s").locations} == {3 - server}
        until(lambda: "failed" in states(store))
        assert store.check() is None


@pytest.mark.parametrize("mode", ["ab", "r+b", "w", "x+b"])
def test_every_way_to_write_a_file_goes_elsewhere(cluster, disks, mode):
    value = random.Random(1).randbytes(2 * MIB)
    text = value.hex() if mode == "w" else value
    with cluster.connect(timeout=20) as store:
        if mode in ("ab", "r+b"):
            store.put("/s", value)
        with store.open("/s", mode) as file:
            file.write(text)
            file.flush()
            for server in {1, 2}:
                if store.status()["servers"][server - 1]["granules_granted"]:
                    disks.fail(server - 1, "disk-write", errno.EIO)
                    break
            for _ in range(3):
                file.write(text)
            if mode == "x+b":
                file.seek(MIB)
                assert file.read(2 * MIB) == (value * 2)[MIB : 3 * MIB]
                file.seek(MIB)
                file.write(value[::-1])
        expected = {
            "ab": value * 5,
            "r+b": value * 4,
            "w": value.hex().encode() * 4,
            "x+b": value[:MIB] + value[::-1] + (value * 4)[3 * MIB :],
        }
        assert store.get("/s") == expected[mode]
        until(lambda: "failed" in states(store))
        assert store.check() is None


def test_parts_of_a_multifile_go_elsewhere(cluster, disks):
    with cluster.connect(timeout=20) as store:
        parts = store.multifile("/m")
        writers = [parts.writer(f"{i}") for i in range(4)]
        for i in range(6):
            if i == 3:
                disks.fail(0, "disk-write", errno.EIO)
            for writer in writers:
                writer.write(VALUE)
        for writer in writers:
            writer.close()
        with parts.reader() as reader:
            assert reader.read() == VALUE * 24
        places = [store.stat(part.path).locations for part in parts.parts()]
        assert {place["server"] for part in places for place in part} == {2}


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
def test_awaited_streams_go_elsewhere(cluster, disks, mode):
    async def write(store, path: str, go: asyncio.Event) -> None:
        async with await store.open(path, mode) as file:
            await file.write(VALUE * 2)
            await go.wait()
            for _ in range(3):
                await file.write(VALUE)

    async def main() -> None:
        async with await crailpy.aio.connect(cluster.address, timeout=20) as store:
            paths = [f"/a{i}" for i in range(4)]
            if mode != "wb":
                await store.put_many([(path, VALUE) for path in paths])
            go = asyncio.Event()
            tasks = [asyncio.ensure_future(write(store, path, go)) for path in paths]
            while True:
                granted = [s["granules_granted"] for s in (await store.status())["servers"]]
                if sum(granted) >= len(paths) * 2 * MIB // 4096:
                    break
            disks.fail(0, "disk-write", errno.EIO)
            go.set()
            await asyncio.gather(*tasks)
            for path in paths:
                assert await store.get(path) == VALUE * (6 if mode == "ab" else 5)

    asyncio.run(main())
    with cluster.connect() as store:
        until(lambda: states(store) == ["failed", "up"])
        assert store.check() is None


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EIO, errors.DataLostError), (errno.ENOSPC, errors.OutOfSpaceError)]
)
def test_a_stream_without_another_disk_publishes_nothing_and_says_why(
    cluster, disks, number, error
):
    with cluster.connect(timeout=20) as store:
        store.put("/s", b"before")
        file = store.open("/s", "wb")
        file.write(VALUE)
        file.flush()
        disks.fail(0, "disk-write", number)
        disks.fail(1, "disk-write", number)
        with pytest.raises(error) as raised, file:
            file.writelines([VALUE] * 8)
        assert raised.value.path == "/s"
        assert raised.value.server in ("1", "2")
        assert store.get("/s") == b"before"

    async def main() -> None:
        async with await crailpy.aio.connect(cluster.address, timeout=20) as store:
            with pytest.raises(errors.OutOfSpaceError):
                async with await store.open("/s", "wb") as file:
                    await file.write(VALUE)

    asyncio.run(main())


def test_what_can_neither_be_written_nor_read_back_is_lost_and_said(cluster, disks):
    with cluster.connect(timeout=20) as store:
        file = store.open("/s", "wb")
        file.write(VALUE)
        file.flush()  # it was answered: it is in memory no more
        server = server_of_stream(store)
        disks.path(server - 1).write_text(f"disk-write {errno.EIO}\ndisk-read {errno.EIO}\n")
        with pytest.raises(errors.DataLostError), file:
            file.writelines([VALUE] * 8)
        assert not store.exists("/s")


def test_what_was_not_answered_needs_no_disk_to_be_read(cluster, disks):
    with cluster.connect(timeout=20) as store:
        for number in range(2):
            disks.path(number).write_text(f"disk-write {errno.EIO}\ndisk-read {errno.EIO}\n")
        file = store.open("/s", "wb", buffering=0)
        file.write(VALUE)  # on its way
        server = server_of_stream(store)
        disks.mend(2 - server)
        with file:
            file.write(VALUE)
        assert store.get("/s") == VALUE * 2


def test_who_follows_a_stream_that_moved_is_told(cluster, disks):
    with cluster.connect(timeout=20) as store, cluster.connect(timeout=20) as other:
        with store.open("/s", "wb") as file:
            file.write(VALUE)
            file.flush()
            with other.open("/s", "rb", follow=True) as follower:
                assert follower.read(1000) == VALUE[:1000]
                fail_under_stream(store, disks, "disk-write")
                file.writelines([VALUE] * 4)
                file.flush()
                with pytest.raises(errors.DataLostError):
                    follower.read()
        assert other.get("/s") == VALUE * 5


@pytest.mark.parametrize("face", ["synchronous", "asynchronous"])
def test_a_put_whose_flush_fails_goes_elsewhere(cluster, disks, face):
    disks.fail(0, "disk-sync", errno.EIO)

    async def main() -> None:
        async with await crailpy.aio.connect(cluster.address, timeout=20) as store:
            for i in range(4):
                await store.put(f"/v{i}", VALUE, durability="sync")

    with cluster.connect(timeout=20) as store:
        if face == "asynchronous":
            asyncio.run(main())
        for i in range(4):
            if face == "synchronous":
                store.put(f"/v{i}", VALUE, durability="sync")
            assert server_of(store, f"/v{i}") == 2
            assert store.get(f"/v{i}") == VALUE
        until(lambda: states(store) == ["failed", "up"])


@pytest.mark.parametrize("face", ["synchronous", "asynchronous"])
def test_a_stream_whose_flush_fails_publishes_nothing_and_says_so(cluster, disks, face):
    """A disk that did not make them durable may not even have the bytes that it answered for."""

    async def main() -> None:
        async with (
            await crailpy.aio.connect(cluster.address, timeout=20) as store,
            await store.open("/s", "wb", durability="sync") as file,
        ):
            await file.write(VALUE)

    def write() -> None:
        if face == "asynchronous":
            asyncio.run(main())
            return
        with store.open("/s", "wb", durability="sync") as file:
            file.write(VALUE)

    disks.fail(0, "disk-sync", errno.EIO)
    disks.fail(1, "disk-sync", errno.EIO)
    with cluster.connect(timeout=20) as store:
        store.put("/s", b"before")
        with pytest.raises(errors.DataLostError) as raised:
            write()
        assert raised.value.path == "/s"
        assert raised.value.server in ("1", "2")
        assert store.get("/s") == b"before"


def server_of_stream(store) -> int:
    """The server that has granted something."""
    servers = store.status()["servers"]
    return next(s["number"] for s in servers if s["granules_granted"])


def command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "crailpy.cli", *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout


def test_a_failed_disk_is_shown_until_its_server_is_started_again(cluster, disks):
    with cluster.connect(timeout=30) as store:
        before = fill(store)
        disks.fail(0, "disk-write", errno.EIO)
        for i in range(4):
            store.put(f"/new{i}", VALUE, durability="sync")
        until(lambda: states(store) == ["failed", "up"])
        at = f"--address={cluster.address}"
        assert "the disk of storage-0 has failed: Input/output error" in command("status", at)
        found = {one["what"]: one for one in json.loads(command("doctor", at, "--json"))}
        assert found["storage servers"]["state"] == "limited"
        assert found["disk of storage-0"]["found"].startswith("Input/output error")
        disks.mend(0)
        for i in range(4):
            store.put(f"/new{i}", VALUE)
            assert server_of(store, f"/new{i}") == 2
        cluster.servers[0].stop()
        cluster.servers[0].start()
        until(lambda: states(store) == ["up", "up"])
        before += fill(store)
        assert [store.get(path) for path in before] == [VALUE] * len(before)


def test_a_restarted_namenode_finds_a_failed_disk_again(cluster, disks):
    """What is there is served. What was retired meanwhile could not be written down, so nothing is
    placed there before both were started once more."""
    with cluster.connect(timeout=30) as store:
        before = fill(store)
        gone = [f"/gone{i}" for i in range(4)]
        for path in gone:
            store.put(path, VALUE)
        disks.fail(0, "disk-write", errno.EIO)
        for i in range(4):
            store.put(f"/new{i}", VALUE, durability="sync")
        until(lambda: states(store) == ["failed", "up"])
        cluster.namenode.kill()  # it hears of it again, a minute before the next heartbeat
        cluster.namenode.start()
        until(lambda: states(store) == ["failed", "up"])
        assert [store.get(path) for path in before] == [VALUE] * len(before)
        store.delete_many(gone)
        disks.mend(0)
        for server, found in ((cluster.servers[0], "closed"), (cluster.namenode, "up")):
            for i in range(4):
                store.put(f"/new{i}", VALUE, durability="sync")
                assert server_of(store, f"/new{i}") == 2
            server.stop()
            server.start()
            until(lambda found=found: states(store) == [found, "up"])
            assert [store.get(path) for path in before] == [VALUE] * len(before)
            assert store.check() is None
        last = [f"/last{i}" for i in range(40)]
        for path in last:
            store.put(path, VALUE)
        assert sum(server_of(store, path) == 1 for path in last) > 15
        assert [store.get(path) for path in last] == [VALUE] * len(last)
        assert store.check() is None


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


def test_a_flush_that_stands_still_is_waited_for_up_to_the_deadline(cluster, disks):
    async def main() -> None:
        async with (
            await crailpy.aio.connect(cluster.address, timeout=1) as store,
            await store.open("/s", "wb", durability="sync") as file,
        ):
            await file.write(VALUE)

    def write() -> None:
        with store.open("/s", "wb", durability="sync") as file:
            file.write(VALUE)

    with cluster.connect(timeout=1) as store:
        disks.fail(0, "disk-sync", 0)
        disks.fail(1, "disk-sync", 0)
        for call in (write, lambda: asyncio.run(main())):
            began = time.monotonic()
            with pytest.raises(errors.DeadlineError):
                call()
            assert time.monotonic() - began < 5
            assert not store.exists("/s")
        disks.mend(0)
        disks.mend(1)
        write()
        assert store.get("/s") == VALUE


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
