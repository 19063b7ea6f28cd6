"""Every setting: its unit, its default, its bound. One loader: crailpy.toml, then CRAILPY_*, then
flags.

The file is `$CRAILPY_CONFIG`, else `crailpy.toml` here, else `~/.config/crailpy/crailpy.toml`; its
keys are the names below. The variable of a setting is its name in capitals behind `CRAILPY_`.
"""

from __future__ import annotations

import os

from crailpy.errors import InvalidArgumentError
from crailpy.units import parse_size, parse_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["SETTINGS", "Setting", "Settings", "child_environment", "client_settings", "load"]

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


class Setting:
    """One setting. `unit`: "bytes", "seconds", "count", "bool" or "text"."""

    __slots__ = ("default", "help", "high", "low", "name", "unit")

    def __init__(
        self,
        name: str,
        unit: str,
        default: Any,
        low: float | None,
        high: float | None,
        help: str,
    ) -> None:
        self.name = name
        self.unit = unit
        self.default = default
        self.low = low
        self.high = high
        self.help = help

    def parse(self, value: Any, where: str) -> Any:
        """The value in its unit. Raises InvalidArgumentError that names `where` it was found and
        the bounds."""
        try:
            parsed = self._convert(value)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"{where}: {self.name}: {error.message}", hint=error.hint
            ) from None
        if self.low is not None and parsed < self.low:
            raise InvalidArgumentError(
                f"{where}: {self.name}: {parsed} is below {self.low} {self.unit}"
            )
        if self.high is not None and parsed > self.high:
            raise InvalidArgumentError(
                f"{where}: {self.name}: {parsed} is above {self.high} {self.unit}"
            )
        return parsed

    def _convert(self, value: Any) -> Any:
        if self.unit == "bytes":
            return parse_size(value)
        if self.unit == "seconds":
            return parse_time(value)
        if self.unit == "count":
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
                return int(value)
            raise InvalidArgumentError(f"not a whole number: {value!r}")
        if self.unit == "bool":
            if isinstance(value, bool):
                return value
            word = str(value).strip().lower()
            if word in ("1", "true", "yes", "on"):
                return True
            if word in ("0", "false", "no", "off", ""):
                return False
            raise InvalidArgumentError(f"not yes or no: {value!r}")
        if isinstance(value, str):
            return value
        raise InvalidArgumentError(f"not a text: {value!r}")


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        # everybody
        Setting("address", "text", "crail://127.0.0.1:9060", None, None, "where the namenode is"),
        Setting("token", "text", "", None, None, "the shared secret of the cluster"),
        Setting("hello_timeout", "seconds", 5.0, 0.1, 60, "how long a hello may take"),
        Setting("ring", "bool", True, None, None, "lanes on this host use shared memory"),
        # clients
        Setting("timeout", "seconds", 10.0, 0.001, 86400, "deadline of a call"),
        Setting("transport", "text", "", None, None, "shm or tcp; empty: the best"),
        Setting("lanes_max", "count", 64, 1, 1024, "connections of one client to the namenode"),
        Setting(
            "inline_max",
            "bytes",
            4 * KIB,
            0,
            4 * KIB,
            "values up to this travel with their request",
        ),
        # namenode
        Setting("host", "text", "127.0.0.1", None, None, "address to listen on"),
        Setting("port", "count", 9060, 0, 65535, "port to listen on, 0: any"),
        Setting("arena_max", "bytes", 16 * GIB, 16 * MIB, 64 * GIB, "metadata memory at most"),
        Setting(
            "session_grace", "seconds", 15.0, 0.1, 3600, "life of a session without connection"
        ),
        Setting(
            "durability",
            "text",
            "",
            None,
            None,
            "when a change is acknowledged: sync, group or none; empty: group with a state folder",
        ),
        Setting(
            "group_interval",
            "seconds",
            0.25,
            0.001,
            60,
            "what group may lose",
        ),
        # storage server
        Setting("dram", "bytes", 1 * GIB, 1 * MIB, 64 * TIB, "memory that a storage server offers"),
        Setting("file_path", "text", "", None, None, "file or block device of the file tier"),
        Setting(
            "capacity",
            "bytes",
            0,
            0,
            64 * TIB,
            "bytes for values in it; 0: what it has already, or all of a device",
        ),
        Setting("location", "text", "", None, None, "location class of a storage server"),
        Setting(
            "storage_class",
            "count",
            255,
            0,
            255,
            "rank of a storage server: low ones fill first; 255: that of its tier",
        ),
        Setting("dram_dir", "text", "/dev/shm", None, None, "memory file system for the dram tier"),
        Setting(
            "region_max", "bytes", 64 * GIB, 1 * MIB, 8 * TIB, "largest region of a storage server"
        ),
        Setting(
            "heartbeat", "seconds", 2.0, 0.05, 60, "between two signs of life of a storage server"
        ),
    )
}


