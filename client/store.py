"""The synchronous face: `connect()` and `Store`.

Every call goes straight to the hot door (`crailpy._hot`), which does its I/O on the calling thread.
What cannot be decided there (opening connections, attaching servers, errors with words) comes back
here through `_open_lane`, `_attach`, `_error` and `_after_fork`.
"""

from __future__ import annotations

import time
from itertools import count

from crailpy import native
from crailpy.errors import (
    BatchError,
    ClosedError,
    CrailError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    from_status,
)

from . import listing
from .session import Address, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Any

    from crailpy.model import NodeInfo

    from .files import AnyFile

    Buffer = bytes | bytearray | memoryview

DEFAULT_ADDRESS = "crail://127.0.0.1:9060"
TRANSPORTS = (None, "shm", "tcp")
PAGE = 1024  # entries of one page of a listing

# operation codes and flags (native/include/crail/wire.h)
_PING, _STAT, _LIST, _SERVER = 1, 3, 4, 5
_MKDIR, _RENAME, _REMOVE, _RMTREE, _BYE = 20, 21, 22, 23, 24
_IF_ABSENT, _IF_VERSION, _PARENTS, _EXIST_OK, _OVERWRITE, _LEAF_ONLY = 1, 2, 4, 8, 16, 32
_MORE = 2

#: The value of `default` that means: raise NotFoundError.
RAISE: object = object()


