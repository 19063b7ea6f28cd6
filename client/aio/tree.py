"""The tree: directories, names, listings, awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crailpy.errors import CrailError, NotContainerError, NotFoundError

from .. import listing, requests
from ..connection import all_or_batch_error
from ..tree import say_both
from .connection import AsyncConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from crailpy.model import NodeInfo

    from ..globs import Pattern, States


class AsyncTree(AsyncConnection):
    """The part of an `AsyncStore` that shapes the tree and lists it. Arguments, results and errors
    are those of `Store`."""

    async def exists(self, key: str, *, timeout: float | None = None) -> bool:
        """Whether there is anything at `key`."""
        found: bool = await self._run(requests.exists(key), timeout)
        return found

    async def stat(self, path: str, *, timeout: float | None = None) -> NodeInfo:
        """Facts about a node. Raises NotFoundError."""
        ask = requests.stat(path, self._tiers.get, self._kept_at(path))
        info: NodeInfo = await self._run(ask, timeout)
        if await self._learn_tiers([info]):
            info = await self._run(ask, timeout)
        return info

    async def _learn_tiers(self, infos: Iterable[NodeInfo | None]) -> bool:
        """Asks for the tiers of servers that are named for the first time. False: there were none,
        or nobody can say."""
        learned = False
        for server in {i.locations[0]["server"] for i in infos if i and i.locations}:
            if server not in self._tiers:
                try:
                    self._tiers[server] = (await self._session.describe(server))["tier"]
                    learned = True
                except CrailError:
                    pass
        return learned

    async def stat_many(
        self, paths: Iterable[str], *, timeout: float | None = None
    ) -> list[NodeInfo | None]:
        """Facts about each path, in order; see `Store.stat_many`."""
        paths = requests.several(paths)
        each = requests.stat("")
        results = await self._reads.call_many(each.code, each.flags, paths, timeout)

        def infos() -> list[Any]:
            return [
                None
                if isinstance(r, requests.ABSENT_ERRORS)
                else r
                if isinstance(r, CrailError)
                else requests.stat(path, self._tiers.get, self._kept_at(path)).decode(r)
                for path, r in zip(paths, results, strict=True)
            ]

        found = all_or_batch_error(infos())
        return infos() if await self._learn_tiers(found) else found

    async def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        ttl: float | None = None,
        job: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Makes a directory; see `Store.mkdir`."""
        options = b""
        if ttl is not None or job is not None:
            from ..placement import pack

            options, _ = pack(ttl=ttl, job=job)
        made = requests.mkdir(path, parents=parents, exist_ok=exist_ok, options=options)
        await self._run(made, timeout)

    async def rename(
        self, src: str, dst: str, *, overwrite: bool = False, timeout: float | None = None
    ) -> None:
        """Moves a node and all below it; see `Store.rename`."""
        try:
            request = requests.rename(self._prefix, src, dst, overwrite)
            if self._homes:
                from ..placement import say_durability

                say_durability(self._homes, request, dst)
            await self._run(request, timeout)
        except CrailError as error:  # about either of them
            say_both(error, src, dst)
            raise

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
            for entry in listing.entries(path, page, self._kept_at(f"{path}/")):
                yield entry

    async def walk(
        self, top: str = "/", *, topdown: bool = True, timeout: float | None = None
    ) -> AsyncIterator[tuple[str, list[str], list[str]]]:
        """(path, names of containers in it, names of values in it); see `Store.walk`."""
        above: list[str | tuple[str, list[str], list[str]]] = [top]
        while above:
            path = above.pop()
            if isinstance(path, tuple):
                yield path
                continue
            containers: list[str] = []
            values: list[str] = []
            try:
                async for entry in self.scandir(path, timeout=timeout):
                    (containers if entry.is_dir else values).append(entry.name)
            except (NotFoundError, NotContainerError):
                if path == top:
                    raise
                continue
            if topdown:
                yield path, containers, values
            else:
                above.append((path, containers, values))
            folder = path.rstrip("/")
            above += [f"{folder}/{name}" for name in reversed(containers)]

    async def glob(self, pattern: str, *, timeout: float | None = None) -> AsyncIterator[str]:
        """The paths that match, in byte order of their components; see `Store.glob`."""
        from ..globs import Pattern

        matching = Pattern(pattern)
        try:
            info = await self.stat(matching.base, timeout=timeout)
        except (NotFoundError, NotContainerError):
            return
        if matching.accepts(matching.start):
            yield matching.base
        if not info.is_dir or not matching.goes_on(matching.start):
            return
        levels = [(matching.start, self._candidates(matching, matching.start, info.path, timeout))]
        while levels:  # the containers that we are in, and what is still to be looked at in each
            states, entries = levels[-1]
            entry = await anext(entries, None)
            if entry is None:
                levels.pop()
                continue
            after = matching.step(states, entry.name)
            if matching.accepts(after):
                yield entry.path
            if entry.is_dir and matching.goes_on(after):
                levels.append((after, self._candidates(matching, after, entry.path, timeout)))

    async def _candidates(
        self, matching: Pattern, states: States, path: str, timeout: float | None
    ) -> AsyncIterator[NodeInfo]:
        """What in `path` may match: all of it, or the one name that can; nothing if it went."""
        name = matching.only_name(states)
        try:
            if name is None:
                async for entry in self.scandir(path, timeout=timeout):
                    yield entry
            else:
                yield await self.stat(f"{path.rstrip('/')}/{name}", timeout=timeout)
        except (NotFoundError, NotContainerError):
            return

    async def _pages(self, path: str, timeout: float | None) -> AsyncIterator[bytes]:
        cursor: bytes | None = b""
        while cursor is not None:
            page, cursor = await self._run(requests.list_page(path, cursor), timeout)
            yield page
