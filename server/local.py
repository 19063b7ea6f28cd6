"""LocalCluster: a namenode and storage servers of this machine, as real processes.

Nothing stays behind, whatever happens:

- close(), the end of the `with` block, an exception, Ctrl-C: the processes are asked to end, killed
  if they do not, and the cluster's folder is removed.
- The parent dies by any death: every child reads the end of its *lifeline*, a pipe whose other end
  only the parent holds, and ends. All processes hold one lock on the folder; the last one that can
  have it alone removes the folder.
- All die at once: the next cluster of this user removes the folder, since nobody holds its lock.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import crailpy
from crailpy.config import SETTINGS
from crailpy.errors import ClosedError, InvalidArgumentError, UnavailableError, from_code
from crailpy.folders import private_folder
from crailpy.units import parse_size

from . import ports

BASE = "/dev/shm"
HOST = "127.0.0.1"
FILES = "files"  # in a cluster's folder: a link to where the files of the file tier are
START_TIMEOUT = 60.0  # seconds; taking much memory takes long
STOP_TIMEOUT = 5.0
DURABILITIES = ("sync", "group", "none")
TIERS = ("dram", "file")

_living: set[LocalCluster] = set()


class Server:
    """One process of a cluster: the namenode or a storage server. stop(), kill() and start() may
    come in any order; it keeps its port and its folder."""

    def __init__(self, cluster: LocalCluster, name: str, arguments: list[str], port: int) -> None:
        self.name = name
        self.port = cluster._hold_port(port)
        self._cluster = cluster
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._ready = -1

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.alive else "not running"
        return f"<{self.name} of a LocalCluster, {state}>"

    @property
    def pid(self) -> int:
        """The id of its process; of its last one, if it does not run."""
        return self._pid

    @property
    def alive(self) -> bool:
        """Does the process run?"""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it and waits until it serves; nothing if it runs. Raises what it fails with,
        UnavailableError, ClosedError."""
        if not self.alive:
            self._launch()
            self._wait_ready()

    def _launch(self) -> None:
        if self._cluster.closed:
            raise ClosedError("the cluster is closed")
        self._reap()
        ready, ready_child = os.pipe2(os.O_CLOEXEC)
        kept = (ready_child, self._cluster._lifeline_child, self._cluster._lock)
        command = [sys.executable, "-m", "crailpy.cli", *self._arguments]
        command += ["--port", str(self.port), "--ready-fd", str(ready_child)]
        command += ["--lifeline-fd", str(kept[1]), "--folder-lock-fd", str(kept[2])]
        environment = dict(os.environ)
        if "token" in self._cluster._options:  # never on a command line, where all can read it
            environment["CRAILPY_TOKEN"] = self._cluster._options["token"]
        try:
            # A session of its own: the terminal's Ctrl-C is for the parent, which ends us in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=kept,
                start_new_session=True,
                env=environment,
            )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(ready_child)
        self._pid = self._process.pid
        self._ready = ready

    def _wait_ready(self) -> None:
        """Reads the one line that the process writes when it serves, or when it cannot."""
        line = b""
        deadline = time.monotonic() + START_TIMEOUT
        try:
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._ready], [], [], left)[0]:
                    raise UnavailableError(f"{self.name} was not ready in {START_TIMEOUT:g} s")
                part = os.read(self._ready, 65536)
                if not part:
                    code = self._process.wait(STOP_TIMEOUT) if self._process else None
                    raise UnavailableError(f"{self.name} ended at its start (exit code {code})")
                line += part
        finally:
            os.close(self._ready)
            self._ready = -1
        facts = json.loads(line)
        if "error" in facts:
            error = facts["error"]
            self._reap()
            raise from_code(error["code"], f"{self.name}: {error['message']}", hint=error["hint"])
        self.port = facts["port"]

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _reap(self, timeout: float = STOP_TIMEOUT) -> None:
        """Waits for the end; kills if it does not come in time."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def stop(self) -> None:
        """Asks it to end, and waits until it has. A storage server's memory stays for start()."""
        self._signal(signal.SIGTERM)
        self._reap()

    def kill(self) -> None:
        """Ends it at once, by SIGKILL."""
        self._signal(signal.SIGKILL)
        self._reap()


