"""The asynchronous face when connections break, replies are lost and services die."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

from ..stopping import stop
from .proxy import DroppingProxy

NEVER = 1 << 60


@pytest.fixture
def own():
    with crailpy.LocalCluster(dram="64MiB") as cluster:
        yield cluster


@pytest.fixture
def forgetful():
    """Its namenode keeps nothing: who started it again has lost its session."""
    with crailpy.LocalCluster(dram="64MiB", durability="none") as cluster:
        yield cluster


def target(cluster) -> tuple[str, int]:
    host, port = cluster.address.removeprefix("crail://").split(":")
    return host, int(port)


async def through(proxy, **options):
    options = {"transport": "tcp", "timeout": 30} | options
    return await crailpy.aio.connect(proxy.address, **options)


async def test_lost_replies_double_no_change_however_many_are_under_way(cluster):
    with DroppingProxy(target(cluster), k=3) as proxy:
        async with await through(proxy) as aio:
            for round_ in range(3):
                keys = [f"/aonce/{round_}/{i}" for i in range(300)]
                versions = await asyncio.gather(
                    *(aio.put(key, key.encode(), if_absent=True) for key in keys)
                )
                infos = await aio.stat_many(keys)
                assert [info.version for info in infos] == versions
                await asyncio.gather(*(aio.rename(key, key + "r") for key in keys))
                assert await aio.get_many([key + "r" for key in keys]) == [
                    key.encode() for key in keys
                ]
                await asyncio.gather(*(aio.delete(key + "r") for key in keys))
                with pytest.raises(errors.NotFoundError):
                    await aio.delete(keys[0] + "r")
            assert proxy.dropped > 2
            assert aio.client_stats()["reconnects"] >= proxy.dropped
            await aio.rmtree("/aonce")


async def test_large_values_survive_lost_replies_and_leak_no_granule(cluster):
    with DroppingProxy(target(cluster), k=4) as proxy, cluster.connect() as watcher:
        values = [bytes([i]) * (200_000 + 5000 * i) for i in range(8)]
        before = watcher.status()["namenode"]["granules_used"]
        async with await through(proxy) as aio:
            for _ in range(3):
                await asyncio.gather(*(aio.put(f"/abulk/{i}", v) for i, v in enumerate(values)))
                got = await asyncio.gather(*(aio.get(f"/abulk/{i}") for i in range(8)))
                assert got == values
            await aio.rmtree("/abulk")
            assert proxy.dropped > 0
        assert watcher.status()["namenode"]["granules_used"] == before


async def test_connections_that_are_cut_all_the_time_change_no_answer(cluster):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with DroppingProxy(target(cluster), k=NEVER) as proxy:
        async with await through(proxy) as aio:
            await aio.mkdir("/acut")
            stop = asyncio.Event()
            cuts = 0

            async def cutter() -> None:
                nonlocal cuts
                while not stop.is_set():
                    await asyncio.sleep(rng.random() * 0.03)
                    proxy.cut()
                    cuts += 1

            async def worker(n: int) -> None:
                for i in range(30):
                    key = f"/acut/{n}-{i}"
                    await aio.put(key, key.encode() * n, if_absent=True)
                    assert await aio.get(key) == key.encode() * n
                    await aio.delete(key)
                    assert not await aio.exists(key)

            cutting = asyncio.ensure_future(cutter())
            try:
                await asyncio.gather(*(worker(n) for n in range(40)))
            finally:
                stop.set()
                await cutting
            assert cuts > 0
            assert await aio.listdir("/acut") == []
            await aio.rmtree("/acut")


async def test_a_change_that_may_have_been_made_in_a_lost_session_is_said_to_be_unknown(forgetful):
    with DroppingProxy(target(forgetful), k=1) as proxy:
        async with await through(proxy) as aio:
            sent = asyncio.ensure_future(aio.put("/unknown", b"1"))
            while not proxy.dropped:  # noqa: ASYNC110 (what we wait for is in a thread)
                await asyncio.sleep(0.01)
            queued = asyncio.ensure_future(aio.put("/queued", b"2"))  # behind it, not sent
            proxy.k = NEVER
            forgetful.namenode.kill()
            forgetful.namenode.start()
            proxy.cut()
            with pytest.raises(errors.UnavailableError, match="outcome unknown"):
                await sent
            assert await queued > 0
            assert await aio.get("/queued") == b"2"
            assert not await aio.exists("/unknown"), "this namenode remembers nothing"


async def test_reads_go_on_in_the_next_session_after_the_namenode_died(forgetful):
    async with crailpy.aio.connect(forgetful.address, timeout=30) as aio:
        await aio.put("/gone", b"x" * 100_000)
        stop(forgetful.namenode.pid)
        calls = [asyncio.ensure_future(aio.get("/gone", default=None)) for _ in range(500)]
        await asyncio.sleep(0)
        forgetful.namenode.kill()
        forgetful.namenode.start()
        assert set(await asyncio.gather(*calls)) == {None}
        while True:  # until the storage server has registered
            try:
                await aio.put("/back", b"y" * 100_000)
                break
            except errors.OutOfSpaceError:
                await asyncio.sleep(0.05)
        assert await aio.get("/back") == b"y" * 100_000


async def test_deadlines_hold_while_nobody_answers_and_shift_no_reply(own):
    async with crailpy.aio.connect(own.address) as aio:
        await aio.put("/a", b"a")
        await aio.put("/b", b"b" * 100_000)
        stop(own.namenode.pid)
        try:
            begin = time.monotonic()
            calls = [aio.get("/a", timeout=0.2), aio.put("/c", b"c", timeout=0.3)]
            calls += [aio.put("/d", b"d" * 100_000, timeout=0.2), aio.get_many(["/a"], timeout=0.1)]
            calls += [aio.get("/b", timeout=0.2), aio.listdir("/", timeout=0.2)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            took = time.monotonic() - begin
        finally:
            os.kill(own.namenode.pid, signal.SIGCONT)
        assert all(isinstance(o, errors.DeadlineError) for o in outcomes), outcomes
        assert 0.1 <= took < 5
        assert await asyncio.gather(aio.get("/a"), aio.get("/b")) == [b"a", b"b" * 100_000]
        assert await aio.put("/e", b"e" * 100_000) > 0
        assert await aio.get("/e") == b"e" * 100_000


async def test_a_namenode_that_is_away_is_named_and_found_again(own):
    async with crailpy.aio.connect(own.address, timeout=30) as aio:
        await aio.put("/a", b"a")
        own.namenode.kill()
        outcomes = await asyncio.gather(
            aio.get("/a", timeout=0.5), aio.put("/b", b"", timeout=0.5), return_exceptions=True
        )
        assert all(isinstance(o, errors.UnavailableError) for o in outcomes), outcomes
        waiting = asyncio.ensure_future(aio.exists("/a"))
        await asyncio.sleep(0)
        own.namenode.start()
        assert await waiting is False


@pytest.mark.parametrize("transport", ["shm", "tcp"])
async def test_a_storage_server_that_died_is_found_again(own, transport):
    data = random.Random(1).randbytes(3_000_000)
    async with crailpy.aio.connect(own.address, transport=transport) as aio:
        await aio.put("/v", data)
        assert await aio.get("/v") == data
        own.servers[0].kill()
        if transport == "tcp":
            with pytest.raises((errors.UnavailableError, errors.DeadlineError)):
                await aio.get("/v", timeout=0.5)
        own.servers[0].start()
        assert await aio.get("/v") == data
        await aio.put("/w", data)
        assert await aio.get("/w") == data


async def test_waits_end_in_time_while_nobody_answers(own):
    async with crailpy.aio.connect(own.address) as aio:
        await aio.put("/a", b"")
        stop(own.namenode.pid)
        try:
            begin = time.monotonic()
            outcomes = await asyncio.gather(
                aio.barrier("/b", 2, timeout=1), aio.wait("/c", timeout=1), return_exceptions=True
            )
            took = time.monotonic() - begin
        finally:
            os.kill(own.namenode.pid, signal.SIGCONT)
        assert all(isinstance(o, errors.DeadlineError) for o in outcomes), outcomes
        assert 1 <= took < 3.5


def cut_data(aio) -> int:
    """Ends every connection to a storage server that waits for its next use; how many."""
    free = [sock for to in aio._session._data.values() for sock in to._free]
    for sock in free:
        sock.shutdown(socket.SHUT_RDWR)
    return len(free)


@pytest.mark.parametrize("mode", ["wb", "xb", "ab", "r+b"])
async def test_files_over_tcp_are_written_and_read_though_connections_break(cluster, mode):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    old, piece = rng.randbytes(700_000), rng.randbytes(300_000)
    async with crailpy.aio.connect(cluster.address, transport="tcp") as aio:
        await aio.put("/acutfile/warm", old)  # brings connections that can break
        if mode in ("ab", "r+b"):
            await aio.put("/acutfile/f", old)
        expected = bytearray(old if mode in ("ab", "r+b") else b"")
        cuts = cut_data(aio)
        async with await aio.open("/acutfile/f", mode) as file:
            for _ in range(12):
                at = len(expected)
                if mode != "ab" and rng.random() < 0.5:
                    at = rng.randrange(len(expected) + 1)
                    await file.seek(at)
                elif mode != "ab":
                    await file.seek(0, 2)
                await file.write(piece)
                expected[at : at + len(piece)] = piece
                cuts += cut_data(aio)
        assert cuts > 3
        assert await aio.get("/acutfile/f") == expected
        cut_data(aio)
        async with await aio.open("/acutfile/f") as file:
            assert await file.read(1000) == expected[:1000]
            cut_data(aio)
            assert await file.read() == expected[1000:]
        await aio.rmtree("/acutfile")
        assert await aio.check() is None


async def test_a_store_without_storage_servers_says_so_awaited_too():
    with crailpy.LocalCluster(servers=0) as cluster:
        async with crailpy.aio.connect(cluster.address) as aio:
            for write in (aio.put("/x", bytes(1 << 20)), write_file(aio)):
                with pytest.raises(
                    errors.OutOfSpaceError, match="no storage server is there"
                ) as raised:
                    await write
                assert "crailpy storage" in (raised.value.hint or "")
                assert raised.value.path == "/x"


async def write_file(aio) -> None:
    async with await aio.open("/x", "wb") as file:
        await file.write(bytes(1 << 20))
