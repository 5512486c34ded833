"""What the database says about bytes and folders, for the proof that it and the disk agree."""

from collections.abc import Sequence

from sqlalchemy import Connection, select

from runyard.store.tables import AnyRow, attempts, output_files, runs


def files(connection: Connection, *, org: str) -> Sequence[AnyRow]:
    """Every file of every output; columns run_id, output_id, path, sha256."""
    columns = output_files.c
    query = select(columns.run_id, columns.output_id, columns.path, columns.sha256).where(columns.org == org)
    return connection.execute(query.order_by(columns.run_id, columns.output_id, columns.path)).all()


def run_ids(connection: Connection, *, org: str) -> set[str]:
    """Every run with a row, those whose deletion is under way included."""
    return set(connection.execute(select(runs.c.id).where(runs.c.org == org)).scalars())


def may_be_uploading(connection: Connection, *, org: str) -> bool:
    """Whether an attempt is open, whose supervisor sends bytes before it reports what they are for."""
    query = select(attempts.c.number).where(attempts.c.org == org, attempts.c.closed.is_(False)).limit(1)
    return connection.execute(query).first() is not None
