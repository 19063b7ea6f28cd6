"""`crailpy bench`: every operation beside the machine's own limit, measured in the same run.

Batches of raw probes (`probes.py`, in C) and batches of store calls alternate, because the same
round trip costs four times as much when the scheduler places its two ends on different cores. A
latency is compared with the limit's median (`ratio` = store / limit, small is good), a copy with
the limit's speed (`ratio` = store speed / limit speed, large is good). Two placements are measured:
*pinned*, where this process, the echo, the namenode and the storage servers share one core, and
*free*, where the scheduler decides. For small operations the pinned one counts; rows that do not
count have `"counts": false` and their verdict in brackets.

What is compared with what:

- put and get up to 4 KiB: a unix-socket round trip that carries the payload in the same direction,
  64 bytes back.
- 8 to 512 KiB: a 64-byte round trip plus a memcpy of the size.
- 1 MiB and more: memcpy going round in 1 GiB of memory; puts take their values from the same memory
  and go round over several keys, get_into writes to the same memory.
- forced TCP: 16 MiB over a loopback TCP stream between private buffers of that size, in the same
  direction, until the other end has it all.

JSON (`--json`): an object with

- `schema` 1, `crailpy` version, `when` (UTC), `quick`, `address`, `cluster` ("own" or "given"),
  `seconds`
- `machine`: `cores`, `cpu`, `memory_bytes`, `kernel`, `python`, `load` (of one minute, before the
  run), `thp`, `thp_shmem`
- `placements`: name -> sentence
- `rows`: a list of objects with `section`, `placement`, `op`, `size` (bytes of one value), `counts`
  (do its bars count?), `samples`, `p50_ns`, `p99_ns` (null when there are no such samples), `gbps`
  (10^9 bytes/s at p50, null for small values), `value` and `unit` (facts that are no latency:
  values/s, gets/s, us/path, bytes/node), `limit` (null or `what`, `p50_ns`, `p99_ns`), `ratio` and
  `ratio_p99` (p99 of the store / p50 of the limit; null), `bars`: a list of `what`, `measured`,
  `bar` (as "<= 1.3"), `ok`; and `ok` (all bars hold; null without a bar)
- `notes`: what was left out, and why, in words
- `summary`: `ok`, `miss` and `informal` counts (of rows that count, of the others)
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from . import bench_redis
from .bench_report import (
    GIB,
    KIB,
    MIB,
    Bar,
    Limit,
    Report,
    Row,
    at_least,
    at_most,
    machine,
    memory_available,
    percentile,
    size_text,
)
from .probes import SMALL_BYTES, Echo, Memory, run_frames

if TYPE_CHECKING:
    import argparse

SMALL_MAX = 4 * KIB
MEDIUM_MAX = MIB - 1
SIZES = [64, 256, 1024, 4096, *(8 * KIB << i for i in range(7)), MIB, 16 * MIB, 64 * MIB, 256 * MIB]
SIZES_QUICK = [64, 1024, 4096, 8 * KIB, 64 * KIB, 512 * KIB, MIB, 16 * MIB, 64 * MIB]
VIEW_SIZES = [64 * KIB, MIB, 16 * MIB, 64 * MIB, 256 * MIB]
MANY = 1000
"""Values of one get_many, put_many, and paths of one lookup vector."""
KEYS_BYTES = 256 * MIB
"""What the keys of one size hold together, at most (but always two keys)."""
SECTIONS = [
    "small", "medium", "large", "view", "touch", "tcp",
    "many", "nodes", "lookup", "beside", "clients", "redis",
]  # fmt: skip

CHILD = [sys.executable, "-m", "crailpy.client.bench"]

clock = time.perf_counter_ns


# ---- placement -------------------------------------------------------------------------------


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Puts every thread of these processes on these cores. Processes that have gone are skipped."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), cores)


# ---- sampling --------------------------------------------------------------------------------


def timed(call: Callable[..., object], arguments: Iterable[tuple[Any, ...]]) -> list[int]:
    """Nanoseconds of `call(*a)` for each `a`; its result is dropped outside the time."""
    samples = []
    for argument in arguments:
        begin = clock()
        result = call(*argument)
        samples.append(clock() - begin)
        del result
    return samples


def interleave(batches: int, parts: dict[str, Callable[[], Iterable[int]]]) -> dict[str, list[int]]:
    """One batch of each part in turn, `batches` times and once before that does not count."""
    samples: dict[str, list[int]] = {name: [] for name in parts}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for part in parts.values():
            for _ in part():
                pass
        for _ in range(batches):
            for name, part in parts.items():
                samples[name].extend(part())
    finally:
        if enabled:
            gc.enable()
    return samples


def taker(
    count: int, call: Callable[..., object], arguments: Iterable[tuple[Any, ...]]
) -> Callable[[], list[int]]:
    """A part of `interleave`: each batch goes on in the cycle of arguments where the last ended."""
    cycle = itertools.cycle(list(arguments))
    return lambda: timed(call, list(itertools.islice(cycle, count)))


def pairs(keys: Sequence[str], views: Sequence[memoryview]) -> Iterable[tuple[str, memoryview]]:
    """Every view, with the keys going round."""
    return zip(itertools.cycle(keys), views, strict=False)


# ---- the bench -------------------------------------------------------------------------------


class Bench:
    """One run against one store."""

    def __init__(
        self,
        store: Any,
        address: str,
        report: Report,
        *,
        sizes: Sequence[int],
        quick: bool,
        clients: int,
        server_pids: Sequence[int],
        connect: Callable[..., Any],
        token: str | None = None,
    ) -> None:
        self.store = store
        self.address = address
        self.report = report
        self.sizes = self._fitting(sizes)
        self.quick = quick
        self.clients = clients
        self.server_pids = list(server_pids)
        self.connect = connect
        self.token = token
        self.placement = "free"
        self.base = f"/bench-{os.getpid()}"
        self.keys_bytes = min(KEYS_BYTES, self._room() // 3)
        self.nodes: list[str] = []
        self.random = random.Random(20)
        self.closing = contextlib.ExitStack()
        self.memory = self.closing.enter_context(Memory(GIB))
        self.unix = self.closing.enter_context(Echo("unix"))
        self.tcp = self.closing.enter_context(Echo("tcp", 16 * MIB))

    def close(self) -> None:
        try:
            if self.store.exists(self.base):
                self.store.rmtree(self.base)
        finally:
            self.closing.close()

    def pids(self) -> list[int]:
        return [os.getpid(), self.unix.pid, self.tcp.pid, *self.server_pids]

    def batches(self, full: int) -> int:
        return max(3, full // 5) if self.quick else full

    # -- rows

    def row(
        self, section: str, op: str, size: int, samples: Sequence[int], *, small: bool = False
    ) -> Row:
        """A row of latencies. `small`: counts only when pinned."""
        p50 = percentile(samples, 50)
        return Row(
            section,
            self.placement,
            op,
            size,
            counts=self.placement == "pinned" or not small,
            samples=len(samples),
            p50_ns=p50,
            p99_ns=percentile(samples, 99) if len(samples) >= 100 else None,
            gbps=size / p50 if size > SMALL_MAX else None,
        )

    def latency(
        self, row: Row, limit: Limit, bar: float | None, bar_p99: float | None = None
    ) -> None:
        """Completes a row whose ratio is time / limit, and reports it."""
        assert row.p50_ns is not None
        row.limit = limit
        row.ratio = row.p50_ns / limit.p50_ns
        if row.p99_ns is not None:
            row.ratio_p99 = row.p99_ns / limit.p50_ns
        if bar is not None:
            row.judge(at_most("ratio", row.ratio, bar))
        if bar_p99 is not None and row.ratio_p99 is not None:
            row.judge(at_most("p99", row.ratio_p99, bar_p99))
        self.report.add(row)

    def speed(self, row: Row, limit: Limit, bar: float | None) -> None:
        """Completes a row whose ratio is speed / speed of the limit, and reports it."""
        assert row.p50_ns is not None
        row.limit = limit
        row.ratio = limit.p50_ns / row.p50_ns
        if bar is not None:
            row.judge(at_least("ratio", row.ratio, bar))
        self.report.add(row)

    def fact(
        self,
        section: str,
        op: str,
        size: int,
        value: float,
        unit: str,
        *bars: Bar,
        small: bool = True,
    ) -> None:
        counts = self.placement == "pinned" or not small
        row = Row(section, self.placement, op, size, counts=counts, value=value, unit=unit)
        if bars:
            row.judge(*bars)
        self.report.add(row)

    # -- values and keys

    def slices(self, area: memoryview, size: int) -> list[memoryview]:
        """`area` in pieces of `size` bytes, at most 4096 of them but spread over all of it."""
        count = len(area) // size
        step = max(1, count // 4096)
        return [area[i * size : (i + 1) * size] for i in range(0, count, step)]

    @contextlib.contextmanager
    def keys(self, size: int) -> Iterator[list[str]]:
        """Keys that hold values of `size` bytes while the block runs."""
        count = max(2, min(4096, self.keys_bytes // size))
        folder = f"{self.base}/v{size}"
        keys = [f"{folder}/{i:04}" for i in range(count)]
        for key in keys:
            self.store.put(key, self.memory.source[:size])
        try:
            yield keys
            self.verify(keys[0], size)
        finally:
            self.store.rmtree(folder)

    def verify(self, key: str, size: int) -> None:
        """A store that hands out other bytes than it was given is not to be measured."""
        data = self.memory.source[:size]
        for at in (0, size - 16):
            data[at : at + 16] = self.random.randbytes(16)
        self.store.put(key, data)
        self.store.get_into(key, self.memory.target)
        for part in (slice(0, MIB), slice(max(0, size - MIB), size)):
            if bytes(self.memory.target[part][:size]) != bytes(data[part]):
                raise RuntimeError(f"{key}: what came out is not what was put")

    # -- sections

    def small(self) -> None:
        batches = self.batches(40)
        for size in (s for s in self.sizes if s <= SMALL_MAX):
            keys = [f"{self.base}/small/{size}.{i}" for i in range(16)]
            data = self.random.randbytes(size)
            for key in keys:
                self.store.put(key, data)
            got = interleave(
                batches,
                {
                    "raw put": partial(self.unix.round_trips, size, SMALL_BYTES, 200),
                    "put": taker(200, self.store.put, [(key, data) for key in keys]),
                    "raw get": partial(self.unix.round_trips, SMALL_BYTES, size, 200),
                    "get": taker(200, self.store.get, [(key,) for key in keys]),
                },
            )
            for op in ("put", "get"):
                raw = got[f"raw {op}"]
                limit = Limit("unix round trip", percentile(raw, 50), percentile(raw, 99))
                self.latency(self.row("small", op, size, got[op], small=True), limit, 1.3, 3)

    def medium(self) -> None:
        batches = self.batches(20)
        for size in (s for s in self.sizes if SMALL_MAX < s <= MEDIUM_MAX):
            with self.keys(size) as keys:
                sources = self.slices(self.memory.source, size)
                targets = self.slices(self.memory.target, size)
                got = interleave(
                    batches,
                    {
                        "raw": partial(self.unix.round_trips, SMALL_BYTES, SMALL_BYTES, 50),
                        "copy": partial(self.memory.copies, size, 50),
                        "put": taker(50, self.store.put, pairs(keys, sources)),
                        "get": taker(50, self.store.get, [(key,) for key in keys]),
                        "get_into": taker(50, self.store.get_into, pairs(keys, targets)),
                    },
                )
            limit = Limit(
                "unix round trip + memcpy", percentile(got["raw"], 50) + percentile(got["copy"], 50)
            )
            for op in ("put", "get", "get_into"):
                self.latency(self.row("medium", op, size, got[op], small=True), limit, 1.5)

    def large(self) -> None:
        for size in (s for s in self.sizes if s > MEDIUM_MAX):
            count = max(1, min(8, 64 * MIB // size))
            with self.keys(size) as keys:
                sources = self.slices(self.memory.source, size)
                targets = self.slices(self.memory.target, size)
                got = interleave(
                    self.batches(20 if size <= 64 * MIB else 12),
                    {
                        "copy": partial(self.memory.copies, size, count),
                        "put": taker(count, self.store.put, pairs(keys, sources)),
                        "get_into": taker(count, self.store.get_into, pairs(keys, targets)),
                        "get": taker(count, self.store.get, [(key,) for key in keys]),
                    },
                )
            limit = Limit("memcpy", percentile(got["copy"], 50))
            bar = 0.7 if size < 16 * MIB else 1.0
            self.speed(self.row("large", "put", size, got["put"]), limit, bar)
            self.speed(self.row("large", "get_into", size, got["get_into"]), limit, bar)
            self.speed(self.row("large", "get", size, got["get"]), limit, None)

    def view(self) -> None:
        def view_and_release(key: str) -> None:
            self.store.get_view(key).release()

        largest = max(self.sizes)
        for size in (s for s in [64, *VIEW_SIZES] if s <= largest):
            key = f"{self.base}/view"
            self.store.put(key, self.memory.source[:size])
            got = interleave(
                self.batches(20),
                {
                    "raw": partial(self.unix.round_trips, SMALL_BYTES, SMALL_BYTES, 100),
                    "view": taker(100, view_and_release, [(key,)]),
                },
            )
            row = self.row("view", "get_view", size, got["view"], small=True)
            row.gbps = None
            assert row.p50_ns is not None
            row.judge(at_most("us", row.p50_ns / 1e3, 15))
            raw = got["raw"]
            self.latency(
                row, Limit("unix round trip", percentile(raw, 50), percentile(raw, 99)), None
            )
            self.store.delete(key)

    def touch(self) -> None:
        """First touch: each sample is a process of its own."""
        size = 64 * MIB
        got: dict[str, list[int]] = {"put": [], "get_into": []}
        copies: list[int] = []
        self.memory.copies(size, 1)
        for _ in range(self.batches(10)):
            copies.extend(self.memory.copies(size, 2))
            answer = subprocess.run(
                [*CHILD, "touch", self.address, f"{self.base}/touch", str(size)],
                stdout=subprocess.PIPE,
                check=True,
                timeout=60,
            )
            for op, ns in json.loads(answer.stdout).items():
                got[op].append(ns)
        limit = Limit("memcpy, touched", percentile(copies, 50))
        for op, samples in got.items():
            row = self.row("touch", f"{op}, new process", size, samples)
            self.speed(row, limit, 0.2)
        self.store.delete(f"{self.base}/touch")

    def forced_tcp(self) -> None:
        size = 16 * MIB
        with self.connect(self.address, transport="tcp") as store:
            keys = [f"{self.base}/tcp/{i}" for i in range(4)]
            for key in keys:
                store.put(key, self.memory.source[:size])
            sources = self.slices(self.memory.source, size)
            targets = self.slices(self.memory.target, size)
            got = interleave(
                self.batches(25),
                {
                    "raw put": partial(self.tcp.round_trips, size, SMALL_BYTES, 2),
                    "put": taker(2, store.put, pairs(keys, sources)),
                    "raw get_into": partial(self.tcp.round_trips, SMALL_BYTES, size, 2),
                    "get_into": taker(2, store.get_into, pairs(keys, targets)),
                },
            )
            for op in ("put", "get_into"):
                limit = Limit("tcp loopback stream", percentile(got[f"raw {op}"], 50))
                self.speed(self.row("tcp", f"{op}, tcp", size, got[op]), limit, 0.9)
            small = interleave(
                self.batches(20),
                {
                    "raw": partial(self.tcp.round_trips, SMALL_BYTES, 64 * KIB, 50),
                    "get_into": taker(
                        50,
                        lambda key: store.get_into(key, targets[0][: 64 * KIB]),
                        self._put_all(store, 64 * KIB),
                    ),
                },
            )
            raw = Limit(
                "tcp round trip", percentile(small["raw"], 50), percentile(small["raw"], 99)
            )
            self.latency(
                self.row("tcp", "get_into, tcp", 64 * KIB, small["get_into"], small=True), raw, None
            )
        self.store.rmtree(f"{self.base}/tcp")

    def _put_all(self, store: Any, size: int) -> list[tuple[str]]:
        keys = [f"{self.base}/tcp/small{i}" for i in range(16)]
        for key in keys:
            store.put(key, self.memory.source[:size])
        return [(key,) for key in keys]

    def many(self) -> None:
        size = 64
        keys = [f"{self.base}/many/{i:06}" for i in range(MANY)]
        items = [(key, self.random.randbytes(size)) for key in keys]
        self.store.put_many(items)
        got = interleave(
            self.batches(40),
            {
                "put_many": taker(4, self.store.put_many, [(items,)]),
                "get_many": taker(4, self.store.get_many, [(keys,)]),
            },
        )
        if self.store.get_many(keys) != [data for _, data in items]:
            raise RuntimeError("get_many: what came out is not what was put")
        for op, bar in (("get_many", 1.2), ("put_many", 0.8)):
            rate = MANY / percentile(got[op], 50) * 1e9
            self.fact(
                "many", f"{op} of {MANY}", size, rate, "values/s", at_least("M/s", rate / 1e6, bar)
            )
        self.store.rmtree(f"{self.base}/many")

    def make_nodes(self) -> None:
        """A tree of small nodes, its cost, and names for `lookup`. Once per run."""
        count = 100_000 if self.quick else 1_000_000
        value = bytes(64)
        before = self._namenode()
        begin = clock()
        name_bytes = 0
        for folder in range(count // MANY):
            items = [(f"{self.base}/n{folder:03}/f{i:05}", value) for i in range(MANY)]
            name_bytes += sum(len(key) - key.rindex("/") - 1 for key, _ in items)
            self.store.put_many(items)
            self.nodes.extend(self.random.sample([key for key, _ in items], 100))
        seconds = (clock() - begin) / 1e9
        after = self._namenode()
        used = after["arena_bytes_used"] - before["arena_bytes_used"]
        made = after["nodes"] - before["nodes"]
        each = used / made - name_bytes / made - len(value)
        self.random.shuffle(self.nodes)
        self.fact(
            "nodes", f"{count:,} nodes, net", 64, each, "B/node",
            at_most("bytes", each, 200), small=False,
        )  # fmt: skip
        self.fact("nodes", "made by put_many", 64, count / seconds, "nodes/s", small=False)

    def list_nodes(self) -> None:
        """Every name of the tree once more, a page at a time."""
        begin = clock()
        names = 0
        for folder in self.store.listdir(self.base):
            if folder.startswith("n"):
                names += len(self.store.listdir(f"{self.base}/{folder}"))
        rate = names / (clock() - begin) * 1e9
        bar = at_least("M/s", rate / 1e6, 0.5)
        self.fact("nodes", "listed", 64, rate, "names/s", bar, small=False)

    def drop_nodes(self) -> None:
        """Removes the tree again, and says whether the accounting came back."""
        folders = self.store.listdir(self.base)
        before = self._namenode()
        begin = clock()
        for name in folders:
            if name.startswith("n"):
                self.store.rmtree(f"{self.base}/{name}")
        while self._namenode()["background_pending"] and clock() - begin < 60e9:
            time.sleep(0.01)
        seconds = (clock() - begin) / 1e9
        gone = before["nodes"] - self._namenode()["nodes"]
        self.fact("nodes", "removed by rmtree", 64, gone / seconds, "nodes/s", small=False)

    def _room(self) -> int:
        """Free bytes of the storage servers."""
        return self._namenode()["granules_free"] * 4096

    def _fitting(self, sizes: Sequence[int]) -> list[int]:
        """The sizes that this store has room for: two keys, grants, what is being retired."""
        fitting = [size for size in sizes if size <= SMALL_MAX or 6 * size <= self._room()]
        if len(fitting) < len(sizes):
            left = ", ".join(size_text(size) for size in sizes if size not in fitting)
            self.report.note(f"the store has too little room for values of {left}")
        return fitting

    def _namenode(self) -> dict[str, int]:
        facts: dict[str, int] = self.store.status()["namenode"]
        return facts

    def lookup(self) -> None:
        """CPU of the namenode's loop per path of three names, in vectors of 1,000, driven by C."""
        if not self.nodes:
            self.report.note("lookup: left out, it needs the tree of section nodes")
            return
        for op, code in (("get", 2), ("stat", 3)):
            vectors = len(self.nodes) // MANY
            frames = b"".join(
                lookup_frame(code, self.nodes[i * MANY : (i + 1) * MANY]) for i in range(vectors)
            )
            costs = []
            with contextlib.closing(open_lane(self.address, self.token)) as lane:
                run_frames(lane.fileno(), frames, 1)
                for _ in range(self.batches(10)):
                    before = self._namenode()["loop_cpu_ns"]
                    done, failed = run_frames(lane.fileno(), frames, 2)
                    costs.append((self._namenode()["loop_cpu_ns"] - before) / done / 1e3)
                    if failed:
                        raise RuntimeError(f"{failed} of {done} lookups failed")
            cost = statistics.median(costs)
            bar = at_most("us", cost, 0.25)
            self.fact("lookup", f"{op}, server CPU", 64, cost, "us/path", bar)

    def beside(self) -> None:
        """A get while another thread of this process computes in Python."""
        key = f"{self.base}/beside"
        self.store.put(key, bytes(64))
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
            while clock() < deadline and len(samples) < (2000 if self.quick else 10_000):
                samples.extend(timed(self.store.get, [(key,)] * 50))
        finally:
            stop.set()
            thread.join()
        row = self.row("beside", "get, busy thread", 64, samples, small=True)
        assert row.p50_ns is not None
        row.judge(at_most("us", row.p50_ns / 1e3, 40))
        self.report.add(row)

    def many_clients(self) -> None:
        """Small gets of 1..n processes together."""
        key = f"{self.base}/clients"
        self.store.put(key, bytes(64))
        counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < self.clients] + [self.clients]
        for count in counts:
            answers = self._clients_at_once(count, key, 0.5 if self.quick else 2.0)
            rate = sum(a["operations"] / a["seconds"] for a in answers)
            op = f"get, {count} client{'s' if count > 1 else ''}"
            row = Row("clients", self.placement, op, 64, counts=False, value=rate, unit="gets/s")
            row.p50_ns = statistics.median(a["p50_ns"] for a in answers)
            row.p99_ns = max(a["p99_ns"] for a in answers)
            row.samples = sum(a["operations"] for a in answers)
            self.report.add(row)

    def _clients_at_once(self, count: int, key: str, seconds: float) -> list[dict[str, Any]]:
        command = [
            *CHILD,
            "gets",
            self.address,
            key,
            str(seconds),
        ]
        with contextlib.ExitStack() as stack:
            processes = []
            for _ in range(count):
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                stack.callback(bench_redis.end, process)
                processes.append(process)
            for process in processes:
                assert process.stdout
                if process.stdout.readline() != "ready\n":
                    raise RuntimeError("a client process of the bench did not start")
            for process in processes:
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            return [
                json.loads(process.communicate(timeout=seconds + 30)[0]) for process in processes
            ]

    def redis(self) -> None:
        """The same values through redis-py: small ones over both its sockets, large over unix."""
        with contextlib.ExitStack() as stack:
            started = bench_redis.start(stack, self.report.note)
            if started is None:
                return
            pid, clients = started
            pin([pid], os.sched_getaffinity(0))
            for way, client in clients.items():
                for size in (64, 1024, 4096):
                    self._redis_small(way, client, size)
            self._redis_large(clients["unix"])

    def _redis_small(self, way: str, client: Any, size: int) -> None:
        data = self.random.randbytes(size)
        key = f"{self.base}/redis/{size}"
        self.store.put(key, data)
        client.set(key, data)
        got = interleave(
            self.batches(20),
            {
                "redis put": taker(100, client.set, [(key, data)]),
                "put": taker(100, self.store.put, [(key, data)]),
                "redis get": taker(100, client.get, [(key,)]),
                "get": taker(100, self.store.get, [(key,)]),
            },
        )
        for op in ("put", "get"):
            self._against_redis(op, size, got[op], got[f"redis {op}"], 3, way=way, small=True)

    def _redis_large(self, client: Any) -> None:
        size = 16 * MIB
        keys = [f"{self.base}/redis/large{i}" for i in range(4)]
        sources = self.slices(self.memory.source, size)[:8]
        targets = self.slices(self.memory.target, size)
        for key in keys:
            self.store.put(key, sources[0])
            client.set(key, bytes(sources[0]))
        kept: list[object] = []

        def keep(call: Callable[[str], object]) -> Callable[[], list[int]]:
            """Batches of four results that live until the next batch begins."""
            cycle = itertools.cycle(keys)

            def batch() -> list[int]:
                kept.clear()
                return timed(lambda key: kept.append(call(key)), [(next(cycle),) for _ in range(4)])

            return batch

        got = interleave(
            self.batches(15),
            {
                "redis put": taker(2, client.set, [(key, bytes(sources[0])) for key in keys]),
                "put": taker(2, self.store.put, pairs(keys, sources)),
                "redis get": taker(2, client.get, [(key,) for key in keys]),
                "get_into": taker(2, self.store.get_into, pairs(keys, targets)),
                "redis kept": keep(client.get),
                "get": keep(self.store.get),
            },
        )
        self._against_redis("put", size, got["put"], got["redis put"], None)
        self._against_redis("get_into", size, got["get_into"], got["redis get"], 8)
        self._against_redis("get, kept", size, got["get"], got["redis kept"], 3)

    def _against_redis(
        self,
        op: str,
        size: int,
        ours: Sequence[int],
        theirs: Sequence[int],
        bar: float | None,
        *,
        way: str = "unix",
        small: bool = False,
    ) -> None:
        what = f"redis-py {'set' if op == 'put' else 'get'}, {way}"
        row = self.row("redis", op, size, ours, small=small)
        self.speed(row, Limit(what, percentile(theirs, 50), percentile(theirs, 99)), bar)

    # -- all

    def run(self, placement: str, sections: Sequence[str], what: str) -> None:
        self.placement = placement
        steps: dict[str, Callable[[], None]] = {
            "small": self.small,
            "medium": self.medium,
            "large": self.large,
            "view": self.view,
            "touch": self.touch,
            "tcp": self.forced_tcp,
            "many": self.many,
            "lookup": self.lookup,
            "beside": self.beside,
            "clients": self.many_clients,
            "redis": self.redis,
        }
        self.report.title(f"{placement}: {what}")
        for section in sections:
            if section in steps:
                steps[section]()


