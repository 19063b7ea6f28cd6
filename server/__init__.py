"""The services: namenode, storage servers, and how to run them on one machine."""

from __future__ import annotations

assert __name__ == "crailpy.server", (
    f"import crailpy.server, not {__name__}: else every module exists twice"
)
