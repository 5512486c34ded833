"""The whole store as rows of plain values, out of one database and into another, of either kind.

Written over ``metadata``, so that a new table is taken along by being there. Rows are JSON arrays in the order of the
table's columns, bytes as base64, sorted by primary key. Four tables do not simply replace what was there: ``meta`` gets
the new epoch, ``pulse`` never goes back, attempts get time to speak, and ``keys`` stay those of the instance.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, Connection, String, Table, delete, func, insert, select, union, update
from sqlalchemy.exc import OperationalError, StatementError

from runyard import backup_rows
from runyard.backup_rows import RowsUnfit
from runyard.store import organizations, requirements
from runyard.store.lines import count_log_bytes
from runyard.store.migrate import HEAD
from runyard.store.postgresql import is_about_a_value
from runyard.store.tables import AnyRow, attempts, keys, meta, metadata, pulse, runs, unneeded_blobs
from runyard.store.tables import organizations as organization_rows

ROWS_AT_ONCE, BYTES_AT_ONCE = 500, 4 << 20
SCHEMA_REVISION = HEAD
TABLES: Mapping[str, Table] = {str(table.name): table for table in metadata.sorted_tables}
# Every table that needs a blob names it in a column ``sha256`` beside ``org``; one names those that nothing needs.
_NAME_BLOBS = [table for table in TABLES.values() if "sha256" in table.c and table is not unneeded_blobs]


def describe(table: Table) -> dict[str, backup_rows.Column]:
    """Return what each column of a table may hold, as ``runyard.backup_schema`` has it."""
    return {str(column.name): _describe_column(column) for column in table.columns}


def _describe_column(column: Column[Any]) -> backup_rows.Column:
    types = {int: "int32", str: "str", bytes: "bytes", bool: "bool", float: "float"}
    return backup_rows.Column(
        name=str(column.name),
        type="int64" if isinstance(column.type, BigInteger) else types[column.type.python_type],
        max_length=column.type.length if isinstance(column.type, String) else None,
        is_key=column.primary_key,
        is_nullable=bool(column.nullable),
        may_lack=bool(column.nullable) or column.server_default is not None,
    )


# After a change of the tables, run scripts/backup-schema: the command line verifies backups without a database.
DESCRIBED: Mapping[str, Mapping[str, backup_rows.Column]] = {name: describe(table) for name, table in TABLES.items()}


def render_schema() -> str:
    """Return the text of ``runyard.backup_schema``."""
    lines = [
        '"""Tables of a backup, written by scripts/backup-schema from the tables of the store.',
        "",
        "A column is ``name:type(length)``. ``*`` marks the primary key, ``?`` a value that may be null, and ``=`` a",
        "column that older files may lack.",
        '"""',
        "",
        f'REVISION = "{SCHEMA_REVISION}"',
        "TABLES = {",
    ]
    for name, described in DESCRIBED.items():
        words = textwrap.wrap(" ".join(map(str, described.values())), 105)
        lines += [f'    "{name}": (', *(f'        "{line} "' for line in words), "    ),"]
    return "\n".join([*lines, "}", ""])


def columns(table: Table) -> list[str]:
    return [str(column.name) for column in table.columns]  # a plain one: SQLAlchemy has a text type of its own


def rows(connection: Connection, table: Table) -> Iterator[bytes]:
    """Yield every row as a line, read piece by piece."""
    query = select(table).order_by(*table.primary_key.columns)
    options = {"stream_results": True, "yield_per": ROWS_AT_ONCE}
    with connection.execute(query, execution_options=options) as result:
        for row in result:
            yield msgspec.json.encode(tuple(row)) + b"\n"


def checked_rows(connection: Connection, table: Table) -> Iterator[bytes]:
    """Yield every row as a line that a restore accepts.

    Raises:
        RowsUnfit: a row of the store would not be accepted.
    """
    checker = _checker(table, columns(table))
    for line in rows(connection, table):
        checker.decode(line)
        yield line


def blobs(connection: Connection) -> Sequence[AnyRow]:
    """Every blob that a row needs, once; columns org, sha256."""
    named = (select(table.c.org, table.c.sha256).where(table.c.sha256.is_not(None)) for table in _NAME_BLOBS)
    needed = union(*(query.distinct() for query in named)).subquery()
    return connection.execute(select(needed).order_by(needed.c.org, needed.c.sha256)).all()


def counts(connection: Connection) -> dict[str, int]:
    """How many rows each table has."""
    return {
        name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for name, table in TABLES.items()
    }


def runs_since(connection: Connection, *, time_ms: int) -> int:
    """How many runs were created after a time."""
    query = select(func.count()).select_from(runs).where(runs.c.time_created > time_ms, runs.c.deleted.is_(False))
    return int(connection.execute(query).scalar_one())


