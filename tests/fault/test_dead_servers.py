"""Storage servers that are away, seen by a client that never came near them."""

from __future__ import annotations

import time

import pytest

import crailpy


@pytest.mark.parametrize("transport", [None, "tcp"])
def test_a_put_goes_to_another_server_when_that_of_its_grant_is_dead(transport):
    value = b"v" * (3 << 20)
    with (
        crailpy.LocalCluster(dram="64MiB", servers=2) as cluster,
        cluster.connect(timeout=5, transport=transport) as store,
    ):
        store.put("/a", value)
        (used,) = {place["server"] for place in store.stat("/a").locations}
        (unused,) = (s["id"] for s in store.status()["servers"] if s["number"] != used)
        cluster.servers[int(unused.removeprefix("storage-"))].kill()
        begin = time.monotonic()
        store.put("/b", value)
        assert time.monotonic() - begin < 3, "the dead server did not eat the deadline"
        assert store.get("/b") == value
        assert store.check() is None
