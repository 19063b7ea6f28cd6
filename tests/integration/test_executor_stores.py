"""The executor pool and stores: what is large goes through one, and nothing stays behind in any."""

from __future__ import annotations

import os
import signal
import threading

import numpy
import pytest

import crailpy
from crailpy import errors
from crailpy.client.compute.executors import frames, mapping

from .. import chores
from ..pools import go, is_gone, pids
from .kit import until


def test_what_is_large_goes_through_the_store(pool, cluster):
    with cluster.connect() as store:
        before = store.status()["namenode"]["files"]
        with crailpy.executors("tests", store=store) as large:
            array = numpy.arange(1 << 17, dtype="float64")
            assert large.submit(chores.total, array).result(60) == (array.sum(), False)
            ones = large.submit(chores.many_ones, 1 << 17).result(60)
            assert ones.sum() == 1 << 17
            assert large.submit(len, b"x" * 1_000_000).result(60) == 1_000_000
            until(lambda: store.status()["namenode"]["files"] == before)
        assert ones.sum() == 1 << 17, "its memory stays while it is looked at"
        assert not store.exists(large._space.path)


def arguments(count, size, read):
    """Arguments of this size, and in `read` those that were asked for."""
    for n in range(count):
        read.append(n)
        yield bytes(size)


@pytest.fixture(scope="module")
def little():
    """A store of little room."""
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        yield store


def test_map_reads_large_arguments_as_its_results_are_taken(pool, little):
    with crailpy.executors("tests", store=little) as large:
        read, size = [], 4 << 20
        results = large.map(len, arguments(40, size, read))
        assert len(read) * size == mapping.BYTES_OUT_MIN
        assert next(results) == size
        assert len(read) * size == mapping.BYTES_OUT_MIN, "nobody has come for another yet"
        assert list(results) == [size] * 39
        assert len(read) == 40
        until(lambda: little.listdir(large._space.path) == [])


