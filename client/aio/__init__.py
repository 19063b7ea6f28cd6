"""The asynchronous face: `connect()` and the `AsyncStore` it gives. No thread behind it."""

from __future__ import annotations

from .store import AsyncStore, connect

__all__ = ["AsyncStore", "connect"]
