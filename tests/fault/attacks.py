"""Attacks on the reuse rule, as a program: `python attacks.py NAME [--seconds N] [--seed N]`.

Each attack runs a small store at the edge of its memory, so that every freed extent is soon wanted
by somebody else, and stops, kills or forks those who touch extents. Every value is an array of one
repeated 64-bit stamp that names its key; whoever reads one checks all of it. A reader that sees two
stamps in one value, or a stamp of another key, prints what it saw.

Prints one JSON object: {"reads", "violations", "seed", ...}; exit code 3 when there were any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy

import crailpy
from crailpy.errors import CrailError, NotFoundError, OutOfSpaceError

KEYS = 12
SAY_S = 0.1  # between what a reader says of its reads


class Attack:
    """What one attack needs: the store's size, the values' sizes, and who is treated how."""

    def __init__(
        self, *, guards, transport="shm", tier="dram", dram, sizes, readers, writers=(), chaos
    ):
        self.guards = guards  # each of these, switched off, must let it succeed
        self.transport = transport
        self.tier = tier
        self.dram = dram  # how much there is of the tier
        self.sizes = sizes
        self.readers = readers  # modes of the reader processes
        self.writers = writers  # number of extra writer processes that chaos may touch
        self.chaos = chaos


MIB = 1 << 20


def stamp(key: int, count: int) -> int:
    return key << 40 | count


def violation(key: int, array: numpy.ndarray) -> str | None:
    if array.size == 0:
        return None
    first = int(array[0])
    if not (array == first).all():
        return f"torn: key {key} holds {[hex(int(x)) for x in numpy.unique(array)[:4]]}"
    if first >> 40 != key:
        return f"foreign: key {key} holds {first:#x}"
    return None


# ---- processes that chaos is done to ---------------------------------------------------------


def read_for_ever(address: str, transport: str, mode: str, seed: int) -> None:
    """Reads random keys, prints "V ..." for a violation and "R n" for n reads, now and then."""
    rng = random.Random(seed)
    into = numpy.zeros(32 * MIB // 8, dtype="uint64")
    held: list[tuple[int, object, numpy.ndarray]] = []
    reads, said = 0, time.monotonic()
    parent = os.getppid()
    with crailpy.connect(address, transport=transport, timeout=120) as store:
        while os.getppid() == parent:
            key = rng.randrange(KEYS)
            try:
                if mode == "into":
                    n = store.get_into(f"/k{key}", into)
                    array = into[: n // 8]
                elif mode == "get":
                    array = numpy.frombuffer(store.get(f"/k{key}"), dtype="uint64")
                else:
                    view = store.get_view(f"/k{key}")
                    array = numpy.frombuffer(view, dtype="uint64")
                    held.append((key, view, array))
            except NotFoundError:
                continue
            found = [violation(key, array)]
            if mode == "view":
                found += [violation(k, a) for k, _, a in held]
                if len(held) > 2:
                    del held[0]
            del array
            for text in filter(None, found):
                print("V", text, flush=True)
            reads += 1
            if time.monotonic() - said > SAY_S:
                print("R", reads, flush=True)
                reads, said = 0, time.monotonic()


def write_for_ever(address: str, transport: str, sizes: list[int], seed: int) -> None:
    rng = random.Random(seed)
    parent = os.getppid()
    buffer = numpy.zeros(max(sizes) // 8, dtype="uint64")
    with crailpy.connect(address, transport=transport, timeout=120) as store:
        while os.getppid() == parent:
            write_one(store, rng, buffer, sizes)


def write_one(store, rng: random.Random, buffer: numpy.ndarray, sizes: list[int]) -> None:
    key = rng.randrange(KEYS)
    array = buffer[: rng.choice(sizes) // 8]
    array.fill(stamp(key, rng.getrandbits(39)))
    try:
        if rng.random() < 0.1:
            store.delete(f"/k{key}", missing_ok=True)
        store.put(f"/k{key}", array)
    except OutOfSpaceError:  # the attack holds memory back: that is what it is for
        store.delete(f"/k{rng.randrange(KEYS)}", missing_ok=True)


def hold_and_fork(address: str, transport: str, mode: str, seed: int) -> None:
    """Takes a view and forks; the parent dies, the child checks the view until its stdin ends."""
    store = crailpy.connect(address, transport=transport, timeout=120)
    rng = random.Random(seed)
    while True:
        key = rng.randrange(KEYS)
        try:
            view = store.get_view(f"/k{key}")
            break
        except NotFoundError:
            continue
    array = numpy.frombuffer(view, dtype="uint64")
    if os.fork():
        os._exit(0)  # without a word: no atexit, no close
    watch = selectors.DefaultSelector()
    watch.register(0, selectors.EVENT_READ)
    while not watch.select(0):
        text = violation(key, array)
        if text:
            print("V", text, flush=True)
            break
        print("R", 1, flush=True)
    os._exit(0)


ROLES = {"read": read_for_ever, "write": write_for_ever, "fork": hold_and_fork}


# ---- the attacker ----------------------------------------------------------------------------


class Field:
    """The store under attack, the processes around it, and what they have reported."""

    def __init__(self, attack: Attack, seed: int) -> None:
        self.attack = attack
        self.rng = random.Random(seed)
        self.reads = 0
        self.violations: list[str] = []
        self.restarts = 0
        self.partial: dict[int, str] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.selector = selectors.DefaultSelector()
        self.cluster = crailpy.LocalCluster(
            tiers=(attack.tier,), dram=attack.dram, capacity=attack.dram
        )

    def __enter__(self) -> Field:
        self.cluster.__enter__()
        self.store = self.cluster.connect(transport=self.attack.transport, timeout=120)
        self.buffer = numpy.zeros(max(self.attack.sizes) // 8, dtype="uint64")
        return self

    def __exit__(self, *exc) -> None:
        for process in self.processes:
            self.end(process)
        self.store.close()
        self.cluster.__exit__(*exc)

    def spawn(self, role: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--role", role, self.cluster.address,
                   self.attack.transport, json.dumps(arguments)]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.selector.register(process.stdout, selectors.EVENT_READ)
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin:
            process.stdin.close()
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()

    def collect(self) -> None:
        for ready, _ in self.selector.select(0):
            data = os.read(ready.fd, 65536)
            if not data:
                self.selector.unregister(ready.fileobj)
                continue
            text = self.partial.get(ready.fd, "") + data.decode()
            *lines, self.partial[ready.fd] = text.split("\n")
            for line in lines:
                if line.startswith("V"):
                    self.violations.append(line[2:])
                elif line.startswith("R"):
                    self.reads += int(line[2:])

    def write(self, turnovers: float) -> None:
        """Writes so much that the memory of the store was wanted that many times over."""
        left = turnovers * crailpy.units.parse_size(self.attack.dram)
        while left > 0:
            write_one(self.store, self.rng, self.buffer, self.attack.sizes)
            left -= sum(self.attack.sizes) / len(self.attack.sizes)
            self.collect()


def stop_somebody(field: Field) -> None:
    """Stops a process in the middle of whatever it does while the memory is refilled."""
    victim = field.rng.choice([p for p in field.processes if p.poll() is None])
    victim.send_signal(signal.SIGSTOP)
    field.write(2)
    victim.send_signal(signal.SIGCONT)
    field.write(0.2)


def kill_a_writer(field: Field) -> None:
    for process in field.processes[len(field.attack.readers) :]:
        if process.poll() is None and field.rng.random() < 0.5:
            process.kill()
            process.wait()
    field.write(0.5)
    field.spawn("write", field.attack.sizes, field.rng.getrandbits(32))


def fork_with_a_view(field: Field) -> None:
    holder = field.spawn("fork", "view", field.rng.getrandbits(32))
    holder.wait()
    field.write(3)
    field.collect()
    if holder.stdin:
        holder.stdin.close()


def restart_the_storage(field: Field) -> None:
    field.write(0.5)
    server = field.cluster.servers[0]
    server.kill()
    server.start()
    field.restarts += 1
    field.write(2)


ATTACKS = {
    "paused-readers": Attack(
        guards=["slot", "retire-scan"],
        dram="48MiB", sizes=[MIB, 2 * MIB], readers=["into", "get"], chaos=stop_somebody,
    ),
    "held-views": Attack(
        guards=["slot", "retire-scan"],
        dram="48MiB", sizes=[MIB, 2 * MIB], readers=["view", "view"], chaos=stop_somebody,
    ),
    "late-readers": Attack(
        guards=["generation"],
        dram="4MiB", sizes=[8192, 16384], readers=["into"] * 4, chaos=stop_somebody,
    ),
    "paused-writers": Attack(
        guards=["slot"],
        dram="48MiB", sizes=[MIB, 2 * MIB], readers=["into"], writers=(1, 2),
        chaos=stop_somebody,
    ),
    "killed-writers": Attack(
        guards=[], dram="48MiB", sizes=[MIB, 2 * MIB], readers=["into"], writers=(1,),
        chaos=kill_a_writer,
    ),
    "forked-views": Attack(
        guards=["slot", "retire-scan"],
        dram="48MiB", sizes=[MIB, 2 * MIB], readers=["into"], chaos=fork_with_a_view,
    ),
    "storage-restart": Attack(
        guards=["retire-scan"],
        dram="48MiB", sizes=[MIB, 2 * MIB], readers=["into", "view"],
        chaos=restart_the_storage,
    ),
    "tcp-paused-readers": Attack(
        guards=["tcp-slot"],  # more than a connection's buffers hold: the rest is still to be sent
        transport="tcp", dram="256MiB", sizes=[28 * MIB, 32 * MIB], readers=["into", "get"],
        chaos=stop_somebody,
    ),
    "tcp-late-readers": Attack(
        guards=["tcp-generation"],
        transport="tcp", dram="4MiB", sizes=[8192, 16384], readers=["into"] * 4,
        chaos=stop_somebody,
    ),
    "file-late-readers": Attack(
        guards=["tcp-generation"], tier="file",
        transport="tcp", dram="4MiB", sizes=[8192, 16384], readers=["into"] * 4,
        chaos=stop_somebody,
    ),
    "file-killed-writers": Attack(
        guards=[], tier="file", transport="tcp",
        dram="48MiB", sizes=[MIB, 2 * MIB], readers=["into"], writers=(1,), chaos=kill_a_writer,
    ),
    "file-restart": Attack(
        guards=[], tier="file", transport="tcp",
        dram="48MiB", sizes=[MIB, 2 * MIB], readers=["into", "get"], chaos=restart_the_storage,
    ),
}  # fmt: skip


def run(name: str, seconds: float, seed: int) -> dict[str, object]:
    attack = ATTACKS[name]
    rounds = 0
    with Field(attack, seed) as field:
        field.write(0.3)
        for mode in attack.readers:
            field.spawn("read", mode, field.rng.getrandbits(32))
        for _ in attack.writers:
            field.spawn("write", attack.sizes, field.rng.getrandbits(32))
        end = time.monotonic() + seconds
        while (time.monotonic() < end or not field.reads) and not field.violations:
            attack.chaos(field)
            field.collect()
            rounds += 1
        broken = [p.args for p in field.processes if p.poll() not in (None, 0, -signal.SIGKILL)]
    return {
        "attack": name,
        "seed": seed,
        "reads": field.reads,
        "rounds": rounds,
        "restarts": field.restarts,
        "violations": field.violations[:5],
        "broken": len(broken),
        "guards_off": os.environ.get("CRAILPY_TEST_GUARDS_OFF", ""),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(ATTACKS))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--role", nargs=4)
    args = parser.parse_args()
    if args.role:
        role, address, transport, rest = args.role
        try:
            ROLES[role](address, transport, *json.loads(rest))
        except (CrailError, BrokenPipeError) as error:
            print(f"{role}: {error!r}", file=sys.stderr)
            return 4
        return 0
    report = run(args.name, args.seconds, args.seed)
    print(json.dumps(report))
    return 3 if report["violations"] else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
