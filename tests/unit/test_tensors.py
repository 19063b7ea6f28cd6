"""Tensors as values: what comes out is what went in, and what is none says so."""

from __future__ import annotations

import numpy
import pytest

from crailpy.client.compute import tensors
from crailpy.client.compute.replica import Replica
from crailpy.errors import ProtocolError

ARRAYS = {
    "row": numpy.arange(7, dtype="float32"),
    "rows": numpy.arange(12, dtype=">i2").reshape(3, 4),
    "columns": numpy.arange(12.0).reshape(3, 4).T,
    "one": numpy.array(5 + 2j),
    "none": numpy.empty((0, 3)),
    "truth": numpy.array([True, False]),
}


def packed(facts=None):
    pieces = [tensors.whole(name, array) for name, array in ARRAYS.items()]
    return b"".join(bytes(part) for part in tensors.pack("set", pieces, facts))


@pytest.mark.parametrize("facts", [None, ("worker", 5), {"a": [1]}])
def test_arrays_come_back_aligned_and_read_only(facts):
    value = packed(facts)
    for _ in range(2):  # the second time by the layout that is known
        what, pieces, told = tensors.unpack(value)
        assert what == "set"
        assert told == ({"a": (1,)} if isinstance(facts, dict) else facts)
        assert [place.name for place, _ in pieces] == list(ARRAYS)
        for place, array in pieces:
            original = ARRAYS[place.name]
            assert array.dtype == original.dtype == place.dtype
            assert array.shape == original.shape == place.shape
            assert (array == original).all()
            if array.size:
                offset = array.ctypes.data - numpy.frombuffer(value, "u1").ctypes.data
                assert offset % tensors.ALIGNMENT == 0
                assert not array.flags.writeable


def test_large_arrays_are_not_copied_on_the_way_out():
    large = numpy.ones(100_000)
    parts = tensors.pack("set", [tensors.whole("a", large)], ("w", 1))
    assert any(numpy.may_share_memory(part, large) for part in parts[1:2])


def test_what_is_no_tensors_says_so(rng):
    value = packed(("worker", 5))
    for cut in range(0, len(value), 3):
        with pytest.raises(ProtocolError):
            tensors.unpack(value[:cut])
    for _ in range(3000):
        wrong = bytearray(value)
        for _ in range(rng.randrange(1, 4)):
            wrong[rng.randrange(300)] = rng.randrange(256)
        for read in (tensors.unpack, Replica(keeps_all=True).apply, Replica().start):
            try:
                read(bytes(wrong))
            except ProtocolError:
                pass


def test_a_push_that_is_cut_is_not_taken_for_one_like_the_last():
    replica = Replica(keeps_all=True)
    zeros, ones = (
        b"".join(map(bytes, tensors.pack(op, [tensors.whole("w", array)], ("a", step))))
        for op, array, step in (("set", numpy.zeros(9), 1), ("add", numpy.ones(9), 2))
    )
    replica.apply(zeros)
    for expected in (1, 2, 3):
        replica.apply(ones)
        assert (replica.hand_out(["w"])["w"] == expected).all()
    for wrong in (ones[:-20], ones + b"x", ones[:70]):
        with pytest.raises(ProtocolError):
            replica.apply(wrong)
    assert replica.version == 4
