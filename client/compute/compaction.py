"""Keeping a model's log small: a full segment is sealed, put together as the base of the next one,
and removed.

Any process that pushes does it, on the way; who dies at any step leaves it to the next who looks.
"""

from __future__ import annotations

from typing import Any

from crailpy.errors import CrailError, ExistsError, NotFoundError

from .. import requests
from ..waiting import END_TIMEOUT
from .replica import Replica

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .models import Model

LOOK_BYTES = 64 << 10  # whoever pushes as much looks whether the segment is full
SEGMENT_PUSHES = 64
SEGMENT_BYTES = 1 << 20  # and twice its base
SEAL_TRIES = 16


def is_due(number: int, pushed: int) -> bool:
    """Is it for who has pushed so many bytes, at that number, to look?"""
    return pushed >= LOOK_BYTES or number % SEGMENT_PUSHES == 0


def tidy(model: Model, until: float) -> None:
    """Looks at the oldest segment: seals it if it is full, and removes it if it is sealed. Who
    fails or dies on the way leaves that to the next who looks."""
    try:
        segment = model._segments(until)[0]
        state = _state(model, segment, until)
        if state == "full" and _seal(model, segment, until):
            state = "sealed"
        if state == "sealed" and _make_base(model, segment, until):
            old = requests.rmtree(model._folder(segment))
            old.absent = None
            model._store._run(old, model._left(until))
    except CrailError as error:
        model._doubt(error)


def _state(model: Model, segment: int, until: float) -> str:
    """open, full or sealed."""
    base, pushes = 0, []
    for info in model._store.scandir(model._folder(segment), timeout=model._left(until)):
        if info.name == "base":
            base = info.size
        elif info.name.isdecimal():
            pushes.append(info.size)
    if pushes and not pushes[-1]:
        return "sealed"
    is_full = len(pushes) >= SEGMENT_PUSHES or sum(pushes) > 2 * base + SEGMENT_BYTES
    return "full" if is_full else "open"


def _seal(model: Model, segment: int, until: float) -> bool:
    """Makes the next segment, out of this one, and then this one's last entry."""
    folder, left = model._folder(segment), model._left(until)
    made = requests.mkdir(f"{folder}/next", parents=False, exist_ok=True)
    model._store._run(made, left)
    try:
        model._store.rename(f"{folder}/next", model._folder(segment + 1), timeout=left)
    except (ExistsError, NotFoundError):
        pass  # somebody else did
    for _ in range(SEAL_TRIES):
        model._read(until)
        if model._segment != segment:
            return True
        try:
            entry = model._entry(segment, model._replica.version + 1)
            model._create_entry(entry, b"", until)
            return True
        except ExistsError:
            continue
    return False


def _make_base(model: Model, segment: int, until: float) -> bool:
    """The base of the segment after this one. False: another is making it. One at a time does,
    to save work; but who has the turn and is stopped is not waited for without end."""
    target = model._folder(segment + 1)
    if model._store.exists(f"{target}/base", timeout=model._left(until)):
        return True
    put = model._store._door.put
    turn, owned = f"{target}/turn", {"session": True}
    try:
        model._store._put(put, turn, b"", requests.IF_ABSENT, 0, model._left(until), owned)
    except ExistsError:
        if _state(model, segment + 1, until) == "open":
            return False
        turn = ""
    try:
        _put_base(model, target, _condensed(model, segment, until), until)
    finally:
        if turn:
            model._store.delete(turn, missing_ok=True, timeout=END_TIMEOUT)
    return True


def _put_base(model: Model, folder: str, parts: list[Any], until: float) -> None:
    put, left = model._store._door.put_parts, model._left(until)
    try:
        base, flags = f"{folder}/base", requests.IF_ABSENT
        model._store._put(put, base, parts, flags, 0, left, model._placement)
    except ExistsError:  # the same one
        pass


def _condensed(model: Model, segment: int, until: float) -> list[Any]:
    """The parts of the base that has all of a sealed segment."""
    model._read(until)
    replica = model._replica
    is_at_its_end = model._segment == segment + 1 and replica.version == model._began
    if not is_at_its_end or not all(map(replica.has, replica.kinds)):
        replica, opened = Replica(keeps_all=True), model._store._door.lanes_opened
        if not model._load_base(replica, segment, until):
            raise NotFoundError("it has gone", path=model._folder(segment))
        model._follow(replica, segment, until)
        if opened != model._store._door.lanes_opened:
            raise NotFoundError("part of it may have gone", path=model._folder(segment))
    return replica.base()
