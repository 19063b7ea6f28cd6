"""A Redis of this run's own, for `crailpy bench` to be compared with, where one is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

START_SECONDS_MAX = 10.0


def start(
    stack: contextlib.ExitStack, note: Callable[[str], None]
) -> tuple[int, dict[str, Any]] | None:
    """Starts redis-server until `stack` closes. Its pid, and a client over "unix" and "tcp".

    None, and words to `note`, where redis-py or redis-server is not installed or does not start.
    """
    try:
        import redis  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        note("Redis: not compared, redis-py is not installed (pip install 'redis[hiredis]')")
        return None
    server = shutil.which("redis-server")
    if server is None:
        note("Redis: not compared, there is no redis-server on PATH")
        return None
    try:
        import hiredis  # type: ignore[import-not-found, unused-ignore] # noqa: F401
    except ImportError:
        note("Redis: hiredis is not installed, so redis-py parses in Python")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crailpy-bench-"))
    path = os.path.join(folder, "redis.sock")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    places = ["--bind", "127.0.0.1", "--port", str(port), "--unixsocket", path, "--dir", folder]
    process = subprocess.Popen([server, *places, "--save", ""], stdout=subprocess.DEVNULL)
    stack.callback(end, process)
    clients = {
        "unix": redis.Redis(unix_socket_path=path, socket_timeout=30),
        "tcp": redis.Redis(host="127.0.0.1", port=port, socket_timeout=30),
    }
    deadline = time.monotonic() + START_SECONDS_MAX
    for client in clients.values():
        stack.callback(client.close)
        while not _answers(client, redis.ConnectionError):
            if time.monotonic() > deadline or process.poll() is not None:
                note("Redis: not compared, redis-server did not start")
                return None
            time.sleep(0.02)
    return process.pid, clients


def _answers(client: Any, absent: type[Exception]) -> bool:
    try:
        client.ping()
    except absent:
        return False
    return True


def end(process: subprocess.Popen[Any]) -> None:
    """Ends a process that this run started, and closes what is open to it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()
