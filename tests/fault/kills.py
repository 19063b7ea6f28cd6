"""Load on a store whose namenode is killed now and then, and the history of what was acknowledged,
kept here, outside of the processes that are killed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import crailpy
from crailpy import errors

Acknowledged = tuple[float, Any]
"""When it came, in seconds of the monotonic clock, and what it was about."""


class Load(threading.Thread):
    """One client that does one thing until it is told to stop; every call must succeed."""

    def __init__(self, cluster: crailpy.LocalCluster, who: int, step: Callable[..., Any]) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[Acknowledged] = []
        self.error: BaseException | None = None
        self._store = cluster.connect(timeout=60)
        self._who = who
        self._step = step
        self._stopping = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with self._store as store:
                number = 0
                while not self._stopping.is_set():
                    said = self._step(store, self._who, number)
                    self.acknowledged.append((time.monotonic(), said))
                    number += 1
        except BaseException as error:
            self.error = error

    def stop(self) -> list[Acknowledged]:
        """What was acknowledged. Raises what a call raised."""
        self._stopping.set()
        self.join(90)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.acknowledged


def kill_now_and_then(
    cluster: crailpy.LocalCluster, seed: random.Random, kills: int
) -> list[tuple[float, float]]:
    """Kills the namenode at random moments and starts it again. When that was: (kill, start)."""
    times = []
    for _ in range(kills):
        threading.Event().wait(seed.uniform(0.0, 1.2))
        cluster.namenode.kill()
        killed = time.monotonic()
        cluster.namenode.start()
        times.append((killed, time.monotonic()))
    threading.Event().wait(0.3)
    return times


@contextmanager
def crowd(
    cluster: crailpy.LocalCluster, steps: dict[str, Callable[..., Any]], each: int
) -> Iterator[dict[str, list[Load]]]:
    """`each` clients for each of the steps, by its name."""
    loads = {
        name: [Load(cluster, who, step) for who in range(each)] for name, step in steps.items()
    }
    try:
        yield loads
    finally:
        for load in [load for group in loads.values() for load in group]:
            load._stopping.set()


# ---- steps: (store, who, number) -> what was acknowledged ----------------------------------------


def count(store: crailpy.Store, who: int, number: int) -> int:
    """A counter that all share."""
    return store.incr("/kills/n")


def write(store: crailpy.Store, who: int, number: int) -> tuple[str, int]:
    """A name of its own for each value: (name, version)."""
    key = f"/kills/w{who}/{number}"
    return key, store.put(key, key.encode())


def overwrite(store: crailpy.Store, who: int, number: int) -> tuple[int, int]:
    """One name: (number, version)."""
    return number, store.put(f"/kills/o{who}", str(number).encode())


def write_many(store: crailpy.Store, who: int, number: int) -> list[tuple[str, int]]:
    """Vectors: (name, version) of each."""
    keys = [f"/kills/m{who}/{number}/{i}" for i in range(100)]
    versions = store.put_many([(key, key.encode()) for key in keys])
    return list(zip(keys, versions, strict=True))


def compare_and_set(store: crailpy.Store, who: int, number: int) -> str:
    """A text that all add to, each word once."""
    word = f"{who}.{number} "
    while True:
        try:
            store.put("/kills/cas", b"", if_absent=True)
        except errors.ExistsError:
            pass
        version = store.stat("/kills/cas").version
        text = store.get("/kills/cas")
        try:
            store.put("/kills/cas", (text + word.encode())[-4096:], if_version=version)
            return word
        except errors.VersionConflictError:
            continue


def rename(store: crailpy.Store, who: int, number: int) -> int:
    """A directory that moves on by one, with what is in it."""
    if number == 0:
        store.put(f"/kills/r{who}.0/x", b"x")
    store.rename(f"/kills/r{who}.{number}", f"/kills/r{who}.{number + 1}")
    return number + 1


def remove(store: crailpy.Store, who: int, number: int) -> str:
    """A tree that is made and removed."""
    path = f"/kills/t{who}/{number}"
    store.put_many([(f"{path}/{i}/x", b"x") for i in range(20)])
    store.rmtree(path)
    return path


def queue_up(store: crailpy.Store, who: int, number: int) -> str:
    """Items of a queue."""
    item = f"{who}.{number}"
    store.queue("/kills/q").put(item.encode())
    return item


def take(store: crailpy.Store, who: int, number: int) -> str | None:
    """What is taken out of the queue and done with."""
    try:
        item = store.queue("/kills/q").get(wait=0.2)
    except (errors.NotFoundError, errors.DeadlineError):
        return None
    item.ack()
    return bytes(item.data).decode()
