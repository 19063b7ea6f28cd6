"""Reductions: the same result for all, exactly once, whoever comes when."""

from __future__ import annotations

import random
import threading

import numpy
import pytest

import crailpy
from crailpy import errors
from crailpy.client import compute
from crailpy.client.compute.reductions import children

from .kit import Call, settled, until, waiters

SMALL, LARGE = 1000, 150_001
"""Items of 8 bytes: by the tree, by slices (which do not come out even)."""


@pytest.fixture
def store(cluster):
    with cluster.connect() as store:
        yield store
        if store.exists("/reduce"):
            store.rmtree("/reduce")


@pytest.fixture
def rng():
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return numpy.random.default_rng(seed)


def together(store, path, arrays, op="sum", order=None, **more):
    """The results, by rank, of contributors that come in an order."""
    n = len(arrays)
    calls: dict[int, Call] = {}
    for came, rank in enumerate(order or range(n)):
        calls[rank] = Call(store.reduce, path, arrays[rank], n, op, rank=rank, timeout=60, **more)
        if order and came + 1 < n:  # it is there, and waits
            until(lambda: waiters(store) > came)  # noqa: B023
    return [calls[rank].result() for rank in range(n)]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_all_contributors_get_the_sum(cluster, transport, size, rng):
    with cluster.connect(transport=transport) as store:
        for n in (1, 2, 3, 7):
            arrays = [rng.integers(-99, 99, size) for _ in range(n)]
            for result in together(store, f"/reduce/{n}", arrays):
                assert (result == sum(arrays)).all()
                assert result.flags.writeable
        store.rmtree("/reduce")


@pytest.mark.parametrize(
    ("op", "dtype", "plain"),
    [
        ("prod", "float32", numpy.prod),
        ("max", "int16", numpy.max),
        ("min", "bool", numpy.min),
        ("sum", "complex128", numpy.sum),
        ("sum", ">f4", numpy.sum),
    ],
)
def test_operations_and_types(store, op, dtype, plain, rng):
    large = (1 << 20) // numpy.dtype(dtype).itemsize
    for shape in ((), (0, 3), (3, 5), (3, large)):
        arrays = [numpy.array(4 * rng.random(shape)).astype(dtype) for _ in range(3)]
        expected = plain(arrays, axis=0)
        for result in together(store, f"/reduce/{len(shape)}-{shape[-1:]}", arrays, op):
            assert result.dtype == dtype
            assert result.shape == shape
            numpy.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_result_has_the_same_bits_whoever_comes_when(store, size, rng):
    arrays = [rng.standard_normal(size) * 10.0 ** rng.integers(-9, 9) for _ in range(5)]
    seen = set()
    for turn in range(4):
        order = list(rng.permutation(5))
        results = together(store, f"/reduce/{turn}", arrays, order=order)
        seen |= {result.tobytes() for result in results}
    assert len(seen) == 1


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_contributor_that_is_tried_again_counts_once(store, size):
    ones = numpy.ones(size)
    first = Call(store.reduce, "/reduce/r", ones, 2, rank=1, timeout=60)
    until(lambda: waiters(store) == 1)
    beside = Call(store.reduce, "/reduce/r", 100 * ones, 2, rank=1, timeout=60)
    until(lambda: waiters(store) == 2)
    results = [store.reduce("/reduce/r", ones, 2, rank=0), first.result(), beside.result()]
    for rank in (0, 1):  # and when all is over
        results.append(store.reduce("/reduce/r", 100 * ones, 2, rank=rank, timeout=5))
    for result in results:
        assert (result == 2).all()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_result_may_take_the_place_of_the_array(store, size, rng):
    for n in (1, 3):
        arrays = [rng.integers(-99, 99, size) for _ in range(n)]
        expected = sum(arrays)
        calls = [
            Call(store.reduce, f"/reduce/{n}", array, n, rank=rank, out=array, timeout=60)
            for rank, array in enumerate(arrays)
        ]
        for call, array in zip(calls, arrays, strict=True):
            assert call.result() is array
            assert (array == expected).all()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_who_is_missing_is_named_and_may_come_later(store, size):
    ones = numpy.ones(size)
    n = 6
    calls = [
        (missing, Call(store.reduce, f"/reduce/{missing}", ones, n, rank=rank, timeout=0.8))
        for missing in (0, 3, 4)
        for rank in range(n)
        if rank != missing
    ]
    for missing, call in calls:
        with pytest.raises(errors.DeadlineError, match=f"rank {missing} of {n}") as caught:
            call.result()
        assert caught.value.ranks == (missing,)
    for missing in (0, 3, 4):
        for result in together(store, f"/reduce/{missing}", [ones] * n):
            assert (result == n).all()


def test_those_of_whom_nobody_knows_are_told(store):
    with pytest.raises(errors.DeadlineError, match="ranks 1, 3") as caught:
        store.reduce("/reduce/r", numpy.ones(4), 4, rank=0, timeout=0.1)
    assert caught.value.ranks == (1, 3)
    assert "rank 2 would wait" in caught.value.hint


def test_who_had_no_time_even_to_come_is_told_the_same_way(store):
    with pytest.raises(errors.DeadlineError) as caught:
        store.reduce("/reduce/r", numpy.ones(4), 2, timeout=0)
    assert isinstance(caught.value.ranks, tuple)


