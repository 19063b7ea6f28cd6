"""Clients for the machines to drive: a store behind one `call`, in this process or in one of its
own that can be killed.

Every call gives an outcome: ("ok", result), ("error", name of the class) or, of many, a list of
outcomes as result. Results are plain values, so they pass through a pipe and compare by equality.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import crailpy
import crailpy.aio
from crailpy.client import requests
from crailpy.errors import BatchError, CrailError
from crailpy.model import NodeInfo

Outcome = tuple[str, Any]


class Leave(Exception):
    """Leaves a `with` block."""


class Face:
    """The synchronous face. What needs more than one method of the store is a method here."""

    def __init__(self, address: str, namespace: str = "", page: int | None = None, **options: Any):
        if page:
            requests.PAGE = page  # of listings: so that small directories have several
        self.namespace = namespace
        self.held: dict[int, Any] = {}
        self._open(address, {"namespace": namespace or "/", "timeout": 60.0, **options})

    def _open(self, address: str, options: dict[str, Any]) -> None:
        self.store: Any = crailpy.connect(address, **options)

    def finish(self, result: Any) -> Any:
        """What the call came to, wherever it runs."""
        return result

    def close(self) -> None:
        for handle in list(self.held):
            self.let_go(handle)
        self.finish(self.store.close())

    def call(self, name: str, *args: Any, **options: Any) -> Outcome:
        own = getattr(self, name, None)
        try:
            if own is not None:
                return ("ok", own(*args, **options))
            return ("ok", self._plain(self.finish(getattr(self.store, name)(*args, **options))))
        except BatchError as error:
            return ("ok", [self._one(result) for result in error.results])
        except CrailError as error:
            return ("error", type(error).__name__)

    def _one(self, result: Any) -> Outcome:
        if isinstance(result, CrailError):
            return ("error", type(result).__name__)
        return ("ok", self._plain(result))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, NodeInfo):
            path = self.namespace + (value.path if value.path != "/" or not self.namespace else "")
            return (path, value.kind, value.size, value.version)
        return value

    # -- many: as outcomes, whether or not some failed ----------------------------

    def put_many(self, items: Any, **options: Any) -> list[Outcome]:
        return [("ok", v) for v in self.finish(self.store.put_many(items, **options))]

    def get_many(self, paths: list[str], **options: Any) -> list[Outcome]:
        return [("ok", v) for v in self.finish(self.store.get_many(paths, **options))]

    def delete_many(self, paths: list[str]) -> list[Outcome]:
        self.finish(self.store.delete_many(paths))
        return [("ok", None)] * len(paths)

    def stat_many(self, paths: list[str]) -> list[Outcome]:
        return [("ok", self._plain(info)) for info in self.finish(self.store.stat_many(paths))]

    # -- what gives a buffer or an iterator ------------------------------------------

    def get_view(self, path: str) -> tuple[bytes, int]:
        with self.finish(self.store.get_view(path)) as view:
            return bytes(view), view.version

    def get_into(self, path: str, offset: int, room: int) -> bytes:
        buffer = bytearray(room)
        return bytes(buffer[: self.finish(self.store.get_into(path, buffer, offset=offset))])

    def listdir(self, path: str) -> list[str]:
        return list(self.finish(self.store.listdir(path)))

    def scandir(self, path: str) -> list[Any]:
        return [self._plain(info) for info in self.finish(self.store.scandir(path))]

    def locations(self, path: str) -> list[tuple[int, int, int, int]]:
        """Of the value at `path`: server, region, first byte, bytes."""
        return [
            (at["server"], at["region"], at["offset"], at["bytes"])
            for at in self.finish(self.store.stat(path)).locations
        ]

    # -- files and views that stay open ---------------------------------------------

    def write_file(self, path: str, mode: str, pieces: list[bytes], fate: str) -> int | None:
        version = self._edit(path, mode, [("write", piece) for piece in pieces], fate)
        return version if fate == "close" else None

    def edit_file(self, path: str, mode: str, edits: list[tuple[str, Any]], fate: str) -> None:
        self._edit(path, mode, edits, fate)

    def _edit(self, path: str, mode: str, edits: list[tuple[str, Any]], fate: str) -> int | None:
        file = self.finish(self.store.open(path, mode))
        try:
            for what, argument in edits:
                self.finish(getattr(file, what)(argument))
            if fate == "discard":
                self.finish(file.discard())
        except BaseException:
            fate = "leave"
            raise
        finally:
            leave = getattr(file, "__aexit__", None) or file.__exit__
            self.finish(leave(*((Leave, Leave(), None) if fate == "leave" else (None,) * 3)))
        version: int | None = file.version
        return version

    def truncate(self, path: str, size: int) -> None:
        self.finish(self.store.truncate(path, size))

    def make(self, path: str, kind: str) -> None:
        self.finish(getattr(self.store, kind)(path))

    def join(self, path: str, kind: str) -> None:
        self.finish(getattr(self.store, kind)(path, create=False))

    # -- attributes and lifetimes -----------------------------------------------------

    def setattr(self, path: str, changes: dict[str, bytes | None]) -> None:
        self.finish(self.store.setattr(path, **changes))

    def expire(self, path: str) -> None:
        self.finish(self.store.setattr(path, ttl=0.02))
        self.finish(self.store.wait(path, absent=True, timeout=30))

    def session_directory(self) -> str:
        path: str = self.finish(self.store.session_path())
        return self.namespace + path

    def hold(self, path: str, handle: int, how: str) -> tuple[bytes, int]:
        """Opens a view or a reader that stays open, under a number of the caller's."""
        held = self.finish(self.store.get_view(path) if how == "view" else self.store.open(path))
        self.held[handle] = held
        return self.look(handle), held.version

    def look(self, handle: int) -> bytes:
        held = self.held[handle]
        if not hasattr(held, "read"):
            return bytes(held)
        self.finish(held.seek(0))
        data: bytes = self.finish(held.read())
        return data

    def let_go(self, handle: int) -> None:
        held = self.held.pop(handle)
        self.finish(held.close() if hasattr(held, "read") else held.release())

    # -- trouble -----------------------------------------------------------------------

    def cut(self) -> int:
        """Shuts down every connection of this process that looks like a lane's or a server's."""
        count = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    continue
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    sock.shutdown(socket.SHUT_RDWR)
                    count += 1
            except OSError:
                pass
        return count


