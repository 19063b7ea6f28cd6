"""Waiting for others, awaited: until something is there, for what changes, for each other."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from crailpy.errors import ClosedError, CrailError, DeadlineError, NotFoundError, SessionLostError

from .. import requests
from ..waiting import END_TIMEOUT, ROUND
from .connection import AsyncConnection, Limit

if TYPE_CHECKING:
    from types import TracebackType

    from crailpy.model import Event, NodeInfo

    from ..requests import Request, Result


class AsyncWaiting(AsyncConnection):
    """The part of an `AsyncStore` that waits. Any number may wait on one store."""

    async def wait(
        self,
        path: str,
        *,
        version: int | None = None,
        absent: bool = False,
        timeout: float | None = None,
    ) -> NodeInfo | None:
        """Waits until there is a node at `path`; see `Store.wait`."""
        seconds = self._timeout if timeout is None else timeout
        info: NodeInfo | None = await self._run(
            requests.wait(path, version, absent, seconds, self._kept_at(path)),
            requests.WAY_BACK,
        )
        return info

    def watch(self, prefix: str = "/", *, timeout: float | None = None) -> AsyncWatch:
        """What changes from now on at `prefix` and below: `async with await store.watch(...)`
        gives an asynchronous iterator of `Event`; see `Store.watch`."""
        return AsyncWatch(self, prefix, timeout)

    async def barrier(self, path: str, n: int, *, timeout: float | None = None) -> int:
        """Waits until `n` have come here; see `Store.barrier`. A member that is cancelled leaves
        the others waiting."""
        seconds = self._timeout if timeout is None else timeout
        token = self._token()
        try:
            opened: int = await self._hold(
                requests.enter(path, n, token, seconds), token, requests.WAY_BACK
            )
        finally:  # opened, broken, or this member gives up: until then its place is kept for it
            self._end(token)
        return opened

    async def _hold(self, request: Request, token: int, timeout: float | None) -> Any:
        """Runs a request that makes a hold. Whoever gives up leaves none behind: the request may
        be on its way still, so that its answer is awaited before the hold is ended."""
        return await self._run(request, timeout, partial(self._hold_once, request, token))

    async def _hold_once(
        self, r: Request, token: int, wait_ms: int, timeout: float | None
    ) -> Result:
        lane = self._session.reads.native
        flags = r.flags | (requests.WAIT if wait_ms else 0)
        limit = Limit(self._deadline(timeout), r.path or "")
        future, frame = lane.call(
            r.code,
            flags,
            r.path,
            r.data,
            r.options,
            wait_ms or r.count,
            r.arg0,
            r.arg1,
            True,
            math.inf,
        )
        try:
            async with limit:
                return await asyncio.shield(future)
        except (asyncio.CancelledError, DeadlineError):
            if future.done() or not lane.cancel(frame):
                await self._leave(future, token)
            raise

    async def _leave(self, future: asyncio.Future[Result], token: int) -> None:
        """Ends a hold whose request was sent: when its answer is here, or (cancelled) will never
        come. Waits for that, but not for long: the rest goes on by itself."""
        left = self._session.loop.create_future()

        def over(ended: asyncio.Future[Result]) -> None:
            ended.exception()  # NotFoundError, mostly: it has ended by itself
            left.cancel()

        def answered(future: asyncio.Future[Result]) -> None:
            if not future.cancelled() and future.exception() is not None:
                left.cancel()  # there is none
                return
            r = requests.end(token)
            try:
                ended, _ = self._session.changes.native.call(
                    r.code, 0, None, b"", b"", 0, token, 0, False, END_TIMEOUT
                )
            except (CrailError, RuntimeError):  # closed, it or its loop
                left.cancel()
            else:
                ended.add_done_callback(over)

        if future.done():
            answered(future)
        else:
            future.add_done_callback(answered)
        await asyncio.wait([left], timeout=END_TIMEOUT)

    def _end(self, token: int) -> None:
        """Gives a hold back; if that cannot be said, its session's end will."""
        self._post(requests.end(token))


class AsyncWatch:
    """An asynchronous iterator of `Event(kind, path, version)`; see `Watch`. Begun by `await` or
    `async with`; `close()` ends it, and who iterates comes to the end. For one reader at a time."""

    def __init__(self, store: AsyncWaiting, prefix: str, timeout: float | None) -> None:
        self._store = store
        self._timeout = timeout
        self._closed = False
        self._token = 0
        self._last = 0
        self._ready: list[Event] = []  # in reverse
        self._reading: asyncio.Task[Event] | None = None
        self.prefix = prefix

    async def _start(self) -> AsyncWatch:
        token = self._store._token()
        await self._store._hold(requests.watch(self.prefix, token), token, self._timeout)
        self._token, self._last = token, 0
        return self

    def __await__(self) -> Any:
        return self._start().__await__()

    async def __aenter__(self) -> AsyncWatch:
        return self if self._token else await self._start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def next(self, timeout: float | None = None) -> Event:
        """The next event, within `timeout` seconds (None: the watch's); see `Watch.next`."""
        limit = self._timeout if timeout is None else timeout
        if limit is not None:
            return await self._next(limit, requests.WAY_BACK)
        while True:
            try:
                return await self._next(ROUND, None)
            except DeadlineError:
                continue

    async def _next(self, seconds: float, way_back: float | None) -> Event:
        from crailpy.model import Event

        while not self._ready:
            if self._closed:
                raise ClosedError("the watch is closed", path=self.prefix)
            if not self._token:
                await self._start()
            request = requests.next_events(self._store._prefix, self._token, self._last, seconds)
            try:
                events, self._last = await self._store._run(request, way_back)
            except (NotFoundError, SessionLostError):
                if self._closed:
                    continue
                await self._start()  # the session went, and the watch with it
                events = [Event("resync")]
            self._ready = events[::-1]
        return self._ready.pop()

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.next()
        except ClosedError:
            raise StopAsyncIteration from None

    async def close(self) -> None:
        """Ends it. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._ready = []
        if self._token:
            try:
                await self._store._run(requests.end(self._token), END_TIMEOUT)
            except CrailError:
                pass  # its session's end will do it
