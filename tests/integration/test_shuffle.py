"""Shuffles: what map tasks write by partition, reduce tasks read by partition."""

from __future__ import annotations

import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import crailpy
from crailpy import errors
from crailpy.client import requests
from crailpy.client.compute import shuffle as shuffle_of
from crailpy.client.compute.shuffle import Shuffle

from .kit import Call, Program, until, waiters
from .kit import requests_of as requests_during

MODULE = sys.modules["crailpy.client.compute.shuffle"]
#: Bytes of a segment: all within the node, one extent, more of them, and copies beyond the caches.
SIZES = (20, 3_000, 700_000)

SLOTS = 4096  # uses that a process can name at once at one server (native/src/data/use.h)


@pytest.fixture(params=[None, "tcp"])
def store(cluster: Any, request: Any) -> Iterator[Any]:
    with cluster.connect(transport=request.param) as store:
        yield store
        if store.exists("/shuffle"):
            store.rmtree("/shuffle")


def segment(seed: int, map_id: int, partition: int, size: int) -> bytes:
    """What this map has for this partition: of about that size, sometimes nothing."""
    chance = random.Random(f"{seed} {map_id} {partition}")
    return b"" if chance.random() < 0.2 else chance.randbytes(chance.randint(1, 2 * size))


def write(shuffle: Shuffle, map_id: int, size: int, seed: int = 1, pieces: int = 3) -> bool:
    """Writes a map output in pieces, in no order."""
    chance = random.Random(map_id)
    parts = []
    for partition in range(shuffle.partitions):
        data = segment(seed, map_id, partition, size)
        step = len(data) // pieces + 1
        parts.append([(partition, data[at : at + step]) for at in range(0, len(data), step)])
    with shuffle.writer(map_id) as writer:
        while any(parts):
            writer.write(*chance.choice([part for part in parts if part]).pop(0))
    return bool(writer.committed)


def check_all(shuffle: Shuffle, maps: list[int], size: int, seed: int = 1) -> None:
    for partition in range(shuffle.partitions):
        wanted = [segment(seed, m, partition, size) for m in sorted(maps)]
        assert [bytes(view) for view in shuffle.reader(partition)] == wanted
    assert shuffle.sizes() == [
        sum(len(segment(seed, m, p, size)) for m in maps) for p in range(shuffle.partitions)
    ]


def granules(store: Any) -> dict[str, int]:
    counts = store.status()["namenode"]
    return {name: counts[f"granules_{name}"] for name in ("used", "granted", "retiring", "free")}


def gone(store: Any) -> bool:
    """Has all memory come back?"""
    counts = granules(store)
    return not (counts["used"] or counts["granted"] or counts["retiring"])


# ---- what is read is what was written ------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_segments_come_out_in_the_order_of_maps(store, size):
    shuffle = store.shuffle("/shuffle/job", partitions=5)
    maps = [7, 0, 3, 12]
    for map_id in maps:
        assert write(shuffle, map_id, size)
    check_all(shuffle, maps, size)


def test_views_are_in_place_where_memory_is_shared(cluster):
    for transport, copied in ((None, False), ("tcp", True)):
        with cluster.connect(transport=transport) as store:
            shuffle = store.shuffle(f"/shuffle/{transport}", partitions=1)
            with shuffle.writer(0) as writer:
                writer.write(0, bytes(100_000))
            (view,) = shuffle.reader(0)
            assert view.copied is copied
            assert view.nbytes == 100_000
            view.release()
            store.rmtree("/shuffle")


def test_more_maps_than_one_page_has(cluster):
    with cluster.connect() as store:
        shuffle = shuffle_of(store, "/shuffle/many", partitions=2)
        for map_id in range(1500):
            with shuffle.writer(map_id) as writer:
                writer.write(0, b"%d" % map_id)
        assert [int(bytes(view)) for view in shuffle.reader(0)] == list(range(1500))
        assert [int(bytes(view)) for view in shuffle.reader(0, maps=1500)] == list(range(1500))
        assert [view.nbytes for view in shuffle.reader(1)] == [0] * 1500
        assert shuffle.sizes() == [sum(len(str(m)) for m in range(1500)), 0]
        store.rmtree("/shuffle")


def test_an_output_larger_than_the_writers_memory_has_several_runs(store, monkeypatch):
    monkeypatch.setattr(MODULE, "GATHER_BYTES_MAX", 1 << 20)
    shuffle = store.shuffle("/shuffle/runs", partitions=3)
    chance = random.Random(5)
    wanted = [[bytearray() for _ in range(3)] for _ in range(2)]
    for map_id in range(2):
        with shuffle.writer(map_id) as writer:
            for _ in range(60):
                partition = chance.randrange(3)
                data = chance.randbytes(chance.randrange(200_000))
                writer.write(partition, data)
                wanted[map_id][partition] += data
    assert store.stat("/shuffle/runs/0000000001").size > 4 << 20
    for partition in range(3):
        views = list(shuffle.reader(partition))
        assert len(views) > 6
        assert b"".join(views) == wanted[0][partition] + wanted[1][partition]
        del views
    assert shuffle.sizes() == [len(wanted[0][p]) + len(wanted[1][p]) for p in range(3)]


