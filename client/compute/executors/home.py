"""Where a pool is: its files, how a driver finds it, and how it is started where there is none.

Of every pool there are, in a folder of its user alone: `STEM.sock`; `STEM.lock`, locked by the
service for its life; `STEM.start`, locked by the driver that looks and starts; `STEM.log`. The stem
has the name and a digest of the Python environment and of crailpy: drivers of another one get
another pool.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time

from crailpy import hello
from crailpy.errors import (
    AuthError,
    DeadlineError,
    ExistsError,
    InvalidArgumentError,
    UnavailableError,
    from_code,
)
from crailpy.folders import private_folder, runtime_dir

from . import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IDLE_S = 60.0
"""A pool that a driver started ends when there was none for so long."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ABSENT = (FileNotFoundError, ConnectionError)
PAUSE_S = 0.01


class Home:
    """The files of the pool `name`. Raises InvalidArgumentError for what is no name, AuthError
    for a folder that others may enter."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"a pool called {name!r}", hint="1 to 64 letters, digits, dots, dashes, underscores"
            )
        self.name = name
        self.stem = os.path.join(_folder(), f"pool-{name}-{_environment()}")
        self.socket = self.stem + ".sock"
        hello.check_unix(self.socket)

    def dial(self, timeout: float) -> socket.socket:
        """A connection to the service; where many wait to be let in, it waits with them. Raises
        OSError where there is none, AuthError if it is not ours, DeadlineError."""
        until = time.monotonic() + timeout
        while True:
            try:
                sock = hello.connect_unix(self.socket, max(0.001, until - time.monotonic()))
                break
            except BlockingIOError:  # what a full backlog means, at once
                if time.monotonic() >= until:
                    raise DeadlineError(
                        f"the pool {self.name!r} lets nobody in: too many wait for that",
                        hint="`crailpy pool --status` says what keeps it",
                    ) from None
            time.sleep(PAUSE_S)
        try:
            check_peer(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def lock(self, what: str, deadline: float) -> int:
        """Locks one of the files; the descriptor, whose end ends the lock. Raises DeadlineError."""
        fd = os.open(f"{self.stem}.{what}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return fd
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise DeadlineError(f"{self.stem}.{what} stays locked") from None
                time.sleep(PAUSE_S)
        except BaseException:
            os.close(fd)
            raise

    def connect(
        self, request: dict[str, Any], deadline: float, *, start: bool = True
    ) -> tuple[socket.socket, dict[str, Any]]:
        """A connection whose hello is done, and the service's answer; it is started where it is
        not there. Raises UnavailableError, DeadlineError, and what it refuses with."""
        while True:
            try:
                return self._greet(request, deadline)
            except _ABSENT as error:
                if not start:
                    raise UnavailableError(
                        f"there is no pool {self.name!r}", hint="`crailpy pool` starts one"
                    ) from error
            if time.monotonic() >= deadline:
                raise DeadlineError(
                    f"the pool {self.name!r} does not answer",
                    hint=f"what it says is in {self.stem}.log",
                )
            self._start(request.get("workers") or 0, deadline)

    def _greet(
        self, request: dict[str, Any], deadline: float
    ) -> tuple[socket.socket, dict[str, Any]]:
        sock = self.dial(max(0.001, deadline - time.monotonic()))
        try:
            import msgpack

            body = msgpack.packb(request | {"version": frames.VERSION})
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.sendall(frames.pack(frames.HELLO, body=body))
            kind, answer = _first_answer(sock)
            if kind == frames.REFUSED:
                hello.raise_error(answer)
            sock.settimeout(None)
            return sock, answer
        except TimeoutError:
            sock.close()
            raise DeadlineError(
                f"the pool {self.name!r} does not answer", hint="crailpy pool --stop ends it"
            ) from None
        except BaseException:
            sock.close()
            raise

    def _start(self, workers: int, deadline: float) -> None:
        """Starts the service, unless another driver has done so while we waited."""
        lock = self.lock("start", deadline)
        try:
            try:
                self.dial(1.0).close()
                return
            except _ABSENT:
                pass
            self._launch(workers, deadline)
        except ExistsError:
            pass  # somebody has started it by hand
        finally:
            os.close(lock)

    def _launch(self, workers: int, deadline: float) -> None:
        ready, theirs = os.pipe2(os.O_CLOEXEC)
        command = [sys.executable, "-P", "-m", "crailpy.cli", "pool", "--name", self.name]
        command += ["--idle", f"{IDLE_S:g}s", "--ready-fd", str(theirs)]
        if workers:
            command += ["--workers", str(workers)]
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC
        log = os.open(self.stem + ".log", flags, 0o600)
        try:
            # Nothing of the driver's: not its terminal's Ctrl-C, no pipe that waits for its end.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(theirs,),
                start_new_session=True, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        finally:
            os.close(log)
            os.close(theirs)
        try:
            self._await_ready(ready, deadline)
        except BaseException:
            process.kill()
            raise
        finally:
            os.close(ready)
            process.wait()  # the service is not our child: it has forked off this one

    def _await_ready(self, ready: int, deadline: float) -> None:
        """Reads the line that the service writes when it serves, or why it cannot."""
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([ready], [], [], left)[0]:
                raise DeadlineError(f"the pool {self.name!r} was not ready in time")
            part = os.read(ready, 4096)
            if not part:
                raise UnavailableError(
                    f"the pool {self.name!r} ended at its start", hint=f"see {self.stem}.log"
                )
            line += part
        import json

        error = json.loads(line).get("error")
        if error:
            raise from_code(error["code"], error["message"], hint=error["hint"])


def _first_answer(sock: socket.socket) -> tuple[int, dict[str, Any]]:
    reader = frames.Reader()
    while True:
        data = sock.recv(65536)
        if not data:
            raise ConnectionResetError("the pool closed the connection")
        for kind, _, _, body in reader.feed(data):  # nothing follows it unasked
            return kind, hello.unpack(body)


def check_peer(sock: socket.socket) -> int:
    """The pid at the other end of a unix socket. Raises AuthError unless it runs as we do."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != os.getuid():
        raise AuthError(f"this pool belongs to user {os.getuid()}, the other side is user {uid}")
    return int(pid)


