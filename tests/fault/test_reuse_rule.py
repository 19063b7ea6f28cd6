"""The reuse rule under attack, and each attack again with its guard switched off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import attacks

ROOT = Path(__file__).parents[2]
GUARDED = ROOT / "build" / "guards"  # `make guards`: the test build
SECONDS = float(os.environ.get("CRAILPY_ATTACK_SECONDS", "5"))


def attack(name: str, seconds: float, *, guards_off: str = "") -> dict[str, object]:
    env = dict(os.environ)
    if guards_off:
        env |= {"PYTHONPATH": str(GUARDED), "CRAILPY_TEST_GUARDS_OFF": guards_off}
    out = subprocess.run(
        [sys.executable, attacks.__file__, name, "--seconds", str(seconds)],
        env=env, stdout=subprocess.PIPE, timeout=seconds + 120, check=False,
        cwd=attacks.__file__.rpartition("/")[0],  # `python -m` looks at the current folder first
    )  # fmt: skip
    print(out.stdout.decode())  # the seed, for whoever has to repeat it
    assert out.returncode in (0, 3), out
    report: dict[str, object] = json.loads(out.stdout)
    return report


@pytest.mark.parametrize("name", sorted(attacks.ATTACKS))
def test_no_reader_sees_foreign_or_torn_bytes(name):
    report = attack(name, SECONDS)
    assert report["violations"] == []
    assert report["broken"] == 0
    assert report["reads"] > 0


# A violation is a matter of luck in each round of an attack: forked-views needed 67 s under load,
# most need some. Who is lucky ends at once.
UNLUCKY_S = 420


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guard"),
    [(name, guard) for name, a in sorted(attacks.ATTACKS.items()) for guard in a.guards],
)
def test_the_attack_succeeds_when_its_guard_is_off(name, guard):
    assert GUARDED.exists(), "`make guards` builds what this test needs; `make test` does it"
    report = attack(name, UNLUCKY_S, guards_off=guard)
    assert report["violations"], f"{name} does not need {guard}"
