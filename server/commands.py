"""The servers' commands of `crailpy`: up, namenode, storage."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import select
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crailpy.config import Settings

    from .storage.service import StorageService
    from .storage.tiers.dram import DramTier
    from .storage.tiers.file import FileTier


FSCK_TIMEOUT = 600.0  # seconds; a namenode looks at all that it has
CONNECT_TIMEOUT = 10.0


# ---- what a service is given -----------------------------------------------------------------


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings, the flags of a command above everything. Raises InvalidArgumentError."""
    from crailpy import config
    from crailpy.errors import InvalidArgumentError

    flags: dict[str, Any] = {
        name: getattr(options, name, None) for name in config.SETTINGS if name != "address"
    }
    for text in getattr(options, "set", []):
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgumentError(f"--set takes NAME=VALUE, not {text!r}")
        if flags.get(name) is None:
            flags[name] = value
    return config.load(flags)


class Ready:
    """Tells whoever started us, in one line of JSON, that we serve or why not."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def tell(self, facts: dict[str, Any]) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, json.dumps(facts).encode() + b"\n")
        except BrokenPipeError:
            pass  # nobody waits any more
        finally:
            os.close(fd)


async def _until_told_to_end(
    options: argparse.Namespace, *reasons: Coroutine[Any, Any, Any]
) -> bool:
    """Returns at SIGTERM, SIGINT, the end of the lifeline, or the first of the reasons, whose
    exception is raised. True: the lifeline ended, so whoever started us is dead."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[bool] = loop.create_future()

    def finish(orphaned: bool) -> None:
        if not end.done():
            end.set_result(orphaned)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, finish, False)
    if options.lifeline_fd is not None:
        os.set_blocking(options.lifeline_fd, False)
        loop.add_reader(options.lifeline_fd, finish, True)
    tasks = [asyncio.create_task(reason) for reason in reasons]
    try:
        await asyncio.wait([end, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
        return end.done() and end.result()
    finally:
        if options.lifeline_fd is not None:
            loop.remove_reader(options.lifeline_fd)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _run_service(options: argparse.Namespace, service: Callable[[Ready], Awaitable[bool]]) -> int:
    """Runs a service to its end; errors go to whoever waits for us to be ready, or to stderr."""
    from crailpy import hello
    from crailpy.errors import CrailError

    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    ready = Ready(options.ready_fd)

    async def main() -> bool:
        return await service(ready)

    try:
        orphaned = asyncio.run(main())
    except (CrailError, OSError, RuntimeError) as error:
        if options.ready_fd is None or ready._fd is None:
            print(f"crailpy: {error}", file=sys.stderr)
        facts = hello.error_reply(error)
        facts["error"]["message"] = getattr(error, "message", None) or str(error)
        ready.tell(facts)
        return 1
    if orphaned and options.folder_lock_fd is not None:
        _remove_folder_if_last(options.folder_lock_fd)
    return 0


def _remove_folder_if_last(lock_fd: int) -> None:
    from .local import remove_if_unheld

    folder = os.path.dirname(os.readlink(f"/proc/self/fd/{lock_fd}"))
    os.close(lock_fd)
    remove_if_unheld(folder)


# ---- namenode --------------------------------------------------------------------------------


def namenode(options: argparse.Namespace) -> int:
    """Runs a namenode until it is told to end."""

    async def service(ready: Ready) -> bool:
        from .namenode.service import NamenodeService

        node = NamenodeService(
            settings_of(options),
            folder=options.dir,
            runtime_dir=options.runtime_dir,
            insecure=options.insecure,
        )
        await node.start()
        try:
            if options.insecure and not node.settings.token:
                print(
                    "crailpy: --insecure: everybody who can connect may read and change everything",
                    file=sys.stderr,
                )
            facts = {"address": node.address, "unix": node.unix, "port": node.port}
            ready.tell(facts | {"pid": os.getpid()})
            if options.ready_fd is None:
                _say(options, facts, f"namenode at {node.address}")
            return await _until_told_to_end(options, node.stopping.wait())
        finally:
            await node.close()

    return _run_service(options, service)


def _say(options: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    print(json.dumps(facts) if options.json else text, flush=True)


# ---- storage ---------------------------------------------------------------------------------


def storage(options: argparse.Namespace) -> int:
    """Runs a storage server until it is told to end."""

    async def service(ready: Ready) -> bool:
        server = _storage_service(options)
        await server.start()

        async def report() -> None:
            await server.registered.wait()
            facts = {"number": server.number, "port": server.port, "dir": server.tier.folder}
            ready.tell(facts | {"pid": os.getpid()})
            if options.ready_fd is None:
                _say(options, facts, f"storage server {server.number}, data port {server.port}")

        reporting = asyncio.create_task(report())
        try:
            return await _until_told_to_end(options, server.wait_failed())
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            await server.close()

    return _run_service(options, service)


def _storage_service(options: argparse.Namespace) -> StorageService:
    from crailpy.errors import InvalidArgumentError

    from .storage.service import StorageService

    settings = settings_of(options)
    if settings.origin["port"] != "flag":
        settings.port = 0  # else it is the namenode's
    if options.tier not in ("dram", "file"):
        raise InvalidArgumentError(f"--tier {options.tier}: there are dram and file")
    if options.id is not None and (not options.id or "/" in options.id or options.id[0] == "."):
        raise InvalidArgumentError(f"--id {options.id!r}: a name without slashes")
    tier: DramTier | FileTier
    if options.tier == "dram":
        tier, server, ephemeral = _dram_tier(options, settings)
    else:
        tier, server, ephemeral = _file_tier(options, settings)
    return StorageService(
        settings,
        tier,
        server=server,
        namenode=_namenode_of(options.namenode or settings.address),
        ephemeral=ephemeral,
        advertise=options.advertise,
    )


def _dram_tier(options: argparse.Namespace, settings: Settings) -> tuple[DramTier, str, bool]:
    """The tier, the id of the server, and whether its memory goes with it."""
    from crailpy.folders import private_folder

    from .storage.tiers.dram import DramTier

    server, ephemeral = options.id, options.ephemeral
    if server is None:
        if settings.port:
            server = f"{socket.gethostname()}-{settings.port}"
        else:  # nobody could find its memory again
            server, ephemeral = secrets.token_hex(8), ephemeral or options.dir is None
    user = f"crailpy-{os.getuid()}"
    folder = options.dir or os.path.join("/dev/shm", user, server)
    memory = None
    if options.dram_dir or (settings.dram_dir != "/dev/shm" and not options.dir):
        memory = os.path.join(settings.dram_dir, f"{user}-{server}")
    if not options.dir:
        private_folder(os.path.dirname(folder))
    tier = DramTier(folder, memory, dram=settings.dram, region_max=settings.region_max)
    return tier, server, ephemeral


def _file_tier(options: argparse.Namespace, settings: Settings) -> tuple[FileTier, str, bool]:
    """The same. The file knows its server's id; a folder is only for the socket."""
    from crailpy.errors import InvalidArgumentError
    from crailpy.folders import private_folder

    from .storage.tiers.file import FileTier

    if not settings.file_path:
        raise InvalidArgumentError("--tier file: which file?", hint="give --path FILE")
    path = os.path.realpath(settings.file_path)
    folder = options.dir
    if not folder:
        user = private_folder(os.path.join("/dev/shm", f"crailpy-{os.getuid()}"))
        folder = os.path.join(user, f"file-{sha256(os.fsencode(path)).hexdigest()[:16]}")
    tier = FileTier(folder, path, capacity=settings.capacity, region_max=settings.region_max)
    return tier, options.id or "", options.ephemeral


def _namenode_of(address: str) -> tuple[str, int] | str:
    """(host, port) or the path of a unix socket. Raises InvalidArgumentError."""
    from crailpy.errors import InvalidArgumentError

    if address.startswith("crail+unix:///"):
        return address[len("crail+unix://") :]
    host, colon, port = address.removeprefix("crail://").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidArgumentError(f"not a namenode's address: {address!r}")
    return host.strip("[]"), int(port)


# ---- up --------------------------------------------------------------------------------------


def up(options: argparse.Namespace) -> int:
    """A whole store on this machine, until Ctrl-C."""
    from crailpy.errors import CrailError, InvalidArgumentError

    from .local import LocalCluster

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        settings = settings_of(options)
        if options.file and not options.dir:
            raise InvalidArgumentError("--file: in which folder?", hint="give --dir")
        with LocalCluster(
            dram=settings.dram,
            servers=options.servers,
            tiers=("dram", "file") if options.file else None,
            capacity=options.file or 0,
            dir=options.dir,
            durability=settings.durability or ("group" if options.dir else "none"),
            port=settings.port,
            token=settings.token or None,
        ) as cluster:
            everybody = [cluster.namenode, *cluster.servers]
            pids = [server.pid for server in everybody]
            if options.json:
                print(json.dumps({"address": cluster.address, "pids": pids}), flush=True)
            else:
                print(_welcome(cluster.address, settings, options.file), flush=True)
            # Waits for the first to end, or for a signal.
            fds = [os.pidfd_open(pid) for pid in pids]
            ended = select.select(fds, [], [])[0]
            print(f"crailpy: {everybody[fds.index(ended[0])].name} has ended", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return 0
    except (CrailError, OSError) as error:
        print(f"crailpy: {error}", file=sys.stderr)
        return 1


def _welcome(address: str, settings: Settings, file: str | None) -> str:
    from crailpy.units import format_size, parse_size

    from_here = "" if address == "crail://127.0.0.1:9060" else f'"{address}"'
    flag = f" --address {address}" if from_here else ""
    room = f"{format_size(settings.dram)} of memory"
    if file:
        room += f" and {format_size(parse_size(file))} of disk"
    return "\n".join(
        (
            f"crailpy {address}, {room}. Ctrl-C ends it. Try:",
            f"  crailpy put{flag} README.md /readme",
            f"  crailpy ls{flag} -l /",
            f"  python -c 'import crailpy; s = crailpy.connect({from_here});"
            ' s.put("/a", b"b"); print(s.get("/a"))\'',
        )
    )


# ---- fsck ------------------------------------------------------------------------------------


def fsck(options: argparse.Namespace) -> int:
    """Checks a state folder, or asks a namenode that runs; 1 if something is wrong."""
    from crailpy.errors import CrailError

    try:
        report = _fsck_folder(options) if options.dir else _fsck_online(options)
    except (CrailError, OSError) as error:
        print(f"crailpy: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report))
    else:
        for problem in report["problems"]:
            print(": ".join(filter(None, (problem["row"], problem["why"]))))
        for row in report["dropped"]:
            print(f"{'dropped' if options.repair else '--repair would drop'}: {row}")
        print(report["verdict"])
    return 0 if report["ok"] else 1


def _fsck_folder(options: argparse.Namespace) -> dict[str, Any]:
    from .namenode.fsck import Fsck

    of_up = os.path.join(options.dir, "namenode")  # the folder that `crailpy up` was given
    check = Fsck(of_up if os.path.isdir(of_up) else options.dir)
    try:
        ok = check.check()
        report = check.report()
        report["verdict"] = f"{report['rows']} rows, {'all is well' if ok else 'it is damaged'}"
        if not check.repairable:
            report["verdict"] += " and cannot be repaired"
        elif not ok and options.repair:
            report["kept"] = check.repair()
            report["ok"] = True
            report["verdict"] = f"repaired, {report['rows']} rows; the old file is {report['kept']}"
        return report
    finally:
        check.close()


def _fsck_online(options: argparse.Namespace) -> dict[str, Any]:
    import time

    from crailpy import hello
    from crailpy.errors import InvalidArgumentError

    if options.repair:
        raise InvalidArgumentError("--repair needs --dir, and a namenode that does not run")
    settings = settings_of(options)
    where = _namenode_of(options.address or settings.address)
    deadline = time.monotonic() + FSCK_TIMEOUT
    if isinstance(where, str):
        sock = hello.connect_unix(where, CONNECT_TIMEOUT)
    else:
        sock = hello.connect_tcp(*where, CONNECT_TIMEOUT)
    with sock:
        fields = {"role": "admin", "method": "check", "params": {}}
        answer = hello.exchange(sock, fields, token=settings.token or None, deadline=deadline)
    found = answer["result"]
    problems = [] if found["ok"] else [{"row": "", "why": found["why"]}]
    verdict = "all is well" if found["ok"] else "it is damaged"
    return {"ok": found["ok"], "problems": problems, "dropped": [], "verdict": verdict}


# ---- registration ----------------------------------------------------------------------------


def register(subparsers: Any) -> None:
    """Adds the servers' commands to what `ArgumentParser.add_subparsers()` gave."""
    service = argparse.ArgumentParser(add_help=False)
    service.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    service.add_argument("--port", type=int, help="port to listen on; 0: any")
    service.add_argument("--token", help="the cluster's secret (better: $CRAILPY_TOKEN)")
    service.add_argument("--json", action="store_true", help="print facts as JSON")
    service.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting"
    )
    service.add_argument(
        "--log-level", default="warning", choices=["debug", "info", "warning", "error"]
    )
    for name in ("--ready-fd", "--lifeline-fd", "--folder-lock-fd"):
        service.add_argument(name, type=int, help=argparse.SUPPRESS)

    def add(name: str, func: Any, help: str, *parents: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = subparsers.add_parser(
            name, help=help, description=help, parents=list(parents)
        )
        parser.set_defaults(func=func)
        return parser

    p = add("up", up, "run a whole store on this machine; Ctrl-C ends it")
    p.add_argument("--dram", help="memory for values, as 1GiB (the default)")
    p.add_argument("--dir", help="folder of the store's state; without one nothing outlives it")
    p.add_argument(
        "--file", metavar="SIZE", help="as much of the disk for values too, in DIR: they outlive it"
    )
    p.add_argument("--durability", help="sync, group (the default with --dir) or none")
    p.add_argument("--port", type=int, help="port of the namenode (default 9060); 0: any")
    p.add_argument("--servers", type=int, default=1, help="storage servers (default 1)")
    p.add_argument("--token", help="the secret to ask for (better: $CRAILPY_TOKEN)")
    p.add_argument("--json", action="store_true", help="print facts as JSON")

    p = add("namenode", namenode, "run a namenode", service)
    p.add_argument("--dir", help="folder of its state; without one nothing outlives it")
    p.add_argument("--durability", help="sync, group (the default with --dir) or none")
    p.add_argument("--group-interval", help="what group may lose, as 250ms (the default)")
    p.add_argument("--runtime-dir", help="folder for its unix socket")
    p.add_argument(
        "--insecure",
        action="store_true",
        help="serve the network without a token: everybody may read and change everything",
    )

    p = add("fsck", fsck, "check a namenode's state; 1 if something is wrong")
    p.add_argument("--dir", help="state folder of a store or namenode that does not run")
    p.add_argument("--address", help="of a namenode that runs (default: as the clients find it)")
    p.add_argument("--token", help="the cluster's secret (better: $CRAILPY_TOKEN)")
    p.add_argument("--repair", action="store_true", help="drop what is damaged, by name")
    p.add_argument("--json", action="store_true", help="print facts as JSON")

    p = add("storage", storage, "run a storage server", service)
    p.add_argument("--tier", default="dram", choices=["dram", "file", "nvmf"])
    p.add_argument("--location", help="location class, for values that prefer to be near")
    p.add_argument("--storage-class", help="rank, 0 to 254: low ones fill first")
    p.add_argument("--dram", help="memory to offer, as 1GiB (the default)")
    p.add_argument(
        "--path", dest="file_path", metavar="FILE", help="file or block device of the file tier"
    )
    p.add_argument("--capacity", help="how much of it, as 10GiB (default for a device: all)")
    p.add_argument("--dram-dir", help="file system for the memory, one with huge pages perhaps")
    p.add_argument("--namenode", metavar="ADDRESS", help="crail://host:port of the namenode")
    p.add_argument("--dir", help="folder of its state (default: in /dev/shm, by its id)")
    p.add_argument("--id", help="its name over restarts (default: host name and port)")
    p.add_argument("--advertise", metavar="HOST", help="what clients connect to")
    p.add_argument("--ephemeral", action="store_true", help="the memory goes with the process")
