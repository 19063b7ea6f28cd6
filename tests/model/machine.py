"""The machine that drives a real store and the model of docs/NAMESPACE.md by generated sequences.

Clients of several kinds make calls one after the other; each result, or the type of each error, has
to be the model's. After every step the namenode checks all of its invariants, and has as many nodes
as the model. At the end of a run everything is removed, and nothing may be left.

Here are the single calls, crashes and ends of sessions; holds.py has what lasts or takes several.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.stateful import RuleBasedStateMachine, rule

import crailpy
from crailpy.errors import NotFoundError

from . import operations
from .clients import Face, Outcome, Process
from .namespace import CONTAINERS, FILE, GRANULE, INLINE_MAX, Namespace, Refused, granules_bounds
from .operations import (
    CHANGES,
    NAMESPACE,
    OPERATIONS,
    TOLD,
    Call,
    Share,
    There,
    Value,
    VersionOf,
)

HELD_MAX = 6
MANY = 1000  # bytes of a path: of longer ones there would be too many, parts of the longest
PATIENCE = 30.0  # seconds for what comes by itself, like the end of a session
ENDS_LATE = 3.0  # seconds for what goes a little after the session

#: The clients of a machine. A "process" can be killed.
CLIENTS: list[dict[str, Any]] = [
    {"transport": None, "namespace": NAMESPACE, "page": 2},
    {"transport": "tcp"},
    {"process": True, "page": 3},
    {"process": True, "transport": "tcp", "namespace": NAMESPACE},
    {"process": True, "face": "async", "page": 2},
    {"process": True, "face": "async", "namespace": NAMESPACE, "transport": "tcp"},
]
#: Of the clients that can be killed and cut off.
PROCESSES = [n for n, client in enumerate(CLIENTS) if client.get("process")]
SYNC = [n for n, client in enumerate(CLIENTS) if client.get("face") != "async"]
clients = st.integers(0, len(CLIENTS) - 1)
processes = st.sampled_from(PROCESSES)


def brief(value: Any) -> str:
    """For messages: long bytes by their length."""
    if isinstance(value, bytes | bytearray):
        return repr(value) if len(value) < 40 else f"<{len(value)} bytes {value[:8].hex()}...>"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(brief, value)) + "]"
    return repr(operations.Path(value) if isinstance(value, str) else value)


class Disagreement(AssertionError):
    """Of the store and the model."""


@dataclass
class Held:
    """A view or an open reader."""

    client: int
    how: str
    value: bytes
    may_be_lost: bool = False  # its session may have ended


class World:
    """What machines share, since it is dear: the cluster, and spare processes."""

    def __init__(self, cluster: crailpy.LocalCluster) -> None:
        self.cluster = cluster
        self.admin = Face(cluster.address)
        self.count: Counter[tuple[str, str]] = Counter()  # of outcomes
        self._spare = [Process() for _ in PROCESSES]

    def process(self) -> Process:
        if len(self._spare) < 2:
            self._spare.append(Process())  # it starts while others work
        return self._spare.pop(0)

    def give_back(self, process: Process) -> None:
        self._spare.insert(0, process)

    def numbers(self) -> dict[str, int]:
        found: dict[str, int] = self.admin.store.status()["namenode"]
        return found

    def close(self) -> None:
        self.admin.close()
        for process in self._spare:
            process.end()

    def until(self, what: str, condition: Any) -> None:
        """Asks the store until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not in {PATIENCE} s: {self.numbers()}"


def step(**drawn: Any) -> Any:
    """A rule, after which everything has to be in order."""

    def decorate(do: Any) -> Any:
        @functools.wraps(do)
        def run(self: Machine, **drawn: Any) -> None:
            arguments = ", ".join(f"{name}={value!r}" for name, value in drawn.items())
            self.trace.append(f"{do.__name__}({arguments})")
            with self.reporting():
                do(self, **drawn)
                self.nothing_is_wrong()

        return rule(**drawn)(run)

    return decorate


