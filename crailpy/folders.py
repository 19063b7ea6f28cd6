"""Folders of this user that nobody else may enter: of sockets, and of memory and files."""

from __future__ import annotations

import os

from crailpy.errors import AuthError


def runtime_dir() -> str:
    """Where sockets go when nobody says where: a folder of this user, which may not be there yet.

    Raises AuthError."""
    base = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    if not os.path.isdir(base):
        raise AuthError(f"$XDG_RUNTIME_DIR is no folder: {base!r}")
    return os.path.join(base, f"crailpy-{os.getuid()}")


def private_folder(path: str) -> str:
    """Makes a folder that only we may enter, or checks that it is one. Returns the path.

    Raises AuthError if it belongs to somebody else or is open to others."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        about = os.lstat(path)
        folder = (about.st_mode & 0o170000) == 0o040000
        if not folder or about.st_uid != os.getuid() or about.st_mode & 0o077:
            raise AuthError(
                f"{path} is not a folder of ours that is closed to others",
                hint="remove it, or name another one",
            ) from None
    return path
