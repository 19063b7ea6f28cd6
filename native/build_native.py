"""The cffi recipe of `crailpy._native`: every C file of the core behind the one door `api.h`.

cffi reads the very header that C includes, so that the two cannot differ. All paths are relative to
the project's root, where setuptools runs. CRAILPY_BUILD_GUARDS=1 makes the test build, in which the
guards of the reuse rule can be switched off one by one.
"""

import os
import re
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
INCLUDE_DIRS = ["native/include", "native/src"]
COMPILE_ARGS = [
    *("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g"),
    *("-Wall", "-Wextra", "-UNDEBUG", "-fvisibility=hidden"),
]


def _files(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "native").glob(pattern))


def core_sources() -> list[str]:
    """The C files of the core."""
    return _files("src/**/*.c")


def hot_sources() -> list[str]:
    """The C files of the hot door."""
    return _files("python/*.c")


def headers() -> list[str]:
    """What a change of which calls for a new build."""
    return _files("**/*.h")


def macros() -> list[tuple[str, str | None]]:
    """The macros of this kind of build."""
    guards = os.environ.get("CRAILPY_BUILD_GUARDS", "") not in ("", "0")
    return [("CRAIL_TEST_GUARDS", "1")] if guards else []


def declarations(header: str) -> str:
    """`api.h` without what cffi does not read: the guard and the includes.

    Raises ValueError if the header has grown a directive that is not a plain number."""
    kept: list[str] = []
    for line in header.splitlines():
        if re.match(r"\s*#\s*(include|ifndef|endif)\b", line) or re.match(
            r"#define\s+\w+_H$", line
        ):
            continue
        if line.lstrip().startswith("#") and not re.match(r"#define\s+\w+\s+\d+\s*$", line):
            raise ValueError(f"api.h: cffi cannot read {line!r}: only `#define NAME number`")
        kept.append(line)
    return "\n".join(kept)


ffibuilder = FFI()
ffibuilder.cdef(declarations((ROOT / "native/include/crail/api.h").read_text()))
ffibuilder.set_source(
    "crailpy._native",
    '#include "crail/api.h"',
    sources=core_sources(),
    include_dirs=INCLUDE_DIRS,
    define_macros=macros(),
    extra_compile_args=COMPILE_ARGS,
    depends=[*headers(), "native/build_native.py"],
    libraries=["pthread", "dl"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
