"""The tree: directories, names, listings."""

from __future__ import annotations

from crailpy.errors import CrailError, NotContainerError, NotFoundError

from . import listing, requests
from .connection import Connection, all_or_batch_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from crailpy.model import NodeInfo

    from .globs import Pattern, States


def say_both(error: CrailError, src: str, dst: str) -> None:
    """Of a rename, whose error may be about its destination: a hint that names both."""
    hints = [f"renaming {src!r} to {dst!r}", error.hint or ""]
    error.hint = "; ".join(filter(None, hints))


class Tree(Connection):
    """The part of a `Store` that shapes the tree and lists it."""

    def exists(self, key: str, *, timeout: float | None = None) -> bool:
        """Whether there is anything at `key`; below a value, there is not."""
        found: bool = self._run(requests.exists(key), timeout)
        return found

    def stat(self, path: str, *, timeout: float | None = None) -> NodeInfo:
        """Facts about a node. Raises NotFoundError."""
        info: NodeInfo = self._run(requests.stat(path, self._tier_of, self._kept_at(path)), timeout)
        return info

    def stat_many(
        self, paths: Iterable[str], *, timeout: float | None = None
    ) -> list[NodeInfo | None]:
        """Facts about each path, in order; None for absent ones. Raises BatchError for other
        failures, whose `.results` has a NodeInfo, None or an error for each path."""
        paths = requests.several(paths)
        each = requests.stat("")
        results = self._hot.call_many(each.code, each.flags, paths, timeout)
        found = requests.node_infos(paths, results, self._error, self._tier_of, self._kept_at)
        return all_or_batch_error(found)

    def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        ttl: float | None = None,
        job: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Makes a directory. It goes, with all below it, `ttl` seconds after it was made, or with a
        `job`. Raises ExistsError, NotFoundError (no parent, no such job), NotContainerError."""
        options = b""
        if ttl is not None or job is not None:
            from .placement import pack

            options, _ = pack(ttl=ttl, job=job)
        made = requests.mkdir(path, parents=parents, exist_ok=exist_ok, options=options)
        self._run(made, timeout)

    def rename(
        self, src: str, dst: str, *, overwrite: bool = False, timeout: float | None = None
    ) -> None:
        """Moves a node and all below it, atomically and in constant time.

        Raises NotFoundError, ExistsError, NotEmptyError, IsContainerError, NotContainerError,
        InvalidArgumentError (into itself)."""
        try:
            request = requests.rename(self._prefix, src, dst, overwrite)
            if self._homes:
                from .placement import say_durability

                say_durability(self._homes, request, dst)
            self._run(request, timeout)
        except CrailError as error:  # about either of them
            say_both(error, src, dst)
            raise

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
            yield from listing.entries(path, page, self._kept_at(f"{path}/"))

    def walk(
        self, top: str = "/", *, topdown: bool = True, timeout: float | None = None
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """(path, names of containers in it, names of values in it), as os.walk: with `topdown` what
        you take out of the list of containers is not entered. `timeout` is of each request.

        A directory that goes meanwhile is left out. Errors of `top` as `listdir`."""
        above: list[str | tuple[str, list[str], list[str]]] = [top]
        while above:
            path = above.pop()
            if isinstance(path, tuple):
                yield path
                continue
            containers: list[str] = []
            values: list[str] = []
            try:
                for entry in self.scandir(path, timeout=timeout):
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

    def glob(self, pattern: str, *, timeout: float | None = None) -> Iterator[str]:
        """The paths that match, in byte order of their components: `*`, `?` and `[...]` within a
        component, `**` for any number of them. `timeout` is of each request.

        Raises InvalidPathError for a pattern that does not begin with a slash."""
        from .globs import Pattern

        matching = Pattern(pattern)
        try:
            info = self.stat(matching.base, timeout=timeout)
        except (NotFoundError, NotContainerError):
            return
        if matching.accepts(matching.start):
            yield matching.base
        if not info.is_dir or not matching.goes_on(matching.start):
            return
        levels = [(matching.start, self._candidates(matching, matching.start, info.path, timeout))]
        while levels:  # the containers that we are in, and what is still to be looked at in each
            states, entries = levels[-1]
            entry = next(entries, None)
            if entry is None:
                levels.pop()
                continue
            after = matching.step(states, entry.name)
            if matching.accepts(after):
                yield entry.path
            if entry.is_dir and matching.goes_on(after):
                levels.append((after, self._candidates(matching, after, entry.path, timeout)))

    def _candidates(
        self, matching: Pattern, states: States, path: str, timeout: float | None
    ) -> Iterator[NodeInfo]:
        """What in `path` may match: all of it, or the one name that can; nothing if it went."""
        name = matching.only_name(states)
        try:
            if name is None:
                yield from self.scandir(path, timeout=timeout)
            else:
                yield self.stat(f"{path.rstrip('/')}/{name}", timeout=timeout)
        except (NotFoundError, NotContainerError):
            return

    def _pages(self, path: str, timeout: float | None) -> Iterator[bytes]:
        cursor: bytes | None = b""
        while cursor is not None:
            page, cursor = self._run(requests.list_page(path, cursor), timeout)
            yield page