def test_all_shuffles_that_come_to_a_process_share_a_connection(store):
    with store.shuffle("/shuffle/sent", partitions=2).writer(0) as writer:
        writer.write(1, b"there")
    pickled = [
        pickle.dumps(store.shuffle(f"/shuffle/{name}", partitions=2)) for name in ("sent", "other")
    ]
    sessions = store.status()["namenode"]["sessions"]
    first, other = map(pickle.loads, pickled)
    assert [bytes(view) for view in first.reader(1)] == [b"there"]
    with other.writer(0, attempt=1) as writer:
        writer.write(0, b"here")
    assert first._store is other._store
    assert store.status()["namenode"]["sessions"] <= sessions + 1


def test_what_is_written_may_be_any_buffer_and_changed_afterwards(store):
    numpy = pytest.importorskip("numpy")
    shuffle = store.shuffle("/shuffle/buffers", partitions=1)
    changing = bytearray(b"before")
    array = numpy.arange(6, dtype=numpy.int32)[::2]
    fixed = numpy.arange(3.0)
    fixed.flags.writeable = False
    with shuffle.writer(0) as writer:
        writer.write(0, changing)
        writer.write(0, array)
        writer.write(numpy.int64(0), fixed)
        writer.write(0, memoryview(b"") or numpy.zeros(0))
        changing[:] = b"after!"
        array[:] = 9
    (view,) = shuffle.reader(0)
    assert bytes(view) == b"before" + numpy.int32([0, 2, 4]).tobytes() + fixed.tobytes()


def test_tables_may_be_longer_than_what_is_read_at_once(store, monkeypatch):
    monkeypatch.setattr(MODULE, "GATHER_BYTES_MAX", 30_000)
    shuffle = store.shuffle("/shuffle/tables", partitions=1000)
    for map_id in range(2):
        with shuffle.writer(map_id) as writer:
            for partition in range(0, 1000, 3):
                writer.write(partition, b"%d:%d;" % (map_id, partition) * 20)
    for partition in (0, 1, 498, 999):
        wanted = b"".join(b"%d:%d;" % (m, partition) * 20 for m in range(2))
        found = list(shuffle.reader(partition))
        assert len(found) == 4  # two runs each
        assert b"".join(found) == (b"" if partition % 3 else wanted)
        del found
    sizes = shuffle.sizes()
    assert sizes[::3] == [len(b"%d:%d;" % (0, p)) * 40 for p in range(0, 1000, 3)]
    assert not any(sizes[1::3])


def test_short_and_long_pieces_keep_their_order(store):
    """What is short is put together as it comes, what is long is kept or copied by itself."""
    shuffle = store.shuffle("/shuffle/pieces", partitions=3)
    chance = random.Random(11)
    wanted = [bytearray() for _ in range(3)]
    reused = bytearray(200_000)
    with shuffle.writer(0) as writer:
        for _ in range(600):
            partition = chance.randrange(3)
            size = chance.choice([0, 1, 30, 700, 5_000, 65_535, 65_536, 150_000])
            data: Any = chance.randbytes(size)
            wanted[partition] += data
            if chance.random() < 0.5:
                reused[:size] = data
                data = memoryview(reused)[:size]
            elif chance.random() < 0.3:
                data = memoryview(data)
            writer.write(partition, data)
    assert [bytes(view) for p in range(3) for view in shuffle.reader(p)] == wanted


def test_an_output_that_finds_no_space_is_given_up(monkeypatch):
    monkeypatch.setattr(MODULE, "GATHER_BYTES_MAX", 1 << 20)
    with crailpy.LocalCluster(dram="16MiB") as cluster, cluster.connect(timeout=3) as store:
        writer = store.shuffle("/full", partitions=1).writer(0)

        def fill() -> None:
            for _ in range(20):
                writer.write(0, bytes(1_000_000))

        with pytest.raises(errors.OutOfSpaceError):
            fill()
        with pytest.raises(errors.ClosedError):  # it cannot be completed by leaving some out
            writer.commit()
        assert not store.exists("/full")
        until(lambda: gone(store))


def test_a_view_stays_what_it_is_when_the_shuffle_goes(cluster):
    with cluster.connect() as store:
        shuffle = store.shuffle("/shuffle/held", partitions=2)
        assert write(shuffle, 0, 700_000)
        wanted = segment(1, 0, 0, 700_000)
        (view,) = shuffle.reader(0)
        store.rmtree("/shuffle")
        for i in range(8):
            store.put("/over", bytes([i]) * (8 << 20))
        assert bytes(view) == wanted
        view.release()
        store.delete("/over")


