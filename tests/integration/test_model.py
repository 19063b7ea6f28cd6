"""Models: versions that are consecutive, sums that are exact, waits that hold, space that ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import random
import threading

import numpy
import pytest

from crailpy import errors
from crailpy.client import compute
from crailpy.client.compute import models, replica

from .kit import Call, Program, requests_of, settled, until, waiters

MIB = 1 << 20


@pytest.fixture(params=["shm", "tcp"])
def store(request, cluster):
    with cluster.connect(transport=request.param) as store:
        store.mkdir("/model", exist_ok=True)
        yield store
        store.rmtree("/model")


@pytest.fixture
def alone(quiet):
    with quiet.connect() as store:
        yield store
        if store.exists("/m"):
            store.rmtree("/m")


def two(store, path="/model/m"):
    return store.model(path), pickle.loads(pickle.dumps(store.model(path)))


def test_what_one_pushes_the_other_pulls(store):
    one, other = two(store)
    big = numpy.arange(300_000, dtype="float32").reshape(3000, 100)
    assert one.push({"w": numpy.arange(10.0), "n": numpy.int64(5), "big": big}, "set") == 1
    assert one.push({"w": numpy.ones(10), "n": 2}) == 2
    assert one.push({("w", 2, 4): [10, 10], ("big", 0, 1): numpy.zeros((1, 100), "f4")}, "set") == 3
    assert one.push({("w", 3, 10): numpy.full(7, 0.5)}) == 4
    expected = numpy.arange(10.0) + 1
    expected[2:4] = 10
    expected[3:] += 0.5
    pulled = other.pull()
    assert other.version == one.version == 4
    assert pulled.keys() == {"w", "n", "big"}
    assert (pulled["w"] == expected).all()
    assert pulled["n"].shape == ()
    assert pulled["n"] == 7
    assert (pulled["big"][1:] == big[1:]).all()
    assert not pulled["big"][0].any()
    assert one.describe() == {
        "w": ((10,), numpy.dtype("f8")),
        "n": ((), numpy.dtype("i8")),
        "big": ((3000, 100), numpy.dtype("f4")),
    }


def test_rows_are_pulled_as_whole_tensors_are(store, rng):
    one, other = two(store)
    state = numpy.zeros((50, 3))
    one.push({"w": state}, "set")
    keys = [("w", 0, 50), ("w", 10, 20), ("w", 7, 7), ("w", 19, 50), "w"]
    for _ in range(150):
        start = rng.randrange(50)
        stop = rng.randrange(start, 51)
        change = numpy.full((stop - start, 3), rng.randrange(9))
        if rng.random() < 0.5:
            state[start:stop] += change
            one.push({("w", start, stop): change})
        else:
            state[start:stop] = change
            one.push({("w", start, stop): change}, "set")
        if rng.random() < 0.3:
            asked = rng.sample(keys, rng.randrange(1, 5))
            pulled = other.pull(asked)
            assert list(pulled) == asked
            for key, array in pulled.items():
                rows = slice(*key[1:]) if isinstance(key, tuple) else slice(None)
                assert (array == state[rows]).all()


def test_several_rows_of_a_tensor_are_pushed_at_once(store):
    one, other = two(store)
    one.push({"w": numpy.zeros(9)}, "set")
    other.pull()
    one.push({("w", 0, 2): [1, 1], ("w", 6, 9): [1, 1, 1], ("w", 1, 7): [1] * 6})
    expected = [1, 2, 1, 1, 1, 1, 2, 1, 1]
    for model in (other, store.model("/model/m")):
        assert model.pull()["w"].tolist() == expected
    one.push({("w", 8, 9): [7], ("w", 0, 1): [7], ("w", 4, 4): []}, "set")
    asked = other.pull([("w", 0, 2), ("w", 7, 9)])  # by one that has all
    assert {key: array.tolist() for key, array in asked.items()} == {
        ("w", 0, 2): [7, 2],
        ("w", 7, 9): [1, 7],
    }
    assert other.pull()["w"].tolist() == [7, *expected[1:8], 7]


def test_what_was_pulled_stays_as_it_is(store):
    one, other = two(store)
    one.push({"w": numpy.zeros(200_000), "s": numpy.zeros(5)}, "set")
    seen = []
    for i in range(5):
        seen.append((other.pull(), i))
        one.push({"w": numpy.ones(200_000), ("s", 0, 3): numpy.ones(3)})
    for pulled, i in seen:
        assert (pulled["w"] == i).all()
        assert pulled["s"].tolist() == [i, i, i, 0, 0]
        with pytest.raises(ValueError, match="read-only"):
            pulled["w"][0] = 1
    mine = numpy.ones(200_000)
    one.push({"w": mine}, "set")
    mine[:] = 7
    assert (other.pull()["w"] == 1).all()


WORKER = """
import sys, crailpy, numpy
store = crailpy.connect(sys.argv[1], timeout=60)
model, large = store.model("/model/m"), {"large": numpy.ones(20_000)}
print("ready", flush=True)
sys.stdin.readline()
versions = [
    model.push({"small": numpy.ones(8), "n": 1} | (large if i % 4 == 0 else {}))
    for i in range(int(sys.argv[2]))
]
print(*versions, flush=True)
sys.stdin.readline()
"""


def test_versions_of_all_pushers_are_consecutive_and_every_push_counts_once(store, cluster):
    model = store.model("/model/m")
    zeros = {"small": numpy.zeros(8), "large": numpy.zeros(20_000), "n": 0}
    assert model.push(zeros, "set", if_version=0) == 1
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Program(WORKER, cluster.address, 60)) for _ in range(3)]
        for worker in workers:
            assert worker.line() == "ready"
        for worker in workers:
            worker.process.stdin.write("\n")
            worker.process.stdin.flush()
        versions = [int(word) for worker in workers for word in worker.line().split()]
    assert sorted(versions) == list(range(2, 182))
    pulled = model.pull(min_version=181)
    assert (pulled["small"] == 180).all()
    assert (pulled["large"] == 45).all()
    assert pulled["n"] == 180


def test_all_who_are_at_a_version_have_the_same_bits(store, rng):
    pusher, follower = two(store)
    draw = numpy.random.default_rng(rng.randrange(1 << 32))
    kept = store.model("/model/m")
    seen = {}
    pusher.push({"w": numpy.zeros(1000, "float32")}, "set")
    for _ in range(200):
        number = pusher.push({"w": draw.standard_normal(1000).astype("float32") * 1e3})
        if rng.random() < 0.1:
            seen[number] = follower.pull()["w"].tobytes()
            joins = store.model("/model/m")
            assert joins.pull(["w"])["w"].tobytes() == seen[number]
            assert joins.version == number
    assert kept.pull()["w"].tobytes() == follower.pull()["w"].tobytes()


def test_only_one_makes_the_first_push(store):
    models = [store.model("/model/m") for _ in range(4)]
    gate = threading.Barrier(4)

    def begin(i):
        gate.wait()
        try:
            return models[i].push({"w": numpy.full(3, i)}, "set", if_version=0)
        except errors.VersionConflictError:
            return 0

    calls = [Call(begin, i) for i in range(4)]
    assert sorted(call.result() for call in calls) == [0, 0, 0, 1]
    assert models[0].pull()["w"].shape == (3,)


def test_a_step_that_is_repeated_counts_once_also_by_another_process(store):
    one, other = two(store)
    one.push({"w": numpy.zeros(4)}, "set")
    for step in range(100):
        version = one.push({"w": numpy.ones(4)}, worker="a", step=step)
        if step % 10 == 0:
            assert other.push({"w": numpy.ones(4)}, worker="a", step=step) >= version
            assert other.push({"w": numpy.ones(4)}, worker="a", step=0) >= version
    assert store.model("/model/m").push({"w": numpy.ones(4)}, worker="a", step=99) == 101
    assert (other.pull()["w"] == 100).all()
    assert other.version == 101
    assert other.steps == {"a": 99}


def test_a_pull_waits_for_a_version(store, cluster):
    one, other = two(store)
    one.push({"w": numpy.zeros(4)}, "set")
    waiting = Call(other.pull, ["w"], min_version=3, timeout=30)
    with cluster.connect() as watcher:
        until(lambda: waiters(watcher) == 1)
    one.push({"w": numpy.ones(4)})
    one.push({"w": numpy.ones(4)})
    assert waiting.result()["w"].tolist() == [2, 2, 2, 2]
    with pytest.raises(errors.DeadlineError, match="at version 3, not at 5"):
        other.pull(min_version=5, timeout=0.2)


@pytest.mark.parametrize("bound", [0, 2])
def test_nobody_is_further_ahead_than_the_bound(cluster, bound, rng):
    """With 0 it is a barrier: at each step all have seen all of the one before."""
    workers, steps = 4, 25
    begun = [-1] * workers
    late: list[tuple[int, list[int]]] = []

    def work(number):
        draw = random.Random(number)
        with cluster.connect() as store:
            model = store.model(f"/staleness-{bound}")
            for step in range(steps):
                for _ in range(draw.randrange(3)):
                    store.exists("/")
                begun[number] = step
                model.push({"w": numpy.ones(2)}, worker=str(number), step=step, timeout=30)
                pulled = model.pull(["w"], min_step=step - bound, workers=workers, timeout=30)
                if min(begun) < step - bound or pulled["w"][0] < workers * (step - bound + 1):
                    late.append((number, list(begun)))

    with cluster.connect() as store:
        store.model(f"/staleness-{bound}").push({"w": numpy.zeros(2)}, "set")
        for call in [Call(work, number) for number in range(workers)]:
            call.result()
        assert not late
        model = store.model(f"/staleness-{bound}")
        assert model.pull()["w"].tolist() == [workers * steps] * 2
        with pytest.raises(errors.DeadlineError, match=r"0 of 1 .* step 25; behind it: 0, 1, 2, 3"):
            model.pull(min_step=steps, workers=1, timeout=0.2)
        store.rmtree(f"/staleness-{bound}")


@pytest.mark.parametrize("items", [10, 40_000])
def test_old_pushes_and_bases_are_removed(alone, items):
    if alone.exists("/sessions"):
        alone.rmtree("/sessions")
    alone.session_path()
    before = settled(alone)
    pusher, late = alone.model("/m"), alone.model("/m")
    pusher.push({"w": numpy.zeros(items)}, "set")
    late.pull()
    bytes_max, nodes_max = 0, 0
    for _ in range(300):
        pusher.push({"w": numpy.ones(items)})
        now = alone.status()["namenode"]
        bytes_max = max(bytes_max, now["granules_used"] * 4096)
        nodes_max = max(nodes_max, now["nodes"])
    assert bytes_max <= 6 * 8 * items + 2.5 * MIB
    assert nodes_max < 150
    assert (late.pull()["w"] == 300).all(), "who was far behind begins again with a base"
    assert (alone.model("/m").pull()["w"] == 300).all()
    assert late.version == 301
    del late
    alone.rmtree("/m")
    assert settled(alone) == before


def test_who_has_slept_does_not_push_an_old_number(alone):
    """Its number has gone with its segment: nobody would read what it pushed there."""
    one, sleeper, staged = alone.model("/m"), alone.model("/m"), alone.model("/m")
    one.push({"w": numpy.zeros(1000)}, "set")
    sleeper.pull()
    staged.pull()
    for _ in range(200):
        one.push({"w": numpy.ones(1000)})
    assert sleeper.version == staged.version == 1
    assert sleeper.push({("w", 0, 3): numpy.ones(3)}) == 202
    assert staged.push({"w": numpy.ones(1000)}) == 203
    assert one.pull()["w"][[0, 999]].tolist() == [202, 201]


def test_pulls_and_pushes_are_one_request_where_little_is_new(alone):
    one, other = alone.model("/m"), alone.model("/m")
    one.push({"w": numpy.zeros(100), "large": numpy.zeros(10_000)}, "set")
    one.pull()
    other.pull(["w"])
    small, large = {"w": numpy.ones(100)}, {"large": numpy.ones(10_000)}
    one.push(large)
    one.push(large)  # the session's directory is made, and grants are held
    other.pull(["w"])
    one.pull()
    assert requests_of(alone, lambda: other.pull(["w"])) == 1
    assert requests_of(alone, lambda: one.push(small)) == 1
    assert requests_of(alone, lambda: other.pull(["w"])) == 1
    one.pull()
    assert requests_of(alone, lambda: one.push(large)) == 4, "put, rename, two looks at the segment"
    assert requests_of(alone, lambda: other.pull(["w"])) == 2
    assert requests_of(alone, lambda: other.push(small)) == 1
    assert requests_of(alone, lambda: one.push(small)) == 5, "lost twice, as it reads late"
    assert requests_of(alone, lambda: alone.model("/m").pull()) <= 9, (
        "of them 4 to view what is large"
    )


def test_what_is_in_the_log_is_read_in_few_requests(alone):
    one, other = alone.model("/m"), alone.model("/m")
    one.push({"w": numpy.zeros(100)}, "set")
    costs = []
    for behind in (1, 9, 41, 60):
        other.pull(["w"])
        while one.version % 64 + behind >= 64:  # within one segment
            one.push({"w": numpy.ones(100)})
            other.pull(["w"])
        for _ in range(behind):
            one.push({"w": numpy.ones(100)})
        costs.append(requests_of(alone, lambda: other.pull(["w"])))
    assert costs == [1, 2, 3, 4]
    while one.version % 64 != 63:
        one.push({"w": numpy.ones(100)})
    last = {"w": numpy.ones(100)}
    assert requests_of(alone, lambda: one.push(last)) <= 24, "seals, makes the base, removes"
    joins = alone.model("/m")
    assert requests_of(alone, lambda: joins.pull()) == 4
    assert requests_of(alone, lambda: alone.model("/m").pull(["w"])) == 7
    assert joins.version == one.version


TYPES = ["f4", "f8", "f2", "c8", "c16", "i1", "u1", "i2", "u4", "i8", ">f4", ">i8"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (0,), (3000,)], ids=str)
def test_who_keeps_pulling_has_the_bits_of_who_reads_it_all_anew(store, rng, dtype, shape):
    one, other = two(store)
    numbers = numpy.random.default_rng(rng.randrange(1 << 32))

    def some(shape):
        return (numbers.standard_normal(shape) * 1000).astype(dtype)

    one.push({"w": some(shape)}, "set")
    asked = rng.choice(["w", ["w"], None, [("w", 0, shape[0])] if shape else ["w"]])
    steps = itertools.count()
    for _ in range(70):  # beyond the end of a segment
        for _ in range(rng.choice([0, 1, 1, 1, 2, 9])):
            op = "set" if rng.random() < 0.05 else "add"
            pusher, name = rng.choice([(one, "one"), (other, "other")])
            pusher.push({"w": some(shape)}, op, worker=name, step=next(steps))
        if rng.random() < 0.1 and shape and shape[0]:
            one.push({("w", 0, 1): some((1, *shape[1:]))})
        (array,) = other.pull(asked).values()
        before = array.copy()
        anew = store.model(other.path)
        assert array.tobytes() == anew.pull()["w"].tobytes()
        assert other.version == anew.version
        assert array.shape == shape
        assert not array.flags.writeable
        assert other.steps == anew.steps
        one.push({"w": some(shape)})
        assert array.tobytes() == before.tobytes(), "what was handed out stays as it is"


def test_a_pull_sees_a_tensor_that_began_meanwhile_and_what_others_were_asked(store):
    one, other = two(store)
    one.push({"w": numpy.zeros(3)}, "set")
    for _ in range(3):
        one.push({"w": numpy.ones(3)}, worker="one", step=one.version)
        assert other.pull().keys() == {"w"}
    assert other.steps == {"one": 3}
    one.push({"v": numpy.zeros(2)}, "set")
    one.push({"w": numpy.ones(3)})
    assert {name: array.tolist() for name, array in other.pull().items()} == {
        "w": [4, 4, 4],
        "v": [0, 0],
    }
    for _ in range(3):
        one.push({"w": numpy.ones(3)})
        assert other.pull(["v"])["v"].tolist() == [0, 0]
    assert other.pull([("w", 1, 2)])[("w", 1, 2)].tolist() == [7]
    asked = ["w"]
    assert other.pull(asked).keys() == {"w"}
    asked[0] = "v"
    assert other.pull(asked).keys() == {"v"}
    given = other.pull("w")
    given["more"] = given.pop("w")
    assert other.pull("w").keys() == {"w"}
    with pytest.raises(errors.NotFoundError):
        other.pull(["w", "none"])
    used_up = iter(["w"])
    assert other.pull(used_up).keys() == {"w"}
    for names in (used_up, [], numpy.array(["w"]), ("w",), ["w", "w"], {"w": 1}):
        for _ in range(4):
            one.push({"w": numpy.ones(3)})
            assert other.pull(names).keys() == set(names)


def test_waits_and_plain_pulls_in_any_order_give_the_same(store, rng):
    one, other = two(store)
    one.push({"w": numpy.zeros(3)}, "set")
    for step in range(1, 100):
        one.push({"w": numpy.ones(3)}, worker="one", step=step)
        waits = rng.choice([{}, {"min_version": step + 1}, {"min_step": step, "workers": 1}])
        assert other.pull(["w"], **waits)["w"].tolist() == [step] * 3
        if rng.random() < 0.1:
            late = rng.choice([{"min_version": step + 2}, {"min_step": step + 1, "workers": 1}])
            with pytest.raises(errors.DeadlineError, match=f"{step + 1}"):
                other.pull(["w"], **late, timeout=0.2)
        if rng.random() < 0.1:
            with pytest.raises(errors.InvalidArgumentError):
                other.pull(["w"], workers=1)


def test_what_cannot_be_applied_is_not_pushed(store):
    one, other = two(store)
    one.push({"w": numpy.zeros((4, 2), "float32"), "i": numpy.zeros(3, "int32")}, "set")
    refused = [
        ({"new": numpy.ones(3)}, "add", errors.NotFoundError),
        ({("new", 0, 1): numpy.ones(1)}, "set", errors.NotFoundError),
        ({"w": numpy.ones((4, 3))}, "add", errors.InvalidArgumentError),
        ({"w": numpy.ones(8)}, "set", errors.InvalidArgumentError),
        ({("w", 0, 5): numpy.ones((5, 2))}, "add", errors.InvalidArgumentError),
        ({("w", 2): numpy.ones(2)}, "add", errors.InvalidArgumentError),
        ({"i": numpy.ones(3)}, "add", errors.InvalidArgumentError),
        ({"text": numpy.array(["x"])}, "set", errors.InvalidArgumentError),
        ({"w": numpy.ones((4, 2))}, "mul", errors.InvalidArgumentError),
        ({7: numpy.ones(2)}, "add", errors.InvalidArgumentError),
    ]
    for updates, op, error in refused:
        with pytest.raises(error):
            other.push(updates, op)
    with pytest.raises(errors.VersionConflictError):
        other.push({"w": numpy.ones((4, 2))}, if_version=0)
    with pytest.raises(errors.InvalidArgumentError, match="together"):
        other.push({"w": numpy.ones((4, 2))}, worker="a")
    for key in ("none", ("w", 3, 2), ("i", 0, 4), 5):
        with pytest.raises((errors.NotFoundError, errors.InvalidArgumentError)):
            other.pull([key])
    assert other.push({"w": numpy.ones((4, 2)), "i": numpy.int8([1, 1, 1])}) == 2
    assert one.pull(["i"])["i"].dtype == "int32"


def test_arrays_of_any_byte_order_are_kept_in_the_machines(store):
    one, other = two(store)
    one.push({"w": numpy.zeros(10, ">f8")}, "set")
    assert other.pull()["w"].dtype == "f8"
    for _ in range(70):  # so that a base is made of sums
        one.push({"w": numpy.ones(10, ">f8")})
        other.pull()
    assert (store.model("/model/m").pull()["w"] == 70).all()


def test_truth_values_are_set_and_not_added(store):
    model = store.model("/model/m")
    model.push({"mask": numpy.zeros(3, bool), "n": numpy.zeros(3, int)}, "set")
    with pytest.raises(errors.InvalidArgumentError, match="truth values"):
        model.push({"mask": [True, True, True]})
    model.push({"n": [True, False, True]})
    model.push({("mask", 0, 1): [True]}, "set")
    pulled = model.pull()
    assert pulled["mask"].tolist() == [True, False, False]
    assert pulled["n"].tolist() == [1, 0, 1]


def test_what_was_interrupted_is_not_half_there(store, monkeypatch):
    one, other = two(store)
    one.push({"v": numpy.zeros(3), "w": numpy.zeros(3)}, "set")
    other.pull()
    one.push({"v": numpy.ones(3), "w": numpy.ones(3)}, worker="a", step=1)
    add = replica.Rows.add

    def interrupted(rows, *args):
        add(rows, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(replica.Rows, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.pull()
    assert other.push({"v": numpy.ones(3)}, worker="a", step=1) == 2
    assert [array.tolist() for array in other.pull().values()] == [[1, 1, 1]] * 2


def test_a_model_stays_though_the_call_that_made_it_failed(store, monkeypatch):
    model = store.model("/model/m")

    def late(*_):
        raise errors.DeadlineError

    with monkeypatch.context() as patch:
        patch.setattr(models.Model, "_keep", late)
        with pytest.raises(errors.DeadlineError):
            model.describe()
    assert store.stat("/model/m").expires is not None
    model.push({"w": numpy.zeros(3)}, "set")
    assert store.stat("/model/m").expires is None


def test_two_who_begin_one_tensor_agree_on_what_it_is(store):
    one, other = two(store)
    one.describe()
    other.describe()
    one.push({"w": numpy.zeros(3)}, "set")
    with pytest.raises(errors.InvalidArgumentError, match="shape"):
        other.push({"w": numpy.zeros(4)}, "set")
    assert other.push({"w": numpy.ones(3)}, "set") == 2
    assert one.pull()["w"].tolist() == [1, 1, 1]


def test_another_model_in_its_place_is_another(store):
    one, other = two(store)
    one.push({"w": numpy.zeros(3)}, "set")
    other.pull()
    store.rmtree("/model/m")
    with pytest.raises(errors.NotFoundError):
        one.pull()
    store.model("/model/m").push({"v": numpy.zeros(3)}, "set")
    for call in (other.pull, lambda: other.push({"w": numpy.ones(3)})):
        with pytest.raises(errors.NotFoundError):
            call()
    assert list(store.model("/model/m").pull()) == ["v"]
    with pytest.raises(errors.NotFoundError):
        store.model("/model/none", create=False).pull()
    store.put("/model/other/thing", b"")
    with pytest.raises(errors.ExistsError, match="no model"):
        store.model("/model/other").pull()
    assert store.listdir("/model") == ["m", "other"], "nothing stays beside"


def test_a_model_lives_in_a_job_and_as_long(cluster):
    with cluster.connect() as store:
        with store.job("model", tier="dram") as job:
            model = store.model(f"{job.path}/m")
            model.push({"w": numpy.zeros(100_000)}, "set")
            assert store.stat(f"{job.path}/m").expires is None
            (segment, *_) = store.listdir(f"{job.path}/m")
            assert {info.kind for info in store.scandir(f"{job.path}/m/{segment}")} >= {"file"}
        with pytest.raises(errors.NotFoundError):
            model.pull()
        with pytest.raises(errors.InvalidArgumentError, match="ttl"):
            store.model("/m", ttl=5)


def test_a_forked_child_has_a_model_of_its_own(store):
    model = store.model("/model/m")
    model.push({"w": numpy.zeros(100_000)}, "set")
    model.pull()
    pid = os.fork()
    if not pid:
        good = model.push({"w": numpy.ones(100_000)}) == 2 and (model.pull()["w"] == 1).all()
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert (model.pull()["w"] == 1).all()


def test_a_second_thread_is_refused_and_spoils_nothing(store, cluster):
    model, other = two(store)
    model.push({"w": numpy.zeros(4)}, "set")
    waiting = Call(other.pull, min_version=2, timeout=30)
    until(lambda: waiters(store) == 1)
    for call in (other.pull, other.describe, lambda: other.push({"w": numpy.ones(4)})):
        with pytest.raises(errors.InvalidArgumentError, match="one thread"):
            call()
    model.push({"w": numpy.ones(4)})
    assert (waiting.result()["w"] == 1).all()

    refused, stop = 0, threading.Event()

    def keep_pulling():
        nonlocal refused
        while not stop.is_set():
            try:
                other.pull(["w"])
            except errors.InvalidArgumentError:
                refused += 1

    pulls = [Call(keep_pulling) for _ in range(3)]
    for _ in range(300):
        model.push({"w": numpy.ones(4)})
    stop.set()
    for pull in pulls:
        pull.result()
    print(f"refused {refused} times")
    assert (other.pull(["w"])["w"] == 301).all()
    assert other.version == 302


def test_rows_alone_may_be_asked_for_as_a_tuple(store):
    model, other = two(store)
    model.push({"w": numpy.arange(5.0), "v": numpy.zeros(2)}, "set")
    assert list(other.pull(("w", 1, 3))["w", 1, 3]) == [1, 2]
    assert set(other.pull(("w", "v"))) == {"w", "v"}


def test_a_task_gets_a_small_handle(store):
    model = store.model("/model/m")
    model.push({"w": numpy.zeros(1 << 20)}, "set")
    model.pull()
    handle = pickle.dumps(model)
    assert len(handle) <= 4096
    assert isinstance(pickle.loads(handle), compute.Model)


def test_functions_stand_beside_the_methods(store):
    store.model("/model/m").push({"w": numpy.ones(3)}, "set")
    assert compute.model(store, "/model/m").pull()["w"].tolist() == [1, 1, 1]
    assert compute.reduce(store, "/model/r", [1.0], 1).tolist() == [1]
    assert compute.broadcast(store, "/model/b", 5).value == 5
    for name in compute.__all__:
        assert callable(getattr(compute, name))
    with pytest.raises(AttributeError):
        _ = compute.nothing
