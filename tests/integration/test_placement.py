"""Where bytes are put: classes, locations, stripes, and what goes to make room."""

from __future__ import annotations

import pytest

import crailpy
from crailpy import errors, native
from crailpy.client import placement

MIB = 1 << 20


@pytest.fixture(scope="module")
def cluster():
    """Three servers: two of class 0, here and there, and one of class 2, there."""
    with crailpy.LocalCluster(dram="8MiB", servers=0) as cluster:
        cluster.add_server(location="here")
        cluster.add_server(location="there")
        cluster.add_server(location="there", storage_class=2, dram="32MiB")
        yield cluster


@pytest.fixture
def store(cluster):
    with cluster.connect() as store:
        store.mkdir("/p")
        yield store
        store.rmtree("/p")


def servers_of(store, path):
    return [place["server"] for place in store.stat(path).locations]


def test_the_number_of_a_location_is_the_same_in_c_and_by_its_definition():
    for name in ("here", "a", "rack/7", "Straße", "x" * 300):
        number = 2166136261
        for byte in name.encode():
            number = (number ^ byte) * 16777619 % 2**32
        assert native.location_number(name) == placement.location_number(name) == number


def test_values_go_to_the_location_that_was_asked_for(store):
    for i in range(3):
        store.put(f"/p/here-{i}", bytes(MIB), location="here")
        store.put(f"/p/there-{i}", bytes(MIB), location="there")
    assert {n for i in range(3) for n in servers_of(store, f"/p/here-{i}")} == {1}
    assert {n for i in range(3) for n in servers_of(store, f"/p/there-{i}")} == {2}


def test_a_full_class_overflows_into_the_next_unless_it_is_strict(store):
    for i in range(24):
        store.put(f"/p/{i}", bytes(MIB), tier="dram", wait_space=10)
    assert {n for i in range(24) for n in servers_of(store, f"/p/{i}")} == {1, 2, 3}
    with pytest.raises(errors.OutOfSpaceError):
        store.put("/p/strict", bytes(4 * MIB), tier="dram", strict=True)
    with pytest.raises(errors.OutOfSpaceError):
        store.put("/p/strict", bytes(MIB), location="nowhere", strict=True)
    assert not store.exists("/p/strict")


def test_a_striped_file_lies_on_as_many_servers_and_reads_as_one(store):
    data = bytes(range(256)) * (4 * MIB // 256)
    with store.open("/p/file", "wb", stripe=2) as file:
        file.write(data)
    assert len(set(servers_of(store, "/p/file"))) == 2
    assert store.get("/p/file") == data


def test_a_stripe_lies_on_as_many_servers_and_reads_as_one(store):
    data = bytes(range(256)) * 8192 + b"odd"
    store.put("/p/striped", data, stripe=3)
    assert sorted(servers_of(store, "/p/striped")) == [1, 2, 3]
    assert len({place["bytes"] for place in store.stat("/p/striped").locations}) == 1
    assert store.get("/p/striped") == data
    store.put("/p/striped", data, stripe=64)
    assert len(servers_of(store, "/p/striped")) == 3
    assert store.get("/p/striped") == data


def test_evictable_values_make_room_and_others_stay(store):
    store.put("/p/kept", bytes(MIB), tier="file", strict=True)
    for i in range(60):
        store.put(
            f"/p/{i}", bytes(2 * MIB), tier="file", strict=True, evictable=True, wait_space=10
        )
    assert store.exists("/p/kept")
    assert store.exists("/p/59")
    there = [i for i in range(60) if store.exists(f"/p/{i}")]
    assert 0 < len(there) < 16
    assert there == list(range(60 - len(there), 60))  # the oldest went