def _folder() -> str:
    """The folder of this user's sockets, for us alone. Raises AuthError."""
    path = runtime_dir()
    try:
        return private_folder(path)
    except AuthError:
        raise
    except OSError as error:
        raise AuthError(f"cannot make {path}: {error.strerror}", hint="$XDG_RUNTIME_DIR") from None


def _environment() -> str:
    """A digest: equal for drivers that import the same crailpy by the same Python."""
    import hashlib

    import crailpy

    about = [sys.prefix, sys.version, os.path.dirname(os.path.abspath(crailpy.__file__))]
    return hashlib.sha256("\0".join([*about, str(frames.VERSION)]).encode()).hexdigest()[:12]


class Tenancy:
    """The service's side: it has the pool's lock for its life, and listens. Raises ExistsError if
    another has it."""

    def __init__(self, home: Home, deadline: float) -> None:
        self._home = home
        while True:
            try:
                self._lock = home.lock("lock", 0.0)
                break
            except DeadlineError:
                pass
            try:  # one that is ending needs a moment; one that answers will stay
                home.dial(1.0).close()
                is_there = True
            except OSError:
                is_there = False
            if is_there or time.monotonic() >= deadline:
                raise ExistsError(f"the pool {home.name!r} runs already")
            time.sleep(PAUSE_S)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._unlink()  # of one that was killed
            self.listener.bind(home.socket)
            os.chmod(home.socket, 0o600)
            self._inode = os.stat(home.socket).st_ino
            self.listener.listen(64)
        except BaseException:
            self.listener.close()
            os.close(self._lock)
            raise

    def _unlink(self) -> None:
        try:
            os.unlink(self._home.socket)
        except FileNotFoundError:
            pass

    def end(self) -> None:
        """Nobody finds it from here on; another may begin. Where our files were removed under us,
        another has begun already, and the socket is its own."""
        try:
            if os.stat(self._home.socket).st_ino == self._inode:
                self._unlink()
        except FileNotFoundError:
            pass
        self.listener.close()
        os.close(self._lock)
