"""What a file has of a value: one version, in memory or in extents, and the holds that keep it."""

from __future__ import annotations

import io
import os
import sys
import time
from collections import deque

from crailpy.errors import (
    ClosedError,
    CrailError,
    DataLostError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    StaleLocationError,
)

from . import extents, requests
from . import placement as place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crailpy.native import Pipe

    from .store import Store

GIVE_BACK_S = 1.0

# operation codes and flags (native/include/crail/wire.h)
_RELEASE, OPEN, APPEND, STREAM, FOLLOW = 19, 48, 51, 53, 54
TAIL_CLOSED = 16


class Mode:
    """A mode string, taken apart. Raises InvalidArgumentError."""

    __slots__ = ("appends", "creates", "exclusive", "reads", "text", "writes")

    def __init__(self, mode: str, path: str) -> None:
        kinds = [letter for letter in mode if letter in "rwxa"]
        if len(kinds) != 1 or len(set(mode)) != len(mode) or set(mode) - set("rwxabt+"):
            raise InvalidArgumentError(f"mode {mode!r} is none", path=path)
        if "b" in mode and "t" in mode:
            raise InvalidArgumentError(f"mode {mode!r}: text and binary at once", path=path)
        kind, both = kinds[0], "+" in mode
        self.text = "b" not in mode
        self.reads = kind == "r" or both
        self.writes = kind != "r" or both
        self.creates = kind in "wx"
        self.exclusive = kind == "x"
        self.appends = kind == "a"


