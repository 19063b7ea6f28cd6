"""What the bench has other processes do: `touch ADDRESS KEY SIZE` or `gets ADDRESS KEY`.

The token comes by environment. The parent's side is `processes.py`.
"""

from __future__ import annotations

import json
import select
import sys

import crailpy

from .measure import clock, percentile, timed


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
    """Gets a small value from one line of standard input to the next; then its tally as JSON."""
    with crailpy.connect(address) as store:
        timed(store.get, [(key,)] * 100)
        print("ready", flush=True)
        sys.stdin.readline()
        samples: list[int] = []
        arguments = [(key,)] * 50
        begin = clock()
        while True:
            samples.extend(timed(store.get, arguments))
            if select.select([sys.stdin], [], [], 0)[0]:
                break
        elapsed = (clock() - begin) / 1e9
    tally = {
        "operations": len(samples),
        "seconds": elapsed,
        "p50_ns": percentile(samples, 50),
        "p99_ns": percentile(samples, 99),
    }
    print(json.dumps(tally))


if __name__ == "__main__":
    role, address, key, *more = sys.argv[1:]
    if role == "touch":
        touch(address, key, int(more[0]))
    else:
        gets(address, key)
