"""A fuzzer for what Python reads from a wire: the hello and the control messages, at both ends.

Each test changes good messages in so many ways (CRAILPY_FUZZ_MESSAGES of them, from CRAILPY_SEED),
and whatever comes, an error is a typed one, every descriptor is closed, and the service serves on.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import crailpy
from crailpy import channel, config, control, hello
from crailpy.errors import CrailError, ProtocolError, UnavailableError
from crailpy.server.namenode.service import NamenodeService

from .mutations import Mutator

SEED = int(os.environ.get("CRAILPY_SEED", "1"))
MESSAGES = int(os.environ.get("CRAILPY_FUZZ_MESSAGES", "800"))
PATIENCE_S = 20.0

REPLIES: list[dict[str, Any]] = [
    {"session": 5, "session_key": b"k" * 16, "lane": 0, "cluster": "c", "limits": {"a": 1}},
    {"redirect": "/nowhere.sock"},
    {"challenge": b"n" * 16},
    {"ok": True},
    {"error": {"code": "NOT_FOUND", "message": "what", "hint": "do"}},
    {"regions": [16, 16], "ring": True},
]
REGISTER: dict[str, Any] = {
    "m": "register",
    "id": 1,
    "server": "s1",
    "incarnation": 7,
    "history": False,
    "regions": [16, 8],
    "tier": "dram",
    "storage_class": 0,
    "location": "",
    "host": "127.0.0.1",
    "port": 1,
    "unix": None,
    "host_identity": "h",
    "heartbeat": 5.0,
}
REQUESTS: list[dict[str, Any]] = [
    {"role": "lane", "lane": 0, "host": "h", "no_unix": True, "ring": True},
    {"role": "lane", "lane": 3, "session": 5, "session_key": b"k" * 16, "host": "h"},
    {"role": "control", "server": "s1"},
    {"role": "retire", "number": 1, "incarnation": 7},
    {"role": "admin", "method": "status", "params": {}},
    {"role": "admin", "method": "check", "params": {}},
    {"role": "data", "session": 5, "session_key": b"k" * 16, "number": 1},
    {"role": "shm", "session": 5, "session_key": b"k" * 16, "write": False},
]
CONTROL = [
    REGISTER,
    {"m": "heartbeat", "id": 2, "stats": {"reads": 1}},
    {"m": "leave", "id": 3, "forget": False},
    {"id": 1, "ok": None},
    {"id": 1, "error": {"code": "EXISTS", "message": "m", "hint": None}},
]


@pytest.fixture
def mutator() -> Mutator:
    print("seed", SEED)
    names = [name for message in [*REPLIES, *REQUESTS, *CONTROL] for name in message]
    return Mutator(SEED, sorted(set(names)))


@pytest.fixture
def devnull() -> Iterator[int]:
    with open(os.devnull) as file:
        yield file.fileno()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    gc.collect()  # what earlier tests have left goes now, not meanwhile
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def say(sock: socket.socket, data: bytes, fds: list[int] | None = None) -> None:
    """What the kernel takes at once: a message that is too long for that is cut, which is one more
    way of making no sense."""
    sock.setblocking(False)
    try:
        socket.send_fds(sock, [data], fds or [])
    except BlockingIOError:
        pass


def test_a_client_takes_no_reply_for_what_it_is_not(mutator: Mutator) -> None:
    for _ in range(MESSAGES):
        a, b = socket.socketpair()
        with a, b:
            for message in mutator.random.choices(REPLIES, k=mutator.random.choice([1, 2])):
                say(b, mutator.bytes_of(message))
            b.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + PATIENCE_S
            token = mutator.random.choice([None, "secret"])
            try:
                reply = hello.exchange(a, {"role": "lane"}, token=token, deadline=deadline)
            except TimeoutError:
                raise  # there was an end to wait for
            except (CrailError, OSError) as error:
                str(error)
            else:
                assert isinstance(reply, dict)
                assert reply.get("error") is None


def test_descriptors_of_a_reply_that_makes_no_sense_are_closed(
    mutator: Mutator, devnull: int
) -> None:
    with no_descriptor_left():
        for _ in range(MESSAGES):
            a, b = socket.socketpair()
            with a, b:
                for message in mutator.random.choices(REPLIES, k=2):
                    fds = [devnull] * mutator.random.randrange(4)
                    say(b, mutator.bytes_of(message), fds)
                b.shutdown(socket.SHUT_WR)
                deadline = time.monotonic() + PATIENCE_S
                try:
                    _, fds = hello.exchange_with_descriptors(
                        a, {"role": "shm"}, token="secret", deadline=deadline
                    )
                except (CrailError, OSError):
                    pass
                else:
                    hello.close_all(fds)


async def test_an_asynchronous_client_neither(mutator: Mutator, devnull: int) -> None:
    with (
        no_descriptor_left(),
        tempfile.TemporaryDirectory() as folder,
    ):
        path = os.path.join(folder, "s")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            for i in range(MESSAGES // 2):
                fields = {"role": "shm"}
                if i % 2:
                    call: Any = channel.connect(path, fields, token="t", timeout=PATIENCE_S)
                else:
                    call = channel.connect_for_descriptors(path, fields, timeout=PATIENCE_S)
                task = asyncio.create_task(call)
                await asyncio.sleep(0)  # it has connected: the kernel holds it in the backlog
                peer, _ = listener.accept()
                with peer:
                    fds = [devnull] * mutator.random.randrange(3)
                    say(peer, mutator.bytes_of(mutator.random.choice(REPLIES)), fds)
                    peer.shutdown(socket.SHUT_WR)
                    try:
                        sock, _, *more = await task
                    except TimeoutError:
                        raise
                    except (CrailError, OSError):
                        pass
                    else:
                        channel.close(sock)
                        hello.close_all(more[0] if more else [])


async def test_a_control_connection_ends_or_goes_on(mutator: Mutator) -> None:
    async def handler(message: dict[str, Any]) -> Any:
        return control.Registration.parse(message).message()

    for _ in range(MESSAGES // 2):
        a, b = socket.socketpair()
        a.setblocking(False)
        link = channel.Channel(a, {control.REGISTER: handler})
        run = asyncio.create_task(link.run())
        call = asyncio.create_task(link.call("channel", {}, timeout=PATIENCE_S))
        await asyncio.sleep(0)
        with b:
            for message in mutator.random.choices(CONTROL, k=3):
                say(b, mutator.bytes_of(message))
            b.shutdown(socket.SHUT_WR)
            for task in (run, call):
                try:
                    await task
                except (ProtocolError, UnavailableError):
                    pass
                except CrailError:
                    if task is run:
                        raise  # only an answer may be any error


async def hear_out(sock: socket.socket) -> bytes:
    """What the other side says before it closes."""
    heard = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while part := await asyncio.get_running_loop().sock_recv(sock, 65536):
                heard += part
    except ConnectionError:
        pass
    return heard


def check_answers(heard: bytes) -> None:
    """Only whole messages, and what follows a lane's or a retire channel's is C's."""
    if heard:
        size = hello.size_of(heard[: hello.HEAD_BYTES])
        hello.unpack(heard[hello.HEAD_BYTES : hello.HEAD_BYTES + size])


