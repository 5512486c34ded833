"""Rows of run outputs (proven checkpoints) and of the files they consist of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from runyard.store import blobs
from runyard.store.tables import AnyRow, output_files, outputs


def add(connection: Connection, values: Mapping[str, Any], *, files: Iterable[Mapping[str, Any]]) -> None:
    """Add an output, or put it in the place of one with the same id (a resumed attempt saves that step again)."""
    org, run_id, output_id = values["org"], values["run_id"], values["id"]
    replaced = _remove(connection, org=org, run_id=run_id, output_id=output_id)
    number = connection.execute(
        select(func.max(outputs.c.number)).where(outputs.c.org == org, outputs.c.run_id == run_id)
    ).scalar()
    if values["is_best"]:  # there is one best, and it is the newest that was called so
        of_run = (outputs.c.org == org, outputs.c.run_id == run_id)
        connection.execute(update(outputs).where(*of_run).values(is_best=False))
    connection.execute(insert(outputs).values(number=(number or 0) + 1, **values))
    rows = [{"org": org, "run_id": run_id, "output_id": output_id, **file} for file in files]
    connection.execute(insert(output_files), rows)
    blobs.put_down(connection, org=org, hashes=replaced)


def remove(connection: Connection, *, org: str, run_id: str, output_ids: Iterable[str]) -> None:
    """Remove outputs, and put those of their bytes down for removal that nothing else needs."""
    hashes = set[str]()
    for output_id in output_ids:
        hashes |= _remove(connection, org=org, run_id=run_id, output_id=output_id)
    blobs.put_down(connection, org=org, hashes=hashes)


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


def _remove(connection: Connection, *, org: str, run_id: str, output_id: str) -> set[str]:
    """Remove an output if there is one; returns the hashes its files had."""
    of_output = (output_files.c.org == org, output_files.c.run_id == run_id, output_files.c.output_id == output_id)
    hashes = set(connection.execute(select(output_files.c.sha256).where(*of_output)).scalars())
    connection.execute(delete(output_files).where(*of_output))
    connection.execute(
        delete(outputs).where(outputs.c.org == org, outputs.c.run_id == run_id, outputs.c.id == output_id)
    )
    return hashes
