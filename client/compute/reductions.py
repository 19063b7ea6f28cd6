"""All give an array, all get the sum: by a tree for small arrays, by slices for large ones.

Nothing here counts who came: everything is a file of one name, created exclusively, whose bytes
follow from those before it (docs/adr/0006-compute.md, "Reduce").
"""

from __future__ import annotations

import time
from typing import Any

import numpy

from crailpy.errors import CrailError, DeadlineError, ExistsError, InvalidArgumentError

from .. import requests
from ..store import Store
from ..waiting import END_TIMEOUT
from . import tensors
from .stores import certain, folder_of
from .tensors import Array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: ranks that are missing, and those of whom nobody knows
    Missing = tuple[list[int], list[int]]

OPS: dict[str, numpy.ufunc] = {
    "sum": numpy.add,
    "prod": numpy.multiply,
    "max": numpy.maximum,
    "min": numpy.minimum,
}
CONTRIBUTORS_MAX = 1 << 16
TREE_BYTES_MAX = 1 << 20  # of the array; so it also decides in which order is added up
BLOCK_BYTES = 1 << 20  # of the result are added up at once, and stay in the cache meanwhile
LOOK_TIMEOUT = 1.0  # seconds to find out who is missing


def reduce(
    store: Store,
    path: str,
    array: Any,
    n: int,
    op: str = "sum",
    *,
    rank: int | None = None,
    round: int | None = None,
    out: Array | None = None,
    parents: bool = True,
    timeout: float | None = None,
    **placement: Any,
) -> Array:
    """The sum (`op`: "sum", "prod", "max", "min") of the arrays that `n` contributors give, all of
    one shape and type, which is the result's: for each of them, when all have called this.

    `rank`: the contributor's number, 0 to n - 1. Who is tried again, or runs twice, says the same
    one, counts once (what came first counts), and gets the same result. Without it the number is in
    the order of coming, and an attempt that is repeated is another contributor. For one `n` and
    size of the array the result is the same bit for bit, whoever comes when.

    `round`: 0, 1, 2, ... for reductions that follow each other at one path: round k removes
    round k - 2. What lies there else, also without rounds, goes with its job or by `rmtree(path)`;
    `placement` (`tier=`, `ttl=` ...) is of all that is stored. `out`: an array for the result,
    which may be `array` itself; after an error it holds anything.

    `timeout` seconds in all (None: the store's): else DeadlineError, whose `.ranks` names those who
    are missing. They may come later, and who gave up may call again. Raises InvalidArgumentError
    for what does not fit the others' arrays, and what `put` raises."""
    limit = store._timeout if timeout is None else requests.seconds(timeout, "timeout")
    part = _Part(certain(store), path, numpy.asarray(array), n, op, round, placement, limit)
    result = part.result_array(out)
    by, find_missing = part.by_slices, part.missing_in_slices
    if part.array.nbytes <= TREE_BYTES_MAX:
        by, find_missing = part.by_tree, part.missing_in_tree
    try:
        part.begin(rank, parents)
        by(result)
        return result
    except DeadlineError as error:
        late = part.explained(error, find_missing)
    raise late  # not from there: the frames would keep what they have of the others' arrays


