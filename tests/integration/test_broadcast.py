"""Broadcast values: handles that are small, values that are not copied, and what they keep."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import tracemalloc

import numpy
import pytest

from crailpy import errors
from crailpy.client import compute
from crailpy.client.compute import broadcasts

from .kit import Call, Program, requests_of, settled

LARGE = numpy.arange(1 << 20, dtype="float64")


@pytest.fixture(params=["shm", "tcp"])
def store(request, cluster):
    with cluster.connect(transport=request.param) as store:
        yield store
        if store.exists("/broadcast"):
            store.rmtree("/broadcast")


@pytest.fixture
def alone(quiet):
    with quiet.connect() as store:
        yield store
        if store.exists("/b"):
            store.rmtree("/b")


def sent(handle: compute.Broadcast) -> compute.Broadcast:
    """The handle as a task gets it."""
    pickled = pickle.dumps(handle)
    assert len(pickled) <= 4096
    other: compute.Broadcast = pickle.loads(pickled)
    return other


TASK = """
import pickle, sys
handle, = (pickle.loads(bytes.fromhex(line)) for line in [sys.stdin.readline()])
assert len(pickle.dumps(handle)) <= 4096
value = handle.value
assert value is handle.value and not value["array"].flags.writeable
print(value["name"], value["array"].sum(), flush=True)
sys.stdin.readline()
"""


def test_a_small_handle_brings_a_large_value_to_a_process_of_its_own(store):
    handle = store.broadcast("/broadcast/b", {"name": "x", "array": LARGE})
    with Program(TASK) as task:
        task.process.stdin.write(pickle.dumps(handle).hex() + "\n")
        task.process.stdin.flush()
        assert task.line() == f"x {LARGE.sum()}"


def test_the_value_is_the_same_object_for_all_handles_of_a_process_and_read_only(store):
    handle = compute.broadcast(store, "/broadcast/b", {"array": LARGE, "n": 7})
    value = handle.value
    assert value["n"] == 7
    assert (value["array"] == LARGE).all()
    assert value is not None
    assert handle.value is value
    assert sent(handle).value is value
    with pytest.raises(ValueError, match="read-only"):
        value["array"][0] = 1


def test_an_array_is_not_copied_where_memory_is_shared(cluster):
    with cluster.connect(transport="shm") as store:
        store.broadcast("/broadcast/warm", LARGE).value.sum()
        handle = store.broadcast("/broadcast/b", LARGE)
        tracemalloc.start()
        try:
            assert handle.value[-1] == LARGE[-1]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 100_000
        store.rmtree("/broadcast")


def test_a_value_costs_one_request_in_a_process(alone):
    handle = alone.broadcast("/b", LARGE)
    assert requests_of(alone, lambda: handle.value) == 1
    assert requests_of(alone, lambda: (handle.value, sent(handle).value)) == 0


def test_a_handle_is_of_one_value_only(store):
    first = store.broadcast("/broadcast/b", [1])
    second = store.broadcast("/broadcast/b", [2])
    with pytest.raises(errors.VersionConflictError, match="another value"):
        _ = first.value
    first.delete()
    assert second.value == [2]
    third = store.broadcast("/broadcast/c", [3])
    third.delete()
    third.delete()
    with pytest.raises(errors.NotFoundError):
        _ = third.value


def test_memory_of_the_store_is_kept_as_long_as_a_handle_or_an_array_is(alone):
    before = settled(alone)
    handle = sent(alone.broadcast("/b", {"array": LARGE}))
    array = handle.value["array"]
    handle.delete()
    assert alone.status()["namenode"]["granules_retiring"] > 0
    del handle
    assert array[5] == 5
    assert alone.status()["namenode"]["granules_retiring"] > 0
    del array
    assert settled(alone) == before


def test_what_was_copied_is_kept_without_handles_up_to_a_bound(store, monkeypatch):
    monkeypatch.setattr(broadcasts, "COPIES_BYTES_MAX", 3000)
    monkeypatch.setattr(broadcasts, "_copies", type(broadcasts._copies)())
    handles = [store.broadcast(f"/broadcast/{i}", ["x" * 1000, i]) for i in range(4)]
    values = [handle.value for handle in handles]
    paths = [pickle.dumps(handle) for handle in handles]
    store.rmtree("/broadcast")
    del handles
    assert pickle.loads(paths[3]).value is values[3]
    assert pickle.loads(paths[2]).value is values[2]
    with pytest.raises(errors.NotFoundError):
        _ = pickle.loads(paths[0]).value


def test_small_copies_are_bounded_too(cluster, monkeypatch):
    monkeypatch.setattr(broadcasts, "COPIES_BYTES_MAX", 20_000)
    monkeypatch.setattr(broadcasts, "_copies", type(broadcasts._copies)())
    with cluster.connect() as store:
        handles = [pickle.dumps(store.broadcast(f"/broadcast/{i}", i)) for i in range(30)]
        assert [pickle.loads(handle).value for handle in handles] == list(range(30))
        store.rmtree("/broadcast")
        assert [pickle.loads(handle).value for handle in handles[-19:]] == list(range(11, 30))
        with pytest.raises(errors.NotFoundError):
            _ = pickle.loads(handles[5]).value


def test_threads_share_what_is_kept_and_what_goes(cluster, monkeypatch):
    monkeypatch.setattr(broadcasts, "COPIES_BYTES_MAX", 20_000)
    with cluster.connect() as store:
        handles = [
            pickle.dumps(store.broadcast(f"/broadcast/{i}", ["x" * 1000, i])) for i in range(60)
        ]

        def read(number):
            gate.wait()
            for turn in range(200):
                i = turn * 7 * number % 60
                assert pickle.loads(handles[i]).value[1] == i

        gate = threading.Barrier(4)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for call in [Call(read, number) for number in range(1, 5)]:
                call.result()
        finally:
            sys.setswitchinterval(interval)
        store.rmtree("/broadcast")


def test_a_forked_child_reads_the_value_itself(store):
    handle = store.broadcast("/broadcast/b", LARGE)
    total = handle.value.sum()
    pid = os.fork()
    if not pid:
        same = total == handle.value.sum() and handle.value.flags.writeable is False
        os._exit(0 if same else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_broadcast_takes_placement_and_goes_with_its_job(cluster):
    with cluster.connect() as store:
        with store.job("broadcast") as job:
            handle = store.broadcast(f"{job.path}/b", LARGE, tier="dram")
            assert store.stat(handle.path).tier == "dram"
        with pytest.raises(errors.NotFoundError):
            _ = sent(handle).value
        with pytest.raises(TypeError, match="placement"):
            store.broadcast("/b", 1, colour="red")


def test_a_store_that_answers_while_it_is_away_is_refused(cluster):
    with cluster.connect(on_unavailable="miss") as store:
        with pytest.raises(errors.InvalidArgumentError, match="on_unavailable"):
            store.broadcast("/b", 1)
        with pytest.raises(errors.InvalidArgumentError, match="on_unavailable"):
            store.reduce("/r", [1.0], 1)
        with pytest.raises(errors.InvalidArgumentError, match="on_unavailable"):
            store.model("/m")
