"""Model state: pulls beside gets, and an iteration of two workers that share a large model."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
from typing import Any

import crailpy

from . import processes
from .context import Bench
from .measure import clock, interleave, percentile
from .report import KIB, MIB, Limit, at_most

MODEL_BYTES = 100_000_000
COMPUTE_SECONDS = 0.5
WORKERS = 2
COPIES = 3.75
"""What the first worker moves in an iteration, in copies of the model: the model out (1), its array
out (1), half of the sums, of two halves (0.75), that half out (0.5), the other half in (0.5)."""


def has_numpy(bench: Bench) -> bool:
    if importlib.util.find_spec("numpy"):
        return True
    bench.report.note("models are made of NumPy's arrays: it is not installed here")
    return False


def model(bench: Bench) -> None:
    """Each call comes after a push of another client, as it does for a worker; ours after a pull,
    too, or it would lose the race for the next number."""
    if not has_numpy(bench):
        return
    import numpy

    size = KIB
    change = {"w": numpy.ones(size // 4, "float32")}
    data = bytes(size)
    key = f"{bench.base}/value"
    with bench.connect(bench.address) as other:
        mine = bench.store.model(f"{bench.base}/model")
        theirs = other.model(mine.path)
        theirs.push(change, "set")
        bench.store.put(key, data)

        def after_a_push(call: Any, *, informed: bool = False) -> Any:
            def part() -> list[int]:
                samples = []
                for _ in range(50):
                    theirs.push(change)
                    if informed:
                        mine.pull(["w"])
                    begin = clock()
                    call()
                    samples.append(clock() - begin)
                mine.pull(["w"])
                return samples

            return part

        def unchanged() -> list[int]:
            samples = []
            for _ in range(50):
                begin = clock()
                mine.pull(["w"])
                samples.append(clock() - begin)
            return samples

        parts = {
            "get": after_a_push(lambda: bench.store.get(key)),
            "put": after_a_push(lambda: bench.store.put(key, data)),
            "pull": after_a_push(lambda: mine.pull(["w"])),
            "pull, no news": unchanged,
            "push": after_a_push(lambda: mine.push(change), informed=True),
        }
        got = interleave(bench.batches(40), parts)
        pulled = mine.pull()["w"]
        if pulled[0] != mine.version or pulled.min() != pulled.max():
            raise RuntimeError("model: what was pulled is not what was pushed")
    bars = {"pull": 2.0, "pull, no news": 2.0, "push": None}
    for op, bar in bars.items():
        raw = got["put" if op == "push" else "get"]
        limit = Limit("the same by put" if op == "push" else "a get of it", percentile(raw, 50))
        bench.latency(bench.row("model", op, size, got[op], small=True), limit, bar)
    bench.store.delete(key)
    bench.store.rmtree(mine.path)


def iteration(bench: Bench) -> None:
    """Broadcast of a model, half a second of computing, reduction of as many gradients: by two
    processes, on a store of this run's own."""
    if not has_numpy(bench):
        return
    if not bench.server_pids:
        bench.report.note("section iteration needs a store of its own: it is left out")
        return
    turns = 4 if bench.quick else 10
    copies = bench.memory.copies(100 * MIB, 3)
    with crailpy.LocalCluster(dram="1536MiB", token=bench.token) as cluster:
        tallies = _iterate(cluster.address, turns, bench.token)
    copies += bench.memory.copies(100 * MIB, 3)
    copy_ns = percentile(copies, 50) / (100 * MIB) * MODEL_BYTES
    slower = max(tallies, key=lambda tally: statistics.median(tally["store"]))
    samples = [ns for tally in tallies for ns in tally["store"]]
    row = bench.row("iteration", "broadcast + reduce", 0, samples)
    row.limit = Limit(f"{COPIES} x memcpy of 100 MB", COPIES * copy_ns)
    row.p50_ns = statistics.median(slower["store"])
    row.ratio = row.p50_ns / row.limit.p50_ns
    bench.report.add(row)
    share = 100 * row.p50_ns / statistics.median(slower["all"])
    bar = at_most("%", share, 25)
    bench.fact("iteration", "share of the iteration", 0, share, "%", bar, small=False)
    for part in ("broadcast", "value", "reduce"):
        found = [ns for tally in tallies for ns in tally[part]]
        if found:
            bench.report.add(bench.row("iteration", part, 0, found))


def _iterate(address: str, turns: int, token: str | None) -> list[dict[str, list[int]]]:
    with contextlib.ExitStack() as stack:
        workers = [
            processes.start(stack, ["iterate", address, "/iteration", str(rank), str(turns)], token)
            for rank in range(WORKERS)
        ]
        return [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]


def iterate(address: str, folder: str, rank: int, turns: int) -> None:
    """One of the workers: nanoseconds of each turn and of its parts, as JSON. The sums are the next
    model; a page of each 4 KiB that the model lies on is read."""
    import pickle

    import numpy

    sums = numpy.ones(MODEL_BYTES // 4, "float32")
    parts = ("store", "all", "broadcast", "value", "reduce")
    times: dict[str, list[int]] = {part: [] for part in parts}
    with crailpy.connect(address, timeout=60) as store:
        for turn in range(-2, turns):
            number, marks = turn + 2, [clock()]
            name = f"{folder}/model-{number}"
            if rank == 0:
                handle = store.broadcast(name, sums)
                store.put(f"{folder}/task-{number}", pickle.dumps(handle))
            else:
                handle = pickle.loads(store.get(f"{folder}/task-{number}", wait=60))
            marks.append(clock())
            weights = handle.value
            assert float(weights[::1024].sum()) == weights[0] * len(weights[::1024])
            marks.append(clock())
            while clock() - marks[2] < COMPUTE_SECONDS * 1e9:
                pass
            sums[:] = rank + 1
            del weights
            marks.append(clock())
            store.reduce(f"{folder}/sums", sums, WORKERS, rank=rank, round=number, out=sums)
            marks.append(clock())
            assert sums[0] == sums[-1] == WORKERS * (WORKERS + 1) / 2
            if rank == 0:
                handle.delete()
            marks.append(clock())
            if turn < 0:
                continue
            times["all"].append(marks[5] - marks[0])
            times["store"].append(marks[5] - marks[3] + marks[2] - marks[0])
            times["value"].append(marks[2] - marks[1])
            times["reduce"].append(marks[4] - marks[3])
            if rank == 0:
                times["broadcast"].append(marks[1] - marks[0])
    print(json.dumps(times))
