"""The file tier beside the others: order, ways to reach it, its command, what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

import crailpy
from crailpy import errors

from ..stopping import stop
from .kit import until

MIB = 1 << 20
CRAILPY = [sys.executable, "-m", "crailpy.cli"]


@pytest.fixture(scope="module")
def cluster():
    """One server of memory and one of the file tier."""
    with crailpy.LocalCluster(dram="8MiB", tiers=("dram", "file"), capacity="64MiB") as cluster:
        yield cluster


@pytest.fixture
def store(cluster):
    with cluster.connect() as store:
        store.mkdir("/f")
        yield store
        store.rmtree("/f")


def tiers(store) -> list[str]:
    return [store.stat(path).tier for path in store.glob("/f/*")]


def test_memory_fills_first_then_the_file(store):
    values = {f"/f/{i:02}": os.urandom(MIB) for i in range(20)}
    for path, value in values.items():
        store.put(path, value, wait_space=20)
    placed = tiers(store)
    assert placed == sorted(placed)  # "dram" before "file"
    assert set(placed) == {"dram", "file"}
    assert placed.count("dram") >= 6
    assert store.get_many(list(values)) == list(values.values())


def test_a_tier_can_be_asked_for(store):
    store.put("/f/a", bytes(MIB), tier="file", strict=True)
    with store.open("/f/b", "wb", tier="file") as file:
        file.write(bytes(3 * MIB))
    store.put("/f/c", bytes(MIB), tier="dram")
    assert tiers(store) == ["file", "file", "dram"]
    with pytest.raises(errors.OutOfSpaceError):
        store.put("/f/d", bytes(80 * MIB), tier="file", strict=True)


def test_a_view_of_what_lies_on_disk_is_a_copy(store):
    store.put("/f/disk", b"x" * MIB, tier="file")
    store.put("/f/memory", b"x" * MIB, tier="dram")
    with store.get_view("/f/disk") as disk, store.get_view("/f/memory") as memory:
        assert (disk.copied, memory.copied) == (True, False)
        assert bytes(disk) == bytes(memory)


def test_who_wants_shared_memory_only_is_told_that_a_disk_has_none(cluster, store):
    store.put("/f/disk", b"x" * MIB, tier="file")
    with cluster.connect(transport="shm", timeout=3) as other:
        with pytest.raises(errors.UnavailableError, match="on a disk"):
            other.get("/f/disk")
        other.put("/f/memory", b"x" * MIB)
        assert other.get("/f/memory") == b"x" * MIB


def test_more_than_memory_holds_comes_back(store):
    """Seven times as much as there is memory, one value at a time and all of it."""
    values = [os.urandom(4 * MIB) for _ in range(14)]
    for i, value in enumerate(values):
        store.put(f"/f/{i}", value, wait_space=20)
    for i, value in enumerate(values):
        assert store.get(f"/f/{i}") == value


def test_status_shows_the_tier(store):
    dram, file = sorted(store.status()["servers"], key=lambda server: server["tier"])
    assert (dram["tier"], dram["storage_class"], dram["state"]) == ("dram", 0, "up")
    assert (file["tier"], file["storage_class"], file["state"]) == ("file", 2, "up")
    assert file["granules_total"] == 64 * MIB // 4096


def test_an_earlier_namenode_is_forgotten_with_what_it_knew():
    """One that keeps nothing: what the disk has is nobody's. One that keeps its state finds it
    again: test_file_tier_restarts.py."""
    with crailpy.LocalCluster(tiers=("file",), capacity="8MiB", durability="none") as cluster:
        with cluster.connect() as store:
            store.put("/v", b"1" * MIB)
            before = store.status()["servers"][0]["incarnation"]
        cluster.namenode.kill()
        cluster.namenode.start()
        with cluster.connect() as store:
            (server,) = until(lambda: store.status()["servers"])
            assert server["incarnation"] != before
            assert not store.exists("/v")
            store.put("/v", b"2" * MIB)
            assert store.get("/v") == b"2" * MIB


# ---- what is left behind -------------------------------------------------------------------------


def test_a_cluster_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # no neighbour's files are there
    with crailpy.LocalCluster(servers=0) as cluster:
        server = cluster.add_server(tier="file", capacity="4MiB")
        files = os.readlink(os.path.join(cluster.folder, "files"))
        assert os.path.commonpath([files, tmp_path]) == str(tmp_path)
        assert os.listdir(files) == ["storage-0.data"]
        assert server.alive
    assert not os.path.exists(files)
    assert os.listdir(tmp_path) == []


def test_a_cluster_that_was_killed_as_a_whole_is_swept_with_its_files(base, tmp_path):
    code = """
import crailpy, os, sys
cluster = crailpy.LocalCluster(servers=0, dram_dir=sys.argv[1])
server = cluster.add_server(tier="file", capacity="4MiB")
files = os.readlink(os.path.join(cluster.folder, "files"))
print(cluster.namenode.pid, server.pid, cluster.folder, files, flush=True)
input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code, base],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with parent:
        assert parent.stdout is not None
        namenode, server, folder, files = parent.stdout.readline().split()
        for pid in (int(namenode), int(server)):
            stop(pid)  # so that they do not see the end of their parent
        parent.kill()
        for pid in (int(namenode), int(server)):
            os.kill(pid, signal.SIGKILL)
    assert os.path.exists(files)

    def is_swept() -> bool:
        with crailpy.LocalCluster(servers=0, dram_dir=base):
            return not os.path.exists(folder)

    until(is_swept)  # the kernel takes a moment to let go of the lock
    assert not os.path.exists(files)


