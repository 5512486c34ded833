"""Export of the whole store as rows of plain values, and import into another one.

It iterates over ``metadata``, so a new table is included by default. Tables whose rows follow from
others are not: they are rebuilt; neither are sessions of browsers and machines. Rows are JSON
arrays in the order of the table's columns, bytes as base64, sorted by primary key. Five tables are
not simply replaced: ``meta`` gets the new store id, the lease clock and the counters of events
never go back, open attempts get a whole lease, and ``keys`` stay those of the instance.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    union,
    update,
)
from sqlalchemy.exc import OperationalError, StatementError

from runyard import backup_rows
from runyard.backup_rows import InvalidRows
from runyard.store import events, organizations, requirements
from runyard.store.engines.postgresql import is_value_too_large
from runyard.store.lists import run_list, run_metrics, triggers
from runyard.store.migrate import HEAD
from runyard.store.tables import (
    IS_DERIVED,
    AnyRow,
    attempts,
    keys,
    lease_clock,
    machine_failures,
    machine_invitations,
    machines,
    meta,
    metadata,
    runs,
    session_codes,
    sessions,
    unneeded_blobs,
)
from runyard.store.tables import organizations as organization_rows
from runyard.store.telemetry.logs import count_log_bytes

BATCH_ROWS, BATCH_BYTES = 500, 4 << 20
SCHEMA_REVISION = HEAD
# Machines stay those of the instance, as their keys do: a restore lets no removed one join again.
_KEPT = (machines, machine_failures, machine_invitations)
# Browsers sign in again after a restore: a backup would bring sessions back that have ended.
_LEFT_OUT = (sessions, session_codes, *_KEPT)
TABLES: Mapping[str, Table] = {
    str(table.name): table
    for table in metadata.sorted_tables
    if table.info != IS_DERIVED and table not in _LEFT_OUT
}
# A table that needs a blob names it in its columns ``org`` and ``sha256``; one table lists blobs
# that nothing needs.
_TABLES_WITH_BLOBS = [
    table for table in TABLES.values() if "sha256" in table.c and table is not unneeded_blobs
]


def describe_table(table: Table) -> dict[str, backup_rows.Column]:
    """Describe the columns of a table, as ``runyard.backup_schema`` does."""
    return {str(column.name): _describe_column(column) for column in table.columns}


def _describe_column(column: Column[Any]) -> backup_rows.Column:
    types = {int: "int32", str: "str", bytes: "bytes", bool: "bool", float: "float"}
    return backup_rows.Column(
        name=str(column.name),
        type="int64" if isinstance(column.type, BigInteger) else types[column.type.python_type],
        max_length=column.type.length if isinstance(column.type, String) else None,
        is_key=column.primary_key,
        is_nullable=bool(column.nullable),
        is_optional=bool(column.nullable) or column.server_default is not None,
    )


# After a change of the tables, run scripts/backup-schema: the command line verifies backups without
# a database.
COLUMNS: Mapping[str, Mapping[str, backup_rows.Column]] = {
    name: describe_table(table) for name, table in TABLES.items()
}


def render_schema() -> str:
    """Return the text of ``runyard.backup_schema``."""
    lines = [
        '"""Tables of a backup, written by scripts/backup-schema from the tables of the store.',
        "",
        "A column is ``name:type(length)``. ``*`` marks the primary key, ``?`` a value that may be "
        "null, and",
        "``=`` a column that older files may lack.",
        '"""',
        "",
        f'REVISION = "{SCHEMA_REVISION}"',
        "TABLES = {",
    ]
    for name, described in COLUMNS.items():
        words = textwrap.wrap(" ".join(map(str, described.values())), 89)
        lines += [f'    "{name}": (', *(f'        "{line} "' for line in words), "    ),"]
    return "\n".join([*lines, "}", ""])


def list_columns(table: Table) -> list[str]:
    return [str(column.name) for column in table.columns]  # a plain str: SQLAlchemy uses a subclass


def iter_rows(connection: Connection, table: Table) -> Iterator[bytes]:
    """Yield every row as a line; rows are streamed."""
    query = select(table).order_by(*table.primary_key.columns)
    options = {"stream_results": True, "yield_per": BATCH_ROWS}
    with connection.execute(query, execution_options=options) as result:
        for row in result:
            yield msgspec.json.encode(tuple(row)) + b"\n"


def iter_checked_rows(connection: Connection, table: Table) -> Iterator[bytes]:
    """Yield every row as a line, checked as a restore would.

    Raises:
        InvalidRows: a row of the store would not be accepted.
    """
    checker = _build_checker(table, list_columns(table))
    for line in iter_rows(connection, table):
        checker.decode(line)
        yield line


def list_blobs(connection: Connection) -> Sequence[AnyRow]:
    """Return every blob that a row needs, once; columns org, sha256."""
    named = (
        select(table.c.org, table.c.sha256).where(table.c.sha256.is_not(None))
        for table in _TABLES_WITH_BLOBS
    )
    needed = union(*(query.distinct() for query in named)).subquery()
    return connection.execute(select(needed).order_by(needed.c.org, needed.c.sha256)).all()


def count_rows(connection: Connection) -> dict[str, int]:
    """Count the rows of each table."""
    return {
        name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for name, table in TABLES.items()
    }


def count_runs_since(connection: Connection, *, time_ms: int) -> int:
    """Count the runs that were created after a time."""
    query = (
        select(func.count())
        .select_from(runs)
        .where(runs.c.time_created > time_ms, runs.c.deleted.is_(False))
    )
    return int(connection.execute(query).scalar_one())


