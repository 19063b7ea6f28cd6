"""The machine's own limits, measured in C between batches of store calls.

`Echo` is a round trip to another process over a unix or a TCP socket (with large sizes: a stream),
`Memory` is memcpy between two areas, `run_frames` drives a namenode without any Python per
operation. The echo process is this module run by a new interpreter, so that it stands where a
namenode stands: in a process of its own, asleep between requests.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Self

from crailpy import native
from crailpy.errors import CrailError

SMALL_BYTES = 64
"""Size of the small side of a round trip: about what a request for a short path takes."""

TIMEOUT = 60.0
"""Seconds that one batch may take before the probe gives up."""


class ProbeError(CrailError):
    """A probe could not be run; the message says why."""


@contextlib.contextmanager
def _probing(what: str) -> Iterator[None]:
    """What the core says becomes a ProbeError."""
    try:
        yield
    except CrailError as error:
        raise ProbeError(f"{what}: {error}") from error


class Echo:
    """A caller in this process and an echo in another one.

    `family` is "unix" or "tcp" (loopback, no delay); `bytes_max` bounds requests and replies. Not
    for several threads at once.
    """

    def __init__(self, family: str, bytes_max: int = 1 << 20) -> None:
        self.family = family
        self._socket, theirs = _pair(family)
        with theirs:
            try:
                with _probing("echo probe"):
                    self._probe = native.Probe(self._socket.fileno(), bytes_max)
            except BaseException:
                self._socket.close()
                raise
            self._process = subprocess.Popen(
                [sys.executable, "-m", "crailpy.client.probes", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        try:
            self.round_trips(SMALL_BYTES, SMALL_BYTES, 1)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process of the echo."""
        return self._process.pid

    def round_trips(self, request: int, reply: int, count: int) -> list[int]:
        """Nanoseconds of each of `count` round trips of `request` bytes there and `reply` bytes
        back.

        Both are at least 16. Raises `ProbeError` when the echo has gone or takes longer than
        `TIMEOUT`.
        """
        with _probing(f"{self.family} round trip"):
            return self._probe.round_trips(max(request, 16), max(reply, 16), count)

    def close(self) -> None:
        """Ends the echo process. May be called twice."""
        self._socket.close()
        self._probe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pair(family: str) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that block, the first one with a time limit in the kernel."""
    if family == "unix":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        for end in (ours, theirs):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(True)
    limit = int(TIMEOUT).to_bytes(8, sys.byteorder) + bytes(8)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return ours, theirs


class Memory:
    """Two private areas of `bytes_total / 2` each, every page touched, and memcpy between them.

    The bench takes what it puts from `source` and gets into `target`, so that the store and memcpy
    work on the same memory. The views live as long as this object: release them before `close`.
    """

    def __init__(self, bytes_total: int = 1 << 30) -> None:
        with _probing(f"memory of {bytes_total} bytes"):
            self._memory = native.ProbeMemory(bytes_total)
        self.source = self._memory.source
        self.target = self._memory.target
        self.area_bytes = len(self.source)

    def copies(self, size: int, count: int, span: int | None = None) -> list[int]:
        """Nanoseconds of `count` memcpys, going round in the first `span` bytes (None: all)."""
        with _probing("memcpy"):
            return self._memory.copies(size, span or self.area_bytes, count)

    def close(self) -> None:
        """Gives the memory back. May be called twice."""
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_frames(fd: int, frames: bytes, rounds: int) -> tuple[int, int]:
    """Sends metadata frames that lie one behind the other, `rounds` times, each after the reply to
    the one before.

    `fd` is a lane whose hello is done. Returns (operations done, operations that failed).
    """
    with _probing("metadata frames"):
        return native.probe_frames(fd, frames, rounds)


def main(arguments: list[str]) -> int:
    """The echo process: serves the socket of this number until the other end closes."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.closing(socket.socket(fileno=int(arguments[0]))) as end:
        end.setblocking(True)
        try:
            native.probe_echo_serve(end.fileno())
        except CrailError:
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
