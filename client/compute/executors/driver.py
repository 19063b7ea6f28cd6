"""The driver's side of a pool: `executors()` and what it gives.

A `Link` is one connection to a service, with one thread that takes what comes back. When the
service ends, so does the link, and with it all that it was asked for; the executor's next call
makes another.
"""

from __future__ import annotations

import atexit
import itertools
import math
import os
import pickle
import socket
import struct
import threading
import time
import traceback
import weakref
from collections import OrderedDict, deque
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeVar

from crailpy import hello
from crailpy.errors import (
    CrailError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    OutOfSpaceError,
)

from ...extents import GRANULE
from . import calls, contexts, frames
from .failures import PoolLostError, ShutdownError, TaskLostError
from .home import Home
from .mapping import map_calls
from .scheduling import WORKERS_MAX
from .spaces import DriverSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ...store import Store
    from .mapping import Call, Out

T = TypeVar("T")

TIMEOUT_S = 30.0
"""For a pool to start, and for its answers to questions."""
TIMEOUT_S_MAX = 86_400.0
ATTEMPTS_MAX = 1_000_000
SEND_S = 60
"""A service that has taken nothing for so long is lost."""
RECEIVE_BYTES = 256 << 10

_links: weakref.WeakSet[Link] = weakref.WeakSet()
_pools: weakref.WeakSet[PoolExecutor] = weakref.WeakSet()


class _Telling(threading.local):
    """Of this thread: the ended futures whose callbacks are to be called yet; None: it calls none
    at present."""

    ended: deque[TaskFuture[Any]] | None = None


_telling = _Telling()


class TaskFuture(Future[T]):
    """A Future whose cancel() asks the pool: True means that the task has not begun, nor will."""

    def __init__(self, link: Link, number: int, call: bytes) -> None:
        super().__init__()
        self._link = link
        self.number = number
        self.call = call
        self.attempts = 0  # that we heard of
        self.stored = 0  # bytes of the call in the store

    def cancel(self) -> bool:
        """Takes the task back, unless an executor has been given it."""
        if self.done() or self.running() or self._link.pid != os.getpid():
            return self.cancelled()
        return self._link.cancel(self)

    def withdraw(self) -> None:
        """It is cancelled: the pool has said so, or never had it."""
        super().cancel()
        self.set_running_or_notify_cancel()

    def _invoke_callbacks(self) -> None:
        """Callbacks of what ends within a callback are called after it: a chain of futures that
        cancel each other would be as deep as it is long otherwise. Called by Future, when it is
        done and who waits for it knows."""
        ended = _telling.ended
        if ended is not None:
            ended.append(self)
            return
        _telling.ended = ended = deque([self])
        raised: BaseException | None = None
        while ended:
            try:
                super(TaskFuture, ended.popleft())._invoke_callbacks()  # type: ignore[misc]
            except BaseException as error:  # Future tells of all others: sys.exit(), Ctrl-C
                raised = raised or error
        _telling.ended = None
        if raised is None:
            return
        if threading.current_thread() is threading.main_thread():
            raise raised
        traceback.print_exception(raised)  # it would end the thread that all others wait for


