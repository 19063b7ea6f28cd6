"""What one face of a store can, the other can: the same names, keywords, and outcomes."""

from __future__ import annotations

import inspect
import random
import time

import pytest

import crailpy
import crailpy.aio
from crailpy import errors
from crailpy.client import containers, lifetimes, multifile, store, waiting
from crailpy.client.aio import containers as aio_containers
from crailpy.client.aio import lifetimes as aio_lifetimes
from crailpy.client.aio import multifile as aio_multifile
from crailpy.client.aio import store as aio_store
from crailpy.client.aio import waiting as aio_waiting

#: What jobs are made of runs in workers, which compute: it has no coroutines.
COMPUTE = {"broadcast", "model", "reduce", "shuffle"}


def public(cls):
    return {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}


def keywords(call):
    return [(p.name, p.kind, p.default) for p in inspect.signature(call).parameters.values()]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (store.Store, aio_store.AsyncStore),
        (containers.Queue, aio_containers.AsyncQueue),
        (containers.Item, aio_containers.AsyncItem),
        (multifile.MultiFile, aio_multifile.AsyncMultiFile),
        (lifetimes.Job, aio_lifetimes.AsyncJob),
        (waiting.Watch, aio_waiting.AsyncWatch),
    ],
)
def test_both_faces_have_the_same_methods_with_the_same_keywords(one, other):
    mine, theirs = public(one), public(other)
    assert mine.keys() - theirs.keys() <= COMPUTE
    assert theirs.keys() - mine.keys() <= {"length"}, "len() cannot be awaited"
    for name, call in mine.items():
        if callable(call) and name not in COMPUTE:
            assert keywords(call) == keywords(theirs[name]), name


@pytest.fixture
async def aio(cluster):
    async with crailpy.aio.connect(cluster.address) as store:
        yield store
        await store.rmtree("/faces")


@pytest.fixture
def sync(cluster):
    with cluster.connect() as store:
        store.mkdir("/faces", exist_ok=True)
        yield store


LONG = bytes(range(256)) * 2000


@pytest.mark.parametrize("value", [b"short", LONG])
async def test_a_file_that_goes_when_it_was_read_goes_when_all_of_it_was(sync, aio, value):
    async def left_by(read, mode="rb"):
        sync.put("/faces/dar", value, delete_after_read=True)
        async with await aio.open("/faces/dar", mode, **({} if "b" in mode else LATIN)) as file:
            await read(file)
        return sync.exists("/faces/dar")

    async def exactly(file):
        assert await file.read(len(value)) == value

    async def to_the_end(file):
        assert await file.read() == value

    async def into(file):
        assert await file.readinto(bytearray(len(value))) == len(value)

    async def a_part(file):
        await file.read(len(value) - 1)

    async def out_of_order(file):
        await file.seek(1)
        await file.read()
        await file.seek(0)
        await file.read(len(value))

    async def a_line_ahead(file):
        await file.readline()

    async def and_discard(file):
        await file.read(len(value))
        await file.discard()

    async def of_text(file):
        assert await file.read(len(value)) == value.decode("latin-1")

    async def part_of_text(file):
        await file.read(len(value) - 1)

    for read in (exactly, to_the_end, into):
        assert not await left_by(read), read.__name__
    for read in (a_part, out_of_order, and_discard):
        assert await left_by(read), read.__name__
    assert await left_by(a_line_ahead) == (value is LONG), "of the short one, that was all"
    assert not await left_by(of_text, "r")
    assert await left_by(part_of_text, "r")


LATIN = {"encoding": "latin-1", "newline": ""}


async def test_files_lie_on_as_many_servers_as_they_are_told():
    with (
        crailpy.LocalCluster(dram="32MiB", servers=3) as cluster,
        cluster.connect() as store,
    ):
        async with crailpy.aio.connect(cluster.address) as aio:
            with store.open("/sync", "wb", stripe=3) as file:
                file.write(LONG)
            async with await aio.open("/aio", "wb", stripe=3) as file:
                await file.write(LONG)
            for path in ("/sync", "/aio"):
                assert len({at["server"] for at in store.stat(path).locations}) == 3
                assert await aio.get(path) == LONG
            async with await aio.open("/many", "wb", stripe=3) as file:
                for _ in range(40):
                    await file.write(LONG)
            assert await aio.get("/many") == LONG * 40
            assert store.check() is None


