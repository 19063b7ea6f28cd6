"""The executor pool while executors, drivers and its service die, pause, come and go."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

import crailpy
from crailpy import errors
from crailpy.client.compute.executors import (
    PoolLostError,
    TaskLostError,
    contexts,
    frames,
    home,
)
from crailpy.client.compute.executors.driver import PoolExecutor

from .. import chores
from ..integration.kit import Program, until
from ..pools import is_gone, pids, settled
from ..stopping import stop


def runners(folder: Path, name: object, count: int = 1) -> list[int]:
    """Who has begun the task, when so many have."""
    until(lambda: len(chores.noted(folder, name)) >= count)
    return chores.noted(folder, name)


def template_of(pool: PoolExecutor) -> int:
    """The process that forks its executors."""
    executor = next(iter(pids(pool)))
    words = Path(f"/proc/{executor}/stat").read_text().rpartition(")")[2].split()
    return int(words[1])


# ---- executors ----------------------------------------------------------------------------------


def test_the_task_of_a_killed_executor_is_run_again_and_no_other(fresh, tmp_path):
    settled(fresh, 2)
    done = [fresh.submit(chores.work, str(tmp_path), n, 0) for n in range(20)]
    assert [f.result(60) for f in done] == [n * n for n in range(20)]
    held = [fresh.submit(chores.hold, str(tmp_path), name) for name in ("a", "b", "c")]
    (victim,) = runners(tmp_path, "a")
    os.kill(victim, signal.SIGKILL)
    assert len({victim, *runners(tmp_path, "a", 2)}) == 2, "it runs again, and elsewhere"
    assert is_gone(victim)
    (tmp_path / "go").touch()
    assert [f.result(60) for f in held] == ["a", "b", "c"]
    assert [len(chores.noted(tmp_path, n)) for n in ("a", "b", "c", *range(20))] == [2] + [1] * 22
    assert fresh.submit(chores.about).result(60)[1] == 0
    tasks = fresh.status()["tasks"]
    assert (tasks["repeated"], tasks["deaths"], tasks["lost"]) == (1, 1, 0)


def test_what_the_task_of_a_killed_executor_had_started_ends_with_it(fresh, tmp_path):
    fresh.submit(chores.hold_with_a_child, str(tmp_path), "held")
    (victim,) = runners(tmp_path, "held")
    (child,) = chores.noted(tmp_path, "child")
    service = fresh.status()["pid"]
    stop(service)  # whether or not it hears of the death in time to say so
    try:
        os.kill(victim, signal.SIGKILL)
        until(lambda: is_gone(child))
    finally:
        os.kill(service, signal.SIGCONT)
    assert len(runners(tmp_path, "held", 2)) == 2


TALKATIVE = """
import os, signal, socket
from crailpy.client.compute.executors import template

def narrow(*args):
    both = pair(*args)
    for end in both:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    return both

signal.alarm(50)
pair, template.WARM = socket.socketpair, ()
socket.socketpair = narrow
ours, pid = template.start()
socket.socketpair = pair
for number in range(30):
    end, theirs = pair()
    end.close()  # the executor finds that nobody is there
    socket.send_fds(ours, [template.ORDER.pack(b"F", number)], [theirs.fileno()])
    theirs.close()
news = [ours.recv(template.NEWS.size)[:1] for _ in range(60)]
os.kill(pid, signal.SIGKILL)
print(news.count(b"S"), news.count(b"E"))
"""


def test_orders_to_the_template_do_not_wait_for_its_news_to_be_heard():
    """Both would wait for ever: the service for room for its orders, the template for its news."""
    with Program(TALKATIVE) as program:
        assert program.line() == "30 30"


ANOTHERS = """
import os, signal, socket
from crailpy.client.compute.executors import template, worker

def run(sock):
    signal.alarm(50)  # a fork has none of its parent's
    signal.pause()

