"""Files as streams: what appears when, who sees which version, and that nothing is left over."""

from __future__ import annotations

import gc
import io
import os
import random
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import crailpy
from crailpy import errors

SMALL, MEDIUM, LARGE = 1000, 100_000, 3 << 20  # in the node; by one put; in extents of its own


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def facts(store) -> dict[str, int]:
    """What must be as before when all is over; waits until nothing is on its way back."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        facts = store.status()["namenode"]
        if not facts["granules_retiring"] and not facts["background_pending"]:
            assert store.check() is None
            return {k: facts[k] for k in ("nodes", "granules_used", "granules_granted")}
    raise AssertionError("granules do not settle")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(params=["shm", "tcp"])
def stores(request, cluster):
    """Two stores, and the accounting around them."""
    with cluster.connect() as watcher:
        watcher.mkdir("/f", exist_ok=True)
        before = facts(watcher)
        with (
            cluster.connect(transport=request.param) as one,
            cluster.connect(transport=request.param) as two,
        ):
            one.put("/f/warm", pattern(LARGE))  # connections and mappings are there from now on
            two.get("/f/warm")
            yield one, two
            for store in (one, two):
                assert store.client_stats()["slots_used"] == 0
        watcher.rmtree("/f")
        watcher.mkdir("/f")
        assert facts(watcher) == before
        watcher.rmtree("/f")


@pytest.fixture
def store(stores):
    return stores[0]


@pytest.mark.parametrize("size", [0, SMALL, MEDIUM, LARGE])
def test_what_is_written_appears_at_close_and_not_before(store, size):
    data = pattern(size)
    with store.open("/f/a", "wb") as file:
        for at in range(0, size, 70_000):
            file.write(data[at : at + 70_000])
        assert not store.exists("/f/a")
    assert store.get("/f/a") == data
    assert store.stat("/f/a").version == file.version


def leave_by_an_exception(store, path, mode):
    with store.open(path, mode) as file:
        for _ in range(5):
            file.write("x" * 100_000 if "b" not in mode else b"x" * 100_000)
        raise ZeroDivisionError


def test_leaving_by_an_exception_discards_in_every_mode(store):
    store.put("/f/x", pattern(LARGE))
    version = store.stat("/f/x").version
    for mode in ("wb", "r+b", "ab", "w", "r+", "a"):
        for path in ("/f/x", "/f/new"):
            if path == "/f/new" and mode[0] == "r":
                continue
            with pytest.raises(ZeroDivisionError):
                leave_by_an_exception(store, path, mode)
    assert store.stat("/f/x").version == version
    assert not store.exists("/f/new"), "nor does the empty value stay that an append begins with"


def test_an_append_that_is_discarded_takes_nothing_of_others_with_it(stores):
    one, two = stores
    with one.open("/f/kept", "ab"):
        pass  # as the builtin's: it is there, and empty
    assert one.get("/f/kept") == b""
    with pytest.raises(ZeroDivisionError), one.open("/f/kept", "ab"):
        raise ZeroDivisionError
    assert one.get("/f/kept") == b"", "it was there before"
    file = one.open("/f/taken", "ab", buffering=0)
    file.write(b"mine")
    version = two.put("/f/taken", b"another's")
    file.discard()
    assert two.stat("/f/taken").version == version
    file = one.open("/f/next", "ab", buffering=0)
    with pytest.raises(errors.DeadlineError):
        two.open("/f/next", "ab", timeout=0.1)
    file.discard()
    with two.open("/f/next", "ab", timeout=10) as after:
        after.write(b"after")
    assert one.get("/f/next") == b"after"


def test_a_writer_that_nobody_closes_publishes_nothing_and_is_complained_of(store):
    for buffering in (0, -1):
        files = [store.open("/f/lost", "wb", buffering=buffering)]
        files[0].write(pattern(LARGE))
        with pytest.warns(ResourceWarning, match="/f/lost"):
            files.clear()
        gc.collect()
    assert not store.exists("/f/lost")


def test_a_reader_keeps_its_version_under_overwrite_delete_and_rmtree(stores):
    one, two = stores
    for spoil in (
        lambda: two.put("/f/d/k", b"other" * 100_000),
        lambda: two.delete("/f/d/k"),
        lambda: two.rmtree("/f/d"),
        lambda: two.open("/f/d/k", "ab").close(),
    ):
        data = pattern(LARGE)
        one.put("/f/d/k", data)
        with one.open("/f/d/k", "rb") as file:
            assert file.read(10) == data[:10]
            spoil()
            for i in range(20):  # whoever could take the memory does
                two.put(f"/f/fill{i}", pattern(LARGE, seed=i))
            assert file.read() == data[10:]
            file.seek(0)
            assert file.read() == data
        for i in range(20):
            two.delete(f"/f/fill{i}")


def test_a_reader_does_not_see_what_is_appended_later(stores):
    one, two = stores
    data = pattern(LARGE)
    one.put("/f/grow", data)
    with one.open("/f/grow", "rb") as file:
        with two.open("/f/grow", "ab") as more:
            more.write(b"later")
        assert file.read() == data
    assert one.get("/f/grow") == data + b"later"


def test_r_plus_is_refused_when_another_version_was_published_meanwhile(stores):
    one, two = stores
    for size in (SMALL, LARGE):
        one.put("/f/c", pattern(size))
        file = one.open("/f/c", "r+b")
        file.write(b"mine")
        two.put("/f/c", b"theirs")
        with pytest.raises(errors.VersionConflictError):
            file.close()
        assert one.get("/f/c") == b"theirs"


def test_r_plus_without_a_change_publishes_nothing(store):
    store.put("/f/same", pattern(LARGE))
    version = store.stat("/f/same").version
    with store.open("/f/same", "r+b") as file:
        file.read(100)
        file.truncate(LARGE)
    assert store.stat("/f/same").version == version


def test_create_exclusive_is_decided_when_it_closes(stores):
    one, two = stores
    file = one.open("/f/ex", "xb")
    file.write(pattern(LARGE))
    two.put("/f/ex", b"first")
    with pytest.raises(errors.ExistsError):
        file.close()
    with pytest.raises(errors.ExistsError):
        one.open("/f/ex", "xb")
    assert one.get("/f/ex") == b"first"


def test_appending_is_for_one_at_a_time_and_the_others_wait(stores):
    one, two = stores
    first = one.open("/f/ap", "ab")
    first.write(b"1" * MEDIUM)
    begun = time.monotonic()
    with pytest.raises(errors.DeadlineError):
        two.open("/f/ap", "ab", timeout=0.2)
    assert time.monotonic() - begun < 5
    done = threading.Event()

    def wait_for_it():
        with two.open("/f/ap", "ab") as second:
            second.write(b"2" * MEDIUM)
        done.set()

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    assert not done.wait(0.1)
    first.close()
    thread.join(20)
    assert done.is_set()
    assert one.get("/f/ap") == b"1" * MEDIUM + b"2" * MEDIUM


def test_many_small_appends_fill_the_extents_that_are_there(store):
    data = bytearray(pattern(LARGE))
    store.put("/f/log", data)
    for i in range(200):
        with store.open("/f/log", "ab") as file:
            line = pattern(i * 37 % 3000, seed=i)
            file.write(line)
            data += line
    assert store.get("/f/log") == data
    assert len(store.stat("/f/log").locations) < 10


def test_an_appender_that_gave_up_leaves_a_tail_that_nobody_writes_again(stores):
    one, two = stores
    data = pattern(LARGE + 100)
    one.put("/f/tail", data)
    file = one.open("/f/tail", "ab", buffering=0)
    file.write(b"never committed")
    assert two.get("/f/tail") == data
    file.discard()
    before = two.stat("/f/tail").locations
    with two.open("/f/tail", "ab") as more:
        more.write(b"more")
    assert two.get("/f/tail") == data + b"more"
    assert two.stat("/f/tail").locations[-1] != before[-1]
    with one.open("/f/tail", "ab") as more:
        more.write(b"still")
    assert two.get("/f/tail") == data + b"more" + b"still"


def test_a_file_larger_than_the_store_is_refused_and_leaves_nothing(store, dram_bytes):
    file = store.open("/f/huge", "wb", buffering=0)
    pieces = [bytes(LARGE)] * (dram_bytes // LARGE + 2)
    with pytest.raises(errors.OutOfSpaceError):
        file.writelines(pieces)
    file.discard()
    assert not store.exists("/f/huge")


def test_files_close_their_descriptors_and_holds(stores):
    one, _ = stores
    data = pattern(LARGE)
    one.put("/f/many", data)

    def turn():
        with one.open("/f/many", "rb") as file:
            assert file.read(100)[1:] == data[1:100]
        with one.open("/f/many", "r+b") as file:
            file.write(b"x")
        with one.open("/f/many", "ab") as file:
            file.write(b"y")
        with one.open("/f/other", "wb") as file:
            file.write(data)
            file.discard()

    turn()
    before = descriptors()
    for _ in range(20):
        turn()
    assert descriptors() <= before + 2, "one data connection may be in the lane's keeping"


def test_a_forked_child_cannot_touch_the_files_of_its_parent(store):
    file = store.open("/f/fork", "wb")
    file.write(pattern(MEDIUM))
    reader = store.open("/f/warm", "rb")
    reader.read(10)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            try:
                reader.raw.read(10)
            except errors.ClosedError:
                file.discard()
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert reader.read(10) == pattern(LARGE)[10:20]
    reader.close()
    file.close()
    assert store.get("/f/fork") == pattern(MEDIUM)


def test_text_is_layered_as_by_open(store):
    with store.open("/f/text", "w", encoding="utf-16", newline="\r\n") as file:
        file.write("grün\nblau\n")
    assert store.get("/f/text").decode("utf-16") == "grün\r\nblau\r\n"
    with store.open("/f/text", "r", encoding="utf-16") as file:
        assert isinstance(file, io.TextIOBase)
        assert list(file) == ["grün\n", "blau\n"]


@pytest.mark.parametrize("mode", ["", "b", "rw", "rbt", "z", "rbb", "r+w"])
def test_modes_that_are_none_are_refused(store, mode):
    with pytest.raises(errors.InvalidArgumentError):
        store.open("/f/m", mode)


def test_a_file_has_no_descriptor_and_says_so(store):
    with store.open("/f/warm") as file, pytest.raises(io.UnsupportedOperation):
        file.fileno()
    with pytest.raises(errors.NotFoundError):
        store.open("/f/absent")
    with pytest.raises(errors.IsContainerError):
        store.open("/f")


# -- following ---------------------------------------------------------------------------------

WRITER = """
    import sys, crailpy
    store = crailpy.connect(sys.argv[1], transport=sys.argv[2])
    file = store.open("/f/live", "wb")
    for line in sys.stdin.buffer:
        if line == b"close\\n":
            file.close()
        elif line == b"discard\\n":
            file.discard()
        else:
            file.write(line * 1000)
            file.flush()
        sys.stdout.write("done\\n")
        sys.stdout.flush()
