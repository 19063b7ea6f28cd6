"""Files of the store against files of the machine: the same random operations, no difference."""

from __future__ import annotations

import io
import os
import random
from contextlib import suppress

import pytest

from crailpy import errors
from crailpy.client import extents, files

STEPS = 4000  # operations of each life
SIZE_MAX = 700_000  # past what is held in memory and past the first extent
SEED = int(os.environ.get("CRAILPY_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


@pytest.fixture(params=["shm", "tcp"])
def store(request, cluster):
    with cluster.connect(transport=request.param) as store:
        store.mkdir("/like", exist_ok=True)
        yield store
        store.rmtree("/like")
        assert store.check() is None


class Both:
    """One file here, one there, and what is done to both."""

    def __init__(self, rng, store, local, remote, mode, buffering, **text):
        self.rng = rng
        self.mode = f"{mode} buffering={buffering}"
        self.trace: list[object] = []  # for the message of a difference
        # where tell() is, when what was appended is not flushed, depends on the buffer
        size = files.BUFFER_BYTES if buffering == -1 else buffering
        self.here = open(local, mode, size, **text)  # noqa: SIM115
        self.there = store.open(remote, mode, buffering=buffering, **text)

    def each(self, what, *args):
        answers = []
        self.trace.append((what, [a if not isinstance(a, bytes) else len(a) for a in args]))
        for file in (self.here, self.there):
            try:
                answers.append(getattr(file, what)(*args))
            except (io.UnsupportedOperation, errors.InvalidArgumentError, OSError, ValueError):
                answers.append("refused")
        assert answers[0] == answers[1], (self.mode, self.trace)
        return answers[0]

    def close(self):
        self.here.close()
        self.there.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.here.close()
        self.there.__exit__(kind, value, trace)


def some_bytes(rng: random.Random) -> bytes:
    small = [0, 1, rng.randrange(100), rng.randrange(5000), rng.randrange(90_000)]
    return rng.randbytes(rng.randrange(400_000) if rng.random() < 0.1 else rng.choice(small))


def binary_step(rng: random.Random, both: Both) -> None:
    match rng.randrange(11):
        case 0 | 1 | 2:
            both.each("write", some_bytes(rng))
        case 3:
            both.each(
                "seek", rng.randrange(SIZE_MAX) if rng.random() < 0.1 else rng.randrange(99_999)
            )
        case 4:
            both.each("seek", -rng.randrange(2000), rng.choice([io.SEEK_CUR, io.SEEK_END]))
        case 5 | 6:
            both.each("read", rng.choice([0, 1, 100, 5000, 70_000]))
        case 7:
            buffers = [bytearray(rng.choice([1, 1000, 40_000]))] * 2
            buffers[1] = bytearray(buffers[0])
            counts = []
            for file, buffer in zip((both.here, both.there), buffers, strict=True):
                try:
                    counts.append(file.readinto(buffer))
                except (io.UnsupportedOperation, OSError):
                    counts.append("refused")
            assert counts[0] == counts[1]
            assert buffers[0] == buffers[1]
        case 8:
            both.each("truncate", rng.choice([None, rng.randrange(200_000), rng.randrange(5000)]))
        case 9:
            both.each("flush")
        case 10:
            both.each("readline", rng.choice([-1, 50]))
    if rng.random() < 0.5:
        both.each("tell")


def text_step(rng: random.Random, both: Both) -> None:
    words = "".join(rng.choice("aä€𝄞\n\r z") for _ in range(rng.choice([0, 3, 200, 9000])))
    match rng.randrange(6):
        case 0 | 1:
            both.each("write", words)
        case 2:
            both.each("readline")
        case 3:
            both.each("read", rng.choice([1, 10, 3000]))
        case 4:
            both.each("seek", 0, rng.choice([io.SEEK_SET, io.SEEK_END]))
        case 5:
            both.each("flush")


def a_life(rng: random.Random, store, tmp_path, steps: int) -> None:
    local, remote = str(tmp_path / "file"), "/like/file"
    done = 0
    exists = False
    while done < steps:
        kind = rng.choice("rrwaaax") + rng.choice(["", "+"])
        if (kind[0] in "r" and not exists) or kind[0] == "x":
            with suppress(FileNotFoundError):
                os.unlink(local)
            store.delete(remote, missing_ok=True)
            kind = rng.choice("wax")
        is_text = rng.random() < 0.2 and "+" not in kind
        text = {"encoding": "utf-8", "errors": "replace", "newline": ""} if is_text else {}
        buffering = rng.choice([-1, 100, 5000] if is_text else [-1, 0, 100, 5000])
        kind += "t" if is_text else "b"
        with Both(rng, store, local, remote, kind, buffering, **text) as both:
            for _ in range(rng.randrange(1, 40)):
                (text_step if is_text else binary_step)(rng, both)
                done += 1
        exists = True
        with open(local, "rb") as file:
            assert store.get(remote) == file.read(), kind
        if rng.random() < 0.2:  # the next appender finds a closed tail
            with store.open(remote, "ab") as file:
                file.write(some_bytes(rng))
                file.discard()
        if rng.random() < 0.2 and os.path.getsize(local) > SIZE_MAX:
            os.truncate(local, 1000)
            with store.open(remote, "r+b") as file:
                file.truncate(1000)


@pytest.mark.parametrize("count", [extents.EXTENTS_MAX, 2])
def test_random_operations_make_no_difference(store, tmp_path, monkeypatch, count):
    """Also where so few extents are allowed that files have to move to larger ones."""
    print(f"CRAILPY_SEED={SEED}")
    monkeypatch.setattr(extents, "EXTENTS_MAX", count)
    a_life(random.Random(SEED), store, tmp_path, STEPS)
