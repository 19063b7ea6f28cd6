"""Waiting: for values, versions, absence, changes, and for each other."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest

import crailpy
from crailpy import errors
from crailpy.model import Event

from .kit import Call, Program, until, waiters


@pytest.fixture(params=["shm", "tcp"])
def store(request, cluster):
    with cluster.connect(transport=request.param) as store:
        store.mkdir("/wait", exist_ok=True)
        yield store
        store.rmtree("/wait")


@pytest.fixture
def other(cluster):
    with cluster.connect() as store:
        yield store


@pytest.mark.parametrize("size", [10, 100_000])
def test_get_with_wait_gives_the_value_once_it_is_committed(store, other, size):
    getting = Call(store.get, "/wait/late", wait=30)
    viewing = Call(store.get_view, "/wait/late", wait=30)
    until(lambda: waiters(other) == 2)
    version = other.put("/wait/late", b"v" * size)
    assert getting.result() == b"v" * size
    with viewing.result() as view:
        assert (bytes(view), view.version) == (b"v" * size, version)


def test_a_wait_extends_the_deadline_and_ends_with_it(store):
    begin = time.monotonic()
    with pytest.raises(errors.DeadlineError):
        store.get("/wait/never", wait=0.3, timeout=0.2)
    assert 0.3 <= time.monotonic() - begin < 5
    assert store.get("/wait/never", wait=0.05, default=b"none") == b"none"
    with pytest.raises(errors.DeadlineError):
        store.get_view("/wait/never", wait=0)
    with pytest.raises(errors.InvalidArgumentError):
        store.get("/wait/never", wait=-1)
    assert waiters(store) == 0


def test_wait_for_a_node_for_a_version_and_for_absence(store, other):
    coming = Call(store.wait, "/wait/node", timeout=30)
    until(lambda: waiters(other) == 1)
    version = other.put("/wait/node", b"1")
    assert coming.result().version == version
    assert store.wait("/wait/node", version=version).size == 1

    changing = Call(store.wait, "/wait/node", version=version + 1, timeout=30)
    going = Call(store.wait, "/wait/node", absent=True, timeout=30)
    until(lambda: waiters(other) == 2)
    version2 = other.put("/wait/node", b"22")
    assert changing.result().version == version2
    assert waiters(other) == 1
    other.delete("/wait/node")
    assert going.result() is None
    assert store.wait("/wait/node", absent=True, timeout=0) is None
    with pytest.raises(errors.DeadlineError):
        store.wait("/wait/node", timeout=0.05)
    with pytest.raises(errors.InvalidArgumentError):
        store.wait("/wait/node", version=1, absent=True)


def test_a_wait_sees_a_rename_of_a_directory_above(store, other):
    other.put("/wait/from/x", b"here")
    waiting = Call(store.get, "/wait/to/x", wait=30)
    until(lambda: waiters(other) == 1)
    other.rename("/wait/from", "/wait/to")
    assert waiting.result() == b"here"


def test_many_threads_of_one_store_wait_at_once_while_it_works_on(store, other):
    waiting = [Call(store.get, f"/wait/many{i}", wait=60) for i in range(40)]
    until(lambda: waiters(other) == 40)
    for i in range(40):
        store.put(f"/wait/many{i}", b"%d" % i)
        assert waiting[i].result() == b"%d" % i


WAIT_AND_SAY = """
import sys, crailpy
store = crailpy.connect(sys.argv[1])
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    store.close()
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(
    "call",
    [
        "store.get('/wait/c', wait=60)",
        "store.barrier('/wait/c-barrier', 2, timeout=60)",
        "store.wait('/wait/c', timeout=60)",
        "store.queue('/wait/c-queue').get(wait=60)",
        "next(store.watch('/wait'))",
    ],
)
def test_ctrl_c_ends_a_wait_within_200_ms(cluster, store, transport, call):
    text = WAIT_AND_SAY.format(call=call).replace("argv[1])", f"argv[1], transport={transport!r})")
    with Program(text, cluster.address) as child:
        assert child.line() == "ready"
        until(lambda: waiters(store) == 1)
        begin = time.monotonic()
        child.process.send_signal(signal.SIGINT)
        assert child.line() == "interrupted"
        assert time.monotonic() - begin < 0.2 + 0.2, "and what a busy machine needs"
    until(lambda: waiters(store) == 0)


# ---- watch ---------------------------------------------------------------


def test_watch_tells_changes_below_in_order_with_their_versions(store, other):
    with store.watch("/wait/w") as events:
        v1 = other.put("/wait/w/a", b"1")
        v2 = other.put("/wait/w/a", b"2")
        other.put("/wait/elsewhere", b"")
        other.delete("/wait/w/a")
        other.mkdir("/wait/w/d")
        other.put("/wait/w/d/x", b"")
        other.rename("/wait/w/d", "/wait/w/e")
        other.rmtree("/wait/w")
        got = [events.next(30) for _ in range(9)]
    kinds = [(event.kind, event.path) for event in got]
    assert kinds == [
        ("put", "/wait/w"), ("put", "/wait/w/a"), ("put", "/wait/w/a"), ("delete", "/wait/w/a"),
        ("put", "/wait/w/d"), ("put", "/wait/w/d/x"), ("delete", "/wait/w/d"),
        ("put", "/wait/w/e"), ("delete", "/wait/w"),
    ]  # fmt: skip
    assert [event.version for event in got[1:3]] == [v1, v2]


