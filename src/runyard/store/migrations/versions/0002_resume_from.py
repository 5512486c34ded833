"""Runs that resume from another run's checkpoint, and bytes marked for removal."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "resume_files",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("path", sa.String(length=1024), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "path"),
    )
    op.create_index("resume_files_by_hash", "resume_files", ["org", "sha256"], unique=False)
    op.create_table(
        "unneeded_blobs",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("org", "sha256"),
    )
