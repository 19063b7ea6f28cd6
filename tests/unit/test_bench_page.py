"""`crailpy bench report`: one page of what benches and jobs printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from crailpy.client.bench import charts, page
from crailpy.client.bench.measure import quantiles
from crailpy.client.bench.report import Bar, Limit, Row, medians
from crailpy.errors import InvalidArgumentError

MACHINE = {"cores": 2, "cpu": "a <fast> one", "kernel": "6.1"}


def row(op: str, size: int, p50: float, **more: Any) -> dict[str, Any]:
    return {
        "section": "large", "placement": "pinned", "op": op, "size": size, "counts": True,
        "p50_ns": p50, "p99_ns": 2 * p50, "quantiles_ns": [p50 * i / 4 for i in range(1, 8)],
        "gbps": None, "value": None, "limit": None, "bars": [],
    } | more  # fmt: skip


def bench() -> dict[str, Any]:
    memcpy = {"what": "memcpy", "p50_ns": 8e4, "p99_ns": None}
    trip = {"what": "unix round trip", "p50_ns": 9e3, "p99_ns": 1e4}
    missed = {"what": "ratio", "measured": 1.5, "bar": "<= 1.3", "ok": False}
    rows = [
        row("get", 64, 1e4, limit=trip, bars=[missed | {"ok": True, "measured": 1.1}]),
        row("put", 64, 2e4, limit=trip, bars=[missed]),
        *(
            row(op, 1 << i, 1e5, gbps=1.0 + i, limit=memcpy)
            for i in (20, 24)
            for op in ("put", "get")
        ),
        *(row(f"get, {n} clients", 64, 1e3, section="clients", value=1e5 * n) for n in (1, 2, 4)),
    ]
    return {"schema": 1, "machine": MACHINE, "rows": rows, "notes": []}


def job(name: str, workers: int, **more: Any) -> dict[str, Any]:
    phases = [
        {"name": kind, "seconds": 2.0, "tasks": 3, "input": 1.0, "compute": 2.0, "shuffle": 0.5,
         "output": 0.5, "counts": {}} for kind in ("map", "reduce")
    ]  # fmt: skip
    return {
        "schema": 1, "job": name, "machine": MACHINE, "seconds": 8.0 / workers,
        "options": {"workers": workers, "size": "1GB", "engine": "local"}, "phases": phases,
        "split": {"compute": 4.0, "shuffle": 1.0, "input+output": 3.0}, "facts": {},
        "bars": [{"what": "store <> memcpy", "measured": 2.0, "bar": "<= 3", "ok": True}],
    } | more  # fmt: skip


def pictures(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text)]


def titles(text: str) -> list[str]:
    return re.findall(r"<h3>(.*?)</h3>", text)


def test_the_page_has_a_chart_of_each_kind() -> None:
    text = page.page([bench(), job("sort", 1), job("sort", 2)])
    assert len(pictures(text)) == len(titles(text))
    for words in (
        "Split of the workers", "sort 1GB local x2: phases", "Calls, pinned",
        "Bandwidth by size, pinned", "Gets per second by clients", "Jobs by workers",
    ):  # fmt: skip
        assert any(words in title for title in titles(text)), words


def test_it_needs_no_network_and_says_what_it_is_told_as_text() -> None:
    text = page.page([bench(), job("sort", 2)])
    assert not re.search(r"(src|href|url)\s*[=(]|@import|<script", text)
    assert "a &lt;fast&gt; one" in text
    assert "store &lt;&gt; memcpy" in text
    assert "prefers-color-scheme: dark" in text


def test_bars_that_were_missed_stand_first() -> None:
    text = page.page([bench()])
    assert "1 of 2 hold" in text
    assert text.index("✗ missed") < text.index("✓ holds")


def test_a_bar_of_a_row_that_does_not_count_is_not_listed() -> None:
    found = bench()
    for one in found["rows"]:
        one["counts"] = False
    assert "missed" not in page.bars([found])


def test_parts_of_a_bar_are_as_long_as_their_values() -> None:
    rows = [charts.Bars("a", [1.0, 2.0]), charts.Bars("b", [0.0, 4.0], "end")]
    svg = pictures(charts.stacked("t", ("x", "y"), rows, str))[0]
    widths = [float(rect.get("width", 0)) + 2 for rect in svg.iter("rect")]
    assert len(widths) == 3  # nothing is drawn for 0
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(4 * widths[0], abs=0.3)
    assert "end" in [found.text for found in svg.iter("text")]


def test_a_range_lies_on_its_decades() -> None:
    svg = pictures(charts.ranges("t", [charts.Range("r", [10, 100, 1000], 100)], str, "limit"))[0]
    lines = {line.get("class"): line for line in svg.iter("line")}
    thin, beside = lines["thin"], lines["beside"]
    middle = (float(thin.get("x1", 0)) + float(thin.get("x2", 0))) / 2
    assert float(beside.get("x1", 0)) == pytest.approx(middle, abs=0.2)
    dot = next(svg.iter("circle"))
    assert float(dot.get("cx", 0)) == pytest.approx(middle, abs=0.2)


def test_engines_are_compared_where_a_job_ran_on_several() -> None:
    engines = [
        {"name": "crailpy", "seconds": 2.0, "ratio": 1.0},
        {"name": "dask", "seconds": 9.0, "ratio": 4.5},
    ]
    text = page.page([job("compare", 2, facts={"engines": engines}, split={}, phases=[])])
    assert "Other engines" in text
    assert "4.50" in text


@pytest.mark.parametrize("top", [0.0, 0.003, 1.0, 7.0, 1234.5])
def test_axes_have_round_numbers_and_reach_the_top(top: float) -> None:
    marks = charts.steps(top)
    assert marks[0] == 0
    assert marks[-1] >= top * 0.999
    assert 2 <= len(marks) <= 12
    assert charts.decades(3, 40) == [2, 5, 10, 20, 50]
    assert charts.decades(3, 4000) == [1, 10, 100, 1000, 10_000]
    assert charts.decades(10, 10) == [10, 20]


def test_quantiles_rise_and_runs_are_combined_by_their_medians() -> None:
    assert quantiles(range(1000)) == [10, 100, 250, 500, 750, 900, 990]
    rows = [
        Row("s", "free", "get", 1, quantiles_ns=[float(n)] * 7, limit=Limit("x", 1))
        for n in (1, 5, 3)
    ]
    for one in rows:
        one.judge(Bar("ratio", 1.0, "<= 2", True))
    assert medians([[one] for one in rows])[0].quantiles_ns == [3.0] * 7


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(bench()))
    (tmp_path / "sort.json").write_text(json.dumps(job("sort", 2)))
    command = [sys.executable, "-m", "crailpy.cli", "bench", "report", "bench.json", "sort.json"]
    done = subprocess.run([*command, "-o", "page.html"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "page.html").read_text() == page.page([bench(), job("sort", 2)])


def test_what_no_bench_printed_is_refused_in_words(tmp_path: Path) -> None:
    for text in ("no json", "[]", '{"schema": 2, "rows": []}', '{"schema": 1}'):
        file = tmp_path / "wrong.json"
        file.write_text(text)
        with pytest.raises(InvalidArgumentError, match=r"wrong\.json"):
            page.load(str(file))
