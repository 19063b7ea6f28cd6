"""What the bench has other processes do: `touch ADDRESS KEY SIZE`, `gets ADDRESS KEY NUMBER`,
`churn ADDRESS FOLDER KIND NUMBER` or `iterate ADDRESS FOLDER RANK TURNS`.

The token comes by environment. The parent's side is `processes.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import sys
from collections.abc import Callable

import crailpy

from .measure import clock, percentile, timed
from .state import iterate


def touch(address: str, key: str, size: int) -> None:
    """A new process: its first large put and its first large get_into, in nanoseconds, as JSON."""
    with crailpy.connect(address) as store:
        buffer = bytearray(size)  # writes zeros: every page is touched
        begin = clock()
        store.put(key, buffer)
        put = clock() - begin
        begin = clock()
        store.get_into(key, buffer)
        print(json.dumps({"put": put, "get_into": clock() - begin}))


def gets(address: str, key: str) -> None:
    """Gets a small value again and again."""
    with crailpy.connect(address) as store:
        arguments = [(key,)] * 50
        work(lambda: (50, timed(store.get, arguments)))


KEYS = 20_000  # of one process that churns
VECTOR = 1000


def churn(address: str, folder: str, kind: str, number: int) -> None:
    """Changes values of 64 bytes. `single`: put (most of them overwrite), delete, incr, in calls of
    their own; `many`: put_many, delete_many of 1,000; `new`: put_many of keys that were never
    there; `put`: put."""
    value = bytes(64)
    draw = random.Random(number)
    keys = [f"{folder}/{number}/{i:05}" for i in range(KEYS)]
    fresh = itertools.count(os.getpid() << 32)
    with crailpy.connect(address, timeout=30) as store:

        def single() -> tuple[int, list[int]]:
            samples = timed(store.put, [(key, value) for key in draw.sample(keys, 80)])
            for key in draw.sample(keys, 10):
                samples += timed(delete, [(key,)])
            return 100, samples + timed(store.incr, [(f"{folder}/{number}/count",)] * 10)

        def delete(key: str) -> None:
            store.delete(key, missing_ok=True)

        def many() -> tuple[int, list[int]]:
            at = draw.randrange(0, KEYS, VECTOR)
            items = [(key, value) for key in keys[at : at + VECTOR]]
            if draw.random() < 0.1:
                return VECTOR, timed(store.delete_many, [(keys[at : at + VECTOR],)])
            return VECTOR, timed(store.put_many, [(items,)])

        def new() -> tuple[int, list[int]]:
            at = next(fresh)
            items = [(f"{folder}/{at}/{i}", value) for i in range(VECTOR)]
            return VECTOR, timed(store.put_many, [(items,)])

        def put() -> tuple[int, list[int]]:
            return 1, timed(store.put, [(draw.choice(keys), value)])

        work({"single": single, "many": many, "new": new, "put": put}[kind])


def work(batch: Callable[[], tuple[int, list[int]]]) -> None:
    """Does `batch` (operations, and the times of its calls) from one line of standard input to the
    next; then the tally, as JSON."""
    for _ in range(2):
        batch()
    print("ready", flush=True)
    sys.stdin.readline()
    samples: list[int] = []
    operations = 0
    begin = clock()
    while True:
        count, times = batch()
        operations += count
        samples += times
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    elapsed = (clock() - begin) / 1e9
    tally = {
        "operations": operations,
        "seconds": elapsed,
        "p50_ns": percentile(samples, 50),
        "p99_ns": percentile(samples, 99),
    }
    print(json.dumps(tally))


if __name__ == "__main__":
    role, address, key, *more = sys.argv[1:]
    if role == "touch":
        touch(address, key, int(more[0]))
    elif role == "iterate":
        iterate(address, key, int(more[0]), int(more[1]))
    elif role == "churn":
        churn(address, key, more[0], int(more[1]))
    else:
        gets(address, key)
