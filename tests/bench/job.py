"""What the jobs of this folder share: tasks, stages of tasks, engines that run them, and what is
said of them in the end.

Between the driver and the processes that do the tasks nothing crosses but the function's name, an
address, a path and two numbers: `run` refuses to be called with more than 4 KiB of pickle. The plan
of a job, its data, its results and each task's report lie in the store, below the job's path:

    <base>/plan                     what all tasks have to know, JSON
    <base>/reports/<stage>/<number> seconds and counts of a task, JSON

A task's time is taken apart by what it is for: *input* and *output* (files, or what stands for
them), *compute*, and *shuffle*, which is all time in the store.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pickle
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import asdict, dataclass, field
from typing import Any

import crailpy
from crailpy.client import plugins
from crailpy.client.bench.machine import machine
from crailpy.client.bench.report import MIB, Bar, at_least, at_most
from crailpy.client.compute.executors import PoolExecutor, executors, tasks
from crailpy.client.probes import SMALL_BYTES, Echo, Memory
from crailpy.errors import ExistsError
from crailpy.units import parse_size

from . import runner

PICKLE_BYTES_MAX = 4096
TASK_SECONDS_MAX = 300.0
"""The driver gives up when no task was done for so long."""
ATTEMPTS_MAX = 4
KINDS = ("input", "compute", "shuffle", "output")

clock = time.perf_counter


# ---- in the processes that do the tasks ---------------------------------------------------------


_stores: dict[str, crailpy.Store] = {}


def connected(address: str) -> crailpy.Store:
    """This process's connection. Those to other stores end: a pool's processes do one job after the
    other, and would keep the memory of stores that are gone."""
    for other in _stores.keys() - {address}:
        _stores.pop(other).close()
    if address not in _stores:
        _stores[address] = crailpy.connect(address, timeout=60.0)
    return _stores[address]


@functools.cache
def echo(pid: int) -> Echo:
    """Of this process."""
    return Echo("unix")


@functools.lru_cache(maxsize=16)
def planned(address: str, base: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(connected(address).get(f"{base}/plan"))
    return found


class Task:
    """One attempt of one task, seen from inside."""

    def __init__(self, address: str, base: str, stage: str, number: int, attempt: int) -> None:
        self.store = connected(address)
        self.address = address
        self.base = base
        self.stage = stage
        self.number = number
        self.attempt = attempt
        self.plan = planned(address, base)
        self.began = clock()
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.counts: Counter[str] = Counter()
        self.facts: dict[str, Any] = {}

    @contextlib.contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        """The time of the block is for `kind`; blocks do not lie within each other."""
        begin = clock()
        try:
            yield
        finally:
            self.seconds[kind] += clock() - begin

    def probe(self) -> None:
        """One raw round trip to a process that waits for it, as a namenode does: under the same
        load, and after a pause, as the task's own requests are. Not in any of the kinds of time."""
        self.facts.setdefault("trips", []).append(round_trip(echo(os.getpid()), 1))

    def again(self, output: str) -> bool:
        """Is what this task is to commit there already? That is noted for `Job.rerun`."""
        if not self.plan.get("watched") or not self.store.exists(output):
            return False
        self.store.incr(f"{self.base}/rerun")
        return True

    def commits(self, output: str) -> None:
        """To be said before the task makes `output`, with which it is done. Who may be killed has
        reported before, as nobody will do the task again to report."""
        if self.plan.get("watched"):
            self.report()
        tasks.task().commits(self.store, output)

    def report(self) -> None:
        facts = {
            **self.facts,
            "seconds": self.seconds,
            "counts": self.counts,
            "wall": clock() - self.began,
            "pid": os.getpid(),
            "attempt": max(self.attempt, tasks.task().attempt),
        }
        key = f"{self.base}/reports/{self.stage}/{self.number:06}"
        with contextlib.suppress(ExistsError):  # another attempt was first, and did the work
            self.store.put(key, json.dumps(facts).encode(), if_absent=True)


