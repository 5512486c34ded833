"""Store what a run requires next to its document, so that a claim reads only runs that fit."""

import sqlalchemy as sa
from alembic import op

from runyard.store import requirements

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("runs", sa.Column("requirements", sa.String(length=512), nullable=True))
    op.add_column(
        "runs", sa.Column("waits", sa.String(length=32), nullable=False, server_default="")
    )
    requirements.fill(op.get_bind())
    op.drop_index("runs_waiting", table_name="runs")
    op.create_index(
        "runs_waiting",
        "runs",
        [
            "condition",
            "deleted",
            "killed",
            "requirements",
            sa.text("priority DESC"),
            "time_created",
            "id",
        ],
        unique=False,
    )
    op.create_index(
        "runs_waits",
        "runs",
        ["condition", "deleted", "killed", "requirements", "waits"],
        unique=False,
    )
