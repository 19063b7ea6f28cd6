"""What lies on disks outlives its processes: the namenode, the storage servers, all of them, and
all that was in memory."""

from __future__ import annotations

import os
import random
import shutil

import pytest

import crailpy
from crailpy import errors

from .kit import until

MIB = 1 << 20


class Values:
    """Values by path; what each must be follows from its path, its size and how often it was
    written."""

    def __init__(self, store, seed: int) -> None:
        self._rng = random.Random(seed)
        self._store = store
        self._written: dict[str, bytes] = {}

    def write(self, path: str, size: int, **how) -> None:
        value = self._rng.randbytes(size)
        if self._rng.random() < 0.5:
            self._store.put(path, value, **how)
        else:
            with self._store.open(path, "wb", **how) as file:
                file.write(value)
        self._written[path] = value

    def check(self, store) -> set[str]:
        """Every value is what it was, or lost by name; those that are lost."""
        lost = set()
        for path, value in self._written.items():
            try:
                found = store.get(path)
            except errors.DataLostError as error:
                lost.add(error.path)
                continue
            assert found == value, path
            with store.open(path, "rb") as file:
                assert file.read() == value
        return lost


def seed() -> int:
    number = random.SystemRandom().randrange(1 << 32)
    print(f"seed {number}")
    return number


def all_up(store) -> bool:
    return {server["state"] for server in store.status()["servers"]} == {"up"}


def restart(*servers) -> None:
    for server in servers:
        server.kill()
    for server in servers:
        server.start()


def reboot(cluster) -> None:
    """All processes are killed, and what was in memory is gone."""
    everyone = (cluster.namenode, *cluster.servers)
    for server in everyone:
        server.kill()
    for server in cluster.servers:
        shutil.rmtree(os.path.join(cluster.folder, server.name))
    for server in everyone:
        server.start()


def test_values_on_disks_outlive_everybody(tmp_path):
    with crailpy.LocalCluster(
        dram="16MiB", tiers=("dram", "file"), capacity="64MiB", dir=tmp_path
    ) as cluster:
        memory, disk = cluster.servers
        with cluster.connect(timeout=30) as store:
            values = Values(store, seed())

            def write(what: str) -> None:
                for i in range(4):
                    values.write(f"/{what}/disk{i}", MIB + 5 * i, tier="file", strict=True)
                    values.write(f"/{what}/again", MIB + i, tier="file", strict=True)
                    values.write(f"/{what}/small{i}", 10 * i)
                values.write(f"/{what}/memory", 2 * MIB, tier="dram", strict=True)
                store.put(f"/{what}/done", b"", durability="sync")  # all before it is, too

            write("first")
            for victims in ([cluster.namenode], [disk, memory], [cluster.namenode, disk]):
                restart(*victims)
                assert values.check(store) == set()
            write("second")
        reboot(cluster)
        with cluster.connect(timeout=30) as store:
            assert values.check(store) == {"/first/memory", "/second/memory"}
            values = Values(store, seed())  # where something else was
            store.rmtree("/first")
            write("second")
            write("third")
            until(lambda: all_up(store))
            assert values.check(store) == set()
            assert store.check() is None
        reboot(cluster)
        with cluster.connect(timeout=30) as store:
            assert values.check(store) == {"/second/memory", "/third/memory"}
            assert store.check() is None


def test_a_tier_that_was_filled_after_memory_is_there_for_the_next_cluster(tmp_path):
    """Memory fills first, then the disk; what was asked for strictly is nowhere else. Then all of
    it ends in order, and another cluster begins in the same folder."""
    values = {f"/v{i:02}": os.urandom(2 * MIB) for i in range(20)}
    shape = {"dram": "16MiB", "tiers": ("dram", "file"), "capacity": "64MiB", "dir": tmp_path}

    def tiers(store) -> list[str]:
        return [store.stat(path).tier for path in values]

    with crailpy.LocalCluster(**shape) as cluster, cluster.connect() as store:
        for path, value in values.items():
            store.put(path, value)
        placed = tiers(store)
        assert placed == sorted(placed)  # "dram" before "file"
        assert placed.count("dram") >= 6
        with pytest.raises(errors.OutOfSpaceError):
            store.put("/strict", bytes(16 * MIB), tier="dram", strict=True)
        store.put("/preferred", bytes(8 * MIB), tier="dram")
        assert store.stat("/preferred").tier == "file"
        store.put("/done", b"", durability="sync")  # all before it is, too
        restart(cluster.namenode, *cluster.servers)
        assert tiers(store) == placed
        assert [store.get(path) for path in values] == list(values.values())
        store.delete("/v00")  # memory again, once the server has retired it
        until(lambda: put_into_memory(store, values["/v00"]))
        with pytest.raises(errors.OutOfSpaceError):
            store.put("/strict", bytes(16 * MIB), tier="dram", strict=True)
        store.delete("/preferred")
        assert {s["granules_total"] for s in store.status()["servers"]} == {4096, 16384}
    with crailpy.LocalCluster(**shape) as cluster, cluster.connect() as store:
        for path, tier in zip(values, placed, strict=True):
            if tier == "file":
                assert store.get(path) == values[path]
            else:  # the memory went with the cluster
                with pytest.raises(errors.DataLostError) as raised:
                    store.get(path)
                assert raised.value.path == path
                store.put(path, values[path])
        assert tiers(store) == placed  # it fills as it did
        assert store.get_many(list(values)) == list(values.values())
        assert store.check() is None


def test_a_disk_is_not_made_anew_for_a_namenode_that_has_another_state(tmp_path):
    """As one that was started in the wrong folder. With its own it finds everything again."""
    shape = {"servers": 0, "dir": tmp_path / "right"}
    disk = {"tier": "file", "capacity": "8MiB"}
    with crailpy.LocalCluster(**shape) as cluster, cluster.connect() as store:
        cluster.add_server(**disk)
        store.put("/v", b"1" * MIB, durability="sync")
    for durability in ("group", "none"):
        wrong = crailpy.LocalCluster(servers=0, dir=tmp_path / durability, durability=durability)
        with wrong as cluster:
            os.makedirs(tmp_path / durability, exist_ok=True)
            os.link(tmp_path / "right/storage-0.data", tmp_path / durability / "storage-0.data")
            with pytest.raises(errors.InvalidArgumentError, match="holds values of the cluster"):
                cluster.add_server(**disk)
    with crailpy.LocalCluster(**shape) as cluster, cluster.connect() as store:
        cluster.add_server(**disk)
        assert store.get("/v") == b"1" * MIB


def put_into_memory(store, value: bytes) -> bool:
    store.put("/v00", value)
    return store.stat("/v00").tier == "dram"