class AsyncFace(Face):
    """The asynchronous face, whose loop runs while a call does."""

    def _open(self, address: str, options: dict[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self.store = self.finish(_awaited(crailpy.aio.connect(address, **options)))

    def finish(self, result: Any) -> Any:
        if hasattr(result, "__aiter__") and not hasattr(result, "read"):
            result = _collected(result)
        if inspect.isawaitable(result):
            return self._loop.run_until_complete(result)
        return result

    def close(self) -> None:
        super().close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


async def _awaited(what: Any) -> Any:
    return await what


async def _collected(entries: Any) -> list[Any]:
    return [entry async for entry in entries]


class Process:
    """A face in a process of its own, driven over pipes: the same calls. It can be killed in the
    midst of one."""

    def __init__(self) -> None:
        self.namespace = ""
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def open(self, address: str, namespace: str = "", **options: Any) -> None:
        """A store of its own; an earlier one closes."""
        self.namespace = namespace
        self._answer(("open", address, namespace, options))

    def send(self, name: str, *args: Any, **options: Any) -> None:
        """Begins a call; `receive` gives its outcome."""
        assert self._process.stdin
        pickle.dump((name, args, options), self._process.stdin)
        self._process.stdin.flush()

    def receive(self) -> Outcome:
        assert self._process.stdout
        outcome: Outcome = pickle.load(self._process.stdout)
        return outcome

    def call(self, name: str, *args: Any, **options: Any) -> Outcome:
        self.send(name, *args, **options)
        return self.receive()

    def _answer(self, what: tuple[Any, ...]) -> None:
        kind, *rest = self.call(what[0], *what[1:-1], **what[-1])
        assert kind == "ok", rest

    def close(self) -> None:
        """Closes the store; the process waits for the next `open`."""
        self._answer(("close", {}))

    def kill(self) -> None:
        """Ends the process by SIGKILL, whatever it does."""
        self._process.kill()
        self.wait()

    def end(self) -> None:
        """Ends the process in order."""
        assert self._process.stdin
        self._process.stdin.close()
        self.wait()

    def wait(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            try:
                pipe.close()
            except BrokenPipeError:
                pass


def serve() -> None:
    """The other end of Process: calls from standard input, outcomes to standard output."""
    calls, outcomes = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    face: Face | None = None
    while True:
        try:
            name, args, options = pickle.load(calls)
        except EOFError:
            break
        outcome: Outcome = ("ok", None)
        if name in ("open", "close"):
            if face is not None:
                face.close()
            face = FACES[options.pop("face", "sync")](*args, **options) if name == "open" else None
        else:
            assert face
            try:
                outcome = face.call(name, *args, **options)
            except Exception as error:  # no error of the store's: for the machine to see
                outcome = ("broken", f"{type(error).__name__}: {error}")
        pickle.dump(outcome, outcomes)
        outcomes.flush()
    if face is not None:
        face.close()


FACES: dict[str, Callable[..., Face]] = {"sync": Face, "async": AsyncFace}

if __name__ == "__main__":
    serve()
