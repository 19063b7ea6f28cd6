"""Lets libFuzzer look for inputs that break native/fuzz/fuzz_*.c, under the address and undefined
sanitizers. Where clang or its fuzzer is absent it says so and that is all: the committed inputs
are replayed by native/tests/run.py in any case. Standard library only.

    native/fuzz/run.py [-k WORD] [--seconds 60] [--keep]

The seconds are shared out among the targets. Each begins with its inputs in tests/corpus and those
that earlier runs found (build/fuzz/corpus/TARGET). What breaks something is left as
build/fuzz/TARGET-crash-..., to be fixed and committed with the fix. With --keep the committed
inputs are replaced by the fewest of all those known that reach as much code.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import run as native_test

NATIVE = native_test.NATIVE
BUILD = NATIVE.parent / "build" / "fuzz"
CLANG = os.environ.get("CLANG", "clang")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
INPUT_BYTES_MAX = 1024
INPUT_SECONDS_MAX = 10
LATE_S = 60  # beyond its share, for the inputs it begins with


def missing() -> str | None:
    """Why there can be no fuzzing here, or None."""
    if not shutil.which(CLANG):
        return f"there is no {CLANG}"
    source = BUILD / "probe.c"
    source.write_text("int LLVMFuzzerTestOneInput(const char *p, long n) { return !p && n; }\n")
    program = [CLANG, "-fsanitize=fuzzer", *SANITIZE, str(source), "-o", str(BUILD / "probe")]
    built = subprocess.run(program, capture_output=True, text=True, check=False)
    if built.returncode == 0:
        return None
    lines = built.stderr.strip().splitlines()
    return lines[-1] if lines else f"{CLANG} refuses"


def compile_all(sources: list[Path]) -> dict[Path, Path]:
    """The objects, those that are newer than everything they could depend on left as they are."""
    headers = [path for path in NATIVE.rglob("*.h") if path.parent.name != "fuzz"]
    newest = max(path.stat().st_mtime for path in headers)

    def compile_one(source: Path) -> Path:
        name = str(source.relative_to(NATIVE)).replace("/", "_") + ".o"
        target = BUILD / "objects" / name
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            return target
        command = [CLANG, *native_test.FLAGS, "-fsanitize=fuzzer-no-link", *SANITIZE]
        command += [*native_test.includes(), "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(sources, pool.map(compile_one, sources), strict=True))


def build(target: Path, objects: dict[Path, Path]) -> Path:
    program = BUILD / target.stem
    command = [CLANG, *native_test.FLAGS, "-fsanitize=fuzzer", *SANITIZE, *native_test.includes()]
    command += [str(target), *(str(objects[path]) for path in native_test.sources(target))]
    command += [f"-Wl,--wrap={name}" for name in native_test.WRAPPED]
    subprocess.run([*command, "-o", str(program), "-pthread", "-ldl", "-lm"], check=True)
    return program


def folders(target: Path) -> tuple[Path, Path]:
    """Where new inputs go, and the committed ones."""
    own, committed = BUILD / "corpus" / target.stem, native_test.CORPUS / target.stem
    own.mkdir(parents=True, exist_ok=True)
    committed.mkdir(parents=True, exist_ok=True)
    return own, committed


def fuzz(program: Path, target: Path, seconds: int) -> bool:
    """True: nothing broke."""
    own, committed = folders(target)
    command = [str(program), str(own), str(committed), f"-max_total_time={seconds}"]
    command += [
        f"-artifact_prefix={BUILD}/{target.stem}-",
        "-len_control=0",
        "-print_final_stats=1",
    ]
    command += [f"-max_len={INPUT_BYTES_MAX}", f"-timeout={INPUT_SECONDS_MAX}"]
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds + LATE_S,
        env=environment,
    )
    facts = dict(
        line.removeprefix("stat::").split(":", 1)
        for line in ran.stderr.splitlines()
        if line.startswith("stat::")
    )
    runs = facts.get("number_of_executed_units", "?").strip()
    print(f"  {target.stem}: {'ok' if ran.returncode == 0 else 'FAILED'}  {runs} inputs")
    if ran.returncode:
        print(ran.stderr[-8000:])
    return ran.returncode == 0


def keep(program: Path, target: Path) -> None:
    """The committed inputs anew; those with a name of their own (not a hash) stay."""
    own, committed = folders(target)
    for path in committed.iterdir():
        if len(path.name) == 40:
            path.rename(own / path.name)
    command = [str(program), "-merge=1", "-use_counters=0", f"-max_len={INPUT_BYTES_MAX}"]
    subprocess.run([*command, str(committed), str(own)], capture_output=True, check=True)
    kept = [path.stat().st_size for path in committed.iterdir()]
    print(f"  {target.stem}: {len(kept)} inputs, {sum(kept)} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-k", default="", metavar="WORD", help="only targets with WORD in the name")
    parser.add_argument("--seconds", type=int, default=60, help="for all of them together")
    parser.add_argument("--keep", action="store_true", help="renew the committed inputs")
    options = parser.parse_args()
    (BUILD / "objects").mkdir(parents=True, exist_ok=True)
    why = missing()
    if why:
        print(f"fuzz: skipped, no new inputs are looked for: {why}")
        return 0
    targets = [p for p in sorted((NATIVE / "fuzz").glob("fuzz_*.c")) if options.k in p.name]
    objects = compile_all(sorted({path for t in targets for path in native_test.sources(t)}))
    share = max(1, options.seconds // max(1, len(targets)))
    print(f"fuzz: {len(targets)} targets, {share} s each")
    good = True
    for target in targets:
        program = build(target, objects)
        if options.keep:
            keep(program, target)
        else:
            good &= fuzz(program, target, share)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
