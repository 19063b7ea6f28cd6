"""Multifiles, awaited: a container whose parts, each a file of its own, read as one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from crailpy.errors import ClosedError, InvalidArgumentError, NotFoundError

from .. import requests
from ..multifile import OUTSTANDING_MAX, TICKET
from .files import AsyncFile

if TYPE_CHECKING:
    from types import TracebackType

    from crailpy.model import NodeInfo

    from .store import AsyncStore


class AsyncMultiFile:
    """Parts that many write, each on its own, and that read as one in the order of their names; see
    `MultiFile`."""

    def __init__(
        self, store: AsyncStore, path: str, timeout: float | None, placement: dict[str, Any]
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._placement = placement
        self.path = path

    async def writer(self, name: str | None = None, **options: Any) -> Any:
        """A new part to write, as `AsyncStore.open(..., "xb")` gives it; without a `name`, behind
        all that were opened so before."""
        if name is None:
            name = await self._ticket()
        options = {"timeout": self._timeout} | self._placement | options
        path = f"{self.path}/{name}"
        return await self._store.open(path, options.pop("mode", "xb"), **options)

    async def _ticket(self) -> str:
        """A number that is larger than all before: a version is, in the whole store."""
        store = self._store
        path = f"{self.path}/{TICKET}{store._session.number:x}-{store._token()}"
        # A writer that is killed just here leaves nothing behind.
        version = await store.put(
            path, b"", if_absent=True, parents=False, session=True, timeout=self._timeout
        )
        await store._run(requests.delivered(path, version), self._timeout)
        return f"{version:020d}"

    async def parts(self) -> list[NodeInfo]:
        """What is there, in order. Raises NotFoundError."""
        return [
            part
            async for part in self._store.scandir(self.path, timeout=self._timeout)
            if not part.path.startswith(f"{self.path}/{TICKET}")
        ]

    async def reader(self, outstanding: int = 8) -> AsyncMultiReader:
        """All parts that are there now as one stream, up to `outstanding` of them opened ahead;
        what is removed before that is left out."""
        if not 1 <= outstanding <= OUTSTANDING_MAX:
            raise InvalidArgumentError(f"outstanding={outstanding}: 1 to {OUTSTANDING_MAX}")
        names = [part.path for part in await self.parts()]
        return AsyncMultiReader(self._store, self.path, names, outstanding, self._timeout)

    def __repr__(self) -> str:
        return f"<crailpy.aio.AsyncMultiFile {self.path}>"


class AsyncMultiReader:
    """Reads the parts of a multifile one behind the other, one version of each. For one task at a
    time."""

    def __init__(
        self,
        store: AsyncStore,
        path: str,
        names: list[str],
        outstanding: int,
        timeout: float | None,
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._names = names[::-1]
        self._outstanding = outstanding
        self._ahead: deque[asyncio.Task[AsyncFile | None]] = deque()  # in the order of the parts
        self._closed = False
        self.name = path

    async def _open(self, path: str) -> AsyncFile | None:
        """None: it was removed."""
        try:
            file: AsyncFile = await self._store.open(path, timeout=self._timeout)
        except NotFoundError:
            return None
        return file

    async def _front(self) -> AsyncFile | None:
        """The part to read from; those behind it are being opened. None at the end."""
        if self._closed:
            raise ClosedError("the file is closed", path=self.name)
        while True:
            while self._names and len(self._ahead) < self._outstanding:
                self._ahead.append(asyncio.ensure_future(self._open(self._names.pop())))
            if not self._ahead:
                return None
            # A reader that is cancelled leaves the part to the next call.
            file = await asyncio.shield(self._ahead[0])
            if file is not None:
                return file
            self._ahead.popleft()

    async def _next(self) -> None:
        file = self._ahead.popleft().result()
        if file is not None:
            await file.close()

    async def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as the part goes; 0 at the end of all."""
        while (file := await self._front()) is not None:
            n = await file.readinto(buffer)
            if n or not memoryview(buffer).nbytes:
                return n
            await self._next()
        return 0

    async def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, fewer only at the end; -1: all the rest."""
        parts: list[bytes] = []
        left = -1 if size is None or size < 0 else size
        while left and (file := await self._front()) is not None:
            data = await file.read(left)
            if not data:
                await self._next()
                continue
            parts.append(data)
            left -= len(data) if left > 0 else 0
        return b"".join(parts)

    async def close(self) -> None:
        """May be called twice."""
        self._closed = True
        opening, self._ahead = self._ahead, deque()
        for task in opening:
            task.cancel()
        for found in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(found, AsyncFile):
                await found.close()

    async def __aenter__(self) -> AsyncMultiReader:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
