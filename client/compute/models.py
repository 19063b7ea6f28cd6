"""A model: named tensors that many processes change and read, as a log of pushes.

Each push is a file, created exclusively at the next number; a reader adds up what is new to it. The
log is cut into segments, directories that begin with a base and go as a whole. Why no number is
used twice, and what a death leaves, is told in docs/adr/0006-compute.md, "Model".
"""

from __future__ import annotations

import time
from _thread import allocate_lock
from os import urandom
from typing import Any

from crailpy.errors import (
    ClosedError,
    CrailError,
    DeadlineError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
)

from .. import requests
from ..placement import check_home
from . import compaction, stores
from .pushes import Push
from .replica import Replica
from .stores import address_of, certain, current, folder_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crailpy.native import Follower

    from ..requests import Buffer
    from ..store import Store
    from .replica import Key
    from .tensors import Array

    #: entries of a log, (version, size, bytes or None) each, and how many were asked for
    Asked = tuple[list[tuple[int, int, bytes | None]], int]

ASIDE_SECONDS = 60.0  # a model is made in less
ROUND = 1.0  # seconds of one wait for a push: its segment may be removed before it is asked for
AHEAD_FIRST, AHEAD_MAX = 2, 64  # pushes that are asked for at once; the first are cheap
DIGITS = 10  # so that names are in the order of their numbers


def _entry(folder: str, number: int) -> str:
    return f"{folder}/{str(number).zfill(DIGITS)}"


