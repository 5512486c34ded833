"""Who created a key, when it was last used, what replaced it.

How many requests an audit row stands for.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("keys", sa.Column("created_by", sa.Text(), nullable=True))
    op.add_column("keys", sa.Column("last_used", sa.BigInteger(), nullable=True))
    op.add_column("keys", sa.Column("replaced_by", sa.String(length=16), nullable=True))
    op.add_column("audit", sa.Column("count", sa.BigInteger(), nullable=False, server_default="1"))
