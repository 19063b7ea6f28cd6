"""When a disk is flushed, and what `stat` and listings say of a value then: the weakest promise."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

import crailpy

from .kit import until

MIB = 1 << 20
VALUE = os.urandom(MIB)


@pytest.fixture(scope="module", params=["group", "sync"])
def cluster(request):
    """One server of memory, one of the file tier."""
    with crailpy.LocalCluster(
        dram="64MiB",
        tiers=("dram", "file"),
        capacity="256MiB",
        durability=request.param,
        heartbeat=0.05,
    ) as cluster:
        cluster.promise = request.param
        yield cluster


@pytest.fixture
def store(cluster):
    with cluster.connect() as store:
        yield store
        clear(store)


def clear(store) -> None:
    for name in store.listdir("/"):
        store.rmtree(f"/{name}")


class Flushes:
    """How often the disks were flushed since this was made, or asked last."""

    def __init__(self, store) -> None:
        self._store = store
        self._before = 0
        self()

    def _servers(self, since: float) -> list[dict]:
        """When all of them have sent a heartbeat since then."""

        def fresh() -> list[dict] | None:
            now = time.monotonic()  # before they are asked: they are heard of later than it says
            servers = self._store.status()["servers"]
            ages = [server["last_seen_s"] for server in servers if server["stats"]]
            return servers if len(ages) == 2 and max(ages) < now - since - 0.001 else None

        return until(fresh)

    def __call__(self) -> int:
        self._servers(time.monotonic())  # what is in this one may be older
        now = sum(s["stats"]["flushes"] for s in self._servers(time.monotonic()))
        n, self._before = now - self._before, now
        return n


def write_all(store, **how):
    """A value in every way there is; the paths of all but the last, an item of a queue."""
    store.put("/put", VALUE, **how)
    store.put_object("/object", [VALUE], **how)
    store.put_many([("/many0", VALUE), ("/many1", b"small"), ("/many2", VALUE)], **how)
    with store.open("/stream", "wb", **how) as file:
        for _ in range(3):
            file.write(VALUE)
    with store.open("/text", "w", **how) as file:
        file.write("text" * MIB)
    multifile = store.multifile("/multifile")
    with multifile.writer("part", **how) as file:
        file.write(VALUE)
    store.queue("/queue", **how).put(VALUE)
    return ["/put", "/object", "/many0", "/many2", "/stream", "/text", "/multifile/part"]


async def write_all_awaited(address, **how):
    async with await crailpy.aio.connect(address) as store:
        await store.put("/put", VALUE, **how)
        await store.put_object("/object", [VALUE], **how)
        await store.put_many([("/many0", VALUE), ("/many1", b"small"), ("/many2", VALUE)], **how)
        async with await store.open("/stream", "wb", **how) as file:
            for _ in range(3):
                await file.write(VALUE)
        async with await store.open("/text", "w", **how) as file:
            await file.write("text" * MIB)
        multifile = await store.multifile("/multifile")
        async with await multifile.writer("part", **how) as file:
            await file.write(VALUE)
        await (await store.queue("/queue", **how)).put(VALUE)
    return ["/put", "/object", "/many0", "/many2", "/stream", "/text", "/multifile/part"]


def promises(store, paths) -> set[str]:
    said = {store.stat(path).durability for path in paths}
    listed = {info.path: info.durability for info in store.scandir("/")}
    assert {listed[path] for path in paths if path in listed} == said
    return said


@pytest.mark.parametrize("face", ["synchronous", "synchronous, by tcp", "asynchronous"])
def test_disks_are_flushed_where_sync_is_promised_and_nowhere_else(cluster, store, face):
    def write(**how):
        clear(store)
        if face == "asynchronous":
            return asyncio.run(write_all_awaited(cluster.address, **how))
        with cluster.connect(transport="tcp" if "tcp" in face else None) as other:
            return write_all(other, **how)

    flushes = Flushes(store)
    paths = write(tier="file", durability="group")
    assert (promises(store, paths), flushes()) == ({"none"}, 0)
    paths = write(tier="dram", strict=True, durability="sync")
    assert (promises(store, paths), flushes()) == ({"none"}, 0)
    paths = write(tier="file", durability="sync")
    assert (promises(store, paths), flushes()) == ({cluster.promise}, len(paths) + 1)
    paths = write(tier="file")  # as the cluster promises
    is_sync = cluster.promise == "sync"
    expected = ({"sync"}, len(paths) + 1) if is_sync else ({"none"}, 0)
    assert (promises(store, paths), flushes()) == expected
    assert store.stat("/many1").durability == cluster.promise  # it lies with the namenode


@pytest.mark.parametrize("mode", ["ab", "r+b"])
def test_an_edit_promises_what_it_did_itself_at_most(cluster, store, mode):
    def edit(durability: str) -> None:
        with store.open("/v", mode, durability=durability) as file:
            file.write(b"more" * 1000)

    store.put("/v", VALUE, tier="file", strict=True, durability="sync")
    flushes = Flushes(store)
    edit("sync")
    assert (promises(store, ["/v"]), flushes()) == ({cluster.promise}, 1)
    edit("group")
    assert (promises(store, ["/v"]), flushes()) == ({"none"}, 0)
    edit("sync")  # an append keeps bytes that nobody flushed
    assert (promises(store, ["/v"]), flushes()) == (
        {"none" if mode == "ab" else cluster.promise},
        1,
    )


def test_an_awaited_append_flushes_what_it_wrote(cluster, store):
    async def append() -> None:
        async with (
            await crailpy.aio.connect(cluster.address) as awaited,
            await awaited.open("/v", "ab", durability="sync") as file,
        ):
            await file.write(b"more" * 1000)

    store.put("/v", VALUE, tier="file", strict=True, durability="sync")
    flushes = Flushes(store)
    asyncio.run(append())
    assert (promises(store, ["/v"]), flushes()) == ({cluster.promise}, 1)
    assert store.get("/v") == VALUE + b"more" * 1000


def test_a_value_that_lies_partly_in_memory_promises_nothing(cluster, store):
    with store.open("/v", "wb", stripe=2, durability="sync") as file:
        file.write(VALUE * 4)
    assert {place["server"] for place in store.stat("/v").locations} == {1, 2}
    assert promises(store, ["/v"]) == {"none"}


def test_a_rename_and_a_restart_keep_what_is_promised(cluster, store):
    store.put("/v", VALUE, tier="file", strict=True, durability="sync")
    store.put("/w", VALUE, tier="file", strict=True, durability="group")
    store.rename("/v", "/renamed")
    store.put("/last", b"1", durability="sync")  # all before it is durable with it
    cluster.namenode.kill()
    cluster.namenode.start()
    assert promises(store, ["/renamed"]) == {cluster.promise}
    assert promises(store, ["/w"]) == {"none"}
    assert store.get("/renamed") == VALUE
    assert store.check() is None
