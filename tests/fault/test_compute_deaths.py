"""Reductions and models whose processes die before any of their requests, are tried again, or are
stopped: what counts, counts once, and nothing is left."""

from __future__ import annotations

import itertools
import os
import random
import signal

import numpy
import pytest

import crailpy
from crailpy.client.compute import compaction

from ..integration.kit import Call, Program, settled, until
from ..stopping import stop

MORTAL = """
import os, sys, crailpy, numpy
from crailpy.client.compute import compaction, models, reductions

class Door:
    '''The hot door of a process that dies just before one of its calls.'''
    def __init__(self, door, lives):
        self.door, self.lives = door, lives
    def __getattr__(self, name):
        call = getattr(self.door, name)
        def mortal(*args):
            self.lives -= 1
            if self.lives < 0:
                os._exit(9)
            return call(*args)
        return call if name in ("rebind", "lanes_opened") else mortal

def make(store, path):
    models.ASIDE_SECONDS = 1.5
    store.model(path).push({"w": numpy.zeros(20_000)}, "set", if_version=0)

def push(store, path):
    compaction.SEGMENT_PUSHES = 2
    model = store.model(path)
    for _ in range(2):
        model.push({"w": numpy.ones(20_000)})

def reduce(store, path, rank, size):
    result = store.reduce(path, numpy.ones(int(size)), 2, rank=int(rank), timeout=30)
    assert (result == 2).all()

print("ready", flush=True)
for line in sys.stdin:
    lives, what, *arguments = line.split()
    child = os.fork()
    if not child:
        store = crailpy.connect(sys.argv[1], timeout=30)
        store._door = store._hot = Door(store._door, int(lives))
        globals()[what](store, *arguments)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

FOREVER = 1_000_000


class Mortals(Program):
    """Processes that do one thing, and die before the call of a number."""

    def __init__(self, address: str) -> None:
        super().__init__(MORTAL, address)
        assert self.line() == "ready"

    def done(self, lives: int, *words: object) -> bool:
        """Did it come to its end?"""
        assert self.process.stdin is not None
        print(lives, *words, file=self.process.stdin, flush=True)
        code = int(self.line())
        assert code in (0, 9)
        return code == 0


@pytest.fixture(scope="module")
def cluster():
    with crailpy.LocalCluster(dram="256MiB", session_grace="100ms") as cluster:
        yield cluster


@pytest.fixture
def store(cluster):
    """Nothing stays behind the test, and behind all its sessions."""
    with cluster.connect(timeout=30) as watcher:
        before = settled(watcher)
        with cluster.connect(timeout=30) as store:
            yield store
            for name in store.listdir("/"):
                if name != "sessions":
                    store.rmtree(f"/{name}")
        if watcher.exists("/sessions"):
            until(lambda: not watcher.listdir("/sessions"))
            watcher.remove("/sessions")
        assert settled(watcher) == before
        assert watcher.check() is None


@pytest.fixture(scope="module")
def mortals(cluster):
    with Mortals(cluster.address) as mortals:
        yield mortals


def test_a_push_is_whole_or_not_there_wherever_its_process_dies(store, mortals):
    """Also where it looked at its segment, sealed it, made the next base, or removed it."""
    model = store.model("/m")
    model.push({"w": numpy.zeros(20_000)}, "set")
    there = 0
    for lives in itertools.count():
        was_done = mortals.done(lives, "push", "/m")
        pulled = model.pull()["w"]
        assert (pulled == pulled[0]).all()
        assert pulled[0] - there in ((2,) if was_done else (0, 1, 2))
        there = pulled[0] + 1
        assert model.push({"w": numpy.ones(20_000)}) == there + 1
        if was_done:
            break
    assert lives > 20
    for _ in range(70):  # somebody finishes what the dead had begun
        model.push({("w", 0, 1): numpy.ones(1)})
    assert len(store.listdir("/m")) == 1
    pulled = store.model("/m").pull()["w"]
    assert (pulled[0], pulled[-1]) == (there + 70, there)


def test_a_model_is_there_or_not_wherever_its_maker_dies(store, mortals):
    for lives in itertools.count():
        path = f"/made/m{lives}"
        was_done = mortals.done(lives, "make", path)
        model = store.model(path)
        there = model.describe()
        assert set(there) <= {"w"}
        number = model.push({"w": numpy.ones(20_000)}, "set")
        assert number == 1 + len(there)
        assert store.stat(path).expires is None
        if was_done:
            break
    assert lives > 5
    until(lambda: all(name.startswith("m") for name in store.listdir("/made")))
    assert len(store.listdir("/made")) == lives + 1


@pytest.mark.parametrize("size", [1000, 150_000])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_contributor_counts_once_wherever_it_dies_and_is_tried_again(store, mortals, size, rank):
    for lives in itertools.count():
        path = f"/reduce/{lives}"
        other = Call(store.reduce, path, numpy.ones(size), 2, rank=1 - rank, timeout=30)
        was_done = mortals.done(lives, "reduce", path, rank, size)
        assert was_done or mortals.done(FOREVER, "reduce", path, rank, size)
        assert (other.result() == 2).all()
        if was_done:
            break
    assert lives > 1


WORKER = """
import sys, crailpy, numpy
address, name, first, last, size = sys.argv[1:]
store = crailpy.connect(address, timeout=60)
model = store.model("/m")
print("ready", flush=True)
for step in range(int(first), int(last)):
    model.push({"w": numpy.ones(int(size)), "n": 1}, worker=name, step=step)
    print(step, flush=True)
