"""A small model of docs/NAMESPACE.md: what each call of a store gives, if nobody else calls.

Nothing here knows how the store does it. A call that fails changes nothing; it raises `Refused`
with the name of the error. What was found is returned, with a `Version` where the store gives a
number that nobody can foresee: `Versions.agree` holds such an expectation against what was seen.
"""

from __future__ import annotations

import bisect
import copy
import math
import re
from dataclasses import dataclass, field
from typing import Any

NAME_MAX, PATH_MAX = 255, 4096  # bytes
INLINE_MAX, GRANULE = 4096, 4096  # bytes

FILE, DIRECTORY, TABLE, MULTIFILE, QUEUE = "file", "directory", "table", "multifile", "queue"

#: What a container may hold.
HOLDS = {
    DIRECTORY: {FILE, DIRECTORY, TABLE, MULTIFILE, QUEUE},
    TABLE: {FILE},
    MULTIFILE: {FILE},
    QUEUE: set(),  # its items come by operations of their own
}


class Refused(Exception):
    """The call fails with this error."""

    @property
    def error(self) -> str:
        return str(self.args[0])


@dataclass(eq=False)
class Version:
    """Of one commit; `born` puts them in order. The number is None until the store has told it."""

    born: int
    number: int | None = None

    def __repr__(self) -> str:
        return f"<version {self.number or '?'}, born {self.born}>"


class Versions:
    """All versions there ever were: no two have the same number, a later one has a larger one."""

    def __init__(self) -> None:
        self._born: list[int] = []  # of those whose number is known, in order
        self._numbers: list[int] = []
        self.count = 0

    def new(self) -> Version:
        self.count += 1
        return Version(self.count)

    def learn(self, version: Version, number: Any) -> bool:
        """May this be its number? If so it is."""
        if version.number is not None:
            return version.number == number
        if not isinstance(number, int):
            return False
        at = bisect.bisect(self._born, version.born)
        if at and self._numbers[at - 1] >= number:
            return False
        if at < len(self._numbers) and self._numbers[at] <= number:
            return False
        self._born.insert(at, version.born)
        self._numbers.insert(at, number)
        version.number = number
        return True

    def agree(self, expected: Any, observed: Any) -> bool:
        """Is that the same, versions learned on the way?"""
        if isinstance(expected, Version):
            return self.learn(expected, observed)
        if isinstance(expected, list | tuple):
            return (
                type(observed) is type(expected)
                and len(observed) == len(expected)
                and all(map(self.agree, expected, observed))
            )
        return type(expected) is type(observed) and bool(expected == observed)


@dataclass(eq=False)
class Node:
    kind: str
    version: Version
    value: bytes = b""  # of a file
    children: dict[str, Node] = field(default_factory=dict)  # of a container
    attributes: dict[str, bytes] = field(default_factory=dict)
    goes_when_read: bool = False
    was_streamed: bool = False  # through a file, which does not know how long it will become
    owner: int | None = None  # the client whose session it dies with

    @property
    def is_container(self) -> bool:
        return self.kind != FILE

    @property
    def size(self) -> int:
        return len(self.children) if self.is_container else len(self.value)

    def fact(self, path: str) -> tuple[Any, ...]:
        """What stat and scandir say: path, kind, size, version."""
        return (path, self.kind, self.size, self.version)

    def below(self, path: str) -> list[tuple[str, Node]]:
        """This node and all below, with their paths."""
        found = [(path or "/", self)]
        for name, child in self.children.items():
            found += child.below(f"{path}/{name}")
        return found


