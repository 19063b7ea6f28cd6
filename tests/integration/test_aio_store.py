"""The asynchronous face keeps the promises of the synchronous one: the same claims over both, and
those that are its own."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import pickle
import random
import subprocess
import sys
import warnings

import numpy
import pytest

import crailpy
import crailpy.aio
from crailpy import errors

from .test_store import (  # noqa: F401
    test_a_missing_parent_is_made_unless_refused,
    test_a_value_larger_than_the_store_is_refused_and_leaks_nothing,
    test_a_view_keeps_its_value_after_delete_and_overwrite,
    test_absent_keys,
    test_create_exclusive_and_compare_and_set,
    test_directories,
    test_get_into_with_offset_and_too_short_a_buffer,
    test_get_range_is_cut_at_the_end,
    test_invalid_paths_are_refused_by_name,
    test_listing_pages_through_a_large_directory_in_order,
    test_many_values_keep_their_order_and_report_each_failure,
    test_namespace_confines_every_path,
    test_numpy_arrays_go_in_and_come_out_without_a_copy,
    test_of_many_a_bad_path_fails_alone,
    test_versions_increase_across_overwrite_and_recreate,
)

SIZES = [0, 1, 4095, 4096, 4097, 65536, (1 << 20) + 1, 20 << 20]


class Awaited:
    """An AsyncStore whose coroutines run to their end at once, so that the tests of the synchronous
    face can be held against it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: crailpy.aio.AsyncStore) -> None:
        self._loop = loop
        self._store = store

    def __getattr__(self, name: str):
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*args, **keywords):
            result = found(*args, **keywords)
            if inspect.isasyncgen(result):
                return iter(self._loop.run_until_complete(_all(result)))
            if inspect.isawaitable(result):
                return self._loop.run_until_complete(result)
            return result

        return call


async def _all(items):
    return [item async for item in items]


@pytest.fixture(params=["shm", "tcp"])
def transport(request):
    return request.param


@pytest.fixture
def store(transport, cluster):
    with asyncio.Runner() as runner:
        inner = crailpy.aio.connect(cluster.address, transport=transport)
        runner.run(inner._connect())
        store = Awaited(runner.get_loop(), inner)
        store.mkdir("/t", exist_ok=True)
        yield store
        store.rmtree("/t")
        runner.run(inner.close())


@pytest.fixture
async def aio(transport, cluster):
    async with crailpy.aio.connect(cluster.address, transport=transport) as store:
        await store.mkdir("/aio", exist_ok=True)
        yield store
        await store.rmtree("/aio")


