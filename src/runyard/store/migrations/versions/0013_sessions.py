"""Sessions of browsers, and the one-time codes that begin them."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("secret_mac", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("org", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("last_used", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
    )
    op.create_index("sessions_by_time", "sessions", ["org", "time_created", "id"])
    op.create_table(
        "session_codes",
        sa.Column("secret_mac", sa.LargeBinary(32), primary_key=True),
        sa.Column("org", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
    )
