"""The SDK against a real store: what each call promises."""

from __future__ import annotations

import pickle
import random
import threading

import numpy
import pytest

import crailpy
from crailpy import errors

from .kit import settled

WAYS = {
    "shm-ring": {"transport": "shm"},
    "shm-socket": {"transport": "shm", "ring": False},
    "tcp": {"transport": "tcp"},
}


@pytest.fixture(params=sorted(WAYS))
def store(request, cluster):
    with cluster.connect(**WAYS[request.param]) as store:
        store.mkdir("/t", exist_ok=True)
        yield store
        store.rmtree("/t")


SIZES = [0, 1, 7, 64, 4095, 4096, 4097, 8192, 65536, 1 << 20, (1 << 20) + 1, 20 << 20]


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_put_is_got_back_by_every_way_of_reading(store, size):
    data = pattern(size)
    version = store.put("/t/a", data)
    assert store.get("/t/a") == data
    into = bytearray(size)
    assert store.get_into("/t/a", into) == size
    assert into == data
    with store.get_view("/t/a") as view:
        assert bytes(view) == data
        assert (view.version, view.nbytes) == (version, size)
    assert store.get_many(["/t/a"]) == [data]
    info = store.stat("/t/a")
    assert (info.size, info.version, info.kind, info.path) == (size, version, "file", "/t/a")
    with store.open("/t/a", "rb") as file:
        assert file.read() == data


def test_versions_increase_across_overwrite_and_recreate(store):
    versions = [store.put("/t/v", b"1"), store.put("/t/v", b"2" * 10000)]
    store.delete("/t/v")
    versions.append(store.put("/t/v", b"3"))
    assert versions == sorted(set(versions))


def test_get_range_is_cut_at_the_end(store):
    for size in (100, 100_000):
        data = pattern(size)
        store.put("/t/r", data)
        assert store.get_range("/t/r", 10, 20) == data[10:30]
        assert store.get_range("/t/r", size - 5, 50) == data[-5:]
        assert store.get_range("/t/r", size + 5, 50) == b""
        with pytest.raises(errors.InvalidArgumentError):
            store.get_range("/t/r", -1, 5)


def test_get_into_with_offset_and_too_short_a_buffer(store):
    data = pattern(70_000)
    store.put("/t/i", data)
    buffer = bytearray(70_000)
    assert store.get_into("/t/i", buffer, offset=60_000) == 10_000
    assert buffer[:10_000] == data[60_000:]
    with pytest.raises(errors.InvalidArgumentError):
        store.get_into("/t/i", bytearray(10))
    with pytest.raises((TypeError, BufferError)):
        store.get_into("/t/i", b"read only")


def test_numpy_arrays_go_in_and_come_out_without_a_copy(store):
    array = numpy.arange(500_000, dtype="float64")
    store.put("/t/n", array)
    view = store.get_view("/t/n")
    out = numpy.frombuffer(view, dtype="float64")
    assert (out == array).all()
    view.release()
    assert (out == array).all(), "the buffer keeps the value after release()"


def test_a_view_keeps_its_value_after_delete_and_overwrite(store):
    data = pattern(300_000)
    store.put("/t/k", data)
    view = store.get_view("/t/k")
    store.put("/t/k", pattern(300_000, seed=2))
    store.delete("/t/k")
    for i in range(50):
        store.put(f"/t/fill{i}", pattern(300_000, seed=i))
    assert bytes(view) == data


def test_create_exclusive_and_compare_and_set(store):
    for data in (b"small", b"x" * 100_000):
        store.rmtree("/t")
        version = store.put("/t/x", data, if_absent=True)
        with pytest.raises(errors.ExistsError) as caught:
            store.put("/t/x", data, if_absent=True)
        assert caught.value.path == "/t/x"
        version2 = store.put("/t/x", data, if_version=version)
        with pytest.raises(errors.VersionConflictError):
            store.put("/t/x", data, if_version=version)
        assert store.stat("/t/x").version == version2


def test_many_values_keep_their_order_and_report_each_failure(store):
    items = {f"/t/m{i}": pattern(i % 50 * 200, seed=i) for i in range(3000)}
    versions = store.put_many(items)
    assert versions == sorted(versions)
    assert store.get_many(list(items)) == list(items.values())
    keys = ["/t/m1", "/t/absent", "/t/m2"]
    assert store.get_many(keys, missing="none") == [items["/t/m1"], None, items["/t/m2"]]
    with pytest.raises(errors.BatchError) as caught:
        store.get_many(keys)
    assert caught.value.results[0] == items["/t/m1"]
    assert isinstance(caught.value.results[1], errors.NotFoundError)
    with pytest.raises(errors.BatchError) as caught:
        store.put_many([("/t/ok", b"1"), ("no slash", b"2")])
    assert isinstance(caught.value.results[0], int)
    assert isinstance(caught.value.results[1], errors.InvalidPathError)
    store.delete_many(keys)
    assert store.get_many(keys, missing="none") == [None] * 3


def test_directories(store):
    store.mkdir("/t/d/e", parents=True)
    with pytest.raises(errors.ExistsError):
        store.mkdir("/t/d")
    store.mkdir("/t/d", exist_ok=True)
    store.put("/t/d/b", b"1")
    store.put("/t/d/a", b"22")
    assert store.listdir("/t/d") == ["a", "b", "e"]
    assert [(i.path, i.size, i.kind) for i in store.scandir("/t/d")] == [
        ("/t/d/a", 2, "file"),
        ("/t/d/b", 1, "file"),
        ("/t/d/e", 0, "directory"),
    ]
    with pytest.raises(errors.NotEmptyError):
        store.remove("/t/d")
    with pytest.raises(errors.IsContainerError):
        store.get("/t/d")
    with pytest.raises(errors.IsContainerError):
        store.delete("/t/d")
    with pytest.raises(errors.NotContainerError):
        store.get("/t/d/a/b")
    store.rename("/t/d", "/t/moved")
    assert store.get("/t/moved/a") == b"22"
    assert not store.exists("/t/d")
    with pytest.raises(errors.InvalidArgumentError):
        store.rename("/t/moved", "/t/moved/e/f")
    store.rmtree("/t/moved")
    assert not store.exists("/t/moved")


