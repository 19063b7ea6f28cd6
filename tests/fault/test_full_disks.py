"""The disk of the namenode's state is full, or may not be written: while it serves and at its
start. A small tmpfs is that disk."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

SPACE = 64 << 20
NAMES = 4000  # a page or two of the state each
FULL = os.strerror(errno.ENOSPC)


def mount(*words):
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else None


@pytest.fixture
def disk(tmp_path):
    why = mount("-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs", str(tmp_path))
    if why is not None:
        pytest.skip(f"no file system may be mounted here: {why}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk):
    """Takes all the space that is left."""
    with open(disk / "filler", "wb", buffering=0) as file:

        def write(size):
            while True:
                file.write(bytes(size))

        for size in (1 << 20, 4096):
            with pytest.raises(OSError, match=FULL):
                write(size)


def refuse_writes(disk):
    assert mount("-o", "remount,ro", str(disk)) is None


def refused_at_start(cluster):
    with pytest.raises((errors.CrailError, OSError)) as raised:
        cluster.namenode.start()
    return str(raised.value)


def outgrow(store):
    """Puts values until one is not acknowledged, no more than the disk will hold: the value of each
    that was."""
    done = {}

    def put():
        for i in itertools.count():
            key, value = f"/grow/{i % NAMES}", f"{i % NAMES}".encode() * 500
            store.put(key, value, timeout=1)
            done[key] = value

    with pytest.raises(errors.DeadlineError, match=FULL):
        put()
    return done


@pytest.mark.parametrize("durability", ["sync", "group"])
def test_a_full_disk_stops_writers_and_nobody_else_until_there_is_space(disk, durability):
    with (
        crailpy.LocalCluster(
            dram="16MiB", dir=disk, durability=durability, group_interval=0.05
        ) as cluster,
        cluster.connect(timeout=30) as store,
    ):
        store.put("/before", b"1", durability="sync")
        fill(disk)
        done = outgrow(store)
        assert FULL in store.status()["state"]["failure"]
        for change in (
            lambda: store.put("/late", b"1", timeout=0.5),
            lambda: store.delete("/before", timeout=0.5),
            lambda: store.incr("/count", timeout=0.5),
        ):
            with pytest.raises(errors.DeadlineError, match=FULL) as raised:
                change()
            assert "as soon as it can" in raised.value.hint
        assert store.get("/before") == b"1"
        assert all(store.get(key) == value for key, value in done.items())
        if durability == "group":  # in sync, a listing would tell of what is not durable
            assert "before" in store.listdir("/")
        os.unlink(disk / "filler")
        store.put("/after", b"2", durability="sync")
        assert store.status()["state"]["failure"] is None
        cluster.namenode.kill()
        cluster.namenode.start()
        assert store.get("/after") == b"2"
        assert all(store.get(key) == value for key, value in done.items())


async def test_the_asynchronous_face_hears_why(disk):
    with crailpy.LocalCluster(dram="16MiB", dir=disk, group_interval=0.05) as cluster:
        fill(disk)
        with cluster.connect() as store:
            outgrow(store)
        for change in (
            lambda store: store.put("/late", b"1", timeout=0.3),
            lambda store: store.rmtree("/before", timeout=0.3),
        ):
            async with crailpy.aio.connect(cluster.address) as store:
                with pytest.raises(errors.DeadlineError, match=FULL):
                    await change(store)
        os.unlink(disk / "filler")
        async with crailpy.aio.connect(cluster.address, timeout=30) as store:
            await store.put("/after", b"2", durability="sync")


@pytest.mark.parametrize("durability", ["sync", "group"])
def test_a_kill_while_the_disk_is_full_loses_nothing_that_was_durable(disk, durability):
    with (
        crailpy.LocalCluster(
            dram="16MiB", dir=disk, durability=durability, group_interval=0.05
        ) as cluster,
        cluster.connect(timeout=30) as store,
    ):
        store.put("/before", b"1", durability="sync")
        fill(disk)
        done = outgrow(store)
        cluster.namenode.kill()
        said = None
        try:  # its first commit may find free pages in the file
            cluster.namenode.start()
        except (errors.CrailError, OSError) as error:
            said = str(error)
        assert said is None or FULL in said
        assert said is not None or store.get("/before") == b"1"
        os.unlink(disk / "filler")
        cluster.namenode.start()
        store.put("/after", b"2", durability="sync")
        assert store.get("/before") == b"1"
        kept = [key for key in done if store.exists(key)]
        assert all(store.get(key) == done[key] for key in kept)
        assert kept == list(done)[: len(kept)]
        if durability == "sync":
            assert kept == list(done)


def test_a_disk_that_is_full_before_there_is_a_state_is_refused(disk):
    fill(disk)
    with pytest.raises((errors.CrailError, OSError), match=FULL):
        crailpy.LocalCluster(dram="16MiB", dir=disk)
    os.unlink(disk / "filler")
    with crailpy.LocalCluster(dram="16MiB", dir=disk) as cluster, cluster.connect() as store:
        store.put("/x", b"1", durability="sync")


def test_a_disk_that_may_not_be_written_is_refused_and_keeps_what_it_has(disk):
    with (
        crailpy.LocalCluster(dram="16MiB", dir=disk) as cluster,
        cluster.connect(timeout=30) as store,
    ):
        store.put("/before", b"1", durability="sync")
        cluster.namenode.kill()
        refuse_writes(disk)
        said = refused_at_start(cluster)
        assert os.strerror(errno.EROFS) in said, said
        assert mount("-o", "remount,rw", str(disk)) is None
        cluster.namenode.start()
        assert store.get("/before") == b"1"
