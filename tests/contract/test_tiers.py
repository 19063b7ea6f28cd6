"""What every tier of a storage server promises, whatever its blocks lie in."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
import time

import pytest

import crailpy
from crailpy import errors

_ONE_EXTENT, _COMMIT = 1 << 7, 17  # native/include/crail/wire.h
GRANULE = 4096
MIB = 1 << 20
ROOM = 96 * MIB
#: around the bounds of inline values, granules, bounce buffers, and what is granted ahead
SIZES = [
    *(0, 1, 4096, 4097, 8191, 8192, 8193, 100_000),
    *(256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 3 * MIB + 5, 17 * MIB + 1),
]


def value_of(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def status_of(cluster: crailpy.LocalCluster) -> dict:
    with cluster.connect() as store:
        return store.status()


def until(holds, what: str, seconds: float = 30.0):
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module", params=["dram", "file"])
def tier(request):
    return request.param


@pytest.fixture(scope="module")
def cluster(tier):
    with crailpy.LocalCluster(tiers=(tier,), dram=ROOM, capacity=ROOM, heartbeat=0.2) as cluster:
        yield cluster


class TestTier:
    """One server of the tier; each test has a folder of its own."""

    @pytest.fixture
    def folder(self, cluster, request):
        path = f"/{request.node.name}"
        with cluster.connect() as store:
            store.mkdir(path)
            yield path
            store.rmtree(path)

    @pytest.fixture(params=[None, "tcp"])
    def store(self, cluster, request):
        with cluster.connect(transport=request.param) as store:
            yield store

    def test_what_was_put_is_what_is_got(self, store, folder, tier):
        for size in SIZES:
            value = value_of(size, size)
            key = f"{folder}/{size}"
            store.put(key, value, wait_space=20)
            assert store.get(key) == value
            into = bytearray(size)
            assert store.get_into(key, into) == size
            assert into == value
            assert store.get_range(key, size // 3, size // 2) == value[size // 3 :][: size // 2]
            with store.get_view(key) as view:
                assert bytes(view) == value
            if size > GRANULE:
                info = store.stat(key)
                assert info.tier == tier
                assert sum(place["bytes"] for place in info.locations) >= size
            store.delete(key)

    def test_many_at_once_come_back(self, store, folder):
        items = {f"{folder}/{i}": value_of(i * 1111, i) for i in range(60)}
        store.put_many(list(items.items()))
        assert store.get_many(list(items)) == list(items.values())

    def test_files_are_written_changed_and_read_anywhere(self, store, folder):
        seed = random.randrange(1 << 30)
        print("seed", seed)
        dice = random.Random(seed)
        path, model = f"{folder}/f", bytearray()
        with store.open(path, "wb") as file:
            for _ in range(40):
                part = dice.randbytes(dice.randrange(70_000))
                file.write(part)
                model += part
        with store.open(path, "r+b") as file:
            for _ in range(30):
                at, part = dice.randrange(len(model)), dice.randbytes(dice.randrange(9000))
                file.seek(at)
                file.write(part)
                model[at : at + len(part)] = part
        for _ in range(5):
            with store.open(path, "ab") as file:
                part = dice.randbytes(dice.randrange(30_000))
                file.write(part)
                model += part
        assert store.get(path) == model
        with store.open(path, "rb") as file:
            for _ in range(40):
                at, n = dice.randrange(len(model)), dice.randrange(20_000)
                file.seek(at)
                assert file.read(n) == model[at : at + n]

    def test_an_open_reader_keeps_its_version(self, store, folder):
        old, new = value_of(2 * MIB, 1), value_of(2 * MIB, 2)
        store.put(f"{folder}/v", old)
        with store.open(f"{folder}/v", "rb") as file:
            assert file.read(1000) == old[:1000]
            for _ in range(20):
                store.put(f"{folder}/v", new, wait_space=20)
            assert file.read() == old[1000:]
        assert store.get(f"{folder}/v") == new

    def test_a_follower_reads_what_is_being_written(self, cluster, folder):
        data = value_of(3 * MIB, 3)
        with cluster.connect() as store:
            file = store.open(f"{folder}/s", "wb")
            file.write(data[:MIB])
            file.flush()
            with store.open(f"{folder}/s", "rb", follow=True) as following:
                assert following.read(MIB) == data[:MIB]
                file.write(data[MIB:])
                file.close()
                assert following.read() == data[MIB:]

    def test_the_asynchronous_face_has_the_same_bytes(self, cluster, folder):
        async def main() -> None:
            async with await crailpy.aio.connect(cluster.address) as store:
                for size in SIZES:
                    value = value_of(size, size + 1)
                    await store.put(f"{folder}/a", value, wait_space=20)
                    assert await store.get(f"{folder}/a") == value
                values = {f"{folder}/{i}": value_of(300_000 + i, i) for i in range(20)}
                await asyncio.gather(*(store.put(k, v) for k, v in values.items()))
                got = await asyncio.gather(*(store.get(k) for k in values))
                assert got == list(values.values())

        asyncio.run(main())

    def test_writers_and_readers_at_once_see_whole_values(self, cluster, folder):
        """Each value carries its own digest; all go over the same few keys."""
        wrong: list[str] = []
        end = time.monotonic() + 3

        def work(number: int) -> None:
            dice = random.Random(number)
            with cluster.connect(transport=dice.choice([None, "tcp"])) as store:
                while time.monotonic() < end and not wrong:
                    key = f"{folder}/{dice.randrange(4)}"
                    if dice.random() < 0.5:
                        body = dice.randbytes(dice.randrange(5000, 600_000))
                        digest = hashlib.blake2b(body).digest()
                        store.put(key, digest + body, wait_space=20)
                    else:
                        value = store.get(key, default=None)
                        if value and hashlib.blake2b(value[64:]).digest() != value[:64]:
                            wrong.append(key)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_flush_before_the_commit_is_answered(self, store, folder):
        """As a commit that promises durability will: allocate, write, flush, commit."""
        value = value_of(2 * MIB + 77, 5)
        extents, _ = store._hot.alloc("/x", (len(value),), _ONE_EXTENT, b"", 0, 0, None, None)
        pipe = store._hot.pipe(f"{folder}/x")
        pipe.write(extents, 0, value, None, False)
        pipe.settle(None)
        pipe.close()
        store._hot.flush("/x", extents, None)
        store._call(_COMMIT, 0, f"{folder}/x", extents, arg1=len(value), count=1)
        assert store.get(f"{folder}/x") == value
        stale = extents[:16] + (99).to_bytes(8, "little") + extents[24:]
        if store.stat(f"{folder}/x").tier == "file":
            with pytest.raises((errors.StaleLocationError, errors.AuthError)):
                store._hot.flush("/x", stale, None)

    @pytest.mark.parametrize("way", ["stop", "kill"])
    def test_a_restarted_server_has_its_blocks_again(self, cluster, folder, way):
        with cluster.connect() as store:
            values = {f"{folder}/{i}": value_of(i * 100_001, i) for i in range(1, 12)}
            for key, value in values.items():
                store.put(key, value)
            for i in range(1, 12, 3):  # some freed, their generations raised
                store.delete(f"{folder}/{i}")
                del values[f"{folder}/{i}"]
            before = store.status()["servers"][0]
            server = cluster.servers[0]
            with store.open(f"{folder}/2", "rb") as file:
                assert file.read(10) == values[f"{folder}/2"][:10]
                getattr(server, way)()
                server.start()
                assert file.read() == values[f"{folder}/2"][10:]
            after = store.status()["servers"][0]
            assert (after["number"], after["incarnation"]) == (
                before["number"],
                before["incarnation"],
            )
            for key, value in values.items():
                assert store.get(key) == value
            for key in values:
                store.put(key, b"2" * 200_000, wait_space=20)
                assert store.get(key) == b"2" * 200_000
            with cluster.connect() as other:
                assert other.get(next(iter(values))) == b"2" * 200_000

    def test_a_call_outlives_the_restart_of_its_server(self, cluster, folder):
        value = value_of(8 * MIB, 9)
        with cluster.connect(timeout=30) as store:
            store.put(f"{folder}/v", value)
            results: list[bool] = []
            go_on = True

            def work() -> None:
                while go_on:
                    store.put(f"{folder}/v", value, wait_space=20)
                    results.append(store.get(f"{folder}/v") == value)

            thread = threading.Thread(target=work)
            thread.start()
            for _ in range(3):
                n = len(results)
                cluster.servers[0].kill()
                cluster.servers[0].start()
                until(lambda n=n: len(results) > n + 1, "the calls go on")
            go_on = False
            thread.join()
            assert all(results)

    def test_all_space_comes_back(self, cluster, folder):
        with cluster.connect() as store:
            for i in range(200):
                store.put(f"{folder}/{i % 7}", os.urandom(300_000), wait_space=20)
            for i in range(7):
                store.delete(f"{folder}/{i}")

        def is_all_free() -> bool:
            server = status_of(cluster)["servers"][0]
            return server["granules_free"] == server["granules_total"]

        until(is_all_free, "every granule is free")
