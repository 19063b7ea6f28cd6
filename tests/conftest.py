"""What all tests share: a time limit, and one running store for those that do not break it."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from types import FrameType

import pytest

import crailpy
from crailpy.units import parse_size

from .pools import fresh, pool, runtime, shared_runtime

__all__ = ["fresh", "pool", "runtime", "shared_runtime"]  # fixtures, too

DRAM = "256MiB"
TIME_LIMIT_S = 120
SLOW_LIMIT_S = 600
# How long some go on: `make soak`, `make test-long`.
LONGER = ("MODEL", "RESTART", "SOAK", "ATTACK", "HAMMER")


def pytest_configure() -> None:
    """A run in the background of a shell begins with SIGINT ignored, and would hand that on to
    every program whose Ctrl-C is tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what a test has recorded as "to be told" though it passed, in whichever process."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "to be told":
                terminalreporter.write_line(text)


@pytest.fixture(autouse=True)
def _time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test ends: at its limit with a failure, a little later with the whole run."""
    limit = SLOW_LIMIT_S if request.node.get_closest_marker("slow") else TIME_LIMIT_S
    limit += sum(int(os.environ.get(f"CRAILPY_{kind}_SECONDS", 0)) for kind in LONGER)

    def late(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"no end after {limit} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    faulthandler.dump_traceback_later(limit + 30, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def rng() -> random.Random:
    """Randomness whose seed is printed."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def base() -> Iterator[str]:
    """A folder for the `dram_dir` of clusters that are killed as a whole: in the usual one, any
    cluster of a neighbour removes what they leave."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # short: sockets lie in it
        yield folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[crailpy.LocalCluster]:
    """A store of one namenode and one storage server. Tests use paths of their own in it; what one
    file of them leaves to be cleared away cannot confuse the accounts of another."""
    with crailpy.LocalCluster(dram=DRAM) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def quiet() -> Iterator[crailpy.LocalCluster]:
    """A cluster that nobody else talks to: for tests that count what a call costs."""
    with crailpy.LocalCluster(dram="128MiB") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def dram_bytes() -> int:
    """The memory of `cluster`."""
    return parse_size(DRAM)
