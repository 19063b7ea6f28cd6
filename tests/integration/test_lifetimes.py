"""How long nodes live and where they lie: each promise of API.md by name."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time

import numpy
import pytest

import crailpy
import crailpy.aio
from crailpy import errors

from .kit import Awaited, Call, Program, until


@pytest.fixture(params=["shm", "tcp"])
def store(request, cluster):
    with cluster.connect(transport=request.param) as store:
        store.mkdir("/life", exist_ok=True)
        yield store
        store.rmtree("/life")


@pytest.fixture(scope="module")
def short():
    """A cluster whose sessions die soon after their process."""
    with crailpy.LocalCluster(dram="64MiB", session_grace="300ms") as cluster:
        yield cluster


def gone(store, path: str) -> bool:
    return not store.exists(path)


# ---- delete_after_read -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 100_000])
def test_delete_after_read_goes_with_a_get(store, size):
    store.put("/life/once", b"x" * size, delete_after_read=True)
    assert store.exists("/life/once")
    assert store.get("/life/once") == b"x" * size
    assert gone(store, "/life/once")


@pytest.mark.parametrize("size", [5, 100_000])
def test_delete_after_read_goes_with_a_get_into_of_all_of_it(store, size):
    store.put("/life/once", b"x" * size, delete_after_read=True)
    buffer = bytearray(size)
    assert store.get_into("/life/once", buffer, offset=1) == size - 1
    assert store.exists("/life/once"), "not all of it was read"
    with pytest.raises(errors.InvalidArgumentError):
        store.get_into("/life/once", bytearray(1))
    assert store.exists("/life/once"), "nothing was read"
    assert store.get_into("/life/once", buffer) == size
    assert gone(store, "/life/once")


@pytest.mark.parametrize("size", [5, 100_000])
def test_delete_after_read_goes_when_the_last_buffer_of_a_view_dies(store, size):
    store.put("/life/once", b"x" * size, delete_after_read=True)
    view = store.get_view("/life/once")
    array = numpy.frombuffer(view, dtype="uint8")
    part = memoryview(view)[1:]
    view.release()
    del view
    gc.collect()
    assert store.exists("/life/once")
    assert array.sum() == size * ord("x")
    del array
    gc.collect()
    assert store.exists("/life/once")
    part.release()
    del part
    gc.collect()
    assert gone(store, "/life/once")


def test_delete_after_read_goes_with_a_view_that_was_only_released(store):
    store.put("/life/once", b"x" * 9000, delete_after_read=True)
    with store.get_view("/life/once") as view:
        assert bytes(view)[:1] == b"x"
        assert store.exists("/life/once")
    assert gone(store, "/life/once")


@pytest.mark.parametrize("size", [5, 100_000])
def test_delete_after_read_goes_with_an_open_read_to_its_end(store, size):
    store.put("/life/once", b"x" * size, delete_after_read=True)
    with store.open("/life/once", "rb") as file:
        file.read(size // 2)
    assert store.exists("/life/once"), "it was not read to its end"
    with store.open("/life/once", "rb") as file:
        assert file.read() == b"x" * size
    assert gone(store, "/life/once")


def test_delete_after_read_stays_for_get_range_stat_list_and_copies(store):
    store.put("/life/once", b"x" * 9000, delete_after_read=True)
    assert store.get_range("/life/once", 0, 9000) == b"x" * 9000
    store.stat("/life/once")
    store.listdir("/life")
    assert store.exists("/life/once")


def test_delete_after_read_of_many_goes_with_get_many(store):
    keys = [f"/life/many{i}" for i in range(10)]
    store.put_many([(key, b"x" * 1000 * i) for i, key in enumerate(keys)], delete_after_read=True)
    assert [len(value) for value in store.get_many(keys)] == [1000 * i for i in range(10)]
    assert store.get_many(keys, missing="none") == [None] * 10


def test_delete_after_read_spares_the_value_that_took_its_place(store):
    store.put("/life/once", b"x" * 9000, delete_after_read=True)
    view = store.get_view("/life/once")
    store.put("/life/once", b"new")
    view.release()
    assert store.get("/life/once") == b"new"
    assert store.exists("/life/once"), "what replaced it lives as it was put"


def test_delete_after_read_may_be_delivered_to_overlapping_readers(store):
    store.put("/life/once", b"x" * 9000, delete_after_read=True)
    first, second = store.get_view("/life/once"), store.get_view("/life/once")
    assert bytes(first) == bytes(second) == b"x" * 9000
    first.release()
    assert gone(store, "/life/once")
    assert bytes(second) == b"x" * 9000
    second.release()


READER = """
import sys, crailpy
store = crailpy.connect(sys.argv[1])
view = store.get_view("/once")
print("has it", flush=True)
sys.stdin.read()
"""


def test_delete_after_read_is_left_by_a_reader_that_dies(short):
    with short.connect() as store:
        store.put("/once", b"x" * 9000, delete_after_read=True)
        with Program(READER, short.address) as child:
            assert child.line() == "has it"
            child.kill()
        until(lambda: store.status()["namenode"]["sessions"] == 1)
        assert store.get("/once") == b"x" * 9000
        assert gone(store, "/once")


# ---- ttl -------------------------------------------------------------------------------------


def test_ttl_ends_a_value_so_long_after_its_last_commit(store):
    begin = time.monotonic()
    store.put("/life/ttl", b"1", ttl=0.5)
    store.put("/life/stays", b"1")
    info = store.stat("/life/ttl")
    assert info.expires == pytest.approx(info.mtime + 0.5, abs=0.05)
    assert store.wait("/life/ttl", absent=True, timeout=30) is None
    assert time.monotonic() - begin >= 0.5
    assert store.exists("/life/stays")
    assert store.stat("/life/stays").expires is None


def test_in_a_store_that_is_new_a_ttl_is_as_short_as_in_any_other():
    """The grace after a restart is for what was there before."""
    with crailpy.LocalCluster(dram="8MiB", session_grace=60) as cluster, cluster.connect() as store:
        store.put("/ttl", b"1", ttl=0.2)
        assert store.wait("/ttl", absent=True, timeout=30) is None


@pytest.mark.parametrize("way", ["job", "session", "aio job", "aio session"])
async def test_what_others_go_with_is_not_lost_though_they_may_be(way):
    """Else who puts something below it makes a directory that is nobody's, and stays."""

    def restart(cluster):
        cluster.namenode.kill()
        cluster.namenode.start()

    # a session is to be back within its grace; the end of a ttl waits for it
    sizes = {"dram": "8MiB", "session_grace": 60 if "session" in way else 0.5}
    with crailpy.LocalCluster(durability="group", group_interval="60s", **sizes) as cluster:
        if way.startswith("aio"):
            async with crailpy.aio.connect(cluster.address, timeout=30) as aio:
                is_job = way == "aio job"
                path = (await aio.job("j", ttl=0.5)).path if is_job else await aio.session_path()
                restart(cluster)
                await aio.put(f"{path}/in", b"x")
        else:
            with cluster.connect(timeout=30) as store:
                path = store.job("j", ttl=0.5).path if way == "job" else store.session_path()
                restart(cluster)
                store.put(f"{path}/in", b"x")
        with cluster.connect() as store:
            assert store.wait(path, absent=True, timeout=30) is None