def test_listing_pages_through_a_large_directory_in_order(store):
    names = sorted(f"n{i * 7919 % 5000:05d}" for i in range(5000))
    store.put_many([(f"/t/big/{n}", b"") for n in names])
    assert store.listdir("/t/big") == names


@pytest.mark.parametrize(
    "path",
    ["", "a", "a/b", "//", "/a//b", "/a/", "/a/./b", "/../x", "/a\0b", "/" + "x" * 256,
     "/a" * 2100, "/\ud800"],
)  # fmt: skip
def test_invalid_paths_are_refused_by_name(store, path):
    for call in (store.get, store.stat, store.mkdir, store.delete, lambda p: store.put(p, b"")):
        with pytest.raises(errors.InvalidPathError):
            call(path)


def test_no_key_leads_out_of_a_namespace(store, cluster):
    with cluster.connect(namespace="/t/in") as inner:
        inner.put("/a", b"1")
        calls = (inner.get, inner.mkdir, inner.delete, lambda p: inner.rename("/a", p))
        for path in ("", "side", "a/b"):
            for call in (*calls, lambda p: inner.put(p, b"")):
                with pytest.raises(errors.InvalidPathError):
                    call(path)
            with pytest.raises(errors.BatchError):
                inner.put_many([(path, b"")])
        with pytest.raises(errors.ExistsError):
            inner.rename("/a", "/")
        with pytest.raises(errors.InvalidPathError):
            inner.rename("/a", "/b" * 2048)
    assert store.listdir("/t") == ["in"]


@pytest.mark.parametrize("bad", ["a", "/\ud800", "/x" * 3000])
def test_of_many_a_bad_path_fails_alone(store, bad):
    keys = ["/t/1", bad, "/t/2"]

    def results(call, *arguments):
        with pytest.raises(errors.BatchError) as caught:
            call(*arguments)
        assert isinstance(caught.value.results.pop(1), errors.InvalidPathError)
        return caught.value.results

    versions = results(store.put_many, [(key, b"v") for key in keys])
    assert [info.version for info in results(store.stat_many, keys)] == versions
    assert results(store.get_many, keys) == [b"v", b"v"]
    assert results(store.delete_many, keys) == [None, None]


def test_a_missing_parent_is_made_unless_refused(store):
    store.put("/t/p/q/r", b"1")
    assert store.get("/t/p/q/r") == b"1"
    with pytest.raises(errors.NotFoundError):
        store.put("/t/none/x", b"1", parents=False)
    assert not store.exists("/t/none")


def test_absent_keys(store):
    with pytest.raises(errors.NotFoundError) as caught:
        store.get("/t/absent")
    assert caught.value.path == "/t/absent"
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, KeyError)
    assert store.get("/t/absent", default=None) is None
    store.delete("/t/absent", missing_ok=True)
    assert not store.exists("/t/absent")
    assert store.stat_many(["/t", "/t/absent"])[1] is None


def test_writers_publish_at_close_and_discard_on_exception(store):
    with store.open("/t/w", "wb") as file:
        file.write(b"abc")
        file.write(b"d" * 100_000)
        assert not store.exists("/t/w")
    assert store.get("/t/w") == b"abc" + b"d" * 100_000

    def leave_by_an_exception():
        with store.open("/t/w2", "wb") as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave_by_an_exception()
    assert not store.exists("/t/w2")
    with pytest.raises(errors.ExistsError):
        store.open("/t/w", "xb")


def test_a_value_larger_than_the_store_is_refused_and_leaks_nothing(dram_bytes, store):
    before = settled(store)
    huge = numpy.zeros(dram_bytes + 4096, dtype="uint8")
    with pytest.raises(errors.OutOfSpaceError):
        store.put("/t/huge", huge)
    assert not store.exists("/t/huge")
    assert settled(store) == before


def test_stores_pickle_and_threads_share_one(store):
    again = pickle.loads(pickle.dumps(store))
    failures = []

    def work(n: int) -> None:
        try:
            for i in range(100):
                data = pattern(100 + i * 100, seed=n * 1000 + i)
                again.put(f"/t/thread{n}", data)
                assert again.get(f"/t/thread{n}") == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    again.close()
    with pytest.raises(errors.ClosedError):
        again.get("/t/x")


def test_namespace_confines_every_path(cluster, store):
    with cluster.connect(namespace="/t/inner") as inner:
        inner.put("/a", b"1")
        inner.rename("/a", "/b")
        assert inner.listdir("/") == ["b"]
        with pytest.raises(errors.InvalidPathError):
            inner.get("/../b")
    assert store.get("/t/inner/b") == b"1"


def test_wrong_arguments_are_refused(cluster, store):
    with pytest.raises(TypeError):
        store.get(5)
    with pytest.raises(TypeError):
        store.put("/t/a", "text")
    with pytest.raises(errors.InvalidArgumentError):
        crailpy.connect("http://x")
    with pytest.raises(errors.InvalidArgumentError):
        cluster.connect(transport="pigeon")


def test_a_server_that_is_not_there_is_named_at_once():
    with pytest.raises(errors.UnavailableError, match=r"127\.0\.0\.1:1"):
        crailpy.connect("crail://127.0.0.1:1", timeout=5)
