"""Tasks for executors: functions that another process can import."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from crailpy.client.compute.executors import task

PATIENCE_S = 60


def whoami() -> int:
    return os.getpid()


def add(a: int, b: int = 0) -> int:
    return a + b


def about() -> tuple[int, int]:
    """The task's number and attempt."""
    return task().number, task().attempt


def note(folder: str, name: object) -> None:
    """Leaves a file that tells that this attempt began, with the pid in it."""
    path = Path(folder, f"{name}-{task().attempt}-{os.urandom(4).hex()}")
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)


def noted(folder: object, name: object) -> list[int]:
    """Who has begun it."""
    return [int(p.read_text()) for p in Path(str(folder)).glob(f"{name}-*") if not p.suffix]


def hold(folder: str, name: object) -> object:
    """Notes that it has begun, and goes on when there is a file `go`; gives back its name."""
    note(folder, name)
    deadline = time.monotonic() + PATIENCE_S
    while not os.path.exists(f"{folder}/go"):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return name


def work(folder: str, name: int, seconds: float) -> int:
    """Notes that it has begun, and takes so long."""
    note(folder, name)
    time.sleep(seconds)
    return name * name


def fail(words: str) -> None:
    raise KeyError(words)


class Stubborn(Exception):
    """Pickles, and cannot be made of what it pickles to."""

    def __init__(self, one: object, two: object) -> None:
        super().__init__("just one")

    def __reduce__(self) -> tuple[object, ...]:
        return Stubborn, ("just one",)


def fail_stubbornly() -> None:
    raise Stubborn(1, 2)


def leave(code: int) -> None:
    os._exit(code)


def close_everything() -> None:
    os.closerange(3, 4096)


def drawn() -> float:
    import random

    return random.random()


def surroundings(variable: str) -> tuple[str, str | None]:
    return os.getcwd(), os.environ.get(variable)


def total(array: Any) -> tuple[float, bool]:
    """The sum, and whether the array can be written to."""
    return float(array.sum()), bool(array.flags.writeable)


def many_ones(count: int) -> Any:
    import numpy

    return numpy.ones(count)


def put_here(key: str) -> str:
    """Commits a value by the executor's own session."""
    store = task().store
    assert store is not None
    store.put(key, b"x" * 100_000)
    return key


def on_another(name: str) -> int:
    """A task that submits one."""
    import crailpy

    with crailpy.executors(name) as pool:
        return pool.submit(add, 20, 22).result(PATIENCE_S)