sys.stdin.readline()
"""


def test_workers_that_are_killed_and_stopped_leave_the_model_exact(store, cluster):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    steps, names, size = 80, ["a", "b", "c"], 10_000
    model = store.model("/m")
    model.push({"w": numpy.zeros(size), "n": 0}, "set")

    def work(name: str, quits: bool) -> None:
        """Steps of one worker, in several lives; one of them is stopped now and then."""
        first = 0
        while first < steps:
            again = max(0, first - 2)  # its checkpoint was older than what it had pushed
            with Program(WORKER, cluster.address, name, again, steps, size) as worker:
                assert worker.line() == "ready"
                stay = rng.randrange(25, 45) if quits else steps
                for _ in range(min(stay, steps - again)):
                    first = int(worker.line()) + 1
                    if not quits and first % 40 == 0:
                        stop(worker.process.pid)
                        pulled = model.pull(min_version=model.version + 5, timeout=30)
                        assert (pulled["w"] == pulled["n"]).all()
                        os.kill(worker.process.pid, signal.SIGCONT)

    calls = [Call(work, name, name != "a") for name in names[1:]] + [Call(work, "a", False)]
    for call in calls:
        call.result()
    pulled = model.pull()
    assert pulled["n"] == steps * len(names)
    assert (pulled["w"] == steps * len(names)).all()
    assert model.version == 1 + steps * len(names)
    assert model.steps == dict.fromkeys(names, steps - 1)


def test_who_was_stopped_while_it_had_the_turn_holds_nobody_up(store, cluster, monkeypatch):
    """A turn to make the next base is taken and never used: the others go on when it gets tight."""
    monkeypatch.setattr(compaction, "SEGMENT_PUSHES", 4)
    model = store.model("/m")
    model.push({"w": numpy.zeros(10)}, "set")
    with cluster.connect() as holder:
        for _ in range(2):
            model.push({"w": numpy.ones(10)})
        (first,) = store.listdir("/m")
        turn = f"/m/{first[:-1]}1/turn"
        put = store._put

        def put_and_lose_the_turn(door, key, *args):
            if key == turn:
                put(holder._door.put, key, b"", 1, 0, 5.0, {"session": True})
            return put(door, key, *args)

        monkeypatch.setattr(store, "_put", put_and_lose_the_turn)
        model.push({"w": numpy.ones(10)})
        assert len(store.listdir("/m")) == 2
        for _ in range(10):
            model.push({"w": numpy.ones(10)})
        (now,) = store.listdir("/m")
        assert now > first
        assert (store.model("/m").pull()["w"] == 13).all()


def test_pushes_that_a_namenode_lost_are_lost_for_their_readers_too(tmp_path):
    """In group, a crash takes back what was not durable; its numbers are others' then."""
    lost = 0
    with (
        crailpy.LocalCluster(dram="64MiB", dir=tmp_path, durability="group") as cluster,
        cluster.connect(timeout=30) as store,
    ):
        model, other = store.model("/m"), store.model("/m")
        model.push({"w": numpy.zeros(10)}, "set")
        store.put("/durable", b"", durability="sync")
        for turn in itertools.count():
            for _ in range(20):
                model.push({"w": numpy.ones(10)})
            told, seen = model.version, other.pull()["w"][0]
            cluster.namenode.kill()
            cluster.namenode.start()
            first, second = (model, other) if turn % 2 else (other, model)
            number = first.push({"w": numpy.ones(10)})
            fresh = store.model("/m").pull()["w"]
            assert fresh[0] == number - 1, "each push counts once, and none is missing before it"
            for known in (first, second):
                assert (known.pull()["w"] == fresh).all()
                assert known.version == number
            lost += told + 1 - number
            assert seen == told - 1
            if turn >= 1 and lost:  # each was the first once, and it was put to the test
                break
            assert turn < 8, "nothing is ever lost"


@pytest.mark.parametrize("turn", range(3))
def test_pushes_that_a_namenode_has_lost_are_in_nobodys_sums(turn):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    size = rng.choice([3, 2000])  # within their nodes, or not
    options = {"dram": "64MiB", "durability": "group", "group_interval": 60}
    with crailpy.LocalCluster(**options) as cluster, cluster.connect() as store:
        one = store.model("/m")
        one.push({"w": numpy.zeros(size)}, "set")
        readers = [store.model("/m") for _ in range(4)]
        for _ in range(4):
            for reader in readers[:2]:
                reader.pull("w")
            one.pull("w")
            durable = one.version
            store.put("/durable", b"", durability="sync")
            for _ in range(rng.randrange(1, 4)):
                one.push({"w": numpy.full(size, float(rng.randrange(100)))})
                for reader in readers[1:]:
                    reader.pull("w")
            cluster.namenode.kill()
            cluster.namenode.start()
            with cluster.connect() as other:
                anew = other.model("/m")
                for _ in range(rng.randrange(4)):
                    anew.push({"w": numpy.full(size, float(rng.randrange(100)))})
                for reader in rng.sample(readers, 4):
                    array = reader.pull("w")["w"]
                    fresh = other.model("/m")
                    assert (array == fresh.pull("w")["w"]).all()
                    assert reader.version == fresh.version >= durable
                    if rng.random() < 0.5:
                        reader.push({"w": numpy.ones(size)})
