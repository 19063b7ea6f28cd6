"""A store under churn of every kind, whose servers and clients are killed all the time, is in the
end what it was in the beginning.

CRAILPY_SOAK_SECONDS: how long it goes on (default 60; `make test-long` takes 600). CRAILPY_SEED:
which kills, and which churn. In the last third the servers live on: so what they lose shows."""

from __future__ import annotations

import contextlib
import json
import os
import pprint
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import crailpy

from . import restarts, soak

SECONDS = float(os.environ.get("CRAILPY_SOAK_SECONDS", "60"))
SERVERS_PART = 2 / 3  # of that time, in which servers are killed
PAUSES = (0.3, 3.0)  # seconds between two kills
VICTIMS = 2  # clients that are killed, at any time
PATIENCE = 100.0  # seconds for the last call of each
QUIET = 40.0  # seconds until all is as it was
LATEST = 2.25  # seconds before a kill that it may take back: the interval, a commit under load
# What a server may have more than when it had done nothing yet: the namenode, the DRAM tier's, and
# the file tier's, which has up to 64 MiB of buffers for its disk.
PRIVATE_MORE = (32 << 20, 32 << 20, 96 << 20)
THREADS_MORE = 3
MIB = 1 << 20
KEPT = (
    "nodes", "files", "directories", "values_inline_bytes", "arena_bytes_used", "granules_total",
    "granules_free", "granules_used", "granules_granted", "granules_retiring", "background_pending",
    "sessions", "lanes", "rings", "waiters", "watches",
)  # fmt: skip


# ---- what a store holds --------------------------------------------------------------------------


def servers_of(cluster: crailpy.LocalCluster) -> list[Any]:
    return [cluster.namenode, *cluster.servers]


def holdings(cluster: crailpy.LocalCluster, store: crailpy.Store) -> dict[str, Any]:
    """All that could leak, but for private memory."""
    status = store.status()
    files = [path for path in Path(cluster.folder).rglob("*") if path.suffix != ".sock"]
    return {
        "namenode": {name: status["namenode"][name] for name in KEPT},
        "rows": status["state"]["rows"],
        "storage": [
            (s["state"], *(s["stats"].get(name) for name in ("use_tables", "retires_waiting")))
            for s in status["servers"]
        ],
        "slots": slots_in_use(cluster),
        "descriptors": [len(os.listdir(f"/proc/{s.pid}/fd")) for s in servers_of(cluster)],
        "files": Counter(path.name.rstrip("-0123456789") for path in files),
    }


def slots_in_use(cluster: crailpy.LocalCluster) -> int:
    """Of all use tables that there are (native/src/data/use.h)."""
    tables = [path.read_bytes()[64:] for path in Path(cluster.folder).rglob("use-*")]
    return sum(table[i : i + 8] != bytes(8) for table in tables for i in range(0, len(table), 8))


def threads(cluster: crailpy.LocalCluster) -> int:
    """A pool has as many as were ever at work at once."""
    return sum(len(os.listdir(f"/proc/{s.pid}/task")) for s in servers_of(cluster))


def private_bytes(cluster: crailpy.LocalCluster) -> list[int]:
    """Of each server's process; what it shares (granules, the arena) is counted there."""
    found = []
    for server in servers_of(cluster):
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")]
    return found


def warm_up(cluster: crailpy.LocalCluster) -> None:
    """What is made at its first use is no leak; nor what a server that comes back makes."""
    with cluster.connect() as store:
        for tier in ("dram", "file"):
            store.put(soak.ROOT, b"x" * MIB, tier=tier, strict=True)
            assert len(store.get_view(soak.ROOT)) == MIB
            store.delete(soak.ROOT)
        for server in servers_of(cluster):
            server.kill()
            server.start()
        store.session_path()
        store.job("first").close()
        assert store.check() is None


def is_quiet(cluster: crailpy.LocalCluster, store: crailpy.Store) -> bool:
    """Has all come to its end that goes on by itself?"""
    status = store.status()
    counts = status["namenode"]
    return (
        counts["granules_free"] == counts["granules_total"]
        and counts["epoch_durable"] + 1 == counts["epoch"]
        and not counts["nodes_changed"]
        and counts["sessions"] == 1
        and all(s["stats"].get("use_tables") == 0 for s in status["servers"])
    )


