"""What many tests share: one running store for all that do not break it."""

from __future__ import annotations

from collections.abc import Iterator

import crailpy
import pytest
from crailpy.units import parse_size

DRAM = "256MiB"


@pytest.fixture(scope="session")
def cluster() -> Iterator[crailpy.LocalCluster]:
    """A store of one namenode and one storage server. Tests use paths of their own in it."""
    with crailpy.LocalCluster(dram=DRAM) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def dram_bytes() -> int:
    """The memory of `cluster`."""
    return parse_size(DRAM)
