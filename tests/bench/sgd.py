"""Logistic regression and k-means whose whole state lies in the store (`learning.py`):

    python -m tests.bench.sgd --workers 2

Logistic regression keeps its weights in a *model*: in each step every shard's task pulls them and
pushes its share of the gradient, the driver steps when all are there. With `--staleness S` nobody
waits for that: workers push their own steps, and pull weights that lack at most the last S steps
of the others. K-means hands its centres out by *broadcast* and adds up by *reduce*. Half way the
workers become twice as many; who joins finds everything in the store. The results are those of the
same steps in plain NumPy in one process.

In the end two workers share a large model: each computes half a second, all their gradients are
reduced, the sum is broadcast.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crailpy.client import compute
from crailpy.units import parse_size

from . import learning
from .job import Job, Phase, Result, Task, clock, common, count, opened_job
from .learning import RATE, Shard

KINDS = ("dense", "sparse")
SAME = 1e-9  # relative: sums are added up in another order
STALE_LOSS = 1.05  # of the loss without staleness
LARGE_WORKERS = 2
LARGE_RATE = 0.1
LARGE_BAR = 0.25


# ---- what tasks share ---------------------------------------------------------------------------


def load(store: Any, base: str, kind: str, number: int) -> Shard:
    """A shard, whose arrays lie in the store's memory."""
    return learning.unpacked(store.get_object(f"{base}/data/{kind}/{number:04}"))


shard_of = functools.lru_cache(maxsize=64)(load)


@functools.lru_cache(maxsize=8)
def model_of(store: Any, path: str) -> Any:
    """A model keeps what it has pulled, so each process has one."""
    return compute.model(store, path)


def model_path(base: str, method: str, kind: str) -> str:
    return f"{base}/models/{method}.{kind}"


def make_shard(task: Task) -> None:
    kind = task.stage.split(".")[1]
    made = learning.make(task.plan["seed"], kind, task.number, task.plan["examples"])
    task.store.put_object(f"{task.base}/data/{kind}/{task.number:04}", learning.packed(made))


def shard(task: Task, kind: str, number: int) -> Shard:
    with task.clock("input"):
        return shard_of(task.store, task.base, kind, number)


# ---- logistic regression ------------------------------------------------------------------------


def logistic_step(task: Task) -> None:
    """One shard's share of the gradient."""
    _, kind, step = task.stage.split(".")
    shards = task.plan["shards"]
    part = shard(task, kind, task.number)
    with task.clock("shuffle"):
        model = model_of(task.store, model_path(task.base, "logistic", kind))
        weights = model.pull(["weights"], min_version=version_of(int(step), shards))["weights"]
    with task.clock("compute"):
        slope, loss = learning.gradient(part, weights, shards * task.plan["examples"])
    with task.clock("shuffle"):
        push(task, model, {"slope": slope, "loss": np.array([loss])}, int(step))


def push(task: Task, model: Any, updates: dict[str, Any], step: int) -> None:
    """Once, however often the task is tried."""
    model.push(updates, op="add", worker=str(task.number), step=step + 1)


def version_of(step: int, shards: int) -> int:
    """Of the model before a step: it was made by one push, and in each step every shard pushes, and
    then the driver."""
    return 1 + step * (shards + 1)


def logistic(job: Job, kind: str, width: int, result: Result) -> tuple[NDArray[Any], list[float]]:
    """The weights and the losses before each step, as `learning.fit_logistic`."""
    shards, steps = job.plan["shards"], job.plan["steps"]
    model = compute.model(job.store, model_path(job.base, "logistic", kind))
    weights = np.zeros(width)
    nothing = {"slope": np.zeros_like(weights), "loss": np.zeros(1)}
    model.push({"weights": weights} | nothing, op="set")
    losses = []
    for step in range(steps):
        join_at_half(job, step)
        result.phases.append(job.stage(f"logistic.{kind}.{step}", logistic_step, shards))
        state = model.pull(min_version=version_of(step, shards) + shards)
        losses.append(float(state["loss"][0]))
        weights = learning.step(weights, state["slope"], RATE[kind])
        model.push({"weights": weights} | nothing, op="set")
    return weights, losses


