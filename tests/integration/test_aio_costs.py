"""What many operations under way at once cost: requests and system calls."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest

import crailpy
import crailpy.aio

IN_FLIGHT = 1000


@pytest.fixture
def own():
    """A store that nobody else talks to."""
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as watcher:
        yield cluster, watcher


def requests(watcher) -> int:
    return watcher.status()["namenode"]["requests"]


async def test_what_is_asked_in_one_tick_goes_in_full_frames(own):
    cluster, watcher = own
    async with crailpy.aio.connect(cluster.address) as aio:
        await aio.put("/k/0", b"")
        before = requests(watcher)
        await asyncio.gather(*(aio.put(f"/k/{i}", b"x" * 100) for i in range(IN_FLIGHT)))
        assert requests(watcher) - before == 1  # frames of changes hold 1024
        before = requests(watcher)
        await asyncio.gather(*(aio.get(f"/k/{i}") for i in range(IN_FLIGHT)))
        assert requests(watcher) - before == 4  # those of reads 256


async def test_a_large_put_is_one_request_once_it_holds_a_grant(own):
    cluster, watcher = own
    async with crailpy.aio.connect(cluster.address) as aio:
        for _ in range(3):
            await aio.put("/k", b"x" * 100_000)
        before = requests(watcher)
        for _ in range(20):
            await aio.put("/k", b"y" * 100_000)
            await aio.get("/k")
        assert requests(watcher) - before == 40


ROUNDS = 50


async def test_a_stream_costs_a_handful_of_requests_and_wastes_a_quarter_at_most(own):
    cluster, watcher = own
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    piece = bytes(1 << 20)
    async with crailpy.aio.connect(cluster.address) as aio:
        before = requests(watcher)
        async with await aio.open("/stream", "wb") as file:
            for _ in range(24):
                await file.write(piece)
        assert requests(watcher) - before <= 8
        for _ in range(12):
            size = int(2 ** rng.uniform(16, 24)) + 1
            biggest = int(2 ** rng.uniform(12, 20))
            async with await aio.open("/stream", "wb") as file:
                left = size
                while left:
                    n = min(left, rng.randrange(1, biggest + 1))
                    left -= await file.write(piece[:n])
            used = sum(extent["bytes"] for extent in (await aio.stat("/stream")).locations)
            assert used <= size + size // 4 + 4096, f"{used} for {size} in {biggest}s"
        async with await aio.open("/stream", "wb") as file:
            for _ in range(5):
                await file.write(piece)
            await file.discard()
    assert watcher.check() is None


CHILD = f"""
import asyncio, sys, crailpy.aio

async def main():
    async with crailpy.aio.connect(sys.argv[1]) as aio:
        keys = [f"/s/{{i}}" for i in range({IN_FLIGHT})]
        await asyncio.gather(*(aio.put(key, b"x" * 64) for key in keys))
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range({ROUNDS}):
            await asyncio.gather(*(aio.get(key) for key in keys))
            await asyncio.gather(*(aio.put(key, b"y" * 64) for key in keys))
        print("done", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed here")
def test_a_thousand_operations_under_way_share_their_system_calls(own, tmp_path):
    cluster, _ = own
    command = [sys.executable, "-c", CHILD, cluster.address]
    out = tmp_path / "strace"
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        strace = subprocess.Popen(
            ["strace", "-f", "-c", "-o", str(out), "-p", str(child.pid)], stderr=subprocess.PIPE
        )
        assert b"attached" in strace.stderr.readline()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
        strace.send_signal(signal.SIGINT)
        strace.wait(10)
        strace.stderr.close()
        child.communicate("\n", timeout=10)
    (line,) = re.findall(r".*total$", out.read_text(), re.MULTILINE)
    calls = int(line.split()[3])
    print(f"{calls / (2 * ROUNDS * IN_FLIGHT):.4f} system calls an operation")
    assert calls <= 2 * ROUNDS * IN_FLIGHT * 0.05
