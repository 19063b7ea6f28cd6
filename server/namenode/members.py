"""Who is there: the storage servers of a namenode, which incarnation of each, and in what state.

A *server* is an id that stays; an *incarnation* is one life of its memory, and has a number in the
core. A server that returns with the same incarnation gets its number back, and its blocks with it.
One that returns with another incarnation has lost its old memory, for ever; so while one is up, no
other incarnation of its id is let in.

Those that an earlier life of the namenode knew are down until they return. Then they are told what
they have to keep, and are up when they have said what they hold: docs/adr/0004-durable-metadata.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any, Protocol

from crailpy.channel import Channel
from crailpy.control import HEARTBEATS_MISSED_MAX, Registration
from crailpy.errors import ExistsError, ProtocolError

from .recovery import Recovery

log = logging.getLogger("crailpy.namenode")

# enum crail_meta_server_state
UP, DOWN, LOST = 1, 2, 3
STATES = {UP: "up", DOWN: "down", LOST: "lost"}
CLOSED = 255  # the storage class of a server that no grant comes from


class Core(Protocol):
    """What members need of crailpy.native.Namenode."""

    def server_add(
        self, regions: list[int], storage_class: int, location: str, description: bytes
    ) -> int: ...
    def server_describe(
        self, number: int, storage_class: int, location: str, description: bytes
    ) -> None: ...
    def server_set(self, number: int, state: int) -> None: ...
    def server_stats(self, number: int) -> dict[str, int]: ...
    def server_recovered(self, number: int, generations: bytes | bytearray, busy: bytes) -> int: ...


class Member:
    """A storage server in its present incarnation."""

    def __init__(self, number: int, registration: Registration) -> None:
        self.number = number
        self.registration = registration
        self.state = UP
        self.is_awaited = False  # of an earlier life, and has not said yet what it holds
        self.lost = 0  # extents that were gone when it had said so
        self.replaced: list[int] = []  # numbers of its incarnations that are lost
        self.failed = 0  # errno of its disk, since it has registered
        self.is_closed = False  # is nothing placed there until this namenode ends?
        self.channel: Channel | None = None
        self.retires = False  # is its retire channel open?
        self.left = False  # has it taken its leave?
        self.asked = False  # has it been asked to open one, and not answered yet?
        self.stats: dict[str, Any] = {}
        self.last_seen = time.monotonic()
        self.late: asyncio.TimerHandle | None = None

    @property
    def state_name(self) -> str:
        """As `status` shows it."""
        if self.state != UP or not (self.failed or self.is_closed):
            return STATES[self.state]
        return "failed" if self.failed else "closed"


class Members:
    """All storage servers that this namenode has ever heard of. Lives on the event loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._members: dict[str, Member] = {}

    def load(self, number: int, state: int, description: bytes) -> None:
        """One of an earlier life; in the order of their numbers. Raises ProtocolError."""
        registration = Registration.described(description)
        member = Member(number, registration)
        member.state = LOST if state == LOST else DOWN
        member.is_awaited = member.state == DOWN
        before = self._members.get(registration.server)
        if before is not None:
            member.replaced = [*before.replaced, before.number]
        self._members[registration.server] = member

    def register(self, new: Registration) -> Member | None:
        """Lets a server in. None: its memory has a history that we do not know, so it must come
        with fresh memory. Raises ExistsError while another incarnation of this id is up."""
        member = self._members.get(new.server)
        known = member is not None and member.registration.incarnation == new.incarnation
        if member is not None and known and member.state != LOST:
            if new.regions != member.registration.regions:
                raise ProtocolError("register: an incarnation has the same regions all its life")
            if member.channel is not None:  # its old connection just has not ended yet
                member.channel.close()
                member.channel = None
            member.registration = new
            member.left = False
            member.failed = 0
            rank = CLOSED if member.is_closed else new.storage_class
            self._core.server_describe(member.number, rank, new.location, new.description())
            if not member.is_awaited:
                self._set(member, UP)
                log.info("storage server %s (%d) is back", new.server, member.number)
            self.seen(member)
            return member
        if member is not None and not known and member.state == UP:
            raise ExistsError(
                f"another storage server with the id {new.server!r} is up",
                hint="give each its own --id",
            )
        if new.history or known:
            return None
        replaced: list[int] = []
        if member is not None:
            replaced = [*member.replaced, member.number]
            if member.state != LOST:
                log.warning(
                    "storage server %s comes with another memory: what it held as number %d is"
                    " lost",
                    new.server,
                    member.number,
                )
            self._set(member, LOST)
            if member.channel is not None:
                member.channel.close()
            self._quiet(member)
        number = self._core.server_add(
            new.regions, new.storage_class, new.location, new.description()
        )
        member = self._members[new.server] = Member(number, new)
        member.replaced = replaced
        log.info("storage server %s (%d) is new", new.server, number)
        self.seen(member)
        return member

    def recovered(self, member: Member, found: Recovery) -> None:
        """It has kept what it was told to keep, and says what it has: it is up. If its disk has
        failed, it could not write down which extents it has retired: when it has another life,
        nobody will know what it takes for stale but who asks again, as the next namenode does. So
        this one places nothing there any more. Raises ProtocolError, InvalidArgumentError."""
        if found.disk_errno:
            member.is_closed = True
            self._look_at_disk(member, found.disk_errno)
        member.lost = self._core.server_recovered(member.number, found.generations, found.busy)
        member.is_awaited = False
        member.state = UP
        name = member.registration.server
        if member.lost:
            log.error("storage server %s (%d): %d extents lost", name, member.number, member.lost)
        log.info("storage server %s (%d) is back", name, member.number)
        self.seen(member)

    def find(self, number: int, incarnation: int) -> Member | None:
        """The member of this number, if that is its present incarnation."""
        for member in self._members.values():
            if member.number == number and member.registration.incarnation == incarnation:
                return member
        return None

    def by_number(self, number: int) -> Member | None:
        """The member whose present incarnation has this number."""
        return next((m for m in self._members.values() if m.number == number), None)

    def seen(self, member: Member, stats: dict[str, Any] | None = None) -> None:
        """A sign of life; the next ones are waited for."""
        member.last_seen = time.monotonic()
        if stats is not None:
            member.stats = stats
            self._look_at_disk(member, stats.get("disk_errno"))
        if member.state == DOWN and not member.is_awaited:
            self._set(member, UP)
        self._quiet(member)
        patience = member.registration.heartbeat * HEARTBEATS_MISSED_MAX
        member.late = asyncio.get_running_loop().call_later(patience, self._missed, member)

    def _look_at_disk(self, member: Member, error: Any) -> None:
        """A disk that fails keeps what can be read, and gets nothing more."""
        if member.failed or not isinstance(error, int) or not error:
            return
        new, member.failed = member.registration, error
        log.error("the disk of storage server %s has failed: %s", new.server, os.strerror(error))
        self._core.server_describe(member.number, CLOSED, new.location, new.description())

    def _missed(self, member: Member) -> None:
        log.warning("storage server %s is silent", member.registration.server)
        self._set(member, DOWN)

    def disconnected(self, member: Member, channel: Channel) -> None:
        """The control connection has ended; ignored if a newer one has taken its place."""
        if member.channel is not channel:
            return
        member.channel = None
        self._quiet(member)
        if member.state == UP:
            log.warning("storage server %s is away", member.registration.server)
            self._set(member, DOWN)

    def leave(self, member: Member, *, forget: bool) -> None:
        """The server goes by its own wish; `forget`: and its memory with it."""
        member.left = True
        self._quiet(member)
        self._set(member, LOST if forget else DOWN)

    def _set(self, member: Member, state: int) -> None:
        if member.state == LOST:
            return  # final
        self._core.server_set(member.number, state)
        member.state = state

    def _quiet(self, member: Member) -> None:
        if member.late is not None:
            member.late.cancel()
            member.late = None

    def facts(self) -> list[dict[str, Any]]:
        """One map per server, for `status`."""
        now = time.monotonic()
        return [
            {
                "number": member.number,
                "id": member.registration.server,
                "state": member.state_name,
                "failed": os.strerror(member.failed) if member.failed else None,
                "tier": member.registration.tier,
                "storage_class": member.registration.storage_class,
                "location": member.registration.location or None,
                "address": f"{member.registration.host}:{member.registration.port}",
                "incarnation": member.registration.incarnation,
                "lost_extents": member.lost,
                "lost_incarnations": member.replaced,
                "last_seen_s": round(now - member.last_seen, 3),
                **self._core.server_stats(member.number),
                "stats": member.stats,
            }
            for member in self._members.values()
        ]

    def close(self) -> None:
        """Ends the control connections."""
        for member in self._members.values():
            self._quiet(member)
            if member.channel is not None:
                member.channel.close()
