"""Waiting, watching, holding and counting on the asynchronous face."""

from __future__ import annotations

import asyncio

import numpy
import pytest

import crailpy.aio
from crailpy import errors


@pytest.fixture
async def aio(cluster):
    async with crailpy.aio.connect(cluster.address) as store:
        await store.mkdir("/aw", exist_ok=True)
        yield store
        await store.rmtree("/aw")


async def test_thousands_wait_on_one_lane_while_others_go_on(aio):
    n = 2000
    waiting = [asyncio.ensure_future(aio.get(f"/aw/{i}", wait=60)) for i in range(n)]
    waiting += [asyncio.ensure_future(aio.wait(f"/aw/{i}", timeout=60)) for i in range(0, n, 10)]
    assert not await aio.exists("/aw/0")
    for cancelled in waiting[1:n:2]:
        cancelled.cancel()
    await aio.put_many([(f"/aw/{i}", b"%d" % i) for i in range(n)])
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    for i, outcome in enumerate(outcomes[:n]):
        assert isinstance(outcome, asyncio.CancelledError) if i % 2 else outcome == b"%d" % i
    assert all(info.size for info in outcomes[n:])
    await aio.get("/aw/0")
    assert aio._reads.frames == 0


async def test_a_wait_ends_at_its_deadline_and_leaves_nothing(aio):
    with pytest.raises(errors.DeadlineError):
        await aio.wait("/aw/never", timeout=0.05)
    assert await aio.get("/aw/never", wait=0.05, default=None) is None
    version = await aio.put("/aw/v", b"1")
    later = asyncio.ensure_future(aio.wait("/aw/v", version=version + 1))
    gone = asyncio.ensure_future(aio.wait("/aw/v", absent=True))
    newer = await aio.put("/aw/v", b"2")
    assert (await later).version == newer
    assert not gone.done()
    await aio.delete("/aw/v")
    assert await gone is None
    assert aio._reads.frames == 0


async def test_a_watch_tells_what_changes_in_order(aio):
    async with await aio.watch("/aw/watched") as watch:
        await aio.put("/aw/watched/a", b"1", parents=True)
        await aio.delete("/aw/watched/a")
        seen = []
        async for event in watch:
            seen.append((event.kind, event.path))
            if event.kind == "delete":
                break
        assert seen[-2:] == [("put", "/aw/watched/a"), ("delete", "/aw/watched/a")]
        reading = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
    with pytest.raises((StopAsyncIteration, errors.CrailError)):
        await reading


async def test_a_watch_with_a_timeout_says_when_nothing_comes_and_goes_on(aio):
    async with aio.watch("/aw/slow", timeout=0.2) as watch:
        for _ in range(2):
            with pytest.raises(errors.DeadlineError):
                await anext(watch)
        await aio.put("/aw/slow", b"", parents=True)
        assert (await anext(watch)).path == "/aw/slow"
        with pytest.raises(errors.DeadlineError):
            await watch.next()


async def test_a_watch_that_is_cancelled_in_the_middle_loses_no_event(aio):
    async with aio.watch("/aw/lossless") as watch:
        for i in range(50):
            reading = asyncio.ensure_future(watch.next(10))
            for _ in range(i % 7):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                pytest.fail(f"nothing happened, and yet {reading.result()}")
        await aio.put("/aw/lossless/x", b"")
        kinds = [await watch.next(10) for _ in range(2)]
        assert [e.path for e in kinds] == ["/aw/lossless", "/aw/lossless/x"]


async def test_counters_count_each_call_once(aio):
    sums = await asyncio.gather(*(aio.incr("/aw/n") for _ in range(500)))
    assert sorted(sums) == list(range(1, 501))
    assert await aio.incr("/aw/n", -500) == 0


async def test_a_table_is_a_mapping(aio):
    table = await aio.table("/aw/table")
    await table.update({f"k{i:03}": b"%d" % i for i in range(300)})
    await table.put("k000", b"new")
    assert await table.get("k000") == b"new"
    assert await table.get("absent", None) is None
    assert [key async for key in table] == [f"k{i:03}" for i in range(300)]
    assert [v async for _, v in table.items()][:2] == [b"new", b"1"]
    await table.delete("k000")
    assert not await table.contains("k000")
    assert await table.length() == 299
    with pytest.raises(errors.InvalidPathError):
        await table.get("a/b")
    with pytest.raises(errors.NotContainerError):
        await aio.queue("/aw/table", create=False)


