"""What a task can know about itself."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ...store import Store


class Task:
    """The task that runs. `number`: of its submit in its executor, from 0. `attempt`: 0, then 1 and
    so on when it is run again. Outside of the pool's executors both are 0."""

    __slots__ = ("_connect", "_tell", "attempt", "number")

    def __init__(
        self,
        number: int = 0,
        attempt: int = 0,
        connect: Callable[[], Store | None] | None = None,
        tell: Callable[[Task, Store, str, Any], None] | None = None,
    ) -> None:
        self.number = number
        self.attempt = attempt
        self._connect = connect
        self._tell = tell

    @property
    def store(self) -> Store | None:
        """The store that the driver's executor was given, connected to from here once for all tasks
        (do not close it); None where there is none. Raises what connect() raises."""
        return self._connect() if self._connect is not None else None

    def commits(self, store: Store, path: str, result: Any = None) -> None:
        """To be said just before the task makes the value at `path`, with which it is done, and
        where nothing was before it: a map output, or what is put with `if_absent`. Before another
        attempt begins, as when its executor dies from here on, or before a failure of one counts,
        the pool looks there: if the value is there, the future gets `result` (up to 4 KiB as a
        pickle), and the task is not run again. Costs no request; outside of the pool's executors it
        does nothing. Raises InvalidArgumentError for a result that cannot be sent."""
        if self._tell is not None and self is _current:
            self._tell(self, store, path, result)

    def __repr__(self) -> str:
        return f"<crailpy task {self.number}, attempt {self.attempt}>"


_NONE = Task()
_current = _NONE


def task() -> Task:
    """The task that runs in this process."""
    return _current


def begin(task: Task | None) -> None:
    """Says which task runs from here on; None: no one."""
    global _current
    _current = task or _NONE
