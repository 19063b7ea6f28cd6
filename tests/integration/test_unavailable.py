"""on_unavailable="miss": a store that is away is an empty one, and is found back."""

from __future__ import annotations

import asyncio
import time

import pytest

import crailpy
import crailpy.aio
from crailpy import errors


@pytest.fixture
def cluster():
    with crailpy.LocalCluster(dram="64MiB") as cluster:
        yield cluster


def test_while_the_store_is_away_reads_miss_and_writes_are_dropped_and_counted(cluster):
    with cluster.connect(on_unavailable="miss", timeout=1) as store:
        assert store.put("/a", b"1") > 0
        assert store.get("/a") == b"1"
        cluster.namenode.kill()
        begin = time.monotonic()
        for _ in range(100):
            assert store.get("/a", default=None) is None
        assert store.put("/b", b"2") == 0
        assert store.put_many({"/c": b"3", "/d": b"4"}) == [0, 0]
        assert store.get_many(["/a", "/b"], missing="none") == [None, None]
        with pytest.raises(errors.BatchError):
            store.get_many(["/a"])
        assert not store.exists("/a")
        assert store.stat_many(["/a"]) == [None]
        store.mkdir("/e")
        for missing in (store.get, store.get_view, store.stat, store.listdir):
            with pytest.raises(errors.NotFoundError):
                missing("/a")
        assert time.monotonic() - begin < 6, "one call waits for the store, not each"
        counts = store.client_stats()
        assert counts["reads_missed"] == 100 + 2 + 1 + 1 + 1 + 4
        assert counts["writes_dropped"] == 1 + 2 + 1
        assert counts["breaker_opened"] >= 1


def test_one_call_finds_the_store_back(cluster):
    with cluster.connect(on_unavailable="miss", timeout=1) as store:
        cluster.namenode.kill()
        assert store.get("/a", default=None) is None
        cluster.namenode.start()
        deadline = time.monotonic() + 30
        while not store.put("/a", b"again"):
            assert time.monotonic() < deadline
        assert store.get("/a") == b"again"


def test_connecting_to_a_store_that_is_away_succeeds_and_it_may_come_later(cluster):
    cluster.namenode.stop()
    with cluster.connect(on_unavailable="miss", timeout=1) as store:
        assert store.get("/a", default=5) == 5
        cluster.namenode.start()
        deadline = time.monotonic() + 30
        while not store.put("/a", b"1"):
            assert time.monotonic() < deadline
    with pytest.raises(errors.InvalidArgumentError):
        cluster.connect(on_unavailable="panic")


def test_errors_that_are_answers_stay_errors(cluster):
    with cluster.connect(on_unavailable="miss") as store:
        store.mkdir("/d")
        with pytest.raises(errors.IsContainerError):
            store.get("/d")
        with pytest.raises(errors.ExistsError):
            store.mkdir("/d")
        counts = store.client_stats()
        assert (counts["reads_missed"], counts["writes_dropped"]) == (0, 0)


async def test_the_asynchronous_store_misses_as_well(cluster):
    connect = crailpy.aio.connect
    async with connect(cluster.address, on_unavailable="miss", timeout=1) as aio:
        assert await aio.put("/a", b"1") > 0
        cluster.namenode.kill()
        begin = time.monotonic()
        gets = [aio.get("/a", default=None) for _ in range(100)]
        assert set(await asyncio.gather(*gets)) == {None}
        assert await aio.put("/b", b"2") == await aio.put("/l", b"2" * 100_000) == 0
        assert await aio.put_many({"/c": b"3", "/d": b"4"}) == [0, 0]
        assert await aio.get_many(["/a", "/b"], missing="none") == [None, None]
        assert await aio.stat_many(["/a"]) == [None]
        await aio.mkdir("/e")
        for missing in (aio.get_view, aio.stat, aio.listdir):
            with pytest.raises(errors.NotFoundError):
                await missing("/a")
        with pytest.raises((errors.UnavailableError, errors.DeadlineError)):
            await aio.incr("/n")
        assert time.monotonic() - begin < 8, "one call waits for the store, not each"
        counts = aio.client_stats()
        assert counts["reads_missed"] == 100 + 2 + 1 + 3
        assert counts["writes_dropped"] == 2 + 2 + 1
        assert counts["breaker_opened"] == 1
        cluster.namenode.start()
        while not await aio.put("/a", b"again"):  # noqa: ASYNC110 (a probe, each time)
            await asyncio.sleep(0)
        assert await aio.get("/a") == b"again"
    cluster.namenode.stop()
    async with connect(cluster.address, on_unavailable="miss", timeout=1) as aio:
        assert await aio.get("/a", default=5) == 5
    with pytest.raises(errors.InvalidArgumentError):
        connect(cluster.address, on_unavailable="panic")
