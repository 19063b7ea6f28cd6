"""A star join over shuffled facts with broadcast dimensions, in many small stages (`retail.py`):

    python -m tests.bench.sql --stages 50 --maps 16 --reducers 16

A query is seven stages. Six are of one fact table each: a map task joins its split with the
dimensions and parts what is left by outlet, a reduce task sums up its outlets. In the seventh, map
tasks join the sales with the returns and part them by channel, reduce tasks roll them up. Facts,
dimensions, groups and answers all lie in the store, so that all but the computing is time in the
store. Query after query asks for another window of days, until there were as many stages as asked
for.

With tiny partitions a stage is nothing but latency: its time in the store is held against the
requests that it made (the namenode counts them), each of which costs at least a round trip. That is
measured by the tasks themselves, one raw round trip to a process that sleeps meanwhile beside each
of their own requests: on a machine whose cores are all busy it takes many times what it takes on an
idle one. What the tasks' reports cost is in neither.

Every answer is compared with that of sqlite3, and of DuckDB where it is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sqlite3
import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crailpy.client import compute

from . import retail
from .job import OURS, Job, Result, Task, common, count, opened_job, round_trips_alone
from .retail import ANSWER, CHANNELS, KINDS, MOVED

STAGES_OF_A_QUERY = len(CHANNELS) * len(KINDS) + 1
STORE_BAR = 2.0


# ---- tasks --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def dimensions(address: str, base: str, store: Any) -> retail.Columns:
    """The dimension tables, which every process reads once."""
    found: retail.Columns = store.get_object(f"{base}/dimensions").value
    return found


def shuffle_of(task: Task, name: str) -> Any:
    path = f"{task.base}/shuffle/{name}"
    return compute.shuffle(task.store, path, partitions=task.plan["reducers"])


def make_facts(task: Task) -> None:
    for channel in CHANNELS:
        for kind in KINDS:
            made = retail.facts(task.plan["seed"], channel, kind, task.number, task.plan["rows"])
            task.store.put(f"{task.base}/facts/{channel}.{kind}/{task.number:04}", made.view("u1"))


def map_facts(task: Task) -> None:
    query, channel, kind, _ = task.stage.split(".")
    with task.clock("input"):
        dims = dimensions(task.address, task.base, task.store)
        view = task.store.get_view(f"{task.base}/facts/{channel}.{kind}/{task.number:04}")
    with task.clock("compute"):
        table = np.frombuffer(view, retail.FACT)
        rows = retail.selected(dims, channel, int(query), table)
        parts = retail.parted(rows, rows["outlet"], task.plan["reducers"])
    write(task, f"{query}.{channel}.{kind}", parts)


def reduce_facts(task: Task) -> None:
    query, channel, kind, _ = task.stage.split(".")
    rows = read(task, f"{query}.{channel}.{kind}", MOVED)
    with task.clock("compute"):
        found = retail.grouped(rows)
    task.probe()
    with task.clock("output"):
        task.store.put(group_key(task, query, channel, kind, task.number), found.view("u1"))


def map_join(task: Task) -> None:
    """Joins the groups of the partitions `number`, `number + maps`, ..."""
    query = task.stage.split(".")[0]
    mine = range(task.number, task.plan["reducers"], task.plan["maps"])
    keys = [
        group_key(task, query, channel, kind, partition)
        for partition in mine
        for channel in CHANNELS
        for kind in KINDS
    ]
    with task.clock("input"):
        values = iter(task.store.get_many(keys))
    with task.clock("compute"):
        rows = [np.empty(0, ANSWER)]
        for _ in mine:
            for channel in range(len(CHANNELS)):
                sales, returns = (np.frombuffer(next(values), MOVED) for _ in KINDS)
                rows.append(retail.joined(channel, sales, returns))
        found = np.concatenate(rows)
        parts = retail.parted(found, found["channel"], task.plan["reducers"])
    write(task, f"{query}.all", parts)


def reduce_rollup(task: Task) -> None:
    query = task.stage.split(".")[0]
    rows = read(task, f"{query}.all", ANSWER)
    with task.clock("compute"):
        found = retail.rolled_up(rows)
    task.probe()
    with task.clock("output"):
        task.store.put(f"{task.base}/answers/{query}/{task.number:04}", found.view("u1"))


def group_key(task: Task, query: str, channel: str, kind: str, partition: int) -> str:
    return f"{task.base}/groups/{query}.{channel}.{kind}/{partition:04}"


def write(task: Task, name: str, parts: list[NDArray[np.void]]) -> None:
    task.probe()
    with task.clock("shuffle"), shuffle_of(task, name).writer(task.number, task.attempt) as writer:
        for partition, part in enumerate(parts):
            if len(part):
                writer.write(partition, part)
                task.counts["put_bytes"] += part.nbytes
        writer.commit()


def read(task: Task, name: str, dtype: np.dtype[np.void]) -> NDArray[np.void]:
    with task.clock("shuffle"):
        views = list(shuffle_of(task, name).reader(task.number, maps=task.plan["maps"]))
    with task.clock("compute"):
        parts = [np.frombuffer(view, dtype) for view in views]
        rows = np.concatenate([np.empty(0, dtype), *parts])
    task.counts["get_bytes"] += rows.nbytes
    return rows


# ---- the job ------------------------------------------------------------------------------------


def ask(job: Job, query: int, result: Result) -> None:
    """One query, stage by stage."""
    maps, reducers = job.plan["maps"], job.plan["reducers"]
    for channel in CHANNELS:
        for kind in KINDS:
            name = f"{query}.{channel}.{kind}"
            result.phases += [
                job.stage(f"{name}.map", map_facts, maps, reports=False),
                job.stage(f"{name}.reduce", reduce_facts, reducers, reports=False),
            ]
    result.phases += [
        job.stage(f"{query}.all.map", map_join, maps, reports=False),
        job.stage(f"{query}.all.reduce", reduce_rollup, reducers, reports=False),
    ]


def answered(job: Job, query: int) -> list[retail.Row]:
    keys = [f"{job.base}/answers/{query}/{i:04}" for i in range(job.plan["reducers"])]
    parts = [np.frombuffer(value, ANSWER) for value in job.store.get_many(keys)]
    return retail.complete(np.concatenate(parts))


def databases() -> dict[str, Any]:
    """What the answers are compared with."""
    found: dict[str, Any] = {"sqlite3": sqlite3.connect(":memory:")}
    if importlib.util.find_spec("duckdb"):
        import duckdb

        found["duckdb"] = duckdb.connect()
    return found


def requests(job: Job) -> int:
    """How many the namenode has served, this question not counted."""
    count: int = job.store.status()["namenode"]["requests"]
    return count


def ask_all(job: Job, result: Result, queries: int) -> None:
    """The queries one after the other; what they cost goes into the result."""
    counted = requests(job)
    for query in range(queries):
        ask(job, query, result)
    asked = requests(job) - counted
    for phase in result.phases:
        job.collect(phase)
    reports = [report for phase in result.phases for report in phase.reports]
    trips = [trip for report in reports for trip in report["trips"]]
    result.facts |= {
        "queries": queries,
        "stages": queries * STAGES_OF_A_QUERY,
        "round_trip_seconds": statistics.mean(trips),
        "round_trip_median_seconds": statistics.median(trips),
        "requests": asked - len(reports),
    }


def judge(job: Job, result: Result) -> None:
    facts, plan = result.facts, job.plan
    stages = facts["stages"]
    in_store = sum(p.input + p.shuffle + p.output for p in result.phases) / stages
    wall = sum(phase.seconds for phase in result.phases) / stages
    requests, trip = facts["requests"] / stages, facts["round_trip_seconds"]
    facts |= {"store_seconds_per_stage": in_store, "requests_per_stage": requests}
    facts |= {"seconds_per_stage": wall}
    for name, database in databases().items():
        retail.load(database, plan["seed"], plan["maps"], plan["rows"])
        answers = [retail.answer(database, query) for query in range(facts["queries"])]
        same = [answered(job, query) == answer for query, answer in enumerate(answers)]
        result.right &= all(same)
        rows = sum(map(len, answers))
        result.say(f"  {sum(same)} of {len(same)} answers ({rows} rows) are those of {name}")
        database.close()
    result.say(
        f"  a stage takes {wall * 1e3:.2f} ms, its tasks {in_store * 1e3:.2f} ms in the store, "
        f"in {requests:.1f} requests"
    )
    result.say(
        f"  a raw round trip beside them takes {trip * 1e6:.1f} us "
        f"(median {facts['round_trip_median_seconds'] * 1e6:.1f} us)"
    )
    alone = facts["round_trips_alone_seconds"]
    usual = statistics.median(alone)
    result.say(
        f"  on their own, many at once, it takes {usual * 1e6:.1f} us: the median of {len(alone)} "
        f"fresh pairs of processes ({alone[0] * 1e6:.1f} to {alone[-1] * 1e6:.1f} us)"
    )
    said = "time in the store / (requests x {})"
    result.at_most(said.format("a round trip beside them"), in_store / requests / trip, STORE_BAR)
    on_their_own = said.format("one on their own")
    if result.options.engine in OURS:
        result.at_most(on_their_own, in_store / requests / usual, STORE_BAR)
    else:
        ratio = in_store / requests / usual
        result.say(f"  {on_their_own}: {ratio:.3g} (no bar: the engine has the cores, too)")


def parser() -> argparse.ArgumentParser:
    found = common("A star join in many small stages.", dram="512MiB")
    found.add_argument(
        "--stages", type=count(), default=50, metavar="N", help="at least (default: 50)"
    )
    found.add_argument("--maps", type=count(), default=16, metavar="N")
    found.add_argument("--reducers", type=count(), default=16, metavar="N")
    found.add_argument("--rows", type=count(), default=400, metavar="N", help="sales in each split")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    result = Result("sql", options)
    queries = -(-options.stages // STAGES_OF_A_QUERY)
    plan = {name: getattr(options, name) for name in ("maps", "reducers", "rows", "seed")}
    result.facts["round_trips_alone_seconds"] = round_trips_alone()
    with opened_job(options, plan) as job:
        handle = compute.broadcast(job.store, f"{job.base}/tables", retail.dimensions(options.seed))
        job.store.put_object(f"{job.base}/dimensions", handle)
        job.stage("facts", make_facts, options.maps)
        result.say(
            f"{queries} queries of {STAGES_OF_A_QUERY} stages, {options.maps} x "
            f"{options.reducers} partitions, by {options.workers} workers ({options.engine})"
        )
        ask_all(job, result, queries)
        judge(job, result)
    return result.end()


if __name__ == "__main__":  # by its name, so that other processes find the tasks
    from tests.bench.sql import main as named

    raise SystemExit(named())
