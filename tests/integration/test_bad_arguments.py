"""What the public calls are given wrong, and what they are given in another type of number."""

from __future__ import annotations

import fractions
import pickle

import pytest

import crailpy
import crailpy.aio
from crailpy import errors


@pytest.fixture
def store(cluster):
    with cluster.connect() as store:
        store.mkdir("/bad", exist_ok=True)
        yield store
        store.rmtree("/bad")


def test_put_many_puts_a_bad_item_among_the_results(store):
    strided = memoryview(b"abcd")[::2]
    items = [("/bad/a", b"1"), ("/bad/b", "text"), ("/bad/c", b"3"), (b"/bad/d", b"4"),
             ("/bad/e", strided), ("/bad/f", b"6" * 10000), ("/bad/g", b"7")]  # fmt: skip
    with pytest.raises(errors.BatchError) as caught:
        store.put_many(items)
    kinds = [type(result) for result in caught.value.results]
    assert [kinds[i] for i in (0, 2, 5, 6)] == [int] * 4
    assert all(issubclass(kinds[i], TypeError | ValueError | BufferError) for i in (1, 3, 4))
    assert store.stat("/bad/g").version == caught.value.results[6]
    assert store.listdir("/bad") == ["a", "c", "f", "g"]


@pytest.mark.parametrize(
    "kind",
    [object, [("o", object), ("n", "i4")], [("o", [("o", object)]), ("t", "M8[s]")],
     [("Open", "f8"), ("O", "i4")], "M8[s]"],
    ids=str,
)  # fmt: skip
async def test_addresses_of_objects_are_no_data_whatever_fields_are_called(cluster, store, kind):
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(4, kind)
    is_data = not array.dtype.hasobject

    def check(put):
        if is_data:
            put()
        else:
            with pytest.raises((errors.InvalidArgumentError, errors.BatchError), match="addresses"):
                put()

    shuffle = store.shuffle("/bad/shuffle", partitions=1)
    check(lambda: store.put("/bad/a", array))
    check(lambda: store.put("/bad/a", array, ttl=60))
    check(lambda: store.put("/bad/a", numpy.zeros(10_000, kind)))
    check(lambda: store.put_many([("/bad/a", array)]))
    with shuffle.writer(0) as writer:
        check(lambda: writer.write(0, array))
        if "M8[s]" not in str(kind):  # NumPy gives out no times that lie scattered
            check(lambda: writer.write(0, array[::2]))
    async with crailpy.aio.connect(cluster.address) as aio:
        for put in (aio.put("/bad/a", array), aio.put_many([("/bad/a", array)])):
            if is_data:
                await put
            else:
                with pytest.raises((errors.InvalidArgumentError, errors.BatchError)):
                    await put
    assert store.exists("/bad/a") == is_data


def test_what_computes_makes_the_directories_above_unless_told_not_to(store):
    numpy = pytest.importorskip("numpy")

    def write(path, **how):
        shuffle = pickle.loads(pickle.dumps(store.shuffle(path, partitions=1, **how)))
        with shuffle.writer(0) as writer:
            writer.write(0, b"x")

    def push(path, **how):
        model = pickle.loads(pickle.dumps(store.model(path, **how)))
        model.push({"w": numpy.ones(2)}, "set")

    calls = {
        "broadcast": lambda path, **how: store.broadcast(path, 1, **how),
        "shuffle": write,
        "model": push,
        "reduce": lambda path, **how: store.reduce(path, numpy.ones(2), 1, rank=0, **how),
        "ranks": lambda path, **how: store.reduce(path, numpy.ones(2), 1, **how),
    }
    for name, call in calls.items():
        with pytest.raises(errors.NotFoundError):
            call(f"/bad/{name}/x", parents=False)
        assert not store.exists(f"/bad/{name}")
        call(f"/bad/{name}/x", parents=True)
        if name == "shuffle":  # its outputs are what is made
            store.rmtree(f"/bad/{name}/x")
            store.mkdir(f"/bad/{name}/y")
        call(f"/bad/{name}/y", parents=False)
        with pytest.raises(TypeError, match="no keyword"):
            call(f"/bad/{name}/z", tire="dram")


async def test_one_key_is_not_several(cluster, store):
    store.put("/bad/k", b"v")
    async with crailpy.aio.connect(cluster.address) as aio:
        for one in ("/bad/k", b"/bad/k", ""):
            for call in (store.get_many, store.delete_many, store.stat_many):
                with pytest.raises(errors.InvalidArgumentError, match="several"):
                    call(one)
            for ask in (aio.get_many, aio.delete_many, aio.stat_many):
                with pytest.raises(errors.InvalidArgumentError, match="several"):
                    await ask(one)
    assert store.get_many(("/bad/k",)) == [b"v"]


