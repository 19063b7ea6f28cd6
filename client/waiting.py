"""Waiting for others: until something is there, for what changes below a prefix, for each other."""

from __future__ import annotations

from crailpy.errors import (
    ClosedError,
    CrailError,
    DeadlineError,
    NotFoundError,
    SessionLostError,
)

from . import requests
from .connection import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crailpy.model import Event, NodeInfo

END_TIMEOUT = 1.0  # seconds to give something back; else its session's end does it
ROUND = 60.0  # seconds of one turn of an endless wait


class Waiting(Connection):
    """The part of a `Store` that waits. The namenode does it: nobody polls."""

    def wait(
        self,
        path: str,
        *,
        version: int | None = None,
        absent: bool = False,
        timeout: float | None = None,
    ) -> NodeInfo | None:
        """Waits until there is a node at `path`, and gives its facts; with `version`, until its
        version is at least that (pass one more than you have to wait for a change); with `absent`,
        until nothing is there, and gives None. `timeout` seconds at most (None: the store's):
        DeadlineError."""
        seconds = self._timeout if timeout is None else timeout
        info: NodeInfo | None = self._run(
            requests.wait(path, version, absent, seconds, self._kept_at(path)),
            requests.WAY_BACK,
        )
        return info

    def watch(self, prefix: str = "/", *, timeout: float | None = None) -> Watch:
        """What changes from now on at `prefix` and below: an iterator of `Event`, see `Watch`.
        `timeout` seconds at most for each next event, counted anew for each: else DeadlineError,
        and the iteration may go on after it (None: it waits without end). Raises
        QuotaExceededError, where this session has 1,024 watches or has left too many events
        unread."""
        return Watch(self, prefix, timeout)

    def barrier(self, path: str, n: int, *, timeout: float | None = None) -> int:
        """Waits until `n` have come here, each with its own call; returns how often the barrier has
        opened, which is the same for all of them. It can be used again and again.

        `timeout` seconds at most (None: the store's): DeadlineError, and who gives up so, or by
        Ctrl-C, leaves the others waiting. Raises BarrierBrokenError for all when the session of a
        member died, and from then on, until `remove(path)`; InvalidArgumentError for another `n`
        than the others'."""
        seconds = self._timeout if timeout is None else timeout
        token = self._token()
        try:
            opened: int = self._run(requests.enter(path, n, token, seconds), requests.WAY_BACK)
        finally:  # opened, broken, or this member gives up: it leaves, and breaks nothing by that
            self._end(token, requests.WAY_BACK)
        return opened

    def _end(self, token: int, timeout: float = END_TIMEOUT) -> None:
        """Gives a hold back; if that cannot be said, its session's end will."""
        try:
            self._run(requests.end(token), timeout)
        except CrailError:
            pass


class Watch:
    """An iterator of `Event(kind, path, version)`: "put" and "delete" in the order in which they
    happened, and "resync" where some were lost (not read for too long, or the session was): then
    look at the tree again. It never ends by itself: `close()`, also from another thread, ends it; a
    `with` block does. For one reading thread at a time."""

    def __init__(self, store: Waiting, prefix: str, timeout: float | None) -> None:
        self._store = store
        self._timeout = timeout
        self._closed = False
        self._ready: list[Event] = []  # in reverse
        self.prefix = prefix
        self._start()

    def _start(self) -> None:
        self._token = self._store._token()
        self._last = 0
        self._store._run(requests.watch(self.prefix, self._token), self._timeout)

    def next(self, timeout: float | None = None) -> Event:
        """The next event, within `timeout` seconds (None: the watch's): else DeadlineError, and the
        watch goes on. Raises ClosedError."""
        limit = self._timeout if timeout is None else timeout
        if limit is not None:
            return self._next(limit, requests.WAY_BACK)
        while True:
            try:
                return self._next(ROUND, None)
            except DeadlineError:
                continue

    def _next(self, seconds: float, way_back: float | None) -> Event:
        from crailpy.model import Event

        while not self._ready:
            if self._closed:
                raise ClosedError("the watch is closed", path=self.prefix)
            request = requests.next_events(self._store._prefix, self._token, self._last, seconds)
            try:
                events, self._last = self._store._run(request, way_back)
            except (NotFoundError, SessionLostError):
                if self._closed:
                    continue
                self._start()  # the session went, and the watch with it
                events = [Event("resync")]
            self._ready = events[::-1]
        return self._ready.pop()

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Event:
        try:
            return self.next()
        except ClosedError:
            raise StopIteration from None

    def close(self) -> None:
        """Ends it; who iterates comes to the end. May be called twice."""
        if not self._closed:
            self._closed = True
            self._ready = []
            self._store._end(self._token)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
