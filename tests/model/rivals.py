"""Processes that call a store on the same few keys at once and write down what they saw.

A process has a store and threads that call it, or an asynchronous store and tasks: what they do is
the same, written once, as coroutines that never wait in the first case.

Each thread or task writes a line to the process's log before every call, and another one when it
has returned: so a process that is killed leaves its last calls behind as what they are, calls whose
outcome nobody knows. `read_logs` makes one history of all.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import crailpy
import crailpy.aio
from crailpy import errors

if __name__ != "__main__":
    from .linearizability import PENDING, Event

SIZES = [40, 4096, 4097, 40_000, 300_000]
HEAD = 32  # bytes: who wrote it, and its size
CONNECT_S = 20.0
PROGRESS = 10  # calls between two signs of life

#: Whatever the call was, nobody can say whether it happened.
UNKNOWN = (errors.UnavailableError, errors.DeadlineError, errors.SessionLostError)


def content(name: str) -> bytes:
    """The value with this name, which ends with its size. No part of it is another value's."""
    size = int(name.rpartition("-")[2])
    head = name.encode().ljust(HEAD)
    return (head * (size // HEAD + 1))[:size]


def name_of(data: bytes) -> str:
    name = data[:HEAD].decode(errors="replace").rstrip()
    try:
        return name if data == content(name) else f"torn: {name!r}, {len(data)} bytes"
    except ValueError:
        return f"torn: {data[:HEAD]!r}"


async def told(result: Any) -> Any:
    """What a call gives, of either face."""
    return await result if inspect.isawaitable(result) else result


def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Runs what never waits, since the store does."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("a synchronous store was awaited")


class Rival:
    """One thread or task of one process."""

    def __init__(
        self,
        store: Any,
        who: str,
        seed: str,
        keys: list[str],
        log: int,
        uses_queue: bool,
    ) -> None:
        self.store = store
        self.who = who
        self.keys = keys
        self.counter = keys[0] + "-counter"
        self.queue = keys[0] + "-queue"
        self.process = who.partition(".")[0]
        self.uses_queue = uses_queue
        self.taken: dict[str, Any] = {}  # by the name of the value
        self.rng = random.Random(seed)
        self.seen = dict.fromkeys(keys, 0)  # the versions last seen
        self.count = 0
        self._log = log

    def write(self, **what: Any) -> None:
        os.write(self._log, json.dumps(what | {"at": time.monotonic_ns()}).encode() + b"\n")

    def value(self) -> str:
        self.count += 1
        return f"{self.who}-{self.count}-{self.rng.choice(SIZES)}"

    # -- calls: each gives, key by key, the result -----------------------------------

    async def step(self) -> None:
        name = self.rng.choice(self.calls())
        if name == "incr":
            return await self.make([self.counter], [self.rng.choice([1, 1, 5, -3])], name)
        if name == "add":
            return await self.make([self.queue], [self.value()], name)
        if name == "take" and len(self.taken) < 3:
            return await self.make([self.queue], [self.process], name)
        if name in ("take", "ack", "release"):  # of something that was taken
            if not self.taken:
                return None
            name = "ack" if name == "take" else name
            item = self.rng.choice(list(self.taken))
            return await self.make([self.queue], [item], name)
        n = self.rng.randint(2, len(self.keys)) if name.endswith("many") else 1
        keys = self.rng.sample(self.keys, n)
        arguments: list[Any] = [self.argument(name, key) for key in keys]
        return await self.make(keys, arguments, name)

    async def make(self, keys: list[str], arguments: list[Any], name: str) -> None:
        """Makes the call, and writes down what it came to."""
        kind = {"get_many": "get", "get_bytes": "get", "put_many": "put"}.get(name, name)
        self.count += 1
        self.write(call=self.count, who=self.who, keys=keys, name=kind, arguments=arguments)
        number = self.count
        try:
            results = await getattr(self, name)(keys, arguments)
        except UNKNOWN as error:
            self.write(lost=number, who=self.who, why=str(error))
            return
        self.write(end=number, who=self.who, results=results)

    def calls(self) -> list[str]:
        return [
            *["put", "swap", "get"] * 4,
            *["create", "delete", "get_bytes"] * 2,
            *["get_many", "put_many"],
            *["incr"] * 4,
            *(["add"] * 3 + ["take"] * 4 + ["ack"] * 3 + ["release"]) * self.uses_queue,
        ]

    def argument(self, name: str, key: str) -> Any:
        if name in ("put", "create", "put_many"):
            return self.value()
        if name == "swap":
            return (self.seen[key], self.value())
        return None

    async def put(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        self.seen[keys[0]] = await told(self.store.put(keys[0], content(arguments[0])))
        return [self.seen[keys[0]]]

    async def create(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        try:
            return [await told(self.store.put(keys[0], content(arguments[0]), if_absent=True))]
        except errors.ExistsError:
            return [None]

    async def swap(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        expected, value = arguments[0]
        try:
            return [await told(self.store.put(keys[0], content(value), if_version=expected))]
        except errors.VersionConflictError:
            return [None]

    async def incr(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        return [await told(self.store.incr(keys[0], arguments[0]))]

    async def add(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        queue = await told(self.store.queue(keys[0]))
        return [await told(queue.put(content(arguments[0])))]

    async def take(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        try:
            queue = await told(self.store.queue(keys[0]))
            item = await told(queue.get())
        except errors.NotFoundError:
            return [None]
        name = name_of(item.data)
        self.taken[name] = item
        return [(item.version, name)]

    async def ack(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        try:
            await told(self.taken.pop(arguments[0]).ack())
        except errors.NotFoundError:
            return [False]
        return [True]

    async def release(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        await told(self.taken.pop(arguments[0]).release())
        return [None]

    async def delete(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        try:
            await told(self.store.delete(keys[0]))
        except errors.NotFoundError:
            return [False]
        return [True]

    async def get(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        try:
            with await told(self.store.get_view(keys[0])) as view:
                self.seen[keys[0]] = view.version
                return [(view.version, name_of(bytes(view)))]
        except errors.NotFoundError:
            self.seen[keys[0]] = 0
            return [(0, None)]

    async def get_bytes(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        data = await told(self.store.get(keys[0], default=None))
        return [(0, None) if data is None else (None, name_of(data))]

    async def get_many(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        values = await told(self.store.get_many(keys, missing="none"))
        return [(0, None) if data is None else (None, name_of(data)) for data in values]

    async def put_many(self, keys: list[str], arguments: list[Any]) -> list[Any]:
        items = [(key, content(value)) for key, value in zip(keys, arguments, strict=True)]
        try:
            versions: list[Any] = await told(self.store.put_many(items))
            return versions
        except errors.BatchError as error:  # of some the outcome is known, but who cares
            for result in error.results:
                if isinstance(result, Exception) and not isinstance(result, UNKNOWN):
                    raise
            raise errors.UnavailableError("some of the batch") from error


async def work(orders: dict[str, Any], store: Any, log: int, number: int) -> None:
    """All calls of one thread or task."""
    name = f"{orders['who']}.{number}"
    seed = f"{orders['seed']} {name}"
    rival = Rival(store, name, seed, orders["keys"], log, orders["uses_queue"])
    for i in range(orders["calls"]):
        await rival.step()
        if i % PROGRESS == PROGRESS - 1:
            os.write(1, b".")


async def connected(address: str, **options: Any) -> crailpy.aio.AsyncStore:
    """Also where the first connection is cut: an asynchronous store takes that for its address."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return await crailpy.aio.connect(address, **options)
        except errors.UnavailableError:
            if time.monotonic() > deadline:
                raise


async def run_tasks(orders: dict[str, Any], log: int) -> None:
    async with await connected(orders["address"], timeout=60, **orders["options"]) as store:
        await asyncio.gather(*(work(orders, store, log, n) for n in range(orders["threads"])))


def run_threads(orders: dict[str, Any], log: int) -> None:
    failed: list[BaseException] = []
    with crailpy.connect(orders["address"], timeout=60, **orders["options"]) as store:

        def run(number: int) -> None:
            try:
                to_its_end(work(orders, store, log, number))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(orders["threads"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def main() -> None:
    """One process: its orders are a JSON object in the first argument."""
    orders = json.loads(sys.argv[1])
    log = os.open(orders["log"], os.O_WRONLY | os.O_APPEND)
    if orders["options"].pop("face", "sync") == "async":
        asyncio.run(run_tasks(orders, log))
    else:
        run_threads(orders, log)


# ---- for the tests -------------------------------------------------------------------------------


class Process:
    """One process of rivals. Its standard output has a byte for PROGRESS calls of a thread."""

    def __init__(self, folder: Path, who: str, address: str, **orders: Any) -> None:
        self.log = folder / f"{who}.log"
        self.log.touch()
        orders |= {"who": who, "address": address, "log": str(self.log)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(orders)], stdout=subprocess.PIPE
        )
        self.was_killed = False
        self.who = who
        self.killed_at = 0

    def kill(self) -> None:
        if not self.was_killed:
            self.was_killed = True
            self.killed_at = time.monotonic_ns()
            self.process.kill()

    def wait(self) -> None:
        assert self.process.stdout
        self.process.stdout.close()
        code = self.process.wait()
        assert self.was_killed or code == 0, f"{self.log.name}: exit code {code}, see its output"


def read_logs(paths: Iterable[Path]) -> list[Event]:
    """All calls that any of them made. Reads that came to nothing are left out."""
    events = []
    for path in paths:
        calls: dict[tuple[str, int], dict[str, Any]] = {}
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                continue  # the last one, of a process that was killed
            entry = json.loads(line)
            if "call" in entry:
                calls[entry["who"], entry["call"]] = entry
            elif "end" in entry:
                call = calls.pop((entry["who"], entry["end"]))
                events += _events(call, entry["results"], entry["at"])
        for call in calls.values():
            if call["name"] != "get":
                events += _events(call, [None] * len(call["keys"]), PENDING)
    return events


def _events(call: dict[str, Any], results: list[Any], returned: float) -> list[Event]:
    name, who, invoked = call["name"], call["who"], call["at"]
    return [
        Event(key, name, _tuple(argument), _tuple(result), invoked, returned, who)
        for key, argument, result in zip(call["keys"], call["arguments"], results, strict=True)
    ]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
