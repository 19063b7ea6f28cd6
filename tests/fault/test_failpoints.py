"""Each failpoint: SIGKILL there, under load; start again; fsck; and what was acknowledged is there.

One cluster for all of them, each time only who has died is started again. The first half runs with
`sync`, the other with `group`.

CRAILPY_FAILPOINT_ROUNDS: how often, each time with other numbers of passings (default 1)."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import crailpy
import crailpy.aio
from crailpy import errors, native
from crailpy.server.namenode import rows
from crailpy.server.namenode.fsck import Fsck

from ..integration.kit import Call, Program, until
from .failpoints import SOURCE, TIMEOUT, Death, Switch, World, names

ROUNDS = int(os.environ.get("CRAILPY_FAILPOINT_ROUNDS", "1"))
ROOT = Path(__file__).parents[2]
SIZE = 300 << 10  # of a client's value


class Plan(NamedTuple):
    """How a failpoint is reached: under load ("load"); by a session that is opened ("session"); by
    the namenode's start ("start"), or what follows from it ("return"); by the end of a client
    ("client") or of a process that works on a folder alone ("alone"). `passings`: it dies at one of
    the first so many."""

    how: str
    passings: int = 1
    actions: tuple[str, ...] = ("kill",)


PLANS = {
    "cut-asked": Plan("load", 5),
    "bounds-before": Plan("load", 5),
    "bounds-after": Plan("load", 5),
    "cut-begun": Plan("load", 5),
    "cut-step": Plan("load", 10),
    "durable-noted": Plan("load", 5),
    "reply": Plan("load", 100),
    "grant-noted": Plan("load", 10),
    "retire-ordered": Plan("load", 4),
    "retire-done": Plan("load", 4),
    "retire-free": Plan("load", 4),
    "load-rows": Plan("start", 4),
    "load-linked": Plan("start"),
    "server-recovered": Plan("return", 2),
    "cut-made": Plan("load", 5),
    "commit-begun": Plan("load", 5),
    "commit-put": Plan("load", 5, ("kill", "kill-at-fdatasync", "kill-in")),
    "committed": Plan("load", 5),
    "bounds-new": Plan("start"),
    "bounds-committed": Plan("start"),
    "state-made": Plan("alone"),
    "session-made": Plan("session"),
    "session-durable": Plan("session"),
    "register-begun": Plan("return", 2),
    "register-durable": Plan("return", 2),
    "recover-sent": Plan("return", 2),
    "recovered-heard": Plan("return", 2),
    "repair-written": Plan("alone"),
    "repair-kept": Plan("alone"),
    "repair-placed": Plan("alone"),
    "generations-raised": Plan("load", 4),
    "retire-confirmed": Plan("load", 4),
    "round-written": Plan("load", 3),
    "round-durable": Plan("load", 3),
    "others-raised": Plan("return"),
    "others-seen": Plan("return"),
    "registered": Plan("return"),
    "recovered-told": Plan("return"),
    "commit-unsent": Plan("client", 5),
    "commit-sent": Plan("client", 5),
    "view-held": Plan("client", 5),
}
REACHED = [(name, action) for name in names() for action in PLANS[name].actions]
IN_CLUSTER = [(n, a) for n, a in REACHED if PLANS[n].how in ("load", "session", "start", "return")]
REPAIRS = ["repair-written", "repair-kept", "repair-placed"]
OF_CLIENT = [name for name, plan in PLANS.items() if plan.how == "client"]

hits: Counter[str] = Counter()
finished: set[str] = set()
said: list[str] = []


@pytest.fixture(scope="module")
def seed() -> random.Random:
    number = random.randrange(1 << 32)
    print(f"seed {number}")
    return random.Random(number)


def spec(name: str, action: str, seed: random.Random) -> str:
    if action == "kill-in":
        action += f":{seed.randrange(20, 3000)}"
    return f"{name}={action}@{seed.randint(1, PLANS[name].passings)}"


def count(switch: Switch, name: str) -> None:
    hits[name] += sum(hit.name == name for hit in switch.hits())


# ---- in a cluster under load ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sync", "group"])
def world(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("failpoints"), request.param)
    try:
        yield world
    finally:
        world.end()


@pytest.mark.parametrize("turn", range(ROUNDS))
@pytest.mark.parametrize(("name", "action"), IN_CLUSTER)
def test_nothing_acknowledged_is_lost_or_done_twice(world, seed, name, action, turn):
    how = PLANS[name].how
    armed = spec(name, action, seed)
    print(f"{world.durability}: {armed}")
    anew = None
    killed = 0.0
    if how in ("start", "return"):
        # Two deaths: where something may be lost, nothing is acknowledged between them.
        killed = restart_armed(world, armed, quiet=how == "start" or world.durability == "group")
    else:
        world.open()
        if name == "cut-made" and world.durability == "group":
            world.go_on()
        world.switch.arm(armed)
        if how == "session":
            anew = Call(connect_anew, world)
    world.await_death(name)
    world.close()
    if not world.cluster.namenode.alive:
        with fsck(world.state) as check:
            assert check.problems == []
    death = world.restart(name, killed)
    if anew:
        anew.result(TIMEOUT)
    world.compare(armed, death)


def restart_armed(world: World, armed: str, *, quiet: bool) -> float:
    """The namenode is killed and started with a failpoint on its way. When it was killed."""
    world.open()
    world.progress(50)
    if quiet:
        world.settle()
    first = time.monotonic()
    world.cluster.namenode.kill()
    world.close()
    world.switch.arm(armed)
    try:
        world.cluster.namenode.start()
    except errors.UnavailableError:
        pass  # it died before it served
    return first


def connect_anew(world: World) -> None:
    """With one face in `sync`, with the other in `group`."""
    if world.durability == "group":
        asyncio.run(connect_anew_awaited(world.cluster.address))
        return
    with world.cluster.connect(timeout=TIMEOUT) as store:
        path = store.session_path()
        store.put(f"{path}/x", b"x")
        assert store.get(f"{path}/x") == b"x"


async def connect_anew_awaited(address: str) -> None:
    async with crailpy.aio.connect(address, timeout=TIMEOUT) as store:
        path = await store.session_path()
        await store.put(f"{path}/x", b"x")
        assert await store.get(f"{path}/x") == b"x"


def test_a_commit_that_fails_is_acknowledged_by_nobody(world, seed):
    """In the middle of a transaction, and where it begins: all of it is tried again."""
    world.open()
    start = time.monotonic()
    world.switch.arm("commit-put=error:EIO@2;commit-begun=error:ENOSPC@5;cut-asked=error:ENOMEM@9")
    until(lambda: len([h for h in world.switch.hits() if h.when > start]) == 3)
    world.progress(200)
    world.switch.disarm()
    world.compare("errors", Death(start, start, False))


def test_in_the_end_all_is_counted_and_every_granule_is_free(world):
    world.open()
    world.progress(200)
    world.finish()
    calls = sum(scenario.calls for scenario in world.scenarios)
    deaths = len(world.deaths)
    said.append(f"{world.durability}: {deaths} deaths, {world.lost} of {calls} calls lost")
    assert world.lost == 0 or world.durability == "group"
    hits.update(hit.name for hit in world.switch.hits())
    finished.add(world.durability)


# ---- clients -------------------------------------------------------------------------------------

CLIENT = """
import sys
import crailpy
address, size = sys.argv[1], int(sys.argv[2])
store = crailpy.connect(address, timeout=30)
for number in range(1, 100):
    print("began", number, flush=True)
    store.put("/client/x", number.to_bytes(8, "little") * (size // 8))
    view = store.get_view("/client/x")
    print("done", number, flush=True)
"""


def test_what_a_client_had_acknowledged_survives_its_end(tmp_path, seed, monkeypatch):
    """And its grants, slots and views go with it."""
    switch = Switch(tmp_path)
    with crailpy.LocalCluster(dram="16MiB", session_grace=0.3) as cluster:
        for name, value in switch.environment.items():
            monkeypatch.setenv(name, value)
        with cluster.connect() as store:
            for name in OF_CLIENT:
                switch.arm(spec(name, "kill", seed))
                began, done = run_client(cluster.address)
                found = store.get("/client/x", default=b"")
                there = int.from_bytes(found[:8], "little")
                assert not found or found == found[:8] * (SIZE // 8)
                assert done <= there <= began
                store.delete("/client/x", missing_ok=True)
                until(lambda: facts(store)["granules_free"] == facts(store)["granules_total"])
                assert store.check() is None
                count(switch, name)
    finished.add("client")


def facts(store: crailpy.Store) -> dict[str, int]:
    found: dict[str, int] = store.status()["namenode"]
    return found


def run_client(address: str) -> tuple[int, int]:
    """Until it is dead: the last number that it began to put, and the last that it had put."""
    said = {"began": 0, "done": 0}
    with Program(CLIENT, address, SIZE) as program:
        assert program.process.stdout is not None
        for line in program.process.stdout:
            word, number = line.split()
            said[word] = int(number)
        assert program.process.wait(30) == -9
    return said["began"], said["done"]


# ---- a folder alone ------------------------------------------------------------------------------


def test_a_folder_whose_first_namenode_died_while_it_was_made_is_new(tmp_path, monkeypatch):
    switch = Switch(tmp_path)
    for name, value in switch.environment.items():
        monkeypatch.setenv(name, value)
    switch.arm("state-made=kill")
    with pytest.raises(errors.UnavailableError):
        crailpy.LocalCluster(dir=tmp_path / "state", servers=0)
    switch.disarm()
    with (
        crailpy.LocalCluster(dir=tmp_path / "state", servers=0) as cluster,
        cluster.connect() as store,
    ):
        store.put("/x", b"x")
    count(switch, "state-made")
    finished.add("state")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: Any) -> Path:
    """A state folder of 500 values, one of whose rows is damaged."""
    path = tmp_path_factory.mktemp("damaged")
    with (
        crailpy.LocalCluster(dir=path, servers=0, durability="sync") as cluster,
        cluster.connect() as store,
    ):
        store.put_many([(f"/r/{i}", b"x" * i) for i in range(500)])
    with fsck(path / "namenode") as check:
        assert not check.problems
        key = max(key for key in check._rows if key[0] == rows.NODE)
        row = bytearray(check._rows[key])
        row[len(row) // 2] ^= 1
        check._rows[key] = bytes(row)
        os.unlink(check.repair())
    return Path(path / "namenode")


@contextmanager
def fsck(folder: Path | str) -> Iterator[Fsck]:
    """One that has looked at everything."""
    check = Fsck(str(folder))
    try:
        check.check()
        yield check
    finally:
        check.close()


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_that_is_killed_leaves_the_old_state_or_the_new_one(damaged, tmp_path, name):
    switch = Switch(tmp_path)
    switch.arm(f"{name}=kill")
    folder = shutil.copytree(damaged, tmp_path / "state")
    command = ["-m", "crailpy.cli", "fsck", "--dir", str(folder), "--repair"]
    done = subprocess.run(
        [sys.executable, *command], timeout=60, check=False, env=os.environ | switch.environment
    )
    assert done.returncode == -9
    count(switch, name)
    with fsck(folder) as check:
        whole = len(check._rows)
        assert bool(check.problems) == (name != "repair-placed")
        if check.problems:
            check.repair()
    with fsck(folder) as check:
        assert not check.problems
        assert len(check._rows) == whole >= 500
    finished.add(name)


# ---- the list of them ----------------------------------------------------------------------------


def test_each_failpoint_is_passed_at_one_place_and_described():
    sources = [*(ROOT / "native/src").rglob("*.c"), *(ROOT / "server").rglob("*.py")]
    text = "".join(path.read_text() for path in sources if path != SOURCE)
    docs = (ROOT / "docs" / "TESTING.md").read_text()
    assert len(set(names())) == len(names())
    assert set(PLANS) == set(names())
    for name in names():
        places = text.count(f'failpoint("{name}")') + text.count(f'failpoint_error("{name}")')
        assert places == 1, f"{name} is passed at {places} places"
        assert f"`{name}`" in docs, f"docs/TESTING.md does not know {name}"


def test_ordinary_builds_have_no_failpoints():
    assert not native.test_guards()
    native.failpoint("no such thing")
    spec = find_spec("crailpy._native")
    assert spec
    assert spec.origin
    assert b"CRAILPY_FAILPOINTS" not in Path(spec.origin).read_bytes()


def test_every_failpoint_was_hit(record_property):
    everything = {"sync", "group", "client", "state", *REPAIRS}
    if finished != everything:
        pytest.skip(f"not all of this file has run: {sorted(everything - finished)}")
    assert set(hits) == set(names())
    count = f"failpoints: {len(hits)} of {len(names())} hit, {hits.total()} times in all"
    record_property("to be told", "\n".join([count, "; ".join(said)]))
