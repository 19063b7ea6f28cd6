"""A stage of a shuffle, every map and every reducer in turn in this process, beside the limits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ..probes import SMALL_BYTES
from .context import Bench
from .measure import clock, interleave, percentile
from .report import MIB, Limit, at_most

TASKS_TINY = 16
TINY = 16
TASKS_LARGE = 4
LARGE = 4 * MIB


def stage(shuffle: Any, segments: list[Any], target: memoryview | None) -> None:
    """As many maps as reducers, each with a segment for each; what is read goes to `target`."""
    tasks = range(shuffle.partitions)
    for map_id in tasks:
        writer = shuffle.writer(map_id)
        for partition in tasks:
            writer.write(partition, segments[partition])
        writer.commit()
    for partition in tasks:
        for view in shuffle.reader(partition, maps=shuffle.partitions):
            if target is not None:
                target[: view.nbytes] = view


def shuffle(bench: Bench) -> None:
    tiny(bench)
    large(bench)


def samples(
    bench: Bench, store: Any, stages: int, segments: list[Any], target: memoryview | None
) -> Iterator[int]:
    """So many stages, each in a shuffle of its own; all go at the end."""
    folder = f"{bench.base}/stages"
    for number in range(stages):
        one = store.shuffle(f"{folder}/{number}", partitions=len(segments))
        begin = clock()
        stage(one, segments, target)
        yield clock() - begin
    store.rmtree(folder)
    bench.settle()


def tiny(bench: Bench) -> None:
    """All within nodes: what it costs is requests."""
    segments = [bench.random.randbytes(TINY) for _ in range(TASKS_TINY)]
    before = bench.namenode()["requests"]
    stage(bench.store.shuffle(f"{bench.base}/counted", partitions=TASKS_TINY), segments, None)
    requests = bench.namenode()["requests"] - before
    got = interleave(
        bench.batches(40),
        {
            "raw": partial(bench.unix.round_trips, SMALL_BYTES, SMALL_BYTES, 100),
            "stage": partial(samples, bench, bench.store, 10, segments, None),
            "stage, by sockets": partial(samples, bench, bench.sockets, 10, segments, None),
        },
    )
    limit = Limit(f"{requests} unix round trips", requests * percentile(got["raw"], 50))
    name = f"{TASKS_TINY} x {TASKS_TINY}"
    bench.fact(
        "shuffle", f"{name}, a stage", TINY, requests, "requests",
        at_most("requests", requests, 2 * TASKS_TINY), small=False,
    )  # fmt: skip
    for op, bar in (("stage", 2.0), ("stage, by sockets", None)):
        row = bench.row("shuffle", f"{name}, {op}", TINY, got[op], small=True)
        bench.latency(row, limit, bar)


def large(bench: Bench) -> None:
    """Written out of memory and read into memory: what it costs is copies."""
    moved = TASKS_LARGE**2 * LARGE
    area = bench.memory.source.toreadonly()
    segments = [area[i * LARGE : (i + 1) * LARGE] for i in range(TASKS_LARGE)]
    got = interleave(
        bench.batches(20),
        {
            "copy": partial(bench.memory.copies, LARGE, TASKS_LARGE),
            "stage": partial(samples, bench, bench.store, 1, segments, bench.memory.target),
        },
    )
    copies = 2 * moved // LARGE
    limit = Limit(f"memcpy of {2 * moved // MIB} MiB", copies * percentile(got["copy"], 50))
    row = bench.row("shuffle", f"{TASKS_LARGE} x {TASKS_LARGE}, stage", LARGE, got["stage"])
    assert row.p50_ns is not None
    row.gbps = 2 * moved / row.p50_ns
    bench.latency(row, limit, 3.0)
