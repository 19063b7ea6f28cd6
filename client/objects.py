"""Python objects as values: pickle protocol 5, with large buffers beside the pickle.

The value, little-endian:

    offset
    0           "CRO1"
    4           u32: number of buffers, n
    8           u64: bytes of the pickle, p
    16          n times u64 offset, u64 length: where in the value the buffers are
    16 + 16 n   the pickle, p bytes
    ...         the buffers, each at a multiple of 64; zeros between

Buffers of fewer than BUFFER_BYTES_MIN stay in the pickle. Reading copies none of the others: the
arrays lie over the view of the value, which lives as long as they do. As with every pickle: read
only what you trust, since loading can run code.
"""

from __future__ import annotations

import pickle
from struct import Struct, error

from crailpy.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAGIC = b"CRO1"
ALIGNMENT = 64
BUFFER_BYTES_MIN = 1024
_HEAD = Struct("<4sIQ")
_BUFFER = Struct("<QQ")


def _aligned(n: int) -> int:
    return (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def dump(obj: Any) -> list[bytes | memoryview]:
    """The parts that make up the value, in order. Raises what pickling raises."""
    buffers: list[memoryview] = []

    def keep_in_pickle(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < BUFFER_BYTES_MIN:
            return True
        buffers.append(raw)
        return False

    pickled = pickle.dumps(obj, protocol=5, buffer_callback=keep_in_pickle)
    at = _HEAD.size + _BUFFER.size * len(buffers) + len(pickled)
    head = [_HEAD.pack(MAGIC, len(buffers), len(pickled))]
    body: list[bytes | memoryview] = [pickled]
    for raw in buffers:
        body += [bytes(_aligned(at) - at), raw]
        at = _aligned(at)
        head.append(_BUFFER.pack(at, raw.nbytes))
        at += raw.nbytes
    return [b"".join(head), *body]


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
