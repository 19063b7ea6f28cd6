"""What is said of a job holds for what is made below its path, by either face."""

from __future__ import annotations

import inspect

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

MIB = 1 << 20
VALUE = bytes(MIB)


@pytest.fixture(scope="module")
def cluster():
    with crailpy.LocalCluster(dram="64MiB", servers=0) as cluster:
        cluster.add_server(location="here")
        cluster.add_server(location="there")
        yield cluster


@pytest.fixture(params=["sync", "aio"])
async def face(request, cluster):
    if request.param == "sync":
        with cluster.connect() as store:
            yield store
    else:
        async with crailpy.aio.connect(cluster.address) as store:
            yield store


async def got(result):
    return await result if inspect.isawaitable(result) else result


async def write(face, path, **options):
    file = await got(face.open(path, "wb", **options))
    await got(file.write(VALUE))
    await got(file.close())


@pytest.fixture
def where(cluster):
    """The locations of a value, by name."""
    with cluster.connect() as store:
        names = {s["number"]: s["location"] for s in store.status()["servers"]}
        yield lambda path: {names[at["server"]] for at in store.stat(path).locations}


async def make_all(face, path):
    """A value in each way in which there may be one; their paths."""
    paths = [f"{path}/put", f"{path}/deep/object", f"{path}/file", f"{path}/m1", f"{path}/m2"]
    await got(face.put(paths[0], VALUE))
    await got(face.put_object(paths[1], VALUE))
    await write(face, paths[2])
    await got(face.put_many([(paths[3], VALUE), (paths[4], VALUE)]))
    table = await got(face.table(f"{path}/table"))
    await got(table.update({"a": VALUE}))
    parts = await got(face.multifile(f"{path}/parts"))
    part = await got(parts.writer("p"))
    await got(part.write(VALUE))
    await got(part.close())
    return [*paths, f"{path}/table/a", f"{path}/parts/p"]


@pytest.mark.parametrize("location", ["here", "there"])
async def test_what_is_made_below_a_job_lies_where_the_job_says(face, where, location):
    job = await got(face.job("placed", location=location, strict=True))
    for round_ in range(2):
        for path in await make_all(face, f"{job.path}/{round_}"):
            assert where(path) == {location}, path
    queue = await got(face.queue(f"{job.path}/queue"))
    await got(queue.put(VALUE))
    await got(job.close())
    assert face._homes == {}


async def test_what_a_call_says_comes_before_what_its_job_says(face, where):
    job = await got(face.job("outer", location="here", strict=True))
    await got(face.put(f"{job.path}/a", VALUE, location="there"))
    assert where(f"{job.path}/a") == {"there"}
    await write(face, f"{job.path}/b", location="there")
    assert where(f"{job.path}/b") == {"there"}
    with pytest.raises(errors.OutOfSpaceError):
        await got(face.put(f"{job.path}/c", VALUE, location="nowhere"))
    await got(job.close())


async def test_of_jobs_whose_paths_look_alike_each_has_its_own(face, where):
    one = await got(face.job("like", location="here", strict=True))
    two = await got(face.job("likes", location="there", strict=True))
    items = [(f"{job.path}/{i}", VALUE) for i in range(3) for job in (one, two)]
    versions = await got(face.put_many(items))
    assert versions == sorted(versions)
    for i in range(3):
        assert where(f"{one.path}/{i}") == {"here"}
        assert where(f"{two.path}/{i}") == {"there"}
    await got(one.close())
    await got(two.close())


async def test_everything_that_makes_a_node_says_that_its_job_is_over(face):
    job = await got(face.job("over"))
    number = job.number
    await got(job.close())
    queue = await got(face.queue("/over-queue", job=number))
    table = await got(face.table("/over-table", job=number))

    async def many():
        with pytest.raises(errors.BatchError) as raised:
            await got(face.put_many([("/over/x", b""), ("/over/y", VALUE)], job=number))
        assert len(raised.value.results) == 2
        for error in raised.value.results:
            assert "the job is over" in str(error)

    await many()
    for making in (
        lambda: face.put("/over/x", b"", job=number),
        lambda: face.put("/over/x", VALUE, job=number),
        lambda: face.put_object("/over/x", 1, job=number),
        lambda: face.incr("/over/x", job=number),
        lambda: face.mkdir("/over", job=number),
        lambda: face.touch("/over/x", job=number),
        lambda: write(face, "/over/x", job=number),
        lambda: queue.put(b""),
        lambda: table.setdefault("a", b"") if hasattr(table, "put") else table.update(a=b""),
    ):
        with pytest.raises((errors.NotFoundError, errors.BatchError)) as raised:
            await got(making())
        assert "the job is over" in str(raised.value)
    await got(face.rmtree("/over-queue"))
    await got(face.rmtree("/over-table"))
