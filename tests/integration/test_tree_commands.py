"""cp mv tree du find watch top, run as processes against a real store."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

import crailpy

from .test_client_commands import COMMAND, run


@pytest.fixture
def at(cluster: crailpy.LocalCluster) -> Iterator[str]:
    with cluster.connect() as store:
        store.put_many(
            [
                ("/c/a/1", b"one"),
                ("/c/a/2.txt", b"x" * 3000),
                ("/c/a/deep/3.txt", b"y" * 100),
                ("/c/b", b"bee"),
            ]
        )
        yield f"--address={cluster.address}"
        store.rmtree("/c")


@pytest.fixture
def store(cluster: crailpy.LocalCluster) -> Iterator[crailpy.Store]:
    with cluster.connect() as store:
        yield store


def test_cp_copies_values_and_trees(at: str, store: crailpy.Store) -> None:
    large = bytes(range(256)) * 100_000
    store.put("/c/large", large)
    run("cp", at, "/c/large", "/c/large2")
    assert store.get("/c/large2") == large
    run("cp", at, "/c/b", "/c/large", "/c/a")
    assert store.get("/c/a/b") == b"bee"
    assert b"-r" in run("cp", at, "/c/a", "/c/copy", code=1)
    run("cp", at, "-r", "/c/a", "/c/copy")
    assert store.get("/c/copy/deep/3.txt") == b"y" * 100
    run("cp", at, "-r", "/c/a", "/c/copy")  # into it, as it is there
    assert store.get("/c/copy/a/1") == b"one"
    assert b"itself" in run("cp", at, "-r", "/c/a", "/c/a/deep", code=1)
    run("cp", at, "-n", "/c/b", "/c/a/1", code=1)
    assert store.get("/c/a/1") == b"one"
    run("cp", at, "/c/b", "/c/a/1")
    assert store.get("/c/a/1") == b"bee"
    run("cp", at, "/c/b", "/c/large", "/c/a/1", code=1)
    run("cp", at, "/c/none", "/c/x", code=1)


def test_mv_renames_replaces_and_goes_into_containers(at: str, store: crailpy.Store) -> None:
    run("mv", at, "/c/b", "/c/bee")
    run("mv", at, "/c/bee", "/c/a")
    assert store.get("/c/a/bee") == b"bee"
    run("mv", at, "-n", "/c/a/bee", "/c/a/1", code=1)
    run("mv", at, "/c/a/bee", "/c/a/1")
    assert store.get("/c/a/1") == b"bee"
    run("mv", at, "/c/a", "/c/a2")
    assert store.listdir("/c/a2/deep") == ["3.txt"]
    assert run("mv", at, "/c/none", "/c/x", code=1).count(b"\n") == 1


def test_tree_draws_what_is_below(at: str) -> None:
    assert run("tree", at, "/c").decode() == (
        "/c\n"
        "├── a/\n"
        "│   ├── 1  (3 B)\n"
        "│   ├── 2.txt  (2.9 KiB)\n"
        "│   └── deep/\n"
        "│       └── 3.txt  (100 B)\n"
        "└── b  (3 B)\n"
        "\n2 containers, 4 values\n"
    )
    assert run("tree", at, "-L", "1", "/c").decode().count("── ") == 2
    facts = json.loads(run("tree", at, "--json", "/c"))
    assert [entry["path"] for entry in facts["entries"]] == ["/c/a", "/c/b"]
    assert facts["entries"][0]["entries"][2]["entries"][0]["size"] == 100


def test_du_adds_up_from_below(at: str) -> None:
    facts = json.loads(run("du", at, "--json", "/c"))
    assert {row["path"]: (row["bytes"], row["values"]) for row in facts} == {
        "/c/a/deep": (100, 1),
        "/c/a": (3103, 3),
        "/c": (3106, 4),
    }
    assert run("du", at, "-s", "/c", "/c/b").splitlines()[1].split() == [b"3", b"B", b"1", b"/c/b"]


def test_find_lists_what_fits(at: str) -> None:
    def found(*words: str) -> list[str]:
        return run("find", at, "/c", *words).decode().split()

    assert found() == ["/c", "/c/a", "/c/a/1", "/c/a/2.txt", "/c/a/deep", "/c/a/deep/3.txt", "/c/b"]
    assert found("--name", "*.txt") == ["/c/a/2.txt", "/c/a/deep/3.txt"]
    assert found("--kind", "directory") == ["/c", "/c/a", "/c/a/deep"]
    assert found("--larger", "99", "--smaller", "1KiB") == ["/c/a/deep/3.txt"]
    assert found("--older", "1h") == []
    assert len(found("--newer", "1h")) == 7
    facts = json.loads(run("find", at, "/c", "--name", "b", "--json"))
    assert facts[0]["version"] > 0
    run("find", at, "/none", code=1)


def test_put_from_standard_input_streams_and_takes_placement(at: str, store: crailpy.Store) -> None:
    large = bytes(range(256)) * 50_000
    run("put", at, "--ttl", "1h", "--tier", "dram", "-", "/c/stream", stdin=large)
    assert store.get("/c/stream") == large
    assert run("get", at, "--wait", "5s", "/c/stream", "-") == large
    run("get", at, "--wait", "50ms", "/c/none", "-", code=1)
    usage = subprocess.run([*COMMAND, "put", at, "--tier", "tape", "-", "/c/x"], input=b"")
    assert usage.returncode == 2


def test_top_prints_facts_and_rates(at: str) -> None:
    facts = json.loads(run("top", at, "--json", "-n", "1", "--interval", "10ms"))
    assert facts["rates"]["requests_per_s"] >= 0
    assert facts["namenode"]["granules_total"] > 0
    assert b"requests/s" in run("top", at, "-n", "1", "--interval", "10ms")


def test_watch_prints_events_until_ctrl_c(at: str, store: crailpy.Store) -> None:
    command = [*COMMAND, "watch", at, "--json", "/c/a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            assert child.stderr.readline().startswith(b"crailpy: watching")
            version = store.put("/c/a/new", b"")
            store.put("/c/elsewhere", b"")
            store.delete("/c/a/new")
            events = [json.loads(child.stdout.readline()) for _ in range(2)]
            assert events[0] == {"kind": "put", "path": "/c/a/new", "version": version}
            assert (events[1]["kind"], events[1]["path"]) == ("delete", "/c/a/new")
        finally:
            child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0
