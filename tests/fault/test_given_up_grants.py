"""What is granted to a call at the very moment at which it gives up goes back, to the granule."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

from .proxy import FRAME, OP, DroppingProxy

COMMIT, ALLOC, RELEASE = 17, 18, 19
SIZE = 3 << 20
GRANULES = SIZE // 4096


class Swallowing(DroppingProxy):
    """Executes every request; the reply to the next one of code `swallow` never comes."""

    swallow = 0

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target, k=0)
        self.swallowed = threading.Event()

    def _verdict(self, request: bytes) -> str:
        if OP.unpack_from(request, FRAME.size)[0] != self.swallow:
            return "pass"
        self.swallow = 0
        self.swallowed.set()
        return "silence"


@pytest.fixture
def proxy(cluster):
    host, port = cluster.address.removeprefix("crail://").split(":")
    with Swallowing((host, int(port))) as proxy:
        yield proxy


@pytest.fixture
def granules(cluster):
    """(used by values, granted to sessions), of the whole cluster; nothing on its way back."""
    with cluster.connect() as watcher:

        def counted() -> tuple[int, int]:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                facts = watcher.status()["namenode"]
                if not facts["granules_retiring"] and not facts["background_pending"]:
                    assert watcher.check() is None
                    return facts["granules_used"], facts["granules_granted"]
            raise AssertionError("granules do not settle")

        before = counted()
        yield lambda: tuple(now - then for now, then in zip(counted(), before, strict=True))


@pytest.mark.parametrize("times", [1, 3])
def test_what_is_granted_to_a_call_that_gave_up_goes_back(proxy, granules, times):
    with crailpy.connect(proxy.address, transport="tcp", timeout=30) as store:
        store.put("/gave", b"small")
        for _ in range(times):
            proxy.swallow = ALLOC
            with pytest.raises(errors.DeadlineError):
                store.put("/gave", bytes(SIZE), timeout=0.3)
            assert granules() == (0, GRANULES), "nobody knows of it yet"
            assert store.get("/gave") == b"small"  # whatever is asked next
            assert granules() == (0, 0)
        assert store.incr("/gave-n") == 1, "and the lane counts on"
        store.delete_many(["/gave", "/gave-n"])
    assert granules() == (0, 0)


def test_what_a_commit_brings_for_the_next_goes_back_and_the_value_is_there_once(proxy, granules):
    data = bytes(range(256)) * (SIZE // 256)
    with crailpy.connect(proxy.address, transport="tcp", timeout=30) as store:
        store.put("/gave", b"small")
        proxy.swallow = COMMIT
        with pytest.raises(errors.DeadlineError):
            store.put("/gave", data, timeout=0.6)
        used, granted = granules()
        assert used == GRANULES
        assert granted >= GRANULES, "it is to make the next put faster"
        version = store.stat("/gave").version
        assert granules() == (GRANULES, 0)
        assert store.get("/gave") == data
        assert store.stat("/gave").version == version
        store.delete("/gave")
    assert granules() == (0, 0)


def test_a_lane_that_gave_up_twice_asks_again_for_what_is_its_own(proxy, granules):
    """The question itself, and the giving back, may be given up too."""
    with crailpy.connect(proxy.address, transport="tcp", timeout=30) as store:
        store.put("/gave", b"small")
        for again in (ALLOC, RELEASE):  # the same number once more; what it brought
            proxy.swallow = ALLOC
            with pytest.raises(errors.DeadlineError):
                store.put("/gave", bytes(SIZE), timeout=0.3)
            proxy.swallow = again
            with pytest.raises(errors.DeadlineError):
                store.get("/gave", timeout=0.3)
            assert store.get("/gave") == b"small"
            assert granules() == (0, 0)
        store.delete("/gave")


async def test_what_is_granted_to_a_task_that_was_cancelled_goes_back(proxy, granules):
    async with crailpy.aio.connect(proxy.address, transport="tcp", timeout=30) as store:
        await store.put("/gave", b"small")
        proxy.swallow = ALLOC
        task = asyncio.ensure_future(store.put("/gave", bytes(64 << 20)))
        await asyncio.to_thread(proxy.swallowed.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(granules) == (0, (64 << 20) // 4096)
        proxy.cut()  # or the silence is noticed after a second
        async with asyncio.timeout(20):
            while await asyncio.to_thread(granules) != (0, 0):
                await store.get("/gave")
        await store.delete("/gave")