class _Part:
    """What one contributor does. `array` is C-contiguous."""

    def __init__(
        self,
        store: Store,
        path: str,
        array: Array,
        n: int,
        op: str,
        number: int | None,
        placement: dict[str, Any],
        limit: float,
    ) -> None:
        self.n = requests.whole(n, "n")
        if not 0 < self.n <= CONTRIBUTORS_MAX:
            raise InvalidArgumentError(f"a reduction of {n} contributors", path=path)
        if op not in OPS:
            raise InvalidArgumentError(f"op={op!r} is none of {', '.join(OPS)}", path=path)
        tensors.check_dtype(array.dtype, "the array")
        if array.dtype.kind == "b" and op in ("sum", "prod"):
            raise InvalidArgumentError(f"there is no {op} of truth values", path=path)
        for name in ("delete_after_read", "evictable"):
            if placement.get(name):
                raise InvalidArgumentError(f"{name}: all read what each gives", path=path)
        self.store = store
        self.base = folder_of(path)
        self.round = None if number is None else requests.unsigned(number, "round")
        self.path = self.base if self.round is None else f"{self.base}/{self.round}"
        self.add = OPS[op]
        self.array = numpy.ascontiguousarray(array).reshape(array.shape)
        self.what = f"{op} of {self.n}"
        self.kind = self.array.dtype.str, self.array.shape
        self.head, *_ = tensors.pack(self.what, [tensors.whole("", self.array)])
        self.rank = 0
        self.placement = placement
        self.until = time.monotonic() + limit
        self.maps = store._options["transport"] != "tcp"  # as far as we know

    def result_array(self, out: Array | None) -> Array:
        if out is None:
            return numpy.empty_like(self.array)
        fits = out.shape == self.array.shape and out.dtype == self.array.dtype
        if not fits or not out.flags.c_contiguous or not out.flags.writeable:
            raise InvalidArgumentError(
                "out= is no writable C-contiguous array of the same shape and type", path=self.path
            )
        return out

    def begin(self, rank: int | None, parents: bool) -> None:
        """Finds the rank; the first contributor removes the round before the last."""
        if rank is not None:
            rank = self._checked(rank)
        if not parents:
            made = requests.mkdir(self.base, parents=False, exist_ok=True)
            self.store._run(made, self.left())
        if rank is None:
            rank = self._checked(self.store.incr(f"{self.path}/ranks", timeout=self.left()) - 1)
        self.rank = rank
        if self.round is not None and self.round >= 2 and self.rank == 0:
            old = requests.rmtree(f"{self.base}/{self.round - 2}")
            old.absent = None
            self.store._run(old, self.left())

    def _checked(self, rank: int) -> int:
        rank = requests.whole(rank, "rank")
        if not 0 <= rank < self.n:
            raise InvalidArgumentError(
                f"contributor {rank} of {self.n}: ranks are 0 to n - 1", path=self.path,
                hint="a path is for one reduction; round=0, 1, ... is for one after the other",
            )  # fmt: skip
        return rank

    # -- the ground ---------------------------------------------------------------------

    def left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def key(self, what: str, rank: int) -> str:
        return f"{self.path}/{what}-{rank:05}"

    def put(self, key: str, parts: list[Any]) -> bool:
        """False: it is there already, by another attempt."""
        flags = requests.PARENTS | requests.IF_ABSENT
        put = self.store._door.put_parts
        try:
            self.store._put(put, key, parts, flags, 0, self.left(), self.placement)
        except ExistsError:
            return False
        return True

    def put_array(self, key: str, array: Array) -> bool:
        return self.put(key, tensors.pack(self.what, [tensors.whole("", array)]))

    def view(self, key: str) -> Any:
        """The stored value, as soon as it is there."""
        return self.store.get_view(key, wait=self.left(), timeout=requests.WAY_BACK)

    def array_of(self, rank: int, value: Any) -> Array | None:
        """What `rank` stored; None where it did, but nobody needs that any more. Raises
        InvalidArgumentError unless it fits ours."""
        what, pieces, kind = tensors.unpack(value)
        if pieces:
            place, array = pieces[0]
            kind = place.dtype.str, place.shape
        if (what, kind) != (self.what, self.kind):
            theirs, ours = _told(what, kind), _told(self.what, self.kind)
            raise InvalidArgumentError(
                f"rank {rank} contributes to {theirs}, rank {self.rank} to {ours}", path=self.path
            )
        return array if pieces else None

    def sum_of(self, rank: int, value: Any) -> Array:
        array = self.array_of(rank, value)
        assert array is not None, "only what was added up by slices is given up"
        return array

    # -- small arrays -------------------------------------------------------------------

    def by_tree(self, result: Array) -> None:
        """Adds the sums of its subtrees to its own array; rank 0 has the sum of all then."""
        last = f"{self.path}/result"
        total = self._sum_of_subtree()
        key = self.key("part", self.rank) if self.rank else last
        if self.put_array(key, total) and self.rank == 0:
            result[...] = total
            return
        with self.view(last) as view:
            result[...] = self.sum_of(0, view)

    def _sum_of_subtree(self) -> Array:
        total = self.array
        for child in children(self.rank, self.n):
            with self.view(self.key("part", child)) as view:
                into = numpy.empty_like(total) if total is self.array else total
                total = self.add(total, self.sum_of(child, view), out=into)  # of its byte order
        return total

    def missing_in_tree(self) -> Missing:
        """Who has not put its part though all are there that it waits for; and those who would wait
        for them, of whom nobody knows."""
        there = self._are_there("part", f"{self.path}/result")
        absent = [rank for rank in range(self.n) if not there[rank] and rank != self.rank]
        sure = [rank for rank in absent if all(there[c] for c in children(rank, self.n))]
        return sure, [rank for rank in absent if rank not in sure]

    # -- large arrays -------------------------------------------------------------------

    def by_slices(self, result: Array) -> None:
        """Adds up one slice of all arrays, and gathers the others'. Then nobody needs its array any
        more; what it was of stays in its place, for attempts that come late."""
        out = result.reshape(-1)
        own = self.key("in", self.rank)
        is_first = self.put_array(own, self.array)
        inputs: list[Array] = []
        try:
            is_added = self._find_inputs(inputs, out, is_first) and self._add_up(inputs, out)
        finally:
            inputs.clear()  # whoever keeps an error does not keep them
        self._gather(out, not is_added)
        try:
            put, wait = self.store._door.put_parts, max(self.left(), END_TIMEOUT)
            self.store._put(
                put, own, tensors.pack(self.what, [], self.kind), 0, 0, wait, self.placement
            )
        except CrailError:
            pass  # it goes with the rest

    def _range(self, rank: int) -> slice:
        return slice(rank * self.array.size // self.n, (rank + 1) * self.array.size // self.n)

    def _find_inputs(self, inputs: list[Array], out: Array, is_first: bool) -> bool:
        """Our slice of all arrays. False: all slices have been added up already."""
        here = self._range(self.rank)
        for rank in range(self.n):
            if rank == self.rank and is_first and not numpy.may_share_memory(out, self.array):
                inputs.append(self.array.reshape(-1)[here])
            elif not self._find_input(inputs, rank, here):
                return False
        return True

    def _add_up(self, inputs: list[Array], out: Array) -> bool:
        into = out[self._range(self.rank)]
        step = max(1, BLOCK_BYTES // out.itemsize)
        for at in range(0, into.size, step):
            block = slice(at, at + step)
            if self.n == 1:
                into[block] = inputs[0][block]
                continue
            self.add(inputs[0][block], inputs[1][block], out=into[block])
            for other in inputs[2:]:
                self.add(into[block], other[block], out=into[block])
        self.put(self.key("out", self.rank), [into.view("u1")])
        return True

    def _find_input(self, inputs: list[Array], rank: int, here: slice) -> bool:
        """A slice of what `rank` gives. False: it is gone, as all slices have been added up."""
        key = self.key("in", rank)
        if self.maps:
            with self.view(key) as view:
                self.maps = not view.copied
                array = self.array_of(rank, view)
                if array is not None:
                    inputs.append(array.reshape(-1)[here])
                return array is not None
        self._size(key)
        head = self.store.get_range(key, 0, len(self.head), timeout=self.left())
        if head != self.head:
            with self.view(key) as view:
                self.array_of(rank, view)
            return False
        size = (here.stop - here.start) * self.array.itemsize
        at = len(self.head) + here.start * self.array.itemsize
        data = self.store.get_range(key, at, size, timeout=self.left())
        if len(data) < size:
            return False
        inputs.append(numpy.frombuffer(data, self.array.dtype))
        return True

    def _gather(self, out: Array, own_too: bool) -> None:
        for rank in range(self.n):
            if rank == self.rank and not own_too:
                continue
            into = out[self._range(rank)]
            key = self.key("out", rank)
            if self._size(key) != into.nbytes:
                raise InvalidArgumentError(f"rank {rank} adds up other arrays", path=self.path)
            if into.nbytes:
                self.store.get_into(key, into.view("u1"), timeout=self.left())

    def _size(self, key: str) -> int:
        """Of the value there, as soon as there is one."""
        info = self.store.wait(key, timeout=self.left())
        assert info is not None
        return info.size

    def missing_in_slices(self) -> Missing:
        for what in ("in", "out"):
            there = self._are_there(what)
            missing = [rank for rank in range(self.n) if not there[rank] and rank != self.rank]
            if missing:
                break
        return missing, []

    # -- who is missing -----------------------------------------------------------------

    def _are_there(self, what: str, first: str | None = None) -> list[bool]:
        keys = [self.key(what, rank) for rank in range(self.n)]
        keys[0] = first or keys[0]
        return [info is not None for info in self.store.stat_many(keys, timeout=LOOK_TIMEOUT)]

    def explained(self, error: DeadlineError, find: Callable[[], Missing]) -> DeadlineError:
        """An error that names those who were waited for, if there are any."""
        late = DeadlineError(error.message, path=error.path, server=error.server, hint=error.hint)
        missing: list[int] = []
        unknown: list[int] = []
        try:
            missing, unknown = find()
        except CrailError:
            pass  # the store does not answer: nobody knows
        if missing:
            late = DeadlineError(
                f"nothing came from {_named(missing)} of {self.n}",
                path=self.path,
                hint=f"{_named(unknown)} would wait for that: nobody knows" if unknown else None,
            )
        vars(late)["ranks"] = tuple(missing)
        return late


def _told(what: str, kind: tuple[str, tuple[int, ...]]) -> str:
    return f"the {what} arrays of type {numpy.dtype(kind[0])} and shape {kind[1]}"


def _named(ranks: list[int]) -> str:
    some = ", ".join(map(str, ranks[:10])) + (" ..." if len(ranks) > 10 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {some}"


def children(rank: int, n: int) -> list[int]:
    """Whose sums the rank adds to its own, in this order: r + 1, r + 2, r + 4 ..., one for each
    zero that it ends with."""
    step, found = 1, []
    while not rank & step and rank + step < n:
        found.append(rank + step)
        step <<= 1
    return found
