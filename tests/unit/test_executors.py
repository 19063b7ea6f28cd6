"""A pool's decisions, without processes; its frames; how calls travel."""

from __future__ import annotations

import copyreg
import pickle
import random
import types

import pytest

from crailpy.client.compute.executors import calls, frames, scheduling
from crailpy.client.compute.executors.failures import RemoteError, RemoteTraceback
from crailpy.errors import InvalidArgumentError, ProtocolError

from .. import chores


class World:
    """What a scheduler does, written down."""

    def __init__(self) -> None:
        self.told: list[tuple[scheduling.Driver, int, int]] = []  # driver, kind, task
        self.given: list[tuple[scheduling.Executor, int, int]] = []  # executor, kind, task
        self.forked: list[scheduling.Executor] = []
        self.killed: list[scheduling.Executor] = []
        self.asked = 0  # for executors
        self.room = 1000  # for executors
        self.now = 0.0

    def tell(self, driver: scheduling.Driver, frame: bytes, *, later: bool = False) -> None:
        for kind, _, task, _ in frames.Reader().feed(frame):
            if kind != frames.RUNNING:
                self.told.append((driver, kind, task))

    def order(self, executor: scheduling.Executor, frame: bytes) -> None:
        for kind, _, task, _ in frames.Reader().feed(frame):
            self.given.append((executor, kind, task))

    def fork(self, executor: scheduling.Executor) -> str | None:
        self.asked += 1
        if len(self.forked) >= self.room:
            return "no room"
        self.forked.append(executor)
        return None

    def kill(self, executor: scheduling.Executor) -> None:
        self.killed.append(executor)


def pool(workers: int) -> tuple[World, scheduling.Scheduler]:
    world = World()
    scheduler = scheduling.Scheduler(world, workers)
    scheduler.fill()
    for executor in world.forked:
        scheduler.ready(executor, executor.number)
    return world, scheduler


def driver(
    scheduler: scheduling.Scheduler, attempts: int = 3, speculate: float | None = None
) -> scheduling.Driver:
    found = scheduling.Driver(1, b"", attempts, speculate)
    scheduler.come(found)
    return found


def runs(world: World) -> list[int]:
    return [task for _, kind, task in world.given if kind == frames.RUN]


def test_an_executor_has_one_task_at_a_time() -> None:
    world, scheduler = pool(2)
    one = driver(scheduler)
    for number in range(4):
        scheduler.submit(one, number, b"")
    assert runs(world) == [0, 1]
    scheduler.answered(world.given[-1][0], frames.DONE, 1, b"")
    assert runs(world) == [0, 1, 2]


def test_drivers_share_executors_evenly_and_keep_theirs() -> None:
    world, scheduler = pool(2)
    one, other = driver(scheduler), driver(scheduler)
    for number in range(10):
        scheduler.submit(one, number, b"")
    for number in range(100, 110):
        scheduler.submit(other, number, b"")
    for _ in range(10):
        for executor in list(scheduler.executors.values()):
            if executor.task is not None:
                scheduler.answered(executor, frames.DONE, executor.task.number, b"")
    halves = [n >= 100 for n in runs(world)]
    assert sum(halves) == 10
    assert sum(halves[:8]) in (3, 4)
    contexts = sum(kind == frames.CONTEXT for _, kind, _ in world.given)
    assert contexts <= 4, "an executor stays with its driver while it can"


def test_one_executor_serves_two_drivers_in_turn() -> None:
    world, scheduler = pool(1)
    one, other = driver(scheduler), driver(scheduler)
    for number in range(4):
        scheduler.submit(one, number, b"")
        scheduler.submit(other, 100 + number, b"")
    executor = world.forked[0]
    for _ in range(8):
        assert executor.task is not None
        scheduler.answered(executor, frames.DONE, executor.task.number, b"")
    assert [n >= 100 for n in runs(world)] == [False, True] * 4


def test_a_result_that_was_received_counts_though_its_executor_dies() -> None:
    world, scheduler = pool(1)
    one = driver(scheduler)
    scheduler.submit(one, 7, b"")
    scheduler.answered(world.forked[0], frames.DONE, 7, b"")
    scheduler.died(world.forked[0], "killed")
    scheduler.ready(world.forked[1], 2)
    assert world.told == [(one, frames.DONE, 7)]
    assert runs(world) == [7]


