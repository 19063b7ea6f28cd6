"""Tables and queues, and counters."""

from __future__ import annotations

import random

import pytest

import crailpy
from crailpy import errors

from .kit import Call, Program, until, waiters


@pytest.fixture(params=["shm", "tcp"])
def store(request, cluster):
    with cluster.connect(transport=request.param) as store:
        store.mkdir("/con", exist_ok=True)
        yield store
        store.rmtree("/con")


@pytest.fixture
def other(cluster):
    with cluster.connect() as store:
        yield store


# ---- counters ---------------------------------------------------------------


def test_incr_makes_counts_and_returns_the_sum(store):
    assert store.incr("/con/n") == 1
    assert store.incr("/con/n", 41) == 42
    assert store.incr("/con/n", -50) == -8
    assert store.get("/con/n") == b"-8"
    store.put("/con/m", b"100")
    assert store.incr("/con/m") == 101
    versions = [store.stat("/con/n").version, store.stat("/con/m").version]
    assert versions == sorted(versions)


def test_incr_refuses_what_is_no_counter_and_what_does_not_fit(store):
    store.put("/con/text", b"text")
    store.put("/con/large", b"1" * 100_000)
    store.incr("/con/most", (1 << 63) - 1)
    for path, by in (("/con/text", 1), ("/con/large", 1), ("/con/most", 1), ("/con/new", 1 << 63)):
        with pytest.raises(errors.InvalidArgumentError):
            store.incr(path, by)
    with pytest.raises(errors.IsContainerError):
        store.incr("/con")
    with pytest.raises(errors.NotFoundError):
        store.incr("/con/no/parent", parents=False)
    assert store.get("/con/most") == b"%d" % ((1 << 63) - 1)
    assert not store.exists("/con/new")


def test_counts_of_many_threads_add_up(store):
    calls = [Call(lambda: [store.incr("/con/sum") for _ in range(200)]) for _ in range(8)]
    seen = [n for call in calls for n in call.result()]
    assert sorted(seen) == list(range(1, 1601))


# ---- tables ---------------------------------------------------------------


def test_a_table_is_a_mapping_of_str_to_bytes(store):
    table = store.table("/con/t")
    rng = random.Random(3)
    model = {}
    for _ in range(500):
        key = f"k{rng.randrange(50)}"
        if rng.random() < 0.3 and key in model:
            del table[key]
            del model[key]
        else:
            model[key] = table[key] = rng.randbytes(rng.choice([0, 10, 10_000]))
        assert len(table) == len(model)
    assert list(table) == sorted(model)
    assert dict(table.items()) == model
    assert list(table.values()) == [model[key] for key in sorted(model)]
    assert list(table.keys()) == sorted(model)
    assert "k0" in table or "k0" not in model
    assert "none" not in table
    assert table.get("none", b"default") == b"default"
    assert table.pop("none", None) is None
    key = next(iter(model))
    assert table.pop(key) == model[key]
    assert key not in table
    assert table.setdefault("new", b"1") == b"1"
    table.update({"u1": b"1"}, u2=b"2")
    assert table["u2"] == b"2"
    table.clear()
    assert len(table) == 0
    with pytest.raises(KeyError):
        table["none"]
    with pytest.raises(KeyError):
        del table["none"]


def test_a_table_of_many_keys_is_read_in_pages_and_in_order(store):
    table = store.table("/con/many")
    names = [f"{i * 7919 % 5000:05d}" for i in range(5000)]
    table.update({name: name.encode() for name in names})
    assert len(table) == 5000
    assert list(table) == sorted(names)
    assert list(table.items()) == [(name, name.encode()) for name in sorted(names)]


def test_two_stores_share_a_table(store, other):
    store.table("/con/shared")["a"] = b"1"
    again = other.table("/con/shared", create=False)
    assert again["a"] == b"1"
    again["b"] = b"2"
    assert dict(store.table("/con/shared")) == {"a": b"1", "b": b"2"}


def test_a_table_refuses_containers_and_keys_that_are_no_names(store):
    table = store.table("/con/strict")
    with pytest.raises(errors.InvalidArgumentError):
        store.mkdir("/con/strict/inner")
    for key in ("", "a/b", ".", "..", "a\0b", "x" * 256):
        with pytest.raises(errors.InvalidPathError):
            table[key] = b""
    with pytest.raises(TypeError):
        table[5] = b""
    assert len(table) == 0


