"""The extents of a value that grows: how large the next ones are.

A run of granules is never cut, so what a value does not fill of its last extent stays unused. So
each is at most a quarter of what lies before it, and of a size that the namenode does not round up:
of a value beyond WITHIN_BOUND_FROM bytes, at most a quarter of its size is unused. Those that are
asked for ahead of need go back whole where they are not needed.
"""

from __future__ import annotations

GRANULE = 4096
EXTENT_BYTES = 32  # of a struct crail_extent
EXTENTS_MAX = 64  # of one value, see wire.h
EXTENTS_SLOW = 60  # so many grow by a quarter of the value: from 64 KiB to more than 10 GiB; the
# rest, which only a larger value or memory in many pieces needs, double it
EXTENT_BYTES_MIN = 16 << 10
WITHIN_BOUND_FROM = 4 * EXTENT_BYTES_MIN
AHEAD_BYTES_MAX = 64 << 20
AHEAD_MAX = 8


def capacity(extents: bytes) -> int:
    """Bytes that fit into structs crail_extent: `granules` is their fourth number."""
    words = memoryview(extents).cast("I")
    return GRANULE * sum(words[3 :: EXTENT_BYTES // 4])


def servers(extents: bytes) -> list[int]:
    """The servers that they lie on, each once."""
    words = memoryview(extents).cast("I")
    return list(dict.fromkeys(words[0 :: EXTENT_BYTES // 4]))


def _whole_class(size: int) -> int:
    """The largest size up to `size` that is granted as it is (native/src/meta/granules.c): so many
    granules as have no more than three significant bits."""
    granules = size // GRANULE
    spare = max(0, granules.bit_length() - 3)
    return (granules >> spare << spare) * GRANULE


def _step(room: int, count: int) -> int:
    if count >= EXTENTS_SLOW:
        return max(room, EXTENT_BYTES_MIN)
    return max(_whole_class(room // 4), EXTENT_BYTES_MIN)


def next_sizes(missing: int, room: int, count: int, grows: bool) -> list[int]:
    """Bytes of the next extents beside `count` that have `room`. The first has at least `missing`
    bytes. The others are worth asking for in the same request, where it is seen that the value
    grows: together they about double it."""
    sizes = [max(missing, _step(room, count))]
    held = room + sizes[0]
    until = 2 * held if grows else 0
    most = held + AHEAD_BYTES_MAX
    room_for = min(AHEAD_MAX + 1, min(EXTENTS_SLOW, EXTENTS_MAX) - count)
    while held < until and len(sizes) < room_for:
        step = _step(held, count + len(sizes))
        if held + step > most:
            break
        sizes.append(step)
        held += step
    return sizes
