"""A lane of an asynchronous session: the connection under a native flow of requests.

The flow (`crailpy._hot.AsyncLane`) packs requests, parses replies and resolves futures. Here its
socket is watched, opened again when it is lost, and one timer looks after deadlines and silence.

What was in flight on a lost connection goes out again on the next one. Reading twice does no harm;
a change goes under the number it had, so that the namenode answers it from its record if it was
made (docs/PROTOCOL.md). Only when the session is gone as well can nobody say what became of it.
"""

from __future__ import annotations

import asyncio
import math
import socket
from typing import TYPE_CHECKING

from crailpy import native
from crailpy.errors import CrailError, DeadlineError, from_status

from ..session import CUT, RETRY_FIRST, RETRY_MAX, outcome_unknown

if TYPE_CHECKING:
    from .session import AsyncSession

RESEND_FIRST = 1.0  # seconds: a reply this late may have been lost: ask again on a new connection
RESEND_MAX = 32.0


class Lane:
    """Connection `number` of a session; opened when something is asked of it. `recorded`: for
    requests that change something."""

    def __init__(self, session: AsyncSession, number: int, *, recorded: bool) -> None:
        self.number = number
        self._session = session
        self._loop = session.loop
        self.native = native.AsyncLane(
            session.core.address,
            recorded,
            session.prefix,
            session.timeout,
            session.new_future,
            session.loop.call_soon,
            self._flush,
            self._error,
        )
        self._sock: socket.socket | None = None
        self._of = 0  # the session that the flow's sequence numbers count in
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._writing = False
        self._resend = RESEND_FIRST
        self._attempts = 0  # connections in a row that brought no reply
        self._why: BaseException | None = None  # there is no connection
        self._closed = False

    # -- bytes -----------------------------------------------------------------

    def _flush(self) -> None:
        """Once per tick of the loop in which something was asked."""
        state = self.native.flush()
        if state == 2:
            self._connect_soon()
        elif state < 0:
            self._lost(ConnectionResetError("the connection was closed"))
        else:
            self._watch_writing(state == 1)
        if self.native.earliest < self._timer_at or self._timer is None:
            self._set_timer(min(self.native.earliest, self._loop.time() + self._resend))

    def _readable(self) -> None:
        state = self.native.reap()
        if state < 0:
            self._lost(ConnectionResetError("the connection was closed"))
            return
        self._attempts = 0
        self._resend = RESEND_FIRST
        if state:
            self._flush()

    def _watch_writing(self, wanted: bool) -> None:
        if wanted == self._writing or self._sock is None:
            return
        self._writing = wanted
        if wanted:
            self._loop.add_writer(self._sock.fileno(), self._flush)
        else:
            self._loop.remove_writer(self._sock.fileno())

    # -- time --------------------------------------------------------------------

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at < math.inf and not self._closed:
            self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        earliest, since = self.native.tick()
        if not self.native.frames:
            return
        now = self._loop.time()
        if since + self._resend <= now:
            self._resend = min(2 * self._resend, RESEND_MAX)
            self._lost(TimeoutError(f"no reply for {now - since:.1f} s"))
            since = now
        self._set_timer(min(earliest, min(since, now) + self._resend))

    # -- connections -----------------------------------------------------------------

    def _lost(self, why: BaseException) -> None:
        self._drop()
        self._why = why
        self._attempts += 1
        if self.native.frames:
            self._connect_soon()

    def _drop(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        self._writing = False
        self.native.detach()
        self._session.end_connection(sock)

    def _connect_soon(self) -> None:
        if self._closed or (self._task is not None and not self._task.done()):
            return
        self._task = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        """Until there is a connection, or nobody who wants one any more."""
        pause = RETRY_FIRST
        while self._sock is None and self.native.frames and not self._closed:
            if self._attempts > 2:  # it is answering, and closing again: do not spin
                await asyncio.sleep(min(0.05 * self._attempts, RETRY_MAX))
            try:
                sock, session = await self._session.open_lane(self.number)
            except (CrailError, OSError) as error:
                self._why = error
                self._session.is_known |= isinstance(error, CUT)
                if isinstance(error, CrailError):
                    self.native.fail(error, False)
                elif not self._session.is_known:
                    # Nobody listens, and never did: then the address is the likelier cause.
                    self.native.fail(self._session.unreachable(error), False)
                else:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_MAX)
                continue
            self._use(sock, session)

    def _use(self, sock: socket.socket, session: int) -> None:
        fresh = session != self._of
        if fresh and self.native.maybe_done:
            self.native.fail(outcome_unknown(self._session.address.text), True)
        self._of = session
        self._sock = sock
        self._why = None
        self.native.attach(sock.fileno(), fresh)
        self._loop.add_reader(sock.fileno(), self._readable)
        self._flush()

    # -- ends ------------------------------------------------------------------------------

    def _error(self, status: int, path: str | None, server: int) -> CrailError:
        if status == DeadlineError.status and self._sock is None and self._why is not None:
            return self._session.unreachable(self._why)
        return from_status(status, path=path, server=str(server) if server else None)

    def close(self) -> asyncio.Task[None] | None:
        """Fails what waits with ClosedError and ends the connection. Returns the task that was
        connecting, cancelled, for the caller to await. May be called twice."""
        self._closed = True
        self._set_timer(math.inf)
        self._drop()
        self.native.close()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    def abandon(self) -> None:
        """In a forked child, or after the loop has closed: nothing that the loop knows is
        touched."""
        self._closed = True
        sock, self._sock = self._sock, None
        self.native.close()
        if sock is not None:
            sock.close()
