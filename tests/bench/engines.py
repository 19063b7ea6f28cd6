"""The sort of `sort.py` as the users of other engines write it; run by `compare.py`, each in a
process of its own, with whatever interpreter has the engine:

    python -m tests.bench.engines dask PLAN

PLAN is a JSON file: `input` and `output` (folders), `maps`, `partitions`, `workers`. Prints the
seconds from the first byte read to the last one written, without the engine's start. Every output
file is named after its first key. Records travel as columns of Arrow, the fastest that all three
have; Spark's keys are bytes, since it knows no unsigned numbers.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import records
from .records import RECORD_BYTES, Records

Plan = dict[str, Any]
clock = time.perf_counter


def inputs(plan: Plan) -> list[str]:
    return [os.path.join(plan["input"], f"in-{i:05}") for i in range(plan["maps"])]


def loaded(path: str) -> Records:
    count = os.path.getsize(path) // RECORD_BYTES
    return records.read(path, 0, count, records.fresh(count))


def values_of(found: Records) -> Any:
    """The values as an Arrow column; not all engines know the type of fixed width."""
    import pyarrow

    values = np.ascontiguousarray(found["value"])
    parts = [None, pyarrow.py_buffer(values.view(np.uint8))]
    fixed = pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(90), len(found), parts)
    return fixed.cast(pyarrow.binary())


def saved(folder: str, high: Any, low: Any, values: Any) -> int:
    """Writes sorted columns (an Arrow array of values) as records."""
    import pyarrow

    if not len(high):
        return 0
    values = values.cast(pyarrow.binary(90))
    found = records.fresh(len(high))
    found["high"], found["low"] = high, low
    raw = np.frombuffer(values.buffers()[1], "V90")[values.offset : values.offset + len(values)]
    found["value"] = raw
    name = f"{int(high[0]):016x}{int(low[0]):04x}-{uuid.uuid4().hex}"
    records.write(os.path.join(folder, name), found)
    return len(found)


def joined(column: Any) -> Any:
    """An Arrow column in one piece."""
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    return column


# ---- Dask ---------------------------------------------------------------------------------------


def dask_load(path: str) -> Any:
    import pandas
    import pyarrow

    found = loaded(path)
    values = pandas.arrays.ArrowExtensionArray(pyarrow.chunked_array([values_of(found)]))
    high, low = found["high"].astype(np.uint64), found["low"].astype(np.uint16)
    return pandas.DataFrame({"high": high, "low": low, "value": pandas.Series(values)})


def dask_save(part: Any, folder: str) -> int:
    import pyarrow

    values = joined(pyarrow.array(part["value"]))
    return saved(folder, part["high"].to_numpy(), part["low"].to_numpy(), values)


def with_dask(plan: Plan) -> float:
    import dask
    from dask import dataframe
    from dask.distributed import Client, LocalCluster

    workers = plan["workers"]
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(workers)
        began = clock()
        meta = dask_load(inputs(plan)[0]).iloc[:0]
        frame = dataframe.from_map(dask_load, inputs(plan), meta=meta)
        frame = frame.sort_values(["high", "low"], npartitions=plan["partitions"])
        save = dask.delayed(dask_save)
        dask.compute([save(part, plan["output"]) for part in frame.to_delayed()])
        return clock() - began


# ---- Ray ----------------------------------------------------------------------------------------


def ray_load(batch: Any) -> Any:
    import pyarrow

    found = np.concatenate([loaded(path) for path in batch["path"].to_pylist()])
    high, low = found["high"].astype(np.uint64), found["low"].astype(np.uint16)
    return pyarrow.table({"high": high, "low": low, "value": values_of(found)})


def ray_save(batch: Any, folder: str) -> Any:
    import pyarrow

    high, low = batch["high"].to_numpy(), batch["low"].to_numpy()
    return pyarrow.table({"rows": [saved(folder, high, low, joined(batch["value"]))]})


def with_ray(plan: Plan) -> float:
    import ray

    path = os.pathsep.join(sys.path)
    ray.init(
        num_cpus=plan["workers"], include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )  # fmt: skip
    try:
        items = [{"path": path} for path in inputs(plan)]
        ray.data.range(1).materialize()
        began = clock()
        found = ray.data.from_items(items, override_num_blocks=len(items))
        found = found.map_batches(ray_load, batch_size=None, batch_format="pyarrow")
        found = found.sort(["high", "low"])
        folder = {"folder": plan["output"]}
        found = found.map_batches(
            ray_save, batch_size=None, batch_format="pyarrow", fn_kwargs=folder
        )
        found.materialize()
        return clock() - began
    finally:
        ray.shutdown()


# ---- Spark --------------------------------------------------------------------------------------


def spark_load(batches: Iterator[Any]) -> Iterator[Any]:
    import pyarrow

    for batch in batches:
        for path in batch["path"].to_pylist():
            found = loaded(path)
            keys = np.ascontiguousarray(found.view(np.uint8).reshape(-1, RECORD_BYTES)[:, :10])
            parts = [None, pyarrow.py_buffer(keys)]
            key = pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(10), len(found), parts)
            columns = [key.cast(pyarrow.binary()), values_of(found)]
            yield pyarrow.record_batch(columns, names=["key", "value"])


def spark_save(folder: str) -> Callable[[Iterator[Any]], Iterator[Any]]:
    def save(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow

        rows = 0
        found = list(batches)
        if found:
            whole = pyarrow.Table.from_batches(found)
            keys = joined(whole["key"]).cast(pyarrow.binary(10))
            raw = np.frombuffer(keys.buffers()[1], np.uint8, 10 * len(keys)).reshape(-1, 10)
            split = np.dtype([("high", ">u8"), ("low", ">u2")])
            both = np.ascontiguousarray(raw).view(split)[:, 0]
            rows = saved(folder, both["high"], both["low"], joined(whole["value"]))
        yield pyarrow.record_batch([pyarrow.array([rows])], names=["rows"])

    return save


def with_spark(plan: Plan) -> float:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master(f"local[{plan['workers']}]")
        .config("spark.driver.memory", "8g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", plan["partitions"])
        .config("spark.sql.adaptive.enabled", "false")
        .getOrCreate()
    )
    try:
        paths = [(path,) for path in inputs(plan)]
        session.range(1).count()
        began = clock()
        found = session.createDataFrame(paths, "path string").repartition(len(paths))
        found = found.mapInArrow(spark_load, "key binary, value binary").sort("key")
        found.mapInArrow(spark_save(plan["output"]), "rows long").agg({"rows": "sum"}).collect()
        return clock() - began
    finally:
        session.stop()


ENGINES: dict[str, tuple[str, Callable[[Plan], float]]] = {
    "dask": ("dask.dataframe, dask.distributed, pyarrow", with_dask),
    "ray": ("ray.data, pyarrow", with_ray),
    "spark": ("pyspark.sql, pyarrow", with_spark),
}
"""The modules that must be there, and the sort."""


def main(arguments: list[str]) -> int:
    name, path = arguments
    with open(path, encoding="utf-8") as file:
        plan = json.load(file)
    seconds = ENGINES[name][1](plan)
    print(json.dumps({"seconds": seconds}))
    return 0


if __name__ == "__main__":  # by its name, so that other processes find the functions
    from tests.bench.engines import main as named

    raise SystemExit(named(sys.argv[1:]))
