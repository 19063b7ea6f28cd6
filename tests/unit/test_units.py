from __future__ import annotations

import pytest

from crailpy.errors import InvalidArgumentError
from crailpy.units import format_size, format_time, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        ("64KiB", 65536),
        ("64k", 65536),
        ("64 KiB", 65536),
        ("1.5GiB", 3 << 29),
        ("10MB", 10_000_000),
        ("2T", 2 << 40),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1.5", "1e3", "10XB", "nan", "1_000", "٣", True])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("250ms", 0.25), ("5m", 300), ("1.5h", 5400), ("2d", 172800), (3, 3), ("7", 7)],
)
def test_times(text: str | int, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1y", "inf", float("inf"), float("nan"), -1])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_time(text)


def test_sizes_and_times_for_people() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 1536, 1 << 20, (1 << 30) - 1, 3 << 50)] == [
        *("0 B", "1023 B", "1 KiB", "1.5 KiB", "1 MiB", "1 GiB", "3 PiB"),
    ]
    assert [format_time(t) for t in (2e-6, 0.25, 10, 125, 7200, 90000)] == [
        *("2 us", "250 ms", "10 s", "2 min 5 s", "2 h", "1 d 1 h"),
    ]
