"""The probes measure what they say, and bad input is an error and no crash."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading

import pytest

from crailpy.client.bench.tree import lookup_frame
from crailpy.client.probes import Echo, Memory, ProbeError, run_frames

FRAME = struct.Struct("<IIIIQQ")
RESULT = struct.Struct("<iIQQHBBI")


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_echo_round_trips_of_every_shape(family: str) -> None:
    with Echo(family, 4 << 20) as echo:
        for request, reply in [(64, 64), (16, 4096), (4096, 16), (4 << 20, 16), (16, 4 << 20)]:
            samples = echo.round_trips(request, reply, 5)
            assert len(samples) == 5
            assert min(samples) > 500
        pid = echo.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_echo_refuses_more_than_its_buffers() -> None:
    with Echo("unix", 1 << 16) as echo, pytest.raises(ProbeError):
        echo.round_trips(64, 1 << 20, 1)


def test_echo_that_was_killed_is_an_error() -> None:
    with Echo("unix") as echo:
        os.kill(echo.pid, 9)
        with pytest.raises(ProbeError):
            echo.round_trips(64, 64, 1000)


def test_memory_copies_what_lies_in_the_source() -> None:
    with Memory(8 << 20) as memory:
        memory.source[:4] = b"abcd"
        memory.source[1 << 20 : (1 << 20) + 4] = b"efgh"
        assert len(memory.copies(1 << 20, 4)) == 4
        assert bytes(memory.target[:4]) == b"abcd"
        assert bytes(memory.target[1 << 20 : (1 << 20) + 4]) == b"efgh"
        with pytest.raises(ProbeError):
            memory.copies(5 << 20, 1)


def _namenode(end: socket.socket, status: int) -> None:
    """Answers every frame with a result of `status` and five bytes of data for each operation."""
    with contextlib.closing(end), end.makefile("rb") as file:
        while head := file.read(FRAME.size):
            magic, size, count, _, number, _ = FRAME.unpack(head)
            file.read(size - FRAME.size)
            result = RESULT.pack(status, 5, 1, 5, 0, 1, 1, 0) + b"12345" + bytes(3)
            head = FRAME.pack(magic, FRAME.size + count * len(result), count, 0, number, 0)
            end.sendall(head + result * count)


@pytest.mark.parametrize(("status", "failed"), [(0, 0), (-1001, 1200)])
def test_frames_are_driven_and_failures_counted(status: int, failed: int) -> None:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_namenode, args=(theirs, status))
    thread.start()
    frames = lookup_frame(2, [f"/a/b{i}" for i in range(300)]) + lookup_frame(3, ["/x"] * 100)
    with ours:
        assert run_frames(ours.fileno(), frames, 3) == (1200, failed)
        with pytest.raises(ProbeError):
            run_frames(ours.fileno(), frames[:-8], 1)
    thread.join(10)


def test_frames_to_a_namenode_that_has_gone_are_an_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(ProbeError):
        run_frames(ours.fileno(), lookup_frame(2, ["/a"]), 1)
