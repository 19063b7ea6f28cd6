"""The client's commands, run as processes against a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import crailpy

from .kit import until

COMMAND = [sys.executable, "-c", "from crailpy.cli import main; raise SystemExit(main())"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with crailpy.LocalCluster(dram="256MiB") as cluster:
        yield cluster.address


def run(*words: str, stdin: bytes = b"", code: int = 0) -> bytes:
    done = subprocess.run([*COMMAND, *words], input=stdin, capture_output=True, timeout=120)
    assert done.returncode == code, done.stderr.decode()
    return done.stdout if code == 0 else done.stderr


def test_what_is_put_comes_out_again(address: str, tmp_path: Path) -> None:
    at = f"--address={address}"
    run("put", at, "-", "/cli/words", stdin=b"some words\n")
    assert run("cat", at, "/cli/words", "/cli/words") == b"some words\n" * 2
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (80 << 12))
    run("put", at, str(large), "/cli/large")
    run("get", at, "/cli/large", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    assert run("ls", at, "/cli") == b"large\nwords\n"
    facts = json.loads(run("stat", at, "--json", "/cli/large"))
    assert facts[0]["size"] == 80 << 20
    run("rm", at, "-r", "/cli")
    assert run("ls", at, "/cli", code=1).startswith(b"crailpy: ")


def test_put_if_absent_does_it_once(address: str) -> None:
    at = f"--address={address}"
    run("put", at, "--if-absent", "-", "/once", stdin=b"1")
    assert b"exists" in run("put", at, "--if-absent", "-", "/once", stdin=b"2", code=1)
    assert run("cat", at, "/once") == b"1"


def test_directories_and_missing_things(address: str, tmp_path: Path) -> None:
    at = f"--address={address}"
    run("mkdir", at, "/m/a/b", code=1)
    run("mkdir", at, "-p", "/m/a/b")
    run("mkdir", at, "-p", "/m/a/b")
    assert b"d " in run("ls", at, "-l", "/m")
    run("rm", at, "/m", code=1)
    run("rm", at, "-f", "/m/none")
    target = tmp_path / "none"
    assert run("get", at, "/none", str(target), code=1).count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_status_and_doctor_print_facts(address: str) -> None:
    status = json.loads(run("status", f"--address={address}", "--json"))
    assert status["namenode"]["granules_total"] == 65536
    assert run("status", f"--address={address}").startswith(b"namenode")
    assert {"what", "state", "found", "advice"} <= json.loads(run("doctor", "--json"))[0].keys()


def test_demo_counts_right(address: str) -> None:
    folder = str(Path(json.__file__).parent)
    words = ["demo", f"--address={address}", "--folder", folder, "--maps=3", "--reduces=2"]
    facts = json.loads(run(*words, "--json"))
    assert facts["right"] is True
    assert facts["put_bytes"] == facts["get_bytes"] > 0
    assert run("ls", f"--address={address}", "/").count(b"demo-") == 0


def test_bench_measures_and_leaves_nothing(address: str) -> None:
    words = ["bench", f"--address={address}", "--quick", "--sizes=64,8KiB,1MiB", "--clients=2"]
    facts = json.loads(run(*words, "--json", "--only", "small medium large view many clients"))
    assert {row["section"] for row in facts["rows"]} >= {"small", "medium", "large", "many"}
    assert all(row["ratio"] > 0 for row in facts["rows"] if row["limit"])
    assert run("ls", f"--address={address}", "/").count(b"bench-") == 0


def test_processes_of_bench_and_demo_get_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRAILPY_TOKEN", raising=False)
    folder = str(Path(json.__file__).parent)
    with crailpy.LocalCluster(dram="512MiB", token="a secret") as cluster:
        given = [f"--address={cluster.address}", "--token=a secret", "--json"]
        facts = json.loads(run("demo", *given, "--folder", folder, "--maps=2", "--reduces=1"))
        assert facts["right"] is True
        words = ["bench", *given, "--quick", "--sizes=64", "--clients=1"]
        facts = json.loads(run(*words, "--only", "nodes stalls touch lookup clients"))
        assert {row["section"] for row in facts["rows"]} == {
            "nodes", "stalls", "touch", "lookup", "clients",
        }  # fmt: skip
        monkeypatch.setenv("CRAILPY_TOKEN", "a secret")
        words = ["bench", given[0], "--quick", "--sizes=64", "--json", "--only", "nodes lookup"]
        assert len(json.loads(run(*words))["rows"]) == 6


def test_ctrl_c_ends_a_demo_and_its_workers_without_a_traceback(address: str) -> None:
    words = [*COMMAND, "demo", f"--address={address}", "--workers=2", "--maps=200"]
    with (
        crailpy.connect(address) as store,
        subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True) as child,
    ):
        try:
            base = f"/demo-{child.pid}"
            until(lambda: store.exists(f"{base}/reports") and store.listdir(f"{base}/reports"))
            os.killpg(child.pid, signal.SIGINT)  # as a terminal does it
            assert child.communicate(timeout=30)[1] == b"crailpy: interrupted\n"
            assert child.returncode == 130
        finally:
            child.kill()


def test_ctrl_c_while_modules_are_imported_gives_no_traceback() -> None:
    text = """if True:
        import sys
        class Interrupt:
            def find_spec(name, path=None, target=None):
                if name == "crailpy.server.commands":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupt)
        from crailpy.cli import main
        raise SystemExit(main(["status"]))
    """
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize(
    ("words", "fd"), [("cat /x", 1), ("get /x -", 1), ("put - /x", 0)], ids=lambda value: str(value)
)
def test_a_closed_standard_stream_is_said(address: str, words: str, fd: int) -> None:
    line = f'exec "$@" {"<" if fd == 0 else ">"}&-'
    command = ["sh", "-c", line, "sh", *COMMAND, *words.split(), f"--address={address}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    name = ("input", "output")[fd]
    assert (done.returncode, done.stderr.decode()) == (1, f"crailpy: standard {name} is closed\n")


def test_rm_of_a_full_directory_advises_what_the_command_line_has(address: str) -> None:
    run("put", f"--address={address}", "-", "/full/value", stdin=b"x")
    assert run("rm", f"--address={address}", "/full", code=1).endswith(
        b"'/full' (-r removes it with all below it)\n"
    )


def test_status_and_top_have_a_short_line_for_each_server(address: str) -> None:
    columns = "server id state tier location address used free of".split()  # noqa: SIM905
    for words in (("status",), ("top", "-n", "1", "--interval", "10ms")):
        head, line = run(*words, f"--address={address}").decode().splitlines()[-2:]
        assert head.split() == columns
        assert line.split()[1:5] == ["storage-0", "up", "dram", "-"]
        assert line.endswith("256 MiB")
        assert len(line) < 100


def test_ls_lists_several_paths(address: str) -> None:
    at = f"--address={address}"
    for key in ("/several/a/one", "/several/b/two", "/several/three"):
        run("put", at, "-", key, stdin=b"x")
    paths = ("/several/a", "/several/three", "/several/b")
    assert run("ls", at, *paths) == b"/several/a:\none\n\n/several/three\n/several/b:\ntwo\n"
    facts = json.loads(run("ls", at, "--json", *paths))
    assert [node["path"] for node in facts] == [
        "/several/a/one", "/several/three", "/several/b/two",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("ls --address=nonsense", b"is no address"),
        ("ls --address=crail://host:0", b"is not host:port"),
        ("demo --workers=0", b"--workers"),
        ("demo --maps=0", b"--maps"),
        ("get --wait=-3s /x -", b"--wait: not a time: '-3s'"),
        ("get --wait -3s /x -", b"--wait: not a time: '-3s'"),
        ("get --wait 0 /x -", b"--wait: '0' is no time at all"),
        ("bench --clients -3", b"--clients"),
    ],
)
def test_what_is_no_argument_is_a_usage_error(words: str, reason: bytes) -> None:
    assert reason in run(*words.split(), code=2)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("CRAILPY_ADDRESS", "nonsense", b"$CRAILPY_ADDRESS: 'nonsense' is no address"),
        ("CRAILPY_ADDRESS", "crail://host:0", b"$CRAILPY_ADDRESS: "),
        ("CRAILPY_TIMEOUT", "soon", b"$CRAILPY_TIMEOUT: timeout: not a time"),
        ("CRAILPY_TRANSPORT", "pigeon", b"transport 'pigeon' is none of"),
        ("CRAILPY_CONFIG", "/none/there.toml", b"$CRAILPY_CONFIG: there is no file"),
    ],
)
def test_a_setting_that_is_none_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: bytes
) -> None:
    monkeypatch.setenv(name, value)
    assert reason in run("ls", code=2)
    if name == "CRAILPY_ADDRESS":  # which is not asked for then
        assert reason not in run("ls", "--address=crail://127.0.0.1:1", code=1)


def test_put_names_the_path_that_has_no_space(address: str, tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 300 << 20)
    said = run("put", f"--address={address}", str(tmp_path / "large"), "/large", code=1)
    assert b"no storage server has room: '/large'" in said


def test_a_store_without_storage_servers_says_so() -> None:
    with (
        crailpy.LocalCluster(servers=0) as cluster,
        cluster.connect() as store,
        pytest.raises(crailpy.errors.OutOfSpaceError, match="no storage server is there"),
    ):
        store.put("/x", bytes(1 << 20))
