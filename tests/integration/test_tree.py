"""Walking, matching and objects against a real store."""

from __future__ import annotations

import gc

import numpy
import pytest

from crailpy import errors


@pytest.fixture
def store(cluster):
    with cluster.connect() as store:
        store.mkdir("/tree", exist_ok=True)
        yield store
        store.rmtree("/tree")


@pytest.fixture
def filled(store):
    paths = ["a/1", "a/2", "a/deep/er/3", "b/1", "b/x.txt", "top.txt", ".hidden/4"]
    store.put_many([(f"/tree/{path}", b"") for path in paths])
    store.mkdir("/tree/empty")
    return store


def test_walk_goes_down_in_order_and_enters_what_is_left_in_the_list(filled):
    assert list(filled.walk("/tree")) == [
        ("/tree", [".hidden", "a", "b", "empty"], ["top.txt"]),
        ("/tree/.hidden", [], ["4"]),
        ("/tree/a", ["deep"], ["1", "2"]),
        ("/tree/a/deep", ["er"], []),
        ("/tree/a/deep/er", [], ["3"]),
        ("/tree/b", [], ["1", "x.txt"]),
        ("/tree/empty", [], []),
    ]
    seen = []
    for path, containers, _ in filled.walk("/tree"):
        seen.append(path)
        containers[:] = [name for name in containers if name == "b"]
    assert seen == ["/tree", "/tree/b"]
    with pytest.raises(errors.NotFoundError):
        list(filled.walk("/tree/none"))
    with pytest.raises(errors.NotContainerError):
        list(filled.walk("/tree/a/1"))


def test_walk_from_below_gives_containers_after_all_that_is_in_them(filled):
    paths = [path for path, _, _ in filled.walk("/tree", topdown=False)]
    assert paths[-1] == "/tree"
    assert sorted(paths) == sorted(path for path, _, _ in filled.walk("/tree"))
    for path, containers, values in filled.walk("/tree", topdown=False):
        for name in values:
            filled.delete(f"{path}/{name}")
        for name in containers:
            filled.remove(f"{path}/{name}")
    assert filled.listdir("/tree") == []


def test_walk_goes_as_deep_as_paths_go(store):
    deep = "/tree" + "/d" * 2000
    store.mkdir(deep, parents=True)
    assert sum(1 for _ in store.walk("/tree")) == 2001
    assert list(store.glob("/tree/**/d"))[-1] == deep


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/tree/*/1", ["/tree/a/1", "/tree/b/1"]),
        ("/tree/**/[34]", ["/tree/.hidden/4", "/tree/a/deep/er/3"]),
        ("/tree/*.txt", ["/tree/top.txt"]),
        ("/tree/**/*.txt", ["/tree/b/x.txt", "/tree/top.txt"]),
        ("/tree/top.txt", ["/tree/top.txt"]),
        ("/tree/?/deep/er/3", ["/tree/a/deep/er/3"]),
        ("/tree/top.txt/*", []),
        ("/tree/none/*", []),
        ("/tree/a/**", ["/tree/a", "/tree/a/1", "/tree/a/2", "/tree/a/deep", "/tree/a/deep/er",
                        "/tree/a/deep/er/3"]),
    ],
)  # fmt: skip
def test_glob_finds_each_match_once_and_in_order(filled, pattern, found):
    assert list(filled.glob(pattern)) == found


def test_glob_stays_within_the_namespace(cluster, filled):
    with cluster.connect(namespace="/tree/a") as inner:
        assert list(inner.glob("/**/3")) == ["/deep/er/3"]
        assert list(inner.glob("/*")) == ["/1", "/2", "/deep"]


def test_objects_keep_their_arrays_without_a_copy_and_the_value_as_long_as_they_live(store):
    obj = {"name": "w", "w": numpy.arange(100_000, dtype="float32"), "b": numpy.ones(3)}
    store.put_object("/tree/object", obj)
    back = store.get_object("/tree/object")
    assert back["name"] == "w"
    assert (back["w"] == obj["w"]).all()
    assert (back["b"] == obj["b"]).all()
    assert not back["w"].flags.writeable
    assert back["w"].ctypes.data % 64 == 0, "over the value, aligned"
    assert store.client_stats()["slots_used"] == 1
    store.delete("/tree/object")
    store.put_many([(f"/tree/fill{i}", numpy.zeros(100_000)) for i in range(50)])
    assert (back["w"] == obj["w"]).all()
    del back
    gc.collect()
    assert store.client_stats()["slots_used"] == 0


def test_get_object_of_another_value_is_refused(store):
    store.put("/tree/no-object", b"x" * 10_000)
    with pytest.raises(errors.ProtocolError):
        store.get_object("/tree/no-object")
    assert store.client_stats()["slots_used"] == 0


def test_objects_pass_through_tcp_too(cluster, store):
    with cluster.connect(transport="tcp") as far:
        far.put_object("/tree/far", [numpy.arange(50_000), "x"])
        array, text = far.get_object("/tree/far")
    assert (array == numpy.arange(50_000)).all()
    assert text == "x"


def test_placement_that_cannot_be_kept_is_refused(store):
    for refused in (
        {"replicas": 2}, {"durability": "always"}, {"checksum": True},
        {"tier": "tape"}, {"stripe": 0}, {"stripe": 65}, {"ttl": -1}, {"ttl": "1"},
        {"job": "name"}, {"strict": True}, {"location": ""}, {"wait_space": -1},
    ):  # fmt: skip
        for call in (store.put, store.put_object):
            with pytest.raises(errors.InvalidArgumentError):
                call("/tree/refused", b"", **refused)
        with pytest.raises(errors.InvalidArgumentError):
            store.put_many([("/tree/refused", b"")], **refused)
    with pytest.raises(TypeError):
        store.put("/tree/refused", b"", colour="red")
    assert not store.exists("/tree/refused")
