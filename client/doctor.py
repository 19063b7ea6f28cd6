"""`crailpy doctor`: what this machine can do for a store, and what to do about what is missing.

Reads /proc, /sys and /dev, and asks the store, if there is one, how its servers are; changes
nothing, needs no rights.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `state`: "good", "limited" (works, but slower or smaller), "missing"."""

    what: str
    state: str
    found: str
    advice: str | None = None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _size(value: int) -> str:
    return f"{value / GIB:.1f} GiB" if value >= GIB else f"{value / MIB:.0f} MiB"


def _meminfo() -> dict[str, int]:
    """The lines of /proc/meminfo; sizes in bytes, counts as they are."""
    facts = {}
    for line in (_read("/proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words:
            facts[name] = int(words[0]) * (1024 if len(words) > 1 else 1)
    return facts


def _mount_options(folder: str) -> str | None:
    for line in (_read("/proc/self/mounts") or "").splitlines():
        words = line.split()
        if len(words) > 3 and words[1] == folder:
            return words[3]
    return None


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _chosen(path: str) -> str | None:
    """The word in brackets of a setting like "always [madvise] never"."""
    text = _read(path)
    if text is None:
        return None
    _, bracket, rest = text.partition("[")
    return rest.partition("]")[0] if bracket else text


def python() -> Finding:
    return Finding("python", "good", f"{sys.version.split()[0]} at {sys.executable}")


def compiler() -> Finding:
    path = shutil.which("gcc") or shutil.which("cc")
    if path:
        return Finding("C compiler", "good", path)
    return Finding(
        "C compiler",
        "limited",
        "no gcc or cc on PATH",
        "only needed to build from source: the wheel works without; else install gcc",
    )


def core() -> Finding:
    try:
        from crailpy import native
    except ImportError as error:
        return Finding(
            "native core", "missing", str(error), "install crailpy again, or run `make dev`"
        )
    return Finding("native core", "good", os.path.dirname(native.__file__ or "") or "loaded")


def cores() -> Finding:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return Finding("processor", "limited", "1 core", "client and servers take turns on it")
    return Finding("processor", "good", f"{count} cores usable by this process")


def memory() -> Finding:
    facts = _meminfo()
    available = facts.get("MemAvailable", 0)
    found = f"{_size(available)} of {_size(facts.get('MemTotal', 0))} available"
    if available < GIB:
        return Finding("memory", "limited", found, "give the store less: crailpy up --dram 256MiB")
    return Finding("memory", "good", found)


def shared_memory() -> Finding:
    try:
        facts = os.statvfs("/dev/shm")
    except OSError as error:
        return Finding(
            "/dev/shm", "missing", error.strerror or "absent", "mount -t tmpfs tmpfs /dev/shm"
        )
    total, free = facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize
    options = _mount_options("/dev/shm") or ""
    huge = next((word for word in options.split(",") if word.startswith("huge=")), "huge= not set")
    found = f"{_size(free)} of {_size(total)} free, {huge}"
    if not os.access("/dev/shm", os.W_OK | os.X_OK):
        return Finding("/dev/shm", "missing", f"{found}, not writable", "chmod 1777 /dev/shm")
    if free < GIB:
        advice = "mount -o remount,size=8G /dev/shm (in a container: --shm-size=8g)"
        return Finding("/dev/shm", "limited", found, advice)
    return Finding("/dev/shm", "good", found)


def huge_pages() -> Finding:
    """Can shared memory have huge pages without anybody reserving them?"""
    what = "transparent huge pages of shared memory"
    setting = _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if setting is None:
        return Finding(what, "limited", "not in this kernel", "the first touch of memory is slower")
    found = f"shmem_enabled={setting}"
    if setting == "deny":
        advice = "as root: echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        return Finding(what, "limited", f"{found}: none, not even on request", advice)
    if _kernel() >= (6, 1) or setting in ("advise", "always", "within_size", "force"):
        return Finding(what, "good", f"{found}; the storage server asks for them")
    if "huge=" in (_mount_options("/dev/shm") or ""):
        return Finding(what, "good", f"{found}, but /dev/shm is mounted with huge=")
    advice = (
        "Linux 6.1, or as root: mount -o remount,huge=advise /dev/shm; "
        "first touch becomes 5 to 15 times as fast"
    )
    return Finding(what, "limited", found, advice)


def private_huge_pages() -> Finding:
    what = "transparent huge pages of private memory"
    setting = _chosen("/sys/kernel/mm/transparent_hugepage/enabled")
    if setting in ("always", "madvise"):
        return Finding(what, "good", f"enabled={setting}")
    return Finding(
        what,
        "limited",
        f"enabled={setting}" if setting else "not in this kernel",
        "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (faster large gets)",
    )


def reserved_huge_pages() -> Finding:
    facts = _meminfo()
    total, free = facts.get("HugePages_Total", 0), facts.get("HugePages_Free", 0)
    size = facts.get("Hugepagesize", 0)
    if total:
        return Finding("reserved huge pages", "good", f"{free} of {total} free, {_size(size)} each")
    return Finding(
        "reserved huge pages",
        "limited",
        "none reserved",
        "not needed; as root: sysctl vm.nr_hugepages=512 reserves 1 GiB for who asks for them",
    )


def locked_memory() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if soft == resource.RLIM_INFINITY else _size(soft)
    if soft == resource.RLIM_INFINITY or soft >= GIB or os.geteuid() == 0:
        return Finding("memlock", "good", found)
    return Finding(
        "memlock",
        "limited",
        found,
        "matters for RDMA: `ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit",
    )


def open_files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (up to {hard})"
    if soft >= 4096:
        return Finding("open files", "good", found)
    return Finding("open files", "limited", found, "ulimit -n 65536 for servers with many clients")


def verbs() -> Finding:
    try:
        devices = sorted(os.listdir("/sys/class/infiniband"))
    except OSError:
        devices = []
    if not devices:
        return Finding(
            "verbs devices",
            "missing",
            "none in /sys/class/infiniband",
            "only for the rdma transport; without such a card "
            "`rdma link add rxe0 type rxe netdev eth0` makes a slow one in software",
        )
    usable = os.access("/dev/infiniband/rdma_cm", os.R_OK | os.W_OK)
    if not usable:
        advice = "access to /dev/infiniband/* is needed (in a container: --device)"
        return Finding("verbs devices", "limited", ", ".join(devices), advice)
    return Finding("verbs devices", "good", ", ".join(devices))


def fuse() -> Finding:
    if not os.path.exists("/dev/fuse"):
        advice = "only for `crailpy mount`: modprobe fuse (in a container: --device /dev/fuse)"
        return Finding("/dev/fuse", "missing", "absent", advice)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Finding("/dev/fuse", "limited", "no access", "chmod 666 /dev/fuse, or run as root")
    if not (shutil.which("fusermount3") or os.geteuid() == 0):
        return Finding("/dev/fuse", "limited", "no fusermount3", "install the package fuse3")
    return Finding("/dev/fuse", "good", "usable")


def nvme_tcp() -> Finding:
    if os.path.isdir("/sys/module/nvme_tcp"):
        return Finding("nvme-tcp", "good", "module loaded")
    release = os.uname().release
    for name in ("modules.dep", "modules.builtin"):
        if "nvme-tcp.ko" in (_read(f"/lib/modules/{release}/{name}") or ""):
            return Finding("nvme-tcp", "limited", "module not loaded", "as root: modprobe nvme-tcp")
    return Finding(
        "nvme-tcp",
        "missing",
        f"no module for kernel {release}",
        "only for the kernel's initiator; a store of memory does not need it",
    )


CHECKS: list[Callable[[], Finding]] = [
    python,
    compiler,
    core,
    cores,
    memory,
    shared_memory,
    huge_pages,
    private_huge_pages,
    reserved_huge_pages,
    locked_memory,
    open_files,
    verbs,
    fuse,
    nvme_tcp,
]


def servers(facts: list[dict[str, Any]]) -> Iterator[Finding]:
    """Of a store that runs: its storage servers, and each disk that has failed."""
    up = sum(server["state"] == "up" for server in facts)
    found = f"{up} of {len(facts)} up"
    if up == len(facts):
        yield Finding("storage servers", "good", found)
    else:
        advice = "`crailpy status` lists them, `crailpy storage` starts one"
        yield Finding("storage servers", "limited", found, advice)
    for server in facts:
        if server["failed"]:
            yield Finding(
                f"disk of {server['id']}",
                "limited",
                f"{server['failed']}: nothing more is written there, what can be read is read",
                "mend or replace it; starting its server again gives it another chance",
            )


NEEDED = {"python", "native core", "/dev/shm"}


def examine() -> list[Finding]:
    """Everything there is to look at, in the order of the list above."""
    return [check() for check in CHECKS]


def ask(store: Callable[[], Any], address: str | None) -> list[Finding]:
    """What the store says. One that was not named need not be there."""
    from crailpy.errors import UnavailableError

    try:
        with store() as opened:
            return list(servers(opened.status()["servers"]))
    except UnavailableError as error:
        if address is None:
            return []
        return [Finding("store", "missing", str(error), error.hint)]


def run(options: argparse.Namespace, store: Callable[[], Any]) -> int:
    """`crailpy doctor`. `store` connects. Exit code 1 when something is missing that every store
    needs."""
    findings = examine() + ask(store, options.address)
    if options.json:
        import json

        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        marks = {"good": "ok", "limited": "so-so", "missing": "no"}
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{marks[finding.state]:<6}{finding.what:<{width}}  {finding.found}")
            if finding.advice:
                print(f"{'':<6}{'':<{width}}  -> {finding.advice}")
    bad = any(finding.state == "missing" and finding.what in NEEDED for finding in findings)
    return 1 if bad else 0
