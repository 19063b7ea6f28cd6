"""The executor pool beside the standard library's process pool, and Dask where it is installed:
pools of this run's own, warm, two processes each, in turn."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import operator
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from typing import Any

import crailpy

from .context import Bench
from .measure import clock, interleave, percentile, taker
from .report import Limit, at_least

WORKERS = 2
TASKS = 1000
NAME = "bench"

DRIVER = """
import json, operator, time
begin = time.perf_counter_ns()
import crailpy
crailpy.executors
imported = time.perf_counter_ns()
pool = crailpy.executors("bench", workers=2)
connected = time.perf_counter_ns()
pool.submit(operator.add, 1, 1).result()
ended = time.perf_counter_ns()
print(json.dumps([imported - begin, connected - imported, ended - connected]))
"""


def executors(bench: Bench) -> None:
    """Round trips, tasks a second, and what drivers pay at their start."""
    with _own_runtime():
        _starts(bench)
        with crailpy.executors(NAME, workers=WORKERS) as ours:
            spawning = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(WORKERS, spawning) as theirs:
                _compare(bench, ours, "ProcessPoolExecutor", theirs, 50, 1.3)
            with contextlib.ExitStack() as stack:
                dask = _dask(bench, stack)
                if dask is not None:
                    _compare(bench, ours, "Dask", dask, 10, None)


@contextlib.contextmanager
def _own_runtime() -> Iterator[None]:
    """A pool that no other driver of this user finds, ended with the block."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="crail-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        try:
            yield
        finally:
            command = [sys.executable, "-m", "crailpy.cli", "pool", "--name", NAME, "--stop"]
            subprocess.run(command, capture_output=True, timeout=60)
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before


def _dask(bench: Bench, stack: contextlib.ExitStack) -> Executor | None:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        bench.report.note("Dask: not compared, it is not installed (pip install distributed)")
        return None
    cluster = stack.enter_context(
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=50
        )
    )
    from ..plugins import executors_on_dask

    client = stack.enter_context(distributed.Client(cluster))
    return stack.enter_context(executors_on_dask(client))


def _starts(bench: Bench) -> None:
    """From nothing to the first result, by drivers that are processes of their own."""
    for who in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, check=True, timeout=60
        )
        times = json.loads(done.stdout)
        for what, ns in zip(("import", "executors()", "a task"), times, strict=True):
            bench.fact("executors", f"{who}: {what}", 0, ns / 1e6, "ms")


def _compare(
    bench: Bench, ours: Executor, name: str, theirs: Executor, batches: int, bar: float | None
) -> None:
    """Empty tasks one after the other, then many at once."""
    trips: dict[str, Callable[[], Iterable[int]]]
    trips = {"ours": taker(20, _trip(ours), [()]), name: taker(20, _trip(theirs), [()])}
    got = interleave(bench.batches(batches), trips)
    row = bench.row("executors", "empty task", 0, got["ours"], small=True)
    bench.latency(row, Limit(name, percentile(got[name], 50), percentile(got[name], 99)), bar)
    got = interleave(
        max(3, bench.batches(batches) // 4), {"ours": _many(ours), name: _many(theirs)}
    )
    rate, limit = (TASKS * 1e9 / percentile(got[who], 50) for who in ("ours", name))
    bars = [] if bar is None else [at_least(f"of {name}", rate / limit, 1)]
    bench.fact("executors", "tasks", 0, rate, "tasks/s", *bars)
    bench.fact("executors", f"tasks, {name}", 0, limit, "tasks/s")


def _trip(pool: Executor) -> Callable[[], object]:
    return lambda: pool.submit(operator.add, 1, 1).result()


def _many(pool: Executor) -> Callable[[], Iterable[int]]:
    def batch() -> list[int]:
        begin = clock()
        wait([pool.submit(operator.add, n, 1) for n in range(TASKS)])
        return [clock() - begin]

    return batch