class Link:
    """A connection to the pool's service. Its lock guards what is under way and what is sent; it is
    not held while futures are told. Raises what Home.connect() raises."""

    def __init__(self, home: Home, request: dict[str, Any], space: DriverSpace,
                 deadline: float) -> None:  # fmt: skip
        self._sock, welcome = home.connect(request, deadline)
        self.workers: int = welcome["workers"]  # of the pool, when it was made
        limit = struct.pack("ll", SEND_S, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._space = space
        self._lock = threading.RLock()  # a garbage collection may call finish() anywhere
        self._settled = threading.Condition(self._lock)
        self._frames = frames.Reader()
        self._taken: list[frames.Frame] = []  # received and not looked at yet, the last first
        self._futures: dict[int, TaskFuture[Any]] = {}  # all that are not done
        self._unsent: OrderedDict[int, TaskFuture[Any]] = OrderedDict()
        self._sent = 0  # unfinished, at the service
        self._asked: dict[int, threading.Event] = {}  # by task: what waits for a word on it
        self._questions: dict[int, list[Any]] = {}
        self._question = itertools.count(1)
        self._is_finishing = False
        self.is_lost = False
        self.pid = os.getpid()
        self._thread = threading.Thread(target=self._read, name="crailpy-pool", daemon=True)
        _links.add(self)
        self._thread.start()

    # -- tasks out --------------------------------------------------------------------------------

    def submit(self, futures: list[TaskFuture[Any]]) -> None:
        """Sends tasks, as many as the window lets. Raises PoolLostError; then none is known."""
        with self._lock:
            if self.is_lost:
                raise PoolLostError()
            for future in futures:
                self._futures[future.number] = self._unsent[future.number] = future
            self._fill_window()

    def _fill_window(self) -> None:
        """Under the lock."""
        data = []
        while self._unsent and self._sent < frames.WINDOW:
            number, future = self._unsent.popitem(last=False)
            self._sent += 1
            data.append(frames.pack(frames.SUBMIT, number, body=future.call))
        if data:
            self._send(b"".join(data))

    def _send(self, data: bytes) -> None:
        """Under the lock. What cannot be sent is lost; the reader hears of it and tells all."""
        try:
            self._sock.sendall(data)
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def cancel(self, future: TaskFuture[Any]) -> bool:
        """See TaskFuture.cancel. False also where the pool does not answer in time."""
        number, heard = future.number, None
        with self._lock:
            is_here = self._unsent.pop(number, None) is not None
            if is_here:
                del self._futures[number]
            elif number in self._futures and not self.is_lost:
                heard = self._ask_to_cancel(number)
        if is_here:
            self._space.forget(future.call)
            future.withdraw()
            self._look_for_end()
        elif heard is not None:
            self._wait(heard, time.monotonic() + TIMEOUT_S)
        return future.cancelled()

    def _ask_to_cancel(self, number: int) -> threading.Event:
        heard = self._asked.get(number)
        if heard is None:
            heard = self._asked[number] = threading.Event()
            self._send(frames.pack(frames.CANCEL, number))
        return heard

    def _wait(self, heard: threading.Event, deadline: float) -> None:
        """Until the reader has heard it, or the deadline; in a callback, the reader is us."""
        if threading.current_thread() is not self._thread:
            heard.wait(max(0.0, deadline - time.monotonic()))
            return
        while not heard.is_set() and self._take_one():
            pass

    def cancel_all(self) -> None:
        """Takes back what has not begun."""
        with self._lock:
            here = list(self._unsent.values())
            self._unsent.clear()
            for future in here:
                del self._futures[future.number]
            there = [f for f in self._futures.values() if not f.running()]
            heard = [self._ask_to_cancel(future.number) for future in there]
        for future in here:
            self._space.forget(future.call)
            future.withdraw()
        deadline = time.monotonic() + TIMEOUT_S
        for event in heard:
            self._wait(event, deadline)

    # -- questions --------------------------------------------------------------------------------

    def ask(self, kind: int, count: int = 0) -> dict[str, Any]:
        """The service's facts, after SCALE or STATUS. Raises PoolLostError, DeadlineError."""
        heard, number = threading.Event(), next(self._question)
        answer: list[Any] = [heard]
        with self._lock:
            if self.is_lost:
                raise PoolLostError()
            self._questions[number] = answer
            self._send(frames.pack(kind, number, count))
        self._wait(heard, time.monotonic() + TIMEOUT_S)
        self._questions.pop(number, None)
        if len(answer) == 1:
            if self.is_lost:
                raise PoolLostError()
            raise DeadlineError("the pool does not answer")
        facts: dict[str, Any] = hello.unpack(answer[1])
        return facts

    # -- what comes back --------------------------------------------------------------------------

    def _read(self) -> None:
        """The life of the thread."""
        try:
            while self._take_one():
                pass
        finally:
            self._lose()
            if self._is_finishing:  # here, since finish() may be called within any call of a store
                self._space.clear()

    def _take_one(self) -> bool:
        """Takes the next frame, waits for it; False at the end. A callback that has to hear
        something calls it as well, so what was received is kept in the link."""
        while not self._taken:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
                self._taken = self._frames.feed(data)[::-1]
            except (OSError, CrailError):
                return False
            if not data:
                return False
        kind, count, number, body = self._taken.pop()
        if kind == frames.RUNNING:
            future = self._futures.get(number)
            if future is not None:
                future.attempts = max(future.attempts, count + 1)
            if future is not None and not (future.running() or future.done()):
                future.set_running_or_notify_cancel()
        elif kind == frames.FACTS:
            answer = self._questions.pop(number, None)
            if answer is not None:
                answer.append(body)
                answer[0].set()
        elif kind == frames.KEPT:
            self._hear(number)
        else:
            self._end(kind, count, number, body)
        return True

    def _end(self, kind: int, count: int, number: int, body: bytes) -> None:
        """A task has ended, one way or the other."""
        with self._lock:
            self._sent -= 1
            if self._unsent:
                self._fill_window()
            future = self._futures[number]
        try:
            self._tell(future, kind, body)
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
            raise
        finally:  # whatever was raised: who waits for this hears of it
            self._hear(number)
            with self._lock:
                del self._futures[number]
                if not self._futures:
                    self._look_for_end()

    def _tell(self, future: TaskFuture[Any], kind: int, body: bytes) -> None:
        self._space.forget(future.call)
        if kind == frames.DONE:
            self._give(future, body)
        elif kind == frames.FAILED:
            self._fail(future, calls.unwrap_error(body))
        elif kind == frames.CANCELLED:
            future.withdraw()
        else:
            future.set_exception(TaskLostError(body.decode()))
        if future.attempts > 1:  # who died, or came second, may have put a result
            names = [calls.result_name(future.number, n) for n in range(future.attempts)]
            self._space.remove(names)

    def _give(self, future: TaskFuture[Any], parcel: bytes) -> None:
        try:
            value = self._space.unwrap(parcel)
        except BaseException as error:
            self._fail(future, error)
        else:
            future.set_result(value)
        self._space.forget(parcel)

    def _fail(self, future: TaskFuture[Any], error: BaseException) -> None:
        if isinstance(error, NotFoundError):
            self._space.doubt()
        future.set_exception(error)

    def _hear(self, number: int) -> None:
        heard = self._asked.pop(number, None)
        if heard is not None:
            heard.set()

    def _lose(self) -> None:
        """The connection has ended, by us or by the service: whatever is under way fails."""
        with self._lock:
            self.is_lost = True
            self._sock.close()
            lost, self._futures = self._futures, {}
            self._unsent.clear()
        for future in lost.values():
            if not future.done():
                future.set_exception(PoolLostError())
        # copies: who gives up waiting takes its own out at any moment
        for event in [*self._asked.values(), *(a[0] for a in list(self._questions.values()))]:
            event.set()
        with self._lock:
            self._settled.notify_all()
        for future in lost.values():
            self._space.forget(future.call)

    # -- end --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Closes the connection as soon as nothing is under way."""
        self._is_finishing = True
        self._look_for_end()

    def _look_for_end(self) -> None:
        with self._lock:
            if not self._futures:
                self._settled.notify_all()
                if self._is_finishing:
                    self._hang_up()

    def wait(self) -> bool:
        """Until nothing is under way; False at once in a callback, which is under way itself."""
        if threading.current_thread() is self._thread:
            return False
        with self._lock:
            while self._futures and not self.is_lost:
                self._settled.wait()
        return True

    def join(self) -> None:
        """After wait() and finish(): until what was left in the store has been removed."""
        self._thread.join(TIMEOUT_S)

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's, and so are threads that have locks."""
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)
        self.is_lost = True
        self._sock.close()


