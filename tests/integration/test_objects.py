"""put_object and get_object through a store: what they copy, and that they come back."""

from __future__ import annotations

import asyncio
import random
import tracemalloc

import numpy
import pytest

import crailpy
import crailpy.aio
from crailpy import errors


@pytest.fixture(params=["shm", "tcp"])
def transport(request):
    return request.param


@pytest.fixture(params=["sync", "aio"])
def face(request, cluster, transport):
    """put_object and get_object of one face, both called at once."""
    if request.param == "sync":
        with cluster.connect(transport=transport) as store:
            yield store.put_object, store.get_object
        return
    with asyncio.Runner() as runner:

        async def connected():
            return await crailpy.aio.connect(cluster.address, transport=transport)

        aio = runner.run(connected())
        yield (
            lambda *args, **options: runner.run(aio.put_object(*args, **options)),
            lambda *args: runner.run(aio.get_object(*args)),
        )
        runner.run(aio.close())


def test_a_large_object_is_copied_to_where_it_lies_and_nowhere_else(face, cluster):
    put, get = face
    array, data = numpy.arange(4 << 20), bytes(range(256)) * (64 << 10)
    put("/objects/large", numpy.arange(1 << 20))  # what is imported and connected once
    tracemalloc.start()
    try:
        version = put("/objects/large", {"array": array, "data": data})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20, f"{peak} bytes for {array.nbytes} and {len(data)}"
    back = get("/objects/large")
    assert (back["array"] == array).all()
    assert back["data"] == data
    with cluster.connect() as store:
        assert store.stat("/objects/large").version == version
        store.rmtree("/objects")


def test_objects_of_many_parts_come_back(face, cluster):
    put, get = face
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(10):
        obj = [
            rng.choice(
                [
                    rng.randbytes(rng.randrange(1 << rng.randrange(1, 20))),
                    numpy.frombuffer(rng.randbytes(8 * rng.randrange(1, 30_000)), "int64"),
                    "x" * rng.randrange(100_000),
                    numpy.array([None, "text", rng.random()] * rng.randrange(1, 50), dtype=object),
                ]
            )
            for _ in range(rng.randrange(1, 100))
        ]
        put("/objects/many", obj)
        back = get("/objects/many")
        assert len(back) == len(obj)
        for one, other in zip(back, obj, strict=True):
            assert type(one) is type(other)
            assert numpy.array_equal(one, other) if isinstance(one, numpy.ndarray) else one == other
    del back, one
    with cluster.connect() as store:
        assert store.check() is None
        store.rmtree("/objects")


def test_an_object_is_put_as_a_value_is(face, cluster):
    put, _ = face
    version = put("/objects/o", "small", if_absent=True, ttl=1000)
    with pytest.raises(errors.ExistsError):
        put("/objects/o", numpy.ones(100_000), if_absent=True)
    with pytest.raises(errors.VersionConflictError):
        put("/objects/o", numpy.ones(100_000), if_version=version + 1)
    assert put("/objects/o", numpy.ones(100_000), if_version=version, ttl=1000) > version
    with pytest.raises(errors.NotFoundError, match="parent"):
        put("/objects/no/o", numpy.ones(100_000), parents=False)
    with cluster.connect() as store:
        assert store.stat("/objects/o").expires
        store.rmtree("/objects")
