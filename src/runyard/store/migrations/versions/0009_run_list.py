"""The list of runs: names, sort keys, counts by condition, searched texts, best metrics."""

import sqlalchemy as sa
from alembic import op

from runyard.store.lists import run_list, run_metrics, triggers

revision = "0009"
down_revision = "0008"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _change_runs()
    _create_missing_indexes()
    _create_tables()
    connection = op.get_bind()
    triggers.create(connection)
    if connection.dialect.name == "postgresql":
        triggers.create_trigram_index(connection)
    run_list.rebuild(connection)
    run_metrics.rebuild(connection)


def _change_runs() -> None:
    op.add_column(
        "runs", sa.Column("duration", sa.BigInteger(), nullable=False, server_default="0")
    )
    for name in ("time", "condition", "flow", "training_project"):
        op.drop_index(f"runs_by_{name}", table_name="runs")
    op.add_column("run_attributes", sa.Column("number", NUMBER, nullable=False, server_default="0"))
    op.drop_index("run_attributes_by_value", table_name="run_attributes")
    op.create_index("run_attributes_by_number", "run_attributes", ["org", "key", "value", "number"])


def _create_missing_indexes() -> None:
    """Create the indexes of lists that were sorted for each page."""
    op.create_index(
        "dataset_versions_by_number", "dataset_versions", ["org", "dataset_id", "number", "id"]
    )
    op.create_index(
        "bulk_deletions_by_time", "bulk_deletions", ["org", "dataset_id", "time_created", "id"]
    )
    op.create_index("keys_by_time", "keys", ["org", "time_created", "id"])


def _create_tables() -> None:
    op.create_table(
        "run_list",
        sa.Column("number", NUMBER, nullable=False, autoincrement=False),
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("condition", sa.String(length=32), nullable=False),
        sa.Column("flow_id", sa.String(length=255), nullable=True),
        sa.Column("flow_name", sa.Text(), nullable=False),
        sa.Column("training_project", sa.String(length=255), nullable=True),
        sa.Column("name_key", sa.Text(), nullable=False),
        sa.Column("duration", sa.BigInteger(), nullable=False),
        sa.Column("name_text", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("is_indexed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("org", "run_id", name="run_list_run_once"),
    )
    op.create_index("run_list_by_time", "run_list", ["org", "number"])
    for name, column in (
        ("condition", "condition"),
        ("flow", "flow_id"),
        ("flow_name", "flow_name"),
        ("training_project", "training_project"),
        ("name", "name_key"),
        ("duration", "duration"),
    ):
        op.create_index(f"run_list_by_{name}", "run_list", ["org", column, "number"])
    for name, columns in (
        ("flow_and_name", ["flow_id", "name_key"]),
        ("flow_name_and_name", ["flow_name", "name_key"]),
        ("condition_and_duration", ["condition", "duration"]),
    ):
        op.create_index(f"run_list_by_{name}", "run_list", ["org", *columns, "number"])
    op.create_index(
        "run_list_unindexed",
        "run_list",
        ["number"],
        sqlite_where=sa.text("is_indexed IS 0"),
        postgresql_where=sa.text("is_indexed IS false"),
    )
    op.create_table(
        "run_counts",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("condition", sa.String(length=32), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "condition"),
    )
    op.create_table(
        "run_metrics",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("last", sa.Float(), nullable=False),
        sa.Column("number", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id", "key"),
    )
    op.create_index("run_metrics_by_value", "run_metrics", ["org", "key", "value", "number"])
