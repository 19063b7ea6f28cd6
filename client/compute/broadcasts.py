"""A value that one process stores and many read: a handle that is small and pickles."""

from __future__ import annotations

from _thread import allocate_lock
from collections import OrderedDict
from os import getpid, register_at_fork
from weakref import WeakValueDictionary

from crailpy.errors import NotFoundError, VersionConflictError

from .. import objects, requests
from . import spreading
from .stores import address_of, certain, current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crailpy.native import View

    from ..store import Store

COPIES_BYTES_MAX = 256 << 20  # of one process, beyond what its handles keep
COPY_BYTES_MIN = 1024  # what the smallest costs


class _Value:
    """What a handle's value is kept by: an object of any type, which weak references can name."""

    __slots__ = ("__weakref__", "obj")

    def __init__(self, obj: Any) -> None:
        self.obj = obj


# Both by store, path, version and process: what lies over mapped memory is not a forked child's.
_kept: WeakValueDictionary[Any, _Value] = WeakValueDictionary()


class _Copies:
    """Values that were copied, also those that no handle keeps: those that were used last."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._values: OrderedDict[Any, tuple[_Value, int]] = OrderedDict()  # oldest first; bytes
        self._bytes = 0

    def use(self, key: Any, value: _Value, copied: int) -> None:
        """It goes last, if it is one of them. `copied`: the bytes of one that may be new."""
        gone = []  # until the lock is free: the end of an object can run anything
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            elif copied:
                size = max(copied, COPY_BYTES_MIN)
                self._values[key] = value, size
                self._bytes += size
            while self._bytes > COPIES_BYTES_MAX:
                oldest = self._values.popitem(last=False)[1]
                self._bytes -= oldest[1]
                gone.append(oldest)

    def drop(self, key: Any) -> None:
        with self._lock:
            gone = self._values.pop(key, None)
            self._bytes -= gone[1] if gone else 0


_copies = _Copies()


def _begin_anew() -> None:
    """In a forked child: its parent's copies are not for it, and a thread there may have the
    lock."""
    global _copies
    _copies = _Copies()


register_at_fork(after_in_child=_begin_anew)


class Broadcast:
    """A handle of a stored object: a few hundred bytes as a pickle, whatever the object is.

    `path` is where it lies, `version` what it was stored as."""

    def __init__(
        self,
        address: tuple[Any, ...],
        cluster: str,
        path: str,
        version: int,
        spreads: bool = False,
    ) -> None:
        self._address = address
        self._cluster = cluster  # a store made anew at the address counts its versions anew
        self._spreads = spreads  # over servers, when many read it from afar
        self._store: Store | None = None
        self._is_given = False  # the store, by who made the handle
        self._known: tuple[int, _Value] | None = None  # of which process
        self.path = path
        self.version = version

    @property
    def value(self) -> Any:
        """The object, the same one each time in this process. Arrays in it are read-only and lie
        over the stored value where the transport shares memory; they, or a handle, keep it there.

        The first access in a process is one request, with the store's timeout; from afar it may be
        that of a copy which is cut over all servers (spreading.py). Raises
        NotFoundError (it was removed), VersionConflictError (another value was stored at its path,
        or another store has the address by now), DataLostError; unpickling can run code: take
        handles from those whom you trust."""
        known, pid = self._known, getpid()
        if known is None or known[0] != pid:
            known = self._known = pid, self._look(pid)
        return known[1].obj

    def _key(self, pid: int) -> Any:
        return self._address, self._cluster, self.path, self.version, pid

    def _look(self, pid: int) -> _Value:
        key = self._key(pid)
        value, copied = _kept.get(key), 0
        if value is None:
            value, copied = self._fetch()
            value = _kept.setdefault(key, value)
        _copies.use(key, value, copied)
        return value

    def _fetch(self) -> tuple[_Value, int]:
        """The object, and how many bytes it was unless it lies over the store's memory."""
        view, version = self._view()
        with view:
            if not self._is_of(version):
                raise VersionConflictError(
                    "another value was broadcast at this path",
                    path=self.path,
                    hint="give each broadcast a path of its own",
                )
            lies_there = not view.copied and objects.buffers(view)
            return _Value(objects.load(view)), 0 if lies_there else view.nbytes

    def _is_of(self, version: int) -> bool:
        """Is what has just been found of that version ours, and the store the one that we know?"""
        return version == self.version and self._connected()._session.cluster == self._cluster

    def _view(self) -> tuple[View, int]:
        """Of the value, and the version that is at its path."""
        store = self._connected()
        if self._spreads and spreading.is_far(store):
            return spreading.view(store, self.path, self.version)
        view = store.get_view(self.path)
        return view, view.version

    def _connected(self) -> Store:
        if self._store is None or not self._is_given:
            self._store = current(self._store, self._address)
        return self._store

    def delete(self, *, timeout: float | None = None) -> None:
        """Removes the stored value, if it is still this one; values that are in use stay what they
        are. It may be gone already."""
        _copies.drop(self._key(getpid()))
        store = self._connected()
        try:
            if self._is_of(store.stat(self.path, timeout=timeout).version):
                store._run(requests.delivered(self.path, self.version), timeout)
        except (NotFoundError, VersionConflictError):
            pass
        finally:
            if self._spreads:
                spreading.remove(store, self.path, self.version, timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        own = self._address, self._cluster, self.path, self.version, self._spreads
        return Broadcast, own

    def __repr__(self) -> str:
        return f"<crailpy.Broadcast {self.path} version {self.version}>"


def broadcast(
    store: Store,
    path: str,
    obj: Any,
    *,
    parents: bool = True,
    timeout: float | None = None,
    **placement: Any,
) -> Broadcast:
    """Stores `obj` (anything that pickles; of `__main__`, what cloudpickle takes) at `path`, in
    place of what was there, and gives the handle that tasks take along. `placement` as of `put`:
    `stripe=` spreads the value over servers from the beginning; a large one that many processes of
    other hosts read gets a copy that is, beside it. It goes with its job, by `Broadcast.delete()`,
    or by any other end of a value.

    Raises what `put_object` raises, and InvalidArgumentError for a store that answers while it is
    away."""
    from .executors.calls import dump_value

    parts = dump_value(obj)
    put = certain(store)._door.put_parts
    flags = requests.PARENTS if parents else 0
    version = store._put(put, path, parts, flags, 0, timeout, placement)
    is_large = sum(map(len, parts)) >= spreading.BYTES_MIN
    spreads = is_large and "stripe" not in placement
    handle = Broadcast(address_of(store), store._session.cluster, path, version, spreads)
    handle._store, handle._is_given = store, True
    return handle
