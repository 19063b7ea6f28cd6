"""What compute jobs keep in a store: shuffles."""

# Each name stands for what is in the module of that name: so these come after the module's import.
from .shuffle import Shuffle, shuffle

__all__ = ["Shuffle", "shuffle"]
