"""One end of a lane's ring in Python (native/src/base/ring.h), for those who must be able to
lie."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time

from crailpy import hello

RING = 64 << 10
REQUESTS, REPLIES = 64, 64 + 4 * 64  # each: written, taken, reader_sleeps, writer_sleeps
WRITTEN, TAKEN, READER_SLEEPS, WRITER_SLEEPS = 0, 64, 128, 192
REQUEST_BYTES, REPLY_BYTES = 4096, 4096 + RING


class RingEnd:
    """The namenode's end (`server`) or a client's. Takes the descriptors: memory, bell."""

    def __init__(self, fds: list[int], *, server: bool) -> None:
        self.memory = mmap.mmap(fds[0], REPLY_BYTES + RING)
        os.close(fds[0])
        self.bell = fds[1]
        requests, replies = (REQUESTS, REQUEST_BYTES), (REPLIES, REPLY_BYTES)
        self._in, self._out = (requests, replies) if server else (replies, requests)

    def close(self) -> None:
        self.memory.close()
        os.close(self.bell)

    def load(self, at: int) -> int:
        return struct.unpack_from("<Q", self.memory, at)[0]

    def store(self, at: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, at, value)

    def read(self) -> bytes:
        """What is there."""
        control, area = self._in
        taken, written = self.load(control + TAKEN), self.load(control + WRITTEN)
        data = bytes(self.memory[area + at % RING] for at in range(taken, written))
        self.store(control + TAKEN, written)
        return data

    def write(self, data: bytes) -> None:
        """All of it, which must fit. The other end is not woken."""
        control, area = self._out
        written = self.load(control + WRITTEN)
        assert written + len(data) - self.load(control + TAKEN) <= RING
        for i, byte in enumerate(data):
            self.memory[area + (written + i) % RING] = byte
        self.store(control + WRITTEN, written + len(data))

    def woke_reader(self) -> bool:
        """After a write: takes the flag of a peer that sleeps down; was it up?"""
        return self._take_down(self._out[0] + READER_SLEEPS)

    def woke_writer(self) -> bool:
        """The same after a read."""
        return self._take_down(self._in[0] + WRITER_SLEEPS)

    def _take_down(self, at: int) -> bool:
        was = self.load(at) & 0xFFFFFFFF
        struct.pack_into("<I", self.memory, at, 0)
        return was != 0

    def ring(self) -> None:
        """Wakes the namenode."""
        os.eventfd_write(self.bell, 1)


def open_lane(path: str, **fields: object) -> tuple[socket.socket, RingEnd]:
    """A lane of a new session with a ring, at the namenode's unix socket `path`."""
    deadline = time.monotonic() + 10
    sock = hello.connect_unix(path, 10)
    request = {"role": "lane", "lane": 0, "host": hello.host_identity(), "ring": True, **fields}
    reply, fds = hello.exchange_with_descriptors(sock, request, deadline=deadline)
    assert reply["ring"] is True
    sock.settimeout(10)
    return sock, RingEnd(fds, server=False)
