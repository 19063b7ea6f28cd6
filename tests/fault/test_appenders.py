"""Appenders that die, or are paused for so long that their session ends."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap

import pytest

import crailpy
from crailpy import errors

SIZE = 3 << 20

APPENDER = """
    import sys, time, crailpy
    store = crailpy.connect(sys.argv[1], transport=sys.argv[2])
    file = store.open("/ap/file", "ab", buffering=0)
    file.write(b"half" * 100_000)
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def own():
    """A store whose sessions end soon after their last connection."""
    with (
        crailpy.LocalCluster(dram="64MiB", session_grace=0.3) as cluster,
        cluster.connect() as store,
    ):
        yield cluster, store


def data() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_an_appender_killed_in_the_middle_leaves_the_file_and_the_right(own, transport):
    cluster, store = own
    store.put("/ap/file", data())
    expected = data()
    for i in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(APPENDER), cluster.address, transport],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout.readline() == b"written\n"
        assert store.get("/ap/file") == expected
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        with store.open("/ap/file", "ab", timeout=20) as file:
            file.write(b"after %d" % i)
        expected += b"after %d" % i
        assert store.get("/ap/file") == expected
    store.delete("/ap/file")
    assert store.check() is None


def goes_on_writing(own, transport, spoil):
    """An appender that was paused in the middle of a write while its session ended, and goes on
    with what it had: the locations, and their keys."""
    cluster, store = own
    with cluster.connect(transport=transport) as appender:
        file = appender.open("/ap/file", "ab", buffering=0)
        file.write(b"a" * 5000)
        extents, at = file._extents, file._size
    with pytest.raises(errors.ClosedError):
        file.write(b"a")
    file.discard()
    spoil()
    expected = store.get("/ap/file")
    with cluster.connect(transport=transport) as ghost:
        pipe = ghost._hot.pipe("/ap/file")
        try:
            pipe.write(extents, at, b"A" * 200_000, None, False)
            pipe.settle(None)
        except errors.StaleLocationError:
            pass
        pipe.close()
    assert store.get("/ap/file") == expected
    return expected


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_an_appender_that_comes_back_writes_into_nobodys_bytes(own, transport):
    _, store = own
    base = data()[:-300_000]
    with store.open("/ap/file", "wb") as file:  # in extents with room for what both append
        file.write(base)

    def another_appends():
        with store.open("/ap/file", "ab", timeout=20) as other:
            other.write(b"B" * 250_000)

    assert goes_on_writing(own, transport, another_appends) == base + b"B" * 250_000
    store.delete("/ap/file")
    assert store.check() is None


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_an_appender_that_comes_back_after_an_overwrite_hits_none_of_it(own, transport):
    _, store = own
    store.put("/ap/file", data())
    others = {f"/ap/{i}": bytes([i]) * SIZE for i in range(8)}

    def overwrite():
        store.put("/ap/file", b"new" * 500_000)
        for key, value in others.items():
            store.put(key, value)

    assert goes_on_writing(own, transport, overwrite) == b"new" * 500_000
    assert all(store.get(key) == value for key, value in others.items())
    store.rmtree("/ap")
    assert store.check() is None
