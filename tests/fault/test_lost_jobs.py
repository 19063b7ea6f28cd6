"""Jobs and taken items of a client whose session is lost: held again, or said to be gone."""

from __future__ import annotations

import inspect

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

from .proxy import DroppingProxy

NEVER = 1 << 60


@pytest.fixture(scope="module")
def cluster():
    with crailpy.LocalCluster(dram="32MiB", session_grace="300ms") as cluster:
        yield cluster


class Client:
    """A store of either face, behind a proxy that can take its session away."""

    def __init__(self, proxy, watcher, store):
        self._proxy = proxy
        self._watcher = watcher
        self.store = store

    async def do(self, result):
        return await result if inspect.isawaitable(result) else result

    async def lose_session(self):
        path = await self.do(self.store.session_path())
        self._proxy.cut()
        self._watcher.wait(path, absent=True, timeout=30)

    async def find_session(self):
        """A change would not know whether it was made in the old one."""
        for _ in range(2):  # the share in a job is asked for behind the first
            await self.do(self.store.exists("/"))


@pytest.fixture(params=["sync", "aio"])
async def client(request, cluster):
    host, port = cluster.address.removeprefix("crail://").split(":")
    options = {"transport": "tcp", "timeout": 30}
    with DroppingProxy((host, int(port)), k=NEVER) as proxy, cluster.connect() as watcher:
        if request.param == "sync":
            with crailpy.connect(proxy.address, **options) as store:
                yield Client(proxy, watcher, store)
        else:
            async with crailpy.aio.connect(proxy.address, **options) as aio:
                yield Client(proxy, watcher, aio)


async def test_a_job_that_lives_is_held_again_in_the_next_session(client, cluster):
    with cluster.connect() as watcher:
        job = await client.do(client.store.job("kept", ttl=1.5))
        number = job.number
        await client.do(client.store.put(f"{job.path}/a", b"1"))
        await client.lose_session()
        assert await client.do(client.store.get(f"{job.path}/a")) == b"1"
        with pytest.raises(errors.DeadlineError):
            watcher.wait(job.path, absent=True, timeout=3)
        assert job.number == number
        await client.do(client.store.put("/kept", b"", job=job))
        await client.do(job.close())
        assert not watcher.exists(job.path), "the share was the last"
        assert not watcher.exists("/kept")


async def test_a_job_that_ended_meanwhile_is_said_to_be_lost(client, cluster):
    with cluster.connect() as watcher:
        job = await client.do(client.store.job("ended", ttl=0.1))
        await client.do(client.store.put(f"{job.path}/a", b"1"))
        await client.lose_session()
        watcher.wait(job.path, absent=True, timeout=30)
        await client.find_session()
        for _ in range(2):
            with pytest.raises(errors.SessionLostError, match="the job ended"):
                await client.do(client.store.put("/ended", b"", job=job))
        assert "lost" in repr(job)
        with pytest.raises(errors.SessionLostError) as raised:
            await client.do(job.close())
        assert raised.value.path == job.path
        await client.do(job.close())
        assert not watcher.exists(job.path), "none was begun in its place"


async def test_another_job_of_the_same_name_is_not_taken_for_it(client, cluster):
    with cluster.connect() as watcher:
        job = await client.do(client.store.job("again", ttl=0.1))
        await client.lose_session()
        watcher.wait(job.path, absent=True, timeout=30)
        with watcher.job("again") as theirs:
            watcher.put(f"{theirs.path}/theirs", b"")
            await client.find_session()
            with pytest.raises(errors.SessionLostError):
                await client.do(job.close())
            assert watcher.exists(f"{theirs.path}/theirs"), "their share is left"


async def test_leaving_a_lost_job_by_an_exception_tells_the_exception(client):
    async def leave():
        if hasattr(client.store, "__aenter__"):
            async with client.store.job("left", ttl=0.1):
                await client.lose_session()
                await client.find_session()
                raise ZeroDivisionError
        with client.store.job("left", ttl=0.1):
            await client.lose_session()
            await client.find_session()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave()


async def test_an_item_whose_taker_lost_its_session_went_back_and_says_so(client, cluster):
    queue = await client.do(client.store.queue("/lost-items"))
    await client.do(queue.put(b"1"))
    item = await client.do(queue.get())
    await client.lose_session()
    await client.find_session()
    with pytest.raises(errors.SessionLostError, match="went back to its queue"):
        await client.do(item.ack())
    again = await client.do(queue.get())
    assert (again.data, again.number) == (b"1", item.number)
    await client.do(again.ack())
    with cluster.connect() as watcher:
        gone = await client.do(queue.put(b"2")) and await client.do(queue.get())
        watcher.rmtree("/lost-items")
        with pytest.raises(errors.NotFoundError):
            await client.do(gone.ack())
