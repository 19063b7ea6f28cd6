"""File objects over values, as builtin open() layers them: text over a buffer over a `File`.

A `File` is an io.RawIOBase over one version of one value (opened.py). What it changes is its own,
in a small buffer or in granted extents (changed.py), until `close()` publishes it as one new
version. Committed bytes are never written again: "r+" copies them, once, when something is changed;
"a" writes behind them.
"""

from __future__ import annotations

import io
import os
import sys

from crailpy.errors import (
    DISCARDED,
    CrailError,
    DataLostError,
    InvalidArgumentError,
    NotFoundError,
    StaleLocationError,
    UnavailableError,
)

from . import extents, requests
from . import placement as place
from .changed import MEMORY_BYTES_MAX, Changed
from .opened import FOLLOW, Mode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crailpy.native import Pipe

    from .store import Store

BUFFER_BYTES = 64 << 10  # of the buffer that lies over a File

# operation code and flags (native/include/crail/wire.h)
_COMMIT, GROW, FLUSHED = 17, 1 << 11, 1 << 14


class File(Changed):
    """One version of a value as a raw file; see `Store.open`. For the process that opened it."""

    # -- reading ---------------------------------------------------------------------

    def readinto(self, buffer: Any) -> int:
        self._check_may(self._mode.reads, "readable")
        self._arrive()
        with memoryview(buffer) as view:
            n = self._read_into(view, self._at)
            if view.nbytes:
                self._was_read(n)
        return n

    def readall(self) -> bytes:
        self._check_may(self._mode.reads, "readable")
        self._arrive()
        n = max(0, self._size - self._at)
        if self._memory is not None:
            data = bytes(memoryview(self._memory)[self._at :])
        else:
            try:
                data = self._moves().read_bytes(
                    self._extents, self._size, self._at, n, self._timeout()
                )
            except StaleLocationError as error:
                raise self._lost() from error
        self._at += len(data)
        self._was_read(0)
        return data

    def ask(self, length: int) -> None:
        """Has the next `length` bytes on their way, where they come over TCP. A connection that
        broke meanwhile shows when they are read, which tries again."""
        if self._memory is None and self._size > self._at:
            try:
                self._moves().ask(self._extents, self._size, self._at, length, self._timeout())
            except UnavailableError:
                pass
            except StaleLocationError as error:
                raise self._lost() from error

    def leave_pipe(self) -> Pipe | None:
        """Gives its pipe away, for another file; after the last byte was read."""
        pipe, self._pipe = self._pipe, None
        return pipe

    def _arrive(self) -> None:
        """Before it is read: what a disk may refuse is there, or elsewhere."""
        if self._behind:
            self._somewhere(self._settle)

    def _was_read(self, n: int) -> None:
        self._at += n
        if n == 0 and self._sequential and self._at == self._size:
            self._report_delivery()

    def _is_at_its_end(self) -> bool:
        """All of it was read, in order, though not by an empty read."""
        is_whole = self._at == self._size > 0 and not self._flags & requests.MORE
        return is_whole and self._sequential and not self._mode.writes

    def _report_delivery(self) -> None:
        """It was read to its end, in order: a value that goes when it was read goes now."""
        if self._flags & requests.DELETE_AFTER_READ and not self._mode.writes:
            self._flags &= ~requests.DELETE_AFTER_READ
            assert self.version is not None
            self._store._delivered(self.name, self.version, 0.0)

    # -- the end ---------------------------------------------------------------------

    def _publish(self) -> None:
        base = self.version or 0
        flags = requests.PARENTS if self._parents else 0
        if self._mode.exclusive:
            flags |= requests.IF_ABSENT
        elif not self._mode.creates:
            flags |= requests.IF_VERSION | requests.EDIT
        edited_there = self._like and self._size > requests.INLINE_MAX
        if self._size and (self._memory is None or edited_there):  # to where what is edited lies
            self._somewhere(self._settle_in_extents, MEMORY_BYTES_MAX + 1)
        if self._memory is not None or self._size == 0:
            data = self._memory if self._memory is not None and self._size else b""
            self.version = self._store._put(
                self._door.put, self.name, data, flags, base, self._timeout(), self._placement
            )
            return
        kept = len(self._extents) // extents.EXTENT_BYTES
        if self._fixed:
            flags, base, kept = GROW, self._token, self._granted
        flags |= self._make_durable()
        n = kept * extents.EXTENT_BYTES
        try:
            self.version = self._call(
                _COMMIT, flags, data=self._extents[len(self._extents) - n :],
                count=kept, arg0=base, arg1=self._size, options=self._options,
            )[0]  # fmt: skip
        except StaleLocationError as error:
            raise self._lost() from error
        except NotFoundError as error:
            requests.explain_absence(error, self._parents, self._options)
            raise
        self._granted = 0
        self._stream_token = 0  # it ended with the commit
        if self._fixed:
            self._token = 0  # the right ended with the commit

    def _make_durable(self) -> int:
        """What was written is durable where it lies on disks, if that is promised: FLUSHED."""
        if not place.is_sync(self._options, self._store._kept):
            return 0
        self._close_pipe()  # the lane is to have its connection
        n = extents.EXTENT_BYTES
        written = len(self._extents) - self._granted * n
        if self._fixed and self._fixed < extents.capacity(self._extents[:written]):
            written -= n  # the tail of what was there, which has room, was written too
        elif not self._fixed:
            written = 0
        try:
            whence = self._extents[written:]
            return FLUSHED if self._door.flush(self.name, whence, self._timeout()) else 0
        except StaleLocationError as error:
            raise self._lost() from error

    def discard(self) -> None:
        """Closes without publishing anything."""
        self._dirty = False
        self._unread = 1
        self._discards = True
        self.close()

    def close(self) -> None:
        if self._done or self.closed:
            super().close()
            return
        self._done = True
        if self._pid != os.getpid():  # the parent's to close
            super().close()
            return
        if self._is_at_its_end() and not self._unread:
            self._report_delivery()  # its reader knew the size, and saw no empty read
        try:
            if self._dirty:
                self._publish()
            if not self._discards:
                self._made = 0
        finally:
            granted, self._granted = self._granted, 0
            token, self._token = self._token, 0
            try:
                self._close_pipe()
                self._end_hold(self._stream_token)
                self._give_back(self._extents, granted)
                self._unmake()
                self._end_hold(token)
            finally:
                self._memory = b""
                super().close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        _forsaken(self, self)