def test_a_task_goes_first_when_its_executor_died_and_is_lost_at_last() -> None:
    world, scheduler = pool(1)
    one = driver(scheduler, attempts=2)
    scheduler.submit(one, 1, b"")
    scheduler.submit(one, 2, b"")
    for life in range(2):
        scheduler.died(world.forked[life], "killed")
        scheduler.ready(world.forked[life + 1], life)
    assert runs(world) == [1, 1, 2]
    assert world.told == [(one, frames.LOST, 1)]


def looked_for(attempts: int) -> tuple[World, scheduling.Scheduler, scheduling.Driver]:
    """A pool of one, whose first executor died after it had said where task 1 commits."""
    world, scheduler = pool(1)
    one = driver(scheduler, attempts)
    scheduler.submit(one, 1, b"")
    scheduler.committing(world.forked[0], 0, 1, b"there")
    scheduler.died(world.forked[0], "killed")
    scheduler.ready(world.forked[1], 2)
    assert world.given[-1] == (world.forked[1], frames.LOOK, 1)
    return world, scheduler, one


def test_what_a_dead_executor_has_committed_is_found_and_not_run_again() -> None:
    world, scheduler, one = looked_for(attempts=1)
    scheduler.answered(world.forked[1], frames.DONE, 1, b"")
    assert runs(world) == [1]
    assert world.told == [(one, frames.DONE, 1)]
    assert {n: scheduler.counts[n] for n in ("done", "found", "repeated")} == {
        "done": 1, "found": 1, "repeated": 0,
    }  # fmt: skip


@pytest.mark.parametrize("attempts", [1, 2])
def test_what_it_has_not_committed_is_run_again_as_often_as_it_may(attempts: int) -> None:
    world, scheduler, one = looked_for(attempts)
    scheduler.answered(world.forked[1], frames.MISSING, 1, b"")
    assert runs(world) == [1] * attempts
    assert world.told == ([] if attempts == 2 else [(one, frames.LOST, 1)])


@pytest.mark.parametrize("attempts", [1, 2])
def test_who_dies_looking_leaves_it_to_the_next_and_not_for_ever(attempts: int) -> None:
    world, scheduler, one = looked_for(attempts)
    for life in range(1, 1 + scheduling.LOOKS_MAX):
        assert world.given[-1] == (world.forked[life], frames.LOOK, 1)
        scheduler.died(world.forked[life], "killed")
        scheduler.ready(world.forked[life + 1], life)
    assert world.told == ([(one, frames.LOST, 1)] if attempts == 1 else [])
    assert runs(world) == [1] * attempts


def test_where_an_attempt_commits_is_looked_at_when_it_has_died_whatever_others_said() -> None:
    world, scheduler = pool(2)
    one = driver(scheduler, attempts=2, speculate=1e-9)
    scheduler.submit(one, 1, b"")
    first = world.given[-1][0]
    scheduler.committing(first, 0, 1, b"there")
    scheduler.act()
    second = world.given[-1][0]
    scheduler.answered(second, frames.MISSING, 1, b"")
    assert runs(world) == [1, 1], "a second attempt of what is slow"
    scheduler.committing(second, 0, 1, b"of a task of another driver, by a thread that it left")
    assert second.words is None
    scheduler.died(second, "killed")
    assert [kind for *_, kind, _ in world.given] == [
        frames.CONTEXT, frames.RUN, frames.LOOK, frames.CONTEXT, frames.RUN,
    ]  # fmt: skip
    scheduler.died(first, "killed")
    scheduler.ready(world.forked[-1], 9)
    assert world.given[-1] == (world.forked[-1], frames.LOOK, 1)
    scheduler.answered(world.forked[-1], frames.MISSING, 1, b"")
    assert world.told == [(one, frames.LOST, 1)]


def slow_in_its_commit(
    workers: int = 2, attempts: int = 3
) -> tuple[World, scheduling.Scheduler, scheduling.Driver, list[scheduling.Executor]]:
    """A task that has said where it commits, and for which another executor looks there; those two
    first."""
    world, scheduler = pool(workers)
    one = driver(scheduler, attempts, speculate=1e-9)
    scheduler.submit(one, 1, b"")
    first = world.given[-1][0]
    scheduler.committing(first, 0, 1, b"there")
    scheduler.act()
    second = world.given[-1][0]
    assert world.given[-1] == (second, frames.LOOK, 1)
    assert second is not first
    return world, scheduler, one, [first, second]