def test_who_holds_more_views_than_there_are_slots_gets_copies(cluster):
    with cluster.connect() as store:
        shuffle = store.shuffle("/shuffle/slots", partitions=SLOTS)
        with shuffle.writer(0) as writer:
            for partition in range(SLOTS):
                writer.write(partition, b"%d;" % partition)
        views = [list(shuffle.reader(partition)) for partition in range(SLOTS)]
        assert {view.copied for each in views for view in each} == {False, True}
        for partition, each in enumerate(views):
            assert [bytes(view) for view in each] == [b"%d;" % partition]
        del views
        (view, *_) = shuffle.reader(0)
        assert not view.copied, "the slots came back"
        view.release()
        store.rmtree("/shuffle")


# ---- attempts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20, 700_000])
def test_of_attempts_that_race_one_is_the_output_and_nothing_is_left_of_the_others(size):
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        outcomes = {}
        start = threading.Barrier(4)

        def attempt(number: int) -> None:
            with cluster.connect() as own:
                writer = own.shuffle("/race", partitions=2).writer(3, attempt=number)
                writer.write(1, bytes([number]) * size)
                start.wait()
                outcomes[number] = writer.commit()

        for call in [Call(attempt, number) for number in range(4)]:
            call.result()
        (winner,) = [number for number, won in outcomes.items() if won]
        (view,) = store.shuffle("/race", partitions=2).reader(1)
        assert bytes(view) == bytes([winner]) * size
        view.release()
        used = 0 if size < 4096 else len({*range(0, size + 64, 4096)})
        until(lambda: granules(store)["granted"] == 0)
        assert used <= granules(store)["used"] <= used * 1.25
        assert store.check() is None
        store.rmtree("/race")
        until(lambda: gone(store))


@pytest.mark.parametrize("gathered", [1 << 26, 100_000])
def test_a_failed_or_aborted_attempt_leaves_nothing(monkeypatch, gathered):
    monkeypatch.setattr(MODULE, "GATHER_BYTES_MAX", gathered)
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        shuffle = store.shuffle("/failed", partitions=2)

        def fail(writer: Any) -> None:
            with writer:
                writer.write(0, bytes(300_000))
                raise ZeroDivisionError

        failed = shuffle.writer(0)
        with pytest.raises(ZeroDivisionError):
            fail(failed)
        assert failed.committed is None
        aborted = shuffle.writer(1)
        aborted.write(0, bytes(300_000))
        aborted.abort()
        aborted.abort()
        with pytest.raises(errors.ClosedError):
            aborted.commit()
        with pytest.raises(errors.ClosedError):
            aborted.write(0, b"more")
        with pytest.raises(errors.NotFoundError):
            list(shuffle.reader(0))
        until(lambda: gone(store))
        assert shuffle.writer(0, attempt=1).commit() is True
        assert [view.nbytes for view in shuffle.reader(0)] == [0]


def test_a_late_attempt_with_runs_of_its_own_keeps_nothing(monkeypatch):
    monkeypatch.setattr(MODULE, "GATHER_BYTES_MAX", 100_000)
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        shuffle = store.shuffle("/late", partitions=1)
        slow = shuffle.writer(0, attempt=0)  # has written runs when the other commits
        slow.write(0, bytes(300_000))
        with shuffle.writer(0, attempt=1) as writer:
            writer.write(0, b"first")
        late = shuffle.writer(0, attempt=2)  # begins to write when it is there
        for _ in range(4):
            slow.write(0, bytes(150_000))
            late.write(0, bytes(150_000))
        assert (writer.committed, slow.commit(), late.commit()) == (True, False, False)
        assert [bytes(view) for view in shuffle.reader(0)] == [b"first"]
        until(lambda: gone(store))


WRITER = """
import sys, crailpy
from crailpy.client import compute
sys.modules["crailpy.client.compute.shuffle"].GATHER_BYTES_MAX = 1 << 20
with crailpy.connect(sys.argv[1]) as store:
    writer = compute.shuffle(store, "/killed", partitions=4).writer(0)
    for i in range(40):
        writer.write(i % 4, bytes(100_000))
    print("wrote", flush=True)
    sys.stdin.readline()
"""


def test_a_writer_that_is_killed_leaves_nothing():
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        with Program(WRITER, cluster.address) as program:
            assert program.line() == "wrote"
            assert granules(store)["granted"] * 4096 > 3_000_000
            program.kill()
        assert not store.exists("/killed")
        until(lambda: gone(store))
        shuffle = store.shuffle("/killed", partitions=4)
        assert write(shuffle, 0, 100_000)
        check_all(shuffle, [0], 100_000)


