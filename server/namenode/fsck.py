"""`crailpy fsck` on a state folder that no namenode works on: finds all that is wrong, and drops it
by name where that is asked for.

Nothing is changed in place. A repair writes a new database of the rows that are whole and fit
together; the old file stays beside it as `metadata.mdb.damaged-1` and so on.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from struct import Struct
from typing import Any

from lmdb import verify

from crailpy import native
from crailpy.errors import CrailError, NotFoundError

from . import rows
from .database import GRANTS, SUPER, Database, Folder, Reading, Superblock, Table, sync_folder

DROPS_MAX = 10000  # rows that do not fit together; beyond that it is no state
ARENA_MAX = 64 << 30
ROOT = 1  # id of the root
# struct crail_node_row: parent, version, size, mtime_ns, attributes, kind, parts, extents, name_len
_NODE = Struct("<QQQqIBBBB")
_DIRECTORY = 2
_LIFE, _JOB = 1, 2  # enum crail_node_part
_LIFE_BYTES = 40
_U64 = Struct("<Q")
_BOUNDS = Struct("<QQQQ")  # struct crail_row_bounds: epoch; id, version, job
# Where counting goes on when nobody knows how far it was; a job's number counts in 40 bits.
_BEYOND = (1 << 56, 1 << 56, 1 << 36)
_JOB_SLOT_BITS = 24
_NAMED = re.compile(r"(node|session|server) (\d+)\b")
_TABLES = {"node": rows.NODE, "session": rows.SESSION, "server": rows.SERVER}


class Fsck:
    """One check of a state folder, locked until close(). Raises NotFoundError, ExistsError where a
    namenode works on it, OSError."""

    def __init__(self, path: str) -> None:
        if not os.path.isfile(os.path.join(path, "metadata.mdb")):
            raise NotFoundError(f"no state of a namenode in {path}")
        self.folder = Folder(path)
        self.problems: list[dict[str, str]] = []
        self.dropped: list[str] = []
        """Rows that a repair leaves out, or makes anew."""
        self.facts: dict[str, int] = {}
        self.repairable = True
        self._without_grants = False
        self._rows: dict[bytes, bytes] = {}

    def close(self) -> None:
        """Lets others in."""
        self.folder.close()

    def check(self) -> bool:
        """Looks at everything; True if all is well. What is found is in `problems`."""
        self._check_pages()
        self._read()
        self._check_superblock()
        self._fit_together()
        return not self.problems

    def repair(self) -> str:
        """Writes a new database without what is damaged, if it is `repairable`. The name that the
        old file has now."""
        path = self.folder.database
        number = 1
        while os.path.exists(f"{path}.damaged-{number}"):
            number += 1
        fresh = Database(f"{path}.repaired")
        if os.path.exists(fresh.path):
            os.unlink(fresh.path)
        fresh.open(new=True)
        try:
            fresh.commit([Table(self._rows)])
        finally:
            fresh.close()
        kept = f"{path}.damaged-{number}"
        native.failpoint("repair-written")
        os.link(path, kept)  # at no time is there none
        native.failpoint("repair-kept")
        os.replace(fresh.path, path)
        native.failpoint("repair-placed")
        if self._without_grants:
            grants = self.folder.join(GRANTS)
            os.replace(grants, f"{grants}.damaged-{number}")
        sync_folder(self.folder.path)
        return kept

    def report(self) -> dict[str, Any]:
        """For --json."""
        return {
            "folder": self.folder.path,
            "ok": not self.problems,
            "rows": len(self._rows),
            "problems": self.problems,
            "dropped": self.dropped,
            "facts": self.facts,
        }

    # -- what can be wrong ---------------------------------------------------------------------

    def _complain(self, row: str, why: str) -> None:
        self.problems.append({"row": row, "why": why})

    def _check_pages(self) -> None:
        """The file as LMDB's own rules have it: every page used once, or free."""
        try:
            found = verify.verify(self.folder.database, subdir=False)  # type: ignore[no-untyped-call]
        except verify.VerifyError as error:
            found = [str(error)]
        for why in found:
            self._complain("", f"its pages: {why}")

    def _read(self) -> None:
        reading = Reading(self.folder.database)
        for _, data in reading.pieces(salvage=True):
            for key, row in rows.parse(data):
                if row is None or not native.row_is_whole(row):
                    self._complain(rows.name_of(key), "its checksum is wrong")
                    self.dropped.append(rows.name_of(key))
                else:
                    self._rows[key] = row
        if not reading.is_whole:
            self._complain("", "nobody knows what a repair would drop")
            self.repairable = False
        if reading.lost:
            self.dropped.append(f"{reading.lost} rows on damaged pages")
        for problem in reading.problems:
            self.problems.append(problem)
            if problem["row"]:
                self.dropped.append(problem["row"])

    def _check_superblock(self) -> None:
        """Without the old key no session and no extent of before is known any more."""
        self._check_bounds()
        keys = [rows.key_of(rows.SUPER, name.encode()) for name in SUPER]
        if any(key not in self._rows for key in keys):
            self._complain(
                "super", "a row of the superblock is missing: the cluster becomes a new one"
            )
            self.dropped.append("super")
            self._rows.update(Superblock.fresh().items())
            return
        Superblock.parse(self._rows, self.folder.database)

    def _check_bounds(self) -> None:
        """Without them numbers would be given that others have had."""
        key = rows.key_of(rows.SUPER, b"bounds")
        nodes = [row for key, row in self._rows.items() if key[0] == rows.NODE]
        if key in self._rows or not nodes:
            return
        name = rows.name_of(key)
        if name not in self.dropped:
            self._complain(name, "the row is missing")
        self.dropped.append(f"{name}, made anew")
        highest = [max(numbers) for numbers in zip(*map(_numbers_of, nodes), strict=True)]
        beyond = (n + more for n, more in zip(highest, _BEYOND, strict=True))
        self._rows.update([rows.super_row("bounds", _BOUNDS.pack(0, *beyond))])

    def _fit_together(self) -> None:
        """Gives the rows to a core, as a namenode does at its start. A row that does not fit is
        left out, and the others are tried without it."""
        self._find_root()
        while (why := self._load()) is not None:
            named = _NAMED.match(why)
            key = named and self._key_of(named[1], int(named[2]))
            self._complain(named[0] if named else "", why)
            if not key or len(self.dropped) > DROPS_MAX:
                self._complain("", "there is no row to leave out: it cannot be repaired")
                self.repairable = False
                return
            self.dropped.append(rows.name_of(key))
            del self._rows[key]

    def _find_root(self) -> None:
        key = rows.key_of(rows.NODE, ROOT.to_bytes(8, "little"))
        if key in self._rows or not any(key[0] == rows.NODE for key in self._rows):
            return
        self._complain(rows.name_of(key), "the root is missing")
        self.dropped.append(f"{rows.name_of(key)}, made anew")
        value = _NODE.pack(0, 0, 0, 0, 0, _DIRECTORY, 0, 0, 0)
        self._rows[key] = native.row_make(rows.NODE, ROOT.to_bytes(8, "little"), value)

    def _key_of(self, name: str, number: int) -> bytes | None:
        size = 4 if name == "server" else 8
        key = rows.key_of(_TABLES[name], number.to_bytes(size, "little"))
        return key if key in self._rows else None

    def _load(self) -> str | None:
        """What does not fit, or None."""
        grants = self._copy_of_grants()
        try:
            core = native.Namenode(
                arena_bytes_max=ARENA_MAX,
                session_grace=3600,
                mac_key=bytes(16),
                durability="group",
                grants=grants,
            )
        except OSError as error:
            if error.errno != errno.EUCLEAN or self._without_grants:
                raise
            self._complain(GRANTS, "it is no grant map: what is being written will be lost")
            self.dropped.append(GRANTS)
            self._without_grants = True
            return self._load()
        finally:
            os.close(grants)
        try:
            why = core.load(b"".join(self._rows[key] for key in sorted(self._rows)))
            if why is None:
                self.facts, why = core.load_end()
            return why if why is not None else core.check()
        except CrailError as error:
            return str(error)
        finally:
            core.close()

    def _copy_of_grants(self) -> int:
        """The core writes in its grant map, and this is only a look at it."""
        with tempfile.TemporaryFile() as copy, open(self.folder.open_grants(), "rb") as file:
            while not self._without_grants and (part := file.read(1 << 20)):
                copy.write(part)
            copy.flush()
            return os.dup(copy.fileno())


def _numbers_of(row: bytes) -> tuple[int, int, int]:
    """Of a row of a node: id, version, and the count in the number of the job that it is."""
    value = rows.value_of(row) + bytes(_NODE.size + _LIFE_BYTES + 8)  # it may be a short one
    _, version, _, _, _, _, parts, _, _ = _NODE.unpack_from(value)
    job = 0
    if parts & _JOB:
        (job,) = _U64.unpack_from(value, _NODE.size + (_LIFE_BYTES if parts & _LIFE else 0))
    id = int.from_bytes(row[rows.HEAD.size : rows.HEAD.size + 8], "little")
    return id, version, job >> _JOB_SLOT_BITS
