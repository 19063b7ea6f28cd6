"""Values by key: put and get in all their ways."""

from __future__ import annotations

from os import getpid

from crailpy import native
from crailpy.errors import (
    CrailError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
)

from . import requests
from .connection import Connection, all_or_batch_error
from .requests import RAISE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from .requests import Buffer


class Values(Connection):
    """The part of a `Store` that puts and gets.

    `**placement`, wherever a node is made, says where it lies and how long it lives: `tier=`
    ("dram", "nvmf", "file") and `location=` (a location class) are preferred, with `strict=True`
    there is no other choice; `stripe=` cuts a large value into equal runs on so many servers;
    `wait_space=` seconds to wait for space, beyond the timeout; `ttl=` seconds after its last
    commit, `job=` (of `job()`) and `evictable=True` (may go when space is short) end it;
    `delete_after_read=True`: whoever has read it all removes it. `durability=` of this change:
    "sync", it is durable when the call returns, its bytes too where they lie on a disk; "group",
    its name is within the group interval. Raises InvalidArgumentError for what cannot be kept:
    `replicas=`, `checksum=`, a promise of durability by a namenode that keeps nothing.
    """

    def _placed(
        self, path: Any, placement: Mapping[str, Any], timeout: float | None
    ) -> tuple[bytes, int, float | None]:
        """Options for the wire of what is made at `path`, milliseconds to wait for space, the
        timeout with that added."""
        from .placement import at_home, pack

        options, wait = pack(**at_home(self._homes, path, placement))
        if wait:
            timeout = wait + (self._timeout if timeout is None else timeout)
        return options, requests.wait_ms(wait), timeout

    def put(
        self,
        key: str,
        data: Buffer,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> int:
        """Stores `data` (anything with a contiguous buffer) under `key`, atomically.

        Returns the new version: unique and increasing, not consecutive. `if_absent`: only if there
        is nothing there (ExistsError). `if_version`: only over that version (VersionConflictError;
        0 means absent). A value and its version are read together by `get_view`: between `stat` and
        `get` a killed namenode of a store in "group" may go back. Raises IsContainerError,
        InvalidPathError, NotFoundError (no parent and `parents` is false), OutOfSpaceError,
        QuotaExceededError.
        """
        flags = requests.PARENTS if parents else 0
        if if_absent or if_version is not None:
            flags, base = requests.conditions(flags, if_absent, if_version)
            return self._put(self._door.put, key, data, flags, base, timeout, placement)
        if placement or not parents or self._homes:
            return self._put(self._hot.put, key, data, flags, 0, timeout, placement)
        version: int = self._hot.put(key, data, flags, 0, b"", 0, timeout)
        return version

    def _put(
        self,
        put: Callable[..., int],
        key: str,
        data: Any,
        flags: int,
        if_version: int,
        timeout: float | None,
        placement: Mapping[str, Any],
    ) -> int:
        """One put, by `put` of a door or `put_parts` of the same."""
        options, wait_ms = b"", 0
        if placement or self._homes:
            options, wait_ms, timeout = self._placed(key, placement, timeout)
        try:
            return put(key, data, flags, if_version, options, wait_ms, timeout)
        except NotFoundError as error:
            requests.explain_absence(error, bool(flags & requests.PARENTS), options)
            raise

    def _put_parts(self, key: str, parts: Sequence[Buffer]) -> int:
        """`put` of what parts are one after the other, into a directory that is there."""
        return self._put(self._hot.put_parts, key, parts, 0, 0, None, {})

    def get(
        self,
        key: str,
        *,
        wait: float | None = None,
        default: Any = RAISE,
        timeout: float | None = None,
    ) -> Any:
        """The value of `key` as bytes; `default`, where given, if there is nothing.

        `wait`: seconds to wait until there is one, beyond the timeout; none at their end:
        DeadlineError, or `default`. Raises NotFoundError, NotContainerError (`key` is below a
        value), IsContainerError, DataLostError."""
        try:
            if wait is None:
                return self._hot.get(key, 0, timeout)
            return self._wait(lambda ms, timeout: self._hot.get(key, ms, timeout), wait, timeout)
        except requests.ABSENT_ERRORS:
            if default is RAISE:
                raise
            return default
        except DeadlineError:
            if wait is None or default is RAISE:
                raise
            return default

    def get_view(
        self, key: str, *, wait: float | None = None, timeout: float | None = None
    ) -> native.View:
        """The value as a read-only buffer, without a copy where it lies in shared memory.

        The bytes stay what they are while the view or any buffer made from it lives, whatever
        happens to the key. `wait` and errors as in `get`."""
        view: native.View
        if wait is None:
            view = self._hot.get_view(key, 0, timeout)
        else:
            view = self._wait(
                lambda ms, timeout: self._hot.get_view(key, ms, timeout), wait, timeout
            )
        if view.goes_when_read:
            view.on_end(_ViewEnd(self, key, view.version))
        return view

    def get_into(
        self, key: str, buffer: Any, *, offset: int = 0, timeout: float | None = None
    ) -> int:
        """Copies the value from byte `offset` on into `buffer`; returns the bytes written.

        Raises InvalidArgumentError if the buffer is shorter than that; else as `get`."""
        try:
            count: int = self._hot.get_into(key, buffer, offset, timeout)
        except InvalidArgumentError as error:
            error.retell(requests.SHORT_BUFFER)
            raise
        return count

    def get_range(
        self, key: str, offset: int, length: int, *, timeout: float | None = None
    ) -> bytes:
        """Up to `length` bytes of the value from `offset` on; fewer at its end. Errors as `get`."""
        try:
            data: bytes = self._hot.get_range(key, offset, length, timeout)
        except InvalidArgumentError as error:
            error.retell(requests.NEGATIVE_RANGE)
            raise
        return data

    def incr(
        self,
        key: str,
        by: int = 1,
        *,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> int:
        """Adds to the counter at `key`, exactly once, and returns the sum: 64 bits with a sign.

        It is made, as 0, at its first use; as a value it is its decimal text. Raises
        InvalidArgumentError for a value that is no counter and for a sum that is out of range,
        IsContainerError, NotFoundError (no parent and `parents` is false)."""
        options = b""
        if placement or self._homes:
            options, _, timeout = self._placed(key, placement, timeout)
        total: int = self._run(requests.incr(key, by, parents, options), timeout)
        return total

    def put_object(
        self,
        key: str,
        obj: Any,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> int:
        """Stores any object that pickles, as `put` stores bytes; large buffers in it (arrays) lie
        aligned beside the pickle. Returns the version. objects.py documents the format."""
        from .objects import dump

        parts = dump(obj)
        flags, base = requests.conditions(requests.PARENTS if parents else 0, if_absent, if_version)
        door = self._door if if_absent or if_version is not None else self._hot
        return self._put(door.put_parts, key, parts, flags, base, timeout, placement)

    def get_object(
        self, key: str, *, wait: float | None = None, timeout: float | None = None
    ) -> Any:
        """What `put_object` stored. Arrays in it are read-only and lie over the value itself, where
        the transport shares memory: nothing is copied, and the value stays as long as they do.

        Unpickling can run code: read only what you trust. Raises ProtocolError for another kind of
        value; else as `get`."""
        from .objects import load

        with self.get_view(key, wait=wait, timeout=timeout) as view:
            return load(view)

    def put_many(
        self,
        items: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]],
        *,
        if_absent: bool = False,
        parents: bool = True,
        timeout: float | None = None,
        **placement: Any,
    ) -> list[int]:
        """Puts every (key, data) in order; returns their versions. Atomic per key, not together.

        Raises BatchError, whose `.results` has a version or an error for each item."""
        pairs = list(items.items() if hasattr(items, "items") else items)
        flags = (requests.PARENTS if parents else 0) | (requests.IF_ABSENT if if_absent else 0)
        door = self._door if if_absent else self._hot
        if not placement and not self._homes:
            return all_or_batch_error(self._put_run(door, pairs, flags, b"", 0, timeout))
        from .placement import runs_at_home

        results: list[Any] = []
        for path, run in runs_at_home(self._homes, pairs):
            results += self._put_run(door, run, flags, *self._placed(path, placement, timeout))
        return all_or_batch_error(results)

    def _put_run(
        self,
        door: Any,
        pairs: list[Any],
        flags: int,
        options: bytes,
        wait_ms: int,
        timeout: float | None,
    ) -> list[Any]:
        """A version or an error for each."""
        results: list[Any] = []
        at = 0
        while True:
            at = door.put_many(pairs, at, results, flags, options, timeout)
            if at == len(pairs):
                break
            try:  # a value too large to travel in a vector
                key, data = pairs[at]
                results.append(door.put(key, data, flags, 0, options, wait_ms, timeout))
            except CrailError as error:
                results.append(error)
            at += 1
        for result in results:
            requests.explain_absence(result, bool(flags & requests.PARENTS), options)
        return results

    def get_many(
        self, keys: Iterable[str], *, missing: str = "raise", timeout: float | None = None
    ) -> list[Any]:
        """The values of `keys` in order, as bytes; with missing="none", None for absent ones.

        Raises BatchError, whose `.results` has a value or an error for each key."""
        if missing not in ("raise", "none"):
            raise InvalidArgumentError(f'missing={missing!r}: "raise" or "none"')
        keys = requests.several(keys)
        values, again, delivered = self._hot.get_many(keys, missing == "none", timeout)
        for i in again:  # overwritten between the answer and the copy
            try:
                values[i] = self._hot.get(keys[i], 0, timeout)
            except requests.ABSENT_ERRORS as error:
                values[i] = None if missing == "none" else error
            except CrailError as error:
                values[i] = error
        for key, version in delivered:
            self._delivered(key, version, 0.0)
        return all_or_batch_error(values)

    def delete(self, key: str, *, missing_ok: bool = False, timeout: float | None = None) -> None:
        """Deletes a value. Raises NotFoundError and, below a value, NotContainerError (neither with
        `missing_ok`), IsContainerError."""
        self._run(requests.delete(key, missing_ok), timeout)

    def delete_many(self, keys: Iterable[str], *, timeout: float | None = None) -> None:
        """Deletes every key; absent ones are no error. Raises BatchError for other failures."""
        keys = requests.several(keys)
        each = requests.delete("", missing_ok=True)
        failed = [
            None if not r[0] or -r[0] in requests.ABSENT_STATUSES else self._error(-r[0], key, 0)
            for key, r in zip(
                keys, self._hot.call_many(each.code, each.flags, keys, timeout), strict=True
            )
        ]
        if self._homes:
            from .placement import durable_after

            last = durable_after(self._homes, keys)
            if last is not None:
                self._run(last, timeout)
        all_or_batch_error(failed)


class _ViewEnd:
    """What the end of a view over a value that goes when it was read has to do; called by the
    view's destructor, perhaps. In a forked child the view is not the one that was given out."""

    __slots__ = ("_key", "_pid", "_store", "_version")

    def __init__(self, store: Connection, key: str, version: int) -> None:
        self._store = store
        self._key = key
        self._version = version
        self._pid = getpid()

    def __call__(self) -> None:
        if self._pid == getpid():
            self._store._delivered(self._key, self._version, 0.0)
