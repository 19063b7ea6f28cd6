"""What a process has of a model: the rows that it was asked for, at some version. No I/O here.

A push is applied with its number; whoever applies the same numbers has the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy

from crailpy.errors import InvalidArgumentError, NotFoundError, ProtocolError

from ..requests import whole
from . import tensors
from .tensors import Array, Piece, Place, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    #: a tensor's name, or (name, start, stop): rows of its first axis
    Key = str | tuple[str, int, int]

OPS = ("add", "set")
FLOAT_WIDTHS, WHOLE_WIDTHS = (4, 8), (1, 2, 4, 8)  # bytes of numbers that the core adds
UNUSED_PULLS_MAX = 8  # so many pulls without them, and rows are not kept up any more


class Kind(NamedTuple):
    """What a tensor is; it stays so."""

    dtype: numpy.dtype[Any]
    shape: tuple[int, ...]


class Rows:
    """Rows `start` to `stop` of a tensor as of `version`. `is_ours`: nobody else has the array, so
    it may be changed."""

    __slots__ = ("array", "is_ours", "pulls", "start", "stop", "version")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.version = -1
        self.array: Array = numpy.empty(0)
        self.is_ours = False
        self.pulls = 0

    def take(self, piece: Piece, version: int, lies_in: int) -> None:
        """The rows are those of the piece now. An array over a value of `lies_in` bytes keeps all
        of it, which is right for a large part of it only."""
        self.version = version
        self.array = _part(piece, self.start, self.stop)
        self.is_ours = 2 * self.array.nbytes < lies_in
        if self.is_ours:
            self.array = self.array.copy()

    def change(self, op: str, piece: Piece, lies_in: int) -> None:
        """Applies one array of a push, of any rows of the tensor. There may be more of them, so the
        version is as it was."""
        place, new = piece
        covers = self.start == place.start and self.stop == place.stop
        if not covers:
            low, high = max(self.start, place.start), min(self.stop, place.stop)
            if low >= high:
                return
            covers = low == self.start and high == self.stop
            new = _part(piece, low, high)
        if covers and op == "set":
            self.take(piece, self.version, lies_in)
            return
        if covers and op == "add":
            self.add(new, self.version)
            return
        if not self.is_ours:
            self.array = self.array.copy()
            self.is_ours = True
        into = self.array[low - self.start : high - self.start]
        if op == "add":
            numpy.add(into, new, out=into)
        else:
            into[...] = new

    def add(self, new: Array, version: int) -> None:
        """Adds to all rows."""
        self.version = version
        if self.is_ours:
            numpy.add(self.array, new, out=self.array)
        else:
            self.array = numpy.asarray(numpy.add(self.array, new))
            self.is_ours = True

    def hand_out(self) -> Array:
        """The array as of now, for good: what comes later is another array."""
        self.is_ours = False
        self.array.setflags(write=False)
        return self.array


def _maker(shape: tuple[int, ...]) -> Callable[[bytes, numpy.dtype[Any]], Array]:
    """What makes an array of the shape over bytes; it is read-only."""
    if len(shape) == 1:
        return numpy.frombuffer
    return lambda data, dtype: numpy.frombuffer(data, dtype).reshape(shape)


def _part(piece: Piece, start: int, stop: int) -> Array:
    place, array = piece
    if start == place.start and stop == place.stop:
        return array
    part: Array = array[start - place.start : stop - place.start]
    return part


class Replica:
    """`kinds`: of all tensors of the model; `steps`: the last one of each worker. `keeps_all`:
    whatever tensor appears is kept up, too."""

    def __init__(self, keeps_all: bool = False) -> None:
        self.version = 0
        self.kinds: dict[str, Kind] = {}
        self.steps: dict[str, int] = {}
        self.keeps_all = keeps_all
        self.last = (
            0,
            0,
            0,
        )  # of what came last: segment, number (0: the base), version
        self._kept: dict[Key, Rows] = {}
        self._of: dict[str, list[Rows]] = {}  # the same, by the tensor
        self._pulls = 0
        self._example: tuple[bytes, Place] | None = None  # the last push, if it is like most

    # -- what is kept up ------------------------------------------------------------------

    def has(self, key: Key) -> bool:
        rows = self._kept.get(key)
        return rows is not None and rows.version >= 0

    def want(self, key: Key) -> None:
        """From the next base on, the rows are kept up. Raises NotFoundError, InvalidArgumentError
        for what the model has not."""
        name, start, stop = self.place(key)
        if key not in self._kept:
            rows = self._kept[key] = Rows(start, stop)
            self._of.setdefault(name, []).append(rows)

    def place(self, key: Key) -> tuple[str, int, int]:
        """Name, first row, end of the rows."""
        name = key[0] if isinstance(key, tuple) and len(key) == 3 else key
        if not isinstance(name, str):
            raise InvalidArgumentError(f"{key!r} is no name, and no (name, start, stop)")
        kind = self.kinds.get(name)
        if kind is None:
            raise NotFoundError(f"the model has no tensor {name!r}")
        count = rows_of(kind.shape)
        if isinstance(key, str):
            return name, 0, count
        start, stop = whole(key[1], "start"), whole(key[2], "stop")
        if not 0 <= start <= stop <= count or not kind.shape:
            raise InvalidArgumentError(f"{key!r}: the tensor has {count} rows")
        return name, start, stop

    def hand_out(self, keys: Iterable[Key]) -> dict[Key, Array] | None:
        """What the rows are now; None if some are not there. What many calls did not ask for is
        given up."""
        self._pulls += 1
        found = {}
        for key in keys:
            rows = self._kept.get(key)
            if rows is None or rows.version < 0:
                return None
            rows.pulls = self._pulls
            found[key] = rows.hand_out() if rows.is_ours else rows.array
        if self._pulls % UNUSED_PULLS_MAX == 0:
            self._forget_unused()
        return found

    def _forget_unused(self) -> None:
        for key, rows in list(self._kept.items()):
            unused = self._pulls - rows.pulls >= UNUSED_PULLS_MAX
            if unused and not (self.keeps_all and isinstance(key, str)):
                del self._kept[key]
                self._of[key if isinstance(key, str) else key[0]].remove(rows)

    # -- what comes from the store ----------------------------------------------------------

    def distrust(self) -> None:
        """What is kept up is of pushes that are gone: the next base takes its place."""
        for rows in self._kept.values():
            rows.version = -1

    def start(self, value: Any) -> None:
        """Begins with a base, or None for the empty model. What is kept up and is newer stays."""
        pieces: list[Piece] = []
        self.version, self.steps = 0, {}
        if value is not None:
            what, pieces, facts = tensors.unpack(value)
            if what != "base":
                raise ProtocolError("a base of a model is wanted")
            try:
                self.version, steps = facts
                self.steps = dict(steps)
            except (TypeError, ValueError):
                raise ProtocolError("a base of a model says its version and steps") from None
        self.kinds = {place.name: Kind(place.dtype, place.shape) for place, _ in pieces}
        for piece in pieces:
            name = piece[0].name
            if self.keeps_all:
                self.want(name)
            for rows in self._of.get(name, ()):
                if rows.version < self.version:
                    rows.take(piece, self.version, len(value))

    def base(self) -> list[Any]:
        """The parts of the base of this version. Of a replica that keeps all."""
        steps = sorted(self.steps.items())
        pieces = [tensors.whole(name, self._kept[name].array) for name in self.kinds]
        return tensors.pack("base", pieces, (self.version, steps))

    def apply(self, value: Any) -> None:
        """The push of the next number."""
        op, pieces, facts = tensors.unpack(value)
        if op not in OPS:
            raise ProtocolError("a push to a model is wanted")
        for place, _ in pieces:
            kind = place.dtype, place.shape
            known = self.kinds.get(place.name)
            if known != kind and (known or op != "set" or not place.is_whole):
                raise ProtocolError(f"a push to another {place.name!r} than the model has")
        self.version += 1
        if facts:
            self._note_step(facts)
        changed = []
        for piece in pieces:
            place = piece[0]
            begins = place.name not in self.kinds
            if begins:
                self.kinds[place.name] = Kind(place.dtype, place.shape)
                if self.keeps_all:
                    self.want(place.name)
            for rows in self._of.get(place.name, ()):
                if begins:
                    rows.take(piece, self.version, len(value))
                elif 0 <= rows.version < self.version:
                    rows.change(op, piece, len(value))
                    changed.append(rows)
        for rows in changed:
            rows.version = self.version
        is_plain = type(value) is bytes and op == "add" and len(pieces) == 1
        self._example = (value, pieces[0][0]) if is_plain else None

    def _note_step(self, facts: Any) -> None:
        try:
            worker, step = facts
            self.steps[worker] = step
        except (TypeError, ValueError):
            raise ProtocolError("a push says a worker and its step, or neither") from None

    # -- what is added up elsewhere ---------------------------------------------------------

    def alike(self, found: Mapping[Key, Array]) -> tuple[Any, ...] | None:
        """What `Client.follower` is to know to add up pushes like the last one by itself: where
        what was found is all that is kept up, and the last push added to all of it, and is small.
        """
        if self._example is None or len(self._kept) != 1 or found.keys() != self._kept.keys():
            return None
        value, place = self._example
        ((key, rows),) = self._kept.items()
        name = key if isinstance(key, str) else key[0]
        dtype, array = place.dtype, rows.array
        is_whole = (rows.start, rows.stop) == (place.start, place.stop) and name == place.name
        if not is_whole or self.kinds.get(name) != (dtype, place.shape):
            return None
        if rows.version != self.version or not array.size or not dtype.isnative:
            return None
        width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        if width not in (FLOAT_WIDTHS if dtype.kind in "fc" else WHOLE_WIDTHS):
            return None
        at, told = tensors.borders(value)
        head, total = value[:at], array.tobytes()
        return head, len(value), at, told, dtype.kind, width, total, key, _maker(array.shape), dtype

    def advance(self, version: int, found: Mapping[Key, Array], facts: Iterable[bytes]) -> None:
        """Takes over what was added up: the version, what is kept up at it, and what the pushes up
        to it said."""
        for told in facts:
            self._note_step(tensors.read_facts(told, len(told)))
        if version == self.version:
            return
        self.version = version
        for key, array in found.items():
            rows = self._kept[key]
            rows.array, rows.version, rows.is_ours = array, version, False

    # -- what goes there --------------------------------------------------------------------

    def pieces(self, updates: Mapping[Key, Any], op: str) -> list[Piece]:
        """The updates as they are applied, in the tensors' own types. Raises NotFoundError (to add
        to, or to set rows of, what is not there), InvalidArgumentError."""
        if op not in OPS:
            raise InvalidArgumentError(f"op={op!r} is none of {', '.join(OPS)}")
        return [self._piece(key, numpy.asarray(value), op) for key, value in updates.items()]

    def _piece(self, key: Key, array: Array, op: str) -> Piece:
        tensors.check_dtype(array.dtype, f"what is pushed to {key!r}")
        if not array.dtype.isnative:  # or its sums would be of another type
            array = array.astype(array.dtype.newbyteorder("="))
        if op == "set" and isinstance(key, str) and key not in self.kinds:
            return tensors.whole(key, array)
        name, start, stop = self.place(key)
        kind = self.kinds[name]
        if op == "add" and kind.dtype.kind == "b":
            raise InvalidArgumentError(f"{key!r} is of truth values: there is no sum of them")
        shape = (stop - start, *kind.shape[1:]) if kind.shape else ()
        if array.shape != shape:
            raise InvalidArgumentError(f"{key!r} is of shape {shape}, not {array.shape}")
        if not numpy.can_cast(array.dtype, kind.dtype, "same_kind"):
            raise InvalidArgumentError(f"{key!r} is of type {kind.dtype}, not {array.dtype}")
        data = array.astype(kind.dtype, copy=False)
        return Place(name, kind.dtype, kind.shape, start, stop), data
