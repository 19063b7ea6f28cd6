"""How long nodes live, and what else is known about them: jobs, the session's directory,
attributes."""

from __future__ import annotations

import time

from crailpy.errors import CrailError, InvalidArgumentError, SessionLostError

from . import requests
from .waiting import END_TIMEOUT, Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .requests import Request

JOBS = "/jobs"
SESSIONS = "/sessions"


def _lasting(durability: str) -> str | None:
    """durability= of what others go with. It lasts before it is told: if a namenode lost it, who
    puts something below its path would make a directory there that is nobody's."""
    return None if durability == "none" else "sync"


def job_options(name: str, ttl: float, placement: dict[str, Any], durability: str) -> bytes:
    """Options of a job; `durability`: what the namenode promises. Raises InvalidArgumentError for
    what is no name of a job, and for what cannot be said of all below it."""
    from .placement import check_home, pack

    if not name or "/" in name:
        raise InvalidArgumentError(f"job({name!r}): a name without a slash")
    placement.pop("parents", None)  # /jobs is made where it is not there
    check_home(placement)
    return pack(ttl=ttl, durability=_lasting(durability) or placement.get("durability"))[0]


def job_lost(path: str) -> SessionLostError:
    return SessionLostError(
        "the job ended while the session that had a share in it was lost: its nodes are gone",
        path=path,
        hint="begin it anew",
    )


def session_directory(name: int | str, durability: str) -> tuple[str, Request, Request]:
    """Of a directory that goes with a session, as the one called by its number: the path, the
    request that makes it where it is not, and the one that makes it the session's own, whoever has
    made it. `durability`: what the namenode promises; "none" if it was made before."""
    from .placement import pack

    path = f"{SESSIONS}/{name}"
    made = requests.mkdir(path, parents=True, exist_ok=True, options=pack(session=True)[0])
    options, _ = pack(session=True, durability=_lasting(durability))
    return path, made, requests.set_attributes(path, {}, options)


def check_attributes(path: str, attributes: dict[str, Any]) -> bytes:
    """Takes `ttl` out of what setattr() was given: the options that say it. Raises
    InvalidArgumentError for a name that is no attribute."""
    from .placement import ttl_only

    options = b""
    if "ttl" in attributes:
        options = ttl_only(attributes.pop("ttl"))
    for name in attributes:
        if not name.startswith("user.") or name == "user.":
            raise InvalidArgumentError(f"{name!r} is no attribute: ttl, or user.NAME", path=path)
    return options


class Lifetimes(Waiting):
    """The part of a `Store` that knows when nodes go."""

    _directory_of = 0  # the session that has made its directory

    def job(
        self,
        name: str,
        *,
        ttl: float = 60.0,
        quota_bytes: int | str | None = None,
        quota_nodes: int | None = None,
        timeout: float | None = None,
        **placement: Any,
    ) -> Job:
        """A share in the job `name`: its directory `/jobs/NAME`, made by the first who comes.

        What lies in it, and every node made with `job=`, goes when the last share is closed, or
        `ttl` seconds after the last session that had one has ended. `quota_bytes` and `quota_nodes`
        limit what lies there ("64MiB"; QuotaExceededError); the last who says them decides.
        `placement` (`tier`, `strict`, `location`, `stripe`, `wait_space`) holds for what this store
        makes below its path, until the share is closed, where the call does not say otherwise; so
        does `durability`, for all that it changes there.
        Raises InvalidArgumentError, ExistsError (something else is there)."""
        options = job_options(name, ttl, placement, self._session.durability)
        request = (options, quota_bytes, quota_nodes)
        return Job(self, f"{JOBS}/{name}", request, placement, timeout)

    def session_path(self, *, timeout: float | None = None) -> str:
        """The path of a directory that goes, with all in it, when this session ends: at `close()`,
        or when this process is gone. It is there when this returns, also if it was removed since.
        A forked child has another. Raises ExistsError (something else is there)."""
        self._run(requests.ping(), timeout)  # in a forked child, this opens the session
        number = self._session.number
        kept = "none" if self._directory_of == number else self._session.durability
        path, made, owned = session_directory(number, kept)
        self._run(made, timeout)
        self._run(owned, timeout)
        self._directory_of = number
        return path

    def setattr(self, path: str, *, timeout: float | None = None, **attributes: Any) -> None:
        """Changes attributes of a node, all at once: `ttl=` seconds after its last commit (None: no
        limit), and user attributes, `**{"user.NAME": bytes}` (None takes one away), together at
        most 64 KiB a node. Raises NotFoundError, InvalidArgumentError."""
        options = check_attributes(path, attributes)
        self._run(requests.set_attributes(path, attributes, options), timeout)

    def attributes(self, path: str, *, timeout: float | None = None) -> dict[str, bytes]:
        """The user attributes of a node. Raises NotFoundError."""
        found: dict[str, bytes] = self._run(requests.attributes(path), timeout)
        return found


class Job:
    """A share in a job, see `Store.job`. A context manager; `job=` of every call that makes nodes
    takes it. When the session was lost that it was made in, it is taken again in the next one, at
    its first call; if the job has ended by then, `number`, every call with `job=`, and `close()`
    raise SessionLostError."""

    def __init__(
        self,
        store: Lifetimes,
        path: str,
        terms: tuple[bytes, int | str | None, int | None],
        placement: dict[str, Any],
        timeout: float | None,
    ) -> None:
        self._store = store
        self._token = store._token()
        self._closed = False
        self._lost = False
        self._placement = placement
        self.path = path
        options, quota_bytes, quota_nodes = terms
        request = requests.job(path, self._token, quota_bytes, quota_nodes, options)
        self._number: int = store._run(request, timeout)
        self._session = store._session.number  # which holds the share
        store._jobs.append(self)
        if placement:
            store._homes[path] = placement

    @property
    def number(self) -> int:
        """What the job is called on the wire. Raises SessionLostError."""
        if self._lost:
            raise job_lost(self.path)
        return self._number

    def _hold_again(self, deadline: float) -> None:
        """Takes the share in the session that there is now, unless it is the one that has it. A
        session that cannot be asked has it later: at its next connection."""
        session = self._store._session.number
        if session == self._session or self._lost:
            return
        self._session = session  # at once: to ask may open another connection
        left = min(END_TIMEOUT, max(0.0, deadline - time.monotonic()))
        try:
            number = self._store._run(requests.job_again(self.path, self._token), left)
        except requests.JOB_ENDED:
            self._lost = True
        except CrailError:
            self._session = 0
        except BaseException:
            self._session = 0
            raise
        else:
            if number != self._number:  # another one of the same name
                self._lost = True
                self._store._end(self._token)

    def close(self) -> None:
        """Gives the share back; the last one takes the job's nodes along. May be called twice.
        Raises SessionLostError (the job had ended), UnavailableError, DeadlineError."""
        if self._closed:
            return
        self._store._run(requests.end(self._token))
        self._closed = True
        self._store._jobs.remove(self)
        if self._store._homes.get(self.path) is self._placement:
            del self._store._homes[self.path]
        if self._lost:
            raise job_lost(self.path)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except SessionLostError:
            if kind is None:  # else there is something more to be told
                raise

    def __repr__(self) -> str:
        state = " lost" if self._lost else " closed" if self._closed else ""
        return f"<crailpy.Job {self.path}{state}>"
