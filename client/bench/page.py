"""`crailpy bench report`: the JSON of benches and jobs as one HTML page with charts.

A file is what `crailpy bench --json` or one of the jobs (`python -m tests.bench.sort --json`, sql,
sgd, compare) printed. The page needs no network and no script; it follows the reader's choice of
light or dark. Below each chart are its figures as a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from crailpy.errors import InvalidArgumentError

from .charts import SERIES_MAX, Bars, Line, Range, lines, ranges, stacked
from .report import size_text, time_text, value_text

PHASES_MAX = 10  # a job of more phases is shown as a whole
LATENCIES_MAX = 40  # rows of one chart
KINDS = ("compute", "shuffle", "input+output")
COPYING = ("medium", "large", "tcp")  # sections of the bench whose values are moved

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #0b0b0b; --soft: #52514e;
  --grid: #e4e3de; --mark: #8a8984; --good: #006300; --bad: #c8201f;
  --c1: #2a78d6; --c2: #1baf7a; --c3: #eda100; --c4: #4a3aa7; --c5: #e34948; --c6: #e87ba4; }
@media (prefers-color-scheme: dark) { :root { --page: #1a1a19; --ink: #ffffff; --soft: #c3c2b7;
  --grid: #33332f; --mark: #8a8984; --good: #0ca30c; --bad: #e66767;
  --c1: #3987e5; --c2: #199e70; --c3: #c98500; --c4: #9085e9; --c5: #e66767; --c6: #d55181; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 900px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2.2em; } h3 { font-size: 1em; }
p.about, summary, td.soft, figcaption { color: var(--soft); }
figure { margin: 1em 0; overflow-x: auto; } svg { width: 100%; min-width: 560px; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg text.tick { fill: var(--soft); }
line.grid { stroke: var(--grid); } line.thin { stroke: var(--c1); stroke-width: 2; }
line.thick { stroke: var(--c1); stroke-width: 7; stroke-opacity: .45; stroke-linecap: round; }
line.beside { stroke: var(--ink); stroke-width: 2; } circle { stroke: var(--page); }
polyline { fill: none; stroke-width: 2; }
polyline.dash { stroke: var(--mark); stroke-dasharray: 5 4; } circle.limit { fill: var(--mark); }
.legend { margin: .3em 0; color: var(--soft); font-size: .87em; }
.legend span { margin-right: 1.4em; } .legend i { display: inline-block; width: 12px; height: 12px;
  border-radius: 2px; margin-right: .45em; vertical-align: -1px; }
.legend i.dash { height: 0; border-top: 2px dashed var(--mark); vertical-align: 4px; }
.legend i.bar { width: 2px; background: var(--ink); }
table { border-collapse: collapse; font-size: .87em; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid var(--grid); }
.ok { color: var(--good); } .miss { color: var(--bad); font-weight: 600; }
"""
COLOURS = "".join(
    f".b{i} {{ fill: var(--c{i}); background: var(--c{i}); }} .l{i} {{ stroke: var(--c{i}); }}\n"
    for i in range(1, SERIES_MAX + 1)
)

Facts = dict[str, Any]
Cells = Sequence[Sequence[str]]


def load(path: str) -> Facts:
    """Raises OSError, and InvalidArgumentError for what neither a bench nor a job printed."""
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except ValueError as error:
            raise InvalidArgumentError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != 1 or not {"rows", "job"} & set(found):
        raise InvalidArgumentError(
            f"{path} was not printed by a bench or a job",
            hint="crailpy bench --json > FILE, or --json of a job",
        )
    return found


def page(documents: Sequence[Facts]) -> str:
    """The whole page."""
    benches = [found for found in documents if "rows" in found]
    jobs = [found for found in documents if "job" in found]
    rows = [row for found in benches for row in found["rows"]]
    parts = [about(documents), bars(documents)]
    if jobs:
        parts += [splits(jobs), comparisons(jobs)]
    parts += [latencies(rows), bandwidths(rows), scaling(rows, jobs)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>crailpy bench</title><style>{STYLE}{COLOURS}</style></head><body>"
        f"<h1>crailpy bench</h1>{''.join(parts)}</body></html>\n"
    )


# ---- pieces -------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Cells) -> str:
    """Cells are text; those that begin with a tag's `<` have been escaped by whoever made them."""
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in map(safe, row))}</tr>" for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def safe(cell: str) -> str:
    return cell if cell.startswith("<span class=") else escape(cell)


def figure(title: str, drawing: str, head: Sequence[str], rows: Cells, words: str = "") -> str:
    caption = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    return (
        f"<h3>{escape(title)}</h3><figure>{drawing}{caption}</figure>"
        f"<details><summary>figures</summary>{table(head, rows)}</details>"
    )


