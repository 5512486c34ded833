"""Rows of run outputs (proven checkpoints) and of the files they consist of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from runyard.store import blobs
from runyard.store.tables import AnyRow, output_files, outputs

_OF_RUN = (outputs.c.org == bindparam("of_org"), outputs.c.run_id == bindparam("of_run"))
_IS_IT = (*_OF_RUN, outputs.c.id == bindparam("of_output"))
_FILE_OF_IT = (
    output_files.c.org == bindparam("of_org"),
    output_files.c.run_id == bindparam("of_run"),
    output_files.c.output_id == bindparam("of_output"),
)
_ALL_OF_RUN = select(outputs).where(*_OF_RUN).order_by(outputs.c.number)
_GET = select(outputs).where(*_IS_IT)
_NEWEST_NUMBER = select(func.max(outputs.c.number)).where(*_OF_RUN)
_CHANGE_ALL_OF_RUN = update(outputs).where(*_OF_RUN)
_ADD, _ADD_FILES = insert(outputs), insert(output_files)
_REMOVE, _REMOVE_FILES = delete(outputs).where(*_IS_IT), delete(output_files).where(*_FILE_OF_IT)
_HASHES = select(output_files.c.sha256).where(*_FILE_OF_IT)
_FILES = select(output_files).where(*_FILE_OF_IT).order_by(output_files.c.path)


def add(
    connection: Connection, values: Mapping[str, Any], *, files: Iterable[Mapping[str, Any]]
) -> None:
    """Add an output; replace one with the same id (a resumed attempt saves a step again)."""
    org, run_id, output_id = values["org"], values["run_id"], values["id"]
    replaced = _remove(connection, org=org, run_id=run_id, output_id=output_id)
    of_run = {"of_org": org, "of_run": run_id}
    number = connection.execute(_NEWEST_NUMBER, of_run).scalar()
    if values["is_best"]:  # only the newest output marked as best is the best
        connection.execute(_CHANGE_ALL_OF_RUN, {"is_best": False, **of_run})
    connection.execute(_ADD, {"number": (number or 0) + 1, **values})
    rows = [{"org": org, "run_id": run_id, "output_id": output_id, **file} for file in files]
    connection.execute(_ADD_FILES, rows)
    blobs.mark_unneeded(connection, org=org, hashes=replaced)


def remove(connection: Connection, *, org: str, run_id: str, output_ids: Iterable[str]) -> None:
    """Remove outputs, and mark their blobs for removal that nothing else needs."""
    hashes = set[str]()
    for output_id in output_ids:
        hashes |= _remove(connection, org=org, run_id=run_id, output_id=output_id)
    blobs.mark_unneeded(connection, org=org, hashes=hashes)


def list_by_run(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    """Return the outputs of a run, oldest first."""
    return connection.execute(_ALL_OF_RUN, {"of_org": org, "of_run": run_id}).all()


def page(
    connection: Connection, *, org: str, run_id: str, after: int, limit: int
) -> Sequence[AnyRow]:
    """Return a page, oldest first, with numbers above ``after``."""
    query = select(outputs).where(
        outputs.c.org == org, outputs.c.run_id == run_id, outputs.c.number > after
    )
    return connection.execute(query.order_by(outputs.c.number).limit(limit)).all()


def page_backward(
    connection: Connection, *, org: str, run_id: str, before: int | None, limit: int
) -> Sequence[AnyRow]:
    """Return a page, newest first, with numbers below ``before``."""
    query = select(outputs).where(outputs.c.org == org, outputs.c.run_id == run_id)
    if before is not None:
        query = query.where(outputs.c.number < before)
    return connection.execute(query.order_by(outputs.c.number.desc()).limit(limit)).all()


def get(connection: Connection, *, org: str, run_id: str, output_id: str) -> AnyRow | None:
    return connection.execute(_GET, _output_key(org, run_id, output_id)).one_or_none()


def list_files(
    connection: Connection, *, org: str, run_id: str, output_id: str
) -> Sequence[AnyRow]:
    return connection.execute(_FILES, _output_key(org, run_id, output_id)).all()


def _remove(connection: Connection, *, org: str, run_id: str, output_id: str) -> set[str]:
    """Remove an output if it exists; return the hashes of its files."""
    key = _output_key(org, run_id, output_id)
    hashes = set(connection.execute(_HASHES, key).scalars())
    connection.execute(_REMOVE_FILES, key)
    connection.execute(_REMOVE, key)
    return hashes


def _output_key(org: str, run_id: str, output_id: str) -> dict[str, str]:
    return {"of_org": org, "of_run": run_id, "of_output": output_id}
