"""`crailpy bench`: every operation beside the machine's own limit, measured in the same run.

Batches of raw probes (`probes.py`, in C) and batches of store calls alternate, because the same
round trip costs four times as much when the scheduler places its two ends on different cores. A
latency is compared with the limit's median (`ratio` = store / limit, small is good), a copy with
the limit's speed (`ratio` = store speed / limit speed, large is good). Two placements are measured:
*pinned*, where this process, the echo, the namenode and the storage servers share one core, and
*free*, where the scheduler decides. For small operations the pinned one counts; rows that do not
count have `"counts": false` and their verdict in brackets. Sections nodes, stalls, durability,
iteration and executors come once, before the others, placed by the scheduler.

What is compared with what:

- put and get up to 4 KiB, through a lane that uses its socket: a unix-socket round trip that
  carries the payload in the same direction, 64 bytes back. All other sections use the usual lane,
  which is a ring in shared memory on the namenode's host.
- 8 to 512 KiB: a 64-byte round trip plus a memcpy of the size.
- 1 MiB and more: memcpy going round in 1 GiB of memory; puts take their values from the same memory
  and go round over several keys, get_into writes to the same memory.
- forced TCP: 16 MiB over a loopback TCP stream between private buffers of that size, in the same
  direction, until the other end has it all.
- ring: the lane through shared memory beside the lane through its socket: in a dense stream, one
  call per millisecond, beside busy processes at nice 10, and by 8 busy clients.
- shuffle: a stage of 16 maps and 16 reducers, with tiny segments, beside as many round trips as it
  has requests; one of 4 and 4 with segments of 4 MiB, copied out of their views, beside memcpy of
  what is written and read.
- durability: stores that differ in nothing but that, in turn: values changed by several clients,
  alone and a thousand at a time, with `group` and with `none`; single calls likewise. Gets while
  many nodes are committed, the start of a namenode that has them, values made faster than they can
  be committed, and puts that wait for their commit in `sync`, in a folder
  for temporary files.
- model: pulls of a tensor of 1 KiB beside gets of as much, each after a push of another client.
- iteration: two processes share a model of 100 MB: a broadcast, half a second of computing and a
  reduction of as much each turn; beside memcpy of what that moves, and as a share of the turn.
- executors: an empty task through the warm pool and through `ProcessPoolExecutor` (and Dask), two
  processes each, in turn; many at once; what the first and the second driver wait for.
- stalls: gets of a second process while this one lists one directory of 1,000,000 names (100,000
  with `--quick`), and while that directory's nodes are removed, beside the same gets with nothing
  else going on.

JSON (`--json`): an object with

- `schema` 1, `crailpy` version, `when` (UTC), `quick`, `address` ("own" for a cluster of this run's
  own), `fresh` (how many of them, one after the other: rows are medians then), `cluster` ("own" or
  "given"), `seconds`
- `machine`: `cores`, `cpu`, `memory_bytes`, `kernel`, `python`, `load` (of one minute, before the
  run), `thp`, `thp_shmem`
- `placements`: name -> sentence
- `rows`: a list of objects with `section`, `placement`, `op`, `size` (bytes of one value), `counts`
  (do its bars count?), `samples`, `p50_ns`, `p99_ns` (null when there are no such samples),
  `quantiles_ns` (percentiles 1, 10, 25, 50, 75, 90, 99 of a hundred samples or more), `gbps`
  (10^9 bytes/s at p50, null for small values), `value` and `unit` (facts that are no latency:
  values/s, gets/s, us/path, B/node, s), `limit` (null or `what`, `p50_ns`, `p99_ns`), `ratio` and
  `ratio_p99` (p99 of the store / p50 of the limit; null), `bars`: a list of `what`, `measured`,
  `bar` (as "<= 1.3"), `ok`; and `ok` (all bars hold; null without a bar)
- `notes`: what was left out, and why, in words
- `summary`: `ok`, `miss` and `informal` counts (of rows that count, of the others)
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from crailpy.config import client_settings

from . import crowd, durability, executors, redis, ring, stages, state, tree, values
from .context import KEYS_BYTES, Bench
from .machine import machine, memory_available, pin
from .report import GIB, KIB, MIB, Report, medians, size_text

if TYPE_CHECKING:
    import argparse

SIZES = [64, 256, 1024, 4096, *(8 * KIB << i for i in range(7)), MIB, 16 * MIB, 64 * MIB, 256 * MIB]
SIZES_QUICK = [64, 1024, 4096, 8 * KIB, 64 * KIB, 512 * KIB, MIB, 16 * MIB, 64 * MIB]

PLACED: dict[str, Callable[[Bench], None]] = {
    "small": values.small,
    "medium": values.medium,
    "large": values.large,
    "view": values.view,
    "touch": values.touch,
    "tcp": values.forced_tcp,
    "many": values.many,
    "lookup": tree.lookup,
    "beside": crowd.beside,
    "clients": crowd.clients,
    "ring": ring.lanes,
    "model": state.model,
    "shuffle": stages.shuffle,
    "redis": redis.compare,
}
"""The sections that are measured in each placement."""
SECTIONS = ["nodes", "stalls", "durability", "iteration", "executors", *PLACED]


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


def _one_run(
    options: argparse.Namespace,
    report: Report,
    sizes: Sequence[int],
    sections: Sequence[str],
    placements: dict[str, str],
) -> None:
    """All sections against one store: the one that was given, or one that is started for it."""
    import crailpy

    cores = os.sched_getaffinity(0)
    core = max(cores)
    pids: list[int] = []
    with contextlib.ExitStack() as stack:
        if options.address:
            address = options.address
        else:
            dram = f"{dram_for(sizes) // MIB}MiB"
            cluster = stack.enter_context(crailpy.LocalCluster(dram=dram))
            address = cluster.address
            pids = [cluster.namenode.pid, *(server.pid for server in cluster.servers)]
        token = options.token or client_settings()["token"]

        def connect(address: str, **more: Any) -> Any:
            timeout = options.timeout or 30.0
            return crailpy.connect(address, token=token, timeout=timeout, **more)

        store = stack.enter_context(connect(address))
        bench = Bench(
            store, address, report, sizes=sizes, quick=options.quick, clients=options.clients,
            server_pids=pids, connect=connect, token=token,
        )  # fmt: skip
        stack.callback(pin, [os.getpid()], cores)
        stack.callback(bench.close)
        if "nodes" in sections or "stalls" in sections:
            report.title("many nodes")
        if "nodes" in sections:
            tree.make(bench)
            tree.list_names(bench)
        if "stalls" in sections:
            crowd.stalls(bench)
        if "durability" in sections:
            report.title("durability: stores of its own, placed by the scheduler")
            durability.durability(bench)
        if "iteration" in sections:
            report.title("iteration: two workers, placed by the scheduler")
            state.iteration(bench)
        if "executors" in sections:
            report.title("executors: pools of its own, placed by the scheduler")
            executors.executors(bench)
        for placement, what in placements.items():
            pin(bench.pids(), {core} if placement == "pinned" else cores)
            bench.placement = placement
            report.title(f"{placement}: {what}")
            for section in sections:
                if section in PLACED:
                    PLACED[section](bench)
        if "nodes" in sections:
            tree.drop(bench)


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
    if options.address and "pinned" in wanted:
        report.note("a store that runs elsewhere cannot be pinned from here: free placement only")
        wanted = ["free"]
    if options.fresh > 1:
        runs = []
        for number in range(options.fresh):
            report.title(f"fresh store {number + 1} of {options.fresh}")
            one = Report(as_json=options.json)
            _one_run(options, one, sizes, sections, {name: placements[name] for name in wanted})
            runs.append(one.rows)
        report.title(f"medians of {options.fresh} fresh stores")
        for row in medians(runs):
            report.add(row)
    else:
        _one_run(options, report, sizes, sections, {name: placements[name] for name in wanted})
    summary = report.summary()
    if options.json:
        facts = {
            "schema": 1,
            "crailpy": crailpy.__version__,
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quick": options.quick,
            "address": options.address or "own",
            "fresh": options.fresh,
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