class LocalCluster:
    """A whole store on this machine, for tests, notebooks and jobs on one host.

        with crailpy.LocalCluster(dram="256MiB", servers=2) as cluster:
            store = cluster.connect()

    `tiers`: ("dram",) unless it is given; also "file". There are `servers` storage servers of each
    tier, with `dram` bytes of memory or a file of `capacity` bytes. `dir`: a folder where the
    namenode keeps its state for the next cluster, and where the files of the file tier lie; None:
    folders that go with this cluster, so that `.namenode` can be killed and started again.
    `durability`: when a change is acknowledged ("sync", "group"; "none": no state at all).
    `options` are settings of crailpy.config: `token`, `host`, `port` (of the namenode),
    `session_grace`, `group_interval`, `dram_dir`, ...

    `.address`, `.namenode`, `.servers[i]` (Server). It runs when the constructor returns.

    Raises InvalidArgumentError, OutOfSpaceError, UnavailableError."""

    def __init__(
        self,
        *,
        dram: str | int = "256MiB",
        servers: int = 1,
        tiers: Any = None,
        capacity: str | int = "1GiB",
        dir: str | os.PathLike[str] | None = None,
        block_size: str | int = "1MiB",
        durability: str = "group",
        **options: Any,
    ) -> None:
        tiers = TIERS[:1] if tiers is None else tuple(tiers)
        for tier in tiers:
            check_tier(tier)
        if durability not in DURABILITIES:
            raise InvalidArgumentError(f"durability: {durability!r} is none of {DURABILITIES}")
        if servers < 0:
            raise InvalidArgumentError(f"servers: {servers} is negative")
        parse_size(block_size)
        self._options = {
            name: _setting(name, value) for name, value in options.items() if value is not None
        }
        self._dram = parse_size(dram)
        self._capacity = parse_size(capacity)
        self._files_dir = None if dir is None else os.path.abspath(dir)
        self._owner = os.getpid()
        self.closed = False
        self.namenode: Server
        self.servers: list[Server] = []
        base = self._options.pop("dram_dir", BASE)
        self._open_folder(os.path.abspath(base))
        self._state = [f"--durability={durability}"]
        if durability != "none":
            state = os.path.join(self.folder if dir is None else dir, "namenode")
            self._state += ["--dir", os.path.abspath(state)]
        self._held: list[socket.socket] = []
        self._lifeline_child, self._lifeline = os.pipe2(os.O_CLOEXEC)
        _living.add(self)
        try:
            self._start([tier for tier in tiers for _ in range(servers)])
        except BaseException:
            self.close()
            raise

    # -- the folder ----------------------------------------------------------------------------

    def _open_folder(self, base: str) -> None:
        self._base = os.path.join(base, f"crailpy-{os.getuid()}")
        self._made = missing_folders(base)
        while True:
            private_folder(self._base)
            sweep(self._base)
            self.folder = os.path.join(self._base, f"lc-{secrets.token_hex(4)}")
            try:
                self._lock = make_locked(self.folder)
                return
            except FileNotFoundError:
                pass  # another cluster has just removed the base, empty as it was

    def _file_folder(self) -> str:
        """Where the file tier's files lie: not in memory, as our folder may be. The link in it says
        where, to whoever removes it."""
        if self._files_dir is not None:
            return self._files_dir
        link = os.path.join(self.folder, FILES)
        if os.path.islink(link):
            return os.readlink(link)
        base = os.path.join(tempfile.gettempdir(), f"crailpy-{os.getuid()}")
        folder = os.path.join(base, os.path.basename(self.folder))
        os.symlink(folder, link)
        while True:
            private_folder(base)
            try:
                os.mkdir(folder, 0o700)
                return folder
            except FileNotFoundError:
                pass  # another cluster has just removed the base, empty as it was

    # -- processes -----------------------------------------------------------------------------

    @property
    def _host(self) -> str:
        return str(self._options.get("host") or HOST)

    def _hold_port(self, port: int) -> int:
        """Keeps a port (0: any free one) for a server of ours for as long as we live: while the
        server is away, nobody is given it by chance. Gives back which."""
        try:
            self._held.append(ports.bound(self._host, port))
        except OSError:
            return port  # the server will say what is wrong
        return int(self._held[-1].getsockname()[1])

    def _start(self, tiers: list[str]) -> None:
        port = int(self._options.pop("port", 0))
        arguments = ["namenode", "--runtime-dir", self.folder, *self._state, *self._flags()]
        self.namenode = Server(self, "namenode", arguments, port)
        self.namenode.start()
        for tier in tiers:
            self.servers.append(self._new_server(tier, self._size_of(tier, None)))
        for server in self.servers:
            server._launch()
        for server in self.servers:
            server._wait_ready()

    def _size_of(self, tier: str, given: str | int | None) -> int:
        if given is not None:
            return parse_size(given)
        return self._dram if tier == "dram" else self._capacity

    def _new_server(self, tier: str, size: int, *flags: str) -> Server:
        name = f"storage-{len(self.servers)}"
        room = ["--dram", str(size)]
        if tier == "file":
            room = ["--capacity", str(size), "--path", os.path.join(self._file_folder(), name)]
            room[-1] += ".data"
        arguments = [
            *("storage", "--tier", tier, *room, "--id", name),
            *("--dir", os.path.join(self.folder, name)),
            *("--namenode", f"crail+unix://{self.folder}/nn-{self.namenode.port}.sock"),
            *self._flags(),
            *flags,
        ]
        return Server(self, name, arguments, 0)

    def _flags(self) -> list[str]:
        flags = []
        for name, value in self._options.items():
            if name != "token":
                flags += ["--set", f"{name}={value}"]
        return flags

    def add_server(
        self,
        *,
        tier: str = "dram",
        dram: str | int | None = None,
        capacity: str | int | None = None,
        location: str = "",
        storage_class: int | None = None,
    ) -> Server:
        """Starts one more storage server: of a tier, with `dram` bytes of memory or a file of
        `capacity` bytes, of a location class and a rank (low ones fill first). Raises
        InvalidArgumentError, OutOfSpaceError, UnavailableError, ClosedError."""
        if self.closed:
            raise ClosedError("the cluster is closed")
        check_tier(tier)
        size = self._size_of(tier, dram if tier == "dram" else capacity)
        flags = ["--set", f"location={location}"] if location else []
        if storage_class is not None:
            flags += ["--set", f"storage_class={storage_class}"]
        server = self._new_server(tier, size, *flags)
        server.start()
        self.servers.append(server)
        return server

    # -- use -----------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """What crailpy.connect takes."""
        host = self._host
        return f"crail://{f'[{host}]' if ':' in host else host}:{self.namenode.port}"

    def connect(self, **options: Any) -> crailpy.Store:
        """A store of this cluster; `options` are those of crailpy.connect."""
        options.setdefault("token", self._options.get("token"))
        return crailpy.connect(self.address, **options)

    def close(self) -> None:
        """Ends all processes and removes everything. May be called twice; does nothing in a forked
        child."""
        if self.closed or os.getpid() != self._owner:
            return
        self.closed = True
        storages: list[Any] = [*self.servers]
        everybody = [*storages, *([self.namenode] if hasattr(self, "namenode") else [])]
        deadline = time.monotonic() + STOP_TIMEOUT
        try:
            # storage servers take their leave while there is somebody to take it of
            for group in (storages, everybody[len(storages) :]):
                for server in group:
                    server._signal(signal.SIGTERM)
                for server in group:
                    server._reap(max(0.0, deadline - time.monotonic()))
        except BaseException:  # Ctrl-C once more
            for server in everybody:
                server.kill()
            raise
        finally:
            remove_with_files(self.folder)
            remove_if_empty(self._base)
            for folder in self._made:
                remove_if_empty(folder)
            self._forget()
            _living.discard(self)

    def _forget(self) -> None:
        for fd in (self._lifeline, self._lifeline_child, self._lock):
            os.close(fd)
        for sock in self._held:
            sock.close()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.address}"
        return f"<crailpy.LocalCluster {state}, {len(self.servers)} storage servers>"


