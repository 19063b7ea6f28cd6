"""The control plane on one screen: who says what on a `control` and on an `admin` connection.

Messages are framed like the hello: `{m: method, id, ...}`, answered by `{id, ok}` or `{id, error}`.

storage server -> namenode (`control`)
    register    server, incarnation, history, regions, tier, storage_class, location, host, port,
                unix, host_identity, heartbeat
                -> number, mac_key, cluster; or fresh: the namenode does not know this incarnation
                and it has a history, so its memory must be made anew (docs/ARCHITECTURE.md)
    heartbeat   stats                       -> nothing; a `disk_errno` other than 0 among the stats
                says that the disk has failed: nothing more is placed there until the server
                registers again and does not say so
    leave       forget                      -> nothing; forget: this incarnation will not return
namenode -> storage server (`control`)
    channel                                 -> nothing; open the retire channel again

anybody -> namenode (`admin`)
    status, check, stop
"""

from __future__ import annotations

from crailpy import hello
from crailpy.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REGISTER = "register"
HEARTBEAT = "heartbeat"
LEAVE = "leave"
CHANNEL = "channel"

ADMIN_STATUS = "status"
ADMIN_CHECK = "check"
ADMIN_STOP = "stop"

HEARTBEATS_MISSED_MAX = 3


FIELDS: dict[str, type | tuple[type, ...]] = {
    "server": str,
    "incarnation": int,
    "history": bool,
    "regions": list,
    "tier": str,
    "storage_class": int,
    "location": str,
    "host": str,
    "port": int,
    "unix": (str, type(None)),
    "host_identity": str,
    "heartbeat": (int, float),
}


class Registration:
    """What a storage server says of itself.

    `server` (id, stays over restarts), `incarnation` (u64, stays as long as the memory), `history`
    (has this memory been registered before), `regions` (granules of each), `tier`, `storage_class`
    (its rank: low ones fill first), `location` (its location class, "": none), `host` and `port`
    (where its data is served over TCP), `unix` (its socket, or None), `host_identity`, `heartbeat`
    (seconds between two signs of life)."""

    def __init__(self, **fields: Any) -> None:
        self.server: str = fields["server"]
        self.incarnation: int = fields["incarnation"]
        self.history: bool = fields["history"]
        self.regions: list[int] = fields["regions"]
        self.tier: str = fields["tier"]
        self.storage_class: int = fields["storage_class"]
        self.location: str = fields["location"]
        self.host: str = fields["host"]
        self.port: int = fields["port"]
        self.unix: str | None = fields["unix"]
        self.host_identity: str = fields["host_identity"]
        self.heartbeat: float = fields["heartbeat"]

    @classmethod
    def parse(cls, message: dict[str, Any]) -> Registration:
        """From a message. Raises ProtocolError for what is missing or of the wrong kind."""
        for name, kind in FIELDS.items():
            if not isinstance(message.get(name), kind):
                raise ProtocolError(f"register: {name} is {message.get(name)!r}")
        regions = message["regions"]
        if not regions or len(regions) > 64 or not all(type(n) is int and n > 0 for n in regions):
            raise ProtocolError("register: regions are 1 to 64 numbers of granules")
        if not 0 <= message["storage_class"] < 255:
            raise ProtocolError("register: a storage class is 0 to 254")
        return cls(**{name: message[name] for name in FIELDS})

    def message(self) -> dict[str, Any]:
        """As a message's fields."""
        return {name: getattr(self, name) for name in FIELDS}

    def description(self) -> bytes:
        """What clients get from CRAIL_OP_SERVER: the body of a message."""
        about = self.message()
        del about["history"], about["heartbeat"]
        return hello.pack(about)[hello.HEAD_BYTES :]
