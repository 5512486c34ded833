"""How much of a run's log is kept, and how much was left out."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    for name in ("log_bytes", "log_left_out"):
        op.add_column("runs", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    # What lines take besides their text is counted as the server counts it from now on.
    op.execute(
        "UPDATE runs SET log_bytes = (SELECT COALESCE(SUM(LENGTH(log_lines.text) + 100), 0) FROM "
        "log_lines WHERE log_lines.org = runs.org AND log_lines.run_id = runs.id)"
    )