def section(title: str, figures: Iterable[str]) -> str:
    """Nothing, if there are no figures."""
    body = "".join(figures)
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def about(documents: Sequence[Facts]) -> str:
    lines = []
    for found in documents:
        machine = found.get("machine", {})
        what = (
            f"{found['job']} " + words_of(found.get("options", {})) if "job" in found else "bench"
        )
        lines.append(
            f"{what.strip()}, {found.get('when', '')}: {machine.get('cores', '?')} cores "
            f"({machine.get('cpu', 'unknown')}), Linux {machine.get('kernel', '?')}, "
            f"crailpy {found.get('crailpy', '?')}"
        )
    return "".join(f'<p class="about">{escape(line)}</p>' for line in lines)


def words_of(options: Facts) -> str:
    """The options that say what a job did."""
    names = ("engine", "workers", "size", "stages", "maps", "reducers", "dram", "file")
    return " ".join(f"{name}={options[name]}" for name in names if options.get(name))


def verdict(ok: bool) -> str:
    return f'<span class="{"ok" if ok else "miss"}">{"✓ holds" if ok else "✗ missed"}</span>'


def bars(documents: Sequence[Facts]) -> str:
    """What the project has set itself, of all files: those that were missed first."""
    cells = []
    for found in documents:
        for bar in found.get("bars", []):
            cells.append((bar["ok"], found["job"], bar["what"], bar["measured"], bar["bar"]))
        for row in found.get("rows", []):
            for bar in row["bars"] if row["counts"] else []:
                what = f"{row['op']} {size_text(row['size']) if row['size'] else ''} {bar['what']}"
                name = f"bench, {row['placement']}"
                cells.append((bar["ok"], name, what, bar["measured"], bar["bar"]))
    if not cells:
        return ""
    cells.sort(key=lambda cell: cell[0])
    held = sum(cell[0] for cell in cells)
    rows = [(name, what, f"{m:.3g}", bar, verdict(ok)) for ok, name, what, m, bar in cells]
    head = ("of", "what", "measured", "bar", "")
    few = table(head, rows[: len(rows) - held])
    rest = f"<details><summary>those that hold</summary>{table(head, rows[-held:])}</details>"
    return (
        f"<h2>Bars</h2><p>{held} of {len(cells)} hold.</p>"
        f"{few if held < len(cells) else ''}{rest if held else ''}"
    )


def seconds_text(seconds: float) -> str:
    return "0" if not seconds else time_text(seconds * 1e9)


def per_cent(share: float) -> str:
    return f"{share:.0%}"


# ---- jobs ---------------------------------------------------------------------------------------


def splits(jobs: Sequence[Facts]) -> str:
    """Where the workers' time went, job by job and phase by phase."""
    whole = [found for found in jobs if sum(found.get("split", {}).values()) > 0]
    figures = []
    if whole:
        rows = []
        for found in whole:
            total = sum(found["split"].values())
            shares = [found["split"][kind] / total for kind in KINDS]
            rows.append(Bars(name_of(found), shares, f"{total:.3g} s of workers"))
        cells = [
            (name_of(found), *(seconds_text(found["split"][kind]) for kind in KINDS))
            for found in whole
        ]
        drawing = stacked("split of the workers' time", KINDS, rows, per_cent)
        figures.append(figure("Split of the workers' time", drawing, ("job", *KINDS), cells))
    figures += [phases(found) for found in whole if 1 < len(found["phases"]) <= PHASES_MAX]
    return section("Jobs", figures)


def name_of(found: Facts) -> str:
    options = found.get("options", {})
    more = [str(options[name]) for name in ("size", "engine") if options.get(name)]
    return " ".join([found["job"], *more, f"x{options.get('workers', '?')}"])


def phases(found: Facts) -> str:
    names = ("compute", "shuffle", "input", "output")
    rows = [
        Bars(phase["name"], [phase[name] for name in names], f"{phase['seconds']:.2f} s")
        for phase in found["phases"]
    ]
    if not any(sum(row.values) for row in rows):
        return ""
    cells = [
        (p["name"], str(p["tasks"]), seconds_text(p["seconds"]), *(f"{p[n]:.3f} s" for n in names))
        for p in found["phases"]
    ]
    title = f"{name_of(found)}: phases"
    drawing = stacked(title, names, rows, seconds_text)
    words = "Seconds of all workers together; behind the bar the phase's own, by the clock."
    return figure(title, drawing, ("phase", "tasks", "wall", *names), cells, words)


def comparisons(jobs: Sequence[Facts]) -> str:
    """The same job on several engines."""
    figures = []
    for found in jobs:
        engines = found.get("facts", {}).get("engines")
        if engines:
            rows = [Bars(e["name"], [e["seconds"]], f"{e['seconds']:.2f} s") for e in engines]
            cells = [(e["name"], f"{e['seconds']:.2f} s", f"{e['ratio']:.2f}") for e in engines]
            title = f"{name_of(found)}: the same input, the same result"
            drawing = stacked(title, ("seconds",), rows, seconds_text)
            figures.append(figure(title, drawing, ("engine", "time", "times ours"), cells))
    return section("Other engines", figures)


