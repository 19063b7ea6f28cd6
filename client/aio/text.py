"""Text over the files that are awaited: what io.TextIOWrapper is over a binary file."""

from __future__ import annotations

import codecs
import io
import os
from typing import TYPE_CHECKING

from crailpy.errors import ClosedError, InvalidArgumentError

from ..files import BUFFER_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from .files import AsyncFile

CHUNK_BYTES = 8192  # decoded at once, as by io.TextIOWrapper
_U64 = (1 << 64) - 1


class AsyncText:
    """A value as text, for one task at a time; see `Store.open`. Leaving an `async with` block by
    an exception, and `discard()`, publish nothing."""

    def __init__(
        self,
        file: AsyncFile,
        encoding: str | None,
        errors: str | None,
        newline: str | None,
        buffering: int,
    ) -> None:
        # The defaults, and what is refused, are io.TextIOWrapper's.
        with io.TextIOWrapper(io.BytesIO(), encoding, errors, newline) as like:
            self.encoding = like.encoding
            self.errors = like.errors or "strict"
        self.buffer = file
        self._encoder = codecs.getincrementalencoder(self.encoding)(self.errors)
        decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
        self._decoder: codecs.IncrementalDecoder | io.IncrementalNewlineDecoder = decoder
        if not newline:
            self._decoder = io.IncrementalNewlineDecoder(decoder, translate=newline is None)
        self._line_ends = ("\r\n", "\r", "\n") if newline == "" else (newline or "\n",)
        self._written_as = os.linesep if newline is None else newline or "\n"
        self._by_line = buffering == 1
        self._buffer_bytes = buffering if buffering > 1 else BUFFER_BYTES
        self._began = False  # what the encoder says at the start (a byte order mark) is settled
        self._unwritten = bytearray()
        self._chars = ""  # decoded and not read
        self._mark = (0, 0)  # a byte, and the decoder's state before it
        self._since_mark = 0  # characters decoded since

    # -- what it is ------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The path."""
        return self.buffer.name

    @property
    def mode(self) -> str:
        """As it was opened."""
        return self.buffer.mode

    @property
    def version(self) -> int | None:
        """The version that is read, or the one that was published, after close()."""
        return self.buffer.version

    @property
    def closed(self) -> bool:
        """Was it closed?"""
        return self.buffer.closed

    def readable(self) -> bool:
        return self.buffer.readable()

    def writable(self) -> bool:
        return self.buffer.writable()

    def seekable(self) -> bool:
        return self.buffer.seekable()

    def _check(self, may: bool, what: str) -> None:
        if self.closed:
            raise ClosedError("the file is closed", path=self.name)
        if not may:
            raise io.UnsupportedOperation(f"not {what}")

    # -- reading -----------------------------------------------------------------------

    async def _more(self, size: int = CHUNK_BYTES) -> bool:
        """Decodes so many bytes more; False: that was all."""
        if not self._chars:
            self._set_mark()
        data = await self.buffer._read(size)
        chars = self._decoder.decode(data, not data)
        self._chars += chars
        self._since_mark += len(chars)
        if not data:
            await self.buffer._delivered()
        return bool(data)

    def _set_mark(self) -> None:
        """Where decoding can begin again: all before it was read."""
        undecoded, state = self._decoder.getstate()
        self._mark = (self.buffer.tell() - len(undecoded), state)
        self._since_mark = 0

    async def read(self, size: int | None = -1) -> str:
        """Up to `size` characters, fewer only at the end; -1: all the rest."""
        self._check(self.buffer._mode.reads, "readable")
        await self._write_out()
        if size is None or size < 0:
            rest = await self.buffer.read()
            text, self._chars = self._chars + self._decoder.decode(rest, True), ""
            return text
        while (missing := size - len(self._chars)) > 0:
            if not await self._more(max(missing, CHUNK_BYTES)):
                break
        text, self._chars = self._chars[:size], self._chars[size:]
        return text

    def _line_end(self, start: int) -> int:
        """Where the first line ends that ends behind `start`; 0: not in what was decoded."""
        found = ((self._chars.find(end, start), -len(end)) for end in self._line_ends)
        at, length = min((f for f in found if f[0] >= 0), default=(0, 0))
        return at - length

    async def readline(self) -> str:
        """Up to and with the next end of a line; "" at the end."""
        self._check(self.buffer._mode.reads, "readable")
        await self._write_out()
        start = 0
        while not (end := self._line_end(start)):
            start = max(0, len(self._chars) - 1)  # the half of an end may be there
            if not await self._more():
                end = self._line_end(start) or len(self._chars)
                break
        line, self._chars = self._chars[:end], self._chars[end:]
        return line

    async def readlines(self) -> list[str]:
        """The rest, line by line."""
        return [line async for line in self]

    async def __aiter__(self) -> AsyncIterator[str]:
        while line := await self.readline():
            yield line

    # -- writing -----------------------------------------------------------------------

    async def write(self, text: str) -> int:
        """Writes all of `text`; returns its characters."""
        self._check(self.buffer._mode.writes, "writable")
        if not isinstance(text, str):
            raise TypeError(f"text is a str, not {type(text).__name__}")
        if not self._began:
            self._began = True
            if self.buffer.tell():
                self._encoder.setstate(0)  # in the middle no byte order mark
        ends_line = self._by_line and ("\n" in text or "\r" in text)
        lines = text.replace("\n", self._written_as) if self._written_as != "\n" else text
        self._unwritten += self._encoder.encode(lines)
        self._forget_chars()
        if ends_line or len(self._unwritten) >= self._buffer_bytes:
            await self._write_out()
        return len(text)

    async def writelines(self, lines: list[str]) -> None:
        """Writes each; none is given an end."""
        for line in lines:
            await self.write(line)

    async def _write_out(self) -> None:
        if self._unwritten:
            data, self._unwritten = bytes(self._unwritten), bytearray()
            await self.buffer.write(data)

    def _forget_chars(self) -> None:
        self._chars = ""
        self._decoder.reset()

    async def flush(self) -> None:
        """See `AsyncFile.flush`."""
        self._check(True, "")
        await self._write_out()
        await self.buffer.flush()

    def tell(self) -> int:
        """Where it stands, for `seek`: a number that says nothing else, as in io.TextIOBase."""
        self._check(True, "")
        if self._unwritten:
            return self.buffer.tell() + len(self._unwritten)
        if not self._chars:
            self._set_mark()
        position, state = self._mark
        return position | (self._since_mark - len(self._chars)) << 64 | state << 128

    async def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to where `tell` was asked, to the start (0), to the end (0, io.SEEK_END), or nowhere
        (0, io.SEEK_CUR): other places have no number. Returns what `tell` gives there. Raises
        InvalidArgumentError, UnsupportedOperation, OSError (what lies there is no such place)."""
        self._check(True, "")
        if whence != io.SEEK_SET and (offset or whence not in (io.SEEK_CUR, io.SEEK_END)):
            raise io.UnsupportedOperation("text: seek to its start, its end, or where tell() was")
        if offset < 0:
            raise InvalidArgumentError(f"cannot seek to {offset}", path=self.name)
        if whence == io.SEEK_CUR:
            return self.tell()
        await self._write_out()
        self._forget_chars()
        self._encoder.reset()
        self._began = False
        if whence == io.SEEK_END:
            return await self.buffer.seek(0, whence)
        position, skip, state = offset & _U64, offset >> 64 & _U64, offset >> 128
        await self.buffer.seek(position)
        if offset:  # else it begins, as _forget_chars() has left it
            self._decoder.setstate((b"", state))
        while len(self._chars) < skip:
            if not await self._more():
                raise OSError("the text is not what it was when tell() was asked")
        self._chars = self._chars[skip:]
        return offset

    async def truncate(self, size: int | None = None) -> int:
        """Cuts it to `size` bytes (None: to where it stands); see `AsyncFile.truncate`."""
        self._check(self.buffer._mode.writes, "writable")
        await self._write_out()
        return await self.buffer.truncate(size)

    # -- the end -----------------------------------------------------------------------

    async def close(self) -> None:
        """Publishes what was written. May be called twice. Raises as `AsyncFile.close`."""
        if self.closed:
            return
        try:
            await self._write_out()
        except BaseException:
            await self.buffer.discard()
            raise
        self.buffer._unread |= len(self._chars) + len(self._decoder.getstate()[0])
        await self.buffer.close()

    async def discard(self) -> None:
        """Closes without publishing anything."""
        self._unwritten.clear()
        await self.buffer.discard()

    async def __aenter__(self) -> AsyncText:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            await self.discard()
        await self.close()


__all__ = ["AsyncText"]
