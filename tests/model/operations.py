"""The calls that the machine makes: one line of the table for each, with how its arguments come.

A call is a name and its arguments, the same for the store (`clients.Face`) and for the model
(`namespace.Namespace`). Paths are those of the client that calls; values are `Value`s, which say
how to make the bytes, so that a failing run prints short.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from .clients import dumped
from .namespace import (
    GRANULE,
    INLINE_MAX,
    MULTIFILE,
    NAME_MAX,
    OBJECT,
    PATH_MAX,
    QUEUE,
    TABLE,
    Namespace,
)

REGION = 1 << 20  # bytes of a region of the store under test: no extent is larger

# Inside the node's own record, inside the node, then granules, size classes, extents.
EDGES = [0, 16, 17, INLINE_MAX, 2 * GRANULE, 8 * GRANULE, 9 * GRANULE, 10 * GRANULE, REGION]
SIZES = sorted({size for edge in EDGES for size in (edge - 1, edge, edge + 1) if size >= 0})
SMALL_SIZES = [size for size in SIZES if size <= INLINE_MAX + 1]


@functools.cache
def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class Value:
    size: int
    seed: int

    @property
    def data(self) -> bytes:
        return content(self.size, self.seed)


@dataclass(frozen=True)
class VersionOf:
    """The version that `path` has now (0: nothing is there), and so many off."""

    path: Any
    off: int = 0


@dataclass(frozen=True)
class Call:
    name: str
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        inner = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.options)]
        return f"{self.name}({', '.join(inner)})"

    def with_(self, change: Any) -> Call:
        """The same with every argument changed."""
        return replace(
            self,
            args=tuple(map(change, self.args)),
            options=tuple((name, change(value)) for name, value in self.options),
        )


# ---- arguments ---------------------------------------------------------------------------------


class Path(str):
    """Prints short: "n" forty-eight times as n*48."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'" + re.sub(r"(.)\1{9,}", lambda m: f"<{m[1]}*{len(m[0])}>", self) + "'"


NAMESPACE = "/ns"  # of the clients that have one
NAMES = ["a", "b", "c", "ns", "\u00e9", "n" * 48, "n" * 49, "\U0001f600" * 63 + "xyz"]
BAD_PATHS = [
    *("", "a", "a/b", "//", "/a//b", "/a/", "/./a", "/a/..", "/a\0b", "/\ud800", "/a/\udfff/b"),
    *("/" + "x" * 256, "/" + "\u00e9" * 128),
]
LONGEST = ("/" + "x" * NAME_MAX) * (PATH_MAX // (NAME_MAX + 1))


#: As long as a path may be: with a namespace, without, and too long.
LONG_PATHS = [Path(LONGEST[: -len(NAMESPACE)]), Path(LONGEST), Path(LONGEST[:-1] + "/x")]

names = st.sampled_from(NAMES[:3]) | st.sampled_from(NAMES)
new_paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: Path("/" + "/".join(parts)))


@dataclass(frozen=True)
class There:
    """One of the paths that are there at that moment, of this kind if there is one. (What is drawn
    must not depend on what a store has done, which need not be the same each time: a call that was
    killed.)"""

    index: int
    kind: str | None = None


@dataclass(frozen=True)
class Share:
    """One of the shares in jobs that the client has then; None if it has none."""

    index: int


there = st.builds(There, st.integers(0, 63))
good_paths = st.one_of(new_paths, there, there)
any_paths = st.sampled_from([*BAD_PATHS, *LONG_PATHS, *["/"] * 5])
#: Mostly such as lead somewhere: one in twelve is odd.
paths = st.integers(0, 11).flatmap(lambda n: good_paths if n else any_paths)
#: Nothing may come to lie behind the longest path: there, nobody could name it.
ends_of_moves = paths.filter(lambda path: path not in LONG_PATHS)
seeds = st.integers(0, 9)
small = st.builds(Value, st.sampled_from(SMALL_SIZES), seeds)
values = st.one_of(small, st.builds(Value, st.sampled_from(SIZES), seeds))
nonempty = values.filter(lambda value: value.size > 0)
prefixes = st.one_of(st.just(Path("/")), there, there, paths)
flags = st.booleans()
offsets = st.sampled_from(SIZES)


