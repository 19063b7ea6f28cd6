from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from crailpy import hello
from crailpy.errors import AuthError, InvalidArgumentError, ProtocolError, SessionLostError


def soon() -> float:
    return time.monotonic() + 10


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        yield a, b


def serve(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_a_message_survives_the_wire_and_leaves_the_next_byte(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    a, b = pair
    message = {"role": "lane", "session": 2**64 - 1, "key": b"\0\xff", "none": None}
    hello.send(a, message, soon())
    a.sendall(b"x")
    assert hello.receive(b, soon()) == message
    assert b.recv(10) == b"x"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1",
        b"CRAILPY2\0\0\0\0",
        b"CRAILPY1\xff\xff\xff\xff",
        b"CRAILPY1",
    ],
)
def test_a_wrong_head_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        hello.size_of(head)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", b"\x81\xa1a", b"\x80\x80", b"\xd9"])
def test_a_body_that_is_no_map_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        hello.unpack(body)


def test_a_long_message_is_not_sent() -> None:
    with pytest.raises(ProtocolError):
        hello.pack({"a": b"x" * hello.MESSAGE_BYTES_MAX})


def test_a_refusal_becomes_its_error(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    refusal = hello.error_reply(SessionLostError("gone", hint="again"))
    hello.send(b, refusal, soon())
    with pytest.raises(SessionLostError, match="gone; again"):
        hello.exchange(a, {"role": "lane"}, deadline=soon())
    assert hello.receive(b, soon()) == {"version": hello.VERSION, "role": "lane"}


def test_a_challenge_is_answered_with_the_token(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    a, b = pair
    seen: dict[str, Any] = {}

    def server() -> None:
        hello.receive(b, soon())
        hello.send(b, {"challenge": b"nonce"}, soon())
        seen.update(hello.receive(b, soon()))
        hello.send(b, {"ok": True}, soon())

    thread = serve(server)
    assert hello.exchange(a, {"role": "lane"}, token="secret", deadline=soon()) == {"ok": True}
    thread.join()
    assert seen["proof"] == hello.proof("secret", b"nonce", "lane")
    assert seen["proof"] != hello.proof("secret", b"nonce", "admin")
    assert b"secret" not in hello.pack(seen)
    assert a.gettimeout() is None


def test_a_challenge_without_a_token_says_what_is_missing(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    a, b = pair
    hello.send(b, {"challenge": b"nonce"}, soon())
    with pytest.raises(AuthError, match="CRAILPY_TOKEN"):
        hello.exchange(a, {"role": "lane"}, deadline=soon())


def test_silence_ends_at_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        hello.receive(pair[0], time.monotonic() + 0.05)
    with pytest.raises(TimeoutError):
        hello.receive(pair[0], time.monotonic() - 1)


def test_an_early_end_is_a_connection_error(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    b.sendall(b"CRAIL")
    b.close()
    with pytest.raises(ConnectionError):
        hello.receive(a, soon())


def test_descriptors_come_with_the_reply(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    message = hello.pack({"regions": [1]})
    with open(os.devnull) as file:
        socket.send_fds(b, [message], [file.fileno()] * 3)
        reply, fds = hello.exchange_with_descriptors(a, {"role": "shm"}, deadline=soon())
        try:
            assert reply == {"regions": [1]}
            assert len(fds) == 3
            assert all(os.path.sameopenfile(fd, file.fileno()) for fd in fds)
            assert not any(os.get_inheritable(fd) for fd in fds)
        finally:
            for fd in fds:
                os.close(fd)


def test_descriptors_of_a_refusal_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull) as file:
        socket.send_fds(b, [hello.pack(hello.error_reply(AuthError()))], [file.fileno()])
    with pytest.raises(AuthError):
        hello.exchange_with_descriptors(a, {"role": "shm"}, deadline=soon())
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_session_key_is_of_one_session_and_one_cluster() -> None:
    key = hello.session_key(b"k" * 16, 7)
    assert len(key) == 16
    assert key[:8] != key[8:]
    assert hello.session_key(b"k" * 16, 8) != key
    assert hello.session_key(b"l" * 16, 7) != key


def test_a_long_socket_path_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="107"):
        hello.connect_unix("/tmp/" + "x" * 200, 1)
