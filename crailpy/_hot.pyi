from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any

Result = tuple[int, int, int, int, int, bytes]

def bind(table: int, /) -> None: ...

class View:
    """A read-only buffer over a value, without a copy where the transport allows."""

    @property
    def version(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def copied(self) -> bool: ...
    @property
    def goes_when_read(self) -> bool: ...
    def on_end(self, callable: Callable[[], object], /) -> None: ...
    def release(self) -> None: ...
    def tobytes(self) -> bytes: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __enter__(self) -> View: ...
    def __exit__(self, *exc: object) -> None: ...

class Rows:
    """(key, row) of rows of a cut, or their keys, in the order of `places` (crail_rows_order())."""

    def __init__(
        self, data: Any, places: Any, first: int, count: int, key_bytes: int, keys_only: bool, /
    ) -> None: ...
    def __iter__(self) -> Rows: ...
    def __next__(self) -> Any: ...

class Pipe:
    """Moves the bytes of one open file. For one thread at a time, in the process that opened it.

    `extents`: structs of wire.h in a row. Raises StaleLocationError when they are out of date."""

    def read(
        self, extents: bytes, size: int, offset: int, buffer: Any, timeout: float | None, /
    ) -> int: ...
    def read_bytes(
        self, extents: bytes, size: int, offset: int, length: int, timeout: float | None, /
    ) -> bytes: ...
    def write(
        self,
        extents: bytes,
        offset: int,
        data: Any,
        timeout: float | None,
        gives_up_early: bool,
        /,
    ) -> None: ...
    def ask(
        self, extents: bytes, size: int, offset: int, length: int, timeout: float | None, /
    ) -> None: ...
    def arrived(self, size: int, timeout: float | None, /) -> int: ...
    def behind(self) -> int: ...
    def settle(self, timeout: float | None, /) -> None: ...
    def close(self) -> None: ...

class Gather:
    """What a map task writes, by partition."""

    def __init__(self, partitions: int, /) -> None: ...
    def write(self, partition: int, data: Any, /) -> int: ...
    def take(self, at: int, /) -> tuple[list[Any], bytes, int]: ...

class Follower:
    """What is new in a log, added up as long as it is like what came before."""

    def pull(self, names: Any, timeout: float | None, /) -> dict[Any, Any] | None: ...
    def rest(self) -> tuple[list[tuple[int, int, bytes | None]], int] | None: ...
    def state(self) -> tuple[int, int, dict[Any, Any], list[bytes]]: ...

class Client:
    """Operations of one store. `timeout`: seconds, or None for the store's own. `options`: those of
    the node that is made (struct crail_options), or none. `wait_ms`: how long the namenode may set
    the request aside until there is an answer, or space."""

    def __init__(self, core: int, owner: object, prefix: bytes, timeout: float, /) -> None: ...
    @property
    def lanes_opened(self) -> int: ...
    def get(self, key: str, wait_ms: int, timeout: float | None, /) -> bytes: ...
    def get_range(self, key: str, offset: int, length: int, timeout: float | None, /) -> bytes: ...
    def follow(
        self, folder: str, number: int, ahead: int, timeout: float | None, /
    ) -> list[tuple[int, int, bytes | None]]: ...
    def follower(
        self,
        folder: str,
        number: int,
        version: int,
        lanes_opened: int,
        names: Any,
        found: dict[Any, Any],
        alike: tuple[Any, ...] | None,
        /,
    ) -> Follower: ...
    def segments(
        self,
        path: str,
        page: bytes,
        at: int,
        max: int,
        partition: int,
        partitions: int,
        expected: int,
        timeout: float | None,
        /,
    ) -> tuple[list[Any], int, int, bytes, int]: ...
    def gather(
        self, path: str, ranges: list[tuple[bytes, int, int, Any]], timeout: float | None, /
    ) -> None: ...
    def get_into(self, key: str, buffer: Any, offset: int, timeout: float | None, /) -> int: ...
    def get_view(self, key: str, wait_ms: int, timeout: float | None, /) -> View: ...
    def put(
        self,
        key: str,
        data: Any,
        flags: int,
        if_version: int,
        options: bytes,
        wait_ms: int,
        timeout: float | None,
        /,
    ) -> int: ...
    def flush(self, path: str, extents: bytes, timeout: float | None, /) -> bool: ...
    def put_parts(
        self,
        key: str,
        parts: list[Any],
        flags: int,
        if_version: int,
        options: bytes,
        wait_ms: int,
        timeout: float | None,
        /,
    ) -> int: ...
    def alloc(
        self,
        path: str,
        sizes: tuple[int, ...],
        flags: int,
        options: bytes,
        like: int,
        wait_ms: int,
        shown: tuple[bytes, int, int] | None,
        timeout: float | None,
        /,
    ) -> tuple[bytes, int]: ...
    def pipe(self, path: str, /) -> Pipe: ...
    def get_many(
        self, keys: list[str], none_if_missing: bool, timeout: float | None, /
    ) -> tuple[list[Any], list[int], list[tuple[str, int]]]: ...
    def put_many(
        self,
        items: Sequence[tuple[str, Any]],
        start: int,
        out: list[Any],
        flags: int,
        options: bytes,
        timeout: float | None,
        /,
    ) -> int: ...
    def call(
        self,
        code: int,
        flags: int,
        key: str | None,
        data: Any,
        count: int,
        options: bytes,
        arg0: int,
        arg1: int,
        timeout: float | None,
        /,
    ) -> Result: ...
    def call_many(
        self, code: int, flags: int, keys: list[str], timeout: float | None, /
    ) -> list[tuple[int, int, int, int, int, int, bytes]]: ...
    def rebind(self, core: int, /) -> None: ...

class AsyncLane:
    """Many requests in flight on one connection, each with a future. For one loop. `timeout`:
    seconds, or None for the lane's own; infinity for none."""

    def __init__(
        self,
        core: int,
        recorded: bool,
        prefix: bytes,
        timeout: float,
        create_future: Callable[[], Future[Any]],
        call_soon: Callable[..., object],
        on_flush: Callable[[], object],
        error: Callable[[int, str | None, int], BaseException],
        /,
    ) -> None: ...
    @property
    def frames(self) -> int: ...
    @property
    def maybe_done(self) -> bool: ...
    @property
    def earliest(self) -> float: ...
    def get(self, key: str, missing_none: bool, timeout: float | None, /) -> Future[Any]: ...
    def put(
        self,
        key: str,
        data: Any,
        flags: int,
        options: bytes,
        if_version: int,
        timeout: float | None,
        /,
    ) -> Future[int] | None: ...
    def call(
        self,
        code: int,
        flags: int,
        key: str | None,
        data: Any,
        options: bytes,
        count: int,
        arg0: int,
        arg1: int,
        alone: bool,
        timeout: float | None,
        /,
    ) -> tuple[Future[Result], int]: ...
    def post(
        self,
        code: int,
        flags: int,
        key: str | None,
        data: Any,
        options: bytes,
        count: int,
        arg0: int,
        arg1: int,
        /,
    ) -> None: ...
    def get_many(
        self, keys: list[str], missing_none: bool, timeout: float | None, /
    ) -> Future[list[Any]]: ...
    def put_many(
        self,
        items: Sequence[tuple[str, Any]],
        start: int,
        flags: int,
        options: bytes,
        timeout: float | None,
        /,
    ) -> tuple[Future[list[Any]], int]: ...
    def call_many(
        self, code: int, flags: int, keys: list[str], timeout: float | None, /
    ) -> Future[list[Any]]: ...
    def cancel(self, frame: int, /) -> bool: ...
    def withdraw(self, future: Future[Any], /) -> bool: ...
    def fail(self, error: BaseException, only_sent: bool, /) -> None: ...
    def attach(self, fd: int, fresh: bool, /) -> None: ...
    def detach(self) -> None: ...
    def flush(self) -> int: ...
    def reap(self) -> int: ...
    def tick(self) -> tuple[float, float]: ...
    def close(self) -> None: ...

class Copy:
    """A copy between a buffer and an extent in shared memory, in pieces."""

    def __init__(
        self, core: int, extent: bytes, within: int, buffer: Any, is_write: bool, /
    ) -> None: ...
    def step(self, bytes_max: int, /) -> int: ...
    def close(self) -> None: ...

class Landing:
    """A buffer that becomes bytes without a copy."""

    def __init__(self, size: int, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def take(self) -> bytes: ...

class Flat:
    """Any C-contiguous buffer as bytes."""

    def __init__(self, buffer: Any, writable: bool, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def pin(
    core: int, extent: bytes, size: int, version: int, goes_when_read: bool, /
) -> View | int: ...
def view(data: bytes, version: int, goes_when_read: bool, /) -> View: ...
