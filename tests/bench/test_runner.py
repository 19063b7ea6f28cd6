"""The plain executor of processes that were started by exec."""

from __future__ import annotations

import os
import time
from concurrent.futures import BrokenExecutor

import pytest

from .runner import Local


def test_tasks_run_in_other_processes_that_were_started_once() -> None:
    with Local(2) as executor:
        found = {executor.submit(os.getpid).result(30) for _ in range(8)}
        assert os.getpid() not in found
        assert 1 <= len(found) <= 2
        assert list(executor.map(divmod, [7, 9], [2, 4])) == [(3, 1), (2, 1)]


def test_what_a_task_raises_comes_back() -> None:
    with Local(1) as executor:
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(30)
        assert executor.submit(divmod, 7, 2).result(30) == (3, 1)


def test_a_process_that_dies_breaks_its_task_and_no_other() -> None:
    with Local(1) as executor:
        broken = executor.submit(os._exit, 3)
        after = executor.submit(divmod, 7, 2)
        with pytest.raises(BrokenExecutor, match="died"):
            broken.result(30)
        assert after.result(30) == (3, 1)


def test_it_grows_and_shrinks_while_tasks_run() -> None:
    with Local(1) as executor:
        first = [executor.submit(time.sleep, 0.05) for _ in range(8)]
        executor.scale(4)
        more = [executor.submit(os.getpid) for _ in range(16)]
        executor.scale(1)
        last = [executor.submit(os.getpid) for _ in range(4)]
        for future in first:
            future.result(30)
        assert len({future.result(30) for future in more}) <= 4
        assert len({future.result(30) for future in last}) == 1


def test_printing_does_not_disturb() -> None:
    with Local(1) as executor:
        assert executor.submit(print, "a word to standard error").result(30) is None
        assert executor.submit(divmod, 7, 2).result(30) == (3, 1)


def test_shutdown_cancels_what_nobody_began() -> None:
    executor = Local(1)
    begun = executor.submit(time.sleep, 0.2)
    while not begun.running():
        time.sleep(0.001)
    waiting = [executor.submit(os.getpid) for _ in range(5)]
    executor.shutdown(cancel_futures=True)
    assert begun.result(0) is None
    assert all(future.cancelled() for future in waiting)
