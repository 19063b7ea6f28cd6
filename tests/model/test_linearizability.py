"""Concurrent calls of many processes, threads and tasks on few keys have an order, whatever
happens. Half of the clients are asynchronous.

CRAILPY_MODEL_SEED repeats a seed that was printed, as far as the machine's timing allows.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crailpy

from ..fault.proxy import DroppingProxy, _frame
from .linearizability import COUNTER, QUEUE, VALUE, Event, Rules, what_is_wrong
from .rivals import Process, name_of, read_logs

SECONDS = float(os.environ.get("CRAILPY_MODEL_SECONDS", 0))  # of each test; at least one round
KEYS = ["/lin/a", "/lin/b", "/lin/c"]
COUNTER_KEY, QUEUE_KEY = f"{KEYS[0]}-counter", f"{KEYS[0]}-queue"
CALLS = 250  # of a thread
LIMIT_S = 100

SHM: dict[str, Any] = {}
TCP: dict[str, Any] = {"transport": "tcp"}
AIO_SHM: dict[str, Any] = {"face": "async"}
AIO_TCP: dict[str, Any] = {"face": "async", "transport": "tcp"}


@pytest.fixture(scope="module")
def cluster():
    with crailpy.LocalCluster(dram="64MiB", servers=2, session_grace=0.1) as cluster:
        yield cluster


def rules(key: str) -> Rules:
    kinds = {"counter": COUNTER, "queue": QUEUE}
    return kinds.get(key.rpartition("-")[2], VALUE)


def final_reads(store: crailpy.Store) -> list[Event]:
    """What is there at the end, as calls like all others."""
    found = []
    for key in KEYS:
        begin = time.monotonic_ns()
        info = store.stat_many([key])[0]
        result = (info.version, None) if info else (0, None)
        if info:
            result = (info.version, name_of(store.get(key)))
        found.append(Event(key, "get", None, result, begin, time.monotonic_ns(), "the test"))
    begin = time.monotonic_ns()
    total = store.incr(COUNTER_KEY, 0)
    found.append(Event(COUNTER_KEY, "incr", 0, total, begin, time.monotonic_ns()))
    return found


def _last_return(history: list[Event], process: str) -> float:
    """When the last call of a process returned: then it closed its session."""
    return max(
        (e.returned for e in history if e.who.startswith(f"{process}.") and not e.is_pending),
        default=0,
    )


class Round:
    """Some processes at work, and what is done to them meanwhile."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.seed = seed
        self.processes: list[Process] = []
        self.progress: list[int] = []
        self.stopped: dict[int, int] = {}  # process: the progress of all at which it goes on

    def start(
        self,
        address: str,
        *options: dict[str, Any],
        calls: int = CALLS,
        threads: int = 2,
        uses_queue: bool = True,
    ) -> None:
        for some in options:
            number = len(self.processes)
            orders = {"seed": self.seed, "keys": KEYS, "threads": threads, "calls": calls}
            orders["uses_queue"] = uses_queue
            process = Process(self.folder, f"p{number}", address, options=some, **orders)
            self.processes.append(process)
            self.progress.append(0)

    def run(self, trouble: Callable[[Round], None] | None = None) -> list[Event]:
        """Until all have ended; `trouble` is called at every sign of life."""
        deadline = time.monotonic() + LIMIT_S
        pipes = {p.process.stdout: n for n, p in enumerate(self.processes)}
        try:
            while pipes:
                left = deadline - time.monotonic()
                assert left > 0, f"no end after {LIMIT_S} s: {self.progress}"
                for pipe in select.select(list(pipes), [], [], left)[0]:
                    signs = len(os.read(pipe.fileno(), 4096))
                    self.progress[pipes[pipe]] += signs
                    if not signs:
                        del pipes[pipe]
                if trouble:
                    trouble(self)
                working = len(pipes) - len(self.stopped)
                self._wake(all_of_them=working <= 0)
        finally:
            self._wake(all_of_them=True)
            with contextlib.ExitStack() as all_of_them:  # also when one has failed
                for process in self.processes:
                    with contextlib.suppress(ProcessLookupError):
                        if time.monotonic() > deadline:
                            process.kill()
                    all_of_them.callback(process.wait)
        history = read_logs(process.log for process in self.processes)
        for process in self.processes:  # at its end, what it had taken falls back
            since = process.killed_at or _last_return(history, process.who)
            history.append(Event(QUEUE_KEY, "fall_back", process.who, None, since))
        return history

    def _wake(self, *, all_of_them: bool) -> None:
        for number, until in list(self.stopped.items()):
            if all_of_them or sum(self.progress) >= until:
                del self.stopped[number]
                self.processes[number].process.send_signal(signal.SIGCONT)

    def kill(self, number: int) -> None:
        """SIGKILL; also while it is stopped."""
        self.stopped.pop(number, None)
        self.processes[number].kill()

    def stop(self, number: int, until: int) -> None:
        """SIGSTOP, until so much more progress was made by all."""
        process = self.processes[number]
        if not process.was_killed and number not in self.stopped:
            self.stopped[number] = sum(self.progress) + until
            process.process.send_signal(signal.SIGSTOP)


