"""The namenode's state folder: what stays in it, what is refused, what fsck finds and repairs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys

import lmdb
import pytest

import crailpy
from crailpy import errors, native
from crailpy.server.namenode import database as database_module
from crailpy.server.namenode import rows
from crailpy.server.namenode.database import Database, Reading, Superblock, Table
from crailpy.server.namenode.persist import Persister, State
from crailpy.server.namenode.reader import PAGE, check_metas

from .kit import Call

NODES = 3000
DAMAGES = int(os.environ.get("CRAILPY_DAMAGES", "12"))
"""Bits that flip at random, and as many in the heads of pages."""
REPAIRS = 4  # of them, in an ordinary run
CRAILPY = [sys.executable, "-m", "crailpy.cli"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A state folder with NODES values, of a namenode that was killed."""
    folder = tmp_path_factory.mktemp("state")
    with crailpy.LocalCluster(dram="16MiB", dir=folder) as cluster, cluster.connect() as store:
        store.put_many([(f"/d{i % 10}/{i}", b"x" * (i % 300)) for i in range(NODES)])
        store.queue("/q").put(b"item")
        store.put("/last", b"x", durability="sync")
        cluster.namenode.kill()
    return str(folder / "namenode")


@pytest.fixture
def state(whole, tmp_path):
    """A copy of it to be damaged."""
    return shutil.copytree(whole, tmp_path / "state")


def core_of(state):
    """The core of a namenode that starts with this. Raises what that would end with."""
    core = native.Namenode(
        arena_bytes_max=1 << 30,
        session_grace=10,
        mac_key=state.superblock().key,
        durability="group",
        grants=state.grants,
    )
    try:
        state.load(core)
    except BaseException:
        core.close()
        raise
    return core


def load(path):
    """The nodes that a namenode would start with. Raises what it would end with."""
    found = State(path)
    try:
        core = core_of(found)
        try:
            assert core.check() is None
            return core.stats()["nodes"]
        finally:
            core.close()
    finally:
        found.close()


