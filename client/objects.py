"""Python objects as values: pickle protocol 5, with large buffers beside the pickle.

The value, little-endian:

    offset
    0           "CRO1"
    4           u32: number of buffers, n
    8           u64: bytes of the pickle, p
    16          n times u64 offset, u64 length: where in the value the buffers are
    16 + 16 n   the pickle, p bytes
    ...         the buffers, each at a multiple of 64; zeros between

Buffers of fewer than BUFFER_BYTES_MIN stay in the pickle. Nothing large is copied but to where the
value lies: neither the buffers nor the bytes that the pickle has within it. Reading copies none of
the buffers: the arrays lie over the view of the value, which lives as long as they do. Arrays of
Python objects are pickled object by object: their memory is addresses, which mean nothing
elsewhere. As with every pickle: read only what you trust, since loading can run code.
"""

from __future__ import annotations

import pickle
from struct import Struct, error

from crailpy.errors import InvalidArgumentError, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAGIC = b"CRO1"
ALIGNMENT = 64
BUFFER_BYTES_MIN = 1024
GATHER_BYTES_MAX = 64 << 10  # shorter parts are put together: one request over TCP for many
GATHERED_BYTES_MAX = 1 << 20  # by so much at once
_HEAD = Struct("<4sIQ")
_BUFFER = Struct("<QQ")


def _aligned(n: int) -> int:
    return (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


class _Pieces(list):  # type: ignore[type-arg]
    """The file that the pickler writes to: it keeps what it is given, large bytes as they are."""

    write = list.append


def dump(obj: Any) -> list[bytes | memoryview]:
    """The parts that make up the value, in order; those of `obj` are not copied, so it is not to be
    changed before they are stored. Raises what pickling raises, and InvalidArgumentError for a
    buffer of Python objects that says it could be stored."""
    return lay_out(*pickled(obj))


def pickled(
    obj: Any, pickler: Any = pickle.Pickler
) -> tuple[list[bytes | memoryview], list[memoryview]]:
    """The pickle in pieces, and the large buffers that are not in it. `pickler`: the class that
    pickles. Raises as dump()."""
    buffers: list[memoryview] = []

    def keep_in_pickle(buffer: pickle.PickleBuffer) -> bool:
        with memoryview(buffer) as view:
            if "O" in "".join(view.format.split(":")[::2]):  # between colons: names of fields
                raise InvalidArgumentError("a buffer of Python objects is addresses, no data")
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < BUFFER_BYTES_MIN:
            return True
        buffers.append(raw)
        return False

    pieces = _Pieces()
    pickler(pieces, protocol=5, buffer_callback=keep_in_pickle).dump(obj)
    return pieces, buffers


def lay_out(
    pickled: list[bytes | memoryview], buffers: list[memoryview]
) -> list[bytes | memoryview]:
    """The parts of the value, from what pickled() gave."""
    pieces = [memoryview(piece).cast("B") for piece in pickled]
    length = sum(map(len, pieces))
    at = _HEAD.size + _BUFFER.size * len(buffers) + length
    head = [_HEAD.pack(MAGIC, len(buffers), length)]
    body: list[bytes | memoryview] = [*pieces]
    for raw in buffers:
        body += [bytes(_aligned(at) - at), raw]
        at = _aligned(at)
        head.append(_BUFFER.pack(at, raw.nbytes))
        at += raw.nbytes
    return gathered([b"".join(head), *body])


def gathered(parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """The same bytes, with short parts joined."""
    found: list[bytes | memoryview] = []
    short: list[bytes | memoryview] = []
    length = 0
    for part in parts:
        if len(part) >= GATHER_BYTES_MAX or length + len(part) > GATHERED_BYTES_MAX:
            if short:
                found.append(b"".join(short))
            short, length = [], 0
        if len(part) >= GATHER_BYTES_MAX:
            found.append(part)
        else:
            short.append(part)
            length += len(part)
    return [*found, b"".join(short)] if short else found


def buffers(value: Any) -> int:
    """How many buffers lie beside the pickle: what load() makes of them lies over the value."""
    return _HEAD.unpack_from(value)[1] if len(value) >= _HEAD.size else 0


def load(value: Any) -> Any:
    """The object in a value, its buffers over the value's own. Raises ProtocolError if it is none,
    and what unpickling raises."""
    view = memoryview(value)
    buffers: list[memoryview] = []
    try:
        return _load(view, buffers)
    except BaseException:
        for buffer in (*buffers, view):  # whoever keeps the error does not keep the value
            try:
                buffer.release()
            except BufferError:  # there is an array over it
                pass
        raise


def _load(view: memoryview, buffers: list[memoryview]) -> Any:
    try:
        magic, count, pickled = _HEAD.unpack_from(view)
        if magic != MAGIC:
            raise ProtocolError("the value was not written by put_object")
        at = _HEAD.size + _BUFFER.size * count
        for i in range(count):
            start, length = _BUFFER.unpack_from(view, _HEAD.size + _BUFFER.size * i)
            if start + length > view.nbytes:
                raise ProtocolError("the value was not written by put_object, or not to its end")
            buffers.append(view[start : start + length])
    except error:
        raise ProtocolError("the value was not written by put_object") from None
    return pickle.loads(view[at : at + pickled], buffers=buffers)