def rounds(tmp_path: Path) -> Any:
    """Rounds for as long as the test may take."""
    begin = time.monotonic()
    first = int(os.environ.get("CRAILPY_MODEL_SEED", random.SystemRandom().randrange(1 << 32)))
    n = 0
    while not n or time.monotonic() - begin < SECONDS:
        folder = tmp_path / str(n)
        folder.mkdir()
        print(f"CRAILPY_MODEL_SEED={first + n}", flush=True)
        yield Round(folder, first + n)
        n += 1


def judge(store: crailpy.Store, history: list[Event]) -> None:
    """Throws away what the round made."""
    history = history + final_reads(store)
    made = [event for event in history if event.name != "get" and not event.is_pending]
    names = Counter(f"{event.name}{'?' * event.is_pending}" for event in history)
    print(", ".join(f"{name} {count}" for name, count in sorted(names.items())))
    lost = sum(event.is_pending for event in history)
    print(f"{len(history)} calls, {len(made)} changes that returned, {lost} that did not")
    assert len(made) > 50, "hardly anything happened"
    assert store.check() is None
    wrong = what_is_wrong(history, rules)
    assert not wrong, wrong
    store.rmtree("/lin")


@pytest.mark.slow
def test_concurrent_calls_have_an_order(cluster, tmp_path):
    with cluster.connect() as store:
        for round_ in rounds(tmp_path):
            round_.start(cluster.address, SHM, AIO_SHM, TCP, AIO_TCP)
            judge(store, round_.run())


def stop_somebody(now: Round) -> None:
    number = now.rng.randrange(len(now.processes))
    if now.rng.random() < 0.2 and now.processes[number].process.poll() is None:
        now.stop(number, until=now.rng.randint(1, 12))


@pytest.mark.slow
def test_calls_of_clients_that_are_killed_and_paused_have_an_order(cluster, tmp_path):
    with cluster.connect() as store:
        for round_ in rounds(tmp_path):
            round_.start(cluster.address, SHM, AIO_SHM, TCP, AIO_SHM, AIO_TCP, SHM)
            at = {victim: round_.rng.randint(3, 30) for victim in (0, 3)}

            def trouble(now: Round, at: dict[int, int] = at) -> None:
                for victim, progress in at.items():
                    if now.progress[victim] >= progress:
                        now.kill(victim)
                stop_somebody(now)

            history = round_.run(trouble)
            assert any(process.was_killed for process in round_.processes)
            judge(store, history)


@pytest.mark.slow
def test_calls_whose_replies_are_lost_have_an_order(cluster, tmp_path):
    host, port = cluster.address.removeprefix("crail://").split(":")
    with cluster.connect() as store:
        for round_ in rounds(tmp_path):
            with DroppingProxy((host, int(port)), k=12) as proxy:
                # cut off and stopped, they may lose their session, and with it what they took
                round_.start(
                    proxy.address, TCP, AIO_TCP, AIO_TCP, calls=60, threads=1, uses_queue=False
                )
                round_.start(cluster.address, SHM, calls=400)
                history = round_.run(stop_somebody)
                assert proxy.dropped > 0
            judge(store, history)


class PartitioningProxy(DroppingProxy):
    """At every `k`-th change cuts all its connections, before the request or after it, and lets
    nobody through until the namenode has given their sessions up."""

    def __init__(self, target: tuple[str, int], k: int, store: crailpy.Store) -> None:
        self.store = store
        self.partitions = 0
        self.way = threading.Event()
        self.way.set()
        super().__init__(target, k)

    def _one_request(self, client: socket.socket, server: socket.socket) -> bool:
        request, seq = _frame(client)
        with self._lock:
            self.mutations += bool(seq)
            partition = bool(seq) and self.mutations % self.k == 0 and self.way.is_set()
            if partition:
                self.way.clear()
                self.partitions += 1
        if partition and self.partitions % 2:
            self._partition()
            return False
        server.sendall(request)
        reply, _ = _frame(server)
        if partition:
            self._partition()
            return False
        client.sendall(reply)
        return True

    def _partition(self) -> None:
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + LIMIT_S
        while self.store.status()["namenode"]["sessions"] > 1 and time.monotonic() < deadline:
            pass
        self.way.set()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        self.way.wait(LIMIT_S)
        super()._serve(client, server)


@pytest.mark.slow
def test_calls_whose_outcome_is_unknown_have_happened_once_or_not_at_all(cluster, tmp_path):
    host, port = cluster.address.removeprefix("crail://").split(":")
    with cluster.connect() as store:
        for round_ in rounds(tmp_path):
            with PartitioningProxy((host, int(port)), 25, store) as proxy:
                round_.start(proxy.address, TCP, AIO_TCP, TCP, AIO_TCP, calls=80, uses_queue=False)
                history = round_.run()
                assert proxy.partitions > 0
            assert any(event.is_pending for event in history)
            judge(store, history)
