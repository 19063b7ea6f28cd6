"""The client's commands of `crailpy`: put get cat ls stat rm mkdir status bench demo pool
doctor, and those of commands_tree.py.

`register` adds them to the parser; each sets `func`, which takes the parsed options and returns the
exit code: 0, or 1 after one line on standard error. What a command needs is imported when it runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

PIECE_BYTES = 8 << 20
"""What a stream moves at a time."""
WHOLE_BYTES = 64 << 20
"""Values up to this size travel in one call."""
GRANULE = 4096
"""What memory is counted in."""


# ---- words on the command line ----------------------------------------------------------------


def duration(text: str) -> float:
    """Seconds of `10s`, `250ms` or a bare number; more than none."""
    import argparse

    from crailpy.units import parse_time

    try:
        seconds = parse_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is no time at all")
    return seconds


def size(text: str) -> int:
    """Bytes of `64KiB`, `1GiB`, `10MB` or a bare number; more than none."""
    from crailpy.units import parse_size

    value = parse_size(text)
    if not value:
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """A whole number, 1 or more."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def address(text: str) -> str:
    """An address of a store, as it is."""
    import argparse

    from .session import Address

    try:
        return Address(text).text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def sizes(text: str) -> list[int]:
    """Bytes of each of `64,4KiB,16MiB`."""
    return [size(word) for word in text.split(",")]


def size_words(value: float) -> str:
    from crailpy.units import format_size

    return format_size(int(value))


# ---- progress -----------------------------------------------------------------------------------


