"""A run may be pinned to versions of several datasets."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.drop_index("run_datasets_by_version", "run_datasets")
    op.rename_table("run_datasets", "run_datasets_before")
    op.create_table(
        "run_datasets",
        sa.Column("org", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.String(255), primary_key=True),
        sa.Column("dataset_id", sa.String(255), primary_key=True),
        sa.Column("version", sa.String(32), nullable=False),
    )
    names = "org, run_id, dataset_id, version"
    op.execute(
        f"INSERT INTO run_datasets ({names}) SELECT {names} FROM run_datasets_before"  # noqa: S608
    )
    op.drop_table("run_datasets_before")
    op.create_index("run_datasets_by_version", "run_datasets", ["org", "dataset_id", "version"])