def test_another_kind_is_refused_and_absence_said(store):
    store.put("/con/file", b"")
    store.mkdir("/con/dir")
    for give in (store.table, store.queue):
        for path in ("/con/file", "/con/dir"):
            with pytest.raises(errors.ExistsError):
                give(path)
        with pytest.raises(errors.NotContainerError):
            give("/con/dir", create=False)
        with pytest.raises(errors.NotFoundError):
            give("/con/none", create=False)
    assert not store.exists("/con/none")
    assert store.stat("/con/dir").kind == "directory"
    store.table("/con/t1")
    store.queue("/con/q1")
    assert [(i.name, i.kind) for i in store.scandir("/con")][-2:] == [
        ("q1", "queue"), ("t1", "table"),
    ]  # fmt: skip


# ---- queues ---------------------------------------------------------------


def test_a_queue_gives_items_of_any_size_first_in_first_out(store):
    queue = store.queue("/con/q")
    values = [b"", b"small", b"x" * 4096, b"y" * 4097, b"z" * 3_000_000]
    for value in values:
        queue.put(value)
    assert len(queue) == 5
    numbers = []
    for value in values:
        with queue.get() as item:
            assert item.data == value
            numbers.append(item.number)
    assert numbers == sorted(set(numbers))
    assert len(queue) == 0
    with pytest.raises(errors.NotFoundError):
        queue.get()


def test_get_waits_for_an_item_and_each_goes_to_one(store, other):
    queue = store.queue("/con/q")
    takers = [Call(lambda: queue.get(wait=60)) for _ in range(10)]
    until(lambda: waiters(other) == 10)
    for i in range(10):
        other.queue("/con/q").put(b"%d" % i)
    items = [taker.result() for taker in takers]
    assert sorted(int(item.data) for item in items) == list(range(10))
    for item in items:
        item.ack()
    assert len(queue) == 0
    with pytest.raises(errors.DeadlineError):
        queue.get(wait=0.05)


def test_an_item_released_or_left_by_an_exception_goes_back_to_its_place(store):
    queue = store.queue("/con/q")
    for i in range(3):
        queue.put(b"%d" % i)
    first, second = queue.get(), queue.get()
    assert (first.data, second.data) == (b"0", b"1")
    first.release()
    first.release()

    def leave_by_an_exception():
        with queue.get() as item:
            assert item.data == b"0"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave_by_an_exception()
    assert queue.get().data == b"0"
    second.ack()
    with pytest.raises(errors.ClosedError):
        second.ack()
    assert queue.get().data == b"2"


TAKER = """
import sys, crailpy
store = crailpy.connect(sys.argv[1])
item = store.queue("/con/dead").get(wait=60)
print(item.data.decode(), flush=True)
sys.stdin.read()
"""


def test_an_item_whose_taker_died_is_delivered_again():
    with (
        crailpy.LocalCluster(dram="64MiB", session_grace="500ms") as cluster,
        cluster.connect() as store,
    ):
        queue = store.queue("/con/dead")
        queue.put(b"precious")
        with Program(TAKER, cluster.address) as child:
            assert child.line() == "precious"
            with pytest.raises(errors.NotFoundError):
                queue.get()
            assert len(queue) == 1
            child.kill()
        with queue.get(wait=30) as item:
            assert item.data == b"precious"
        assert len(queue) == 0


def test_an_item_of_a_queue_that_went_can_not_be_acknowledged(store):
    queue = store.queue("/con/gone")
    queue.put(b"x" * 100_000)
    item = queue.get()
    store.rmtree("/con/gone")
    with pytest.raises(errors.NotFoundError):
        item.ack()
    with pytest.raises(errors.NotFoundError):
        queue.put(b"")


def test_a_queue_is_used_by_its_own_calls_only(store):
    queue = store.queue("/con/own")
    queue.put(b"1")
    with pytest.raises(errors.InvalidArgumentError):
        store.put("/con/own/x", b"")
    with pytest.raises(errors.IsContainerError):
        store.get("/con/own")
    with pytest.raises(errors.NotEmptyError):
        store.remove("/con/own")
