"""Values by key: put and get in all their ways, awaited."""

from __future__ import annotations

import asyncio
from os import getpid
from typing import TYPE_CHECKING, Any

from crailpy import native
from crailpy.errors import (
    CrailError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
)

from .. import requests
from ..connection import all_or_batch_error
from ..requests import RAISE
from ..session import RETRY_FIRST, RETRY_MAX
from .connection import AsyncConnection, Limit, post
from .session import Away, OutOfDate
from .transfer import Making, extents_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from ..requests import Buffer, Result


class AsyncValues(AsyncConnection):
    """The part of an `AsyncStore` that puts and gets. Arguments, results and errors are those of
    `Store`. A cancelled call leaves nothing behind; a put that was sent may have happened."""

    # -- writing -----------------------------------------------------------------------

    async def put(
        self,
        key: str,
        data: Buffer,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> int:
        """Stores `data` under `key`, atomically; see `Store.put`. Do not change `data` before it
        returns."""
        lane, flags, base = self._conditions(if_absent, if_version, parents)
        return await self._put(lane, key, data, flags, base, timeout, placement)

    def _conditions(
        self, if_absent: bool, if_version: int | None, parents: bool
    ) -> tuple[native.AsyncLane, int, int]:
        """By which lane, flags, the version for if_version: a condition is never dropped."""
        lane = self._certain if if_absent or if_version is not None else self._changes
        flags = requests.PARENTS if parents else 0
        return lane, *requests.conditions(flags, if_absent, if_version)

    async def _put(
        self,
        lane: native.AsyncLane,
        key: str,
        data: Buffer,
        flags: int,
        if_version: int,
        timeout: float | None,
        placement: Mapping[str, Any],
    ) -> int:
        how = self._making(key, flags, if_version, placement)
        try:
            return await self._put_as(lane, key, data, how, timeout)
        except NotFoundError as error:
            requests.explain_absence(error, bool(flags & requests.PARENTS), how.options)
            raise
        except DeadlineError as error:
            await self._explain_deadline(error)
            raise

    def _making(
        self, path: Any, flags: int, if_version: int, placement: Mapping[str, Any]
    ) -> Making:
        if not placement and not self._homes:
            return Making(flags, b"", if_version)
        options, wait = self._placed(path, placement)
        return Making(flags, options, if_version, wait)

    async def _put_as(
        self, lane: native.AsyncLane, key: str, data: Buffer, how: Making, timeout: float | None
    ) -> int:
        version = lane.put(key, data, how.flags, how.options, how.if_version, timeout)
        if version is not None:
            return await version
        return await self._put_large(lane, key, [data], how, timeout)

    async def _put_large(
        self,
        lane: native.AsyncLane,
        key: str,
        parts: Sequence[Buffer],
        how: Making,
        timeout: float | None,
    ) -> int:
        """As `_move_large`, unless the lane drops it."""
        if lane is self._certain:
            return await self._move_large(key, parts, how, timeout)
        breaker: Any = lane
        version: int = await breaker.write(0, 1, self._move_large, key, parts, how, timeout)
        return version

    async def _move_large(
        self, key: str, parts: Sequence[Buffer], how: Making, timeout: float | None
    ) -> int:
        """The parts are the value, in order."""
        deadline = self._deadline(timeout) + how.wait_space
        flat = [native.Flat(part, False) for part in parts]
        async with Limit(deadline, key) as limit:
            return await self._transfers.put(key, flat, how, limit)

    def _placed(self, path: Any, placement: Mapping[str, Any]) -> tuple[bytes, float]:
        """Options for the wire of what is made at `path`, seconds to wait for space."""
        from ..placement import at_home, pack

        return pack(**at_home(self._homes, path, placement))

    async def put_many(
        self,
        items: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]],
        *,
        if_absent: bool = False,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> list[int]:
        """Puts every (key, data) in order; see `Store.put_many`."""
        pairs = list(items.items() if hasattr(items, "items") else items)
        lane, flags, _ = self._conditions(if_absent, None, parents)
        if not placement and not self._homes:
            return all_or_batch_error(await self._put_run(lane, pairs, Making(flags), timeout))
        from ..placement import runs_at_home

        results: list[Any] = []
        for path, run in runs_at_home(self._homes, pairs):
            how = self._making(path, flags, 0, placement)
            results += await self._put_run(lane, run, how, timeout)
        return all_or_batch_error(results)

    async def _put_run(
        self, lane: native.AsyncLane, pairs: list[Any], how: Making, timeout: float | None
    ) -> list[Any]:
        """A version or an error for each."""
        results: list[Any] = []
        while True:
            future, _ = lane.put_many(pairs, len(results), how.flags, how.options, timeout)
            results += await future
            if len(results) == len(pairs):
                break
            try:  # too large to travel in a vector, or nothing that can be put
                key, data = requests.pair(pairs[len(results)])
                results.append(await self._put_as(lane, key, data, how, timeout))
            except requests.FAULTS_OF_ITEM as error:
                results.append(error)
        for result in results:
            requests.explain_absence(result, bool(how.flags & requests.PARENTS), how.options)
        return results

    async def incr(
        self,
        key: str,
        by: int = 1,
        *,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> int:
        """Adds to the counter at `key`, exactly once, and returns the sum; see `Store.incr`."""
        options = b""
        if placement or self._homes:
            options, _ = self._placed(key, placement)
        total: int = await self._run(requests.incr(key, by, parents, options), timeout)
        return total

    async def put_object(
        self,
        key: str,
        obj: Any,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> int:
        """Stores any object that pickles; see `Store.put_object`. Do not change what it consists of
        before it returns."""
        from ..objects import dump

        parts = dump(obj)
        lane, flags, base = self._conditions(if_absent, if_version, parents)
        if sum(map(len, parts)) <= requests.INLINE_MAX:
            return await self._put(lane, key, b"".join(parts), flags, base, timeout, placement)
        how = self._making(key, flags, base, placement)
        try:
            return await self._put_large(lane, key, parts, how, timeout)
        except NotFoundError as error:
            requests.explain_absence(error, parents, how.options)
            raise

    async def get_object(
        self, key: str, *, wait: float | None = None, timeout: float | None = None
    ) -> Any:
        """What `put_object` stored; see `Store.get_object`. Read only what you trust."""
        from ..objects import load

        with await self.get_view(key, wait=wait, timeout=timeout) as view:
            return load(view)

    async def delete(
        self, key: str, *, missing_ok: bool = False, timeout: float | None = None
    ) -> None:
        """Deletes a value; see `Store.delete`."""
        await self._run(requests.delete(key, missing_ok), timeout)

    async def delete_many(self, keys: Iterable[str], *, timeout: float | None = None) -> None:
        """Deletes every key; see `Store.delete_many`."""
        each, keys = requests.delete("", missing_ok=True), requests.several(keys)
        results = await self._changes.call_many(each.code, each.flags, keys, timeout)
        failed = [
            r if isinstance(r, CrailError) and not isinstance(r, requests.ABSENT_ERRORS) else None
            for r in results
        ]
        if self._homes:
            from ..placement import durable_after

            last = durable_after(self._homes, keys)
            if last is not None:
                await self._run(last, timeout)
        all_or_batch_error(failed)

    # -- reading ---------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        *,
        wait: float | None = None,
        default: Any = RAISE,
        timeout: float | None = None,
    ) -> Any:
        """The value of `key` as bytes; see `Store.get`."""
        try:
            if wait is not None:
                return await self._wait(
                    lambda ms, timeout: self._find(key, ms, timeout, self._bytes), wait, timeout
                )
            found = await self._reads.get(key, False, timeout)
            if type(found) is bytes:
                return found
            return await self._read(key, found, found[6], self._bytes)
        except requests.ABSENT_ERRORS:
            if default is RAISE:
                raise
            return default
        except DeadlineError:
            if wait is None or default is RAISE:
                raise
            return default

    async def get_view(
        self, key: str, *, wait: float | None = None, timeout: float | None = None
    ) -> native.View:
        """The value as a read-only buffer; see `Store.get_view`."""
        view: native.View
        if wait is None:
            view = await self._find(key, 0, timeout, self._view)
        else:
            view = await self._wait(
                lambda ms, timeout: self._find(key, ms, timeout, self._view), wait, timeout
            )
        if view.goes_when_read:
            view.on_end(_ViewEnd(self._changes, key, view.version))
        return view

    async def get_into(
        self, key: str, buffer: Any, *, offset: int = 0, timeout: float | None = None
    ) -> int:
        """Copies the value from byte `offset` on into `buffer`; see `Store.get_into`."""
        if offset < 0:
            raise InvalidArgumentError(requests.SHORT_BUFFER, path=key)
        flat = native.Flat(buffer, True)

        async def fill(result: Result, deadline: float) -> int:
            with memoryview(flat) as room:
                n = result[1] - offset
                if n < 0 or n > room.nbytes:
                    raise InvalidArgumentError(requests.SHORT_BUFFER, path=key)
                if result[3] & requests.INLINE:
                    room[:n] = result[5][offset:]
                else:
                    await self._transfers.read(extents_of(result), offset, flat, n, deadline)
            return n

        count: int = await self._find(key, 0, timeout, fill)
        return count

    async def get_range(
        self, key: str, offset: int, length: int, *, timeout: float | None = None
    ) -> bytes:
        """Up to `length` bytes of the value from `offset` on; see `Store.get_range`."""
        if offset < 0 or length < 0:
            raise InvalidArgumentError(requests.NEGATIVE_RANGE, path=key)

        async def part(result: Result, deadline: float) -> bytes:
            return await self._slice(result, offset, length, deadline)

        data: bytes = await self._find(key, 0, timeout, part, is_whole=False)
        return data

    async def get_many(
        self, keys: Iterable[str], *, missing: str = "raise", timeout: float | None = None
    ) -> list[Any]:
        """The values of `keys` in order, as bytes; see `Store.get_many`."""
        if missing not in ("raise", "none"):
            raise InvalidArgumentError(f'missing={missing!r}: "raise" or "none"')
        keys = requests.several(keys)
        values = await self._reads.get_many(keys, missing == "none", timeout)
        for i, found in enumerate(values):
            if type(found) is not tuple:
                continue
            try:
                values[i] = await self._read(keys[i], found, found[6], self._bytes)
            except requests.ABSENT_ERRORS as error:
                values[i] = None if missing == "none" else error
            except CrailError as error:
                values[i] = error
        return all_or_batch_error(values)

    # -- how a value is found, and what is made of it -------------------------------------------

    async def _find(
        self,
        key: str,
        wait_ms: int,
        timeout: float | None,
        make: Callable[[Result, float], Awaitable[Any]],
        *,
        is_whole: bool = True,
    ) -> Any:
        """What `make(result, deadline)` makes of the value at `key`."""
        deadline = self._deadline(timeout)
        result = await self._call(requests.Request(requests.GET, key), wait_ms, timeout)
        return await self._read(key, result, deadline, make, is_whole=is_whole)

    async def _read(
        self,
        key: str,
        result: Result,
        deadline: float,
        make: Callable[[Result, float], Awaitable[Any]],
        *,
        is_whole: bool = True,
    ) -> Any:
        try:
            result, made = await self._made(key, result, deadline, make)
        except (UnavailableError, DeadlineError) as error:
            if self._circuit is None:
                raise
            self._circuit.reads_missed += 1
            raise NotFoundError("the store is away", path=key) from error
        if is_whole and result[3] & requests.DELETE_AFTER_READ and type(made) is not native.View:
            await self._delivered(key, result[0])
        return made

    async def _made(
        self,
        key: str,
        result: Result,
        deadline: float,
        make: Callable[[Result, float], Awaitable[Any]],
    ) -> tuple[Result, Any]:
        """What was made of the value, and the answer that told where it lies."""
        pause = RETRY_FIRST
        async with Limit(deadline, key) as limit:
            while True:
                try:
                    return result, await make(result, deadline)
                except Away as away:  # perhaps it lies elsewhere by now
                    limit.reason = away.error
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_MAX)
                except OutOfDate:
                    await asyncio.sleep(0)
                result = await self._call(requests.Request(requests.GET, key), 0, None)

    async def _bytes(self, result: Result, deadline: float) -> bytes:
        return await self._slice(result, 0, result[1], deadline)

    async def _slice(self, result: Result, offset: int, length: int, deadline: float) -> bytes:
        size = result[1]
        n = max(0, min(length, size - offset))
        if result[3] & requests.INLINE:
            if len(result[5]) != size:
                raise ProtocolError("a value is not as long as it is said to be")
            return result[5][offset : offset + n]
        if n == 0:
            return b""
        landing = native.Landing(n)
        await self._transfers.read(extents_of(result), offset, landing, n, deadline)
        return landing.take()

    async def _view(self, result: Result, deadline: float) -> native.View:
        goes = bool(result[3] & requests.DELETE_AFTER_READ)
        if not result[3] & requests.INLINE:
            view = await self._transfers.pin(result, goes, deadline)
            if view is not None:
                return view
        return native.view(await self._bytes(result, deadline), result[0], goes)


class _ViewEnd:
    """What the end of a view over a value that goes when it was read has to do. In a forked child
    the view is not the one that was given out."""

    __slots__ = ("_key", "_lane", "_pid", "_version")

    def __init__(self, lane: native.AsyncLane, key: str, version: int) -> None:
        self._lane = lane
        self._key = key
        self._version = version
        self._pid = getpid()

    def __call__(self) -> None:
        if self._pid != getpid():
            return
        post(self._lane, requests.delivered(self._key, self._version))
