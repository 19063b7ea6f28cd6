"""Rules about what lasts over other calls, or takes several clients: items of queues, shares in
jobs, watches, streams that are followed, barriers, waits, values that go when space is short."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from . import operations
from .clients import Process
from .machine import CLIENTS, PROCESSES, Machine, brief, clients, processes, step
from .namespace import INLINE_MAX, QUEUE, SHORT_TTL
from .operations import CHANGES, Call, Value

TAKEN_MAX, SHARES_MAX, WATCHES_MAX = 6, 4, 3
FILL = "/fill"
FILL_BYTES = 256 << 10
SPACE_PATIENCE = 1.0  # seconds for space that is on its way back
JOIN_PATIENCE = 30.0  # seconds for members of a barrier that will come
GIVE_UP = 0.02  # ... and for those that will not

indexes = st.integers(0, 63)


class Whole(Machine):
    """The machine with all of its rules."""

    def handle(self) -> int:
        self.handles += 1
        return self.handles

    # -- queues ------------------------------------------------------------------------

    def taken(self) -> list[tuple[int, int]]:
        """(client, handle) of all items that somebody has, in the order in which they were taken,
        also of those whose queue went."""
        return [(c, h) for h, c in sorted(self.items.items()) if self.clients[c] is not None]

    @step(number=clients, path=operations.mostly(QUEUE))
    def take_an_item(self, number: int, path: Any) -> None:
        if len(self.taken()) >= TAKEN_MAX:
            return
        handle = self.handle()
        for_store, for_model = self.resolve(number, Call("queue_get", (path, handle)))
        observed = self.client(number).call(for_store.name, *for_store.args)
        expected = self.outcome(self.model, Call("queue_get", (*for_model.args, number)))
        self.count("queue_get", expected)
        self.expect(observed, expected, f"the oldest free item of {path}")
        if expected[0] == "ok":
            self.items[handle] = number

    @step(index=indexes, how=st.sampled_from(["queue_ack", "queue_ack", "queue_release"]))
    def be_done_with_an_item(self, index: int, how: str) -> None:
        taken = self.taken()
        if not taken:
            return
        number, handle = taken[index % len(taken)]
        del self.items[handle]
        name = "let_go" if how == "queue_release" else how
        observed = self.client(number).call(name, handle)
        expected = self.outcome(self.model, Call(how, (handle,)))
        self.count(how, expected)
        self.expect(observed, expected, f"{how} of an item")

    # -- jobs --------------------------------------------------------------------------------

    @step(
        number=clients,
        name=st.sampled_from(["a", "b"]),
        ttl=st.sampled_from([SHORT_TTL, 600.0]),
        quota_bytes=st.sampled_from([0, 0, 3000, 50_000, 2 << 20]),
        quota_nodes=st.sampled_from([0, 0, 1, 3, 8]),
    )
    def open_a_job(self, number: int, name: str, **terms: Any) -> None:
        if len(self.model.shares) >= SHARES_MAX:
            return
        handle = self.handle()
        path = f"{CLIENTS[number].get('namespace', '')}/jobs/{name}"
        observed = self.client(number).call("open_job", name, handle, **terms)
        call = Call("open_job", (path, handle, number), tuple(terms.items()))
        expected = self.outcome(self.model, call)
        self.count("open_job", expected)
        self.expect(observed, expected, call)

    @step(index=indexes)
    def close_a_share_in_a_job(self, index: int) -> None:
        handles = sorted(self.model.shares)
        if not handles:
            return
        handle = handles[index % len(handles)]
        number, *_ = self.model.shares[handle]
        observed = self.client(number).call("let_go", handle)
        expected = self.outcome(self.model, Call("close_job", (handle,)))
        self.count("close_job", expected)
        self.expect(observed, expected, "close() of a job")

    @step(number=clients, index=indexes, call=operations.put_into_job)
    def put_into_a_job(self, number: int, index: int, call: Call) -> None:
        """Where it is charged: of random paths few lie in a job."""
        path = self.path_in_a_job(number, index, call.args[0])
        if path:
            self.do(number, Call(call.name, (path, *call.args[1:]), call.options))

    @step(number=clients, index=indexes, inside=operations.new_paths, other=operations.paths)
    def move_over_the_border_of_a_job(
        self, number: int, index: int, inside: str, other: Any
    ) -> None:
        path = self.path_in_a_job(number, index, inside)
        if path and other not in operations.LONG_PATHS:
            ends = (path, other) if index % 2 else (other, path)
            self.do(number, Call("rename", ends, (("overwrite", index % 3 > 0),)))

    def path_in_a_job(self, number: int, index: int, inside: str) -> str | None:
        namespace = CLIENTS[number].get("namespace", "")
        jobs = [path for path, node in self.model.nodes() if node.job]
        jobs = [path for path in jobs if path.startswith(namespace + "/") and len(path) < 500]
        return jobs[index % len(jobs)].removeprefix(namespace) + inside if jobs else None

    # -- watches ---------------------------------------------------------------------------------

    @step(number=clients, prefix=operations.prefixes)
    def begin_to_watch(self, number: int, prefix: Any) -> None:
        if len(self.model.watches) >= WATCHES_MAX:
            return
        handle = self.handle()
        for_store, for_model = self.resolve(number, Call("watch", (prefix, handle)))
        observed = self.client(number).call("watch", *for_store.args)
        expected = self.outcome(self.model, Call("watch", (*for_model.args, number)))
        self.count("watch", expected)
        self.expect(observed, expected, f"watch {prefix}")

    @step(index=indexes, ends=st.sampled_from([False, False, False, True]))
    def read_a_watch(self, index: int, ends: bool) -> None:
        handles = sorted(self.model.watches)
        if handles:
            self.read_events(handles[index % len(handles)], ends)

    def read_events(self, handle: int, ends: bool) -> None:
        watch = self.model.watches[handle]
        client = self.client(watch.client)
        kind, events = client.call("events", handle, len(watch.expected))
        assert kind == "ok", events
        self.world.count["events", "ok"] += len(events)
        self.world.count["events", "resync"] += sum(event[0] == "resync" for event in events)
        wrong = watch.explain(events, self.model.versions)
        assert not wrong, f"the watch of {watch.prefix}: {wrong}"
        if ends:
            assert client.call("let_go", handle)[0] == "ok"
            del self.model.watches[handle]

    def last_words(self, number: int) -> None:
        for handle in [h for h, watch in self.model.watches.items() if watch.client == number]:
            self.read_events(handle, ends=True)

    # -- streams ----------------------------------------------------------------------------------

    @step(
        writer=clients,
        follower=clients,
        path=operations.paths,
        pieces=st.lists(operations.nonempty, min_size=1, max_size=4),
        seen=st.integers(1, 4),
        other=clients,
        meanwhile=st.none() | CHANGES,
        fate=st.sampled_from(["close", "close", "discard", "kill"]),
    )
    def follow_a_stream(
        self,
        writer: int,
        follower: int,
        path: Any,
        pieces: list[Value],
        seen: int,
        other: int,
        meanwhile: Call | None,
        fate: str,
    ) -> None:
        """A follower sees what was flushed, then the rest or that it was discarded, whatever became
        of the path meanwhile."""
        stream, reader = self.handle(), self.handle()
        if fate == "kill" and (writer == follower or writer not in PROCESSES):
            return
        for_store, for_model = self.resolve(writer, Call("put", (path, b"")))
        here, there = for_store.args[0], for_model.args[0]
        data = [piece.data for piece in pieces]
        copy = self.model.copy()
        whole = Call("write_file", (there, "wb", data, "close"))
        theirs = self.as_seen_by(follower, there)
        if theirs is None or self.outcome(copy, whole)[0] != "ok":
            return
        self.must(writer, "begin_stream", here, stream)
        for piece in data[:seen]:
            self.must(writer, "stream", stream, piece)
        self.must(follower, "follow", theirs, reader)
        shown = b"".join(data[:seen])
        observed = self.client(follower).call("follow_on", reader, len(shown))
        self.expect(observed, ("ok", shown), f"what was flushed of {path}")
        if meanwhile is not None:
            self.do(other, meanwhile)
        if self.outcome(self.model.copy(), whole)[0] != "ok":  # nor can more be shown there
            data = data[:seen]
            whole = Call("write_file", (there, "wb", data, "close"))
        for piece in data[seen:]:
            self.must(writer, "stream", stream, piece)
        expected: Any = ("error", "discarded")
        if fate == "kill":
            client = self.client(writer)
            self.end_of(writer, client.kill)
            self.clients[writer] = None
            self.model.session_ends(writer)
        else:
            observed = self.client(writer).call("end_stream", stream, fate)
            expected = self.outcome(self.model, whole) if fate == "close" else ("ok", None)
            self.expect(observed, expected, f"the end of the stream at {path}")
        self.count(f"stream_{fate}", expected)
        rest: Any = ("error", "DataLostError")
        if fate == "close" and expected[0] == "ok":
            rest = ("ok", b"".join(data[seen:]))
        self.expect(self.client(follower).call("follow_on", reader, -1), rest, f"the rest: {fate}")
        self.client(follower).call("let_go", reader)

    def must(self, number: int, name: str, *args: Any) -> None:
        kind, result = self.client(number).call(name, *args)
        assert kind == "ok", f"{name} by {number}: {brief(result)}"

    def as_seen_by(self, number: int, path: str) -> str | None:
        """How this client calls an absolute path; None if it cannot."""
        namespace = CLIENTS[number].get("namespace", "")
        if not namespace:
            return path
        return path.removeprefix(namespace) if path.startswith(f"{namespace}/") else None

    # -- barriers and waits -------------------------------------------------------------------

    @step(
        who=st.lists(processes, min_size=1, max_size=4, unique=True),
        path=operations.paths,
        fate=st.sampled_from(["all come", "all come", "one is missing", "one is killed"]),
    )
    def meet_at_a_barrier(self, who: list[int], path: Any, fate: str) -> None:
        _, for_model = self.resolve(who[0], Call("barrier", (path,)))
        there = for_model.args[0]
        who = [number for number in who if self.as_seen_by(number, there) is not None]
        if not who:
            return
        if fate == "one is killed" and len(who) < 2:
            fate = "one is missing"
        members = len(who) + (fate != "all come")
        expected = self.outcome(self.model, Call("barrier", (there, members)))
        self.count(f"barrier, {fate}", (expected[0], expected[1]))
        if expected[0] == "error":
            observed = self.enter(who[0], there, members, GIVE_UP)
            self.expect(observed.receive(), expected, f"barrier {path}")
            return
        barrier = expected[1]
        patience = GIVE_UP if fate == "one is missing" else JOIN_PATIENCE
        waiting = [self.enter(number, there, members, patience) for number in who]
        if fate == "all come":
            barrier.rounds += 1
            expected = ("ok", barrier.rounds)
        elif fate == "one is missing":
            expected = ("error", "DeadlineError")
        else:
            before = self.world.numbers
            self.world.until("all wait", lambda: before()["waiters"] == len(who))
            self.end_of(who[0], waiting.pop(0).kill)
            self.clients[who[0]] = None
            self.model.session_ends(who[0])
            barrier.broken = True
            expected = ("error", "BarrierBrokenError")
        for client in waiting:
            self.expect(client.receive(), expected, f"barrier {path}: {fate}")

    def enter(self, number: int, path: str, members: int, timeout: float) -> Process:
        client: Process = self.client(number)
        client.send("barrier", self.as_seen_by(number, path), members, timeout)
        return client

    @step(
        waiter=processes, number=clients, path=operations.paths, value=operations.values,
        absent=st.booleans(),
    )  # fmt: skip
    def wait_for_another(
        self, waiter: int, number: int, path: Any, value: Value, absent: bool
    ) -> None:
        """One waits until a value is there, or until nothing is; another sees to it."""
        for_store, for_model = self.resolve(number, Call("put", (path, value)))
        there = for_model.args[0]
        theirs = self.as_seen_by(waiter, there)
        node = self.model.find(there)
        if waiter == number or theirs is None or (node is None) == absent:
            return
        does = Call("rmtree", (there,)) if absent else Call("put", (there, value.data))
        if self.outcome(self.model.copy(), does)[0] != "ok":
            return
        client = self.client(waiter)
        self.client(number)
        if absent:
            client.send("wait", theirs, absent=True, timeout=JOIN_PATIENCE)
        else:
            client.send("get", theirs, wait=JOIN_PATIENCE)
        self.world.until("it waits", lambda: self.world.numbers()["waiters"] == 1)
        observed = self.client(number).call(does.name, for_store.args[0], *does.args[1:])
        expected = self.outcome(self.model, does)
        self.expect(observed, expected, does)
        self.expect(client.receive(), ("ok", None if absent else value.data), f"a wait for {path}")
        self.count("wait", expected)

    # -- eviction ----------------------------------------------------------------------------------

    def evictable(self) -> list[str]:
        """What may go when space is short, in the order of the commits."""
        found = [
            (node.committed, path)
            for path, node in self.model.nodes()
            if node.evictable and node.size > INLINE_MAX
        ]
        return [path for _, path in sorted(found)]

    @step()
    def fill_the_store(self) -> None:
        """What is evictable goes, the oldest commit of a server first, and nothing else; and as
        long as there is any, there is space."""
        admin, value, count = self.world.admin, Value(FILL_BYTES, 0), 0
        servers = {path: admin.locations(path)[0][0] for path in self.evictable()}
        free = self.world.numbers()["granules_free"]
        while left := self.evictable():
            call = Call("put", (f"{FILL}/{count}", value.data), (("stripe", 2),))
            observed = admin.call("put", *call.args, stripe=2, wait_space=SPACE_PATIENCE)
            self.went(left, servers)
            if observed == ("error", "OutOfSpaceError"):
                assert not self.evictable(), f"no space, and there is {self.evictable()}"
                break
            self.expect(observed, self.outcome(self.model, call), "a put into a full store")
            count += 1
        if count:
            assert admin.call("rmtree", FILL)[0] == "ok"
            self.model.rmtree(FILL)
            self.world.until("space", lambda: self.world.numbers()["granules_free"] >= free)

    def went(self, before: list[str], servers: dict[str, int]) -> None:
        """Takes what was evicted out of the model."""
        infos = self.world.admin.call("stat_many", before)[1]
        gone = [path for path, info in zip(before, infos, strict=True) if info == ("ok", None)]
        for path in gone:
            older = before[: before.index(path)]
            stay = [p for p in older if servers[p] == servers[path] and p not in gone]
            assert not stay, f"{path} went before {stay}"
        self.world.count["evicted", "ok"] += len(gone)
        self.model.evict(gone)