# ---- a lane for the C driver -------------------------------------------------------------------

_FRAME = struct.Struct("<IIIIQQ")  # struct crail_frame
_OP = struct.Struct("<HHHHIIQQ")  # struct crail_op


def lookup_frame(code: int, paths: Sequence[str]) -> bytes:
    """One request of wire.h with an operation of `code` for each path."""
    parts = []
    for path in paths:
        name = path.encode()
        parts.append(_OP.pack(code, 0, len(name), 0, 0, 0, 0, 0))
        parts.append(name + bytes(-len(name) % 8))
    body = b"".join(parts)
    return _FRAME.pack(0x314C5243, _FRAME.size + len(body), len(paths), 0, 1, 0) + body


def open_lane(address: str, token: str | None) -> socket.socket:
    """A connection to the namenode whose hello is done, as the lane of a session of its own."""
    from .session import Address, Session

    session = Session(Address(address), token=token, transport=None, timeout=10.0)
    try:
        return session._open_lane_once(0, None, False, time.monotonic() + 10.0)
    finally:
        session.close()


# ---- processes of the bench ----------------------------------------------------------------------


def touch_main(address: str, key: str, size: int) -> int:
    """A new process: its first large put and its first large get_into, in nanoseconds, as JSON."""
    import crailpy

    with crailpy.connect(address) as store:
        buffer = bytearray(size)  # writes zeros: every page is touched
        begin = clock()
        store.put(key, buffer)
        put = clock() - begin
        begin = clock()
        store.get_into(key, buffer)
        print(json.dumps({"put": put, "get_into": clock() - begin}))
    return 0


