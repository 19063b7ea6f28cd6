"""`connect()` and `AsyncStore`. Its calls stand by theme in values.py, tree.py, waiting.py and
lifetimes.py, on the ground of connection.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crailpy.errors import (
    CrailError,
    ExistsError,
    InvalidArgumentError,
    IsContainerError,
    VersionConflictError,
)

from .. import requests
from ..connection import TIMEOUT_DEFAULT
from .connection import Limit
from .lifetimes import AsyncLifetimes
from .tree import AsyncTree
from .values import AsyncValues

if TYPE_CHECKING:
    from .containers import AsyncQueue, AsyncTable
    from .multifile import AsyncMultiFile


class AsyncStore(AsyncValues, AsyncTree, AsyncLifetimes):
    """A connection to a store, for coroutines of one event loop: the calls of `Store`, awaited.

    Thousands of calls may be under way; they share three connections. No thread runs. A call may
    be cancelled at any time: it leaves nothing behind, and no other call gets its answer. Every
    call takes `timeout=` in seconds. In a forked child it is closed.
    """

    async def open(
        self,
        path: str,
        mode: str = "rb",
        *,
        follow: bool = False,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        timeout: float | None = None,
        **placement: Any,
    ) -> Any:
        """A file whose calls are awaited: modes r, w, x, a, each with +; an `AsyncFile` with b, and
        an `AsyncText` without; see `Store.open`. `encoding`, `errors` and `newline` as for open();
        `buffering` is of text, under a binary file there is no buffer. `timeout` is of each
        call."""
        from .files import open_file

        return await open_file(
            self, path, mode, follow=follow, buffering=buffering, encoding=encoding, errors=errors,
            newline=newline, timeout=timeout, placement=placement,
        )  # fmt: skip

    async def truncate(self, path: str, size: int, *, timeout: float | None = None) -> None:
        """Cuts the value to `size` bytes, or fills it up with zeros; see `Store.truncate`."""
        deadline = self._deadline(timeout)
        size = requests.unsigned(size, "size")
        if size <= requests.INLINE_MAX:
            try:
                await self._run(requests.truncate(path, size), timeout)
                return
            except InvalidArgumentError:
                pass  # the value lies in extents
        if self._circuit is None:
            await self._truncate_by_file(path, size, deadline)
        else:
            breaker: Any = self._changes
            await breaker.write(None, 1, self._truncate_by_file, path, size, deadline)

    async def _truncate_by_file(self, path: str, size: int, deadline: float) -> None:
        async with Limit(deadline, path):
            while True:
                try:
                    left = max(0.0, deadline - self._session.loop.time())
                    async with await self.open(path, "r+b", timeout=left) as file:
                        await file.truncate(size)
                    return
                except VersionConflictError:  # it was changed meanwhile
                    if self._session.loop.time() >= deadline:
                        raise

    async def touch(
        self,
        path: str,
        *,
        exist_ok: bool = True,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> None:
        """Makes an empty value where there is nothing; see `Store.touch`."""
        try:
            _, flags, base = self._conditions(True, None, parents)
            lane = self._changes if exist_ok else self._certain
            await self._put(lane, path, b"", flags, base, timeout, placement)
        except (ExistsError, IsContainerError):
            if not exist_ok:
                raise
            await self._run(requests.set_attributes(path, {}, b""), timeout)

    async def table(
        self, path: str, create: bool = True, *, timeout: float | None = None, **placement: Any
    ) -> AsyncTable:
        """The table at `path`; see `Store.table`."""
        from .containers import AsyncTable, open_container

        await open_container(self, path, create, requests.TABLE, "table", timeout, placement)
        return AsyncTable(self, path, timeout, placement)

    async def queue(
        self, path: str, create: bool = True, *, timeout: float | None = None, **placement: Any
    ) -> AsyncQueue:
        """The queue at `path`; see `Store.queue`."""
        from .containers import AsyncQueue, open_container

        await open_container(self, path, create, requests.QUEUE_KIND, "queue", timeout, placement)
        return AsyncQueue(self, path, timeout, placement)

    async def multifile(
        self, path: str, create: bool = True, *, timeout: float | None = None, **placement: Any
    ) -> AsyncMultiFile:
        """The multifile at `path`; see `Store.multifile`."""
        from .containers import open_container
        from .multifile import AsyncMultiFile

        await open_container(
            self, path, create, requests.MULTIFILE, "multifile", timeout, placement
        )
        return AsyncMultiFile(self, path, timeout, placement)

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Facts about the whole store: namenode counters, servers, sessions."""
        result: dict[str, Any] = await self._admin("status", timeout)
        return result

    async def check(self, *, timeout: float | None = None) -> str | None:
        """Has the namenode walk its whole tree and every granule; requests wait meanwhile.

        Returns None, or the sentence that says which invariant is broken."""
        found = await self._admin("check", timeout)
        return None if found["ok"] else str(found["why"])

    async def _admin(self, method: str, timeout: float | None) -> Any:
        async with Limit(self._deadline(timeout), method):
            try:
                return await self._session.admin(method, {})
            except OSError as error:
                if isinstance(error, CrailError):
                    raise
                raise self._session.unreachable(error) from error

    def client_stats(self) -> dict[str, int]:
        """Counters of this store's client core."""
        counts = self._session.core.stats()
        counts["grants_held"] = self._transfers.grants_held
        if self._circuit is not None:
            counts |= self._circuit.counts()
        return counts


def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    timeout: float = TIMEOUT_DEFAULT,
    transport: str | None = None,
    namespace: str = "/",
    on_unavailable: str = "raise",
) -> AsyncStore:
    """A store that `await` or `async with` connects; arguments as of `crailpy.connect`."""
    from crailpy import config

    settings = config.client_settings()
    return AsyncStore(
        settings["address"] if address is None else address,
        token=token or settings["token"],
        timeout=settings["timeout"] if timeout is TIMEOUT_DEFAULT else timeout,
        transport=transport or settings["transport"],
        namespace=namespace,
        on_unavailable=on_unavailable,
    )
