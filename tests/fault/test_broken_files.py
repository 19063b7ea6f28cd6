"""Files whose storage server goes away and comes back."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket

import pytest

import crailpy
from crailpy import errors

SIZE = 6 << 20


@pytest.fixture(params=["shm", "tcp"])
def own(request):
    with (
        crailpy.LocalCluster(dram="64MiB") as cluster,
        cluster.connect(transport=request.param, timeout=10) as store,
    ):
        yield cluster, store
        assert store.check() is None


def data(seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(SIZE)


def restart(cluster) -> None:
    cluster.servers[0].kill()
    cluster.servers[0].start()


def test_a_reader_goes_on_after_its_server_was_restarted(own):
    cluster, store = own
    store.put("/a", data())
    with store.open("/a", "rb") as file:
        got = file.read(100_000)
        got += file.read(1_000_000)
        restart(cluster)
        assert got + file.read() == data()


def cut_data(cluster) -> int:
    """Ends every TCP connection of this process to the storage server; how many."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            peer = sock.getpeername()
            if isinstance(peer, tuple) and peer[1] == cluster.servers[0].port:
                sock.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def test_the_parts_of_a_multifile_are_read_though_connections_broke_while_unused(own):
    """Also those that are asked ahead."""
    cluster, store = own
    parts = store.multifile("/m")
    for seed in range(3):
        with parts.writer(f"part-{seed}") as writer:
            writer.write(data(seed))
    over_tcp = store.get_view("/m/part-0").copied
    assert (cut_data(cluster) > 0) == over_tcp
    with parts.reader() as reader:
        assert reader.read() == b"".join(map(data, range(3)))


def test_a_write_that_was_lost_is_never_published(own):
    cluster, store = own
    store.put("/b", b"before")
    file = store.open("/b", "wb", buffering=0)
    file.write(data())
    restart(cluster)
    expected = data()
    for _ in range(3):
        try:
            file.write(data(2))
            expected += data(2)
        except errors.CrailError:
            pass  # of this write, or of those before: then the file cannot be published any more
    try:
        file.close()
    except errors.CrailError:
        expected = b"before"
    assert store.get("/b") == expected
    with store.open("/b", "wb") as again:
        again.write(data(3))
    assert store.get("/b") == data(3)


def test_what_cannot_be_flushed_at_close_discards_all(own):
    _, store = own
    store.put("/c", b"before")
    file = store.open("/c", "wb", buffering=4 << 20)
    file.write(bytes(1 << 20))
    file.flush()
    full = store.open("/full", "wb", buffering=0)
    piece = bytes(4 << 20)
    with pytest.raises(errors.OutOfSpaceError):
        full.writelines([piece] * 20)
    while True:
        try:
            store.put(f"/rest/{random.random()}", bytes(100_000))
        except errors.OutOfSpaceError:
            break
    file.write(bytes(3 << 20))
    with pytest.raises(errors.OutOfSpaceError):
        file.close()
    assert file.closed
    full.discard()
    assert store.get("/c") == b"before"


def test_signals_do_not_tear_what_is_read_and_written(own):
    _, store = own
    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for i in range(15):
            with store.open("/s", "wb", buffering=0) as file:
                for at in range(0, SIZE, 1 << 20):
                    file.write(data(i % 2)[at : at + (1 << 20)])
            with store.open("/s", "rb", buffering=0) as file:
                got = bytearray()
                while piece := file.read(700_000):
                    got += piece
            assert got == data(i % 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung


def test_ctrl_c_in_the_middle_leaves_nothing_published_and_nothing_held(own):
    _, store = own
    store.put("/i", b"before")

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    stopped = 0
    try:
        for i in range(10):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 * (i + 1))
                with store.open("/i", "wb") as file:
                    while True:
                        file.seek(0)
                        file.write(data())
            except KeyboardInterrupt:
                stopped += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped == 10
    assert store.get("/i") == b"before"
    assert store.client_stats()["slots_used"] == 0