READER = """
import sys, crailpy
with crailpy.connect(sys.argv[1]) as store:
    views = store.shuffle("/killed", partitions=4).reader(1)
    held = [next(views), next(views)]
    print(held[0].nbytes, flush=True)
    sys.stdin.readline()
"""


def test_a_reducer_that_is_killed_leaves_nothing():
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        shuffle = store.shuffle("/killed", partitions=4)
        for map_id in range(3):
            assert write(shuffle, map_id, 100_000)
        with Program(READER, cluster.address) as program:
            assert int(program.line()) == len(segment(1, 0, 1, 100_000))
            store.rmtree("/killed")
            until(lambda: granules(store)["used"] == 0)
            assert granules(store)["retiring"] * 4096 >= 300_000, "its views keep what they show"
            program.kill()
        until(lambda: granules(store)["retiring"] == 0)
        assert store.check() is None


# ---- readers that are early ----------------------------------------------------------------------


def test_early_readers_get_everything_in_order(cluster):
    maps, partitions = 24, 6
    with cluster.connect() as store, cluster.connect() as other:
        shuffle = store.shuffle("/shuffle/early", partitions=partitions)
        theirs = other.shuffle("/shuffle/early", partitions=partitions)

        def read(partition: int) -> list[bytes]:
            return [bytes(view) for view in theirs.reader(partition, maps=maps, wait=30)]

        calls = [Call(read, partition) for partition in range(partitions)]
        until(lambda: waiters(store) == partitions)
        order = random.Random(3).sample(range(maps), maps)
        for map_id in order:
            assert write(shuffle, map_id, 1_000)
        for partition, call in enumerate(calls):
            assert call.result() == [segment(1, m, partition, 1_000) for m in range(maps)]
        store.rmtree("/shuffle")


def test_what_is_sure_comes_out_before_all_maps_are_there(cluster):
    with cluster.connect() as store:
        shuffle = store.shuffle("/shuffle/stream", partitions=2)
        for map_id in (0, 1, 3):
            assert write(shuffle, map_id, 50)
        views = shuffle.reader(0, maps=4, wait=20)
        assert bytes(next(views)) == segment(1, 0, 0, 50)
        assert bytes(next(views)) == segment(1, 1, 0, 50)
        rest = Call(lambda: [bytes(view) for view in views])
        until(lambda: waiters(store) == 1)
        assert write(shuffle, 2, 50)
        assert rest.result() == [segment(1, m, 0, 50) for m in (2, 3)]
        store.rmtree("/shuffle")


def test_maps_may_have_any_numbers(cluster):
    with cluster.connect() as store:
        shuffle = store.shuffle("/shuffle/any", partitions=1)
        for map_id in (77, 5, 10**10 - 1):
            assert write(shuffle, map_id, 50)
        found = [bytes(view) for view in shuffle.reader(0, maps=3)]
        assert found == [segment(1, m, 0, 50) for m in (5, 77, 10**10 - 1)]
        store.rmtree("/shuffle")


def test_a_reader_waits_no_longer_than_it_was_told(cluster):
    with cluster.connect() as store:
        shuffle = store.shuffle("/shuffle/short", partitions=1)
        with pytest.raises(errors.DeadlineError, match="0 of 2 map outputs"):
            list(shuffle.reader(0, maps=2, wait=0.05))
        assert write(shuffle, 1, 50)
        with pytest.raises(errors.DeadlineError, match="1 of 2 map outputs") as raised:
            list(shuffle.reader(0, maps=2, wait=0.05))
        assert raised.value.path == "/shuffle/short"
        with pytest.raises(errors.DeadlineError, match="0 map outputs"):
            list(store.shuffle("/shuffle/none", partitions=1).reader(0, wait=0.05))
        for map_id in (2, 3):  # fewer than half of what is missing
            assert write(shuffle, map_id, 50)
        views = shuffle.reader(0, maps=10, wait=0.2)
        late = Call(lambda: list(views))
        until(lambda: waiters(store) == 1)
        assert write(shuffle, 4, 50)
        with pytest.raises(errors.DeadlineError, match="4 of 10 map outputs"):
            late.result()
        assert waiters(store) == 0
        store.rmtree("/shuffle")


def test_the_number_of_maps_may_be_of_numpy(cluster):
    """Of whatever width: as a bare int32 it would not go into the upper half of an argument."""
    numpy = pytest.importorskip("numpy")
    with cluster.connect() as store:
        shuffle = store.shuffle("/shuffle/numpy", partitions=numpy.int32(1))
        assert write(shuffle, 0, 50)
        late = shuffle.reader(numpy.int32(0), maps=numpy.int32(4), wait=numpy.float32(0.2))

        def read() -> None:
            with pytest.raises(errors.DeadlineError, match="1 of 4 map outputs"):
                list(late)

        assert requests_during(store, read) <= 4
        store.rmtree("/shuffle")


