"""How long nodes live, and what else is known about them: jobs, the session's directory,
attributes."""

from __future__ import annotations

from crailpy.errors import InvalidArgumentError, NotFoundError

from . import requests
from .waiting import Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .requests import Request

JOBS = "/jobs"
SESSIONS = "/sessions"


def job_options(name: str, ttl: float, placement: dict[str, Any]) -> bytes:
    """Options of a job. Raises InvalidArgumentError for what is no name of one, and for placement:
    its directory holds no bytes."""
    from .placement import pack

    if not name or "/" in name:
        raise InvalidArgumentError(f"job({name!r}): a name without a slash")
    placement.pop("parents", None)  # /jobs is made where it is not there
    if pack(**placement)[0]:
        raise InvalidArgumentError(
            f"job({name!r}): {', '.join(placement)} say nothing of a directory",
            hint="say it where values are put",
        )
    return pack(ttl=ttl)[0]


def session_directory(number: int) -> tuple[str, Request, Request]:
    """Of a session: the path of its directory, the request that makes it the session's own where it
    is, whoever made it, and the one that makes it where it is not."""
    from .placement import pack

    path = f"{SESSIONS}/{number}"
    options, _ = pack(session=True)
    owned = requests.set_attributes(path, {}, options)
    return path, owned, requests.mkdir(path, parents=True, exist_ok=True, options=options)


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
        limit what lies there ("64MiB"; QuotaExceededError); the last who says them decides. Raises
        InvalidArgumentError, ExistsError (something else is there)."""
        options = job_options(name, ttl, placement)
        return Job(self, f"{JOBS}/{name}", options, quota_bytes, quota_nodes, timeout)

    def session_path(self, *, timeout: float | None = None) -> str:
        """The path of a directory that goes, with all in it, when this session ends: at `close()`,
        or when this process is gone. It is there when this returns, also if it was removed since.
        A forked child has another."""
        self._run(requests.ping(), timeout)  # in a forked child, this opens the session
        path, owned, made = session_directory(self._session.number)
        try:
            self._run(owned, timeout)
        except NotFoundError:
            self._run(made, timeout)
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
    takes it. A share ends with the session it was made in."""

    def __init__(
        self,
        store: Lifetimes,
        path: str,
        options: bytes,
        quota_bytes: int | str | None,
        quota_nodes: int | None,
        timeout: float | None,
    ) -> None:
        self._store = store
        self._token = store._token()
        self._closed = False
        self.path = path
        #: What the job is called on the wire.
        self.number: int = store._run(
            requests.job(path, self._token, quota_bytes, quota_nodes, options), timeout
        )

    def close(self) -> None:
        """Gives the share back; the last one takes the job's nodes along. May be called twice.
        Raises UnavailableError, DeadlineError."""
        if not self._closed:
            self._store._run(requests.end(self._token))
            self._closed = True

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<crailpy.Job {self.path}{' closed' if self._closed else ''}>"
