"""The facts that both wings speak of: small, frozen, without I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Event", "MAPPED_TIERS", "NodeInfo", "NodeKind", "STORAGE_CLASSES"]

#: The rank of each tier: low ones fill first.
STORAGE_CLASSES = {"dram": 0, "nvmf": 1, "file": 2}
#: Those whose blocks processes of the same host map; the others are reached by data connections.
MAPPED_TIERS = ("dram",)


class NodeKind:
    """What a node is: the names of enum crail_kind."""

    FILE = "file"
    DIRECTORY = "directory"
    TABLE = "table"
    MULTIFILE = "multifile"
    QUEUE = "queue"
    BARRIER = "barrier"

    #: by number on the wire
    NAMES = (None, FILE, DIRECTORY, TABLE, MULTIFILE, QUEUE, BARRIER)
    CONTAINERS = (DIRECTORY, TABLE, MULTIFILE, QUEUE)


class _Fact:
    """Frozen, compared and shown by its slots. dataclasses would cost the cold start eight
    milliseconds."""

    __slots__: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._values() == self._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({inner})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self._values())

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as `--json` prints them."""
        plain = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, tuple):
                value = list(value)
            plain[name] = value
        return plain


_set = object.__setattr__


class NodeInfo(_Fact):
    """What `stat` and `scandir` say of a node. `size` is in bytes (of a directory: entries),
    `mtime` in seconds UTC, `locations` one dict (server, region, offset, bytes) per extent, empty
    for what lies inside its node; `durability` the weakest promise that holds when the machine goes
    down: the cluster's ("sync", "group"), or "none" for bytes in memory, or on a disk that was not
    flushed; `lease` what it belongs to: "session", "job NUMBER" or None;
    `expires` when its ttl ends, in seconds UTC, or None."""

    __slots__ = (
        "path",
        "kind",
        "size",
        "version",
        "mtime",
        "tier",
        "replicas",
        "durability",
        "lease",
        "expires",
        "locations",
    )

    path: str
    kind: str
    size: int
    version: int
    mtime: float
    tier: str | None
    replicas: int
    durability: str
    lease: str | None
    expires: float | None
    locations: tuple[dict[str, int], ...]

    def __init__(
        self,
        path: str,
        kind: str,
        size: int,
        version: int,
        mtime: float,
        tier: str | None = None,
        replicas: int = 1,
        durability: str = "none",
        lease: str | None = None,
        expires: float | None = None,
        locations: tuple[dict[str, int], ...] = (),
    ) -> None:
        _set(self, "path", path)
        _set(self, "kind", kind)
        _set(self, "size", size)
        _set(self, "version", version)
        _set(self, "mtime", mtime)
        _set(self, "tier", tier)
        _set(self, "replicas", replicas)
        _set(self, "durability", durability)
        _set(self, "lease", lease)
        _set(self, "expires", expires)
        _set(self, "locations", locations)

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_dir(self) -> bool:
        """Is it a container?"""
        return self.kind in NodeKind.CONTAINERS


class Event(_Fact):
    """What `watch` tells: `kind` "put" (a node appeared, or has a new version), "delete" (it went,
    with all below it) or "resync" (events were lost: look again); of a resync, `path` is None and
    `version` 0."""

    __slots__ = ("kind", "path", "version")

    KINDS = (None, "put", "delete", "resync")  # by number on the wire

    kind: str
    path: str | None
    version: int

    def __init__(self, kind: str, path: str | None = None, version: int = 0) -> None:
        _set(self, "kind", kind)
        _set(self, "path", path)
        _set(self, "version", version)
