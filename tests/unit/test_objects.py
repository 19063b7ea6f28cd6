"""The format of put_object."""

from __future__ import annotations

import pickle
import struct

import numpy
import pytest

from crailpy.client import objects
from crailpy.errors import InvalidArgumentError, ProtocolError


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


@pytest.mark.parametrize(
    "array",
    [
        numpy.array([None, "x", 5, {"a": [1]}, b"y" * 2000] * 100, dtype=object),
        numpy.array([[1, "x"], [None, 2.5]], dtype=object),
        numpy.array([("x", 1), (None, 2)] * 500, dtype=[("o", object), ("n", "int64")]),
    ],
    ids=["flat", "two dimensions", "a field"],
)
def test_arrays_of_objects_come_back_as_objects_and_never_as_addresses(array) -> None:
    value = stored({"before": numpy.arange(1000), "it": array})
    back = objects.load(value)["it"]
    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()
    _, count, _ = struct.unpack_from("<4sIQ", value)
    assert count == 1, "only the numbers lie beside the pickle"
    for item in array.tolist():
        assert struct.pack("<Q", id(item)) not in value


def test_a_buffer_that_is_addresses_is_refused() -> None:
    class Careless:
        def __reduce_ex__(self, protocol):
            return (bytes, (pickle.PickleBuffer(numpy.array([1, 2] * 1000, dtype=object)),))

    with pytest.raises(InvalidArgumentError, match="addresses"):
        objects.dump(Careless())


def test_fields_may_be_called_as_one_likes() -> None:
    """The format of a buffer, which says where objects are, has the names of the fields in it."""
    array = numpy.ones(200, dtype=[("Open", "f8"), ("O", "i4"), ("high", "f8")])
    assert objects.load(stored(array)).tolist() == array.tolist()


def test_what_is_large_is_not_copied() -> None:
    array, text, data = numpy.ones(100_000), "x" * 1_000_000, bytes(1_000_000)
    parts = objects.dump([array, text, data, *(numpy.ones(500) for _ in range(1000))])
    whole = b"".join(parts)
    start, end = array.ctypes.data, array.ctypes.data + array.nbytes
    inside = [p for p in parts if start <= numpy.frombuffer(p, "uint8").ctypes.data < end]
    assert [len(p) for p in inside] == [array.nbytes]
    assert any(isinstance(p, memoryview) and p.obj is data for p in parts)
    assert len(parts) < 20, "short ones are put together"
    assert objects.load(whole)[1:3] == [text, data]


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