class Settings:
    """The settings that hold, as attributes; `.origin[name]` says where each one came from."""

    def __init__(self, values: Mapping[str, Any], origin: Mapping[str, str]) -> None:
        self.__dict__.update(values)
        self.origin = dict(origin)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


def config_file(env: Mapping[str, str]) -> str | None:
    """The file that load() reads, None if there is none.

    Raises InvalidArgumentError if $CRAILPY_CONFIG names one that does not exist."""
    named = env.get("CRAILPY_CONFIG")
    if named:
        if not os.path.isfile(named):
            raise InvalidArgumentError(f"$CRAILPY_CONFIG: there is no file {named!r}")
        return named
    home = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME", "/"), ".config")
    for path in ("crailpy.toml", os.path.join(home, "crailpy", "crailpy.toml")):
        if os.path.isfile(path):
            return path
    return None


def _from_file(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgumentError(f"{path}: {error}") from None
    unknown = sorted(set(content) - set(SETTINGS))
    if unknown:
        raise InvalidArgumentError(
            f"{path}: unknown setting {unknown[0]!r}", hint="known: " + ", ".join(SETTINGS)
        )
    return content


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    path: str | None = None,
) -> Settings:
    """All settings. `flags` wins over `env`, `env` over the file at `path` (default:
    config_file()); a flag that is None is one that was not given.

    Raises InvalidArgumentError for unknown names in file or flags and for values out of bounds."""
    env = os.environ if env is None else env
    values = {name: setting.default for name, setting in SETTINGS.items()}
    origin = dict.fromkeys(SETTINGS, "default")

    def take(source: Mapping[str, Any], where: str) -> None:
        for name, value in source.items():
            if name not in SETTINGS:
                raise InvalidArgumentError(f"{where}: unknown setting {name!r}")
            values[name] = SETTINGS[name].parse(value, where)
            origin[name] = where

    path = config_file(env) if path is None else path
    if path is not None:
        take(_from_file(path), path)
    for name in SETTINGS:
        variable = "CRAILPY_" + name.upper()
        if variable in env:
            take({name: env[variable]}, "$" + variable)
    take({name: value for name, value in (flags or {}).items() if value is not None}, "flag")
    return Settings(values, origin)


def client_settings() -> dict[str, Any]:
    """What `crailpy.connect` takes from the environment: `address`, `token` (None: none), `timeout`
    in seconds, `transport` (None: the best) and `ring`. Raises InvalidArgumentError like load()."""
    settings = load()
    return {
        "address": settings.address,
        "token": settings.token or None,
        "timeout": settings.timeout,
        "transport": settings.transport or None,
        "ring": settings.ring,
    }


def child_environment(token: str | None) -> dict[str, str]:
    """The environment for a process that is to connect with this token (None: as it finds it).

    A token never goes on a command line, where all can read it."""
    return {**os.environ, "CRAILPY_TOKEN": token} if token else dict(os.environ)
