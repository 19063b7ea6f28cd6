"""Messages that nearly make sense: a good one in which something was changed, first in what it
says, then in its bytes."""

from __future__ import annotations

import random
from typing import Any

import msgpack

from crailpy import hello

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1,
    0.0, -1.5, float("nan"), float("inf"), 1e308,
    "", "x", "\0", "a/b/../c", "é" * 300, "x" * 5000, "x" * 65480,
    b"", b"\0", b"x" * 16, b"x" * 65000,
    [], [[]], [[1, [2, [3]]]], [2**40], [0], [-1], ["x"], [1] * 70, [1] * 5000,
    {}, {"a": {}}, {"error": None}, {b"bytes": 1},
    msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2),
]  # fmt: skip


class Mutator:
    """Deterministic for its seed."""

    def __init__(self, seed: int, names: list[str]) -> None:
        self.random = random.Random(seed)
        self.names = [*names, "", "id", "m", "ok", "error", "challenge", "role", "version", "x"]

    def value(self, old: Any) -> Any:
        """Something else in the place of a value; often of the same kind."""
        r = self.random
        if isinstance(old, dict) and old and r.random() < 0.7:
            name = r.choice(list(old))
            return {**old, name: self.value(old[name])}
        if isinstance(old, list) and old and r.random() < 0.5:
            at = r.randrange(len(old))
            return [*old[:at], self.value(old[at]), *old[at + 1 :]]
        if isinstance(old, int) and r.random() < 0.4:
            return old + r.choice([-1, 1, 256, 2**32])
        if isinstance(old, (str, bytes)) and old and r.random() < 0.3:
            return old[: r.randrange(len(old))]
        return r.choice(STRANGE)

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message that says something else."""
        r = self.random
        new = dict(message)
        for _ in range(r.choice([0, 1, 1, 1, 2, 3])):
            name = r.choice([*new, *self.names]) if r.random() < 0.9 else "y" * r.randrange(300)
            if r.random() < 0.2:
                new.pop(name, None)
            else:
                new[name] = self.value(new.get(name))
        return new

    def body(self, message: dict[str, Any]) -> bytes:
        try:
            return bytes(msgpack.packb(self.message(message)))
        except (OverflowError, ValueError):  # a number that msgpack has no form for
            return bytes(msgpack.packb(message))

    def spoil(self, data: bytes) -> bytes:
        """Bytes changed, cut, doubled or put in."""
        r = self.random
        at, to = sorted((r.randrange(len(data) + 1), r.randrange(len(data) + 1)))
        change = r.randrange(4)
        if change == 0 and data:
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ (1 << r.randrange(8))]) + data[at + 1 :]
        if change == 1:
            return data[:at] + data[to:]
        if change == 2:
            return data[:to] + data[at:to] + data[to:]
        return data[:at] + r.randbytes(r.randrange(1, 9)) + data[at:]

    def bytes_of(self, message: dict[str, Any]) -> bytes:
        """The bytes of a message that was changed, head and all."""
        body = self.body(message)
        if self.random.random() < 0.3:
            body = self.spoil(body)
        data = hello.MAGIC + len(body).to_bytes(4, "little") + body
        return self.spoil(data) if self.random.random() < 0.1 else data
