"""Every error of crailpy. All carry what they are about, and all survive pickling with it.

    CrailError(Exception)
     |- NotFoundError          (FileNotFoundError, KeyError)   NOT_FOUND
     |- ExistsError            (FileExistsError)               EXISTS
     |- NotEmptyError          (OSError, ENOTEMPTY)            NOT_EMPTY
     |- IsContainerError       (IsADirectoryError)             IS_CONTAINER
     |- NotContainerError      (NotADirectoryError)            NOT_CONTAINER
     |- InvalidPathError       (ValueError)                    INVALID_PATH
     |- InvalidArgumentError   (ValueError)                    INVALID_ARGUMENT
     |- VersionConflictError                                   VERSION_CONFLICT
     |- OutOfSpaceError        (OSError, ENOSPC)               OUT_OF_SPACE
     |- QuotaExceededError     (OSError, EDQUOT)               QUOTA_EXCEEDED
     |- AuthError              (PermissionError)               AUTH
     |- DeadlineError          (TimeoutError)                  DEADLINE
     |- UnavailableError       (ConnectionError)               UNAVAILABLE
     |- SessionLostError       (ConnectionError)               SESSION_LOST
     |- StaleLocationError     (internal, retried)             STALE_LOCATION
     |- DataLostError          (OSError, EIO)                  DATA_LOST
     |- ChecksumError          (OSError, EIO)                  CHECKSUM
     |- BarrierBrokenError                                     BARRIER_BROKEN
     |- ClosedError            (ValueError)                    CLOSED
     |- ProtocolError                                          PROTOCOL
     |- NoMemoryError          (MemoryError)                   NO_MEMORY
     |- NativeError            (OSError)                       an errno that has no name of ours
     '- BatchError             some of many failed; `.results` has them in order

The codes are those of native/include/crail/status.h; crailpy.native compares at its import.
"""

from __future__ import annotations

import errno as _errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = [
    "CrailError",
    "NotFoundError",
    "ExistsError",
    "NotEmptyError",
    "IsContainerError",
    "NotContainerError",
    "InvalidPathError",
    "InvalidArgumentError",
    "VersionConflictError",
    "OutOfSpaceError",
    "QuotaExceededError",
    "AuthError",
    "DeadlineError",
    "UnavailableError",
    "SessionLostError",
    "StaleLocationError",
    "DataLostError",
    "ChecksumError",
    "BarrierBrokenError",
    "ClosedError",
    "ProtocolError",
    "NoMemoryError",
    "NativeError",
    "BatchError",
    "from_code",
    "from_status",
]

STATUS_BASE = 1000


class CrailError(Exception):
    """The root. `code` is the name in status.h, `path` the node, `server` the storage server,
    `hint` what to do; each of the three is None where there is nothing to say."""

    code = "ERROR"
    status = 0  # number in status.h, 0 if it has none
    default_errno = 0
    default_message = "crailpy failed"
    default_hint: str | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        path: str | None = None,
        server: str | int | None = None,
        hint: str | None = None,
    ) -> None:
        message = self.default_message if message is None else message
        if isinstance(self, OSError):
            # OSError keeps (errno, text) in args and the path as filename, as people expect of it.
            OSError.__init__(self, self.default_errno, message, *([] if path is None else [path]))
        else:
            super().__init__(message)
        self.message = message
        self.path = path
        self.server = server
        self.hint = self.default_hint if hint is None else hint

    def retell(self, message: str) -> None:
        """Says it in the words of who knows more about it; words that it has stay."""
        if self.message != self.default_message:
            return
        self.message = message
        error: Any = self
        if isinstance(self, OSError):
            error.strerror = message
            error.args = (error.errno, message)
        else:
            error.args = (message,)

    def __str__(self) -> str:
        text = self.message
        if self.path is not None:
            text += f": {self.path!r}"
        if self.server is not None:
            text += f" (storage server {self.server})"
        if self.hint:
            text += f"; {self.hint}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.__dict__, getattr(self, "errno", None)))


