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
    from .service import serve

    workers = options.workers or len(os.sched_getaffinity(0))
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


def _question(name: str, kind: int) -> dict[str, Any] | None:
    """The facts of a pool, or None after another word. Raises UnavailableError where there is none,
    DeadlineError."""
    from crailpy import hello
    from crailpy.errors import DeadlineError

    from . import frames
    from .home import Home

    deadline = time.monotonic() + STOP_TIMEOUT_S
    sock, _ = Home(name).connect({}, deadline, start=False)
    with sock:
        sock.settimeout(STOP_TIMEOUT_S)
        sock.sendall(frames.pack(kind))
        reader = frames.Reader()
        try:
            while data := sock.recv(65536):
                for _, _, _, body in reader.feed(data):
                    facts: dict[str, Any] = hello.unpack(body)
                    return facts
        except TimeoutError:
            raise DeadlineError(f"the pool {name!r} does not answer") from None
        except ConnectionError:
            pass
    return None


def _status(options: argparse.Namespace) -> int:
    from . import frames

    facts = _question(options.name, frames.STATUS) or {}
    facts["drivers"] = [d for d in facts.get("drivers", []) if d["pid"] != os.getpid()]
    _say(options, facts, "\n".join(_lines(facts)))
    return 0


def _lines(facts: dict[str, Any]) -> list[str]:
    tasks = facts["tasks"]
    lines = [
        f"pool        {facts['name']!r}, pid {facts['pid']}, since {facts['seconds']:.0f} s",
        f"tasks       {tasks['done']:,} done, {tasks['repeated']:,} begun again, "
        f"{tasks['lost']:,} lost",
    ]
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

    _question(options.name, frames.STOP)
    _say(options, {"stopped": options.name}, f"pool {options.name!r} has ended")
    return 0


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
