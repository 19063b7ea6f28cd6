"""What runs during the soak (test_soak.py): churn of every kind, in processes of which some are
killed at any instant, and what has to be counted afterwards.

The namenode keeps its state in `group`, so a kill of it may take back what was acknowledged just
before: a step of the churn that then finds nothing, or what was there before, is over. Without
such a kill that may not be; and what is found is always something whole. Counters and items of the
queue are put in `sync`: none of those may be lost, nor be there twice."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import crailpy
from crailpy import errors

from .restarts import HEAD, MIB, Blocks, reach

ROOT = "/soak"
QUEUE = f"{ROOT}/queue"
SIZES = (30, 3000, 40_000, 700_000, 3 * MIB)
TIERS = (None, "dram", "file")
VIEWS = 4  # held at once by a process
# Files: of the namenode a byte for each kill, written before it is started again, and so before
# anybody sees what was lost; of storage servers, a byte before each kill and one after it.
KILLS = "namenode-kills"
STORAGE_KILLS = "storage-kills"


def kills_of(folder: Path, which: str = KILLS) -> int:
    return (folder / which).stat().st_size


# ---- journals ------------------------------------------------------------------------------------


class Journal:
    """What a process is about to do, and that it was done: in a file, which survives it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @contextmanager
    def noted(self, what: str) -> Iterator[None]:
        os.write(self._fd, f"? {what}\n".encode())
        yield
        os.write(self._fd, f"! {what}\n".encode())

    def close(self) -> None:
        os.close(self._fd)


def read_journals(folder: Path) -> tuple[set[str], set[str]]:
    """What all processes were about to do, and what of it was acknowledged."""
    lines = [line for path in folder.glob("*.journal") for line in path.read_text().splitlines()]
    tried = {line[2:] for line in lines if line.startswith("?")}
    return tried, {line[2:] for line in lines if line.startswith("!")}


# ---- churn ---------------------------------------------------------------------------------------


class Churn:
    """One process's steps, each of a kind that is drawn, and by itself."""

    def __init__(self, store: crailpy.Store, seed: int, folder: Path, journal: Journal) -> None:
        self.store = store
        self.seed = seed
        self.rng = random.Random(seed)
        self.at = f"{ROOT}/{seed}"
        self.number = 0
        self._folder = folder
        self._journal = journal
        self._blocks = Blocks(seed)
        self._views: deque[memoryview] = deque(maxlen=VIEWS)

    def step(self) -> None:
        self.number += 1
        kills = kills_of(self._folder)
        try:
            self.rng.choice(STEPS)(self)
        except (TakenBack, errors.NotFoundError, errors.SessionLostError):
            if kills_of(self._folder) == kills:
                raise

    def _value(self) -> bytes:
        return self._blocks.value(self.number, self.rng.choice(SIZES))

    def _is_mine(self, found: bytes | memoryview) -> bool:
        number = int.from_bytes(found[8:HEAD], "little")
        return found == self._blocks.value(number, len(found))

    def _expect(self, found: bytes, value: bytes) -> None:
        assert self._is_mine(found)
        if found != value:
            raise TakenBack

    def overwrite(self) -> None:
        key, value = f"{self.at}/values/{self.rng.randrange(10)}", self._value()
        self.store.put(key, value, tier=self.rng.choice(TIERS))
        self._expect(self.store.get(key), value)

    def put_for_a_while(self) -> None:
        self.store.put(f"{self.at}/a/{self.number}", self._value(), ttl=self.rng.uniform(0.01, 2))

    def put_for_the_session(self) -> None:
        path, value = f"{self.store.session_path()}/{self.rng.randrange(10)}", self._value()
        self.store.put(path, value)
        self._expect(self.store.get(path), value)

    def work_in_a_job(self) -> None:
        with self.store.job(f"{self.seed}-{self.number}", ttl=0.5) as job:
            value = self._value()
            self.store.put(f"{job.path}/in", value)
            self.store.put(f"{self.at}/of-a-job", value, job=job)
            self._expect(self.store.get(f"{job.path}/in"), value)

    def rename(self) -> None:
        value = self._value()
        self.store.put(f"{self.at}/from/x", value)
        self.store.rename(f"{self.at}/from", f"{self.at}/to{self.number}")
        self._expect(self.store.get(f"{self.at}/to{self.number}/x"), value)
        self.store.rmtree(f"{self.at}/to{self.number}")

    def read_once(self) -> None:
        value = self._value()
        self.store.put(f"{self.at}/once", value, delete_after_read=True)
        self._expect(self.store.get(f"{self.at}/once"), value)

    def stream(self) -> None:
        """Into either tier; one in three is given up. Writing over a connection runs ahead of its
        confirmations, and what a server that dies has not confirmed nobody has any more: then the
        writer is told so."""
        path, mib = f"{self.at}/stream", self.rng.randrange(1, 24)
        pieces = [self._blocks(self.number + i) for i in range(mib)]
        gives_up = self.rng.randrange(3) == 0
        kills = kills_of(self._folder, STORAGE_KILLS)
        try:
            with self.store.open(path, "wb", tier=self.rng.choice(TIERS)) as file:
                for piece in pieces:
                    file.write(piece)
                if gives_up:
                    raise GivenUp
        except GivenUp:
            return
        except errors.UnavailableError as error:
            now = kills_of(self._folder, STORAGE_KILLS)
            if not error.server or (now == kills and now % 2 == 0):
                raise
            return
        with self.store.open(path, "rb") as file:
            found = list(iter(lambda: file.read(MIB), b""))
        first = int.from_bytes(found[0][8:HEAD], "little")
        assert found == [self._blocks(first + i) for i in range(len(found))]
        if found != pieces:
            raise TakenBack

    def view(self) -> None:
        key = f"{self.at}/viewed"
        self.store.put(key, self._blocks.value(self.number, self.rng.randrange(5000, 8 * MIB)))
        self._views.append(memoryview(self.store.get_view(key)))
        self.store.delete(key)
        assert all(self._is_mine(view) for view in self._views)

    def take_and_leave(self) -> None:
        """Items that are acknowledged, given back, or left to the end of the session."""
        queue = self.store.queue(f"{self.at}/queue")
        queue.put(self._value())
        item = queue.get()
        assert self._is_mine(item.data)
        what = self.rng.randrange(3)
        if what == 0:
            item.ack()
        elif what == 1:
            item.release()

    def many(self) -> None:
        path = f"{self.at}/many{self.number}"  # a kill may take back that the last was removed
        items = {
            f"{path}/{i}": self._blocks.value(i, 100) for i in range(1, self.rng.randrange(2, 300))
        }
        self.store.put_many(items)
        found = self.store.get_many(list(items), missing="none")
        if None in found:
            raise errors.NotFoundError(path=path)
        assert found == list(items.values())
        if len(self.store.listdir(path)) != len(items):
            raise TakenBack
        self.store.rmtree(path)

    def watch(self) -> None:
        with self.store.watch(f"{self.at}/watched") as events:
            self.store.put(f"{self.at}/watched/x", self._value())
            next(events)

    def meet(self) -> None:
        self.store.barrier(f"{self.at}/barrier{self.number % 3}", 1)

    def count(self) -> None:
        """A counter of this process: exactly once, whoever is killed."""
        counter = f"{ROOT}/counters/{self.seed}"
        with self._journal.noted(f"count {counter}"):
            self.store.incr(counter, durability="sync")

    def queue_up(self) -> None:
        """An item for `consume`: likewise."""
        item = f"{self.seed}.{self.number}"
        with self._journal.noted(f"item {item}"):
            self.store.queue(QUEUE, durability="sync").put(item.encode())