def test_what_a_slow_executor_has_committed_is_not_begun_again() -> None:
    world, scheduler, one, (first, second) = slow_in_its_commit()
    scheduler.answered(second, frames.DONE, 1, b"")
    assert runs(world) == [1]
    assert world.told == [(one, frames.DONE, 1)]
    assert world.killed == [first]
    assert (scheduler.counts["found"], scheduler.counts["repeated"]) == (1, 0)


def test_what_it_has_not_committed_yet_is_begun_by_who_looked() -> None:
    world, scheduler, one, (first, second) = slow_in_its_commit()
    scheduler.answered(second, frames.MISSING, 1, b"")
    assert world.given[-1] == (second, frames.RUN, 1)
    assert (first.attempt, second.attempt) == (0, 1)
    scheduler.answered(second, frames.DONE, 1, b"")
    assert world.told == [(one, frames.DONE, 1)]


def test_who_dies_after_it_was_looked_for_is_looked_for_once_more() -> None:
    world, scheduler, _, (first, second) = slow_in_its_commit()
    scheduler.died(first, "killed, behind its commit")
    scheduler.answered(second, frames.MISSING, 1, b"")
    assert world.given[-1] == (second, frames.LOOK, 1)
    scheduler.answered(second, frames.DONE, 1, b"")
    assert runs(world) == [1]


def failed_beside_a_slow_commit(
    workers: int = 2,
) -> tuple[World, scheduling.Scheduler, scheduling.Driver, list[scheduling.Executor]]:
    """The second attempt began, and has failed; perhaps because the first has committed since."""
    world, scheduler, one, both = slow_in_its_commit(workers)
    scheduler.answered(both[1], frames.MISSING, 1, b"")
    scheduler.answered(both[1], frames.FAILED, 1, b"there is a value already")
    assert world.given[-1] == (both[1], frames.LOOK, 1)
    assert not world.told
    return world, scheduler, one, both


@pytest.mark.parametrize(
    ("found", "told"), [(frames.DONE, frames.DONE), (frames.MISSING, frames.FAILED)]
)
def test_a_failure_beside_a_slow_commit_counts_if_nothing_was_committed(
    found: int, told: int
) -> None:
    world, scheduler, one, (first, second) = failed_beside_a_slow_commit()
    scheduler.answered(second, found, 1, b"")
    assert world.told == [(one, told, 1)]
    assert world.killed == [first]
    assert runs(world) == [1, 1]
    assert one.running == 0


def test_a_failure_is_not_forgotten_when_those_die_that_look_whether_it_counts() -> None:
    world, scheduler, one, (_, second) = failed_beside_a_slow_commit()
    looker = second
    for _ in range(scheduling.LOOKS_MAX):
        assert world.given[-1] == (looker, frames.LOOK, 1)
        scheduler.died(looker, "killed")
        looker = world.forked[-1]
        scheduler.ready(looker, 9)
        scheduler.act()
    assert world.told == [(one, frames.FAILED, 1)]
    assert runs(world) == [1, 1]


def test_a_failure_that_nobody_else_can_be_the_cause_of_counts_at_once() -> None:
    world, scheduler = pool(2)
    one = driver(scheduler)
    scheduler.submit(one, 1, b"")
    scheduler.committing(world.given[-1][0], 0, 1, b"there")
    scheduler.answered(world.given[-1][0], frames.FAILED, 1, b"")
    assert world.told == [(one, frames.FAILED, 1)]


def test_who_has_died_when_its_look_is_heard_of_begins_nothing() -> None:
    world, scheduler, _, (_, second) = slow_in_its_commit(attempts=2)
    scheduler.gone_quiet(second)
    scheduler.answered(second, frames.MISSING, 1, b"")
    scheduler.died(second, "killed")
    assert runs(world) == [1]


def test_it_is_looked_wherever_dead_attempts_were_about_to_commit() -> None:
    world, scheduler, _, (first, second) = slow_in_its_commit(workers=3)
    scheduler.answered(second, frames.MISSING, 1, b"")
    scheduler.committing(second, 1, 1, b"elsewhere")
    scheduler.died(first, "killed")
    scheduler.died(second, "killed")
    third = world.given[-1][0]
    assert third.places == [b"there", b"elsewhere"]
    scheduler.answered(third, frames.MISSING, 1, b"")
    assert world.given[-1] == (third, frames.LOOK, 1)
    scheduler.answered(third, frames.DONE, 1, b"")
    assert runs(world) == [1, 1]