def test_there_are_two_tiers():
    with pytest.raises(errors.InvalidArgumentError, match="dram, file"):
        crailpy.LocalCluster(tiers=("nvmf",))
    with crailpy.LocalCluster(servers=0) as cluster:
        with pytest.raises(errors.InvalidArgumentError, match="dram, file"):
            cluster.add_server(tier="tape")
        with pytest.raises(errors.InvalidArgumentError):
            cluster.add_server(tier="file", capacity=0)
        with pytest.raises(errors.OutOfSpaceError, match="are wanted"):
            cluster.add_server(tier="file", capacity="60TiB")


# ---- the command ---------------------------------------------------------------------------------


def storage(*arguments: object, **kwargs: object) -> list[str]:
    return [*CRAILPY, "storage", "--tier", "file", *map(str, arguments)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --path"),
        (["--path", "{tmp}/new"], "give --capacity"),
        (["--path", "{tmp}/letter", "--capacity", "4MiB"], "not empty"),
        (["--path", "{tmp}", "--capacity", "4MiB"], "folder"),
        (["--path", "{tmp}/no/where", "--capacity", "4MiB"], "No such file"),
        (["--path", "{tmp}/new", "--capacity", "4MiB", "--id", "a/b"], "slashes"),
        (["--path", "{tmp}/new", "--capacity", "60TiB"], "are wanted"),
    ],
)
def test_what_the_command_cannot_do_it_says(tmp_path, arguments, words):
    (tmp_path / "letter").write_text("Dear Sir")
    filled = [text.format(tmp=tmp_path) for text in arguments]
    done = subprocess.run(
        storage(*filled, "--dir", tmp_path / "dir"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "letter").read_text() == "Dear Sir"
    assert not os.path.exists(tmp_path / "new") or not os.path.getsize(tmp_path / "new")


@pytest.mark.parametrize("ephemeral", [False, True])
def test_the_command_serves_a_file_and_finds_it_again(tmp_path, ephemeral):
    path = tmp_path / "tier.data"
    with crailpy.LocalCluster(servers=0) as cluster, cluster.connect() as store:
        flags = ["--path", path, "--namenode", cluster.address, "--json"]
        flags += ["--dir", tmp_path / "dir"] + (["--ephemeral"] if ephemeral else [])
        value = os.urandom(3 * MIB)
        for lives in range(1 if ephemeral else 2):
            size = [] if lives else ["--capacity", "16MiB"]
            process = subprocess.Popen(
                storage(*flags, *size), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            with process:
                assert process.stdout is not None
                facts = json.loads(process.stdout.readline())
                assert facts["number"] == 1
                if not lives:
                    store.put("/v", value)
                assert store.get("/v") == value
                process.terminate()
                assert process.wait(20) == 0
        assert path.exists() != ephemeral
        assert not (tmp_path / "dir" / "data.sock").exists()


@pytest.fixture
def loop_device(tmp_path):
    """A block device over a file, if the machine gives one."""
    if os.getuid() or not shutil.which("losetup"):
        pytest.skip("a loop device needs root and losetup")
    backing = tmp_path / "disk"
    backing.touch()
    os.truncate(backing, 32 * MIB)
    done = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop device to be had: {done.stderr.strip()}")
    yield done.stdout.strip()
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


@pytest.fixture
def file_in_memory():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield os.path.join(folder, "tier.data")


@pytest.mark.parametrize("where", ["loop_device", "file_in_memory"])
def test_values_on_whatever_it_is_outlive_a_killed_server(where, request, tmp_path):
    path = request.getfixturevalue(where)
    size = [] if where == "loop_device" else ["--capacity", "16MiB"]
    values = {f"/{i}": os.urandom(MIB + i) for i in range(8)}
    with crailpy.LocalCluster(servers=0) as cluster, cluster.connect(timeout=30) as store:
        flags = ["--path", path, "--namenode", cluster.address, "--json", "--dir", tmp_path / "dir"]
        for life in range(2):
            process = subprocess.Popen(
                storage(*flags, *([] if life else size)), stdout=subprocess.PIPE, text=True
            )
            with process:
                assert process.stdout is not None
                assert json.loads(process.stdout.readline())["number"] == 1
                for key, value in () if life else values.items():
                    store.put(key, value, durability="sync")
                assert [store.get(key) for key in values] == list(values.values())
                process.kill()


def test_two_servers_do_not_share_a_file(tmp_path):
    with crailpy.LocalCluster(servers=1, tiers=("file",), capacity="4MiB", dir=tmp_path) as cluster:
        path = str(tmp_path / "storage-0.data")
        done = subprocess.run(
            storage("--path", path, "--namenode", cluster.address, "--dir", tmp_path / "dir"),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1
        assert "another storage server serves" in done.stderr
