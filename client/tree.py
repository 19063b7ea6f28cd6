"""The tree: directories, names, listings."""

from __future__ import annotations

from . import listing, requests
from .connection import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from crailpy.model import NodeInfo


class Tree(Connection):
    """The part of a `Store` that shapes the tree and lists it."""

    def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Makes a directory. Raises ExistsError, NotFoundError (no parent), NotContainerError."""
        self._run(requests.mkdir(path, parents=parents, exist_ok=exist_ok), timeout)

    def rename(
        self, src: str, dst: str, *, overwrite: bool = False, timeout: float | None = None
    ) -> None:
        """Moves a node and all below it, atomically and in constant time.

        Raises NotFoundError, ExistsError, NotEmptyError, IsContainerError, NotContainerError,
        InvalidArgumentError (into itself)."""
        self._run(requests.rename(self._prefix, src, dst, overwrite), timeout)

    def remove(self, path: str, *, timeout: float | None = None) -> None:
        """Removes a value or an empty directory. Raises NotFoundError, NotEmptyError."""
        self._run(requests.remove(path), timeout)

    def rmtree(self, path: str, *, timeout: float | None = None) -> None:
        """Removes a node and all below it; it is gone at once. Raises NotFoundError."""
        self._run(requests.rmtree(path), timeout)

    def listdir(self, path: str = "/", *, timeout: float | None = None) -> list[str]:
        """The names in a directory, in byte order. Raises NotFoundError, NotContainerError."""
        names: list[str] = []
        for page in self._pages(path, timeout):
            names.extend(listing.names(page))
        return names

    def scandir(self, path: str = "/", *, timeout: float | None = None) -> Iterator[NodeInfo]:
        """NodeInfo of each entry in name order, a page at a time. Errors as `listdir`.

        What was there throughout appears exactly once; changes meanwhile may or may not."""
        for page in self._pages(path, timeout):
            yield from listing.entries(path, page)

    def _pages(self, path: str, timeout: float | None) -> Iterator[bytes]:
        cursor: bytes | None = b""
        while cursor is not None:
            page, cursor = self._run(requests.list_page(path, cursor), timeout)
            yield page
