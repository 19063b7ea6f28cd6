from __future__ import annotations

from pathlib import Path

import pytest

from crailpy import config
from crailpy.errors import InvalidArgumentError


def write(folder: Path, text: str) -> str:
    path = folder / "crailpy.toml"
    path.write_text(text)
    return str(path)


def test_flags_win_over_the_environment_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'dram = "1GiB"\nport = 1\ntimeout = "3s"\n')
    env = {"CRAILPY_PORT": "2", "CRAILPY_DRAM": "2GiB"}
    settings = config.load({"dram": "3GiB", "port": None}, env=env, path=path)
    assert (settings.dram, settings.port, settings.timeout) == (3 << 30, 2, 3.0)
    assert settings.origin["dram"] == "flag"
    assert settings.origin["port"] == "$CRAILPY_PORT"
    assert settings.origin["timeout"] == path
    assert settings.origin["host"] == "default"


def test_the_file_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 'address = "crail://there:1"')
    assert config.load(env={"CRAILPY_CONFIG": path}).address == "crail://there:1"
    monkeypatch.chdir(tmp_path)
    assert config.load(env={}).address == "crail://there:1"
    with pytest.raises(InvalidArgumentError, match="no file"):
        config.load(env={"CRAILPY_CONFIG": path + ".not"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "prot"),
        ("port = 70000", "above"),
        ("port = true", "whole number"),
        ('timeout = "soon"', "not a time"),
        ('dram = "1KiB"', "below"),
        ("host = 3", "not a text"),
        ("port = ", "toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        config.load(env={}, path=path)
    assert path in str(caught.value)


def test_every_default_is_within_its_own_bounds() -> None:
    for setting in config.SETTINGS.values():
        assert setting.parse(setting.default, "default") == setting.default


def test_what_connect_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAILPY_ADDRESS", "crail://x:1")
    monkeypatch.delenv("CRAILPY_TOKEN", raising=False)
    settings = config.client_settings()
    assert settings["address"] == "crail://x:1"
    assert settings["token"] is None
