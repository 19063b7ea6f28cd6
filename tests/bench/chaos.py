"""What a pool's executors go through while a job runs on them: they become 8 and then 2, one is
killed and one is paused in the middle of a task."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from crailpy.client.compute.executors import PoolExecutor

FEW, MANY, LESS = 1, 8, 2
SPECULATE_SECONDS = 5.0
"""The pool begins the paused one's task a second time after so long. A task that is merely slow may
not take as long: its second attempt may begin in the moment in which the first one commits."""


class Chaos:
    """`watch` is to be called whenever a task of a stage was done. What is due is tried again at
    the next call, where nobody was at work."""

    def __init__(self, executor: PoolExecutor) -> None:
        self._executor = executor
        self._before = executor.status()["tasks"]
        #: when (of which stage, which share of its tasks), what, and how
        self._due: list[tuple[str, float, str, Callable[[], bool]]] = [
            ("map", 0.0, f"scaled to {MANY}", lambda: self._scale(MANY)),
            ("map", 0.3, "killed one", lambda: self._hit(signal.SIGKILL)),
            ("map", 0.5, "paused one", lambda: self._hit(signal.SIGSTOP)),
            ("reduce", 0.2, f"scaled to {LESS}", lambda: self._scale(LESS)),
            ("reduce", 0.5, "killed one", lambda: self._hit(signal.SIGKILL)),
        ]
        self.done: list[str] = []
        executor.scale(FEW)

    def watch(self, stage: str, done: int, tasks: int) -> None:
        while self._due:
            when, share, words, act = self._due[0]
            if when != stage or done < share * tasks or not act():
                return
            self.done.append(f"{stage} {done}/{tasks}: {words}")
            del self._due[0]

    @property
    def is_over(self) -> bool:
        """Has all of it happened?"""
        return not self._due

    def _scale(self, count: int) -> bool:
        self._executor.scale(count)
        return True

    def _hit(self, number: int) -> bool:
        """Whoever has begun a task last gets the signal."""
        busy = [e for e in self._executor.status()["executors"] if e["state"] == "busy"]
        if not busy:
            return False
        os.kill(min(busy, key=lambda e: e["seconds"])["pid"], number)
        return True

    def facts(self) -> dict[str, Any]:
        """What the pool has counted since."""
        now = self._executor.status()["tasks"]
        return {
            name: now[name] - self._before[name] for name in ("done", "found", "repeated", "deaths")
        }