def test_a_directory_without_map_outputs_is_waited_for_only_where_that_is_said(cluster):
    with cluster.connect(timeout=30) as store:
        store.mkdir("/shuffle/empty", parents=True)
        shuffle = store.shuffle("/shuffle/empty", partitions=2)
        assert requests_during(store, lambda: list(shuffle.reader(0))) == 1
        assert list(shuffle.reader(0, maps=0)) == []
        assert shuffle.sizes() == [0, 0]
        call = Call(lambda: [bytes(view) for view in shuffle.reader(1, wait=30)])
        until(lambda: waiters(store) == 1)
        assert write(shuffle, 0, 50)
        assert call.result() == [segment(1, 0, 1, 50)]
        store.rmtree("/shuffle")


def test_a_reader_survives_that_its_directory_goes_while_it_waits(cluster):
    with cluster.connect() as store, cluster.connect() as other:
        shuffle = store.shuffle("/shuffle/again", partitions=1)
        assert write(shuffle, 1, 50)
        theirs = other.shuffle("/shuffle/again", partitions=1)
        call = Call(lambda: [bytes(view) for view in theirs.reader(0, maps=2, wait=30)])
        until(lambda: waiters(store) == 1)
        store.rmtree("/shuffle")
        for map_id in (1, 0):
            assert write(shuffle, map_id, 50)
        assert call.result() == [segment(1, m, 0, 50) for m in (0, 1)]
        store.rmtree("/shuffle")


# ---- what it costs -------------------------------------------------------------------------------


def requests_of(store: Any) -> int:
    count: int = store.status()["namenode"]["requests"]
    return count


@pytest.mark.parametrize("transport", [None, "tcp"])
@pytest.mark.parametrize(("size", "of_a_map"), [(10, 1), (5_000, 2)])
def test_a_stage_costs_so_many_requests_as_it_has_tasks(transport, size, of_a_map):
    """Not maps x reducers: 16 x 16 here."""
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as asking:
        with cluster.connect(transport=transport) as store:
            shuffle = store.shuffle("/stage", partitions=16)
            with shuffle.writer(16) as writer:  # has servers attached
                writer.write(0, bytes(10_000))
            list(shuffle.reader(0))
            before = requests_of(asking)
            for map_id in range(16):
                with shuffle.writer(map_id) as writer:
                    for partition in range(16):
                        writer.write(partition, b"x" * size)
            written = requests_of(asking)
            for partition in range(16):
                assert sum(view.nbytes for view in shuffle.reader(partition)) >= 16 * size
            read = requests_of(asking)
            assert shuffle.sizes()[1:] == [16 * size] * 15
            sized = requests_of(asking)
        assert 16 <= written - before <= 16 * of_a_map
        assert read - written == 16
        assert sized - read == 1


def test_early_readers_cost_few_requests():
    """Each asks once for half of what is missing, however many maps come one by one."""
    maps, readers = 64, 8
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as asking:
        with cluster.connect() as store:
            shuffle = store.shuffle("/stage", partitions=readers)
            before = requests_of(asking)
            calls = [
                Call(lambda p: len(list(shuffle.reader(p, maps=maps, wait=30))), p)
                for p in range(readers)
            ]
            until(lambda: waiters(asking) == readers)
            for map_id in range(maps):
                assert write(shuffle, map_id, 10, pieces=1)
            assert [call.result() for call in calls] == [maps] * readers
        assert requests_of(asking) - before <= maps + readers * (2 * 7 + 1)


# ---- what goes wrong -----------------------------------------------------------------------------


def test_what_is_no_map_output_is_named(store):
    shuffle = store.shuffle("/shuffle/odd", partitions=3)
    assert write(shuffle, 0, 100)
    for value in (b"", b"short", bytes(3000), bytes(10_000)):
        store.put("/shuffle/odd/0000000001", value)
        for read in (lambda: list(shuffle.reader(0)), shuffle.sizes):
            with pytest.raises(errors.ProtocolError, match="no map output") as raised:
                read()
            assert raised.value.path == "/shuffle/odd/0000000001"
    store.delete("/shuffle/odd/0000000001")
    store.mkdir("/shuffle/odd/below")
    with pytest.raises(errors.ProtocolError) as raised:
        list(shuffle.reader(0))
    assert raised.value.path == "/shuffle/odd/below"


