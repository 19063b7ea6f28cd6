"""What jobs are made of: broadcast values, reductions, models. Each takes a store first, and is a
method of it, too. What they promise, and why, is told in docs/adr/0006-compute.md.

No module here has the name of a function: importing it would take the function's place.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .broadcasts import Broadcast as Broadcast
    from .broadcasts import broadcast as broadcast
    from .models import Model as Model
    from .models import model as model
    from .reductions import reduce as reduce

# name -> module: loaded when it is asked for, and NumPy with it where it is needed
_HANDED_ON = {
    "Broadcast": "broadcasts",
    "broadcast": "broadcasts",
    "Model": "models",
    "model": "models",
    "reduce": "reductions",
}

__all__ = ["Broadcast", "Model", "broadcast", "model", "reduce"]


def __getattr__(name: str) -> Any:
    if name not in _HANDED_ON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HANDED_ON[name]}"), name)
    globals()[name] = value
    return value
