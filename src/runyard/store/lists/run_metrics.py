"""One value of each metric of a run, for filters and sorting.

It is the best one of an evaluation metric, by its name the smallest of a loss and the largest of
any other, and the newest one of everything else. What is evaluated before the first step is the
base model, so it does not count. Written in the transaction that records the metrics.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, text

from runyard.store.tables import metrics, run_list, run_metrics

EVALUATION = "validation/"
SYSTEM = "system/"  # measurements of the machine are not compared between runs
_SMALLER_IS_BETTER = ("loss", "perplexity", "error", "seconds")

_RECORD = text("""
    INSERT INTO run_metrics (org, run_id, key, value, last, number)
    SELECT run_list.org, run_list.run_id, :key, :value, :last, run_list.number FROM run_list
    WHERE run_list.org = :org AND run_list.run_id = :run_id
    ON CONFLICT (org, run_id, key) DO UPDATE SET last = excluded.last, value = CASE
        WHEN :direction = 0 OR (excluded.value - run_metrics.value) * :direction > 0
        THEN excluded.value ELSE run_metrics.value END
""")


def get_direction(key: str) -> int:
    """Return 1 if larger values of a metric are better, -1 for smaller ones, 0 for the newest."""
    if not key.startswith(EVALUATION):
        return 0
    return -1 if any(word in key.lower() for word in _SMALLER_IS_BETTER) else 1


def select_own(step: int, values: Mapping[str, float]) -> Mapping[str, float]:
    """Return the values of a point that are the run's own, not those of its base model."""
    if step > 0:
        return values
    return {key: value for key, value in values.items() if not key.startswith(EVALUATION)}


def record(
    connection: Connection, *, org: str, run_id: str, points: Iterable[Mapping[str, float]]
) -> None:
    """Record the values of a run's next points, in their order."""
    found: dict[str, tuple[float, float]] = {}
    for point in points:
        _add_point(found, point)
    rows = _build_rows(org, run_id, found)
    if rows:
        connection.execute(_RECORD, rows)


def _add_point(found: dict[str, tuple[float, float]], point: Mapping[str, float]) -> None:
    for key, value in point.items():
        if key.startswith(SYSTEM):
            continue
        old, direction = found.get(key), get_direction(key)
        keeps_old = old is not None and direction and (value - old[0]) * direction <= 0
        found[key] = (old[0] if old is not None and keeps_old else value, value)


def _build_rows(
    org: str, run_id: str, found: Mapping[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    return [
        {
            "org": org,
            "run_id": run_id,
            "key": key,
            "value": value,
            "last": last,
            "direction": get_direction(key),
        }
        for key, (value, last) in found.items()
    ]


def read_values(
    connection: Connection, *, org: str, run_ids: Sequence[str], keys: Collection[str]
) -> Sequence[tuple[str, str, float]]:
    """Return (run id, key, value) of some runs' metrics."""
    table = run_metrics.c
    query = select(table.run_id, table.key, table.value).where(
        table.org == org, table.run_id.in_(run_ids), table.key.in_(keys)
    )
    return [(row.run_id, row.key, row.value) for row in connection.execute(query)]


def rebuild(connection: Connection) -> None:
    """Fill the table from the recorded points of runs that have none, streamed.

    For rows of an older version.
    """
    having = select(run_metrics.c.org, run_metrics.c.run_id).distinct()
    known = {(row.org, row.run_id) for row in connection.execute(having)}
    columns = (metrics.c.org, metrics.c.run_id, metrics.c.step, metrics.c.measured)
    query = select(*columns).order_by(metrics.c.org, metrics.c.run_id, metrics.c.number)
    options = {"stream_results": True, "yield_per": 1000}
    current: tuple[str, str] | None = None
    found: dict[str, tuple[float, float]] = {}
    with connection.execute(query, execution_options=options) as result:
        for org, run_id, step, measured in result:
            if (org, run_id) != current:
                _insert_rebuilt(connection, current, found)
                current, found = (org, run_id), {}
            if current not in known:
                values = msgspec.json.decode(measured, type=dict[str, float])
                _add_point(found, select_own(step, values))
    _insert_rebuilt(connection, current, found)


def _insert_rebuilt(
    connection: Connection,
    run: tuple[str, str] | None,
    found: Mapping[str, tuple[float, float]],
) -> None:
    if run is None or not found:
        return
    org, run_id = run
    number = connection.execute(
        select(run_list.c.number).where(run_list.c.org == org, run_list.c.run_id == run_id)
    ).scalar()
    rows = [
        {
            "org": org,
            "run_id": run_id,
            "key": key,
            "value": value,
            "last": last,
            "number": number or 0,
        }
        for key, (value, last) in found.items()
    ]
    connection.execute(insert(run_metrics), rows)
