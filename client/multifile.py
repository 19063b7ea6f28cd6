"""Multifiles: a container whose parts, each a file of its own, read as one stream."""

from __future__ import annotations

import io
from collections import deque

from crailpy.errors import ClosedError, InvalidArgumentError, NotFoundError

from . import requests
from .files import File
from .opened import Mode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from crailpy.model import NodeInfo

    from .files import AnyFile
    from .store import Store

ASKED_BYTES = 1 << 20  # of a part that is opened ahead
OUTSTANDING_MAX = 64
TICKET = ".ticket-"  # begins the names of what is there for a moment only, to be numbered


class MultiFile:
    """Parts that many write, each on its own, and that read as one in the order of their names.

    A part appears when its writer is closed."""

    def __init__(
        self, store: Store, path: str, timeout: float | None, placement: dict[str, Any]
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._placement = placement
        self.path = path

    def writer(self, name: str | None = None, **options: Any) -> AnyFile:
        """A new part to write, as `Store.open(..., "xb")` gives it; `options` as there. Without a
        `name`, its name sorts by the order in which such writers were opened, over all sessions.
        Raises ExistsError if there is a part of that name, NotFoundError if the multifile went."""
        if name is None:
            name = self._ticket()
        options = {"timeout": self._timeout} | self._placement | options
        return self._store.open(f"{self.path}/{name}", options.pop("mode", "xb"), **options)

    def _ticket(self) -> str:
        """A number that is larger than all before: a version is, in the whole store."""
        path = f"{self.path}/{TICKET}{self._store._session.number:x}-{self._store._token()}"
        # A writer that is killed just here leaves nothing behind.
        version = self._store.put(
            path, b"", if_absent=True, parents=False, session=True, timeout=self._timeout
        )
        self._store._run(requests.delivered(path, version), self._timeout)
        return f"{version:020d}"

    def parts(self) -> list[NodeInfo]:
        """What is there, in order. Raises NotFoundError."""
        found = self._store.scandir(self.path, timeout=self._timeout)
        return [part for part in found if not part.path.startswith(f"{self.path}/{TICKET}")]

    def reader(self, outstanding: int = 8) -> MultiReader:
        """All parts that are there now as one stream, up to `outstanding` of them opened ahead."""
        if not 1 <= outstanding <= OUTSTANDING_MAX:
            raise InvalidArgumentError(f"outstanding={outstanding}: 1 to {OUTSTANDING_MAX}")
        return MultiReader(self._store, self.path, outstanding, self._timeout)

    def __repr__(self) -> str:
        return f"<crailpy.MultiFile {self.path}>"


class MultiReader(io.RawIOBase):
    """Reads the parts of a multifile one behind the other.

    Which ones is decided when it is made: what is removed later, before it was opened, is left out.
    Of each part it reads one version. Parts ahead are open, and what comes over TCP is on its way:
    each has a data connection of its own, which the next ones use when it is through."""

    def __init__(self, store: Store, path: str, outstanding: int, timeout: float | None) -> None:
        super().__init__()
        self._ahead: deque[File] = deque()
        self._pipes: list[Any] = []
        self._store = store
        self._timeout = timeout
        self._outstanding = outstanding
        self.name = path
        self._names: Iterator[str] = iter(
            name for name in store.listdir(path, timeout=timeout) if not name.startswith(TICKET)
        )

    def readable(self) -> bool:
        return True

    def _open_next(self) -> bool:
        """False: there are no more."""
        for name in self._names:
            pipe = self._pipes.pop() if self._pipes else self._store._door.pipe(self.name)
            path = f"{self.name}/{name}"
            try:
                file = File(self._store, path, Mode("rb", path), self._timeout, {}, pipe)
            except NotFoundError:
                self._pipes.append(pipe)
                continue
            self._ahead.append(file)
            file.ask(ASKED_BYTES)
            return True
        return False

    def _front(self) -> File | None:
        """The part to read from; those behind it are opened."""
        if self.closed:
            raise ClosedError("the file is closed", path=self.name)
        while len(self._ahead) < self._outstanding and self._open_next():
            pass
        return self._ahead[0] if self._ahead else None

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            while (file := self._front()) is not None:
                n = file.readinto(view)
                if n or not view.nbytes:
                    return n
                self._leave(self._ahead.popleft())
        return 0

    def _leave(self, file: File) -> None:
        pipe = file.leave_pipe()
        if pipe is not None:
            self._pipes.append(pipe)
        file.close()

    def close(self) -> None:
        if not self.closed:
            try:
                while self._ahead:
                    self._ahead.popleft().close()
                while self._pipes:
                    self._pipes.pop().close()
            finally:
                super().close()


__all__ = ["MultiFile", "MultiReader"]
