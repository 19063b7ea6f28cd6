"""on_unavailable="miss" of an asynchronous store: the circuit of `client/breaker.py` between the
store and its lanes, in whose place it answers while the store is away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from crailpy.errors import NotFoundError

from .. import requests
from ..breaker import AWAY, NOTHING_DONE, READS, WRITES, Circuit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crailpy import native

_READS = (*READS, requests.GET)


class LaneBreaker:
    """One lane behind the circuit of its store: what of a lane `AsyncStore` uses."""

    def __init__(self, lane: native.AsyncLane, circuit: Circuit) -> None:
        self._lane = lane
        self._circuit = circuit
        self.post = lane.post
        self.cancel = lane.cancel

    async def _reached(self, ask: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
        """(True, what `await ask(*args)` gives), or False where the store is away."""
        was_open = self._circuit.is_open
        if not self._circuit.may_try():
            return False, None
        return await self._answered(_asked(ask, args), was_open)

    async def _answered(self, answer: Awaitable[Any], was_open: bool) -> tuple[bool, Any]:
        """(True, the answer), or False where the store is away."""
        circuit = self._circuit
        try:
            result = await answer
        except AWAY as error:
            # Of many that were under way when it opened, the first has said it for all.
            if was_open or not circuit.is_open:
                circuit.failed(error)
            return False, None
        except asyncio.CancelledError:
            if was_open:
                circuit.gave_up()
            raise
        except BaseException:  # an answer, if not a pleasant one
            circuit.succeeded()
            raise
        circuit.succeeded()
        return True, result

    async def _read(self, path: str | None, ask: Callable[..., Any], *args: Any) -> Any:
        reached, answer = await self._reached(ask, *args)
        if reached:
            return answer
        self._circuit.reads_missed += 1
        raise NotFoundError("the store is away", path=path)

    async def write(self, instead: Any, count: int, ask: Callable[..., Any], *args: Any) -> Any:
        """What `await ask(*args)` gives, or `instead`, where `count` writes are dropped."""
        reached, answer = await self._reached(ask, *args)
        if reached:
            return answer
        self._circuit.writes_dropped += count
        return instead

    # -- a lane ------------------------------------------------------------------

    def get(self, key: str, none_if_missing: bool, timeout: float | None) -> Awaitable[Any]:
        return self._read(key, self._lane.get, key, none_if_missing, timeout)

    def put(self, key: str, data: Any, flags: int, *args: Any) -> Awaitable[Any] | None:
        was_open = self._circuit.is_open
        if not self._circuit.may_try():
            return self._put(None, was_open)
        version = None
        try:
            version = self._lane.put(key, data, flags, *args)
        finally:  # refused, or so large that it does not go through the lane
            if version is None and was_open:
                self._circuit.gave_up()
        return None if version is None else self._put(version, was_open)

    async def _put(self, version: Awaitable[int] | None, was_open: bool) -> int:
        if version is not None:
            reached, made = await self._answered(version, was_open)
            if reached:
                return int(made)
        self._circuit.writes_dropped += 1
        return 0

    async def get_many(
        self, keys: list[str], none_if_missing: bool, timeout: float | None
    ) -> list[Any]:
        reached, answer = await self._reached(self._lane.get_many, keys, none_if_missing, timeout)
        if reached:
            return list(answer)
        self._circuit.reads_missed += len(keys)
        return [
            None if none_if_missing else NotFoundError("the store is away", path=k) for k in keys
        ]

    def put_many(
        self, pairs: list[Any], start: int, *args: Any
    ) -> tuple[Awaitable[list[Any]], None]:
        left = len(pairs) - start
        return self.write([0] * left, left, self._put_many, pairs, start, *args), None

    async def _put_many(self, *args: Any) -> Any:
        return await self._lane.put_many(*args)[0]

    async def call_many(
        self, code: int, flags: int, keys: list[str], timeout: float | None
    ) -> list[Any]:
        reached, answer = await self._reached(self._lane.call_many, code, flags, keys, timeout)
        if reached:
            return list(answer)
        if code in WRITES:
            self._circuit.writes_dropped += len(keys)
        else:
            self._circuit.reads_missed += len(keys)
        return [NotFoundError("the store is away", path=key) for key in keys]

    def call(self, code: int, flags: int, path: str | None, *args: Any) -> tuple[Any, Any]:
        if code in _READS and not flags & requests.WAIT:
            return self._read(path, self._ask, code, flags, path, *args), None
        if code in WRITES:
            return self.write(NOTHING_DONE, 1, self._ask, code, flags, path, *args), None
        return self._lane.call(code, flags, path, *args)

    async def _ask(self, *args: Any) -> Any:
        return await self._lane.call(*args)[0]


async def _asked(ask: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What `ask` refuses at once is raised here, as an answer is."""
    return await ask(*args)
