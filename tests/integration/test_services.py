"""Real processes: registration, restart, death, and what they leave behind."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crailpy
from crailpy import hello
from crailpy.errors import AuthError, CrailError, InvalidArgumentError, OutOfSpaceError
from crailpy.server.local import Server

from ..stopping import stop

CRAILPY = [sys.executable, "-m", "crailpy.cli"]
PATIENCE_S = 20.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Asks again and again, with a limit."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"never: {what}"
        select.select([], [], [], 0.005)


def admin(cluster: crailpy.LocalCluster, method: str, token: str | None = None) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    with hello.connect_tcp("127.0.0.1", cluster.namenode.port, PATIENCE_S) as sock:
        fields = {"role": "admin", "method": method, "params": {}}
        reply = hello.exchange(sock, fields, token=token, deadline=deadline)
    result: dict[str, Any] = reply["result"]
    return result


def servers(cluster: crailpy.LocalCluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = admin(cluster, "status")["servers"]
    return found


def gone(pid: int) -> bool:
    """Has the process ended? One that nobody has waited for yet has, too."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return fields[0] == "Z" and int(fields[17]) <= 1  # its other threads have ended, too
    except (FileNotFoundError, ProcessLookupError):
        return True


def assert_nothing_left(folder: str, pids: list[int]) -> None:
    until(lambda: all(gone(pid) for pid in pids), "every process is gone")
    until(lambda: not os.path.exists(folder), "the folder is gone")


def test_a_cluster_registers_its_servers_and_leaves_nothing() -> None:
    with crailpy.LocalCluster(dram="16MiB", servers=2) as cluster:
        facts = servers(cluster)
        assert [server["state"] for server in facts] == ["up", "up"]
        assert sum(server["granules_total"] for server in facts) == 2 * (16 << 20) // 4096
        assert admin(cluster, "check") == {"ok": True, "why": None}
        more = cluster.add_server(dram="8MiB")
        assert len(servers(cluster)) == 3
        pids = [cluster.namenode.pid, more.pid, *(server.pid for server in cluster.servers)]
        folder = cluster.folder
        assert oct(os.stat(folder).st_mode & 0o777) == "0o700"
    assert_nothing_left(folder, pids)
    cluster.close()


@pytest.mark.parametrize("way", [Server.stop, Server.kill])
def test_a_restarted_storage_server_has_its_blocks_and_its_port(
    way: Callable[[Server], None],
) -> None:
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        value = os.urandom(1 << 20)
        store.put("/big", value)
        server = cluster.servers[0]
        before, port = servers(cluster)[0], server.port
        way(server)
        assert not server.alive
        until(lambda: servers(cluster)[0]["state"] == "down", "the namenode sees that it is away")
        server.start()
        after = servers(cluster)[0]
        assert (after["number"], after["incarnation"]) == (before["number"], before["incarnation"])
        assert after["state"] == "up"
        assert server.port == port
        assert store.get("/big") == value
        with cluster.connect() as other:
            assert other.get("/big") == value
        assert admin(cluster, "check")["ok"]


def test_the_port_of_a_server_that_is_away_is_given_to_nobody_else() -> None:
    with crailpy.LocalCluster(dram="16MiB") as cluster:
        for server in (cluster.namenode, cluster.servers[0]):
            port = server.port
            server.kill()
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            server.start()
            assert server.port == port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))


def test_memory_that_is_gone_comes_back_as_a_new_incarnation() -> None:
    with crailpy.LocalCluster(dram="64MiB") as cluster, cluster.connect() as store:
        store.put("/big", bytes(1 << 20))
        server = cluster.servers[0]
        server.kill()
        os.unlink(os.path.join(cluster.folder, "storage-0", "state.json"))
        server.start()
        facts = servers(cluster)
        assert len(facts) == 1
        assert facts[0]["number"] == 2
        with pytest.raises(CrailError):
            store.get("/big", timeout=2)
        store.put("/big", b"1" * (1 << 20))
        assert store.get("/big") == b"1" * (1 << 20)


