"""How long nodes live, and what else is known about them, awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crailpy.errors import NotFoundError

from .. import requests
from ..lifetimes import JOBS, check_attributes, job_options, session_directory
from .waiting import AsyncWaiting

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from ..requests import Request


class AsyncLifetimes(AsyncWaiting):
    """The part of an `AsyncStore` that knows when nodes go."""

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
        options = job_options(name, ttl, placement)
        token, path = self._token(), f"{JOBS}/{name}"
        request = requests.job(path, token, quota_bytes, quota_nodes, options)
        return AsyncJob(self, path, token, request, timeout)

    async def session_path(self, *, timeout: float | None = None) -> str:
        """A directory that goes, with all in it, when this session ends; see
        `Store.session_path`."""
        await self._run(requests.ping(), timeout)
        path, owned, made = session_directory(self._session.number)
        try:
            await self._run(owned, timeout)
        except NotFoundError:
            await self._run(made, timeout)
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
        timeout: float | None,
    ) -> None:
        self._store = store
        self._token = token
        self._request = request
        self._timeout = timeout
        self._closed = False
        self.path = path
        #: What the job is called on the wire; 0 until the share is taken.
        self.number = 0

    async def _take(self) -> AsyncJob:
        self.number = await self._store._hold(self._request, self._token, self._timeout)
        return self

    def __await__(self) -> Generator[Any, None, AsyncJob]:
        return self._take().__await__()

    async def __aenter__(self) -> AsyncJob:
        return self if self.number else await self._take()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Gives the share back; the last one takes the job's nodes along. May be called twice."""
        if self.number and not self._closed:
            await self._store._run(requests.end(self._token))
            self._closed = True

    def __repr__(self) -> str:
        return f"<crailpy.aio.AsyncJob {self.path}{' closed' if self._closed else ''}>"
