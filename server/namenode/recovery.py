"""What a storage server of an earlier life of the namenode sends before it is up again.

One zlib stream, in as many messages as it takes: the generations of all its granules (u64, one
region behind the other), then its busy runs (u32 triples: region, granule, granules). What it may
unpack to is known beforehand, and nothing beyond is ever unpacked.
"""

from __future__ import annotations

import zlib
from typing import Any

from crailpy.errors import ProtocolError

RUN_BYTES = 12
BUSY_MAX = 1 << 20  # runs
ERRNO_MAX = 4096


class Recovery:
    """The stream of a server with so many granules, as it comes in."""

    def __init__(self, granules: int) -> None:
        self._bytes = 8 * granules
        self._room = self._bytes + BUSY_MAX * RUN_BYTES
        self._data = bytearray()
        self._stream = zlib.decompressobj()
        #: Why its disk cannot tell what was retired; 0: it can.
        self.disk_errno = 0

    def add(self, message: dict[str, Any]) -> bool:
        """The next message. True: that was all. Raises ProtocolError. May take a while."""
        piece, last = message.get("data"), message.get("last")
        error = message.get("disk_errno")
        if not isinstance(piece, bytes) or not isinstance(last, bool):
            raise ProtocolError("recovered: data is bytes, and last says whether that was all")
        if not isinstance(error, int) or not 0 <= error < ERRNO_MAX:
            raise ProtocolError(f"recovered: disk_errno is {error!r}")
        self.disk_errno = error
        try:
            self._data += self._stream.decompress(piece, self._room - len(self._data) + 1)
        except zlib.error as damage:
            raise ProtocolError(f"recovered: {damage}") from None
        if len(self._data) > self._room:
            raise ProtocolError("recovered: more than the server can have")
        if last:
            runs = len(self._data) - self._bytes
            if not self._stream.eof or self._stream.unused_data or runs < 0 or runs % RUN_BYTES:
                raise ProtocolError("recovered: this is not all, or more than that")
        return last

    @property
    def generations(self) -> bytes:
        """Of all granules."""
        return bytes(self._data[: self._bytes])

    @property
    def busy(self) -> bytes:
        """The runs that somebody still uses."""
        return bytes(self._data[self._bytes :])
