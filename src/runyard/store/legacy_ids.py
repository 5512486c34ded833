"""Rows with invalid ids, and their renaming together with all rows that refer to them."""

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select, update

from runyard import ids
from runyard.store import attempts
from runyard.store.runs import CHILD_TABLES
from runyard.store.tables import flows, output_files, outputs, run_list, runs, training_projects

_TABLES = {"run": runs, "flow": flows, "training project": training_projects}
# Columns outside of documents that refer to one: lists are filtered by them.
_NAMED_BY = {
    "run": (),
    "flow": (runs.c.flow_id, run_list.c.flow_id),
    "training project": (runs.c.training_project,),
}


def list_invalid(connection: Connection) -> Sequence[tuple[str, str, str | None, str]]:
    """Return kind, organization, run (if any) and id of everything with an invalid id."""
    found: list[tuple[str, str, str | None, str]] = []
    for org, run_id, id in connection.execute(
        select(outputs.c.org, outputs.c.run_id, outputs.c.id)
    ):
        if not ids.is_id("checkpoint", id):
            found.append(("checkpoint", org, run_id, id))
    for kind, table in _TABLES.items():
        for org, id in connection.execute(select(table.c.org, table.c.id)):
            if not ids.is_id(kind, id):
                found.append((kind, org, id if kind == "run" else None, id))
    return found


def is_open(connection: Connection, org: str, run_id: str) -> bool:
    """Return whether a machine may be working on the run."""
    return attempts.has_open(connection, org=org, run_id=run_id)


def rename(
    connection: Connection,
    kind: str,
    *,
    org: str,
    old: str,
    new: str,
    rename: Callable[[bytes], tuple[bytes, str]],
) -> None:
    """Give a run, flow or training project another id.

    ``rename`` returns its new document and etag.
    """
    table = _TABLES[kind]
    is_it = (table.c.org == org, table.c.id == old)
    document, etag = rename(connection.execute(select(table.c.document).where(*is_it)).scalar_one())
    connection.execute(update(table).where(*is_it).values(id=new, document=document, etag=etag))
    for belonging in CHILD_TABLES if kind == "run" else ():
        of_it = (belonging.c.org == org, belonging.c.run_id == old)
        connection.execute(update(belonging).where(*of_it).values(run_id=new))
    for column in _NAMED_BY[kind]:
        connection.execute(
            update(column.table)
            .where(column.table.c.org == org, column == old)
            .values({column: new})
        )


def rename_checkpoint(connection: Connection, *, org: str, run_id: str, old: str, new: str) -> None:
    """Give a checkpoint another id."""
    for table, column in ((outputs, outputs.c.id), (output_files, output_files.c.output_id)):
        of_it = (table.c.org == org, table.c.run_id == run_id, column == old)
        connection.execute(update(table).where(*of_it).values({column: new}))