def gets_main(address: str, key: str, seconds: float) -> int:
    """One of several processes that get a small value for some seconds; its tally as JSON."""
    import crailpy

    with crailpy.connect(address) as store:
        timed(store.get, [(key,)] * 100)
        print("ready", flush=True)
        sys.stdin.readline()
        samples: list[int] = []
        arguments = [(key,)] * 200
        begin = clock()
        while clock() - begin < seconds * 1e9:
            samples.extend(timed(store.get, arguments))
        elapsed = (clock() - begin) / 1e9
    tally = {
        "operations": len(samples),
        "seconds": elapsed,
        "p50_ns": percentile(samples, 50),
        "p99_ns": percentile(samples, 99),
    }
    print(json.dumps(tally))
    return 0


# ---- the command -----------------------------------------------------------------------------


def choose_sizes(sizes: Sequence[int] | None, quick: bool, report: Report) -> list[int]:
    """What was asked for, or the usual sizes; 256 MiB only where there is memory for them."""
    chosen = list(sizes) if sizes else SIZES_QUICK if quick else SIZES
    fitting = [size for size in chosen if dram_for([size]) + 2 * GIB <= memory_available()]
    if len(fitting) < len(chosen):
        left = ", ".join(size_text(size) for size in chosen if size not in fitting)
        report.note(f"too little free memory for values of {left}")
    if not fitting:
        raise MemoryError("the bench needs about 3 GiB of free memory")
    return sorted(fitting)


