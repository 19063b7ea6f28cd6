"""Values of every size, one at a time and a thousand, beside the machine's limits."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..probes import SMALL_BYTES
from . import processes
from .context import MANY, SMALL_MAX, Bench
from .measure import interleave, pairs, percentile, taker
from .report import KIB, MIB, Limit, at_least, at_most

VIEW_SIZES = [64, 64 * KIB, MIB, 16 * MIB, 64 * MIB, 256 * MIB]


def small(bench: Bench) -> None:
    """Through a lane that uses its socket, beside a socket."""
    batches = bench.batches(40)
    for size in (s for s in bench.sizes if s <= SMALL_MAX):
        keys = [f"{bench.base}/small/{size}.{i}" for i in range(16)]
        data = bench.random.randbytes(size)
        for key in keys:
            bench.store.put(key, data)
        got = interleave(
            batches,
            {
                "raw put": partial(bench.unix.round_trips, size, SMALL_BYTES, 200),
                "put": taker(200, bench.sockets.put, [(key, data) for key in keys]),
                "raw get": partial(bench.unix.round_trips, SMALL_BYTES, size, 200),
                "get": taker(200, bench.sockets.get, [(key,) for key in keys]),
            },
        )
        for op in ("put", "get"):
            raw = got[f"raw {op}"]
            limit = Limit("unix round trip", percentile(raw, 50), percentile(raw, 99))
            bench.latency(bench.row("small", op, size, got[op], small=True), limit, 1.3, 3)


def medium(bench: Bench) -> None:
    batches = bench.batches(20)
    for size in (s for s in bench.sizes if SMALL_MAX < s < MIB):
        with bench.keys(size) as keys:
            sources = bench.slices(bench.memory.source, size)
            targets = bench.slices(bench.memory.target, size)
            got = interleave(
                batches,
                {
                    "raw": partial(bench.unix.round_trips, SMALL_BYTES, SMALL_BYTES, 50),
                    "copy": partial(bench.memory.copies, size, 50),
                    "put": taker(50, bench.store.put, pairs(keys, sources)),
                    "get": taker(50, bench.store.get, [(key,) for key in keys]),
                    "get_into": taker(50, bench.store.get_into, pairs(keys, targets)),
                },
            )
        limit = Limit(
            "unix round trip + memcpy", percentile(got["raw"], 50) + percentile(got["copy"], 50)
        )
        for op in ("put", "get", "get_into"):
            bench.latency(bench.row("medium", op, size, got[op], small=True), limit, 1.5)


def large(bench: Bench) -> None:
    for size in (s for s in bench.sizes if s >= MIB):
        count = max(1, min(32, 64 * MIB // size))
        with bench.keys(size) as keys:
            sources = bench.slices(bench.memory.source, size)
            targets = bench.slices(bench.memory.target, size)
            got = interleave(
                bench.batches(20 if size <= 64 * MIB else 12),
                {
                    "copy": partial(bench.memory.copies, size, count),
                    "put": taker(count, bench.store.put, pairs(keys, sources)),
                    "get_into": taker(count, bench.store.get_into, pairs(keys, targets)),
                    "get": taker(count, bench.store.get, [(key,) for key in keys]),
                },
            )
        limit = Limit("memcpy", percentile(got["copy"], 50))
        bar = 0.7 if size < 16 * MIB else 1.0
        bench.speed(bench.row("large", "put", size, got["put"]), limit, bar)
        bench.speed(bench.row("large", "get_into", size, got["get_into"]), limit, bar)
        bench.speed(bench.row("large", "get", size, got["get"]), limit, None)


def view(bench: Bench) -> None:
    def view_and_release(key: str) -> None:
        bench.store.get_view(key).release()

    largest = max(bench.sizes)
    for size in (s for s in VIEW_SIZES if s <= largest):
        key = f"{bench.base}/view"
        bench.store.put(key, bench.memory.source[:size])
        got = interleave(
            bench.batches(20),
            {
                "raw": partial(bench.unix.round_trips, SMALL_BYTES, SMALL_BYTES, 100),
                "view": taker(100, view_and_release, [(key,)]),
            },
        )
        row = bench.row("view", "get_view", size, got["view"], small=True)
        row.gbps = None
        assert row.p50_ns is not None
        row.judge(at_most("us", row.p50_ns / 1e3, 15))
        raw = got["raw"]
        bench.latency(row, Limit("unix round trip", percentile(raw, 50), percentile(raw, 99)), None)
        bench.store.delete(key)


def touch(bench: Bench) -> None:
    """First touch: each sample is a process of its own."""
    size = 64 * MIB
    got: dict[str, list[int]] = {"put": [], "get_into": []}
    copies: list[int] = []
    bench.memory.copies(size, 1)
    for _ in range(bench.batches(10)):
        copies.extend(bench.memory.copies(size, 2))
        key = f"{bench.base}/touch"
        for op, ns in processes.touch(bench.address, key, size, bench.token).items():
            got[op].append(ns)
    limit = Limit("memcpy, touched", percentile(copies, 50))
    for op, samples in got.items():
        row = bench.row("touch", f"{op}, new process", size, samples)
        bench.speed(row, limit, 0.2)
    bench.store.delete(f"{bench.base}/touch")


def forced_tcp(bench: Bench) -> None:
    size = 16 * MIB
    with bench.connect(bench.address, transport="tcp") as store:
        keys = [f"{bench.base}/tcp/{i}" for i in range(4)]
        for key in keys:
            store.put(key, bench.memory.source[:size])
        sources = bench.slices(bench.memory.source, size)
        targets = bench.slices(bench.memory.target, size)
        got = interleave(
            bench.batches(25),
            {
                "raw put": partial(bench.tcp.round_trips, size, SMALL_BYTES, 2),
                "put": taker(2, store.put, pairs(keys, sources)),
                "raw get_into": partial(bench.tcp.round_trips, SMALL_BYTES, size, 2),
                "get_into": taker(2, store.get_into, pairs(keys, targets)),
            },
        )
        for op in ("put", "get_into"):
            limit = Limit("tcp loopback stream", percentile(got[f"raw {op}"], 50))
            bench.speed(bench.row("tcp", f"{op}, tcp", size, got[op]), limit, 0.9)
        small = interleave(
            bench.batches(20),
            {
                "raw": partial(bench.tcp.round_trips, SMALL_BYTES, 64 * KIB, 50),
                "get_into": taker(
                    50,
                    lambda key: store.get_into(key, targets[0][: 64 * KIB]),
                    _put_all(bench, store, 64 * KIB),
                ),
            },
        )
        raw = Limit("tcp round trip", percentile(small["raw"], 50), percentile(small["raw"], 99))
        bench.latency(
            bench.row("tcp", "get_into, tcp", 64 * KIB, small["get_into"], small=True), raw, None
        )
    bench.store.rmtree(f"{bench.base}/tcp")


def _put_all(bench: Bench, store: Any, size: int) -> list[tuple[str]]:
    keys = [f"{bench.base}/tcp/small{i}" for i in range(16)]
    for key in keys:
        store.put(key, bench.memory.source[:size])
    return [(key,) for key in keys]


def many(bench: Bench) -> None:
    size = 64
    keys = [f"{bench.base}/many/{i:06}" for i in range(MANY)]
    items = [(key, bench.random.randbytes(size)) for key in keys]
    bench.store.put_many(items)
    got = interleave(
        bench.batches(40),
        {
            "put_many": taker(4, bench.store.put_many, [(items,)]),
            "get_many": taker(4, bench.store.get_many, [(keys,)]),
        },
    )
    if bench.store.get_many(keys) != [data for _, data in items]:
        raise RuntimeError("get_many: what came out is not what was put")
    for op, bar in (("get_many", 1.2), ("put_many", 0.8)):
        rate = MANY / percentile(got[op], 50) * 1e9
        bench.fact(
            "many", f"{op} of {MANY}", size, rate, "values/s", at_least("M/s", rate / 1e6, bar)
        )
    bench.store.rmtree(f"{bench.base}/many")
