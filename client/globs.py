"""Patterns over paths, as pathlib has them: `*`, `?` and `[...]` within a component, `**` for any
number of components. Names that begin with a dot are nothing special."""

from __future__ import annotations

from crailpy.errors import InvalidPathError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    States = frozenset[int]  # how many parts of the pattern may have been matched so far

_ANY_DEPTH = "**"
_SPECIAL = frozenset("*?[")


class Pattern:
    """A pattern, walked down a tree one name at a time, so that no node is met twice.

    `base` is the part above the first wildcard: a path. Raises InvalidPathError."""

    def __init__(self, pattern: str) -> None:
        if not pattern.startswith("/"):
            raise InvalidPathError("a pattern begins with a slash", path=pattern)
        parts = [part for part in pattern.split("/") if part]
        fixed = 0
        while fixed < len(parts) and not _SPECIAL & set(parts[fixed]):
            fixed += 1
        self.base = "/" + "/".join(parts[:fixed])
        self._parts = parts[fixed:]
        self._matches = [self._matcher(part) for part in self._parts]
        self.start = self._closed({0})

    @staticmethod
    def _matcher(part: str) -> Callable[[str], object]:
        if not _SPECIAL & set(part):
            return part.__eq__
        import fnmatch
        import re

        return re.compile(fnmatch.translate(part)).match

    def _closed(self, states: set[int]) -> States:
        """`**` may be over before it began."""
        for i in sorted(states):
            while i < len(self._parts) and self._parts[i] == _ANY_DEPTH:
                i += 1
                states.add(i)
        return frozenset(states)

    def step(self, states: States, name: str) -> States:
        """What is matched after one more name; empty if nothing."""
        after = set()
        for i in states:
            if i == len(self._parts):
                continue
            if self._parts[i] == _ANY_DEPTH:
                after.add(i)
            elif self._matches[i](name):
                after.add(i + 1)
        return self._closed(after)

    def accepts(self, states: States) -> bool:
        """Is the whole pattern matched?"""
        return len(self._parts) in states

    def goes_on(self, states: States) -> bool:
        """May something below match?"""
        return any(i < len(self._parts) for i in states)

    def only_name(self, states: States) -> str | None:
        """The one name that can match next, if there is only one: it need not be searched for."""
        names = {self._parts[i] for i in states if i < len(self._parts)}
        name = names.pop() if len(names) == 1 else "*"
        return None if _SPECIAL & set(name) else name
