"""The ground of an asynchronous store: what it is connected to, and how a request goes there and
comes back."""

from __future__ import annotations

import asyncio
import math
import warnings
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from crailpy import native
from crailpy.errors import (
    ClosedError,
    CrailError,
    DeadlineError,
    InvalidArgumentError,
    UnavailableError,
)

from .. import requests
from ..breaker import Circuit
from ..connection import LATE_TIMEOUT, UNAVAILABLE, check_options
from ..session import Address, explain_deadline
from .breaker import LaneBreaker
from .session import AsyncSession
from .transfer import Transfers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType
    from typing import Self, TypeVar

    from ..requests import Request, Result
    from .lifetimes import AsyncJob

    T = TypeVar("T")
    Ask = Callable[[int, float | None], Awaitable[Result]]

RECORDED_FIRST, HOLDS_FIRST = 16, 48  # operations that carry a sequence number (wire.h)
UNCONNECTED = "the store is not connected: `await` it, or use `async with`"


class NotConnected:
    """In the place of what a store has once it is connected: says so."""

    def __getattr__(self, name: str) -> Any:
        raise ClosedError(UNCONNECTED)


NOT_CONNECTED = NotConnected()


class AsyncConnection:
    """What every part of `AsyncStore` stands on. Connected by `await`, or by `async with`."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None,
        timeout: float,
        transport: str | None,
        namespace: str,
        on_unavailable: str,
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
        }
        try:
            self._address = Address(address)
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
        self._timeout = timeout
        self._prefix = namespace.rstrip("/")
        self._closed = False
        self._opened: AsyncSession | None = None
        self._circuit = Circuit() if on_unavailable == "miss" else None
        self._reads: native.AsyncLane = cast("Any", NOT_CONNECTED)
        self._changes: native.AsyncLane = cast("Any", NOT_CONNECTED)
        #: The lane of changes; `_changes` may answer in its place while the store is away.
        self._certain: native.AsyncLane = cast("Any", NOT_CONNECTED)
        self._transfers: Transfers = cast("Any", NOT_CONNECTED)
        self._tokens = count(1)
        self._homes: dict[str, dict[str, Any]] = {}  # default placement below these paths
        self._jobs: list[AsyncJob] = []  # shares that are held
        self._tiers: dict[int, str] = {}  # of storage servers, by their numbers

    # -- life ----------------------------------------------------------------------

    async def _connect(self) -> Self:
        if self._closed:
            raise ClosedError("the store is closed")
        if self._opened is not None:
            self._opened.check_loop()
            return self
        self._opened = AsyncSession(
            self._address,
            token=self._options["token"],
            transport=self._options["transport"],
            timeout=self._timeout,
            prefix=self._prefix.encode(),
        )
        # What every call uses; bound here, so that it costs one attribute.
        self._reads = self._opened.reads.native
        self._changes = self._certain = self._opened.changes.native
        if self._circuit is not None:
            self._reads = cast("Any", LaneBreaker(self._reads, self._circuit))
            self._changes = cast("Any", LaneBreaker(self._changes, self._circuit))
        self._transfers = Transfers(self._opened)
        self._opened.on_new_session.append(partial(_hold_jobs_again, ref(self)))
        try:
            await self._run(requests.ping())
        except (UnavailableError, DeadlineError):
            if self._circuit is None:
                await self.close()
                raise
        except BaseException:
            await self.close()
            raise
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._connect().__await__()

    async def __aenter__(self) -> Self:
        return await self._connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the session; calls under way get ClosedError. May be called twice; views that are
        alive stay readable."""
        opened = self._opened
        if opened is not None and not opened.closed and not opened.is_over:
            opened.check_loop()
        self._closed = True
        if opened is not None:
            await opened.close()

    def __del__(self) -> None:
        opened = getattr(self, "_opened", None)
        if opened is not None and not opened.closed:
            opened.abort()
            if opened.is_of_this_process:
                warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self._address.text, self._options)

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return (
            f"<crailpy.aio.{type(self).__name__} {self._address.text}{self._prefix or '/'}{state}>"
        )

    @property
    def address(self) -> str:
        """The address that this store was connected to."""
        return self._address.text

    @property
    def _kept(self) -> str:
        """What the namenode promises of all that lies with it."""
        return self._session.durability

    def _kept_at(self, path: Any) -> str:
        """What is promised of a node there: a job of this store may have said less of it."""
        if not self._homes:
            return self._kept
        from ..placement import kept_at

        return kept_at(self._homes, path, self._kept)

    @property
    def _session(self) -> AsyncSession:
        if self._opened is None:
            raise ClosedError(UNCONNECTED)
        return self._opened

    # -- requests ---------------------------------------------------------------------

    async def _run(
        self, request: Request, timeout: float | None = None, ask: Ask | None = None
    ) -> Any:
        """Sends the request and gives what its answer means. `ask`: sends it once, in another way
        than `_call`: with the milliseconds that it may be set aside, and its timeout."""
        if self._homes:
            from ..placement import say_durability

            say_durability(self._homes, request, request.path)
        ask = ask or partial(self._call, request)
        try:
            if request.wait is None:
                result = await ask(0, timeout)
            else:
                result = await self._wait(ask, request.wait, timeout)
        except requests.ABSENT_ERRORS as error:
            if request.absent is requests.RAISE:
                request.explain(error)
                raise
            return request.absent
        except DeadlineError as error:
            await self._explain_deadline(error)
            raise
        except CrailError as error:
            request.explain(error)
            raise
        return request.decode(result)

    async def _explain_deadline(self, error: DeadlineError) -> None:
        if error.server is not None or self._kept == "none":
            return
        try:
            async with asyncio.timeout(LATE_TIMEOUT):
                explain_deadline(error, await self._session.admin("status", {}))
        except (CrailError, OSError):
            pass

    async def _call(self, r: Request, wait_ms: int, timeout: float | None) -> Result:
        """One request; `wait_ms`: how long the namenode may set it aside."""
        lane = self._changes if RECORDED_FIRST <= r.code < HOLDS_FIRST else self._reads
        flags = r.flags | (requests.WAIT if wait_ms else 0)
        future, frame = lane.call(
            r.code,
            flags,
            r.path,
            r.data,
            r.options,
            wait_ms or r.count,
            r.arg0,
            r.arg1,
            wait_ms > 0,
            timeout,
        )
        if not wait_ms:
            return await future
        try:
            return await future
        except asyncio.CancelledError:
            lane.cancel(frame)
            raise

    async def _wait(
        self, ask: Callable[[int, float], Awaitable[T]], seconds: float, timeout: float | None
    ) -> T:
        """Calls `ask(milliseconds to be set aside, timeout)` until it does not raise DeadlineError,
        or until `seconds` are over. `timeout` comes on top: for the way there and back."""
        limit = self._timeout if timeout is None else timeout
        pieces = requests.WaitPieces(seconds)
        while True:
            ms = pieces.next_ms()
            try:
                return await ask(ms, ms / 1000 + limit)
            except DeadlineError as error:
                pieces.over(error)

    def _post(self, request: Request) -> None:
        """Sends a change whose answer nobody waits for."""
        post(self._session.changes.native, request)

    def _token(self) -> int:
        """A number for a hold: unique in this store, so also in its session."""
        return next(self._tokens)

    def _limit(self, deadline: float, path: str) -> Limit:
        return Limit(deadline, path)

    def _deadline(self, timeout: float | None) -> float:
        limit = self._timeout if timeout is None else timeout
        if not limit >= 0:
            raise ValueError("timeout must be a number of seconds, 0 or more")
        session = self._session
        session.check_loop()
        return session.loop.time() + limit

    async def _delivered(self, key: str, version: int) -> None:
        """All of a value that goes when it was read has been read: it goes, unless another took
        its place. At least once: where that cannot be said, it stays for another reader."""
        try:
            await self._run(requests.delivered(key, version), 1.0)
        except CrailError:
            pass


