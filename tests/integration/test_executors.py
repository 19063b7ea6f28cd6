"""The executor pool: the interface of concurrent.futures, over processes that drivers share."""

from __future__ import annotations

import concurrent.futures
import json
import os
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import msgpack
import pytest

import crailpy
from crailpy import errors
from crailpy.client import compute
from crailpy.client.compute.executors import PoolLostError, RemoteError, frames, home, task

from .. import chores
from ..pools import go, is_gone, pids, settled
from .kit import Program, until

ROOT = Path(__file__).parents[2]


def script(text: str, path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a Python script of this text, in a process of its own."""
    path.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# ---- the interface ------------------------------------------------------------------------------


def test_it_is_an_executor(pool):
    assert isinstance(pool, concurrent.futures.Executor)
    assert pool.submit(chores.add, 3, b=4).result(60) == 7
    assert pool.submit(chores.whoami).result(60) != os.getpid()
    assert list(pool.map(chores.add, range(20), range(100, 120))) == list(range(100, 140, 2))
    assert list(pool.map(chores.add, range(10), chunksize=4)) == list(range(10))
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(chores.add, [1], chunksize=0)


def test_wait_as_completed_and_callbacks_know_its_futures(pool):
    futures = [pool.submit(chores.add, n) for n in range(20)]
    called = []
    for future in futures:
        future.add_done_callback(lambda done: called.append(done.result()))
    assert {f.result() for f in concurrent.futures.as_completed(futures, 60)} == set(range(20))
    done, rest = concurrent.futures.wait(futures, 60)
    assert (len(done), len(rest)) == (20, 0)
    until(lambda: sorted(called) == list(range(20)))


def test_exceptions_come_back_with_the_traceback_that_they_had(pool):
    future = pool.submit(chores.fail, "a word")
    with pytest.raises(KeyError, match="a word") as caught:
        future.result(60)
    assert "in fail" in str(caught.value.__cause__)
    assert "chores.py" in str(caught.value.__cause__)
    with pytest.raises(KeyError):
        list(pool.map(chores.fail, ["x"]))
    with pytest.raises(RemoteError, match="Stubborn: just one"):
        pool.submit(chores.fail_stubbornly).result(60)
    frozen = pool.submit(chores.fail_oddly, "frozen").exception(60)
    assert (type(frozen), frozen.args) == (chores.Frozen, (5,))
    for kind in ("changeling", "wordless"):
        with pytest.raises(RemoteError, match=kind.capitalize()):
            pool.submit(chores.fail_oddly, kind).result(60)
    with pytest.raises(ModuleNotFoundError):
        pool.submit(__import__, "no_such_module").result(60)


def test_an_exception_that_raises_when_it_is_asked_comes_in_words_and_at_once(pool, tmp_path):
    future = pool.submit(chores.note_and_fail, str(tmp_path))
    with pytest.raises(RemoteError, match="Unaskable, which raises"):
        future.result(60)
    assert len(chores.noted(tmp_path, "run")) == 1


def test_running_and_cancel_are_exact(pool, tmp_path):
    held = [pool.submit(chores.hold, str(tmp_path), n) for n in range(2)]
    queued = [pool.submit(chores.hold, str(tmp_path), n) for n in range(2, 8)]
    until(lambda: all(f.running() for f in held))
    assert not any(f.running() for f in queued)
    assert [f.cancel() for f in held] == [False, False]
    assert all(f.cancel() for f in queued[:5])
    assert all(f.cancel() and f.cancelled() and f.done() for f in queued[:5]), "may be called twice"
    assert concurrent.futures.wait(queued[:5], 0).not_done == set()
    with pytest.raises(concurrent.futures.CancelledError):
        queued[0].result()
    go(tmp_path)
    assert [f.result(60) for f in [*held, queued[5]]] == [0, 1, 7]
    assert [len(chores.noted(tmp_path, n)) for n in range(8)] == [1, 1, 0, 0, 0, 0, 0, 1]
    assert not held[0].cancel()


def test_a_callback_may_cancel_submit_and_ask(pool, tmp_path):
    held = [pool.submit(chores.hold, str(tmp_path), n) for n in range(2)]
    queued = [pool.submit(chores.hold, str(tmp_path), n) for n in range(2, 12)]
    found = []

    def callback(done):
        found.append([f.cancel() for f in queued[2:]])
        found.append(pool.status()["workers"])
        found.append(pool.submit(chores.add, 1, 1))

    until(lambda: held[0].running())
    held[0].add_done_callback(callback)
    go(tmp_path)
    until(lambda: len(found) == 3)
    assert found[1] == 2
    assert found[2].result(60) == 2
    assert [f.cancelled() for f in queued[2:]] == found[0]
    for future, cancelled in zip(queued[2:], found[0], strict=True):
        assert cancelled or future.result(60)


@pytest.mark.parametrize("order", [1, -1], ids=["from the first", "from the last"])
def test_a_chain_of_callbacks_that_cancel_may_be_longer_than_a_stack(pool, tmp_path, order):
    """The first has been sent, its callbacks run in the executor's thread; the last has not been,
    they run in ours."""
    held = [pool.submit(chores.hold, str(tmp_path), n) for n in range(2)]
    until(lambda: all(f.running() for f in held))
    chain = [pool.submit(chores.add, n) for n in range(3 * sys.getrecursionlimit())][::order]
    called = []

    def cancel_the_next(done):
        called.append(done.cancelled())
        assert len(called) == len(chain) or chain[len(called)].cancel()

    for future in chain:
        future.add_done_callback(cancel_the_next)
    assert chain[0].cancel()
    assert concurrent.futures.wait(chain, 60).not_done == set()
    until(lambda: len(called) == len(chain))
    assert all(called)
    assert all(f.cancelled() for f in chain)
    go(tmp_path)
    pool.shutdown()
    assert [f.result(0) for f in held] == [0, 1]


def test_a_script_where_the_first_result_cancels_the_rest_ends(pool, tmp_path):
    done = script(
        """
        import crailpy
        pool = crailpy.executors("tests")
        futures = [pool.submit(abs, n) for n in range(300)]
        def first_wins(done):
            for other in futures:
                other.cancel()
        for future in futures:
            future.add_done_callback(first_wins)
        print(futures[0].result(60))
        """,
        tmp_path / "driver.py",
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_more_tasks_than_the_service_takes_wait_with_their_driver(pool, tmp_path):
    held = [pool.submit(chores.hold, str(tmp_path), n) for n in range(2)]
    count = 2 * frames.WINDOW
    rest = [pool.submit(chores.add, n) for n in range(count)]
    assert rest[-1].cancel()
    until(lambda: all(f.running() for f in held))
    facts = pool.status()["drivers"][0]
    assert facts["running"] + facts["queued"] == frames.WINDOW
    go(tmp_path)
    assert [f.result(60) for f in rest[:-1]] == list(range(count - 1))


def test_timeouts_of_result_and_map(pool, tmp_path):
    with pytest.raises(TimeoutError):
        pool.submit(chores.hold, str(tmp_path), 0).result(0.05)
    results = pool.map(chores.hold, [str(tmp_path)] * 5, range(1, 6), timeout=0.1)
    with pytest.raises(TimeoutError):
        next(results)
    until(lambda: pool.status()["drivers"][0]["queued"] == 0)  # what had not begun was cancelled
    go(tmp_path)


def test_a_map_that_is_late_cancels_also_the_task_that_it_waited_for(pool, tmp_path):
    held = [pool.submit(chores.hold, str(tmp_path), n) for n in range(2)]
    until(lambda: all(f.running() for f in held))
    with pytest.raises(TimeoutError):
        next(pool.map(chores.note, [str(tmp_path)], ["late"], timeout=0.05))
    go(tmp_path)
    assert [f.result(60) for f in held] == [0, 1]
    assert pool.submit(chores.add, 1).result(60) == 1, "whoever was before it has had its turn"
    assert chores.noted(tmp_path, "late") == []


def test_shutdown_waits_and_takes_nothing_more(runtime, tmp_path):
    pool = crailpy.executors("tests", workers=1)
    held = pool.submit(chores.hold, str(tmp_path), 0)
    queued = [pool.submit(chores.add, n) for n in range(3)]
    until(held.running)
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        pool.submit(chores.add, 1)
    with pytest.raises(errors.ClosedError):
        pool.map(chores.add, [1])
    go(tmp_path)
    assert held.result(60) == 0, "what was submitted is done, also without waiting"
    pool.shutdown()
    assert [f.result(0) for f in queued] == [0, 1, 2]
    again = tmp_path / "again"
    again.mkdir()
    with crailpy.executors("tests", workers=1) as pool:
        held = pool.submit(chores.hold, str(again), 1)
        queued = [pool.submit(chores.add, n) for n in range(3)]
        until(held.running)
        pool.shutdown(wait=False, cancel_futures=True)
        assert all(f.cancelled() for f in queued)
        go(again)


def test_a_task_knows_its_number_and_attempt(pool):
    numbers = [f.result(60) for f in [pool.submit(chores.about) for _ in range(3)]]
    assert numbers == [(0, 0), (1, 0), (2, 0)]
    assert chores.about() == (0, 0)
    assert compute.task is task
    assert compute.executors is not None


def test_a_task_may_use_the_pool(pool):
    assert pool.submit(chores.on_another, "tests").result(60) == 42


def test_executors_do_not_draw_the_same_numbers(pool):
    pool.scale(4)
    settled(pool, 4)
    assert len(set(pool.map(lambda _: chores.drawn(), range(40)))) == 40


def test_bad_arguments_are_refused_in_words(pool):
    for wrong in (
        {"name": "a/b"}, {"name": ""}, {"workers": 0}, {"workers": 100_000}, {"workers": True},
        {"attempts": 0}, {"attempts": 1 << 70}, {"speculate": 0}, {"speculate": float("inf")},
        {"speculate": "1"}, {"timeout": float("nan")}, {"timeout": -1}, {"timeout": None},
    ):  # fmt: skip
        with pytest.raises(errors.InvalidArgumentError):
            crailpy.executors(**wrong)
    for n in (0, -1, 1.5, 100_000):
        with pytest.raises(errors.InvalidArgumentError):
            pool.scale(n)
    with pytest.raises(errors.InvalidArgumentError, match=r"cannot be sent.*lock"):
        pool.submit(chores.add, threading.Lock())


@pytest.mark.parametrize("module", ["cloudpickle", None], ids=["there", "missing"])
def test_cloudpickle_is_asked_for_only_where_it_is_missing(pool, monkeypatch, module):
    if module is None:
        monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(errors.InvalidArgumentError, match=r"sent.*generator") as caught:
        pool.submit(list, (n for n in range(3)))
    assert ("install cloudpickle" in str(caught.value)) == (module is None)


def test_what_must_not_run_twice_gets_no_second_attempt(pool):
    with pytest.raises(errors.InvalidArgumentError, match="must not run twice"):
        crailpy.executors("tests", attempts=1, speculate=1.0)
    with crailpy.executors("tests", attempts=2, speculate=60) as eager:
        assert eager.submit(chores.add, 1, 1).result(60) == 2
    until(lambda: len(pool.status()["drivers"]) == 1)


def test_one_who_ends_the_thread_in_a_callback_ends_no_other_future(pool, tmp_path):
    futures = [pool.submit(chores.hold, str(tmp_path), n) for n in range(6)]
    called = []

    def leave(future):
        called.append(future)
        sys.exit("not from here")

    for future in futures:  # none is done yet: callbacks are called by the executor's thread
        future.add_done_callback(leave)
    go(tmp_path)
    assert [f.result(60) for f in futures] == list(range(6))
    until(lambda: len(called) == 6)
    assert pool.submit(chores.add, 1, 1).result(60) == 2


# ---- what tasks find ----------------------------------------------------------------------------


def test_a_task_runs_where_its_driver_is(pool, tmp_path, monkeypatch):
    assert pool.submit(chores.surroundings, "CRAILPY_TEST").result(60) == (os.getcwd(), None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAILPY_TEST", "here")
    with crailpy.executors("tests") as other:
        found = other.submit(chores.surroundings, "CRAILPY_TEST").result(60)
    assert found == (str(tmp_path), "here")


PROGRAM = """
    import sys, crailpy
    if len(sys.argv) > 1:
        sys.modules["cloudpickle"] = None
    class Pair:
        def __init__(self, one, two):
            self.one, self.two = one, two
    def swapped(pair):
        return Pair(pair.two, pair.one)
    if __name__ == "__main__":
        with crailpy.executors("tests", workers=1) as pool:
            pair = pool.submit(swapped, Pair(1, 2)).result(60)
            assert type(pair) is Pair
            print(pair.one, pair.two)
"""


@pytest.mark.parametrize("arguments", [[], ["without"]], ids=["cloudpickle", "by import"])
def test_functions_of_a_script_work(pool, tmp_path, arguments):
    done = script(PROGRAM, tmp_path / "driver.py", *arguments)
    assert (done.stdout, done.stderr) == ("2 1\n", "")


SHARING = """
    import sys, crailpy
    if len(sys.argv) > 2:
        sys.modules["cloudpickle"] = None
    class Pair:
        def __init__(self, one, two):
            self.one, self.two = one, two
    def sum_of(handle):
        assert type(handle.value) is Pair
        return handle.value.one + handle.value.two
    if __name__ == "__main__":
        with crailpy.connect(sys.argv[1]) as store, crailpy.executors("tests") as pool:
            handle = store.broadcast("/pair", Pair(1, 2))
            assert type(handle.value) is Pair
            print(pool.submit(sum_of, handle).result(60))
            handle.delete()
"""


@pytest.mark.parametrize("arguments", [[], ["without"]], ids=["cloudpickle", "by import"])
def test_tasks_read_broadcasts_of_what_the_script_has_defined(fresh, cluster, tmp_path, arguments):
    done = script(SHARING, tmp_path / "driver.py", cluster.address, *arguments)
    assert (done.stdout, done.stderr) == ("3\n", "")


CHILD = """
    import multiprocessing, sys, crailpy
    class Pair:
        def __init__(self, one, two):
            self.one, self.two = one, two
    def swapped(pair):
        return Pair(pair.two, pair.one)
    def child():
        if sys.argv[2:]:
            sys.modules["cloudpickle"] = None
        pool = crailpy.executors("tests", workers=1)
        pair = pool.submit(swapped, Pair(1, 2)).result(60)
        print(type(pair) is Pair, pair.one, pair.two)
    if __name__ == "__main__":
        process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
        process.start()
        process.join()
"""


@pytest.mark.parametrize("arguments", [[], ["without"]], ids=["cloudpickle", "by import"])
@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_functions_of_a_script_work_in_children_of_multiprocessing(
    runtime, tmp_path, way, arguments
):
    """In a pool of their own: executors of ours may have learned that there is no cloudpickle."""
    done = script(CHILD, tmp_path / "driver.py", way, *arguments)
    assert (done.stdout, done.stderr) == ("True 2 1\n", "")


def test_a_script_that_does_not_guard_itself_is_told(pool, tmp_path):
    done = script(PROGRAM.replace('if __name__ == "__main__"', "if True"), tmp_path / "s.py", "x")
    assert "belongs below `if __name__" in done.stderr


def test_without_a_script_cloudpickle_is_asked_for(pool):
    code = (
        "import sys, crailpy; sys.modules['cloudpickle'] = None\n"
        "def f(): pass\n"
        "crailpy.executors('tests').submit(f)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "define it in a module, or install cloudpickle" in done.stderr


def test_nobody_runs_yesterdays_code(runtime, tmp_path):
    """A module that was changed since an executor imported it has it replaced; otherwise the same
    processes serve the next driver."""
    driver = """
        import os, crailpy, crailpy_rules
        with crailpy.executors("tests", workers=1) as pool:
            print(pool.submit(crailpy_rules.rule).result(60), pool.submit(os.getpid).result(60))
    """
    rules = tmp_path / "crailpy_rules.py"
    found = []
    for text in ("first", "first", "second"):
        if not found or text != found[-1][0]:
            rules.write_text(f"def rule(): return {text!r}\n")
        done = script(driver, tmp_path / "driver.py")
        assert not done.stderr
        found.append(tuple(done.stdout.split()))
    (one, first), (two, second), (three, third) = found
    assert [one, two, three] == ["first", "first", "second"]
    assert first == second != third
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "crailpy_rules.py").write_text("def rule(): return 'other'\n")
    done = script(driver, tmp_path / "elsewhere" / "driver.py")
    assert done.stdout.split()[0] == "other"


def test_code_that_changed_while_the_first_task_ran_is_yesterdays_too(runtime, tmp_path):
    driver = """
        import sys, crailpy, crailpy_rules
        with crailpy.executors("tests", workers=1) as pool:
            print(pool.submit(crailpy_rules.rule, *sys.argv[1:]).result(60))
    """
    rules = tmp_path / "crailpy_rules.py"
    rules.write_text(
        "def rule(path):\n"
        "    with open(path, 'w') as file: file.write('def rule(): return 2')\n"
        "    return 1\n"
    )
    first = script(driver, tmp_path / "driver.py", rules)
    assert (first.stdout, first.stderr) == ("1\n", "")
    second = script(driver, tmp_path / "driver.py")
    assert (second.stdout, second.stderr) == ("2\n", "")


def test_a_module_that_raises_when_it_is_asked_costs_no_result(runtime, tmp_path):
    with crailpy.executors("tests", workers=1) as pool:
        first = pool.submit(chores.put_in_the_place_of_a_module, str(tmp_path)).result(60)
        assert pool.submit(chores.whoami).result(60) == first
        assert len(chores.noted(tmp_path, "run")) == 1
    with crailpy.executors("tests") as pool:
        assert pool.submit(chores.whoami).result(60) != first, "nobody can say what it is"


def test_limits_that_a_task_has_set_itself_are_not_those_of_the_next_driver(runtime):
    with crailpy.executors("tests", workers=1) as pool:
        first = pool.submit(chores.take_descriptors_away).result(60)
        assert pool.submit(chores.whoami).result(60) == first
        with crailpy.executors("tests") as other:
            assert other.submit(os.listdir, "/").result(60)
            assert other.submit(chores.whoami).result(60) != first


def test_the_log_is_shortened_while_drivers_stay(runtime):
    with crailpy.executors("tests", workers=1) as pool:
        (log,) = runtime.glob("*/pool-tests-*.log")
        assert pool.submit(chores.say, 9 << 20).result(60) == 9 << 20
        until(lambda: pool.submit(chores.add, 1).result(60) and log.stat().st_size < 8 << 20)


# ---- one pool, many drivers ---------------------------------------------------------------------

DRIVER = """
import os, sys, time, crailpy
begin = time.perf_counter()
pool = crailpy.executors("tests", workers=2)
found = {pool.submit(os.getpid).result(60) for _ in range(40)}
seconds = time.perf_counter() - begin
print(pool.status()["pid"], seconds, *found, flush=True)
sys.stdin.readline()
"""


def test_drivers_share_one_pool_and_the_second_pays_no_start(runtime):
    with Program(DRIVER) as first:
        service, _, *executors = first.line().split()
        with Program(DRIVER) as second:
            line = second.line().split()
            assert line[0] == service
            assert set(line[2:]) <= set(executors) | {str(p) for p in _pids(runtime)}
            with crailpy.executors("tests") as pool:
                assert len(pool.status()["drivers"]) == 3
                assert pool.status()["tasks"]["forks"] == 2, "nobody was started for the second"


def _pids(runtime):
    with crailpy.executors("tests") as pool:
        return pids(pool)


def test_drivers_that_start_at_once_get_one_service(runtime):
    programs = [Program(DRIVER) for _ in range(3)]
    try:
        assert len({program.line().split()[0] for program in programs}) == 1
    finally:
        for program in programs:
            with program:
                pass


def test_workers_are_at_least_so_many(pool):
    with crailpy.executors("tests", workers=1) as other:
        assert other.status()["workers"] == 2
    with crailpy.executors("tests", workers=3) as other:
        settled(other, 3)


# ---- who may use it -----------------------------------------------------------------------------


def test_the_socket_is_for_its_user_alone(pool):
    folder = Path(home.Home("tests").socket).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    sockets = [p for p in folder.iterdir() if p.suffix == ".sock"]
    assert [stat.S_IMODE(p.stat().st_mode) for p in sockets] == [0o600]
    folder.chmod(0o755)
    with pytest.raises(errors.AuthError, match="closed to others"):
        crailpy.executors("tests")
    folder.chmod(0o700)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused_though_the_files_would_let_it(fresh, runtime):
    path = home.Home("tests").socket
    folder = Path(path).parent
    for name, mode in ((str(runtime), 0o755), (str(folder), 0o755), (path, 0o777)):
        os.chmod(name, mode)
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        "s.connect(sys.argv[1]); s.settimeout(20); print(s.recv(1000))"
    )
    command = [sys.executable, "-S", "-c", code, path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "AUTH" in done.stdout, done.stderr
    os.chmod(folder, 0o700)


def test_what_is_no_driver_is_closed_and_disturbs_nobody(pool):
    path = home.Home("tests").socket
    hello = frames.pack(
        frames.HELLO, body=msgpack.packb({"version": frames.VERSION, "context": b""})
    )
    for data in (
        frames.pack(frames.STATUS) + hello,
        b"x" * 1000, frames.pack(frames.SUBMIT, 1), frames.pack(frames.HELLO, body=b"\xc1"),
        frames.pack(99), b"\xff" * 64,
    ):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.settimeout(20)
            sock.sendall(data)
            while sock.recv(4096):
                pass
    assert pool.submit(chores.add, 1, 1).result(60) == 2
    assert len(pool.status()["drivers"]) == 1


# ---- crailpy pool -------------------------------------------------------------------------------


def crail(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crailpy.cli", "pool", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_says_how_it_is_and_ends_it(fresh, tmp_path):
    held = fresh.submit(chores.hold, str(tmp_path), 0)
    until(held.running)
    settled(fresh, 2)
    facts = json.loads(crail("--name", "tests", "--status", "--json").stdout)
    assert [d["running"] for d in facts["drivers"]] == [1]
    assert sorted(e["state"] for e in facts["executors"]) == ["busy", "idle"]
    words = crail("--name", "tests", "--status").stdout
    assert f"{os.getpid()}: 0 queued, 1 running" in words
    again = crail("--name", "tests")
    assert (again.returncode, "runs already" in again.stderr) == (1, True)
    executors = pids(fresh)
    assert crail("--name", "tests", "--stop").returncode == 0
    assert is_gone(facts["pid"])
    assert all(is_gone(pid) for pid in executors)
    with pytest.raises(PoolLostError):
        held.result(60)
    nobody = crail("--name", "tests", "--status")
    assert (nobody.returncode, "there is no pool" in nobody.stderr) == (1, True)


def test_too_many_executors_are_refused(runtime):
    done = crail("--name", "tests", "--workers", "257")
    assert (done.returncode, "1 to 256" in done.stderr) == (1, True)


def test_one_started_by_hand_ends_when_nobody_comes(runtime):
    command = [sys.executable, "-m", "crailpy.cli", "pool", "--name", "tests", "--workers", "3"]
    with subprocess.Popen(
        [*command, "--idle", "4s", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        facts = "".join(iter(process.stdout.readline, "}\n")) + "}"
        assert json.loads(facts)["name"] == "tests"
        with crailpy.executors("tests") as pool:
            executors = settled(pool, 3)
            assert pool.status()["pid"] == process.pid
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(4.5)
        assert process.wait(30) == 0
        assert all(is_gone(pid) for pid in executors)


def test_the_end_of_a_driver_waits_for_its_tasks(pool, tmp_path):
    """As with other executors, though it did not say shutdown()."""
    code = (
        "import crailpy, time; pool = crailpy.executors('tests', workers=1)\n"
        f"[pool.submit(open, {str(tmp_path)!r} + f'/{{n}}', 'w') for n in range(5)]\n"
        "pool.submit(time.sleep, 0.1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_the_end_of_a_child_of_multiprocessing_waits_for_its_tasks(pool, tmp_path, way):
    (tmp_path / "made").mkdir()
    done = script(
        """
        import multiprocessing, sys, time, crailpy
        def child():
            pool = crailpy.executors("tests")
            for n in range(5):
                pool.submit(open, f"{sys.argv[2]}/{n}", "w")
            pool.submit(time.sleep, 0.1)
        if __name__ == "__main__":
            pool = crailpy.executors("tests")
            process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
            process.start()
            process.join()
        """,
        tmp_path / "driver.py",
        way,
        tmp_path / "made",
    )
    assert not done.stderr
    assert sorted(os.listdir(tmp_path / "made")) == ["0", "1", "2", "3", "4"]
