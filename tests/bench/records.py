"""Records of the sort benchmarks (sortbenchmark.org): 100 bytes, of which 10 are the key.

As in gensort's binary form: 10 random bytes, 00 11, the record's number as 32 hexadecimal digits,
88 99 AA BB, 48 bytes that repeat twelve random digits four times each, CC DD EE FF. The generator
is our own: it takes NumPy's, seeded with (seed, split), so that splits can be made in any order by
any process. Keys compare as bytes, so a key is a big-endian number: 64 bits and then 16.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RECORD = np.dtype([("high", ">u8"), ("low", ">u2"), ("value", "V90")])
RECORD_BYTES = RECORD.itemsize
Records = NDArray[np.void]

HEX = np.frombuffer(b"0123456789ABCDEF", np.uint8)
PAGE = 4096
BLOCK = 4096
"""Records that are looked at together: they stay in a core's cache."""
SKEWED_KEYS = 16
MULTIPLIERS = np.random.default_rng(100).integers(1 << 63, size=25, dtype=np.uint64) | np.uint64(1)


def generate(seed: int, split: int, first: int, count: int, skew: float = 0.0) -> Records:
    """Records number `first` to `first + count` of an input; `split` numbers the piece. Of a share
    `skew` of them, the first 8 bytes of the key are one of 16 values."""
    draw = np.random.default_rng((seed, split))
    found = fresh(count)
    bytes_ = found.view(np.uint8).reshape(-1, RECORD_BYTES)
    bytes_[:, :10] = draw.integers(256, size=(count, 10), dtype=np.uint8)
    if skew:
        common = np.random.default_rng(seed).integers(256, size=(SKEWED_KEYS, 8), dtype=np.uint8)
        chosen = np.flatnonzero(draw.random(count) < skew)
        bytes_[chosen, :8] = common[draw.integers(SKEWED_KEYS, size=len(chosen))]
    bytes_[:, 10:12] = 0x00, 0x11
    numbers = np.arange(first, first + count, dtype=np.uint64)
    shifts = np.arange(60, -4, -4, dtype=np.uint64)
    bytes_[:, 12:28] = ord("0")
    bytes_[:, 28:44] = HEX[(numbers[:, None] >> shifts) & np.uint64(15)]
    bytes_[:, 44:48] = 0x88, 0x99, 0xAA, 0xBB
    bytes_[:, 48:96] = np.repeat(HEX[draw.integers(16, size=(count, 12))], 4, axis=1)
    bytes_[:, 96:] = 0xCC, 0xDD, 0xEE, 0xFF
    return found


def order(records: Records) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """The indices that sort the records by key, and the upper 64 bits of the keys in that order."""
    high = records["high"].astype(np.uint64)
    index = np.argsort(high)
    high = high[index]
    same = high[1:] == high[:-1]
    if same.any():  # these few are sorted once more, by all 80 bits; each group keeps its place
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        low = records["low"][index[tied]]
        index[tied] = index[tied][np.lexsort((low, high[tied]))]
    return index, high


def take(records: Records, index: NDArray[np.intp], out: Records) -> Records:
    """The records at `index`, in the beginning of `out`, which has the room."""
    part = out[: len(index)]
    np.take(records, index, out=part, mode="clip")  # the other modes would gather in a buffer first
    return part


def splitters(sample: NDArray[np.uint64], partitions: int) -> NDArray[np.uint64]:
    """The `partitions - 1` upper halves of keys that part a sample evenly."""
    ordered = np.sort(sample)
    at = np.arange(1, partitions) * len(ordered) // partitions
    return ordered[at]


@dataclass
class Summary:
    """What is known of a run of records: how many, whether in order, and from which key to which; a
    checksum that does not depend on the order, and how many have the key of the one before.
    Hexadecimal keys."""

    count: int = 0
    checksum: int = 0
    unordered: int = 0
    duplicates: int = 0
    first: str = ""
    last: str = ""

    def follow(self, other: Summary) -> None:
        """Adds the run that comes next."""
        if other.count and self.count:
            self.unordered += other.first < self.last
            self.duplicates += other.first == self.last
        self.first = self.first if self.count else other.first
        self.last = other.last if other.count else self.last
        self.count += other.count
        self.checksum = (self.checksum + other.checksum) % (1 << 64)
        self.unordered += other.unordered
        self.duplicates += other.duplicates

    def facts(self) -> dict[str, int | str]:
        return asdict(self)


