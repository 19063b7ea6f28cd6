"""The format of put_object."""

from __future__ import annotations

import pickle
import struct

import numpy
import pytest

from crailpy.client import objects
from crailpy.errors import ProtocolError


def stored(obj: object) -> bytes:
    return b"".join(objects.dump(obj))


@pytest.mark.parametrize(
    "obj",
    [None, 5, "text", {"a": [1, 2]}, b"x" * 100_000, bytearray(5000), [bytearray(b"q" * 3000)] * 2],
)
def test_objects_come_back_equal(obj: object) -> None:
    assert objects.load(stored(obj)) == obj


def test_arrays_lie_aligned_over_the_value_itself() -> None:
    arrays = {i: numpy.arange(i * 100, dtype="int32") for i in (1, 7, 100, 5000)}
    value = stored(arrays)
    back = objects.load(value)
    start = numpy.frombuffer(value, dtype="uint8").ctypes.data
    for i, array in arrays.items():
        assert (back[i] == array).all()
        if array.nbytes >= objects.BUFFER_BYTES_MIN:
            assert (back[i].ctypes.data - start) % objects.ALIGNMENT == 0
            assert start <= back[i].ctypes.data < start + len(value), "no copy"
            assert not back[i].flags.writeable


def test_arrays_that_are_not_contiguous_come_back_equal() -> None:
    array = numpy.arange(10_000).reshape(100, 100)
    for part in (array[::2, ::3], array.T, numpy.asfortranarray(array)):
        assert (objects.load(stored(part)) == part).all()


def test_the_header_is_what_the_page_says() -> None:
    value = stored([numpy.ones(1000), numpy.zeros(500)])
    magic, count, pickled = struct.unpack_from("<4sIQ", value)
    assert (magic, count) == (b"CRO1", 2)
    (at, length), (at2, length2) = struct.iter_unpack("<QQ", value[16:48])
    assert (length, length2) == (8000, 4000)
    assert at % 64 == at2 % 64 == 0
    assert at >= 48 + pickled
    assert value[at : at + 8] == struct.pack("<d", 1.0)
    assert at2 + length2 == len(value)


def test_what_is_no_such_value_is_refused() -> None:
    whole = stored(numpy.arange(1000))
    for value in (b"", b"short", b"X" * 100, whole[:200], whole[: len(whole) - 1]):
        with pytest.raises(ProtocolError):
            objects.load(value)


def test_an_error_that_is_kept_does_not_keep_the_value() -> None:
    whole = stored(numpy.arange(1000))
    broken = bytearray(whole)
    broken[32:36] = b"\xff" * 4  # the pickle itself, behind the head and one buffer's place
    for value in (bytearray(b"X" * 100), bytearray(whole[:200]), broken):
        with pytest.raises((ProtocolError, pickle.UnpicklingError)) as kept:
            objects.load(value)
        assert kept.value.__traceback__
        value.clear()  # a BufferError where something lies over it
