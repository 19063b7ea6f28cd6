"""File objects over values: a reader of one version, and a writer that publishes at close."""

from __future__ import annotations

import io

from crailpy.errors import ClosedError, InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .store import Store


class Reader(io.RawIOBase):
    """Reads one version of a value, whatever happens to the key meanwhile. `mode` "rb"."""

    def __init__(self, store: Store, path: str, timeout: float | None) -> None:
        super().__init__()
        self._view = store.get_view(path, timeout=timeout)
        self._bytes = memoryview(self._view)
        self._at = 0
        self.name = path
        self.mode = "rb"

    @property
    def version(self) -> int:
        """The version that this file reads."""
        return self._view.version

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the file is closed", path=self.name)

    def readinto(self, buffer: Any) -> int:
        self._check_open()
        with memoryview(buffer).cast("B") as to:
            n = min(len(to), max(0, len(self._bytes) - self._at))
            to[:n] = self._bytes[self._at : self._at + n]
        self._at += n
        return n

    def read(self, size: int | None = -1) -> bytes:
        self._check_open()
        end = len(self._bytes)
        if size is not None and size >= 0:
            end = min(end, self._at + size)
        data = bytes(self._bytes[self._at : end])
        self._at = max(self._at, end)
        return data

    def readall(self) -> bytes:
        return self.read()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._bytes)}
        if whence not in bases or bases[whence] + offset < 0:
            raise InvalidArgumentError(f"cannot seek to {offset} from {whence}", path=self.name)
        self._at = bases[whence] + offset
        return self._at

    def tell(self) -> int:
        self._check_open()
        return self._at

    def close(self) -> None:
        if not self.closed:
            self._bytes.release()
            self._view.release()
        super().close()


class Writer(io.RawIOBase):
    """Collects what is written and publishes it as one version at `close()`.

    Leaving a `with` block by an exception, and `discard()`, publish nothing."""

    def __init__(self, store: Store, path: str, exclusive: bool, timeout: float | None) -> None:
        super().__init__()
        self._store = store
        self._buffer = bytearray()
        self._exclusive = exclusive
        self._timeout = timeout
        self._done = False
        self.version: int | None = None  #: of what was published, after close()
        self.name = path
        self.mode = "xb" if exclusive else "wb"

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ClosedError("the file is closed", path=self.name)
        with memoryview(data) as view:
            self._buffer += view
            return view.nbytes

    def tell(self) -> int:
        return len(self._buffer)

    def discard(self) -> None:
        """Closes without publishing anything."""
        self._done = True
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        try:
            if not self._done:
                self._done = True
                self.version = self._store.put(
                    self.name, self._buffer, if_absent=self._exclusive, timeout=self._timeout
                )
        finally:
            self._buffer = bytearray()
            super().close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._done = True
        self.close()

    def __del__(self) -> None:
        self._done = True  # nobody closed it: nothing is published
        super().close()


__all__ = ["Reader", "Writer"]
