"""Calls, results and exceptions as bytes.

A *parcel*: one byte of flags, then the object as objects.py writes it; with PLAIN its pickle alone,
which is small; with STORED the path of where it lies in the store. Functions and classes travel by
reference; what has none, or lies in `__main__`, goes by cloudpickle where that is installed; else
with OF_MAIN the executor has to import the driver's `__main__` before it unpickles.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from types import FunctionType

from crailpy.errors import CrailError, InvalidArgumentError

from ... import objects
from .contexts import MAIN
from .failures import RemoteError, RemoteTraceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ...store import Store

    Parts = list[bytes | memoryview]

INLINE_BYTES_MAX = 4096
EXCEPTION_BYTES_MAX = 64 << 10
TRACEBACK_CHARACTERS_MAX = 8 << 10

OF_MAIN = 1
STORED = 2
PLAIN = 4
_FLAGS = [bytes([flags]) for flags in range(8)]


_mains = {"__main__"}
"""What our `__main__` is called by what it has defined."""


def begin_driver() -> None:
    """Looks what `__main__` is: in a child that multiprocessing has spawned, and in an executor, it
    was imported as MAIN; elsewhere MAIN is what comes back of it."""
    main = sys.modules["__main__"]
    if sys.modules.setdefault(MAIN, main).__name__ == MAIN:
        _mains.add(MAIN)


class _OfMain(Exception):
    """Something of `__main__` is to be pickled."""


class _ByReference(pickle.Pickler):
    """Refuses what lies in `__main__`: elsewhere that is another module."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (FunctionType, type)) and obj.__module__ in _mains:
            raise _OfMain
        return NotImplemented


def _cloudpickle() -> Any:
    try:
        import cloudpickle
    except ImportError:
        return None
    if MAIN in _mains:  # as of `__main__`, which it knows by itself
        cloudpickle.register_pickle_by_value(sys.modules[MAIN])
    return cloudpickle


def main_of_process() -> dict[str, str] | None:
    """How another process may import our `__main__`: its "path", and as "module" its name if it was
    started by name; None if it cannot be imported, as that of `-c` or a notebook."""
    main = sys.modules.get("__main__")
    module = getattr(getattr(main, "__spec__", None), "name", None)
    path = getattr(main, "__file__", None)
    if not path or path.startswith("<") or (module or "").rpartition(".")[2] == "__main__":
        return None
    import os

    return {"path": os.path.abspath(path), "module": module or ""}


def dump(obj: Any) -> tuple[int, Parts]:
    """Flags and parts of an object. Raises InvalidArgumentError for what cannot travel."""
    flags, pieces, buffers = _pickled(obj)
    if not buffers and sum(map(len, pieces)) <= INLINE_BYTES_MAX:
        return flags | PLAIN, pieces
    return flags, objects.lay_out(pieces, buffers)


def _pickled(obj: Any) -> tuple[int, Parts, list[memoryview]]:
    try:
        return 0, *objects.pickled(obj, _ByReference)
    except _OfMain:
        why: Exception | None = None
    except Exception as error:  # a PicklingError, or whatever a __reduce__ raises
        why = error
    cloud = _cloudpickle()
    try:
        if cloud is not None:
            return 0, *objects.pickled(obj, cloud.Pickler)
        if why is None and main_of_process() is not None:
            return OF_MAIN, *objects.pickled(obj)
    except Exception as error:
        why = error
    hint = "define it in a module, or install cloudpickle"
    if cloud is not None:  # which takes functions from anywhere, and no locks, files or generators
        hint = "send what it can be made of instead"
    raise InvalidArgumentError(
        f"it cannot be sent to another process: {why or 'it is defined in __main__'}",
        hint=hint,
    ) from why


def dump_value(obj: Any) -> Parts:
    """The parts of a value, as of objects.dump(), which tasks can read also if it has something of
    `__main__`: by cloudpickle, where that is installed."""
    try:
        return objects.lay_out(*objects.pickled(obj, _ByReference))
    except _OfMain:
        cloud = _cloudpickle()
    return objects.lay_out(*objects.pickled(obj, cloud.Pickler if cloud else pickle.Pickler))


def load(flags: int, value: Any) -> Any:
    """What dump() took apart. Raises what unpickling raises."""
    return pickle.loads(value) if flags & PLAIN else objects.load(value)


def result_name(number: int, attempt: int) -> str:
    """What a large result is called in its driver's space."""
    return f"result-{number}-{attempt}"


