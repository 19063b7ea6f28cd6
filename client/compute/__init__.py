"""What jobs are made of."""

from __future__ import annotations

# Now, or the names of the modules would hide those of the functions later.
from . import executors as _executors
from .shuffle import Shuffle, shuffle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .executors import PoolExecutor
    from .executors import task as task

__all__ = ["Shuffle", "executors", "shuffle", "task"]

# name -> module: loaded when it is asked for
_HANDED_ON = {"task": "executors.tasks"}


def executors(name: str = "default", **options: Any) -> PoolExecutor:
    """The warm executor pool `name` of this machine: crailpy.executors()."""
    made: PoolExecutor = _executors.executors(name, **options)
    return made


def __getattr__(name: str) -> Any:
    if name not in _HANDED_ON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HANDED_ON[name]}"), name)
    globals()[name] = value
    return value
