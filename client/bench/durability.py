"""What it costs that nothing acknowledged is lost: stores that differ in nothing but their
durability, in turn; gets while much is committed, and the start of a namenode that has much."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import crailpy

from .context import MANY, Bench
from .measure import clock, interleave, pairs, percentile, settled, taker
from .processes import churning, getting
from .report import KIB, MIB, Bar, Limit, Row, at_most

SIZE = 64
CLIENTS = 4
SYNC_CLIENTS = (1, 4, 16)
OUTRUN_SECONDS = 10


def durability(bench: Bench) -> None:
    """Clusters of this run's own, whatever store was given."""
    if not bench.server_pids:
        bench.report.note("section durability needs clusters of its own: it is left out")
        return
    with _cluster(bench, "group") as group, _cluster(bench, "none") as none:
        for kind in ("single", "many"):
            _churn(bench, kind, group, none)
        _calls(bench, group, none)
    with _cluster(bench, "group") as cluster:
        _outrun(bench, cluster)
    with _cluster(bench, "group") as cluster:
        _tree(bench, cluster)
    _sync(bench)


@contextlib.contextmanager
def _cluster(bench: Bench, durability: str, folder: str | None = None) -> Iterator[Any]:
    with crailpy.LocalCluster(
        dram="256MiB", durability=durability, token=bench.token, dir=folder
    ) as cluster:
        yield cluster


def _churn(bench: Bench, kind: str, group: Any, none: Any) -> None:
    """Values are put, overwritten, deleted and counted up by several clients, on one store and on
    the other in turn. What is compared is each pair by itself."""
    rates: dict[str, list[float]] = {"group": [], "none": []}
    with group.connect() as group_store, none.connect() as none_store:
        stores = {"group": (group, group_store), "none": (none, none_store)}
        for turn in range(bench.batches(12)):
            order = ("group", "none") if turn % 2 else ("none", "group")
            for name in order:
                cluster, store = stores[name]
                with churning(cluster.address, f"/churn-{kind}", bench.token, CLIENTS, kind) as all:
                    time.sleep(1 if bench.quick else 2)
                rates[name].append(sum(a.operations / a.seconds for a in all))
                settled(store)
    ratios = [g / n for g, n in zip(rates["group"], rates["none"], strict=True)]
    cost = 100 * (1 - statistics.median(ratios))
    for name in ("none", "group"):
        rate = statistics.median(rates[name])
        bench.fact("durability", f"churn, {kind}, {name}", SIZE, rate, "values/s", small=False)
    bench.fact(
        "durability", f"churn, {kind}, cost", SIZE, cost, "%", at_most("%", cost, 15), small=False
    )


def _calls(bench: Bench, group: Any, none: Any) -> None:
    """Single calls of one client, on both stores in turn."""
    with group.connect() as ours, none.connect() as theirs:
        for size in (SIZE, 4 * KIB, MIB):
            keys = [f"/calls/{size}.{i}" for i in range(16)]
            data = bench.random.randbytes(size)
            gets = [(key,) for key in keys]
            if size == MIB:
                sources = [memoryview(data)] * len(keys)
                targets = bench.slices(bench.memory.target, size)
            parts: dict[str, Callable[[], Iterable[int]]] = {}
            for name, store in (("none", theirs), ("group", ours)):
                for key in keys:
                    store.put(key, data)
                if size == MIB:
                    parts[f"{name} put"] = taker(20, store.put, pairs(keys, sources))
                    parts[f"{name} get_into"] = taker(20, store.get_into, pairs(keys, targets))
                else:
                    parts[f"{name} put"] = taker(1000, store.put, [(key, data) for key in keys])
                    parts[f"{name} get"] = taker(1000, store.get, gets)
            got = interleave(bench.batches(50), parts)
            for op in ("put", "get_into" if size == MIB else "get"):
                limit = got[f"none {op}"]
                row = bench.row("durability", f"{op}, group", size, got[f"group {op}"])
                bench.latency(
                    row, Limit("the same in none", percentile(limit, 50), percentile(limit, 99)),
                    1.15 if op == "put" else 1.1,
                )  # fmt: skip