def inline(obj: Any, what: str) -> bytes:
    """The parcel of a small object. Raises InvalidArgumentError."""
    parcel = _bytes(obj)
    size = len(parcel) - 1
    if size > INLINE_BYTES_MAX:
        raise InvalidArgumentError(
            f"{what} of {size} bytes, of {INLINE_BYTES_MAX} that travel inline",
            hint="put it into the store, and give its path",
        )
    return parcel


class Space:
    """Where in the store large parcels lie: a directory of the driver's session. `connect` gives
    the store when it is needed, None where there is none."""

    def __init__(self, connect: Callable[[], Store | None], path: str) -> None:
        self._connect = connect
        self.path = path

    def wrap(self, obj: Any, name: str, what: str) -> bytes:
        """The parcel of an object; a large one goes to `name` in this space. Raises
        InvalidArgumentError, and what the store raises."""
        return self.wrap_sized(obj, name, what)[0]

    def wrap_sized(self, obj: Any, name: str, what: str) -> tuple[bytes, int]:
        """The parcel as of wrap(), and how many bytes went to the store."""
        flags, parts = dump(obj)
        size = sum(map(len, parts))
        if size <= INLINE_BYTES_MAX:
            return b"".join([_FLAGS[flags], *parts]), 0
        store = self._connect()
        if store is None:
            raise InvalidArgumentError(
                f"{what} of {size} bytes; up to {INLINE_BYTES_MAX} travel inline",
                hint="executors(store=...) moves larger ones through the store; or put them there"
                " yourself, and pass their paths",
            )
        path = f"{self.path}/{name}"
        store._put_parts(path, parts)
        return _FLAGS[flags | STORED] + path.encode(), size

    def unwrap(self, parcel: bytes) -> Any:
        """The object. Raises what unpickling raises, and what the store raises."""
        if not parcel[0] & STORED:
            return load(parcel[0], memoryview(parcel)[1:])
        store = self._connect()
        if store is None:
            raise InvalidArgumentError("it lies in a store, and there is none here")
        with store.get_view(parcel[1:].decode()) as view:
            return objects.load(view)

    def forget(self, parcel: bytes) -> None:
        """Removes what of it lies in the store; that goes with the session at the latest."""
        if parcel[:1] and parcel[0] & STORED:
            store = self._connect()
            try:
                if store is not None:
                    store.delete(parcel[1:].decode(), missing_ok=True)
            except CrailError:
                pass

    def remove(self, names: list[str]) -> None:
        """Removes what is there of these."""
        store = self._connect()
        try:
            if store is not None:
                store.delete_many([f"{self.path}/{name}" for name in names])
        except CrailError:
            pass


# ---- exceptions ---------------------------------------------------------------------------------


def wrap_error(error: BaseException) -> bytes:
    """An exception of a task and its traceback, in any case: in words where it raises when it is
    looked at."""
    try:
        return _wrap_error(error)
    except BaseException:
        words = f"{type(error).__qualname__}, which raises when it is asked what it is"
        return _wrap_error(RemoteError(words))


def _wrap_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    if len(text) > TRACEBACK_CHARACTERS_MAX:
        half = TRACEBACK_CHARACTERS_MAX // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    error.with_traceback(None)  # its frames hold all that the task had
    return pickle.dumps((_error_bytes(error), text))


def _error_bytes(error: BaseException) -> bytes:
    try:
        found = _bytes(error)
        # many pickle, and do not come back, or as something else
        if len(found) <= EXCEPTION_BYTES_MAX and isinstance(_from_bytes(found), BaseException):
            return found
    except Exception:
        pass
    try:
        words = str(error)
    except Exception:
        words = "<its str() failed>"
    return _bytes(RemoteError(f"{type(error).__qualname__}: {words}"[:TRACEBACK_CHARACTERS_MAX]))


def _bytes(obj: Any) -> bytes:
    flags, parts = dump(obj)
    return b"".join([_FLAGS[flags], *parts])


def _from_bytes(data: bytes) -> Any:
    return load(data[0], memoryview(data)[1:])


def unwrap_error(body: bytes) -> BaseException:
    """The exception, its traceback as the cause."""
    packed, text = pickle.loads(body)
    try:
        error = _from_bytes(packed)
        if not isinstance(error, BaseException):
            raise TypeError(f"{type(error).__qualname__} is no exception")
    except Exception as why:
        error = RemoteError(f"an exception that cannot be unpickled here: {why!r}")
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))  # also if it is frozen
    found: BaseException = error
    return found
