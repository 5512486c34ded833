"""What the database says about bytes and folders, for the proof that it and the disk agree."""

from collections.abc import Sequence

from sqlalchemy import Connection, literal, select, union_all

from runyard.store.tables import AnyRow, attempts, output_files, resume_files, runs

GONE_ON_FROM = "what it goes on from"


def files(connection: Connection, *, org: str) -> Sequence[AnyRow]:
    """Every file of every output, and those that runs go on from; columns run_id, output_id, path, sha256."""
    of_outputs, of_resume = output_files.c, resume_files.c
    query = union_all(
        select(of_outputs.run_id, of_outputs.output_id, of_outputs.path, of_outputs.sha256).where(
            of_outputs.org == org
        ),
        select(of_resume.run_id, literal(GONE_ON_FROM).label("output_id"), of_resume.path, of_resume.sha256).where(
            of_resume.org == org
        ),
    )
    return connection.execute(query.order_by("run_id", "output_id", "path")).all()


def run_ids(connection: Connection, *, org: str) -> set[str]:
    """Every run with a row, those whose deletion is under way included."""
    return set(connection.execute(select(runs.c.id).where(runs.c.org == org)).scalars())


def may_be_uploading(connection: Connection, *, org: str) -> bool:
    """Whether an attempt is open, whose supervisor sends bytes before it reports what they are for."""
    query = select(attempts.c.number).where(attempts.c.org == org, attempts.c.closed.is_(False)).limit(1)
    return connection.execute(query).first() is not None