async def test_a_file_of_many_small_writes_needs_few_extents(sync, aio):
    async with await aio.open("/faces/many", "wb") as file:
        for _ in range(200):
            await file.write(LONG[:100_000])
    info = await aio.stat("/faces/many")
    assert info.size == 20_000_000
    assert len(info.locations) <= 32
    assert sum(at["bytes"] for at in info.locations) < 1.3 * info.size


async def test_stat_names_the_tier(sync, aio):
    sync.put("/faces/t", LONG)
    sync.put("/faces/s", b"short")
    paths = ["/faces/t", "/faces/s", "/faces/none"]
    assert await aio.stat_many(paths) == sync.stat_many(paths)
    assert (await aio.stat("/faces/t")) == sync.stat("/faces/t")
    assert (await aio.stat("/faces/t")).tier == "dram"


async def test_an_open_that_waits_ends_at_its_deadline(sync, aio):
    async with await aio.open("/faces/a", "ab"):
        begin = time.monotonic()
        with pytest.raises(errors.DeadlineError):
            await aio.open("/faces/a", "ab", timeout=0.5)
        assert 0.5 <= time.monotonic() - begin < 3


async def test_flush_shows_what_is_in_memory_still(sync, aio):
    async with await aio.open("/faces/f", "wb") as file:
        await file.write(b"seen")
        await file.flush()
        with sync.open("/faces/f", "rb", follow=True, buffering=0) as follower:
            assert follower.read(4) == b"seen"
            await file.write(LONG)
            await file.flush()
            assert follower.read(10) == LONG[:10]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig", "shift_jis"])
@pytest.mark.parametrize("newline", [None, "", "\r\n"])
async def test_text_goes_back_to_where_tell_was_asked(sync, aio, encoding, newline):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    letters = "aüß" if encoding != "shift_jis" else "aあ漢"
    text = "".join(rng.choice([*letters, "\r\n", "\n", "\r", "x" * 50]) for _ in range(4000))
    sync.put("/faces/text", text.encode(encoding))
    options = {"encoding": encoding, "newline": newline}
    with sync.open("/faces/text", "r", **options) as file:
        whole = file.read()
    async with await aio.open("/faces/text", "r", **options) as file:
        places = []
        at = 0
        while at < len(whole):
            places.append((file.tell(), at))
            at += len(await file.read(rng.randrange(1, 900)))
        places.append((file.tell(), len(whole)))
        rng.shuffle(places)
        for place, at in places:
            assert await file.seek(place) == place
            assert await file.seek(0, 1) == file.tell()
            assert await file.read(300) == whole[at : at + 300]
            assert await file.readline() == await line_at(whole, at + 300, newline)
        with pytest.raises(errors.InvalidArgumentError):
            await file.seek(-1)
        with pytest.raises(OSError, match="text: seek"):
            await file.seek(1, 2)


async def line_at(whole, at, newline):
    ends = {"": ("\r\n", "\r", "\n"), None: ("\n",)}.get(newline, (newline,))
    found = [whole.find(end, at) + len(end) for end in ends if whole.find(end, at) >= 0]
    if newline == "" and found:
        first = min(whole.find(end, at) for end in ends if whole.find(end, at) >= 0)
        return whole[at : first + (2 if whole[first : first + 2] == "\r\n" else 1)]
    return whole[at : min(found)] if found else whole[at:]


async def test_text_is_written_over_where_tell_was_asked(aio, sync):
    async with await aio.open("/faces/w", "w+", encoding="utf-16") as file:
        await file.write("first ")
        place = file.tell()
        await file.write("second")
        await file.seek(place)
        await file.write("SECOND")
        assert file.tell() == len("first SECOND".encode("utf-16"))
        await file.seek(0)
        assert await file.readlines() == ["first SECOND"]
    assert sync.get("/faces/w").decode("utf-16") == "first SECOND"


async def test_a_table_is_updated_by_pairs_too(aio, sync):
    table = await aio.table("/faces/table")
    await table.update([("a", b"1")], b=b"2")
    await table.update({"c": b"3"})
    assert dict(sync.table("/faces/table").items()) == {"a": b"1", "b": b"2", "c": b"3"}
