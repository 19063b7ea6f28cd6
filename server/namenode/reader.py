"""Reads a namenode's database and sends its rows to whoever started it (database.Reading).

A process of its own, since a damaged page can end whoever walks over it. What it finds wrong goes
out last: rows that do not fit, rows that are missing, pages that are not there.

    python -m crailpy.server.namenode.reader FILE [--salvage]
"""

from __future__ import annotations

import json
import os
import sys
from struct import Struct
from typing import Any, BinaryIO

import lmdb

from . import rows
from .database import PAGE, PIECE, READ_BYTES

# The two meta pages: head of 16 bytes, then magic, version, address, map size, two databases of 48
# bytes each, last page, number of the transaction (LMDB 0.9, mdb.c, struct MDB_meta).
_META = Struct("<IIQQ48s48sQQ")
_META_AT = 16
_MAGIC = 0xBEEFC0DE
SHOWN = 100  # problems, at most


def check_metas(file: BinaryIO, size: int) -> str | None:
    """What is wrong with the file as a whole, or None. LMDB writes its two meta pages in turns and
    begins with the younger; so a damaged one would make it go back by a commit in silence."""
    if size < 2 * PAGE:
        return f"it has {size} bytes: no superblock fits in"
    metas = []
    for page in (0, 1):
        file.seek(page * PAGE + _META_AT)
        magic, version, _, _, _, _, last, number = _META.unpack(file.read(_META.size))
        if magic != _MAGIC or version != 1:
            return f"its page {page} is no page of LMDB"
        metas.append((number, last))
    (even, _), (odd, _) = metas
    if even % 2 or (odd and odd % 2 == 0) or abs(even - odd) > 1:
        return f"its meta pages are of the commits {even} and {odd}, which do not follow each other"
    last = max(metas)[1]
    if size < (last + 1) * PAGE:
        return f"it is truncated: {size} bytes of {(last + 1) * PAGE}"
    return None


class Reader:
    """Walks a database and sends what it finds."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.problems: list[dict[str, str]] = []
        self.rows = 0

    def complain(self, row: str, why: str) -> None:
        """Notes a problem; only so many are told."""
        if len(self.problems) < SHOWN:
            self.problems.append({"row": row, "why": why})

    def send(self, table: int, data: bytes) -> None:
        """One piece."""
        self._out.write(PIECE.pack(table, len(data)))
        self._out.write(data)

    def walk(self, cursor: Any, first: bytes, end: bytes) -> bool:
        """The rows from `first` on, up to `end`. False: the pages do not hold together."""
        pieces: list[bytes] = []
        size, table, before = 0, 0, b""
        try:
            if not cursor.set_range(first):
                return True
            for key, row in cursor:
                if key >= end:
                    break
                if key <= before:
                    self.complain(rows.name_of(key), "it is out of order")
                    return False
                before = key
                self.rows += 1
                # Most rows are nodes', and well: the rest of the head comes with the checksum.
                if (
                    key[0] != rows.NODE
                    or row[23:15:-1] != key[1:]
                    or int.from_bytes(row[:4], "little") != len(row)
                ):
                    why = rows.take_apart(key, row)
                    if why:
                        self.complain(rows.name_of(key), why)
                        continue
                if size > READ_BYTES or key[0] != table:
                    if pieces:
                        self.send(table, b"".join(pieces))
                    pieces, size, table = [], 0, key[0]
                pieces.append(row)
                size += len(row)
        except lmdb.Error as error:
            self.complain("", f"its pages do not hold together: {error}")
            return False
        finally:
            if pieces:
                self.send(table, b"".join(pieces))
        return True

    def finish(self) -> None:
        """The last piece: what was wrong."""
        self.send(0, json.dumps({"rows": self.rows, "problems": self.problems}).encode())
        self._out.flush()


def main(path: str, salvage: bool) -> int:
    """Exit code 0 if all is well."""
    out = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    reader = Reader(out)
    with open(path, "rb") as file:
        why = check_metas(file, os.path.getsize(path))
    if why is not None:
        reader.complain("", why)
    if why is None or salvage:
        env = lmdb.open(path, subdir=False, readonly=True, lock=False, max_dbs=0)
        with env.begin() as txn, txn.cursor() as cursor:
            entries = txn.stat()["entries"]
            whole = reader.walk(cursor, bytes((rows.SUPER,)), bytes((rows.SUPER + 1,)))
            whole = reader.walk(cursor, b"\0", bytes((rows.SUPER,))) and whole
        if whole and reader.rows != entries:
            reader.complain("", f"it has {reader.rows} rows, and should have {entries}")
    reader.finish()
    out.close()
    return 1 if reader.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--salvage" in sys.argv[2:]))
