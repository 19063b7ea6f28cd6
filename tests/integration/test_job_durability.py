"""What a job says of durability holds for all that its store changes below it, by either face."""

from __future__ import annotations

import inspect

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

INTERVAL = 60  # seconds: what is only promised within it is lost with a kill
VALUE = b"x" * 64


@pytest.fixture(scope="module")
def group():
    with crailpy.LocalCluster(dram="16MiB", group_interval=INTERVAL) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sync():
    with crailpy.LocalCluster(dram="16MiB", durability="sync", group_interval=INTERVAL) as cluster:
        yield cluster


@pytest.fixture(params=["sync", "aio"])
def connect(request):
    """A store of a cluster, of either face, as an async context manager."""

    class Plain:
        def __init__(self, cluster):
            self.store = cluster.connect(timeout=30)

        async def __aenter__(self):
            return self.store

        async def __aexit__(self, *_):
            self.store.close()

    if request.param == "sync":
        return Plain
    return lambda cluster: crailpy.aio.connect(cluster.address, timeout=30)


async def got(result):
    return await result if inspect.isawaitable(result) else result


def restart(cluster):
    cluster.namenode.kill()
    cluster.namenode.start()


async def is_durable(store):
    """Of all changes so far. (Another store would wait for its session to be durable.)"""
    facts = (await got(store.status()))["namenode"]
    return facts["durable_lag_ns"] == 0 and facts["nodes_changed"] == 0


async def write(store, path):
    file = await got(store.open(path, "wb"))
    await got(file.write(VALUE))
    await got(file.close())


#: What changes something below a job.
CHANGES = {
    "put": lambda s, p: s.put(f"{p}/new", VALUE),
    "put_many": lambda s, p: s.put_many([(f"{p}/new{i}", VALUE) for i in range(3)]),
    "put_object": lambda s, p: s.put_object(f"{p}/new", 1),
    "incr": lambda s, p: s.incr(f"{p}/counter"),
    "open": lambda s, p: write(s, f"{p}/new"),
    "delete": lambda s, p: s.delete(f"{p}/a"),
    "delete_many": lambda s, p: s.delete_many([f"{p}/a", f"{p}/b"]),
    "rename": lambda s, p: s.rename(f"{p}/a", f"{p}/new"),
    "rename into it": lambda s, p: s.rename("/outside", f"{p}/new"),
    "truncate": lambda s, p: s.truncate(f"{p}/a", 3),
    "setattr": lambda s, p: s.setattr(f"{p}/a", **{"user.x": b"1"}),
    "mkdir": lambda s, p: s.mkdir(f"{p}/new"),
    "touch": lambda s, p: s.touch(f"{p}/new"),
    "remove": lambda s, p: s.remove(f"{p}/a"),
    "rmtree": lambda s, p: s.rmtree(f"{p}/tree"),
}


async def test_changes_below_a_sync_job_are_durable_when_they_are_answered(group, connect):
    async with connect(group) as store:
        for name, change in CHANGES.items():
            job = await got(store.job("kept", durability="sync"))
            await got(store.put("/outside", VALUE))
            await got(store.put_many([(f"{job.path}/{n}", VALUE) for n in ("a", "b", "tree/c")]))
            await got(change(store, job.path))
            assert await is_durable(store), name
            await got(job.close())
            await got(store.put("/elsewhere", VALUE))
            assert not await is_durable(store)


async def test_what_a_sync_job_was_told_survives_and_the_rest_may_not(group, connect):
    async with connect(group) as store:
        job = await got(store.job("survives", durability="sync"))
        await got(store.put(f"{job.path}/kept", b"1"))
        await got(store.delete_many([f"{job.path}/kept"]))
        await got(store.put(f"{job.path}/later", b"2"))
        await got(store.put("/beside", b"3"))
        await got(store.put(f"{job.path}/less", b"4", durability="group"))
        restart(group)
        assert not await got(store.exists(f"{job.path}/kept"))
        assert await got(store.get(f"{job.path}/later")) == b"2"
        assert not await got(store.exists("/beside"))
        assert not await got(store.exists(f"{job.path}/less"))
        await got(job.close())


async def test_stat_tells_the_weaker_promise(group, sync, connect):
    for cluster, said, holds in (
        (group, "sync", "group"), (sync, "group", "group"), (sync, "sync", "sync"),
    ):  # fmt: skip
        async with connect(cluster) as store:
            job = await got(store.job("told", durability=said))
            path = f"{job.path}/x"
            await got(store.put(path, VALUE))
            (many,) = await got(store.stat_many([path]))
            entries = store.scandir(job.path)
            listed = [e async for e in entries] if hasattr(entries, "__aiter__") else list(entries)
            infos = [await got(store.stat(path)), many, await got(store.wait(path)), *listed]
            assert [info.durability for info in infos] == [holds] * 4
            await got(store.put("/x", VALUE))
            rule = (await got(store.status()))["durability"]
            assert (await got(store.stat("/x"))).durability == rule
            await got(job.close())


async def test_a_group_job_in_a_sync_cluster_does_not_wait(sync, connect):
    async with connect(sync) as store:
        job = await got(store.job("fast", durability="group"))
        await got(store.put(f"{job.path}/x", VALUE))
        await got(store.delete(f"{job.path}/x"))
        assert not await is_durable(store)
        await got(job.close())


async def test_a_namenode_that_keeps_nothing_refuses_such_a_job(connect):
    with crailpy.LocalCluster(dram="16MiB", durability="none") as cluster:
        async with connect(cluster) as store:
            with pytest.raises(errors.InvalidArgumentError):
                await got(store.job("kept", durability="sync"))
            assert store._homes == {}
            with pytest.raises(errors.InvalidArgumentError):
                await got(store.job("kept", durability="always"))