def call(name: str, *args: Any, **options: Any) -> st.SearchStrategy[Call]:
    """Draws a call. An option that is drawn as None is left away."""

    def build(drawn: tuple[tuple[Any, ...], dict[str, Any]]) -> Call:
        args, options = drawn
        return Call(name, args, tuple((k, v) for k, v in options.items() if v is not None))

    return st.tuples(st.tuples(*args), st.fixed_dictionaries(options)).map(build)


@st.composite
def compare_and_set(draw: Any) -> Call:
    path = draw(paths)
    of = draw(st.one_of(st.just(path), st.just(path), paths))
    version = VersionOf(of, draw(st.sampled_from([0, 0, 0, -1, 1])))
    options = {"if_version": version, "if_absent": draw(st.sampled_from([None, None, True]))}
    return Call("put", (path, draw(values)), tuple((k, v) for k, v in options.items() if v))


optional = st.none() | flags
several = st.lists(paths, max_size=5)
pairs = st.lists(st.tuples(paths, values), max_size=5)

#: Everything that the machine does: a line here is a rule there.
OPERATIONS: dict[str, st.SearchStrategy[Call]] = {
    "put": call("put", paths, values, if_absent=optional, parents=optional),
    "put_more": call("put", new_paths, small),
    "compare_and_set": compare_and_set(),
    "get": call("get", paths),
    "get_range": call("get_range", paths, offsets, offsets),
    "get_into": call("get_into", paths, offsets, st.sampled_from(SIZES)),
    "get_range_nonsense": call("get_range", good_paths, *[st.sampled_from([-1, 0])] * 2),
    "get_into_nonsense": call("get_into", good_paths, st.sampled_from([-1, 2**62]), offsets),
    "get_view": call("get_view", paths),
    "put_many": call("put_many", pairs, if_absent=optional, parents=optional),
    "get_many": call("get_many", several, missing=st.sampled_from(["raise", "none"])),
    "delete": call("delete", paths, missing_ok=optional),
    "delete_many": call("delete_many", several),
    "exists": call("exists", paths),
    "stat": call("stat", paths),
    "stat_many": call("stat_many", several),
    "mkdir": call("mkdir", paths, parents=optional, exist_ok=optional),
    "rename": call("rename", ends_of_moves, ends_of_moves, overwrite=optional),
    "remove": call("remove", paths),
    "rmtree": call("rmtree", paths),
    "listdir": call("listdir", paths),
    "scandir": call("scandir", paths),
    "column": call("column", paths),
    "write_file": call(
        "write_file",
        paths,
        st.sampled_from(["wb", "xb"]),
        st.lists(values, max_size=3),
        st.just("close"),
    ),
    "write_file_in_vain": call(
        "write_file",
        good_paths,
        st.sampled_from(["wb", "xb"]),
        st.lists(small, max_size=3),  # of larger ones the store hears before they are published
        st.sampled_from(["discard", "leave"]),
    ),
}

numbers = st.sampled_from([1, -1, 0, 7, 2**63 - 1, -(2**63)])
edits = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.sampled_from([0, 1, 100, INLINE_MAX, 300 << 10])),
        st.tuples(st.just("write"), values),
        st.tuples(st.just("write"), values),
        st.tuples(st.just("truncate"), st.sampled_from(SIZES)),
    ),
    max_size=5,
)
attributes = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "user.\u00e9"]),
    st.none() | st.builds(Value, st.sampled_from([0, 1, 100, 20_000]), seeds),
    min_size=1,
    max_size=3,
)
kinds = st.sampled_from([TABLE, MULTIFILE, QUEUE])


def mostly(kind: str) -> st.SearchStrategy[Any]:
    """Paths of nodes of this kind, and some others."""
    return st.integers(0, 7).flatmap(
        lambda n: st.builds(There, st.integers(0, 63), st.just(kind)) if n else paths
    )


shares = st.builds(Share, st.integers(0, 7))
patterns = st.lists(
    st.sampled_from(["*", "**", "?", "[ab]", "n*", *NAMES[:4], "*xyz"]), min_size=1, max_size=4
).map(lambda parts: Path("/" + "/".join(parts)))