def _forsaken(layer: object, file: File) -> None:
    """Nobody closed it, and nobody will: nothing is published."""
    if getattr(file, "_done", True) or file._pid != os.getpid() or sys.is_finalizing():
        return
    try:
        file.discard()
    finally:  # a warning may be made an error
        import warnings

        warnings.warn(f"unclosed file {file.name!r}", ResourceWarning, stacklevel=3, source=layer)


class Following(File):
    """A File that reads what is still being written, as far as its writer has shown it."""

    def _ask_to_open(self, token: int) -> tuple[Any, ...]:
        return self._call_waiting(FOLLOW, arg0=token)

    def _has_more(self) -> bool:
        """At the end of what was shown: waits until there is more. False: that was all."""
        if not self._flags & requests.MORE:
            return False
        try:
            self._opened(self._call_waiting(FOLLOW, arg0=self._token, arg1=self._size))
        except DataLostError as error:
            raise self._discarded() from error
        return True

    def _discarded(self) -> DataLostError:
        return DataLostError(DISCARDED, path=self.name)

    def _lost(self) -> DataLostError:
        """What a location that is out of date means: mostly that the writer discarded it."""
        try:
            self._call(FOLLOW, arg0=self._token)
        except DataLostError:
            return self._discarded()
        except CrailError:
            pass
        return super()._lost()

    def readinto(self, buffer: Any) -> int:
        n = super().readinto(buffer)
        while n == 0 and len(buffer) and self._has_more():
            n = super().readinto(buffer)
        return n

    def readall(self) -> bytes:
        parts = [super().readall()]
        while self._has_more():
            parts.append(super().readall())
        return b"".join(parts)