def test_map_reads_large_arguments_at_once_where_there_is_much_room(pool, cluster):
    """So results may be taken after shutdown(), as with the standard library's."""
    read, size = [], 2 << 20
    with cluster.connect() as store:
        free = store.status()["namenode"]["granules_free"] * 4096
        count = min(free // 2, mapping.BYTES_OUT_MIN + (16 << 20)) // size
        with crailpy.executors("tests", store=store) as large:
            results = large.map(len, arguments(count, size, read))
            assert len(read) == count > mapping.BYTES_OUT_MIN // size
        assert list(results) == [size] * count


def test_map_reads_small_arguments_at_once(pool, little):
    with crailpy.executors("tests", store=little) as large:
        read = []
        results = large.map(len, arguments(3 * frames.WINDOW, 100, read), chunksize=2)
        assert len(read) == 3 * frames.WINDOW
        assert list(results) == [100] * len(read)


@pytest.mark.parametrize("mebibytes", [12, 20], ids=["room for all", "less room"])
def test_map_has_two_calls_for_each_executor_out_where_there_is_room(
    pool, little, tmp_path, mebibytes
):
    """And waits for nobody: neither for tasks that cannot end yet, nor for who takes results."""
    with crailpy.executors("tests", store=little) as large:
        held = [large.submit(chores.hold, str(tmp_path), n) for n in range(2)]
        until(lambda: all(f.running() for f in held))
        read, size = [], mebibytes << 20
        results = large.map(len, arguments(9, size, read))
        stored = len(little.listdir(large._space.path))
        assert stored == (4 if mebibytes == 12 else len(read) - 1)
        go(tmp_path)
        assert list(results) == [size] * 9


def test_map_raises_what_there_is_never_room_for(pool, little):
    with (
        crailpy.executors("tests", store=little) as large,
        pytest.raises(errors.OutOfSpaceError),
    ):
        large.map(len, [bytes(80 << 20)])


def test_a_map_that_is_closed_reads_no_further(pool, little):
    with crailpy.executors("tests", store=little) as large:
        read = []
        results = large.map(len, arguments(40, 4 << 20, read))
        assert next(results) == 4 << 20
        results.close()
        large.shutdown()
        assert len(read) * (4 << 20) == mapping.BYTES_OUT_MIN
        assert not little.exists(large._space.path)


def test_of_calls_that_are_refused_together_nothing_stays_in_the_store(pool, cluster):
    with cluster.connect() as store, crailpy.executors("tests", store=store) as large:
        space = large._space.path
        with pytest.raises(errors.InvalidArgumentError, match="cannot be sent"):
            large.map(len, [b"x" * 9000, b"y" * 9000, threading.Lock()])
        assert store.listdir(space) == []


@pytest.mark.parametrize("way", ["shutdown", "drop"])
def test_its_directory_goes_with_the_last_task_also_if_nobody_waits(pool, cluster, tmp_path, way):
    with cluster.connect() as store:
        large = crailpy.executors("tests", store=store)
        space = large._space.path
        held = large.submit(chores.hold, str(tmp_path), 0)
        result = large.submit(bytes, 9000)
        if way == "shutdown":
            large.shutdown(wait=False)
        del large
        assert result.result(60) == bytes(9000), "until then it is needed"
        assert store.exists(space)
        go(tmp_path)
        assert held.result(60) == 0
        until(lambda: not store.exists(space))


@pytest.mark.parametrize("first", ["arguments", "results"])
def test_it_works_on_when_the_namenode_has_forgotten_its_session(pool, first):
    """`first`: what is large finds out, for no other call has told the store of it."""
    with crailpy.LocalCluster(dram="64MiB", durability="none") as own, own.connect() as store:
        with crailpy.executors("tests", store=store) as large:
            zeros = bytes(9000)
            call, argument, value = (bytes, 9000, zeros)
            if first == "arguments":
                call, argument, value = (len, zeros, 9000)
            assert large.submit(call, argument).result(60) == value
            own.namenode.kill()
            own.namenode.start()

            def works():
                try:
                    return large.submit(call, argument).result(60) == value
                except errors.CrailError:
                    return False

            until(works)  # servers and executors have to find it again, too
            assert large.submit(len, bytes(9000)).result(60) == 9000
            assert large.submit(bytes, 9000).result(60) == bytes(9000)
            space = large._space.path
        assert not store.exists(space)


def test_a_result_that_a_dead_executor_has_put_goes(pool, cluster):
    with cluster.connect() as store, crailpy.executors("tests", store=store) as large:
        space = large._space.path
        store.put(f"{space}/mark", b"")
        assert large.submit(chores.large_result_then_die, 50_000).result(60) == bytes(50_000)
        until(lambda: store.listdir(space) == ["mark"])


def test_shutdown_in_a_callback_leaves_the_arguments_of_others_alone(pool, cluster, tmp_path):
    with cluster.connect() as store:
        large = crailpy.executors("tests", store=store)
        pool.scale(1)
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        one, _ = [large.submit(chores.hold, str(tmp_path / name), 0) for name in ("a", "b")]
        waiting = [large.submit(len, bytes(9000 + n)) for n in range(5)]
        is_shut = threading.Event()

        def callback(done):
            large.shutdown()
            is_shut.set()

        one.add_done_callback(callback)
        go(tmp_path / "a")
        assert is_shut.wait(60)
        go(tmp_path / "b")
        assert [f.result(60) for f in waiting] == [9000 + n for n in range(5)]


def test_executors_leave_a_store_when_its_driver_does(pool, quiet):
    """They keep no session there, and nothing that was granted to it."""
    with quiet.connect() as store:
        before = store.status()["namenode"]["sessions"]
        others = [crailpy.executors("tests", store=store) for _ in range(2)]
        for n, other in enumerate(others):
            assert other.submit(chores.put_here, f"/left-{n}").result(60)
        assert store.status()["namenode"]["sessions"] > before
        others[0].shutdown()
        assert others[1].submit(chores.put_here, "/left-1").result(60)
        others[1].shutdown()
        until(lambda: store.status()["namenode"]["sessions"] == before)
        store.delete_many(["/left-0", "/left-1"])


def test_executors_leave_the_stores_of_handles_when_the_last_driver_with_one_does(pool, cluster):
    with cluster.connect() as store:
        handle = store.broadcast("/handle", b"there")
        # the session of an executor that was killed before us is kept for a while
        until(lambda: store.status()["namenode"]["sessions"] == 1)
        others = [crailpy.executors("tests") for _ in range(2)]
        for other in others:
            assert other.submit(chores.value_of, handle).result(60) == b"there"
        assert store.status()["namenode"]["sessions"] > 1
        others[0].shutdown()
        assert others[1].submit(chores.value_of, handle).result(60) == b"there"
        others[1].shutdown()
        until(lambda: store.status()["namenode"]["sessions"] == 1)
        handle.delete()


@pytest.mark.parametrize("kind", ["broadcast", "model", "shuffle"])
def test_handles_that_a_module_keeps_are_good_for_the_next_driver(pool, cluster, kind):
    with cluster.connect() as store:
        path, handle = f"/kept/{kind}", None
        if kind == "broadcast":
            handle = store.broadcast(path, 7)
        elif kind == "model":
            handle = store.model(path)
            handle.push({"w": numpy.ones(7)}, "set")
        else:
            handle = store.shuffle(path, partitions=1)
            with handle.writer(0) as writer:
                writer.write(0, b"seven..")
        for _ in range(2):
            with crailpy.executors("tests") as other:
                for _ in range(3):  # of a model, the third is followed in the core
                    futures = [other.submit(chores.read_kept, kind, handle) for _ in range(4)]
                    assert [f.result(60) for f in futures] == [7] * 4
        store.rmtree("/kept")


def test_without_a_store_it_is_an_error_that_says_so(pool):
    with pytest.raises(errors.InvalidArgumentError, match=r"arguments of .* bytes.*store="):
        pool.submit(len, b"x" * 5000)
    with pytest.raises(errors.InvalidArgumentError, match=r"a result of .* bytes.*store="):
        pool.submit(chores.many_ones, 10_000).result(60)
    assert pool.submit(len, b"x" * 3000).result(60) == 3000


def test_what_a_retired_or_killed_executor_committed_stays(pool, cluster):
    with cluster.connect() as store, crailpy.executors("tests", store=store) as pool:
        store.mkdir("/retired", exist_ok=True)
        keys = list(pool.map(chores.put_here, [f"/retired/{n}" for n in range(8)]))
        before = pids(pool)
        pool.scale(1)
        until(lambda: sum(is_gone(pid) for pid in before) == 1)
        (other,) = (pid for pid in before if not is_gone(pid))
        os.kill(other, signal.SIGKILL)
        until(lambda: is_gone(other))
        assert [len(store.get(key)) for key in keys] == [100_000] * 8
        store.rmtree("/retired")