def stale_worker(task: Task) -> None:
    """All steps of one worker, over its shards: each adds its own step to the weights."""
    kind, plan = task.stage.split(".")[1], task.plan
    mine = range(task.number, plan["shards"], plan["workers"])
    parts = [shard(task, kind, number) for number in mine]
    model = model_of(task.store, model_path(task.base, "stale", kind))
    spare = []
    for step in range(plan["steps"]):
        bound = step - plan["staleness"]
        with task.clock("shuffle"):
            if bound > 0:  # so many steps of all workers must be in it
                state = model.pull(["weights"], min_step=bound, workers=plan["workers"])
                spare.append(min(model.steps.values()) - bound)
            else:
                state = model.pull(["weights"])
        with task.clock("compute"):
            way = stale_way(parts, state["weights"], plan, RATE[kind])
        with task.clock("shuffle"):
            push(task, model, {"weights": way}, step)
    task.facts["spare"] = spare


def stale_way(
    parts: list[Shard], weights: NDArray[Any], plan: dict[str, Any], rate: float
) -> NDArray[Any]:
    """What a worker adds to the weights in a step: its share of what all together would add."""
    examples = plan["shards"] * plan["examples"]
    slope = sum(learning.gradient(part, weights, examples)[0] for part in parts)
    share = weights * (len(parts) / plan["shards"])
    return learning.step(share, slope, rate) - share


def stale(job: Job, kind: str, width: int, result: Result) -> NDArray[Any]:
    """The weights, when every worker has done all its steps at its own pace."""
    workers, steps = job.plan["workers"], job.plan["steps"]
    model = compute.model(job.store, model_path(job.base, "stale", kind))
    model.push({"weights": np.zeros(width)}, op="set")
    job.scale(workers)
    result.phases.append(job.stage(f"stale.{kind}", stale_worker, workers))
    weights: NDArray[Any] = model.pull(min_step=steps, workers=workers)["weights"]
    return weights


# ---- k-means ------------------------------------------------------------------------------------


def centres_path(base: str, kind: str, step: int) -> str:
    return f"{base}/centres/{kind}/{step}"


def hand_out(store: Any, path: str, value: Any) -> None:
    """Broadcasts a value; whoever has the path finds its handle."""
    store.put_object(f"{path}.handle", compute.broadcast(store, path, value))


def handed_out(store: Any, path: str) -> Any:
    return store.get_object(f"{path}.handle").value


def kmeans_step(task: Task) -> None:
    """One worker's shards: the task's number is its rank among so many as the stage says."""
    _, kind, step, workers = task.stage.split(".")
    with task.clock("shuffle"):
        centres = handed_out(task.store, centres_path(task.base, kind, int(step)))
    mine = range(task.number, task.plan["shards"], int(workers))
    parts = [shard(task, kind, number) for number in mine]
    with task.clock("compute"):
        sums = sum(learning.cluster_sums(part, centres) for part in parts)
    with task.clock("shuffle"):
        path = f"{task.base}/sums/{kind}/{step}"
        total = compute.reduce(task.store, path, sums, int(workers), rank=task.number)
    if task.number == 0:
        with task.clock("compute"):
            centres = learning.next_centres(total, centres)
        task.facts["loss"] = float(total[-1].sum())
        with task.clock("shuffle"):
            hand_out(task.store, centres_path(task.base, kind, int(step) + 1), centres)


def kmeans(
    job: Job, kind: str, first: NDArray[Any], result: Result
) -> tuple[NDArray[Any], list[float]]:
    """The centres and the losses before each step, as `learning.fit_clusters`."""
    hand_out(job.store, centres_path(job.base, kind, 0), first)
    losses = []
    for step in range(job.plan["steps"]):
        workers = min(join_at_half(job, step), job.plan["shards"])
        phase = job.stage(f"kmeans.{kind}.{step}.{workers}", kmeans_step, workers)
        losses.append(phase.reports[0]["loss"])
        result.phases.append(phase)
    return handed_out(job.store, centres_path(job.base, kind, job.plan["steps"])), losses