class _OverFile:
    """What a buffer or a text layer adds for the File under it."""

    def _file(self) -> File:
        raise NotImplementedError

    @property
    def version(self) -> int | None:
        """The version that is read, or the one that was published, after close()."""
        return self._file().version

    def _read_ahead(self, file: File) -> int:
        """Bytes of the file that lie here and were not taken."""
        return 0

    def discard(self) -> None:
        """Closes without publishing anything."""
        self._file().discard()

    def close(self) -> None:
        try:
            file = self._file()
        except (ValueError, AttributeError):  # detached
            file = None
        if file is not None and not file.closed:
            file._closing = True  # what flushes now is shown by the commit
            file._unread = max(file._unread, self._read_ahead(file))
            try:
                self.flush()  # type: ignore[attr-defined]
            except BaseException:  # what is not all there is not published
                file.discard()
                raise
        super().close()  # type: ignore[misc]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        try:
            file = self._file()
        except (ValueError, AttributeError):  # detached, or never made
            return
        _forsaken(self, file)


class Reader(_OverFile, io.BufferedReader):
    """A buffered File that reads."""

    def _file(self) -> File:
        return self.raw  # type: ignore[return-value]

    def _read_ahead(self, file: File) -> int:
        return file._at - self.tell() if file._pid == os.getpid() else 0


class Writer(_OverFile, io.BufferedWriter):
    """A buffered File that writes."""

    def _file(self) -> File:
        return self.raw  # type: ignore[return-value]

    def flush(self) -> None:
        super().flush()
        self.raw.flush()


class Random(_OverFile, io.BufferedRandom):
    """A buffered File that reads and writes."""

    def _file(self) -> File:
        return self.raw  # type: ignore[return-value]

    def flush(self) -> None:
        super().flush()
        self.raw.flush()


class Text(_OverFile, io.TextIOWrapper):
    """Text over a buffered File."""

    def _file(self) -> File:
        return self.buffer.raw  # type: ignore[attr-defined,no-any-return]

    def _read_ahead(self, file: File) -> int:
        if file._pid != os.getpid() or not file._is_at_its_end():
            return 1
        try:
            return len(self.read(1))  # of what was read and decoded already; nothing is asked for
        except ValueError:  # no text
            return 1


AnyFile = File | Reader | Writer | Random | Text


def open_file(
    store: Store,
    path: str,
    mode: str,
    *,
    follow: bool,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    timeout: float | None,
    placement: dict[str, Any],
) -> AnyFile:
    """What `Store.open` does."""
    taken = Mode(mode, path)
    placement = dict(place.at_home(store._homes, path, placement))
    if not taken.text and (encoding, errors, newline) != (None, None, None):
        raise InvalidArgumentError("encoding, errors and newline are for text modes", path=path)
    if taken.text and buffering == 0:
        raise InvalidArgumentError("text is always buffered", path=path)
    if buffering < -1:
        raise InvalidArgumentError(f"buffering={buffering}", path=path)
    if follow and mode != "rb" and mode != "r" and mode != "rt":
        raise InvalidArgumentError(f"follow is for reading, not for mode {mode!r}", path=path)
    file = (Following if follow else File)(store, path, taken, timeout, placement)
    if buffering == 0:
        return file
    size = buffering if buffering > 1 else BUFFER_BYTES
    layer = Random if taken.reads and taken.writes else Reader if taken.reads else Writer
    try:
        buffered = layer(file, size)
        if not taken.text:
            return buffered
        return Text(buffered, encoding, errors, newline, line_buffering=buffering == 1)
    except BaseException:  # no such encoding
        file.discard()
        raise


__all__ = ["AnyFile", "File", "Random", "Reader", "Text", "Writer", "open_file"]
