"""The interface of `crailpy.executors()` over Dask, Ray and Lithops: the same job runs on each."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import pytest

from crailpy.client import plugins
from crailpy.client.compute.executors import TaskLostError
from crailpy.errors import ClosedError, InvalidArgumentError

from .. import chores
from ..bench.runner import exported
from .kit import until

PATIENCE_S = 60


def needs(engine: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(engine) is None
    return pytest.mark.skipif(absent, reason=f"{engine} is not installed")


UNTIDY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Lithops leaves files open."""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of a Dask cluster of two processes."""
    import dask
    import distributed

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(
    params=[
        "pool",
        pytest.param("dask", marks=needs("distributed")),
        pytest.param("ray", marks=needs("ray")),
        pytest.param("lithops", marks=[needs("lithops"), UNTIDY]),
    ]
)
def engine(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """The executor of every engine that is here."""
    options: dict[str, Any] = {}
    if request.param == "pool":
        request.getfixturevalue("pool")
        options = {"name": "tests"}
    elif request.param == "dask":
        options = {"client": request.getfixturevalue("client")}
    elif request.param == "lithops":
        options = {"backend": "localhost", "storage": "localhost", "log_level": "ERROR"}
    with exported(), plugins.executors(request.param, **options) as found:
        yield found


def test_every_engine_has_the_same_interface(engine, tmp_path):
    assert isinstance(engine, Executor)
    assert engine.submit(chores.add, 3, b=4).result(PATIENCE_S) == 7
    assert list(engine.map(chores.add, range(6), range(6))) == [0, 2, 4, 6, 8, 10]
    assert list(engine.map(chores.add, range(6), chunksize=4)) == list(range(6))
    equal = [engine.submit(chores.work, str(tmp_path), 1, 0) for _ in range(3)]
    assert [f.result(PATIENCE_S) for f in equal] == [1, 1, 1]
    assert len(chores.noted(tmp_path, 1)) == 3, "equal calls are different tasks"
    future = engine.submit(chores.fail, "a word")
    assert isinstance(future.exception(PATIENCE_S), KeyError)
    done, rest = concurrent.futures.wait([*equal, future], PATIENCE_S)
    assert (len(done), len(rest)) == (4, 0)
    engine.shutdown()
    with pytest.raises((ClosedError, RuntimeError)):
        engine.submit(chores.add, 1)


def test_a_timeout_of_map_cancels_the_rest(engine, tmp_path):
    results = engine.map(chores.hold, [str(tmp_path)] * 6, range(6), timeout=0.2)
    with pytest.raises(TimeoutError):
        list(results)
    (tmp_path / "go").touch()
    engine.shutdown(cancel_futures=True)


def test_no_such_engine():
    with pytest.raises(InvalidArgumentError, match="pool, dask, ray, lithops"):
        plugins.executors("abacus")


@needs("distributed")
def test_a_task_that_the_engine_does_not_take_is_not_awaited(client, tmp_path):
    import distributed

    pool = plugins.executors_on_dask(distributed.Client(client.cluster))
    pool._client.close()
    with pytest.raises(Exception, match="closed"):
        pool.submit(chores.add, 1)
    ends = threading.Thread(target=pool.shutdown, daemon=True)
    ends.start()
    ends.join(20)
    assert not ends.is_alive()


@needs("distributed")
def test_of_calls_that_fail_to_start_together_none_is_awaited(client, tmp_path):
    def arguments():
        yield str(tmp_path)
        yield str(tmp_path)
        raise KeyError("no more")

    with plugins.executors_on_dask(client) as pool:
        with pytest.raises(KeyError):
            pool.map(chores.hold, arguments(), range(2))
        assert not pool._futures
        (tmp_path / "go").touch()  # Dask ends nothing that has begun


@needs("distributed")
def test_the_engine_keeps_no_result_that_was_taken(client):
    before = set(client.futures)  # the tracebacks of what failed keep theirs
    with plugins.executors_on_dask(client) as pool:
        future = pool.submit(bytes, 1000)
        assert future.result(PATIENCE_S) == bytes(1000)
        until(lambda: set(client.futures) <= before)


@needs("distributed")
def test_dask_scales_and_says_what_killed_a_task(client):
    with plugins.executors_on_dask(client) as pool:
        pool.scale(3)
        until(lambda: len(client.scheduler_info()["workers"]) == 3)
        with pytest.raises(TaskLostError):
            pool.submit(chores.leave, 1).result(PATIENCE_S)
        assert pool.submit(chores.add, 1, 1).result(PATIENCE_S) == 2
