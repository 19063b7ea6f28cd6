"""Several callers at once: a busy thread, many processes, long work of somebody else."""

from __future__ import annotations

import statistics
import threading
import time

from .context import MANY, Bench
from .measure import clock, settled, timed
from .processes import Tally, getting
from .report import Limit, Row, at_most


def beside(bench: Bench) -> None:
    """A get while another thread of this process computes in Python."""
    key = f"{bench.base}/beside"
    bench.store.put(key, bytes(64))
    stop = threading.Event()

    def compute() -> None:
        n = 0
        while not stop.is_set():
            for _ in range(1000):
                n = (n * 31 + 7) & 0xFFFF

    thread = threading.Thread(target=compute, name="bench-compute", daemon=True)
    thread.start()
    try:
        samples: list[int] = []
        deadline = clock() + 3_000_000_000
        while clock() < deadline and len(samples) < (2000 if bench.quick else 10_000):
            samples.extend(timed(bench.store.get, [(key,)] * 50))
    finally:
        stop.set()
        thread.join()
    row = bench.row("beside", "get, busy thread", 64, samples, small=True)
    assert row.p50_ns is not None
    row.judge(at_most("us", row.p50_ns / 1e3, 40))
    bench.report.add(row)


def clients(bench: Bench) -> None:
    """Small gets of 1..n processes together."""
    key = f"{bench.base}/clients"
    bench.store.put(key, bytes(64))
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < bench.clients] + [bench.clients]
    for count in counts:
        with getting(bench.address, key, bench.token, count) as answers:
            time.sleep(0.5 if bench.quick else 2.0)
        rate = sum(a.operations / a.seconds for a in answers)
        op = f"get, {count} client{'s' if count > 1 else ''}"
        row = Row("clients", bench.placement, op, 64, counts=False, value=rate, unit="gets/s")
        row.p50_ns = statistics.median(a.p50_ns for a in answers)
        row.p99_ns = max(a.p99_ns for a in answers)
        row.samples = sum(a.operations for a in answers)
        bench.report.add(row)


def stalls(bench: Bench) -> None:
    """Gets of a second process while this one lists one large directory, and removes it."""
    count = 100_000 if bench.quick else 1_000_000
    folder, key = f"{bench.base}/stalls", f"{bench.base}/stalls-key"
    value = bytes(64)
    for at in range(0, count, MANY):
        bench.store.put_many([(f"{folder}/f{i:07}", value) for i in range(at, at + MANY)])
    bench.store.put(key, value)
    with getting(bench.address, key, bench.token) as quiet:
        time.sleep(0.5)
    with getting(bench.address, key, bench.token) as listing:
        begin = clock()
        names = len(bench.store.listdir(folder))
        seconds = (clock() - begin) / 1e9
    if names != count:
        raise RuntimeError(f"{names} names were listed of {count}")
    with getting(bench.address, key, bench.token) as removing:
        bench.store.rmtree(folder)
        bench.settle()
    bench.fact(
        "stalls", f"{count:,} names listed", 64, seconds, "s",
        at_most("s", seconds, 2), small=False,
    )  # fmt: skip
    alone = Limit("get, nothing else going on", quiet[0].p50_ns, quiet[0].p99_ns)
    _delayed(bench, "get, listing", listing[0], alone)
    _delayed(bench, "get, rmtree", removing[0], alone)
    if bench.server_pids:  # else others may keep the store busy for ever
        settled(bench.store)  # whoever measures next does not measure the end of this


def _delayed(bench: Bench, op: str, tally: Tally, alone: Limit) -> None:
    row = Row("stalls", bench.placement, op, 64, samples=tally.operations)
    row.p50_ns, row.p99_ns = tally.p50_ns, tally.p99_ns
    row.judge(at_most("ms p99", tally.p99_ns / 1e6, 1))
    bench.latency(row, alone, None)