def test_ttl_is_renewed_by_a_put_that_says_it_again(store):
    store.put("/life/ttl", b"x", ttl=0.4)
    store.put("/life/ttl", b"x", ttl=3600)
    store.put("/life/clock", b"", ttl=0.4)  # ends after what the first put said
    store.wait("/life/clock", absent=True, timeout=30)
    assert store.exists("/life/ttl")
    store.put("/life/ttl", b"x")
    assert store.stat("/life/ttl").expires is None, "a replaced value brings its own lifetime"


def test_ttl_of_a_container_takes_all_below_along(store):
    store.put("/life/dir/a/b", b"")
    store.setattr("/life/dir", ttl=0.2)
    store.wait("/life/dir", absent=True, timeout=30)
    assert gone(store, "/life/dir/a/b")


def test_a_directory_is_made_with_its_end(store):
    store.mkdir("/life/brief", ttl=1)
    with contextlib.suppress(errors.NotFoundError):  # it may have gone already
        store.put("/life/brief/x", b"", parents=False)
    with store.job("dirs") as job:
        store.mkdir("/life/of-job", job=job)
        assert store.stat("/life/of-job").lease == f"job {job.number}"
        store.wait("/life/brief", absent=True, timeout=30)
    store.wait("/life/of-job", absent=True, timeout=30)