class Opened(io.RawIOBase):
    """One version of a value, opened by this process, and where in it it is read and written."""

    def __init__(
        self,
        store: Store,
        path: str,
        mode: Mode,
        timeout: float | None,
        placement: dict[str, Any],
        pipe: Pipe | None = None,
        deadline: float | None = None,
    ) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._done = True  # until it is open: __del__ may come earlier
        self._store = store
        self._door = store._door
        self._own_timeout = timeout  # of each call
        self._deadline = deadline  # or of all of them together
        placement = dict(placement)
        self._parents = bool(placement.pop("parents", True))
        self._placement = placement
        self._options, self._wait_space = place.pack(**placement)
        self._like = 0  # what is edited lies on this server, perhaps among others
        self._stripe = place.stripe_of(self._options)
        self._mode = mode
        self.name = path
        self.mode = "".join(
            ["xb" if mode.exclusive else "ab" if mode.appends else "wb" if mode.creates else "rb",
             "+" if mode.reads and mode.writes else ""]
        )  # fmt: skip
        #: The version that is read, or the one that was published, after close().
        self.version: int | None = None
        self._at = 0
        self._size = 0
        self._token = 0  # of the hold that keeps what was opened; 0: none
        self._flags = 0  # of the result that opened it
        self._memory: bytes | bytearray | None = b""
        self._extents = b""
        self._room = 0  # bytes that fit into the extents
        self._edge = 0  # of the room: behind it are extents that nothing was written to
        self._fixed = 0  # bytes from the start that may not be written: they are committed
        self._granted = 0  # the last so many extents are grants of ours
        self._tail_closed = False
        self._behind: deque[tuple[int, bytes]] = deque()  # written to a disk, perhaps refused
        self._behind_bytes = 0
        self._avoid = 0  # the server whose disk refused something last
        self._rescues = 0
        self._dirty = mode.creates
        self._sequential = True  # everything up to _at was read in order
        self._unread = 0  # bytes that a layer above has read ahead; discard() leaves one too
        self._pipe = pipe  # another file's that was left idle, or made when there is use for it
        self._stream_token = 0  # of what is announced to those who follow; 0: nothing was
        self._announced = 0
        self._closing = False
        self._discards = False
        self._is_broken = False
        self._made = 0  # version of the empty value that an append began with; 0: there was one
        if mode.creates:
            if mode.exclusive:
                self._check_absent()
            self._memory = bytearray()
        else:
            self._open_version()
        self._done = False

    # -- opening ---------------------------------------------------------------------

    def _check_absent(self) -> None:
        try:
            self._call(requests.STAT)
        except NotFoundError:
            return
        raise ExistsError(path=self.name)

    def _call(self, code: int, flags: int = 0, **more: Any) -> tuple[Any, ...]:
        more.setdefault("timeout", self._timeout())
        return self._store._call(code, flags, self.name, **more)

    def _call_waiting(
        self, code: int, *, seconds: float | None = None, **more: Any
    ) -> tuple[Any, ...]:
        """An operation that the namenode answers when it can, within the deadline."""
        return self._store._wait(
            lambda ms, timeout: self._call(
                code, requests.WAIT, count=ms, **(more | {"timeout": timeout})
            ),
            self._limit() if seconds is None else seconds,
            requests.WAY_BACK,
        )

    def _timeout(self) -> float | None:
        """Of the next call."""
        if self._deadline is None:
            return self._own_timeout
        return max(0.0, self._deadline - time.monotonic())

    def _limit(self) -> float:
        timeout = self._timeout()
        return self._store._timeout if timeout is None else timeout

    def _open_version(self) -> None:
        appends = self._mode.appends
        self._token = token = self._store._token()
        try:
            found = self._ask_for_append(token) if appends else self._ask_to_open(token)
        except BaseException:
            self._unmake()
            self._end_hold(token, requests.WAY_BACK)  # the answer may be on its way still
            self._token = 0
            raise
        self._opened(found)
        if appends:
            self._at = self._size
        elif self._memory is not None:
            self._token = 0  # there is nothing to hold

    def _opened(self, found: tuple[Any, ...]) -> None:
        """Takes over what OPEN, APPEND or FOLLOW found."""
        self.version, self._size, _, self._flags, _, data = found
        if self._flags & requests.INLINE:
            self._memory = data
        else:
            self._memory = None
            self._extents = data
            self._room = self._edge = extents.capacity(data)
            if self._mode.writes:
                self._lies_on(extents.servers(data))
            self._fixed = self._size if self._mode.appends else sys.maxsize
            self._tail_closed = bool(self._flags & TAIL_CLOSED)

    def _lies_on(self, servers: list[int]) -> None:
        """Where the value is that is edited; what is said to the edit itself counts more."""
        self._like = servers[0]
        if self._stripe == 1:
            self._stripe = len(servers)

    def _ask_to_open(self, token: int) -> tuple[Any, ...]:
        return self._call(OPEN, arg0=token)

    def _ask_for_append(self, token: int) -> tuple[Any, ...]:
        deadline = time.monotonic() + self._limit()  # one for all that is asked
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return self._call_waiting(APPEND, seconds=left, arg0=token)
            except NotFoundError:
                try:
                    self._made = self._store.put(
                        self.name, b"", if_absent=True, parents=self._parents, timeout=left,
                        **self._placement,
                    )  # fmt: skip
                except ExistsError:
                    pass

    # -- what it can do --------------------------------------------------------------

    def _check(self) -> None:
        if self.closed:
            raise ClosedError("the file is closed", path=self.name)
        if self._pid != os.getpid():
            raise ClosedError("the file belongs to the process that opened it", path=self.name)

    def readable(self) -> bool:
        self._check()
        return self._mode.reads

    def writable(self) -> bool:
        self._check()
        return self._mode.writes

    def seekable(self) -> bool:
        self._check()
        return True

    def _check_may(self, may: bool, what: str) -> None:
        self._check()
        if not may:
            raise io.UnsupportedOperation(f"not {what}")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        if whence not in bases or bases[whence] + offset < 0:
            raise InvalidArgumentError(f"cannot seek to {offset} from {whence}", path=self.name)
        at = bases[whence] + offset
        self._sequential = self._sequential and at == self._at
        self._at = at
        return at

    def tell(self) -> int:
        self._check()
        return self._at

    # -- its bytes -------------------------------------------------------------------

    def _moves(self) -> Pipe:
        if self._pipe is None:
            self._pipe = self._door.pipe(self.name)
        return self._pipe

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _read_into(self, buffer: Any, at: int) -> int:
        """Fills the buffer from byte `at` on, as far as there is something."""
        if self._memory is not None:
            with memoryview(buffer).cast("B") as to, memoryview(self._memory) as data:
                part = data[at : at + len(to)]
                to[: len(part)] = part
                return len(part)
        try:
            return self._moves().read(self._extents, self._size, at, buffer, self._timeout())
        except StaleLocationError as error:
            raise self._lost() from error

    def _lost(self) -> DataLostError:
        return DataLostError(
            "the memory that this file lies in went away with its server or its session",
            path=self.name,
        )

    # -- giving back -----------------------------------------------------------------

    def _unmake(self) -> None:
        """Nothing was appended to the empty value made for it: it goes, unless another has made
        something of it. Still under the append right, so that nobody appends to it meanwhile."""
        made, self._made = self._made, 0
        if not made:
            return
        try:
            self._store._run(requests.delivered(self.name, made), GIVE_BACK_S)
        except CrailError:
            pass  # an empty value stays

    def _end_hold(self, token: int, timeout: float = GIVE_BACK_S) -> None:
        if not token:
            return
        try:
            self._store._run(requests.end(token), timeout)
        except CrailError:
            pass  # it ends with the session

    def _give_back(self, whence: bytes, granted: int) -> None:
        """Releases the last `granted` extents. They go with the session if that fails."""
        while granted:
            n = min(granted, extents.EXTENTS_MAX)
            at = len(whence) - granted * extents.EXTENT_BYTES
            granted -= n
            try:
                self._store._call(
                    _RELEASE, 0, None, whence[at : at + n * extents.EXTENT_BYTES],
                    count=n, timeout=GIVE_BACK_S,
                )  # fmt: skip
            except CrailError:
                return