def test_a_storage_server_of_a_namenode_that_kept_nothing_comes_with_fresh_memory() -> None:
    with crailpy.LocalCluster(dram="64MiB", durability="none") as cluster:
        with cluster.connect() as store:
            store.put("/big", bytes(1 << 20))
        before = servers(cluster)[0]["incarnation"]
        port = cluster.namenode.port
        cluster.namenode.kill()
        cluster.namenode.start()
        assert cluster.namenode.port == port
        facts = until(lambda: servers(cluster), "the storage server registers by itself")
        assert facts[0]["state"] == "up"
        assert facts[0]["incarnation"] != before
        with cluster.connect() as store:
            assert not store.exists("/big")
            store.put("/big", b"2" * (1 << 20))
            assert store.get("/big") == b"2" * (1 << 20)


def test_a_value_over_tcp_only() -> None:
    with crailpy.LocalCluster(dram="64MiB") as cluster:
        with cluster.connect(transport="tcp") as store:
            value = os.urandom(3 << 20)
            store.put("/big", value)
            assert store.get("/big") == value
        with cluster.connect() as near:
            assert near.get("/big") == value


UNTIDY = """
import crailpy, json, signal, sys
c = crailpy.LocalCluster(dram='16MiB', dram_dir=sys.argv[1])
print(json.dumps([c.folder, c.namenode.pid, c.servers[0].pid]), flush=True)
signal.pause()
"""


def test_nothing_is_left_when_the_parent_is_killed(base: str) -> None:
    command = [sys.executable, "-c", UNTIDY, base]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        folder, *pids = json.loads(parent.stdout.readline())
        assert os.path.exists(folder)
        parent.kill()
    assert_nothing_left(folder, pids)


def test_nothing_is_left_after_ctrl_c_or_an_exception() -> None:
    code = (
        "import crailpy, json, signal\n"
        "with crailpy.LocalCluster(dram='16MiB') as c:\n"
        "    print(json.dumps([c.folder, c.namenode.pid, c.servers[0].pid]), flush=True)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        folder, *pids = json.loads(parent.stdout.readline())
        os.killpg(parent.pid, signal.SIGINT)
    assert not os.path.exists(folder)
    assert all(gone(pid) for pid in pids)


def test_the_next_cluster_removes_what_a_massacre_left(base: str) -> None:
    command = [sys.executable, "-c", UNTIDY, base]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        folder, *pids = json.loads(parent.stdout.readline())
        for pid in pids:
            stop(pid)  # so that none of them can tidy up
        parent.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in pids), "every process is gone")
    assert os.path.exists(folder)
    with crailpy.LocalCluster(dram="16MiB", dram_dir=base, servers=0):
        assert not os.path.exists(folder)


def test_a_forked_child_does_not_end_the_cluster() -> None:
    with crailpy.LocalCluster(dram="16MiB") as cluster:
        pid = os.fork()
        if not pid:
            cluster.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert cluster.namenode.alive
        assert servers(cluster)[0]["state"] == "up"


def test_too_much_memory_is_refused_with_words() -> None:
    with pytest.raises(OutOfSpaceError, match="smaller --dram"):
        crailpy.LocalCluster(dram="3TiB")
    with pytest.raises(InvalidArgumentError, match="no option"):
        crailpy.LocalCluster(drum=1)


def test_a_token_is_asked_for_by_every_role() -> None:
    with crailpy.LocalCluster(dram="16MiB", token="secret") as cluster:
        assert admin(cluster, "status", token="secret")["authentication"] == "token"
        for wrong in (None, "sacred"):
            with pytest.raises(AuthError):
                admin(cluster, "status", token=wrong)
        with cluster.connect() as store:
            store.put("/a", b"1")
        with pytest.raises(AuthError):
            crailpy.connect(cluster.address, token="sacred").get("/a")


