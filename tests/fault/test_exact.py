"""Counters, compare-and-set, queues and barriers, exact though replies are lost."""

from __future__ import annotations

import contextlib

import pytest

import crailpy
from crailpy import errors
from crailpy.client import requests

from ..integration.kit import Call
from .proxy import DroppingProxy

CLIENTS = 3


@pytest.fixture
def stores(cluster, monkeypatch):
    """Clients behind one proxy that loses every fourth reply to a change or a hold; they wait for a
    second at once, so that a lost reply to a wait costs two."""
    monkeypatch.setattr(requests, "WAIT_AT_ONCE", 1.0)
    host, port = cluster.address.removeprefix("crail://").split(":")
    with DroppingProxy((host, int(port)), k=4) as proxy, contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(crailpy.connect(proxy.address, transport="tcp", timeout=60))
            for _ in range(CLIENTS)
        ]
        assert proxy.dropped > 0
    with cluster.connect() as store:
        store.rmtree("/exact")


def test_incr_counts_each_call_once(stores):
    def count(store):
        return [store.incr("/exact/n", 3) for _ in range(12)]

    seen = [n for call in [Call(count, store) for store in stores] for n in call.result()]
    assert sorted(seen) == [3 * i for i in range(1, 12 * CLIENTS + 1)]


def test_compare_and_set_succeeds_for_one_and_says_so(stores):
    """Each adds to a text by compare-and-set: none is lost, none is there twice."""
    stores[0].put("/exact/cas", b"")

    def add(store, who):
        for i in range(6):
            while True:
                version = store.stat("/exact/cas").version
                text = store.get("/exact/cas")
                try:
                    store.put("/exact/cas", text + f"{who}{i} ".encode(), if_version=version)
                    break
                except errors.VersionConflictError:
                    continue

    for call in [Call(add, store, who) for store, who in zip(stores, "abc", strict=True)]:
        call.result(100)
    words = stores[0].get("/exact/cas").decode().split()
    assert sorted(words) == sorted(f"{who}{i}" for who in "abc" for i in range(6))
    for who in "abc":
        assert [w for w in words if w[0] == who] == [f"{who}{i}" for i in range(6)]


def test_each_item_of_a_queue_is_put_once_and_acknowledged_by_one(stores):
    queues = [store.queue("/exact/q") for store in stores]
    items = 15

    def put(queue):
        for i in range(items):
            queue.put(b"%d" % i)
        for _ in queues[1:]:
            queue.put(b"end")

    def take(queue):
        seen = []
        while True:
            with queue.get(wait=60) as item:
                if item.data == b"end":
                    return seen
                seen.append(item.data)

    putting = Call(put, queues[0])
    takers = [Call(take, queue) for queue in queues[1:]]
    putting.result()
    seen = [data for taker in takers for data in taker.result(100)]
    assert sorted(seen, key=int) == [b"%d" % i for i in range(items)]
    assert len(queues[0]) == 0


def test_a_barrier_opens_once_a_round_for_all(stores):
    def meet(store):
        return [store.barrier("/exact/b", CLIENTS, timeout=60) for _ in range(3)]

    for call in [Call(meet, store) for store in stores]:
        assert call.result(110) == [1, 2, 3]


def test_jobs_and_their_ends_survive_lost_replies(stores):
    for _ in range(3):
        jobs = [store.job("exact", ttl=3600) for store in stores]
        assert len({job.number for job in jobs}) == 1
        stores[0].put("/exact/of-job", b"", job=jobs[0])
        for job in jobs[:-1]:
            job.close()
        assert stores[0].exists("/exact/of-job")
        jobs[-1].close()
        stores[0].wait("/exact/of-job", absent=True)


def test_tables_and_attributes_survive_lost_replies(stores):
    tables = [store.table("/exact/t") for store in stores]

    def work(table, who):
        for i in range(8):
            table[f"{who}{i}"] = b"%d" % i
            table.update({f"{who}x": b"1", f"{who}y": b"2"})
            del table[f"{who}x"]

    for call in [Call(work, table, who) for table, who in zip(tables, "abc", strict=True)]:
        call.result(100)
    assert list(tables[0]) == sorted(
        f"{who}{x}" for who in "abc" for x in [*map(str, range(8)), "y"]
    )
    for i in range(8):
        stores[0].setattr("/exact/t", **{"user.i": b"%d" % i})
        assert stores[1].attributes("/exact/t") == {"user.i": b"%d" % i}
