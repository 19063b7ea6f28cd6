"""Multifiles, awaited: a container whose parts, each a file of its own, read as one stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crailpy.errors import ClosedError, NotFoundError

from .. import requests
from ..multifile import TICKET

if TYPE_CHECKING:
    from types import TracebackType

    from crailpy.model import NodeInfo

    from .files import AsyncFile
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
        version = await store.put(path, b"", parents=False, timeout=self._timeout)
        await store._run(requests.delivered(path, version), self._timeout)
        return f"{version:020d}"

    async def parts(self) -> list[NodeInfo]:
        """What is there, in order. Raises NotFoundError."""
        return [
            part
            async for part in self._store.scandir(self.path, timeout=self._timeout)
            if not part.path.startswith(f"{self.path}/{TICKET}")
        ]

    async def reader(self) -> AsyncMultiReader:
        """All parts that are there now as one stream; what is removed before it was reached is left
        out."""
        names = [part.path for part in await self.parts()]
        return AsyncMultiReader(self._store, self.path, names, self._timeout)

    def __repr__(self) -> str:
        return f"<crailpy.aio.AsyncMultiFile {self.path}>"


class AsyncMultiReader:
    """Reads the parts of a multifile one behind the other, one version of each. For one task at a
    time."""

    def __init__(
        self, store: AsyncStore, path: str, names: list[str], timeout: float | None
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._names = names[::-1]
        self._file: AsyncFile | None = None
        self._closed = False
        self.name = path

    async def _front(self) -> AsyncFile | None:
        """The part to read from; None at the end."""
        if self._closed:
            raise ClosedError("the file is closed", path=self.name)
        while self._file is None and self._names:
            try:
                self._file = await self._store.open(self._names[-1], timeout=self._timeout)
            except NotFoundError:
                pass
            self._names.pop()
        return self._file

    async def _next(self) -> None:
        file, self._file = self._file, None
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
        await self._next()

    async def __aenter__(self) -> AsyncMultiReader:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