class GivenUp(Exception):
    """Of a stream that is not to appear."""


class TakenBack(Exception):
    """What was put last is not there, but what was there before."""


STEPS: tuple[Callable[[Churn], None], ...] = (
    Churn.overwrite, Churn.put_for_a_while, Churn.put_for_the_session, Churn.work_in_a_job,
    Churn.rename, Churn.read_once, Churn.stream, Churn.view, Churn.take_and_leave, Churn.many,
    Churn.watch, Churn.meet, Churn.count, Churn.queue_up,
)  # fmt: skip


def churn(address: str, seed: int, until: float, folder: Path) -> int:
    journal = Journal(folder / f"{seed}.journal")
    try:
        with reach(address) as store:
            work = Churn(store, seed, folder, journal)
            while time.monotonic() < until:
                work.step()
    finally:
        journal.close()
    return work.number


# ---- what is counted -----------------------------------------------------------------------------


def count(address: str, seed: int, until: float, folder: Path) -> int:
    """Two counters. In `sync` each call counts once; in `group` a kill may take the last ones back,
    but none counts twice."""
    lasting = passing = 0
    kills = kills_of(folder)
    with reach(address) as store:
        while time.monotonic() < until:
            assert store.incr(f"{ROOT}/lasting{seed}", durability="sync") == lasting + 1
            lasting += 1
            before, kills = kills, kills_of(folder)
            found = store.incr(f"{ROOT}/passing{seed}")
            assert found == passing + 1 or (found <= passing and kills_of(folder) > before)
            passing = found
    return lasting


def consume(address: str, seed: int, until: float) -> list[tuple[str, float]]:
    """Takes items until there are none any more: which, and when each was acknowledged."""
    done = []
    with reach(address) as store:
        queue = store.queue(QUEUE)
        while True:
            try:
                item = queue.get(wait=1)
            except errors.DeadlineError:
                if time.monotonic() > until:
                    return done
                continue
            try:
                item.ack()
            except (errors.NotFoundError, errors.SessionLostError):
                continue  # a kill took back that it was taken: it comes again
            done.append((item.data.decode(), time.monotonic()))
