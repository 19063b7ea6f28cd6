"""`crailpy demo`: a word count over the Python standard library's sources, all intermediate data
through a store.

A driver starts a local store and worker processes (by exec). A map task counts the words of some
source files and puts one value per reduce task; a reduce task gets its value of every map task,
adds up, and puts the result. Between driver and workers only task names cross, one a line over
pipes: `map 3`, `done map 3`. Which files a task reads, the counts, the results and the time that
each task took go through the store as well. At the end the driver compares the result with a plain
count in one process.

Times are wall clock inside the tasks: *input* (reading files and plans), *compute* (counting,
packing, adding up), *shuffle* (put_many of the map tasks and get_many of the reduce tasks),
*output* (putting results and reports).
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crailpy.config import child_environment
from crailpy.errors import CrailError

if TYPE_CHECKING:
    import argparse

WORD = re.compile(rb"[A-Za-z_][A-Za-z_0-9]*")
TASK_SECONDS_MAX = 60.0
"""The driver gives up when no worker has said anything for so long."""

Counts = Mapping[bytes, int]


# ---- the count, as plain functions ------------------------------------------------------------


def source_files(folder: str) -> list[str]:
    """Every Python source below `folder`, in order, without the packages installed there."""
    found: list[str] = []
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        found.extend(os.path.join(path, name) for name in sorted(names) if name.endswith(".py"))
    return found


def count_words(texts: Iterable[bytes]) -> Counter[bytes]:
    counts: Counter[bytes] = Counter()
    for text in texts:
        counts.update(WORD.findall(text))
    return counts


def partition(counts: Counts, parts: int) -> list[bytes]:
    """The counts as one packed value per reduce task; a word's CRC says which one it belongs to."""
    words: list[list[bytes]] = [[] for _ in range(parts)]
    for word in counts:
        words[zlib.crc32(word) % parts].append(word)
    return [pack(counts, part) for part in words]


def pack(counts: Counts, words: Sequence[bytes]) -> bytes:
    """The counts (u64, this machine's order), then the words, one a line."""
    numbers = array.array("Q", [counts[word] for word in words])
    return b"%d\n" % len(words) + numbers.tobytes() + b"\n".join(words)


def unpack(value: bytes) -> Iterator[tuple[bytes, int]]:
    head, _, rest = value.partition(b"\n")
    size = 8 * int(head)
    numbers = array.array("Q", rest[:size])
    return zip(rest[size:].split(b"\n"), numbers, strict=False)


def add_up(values: Iterable[bytes]) -> dict[bytes, int]:
    total: dict[bytes, int] = {}
    for value in values:
        for word, count in unpack(value):
            total[word] = total.get(word, 0) + count
    return total


def read_files(paths: Iterable[str]) -> list[bytes]:
    texts = []
    for path in paths:
        with open(path, "rb") as file:
            texts.append(file.read())
    return texts


# ---- a worker ---------------------------------------------------------------------------------


class Worker:
    """Does the tasks that it is told to, against one store."""

    def __init__(self, store: Any, base: str, maps: int, reduces: int) -> None:
        self.store = store
        self.base = base
        self.maps = maps
        self.reduces = reduces

    def run(self, kind: str, number: int) -> None:
        """Does one task and leaves its report (seconds and bytes) in the store."""
        report = self._map(number) if kind == "map" else self._reduce(number)
        self.store.put(f"{self.base}/reports/{kind}{number:04}", json.dumps(report).encode())

    def _map(self, number: int) -> dict[str, float]:
        begin = time.perf_counter()
        texts = read_files(json.loads(self.store.get(f"{self.base}/plan/{number:04}")))
        read = time.perf_counter()
        values = partition(count_words(texts), self.reduces)
        computed = time.perf_counter()
        keys = [f"{self.base}/shuffle/{number:04}/{i:04}" for i in range(self.reduces)]
        self.store.put_many(list(zip(keys, values, strict=True)))
        return {
            "input": read - begin,
            "compute": computed - read,
            "shuffle": time.perf_counter() - computed,
            "input_bytes": sum(map(len, texts)),
            "put_bytes": sum(map(len, values)),
            "values": len(values),
        }

    def _reduce(self, number: int) -> dict[str, float]:
        begin = time.perf_counter()
        keys = [f"{self.base}/shuffle/{i:04}/{number:04}" for i in range(self.maps)]
        values = self.store.get_many(keys)
        fetched = time.perf_counter()
        total = add_up(values)
        result = pack(total, sorted(total))
        computed = time.perf_counter()
        self.store.put(f"{self.base}/result/{number:04}", result)
        return {
            "shuffle": fetched - begin,
            "compute": computed - fetched,
            "output": time.perf_counter() - computed,
            "get_bytes": sum(map(len, values)),
            "output_bytes": len(result),
            "values": len(values),
        }


