"""The words of the command line, and what a bench reports."""

from __future__ import annotations

import argparse
import io

import pytest

from crailpy.client import commands, doctor
from crailpy.client.bench import measure, report
from crailpy.errors import NotFoundError


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser("crailpy")
    commands.register(result.add_subparsers(required=True))
    return result


def test_every_command_is_there() -> None:
    words = parser().format_help()
    names = "put get cat ls stat rm mkdir cp mv tree du find watch top status bench demo doctor"
    for name in [*names.split(), "pool"]:
        assert f"    {name} " in words


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("250ms", 0.25), ("2m", 120), ("1.5", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert commands.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "0s", "nan", "10x"])
def test_durations_that_are_none_are_usage_errors(text: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["status", "--timeout", text])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64), ("4KiB", 4096), ("1.5 MiB", 3 << 19), ("1GB", 10**9), ("7b", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert commands.size(text) == size


def test_errors_are_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise NotFoundError("there is no /a", path="/a", hint="look in /")

    assert commands.guarded(fail)(argparse.Namespace()) == 1
    error = capsys.readouterr().err
    assert error.startswith("crailpy: ")
    assert error.count("\n") == 1
    assert "look in /" in error


def test_mistakes_of_ours_are_not_hidden() -> None:
    def fail(options: argparse.Namespace) -> int:
        raise TypeError("ours")

    with pytest.raises(TypeError):
        commands.guarded(fail)(argparse.Namespace())


def test_a_stream_is_copied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "PIECE_BYTES", 7)
    target = io.BytesIO()
    with commands.Progress("x", None) as progress:
        assert commands.copy_stream(io.BytesIO(bytes(range(100))), target, progress) == 100
    assert target.getvalue() == bytes(range(100))


def test_doctor_finds_something_about_everything() -> None:
    findings = doctor.examine()
    assert {finding.state for finding in findings} <= {"good", "limited", "missing"}
    assert {finding.what for finding in findings} >= doctor.NEEDED
    assert all(finding.advice for finding in findings if finding.state != "good")


def test_a_row_is_ok_when_all_its_bars_hold() -> None:
    row = report.Row("small", "pinned", "get", 64)
    row.judge(report.at_most("ratio", 1.2, 1.3))
    assert row.ok is True
    row.judge(report.at_least("p99", 1, 2))
    assert row.ok is False
    said = report.Report(as_json=True)
    said.rows = [row, report.Row("small", "free", "get", 64, counts=False)]
    assert said.summary() == {"ok": 0, "miss": 1, "informal": 1}


def test_percentiles() -> None:
    samples = list(range(100, 0, -1))
    assert measure.percentile(samples, 50) == 51
    assert measure.percentile(samples, 99) == 100
    assert measure.percentile([5], 99) == 5
