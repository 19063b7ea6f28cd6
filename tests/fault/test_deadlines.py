"""Deadlines of what waits, while the namenode does not answer."""

from __future__ import annotations

import os
import signal
import time

import pytest

import crailpy
from crailpy import errors

from ..stopping import stop


@pytest.fixture(scope="module")
def stopped():
    """A store whose namenode is stopped, and goes on at the end."""
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        store.put("/there", b"1")
        stop(cluster.namenode.pid)
        yield store
        os.kill(cluster.namenode.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "call",
    [
        lambda store, t: store.wait("/there", timeout=t),
        lambda store, t: store.barrier("/b", 2, timeout=t),
        lambda store, t: store.open("/there", timeout=t),
        lambda store, t: store.open("/there", "ab", timeout=t),
        lambda store, t: store.open("/there", follow=True, timeout=t),
    ],
    ids=["wait", "barrier", "open", "append", "follow"],
)
def test_a_wait_with_a_timeout_ends_by_it(stopped, call):
    begin = time.monotonic()
    with pytest.raises((errors.DeadlineError, errors.UnavailableError)):
        call(stopped, 0.5)
    assert time.monotonic() - begin < 0.5 + 1.5, "its grace is a second; the rest is this machine's"
