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

class Client:
    """Operations of one store. `timeout`: seconds, or None for the store's own. `options`: those of
    the node that is made (struct crail_options), or none. `wait_ms`: how long the namenode may set
    the request aside until there is an answer, or space."""

    def __init__(self, core: int, owner: object, prefix: bytes, timeout: float, /) -> None: ...
    def get(self, key: str, wait_ms: int, timeout: float | None, /) -> bytes: ...
    def get_range(self, key: str, offset: int, length: int, timeout: float | None, /) -> bytes: ...
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
