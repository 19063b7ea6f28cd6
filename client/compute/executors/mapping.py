"""`Executor.map` as the standard library's process pool has it, for executors that take many calls
at once, and that may have to put their arguments where there is not room for all of them."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
    Submit = Callable[["Iterable[Call]", "Out"], list[Future[Any]]]
    Room = Callable[[], int]

T = TypeVar("T")

BYTES_OUT_MIN = 32 << 20
"""What the arguments of one map may take in a store before its results are taken, however full that
is."""


def run_chunk(fn: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    """Several calls as one task."""
    return [fn(*args) for args in chunk]


class Out:
    """The calls of a map, and which of them are out: submitted, their results not taken. Who
    submits them says what they take in a store. `count_min`: so many may be out, however large;
    `room` is asked once how many bytes the store has room for: half of that may be out."""

    def __init__(self, calls: Iterator[Call], count_min: int, room: Room | None) -> None:
        self._calls = calls
        self._back: list[Call] = []
        self._count_min = count_min
        self._bytes_max = BYTES_OUT_MIN
        self._room = room
        self._count = 0
        self._bytes = 0
        self._futures: deque[Future[Any]] = deque()
        self.is_at_end = False

    def submit(self, submit: Submit) -> None:
        """Submits as many more as may be out. Raises what `submit` raises."""
        self._futures.extend(submit(self._more(), self))

    def _is_room(self) -> bool:
        if self._bytes >= self._bytes_max and self._room is not None:
            self._bytes_max = max(self._bytes_max, (self._bytes + self._room()) // 2)
            self._room = None
        return self._bytes < self._bytes_max or self._count < self._count_min

    def _more(self) -> Iterator[Call]:
        while self._is_room():
            try:
                call = self._back.pop() if self._back else next(self._calls)
            except StopIteration:
                self.is_at_end = True
                return
            self._count += 1
            yield call

    def add(self, size: int) -> None:
        """The last call has taken so many bytes in the store."""
        self._bytes += size

    def postpone(self, call: Call) -> bool:
        """There was no room for the last call: keeps it for later. False if none is out that could
        make room when it ends."""
        if self._count == 1:
            return False
        self._count -= 1
        self._back.append(call)
        return True

    def results(self, submit: Submit, end: float | None) -> Iterator[Any]:
        """Of all calls, in order. Between two it submits more of them."""
        try:
            while self._futures:
                yield _result_or_cancel(self._take(), end)
                if not self.is_at_end:
                    self.submit(submit)
        finally:
            for future in reversed(self._futures):
                future.cancel()

    def _take(self) -> Future[Any]:
        future = self._futures.popleft()
        self._count -= 1
        self._bytes -= getattr(future, "stored", 0)
        return future


def _result_or_cancel(future: Future[T], end: float | None) -> T:
    """Its result by the time `end`; else nobody wants it any more."""
    try:
        try:
            return future.result(None if end is None else end - time.monotonic())
        finally:
            future.cancel()
    finally:
        del future  # its exception holds this frame


def map_calls(
    submit: Submit,
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    count_min: int = 1,
    room: Room | None = None,
) -> Iterator[T]:
    """Submits `fn(*args)` for all arguments, `chunksize` calls to a task, and gives the results in
    order; see Out for those that wait for room. The iterator raises what a call raises,
    TimeoutError when `timeout` seconds have passed since this was called; then, and when it is
    closed, the rest is cancelled."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1")
    end = None if timeout is None else time.monotonic() + timeout
    arguments = zip(*iterables, strict=False)
    if chunksize == 1:
        out = Out(((fn, args, {}) for args in arguments), count_min, room)
        out.submit(submit)
        return out.results(submit, end)
    chunks = iter(lambda: list(itertools.islice(arguments, chunksize)), [])
    out = Out(((run_chunk, (fn, chunk), {}) for chunk in chunks), count_min, room)
    out.submit(submit)
    return itertools.chain.from_iterable(out.results(submit, end))
