"""The plainest executor that is one: processes started by exec, a task at a time for each.

What crosses is a pickle of the function's name and its arguments, at most 4 KiB, as `task()` in
`job.py` sees to on the other side. `crailpy.executors` and the adapters of Dask and Ray are used in
its place; this one has no service, no warm processes, and repeats nothing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parents[2]
LENGTH = struct.Struct("<I")
END_SECONDS_MAX = 60.0
"""For what is under way when nothing more is to be done."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Item = tuple[Future[Any], bytes]


def environment() -> dict[str, str]:
    """Ours, with the modules of the jobs on the path, this interpreter as what `python` is, and one
    thread for each process's algebra: there is a process for every core."""

    def first(folder: str, variable: str) -> str:
        return os.pathsep.join([folder, *filter(None, [os.environ.get(variable)])])

    paths = {"PYTHONPATH": first(str(ROOT), "PYTHONPATH")}
    paths["PATH"] = first(os.path.dirname(sys.executable), "PATH")
    return {**dict.fromkeys(THREADS, "1"), **os.environ, **paths}


@contextlib.contextmanager
def exported() -> Iterator[None]:
    """While the block runs, processes that others start have that environment, too."""
    before = dict(os.environ)
    os.environ.update(environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def send(stream: BinaryIO, data: bytes) -> None:
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> bytes | None:
    """None at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    data = stream.read(LENGTH.unpack(head)[0])
    return data if len(data) == LENGTH.unpack(head)[0] else None


class Worker:
    """One process, and the thread of the driver that feeds it and starts it anew when it died."""

    def __init__(self, items: queue.SimpleQueue[Item | None]) -> None:
        self._items = items
        self._start()
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def feed(self) -> None:
        """To be called once, when it is ready."""
        self._thread.start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )

    def wait_ready(self) -> None:
        """Until the process has started, at the latest when it was asked for something."""
        assert self._process.stdout
        if receive(self._process.stdout) is None:
            raise BrokenExecutor(f"worker {self._process.pid} did not start")

    def _feed(self) -> None:
        """Until there is a None in the queue."""
        while (item := self._items.get()) is not None:
            future, data = item
            if not future.set_running_or_notify_cancel():
                continue
            answer = self._ask(data)
            if answer is None:
                self._end()
                future.set_exception(BrokenExecutor(f"worker {self._process.pid} died"))
                self._start()
                self.wait_ready()
                continue
            good, result = pickle.loads(answer)
            if good:
                future.set_result(result)
            else:
                future.set_exception(result)
        self._end()

    def _ask(self, data: bytes) -> bytes | None:
        assert self._process.stdin
        assert self._process.stdout
        try:
            send(self._process.stdin, data)
            return receive(self._process.stdout)
        except OSError:
            return None

    def _end(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def join(self) -> None:
        """Waits for its end, which somebody has put into the queue; a task that takes too long for
        that is killed."""
        self._thread.join(END_SECONDS_MAX)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join(END_SECONDS_MAX)


class Local(Executor):
    """`workers` processes of this machine. A task whose process died has BrokenExecutor in its
    future."""

    def __init__(self, workers: int) -> None:
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._workers: list[Worker] = []
        self._size = 0
        self.scale(workers)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._items.put((future, pickle.dumps((fn, args, kwargs))))
        return future

    def scale(self, n: int) -> None:
        """More processes at once; fewer when the tasks that were given before are under way."""
        new = [Worker(self._items) for _ in range(self._size, n)]
        for worker in new:
            worker.wait_ready()
            worker.feed()
        self._workers += new
        for _ in range(n, self._size):
            self._items.put(None)  # whoever finds it goes
        self._size = n

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Waits for the tasks that were given, or cancels those that nobody has begun."""
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while item := self._items.get_nowait():
                    item[0].cancel()
        self.scale(0)
        for worker in self._workers if wait else []:
            worker.join()


def serve() -> int:
    """A worker's process: what a task prints goes to standard error."""
    from . import job

    assert job.run  # what the first task would wait for
    with os.fdopen(os.dup(1), "wb") as back, os.fdopen(os.dup(0), "rb") as to:
        os.dup2(2, 1)
        send(back, b"ready")
        while (data := receive(to)) is not None:
            try:
                fn, args, kwargs = pickle.loads(data)
                answer = pickle.dumps((True, fn(*args, **kwargs)))
            except BaseException as error:
                error.add_note(f"in worker {os.getpid()}")
                answer = pickle.dumps((False, error))
            send(back, answer)
    return 0


if __name__ == "__main__":
    raise SystemExit(serve())