def test_a_second_attempt_that_waits_for_an_executor_is_none_too_many() -> None:
    world, scheduler = pool(1)
    one = driver(scheduler, attempts=2, speculate=1e-9)
    scheduler.submit(one, 1, b"")
    scheduler.died(world.forked[0], "killed")
    scheduler.ready(world.forked[1], 2)
    assert runs(world) == [1, 1]
    scheduler.act()  # it is queued for another attempt beside this one
    scheduler.died(world.forked[1], "killed")
    scheduler.ready(world.forked[2], 3)
    assert runs(world) == [1, 1]
    assert world.told == [(one, frames.LOST, 1)]


def test_what_a_stale_executor_was_given_is_not_cancelled() -> None:
    """Its driver is told that it runs; that it does not, nobody says."""
    world, scheduler = pool(1)
    one = driver(scheduler)
    scheduler.submit(one, 1, b"")
    scheduler.answered(world.forked[0], frames.STALE, 1, b"")
    scheduler.cancel(one, 1)
    assert world.told == [(one, frames.KEPT, 1)]


def test_cancelled_is_only_what_nobody_was_given() -> None:
    world, scheduler = pool(1)
    one = driver(scheduler)
    for number in (1, 2):
        scheduler.submit(one, number, b"")
        scheduler.cancel(one, number)
    scheduler.answered(world.forked[0], frames.DONE, 1, b"")
    assert runs(world) == [1]
    assert [(kind, n) for _, kind, n in world.told] == [
        (frames.KEPT, 1), (frames.CANCELLED, 2), (frames.DONE, 1),
    ]  # fmt: skip


def test_retiring_begins_with_the_idle_and_lets_others_finish() -> None:
    world, scheduler = pool(3)
    one = driver(scheduler)
    scheduler.submit(one, 1, b"")
    busy = world.given[0][0]
    scheduler.scale(1)
    assert sum(kind == frames.LEAVE for _, kind, _ in world.given) == 2
    assert not busy.is_retiring
    scheduler.scale(2)
    scheduler.ready(world.forked[-1], 9)
    scheduler.submit(one, 2, b"")
    scheduler.scale(1)
    retiring = next(e for e in scheduler.executors.values() if e.is_retiring and e.task is not None)
    scheduler.scale(2)
    assert not retiring.is_retiring, "it is taken back before another is forked"
    assert len(world.forked) == 4
    assert not world.killed


def test_one_that_retires_leaves_after_its_task() -> None:
    world, scheduler = pool(2)
    one = driver(scheduler)
    scheduler.submit(one, 1, b"")
    scheduler.submit(one, 2, b"")
    scheduler.scale(1)
    leaver = next(e for e in scheduler.executors.values() if e.is_retiring)
    assert leaver.task is not None
    scheduler.answered(leaver, frames.DONE, leaver.task.number, b"")
    assert world.given[-1] == (leaver, frames.LEAVE, 0)
    scheduler.died(leaver, "ended")
    assert len(world.forked) == 2


def test_the_first_result_of_two_attempts_ends_the_other() -> None:
    world, scheduler = pool(2)
    one = driver(scheduler, speculate=1e-9)
    scheduler.submit(one, 1, b"")
    scheduler.act()
    scheduler.act()
    assert runs(world) == [1, 1], "two at once at most"
    slow, fast = (e for e, kind, _ in world.given if kind == frames.RUN)
    scheduler.answered(fast, frames.DONE, 1, b"")
    assert world.killed == [slow]
    scheduler.answered(slow, frames.DONE, 1, b"")
    scheduler.died(slow, "killed")
    assert world.told == [(one, frames.DONE, 1)]
    assert scheduler.counts["deaths"] == 0


def test_a_second_attempt_that_does_not_begin_takes_no_number_from_another() -> None:
    world, scheduler = pool(3)
    one = driver(scheduler, speculate=1e-9)
    scheduler.submit(one, 1, b"")
    scheduler.act()
    first, second = (e for e, kind, _ in world.given if kind == frames.RUN)
    scheduler.answered(first, frames.STALE, 1, b"")  # it had been paused, say
    assert one.running == 1, "the second has it"
    scheduler.act()
    assert runs(world) == [1, 1, 1]
    third = world.given[-1][0]
    assert (second.attempt, third.attempt) == (1, 2)