def list_store_ids(connection: Connection) -> set[str]:
    """Return every store id that a token of this store may contain."""
    known = set(connection.execute(select(attempts.c.epoch).distinct()).scalars())
    return known | {organizations.get_meta(connection, organizations.STORE_ID) or ""}


def replace_all(
    connection: Connection,
    tables: Iterable[tuple[str, Sequence[str], Iterable[bytes]]],
    *,
    store_id: str,
    operator: str,
    with_keys: bool,
    lease_ms: int,
) -> None:
    """Replace everything by rows (table, columns, lines); any error rolls all of it back.

    ``operator`` is the organization that keys of this store's first organization belong to
    afterwards, if the backup does not contain theirs. ``with_keys`` loads the keys among the rows,
    which can verify here.

    Raises:
        InvalidRows: a row is not one of its table.
    """
    own_keys = [row._asdict() for row in connection.execute(select(keys))]
    own_operator = next(iter(organizations.list_ids(connection)), None)
    own_clock = connection.execute(select(lease_clock)).one_or_none()
    own_pepper = organizations.get_meta(connection, organizations.PEPPER)
    own_counters = events.list_counters(connection)
    events.replace_recorded(connection, ())  # what these are about is replaced in this transaction
    triggers.drop(connection)  # they would fire for every row
    for table in reversed(metadata.sorted_tables):
        if table not in _KEPT:
            connection.execute(delete(table))
    lacks_log_bytes = False
    for name, given, lines in tables:
        lacks_log_bytes |= name == runs.name and "log_bytes" not in given
        if name != keys.name or with_keys:
            try:
                _load_rows(connection, TABLES[name], given, lines)
            except StatementError as error:
                if isinstance(error, OperationalError) and not is_value_too_large(error):
                    raise  # the disk failed; the rows are valid
                raise InvalidRows(
                    f"the rows of the backup's table {name!r} do not fit together"
                ) from error
    requirements.fill(connection)  # an older backup has no requirement keys
    run_list.rebuild(connection)
    run_metrics.rebuild(connection)  # an older backup has no values
    if next(iter(organizations.list_ids(connection)), None) != operator:
        raise InvalidRows(
            f"the backup names {operator!r} as its first organization, but its rows begin with "
            "another one"
        )
    connection.execute(
        delete(meta).where(meta.c.key.in_((organizations.STORE_ID, organizations.PEPPER)))
    )
    organizations.set_meta(connection, organizations.STORE_ID, store_id)
    if lacks_log_bytes:
        count_log_bytes(connection)
    # The keys of this store stay, and so does the pepper of their hashes.
    if own_pepper is not None:
        organizations.set_meta(connection, organizations.PEPPER, own_pepper)
    _advance_clock(connection, own_clock, lease_ms=lease_ms)
    events.skip_numbers(connection, own_counters, organizations.list_ids(connection))
    _restore_own_keys(connection, own_keys, own_operator=own_operator, operator=operator)


def _build_checker(table: Table, given: Sequence[str]) -> backup_rows.TableRows:
    return backup_rows.TableRows(str(table.name), given, COLUMNS[str(table.name)])


def _load_rows(
    connection: Connection, table: Table, given: Sequence[str], lines: Iterable[bytes]
) -> None:
    checker = _build_checker(table, given)
    batch: list[dict[str, Any]] = []
    batch_bytes = 0
    for line in lines:
        batch.append(checker.decode(line))
        batch_bytes += len(line)
        if len(batch) >= BATCH_ROWS or batch_bytes >= BATCH_BYTES:
            connection.execute(insert(table), batch)
            batch, batch_bytes = [], 0
    if batch:
        connection.execute(insert(table), batch)


def _advance_clock(connection: Connection, own: AnyRow | None, *, lease_ms: int) -> None:
    """Advance the lease clock and the fencing counter to the higher of both stores' values.

    Uptimes in rows are shifted by the same amount, so that durations stay as they were. An open
    attempt gets a whole lease: its supervisor may still run, and the restore must not make it late.
    """
    restored = connection.execute(select(lease_clock)).one_or_none()
    if restored is None:
        raise InvalidRows("the backup has no row for its lease clock")
    uptime_ms = max(restored.lived_ms, own.lived_ms if own else 0)
    number = max(restored.token_number, own.token_number if own else 0)
    connection.execute(update(lease_clock).values(lived_ms=uptime_ms, token_number=number))
    shift_ms = uptime_ms - restored.lived_ms
    connection.execute(
        update(attempts).values(
            expires_pulse=attempts.c.expires_pulse + shift_ms,
            lost_pulse=attempts.c.lost_pulse + shift_ms,
        )
    )
    connection.execute(
        update(attempts)
        .where(attempts.c.closed.is_(False))
        .values(expires_pulse=uptime_ms + lease_ms)
    )


def _restore_own_keys(
    connection: Connection,
    own: Sequence[dict[str, Any]],
    *,
    own_operator: str | None,
    operator: str,
) -> None:
    """Insert the keys of this store again: valid keys stay valid, and revoked keys stay revoked."""
    known = set(connection.execute(select(organization_rows.c.id)).scalars())
    for key in own:
        if key["org"] is not None and key["org"] not in known:
            if key["org"] != own_operator:
                continue  # the backup does not contain its organization
            key["org"] = operator
        connection.execute(delete(keys).where(keys.c.id == key["id"]))
        connection.execute(insert(keys).values(**key))