class Machine(RuleBasedStateMachine):
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.model = Namespace()
        self.clients: list[Face | Process | None] = [None] * len(CLIENTS)
        self.held: dict[int, Held] = {}  # by handle
        self.handles = 0
        self.session_paths: dict[int, str] = {}  # by client
        self.items: dict[int, int] = {}  # of queues that were taken: by handle, by which client
        self.has_failed = False
        self.trace: list[str] = []  # what was done

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Says at once what failed: with real processes it need not fail the same way again."""
        try:
            yield
        except Exception as error:
            if not self.has_failed and not isinstance(error, HypothesisException):
                self.has_failed = True
                print("\n".join(["", *self.trace, f"{type(error).__name__}: {error}"]), flush=True)
            raise

    # -- clients -----------------------------------------------------------------

    def client(self, number: int) -> Any:
        client = self.clients[number]
        if client is None:
            options = dict(CLIENTS[number])
            if options.pop("process", False):
                client = self.world.process()
                client.open(self.world.cluster.address, **options)
            else:
                client = Face(self.world.cluster.address, **options)
            self.clients[number] = client
        return client

    def there(self, number: int, index: int, kind: str | None = None) -> operations.Path:
        """A path that is there, as this client names it."""
        nodes = [(path, node) for path, node in self.model.nodes()[1:] if len(path) < MANY]
        paths = [path for path, node in nodes if kind in (None, node.kind)]
        paths = paths or [path for path, _ in nodes]
        path = paths[index % len(paths)] if paths else "/a"
        namespace = CLIENTS[number].get("namespace", "")
        if namespace and path.startswith(namespace + "/"):
            path = path.removeprefix(namespace)
        return operations.Path(path)

    def resolve(self, number: int, call: Call) -> tuple[Call, Call]:
        """The call as the store gets it, and as the model does: with absolute paths."""
        namespace = CLIENTS[number].get("namespace", "")

        def placed(argument: Any) -> Any:
            if isinstance(argument, There):
                return self.there(number, argument.index, argument.kind)
            if isinstance(argument, Share):
                shares = list(self.model.shares_of(number))
                return shares[argument.index % len(shares)] if shares else None
            if isinstance(argument, VersionOf):
                return replace(argument, path=placed(argument.path))
            if isinstance(argument, list | tuple):
                return type(argument)(map(placed, argument))
            return argument

        def for_store(argument: Any) -> Any:
            if isinstance(argument, Value):
                return argument.data
            if isinstance(argument, VersionOf):
                return max(0, self.version_of(absolute(str(argument.path))) + argument.off)
            if isinstance(argument, list | tuple):
                return type(argument)(map(for_store, argument))
            if isinstance(argument, dict):
                return {name: for_store(value) for name, value in argument.items()}
            return str(argument) if isinstance(argument, str) else argument

        def absolute(argument: Any) -> Any:
            if isinstance(argument, str) and argument.startswith("/") and namespace:
                return namespace if argument == "/" else namespace + argument
            if isinstance(argument, list | tuple):
                return type(argument)(map(absolute, argument))
            return argument

        named = call.with_(placed)
        if named != call:
            note(f"  which is {named}")
            self.trace.append(f"  which is {named}")
        as_called = named.with_(for_store)
        for_model = as_called.with_(absolute)
        if "if_version" in dict(for_model.options):
            self.version_of(for_model.args[0])  # so that the model can compare it
        return as_called, for_model

    def version_of(self, path: str) -> int:
        node = self.model.find(path)
        if node is None:
            return 0
        if node.version.number is None:
            observed = self.world.admin.call("stat", path)
            self.expect(observed, ("ok", node.fact(path)), f"stat {path}")
        assert node.version.number is not None
        return node.version.number

    # -- calls ---------------------------------------------------------------------

    def expect(self, observed: Outcome, expected: Outcome, what: Any) -> None:
        if not self.model.versions.agree(
            expected, observed
        ):  # no assert, whose explanation would be megabytes
            raise Disagreement(
                f"{what}\n  the store: {brief(observed)}\n  the model: {brief(expected)}"
            )

    def outcome(self, model: Namespace, call: Call) -> Outcome:
        try:
            return ("ok", operations.apply(model, call))
        except Refused as refused:
            return ("error", refused.error)

    def can(self, number: int, call: Call) -> bool:
        """Is it clear what comes of this call, its paths absolute?"""
        if operations.is_unclear(self.model, call):
            return False
        tells_late = number not in SYNC or call.name in ("get_object", "read_parts")
        return not (tells_late and operations.goes_by_the_way(self.model, call))

    def do(self, number: int, call: Call) -> None:
        for_store, for_model = self.resolve(number, call)
        if not self.can(number, for_model):
            return
        client = self.client(number)
        observed = client.call(for_store.name, *for_store.args, **dict(for_store.options))
        if call.name in TOLD and observed[0] == "ok":
            for_model = replace(for_model, options=(("told", observed[1]),))
        expected = self.outcome(self.model, for_model)
        self.count(call.name, expected)
        self.expect(observed, expected, call)
        if dict(call.options).get("stripe", 1) > 1 and expected[0] == "ok":
            self.is_striped(for_model.args[0])

    def count(self, name: str, outcome: Outcome) -> None:
        self.world.count[name, outcome[0] if outcome[0] == "ok" else outcome[1]] += 1

    def is_striped(self, path: str) -> None:
        node = self.model.find(path)
        assert node
        if node.size > INLINE_MAX:  # at least two granules, and there are two servers
            found = self.world.admin.locations(path)
            assert sorted({at[0] for at in found}) == sorted(at[0] for at in found), found
            assert len(found) == 2, f"{path}: {node.size} bytes at {found}"

    # -- trouble ---------------------------------------------------------------------

    @step(number=processes, call=CHANGES, spin=st.integers(0, 300))
    def a_client_is_killed_in_the_midst_of(self, number: int, call: Call, spin: int) -> None:
        """Its last call may have happened, or not; in either case nothing else."""
        for_store, for_model = self.resolve(number, call)
        if not self.can(number, for_model):
            return
        client = self.client(number)
        client.send(for_store.name, *for_store.args, **dict(for_store.options))
        until = time.perf_counter_ns() + spin * 10_000
        while time.perf_counter_ns() < until:
            pass
        self.end_of(number, lambda: client.kill())
        self.clients[number] = None
        deadline = time.monotonic() + ENDS_LATE
        while not self.is_one_of(operations.stages(for_model), number):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"neither with nor without {call}:\n  {brief(self.everything())}"
                )

    def is_one_of(self, stages: list[list[Call]], number: int) -> bool:
        """Is what is there now what one of them has led to, the session having ended?"""
        there = self.everything()
        for steps in stages:
            model = self.model.copy()
            for step in steps:
                self.outcome(model, told_by(there, model, step))
            model.session_ends(number)
            if model.versions.agree(expected_of(model), there):
                self.model = model
                return True
        return False

    @step(number=clients)
    def a_client_closes(self, number: int) -> None:
        client = self.clients[number]
        if client is not None:
            self.last_words(number)
            self.end_of(number, client.close)
            self.model.session_ends(number)
            if isinstance(client, Process):
                self.world.give_back(client)
            self.clients[number] = None

    @step(number=processes, late=st.booleans())
    def the_connections_of_a_client_are_cut(self, number: int, late: bool) -> None:
        """It is back at once, if possible in its session; or late, for certain in another one."""
        client = self.client(number)
        for held in self.held.values():
            held.may_be_lost |= held.client == number and held.how == "reader"
        assert client.call("cut")[1] > 0
        late = late or number in self.session_paths or self.model.has_holds(number)
        for watch in self.model.watches.values():
            watch.may_resync |= watch.client == number
        shares = self.model.shares_of(number)
        if late:
            self.until_gone(number)
            self.model.session_ends(number)
            self.nothing_is_wrong()  # jobs that end by this have ended, before it is back in them
        assert client.call("exists", "/")[0] == "ok" or CLIENTS[number].get("namespace")
        if late:
            self.model.takes_again(shares)

    def last_words(self, number: int) -> None:
        """Called before a client closes."""

    def until_gone(self, number: int) -> None:
        """Until the session of this client has ended: each of the others has one, and the admin."""
        others = sum(client is not None for client in self.clients) - 1
        self.world.until("it ends", lambda: self.world.numbers()["sessions"] <= 1 + others)
        self.session_paths.pop(number, None)

    def end_of(self, number: int, end: Any) -> None:
        """Ends a client, and waits until its session has ended, too."""
        for handle, held in list(self.held.items()):
            if held.client == number:
                del self.held[handle]
        self.items = {handle: client for handle, client in self.items.items() if client != number}
        for handle, watch in list(self.model.watches.items()):
            if watch.client == number:
                del self.model.watches[handle]
        end()
        self.until_gone(number)

    # -- what is held over other calls --------------------------------------------------

    @step(number=clients)
    def take_a_session_directory(self, number: int) -> None:
        observed = self.client(number).call("session_directory")
        path = f"{CLIENTS[number].get('namespace', '')}/sessions/1"
        if observed[0] == "ok":
            path = path[:-1] + observed[1].rpartition("/")[2]
        expected = self.outcome(self.model, Call("session_directory", (path, number)))
        self.expect(observed, (expected[0], expected[1] or path), "session_path")
        if expected[0] == "ok":
            assert self.session_paths.setdefault(number, path) == path

    @step(
        number=clients,
        path=operations.paths,
        how=st.sampled_from(["view", "reader"]),
    )
    def hold(self, number: int, path: Any, how: str) -> None:
        if len(self.held) >= HELD_MAX:
            return
        client = self.client(number)
        for_store, for_model = self.resolve(number, Call("get_view", (path,)))
        node = self.model.find(for_model.args[0])
        if node is not None and node.goes_when_read:
            return
        self.handles += 1
        observed = client.call("hold", for_store.args[0], self.handles, how)
        expected = self.outcome(self.model, for_model)
        self.expect(observed, expected, f"hold {path}")
        if expected[0] == "ok":
            self.held[self.handles] = Held(number, how, expected[1][0])

    @step(index=st.integers(0, 63))
    def let_go(self, index: int) -> None:
        if not self.held:
            return
        handle = sorted(self.held)[index % len(self.held)]
        held = self.held.pop(handle)
        observed = self.client(held.client).call("look", handle)
        if not (held.may_be_lost and observed == ("error", "DataLostError")):
            self.expect(observed, ("ok", held.value), f"{held.how} that was held")
        self.client(held.client).call("let_go", handle)

    # -- what always holds -----------------------------------------------------------------

    def nothing_is_wrong(self) -> None:
        deadline = time.monotonic() + ENDS_LATE
        while not self.is_quiet():
            if time.monotonic() > deadline:
                self.expect(("ok", self.everything()), ("ok", expected_of(self.model)), "the tree")
                raise AssertionError(f"other nodes than those in the tree: {self.world.numbers()}")
        assert self.world.admin.store.check() is None
        n = self.world.numbers()
        parts = ("free", "used", "granted", "retiring")
        assert sum(n[f"granules_{part}"] for part in parts) == n["granules_total"], n

    def is_quiet(self) -> bool:
        n = self.world.numbers()
        return not n["background_pending"] and n["nodes"] == len(self.model.nodes())

    def everything(self) -> list[Any]:
        """The whole tree as the store has it."""
        found: list[Any] = []
        paths = ["/"]
        while paths:
            path = paths.pop()
            kind, fact = self.world.admin.call("stat", path)
            assert kind == "ok", fact
            if fact[1] == FILE:
                value = self.world.admin.call("get_range", path, 0, fact[2] + 1)
                found.append((fact, value[1]))
            else:
                found.append((fact, None))
                names = self.world.admin.call("listdir", path)[1] if fact[1] in CONTAINERS else []
                paths += [f"{path.rstrip('/')}/{name}" for name in names]
        return sorted(found)

    def teardown(self) -> None:
        try:
            if not self.has_failed:
                with self.reporting():
                    self.end()
        finally:
            for client in self.clients:
                if isinstance(client, Process):
                    client.kill()
                elif client is not None:
                    client.close()
            admin = self.world.admin.store
            for name in admin.listdir("/"):
                with contextlib.suppress(NotFoundError):  # it went with a job that went
                    admin.rmtree(f"/{name}")
            admin.setattr("/", **dict.fromkeys(admin.attributes("/")))
        self.world.until("all is free", self.is_empty)

    def end(self) -> None:
        self.expect(("ok", self.everything()), ("ok", expected_of(self.model)), "at the end")
        for number, client in enumerate(self.clients):
            if client is not None:
                self.a_client_closes(number=number)
        self.nothing_is_orphaned()

    def is_empty(self) -> bool:
        n = self.world.numbers()
        return n["nodes"] == 1 and n["granules_free"] == n["granules_total"]

    def nothing_is_orphaned(self) -> None:
        """No session but the admin's is there: what is in use is what the model's values need."""
        parts = ("granules_granted", "granules_retiring")
        self.world.until(
            "all is retired", lambda: not any(self.world.numbers()[part] for part in parts)
        )
        totals = self.model.totals()
        totals["granules_used"] = totals["values_inline_bytes"] = 0
        taken: set[tuple[int, int, int]] = set()
        for path, node in self.model.nodes():
            extents = [] if node.kind != FILE else self.world.admin.locations(path)
            granules = sum(extent[3] for extent in extents) // GRANULE
            least, most = granules_bounds(node)
            assert least <= granules <= most, f"{path}: {node.size} bytes in {granules} granules"
            for server, region, first, size in extents:
                run = range(first, first + size, GRANULE)
                own = {(server, region, at) for at in run}
                assert not own & taken, f"{path} shares granules with another"
                taken |= own
            totals["granules_used"] += granules
            totals["values_inline_bytes"] += 0 if extents or node.kind != FILE else node.size
        self.world.until(
            f"nothing else is there than {totals}",
            lambda: totals.items() <= self.world.numbers().items(),
        )


def expected_of(model: Namespace) -> list[Any]:
    """What `everything` gives, of the model."""
    return sorted(
        (
            (node.fact(path), node.value if node.kind == FILE else None)
            for path, node in model.nodes()
        ),
        key=lambda entry: entry[0][0],
    )


def told_by(there: list[Any], model: Namespace, call: Call) -> Call:
    """The call, whose reply nobody saw, with the number in a name as it is found there."""
    if call.name not in TOLD:
        return call
    above = f"{call.args[0]}/"
    known = {path for path, _ in model.nodes()}
    new = [fact[0] for fact, _ in there if fact[0].startswith(above) and fact[0] not in known]
    names = [path.removeprefix(above) for path in new]
    told = [int(n) if call.name == "queue_put" else [n] for n in names if n.isdecimal()]
    return replace(call, options=(("told", told[0] if told else None),))


def add_rules() -> None:
    """One rule for each line of the table of operations."""
    for name, strategy in OPERATIONS.items():

        def run(self: Machine, number: int, call: Call) -> None:
            self.do(number, call)

        run.__name__ = run.__qualname__ = f"client_{name}"
        setattr(Machine, run.__name__, step(number=clients, call=strategy)(run))


add_rules()
