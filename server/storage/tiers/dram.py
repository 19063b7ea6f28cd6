"""The dram tier: blocks in named shared memory, so that a restarted process finds them again.

A server's folder, open to its user only, holds

    state.json   who this memory is: server id, incarnation, region sizes, the boot it was made in
    lock         flock'd by the process that serves it
    region-N     memory of region N (maybe in another folder: a mount with huge pages)
    gen-N        its generations, a u64 per granule
    use-*        use tables of processes that have the regions mapped
    shm.sock     where they got them

state.json is written last and atomically: without it there is nothing to come back to.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
from typing import Any

from crailpy import native
from crailpy.errors import ExistsError, InvalidArgumentError, OutOfSpaceError
from crailpy.folders import private_folder
from crailpy.units import format_size

log = logging.getLogger("crailpy.storage")

GRANULE = 4096
RESERVE = 0.05  # of the file system's free bytes: not for us
REGIONS_MAX = 64
# The names that we give. A folder may hold files of others, too: those are not ours to touch.
MEMORY = re.compile(r"(region|gen)-\d+|use-\d+-\d+")
TABLE = re.compile(r"use-\d+-\d+")


class DramTier:
    """The memory of one storage server and what names it. open(), attach(), then close()."""

    name = "dram"

    def __init__(
        self, folder: str, memory_folder: str | None, *, dram: int, region_max: int
    ) -> None:
        self.folder = private_folder(folder)
        self._memory_folder = private_folder(memory_folder) if memory_folder else folder
        self._sizes = region_sizes(dram, region_max)
        self._lock = lock_folder(self.folder)
        self._tables = 0
        self.server = ""
        self.incarnation = 0
        self.registered = False  # has a namenode ever known this memory?

    # -- what is there -------------------------------------------------------------------------

    @property
    def granules(self) -> list[int]:
        """The size of each region."""
        return list(self._sizes)

    def _memory(self, region: int) -> str:
        return os.path.join(self._memory_folder, f"region-{region}")

    def _generations(self, region: int) -> str:
        return os.path.join(self.folder, f"gen-{region}")

    @property
    def socket_path(self) -> str:
        """Where processes of this host get the regions."""
        return os.path.join(self.folder, "shm.sock")

    def open(self, server: str) -> bool:
        """Finds the memory of an earlier process, or makes it. True: found. `server` is the id of a
        new one. Raises OutOfSpaceError, OSError."""
        if self._load():
            log.info("found the memory of %s again", self.server)
            return True
        self.server = server
        self.fresh()
        return False

    def _load(self) -> bool:
        try:
            with open(os.path.join(self.folder, "state.json")) as file:
                state = json.load(file)
            self.server = state["server"]
            same = state["boot"] == _boot() and state["regions"] == self._sizes
            whole = same and all(
                os.path.getsize(self._memory(i)) >= n * GRANULE
                and os.path.getsize(self._generations(i)) >= n * 8
                for i, n in enumerate(self._sizes)
            )
            if not whole:
                log.warning("the memory in %s is of other sizes: made anew", self.folder)
                return False
            self.incarnation = state["incarnation"]
            self.registered = state["registered"]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: state.json: %s: made anew", self.folder, error)
            return False
        return True

    def _save(self) -> None:
        state: dict[str, Any] = {
            "server": self.server,
            "incarnation": self.incarnation,
            "registered": self.registered,
            "boot": _boot(),
            "regions": self._sizes,
        }
        path = os.path.join(self.folder, "state.json")
        with open(path + ".new", "w") as file:
            json.dump(state, file)
        os.replace(path + ".new", path)

    def remember_registered(self) -> None:
        """A namenode knows this memory from now on, so it has a history."""
        if not self.registered:
            self.registered = True
            self._save()

    def fresh(self) -> None:
        """Makes new, empty memory of a new incarnation. What maps the old one keeps it.

        Raises OutOfSpaceError if the file system has no room."""
        for region in range(len(self._sizes)):
            _raise_all(self._generations(region))
        self._unlink()
        self.incarnation = secrets.randbits(63) | 1
        self.registered = False
        self._check_room()
        for region, granules in enumerate(self._sizes):
            _make(self._memory(region), granules * GRANULE)
            _make(self._generations(region), granules * 8)

    def _check_room(self) -> None:
        wanted = sum(self._sizes) * GRANULE
        about = os.statvfs(self._memory_folder)
        free = about.f_bavail * about.f_frsize
        if wanted > free * (1 - RESERVE):
            raise OutOfSpaceError(
                f"{self._memory_folder} has {format_size(free)} free, {format_size(wanted)} are"
                f" wanted and {RESERVE:.0%} stay",
                hint="give a smaller --dram, or another --dram-dir",
            )

    # -- the core ------------------------------------------------------------------------------

    def attach(self, core: native.Storage) -> None:
        """Gives the regions to the core, which takes all their memory now. Raises OutOfSpaceError,
        OSError."""
        for region, granules in enumerate(self._sizes):
            memory = os.open(self._memory(region), os.O_RDWR | os.O_CLOEXEC)
            generations = os.open(self._generations(region), os.O_RDWR | os.O_CLOEXEC)
            try:
                core.region_add(memory, generations, granules, populate=True)
            finally:
                os.close(memory)
                os.close(generations)
        self._save()

    def adopt_tables(self, core: native.Storage) -> None:
        """Gives the core the use tables of processes that still map the memory. Raises CrailError;
        then nobody knows what they read, and the memory must not be served."""
        for name in os.listdir(self.folder):
            if TABLE.fullmatch(name):
                path = os.path.join(self.folder, name)
                try:
                    if core.use_adopt(path):
                        log.info("somebody still holds %s", path)
                except InvalidArgumentError:
                    if _is_locked(path):
                        raise
                    remove_file(path)  # whoever made it died before it was whole

    def new_table_path(self) -> str:
        """The name of another use table. An earlier process may have had our pid, in a container
        above all, and a reader may still hold its tables."""
        while True:
            self._tables += 1
            path = os.path.join(self.folder, f"use-{os.getpid()}-{self._tables}")
            if not os.path.exists(path):
                return path

    def descriptors(self, *, write: bool) -> list[int]:
        """What a process of this host maps: per region its memory for writing; or, for reading,
        memory and generations. The caller closes them."""
        fds: list[int] = []
        try:
            for region in range(len(self._sizes)):
                if write:
                    fds.append(os.open(self._memory(region), os.O_RDWR | os.O_CLOEXEC))
                else:
                    fds.append(os.open(self._memory(region), os.O_RDONLY | os.O_CLOEXEC))
                    fds.append(os.open(self._generations(region), os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    # -- the end -------------------------------------------------------------------------------

    def _unlink(self) -> None:
        remove_file(os.path.join(self.folder, "state.json"))
        for folder in {self.folder, self._memory_folder}:
            for name in os.listdir(folder):
                if MEMORY.fullmatch(name):
                    remove_file(os.path.join(folder, name))

    def remove(self) -> None:
        """Removes all that we have made, and the folders unless others have files there."""
        self._unlink()
        for name in ("state.json.new", "shm.sock", "lock"):
            remove_file(os.path.join(self.folder, name))
        for folder in {self.folder, self._memory_folder}:
            try:
                os.rmdir(folder)
            except OSError as error:
                log.info("%s stays: %s", folder, error.strerror)

    def close(self) -> None:
        """Lets go of the folder; the memory stays. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def lock_folder(folder: str) -> int:
    """The lock on a server's folder, as a descriptor. Raises ExistsError."""
    fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ExistsError(
            f"another storage server runs in {folder}", hint="give each its own --dir"
        ) from None
    return fd


def region_sizes(dram: int, region_max: int) -> list[int]:
    """How many granules each region gets: as few regions as possible, of nearly the same size.

    Raises InvalidArgumentError if there would be none or more than REGIONS_MAX."""
    granules = dram // GRANULE
    most = max(1, region_max // GRANULE)
    count = -(-granules // most)
    if not 0 < count <= REGIONS_MAX:
        raise InvalidArgumentError(
            f"{format_size(dram)} in regions of {format_size(region_max)} are {count} regions,"
            f" and there must be 1 to {REGIONS_MAX}"
        )
    return [granules // count + (i < granules % count) for i in range(count)]


def _raise_all(path: str) -> None:
    """Makes every location that anybody still has in these generations out of date, for whoever
    keeps the old memory mapped: nothing is found there and nothing is written there any more."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        left = os.fstat(fd).st_size
        while left > 0:
            left -= os.write(fd, b"\xff" * min(left, 1 << 20))
    finally:
        os.close(fd)


def _make(path: str, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def remove_file(path: str) -> None:
    """Removes it if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _is_locked(path: str) -> bool:
    """Does anybody hold a lock on the file? Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