class _Turn:
    """A block that one thread at a time may be in; another is told so, for to wait might be for
    what it should do itself."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pid = stores.this_process
        self._lock = allocate_lock()

    def __enter__(self) -> None:
        if self._pid != stores.this_process:  # forked while a thread was in it
            self._pid, self._lock = stores.this_process, allocate_lock()
        if not self._lock.acquire(blocking=False):
            raise InvalidArgumentError(
                "a model is used by one thread at a time",
                path=self._path,
                hint="give each thread a model of its own",
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Model:
    """Named NumPy tensors at `path`, and what this process knows of them. For one thread at a time:
    a second is refused (InvalidArgumentError). It pickles as a handle; nothing is asked of the
    store before the first call."""

    def __init__(
        self,
        address: tuple[Any, ...],
        path: str,
        create: bool,
        parents: bool,
        timeout: float | None,
        placement: dict[str, Any],
    ) -> None:
        self._address = address
        self._create = create
        self._parents = parents
        self._timeout = timeout
        self._placement = placement
        self.path = folder_of(path)
        self._turn = _Turn(path)
        self._connection: Store | None = None  # from the first call on
        self._is_given = False  # by who made it
        self._forget()

    def _forget(self) -> None:
        self._pid = stores.this_process
        self._id = ""  # of the model that lies at the path
        self._segment = 0
        self._began = 0  # the version that the segment begins with
        self._named = -1, ""  # segment, its path: asked for in every call
        self._replica = Replica()
        self._follower: Follower | None = (
            None  # of what was pulled last: it may be ahead of the replica
        )
        self._pushed = 0
        self._lanes_opened = 0  # when what was applied last was known to be there
        self._asked: Any = ()  # names of the last pull: who asks for them again is followed
        self._staging = (0, "")  # session, its directory

    @property
    def _store(self) -> Store:
        assert self._connection is not None, "every call begins with one"
        return self._connection

    # -- the face -----------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The number of the last push that this object has read or made; they count from 1."""
        with self._turn:
            self._note()
        return max(self._replica.version, self._pushed)

    @property
    def steps(self) -> dict[str, int]:
        """The last step of each worker, as of what was read last."""
        with self._turn:
            self._note()
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
        with self._turn:
            return self._push(updates, op, worker, step, if_version, timeout)

    def _push(
        self,
        updates: Mapping[Key, Any],
        op: str,
        worker: str | None,
        step: int | None,
        if_version: int | None,
        timeout: float | None,
    ) -> int:
        until = self._begin(timeout)
        if (worker is None) != (step is None):
            raise InvalidArgumentError("worker= and step= belong together", path=self.path)
        who = None
        if worker is not None:
            if not isinstance(worker, str):
                raise InvalidArgumentError(f"worker={worker!r} is no name", path=self.path)
            who = worker, requests.unsigned(step, "step")
        push = Push(self, updates, op, who, if_version, until)
        try:
            self._note()
            while not push.is_done():
                self._read(until)
            self._pushed = push.number
            if compaction.is_due(push.number, push.bytes):
                compaction.tidy(self, until)
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
        if type(names) is tuple:
            names = [names] if tuple(map(type, names)) == (str, int, int) else list(names)
        began, follower = time.monotonic(), self._follower
        if follower is not None and min_version is min_step is workers is None:
            try:  # the same as last time takes no more, mostly, than to add up what was pushed
                found = follower.pull(names, self._timeout if timeout is None else timeout)
                if found is not None:
                    return found
            except (NotFoundError, ClosedError):  # the segment has gone, or the connection
                pass
        with self._turn:
            return self._pull(names, min_version, min_step, workers, timeout, began)

    def _pull(
        self,
        names: Any,
        min_version: int | None,
        min_step: int | None,
        workers: int | None,
        timeout: float | None,
        began: float,
    ) -> dict[Key, Array]:
        rest = None
        if self._follower is not None:
            rest = self._follower.rest()
            if rest is None and (min_version is not None or (min_step is not None and workers)):
                found, rest = self._pull_ahead(names, timeout)
                if found and not self._late(min_version or 0, min_step, workers or 0):
                    return found
        until = self._begin(timeout, names is None, began)
        if (min_step is None) != (workers is None):
            raise InvalidArgumentError("min_step= and workers= belong together", path=self.path)
        replica = self._replica
        try:
            self._read(until, rest)
            if min_version is not None or min_step is not None:
                while late := self._late(min_version or 0, min_step, workers or 0):
                    self._await_push(until, late)
                    self._read(until)
            asked: Any = names
            if names is None:
                replica.keeps_all = True
            elif isinstance(names, str):
                names = [names]
            else:
                asked = names = list(names)
            found = replica.hand_out(replica.kinds if names is None else names)
            if found is None:
                found = self._fetch(names, until)
            self._follow_on(asked, found)
            return found
        except BaseException as error:
            self._doubt(error)
            raise

    def _pull_ahead(
        self, names: Any, timeout: float | None
    ) -> tuple[dict[Key, Array] | None, Asked | None]:
        """What there is already, if it takes no more than to add up what was pushed; what was asked
        for to find out."""
        assert self._follower is not None
        try:
            found = self._follower.pull(names, self._timeout if timeout is None else timeout)
        except (NotFoundError, ClosedError):  # the segment has gone, or the connection
            return None, None
        if found is None:
            return None, self._follower.rest()
        self._note()
        return found, ([], AHEAD_FIRST)

    def _follow_on(self, asked: Any, found: dict[Key, Array]) -> None:
        """Who asks for the same again, goes on from here the next time, in the core, as long as
        there is nothing new, or what is like the last push."""
        if asked != self._asked:
            self._asked = asked
            return
        replica = self._replica
        self._follower = self._store._door.follower(
            self._folder(self._segment), replica.version, replica.last[2], self._lanes_opened,
            asked, found.copy(), replica.alike(found),
        )  # fmt: skip

    def _note(self) -> None:
        """What the follower has added up is the replica's, too."""
        if self._follower is None:
            return
        number, version, found, facts = self._follower.state()
        try:
            if number != self._replica.version:
                self._replica.last = self._segment, number, version
            self._replica.advance(number, found, facts)
        except BaseException:  # the facts are told once
            self._id, self._follower = "", None
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
        with self._turn:
            until = self._begin(timeout)
            try:
                self._read(until)
            except BaseException as error:
                self._doubt(error)
                raise
            return {name: (kind.shape, kind.dtype) for name, kind in self._replica.kinds.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        how = self._create, self._parents, self._timeout, self._placement
        return Model, (self._address, self.path, *how)

    def __repr__(self) -> str:
        return f"<crailpy.Model {self.path} version {max(self._replica.version, self._pushed)}>"

    # -- small things ---------------------------------------------------------------------

    def _begin(
        self, timeout: float | None, wants_all: bool = False, began: float | None = None
    ) -> float:
        """When the call, which began then or now, is to end. Opens the model at the first one, and
        again over another connection, and in a forked child: what lies over mapped memory is its
        parent's."""
        if not self._is_given:
            store = current(self._connection, self._address)
            if store is not self._connection:
                self._connection, self._id = store, ""
        if timeout is None:
            timeout = self._timeout
        limit = self._store._timeout if timeout is None else requests.seconds(timeout, "timeout")
        until = (time.monotonic() if began is None else began) + limit
        if not self._id or self._pid != stores.this_process:
            self._forget()
            self._replica.keeps_all = wants_all
            self._open(until)
        return until

    def _doubt(self, error: BaseException) -> None:
        """What is no answer of the store (an interrupt, no memory) may have come while a push was
        applied, and left half of it: the next call begins with the base."""
        if isinstance(error, ProtocolError) or not isinstance(error, CrailError):
            self._id, self._follower = "", None

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

    def _read(self, until: float, rest: Asked | None = None) -> None:
        """Applies all that was pushed. `rest`: what was asked for just now."""
        self._note()
        self._follower = None
        while True:
            try:
                asked, rest = rest, None
                if self._follow(self._replica, self._segment, until, asked):
                    self._segment += 1
                    self._began = self._replica.version
                elif self._lanes_opened == self._store._door.lanes_opened:
                    return
                else:
                    self._verify(until)
            except NotFoundError:
                self._restart(until)

    def _verify(self, until: float) -> None:
        """A namenode that was started anew may have lost the last pushes (durability="group"), and
        the same numbers may be others by now. Raises NotFoundError where that is so."""
        opened = self._store._door.lanes_opened
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
        self._follower = None
        self._replica.distrust()
        self._pushed = 0

    def _is_reached(self, segment: int, number: int, until: float) -> bool:
        """Is an entry of the log that there is now, or did a namenode lose those before it?"""
        self._distrust()
        self._restart(until)
        self._read(until)
        return self._replica.version >= number and self._segment >= segment

    def _follow(
        self, replica: Replica, segment: int, until: float, asked: Asked | None = None
    ) -> bool:
        """Applies what is new of the segment; True when that was its end. Raises NotFoundError when
        it has gone."""
        door, folder = self._store._door, self._folder(segment)
        ahead = AHEAD_FIRST
        while True:
            if asked:
                (entries, ahead), asked = asked, None
            else:
                entries = door.follow(folder, replica.version, ahead, self._left(until))
            if self._lanes_opened != door.lanes_opened:  # they may be of another life
                self._verify(until)
                continue
            for version, size, data in entries:
                if not size:
                    return True
                number = replica.version + 1
                if data is not None:
                    replica.apply(data)
                else:
                    entry = self._entry(segment, number)
                    with self._store._door.get_view(entry, 0, self._left(until)) as view:
                        replica.apply(view)
                replica.last = segment, number, version
            if len(entries) < ahead:
                return False
            ahead = min(4 * ahead, AHEAD_MAX)

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
        door = self._store._door
        while True:
            opened = door.lanes_opened
            if self._lanes_opened != opened:  # what is newer than the base may be gone
                self._distrust()
            for segment in reversed(segments or self._segments(until)):
                if self._load_base(self._replica, segment, until) and door.lanes_opened == opened:
                    self._segment = segment
                    self._began = self._replica.version
                    self._lanes_opened = opened
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
        self._lanes_opened = certain(self._store)._door.lanes_opened
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
        store.mkdir(aside, parents=self._parents, ttl=ASIDE_SECONDS, timeout=self._left(until))
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


def model(
    store: Store,
    path: str,
    create: bool = True,
    *,
    parents: bool = True,
    timeout: float | None = None,
    **placement: Any,
) -> Model:
    """The model at `path`, made at the first call where there is none (unless `create` is false:
    NotFoundError). `timeout`: of its calls, in seconds (None: the store's). `placement` (`tier=`,
    `strict=`, `location=`, `stripe=`, `wait_space=`, `durability=`) holds for what is pushed by it.
    It goes with its job, or by `rmtree`. Raises InvalidArgumentError for what is said of single
    nodes (`ttl=` ...), and for a store that answers while it is away."""
    check_home(placement)
    made = Model(address_of(certain(store)), path, create, parents, timeout, placement)
    made._connection, made._is_given = store, True
    return made