def test_a_task_that_waits_for_its_second_attempt_is_not_queued_twice() -> None:
    world, scheduler = pool(1)
    one = driver(scheduler, speculate=1e-9)
    scheduler.submit(one, 1, b"")
    scheduler.act()
    scheduler.answered(world.forked[0], frames.STALE, 1, b"")
    scheduler.scale(3)
    for executor in world.forked[1:]:
        scheduler.ready(executor, 9)
    assert runs(world) == [1, 1], "one that did not begin, and one"


def test_second_attempts_that_die_come_to_an_end_though_the_first_hangs() -> None:
    world, scheduler = pool(2)
    one = driver(scheduler, attempts=3, speculate=1e-9)
    scheduler.submit(one, 1, b"")
    slow = world.given[0][0]
    for _ in range(20):
        scheduler.act()
        for executor in list(scheduler.executors.values()):
            if executor.task is not None and executor is not slow:
                scheduler.died(executor, "killed")
            elif not executor.is_ready:
                scheduler.ready(executor, 9)
    assert runs(world) == [1] * 4
    assert not world.told, "the first may still bring a result"
    scheduler.died(slow, "killed")
    assert world.told == [(one, frames.LOST, 1)]


def test_what_was_cancelled_does_not_pile_up() -> None:
    _, scheduler = pool(1)
    one = driver(scheduler)
    scheduler.submit(one, 0, b"")
    for number in range(1, 10_000):
        scheduler.submit(one, number, b"")
        if number % 100:
            scheduler.cancel(one, number)
    assert len(one.queue) <= scheduling.QUEUE_MAX
    assert sum(not task.is_done for task in one.queue) == 99


def test_who_is_taken_back_has_forgotten_drivers_that_went_meanwhile() -> None:
    world, scheduler = pool(1)
    one, other = driver(scheduler), driver(scheduler)
    scheduler.submit(one, 1, b"")
    scheduler.answered(world.forked[0], frames.DONE, 1, b"")
    scheduler.submit(other, 2, b"")
    scheduler.scale(2)
    scheduler.ready(world.forked[1], 9)
    scheduler.scale(1)
    scheduler._retire(world.forked[0])
    scheduler.gone(one)
    assert world.given[-1] == (world.forked[0], frames.FORGET, one.number)


def test_no_second_attempt_unless_the_driver_wants_it() -> None:
    world, scheduler = pool(2)
    scheduler.submit(driver(scheduler), 1, b"")
    assert scheduler.next_due() is None
    scheduler.act()
    assert runs(world) == [1]


def test_what_a_driver_had_goes_with_it() -> None:
    world, scheduler = pool(1)
    one, other = driver(scheduler), driver(scheduler)
    for number in range(3):
        scheduler.submit(one, number, b"")
    scheduler.submit(other, 9, b"")
    scheduler.gone(one)
    assert world.killed == [world.forked[0]]
    scheduler.ready(world.forked[1], 2)
    scheduler.died(world.forked[0], "killed")
    assert runs(world) == [0, 9]
    assert not world.told