def summarise(records: Records) -> Summary:
    """Looks at every byte of the records."""
    total = Summary()
    for at in range(0, len(records), BLOCK):
        total.follow(_block(records[at : at + BLOCK]))
    return total


def _block(records: Records) -> Summary:
    high = records["high"].astype(np.uint64)
    low = records["low"].astype(np.uint16)
    same = high[1:] == high[:-1]
    less = (high[1:] < high[:-1]) | (same & (low[1:] < low[:-1]))
    twice = same & (low[1:] == low[:-1])
    return Summary(
        count=len(records),
        checksum=checksum(records),
        unordered=int(less.sum()),
        duplicates=int(twice.sum()),
        first=f"{high[0]:016x}{low[0]:04x}",
        last=f"{high[-1]:016x}{low[-1]:04x}",
    )


def checksum(records: Records) -> int:
    """The sum, modulo 2**64, of a hash of each record. A hash is the sum of the record's 25 words
    of 32 bits, each times an odd number of its own; mixed, so that words of two records cannot be
    exchanged unseen."""
    words = records.view(np.uint32).reshape(-1, 25).astype(np.uint64)
    words *= MULTIPLIERS
    hashes = words.sum(axis=1)
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(32)
    return int(hashes.sum())


class _File:
    """A file past the page cache where the file system can do that: pages that nobody looks at
    again cost more than the disk. What is not aligned goes through the cache."""

    def __init__(self, path: str, flags: int) -> None:
        flags |= os.O_CLOEXEC
        try:
            self.fd = os.open(path, flags | os.O_DIRECT, 0o644)
            self._is_direct = True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.fd = os.open(path, flags, 0o644)
            self._is_direct = False

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def piece(self, records: Records, done: int, at: int) -> memoryview:
        """What is to be moved next: of the bytes behind `done`, which belong at `at`."""
        left = memoryview(records.view(np.uint8))[done:]
        blocks = len(left) // PAGE * PAGE
        if self._is_direct and (not blocks or at % PAGE or (records.ctypes.data + done) % PAGE):
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            self._is_direct = False
        return left[:blocks] if self._is_direct else left


def read(path: str, first: int, count: int, out: Records) -> Records:
    """`count` records of a file from record `first` on, in the beginning of `out`."""
    part = out[:count]
    done, start = 0, first * RECORD_BYTES
    with _File(path, os.O_RDONLY) as file:
        while done < part.nbytes:
            got = os.preadv(file.fd, [file.piece(part, done, start + done)], start + done)
            if not got:
                raise EOFError(f"{path} ends before record {first + count}")
            done += got
    return part


def write(path: str, records: Records) -> None:
    """The records as a file, which is there when it is whole."""
    hidden = f"{path}.{os.getpid()}"
    done = 0
    with _File(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        while done < records.nbytes:
            done += os.pwrite(file.fd, file.piece(records, done, done), done)
    os.replace(hidden, path)


class Scratch:
    """Memory for records, used again by the next task: fresh pages cost as much as a copy."""

    def __init__(self) -> None:
        self._areas: dict[str, Records] = {}

    def area(self, name: str, count: int) -> Records:
        """Room for `count` records that begins with a page, with whatever was left in it."""
        found = self._areas.get(name)
        if found is None or len(found) < count:
            self._areas.pop(name, None)
            found = self._areas[name] = fresh(count * 9 // 8)
        return found[:count]


def fresh(count: int) -> Records:
    """Memory for `count` records that begins with a page, and has been touched."""
    memory = mmap.mmap(-1, max(1, count * RECORD_BYTES))
    memory.madvise(mmap.MADV_HUGEPAGE)
    found = np.frombuffer(memory, RECORD, count)
    found.view(np.uint8)[:] = 0
    return found
