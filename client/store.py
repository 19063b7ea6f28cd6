"""The synchronous face: `connect()` and `Store`. Its calls stand by theme in values.py, tree.py,
waiting.py and lifetimes.py, on the ground of connection.py."""

from __future__ import annotations

import time

from crailpy.errors import (
    ClosedError,
    ExistsError,
    InvalidArgumentError,
    IsContainerError,
    VersionConflictError,
)

from . import requests
from .connection import TIMEOUT_DEFAULT
from .lifetimes import Lifetimes
from .tree import Tree
from .values import Values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .compute import Shuffle
    from .compute.broadcasts import Broadcast
    from .compute.models import Model
    from .containers import Queue, Table
    from .files import AnyFile
    from .multifile import MultiFile


class Store(Values, Tree, Lifetimes):
    """A connection to a store: the namespace, and the bytes behind it.

    Thread-safe. A context manager. In a forked child it opens a session of its own at its first
    call; it pickles as its address and options. Every call takes `timeout=` in seconds (None: the
    one given to `connect`) and raises a `CrailError` of `crailpy.errors`, among them always
    `DeadlineError`, `UnavailableError` and `ClosedError`.
    """

    # -- files ------------------------------------------------------------------------

    def open(
        self,
        path: str,
        mode: str = "rb",
        *,
        follow: bool = False,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        timeout: float | None = None,
        **placement: Any,
    ) -> AnyFile:
        """A file object: modes r, w, x, a, each with + and with b or text, as builtin open().

        It reads one version, whatever happens to the path meanwhile. What is written appears at
        `close()`, as one version; leaving a `with` block by an exception, and `discard()`, publish
        nothing. "r+" raises VersionConflictError at close() if another version was published
        meanwhile. "a" has the append right of the file until it is closed: another appender waits
        for it, up to its deadline. `follow` (mode "rb"): reads a file that is still being written,
        up to its end; DataLostError when it is discarded. `buffering`, `encoding`, `errors` and
        `newline` as for open(). Raises NotFoundError, ExistsError (mode x), IsContainerError,
        InvalidArgumentError, OutOfSpaceError."""
        from .files import open_file

        return open_file(
            self, path, mode, follow=follow, buffering=buffering, encoding=encoding, errors=errors,
            newline=newline, timeout=timeout, placement=placement,
        )  # fmt: skip

    def truncate(self, path: str, size: int, *, timeout: float | None = None) -> None:
        """Cuts the value to `size` bytes, or fills it up with zeros, as a new version; what has
        that size stays as it is, with its version. The timeout is of all that it takes. Raises
        NotFoundError, IsContainerError, InvalidArgumentError."""
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        size = requests.unsigned(size, "size")
        if size <= requests.INLINE_MAX:
            try:
                self._run(requests.truncate(path, size), timeout)
                return
            except InvalidArgumentError:
                pass  # the value lies in extents
        if self._breaker is None:
            self._truncate_by_file(path, size, deadline)
        else:
            self._breaker.write(self._truncate_by_file, path, size, deadline)

    def _truncate_by_file(self, path: str, size: int, deadline: float) -> None:
        from .files import File
        from .opened import Mode

        while True:
            try:
                with File(self, path, Mode("r+b", path), None, {}, deadline=deadline) as file:
                    file.truncate(size)
                return
            except VersionConflictError:  # it was changed meanwhile
                if time.monotonic() >= deadline:
                    raise

    def touch(
        self,
        path: str,
        *,
        exist_ok: bool = True,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> None:
        """Makes an empty value where there is nothing; else it counts as changed now. Raises
        ExistsError (unless `exist_ok`), NotFoundError (no parent and `parents` is false)."""
        try:
            flags, base = requests.conditions(requests.PARENTS if parents else 0, True, None)
            door = self._hot if exist_ok else self._door
            self._put(door.put, path, b"", flags, base, timeout, placement)
        except (ExistsError, IsContainerError):
            if not exist_ok:
                raise
            self._run(requests.set_attributes(path, {}, b""), timeout)

    # -- containers with a face of their own --------------------------------------------

    def table(
        self, path: str, create: bool = True, *, timeout: float | None = None, **placement: Any
    ) -> Table:
        """The table at `path`, made where there is none (unless `create` is false: NotFoundError):
        a mapping of str to bytes. `placement` holds for what is put in. Raises ExistsError for
        another kind of node."""
        from .containers import Table, open_container

        open_container(self, path, create, requests.TABLE, "table", timeout, placement)
        return Table(self, path, timeout, placement)

    def queue(
        self, path: str, create: bool = True, *, timeout: float | None = None, **placement: Any
    ) -> Queue:
        """The queue at `path`, made where there is none (unless `create` is false: NotFoundError).
        `placement` holds for what is put in. Raises ExistsError for another kind of node."""
        from .containers import Queue, open_container

        open_container(self, path, create, requests.QUEUE_KIND, "queue", timeout, placement)
        return Queue(self, path, timeout, placement)

    def multifile(
        self, path: str, create: bool = True, *, timeout: float | None = None, **placement: Any
    ) -> MultiFile:
        """The multifile at `path`, made where there is none (unless `create` is false:
        NotFoundError). `placement` holds for its parts. Raises ExistsError for another kind of
        node."""
        from .containers import open_container
        from .multifile import MultiFile

        open_container(self, path, create, requests.MULTIFILE, "multifile", timeout, placement)
        return MultiFile(self, path, timeout, placement)

    # -- compute ------------------------------------------------------------------------

    def shuffle(self, path: str, *, partitions: int, **placement: Any) -> Shuffle:
        """The shuffle at the directory `path`, where map tasks leave their output by partition and
        reduce tasks read it: see `Shuffle`. It costs no request; the first map output makes the
        directory. `placement` holds for the outputs. Raises InvalidArgumentError."""
        from .compute.shuffle import Shuffle

        return Shuffle(self, path, partitions, placement)

    def broadcast(
        self, path: str, obj: Any, *, timeout: float | None = None, **placement: Any
    ) -> Broadcast:
        """Stores `obj` at `path` and gives a small handle whose `.value` it is in any process, see
        `crailpy.client.compute.broadcast`."""
        from .compute.broadcasts import broadcast

        return broadcast(self, path, obj, timeout=timeout, **placement)

    def reduce(
        self,
        path: str,
        array: Any,
        n: int,
        op: str = "sum",
        *,
        rank: int | None = None,
        round: int | None = None,
        out: Any = None,
        timeout: float | None = None,
        **placement: Any,
    ) -> Any:
        """The sum of the arrays of `n` contributors, for each of them; see
        `crailpy.client.compute.reduce`."""
        from .compute.reductions import reduce

        return reduce(
            self, path, array, n, op, rank=rank, round=round, out=out, timeout=timeout, **placement
        )

    def model(
        self, path: str, create: bool = True, *, timeout: float | None = None, **placement: Any
    ) -> Model:
        """Named tensors that many processes change and read, see `crailpy.client.compute.model`."""
        from .compute.models import model

        return model(self, path, create, timeout=timeout, **placement)

    # -- facts --------------------------------------------------------------------------

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Facts about the whole store: namenode counters, servers, sessions."""
        if self._closed:
            raise ClosedError("the store is closed")
        limit = self._timeout if timeout is None else timeout
        result: dict[str, Any] = self._session.admin("status", {}, time.monotonic() + limit)
        return result

    def check(self, *, timeout: float | None = None) -> str | None:
        """Has the namenode walk its whole tree and every granule; requests wait meanwhile.

        Returns None, or the sentence that says which invariant is broken."""
        limit = self._timeout if timeout is None else timeout
        found = self._session.admin("check", {}, time.monotonic() + limit)
        return None if found["ok"] else str(found["why"])

    def client_stats(self) -> dict[str, int]:
        """Counters of this process's client core; with on_unavailable="miss" also `reads_missed`,
        `writes_dropped` and `breaker_opened`."""
        counts = self._session.core.stats()
        if self._breaker is not None:
            counts |= self._breaker.counts()
        return counts


def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    timeout: float = TIMEOUT_DEFAULT,
    transport: str | None = None,
    namespace: str = "/",
    ring: bool | None = None,
    on_unavailable: str = "raise",
) -> Store:
    """Connects to a store.

    `address`: "crail://host:port[,host:port]" or "crail+unix:///path"; None: $CRAILPY_ADDRESS, then
    the configuration file, then the local default. `timeout`: default deadline of every call in
    seconds. `transport`: None (the best), "shm" or "tcp". Where these are not given:
    $CRAILPY_TIMEOUT and $CRAILPY_TRANSPORT, then the configuration file. `namespace`: every path
    is below it. `ring`: False for lanes that use their sockets also on the namenode's host; None:
    $CRAILPY_RING, then the configuration file, then True.
    `on_unavailable`: "raise", or "miss": while the store cannot be reached, reads report that there
    is nothing (NotFoundError, `default`, None, False) and writes are dropped, `put` giving version
    0; after a failure nobody waits for it until a single call has found it back. Both are counted
    (`client_stats`). What would be a lie then raises as ever: what is conditional (`if_absent`,
    `if_version`), incr, files, queues, waits, barriers, watches, jobs (docs/NAMESPACE.md).
    Raises UnavailableError, AuthError, InvalidArgumentError.
    """
    from crailpy import config

    settings = config.client_settings()
    ring = settings["ring"] if ring is None else ring
    return Store(
        settings["address"] if address is None else address,
        token=token or settings["token"],
        timeout=settings["timeout"] if timeout is TIMEOUT_DEFAULT else timeout,
        transport=transport or settings["transport"],
        namespace=namespace,
        ring=ring,
        on_unavailable=on_unavailable,
    )
