"""The users' side: `connect()` and the `Store` it gives."""

from __future__ import annotations

from .store import Store, connect

__all__ = ["Store", "connect"]

assert __name__ == "crailpy.client", "import crailpy.client, not client: it would load twice"