class Progress:
    """A bar on standard error, where that is a terminal and the work takes over half a second."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._began = time.monotonic()
        self._next = self._began + 0.5 if sys.stderr.isatty() else float("inf")
        self._shown = False

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 0.1
        self._shown = True
        rate = f"{size_words(self.done / (now - self._began))}/s"
        if self.total:
            part = min(1.0, self.done / self.total)
            bar = ("#" * round(30 * part)).ljust(30)
            line = f"[{bar}] {part:4.0%} {size_words(self.done)} of {size_words(self.total)}"
        else:
            line = size_words(self.done)
        sys.stderr.write(f"\r{self.label[-30:]} {line}, {rate}\x1b[K")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def copy_stream(source: Any, target: Any, progress: Progress, limit: int | None = None) -> int:
    """Moves everything, or the first `limit` bytes, from one file to another in pieces. Returns the
    bytes moved."""
    buffer = bytearray(PIECE_BYTES)
    total = 0
    with memoryview(buffer) as view:
        while limit is None or total < limit:
            got = source.readinto(view if limit is None else view[: limit - total])
            if not got:
                break
            piece = view[:got]
            while piece:
                written = target.write(piece)
                piece = piece[written:] if written is not None else piece[:0]
            total += got
            progress.add(got)
    return total


# ---- the commands -------------------------------------------------------------------------------


class Misuse(Exception):
    """What was asked for cannot be: it was said wrongly, on the command line or in the settings."""


def connect(options: argparse.Namespace) -> Any:
    """The store that was asked for. Raises Misuse, and what crailpy.connect() raises."""
    from crailpy.config import load
    from crailpy.errors import InvalidArgumentError

    from .session import Address

    try:
        settings = load()
        try:
            Address(options.address or settings.address)
        except ValueError as error:
            raise InvalidArgumentError(f"{settings.origin['address']}: {error}") from None
        return open_store(options)
    except InvalidArgumentError as error:
        raise Misuse(describe(error)) from None


def open_store(options: argparse.Namespace) -> Any:
    import crailpy

    given: dict[str, Any] = {}
    if options.token:
        given["token"] = options.token
    if options.timeout:
        given["timeout"] = options.timeout
    return crailpy.connect(options.address, **given)


def print_json(facts: object) -> None:
    import json

    print(json.dumps(facts, indent=1, default=str))


def node_facts(info: Any) -> dict[str, Any]:
    """What `--json` says about a node: the fields of NodeInfo that have a value."""
    return {name: value for name, value in info.as_dict().items() if value not in (None, [])}


def is_folder(info: Any) -> bool:
    return bool(info.is_dir)


def time_words(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + "Z"


def standard_bytes(name: str) -> Any:
    """The bytes of "stdin" or "stdout". Asked for before a connection is made: where the caller has
    closed it, a socket may get its number."""
    from crailpy.errors import ClosedError

    stream = getattr(sys, name)
    if stream is None:
        raise ClosedError(f"standard {name[3:]}put is closed")
    return stream.buffer


def placement(options: argparse.Namespace) -> dict[str, Any]:
    """The placement keywords that were given."""
    names = ("tier", "location", "stripe", "ttl", "wait_space")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    flags = ("strict", "evictable", "delete_after_read")
    return given | {name: True for name in flags if getattr(options, name)}


def put(options: argparse.Namespace) -> int:
    mode = "xb" if options.if_absent else "wb"
    placed = placement(options)
    stream = standard_bytes("stdin") if options.local == "-" else None
    with connect(options) as store:
        if stream is not None:
            with store.open(options.key, mode, **placed) as target, Progress("-", None) as bar:
                copy_stream(stream, target, bar)
            return 0
        with open(options.local, "rb", buffering=0) as source:
            total = os.fstat(source.fileno()).st_size
            if 0 < total <= WHOLE_BYTES:
                store.put(options.key, source.readall(), if_absent=options.if_absent, **placed)
                return 0
            with (
                Progress(options.local, total) as bar,
                store.open(options.key, mode, **placed) as target,
            ):
                copy_stream(source, target, bar)
    return 0


@contextlib.contextmanager
def local_target(name: str, key: str) -> Iterator[Any]:
    """The file to write to. A regular file appears under its name only when all of it is there."""
    if os.path.isdir(name):
        name = os.path.join(name, key.rstrip("/").rpartition("/")[2])
    if os.path.exists(name) and not os.path.isfile(name):
        with open(name, "wb", buffering=0) as file:
            yield file
        return
    part = f"{name}.{os.getpid()}.part"
    try:
        with open(part, "wb", buffering=0) as file:
            yield file
        os.replace(part, name)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def fetch(store: Any, key: str, target: Any) -> None:
    """Writes a value to a file, in pieces when it is large."""
    with store.open(key, "rb") as source, Progress(key, store.stat(key).size) as bar:
        copy_stream(source, target, bar)


def get(options: argparse.Namespace) -> int:
    stream = standard_bytes("stdout") if options.local == "-" else None
    with connect(options) as store:
        if options.wait is not None:
            store.wait(options.key, timeout=options.wait)
        if stream is not None:
            fetch(store, options.key, stream)
            stream.flush()
        else:
            with local_target(options.local, options.key) as target:
                fetch(store, options.key, target)
    return 0


def cat(options: argparse.Namespace) -> int:
    stream = standard_bytes("stdout")
    with connect(options) as store:
        for key in options.keys:
            fetch(store, key, stream)
        stream.flush()
    return 0


def ls(options: argparse.Namespace) -> int:
    with connect(options) as store:
        infos = [store.stat(path) for path in options.paths]
        if options.json:
            listed = [i for info in infos for i in entries_of(store, info)]
            print_json([node_facts(info) for info in listed])
            return 0
        for info in infos:
            if len(infos) > 1 and is_folder(info):
                print(f"{info.path}:")
            list_node(store, info, options.long)
            if is_folder(info) and info is not infos[-1]:
                print()
    return 0


def entries_of(store: Any, info: Any) -> Iterator[Any]:
    """What is in a container; of a value, itself."""
    return store.scandir(info.path) if is_folder(info) else iter([info])


def list_node(store: Any, info: Any, long: bool) -> None:
    folder = is_folder(info)
    if not long:
        for name in store.listdir(info.path) if folder else [info.path]:
            print(name)
        return
    for entry in entries_of(store, info):
        name = entry.path.rpartition("/")[2] if folder else entry.path
        mark = "-" if entry.kind == "file" else entry.kind[0]
        slash = "/" if is_folder(entry) else ""
        print(f"{mark} {entry.size:>14,} {time_words(entry.mtime)} {name}{slash}")


def stat(options: argparse.Namespace) -> int:
    with connect(options) as store:
        infos = [store.stat(path) for path in options.paths]
    if options.json:
        print_json([node_facts(info) for info in infos])
        return 0
    for info in infos:
        facts = node_facts(info)
        facts["mtime"] = time_words(info.mtime)
        facts["size"] = f"{info.size} {'entries' if is_folder(info) else 'bytes'}"
        if info.locations:
            facts["locations"] = f"{len(info.locations)} extents"
        for name, value in facts.items():
            print(f"{name:<12}{value}")
        if info is not infos[-1]:
            print()
    return 0


def rm(options: argparse.Namespace) -> int:
    from crailpy.errors import NotEmptyError, NotFoundError

    with connect(options) as store:
        for path in options.paths:
            try:
                if options.recursive:
                    store.rmtree(path)
                else:
                    store.remove(path)
            except NotEmptyError:
                raise NotEmptyError(path=path, hint="-r removes it with all below it") from None
            except NotFoundError:
                if not options.force:
                    raise
    return 0


def mkdir(options: argparse.Namespace) -> int:
    with connect(options) as store:
        for path in options.paths:
            store.mkdir(path, parents=options.parents, exist_ok=options.parents)
    return 0


def status(options: argparse.Namespace) -> int:
    with connect(options) as store:
        facts = store.status()
    if options.json:
        print_json(facts)
        return 0
    namenode = facts["namenode"]

    def count(name: str) -> int:
        return int(namenode.get(name, 0))

    print(
        f"namenode    {count('nodes'):,} nodes ({count('files'):,} files, "
        f"{count('directories'):,} directories) in {size_words(count('arena_bytes_used'))}, "
        f"{count('sessions')} sessions, {count('lanes')} lanes"
    )
    print(
        f"memory      {size_words(count('granules_used') * GRANULE)} used, "
        f"{size_words(count('granules_free') * GRANULE)} free of "
        f"{size_words(count('granules_total') * GRANULE)} "
        f"({size_words(count('granules_granted') * GRANULE)} granted, "
        f"{size_words(count('granules_retiring') * GRANULE)} being freed)"
    )
    print(
        f"requests    {count('requests'):,} with {count('operations'):,} operations since the start"
    )
    state = facts["state"]
    print(
        f"durability  {facts['durability']}"
        + (f", {state['rows']:,} rows in {state['path']}" if state else "")
        + (f"; commits fail: {state['failure']}" if state and state["failure"] else "")
    )
    for line in server_lines(facts["servers"]):
        print(line)
    return 0


def server_lines(servers: list[dict[str, Any]]) -> Iterator[str]:
    """A small table of the storage servers; `--json` has all of what is known."""
    head = ("server", "id", "state", "tier", "location", "address", "used", "free", "of")
    rows = [head, *map(server_row, servers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    for server in servers:
        if server["failed"]:
            yield f"the disk of {server['id']} has failed: {server['failed']}"


def server_row(server: dict[str, Any]) -> tuple[str, ...]:
    names = ("number", "id", "state", "tier", "location", "address")
    counts = (server["granules_used"], server["granules_free"], server["granules_total"])
    return (
        *("-" if server[name] is None else str(server[name]) for name in names),
        *(size_words(number * GRANULE) for number in counts),
    )


def bench_report(options: argparse.Namespace) -> int:
    from .bench.page import run

    return run(options.files, options.output)


def bench(options: argparse.Namespace) -> int:
    from .bench import SECTIONS, run

    for section in options.only or []:
        if section not in SECTIONS:
            print(
                f"crailpy: there is no section {section!r} (there are: {' '.join(SECTIONS)})",
                file=sys.stderr,
            )
            return 2
    return run(options)


def demo(options: argparse.Namespace) -> int:
    from .demo import run

    return run(options)


def pool(options: argparse.Namespace) -> int:
    from .compute.executors.command import run

    return run(options)


def doctor(options: argparse.Namespace) -> int:
    from .doctor import run

    return run(options, lambda: connect(options))


# ---- registration -------------------------------------------------------------------------------


def guarded(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The command with errors as one line on standard error and exit code 1, or 2 for Misuse."""

    def func(options: argparse.Namespace) -> int:
        try:
            return command(options)
        except BrokenPipeError:  # the reader of our output has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1
        except KeyboardInterrupt:  # its exit code is the entry point's business
            print("crailpy: interrupted", file=sys.stderr)
            raise
        except Misuse as error:
            print(f"crailpy: {error}", file=sys.stderr)
            return 2
        except Exception as error:
            if not is_expected(error):
                raise
            print(f"crailpy: {describe(error)}", file=sys.stderr)
            return 1

    return func


