"""The `crailpy` command: collects what the wings register.

The commands stand in the wings (entry points `crailpy.commands`); they are imported by name, since
looking entry points up costs more than all the rest of a start. Exit codes: 0, 1 (failed), 2
(usage), 130 (Ctrl-C). What takes time to import is imported in `main`, where Ctrl-C is caught."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

INTERRUPTED = 130
WINGS = ("crailpy.server.commands", "crailpy.client.commands")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    import argparse
    import importlib

    from crailpy import __version__

    root = argparse.ArgumentParser(
        prog="crailpy", description="A fast distributed store for intermediate data."
    )
    root.add_argument("--version", action="version", version=f"crailpy {__version__}")
    subparsers = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for wing in WINGS:
        importlib.import_module(wing).register(subparsers)
    return root


def joined(words: Sequence[str]) -> list[str]:
    """`--wait -3s` as `--wait=-3s`: argparse would take the second word for an option, and say
    nothing of what is wrong with it."""
    found: list[str] = []
    for word in words:
        is_number = word[:1] == "-" and word[1:2].isdigit()
        if is_number and found and found[-1][:2] == "--" and found[-1] != "--":
            found[-1] += "=" + word
        else:
            found.append(word)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        import sys

        options = parser().parse_args(joined(sys.argv[1:] if argv is None else argv))
        return int(options.func(options))
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