def test_a_stale_executor_is_replaced_and_its_task_not_counted() -> None:
    world, scheduler = pool(1)
    one = driver(scheduler)
    scheduler.submit(one, 1, b"")
    scheduler.answered(world.forked[0], frames.STALE, 1, b"")
    scheduler.ready(world.forked[1], 2)
    assert [(kind, n) for e, kind, n in world.given if e is world.forked[1]] == [
        (frames.CONTEXT, 1), (frames.RUN, 1),
    ]  # fmt: skip
    assert world.forked[1].attempt == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world that has the time as well."""
    world = World()
    monkeypatch.setattr(scheduling, "time", types.SimpleNamespace(monotonic=lambda: world.now))
    return world


def test_executors_that_do_not_come_up_are_not_forked_without_end(clock: World) -> None:
    clock.now = 100.0
    scheduler = scheduling.Scheduler(clock, 1)
    scheduler.fill()
    scheduler.died(clock.forked[0], "no memory")
    scheduler.act()
    assert len(clock.forked) == 1
    assert scheduler.next_due() is not None


def test_an_executor_that_does_not_leave_when_it_is_told_to_is_ended(clock: World) -> None:
    scheduler = scheduling.Scheduler(clock, 2)
    scheduler.fill()
    stays, goes = clock.forked
    for executor in clock.forked:
        scheduler.ready(executor, executor.number)
    one = driver(scheduler)
    scheduler.submit(one, 0, b"")
    busy = clock.given[-1][0]
    scheduler.scale(0)
    idle = goes if busy is stays else stays
    assert scheduler.next_due() == scheduling.LEAVE_S, "who has a task is waited for"
    clock.now = scheduling.LEAVE_S - 1
    scheduler.act()
    assert clock.killed == []
    clock.now += 1
    scheduler.act()
    scheduler.act()
    assert clock.killed == [idle]
    assert scheduler.next_due() is None
    scheduler.answered(busy, frames.DONE, 0, b"")
    assert scheduler.next_due() == clock.now + scheduling.LEAVE_S
    for executor in (idle, busy):
        scheduler.died(executor, "")
    assert (scheduler.next_due(), clock.killed) == (None, [idle])
    assert scheduler.counts["deaths"] == 0


def test_where_there_is_no_room_it_asks_less_and_less_often_and_says_why(clock: World) -> None:
    scheduler = scheduling.Scheduler(clock, 1)
    clock.room, clock.now = 3, 100.0
    scheduler.scale(100)
    assert (len(clock.forked), clock.asked) == (3, 4)
    facts = scheduler.facts()
    assert (facts["workers"], facts["wanted"], facts["trouble"]) == (3, 100, "no room")
    rests = []
    for _ in range(7):
        scheduler.act()  # too early
        due = scheduler.next_due()
        assert due is not None
        rests.append(due - clock.now)
        clock.now = due
        scheduler.act()
    assert rests == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert clock.asked == 4 + 7
    clock.room = 1000
    scheduler.act()
    assert clock.asked == 4 + 7, "it rests"
    clock.now += scheduling.REST_S_MAX
    scheduler.act()
    assert (len(clock.forked), scheduler.next_due()) == (100, None)
    assert scheduler.facts()["trouble"] is None


def test_several_that_do_not_come_up_together_are_one_reason_to_rest(clock: World) -> None:
    scheduler = scheduling.Scheduler(clock, 10)
    clock.now = 100.0
    scheduler.fill()
    for executor in clock.forked[:]:
        scheduler.died(executor, "no memory")
    assert scheduler.next_due() == 100.0 + scheduling.REST_S


def test_the_place_of_one_that_ends_is_taken_at_once_though_there_is_no_other(
    clock: World,
) -> None:
    scheduler = scheduling.Scheduler(clock, 1)
    clock.room, clock.now = 3, 100.0
    scheduler.scale(100)
    for executor in clock.forked:
        scheduler.ready(executor, 1)
    clock.room = 4
    scheduler.died(clock.forked[0], "killed")
    assert len(clock.forked) == 4


def test_random_histories_lose_nothing_and_finish_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever dies, is cancelled or scaled: every task ends exactly once."""
    monkeypatch.setattr(scheduling, "REST_S", 0.0)
    for seed in range(100):
        rng = random.Random(seed)
        world, scheduler = pool(rng.randint(1, 4))
        drivers = [driver(scheduler, 99, rng.choice([None, 1e-9])) for _ in range(3)]
        submitted: list[tuple[scheduling.Driver, int]] = []
        for number in range(60):
            step(rng, world, scheduler, drivers, submitted, number)
        for _ in range(200):
            scheduler.act()
            assert all(len(t.runners) <= 2 for d in scheduler.drivers for t in d.tasks.values())
            for executor in list(scheduler.executors.values()):
                if not executor.is_ready:
                    scheduler.ready(executor, 0)
                elif executor.is_condemned:
                    scheduler.died(executor, "killed")
                elif executor.task is not None:
                    scheduler.answered(executor, frames.DONE, executor.task.number, b"")
        ended = [(d, task) for d, kind, task in world.told if kind in (*ENDS, frames.CANCELLED)]
        alive = [(d, task) for d, task in submitted if d in scheduler.drivers]
        assert sorted(task for _, task in ended) == sorted({task for _, task in ended}), seed
        assert set(alive) <= set(ended), seed
        assert all(d.running == 0 for d in scheduler.drivers), seed


ENDS = (frames.DONE, frames.FAILED)