def test_setattr_sets_and_takes_away_a_ttl(store):
    store.put("/life/ttl", b"")
    store.setattr("/life/ttl", ttl=3600)
    assert store.stat("/life/ttl").expires is not None
    store.setattr("/life/ttl", ttl=None)
    assert store.stat("/life/ttl").expires is None


# ---- sessions --------------------------------------------------------------------------------

SESSION = """
import sys, crailpy
store = crailpy.connect(sys.argv[1])
path = store.session_path()
assert store.session_path() == path
store.put(path + "/mine", b"x" * 100_000)
print(path, flush=True)
if sys.stdin.readline() == "close\\n":
    store.close()
    print("closed", flush=True)
sys.stdin.read()
"""


class Stop(Exception):
    pass


@pytest.fixture
def interrupted():
    """Calls, and interrupts the call when the store beside it sees that it waits."""

    def stop(number, frame):
        raise Stop

    def interrupt(beside):
        until(lambda: beside.status()["namenode"]["waiters"])
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def call(beside, what, *args, **kwargs):
        other = Call(interrupt, beside)
        with pytest.raises(Stop):
            what(*args, **kwargs)
        other.result()

    before = signal.signal(signal.SIGUSR1, stop)
    yield call
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("token", [None, "secret"])
def test_an_interrupted_call_does_not_end_the_session(interrupted, token):
    """Not even of who calls nothing afterwards: its lane was its only connection. A client that is
    killed later has been missed by the namenode for as long before it would miss ours."""
    with (
        crailpy.LocalCluster(dram="64MiB", session_grace="300ms", token=token) as cluster,
        cluster.connect() as store,
        cluster.connect() as beside,
        Program(
            SESSION.replace("argv[1]", "argv[1], token=sys.argv[2] or None"),
            cluster.address,
            token or "",
        ) as child,
    ):
        path = store.session_path()
        interrupted(beside, store.get, "/never", wait=60)
        theirs = child.line()
        child.kill()
        beside.wait(theirs, absent=True, timeout=30)
        assert beside.exists(path)
        assert store.session_path() == path


def test_session_path_goes_with_a_closed_and_with_a_killed_client(short):
    with short.connect() as store:
        with Program(SESSION, short.address) as child:
            path = child.line()
            assert store.stat(path + "/mine").size == 100_000
            assert store.stat(path).lease == "session"
            child.process.stdin.write("close\n")
            child.process.stdin.flush()
            assert child.line() == "closed"
            store.wait(path, absent=True, timeout=30)
        with Program(SESSION, short.address) as child:
            path2 = child.line()
            assert path2 != path
            child.kill()
            store.wait(path2, absent=True, timeout=30)
        until(lambda: store.status()["namenode"]["granules_used"] == 0)


@pytest.mark.parametrize("face", ["sync", "aio"])
async def test_a_session_path_that_was_removed_is_made_again_and_goes_with_the_session(
    cluster, store, face
):
    if face == "sync":
        opened = cluster.connect()
        other, close = Awaited(opened), Awaited(opened).close
    else:
        other = await crailpy.aio.connect(cluster.address)
        close = other.close
    path = await other.session_path()
    store.rmtree(path)
    assert await other.session_path() == path
    assert store.stat(path).lease == "session"
    store.rmtree(path)
    store.put(f"{path}/theirs", b"")  # makes it again, as a directory like any other
    assert store.stat(path).lease != "session"
    assert await other.session_path() == path
    assert store.stat(path).lease == "session"
    await close()
    store.wait(path, absent=True, timeout=30)


