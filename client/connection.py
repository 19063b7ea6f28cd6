"""The ground of a store: what it is connected to, and how a request goes there and comes back.

Every call goes straight to the hot door (`crailpy._hot`), which does its I/O on the calling thread.
What cannot be decided there (opening connections, attaching servers, errors with words) comes back
here through `_open_lane`, `_stay`, `_attach`, `_error`, `_delivered` and `_after_fork`.
"""

from __future__ import annotations

import time
from _thread import LockType, allocate_lock
from itertools import count
from os import getpid

from crailpy import hello, native
from crailpy.errors import (
    BatchError,
    CrailError,
    DeadlineError,
    InvalidArgumentError,
    OutOfSpaceError,
    UnavailableError,
    from_status,
)

from . import requests
from .session import Address, Session, explain_deadline, explain_space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self, TypeVar

    from .breaker import Breaker
    from .lifetimes import Job
    from .requests import Buffer, Request, Result

    T = TypeVar("T")

STATUS_TIMEOUT = 1.0  # seconds to find out more about a failure
LATE_TIMEOUT = 0.25  # the same, where there is no time left
TIMEOUT_DEFAULT = float("10")  # of connect(): this very object says that none was given
TRANSPORTS = (None, "shm", "tcp")
UNAVAILABLE = ("raise", "miss")


def check_options(address: object, timeout: object, transport: object, namespace: object) -> float:
    """Of connect(): the timeout as a float. Raises InvalidArgumentError."""
    if not isinstance(address, str):
        raise InvalidArgumentError(f"address {address!r} is no text like crail://host:port")
    if transport not in TRANSPORTS:
        raise InvalidArgumentError(f"transport {transport!r} is none of {TRANSPORTS}")
    if not isinstance(namespace, str) or not namespace.startswith("/"):
        raise InvalidArgumentError(f"namespace {namespace!r} is no path like /job")
    if {".", ".."} & set(namespace.split("/")) or "//" in namespace or "\0" in namespace:
        raise InvalidArgumentError(f"namespace {namespace!r} is no path like /job")
    return requests.seconds(timeout, "timeout")


