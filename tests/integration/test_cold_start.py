"""What a new process pays before its first byte, and what it must not import for it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time

FORBIDDEN = {
    "asyncio", "ssl", "logging", "dataclasses", "tomllib", "importlib.metadata", "typing",
    "crailpy.server", "aiohttp", "lmdb", "numpy", "cffi", "pickle", "threading",
}  # fmt: skip
PROGRAM = """
import sys, json
import crailpy
store = crailpy.connect(sys.argv[1])
assert store.get("/cold") == b"x" * 100
bulk = store.get("/cold-bulk")
assert len(bulk) == 100_000
print(json.dumps({k: getattr(m, "__file__", None) or "" for k, m in sys.modules.items()}))
"""


def test_the_sync_path_imports_nothing_that_it_does_not_need(cluster):
    with cluster.connect() as store:
        store.put("/cold", b"x" * 100)
        store.put("/cold-bulk", b"y" * 100_000)
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, cluster.address], check=True, capture_output=True
    )
    loaded = json.loads(out.stdout)
    assert not set(loaded) & FORBIDDEN
    third_party = {name.partition(".")[0] for name, file in loaded.items() if "-packages" in file}
    ours = {n for n in third_party if n.startswith(("crailpy", "__editable__"))}
    assert third_party - ours - {"_distutils_hack"} <= {"msgpack", "_cffi_backend"}


def test_connect_and_get_cost_at_most_40_ms_over_a_bare_interpreter(cluster, tmp_path):
    with cluster.connect() as store:
        store.put("/cold", b"x" * 100)
        store.put("/cold-bulk", b"y" * 100_000)

    # as installed: pip compiles what it installs
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(*arguments: str) -> tuple[float, float]:
        """Seconds of CPU, and by the clock."""
        command = [sys.executable, *arguments]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return cpu, time.perf_counter() - start

    run("-c", PROGRAM, cluster.address)
    # The least of each; and on a machine that is busy with other things, what of it is ours.
    rounds = [(run("-c", PROGRAM, cluster.address), run("-c", "pass")) for _ in range(21)]
    cpu = min(ours[0] for ours, _ in rounds) - min(bare[0] for _, bare in rounds)
    clock = min(ours[1] for ours, _ in rounds) - min(bare[1] for _, bare in rounds)
    busy = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    assert cpu < 0.040, f"{cpu} s of CPU, {clock} s by the clock"
    assert busy or clock < 0.040, f"{cpu} s of CPU, {clock} s by the clock"