# ---- jobs ------------------------------------------------------------------------------------


def test_a_job_takes_its_nodes_along_when_its_last_share_closes(store, cluster):
    with cluster.connect() as other, store.job("j1", ttl=3600) as job:
        assert job.path == "/jobs/j1"
        again = other.job("j1")
        assert again.number == job.number
        store.put(f"{job.path}/a/b", b"1")
        store.put("/life/of-job", b"2", job=again)
        store.put("/life/of-nobody", b"3")
        assert store.stat("/life/of-job").lease == f"job {job.number}"
        again.close()
        assert store.exists(f"{job.path}/a/b"), "one share is left"
    store.wait("/life/of-job", absent=True, timeout=30)
    assert gone(store, "/jobs/j1")
    assert store.exists("/life/of-nobody")
    job.close()


JOB = """
import sys, crailpy
store = crailpy.connect(sys.argv[1])
job = store.job("dies", ttl=float(sys.argv[2]))
store.put(job.path + "/x", b"")
print("holds", flush=True)
sys.stdin.read()
"""


def test_a_job_whose_last_holder_died_goes_after_its_ttl(short):
    with short.connect() as store:
        with Program(JOB, short.address, 0.5) as child:
            assert child.line() == "holds"
            child.kill()
        until(lambda: store.status()["namenode"]["sessions"] == 1)
        assert store.exists("/jobs/dies/x"), "it has its ttl"
        store.wait("/jobs/dies", absent=True, timeout=30)


def test_a_job_is_saved_by_who_comes_within_its_ttl(short):
    with short.connect() as store:
        with Program(JOB, short.address, 1.5) as child:
            assert child.line() == "holds"
            child.kill()
        until(lambda: store.status()["namenode"]["sessions"] == 1)
        with store.job("dies", ttl=0.2):
            with pytest.raises(errors.DeadlineError):
                store.wait("/jobs/dies", absent=True, timeout=2)
            assert store.exists("/jobs/dies/x")


def test_a_quota_of_bytes_is_charged_before_a_value_is_accepted(store):
    with store.job("q", quota_bytes=10_000) as job:
        store.put(f"{job.path}/a", b"x" * 6000)
        for size in (4001, 100_000):
            with pytest.raises(errors.QuotaExceededError):
                store.put(f"{job.path}/b", b"x" * size)
        with pytest.raises(errors.QuotaExceededError):
            store.put("/life/elsewhere", b"x" * 5000, job=job)
        assert gone(store, f"{job.path}/b")
        assert gone(store, "/life/elsewhere")
        store.put(f"{job.path}/b", b"x" * 4000)
        store.put(f"{job.path}/a", b"x" * 100)
        store.put(f"{job.path}/b", b"x" * 9000)
        store.delete(f"{job.path}/b")
        until(lambda: _accepted(store, f"{job.path}/c", b"x" * 9900))


def _accepted(store, path: str, data: bytes) -> bool:
    try:
        return bool(store.put(path, data))
    except errors.QuotaExceededError:
        return False


def test_a_quota_of_nodes_is_charged_before_a_node_is_accepted(store):
    with store.job("qn", quota_nodes=3) as job:
        for i in range(3):
            store.put(f"{job.path}/{i}", b"")
        for refused in (
            lambda: store.put(f"{job.path}/3", b""),
            lambda: store.mkdir(f"{job.path}/d"),
            lambda: store.put("/life/of-job", b"", job=job),
        ):
            with pytest.raises(errors.QuotaExceededError):
                refused()
        assert store.listdir(job.path) == ["0", "1", "2"]
        store.put(f"{job.path}/2", b"again: no new node")


