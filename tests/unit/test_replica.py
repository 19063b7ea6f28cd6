"""A replica against plain arrays: whatever is pushed, kept up, given up, and begun again."""

from __future__ import annotations

import numpy
import pytest

from crailpy.client.compute import tensors
from crailpy.client.compute.replica import Replica

SHAPES = {"row": (40,), "table": (12, 5), "one": (), "large": (3000,)}


def a_key(rng, name):
    shape = SHAPES[name]
    if not shape or rng.random() < 0.5:
        return name
    start = rng.randrange(shape[0] + 1)
    return name, start, rng.randrange(start, shape[0] + 1)


def rows(state, key):
    return state[key[0]][key[1] : key[2]] if isinstance(key, tuple) else state[key]


def a_push(rng, replica, state, step):
    """The value of a random push, which the plain arrays are changed by, too."""
    op = rng.choice(["add", "add", "add", "set"])
    updates = {}
    for name in rng.choices(list(SHAPES), k=rng.choice([1, 1, 1, 2, 3])):
        key = a_key(rng, name)
        if key in updates:
            continue
        if name in state and name not in replica.kinds:
            continue  # it begins with this push
        if name not in state:
            op, key = "set", name
            state[name] = numpy.zeros(SHAPES[name])
        updates[key] = numpy.full(rows(state, key).shape, rng.randrange(-9, 9))
    for key, array in updates.items():
        name = key if isinstance(key, str) else key[0]
        if name not in replica.kinds:
            updates[key] = array = array.astype(float)
        at = slice(*key[1:]) if isinstance(key, tuple) else ...
        state[name][at] = state[name][at] + array if op == "add" else array
    who = rng.choice([None, ("worker", step)])
    parts = tensors.pack(op, replica.pieces(updates, op), who)
    return b"".join(bytes(part) for part in parts)


@pytest.mark.parametrize("turn", range(5))
def test_a_replica_has_what_was_pushed(rng, turn):
    whole, some = Replica(keeps_all=True), Replica()
    state: dict[str, numpy.ndarray] = {}
    base, since = None, []
    handed: list[tuple[numpy.ndarray, bytes]] = []
    for step in range(400):
        value = a_push(rng, whole, state, step)
        value = rng.choice([value, memoryview(value)])
        since.append(value)
        for replica in (whole, some):
            replica.apply(value)
        if rng.random() < 0.1:
            base, since = b"".join(bytes(part) for part in whole.base()), []
        if rng.random() < 0.3:
            keys = list(dict.fromkeys(a_key(rng, rng.choice(list(state))) for _ in range(3)))
            if some.hand_out(keys) is None:
                if rng.random() < 0.1:
                    some.distrust()
                for key in keys:
                    some.want(key)
                some.start(base)
                for value in since:
                    some.apply(value)
            found = some.hand_out(keys)
            for key, array in found.items():
                assert numpy.array_equal(array, rows(state, key)), key
                handed.append((array, array.tobytes()))
        assert (some.version, some.steps) == (whole.version, whole.steps) == (step + 1, some.steps)
    assert {name: kind.shape for name, kind in whole.kinds.items()} == {
        name: SHAPES[name] for name in state
    }
    for name, array in whole.hand_out(list(state)).items():
        assert numpy.array_equal(array, state[name])
    for array, before in handed:
        assert array.tobytes() == before, "what was handed out stays as it is"
