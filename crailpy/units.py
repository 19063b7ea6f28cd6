"""Sizes and times as people write them: "64KiB", "1GiB", "250ms", "10s"."""

from __future__ import annotations

from crailpy.errors import InvalidArgumentError

__all__ = ["format_size", "format_time", "parse_size", "parse_time"]

_SIZES: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{c}ib": 1024**i for i, c in enumerate("kmgtp", 1)},
    **{c: 1024**i for i, c in enumerate("kmgtp", 1)},
    **{f"{c}b": 1000**i for i, c in enumerate("kmgtp", 1)},
}
_TIMES = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "": 1.0,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
}
_TIMES["d"] = 86400.0


def _split(text: str) -> tuple[str, str]:
    text = text.strip()
    end = len(text)
    while end and not (text[end - 1].isdigit() or text[end - 1] == "."):
        end -= 1
    return text[:end], text[end:].strip().lower()


def _number(text: str) -> float | None:
    """A plain decimal; None for everything else that float() would take."""
    if not text.isascii() or not text.replace(".", "", 1).isdigit():
        return None
    return float(text)


def parse_size(value: str | int) -> int:
    """Bytes. "64KiB" and "64k" count in 1024, "64KB" in 1000, a bare number in bytes.

    Raises InvalidArgumentError for what is no size, is negative, or is no whole number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise InvalidArgumentError(f"a size cannot be negative: {value}")
        return value
    if isinstance(value, str):
        digits, unit = _split(value)
        if digits.isascii() and digits.isdigit() and unit in _SIZES:
            return int(digits) * _SIZES[unit]
        number = _number(digits)
        if number is not None and unit in _SIZES and (number * _SIZES[unit]).is_integer():
            return int(number * _SIZES[unit])
    raise InvalidArgumentError(
        f"not a size: {value!r}", hint='write it as 4096, "64KiB" or "1.5GiB"'
    )


def parse_time(value: str | int | float) -> float:
    """Seconds. "250ms", "10s", "5m", "1h", "2d"; a bare number counts seconds.

    Raises InvalidArgumentError for what is no time or is negative."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value < float("inf"):
            return float(value)
    elif isinstance(value, str):
        digits, unit = _split(value)
        number = _number(digits)
        if number is not None and unit in _TIMES:
            return number * _TIMES[unit]
    raise InvalidArgumentError(f"not a time: {value!r}", hint='write it as 2.5, "250ms" or "10s"')


def format_size(size_bytes: int) -> str:
    """A short size for people: "0 B", "64 KiB", "1.5 GiB"."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    units = ["PiB", "TiB", "GiB", "MiB", "KiB"]
    while True:
        value, unit = value / 1024, units.pop()
        if value < 1023.95 or not units:
            break
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def format_time(seconds: float) -> str:
    """A short time for people: "250 ms", "10 s", "2 h 5 min"."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = int(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    while not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)
