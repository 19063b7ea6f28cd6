"""Sales and returns of three channels, and the question of TPC-DS's query 77 about them.

A star: six fact tables (sales and returns of store, catalog and web) around the dimensions of
dates, items and each channel's outlets. The question, for a window of 30 days: per channel and
outlet that is open, over items of some categories, what was sold, what came back and what remained
as profit; then the same per channel and in all. Money is in cents, so that every sum is exact.

The data come from NumPy's generator, seeded with (seed, table, split). `answer` is the reference:
the same question in SQL, asked of whatever speaks Python's database interface.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = ("store", "catalog", "web")
KINDS = ("sales", "returns")
OUTLETS = {"store": 12, "catalog": 30, "web": 60}
DAYS = 5 * 365
FIRST_DATE = 2_450_815  # dates are keyed by their Julian day
ITEMS = 1000
CATEGORIES = 10
CATEGORIES_WANTED = 4
WINDOW_DAYS = 30
RETURNS_SHARE = 4  # one return for so many sales
ROWS_AT_ONCE = 500

FACT = np.dtype(
    [("date", "<i4"), ("item", "<i4"), ("outlet", "<i4"), ("money", "<i8"), ("gain", "<i8")]
)
"""A sale: price and profit. A return: what was paid back and, as `gain`, the loss."""
MOVED = np.dtype([("outlet", "<i4"), ("money", "<i8"), ("gain", "<i8")])
"""What of a fact goes through the shuffle, and a group of them."""
ANSWER = np.dtype(
    [("channel", "<i4"), ("outlet", "<i4"), ("sales", "<i8"), ("returns", "<i8"), ("profit", "<i8")]
)
ALL = -1  # in place of an outlet or a channel: of all of them

Columns = dict[str, NDArray[Any]]
Row = tuple[int, int, int, int, int]


def dimensions(seed: int) -> Columns:
    """Of each date its day, counted from 0; of each item its category; of each outlet whether it is
    open."""
    draw = np.random.default_rng((seed, 77))
    return {
        "day": np.arange(DAYS, dtype=np.int32),
        "category": draw.integers(CATEGORIES, size=ITEMS, dtype=np.int32),
        **{f"open {c}": draw.random(n) < 0.8 for c, n in OUTLETS.items()},
    }


def facts(seed: int, channel: str, kind: str, split: int, rows: int) -> NDArray[np.void]:
    """One split of a fact table: so many sales, or the returns that belong to them."""
    table = CHANNELS.index(channel) * len(KINDS) + KINDS.index(kind)
    draw = np.random.default_rng((seed, table, split))
    count = rows if kind == "sales" else rows // RETURNS_SHARE
    found = np.empty(count, FACT)
    found["date"] = FIRST_DATE + draw.integers(DAYS, size=count)
    found["item"] = draw.integers(ITEMS, size=count)
    found["outlet"] = draw.integers(OUTLETS[channel], size=count)
    found["money"] = draw.integers(100, 50_000, size=count)
    found["gain"] = found["money"] * draw.integers(-20, 40, size=count) // 100
    return found


def window(query: int) -> tuple[int, int]:
    """First and last day that a query asks for."""
    first = query * WINDOW_DAYS % (DAYS - WINDOW_DAYS)
    return first, first + WINDOW_DAYS - 1


# ---- the operators ------------------------------------------------------------------------------


def selected(dims: Columns, channel: str, query: int, table: NDArray[np.void]) -> NDArray[np.void]:
    """The star join: the facts whose date, item and outlet the query wants, as MOVED."""
    first, last = window(query)
    day = dims["day"][table["date"] - FIRST_DATE]
    keep = (day >= first) & (day <= last)
    keep &= dims["category"][table["item"]] < CATEGORIES_WANTED
    keep &= dims[f"open {channel}"][table["outlet"]]
    found = np.empty(int(keep.sum()), MOVED)
    for name in MOVED.names or ():
        found[name] = table[name][keep]
    return found


def parted(rows: NDArray[np.void], keys: NDArray[Any], parts: int) -> list[NDArray[np.void]]:
    """The rows by key modulo `parts`."""
    part = keys % parts
    index = np.argsort(part, kind="stable")
    ends = np.cumsum(np.bincount(part, minlength=parts))
    return np.split(rows[index], ends[:-1])


def grouped(rows: NDArray[np.void]) -> NDArray[np.void]:
    """The sums of each outlet."""
    outlets, place = np.unique(rows["outlet"], return_inverse=True)
    found = np.zeros(len(outlets), MOVED)
    found["outlet"] = outlets
    for name in ("money", "gain"):
        sums = np.zeros(len(outlets), np.int64)
        np.add.at(sums, place, rows[name])
        found[name] = sums
    return found


def joined(channel: int, sales: NDArray[np.void], returns: NDArray[np.void]) -> NDArray[np.void]:
    """The outlets that sold something, with what came back there, if anything did."""
    found = np.empty(len(sales), ANSWER)
    found["channel"], found["outlet"] = channel, sales["outlet"]
    found["sales"], found["profit"], found["returns"] = sales["money"], sales["gain"], 0
    _, ours, theirs = np.intersect1d(sales["outlet"], returns["outlet"], return_indices=True)
    found["returns"][ours] = returns["money"][theirs]
    found["profit"][ours] -= returns["gain"][theirs]
    return found


def rolled_up(rows: NDArray[np.void]) -> NDArray[np.void]:
    """The rows, and behind them a sum for each channel."""
    channels = np.unique(rows["channel"])
    sums = np.zeros(len(channels), ANSWER)
    for total, channel in zip(sums, channels, strict=True):
        total["channel"], total["outlet"] = channel, ALL
        for name in ("sales", "returns", "profit"):
            total[name] = rows[name][rows["channel"] == channel].sum()
    return np.concatenate([rows, sums])


def complete(rows: NDArray[np.void]) -> list[Row]:
    """What the rollups of all partitions gave, in order, and the sum of all."""
    sums = rows[rows["outlet"] == ALL]
    total = tuple(int(sums[name].sum()) for name in ("sales", "returns", "profit"))
    return sorted([*(tuple(map(int, row)) for row in rows.tolist()), (ALL, ALL, *total)])


# ---- the reference ------------------------------------------------------------------------------


def load(database: Any, seed: int, splits: int, rows: int) -> None:
    """Makes the tables in a database (sqlite3, DuckDB) and fills them."""
    dims = dimensions(seed)
    fill(database, "dates", "date, day", [(FIRST_DATE + day, day) for day in range(DAYS)])
    fill(database, "items", "item, category", list(enumerate(dims["category"].tolist())))
    for channel in CHANNELS:
        is_open = dims[f"open {channel}"].astype(int).tolist()
        fill(database, f"{channel}_outlets", "outlet, is_open", list(enumerate(is_open)))
        for kind in KINDS:
            tables = [facts(seed, channel, kind, split, rows).tolist() for split in range(splits)]
            columns = "date, item, outlet, money, gain"
            fill(database, f"{channel}_{kind}", columns, [row for table in tables for row in table])


def fill(database: Any, table: str, columns: str, rows: list[tuple[int, ...]]) -> None:
    """A table of whole numbers. Many rows to a statement: DuckDB takes a millisecond for each."""
    types = ", ".join(f"{column} BIGINT" for column in columns.split(", "))
    database.execute(f"CREATE TABLE {table} ({types})")
    for at in range(0, len(rows), ROWS_AT_ONCE):
        values = ", ".join(map(str, rows[at : at + ROWS_AT_ONCE]))
        database.execute(f"INSERT INTO {table} VALUES {values}")


def question(query: int) -> str:
    """Query 77 in plain SQL; GROUP BY ROLLUP written out, since SQLite has none."""
    first, last = window(query)

    def sums(channel: str, kind: str) -> str:
        return (
            f"SELECT f.outlet AS outlet, SUM(money) AS money, SUM(gain) AS gain "
            f"FROM {channel}_{kind} f JOIN dates d ON f.date = d.date "
            f"JOIN items i ON f.item = i.item JOIN {channel}_outlets o ON f.outlet = o.outlet "
            f"WHERE day BETWEEN {first} AND {last} AND category < {CATEGORIES_WANTED} "
            f"AND is_open = 1 GROUP BY f.outlet"
        )

    channels = " UNION ALL ".join(
        f"SELECT {number} AS channel, s.outlet AS outlet, s.money AS sales, "
        f"COALESCE(r.money, 0) AS returned, s.gain - COALESCE(r.gain, 0) AS profit "
        f"FROM ({sums(channel, 'sales')}) s LEFT JOIN ({sums(channel, 'returns')}) r "
        f"ON s.outlet = r.outlet"
        for number, channel in enumerate(CHANNELS)
    )
    total = "SUM(sales), SUM(returned), SUM(profit) FROM x"
    return (
        f"WITH x AS ({channels}) SELECT channel, outlet, sales, returned, profit FROM x "
        f"UNION ALL SELECT channel, {ALL}, {total} GROUP BY channel "
        f"UNION ALL SELECT {ALL}, {ALL}, COALESCE(SUM(sales), 0), COALESCE(SUM(returned), 0), "
        "COALESCE(SUM(profit), 0) FROM x"
    )


def answer(database: Any, query: int) -> list[Row]:
    return sorted(tuple(map(int, row)) for row in database.execute(question(query)).fetchall())
