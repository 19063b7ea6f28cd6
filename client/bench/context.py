"""What all sections of a run share: the store, the probes, keys that hold values, rows."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..probes import Echo, Memory
from .measure import percentile, quantiles
from .report import GIB, KIB, MIB, Bar, Limit, Report, Row, at_least, at_most, size_text

SMALL_MAX = 4 * KIB
MANY = 1000
"""Values of one get_many, put_many, and paths of one lookup vector."""
KEYS_BYTES = 256 * MIB
"""What the keys of one size hold together, at most (but always two keys)."""


class Bench:
    """One run against one store. `sockets` is a second connection, whose lanes have no rings."""

    def __init__(
        self,
        store: Any,
        address: str,
        report: Report,
        *,
        sizes: Sequence[int],
        quick: bool,
        clients: int,
        server_pids: Sequence[int],
        connect: Callable[..., Any],
        token: str | None = None,
    ) -> None:
        self.store = store
        self.address = address
        self.report = report
        self.sizes = self._fitting(sizes)
        self.quick = quick
        self.clients = clients
        self.server_pids = list(server_pids)
        self.connect = connect
        self.token = token
        self.placement = "free"
        self.base = f"/bench-{os.getpid()}"
        self.keys_bytes = min(KEYS_BYTES, self._room() // 3)
        self.nodes: list[str] = []
        self.random = random.Random(20)
        self.closing = contextlib.ExitStack()
        self.memory = self.closing.enter_context(Memory(GIB))
        self.sockets = self.closing.enter_context(connect(address, ring=False))
        self.unix = self.closing.enter_context(Echo("unix"))
        self.tcp = self.closing.enter_context(Echo("tcp", 16 * MIB))

    def close(self) -> None:
        try:
            if self.store.exists(self.base):
                self.store.rmtree(self.base)
        finally:
            self.closing.close()

    def pids(self) -> list[int]:
        return [os.getpid(), self.unix.pid, self.tcp.pid, *self.server_pids]

    def batches(self, full: int) -> int:
        return max(3, full // 5) if self.quick else full

    # -- rows

    def row(
        self, section: str, op: str, size: int, samples: Sequence[int], *, small: bool = False
    ) -> Row:
        """A row of latencies. `small`: counts only when pinned."""
        p50 = percentile(samples, 50)
        return Row(
            section,
            self.placement,
            op,
            size,
            counts=self.placement == "pinned" or not small,
            samples=len(samples),
            p50_ns=p50,
            p99_ns=percentile(samples, 99) if len(samples) >= 100 else None,
            quantiles_ns=quantiles(samples) if len(samples) >= 100 else None,
            gbps=size / p50 if size > SMALL_MAX else None,
        )

    def latency(
        self, row: Row, limit: Limit, bar: float | None, bar_p99: float | None = None
    ) -> None:
        """Completes a row whose ratio is time / limit, and reports it."""
        assert row.p50_ns is not None
        row.limit = limit
        row.ratio = row.p50_ns / limit.p50_ns
        if row.p99_ns is not None:
            row.ratio_p99 = row.p99_ns / limit.p50_ns
        if bar is not None:
            row.judge(at_most("ratio", row.ratio, bar))
        if bar_p99 is not None and row.ratio_p99 is not None:
            row.judge(at_most("p99", row.ratio_p99, bar_p99))
        self.report.add(row)

    def speed(self, row: Row, limit: Limit, bar: float | None) -> None:
        """Completes a row whose ratio is speed / speed of the limit, and reports it."""
        assert row.p50_ns is not None
        row.limit = limit
        row.ratio = limit.p50_ns / row.p50_ns
        if bar is not None:
            row.judge(at_least("ratio", row.ratio, bar))
        self.report.add(row)

    def fact(
        self,
        section: str,
        op: str,
        size: int,
        value: float,
        unit: str,
        *bars: Bar,
        small: bool = True,
    ) -> None:
        counts = self.placement == "pinned" or not small
        row = Row(section, self.placement, op, size, counts=counts, value=value, unit=unit)
        if bars:
            row.judge(*bars)
        self.report.add(row)

    # -- values and keys

    def slices(self, area: memoryview, size: int) -> list[memoryview]:
        """`area` in pieces of `size` bytes, at most 4096 of them but spread over all of it."""
        count = len(area) // size
        step = max(1, count // 4096)
        return [area[i * size : (i + 1) * size] for i in range(0, count, step)]

    @contextlib.contextmanager
    def keys(self, size: int) -> Iterator[list[str]]:
        """Keys that hold values of `size` bytes while the block runs."""
        count = max(2, min(4096, self.keys_bytes // size))
        folder = f"{self.base}/v{size}"
        keys = [f"{folder}/{i:04}" for i in range(count)]
        for key in keys:
            self.store.put(key, self.memory.source[:size])
        try:
            yield keys
            self.verify(keys[0], size)
        finally:
            self.store.rmtree(folder)

    def verify(self, key: str, size: int) -> None:
        """A store that hands out other bytes than it was given is not to be measured."""
        data = self.memory.source[:size]
        for at in (0, size - 16):
            data[at : at + 16] = self.random.randbytes(16)
        self.store.put(key, data)
        self.store.get_into(key, self.memory.target)
        for part in (slice(0, MIB), slice(max(0, size - MIB), size)):
            if bytes(self.memory.target[part][:size]) != bytes(data[part]):
                raise RuntimeError(f"{key}: what came out is not what was put")

    # -- the namenode

    def namenode(self) -> dict[str, int]:
        facts: dict[str, int] = self.store.status()["namenode"]
        return facts

    def settle(self) -> None:
        """Waits until nothing that was removed is still being taken apart, at most a minute."""
        deadline = time.monotonic() + 60
        while self.namenode()["background_pending"] and time.monotonic() < deadline:
            time.sleep(0.01)

    def _room(self) -> int:
        """Free bytes of the storage servers."""
        return self.namenode()["granules_free"] * 4096

    def _fitting(self, sizes: Sequence[int]) -> list[int]:
        """The sizes that this store has room for: two keys, grants, what is being retired."""
        fitting = [size for size in sizes if size <= SMALL_MAX or 6 * size <= self._room()]
        if len(fitting) < len(sizes):
            left = ", ".join(size_text(size) for size in sizes if size not in fitting)
            self.report.note(f"the store has too little room for values of {left}")
        return fitting
