"""The namenode's control plane: hears hellos, hands lanes to the core, keeps the members."""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import os
import secrets
import time
import zlib
from typing import Any

from crailpy import __version__, control, hello, native
from crailpy.channel import Channel
from crailpy.config import Settings
from crailpy.control import Registration
from crailpy.errors import (
    CrailError,
    InvalidArgumentError,
    ProtocolError,
    SessionLostError,
    StaleLocationError,
    UnavailableError,
)
from crailpy.folders import private_folder, runtime_dir

from ..reception import Reception, Visit, check_exposure
from ..threads import Threads
from .database import FILE, GRANTS, damaged
from .members import Member, Members
from .persist import Persister, State
from .recovery import Recovery

log = logging.getLogger("crailpy.namenode")

LIMITS = {"inline_max": 4096, "vector_ops_max": 1024, "frame_bytes_max": 8 << 20}
CALL_TIMEOUT = 10.0  # seconds, for a question to a storage server
SETTLE_TIMEOUT = 1.0  # seconds, until a new session or server is durable


class NamenodeService:
    """One namenode. start(), then wait for whatever ends it, then close().

    `folder`: where its state is kept; without one nothing is durable. Raises
    InvalidArgumentError."""

    def __init__(
        self,
        settings: Settings,
        *,
        folder: str | None = None,
        runtime_dir: str | None = None,
        insecure: bool = False,
    ) -> None:
        self.settings = settings
        self.durability = durability_of(settings, folder)
        self.cluster = secrets.token_hex(8)
        self.port = 0
        self.unix = ""
        self.stopping = asyncio.Event()
        self._insecure = insecure
        self._token: str | None = settings.token or None
        self._runtime_dir = runtime_dir
        self._folder = folder
        self._state: State | None = None
        self._persister: Persister | None = None
        self._key = secrets.token_bytes(16)
        self._born = time.monotonic()
        self._sessions: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = Threads()

    @property
    def address(self) -> str:
        """Where clients find it."""
        host = self.settings.host
        return f"crail://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Starts the core and listens. Raises OSError, AuthError (open to the network without a
        token), InvalidArgumentError."""
        check_exposure(self.settings.host, self._token, self._insecure)
        self._reception = Reception(
            {
                "lane": self._lane,
                "control": self._control,
                "retire": self._retire,
                "admin": self._admin,
            },
            token=self._token,
            hello_timeout=self.settings.hello_timeout,
            own_user=not self._token and not self._insecure,  # then it is loopback
        )
        try:
            await self._start_core()
            self.port = self._reception.listen_tcp(self.settings.host, self.settings.port)
            folder = private_folder(self._runtime_dir or runtime_dir())
            path = os.path.join(folder, f"nn-{self.port}.sock")
            if len(os.fsencode(path)) > 107:
                raise InvalidArgumentError(f"too long for a unix socket: {path}")
            self._reception.listen_unix(path)
            self.unix = path
        except BaseException:
            await self.close()
            raise
        log.info("namenode of cluster %s at %s and %s", self.cluster, self.address, self.unix)

    async def _start_core(self) -> None:
        """The core, with all that its state folder has, before anybody can connect."""
        if self._folder is not None and self.durability != "none":
            self._state = state = await self._threads.run(lambda: State(self._folder or ""))
            superblock = await self._threads.run(state.superblock)
            self.cluster, self._key = superblock.cluster, superblock.key
        try:
            self._core = native.Namenode(
                arena_bytes_max=self.settings.arena_max,
                session_grace=self.settings.session_grace,
                mac_key=self._key,
                durability=self.durability,
                grants=self._state.grants if self._state else None,
            )
        except OSError as error:
            if self._state is None or error.errno != errno.EUCLEAN:
                raise
            raise damaged(self._state.folder.join(GRANTS), "it is no grant map") from None
        self._members = Members(self._core)
        asyncio.get_running_loop().add_reader(self._core.event_fd(), self._on_events)
        if self._state is not None:
            await self._threads.run(lambda: state.load(self._core))
            self._sessions |= state.sessions
            for number, kind, description in state.servers:
                self._members.load(number, kind, description)
            log.info("%s: %s", state.folder.path, state.loaded)
            self._persister = Persister(self._core, state, interval=self.settings.group_interval)
            await self._persister.start()

    async def close(self) -> None:
        """Ends every connection and the core; what has changed is committed. May be called
        twice."""
        if hasattr(self, "_members"):
            self._members.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reception.close()
        await self._threads.finish()
        if self._persister is not None:
            if not self._core.closed:
                self._core.hang_up()
            await self._persister.close()
        if hasattr(self, "_core") and not self._core.closed:
            asyncio.get_running_loop().remove_reader(self._core.event_fd())
            self._core.close()
        if self._state is not None:
            self._state.close()
        try:
            os.rmdir(os.path.dirname(self.unix))
        except OSError:
            pass  # others use it, too

    async def _settled(self) -> bool:
        """Is all that was done so far durable? Waits for it, but not for long."""
        return self._persister is None or await self._persister.durable(SETTLE_TIMEOUT)

    # -- lanes ---------------------------------------------------------------------------------

    async def _lane(self, visit: Visit) -> None:
        request = visit.request
        lane = visit.number("lane", 32)
        near = not visit.unix and request.get("host") == hello.host_identity()
        if near and self.unix and not request.get("no_unix"):
            await visit.reply({"redirect": self.unix})
            return
        if request.get("session") is None:
            session = self._open_session()
            # Else a crash would leave its changes with nobody. Where commits fail it goes on: then
            # no change is acknowledged either.
            native.failpoint("session-made")
            await self._settled()
            native.failpoint("session-durable")
        else:
            session = visit.number("session", 64)
            self._check_key(session, request.get("session_key"))
            if session not in self._sessions:
                raise SessionLostError()
        reply = {
            "session": session,
            "session_key": hello.session_key(self._key, session),
            "lane": lane,
            "cluster": self.cluster,
            "durability": self.durability,
            "limits": LIMITS,
        }
        ring = self._make_ring() if visit.unix and request.get("ring") is True else None
        try:
            if ring is None:
                await visit.reply(reply)
            else:
                await visit.reply_with_descriptors(reply | {"ring": True}, ring)
            self._core.lane_attach(visit.take(), session, lane, ring)
        except SessionLostError:
            self._sessions.discard(session)  # ended this moment; the client sees the end
        finally:
            hello.close_all(ring or [])

    def _make_ring(self) -> list[int] | None:
        if not self.settings.ring:
            return None
        try:
            return native.make_ring()
        except (OSError, CrailError) as error:  # then its socket has to do
            log.warning("no ring for a lane: %s", error)
            return None

    def _open_session(self) -> int:
        session = 0
        while not session or session in self._sessions:
            session = secrets.randbits(64)
        self._core.session_open(session)
        self._sessions.add(session)
        return session

    def _check_key(self, session: int, given: Any) -> None:
        wanted = hello.session_key(self._key, session)
        if not isinstance(given, bytes) or not hmac.compare_digest(given, wanted):
            # A client of an earlier life of this namenode looks like this, too.
            raise SessionLostError("this namenode did not open the session")

    @property
    def _kept_state(self) -> str:
        """Whose state outlives this process; "": none does."""
        return self.cluster if self._state is not None else ""

    # -- storage servers -----------------------------------------------------------------------

    async def _control(self, visit: Visit) -> None:
        member: Member | None = None
        recovery: Recovery | None = None

        async def register(message: dict[str, Any]) -> dict[str, Any]:
            nonlocal member, recovery
            member = self._members.register(Registration.parse(message))
            if member is None:
                return {"fresh": True, "state": self._kept_state}
            member.channel = channel
            native.failpoint("register-begun")
            if not await self._settled():  # its number is for ever
                raise UnavailableError("the registration cannot be kept at the moment")
            native.failpoint("register-durable")
            recovery = Recovery(sum(member.registration.regions)) if member.is_awaited else None
            return {
                "number": member.number,
                "mac_key": self._key,
                "state": self._kept_state,
                "recover": member.is_awaited,
            }

        def awaited() -> tuple[Member, Recovery]:
            if member is None or recovery is None or member.channel is not channel:
                raise ProtocolError("this server is not waited for")
            return member, recovery

        async def live(message: dict[str, Any]) -> dict[str, bytes]:
            first = message.get("first")
            if not isinstance(first, int) or not 0 <= first < 1 << 32:
                raise ProtocolError(f"live: first is {first!r}")
            native.failpoint("recover-sent")
            return {"runs": zlib.compress(self._core.server_live(awaited()[0].number, first), 1)}

        async def recovered(message: dict[str, Any]) -> None:
            nonlocal recovery
            server, stream = awaited()
            if not await self._threads.run(lambda: stream.add(message)):
                return
            if awaited() != (server, stream):
                raise ProtocolError("registered again meanwhile")
            native.failpoint("recovered-heard")
            self._members.recovered(server, stream)
            recovery = None

        async def heartbeat(message: dict[str, Any]) -> None:
            stats = control.parse_stats(message)
            if member is None:
                raise ProtocolError("heartbeat before register")
            if member.channel is channel:
                self._members.seen(member, stats)
                self._ask_channel(member)

        async def leave(message: dict[str, Any]) -> None:
            if member is not None and member.channel is channel:
                self._members.leave(member, forget=bool(message.get("forget")))

        channel = Channel(
            visit.sock,
            {
                control.REGISTER: register,
                control.LIVE: live,
                control.RECOVERED: recovered,
                control.HEARTBEAT: heartbeat,
                control.LEAVE: leave,
            },
        )
        await visit.reply({"ok": True})
        try:
            await channel.run()
        finally:
            if member is not None:
                self._members.disconnected(member, channel)

    async def _retire(self, visit: Visit) -> None:
        member = self._members.find(visit.number("number", 32), visit.number("incarnation", 64))
        if member is None or member.channel is None or member.is_awaited:
            raise StaleLocationError("this incarnation is not registered", hint="register first")
        await visit.reply({"ok": True})
        if member.channel is not None:  # the core takes a server with a channel for one that is up
            self._core.server_channel(member.number, visit.take())
            member.retires = True

    def _on_events(self) -> None:
        for kind, server, session in self._core.events():
            if kind == native.EVENT_SESSION_ENDED:
                self._sessions.discard(session)
            elif kind == native.EVENT_CHANNEL_CLOSED:
                member = self._members.by_number(server)
                if member is not None:
                    member.retires = False
                    self._ask_channel(member)

    def _ask_channel(self, member: Member) -> None:
        """Where the retire channel broke and the server is still there, it opens another one."""
        if member.channel is None or member.left or member.retires or member.asked:
            return
        member.asked = True
        task = asyncio.get_running_loop().create_task(self._call_channel(member, member.channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call_channel(self, member: Member, link: Channel) -> None:
        try:
            await link.call(control.CHANNEL, {}, timeout=CALL_TIMEOUT)
        except (CrailError, OSError) as error:  # asked again at its next heartbeat
            ordinary = member.left or member.channel is not link  # its end was told of, if need be
            level = logging.INFO if ordinary else logging.WARNING
            log.log(level, "storage server %s: no channel: %s", member.registration.server, error)
        finally:
            member.asked = False

    # -- administration ------------------------------------------------------------------------

    async def _admin(self, visit: Visit) -> None:
        methods = {
            control.ADMIN_STATUS: self._admin_status,
            control.ADMIN_CHECK: self._admin_check,
            control.ADMIN_STOP: self._admin_stop,
        }
        method = methods.get(str(visit.request.get("method")))
        if method is None:
            raise ProtocolError(f"there is no method {visit.request.get('method')!r}")
        await visit.reply({"result": await method()})

    async def _admin_status(self) -> dict[str, Any]:
        return {
            "cluster": self.cluster,
            "version": __version__,
            "address": self.address,
            "unix": self.unix,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._born, 3),
            "authentication": "token" if self._token else "none",
            "encryption": "none",
            "durability": self.durability,
            "state": self._persister.facts() if self._persister else None,
            "namenode": self._core.stats(),
            "servers": self._members.facts(),
        }

    async def _admin_check(self) -> dict[str, Any]:
        why = await self._threads.run(self._core.check)
        if why is None and self._persister is not None:
            why = await self._persister.check()
        return {"ok": why is None, "why": why}

    async def _admin_stop(self) -> dict[str, Any]:
        # After the reply is on its way.
        asyncio.get_running_loop().call_later(0.01, self.stopping.set)
        return {}


def durability_of(settings: Settings, folder: str | None) -> str:
    """What holds, of what is set. Raises InvalidArgumentError."""
    said = settings.durability or ("none" if folder is None else "group")
    if said not in native.DURABILITIES:
        raise InvalidArgumentError(f"durability: {said!r} is none of {native.DURABILITIES}")
    if said == "none" and folder is not None and os.path.exists(os.path.join(folder, FILE)):
        raise InvalidArgumentError(
            f"{folder} has a state, and durability='none' would begin without it",
            hint="leave out --dir, or --durability",
        )
    if said != "none" and folder is None:
        raise InvalidArgumentError(
            f"durability={said!r} needs a folder to keep things in", hint="--dir names one"
        )
    return str(said)
