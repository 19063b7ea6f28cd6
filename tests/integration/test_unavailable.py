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


# ---- each call, on both faces ----------------------------------------------------------------

BIG = bytes(100_000)
BUFFER = bytearray(10)


def opened(mode):
    """Opens, writes and closes."""

    def sync(store):
        with store.open("/o", mode) as file:
            file.write(b"x")

    async def awaited(store):
        async with await store.open("/o", mode) as file:
            await file.write(b"x")

    return lambda store: (awaited if isinstance(store, crailpy.aio.AsyncStore) else sync)(store)


def on_container(make, use):
    def sync(store):
        return use(make(store))

    async def awaited(store):
        return await use(await make(store))

    return lambda store: (awaited if isinstance(store, crailpy.aio.AsyncStore) else sync)(store)


def listed(ask):
    """The items of an iterator."""

    async def awaited(store):
        return [item async for item in ask(store)]

    return lambda store: (
        awaited(store) if isinstance(store, crailpy.aio.AsyncStore) else list(ask(store))
    )


ABSENT = {
    "get": lambda store: store.get("/a"),
    "get_view": lambda store: store.get_view("/a"),
    "get_into": lambda store: store.get_into("/a", BUFFER),
    "get_range": lambda store: store.get_range("/a", 0, 5),
    "get_object": lambda store: store.get_object("/a"),
    "stat": lambda store: store.stat("/a"),
    "listdir": lambda store: store.listdir("/"),
    "scandir": listed(lambda store: store.scandir("/")),
    "attributes": lambda store: store.attributes("/a"),
}
ANSWERED = {
    "get with a default": (lambda store: store.get("/a", default=5), 5),
    "get_many": (lambda store: store.get_many(["/a", "/b"], missing="none"), [None, None]),
    "exists": (lambda store: store.exists("/a"), False),
    "stat_many": (lambda store: store.stat_many(["/a"]), [None]),
}
#: what is dropped, what it gives, how many writes it counts as
DROPPED = {
    "put": (lambda store: store.put("/p", b"1"), 0, 1),
    "put of much": (lambda store: store.put("/p", BIG), 0, 1),
    "put with a ttl": (lambda store: store.put("/p", b"1", ttl=5), 0, 1),
    "put_object": (lambda store: store.put_object("/p", [1]), 0, 1),
    "put_object of much": (lambda store: store.put_object("/p", [BIG, BIG]), 0, 1),
    "put_many": (lambda store: store.put_many({"/p": b"1", "/q": b"2"}), [0, 0], 2),
    "delete": (lambda store: store.delete("/a"), None, 1),
    "delete_many": (lambda store: store.delete_many(["/a", "/b"]), None, 2),
    "remove": (lambda store: store.remove("/a"), None, 1),
    "rmtree": (lambda store: store.rmtree("/a"), None, 1),
    "rename": (lambda store: store.rename("/a", "/b"), None, 1),
    "mkdir": (lambda store: store.mkdir("/d"), None, 1),
    "setattr": (lambda store: store.setattr("/a", ttl=5), None, 1),
    "touch": (lambda store: store.touch("/a"), None, 1),
    "truncate": (lambda store: store.truncate("/a", 10), None, 1),
    "truncate to much": (lambda store: store.truncate("/a", 100_000), None, 1),
}
RAISING = {
    "put if absent": lambda store: store.put("/p", b"1", if_absent=True),
    "put of much if absent": lambda store: store.put("/p", BIG, if_absent=True),
    "put if of a version": lambda store: store.put("/p", b"1", if_version=5),
    "put_object if absent": lambda store: store.put_object("/p", [1], if_absent=True),
    "touch of what must not be": lambda store: store.touch("/p", exist_ok=False),
    "incr": lambda store: store.incr("/n"),
    "get that waits": lambda store: store.get("/a", wait=0.1),
    "wait": lambda store: store.wait("/a"),
    "wait until absent": lambda store: store.wait("/a", absent=True),
    "barrier": lambda store: store.barrier("/bar", 1),
    "queue.put": on_container(lambda store: store.queue("/q"), lambda queue: queue.put(b"1")),
    "queue.put of much": on_container(
        lambda store: store.queue("/q"), lambda queue: queue.put(BIG)
    ),
    "queue.get": on_container(lambda store: store.queue("/q"), lambda queue: queue.get()),
    "a part of a multifile": on_container(
        lambda store: store.multifile("/m"), lambda many: many.writer()
    ),
    "open to read": lambda store: store.open("/a"),
    "open to write": opened("wb"),
    "open to create": opened("xb"),
    "open to change": opened("r+b"),
    "open to append": opened("ab"),
    "session_path": lambda store: store.session_path(),
}


class Face:
    """A store of one face, whose namenode is away; `call(work)` gives what `work(store)` does."""

    def __init__(self, address, is_async):
        self._runner = asyncio.Runner() if is_async else None
        options = {"on_unavailable": "miss", "timeout": 0.3}
        if self._runner is None:
            self.store = crailpy.connect(address, **options)
        else:
            self.store = self._runner.run(self._connected(address, options))

    async def _connected(self, address, options):
        return await crailpy.aio.connect(address, **options)

    def call(self, work):
        if self._runner is None:
            return work(self.store)

        async def run():
            return await work(self.store)

        return self._runner.run(run())

    def counts(self):
        stats = self.store.client_stats()
        return stats["reads_missed"], stats["writes_dropped"]

    def close(self):
        if self._runner is None:
            self.store.close()
        else:
            self._runner.run(self.store.close())
            self._runner.close()


@pytest.fixture(scope="module", params=["sync", "aio"])
def away(request):
    with crailpy.LocalCluster(dram="64MiB") as cluster:
        face = Face(cluster.address, request.param == "aio")
        face.call(lambda store: store.put("/a", b"1"))
        cluster.namenode.kill()
        for _ in range(4):  # until nobody waits for it any more
            with pytest.raises(errors.NotFoundError):
                face.call(lambda store: store.get("/a"))
        yield face
        face.close()


@pytest.mark.parametrize("call", ABSENT)
def test_reads_report_absent_while_the_store_is_away(away, call):
    before = away.counts()
    with pytest.raises(errors.NotFoundError):
        away.call(ABSENT[call])
    assert away.counts() == (before[0] + 1, before[1])


@pytest.mark.parametrize("call", ANSWERED)
def test_reads_that_have_a_word_for_it_say_absent_while_the_store_is_away(away, call):
    work, answer = ANSWERED[call]
    before = away.counts()
    assert away.call(work) == answer
    assert away.counts()[0] > before[0]


@pytest.mark.parametrize("call", DROPPED)
def test_writes_are_dropped_and_counted_while_the_store_is_away(away, call):
    work, answer, n = DROPPED[call]
    before = away.counts()
    assert away.call(work) == answer
    assert away.counts() == (before[0], before[1] + n)


@pytest.mark.parametrize("call", RAISING)
def test_what_would_be_a_lie_raises_while_the_store_is_away(away, call):
    before = away.counts()[1]
    with pytest.raises((errors.UnavailableError, errors.DeadlineError)):
        away.call(RAISING[call])
    made = call.startswith(("queue", "a part"))  # the container, which is a write as any
    assert away.counts()[1] == before + made