signal.alarm(50)
worker.main, template.die_with_parent = run, lambda *args: None
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if pid == 0:
    ours.close()
    one = template.Template(theirs)
    one._fork(1, socket.socketpair()[1].detach())
    os.setuid(65534)  # the executor stays root's, as one that has become so by an exec
    one.serve()
    os._exit(0)
theirs.close()
_, _, executor = template.NEWS.unpack(ours.recv(template.NEWS.size))
ours.send(template.ORDER.pack(b"K", 1))
end, fd = socket.socketpair()
socket.send_fds(ours, [template.ORDER.pack(b"F", 2)], [fd.fileno()])
word, number, other = template.NEWS.unpack(ours.recv(template.NEWS.size))
for ended in (pid, executor, other):
    os.kill(ended, signal.SIGKILL)
print(word.decode(), number)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_executor_that_it_may_not_kill_is_no_end_of_the_template():
    with Program(ANOTHERS) as program:
        assert program.line() == "S 2"


@pytest.mark.parametrize(("dies", "runs", "found"), [("before", 2, 0), ("behind", 1, 1)])
def test_what_was_committed_is_not_run_again_though_nobody_was_told(
    fresh, cluster, tmp_path, dies, runs, found
):
    with cluster.connect() as store, crailpy.executors("tests", store=store) as pool:
        path = "/concluded"
        future = pool.submit(chores.commit_and_die, str(tmp_path), path, dies)
        assert future.result(60) == b"the result"
        assert len(chores.noted(tmp_path, "run")) == runs
        assert pool.status()["tasks"]["found"] == found
        assert pool.status()["tasks"]["deaths"] == 1
        store.delete(path)
        with pytest.raises(errors.InvalidArgumentError, match="of 4096 that travel"):
            pool.submit(chores.commit_too_much, path).result(60)


def test_where_it_cannot_be_looked_the_task_is_run_again(fresh):
    assert fresh.submit(chores.commit_nowhere_and_die).result(60) == 1


def test_a_task_that_kills_its_executors_is_lost_in_the_end(pool):
    future = pool.submit(chores.leave, 3)
    with pytest.raises(TaskLostError, match=r"exit code 3 .* the 3\. time"):
        future.result(60)
    assert isinstance(future.exception(), concurrent.futures.BrokenExecutor)
    assert pool.submit(chores.add, 1, 1).result(60) == 2
    with crailpy.executors("tests", attempts=1) as once:
        with pytest.raises(TaskLostError, match=r"the 1\. time"):
            once.submit(chores.leave, 0).result(60)
        with pytest.raises(TaskLostError):
            once.submit(chores.close_everything).result(60)
        with pytest.raises(SystemExit):  # that is no death, as in the standard library
            once.submit(sys.exit, 3).result(60)


def test_a_signal_without_a_name_is_the_end_of_one_executor(pool):
    service = pool.status()["pid"]
    with crailpy.executors("tests", attempts=1) as once:
        number = signal.SIGRTMIN + 6
        for signal_number, name in ((signal.SIGKILL, "SIGKILL"), (number, f"signal {number}")):
            with pytest.raises(TaskLostError, match=f"was ended by {name} "):
                once.submit(chores.die_by, signal_number).result(60)
    assert pool.status()["pid"] == service


@pytest.mark.parametrize(
    "data",
    [frames.pack(99), frames.pack(frames.REFUSED), b"\xff" * 64],
    ids=["unknown", "not an executor's", "endless"],
)
def test_who_says_what_no_executor_says_is_ended_alone(pool, data):
    service = pool.status()["pid"]
    with crailpy.executors("tests", attempts=1) as once, pytest.raises(TaskLostError):
        once.submit(chores.say_instead, data).result(30)
    assert pool.submit(chores.add, 1, 1).result(60) == 2
    assert pool.status()["pid"] == service


