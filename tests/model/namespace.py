"""A small model of docs/NAMESPACE.md: what each call of a store gives, if nobody else calls.

Nothing here knows how the store does it. A call that fails changes nothing; it raises `Refused`
with the name of the error. What was found is returned, with a `Version` where the store gives a
number that nobody can foresee: `Versions.agree` holds such an expectation against what was seen.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import fnmatch
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .watching import Watch

NAME_MAX, PATH_MAX = 255, 4096  # bytes
INLINE_MAX, GRANULE = 4096, 4096  # bytes

FILE, DIRECTORY, TABLE, MULTIFILE, QUEUE = "file", "directory", "table", "multifile", "queue"
BARRIER = "barrier"
SHORT_TTL = 0.02  # seconds; of a job whose end the machine waits for. Others are far away
TICKET = ".ticket-"  # what a multifile's writer makes for a moment begins with it
OBJECT = b"CRO1"  # begins a value that is an object, or was made of one

#: What a container may hold.
HOLDS = {
    DIRECTORY: {FILE, DIRECTORY, TABLE, MULTIFILE, QUEUE, BARRIER},
    TABLE: {FILE},
    MULTIFILE: {FILE},
    QUEUE: set(),  # its items come by operations of their own
}
CONTAINERS = tuple(HOLDS)


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
class Job:
    ttl: float
    quota_bytes: int = 0  # 0: no limit
    quota_nodes: int = 0
    ended: bool = False
    shares: set[int] = field(default_factory=set)
    members: list[Node] = field(default_factory=list)  # by their own option, the latest first


@dataclass(eq=False)
class Barrier:
    members: int
    rounds: int = 0
    broken: bool = False


@dataclass(eq=False)
class Node:
    kind: str
    version: Version
    value: bytes = b""  # of a file
    committed: int = 0  # ... when its version was born; a rename makes none
    children: dict[str, Node] = field(default_factory=dict)  # of a container
    attributes: dict[str, bytes] = field(default_factory=dict)
    goes_when_read: bool = False
    evictable: bool = False
    was_streamed: bool = False  # through a file, which does not know how long it will become
    stripe: int = 1
    owner: int | None = None  # the client whose session it dies with
    job: Job | None = None  # whose directory it is
    member_of: Job | None = None
    is_item: bool = False  # of a queue
    taken: tuple[int, int] | None = None  # such an item: by this client, under this handle
    barrier: Barrier | None = None

    @property
    def is_container(self) -> bool:
        return self.kind in CONTAINERS

    @property
    def has_life(self) -> bool:
        """Was anything said of its end?"""
        return self.goes_when_read or self.evictable or self.member_of is not None

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


def is_match(parts: list[str], names: list[str]) -> bool:
    """Do the names match this pattern, `**` being any number of them?"""
    if not parts:
        return not names
    if parts[0] == "**":
        return is_match(parts[1:], names) or (bool(names) and is_match(parts, names[1:]))
    return (
        bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and is_match(parts[1:], names[1:])
    )


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
        self.shares: dict[int, tuple[int, Job, str]] = {}  # in jobs, by handle: whose, which, where
        self.watches: dict[int, Watch] = {}  # by handle
        self.objects: dict[bytes, Any] = {}  # that were put, by their bytes
        self._groups = 0  # of events
        self._group: int | None = None

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
        if node.kind != FILE:
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

    def _make(self, path: str, above: Node, missing: list[str], kind: str) -> Node:
        whole = components(path)
        for i in range(len(missing) - 1, -1, -1):
            node = Node(DIRECTORY if i else kind, self.versions.new())
            above.children[missing[-1 - i]] = node
            self._tell("put", "/" + "/".join(whole[: len(whole) - i]), node.version)
            above = node
        return above

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
        evictable: bool = False,
        stripe: int = 1,
        job: int | None = None,
    ) -> Version:
        node, missing = self._walk(path)
        if len(missing) > 1 and not parents:
            raise Refused("NotFoundError")
        self._check_leaf(node, missing)
        if not missing and if_absent:
            raise Refused("ExistsError")
        if if_version is not None:
            there = 0 if missing else node.version.number
            assert there is not None, "the machine learns versions before it uses them"
            if there != if_version:
                raise Refused("VersionConflictError")
        of = self._job(job)
        self._admit(path, node, missing, len(data), of)
        if missing:
            node = self._make(path, node, missing, FILE)
        self._change(path, node, data, is_new=bool(missing))
        node.goes_when_read, node.evictable, node.stripe = delete_after_read, evictable, stripe
        self._join(node, of)
        return node.version

    def _check_leaf(self, node: Node, missing: list[str]) -> None:
        """May a value be put there?"""
        if missing:
            self._check_takes(node, missing, FILE)
        elif node.kind != FILE:
            raise Refused("IsContainerError" if node.is_container else "ExistsError")
        elif node.is_item:
            raise Refused("InvalidArgumentError")

    def _change(self, path: str, node: Node, data: bytes, *, is_new: bool = False) -> None:
        """Gives a file a new value; what was said of its end stays."""
        node.value, node.was_streamed, node.stripe = data, False, 1
        if not is_new:
            node.version = self.versions.new()
            self._tell("put", path, node.version)
        node.committed = node.version.born

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
        if appends and node.is_item:
            raise Refused("InvalidArgumentError")
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
            try:
                self._check_leaf(node, [])
                self._admit(path, node, [], len(value), node.member_of)
            except Refused:
                if made:
                    self.delete(path)
                raise
            self._change(path, node, bytes(value))
            node.was_streamed = True
        elif made and fate != "close":
            self.delete(path)

    def truncate(self, path: str, size: int) -> None:
        node = self._existing(path)
        if size <= INLINE_MAX and node.kind == BARRIER:
            raise Refused("ExistsError")
        node = self._file(path)
        if size == node.size:
            return  # nothing to do
        self._check_leaf(node, [])
        self._admit(path, node, [], size, node.member_of)
        self._change(path, node, node.value[:size] + bytes(max(0, size - node.size)))
        node.was_streamed = True

    def incr(self, path: str, by: int) -> int:
        node, missing = self._walk(path)
        self._check_leaf(node, missing)
        number = 0
        if not missing:
            text = node.value.decode("latin-1")
            if not re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII) or not is_int64(int(text)):
                raise Refused("InvalidArgumentError")
            number = int(text)
        if not is_int64(number + by):
            raise Refused("InvalidArgumentError")
        data = b"%d" % (number + by)
        self._admit(path, node, missing, len(data), None if missing else node.member_of)
        if missing:
            node = self._make(path, node, missing, FILE)
        self._change(path, node, data, is_new=bool(missing))
        return number + by

    def put_object(self, path: str, n: int, data: bytes, dumped: bytes) -> Version:
        version = self.put(path, dumped)
        self.objects[dumped] = (n, data)
        return version

    def get_object(self, path: str) -> Any:
        """What was put, where it is still the same value."""
        value = self._read(path).value
        if value not in self.objects:
            raise Refused("ProtocolError")
        return self.objects[value]

    # -- tree --------------------------------------------------------------------

    def mkdir(
        self,
        path: str,
        parents: bool = False,
        exist_ok: bool = False,
        kind: str = DIRECTORY,
        job: int | None = None,
    ) -> None:
        node, missing = self._walk(path)
        if len(missing) > 1 and not parents:
            raise Refused("NotFoundError")
        if not missing:
            if node.kind != kind or not exist_ok:
                raise Refused("ExistsError")
            return
        self._check_takes(node, missing, kind)
        of = self._job(job)
        self._admit(path, node, missing, 0, of)
        self._join(self._make(path, node, missing, kind), of)

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
        if moved.kind == BARRIER or moved.is_item:
            raise Refused("InvalidArgumentError")
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
        self._check_border(src, dst, moved, old)
        from_dir, from_name = self._parent(src)
        to_dir, to_name = (above, missing[0]) if missing else self._parent(dst)
        self._tell("delete", src, moved.version)
        if old is not None:
            del to_dir.children[to_name]
            self._forget(old)
        del from_dir.children[from_name]
        to_dir.children[to_name] = moved
        moved.version = self.versions.new()  # what lies below keeps its own
        self._tell("put", dst, moved.version)

    def _check_border(self, src: str, dst: str, moved: Node, old: Node | None) -> None:
        left, entered = self._jobs_around(src), self._jobs_around(dst)
        if left[-1:] == entered[-1:]:
            return
        if moved.is_container and (moved.children or moved.job):
            raise Refused("InvalidArgumentError")
        gain = moved.size - (old.size if old else 0) if not moved.is_container else 0
        for job in entered:
            if job not in left and job is not moved.member_of:  # else it is charged already
                self._check_fits(job, old is None, gain)

    def remove(self, path: str) -> None:
        node = self._existing(path)
        if node is self.root:
            raise Refused("InvalidArgumentError")
        if node.children:
            raise Refused("NotEmptyError")
        self.rmtree(path)

    def rmtree(self, path: str) -> None:
        node = self._existing(path)
        if node is self.root or node.is_item:
            raise Refused("InvalidArgumentError")
        self._cut(path, node)

    def _cut(self, path: str, node: Node) -> None:
        """It goes, with all below it."""
        self._tell("delete", path, node.version)
        above, name = self._parent(path)
        del above.children[name]
        self._forget(node)

    def _forget(self, gone: Node) -> None:
        """What is not in the tree any more belongs to no job, and is none."""
        for _, node in gone.below(""):
            self._join(node, None)
        for _, node in gone.below(""):
            if node.job:
                self._end_job(node.job)

    def listdir(self, path: str) -> list[str]:
        return in_byte_order(self._container(path).children)

    def scandir(self, path: str) -> list[tuple[Any, ...]]:
        children = self._container(path).children
        prefix = path.rstrip("/")
        return [children[name].fact(f"{prefix}/{name}") for name in in_byte_order(children)]

    column = scandir  # asks for more, and shows the same

    def walk(self, top: str, topdown: bool) -> list[tuple[str, list[str], list[str]]]:
        children = self._container(top).children
        names = in_byte_order(children)
        inner = [name for name in names if children[name].is_container]
        own = [(top, inner, [name for name in names if name not in inner])]
        below = [one for n in inner for one in self.walk(f"{top.rstrip('/')}/{n}", topdown)]
        return own + below if topdown else below + own

    def glob(self, pattern: str) -> list[str]:
        parts = components(pattern)
        found = [path for path, _ in self.nodes() if is_match(parts, components(path))]
        return sorted(found, key=lambda path: [name.encode() for name in components(path)])

    # -- multifiles --------------------------------------------------------------------

    def write_part(
        self, path: str, name: str | None, data: bytes, told: Any = None
    ) -> tuple[str, Version]:
        """A part by this name; or by a number, which the store has `told`."""
        self.join(path, MULTIFILE)
        if name is None:
            ticket = self.put(f"{path}/{TICKET}", b"")
            self._cut(f"{path}/{TICKET}", self._file(f"{path}/{TICKET}"))
            name = told[0] if told else "?"
            if not name.isdecimal() or len(name) != 20:
                raise Refused("a name that is no number")
            if not self.versions.learn(ticket, int(name)):
                raise Refused("a number that was no version")
        if self.exists(f"{path}/{name}"):
            raise Refused("ExistsError")
        version = self.put(f"{path}/{name}", data, if_absent=True)
        self._file(f"{path}/{name}").was_streamed = True
        return name, version

    def read_parts(self, path: str, outstanding: int) -> bytes:
        self.join(path, MULTIFILE)
        parts = self._existing(path).children
        return b"".join(parts[name].value for name in in_byte_order(parts))

    # -- queues --------------------------------------------------------------------------

    def queue_put(self, path: str, data: bytes, create: bool, told: Any = None) -> Version:
        """An item, whose number the store has `told`."""
        if create:
            self.make(path, QUEUE)
        else:
            self.join(path, QUEUE)
        queue = self._existing(path)
        self._admit(f"{path}/it", queue, ["it"], len(data), None)
        item = Node(FILE, self.versions.new(), data, is_item=True)
        name = f"{told:020}" if isinstance(told, int) else "?"
        queue.children[name] = item
        self._tell("put", f"{path}/{name}", item.version)
        return item.version

    def queue_get(self, path: str, handle: int, client: int) -> tuple[Version, bytes]:
        """Takes the oldest free item."""
        self.join(path, QUEUE)
        free = [item for item in self._existing(path).children.values() if item.taken is None]
        if not free:
            raise Refused("NotFoundError")
        item = min(free, key=lambda item: item.version.born)
        item.taken = (client, handle)
        return item.version, item.value

    def queue_ack(self, handle: int) -> None:
        for path, item in self.nodes():
            if item.taken and item.taken[1] == handle:
                return self._cut(path, item)
        raise Refused("NotFoundError")

    def queue_release(self, handle: int) -> None:
        for _, item in self.nodes():
            if item.taken and item.taken[1] == handle:
                item.taken = None

    # -- barriers -------------------------------------------------------------------------

    def barrier(self, path: str, members: int) -> Barrier:
        """The barrier that somebody enters."""
        node, missing = self._walk(path)
        if missing:
            self._check_takes(node, missing, BARRIER)
            self._admit(path, node, missing, 0, None)
            node = self._make(path, node, missing, BARRIER)
            node.barrier = Barrier(members)
        if node.barrier is None:
            raise Refused("IsContainerError" if node.is_container else "ExistsError")
        if node.barrier.broken:
            raise Refused("BarrierBrokenError")
        if node.barrier.members != members:
            raise Refused("InvalidArgumentError")
        return node.barrier

    # -- jobs --------------------------------------------------------------------------------

    def open_job(
        self, path: str, handle: int, client: int, ttl: float, quota_bytes: int, quota_nodes: int
    ) -> None:
        """A share in the job whose directory is at `path`. The quotas: 0 for what is not said."""
        node, missing = self._walk(path)
        if missing:
            self._check_takes(node, missing, DIRECTORY)
            self._admit(path, node, missing, 0, None)
            node = self._make(path, node, missing, DIRECTORY)
        elif node.kind != DIRECTORY:
            raise Refused("NotContainerError" if node.kind == FILE else "ExistsError")
        elif node.job is None and node.children:
            raise Refused("NotEmptyError")
        node.job = job = node.job or Job(ttl)
        job.ttl = ttl
        job.quota_bytes = quota_bytes or job.quota_bytes
        job.quota_nodes = quota_nodes or job.quota_nodes
        job.shares.add(handle)
        self.shares[handle] = (client, job, path)

    def shares_of(self, client: int) -> dict[int, tuple[int, Job, str]]:
        return {handle: share for handle, share in self.shares.items() if share[0] == client}

    def takes_again(self, shares: dict[int, tuple[int, Job, str]]) -> None:
        """A client that lost its session takes them again, where they were and still are."""
        for handle, (client, job, path) in shares.items():
            node = self.find(path)
            if node is not None and node.job is job:
                job.shares.add(handle)
                self.shares[handle] = (client, job, path)

    def close_job(self, handle: int) -> None:
        _, job, _ = self.shares.pop(handle)
        job.shares.discard(handle)
        if not job.shares and not job.ended:
            self._end_job(job)

    def _end_job(self, job: Job) -> None:
        if job.ended:
            return
        job.ended = True
        with self._together():
            for path, node in self.nodes():
                if node.job is job:
                    self._cut(path, node)
            for member in job.members[:]:
                self._join(member, None)
                for path, node in self.nodes():
                    if node is member:
                        self._cut(path, node)

    def _job(self, handle: int | None) -> Job | None:
        if handle is None:
            return None
        _, job, _ = self.shares[handle]
        if job.ended:
            raise Refused("NotFoundError")
        return job

    def _join(self, node: Node, job: Job | None) -> None:
        """It belongs to this job from now on, by its own option."""
        if node.member_of is job:
            return
        if node.member_of:
            node.member_of.members.remove(node)
        node.member_of = job
        if job:
            job.members.insert(0, node)

    def _jobs_around(self, path: str) -> list[Job]:
        """Those in whose directories it lies or would lie, from outside."""
        found, node = [], self.root
        for name in components(path):
            if node.job:
                found.append(node.job)
            if name not in node.children:
                break
            node = node.children[name]
        return found

    def _check_fits(self, job: Job, nodes: int, size: int) -> None:
        inside = next((n.below("")[1:] for _, n in self.nodes() if n.job is job), [])
        charged = {id(n): n for n in [*(node for _, node in inside), *job.members]}.values()
        in_all = sum(n.size for n in charged if not n.is_container)
        if nodes > 0 and job.quota_nodes and len(charged) + nodes > job.quota_nodes:
            raise Refused("QuotaExceededError")
        if size > 0 and job.quota_bytes and in_all + size > job.quota_bytes:
            raise Refused("QuotaExceededError")

    def _admit(self, path: str, node: Node, missing: list[str], size: int, job: Job | None) -> None:
        """Do the jobs allow that there be `size` bytes at `path`, as a member of `job`?"""
        gain = size if missing else size - (0 if node.is_container else node.size)
        around = self._jobs_around(path)
        for one in around:
            self._check_fits(one, len(missing), gain)
        if job and job not in around:
            is_member = not missing and node.member_of is job
            self._check_fits(job, not is_member, gain if is_member else size)

    # -- what is told to those who watch -------------------------------------------------------

    def watch(self, prefix: str, handle: int, client: int) -> None:
        self._walk(prefix)
        self.watches[handle] = Watch(prefix, client)

    def _tell(self, kind: str, path: str, version: Version) -> None:
        """Before something goes, and when it has come."""
        self._groups += 1
        group = self._groups if self._group is None else self._group
        for watch in self.watches.values():
            if watch.concerns(path):
                watch.expect(kind, path, version, group)
            elif watch.prefix.startswith(f"{path}/"):  # what is above it comes or goes
                watch.may_resync = True
                node = self.find(watch.prefix)
                if node is not None:
                    watch.expect(kind, watch.prefix, node.version, group)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """What happens in the block may be told in any order."""
        before = self._group
        self._groups += 1
        self._group = self._groups if before is None else before
        try:
            yield
        finally:
            self._group = before

    # -- attributes and lifetimes ----------------------------------------------------

    def setattr(self, path: str, changes: dict[str, bytes | None]) -> None:
        node = self._existing(path)
        if node.is_item:
            raise Refused("InvalidArgumentError")
        for name, value in changes.items():
            node.attributes.pop(name, None)
            if value is not None:
                node.attributes[name] = value

    def attributes(self, path: str) -> dict[str, bytes]:
        return dict(self._existing(path).attributes)

    def expire(self, path: str) -> None:
        """setattr(path, ttl=...), and the time passes."""
        if self._existing(path).job:
            raise Refused("InvalidArgumentError")
        self.rmtree(path)

    def evict(self, paths: list[str]) -> None:
        """They went, to make room."""
        with self._together():
            for path in paths:
                self._cut(path, self._file(path))

    def session_directory(self, path: str, owner: int) -> None:
        """What session_path() made for this client."""
        self.mkdir(path, parents=True, exist_ok=True)
        self._existing(path).owner = owner

    def has_holds(self, client: int) -> bool:
        """Has it anything that goes back, or goes, with its session?"""
        shares = any(owner == client for owner, *_ in self.shares.values())
        return shares or any(node.taken and node.taken[0] == client for _, node in self.nodes())

    def session_ends(self, owner: int) -> None:
        with self._together():
            self._session_ends(owner)

    def _session_ends(self, owner: int) -> None:
        for path, node in self.nodes():
            if node.taken and node.taken[0] == owner:
                node.taken = None
            if node.owner == owner and self.find(path) is node:
                self.rmtree(path)
        for handle in [handle for handle, (client, *_) in self.shares.items() if client == owner]:
            _, job, _ = self.shares.pop(handle)
            job.shares.discard(handle)
            if not job.shares and job.ttl == SHORT_TTL:
                self._end_job(job)
        for watch in self.watches.values():
            if watch.client == owner:
                watch.may_resync = True

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
    if node.stripe > 1:  # so many runs of one size, or fewer where there are fewer servers
        counts = range(1, min(node.stripe, least) + 1)
        return least, max((runs * -(-least // runs) * 5 / 4 for runs in counts), default=0)
    if node.was_streamed:  # it may have been longer, and an extent is never cut
        return least, math.inf
    return least, least + least // 4
