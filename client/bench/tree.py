"""A tree of many small nodes: what they cost, and what it costs to find them."""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import time
from collections.abc import Sequence

from ..probes import run_frames
from ..session import Address, Session
from .context import MANY, Bench
from .measure import clock
from .report import at_least, at_most


def make(bench: Bench) -> None:
    """A tree of small nodes, its cost, and names for `lookup`. Once per run."""
    count = 100_000 if bench.quick else 1_000_000
    value = bytes(64)
    before = bench.namenode()
    begin = clock()
    name_bytes = 0
    for folder in range(count // MANY):
        items = [(f"{bench.base}/n{folder:03}/f{i:05}", value) for i in range(MANY)]
        name_bytes += sum(len(key) - key.rindex("/") - 1 for key, _ in items)
        bench.store.put_many(items)
        bench.nodes.extend(bench.random.sample([key for key, _ in items], 100))
    seconds = (clock() - begin) / 1e9
    after = bench.namenode()
    used = after["arena_bytes_used"] - before["arena_bytes_used"]
    made = after["nodes"] - before["nodes"]
    each = used / made - name_bytes / made - len(value)
    bench.random.shuffle(bench.nodes)
    bench.fact(
        "nodes", f"{count:,} nodes, net", 64, each, "B/node",
        at_most("bytes", each, 200), small=False,
    )  # fmt: skip
    bench.fact("nodes", "made by put_many", 64, count / seconds, "nodes/s", small=False)


def list_names(bench: Bench) -> None:
    """Every name of the tree once more, a page at a time."""
    begin = clock()
    names = 0
    for folder in bench.store.listdir(bench.base):
        if folder.startswith("n"):
            names += len(bench.store.listdir(f"{bench.base}/{folder}"))
    rate = names / (clock() - begin) * 1e9
    bar = at_least("M/s", rate / 1e6, 0.5)
    bench.fact("nodes", "listed", 64, rate, "names/s", bar, small=False)


def drop(bench: Bench) -> None:
    """Removes the tree again."""
    folders = bench.store.listdir(bench.base)
    before = bench.namenode()
    begin = clock()
    for name in folders:
        if name.startswith("n"):
            bench.store.rmtree(f"{bench.base}/{name}")
    bench.settle()
    seconds = (clock() - begin) / 1e9
    gone = before["nodes"] - bench.namenode()["nodes"]
    bench.fact("nodes", "removed by rmtree", 64, gone / seconds, "nodes/s", small=False)


def lookup(bench: Bench) -> None:
    """CPU of the namenode's loop per path of three names, in vectors of 1,000, driven by C."""
    if not bench.nodes:
        bench.report.note("lookup: left out, it needs the tree of section nodes")
        return
    for op, code in (("get", 2), ("stat", 3)):
        vectors = len(bench.nodes) // MANY
        frames = b"".join(
            lookup_frame(code, bench.nodes[i * MANY : (i + 1) * MANY]) for i in range(vectors)
        )
        costs = []
        with contextlib.closing(open_lane(bench.address, bench.token)) as lane:
            run_frames(lane.fileno(), frames, 1)
            for _ in range(bench.batches(10)):
                before = bench.namenode()["loop_cpu_ns"]
                done, failed = run_frames(lane.fileno(), frames, 2)
                costs.append((bench.namenode()["loop_cpu_ns"] - before) / done / 1e3)
                if failed:
                    raise RuntimeError(f"{failed} of {done} lookups failed")
        cost = statistics.median(costs)
        bar = at_most("us", cost, 0.25)
        bench.fact("lookup", f"{op}, server CPU", 64, cost, "us/path", bar)


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
    session = Session(Address(address), token=token, transport=None, timeout=10.0)
    try:
        return session.connect_lane(0, time.monotonic() + 10.0)
    finally:
        session.close()
