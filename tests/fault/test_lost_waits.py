"""Replies to requests that waited are lost: that delays, and neither hangs nor doubles anything."""

from __future__ import annotations

import threading
import time

import pytest

import crailpy
from crailpy.client import requests

from .proxy import DroppingProxy

PIECE = 0.3  # seconds that a request may wait at once


@pytest.fixture
def store(cluster, monkeypatch):
    monkeypatch.setattr(requests, "WAIT_AT_ONCE", PIECE)
    host, port = cluster.address.removeprefix("crail://").split(":")
    with (
        DroppingProxy((host, int(port)), k=3, waits=True) as proxy,
        crailpy.connect(proxy.address, transport="tcp", timeout=30) as store,
    ):
        yield store
        assert proxy.dropped > 0


@pytest.fixture
def other(cluster):
    with crailpy.connect(cluster.address, timeout=30) as store:
        yield store


def test_each_item_of_a_queue_is_taken_once_and_in_order(store, other):
    queue = store.queue("/lost/queue")
    filled = other.queue("/lost/queue")
    for i in range(9):
        filled.put(str(i).encode())
    for i in range(9):
        item = queue.get(wait=20)
        assert item.data == str(i).encode()
        item.ack()
    assert len(queue) == 0


def test_a_get_that_waits_comes_to_its_end(store, other):
    for i in range(3):
        timer = threading.Timer(3 * PIECE, other.put, (f"/lost/get{i}", b"there"))
        timer.start()
        begin = time.monotonic()
        assert store.get(f"/lost/get{i}", wait=30) == b"there"
        assert time.monotonic() - begin < 20
        timer.join()


def test_a_member_of_a_barrier_is_one_member_however_often_it_asks(store, other):
    seen = []
    for opened in range(1, 7):
        member = threading.Thread(
            target=lambda: seen.append(other.barrier("/lost/barrier", 2, timeout=30))
        )
        member.start()
        assert store.barrier("/lost/barrier", 2, timeout=30) == opened
        member.join()
        assert seen == list(range(1, opened + 1))
