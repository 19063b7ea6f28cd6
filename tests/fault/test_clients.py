"""Clients through trouble: namenodes that stop and restart, deadlines, closing in mid-call."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest

import crailpy
from crailpy import errors

from ..stopping import stop


@pytest.fixture(params=[True, False], ids=["ring", "socket"])
def own(request):
    with (
        crailpy.LocalCluster(dram="128MiB") as cluster,
        cluster.connect(ring=request.param) as store,
    ):
        yield cluster, store


def test_a_client_finds_its_way_in_a_namenode_that_was_started_anew(own):
    cluster, store = own
    store.put("/old", b"o" * 500_000)
    view = store.get_view("/old")
    for life in range(3):
        cluster.namenode.kill()
        cluster.namenode.start()
        value = bytes([life]) * 500_000

        def up() -> bool:
            return any(s["state"] == "up" for s in store.status()["servers"])

        while not up():
            pass
        store.put("/new", value)
        with cluster.connect() as other:
            assert other.get("/new") == value
        assert store.get("/new") == value
        assert bytes(view) == b"o" * 500_000
        with pytest.raises(errors.NotFoundError):
            store.get("/old")


def test_a_view_goes_with_its_caller_though_nobody_was_reached_meanwhile(own):
    """An error that stayed somewhere would hold the frames it passed, and what lies in them."""
    cluster, store = own
    store.put("/old", b"o" * 500_000)

    def caller() -> int:
        view = memoryview(store.get_view("/old"))
        cluster.namenode.kill()
        try:
            store.exists("/old", timeout=0.3)
        except errors.UnavailableError:
            assert store.client_stats()["slots_used"] == 1
            return len(view)
        return 0

    gc.disable()
    try:
        assert caller() == 500_000
        assert store.client_stats()["slots_used"] == 0
    finally:
        gc.enable()


@pytest.fixture
def stopped(own):
    """A store, and how to stop its namenode and to have it go on; it goes on at the end."""
    cluster, store = own

    def signal_namenode(number: int) -> None:
        if number == signal.SIGSTOP:
            stop(cluster.namenode.pid)
        else:
            os.kill(cluster.namenode.pid, number)

    yield cluster, store, signal_namenode
    signal_namenode(signal.SIGCONT)


def test_calls_that_ran_out_of_time_cost_no_lane_and_no_granule(stopped):
    _, store, signal_namenode = stopped
    for size in (10, 100_000, 1_000_000):
        store.put("/k", b"x" * size)
    held = store.client_stats()["grants_held"]
    assert held > 0
    signal_namenode(signal.SIGSTOP)
    for i in range(300):
        with pytest.raises((errors.DeadlineError, errors.UnavailableError)):
            store.put(f"/late{i}", b"x", timeout=0.001)
    signal_namenode(signal.SIGCONT)
    versions = [store.put(f"/k{i}", b"x" * 100) for i in range(20)]
    assert versions == sorted(set(versions))
    stats = store.client_stats()
    assert stats["lanes"] <= 2
    assert stats["grants_held"] == held


def test_a_deadline_is_kept_while_nobody_answers(stopped):
    _, store, signal_namenode = stopped
    signal_namenode(signal.SIGSTOP)
    begin = time.monotonic()
    for call in (store.get, store.stat, store.mkdir, store.get_view):
        with pytest.raises((errors.DeadlineError, errors.UnavailableError)):
            call("/x", timeout=0.2)
    assert time.monotonic() - begin < 4 * 0.2 + 2


def test_what_is_held_ahead_does_not_fill_the_store(own):
    cluster, store = own
    for size in range(1, 16):
        store.put("/k", bytes(size << 20))
    store.delete("/k")
    store.put("/large", bytes(100 << 20))
    store.delete("/large")
    with cluster.connect() as other:
        other.put("/large", bytes(60 << 20))


def test_closing_while_other_threads_call_gives_them_an_error_and_no_crash(own):
    cluster, _ = own
    for _ in range(5):
        store = cluster.connect()
        store.put("/c", bytes(4 << 20))
        begun = threading.Semaphore(0)
        unexpected: list[BaseException] = []

        def work(n: int, store=store, begun=begun, unexpected=unexpected) -> None:
            buffer = bytearray(4 << 20)
            begun.release()
            try:
                while True:
                    store.get_into("/c", buffer)
                    store.put(f"/c{n}", buffer)
            except (errors.ClosedError, errors.OutOfSpaceError, errors.UnavailableError):
                pass
            except BaseException as error:
                unexpected.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in threads:
            begun.acquire()
        store.get("/c")
        store.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert not unexpected


def test_more_threads_than_lanes_attach_at_once(own):
    cluster, store = own
    store.put("/bulk", b"b" * 100_000)
    with cluster.connect() as other:
        got: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: got.append(other.get("/bulk"))) for _ in range(140)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [b"b" * 100_000] * 140


def test_a_long_list_may_be_changed_by_its_owner_meanwhile(own):
    _, store = own
    keys = [f"/l/{i}" for i in range(5000)]
    store.put_many([(key, key.encode()) for key in keys])
    stop = threading.Event()
    mine = list(keys)

    def change() -> None:
        while not stop.is_set():
            mine.append("/l/0")
            mine.pop(0)

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(20):
        assert all(value.startswith(b"/l/") for value in store.get_many(mine))
    stop.set()
    thread.join()
