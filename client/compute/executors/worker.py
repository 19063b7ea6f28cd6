"""An executor: a process that runs one task at a time, for whichever driver the service says.

It is forked off the template and has one connection, to the service. Where that ends, so does it.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from _thread import allocate_lock

from .. import stores
from . import calls, contexts, frames, tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from ...store import Store

RECEIVE_BYTES = 64 << 10
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


class Worker:
    """The executor's side of its connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = allocate_lock()
        self._reader = frames.Reader()
        self._imported = contexts.Imported()
        self._limits = _limits()
        self._stores: dict[bytes, Store] = {}  # those connected to, as drivers have pickled them
        self._wanted: dict[int, bytes | None] = {}  # which one, by driver
        self._used: dict[int, set[Any]] = {}  # addresses that handles brought along, by driver
        self._driver = 0
        self._context: contexts.Context | None = None
        self._is_taken_on = False

    def run(self) -> None:
        """Serves until the service says so, or is gone."""
        self._send(frames.pack(frames.READY, count=os.getpid()))
        while True:
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                return
            for kind, count, task, body in self._reader.feed(data):
                if kind == frames.RUN:
                    self._send(self._answer(task, count, body))
                elif kind == frames.CONTEXT:
                    self._context, self._is_taken_on = contexts.Context(body), False
                    self._wanted[task], self._driver = self._context.store, task
                elif kind == frames.LOOK:
                    self._send(_look(task, body))
                elif kind == frames.FORGET:
                    self._forget(task)
                elif kind == frames.LEAVE:
                    return

    def close(self) -> None:
        """Ends the sessions at stores."""
        for store in self._stores.values():
            store.close()

    def _forget(self, driver: int) -> None:
        """Ends the sessions at its store and at those of its handles, where it was the last who
        wanted them."""
        packed = self._wanted.pop(driver, None)
        if packed in self._stores and packed not in self._wanted.values():
            self._stores.pop(packed).close()
        for address in self._used.pop(driver, set()).difference(*self._used.values()):
            stores.leave(address)

    def _answer(self, number: int, attempt: int, parcel: bytes) -> bytes:
        context = self._context
        assert context is not None, "the service gives the context first"
        if not self._is_taken_on:
            context.take_on()
            if not self._imported.is_fresh() or _limits() != self._limits:
                return frames.pack(frames.STALE, number)
            self._is_taken_on = True
        began = time.time_ns()
        stores.used.clear()
        try:
            return self._run_task(context, number, attempt, parcel)
        except BaseException as error:  # also SystemExit, as a pool of the standard library has it
            return frames.pack(frames.FAILED, number, attempt, calls.wrap_error(error))
        finally:
            tasks.begin(None)
            if stores.used:
                self._used.setdefault(self._driver, set()).update(stores.used)
            self._imported.look(began)

    def _run_task(
        self, context: contexts.Context, number: int, attempt: int, parcel: bytes
    ) -> bytes:
        tasks.begin(tasks.Task(number, attempt, self._store, self._tell))
        if parcel[0] & calls.OF_MAIN:
            context.import_main()
        space = calls.Space(self._store, context.space)
        fn, args, kwargs = space.unwrap(parcel)
        result = fn(*args, **kwargs)
        parcel = space.wrap(result, calls.result_name(number, attempt), "a result")
        return frames.pack(frames.DONE, number, attempt, parcel)

    def _tell(self, task: tasks.Task, store: Store, path: str, result: Any) -> None:
        """Tells the service where the task is about to commit: it asks another executor to look
        there if this one dies."""
        words = pickle.dumps((store, path, calls.inline(result, "a result")))
        self._send(frames.pack(frames.COMMITS, task.number, task.attempt, words))

    def _send(self, frame: bytes) -> None:
        """Whole: a thread of the task may say where it commits."""
        with self._lock:
            self._sock.sendall(frame)

    def _store(self) -> Store | None:
        """The store of the present driver."""
        packed = self._context.store if self._context is not None else None
        if packed is None:
            return None
        if packed not in self._stores:
            self._stores[packed] = pickle.loads(packed)
        return self._stores[packed]


def _limits() -> list[tuple[int, int]]:
    """What the kernel lets this process have: what a task changes of it is for no other driver."""
    return [resource.getrlimit(number) for number in LIMITS]


def _look(number: int, words: bytes) -> bytes:
    """Has another attempt, dead or slow, committed what it was about to? Where that cannot be had
    out, the task is run again, and will find out by itself."""
    try:
        store, path, parcel = pickle.loads(words)
        with store:
            if store.exists(path):
                return frames.pack(frames.DONE, number, body=parcel)
    except Exception:
        traceback.print_exc()  # into the pool's log
    return frames.pack(frames.MISSING, number)


def main(sock: socket.socket) -> int:
    """The life of an executor; its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a log is to be read while tasks run
    contexts.empty_main()
    worker = Worker(sock)
    try:
        worker.run()
        worker.close()
    except ConnectionError:
        return 0  # the service has gone
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
