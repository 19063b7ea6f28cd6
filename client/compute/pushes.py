"""A push on its way into a model's log: one file, created exclusively at the next number."""

from __future__ import annotations

from typing import Any

from crailpy.errors import (
    CrailError,
    DeadlineError,
    ExistsError,
    NotFoundError,
    VersionConflictError,
)

from .. import requests
from ..placement import say_durability
from ..waiting import END_TIMEOUT
from . import tensors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .models import Model
    from .replica import Key
    from .tensors import Piece, Place


class Push:
    """One push on its way: its number is decided by who makes the entry of that number first, and
    then it fits all before it, for who makes it has read them."""

    def __init__(
        self,
        model: Model,
        updates: Mapping[Key, Any],
        op: str,
        who: tuple[str, int] | None,
        if_version: int | None,
        until: float,
    ) -> None:
        self._model = model
        self._updates = updates
        self._op = op
        self._who = who
        self._if_version = if_version
        self._until = until
        self._staged = ""  # where it lies until it has its number
        self._places: list[Place] = []
        self._is_news = False  # has the log been read since the first attempt?
        self.number = 0
        self.bytes = 0

    def is_done(self) -> bool:
        """One attempt. False: read the log, then try again."""
        model, replica = self._model, self._model._replica
        if model._lanes_opened != model._store._door.lanes_opened:
            return False
        if self._who and replica.steps.get(self._who[0], -1) >= self._who[1]:
            self.number = replica.version
            return True
        try:
            self._check_version(replica.version)
            pieces = replica.pieces(self._updates, self._op)
        except (NotFoundError, VersionConflictError) as error:
            if self._is_news:
                error.path = error.path or model.path
                raise
            self._is_news = True
            return False
        self._is_news = True
        if self._is_made(pieces, model._segment, replica.version + 1):
            return True
        if not model._left(self._until):
            raise DeadlineError("others were always faster", path=model.path)
        return False

    def _check_version(self, version: int) -> None:
        if self._if_version is not None and self._if_version != version:
            raise VersionConflictError(f"the model has version {version}, not {self._if_version}")

    def _is_made(self, pieces: list[Piece], segment: int, number: int) -> bool:
        model, self.number = self._model, number
        entry = model._entry(segment, number)
        if not self._is_created(pieces, entry):
            return False
        if model._lanes_opened == model._store._door.lanes_opened:
            return True
        if model._is_reached(segment, number, self._until):
            return True
        model._store.delete(entry, missing_ok=True, timeout=END_TIMEOUT)
        return False

    def _is_created(self, pieces: list[Piece], entry: str) -> bool:
        model, places = self._model, [place for place, _ in pieces]
        if places != self._places:  # somebody else began one of the tensors, as another type
            self.end()
        try:
            if not self._staged:
                self._places = places
                parts = tensors.pack(self._op, pieces, self._who)
                self.bytes = sum(map(len, parts))
                if self.bytes <= requests.INLINE_MAX:
                    model._create_entry(entry, b"".join(parts), self._until)
                    return True
                self._staged = self._stage(parts)
            self._publish(entry)
        except ExistsError:  # another push
            return False
        except NotFoundError:  # the segment has gone, or what was staged
            self.end()
            return False
        return True

    def _stage(self, parts: list[Any]) -> str:
        """Puts it where it goes with this session, under a name of its own."""
        model, store, until = self._model, self._model._store, self._until
        placed = store._placed(f"{model.path}/push", model._placement, model._left(until))
        session, folder = model._staging
        while True:
            if session != store._session.number:
                folder = store.session_path(timeout=model._left(until))
                session = store._session.number
                model._staging = session, folder
            key = f"{folder}/push-{store._token()}"
            try:
                store._door.put_parts(key, parts, 0, 0, *placed)
                return key
            except NotFoundError:  # it was removed
                if not session or not model._left(until):
                    raise
                session = 0

    def _publish(self, entry: str) -> None:
        """Raises ExistsError, NotFoundError (the segment has gone, or what was staged)."""
        model = self._model
        request = requests.rename(model._store._prefix, self._staged, entry, False)
        say_durability({model.path: model._placement}, request, entry)
        model._store._run(request, model._left(self._until))
        self._staged = ""

    def end(self) -> None:
        """Removes what is staged; else it goes with the session."""
        if self._staged:
            try:
                store = self._model._store
                store.delete(self._staged, missing_ok=True, timeout=END_TIMEOUT)
            except CrailError:
                pass
            self._staged = ""