def test_connect_takes_what_it_was_not_given_from_the_configuration(cluster, monkeypatch):
    monkeypatch.setenv("CRAILPY_TIMEOUT", "250ms")
    monkeypatch.setenv("CRAILPY_TRANSPORT", "tcp")
    with cluster.connect() as store:
        assert (store._timeout, store._options["transport"]) == (0.25, "tcp")
    with cluster.connect(timeout=10.0, transport="shm") as store:
        assert (store._timeout, store._options["transport"]) == (10.0, "shm")


@pytest.mark.parametrize(
    "options",
    [{"namespace": None}, {"namespace": "a"}, {"namespace": "/a/../b"}, {"timeout": "10s"},
     {"timeout": -1}, {"transport": "pigeon"}],
)  # fmt: skip
def test_connect_refuses_bad_options(cluster, options):
    with pytest.raises(errors.InvalidArgumentError):
        cluster.connect(**options)
    with pytest.raises(errors.InvalidArgumentError):
        crailpy.connect(5)


def test_a_lifetime_that_is_over_is_refused(store):
    for ttl in (0, -1, 1e-12, "1s"):
        with pytest.raises(errors.InvalidArgumentError):
            store.put("/bad/x", b"1", ttl=ttl)
        with pytest.raises(errors.InvalidArgumentError):
            store.setattr("/bad", ttl=ttl)
    store.put("/bad/x", b"1", ttl=fractions.Fraction(3600))


def test_numbers_out_of_range_and_what_is_no_number_are_refused(store):
    store.put("/bad/v", b"value")
    into = bytearray(5)
    for call in (
        lambda: store.get("/bad/v", timeout=-1),
        lambda: store.get("/bad/v", timeout="1s"),
        lambda: store.get("/bad/v", wait="1s"),
        lambda: store.put("/bad/v", b"", if_version=-1),
        lambda: store.put("/bad/v", b"", if_version=1.5),
        lambda: store.get_range("/bad/v", 0, 2**70),
        lambda: store.get_into("/bad/v", into, offset=2**70),
        lambda: store.incr("/bad/n", "1"),
        lambda: store.job("bad", quota_bytes="much"),
    ):
        with pytest.raises(errors.InvalidArgumentError):
            call()
    assert store.get("/bad/v") == b"value"
    with store.job("bad", quota_bytes="1MiB"):
        pass


def test_numbers_of_numpy_are_numbers(store):
    numpy = pytest.importorskip("numpy")
    version = store.put("/bad/v", b"value", stripe=numpy.uint8(2), ttl=numpy.float32(60))
    store.put("/bad/v", b"other", if_version=numpy.uint64(version), timeout=numpy.float32(5))
    assert store.incr("/bad/n", numpy.int64(3)) == 3
    store.truncate("/bad/v", numpy.int32(2))
    assert store.get("/bad/v", wait=numpy.float64(1)) == b"ot"


@pytest.mark.parametrize("make", ["table", "queue", "multifile", "job"])
def test_wrong_placement_fails_when_a_container_is_made(store, make):
    path = "bad" if make == "job" else "/bad/none/made"
    for wrong in ({"tier": "bogus"}, {"replicas": 2}):
        with pytest.raises(errors.InvalidArgumentError):
            getattr(store, make)(path, **wrong)
    with pytest.raises(TypeError, match="'foo' is no keyword"):
        getattr(store, make)(path, foo=1)
    assert not store.exists("/bad/none")


def test_parents_are_made_unless_refused(store):
    for make in (store.table, store.queue, store.multifile):
        with pytest.raises(errors.NotFoundError):
            make("/bad/none/x", parents=False)
        make(f"/bad/made/{make.__name__}", parents=True)
    for size in (10, 1_000_000):
        with (
            pytest.raises(errors.NotFoundError),
            store.open("/bad/none/x", "wb", parents=False) as f,
        ):
            f.write(bytes(size))
        with store.open(f"/bad/open/{size}", "wb", parents=True) as f:
            f.write(bytes(size))
    with pytest.raises(errors.NotFoundError):
        store.open("/bad/none/x", "ab", parents=False)


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("buffering", [-1, 0])
def test_what_was_all_read_is_delivered_without_an_empty_read(store, size, buffering):
    store.put("/bad/once", bytes(size), delete_after_read=True)
    with store.open("/bad/once", buffering=buffering) as file:
        file.read(10)
    assert store.exists("/bad/once"), "read ahead is not read"
    file = store.open("/bad/once", buffering=buffering)
    file.read(size)
    file.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert store.exists("/bad/once"), "its reader failed"
    with store.open("/bad/once", buffering=buffering) as file:
        assert len(file.read(size)) == size
    assert not store.exists("/bad/once")


def test_an_error_of_rename_names_both_paths(store):
    store.put("/bad/a", b"1")
    store.put("/bad/b", b"2")
    for dst in ("/bad/none/x", "/bad/b"):
        with pytest.raises(errors.CrailError, match=f"'/bad/a' to '{dst}'"):
            store.rename("/bad/a", dst)
