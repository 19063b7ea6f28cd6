"""The asynchronous face of crailpy.

    import crailpy.aio

    async with crailpy.aio.connect() as store:
        await store.put("/hello", b"world")
        print(await store.get("/hello"))

Names are handed on lazily: importing this loads no asyncio.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crailpy.client.aio.store import AsyncStore as AsyncStore
    from crailpy.client.aio.store import connect as connect

__all__ = ["AsyncStore", "connect"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'crailpy.aio' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module("crailpy.client.aio.store"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
