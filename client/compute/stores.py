"""The connections of this process that handles bring along: one for each store, for all of them."""

from __future__ import annotations

import atexit
import os

from crailpy.errors import InvalidArgumentError

from ..store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_stores: dict[Any, Store] = {}

#: Addresses that were asked for since whoever counts them has emptied this.
used: set[Any] = set()

#: Its number, without a system call each time.
this_process = os.getpid()


def _note_process() -> None:
    global this_process
    this_process = os.getpid()


os.register_at_fork(after_in_child=_note_process)


def certain(store: Store) -> Store:
    """The store, if it never answers in place of one that is away: what is counted and added up
    would be wrong. Raises InvalidArgumentError."""
    if store._options["on_unavailable"] != "raise":
        raise InvalidArgumentError(
            "a store of on_unavailable='miss' says that nothing is there, which is no answer here",
            hint="connect(on_unavailable='raise') for what computes",
        )
    return store


def folder_of(path: str) -> str:
    """A directory's path as others are made from it. Raises TypeError for what is no path."""
    if not isinstance(path, str):
        raise TypeError(f"a path is a str like '/job/part-0', not {type(path)}")
    return path.rstrip("/")


def address_of(store: Store) -> tuple[Any, ...]:
    """What `store_at` needs in another process; it can be compared, and is the store's name."""
    return (store.address, *sorted(store._options.items()))


def store_at(address: tuple[Any, ...]) -> Store:
    """This process's connection there, made at the first call and kept until the process ends, or
    leaves the store. A forked child has its own, as with any store. Raises as `connect`."""
    used.add(address)
    store = _stores.get(address)
    if store is None:
        text, *options = address
        made = Store(text, **dict(options))
        store = _stores.setdefault(address, made)
        if store is made:
            atexit.register(store.close)
        else:  # another thread was faster
            made.close()
    return store


def current(store: Store | None, address: tuple[Any, ...]) -> Store:
    """Of a handle that came from elsewhere: the connection that it has, or another where it has
    none, or that was left meanwhile."""
    return store_at(address) if store is None or store._closed else store


def leave(address: tuple[Any, ...]) -> None:
    """Ends the connection there. Handles that are used still make another."""
    store = _stores.pop(address, None)
    if store is not None:
        atexit.unregister(store.close)
        store.close()
