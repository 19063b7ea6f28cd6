"""Errors say what is wrong, in both faces."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest

import crailpy
from crailpy import errors


@pytest.fixture(scope="module")
def store(cluster: crailpy.LocalCluster) -> Iterator[crailpy.Store]:
    with cluster.connect() as store:
        store.put("/words/value", b"not a number")
        store.incr("/words/full", (1 << 63) - 1)
        store.table("/words/table")
        store.mkdir("/words/d")
        yield store


CALLS = {
    "get_into, short": (
        lambda s: s.get_into("/words/value", bytearray(3)), "the buffer is shorter",
    ),
    "get_into, past the end": (
        lambda s: s.get_into("/words/value", bytearray(99), offset=50), "the buffer is shorter",
    ),
    "get_range": (lambda s: s.get_range("/words/value", -1, 5), "no negative offset"),
    "incr of no counter": (lambda s: s.incr("/words/value"), "no counter"),
    "incr over the edge": (lambda s: s.incr("/words/full"), "does not fit 64 bits"),
    "mkdir in a table": (lambda s: s.mkdir("/words/table/d"), "hold no containers"),
    "rename into itself": (lambda s: s.rename("/words/d", "/words/d/e"), "into itself"),
    "rmtree of the root": (lambda s: s.rmtree("/"), "the root"),
    "ttl=inf": (lambda s: s.put("/words/value", b"", ttl=math.inf), "70 years"),
    "attributes": (
        lambda s: s.setattr("/words/d", **{"user.b": bytes(40000)}), "at most 65536 bytes",
    ),
}  # fmt: skip


def said_by_the_asynchronous_face(address: str, call: Any) -> str:
    async def run() -> str:
        async with crailpy.aio.connect(address) as store:
            with pytest.raises(errors.CrailError) as caught:
                await call(store)
        return str(caught.value)

    return asyncio.run(run())


@pytest.mark.parametrize("name", CALLS)
def test_an_invalid_argument_says_what_is_wrong_with_it(store: crailpy.Store, name: str) -> None:
    call, words = CALLS[name]
    store.setattr("/words/d", **{"user.a": bytes(40000)})
    with pytest.raises(errors.InvalidArgumentError, match=words):
        call(store)
    assert words in said_by_the_asynchronous_face(store.address, call)


def test_a_barrier_says_that_it_has_other_members(store: crailpy.Store) -> None:
    store.barrier("/words/barrier", 1)
    with pytest.raises(errors.InvalidArgumentError, match="another number of members"):
        store.barrier("/words/barrier", 2)


@pytest.mark.parametrize("path", ["", "x", "/\ud800", "/a\0", "/a/../b", "/" + "x" * 256])
def test_what_is_no_path_is_shown_with_the_rules(store: crailpy.Store, path: str) -> None:
    for call in (store.get, store.stat, lambda path: store.put(path, b"")):
        with pytest.raises(errors.InvalidPathError) as caught:
            call(path)
        assert f"{path!r}; it must begin with" in str(caught.value)
    with pytest.raises(errors.BatchError) as batch:
        store.get_many(["/words/value", path])
    assert repr(path) in str(batch.value.results[1])
    assert repr(path) in said_by_the_asynchronous_face(store.address, lambda s: s.get(path))


def test_an_empty_queue_is_no_missing_node(store: crailpy.Store) -> None:
    queue = store.queue("/words/queue")
    with pytest.raises(errors.NotFoundError, match="the queue is empty"):
        queue.get()

    async def get(store: Any) -> None:
        await (await store.queue("/words/queue")).get()

    assert "the queue is empty" in said_by_the_asynchronous_face(store.address, get)


def test_a_put_says_that_its_job_is_over(store: crailpy.Store) -> None:
    with store.job("words") as job:
        pass
    with pytest.raises(errors.NotFoundError, match="the job is over"):
        store.put("/words/late", b"", job=job)
    put = lambda s: s.put("/words/late", b"", job=job.number)  # noqa: E731
    assert "the job is over" in said_by_the_asynchronous_face(store.address, put)


def test_who_follows_is_told_that_the_writer_discarded_it(store: crailpy.Store) -> None:
    with store.open("/words/stream", "wb") as writer:
        writer.write(b"some")
        writer.flush()
        with store.open("/words/stream", "rb", follow=True, buffering=0) as reader:
            assert reader.read(4) == b"some"
            writer.discard()
            with pytest.raises(errors.DataLostError, match="discarded by its writer"):
                reader.read(4)


def test_who_follows_in_a_loop_is_told_that_the_writer_discarded_it(store: crailpy.Store) -> None:
    async def follow(reads: Any) -> None:
        writer = store.open("/words/stream", "wb")
        writer.write(b"some")
        writer.flush()
        async with await reads.open("/words/stream", "rb", follow=True) as reader:
            assert await reader.read(4) == b"some"
            writer.discard()
            await reader.read(4)

    assert "discarded by its writer" in said_by_the_asynchronous_face(store.address, follow)