def components(path: str) -> list[str]:
    """The names in a path. Refuses what is none."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise Refused("InvalidPathError") from None
    if not path.startswith("/") or len(encoded) > PATH_MAX or "\0" in path:
        raise Refused("InvalidPathError")
    names = path[1:].split("/") if path != "/" else []
    for name in names:
        if name in ("", ".", "..") or len(name.encode()) > NAME_MAX:
            raise Refused("InvalidPathError")
    return names


def is_int64(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 63


#: What says that nothing is there: below a value nothing can be.
ABSENT = ("NotFoundError", "NotContainerError")


def in_byte_order(names: Any) -> list[str]:
    return sorted(names, key=str.encode)


class Namespace:
    """The whole tree, and the calls of a store by their names. Paths are absolute."""

    def __init__(self) -> None:
        self.versions = Versions()
        self.root = Node(DIRECTORY, self.versions.new())

    def copy(self) -> Namespace:
        return copy.deepcopy(self)

    # -- walking ---------------------------------------------------------------

    def _walk(self, path: str) -> tuple[Node, list[str]]:
        """The last node on the way that is there, and the names that are missing behind it."""
        names = components(path)
        node = self.root
        for i, name in enumerate(names):
            if not node.is_container:
                raise Refused("NotContainerError")
            if name not in node.children:
                return node, names[i:]
            node = node.children[name]
        return node, []

    def _existing(self, path: str) -> Node:
        node, missing = self._walk(path)
        if missing:
            raise Refused("NotFoundError")
        return node

    def _file(self, path: str) -> Node:
        node = self._existing(path)
        if node.is_container:
            raise Refused("IsContainerError")
        return node

    def _container(self, path: str) -> Node:
        node = self._existing(path)
        if not node.is_container:
            raise Refused("NotContainerError")
        return node

    def _parent(self, path: str) -> tuple[Node, str]:
        """Of a node that exists and is not the root."""
        names = components(path)
        node = self.root
        for name in names[:-1]:
            node = node.children[name]
        return node, names[-1]

    def _check_takes(self, above: Node, missing: list[str], kind: str) -> None:
        if (DIRECTORY if len(missing) > 1 else kind) not in HOLDS[above.kind]:
            raise Refused("InvalidArgumentError")

    def _make(self, above: Node, missing: list[str], kind: str) -> Node:
        for name in missing[:-1]:
            above.children[name] = Node(DIRECTORY, self.versions.new())
            above = above.children[name]
        above.children[missing[-1]] = node = Node(kind, self.versions.new())
        return node

    def find(self, path: str) -> Node | None:
        try:
            return self._existing(path)
        except Refused:
            return None

    # -- values ----------------------------------------------------------------

    def put(
        self,
        path: str,
        data: bytes,
        if_absent: bool = False,
        if_version: int | None = None,
        parents: bool = True,
        delete_after_read: bool = False,
    ) -> Version:
        node, missing = self._walk(path)
        if len(missing) > 1 and not parents:
            raise Refused("NotFoundError")
        if not missing and node.is_container:
            raise Refused("IsContainerError")
        if missing:
            self._check_takes(node, missing, FILE)
        if not missing and if_absent:
            raise Refused("ExistsError")
        if if_version is not None:
            there = 0 if missing else node.version.number
            assert there is not None, "the machine learns versions before it uses them"
            if there != if_version:
                raise Refused("VersionConflictError")
        if missing:
            node = self._make(node, missing, FILE)
        else:
            node.version = self.versions.new()
        node.value = data
        node.goes_when_read = delete_after_read
        node.was_streamed = False
        return node.version

    def _read(self, path: str) -> Node:
        """A file, of which all is read."""
        node = self._file(path)
        if node.goes_when_read:
            self.remove(path)
        return node

    def get(self, path: str) -> bytes:
        return self._read(path).value

    def get_view(self, path: str) -> tuple[bytes, Version]:
        node = self._read(path)
        return node.value, node.version

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0:
            raise Refused("InvalidArgumentError")
        return self._file(path).value[offset : offset + length]

    def get_into(self, path: str, offset: int, room: int) -> bytes:
        """What is then at the beginning of the buffer of `room` bytes."""
        if offset < 0:
            raise Refused("InvalidArgumentError")
        value = self._file(path).value
        if offset > len(value) or len(value) - offset > room:
            raise Refused("InvalidArgumentError")
        if offset == 0:
            self._read(path)
        return value[offset:]

    def put_many(
        self, items: list[tuple[str, bytes]], if_absent: bool = False, parents: bool = True
    ) -> list[Any]:
        return self._each(lambda item: self.put(*item, if_absent, None, parents), items)

    def get_many(self, paths: list[str], missing: str = "raise") -> list[Any]:
        found = self._each(
            lambda path: self._file(path).value, paths, none_if_absent=missing == "none"
        )
        for path in paths:  # all are read before the first of them goes
            node = self.find(path)
            if node is not None and node.goes_when_read:
                self.remove(path)
        return found

    def _each(self, call: Any, items: Any, none_if_absent: bool = False) -> list[Any]:
        """One outcome for each, in order: ("ok", result) or ("error", name)."""
        outcomes: list[Any] = []
        for item in items:
            try:
                outcomes.append(("ok", call(item)))
            except Refused as refused:
                absent = none_if_absent and refused.error in ABSENT
                outcomes.append(("ok", None) if absent else ("error", refused.error))
        return outcomes

    def delete(self, path: str, missing_ok: bool = False) -> None:
        try:
            node = self._existing(path)
        except Refused as refused:
            if missing_ok and refused.error in ABSENT:
                return
            raise
        if node is not self.root and node.is_container:
            raise Refused("IsContainerError")
        self.remove(path)

    def delete_many(self, paths: list[str]) -> list[Any]:
        return self._each(lambda path: self.delete(path, missing_ok=True), paths)

    def exists(self, path: str) -> bool:
        try:
            return not self._walk(path)[1]
        except Refused as refused:
            if refused.error in ABSENT:
                return False
            raise

    def stat(self, path: str) -> tuple[Any, ...]:
        return self._existing(path).fact(path)

    def stat_many(self, paths: list[str]) -> list[Any]:
        return self._each(self.stat, paths, none_if_absent=True)

    def write_file(self, path: str, mode: str, pieces: list[bytes], fate: str) -> Version | None:
        """open(path, mode), write each piece, and close, or leave by an exception."""
        if mode == "xb" and not self._walk(path)[1]:
            raise Refused("ExistsError")
        if fate != "close":
            return None
        version = self.put(path, b"".join(pieces), if_absent=mode == "xb")
        self._file(path).was_streamed = True
        return version

    def edit_file(self, path: str, mode: str, edits: list[tuple[str, Any]], fate: str) -> None:
        """open(path, mode), then each of seek, write, truncate with its argument, and the end."""
        appends, made = mode == "ab", False
        try:
            node = self._file(path)
        except Refused as refused:
            if not appends or refused.error != "NotFoundError":
                raise
            self.put(path, b"")
            node, made = self._file(path), True
        value, at, dirty = bytearray(node.value), 0, False
        for what, argument in edits:
            if what == "seek":
                at = argument
            elif what == "write" and argument:
                at = len(value) if appends else at
                value[at:] = bytes(max(0, at - len(value))) + value[at:]
                value[at : at + len(argument)] = argument
                at += len(argument)
                dirty = True
            elif what == "truncate" and argument != len(value):
                value[argument:] = bytes(max(0, argument - len(value)))
                dirty = True
        if dirty and fate == "close":
            node.value, node.version = bytes(value), self.versions.new()
            node.was_streamed = True
        elif made and fate != "close":
            self.delete(path)

    def truncate(self, path: str, size: int) -> None:
        node = self._file(path)
        if size == node.size > INLINE_MAX:
            return  # nothing to do; of a small value it is a new version nevertheless
        node.value = node.value[:size] + bytes(max(0, size - node.size))
        node.version = self.versions.new()
        node.was_streamed = True

    def incr(self, path: str, by: int) -> int:
        node = self.find(path)
        number = 0
        if node is not None and not node.is_container:
            text = node.value.decode("latin-1")
            if not re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII) or not is_int64(int(text)):
                raise Refused("InvalidArgumentError")
            number = int(text)
        if not is_int64(number + by):
            raise Refused("InvalidArgumentError")
        keep = node is not None and node.goes_when_read
        self.put(path, b"%d" % (number + by), delete_after_read=keep)
        return number + by

    # -- tree --------------------------------------------------------------------

    def mkdir(
        self, path: str, parents: bool = False, exist_ok: bool = False, kind: str = DIRECTORY
    ) -> None:
        node, missing = self._walk(path)
        if len(missing) > 1 and not parents:
            raise Refused("NotFoundError")
        if not missing:
            if node.kind != kind or not exist_ok:
                raise Refused("ExistsError")
            return
        self._check_takes(node, missing, kind)
        self._make(node, missing, kind)

    def make(self, path: str, kind: str) -> None:
        """table(path), multifile(path), queue(path)."""
        self.mkdir(path, parents=True, exist_ok=True, kind=kind)

    def join(self, path: str, kind: str) -> None:
        """The same with create=False."""
        if self._existing(path).kind != kind:
            raise Refused("NotContainerError")

    def rename(self, src: str, dst: str, overwrite: bool = False) -> None:
        components(dst)
        moved = self._existing(src)
        above, missing = self._walk(dst)
        if len(missing) > 1:
            raise Refused("NotFoundError")
        old = None if missing else above
        if moved is self.root:
            raise Refused("InvalidArgumentError")
        if old is moved:
            return
        # into itself; where the root is, that is nowhere
        to = above if missing else old is not self.root and self._parent(dst)[0]
        if moved.is_container and any(node is to for _, node in moved.below("")):
            raise Refused("InvalidArgumentError")
        if isinstance(to, Node):
            self._check_takes(to, ["it"], moved.kind)
        if old is not None:
            if not overwrite:
                raise Refused("ExistsError")
            if old.is_container and not moved.is_container:
                raise Refused("IsContainerError")
            if moved.is_container and not old.is_container:
                raise Refused("NotContainerError")
            if moved.kind != old.kind:
                raise Refused("ExistsError")
            if old.children:
                raise Refused("NotEmptyError")
        from_dir, from_name = self._parent(src)
        to_dir, to_name = (above, missing[0]) if missing else self._parent(dst)
        del from_dir.children[from_name]
        to_dir.children[to_name] = moved
        moved.version = self.versions.new()  # what lies below keeps its own

    def remove(self, path: str) -> None:
        node = self._existing(path)
        if node is self.root:
            raise Refused("InvalidArgumentError")
        if node.children:
            raise Refused("NotEmptyError")
        above, name = self._parent(path)
        del above.children[name]

    def rmtree(self, path: str) -> None:
        if self._existing(path) is self.root:
            raise Refused("InvalidArgumentError")
        above, name = self._parent(path)
        del above.children[name]

    def listdir(self, path: str) -> list[str]:
        return in_byte_order(self._container(path).children)

    def scandir(self, path: str) -> list[tuple[Any, ...]]:
        children = self._container(path).children
        prefix = path.rstrip("/")
        return [children[name].fact(f"{prefix}/{name}") for name in in_byte_order(children)]

    # -- attributes and lifetimes ----------------------------------------------------

    def setattr(self, path: str, changes: dict[str, bytes | None]) -> None:
        node = self._existing(path)
        for name, value in changes.items():
            node.attributes.pop(name, None)
            if value is not None:
                node.attributes[name] = value

    def attributes(self, path: str) -> dict[str, bytes]:
        return dict(self._existing(path).attributes)

    def expire(self, path: str) -> None:
        """setattr(path, ttl=...), and the time passes."""
        self.rmtree(path)

    def session_directory(self, path: str, owner: int) -> None:
        """What session_path() made for this client."""
        self.mkdir(path, parents=True, exist_ok=True)
        self._existing(path).owner = owner

    def session_ends(self, owner: int) -> None:
        for path, node in self.nodes():
            if node.owner == owner and self.find(path) is node:
                self.rmtree(path)

    # -- totals --------------------------------------------------------------------

    def nodes(self) -> list[tuple[str, Node]]:
        """Everything, the root included."""
        return self.root.below("")

    def totals(self) -> dict[str, int]:
        nodes = [node for _, node in self.nodes()]
        containers = sum(node.is_container for node in nodes)
        return {
            "nodes": len(nodes),
            "files": len(nodes) - containers,
            "directories": containers,
        }


def granules_bounds(node: Node) -> tuple[int, float]:
    """How many granules the value takes, at least and at most."""
    least = 0 if node.is_container or node.size <= INLINE_MAX else -(-node.size // GRANULE)
    if node.was_streamed:  # it may have been longer, and an extent is never cut
        return least, math.inf
    return least, least + least // 4
