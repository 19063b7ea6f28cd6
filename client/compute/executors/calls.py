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


class _OfMain(Exception):
    """Something of `__main__` is to be pickled."""


class _ByReference(pickle.Pickler):
    """Refuses what lies in `__main__`: elsewhere that is another module."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (FunctionType, type)) and obj.__module__ == "__main__":
            raise _OfMain
        return NotImplemented


def _cloudpickle() -> Any:
    try:
        import cloudpickle
    except ImportError:
        return None
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
    try:
        cloud = _cloudpickle()
        if cloud is not None:
            return 0, *objects.pickled(obj, cloud.Pickler)
        if why is None and main_of_process() is not None:
            return OF_MAIN, *objects.pickled(obj)
    except Exception as error:
        why = error
    raise InvalidArgumentError(
        f"it cannot be sent to another process: {why or 'it is defined in __main__'}",
        hint="define it in a module, or install cloudpickle",
    ) from why


def load(flags: int, value: Any) -> Any:
    """What dump() took apart. Raises what unpickling raises."""
    return pickle.loads(value) if flags & PLAIN else objects.load(value)


def result_name(number: int, attempt: int) -> str:
    """What a large result is called in its driver's space."""
    return f"result-{number}-{attempt}"


class Space:
    """Where in the store large parcels lie: a directory of the driver's session. `connect` gives
    the store when it is needed, None where there is none."""

    def __init__(self, connect: Callable[[], Store | None], path: str) -> None:
        self._connect = connect
        self.path = path

    def wrap(self, obj: Any, name: str, what: str) -> bytes:
        """The parcel of an object; a large one goes to `name` in this space. Raises
        InvalidArgumentError, and what the store raises."""
        flags, parts = dump(obj)
        size = sum(map(len, parts))
        if size <= INLINE_BYTES_MAX:
            return b"".join([_FLAGS[flags], *parts])
        store = self._connect()
        if store is None:
            raise InvalidArgumentError(
                f"{what} of {size} bytes; up to {INLINE_BYTES_MAX} travel inline",
                hint="executors(store=...) moves larger ones through the store; or put them there"
                " yourself, and pass their paths",
            )
        path = f"{self.path}/{name}"
        store._put_parts(path, parts)
        return _FLAGS[flags | STORED] + path.encode()

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
    """An exception of a task and its traceback, in any case."""
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