def test_without_a_rank_they_count_in_the_order_of_coming(store):
    calls = [Call(store.reduce, "/reduce/r", [1.0, i], 4, timeout=60) for i in range(4)]
    for call in calls:
        assert call.result().tolist() == [4, 6]
    with pytest.raises(errors.InvalidArgumentError, match=r"contributor 4 of 4.*round="):
        store.reduce("/reduce/r", [1.0, 4], 4)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_rounds_hold_the_space_of_two(store, size):
    ones = numpy.ones(size)
    used = []
    for number in range(7):
        for result in together(store, "/reduce/loop", [ones, number * ones], round=number):
            assert (result == 1 + number).all()
        used.append(settled(store))
    assert sorted(store.listdir("/reduce/loop")) == ["5", "6"]
    assert used[2] == used[6]
    again = store.reduce("/reduce/loop", ones, 2, rank=1, round=5, timeout=5)
    assert (again == 6).all(), "an attempt may be repeated from the round before"


def test_a_large_array_does_not_stay_when_all_have_the_result(store):
    before = settled(store)["granules_used"]
    together(store, "/reduce/r", [numpy.ones(LARGE)] * 3)
    after = settled(store)["granules_used"]
    assert after - before <= 8 * LARGE // 4096 * 1.25 + 3, "the result is there still"


def test_what_does_not_fit_the_others_is_refused(store):
    Call(store.reduce, "/reduce/r", numpy.ones(8), 2, rank=1, timeout=1)
    until(lambda: store.exists("/reduce/r/part-00001"))
    for array, n, op in ((numpy.ones(9), 2, "sum"), (numpy.ones(8, "f4"), 2, "sum"),
                         (numpy.ones(8), 2, "max")):  # fmt: skip
        with pytest.raises(errors.InvalidArgumentError, match="rank 1 contributes"):
            store.reduce("/reduce/r", array, n, op, rank=0, timeout=5)


def test_a_rank_may_be_a_number_of_few_bytes(store):
    """Where the slices begin is far beyond what it can count to."""
    calls = [
        Call(store.reduce, "/reduce/r", numpy.ones(LARGE), 2, rank=numpy.uint8(rank), timeout=30)
        for rank in range(2)
    ]
    for call in calls:
        assert (call.result() == 2).all()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_ended_is_the_result_of_no_other_reduction(cluster, transport, size):
    """Also where the inputs are gone and only results of as many bytes are left."""
    with cluster.connect(transport=transport) as store:
        ended = together(store, "/reduce/ended", [numpy.ones(size, "f4")] * 2)
        for array, op in (
            (numpy.ones(size, "f4"), "max"),
            (numpy.ones(size, "i4"), "sum"),
            (numpy.ones((2, size // 2), "f4"), "sum"),
        ):
            for rank in (0, 1):
                with pytest.raises(errors.InvalidArgumentError, match="contributes to"):
                    store.reduce("/reduce/ended", array, 2, op, rank=rank, timeout=5)
        again = together(store, "/reduce/ended", [numpy.ones(size, "f4")] * 2)
        assert all((mine == theirs).all() for mine, theirs in zip(ended, again, strict=True))
        store.rmtree("/reduce")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (([1.0], 0), {}),
        (([1.0], 2), {"rank": 2}),
        (([1.0], 2, "mean"), {"rank": 0}),
        ((["text"], 2), {"rank": 0}),
        (([True], 2), {"rank": 0}),
        (([1.0], 2), {"rank": 0, "round": -1}),
        (([1.0], 2), {"rank": 0, "out": numpy.ones(2)}),
        (([1.0], 2), {"rank": 0, "timeout": -1}),
        (([1.0], 2), {"rank": 0, "delete_after_read": True}),
        (([1.0], 2), {"rank": 0, "evictable": True}),
    ],
)
def test_bad_arguments_leave_nothing(store, arguments, options):
    with pytest.raises(errors.InvalidArgumentError):
        store.reduce("/reduce/bad", *arguments, **options)
    assert not store.exists("/reduce/bad")


def test_every_rank_is_the_child_of_one(rng):
    for n in range(1, 70):
        parents = [child for rank in range(n) for child in children(rank, n)]
        assert sorted(parents) == list(range(1, n))


def test_requests_are_counted():
    """3 n - 2 in all by the tree, 3 n each by slices, and one for each grant that is not held."""
    with crailpy.LocalCluster(dram="128MiB") as cluster, cluster.connect() as watcher:

        def cost(n, size):
            arrays = [numpy.ones(size)] * n
            stores = [cluster.connect() for _ in range(n)]
            gate = threading.Barrier(n)
            results = []

            def turn(rank):
                with stores[rank] as store:
                    compute.reduce(store, f"/warm-{n}-{size}", arrays[rank], n, rank=rank)
                    gate.wait()
                    if rank == 0:
                        results.append(watcher.status()["namenode"]["requests"])
                    gate.wait()
                    compute.reduce(store, f"/r-{n}-{size}", arrays[rank], n, rank=rank)
                    gate.wait()
                    if rank == 0:
                        results.append(watcher.status()["namenode"]["requests"])
                    gate.wait()

            for call in [Call(turn, rank) for rank in range(n)]:
                call.result()
            return results[1] - results[0]

        for n in (2, 4):
            assert cost(n, 500) == 3 * n - 2
            assert cost(n, LARGE) <= n * (3 * n + 2)
