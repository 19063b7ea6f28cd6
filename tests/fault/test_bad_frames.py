"""What comes in from a network is not to be believed: garbage harms only who sent it."""

from __future__ import annotations

import os
import random
import socket
import struct
import time

import pytest

from crailpy import hello

FRAME = struct.Struct("<IIIIQQ")
OP = struct.Struct("<HHHHIIQQ")
MAGIC = 0x314C5243


@pytest.fixture
def lane(cluster):
    """A raw lane connection over TCP, its hello done."""
    host, port = cluster.address.removeprefix("crail://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    hello.exchange(
        sock,
        {"role": "lane", "lane": 0, "no_unix": True, "host": "test"},
        deadline=time.monotonic() + 10,
    )
    sock.settimeout(10)
    yield sock
    sock.close()


def frame(*ops: bytes, seq: int = 0, **wrong: int) -> bytes:
    body = b"".join(ops)
    fields = {"magic": MAGIC, "size": FRAME.size + len(body), "count": len(ops)} | wrong
    return FRAME.pack(fields["magic"], fields["size"], fields["count"], 0, 7, seq) + body


def op(code: int, path: bytes = b"/", data: bytes = b"", **wrong: int) -> bytes:
    tail = path + data
    tail += bytes(-len(tail) % 8)
    path_len = wrong.get("claimed_path", len(path))
    data_len = wrong.get("claimed_data", len(data))
    return OP.pack(code, 0, path_len, 0, data_len, 0, 0, 0) + tail


GARBAGE = {
    "another magic": frame(op(1), magic=5),
    "size below the head": frame(op(1), size=8),
    "size not a multiple of 8": frame(op(1), size=FRAME.size + 33),
    "size of 4 GiB": frame(op(1), size=0xFFFFFFF8),
    "no operation": frame(count=0),
    "too many operations": frame(op(1), count=1025),
    "more operations than bytes": frame(op(1), count=2),
    "fewer operations than bytes": frame(op(1), op(1), count=1),
    "path past the end": frame(op(2, path=b"/abc", claimed_path=60000)),
    "data past the end": frame(op(16, data=b"x", claimed_data=1 << 31)),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(GARBAGE))
def test_a_frame_that_makes_no_sense_ends_its_connection_and_nothing_else(cluster, lane, what):
    lane.sendall(GARBAGE[what] + bytes(64))
    assert lane.recv(1) == b"", "the namenode closes"
    with cluster.connect() as store:
        store.put("/alive", b"1")


def test_random_bytes_after_the_hello_and_before_it(cluster, lane):
    rng = random.Random(seed := int(os.environ.get("CRAILPY_SEED", "1")))
    print("seed", seed)
    lane.sendall(rng.randbytes(5000))
    assert lane.recv(1) == b""
    host, port = cluster.address.removeprefix("crail://").split(":")
    for n in (1, 11, 12, 5000):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(rng.randbytes(n))
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"CRAILPY1" + struct.pack("<I", 1 << 31))
        sock.settimeout(10)
        while sock.recv(4096):
            pass
    with cluster.connect() as store:
        assert store.put("/alive", b"1")


def test_half_a_frame_waits_and_harms_nobody(cluster, lane):
    whole = frame(op(1))
    lane.sendall(whole[:20])
    with cluster.connect() as store:
        store.put("/alive", b"1")
    lane.sendall(whole[20:])
    reply = lane.recv(4096)
    assert FRAME.unpack_from(reply)[4] == 7


def test_unknown_operations_and_flags_get_a_status_of_their_own(lane):
    lane.sendall(frame(op(999), op(15), op(1)))
    reply = lane.recv(4096)
    statuses = [struct.unpack_from("<i", reply, FRAME.size + 32 * i)[0] for i in range(3)]
    assert statuses[0] < 0
    assert statuses[1] < 0
    assert statuses[2] == 0