@pytest.mark.parametrize("size", SIZES)
def test_a_table_that_lies_is_refused(store, size):
    """Whatever is in the last bytes, no other bytes than the value's come out."""
    shuffle = store.shuffle("/shuffle/lies", partitions=3)
    assert write(shuffle, 0, size)
    good = store.get("/shuffle/lies/0000000000")
    chance = random.Random(size)
    refused = 0
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            bad[-chance.randint(1, 48)] ^= 1 << chance.randrange(8)
        store.put("/shuffle/lies/0000000000", bad)
        try:
            assert all(bytes(view) in bad for view in shuffle.reader(chance.randrange(3)))
        except errors.ProtocolError:
            refused += 1
    assert refused > 10


def test_a_page_of_rubbish_is_refused(store):
    """What comes from the namenode is not believed beyond its own bytes."""
    shuffle = store.shuffle("/shuffle/page", partitions=3)
    for map_id, size in enumerate((20, 400, 5_000, 20)):
        assert write(shuffle, map_id, size)
    ask = (requests.COLUMN, 0, shuffle.path, b"", 0, b"", 0, 1, None)
    page = store._door.call(*ask)[5]
    chance = random.Random(4)
    refused = 0
    for _ in range(2000):
        bad = bytearray(page[: chance.choice([len(page), chance.randrange(len(page))])])
        for _ in range(chance.randrange(4)):
            if bad:
                bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        try:
            pieces = store._door.segments(shuffle.path, bytes(bad), 0, 64, 1, 3, -1, 2.0)[0]
            assert len(pieces) <= 4
        except errors.CrailError:
            refused += 1
    assert refused > 500
    assert len(store._door.segments(shuffle.path, page, 0, 64, 1, 3, -1, None)[0]) == 4


@pytest.mark.parametrize("size", [20, 5_000])
def test_outputs_of_another_number_of_partitions_are_refused(store, size):
    assert write(store.shuffle("/shuffle/p", partitions=4), 0, size)
    for partitions in (3, 5):
        other = store.shuffle("/shuffle/p", partitions=partitions)
        with pytest.raises(errors.ProtocolError, match=f"4 partitions, not {partitions}") as raised:
            list(other.reader(0))
        assert raised.value.path == "/shuffle/p/0000000000"
        with pytest.raises(errors.ProtocolError, match="4 partitions"):
            other.sizes()


def test_wrong_arguments_are_refused(cluster):
    with cluster.connect() as store:
        for arguments in ({"path": "relative"}, {"partitions": 0}, {"partitions": 1 << 25}):
            with pytest.raises(errors.InvalidArgumentError):
                store.shuffle(**({"path": "/s", "partitions": 1} | arguments))
        shuffle = store.shuffle("/s", partitions=2)
        for map_id in (-1, 10**10):
            with pytest.raises(errors.InvalidArgumentError):
                shuffle.writer(map_id)
        for partition in (-1, 2):
            with pytest.raises(errors.InvalidArgumentError):
                shuffle.reader(partition)
            with pytest.raises(errors.InvalidArgumentError):
                shuffle.writer(0).write(partition, b"x")
        with pytest.raises(errors.InvalidArgumentError):
            shuffle.reader(0, maps=-1)
        with pytest.raises(errors.InvalidArgumentError):
            shuffle.reader(0, wait=-1)


def test_an_output_that_went_with_its_server_is_named():
    with crailpy.LocalCluster(dram="16MiB", durability="group") as cluster:
        with cluster.connect() as store:
            shuffle = store.shuffle("/s", partitions=2)
            assert write(shuffle, 0, 20)  # lies in its node
            assert write(shuffle, 1, 50_000)
        cluster.servers[0].kill()
        shutil.rmtree(Path(cluster.folder) / "storage-0")
        cluster.servers[0].start()
        with cluster.connect(timeout=30) as store:
            shuffle = store.shuffle("/s", partitions=2)
            views = shuffle.reader(0)
            for read in (lambda: list(views), shuffle.sizes):
                with pytest.raises(errors.DataLostError) as raised:
                    read()
                assert raised.value.path == "/s/0000000001"
                assert raised.value.server is not None
            store.delete("/s/0000000001")
            assert write(shuffle, 1, 50_000)
            assert [view.nbytes for view in shuffle.reader(0)] == [
                len(segment(1, 0, 0, 20)),
                len(segment(1, 1, 0, 50_000)),
            ]


@pytest.mark.parametrize("transport", [None, "tcp"])
def test_a_server_that_starts_again_while_a_reducer_reads_is_not_noticed(transport):
    maps = 150
    with (
        crailpy.LocalCluster(dram="64MiB") as cluster,
        cluster.connect(transport=transport, timeout=20) as store,
    ):
        shuffle = store.shuffle("/s", partitions=2)
        for map_id in range(maps):
            assert write(shuffle, map_id, 20_000)
        views = shuffle.reader(1)
        found = [bytes(next(views))]
        cluster.servers[0].kill()
        cluster.servers[0].start()
        found += [bytes(view) for view in views]
        assert found == [segment(1, m, 1, 20_000) for m in range(maps)]
        assert sum(shuffle.sizes()) == sum(
            len(segment(1, m, p, 20_000)) for m in range(maps) for p in range(2)
        )


