"""The warm executor pool of one machine: docs/EXECUTORS.md.

    with crailpy.executors() as pool:
        print(list(pool.map(math.sqrt, range(10))))

A task asks `task()` for its number and attempt. Names are handed on lazily."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .driver import PoolExecutor as PoolExecutor
    from .driver import executors as executors
    from .failures import PoolLostError as PoolLostError
    from .failures import RemoteError as RemoteError
    from .failures import ShutdownError as ShutdownError
    from .failures import TaskLostError as TaskLostError
    from .tasks import Task as Task
    from .tasks import task as task

__all__ = [
    "PoolExecutor",
    "PoolLostError",
    "RemoteError",
    "ShutdownError",
    "Task",
    "TaskLostError",
    "executors",
    "task",
]

_HANDED_ON = {
    "executors": "driver",
    "PoolExecutor": "driver",
    "PoolLostError": "failures",
    "RemoteError": "failures",
    "ShutdownError": "failures",
    "TaskLostError": "failures",
    "Task": "tasks",
    "task": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HANDED_ON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HANDED_ON[name]}"), name)
    globals()[name] = value
    return value
