"""What goes wrong around the services: foreign files, namesakes, lost channels, rude visitors."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import crailpy
from crailpy import channel, config, native
from crailpy.errors import AuthError, CrailError, ExistsError, NativeError
from crailpy.server import peers, reception
from crailpy.server.namenode.service import NamenodeService
from crailpy.server.reception import Reception
from crailpy.server.storage import service as storage_service
from crailpy.server.storage.service import StorageService
from crailpy.server.storage.tiers.dram import DramTier

PATIENCE_S = 20.0
DRAM = 8 << 20


def settings(**more: Any) -> config.Settings:
    return config.load({"port": 0, "heartbeat": 0.05, **more})


@asynccontextmanager
async def namenode(folder: Path, **more: Any) -> AsyncIterator[NamenodeService]:
    node = NamenodeService(settings(**more), runtime_dir=str(folder / "nn"))
    await node.start()
    try:
        yield node
    finally:
        await node.close()


def new_storage(node: NamenodeService, folder: Path, **more: Any) -> StorageService:
    tier = DramTier(str(folder), None, dram=DRAM, region_max=DRAM // 2)
    return StorageService(settings(), tier, server="s", namenode=node.unix, **more)


@asynccontextmanager
async def storage(node: NamenodeService, folder: Path, **more: Any) -> AsyncIterator[Any]:
    server = new_storage(node, folder, **more)
    await server.start()
    try:
        await registered(server)
        yield server
    finally:
        await server.close()


async def registered(server: StorageService) -> None:
    """Raises what ends the server instead."""
    failed = asyncio.ensure_future(server.wait_failed())
    waiting = asyncio.ensure_future(server.registered.wait())
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([failed, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if failed.done():
        await failed
    failed.cancel()


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0)


# ---- files --------------------------------------------------------------------------------------


async def test_an_ephemeral_server_leaves_the_files_of_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    foreign = {"thesis.txt", "region-map.pdf", "gen-1.txt", "use-case.md"}
    for name in foreign:
        (home / name).write_text("precious")
    async with namenode(tmp_path) as node:
        async with storage(node, home, ephemeral=True):
            assert (home / "region-0").exists()
        assert {path.name for path in home.iterdir()} == foreign
        async with storage(node, tmp_path / "own", ephemeral=True):
            pass
        assert not (tmp_path / "own").exists()


async def test_memory_of_unknown_readers_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with namenode(tmp_path) as node:
        async with storage(node, tmp_path / "s") as server:
            before = server.tier.incarnation
            core = server._core
            use_fd, _ = core.use_create(server.tier.new_table_path(), 1)
            mapped = os.open(tmp_path / "s" / "region-0", os.O_RDONLY)
        broken = tmp_path / "s" / "use-1-999999999"
        broken.write_bytes(b"")  # its maker died before it was whole
        async with storage(node, tmp_path / "s") as server:
            assert server.tier.incarnation == before
            assert server._core.stats()["use_tables"] == 1
            fd, _ = server._core.use_create(server.tier.new_table_path(), 2)  # by the same pid
            os.close(fd)
            assert not broken.exists()

        def no_descriptors(self: native.Storage, path: str) -> bool:
            raise NativeError("Too many open files")

        monkeypatch.setattr(native.Storage, "use_adopt", no_descriptors)
        async with storage(node, tmp_path / "s") as server:
            assert server.tier.incarnation != before
            assert server._core.stats()["use_tables"] == 0
            assert os.fstat(mapped).st_nlink == 0  # nobody writes what the reader sees
        os.close(mapped)
        os.close(use_fd)


async def test_a_damaged_table_that_is_held_is_not_forgotten(tmp_path: Path) -> None:
    async with namenode(tmp_path) as node:
        async with storage(node, tmp_path / "s") as server:
            before = server.tier.incarnation
        table = tmp_path / "s" / "use-1-1"
        table.write_bytes(b"")
        with table.open() as holder:
            fcntl.flock(holder, fcntl.LOCK_SH)
            async with storage(node, tmp_path / "s") as server:
                assert server.tier.incarnation != before


async def test_no_half_made_memory_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with namenode(tmp_path) as node, storage(node, tmp_path / "s"):
        pass
    attach = DramTier.attach
    calls = 0

    def fails_once(self: DramTier, core: native.Storage) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise PermissionError("no such luck")
        attach(self, core)

    monkeypatch.setattr(DramTier, "attach", fails_once)
    async with namenode(tmp_path) as other:
        with pytest.raises(RuntimeError, match="memory anew: no such luck"):
            async with storage(other, tmp_path / "s"):
                pass
        assert other._members.facts() == []
    monkeypatch.setattr(DramTier, "attach", lambda *_: None)
    async with namenode(tmp_path) as other:
        with pytest.raises(RuntimeError, match="0 of 2 regions"):
            async with storage(other, tmp_path / "s"):
                pass


# ---- namesakes ----------------------------------------------------------------------------------


def test_a_second_server_of_the_same_id_is_refused(tmp_path: Path) -> None:
    with crailpy.LocalCluster(dram="16MiB") as cluster, cluster.connect() as store:
        store.put("/a", b"z" * 100_000)
        command = [sys.executable, "-m", "crailpy.cli", "storage", "--dram", "8MiB"]
        command += ["--dir", str(tmp_path / "x"), "--namenode", cluster.address]
        done = subprocess.run(
            [*command, "--id", "storage-0"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 1
        assert "another storage server with the id 'storage-0' is up" in done.stderr
        with cluster.connect() as other:
            assert other.get("/a") == b"z" * 100_000
        assert [fact["state"] for fact in store.status()["servers"]] == ["up"]


async def test_a_namesake_gets_in_when_the_first_one_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with namenode(tmp_path) as node:
        first = new_storage(node, tmp_path / "first")
        second = new_storage(node, tmp_path / "second")
        await first.start()
        await registered(first)
        await second.start()
        refused = asyncio.Event()
        register = node._members.register

        def counted(new: Any) -> Any:
            try:
                return register(new)
            except ExistsError:
                refused.set()
                raise

        monkeypatch.setattr(node._members, "register", counted)
        await asyncio.wait_for(refused.wait(), PATIENCE_S)
        assert [fact["incarnation"] for fact in node._members.facts()] == [first.tier.incarnation]
        await first.close()
        await registered(second)
        assert [fact["incarnation"] for fact in node._members.facts()] == [second.tier.incarnation]
        monkeypatch.setattr(storage_service, "TAKEN_PATIENCE", 0)
        with pytest.raises(ExistsError, match="--id"):
            async with storage(node, tmp_path / "first"):
                pass
        await second.close()


# ---- threads ------------------------------------------------------------------------------------


async def test_the_core_outlives_the_threads_that_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    begun, go_on, seen = asyncio.Event(), threading.Event(), []

    def slow(core: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(PATIENCE_S)
        seen.append(core.closed)

    async def close_meanwhile(close: Any) -> None:
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        begun.clear()
        closing = asyncio.ensure_future(close())
        # nothing else holds up close(): it takes less
        loop.call_later(0.1, go_on.set)
        await closing
        go_on.clear()

    async with namenode(tmp_path) as node, storage(node, tmp_path / "s"):
        pass
    async with namenode(tmp_path) as node:  # does not know the memory: it is made anew
        server = new_storage(node, tmp_path / "s")
        monkeypatch.setattr(server, "_make_fresh", lambda: slow(server._core))
        await server.start()
        await close_meanwhile(server.close)
        assert seen == [False]

        monkeypatch.setattr(type(node._core), "check", slow)
        asking = asyncio.ensure_future(
            channel.connect(
                node.unix, {"role": "admin", "method": "check"}, token=None, timeout=PATIENCE_S
            )
        )
        await close_meanwhile(node.close)
        assert seen == [False, False]
        with pytest.raises((OSError, CrailError)):
            await asking


# ---- the retire channel -------------------------------------------------------------------------


async def test_a_lost_channel_is_asked_for_until_it_is_there(tmp_path: Path) -> None:
    async with namenode(tmp_path) as node, storage(node, tmp_path / "s") as server:
        open_channel, failures = server._open_channel, 0

        async def fails_twice() -> None:
            nonlocal failures
            if failures < 2:
                failures += 1
                raise CrailError("no descriptors left")
            await open_channel()

        server._open_channel = fails_twice
        member = node._members.by_number(1)
        assert member is not None
        await until(lambda: member.retires, "the first channel")
        link = member.channel
        ours, theirs = socket.socketpair()
        with theirs:
            server._core.channel(ours.detach())  # replaces the channel, which closes
            await until(lambda: not member.retires, "the end of it is seen")
            await until(lambda: member.retires, "it was opened at the third time")
        assert failures == 2
        assert member.channel is link


async def test_no_channel_without_a_control_connection(tmp_path: Path) -> None:
    async with namenode(tmp_path) as node:
        async with storage(node, tmp_path / "s") as server:
            fields = {"role": "retire", "number": 1, "incarnation": server.tier.incarnation}
        await until(lambda: node._members.facts()[0]["state"] == "down", "the server is gone")
        with pytest.raises(CrailError, match="not registered"):
            await channel.connect(node.unix, fields, token=None, timeout=PATIENCE_S)


# ---- the door -----------------------------------------------------------------------------------


@asynccontextmanager
async def door(folder: Path, **more: Any) -> AsyncIterator[tuple[int, str]]:
    """A reception with one role, `hi`; its port and its path."""

    async def hi(visit: reception.Visit) -> None:
        await visit.reply({"ok": True})

    it = Reception({"hi": hi}, token=None, hello_timeout=PATIENCE_S, **more)
    try:
        port = it.listen_tcp("127.0.0.1", 0)
        it.listen_unix(str(folder / "door.sock"))
        yield port, str(folder / "door.sock")
    finally:
        await it.close()


async def say_hi(where: tuple[str, int] | str) -> None:
    sock, _ = await channel.connect(where, {"role": "hi"}, token=None, timeout=PATIENCE_S / 4)
    sock.close()


async def test_a_full_listener_does_not_close_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "VISITORS_MAX", 2)
    async with door(tmp_path) as (port, path):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for _ in range(3):
            await say_hi(path)
        with pytest.raises(TimeoutError):
            await channel.connect(("127.0.0.1", port), {"role": "hi"}, token=None, timeout=0.1)
        for sock in silent:
            sock.close()


async def test_who_is_refused_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "VISITORS_MAX", 1)
    refusing, ended = asyncio.Event(), asyncio.Event()

    async def deaf(sock: socket.socket, message: dict[str, Any]) -> None:
        if "error" not in message:
            return await send(sock, message)
        refusing.set()
        try:
            await asyncio.get_running_loop().create_future()  # does not take the words
        finally:
            ended.set()

    send = channel.send
    monkeypatch.setattr(channel, "send", deaf)
    async with door(tmp_path) as (port, _):
        with socket.create_connection(("127.0.0.1", port)) as rude:
            rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.wait_for(refusing.wait(), PATIENCE_S)
            await say_hi(("127.0.0.1", port))
            await asyncio.wait_for(ended.wait(), PATIENCE_S / 4)


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_the_owner_of_a_connection_is_known(family: str, host: str) -> None:
    try:
        listener = socket.create_server((host, 0), family=getattr(socket, family))
    except OSError:
        pytest.skip(f"no {family} here")
    with listener, socket.create_connection(listener.getsockname()[:2]) as there:
        here, _ = listener.accept()
        with here:
            uid = os.getuid()
            if uid == 0:
                uid = 65534
                os.fchown(there.fileno(), uid, -1)
            assert peers.owner(here) == uid
            ends = here.getpeername()[:2], here.getsockname()[:2]
            assert peers._look_up(here.family, *ends) == uid
            there.close()
            assert peers.owner(here) is None  # the kernel would say: root


async def test_without_a_token_other_users_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with namenode(tmp_path) as node, namenode(tmp_path, token="secret") as closed:
        monkeypatch.setattr(peers, "owner", lambda _: 65533)
        for fields in (
            {"role": "control", "server": "s"},
            {"role": "retire", "number": 1, "incarnation": 1},
            {"role": "admin", "method": "stop"},
            {"role": "lane", "lane": 0, "no_unix": True},
        ):
            with pytest.raises(AuthError, match="you are user 65533"):
                await channel.connect(("127.0.0.1", node.port), fields, token=None, timeout=9)
        assert not node.stopping.is_set()
        fields = {"role": "admin", "method": "status"}
        for where, token in ((node.unix, None), (("127.0.0.1", closed.port), "secret")):
            sock, _ = await channel.connect(where, fields, token=token, timeout=PATIENCE_S)
            sock.close()
