"""Reads a namenode's database and sends its rows to whoever started it (database.Reading).

A process of its own, since a damaged page can end whoever walks over it. What it finds wrong goes
out last: rows that do not fit, rows that are missing, pages that are not there.

    python -m crailpy.server.namenode.reader FILE [--salvage]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from struct import Struct, iter_unpack
from struct import error as StructError
from typing import Any, BinaryIO

import lmdb

from . import rows
from .database import PAGE, PIECE, READ_BYTES

# Of LMDB 0.9 (mdb.c). The two meta pages: head of 16 bytes, then magic, version, address, map size,
# the free list and the main database, last page, number of the transaction (struct MDB_meta).
_META = Struct("<IIQQ48s48sQQ")
_META_AT = 16
_MAGIC = 0xBEEFC0DE
# A tree's root is the last of what is said of it (struct MDB_db). Each page of it has a head
# (number, kind, and where the places of its nodes end), and so has each node: length of its value,
# or the page below; flags; length of its key. A record of free pages is their count, and they.
_TREE = Struct("<40xQ")
_NO_ROOT = 2**64 - 1
_PAGE = Struct("<Q2xHH2x")
_PAGE_BRANCH, _PAGE_LEAF, _PAGE_OVERFLOW = 1, 2, 4
_NODE = Struct("<HHHH")
_NODE_ELSEWHERE = 1  # the value is on pages of its own
_NUMBER = Struct("<Q")
SHOWN = 100  # problems, at most
ODD_ROWS_MAX = 1000  # beyond twice as many as there should be


def check_metas(file: BinaryIO, size: int) -> str | None:
    """What is wrong with the file as a whole, or None. LMDB writes its two meta pages in turns and
    begins with the younger; so a damaged one would make it go back by a commit in silence."""
    if size < 2 * PAGE:
        return f"it has {size} bytes: no superblock fits in"
    metas = []
    for page in (0, 1):
        file.seek(page * PAGE + _META_AT)
        magic, version, _, _, free, _, last, number = _META.unpack(file.read(_META.size))
        if magic != _MAGIC or version != 1:
            return f"its page {page} is no page of LMDB"
        metas.append((number, last, free))
    even, odd = (number for number, _, _ in metas)
    if even % 2 or (odd and odd % 2 == 0) or abs(even - odd) > 1:
        return f"its meta pages are of the commits {even} and {odd}, which do not follow each other"
    _, last, free = max(metas)
    if size < (last + 1) * PAGE and not _are_free(
        size // PAGE, last + 1, file, *_TREE.unpack(free)
    ):
        return f"it is truncated: {size} bytes of {(last + 1) * PAGE}"
    return None


def _are_free(first: int, end: int, file: BinaryIO, root: int) -> bool:
    """Are the pages from `first` up to `end`, which are missing, in the free list, and all of that
    elsewhere? A page at the file's end that a commit took and gave back was never written."""
    try:
        found = {page for page in _free_list(file, first, root) if first <= page < end}
    except (ValueError, StructError):
        return False
    return len(found) == end - first


