"""Rows of run outputs (proven checkpoints) and of the files they consist of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from runyard.store.tables import AnyRow, output_files, outputs


def add(connection: Connection, values: Mapping[str, Any], *, files: Iterable[Mapping[str, Any]]) -> None:
    """Add an output, or put it in the place of one with the same id (a resumed attempt saves that step again)."""
    org, run_id, output_id = values["org"], values["run_id"], values["id"]
    _remove(connection, org=org, run_id=run_id, output_id=output_id)
    number = connection.execute(
        select(func.max(outputs.c.number)).where(outputs.c.org == org, outputs.c.run_id == run_id)
    ).scalar()
    if values["is_best"]:  # there is one best, and it is the newest that was called so
        of_run = (outputs.c.org == org, outputs.c.run_id == run_id)
        connection.execute(update(outputs).where(*of_run).values(is_best=False))
    connection.execute(insert(outputs).values(number=(number or 0) + 1, **values))
    rows = [{"org": org, "run_id": run_id, "output_id": output_id, **file} for file in files]
    connection.execute(insert(output_files), rows)


def of_run(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    """Oldest first, so that the last one is the latest."""
    return connection.execute(
        select(outputs).where(outputs.c.org == org, outputs.c.run_id == run_id).order_by(outputs.c.number)
    ).all()


def get(connection: Connection, *, org: str, run_id: str, output_id: str) -> AnyRow | None:
    return connection.execute(
        select(outputs).where(outputs.c.org == org, outputs.c.run_id == run_id, outputs.c.id == output_id)
    ).one_or_none()


def files(connection: Connection, *, org: str, run_id: str, output_id: str) -> Sequence[AnyRow]:
    return connection.execute(
        select(output_files)
        .where(output_files.c.org == org, output_files.c.run_id == run_id, output_files.c.output_id == output_id)
        .order_by(output_files.c.path)
    ).all()


def hashes_of_run_alone(connection: Connection, *, org: str, run_id: str) -> set[str]:
    """Hashes that only this run's outputs need."""
    others = output_files.alias()
    is_shared = select(others.c.sha256).where(
        others.c.org == org, others.c.sha256 == output_files.c.sha256, others.c.run_id != run_id
    )
    query = select(output_files.c.sha256).where(
        output_files.c.org == org, output_files.c.run_id == run_id, ~is_shared.exists()
    )
    return set(connection.execute(query.distinct()).scalars())


def _remove(connection: Connection, *, org: str, run_id: str, output_id: str) -> None:
    connection.execute(
        delete(output_files).where(
            output_files.c.org == org, output_files.c.run_id == run_id, output_files.c.output_id == output_id
        )
    )
    connection.execute(
        delete(outputs).where(outputs.c.org == org, outputs.c.run_id == run_id, outputs.c.id == output_id)
    )
