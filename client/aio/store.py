"""`connect()` and `AsyncStore`. Its calls stand by theme in values.py and tree.py, on the ground of
connection.py."""

from __future__ import annotations

from typing import Any

from crailpy.errors import CrailError

from .connection import Limit
from .tree import AsyncTree
from .values import AsyncValues


class AsyncStore(AsyncValues, AsyncTree):
    """A connection to a store, for coroutines of one event loop: the calls of `Store`, awaited.

    Thousands of calls may be under way; they share three connections. No thread runs. A call may
    be cancelled at any time: it leaves nothing behind, and no other call gets its answer. Every
    call takes `timeout=` in seconds. In a forked child it is closed.
    """

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Facts about the whole store: namenode counters, servers, sessions."""
        result: dict[str, Any] = await self._admin("status", timeout)
        return result

    async def check(self, *, timeout: float | None = None) -> str | None:
        """Has the namenode walk its whole tree and every granule; requests wait meanwhile.

        Returns None, or the sentence that says which invariant is broken."""
        found = await self._admin("check", timeout)
        return None if found["ok"] else str(found["why"])

    async def _admin(self, method: str, timeout: float | None) -> Any:
        async with Limit(self._deadline(timeout), method):
            try:
                return await self._session.admin(method, {})
            except OSError as error:
                if isinstance(error, CrailError):
                    raise
                raise self._session.unreachable(error) from error

    def client_stats(self) -> dict[str, int]:
        """Counters of this store's client core."""
        counts = self._session.core.stats()
        counts["grants_held"] = self._transfers.grants_held
        return counts


def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    timeout: float = 10.0,
    transport: str | None = None,
    namespace: str = "/",
) -> AsyncStore:
    """A store that `await` or `async with` connects; arguments as of `crailpy.connect`."""
    if address is None or token is None:
        from crailpy import config

        settings = config.client_settings()
        address = address or settings["address"]
        token = token or settings["token"]
    return AsyncStore(
        address, token=token, timeout=timeout, transport=transport, namespace=namespace
    )