async def until(holds: Callable[[], bool]) -> None:
    """Lets the others on the loop go on until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def visit(where: tuple[str, int] | str, data: list[bytes]) -> None:
    """Says all of it without waiting, and hangs up."""
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
        try:
            for part in data:
                await asyncio.get_running_loop().sock_sendall(sock, part)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough
        check_answers(await hear_out(sock))


def visits(mutator: Mutator) -> list[bytes]:
    """A visitor's words: a hello, good or not, and perhaps control messages after it."""
    first = mutator.random.choice(REQUESTS)
    good = mutator.random.random() < 0.5 and first["role"] == "control"
    words = [hello.pack({"version": hello.VERSION, **first})] if good else []
    if not good:
        words = [mutator.bytes_of({"version": hello.VERSION, **first})]
    if good and mutator.random.random() < 0.5:
        words.append(hello.pack(REGISTER | {"server": mutator.random.choice("abc")}))
    if first["role"] == "control":
        words += [mutator.bytes_of(m) for m in mutator.random.choices(CONTROL, k=4)]
    return words


@pytest.mark.parametrize("token", [None, "secret"])
async def test_a_namenode_outlives_every_hello(
    mutator: Mutator, tmp_path: Path, caplog: pytest.LogCaptureFixture, token: str | None
) -> None:
    settings = config.load({"port": 0, "token": token, "session_grace": 1, "arena_max": 1 << 26})
    node = NamenodeService(settings, runtime_dir=str(tmp_path / "nn"))
    await node.start()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for i in range(MESSAGES // 2):
            words = visits(mutator)
            await visit(node.unix if i % 2 else ("127.0.0.1", node.port), words)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        sock, reply = await channel.connect(
            ("127.0.0.1", node.port),
            {"role": "admin", "method": "status", "params": {}},
            token=token,
            timeout=PATIENCE_S,
        )
        channel.close(sock)
        assert reply["result"]["servers"] is not None
    finally:
        await node.close()
    gc.collect()  # an exception that nobody took is told of then
    loud = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not loud, loud[0].getMessage()


def test_a_storage_server_outlives_every_hello(
    cluster: crailpy.LocalCluster, mutator: Mutator
) -> None:
    with cluster.connect() as store:
        store.put("/mutated/before", b"x" * 100_000)
        for _ in range(MESSAGES // 4):
            with hello.connect_tcp("127.0.0.1", cluster.servers[0].port, PATIENCE_S) as sock:
                request = mutator.random.choice(REQUESTS)
                heard = b""
                try:
                    sock.sendall(mutator.bytes_of({"version": hello.VERSION, **request}))
                    sock.shutdown(socket.SHUT_WR)
                    while part := sock.recv(65536):
                        heard += part
                except ConnectionError:
                    pass  # it has heard enough
                except OSError as error:
                    if error.errno != errno.ENOTCONN:
                        raise
                check_answers(heard)
        assert store.get("/mutated/before") == b"x" * 100_000
        with cluster.connect(transport="tcp") as far:
            assert far.get("/mutated/before") == b"x" * 100_000
