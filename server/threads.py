"""Calls that block, in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """A call goes on when whoever awaits it is cancelled; before what it uses is freed, await
    finish()."""

    def __init__(self) -> None:
        self._running: set[asyncio.Future[Any]] = set()

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result, or what it raises."""
        future = asyncio.get_running_loop().run_in_executor(None, call)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.shield(future)

    async def finish(self) -> None:
        """Waits for the end of all calls."""
        if self._running:
            await asyncio.wait(self._running)
