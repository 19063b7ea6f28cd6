"""Storage servers that are away, and connections to them that broke."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

from ..integration.kit import Call, process_of, until
from ..stopping import stop

VALUE = random.Random(1).randbytes(3 << 20)


@pytest.mark.parametrize("transport", [None, "tcp"])
def test_a_put_goes_to_another_server_when_that_of_its_grant_is_dead(transport):
    with (
        crailpy.LocalCluster(dram="64MiB", servers=2) as cluster,
        cluster.connect(timeout=5, transport=transport) as store,
    ):
        store.put("/a", VALUE)
        (used,) = {place["server"] for place in store.stat("/a").locations}
        process_of(cluster, store, {1: 2, 2: 1}[used]).kill()
        begin = time.monotonic()
        store.put("/b", VALUE)
        assert time.monotonic() - begin < 3, "the dead server did not eat the deadline"
        assert store.get("/b") == VALUE
        assert store.check() is None


async def write_all(cluster, way, transport, keys, timeout=12):
    """Writes VALUE to each, in one of the ways that there are; the seconds that each took."""
    took = []
    options = {"transport": transport, "timeout": timeout}
    if way.startswith("aio"):
        async with crailpy.aio.connect(cluster.address, **options) as aio:
            for key in keys:
                begin = time.monotonic()
                if way == "aio put":
                    await aio.put(key, VALUE)
                else:
                    async with await aio.open(key, "wb") as file:
                        for at in range(0, len(VALUE), 1 << 20):
                            await file.write(VALUE[at : at + (1 << 20)])
                took.append(time.monotonic() - begin)
        return took
    with cluster.connect(**options) as store:
        for key in keys:
            begin = time.monotonic()
            if way == "put":
                store.put(key, VALUE)
            else:
                with store.open(key, "wb") as file:
                    for at in range(0, len(VALUE), 1 << 20):
                        file.write(VALUE[at : at + (1 << 20)])
            took.append(time.monotonic() - begin)
    return took


@pytest.mark.parametrize("transport", [None, "tcp"])
@pytest.mark.parametrize("way", ["put", "file", "aio put", "aio file"])
async def test_what_is_written_goes_to_another_server_when_one_does_not_answer(way, transport):
    """The namenode takes it for being there still, and grants its memory in turn."""
    keys = [f"/{i}" for i in range(4)]
    with crailpy.LocalCluster(dram="64MiB", servers=2, heartbeat="60s") as cluster:
        with cluster.connect() as store:
            servers = store.status()["servers"]
            (silent,) = (s["number"] for s in servers if s["id"] == "storage-0")
        stop(cluster.servers[0].pid)
        try:
            took = await write_all(cluster, way, transport, keys)
            with cluster.connect() as store:
                places = [p["server"] for key in keys for p in store.stat(key).locations]
                assert store.get_many(keys) == [VALUE] * 4
        finally:
            os.kill(cluster.servers[0].pid, signal.SIGCONT)
        assert silent not in places
        assert max(took) < 9, "the silent server did not eat the deadline"
        with cluster.connect() as store:
            assert store.check() is None


@pytest.mark.parametrize("way", ["put", "file", "aio put", "aio file"])
async def test_a_server_that_is_the_only_one_is_waited_for_and_named(way):
    """Each way says which server it was, and does so at its deadline."""
    with crailpy.LocalCluster(dram="64MiB", heartbeat="60s") as cluster:
        with cluster.connect() as store:
            (number,) = (server["number"] for server in store.status()["servers"])
        stop(cluster.servers[0].pid)
        begin = time.monotonic()
        try:
            with pytest.raises((errors.UnavailableError, errors.DeadlineError)) as raised:
                await write_all(cluster, way, "tcp", ["/a"], timeout=1)
        finally:
            os.kill(cluster.servers[0].pid, signal.SIGCONT)
        assert 0.5 < time.monotonic() - begin < 4
        assert raised.value.server == str(number)
        assert (await write_all(cluster, way, "tcp", ["/a"]))[0] > 0, "it is back"


def test_a_stream_waits_for_its_server_though_the_namenode_does_not_say_where_it_is():
    """To know in time whether to go elsewhere, it asks with less patience than its own."""
    with (
        crailpy.LocalCluster(tiers=("file",), capacity="64MiB") as cluster,
        cluster.connect(timeout=30) as store,
    ):
        with store.open("/x", "wb") as file:
            for _ in range(2):  # what comes next has its extent by then
                file.write(VALUE[: 1 << 20])
            file.flush()
            cluster.servers[0].kill()
            stop(cluster.namenode.pid)

            def come_back() -> None:
                os.kill(cluster.namenode.pid, signal.SIGCONT)
                cluster.servers[0].start()

            later = threading.Timer(0.6, come_back)
            later.start()
            try:
                file.write(VALUE[1 << 20 : 2 << 20])
            finally:
                later.join()
        assert store.get("/x") == VALUE[: 1 << 20] + VALUE[: 2 << 20]


@pytest.mark.parametrize("way", ["put", "aio file"])
def test_a_write_waits_for_the_only_server_that_has_died_and_comes_back(way):
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        cluster.servers[0].kill()
        until(lambda: store.status()["servers"][0]["state"] == "down")
        writing = Call(asyncio.run, write_all(cluster, way, None, ["/a"], timeout=30))
        cluster.servers[0].start()  # which takes longer than to ask for space
        writing.result()
        assert store.get("/a") == VALUE