async def test_no_key_leads_out_of_a_namespace(aio, transport, cluster):
    async with crailpy.aio.connect(cluster.address, namespace="/aio/in") as inner:
        await inner.put("/a", b"1")
        for path in ("", "side", "a/b"):
            for call in (inner.get(path), inner.put(path, b""), inner.rename("/a", path)):
                with pytest.raises(errors.InvalidPathError):
                    await call
            with pytest.raises(errors.BatchError):
                await inner.put_many([(path, b"")])
    assert await aio.listdir("/aio") == ["in"]


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_put_is_got_back_by_every_way_of_reading(aio, transport, size):
    data = random.Random(size).randbytes(size)
    version = await aio.put("/aio/a", data)
    assert await aio.get("/aio/a") == data
    into = bytearray(size)
    assert await aio.get_into("/aio/a", into) == size
    assert into == data
    with await aio.get_view("/aio/a") as view:
        assert bytes(view) == data
        assert (view.version, view.nbytes) == (version, size)
        assert view.copied == (size <= 4096 or transport == "tcp")
    assert await aio.get_many(["/aio/a"]) == [data]
    assert await aio.get_range("/aio/a", size // 2, 10) == data[size // 2 :][:10]
    info = await aio.stat("/aio/a")
    assert (info.size, info.version, info.kind, info.path) == (size, version, "file", "/aio/a")


async def test_arrays_of_any_format_are_values(aio):
    for array in (
        numpy.arange(3000, dtype="complex128").reshape(30, 100),
        numpy.zeros(1000, dtype=[("a", "i4"), ("b", "f8")]),
    ):
        await aio.put("/aio/n", array)
        assert await aio.get("/aio/n") == array.tobytes()
        back = numpy.empty_like(array)
        await aio.get_into("/aio/n", back)
        assert back.tobytes() == array.tobytes()


def test_no_thread_runs(cluster, transport):
    program = """
import asyncio, os, sys, threading
import crailpy.aio


async def main():
    address, transport = sys.argv[1:]
    async with crailpy.aio.connect(address, transport=transport) as aio:
        await asyncio.gather(*(aio.put(f"/threads/{i}", b"x" * 20_000) for i in range(50)))
        await asyncio.gather(*(aio.get(f"/threads/{i}") for i in range(50)))
        print(threading.active_count(), len(os.listdir("/proc/self/task")))


asyncio.run(main())
"""
    command = [sys.executable, "-c", program, cluster.address, transport]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"1 1\n"


async def test_a_thousand_puts_of_different_keys_and_of_one(aio):
    small = await asyncio.gather(*(aio.put(f"/aio/{i}", b"%d" % i) for i in range(1000)))
    assert len(set(small)) == 1000
    assert await aio.get_many([f"/aio/{i}" for i in range(1000)]) == [
        b"%d" % i for i in range(1000)
    ]
    same = await asyncio.gather(*(aio.put("/aio/same", b"%d" % i) for i in range(1000)))
    last = max(range(1000), key=same.__getitem__)
    assert (await aio.stat("/aio/same")).version == same[last]
    assert await aio.get("/aio/same") == b"%d" % last
    taken = await asyncio.gather(
        *(aio.put("/aio/once", b"%d" % i, if_absent=True) for i in range(1000)),
        return_exceptions=True,
    )
    (winner,) = [i for i, r in enumerate(taken) if isinstance(r, int)]
    assert all(isinstance(r, int | errors.ExistsError) for r in taken)
    assert await aio.get("/aio/once") == b"%d" % winner


async def test_large_values_side_by_side_keep_their_bytes(aio):
    values = [random.Random(i).randbytes(50_000 + i * 70_000) for i in range(40)]
    for _ in range(2):  # the second time over what the first has granted ahead
        await asyncio.gather(*(aio.put(f"/aio/l{i}", v) for i, v in enumerate(values)))
        assert await asyncio.gather(*(aio.get(f"/aio/l{i}") for i in range(40))) == values


async def test_vectors_with_large_values_between_keep_their_order(aio):
    items = [(f"/aio/{i}", bytes([i % 256]) * (7 if i % 5 else 9000)) for i in range(200)]
    versions = await aio.put_many(items)
    assert versions == sorted(versions)
    assert await aio.get_many([key for key, _ in items]) == [value for _, value in items]


async def test_a_deadline_of_nothing_passes_and_harms_nothing(aio):
    for call in (aio.get("/aio/x", timeout=0), aio.put("/aio/x", b"1" * 9999, timeout=0)):
        with pytest.raises(errors.DeadlineError):
            await call
    with pytest.raises(ValueError, match="timeout"):
        await aio.get("/aio/x", timeout=-1)
    assert await aio.put("/aio/x", b"1")
    assert await aio.get("/aio/x") == b"1"


@pytest.mark.parametrize("face", ["sync", "aio"])
async def test_items_that_cannot_be_put_keep_no_other_from_being_put(cluster, aio, face):
    large = b"l" * 100_000
    items = [
        ("/aio/1", b"1"), (3, b"3"), (4, large), ("/aio/5", 5), ("/aio/6",), ["/aio/7", b"7"],
        ("no path", large), ("/aio/8", large), ("/aio/9", b"9"), "/aio/10",
    ]  # fmt: skip
    with cluster.connect() as store, pytest.raises(errors.BatchError) as raised:
        await aio.put_many(items) if face == "aio" else store.put_many(items)
    good = {0: b"1", 7: large, 8: b"9"}
    kinds = [type(r) for r in raised.value.results]
    assert kinds == [
        int, TypeError, TypeError, TypeError, TypeError, TypeError, errors.InvalidPathError,
        int, int, TypeError,
    ]  # fmt: skip
    for i, value in good.items():
        assert await aio.get(items[i][0]) == value
        assert (await aio.stat(items[i][0])).version == raised.value.results[i]
    assert await aio.check() is None


async def test_a_batch_of_keys_that_cannot_be_asked_asks_nothing(aio):
    with pytest.raises(TypeError):
        await aio.get_many(["/aio/1", 3])
    assert await aio.listdir("/aio") == []
    assert await aio.get_many([]) == []
    assert await aio.put_many([]) == []


async def test_calls_in_flight_at_close_get_a_closed_error(cluster, transport):
    store = await crailpy.aio.connect(cluster.address, transport=transport)
    await store.put("/closing", b"x" * 30_000_000)
    calls = [asyncio.ensure_future(store.get("/closing")) for _ in range(5)]
    calls += [asyncio.ensure_future(store.get(f"/closing{i}")) for i in range(100)]
    calls += [asyncio.ensure_future(store.put(f"/closing/{i}", b"")) for i in range(100)]
    await asyncio.sleep(0)
    await store.close()
    for call in calls:
        with pytest.raises((errors.ClosedError, errors.NotContainerError, errors.NotFoundError)):
            await call
    with pytest.raises(errors.ClosedError):
        await store.get("/closing")
    await store.close()
    async with crailpy.aio.connect(cluster.address) as again:
        await again.delete("/closing")


async def test_a_store_that_is_dropped_leaves_nothing_open(cluster, transport):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def use() -> None:
        store = await crailpy.aio.connect(cluster.address, transport=transport)
        await store.put("/dropped", b"x" * 100_000)
        await store.get("/dropped")

    gc.collect()
    before = descriptors()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        await use()
        gc.collect()
    assert any(w.category is ResourceWarning and "never closed" in str(w.message) for w in seen)
    assert descriptors() == before


async def test_a_forked_child_cannot_use_it_and_harms_nobody(aio):
    await aio.put("/aio/f", b"parent")

    def child() -> int:
        coroutine = aio.get("/aio/f")
        try:
            coroutine.send(None)
        except errors.ClosedError:
            aio._opened.abort()
            return 7
        return 1

    pid = os.fork()
    if pid == 0:
        os._exit(child())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7  # noqa: ASYNC222
    assert await aio.get("/aio/f") == b"parent"
    await aio.put("/aio/f", b"still" * 10_000)
    assert await aio.get("/aio/f") == b"still" * 10_000


async def test_a_store_that_is_not_connected_says_so(cluster):
    with pytest.raises((errors.ClosedError, AttributeError)):
        await crailpy.aio.connect(cluster.address).stat("/")
    with pytest.raises(errors.InvalidArgumentError):
        crailpy.aio.connect("http://x")
    with pytest.raises(errors.UnavailableError, match=r"127\.0\.0\.1:1"):
        await crailpy.aio.connect("crail://127.0.0.1:1", timeout=5)


def test_the_face_loads_no_asyncio_before_it_is_used() -> None:
    import subprocess
    import sys

    code = "import sys, crailpy.aio; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_store_that_outlives_its_loop_leaves_nothing_open(cluster, transport):
    async def use() -> crailpy.aio.AsyncStore:
        store = await crailpy.aio.connect(cluster.address, transport=transport)
        await store.put("/outlived", b"x" * 100_000)
        await store.get("/outlived")
        pending = asyncio.ensure_future(store.wait("/never", timeout=60))
        await asyncio.sleep(0)
        assert not pending.done()  # the end of the loop cancels it
        return store

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    store = asyncio.run(use())
    with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031
        del store
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_has_every_call_of_the_synchronous_face():
    def names(face) -> set[str]:
        return {name for name in dir(face) if not name.startswith("_")}

    compute = {"broadcast", "model", "reduce", "shuffle"}  # its workers have no coroutines
    assert names(crailpy.Store) - compute == names(crailpy.aio.AsyncStore)


async def test_a_store_pickles_as_its_address_and_options(cluster):
    async with crailpy.aio.connect(cluster.address, namespace="/apickled", timeout=7) as aio:
        await aio.put("/a", b"1")
        copy = pickle.loads(pickle.dumps(aio))
        async with copy:
            assert await copy.get("/a") == b"1"
            assert (copy.address, copy._timeout) == (aio.address, 7)
        await aio.rmtree("/")


async def test_a_store_that_nobody_connected_says_so(cluster):
    aio = crailpy.aio.connect(cluster.address)
    for call in (
        lambda: aio.get("/a"),
        lambda: aio.put("/a", b""),
        lambda: aio.get_many(["/a"]),
        lambda: aio.put("/a", b"x" * 100_000),
        lambda: aio.open("/a"),
        lambda: aio.barrier("/a", 1),
    ):
        with pytest.raises(errors.ClosedError, match="not connected"):
            await call()
    await aio.close()


@pytest.mark.parametrize("first_goes_on", [False, True])
def test_another_event_loop_is_refused_in_words(cluster, first_goes_on):
    first = asyncio.new_event_loop()
    aio = first.run_until_complete(crailpy.aio.connect(cluster.address)._connect())
    if not first_goes_on:
        first.close()

    async def elsewhere() -> None:
        for call in (
            lambda: aio.get("/a"),
            lambda: aio.get_many(["/a"]),
            lambda: aio.put("/a", b""),
            lambda: aio.put("/a", b"x" * 100_000),
            lambda: aio.wait("/a"),
            aio._connect,
        ):
            with pytest.raises(errors.InvalidArgumentError, match="another event loop"):
                await call()
        if first_goes_on:
            with pytest.raises(errors.InvalidArgumentError, match="another event loop"):
                await aio.close()
        else:
            await aio.close()

    asyncio.run(elsewhere())
    if first_goes_on:
        first.run_until_complete(aio.close())
        first.close()
