"""The file tier: blocks in a preallocated file or on a block device. They may be more than memory
holds, and survive a reboot.

The file holds everything (ADR 5):

    0          two superblocks of 4 KiB, written in turn: server id, incarnation, sizes, a checksum
    8 KiB      the generations of each region, a u64 per granule, in whole granules
    then       from a multiple of 1 MiB on, the granules of each region

It is locked (flock) by the process that serves it. A server's folder, open to its user only, holds
`lock`, and `data.sock`, where processes of this host reach the blocks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import secrets
import stat
from struct import Struct
from typing import Any
from zlib import crc32

from crailpy import native
from crailpy.errors import ExistsError, InvalidArgumentError, OutOfSpaceError
from crailpy.folders import private_folder
from crailpy.units import format_size

from .dram import GRANULE, REGIONS_MAX, RESERVE, lock_folder, region_sizes, remove_file

log = logging.getLogger("crailpy.storage")

FORMAT = 1
SUPERBLOCKS = 2
HEAD_BYTES = SUPERBLOCKS * GRANULE
DATA_ALIGNMENT = 1 << 20
_HEAD = Struct("<8sIIQ")  # magic, bytes of JSON behind it, their CRC-32, serial (the highest holds)
_MAGIC = b"CRAILFT1"
_ZEROS = bytes(DATA_ALIGNMENT)


class Layout:
    """Where everything lies in the file, from the sizes of the regions in granules."""

    def __init__(self, sizes: list[int]) -> None:
        at = HEAD_BYTES
        self.generations: list[int] = []
        for granules in sizes:
            self.generations.append(at)
            at += _round_up(granules * 8, GRANULE)
        self.generations_end = at
        at = _round_up(at, DATA_ALIGNMENT)
        self.data: list[int] = []
        for granules in sizes:
            self.data.append(at)
            at += granules * GRANULE
        self.size = at


class FileTier:
    """The file of one storage server. open(), attach(), then close().

    `capacity`: bytes for values; 0: what the file has already, or all of a device. Raises
    ExistsError (another process serves it), InvalidArgumentError (it is something else's),
    OSError."""

    name = "file"

    def __init__(self, folder: str, path: str, *, capacity: int, region_max: int) -> None:
        self.folder = private_folder(folder)
        self.path = path
        self.server = ""
        self.incarnation = 0
        self.registered = False  # has a namenode ever known this file?
        self._state = ""  # the cluster whose lasting state knows it
        self._capacity = capacity
        self._region_max = region_max
        self._sizes: list[int] = []
        self._serial = 0
        self._lock = lock_folder(self.folder)
        self._fd = -1
        try:
            self._fd = self._open_locked()
        except BaseException:
            self.close()
            raise

    def _open_locked(self) -> int:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except IsADirectoryError:
            raise InvalidArgumentError(f"{self.path} is a folder: name a file") from None
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise InvalidArgumentError(f"{self.path} is neither a file nor a block device")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ExistsError(
                f"another storage server serves {self.path}", hint="give each its own --path"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    # -- what is there -------------------------------------------------------------------------

    @property
    def granules(self) -> list[int]:
        """The size of each region."""
        return list(self._sizes)

    @property
    def socket_path(self) -> str:
        """Where processes of this host reach the blocks."""
        return os.path.join(self.folder, "data.sock")

    def open(self, server: str) -> bool:
        """Finds what an earlier process left in the file, or makes it. True: found. `server` is the
        id of a new one, "" any. Raises OutOfSpaceError, InvalidArgumentError, OSError."""
        state = self._load()
        if state is not None:
            self._check(state, server)
            self.server = state["server"]
            self.incarnation = state["incarnation"]
            self.registered = state["registered"]
            self._state = state.get("state", "")
            log.info("found the blocks of %s again in %s", self.server, self.path)
            return True
        self.server = server or secrets.token_hex(8)
        capacity = self._capacity or self._room_of_device()
        # nobody maps them: they may be larger than what was set for memory
        self._sizes = region_sizes(capacity, max(self._region_max, capacity // REGIONS_MAX * 2))
        self._allocate()
        self.fresh()
        return False

    def _size(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)  # of a device, too

    def _is_device(self) -> bool:
        return stat.S_ISBLK(os.fstat(self._fd).st_mode)

    def _room_of_device(self) -> int:
        if not self._is_device():
            raise InvalidArgumentError(
                f"{self.path} is new: how large is it to be?", hint="give --capacity, as 10GiB"
            )
        size = self._size()
        per_granule = GRANULE + 8
        granules = max(0, size - HEAD_BYTES - 2 * DATA_ALIGNMENT) // per_granule
        while granules and Layout([granules]).size > size:
            granules -= 1
        return granules * GRANULE

    def _load(self) -> dict[str, Any] | None:
        """The superblock that holds; None: there has never been one."""
        head = os.pread(self._fd, HEAD_BYTES, 0)
        found = [
            state
            for at in range(0, HEAD_BYTES, GRANULE)
            if (state := _parse(head[at : at + GRANULE])) is not None
        ]
        if found:
            state = max(found, key=lambda one: int(one["serial"]))
            self._serial = state["serial"]
            return state
        if any(head):
            ours = _MAGIC in head
            raise InvalidArgumentError(
                f"{self.path} has a superblock that is damaged" if ours
                else f"{self.path} is not empty, and no file of a storage server",
                hint="its first 8 KiB must be zeros if it is to be made anew",
            )  # fmt: skip
        return None

    def _check(self, state: dict[str, Any], server: str) -> None:
        """Is it what was asked for? It is never made anew in silence."""
        if state["format"] != FORMAT:
            raise InvalidArgumentError(
                f"{self.path} is of format {state['format']}, this crailpy has {FORMAT}"
            )
        if server and state["server"] != server:
            raise InvalidArgumentError(
                f"{self.path} is the file of storage server {state['server']!r}, not {server!r}",
                hint="leave --id out, or give another --path",
            )
        self._sizes = state["regions"]
        capacity = sum(self._sizes) * GRANULE
        if self._capacity and self._capacity // GRANULE * GRANULE != capacity:
            raise InvalidArgumentError(
                f"{self.path} holds {format_size(capacity)}, not {format_size(self._capacity)}",
                hint="leave --capacity out, or give another --path",
            )
        size = self._size()
        if size < Layout(self._sizes).size:
            raise InvalidArgumentError(
                f"{self.path} has been cut: {format_size(size)} are left of it"
            )

    # -- making it -----------------------------------------------------------------------------

    def _allocate(self) -> None:
        """Takes all the space now, so that no later write finds the file system full. Raises
        OutOfSpaceError; then a new file is gone again."""
        wanted, there = Layout(self._sizes).size, self._size()
        if self._is_device():
            if there < wanted:
                raise OutOfSpaceError(
                    f"{self.path} has {format_size(there)}, {format_size(wanted)} are wanted",
                    hint="give a smaller --capacity, or none",
                )
            return
        if there not in (0, wanted):
            raise InvalidArgumentError(
                f"{self.path} is not empty, and no file of a storage server",
                hint="name one that does not exist",
            )
        try:
            self._check_room(wanted)
            os.posix_fallocate(self._fd, 0, wanted)
            os.fsync(self._fd)
        except OSError as error:
            os.unlink(self.path)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            if isinstance(error, OutOfSpaceError):
                raise
            raise OutOfSpaceError(
                f"no room for {format_size(wanted)} in {self.path}: {error.strerror}",
                hint="give a smaller --capacity, or another --path",
            ) from None

    def _check_room(self, wanted: int) -> None:
        """Trying would fill the disk under the eyes of others."""
        about = os.fstatvfs(self._fd)
        free = about.f_bavail * about.f_frsize + os.fstat(self._fd).st_blocks * 512
        if about.f_blocks and wanted > free * (1 - RESERVE):  # some do not say
            raise OutOfSpaceError(
                f"{format_size(free)} are free where {self.path} is, {format_size(wanted)} are"
                f" wanted and {RESERVE:.0%} stay",
                hint="give a smaller --capacity, or another --path",
            )

    def fresh(self) -> None:
        """Begins a new incarnation: nothing that was there is found any more. Raises OSError."""
        self._write(_ZEROS[:HEAD_BYTES], 0)
        os.fsync(self._fd)
        layout = Layout(self._sizes)
        for at in range(HEAD_BYTES, layout.generations_end, len(_ZEROS)):
            self._write(_ZEROS[: layout.generations_end - at], at)
        os.fsync(self._fd)
        self.incarnation = secrets.randbits(63) | 1
        self.registered = False
        self._state = ""

    def _write(self, data: bytes, at: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], at + done)

    def _save(self) -> None:
        self._serial += 1
        state = {
            "format": FORMAT,
            "server": self.server,
            "incarnation": self.incarnation,
            "registered": self.registered,
            "state": self._state,
            "regions": self._sizes,
        }
        body = json.dumps(state).encode()
        block = _HEAD.pack(_MAGIC, len(body), crc32(body), self._serial) + body
        self._write(block.ljust(GRANULE, b"\0"), self._serial % SUPERBLOCKS * GRANULE)
        os.fsync(self._fd)

    def remember_registered(self, state: str) -> None:
        """A namenode knows these blocks from now on, so they have a history; `state`: the cluster
        whose state outlives it, "" if none does."""
        if not self.registered or self._state != state:
            self.registered = True
            self._state = state
            self._save()

    def check_state(self, state: str) -> None:
        """A namenode with this state does not know the blocks. May they be made anew for it? Raises
        InvalidArgumentError if they are another one's, which may come back for them."""
        if self._state and self._state != state:
            raise InvalidArgumentError(
                f"{self.path} holds values of the cluster {self._state}, whose state this namenode"
                " does not have",
                hint="start the namenode in the folder that it had, or give another --path",
            )

    # -- the core ------------------------------------------------------------------------------

    def attach(self, core: native.Storage) -> None:
        """Gives the regions to the core. Raises OSError."""
        layout = Layout(self._sizes)
        fd = open_direct(self.path)
        try:
            places = zip(layout.generations, layout.data, self._sizes, strict=True)
            for generations_at, data_at, granules in places:
                core.region_add_file(fd, generations_at, data_at, granules)
        finally:
            os.close(fd)
        self._save()

    # -- the end -------------------------------------------------------------------------------

    def remove(self) -> None:
        """Removes all that we have made; a device is only made empty."""
        if self._is_device():
            self._write(_ZEROS[:HEAD_BYTES], 0)
        else:
            remove_file(self.path)
        for name in ("data.sock", "lock"):
            remove_file(os.path.join(self.folder, name))
        try:
            os.rmdir(self.folder)
        except OSError as error:
            log.info("%s stays: %s", self.folder, error.strerror)

    def close(self) -> None:
        """Lets go of file and folder, when everything written is on the disk. May be called
        twice."""
        if self._fd >= 0:
            try:
                os.fsync(self._fd)
            except OSError as error:
                log.error("%s: %s", self.path, error)
            os.close(self._fd)
            self._fd = -1
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_direct(path: str) -> int:
    """A descriptor for reading and writing around the page cache, if the file system lets us, else
    through it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    else:
        try:
            with mmap.mmap(-1, GRANULE) as block:
                os.preadv(fd, [block], 0)
            return fd
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EINVAL:
                raise
    log.warning("%s: no direct I/O there: it goes through the page cache", path)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _parse(block: bytes) -> dict[str, Any] | None:
    """A superblock, if it is a whole one."""
    if len(block) < _HEAD.size:
        return None
    magic, size, crc, serial = _HEAD.unpack_from(block)
    body = block[_HEAD.size : _HEAD.size + size]
    if magic != _MAGIC or len(body) != size or crc32(body) != crc:
        return None
    state: dict[str, Any] = json.loads(body)
    return state | {"serial": serial}


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
