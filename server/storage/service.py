"""A storage server: offers a tier's regions, registers them, and hands connections to the core."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

from crailpy import channel, control, hello, native
from crailpy.channel import Channel
from crailpy.config import Settings
from crailpy.control import Registration
from crailpy.errors import (
    AuthError,
    ClosedError,
    CrailError,
    ExistsError,
    InvalidArgumentError,
    ProtocolError,
    StaleLocationError,
    UnavailableError,
)
from crailpy.model import MAPPED_TIERS, STORAGE_CLASSES

from ..reception import Reception, Visit
from ..threads import Threads
from .tiers.dram import DramTier
from .tiers.file import FileTier

log = logging.getLogger("crailpy.storage")

CALL_TIMEOUT = 10.0  # seconds, for a question to the namenode
RECOVER_TIMEOUT = 60.0  # likewise, where it has much to unpack
RUN_BYTES = 12  # region, granule, granules
RETRY_FIRST = 0.02  # seconds until the next attempt to reach the namenode; doubles
RETRY_MAX = 0.25
TAKEN_PATIENCE = 3.0  # seconds, while another server has our id: it may be our own last life


class StorageService:
    """One storage server. start(), then wait for whatever ends it, then close().

    `server`: its id ("": that of its file). `namenode`: (host, port), or the path of its unix
    socket. `ephemeral`: the memory, or the file, goes with the process. `advertise`: what clients
    are told instead of the address that the namenode sees."""

    def __init__(
        self,
        settings: Settings,
        tier: DramTier | FileTier,
        *,
        server: str,
        namenode: tuple[str, int] | str,
        ephemeral: bool = False,
        advertise: str | None = None,
    ) -> None:
        self.settings = settings
        self.tier = tier
        self.port = 0
        self.number = 0
        self.registered = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._server = server
        self._namenode = namenode
        self._token: str | None = settings.token or None
        self._ephemeral = ephemeral
        self._advertise = advertise
        self._key = b""  # of the cluster, once registered
        self._control: Channel | None = None
        self._pause = RETRY_FIRST  # until the namenode is tried again
        self._told = False  # was it logged that it is not there, or does not let us in?
        self._disk_failed = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._threads = Threads()

    async def start(self) -> None:
        """Takes the memory, listens, and begins to register; `registered` says when that is done.

        Raises OutOfSpaceError, OSError."""
        self._core = native.Storage()
        self._reception = Reception(
            {"data": self._data, **({"shm": self._shm} if self._is_mapped else {})},
            token=None,  # the session's key is the proof
            hello_timeout=self.settings.hello_timeout,
        )
        try:
            await self._threads.run(self._take_memory)
            self._watch_disk()
            self.port = self._reception.listen_tcp(self.settings.host, self.settings.port)
            self._reception.listen_unix(self.tier.socket_path)
        except BaseException:
            await self.close()
            raise
        self._life = asyncio.get_running_loop().create_task(self._stay_registered())

    @property
    def _is_mapped(self) -> bool:
        return self.tier.name in MAPPED_TIERS

    def _take_memory(self) -> None:
        """Also that of a file tier, which is none."""
        found = self.tier.open(self._server)
        if found and isinstance(self.tier, DramTier):
            try:
                self.tier.adopt_tables(self._core)
            except (CrailError, OSError) as error:
                log.warning("cannot know who reads the memory: %s: made anew", error)
                self._core.close()
                self._core = native.Storage()
                self.tier.fresh()
        self.tier.attach(self._core)

    async def close(self) -> None:
        """Says goodbye, ends every connection and the core; removes the memory if it is ephemeral.
        May be called twice."""
        if self._control is not None:
            try:
                await self._control.call(
                    control.LEAVE, {"forget": self._ephemeral}, timeout=CALL_TIMEOUT / 10
                )
            except (CrailError, OSError):
                pass  # it will notice
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        await self._reception.close()
        await self._threads.finish()
        self._close_core()
        if self._ephemeral:
            await self._threads.run(self.tier.remove)
        await self._threads.run(self.tier.close)

    def _close_core(self) -> None:
        if not self._core.closed and (fd := self._core.failed_fd()) is not None:
            asyncio.get_running_loop().remove_reader(fd)
        self._core.close()

    def _watch_disk(self) -> None:
        """A disk that fails is told of at once: nothing more is to be placed there."""
        fd = self._core.failed_fd()
        if fd is not None:
            asyncio.get_running_loop().add_reader(fd, self._on_disk_failed, fd)

    def _on_disk_failed(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        why = os.strerror(self._core.stats()["disk_errno"])
        log.error("%s: %s: it has failed until this server is started again", self._disk, why)
        self._disk_failed.set()

    @property
    def _disk(self) -> str:
        return self.tier.path if isinstance(self.tier, FileTier) else self.tier.folder

    async def wait_failed(self) -> None:
        """Never returns; raises what ends the server by itself, when it does."""
        await asyncio.shield(self._failed)

    # -- the namenode --------------------------------------------------------------------------

    async def _stay_registered(self) -> None:
        while True:
            try:
                sock, _ = await self._dial({"role": "control", "server": self.tier.server})
                await self._serve_control(sock)
            except ExistsError as error:
                self._failed.set_exception(error)
                return
            except (AuthError, ProtocolError, InvalidArgumentError) as error:
                if not self.registered.is_set() and not self._key:
                    self._failed.set_exception(error)  # it was never let in: say so and end
                    return
                if not self._told:
                    log.error("the namenode refuses: %s", error)
                self._told = True
            except (CrailError, OSError) as error:
                if not self._told:
                    log.warning("no namenode: %s: trying on", error)
                self._told = True
            except Exception as error:
                self._failed.set_exception(error)
                return
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, RETRY_MAX)

    async def _dial(self, fields: dict[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
        return await channel.connect(
            self._namenode, fields, token=self._token, timeout=self.settings.hello_timeout
        )

    async def _serve_control(self, sock: socket.socket) -> None:
        """One control connection, from registration to its end."""
        link = Channel(sock, {control.CHANNEL: self._reopen_channel})
        run = asyncio.get_running_loop().create_task(link.run())
        failed: asyncio.Task[bool] | None = None
        try:
            await self._register(link, sock)
            self._control = link
            self.registered.set()
            self._pause, self._told = RETRY_FIRST, False
            failed = asyncio.get_running_loop().create_task(self._disk_failed.wait())
            watched = {run, failed}
            while not run.done():
                done, _ = await asyncio.wait(
                    watched, timeout=self.settings.heartbeat, return_when=asyncio.FIRST_COMPLETED
                )
                watched -= done
                if not run.done():
                    stats = {"stats": self._core.stats()}
                    await link.call(control.HEARTBEAT, stats, timeout=CALL_TIMEOUT)
        finally:
            self._control = None
            link.close()
            if failed is not None:
                failed.cancel()
            await asyncio.gather(run, return_exceptions=True)
        log.warning("lost the namenode")

    async def _register(self, link: Channel, sock: socket.socket) -> None:
        reply = await self._ask_to_register(link, sock)
        if reply.get("fresh"):
            if isinstance(self.tier, FileTier):
                self.tier.check_state(str(reply.get("state")))
            log.warning("the namenode does not know this memory: made anew")
            await self._start_afresh()
            reply = await self._ask_to_register(link, sock)
        number, key = reply.get("number"), reply.get("mac_key")
        if not isinstance(number, int) or not isinstance(key, bytes) or len(key) != 16:
            raise ProtocolError("the namenode's answer to register")
        self._core.identity(number, key)
        self.number, self._key = number, key
        state = str(reply.get("state"))
        await self._threads.run(lambda: self._remember(state))
        native.failpoint("registered")
        if reply.get("recover"):
            await self._recover(link)
        await self._open_channel()

    def _remember(self, state: str) -> None:
        if isinstance(self.tier, FileTier):
            self.tier.remember_registered(state)
        else:
            self.tier.remember_registered()

    async def _recover(self, link: Channel) -> None:
        """The namenode was started again: it says what is to be kept, and hears what there is once
        all else is retired. If either of us ends meanwhile, it begins anew."""
        live = bytearray()
        while True:
            first = len(live) // RUN_BYTES
            reply = await link.call(control.LIVE, {"first": first}, timeout=CALL_TIMEOUT)
            runs = zlib.decompress(reply["runs"])
            if not runs:
                break
            live += runs
        core = self._core
        busy = await self._threads.run(lambda: core.retire_others(bytes(live)))
        pieces = self._recovered(core, busy)
        data = await self._threads.run(lambda: next(pieces, None))
        while data is not None:
            following = await self._threads.run(lambda: next(pieces, None))
            await link.call(
                control.RECOVERED,
                {
                    "data": data,
                    "last": following is None,
                    "disk_errno": core.stats()["disk_errno"],
                },
                timeout=RECOVER_TIMEOUT,
            )
            data = following
        native.failpoint("recovered-told")
        log.info("recovered: %d runs kept, %d busy", len(live) // RUN_BYTES, len(busy) // RUN_BYTES)

    def _recovered(self, core: native.Storage, busy: bytes) -> Iterator[bytes]:
        """What recovery tells the namenode, in pieces for one message each; at least one."""
        stream = zlib.compressobj(1)
        packed = bytearray()
        for region, granules in enumerate(self.tier.granules):
            packed += stream.compress(core.generations(region, granules))
            while len(packed) > control.PIECE_BYTES:
                yield bytes(packed[: control.PIECE_BYTES])
                del packed[: control.PIECE_BYTES]
        packed += stream.compress(busy) + stream.flush()
        for at in range(0, len(packed), control.PIECE_BYTES):
            yield bytes(packed[at : at + control.PIECE_BYTES])

    def _storage_class(self) -> int:
        """Its rank: what was set, else that of its tier."""
        rank: int = self.settings.storage_class
        return rank if rank != 255 else STORAGE_CLASSES[self.tier.name]

    async def _ask_to_register(self, link: Channel, sock: socket.socket) -> dict[str, Any]:
        new = Registration(
            server=self.tier.server,
            incarnation=self.tier.incarnation,
            history=self.tier.registered,
            regions=self.tier.granules,
            tier=self.tier.name,
            storage_class=self._storage_class(),
            location=self.settings.location,
            host=self._host_for_clients(sock),
            port=self.port,
            unix=self.tier.socket_path,
            host_identity=hello.host_identity(),
            heartbeat=self.settings.heartbeat,
        )
        if self._core.regions != len(new.regions):
            raise RuntimeError(f"{self._core.regions} of {len(new.regions)} regions are served")
        deadline = time.monotonic() + TAKEN_PATIENCE
        while True:
            try:
                reply = await link.call(control.REGISTER, new.message(), timeout=CALL_TIMEOUT)
            except ExistsError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_FIRST)
                continue
            if not isinstance(reply, dict):
                raise ProtocolError("the namenode's answer to register")
            return reply

    def _host_for_clients(self, sock: socket.socket) -> str:
        """Where clients reach the TCP port: what we listen on, or the side of us that the namenode
        sees if we listen on everything."""
        if self._advertise:
            return self._advertise
        host: str = self.settings.host
        if host not in ("", "0.0.0.0", "::"):
            return host
        return "127.0.0.1" if sock.family == socket.AF_UNIX else str(sock.getsockname()[0])

    async def _start_afresh(self) -> None:
        """New memory, new core. What mapped the old memory keeps it, and will find it stale."""
        self.registered.clear()
        self._close_core()
        self.number = 0
        try:
            self._core = native.Storage()
            await self._threads.run(self._make_fresh)
            self._disk_failed.clear()
            self._watch_disk()
        except Exception as error:  # without memory there is nothing to serve: the process ends
            raise RuntimeError(f"cannot make the memory anew: {error}") from error

    def _make_fresh(self) -> None:
        self.tier.fresh()
        self.tier.attach(self._core)

    async def _open_channel(self) -> None:
        sock, _ = await self._dial(
            {"role": "retire", "number": self.number, "incarnation": self.tier.incarnation}
        )
        self._core.channel(channel.take_descriptor(sock))

    async def _reopen_channel(self, message: dict[str, Any]) -> None:
        await self._open_channel()

    # -- clients -------------------------------------------------------------------------------

    async def _check_session(self, visit: Visit) -> int:
        """The number of a session that the namenode has opened. Waits for the registration within
        the time of the hello. Raises AuthError, ProtocolError."""
        session = visit.number("session", 64)
        await self.registered.wait()
        given = visit.request.get("session_key")
        wanted = hello.session_key(self._key, session)
        if not isinstance(given, bytes) or not hmac.compare_digest(given, wanted):
            raise AuthError("not a session of this cluster", hint="connect again")
        return session

    async def _shm(self, visit: Visit) -> None:
        if not visit.unix:
            raise ProtocolError("shm is served on the unix socket only")
        session = await self._check_session(visit)
        write = bool(visit.request.get("write"))
        core, tier = self._core, self.tier
        assert isinstance(tier, DramTier)
        fds = tier.descriptors(write=write)
        handle = None
        try:
            if not write:
                use_fd, handle = core.use_create(tier.new_table_path(), session)
                fds.append(use_fd)
            await visit.reply_with_descriptors({"regions": self.tier.granules}, fds)
        except BaseException:
            if handle is not None:
                self._end_table(core, handle, fds)
            raise
        finally:
            for fd in fds:
                os.close(fd)
            fds.clear()
        try:
            await visit.gone()
        finally:
            if handle is not None:
                self._end_table(core, handle, fds)

    def _end_table(self, core: native.Storage, handle: int, fds: list[int]) -> None:
        while fds:  # our own copy would keep the table's lock
            os.close(fds.pop())
        try:
            core.use_closed(handle)
        except ClosedError:
            pass  # the memory was made anew meanwhile, or the server ends

    async def _data(self, visit: Visit) -> None:
        await self._check_session(visit)
        if visit.number("number", 32) != self.number:
            raise StaleLocationError("this incarnation of the server is gone")
        if not self.number:
            raise UnavailableError("not registered at the moment")
        await visit.reply({"ok": True})
        self._core.data_attach(visit.take())
