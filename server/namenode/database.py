"""The namenode's state folder: one LMDB file, the grant map, and the lock that lets in one process.

    metadata.mdb    rows (rows.py), one transaction for each cut
    grants.map      the core's (docs/adr/0004-durable-metadata.md)
    lock            held by whoever works on the folder

LMDB keeps no checksums of its own pages, and a page that is damaged can bring down whoever walks
over it. So an old file is read by a process of its own (reader.py), and opened here only when that
has found all rows that should be there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Protocol

import lmdb

from crailpy import native
from crailpy.errors import ChecksumError, ExistsError, InvalidArgumentError

from . import rows

log = logging.getLogger("crailpy.namenode")

FORMAT = 1
FILE = "metadata.mdb"
GRANTS = "grants.map"
LOCK = "lock"
MAP_FIRST = 1 << 30  # bytes of addresses, not of memory
MAP_STEP_MAX = 64 << 30
PAGE = 4096
READ_BYTES = 4 << 20  # in one piece
FULL_BYTES = 1 << 20  # a disk with less than this is full

PIECE = Struct("<BI")  # table, bytes: head of what the reader sends
_U32 = Struct("<I")


class Superblock:
    """What the database says of itself."""

    def __init__(self, cluster: str, key: bytes) -> None:
        self.cluster = cluster
        self.key = key

    @classmethod
    def fresh(cls) -> Superblock:
        """Of a new cluster."""
        return cls(secrets.token_hex(8), secrets.token_bytes(16))

    def items(self) -> list[tuple[bytes, bytes]]:
        """As rows."""
        return [
            rows.super_row("format", _U32.pack(FORMAT)),
            rows.super_row("cluster", self.cluster.encode()),
            rows.super_row("key", self.key),
        ]

    @classmethod
    def parse(cls, found: Mapping[bytes, bytes], path: str) -> Superblock:
        """Raises InvalidArgumentError for a format that is not ours, ChecksumError."""
        values = {name: found.get(rows.key_of(rows.SUPER, name.encode())) for name in SUPER}
        for name, row in values.items():
            if row is None or not native.row_is_whole(row):
                raise damaged(path, f"the row super {name!r} is missing or damaged")
        format, cluster, key = (rows.value_of(values[name] or b"") for name in SUPER)
        if len(format) != 4 or _U32.unpack(format)[0] != FORMAT:
            number = int.from_bytes(format, "little")
            raise InvalidArgumentError(
                f"{path} has format {number}, this crailpy knows {FORMAT}",
                hint="start the crailpy that wrote it",
            )
        if len(key) != 16:
            raise damaged(path, "the row super 'key' is damaged")
        return cls(cluster.decode(), key)


SUPER = ("format", "cluster", "key")


def damaged(path: str, what: str) -> ChecksumError:
    """The refusal of a state that cannot be trusted."""
    folder = os.path.dirname(path)
    return ChecksumError(
        f"{path} is damaged: {what}",
        hint=f"`crailpy fsck --dir {folder}` lists what is wrong, --repair says what it drops",
    )


def sync_folder(path: str) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Folder:
    """A state folder, locked for this process until close(). Raises OSError, ExistsError where
    another process works on it."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        self._lock = os.open(self.join(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ExistsError(
                f"another process works on {self.path}", hint="one namenode has one state folder"
            ) from None

    def join(self, name: str) -> str:
        """The path of a file in it."""
        return os.path.join(self.path, name)

    @property
    def database(self) -> str:
        """The path of the LMDB file."""
        return self.join(FILE)

    def is_new(self) -> bool:
        """Was nothing ever kept here? Raises ChecksumError where it was, and is gone: the grant map
        grows when the database is there."""
        if os.path.exists(self.database):
            return False
        grants = self.join(GRANTS)
        if os.path.exists(grants) and os.path.getsize(grants):
            raise ChecksumError(
                f"{self.database} is missing, and {GRANTS} says that it was there",
                hint="put it back; a new cluster begins in an empty folder",
            )
        return True

    def open_grants(self) -> int:
        """A descriptor of the grant map."""
        return os.open(self.join(GRANTS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Lets others in. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Changes(Protocol):
    """What a commit does, in the order of the keys; no key is put and gone."""

    def puts(self) -> Iterator[tuple[bytes, Any]]:
        """(key, row) of the rows that are written."""

    def gone(self) -> Iterator[bytes]:
        """The keys of rows that are deleted."""


class Table:
    """Changes of which there are few: rows by their keys."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self._rows = rows

    def puts(self) -> Iterator[tuple[bytes, bytes]]:
        """As in Changes."""
        return iter(sorted(self._rows.items()))

    def gone(self) -> Iterator[bytes]:
        """As in Changes."""
        return iter(())


class Database:
    """The LMDB file, for writing: one thread uses it from open() to close()."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._env: Any = None
        self.rows = 0
        """How many there are."""

    def open(self, *, new: bool = False) -> None:
        """Raises OSError, also where there is none and it is not `new`: LMDB would make one;
        ChecksumError."""
        size = 0 if new else os.path.getsize(self.path)
        try:
            self._env = lmdb.open(
                self.path,
                subdir=False,
                map_size=max(MAP_FIRST, 2 * size),
                max_dbs=0,
                lock=False,  # the folder has one
                mode=0o600,
            )
            with self._env.begin() as txn:
                self.rows = txn.stat()["entries"]
        except lmdb.Error as error:
            raise _explain(error, self.path) from error

    def create(self, superblock: Superblock) -> None:
        """Makes a new one. It has its name only when it is whole. Raises OSError."""
        final, self.path = self.path, self.path + ".new"
        try:
            if os.path.exists(self.path):
                os.unlink(self.path)
            self.open(new=True)
            self.commit([Table(dict(superblock.items()))])
            self.close()
            native.failpoint("state-made")
            os.rename(self.path, final)
        finally:
            self.path = final
        sync_folder(os.path.dirname(final))
        self.open()

    def commit(self, changes: Sequence[Changes]) -> None:
        """One transaction. All of it is durable afterwards, or nothing of it was done. Raises
        OSError, ChecksumError."""
        try:
            if self._env is None:
                self.open()
            while True:
                try:
                    self._apply(changes)
                    return
                except lmdb.MapFullError:
                    size = self._env.info()["map_size"]
                    self._env.set_mapsize(size + min(size, MAP_STEP_MAX))
        except lmdb.Error as error:
            self.close()  # whatever state it is in: opened anew, it is as the last commit left it
            raise _explain(error, self.path) from error

    def _apply(self, changes: Sequence[Changes]) -> None:
        with self._env.begin(write=True) as txn, txn.cursor() as cursor:
            for change in changes:
                deque(map(txn.delete, change.gone()), maxlen=0)
                native.failpoint("commit-begun")
                cursor.putmulti(change.puts())
            self.rows = txn.stat()["entries"]
            native.failpoint("commit-put")

    def close(self) -> None:
        """May be called twice."""
        if self._env is not None:
            self._env.close()
            self._env = None


def _explain(error: lmdb.Error, path: str) -> OSError:
    """LMDB's errors as what they are: damage, or the system's."""
    text = str(error)
    if os.strerror(errno.EIO) in text and _is_full(path):
        text = os.strerror(errno.ENOSPC)  # LMDB's word for a write that was cut short
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOMEM):
        if os.strerror(number) in text:
            return OSError(number, os.strerror(number), path)
    if isinstance(error, lmdb.VersionMismatchError | lmdb.InvalidError | lmdb.CorruptedError):
        return damaged(path, text)
    return OSError(errno.EIO, text, path)


def _is_full(path: str) -> bool:
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < FULL_BYTES


# ---- reading, in another process ---------------------------------------------------------------


class Reading:
    """All rows of a database, as another process finds them. The superblock comes first."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[dict[str, str]] = []
        """What is wrong, when all was read: `row` and `why`."""
        self.counted = 0
        self.is_whole = False
        """Did its reader come to an end? Else nobody knows what there is."""
        self.lost = 0
        """Rows that could not be read, whatever they were."""

    def pieces(self, *, salvage: bool = False) -> Generator[tuple[int, bytes]]:
        """(table, rows behind each other). The problems are known at the end. With `salvage` rows
        come although others are missing."""
        command = [sys.executable, "-m", "crailpy.server.namenode.reader", self.path]
        process = subprocess.Popen(
            command + ["--salvage"] * salvage,
            process_group=0,  # Ctrl-C is ours alone
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            whole = False
            while head := process.stdout.read(PIECE.size):
                if len(head) < PIECE.size:
                    break
                table, size = PIECE.unpack(head)
                data = process.stdout.read(size)
                if len(data) < size:
                    break
                if table == 0:
                    said = json.loads(data)
                    self.problems += said["problems"]
                    self.counted, self.lost = said["rows"], said["lost"]
                    whole = self.is_whole = True
                    break
                yield table, data
            said_last = process.stderr.read().decode(errors="replace").strip().splitlines()
            code = process.wait()
            if not whole:
                why = f"signal {-code}" if code < 0 else (said_last or ["no reason given"])[-1]
                self.problems.append({"row": "", "why": f"whoever reads its pages ends: {why}"})
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def superblock_of(data: bytes, path: str) -> Superblock:
    """Of the first piece that the reader sends. Raises InvalidArgumentError, ChecksumError."""
    found = {key: row for key, row in rows.parse(data) if row is not None}
    return Superblock.parse(found, path)


def words_of(problem: Mapping[str, str]) -> str:
    """A problem in one line."""
    return ": ".join(filter(None, (problem["row"], problem["why"])))
