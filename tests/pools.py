"""Pools for tests: in a runtime folder of their own, ended with all their processes afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import crailpy
from crailpy.client.compute.executors import frames
from crailpy.client.compute.executors.command import ask
from crailpy.client.compute.executors.driver import PoolExecutor

from .integration.kit import until


def is_gone(pid: int) -> bool:
    """Has the process ended, though nobody may have asked how?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def pids(pool: PoolExecutor) -> set[int]:
    """Of the executors that have come up."""
    return {e["pid"] for e in pool.status()["executors"] if e["state"] in ("idle", "busy")}


def settled(pool: PoolExecutor, count: int) -> set[int]:
    """The pids of its executors, when there are so many and no others."""

    def found() -> set[int] | None:
        states = [e["state"] for e in pool.status()["executors"]]
        there = pids(pool)
        return there if len(there) == len(states) == count else None

    return until(found)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder; what runs in it is ended."""
    folder = Path(tempfile.mkdtemp(prefix="cp-"))  # short: a socket's path has 107 bytes
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    for name in {path.name.split("-")[1] for path in folder.glob("*/pool-*.lock")}:
        try:
            pid = ask(name, frames.STATUS)[0]
        except crailpy.errors.CrailError:
            continue
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: is_gone(pid))
    shutil.rmtree(folder)


@pytest.fixture
def pool(runtime: Path) -> Iterator[PoolExecutor]:
    """A pool of two executors."""
    with crailpy.executors("tests", workers=2) as pool:
        yield pool
        pool.shutdown(cancel_futures=True, wait=False)
