"""How a node is made: the placement and lifetime keywords of API.md as a struct crail_options."""

from __future__ import annotations

from itertools import groupby
from operator import index
from struct import Struct

from crailpy import native
from crailpy.errors import InvalidArgumentError
from crailpy.model import STORAGE_CLASSES

from . import requests
from .requests import seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from .requests import Request

# ttl_ns, job, location, flags, storage_class, stripe; avoid and reserved (wire.h)
_OPTIONS = Struct("<QQIHBBQ")
_AVOID_AT = 24
_SESSION, _DELETE_AFTER_READ, _EVICTABLE, _STRICT, _TTL = 1, 2, 4, 8, 16
_SYNC, _GROUP = 32, 64
_DURABLE = {None: 0, "none": 0, "sync": _SYNC, "group": _GROUP}
_ANY = 255
_STRIPE_AT = 23  # in the struct

STRIPE_MAX = 64
TTL_SECONDS_MAX = 86400.0 * 365 * 70

KEYWORDS = (
    "tier", "strict", "location", "stripe", "replicas", "durability", "checksum", "ttl", "job",
    "evictable", "delete_after_read", "wait_space",
)  # fmt: skip


def pack(
    *,
    tier: str | None = None,
    strict: bool = False,
    location: str | None = None,
    stripe: int = 1,
    replicas: int = 1,
    durability: str | None = None,
    checksum: bool | None = None,
    ttl: float | None = None,
    job: Any = None,
    evictable: bool = False,
    delete_after_read: bool = False,
    wait_space: float | None = None,
    session: bool = False,
    **unknown: Any,
) -> tuple[bytes, float]:
    """The struct crail_options (b"" where all is as it is without), and the seconds to wait for
    space.

    `tier` ("dram", "nvmf", "file") and `location` (a location class) are preferred, with `strict`
    there is no other choice; `stripe`: equal runs on so many servers; `ttl`: seconds after the
    last commit; `job`: a Job; `session`: goes with this session; `durability`: "sync" is answered
    when the change is durable, "group" when it will be within the group interval. Raises
    InvalidArgumentError, also for what this store cannot promise: more than one replica,
    checksums."""
    if unknown:
        raise TypeError(
            f"{next(iter(unknown))!r} is no keyword of placement: {', '.join(KEYWORDS)}"
        )
    refuse_promises(replicas, checksum)
    if durability not in _DURABLE:
        raise InvalidArgumentError(f"durability={durability!r} is none of sync, group, none")
    if tier is not None and tier not in STORAGE_CLASSES:
        raise InvalidArgumentError(f"tier={tier!r} is none of {', '.join(STORAGE_CLASSES)}")
    if not hasattr(stripe, "__index__") or not 1 <= (stripe := index(stripe)) <= STRIPE_MAX:
        raise InvalidArgumentError(f"stripe={stripe!r}: 1 to {STRIPE_MAX} servers")
    if strict and tier is None and location is None:
        raise InvalidArgumentError("strict=True says nothing without tier= or location=")
    flags = (
        (_SESSION if session else 0)
        | (_DELETE_AFTER_READ if delete_after_read else 0)
        | (_EVICTABLE if evictable else 0)
        | (_STRICT if strict else 0)
        | (_TTL if ttl is not None else 0)
        | _DURABLE[durability]
    )
    options = _OPTIONS.pack(
        0 if ttl is None else lifetime_ns(ttl),
        0 if job is None else job_number(job),
        0 if location is None else location_number(location),
        flags,
        _ANY if tier is None else STORAGE_CLASSES[tier],
        stripe,
        0,
    )
    wait = 0.0 if wait_space is None else seconds(wait_space, "wait_space")
    return (b"" if options == PLAIN else options), wait


def avoiding(options: bytes, server: int) -> bytes:
    """The same for an ALLOC that is to find other servers than this one."""
    avoid = server.to_bytes(4, "little")
    whole = options or PLAIN
    return whole[:_AVOID_AT] + avoid + whole[_AVOID_AT + len(avoid) :]


def is_sync(options: bytes, durability: str) -> bool:
    """Is what is made so durable when it is answered? `durability`: of the cluster."""
    said = _OPTIONS.unpack(options)[3] & (_DURABLE["sync"] | _DURABLE["group"]) if options else 0
    return said == _DURABLE["sync"] if said else durability == "sync"


PLAIN = _OPTIONS.pack(0, 0, 0, 0, _ANY, 1, 0)


#: Of **placement, what is said of one node and never of all below a path.
_OF_ONE_NODE = ("ttl", "job", "evictable", "delete_after_read")

#: Paths of directories to the placement that holds below them by default.
Homes = dict[str, "dict[str, Any]"]


