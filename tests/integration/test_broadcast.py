"""Broadcast values: handles that are small, values that are not copied, and what they keep."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import sys
import threading
import tracemalloc
import weakref

import numpy
import pytest

import crailpy
from crailpy import errors
from crailpy.client import compute, requests
from crailpy.client import extents as extents_of
from crailpy.client.compute import broadcasts, spreading, stores

from .kit import Call, Program, process_of, requests_of, settled, until

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


def test_a_store_made_anew_at_an_address_is_not_the_one_that_a_handle_is_of():
    """It counts its versions anew, so that another value there may have the very same one."""
    with crailpy.LocalCluster(dram="16MiB") as cluster, cluster.connect() as store:
        port = cluster.namenode.port
        old = store.broadcast("/b", ["x" * 2000, "old"])
        assert old.value[1] == "old"
        never_read = sent(store.broadcast("/c", "old"))
    with crailpy.LocalCluster(dram="16MiB", port=port) as cluster, cluster.connect() as store:
        new = store.broadcast("/b", ["x" * 2000, "new"])
        other = store.broadcast("/c", "new")
        assert (new.version, other.version) == (old.version, never_read.version)
        assert sent(new).value[1] == "new"
        with pytest.raises(errors.VersionConflictError):
            _ = never_read.value
        never_read.delete()
        assert sent(other).value == "new"


def test_what_was_copied_is_kept_no_longer_than_it_is_stored(store):
    handle = store.broadcast("/broadcast/b", ["x" * 100_000])
    value = weakref.ref(handle._look(os.getpid()))
    handle._known = None
    assert value() is not None, "the copy is kept"
    handle.delete()
    assert value() is None


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


# ---- read from afar -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three():
    with crailpy.LocalCluster(dram="64MiB", servers=3, session_grace=0.5) as cluster:
        yield cluster


@pytest.fixture
def driver(three):
    with three.connect() as store:
        store.mkdir("/hot")
        yield store
        store.rmtree("/hot")


PATIENCE = itertools.count(8.0, 0.01)  # seconds, different ones: so none is taken for another


@contextlib.contextmanager
def afar(cluster, handle):
    """The handle in what stands for a process of another host: it has not what this one has."""
    with cluster.connect(transport="tcp", timeout=next(PATIENCE)) as reader:
        theirs = compute.Broadcast(stores.address_of(reader), *handle.__reduce__()[1][1:])
        theirs._store = reader
        yield theirs


def servers_of(store, path):
    extents = store._door.call(requests.GET, 0, path, b"", 0, b"", 0, 0, None)[5]
    return len(extents_of.servers(extents))


def test_what_many_read_from_afar_comes_from_all_servers(three, driver):
    handle = driver.broadcast("/hot/b", {"array": LARGE})
    counter, copy = spreading.names(handle.path, handle.version)
    with contextlib.ExitStack() as stack:

        def is_read():
            theirs = stack.enter_context(afar(three, handle))
            return (theirs.value["array"] == LARGE).all()

        for number in range(1, 2 * spreading.HOT):
            assert is_read()
            assert driver.get(counter) == str(number).encode()
            assert driver.exists(copy) == (number >= spreading.HOT)
        assert servers_of(driver, handle.path) == 1
        assert servers_of(driver, copy) == 3
        driver.delete(copy)  # as if its maker's session had ended
        assert is_read()
        assert driver.exists(copy), "another has made it"
        taken = driver.get(copy)
        driver.put_object(copy, "the copy")
        with afar(three, handle) as theirs:
            assert theirs.value == "the copy"
        driver.put(copy, taken)
        handle.delete()
        assert driver.listdir("/hot") == []
        with afar(three, handle) as theirs, pytest.raises(errors.NotFoundError):
            _ = theirs.value


def test_copies_go_with_who_made_them_and_a_value_that_was_removed_is_not_read(three, driver):
    handle = driver.broadcast("/hot/b", {"array": LARGE})
    with contextlib.ExitStack() as stack:
        for _ in range(spreading.HOT):
            assert stack.enter_context(afar(three, handle)).value["array"][-1] == LARGE[-1]
        assert len(driver.listdir("/hot")) == 3
        driver.delete(handle.path)
        with afar(three, handle) as theirs, pytest.raises(errors.NotFoundError):
            _ = theirs.value
        driver.broadcast("/hot/b", "another")
        with afar(three, handle) as theirs, pytest.raises(errors.VersionConflictError):
            _ = theirs.value
    until(lambda: driver.listdir("/hot") == ["b"])


def test_a_copy_on_a_server_that_died_is_given_up_and_takes_no_ones_space():
    with crailpy.LocalCluster(dram="32MiB", servers=2) as cluster, cluster.connect() as store:
        store.mkdir("/hot")
        handle = store.broadcast("/hot/b", LARGE)
        _, copy = spreading.names(handle.path, handle.version)
        with contextlib.ExitStack() as stack:
            for _ in range(spreading.HOT):
                assert (stack.enter_context(afar(cluster, handle)).value == LARGE).all()
            assert store.exists(copy)
            (mine,) = {place["server"] for place in store.stat(handle.path).locations}
            other = process_of(cluster, store, {1: 2, 2: 1}[mine])
            other.kill()
            assert (stack.enter_context(afar(cluster, handle)).value == LARGE).all()
            assert not store.exists(copy)
            other.start()
            until(lambda: all(server["state"] == "up" for server in store.status()["servers"]))
            for _ in range(spreading.HOT):
                assert (stack.enter_context(afar(cluster, handle)).value == LARGE).all()
            assert store.exists(copy)
            store.put("/hot/more", bytes(40 << 20), stripe=2)
            assert not store.exists(copy), "it has made room"
            assert (stack.enter_context(afar(cluster, handle)).value == LARGE).all()


@pytest.mark.parametrize("how", ["small", "near", "striped", "one server"])
def test_nothing_is_counted_or_copied_where_that_would_not_help(three, driver, cluster, how):
    with cluster.connect() as alone:
        at = cluster if how == "one server" else three
        store = alone if how == "one server" else driver
        placement = {"stripe": 2} if how == "striped" else {}
        value = LARGE[:10] if how == "small" else LARGE
        handle = store.broadcast("/hot/b", value, **placement)
        for _ in range(spreading.HOT):
            if how == "near":
                assert (handle.value == value).all()
            else:
                with afar(at, handle) as theirs:
                    assert (theirs.value == value).all()
        there = store.listdir("/hot")
        assert [name for name in there if "readers" not in name] == ["b"]
        assert len(there) == 1 or how == "one server"
        handle.delete()
