"""Named NumPy arrays as one value, without pickling. All but the arrays is little-endian:

    offset
    0           "CRT1"
    4           u32: bytes of the layout, l
    8           u32: bytes of the facts, f
    12          the layout, in msgpack: [what, [[name, dtype, shape, start, stop], ...]]
    ...         the arrays' bytes in C order, each at a multiple of 64; zeros between
    ...         the facts, in msgpack; none are None

What `what` (a word) and the facts say is the caller's: the facts are what changes each time.
`shape` is of the whole tensor, `dtype` as of `numpy.dtype.str`; the array has the rows from `start`
to `stop` of its first axis, or, where it has no axis, 0 and 1.
"""

from __future__ import annotations

from math import prod
from struct import Struct
from typing import Any, NamedTuple

import msgpack
import numpy

from crailpy.errors import InvalidArgumentError, ProtocolError

Array = numpy.ndarray[Any, Any]

MAGIC = b"CRT1"
ALIGNMENT = 64
KINDS = "biufc"  # of numpy.dtype.kind: truth values, numbers
LAYOUTS_MAX = 256
_HEAD = Struct("<4sII")


class Place(NamedTuple):
    """Rows of a tensor. `shape` is of the whole one."""

    name: str
    dtype: numpy.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop == rows_of(self.shape)


Piece = tuple[Place, Array]


def rows_of(shape: tuple[int, ...]) -> int:
    """How many rows a tensor has; a single number is one row."""
    return shape[0] if shape else 1


def whole(name: str, array: Array) -> Piece:
    return Place(name, array.dtype, array.shape, 0, rows_of(array.shape)), array


def check_dtype(dtype: numpy.dtype[Any], what: str) -> None:
    """Raises InvalidArgumentError for what is no number."""
    if dtype.kind not in KINDS:
        raise InvalidArgumentError(f"{what} is of type {dtype}: numbers are wanted")


def _aligned(n: int) -> int:
    return (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def pack(what: str, pieces: list[Piece], facts: Any = None) -> list[Any]:
    """The parts of the value, in order; contiguous arrays are not copied, so they are not to be
    changed before they are stored."""
    rows = [[p.name, p.dtype.str, p.shape, p.start, p.stop] for p, _ in pieces]
    layout = msgpack.packb([what, rows])
    told = b"" if facts is None else msgpack.packb(facts)
    parts: list[Any] = [_HEAD.pack(MAGIC, len(layout), len(told)) + layout]
    at = len(parts[0])
    for _, array in pieces:
        parts[-1] += bytes(_aligned(at) - at)
        at = _aligned(at) + array.nbytes
        parts += [numpy.ascontiguousarray(array).reshape(-1).view("u1"), b""]
    parts[-1] += told
    return [part for part in parts if len(part)]


#: what, and of each array: its place, type, own shape, items, bytes
Layout = tuple[str, list[tuple[Place, numpy.dtype[Any], tuple[int, ...], int, int]]]

_layouts: dict[bytes, Layout] = {}  # those that were met: models and jobs repeat themselves


def unpack(value: Any) -> tuple[str, list[Piece], Any]:
    """(what, pieces, facts) of bytes or a view; the arrays lie over it and are read-only. Raises
    ProtocolError for what pack() did not make."""
    try:
        magic, layout_bytes, told = _HEAD.unpack_from(value)
        if magic != MAGIC:
            raise ProtocolError("the value holds no tensors")
        at = _HEAD.size + layout_bytes
        plain = value if type(value) is bytes else memoryview(value)
        layout = bytes(plain[_HEAD.size : at])
        what, places = _layouts.get(layout) or _read_layout(layout)
        facts = read_facts(plain, told) if told else None
        pieces: list[Piece] = []
        for place, dtype, shape, items, nbytes in places:
            at = (at + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
            if items:  # not by numpy.ndarray(), which would not count as a user of the value
                array = numpy.frombuffer(value, dtype, items, at)
                pieces.append((place, array if len(shape) == 1 else array.reshape(shape)))
            else:
                pieces.append((place, numpy.empty(shape, dtype)))
            at += nbytes
        return what, pieces, facts
    except ProtocolError:
        raise
    except Exception:  # whatever strange bytes lead to
        raise ProtocolError("the value holds no tensors, or not to their end") from None


def read_facts(value: Any, size: int) -> Any:
    """The facts at the end of a value that has so many bytes of them."""
    return msgpack.unpackb(value[-size:], use_list=False)


def borders(value: bytes) -> tuple[int, int]:
    """Where the first array of a value begins, and how many bytes of facts are at its end."""
    _, layout_bytes, told = _HEAD.unpack_from(value)
    return _aligned(_HEAD.size + layout_bytes), told


def _read_layout(layout: bytes) -> Layout:
    what, rows = msgpack.unpackb(layout, use_list=False)
    places = []
    for name, code, shape, start, stop in rows:
        if code[1] not in KINDS or not code[2:].isdecimal():
            raise ValueError(code)
        dtype = numpy.dtype(code)
        if not isinstance(name, str) or not 0 <= start <= stop <= rows_of(shape):
            raise ValueError(name)
        of = (stop - start, *shape[1:]) if shape else ()
        items = prod(of)
        place = Place(name, dtype, shape, start, stop)
        places.append((place, dtype, of, items, items * dtype.itemsize))
    if len(_layouts) >= LAYOUTS_MAX:
        _layouts.clear()
    _layouts[layout] = what, places
    return what, places