def _hold_jobs_again(store: ref[AsyncConnection]) -> None:
    """In a new session, which must not keep a store alive that nobody closes."""
    held = store()
    for job in held._jobs if held is not None else ():
        try:
            job._hold_again()
        except (CrailError, RuntimeError):
            return  # closed, it or its loop


def _unpickled(cls: type[AsyncConnection], address: str, options: dict[str, Any]) -> Any:
    return cls(address, **options)


def post(lane: native.AsyncLane, r: Request) -> None:
    """Sends a change whose answer nobody waits for; where that cannot be, it is not made."""
    try:
        lane.post(r.code, r.flags, r.path, r.data, r.options, r.count, r.arg0, r.arg1)
    except (CrailError, RuntimeError):
        pass  # closed, it or its loop


class Limit:
    """`async with Limit(deadline, key)`: ends what takes longer, with DeadlineError, or with the
    `reason` that somebody inside has given."""

    __slots__ = ("_key", "_timeout", "deadline", "reason")

    def __init__(self, deadline: float, key: str) -> None:
        self._timeout = asyncio.timeout_at(deadline if deadline < math.inf else None)
        self._key = key
        self.deadline = deadline
        self.reason: CrailError | None = None

    async def __aenter__(self) -> Limit:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, value, trace)
        except TimeoutError:
            raise self.reason or DeadlineError(path=self._key) from value
