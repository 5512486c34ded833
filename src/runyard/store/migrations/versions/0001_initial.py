"""The first schema. Frozen: later changes are migrations of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.String(length=32), nullable=False),
        sa.Column("token_number", sa.BigInteger(), nullable=False),
        sa.Column("claim_id", sa.String(length=255), nullable=False),
        sa.Column("machine_id", sa.String(length=255), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("expires_pulse", sa.BigInteger(), nullable=False),
        sa.Column("lost_pulse", sa.BigInteger(), nullable=True),
        sa.Column("started", sa.Boolean(), nullable=False),
        sa.Column("charged", sa.Boolean(), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("start_ticks", sa.BigInteger(), nullable=False),
        sa.Column("time_claimed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "number"),
        sa.UniqueConstraint("claim_id", name="attempts_claim_once"),
        sa.UniqueConstraint("epoch", "token_number", name="attempts_token_once"),
    )
    op.create_index("attempts_open", "attempts", ["closed", "machine_id"], unique=False)
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("audit_by_time", "audit", ["org", "time"], unique=False)
    op.create_table(
        "flows",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("etag", sa.String(length=32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("body_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_index("flows_by_time", "flows", ["org", "time_created", "id"], unique=False)
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("org", sa.String(length=64), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("secret_mac", sa.LargeBinary(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=True),
        sa.Column("revoked", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "log_lines",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stream", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "number"),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "metrics",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Float(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("measured", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "number"),
    )
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "output_files",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("output_id", sa.String(length=255), nullable=False),
        sa.Column("path", sa.String(length=1024), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "output_id", "path"),
    )
    op.create_index("output_files_by_hash", "output_files", ["org", "sha256"], unique=False)
    op.create_table(
        "outputs",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("measured", sa.LargeBinary(), nullable=False),
        sa.Column("is_best", sa.Boolean(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("archive_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("archive_sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "id"),
    )
    op.create_table(
        "pulse",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("lived_ms", sa.BigInteger(), nullable=False),
        sa.Column("token_number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "run_attributes",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "key"),
    )
    op.create_index(
        "run_attributes_by_value", "run_attributes", ["org", "key", "value", "run_id"], unique=False
    )
    op.create_table(
        "runs",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("etag", sa.String(length=32), nullable=False),
        sa.Column("body_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("condition", sa.String(length=32), nullable=False),
        sa.Column("flow_id", sa.String(length=255), nullable=True),
        sa.Column("training_project", sa.String(length=255), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("killed", sa.Boolean(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("log_count", sa.BigInteger(), nullable=False),
        sa.Column("metric_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_index(
        "runs_by_condition",
        "runs",
        ["org", "condition", "deleted", "time_created", "id"],
        unique=False,
    )
    op.create_index(
        "runs_by_flow", "runs", ["org", "flow_id", "deleted", "time_created", "id"], unique=False
    )
    op.create_index("runs_by_time", "runs", ["org", "deleted", "time_created", "id"], unique=False)
    op.create_index(
        "runs_by_training_project",
        "runs",
        ["org", "training_project", "deleted", "time_created", "id"],
        unique=False,
    )
    op.create_index(
        "runs_waiting", "runs", ["condition", "deleted", "priority", "time_created"], unique=False
    )
    op.create_table(
        "stream_offsets",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stream", sa.String(length=16), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "attempt", "stream"),
    )
    op.create_table(
        "tombstones",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "kind", "id"),
    )
    op.create_table(
        "training_projects",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("etag", sa.String(length=32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("body_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_index(
        "training_projects_by_time",
        "training_projects",
        ["org", "time_created", "id"],
        unique=False,
    )
