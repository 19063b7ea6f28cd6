"""A store of the test build whose processes die at failpoints (docs/TESTING.md), load on it, and
the history of what was acknowledged, kept here, outside of the processes that die.

A *scenario* is what a few clients do over and over; each call is timed. When somebody has died and
was started again, all clients stand still, and each scenario compares what there is with what was
acknowledged: `check()` says what is lost and what is kept. Who may lose what is judged in one place
(`judge`): where nothing is volatile nothing is lost; else what is kept is what was there at *one*
moment, not long before the death."""

from __future__ import annotations

import os
import random
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import crailpy
from crailpy import errors

from ..integration.kit import until

ROOT = Path(__file__).parents[2]
TEST_BUILD = ROOT / "build" / "guards"
SOURCE = ROOT / "native" / "src" / "base" / "failpoint.c"
INTERVAL = 0.1  # seconds: group_interval
COMMIT = 1.0  # what a commit may take where others work, too
TIMEOUT = 60.0  # of a call
PACE = 0.002  # between the steps of a client
PATIENCE = 40.0  # for a death, and for the end of a step


def names() -> list[str]:
    """All failpoints that there are, of C and of Python."""
    listed = SOURCE.read_text().partition("names[] = {")[2].partition("};")[0]
    return re.findall(r'^    "([a-z-]+)",', listed, re.MULTILINE)


class Hit(NamedTuple):
    """A failpoint that was passed and did what it was armed for; `when` as time.monotonic()."""

    name: str
    action: str
    pid: int
    when: float