def test_of_an_output_that_is_replaced_meanwhile_no_byte_is_taken_for_another(cluster, monkeypatch):
    """Removed, and made again with other sizes, between its place being known and being read."""
    monkeypatch.setattr(MODULE, "IN_FLIGHT_BYTES_MAX", 1)
    with cluster.connect(transport="tcp") as store:
        shuffle = store.shuffle("/shuffle/replaced", partitions=2)

        def make(map_id: int, first: int) -> None:
            with shuffle.writer(map_id) as writer:
                writer.write(0, b"a" * first)
                writer.write(1, b"b" * 8_000)

        for map_id in range(3):
            make(map_id, 10_000)
        views = shuffle.reader(1)
        assert bytes(next(views)) == b"b" * 8_000
        store.delete("/shuffle/replaced/0000000001")
        make(1, 20_000)
        until(lambda: granules(store)["retiring"] == 0)
        with pytest.raises(errors.VersionConflictError, match="replaced") as raised:
            next(views)
        assert raised.value.path == "/shuffle/replaced/0000000001"
        assert [bytes(view) for view in shuffle.reader(1)] == [b"b" * 8_000] * 3
        store.rmtree("/shuffle")


class Interrupted(Exception):
    pass


# An exception between a socket and the one who closes it leaves it to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("raises", [False, True])
def test_signals_do_not_tear_what_is_asked_ahead_of_several_servers(raises):
    """Answers to requests that were given up are not taken for those of later ones, which ask for
    as many bytes."""
    chance = random.Random(8)
    maps, size = 60, 30_000
    wanted = [[chance.randbytes(size) for _ in range(maps)] for _ in range(2)]
    rung = 0

    def ring(*_: object) -> None:
        nonlocal rung
        rung += 1
        if raises:
            raise Interrupted

    with (
        crailpy.LocalCluster(servers=3, dram="16MiB") as cluster,
        cluster.connect(transport="tcp", timeout=20) as store,
    ):
        shuffle = store.shuffle("/s", partitions=2)  # outputs lie on the servers in turn
        for map_id in range(maps):
            with shuffle.writer(map_id) as writer:
                for partition in (0, 1):
                    writer.write(partition, wanted[partition][map_id])
        before = signal.signal(signal.SIGALRM, ring)
        try:
            for i in range(150):
                with suppress(Interrupted):
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 0.004))
                    found = [bytes(view) for view in shuffle.reader(i % 2)]
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    assert found == wanted[i % 2]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        for partition in (0, 1):
            assert [bytes(view) for view in shuffle.reader(partition)] == wanted[partition]
    assert rung > 5


@pytest.mark.parametrize("transport", [None, "tcp"])
def test_a_place_that_is_out_of_date_is_asked_for_again(cluster, transport):
    with cluster.connect(transport=transport) as store:
        shuffle = store.shuffle("/shuffle/moved", partitions=1)

        def entry() -> Any:
            page = store._door.call(requests.COLUMN, 0, shuffle.path, b"", 0, b"", 0, 0, None)[5]
            ((found, _),) = MODULE.entries_of(page)
            return found

        assert write(shuffle, 7, 9_000)
        before = entry()
        store.delete("/shuffle/moved/0000000007")
        with shuffle.writer(8) as writer:
            writer.write(0, b"x" * before[2])
        until(lambda: granules(store)["retiring"] == 0)
        stale = (*entry()[:6], before[6])  # as of a value that has moved
        buffers = [bytearray(100), bytearray(20)]
        MODULE._fill(shuffle, [(stale, 50, buffers[0]), (entry(), 0, buffers[1])], None)
        assert buffers == [b"x" * 100, b"x" * 20]
        store.rmtree("/shuffle")


# ---- where it lies -------------------------------------------------------------------------------


def test_outputs_on_the_file_tier():
    with (
        crailpy.LocalCluster(dram="8MiB", tiers=("dram", "file"), capacity="64MiB") as cluster,
        cluster.connect() as store,
    ):
        shuffle = store.shuffle("/s", partitions=3, tier="file", strict=True)
        for map_id in range(3):
            assert write(shuffle, map_id, 300_000)
        assert store.stat("/s/0000000000").tier == "file"
        check_all(shuffle, [0, 1, 2], 300_000)


def test_outputs_outlive_a_restart_of_the_namenode():
    with crailpy.LocalCluster(dram="32MiB", durability="sync") as cluster:
        with cluster.connect() as store:
            for size in (20, 50_000):
                shuffle = store.shuffle(f"/s{size}", partitions=3)
                for map_id in range(3):
                    assert write(shuffle, map_id, size)
        cluster.namenode.kill()
        cluster.namenode.start()
        with cluster.connect(timeout=30) as store:
            for size in (20, 50_000):
                check_all(store.shuffle(f"/s{size}", partitions=3), [0, 1, 2], size)


