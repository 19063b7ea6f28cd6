"""`crailpy pool`: runs a pool, says how it is, ends it."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

STOP_TIMEOUT_S = 10.0


def run(options: argparse.Namespace) -> int:
    """The command; its exit code."""
    if options.status:
        return _status(options)
    if options.stop:
        return _stop(options)
    from crailpy.errors import InvalidArgumentError

    from .scheduling import WORKERS_MAX
    from .service import serve

    workers = options.workers or min(len(os.sched_getaffinity(0)), WORKERS_MAX)
    if workers > WORKERS_MAX:
        raise InvalidArgumentError(f"{workers} executors", hint=f"1 to {WORKERS_MAX}")
    if options.ready_fd is None:

        def tell(facts: dict[str, Any]) -> None:
            _say(options, facts, f"pool {facts['name']!r} with {workers} executors, Ctrl-C ends it")

        serve(options.name, workers, options.idle, tell)
        return 0
    return _serve_apart(options, workers)


def _serve_apart(options: argparse.Namespace, workers: int) -> int:
    """As the service that a driver starts: nobody's child. The driver reads one line of JSON, that
    it serves or why not."""
    import json

    from crailpy import hello
    from crailpy.errors import CrailError

    from .service import serve

    if os.fork():
        os._exit(0)
    ready = [options.ready_fd]

    def tell(facts: dict[str, Any]) -> None:
        fd = ready.pop()
        try:
            os.write(fd, json.dumps(facts).encode() + b"\n")
        except BrokenPipeError:
            pass  # the driver has gone
        finally:
            os.close(fd)

    try:
        serve(options.name, workers, options.idle, tell)
    except (CrailError, OSError) as error:
        if not ready:
            raise
        tell(hello.error_reply(error))
        return 1
    return 0


def ask(name: str, kind: int) -> tuple[int, dict[str, Any]]:
    """One word to a pool: its pid, and what it answers before it closes the connection. Raises
    UnavailableError where there is none, DeadlineError."""
    from crailpy import hello
    from crailpy.errors import DeadlineError

    from . import frames
    from .home import Home

    sock, welcome = Home(name).connect({}, time.monotonic() + STOP_TIMEOUT_S, start=False)
    reader = frames.Reader()
    with sock:
        sock.settimeout(STOP_TIMEOUT_S)
        try:
            sock.sendall(frames.pack(kind))
            while data := sock.recv(65536):
                for _, _, _, body in reader.feed(data):
                    return welcome["pid"], hello.unpack(body)
        except TimeoutError:
            raise DeadlineError(f"the pool {name!r} does not answer") from None
        except ConnectionError:
            pass
    return welcome["pid"], {}


def _status(options: argparse.Namespace) -> int:
    from . import frames

    _, facts = ask(options.name, frames.STATUS)
    facts["drivers"] = [d for d in facts["drivers"] if d["pid"] != os.getpid()]
    _say(options, facts, "\n".join(_lines(facts)))
    return 0


def _lines(facts: dict[str, Any]) -> list[str]:
    tasks = facts["tasks"]
    lines = [
        f"pool        {facts['name']!r}, pid {facts['pid']}, since {facts['seconds']:.0f} s",
        f"tasks       {tasks['done']:,} done, {tasks['repeated']:,} begun again, "
        f"{tasks['lost']:,} lost",
    ]
    if facts["trouble"] is not None:
        lines.append(f"executors   {facts['workers']} of {facts['wanted']}: {facts['trouble']}")
    for e in facts["executors"]:
        task = ""
        if e["task"] is not None:
            task = f", task {e['task']} of {e['driver']} for {e['seconds']:.1f} s"
        lines.append(f"executor    {e['pid']} {e['state']}{task}")
    for d in facts["drivers"]:
        lines.append(
            f"driver      {d['pid']}: {d['queued']:,} queued, {d['running']:,} running, "
            f"{d['done']:,} done"
        )
    return lines


def _stop(options: argparse.Namespace) -> int:
    from . import frames

    pid, _ = ask(options.name, frames.STOP)
    _await_end(pid)
    _say(options, {"stopped": options.name}, f"pool {options.name!r} has ended")
    return 0


def _await_end(pid: int) -> None:
    """Raises DeadlineError."""
    import select

    from crailpy.errors import DeadlineError

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([fd], [], [], STOP_TIMEOUT_S)[0]:
            raise DeadlineError(f"process {pid} does not end")
    finally:
        os.close(fd)


def _say(options: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    import json

    print(json.dumps(facts, indent=1) if options.json else text)
    sys.stdout.flush()


def add(parser: argparse.ArgumentParser, count: Any, duration: Any) -> None:
    """The words of the command."""
    import argparse

    parser.add_argument("--name", default="default", help="of the pool")
    parser.add_argument(
        "--workers", type=count, metavar="N", help="executors (default: one for each core)"
    )
    parser.add_argument(
        "--idle", type=duration, metavar="TIME", help="ends when no driver has come for so long"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="say how the running pool is")
    what.add_argument("--stop", action="store_true", help="end it, with what it runs")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