def _rebuild(cls: type[CrailError], state: dict[str, Any], errno: int | None) -> CrailError:
    error = cls(state.get("message"), path=state.get("path"))
    error.__dict__.update(state)
    if errno is not None and isinstance(error, OSError):
        error.errno = errno
    return error


class NotFoundError(CrailError, FileNotFoundError, KeyError):
    """No node has this name."""

    code, status, default_errno = "NOT_FOUND", 1001, _errno.ENOENT
    default_message = "no such node"


class ExistsError(CrailError, FileExistsError):
    """There is a node of this name already."""

    code, status, default_errno = "EXISTS", 1002, _errno.EEXIST
    default_message = "the node exists already"


class NotEmptyError(CrailError, OSError):
    """The container is not empty."""

    code, status, default_errno = "NOT_EMPTY", 1003, _errno.ENOTEMPTY
    default_message = "the container is not empty"
    default_hint = "rmtree() removes it with all below it"


class IsContainerError(CrailError, IsADirectoryError):
    """The node is a container, the call wants a value."""

    code, status, default_errno = "IS_CONTAINER", 1004, _errno.EISDIR
    default_message = "the node is a container"


class NotContainerError(CrailError, NotADirectoryError):
    """The node, or one above it, is a value, the call wants a container."""

    code, status, default_errno = "NOT_CONTAINER", 1005, _errno.ENOTDIR
    default_message = "not a container"


class InvalidPathError(CrailError, ValueError):
    """Not a path: absolute, UTF-8, at most 255 bytes a component and 4096 in all, no NUL, `.` or
    `..`."""

    code, status = "INVALID_PATH", 1006
    default_message = "not a valid path"
    default_hint = (
        'it must begin with "/", have no empty, "." or ".." component, at most 255 bytes a name and'
        " 4096 in all, no NUL, and be valid UTF-8"
    )


class InvalidArgumentError(CrailError, ValueError):
    """An argument is out of its range or does not fit the others."""

    code, status = "INVALID_ARGUMENT", 1007
    default_message = "invalid argument"


class VersionConflictError(CrailError):
    """The node has another version than the one that was asked for."""

    code, status = "VERSION_CONFLICT", 1008
    default_message = "the node has another version"
    default_hint = "read it again and repeat the change"


class OutOfSpaceError(CrailError, OSError):
    """No storage server has room."""

    code, status, default_errno = "OUT_OF_SPACE", 1009, _errno.ENOSPC
    default_message = "no storage server has room"
    default_hint = "delete something, or add a storage server (crailpy storage)"


class QuotaExceededError(CrailError, OSError):
    """The quota of the job or tenant is used up."""

    code, status, default_errno = "QUOTA_EXCEEDED", 1010, _errno.EDQUOT
    default_message = "the quota is used up"


class AuthError(CrailError, PermissionError):
    """Who you are was not proven, or is not allowed to do this."""

    code, status, default_errno = "AUTH", 1011, _errno.EACCES
    default_message = "not allowed"


class DeadlineError(CrailError, TimeoutError):
    """The deadline of the call has passed."""

    code, status, default_errno = "DEADLINE", 1012, _errno.ETIMEDOUT
    default_message = "the deadline has passed"


class UnavailableError(CrailError, ConnectionError):
    """The service cannot be reached. Where the message says "outcome unknown", the change may have
    happened."""

    code, status, default_errno = "UNAVAILABLE", 1013, _errno.ECONNREFUSED
    default_message = "the service cannot be reached"


class SessionLostError(CrailError, ConnectionError):
    """The namenode does not know the session (any more)."""

    code, status, default_errno = "SESSION_LOST", 1014, _errno.ECONNRESET
    default_message = "the session is gone"
    default_hint = "connect again"


class StaleLocationError(CrailError):
    """A location is older than the block it names. Internal: the client asks again."""

    code, status = "STALE_LOCATION", 1015
    default_message = "the location is out of date"


class DataLostError(CrailError, OSError):
    """The bytes are gone with the server that held them."""

    code, status, default_errno = "DATA_LOST", 1016, _errno.EIO
    default_message = "the data is lost with its storage server"