def epochs(connection: Connection) -> set[str]:
    """Every epoch that a token of this store may name."""
    known = set(connection.execute(select(attempts.c.epoch).distinct()).scalars())
    return known | {organizations.fact(connection, organizations.EPOCH) or ""}


def replace(
    connection: Connection,
    tables: Iterable[tuple[str, Sequence[str], Iterable[bytes]]],
    *,
    epoch: str,
    operator: str,
    with_keys: bool,
    lease_ms: int,
) -> None:
    """Put rows (table, columns, lines) in the place of everything there is; undone as a whole if anything is unfit.

    ``operator`` is the organisation that the keys of this store's first organisation belong to afterwards, if theirs is
    gone. ``with_keys`` says that keys among the rows can verify here.

    Raises:
        RowsUnfit: a row is not one of its table.
    """
    own_keys = [row._asdict() for row in connection.execute(select(keys))]
    own_operator = next(iter(organizations.ids(connection)), None)
    own_pulse = connection.execute(select(pulse)).one_or_none()
    own_pepper = organizations.fact(connection, organizations.PEPPER)
    for table in reversed(metadata.sorted_tables):
        connection.execute(delete(table))
    is_of_before = False  # sizes of logs were noted
    for name, given, lines in tables:
        is_of_before |= name == runs.name and "log_bytes" not in given
        if name != keys.name or with_keys:
            try:
                _load(connection, TABLES[name], given, lines)
            except StatementError as error:
                if isinstance(error, OperationalError) and not is_about_a_value(error):
                    raise  # the disk, not the rows
                raise RowsUnfit(f"the rows of the backup's table {name!r} do not fit together") from error
    requirements.fill(connection)  # a backup made before there were keys has none
    if next(iter(organizations.ids(connection)), None) != operator:
        raise RowsUnfit(f"the backup is of the organization {operator!r}, and it is not the first in it")
    connection.execute(delete(meta).where(meta.c.key.in_((organizations.EPOCH, organizations.PEPPER))))
    organizations.set_fact(connection, organizations.EPOCH, epoch)
    if is_of_before:
        count_log_bytes(connection)
    if own_pepper is not None:  # the keys of this store stay, and with them the pepper they were hashed under
        organizations.set_fact(connection, organizations.PEPPER, own_pepper)
    _go_on_counting(connection, own_pulse, lease_ms=lease_ms)
    _keep_keys(connection, own_keys, own_operator=own_operator, operator=operator)


def _checker(table: Table, given: Sequence[str]) -> backup_rows.TableRows:
    return backup_rows.TableRows(str(table.name), given, DESCRIBED[str(table.name)])


def _load(connection: Connection, table: Table, given: Sequence[str], lines: Iterable[bytes]) -> None:
    checker = _checker(table, given)
    batch: list[dict[str, Any]] = []
    batch_bytes = 0
    for line in lines:
        batch.append(checker.decode(line))
        batch_bytes += len(line)
        if len(batch) >= ROWS_AT_ONCE or batch_bytes >= BYTES_AT_ONCE:
            connection.execute(insert(table), batch)
            batch, batch_bytes = [], 0
    if batch:
        connection.execute(insert(table), batch)


def _go_on_counting(connection: Connection, own: AnyRow | None, *, lease_ms: int) -> None:
    """Neither server-lived time nor fencing numbers ever go back, whichever of the two worlds was further.

    What rows say of that time is moved along, so that a silence is as long as it was. An open attempt gets a whole
    lease: its supervisor may still live, and shall not be too late for having been restored.
    """
    told = connection.execute(select(pulse)).one_or_none()
    if told is None:
        raise RowsUnfit("the backup does not say how long its server has lived")
    lived_ms = max(told.lived_ms, own.lived_ms if own else 0)
    number = max(told.token_number, own.token_number if own else 0)
    connection.execute(update(pulse).values(lived_ms=lived_ms, token_number=number))
    moved_ms = lived_ms - told.lived_ms
    connection.execute(
        update(attempts).values(
            expires_pulse=attempts.c.expires_pulse + moved_ms, lost_pulse=attempts.c.lost_pulse + moved_ms
        )
    )
    connection.execute(update(attempts).where(attempts.c.closed.is_(False)).values(expires_pulse=lived_ms + lease_ms))


def _keep_keys(
    connection: Connection, own: Sequence[dict[str, Any]], *, own_operator: str | None, operator: str
) -> None:
    """The keys of this store stay: whoever could speak to it still can, and a revoked key stays revoked."""
    known = set(connection.execute(select(organization_rows.c.id)).scalars())
    for key in own:
        if key["org"] is not None and key["org"] not in known:
            if key["org"] != own_operator:
                continue  # its organisation is gone with everything it opened
            key["org"] = operator
        connection.execute(delete(keys).where(keys.c.id == key["id"]))
        connection.execute(insert(keys).values(**key))