def is_expected(error: Exception) -> bool:
    """Is this something that a user can do something about, and not a mistake of ours?"""
    from crailpy.errors import CrailError

    return isinstance(error, (CrailError, OSError, MemoryError))


def describe(error: BaseException) -> str:
    """`message (hint)`."""
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    message = str(error) or type(error).__name__
    hint = getattr(error, "hint", None)
    return f"{message.removesuffix(f'; {hint}')} ({hint})" if hint else message


def add_placement(parser: argparse.ArgumentParser) -> None:
    """The keywords of **placement that say something on a command line."""
    group = parser.add_argument_group("placement")
    group.add_argument("--tier", choices=("dram", "nvmf", "file"), help="prefer this tier")
    group.add_argument("--location", metavar="CLASS", help="prefer servers of this location class")
    group.add_argument("--strict", action="store_true", help="there and nowhere else")
    group.add_argument("--stripe", type=count, metavar="N", help="equal runs on N servers")
    group.add_argument("--ttl", type=duration, metavar="TIME", help="goes after so long")
    group.add_argument("--evictable", action="store_true", help="may go when space is short")
    group.add_argument("--delete-after-read", action="store_true", help="goes when it was read")
    group.add_argument("--wait-space", type=duration, metavar="TIME", help="wait for space")