class Connection:
    """What every face of `Store` stands on."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        transport: str | None = None,
        namespace: str = "/",
        on_unavailable: str = "raise",
        ring: bool = True,
    ) -> None:
        timeout = check_options(address, timeout, transport, namespace)
        if on_unavailable not in UNAVAILABLE:
            raise InvalidArgumentError(
                f"on_unavailable {on_unavailable!r} is none of {UNAVAILABLE}"
            )
        self._options: dict[str, Any] = {
            "token": token,
            "timeout": timeout,
            "transport": transport,
            "namespace": namespace,
            "on_unavailable": on_unavailable,
            "ring": ring,
        }
        self._timeout = timeout
        try:
            self._address = Address(address)
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
        prefix = namespace.rstrip("/")
        self._prefix = prefix
        self._closed = False
        self._tokens = count(1)
        self._tiers: dict[int, str] = {}
        self._homes: dict[str, dict[str, Any]] = {}  # default placement below these paths
        self._jobs: list[Job] = []  # shares that are held
        self._fork_locks: dict[
            int, LockType
        ] = {}  # by process: a child's is never held at its fork
        self._session = self._new_session()
        #: The hot door; `_hot` may answer in its place while the store is away.
        self._door = native.Client(self._session.core.address, self, prefix.encode(), timeout)
        self._hot: Any = self._door
        self._breaker: Breaker | None = None
        if on_unavailable == "miss":
            from .breaker import Breaker

            self._hot = self._breaker = Breaker(self._door)
        try:
            self._run(requests.ping())
        except (UnavailableError, DeadlineError):
            if self._breaker is None:
                self.close()
                raise
        except BaseException:
            self.close()
            raise

    def _new_session(self) -> Session:
        return Session(
            self._address,
            token=self._options["token"],
            transport=self._options["transport"],
            timeout=self._timeout,
            ring=self._options["ring"],
        )

    @property
    def address(self) -> str:
        """The address that this store was connected to."""
        return self._address.text

    # -- what the hot door asks for -------------------------------------------

    def _open_lane(self, number: int, mutating: bool, attempt: int, deadline: float) -> None:
        self._session.open_lane(number, mutating, attempt, deadline)
        for job in self._jobs[:]:  # in another session, perhaps
            job._hold_again(deadline)

    def _stay(self) -> None:
        if self._session.core.is_of_this_process():
            self._session.stay()

    def _attach(self, server: int, lane: int, need: int, deadline: float) -> None:
        self._session.attach(server, lane, need, deadline, self._describe)

    def _describe(self, server: int, timeout: float) -> bytes:
        description: bytes = self._run(requests.describe_server(server), timeout)
        return description

    @property
    def _kept(self) -> str:
        """What the namenode promises of all that lies with it."""
        return self._session.durability

    def _kept_at(self, path: Any) -> str:
        """What is promised of a node there: a job of this store may have said less of it."""
        if not self._homes:
            return self._kept
        from .placement import kept_at

        return kept_at(self._homes, path, self._kept)

    def _tier_of(self, server: int) -> str | None:
        """The name of its tier; None if nobody can say."""
        if server not in self._tiers:
            try:
                about = hello.unpack(self._describe(server, self._timeout))
            except CrailError:
                return None
            self._tiers[server] = about["tier"]
        return self._tiers[server]

    def _token(self) -> int:
        """A number for a hold: unique in this store, so also in its session."""
        return next(self._tokens)

    def _error(self, status: int, path: str | None, server: int) -> CrailError:
        error = from_status(status, path=path, server=str(server) if server else None)
        if isinstance(error, OutOfSpaceError):
            explain_space(error, self._facts(STATUS_TIMEOUT))
        elif isinstance(error, DeadlineError) and not server and self._kept != "none":
            explain_deadline(error, self._facts(LATE_TIMEOUT))
        return error

    def _facts(self, timeout: float) -> dict[str, Any]:
        """The namenode's `status`; nothing where it cannot be had in this time, in seconds."""
        try:
            facts: dict[str, Any] = self._session.admin("status", {}, time.monotonic() + timeout)
        except (CrailError, OSError):
            return {}
        return facts

    def _delivered(self, key: str, version: int, deadline: float) -> None:
        """All of a value that goes when it was read has been read: it goes, unless another took
        its place. At least once: where that cannot be said, it stays for another reader."""
        try:
            left = max(1.0, deadline - time.monotonic())
            self._run(requests.delivered(key, version), left)
        except CrailError:
            pass

    def _after_fork(self) -> None:
        """In a forked child: a session of its own. The first of its threads opens it for all."""
        lock = self._fork_locks.setdefault(getpid(), allocate_lock())
        with lock:
            if self._session.core.is_of_this_process():
                return
            self._session.abandon()
            self._session = self._new_session()
            self._door.rebind(self._session.core.address)

    # -- life -------------------------------------------------------------------

    def close(self) -> None:
        """Ends the session. May be called twice; views that are alive stay readable."""
        if self._closed:
            return
        self._closed = True
        if getattr(self, "_door", None) is None:
            return
        if self._session.number and self._session.core.is_of_this_process():
            try:
                self._run(requests.bye(), min(1.0, self._timeout))
            except CrailError:
                pass  # then the namenode learns it from the sockets
            finally:
                self._disconnect()
        else:
            self._disconnect()

    def _disconnect(self) -> None:
        self._door.rebind(0)
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconnect, (type(self), self._address.text, self._options)

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<crailpy.{type(self).__name__} {self._address.text}{self._prefix or '/'}{state}>"

    def _call(
        self,
        code: int,
        flags: int,
        key: str | None,
        data: Buffer = b"",
        arg0: int = 0,
        arg1: int = 0,
        timeout: float | None = None,
        *,
        count: int = 0,
        options: bytes = b"",
    ) -> Result:
        """One operation of wire.h: (version, size, kind, flags, count, data) of its result."""
        result: Result = self._hot.call(code, flags, key, data, count, options, arg0, arg1, timeout)
        return result

    def _run(self, request: Request, timeout: float | None = None) -> Any:
        """Sends the request and gives what its answer means."""
        r = request
        if self._homes:
            from .placement import say_durability

            say_durability(self._homes, r, r.path)
        try:
            if r.wait is None:
                result = self._call(
                    r.code,
                    r.flags,
                    r.path,
                    r.data,
                    r.arg0,
                    r.arg1,
                    timeout,
                    count=r.count,
                    options=r.options,
                )
            else:
                result = self._wait(
                    lambda ms, timeout: self._call(
                        r.code, r.flags | requests.WAIT, r.path, r.data, r.arg0, r.arg1, timeout,
                        count=ms, options=r.options,
                    ),
                    r.wait,
                    timeout,
                )  # fmt: skip
        except requests.ABSENT_ERRORS as error:
            if r.absent is requests.RAISE:
                r.explain(error)
                raise
            return r.absent
        except CrailError as error:
            r.explain(error)
            raise
        return r.decode(result)

    def _wait(self, ask: Callable[[int, float], T], seconds: float, timeout: float | None) -> T:
        """Calls `ask(milliseconds to be set aside, timeout)` until it does not raise DeadlineError,
        or until `seconds` are over. `timeout` comes on top: for the way there and back."""
        limit = self._timeout if timeout is None else timeout
        pieces = requests.WaitPieces(seconds)
        while True:
            ms = pieces.next_ms()
            try:
                return ask(ms, ms / 1000 + limit)
            except DeadlineError as error:
                pieces.over(error)


def _reconnect(cls: type[Connection], address: str, options: dict[str, Any]) -> Connection:
    return cls(address, **options)


def all_or_batch_error(results: list[Any]) -> list[Any]:
    """The results of many, or a BatchError if there is an error among them."""
    failed = sum(isinstance(r, Exception) for r in results)
    if not failed:
        return results
    first = next(r for r in results if isinstance(r, Exception))
    raise BatchError(
        f"{failed} of {len(results)} failed, the first with: {first}", results=results
    ) from first
