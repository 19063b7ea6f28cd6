"""What STAT and LIST answer, as Python values (structs of native/include/crail/wire.h)."""

from __future__ import annotations

from struct import Struct

from crailpy.model import NodeInfo, NodeKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    TierOf = Callable[[int], str | None]

# id, version, size, mtime_ns, expires_ns, job, kind, extents, flags
_STAT = Struct("<QQQqqQIHH")
_EXTENT = Struct("<IIIIQQ")  # server, region, granule, granules, generation, key
# version, size, mtime_ns, name_len, kind, is_inline, is_flushed, -
_DIRENT = Struct("<QQqHBBB3x")
_GRANULE = 4096
_SESSION, _FLUSHED = 1, 1 << 15  # of the flags


def node_info(
    path: str, data: bytes, tier_of: TierOf | None = None, kept: str = "none"
) -> NodeInfo:
    """A STAT answer. `tier_of` names the tier of a server, by its number; `kept`: what the namenode
    promises of all that lies with it, as a value within its node does."""
    _, version, size, mtime_ns, expires_ns, job, kind, extents, flags = _STAT.unpack_from(data)
    locations = tuple(
        {"server": server, "region": region, "offset": granule * _GRANULE, "bytes": n * _GRANULE}
        for server, region, granule, n, _, _ in _EXTENT.iter_unpack(
            data[_STAT.size : _STAT.size + extents * _EXTENT.size]
        )
    )
    return NodeInfo(
        path=path,
        kind=NodeKind.NAMES[kind] or "",
        size=size,
        version=version,
        mtime=mtime_ns / 1e9,
        tier=tier_of(locations[0]["server"]) if locations and tier_of else None,
        lease=f"job {job}" if job else "session" if flags & _SESSION else None,
        expires=expires_ns / 1e9 if expires_ns else None,
        locations=locations,
        durability=kept if not locations or flags & _FLUSHED else "none",
    )


def _entries(page: bytes) -> Iterator[tuple[int, int, int, int, bool, str]]:
    at = 0
    while at < len(page):
        version, size, mtime_ns, n, kind, is_inline, is_flushed = _DIRENT.unpack_from(page, at)
        at += _DIRENT.size
        is_kept = is_inline or is_flushed or NodeKind.NAMES[kind] != NodeKind.FILE
        yield version, size, mtime_ns, kind, is_kept, page[at : at + n].decode()
        at += (n + 7) & ~7


def names(page: bytes) -> list[str]:
    """The names of one page of a listing."""
    found = []
    unpack, head, at, end = _DIRENT.unpack_from, _DIRENT.size, 0, len(page)
    while at < end:
        n = unpack(page, at)[3]
        at += head
        found.append(page[at : at + n].decode())
        at += (n + 7) & ~7
    return found


def entries(directory: str, page: bytes, kept: str) -> Iterator[NodeInfo]:
    """The entries of one page of the listing of `directory`."""
    prefix = directory.rstrip("/")
    for version, size, mtime_ns, kind, is_kept, name in _entries(page):
        yield NodeInfo(
            path=f"{prefix}/{name}",
            kind=NodeKind.NAMES[kind] or "",
            size=size,
            version=version,
            mtime=mtime_ns / 1e9,
            durability=kept if is_kept else "none",
        )
