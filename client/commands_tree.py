"""The commands that look at the tree and move what is in it: cp mv tree du find watch top.

`commands.register` adds them; what is said there holds here."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

from .commands import (
    GRANULE,
    Progress,
    connect,
    copy_stream,
    is_folder,
    node_facts,
    print_json,
    server_lines,
    size_words,
)

KINDS = ("file", "directory", "table", "multifile", "queue", "barrier")


def below(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"


def last_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def target_of(store: Any, source: str, target: str) -> str:
    """Where `source` goes: into `target` if that is a container, else to it."""
    from crailpy.errors import NotFoundError

    try:
        if is_folder(store.stat(target)):
            return below(target, last_name(source))
    except NotFoundError:
        pass
    return target


def need_container(store: Any, options: argparse.Namespace) -> None:
    """Several things go into one container only."""
    from crailpy.errors import NotContainerError

    if len(options.sources) > 1 and not is_folder(store.stat(options.target)):
        raise NotContainerError(path=options.target)


# ---- moving -------------------------------------------------------------------------------------


def copy_value(store: Any, source: str, target: str, if_absent: bool, bar: Progress) -> None:
    """One value, as one version. A copy is no reading: what goes when it was read stays."""
    with store.open(source, "rb") as file:
        size = file.seek(0, io.SEEK_END)  # all of it is copied, and its end is never read
        file.seek(0)
        with store.open(target, "xb" if if_absent else "wb") as to:
            copy_stream(file, to, bar, size)


def cp(options: argparse.Namespace) -> int:
    from crailpy.errors import InvalidArgumentError, IsContainerError

    with connect(options) as store:
        need_container(store, options)
        for source in options.sources:
            target = target_of(store, source, options.target)
            with Progress(source, None) as bar:
                if not is_folder(store.stat(source)):
                    copy_value(store, source, target, options.no_clobber, bar)
                    continue
                if not options.recursive:
                    raise IsContainerError(path=source, hint="-r copies it with all below it")
                if f"{target.rstrip('/')}/".startswith(f"{source.rstrip('/')}/"):
                    raise InvalidArgumentError("cannot be copied into itself", path=source)
                store.mkdir(target, parents=True, exist_ok=True)
                for path, folders, values in store.walk(source):
                    to = target + path[len(source.rstrip("/")) :]
                    for name in folders:
                        store.mkdir(below(to, name), exist_ok=True)
                    for name in values:
                        copy_value(
                            store, below(path, name), below(to, name), options.no_clobber, bar
                        )
    return 0


def mv(options: argparse.Namespace) -> int:
    with connect(options) as store:
        need_container(store, options)
        for source in options.sources:
            target = target_of(store, source, options.target)
            store.rename(source, target, overwrite=not options.no_clobber)
    return 0


# ---- looking ------------------------------------------------------------------------------------


def entries_below(store: Any, path: str) -> Iterator[Any]:
    """NodeInfo of the entries; none if the container goes meanwhile."""
    from crailpy.errors import NotContainerError, NotFoundError

    try:
        yield from store.scandir(path)
    except (NotFoundError, NotContainerError):
        return


def tree_facts(store: Any, info: Any, depth: int | None) -> dict[str, Any]:
    facts = node_facts(info)
    if is_folder(info) and depth != 0:
        facts["entries"] = [
            tree_facts(store, entry, None if depth is None else depth - 1)
            for entry in entries_below(store, info.path)
        ]
    return facts


def print_tree(store: Any, path: str, before: str, depth: int | None) -> tuple[int, int]:
    """Prints what is below; returns how many containers and values that were."""
    folders = values = 0
    entries = list(entries_below(store, path))
    for entry in entries:
        is_last = entry is entries[-1]
        slash = "/" if is_folder(entry) else f"  ({size_words(entry.size)})"
        print(f"{before}{'└── ' if is_last else '├── '}{entry.name}{slash}")
        if not is_folder(entry):
            values += 1
            continue
        folders += 1
        if depth is None or depth > 1:
            inner = before + ("    " if is_last else "│   ")
            more = print_tree(store, entry.path, inner, None if depth is None else depth - 1)
            folders += more[0]
            values += more[1]
    return folders, values


def tree(options: argparse.Namespace) -> int:
    with connect(options) as store:
        info = store.stat(options.path)
        if options.json:
            print_json(tree_facts(store, info, options.depth))
            return 0
        print(options.path)
        folders, values = (0, 0)
        if is_folder(info) and options.depth != 0:
            folders, values = print_tree(store, info.path, "", options.depth)
        print(f"\n{folders:,} containers, {values:,} values")
    return 0


def du(options: argparse.Namespace) -> int:
    rows = []
    with connect(options) as store:
        for top in options.paths:
            info = store.stat(top)
            if not is_folder(info):
                rows.append({"path": top, "bytes": info.size, "values": 1})
                continue
            # from below: a container's sums are complete when it comes
            sums: dict[str, tuple[int, int]] = {}
            for path, folders, _ in store.walk(top, topdown=False):
                infos = [i for i in entries_below(store, path) if not is_folder(i)]
                parts = [sums.pop(below(path, name), (0, 0)) for name in folders]
                sums[path] = (
                    sum(i.size for i in infos) + sum(size for size, _ in parts),
                    len(infos) + sum(count for _, count in parts),
                )
                if path == top or not options.summarize:
                    rows.append({"path": path, "bytes": sums[path][0], "values": sums[path][1]})
    if options.json:
        print_json(rows)
        return 0
    for row in rows:
        print(f"{size_words(row['bytes']):>10} {row['values']:>10,} {row['path']}")
    return 0


def find(options: argparse.Namespace) -> int:
    import fnmatch

    now = time.time()
    found = []

    def fits(info: Any) -> bool:
        return (
            (options.name is None or fnmatch.fnmatchcase(info.name, options.name))
            and (options.kind is None or info.kind == options.kind)
            and (options.larger is None or (not is_folder(info) and info.size > options.larger))
            and (options.smaller is None or (not is_folder(info) and info.size < options.smaller))
            and (options.newer is None or now - info.mtime < options.newer)
            and (options.older is None or now - info.mtime > options.older)
        )

    with connect(options) as store:
        top = store.stat(options.path)
        waiting = [iter([top])]
        while waiting:  # in order, and as deep as it goes
            info = next(waiting[-1], None)
            if info is None:
                waiting.pop()
                continue
            if fits(info):
                if options.json:
                    found.append(node_facts(info))
                else:
                    print(info.path)
            if is_folder(info):
                waiting.append(entries_below(store, info.path))
    if options.json:
        print_json(found)
    return 0


def watch(options: argparse.Namespace) -> int:
    import json

    left = options.count
    with connect(options) as store, store.watch(options.prefix) as events:
        print(f"crailpy: watching {options.prefix}", file=sys.stderr, flush=True)
        try:
            for event in events:
                if options.json:
                    line = json.dumps(event.as_dict())
                else:
                    line = f"{event.kind:<7}{event.path or ''}"
                print(line, flush=True)
                if left is not None:
                    left -= 1
                    if not left:
                        break
        except KeyboardInterrupt:  # the usual end of it
            pass
    return 0


# ---- top ----------------------------------------------------------------------------------------


def top_rates(before: dict[str, Any], after: dict[str, Any], seconds: float) -> dict[str, float]:
    """What was counted between two `status`, per second."""
    return {
        f"{name}_per_s": round((after["namenode"][name] - before["namenode"][name]) / seconds, 1)
        for name in ("requests", "operations")
        if name in after["namenode"]
    }


def top_lines(facts: dict[str, Any], rates: dict[str, float]) -> Iterator[str]:
    namenode = facts["namenode"]

    def granules(name: str) -> str:
        return size_words(int(namenode.get(f"granules_{name}", 0)) * GRANULE)

    yield f"crailpy  {time.strftime('%H:%M:%S')}"
    yield (
        f"{rates.get('requests_per_s', 0):,.0f} requests/s, "
        f"{rates.get('operations_per_s', 0):,.0f} operations/s, "
        f"{int(namenode.get('sessions', 0))} sessions, {int(namenode.get('nodes', 0)):,} nodes"
    )
    yield f"{granules('used')} used, {granules('free')} free of {granules('total')}"
    yield from server_lines(facts["servers"])


def top(options: argparse.Namespace) -> int:
    left = options.count
    is_screen = sys.stdout.isatty() and not options.json
    with connect(options) as store:
        before, at = store.status(), time.monotonic()
        try:
            while left is None or left > 0:
                time.sleep(options.interval)
                facts, now = store.status(), time.monotonic()
                rates = top_rates(before, facts, now - at)
                before, at = facts, now
                if options.json:
                    print_json({**facts, "rates": rates})
                else:
                    if is_screen:
                        sys.stdout.write("\x1b[H\x1b[J")
                    print("\n".join(top_lines(facts, rates)), flush=True)
                if left is not None:
                    left -= 1
        except KeyboardInterrupt:  # the usual end of it
            pass
    return 0


# ---- registration -------------------------------------------------------------------------------


def register(add: Any, common: argparse.ArgumentParser, facts: argparse.ArgumentParser) -> None:
    """Adds the commands by `add(name, command, help, *parents)`."""
    from .commands import count, duration, size

    for name, command, words in (
        ("cp", cp, "copy values within the store"),
        ("mv", mv, "move nodes within the store, replacing a value that is there"),
    ):
        p = add(name, command, words, common)
        p.add_argument("sources", metavar="SOURCE", nargs="+")
        p.add_argument("target", metavar="TARGET", help="a container to go into, or the new path")
        p.add_argument("-n", "--no-clobber", action="store_true", help="replace nothing")
        if name == "cp":
            p.add_argument("-r", "--recursive", action="store_true", help="with all below")

    p = add("tree", tree, "draw what is below a path", common, facts)
    p.add_argument("path", metavar="PATH", nargs="?", default="/")
    p.add_argument("-L", "--depth", type=int, metavar="N", help="so many levels")

    p = add("du", du, "say how many bytes and values are below paths", common, facts)
    p.add_argument("paths", metavar="PATH", nargs="*", default=["/"])
    p.add_argument("-s", "--summarize", action="store_true", help="only the paths themselves")

    p = add("find", find, "list the nodes below a path that fit", common, facts)
    p.add_argument("path", metavar="PATH", nargs="?", default="/")
    p.add_argument("--name", metavar="PATTERN", help="as '*.txt'")
    p.add_argument("--kind", choices=KINDS)
    p.add_argument("--larger", type=size, metavar="SIZE", help="values of more bytes, as 1MiB")
    p.add_argument("--smaller", type=size, metavar="SIZE", help="values of fewer bytes")
    p.add_argument("--newer", type=duration, metavar="TIME", help="changed so lately, as 10m")
    p.add_argument("--older", type=duration, metavar="TIME", help="not changed for so long")

    p = add("watch", watch, "print what changes at a path and below, until Ctrl-C", common, facts)
    p.add_argument("prefix", metavar="PATH", nargs="?", default="/")
    p.add_argument("-n", "--count", type=count, metavar="N", help="end after N events")

    p = add("top", top, "show what the store is doing, until Ctrl-C", common, facts)
    p.add_argument("--interval", type=duration, default=1.0, metavar="TIME", help="between two")
    p.add_argument("-n", "--count", type=count, metavar="N", help="end after N")
