"""Is there an order in which these calls could have happened one at a time?

A history is a list of `Event`s, one for each call, with the moments at which it was made and at
which it returned. It is linearizable if every call can be given one moment in between at which it
takes effect, such that each result is what the object's sequential rules give. A call that never
returned, or whose outcome is unknown, may have taken effect at any later moment, or never.

The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993), with Lowe's
memory of the configurations it has seen ("Testing for linearizability", 2017): the set of calls
that have taken effect, and the state they led to. Objects are checked apart: a history is
linearizable if that of each object is (Herlihy and Wing, 1990).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

PENDING = math.inf  # when a call returned that never did
CONFIGURATIONS_MAX = 1_000_000  # looked at; what has an order finds it long before


class Undecided(Exception):
    """The search takes too long: most likely, there is no order."""


@dataclass(frozen=True)
class Event:
    """One call. `result` counts only if it returned."""

    key: str
    name: str
    argument: Any
    result: Any
    invoked: float  # any clock that all callers share
    returned: float = PENDING
    who: str = ""

    @property
    def is_pending(self) -> bool:
        return self.returned == PENDING


# A step of an object's rules: the state after the call, or None if it cannot give this result now.
# Of a pending call only what it does when it succeeds is asked for: failing is as not happening.
Step = Callable[[Any, Event], Hashable | None]


# ---- the search ----------------------------------------------------------------------------------


class _Entry:
    """The call or the return of an event, in a list in the order of time."""

    __slots__ = ("after", "before", "event", "number", "returns")

    def __init__(self, event: Event, number: int) -> None:
        self.event = event
        self.number = number
        self.returns: _Entry | None = None  # of a call: its return, None if it is pending
        self.before: _Entry
        self.after: _Entry | None = None


def _entries(events: list[Event]) -> _Entry:
    """The head of the list. At equal moments calls come first: that forbids the least."""
    moments: list[tuple[float, int, _Entry]] = []
    for number, event in enumerate(events):
        call = _Entry(event, number)
        moments.append((event.invoked, 0, call))
        if not event.is_pending:
            assert event.invoked <= event.returned, event
            call.returns = _Entry(event, number)
            moments.append((event.returned, 1, call.returns))
    moments.sort(key=lambda moment: moment[:2])
    head = last = _Entry(events[0], -1)
    for _, _, entry in moments:
        last.after, entry.before = entry, last
        last = entry
    return head


def _take_out(entry: _Entry) -> None:
    entry.before.after = entry.after
    if entry.after:
        entry.after.before = entry.before


def _put_back(entry: _Entry) -> None:
    entry.before.after = entry
    if entry.after:
        entry.after.before = entry


def is_linearizable(events: Iterable[Event], step: Step, initial: Hashable) -> bool:
    """Of one object. `step` gives the object's rules, `initial` its first state."""
    history = list(events)
    if not history:
        return True
    head = _entries(history)
    left = sum(not event.is_pending for event in history)
    state: Any = initial
    done = 0  # bit set of those that have taken effect
    seen: set[tuple[int, Hashable]] = set()
    trail: list[tuple[_Entry, Any]] = []  # calls that took effect, and the state before each
    entry = head.after
    while left:
        assert entry is not None, "a return stands behind all that may come before it"
        is_call = entry.returns is not None or entry.event.is_pending
        if is_call:
            after = step(state, entry.event)
            then = (done | 1 << entry.number, after)
            if after is not None and then not in seen:
                seen.add(then)
                if len(seen) > CONFIGURATIONS_MAX:
                    raise Undecided(f"{len(history)} calls on {history[0].key}")
                trail.append((entry, state))
                done, state = then
                _take_out(entry)
                if entry.returns:
                    _take_out(entry.returns)
                    left -= 1
                entry = head.after
            else:
                entry = entry.after
            continue
        if not trail:  # this one has returned and cannot have taken effect
            return False
        entry, state = trail.pop()
        done ^= 1 << entry.number
        if entry.returns:
            _put_back(entry.returns)
            left += 1
        _put_back(entry)
        entry = entry.after
    return True


# ---- the objects of a store ----------------------------------------------------------------------

MAKES = ("put", "create", "swap", "add")  # a value, with a version of its own
ABSENT = (0, None)  # version 0 is how a compare-and-set names it


