"""The control plane on one screen: who says what on a `control` and on an `admin` connection.

Messages are framed like the hello: `{m: method, id, ...}`, answered by `{id, ok}` or `{id, error}`.

storage server -> namenode (`control`)
    register    server, incarnation, history, regions, tier, storage_class, location, host, port,
                unix, host_identity, heartbeat
                -> number, mac_key, state, recover; or fresh, state: the namenode does not know this
                incarnation and it has a history, so its memory must be made anew
                (docs/ARCHITECTURE.md). state: the cluster whose state outlives the namenode, "" if
                none does: a file is not made anew for another one. recover: the namenode was
                started again and does not know what lies there; the server is not up before it has
                said so:
    live        first                       -> runs: from the first-th on, what the server has to
                keep: zlib of u32 triples (region, granule, granules), by place; empty: no more
    recovered   data, last, disk_errno      -> nothing; it has retired the rest. Pieces of a zlib
                stream: the generations of all granules (u64, a region behind the other), then the
                runs outside that somebody still uses, as triples. After the last it is up.
                disk_errno, with the last: why its disk cannot tell what was retired, or 0
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
LIVE = "live"
RECOVERED = "recovered"
CHANNEL = "channel"

ADMIN_STATUS = "status"
ADMIN_CHECK = "check"
ADMIN_STOP = "stop"

HEARTBEATS_MISSED_MAX = 3
HEARTBEAT_MAX = 86400.0  # seconds
WORD_MAX = 4096  # characters of an id, a host, a path
PIECE_BYTES = 48 << 10  # of a stream, in one message
STATS_MAX = 64  # counters in one heartbeat


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


def parse_stats(message: dict[str, Any]) -> dict[str, int]:
    """The counters of a heartbeat. Raises ProtocolError: they are kept, and shown to others."""
    stats = message.get("stats")
    if not isinstance(stats, dict) or len(stats) > STATS_MAX:
        raise ProtocolError(f"heartbeat: stats are a map of at most {STATS_MAX}")
    if not all(len(name) <= 64 and type(n) is int for name, n in stats.items()):
        raise ProtocolError("heartbeat: stats are numbers by name")
    return stats


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
        good = all(type(n) is int and 0 < n < 1 << 31 for n in regions)
        if not regions or len(regions) > 64 or not good:
            raise ProtocolError("register: regions are 1 to 64 numbers of granules")
        if not 0 <= message["storage_class"] < 255:
            raise ProtocolError("register: a storage class is 0 to 254")
        if not 0 < message["heartbeat"] <= HEARTBEAT_MAX:  # nor a NaN, which no timer survives
            raise ProtocolError(f"register: heartbeat is {message['heartbeat']!r}")
        if not 0 <= message["incarnation"] < 1 << 64 or not 0 <= message["port"] < 1 << 16:
            raise ProtocolError("register: incarnation has 64 bits, port 16")
        if any(isinstance(word, str) and len(word) > WORD_MAX for word in message.values()):
            raise ProtocolError(f"register: no word is longer than {WORD_MAX}")
        return cls(**{name: message.get(name) for name in FIELDS})

    def message(self) -> dict[str, Any]:
        """As a message's fields."""
        return {name: getattr(self, name) for name in FIELDS}

    @classmethod
    def described(cls, description: bytes) -> Registration:
        """From what description() gave: one of an earlier life. Raises ProtocolError."""
        about = hello.unpack(description)
        return cls.parse(about | {"history": True, "heartbeat": HEARTBEAT_MAX})

    def description(self) -> bytes:
        """What clients get from CRAIL_OP_SERVER: the body of a message."""
        about = self.message()
        del about["history"], about["heartbeat"]
        return hello.pack(about)[hello.HEAD_BYTES :]