def wait_until_it_is_quiet(cluster: crailpy.LocalCluster, store: crailpy.Store) -> None:
    end = time.monotonic() + QUIET
    while not is_quiet(cluster, store):
        assert time.monotonic() < end, pprint.pformat(store.status())
        threading.Event().wait(0.1)


def wait_until_it_holds(
    before: dict[str, Any], cluster: crailpy.LocalCluster, store: crailpy.Store
) -> None:
    """The last sockets of who was killed are closed a little after their sessions."""
    end = time.monotonic() + QUIET
    while (now := holdings(cluster, store)) != before:
        different = {key: (before[key], now[key]) for key in before if before[key] != now[key]}
        assert time.monotonic() < end, pprint.pformat(
            [different, *map(open_files, servers_of(cluster))]
        )
        threading.Event().wait(0.1)


def open_files(server: Any) -> Counter[str]:
    folder = Path(f"/proc/{server.pid}/fd")
    return Counter(os.readlink(path).rstrip("0123456789]") for path in folder.iterdir())


def fsck(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "crailpy.cli", "fsck", "--json", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


# ---- who is killed -------------------------------------------------------------------------------


class Killer:
    """Kills servers and clients, in an order that follows from the seed."""

    def __init__(self, cluster: crailpy.LocalCluster, rng: random.Random, folder: Path) -> None:
        self.kills: Counter[str] = Counter()
        self.namenode_at: list[tuple[float, float]] = []  # from when to when it was away
        self._cluster = cluster
        self._rng = rng
        self._folder = folder
        self._context = get_context("spawn")
        self._victims: list[tuple[Any, str]] = []  # each with what it leaves
        for name in (soak.KILLS, soak.STORAGE_KILLS):
            (folder / name).touch()

    def go_on(self, load: restarts.Load, seconds: float) -> None:
        begin = time.monotonic()
        while len(self._victims) < VICTIMS:
            self._one_more_victim()
        while time.monotonic() < begin + seconds and not load.failed:
            threading.Event().wait(self._rng.uniform(*PAUSES))
            for victim, _ in self._victims:
                assert victim.exitcode is None, f"a client ended by itself: {victim.exitcode}"
            if time.monotonic() < begin + seconds * SERVERS_PART:
                kinds = (self.namenode, self.storage, self.both, self.client)
                self._rng.choices(kinds, (4, 4, 1, 3))[0]()
            else:
                self.client()

    def namenode(self) -> None:
        self._kill(self._cluster.namenode)

    def storage(self) -> None:
        self._kill(self._rng.choice(self._cluster.servers))

    def both(self) -> None:
        self._kill(self._cluster.namenode, self._rng.choice(self._cluster.servers))

    def _kill(self, *servers: Any) -> None:
        since = time.monotonic()
        for server in servers:
            if server is not self._cluster.namenode:
                self._note(soak.STORAGE_KILLS)
            server.kill()
            self._note(soak.KILLS if server is self._cluster.namenode else soak.STORAGE_KILLS)
            self.kills[server.name] += 1
        for server in servers:
            server.start()
        if self._cluster.namenode in servers:
            self.namenode_at.append((since, time.monotonic()))

    def _note(self, name: str) -> None:
        with open(self._folder / name, "ab") as file:
            file.write(b"x")

    def client(self) -> None:
        """One of the clients; another one comes for it."""
        self._end(*self._victims.pop(self._rng.randrange(VICTIMS)))
        self._one_more_victim()

    def _one_more_victim(self) -> None:
        seed, for_ever = self._rng.randrange(1 << 32), time.monotonic() + 1e6
        if self._rng.randrange(4):
            target, last, leaves = soak.churn, self._folder, f"{soak.ROOT}/{seed}"
        else:
            target, last, leaves = restarts.asynchronous, True, f"/restarts/a{seed}"
        arguments = (self._cluster.address, seed, for_ever, last)
        victim = self._context.Process(target=target, args=arguments)
        victim.start()
        self._victims.append((victim, leaves))

    def _end(self, victim: Any, leaves: str) -> None:
        """What it leaves goes, or all of them would fill the store."""
        victim.kill()
        victim.join()
        victim.close()
        self.kills["client"] += 1
        with (
            self._cluster.connect(timeout=60) as store,
            contextlib.suppress(crailpy.errors.NotFoundError),
        ):
            store.rmtree(leaves)

    def end_clients(self) -> None:
        while self._victims:
            self._end(*self._victims.pop())

    def close(self) -> None:
        for victim, _ in self._victims:
            victim.kill()
            victim.join()


# ---- what was promised ---------------------------------------------------------------------------


def check_counters(store: crailpy.Store, folder: Path) -> None:
    """Of clients that were killed: each call that was acknowledged counts, and none twice."""
    for path in folder.glob("*.journal"):
        lines = [line for line in path.read_text().splitlines() if line[2:].startswith("count ")]
        if not lines:
            continue
        tried = sum(line.startswith("?") for line in lines)
        found = int(store.get(lines[0].split()[-1], default=b"0"))
        assert len(lines) - tried <= found <= tried, path


def check_items(folder: Path, consumed: list[tuple[str, float]], killer: Killer) -> None:
    """Each that was put is consumed; once, unless a kill took back that it was."""
    tried, acknowledged = (
        {what.removeprefix("item ") for what in whats if what.startswith("item ")}
        for whats in soak.read_journals(folder)
    )
    when: dict[str, list[float]] = {}
    for item, at in sorted(consumed, key=lambda one: one[1]):
        when.setdefault(item, []).append(at)
    assert acknowledged <= set(when) <= tried
    for item, times in when.items():
        for at in times[:-1]:
            assert any(a - LATEST < at < b for a, b in killer.namenode_at), (item, times)


# ---- the soak ------------------------------------------------------------------------------------


@pytest.fixture
def seed():
    number = int(os.environ.get("CRAILPY_SEED", random.randrange(1 << 32)))
    print(f"CRAILPY_SEED={number}")
    return number


@pytest.fixture
def load():
    load = restarts.Load(8)
    yield load
    load.close()


@pytest.fixture
def cluster():
    sizes = {"dram": "1GiB", "capacity": "1GiB"}
    with crailpy.LocalCluster(tiers=("dram", "file"), session_grace=5, **sizes) as cluster:
        yield cluster


@pytest.fixture
def killer(cluster, seed, tmp_path):
    killer = Killer(cluster, random.Random(seed), tmp_path)
    yield killer
    killer.close()


@pytest.mark.slow
def test_after_churn_and_kills_all_is_at_its_baseline(cluster, load, killer, seed, tmp_path):
    warm_up(cluster)
    with cluster.connect(timeout=60) as store:
        store.mkdir(soak.ROOT)
        store.rmtree(soak.ROOT)  # of this, too, something is kept: the answer
        wait_until_it_is_quiet(cluster, store)
        before, private = holdings(cluster, store), private_bytes(cluster)
        tasks = threads(cluster)

    until = time.monotonic() + SECONDS
    for i, work in enumerate((restarts.small, restarts.large, restarts.asynchronous)):
        load.add(work, cluster.address, seed + i, until, True)
    for i in (3, 4):
        load.add(soak.churn, cluster.address, seed + i, until, tmp_path)
    load.add(soak.count, cluster.address, seed + 5, until, tmp_path)
    for i in (6, 7):
        load.add(soak.consume, cluster.address, seed + i, until + 1)
    killer.go_on(load, SECONDS)
    killer.end_clients()
    done = load.results(PATIENCE)
    consumed = [item for name, items in done if name == "consume" for item in items]
    print(dict(killer.kills), [(name, n if isinstance(n, int) else len(n)) for name, n in done])

    with cluster.connect(timeout=60) as store:
        assert store.check() is None
        check_counters(store, tmp_path)
        check_items(tmp_path, consumed, killer)
        for path in (soak.ROOT, "/restarts"):
            store.rmtree(path)
        wait_until_it_is_quiet(cluster, store)
        wait_until_it_holds(before, cluster, store)
        more = [now - then for now, then in zip(private_bytes(cluster), private, strict=True)]
        print(f"private memory: {private}, and more than that: {more}")
        assert all(n < limit for n, limit in zip(more, PRIVATE_MORE, strict=True))
        assert threads(cluster) <= tasks + THREADS_MORE
        assert store.check() is None
    assert fsck("--address", cluster.address)["ok"]
    cluster.namenode.stop()
    report = fsck("--dir", os.path.join(cluster.folder, "namenode"))
    assert report["ok"], report
