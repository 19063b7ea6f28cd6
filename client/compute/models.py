"""A model: named tensors that many processes change and read, as a log of pushes.

Each push is a file, created exclusively at the next number; a reader adds up what is new to it. The
log is cut into segments, directories that begin with a base and go as a whole. Why no number is
used twice, and what a death leaves, is told in docs/adr/0006-compute.md, "Model".
"""

from __future__ import annotations

import time
from functools import cached_property
from os import urandom
from typing import Any

from crailpy.errors import (
    CrailError,
    DeadlineError,
    ExistsError,
    InvalidArgumentError,
    IsContainerError,
    NotContainerError,
    NotFoundError,
    ProtocolError,
    VersionConflictError,
)

from .. import requests
from ..placement import check_home, say_durability
from ..waiting import END_TIMEOUT
from . import stores, tensors
from .replica import Replica
from .stores import address_of, certain, folder_of, store_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..requests import Buffer
    from ..store import Store
    from .replica import Key
    from .tensors import Array, Piece, Place

    #: status, version, size, kind, flags, count, data
    Entry = tuple[int, int, int, int, int, int, bytes]

ASIDE_SECONDS = 60.0  # a model is made in less
ROUND = 1.0  # seconds of one wait for a push: its segment may be removed before it is asked for
AHEAD_FIRST, AHEAD_MAX = 2, 64  # pushes that are asked for at once; the first are cheap
LOOK_BYTES = 64 << 10  # whoever pushes as much looks whether the segment is full
SEGMENT_PUSHES = 64
SEGMENT_BYTES = 1 << 20  # and twice its base
SEAL_TRIES = 16
DIGITS = 10  # so that names are in the order of their numbers

_IS_CONTAINER = -IsContainerError.status
_ABSENT = tuple(-status for status in requests.ABSENT_STATUSES)


def _entry(folder: str, number: int) -> str:
    return f"{folder}/{str(number).zfill(DIGITS)}"


