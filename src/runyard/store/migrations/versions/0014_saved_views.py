"""Saved views of the list of runs."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "saved_views",
        sa.Column("org", sa.String(64), primary_key=True),
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("body_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
    )
    op.create_index("saved_views_by_time", "saved_views", ["org", "time_created", "id"])
