"""Tasks for executors: functions that another process can import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
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


class Frozen(Exception):
    """Nobody may set its attributes, as of a frozen dataclass."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to {name}")


class Changeling(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> tuple[object, ...]:
        return str, ("no exception",)


class Wordless(Stubborn):
    """Neither pickles nor says what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def fail_oddly(kind: str) -> None:
    if kind == "frozen":
        raise Frozen(5)
    raise Changeling if kind == "changeling" else Wordless(1, 2)


class Unwilling:
    """Raises what is no PicklingError when it is pickled."""

    def __reduce__(self) -> tuple[object, ...]:
        raise ValueError("not me")


def large_result_then_die(size: int) -> bytes:
    """The first attempt dies between the put of its result and its answer."""
    if task().attempt == 0:
        store, name = task().store, f"result-{task().number}-0"
        assert store is not None
        (space,) = (path for path, _, files in store.walk("/sessions") if "mark" in files)
        store.put(f"{space}/{name}", bytes(size))
        os._exit(1)
    return bytes(size)


def fail_stubbornly() -> None:
    raise Stubborn(1, 2)


def leave(code: int) -> None:
    os._exit(code)


def hold_and_die(folder: str, name: object) -> object:
    """As hold(); its executor kills itself a moment after it has sent the result."""
    mine = task()

    def die() -> None:
        while task() is mine:
            time.sleep(0.001)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die, daemon=True).start()
    return hold(folder, name)


def hold_with_a_child(folder: str, name: object) -> object:
    """As hold(), with a child process that is noted as `child`."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    Path(folder, f"child-{child.pid}").write_text(str(child.pid))
    return hold(folder, name)


def say(count: int) -> int:
    """Prints so many characters."""
    print("x" * count)
    return count


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
