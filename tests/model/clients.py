"""Clients for the machines to drive: a store behind one `call`, in this process or in one of its
own that can be killed.

Every call gives an outcome: ("ok", result), ("error", name of the class) or, of many, a list of
outcomes as result. Results are plain values, so they pass through a pipe and compare by equality.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from crailpy.client import objects, requests
from crailpy.client.compute.shuffle import WHOLE, entries_of
from crailpy.errors import BatchError, CrailError, DeadlineError
from crailpy.model import NodeInfo, NodeKind

Outcome = tuple[str, Any]

EVENT_PATIENCE = 20.0  # seconds for an event that has to come
NO_MORE = 0.001  # seconds for one that must not


class Leave(Exception):
    """Leaves a `with` block."""


def as_object(n: int, data: bytes) -> dict[str, Any]:
    """What put_object stores: something small, and a buffer."""
    import numpy as np  # processes start often, and few ever need it

    return {"n": n, "array": np.frombuffer(data, dtype=np.uint8)}


def dumped(n: int, data: bytes) -> bytes:
    """The value that it becomes."""
    return b"".join(objects.dump(as_object(n, data)))


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
        for handle, held in list(self.held.items()):
            if hasattr(held, "read") or hasattr(held, "nbytes"):  # a file or a view
                self.let_go(handle)
        self.finish(self.store.close())
        self.held.clear()  # items and shares in jobs: the session's end is theirs

    def call(self, name: str, *args: Any, **options: Any) -> Outcome:
        own = getattr(self, name, None)
        if options.get("job") is not None:
            options["job"] = self.held[options["job"]]
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
            return (self._absolute(value.path), value.kind, value.size, value.version)
        return value

    def _absolute(self, path: str) -> str:
        return self.namespace + (path if path != "/" or not self.namespace else "")

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

    def column(self, path: str) -> list[Any]:
        """The facts of the children, as a reader of a shuffle gets them."""
        found: list[Any] = []
        cursor, more = b"", True
        prefix = self._absolute(path).rstrip("/")
        while more:
            request = requests.Request(
                requests.COLUMN,
                path,
                data=cursor,
                arg0=requests.PAGE,
                arg1=WHOLE,
                decode=lambda result: result[3:6],
            )
            flags, count, page = self.finish(self.store._run(request))
            entries = list(entries_of(page))
            assert len(entries) == count
            for (name, version, size, kind, _, _, extents), value in entries:
                kind_name = NodeKind.NAMES[kind]
                is_within = kind_name == NodeKind.FILE and not extents
                assert len(value) == (size if is_within else 0)
                found.append((f"{prefix}/{name}", kind_name, size, version))
                cursor = name.encode()
            more = bool(flags & requests.MORE)
        return found

    def walk(self, top: str, topdown: bool) -> list[Any]:
        found = self.finish(self.store.walk(top, topdown=topdown))
        return [(self._absolute(path), inner, own) for path, inner, own in found]

    def glob(self, pattern: str) -> list[str]:
        return [self._absolute(path) for path in self.finish(self.store.glob(pattern))]

    def put_object(self, path: str, n: int, data: bytes) -> int:
        version: int = self.finish(self.store.put_object(path, as_object(n, data)))
        return version

    def get_object(self, path: str) -> Any:
        found = self.finish(self.store.get_object(path))
        return found["n"], found["array"].tobytes()

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
        self.finish(held.close() if hasattr(held, "close") else held.release())
        self.settle()

    def settle(self) -> None:
        """Comes back when nothing is on its way that nobody waits for."""

    # -- queues, multifiles, barriers, jobs -------------------------------------------

    def queue_put(self, path: str, data: bytes, create: bool) -> int:
        version: int = self.finish(self.finish(self.store.queue(path, create)).put(data))
        return version

    def queue_get(self, path: str, handle: int) -> tuple[int, bytes]:
        queue = self.finish(self.store.queue(path, create=False))
        self.held[handle] = item = self.finish(queue.get())
        assert item.number == item.version
        return item.number, item.data

    def queue_ack(self, handle: int) -> None:
        self.finish(self.held.pop(handle).ack())

    def write_part(self, path: str, name: str | None, data: bytes) -> tuple[str, int]:
        parts = self.finish(self.store.multifile(path, create=False))
        file = self.finish(parts.writer(name))
        try:
            self.finish(file.write(data))
        finally:
            self.finish(file.close())
        return file.name.rpartition("/")[2], file.version

    def read_parts(self, path: str, outstanding: int) -> bytes:
        reader = self.finish(self.store.multifile(path, create=False))
        reader = self.finish(reader.reader(outstanding))
        try:
            data: bytes = self.finish(reader.read())
        finally:
            self.finish(reader.close())
        return data

    def barrier(self, path: str, members: int, timeout: float) -> int:
        try:
            rounds: int = self.finish(self.store.barrier(path, members, timeout=timeout))
        finally:
            self.settle()
        return rounds

    def open_job(self, name: str, handle: int, ttl: float, **quotas: int | None) -> None:
        self.held[handle] = self.finish(self.store.job(name, ttl=ttl, **quotas))

    # -- watches ------------------------------------------------------------------------

    def watch(self, prefix: str, handle: int) -> None:
        watch = self.store.watch(prefix)
        self.held[handle] = watch if hasattr(watch, "__next__") else self.finish(_awaited(watch))

    def events(self, handle: int, count: int) -> list[tuple[str, str, int]]:
        """All that have come: no fewer than `count`, or up to a resync, if they come in time."""
        found: list[tuple[str, str, int]] = []
        while True:
            sure = len(found) < count and (not found or found[-1][0] != "resync")
            try:
                event = self.finish(self.held[handle].next(EVENT_PATIENCE if sure else NO_MORE))
            except DeadlineError:
                return found
            path = self._absolute(event.path) if event.path else ""
            found.append((event.kind, path, event.version or 0))

    # -- streams that others follow -------------------------------------------------------

    def begin_stream(self, path: str, handle: int) -> None:
        self.held[handle] = self.finish(self.store.open(path, "wb"))

    def stream(self, handle: int, data: bytes) -> None:
        self.finish(self.held[handle].write(data))
        self.finish(self.held[handle].flush())

    def end_stream(self, handle: int, fate: str) -> int | None:
        file = self.held.pop(handle)
        try:
            self.finish(file.close() if fate == "close" else file.discard())
        finally:
            self.settle()
        version: int | None = file.version
        return version

    def follow(self, path: str, handle: int) -> None:
        self.held[handle] = self.finish(self.store.open(path, follow=True))

    def follow_on(self, handle: int, size: int) -> bytes:
        """So many bytes more; -1: all to the end."""
        data: bytes = self.finish(self.held[handle].read(size))
        return data

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

    def settle(self) -> None:
        """The ends of holds are posted; a change that is sent behind them has its answer later."""
        with contextlib.suppress(CrailError):
            self.finish(self.store.delete("/nothing", missing_ok=True))

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
