"""Machines that have joined, their failures, and the invitations with which they join."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_table(
        "machines",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("org", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("labels", sa.LargeBinary(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("boot_id", sa.String(64), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("drain_by", sa.BigInteger()),
        sa.Column("suspected", sa.BigInteger()),
        sa.Column("failed_tests", sa.Integer(), nullable=False),
        sa.Column("invited_by", sa.Text(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("last_updated", sa.BigInteger(), nullable=False),
    )
    op.create_index("machines_by_time", "machines", ["time_created", "id"])
    op.create_table(
        "machine_failures",
        sa.Column("org", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.String(255), primary_key=True),
        sa.Column("attempt", sa.Integer(), primary_key=True),
        sa.Column("machine_id", sa.String(255), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
    )
    op.create_index("machine_failures_by_time", "machine_failures", ["machine_id", "time"])
    op.create_table(
        "machine_invitations",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("org", sa.String(64), nullable=False),
        sa.Column("secret_mac", sa.LargeBinary(32), nullable=False),
        sa.Column("labels", sa.LargeBinary(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
    )