def _outrun(bench: Bench, cluster: Any) -> None:
    """New values without end, as fast as several clients can: writers are slowed, not failed."""
    lags, memory = [], []
    with cluster.connect() as store:
        with churning(cluster.address, "/new", bench.token, CLIENTS, "new") as all:
            begin = time.monotonic()
            while time.monotonic() - begin < (3 if bench.quick else OUTRUN_SECONDS):
                facts = store.status()["namenode"]
                lags.append(facts["durable_lag_ns"] / 1e9)
                memory.append(_resident(cluster.namenode.pid) - facts["arena_bytes_used"])
                time.sleep(0.05)
        rate = sum(a.operations / a.seconds for a in all)
        bench.fact("durability", "new values, group", SIZE, rate, "values/s", small=False)
        lag, beside = max(lags), max(memory) / MIB
        bench.fact(
            "durability", "new values, lag", SIZE, lag, "s", at_most("s", lag, 5), small=False
        )
        bench.fact("durability", "new values, memory", SIZE, beside, "MiB", small=False)


def _tree(bench: Bench, cluster: Any) -> None:
    """Gets while many nodes are committed and while they are removed again; and the start of a
    namenode that has them."""
    count = 100_000 if bench.quick else 1_000_000
    value, key = bytes(SIZE), "/key"
    with cluster.connect(timeout=60) as store:
        store.put(key, value)
        with getting(cluster.address, key, bench.token) as quiet:
            time.sleep(1)
        with getting(cluster.address, key, bench.token) as making:
            for at in range(0, count, MANY):
                store.put_many([(f"/tree/{at // MANY}/{i}", value) for i in range(MANY)])
            settled(store)
        nodes = store.status()["namenode"]["nodes"]
        alone = Limit("get, nothing else going on", quiet[0].p50_ns, quiet[0].p99_ns)
        _delayed(bench, f"get, {count:,} made", making[0], alone)
        cluster.namenode.kill()
        begin = clock()
        cluster.namenode.start()
        if store.get(key) != value or store.status()["namenode"]["nodes"] != nodes:
            raise RuntimeError("the namenode came back with something else")
        seconds = (clock() - begin) / 1e9
        bench.fact(
            "durability", f"start, {count:,} nodes", SIZE, seconds, "s",
            *_bars(bench, "s", seconds, 5), small=False,
        )  # fmt: skip
        for what, took in store.status()["state"]["start_s"].items():
            bench.fact("durability", f"start, {what}", SIZE, took, "s", small=False)
        with getting(cluster.address, key, bench.token) as removing:
            store.rmtree("/tree")
            facts = settled(store)
        _delayed(bench, f"get, {count:,} cut", removing[0], alone)
        longest = facts["step_ns_max"] / 1e6
        bench.fact("durability", "longest step", 0, longest, "ms", small=False)


def _sync(bench: Bench) -> None:
    """Each call waits for its commit, on a disk; those that wait together share one."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _cluster(bench, "sync", folder) as cluster,
        cluster.connect() as store,
    ):
        for count in SYNC_CLIENTS:
            before = store.status()["namenode"]["cuts"]
            with churning(cluster.address, "/sync", bench.token, count, "put") as all:
                time.sleep(1 if bench.quick else 3)
            done = sum(a.operations for a in all)
            cuts = store.status()["namenode"]["cuts"] - before
            name = f"put, sync, {count} client{'s' if count > 1 else ''}"
            row = Row("durability", bench.placement, name, SIZE, samples=done)
            row.p50_ns = statistics.median(a.p50_ns for a in all)
            row.p99_ns = max(a.p99_ns for a in all)
            bench.report.add(row)
            bench.fact("durability", "  puts a commit", SIZE, done / cuts, "puts", small=False)


def _bars(bench: Bench, what: str, measured: float, bar: float) -> list[Bar]:
    """Bars are of the full size."""
    return [] if bench.quick else [at_most(what, measured, bar)]


def _delayed(bench: Bench, op: str, tally: Any, alone: Limit) -> None:
    row = Row("durability", bench.placement, op, SIZE, samples=tally.operations)
    row.p50_ns, row.p99_ns = tally.p50_ns, tally.p99_ns
    row.judge(at_most("ms p99", tally.p99_ns / 1e6, 1))
    bench.latency(row, alone, None)


def _resident(pid: int) -> int:
    """Bytes of memory that a process has to itself."""
    with open(f"/proc/{pid}/statm") as file:
        _, resident, shared, *_ = (int(word) for word in file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
