"""The query's operators, in one process and without a store, against SQLite."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from . import retail
from .retail import ANSWER, CHANNELS, KINDS

SEED, SPLITS, ROWS, PARTS = 3, 4, 300, 5


@pytest.fixture(scope="module")
def database() -> sqlite3.Connection:
    found = sqlite3.connect(":memory:")
    retail.load(found, SEED, SPLITS, ROWS)
    yield found
    found.close()


def groups(query: int, channel: str, kind: str) -> np.ndarray:
    """All partitions' groups, one behind the other."""
    dims = retail.dimensions(SEED)
    tables = [retail.facts(SEED, channel, kind, split, ROWS) for split in range(SPLITS)]
    rows = np.concatenate([retail.selected(dims, channel, query, table) for table in tables])
    parts = retail.parted(rows, rows["outlet"], PARTS)
    assert len(parts) == PARTS
    return np.concatenate([retail.grouped(part) for part in parts])


@pytest.mark.parametrize("query", [0, 1, 7, 60])
def test_the_operators_answer_as_sqlite_does(database: sqlite3.Connection, query: int) -> None:
    rows = []
    for number, channel in enumerate(CHANNELS):
        sales, returns = (groups(query, channel, kind) for kind in KINDS)
        rows.append(retail.joined(number, sales, returns))
    found = retail.complete(retail.rolled_up(np.concatenate(rows)))
    assert len(found) > 10
    assert found == retail.answer(database, query)


def test_the_answer_depends_on_the_window_the_categories_and_the_outlets(
    database: sqlite3.Connection,
) -> None:
    assert retail.answer(database, 0) != retail.answer(database, 1)
    dims = retail.dimensions(SEED)
    table = retail.facts(SEED, "web", "sales", 0, ROWS)
    kept = len(retail.selected(dims, "web", 0, table))
    dims["category"][:] = 0
    more = len(retail.selected(dims, "web", 0, table))
    dims["open web"][:] = True
    assert kept < more < len(retail.selected(dims, "web", 0, table)) < len(table)


def test_what_sold_nothing_and_what_never_came_back() -> None:
    sales = np.array([(1, 100, 10), (3, 50, 5)], retail.MOVED)
    returns = np.array([(2, 7, 1), (3, 20, 2)], retail.MOVED)
    found = retail.joined(2, sales, returns).tolist()
    assert found == [(2, 1, 100, 0, 10), (2, 3, 50, 20, 3)]
    nothing = retail.rolled_up(np.empty(0, ANSWER))
    assert retail.complete(nothing) == [(retail.ALL, retail.ALL, 0, 0, 0)]
