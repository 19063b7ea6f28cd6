"""Builds and runs native/tests/test_*.c: first under the address and undefined sanitizers, then
under thread. Under the first two also native/fuzz/fuzz_*.c, each with replay.c and the inputs that
are committed for it in tests/corpus (native/fuzz/run.py lets libFuzzer look for more).

Each test file is one program. It is linked with all of native/src, or, if one of its first forty
lines says `sources: base meta`, with these rooms only (`none`: with nothing); never with a file
that it includes itself. A program that exits with 77 was skipped. Standard library only, so that
it runs before any environment is made.

    native/tests/run.py [-k WORD]
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NATIVE = Path(__file__).resolve().parent.parent
CORPUS = NATIVE.parent / "tests" / "corpus"
REPLAY = NATIVE / "fuzz" / "replay.c"
FLAGS = [
    *("-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-fno-omit-frame-pointer"),
    *("-Wall", "-Wextra", "-Werror", "-UNDEBUG", "-DCRAIL_TEST_GUARDS=1"),
]
KINDS = {
    "address,undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    # gcc warns that it does not model atomic_thread_fence; the tests know.
    "thread": ["-fsanitize=thread", "-Wno-error=tsan", "-Wno-tsan"],
}
# What a fuzz target has in its own hands (native/fuzz/fuzz.h).
WRAPPED = ["clock_gettime", "getrandom", "recv", "send", "sendmsg", "epoll_wait"]
TIME_LIMIT_S = 300


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "gcc"))


def missing(kind: str, folder: Path) -> str | None:
    """Why this sanitizer cannot be used here, or None."""
    source = folder / "probe.c"
    source.write_text("int main(void) { return 0; }\n")
    program = folder / "probe"
    command = [*compiler(), *KINDS[kind], str(source), "-o", str(program)]
    try:
        built = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit(f"native-test: no compiler {compiler()[0]!r}: install gcc or set CC")
    if built.returncode:
        lines = built.stderr.strip().splitlines()
        return lines[-1] if lines else "the compiler refuses"
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    return None if ran.returncode == 0 else f"a trivial program ends with {ran.returncode}"


def sources(test: Path) -> list[Path]:
    text = test.read_text()
    head = "\n".join(text.splitlines()[:40])
    said = re.search(r"\bsources:\s*([\w /.-]+)", head)
    rooms = said.group(1).split() if said else ["."]
    found: list[Path] = []
    for room in rooms:
        where = NATIVE / "src" / room
        if room != "none":
            found += [where] if where.suffix == ".c" else sorted(where.rglob("*.c"))
    left_out = included(test)
    return [path for path in found if str(path.relative_to(NATIVE / "src")) not in left_out]


def included(test: Path) -> set[str]:
    """The sources, by their path in native/src, that a test has in itself; it names them so, or by
    their file name where that is unique. Also through a header that lies beside it."""
    found: set[str] = set()
    for name in re.findall(r'#include\s+"([^"]+)"', test.read_text()):
        beside = test.parent / name
        if beside.suffix == ".h" and beside.exists():
            found |= included(beside)
        elif name.endswith(".c"):
            found |= {str(p.relative_to(NATIVE / "src")) for p in (NATIVE / "src").rglob(name)}
    return found


def is_fuzz(test: Path) -> bool:
    return test.parent.name == "fuzz"


def build(test: Path, kind: str, folder: Path, objects: dict[Path, Path]) -> tuple[Path, str]:
    program = folder / test.stem
    needed = [str(objects[path]) for path in sources(test)]
    command = [*compiler(), *FLAGS, *KINDS[kind], *includes(), str(test), *needed]
    if is_fuzz(test):
        command += [str(REPLAY), *(f"-Wl,--wrap={name}" for name in WRAPPED)]
    command += ["-o", str(program)]
    built = subprocess.run(
        [*command, "-pthread", "-ldl", "-lm"], capture_output=True, text=True, check=False
    )
    return program, built.stderr if built.returncode else ""


def includes() -> list[str]:
    return [f"-I{NATIVE / folder}" for folder in ("include", "src", "tests", "fuzz")]


def compile_one(source: Path, kind: str, target: Path) -> str:
    command = [*compiler(), *FLAGS, *KINDS[kind], *includes(), "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def run_one(test: Path, program: Path) -> tuple[int, str]:
    """The exit status, or -1, and what it printed."""
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    try:
        ran = subprocess.run(
            [str(program), *([str(CORPUS / test.stem)] if is_fuzz(test) else [])],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIME_LIMIT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired as late:
        return -1, f"no end after {TIME_LIMIT_S} s\n{late.stdout!r}\n{late.stderr!r}"
    return ran.returncode, ran.stdout + ran.stderr


def passes(test: Path, kind: str, folder: Path, objects: dict[Path, Path]) -> bool:
    program, error = build(test, kind, folder, objects)
    if error:
        print(f"  {test.name}: does not build\n{error}")
        return False
    begin = time.monotonic()
    code, output = run_one(test, program)
    program.unlink()
    word = {0: "ok", 77: "skipped"}.get(code, f"FAILED ({code})")
    last = output.strip().splitlines()[-1:] or [""]
    line = f"  {test.name}: {word}  {time.monotonic() - begin:.1f} s"
    print(f"{line}  {last[0]}" if code in (0, 77) else f"{line}\n{output[-8000:]}", flush=True)
    return code in (0, 77)


def run_kind(kind: str, tests: list[Path], folder: Path) -> list[str]:
    """Builds and runs everything under one sanitizer; returns the names of what failed."""
    needed = sorted({path for test in tests for path in sources(test)})
    objects = {
        path: folder / (str(path.relative_to(NATIVE)).replace("/", "_") + ".o") for path in needed
    }
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        errors = pool.map(lambda path: compile_one(path, kind, objects[path]), needed)
        broken = [(path, error) for path, error in zip(needed, errors, strict=True) if error]
        for path, error in broken:
            print(f"  {path.relative_to(NATIVE)}: does not compile\n{error}")
        if broken:
            return [str(path.relative_to(NATIVE)) for path, _ in broken]
        good = pool.map(lambda test: passes(test, kind, folder, objects), tests)
        return [test.name for test, passed in zip(tests, good, strict=True) if not passed]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-k", default="", metavar="WORD", help="only tests with WORD in their name")
    options = parser.parse_args()
    found = [*(NATIVE / "tests").glob("test_*.c"), *(NATIVE / "fuzz").glob("fuzz_*.c")]
    tests = [path for path in sorted(found) if options.k in path.name]
    if not tests:
        print("native-test: there is no native/tests/test_*.c to run")
        return 0
    failed: list[str] = []
    ran = 0
    with tempfile.TemporaryDirectory(prefix="crailpy-native-") as name:
        for kind in KINDS:
            folder = Path(name) / kind.replace(",", "-")
            folder.mkdir()
            why = missing(kind, folder)
            if why:
                print(
                    f"native-test: the {kind} sanitizer is missing here, its run is skipped: {why}"
                )
                continue
            print(f"native-test: {kind}")
            ran += 1
            chosen = [test for test in tests if kind != "thread" or not is_fuzz(test)]
            failed += [f"{test} ({kind})" for test in run_kind(kind, chosen, folder)]
    if failed:
        print("native-test: FAILED: " + ", ".join(failed))
        return 1
    print(f"native-test: {len(tests)} programs passed under {ran} of {len(KINDS)} sanitizers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
