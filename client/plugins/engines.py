"""The executors of other engines."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeVar

from crailpy.errors import InvalidArgumentError

from ..compute.executors.failures import ShutdownError, TaskLostError
from ..compute.executors.mapping import map_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..compute.executors.mapping import Call, Out

T = TypeVar("T")

POLL_S = 0.1
"""Between two looks at what Lithops runs."""


def run_call(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """A task: its own keywords do not meet those of the engine."""
    return fn(*args, **kwargs)


def _nothing() -> None:
    pass


class EngineFuture(Future[T]):
    """A Future that also ends the engine's work, as far as it can, when it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.abandon: Callable[[], object] = _nothing
        self._turn = threading.RLock()  # callbacks run under it

    def cancel(self) -> bool:
        """True: nobody hears of the task any more. An engine may have begun it."""
        with self._turn:
            if self.done() or self.running():
                return self.cancelled()
            super().cancel()
            self.set_running_or_notify_cancel()
        self.abandon()
        return True

    def end(self, call: Callable[[], T]) -> None:
        """Takes what the call gives or raises, unless it was cancelled."""
        with self._turn:
            if self.cancelled():
                return
            self.set_running_or_notify_cancel()  # from here on it cannot be
        self.abandon = _nothing  # which has the engine keep the result for us
        try:
            value = call()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(value)


class EngineExecutor(Executor):
    """An executor whose tasks an engine runs. Engines say how one starts (`_start`), and how many
    run (`scale`)."""

    def __init__(self) -> None:
        self._futures: set[EngineFuture[Any]] = set()
        self._is_shut = False

    def _start(self, call: Call, future: EngineFuture[Any]) -> None:
        """Begins a task that ends the future."""
        raise NotImplementedError

    def scale(self, n: int) -> None:
        """Asks the engine for n workers."""
        raise NotImplementedError

    def _submit(self, calls: Iterable[Call], _: Out | None = None) -> list[Future[Any]]:
        if self._is_shut:
            raise ShutdownError()
        futures: list[Future[Any]] = []
        try:
            for call in calls:
                future = EngineFuture[Any]()
                self._start(call, future)
                futures.append(future)
                self._futures.add(future)
                future.add_done_callback(self._futures.discard)
        except BaseException:  # all of them, or none
            for started in futures:
                started.cancel()
            raise
        return futures

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Has `fn(*args, **kwargs)` run by a worker of the engine. Raises ShutdownError, and what
        the engine raises; TaskLostError comes out of the future when the workers that ran it
        died."""
        return self._submit([(fn, args, kwargs)])[0]

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """As that of crailpy.executors()."""
        return map_calls(self._submit, fn, iterables, timeout, chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more tasks; the engine stays as it is. `wait`: returns when all have ended."""
        from concurrent.futures import wait as wait_for

        self._is_shut = True
        if cancel_futures:
            for future in list(self._futures):
                future.cancel()
        if wait:
            wait_for(list(self._futures))


def executors(engine: str = "pool", **options: Any) -> Executor:
    """The executor of an engine: "pool" (crailpy.executors), "dask", "ray" or "lithops"; `options`
    are those of its function below. Raises InvalidArgumentError, ImportError."""
    if engine == "pool":
        from ..compute.executors import executors as on_pool

        made: Executor = on_pool(**options)
        return made
    makers: dict[str, Callable[..., Executor]] = {
        "dask": executors_on_dask,
        "ray": executors_on_ray,
        "lithops": executors_on_lithops,
    }
    if engine not in makers:
        raise InvalidArgumentError(f"engine {engine!r} is none of pool, {', '.join(makers)}")
    return makers[engine](**options)


# ---- Dask ---------------------------------------------------------------------------------------


def executors_on_dask(client: Any = None) -> EngineExecutor:
    """An executor over a `distributed.Client`; None: the current one. Raises ImportError;
    ValueError where there is no current one."""
    import distributed

    return _DaskExecutor(distributed.get_client() if client is None else client)