def dram_for(sizes: Sequence[int]) -> int:
    """Bytes of a storage server for such values: keys, grants ahead, what is being retired."""
    largest = max(sizes)
    return max(KEYS_BYTES, 2 * largest) + 5 * largest + 512 * MIB


def run(options: argparse.Namespace) -> int:
    """`crailpy bench`. Exit code 1 with --check when a row that counts misses its bar."""
    import crailpy

    begin = time.monotonic()
    report = Report(as_json=options.json)
    about = machine()
    if about["load"] > 0.5:
        report.note(f"other work is running here: the load is {about['load']}")
    cores = os.sched_getaffinity(0)
    sizes = choose_sizes(options.sizes, options.quick, report)
    sections = options.only or SECTIONS
    core = max(cores)
    placements = {
        "pinned": f"bench, echo, namenode and storage servers on core {core}",
        "free": "the scheduler places bench, echo, namenode and storage servers",
    }
    wanted = {"one": ["pinned"], "free": ["free"], "both": ["pinned", "free"]}[options.pin]
    pids: list[int] = []
    with contextlib.ExitStack() as stack:
        if options.address:
            address = options.address
            if "pinned" in wanted:
                report.note(
                    "a store that runs elsewhere cannot be pinned from here: free placement only"
                )
                wanted = ["free"]
        else:
            dram = f"{dram_for(sizes) // MIB}MiB"
            cluster = stack.enter_context(crailpy.LocalCluster(dram=dram))
            address = cluster.address
            pids = [cluster.namenode.pid, *(server.pid for server in cluster.servers)]
        given = {"token": options.token} if options.token else {}

        def connect(address: str, **more: Any) -> Any:
            return crailpy.connect(address, timeout=options.timeout or 30.0, **given, **more)

        store = stack.enter_context(connect(address))
        bench = Bench(
            store, address, report, sizes=sizes, quick=options.quick, clients=options.clients,
            server_pids=pids, connect=connect, token=options.token,
        )  # fmt: skip
        stack.callback(pin, [os.getpid()], cores)
        stack.callback(bench.close)
        if "nodes" in sections:
            report.title("the tree")
            bench.make_nodes()
            bench.list_nodes()
        for placement in wanted:
            pin(bench.pids(), {core} if placement == "pinned" else cores)
            bench.run(placement, sections, placements[placement])
        if "nodes" in sections:
            bench.drop_nodes()
    summary = report.summary()
    if options.json:
        facts = {
            "schema": 1,
            "crailpy": crailpy.__version__,
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quick": options.quick,
            "address": address,
            "cluster": "given" if options.address else "own",
            "seconds": round(time.monotonic() - begin, 1),
            "machine": about,
            "placements": {name: placements[name] for name in wanted},
            "rows": [asdict(row) for row in report.rows],
            "notes": report.notes,
            "summary": summary,
        }
        print(json.dumps(facts, indent=1))
    else:
        print(
            f"\n{summary['ok']} bars hold, {summary['miss']} missed; "
            f"{summary['informal']} rows without a bar that counts; "
            f"{time.monotonic() - begin:.0f} s"
        )
    return 1 if options.check and summary["miss"] else 0


def main(arguments: list[str]) -> int:
    """The processes that the bench starts: `touch ADDRESS KEY SIZE`, `gets ADDRESS KEY SECONDS`."""
    role, address, key, amount = arguments
    if role == "touch":
        return touch_main(address, key, int(amount))
    return gets_main(address, key, float(amount))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
