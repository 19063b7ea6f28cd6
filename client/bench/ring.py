"""The lane through shared memory beside the lane through its socket, in the same run."""

from __future__ import annotations

import statistics
import time
from functools import partial

from .context import Bench
from .measure import clock, interleave, percentile, taker
from .processes import busy, getting
from .report import Limit, Row, at_least, at_most

SIZE = 64
BUSY_CLIENTS = 8
NEIGHBOURS = 2


def lanes(bench: Bench) -> None:
    """Dense streams, paced calls, crowds and neighbours, by both kinds of lane."""
    if not bench.namenode()["rings"]:
        bench.report.note("no ring is to be had here: section ring is left out")
        return
    key = f"{bench.base}/ring"
    bench.store.put(key, bench.random.randbytes(SIZE))
    _dense(bench, key)
    _paced(bench, key)
    _neighbours(bench, key)
    _crowd(bench, key)


def _dense(bench: Bench, key: str) -> None:
    data = bench.random.randbytes(SIZE)
    got = interleave(
        bench.batches(20),
        {
            "raw": partial(bench.unix.round_trips, SIZE, SIZE, 500),
            "socket put": taker(1000, bench.sockets.put, [(key, data)]),
            "put": taker(2000, bench.store.put, [(key, data)]),
            "socket get": taker(1000, bench.sockets.get, [(key,)]),
            "get": taker(2000, bench.store.get, [(key,)]),
        },
    )
    bar = 1.5 if bench.placement == "free" else 8.0
    for op in ("put", "get"):
        row = bench.row("ring", f"{op}, dense", SIZE, got[op])
        assert row.p50_ns is not None
        row.judge(at_most("us", row.p50_ns / 1e3, bar))
        _against(bench, row, got[f"socket {op}"])
    raw = got["raw"]
    row = bench.row("ring", "get, dense", SIZE, got["get"], small=True)
    bench.latency(row, Limit("unix round trip", percentile(raw, 50), percentile(raw, 99)), None)


def _paced(bench: Bench, key: str) -> None:
    """One call per millisecond, by each lane in turn for a while; the namenode's CPU meanwhile."""
    got: dict[str, list[int]] = {"socket": [], "ring": []}
    cpu: dict[str, list[float]] = {"socket": [], "ring": []}
    for _ in range(bench.batches(10)):
        for name, store in (("socket", bench.sockets), ("ring", bench.store)):
            before, begin = bench.namenode()["loop_cpu_ns"], clock()
            for _ in range(100):
                time.sleep(0.001)
                start = clock()
                store.get(key)
                got[name].append(clock() - start)
            seconds = (clock() - begin) / 1e9
            cpu[name].append((bench.namenode()["loop_cpu_ns"] - before) / 1e9 / seconds)
    row = bench.row("ring", "get, one per ms", SIZE, got["ring"])
    assert row.p50_ns is not None
    assert row.p99_ns is not None
    bars = at_most("us", row.p50_ns / 1e3, 12), at_most("us p99", row.p99_ns / 1e3, 100)
    row.judge(*bars)
    _against(bench, row, got["socket"])
    for name in ("ring", "socket"):
        used = statistics.median(cpu[name]) * 100
        bars_of = [at_most("%", used, 1.0)] if name == "ring" else []
        bench.fact("ring", f"CPU, paced, {name}", SIZE, used, "%", *bars_of, small=False)
    time.sleep(0.1)
    before = bench.namenode()["loop_cpu_ns"]
    time.sleep(1)
    idle = (bench.namenode()["loop_cpu_ns"] - before) / 1e7
    bench.fact("ring", "CPU, idle", SIZE, idle, "%", at_most("%", idle, 0.05), small=False)


def _neighbours(bench: Bench, key: str) -> None:
    """A dense stream beside processes that compute at nice 10."""
    with busy(NEIGHBOURS):
        got = interleave(
            bench.batches(20),
            {
                "socket": taker(500, bench.sockets.get, [(key,)]),
                "get": taker(1000, bench.store.get, [(key,)]),
            },
        )
    row = bench.row("ring", f"get, {NEIGHBOURS} neighbours", SIZE, got["get"])
    _against(bench, row, got["socket"], 1.05)


def _crowd(bench: Bench, key: str) -> None:
    """Many busy clients, all with rings or all with sockets, in turn."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    tallies = {}
    seconds = 0.5 if bench.quick else 1.0
    for _ in range(bench.batches(5)):
        for ring in (True, False):
            with getting(bench.address, key, bench.token, BUSY_CLIENTS, ring=ring) as answers:
                time.sleep(seconds)
            rates[ring].append(sum(a.operations / a.seconds for a in answers))
            tallies[ring] = answers
    ours, theirs = statistics.median(rates[True]), statistics.median(rates[False])
    row = Row(
        "ring", bench.placement, f"get, {BUSY_CLIENTS} clients", SIZE, value=ours, unit="gets/s"
    )
    row.ratio = ours / theirs
    row.p50_ns = statistics.median(a.p50_ns for a in tallies[True])
    row.p99_ns = max(a.p99_ns for a in tallies[True])
    row.limit = Limit("socket lane", statistics.median(a.p50_ns for a in tallies[False]))
    row.judge(at_least("rate", row.ratio, 0.95))
    bench.report.add(row)


def _against(bench: Bench, row: Row, socket: list[int], bar: float | None = None) -> None:
    limit = Limit("socket lane", percentile(socket, 50), percentile(socket, 99))
    bench.latency(row, limit, bar)