def run(
    function: Callable[[Task], None],
    address: str,
    base: str,
    stage: str,
    number: int,
    attempt: int = 0,
) -> None:
    """Does a task. This is all that executors are ever asked to call."""
    words = pickle.dumps((function, address, base, stage, number, attempt))
    if len(words) > PICKLE_BYTES_MAX:
        raise ValueError(f"{len(words)} bytes of arguments: the store is for more than a name")
    task = Task(address, base, stage, number, attempt)
    function(task)
    task.report()


# ---- engines ------------------------------------------------------------------------------------


ENGINES = ("local", "pool", "dask", "ray", "lithops")
OURS = ("local", "pool")


@contextlib.contextmanager
def engine(options: argparse.Namespace) -> Iterator[Executor]:
    """The executor that the options name, with `workers` processes, or for each core one."""
    if options.engine == "local":
        with runner.Local(options.workers) as executor:
            yield executor
    elif options.engine == "pool":
        with pool(options) as executor:
            yield executor
    elif options.engine == "dask":
        with dask(options.workers) as client, plugins.executors("dask", client=client) as executor:
            yield executor
    elif options.engine == "ray":
        with (
            ray(options.growth * options.workers),
            plugins.executors("ray", num_cpus=1) as executor,
        ):
            yield executor
    else:
        with lithops() as executor:
            yield executor


@contextlib.contextmanager
def pool(options: argparse.Namespace) -> Iterator[PoolExecutor]:
    """The machine's pool, which has as many executors afterwards as it had before."""
    with executors(options.pool, attempts=ATTEMPTS_MAX, speculate=options.speculate) as executor:
        before = executor.status()["workers"]
        executor.scale(options.workers)
        try:
            yield executor
        finally:
            executor.scale(before)


