"""Cancelled calls: no other call gets their answer, and nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import os
import random

import pytest

import crailpy
import crailpy.aio
from crailpy import errors
from crailpy.client.aio.transfer import room_of

from .kit import until


@pytest.fixture(scope="module")
def own():
    """A store that nobody else talks to."""
    with crailpy.LocalCluster(dram="128MiB") as cluster, cluster.connect() as watcher:
        yield cluster, watcher


@pytest.fixture(params=["shm", "tcp"])
def transport(request):
    return request.param


@pytest.fixture
def seed():
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return seed


def facts(watcher) -> dict[str, int]:
    """What the namenode counts, once nothing is on its way back and no other session is there."""
    names = ("granules_free", "granules_used", "granules_granted", "nodes", "lanes", "sessions")

    def found() -> dict[str, int] | None:
        now = watcher.status()["namenode"]
        busy = now["sessions"] > 1 or now["granules_retiring"] or now["background_pending"]
        return None if busy else {name: now[name] for name in names}

    return until(found)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def settled(aio) -> None:
    """Nothing of an earlier call is on its way any more."""
    while aio._session.space.native.frames:  # noqa: ASYNC110 (nobody tells of it)
        await asyncio.sleep(0)
    await aio.put("/settled", b"")
    await aio.get("/settled")
    await aio.delete("/settled")


async def test_replies_belong_to_their_calls_under_random_cancellation(own, seed):
    cluster, watcher = own
    rng = random.Random(seed)
    n = 10_000
    watcher.put_many([(f"/c/{i}", b"value of %d" % i) for i in range(n)])
    watcher.put("/c/large", b"L" * 100_000)
    before = facts(watcher), descriptors()
    async with crailpy.aio.connect(cluster.address) as aio:
        await aio.get("/c/0")

        async def get(i: int) -> None:
            assert await aio.get(f"/c/{i}") == b"value of %d" % i

        for _ in range(3):
            tasks = [asyncio.ensure_future(get(i)) for i in range(n)]
            cancelled = 0
            while any(not task.done() for task in tasks):
                for task in rng.sample(tasks, 300):
                    cancelled += task.cancel()
                await asyncio.sleep(0)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(o is None or isinstance(o, asyncio.CancelledError) for o in outcomes)
            assert 0 < cancelled < n
            print(f"{cancelled} of {n} cancelled")
        assert await aio.get("/c/large") == b"L" * 100_000
        await settled(aio)
        assert aio._reads.frames == 0
        assert aio.client_stats()["slots_used"] == 0
    assert (facts(watcher), descriptors()) == before
    watcher.rmtree("/c")


async def test_changes_are_made_once_or_not_at_all_under_random_cancellation(own, seed):
    cluster, _ = own
    rng = random.Random(seed)
    n = 3000
    async with crailpy.aio.connect(cluster.address) as aio:
        done: dict[int, int] = {}

        async def put(i: int) -> None:
            done[i] = await aio.put(f"/m/{i}", b"%d" % i, if_absent=True)

        tasks = [asyncio.ensure_future(put(i)) for i in range(n)]
        while any(not task.done() for task in tasks):
            for task in rng.sample(tasks, 100):
                task.cancel()
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(o is None or isinstance(o, asyncio.CancelledError) for o in outcomes)
        await settled(aio)
        infos = await aio.stat_many([f"/m/{i}" for i in range(n)])
        for i, info in enumerate(infos):
            if i in done:
                assert info is not None
                assert info.version == done[i]
            if info is not None:
                assert await aio.get(f"/m/{i}") == b"%d" % i
        await aio.mkdir("/m", exist_ok=True)
        await aio.rmtree("/m")


async def test_a_change_that_was_not_sent_when_it_was_cancelled_is_never_made(own):
    cluster, _ = own
    async with crailpy.aio.connect(cluster.address) as aio:
        await settled(aio)
        for call in (
            aio.put("/never", b"1"),
            aio.put_many([("/never", b"1")]),
            aio.mkdir("/never"),
        ):
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0)  # it has asked; the flush comes after it
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await settled(aio)
        assert not await aio.exists("/never")


def granted(watcher) -> int:
    """Granules that are granted to sessions, once nothing is on its way back."""

    def found() -> tuple[int] | None:
        now = watcher.status()["namenode"]
        return None if now["granules_retiring"] else (now["granules_granted"],)

    return until(found)[0]


def held(aio) -> int:
    """Granules of the grants that it holds ahead."""
    return sum(room_of(extent) for extent in aio._transfers._grants) // 4096


SIZE = 9 << 20


async def large_put(aio):
    await aio.put("/large/new", b"n" * SIZE)


async def large_get(aio):
    assert await aio.get("/large/old") == b"o" * SIZE


async def large_get_into(aio):
    buffer = bytearray(SIZE)
    await aio.get_into("/large/old", buffer)
    assert buffer == b"o" * SIZE


async def large_view(aio):
    with await aio.get_view("/large/old") as view:
        assert bytes(view) == b"o" * SIZE


@pytest.mark.parametrize("call", [large_put, large_get, large_get_into, large_view])
@pytest.mark.parametrize("connect_first", [True, False])
async def test_cancelled_at_every_tick_a_large_call_leaves_nothing(
    own, transport, call, connect_first
):
    """After the k-th tick of the loop, for every k until it is through by then; with a store that
    has its connections, and with one that is just making them."""
    cluster, watcher = own
    watcher.put("/large/old", b"o" * SIZE)
    before = facts(watcher), descriptors()
    store = crailpy.aio.connect(cluster.address, transport=transport)
    k, misses = 0, 0
    while misses < 3:
        if k == 0 or not connect_first:
            store = await crailpy.aio.connect(cluster.address, transport=transport)
            if connect_first:
                await call(store)
        task = asyncio.ensure_future(call(store))
        for _ in range(k):
            await asyncio.sleep(0)
        misses += task.done()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        if k % 10 == 0:
            await settled(store)
            assert store.client_stats()["slots_used"] == 0
            assert granted(watcher) == before[0]["granules_granted"] + held(store)
        if not connect_first:
            await store.close()
        k += 1 + k // (40 if connect_first else 10)
    print(f"through after {k} ticks")
    if connect_first:
        await call(store)
        await settled(store)
        assert store.client_stats()["slots_used"] == 0
        await store.close()
    if watcher.exists("/large/new"):
        watcher.delete("/large/new")
    assert watcher.get("/large/old") == b"o" * SIZE
    assert (facts(watcher), descriptors()) == before
    assert watcher.check() is None


async def test_deadlines_in_mid_transfer_leave_nothing(own, transport, seed):
    cluster, watcher = own
    rng = random.Random(seed)
    watcher.put("/large/old", b"o" * SIZE)
    before = facts(watcher), descriptors()
    late = 0
    async with crailpy.aio.connect(cluster.address, transport=transport) as aio:

        async def put_or_get(i: int) -> None:
            nonlocal late
            limit = rng.random() * 0.02
            try:
                if i % 2:
                    await aio.put(f"/large/d{i % 4}", b"d" * SIZE, timeout=limit)
                else:
                    assert await aio.get("/large/old", timeout=limit) == b"o" * SIZE
            except errors.DeadlineError:
                late += 1

        for _ in range(20):
            await asyncio.gather(*(put_or_get(i) for i in range(4)))
        await settled(aio)
        assert aio.client_stats()["slots_used"] == 0
        assert granted(watcher) == before[0]["granules_granted"] + held(aio)
    assert late > 0
    for i in range(4):
        watcher.delete(f"/large/d{i}", missing_ok=True)
    assert (facts(watcher), descriptors()) == before
    assert watcher.check() is None