def test_watch_says_resync_when_events_were_lost(store, other):
    with store.watch("/wait/o") as events:
        value = b""
        for _ in range(40):
            other.put_many([(f"/wait/o/{'n' * 200}{i}", value) for i in range(1000)])
        got = [events.next(30)]
        while got[-1].kind != "resync":
            got.append(events.next(30))
        last = other.put("/wait/o/last", b"")
        while got[-1].path != "/wait/o/last":
            got.append(events.next(30))
    assert got[-1] == Event("put", "/wait/o/last", last)
    assert Event("resync") in got
    assert len(got) < 40_000


def test_watch_says_resync_after_its_session_was_lost():
    with (
        crailpy.LocalCluster(dram="64MiB") as cluster,
        cluster.connect(timeout=30) as store,
        store.watch("/") as events,
    ):
        store.put("/a", b"")
        assert events.next(10).path == "/a"
        cluster.namenode.kill()
        cluster.namenode.start()
        assert events.next(30) == Event("resync")
        version = store.put("/b", b"")
        assert events.next(10) == Event("put", "/b", version)


def test_watch_stays_within_the_namespace(cluster, store, other):
    with cluster.connect(namespace="/wait/ns") as inner, inner.watch() as events:
        other.put("/wait/ns/x/y", b"")
        assert [events.next(30).path for _ in range(3)] == ["/", "/x", "/x/y"]


def test_a_watch_ends_cleanly_also_for_who_iterates_in_another_thread(store, other):
    watch = store.watch("/wait/end")
    seen = Call(lambda: [event.path for event in watch])
    other.put("/wait/end", b"")
    until(lambda: waiters(other) == 1)
    watch.close()
    watch.close()
    assert seen.result(20) == ["/wait/end"]
    with pytest.raises(errors.ClosedError):
        watch.next(1)
    until(lambda: other.status()["namenode"]["watches"] == 0)
    with pytest.raises(errors.DeadlineError), store.watch("/wait/quiet") as quiet:
        quiet.next(0.05)


def test_a_watch_with_a_timeout_says_when_nothing_comes_and_goes_on(store, other):
    with store.watch("/wait/slow", timeout=0.2) as events:
        for _ in range(2):
            begin = time.monotonic()
            with pytest.raises(errors.DeadlineError):
                next(events)
            assert time.monotonic() - begin >= 0.2
        version = other.put("/wait/slow", b"")
        assert next(events) == Event("put", "/wait/slow", version)
        with pytest.raises(errors.DeadlineError):
            list(events)
        other.put("/wait/slow", b"")
        assert events.next().kind == "put"


def test_a_session_has_so_many_watches(cluster):
    with cluster.connect() as many, contextlib.ExitStack() as stack:
        for i in range(1024):
            stack.enter_context(many.watch(f"/wait/many/{i}"))
        with pytest.raises(errors.QuotaExceededError) as caught:
            many.watch("/wait/many")
        assert caught.value.path == "/wait/many"
        assert "watches" in str(caught.value)


# ---- barrier ---------------------------------------------------------------


def test_a_barrier_opens_when_all_are_there_again_and_again(cluster, store):
    members = [cluster.connect() for _ in range(4)]
    try:
        for round_ in range(1, 4):
            calls = [Call(m.barrier, "/wait/b", 4, timeout=30) for m in members[1:]]
            until(lambda: waiters(store) == 3)
            assert all(call.is_alive() for call in calls)
            assert members[0].barrier("/wait/b", 4, timeout=30) == round_
            assert [call.result() for call in calls] == [round_] * 3
    finally:
        for member in members:
            member.close()


def test_a_barrier_of_one_opens_at_once(store):
    assert store.barrier("/wait/b1", 1) == 1
    assert store.barrier("/wait/b1", 1) == 2


def test_a_member_whose_deadline_passes_leaves_without_breaking(store, other):
    with pytest.raises(errors.DeadlineError):
        store.barrier("/wait/b2", 2, timeout=0.1)
    call = Call(store.barrier, "/wait/b2", 2, timeout=30)
    until(lambda: waiters(other) == 1)
    assert call.is_alive(), "who gave up does not count"
    assert other.barrier("/wait/b2", 2, timeout=30) == 1
    assert call.result() == 1


MEMBER = """
import sys, crailpy
store = crailpy.connect(sys.argv[1])
print("ready", flush=True)
store.barrier("/wait/b3", 3, timeout=60)
"""


def test_a_dead_member_breaks_the_barrier_for_all_until_it_is_removed(tmp_path):
    with (
        crailpy.LocalCluster(dram="64MiB", session_grace="500ms") as cluster,
        cluster.connect() as store,
        cluster.connect() as other,
        Program(MEMBER, cluster.address) as child,
    ):
        waiting = Call(other.barrier, "/wait/b3", 3, timeout=60)
        until(lambda: waiters(store) == 2)
        child.kill()
        with pytest.raises(errors.BarrierBrokenError):
            waiting.result()
        with pytest.raises(errors.BarrierBrokenError):
            store.barrier("/wait/b3", 3)
        store.remove("/wait/b3")
        again = Call(other.barrier, "/wait/b3", 2, timeout=60)
        assert store.barrier("/wait/b3", 2, timeout=60) == again.result()


def test_a_barrier_that_is_removed_breaks_for_its_members(store, other):
    waiting = Call(store.barrier, "/wait/b4", 2, timeout=60)
    until(lambda: waiters(other) == 1)
    other.remove("/wait/b4")
    with pytest.raises(errors.BarrierBrokenError):
        waiting.result()


def test_a_barrier_of_another_number_is_refused(store, other):
    waiting = Call(store.barrier, "/wait/b5", 2, timeout=60)
    until(lambda: waiters(other) == 1)
    for n in (3, 0, -1):
        with pytest.raises(errors.InvalidArgumentError):
            other.barrier("/wait/b5", n)
    other.barrier("/wait/b5", 2)
    waiting.result()
