"""How long nodes live, and what else is known about them, awaited."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from crailpy.errors import SessionLostError

from .. import requests
from ..lifetimes import JOBS, check_attributes, job_lost, job_options, session_directory
from .waiting import AsyncWaiting

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from ..requests import Request, Result


class AsyncLifetimes(AsyncWaiting):
    """The part of an `AsyncStore` that knows when nodes go."""

    _directory_of = 0  # the session that has made its directory

    def job(
        self,
        name: str,
        *,
        ttl: float = 60.0,
        quota_bytes: int | str | None = None,
        quota_nodes: int | None = None,
        timeout: float | None = None,
        **placement: Any,
    ) -> AsyncJob:
        """A share in the job `name`, by `await` or `async with`; see `Store.job`."""
        options = job_options(name, ttl, placement, self._session.durability)
        token, path = self._token(), f"{JOBS}/{name}"
        request = requests.job(path, token, quota_bytes, quota_nodes, options)
        return AsyncJob(self, path, token, request, placement, timeout)

    async def session_path(self, *, timeout: float | None = None) -> str:
        """A directory that goes, with all in it, when this session ends; see
        `Store.session_path`."""
        await self._run(requests.ping(), timeout)
        number = self._session.number
        kept = "none" if self._directory_of == number else self._session.durability
        path, made, owned = session_directory(number, kept)
        await self._run(made, timeout)
        await self._run(owned, timeout)
        self._directory_of = number
        return path

    async def setattr(self, path: str, *, timeout: float | None = None, **attributes: Any) -> None:
        """Changes attributes of a node, all at once; see `Store.setattr`."""
        options = check_attributes(path, attributes)
        await self._run(requests.set_attributes(path, attributes, options), timeout)

    async def attributes(self, path: str, *, timeout: float | None = None) -> dict[str, bytes]:
        """The user attributes of a node. Raises NotFoundError."""
        found: dict[str, bytes] = await self._run(requests.attributes(path), timeout)
        return found


class AsyncJob:
    """A share in a job; see `Job`. Taken by `await` or `async with`."""

    def __init__(
        self,
        store: AsyncLifetimes,
        path: str,
        token: int,
        request: Request,
        placement: dict[str, Any],
        timeout: float | None,
    ) -> None:
        self._store = store
        self._token = token
        self._request = request
        self._placement = placement
        self._timeout = timeout
        self._closed = False
        self._lost = False
        self._number = 0
        self._asked: asyncio.Future[Result] | None = None  # for the share in the present session
        self.path = path

    @property
    def number(self) -> int:
        """What the job is called on the wire; 0 until the share is taken. Raises SessionLostError,
        see `Job`."""
        if self._lost:
            raise job_lost(self.path)
        return self._number

    async def _take(self) -> AsyncJob:
        self._number = await self._store._hold(self._request, self._token, self._timeout)
        self._store._jobs.append(self)
        if self._placement:
            self._store._homes[self.path] = self._placement
        return self

    def _hold_again(self) -> None:
        """Asks for the share in a new session."""
        r = requests.job_again(self.path, self._token)
        reads = self._store._session.reads.native
        self._asked, _ = reads.call(
            r.code, 0, r.path, r.data, b"", 0, r.arg0, 0, True, math.inf
        )  # fmt: skip
        self._asked.add_done_callback(self._answered)

    def _answered(self, asked: asyncio.Future[Result]) -> None:
        if asked.cancelled():
            return
        error = asked.exception()
        if error is None:
            self._lost = self._lost or asked.result()[0] != self._number
            if self._lost:  # another one of the same name
                self._store._end(self._token)
        elif isinstance(error, requests.JOB_ENDED):
            self._lost = True

    def __await__(self) -> Generator[Any, None, AsyncJob]:
        return self._take().__await__()

    async def __aenter__(self) -> AsyncJob:
        return self if self._number else await self._take()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except SessionLostError:
            if kind is None:  # else there is something more to be told
                raise

    async def close(self) -> None:
        """Gives the share back; the last one takes the job's nodes along. May be called twice.
        Raises SessionLostError (the job had ended), UnavailableError, DeadlineError."""
        if not self._number or self._closed:
            return
        await self._end()
        self._closed = True
        self._store._jobs.remove(self)
        if self._store._homes.get(self.path) is self._placement:
            del self._store._homes[self.path]
        if self._lost:
            raise job_lost(self.path)

    async def _end(self) -> None:
        """Behind the answer to what was asked; if a new session came of it, there once more."""
        while True:
            asked = self._asked
            if asked is not None:
                async with self._store._limit(self._store._deadline(None), self.path):
                    await asyncio.wait([asked])
            await self._store._run(requests.end(self._token))
            if self._asked is asked:
                return

    def __repr__(self) -> str:
        state = " lost" if self._lost else " closed" if self._closed else ""
        return f"<crailpy.aio.AsyncJob {self.path}{state}>"
