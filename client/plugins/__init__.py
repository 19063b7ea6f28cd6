"""Other engines' executors with the interface of `crailpy.executors()`.

    with plugins.executors("dask", client=client) as pool:
        results = list(pool.map(work, range(100)))

`submit`, `map`, `scale(n)` and `shutdown()` are those of every engine; tasks, their arguments and
results travel as the engine has it. An engine is imported when it is asked for."""

from __future__ import annotations

from .engines import executors, executors_on_dask, executors_on_lithops, executors_on_ray

__all__ = ["executors", "executors_on_dask", "executors_on_lithops", "executors_on_ray"]