"""


@pytest.fixture
def live(stores, cluster, request):
    """A writer in a process of its own; `say` has it do something."""
    transport = request.node.callspec.params["stores"]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), cluster.address, transport],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def say(line: bytes) -> bytes:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n"
        return (line + b"\n") * 1000

    yield stores[0], say, process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_follower_sees_bytes_as_they_are_flushed_and_ends_with_the_commit(live):
    store, say, _ = live
    written = say(b"first")
    with store.open("/f/live", "rb", follow=True) as file:
        assert file.read(len(written)) == written
        for i in range(30):
            more = say(f"line {i}".encode() * 10)
            assert file.read(len(more)) == more
            written += more
        assert not store.exists("/f/live")
        say(b"close")
        assert file.read() == b""
        store.delete("/f/live")
        file.seek(0)
        assert file.read() == written, "the version stays until the follower is closed"


def test_a_follower_waits_for_its_writer_to_begin(live):
    store, say, _ = live
    got = []

    def follow():
        with store.open("/f/live", "rb", follow=True, timeout=30) as file:
            got.append(file.read())

    thread = threading.Thread(target=follow)
    thread.start()
    written = say(b"first") + say(b"second")
    say(b"close")
    thread.join(30)
    assert got == [written]


@pytest.mark.parametrize("end", ["discard", "kill"])
def test_a_follower_is_told_when_the_writer_discards_or_dies(live, end):
    store, say, process = live
    written = say(b"first")
    with store.open("/f/live", "rb", follow=True, timeout=30) as file:
        assert file.read(len(written)) == written
        if end == "kill":
            process.kill()
        else:
            say(b"discard")
        with pytest.raises(errors.DataLostError):
            file.read(1)


def test_a_follower_of_what_is_complete_reads_it_to_its_end(store):
    for size in (SMALL, LARGE):
        store.put("/f/whole", pattern(size))
        with store.open("/f/whole", "rb", follow=True) as file:
            assert file.read() == pattern(size)


def test_nothing_is_followed_beyond_its_deadline(store):
    with pytest.raises(errors.DeadlineError):
        store.open("/f/absent", "rb", follow=True, timeout=0.2)
    with store.open("/f/slow", "wb") as file:
        file.write(b"x" * MEDIUM)
        file.flush()
        with store.open("/f/slow", "rb", follow=True, timeout=0.2) as follower:
            assert follower.read(MEDIUM) == b"x" * MEDIUM
            with pytest.raises(errors.DeadlineError):
                follower.read(1)


# -- multifiles ----------------------------------------------------------------------------------


def test_a_multifile_reads_its_parts_in_the_order_of_their_opening(stores):
    one, two = stores
    written = []
    files = []
    for i in range(40):
        multifile = (one, two)[i % 2].multifile("/f/multi")
        files.append(multifile.writer())
        written.append(pattern([0, 10, 5000, MEDIUM, 700_000][i % 5], seed=i))
    for file, data in reversed(list(zip(files, written, strict=True))):
        file.write(data)
        file.close()
    for outstanding in (1, 8, 64):
        with two.multifile("/f/multi").reader(outstanding) as reader:
            assert reader.readall() == b"".join(written)
    assert [part.size for part in one.multifile("/f/multi").parts()] == [len(d) for d in written]
    with io.BufferedReader(one.multifile("/f/multi").reader()) as reader:
        assert reader.read(9000) == b"".join(written)[:9000]


def test_a_writer_that_ends_while_it_is_numbered_leaves_nothing(cluster, store, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with cluster.connect() as dying:
        multifile = dying.multifile("/f/numbered")
        with monkeypatch.context() as patched:
            patched.setattr(dying, "_run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                multifile.writer()
        (ticket,) = store.listdir("/f/numbered")
        assert store.multifile("/f/numbered").parts() == []
    store.wait(f"/f/numbered/{ticket}", absent=True, timeout=10)
    store.remove("/f/numbered")


def test_many_writers_at_once_lose_no_part(cluster, stores):
    one, two = stores
    one.multifile("/f/crowd")
    failures = []

    def work(n: int) -> None:
        try:
            with cluster.connect() as store:
                multifile = store.multifile("/f/crowd", create=False)
                for i in range(10):
                    with multifile.writer() as file:
                        file.write(bytes([n]) * 50_000 + bytes([i]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with two.multifile("/f/crowd").reader() as reader:
        data = reader.readall()
    parts = [data[at : at + 50_001] for at in range(0, len(data), 50_001)]
    assert len(parts) == 80
    for n in range(8):
        mine = [part for part in parts if part[0] == n]
        assert [part[-1] for part in mine] == list(range(10)), "in the order of opening"
        assert all(part[:-1] == bytes([n]) * 50_000 for part in mine)


def test_a_part_that_was_discarded_or_removed_is_left_out(store):
    multifile = store.multifile("/f/parts")
    for i in range(4):
        with multifile.writer(f"part-{i}") as file:
            file.write(bytes([i]) * 10)
    with multifile.writer() as file:
        file.write(b"never")
        file.discard()
    reader = multifile.reader(outstanding=1)
    assert reader.read(5) == bytes(5)
    store.delete("/f/parts/part-2")
    assert reader.readall() == bytes(5) + b"\1" * 10 + b"\3" * 10
    reader.close()
    with pytest.raises(errors.ExistsError):
        multifile.writer("part-1")


def test_a_store_that_is_closed_leaves_its_files_closed_too(cluster):
    store = cluster.connect()
    store.put("/f-closed", pattern(LARGE))
    file = store.open("/f-closed", "rb")
    store.close()
    with pytest.raises(errors.ClosedError):
        file.read(10_000_000)
    file.close()
    with crailpy.connect(cluster.address) as again:
        again.delete("/f-closed")


# -- what it costs, and what options mean ----------------------------------------------------------


def requests_of(store, work) -> int:
    before = store.client_stats()["requests"]
    work()
    return store.client_stats()["requests"] - before


def test_small_files_cost_one_request_each_way(store):
    def write():
        with store.open("/f/small", "wb") as file:
            file.write(b"x" * SMALL)

    def read():
        with store.open("/f/small", "rb") as file:
            assert file.read() == b"x" * SMALL

    assert requests_of(store, write) == 1
    assert requests_of(store, read) == 1


def test_large_files_cost_a_request_per_doubling_and_none_per_write(store):
    piece = bytes(100_000)

    def write():
        with store.open("/f/large", "wb", buffering=0) as file:
            for _ in range(200):
                file.write(piece)

    def read():
        with store.open("/f/large", "rb") as file:
            while file.read(100_000):
                pass

    taken = requests_of(store, write)
    extents = store.stat("/f/large").locations
    used = sum(extent["bytes"] for extent in extents)
    assert used <= 200 * len(piece) * 1.25
    assert taken <= 8
    assert requests_of(store, read) == 2


def test_a_stream_of_64_mib_costs_a_handful_of_requests(store):
    piece = bytes(1 << 20)

    def write():
        with store.open("/f/stream", "wb") as file:
            for _ in range(64):
                file.write(piece)

    assert requests_of(store, write) <= 8
    assert store.stat("/f/stream").size == 64 << 20
    store.delete("/f/stream")
    assert store.check() is None


def test_no_more_than_a_quarter_of_a_streamed_file_is_unused(store):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for flushes in (False, True):
        for _ in range(12):
            size = int(2 ** rng.uniform(16, 24)) + 1
            biggest = int(2 ** rng.uniform(12, 20))
            with store.open("/f/tight", "wb", buffering=rng.choice([0, -1])) as file:
                left = size
                while left:
                    n = min(left, rng.randrange(1, biggest + 1))
                    left -= file.write(bytes(n))
                    if flushes and rng.random() < 0.1:
                        file.flush()
            runs = store.stat("/f/tight").locations
            used = sum(run["bytes"] for run in runs)
            whole = 4096 * len(runs)  # each ends with a whole granule
            assert used <= size + size // 4 + whole, f"{used} for {size} in {biggest}s"
    assert store.check() is None


def test_grants_that_were_asked_for_ahead_go_back(stores):
    one, two = stores
    one.put("/f/ahead", b"")
    before = facts(two)
    for mode in ("wb", "ab", "r+b"):
        file = one.open("/f/ahead", mode, buffering=0)
        for _ in range(5):
            file.write(bytes(LARGE))
        held = facts(two)["granules_granted"] - before["granules_granted"]
        assert held > 5 * LARGE // 4096 * 1.3, "some are ahead of need"
        file.discard()
        assert facts(two) == before
    with one.open("/f/ahead", "wb", buffering=0) as file:
        for _ in range(5):
            file.write(bytes(LARGE))
    used = sum(extent["bytes"] for extent in one.stat("/f/ahead").locations)
    assert facts(two)["granules_used"] == before["granules_used"] + used // 4096
    assert facts(two)["granules_granted"] == before["granules_granted"]


def test_a_value_that_goes_when_it_was_read_goes_at_its_end_and_not_before(store):
    for size in (SMALL, LARGE):
        store.put("/f/once", pattern(size), delete_after_read=True)
        with store.open("/f/once", "rb") as file:
            assert file.read(size - 1) == pattern(size)[:-1]
        assert store.exists("/f/once")
        with store.open("/f/once", "rb") as file:
            file.seek(size // 2)
            file.read()
        assert store.exists("/f/once"), "only what was read in order counts"
        with store.open("/f/once", "rb") as file:
            while file.read(77_777):
                pass
            assert not store.exists("/f/once")


TEXT = "".join(f"line {i} äöü\n" for i in range(3000))  # more than one buffer of each layer

READ_TO_THE_END = {
    "read": lambda file: file.read(),
    "iteration": list,
    "readlines": lambda file: file.readlines(),
    "as many lines as there are": lambda file: [file.readline() for _ in range(3000)],
    "as many characters as there are": lambda file: file.read(len(TEXT)),
    "in pieces": lambda file: [file.read(1000) for _ in range(len(TEXT) // 1000 + 1)],
}
NOT_TO_THE_END = {
    "nothing": lambda file: None,
    "a line": lambda file: file.readline(),
    "all but a line": lambda file: [file.readline() for _ in range(2999)],
    "all but a character": lambda file: file.read(len(TEXT) - 1),
    "not all of an iteration": lambda file: [next(file) for _ in range(2999)],
    "the end": lambda file: (file.seek(0, 2), file.read()),
}


@pytest.mark.parametrize("way", READ_TO_THE_END)
def test_text_that_goes_when_it_was_read_goes_when_all_was_read(store, way):
    store.put("/f/once", TEXT.encode(), delete_after_read=True)
    with store.open("/f/once", "r", encoding="utf-8") as file:
        got = READ_TO_THE_END[way](file)
    assert "".join(got) == TEXT
    assert not store.exists("/f/once")


@pytest.mark.parametrize("way", NOT_TO_THE_END)
def test_text_that_goes_when_it_was_read_stays_when_not_all_was_read(store, way):
    store.put("/f/once", TEXT.encode(), delete_after_read=True)
    with store.open("/f/once", "r", encoding="utf-8") as file:
        NOT_TO_THE_END[way](file)
    assert store.get("/f/once").decode() == TEXT


def test_placement_holds_for_files_as_for_values(store):
    for size in (SMALL, MEDIUM, LARGE):
        with store.open("/f/ttl", "wb", ttl=0.5, evictable=True, stripe=2) as file:
            file.write(pattern(size))
        assert store.get("/f/ttl") == pattern(size)
        store.wait("/f/ttl", absent=True, timeout=20)
    with pytest.raises(errors.InvalidArgumentError):
        store.open("/f/ttl", "wb", tier="tape")
    with (
        pytest.raises(errors.OutOfSpaceError),
        store.open("/f/there", "wb", location="nowhere", strict=True) as file,
    ):
        file.write(pattern(LARGE))