def test_the_network_is_not_served_without_a_token(tmp_path: Path) -> None:
    done = subprocess.run(
        [*CRAILPY, "namenode", "--host", "0.0.0.0", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 1
    assert "--insecure" in done.stderr
    assert not os.listdir(tmp_path)


def test_visitors_that_do_not_know_how_to_behave_are_sent_away() -> None:
    with crailpy.LocalCluster(dram="16MiB", hello_timeout=0.2) as cluster:
        port = cluster.namenode.port
        silent = [socket.create_connection(("127.0.0.1", port), PATIENCE_S) for _ in range(20)]
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as rude:
            rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert rude.recv(8) == b"CRAILPY1"  # the refusal
        for fields, said in (
            ({"role": "king"}, "not served"),
            ({"role": "lane", "lane": -1}, "lane is -1"),
            ({"role": "lane", "lane": 0, "session": 5, "session_key": b"x"}, "did not open"),
            ({"role": "retire", "number": 9, "incarnation": 1}, "not registered"),
            ({"role": "admin", "method": "explode"}, "explode"),
            ({"version": 2, "role": "admin"}, "version 2"),
        ):
            with (
                hello.connect_tcp("127.0.0.1", port, PATIENCE_S) as sock,
                pytest.raises(CrailError, match=said),
            ):
                hello.exchange(sock, fields, deadline=time.monotonic() + PATIENCE_S)
        for sock in silent:
            assert sock.recv(1) == b""  # its time was up
            sock.close()
        assert servers(cluster)[0]["state"] == "up"


def test_a_silent_storage_server_is_down_until_it_speaks() -> None:
    with crailpy.LocalCluster(dram="16MiB", heartbeat=0.1) as cluster:
        pid = cluster.servers[0].pid
        stop(pid)
        until(lambda: servers(cluster)[0]["state"] == "down", "three heartbeats are missed")
        os.kill(pid, signal.SIGCONT)
        until(lambda: servers(cluster)[0]["state"] == "up", "it speaks again")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_runs_a_store_until_ctrl_c(number: signal.Signals) -> None:
    command = [*CRAILPY, "up", "--dram", "16MiB", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as up:
        assert up.stdout is not None
        facts = json.loads(up.stdout.readline())
        with crailpy.connect(facts["address"]) as store:
            store.put("/a", b"1")
            assert store.get("/a") == b"1"
        up.send_signal(number)
        assert up.wait(PATIENCE_S) == 0
    assert all(gone(pid) for pid in facts["pids"])


def test_a_namenode_and_a_storage_server_by_hand(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen(
        [*CRAILPY, "namenode", "--port", "0", "--json"], stdout=subprocess.PIPE, env=env
    ) as namenode:
        assert namenode.stdout is not None
        address = json.loads(namenode.stdout.readline())["address"]
        command = [*CRAILPY, "storage", "--dram", "16MiB", "--namenode", address, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as storage:
            assert storage.stdout is not None
            folder = json.loads(storage.stdout.readline())["dir"]
            with crailpy.connect(address) as store:
                store.put("/big", bytes(100_000))
                assert store.get("/big") == bytes(100_000)
            storage.terminate()
            assert storage.wait(PATIENCE_S) == 0
        assert not os.path.exists(folder)  # a port of no choice: nobody could find it again
        with hello.connect_tcp("127.0.0.1", int(address.rpartition(":")[2]), 5) as sock:
            fields = {"role": "admin", "method": "stop"}
            hello.exchange(sock, fields, deadline=time.monotonic() + PATIENCE_S)
        assert namenode.wait(PATIENCE_S) == 0
    assert not os.listdir(tmp_path)


def test_two_storage_servers_cannot_share_a_folder(tmp_path: Path) -> None:
    with crailpy.LocalCluster(dram="16MiB") as cluster:
        done = subprocess.run(
            [
                *CRAILPY,
                *("storage", "--dram", "16MiB", "--namenode", cluster.address),
                *("--dir", os.path.join(cluster.folder, "storage-0")),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 1
        assert "another storage server" in done.stderr


def test_usage_errors_are_2() -> None:
    for words in (["nonsense"], ["up", "--port", "x"], []):
        done = subprocess.run([*CRAILPY, *words], capture_output=True, timeout=60, check=False)
        assert done.returncode == 2


def test_a_cluster_removes_the_folders_that_it_made_and_no_others() -> None:
    with tempfile.TemporaryDirectory() as ours:  # short: sockets have their paths below it
        with crailpy.LocalCluster(dram="16MiB", dram_dir=f"{ours}/a/b") as cluster:
            assert cluster.folder.startswith(f"{ours}/a/b/")
        assert os.listdir(ours) == []


def test_the_ordinary_end_of_a_cluster_is_no_warning() -> None:
    text = """if True:
        import crailpy
        for _ in range(5):
            with crailpy.LocalCluster(dram="16MiB", servers=2) as cluster:
                cluster.connect().put("/x", bytes(100000))
    """
    done = subprocess.run([sys.executable, "-c", text], stderr=subprocess.PIPE, timeout=100)
    assert (done.returncode, done.stderr.decode()) == (0, "")
