"""on_unavailable="miss": a circuit breaker between a store and its hot door.

While the store is away, reads report that there is nothing and writes are dropped, at once and
counted. The first failure opens the breaker; after a pause one call is let through, and what it
meets closes the breaker or doubles the pause.
"""

from __future__ import annotations

import time
from _thread import allocate_lock

from crailpy.errors import DeadlineError, NotFoundError, SessionLostError, UnavailableError

from . import requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .requests import Result

PAUSE_FIRST = 0.25  # seconds until the first probe; doubles
PAUSE_MAX = 15.0
DEADLINES_MAX = 3  # so many missed deadlines in a row say that nobody is there

READS = (requests.STAT, requests.LIST, requests.ATTRIBUTES)
WRITES = (
    requests.MKDIR, requests.RENAME, requests.REMOVE, requests.RMTREE, requests.SETATTR,
    requests.TRUNCATE,
)  # fmt: skip
AWAY = (UnavailableError, SessionLostError, DeadlineError)
NOTHING_DONE = (0, 0, 0, 0, 0, b"")  # the result of a write that was dropped


class Circuit:
    """Whether it is worth asking, and what was not asked."""

    def __init__(self) -> None:
        self.is_open = False
        self.reads_missed = 0
        self.writes_dropped = 0
        self._lock = allocate_lock()
        self._is_probing = False
        self._probe_at = 0.0
        self._pause = PAUSE_FIRST
        self._deadlines = 0
        self._opened = 0

    def counts(self) -> dict[str, int]:
        """What it did, for client_stats()."""
        return {
            "reads_missed": self.reads_missed,
            "writes_dropped": self.writes_dropped,
            "breaker_opened": self._opened,
        }

    def may_try(self) -> bool:
        """False: answer at once. True: ask, and tell what came of it."""
        if not self.is_open:
            return True
        with self._lock:
            if self._is_probing or time.monotonic() < self._probe_at:
                return False
            self._is_probing = True
            return True

    def gave_up(self) -> None:
        """Nobody waited for the answer: it says nothing."""
        self._is_probing = False

    def succeeded(self) -> None:
        if self.is_open or self._deadlines:
            with self._lock:
                self.is_open = self._is_probing = False
                self._deadlines = 0
                self._pause = PAUSE_FIRST

    def failed(self, error: Exception) -> None:
        with self._lock:
            self._is_probing = False
            if getattr(error, "server", None):
                return  # a storage server is away, not the store
            if isinstance(error, DeadlineError):
                self._deadlines += 1
                if self._deadlines < DEADLINES_MAX and not self.is_open:
                    return
            if self.is_open:
                self._pause = min(self._pause * 2, PAUSE_MAX)
            else:
                self._opened += 1
            self.is_open = True
            self._probe_at = time.monotonic() + self._pause


class Breaker(Circuit):
    """Has the methods of the hot door, and answers in its place while the store is away."""

    def __init__(self, hot: Any) -> None:
        super().__init__()
        self._hot = hot

    def _reached(self, ask: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
        """(True, the answer), or False where the store is away."""
        if not self.may_try():
            return False, None
        try:
            answer = ask(*args)
        except AWAY as error:
            self.failed(error)
            return False, None
        except BaseException:  # an answer, if not a pleasant one; or Ctrl-C, which says nothing
            self.succeeded()
            raise
        self.succeeded()
        return True, answer

    def _read(self, ask: Callable[..., Any], key: str | None, *args: Any) -> Any:
        reached, answer = self._reached(ask, args)
        if reached:
            return answer
        self.reads_missed += 1
        raise NotFoundError("the store is away", path=key)

    # -- the hot door -----------------------------------------------------------

    def get(self, key: str, wait_ms: int, timeout: float | None) -> Any:
        if wait_ms:
            return self._hot.get(key, wait_ms, timeout)
        return self._read(self._hot.get, key, key, wait_ms, timeout)

    def get_view(self, key: str, wait_ms: int, timeout: float | None) -> Any:
        if wait_ms:
            return self._hot.get_view(key, wait_ms, timeout)
        return self._read(self._hot.get_view, key, key, wait_ms, timeout)

    def get_into(self, key: str, *args: Any) -> Any:
        return self._read(self._hot.get_into, key, key, *args)

    def get_range(self, key: str, *args: Any) -> Any:
        return self._read(self._hot.get_range, key, key, *args)

    def write(self, ask: Callable[..., Any], *args: Any) -> Any:
        """A write: what it gives, or 0 where it is dropped."""
        reached, answer = self._reached(ask, args)
        if not reached:
            self.writes_dropped += 1
        return answer if reached else 0

    def put(self, *args: Any) -> Any:
        return self.write(self._hot.put, *args)

    def put_parts(self, *args: Any) -> Any:
        return self.write(self._hot.put_parts, *args)

    def get_many(self, keys: list[str], none_if_missing: bool, timeout: float | None) -> Any:
        reached, answer = self._reached(self._hot.get_many, (keys, none_if_missing, timeout))
        if reached:
            return answer
        self.reads_missed += len(keys)
        absent = [
            None if none_if_missing else NotFoundError("the store is away", path=k) for k in keys
        ]
        return absent, [], []

    def put_many(self, items: list[Any], start: int, out: list[Any], *args: Any) -> Any:
        reached, at = self._reached(self._hot.put_many, (items, start, out, *args))
        if reached:
            return at
        dropped = len(items) - len(out)
        self.writes_dropped += dropped
        out += [0] * dropped
        return len(items)

    def call(self, code: int, flags: int, key: str | None, *args: Any) -> Result:
        ask = self._hot.call
        answer: Result
        if code in READS and not flags & requests.WAIT:
            answer = self._read(ask, key, code, flags, key, *args)
        elif code in WRITES:
            reached, answer = self._reached(ask, (code, flags, key, *args))
            if not reached:
                self.writes_dropped += 1
                return NOTHING_DONE
        else:
            answer = ask(code, flags, key, *args)
        return answer

    def call_many(self, code: int, flags: int, keys: list[str], timeout: float | None) -> Any:
        reached, answer = self._reached(self._hot.call_many, (code, flags, keys, timeout))
        if reached:
            return answer
        if code in WRITES:
            self.writes_dropped += len(keys)
        else:
            self.reads_missed += len(keys)
        return [(-NotFoundError.status, 0, 0, 0, 0, 0, b"")] * len(keys)
