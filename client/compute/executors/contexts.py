"""What tasks find: the context of their driver, and how an executor takes it on.

An executor keeps what tasks have imported. Before it serves another driver it asks of each module
that came after the template's whether it is unchanged on disk, and whether the driver would import
the same file. If not, it says so and is replaced by a fresh one.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHANGED = "changed since"  # no file has this stamp
MAIN = "__mp_main__"
"""The name under which an executor imports a driver's script, as multiprocessing does."""

importing_main = False
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""One thread each, where nobody says otherwise: there is an executor for every core."""


def describe(store: bytes | None, space: str) -> bytes:
    """The context of this process. `store`: pickled, and `space` the directory in it."""
    from .calls import main_of_process

    try:
        cwd = os.getcwd()
    except FileNotFoundError:  # it has been removed
        cwd = "/"
    context = {
        "cwd": cwd,
        "path": [os.path.join(cwd, entry) for entry in sys.path],
        "argv": sys.argv,
        "environment": dict(os.environ),
        "main": main_of_process(),
        "store": store,
        "space": space,
    }
    return pickle.dumps(context)


def _stamp(path: str) -> tuple[int, int, int, int] | None:
    """Changes when the file does. First, when it did last, of the wall clock."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return max(about.st_mtime_ns, about.st_ctime_ns), about.st_mtime_ns, about.st_size, about.st_ino


def _origin(spec: Any) -> str | None:
    """The file of a module; None for those that have none."""
    return spec.origin if spec is not None and spec.has_location else None


def _trace(module: object, since: int) -> tuple[str | None, object]:
    """The file of a module, and its stamp if the file is from before `since`."""
    try:
        path = _origin(getattr(module, "__spec__", None))
        stamp = path and _stamp(path)
    except Exception:  # of a stand-in for a module: it can raise what it likes
        return None, CHANGED
    return path, stamp if not stamp or stamp[0] < since else CHANGED


class Imported:
    """The modules that came after the template's, and the files that they came from."""

    def __init__(self) -> None:
        self._warm = frozenset(sys.modules)
        self._count = len(sys.modules)
        self._stamps: dict[str, tuple[str | None, object]] = {}  # name: file and its stamp
        self._path: list[str] = []

    def look(self, since: int) -> None:
        """Notes what was imported since it was last called. `since`: nanoseconds of the wall clock
        before which nothing of that was: a file that has changed after it may have changed after
        its import, too."""
        if len(sys.modules) == self._count:
            return
        self._count = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if name in self._warm or name in self._stamps or name in ("__main__", MAIN):
                continue
            self._stamps[name] = _trace(module, since)

    def is_fresh(self) -> bool:
        """Would the present `sys.path` give the same modules?"""
        for path, stamp in self._stamps.values():
            if stamp is CHANGED or (path and _stamp(path) != stamp):
                return False
        if self._path != sys.path:
            if not all(self._is_found(name) for name in self._stamps if "." not in name):
                return False
            self._path = list(sys.path)
        return True

    def _is_found(self, name: str) -> bool:
        try:
            return self._has_same_origin(name)
        except Exception:  # of a finder that is not ours
            return False

    def _has_same_origin(self, name: str) -> bool:
        path = self._stamps[name][0]
        if path is None:  # made by a program, or a folder without __init__: nobody can say
            return not hasattr(sys.modules.get(name), "__path__")
        for finder in sys.meta_path:
            spec = finder.find_spec(name, None)
            if spec is not None:
                return _origin(spec) == path
        return False


class Context:
    """The driver's, in an executor."""

    def __init__(self, body: bytes) -> None:
        self._facts: dict[str, Any] = pickle.loads(body)
        self.store: bytes | None = self._facts["store"]
        self.space: str = self._facts["space"]

    def take_on(self) -> None:
        """Directory, path, arguments and environment become those of the driver."""
        try:
            os.chdir(self._facts["cwd"])
        except OSError:  # it has been removed
            os.chdir("/")
        sys.path[:] = self._facts["path"]
        sys.argv[:] = self._facts["argv"]
        wanted = dict.fromkeys(THREADS, "1") | self._facts["environment"]
        if os.environ != wanted:
            os.environ.clear()
            os.environ.update(wanted)
        importlib.invalidate_caches()

    def import_main(self) -> None:
        """Makes `__main__` what it is in the driver, but for its name. Raises what it raises."""
        main = self._facts["main"]
        global importing_main
        present = sys.modules["__main__"]
        stamp = (main, _stamp(main["path"]))
        if getattr(present, "__crailpy_stamp__", None) == stamp:
            return
        import runpy

        importing_main = True
        try:
            if main["module"]:
                content = runpy.run_module(main["module"], run_name=MAIN, alter_sys=True)
            else:
                content = runpy.run_path(main["path"], run_name=MAIN)
        finally:
            importing_main = False
        module = empty_main()
        module.__dict__.update(content, __crailpy_stamp__=stamp)


def empty_main() -> ModuleType:
    """A new module in the place of `__main__`, which is not that of any driver."""
    module = ModuleType(MAIN)
    sys.modules["__main__"] = sys.modules[MAIN] = module
    return module