class Store:
    """A connection to a store: the namespace, and the bytes behind it.

    Thread-safe. A context manager. In a forked child it opens a session of its own at its first
    call; it pickles as its address and options. Every call takes `timeout=` in seconds (None: the
    one given to `connect`) and raises a `CrailError` of `crailpy.errors`, among them always
    `DeadlineError`, `UnavailableError` and `ClosedError`.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        transport: str | None = None,
        namespace: str = "/",
    ) -> None:
        if transport not in TRANSPORTS:
            raise InvalidArgumentError(f"transport {transport!r} is none of {TRANSPORTS}")
        if not timeout >= 0:
            raise InvalidArgumentError(f"timeout {timeout!r} is no number of seconds")
        self._options: dict[str, Any] = {
            "token": token,
            "timeout": timeout,
            "transport": transport,
            "namespace": namespace,
        }
        self._timeout = timeout
        try:
            self._address = Address(address)
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
        prefix = namespace.rstrip("/")
        self._prefix = prefix
        self._closed = False
        self._tokens = count(1)
        self._session = self._new_session()
        self._hot = native.Client(self._session.core.address, self, prefix.encode(), timeout)
        try:
            self._call(_PING, 0, None)
        except BaseException:
            self.close()
            raise

    def _new_session(self) -> Session:
        return Session(
            self._address,
            token=self._options["token"],
            transport=self._options["transport"],
            timeout=self._timeout,
        )

    @property
    def address(self) -> str:
        """The address that this store was connected to."""
        return self._address.text

    # -- what the hot door asks for -------------------------------------------

    def _open_lane(self, number: int, mutating: bool, attempt: int, deadline: float) -> None:
        self._session.open_lane(number, mutating, attempt, deadline)

    def _attach(self, server: int, lane: int, need: int, deadline: float) -> None:
        self._session.attach(server, lane, need, deadline, self._describe)

    def _describe(self, server: int, timeout: float) -> bytes:
        return self._call(_SERVER, 0, None, arg0=server, timeout=timeout)[5]

    def _token(self) -> int:
        """A number for a hold: unique in this store, so also in its session."""
        return next(self._tokens)

    def _error(self, status: int, path: str, server: int) -> CrailError:
        return from_status(status, path=path or None, server=str(server) if server else None)

    def _after_fork(self) -> None:
        self._session.abandon()
        self._session = self._new_session()
        self._hot.rebind(self._session.core.address)

    # -- life -------------------------------------------------------------------

    def close(self) -> None:
        """Ends the session. May be called twice; views that are alive stay readable."""
        if self._closed:
            return
        self._closed = True
        hot = getattr(self, "_hot", None)
        if hot is None:
            return
        if self._session.number and self._session.core.is_of_this_process():
            try:
                self._call(_BYE, 0, None, timeout=min(1.0, self._timeout))
            except CrailError:
                pass  # then the namenode learns it from the sockets
            finally:
                self._disconnect()
        else:
            self._disconnect()

    def _disconnect(self) -> None:
        self._hot.rebind(0)
        self._session.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconnect, (self._address.text, self._options)

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<crailpy.Store {self._address.text}{self._prefix or '/'}{state}>"

    def _call(
        self,
        code: int,
        flags: int,
        key: str | None,
        data: Buffer = b"",
        arg0: int = 0,
        arg1: int = 0,
        timeout: float | None = None,
        *,
        count: int = 0,
        options: bytes = b"",
    ) -> tuple[int, int, int, int, int, bytes]:
        """One operation of wire.h: (version, size, kind, flags, count, data) of its result."""
        result: tuple[int, int, int, int, int, bytes] = self._hot.call(
            code, flags, key, data, count, options, arg0, arg1, timeout
        )
        return result

    # -- values -------------------------------------------------------------------

    def put(
        self,
        key: str,
        data: Buffer,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        parents: bool = True,
        timeout: float | None = None,
    ) -> int:
        """Stores `data` (anything with a contiguous buffer) under `key`, atomically.

        Returns the new version: unique and increasing, not consecutive. `if_absent`: only if there
        is nothing there (ExistsError). `if_version`: only over that version (VersionConflictError;
        0 means absent). Raises IsContainerError, InvalidPathError, NotFoundError (no parent and
        `parents` is false), OutOfSpaceError.
        """
        flags = _PARENTS if parents else 0
        if if_absent:
            flags |= _IF_ABSENT
        if if_version is not None:
            flags |= _IF_VERSION
        version: int = self._hot.put(key, data, flags, if_version or 0, timeout)
        return version

    def get(self, key: str, *, default: Any = RAISE, timeout: float | None = None) -> Any:
        """The value of `key` as bytes; `default`, where given, if there is none.

        Raises NotFoundError, IsContainerError, DataLostError."""
        try:
            return self._hot.get(key, timeout)
        except NotFoundError:
            if default is RAISE:
                raise
            return default

    def get_view(self, key: str, *, timeout: float | None = None) -> native.View:
        """The value as a read-only buffer, without a copy where it lies in shared memory.

        The bytes stay what they are while the view or any buffer made from it lives, whatever
        happens to the key. Errors as `get`."""
        view: native.View = self._hot.get_view(key, timeout)
        return view

    def get_into(
        self, key: str, buffer: Any, *, offset: int = 0, timeout: float | None = None
    ) -> int:
        """Copies the value from byte `offset` on into `buffer`; returns the bytes written.

        Raises InvalidArgumentError if the buffer is shorter than that; else as `get`."""
        count: int = self._hot.get_into(key, buffer, offset, timeout)
        return count

    def get_range(
        self, key: str, offset: int, length: int, *, timeout: float | None = None
    ) -> bytes:
        """Up to `length` bytes of the value from `offset` on; fewer at its end. Errors as `get`."""
        data: bytes = self._hot.get_range(key, offset, length, timeout)
        return data

    def put_many(
        self,
        items: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]],
        *,
        if_absent: bool = False,
        parents: bool = True,
        timeout: float | None = None,
    ) -> list[int]:
        """Puts every (key, data) in order; returns their versions. Atomic per key, not together.

        Raises BatchError, whose `.results` has a version or an error for each item."""
        pairs = list(items.items() if hasattr(items, "items") else items)
        flags = (_PARENTS if parents else 0) | (_IF_ABSENT if if_absent else 0)
        results: list[Any] = []
        at = 0
        while True:
            at = self._hot.put_many(pairs, at, results, flags, timeout)
            if at == len(pairs):
                break
            try:  # a value too large to travel in a vector
                key, data = pairs[at]
                results.append(self._hot.put(key, data, flags, 0, timeout))
            except CrailError as error:
                results.append(error)
            at += 1
        return _all_or_batch_error(results)

    def get_many(
        self, keys: Iterable[str], *, missing: str = "raise", timeout: float | None = None
    ) -> list[Any]:
        """The values of `keys` in order, as bytes; with missing="none", None for absent ones.

        Raises BatchError, whose `.results` has a value or an error for each key."""
        if missing not in ("raise", "none"):
            raise InvalidArgumentError(f'missing={missing!r}: "raise" or "none"')
        keys = list(keys)  # ours: the caller may change his own meanwhile
        values, again = self._hot.get_many(keys, missing == "none", timeout)
        for i in again:  # overwritten between the answer and the copy
            try:
                values[i] = self._hot.get(keys[i], timeout)
            except NotFoundError as error:
                values[i] = None if missing == "none" else error
            except CrailError as error:
                values[i] = error
        return _all_or_batch_error(values)

    def delete(self, key: str, *, missing_ok: bool = False, timeout: float | None = None) -> None:
        """Deletes a value. Raises NotFoundError (unless `missing_ok`), IsContainerError."""
        try:
            self._call(_REMOVE, _LEAF_ONLY, key, timeout=timeout)
        except NotFoundError:
            if not missing_ok:
                raise

    def delete_many(self, keys: Iterable[str], *, timeout: float | None = None) -> None:
        """Deletes every key; absent ones are no error. Raises BatchError for other failures."""
        keys = list(keys)
        absent = NotFoundError.status
        failed = [
            None if not r[0] or -r[0] == absent else self._error(-r[0], key, 0)
            for key, r in zip(
                keys, self._hot.call_many(_REMOVE, _LEAF_ONLY, keys, timeout), strict=True
            )
        ]
        _all_or_batch_error(failed)

    def exists(self, key: str, *, timeout: float | None = None) -> bool:
        """Whether there is anything at `key`."""
        try:
            self._call(_STAT, 0, key, timeout=timeout)
        except NotFoundError:
            return False
        return True

    def stat(self, path: str, *, timeout: float | None = None) -> NodeInfo:
        """Facts about a node. Raises NotFoundError."""
        return listing.node_info(path, self._call(_STAT, 0, path, timeout=timeout)[5])

    def stat_many(
        self, paths: Iterable[str], *, timeout: float | None = None
    ) -> list[NodeInfo | None]:
        """Facts about each path, in order; None for absent ones."""
        paths = list(paths)
        return [
            None if r[0] else listing.node_info(path, r[6])
            for path, r in zip(paths, self._hot.call_many(_STAT, 0, paths, timeout), strict=True)
        ]

    # -- tree -----------------------------------------------------------------------

    def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Makes a directory. Raises ExistsError, NotFoundError (no parent), NotContainerError."""
        flags = (_PARENTS if parents else 0) | (_EXIST_OK if exist_ok else 0)
        self._call(_MKDIR, flags, path, timeout=timeout)

    def rename(
        self, src: str, dst: str, *, overwrite: bool = False, timeout: float | None = None
    ) -> None:
        """Moves a node and all below it, atomically and in constant time.

        Raises NotFoundError, ExistsError, NotEmptyError, IsContainerError, NotContainerError,
        InvalidArgumentError (into itself)."""
        if not isinstance(dst, str):
            raise TypeError(f"a path is a str, not {type(dst).__name__}")
        to = (self._prefix + dst).encode("utf-8", "surrogatepass")
        self._call(_RENAME, _OVERWRITE if overwrite else 0, src, to, timeout=timeout)

    def remove(self, path: str, *, timeout: float | None = None) -> None:
        """Removes a value or an empty directory. Raises NotFoundError, NotEmptyError."""
        self._call(_REMOVE, 0, path, timeout=timeout)

    def rmtree(self, path: str, *, timeout: float | None = None) -> None:
        """Removes a node and all below it; it is gone at once. Raises NotFoundError."""
        self._call(_RMTREE, 0, path, timeout=timeout)

    def listdir(self, path: str = "/", *, timeout: float | None = None) -> list[str]:
        """The names in a directory, in byte order. Raises NotFoundError, NotContainerError."""
        names: list[str] = []
        for page in self._pages(path, timeout):
            names.extend(listing.names(page))
        return names

    def scandir(self, path: str = "/", *, timeout: float | None = None) -> Iterator[NodeInfo]:
        """NodeInfo of each entry in name order, a page at a time. Errors as `listdir`.

        What was there throughout appears exactly once; changes meanwhile may or may not."""
        for page in self._pages(path, timeout):
            yield from listing.entries(path, page)

    def _pages(self, path: str, timeout: float | None) -> Iterator[bytes]:
        cursor = b""
        while True:
            _, _, _, flags, count, page = self._call(
                _LIST, 0, path, cursor, arg0=PAGE, timeout=timeout
            )
            if count:
                yield page
            if not flags & _MORE:
                return
            cursor = listing.names(page)[-1].encode()

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
        """Counters of this process's client core."""
        return self._session.core.stats()


def _all_or_batch_error(results: list[Any]) -> list[Any]:
    failed = sum(isinstance(r, CrailError) for r in results)
    if not failed:
        return results
    first = next(r for r in results if isinstance(r, CrailError))
    raise BatchError(
        f"{failed} of {len(results)} failed, the first with: {first}", results=results
    ) from first


def _reconnect(address: str, options: dict[str, Any]) -> Store:
    return Store(address, **options)


def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    timeout: float = 10.0,
    transport: str | None = None,
    namespace: str = "/",
) -> Store:
    """Connects to a store.

    `address`: "crail://host:port[,host:port]" or "crail+unix:///path"; None: $CRAILPY_ADDRESS, then
    the configuration file, then the local default. `timeout`: default deadline of every call in
    seconds. `transport`: None (the best), "shm" or "tcp". `namespace`: every path is below it.
    Raises UnavailableError, AuthError, InvalidArgumentError.
    """
    if address is None or token is None:
        from crailpy import config

        settings = config.client_settings()
        address = address or settings["address"]
        token = token or settings["token"]
    return Store(address, token=token, timeout=timeout, transport=transport, namespace=namespace)
