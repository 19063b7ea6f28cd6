"""Sorts records of 100 bytes (`records.py`) that lie in local files into local files:

    python -m tests.bench.sort --size 4GB --workers 2

Input and output are files of this machine, the shuffle goes through the store. A map task reads one
input file, sorts it and hands each range of keys to its partition of the shuffle; a reduce
task reads its partition of all maps, sorts them together and writes one output file. The ranges
come from a sample of the keys. What does not fit into the store's memory goes to its file tier:
`--dram 512MiB --file 6GiB`.

The output is checked as valsort does: each file is in order and so are the files, it has as many
records as the input and the same checksum. Making the input and checking the output are no part of
the times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crailpy.client import compute
from crailpy.client.bench.report import MIB
from crailpy.client.compute.executors import PoolExecutor
from crailpy.units import parse_size

from . import records
from .chaos import SPECULATE_SECONDS, Chaos
from .job import Job, Phase, Result, Task, clock, common, memcpy_speed, opened_job
from .records import RECORD_BYTES, Scratch, Summary

SAMPLES = 1000  # keys from each input file
SAMPLE_RUN = 50  # that lie side by side
STORE_BAR = 3.0

GRANULE = 4096
MORE = 256 * MIB  # of memory than the shuffle takes

scratch = Scratch()


# ---- tasks --------------------------------------------------------------------------------------


def generate(task: Task) -> None:
    plan, number = task.plan, task.number
    first, count = split(plan, number)
    made = records.generate(plan["seed"], number, first, count, plan["skew"])
    records.write(input_path(plan, number), made)
    task.facts["summary"] = records.summarise(made).facts()


def map_split(task: Task) -> None:
    plan, number = task.plan, task.number
    shuffle = compute.shuffle(task.store, f"{task.base}/shuffle", partitions=plan["partitions"])
    output = f"{shuffle.path}/{number:010}"
    if task.again(output):
        return
    _, count = split(plan, number)
    with task.clock("input"):
        part = records.read(input_path(plan, number), 0, count, scratch.area("in", count))
    time.sleep(plan["linger"])
    with task.clock("compute"):
        index, high = records.order(part)
        ordered = records.take(part, index, scratch.area("out", count))
        out = memoryview(ordered.view(np.uint8)).toreadonly()  # so the writer need not copy it
        splitters = np.array(plan["splitters"], np.uint64)
        ends = [0, *np.searchsorted(high, splitters).tolist(), count]
    with task.clock("shuffle"), shuffle.writer(number, task.attempt) as writer:
        for partition in range(plan["partitions"]):
            at, end = ends[partition] * RECORD_BYTES, ends[partition + 1] * RECORD_BYTES
            writer.write(partition, out[at:end])
        task.commits(output)
        writer.commit()
    task.counts["put_bytes"] += ordered.nbytes


def reduce_partition(task: Task) -> None:
    plan, number = task.plan, task.number
    done = f"{task.base}/sorted/{number:06}"
    if task.again(done):
        return
    part = gather(task)
    time.sleep(plan["linger"])
    with task.clock("compute"):
        index, _ = records.order(part)
        ordered = records.take(part, index, scratch.area("out", len(part)))
    with task.clock("output"):
        records.write(output_path(plan, number), ordered)
    with task.clock("shuffle"):
        task.commits(done)
        task.store.put(done, str(len(part)).encode())


def gather(task: Task) -> records.Records:
    """All segments of a partition, one behind the other, in memory of this process."""
    plan = task.plan
    with task.clock("shuffle"):
        shuffle = compute.shuffle(task.store, f"{task.base}/shuffle", partitions=plan["partitions"])
        views = list(map(memoryview, shuffle.reader(task.number, maps=plan["maps"])))
        size = sum(map(len, views))
    with task.clock("compute"):
        part = scratch.area("in", size // RECORD_BYTES)
    with task.clock("shuffle"):
        into, at = memoryview(part.view(np.uint8)), 0
        for view in views:
            into[at : at + len(view)] = view
            at += len(view)
    task.counts["get_bytes"] += size
    return part


def check(task: Task) -> None:
    path = output_path(task.plan, task.number)
    count = os.path.getsize(path) // RECORD_BYTES
    part = records.read(path, 0, count, scratch.area("in", count))
    task.facts["summary"] = records.summarise(part).facts()


# ---- the plan -----------------------------------------------------------------------------------


def split(plan: dict[str, Any], number: int) -> tuple[int, int]:
    """The first record of an input file, and how many it has."""
    first = number * plan["split_records"]
    return first, min(plan["split_records"], plan["records"] - first)


def input_path(plan: dict[str, Any], number: int) -> str:
    return os.path.join(plan["input"], f"in-{number:05}")


def output_path(plan: dict[str, Any], number: int) -> str:
    return os.path.join(plan["output"], f"out-{number:05}")


def make_plan(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    count = parse_size(options.size) // RECORD_BYTES
    split_records = min(parse_size(options.split) // RECORD_BYTES, -(-count // options.workers))
    maps = -(-count // split_records)
    plan = {
        "records": count,
        "split_records": split_records,
        "maps": maps,
        "partitions": maps,  # as large as the splits
        "seed": options.seed,
        "skew": options.skew,
        "linger": 0.0,
        "input": options.input or os.path.join(folder, "input"),
        "output": os.path.join(folder, "output"),
        "watched": False,
    }
    for name in ("input", "output"):
        os.makedirs(plan[name], exist_ok=True)
    return plan


def sample(plan: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Upper halves of keys from all over the input."""
    found = []
    for number in range(plan["maps"]):
        _, count = split(plan, number)
        for i in range(SAMPLES // SAMPLE_RUN):
            at = i * count * SAMPLE_RUN // SAMPLES
            run = min(SAMPLE_RUN, count - at)
            area = scratch.area("sample", run)
            part = records.read(input_path(plan, number), at, run, area)
            found.append(part["high"].astype(np.uint64))
    return np.concatenate(found)


def made_input(job: Job) -> Summary:
    """What is known of the input; it is made where it was not made yet."""
    plan = job.plan
    note = Path(plan["input"], "input.json")
    what = {name: plan[name] for name in ("records", "split_records", "seed", "skew")}
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(note.read_text())
        if found["what"] == what:
            return Summary(**found["summary"])
    made = job.stage("generate", generate, plan["maps"]).reports
    summary = followed([report["summary"] for report in made])
    note.write_text(json.dumps({"what": what, "summary": summary.facts()}))
    return summary


def followed(parts: list[dict[str, Any]]) -> Summary:
    total = Summary()
    for part in parts:
        total.follow(Summary(**part))
    return total


# ---- the job ------------------------------------------------------------------------------------


@contextlib.contextmanager
def working_folder(given: str | None) -> Iterator[str]:
    """A folder for files: the one that was given, or one that goes when the block ends."""
    if given:
        os.makedirs(given, exist_ok=True)
        yield given
        return
    folder = tempfile.mkdtemp(prefix="crailpy-sort-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def sort(job: Job, name: str, result: Result, chaos: Chaos | None = None) -> Job:
    """Sample, map, reduce, into an output folder of this name; the phases go into the result.
    Returns the job that did it."""
    plan = job.plan
    began = clock()
    chosen = records.splitters(sample(plan), plan["partitions"]).tolist()
    output = os.path.join(plan["output"], name)
    os.makedirs(output, exist_ok=True)
    own = {"splitters": chosen, "output": output}
    if chaos:
        own |= {"watched": True, "linger": result.options.linger}
    sorting = job.part(name, plan | own)
    sorting.watch = chaos.watch if chaos else None
    result.phases.append(Phase("sample", clock() - began))
    result.phases.append(sorting.stage("map", map_split, plan["maps"]))
    result.facts["places"] = places(job.store)
    result.phases.append(sorting.stage("reduce", reduce_partition, plan["partitions"]))
    return sorting


def places(store: Any) -> dict[str, int]:
    """Bytes that lie in each tier."""
    found: Counter[str] = Counter()
    for server in store.status()["servers"]:
        found[server["tier"]] += server["granules_used"] * GRANULE
    return dict(found)


def checked(job: Job) -> list[dict[str, Any]]:
    """The summaries of all output files."""
    return [r["summary"] for r in job.stage("check", check, job.plan["partitions"]).reports]


def judge(job: Job, result: Result, given: Summary, speed: float) -> list[dict[str, Any]]:
    """Checks the output, and says what the store has cost. Returns the summaries of the files."""
    files = checked(job)
    got = followed(files)
    result.right &= (got.count, got.checksum, got.unordered) == (given.count, given.checksum, 0)
    put = sum(phase.counts["put_bytes"] for phase in result.phases)
    fetched = sum(phase.counts["get_bytes"] for phase in result.phases)
    split, seconds = result.split(), sum(phase.seconds for phase in result.phases)
    in_store = split["shuffle"]
    result.facts |= {
        "bytes": given.count * RECORD_BYTES,
        "maps": job.plan["maps"],
        "partitions": job.plan["partitions"],
        "put_bytes": put,
        "get_bytes": fetched,
        "memcpy_bytes_per_s": speed,
        "store_seconds": in_store,
        "store_share": in_store / sum(split.values()),
        "input": given.facts(),
        "output": got.facts(),
    }
    result.say_phases()
    places = {tier: size for tier, size in sorted(result.facts["places"].items()) if size}
    where = ", ".join(f"{size / 1e6:,.0f} MB in {tier}" for tier, size in places.items())
    result.say(
        f"  moved through the store: {put / 1e6:,.0f} MB put, {fetched / 1e6:,.0f} MB got; "
        f"before the reduce: {where}"
    )
    result.say(
        f"  time in the store {in_store:.2f} s of the workers, "
        f"{result.facts['store_share']:.1%} of their time; memcpy moves {speed / 1e9:.1f} GB/s"
    )
    if places.keys() <= {"dram"}:  # a disk is no memory
        limit = (put + fetched) / speed
        result.at_most("time in the store / (bytes moved / memcpy)", in_store / limit, STORE_BAR)
    result.say(
        f"  {given.count:,} records sorted in {seconds:.2f} s, "
        f"{given.count / seconds / 1e6:.2f} M/s; "
        f"{got.duplicates} keys twice, checksum {got.checksum:016x}: "
        + ("valid" if result.right else "NOT what went in")
    )
    return files


def sort_in_chaos(job: Job, result: Result, plain: list[dict[str, Any]]) -> None:
    """The same sort while executors come, go, die and stop."""
    executor = job.executor
    assert isinstance(executor, PoolExecutor)
    chaos = Chaos(executor)
    phases = Result("chaos", result.options)
    sorting = sort(job, "chaos", phases, chaos)
    facts = chaos.facts() | {"done": chaos.done, "rerun": sorting.rerun()}
    executor.scale(result.options.workers)
    same = checked(sorting) == plain
    tasks = job.plan["maps"] + job.plan["partitions"]
    seconds = sum(phase.seconds for phase in phases.phases)
    result.facts["chaos"] = facts | {"same": same, "seconds": seconds, "over": chaos.is_over}
    result.right &= same and chaos.is_over and not facts["rerun"]
    result.say(f"  again, in {seconds:.2f} s, in chaos: {'; '.join(chaos.done)}")
    result.say(
        f"  {facts['deaths']} executors died in {tasks} tasks; committed tasks that were run "
        f"again: {facts['rerun']}; output files {'identical' if same else 'NOT the same'}"
    )


def parser() -> argparse.ArgumentParser:
    found = common("Sorts records of 100 bytes, as the sort benchmarks do.", dram="")
    found.add_argument("--size", default="4GB", help="of the input (default: 4GB)")
    found.add_argument(
        "--split", default="64MB", metavar="SIZE", help="of an input file (default: 64MB)"
    )
    found.add_argument("--skew", type=float, default=0.0, help="share of keys that begin alike")
    found.add_argument("--folder", help="for input and output (default: a temporary one)")
    found.add_argument("--input", help="a folder with the input, which is kept for the next run")
    found.add_argument(
        "--chaos", action="store_true", help="once more while the pool is scaled, hit and paused"
    )
    found.add_argument(
        "--linger", type=float, default=0.0, metavar="S", help="that a task takes longer in chaos"
    )
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for name in ("size", "split"):
        if parse_size(getattr(options, name)) < RECORD_BYTES:
            parser().error(f"--{name}: a record has {RECORD_BYTES} bytes")
    if options.chaos:
        options.engine, options.speculate = "pool", options.speculate or SPECULATE_SECONDS
    result = Result("sort", options)
    with working_folder(options.folder) as folder:
        plan = make_plan(options, folder)
        # a quarter more than there is: whole granules, extents that are being given back
        sorts = 2 if options.chaos else 1
        options.dram = options.dram or str(sorts * plan["records"] * RECORD_BYTES * 5 // 4 + MORE)
        speed = memcpy_speed()
        with opened_job(options, plan) as job:
            given = made_input(job)
            result.say(
                f"sort of {given.count:,} records by {options.workers} workers ({options.engine}): "
                f"{plan['maps']} maps, {plan['partitions']} partitions"
            )
            sorting = sort(job, "plain", result)
            files = judge(sorting, result, given, (speed + memcpy_speed()) / 2)
            if options.chaos:
                sort_in_chaos(job, result, files)
    return result.end()


if __name__ == "__main__":  # by its name, so that other processes find the tasks
    from tests.bench.sort import main as named

    raise SystemExit(named())