def test_a_job_needs_a_name_and_a_directory(store):
    for name in ("", "a/b"):
        with pytest.raises(errors.InvalidArgumentError):
            store.job(name)
    for said in ({"job": 1}, {"evictable": True}, {"delete_after_read": True}):
        with pytest.raises(errors.InvalidArgumentError, match="is said of a node"):
            store.job("placed", **said)
    for said in ({"tier": "clay"}, {"stripe": 0}, {"strict": True}, {"replicas": 2}):
        with pytest.raises(errors.InvalidArgumentError):
            store.job("placed", **said)
    assert gone(store, "/jobs/placed")
    store.put("/jobs/file", b"")
    with pytest.raises(errors.CrailError):
        store.job("file")
    store.delete("/jobs/file")
    job = store.job("over")
    job.close()
    with pytest.raises(errors.NotFoundError):
        store.put("/life/x", b"", job=job)
    assert gone(store, "/life/x")


# ---- attributes, touch, truncate --------------------------------------------------------------


def test_user_attributes_stay_with_their_node_and_leave_its_value_alone(store):
    version = store.put("/life/a", b"value")
    store.setattr("/life/a", **{"user.color": b"red", "user.n": bytes(1000)})
    assert store.attributes("/life/a") == {"user.color": b"red", "user.n": bytes(1000)}
    store.setattr("/life/a", **{"user.n": None, "user.color": b"blue"})
    assert store.attributes("/life/a") == {"user.color": b"blue"}
    assert store.stat("/life/a").version == version
    store.rename("/life/a", "/life/b")
    assert store.attributes("/life/b") == {"user.color": b"blue"}
    store.setattr("/life", **{"user.of": b"a directory"})
    assert store.attributes("/life") == {"user.of": b"a directory"}
    for wrong in ({"color": b""}, {"user.": b""}, {"user.x" * 100: b""}):
        with pytest.raises(errors.InvalidArgumentError):
            store.setattr("/life/b", **wrong)
    with pytest.raises(errors.NotFoundError):
        store.attributes("/life/none")


def test_attributes_of_64_kib_fit_and_no_more(store):
    store.put("/life/a", b"")
    store.setattr("/life/a", **{"user.big": bytes(65536 - 8 - 8)})
    with pytest.raises(errors.InvalidArgumentError):
        store.setattr("/life/a", **{"user.more": b"x"})
    with pytest.raises(errors.InvalidArgumentError):
        store.setattr("/life/a", **{"user.big": bytes(65536)})
    assert len(store.attributes("/life/a")["user.big"]) == 65536 - 16


def test_touch_makes_and_renews(store):
    store.touch("/life/t")
    assert store.get("/life/t") == b""
    store.put("/life/t", b"kept")
    before = store.stat("/life/t")
    time.sleep(0.01)
    store.touch("/life/t")
    after = store.stat("/life/t")
    assert after.mtime > before.mtime
    assert store.get("/life/t") == b"kept"
    store.touch("/life")
    with pytest.raises(errors.ExistsError):
        store.touch("/life/t", exist_ok=False)
    with pytest.raises(errors.NotFoundError):
        store.touch("/life/no/t", parents=False)


