"""Who runs what: the service's decisions, without any I/O.

    queued ──given──> running ──result──> done <──it is there── looked for
      ^                  │ its executor died                       ^  │ it is not
      │                  ├──────────in or after its commit?────────┘  │
      └──────────────────┴── fewer than `attempts` times, else lost ──┘

- An executor has one task, or none; it is given none ahead.
- A task is in its driver's `tasks` from its submit until the driver was told how it ended.
- A result that was received counts, whatever happens to its executor afterwards. So does what was
  committed, where the task had said where it would be: an executor looks there before it begins
  another attempt, whether the one that said so is dead or only slow, and before a failure counts
  beside it, which may be that there is a value already.
- With `speculate` a task can be with two executors at once. The first result ends the other.
- Who is retiring gets no task; who is condemned was told to die, and nothing it says counts.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import count

from . import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Protocol

    class Outside(Protocol):
        """What the scheduler wants of the world."""

        def tell(self, driver: Driver, frame: bytes, *, later: bool = False) -> None: ...
        def order(self, executor: Executor, frame: bytes) -> None: ...
        def fork(self, executor: Executor) -> str | None: ...  # why it cannot be had, in words
        def kill(self, executor: Executor) -> None: ...


WORKERS_MAX = 256
REST_S = 0.5
"""After an executor that could not be had, or died before it came up, as where memory is short."""
REST_S_MAX = 8.0
"""Each rest is twice as long as the one before, until an executor comes up."""
QUEUE_MAX = 2 * frames.WINDOW
"""Entries of a driver's queue before those are dropped that were cancelled."""
LOOKS_MAX = 3
"""So many executors may die looking for a task's commit: perhaps that is what they die of."""
LEAVE_S = 10.0
"""What an executor without a task has to come up if it has to, close its stores and end, before it
is ended: it may be stopped."""
RUNNING_TWICE = 2
"""At most so many attempts at a task at once."""


class Task:
    """One task of a driver."""

    __slots__ = (
        "attempts", "call", "deaths", "driver", "failure", "how", "is_begun", "is_done", "looks",
        "number", "queued", "runners", "words",
    )  # fmt: skip

    def __init__(self, driver: Driver, number: int, call: bytes) -> None:
        self.driver = driver
        self.number = number
        self.call = call
        self.attempts = 0  # begun so far
        self.deaths = 0
        self.how = ""  # the executor of the last attempt died, in words
        self.is_begun = False  # ever: its driver is told so, though no attempt may count
        self.words: list[bytes] = []  # where dead ones were about to commit, to be looked at
        self.looks = 0  # who died looking there
        self.failure: bytes | None = None  # what counts if nothing is there
        self.queued = False
        self.is_done = False
        self.runners: list[Executor] = []


class Driver:
    """One connection that submits tasks. `attempts`: how many deaths of executors make a task
    lost; `speculate`: seconds until a second attempt, None for never."""

    def __init__(self, pid: int, context: bytes, attempts: int, speculate: float | None) -> None:
        self.pid = pid
        self.number = 0
        self.context = context
        self.known_to: set[Executor] = set()  # who has its context, or had it
        self.attempts = attempts
        self.speculate = speculate
        self.tasks: dict[int, Task] = {}
        self.queue: deque[Task] = deque()  # those cancelled meanwhile are passed over
        self.running = 0  # executors that have a task of it
        self.served = 0  # when it was last given an executor, as a count
        self.done = 0


