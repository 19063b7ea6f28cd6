"""The checker itself: histories made by hand, and small random ones against every order."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from .linearizability import (
    COUNTER,
    PENDING,
    QUEUE,
    VALUE,
    Event,
    Rules,
    is_linearizable,
    what_is_wrong,
)


def history(*calls: tuple[Any, ...], key: str = "k") -> list[Event]:
    """Of (invoked, returned, name, argument, result)."""
    return [
        Event(key, name, argument, result, invoked, returned)
        for invoked, returned, name, argument, result in calls
    ]


def check(rules: Rules, *calls: tuple[Any, ...]) -> bool:
    return not what_is_wrong(history(*calls), lambda key: rules)


GOOD: dict[str, tuple[Rules, list[tuple[Any, ...]]]] = {
    "one after the other": (VALUE, [
        (0, 1, "get", None, (0, None)), (2, 3, "put", "a", 5), (4, 5, "get", None, (5, "a")),
        (6, 7, "delete", None, True), (8, 9, "get", None, (0, None)), (9, 10, "put", "b", 7),
    ]),
    "overlapping calls in either order": (VALUE, [
        (0, 9, "put", "a", 5), (0, 9, "put", "b", 6), (10, 11, "get", None, (6, "b")),
        (1, 8, "get", None, (0, None)),
    ]),
    "two readers see an overlapping put, one after the other": (VALUE, [
        (0, 9, "put", "a", 5), (1, 2, "get", None, (0, None)), (3, 4, "get", None, (5, "a")),
    ]),
    "a lost put that happened": (VALUE, [
        (0, PENDING, "put", "a", None), (5, 6, "get", None, (3, "a")),
    ]),
    "a lost put that happened late": (VALUE, [
        (0, PENDING, "put", "a", None), (1, 2, "put", "b", 3), (3, 4, "get", None, (3, "b")),
        (5, 6, "get", None, (4, "a")),
    ]),
    "a lost put that never happened": (VALUE, [
        (0, PENDING, "put", "a", None), (5, 6, "get", None, (0, None)),
    ]),
    "one of two wins a compare-and-set": (VALUE, [
        (0, 1, "create", "a", 1), (2, 9, "swap", (1, "b"), 2), (2, 9, "swap", (1, "c"), None),
        (10, 11, "get", None, (2, "b")),
    ]),
    "a counter": (COUNTER, [
        (0, 9, "incr", 1, 3), (0, 9, "incr", 2, 2), (0, PENDING, "incr", 5, None),
        (10, 11, "incr", 1, 9),
    ]),
    "a queue whose consumer dies": (QUEUE, [
        (0, 1, "add", "x", 1), (2, 3, "add", "y", 2), (4, 5, "take", "A", (1, "x")),
        (6, 7, "take", "B", (2, "y")), (8, PENDING, "fall_back", "A", None),
        (9, 10, "take", "B", (1, "x")),
        (11, 12, "ack", "x", True), (13, 14, "ack", "y", True), (15, 16, "take", "B", None),
    ]),
}  # fmt: skip

BAD: dict[str, tuple[Rules, list[tuple[Any, ...]]]] = {
    "a stale read": (VALUE, [
        (0, 1, "put", "a", 1), (2, 3, "put", "b", 2), (4, 5, "get", None, (1, "a")),
    ]),
    "a value that goes back": (VALUE, [
        (0, 9, "put", "a", 5), (1, 2, "get", None, (5, "a")), (3, 4, "get", None, (0, None)),
    ]),
    "a lost update": (VALUE, [
        (0, 1, "put", "a", 1), (2, 9, "swap", (1, "b"), 2), (2, 9, "swap", (1, "c"), 3),
    ]),
    "a lost put": (VALUE, [(0, 1, "put", "a", 1), (2, 3, "get", None, (0, None))]),
    "a value out of nowhere": (VALUE, [(0, 1, "put", "a", 1), (2, 3, "get", None, (2, "z"))]),
    "two creators": (VALUE, [(0, 9, "create", "a", 1), (0, 9, "create", "b", 2)]),
    "a creator refused by nobody": (VALUE, [(0, 9, "create", "a", None)]),
    "deleted twice": (VALUE, [
        (0, 1, "put", "a", 1), (2, 9, "delete", None, True), (2, 9, "delete", None, True),
    ]),
    "applied twice": (VALUE, [
        (0, 1, "put", "a", 1), (2, 3, "put", "b", 2), (4, 5, "get", None, (3, "a")),
    ]),
    "a lost put that happened twice": (VALUE, [
        (0, PENDING, "put", "a", None), (1, 2, "get", None, (1, "a")), (3, 4, "put", "b", 2),
        (5, 6, "get", None, (1, "a")),
    ]),
    "a lost put that happened and did not": (VALUE, [
        (0, PENDING, "put", "a", None), (1, 2, "get", None, (1, "a")),
        (3, 4, "get", None, (0, None)),
    ]),
    "an incr applied twice": (COUNTER, [(0, 1, "incr", 1, 1), (2, 3, "incr", 1, 3)]),
    "an incr that was lost": (COUNTER, [(0, 1, "incr", 1, 1), (2, 3, "incr", 1, 1)]),
    "an item out of order": (QUEUE, [
        (0, 1, "add", "x", 1), (2, 3, "add", "y", 2), (4, 5, "take", "A", (2, "y")),
    ]),
    "an item taken twice": (QUEUE, [
        (0, 1, "add", "x", 1), (2, 3, "take", "A", (1, "x")), (4, 5, "take", "B", (1, "x")),
    ]),
    "an item back after its ack": (QUEUE, [
        (0, 1, "add", "x", 1), (2, 3, "take", "A", (1, "x")), (4, 5, "ack", "x", True),
        (6, PENDING, "fall_back", "A", None), (7, 8, "take", "B", (1, "x")),
    ]),
    "an item that is lost": (QUEUE, [(0, 1, "add", "x", 1), (2, 3, "take", "A", None)]),
    "versions that go back": (VALUE, [(0, 1, "put", "a", 2), (2, 3, "put", "b", 1)]),
    "a version given twice": (VALUE, [(0, 9, "put", "a", 2), (0, 9, "put", "b", 2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_could_have_happened_is_accepted(name):
    rules, calls = GOOD[name]
    assert check(rules, *calls)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_have_happened_is_found(name):
    rules, calls = BAD[name]
    assert not check(rules, *calls)


def test_versions_are_in_order_over_all_keys():
    first = history((0, 1, "put", "a", 7), key="one")
    second = history((2, 3, "put", "b", 6), key="two")
    assert what_is_wrong(first, lambda key: VALUE) == []
    assert what_is_wrong(second, lambda key: VALUE) == []
    assert what_is_wrong(first + second, lambda key: VALUE) != []


# ---- against every order -------------------------------------------------------------------------


def by_trying_all(events: list[Event], rules: Rules) -> bool:
    """The definition, word by word."""
    done = [event for event in events if not event.is_pending]
    pending = [event for event in events if event.is_pending]
    for n in range(len(pending) + 1):
        for lost in itertools.combinations(pending, n):
            for order in itertools.permutations([*done, *lost]):
                if _is_witness(order, rules):
                    return True
    return False


def _is_witness(order: tuple[Event, ...], rules: Rules) -> bool:
    for at, event in enumerate(order):
        if any(later.returned < event.invoked for later in order[at + 1 :]):
            return False
    state: Any = rules.initial
    for event in order:
        state = rules.step(state, event)
        if state is None:
            return False
    return True


def random_events(rng: random.Random, name: str) -> list[Event]:
    events = []
    for i in range(rng.randint(1, 6)):
        invoked = rng.randint(0, 12)
        returned: float = invoked + rng.randint(0, 8)
        if rng.random() < 0.2:
            returned = PENDING
        argument: Any
        result: Any
        if name == "counter":
            call, argument, result = "incr", rng.randint(1, 2), rng.randint(1, 6)
        elif name == "queue":
            call = rng.choice(["add", "take", "take", "ack", "fall_back"])
            argument = rng.choice("AB") if call in ("take", "fall_back") else rng.randint(0, 1)
            result = rng.random() < 0.5
            if call == "take":
                result = rng.choice([None, (1, 0), (1, 1)])
            elif call == "add":
                result = rng.choice([None, 1, 2, 3])
            returned = PENDING if call == "fall_back" else returned
        else:
            call = rng.choice(["put", "create", "swap", "delete", "get"])
            argument, result = None, rng.choice([(0, None), (1, 0), (2, 1), (None, 0)])
            if call == "delete":
                result = rng.random() < 0.5
            elif call != "get":
                result = rng.choice([None, i + 1]) if call != "put" else i + 1
                argument = (rng.randint(0, 2), i) if call == "swap" else i
        events.append(Event("k", call, argument, result, invoked, returned))
    return events


@pytest.mark.parametrize("name", ["value", "counter", "queue"])
def test_the_search_agrees_with_trying_every_order(name):
    rules = {"value": VALUE, "counter": COUNTER, "queue": QUEUE}[name]
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    accepted = 0
    for _ in range(1500):
        events = random_events(rng, name)
        found = is_linearizable(events, rules.step, rules.initial)
        assert found == by_trying_all(events, rules), events
        accepted += found
    assert 50 < accepted < 1450, "both answers have to come up"
