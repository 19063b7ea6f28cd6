"""Large broadcasts that many processes of other hosts read: one copy, cut over all servers.

Where the value lies as it was put, it is read in place on its server's host; but all who are
elsewhere would read it from that one server. So they count themselves, and every HOT-th of them
looks whether there is a copy, and leaves one: with it each server sends its share to all who come
later. Counter and copy lie beside the value, are of its version, and belong to the sessions that
made them: they go with those, with the value's directory, or with `Broadcast.delete()`.
"""

from __future__ import annotations

import time
from contextlib import suppress

from crailpy.errors import CrailError, NotFoundError

from ..placement import STRIPE_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crailpy import native

    from ..store import Store

BYTES_MIN = 4 << 20
"""Smaller values are sent in less time than a copy would save."""
HOT = 4
TIER = "dram"


def names(path: str, version: int) -> list[str]:
    """Of the counter and the copy."""
    return [f"{path}.readers-{version}", f"{path}.spread-{version}"]


def is_far(store: Store) -> bool:
    """Does the store share no memory with us?"""
    return not store._session.shares_host


def view(store: Store, path: str, version: int) -> tuple[native.View, int]:
    """The value, perhaps of the copy, and the version that it has at its path. Raises as get_view,
    also for a value that was removed while there is a copy."""
    until = time.monotonic() + store._timeout
    counter, copy = names(path, version)
    number = _count(store, counter, until)
    if number > HOT and store.stat(path, timeout=_left(until)).version == version:
        try:
            return store.get_view(copy, timeout=_left(until) / 4), version
        except NotFoundError:
            pass
        except CrailError:  # a server that has a part of it: without a copy, nobody waits for that
            with suppress(CrailError):
                store.delete(copy, missing_ok=True, timeout=_left(until) / 4)
    found = store.get_view(path, timeout=_left(until))
    if number % HOT == 0 and found.version == version:
        with suppress(CrailError):
            _spread(store, path, copy, found, until)
    return found, found.version


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())


def _count(store: Store, counter: str, until: float) -> int:
    """How many have been there, with us."""
    with suppress(CrailError):
        return store.incr(counter, parents=False, session=True, timeout=_left(until))
    return 1  # without space for a counter, or a directory: as if nobody else were there


def _spread(store: Store, path: str, copy: str, value: native.View, until: float) -> None:
    """Leaves a copy of a value that is still there; whoever needs its space may push it out."""
    servers = store.status(timeout=_left(until))["servers"]
    count = sum(server["state"] == "up" and server["tier"] == TIER for server in servers)
    if count <= 1:
        return
    store.put(
        copy, memoryview(value), if_absent=True, parents=False, session=True, evictable=True,
        stripe=min(count, STRIPE_MAX), tier=TIER, strict=True, timeout=_left(until),
    )  # fmt: skip
    try:
        is_there = store.stat(path, timeout=_left(until)).version == value.version
    except NotFoundError:
        is_there = False
    if not is_there:  # it was removed, with its copy, before there was one
        store.delete(copy, missing_ok=True, timeout=_left(until))


def remove(store: Store, path: str, version: int, timeout: float | None) -> None:
    """Removes what there is of a value's."""
    with suppress(CrailError):
        store.delete_many(names(path, version), timeout=timeout)
