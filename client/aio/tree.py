"""The tree: directories, names, listings, awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import listing, requests
from .connection import AsyncConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crailpy.model import NodeInfo


class AsyncTree(AsyncConnection):
    """The part of an `AsyncStore` that shapes the tree and lists it. Arguments, results and errors
    are those of `Store`."""

    async def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Makes a directory; see `Store.mkdir`."""
        await self._run(requests.mkdir(path, parents=parents, exist_ok=exist_ok), timeout)

    async def rename(
        self, src: str, dst: str, *, overwrite: bool = False, timeout: float | None = None
    ) -> None:
        """Moves a node and all below it; see `Store.rename`."""
        await self._run(requests.rename(self._prefix, src, dst, overwrite), timeout)

    async def remove(self, path: str, *, timeout: float | None = None) -> None:
        """Removes a value or an empty container; see `Store.remove`."""
        await self._run(requests.remove(path), timeout)

    async def rmtree(self, path: str, *, timeout: float | None = None) -> None:
        """Removes a node and all below it; see `Store.rmtree`."""
        await self._run(requests.rmtree(path), timeout)

    async def listdir(self, path: str = "/", *, timeout: float | None = None) -> list[str]:
        """The names in a container, in byte order; see `Store.listdir`."""
        names: list[str] = []
        async for page in self._pages(path, timeout):
            names.extend(listing.names(page))
        return names

    async def scandir(
        self, path: str = "/", *, timeout: float | None = None
    ) -> AsyncIterator[NodeInfo]:
        """NodeInfo of each entry in name order, a page at a time; see `Store.scandir`."""
        async for page in self._pages(path, timeout):
            for entry in listing.entries(path, page):
                yield entry

    async def _pages(self, path: str, timeout: float | None) -> AsyncIterator[bytes]:
        cursor: bytes | None = b""
        while cursor is not None:
            page, cursor = await self._run(requests.list_page(path, cursor), timeout)
            yield page