@contextlib.contextmanager
def dask(workers: int) -> Iterator[Any]:
    """The client of a real cluster of so many processes."""
    import distributed

    with (
        runner.exported(),
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def ray(workers: int) -> Iterator[None]:
    """A Ray of this machine alone, with so many processes at once: it cannot get more."""
    import ray

    with runner.exported():
        ray.init(num_cpus=workers, include_dashboard=False)
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def lithops() -> Iterator[Executor]:
    """Of this machine alone, with a process for every core."""
    options = {"backend": "localhost", "storage": "localhost", "log_level": "ERROR"}
    with runner.exported(), plugins.executors("lithops", **options) as executor:
        yield executor


# ---- the driver's side --------------------------------------------------------------------------


@dataclass
class Phase:
    """A stage that was run: wall seconds, and sums over its tasks' reports."""

    name: str
    seconds: float
    tasks: int = 0
    input: float = 0.0
    compute: float = 0.0
    shuffle: float = 0.0
    output: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    reports: list[dict[str, Any]] = field(default_factory=list)

    def add(self, report: dict[str, Any]) -> None:
        for kind in KINDS:
            setattr(self, kind, getattr(self, kind) + report["seconds"][kind])
        self.counts.update(report["counts"])
        self.reports.append(report)

    def facts(self) -> dict[str, Any]:
        names = ("name", "seconds", "tasks", *KINDS)
        return {name: getattr(self, name) for name in names} | {"counts": dict(self.counts)}


class Job:
    """A job's directory in a store, and the executor that does its tasks.

    `watch(stage, done, tasks)`, if there is one, is called whenever a task was done."""

    def __init__(
        self,
        store: crailpy.Store,
        address: str,
        executor: Executor,
        base: str,
        plan: dict[str, Any],
    ) -> None:
        self.store = store
        self.address = address
        self.executor = executor
        self.base = base
        self.plan = plan
        self.repeated = 0
        self.watch: Callable[[str, int, int], None] | None = None
        store.put(f"{base}/plan", json.dumps(plan).encode())

    def part(self, name: str, plan: dict[str, Any]) -> Job:
        """Another directory in this one's, with a plan of its own."""
        return Job(self.store, self.address, self.executor, f"{self.base}/{name}", plan)

    def scale(self, workers: int) -> None:
        """So many processes from now on, where the engine can do that while a job runs."""
        scale = getattr(self.executor, "scale", None)
        if scale:
            scale(workers)

    def stage(
        self, name: str, function: Callable[[Task], None], tasks: int, *, reports: bool = True
    ) -> Phase:
        """Has all tasks of a stage done."""
        return self.begin(name, function, tasks).end(reports=reports)

    def begin(self, name: str, function: Callable[[Task], None], tasks: int) -> Stage:
        """Gives all tasks of a stage to the executor."""
        return Stage(self, name, function, tasks)

    def collect(self, phase: Phase) -> None:
        """Adds the reports of the tasks to their phase."""
        folder = f"{self.base}/reports/{phase.name}"
        keys = [f"{folder}/{number:06}" for number in range(phase.tasks)]
        for value in self.store.get_many(keys):
            phase.add(json.loads(value))

    def rerun(self) -> int:
        """How many tasks were begun although their output was committed."""
        return int(self.store.get(f"{self.base}/rerun", default=b"0"))


class Stage:
    """Tasks of one kind that are under way; one whose process died is tried again."""

    def __init__(self, job: Job, name: str, function: Callable[[Task], None], tasks: int) -> None:
        self._job = job
        self._function = function
        self._attempts = [0] * tasks
        self._doing: dict[Future[None], int] = {}
        self._began = clock()
        self.phase = Phase(name, 0.0, tasks)
        for number in range(tasks):
            self._submit(number)

    def _submit(self, number: int) -> None:
        job = self._job
        words = (job.address, job.base, self.phase.name, number, self._attempts[number])
        self._doing[job.executor.submit(run, self._function, *words)] = number

    def end(self, *, reports: bool = True) -> Phase:
        """Waits until all are done. Raises what a task raised, BrokenExecutor (it was tried often
        enough), TimeoutError (no task was done for long)."""
        job, phase, done = self._job, self.phase, 0
        while self._doing:
            ended, _ = wait(self._doing, timeout=TASK_SECONDS_MAX, return_when=FIRST_COMPLETED)
            if not ended:
                raise TimeoutError(f"no task of {phase.name} ended in {TASK_SECONDS_MAX:.0f} s")
            for future in ended:
                if self._is_done(future):
                    done += 1
                    if job.watch:
                        job.watch(phase.name, done, phase.tasks)
        phase.seconds = clock() - self._began
        if reports:
            job.collect(phase)
        return phase

    def _is_done(self, future: Future[None]) -> bool:
        """False: it has to be done again, and will be."""
        number = self._doing.pop(future)
        try:
            future.result()
        except BrokenExecutor:
            self._attempts[number] += 1
            if self._attempts[number] == ATTEMPTS_MAX:
                raise
            self._job.repeated += 1
            self._submit(number)
            return False
        return True


# ---- what the machine can do --------------------------------------------------------------------


def memcpy_speed(times: int = 8) -> float:
    """Bytes per second of memcpy in pieces of 64 MiB, the median."""
    size = 64 * MIB
    with Memory(8 * size) as memory:
        return size / (statistics.median(memory.copies(size, times)) / 1e9)


def round_trip(echo: Echo, times: int = 400) -> float:
    """Seconds of a raw round trip over a unix socket, the median."""
    return statistics.median(echo.round_trips(SMALL_BYTES, SMALL_BYTES, times)) / 1e9


def round_trips_alone(pairs: int = 9) -> list[float]:
    """Seconds of a raw round trip, the median of each of so many fresh pairs of processes, sorted.
    Where the scheduler puts the two decides: on one core, or on two of which one always wakes."""
    found = []
    for _ in range(pairs):
        with Echo("unix") as echo:
            found.append(round_trip(echo))
    return sorted(found)


# ---- the command line ---------------------------------------------------------------------------


def count(least: int = 1) -> Callable[[str], int]:
    """For argparse: a whole number that is not smaller. Raises ArgumentTypeError."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} on")
        return int(text)

    return parse


def common(what: str, dram: str, workers: int = 2) -> argparse.ArgumentParser:
    """The options of every job."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--workers", type=count(), default=workers, metavar="N", help="processes")
    parser.set_defaults(growth=1)  # so many times as many workers, at most, later on
    parser.add_argument("--engine", choices=ENGINES, default="local", help="who runs the tasks")
    parser.add_argument("--pool", default="default", metavar="NAME", help="of engine pool")
    parser.add_argument(
        "--speculate", type=float, metavar="S", help="pool: second attempt after so long"
    )
    parser.add_argument("--address", help="of a store that runs (default: one of this job's own)")
    parser.add_argument("--dram", default=dram, metavar="SIZE", help="memory of the own store")
    parser.add_argument("--file", metavar="SIZE", help="and a file tier of this size below it")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--json", action="store_true", help="print facts as JSON")
    return parser


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[tuple[crailpy.Store, str]]:
    """The store that the options name, or one that goes when the block ends; and its address."""
    with contextlib.ExitStack() as stack:
        address = options.address
        if not address:
            tiers = ("dram", "file") if options.file else ("dram",)
            cluster = crailpy.LocalCluster(
                dram=parse_size(options.dram), tiers=tiers, capacity=options.file or "1GiB"
            )
            address = stack.enter_context(cluster).address
        yield stack.enter_context(crailpy.connect(address, timeout=60.0)), address


