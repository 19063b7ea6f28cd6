"""What pyproject.toml cannot say: the two native modules, and one wheel for all Pythons."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent / "native"))

import build_native


def hot_modules() -> list[Extension]:
    """`crailpy._hot`, the Limited-API door; nothing while its folder is empty."""
    sources = build_native.hot_sources()
    if not sources:
        print(
            "crailpy: native/python/ has no C file yet, crailpy._hot is not built", file=sys.stderr
        )
        return []
    return [
        Extension(
            "crailpy._hot",
            sources=sources,
            include_dirs=build_native.INCLUDE_DIRS,
            define_macros=[("Py_LIMITED_API", "0x030b0000"), *build_native.macros()],
            extra_compile_args=build_native.COMPILE_ARGS,
            depends=build_native.headers(),
            py_limited_api=True,
        )
    ]


# `make dev` installs first and builds after: its editable install would compile everything twice.
NATIVE = os.environ.get("CRAILPY_BUILD_NATIVE", "1") != "0"

setup(
    cffi_modules=["native/build_native.py:ffibuilder"] if NATIVE else [],
    ext_modules=hot_modules() if NATIVE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