def check_home(placement: dict[str, Any]) -> None:
    """May it be said of all below a path? Raises InvalidArgumentError, also for what pack()
    refuses."""
    for name in _OF_ONE_NODE:
        if name in placement:
            raise InvalidArgumentError(
                f"{name}= is said of a node, not of all that a job has",
                hint="say it where the node is made",
            )
    pack(**placement)


def home_of(homes: Homes, path: Any) -> str:
    """The innermost of them that the path is below; "": none."""
    if not isinstance(path, str):
        return ""
    return max((home for home in homes if path.startswith(home + "/")), key=len, default="")


def at_home(homes: Homes, path: Any, placement: Mapping[str, Any]) -> Mapping[str, Any]:
    """`placement`, and of what it does not say, what holds at the path."""
    home = home_of(homes, path)
    return {**homes[home], **placement} if home else placement


#: Requests that a job's durability= holds for; all others that change a path have packed options.
_CHANGES = frozenset(
    (requests.MKDIR, requests.RENAME, requests.REMOVE, requests.RMTREE, requests.INCR,
     requests.SETATTR, requests.TRUNCATE)
)  # fmt: skip
_FLAGS_AT = 20
#: Promises, the weakest first.
_PROMISES = ("none", "group", "sync")


def say_durability(homes: Homes, request: Request, path: Any) -> None:
    """The request keeps what is said of all below the path, unless it says something itself."""
    home = home_of(homes, path) if request.code in _CHANGES else ""
    wanted = _DURABLE[homes[home].get("durability")] if home else 0
    options = bytearray(request.options or PLAIN)
    if wanted and not options[_FLAGS_AT] & (_SYNC | _GROUP):
        options[_FLAGS_AT] |= wanted
        request.options = bytes(options)


def durable_after(homes: Homes, paths: list[str]) -> Request | None:
    """A request that changes nothing and is answered when all changes before it are durable; None
    where that is said of none of the paths."""
    for path in paths:
        home = home_of(homes, path)
        if home and homes[home].get("durability") == "sync":
            request = requests.set_attributes(home, {}, pack(durability="sync")[0])
            request.absent = None
            return request
    return None


def kept_at(homes: Homes, path: Any, kept: str) -> str:
    """What holds of a node at the path, where the namenode promises `kept`: the weaker of that and
    of what is said of all below a path."""
    home = home_of(homes, path)
    said = homes[home].get("durability") if home else None
    return kept if said is None else min(kept, said, key=_PROMISES.index)


def runs_at_home(homes: Homes, pairs: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """The items of put_many in order, cut where another placement holds: (a path of it, a run)."""

    def key(pair: Any) -> Any:
        return pair[0] if isinstance(pair, tuple) and pair else None

    for _, run in groupby(pairs, key=lambda pair: home_of(homes, key(pair))):
        run_of = list(run)
        yield key(run_of[0]), run_of


def stripe_of(options: bytes) -> int:
    """How many servers what pack() made asks for: at least 1."""
    return max(1, options[_STRIPE_AT]) if options else 1


def with_stripe(options: bytes, stripe: int) -> bytes:
    """The same options for so many servers."""
    if stripe_of(options) == stripe:
        return options
    changed = bytearray(options or PLAIN)
    changed[_STRIPE_AT] = stripe
    return bytes(changed)


def ttl_only(ttl: float | None) -> bytes:
    """Options of SETATTR: the lifetime, None to take the limit away."""
    return _OPTIONS.pack(0 if ttl is None else lifetime_ns(ttl), 0, 0, _TTL, _ANY, 0, 0)


def refuse_promises(replicas: int, checksum: bool | None) -> None:
    """What nobody keeps yet is not promised."""
    if replicas != 1:
        raise InvalidArgumentError(f"replicas={replicas!r}: this store keeps one copy of a value")
    if checksum:
        raise InvalidArgumentError(f"checksum={checksum!r}: this store computes no checksums")


def lifetime_ns(ttl: float) -> int:
    """Of ttl=, as it travels: nanoseconds, where 0 means that there is no limit."""
    if seconds(ttl, "ttl") > TTL_SECONDS_MAX:
        raise InvalidArgumentError(
            f"ttl={ttl!r} is more than 70 years", hint="None, or no ttl, is no limit"
        )
    ns = round(seconds(ttl, "ttl") * 1e9)
    if ns == 0:
        raise InvalidArgumentError(f"ttl={ttl!r} is a time that is over", hint="None: no limit")
    return ns


def job_number(job: Any) -> int:
    """Of a Job, or the number itself."""
    number = getattr(job, "number", job)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 1 << 64:
        raise InvalidArgumentError(f"job={job!r}: give what store.job() returned")
    return number


def location_number(location: str) -> int:
    """What stands for a location class on the wire."""
    if not isinstance(location, str) or not location:
        raise InvalidArgumentError(f"location={location!r} is no name of a location class")
    return native.location_number(location)