def join_at_half(job: Job, step: int) -> int:
    """Twice as many workers from the middle step on; how many there are."""
    workers: int = job.plan["workers"]
    late = step >= job.plan["steps"] // 2
    if step in (0, job.plan["steps"] // 2):
        job.scale(2 * workers if late else workers)
    return 2 * workers if late else workers


# ---- a large model ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def gradient_memory(size: int) -> NDArray[np.float32]:
    return np.zeros(size, np.float32)


def large_step(task: Task) -> None:
    """Computes for a while on the whole model; the gradient of a worker is its rank + 1 times the
    model. Rank 0 hands out the next one."""
    step = int(task.stage.split(".")[1])
    with task.clock("shuffle"):
        weights = handed_out(task.store, f"{task.base}/large/{step}")
    gradient = gradient_memory(len(weights))
    with task.clock("compute"):
        until = clock() + task.plan["compute"]
        while True:
            np.multiply(weights, np.float32(task.number + 1), out=gradient)
            if clock() >= until:
                break
    with task.clock("shuffle"):
        path = f"{task.base}/gradients"
        compute.reduce(
            task.store, path, gradient, LARGE_WORKERS, rank=task.number, round=step, out=gradient
        )
    if task.number == 0:
        with task.clock("compute"):
            gradient *= np.float32(-LARGE_RATE)
            gradient += weights
        with task.clock("shuffle"):
            hand_out(task.store, f"{task.base}/large/{step + 1}", gradient)


def large(job: Job, result: Result) -> None:
    """Prints which part of a step is not computing."""
    steps, size = job.plan["large_steps"], job.plan["model"] // 4
    hand_out(job.store, f"{job.base}/large/0", np.ones(size, np.float32))
    job.scale(LARGE_WORKERS)
    shares, walls = [], []
    for step in range(steps):
        phase = job.stage(f"large.{step}", large_step, LARGE_WORKERS)
        job.store.delete(f"{job.base}/large/{step}")
        computing = max(report["seconds"]["compute"] for report in phase.reports)
        shares.append(1 - computing / phase.seconds)
        walls.append(phase.seconds)
        result.phases.append(phase)
    found = handed_out(job.store, f"{job.base}/large/{steps}")
    factor = 1 - LARGE_RATE * sum(range(1, LARGE_WORKERS + 1))
    result.right &= bool(np.allclose(found, factor**steps, rtol=1e-5))
    share = statistics.median(shares)
    result.facts |= {"large_share": share, "large_seconds": statistics.median(walls)}
    result.say(
        f"  a model of {job.plan['model'] / 1e6:.0f} MB: {statistics.median(walls):.3f} s a step, "
        f"of which each of {LARGE_WORKERS} workers computes {job.plan['compute']:g} s"
    )
    if job.plan["model"] >= 50_000_000 and job.plan["compute"] >= 0.5:  # else it says nothing
        result.at_most("share of broadcast, reduce and all else", share, LARGE_BAR)


# ---- the job ------------------------------------------------------------------------------------


def same(ours: tuple[NDArray[Any], list[float]], plain: tuple[NDArray[Any], list[float]]) -> bool:
    """Up to what another order of adding up makes of it."""
    scale = np.abs(plain[0]).max()
    return bool(
        np.allclose(ours[0], plain[0], rtol=SAME, atol=SAME * scale)
        and np.allclose(ours[1], plain[1], rtol=SAME)
    )


def say_steps(
    result: Result, what: str, phases: list[Phase], losses: list[float], ok: bool
) -> None:
    half = len(phases) // 2
    few, more = (
        statistics.median(p.seconds for p in part) for part in (phases[:half], phases[half:])
    )
    in_store = sum(p.shuffle + p.input for p in phases)
    share = in_store / (in_store + sum(p.compute for p in phases))
    verdict = "as plain NumPy" if ok else "NOT as plain NumPy"
    result.say(
        f"  {what}: {len(phases)} steps, loss {losses[0]:.4g} to {losses[-1]:.4g}, {verdict}; "
        f"a step takes {few * 1e3:.1f} ms, with twice the workers {more * 1e3:.1f} ms; "
        f"of the tasks' time {share:.0%} is the store's"
    )
    result.right &= ok


def learn(job: Job, result: Result, kind: str) -> None:
    """All methods on one data set."""
    plan = job.plan
    job.stage(f"data.{kind}", make_shard, plan["shards"])
    shards = [load(job.store, job.base, kind, number) for number in range(plan["shards"])]
    plain = learning.fit_logistic(shards, plan["steps"], RATE[kind])
    before = len(result.phases)
    found = logistic(job, kind, shards[0].width, result)
    say_steps(result, f"logistic, {kind}", result.phases[before:], found[1], same(found, plain))
    if plan["staleness"]:
        judge_stale(job, result, kind, shards, plain[0])
    plain = learning.fit_clusters(shards, plan["steps"])
    before = len(result.phases)
    found = kmeans(job, kind, learning.first_centres(shards[0]), result)
    say_steps(result, f"k-means, {kind}", result.phases[before:], found[1], same(found, plain))


def judge_stale(
    job: Job, result: Result, kind: str, shards: list[Shard], plain: NDArray[Any]
) -> None:
    """Staleness may cost some loss; its bound may not be broken."""
    before = len(result.phases)
    weights = stale(job, kind, shards[0].width, result)
    reports = [report for phase in result.phases[before:] for report in phase.reports]
    spare = [steps for report in reports for steps in report["spare"]]
    examples = sum(len(part.labels) for part in shards)
    ours, theirs = (
        sum(learning.gradient(part, w, examples)[1] for part in shards) for w in (weights, plain)
    )
    ok = min(spare) >= 0 and ours <= STALE_LOSS * theirs
    result.right &= ok
    result.say(
        f"  logistic, {kind}, staleness {job.plan['staleness']}: loss {ours:.4g} ({theirs:.4g} "
        f"without); what was pulled was {min(spare)} to {max(spare)} steps newer than it had to be"
    )


def parser() -> argparse.ArgumentParser:
    found = common("Learning with all state in the store.", dram="2GiB")
    found.set_defaults(growth=2)
    found.add_argument("--shards", type=count(), default=8, metavar="N")
    found.add_argument("--examples", type=count(), default=5000, metavar="N", help="of a shard")
    found.add_argument("--steps", type=count(2), default=20, metavar="N")
    found.add_argument("--staleness", type=count(0), default=2, metavar="N", help="0: without that")
    found.add_argument("--model", default="100MB", metavar="SIZE", help="of the large model")
    found.add_argument("--compute", type=float, default=0.5, metavar="S", help="of a large step")
    found.add_argument("--large-steps", type=count(), default=6, metavar="N")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.staleness >= options.steps:
        parser().error("--staleness: nobody can be so many of these --steps ahead")
    result = Result("sgd", options)
    names = ("workers", "seed", "shards", "examples", "steps", "staleness", "compute")
    plan = {name: getattr(options, name) for name in (*names, "large_steps")}
    plan["model"] = parse_size(options.model)
    with opened_job(options, plan) as job:
        result.say(
            f"{options.shards} shards of {options.examples} examples by {options.workers} workers, "
            f"later {2 * options.workers} ({options.engine})"
        )
        began = time.perf_counter()
        for kind in KINDS:
            learn(job, result, kind)
        large(job, result)
        result.facts["seconds"] = time.perf_counter() - began
    return result.end()


if __name__ == "__main__":  # by its name, so that other processes find the tasks
    from tests.bench.sgd import main as named

    raise SystemExit(named())