# ---- benches ------------------------------------------------------------------------------------


def latencies(rows: Sequence[Facts]) -> str:
    figures = []
    for placement in unique(row["placement"] for row in rows):
        found = [
            row
            for row in rows
            if row["placement"] == placement and row.get("quantiles_ns") and row["gbps"] is None
        ]
        for at in range(0, len(found), LATENCIES_MAX):
            part = found[at : at + LATENCIES_MAX]
            figures.append(latency(placement, part))
    return section("Latency", figures)


def latency(placement: str, rows: Sequence[Facts]) -> str:
    drawn = [
        Range(label(row), row["quantiles_ns"], row["limit"]["p50_ns"] if row["limit"] else None)
        for row in rows
    ]
    cells = [(label(row), *map(time_text, row["quantiles_ns"])) for row in rows]
    title = f"Calls, {placement}"
    drawing = ranges(title, drawn, time_text, "median of the machine's limit in the same run")
    head = ("call", "1 %", "10 %", "25 %", "median", "75 %", "90 %", "99 %")
    words = "Lines from the first to the last of a hundred calls, thick between the quartiles."
    return figure(title, drawing, head, cells, words)


def label(row: Facts) -> str:
    return f"{row['op']} {size_text(row['size'])}" if row["size"] else str(row["op"])


def bandwidths(rows: Sequence[Facts]) -> str:
    figures = []
    for placement in unique(row["placement"] for row in rows):
        found = [r for r in rows if r["placement"] == placement and r["section"] in COPYING]
        found = [row for row in found if row["gbps"]]
        ops = unique(r["op"] for r in found)
        series = [
            Line(op, points)
            for op in ops
            if len(points := [(r["size"], r["gbps"]) for r in found if r["op"] == op]) > 1
        ][: SERIES_MAX - 1]
        if not series:
            continue
        limit = {r["size"]: r["size"] / r["limit"]["p50_ns"] for r in found if memcpy_is_limit(r)}
        drawn = [*series, *([Line("memcpy", sorted(limit.items()), True)] if limit else [])]
        title = f"Bandwidth by size, {placement} (GB/s)"
        cells = [(line.name, size_words(x), f"{y:.2f}") for line in drawn for x, y in line.points]
        drawing = lines(title, drawn, size_words, lambda y: f"{y:g}")
        figures.append(figure(title, drawing, ("call", "size", "GB/s"), cells))
    return section("Bandwidth", figures)


def memcpy_is_limit(row: Facts) -> bool:
    return bool(row["limit"]) and row["limit"]["what"] == "memcpy"


def size_words(size: float) -> str:
    return size_text(int(size))


def scaling(rows: Sequence[Facts], jobs: Sequence[Facts]) -> str:
    """Rates by number of clients, seconds by number of workers."""
    figures = []
    series = []
    for placement in unique(row["placement"] for row in rows):
        points = [
            (float(found[1]), row["value"])
            for row in rows
            if row["placement"] == placement
            and row["section"] == "clients"
            and (found := re.search(r"(\d+) client", row["op"]))
        ]
        if len(points) > 1:
            series.append(Line(placement, points))
    if series:
        cells = [(s.name, f"{x:g}", value_text(y, "gets/s")) for s in series for x, y in s.points]
        drawing = lines("gets by clients", series, count_words, lambda y: value_text(y, ""))
        figures.append(figure("Gets per second by clients", drawing, ("", "clients", ""), cells))
    series = []
    for name in unique(f"{found['job']} {found['options'].get('size', '')}" for found in jobs):
        points = sorted(
            (float(found["options"]["workers"]), found["seconds"])
            for found in jobs
            if f"{found['job']} {found['options'].get('size', '')}" == name and found["seconds"]
        )
        if len({x for x, _ in points}) > 1:
            series.append(Line(name, points))
    if series:
        cells = [(s.name, f"{x:g}", f"{y:.2f} s") for s in series for x, y in s.points]
        drawing = lines("seconds by workers", series[:SERIES_MAX], count_words, seconds_text)
        figures.append(figure("Jobs by workers", drawing, ("job", "workers", "time"), cells))
    return section("Scaling", figures)


def count_words(count: float) -> str:
    return f"{count:g}"


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def run(paths: Sequence[str], output: str) -> int:
    """`crailpy bench report`. Raises OSError, InvalidArgumentError."""
    text = page([load(path) for path in paths])
    if output == "-":
        print(text, end="")
    else:
        with open(output, "w", encoding="utf-8") as file:
            file.write(text)
    return 0
