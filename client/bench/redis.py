"""The same values through a Redis of this run's own, where one is installed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from .context import Bench
from .machine import pin
from .measure import interleave, pairs, percentile, taker, timed
from .processes import end
from .report import MIB, Limit

START_SECONDS_MAX = 10.0


def start(
    stack: contextlib.ExitStack, note: Callable[[str], None]
) -> tuple[int, dict[str, Any]] | None:
    """Starts redis-server until `stack` closes. Its pid, and a client over "unix" and "tcp".

    None, and words to `note`, where redis-py or redis-server is not installed or does not start.
    """
    try:
        import redis  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        note("Redis: not compared, redis-py is not installed (pip install 'redis[hiredis]')")
        return None
    server = shutil.which("redis-server")
    if server is None:
        note("Redis: not compared, there is no redis-server on PATH")
        return None
    try:
        import hiredis  # type: ignore[import-not-found, unused-ignore] # noqa: F401
    except ImportError:
        note("Redis: hiredis is not installed, so redis-py parses in Python")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crailpy-bench-"))
    path = os.path.join(folder, "redis.sock")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    places = ["--bind", "127.0.0.1", "--port", str(port), "--unixsocket", path, "--dir", folder]
    process = subprocess.Popen([server, *places, "--save", ""], stdout=subprocess.DEVNULL)
    stack.callback(end, process)
    clients = {
        "unix": redis.Redis(unix_socket_path=path, socket_timeout=30),
        "tcp": redis.Redis(host="127.0.0.1", port=port, socket_timeout=30),
    }
    deadline = time.monotonic() + START_SECONDS_MAX
    for client in clients.values():
        stack.callback(client.close)
        while not _answers(client, redis.ConnectionError):
            if time.monotonic() > deadline or process.poll() is not None:
                note("Redis: not compared, redis-server did not start")
                return None
            time.sleep(0.02)
    return process.pid, clients


def _answers(client: Any, absent: type[Exception]) -> bool:
    try:
        client.ping()
    except absent:
        return False
    return True


def compare(bench: Bench) -> None:
    """The same values through redis-py: small ones over both its sockets, large over unix."""
    with contextlib.ExitStack() as stack:
        started = start(stack, bench.report.note)
        if started is None:
            return
        pid, clients = started
        pin([pid], os.sched_getaffinity(0))
        for way, client in clients.items():
            for size in (64, 1024, 4096):
                _small(bench, way, client, size)
        _large(bench, clients["unix"])


def _small(bench: Bench, way: str, client: Any, size: int) -> None:
    data = bench.random.randbytes(size)
    key = f"{bench.base}/redis/{size}"
    bench.store.put(key, data)
    client.set(key, data)
    got = interleave(
        bench.batches(20),
        {
            "redis put": taker(100, client.set, [(key, data)]),
            "put": taker(100, bench.store.put, [(key, data)]),
            "redis get": taker(100, client.get, [(key,)]),
            "get": taker(100, bench.store.get, [(key,)]),
        },
    )
    for op in ("put", "get"):
        _against(bench, op, size, got[op], got[f"redis {op}"], 3, way=way, small=True)


def _large(bench: Bench, client: Any) -> None:
    size = 16 * MIB
    keys = [f"{bench.base}/redis/large{i}" for i in range(4)]
    sources = bench.slices(bench.memory.source, size)[:8]
    targets = bench.slices(bench.memory.target, size)
    for key in keys:
        bench.store.put(key, sources[0])
        client.set(key, bytes(sources[0]))
    kept: list[object] = []

    def keep(call: Callable[[str], object]) -> Callable[[], list[int]]:
        """Batches of four results that live until the next batch begins."""
        cycle = itertools.cycle(keys)

        def batch() -> list[int]:
            kept.clear()
            return timed(lambda key: kept.append(call(key)), [(next(cycle),) for _ in range(4)])

        return batch

    got = interleave(
        bench.batches(15),
        {
            "redis put": taker(2, client.set, [(key, bytes(sources[0])) for key in keys]),
            "put": taker(2, bench.store.put, pairs(keys, sources)),
            "redis get": taker(2, client.get, [(key,) for key in keys]),
            "get_into": taker(2, bench.store.get_into, pairs(keys, targets)),
            "redis kept": keep(client.get),
            "get": keep(bench.store.get),
        },
    )
    _against(bench, "put", size, got["put"], got["redis put"], None)
    _against(bench, "get_into", size, got["get_into"], got["redis get"], 8)
    _against(bench, "get, kept", size, got["get"], got["redis kept"], 3)


def _against(
    bench: Bench,
    op: str,
    size: int,
    ours: Sequence[int],
    theirs: Sequence[int],
    bar: float | None,
    *,
    way: str = "unix",
    small: bool = False,
) -> None:
    what = f"redis-py {'set' if op == 'put' else 'get'}, {way}"
    row = bench.row("redis", op, size, ours, small=small)
    bench.speed(row, Limit(what, percentile(theirs, 50), percentile(theirs, 99)), bar)
