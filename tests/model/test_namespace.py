"""The real store against the model of docs/NAMESPACE.md, by generated sequences of calls.

CRAILPY_MODEL_SEED=n repeats the run whose seed was printed; CRAILPY_MODEL_SECONDS=n takes that
long, as `make soak` does; CRAILPY_MODEL_SHRINK=0 leaves a failing run as it is.
"""

from __future__ import annotations

import os
import random
import time

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import crailpy

from .holds import Whole
from .machine import World
from .operations import REGION

STEPS = 80  # of a run
#: Shrinking a failure takes minutes: "0" leaves it out.
PHASES = [Phase.generate] + [Phase.shrink] * (os.environ.get("CRAILPY_MODEL_SHRINK") != "0")
SECONDS = float(os.environ.get("CRAILPY_MODEL_SECONDS", 35))


@pytest.fixture(scope="module")
def world():
    with crailpy.LocalCluster(
        dram="24MiB", servers=2, region_max=REGION, session_grace=0.1
    ) as cluster:
        world = World(cluster)
        yield world
        world.close()


@pytest.mark.slow
def test_the_store_does_what_the_model_does(world):
    Whole.world = world
    deadline = time.monotonic() + SECONDS
    first = int(os.environ.get("CRAILPY_MODEL_SEED", random.SystemRandom().randrange(1 << 32)))
    seed, runs = first, 0
    while not runs or time.monotonic() < deadline:
        print(f"CRAILPY_MODEL_SEED={seed}", flush=True)
        run_state_machine_as_test(
            hypothesis.seed(seed)(Whole),
            settings=settings(
                max_examples=5,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                print_blob=False,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
                phases=PHASES,
            ),
        )
        seed, runs = seed + 1, runs + 1
    print(f"{runs} batches, seeds {first} to {seed - 1}")
    for (name, outcome), count in sorted(world.count.items()):
        print(f"{name:12} {outcome:24} {count}")
