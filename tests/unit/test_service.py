"""The loop of a pool's service, without a pool: who goes wrong in it goes alone."""

from __future__ import annotations

import socket
import time

import pytest

from crailpy.client.compute.executors import frames, service
from crailpy.errors import UnavailableError


class Peer:
    """The far end of a link, and what became of it."""

    def __init__(self, loop: service.Loop, error: Exception | None = None) -> None:
        ours, self.sock = socket.socketpair()
        self.sock.settimeout(10)
        self.taken: list[int] = []
        self.ends = 0
        self._error = error
        self.link = service.Link(loop, ours, self._take, self._ended)

    def _take(self, frame: frames.Frame) -> None:
        self.taken.append(frame[0])
        if self._error is not None:
            raise self._error

    def _ended(self) -> None:
        self.ends += 1
        if self._error is not None:
            raise RuntimeError("its end goes wrong as well")

    def close(self) -> None:
        self.link.close()
        self.sock.close()


def turn(loop: service.Loop, *peers: Peer) -> None:
    for peer in peers:
        peer.sock.sendall(frames.pack(frames.STATUS))
    loop.turn(time.monotonic() + 10)


def test_what_goes_wrong_with_one_peer_ends_that_peer_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    loop = service.Loop()
    bad, good = Peer(loop, KeyError("something that nobody thought of")), Peer(loop)
    for _ in range(2):
        turn(loop, good, *([bad] if bad.link.is_open else []))
    assert good.taken == [frames.STATUS] * 2
    assert (bad.taken, bad.ends, bad.sock.recv(1)) == ([frames.STATUS], 1, b"")
    assert "nobody thought of" in capsys.readouterr().err
    for peer in (bad, good):
        peer.close()


def test_the_end_of_the_template_is_told_whoever_meets_with_it() -> None:
    loop = service.Loop()
    peer = Peer(loop, UnavailableError("the template has ended"))
    with pytest.raises(UnavailableError):
        turn(loop, peer)
    peer.close()
