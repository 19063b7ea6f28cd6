"""What the bench reads of the machine, and where it puts processes on it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from .report import KIB


def _first_line(path: str, start: str = "") -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(start):
                    return line.strip()
    except OSError:
        pass
    return "unknown"


def memory_available() -> int:
    """Bytes that this machine can give to new processes now."""
    words = _first_line("/proc/meminfo", "MemAvailable").split()
    return int(words[1]) * KIB if len(words) > 1 else 0


def machine() -> dict[str, Any]:
    words = _first_line("/proc/meminfo", "MemTotal").split()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _first_line("/proc/cpuinfo", "model name").partition(":")[2].strip() or "unknown",
        "memory_bytes": int(words[1]) * KIB if len(words) > 1 else 0,
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "load": round(os.getloadavg()[0], 2),
        "thp": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "thp_shmem": _first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    }


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Puts every thread of these processes on these cores. Processes that have gone are skipped."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), cores)
