"""Pools for tests: in a runtime folder of their own, ended with all their processes afterwards."""

from __future__ import annotations

import contextlib
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


def go(folder: Path) -> None:
    """Lets those that hold go on."""
    (folder / "go").touch()


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


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """A runtime folder; the pools that run in it are ended."""
    folder = Path(tempfile.mkdtemp(prefix="cp-"))  # short: a socket's path has 107 bytes
    try:
        yield folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(folder))
            for name in {path.name.split("-")[1] for path in folder.glob("*/pool-*.lock")}:
                end(name)
    finally:
        shutil.rmtree(folder)


def end(name: str) -> None:
    """Kills the service of a pool, if it runs."""
    try:
        pid, _ = ask(name, frames.STATUS)
    except crailpy.errors.CrailError:
        return
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_gone(pid))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of the test's own."""
    with runtime_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder


@pytest.fixture
def fresh(runtime: Path) -> Iterator[PoolExecutor]:
    """A pool of two executors of the test's own."""
    pool = crailpy.executors("tests", workers=2)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="session")
def shared_runtime() -> Iterator[Path]:
    with runtime_folder() as folder:
        yield folder


@pytest.fixture
def pool(shared_runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolExecutor]:
    """A pool of two idle executors, which may have served other tests."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared_runtime))
    pool = crailpy.executors("tests")
    pool.scale(2)
    settled(pool, 2)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)
    end_what_runs(pool)


def end_what_runs(pool: PoolExecutor) -> None:
    """Ends the tasks that a test has left, if it has."""
    with crailpy.executors("tests") as other:
        for executor in other.status()["executors"]:
            if executor["state"] == "busy":
                os.kill(executor["pid"], signal.SIGKILL)