class Executor:
    """One process. `number`: what the template calls it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.is_ready = False
        self.is_retiring = False
        self.is_condemned = False
        self.is_gone = False
        self.places: list[bytes] = []  # where it looks for commits of others: it does not run it
        self.looked: set[bytes] = set()  # and has looked already
        self.deaths = 0  # of the task, when it began to look
        self.task: Task | None = None
        self.attempt = 0
        self.words: bytes | None = None  # where the task was about to commit (COMMITS)
        self.since = 0.0  # when it was given the task
        self.leaves_by: float | None = None  # when it was told to leave, and is ended
        self.context: Driver | None = None  # whose it has

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.task is None and self.is_staying and not self.is_gone

    @property
    def is_looking(self) -> bool:
        return bool(self.places)

    @property
    def is_staying(self) -> bool:
        return not (self.is_retiring or self.is_condemned)


class Scheduler:
    """The queues and the executors of a pool with `target` executors."""

    def __init__(self, outside: Outside, target: int) -> None:
        self._outside = outside
        self._numbers = count(1)
        self._driver_numbers = count(1)
        self._served = count(1)
        self._rest_until = 0.0  # 0: nothing is missing for want of rest
        self._rest_s = REST_S  # the next one
        self._trouble: str | None = None  # why there are fewer executors than wanted, in words
        self._eager = 0  # drivers that want second attempts
        self.target = target
        self.drivers: list[Driver] = []
        self.executors: dict[int, Executor] = {}
        names = ("done", "found", "repeated", "lost", "deaths", "forks", "stale")
        self.counts = dict.fromkeys(names, 0)

    # -- executors --------------------------------------------------------------------------------

    def scale(self, target: int) -> None:
        """Has `target` executors from here on: forks them now; retires first who is idle."""
        self.target = target
        self.fill()
        staying = [e for e in self.executors.values() if e.is_staying]
        staying.sort(key=lambda e: (e.task is not None, e.is_ready))
        for executor in staying[: max(0, len(staying) - target)]:
            self._retire(executor)
        self._dispatch()

    def fill(self) -> None:
        """Forks what is missing; takes back who is still retiring first. Rests after one that
        cannot be had, or did not come up: then next_due() says when to call this again."""
        for executor in self.executors.values():
            if self._missing() > 0 and executor.is_retiring and executor.task is not None:
                executor.is_retiring = False
        if self._rest_until:
            if time.monotonic() < self._rest_until:
                return
            self._rest_until = 0.0
        for _ in range(self._missing()):
            executor = Executor(next(self._numbers))
            why = self._outside.fork(executor)
            if why is not None:
                self._rest(why)
                return
            self.executors[executor.number] = executor
            self.counts["forks"] += 1

    def _rest(self, why: str) -> None:
        """Forks none for a while. What comes of several that were ordered at once is one rest."""
        self._trouble = why
        if self._rest_until > time.monotonic():
            return
        self._rest_until = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, REST_S_MAX)

    def _missing(self) -> int:
        return self.target - sum(e.is_staying for e in self.executors.values())

    def _retire(self, executor: Executor) -> None:
        executor.is_retiring = True
        if executor.task is None:
            executor.leaves_by = time.monotonic() + LEAVE_S
            self._outside.order(executor, frames.pack(frames.LEAVE))

    def _condemn(self, executor: Executor) -> None:
        """Ends it now: what it does is not wanted any more."""
        self._part(executor)
        executor.is_condemned, executor.leaves_by = True, None
        self._outside.kill(executor)

    def ready(self, executor: Executor, pid: int) -> None:
        """It has come up."""
        executor.pid = pid
        executor.is_ready = True
        self._rest_s = REST_S
        self._dispatch()

    def gone_quiet(self, executor: Executor) -> None:
        """It has ended. What it said before is still to be heard, and it gets no task for it."""
        executor.is_gone = True

    def died(self, executor: Executor, how: str) -> None:
        """It has ended, and nothing more comes of it. `how`, in words."""
        del self.executors[executor.number]
        for driver in self.drivers:
            driver.known_to.discard(executor)
        if executor.is_ready:
            self._rest_until = 0.0  # there is room for another now
        elif executor.is_staying:
            self._rest(how)
        task = self._part(executor)
        if task is not None:
            self.counts["deaths"] += 1
            if executor.words is not None:
                task.words.append(executor.words)
            if executor.is_looking:
                task.looks += 1
                if task.looks >= LOOKS_MAX:
                    task.words.clear()
            else:
                task.deaths += 1
                task.how = how
            self._again_or_lost(task)
        self.fill()
        self._dispatch()

    def _again_or_lost(self, task: Task) -> None:
        """Unless another is at it."""
        is_sought = task.looks < LOOKS_MAX and (task.words or task.runners)
        if task.failure is not None and not is_sought:
            self._conclude(task, task.failure)
            return
        if task.runners:
            return
        if task.words or task.deaths < task.driver.attempts:
            if not task.queued:
                self._queue_first(task)
            return
        words = f"{task.how} while it ran the task, the {task.deaths}. time"
        self.counts["lost"] += 1
        self._end(task, frames.pack(frames.LOST, task.number, task.deaths, words.encode()))

    # -- tasks ------------------------------------------------------------------------------------

    def submit(self, driver: Driver, number: int, call: bytes) -> None:
        """A new task."""
        if len(driver.queue) >= QUEUE_MAX:  # who cancels much, while nothing is taken from it
            driver.queue = deque(task for task in driver.queue if not task.is_done)
        task = Task(driver, number, call)
        driver.tasks[number] = task
        task.queued = True
        driver.queue.append(task)
        self._dispatch()

    def cancel(self, driver: Driver, number: int) -> None:
        """Takes a task back, if no executor has ever been given it."""
        task = driver.tasks.get(number)
        if task is None or task.is_begun:
            self._outside.tell(driver, frames.pack(frames.KEPT, number))
        else:
            self._end(task, frames.pack(frames.CANCELLED, number))

    def committing(self, executor: Executor, attempt: int, number: int, words: bytes) -> None:
        """COMMITS of what it runs."""
        task = executor.task
        if task is not None and (task.number, executor.attempt) == (number, attempt):
            executor.words = words

    def answered(self, executor: Executor, kind: int, number: int, body: bytes) -> None:
        """DONE or FAILED of what it ran, or STALE: it did not begin; of what it looked for DONE or
        MISSING."""
        task = executor.task  # none, of one that is condemned
        if task is None or task.number != number:
            return
        answer = frames.pack(kind, number, executor.attempt, body)
        if kind == frames.MISSING:
            self._missed(executor, task)
        elif kind == frames.STALE:
            self._part(executor)
            self._did_not_begin(executor, task)
        elif kind == frames.FAILED and not executor.is_looking and self._look(executor, task):
            task.failure = answer
        else:
            self._part(executor)
            self.counts["found"] += executor.is_looking
            self._conclude(task, answer)
        if executor.is_retiring and executor.task is None:
            self._retire(executor)
        self._dispatch()

    def _did_not_begin(self, executor: Executor, task: Task) -> None:
        self.counts["stale"] += 1
        if task.attempts == executor.attempt + 1:  # else a number would be used twice
            task.attempts -= 1
        if not task.runners and not task.queued:
            self._queue_first(task)
        executor.is_retiring = True
        self.fill()

    def _missed(self, executor: Executor, task: Task) -> None:
        """Nothing is where it looked. It looks at the next place; behind the last it may begin, or
        the failure counts that an attempt has had."""
        if not executor.is_looking or executor.is_gone:  # then another looks
            return
        executor.looked.add(executor.places.pop(0))
        if executor.is_looking:
            self._order_look(executor, task)
            return
        if task.deaths != executor.deaths:  # who has died since may have committed after it looked
            executor.looked.clear()
        if self._look(executor, task):
            return
        task.words.clear()
        if task.failure is None and task.deaths < task.driver.attempts:
            self._begin(executor, task)
            return
        self._part(executor)
        if task.failure is not None:
            self._conclude(task, task.failure)
        else:
            self._again_or_lost(task)

    def _conclude(self, task: Task, answer: bytes) -> None:
        self.counts["done"] += 1
        task.driver.done += 1
        self._end(task, answer)

    def _end(self, task: Task, news: bytes) -> None:
        """The last that its driver hears of it; other attempts at it end."""
        task.is_done = True
        del task.driver.tasks[task.number]
        self._outside.tell(task.driver, news)
        for executor in task.runners[:]:
            self._condemn(executor)
        self.fill()

    def _part(self, executor: Executor) -> Task | None:
        """The task that it had, and has no more."""
        task, executor.task = executor.task, None
        if task is not None:
            task.runners.remove(executor)
            task.driver.running -= 1
        return task

    def _queue_first(self, task: Task) -> None:
        task.queued = True
        task.driver.queue.appendleft(task)

    # -- drivers ----------------------------------------------------------------------------------

    def come(self, driver: Driver) -> None:
        """A driver more."""
        driver.number = next(self._driver_numbers)
        self.drivers.append(driver)
        self._eager += driver.speculate is not None

    def gone(self, driver: Driver) -> None:
        """Its tasks go with it, also those that run."""
        self.drivers.remove(driver)
        self._eager -= driver.speculate is not None
        for task in driver.tasks.values():
            task.is_done = True
        driver.tasks.clear()
        driver.queue.clear()
        for executor in list(self.executors.values()):
            if executor.task is not None and executor.task.driver is driver:
                self._condemn(executor)
            elif executor in driver.known_to and not executor.is_condemned:
                self._outside.order(executor, frames.pack(frames.FORGET, driver.number))
            if executor.context is driver:
                executor.context = None
        self.fill()
        self._dispatch()

    # -- giving -----------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Gives idle executors tasks, while there are both."""
        if not any(driver.queue for driver in self.drivers):
            return
        idle = [e for e in self.executors.values() if e.is_idle]
        while idle:
            task = self._next_task()
            if task is None:
                return
            driver = task.driver
            executor = next((e for e in idle if e.context is driver), idle[-1])
            idle.remove(executor)
            self._give(executor, task)

    def _next_task(self) -> Task | None:
        """Of the driver with the fewest running; among equals, of the one served longest ago."""
        best: Driver | None = None
        for driver in self.drivers:
            while driver.queue and driver.queue[0].is_done:
                driver.queue.popleft()
            if driver.queue and (
                best is None or (driver.running, driver.served) < (best.running, best.served)
            ):
                best = driver
        if best is None:
            return None
        task = best.queue.popleft()
        task.queued = False
        best.served = next(self._served)
        return task

    def _give(self, executor: Executor, task: Task) -> None:
        executor.task, executor.attempt = task, task.attempts
        executor.since = time.monotonic()
        executor.words = None
        executor.looked.clear()
        task.runners.append(executor)
        task.driver.running += 1
        if not self._look(executor, task):
            self._begin(executor, task)

    def _look(self, executor: Executor, task: Task) -> bool:
        """Has it look where other attempts were about to commit, unless it has; False: there is no
        such place."""
        words = [*task.words, *(e.words for e in task.runners if e is not executor)]
        places = dict.fromkeys(place for place in words if place is not None)
        executor.places = [place for place in places if place not in executor.looked]
        executor.deaths = task.deaths
        if executor.is_looking:
            self._order_look(executor, task)
        return executor.is_looking

    def _order_look(self, executor: Executor, task: Task) -> None:
        order = frames.pack(frames.LOOK, task.number, body=executor.places[0])
        self._outside.order(executor, order)

    def _begin(self, executor: Executor, task: Task) -> None:
        """Another attempt."""
        driver = task.driver
        executor.looked.clear()  # if it fails, all may have changed
        executor.attempt, executor.since = task.attempts, time.monotonic()
        order = frames.pack(frames.RUN, task.number, task.attempts, task.call)
        if executor.context is not driver:
            executor.context = driver
            driver.known_to.add(executor)
            order = frames.pack(frames.CONTEXT, driver.number, body=driver.context) + order
        news = frames.pack(frames.RUNNING, task.number, task.attempts)
        self.counts["repeated"] += task.attempts > 0
        task.attempts += 1
        task.is_begun = True
        self._outside.order(executor, order)
        self._outside.tell(driver, news, later=True)

    # -- second attempts --------------------------------------------------------------------------

    def _slow(self) -> Iterator[tuple[float, Task]]:
        """When a second attempt is due, of the tasks that may have one."""
        for executor in self.executors.values():
            task = executor.task
            if task is None or task.driver.speculate is None or task.queued:
                continue
            # after so many deaths only what runs already may still bring a result
            if (
                len(task.runners) < RUNNING_TWICE
                and task.deaths < task.driver.attempts
                and task.looks < LOOKS_MAX
            ):
                yield executor.since + task.driver.speculate, task

    def next_due(self) -> float | None:
        """When act() has something to do; None: as it looks, never."""
        dues = [e.leaves_by for e in self.executors.values() if e.leaves_by is not None]
        if self._eager:
            dues += [due for due, _ in self._slow()]
        if self._rest_until:
            dues.append(self._rest_until)
        return min(dues, default=None)

    def act(self) -> None:
        """Does what is due: second attempts of what runs too long, the end of those who should
        have left, forks after a rest."""
        now = time.monotonic()
        for executor in self.executors.values():
            if executor.leaves_by is not None and executor.leaves_by <= now:
                self._condemn(executor)
        for due, task in list(self._slow()):
            if due <= now:
                self._queue_first(task)
        self.fill()
        self._dispatch()

    # -- facts ------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What there is, for people."""
        now = time.monotonic()
        return {
            "workers": sum(e.is_staying for e in self.executors.values()),
            "wanted": self.target,
            "trouble": self._trouble if self._missing() > 0 else None,
            "tasks": self.counts,
            "drivers": [
                {
                    "pid": driver.pid,
                    "queued": len(driver.tasks)
                    - sum(bool(t.runners) for t in driver.tasks.values()),
                    "running": driver.running,
                    "done": driver.done,
                }
                for driver in self.drivers
            ],
            "executors": [
                {
                    "pid": e.pid,
                    "state": _state(e),
                    "driver": e.task.driver.pid if e.task else None,
                    "task": e.task.number if e.task else None,
                    "attempt": e.attempt if e.task else None,
                    "seconds": round(now - e.since, 3) if e.task else None,
                }
                for e in self.executors.values()
            ],
        }


def _state(executor: Executor) -> str:
    if executor.is_condemned:
        return "ending"
    if executor.is_retiring:
        return "retiring"
    if not executor.is_ready:
        return "starting"
    return "idle" if executor.task is None else "busy"
