"""The namenode is killed at random moments under load and started again: no call fails, nothing
that was acknowledged is lost in `sync`, at most the last interval in `group`, and nothing is done
twice.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

import crailpy
from crailpy import errors

from . import kills

EACH = 2  # clients of a kind
INTERVAL = 0.1  # seconds
COMMIT = 1.0  # what a commit may take where others work, too


@pytest.fixture
def seed():
    number = random.randrange(1 << 32)
    print(f"seed {number}")
    return random.Random(number)


def acknowledged(loads):
    return [said for load in loads for _, said in load.stop()]


def rises(values):
    return all(a < b for a, b in pairwise(values))


def test_sync_loses_nothing_and_does_nothing_twice(seed):
    steps = {
        name: getattr(kills, name)
        for name in ("count", "write", "overwrite", "write_many", "compare_and_set", "rename")
    }
    with crailpy.LocalCluster(dram="16MiB", durability="sync") as cluster:
        with kills.crowd(cluster, steps, EACH) as loads:
            kills.kill_now_and_then(cluster, seed, 6)
            counted = [acknowledged([load]) for load in loads["count"]]
            written = acknowledged(loads["write"])
            vectors = [one for said in acknowledged(loads["write_many"]) for one in said]
            words = acknowledged(loads["compare_and_set"])
            over = [acknowledged([load]) for load in loads["overwrite"]]
            moved = [acknowledged([load]) for load in loads["rename"]]
        with cluster.connect() as store:
            everybody = sorted(number for each in counted for number in each)
            assert everybody == list(range(1, len(everybody) + 1))
            assert store.incr("/kills/n", 0) == len(everybody)
            for key, version in written + vectors:
                info = store.stat(key)
                assert (info.version, info.durability) == (version, "sync")
            assert store.get_many([key for key, _ in vectors]) == [k.encode() for k, _ in vectors]
            for who, said in enumerate(over):
                assert rises([version for _, version in said])
                assert store.get(f"/kills/o{who}") == str(said[-1][0]).encode()
            text = store.get("/kills/cas").decode()
            assert all(text.count(word) == 1 for word in words[-10:])
            assert len(set(text.split())) == len(text.split())
            for who, said in enumerate(moved):
                assert [n for n in store.listdir("/kills") if n.startswith(f"r{who}.")] == [
                    f"r{who}.{said[-1]}"
                ]
                assert store.get(f"/kills/r{who}.{said[-1]}/x") == b"x"
        print(f"{len(everybody)} counts, {len(written)} values, {len(vectors)} in vectors")


def test_group_loses_the_last_interval_at_most(seed):
    steps = {name: getattr(kills, name) for name in ("count", "write", "overwrite", "write_many")}
    with crailpy.LocalCluster(dram="16MiB", durability="group", group_interval=INTERVAL) as cluster:
        with kills.crowd(cluster, steps, EACH) as loads:
            times = kills.kill_now_and_then(cluster, seed, 6)
            said = {name: [load.stop() for load in group] for name, group in loads.items()}

        def may_be_lost(when):
            return any(kill - INTERVAL - COMMIT <= when <= start for kill, start in times)

        with cluster.connect() as store:
            lost = 0
            writes = [one for load in said["write"] for one in load]
            for vector in said["write_many"]:
                writes += [(when, one) for when, many in vector for one in many]
            for when, (key, version) in writes:
                try:
                    assert store.stat(key).version == version
                    assert store.get(key) == key.encode()
                except errors.NotFoundError:
                    assert may_be_lost(when), key
                    lost += 1
            counted = [when for load in said["count"] for when, _ in load]
            number = store.incr("/kills/n", 0)
            assert len(counted) - sum(map(may_be_lost, counted)) <= number <= len(counted)
            for load in said["overwrite"]:  # versions never go back, whatever was lost
                assert rises([version for _, (_, version) in load])
        print(
            f"{lost} of {len(writes)} values lost, {len(counted) - number} of {len(counted)} counts"
        )


def test_queues_and_trees_are_exact_in_sync(seed):
    steps = {name: getattr(kills, name) for name in ("queue_up", "take", "remove")}
    with crailpy.LocalCluster(dram="16MiB", durability="sync") as cluster:
        with cluster.connect() as store:
            store.queue("/kills/q")
        with kills.crowd(cluster, steps, EACH) as loads:
            kills.kill_now_and_then(cluster, seed, 5)
            put = acknowledged(loads["queue_up"])
            taken = [one for one in acknowledged(loads["take"]) if one is not None]
            removed = acknowledged(loads["remove"])
        with cluster.connect() as store:
            queue = store.queue("/kills/q")
            while len(queue):
                with queue.get(wait=5) as item:
                    taken.append(item.data.decode())
            assert sorted(taken) == sorted(put)
            assert not any(store.exists(path) for path in removed)
        print(f"{len(put)} items, {len(removed)} trees")


def test_a_killed_group_cluster_goes_on_with_sessions_and_waits(seed):
    """Waits that were under way when the namenode died are answered by the next one."""
    with crailpy.LocalCluster(dram="16MiB") as cluster, cluster.connect(timeout=30) as store:
        path = store.session_path()
        store.put(f"{path}/mine", b"1", durability="sync")
        waiting = kills.Load(cluster, 0, lambda s, who, n: s.get("/kills/later", wait=30))
        cluster.namenode.kill()
        cluster.namenode.start()
        assert store.get(f"{path}/mine") == b"1"
        assert store.session_path() == path
        store.put("/kills/later", b"x")
        assert waiting.stop()[0][1] == b"x"


def test_a_clean_stop_keeps_everything():
    with (
        crailpy.LocalCluster(dram="16MiB", group_interval=60) as cluster,
        cluster.connect(timeout=30) as store,
    ):
        versions = store.put_many([(f"/stop/{i}", b"x") for i in range(5000)])
        cluster.namenode.stop()
        cluster.namenode.start()
        found = {info.path: info.version for info in store.scandir("/stop")}
        assert found == {f"/stop/{i}": version for i, version in enumerate(versions)}


def test_what_a_kill_has_undone_takes_no_memory():
    """Though its session lives on: it does not know that it has been granted that again."""
    sizes = {"dram": "16MiB", "group_interval": "60s", "session_grace": 1}
    with crailpy.LocalCluster(durability="group", **sizes) as cluster, cluster.connect() as store:
        store.put("/before", b"", durability="sync")
        for n in range(10):
            store.put(f"/undone/{n}", bytes(1 << 20))
        cluster.namenode.kill()
        cluster.namenode.start()
        assert not store.exists("/undone")
        for n in range(14):
            store.put(f"/after/{n}", bytes(1 << 20), wait_space=30, timeout=60)
