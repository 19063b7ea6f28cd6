"""Containers with a face of their own: tables and queues."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from struct import Struct

from crailpy.errors import (
    ClosedError,
    DeadlineError,
    InvalidPathError,
    NotContainerError,
    NotFoundError,
    SessionLostError,
    StaleLocationError,
)

from . import listing, requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .requests import Buffer, Result
    from .store import Store

ITEM_NUMBER = Struct("<Q")
ITEM_WENT_BACK = "the session that had taken the item was lost: it went back to its queue"
TAKE_AGAIN = "take one again: it may be this one"


def take_parents(placement: dict[str, Any]) -> bool:
    """Checks the keywords, and takes the one out that is not of pack()."""
    from .placement import pack

    parents = bool(placement.pop("parents", True))
    pack(**placement)
    return parents


def open_container(
    store: Store,
    path: str,
    create: bool,
    kind: int,
    name: str,
    timeout: float | None,
    placement: dict[str, Any],
) -> None:
    """Makes the container, or sees that it is there. Takes `parents` out of `placement`, which is
    of what is put in; it is checked here already."""
    parents = take_parents(placement)
    if create:
        store._run(requests.mkdir(path, parents=parents, exist_ok=True, kind=kind), timeout)
    elif store._run(requests.stat(path), timeout).kind != name:
        raise NotContainerError(f"the node is no {name}", path=path)


def table_key(path: str, key: str) -> str:
    """The path of a table's item. Raises InvalidPathError."""
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    if not key or "/" in key:
        raise InvalidPathError("a key is one component of a path", path=key, hint="")
    return f"{path}/{key}"