class Model:
    """Named NumPy tensors at `path`, and what this process knows of them. For one thread at a time.
    It pickles as a handle; nothing is asked of the store before the first call."""

    def __init__(
        self,
        address: tuple[Any, ...],
        path: str,
        create: bool,
        timeout: float | None,
        placement: dict[str, Any],
    ) -> None:
        self._address = address
        self._create = create
        self._timeout = timeout
        self._placement = placement
        self.path = folder_of(path)
        self._forget()

    def _forget(self) -> None:
        self._pid = stores.this_process
        self._id = ""  # of the model that lies at the path
        self._segment = 0
        self._began = 0  # the version that the segment begins with
        self._named = -1, ""  # segment, its path: asked for in every call
        self._replica = Replica()
        self._pushed = 0
        self._lanes_opened = 0  # when what was applied last was known to be there
        self._staging = (0, "")  # session, its directory

    @cached_property
    def _store(self) -> Store:
        return store_at(self._address)

    # -- the face -----------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The number of the last push that this object has read or made; they count from 1."""
        return max(self._replica.version, self._pushed)

    @property
    def steps(self) -> dict[str, int]:
        """The last step of each worker, as of what was read last."""
        return dict(self._replica.steps)

    def push(
        self,
        updates: Mapping[Key, Any],
        op: str = "add",
        *,
        worker: str | None = None,
        step: int | None = None,
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Changes the model by all of `updates`, at once or not at all; returns the number of the
        push, which is the model's version then.

        `updates`: an array for each tensor by its name, or for rows of it by (name, start, stop):
        those of its first axis. op="add" adds, op="set" replaces; a tensor begins with a "set" of
        it all, which decides on its shape and type for good. What is pushed is of that shape, and
        of a type that converts to it without loss of its kind.

        `worker` and `step` (a number that increases): this is that step of that worker. It counts
        once, so an attempt may be repeated; of one that counted before, the version is returned
        that has it. `if_version`: only as the push after that one (0: as the first one).

        Raises NotFoundError (there is no such tensor, or no model), InvalidArgumentError,
        VersionConflictError, OutOfSpaceError, QuotaExceededError."""
        until = self._begin(timeout)
        if (worker is None) != (step is None):
            raise InvalidArgumentError("worker= and step= belong together", path=self.path)
        who = None
        if worker is not None:
            if not isinstance(worker, str):
                raise InvalidArgumentError(f"worker={worker!r} is no name", path=self.path)
            who = worker, requests.unsigned(step, "step")
        push = _Push(self, updates, op, who, if_version, until)
        try:
            while not push.is_done():
                self._read(until)
            self._pushed = push.number
            if push.bytes >= LOOK_BYTES or push.number % SEGMENT_PUSHES == 0:
                self._tidy(until)
            return push.number
        except BaseException as error:
            self._doubt(error)
            raise
        finally:
            push.end()

    def pull(
        self,
        names: Iterable[Key] | None = None,
        min_version: int | None = None,
        *,
        min_step: int | None = None,
        workers: int | None = None,
        timeout: float | None = None,
    ) -> dict[Key, Array]:
        """The tensors as of one version, the newest there is, in a dict by what they were asked
        for: names, and (name, start, stop) for rows of the first axis; None is all. The arrays are
        read-only and stay as they are; the next call gives others for what has changed.

        `min_version`: waits until the model has that version. `min_step` and `workers`: waits until
        so many workers have pushed that step or a later one. After one's own step s, min_step=s is
        a barrier, and min_step=s-k bounds the staleness: nobody is more than k steps ahead. (Steps
        below 0 are not waited for.)

        What was asked for is kept up in this process, so that the next call reads only what is new;
        what several calls did not ask for is given up. Raises DeadlineError after `timeout` seconds
        in all, saying what is missing; NotFoundError (no such tensor, no model)."""
        until = self._begin(timeout, names is None)
        if (min_step is None) != (workers is None):
            raise InvalidArgumentError("min_step= and workers= belong together", path=self.path)
        replica = self._replica
        try:
            self._read(until)
            if min_version is not None or min_step is not None:
                while late := self._late(min_version or 0, min_step, workers or 0):
                    self._await_push(until, late)
                    self._read(until)
            if names is None:
                replica.keeps_all = True
                return replica.hand_out(replica.kinds) or self._fetch(None, until)
            if type(names) is not list:
                names = [names] if isinstance(names, str) else list(names)
            return replica.hand_out(names) or self._fetch(names, until)
        except BaseException as error:
            self._doubt(error)
            raise

    def _fetch(self, names: list[Key] | None, until: float) -> dict[Key, Array]:
        """The same, for what is not kept up yet. None: all that there is when it was read."""
        replica = self._replica
        for key in replica.kinds if names is None else names:
            self._say_path(replica.want, key)
        self._restart(until)
        self._read(until)
        found = replica.hand_out(replica.kinds if names is None else names)
        if found is None:  # a namenode that was started anew has lost its first push
            raise NotFoundError("a tensor has gone meanwhile", path=self.path)
        return found

    def describe(self, *, timeout: float | None = None) -> dict[str, tuple[tuple[int, ...], Any]]:
        """(shape, type) of each tensor, by name, as of now."""
        until = self._begin(timeout)
        try:
            self._read(until)
        except BaseException as error:
            self._doubt(error)
            raise
        return {name: (kind.shape, kind.dtype) for name, kind in self._replica.kinds.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self._address, self.path, self._create, self._timeout, self._placement)

    def __repr__(self) -> str:
        return f"<crailpy.Model {self.path} version {self.version}>"

    # -- small things ---------------------------------------------------------------------

    def _begin(self, timeout: float | None, wants_all: bool = False) -> float:
        """When the call is to end. Opens the model at the first one, and again in a forked child:
        what lies over mapped memory is its parent's."""
        if timeout is None:
            timeout = self._timeout
        limit = self._store._timeout if timeout is None else requests.seconds(timeout, "timeout")
        until = time.monotonic() + limit
        if not self._id or self._pid != stores.this_process:
            self._forget()
            self._replica.keeps_all = wants_all
            self._open(until)
        return until

    def _doubt(self, error: BaseException) -> None:
        """What is no answer of the store (an interrupt, no memory) may have come while a push was
        applied, and left half of it: the next call begins with the base."""
        if isinstance(error, ProtocolError) or not isinstance(error, CrailError):
            self._id = ""

    def _left(self, until: float) -> float:
        return max(0.0, until - time.monotonic())

    def _folder(self, segment: int) -> str:
        if self._named[0] != segment:
            self._named = segment, f"{self.path}/{self._id}-{str(segment).zfill(DIGITS)}"
        return self._named[1]

    def _entry(self, segment: int, number: int) -> str:
        return _entry(self._folder(segment), number)

    def _say_path(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except CrailError as error:
            error.path = error.path or self.path
            raise

    def _late(self, min_version: int, min_step: int | None, workers: int) -> str:
        """What a pull waits for still, in words."""
        replica = self._replica
        if replica.version < min_version:
            return f"the model is at version {replica.version}, not at {min_version}"
        if min_step is None or min_step < 0:
            return ""
        behind = sorted(worker for worker, step in replica.steps.items() if step < min_step)
        there = len(replica.steps) - len(behind)
        if there >= requests.unsigned(workers, "workers"):
            return ""
        who = f"; behind it: {', '.join(map(str, behind[:10]))}" if behind else ""
        return f"{there} of {workers} workers have pushed step {min_step}{who}"

    # -- reading --------------------------------------------------------------------------

    def _read(self, until: float) -> None:
        """Applies all that was pushed."""
        while True:
            try:
                if self._follow(self._replica, self._segment, until):
                    self._segment += 1
                    self._began = self._replica.version
                elif self._lanes_opened == self._store._session.lanes_opened:
                    return
                else:
                    self._verify(until)
            except NotFoundError:
                self._restart(until)

    def _verify(self, until: float) -> None:
        """A namenode that was started anew may have lost the last pushes (durability="group"), and
        the same numbers may be others by now. Raises NotFoundError where that is so."""
        opened = self._store._session.lanes_opened
        segment, number, version = self._replica.last
        if version:
            path = self._entry(segment, number) if number else f"{self._folder(segment)}/base"
            try:
                same = self._store.stat(path, timeout=self._left(until)).version == version
            except NotFoundError:
                same = False
            if not same:
                self._distrust()
                raise NotFoundError("what was applied last is gone", path=path)
        self._lanes_opened = opened

    def _distrust(self) -> None:
        self._replica.distrust()
        self._pushed = 0

    def _is_reached(self, segment: int, number: int, until: float) -> bool:
        """Is an entry of the log that there is now, or did a namenode lose those before it?"""
        self._distrust()
        self._restart(until)
        self._read(until)
        return self._replica.version >= number and self._segment >= segment

    def _follow(self, replica: Replica, segment: int, until: float) -> bool:
        """Applies what is new of the segment; True when that was its end. Raises NotFoundError when
        it has gone."""
        ahead = AHEAD_FIRST
        while True:
            entries = self._ask(segment, replica.version, ahead, until)
            for _, version, size, _, flags, _, data in entries:
                if not size:
                    return True
                number = replica.version + 1
                if flags & requests.INLINE:
                    replica.apply(data)
                else:
                    entry = self._entry(segment, number)
                    with self._store._door.get_view(entry, 0, self._left(until)) as view:
                        replica.apply(view)
                replica.last = segment, number, version
            if len(entries) < ahead:
                return False
            ahead = min(4 * ahead, AHEAD_MAX)

    def _ask(self, segment: int, version: int, ahead: int, until: float) -> list[Entry]:
        """The entries after the version, at most `ahead` of them, in one request. Asked for from
        behind, and the segment last: what was not there before it was, was not pushed."""
        folder = self._folder(segment)
        if ahead == AHEAD_FIRST:
            keys = [_entry(folder, version + 2), _entry(folder, version + 1), folder]
        else:
            keys = [_entry(folder, version + i) for i in range(ahead, 0, -1)] + [folder]
        left = until - time.monotonic()
        results = self._store._door.call_many(requests.GET, 0, keys, left if left > 0 else 0.0)
        status = results.pop()[0]
        if status != _IS_CONTAINER:
            raise self._store._error(-status or NotContainerError.status, folder, 0)
        entries = []
        while results:
            entry = results.pop()
            if entry[0]:
                if entry[0] in _ABSENT:
                    break
                raise self._store._error(-entry[0], folder, 0)
            entries.append(entry)
        return entries

    def _await_push(self, until: float, late: str) -> None:
        """Waits for the next number, or for a while."""
        entry = self._entry(self._segment, self._replica.version + 1)
        try:
            wait = requests.wait(entry, None, False, min(self._left(until), ROUND))
            self._store._run(wait, requests.WAY_BACK)
        except DeadlineError:
            if not self._left(until):
                raise DeadlineError(late, path=self.path) from None

    def _restart(self, until: float, segments: list[int] | None = None) -> None:
        """Begins with the newest base. `segments`: those that are there, if it is known."""
        while True:
            for segment in reversed(segments or self._segments(until)):
                if self._load_base(self._replica, segment, until):
                    self._segment = segment
                    self._began = self._replica.version
                    return
            segments = None
            if not self._left(until):
                raise DeadlineError(path=self.path)

    def _load_base(self, replica: Replica, segment: int, until: float) -> bool:
        """False: there is none (yet, or any more)."""
        if segment == 0:
            replica.start(None)
            replica.last = 0, 0, 0
            return True
        base = f"{self._folder(segment)}/base"
        try:
            with self._store._door.get_view(base, 0, self._left(until)) as view:
                replica.start(view)
                replica.last = segment, 0, view.version
        except NotFoundError:
            return False
        return True

    def _segments(self, until: float) -> list[int]:
        """Their numbers, in order: one, or two while the first is being removed."""
        return self._numbers(self._store.listdir(self.path, timeout=self._left(until)))

    def _numbers(self, names: list[str]) -> list[int]:
        found = [name.partition("-") for name in names]
        numbers = [int(number) for id_, _, number in found if id_ == self._id]
        if not numbers:
            raise NotFoundError("the model was removed, and made anew", path=self.path)
        return numbers

    # -- making it ------------------------------------------------------------------------

    def _open(self, until: float) -> None:
        """Finds the model, or makes it."""
        self._lanes_opened = certain(self._store)._session.lanes_opened
        while True:
            try:
                names = self._store.listdir(self.path, timeout=self._left(until))
                break
            except NotFoundError:
                if not self._create:
                    raise
                self._make(until)
        self._id = names[0].partition("-")[0] if names else ""
        if not self._id or not all(name.startswith(f"{self._id}-") for name in names):
            self._id = ""
            raise ExistsError("what is there is no model", path=self.path)
        try:
            self._keep(until)
            self._restart(until, self._numbers(names))
        except BaseException:
            self._id = ""  # it is not open, and may be there for a minute only
            raise

    def _make(self, until: float) -> None:
        """Makes it aside, then moves it to its place: there it never is without its first
        segment. Who dies in between leaves what goes by itself."""
        above = self.path.rpartition("/")[0]
        id_ = urandom(4).hex()
        aside = f"{above}/.model-{id_}"
        store = self._store
        store.mkdir(aside, parents=True, ttl=ASIDE_SECONDS, timeout=self._left(until))
        try:
            store.mkdir(f"{aside}/{id_}-{str(0).zfill(DIGITS)}", timeout=self._left(until))
            store.rename(aside, self.path, timeout=self._left(until))
        except ExistsError:  # another was faster
            store.rmtree(aside, timeout=self._left(until))

    def _keep(self, until: float) -> None:
        """Takes the limit away that it was made with, also if its maker died before."""
        info = self._store.stat(self.path, timeout=self._left(until))
        if info.expires is not None and info.expires - info.mtime <= ASIDE_SECONDS:
            self._store.setattr(self.path, ttl=None, timeout=self._left(until))

    # -- writing --------------------------------------------------------------------------

    def _create_entry(self, entry: str, data: Buffer, until: float) -> None:
        """Raises ExistsError, NotFoundError (the segment has gone)."""
        put, left = self._store._door.put, self._left(until)
        self._store._put(put, entry, data, requests.IF_ABSENT, 0, left, self._placement)

    def _stage(self, parts: list[Any], until: float) -> str:
        """Puts a push where it goes with this session, under a name of its own."""
        placed = self._store._placed(f"{self.path}/push", self._placement, self._left(until))
        session, folder = self._staging
        while True:
            if session != self._store._session.number:
                folder = self._store.session_path(timeout=self._left(until))
                session = self._store._session.number
                self._staging = session, folder
            key = f"{folder}/push-{self._store._token()}"
            try:
                self._store._door.put_parts(key, parts, 0, 0, *placed)
                return key
            except NotFoundError:  # it was removed
                if not session or not self._left(until):
                    raise
                session = 0

    def _publish(self, staged: str, entry: str, until: float) -> None:
        """Raises ExistsError, NotFoundError (the segment has gone, or what was staged)."""
        request = requests.rename(self._store._prefix, staged, entry, False)
        say_durability({self.path: self._placement}, request, entry)
        self._store._run(request, self._left(until))

    # -- keeping it small -------------------------------------------------------------------

    def _tidy(self, until: float) -> None:
        """Looks at the oldest segment: seals it if it is full, and removes it if it is sealed. Who
        fails or dies on the way leaves that to the next who looks."""
        try:
            segment = self._segments(until)[0]
            state = self._state(segment, until)
            if state == "full" and self._seal(segment, until):
                state = "sealed"
            if state == "sealed" and self._make_base(segment, until):
                old = requests.rmtree(self._folder(segment))
                old.absent = None
                self._store._run(old, self._left(until))
        except CrailError as error:
            self._doubt(error)

    def _state(self, segment: int, until: float) -> str:
        """open, full or sealed."""
        base, pushes = 0, []
        for info in self._store.scandir(self._folder(segment), timeout=self._left(until)):
            if info.name == "base":
                base = info.size
            elif info.name.isdecimal():
                pushes.append(info.size)
        if pushes and not pushes[-1]:
            return "sealed"
        is_full = len(pushes) >= SEGMENT_PUSHES or sum(pushes) > 2 * base + SEGMENT_BYTES
        return "full" if is_full else "open"

    def _seal(self, segment: int, until: float) -> bool:
        """Makes the next segment, out of this one, and then this one's last entry."""
        folder, left = self._folder(segment), self._left(until)
        made = requests.mkdir(f"{folder}/next", parents=False, exist_ok=True)
        self._store._run(made, left)
        try:
            self._store.rename(f"{folder}/next", self._folder(segment + 1), timeout=left)
        except (ExistsError, NotFoundError):
            pass  # somebody else did
        for _ in range(SEAL_TRIES):
            self._read(until)
            if self._segment != segment:
                return True
            try:
                entry = self._entry(segment, self._replica.version + 1)
                self._create_entry(entry, b"", until)
                return True
            except ExistsError:
                continue
        return False

    def _make_base(self, segment: int, until: float) -> bool:
        """The base of the segment after this one. False: another is making it. One at a time does,
        to save work; but who has the turn and is stopped is not waited for without end."""
        target = self._folder(segment + 1)
        if self._store.exists(f"{target}/base", timeout=self._left(until)):
            return True
        put = self._store._door.put
        turn, owned = f"{target}/turn", {"session": True}
        try:
            self._store._put(put, turn, b"", requests.IF_ABSENT, 0, self._left(until), owned)
        except ExistsError:
            if self._state(segment + 1, until) == "open":
                return False
            turn = ""
        try:
            self._put_base(target, self._condensed(segment, until), until)
        finally:
            if turn:
                self._store.delete(turn, missing_ok=True, timeout=END_TIMEOUT)
        return True

    def _put_base(self, folder: str, parts: list[Any], until: float) -> None:
        put, left = self._store._door.put_parts, self._left(until)
        try:
            base, flags = f"{folder}/base", requests.IF_ABSENT
            self._store._put(put, base, parts, flags, 0, left, self._placement)
        except ExistsError:  # the same one
            pass

    def _condensed(self, segment: int, until: float) -> list[Any]:
        """The parts of the base that has all of a sealed segment."""
        self._read(until)
        replica = self._replica
        is_at_its_end = self._segment == segment + 1 and replica.version == self._began
        if not is_at_its_end or not all(map(replica.has, replica.kinds)):
            replica = Replica(keeps_all=True)
            if not self._load_base(replica, segment, until):
                raise NotFoundError("it has gone", path=self._folder(segment))
            self._follow(replica, segment, until)
        return replica.base()


class _Push:
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
        if model._lanes_opened != model._store._session.lanes_opened:
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
        if model._lanes_opened == model._store._session.lanes_opened:
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
                self._staged = model._stage(parts, self._until)
            model._publish(self._staged, entry, self._until)
            self._staged = ""
        except ExistsError:  # another push
            return False
        except NotFoundError:  # the segment has gone, or what was staged
            self.end()
            return False
        return True

    def end(self) -> None:
        """Removes what is staged; else it goes with the session."""
        if self._staged:
            try:
                store = self._model._store
                store.delete(self._staged, missing_ok=True, timeout=END_TIMEOUT)
            except CrailError:
                pass
            self._staged = ""


def model(
    store: Store,
    path: str,
    create: bool = True,
    *,
    timeout: float | None = None,
    **placement: Any,
) -> Model:
    """The model at `path`, made at the first call where there is none (unless `create` is false:
    NotFoundError). `timeout`: of its calls, in seconds (None: the store's). `placement` (`tier=`,
    `strict=`, `location=`, `stripe=`, `wait_space=`, `durability=`) holds for what is pushed by it.
    It goes with its job, or by `rmtree`. Raises InvalidArgumentError for what is said of single
    nodes (`ttl=` ...), and for a store that answers while it is away."""
    check_home(placement)
    made = Model(address_of(certain(store)), path, create, timeout, placement)
    made._store = store
    return made