class Switch:
    """Arms failpoints in the processes that are started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._armed = folder / "armed"
        self._log = folder / "hits"
        self._log.touch()
        assert TEST_BUILD.exists(), "`make guards` builds what this test needs; `make test` does it"
        self.environment = {
            "PYTHONPATH": str(TEST_BUILD),
            "PYTHONSAFEPATH": "1",  # else `python -m` looks at the present folder first
            "CRAILPY_FAILPOINTS": str(self._armed),
            "CRAILPY_FAILPOINTS_LOG": str(self._log),
        }

    def arm(self, spec: str) -> None:
        """Takes the place of what was armed."""
        new = self._armed.with_suffix(".new")
        new.write_text(spec + "\n")
        new.replace(self._armed)

    def disarm(self) -> None:
        self._armed.unlink(missing_ok=True)

    def hits(self) -> list[Hit]:
        """All of them, in their order."""
        found = []
        for line in self._log.read_text().splitlines():
            name, action, pid, ns = line.split()
            found.append(Hit(name, action, int(pid), int(ns) / 1e9))
        return found


# ---- the history ---------------------------------------------------------------------------------


class Ack(NamedTuple):
    """A call that came to its end: when it was made and answered, by whom, about what, and what the
    answer was."""

    start: float
    end: float
    who: int
    what: Any
    said: Any


class Death(NamedTuple):
    """Of a process: not before `first`, and all that it acknowledged was heard before `seen`.
    `loses`: what it had not made durable is gone."""

    first: float
    seen: float
    loses: bool


class Found(NamedTuple):
    """Of the calls acknowledged before a death: which are surely undone, and which surely not."""

    lost: list[Ack]
    kept: list[Ack]


def judge(name: str, found: list[Found], death: Death) -> int:
    """How many calls were lost, if they may be: none where nothing is volatile; else all that is
    kept was there at one moment, when none of the lost calls was done."""
    lost = [ack for one in found for ack in one.lost]
    kept = [ack for one in found for ack in one.kept]
    if not death.loses:
        assert not lost, f"{name}: {len(lost)} acknowledged calls lost: {lost[:3]}"
        return 0
    for ack in lost:
        assert death.first - INTERVAL - COMMIT <= ack.end <= death.seen, f"{name}: lost {ack}"
    if lost and kept:
        first, last = min(lost, key=lambda a: a.end), max(kept, key=lambda a: a.start)
        assert last.start <= first.end, f"{name}: {first} is lost, and {last} is not"
    return len(lost)


# ---- scenarios -----------------------------------------------------------------------------------


class Scenario:
    """What `clients` of them do. step() of each runs in a thread of its own."""

    clients = 1

    def __init__(self, loses: bool) -> None:
        self.loses = loses
        self.acks: list[Ack] = []
        """Since the last check; each client's in their order."""
        self.calls = 0
        self._versions: dict[int, int] = {}

    def call(self, who: int, what: Any, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        start = time.monotonic()
        said = function(*args, **kw)
        self.acks.append(Ack(start, time.monotonic(), who, what, said))
        self.calls += 1
        return said

    def put(self, store: Any, who: int, what: Any, key: str, value: bytes, **options: Any) -> int:
        """A put whose version is above all that this client was ever told."""
        version: int = self.call(who, what, store.put, key, value, **options)
        assert version > self._versions.get(who, 0), (key, version, self._versions)
        self._versions[who] = version
        return version

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """For a call that may find that what it builds on is undone; check() finds out what."""
        try:
            yield
        except (errors.NotFoundError, errors.ExistsError):
            if not self.loses:
                raise

    def step(self, store: Any, who: int) -> None:
        raise NotImplementedError

    def check(self, store: Any, death: Death) -> Found:
        """Everybody stands still. What is told of here is not told again."""
        acks, self.acks = self.acks, []
        return self.compare(store, acks, death)

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        raise NotImplementedError

    def finish(self, store: Any, deaths: list[Death]) -> None:
        """At the very end."""


class Writes(Scenario):
    """Values under names of their own, one by one and in vectors, in a directory that goes when it
    was looked at."""

    def __init__(self, loses: bool) -> None:
        super().__init__(loses)
        self._number = 0
        self._round = 0

    def step(self, store: Any, who: int) -> None:
        self._number += 1
        key = f"/fp/w{self._round}/{self._number}"
        self.put(store, who, [key], key, key.encode() * 5)
        if self._number % 50 == 0:  # so many that the cut takes more than one step
            keys = [f"{key}.{i}" for i in range(1000)]
            items = [(key, key.encode() * 5) for key in keys]
            said = self.call(who, keys, store.put_many, items)
            assert said == sorted(set(said))

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        found = Found([], [])
        for ack in acks:
            values = store.get_many(ack.what, missing="none")
            for key, value in zip(ack.what, values, strict=True):
                assert value is None or value == key.encode() * 5
            if ack.end > death.seen:
                assert None not in values, ack
            else:
                (found.lost if None in values else found.kept).append(ack)
        if store.exists(f"/fp/w{self._round}"):
            store.rmtree(f"/fp/w{self._round}")
        self._round += 1
        return found


class Overwrites(Scenario):
    """One name with a number in its value, that rises."""

    key = "/fp/o"

    def __init__(self, loses: bool) -> None:
        super().__init__(loses)
        self._number = 0
        self._told = 0  # the last number that is surely there

    def value(self, number: int) -> bytes:
        return str(number).encode()

    def number(self, value: Any) -> int:
        """Of a value that was read. Fails if it never was one."""
        return int(bytes(value))

    def step(self, store: Any, who: int) -> None:
        self._number += 1
        self.put(store, who, self._number, self.key, self.value(self._number))

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        if not self._number:
            return Found([], [])
        try:
            there = self.number(store.get(self.key))
        except errors.NotFoundError:
            there = 0
        assert self._told <= there <= self._number
        if acks and acks[-1].end > death.seen:
            assert there == acks[-1].what
        before = [ack for ack in acks if ack.end <= death.seen]
        self._told = there
        return Found(
            [ack for ack in before if ack.what > there],
            [ack for ack in before if ack.what == there],
        )


class Large(Overwrites):
    """The same with values that lie on a storage server, read in every way; a view of one is held
    all the time."""

    tier = "dram"

    def __init__(self, loses: bool) -> None:
        super().__init__(loses)
        self.key = f"/fp/large-{self.tier}"
        self._base = random.Random(self.tier).randbytes(400 << 10)
        self._view: Any = None
        self._crc = 0

    def value(self, number: int) -> bytes:
        size = (96 << 10) + number * 4099 % (300 << 10)
        return number.to_bytes(8, "little") + self._base[:size]

    def number(self, value: Any) -> int:
        number = int.from_bytes(value[:8], "little")
        assert bytes(value) == self.value(number)
        return number

    def step(self, store: Any, who: int) -> None:
        self._number += 1
        value = self.value(self._number)
        self.put(store, who, self._number, self.key, value, tier=self.tier)
        with self.forgiving():
            if self._number % 3 == 0:
                there = self.number(store.get(self.key))
                assert there == self._number or (self.loses and there < self._number)
            if self._number % 10 == 0:
                self._look()
                self._view = memoryview(store.get_view(self.key))
                self._crc = zlib.crc32(self._view)
                assert self.number(self._view) <= self._number

    def _look(self) -> None:
        assert self._view is None or zlib.crc32(self._view) == self._crc

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        self._look()
        return super().compare(store, acks, death)

    def finish(self, store: Any, deaths: list[Death]) -> None:
        self._look()
        self._view = None


class LargeOnFile(Large):
    tier = "file"


class Counts(Scenario):
    """A counter that two share. What they were told are the numbers from 1 on, each once."""

    clients = 2
    key = "/fp/n"

    def __init__(self, loses: bool) -> None:
        super().__init__(loses)
        self._total = 0  # at the last check

    def step(self, store: Any, who: int) -> None:
        self.call(who, None, store.incr, self.key)

    def total(self, store: Any) -> int:
        return int(store.incr(self.key, 0))

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        total = self.total(store)
        after = {ack.said for ack in acks if ack.end > death.seen}
        before = [ack for ack in acks if ack.end <= death.seen]
        assert len(after) == sum(ack.end > death.seen for ack in acks)
        # What was told before is undone if it is above all that is there, or told once more.
        lost = [ack for ack in before if ack.said > total or ack.said in after]
        kept = [ack for ack in before if ack.said <= total and ack.said not in after]
        there = after | {ack.said for ack in kept}
        assert len(there) == len(after) + len(kept)
        assert there == set(range(self._total + 1, total + 1)), (self._total, total, sorted(there))
        self._total = total
        return Found(lost, kept)


class CompareAndSet(Counts):
    """The same by hand."""

    key = "/fp/cas"

    def step(self, store: Any, who: int) -> None:
        for _ in range(100):
            try:
                with store.get_view(self.key) as view:  # the version of these bytes
                    number, options = int(bytes(view)) + 1, {"if_version": view.version}
            except errors.NotFoundError:
                number, options = 1, {"if_absent": True}
            try:
                start = time.monotonic()
                store.put(self.key, str(number).encode(), **options)
                self.acks.append(Ack(start, time.monotonic(), who, None, number))
                self.calls += 1
                return
            except (errors.VersionConflictError, errors.ExistsError):
                continue

    def total(self, store: Any) -> int:
        try:
            return int(store.get(self.key))
        except errors.NotFoundError:
            return 0


class Exclusive(Scenario):
    """Two want to be the first to make a name."""

    clients = 2

    def __init__(self, loses: bool) -> None:
        super().__init__(loses)
        self._numbers = [0, 0]
        self._won: dict[str, list[int]] = {}

    def step(self, store: Any, who: int) -> None:
        self._numbers[who] += 1
        key = f"/fp/e/{self._numbers[who]}"
        try:
            self.put(store, who, key, key, b"%d" % who, if_absent=True)
            self._won.setdefault(key, []).append(who)
        except errors.ExistsError:
            pass

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        found = Found([], [])
        keys = [ack.what for ack in acks]
        for ack, value in zip(acks, store.get_many(keys, missing="none"), strict=True):
            is_there = value == b"%d" % ack.who
            assert is_there or ack.end <= death.seen, ack
            assert value is None or int(value) in self._won[ack.what]
            (found.kept if is_there else found.lost).append(ack)
        found.kept[:] = [ack for ack in found.kept if ack.end <= death.seen]
        return found

    def finish(self, store: Any, deaths: list[Death]) -> None:
        tried = {f"/fp/e/{i + 1}" for i in range(min(self._numbers))}
        if not self.loses:
            assert all(len(self._won.get(key, [])) == 1 for key in tried)


class Renames(Scenario):
    """A directory that moves on by one, with what is in it."""

    def __init__(self, loses: bool) -> None:
        super().__init__(loses)
        self._at = -1

    def step(self, store: Any, who: int) -> None:
        if self._at < 0:
            store.put("/fp/r/0/x", b"x", durability="sync")
            self._at = 0
        with self.forgiving():
            paths = f"/fp/r/{self._at}", f"/fp/r/{self._at + 1}"
            self.call(who, self._at + 1, store.rename, *paths)
            self._at += 1

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        if self._at < 0:
            return Found([], [])
        (name,) = store.listdir("/fp/r")
        assert store.get(f"/fp/r/{name}/x") == b"x"
        there = int(name)
        after = [ack.what for ack in acks if ack.end > death.seen]
        before = [ack for ack in acks if ack.end <= death.seen]
        assert not after or there == max(after)
        self._at = there
        return Found(
            [ack for ack in before if ack.what > there],
            [ack for ack in before if ack.what == there],
        )


class Deletes(Scenario):
    """Values and trees that are made and removed."""

    def __init__(self, loses: bool) -> None:
        super().__init__(loses)
        self._number = 0

    def step(self, store: Any, who: int) -> None:
        self._number += 1
        path = f"/fp/d/{self._number}"
        if self._number % 5 == 0:
            store.put_many([(f"{path}/{i}/x", b"x") for i in range(10)])
            with self.forgiving():
                self.call(who, path, store.rmtree, path)
        else:
            store.put(path, b"x")
            with self.forgiving():
                self.call(who, path, store.delete, path)

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        try:
            there = {f"/fp/d/{name}" for name in store.listdir("/fp/d")}
        except errors.NotFoundError:
            there = set()
        for ack in acks:
            assert ack.what not in there or ack.end <= death.seen, ack
        return Found([ack for ack in acks if ack.what in there], [])


class Items(Scenario):
    """A queue: the first puts, the other takes and acknowledges."""

    clients = 2

    def __init__(self, loses: bool) -> None:
        super().__init__(loses)
        self._number = 0
        self._put: dict[str, Ack] = {}
        self._taken: list[tuple[str, Ack]] = []

    def step(self, store: Any, who: int) -> None:
        queue = store.queue("/fp/q")
        if who == 0:
            self._number += 1
            name = str(self._number)
            self.call(who, name, queue.put, name.encode())
            self._put[name] = next(a for a in reversed(self.acks) if a.who == 0)
            return
        try:
            item = queue.get(wait=0.05)
        except errors.DeadlineError:
            return
        name = bytes(item.data).decode()
        with self.forgiving():
            self.call(who, name, item.ack)
            self._taken.append((name, next(a for a in reversed(self.acks) if a.who == 1)))

    def compare(self, store: Any, acks: list[Ack], death: Death) -> Found:
        return Found([], [])  # what is in a queue shows when it is empty

    def finish(self, store: Any, deaths: list[Death]) -> None:
        def may_be_lost(ack: Ack) -> bool:
            return any(d.loses and d.first - INTERVAL - COMMIT <= ack.end <= d.seen for d in deaths)

        queue = store.queue("/fp/q")
        times = Counter(name for name, _ in self._taken)
        while len(queue):
            with queue.get(wait=5) as item:
                times[item.data.decode()] += 1
        again = dict(reversed(self._taken))
        for name, ack in self._put.items():
            assert times[name] or may_be_lost(ack), f"the item {name} is lost"
            assert times[name] <= 1 or may_be_lost(again[name]), f"{name}: {times[name]} times"
        assert set(times) <= set(self._put)


SCENARIOS = (
    Writes,
    Overwrites,
    Large,
    LargeOnFile,
    Counts,
    CompareAndSet,
    Exclusive,
    Renames,
    Deletes,
    Items,
)


# ---- the world -----------------------------------------------------------------------------------


class Client(threading.Thread):
    """One client of a scenario; goes on while the gate is open."""

    def __init__(self, store: Any, scenario: Scenario, who: int, gate: threading.Event) -> None:
        super().__init__(daemon=True)
        self.scenario = scenario
        self.error: BaseException | None = None
        self.is_idle = False
        self.is_over = threading.Event()
        self._store = store
        self._who = who
        self._gate = gate
        self.start()

    def run(self) -> None:
        try:
            with self._store as store:
                while not self.is_over.wait(PACE):
                    if not self._gate.is_set():
                        self.is_idle = True
                        self._gate.wait()
                        self.is_idle = False
                    elif not self.is_over.is_set():
                        self.scenario.step(store, self._who)
        except BaseException as error:
            self.error = error


class World:
    """A cluster of the test build, its load, and what has died in it."""

    def __init__(self, folder: Path, durability: str) -> None:
        self.durability = durability
        self.switch = Switch(folder)
        self.deaths: list[Death] = []
        self.lost = 0
        self._gate = threading.Event()
        self._patch = pytest.MonkeyPatch()
        for name, value in self.switch.environment.items():
            self._patch.setenv(name, value)
        self.cluster = crailpy.LocalCluster(
            dram="24MiB", capacity="24MiB", tiers=("dram", "file"), durability=durability,
            group_interval=INTERVAL, session_grace=5,
        )  # fmt: skip
        self.store = self.cluster.connect(timeout=TIMEOUT)
        self.store.queue("/fp/q")  # who takes from it counts on it: it is there for good
        self.store.put("/fp/made", b"", durability="sync")  # and what was made before it
        self.scenarios = [make(durability == "group") for make in SCENARIOS]
        self.clients = [
            Client(self.cluster.connect(timeout=TIMEOUT), scenario, who, self._gate)
            for scenario in self.scenarios
            for who in range(scenario.clients)
        ]

    @property
    def state(self) -> str:
        """The namenode's state folder."""
        return os.path.join(self.cluster.folder, "namenode")

    @property
    def servers(self) -> list[Any]:
        return [self.cluster.namenode, *self.cluster.servers]

    def dead(self) -> list[Any]:
        return [server for server in self.servers if not server.alive]

    def open(self) -> None:
        """Lets the clients work."""
        self._gate.set()

    def close(self) -> None:
        """Lets no client begin anything more."""
        self._gate.clear()

    def settle(self) -> None:
        """Waits until every client stands still. Raises what a call of theirs raised."""
        self.close()
        until(lambda: all(c.is_idle or c.error for c in self.clients), PATIENCE)
        for client in self.clients:
            if client.error is not None:
                raise client.error

    def progress(self, calls: int) -> None:
        """Waits until each client has done something, and all of them so many calls."""
        before = [(c, len(c.scenario.acks)) for c in self.clients]
        done = sum(scenario.calls for scenario in self.scenarios)

        def has_come() -> bool:
            self.fail_early()
            return (
                all(len(c.scenario.acks) > n for c, n in before)
                and sum(scenario.calls for scenario in self.scenarios) >= done + calls
            )

        until(has_come, PATIENCE)

    def go_on(self) -> None:
        """Long enough that not all of what was done since then may be lost."""
        end = time.monotonic() + 2 * (INTERVAL + COMMIT)
        until(lambda: self.fail_early() or time.monotonic() > end)

    def fail_early(self) -> None:
        for client in self.clients:
            if client.error is not None:
                raise client.error

    def await_death(self, name: str) -> None:
        """Waits until a process has died at the failpoint that is armed, and disarms it."""

        def died() -> bool:
            self.fail_early()
            return bool(self.dead())

        until(died, PATIENCE)
        self.switch.disarm()  # another one may have passed it meanwhile
        until(lambda: set(self._hits(name)) == {server.pid for server in self.dead()})

    def _hits(self, name: str) -> dict[int, float]:
        """When the last life of each server passed it."""
        pids = {server.pid for server in self.servers}
        return {h.pid: h.when for h in self.switch.hits() if h.name == name and h.pid in pids}

    def restart(self, name: str, killed: float = 0.0) -> Death:
        """Starts whoever has died. `killed`: when the namenode was, if it was already once."""
        loses = killed or not self.cluster.namenode.alive
        first = killed or min(self._hits(name).values())
        death = Death(first, time.monotonic(), bool(loses) and self.durability == "group")
        for server in self.dead():
            server.start()
        return death

    def compare(self, name: str, death: Death) -> None:
        """All run again: what there is, against what was acknowledged."""
        self.settle()
        self.store.put("/fp/all-is-durable", b"", durability="sync")
        assert self.store.check() is None
        found = [scenario.check(self.store, death) for scenario in self.scenarios]
        self.lost += judge(name, found, death)
        self.deaths.append(death)

    def finish(self) -> None:
        """The clients end, and with them what they hold; the last comparison; then all is removed,
        and every granule is free."""
        self.settle()
        for client in self.clients:
            client.is_over.set()
        self.open()
        for client in self.clients:
            client.join(PATIENCE)
        for scenario in self.scenarios:
            scenario.finish(self.store, self.deaths)
        self.store.rmtree("/fp")

        def is_free() -> bool:
            facts = self.store.status()["namenode"]
            return bool(facts["granules_free"] == facts["granules_total"])

        until(is_free, PATIENCE)
        assert self.store.check() is None

    def end(self) -> None:
        """Whatever happened."""
        for client in self.clients:
            client.is_over.set()
        self.open()
        self.store.close()
        self.cluster.close()
        self._patch.undo()
