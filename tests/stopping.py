"""SIGSTOP, which takes effect some time after it was sent."""

from __future__ import annotations

import os
import signal
import time

PATIENCE_S = 30


def states(pid: int) -> set[str]:
    """Of the threads of a process: "T" is stopped."""
    found = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/stat") as file:
                found.add(file.read().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return found


def stop(pid: int) -> None:
    """Stops a process, and returns when every thread of it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while not states(pid) <= {"T", "Z"}:
        assert time.monotonic() < deadline, f"{pid} does not stop"
