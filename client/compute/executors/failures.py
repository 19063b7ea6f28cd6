"""What goes wrong with tasks, beside what they raise themselves."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

from crailpy.errors import ClosedError, CrailError


class PoolLostError(CrailError, BrokenExecutor):
    """The pool's service has ended while it had the task. Whether the task ran is not known."""

    code = "POOL_LOST"
    default_message = "the pool's service has ended"
    default_hint = "the next call starts another; submit again what may run twice"


class TaskLostError(CrailError, BrokenExecutor):
    """The executors that ran the task died, as often as it may be tried."""

    code = "TASK_LOST"
    default_message = "the executors that ran the task died"
    default_hint = "executors(attempts=...) says how often it is tried"


class RemoteError(CrailError):
    """The task raised something that cannot be pickled; these are its words."""

    code = "REMOTE"


class ShutdownError(ClosedError, RuntimeError):
    """The executor takes no tasks any more: shutdown() was called."""

    code = "SHUTDOWN"
    default_message = "no new tasks after shutdown()"


class RemoteTraceback(Exception):
    """The cause of an exception that comes from a task: the traceback that it had there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
