"""Paths below a value: nothing can be there, and both faces say so in the same words."""

from __future__ import annotations

import pytest

import crailpy
import crailpy.aio
from crailpy import errors

from .kit import Awaited

BELOW = ("/below/value/x", "/below/value/x/y")


@pytest.fixture(params=["sync", "aio"])
async def face(request, cluster):
    with cluster.connect() as store:
        store.put("/below/value", b"v")
        if request.param == "sync":
            yield Awaited(store)
        else:
            async with crailpy.aio.connect(cluster.address) as aio:
                yield aio
        store.rmtree("/below")


async def test_who_asks_whether_something_is_below_a_value_hears_no(face):
    for path in BELOW:
        assert await face.exists(path) is False
        assert await face.get(path, default=7) == 7
        assert await face.get(path, default=None, wait=60) is None, "nothing comes: at once"
        assert await face.wait(path, absent=True) is None
        await face.delete(path, missing_ok=True)
    assert await face.get_many(["/below/value", *BELOW], missing="none") == [b"v", None, None]
    assert [info and info.size for info in await face.stat_many(["/below/value", *BELOW])] == [
        1, None, None,
    ]  # fmt: skip
    await face.delete_many(BELOW)
    assert await face.get("/below/value") == b"v"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("get", ()),
        ("get_view", ()),
        ("get_range", (0, 1)),
        ("stat", ()),
        ("put", (b"",)),
        ("delete", ()),
        ("remove", ()),
        ("mkdir", ()),
        ("incr", ()),
        ("open", ("rb",)),
        ("open", ("xb",)),
        ("open", ("ab",)),
    ],
)
async def test_all_else_below_a_value_is_refused_as_posix_does(face, name, args):
    for path in BELOW:
        with pytest.raises(errors.NotContainerError) as raised:
            await getattr(face, name)(path, *args)
        assert isinstance(raised.value, NotADirectoryError)


async def test_many_below_a_value_are_errors_among_the_others(face):
    for ask in (face.get_many(["/below/value", BELOW[0]]), face.put_many([(BELOW[0], b"")])):
        with pytest.raises(errors.BatchError) as raised:
            await ask
        assert isinstance(raised.value.results[-1], errors.NotContainerError)
