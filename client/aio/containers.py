"""Containers with a face of their own, awaited: tables and queues."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from crailpy import native
from crailpy.errors import (
    ClosedError,
    DeadlineError,
    ExistsError,
    NotContainerError,
    NotFoundError,
    SessionLostError,
)

from .. import listing, requests
from ..containers import ITEM_NUMBER, ITEM_WENT_BACK, TAKE_AGAIN, table_key, take_parents
from ..session import RETRY_FIRST
from .session import Away, OutOfDate
from .transfer import extents_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ..requests import Buffer, Result
    from .store import AsyncStore


async def open_container(
    store: AsyncStore,
    path: str,
    create: bool,
    kind: int,
    name: str,
    timeout: float | None,
    placement: dict[str, Any],
) -> None:
    """Makes the container, or sees that it is there; see containers.py."""
    parents = take_parents(placement)
    if create:
        made = requests.mkdir(path, parents=parents, exist_ok=True, kind=kind)
        await store._run(made, timeout)
    elif (await store.stat(path, timeout=timeout)).kind != name:
        raise NotContainerError(f"the node is no {name}", path=path)


class AsyncTable:
    """A mapping of str to bytes that all clients share; see `Table`."""

    def __init__(
        self, store: AsyncStore, path: str, timeout: float | None, placement: dict[str, Any]
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._placement = placement
        self.path = path

    async def get(self, key: str, default: Any = requests.RAISE) -> Any:
        """The value; `default`, where given, if there is none. Raises NotFoundError."""
        path = table_key(self.path, key)
        return await self._store.get(path, default=default, timeout=self._timeout)

    async def put(self, key: str, value: Buffer) -> int:
        """Sets it; returns its version."""
        return await self._store.put(
            table_key(self.path, key), value, parents=False, timeout=self._timeout,
            **self._placement,
        )  # fmt: skip

    async def delete(self, key: str, *, missing_ok: bool = False) -> None:
        """Takes it out. Raises NotFoundError."""
        path = table_key(self.path, key)
        await self._store.delete(path, missing_ok=missing_ok, timeout=self._timeout)

    async def contains(self, key: str) -> bool:
        """Is it there?"""
        return await self._store.exists(table_key(self.path, key), timeout=self._timeout)

    async def length(self) -> int:
        """How many there are."""
        return (await self._store.stat(self.path, timeout=self._timeout)).size

    async def keys(self) -> AsyncIterator[str]:
        """The keys in byte order."""
        async for page in self._store._pages(self.path, self._timeout):
            for name in listing.names(page):
                yield name

    def __aiter__(self) -> AsyncIterator[str]:
        return self.keys()

    async def items(self) -> AsyncIterator[tuple[str, bytes]]:
        """(key, value) of each, in order; a page is one request."""
        async for page in self._store._pages(self.path, self._timeout):
            keys = listing.names(page)
            paths = [f"{self.path}/{key}" for key in keys]
            values = await self._store.get_many(paths, missing="none", timeout=self._timeout)
            for key, value in zip(keys, values, strict=True):
                if value is not None:
                    yield key, value

    async def values(self) -> AsyncIterator[bytes]:
        """The values in the order of their keys; a page is one request."""
        async for _, value in self.items():
            yield value

    async def pop(self, key: str, default: Any = requests.RAISE) -> Any:
        """Takes it out and gives what it was; `default`, where given, if there is none. As with
        `Table.pop`, another may come between the two. Raises NotFoundError."""
        try:
            value = await self.get(key)
            await self.delete(key)
        except NotFoundError:
            if default is requests.RAISE:
                raise
            return default
        return value

    async def popitem(self) -> tuple[str, bytes]:
        """Takes the first out: (key, value). Raises NotFoundError when there is none."""
        async for key in self.keys():
            return key, await self.pop(key)
        raise NotFoundError("the table is empty", path=self.path)

    async def setdefault(self, key: str, default: Buffer) -> bytes:
        """The value, which is `default` from now on if there was none."""
        path = table_key(self.path, key)
        while True:
            try:
                return bytes(await self.get(key))
            except NotFoundError:
                pass
            try:
                await self._store.put(
                    path, default, if_absent=True, parents=False, timeout=self._timeout,
                    **self._placement,
                )  # fmt: skip
            except ExistsError:
                continue  # another was first
            return bytes(default)

    async def clear(self) -> None:
        """Takes everything out, a page at a time; each key by itself, not together."""
        async for page in self._store._pages(self.path, self._timeout):
            paths = [f"{self.path}/{key}" for key in listing.names(page)]
            await self._store.delete_many(paths, timeout=self._timeout)

    async def update(self, other: Any = (), /, **more: Buffer) -> None:
        """Puts all of a mapping, or of pairs, in vectors; each key by itself, not together."""
        pairs = dict(other, **more).items()
        await self._store.put_many(
            [(table_key(self.path, key), value) for key, value in pairs],
            parents=False,
            timeout=self._timeout,
            **self._placement,
        )

    def __repr__(self) -> str:
        return f"<crailpy.aio.AsyncTable {self.path}>"


class AsyncQueue:
    """A queue that all clients share: first in, first out; see `Queue`."""

    def __init__(
        self, store: AsyncStore, path: str, timeout: float | None, placement: dict[str, Any]
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._placement = placement
        self.path = path

    async def put(self, data: Buffer, *, timeout: float | None = None) -> int:
        """Adds an item of any size behind the others; returns its version."""
        limit = self._timeout if timeout is None else timeout
        try:
            return await self._store._put(
                self._store._certain, self.path, data, requests.QUEUE, 0, limit, self._placement
            )
        except NotFoundError as error:
            requests.explain_queue(error, self._store._placed(self.path, self._placement)[0])
            raise

    async def get(self, *, wait: float | None = None, timeout: float | None = None) -> AsyncItem:
        """Takes the oldest free item; see `Queue.get`."""
        limit = self._timeout if timeout is None else timeout
        store = self._store
        token = store._token()
        deadline = store._deadline(limit) + (wait or 0.0)
        while True:
            result = await store._hold(requests.take(self.path, token, wait), token, limit)
            try:
                return await self._item(token, result, deadline)
            except OutOfDate as error:  # the same token finds the same item, where it is now
                away = error.error if isinstance(error, Away) else None
                if store._session.loop.time() >= deadline:
                    store._end(token)
                    raise away or DeadlineError(path=self.path) from error
                await asyncio.sleep(RETRY_FIRST if away else 0)
            except BaseException:
                store._end(token)
                raise

    async def _item(self, token: int, result: Result, deadline: float) -> AsyncItem:
        version, size, _, flags, _, data = result
        (number,) = ITEM_NUMBER.unpack_from(data)
        body = data[ITEM_NUMBER.size :]
        if not flags & requests.INLINE:
            landing = native.Landing(size)
            extents = extents_of((*result[:5], body))
            async with self._store._limit(deadline, self.path):
                await self._store._transfers.read(extents, 0, landing, size, deadline)
            body = landing.take()
        return AsyncItem(self._store, token, number, version, body)

    async def length(self) -> int:
        """How many items there are, taken ones too."""
        return (await self._store.stat(self.path, timeout=self._timeout)).size

    def __repr__(self) -> str:
        return f"<crailpy.aio.AsyncQueue {self.path}>"


class AsyncItem:
    """What was taken from a queue; see `Item`. `async with`: acknowledged at the end of the block,
    released by an exception."""

    def __init__(
        self, store: AsyncStore, token: int, number: int, version: int, data: bytes
    ) -> None:
        self._store = store
        self._token = token
        self._session = store._session.number  # which has taken it
        self._done = False
        self.number = number
        self.version = version
        self.data = data

    async def ack(self, *, timeout: float | None = None) -> None:
        """It was dealt with and goes for good; see `Item.ack`."""
        if self._done:
            raise ClosedError("the item was acknowledged or released before")
        try:
            await self._store._run(requests.ack(self._token), timeout)
        except NotFoundError as error:
            if self._session == self._store._session.number:
                raise
            raise SessionLostError(ITEM_WENT_BACK, hint=TAKE_AGAIN) from error
        self._done = True

    async def release(self, *, timeout: float | None = None) -> None:
        """Another may take it. Does nothing after ack() or release()."""
        if not self._done:
            self._done = True
            await self._store._run(requests.end(self._token), timeout)

    async def __aenter__(self) -> AsyncItem:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            await self.release()
        elif not self._done:
            await self.ack()

    def __repr__(self) -> str:
        return f"<crailpy.aio.AsyncItem {self.number}, {len(self.data)} bytes>"