def check_tier(tier: object) -> None:
    """Raises InvalidArgumentError if there is no such tier."""
    if tier not in TIERS:
        raise InvalidArgumentError(f"tier {tier!r} is none of {', '.join(TIERS)}")


def _setting(name: str, value: Any) -> Any:
    if name not in SETTINGS:
        raise InvalidArgumentError(
            f"LocalCluster has no option {name!r}", hint="options: " + ", ".join(SETTINGS)
        )
    return SETTINGS[name].parse(value, "LocalCluster")


# ---- folders that go with the last process that holds their lock ---------------------------------


def make_locked(folder: str) -> int:
    """Makes the folder with a lock in it; returns the lock's descriptor. It appears under its name
    only when it is locked."""
    hidden = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}")
    os.mkdir(hidden, 0o700)
    fd = os.open(os.path.join(hidden, "alive"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    os.rename(hidden, folder)
    return fd


def remove_with_files(folder: str) -> None:
    """Removes the folder of a cluster, and the one that its link names."""
    try:
        files = os.readlink(os.path.join(folder, FILES))
    except OSError:
        pass
    else:
        shutil.rmtree(files, ignore_errors=True)
        remove_if_empty(os.path.dirname(files))
    shutil.rmtree(folder, ignore_errors=True)


def remove_if_unheld(folder: str) -> bool:
    """Removes the folder of a cluster all of whose processes are gone."""
    try:
        fd = os.open(os.path.join(folder, "alive"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_with_files(folder)
    except OSError:
        return False
    finally:
        os.close(fd)
    remove_if_empty(os.path.dirname(folder))
    return True


def missing_folders(path: str) -> list[str]:
    """`path` and the folders above it that are not there, the innermost first."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def remove_if_empty(folder: str) -> None:
    """Removes the folder if nothing is in it."""
    try:
        os.rmdir(folder)
    except OSError:
        pass


def sweep(base: str) -> None:
    """Removes the folders of clusters that were killed as a whole."""
    try:
        names = os.listdir(base)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith("lc-"):
            remove_if_unheld(os.path.join(base, name))


# ---- the ends of the parent's process ------------------------------------------------------------


def _close_all() -> None:
    for cluster in list(_living):
        cluster.close()


def _after_fork_in_child() -> None:
    """A forked child must not keep the parent's cluster alive."""
    for cluster in _living:
        cluster._forget()
    _living.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
