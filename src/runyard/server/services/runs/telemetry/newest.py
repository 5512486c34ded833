"""The newest points of some metrics of a run, for what is computed from them: speed, time left."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection

from runyard.server.services.context import Services
from runyard.server.services.runs.runs import get as get_run
from runyard.store.telemetry.series import RunSeries, Window


@dataclass(frozen=True)
class NewestPoint:
    """A value of a metric; ``time`` is epoch milliseconds."""

    step: int
    time: int
    value: float


async def read_newest(
    services: Services, *, org: str, run_id: str, keys: Collection[str], steps: int
) -> dict[str, list[NewestPoint]]:
    """Return the points of the last ``steps`` steps of each key that the run has, oldest first.

    A key of several accelerators, such as ``system/acceleratorMemoryBytes``, stands for all of
    them. Steps of ``system/`` keys are seconds.

    Raises:
        Refusal: NotFound.
    """

    def read(tx: Connection) -> dict[str, list[NewestPoint]]:
        run = RunSeries(tx, org=org, run_id=run_id, keys=None)
        wanted = [key for key in run.keys if key in keys or key.rpartition("/")[0] in keys]
        return {key: _read_key(run, key, steps) for key in wanted}

    get_run(services, org=org, run_id=run_id)
    return await services.store.read_snapshot_in_thread(read)


def _read_key(run: RunSeries, key: str, steps: int) -> list[NewestPoint]:
    whole = run.read(key, Window(points=1), most=2)
    if whole is None:
        return []
    window = Window(first=max(whole.last_step - steps, 0), bits=0)
    found = run.read(key, window, most=steps + 1)
    if found is None:
        return []
    buckets = found.buckets
    return [
        NewestPoint(step, time, value)
        for step, time, value in zip(buckets.step, buckets.time, buckets.last, strict=True)
    ]