def test_a_paused_executor_does_not_stop_the_others(pool, tmp_path):
    held = pool.submit(chores.hold, str(tmp_path), 0)
    (paused,) = runners(tmp_path, 0)
    stop(paused)
    (tmp_path / "go").touch()
    assert list(pool.map(chores.add, range(50))) == list(range(50))
    assert not held.done()
    os.kill(paused, signal.SIGCONT)
    assert held.result(60) == 0
    assert len(chores.noted(tmp_path, 0)) == 1, "nobody tried it elsewhere"


def test_its_task_is_tried_elsewhere_when_the_driver_wants_that(fresh, tmp_path):
    with crailpy.executors("tests", speculate=0.1) as eager:
        held = eager.submit(chores.hold, str(tmp_path), 0)
        paused, *_ = runners(tmp_path, 0)  # it may have been tried elsewhere by then
        stop(paused)
        other = next(pid for pid in runners(tmp_path, 0, 2) if pid != paused)
        (tmp_path / "go").touch()
        assert held.result(60) == 0
        until(lambda: is_gone(paused))
        assert other in settled(eager, 2)
        assert eager.status()["tasks"]["deaths"] == 0


@pytest.mark.parametrize("when", ["before the look", "while another tries"])
def test_what_a_paused_executor_has_committed_is_the_result(runtime, cluster, tmp_path, when):
    """It is not run again; nor does what comes second fail, because there is a value already."""
    path, is_before = "/paused", when == "before the look"
    with (
        cluster.connect() as store,
        crailpy.executors("tests", workers=1, store=store, speculate=0.05) as pool,
    ):
        settled(pool, 1)
        future = pool.submit(chores.commit_and_pause, str(tmp_path), path)
        if is_before:
            (tmp_path / "go").touch()
            runners(tmp_path, "committed")
        runners(tmp_path, "said")
        pool.scale(2)  # now there is somebody else
        if not is_before:
            runners(tmp_path, "said", 2)
            (tmp_path / "go").touch()
        assert future.result(60) == b"the result"
        assert len(chores.noted(tmp_path, "said")) == (1 if is_before else 2)
        assert len(chores.noted(tmp_path, "committed")) == 1
        tasks = pool.status()["tasks"]
        assert (tasks["found"], tasks["deaths"]) == (1, 0)
        settled(pool, 2)
        store.delete(path)


def test_scaling_in_lets_what_runs_finish(fresh, tmp_path):
    held = [fresh.submit(chores.hold, str(tmp_path), n) for n in range(2)]
    both = {runners(tmp_path, n)[0] for n in range(2)}
    fresh.scale(1)
    assert pids(fresh) < both, "one is retiring"
    (tmp_path / "go").touch()
    assert [f.result(60) for f in held] == [0, 1]
    settled(fresh, 1)
    assert sum(is_gone(pid) for pid in both) == 1
    assert fresh.status()["tasks"]["repeated"] == 0


