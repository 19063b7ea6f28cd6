"""What passes between drivers, the pool's service and executors: frames, without any I/O.

Little-endian: u32 bytes of the body, u8 kind, u32 count, u64 task; then the body. `count` is an
attempt or a number of workers, `task` the driver's number of a task or of a question.
"""

from __future__ import annotations

from struct import Struct

from crailpy.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Frame: TypeAlias = tuple[int, int, int, bytes]  # kind, count, task, body

VERSION = 2
BODY_BYTES_MAX = 4 << 20
WINDOW = 1024
"""So many unfinished tasks of one driver may be in the service."""

# driver to service
HELLO = 1  # body: msgpack, see service.py
SUBMIT = 2  # body: the call
CANCEL = 3
SCALE = 4  # count: workers; task: the question's number
STATUS = 5
STOP = 6
# service to driver
WELCOME = 16
REFUSED = 17  # body: msgpack {"error": ...} as of a hello
RUNNING = 18  # count: attempt
DONE = 19  # body: the result; also executor to service, as of RUN and LOOK
FAILED = 20  # body: the exception; also executor to service
CANCELLED = 21
KEPT = 22  # it runs, or has ended: too late to cancel
LOST = 23  # count: deaths; body: words
FACTS = 24  # body: msgpack; answers SCALE and STATUS
# service to executor
CONTEXT = 32  # task: the driver whose tasks follow, as a number; body: its context
RUN = 33  # count: attempt; body: the call
FORGET = 34  # task: a driver that has gone
LEAVE = 35
LOOK = 36  # body: as of another's COMMITS
# executor to service
READY = 48
STALE = 49  # what it has imported is not what the driver would import: the task was not begun
COMMITS = 50  # body: where the task ends with a commit, and its result, see worker.py
MISSING = 51  # answers LOOK: nothing is there

_HEAD = Struct("<IBIQ")


def pack(kind: int, task: int = 0, count: int = 0, body: bytes = b"") -> bytes:
    """The bytes of a frame. Raises ProtocolError if its body is too long."""
    if len(body) > BODY_BYTES_MAX:
        raise ProtocolError(f"a body of {len(body)} bytes is longer than {BODY_BYTES_MAX}")
    return _HEAD.pack(len(body), kind, count, task) + body


class Reader:
    """Puts frames together of the bytes that came."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now, in order. Raises ProtocolError."""
        if self._rest:
            data = self._rest + data
        frames: list[Frame] = []
        at, size = 0, len(data)
        while size - at >= _HEAD.size:
            length, kind, count, task = _HEAD.unpack_from(data, at)
            if length > BODY_BYTES_MAX:
                raise ProtocolError(f"a body of {length} bytes is longer than {BODY_BYTES_MAX}")
            end = at + _HEAD.size + length
            if end > size:
                break
            frames.append((kind, count, task, data[at + _HEAD.size : end]))
            at = end
        self._rest = data[at:]
        return frames