async def test_jobs_attributes_and_the_sessions_directory(aio, cluster):
    async with aio.job("aio-job") as job:
        await aio.put(f"{job.path}/x", b"1")
        await aio.put("/aw/of-job", b"1", job=job)
    assert not await aio.exists(job.path)
    await aio.put("/aw/a", b"")
    await aio.setattr("/aw/a", **{"user.color": b"red"})
    assert await aio.attributes("/aw/a") == {"user.color": b"red"}
    with pytest.raises(errors.InvalidArgumentError):
        await aio.setattr("/aw/a", color=b"red")
    async with crailpy.aio.connect(cluster.address) as other:
        path = await other.session_path()
        assert path == await other.session_path()
        await other.put(f"{path}/mine", b"")
        assert await aio.exists(f"{path}/mine")
    await aio.wait(path, absent=True, timeout=30)


async def test_objects_walk_and_glob(aio):
    array = numpy.arange(100_000)
    await aio.put_object("/aw/tree/a/object", {"array": array})
    back = await aio.get_object("/aw/tree/a/object")
    assert (back["array"] == array).all()
    await aio.touch("/aw/tree/b.txt")
    assert [step async for step in aio.walk("/aw/tree")] == [
        ("/aw/tree", ["a"], ["b.txt"]),
        ("/aw/tree/a", [], ["object"]),
    ]
    assert [path async for path in aio.glob("/aw/tree/**/*b*")] == [
        "/aw/tree/a/object",
        "/aw/tree/b.txt",
    ]


async def test_what_goes_when_it_was_read_goes_once_it_was(aio):
    for size in (10, 100_000):
        await aio.put("/aw/once", b"x" * size, delete_after_read=True)
        assert await aio.get_range("/aw/once", 0, 5) == b"xxxxx"
        assert await aio.get("/aw/once") == b"x" * size
        assert not await aio.exists("/aw/once")
        await aio.put("/aw/once", b"y" * size, delete_after_read=True)
        view = await aio.get_view("/aw/once")
        assert bytes(view) == b"y" * size
        assert await aio.exists("/aw/once")
        view.release()
        await aio.wait("/aw/once", absent=True)


async def test_barriers_open_for_all_and_break_for_none_that_is_cancelled(aio):
    for round_ in (1, 2):
        assert (
            await asyncio.gather(*(aio.barrier("/aw/bar", 50) for _ in range(50))) == [round_] * 50
        )
    for k in range(40):  # cancelled after k ticks, wherever its request is by then
        first = asyncio.ensure_future(aio.barrier("/aw/bar3", 3))
        early = asyncio.ensure_future(aio.barrier("/aw/bar3", 3))
        for _ in range(k):
            await asyncio.sleep(0)
        early.cancel()
        with pytest.raises(asyncio.CancelledError):
            await early
        others = aio.barrier("/aw/bar3", 3), aio.barrier("/aw/bar3", 3)
        assert await asyncio.gather(first, *others) == [k + 1] * 3
    with pytest.raises(errors.DeadlineError):
        await aio.barrier("/aw/bar3", 3, timeout=0.05)


async def test_queues_deliver_each_item_once_to_hasty_consumers(aio):
    queue = await aio.queue("/aw/queue")
    n = 200
    items = [b"%d" % i if i % 3 else b"%d " % i * 3000 for i in range(n)]
    got: list[bytes] = []

    async def consumer(k: int) -> None:
        while len(got) < n:
            task = asyncio.ensure_future(queue.get(wait=0.5))
            for _ in range(k):
                await asyncio.sleep(0)
            if k:
                task.cancel()  # it may have taken one that nobody sees: it must come back
            try:
                item = await task
            except (asyncio.CancelledError, errors.DeadlineError):
                continue
            got.append(item.data)
            await item.ack()

    consuming = [asyncio.ensure_future(consumer(k)) for k in (0, 1, 3, 7, 20)]
    await asyncio.gather(*(queue.put(item) for item in items))
    while len(got) < n:  # noqa: ASYNC110 (the consumers tell by what they got)
        await asyncio.sleep(0.001)
    await asyncio.gather(*consuming)
    assert sorted(got) == sorted(items)
    assert await queue.length() == 0
    await queue.put(b"back")
    with pytest.raises(ZeroDivisionError):
        async with await queue.get() as item:
            raise ZeroDivisionError
    async with await queue.get(wait=5) as again:
        assert (again.number, again.data) == (item.number, b"back")
    with pytest.raises(errors.NotFoundError):
        await queue.get()


async def test_a_table_can_do_what_a_mapping_can(aio):
    table = await aio.table("/aw/mapping")
    await table.update({"a": b"1", "b": b"2", "c": b"3"})
    assert [value async for value in table.values()] == [b"1", b"2", b"3"]
    assert await table.setdefault("a", b"x") == b"1"
    assert await table.setdefault("d", b"4") == await table.get("d") == b"4"
    assert await table.pop("b") == b"2"
    assert await table.pop("b", None) is None
    with pytest.raises(errors.NotFoundError):
        await table.pop("b")
    assert await table.popitem() == ("a", b"1")
    await table.clear()
    assert await table.length() == 0
    with pytest.raises(errors.NotFoundError):
        await table.popitem()
