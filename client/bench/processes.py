"""The processes that the bench starts: the parent's side of `__main__.py`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crailpy.config import child_environment

COMMAND = [sys.executable, "-m", "crailpy.client.bench"]


def touch(address: str, key: str, size: int, token: str | None) -> dict[str, int]:
    """Nanoseconds of the first large put and the first large get_into of a new process."""
    done = subprocess.run(
        [*COMMAND, "touch", address, key, str(size)],
        stdout=subprocess.PIPE,
        env=child_environment(token),
        check=True,
        timeout=60,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


@dataclass(slots=True)
class Tally:
    """What one process of `getting` or `churning` did."""

    operations: int
    seconds: float
    p50_ns: float
    p99_ns: float


@contextlib.contextmanager
def getting(
    address: str, key: str, token: str | None, count: int = 1, *, ring: bool = True
) -> Iterator[list[Tally]]:
    """While the block runs, `count` processes get a small value, one get after the other.

    Their tallies are in the list when the block has ended. `ring`: may their lanes have rings?"""
    environment = child_environment(token) | {"CRAILPY_RING": str(int(ring))}
    with _working(["gets", address, key], environment, count) as tallies:
        yield tallies


@contextlib.contextmanager
def churning(
    address: str, folder: str, token: str | None, count: int, kind: str
) -> Iterator[list[Tally]]:
    """While the block runs, `count` processes change small values, each in a folder of its own;
    `kind`: see churn() in `__main__.py`. Otherwise as `getting`."""
    with _working(["churn", address, folder, kind], child_environment(token), count) as tallies:
        yield tallies


def start(
    stack: contextlib.ExitStack, words: list[str], token: str | None
) -> subprocess.Popen[str]:
    """A process that does what `__main__.py` has under these words; ended with the stack."""
    process = subprocess.Popen(
        [*COMMAND, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(token),
    )
    stack.callback(end, process)
    return process


@contextlib.contextmanager
def _working(words: list[str], environment: dict[str, str], count: int) -> Iterator[list[Tally]]:
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(count):
            process = subprocess.Popen(
                [*COMMAND, *words, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.callback(end, process)
            processes.append(process)
        for process in processes:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a client process of the bench did not start")
        tallies: list[Tally] = []
        _tell(processes, "go")
        yield tallies
        _tell(processes, "stop")
        for process in processes:
            tallies.append(Tally(**json.loads(process.communicate(timeout=30)[0])))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """While the block runs, `count` processes compute at nice 10."""
    code = "import os; os.nice(10)\nwhile os.getppid() == {}: sum(range(10000))"
    command = [sys.executable, "-S", "-c", code.format(os.getpid())]
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.callback(end, subprocess.Popen(command))
        yield


def _tell(processes: list[subprocess.Popen[str]], word: str) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write(f"{word}\n")
        process.stdin.flush()


def end(process: subprocess.Popen[Any]) -> None:
    """Ends a process that this run started, and closes what is open to it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()