@contextlib.contextmanager
def opened_job(
    options: argparse.Namespace,
    plan: dict[str, Any],
) -> Iterator[Job]:
    """A job in the store that the options name, on the engine that they name."""
    with contextlib.ExitStack() as stack:
        store, address = stack.enter_context(opened(options))
        executor = stack.enter_context(engine(options))
        path = stack.enter_context(store.job(f"bench-{os.getpid()}-{time.monotonic_ns()}")).path
        yield Job(store, address, executor, path, plan)


@dataclass
class Result:
    """What a job says in the end: lines for people, facts for JSON."""

    job: str
    options: argparse.Namespace
    right: bool = True
    phases: list[Phase] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)
        if not self.options.json:
            print(line, flush=True)

    def at_most(self, what: str, measured: float, limit: float) -> None:
        self._bar(at_most(what, measured, limit))

    def at_least(self, what: str, measured: float, limit: float) -> None:
        self._bar(at_least(what, measured, limit))

    def _bar(self, bar: Bar) -> None:
        self.bars.append(bar)
        verdict = "ok" if bar.ok else "MISS"
        self.say(f"  {bar.what}: {bar.measured:.3g} (bar {bar.bar}) {verdict}")

    def split(self) -> dict[str, float]:
        """Seconds of the tasks by kind."""
        return {
            "compute": sum(phase.compute for phase in self.phases),
            "shuffle": sum(phase.shuffle for phase in self.phases),
            "input+output": sum(phase.input + phase.output for phase in self.phases),
        }

    def say_phases(self) -> None:
        for phase in self.phases:
            self.say(
                f"  {phase.name:<10}{phase.seconds:7.2f} s  {phase.tasks:5} tasks: "
                f"compute {phase.compute:.2f} s, shuffle {phase.shuffle:.2f} s, "
                f"input {phase.input:.2f} s, output {phase.output:.2f} s"
            )
        split = self.split()
        total = sum(split.values()) or 1.0
        parts = ", ".join(f"{name} {value / total:.1%}" for name, value in split.items())
        self.say(f"  of the workers' time: {parts}")

    def as_json(self) -> str:
        options = {name: value for name, value in vars(self.options).items() if value is not None}
        document = {
            "schema": 1,
            "job": self.job,
            "crailpy": crailpy.__version__,
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "options": options,
            "machine": machine(),
            "right": self.right,
            "seconds": sum(phase.seconds for phase in self.phases),
            "phases": [phase.facts() for phase in self.phases],
            "split": self.split(),
            "facts": self.facts,
            "bars": [asdict(bar) for bar in self.bars],
        }
        return json.dumps(document, indent=1)

    def end(self) -> int:
        """Prints what is left to print. The exit code: 1 when the result is wrong."""
        if self.options.json:
            print(self.as_json())
        elif not self.right:
            print("THE RESULT IS WRONG", file=sys.stderr)
        return 0 if self.right else 1