def worker_main(address: str, base: str, maps: int, reduces: int) -> int:
    """Reads task names from standard input until it ends; answers each on standard output."""
    import crailpy

    with crailpy.connect(address) as store:
        worker = Worker(store, base, maps, reduces)
        print("ready", flush=True)
        for line in sys.stdin:
            kind, number = line.split()
            worker.run(kind, int(number))
            print(f"done {kind} {number}", flush=True)
    return 0


# ---- the driver -------------------------------------------------------------------------------


class DemoError(CrailError):
    """The demo could not be run to its end."""


class Workers:
    """The worker processes, and one task at a time for each."""

    def __init__(self, count: int, arguments: Sequence[str], token: str | None) -> None:
        command = [sys.executable, "-m", "crailpy.client.demo", "worker", *arguments]
        environment = child_environment(token)
        self._selector = selectors.DefaultSelector()
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count):
                # A session of its own: the terminal's Ctrl-C is for us, who end it in order.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    start_new_session=True,
                )
                self._processes.append(process)
                assert process.stdout
                self._selector.register(process.stdout, selectors.EVENT_READ, process)
            for process in self._processes:
                self._said(process, "ready")
        except BaseException:
            self.close()
            raise

    def _said(self, process: subprocess.Popen[bytes], words: str) -> None:
        assert process.stdout
        line = process.stdout.readline().decode().strip()
        if line != words:
            state = process.poll()
            what = f"said {line!r}" if line else f"ended (exit code {state})"
            raise DemoError(f"a worker {what} instead of {words!r}")

    def run(self, kind: str, tasks: int) -> None:
        """All tasks of a kind, numbered from 0; returns when the last one is done."""
        waiting = iter(range(tasks))
        at_work: dict[int, int] = {}

        def give(process: subprocess.Popen[bytes]) -> None:
            number = next(waiting, None)
            if number is None:
                return
            assert process.stdin
            try:
                process.stdin.write(f"{kind} {number}\n".encode())
                process.stdin.flush()
            except BrokenPipeError:
                raise DemoError(f"a worker ended before task {kind} {number}") from None
            at_work[process.pid] = number

        for process in self._processes:
            give(process)
        while at_work:
            ready = self._selector.select(TASK_SECONDS_MAX)
            if not ready:
                raise DemoError(f"no {kind} task was done within {TASK_SECONDS_MAX:.0f} s")
            for key, _ in ready:
                process = key.data
                number = at_work.pop(process.pid, None)
                if number is None:
                    raise DemoError(f"a worker without a task ended (exit code {process.poll()})")
                self._said(process, f"done {kind} {number}")
                give(process)

    def close(self) -> None:
        """Ends the workers: the end of their input, then a signal."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                assert process.stdin
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout
            process.stdout.close()
        self._selector.close()


def plan(files: Sequence[str], tasks: int) -> list[list[str]]:
    """The files dealt out to `tasks` tasks, the largest first, each to the task that has least."""
    groups: list[list[str]] = [[] for _ in range(tasks)]
    loads = [0] * tasks
    for size, path in sorted(((os.path.getsize(path), path) for path in files), reverse=True):
        least = loads.index(min(loads))
        groups[least].append(path)
        loads[least] += size
    return groups


def collect(store: Any, base: str, reduces: int) -> dict[bytes, int]:
    values = store.get_many([f"{base}/result/{i:04}" for i in range(reduces)])
    return {word: count for value in values for word, count in unpack(value)}


def report_facts(store: Any, base: str) -> dict[str, float]:
    """The sums over all tasks of what their reports say."""
    names = store.listdir(f"{base}/reports")
    sums: Counter[str] = Counter()
    for value in store.get_many([f"{base}/reports/{name}" for name in names]):
        sums.update(json.loads(value))
    return dict(sums)


def word_count(
    store: Any,
    address: str,
    base: str,
    folder: str,
    workers: int,
    maps: int,
    reduces: int,
    token: str | None = None,
) -> dict[str, Any]:
    """Runs the job and the check. Returns the facts that `crailpy demo` prints."""
    files = source_files(folder)
    if not files:
        raise DemoError(f"there are no Python sources below {folder}")
    maps = min(maps, len(files))
    began = time.perf_counter()
    for number, group in enumerate(plan(files, maps)):
        store.put(f"{base}/plan/{number:04}", json.dumps(group).encode())
    for name in ("reports", "result"):
        store.mkdir(f"{base}/{name}", parents=True, exist_ok=True)
    planned = time.perf_counter()
    pool = Workers(workers, [address, base, str(maps), str(reduces)], token)
    with contextlib.closing(pool):
        started = time.perf_counter()
        pool.run("map", maps)
        mapped = time.perf_counter()
        pool.run("reduce", reduces)
        reduced = time.perf_counter()
    result = collect(store, base, reduces)
    facts: dict[str, Any] = report_facts(store, base)
    check_began = time.perf_counter()
    plain = count_words(read_files([path])[0] for path in files)
    facts.update(
        folder=folder,
        files=len(files),
        workers=workers,
        maps=maps,
        reduces=reduces,
        plan_seconds=planned - began,
        start_seconds=started - planned,
        map_seconds=mapped - started,
        reduce_seconds=reduced - mapped,
        plain_seconds=time.perf_counter() - check_began,
        words=sum(result.values()),
        distinct=len(result),
        most=[[word.decode(), count] for word, count in plain.most_common(5)],
        right=result == dict(plain),
    )
    return facts


def _mb(value: float) -> str:
    return f"{value / 1e6:.1f} MB"


def show(facts: Mapping[str, Any]) -> None:
    """The facts in words."""
    job = facts["map_seconds"] + facts["reduce_seconds"]
    moved = facts["put_bytes"] + facts["get_bytes"]
    shuffle = max(facts["shuffle"], 1e-9)
    in_out = facts["input"] + facts["output"]
    total = max(facts["compute"] + shuffle + in_out, 1e-9)
    print(
        f"word count over {facts['files']} files, {_mb(facts['input_bytes'])}, "
        f"from {facts['folder']}"
    )
    print(
        f"{facts['workers']} worker processes, {facts['maps']} map tasks, "
        f"{facts['reduces']} reduce tasks; only task names crossed between them and the driver"
    )
    print(
        f"map {facts['map_seconds']:.2f} s, reduce {facts['reduce_seconds']:.2f} s, "
        f"together {job:.2f} s (one plain process: {facts['plain_seconds']:.2f} s)"
    )
    print(
        f"moved through the store: {_mb(facts['put_bytes'])} put and {_mb(facts['get_bytes'])} got "
        f"in {facts['values']:.0f} value transfers, {_mb(moved / shuffle)}/s and "
        f"{facts['values'] / shuffle:,.0f} values/s per worker"
    )
    print(
        f"of the workers' time: compute {facts['compute'] / total:.1%} ({facts['compute']:.2f} s), "
        f"shuffle {shuffle / total:.1%} ({shuffle:.3f} s), "
        f"input and output {in_out / total:.1%} ({in_out:.2f} s)"
    )
    most = ", ".join(f"{word} {count:,}" for word, count in facts["most"])
    print(f"{facts['words']:,} words, {facts['distinct']:,} different ones; most frequent: {most}")
    if facts["right"]:
        print("the result equals a plain count in one process")
    else:
        print("THE RESULT DIFFERS from a plain count in one process")


def run(options: argparse.Namespace) -> int:
    """`crailpy demo`. Exit code 1 when the result differs from the plain count."""
    import sysconfig

    import crailpy

    folder = options.folder or sysconfig.get_paths()["stdlib"]
    workers = options.workers or max(2, min(8, len(os.sched_getaffinity(0))))
    base = f"/demo-{os.getpid()}"
    given = {"token": options.token} if options.token else {}
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        address = options.address
        if not address:
            address = stack.enter_context(crailpy.LocalCluster(dram="512MiB")).address
        up = time.perf_counter() - began
        store = stack.enter_context(
            crailpy.connect(address, timeout=options.timeout or 30.0, **given)
        )
        try:
            facts = word_count(
                store, address, base, folder, workers, options.maps, options.reduces, options.token
            )
        finally:
            if store.exists(base):
                store.rmtree(base)
    facts["store_start_seconds"] = up
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        if not options.address:
            print(f"a store of this machine was up after {up:.2f} s, and is gone again now")
        show(facts)
    return 0 if facts["right"] else 1


def main(arguments: list[str]) -> int:
    """The processes that the demo starts: `worker ADDRESS BASE MAPS REDUCES`."""
    _, address, base, maps, reduces = arguments
    return worker_main(address, base, int(maps), int(reduces))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
