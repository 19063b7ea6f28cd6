"""What a map task has gathered comes out by partition, in the order of its writes."""

from __future__ import annotations

import struct

import numpy
import pytest

from crailpy.native import Gather

SHORT = 64 << 10
JOINED = 256 << 10
RECORD = numpy.dtype([("key", "S10"), ("value", "i8")])


def as_something(rng, data):
    """A buffer that shows these bytes; whether its memory is changed afterwards."""
    kind = rng.choice(["bytes", "bytearray", "view", "read-only", "columns", "records", "strided"])
    if kind == "bytes":
        return data, None
    if kind == "view":
        return memoryview(data), None
    array = numpy.frombuffer(bytearray(data), "u1")
    if kind == "bytearray" or not data:
        return bytearray(data), None
    if kind == "read-only":
        array.flags.writeable = False
        return array, None
    if kind == "records" and len(data) % RECORD.itemsize == 0:
        array = array.view(RECORD)
        array.flags.writeable = rng.random() < 0.5
        return array, None
    if kind == "columns" and len(data) % 6 == 0:
        return numpy.asfortranarray(array.reshape(-1, 6)), None
    spread = numpy.zeros((len(data), 3), "u1")
    spread[:, 1] = array
    return spread[:, 1], spread


@pytest.mark.parametrize("size", [20, 3_000, JOINED, 3 * JOINED, 10_000_000])
def test_what_comes_out_is_what_was_written(rng, size):
    partitions = rng.choice([1, 3, 100, 5_000])
    gather = Gather(partitions)
    at = rng.choice([0, 12345])
    for _ in range(3):
        wanted: dict[int, bytes] = {}
        written = 0
        while written < size:
            sizes = [0, 1, 18, 600, 5_000, SHORT - 1, SHORT, SHORT + 18, 300_000]
            data = rng.randbytes(min(size - written, rng.choice(sizes)) or rng.randrange(3))
            partition = rng.randrange(partitions)
            buffer, changing = as_something(rng, data)
            written += len(data)
            assert gather.write(partition, buffer) == written
            wanted[partition] = wanted.get(partition, b"") + data
            if changing is not None:
                changing[:] = 7
            elif isinstance(buffer, bytearray):
                buffer[:] = bytes(len(buffer))
        pieces, table, taken = gather.take(at)
        value = b"".join(pieces)
        assert taken == len(value) == written
        offsets = struct.unpack(f"<{partitions + 1}Q", table)
        assert (offsets[0], offsets[-1]) == (at, at + written)
        found = {
            p: value[offsets[p] - at : offsets[p + 1] - at]
            for p in range(partitions)
            if offsets[p] != offsets[p + 1]
        }
        assert found == {p: data for p, data in wanted.items() if data}
        if taken <= JOINED:
            assert len(pieces) <= 1


def test_what_is_long_and_stays_as_it_is_is_not_copied():
    gather = Gather(2)
    array = numpy.zeros(JOINED, "u1")
    array.flags.writeable = False
    plain = bytes(JOINED)
    gather.write(1, array)
    gather.write(0, plain)
    pieces, _, _ = gather.take(0)
    assert pieces[0] is plain
    assert numpy.shares_memory(numpy.frombuffer(pieces[1], "u1"), array)


def test_nothing_gathered_is_an_empty_run():
    gather = Gather(3)
    assert gather.take(5) == ([], struct.pack("<4Q", 5, 5, 5, 5), 0)
    assert gather.write(2, b"") == 0
    assert gather.take(0) == ([], bytes(32), 0)


def test_wrong_arguments_are_refused_and_leave_nothing():
    gather = Gather(2)
    for partition in (2, -1, 1 << 70):
        with pytest.raises(IndexError):
            gather.write(partition, b"x")
    for partition, data in (("0", b"x"), (None, b"x"), (0, "text"), (0, None), (1.0, b"")):
        with pytest.raises(TypeError):
            gather.write(partition, data)
    with pytest.raises((OverflowError, ValueError)):
        gather.take(-1)
    assert gather.take(0)[2] == 0
    for arguments in ((), (0,), (-1,), (1, 2), ("1",)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            Gather(*arguments)
    with pytest.raises(ValueError, match="once"):
        gather.__init__(3)