@pytest.mark.parametrize("size", [0, 10, 4096, 4097, 100_000])
def test_truncate_cuts_and_fills_with_zeros(store, size):
    data = bytes(range(1, 251)) * (size // 250 + 1)
    data = data[:size]
    for to in (0, 5, 4096, 5000, 150_000):
        version = store.put("/life/cut", data)
        store.truncate("/life/cut", to)
        assert store.get("/life/cut") == data[:to] + bytes(max(0, to - size))
        after = store.stat("/life/cut").version
        assert after == version if to == size else after > version
    with pytest.raises(errors.InvalidArgumentError):
        store.truncate("/life/cut", -1)
    with pytest.raises(errors.NotFoundError):
        store.truncate("/life/none", 5)
    with pytest.raises(errors.IsContainerError):
        store.truncate("/life", 5)


# ---- placement -------------------------------------------------------------------------------

MIB = 1 << 20


@pytest.fixture(scope="module")
def varied():
    """Servers 1: dram; 2: slower, in rack b; 3: slower still, in rack c; 16 MiB each."""
    with crailpy.LocalCluster(dram="16MiB") as cluster:
        cluster.add_server(storage_class=1, location="b")
        cluster.add_server(storage_class=2, location="c")
        yield cluster


@pytest.fixture
def placed(varied):
    with varied.connect() as store:
        numbers = {facts["id"]: facts["number"] for facts in store.status()["servers"]}
        store.at = lambda path: {
            next(i for i, n in numbers.items() if n == extent["server"])
            for extent in store.stat(path).locations
        }
        yield store
        for name in store.listdir("/"):
            store.rmtree(f"/{name}")
        until(lambda: store.status()["namenode"]["granules_retiring"] == 0)


def test_a_preferred_tier_or_location_is_taken_while_it_has_room(placed):
    placed.put("/slow", bytes(MIB), tier="file")
    placed.put("/near", bytes(MIB), location="b")
    placed.put("/nowhere", bytes(MIB), location="nowhere")
    assert placed.at("/slow") == {"storage-2"}
    assert placed.at("/near") == {"storage-1"}
    assert placed.at("/nowhere") == {"storage-0"}
    for i in range(10):
        placed.put(f"/near{i}", bytes(2 * MIB), location="b")
    assert {"storage-1"} < set().union(*(placed.at(f"/near{i}") for i in range(10)))


def test_strict_placement_is_refused_where_there_is_no_room(placed):
    assert placed.put("/c", bytes(MIB), location="c", tier="file", strict=True)
    assert placed.at("/c") == {"storage-2"}
    for nowhere in ({"location": "nowhere"}, {"location": "b", "tier": "file"}):
        with pytest.raises(errors.OutOfSpaceError):
            placed.put("/x", bytes(MIB), strict=True, **nowhere)
    for i in range(7):
        placed.put(f"/c{i}", bytes(2 * MIB), location="c", strict=True)
    with pytest.raises(errors.OutOfSpaceError):
        placed.put("/c7", bytes(2 * MIB), location="c", strict=True)
    placed.put("/elsewhere", bytes(MIB))


def test_a_striped_value_lies_on_so_many_servers_in_equal_runs(placed):
    data = numpy.random.default_rng(1).integers(0, 256, 6 * MIB, dtype="uint8")
    placed.put("/striped", data, stripe=3)
    info = placed.stat("/striped")
    assert placed.at("/striped") == {"storage-0", "storage-1", "storage-2"}
    assert [extent["bytes"] for extent in info.locations] == [2 * MIB] * 3
    assert placed.get("/striped") == data.tobytes()
    assert placed.get_range("/striped", 2 * MIB - 10, 20) == data[2 * MIB - 10 :][:20].tobytes()
    with placed.get_view("/striped") as view:
        assert view.copied
        assert (numpy.frombuffer(view, dtype="uint8") == data).all()


def test_placed_values_do_not_come_from_grants_held_for_others(placed):
    for _ in range(5):
        placed.put("/warm", bytes(MIB))  # holds a grant of this size ahead, on the first server
        placed.put("/cold", bytes(MIB), tier="file")
        assert placed.at("/cold") == {"storage-2"}
        placed.put("/warm2", bytes(MIB))
        assert placed.at("/warm2") == {"storage-0"}


def test_files_are_placed_too(placed):
    with placed.open("/file", "wb", tier="file", ttl=3600) as file:
        file.write(bytes(MIB))
    assert placed.at("/file") == {"storage-2"}
    assert placed.stat("/file").expires is not None


def test_wait_space_waits_until_somebody_makes_room_and_no_longer(placed, varied):
    for i in range(3):
        placed.put(f"/full{i}", bytes(15 * MIB))
    begin = time.monotonic()
    with pytest.raises(errors.OutOfSpaceError):
        placed.put("/more", bytes(8 * MIB), wait_space=0.3)
    assert time.monotonic() - begin >= 0.3
    with varied.connect() as other:
        before = other.client_stats()["requests"]
        waiting = Call(other.put, "/more", bytes(8 * MIB), wait_space=60)
        until(lambda: other.client_stats()["requests"] == before + 2)  # the second one waits
        placed.delete("/full1")
        assert waiting.result() > 0
