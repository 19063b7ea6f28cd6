"""The records of the sort: their form, their order, and the check of a sorted file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import records

SEED = 5


def keys(found: records.Records) -> list[bytes]:
    return [row.tobytes()[:10] for row in found]


def test_a_record_has_gensorts_form() -> None:
    found = records.generate(SEED, 0, 0x1234, 2)
    first, second = (row.tobytes() for row in found)
    assert len(first) == 100
    assert first[10:12] == b"\x00\x11"
    assert first[12:44] == b"%032X" % 0x1234
    assert second[12:44] == b"%032X" % 0x1235
    assert first[44:48] == b"\x88\x99\xaa\xbb"
    assert first[96:] == b"\xcc\xdd\xee\xff"
    filler = first[48:96]
    assert all(filler[i : i + 4] == filler[i : i + 1] * 4 for i in range(0, 48, 4))


def test_splits_are_the_same_whoever_makes_them() -> None:
    assert np.array_equal(records.generate(SEED, 3, 0, 50), records.generate(SEED, 3, 0, 50))
    assert not np.array_equal(records.generate(SEED, 3, 0, 50), records.generate(SEED, 4, 0, 50))


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0])
def test_order_is_that_of_all_ten_bytes(skew: float) -> None:
    found = records.generate(SEED, 0, 0, 5000, skew)
    index, high = records.order(found)
    ordered = records.take(found, index, np.empty(6000, records.RECORD))
    assert keys(ordered) == sorted(keys(found))
    assert high.tolist() == [int.from_bytes(key[:8], "big") for key in keys(ordered)]


def test_splitters_part_a_sample_evenly() -> None:
    found = records.generate(SEED, 0, 0, 10_000)["high"].astype(np.uint64)
    chosen = records.splitters(found, 8)
    assert len(chosen) == 7
    sizes = np.diff([0, *np.searchsorted(np.sort(found), chosen), len(found)])
    assert sizes.tolist() == [1250] * 8


def test_the_checksum_is_of_every_byte_and_of_no_order() -> None:
    found = records.generate(SEED, 0, 0, 64)
    whole = records.checksum(found)
    assert records.checksum(found[::-1].copy()) == whole
    raw = found.view(np.uint8).reshape(-1, 100)
    for at in range(100):
        raw[at % 64, at] ^= 1
        assert records.checksum(found) != whole, at
        raw[at % 64, at] ^= 1
    for at in range(0, 100, 4):  # the same words, of another record
        raw[[0, 1], at : at + 4] = raw[[1, 0], at : at + 4]
        same = np.array_equal(raw[0, at : at + 4], raw[1, at : at + 4])
        assert (records.checksum(found) == whole) == same, at
        raw[[0, 1], at : at + 4] = raw[[1, 0], at : at + 4]


def test_a_summary_tells_of_disorder_duplicates_and_ends() -> None:
    found = records.generate(SEED, 0, 0, 2 * records.BLOCK + 10)
    index, _ = records.order(found)
    ordered = found[index]
    total = records.summarise(ordered)
    assert (total.count, total.unordered, total.duplicates) == (len(found), 0, 0)
    assert (total.first, total.last) == (keys(ordered)[0].hex(), keys(ordered)[-1].hex())
    assert total.checksum == records.checksum(found)
    for at in (5, records.BLOCK - 1):  # within a block, and from one to the next
        wrong = ordered.copy()
        wrong[[at, at + 1]] = wrong[[at + 1, at]]
        assert records.summarise(wrong).unordered
    twice = ordered.copy()
    twice[records.BLOCK] = twice[records.BLOCK - 1]
    assert records.summarise(twice).duplicates == 1
    assert records.summarise(twice).checksum != total.checksum


def test_runs_that_overlap_are_out_of_order() -> None:
    index, _ = records.order(found := records.generate(SEED, 0, 0, 100))
    ordered = found[index]
    low, high = records.summarise(ordered[:60]), records.summarise(ordered[60:])
    good, bad = records.Summary(), records.Summary()
    for part in (low, records.Summary(), high):
        good.follow(part)
    for part in (high, low):
        bad.follow(part)
    assert (good.unordered, bad.unordered) == (0, 1)
    assert good == records.summarise(ordered)


def test_files_hold_what_was_written_and_reading_beyond_is_an_error(tmp_path: Path) -> None:
    found = records.generate(SEED, 0, 0, 100)
    path = str(tmp_path / "part")
    records.write(path, found)
    assert [entry.name for entry in tmp_path.iterdir()] == ["part"]
    into = np.empty(100, records.RECORD)  # not aligned
    assert np.array_equal(records.read(path, 40, 60, into), found[40:])
    assert np.array_equal(records.read(path, 0, 100, records.fresh(100)), found)
    with pytest.raises(EOFError, match="before record 101"):
        records.read(path, 41, 60, into)


def test_scratch_memory_is_used_again() -> None:
    scratch = records.Scratch()
    first = scratch.area("in", 1000)
    assert np.shares_memory(first, scratch.area("in", 900))
    assert not np.shares_memory(first, scratch.area("out", 900))
    assert len(scratch.area("in", 5000)) == 5000
