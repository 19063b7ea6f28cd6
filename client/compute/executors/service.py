"""The service of a pool: one thread, one epoll loop around the scheduler.

A driver connects, says HELLO (msgpack: `version`; `context`, bytes; `workers`, at least so many, 0:
as it is; `attempts`; `speculate`) and has WELCOME, or REFUSED with the error. The service holds the
connections and never looks into calls or results.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from functools import partial

import msgpack

from crailpy import hello
from crailpy.errors import (
    CrailError,
    InvalidArgumentError,
    ProtocolError,
    QuotaExceededError,
    UnavailableError,
)

from . import frames, template
from .home import Home, Tenancy, check_peer
from .scheduling import WORKERS_MAX, Driver, Executor, Scheduler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DRIVERS_MAX = 256
HELLO_S = 5.0
"""A connection that has not said HELLO by then is closed."""
TURN_S_MAX = 3600.0
NEWS_S = 0.005
"""That a task runs is told with the next message, or after so long."""
FAREWELL_S = 2.0
"""What executors have to close their stores when the pool ends."""
LOG_BYTES_MAX = 8 << 20
ACCEPT_REST_S = 0.1
"""After a driver that could not be let in, as where descriptors are short."""
DESCRIPTORS_KEPT = 16
"""So many, or a quarter of all, are not for executors: a driver takes one, too."""
LOG_S = 1.0
"""How often it looks at the log at most, when something happens."""
RECEIVE_BYTES = 256 << 10
ANSWERS = (frames.DONE, frames.FAILED, frames.STALE, frames.MISSING)
"""What an executor ends its task with."""


class Link:
    """A connection in the loop: whole frames in, bytes out as the peer takes them."""

    def __init__(self, loop: Loop, sock: socket.socket, take: Callable[[frames.Frame], None],
                 ended: Callable[[], None]) -> None:  # fmt: skip
        sock.setblocking(False)
        self.sock = sock
        self._loop = loop
        self._reader = frames.Reader()
        self._out = bytearray()
        self._take = take
        self._ended = ended
        self.is_open = True
        loop.watch(sock.fileno(), self._serve)

    def send(self, data: bytes, *, later: bool = False) -> None:
        """Sends, at once unless `later`: then with what comes next, or at the loop's next flush."""
        if not self.is_open:
            return
        self._out += data
        if later:
            self._loop.late.setdefault(self, time.monotonic() + NEWS_S)
        else:
            self.flush()

    def flush(self) -> None:
        """Hands the kernel what it takes now."""
        self._loop.late.pop(self, None)
        if not self.is_open or not self._out:
            return
        try:
            sent = self.sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the loop hears of its end
        del self._out[:sent]
        self._loop.want_write(self.sock.fileno(), bool(self._out))

    def receive(self) -> None:
        """Takes what is there. Of a peer that ended, that is all there will be. What goes wrong
        with what it said is its end, and nobody else's."""
        try:
            while self.is_open and self._receive_some():
                pass
        except UnavailableError:
            raise  # the template's end is that of all, whoever it was that met with it
        except ProtocolError:
            self._end()
        except Exception:
            traceback.print_exc()
            self._end()

    def _receive_some(self) -> bool:
        """Takes a piece; is there perhaps more?"""
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        for frame in self._reader.feed(data):
            if self.is_open:
                self._take(frame)
        return len(data) == RECEIVE_BYTES

    def _serve(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self.flush()
        if events & ~select.EPOLLOUT:
            self.receive()

    def _end(self) -> None:
        if self.is_open:
            self.close()
            self._ended()

    def close(self) -> None:
        """Closes the connection; nobody is told."""
        if self.is_open:
            self.is_open = False
            self._loop.late.pop(self, None)
            self._loop.forget(self.sock.fileno())
            self.sock.close()


class Loop:
    """epoll, and who is called for which descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}
        self._writers: set[int] = set()
        self.late: dict[Link, float] = {}  # what waits to be flushed, until when

    def watch(self, fd: int, call: Callable[[int], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._calls[fd] = call

    def forget(self, fd: int) -> None:
        del self._calls[fd]
        self._writers.discard(fd)
        self._epoll.unregister(fd)

    def want_write(self, fd: int, wanted: bool) -> None:
        if wanted != (fd in self._writers):
            (self._writers.add if wanted else self._writers.discard)(fd)
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def turn(self, until: float | None) -> None:
        """Serves what is ready; waits for it until then, of time.monotonic()."""
        for due in self.late.values():
            until = due if until is None else min(until, due)
        # epoll counts milliseconds in 32 bits: what is due in a month is asked for again
        wait = -1 if until is None else min(max(0.0, until - time.monotonic()), TURN_S_MAX)
        for fd, events in self._epoll.poll(wait):
            call = self._calls.get(fd)  # none, if another's end has ended it
            if call is not None:
                _survive(call, events)
        if self.late:
            now = time.monotonic()
            for link in [link for link, due in self.late.items() if due <= now]:
                link.flush()


def _survive(call: Callable[[int], None], events: int) -> None:
    """What goes wrong with one descriptor is told, and the loop goes on; but where the template has
    ended there is nothing to go on with."""
    try:
        call(events)
    except UnavailableError:
        raise
    except Exception:
        traceback.print_exc()


class Visitor:
    """A connection of a driver; `driver` is None until its HELLO."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.since = time.monotonic()
        self.driver: Driver | None = None
        self.link: Link


class Service:
    """The pool `name` with `workers` executors. `idle`: seconds without a driver after which it
    ends, None: never. Raises ExistsError if there is one already, AuthError, OSError."""

    def __init__(self, name: str, workers: int, idle: float | None) -> None:
        self.home = Home(name)
        self._idle = idle
        self._idle_since = 0.0
        self._began = time.monotonic()
        self._log_due = self._began
        self._accept_due: float | None = None  # while it rests from accepting
        self._is_ending = False
        self._is_template_there = True
        self._visitors: set[Visitor] = set()
        self._links: dict[Driver | Executor, Link] = {}
        # before there is anything that a forked process should not have
        self._template, self.template_pid = template.start()
        try:
            self._tenancy = Tenancy(self.home, time.monotonic() + HELLO_S)
        except BaseException:
            self._template.close()
            os.waitpid(self.template_pid, 0)
            raise
        self._loop = Loop()
        self._loop.watch(self._tenancy.listener.fileno(), self._accept)
        self._loop.watch(self._template.fileno(), self._hear_template)
        self._tenancy.listener.setblocking(False)
        self._template.setblocking(False)
        self.scheduler = Scheduler(self, workers)
        self.scheduler.fill()

    # -- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves until it was told to end, or nobody has come for long. Raises UnavailableError
        if the template has ended."""
        bell, their_bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(their_bell, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        self._loop.watch(bell, lambda events: _silence(bell))
        self._idle_since = time.monotonic()
        while not self._is_ending:
            due = self._next_due()
            self._loop.turn(due)
            if due is not None and due <= time.monotonic():
                self._do_what_is_due()
            if self._log_due <= time.monotonic():
                self._log_due = time.monotonic() + LOG_S
                _bound_log()

    def _told_to_end(self, *_: object) -> None:
        self._is_ending = True

    def _next_due(self) -> float | None:
        dues = [v.since + HELLO_S for v in self._visitors if v.driver is None]
        if self._accept_due is not None:
            dues.append(self._accept_due)
        scheduled = self.scheduler.next_due()
        if scheduled is not None:
            dues.append(scheduled)
        if self._idle is not None and not self._visitors:
            dues.append(self._idle_since + self._idle)
        return min(dues, default=None)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        self.scheduler.act()
        if self._accept_due is not None and self._accept_due <= now:
            self._accept_due = None
            self._loop.watch(self._tenancy.listener.fileno(), self._accept)
        for visitor in [v for v in self._visitors if v.driver is None]:
            if visitor.since + HELLO_S <= now:
                visitor.link.close()
                self._left(visitor)
        if self._idle is not None and not self._visitors and self._idle_since + self._idle <= now:
            self._is_ending = True

    def close(self) -> None:
        """Executors without a task close their stores; all others are ended."""
        self._tenancy.end()
        for visitor in self._visitors:
            visitor.link.close()
        try:
            self._take_leave()
        except UnavailableError:
            pass  # the template has ended, and all with it
        self._template.close()
        os.kill(self.template_pid, signal.SIGKILL)  # whoever is left dies with it
        os.waitpid(self.template_pid, 0)

    def _take_leave(self) -> None:
        self.scheduler.target = 0
        for driver in self.scheduler.drivers[:]:
            self.scheduler.gone(driver)
        self.scheduler.scale(0)
        deadline = time.monotonic() + FAREWELL_S
        while self._is_template_there and self.scheduler.executors and time.monotonic() < deadline:
            self._loop.turn(deadline)

    # -- drivers ----------------------------------------------------------------------------------

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._tenancy.listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError:  # there is no descriptor for it: it waits, and the loop is not to spin
            self._loop.forget(self._tenancy.listener.fileno())
            self._accept_due = time.monotonic() + ACCEPT_REST_S
            return
        try:
            visitor = Visitor(check_peer(sock))
            if len(self._visitors) >= DRIVERS_MAX:
                raise QuotaExceededError(f"the pool has {DRIVERS_MAX} drivers")
        except CrailError as error:
            sock.setblocking(False)
            _say_last(sock, error)
            return
        visitor.link = Link(
            self._loop, sock, partial(self._hear_driver, visitor), partial(self._left, visitor)
        )
        self._visitors.add(visitor)

    def _left(self, visitor: Visitor) -> None:
        self._visitors.discard(visitor)
        self._idle_since = time.monotonic()
        if visitor.driver is not None:
            del self._links[visitor.driver]
            self.scheduler.gone(visitor.driver)

    def _hear_driver(self, visitor: Visitor, frame: frames.Frame) -> None:
        kind, count, task, body = frame
        driver = visitor.driver
        if driver is None:
            self._welcome(visitor, kind, body)
        elif kind == frames.SUBMIT:
            if len(driver.tasks) >= frames.WINDOW or task in driver.tasks:
                raise ProtocolError("too many tasks, or one twice")
            self.scheduler.submit(driver, task, body)
        elif kind == frames.CANCEL:
            self.scheduler.cancel(driver, task)
        elif kind in (frames.SCALE, frames.STATUS):
            if kind == frames.SCALE:
                if not 0 < count <= WORKERS_MAX:
                    raise ProtocolError(f"{count} executors")
                self.scheduler.scale(count)
            visitor.link.send(frames.pack(frames.FACTS, task, body=msgpack.packb(self.facts())))
        elif kind == frames.STOP:
            self._is_ending = True
        else:
            raise ProtocolError(f"a frame of kind {kind}")

    def _welcome(self, visitor: Visitor, kind: int, body: bytes) -> None:
        try:
            if kind != frames.HELLO:
                raise ProtocolError("the first frame is HELLO")
            driver, workers = _driver_of(visitor.pid, hello.unpack(body))
        except CrailError as error:
            refusal = msgpack.packb(hello.error_reply(error))
            visitor.link.send(frames.pack(frames.REFUSED, body=refusal))
            visitor.link.close()
            self._visitors.discard(visitor)
            return
        visitor.driver = driver
        self._links[driver] = visitor.link
        self.scheduler.come(driver)
        if workers > self.scheduler.target:
            self.scheduler.scale(workers)
        welcome = {"pid": os.getpid(), "workers": self.scheduler.target}
        visitor.link.send(frames.pack(frames.WELCOME, body=msgpack.packb(welcome)))

    def facts(self) -> dict[str, Any]:
        """What there is, for people."""
        about = {
            "name": self.home.name,
            "pid": os.getpid(),
            "socket": self.home.socket,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        return about | self.scheduler.facts()

    # -- executors --------------------------------------------------------------------------------

    def _hear_executor(self, executor: Executor, frame: frames.Frame) -> None:
        kind, count, task, body = frame
        if kind == frames.READY:
            self.scheduler.ready(executor, count)
        elif kind == frames.COMMITS:
            self.scheduler.committing(executor, count, task, body)
        elif kind in ANSWERS:
            self.scheduler.answered(executor, kind, task, body)
        else:
            raise ProtocolError(f"a frame of kind {kind}")

    def _hear_template(self, events: int) -> None:
        while True:
            try:
                news = self._template.recv(template.NEWS.size)
            except BlockingIOError:
                return
            except OSError:
                news = b""
            if not news:
                self._is_template_there = False
                raise UnavailableError("the template of the pool's executors has ended")
            word, number, value = template.NEWS.unpack(news)
            executor = self.scheduler.executors.get(number)
            if executor is None:
                continue
            if word == b"S":
                executor.pid = value
                continue
            self.scheduler.gone_quiet(executor)
            link = self._links[executor]
            link.receive()  # what it said before it died counts
            link.close()
            del self._links[executor]
            self.scheduler.died(
                executor, os.strerror(value) if word == b"N" else _how(executor.pid, value)
            )

    def _cut(self, executor: Executor) -> None:
        """Its connection ended. It is dead, or a task has closed what was not its own; the
        template tells."""
        self.scheduler.gone_quiet(executor)
        self.kill(executor)

    # -- what the scheduler wants of the world ----------------------------------------------------

    def tell(self, driver: Driver, frame: bytes, *, later: bool = False) -> None:
        self._links[driver].send(frame, later=later)

    def order(self, executor: Executor, frame: bytes) -> None:
        self._links[executor].send(frame)

    def fork(self, executor: Executor) -> str | None:
        try:
            ours, theirs = _pair()
            with theirs:
                self._links[executor] = self._link_to(executor, ours)
                self._tell_template(b"F", executor, [theirs.fileno()])
        except UnavailableError:
            raise
        except OSError as error:
            link = self._links.pop(executor, None)
            if link is not None:
                link.close()
            return os.strerror(error.errno or 0)
        return None

    def _link_to(self, executor: Executor, sock: socket.socket) -> Link:
        take, ended = partial(self._hear_executor, executor), partial(self._cut, executor)
        return Link(self._loop, sock, take, ended)

    def kill(self, executor: Executor) -> None:
        self._tell_template(b"K", executor, [])

    def _tell_template(self, word: bytes, executor: Executor, fds: list[int]) -> None:
        """Raises UnavailableError if the template has ended; OSError if there is no room."""
        # The template does nothing but listen; while it warms up, some hundred orders have room.
        self._template.setblocking(True)
        try:
            socket.send_fds(self._template, [template.ORDER.pack(word, executor.number)], fds)
        except ConnectionError as error:
            raise UnavailableError(f"the template of the pool's executors: {error}") from error
        finally:
            self._template.setblocking(False)


def _driver_of(pid: int, request: dict[str, Any]) -> tuple[Driver, int]:
    """The driver that says HELLO, and the executors that it wants at least. Raises ProtocolError,
    InvalidArgumentError."""
    if request.get("version") != frames.VERSION:
        raise ProtocolError("the pool is of another version", hint="crailpy pool --stop")
    context, workers = request.get("context", b""), request.get("workers", 0)
    attempts, speculate = request.get("attempts", 1), request.get("speculate")
    if not isinstance(context, bytes) or not isinstance(attempts, int) or attempts < 1:
        raise ProtocolError("a HELLO with a context and attempts")
    if not isinstance(workers, int) or not 0 <= workers <= WORKERS_MAX:
        raise InvalidArgumentError(f"workers={workers!r}: 1 to {WORKERS_MAX}")
    if speculate is not None and not (isinstance(speculate, float) and speculate > 0):
        raise ProtocolError("speculate is seconds")
    if speculate is not None and attempts == 1:
        raise ProtocolError("speculate is for tasks that may run twice")
    return Driver(pid, context, attempts, speculate), workers


def _say_last(sock: socket.socket, error: CrailError) -> None:
    try:
        body = msgpack.packb(hello.error_reply(error))
        sock.send(frames.pack(frames.REFUSED, body=body))
    except OSError:
        pass
    finally:
        sock.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    """Raises OSError, also where too few descriptors would be left for drivers."""
    ours, theirs = socket.socketpair()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # the lowest that are free are given
    if theirs.fileno() < limit - min(DESCRIPTORS_KEPT, limit // 4):
        return ours, theirs
    ours.close()
    theirs.close()
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _how(pid: int, status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"executor {pid} was ended by {_signal_name(os.WTERMSIG(status))}"
    return f"executor {pid} ended with exit code {os.WEXITSTATUS(status)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the realtime signals
        return f"signal {number}"


def _silence(bell: int) -> None:
    os.read(bell, 4096)


def _bound_log() -> None:
    """What tasks print goes to a file that nobody else shortens."""
    try:
        if os.fstat(2).st_size > LOG_BYTES_MAX:
            os.ftruncate(2, 0)
    except OSError:
        pass  # a terminal or a pipe


def serve(
    name: str, workers: int, idle: float | None, tell: Callable[[dict[str, Any]], None]
) -> None:
    """Runs a pool to its end; `tell` is given its facts when it serves. Raises what Service and
    its run() raise."""
    service = Service(name, workers, idle)
    try:
        tell(service.facts())
        os.chdir("/")
        service.run()
    except UnavailableError as error:
        print(f"crailpy: {error}", file=sys.stderr)
        raise
    finally:
        service.close()
