"""The template: a process without threads that has imported what tasks usually need, and forks
executors off itself. It is forked off the service, speaks with it alone, and dies with it; they die
with it.

Over a socket pair that keeps messages apart: "F" u64 number, with a descriptor: fork an executor
that has it; "K" u64 number: kill that one. Back: "S" u64 number, u64 pid: started; "N" u64 number,
u64 errno: there is no process to be had; "E" u64 number, u64 exit status, as of waitpid: ended. A
number is the service's, and never used again: so nobody is killed who has the pid of a dead one.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections import deque
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

ORDER = Struct("<cQ")
NEWS = Struct("<cQQ")
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
WARM = (
    "numpy", "crailpy.client.compute", "crailpy.client.compute.shuffle",
    "crailpy.client.compute.broadcasts", "crailpy.client.compute.models",
    "crailpy.client.compute.reductions",
)  # fmt: skip
DESCRIPTORS_MAX = 1 << 16


def warm_up() -> None:
    """Imports what is there of what tasks usually need."""
    from importlib import import_module

    from . import contexts, worker

    assert worker
    for variable in contexts.THREADS:  # read once, when the library is loaded
        os.environ.setdefault(variable, "1")
    for name in WARM:
        try:
            import_module(name)
        except ImportError:
            pass


def die_with_parent(parent: int, name: bytes) -> None:
    """Has the kernel kill us when our parent ends, and names us for `ps`."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    libc.prctl(PR_SET_NAME, name, 0, 0, 0)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def close_all_but(kept: set[int]) -> None:
    """Closes all descriptors but the standard ones and these."""
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, DESCRIPTORS_MAX)


def start() -> tuple[socket.socket, int]:
    """Forks a template; the service's end of the connection to it, and its pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _life(lambda: _be_template(parent, theirs))
    theirs.close()
    return ours, pid


def _life(run: Callable[[], int | None]) -> NoReturn:
    """What a forked process does, and nothing of what its parent would have done after it."""
    code = 1
    try:
        code = run() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _be_template(parent: int, control: socket.socket) -> None:
    die_with_parent(parent, b"crailpy-warm")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    close_all_but({control.fileno()})
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a task does not read a terminal
    os.close(nothing)
    warm_up()
    Template(control).serve()


class Template:
    """Forks, kills and buries."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._numbers: dict[int, int] = {}  # of executors, by pid
        self._news: deque[bytes] = deque()  # that the service has no room for now
        self._bell, bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        gc.collect()
        gc.freeze()  # no page of what there is now is copied for its marks

    def serve(self) -> None:
        """Until the service is gone."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        control = self._control.fileno()
        while True:
            poll.modify(control, select.POLLIN | (select.POLLOUT if self._news else 0))
            ready = dict(poll.poll())
            if self._bell in ready:
                os.read(self._bell, 4096)
                self._bury()
            if ready.get(control, 0) & ~select.POLLOUT and not self._obey():
                return
            self._flush()

    def _tell(self, word: bytes, number: int, value: int) -> None:
        self._news.append(NEWS.pack(word, number, value))
        self._flush()

    def _flush(self) -> None:
        """Sends what there is room for. We never wait for it: the service waits for room for its
        orders, and does not look at news meanwhile."""
        try:
            while self._news:
                self._control.send(self._news[0], socket.MSG_DONTWAIT)
                self._news.popleft()
        except BlockingIOError:
            pass

    def _obey(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, ORDER.size, 1)
        if not data:
            return False
        order, number = ORDER.unpack(data)
        if order == b"F" and not fds:  # we had no room for it
            self._tell(b"N", number, errno.EMFILE)
        elif order == b"F":
            self._fork(number, fds[0])
        else:
            for pid, other in self._numbers.items():
                if other == number:
                    _kill_with_children(pid)
        return True

    def _fork(self, number: int, fd: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes
            self._tell(b"N", number, error.errno or errno.EAGAIN)
            os.close(fd)
            return
        if pid == 0:
            _life(lambda: _be_executor(parent, fd))
        os.close(fd)
        self._numbers[pid] = number
        self._tell(b"S", number, pid)

    def _bury(self) -> None:
        while self._numbers:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            if ended.si_code != os.CLD_EXITED or ended.si_status:
                _kill_with_children(ended.si_pid)  # its task runs again: not beside its own rest
            pid, status = os.waitpid(ended.si_pid, 0)
            self._tell(b"E", self._numbers.pop(pid), status)


def _kill_with_children(pid: int) -> None:
    """Ends an executor, and what its task has started and not given a group of its own. It is not
    buried yet: so the number of its group is nobody else's. What has become another user's, by an
    exec of sudo say, has to end by itself."""
    with contextlib.suppress(PermissionError):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # just forked: it has no group yet
            os.kill(pid, signal.SIGKILL)


def _be_executor(parent: int, fd: int) -> int:
    from . import worker

    die_with_parent(parent, b"crailpy-exec")
    os.setpgid(0, 0)  # Ctrl-C in a terminal is for the service, which ends us in order
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    close_all_but({fd})
    if "numpy.random" in sys.modules:  # or all would draw the same numbers
        sys.modules["numpy.random"].seed()
    return worker.main(socket.socket(fileno=fd))
