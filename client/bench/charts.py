"""Three kinds of charts as SVG text: stacked bars, ranges, lines. Colours are CSS variables of the
page (`page.py`), so that one drawing serves light and dark; every mark has a tooltip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

SERIES_MAX = 6  # as many colours as the page has
WIDTH = 860
LABEL = 210  # pixels for what stands left of the bars
ROW, BAR = 26, 14
CHARACTER = 6.7  # pixels, about, at 12 px

Text = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Bars:
    """One row of a chart of stacked bars; as many values as the chart has series."""

    label: str
    values: Sequence[float]
    end: str = ""
    """What stands behind the bar."""


@dataclass(frozen=True, slots=True)
class Range:
    """One row of a chart of ranges: values in rising order, of which the one in the middle is
    marked, and another one beside them that they are compared with."""

    label: str
    values: Sequence[float]
    beside: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A series of points (x, y); `limit` ones are dashed and without a colour."""

    name: str
    points: Sequence[tuple[float, float]]
    limit: bool = False


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "word") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"'
    return f"<text {place}>{escape(words)}</text>"


def rule(x0: float, y0: float, x1: float, y1: float, kind: str = "grid") -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"/>'


def picture(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, True)}">'
        f"{''.join(parts)}</svg>"
    )


def legend(names: Sequence[str], limits: Sequence[bool] = ()) -> str:
    """Above a chart of more than one series."""
    if len(names) < 2:
        return ""
    keys = [
        f'<span><i class="{"dash" if any(limits[i : i + 1]) else f"b{i + 1}"}"></i>'
        f"{escape(name)}</span>"
        for i, name in enumerate(names)
    ]
    return f'<p class="legend">{"".join(keys)}</p>'


# ---- scales -------------------------------------------------------------------------------------


def steps(top: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least `top`, about `count` of them."""
    if top <= 0:
        return [0.0, 1.0]
    raw = top / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    return [step * i for i in range(math.ceil(top / step * 0.999) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Marks of a logarithmic axis, the first at most `low`, the last at least `high`: powers of
    ten, over two decades or less also their doubles and fives."""
    parts = (1, 2, 5) if high <= 100 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    marks = [10.0**power * part for power in powers for part in parts]
    first = max(i for i, mark in enumerate(marks) if mark <= low * 1.001)
    last = min(i for i, mark in enumerate(marks) if mark >= high * 0.999)
    return marks[first : max(last, first + 1) + 1]


# ---- charts -------------------------------------------------------------------------------------


def stacked(title: str, names: Sequence[str], rows: Sequence[Bars], unit: Text) -> str:
    """Horizontal bars, each made up of one part for each name."""
    room = WIDTH - LABEL - CHARACTER * max(len(row.end) for row in rows) - 16
    marks = steps(max(sum(row.values) for row in rows))
    scale = room / marks[-1]
    height = ROW * len(rows) + 24
    parts = []
    for mark in marks:
        x = LABEL + mark * scale
        parts += [rule(x, 0, x, height - 20), text(x, height - 6, unit(mark), "middle", "tick")]
    for i, row in enumerate(rows):
        x, y = float(LABEL), i * ROW + (ROW - BAR) / 2
        parts.append(text(LABEL - 8, y + BAR - 3, row.label, "end"))
        for k, (name, value) in enumerate(zip(names, row.values, strict=True)):
            width = value * scale
            if width > 0:
                tip = escape(f"{row.label}, {name}: {unit(value)}")
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width - 2, 0.5):.1f}" '
                    f'height="{BAR}" rx="2" class="b{k + 1}"><title>{tip}</title></rect>'
                )
            x += width
        parts.append(text(x + 6, y + BAR - 3, row.end))
    return legend(names) + picture(height, title, parts)


def ranges(title: str, rows: Sequence[Range], unit: Text, beside: str) -> str:
    """On a logarithmic axis: from the least to the largest of a row's values a line, thicker
    between the ones next to the middle, which is a dot; what it is held against is a stroke."""
    found = [v for row in rows for v in (*row.values, row.beside) if v]
    marks = decades(min(found), max(found))
    room = WIDTH - LABEL - 70
    low, high = math.log10(marks[0]), math.log10(marks[-1])

    def place(value: float) -> float:
        return LABEL + (math.log10(value) - low) / (high - low) * room

    height = ROW * len(rows) + 24
    parts = []
    for mark in marks:
        x = place(mark)
        parts += [rule(x, 0, x, height - 20), text(x, height - 6, unit(mark), "middle", "tick")]
    for i, row in enumerate(rows):
        y = i * ROW + ROW / 2
        middle = len(row.values) // 2
        median = row.values[middle]
        inner = row.values[max(0, middle - 1)], row.values[min(len(row.values) - 1, middle + 1)]
        tip = escape(f"{row.label}: " + ", ".join(unit(value) for value in row.values))
        parts += [text(LABEL - 8, y + 4, row.label, "end"), f"<g><title>{tip}</title>"]
        parts.append(rule(place(row.values[0]), y, place(row.values[-1]), y, "thin"))
        parts.append(rule(place(inner[0]), y, place(inner[1]), y, "thick"))
        if row.beside:
            x = place(row.beside)
            parts.append(rule(x, y - 8, x, y + 8, "beside"))
        parts.append(f'<circle cx="{place(median):.1f}" cy="{y:.1f}" r="4.5" class="b1"/></g>')
        parts.append(text(WIDTH, y + 4, unit(median), "end"))
    key = (
        f'<span><i class="b1"></i>median and spread</span><span><i class="bar"></i>{escape(beside)}'
    )
    return f'<p class="legend">{key}</span></p>' + picture(height, title, parts)


def lines(title: str, series: Sequence[Line], across: Text, up: Text, height: int = 260) -> str:
    """Lines over the logarithm of x, from 0 upwards."""
    points = [point for line in series for point in line.points]
    marks = steps(max(y for _, y in points))
    places = sorted({x for x, _ in points})
    low, high = math.log2(places[0]), math.log2(places[-1])
    left, right, bottom = 60, WIDTH - 90, height - 26

    def place(x: float, y: float) -> tuple[float, float]:
        at = (math.log2(x) - low) / (high - low) if high > low else 0.5
        return left + at * (right - left), bottom - y / marks[-1] * (bottom - 10)

    parts = []
    for mark in marks:
        y = place(places[0], mark)[1]
        parts += [rule(left, y, right, y), text(left - 8, y + 4, up(mark), "end", "tick")]
    shown = -math.inf
    for x in places:
        at = place(x, 0)[0]
        if at - shown >= CHARACTER * len(across(x)) + 10:
            parts.append(text(at, height - 8, across(x), "middle", "tick"))
            shown = at
    for k, line in enumerate(series):
        kind = "dash" if line.limit else f"l{k + 1}"
        spots = [place(*point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" class="{kind}"/>')
        for (x, y), point in zip(spots, line.points, strict=True):
            tip = escape(f"{line.name}, {across(point[0])}: {up(point[1])}")
            kind = "limit" if line.limit else f"b{k + 1}"
            dot = f'cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{kind}"'
            parts.append(f"<circle {dot}><title>{tip}</title></circle>")
    return legend([line.name for line in series], [line.limit for line in series]) + picture(
        height, title, parts
    )
