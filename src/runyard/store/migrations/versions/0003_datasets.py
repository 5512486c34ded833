"""Datasets: images, records, locations of their bytes, imports, versions, exports, deletions."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("attributes", sa.LargeBinary(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("last_updated", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("asset_count", sa.BigInteger(), nullable=False),
        sa.Column("annotated_count", sa.BigInteger(), nullable=False),
        sa.Column("record_count", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("next_number", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=True),
        sa.Column("version_revision", sa.BigInteger(), nullable=False),
        sa.Column("version_count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_index(
        "datasets_by_time", "datasets", ["org", "deleted", "time_created", "id"], unique=False
    )
    op.create_table(
        "assets",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("filename", sa.String(length=1024), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("mime", sa.String(length=64), nullable=False),
        sa.Column("crc32c", sa.BigInteger(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("is_turned", sa.Boolean(), nullable=False),
        sa.Column("orientation", sa.Integer(), nullable=False),
        sa.Column("custom", sa.LargeBinary(), nullable=False),
        sa.Column("inserted_by", sa.Text(), nullable=False),
        sa.Column("record_count", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("last_updated", sa.BigInteger(), nullable=False),
        sa.Column("contents_updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "dataset_id", "id"),
        sa.UniqueConstraint("org", "dataset_id", "filename", name="assets_filename_once"),
    )
    op.create_index("assets_by_content", "assets", ["org", "content"], unique=False)
    op.create_table(
        "records",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.String(length=512), nullable=False),
        sa.Column("asset_id", sa.String(length=64), nullable=False),
        sa.Column("contents", sa.LargeBinary(), nullable=False),
        sa.Column("category", sa.Text(), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("last_updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "dataset_id", "number"),
        sa.UniqueConstraint("org", "dataset_id", "id", name="records_id_once"),
    )
    op.create_index(
        "records_by_asset", "records", ["org", "dataset_id", "asset_id", "number"], unique=False
    )
    op.create_table(
        "contents",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "content"),
    )
    op.create_index("contents_by_blob", "contents", ["org", "sha256"], unique=False)
    op.create_table(
        "unneeded_contents",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("is_held", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("org", "content"),
    )
    op.create_table(
        "imports",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("seen", sa.LargeBinary(), nullable=False),
        sa.Column("attributes", sa.LargeBinary(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("version", sa.String(length=32), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("images_done", sa.BigInteger(), nullable=False),
        sa.Column("records_done", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("last_updated", sa.BigInteger(), nullable=False),
        sa.Column("time_sealed", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_index("imports_by_state", "imports", ["state"], unique=False)
    op.create_index(
        "imports_by_time",
        "imports",
        ["org", "dataset_id", "kind", "time_created", "id"],
        unique=False,
    )
    op.create_table(
        "import_files",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("import_id", sa.String(length=255), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=1024), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("crc32c", sa.BigInteger(), nullable=True),
        sa.Column("mime", sa.String(length=255), nullable=True),
        sa.Column("custom", sa.LargeBinary(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("fault", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("org", "import_id", "number"),
    )
    op.create_index("import_files_by_hash", "import_files", ["org", "sha256"], unique=False)
    op.create_index(
        "import_files_by_name", "import_files", ["org", "import_id", "name"], unique=False
    )
    op.create_table(
        "dataset_versions",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("manifest_bytes", sa.BigInteger(), nullable=False),
        sa.Column("asset_count", sa.BigInteger(), nullable=False),
        sa.Column("record_count", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "dataset_id", "id"),
    )
    op.create_index("dataset_versions_by_hash", "dataset_versions", ["org", "sha256"], unique=False)
    op.create_table(
        "run_datasets",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=255), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("org", "run_id"),
    )
    op.create_index(
        "run_datasets_by_version", "run_datasets", ["org", "dataset_id", "version"], unique=False
    )
    op.create_table(
        "dataset_exports",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("last_updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_index("dataset_exports_by_hash", "dataset_exports", ["org", "sha256"], unique=False)
    op.create_index(
        "dataset_exports_by_time",
        "dataset_exports",
        ["org", "dataset_id", "time_created", "id"],
        unique=False,
    )
    op.create_table(
        "bulk_deletions",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("deleted_count", sa.BigInteger(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("last_updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
    )
    op.create_index("bulk_deletions_by_state", "bulk_deletions", ["state"], unique=False)
    op.create_table(
        "dataset_deletions",
        sa.Column("org", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=255), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("time_created", sa.BigInteger(), nullable=False),
        sa.Column("time_ended", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("org", "dataset_id"),
    )