def fsck(path, *flags):
    command = [*CRAILPY, "fsck", "--dir", str(path), "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def change_row(path, key, change):
    """Puts what `change` makes of a row in its place."""
    database = Database(os.path.join(path, "metadata.mdb"))
    database.open()
    with database._env.begin() as txn:
        row = txn.get(key)
    database.commit([Table({key: change(row)})])
    database.close()


def node_key(path):
    """The key of some leaf's row."""
    database = Database(os.path.join(path, "metadata.mdb"))
    database.open()
    with database._env.begin() as txn:
        keys = [k for k, row in txn.cursor() if k[0] == rows.NODE and b"1234" in bytes(row)]
    database.close()
    return keys[0]


# ---- what stays ----------------------------------------------------------------------------------


def test_the_next_cluster_in_the_folder_goes_on(tmp_path):
    with crailpy.LocalCluster(dram="16MiB", dir=tmp_path) as cluster, cluster.connect() as store:
        before = store.put("/kept", b"1")
        assert store.status()["durability"] == "group"
    assert os.listdir(tmp_path) == ["namenode"]
    with crailpy.LocalCluster(dram="16MiB", dir=tmp_path) as cluster, cluster.connect() as store:
        assert store.get("/kept") == b"1"
        assert store.put("/kept", b"2") > before


def test_none_keeps_nothing_and_says_so(tmp_path):
    with (
        crailpy.LocalCluster(dram="16MiB", durability="none", dir=tmp_path) as cluster,
        cluster.connect() as store,
    ):
        store.put("/x", b"1")
        assert store.stat("/x").durability == "none"
        assert store.status()["durability"] == "none"
        assert store.status()["state"] is None
        for asked in ("sync", "group"):
            with pytest.raises(errors.InvalidArgumentError):
                store.put("/x", b"2", durability=asked)
        assert store.get("/x") == b"1"
    assert os.listdir(tmp_path) == []


def test_a_state_is_not_passed_over(state):
    command = [*CRAILPY, "namenode", "--dir", str(state), "--durability", "none", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "has a state" in done.stderr


def test_durability_is_asked_for_by_call():
    with (
        crailpy.LocalCluster(dram="16MiB", group_interval=60) as cluster,
        cluster.connect(timeout=30) as store,
    ):
        store.put("/sync", b"1", durability="sync")
        store.put("/group", b"1", durability="group")
        assert store.stat("/sync").durability == "group"
        cluster.namenode.kill()
        cluster.namenode.start()
        assert store.get("/sync") == b"1"
        assert not store.exists("/group")
        with pytest.raises(errors.InvalidArgumentError):
            store.put("/x", b"1", durability="always")


def test_a_folder_is_of_one_namenode(whole):
    holder = State(whole)
    try:
        with pytest.raises(errors.ExistsError, match="another process works on"):
            State(whole)
        command = [*CRAILPY, "fsck", "--dir", whole]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "another process works on" in done.stderr
    finally:
        holder.close()


def limit_files(cluster, size):
    """What the namenode writes fails beyond so many bytes of a file, as on a full disk."""
    _, hard = resource.prlimit(cluster.namenode.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(cluster.namenode.pid, resource.RLIMIT_FSIZE, (size, hard))


@pytest.mark.parametrize("durability", ["sync", "group"])
def test_while_commits_fail_writers_wait_and_readers_do_not(durability):
    with (
        crailpy.LocalCluster(dram="16MiB", durability=durability, group_interval=0.05) as cluster,
        cluster.connect(timeout=30) as store,
    ):
        store.put("/before", b"1", durability="sync")
        limit_files(cluster, 4096)
        waiting = [Call(store.put, "/sync", b"1", durability="sync")]
        while not store.status()["state"]["failure"]:
            pass
        waiting += [Call(store.put, f"/{i}", b"1") for i in range(3)]
        assert store.get("/before") == b"1"
        with pytest.raises(errors.DeadlineError):
            store.put("/late", b"1", timeout=0.3)
        assert all(call.is_alive() for call in waiting)
        limit_files(cluster, resource.RLIM_INFINITY)
        for call in waiting:
            call.result(30)
        assert store.status()["state"]["failure"] is None
        cluster.namenode.kill()
        cluster.namenode.start()
        assert store.get("/sync") == b"1"


def test_whatever_ends_a_commit_it_is_tried_again(tmp_path):
    """Also what nobody thought of: without the thread nothing would ever be durable again."""
    state = State(str(tmp_path / "state"))
    core = core_of(state)
    commit, failures = state.database.commit, [MemoryError(), RuntimeError("no idea")]

    def fails_at_first(changes):
        if failures:
            raise failures.pop()
        commit(changes)

    async def run():
        persister = Persister(core, state, interval=0.01)
        await persister.start()
        state.database.commit = fails_at_first
        core.session_open(7)
        try:
            assert await persister.durable(30)
            assert persister.failure is None
        finally:
            await persister.close()

    try:
        asyncio.run(run())
        assert not failures
    finally:
        core.close()
        state.close()


# ---- damage --------------------------------------------------------------------------------------


def test_a_whole_state_is_well(state):
    nodes = load(state)
    assert nodes >= NODES
    code, report = fsck(state)
    assert (code, report["ok"], report["problems"], report["dropped"]) == (0, True, [], [])
    assert report["facts"]["nodes"] == nodes


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9])
def test_a_truncated_database_is_refused(state, part):
    path = os.path.join(state, "metadata.mdb")
    os.truncate(path, int(os.path.getsize(path) * part))
    with pytest.raises(errors.ChecksumError, match=r"metadata\.mdb is damaged"):
        load(state)
    assert fsck(state)[0] == 1


def test_a_folder_whose_database_is_gone_is_not_a_new_one(state):
    os.unlink(os.path.join(state, "metadata.mdb"))
    with pytest.raises(errors.ChecksumError, match="is missing"):
        load(state)
    assert not os.path.exists(os.path.join(state, "metadata.mdb"))


def test_a_database_that_went_away_is_not_made_anew_by_a_commit(state):
    """As when the disk is taken away while commits fail, and LMDB has to be opened again."""
    path = os.path.join(state, "metadata.mdb")
    database = Database(path)
    database.open()
    database.close()
    os.rename(path, path + ".away")
    row = Table(dict([rows.super_row("test", b"x")]))
    with pytest.raises(FileNotFoundError):
        database.commit([row])
    assert not os.path.exists(path)
    os.rename(path + ".away", path)
    database.commit([row])
    database.close()
    assert load(state) >= NODES


CTRL_C = """
import os, signal, sys
from crailpy.server.namenode.database import Reading
signal.signal(signal.SIGINT, lambda *_: None)
reading = Reading(sys.argv[1])
pieces = reading.pieces()
next(pieces)  # it has far more than a pipe takes
os.killpg(0, signal.SIGINT)
print(sum(len(data) > 0 for _, data in pieces), reading.problems)
"""


def test_ctrl_c_while_the_state_is_read_is_no_damage(state):
    command = [sys.executable, "-c", CTRL_C, os.path.join(state, "metadata.mdb")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, start_new_session=True
    )
    assert done.stdout.endswith(" []\n"), done


def test_wherever_it_is_truncated_is_seen_at_the_start(state):
    path = os.path.join(state, "metadata.mdb")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        assert check_metas(file, size) is None
        for cut in [*range(0, size, PAGE), *range(PAGE - 1, size, PAGE)]:
            assert check_metas(file, cut) is not None, cut


def with_a_page_that_was_never_written(folder):
    """A database whose last commit took the last page and gave it back: (path, its pages)."""
    for seed in range(1000):
        rng = random.Random(seed)
        path = os.path.join(folder, f"{seed}.mdb")
        keys = []
        with lmdb.open(path, subdir=False, map_size=1 << 28, sync=False, lock=False) as env:
            for _ in range(25):
                with env.begin(write=True) as change:
                    for _ in range(rng.randrange(1, 300)):
                        if rng.random() < 0.6 or not keys:
                            keys.append(rng.randbytes(8))
                            change.put(keys[-1], bytes(rng.randrange(1500)))
                        else:
                            change.delete(keys.pop(rng.randrange(len(keys))))
                pages = env.info()["last_pgno"] + 1
                if os.path.getsize(path) < pages * PAGE:
                    return path, pages
        os.unlink(path)
    raise AssertionError("LMDB writes all pages now")


def test_a_free_page_that_was_never_written_is_no_truncation(tmp_path):
    path, pages = with_a_page_that_was_never_written(tmp_path)
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        assert check_metas(file, size) is None
        seen = [check_metas(file, cut) for cut in range(2 * PAGE, size, PAGE)]
    # Not where only more of the free pages are gone.
    assert sum(why is not None for why in seen) > 0.9 * len(seen)
    assert seen[0] == f"it is truncated: {2 * PAGE} bytes of {pages * PAGE}"
    with open(path, "r+b") as file:
        for last in (pages + 10, 1 << 40, (1 << 64) - 1):
            write_in_metas(file, 120, last)
            assert (
                check_metas(file, size) == f"it is truncated: {size} bytes of {(last + 1) * PAGE}"
            )
        write_in_metas(file, 120, pages - 1)
        assert check_metas(file, size) is None
        for root in (0, 2, pages - 1, (1 << 64) - 1):  # a free list that is none
            write_in_metas(file, 64, root)
            assert check_metas(file, size) == f"it is truncated: {size} bytes of {pages * PAGE}"


def write_in_metas(file, at, number):
    """Behind the head of both meta pages (struct MDB_meta): 64: free list, 120: last page."""
    for page in (0, PAGE):
        file.seek(page + 16 + at)
        file.write(number.to_bytes(8, "little"))
    file.flush()


def lost(dropped):
    """How many rows a repair says that it has dropped."""
    known = [re.fullmatch(r"(\d+) rows on damaged pages", row) for row in dropped]
    return sum(int(row[1]) if row else 1 for row in known)


def test_flipped_bits_never_start_with_less(state):
    """Wherever a bit flips: all is there, or the start is refused, and a repair tells of each row
    that is not there afterwards."""
    number = random.randrange(1 << 32)
    print(f"seed {number}")
    seed = random.Random(number)
    path = os.path.join(state, "metadata.mdb")
    nodes, before = load(state), raw(state)
    with open(path, "rb") as file:
        good = file.read()
    places = [0x18, 0x30, 0x60, 0x98, 0x1018, 0x1030, 0x1060, 0x1098]  # of the meta pages
    places += [seed.randrange(len(good)) for _ in range(DAMAGES)]
    heads = [seed.randrange(len(good) // PAGE) * PAGE + seed.randrange(80) for _ in range(DAMAGES)]
    refused = repaired = 0
    for place in places + heads:
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes((good[place] ^ 1 << seed.randrange(8),)))
        try:
            assert load(state) == nodes
        except (errors.CrailError, OSError):
            refused += 1
            if place >= 2 * PAGE and (repaired < REPAIRS or DAMAGES > 100):
                code, report = fsck(state, "--repair")
                repaired += code == 0
                if code:
                    assert report["verdict"].endswith("cannot be repaired"), (place, report)
                    continue
                assert load(state)
                missing = before.keys() - raw(state).keys()
                assert len(missing) <= lost(report["dropped"]), (place, report)
        finally:
            with open(path, "wb") as file:
                file.write(good)
    print(f"{refused} of {len(places + heads)} refused, {repaired} repaired")
    assert refused > 0


@pytest.mark.parametrize("what", ["order", "flag"])
def test_a_repair_loses_what_is_damaged_and_not_what_lies_behind(state, what):
    """One node of a page in the middle: its key, or a flag that ends whoever reads it."""
    path = os.path.join(state, "metadata.mdb")
    with open(path, "rb") as file:
        good = bytearray(file.read())
    nodes = load(state)
    key = (1).to_bytes(1, "big") + (NODES // 2).to_bytes(8, "big")
    at = good.index(key)
    while at % PAGE < 512 or key not in raw(state):  # in a leaf that is in use, not in a branch
        at = good.index(key, at + 1)
    if what == "order":
        good[at + 1] ^= 0x20
    else:
        good[at - 4] ^= 0x04  # F_DUPDATA, in the head of the node
    with open(path, "wb") as file:
        file.write(good)
    with pytest.raises(errors.ChecksumError):
        load(state)
    code, report = fsck(state, "--repair")
    assert code == 0
    assert lost(report["dropped"]) == 1
    assert load(state) == nodes - 1


def test_a_damaged_row_is_refused_by_name_and_repaired(state):
    key = node_key(state)
    name = rows.name_of(key)
    nodes = load(state)
    change_row(state, key, lambda row: row[:40] + bytes((row[40] ^ 1,)) + row[41:])
    with pytest.raises(errors.ChecksumError):
        load(state)
    code, report = fsck(state)
    assert (code, report["dropped"]) == (1, [name])
    code, report = fsck(state, "--repair")
    assert (code, report["dropped"]) == (0, [name])
    assert os.path.exists(report["kept"])
    assert fsck(state)[0] == 0
    assert load(state) == nodes - 1


def test_rows_that_contradict_each_other_are_repaired(state):
    """One node's row under two ids: one of them has to go."""
    key = node_key(state)
    other = (1 << 40).to_bytes(8, "little")

    database = Database(os.path.join(state, "metadata.mdb"))
    database.open()
    with database._env.begin() as txn:
        row = txn.get(key)
    copy = native.row_make(rows.NODE, other, rows.value_of(row))
    database.commit([Table({rows.key_of(rows.NODE, other): copy})])
    database.close()
    nodes = NODES
    with pytest.raises(errors.ChecksumError):
        load(state)
    code, report = fsck(state, "--repair")
    assert code == 0
    assert len(report["dropped"]) == 1
    assert load(state) >= nodes


def raw(path):
    """All rows by their keys."""
    database = Database(os.path.join(path, "metadata.mdb"))
    database.open()
    with database._env.begin() as txn:
        found = {bytes(key): bytes(row) for key, row in txn.cursor()}
    database.close()
    return found


def test_counting_goes_on_far_beyond_where_the_bounds_were_damaged(state):
    key, _ = rows.super_row("bounds", b"")
    before = rows.value_of(raw(state)[key])
    change_row(state, key, lambda row: row[:40] + bytes((row[40] ^ 1,)) + row[41:])
    with pytest.raises(errors.ChecksumError):
        load(state)
    code, report = fsck(state, "--repair")
    assert (code, report["dropped"]) == (0, ["super 'bounds'", "super 'bounds', made anew"])
    after = rows.value_of(raw(state)[key])
    numbers = [
        [int.from_bytes(of[at : at + 8], "little") for at in (8, 16, 24)] for of in (before, after)
    ]
    assert all(old < new for old, new in zip(*numbers, strict=True)), numbers
    assert load(state) >= NODES


def test_a_damaged_grant_map_is_refused_by_name_and_put_aside(state):
    with open(os.path.join(state, "grants.map"), "r+b") as file:
        file.write(b"x" * 64)
    command = [*CRAILPY, "namenode", "--dir", str(state), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "grants.map is damaged" in done.stderr
    code, report = fsck(state, "--repair")
    assert (code, report["dropped"]) == (0, ["grants.map"])
    assert load(state) >= NODES
    assert fsck(state)[0] == 0


def test_what_cannot_be_repaired_is_said_to_be_damaged_still(state):
    key = (7).to_bytes(8, "little")
    short = native.row_make(rows.SESSION, key, b"shrt")
    database = Database(os.path.join(state, "metadata.mdb"))
    database.open()
    database.commit([Table({rows.key_of(rows.SESSION, key): short})])
    database.close()
    before = raw(state)
    code, report = fsck(state, "--repair")
    assert (code, report["ok"]) == (1, False)
    assert "cannot be repaired" in report["verdict"]
    assert raw(state) == before


def test_the_database_grows_beyond_the_addresses_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "MAP_FIRST", 1 << 20)
    path = str(tmp_path / "metadata.mdb")
    database = Database(path)
    database.create(Superblock.fresh())
    keys = [(i.to_bytes(8, "little")) for i in range(2000)]
    made = {rows.key_of(rows.NODE, k): native.row_make(rows.NODE, k, bytes(3000)) for k in keys}
    database.commit([Table(made)])
    database.close()
    reading = Reading(path)
    assert sum(len(data) for table, data in reading.pieces() if table == rows.NODE) == sum(
        map(len, made.values())
    )
    assert reading.problems == []


def test_an_unknown_format_is_refused(state):
    key, row = rows.super_row("format", (99).to_bytes(4, "little"))
    change_row(state, key, lambda old: row)
    with pytest.raises(errors.InvalidArgumentError, match="format 99"):
        load(state)


def test_fsck_asks_a_namenode_that_runs(cluster):
    command = [*CRAILPY, "fsck", "--address", cluster.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "all is well")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(state):
    os.chmod(state, 0o500)
    try:
        with pytest.raises(PermissionError):
            load(state)
    finally:
        os.chmod(state, 0o700)


def up(folder):
    """`crailpy up` with a disk; its process, address, and those of its servers."""
    words = ["up", "--dir", folder, "--dram=16MiB", "--file=64MiB", "--port=0", "--json"]
    process = subprocess.Popen([*CRAILPY, *words], stdout=subprocess.PIPE, text=True)
    with process.stdout:
        facts = json.loads(process.stdout.readline())
    return process, facts["address"], facts["pids"]


def test_what_up_has_on_disk_outlives_the_death_of_all_its_processes(tmp_path):
    value = random.Random(1).randbytes(3 << 20)
    process, address, pids = up(tmp_path)
    try:
        with crailpy.connect(address) as store:
            store.put("/disk", value, tier="file", strict=True, durability="sync")
            store.put("/memory", value, tier="dram", strict=True)
            store.put("/node", b"small", durability="sync")
        pidfds = [os.pidfd_open(pid) for pid in pids]
        for pid in [process.pid, *pids]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        for fd in pidfds:
            select.select([fd], [], [], 10)
            os.close(fd)
        done = subprocess.run([*CRAILPY, "fsck", "--dir", tmp_path], capture_output=True, text=True)
        assert done.returncode == 0, done
        process, address, pids = up(tmp_path)
        with crailpy.connect(address) as store:
            assert store.get("/disk") == value
            assert store.get("/node") == b"small"
            with pytest.raises(errors.DataLostError):
                store.get("/memory")
            store.put("/memory", value)
            assert store.get("/memory") == value
    finally:
        process.terminate()
        process.wait(30)


def test_a_disk_for_up_needs_a_folder():
    done = subprocess.run([*CRAILPY, "up", "--file=1GiB"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "give --dir" in done.stderr
