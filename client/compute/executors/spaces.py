"""The directory of a driver in the store, where the large arguments and results of its tasks lie.

It is the session's: when that ends, it goes, with all in it. A namenode that was started anew, or
did not hear of us for too long, has forgotten the session; then the directory is made again, by the
same name, which executors know.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crailpy.errors import CrailError, NotFoundError

from ... import requests
from ...lifetimes import session_directory
from ...waiting import END_TIMEOUT
from .calls import Space

if TYPE_CHECKING:
    from typing import Any

    from ...store import Store

_DOUBTFUL = "", 0  # of no session


class DriverSpace(Space):
    """A driver's space; without a store nothing can lie there. Thread-safe."""

    def __init__(self, store: Store | None) -> None:
        self._name = f"executors-{os.urandom(8).hex()}"
        path, *_ = session_directory(self._name, "none")
        super().__init__(lambda: store, path)
        self._store = store
        self._made_in: tuple[str, int] | None = None  # the session; None: it is not there

    def make(self) -> None:
        """Makes the directory where it is not, as the present session's. Raises what the store
        raises."""
        if self._store is None:
            return
        self._store._run(requests.ping(), None)  # opens the session, if there is none at present
        session = self._session()
        durability = self._store._session.durability
        _, *made_and_owned = session_directory(self._name, durability)
        for request in made_and_owned:
            self._store._run(request, None)
        self._made_in = session

    def _session(self) -> tuple[str, int]:
        """Namenodes that keep nothing on disk give the same numbers again."""
        assert self._store is not None
        session = self._store._session
        return session.cluster, session.number

    def keep(self) -> None:
        """To be called before tasks are sent, which may have large results. Asks the store only if
        there is a reason to; where it is out of reach, only what is large needs to know."""
        if self._store is not None and self._made_in != self._session():
            try:
                self.make()
            except CrailError:
                pass

    def doubt(self) -> None:
        """Something was not found, perhaps since the directory was not."""
        self._made_in = self._made_in and _DOUBTFUL

    def wrap_sized(self, obj: Any, name: str, what: str) -> tuple[bytes, int]:
        """See Space.wrap_sized."""
        try:
            return super().wrap_sized(obj, name, what)
        except NotFoundError:  # it has gone with a session, which only now was found to be lost
            self.make()
            return super().wrap_sized(obj, name, what)

    def clear(self) -> None:
        """Removes it with all in it, when nothing is under way; else it goes with the session."""
        if self._store is not None and self._made_in is not None:
            self._made_in = None
            try:
                self._store.rmtree(self.path, timeout=END_TIMEOUT)
            except CrailError:
                pass