def register(subparsers: Any) -> None:
    """Adds the client's commands to what `ArgumentParser.add_subparsers()` gave."""
    import argparse

    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("store")
    group.add_argument(
        "--address",
        type=address,
        help="crail://host:port or crail+unix:///path (default: $CRAILPY_ADDRESS, then local)",
    )
    group.add_argument("--timeout", type=duration, help="limit of each call, as 10s or 250ms")
    group.add_argument("--token", help="the secret that the store asks for")
    facts = argparse.ArgumentParser(add_help=False)
    facts.add_argument("--json", action="store_true", help="print facts as JSON")

    def add(
        name: str,
        command: Callable[[argparse.Namespace], int],
        help: str,
        *parents: argparse.ArgumentParser,
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = subparsers.add_parser(
            name, help=help, description=help, parents=list(parents)
        )
        parser.set_defaults(func=guarded(command))
        return parser

    p = add("put", put, "put a file into the store, with the directories above it", common)
    p.add_argument("local", metavar="LOCAL", help="a file, or - for standard input")
    p.add_argument("key", metavar="KEY")
    p.add_argument("--if-absent", action="store_true", help="fail when the key is there already")
    add_placement(p)

    p = add("get", get, "get a value from the store into a file", common)
    p.add_argument("key", metavar="KEY")
    p.add_argument("local", metavar="LOCAL", help="a file or directory, or - for standard output")
    p.add_argument("--wait", type=duration, metavar="TIME", help="so long for it to be there")

    p = add("cat", cat, "write values to standard output", common)
    p.add_argument("keys", metavar="KEY", nargs="+")

    p = add("ls", ls, "list directories of the store", common, facts)
    p.add_argument("paths", metavar="PATH", nargs="*", default=["/"])
    p.add_argument("-l", "--long", action="store_true", help="with kind, size and time (UTC)")

    p = add("stat", stat, "say what is known about nodes", common, facts)
    p.add_argument("paths", metavar="PATH", nargs="+")

    p = add("rm", rm, "remove nodes", common)
    p.add_argument("paths", metavar="PATH", nargs="+")
    p.add_argument("-r", "--recursive", action="store_true", help="and everything below them")
    p.add_argument("-f", "--force", action="store_true", help="absent nodes are fine")

    p = add("mkdir", mkdir, "make directories", common)
    p.add_argument("paths", metavar="PATH", nargs="+")
    p.add_argument(
        "-p", "--parents", action="store_true", help="and those above; existing ones are fine"
    )

    from . import commands_tree

    commands_tree.register(add, common, facts)

    add("status", status, "say how the store is doing", common, facts)

    p = add("bench", bench, "measure the store beside the machine's own limits", common, facts)
    p.add_argument(
        "--quick", action="store_true", help="fewer samples, 100,000 nodes, no 256 MiB values"
    )
    p.add_argument("--clients", type=count, default=4, metavar="N", help="up to N client processes")
    p.add_argument(
        "--pin", choices=("one", "free", "both"), default="both", help="placements to measure"
    )
    p.add_argument("--sizes", type=sizes, metavar="LIST", help="as 64,4KiB,16MiB")
    p.add_argument(
        "--only", type=str.split, metavar="SECTIONS", help="in one word, as 'small many'"
    )
    p.add_argument(
        "--fresh", type=count, default=1, metavar="N", help="medians over N fresh stores"
    )
    p.add_argument("--check", action="store_true", help="exit code 1 when a bar is missed")
    words = "turn the JSON of benches and jobs into one page with charts"
    p = p.add_subparsers(title="what has been measured").add_parser(
        "report", help=words, description=words
    )
    p.set_defaults(func=guarded(bench_report))
    p.add_argument("files", metavar="FILE", nargs="+", help="what --json printed")
    p.add_argument("-o", "--output", metavar="FILE", required=True, help="or - for standard output")

    p = add(
        "demo", demo, "count words with worker processes that share data in a store", common, facts
    )
    p.add_argument(
        "--workers", type=count, metavar="N", help="worker processes (default: one per core)"
    )
    p.add_argument("--maps", type=count, default=32, metavar="N", help="map tasks")
    p.add_argument("--reduces", type=count, default=8, metavar="N", help="reduce tasks")
    p.add_argument("--folder", help="where the text is (default: the standard library)")

    from .compute.executors import command

    p = add("pool", pool, "run the executor pool of this machine, or ask how it is", facts)
    command.add(p, count, duration)

    add("doctor", doctor, "say what this machine can do for a store", common, facts)