def _abandon_all() -> None:
    for link in list(_links):
        link.abandon()
    for pool in list(_pools):
        pool._lock = threading.Lock()


def _our_links() -> list[Link]:
    return [link for link in list(_links) if link.pid == os.getpid() and not link.is_lost]


def _wait_for_all() -> None:
    """When the main thread has ended: what was submitted is waited for, as with other executors."""
    for link in _our_links():
        link.wait()


def _finish_all() -> None:
    """When all threads have, that may still have submitted something."""
    _wait_for_all()
    for link in _our_links():
        link.finish()
        link.join()


os.register_at_fork(after_in_child=_abandon_all)
# multiprocessing skips the handlers of atexit in its forked children. The standard library's own
# executors are waited for in the same way.
threading._register_atexit(_wait_for_all)  # type: ignore[attr-defined]
atexit.register(_finish_all)


class PoolExecutor(Executor):
    """The machine's pool as a `concurrent.futures.Executor`; made by executors(). Thread-safe; a
    context manager, whose end waits for what was submitted. In a forked child it makes a connection
    of its own."""

    def __init__(self, home: Home, request: dict[str, Any], store: Store | None, timeout: float):
        self._home = home
        self._request = request
        self._store = store
        self._timeout = timeout
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._is_shut = False
        self._link: Link | None = None
        self._space = DriverSpace(store)
        _pools.add(self)
        self._connected()
        self._space.make()

    @property
    def name(self) -> str:
        """The pool's."""
        return self._home.name

    def _connected(self) -> Link:
        """The link that there is, or a new one. Raises ShutdownError, and what a link raises."""
        with self._lock:
            if self._is_shut:
                raise ShutdownError()
            link = self._link
            if link is None or link.is_lost or link.pid != os.getpid():
                if link is not None and link.pid != os.getpid():
                    self._space = DriverSpace(self._store)  # the parent's numbers are ours as well
                packed = None if self._store is None else pickle.dumps(self._store)
                context = contexts.describe(packed, self._space.path)
                deadline = time.monotonic() + self._timeout
                request = self._request | {"context": context}
                link = self._link = Link(self._home, request, self._space, deadline)
                weakref.finalize(self, link.finish).atexit = False
            return link

    def _submit(self, wanted: Iterable[Call], out: Out | None = None) -> list[Future[Any]]:
        """Submits all of these; of a map's those that there is room for. Raises as submit()."""
        link = self._connected()
        self._space.keep()
        futures: list[TaskFuture[Any]] = []
        try:
            for call in wanted:
                try:
                    future = self._future(link, call)
                except OutOfSpaceError:
                    if out is None or not out.postpone(call):
                        raise
                    break
                futures.append(future)
                if out is not None:
                    out.add(future.stored)
            try:
                link.submit(futures)
            except PoolLostError:  # it has ended since
                link = self._connected()
                for future in futures:
                    future._link = link
                link.submit(futures)
        except BaseException:  # all of them, or none
            for future in futures:
                self._space.forget(future.call)
            raise
        return list[Future[Any]](futures)

    def _future(self, link: Link, call: Call) -> TaskFuture[Any]:
        number = next(self._numbers)
        parcel, stored = self._space.wrap_sized(call, f"call-{number}", "arguments")
        future = TaskFuture[Any](link, number, parcel)
        future.stored = stored
        return future

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Has `fn(*args, **kwargs)` run by an executor of the pool.

        Raises ShutdownError; InvalidArgumentError for a call that cannot be pickled, or that is
        larger than 4 KiB where there is no store; UnavailableError, DeadlineError where there is no
        pool to be had. The future raises what the call raised, with the executor's traceback as its
        cause; TaskLostError; PoolLostError."""
        return self._submit([(fn, args, kwargs)])[0]

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """As the standard library's: the results of `fn(*args)` in order, submitted at once,
        `chunksize` calls to a task. The iterator raises what a call raises, TimeoutError when
        `timeout` seconds have passed since map() was called; then the rest is cancelled.

        Arguments above 4 KiB go through the store: of them half of what it has room for is out at a
        time, 32 MiB and two calls for each executor in any case. The iterables are read so far, and
        on as results are taken: calls beyond are not run if nobody takes results, and with them the
        iterator also raises what submit() and the iterables raise."""
        count_min = 2 * self._connected().workers
        return map_calls(self._submit, fn, iterables, timeout, chunksize, count_min, self._room)

    def _room(self) -> int:
        """Bytes that there is room for in the store."""
        if self._store is None:
            return 0
        try:
            granules: int = self._store.status()["namenode"]["granules_free"]
        except CrailError:
            return 0
        return granules * GRANULE

    def scale(self, n: int) -> None:
        """Has the pool, for all its drivers, n executors from here on. More are forked at once; of
        those too many, who is idle ends now, who has a task when it has finished it. Raises
        InvalidArgumentError, ShutdownError, PoolLostError, DeadlineError."""
        self._connected().ask(frames.SCALE, _checked_workers(n))

    def status(self) -> dict[str, Any]:
        """Facts about the pool: `pid`, `workers`, `tasks` (counts since its start: done; of them
        found, which another attempt had committed; repeated, lost, and of executors deaths, forks,
        stale), `drivers`, `executors`; where there are fewer than `wanted`, `trouble` says why.
        Raises as scale()."""
        return self._connected().ask(frames.STATUS)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more tasks; the pool stays, for others. `wait`: returns when all tasks have
        ended. `cancel_futures`: those that have not begun are cancelled. May be called twice."""
        with self._lock:
            self._is_shut = True
            link = self._link
        if link is None or link.pid != os.getpid():
            return
        if cancel_futures:
            link.cancel_all()
        has_settled = wait and link.wait()
        link.finish()
        if has_settled:
            link.join()
            self._space.clear()  # if the link was lost before

    def __repr__(self) -> str:
        state = ", shut down" if self._is_shut else ""
        return f"<crailpy.executors {self._home.name!r}{state}>"


