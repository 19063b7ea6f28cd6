"""What runs, in processes of its own, on a store whose servers are killed and started again. Each
function works until `until` (seconds of the monotonic clock, the same for all processes of a
machine), and returns how much it did; no call may fail within its deadline, and no byte may be
wrong. All bytes follow from a name and a number, so whoever finds a value knows what it must be."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context

import crailpy
import crailpy.aio
from crailpy import errors

MIB = 1 << 20
TIMEOUT = 60.0  # seconds: the deadline of every call
HEAD = 16


def block(seed: int, number: int) -> bytes:
    """A MiB that belongs to this number."""
    base = random.Random(seed).randbytes(MIB - HEAD)
    return seed.to_bytes(8, "little") + number.to_bytes(8, "little") + base


class Blocks:
    """The MiBs of one seed; made once."""

    def __init__(self, seed: int) -> None:
        self._base = block(seed, 0)[HEAD:]
        self.seed = seed

    def __call__(self, number: int) -> bytes:
        return self.seed.to_bytes(8, "little") + number.to_bytes(8, "little") + self._base

    def value(self, number: int, size: int) -> bytes:
        """So many bytes, of this and the next numbers."""
        return b"".join(self(number + i) for i in range(-(-size // MIB)))[:size]


def reach(address: str) -> crailpy.Store:
    """A store; also where its namenode is away just now, which a newcomer is told at once."""
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            return crailpy.connect(address, timeout=TIMEOUT)
        except errors.UnavailableError:
            if time.monotonic() > end:
                raise
        time.sleep(0.02)


async def reach_awaited(address: str) -> crailpy.aio.AsyncStore:
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            return await crailpy.aio.connect(address, timeout=TIMEOUT)
        except errors.UnavailableError:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.02)


def small(address: str, seed: int, until: float, may_lose: bool) -> int:
    """Values of up to 4 KiB under names that come again, read back at once and later."""
    rng = random.Random(seed)
    last: dict[str, int] = {}
    done = 0
    with reach(address) as store:
        while time.monotonic() < until:
            key = f"/restarts/s{seed}/{rng.randrange(100)}"
            done += 1
            text = f"{key} {done} " * rng.randrange(1, 60)
            store.put(key, f"{zlib.crc32(text.encode())} {text}".encode())
            last[key] = done
            key = rng.choice(list(last))
            try:
                crc, _, found = store.get(key).decode().partition(" ")
            except errors.NotFoundError:
                assert may_lose, key
                continue
            assert zlib.crc32(found.encode()) == int(crc)
            number = int(found.split()[1])
            assert found.startswith(f"{key} ")
            assert number <= last[key]
            assert may_lose or number == last[key]
    return done


def large(address: str, seed: int, until: float, may_lose: bool) -> int:
    """Values of 1 to 64 MiB, read in three ways; views of the last ones are held and looked at
    again."""
    rng = random.Random(seed)
    blocks = Blocks(seed)
    done = 0
    views: list[tuple[memoryview, int]] = []
    room = bytearray(64 * MIB)
    with reach(address) as store:
        while time.monotonic() < until:
            size = rng.randrange(MIB, 64 * MIB)
            value = blocks.value(done, size)
            key = f"/restarts/l{seed}/{done % 3}"
            store.put(key, value)
            done += 1
            try:
                if done % 3 == 0:
                    assert store.get_into(key, room) == size or may_lose
                    assert room[HEAD : 2 * HEAD] == value[HEAD : 2 * HEAD]
                    assert may_lose or room[:size] == value
                elif done % 3 == 1:
                    assert store.get(key) == value or may_lose
                else:
                    view = memoryview(store.get_view(key))
                    views.append((view, zlib.crc32(view)))
            except errors.NotFoundError:
                assert may_lose, key
            for view, crc in views:
                assert zlib.crc32(view) == crc
                assert view[HEAD : 2 * HEAD] == value[HEAD : 2 * HEAD]
            del views[:-2]
        views.clear()
    return done


def stream(address: str, seed: int, until: float, may_lose: bool, size: int) -> int:
    """Files of `size` bytes in writes of 1 MiB, read back in pieces."""
    blocks = Blocks(seed)
    done = 0
    with reach(address) as store:
        while time.monotonic() < until or not done:
            path = f"/restarts/f{seed}"
            with store.open(path, "wb") as file:
                for i in range(size // MIB):
                    file.write(blocks(i + done))
            try:
                with store.open(path, "rb") as file:
                    for i in range(size // MIB):
                        found = file.read(MIB)
                        assert found[8:HEAD] == (i + done).to_bytes(8, "little") or may_lose
                        assert found[HEAD:] == blocks(0)[HEAD:]
            except errors.NotFoundError:
                assert may_lose
            done += 1
    return done


def asynchronous(address: str, seed: int, until: float, may_lose: bool) -> int:
    """The asynchronous face: small and large values, many at once."""

    async def work() -> int:
        rng = random.Random(seed)
        blocks = Blocks(seed)
        done = 0
        async with await reach_awaited(address) as store:

            async def one(i: int) -> None:
                size = rng.choice((10, 5000, MIB, 4 * MIB))
                value = blocks.value(done, size)
                key = f"/restarts/a{seed}/{i}"
                await store.put(key, value)
                try:
                    assert await store.get(key) == value or may_lose
                except errors.NotFoundError:
                    assert may_lose, key

            while time.monotonic() < until:
                await asyncio.gather(*(one(i) for i in range(8)))
                done += 8
        return done

    return asyncio.run(work())


class Load:
    """Functions of this file in processes of their own. End them before the store."""

    def __init__(self, processes: int) -> None:
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
        self._futures: list[tuple[str, Future[int]]] = []

    def add(self, work: Callable[..., int], *arguments: object) -> None:
        self._futures.append((work.__name__, self._pool.submit(work, *arguments)))

    @property
    def failed(self) -> bool:
        """Has one of them raised something?"""
        return any(f.done() and f.exception() is not None for _, f in self._futures)

    def results(self, timeout: float) -> list[tuple[str, int]]:
        """What they did. Raises what the first of them raised."""
        wait([future for _, future in self._futures], timeout, FIRST_EXCEPTION)
        for _, future in self._futures:
            if future.done() and future.exception() is not None:
                future.result()
        return [(name, future.result(0)) for name, future in self._futures]

    def close(self) -> None:
        """After a failure the others are not waited for."""
        if not all(future.done() for _, future in self._futures):
            for child in active_children():
                child.kill()
        self._pool.shutdown(cancel_futures=True)
