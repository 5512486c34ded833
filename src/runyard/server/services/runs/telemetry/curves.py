"""Small curves of runs, a few points each, for lists: kept while a run is unchanged."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from runyard.server.services.context import Services
from runyard.store.telemetry.series import RunSeries, Window

POINTS = 24
MOST_KEPT = 5_000


async def read_curves(
    services: Services, *, org: str, versions: Mapping[str, str], key: str
) -> dict[str, Sequence[float]]:
    """Return the curve of one metric of each run, at most ``POINTS`` values.

    ``versions`` has a text by run id that changes with the curve. Only runs whose text is another
    one than when they were last asked for are read.
    """
    kept = services.curves
    missing = [
        run_id for run_id, version in versions.items() if not _is_kept(kept, org, run_id, version)
    ]
    if missing:

        def read(tx: Connection) -> dict[str, list[float]]:
            return {run_id: _read_curve(tx, org, run_id, key) for run_id in missing}

        for run_id, values in (await services.store.read_snapshot_in_thread(read)).items():
            kept.pop((org, run_id), None)
            kept[org, run_id] = (versions[run_id], values)
    found: dict[str, Sequence[float]] = {run_id: kept[org, run_id][1] for run_id in versions}
    while len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]
    return found


def _is_kept(
    kept: Mapping[tuple[str, str], tuple[str, list[float]]], org: str, run_id: str, version: str
) -> bool:
    found = kept.get((org, run_id))
    return found is not None and found[0] == version


def _read_curve(tx: Connection, org: str, run_id: str, key: str) -> list[float]:
    # Buckets are powers of two: of twice as many points, some are left out evenly.
    window = Window(points=2 * POINTS - 1)
    series = RunSeries(tx, org=org, run_id=run_id, keys={key}).read(key, window, most=2 * POINTS)
    return thin_out(series.buckets.last) if series is not None else []


def thin_out(values: Sequence[float]) -> list[float]:
    """Return at most ``POINTS`` of the values, evenly spread, with the first and the last one."""
    if len(values) <= POINTS:
        return list(values)
    step = (len(values) - 1) / (POINTS - 1)
    return [values[round(index * step)] for index in range(POINTS)]
