"""The house's own rules, held against the disk."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import crailpy

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"crailpy": "crailpy", "server": "crailpy.server", "client": "crailpy.client"}


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every Python file of the package."""
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "crailpy" and inner[0] in ("server", "client"):
                continue  # through the links
            parts = [part for part in inner if part != "__init__"]
            found.append((".".join([package, *parts]), path))
    return found


def imports(name: str, path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it, by absolute name."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def test_the_package_list_is_what_is_on_the_disk() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    there = {name for name, path in modules() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(there)
    for name, path in modules():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        assert package in listed, f"{path} lies in a folder without __init__.py"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == crailpy.version


@pytest.mark.parametrize(("name", "path"), modules())
def test_arrows_point_to_the_ground(name: str, path: Path) -> None:
    wings = {"crailpy.server", "crailpy.client"}
    own = next((wing for wing in wings if name.startswith(wing)), None)
    face = name in ("crailpy", "crailpy.aio")  # hands names on, lazily
    for other in imports(name, path):
        wing = next((w for w in wings if other == w or other.startswith(w + ".")), None)
        assert wing is None or wing == own or face, f"{name} imports {other}"
        assert other.split(".")[0] not in ("server", "client"), f"{name} imports {other}"


def doors_entered(name: str, path: Path) -> set[str]:
    """What of the two native modules the file takes for itself: by importing it, or as an
    attribute of another module."""
    imported = {
        other
        for other in imports(name, path)
        if {"_native", "_hot"} & set(other.split(".")) or other.rpartition(".")[2] in ("ffi", "lib")
    }
    return imported | {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and (
            node.attr in ("ffi", "lib", "_native")
            or (node.attr == "_hot" and ast.unparse(node.value) in ("crailpy", "native"))
        )
    }


def everything() -> list[tuple[str, Path]]:
    """modules(), and the tests."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    return [*modules(), *((f"tests.{path.stem}", path) for path in tests)]


@pytest.mark.parametrize(("name", "path"), everything())
def test_only_one_file_enters_the_native_doors(name: str, path: Path) -> None:
    if name != "crailpy.native":
        assert not doors_entered(name, path), f"{name} enters a door: only crailpy.native may"


@pytest.mark.parametrize(
    "line",
    [
        "from crailpy.native import ffi",
        "from crailpy.native import lib as c",
        "from crailpy._native import ffi",
        "from crailpy import _hot",
        "import crailpy._native",
        "from . import _native",
        "native.lib.crail_mac",
        "crailpy._hot.Client",
    ],
)
def test_every_way_through_a_native_door_is_seen(line: str, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(line + "\n")
    assert doors_entered("crailpy.file", file)


def test_a_wing_cannot_be_imported_twice() -> None:
    for wing in ("server", "client"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {wing}"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "AssertionError" in done.stderr


def test_the_face_names_only_what_is_there() -> None:
    for name in crailpy.__all__:
        assert getattr(crailpy, name) is not None
    with pytest.raises(AttributeError):
        _ = crailpy.nothing  # type: ignore[attr-defined]


def test_cold_start_loads_nothing_heavy() -> None:
    heavy = ["asyncio", "ssl", "logging", "dataclasses", "typing", "tomllib", "importlib.metadata"]
    code = (
        "import sys; import crailpy; before = set(sys.modules); crailpy.connect; crailpy.errors;"
        f"print([m for m in {heavy!r} if m in set(sys.modules) - before])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_every_function_of_the_wide_door_is_used() -> None:
    header = (ROOT / "native/include/crail/api.h").read_text()
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    functions = set(re.findall(r"\b(crail_\w+)\(", header))
    used = "".join(path.read_text() for _, path in modules())
    unused = {name for name in functions if not re.search(rf"\b{name}\b", used)}
    assert unused <= {
        "crail_storage_generations",  # for tests of the core
        "crail_client_close",  # free() closes; for clients that outlive their views
        "crail_client_server_drop",
    }


def test_c_rooms_keep_to_their_arrows() -> None:
    allowed = {
        "base": {"base"},
        "meta": {"meta", "base"},
        "rpc": {"rpc", "meta", "base"},
        "data": {"data", "base"},
        "client": {"client", "data", "base"},
        "probe": {"probe", "base"},
    }
    for path in (ROOT / "native/src").rglob("*.[ch]"):
        room = path.relative_to(ROOT / "native/src").parts[0]
        if room == "api":
            continue
        for name in re.findall(r'#include "([^"]+)"', path.read_text()):
            target = name.removeprefix("../").split("/")
            if len(target) == 1 or target[0] == "crail":
                continue
            assert target[0] in allowed[room], f"{path} includes {name}"