def step(rng, world, scheduler, drivers, submitted, number) -> None:
    executors = list(scheduler.executors.values())
    there = [d for d in drivers if d in scheduler.drivers]
    what = rng.random()
    if what < 0.45:
        submitted.append((rng.choice(there), number))
        scheduler.submit(*submitted[-1], b"")
    elif what < 0.55 and submitted:
        chosen = rng.choice(submitted)
        if chosen[0] in there:
            scheduler.cancel(*chosen)
    elif what < 0.6:
        scheduler.scale(rng.randint(1, 5))
    elif what < 0.7 and executors:
        scheduler.died(rng.choice(executors), "killed")
    elif what < 0.72 and len(there) > 1:
        scheduler.gone(rng.choice(there))
    elif what < 0.76:
        scheduler.act()
    elif what < 0.85 and executors:
        executor = rng.choice(executors)
        if executor.task is not None and executor.is_looking:
            scheduler.answered(executor, frames.MISSING, executor.task.number, b"")
        elif executor.task is not None:
            scheduler.committing(executor, executor.attempt, executor.task.number, b"there")
    else:
        for executor in executors:
            if not executor.is_ready:
                scheduler.ready(executor, 0)
            elif executor.task is not None and rng.random() < 0.5:
                kind = frames.DONE if executor.is_looking else rng.choice(ENDS)
                scheduler.answered(executor, kind, executor.task.number, b"")


# ---- frames -------------------------------------------------------------------------------------


def test_frames_come_whole_however_they_are_cut() -> None:
    sent = [(kind, kind * 3, kind << 40, b"x" * (kind * 7)) for kind in range(20)]
    data = b"".join(frames.pack(kind, task, count, body) for kind, count, task, body in sent)
    rng = random.Random(1)
    reader, found, at = frames.Reader(), [], 0
    while at < len(data):
        size = rng.randint(1, 40)
        found += reader.feed(data[at : at + size])
        at += size
    assert found == sent


def test_a_frame_that_is_too_long_is_refused_on_both_sides() -> None:
    with pytest.raises(ProtocolError):
        frames.pack(1, body=b"x" * (frames.BODY_BYTES_MAX + 1))
    with pytest.raises(ProtocolError):
        frames.Reader().feed(b"\xff" * 17)


# ---- calls --------------------------------------------------------------------------------------


def travelled(obj: object) -> object:
    space = calls.Space(lambda: None, "")
    return space.unwrap(space.wrap(obj, "name", "something"))


def test_functions_travel_by_reference_or_by_cloudpickle() -> None:
    assert travelled(chores.add) is chores.add
    assert travelled(lambda: 5)() == 5  # type: ignore[operator]


def test_without_cloudpickle_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_cloudpickle", lambda: None)
    with pytest.raises(InvalidArgumentError, match=r"lambda.*install cloudpickle"):
        travelled(lambda: 5)


def test_what_is_large_says_what_to_do_without_a_store() -> None:
    assert travelled(b"x" * 3900) == b"x" * 3900
    with pytest.raises(InvalidArgumentError, match=r"something of 50\d\d bytes.*store="):
        travelled(b"x" * 5000)


def test_an_exception_that_does_not_come_back_comes_in_words() -> None:
    error = calls.unwrap_error(calls.wrap_error(chores.Stubborn(1, 2)))
    assert isinstance(error, RemoteError)
    assert "Stubborn: just one" in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert pickle.loads(pickle.dumps(error)).message == error.message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (chores.Changeling(), "Changeling"),
        (chores.Wordless(1, 2), "its str() failed"),
    ],
)
def test_an_exception_that_is_odd_comes_in_words(error: Exception, words: str) -> None:
    found = calls.unwrap_error(calls.wrap_error(error))
    assert isinstance(found, RemoteError)
    assert words in str(found)


def test_an_exception_that_cannot_be_changed_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Dask, once imported, has every exception's attributes set when it is unpickled.
    monkeypatch.delitem(copyreg.dispatch_table, chores.Frozen, raising=False)
    error = calls.unwrap_error(calls.wrap_error(chores.Frozen(5)))
    assert isinstance(error, chores.Frozen)
    assert error.args == (5,)
    assert isinstance(error.__cause__, RemoteTraceback)


def test_whatever_pickling_raises_is_a_typed_error() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for unsendable in (chores.Unwilling(), deep):
        with pytest.raises(InvalidArgumentError, match="cannot be sent"):
            travelled(unsendable)
    while deep:
        deep = deep.pop()  # type: ignore[assignment]


def test_an_endless_traceback_is_cut() -> None:
    error = calls.unwrap_error(calls.wrap_error(ValueError("x" * 10_000_000)))
    assert len(str(error.__cause__)) < 2 * calls.TRACEBACK_CHARACTERS_MAX
