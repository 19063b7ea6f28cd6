"""The jobs, in small: on processes of their own, on the machine's pool, and on Dask."""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import crailpy
from crailpy.client.compute.executors import frames
from crailpy.client.compute.executors.command import ask

from ..integration.kit import until
from ..pools import runtime as runtime  # a fixture
from . import job, runner, sgd, sort, sql

Run = Callable[..., dict[str, Any]]
SORT = ("--size", "10MB", "--split", "2MB")
SQL = ("--stages", "7", "--maps", "3", "--reducers", "4", "--rows", "200")
SGD = ("--shards", "4", "--examples", "200", "--steps", "3", "--staleness", "1")
SGD += ("--model", "4MB", "--compute", "0.02", "--large-steps", "2")


@pytest.fixture
def run(cluster: crailpy.LocalCluster, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a job against the tests' store; its facts."""

    def run(module: ModuleType, *arguments: str) -> dict[str, Any]:
        code = module.main([*arguments, "--address", cluster.address, "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["right"]
        assert code == 0
        return found

    return run


@contextlib.contextmanager
def nothing_left(cluster: crailpy.LocalCluster) -> Iterator[None]:
    """After the block no more nodes are there, and no more granules in use, than before."""

    def held() -> list[int]:
        facts = store.status()["namenode"]
        return [facts["nodes"], facts["granules_total"] - facts["granules_free"]]

    with cluster.connect() as store:
        for path in ("/jobs", "/sessions"):  # who comes first makes them, and leaves them
            store.mkdir(path, exist_ok=True)
        before = held()
        yield
        until(lambda: all(map(operator.le, held(), before)))


def test_sort_sorts_what_fits_and_keys_that_are_alike(
    cluster: crailpy.LocalCluster, run: Run
) -> None:
    with nothing_left(cluster):
        found = run(sort, *SORT, "--skew", "0.5")
    assert found["facts"]["output"]["count"] == 100_000
    assert found["facts"]["maps"] == found["facts"]["partitions"] == 5
    assert found["facts"]["put_bytes"] == found["facts"]["get_bytes"] == 10_000_000
    assert found["facts"]["places"]["dram"] >= 10_000_000
    assert [phase["name"] for phase in found["phases"]] == ["sample", "map", "reduce"]
    assert all(seconds > 0 for seconds in found["split"].values())


def test_sort_goes_on_where_memory_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--size", "40MB", "--split", "4MB", "--dram", "16MiB", "--file", "64MiB")
    assert sort.main([*size, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    places = found["facts"]["places"]
    assert 8 << 20 < places["dram"] <= 16 << 20
    assert places["dram"] + places["file"] >= 40_000_000
    assert not found["bars"]  # a disk is not held against memcpy


def test_sort_tells_when_its_output_is_not_its_input(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "input").mkdir()
    run(sort, *SORT, "--input", str(tmp_path / "input"))
    note = tmp_path / "input" / "input.json"
    known = json.loads(note.read_text())
    known["summary"]["checksum"] ^= 1
    note.write_text(json.dumps(known))
    with pytest.raises(AssertionError, match="assert False"):
        run(sort, *SORT, "--input", str(tmp_path / "input"))


def test_sql_answers_as_sqlite_and_a_stage_costs_two_requests_a_task(
    cluster: crailpy.LocalCluster, run: Run
) -> None:
    with nothing_left(cluster):
        found = run(sql, *SQL)
    assert found["facts"]["stages"] == 7
    # get and commit of a map task, column and put of a reduce task; the few that processes make
    # when they begin
    assert 2 * (3 + 4) <= found["facts"]["requests_per_stage"] <= 2 * (3 + 4) + 3
    assert found["facts"]["round_trip_seconds"] > 0


def test_sgd_learns_what_plain_numpy_learns(cluster: crailpy.LocalCluster, run: Run) -> None:
    with nothing_left(cluster):
        found = run(sgd, *SGD)
    assert 0 < found["facts"]["large_share"] < 1


@contextlib.contextmanager
def stopped_pool() -> Iterator[None]:
    """Afterwards the pool ends: its executors keep their connections for the next job."""
    yield
    ask("default", frames.STOP)


def test_sort_is_the_same_while_executors_come_go_die_and_stop(
    cluster: crailpy.LocalCluster, run: Run, runtime: Path
) -> None:
    chaos = ("--chaos", "--linger", "0.05", "--speculate", "8")  # longer than a slow task
    with nothing_left(cluster), stopped_pool():
        found = run(sort, *SORT, "--split", "500KB", *chaos)
    chaos = found["facts"]["chaos"]
    assert chaos["over"]
    assert len(chaos["done"]) == 5
    assert chaos["same"]
    assert chaos["rerun"] == 0
    assert chaos["deaths"] >= 2


def test_the_others_run_unchanged_on_the_pool(
    cluster: crailpy.LocalCluster, run: Run, runtime: Path
) -> None:
    with nothing_left(cluster), stopped_pool():
        assert run(sql, *SQL, "--engine", "pool")["facts"]["stages"] == 7
        assert run(sgd, *SGD, "--engine", "pool")["facts"]["large_share"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what others warn of
def test_all_run_unchanged_on_dask(
    cluster: crailpy.LocalCluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    with nothing_left(cluster), job.dask(2) as client:
        monkeypatch.setattr(job, "dask", lambda workers: contextlib.nullcontext(client))
        assert run(sort, *SORT, "--engine", "dask")["facts"]["output"]["count"] == 100_000
        assert run(sql, *SQL, "--engine", "dask")["facts"]["stages"] == 7
        assert run(sgd, *SGD, "--engine", "dask")["facts"]["large_share"] > 0


# ---- what jobs are made of ----------------------------------------------------------------------


def nothing(task: job.Task) -> None:
    """A task."""


def watched(task: job.Task) -> None:
    """A task that commits, and dies the first time before anybody hears of it."""
    output = f"{task.base}/output/{task.number}"
    if task.again(output):
        return
    task.store.put(output, b"")
    if task.attempt == 0:
        import os

        os._exit(1)


def test_a_task_is_refused_more_than_a_name() -> None:
    with pytest.raises(ValueError, match="bytes of arguments"):
        job.run(nothing, "crail://127.0.0.1:1", "/" + "x" * job.PICKLE_BYTES_MAX, "stage", 0)


def test_tasks_that_died_are_tried_again_and_what_was_committed_is_counted(
    cluster: crailpy.LocalCluster,
) -> None:
    with cluster.connect() as store, runner.Local(1) as executor, store.job("jobs") as base:
        made = job.Job(store, cluster.address, executor, base.path, {"watched": True})
        phase = made.stage("watched", watched, 2)
        assert [report["attempt"] for report in phase.reports] == [1, 1]
        assert (made.repeated, made.rerun()) == (2, 2)


def test_a_task_that_dies_each_time_is_given_up(cluster: crailpy.LocalCluster) -> None:
    with cluster.connect() as store, runner.Local(1) as executor, store.job("jobs") as base:
        made = job.Job(store, cluster.address, executor, base.path, {})
        with pytest.raises(BrokenExecutor):
            made.stage("fatal", fatal, 1)
        assert made.repeated == job.ATTEMPTS_MAX - 1


def fatal(task: job.Task) -> None:
    import os

    os._exit(1)
