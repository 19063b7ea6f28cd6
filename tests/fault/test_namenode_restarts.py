"""Servers are killed and started again every two seconds while processes put, stream and read: no
call fails within its deadline, no byte is wrong, and in the end every granule is accounted for.

CRAILPY_RESTART_SECONDS: how long each of them goes on (default 12)."""

from __future__ import annotations

import os
import pprint
import random
import shutil
import threading
import time

import pytest

import crailpy
from crailpy import errors

from . import restarts

SECONDS = float(os.environ.get("CRAILPY_RESTART_SECONDS", "12"))
EVERY = 2.0
STREAM = 1 << 30
PATIENCE = 100.0  # seconds for the last call of each, and for memory to come back
VALUE = random.Random(1).randbytes(3 << 20)


@pytest.fixture
def seed():
    number = random.randrange(1 << 32)
    print(f"seed {number}")
    return number


@pytest.fixture
def load():
    load = restarts.Load(5)
    yield load
    load.close()


def unfreed(status):
    """Nothing while every granule is free; else all that is known about it."""
    counts = status["namenode"]
    if counts["granules_free"] == counts["granules_total"]:
        return None
    return pprint.pformat((counts, status["servers"]))


def wait_until_all_is_free(store):
    """Nobody holds grants any more."""
    end = time.monotonic() + PATIENCE / 3
    while left := unfreed(store.status()):
        assert time.monotonic() < end, left
        threading.Event().wait(0.02)


def clean_up(cluster):
    """All is removed, and then every granule is free: nothing was lost on the way."""
    with cluster.connect(timeout=60) as store:
        assert store.check() is None
        if store.exists("/restarts"):
            store.rmtree("/restarts")
        wait_until_all_is_free(store)
        assert store.check() is None


def kill_every_two_seconds(load, until, kill):
    kills = 0
    while time.monotonic() < until and not load.failed:
        threading.Event().wait(EVERY)
        kill()
        kills += 1
    return kills


def restart(*servers):
    for server in servers:
        server.kill()
    for server in servers:
        server.start()


@pytest.mark.parametrize("durability", ["group", "sync"])
def test_no_call_fails_while_the_namenode_is_killed_every_two_seconds(seed, load, durability):
    may_lose = durability == "group"
    with crailpy.LocalCluster(dram="4GiB", durability=durability, session_grace=5) as cluster:
        until = time.monotonic() + SECONDS
        for i, work in enumerate((restarts.small, restarts.large, restarts.asynchronous)):
            load.add(work, cluster.address, seed + i, until, may_lose)
        load.add(restarts.stream, cluster.address, seed + 9, until, may_lose, STREAM)
        kills = kill_every_two_seconds(load, until, lambda: restart(cluster.namenode))
        done = load.results(PATIENCE)
        print(f"{kills} kills, {done}")
        assert kills >= SECONDS / EVERY / 2
        assert all(n for _, n in done)
        clean_up(cluster)


def test_no_call_fails_while_both_are_killed(seed, load):
    with crailpy.LocalCluster(dram="2GiB", durability="sync", session_grace=5) as cluster:
        until = time.monotonic() + SECONDS
        for i, work in enumerate((restarts.small, restarts.large, restarts.asynchronous)):
            load.add(work, cluster.address, seed + i, until, False)
        both = (cluster.namenode, cluster.servers[0])
        kills = kill_every_two_seconds(load, until, lambda: restart(*both))
        done = load.results(PATIENCE)
        print(f"{kills} kills, {done}")
        clean_up(cluster)


def test_no_call_fails_while_the_storage_server_is_killed(seed, load):
    with crailpy.LocalCluster(dram="2GiB", durability="sync", session_grace=5) as cluster:
        until = time.monotonic() + SECONDS
        for i, work in enumerate((restarts.small, restarts.large)):
            load.add(work, cluster.address, seed + i, until, False)
        kills = kill_every_two_seconds(load, until, lambda: restart(cluster.servers[0]))
        done = load.results(PATIENCE)
        print(f"{kills} kills, {done}")
        clean_up(cluster)


def test_a_view_of_what_the_namenode_has_forgotten_stays_readable():
    """It was put after the last cut, so the next life of the namenode does not know it: its memory
    is given to nobody before the view goes."""
    with (
        crailpy.LocalCluster(dram="16MiB", group_interval=60) as cluster,
        cluster.connect(timeout=30) as store,
    ):
        store.put("/view", VALUE)
        view = memoryview(store.get_view("/view"))
        cluster.namenode.kill()
        cluster.namenode.start()
        for i in range(20):
            store.put("/others", VALUE[::-1])
            assert view == VALUE, i
        assert not store.exists("/view")
        del view


def test_readers_wait_for_a_server_that_is_still_away():
    with crailpy.LocalCluster(dram="16MiB", durability="sync") as cluster:
        with cluster.connect() as store:
            store.put("/waits", VALUE)
        cluster.servers[0].kill()
        restart(cluster.namenode)
        with cluster.connect(timeout=30) as store:
            found = []
            reader = threading.Thread(target=lambda: found.append(store.get("/waits")))
            reader.start()
            assert store.status()["servers"][0]["state"] == "down"
            cluster.servers[0].start()
            reader.join(30)
            assert found == [VALUE]
            store.put("/waits", VALUE[:9])


@pytest.mark.parametrize("is_restarted", [True, False])
def test_writers_wait_for_the_server_that_was_there_before(is_restarted):
    with crailpy.LocalCluster(dram="16MiB", durability="sync") as cluster:
        cluster.servers[0].kill()
        if is_restarted:
            restart(cluster.namenode)
        with cluster.connect(timeout=30) as store:
            while store.status()["servers"][0]["state"] != "down":
                pass
            done = []
            writer = threading.Thread(target=lambda: done.append(store.put("/later", VALUE)))
            writer.start()
            assert not done
            cluster.servers[0].start()
            writer.join(30)
            assert done
            assert store.get("/later") == VALUE


def test_another_memory_under_the_same_name_is_said_and_what_was_there_is_lost():
    with crailpy.LocalCluster(dram="16MiB", durability="sync") as cluster:
        with cluster.connect() as store:
            store.put("/gone", VALUE)
        cluster.namenode.kill()
        cluster.servers[0].kill()
        shutil.rmtree(os.path.join(cluster.folder, "storage-0"))
        cluster.namenode.start()
        cluster.servers[0].start()
        with cluster.connect(timeout=30) as store:
            store.put("/new", VALUE)
            with pytest.raises(errors.DataLostError):
                store.get("/gone")
            assert [s["lost_incarnations"] for s in store.status()["servers"]] == [[1]]


def test_a_server_that_dies_while_it_tells_what_it_has_starts_over():
    """Also the namenode: whoever dies, the next attempt counts."""
    with (
        crailpy.LocalCluster(dram="512MiB", durability="sync") as cluster,
        cluster.connect(timeout=30) as store,
    ):
        store.put("/kept", VALUE)
        rng = random.Random(5)
        for _ in range(6):
            restart(cluster.namenode)
            threading.Event().wait(rng.uniform(0, 0.05))
            restart(cluster.servers[0])
        assert store.get("/kept") == VALUE
        store.put("/more", VALUE)
        assert store.get("/more") == VALUE
        assert store.check() is None
