"""`Executor.map` as the standard library's process pool has it, for executors that take many calls
at once."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

T = TypeVar("T")


def run_chunk(fn: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    """Several calls as one task."""
    return [fn(*args) for args in chunk]


def map_calls(
    submit: Callable[[Iterable[Call]], list[Future[Any]]],
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
) -> Iterator[T]:
    """Submits `fn(*args)` for all arguments, `chunksize` calls to a task, and gives the results in
    order. The iterator raises what a call raises, TimeoutError when `timeout` seconds have passed
    since this was called; then, and when it is closed, the rest is cancelled."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1")
    end = None if timeout is None else time.monotonic() + timeout
    arguments = zip(*iterables, strict=False)
    if chunksize == 1:
        return _results(submit((fn, args, {}) for args in arguments), end)
    chunks = iter(lambda: list(itertools.islice(arguments, chunksize)), [])
    futures = submit((run_chunk, (fn, chunk), {}) for chunk in chunks)
    return itertools.chain.from_iterable(_results(futures, end))


def _results(futures: list[Future[Any]], end: float | None) -> Iterator[Any]:
    futures.reverse()
    try:
        while futures:
            left = None if end is None else end - time.monotonic()
            yield futures.pop().result(left)
    finally:
        for future in futures:
            future.cancel()