class _DaskExecutor(EngineExecutor):
    def __init__(self, client: Any) -> None:
        super().__init__()
        self._client = client

    def _start(self, call: Call, future: EngineFuture[Any]) -> None:
        # not pure: Dask would run equal calls once
        started = self._client.submit(run_call, *call, pure=False)
        future.abandon = started.cancel
        started.add_done_callback(lambda done: future.end(lambda: _dask_result(done)))

    def scale(self, n: int) -> None:
        """As the client's cluster scales. Raises InvalidArgumentError for one that cannot."""
        cluster = self._client.cluster
        if not hasattr(cluster, "scale"):
            raise InvalidArgumentError("the client was not made with a cluster that can scale")
        cluster.scale(n)


def _dask_result(done: Any) -> Any:
    from distributed import KilledWorker

    try:
        return done.result()
    except KilledWorker as error:
        raise TaskLostError(str(error)) from error


# ---- Ray ----------------------------------------------------------------------------------------


def executors_on_ray(**remote: Any) -> EngineExecutor:
    """An executor over the Ray that runs, else over one that `ray.init()` starts. `remote`: the
    options of `ray.remote`, as num_cpus=1. Raises ImportError."""
    import ray

    if not ray.is_initialized():
        ray.init()
    return _RayExecutor(ray, remote)


class _RayExecutor(EngineExecutor):
    def __init__(self, ray: Any, remote: dict[str, Any]) -> None:
        super().__init__()
        self._ray = ray
        self._run = ray.remote(**remote)(run_call) if remote else ray.remote(run_call)

    def _start(self, call: Call, future: EngineFuture[Any]) -> None:
        # arguments within a tuple: Ray would fetch references that are arguments themselves
        started = self._run.remote(*call)
        future.abandon = lambda: self._ray.cancel(started)
        started.future().add_done_callback(lambda done: future.end(lambda: self._result(done)))

    def _result(self, done: Future[Any]) -> Any:
        try:
            return done.result()
        except self._ray.exceptions.WorkerCrashedError as error:
            raise TaskLostError(str(error)) from error

    def scale(self, n: int) -> None:
        """Asks Ray's autoscaler for n cores; a Ray of one machine has what it has."""
        from ray.autoscaler.sdk import request_resources

        request_resources(num_cpus=n)


# ---- Lithops ------------------------------------------------------------------------------------


def executors_on_lithops(executor: Any = None, **options: Any) -> EngineExecutor:
    """An executor over a `lithops.FunctionExecutor`; None: one made with `options`, as
    backend="localhost". Raises ImportError."""
    import lithops

    return _LithopsExecutor(lithops.FunctionExecutor(**options) if executor is None else executor)


class _LithopsExecutor(EngineExecutor):
    """Lithops has no callbacks: a thread polls while there is an end to come. It cannot take tasks
    back; of those cancelled the end is awaited as well, and told to nobody."""

    def __init__(self, executor: Any) -> None:
        super().__init__()
        self._executor = executor
        self._lock = threading.Lock()
        self._started: list[tuple[Any, EngineFuture[Any]]] = []
        self._polling: threading.Thread | None = None

    def _start(self, call: Call, future: EngineFuture[Any]) -> None:
        started = self._executor.call_async(run_call, call)
        with self._lock:
            self._started.append((started, future))
            if self._polling is None:
                self._polling = threading.Thread(target=self._poll, daemon=True)
                self._polling.start()

    def _poll(self) -> None:
        from lithops.wait import ANY_COMPLETED

        while True:
            with self._lock:
                waiting = list(self._started)
                if not waiting:
                    self._polling = None
                    return
            self._executor.wait(
                [started for started, _ in waiting], throw_except=False, return_when=ANY_COMPLETED,
                wait_dur_sec=POLL_S, show_progressbar=False,
            )  # fmt: skip
            ended = [pair for pair in waiting if pair[0].success or pair[0].done]
            with self._lock:
                self._started = [pair for pair in self._started if pair not in ended]
            for started, future in ended:
                future.end(started.result)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of all; `wait` is for tasks that were cancelled, too."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        polling = self._polling
        if wait and polling is not None:
            polling.join()

    def scale(self, n: int) -> None:
        """Lithops starts a function for each task."""
        raise InvalidArgumentError("Lithops starts a function for each task: there is no number")