def _checked_workers(n: object) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= WORKERS_MAX:
        raise InvalidArgumentError(f"{n!r} executors", hint=f"1 to {WORKERS_MAX}")
    return n


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def executors(
    name: str = "default",
    *,
    workers: int | None = None,
    store: Store | None = None,
    attempts: int = 3,
    speculate: float | None = None,
    timeout: float = TIMEOUT_S,
) -> PoolExecutor:
    """The warm executor pool `name` of this machine, for this user and this Python; started where
    it does not run. docs/EXECUTORS.md tells what tasks find, and what happens when who dies.

    `workers`: at least so many executors (None: as it is; a pool that starts has one for each core
    that we may use). `store`: arguments and results above 4 KiB go through it, and it is the
    `store` of task() in a task; without, they are InvalidArgumentError. `attempts`: how often a
    task is begun when the executors that run it die; then TaskLostError. `speculate`: seconds after
    which a task that still runs gets a second attempt elsewhere (None: never). `timeout`: of the
    start, in seconds.
    Raises InvalidArgumentError, AuthError, UnavailableError, DeadlineError."""
    if contexts.importing_main:
        raise InvalidArgumentError(
            "executors() was called while an executor imports the script",
            hint='what the script does belongs below `if __name__ == "__main__":`',
        )
    if store is not None and not hasattr(store, "get_view"):
        raise InvalidArgumentError(f"store={store!r} is no Store of crailpy.connect()")
    if not isinstance(attempts, int) or not 1 <= attempts <= ATTEMPTS_MAX:
        raise InvalidArgumentError(f"attempts={attempts!r}: 1 to {ATTEMPTS_MAX:,}")
    if speculate is not None and not _is_seconds(speculate):
        raise InvalidArgumentError(f"speculate={speculate!r}: seconds, or None")
    if speculate is not None and attempts == 1:
        raise InvalidArgumentError(
            f"speculate={speculate:g} with attempts=1, which is for tasks that must not run twice",
            hint="a second attempt is one: attempts=2 or more, or no speculate=",
        )
    if not _is_seconds(timeout):
        raise InvalidArgumentError(f"timeout={timeout!r}: seconds")
    request = {
        "workers": 0 if workers is None else _checked_workers(workers),
        "attempts": attempts,
        "speculate": None if speculate is None else float(speculate),
    }
    calls.begin_driver()
    return PoolExecutor(Home(name), request, store, min(timeout, TIMEOUT_S_MAX))