def value_step(state: Any, event: Event) -> Hashable | None:
    """A key with a value. The state is (last version ever, version, value).

    | name | argument | result |
    |---|---|---|
    | put | value | version |
    | create | value | version, or None: it exists |
    | swap | (expected version, value) | version, or None: conflict |
    | delete | None | True, or False: not found |
    | get | None | (version, value), version None if it was not told; ABSENT |
    """
    last, version, value = state
    name, result = event.name, event.result
    if name == "get":
        if event.is_pending:
            return None
        same = result[1] == value and result[0] in (None, version)
        return (last, version, value) if same else None
    if name == "delete":
        if event.is_pending or result:
            return (last, *ABSENT) if version else None
        return None if version else (last, *ABSENT)
    new = event.argument
    may = True
    if name == "create":
        may = version == 0
    elif name == "swap":
        expected, new = event.argument
        may = version == expected
    if not event.is_pending and result is None:
        return None if may else (last, version, value)
    if not may or (isinstance(result, int) and result <= last):
        return None
    # An unseen version is like no other, and nothing is known of its place among them.
    return (result, result, new) if isinstance(result, int) else (last, ("unseen", new), new)


def counter_step(state: Any, event: Event) -> Hashable | None:
    """incr: argument what to add, result the sum. The state is the sum, in a tuple."""
    total = state[0] + event.argument
    return (total,) if event.is_pending or event.result == total else None


def queue_step(state: Any, event: Event) -> Hashable | None:
    """A queue. The state is (last version, its items in order, each (item, taken by or None)).

    | name | argument | result |
    |---|---|---|
    | add | item | version, in the order of the items |
    | take | who takes | (version, the oldest free item), or None: there is none |
    | ack | item | True, or False: it is gone |
    | release | item | anything: it is free, in its old place |
    | fall_back | who took | pending: the session ended, what it had taken is free |
    """
    last, items = state
    name, argument, result = event.name, event.argument, event.result
    if name == "add":
        if result is not None and result <= last:
            return None
        return (result or last, (*items, (argument, None)))
    if name == "release":
        return (last, tuple((item, None if item == argument else by) for item, by in items))
    if name == "fall_back":
        return (last, tuple((item, None if by == argument else by) for item, by in items))
    if name == "ack":
        rest = tuple(entry for entry in items if entry[0] != argument)
        if event.is_pending or result:
            return (last, rest) if rest != items else None
        return state if rest == items else None
    free = next((i for i, (_, by) in enumerate(items) if by is None), None)
    if free is None:
        return state if not event.is_pending and result is None else None
    item = items[free][0]
    if not event.is_pending and (result is None or result[1] != item):
        return None
    return (last, (*items[:free], (item, argument), *items[free + 1 :]))


@dataclass(frozen=True)
class Rules:
    step: Step
    initial: Hashable


VALUE = Rules(value_step, (0, *ABSENT))
COUNTER = Rules(counter_step, (0,))
QUEUE = Rules(queue_step, (0, ()))


# ---- a whole history -----------------------------------------------------------------------------


def _told(events: list[Event], wrong: list[str]) -> list[Event]:
    """Every value is put once: so who reads it says which version a lost put has made."""
    versions: dict[Any, int] = {}
    for event in events:
        version = value = None
        if event.name in MAKES and not event.is_pending:
            version, value = event.result, _value_of(event)
        elif event.name in ("get", "take") and not event.is_pending:
            version, value = event.result or ABSENT
        if version and versions.setdefault(value, version) != version:
            wrong.append(f"{value!r} has versions {versions[value]} and {version}")
    return [
        replace(event, result=versions.get(_value_of(event)))
        if event.is_pending and event.name in MAKES
        else event
        for event in events
    ]


def _value_of(event: Event) -> Any:
    return event.argument[1] if event.name == "swap" else event.argument


def _versions_wrong(events: list[Event]) -> list[str]:
    """Over all keys: no version twice, and none smaller than one that was returned before."""
    made = sorted(
        (event.invoked, event.returned, event.result, event.key)
        for event in events
        if event.name in MAKES and not event.is_pending and event.result
    )
    wrong = []
    seen: dict[int, str] = {}
    for _, _, version, key in made:
        if version in seen:
            wrong.append(f"version {version} was given twice, for {seen[version]} and {key}")
        seen[version] = key
    returns = sorted((returned, version) for _, returned, version, _ in made)
    at = largest = 0
    for invoked, _, version, key in made:
        while returns[at][0] < invoked:
            largest = max(largest, returns[at][1])
            at += 1
        if version < largest:
            wrong.append(f"version {version} of {key} came after {largest}")
    return wrong


def what_is_wrong(history: Iterable[Event], rules: Callable[[str], Rules]) -> list[str]:
    """Sentences; none if the history is linearizable and its versions are in order. `rules` says
    what kind of object a key is. Raises Undecided."""
    events = list(history)
    wrong = _versions_wrong(events)
    of_key: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        of_key[event.key].append(event)
    for key, own in of_key.items():
        rule = rules(key)
        own = _told(own, wrong)
        if not is_linearizable(own, rule.step, rule.initial):
            wrong.append(f"the {len(own)} calls on {key} have no order")
    return wrong
