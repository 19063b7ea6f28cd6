"""Signals, forks, dying clients, and many clients at once."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

import crailpy

HAMMER_SECONDS = float(os.environ.get("CRAILPY_HAMMER_SECONDS", "5"))


@pytest.fixture
def start():
    """Starts Python programs; ends and closes what is left of them."""
    children = []

    def start(program: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def settled(store) -> dict[str, int]:
    """The namenode's facts once nothing is on its way back any more."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        facts = store.status()["namenode"]
        if not facts["granules_retiring"] and not facts["background_pending"]:
            return facts
    raise AssertionError(f"granules do not settle: {facts}")


def wait_for_end(pid: int) -> None:
    """Popen.wait() with a limit looks every 50 ms only."""
    process = os.pidfd_open(pid)
    assert select.select([process], [], [], 10)[0]
    os.close(process)


ENDLESS_PUT = """
import sys, numpy, crailpy
with crailpy.connect(sys.argv[1]) as store:
    data = numpy.ones(int(sys.argv[2]), dtype="uint8")
    print("ready", flush=True)
    while True:
        store.put("/endless", data)
"""


@pytest.fixture
def roomy(tmp_path):
    with crailpy.LocalCluster(dram="768MiB") as cluster, cluster.connect() as store:
        yield cluster, store


def test_ctrl_c_ends_a_large_put_within_200_ms_and_leaks_nothing(roomy, start):
    cluster, store = roomy
    before = settled(store)["granules_free"]
    for _ in range(3):
        child = start(ENDLESS_PUT, cluster.address, 256 << 20)
        assert child.stdout.readline() == "ready\n"
        while store.status()["namenode"]["granules_free"] == before:
            pass
        begin = time.perf_counter()
        child.send_signal(signal.SIGINT)
        wait_for_end(child.pid)
        took = time.perf_counter() - begin
        child.wait()
        assert child.returncode == -signal.SIGINT or child.returncode == 1
        assert took < 0.6, "200 ms and the end of the interpreter, on a busy machine"
    store.delete("/endless", missing_ok=True)
    while settled(store)["granules_free"] != before:
        assert time.perf_counter() - begin < 20


PUT_ONCE = r"""
import re, sys, numpy, crailpy
with crailpy.connect(sys.argv[1]) as store:
    data = numpy.ones(int(sys.argv[2]), dtype="uint8")
    store.put("/once", data)
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read(), flags=re.M)
    [region] = [one for one in maps if re.match(r".* rw-s .*/region-0\n", one)]
    print(re.search(r"ShmemPmdMapped: *(\d+) kB", region)[1])
"""


def why_no_huge_pages() -> str | None:
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 1):
        return "Linux before 6.1 collapses no shared memory into huge pages"
    try:
        with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled") as file:
            return "shared memory is denied huge pages here" if "[deny]" in file.read() else None
    except OSError:
        return "a kernel without transparent huge pages"


def test_what_a_large_put_mapped_are_huge_pages_so_that_its_process_ends_at_once(roomy, start):
    if why := why_no_huge_pages():
        pytest.skip(why)
    cluster, _ = roomy
    child = start(PUT_ONCE, cluster.address, 512 << 20)
    mapped = int(child.communicate(timeout=60)[0]) << 10
    # 40 ms of the kernel at the end of the process for each GiB that is mapped by small pages
    assert mapped >= 500 << 20


def test_a_client_killed_in_a_write_leaves_no_half_and_its_granules_come_back(roomy, start):
    cluster, store = roomy
    before = settled(store)["granules_free"]
    child = start(ENDLESS_PUT.replace("/endless", "/half"), cluster.address, 300 << 20)
    assert child.stdout.readline() == "ready\n"
    while store.status()["namenode"]["granules_granted"] == 0:
        pass
    child.kill()
    child.wait()
    size = store.stat("/half").size if store.exists("/half") else 0
    assert size in (0, 300 << 20)
    store.delete("/half", missing_ok=True)
    begin = time.monotonic()
    while settled(store)["granules_free"] != before:
        assert time.monotonic() - begin < 20


FORKS = """
import os, sys, crailpy, numpy
store = crailpy.connect(sys.argv[1])
store.put("/f/parent", b"p")
store.put("/f/bulk", numpy.arange(100_000))
view = store.get_view("/f/bulk")
pid = os.fork()
who = "child" if pid == 0 else "parent"
for i in range(200):
    store.put(f"/f/{who}{i}", who.encode() * 10)
    store.put(f"/f/{who}-bulk", numpy.full(10_000, i))
    assert store.get(f"/f/{who}{i}") == who.encode() * 10
    assert (numpy.frombuffer(store.get(f"/f/{who}-bulk"), dtype="int64") == i).all()
assert (numpy.frombuffer(view, dtype="int64") == numpy.arange(100_000)).all()
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert store.get("/f/parent") == b"p"
store.close()
print("done")
"""


def test_a_forked_child_opens_its_own_session_and_harms_none_of_its_parents(cluster, start):
    child = start(FORKS, cluster.address)
    assert child.communicate(timeout=60)[0] == "done\n"
    assert child.returncode == 0


HAMMER = """
import random, sys, threading, time, zlib, json, crailpy
address, seconds, seed, threads = [f(x) for f, x in zip((str, float, int, int), sys.argv[1:])]
store = crailpy.connect(address, timeout=30)
counts = []
def work(seed):
    rng = random.Random(seed)
    n = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        key = f"/hammer/{rng.randrange(200)}"
        if rng.random() < 0.5:
            body = rng.randbytes(rng.choice([10, 1000, 4000, 9000, 60000]))
            store.put(key, zlib.crc32(key.encode() + body).to_bytes(4, "little") + body)
        else:
            value = store.get(key, default=None)
            if value is not None:
                assert zlib.crc32(key.encode() + value[4:]).to_bytes(4, "little") == value[:4]
        n += 1
    counts.append(n)
workers = [threading.Thread(target=work, args=(seed * 1000 + i,)) for i in range(threads)]
for w in workers: w.start()
for w in workers: w.join()
store.close()
assert len(counts) == threads, "a thread failed"
print(json.dumps(sum(counts)))
"""


@pytest.mark.parametrize(("processes", "threads"), [(64, 1), (1, 64)])
def test_many_clients_at_once_see_no_error_and_no_wrong_byte(roomy, start, processes, threads):
    cluster, store = roomy
    children = [
        start(HAMMER, cluster.address, HAMMER_SECONDS, seed, threads) for seed in range(processes)
    ]
    done = [json.loads(c.communicate(timeout=HAMMER_SECONDS + 120)[0] or "0") for c in children]
    assert [c.returncode for c in children] == [0] * processes
    assert all(n > 0 for n in done)
    store.rmtree("/hammer")
    facts = settled(store)
    assert facts["granules_used"] == 0
