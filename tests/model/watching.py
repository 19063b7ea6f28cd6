"""What a watch has to tell: the events that the model foresees, held against those that came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Expected:
    kind: str
    path: str
    version: Any  # namespace.Version
    group: int  # those of one group come in any order


@dataclass(eq=False)
class Watch:
    """Of `prefix`, an absolute path, and all below it, by a client."""

    prefix: str
    client: int
    may_resync: bool = False  # its session was lost, or nobody can say what became of its prefix
    expected: list[Expected] = field(default_factory=list)

    def concerns(self, path: str) -> bool:
        return path == self.prefix or path.startswith(self.prefix.rstrip("/") + "/")

    def expect(self, kind: str, path: str, version: Any, group: int) -> None:
        self.expected.append(Expected(kind, path, version, group))

    def explain(self, events: list[tuple[str, str, int]], versions: Any) -> str | None:
        """Takes what has come; a sentence if it is not what was done. After a resync nothing is
        known of what came before."""
        left, self.expected = self.expected, []
        may_resync, self.may_resync = self.may_resync, False
        for event in events:
            if event[0] == "resync":
                return None if may_resync else "a resync without a reason"
            first = [one for one in left if one.group == left[0].group]
            found = next((one for one in first if self._is(one, event, versions)), None)
            if found is None:
                return f"{event}, where {first or 'nothing'} was expected"
            left.remove(found)
        return f"nothing was told of {left}" if left else None

    @staticmethod
    def _is(one: Expected, event: tuple[str, str, int], versions: Any) -> bool:
        kind, path, version = event
        is_there = path.startswith(one.path) if one.path.endswith("/.ticket-") else path == one.path
        return kind == one.kind and is_there and bool(versions.agree(one.version, version))
