"""Files of the asynchronous face."""

from __future__ import annotations

import asyncio
import random

import pytest

import crailpy
import crailpy.aio
from crailpy import errors


@pytest.fixture(params=["shm", "tcp"])
async def aio(request, cluster):
    async with crailpy.aio.connect(cluster.address, transport=request.param) as store:
        await store.mkdir("/af", exist_ok=True)
        yield store
        await store.rmtree("/af")


@pytest.mark.parametrize("size", [0, 10, 100_000, 300_000, 5_000_000])
async def test_what_was_written_in_pieces_is_read_in_pieces(aio, size):
    data = random.Random(size).randbytes(size)
    async with await aio.open("/af/w", "wb") as file:
        for at in range(0, size, 70_001):
            assert await file.write(data[at : at + 70_001]) == len(data[at : at + 70_001])
        assert not await aio.exists("/af/w")
        assert file.tell() == size
    assert file.version == (await aio.stat("/af/w")).version
    assert await aio.get("/af/w") == data
    async with await aio.open("/af/w") as file:
        pieces = []
        while piece := await file.read(33_333):
            pieces.append(piece)
        assert b"".join(pieces) == data
        await file.seek(size // 2)
        buffer = bytearray(1000)
        n = await file.readinto(buffer)
        assert buffer[:n] == data[size // 2 :][:1000]
        await file.seek(0)
        assert await file.read() == data
        with pytest.raises(OSError, match="writable"):
            await file.write(b"x")


async def test_files_against_a_file_in_memory(aio):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for scale in (1000, 300_000):
        expected = bytearray(rng.randbytes(scale))
        await aio.put("/af/m", expected)
        for _ in range(4):
            async with await aio.open("/af/m", "r+b") as file:
                for _ in range(15):
                    at = rng.randrange(len(expected) + scale // 4)
                    what = rng.randrange(4)
                    if what == 0:
                        await file.truncate(at)
                        expected = (expected + bytes(max(0, at - len(expected))))[:at]
                        expected = bytearray(expected or b"")
                        if not expected:
                            await file.seek(0)
                            await file.write(b"begin")
                            expected = bytearray(b"begin")
                    elif what == 1:
                        await file.seek(at)
                        n = rng.randrange(scale)
                        assert await file.read(n) == expected[at : at + n]
                    else:
                        data = rng.randbytes(rng.randrange(1, scale))
                        await file.seek(at)
                        await file.write(data)
                        expected += bytes(max(0, at - len(expected)))
                        expected[at : at + len(data)] = data
            assert await aio.get("/af/m") == expected


async def test_appending_goes_behind_what_is_there(aio):
    expected = b""
    for i, n in enumerate((10, 5000, 300_000, 20, 4096, 1_000_000, 7)):
        async with await aio.open("/af/a", "ab") as file:
            await file.write(bytes([i]) * n)
        expected += bytes([i]) * n
        assert await aio.get("/af/a") == expected


async def test_an_open_reader_keeps_its_version(aio):
    data = random.Random(1).randbytes(400_000)
    await aio.put("/af/r", data)
    async with await aio.open("/af/r") as file:
        assert await file.read(10) == data[:10]
        await aio.put("/af/r", b"other")
        await aio.delete("/af/r")
        assert await file.read() == data[10:]
    with pytest.raises(errors.ClosedError):
        await file.read()
    with pytest.raises(errors.NotFoundError):
        await aio.open("/af/r")


async def test_an_exception_and_another_version_publish_nothing(aio):
    async def leave_by_an_exception(n):
        async with await aio.open("/af/x", "xb") as file:
            await file.write(b"half" * n)
            raise ZeroDivisionError

    for n in (1, 100_000):
        with pytest.raises(ZeroDivisionError):
            await leave_by_an_exception(n)
        assert not await aio.exists("/af/x")
    await aio.put("/af/x", b"x" * 10)
    with pytest.raises(errors.ExistsError):
        await aio.open("/af/x", "xb")
    file = await aio.open("/af/x", "r+b")
    await file.write(b"mine")
    await aio.put("/af/x", b"theirs")
    with pytest.raises(errors.VersionConflictError):
        await file.close()
    assert await aio.get("/af/x") == b"theirs"
    for mode in ("r", "rbt", "rwb", "q"):
        if mode != "r":
            with pytest.raises(errors.InvalidArgumentError):
                await aio.open("/af/x", mode)


async def test_a_follower_reads_along_until_the_end(aio):
    writer = await aio.open("/af/f", "wb")
    await writer.write(b"a" * 300_000)
    await writer.flush()
    reader = await aio.open("/af/f", follow=True)
    assert await reader.read(300_000) == b"a" * 300_000
    more = asyncio.ensure_future(reader.read(100_000))
    await asyncio.sleep(0)
    assert not more.done()
    await writer.write(b"b" * 100_000)
    await writer.flush()
    assert await more == b"b" * 100_000
    await writer.write(b"end")
    await writer.close()
    assert await reader.read() == b"end"
    await reader.close()
    assert await aio.get("/af/f") == b"a" * 300_000 + b"b" * 100_000 + b"end"


@pytest.mark.parametrize("size", [1, 5000, 250_000])
async def test_flush_shows_also_what_is_in_memory(aio, size):
    writer = await aio.open("/af/small", "wb")
    await writer.write(b"a" * size)
    await writer.flush()
    reader = await aio.open("/af/small", follow=True)
    assert await reader.read(size) == b"a" * size
    await writer.write(b"end")
    await writer.close()
    assert await reader.read() == b"end"
    await reader.close()
    assert await aio.get("/af/small") == b"a" * size + b"end"


async def test_lines_and_truncate(aio):
    await aio.put("/af/l", b"".join(b"line %d\n" % i for i in range(5000)) + b"last")
    async with await aio.open("/af/l") as file:
        assert await file.readline() == b"line 0\n"
        assert file.tell() == 7
        assert await file.read(6) == b"line 1"
        lines = [line async for line in file]
    assert lines[0] == b"\n"
    assert lines[1:3] == [b"line 2\n", b"line 3\n"]
    assert lines[-1] == b"last"
    for size in (100, 5, 8000, 0):
        await aio.put("/af/t", b"x" * 6000)
        await aio.truncate("/af/t", size)
        assert await aio.get("/af/t") == (b"x" * 6000 + bytes(2000))[:size]


async def test_cancelled_writers_leave_no_granule_behind(cluster, aio):
    with cluster.connect() as watcher:

        def settled() -> tuple[int, int]:
            while True:
                now = watcher.status()["namenode"]
                if not now["granules_retiring"] and not now["background_pending"]:
                    return now["granules_used"], now["granules_granted"]

        async def write() -> None:
            async with await aio.open("/af/c", "wb") as file:
                for _ in range(6):
                    await file.write(b"w" * 900_000)

        await write()
        await aio.delete("/af/c")
        before = settled()
        k, misses = 0, 0
        while misses < 3:
            task = asyncio.ensure_future(write())
            for _ in range(k):
                await asyncio.sleep(0)
            misses += task.done()
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
            k += 1 + k // 10
        await aio.delete("/af/c", missing_ok=True)
        while aio._session.space.native.frames:  # noqa: ASYNC110 (nobody tells of it)
            await asyncio.sleep(0)
        await aio.put("/af/last", b"")
        held = aio._transfers.grants_held
        assert settled()[0] == before[0]
        assert held or settled() == before
        assert aio.client_stats()["slots_used"] == 0


async def test_parts_of_a_multifile_read_as_one_stream(aio):
    many = await aio.multifile("/af/many")
    expected = b""
    for i, n in enumerate((10, 0, 300_000, 4096, 70_000)):
        async with await many.writer() as part:
            await part.write(bytes([i]) * n)
        expected += bytes([i]) * n
    assert [part.size for part in await many.parts()] == [10, 0, 300_000, 4096, 70_000]
    async with await many.reader() as reader:
        pieces = []
        while piece := await reader.read(50_000):
            pieces.append(piece)
        assert all(len(piece) == 50_000 for piece in pieces[:-1])
        assert b"".join(pieces) == expected
    async with await many.reader(outstanding=1) as reader:
        buffer = bytearray(100_000)
        assert await reader.readinto(buffer) == 10
        gone = (await many.parts())[2]
        await aio.remove(gone.path)
        assert await reader.read() == expected[300_010:]
    with pytest.raises(errors.ClosedError):
        await reader.read()
    with pytest.raises(errors.ExistsError):
        await many.writer((await many.parts())[0].name)


TEXT = "grüße\nzwei\r\ndrei\rvier\n\n" + "ß\r\n" * 5000 + "ohne Ende"


def written_locally(path, options) -> tuple[bytes, list[str]]:
    """What the builtin open() writes, and appends, and its lines."""
    for mode in ("w", "a"):
        with open(path, mode, **options) as file:
            file.write(TEXT)
    with open(path, **options) as file:
        return path.read_bytes(), list(file)


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
async def test_text_is_what_the_builtin_open_makes_of_it(aio, tmp_path, newline, encoding):
    options = {"encoding": encoding, "newline": newline}
    for mode in ("w", "a"):
        async with await aio.open("/af/t", mode, **options) as file:
            assert await file.write(TEXT) == len(TEXT)
    data, lines = written_locally(tmp_path / "t", options)
    assert await aio.get("/af/t") == data
    async with await aio.open("/af/t", "r", **options) as file:
        assert [line async for line in file] == lines
        await file.seek(0)
        begun = await file.read(7)
        assert (begun, begun + await file.read()) == ("".join(lines)[:7], "".join(lines))
        assert await file.read() == await file.readline() == ""


async def test_text_modes_refuse_what_the_builtin_open_refuses(aio):
    async with await aio.open("/af/t", "w", encoding="ascii", errors="replace") as file:
        await file.write("ß")
        with pytest.raises(TypeError):
            await file.write(b"bytes")
        with pytest.raises(OSError, match="readable"):
            await file.read()
    assert await aio.get("/af/t") == b"?"
    with pytest.raises(LookupError):
        await aio.open("/af/t", "w", encoding="no-such")
    for mode, options in (("rb", {"encoding": "utf-8"}), ("r", {"buffering": 0})):
        with pytest.raises(errors.InvalidArgumentError):
            await aio.open("/af/t", mode, **options)
    file = await aio.open("/af/t", "w")
    await file.write("half")
    await file.discard()
    assert await aio.get("/af/t") == b"?"


async def test_an_append_that_is_discarded_leaves_nothing_where_nothing_was(aio):
    async def append_and_fail():
        async with await aio.open("/af/new", "ab") as file:
            await file.write(b"x" * 400_000)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await append_and_fail()
    await aio.wait("/af/new", absent=True, timeout=10)
    async with await aio.open("/af/new", "ab"):
        pass
    assert await aio.get("/af/new") == b"", "as the builtin's"
    file = await aio.open("/af/new", "ab")
    await file.discard()
    file = await aio.open("/af/taken", "ab")
    await aio.put("/af/taken", b"another's")
    await file.discard()
    assert await aio.get_many(["/af/new", "/af/taken"]) == [b"", b"another's"]


async def test_parts_of_a_multifile_are_opened_ahead(aio):
    many = await aio.multifile("/af/ahead")
    for i in range(6):
        async with await many.writer(f"{i}") as part:
            await part.write(b"%d" % i)
    for outstanding in (1, 3, 64):
        async with await many.reader(outstanding=outstanding) as reader:
            assert await reader.read() == b"012345"
    async with await many.reader() as left_early:
        assert await left_early.read(1) == b"0"
    reader = await many.reader(outstanding=3)
    assert await reader.read(1) == b"0"
    await asyncio.wait(reader._ahead)
    for i in range(6):
        await aio.delete(f"/af/ahead/{i}")
    assert await reader.read() == b"12", "two more were open, the rest is gone"
    await reader.close()
    with pytest.raises(errors.InvalidArgumentError):
        await many.reader(outstanding=0)


TEXT = "".join(f"line {i} äöü\n" for i in range(3000))


async def lines(file, n):
    return [await file.readline() for _ in range(n)]


async def iterated(file):
    return [line async for line in file]


async def at_the_end(file):
    await file.seek(0, 2)
    return await file.read()


@pytest.mark.parametrize("mode", ["r", "rb"])
async def test_what_goes_when_it_was_read_goes_when_all_was_read_in_order(aio, mode):
    text = TEXT if mode == "r" else TEXT.encode()
    to_the_end = [
        lambda file: file.read(),
        lambda file: file.read(len(text)),
        iterated,
        lambda file: lines(file, 3000),
    ]
    not_to_the_end = [
        lambda file: lines(file, 1),
        lambda file: lines(file, 2999),
        lambda file: file.read(len(text) - 1),
        at_the_end,
    ]
    for i, read in enumerate(to_the_end):
        await aio.put("/af/once", TEXT.encode(), delete_after_read=True)
        async with await aio.open("/af/once", mode) as file:
            got = await read(file)
        assert text[:0].join(got if isinstance(got, list) else [got]) == text
        assert not await aio.exists("/af/once"), f"way {i}"
    for i, read in enumerate(not_to_the_end):
        await aio.put("/af/once", TEXT.encode(), delete_after_read=True)
        async with await aio.open("/af/once", mode) as file:
            await read(file)
        assert await aio.exists("/af/once"), f"way {i}"
        await aio.delete("/af/once")