class ChecksumError(CrailError, OSError):
    """The bytes are not those that were written."""

    code, status, default_errno = "CHECKSUM", 1017, _errno.EIO
    default_message = "the checksum does not fit the data"


class BarrierBrokenError(CrailError):
    """A member of the barrier is dead."""

    code, status = "BARRIER_BROKEN", 1018
    default_message = "a member of the barrier is gone"


class ClosedError(CrailError, ValueError):
    """The object was closed before."""

    code, status = "CLOSED", 1019
    default_message = "closed"


class ProtocolError(CrailError):
    """The other side does not speak this protocol, or not this version of it."""

    code, status = "PROTOCOL", 1020
    default_message = "the other side breaks the protocol"


class NoMemoryError(CrailError, MemoryError):
    """The service is out of memory for metadata."""

    code, status = "NO_MEMORY", 1021
    default_message = "out of memory"


class NativeError(CrailError, OSError):
    """A system call failed with an errno for which there is no name of ours; `.errno` has it."""

    code = "ERRNO"
    default_message = "a system call failed"


class BatchError(CrailError):
    """Some of many failed. `.results` has one entry for each, in order: its result or its
    exception."""

    code = "BATCH"
    default_message = "some of the batch failed"

    def __init__(
        self, message: str | None = None, *, results: Sequence[Any] = (), **about: Any
    ) -> None:
        super().__init__(message, **about)
        self.results = list(results)


BY_STATUS: dict[int, type[CrailError]] = {
    cls.status: cls for cls in CrailError.__subclasses__() if cls.status
}
BY_CODE: dict[str, type[CrailError]] = {cls.code: cls for cls in CrailError.__subclasses__()}

_BY_ERRNO: dict[int, type[CrailError]] = {
    _errno.ENOENT: NotFoundError,
    _errno.EEXIST: ExistsError,
    _errno.EINVAL: InvalidArgumentError,
    _errno.ENOSPC: OutOfSpaceError,
    _errno.EDQUOT: QuotaExceededError,
    _errno.EACCES: AuthError,
    _errno.EPERM: AuthError,
    _errno.ETIMEDOUT: DeadlineError,
    _errno.ECONNREFUSED: UnavailableError,
    _errno.ECONNRESET: UnavailableError,
    _errno.ECONNABORTED: UnavailableError,
    _errno.ENOTCONN: UnavailableError,
    _errno.EHOSTUNREACH: UnavailableError,
    _errno.ENETUNREACH: UnavailableError,
    _errno.EPIPE: UnavailableError,
    _errno.ESHUTDOWN: ClosedError,
    _errno.EPROTO: ProtocolError,
    _errno.ENOMEM: NoMemoryError,
}


DISCARDED = "what was being written was discarded by its writer, or by its writer's end"


def from_status(
    status: int,
    path: str | None = None,
    server: str | int | None = None,
    hint: str | None = None,
) -> CrailError:
    """The exception for what C answered: a code of status.h or an errno, negated or not. An empty
    path is one only where that is what is wrong."""
    number = abs(status)
    if not path and number != InvalidPathError.status:
        path = None
    if number == DataLostError.status and not server:  # no server went: it was still being written
        return DataLostError(DISCARDED, path=path, hint=hint)
    if number in BY_STATUS:
        return BY_STATUS[number](path=path, server=server, hint=hint)
    import os

    text = os.strerror(number)
    if number in _BY_ERRNO:
        known = _BY_ERRNO[number]
        return known(f"{known.default_message} ({text})", path=path, server=server, hint=hint)
    error = NativeError(text, path=path, server=server, hint=hint)
    error.errno = number
    error.args = (number, text)
    return error


def from_code(
    code: str,
    message: str | None = None,
    *,
    path: str | None = None,
    server: str | int | None = None,
    hint: str | None = None,
) -> CrailError:
    """The exception for an `error` of the hello or of a control message; an unknown code is a
    CrailError."""
    return BY_CODE.get(code, CrailError)(message, path=path, server=server, hint=hint)
