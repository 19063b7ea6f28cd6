"""Taking samples: batches in turn, and what their statistics say."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

clock = time.perf_counter_ns


def timed(call: Callable[..., object], arguments: Iterable[tuple[Any, ...]]) -> list[int]:
    """Nanoseconds of `call(*a)` for each `a`; its result is dropped outside the time."""
    samples = []
    for argument in arguments:
        begin = clock()
        result = call(*argument)
        samples.append(clock() - begin)
        del result
    return samples


def interleave(batches: int, parts: dict[str, Callable[[], Iterable[int]]]) -> dict[str, list[int]]:
    """One batch of each part in turn, `batches` times and once before that does not count."""
    samples: dict[str, list[int]] = {name: [] for name in parts}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for part in parts.values():
            for _ in part():
                pass
        for _ in range(batches):
            for name, part in parts.items():
                samples[name].extend(part())
    finally:
        if enabled:
            gc.enable()
    return samples


def taker(
    count: int, call: Callable[..., object], arguments: Iterable[tuple[Any, ...]]
) -> Callable[[], list[int]]:
    """A part of `interleave`: each batch goes on in the cycle of arguments where the last ended."""
    cycle = itertools.cycle(list(arguments))
    return lambda: timed(call, list(itertools.islice(cycle, count)))


def pairs(keys: Sequence[str], views: Sequence[memoryview]) -> Iterable[tuple[str, memoryview]]:
    """Every view, with the keys going round."""
    return zip(itertools.cycle(keys), views, strict=False)


QUANTILES = (1, 10, 25, 50, 75, 90, 99)


def quantiles(samples: Sequence[int]) -> list[float]:
    """The percentiles of QUANTILES."""
    ordered = sorted(samples)
    return [float(ordered[len(ordered) * per_cent // 100]) for per_cent in QUANTILES]


def percentile(samples: Sequence[int], per_cent: float) -> float:
    """The smallest sample that at least `per_cent` of all do not exceed."""
    ordered = sorted(samples)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * per_cent / 100))])


def settled(store: Any) -> dict[str, Any]:
    """The facts of its namenode when all that was done is durable and taken apart."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        facts: dict[str, Any] = store.status()["namenode"]
        if not facts["background_pending"] and not facts["durable_lag_ns"]:
            return facts
        time.sleep(0.01)
    raise RuntimeError("the namenode did not come to rest in a minute")
