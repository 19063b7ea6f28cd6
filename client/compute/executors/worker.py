"""An executor: a process that runs one task at a time, for whichever driver the service says.

It is forked off the template and has one connection, to the service. Where that ends, so does it.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import time

from . import calls, contexts, frames, tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from ...store import Store

RECEIVE_BYTES = 64 << 10


class Worker:
    """The executor's side of its connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = frames.Reader()
        self._imported = contexts.Imported()
        self._stores: dict[bytes, Store] = {}  # those connected to, as drivers have pickled them
        self._wanted: dict[int, bytes | None] = {}  # which one, by driver
        self._context: contexts.Context | None = None
        self._is_taken_on = False

    def run(self) -> None:
        """Serves until the service says so, or is gone."""
        self._sock.sendall(frames.pack(frames.READY, count=os.getpid()))
        while True:
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                return
            for kind, count, task, body in self._reader.feed(data):
                if kind == frames.RUN:
                    self._sock.sendall(self._answer(task, count, body))
                elif kind == frames.CONTEXT:
                    self._context, self._is_taken_on = contexts.Context(body), False
                    self._wanted[task] = self._context.store
                elif kind == frames.FORGET:
                    self._forget(task)
                elif kind == frames.LEAVE:
                    return

    def close(self) -> None:
        """Ends the sessions at stores."""
        for store in self._stores.values():
            store.close()

    def _forget(self, driver: int) -> None:
        """Ends the session at its store, if it was the last who wanted that."""
        packed = self._wanted.pop(driver, None)
        if packed in self._stores and packed not in self._wanted.values():
            self._stores.pop(packed).close()

    def _answer(self, number: int, attempt: int, parcel: bytes) -> bytes:
        context = self._context
        assert context is not None, "the service gives the context first"
        if not self._is_taken_on:
            context.take_on()
            if not self._imported.is_fresh():
                return frames.pack(frames.STALE, number)
            self._is_taken_on = True
        began = time.time_ns()
        try:
            return self._run_task(context, number, attempt, parcel)
        except BaseException as error:  # also SystemExit, as a pool of the standard library has it
            return frames.pack(frames.FAILED, number, attempt, calls.wrap_error(error))
        finally:
            tasks.begin(None)
            self._imported.look(began)

    def _run_task(
        self, context: contexts.Context, number: int, attempt: int, parcel: bytes
    ) -> bytes:
        tasks.begin(tasks.Task(number, attempt, self._store))
        if parcel[0] & calls.OF_MAIN:
            context.import_main()
        space = calls.Space(self._store, context.space)
        fn, args, kwargs = space.unwrap(parcel)
        result = fn(*args, **kwargs)
        parcel = space.wrap(result, calls.result_name(number, attempt), "a result")
        return frames.pack(frames.DONE, number, attempt, parcel)

    def _store(self) -> Store | None:
        """The store of the present driver."""
        packed = self._context.store if self._context is not None else None
        if packed is None:
            return None
        if packed not in self._stores:
            self._stores[packed] = pickle.loads(packed)
        return self._stores[packed]


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
