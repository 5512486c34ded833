"""Packed metric points, and buckets of steps for charts.

Points that exist stay rows of ``metrics``, from which the server packs them while it runs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column(
        "runs", sa.Column("metric_packed", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.add_column("metrics", sa.Column("axis", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "metric_keys",
        *_of_run(),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("axis", sa.Integer(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("first_step", sa.BigInteger()),
        sa.Column("last_step", sa.BigInteger()),
    )
    op.create_table(
        "metric_chunks",
        *_of_run(),
        sa.Column("first_number", sa.BigInteger(), primary_key=True),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("axis", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("min_step", sa.BigInteger(), nullable=False),
        sa.Column("max_step", sa.BigInteger(), nullable=False),
        sa.Column("points", sa.LargeBinary(), nullable=False),
    )
    op.create_index(
        "metric_chunks_by_step", "metric_chunks", ["org", "run_id", "axis", "max_step", "min_step"]
    )
    op.create_table(
        "metric_values",
        *_of_run(),
        sa.Column("first_number", sa.BigInteger(), primary_key=True),
        sa.Column("key_number", sa.Integer(), primary_key=True),
        sa.Column("measured", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "metric_buckets",
        *_of_run(),
        sa.Column("key_number", sa.Integer(), primary_key=True),
        sa.Column("level", sa.Integer(), primary_key=True),
        sa.Column("page", sa.BigInteger(), primary_key=True),
        sa.Column("buckets", sa.LargeBinary(), nullable=False),
    )


def _of_run() -> list[sa.Column[str]]:
    return [
        sa.Column("org", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.String(255), primary_key=True),
    ]
