"""What makes the namenode's changes durable: one thread that asks the core for cuts and commits
them.

A cut is made every `group_interval` if something changed, and at once when somebody waits for it.
While a commit fails, its rows are kept and tried again; the core lets nobody change anything
meanwhile, so they do not grow (docs/adr/0004-durable-metadata.md).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
from collections.abc import Generator
from typing import Any

from crailpy import native

from . import rows
from .database import (
    Database,
    Folder,
    Reading,
    Superblock,
    damaged,
    superblock_of,
    words_of,
)

log = logging.getLogger("crailpy.namenode")

RETRY_FIRST = 0.05  # seconds until a commit that failed is tried again; doubles
RETRY_MAX = 1.0
LAST_TRIES = 3  # for a commit that fails while the namenode ends


class State:
    """A namenode's state folder: first superblock(), then, with the core that was made of it,
    load(). close() when the core is gone. What blocks says so."""

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)
        self.grants = -1
        self.sessions: set[int] = set()
        """The ids of those that were loaded."""
        self.servers: list[tuple[int, int, bytes]] = []
        """(number, state, description) of those that were loaded."""
        self.loaded: dict[str, int] = {}
        self.start_seconds: dict[str, float] = {}
        """What load() took: to read, to make the nodes, to put them together."""
        self.database = Database(self.folder.database)
        self._reading = Reading(self.folder.database)
        self._pieces: Generator[tuple[int, bytes]] | None = None
        self._first = b""
        try:
            self.grants = self.folder.open_grants()
        except BaseException:
            self.close()
            raise

    def superblock(self) -> Superblock:
        """What is kept of the cluster; in a new folder, a new one's. Raises OSError, ChecksumError,
        InvalidArgumentError. Blocks."""
        path = self.folder.database
        if self.folder.is_new():
            fresh = Superblock.fresh()
            self.database.create(fresh)
            return fresh
        self._pieces = self._reading.pieces()
        table, self._first = next(self._pieces, (0, b""))
        if table != rows.SUPER:
            self._refuse()
            raise damaged(path, "it has no superblock")
        return superblock_of(self._first, path)

    def load(self, core: native.Namenode) -> None:
        """Gives all rows to a core that does not serve yet. Raises ChecksumError, OSError.
        Blocks."""
        if self._pieces is None:
            self.loaded, _ = core.load_end()
            return
        begin = time.monotonic()
        making = 0.0
        for table, data in itertools.chain([(rows.SUPER, self._first)], self._pieces):
            start = time.monotonic()
            why = core.load(data)
            making += time.monotonic() - start
            if why is not None:
                raise damaged(self.folder.database, why)
            if table == rows.SESSION:
                self.sessions.update(int.from_bytes(key[1:], "big") for key, _ in rows.parse(data))
            elif table == rows.SERVER:
                self.servers += [rows.server_of(key, row) for key, row in rows.parse(data) if row]
        self._refuse()
        read = time.monotonic()
        self.loaded, why = core.load_end()
        if why is not None:
            raise damaged(self.folder.database, why)
        self.database.open()
        self.start_seconds = {
            "reading": read - begin - making,
            "making": making,
            "putting together": time.monotonic() - read,
        }

    def _refuse(self) -> None:
        if self._reading.problems:
            raise damaged(self.folder.database, words_of(self._reading.problems[0]))

    def close(self) -> None:
        """Lets others in. May be called twice."""
        if self._pieces is not None:
            self._pieces.close()
        self.database.close()
        if self.grants >= 0:
            os.close(self.grants)
            self.grants = -1
        self.folder.close()


class Persister:
    """The thread. Made on the event loop, which start() and the other coroutines run on."""

    def __init__(self, core: native.Namenode, state: State, *, interval: float) -> None:
        self._core = core
        self._database = state.database
        self._start_seconds = state.start_seconds
        self._interval = interval
        self._cut: native.Cut | None = None  # that is to be committed
        self._stopping = threading.Event()
        self._quiet = threading.Lock()  # held while the file changes, or is looked at
        self._thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._done = 0
        self.failure: str | None = None
        """Why the last commit failed, or None."""
        self.commit_seconds = 0.0
        """What the last one took."""

    # -- on the event loop ---------------------------------------------------------------------

    async def start(self) -> None:
        """Commits a first cut, so that the bounds of this life hold, and starts the thread. Raises
        what a commit raises."""
        await asyncio.to_thread(self._first)
        self._start_seconds["first commit"] = self.commit_seconds
        self._thread = threading.Thread(target=self._run, name="crail-persist")
        self._thread.start()

    async def durable(self, timeout: float) -> bool:
        """Waits until all that was done so far is durable. False: it was not in this time, in
        seconds."""
        epoch = self._core.cut_want()
        if epoch <= self._done:
            return True
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting[future] = epoch
        try:
            await asyncio.wait_for(future, timeout)
        except TimeoutError:
            return False
        finally:
            self._waiting.pop(future, None)
        return True

    async def close(self) -> None:
        """Commits what has changed, and ends the thread. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            self._core.cut_wake()
            await asyncio.to_thread(thread.join)

    def facts(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "path": self._database.path,
            "group_interval_s": self._interval,
            "rows": self._database.rows,
            "commit_s": round(self.commit_seconds, 4),
            "start_s": {what: round(took, 4) for what, took in self._start_seconds.items()},
            "failure": self.failure,
        }

    async def check(self) -> str | None:
        """Reads the whole database; None, or what is wrong. Commits wait meanwhile."""
        return await asyncio.to_thread(self._check)

    def _check(self) -> str | None:
        with self._quiet:
            reading = Reading(self._database.path)
            for _, data in reading.pieces():
                for key, row in rows.parse(data):
                    if row is None or not native.row_is_whole(row):
                        return f"{rows.name_of(key)}: its checksum is wrong"
        return words_of(reading.problems[0]) if reading.problems else None

    def _tell(self, epoch: int) -> None:
        self._done = max(self._done, epoch)
        for future, needed in list(self._waiting.items()):
            if needed <= self._done and not future.done():
                future.set_result(None)

    # -- on the thread -------------------------------------------------------------------------

    def _first(self) -> None:
        self._make()
        native.failpoint("bounds-new")
        error = self._commit()
        if error is not None:
            raise error
        native.failpoint("bounds-committed")

    def _run(self) -> None:
        pause = RETRY_FIRST
        due = time.monotonic() + self._interval
        while not self._stopping.is_set():
            if self._core.cut_wait(due - time.monotonic()) is None:
                break
            due = time.monotonic() + self._interval
            while not self._step() and not self._stopping.wait(pause):
                pause = min(pause * 2, RETRY_MAX)
            pause = RETRY_FIRST
        for _ in range(LAST_TRIES):  # what is kept, then what has changed since
            if self._step() and self._step():
                return
            time.sleep(RETRY_FIRST)
        log.error("the last changes are not durable: %s", self.failure)

    def _step(self) -> bool:
        """Makes a cut unless there is one, and commits it. False: that failed."""
        try:
            if self._cut is None:
                self._make()
        except Exception as error:  # no memory for the cut, perhaps: it is tried again
            self._fail(error)
            return False
        return self._commit() is None

    def _make(self) -> None:
        self._cut = self._core.cut_make()
        native.failpoint("cut-made")

    def _commit(self) -> Exception | None:
        cut = self._cut
        if cut is None:
            return None
        start = time.monotonic()
        try:
            with self._quiet:
                self._database.commit(cut.in_order())
        except Exception as error:  # the thread must not end: writers wait for it
            self._fail(error)
            self._core.cut_done(cut.epoch, False)
            return error
        native.failpoint("committed")
        self.commit_seconds = time.monotonic() - start
        if self.failure is not None:
            log.warning("commits succeed again")
            self.failure = None
        self._cut = None
        self._core.cut_done(cut.epoch, True)
        try:
            self._loop.call_soon_threadsafe(self._tell, cut.epoch)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits
        return None

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            log.error("a commit failed, changes wait until one succeeds: %r", error)
        self.failure = str(error) or repr(error)
