"""What jobs are made of: shuffles, broadcast values, reductions, models, executors. Most take a
store first, and are methods of it, too. What they promise, and why: docs/adr/0006-compute.md.

No module here has the name of a function that is handed on later: importing it would take the
function's place.
"""

from __future__ import annotations

# Now, or the names of the modules would hide those of the functions later.
from . import executors as _executors
from .shuffle import Shuffle, shuffle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .broadcasts import Broadcast as Broadcast
    from .broadcasts import broadcast as broadcast
    from .executors import PoolExecutor
    from .executors import task as task
    from .models import Model as Model
    from .models import model as model
    from .reductions import reduce as reduce

__all__ = [
    "Broadcast",
    "Model",
    "Shuffle",
    "broadcast",
    "executors",
    "model",
    "reduce",
    "shuffle",
    "task",
]

# name -> module: loaded when it is asked for, and NumPy with it where it is needed
_HANDED_ON = {
    "Broadcast": "broadcasts",
    "broadcast": "broadcasts",
    "Model": "models",
    "model": "models",
    "reduce": "reductions",
    "task": "executors.tasks",
}


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
