"""What `crailpy bench` says: rows with limits and bars, as a table or as JSON."""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(slots=True)
class Bar:
    """One figure that the project has set itself."""

    what: str
    measured: float
    bar: str
    ok: bool


def at_most(what: str, measured: float, limit: float) -> Bar:
    return Bar(what, measured, f"<= {limit:g}", measured <= limit)


def at_least(what: str, measured: float, limit: float) -> Bar:
    return Bar(what, measured, f">= {limit:g}", measured >= limit)


@dataclass(slots=True)
class Limit:
    """What the machine, or another system, does in the same run."""

    what: str
    p50_ns: float
    p99_ns: float | None = None


@dataclass(slots=True)
class Row:
    """One line of the report; the fields are explained in the package's docstring."""

    section: str
    placement: str
    op: str
    size: int
    counts: bool = True
    samples: int = 0
    p50_ns: float | None = None
    p99_ns: float | None = None
    quantiles_ns: list[float] | None = None
    gbps: float | None = None
    value: float | None = None
    unit: str | None = None
    limit: Limit | None = None
    ratio: float | None = None
    ratio_p99: float | None = None
    bars: list[Bar] = field(default_factory=list)
    ok: bool | None = None

    def judge(self, *bars: Bar) -> None:
        self.bars.extend(bars)
        self.ok = all(bar.ok for bar in self.bars)


def size_text(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def time_text(ns: float | None) -> str:
    if ns is None:
        return "-"
    for unit, name in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if ns >= unit:
            return f"{ns / unit:.3g} {name}" if ns < 100 * unit else f"{ns / unit:.0f} {name}"
    return f"{ns:.0f} ns"


def value_text(value: float, unit: str) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M {unit}"
    if value >= 1e4:
        return f"{value / 1e3:.1f} k {unit}"
    return f"{value:.3g} {unit}"


def medians(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """One row of medians for the rows of the same place in several runs; bars are held against
    these."""
    combined = []
    for rows in zip(*runs, strict=True):
        row = copy.deepcopy(rows[0])
        row.samples = sum(one.samples for one in rows)
        for name in ("p50_ns", "p99_ns", "gbps", "value", "ratio", "ratio_p99"):
            if getattr(row, name) is not None:
                setattr(row, name, statistics.median(getattr(one, name) for one in rows))
        if row.quantiles_ns:
            spreads = zip(*(one.quantiles_ns or [] for one in rows), strict=True)
            row.quantiles_ns = [statistics.median(spread) for spread in spreads]
        if row.limit:
            row.limit.p50_ns = statistics.median(one.limit.p50_ns for one in rows if one.limit)
        row.bars = []
        for bars in zip(*(one.bars for one in rows), strict=True):
            make = at_most if bars[0].bar.startswith("<=") else at_least
            measured = statistics.median(bar.measured for bar in bars)
            row.judge(make(bars[0].what, measured, float(bars[0].bar[3:])))
        combined.append(row)
    return combined


class Report:
    """Rows as they come: kept, and printed at once unless JSON is wanted."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def title(self, text: str) -> None:
        if self.as_json:
            if sys.stderr.isatty():
                print(text, file=sys.stderr)
            return
        print(f"\n{text}")
        head = ("op", "size", "p50", "p99", "GB/s", "limit", "ratio", "bar")
        print("{:<22}{:>8}{:>10}{:>10}{:>7}  {:<36}{:>6}  {}".format(*head))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if self.as_json:
            return
        if row.value is None:
            what = f"{time_text(row.p50_ns):>10}{time_text(row.p99_ns):>10}"
        else:
            what = f"{value_text(row.value, row.unit or ''):>20}"
        limit = f"{time_text(row.limit.p50_ns)} {row.limit.what}" if row.limit else "-"
        bars = ", ".join(f"{bar.bar} {bar.what}".removesuffix(" ratio") for bar in row.bars)
        verdict = {None: "", True: "ok", False: "MISS"}[row.ok]
        if verdict and not row.counts:
            verdict = f"({verdict.lower()})"
        line = (
            f"{row.op:<22}{size_text(row.size) if row.size else '':>8}{what}"
            f"{'-' if row.gbps is None else f'{row.gbps:.1f}':>7}  {limit:<36}"
            f"{'-' if row.ratio is None else f'{row.ratio:.2f}':>6}  {bars:<18}{verdict}"
        )
        print(line.rstrip(), flush=True)

    def note(self, text: str) -> None:
        if text in self.notes:
            return
        self.notes.append(text)
        if not self.as_json:
            print(f"note: {text}", flush=True)

    def summary(self) -> dict[str, int]:
        counting = [row for row in self.rows if row.counts and row.ok is not None]
        good = sum(row.ok is True for row in counting)
        return {
            "ok": good,
            "miss": len(counting) - good,
            "informal": len(self.rows) - len(counting),
        }
