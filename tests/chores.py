"""Tasks for executors: functions that another process can import."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
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
    await_that(lambda: os.path.exists(f"{folder}/go"))
    return name


def await_that(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


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


class Unaskable(Exception):
    """Has no attribute that anybody may ask for, and does not pickle."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("not configured")

    def __reduce__(self) -> tuple[object, ...]:
        raise KeyboardInterrupt


def note_and_fail(folder: str) -> None:
    note(folder, "run")
    raise Unaskable


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


def commit_and_die(folder: str, path: str, dies: str) -> bytes:
    """Its first attempt dies before its commit or behind it."""
    mine, result = task(), b"the result"
    note(folder, "run")
    assert mine.store is not None
    mine.commits(mine.store, path, result)
    if dies == "before" and mine.attempt == 0:
        os._exit(1)
    mine.store.put(path, b"", if_absent=True)
    if dies == "behind":
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def commit_and_pause(folder: str, path: str) -> bytes:
    """Its first attempt commits when it may go on, and is paused then; others commit after it."""
    mine, result = task(), b"the result"
    assert mine.store is not None
    mine.commits(mine.store, path, result)
    if mine.attempt == 0:
        hold(folder, "said")
    else:
        note(folder, "said")
        await_that(lambda: noted(folder, "committed"))
    mine.store.put(path, b"", if_absent=True)
    note(folder, "committed")
    os.kill(os.getpid(), signal.SIGSTOP)
    return result


def commit_too_much(path: str) -> None:
    store = task().store
    assert store is not None
    task().commits(store, path, b"x" * 5000)


def commit_nowhere_and_die() -> int:
    """The first attempt dies behind a commit to what cannot be connected to."""
    if task().attempt == 0:
        task().commits(Stubborn(1, 2), "/nowhere")  # type: ignore[arg-type]
        os._exit(1)
    return task().attempt


class Lazy:
    """Stands in for a module that is not set up."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("not configured")


def put_in_the_place_of_a_module(folder: str) -> int:
    """Notes that it has begun; leaves what raises when it is asked where it comes from."""
    note(folder, "run")
    sys.modules["crailpy_lazy"] = Lazy()  # type: ignore[assignment]
    return os.getpid()


def fail_stubbornly() -> None:
    raise Stubborn(1, 2)


def leave(code: int) -> None:
    os._exit(code)


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(PATIENCE_S)


def hold_and_die(folder: str, name: object) -> object:
    """As hold(); its executor kills itself when it has sent the result, and the service, which must
    not look then, has not read it."""

    def die() -> None:
        while not unread_bytes():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die, daemon=True).start()
    return hold(folder, name)


def unread_bytes() -> int:
    """What this process has sent over unix sockets and nobody has read."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += struct.unpack("i", fcntl.ioctl(int(fd), termios.TIOCOUTQ, bytes(4)))[0]
        except OSError:
            continue  # it is no socket, or is closed again
    return count


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


def say_instead(data: bytes) -> None:
    """Says this to the service, in the executor's name, and waits for what it does."""
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, data)
    time.sleep(PATIENCE_S)


def take_descriptors_away() -> int:
    """Lets its executor have no more of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, hard))
    return os.getpid()


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


def value_of(handle: Any) -> Any:
    return handle.value


_kept: dict[str, Any] = {}


def read_kept(kind: str, handle: Any) -> int:
    """By the first handle of that kind that came to this process, whoever's task brought it."""
    kept = _kept.setdefault(kind, handle)
    if kind == "model":
        return int(kept.pull(["w"])["w"].sum())
    if kind == "broadcast":
        kept._known = None  # it looks again
        return int(kept.value)
    return sum(map(len, kept.reader(0)))


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
