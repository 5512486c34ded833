"""The dataset's own split of each image."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("assets", sa.Column("split", sa.String(16)))
