"""What several of these tests need: other clients as processes, and others' calls in threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class Program:
    """A Python program beside us that prints lines; ended, whatever happens."""

    def __init__(self, text: str, *arguments: object) -> None:
        command = [sys.executable, "-c", text, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}"
        return line.strip()

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


class Awaited:
    """A store of the synchronous face whose answers are awaited, so that one test asks both."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            return getattr(self._store, name)(*args, **options)

        return call


class Call(threading.Thread):
    """A call in a thread of its own: `result()` gives or raises what it does."""

    def __init__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self._call = lambda: call(*args, **kwargs)
        self._value: Any = None
        self._error: BaseException | None = None
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        self.ended_at = time.monotonic()

    def result(self, timeout: float = 60) -> Any:
        self.join(timeout)
        assert not self.is_alive(), "the call does not end"
        if self._error is not None:
            raise self._error
        return self._value


def until(holds: Callable[[], Any], seconds: float = 30) -> Any:
    """Asks again and again until it is so; what it was."""
    deadline = time.monotonic() + seconds
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.005)


def process_of(cluster: Any, store: Any, number: int) -> Any:
    """Of the storage server that the namenode calls `number`. Those are given in the order of
    their coming, and nobody says which of several that start together comes first."""
    (name,) = (s["id"] for s in store.status()["servers"] if s["number"] == number)
    (server,) = (server for server in cluster.servers if server.name == name)
    return server


def waiters(store: Any) -> int:
    """How many requests the namenode has set aside."""
    count: int = store.status()["namenode"]["waiters"]
    return count


def settled(store: Any) -> dict[str, int]:
    """Nodes, and granules that values occupy, when nothing is being taken apart any more."""

    def facts() -> dict[str, int] | None:
        now = store.status()["namenode"]
        busy = now["granules_retiring"] or now["background_pending"]
        return None if busy else {name: now[name] for name in ("nodes", "granules_used")}

    found: dict[str, int] = until(facts)
    return found


def requests_of(store: Any, call: Callable[[], Any]) -> int:
    """How many the namenode served meanwhile. Of a store that nobody else uses."""
    before: int = store.status()["namenode"]["requests"]
    call()
    after: int = store.status()["namenode"]["requests"]
    return after - before