class Table(MutableMapping[str, bytes]):
    """A mapping of str to bytes that all clients share, in the byte order of its keys. A key is
    what a component of a path can be (InvalidPathError). Iteration goes by pages; what was there
    throughout appears exactly once. A missing key is a NotFoundError, which is a KeyError."""

    def __init__(
        self, store: Store, path: str, timeout: float | None, placement: dict[str, Any]
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._placement = placement
        self.path = path

    def _key(self, key: str) -> str:
        return table_key(self.path, key)

    def __getitem__(self, key: str) -> bytes:
        value: bytes = self._store.get(self._key(key), timeout=self._timeout)
        return value

    def __setitem__(self, key: str, value: Buffer) -> None:
        self._store.put(
            self._key(key), value, parents=False, timeout=self._timeout, **self._placement
        )

    def __delitem__(self, key: str) -> None:
        self._store.delete(self._key(key), timeout=self._timeout)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._store.exists(self._key(key), timeout=self._timeout)

    def __len__(self) -> int:
        return self._store.stat(self.path, timeout=self._timeout).size

    def __iter__(self) -> Iterator[str]:
        for page in self._store._pages(self.path, self._timeout):
            yield from listing.names(page)

    def _pages(self) -> Iterator[tuple[list[str], list[Any]]]:
        """Keys and values, a page at a time; a value that went meanwhile is None."""
        for page in self._store._pages(self.path, self._timeout):
            keys = listing.names(page)
            paths = [f"{self.path}/{key}" for key in keys]
            yield keys, self._store.get_many(paths, missing="none", timeout=self._timeout)

    def items(self) -> Iterator[tuple[str, bytes]]:  # type: ignore[override]
        """(key, value) of each, in order; a page is one request."""
        for keys, values in self._pages():
            yield from ((k, v) for k, v in zip(keys, values, strict=True) if v is not None)

    def values(self) -> Iterator[bytes]:  # type: ignore[override]
        """The values in the order of their keys; a page is one request."""
        return (value for _, value in self.items())

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Puts all of a mapping, or of pairs, in vectors; each key by itself, not together."""
        pairs = list(dict(other, **more).items())
        self._store.put_many(
            [(self._key(key), value) for key, value in pairs],
            parents=False,
            timeout=self._timeout,
            **self._placement,
        )

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<crailpy.Table {self.path}>"


class Queue:
    """A queue that all clients share: first in, first out. An item that was taken and not
    acknowledged goes back to its old place when its taker releases it or is gone: so each is
    delivered at least once."""

    def __init__(
        self, store: Store, path: str, timeout: float | None, placement: dict[str, Any]
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._placement = placement
        self.path = path

    def put(self, data: Buffer, *, timeout: float | None = None) -> int:
        """Adds an item of any size behind the others; returns its version. Raises NotFoundError,
        OutOfSpaceError."""
        limit = self._timeout if timeout is None else timeout
        options, wait_ms = b"", 0
        if self._placement or self._store._homes:
            options, wait_ms, limit = self._store._placed(self.path, self._placement, limit)
        try:
            version: int = self._store._door.put(
                self.path, data, requests.QUEUE, 0, options, wait_ms, limit
            )
        except NotFoundError as error:
            requests.explain_queue(error, options)
            raise
        return version

    def get(self, *, wait: float | None = None, timeout: float | None = None) -> Item:
        """Takes the oldest free item. `wait`: seconds to wait for one, beyond the timeout; none at
        their end: DeadlineError. Without `wait`, none: NotFoundError."""
        limit = self._timeout if timeout is None else timeout
        token = self._store._token()
        deadline = time.monotonic() + (wait or 0.0)
        deadline += self._store._timeout if limit is None else limit
        try:
            while True:
                result = self._store._run(requests.take(self.path, token, wait), limit)
                try:
                    return self._item(token, result, limit)
                except StaleLocationError:  # the same token finds the same item, where it is now
                    if time.monotonic() >= deadline:
                        raise DeadlineError(path=self.path) from None
        except NotFoundError:
            raise
        except BaseException:
            self._store._end(token)  # an item may be ours without our knowing
            raise

    def _item(self, token: int, result: Result, timeout: float | None) -> Item:
        version, size, _, flags, _, data = result
        (number,) = ITEM_NUMBER.unpack_from(data)
        body = data[ITEM_NUMBER.size :]
        if not flags & requests.INLINE:
            pipe = self._store._door.pipe(self.path)
            try:
                body = pipe.read_bytes(body, size, 0, size, timeout)
            finally:
                pipe.close()
        return Item(self._store, token, number, version, body)

    def __len__(self) -> int:
        """How many items there are, taken ones too."""
        return self._store.stat(self.path, timeout=self._timeout).size

    def __repr__(self) -> str:
        return f"<crailpy.Queue {self.path}>"


class Item:
    """What was taken from a queue: `.data` (bytes), `.number` (its place: items count up). It is
    yours until `ack()` (gone for good), `release()` (back to its place), or the end of your
    session. As a context manager: acknowledged at the end of the block, released by an exception.
    """

    def __init__(self, store: Store, token: int, number: int, version: int, data: bytes) -> None:
        self._store = store
        self._token = token
        self._session = store._session.number  # which has taken it
        self._done = False
        self.number = number
        self.version = version
        self.data = data

    def ack(self, *, timeout: float | None = None) -> None:
        """It was dealt with and goes for good. Raises SessionLostError if your session was lost
        meanwhile, so that the item went back to its queue; NotFoundError if the queue went;
        ClosedError after ack() or release()."""
        if self._done:
            raise ClosedError("the item was acknowledged or released before")
        try:
            self._store._run(requests.ack(self._token), timeout)
        except NotFoundError as error:
            if self._session == self._store._session.number:
                raise
            raise SessionLostError(ITEM_WENT_BACK, hint=TAKE_AGAIN) from error
        self._done = True

    def release(self, *, timeout: float | None = None) -> None:
        """Another may take it. Does nothing after ack() or release()."""
        if not self._done:
            self._done = True
            self._store._run(requests.end(self._token), timeout)

    def __enter__(self) -> Item:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.release()
        elif not self._done:
            self.ack()

    def __repr__(self) -> str:
        return f"<crailpy.Item {self.number}, {len(self.data)} bytes>"
