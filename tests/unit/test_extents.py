"""The sizes of the extents of a value that grows."""

from __future__ import annotations

import random

import pytest

from crailpy.client import extents

GRANULE = extents.GRANULE


def granted(size: int) -> int:
    """Bytes of the run that a grant of `size` bytes is: rounded up to a size class, of which the
    namenode has four for each doubling (native/src/meta/granules.c)."""
    granules = -(-size // GRANULE)
    if granules > 8:
        spare = granules.bit_length() - 3
        granules = -(-granules >> spare) << spare
    return granules * GRANULE


def test_the_namenode_rounds_as_this_test_does() -> None:
    sizes = [granted(n * GRANULE) // GRANULE for n in range(1, 25)]
    assert sizes == [*range(1, 9), 10, 10, 12, 12, 14, 14, 16, 16, *[20] * 4, *[24] * 4]


@pytest.mark.parametrize("biggest", [10_000, 1 << 20, 64 << 20])
@pytest.mark.parametrize("ahead", [False, True])
def test_no_more_than_a_quarter_is_unused_whatever_is_written(biggest: int, ahead: bool) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(30):
        size = room = 0
        runs: list[int] = []
        until = rng.randrange(1, 2000) * biggest
        while size < min(until, 1 << 34):
            size += rng.randrange(1, biggest + 1)
            if size > room:
                sizes = extents.next_sizes(size - room, room, len(runs), ahead and room > 0)
                runs += [granted(n) for n in (sizes if ahead else sizes[:1])]
                room = sum(runs)
            used = 0
            for run in runs:  # what is behind the size goes back whole
                used += run if used < size else 0
            if size > extents.WITHIN_BOUND_FROM:
                assert used <= size + size // 4 + GRANULE, f"{used} bytes for {size}, in {runs}"
        assert len(runs) <= extents.EXTENTS_MAX


def test_any_size_fits_into_the_extents_that_a_value_may_have() -> None:
    room, runs = extents.EXTENT_BYTES_MIN, 1
    while runs < extents.EXTENTS_MAX:
        room += granted(extents.next_sizes(1, room, runs, False)[0])
        runs += 1
    assert room > 64 << 30


def test_extents_ahead_are_for_what_grows_and_about_double_it() -> None:
    assert len(extents.next_sizes(1 << 20, 1 << 20, 1, False)) == 1
    for room in (1 << 20, 10 << 20):
        held = room + sum(extents.next_sizes(1 << 20, room, 2, True))
        assert 2 * (room + (1 << 20)) <= held <= 3 * (room + (1 << 20))
    sizes = extents.next_sizes(1, 1 << 30, 20, True)
    assert sum(sizes) <= (1 << 28) + extents.AHEAD_BYTES_MAX
    assert len(extents.next_sizes(1, 1 << 30, extents.EXTENTS_SLOW, True)) == 1
