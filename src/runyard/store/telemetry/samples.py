"""Rows of sample predictions: evaluations, their samples, and images of built-in datasets."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, select, update

from runyard.store.tables import AnyRow, evaluations, sample_images, samples


def replace_evaluation(connection: Connection, row: Mapping[str, Any]) -> None:
    """Insert an evaluation without samples; those of an earlier one at the same step are removed.

    A run that resumed from an earlier step evaluates again what it had evaluated.
    """
    for table in (samples, evaluations):
        of_step = (*_of_run(table, row["org"], row["run_id"]), table.c.step == row["step"])
        connection.execute(delete(table).where(*of_step))
    connection.execute(insert(evaluations), dict(row))


def get_evaluation(connection: Connection, *, org: str, run_id: str, step: int) -> AnyRow | None:
    query = select(evaluations).where(*_of_run(evaluations, org, run_id))
    return connection.execute(query.where(evaluations.c.step == step)).one_or_none()


def sum_sizes(connection: Connection, *, org: str, run_id: str) -> int:
    """Return the size of all samples of a run, in bytes."""
    total = select(func.coalesce(func.sum(evaluations.c.size_bytes), 0))
    return int(connection.execute(total.where(*_of_run(evaluations, org, run_id))).scalar_one())


def list_steps(connection: Connection, *, org: str, run_id: str) -> Sequence[int]:
    """Return the steps of evaluations that have samples, in order."""
    query = select(evaluations.c.step).where(
        *_of_run(evaluations, org, run_id), evaluations.c.sample_count > 0
    )
    return list(connection.execute(query.order_by(evaluations.c.step)).scalars())


def add_samples(
    connection: Connection, rows: Sequence[Mapping[str, Any]], *, org: str, run_id: str, step: int
) -> None:
    """Insert samples of one evaluation, in place of those with the same numbers."""
    of_step = (*_of_run(samples, org, run_id), samples.c.step == step)
    numbers = [row["number"] for row in rows]
    connection.execute(delete(samples).where(*of_step, samples.c.number.in_(numbers)))
    key = {"org": org, "run_id": run_id, "step": step}
    connection.execute(insert(samples), [{**key, **row} for row in rows])
    sums = select(func.count(), func.coalesce(func.sum(func.length(samples.c.document)), 0))
    count, size_bytes = connection.execute(sums.where(*of_step)).one()
    connection.execute(
        update(evaluations)
        .where(*_of_run(evaluations, org, run_id), evaluations.c.step == step)
        .values(sample_count=count, size_bytes=size_bytes)
    )


def add_images(
    connection: Connection, images: Mapping[int, bytes], *, org: str, run_id: str
) -> None:
    """Insert images that the run does not have yet."""
    of_run = _of_run(sample_images, org, run_id)
    known = select(sample_images.c.number).where(*of_run, sample_images.c.number.in_(images))
    missing = set(images) - set(connection.execute(known).scalars())
    if missing:
        rows = [
            {"org": org, "run_id": run_id, "number": number, "png": images[number]}
            for number in sorted(missing)
        ]
        connection.execute(insert(sample_images), rows)


def get_image(connection: Connection, *, org: str, run_id: str, number: int) -> bytes | None:
    query = select(sample_images.c.png).where(*_of_run(sample_images, org, run_id))
    return connection.execute(query.where(sample_images.c.number == number)).scalar()


def list_samples(
    connection: Connection,
    *,
    org: str,
    run_id: str,
    step: int | None = None,
    number: int | None = None,
) -> Sequence[AnyRow]:
    """Return the samples of one evaluation, or of one image, or of both.

    Columns step, number, score, document.
    """
    query = select(samples.c.step, samples.c.number, samples.c.score, samples.c.document).where(
        *_of_run(samples, org, run_id)
    )
    if step is not None:
        query = query.where(samples.c.step == step)
    if number is not None:
        query = query.where(samples.c.number == number)
    return connection.execute(query.order_by(samples.c.step, samples.c.number)).all()


def _of_run(table: Table, org: str, run_id: str) -> tuple[Any, ...]:
    return table.c.org == org, table.c.run_id == run_id