def test_who_waits_goes_on_waiting_at_a_namenode_that_starts_again():
    with (
        crailpy.LocalCluster(dram="32MiB", durability="sync") as cluster,
        cluster.connect(timeout=30) as store,
        cluster.connect(timeout=30) as other,
    ):
        shuffle = store.shuffle("/s", partitions=2)
        assert write(shuffle, 1, 5_000)
        theirs = other.shuffle("/s", partitions=2)
        call = Call(lambda: [bytes(view) for view in theirs.reader(1, maps=3, wait=60)])
        until(lambda: waiters(store) == 1)
        cluster.namenode.kill()
        cluster.namenode.start()
        for map_id in (2, 0):
            assert write(shuffle, map_id, 5_000)
        assert call.result() == [segment(1, m, 1, 5_000) for m in range(3)]


def test_a_shuffle_goes_with_its_job(cluster):
    with cluster.connect() as store:
        with store.job("shuffled") as job:
            shuffle = store.shuffle(f"{job.path}/stage", partitions=2)
            assert write(shuffle, 0, 50_000)
            assert write(shuffle, 1, 20)
        with pytest.raises(errors.NotFoundError):
            list(shuffle.reader(0))


def test_what_is_said_of_a_job_holds_for_runs_too(monkeypatch):
    monkeypatch.setattr(MODULE, "GATHER_BYTES_MAX", 100_000)
    with (
        crailpy.LocalCluster(dram="8MiB", tiers=("dram", "file"), capacity="64MiB") as cluster,
        cluster.connect() as store,
        store.job("placed", tier="file", strict=True) as job,
    ):
        shuffle = store.shuffle(f"{job.path}/stage", partitions=2)
        for map_id, size in enumerate((20_000, 200_000)):
            with shuffle.writer(map_id) as writer:
                for _ in range(3):
                    writer.write(1, bytes(size))
            assert store.stat(f"{shuffle.path}/{map_id:010}").tier == "file"


@pytest.mark.parametrize("gathered", [1 << 26, 10_000])
def test_an_attempt_that_outlives_its_job_leaves_nothing(monkeypatch, gathered):
    monkeypatch.setattr(MODULE, "GATHER_BYTES_MAX", gathered)
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        with cluster.connect() as driver, driver.job("over") as job:
            made = driver.shuffle(f"{job.path}/stage", partitions=1, job=job)
            handed = pickle.dumps(made)
            assert len(handed) < 1000
            shuffle = pickle.loads(handed)
            assert write(shuffle, 0, 30_000)
            writers = [shuffle.writer(map_id) for map_id in (1, 2)]
            for writer, size in zip(writers, (50, 30_000), strict=True):
                writer.write(0, bytes(size))
        for writer in writers:
            with pytest.raises(errors.NotFoundError, match="job is over"):
                writer.commit()
        assert not store.exists("/jobs/over")
        shuffle._store.close()
        until(lambda: gone(store))
        store.job("over").close()  # may begin again


def test_a_shuffle_may_be_all_that_a_namespace_has(cluster):
    with cluster.connect(namespace="/shuffle/space") as store:
        shuffle = store.shuffle("/", partitions=2)
        for size in (20, 50_000):
            assert write(shuffle, size, size)
        assert store.listdir("/") == ["0000000020", "0000050000"]
        assert [bytes(view) for view in shuffle.reader(1, maps=2)] == [
            segment(1, size, 1, size) for size in (20, 50_000)
        ]
        store.put("/0000000021", b"no output")
        with pytest.raises(errors.ProtocolError) as raised:
            list(shuffle.reader(0))
        assert raised.value.path == "/0000000021"
    with cluster.connect() as store:
        store.rmtree("/shuffle")


TASK = """
import pickle, sys
shuffle = pickle.loads(bytes.fromhex(sys.argv[1]))
with shuffle.writer(int(sys.argv[2])) as writer:
    writer.write(1, b"from task " + sys.argv[2].encode())
print(writer.committed)
"""


def test_a_shuffle_is_handed_to_other_processes(cluster):
    with cluster.connect() as store:
        shuffle = store.shuffle("/shuffle/handed", partitions=2)
        handed = pickle.dumps(shuffle)
        assert len(handed) < 1000
        for map_id in (1, 0):
            command = [sys.executable, "-c", TASK, handed.hex(), str(map_id)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.stdout == "True\n", done
        assert [bytes(view) for view in shuffle.reader(1)] == [b"from task 0", b"from task 1"]
        store.rmtree("/shuffle")
