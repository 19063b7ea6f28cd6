"""crailpy: a fast distributed store for the intermediate data of compute jobs.

    import crailpy

    with crailpy.LocalCluster() as cluster, cluster.connect() as store:
        store.put("/hello", b"world")
        print(store.get("/hello"))

Names are handed on lazily: `import crailpy` alone loads nothing but this file.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crailpy import aio as aio
    from crailpy import errors as errors
    from crailpy.client.compute.executors import executors as executors
    from crailpy.client.store import Store as Store
    from crailpy.client.store import connect as connect
    from crailpy.server.local import LocalCluster as LocalCluster

__version__ = "0.1.0"
version = __version__

__all__ = ["LocalCluster", "Store", "aio", "connect", "errors", "executors", "version"]

# name -> (module, name in it; "" for the module itself)
_HANDED_ON = {
    "connect": ("crailpy.client.store", "connect"),
    "Store": ("crailpy.client.store", "Store"),
    "LocalCluster": ("crailpy.server.local", "LocalCluster"),
    "errors": ("crailpy.errors", ""),
    "aio": ("crailpy.aio", ""),
    "executors": ("crailpy.client.compute.executors", "executors"),
}


def __getattr__(name: str) -> Any:
    try:
        module_name, inner = _HANDED_ON[name]
    except KeyError:
        raise AttributeError(f"module 'crailpy' has no attribute {name!r}") from None
    from importlib import import_module

    module = import_module(module_name)
    value = getattr(module, inner) if inner else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HANDED_ON])