def _free_list(file: BinaryIO, pages: int, root: int) -> Iterator[int]:
    """The free pages of a file that has so many. Raises ValueError, struct.error."""
    budget = pages  # each is read once at most

    def read(page: int, kinds: int, size: int = PAGE) -> bytes:
        """A page of one of these kinds, and those behind it that belong to it."""
        nonlocal budget
        count = -(-size // PAGE)
        budget -= count
        if page + count > pages or budget < 0:
            raise ValueError(f"page {page} is not there")
        file.seek(page * PAGE)
        data = file.read(size)
        number, kind, _ = _PAGE.unpack_from(data)
        if number != page or not kind & kinds:
            raise ValueError(f"page {page} is another one")
        return data

    left = [] if root == _NO_ROOT else [root]
    while left:
        page = read(left.pop(), _PAGE_BRANCH | _PAGE_LEAF)
        _, kind, places_end = _PAGE.unpack_from(page)
        for (at,) in iter_unpack("<H", page[_PAGE.size : places_end]):
            low, high, flags, key = _NODE.unpack_from(page, at)
            if kind & _PAGE_BRANCH:
                left.append(low | high << 16 | flags << 32)
                continue
            value, size = at + _NODE.size + key, low | high << 16
            numbers = page[value : value + size]
            if flags & _NODE_ELSEWHERE:
                (first,) = _NUMBER.unpack_from(page, value)
                numbers = read(first, _PAGE_OVERFLOW, _PAGE.size + size)[_PAGE.size :]
            (count,) = _NUMBER.unpack_from(numbers)
            if count >= len(numbers) // _NUMBER.size:
                raise ValueError(f"{count} free pages do not fit in {len(numbers)} bytes")
            for (number,) in iter_unpack("<Q", numbers[_NUMBER.size :][: count * _NUMBER.size]):
                yield number


class Reader:
    """Walks a database and sends what it finds."""

    def __init__(self, out: BinaryIO, *, salvage: bool) -> None:
        self._out = out
        self._salvage = salvage
        self._last = b""  # key of the last row that fitted
        self._pieces: list[bytes] = []
        self._size = 0
        self._table = 0
        self.problems: list[dict[str, str]] = []
        self.rows = 0
        self.rows_max = 0
        """Where pages point back at pages above them, there is no end of rows."""

    def complain(self, row: str, why: str) -> None:
        """Notes a problem; only so many are told."""
        if len(self.problems) < SHOWN:
            self.problems.append({"row": row, "why": why})

    def send(self, table: int, data: bytes) -> None:
        """One piece."""
        self._out.write(PIECE.pack(table, len(data)))
        self._out.write(data)

    def walk(self, env: Any, first: bytes, end: bytes) -> bool:
        """The rows from `first` on, up to `end`. False: the pages do not hold together. What can be
        salvaged comes all the same."""
        self._last = b""
        at: bytes | None = first
        whole = True
        while at is not None:
            try:
                with env.begin() as txn, txn.cursor() as cursor:  # an error is the end of both
                    self._walk(cursor, at, end)
                break
            except lmdb.Error as error:
                whole = False
                self.complain("", f"its pages do not hold together: {error}")
                at = self._beyond(env, at) if self._salvage else None
        self._send_rest()
        return whole

    def _walk(self, cursor: Any, first: bytes, end: bytes) -> None:
        if not cursor.set_range(first):
            return
        for key, row in cursor:
            why = None
            # Most rows are nodes', and well: the rest of the head comes with the checksum.
            if (
                not key
                or key[0] != rows.NODE
                or row[23:15:-1] != key[1:]
                or int.from_bytes(row[:4], "little") != len(row)
            ):
                why = rows.take_apart(key, row)
            if why is None and key >= end:
                return
            if why is None and key <= self._last:
                why = "it is out of order"
            self.rows += 1
            if self.rows > self.rows_max:
                raise lmdb.CorruptedError("there is no end of rows")
            if why is not None:
                self.complain(rows.name_of(key), why)
                continue
            self._last = key
            if self._size > READ_BYTES or key[0] != self._table:
                self._send_rest()
                self._table = key[0]
            self._pieces.append(row)
            self._size += len(row)

    def _send_rest(self) -> None:
        if self._pieces:
            self.send(self._table, b"".join(self._pieces))
        self._pieces, self._size = [], 0

    def _beyond(self, env: Any, at: bytes) -> bytes | None:
        """The first key behind the last row from which on there is something to be read. Ids of
        nodes are dense; of another table nothing more is tried. None: there is none."""
        at = max(at, self._last)
        if self.rows > self.rows_max:
            return None
        if at[0] > rows.NODE:
            return bytes((at[0] + 1,)) if at[0] + 1 < rows.SUPER else None
        bad = int.from_bytes(at[1:9].ljust(8, b"\0"), "big") if at[0] == rows.NODE else 0
        step = 1
        while not _readable(env, bad + step):
            bad += step
            step *= 2
            if bad + step >= 1 << 64:
                return bytes((rows.NODE + 1,))
        while step > 1:  # a page that is damaged takes a run of them away: where does it end?
            step //= 2
            if not _readable(env, bad + step):
                bad += step
        return _node_key(bad + 1)

    def finish(self, lost: int) -> None:
        """The last piece: what was wrong. So many rows could not be read."""
        facts = {"rows": self.rows, "lost": lost, "problems": self.problems}
        self.send(0, json.dumps(facts).encode())
        self._out.flush()


def _node_key(number: int) -> bytes:
    return bytes((rows.NODE,)) + number.to_bytes(8, "big")


def _readable(env: Any, number: int) -> bool:
    try:
        with env.begin() as txn, txn.cursor() as cursor:
            return bool(cursor.set_range(_node_key(number))) and bool(cursor.key())
    except lmdb.Error:
        return False


def main(path: str, salvage: bool) -> int:
    """Exit code 0 if all is well."""
    out = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    reader = Reader(out, salvage=salvage)
    lost = 0
    with open(path, "rb") as file:
        why = check_metas(file, os.path.getsize(path))
    if why is not None:
        reader.complain("", why)
    if why is None or salvage:
        env = lmdb.open(path, subdir=False, readonly=True, lock=False, max_dbs=0)
        entries = env.stat()["entries"]
        reader.rows_max = 2 * entries + ODD_ROWS_MAX
        whole = reader.walk(env, bytes((rows.SUPER,)), bytes((rows.SUPER + 1,)))
        whole = reader.walk(env, b"\0", bytes((rows.SUPER,))) and whole
        if (whole or salvage) and reader.rows != entries:
            reader.complain("", f"it has {reader.rows} rows, and should have {entries}")
            lost = max(0, entries - reader.rows)
    reader.finish(lost)
    out.close()
    return 1 if reader.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--salvage" in sys.argv[2:]))