def test_a_job_goes_on_from_1_to_8_to_2_executors_with_one_killed_and_one_paused(runtime, tmp_path):
    count = 400
    with crailpy.executors("tests", workers=1, speculate=5.0) as pool:
        halves = range(count // 2), range(count // 2, count)
        jobs = [pool.submit(chores.work, str(tmp_path), n, 0.01) for n in halves[0]]

        def done() -> int:
            return sum(f.done() for f in jobs)

        until(lambda: done() > 10)
        pool.scale(8)
        many = settled(pool, 8)
        until(lambda: done() > 60)
        held = pool.submit(chores.hold, str(tmp_path), "held")
        until(lambda: done() > 120)
        early = [n for n, job in enumerate(jobs) if job.done()]
        killed, paused = sorted(many)[:2]
        os.kill(killed, signal.SIGKILL)
        stop(paused)
        # it is given one of these, if none of the first: who is idle is the first to leave
        jobs += [pool.submit(chores.work, str(tmp_path), n, 0.01) for n in halves[1]]
        until(lambda: done() > 200)
        pool.scale(2)
        (tmp_path / "go").touch()
        assert [f.result(60) for f in jobs] == [n * n for n in range(count)]
        assert held.result(60) == "held"
        settled(pool, 2)
        tasks = pool.status()["tasks"]
        begun = sum(len(chores.noted(tmp_path, n)) for n in (*range(count), "held"))
        assert [len(chores.noted(tmp_path, n)) for n in early] == [1] * len(early)
        assert tasks["done"] == count + 1, "every task has ended once"
        assert begun <= count + 1 + tasks["repeated"]
        assert 1 <= tasks["repeated"] <= 8, "what the killed and the paused had, or what was slow"


def test_what_executors_said_counts_when_the_service_hears_of_their_deaths_first(fresh, tmp_path):
    """Two die while it does not look, one of them after its answer; others wait."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    held = fresh.submit(chores.hold, str(folders[0]), 0)
    answered = fresh.submit(chores.hold_and_die, str(folders[1]), 1)
    (one,), (other,) = runners(folders[0], 0), runners(folders[1], 1)
    queued = [fresh.submit(chores.add, n) for n in range(20)]
    service = fresh.status()["pid"]
    stop(service)
    os.kill(one, signal.SIGKILL)
    until(lambda: is_gone(one))
    for folder in folders:
        (folder / "go").touch()
    until(lambda: is_gone(other))
    os.kill(service, signal.SIGCONT)
    assert answered.result(60) == 1
    assert held.result(60) == 0
    assert [f.result(60) for f in queued] == list(range(20))
    assert fresh.status()["pid"] == service
    assert len(chores.noted(folders[1], 1)) == 1


def test_delays_of_years_are_no_end_of_the_service(runtime):
    with crailpy.executors("tests", workers=1, speculate=1e300, timeout=1e300) as pool:
        assert pool.submit(chores.add, 1, 1).result(60) == 2
        service = pool.status()["pid"]
        assert pool.submit(chores.add, 1, 2).result(60) == 3
        assert pool.status()["pid"] == service


@contextlib.contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """The process can have no descriptor more."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # the standard ones
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("who", ["service", "template"])
def test_executors_for_which_there_is_no_room_come_later_and_disturb_nobody(fresh, tmp_path, who):
    settled(fresh, 2)
    held = fresh.submit(chores.hold, str(tmp_path), 0)
    runners(tmp_path, 0)
    service = fresh.status()["pid"]
    with without_descriptors(service if who == "service" else template_of(fresh)):
        fresh.scale(4)
        until(lambda: fresh.status()["trouble"] == os.strerror(errno.EMFILE))
        facts = fresh.status()
        assert facts["wanted"] == 4
        assert facts["pid"] == service
        assert fresh.submit(chores.add, 1, 1).result(60) == 2
    settled(fresh, 4)
    assert fresh.status()["trouble"] is None
    (tmp_path / "go").touch()
    assert held.result(60) == 0
    assert fresh.status()["tasks"]["repeated"] == 0


def cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_driver_for_which_there_is_no_descriptor_waits_and_the_service_does_not_spin(fresh):
    service = fresh.status()["pid"]
    hello = frames.pack(
        frames.HELLO, body=msgpack.packb({"version": frames.VERSION, "context": b""})
    )
    with socket.socket(socket.AF_UNIX) as sock:
        with without_descriptors(service):
            sock.connect(home.Home("tests").socket)
            sock.sendall(hello)
            sock.settimeout(0.5)
            before = cpu_seconds(service)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            assert cpu_seconds(service) - before < 0.2
            assert fresh.submit(chores.add, 1, 1).result(60) == 2
        sock.settimeout(20)
        ((kind, *_),) = frames.Reader().feed(sock.recv(4096))
        assert kind == frames.WELCOME


def test_scaling_leaves_descriptors_for_drivers(runtime):
    code = (
        "import resource, crailpy; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "pool = crailpy.executors('tests', workers=1); pool.scale(100)\n"
        "facts = pool.status(); print(facts['workers'], flush=True); input()"
    )
    with Program(code) as program:
        assert 20 < int(program.line()) < 64
        others = [crailpy.executors("tests") for _ in range(5)]
        assert [other.submit(chores.add, n).result(60) for n, other in enumerate(others)] == [
            0, 1, 2, 3, 4,
        ]  # fmt: skip
        others[0].scale(1)
        for other in others:
            other.shutdown()


# ---- drivers ------------------------------------------------------------------------------------

DRIVER = """
import sys, crailpy
from tests import chores
pool = crailpy.executors("tests")
futures = [pool.submit(chores.hold, sys.argv[1], f"theirs{n}") for n in range(3000)]
while not futures[0].running():
    pass
print("running", flush=True)
sys.stdin.readline()
"""


def test_a_killed_driver_takes_its_tasks_along_and_disturbs_nobody(pool, tmp_path):
    mine = pool.submit(chores.hold, str(tmp_path), "mine")
    (my_runner,) = runners(tmp_path, "mine")
    with Program(DRIVER, tmp_path) as other:
        assert other.line() == "running"
        (their_runner,) = runners(tmp_path, "theirs0")
        queued = [pool.submit(chores.add, n) for n in range(20)]
        other.kill()
    assert [f.result(60) for f in queued] == list(range(20)), "on what ran the other's task"
    until(lambda: is_gone(their_runner))
    assert not is_gone(my_runner)
    (tmp_path / "go").touch()
    assert mine.result(60) == "mine"
    facts = pool.status()
    assert [d["pid"] for d in facts["drivers"]] == [os.getpid()]
    assert len(list(tmp_path.glob("theirs*"))) == 1, "nothing of what was queued has begun"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # that we have a thread
def test_a_forked_child_has_a_connection_of_its_own(pool, tmp_path):
    held = pool.submit(chores.hold, str(tmp_path), 0)
    until(held.running)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = pool.submit(chores.add, 40, 2).result(30)
            code += held.cancel()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    (tmp_path / "go").touch()
    assert held.result(60) == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_under_locks_and_its_parent_do_not_mix_their_arguments(runtime):
    with (
        crailpy.LocalCluster(dram="64MiB") as cluster,
        cluster.connect() as store,
        crailpy.executors("tests", workers=1, store=store) as pool,
    ):
        assert pool.submit(bytes.__len__, bytes(9000)).result(60) == 9000
        blocker = pool.submit(time.sleep, 0.0)
        link = pool._link
        with pool._lock, link._lock:  # as of another thread, which the child has not
            child = os.fork()
            if child == 0:
                forked_child(pool)
        ours = [pool.submit(bytes.count, b"p" * 9000, b"p") for _ in range(50)]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [f.result(60) for f in ours] == [9000] * 50
        assert blocker.result(60) is None
        assert pool.submit(bytes.__len__, bytes(9000)).result(60) == 9000


def forked_child(pool: PoolExecutor) -> None:
    code = 1
    signal.alarm(30)
    try:
        theirs = [pool.submit(bytes.count, b"c" * 9001, b"c") for _ in range(50)]
        assert [f.result(20) for f in theirs] == [9001] * 50
        pool.shutdown()
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(code)


def test_what_a_killed_driver_left_in_the_store_goes_with_its_session(runtime):
    with crailpy.LocalCluster(dram="64MiB", session_grace=0.2) as cluster:
        code = (
            "import sys, crailpy; store = crailpy.connect(sys.argv[1])\n"
            "pool = crailpy.executors('tests', workers=1, store=store)\n"
            "future = pool.submit(bytes.__len__, b'x' * 100_000); assert future.result(60)\n"
            "result = pool.submit(bytes, 1_000_000); result.result(60)\n"
            "store.put(store.session_path() + '/mark', b'x' * 5000)\n"
            "print('there', flush=True); sys.stdin.readline()"
        )
        with cluster.connect() as store, Program(code, cluster.address) as driver:
            assert driver.line() == "there"
            assert store.listdir("/sessions")
            driver.kill()
            until(lambda: not store.listdir("/sessions"))
            with crailpy.executors("tests", store=store) as pool:  # the executor is as good as new
                assert pool.submit(bytes, 9000).result(60) == bytes(9000)


# ---- the service --------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["service", "template"])
def test_when_the_service_dies_so_do_executors_and_the_next_call_has_another(pool, tmp_path, who):
    executors = settled(pool, 2)
    service = pool.status()["pid"]
    futures = [pool.submit(chores.hold, str(tmp_path), n) for n in range(2000)]
    runners(tmp_path, 0)
    os.kill(service if who == "service" else template_of(pool), signal.SIGKILL)
    killed_at = time.monotonic()
    for future in (futures[0], futures[100], futures[-1]):
        with pytest.raises(PoolLostError):
            future.result(10)
    assert time.monotonic() - killed_at < 5
    assert isinstance(futures[1].exception(10), concurrent.futures.BrokenExecutor)
    until(lambda: all(is_gone(pid) for pid in (service, *executors)))
    assert pool.submit(chores.add, 1, 1).result(60) == 2
    assert pool.status()["pid"] != service
    assert pool.submit(chores.about).result(60)[0] == 2001, "numbers go on"


def test_a_killed_service_cannot_hold_back_drivers_that_start_at_once(pool):
    os.kill(pool.status()["pid"], signal.SIGKILL)
    code = "import crailpy; print(crailpy.executors('tests').status()['pid'], flush=True); input()"
    programs = [Program(code) for _ in range(3)]
    try:
        assert len({program.line() for program in programs}) == 1
    finally:
        for program in programs:
            program.kill()
            program.__exit__()


def test_a_paused_service_is_a_deadline(runtime):
    with crailpy.executors("tests", workers=1) as pool:
        service = pool.status()["pid"]
        stop(service)
        try:
            with pytest.raises(errors.DeadlineError, match="does not answer"):
                crailpy.executors("tests", timeout=0.3)
            future = pool.submit(chores.add, 1, 1)
            with pytest.raises(TimeoutError):
                future.result(0.1)
        finally:
            os.kill(service, signal.SIGCONT)
        assert future.result(60) == 2


def test_what_lies_at_the_place_of_the_socket_is_no_hindrance(runtime):
    path = Path(home.Home("tests").socket)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with crailpy.executors("tests", workers=1) as pool:
        assert pool.submit(chores.add, 1, 1).result(60) == 2


def test_a_service_whose_files_were_removed_leaves_its_successor_alone(fresh):
    path = Path(home.Home("tests").socket)
    for name in path.parent.iterdir():
        name.unlink()
    first = fresh.status()["pid"]
    with crailpy.executors("tests", workers=1) as other:
        second = other.status()["pid"]
        assert second != first
        os.kill(first, signal.SIGTERM)
        until(lambda: is_gone(first))
        with crailpy.executors("tests") as third:
            assert third.status()["pid"] == second


def test_a_driver_that_does_not_read_holds_up_nobody(fresh):
    """Its results wait in the service; there are no more of them than it may have tasks."""
    request = {"context": contexts.describe(None, ""), "attempts": 1}
    sock, _ = home.Home("tests").connect(request, time.monotonic() + 10)
    with sock:
        call = fresh._space.wrap((bytes, (4000,), {}), "", "")
        for number in range(frames.WINDOW):
            sock.sendall(frames.pack(frames.SUBMIT, number, body=call))
        until(lambda: fresh.status()["tasks"]["done"] >= frames.WINDOW)
        assert fresh.submit(chores.add, 1, 1).result(60) == 2
        sock.sendall(frames.pack(frames.SUBMIT, 0, body=call))
        reader, found = frames.Reader(), 0
        while data := sock.recv(1 << 16):
            found += sum(kind == frames.DONE for kind, *_ in reader.feed(data))
            if found == frames.WINDOW + 1:
                break
        assert found == frames.WINDOW + 1