OPERATIONS |= {
    "make": call("make", paths, kinds),
    "join": call("join", paths, kinds),
    "incr": call("incr", paths, numbers),
    "truncate": call("truncate", paths, st.sampled_from(SIZES)),
    "truncate_within_node": call("truncate", there, st.sampled_from(SMALL_SIZES)),
    "edit_file": call(
        "edit_file",
        paths,
        st.sampled_from(["r+b", "ab"]),
        edits,
        st.sampled_from(["close", "close", "close", "leave"]),
    ),
    "setattr": call("setattr", paths, attributes),
    "attributes": call("attributes", paths),
    "expire": call("expire", paths),
    "put_to_go_when_read": call("put", paths, values, delete_after_read=st.just(True)),
    "put_placed": call(
        "put", paths, values, stripe=st.sampled_from([1, 2, 3]), evictable=st.booleans()
    ),
    "put_for_job": call("put", paths, values, job=shares, evictable=optional),
    "mkdir_for_job": call("mkdir", paths, parents=flags, job=shares),
    "put_object": call("put_object", paths, st.integers(0, 3), values),
    "get_object": call("get_object", paths),
    "get_object_there": call("get_object", there),
    "walk": call("walk", paths, flags),
    "glob": call("glob", patterns),
    "make_queue": call("make", new_paths, st.just(QUEUE)),
    "queue_put": call("queue_put", mostly(QUEUE), values, flags),
    "make_multifile": call("make", new_paths, st.just(MULTIFILE)),
    "write_part": call(
        "write_part", mostly(MULTIFILE), st.sampled_from([None, None, *NAMES[:3]]), values
    ),
    "read_parts": call("read_parts", mostly(MULTIFILE), st.sampled_from([1, 2, 8])),
}

#: To be done with a path within a job.
put_into_job = st.one_of(
    call("put", new_paths, values),
    call("put", new_paths, values, job=shares),
    call("mkdir", new_paths, parents=flags, exist_ok=flags),
    call("incr", new_paths, numbers),
    call("write_file", new_paths, st.just("wb"), st.lists(values, max_size=2), st.just("close")),
    call("queue_put", new_paths, values, st.just(True)),
    call("edit_file", new_paths, st.just("ab"), edits, st.just("close")),
)

#: What the model has to be told by the store: a number in a name.
TOLD = ("queue_put", "write_part")

#: Those that change something, for clients that are killed in the midst of one.
CHANGING = (
    *("put", "compare_and_set", "put_many", "delete", "delete_many"),
    *("mkdir", "rename", "remove", "rmtree", "write_file", "make", "incr", "truncate"),
    *("put_placed", "put_for_job", "mkdir_for_job", "put_object", "queue_put", "write_part"),
)
CHANGES = st.one_of(*(OPERATIONS[name] for name in CHANGING))


def stages(call: Call) -> list[list[Call]]:
    """What may have happened of a call whose reply nobody saw: nothing, or all, or, where it is
    several steps, the first ones of them."""
    if call.name == "put_many":
        steps = [Call("put", tuple(item), call.options) for item in call.args[0]]
    elif call.name == "delete_many":
        steps = [Call("delete", (path,), (("missing_ok", True),)) for path in call.args[0]]
    elif call.name == "queue_put":
        steps = [Call("make" if call.args[2] else "join", (call.args[0], QUEUE)), call]
        return [[], steps[:1], [call]]
    else:
        steps = [call]
    return [steps[:n] for n in range(len(steps) + 1)]


def apply(model: Namespace, call: Call) -> Any:
    """The call on the model; raises Refused."""
    args = call.args
    if call.name == "put_object":
        args += (dumped(*args[1:]),)
    return getattr(model, call.name)(*args, **dict(call.options))


def is_unclear(model: Namespace, call: Call) -> bool:
    """What was an object and was cut may be anything."""
    node = model.find(call.args[0]) if call.name == "get_object" else None
    return node is not None and node.value.startswith(OBJECT) and node.value not in model.objects


def goes_by_the_way(model: Namespace, call: Call) -> bool:
    """Does the call read something that goes when it was read? The asynchronous face says so when
    it has the time, and so does the end of a view; multifiles read theirs like files."""
    if not call.name.startswith(("get", "read_parts")):
        return False
    named = call.args[0] if isinstance(call.args[0], list) else [call.args[0]]
    nodes = [node for node in map(model.find, named) if node is not None]
    return any(one.goes_when_read for node in nodes for _, one in node.below(""))
