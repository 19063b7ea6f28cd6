"""The same sort with crailpy and with the engines that are installed:

    python -m tests.bench.compare --size 1GB --workers 2

Dask, Ray Data and Spark (`engines.py`) are no dependencies of this project. Each is looked for in
this interpreter, or in the one that is named: `--python dask=/some/venv/bin/python`; what is not
there is skipped, in words. All read the same files and write sorted files, which are checked in the
same way; the start of the engines, the store and the workers is in nobody's time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import records, sort
from .engines import ENGINES
from .job import Phase, Result
from .records import RECORD_BYTES, Summary
from .runner import ROOT, environment

BAR = 2.0
LIMIT_SECONDS = 3600


def interpreters(given: list[str]) -> dict[str, str]:
    """Of each engine the Python that has it; of those that are not there, the reason."""
    named = dict(word.split("=", 1) for word in given)
    return {name: named.get(name, sys.executable) for name in ENGINES}


def missing(name: str, python: str) -> str | None:
    """Why an engine cannot be run, or None."""
    code = f"import numpy, {ENGINES[name][0]}"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def ours(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    words = ["--size", options.size, "--workers", str(options.workers), "--json"]
    words += ["--input", folder, "--seed", str(options.seed)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.sort", *words],
        stdout=subprocess.PIPE, env=environment(), cwd=ROOT, check=True, timeout=LIMIT_SECONDS,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def theirs(name: str, python: str, plan: dict[str, Any], given: Summary) -> float:
    """Seconds. Raises RuntimeError when the engine failed, or its result is wrong."""
    with tempfile.TemporaryDirectory(prefix=f"crailpy-{name}-", dir=plan["folder"]) as output:
        path = os.path.join(output, "plan.json")
        written = os.path.join(output, "sorted")
        os.mkdir(written)
        Path(path).write_text(json.dumps(plan | {"output": written}))
        command = [python, "-m", "tests.bench.engines", name, path]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), cwd=ROOT,
            timeout=LIMIT_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
        got = summary_of(written)
        if (got.count, got.checksum, got.unordered) != (given.count, given.checksum, 0):
            raise RuntimeError(f"what {name} wrote is not the input in order: {got}")
        return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def summary_of(folder: str) -> Summary:
    """Of the files that are named after their first keys."""
    total = Summary()
    for path in sorted(Path(folder).iterdir()):
        count = path.stat().st_size // RECORD_BYTES
        found = records.read(str(path), 0, count, records.fresh(count))
        total.follow(records.summarise(found))
    return total


def compared(options: argparse.Namespace, result: Result, folder: str) -> None:
    shared = os.path.join(folder, "input")
    ran = [ours(options, shared) for _ in range(options.repeat)]
    result.right &= all(found["right"] for found in ran)
    facts, mine = ran[0]["facts"], statistics.median(found["seconds"] for found in ran)
    given = Summary(**facts["input"])
    result.say(f"crailpy: {given.count:,} records by {options.workers} workers in {mine:.2f} s")
    engines = [{"name": "crailpy", "seconds": mine, "ratio": 1.0}]
    names = ("maps", "partitions")
    plan = {name: facts[name] for name in names} | {"workers": options.workers}
    plan |= {"input": shared, "folder": folder}
    skipped = {}
    for name, python in interpreters(options.python).items():
        if name in options.without or (reason := missing(name, python)):
            skipped[name] = "not asked for" if name in options.without else reason
            result.say(f"  {name} is skipped: {skipped[name]}")
            continue
        try:
            took = [theirs(name, python, plan, given) for _ in range(options.repeat)]
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            skipped[name] = str(error)
            result.say(f"  {name}: {error}")
            continue
        seconds = statistics.median(took)
        engines.append({"name": name, "seconds": seconds, "ratio": seconds / mine})
        result.say(f"  {name}: {seconds:.2f} s")
        result.at_least(f"{name} / crailpy", seconds / mine, BAR)
    result.phases.append(Phase("sort", mine))
    result.facts |= {"engines": engines, "skipped": skipped, "input": given.facts()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The same sort on several engines.")
    parser.add_argument("--size", default="1GB", help="of the input (default: 1GB)")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="medians of so many")
    parser.add_argument("--folder", help="for input and output (default: a temporary one)")
    parser.add_argument("--without", nargs="*", default=[], choices=ENGINES, help="skip these")
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH", help="who has an engine"
    )
    parser.add_argument("--json", action="store_true", help="print facts as JSON")
    options = parser.parse_args(arguments)
    result = Result("compare", options)
    with sort.working_folder(options.folder) as folder:
        compared(options, result, folder)
    return result.end()


if __name__ == "__main__":
    raise SystemExit(main())
