"""All tables.

Primary keys begin with the organization, so that a query without it cannot use them, and each
organization may use any id. Documents (runs, flows, training projects) are stored as the JSON that
is served; the other columns are those that lists filter and sort by. Times are epoch milliseconds
by the server's clock, except the ``*_pulse`` columns: those are uptime of the server in
milliseconds (see ``runyard.store.lease_clock``). Only plain types are used, so that the same tables
work on PostgreSQL.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    UniqueConstraint,
)

AnyRow = Row[*tuple[Any, ...]]
metadata = MetaData()
# Of a table whose rows follow from other tables: not part of a backup, rebuilt after a restore.
IS_DERIVED = {"is_derived": True}
# SQLite stores a table in the order of its primary key only if that is an INTEGER.
LongKey = BigInteger().with_variant(Integer(), "sqlite")

# Facts about the store itself: ``epoch`` is the id of the store incarnation (``STORE_ID``), new
# after each restore, and the first half of every fencing token.
meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# One row: the uptime of the server in milliseconds, and the last assigned fencing number.
lease_clock = Table(
    "pulse",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("lived_ms", BigInteger, nullable=False),
    Column("token_number", BigInteger, nullable=False),
)

organizations = Table(
    "organizations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("time_created", BigInteger, nullable=False),
)

# Looked up only by id, since the key determines the organization. The controller's key has none.
keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("org", String(64)),
    Column("role", String(16), nullable=False),
    Column("secret_mac", LargeBinary(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
    Column("created_by", Text),
    # Written at most once a minute, so a crash may lose the uses of the last minute.
    Column("last_used", BigInteger),
    # The key with which a rotation replaced this one.
    Column("replaced_by", String(16)),
    Index("keys_by_time", "org", "time_created", "id"),
)

# Browsers that are signed in. The cookie's value is a secret, of which only the hash is stored.
sessions = Table(
    "sessions",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("secret_mac", LargeBinary(32), nullable=False, unique=True),
    Column("org", String(64), nullable=False),
    Column("key_id", String(16), nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("last_used", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Index("sessions_by_time", "org", "time_created", "id"),
)

# One-time codes, each of which begins one session. A used one is removed.
session_codes = Table(
    "session_codes",
    metadata,
    Column("secret_mac", LargeBinary(32), primary_key=True),
    Column("org", String(64), nullable=False),
    Column("key_id", String(16), nullable=False),
    Column("expires", BigInteger, nullable=False),
)

# Machines that have joined, and the one of ``runyard up``. A machine's key is bound to its id.
# ``state``: joined, draining, suspect, excluded, removed. ``drain_by``: when its runs are stopped.
# ``suspected``: when it became suspect; ``failed_tests``: of its self-test, since then.
machines = Table(
    "machines",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("org", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("key_id", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("labels", LargeBinary, nullable=False),
    Column("host", Text, nullable=False),
    Column("version", String(64), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("note", Text, nullable=False),
    Column("drain_by", BigInteger),
    Column("suspected", BigInteger),
    Column("failed_tests", Integer, nullable=False),
    Column("invited_by", Text, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("last_updated", BigInteger, nullable=False),
    Index("machines_by_time", "time_created", "id"),
)

# Failures of attempts that their machine has caused, at most one of each attempt.
machine_failures = Table(
    "machine_failures",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("machine_id", String(255), nullable=False),
    Column("kind", Text, nullable=False),
    Column("time", BigInteger, nullable=False),
    Index("machine_failures_by_time", "machine_id", "time"),
)

# Invitations of machines; the token is a secret, of which only the hash is stored.
machine_invitations = Table(
    "machine_invitations",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("org", String(64), nullable=False),
    Column("secret_mac", LargeBinary(32), nullable=False),
    Column("labels", LargeBinary, nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("time_created", BigInteger, nullable=False),
)

flows = Table(
    "flows",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("etag", String(32), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Index("flows_by_time", "org", "time_created", "id"),
)

training_projects = Table(
    "training_projects",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("etag", String(32), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Index("training_projects_by_time", "org", "time_created", "id"),
)

# Named filters of the list of runs, shared by the organization.
saved_views = Table(
    "saved_views",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("etag", String(32), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Index("saved_views_by_time", "org", "time_created", "id"),
)

runs = Table(
    "runs",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("etag", String(32), nullable=False),
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("condition", String(32), nullable=False),
    Column("flow_id", String(255)),
    Column("training_project", String(255)),
    Column("priority", Integer, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("killed", Boolean, nullable=False),
    # A deleted run whose processes may still run: hidden from the API, kept until its attempts are
    # closed.
    Column("deleted", Boolean, nullable=False),
    Column("log_count", BigInteger, nullable=False),
    Column("metric_count", BigInteger, nullable=False),
    # The number of the last metric point that is packed; those after it are rows of ``metrics``.
    Column("metric_packed", BigInteger, nullable=False, server_default="0"),
    # Size of the log lines in the database, and how many were omitted beyond the limit.
    Column("log_bytes", BigInteger, nullable=False, server_default="0"),
    Column("log_left_out", BigInteger, nullable=False, server_default="0"),
    # Its requirements of a machine, see ``runyard.store.requirements``; null if it ended before
    # there were keys.
    Column("requirements", String(512)),
    # A code for reason and message, while these depend on the connected machines; else empty.
    Column("waits", String(32), nullable=False, server_default=""),
    # See ``runyard.store.lists.duration``.
    Column("duration", BigInteger, nullable=False, server_default="0"),
    Index("runs_waits", "condition", "deleted", "killed", "requirements", "waits"),
)
Index(
    "runs_waiting",
    *(runs.c.condition, runs.c.deleted, runs.c.killed, runs.c.requirements),
    *(runs.c.priority.desc(), runs.c.time_created, runs.c.id),
)

run_attributes = Table(
    "run_attributes",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    # The run's number in ``run_list``.
    Column("number", LongKey, nullable=False, server_default="0"),
    Index("run_attributes_by_number", "org", "key", "value", "number"),
)

# What lists of runs filter and sort by, apart from the long documents; see
# ``runyard.store.lists``. A run that is deleted has no row. Numbers grow with the time of creation,
# so their order is the order of the list. Triggers keep it equal to ``runs``.
run_list = Table(
    "run_list",
    metadata,
    Column("number", LongKey, primary_key=True, autoincrement=False),
    Column("org", String(64), nullable=False),
    Column("run_id", String(255), nullable=False),
    Column("condition", String(32), nullable=False),
    Column("flow_id", String(255)),
    Column("flow_name", Text, nullable=False),
    Column("training_project", String(255)),
    Column("name_key", Text, nullable=False),
    Column("duration", BigInteger, nullable=False),
    # What a search finds, in the form that ``runyard.store.lists.texts`` describes.
    Column("name_text", Text, nullable=False),
    Column("text", Text, nullable=False),
    # Whether the search index of SQLite has the texts.
    Column("is_indexed", Boolean, nullable=False),
    UniqueConstraint("org", "run_id", name="run_list_run_once"),
    Index("run_list_by_time", "org", "number"),
    Index("run_list_by_condition", "org", "condition", "number"),
    Index("run_list_by_flow", "org", "flow_id", "number"),
    Index("run_list_by_flow_name", "org", "flow_name", "number"),
    Index("run_list_by_training_project", "org", "training_project", "number"),
    Index("run_list_by_name", "org", "name_key", "number"),
    Index("run_list_by_duration", "org", "duration", "number"),
    # Names often begin with that of the flow, and the condition decides about the duration: with a
    # filter, the order alone would read most of the list in vain.
    Index("run_list_by_flow_and_name", "org", "flow_id", "name_key", "number"),
    Index("run_list_by_flow_name_and_name", "org", "flow_name", "name_key", "number"),
    Index("run_list_by_condition_and_duration", "org", "condition", "duration", "number"),
    Index("run_list_by_condition_and_name", "org", "condition", "name_key", "number"),
    info=IS_DERIVED,
)
Index(
    "run_list_unindexed",
    run_list.c.number,
    sqlite_where=run_list.c.is_indexed.is_(False),
    postgresql_where=run_list.c.is_indexed.is_(False),
)

# How many runs ``run_list`` has of each condition; triggers count.
run_counts = Table(
    "run_counts",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("condition", String(32), primary_key=True),
    Column("runs", BigInteger, nullable=False),
    info=IS_DERIVED,
)

# One value of each metric of a run: the best of an evaluation metric, the newest of any other one.
run_metrics = Table(
    "run_metrics",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Float, nullable=False),
    Column("last", Float, nullable=False),
    Column("number", LongKey, nullable=False),
    Index("run_metrics_by_value", "org", "key", "value", "number"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("number", Integer, primary_key=True),
    # The fencing token: (store incarnation, number). Numbers are never assigned twice.
    Column("epoch", String(32), nullable=False),
    Column("token_number", BigInteger, nullable=False),
    Column("claim_id", String(255), nullable=False),
    Column("machine_id", String(255), nullable=False),
    Column("host", Text, nullable=False),
    Column("expires_pulse", BigInteger, nullable=False),
    # The uptime at which the lease expired without proof that the process has ended.
    Column("lost_pulse", BigInteger),
    Column("started", Boolean, nullable=False),
    Column("charged", Boolean, nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("start_ticks", BigInteger, nullable=False),
    Column("time_claimed", BigInteger, nullable=False),
    UniqueConstraint("claim_id", name="attempts_claim_once"),
    UniqueConstraint("epoch", "token_number", name="attempts_token_once"),
    Index("attempts_open", "closed", "machine_id"),
)

# The received length of each stream of an attempt; advanced in the transaction that applies its
# lines.
stream_offsets = Table(
    "stream_offsets",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("stream", String(16), primary_key=True),
    Column("offset", BigInteger, nullable=False),
)

log_lines = Table(
    "log_lines",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("stream", String(16), nullable=False),
    Column("text", Text, nullable=False),
)

# Summaries of complete blocks of log lines, see ``runyard.store.telemetry.log_blocks``: the times
# and levels (a bit for each) of the lines, and a signature of their texts.
log_blocks = Table(
    "log_blocks",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("block", BigInteger, primary_key=True),
    Column("time_min", BigInteger, nullable=False),
    Column("time_max", BigInteger, nullable=False),
    Column("levels", Integer, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

# Evaluations whose sample predictions were sent. ``size_bytes`` is that of the samples; those of an
# evaluation beyond a run's limit are left out, which ``is_left_out`` says.
evaluations = Table(
    "evaluations",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("sample_count", Integer, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("is_left_out", Boolean, nullable=False),
)

# Sample predictions. ``number`` is the index of the held-out sample; ``score`` is what samples are
# sorted by, null where no metric scores a single sample.
samples = Table(
    "samples",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("score", Float),
    Column("document", LargeBinary, nullable=False),
    Index("samples_by_number", "org", "run_id", "number", "step"),
)

# Images of samples of built-in datasets, as PNG. Those of uploaded datasets are in the dataset.
sample_images = Table(
    "sample_images",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("png", LargeBinary, nullable=False),
)

# Metric points, see ``runyard.store.telemetry``: the newest are rows of ``metrics``, the others are
# packed. ``axis`` is what ``step`` counts: optimizer steps (0), or seconds since the run's creation
# (1).
metrics = Table(
    "metrics",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("step", BigInteger, nullable=False),
    Column("epoch", Float, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("measured", LargeBinary, nullable=False),
    Column("axis", Integer, nullable=False, server_default="0"),
)

# The keys of a run, numbered from 1, and how many steps of each are packed.
metric_keys = Table(
    "metric_keys",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("axis", Integer, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("first_step", BigInteger),
    Column("last_step", BigInteger),
)

# Points of one axis in the order of their arrival: all that they have in common.
metric_chunks = Table(
    "metric_chunks",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("first_number", BigInteger, primary_key=True),
    Column("last_number", BigInteger, nullable=False),
    Column("axis", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("min_step", BigInteger, nullable=False),
    Column("max_step", BigInteger, nullable=False),
    Column("points", LargeBinary, nullable=False),
    Index("metric_chunks_by_step", "org", "run_id", "axis", "max_step", "min_step"),
)

# The values that one key has in the points of a chunk.
metric_values = Table(
    "metric_values",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("first_number", BigInteger, primary_key=True),
    Column("key_number", Integer, primary_key=True),
    Column("measured", LargeBinary, nullable=False),
)

# Buckets of 2**level steps of one key, as many in a row as a page holds.
metric_buckets = Table(
    "metric_buckets",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("key_number", Integer, primary_key=True),
    Column("level", Integer, primary_key=True),
    Column("page", BigInteger, primary_key=True),
    Column("buckets", LargeBinary, nullable=False),
)

outputs = Table(
    "outputs",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("measured", LargeBinary, nullable=False),
    Column("is_best", Boolean, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("archive_size_bytes", BigInteger, nullable=False),
    Column("archive_sha256", String(64), nullable=False),
)

output_files = Table(
    "output_files",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("output_id", String(255), primary_key=True),
    Column("path", String(1024), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Index("output_files_by_hash", "org", "sha256"),
)

# Files of the checkpoint that a run resumes from. They belong to the run from its creation on, so
# the deletion of the run that made them removes no blob.
resume_files = Table(
    "resume_files",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("path", String(1024), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Index("resume_files_by_hash", "org", "sha256"),
)

# Files of the checkpoint of another run that a run takes its weights from, kept in the same way.
weight_files = Table(
    "weight_files",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("path", String(1024), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Index("weight_files_by_hash", "org", "sha256"),
)

# Blobs whose last row was removed in the same transaction: removed at once, or by the sweep after a
# crash.
unneeded_blobs = Table(
    "unneeded_blobs",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
)

# Ids that were deleted: a late repeat of the PUT that created one must not bring it back.
tombstones = Table(
    "tombstones",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("time", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("org", String(64), nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", Text, nullable=False),
    # The number of requests that the row represents: rejected keys of one address are counted, not
    # listed.
    Column("count", BigInteger, nullable=False, server_default="1"),
    Index("audit_by_time", "org", "time"),
)

# What happened, for those who watch; see ``runyard.store.events``. ``details`` is JSON.
events = Table(
    "events",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("target", String(255), nullable=False),
    Column("what", String(32), nullable=False),
    Column("actor", Text, nullable=False),
    Column("details", LargeBinary, nullable=False),
    Index("events_by_target", "org", "target", "number"),
    sqlite_with_rowid=False,
)

event_counters = Table(
    "event_counters",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("kept_after", BigInteger, nullable=False),
)

# Datasets. A column ``sha256`` names a blob, as everywhere; ``content`` is the hash of an image.

# Counts are updated in the transaction of what they count. ``revision`` grows with every change of
# content; ``version`` is the newest one, made at ``version_revision``. A deleted dataset keeps its
# row until the end.
datasets = Table(
    "datasets",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("name", Text, nullable=False),
    Column("type", String(32), nullable=False),
    Column("description", Text, nullable=False),
    Column("attributes", LargeBinary, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("last_updated", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("asset_count", BigInteger, nullable=False),
    Column("annotated_count", BigInteger, nullable=False),
    Column("record_count", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("next_number", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("version", String(32)),
    Column("version_revision", BigInteger, nullable=False),
    Column("version_count", Integer, nullable=False),
    Index("datasets_by_time", "org", "deleted", "time_created", "id"),
)

# One row for each image. Ids increase, so that their order is the order of insertion.
assets = Table(
    "assets",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("dataset_id", String(255), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("filename", String(1024), nullable=False),
    Column("content", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("mime", String(64), nullable=False),
    Column("crc32c", BigInteger, nullable=False),
    Column("frames", Integer, nullable=False),
    Column("is_turned", Boolean, nullable=False),
    Column("orientation", Integer, nullable=False),
    Column("custom", LargeBinary, nullable=False),
    Column("inserted_by", Text, nullable=False),
    Column("record_count", Integer, nullable=False),
    # The dataset's own split: train, validation or test; null for an image of no split.
    Column("split", String(16)),
    Column("generation", Integer, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("last_updated", BigInteger, nullable=False),
    Column("contents_updated", BigInteger, nullable=False),
    UniqueConstraint("org", "dataset_id", "filename", name="assets_filename_once"),
    Index("assets_by_content", "org", "content"),
)

# Annotation records of images. ``id`` is unique in the dataset; ``number`` names the record in
# URLs.
records = Table(
    "records",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("dataset_id", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("id", String(512), nullable=False),
    Column("asset_id", String(64), nullable=False),
    Column("contents", LargeBinary, nullable=False),
    Column("category", Text),
    Column("generation", Integer, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("last_updated", BigInteger, nullable=False),
    UniqueConstraint("org", "dataset_id", "id", name="records_id_once"),
    Index("records_by_asset", "org", "dataset_id", "asset_id", "number"),
)

# The blob and offset of an image's bytes. An organization stores equal images once.
contents = Table(
    "contents",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("content", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Index("contents_by_blob", "org", "sha256"),
)

# Contents that an asset used and that may be unneeded. ``is_held``: checked, and a version of a run
# needs it.
unneeded_contents = Table(
    "unneeded_contents",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("content", String(64), primary_key=True),
    Column("is_held", Boolean, nullable=False),
)

# One import of any kind. ``sha256`` is the blob of all findings, after its end and if there are
# any.
imports = Table(
    "imports",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("dataset_id", String(255), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("seen", LargeBinary, nullable=False),
    Column("attributes", LargeBinary, nullable=False),
    Column("user", Text, nullable=False),
    Column("why", Text),
    Column("version", String(32)),
    Column("sha256", String(64)),
    Column("images_done", BigInteger, nullable=False),
    Column("records_done", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("last_updated", BigInteger, nullable=False),
    Column("time_sealed", BigInteger),
    Index("imports_by_time", "org", "dataset_id", "kind", "time_created", "id"),
    Index("imports_by_state", "state"),
)

# Files of an active import: announced ones, and blobs that have arrived. Packs have no name.
import_files = Table(
    "import_files",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("import_id", String(255), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", String(1024)),
    Column("size_bytes", BigInteger, nullable=False),
    Column("crc32c", BigInteger),
    Column("mime", String(255)),
    Column("custom", LargeBinary),
    Column("sha256", String(64)),
    Column("fault", Text),
    Index("import_files_by_hash", "org", "sha256"),
    Index("import_files_by_name", "org", "import_id", "name"),
)

# ``sha256`` is the blob of the manifest.
dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("dataset_id", String(255), primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("manifest_bytes", BigInteger, nullable=False),
    Column("asset_count", BigInteger, nullable=False),
    Column("record_count", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Index("dataset_versions_by_hash", "org", "sha256"),
    Index("dataset_versions_by_number", "org", "dataset_id", "number", "id"),
)

# The dataset versions that a run is pinned to; removed with the run.
run_datasets = Table(
    "run_datasets",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("run_id", String(255), primary_key=True),
    Column("dataset_id", String(255), primary_key=True),
    Column("version", String(32), nullable=False),
    Index("run_datasets_by_version", "org", "dataset_id", "version"),
)

# ``sha256`` is the blob of the zip file, once it is complete.
dataset_exports = Table(
    "dataset_exports",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("dataset_id", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("version", String(32)),
    Column("why", Text),
    Column("sha256", String(64)),
    Column("size_bytes", BigInteger, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("last_updated", BigInteger, nullable=False),
    Index("dataset_exports_by_time", "org", "dataset_id", "time_created", "id"),
    Index("dataset_exports_by_hash", "org", "sha256"),
)

bulk_deletions = Table(
    "bulk_deletions",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("dataset_id", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("why", Text),
    Column("deleted_count", BigInteger, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("last_updated", BigInteger, nullable=False),
    Index("bulk_deletions_by_state", "state"),
    Index("bulk_deletions_by_time", "org", "dataset_id", "time_created", "id"),
)

# The deletion of a dataset; kept when everything else of it is removed.
dataset_deletions = Table(
    "dataset_deletions",
    metadata,
    Column("org", String(64), primary_key=True),
    Column("dataset_id", String(255), primary_key=True),
    Column("user", Text, nullable=False),
    Column("time_created", BigInteger, nullable=False),
    Column("time_ended", BigInteger),
)
