"""The whole store as rows of plain values, out of one database and into another, of either kind.

Written over ``metadata``, so that a new table is taken along by being there. Rows are JSON arrays in the order of the
table's columns, bytes as base64, sorted by primary key. Four tables do not simply replace what was there: ``meta`` gets
the new epoch, ``pulse`` never goes back, attempts get time to speak, and ``keys`` stay those of the instance.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from sqlalchemy import Column, Connection, Table, delete, func, insert, select, union, update
from sqlalchemy.exc import OperationalError, StatementError

from runyard.store import organizations, requirements
from runyard.store.migrate import HEAD
from runyard.store.tables import AnyRow, attempts, audit, keys, meta, metadata, pulse, runs, unneeded_blobs
from runyard.store.tables import organizations as organization_rows

ROWS_AT_ONCE, BYTES_AT_ONCE = 500, 4 << 20
SCHEMA_REVISION = HEAD
TABLES: Mapping[str, Table] = {str(table.name): table for table in metadata.sorted_tables}
# Every table that needs a blob names it in a column ``sha256`` beside ``org``; one names those that nothing needs.
_NAME_BLOBS = [table for table in TABLES.values() if "sha256" in table.c and table is not unneeded_blobs]


# Names that become paths somewhere, and so must be as harmless as they were when they were first taken.
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\:\x00-\x1f]+"
_PATTERNS = {
    "org": r"\A[A-Za-z0-9_-]{1,64}\Z",
    "run_id": r"\A[A-Za-z0-9_-]{1,255}\Z",
    "dataset_id": r"\A[A-Za-z0-9_-]{1,255}\Z",
    "import_id": r"\A[A-Za-z0-9_-]{1,255}\Z",
    "sha256": r"\A[0-9a-f]{64}\Z",
    "content": r"\A[0-9a-f]{64}\Z",
    "path": rf"\A{_PART}(?:/{_PART})*\Z",
    "filename": rf"\A{_PART}(?:/{_PART})*\Z",
}

_OWN_IDS = {"runs": "run_id", "organizations": "org", "datasets": "dataset_id", "imports": "import_id"}


class RowsUnfit(Exception):
    """Rows cannot be taken into this store; the sentence says which and why."""


def columns(table: Table) -> list[str]:
    return [str(column.name) for column in table.columns]  # a plain one: SQLAlchemy has a text type of its own


def rows(connection: Connection, table: Table) -> Iterator[bytes]:
    """Every row as a line, read piece by piece."""
    query = select(table).order_by(*table.primary_key.columns)
    options = {"stream_results": True, "yield_per": ROWS_AT_ONCE}
    with connection.execute(query, execution_options=options) as result:
        for row in result:
            yield msgspec.json.encode(tuple(row)) + b"\n"


def blobs(connection: Connection) -> Sequence[AnyRow]:
    """Every blob that a row needs, once; columns org, sha256."""
    named = (select(table.c.org, table.c.sha256).where(table.c.sha256.is_not(None)) for table in _NAME_BLOBS)
    needed = union(*(query.distinct() for query in named)).subquery()
    return connection.execute(select(needed).order_by(needed.c.org, needed.c.sha256)).all()


def check_columns(name: str, given: Sequence[str]) -> None:
    """Raise RowsUnfit unless rows with these columns fit into a table: columns added since must be able to be empty."""
    table = TABLES.get(name)
    if table is None or set(given) - set(table.c.keys()) or len(set(given)) != len(given):
        raise RowsUnfit(f"the backup has a table {name!r} whose columns this Runyard does not know")
    for column in table.columns:
        if column.name not in given and not column.nullable and column.server_default is None:
            raise RowsUnfit(f"the backup's table {name!r} has no column {column.name!r}, which this Runyard needs")


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
    for table in reversed(metadata.sorted_tables):
        connection.execute(delete(table))
    for name, given, lines in tables:
        if name != keys.name or with_keys:
            try:
                _load(connection, TABLES[name], given, lines)
            except OperationalError:
                raise  # the disk, not the rows
            except StatementError as error:
                raise RowsUnfit(f"the rows of the backup's table {name!r} do not fit together") from error
    requirements.fill(connection)  # a backup made before there were keys has none
    if next(iter(organizations.ids(connection)), None) != operator:
        raise RowsUnfit(f"the backup is of the organization {operator!r}, and it is not the first in it")
    connection.execute(delete(meta).where(meta.c.key == organizations.EPOCH))
    organizations.set_fact(connection, organizations.EPOCH, epoch)
    _go_on_counting(connection, own_pulse, lease_ms=lease_ms)
    _keep_keys(connection, own_keys, own_operator=own_operator, operator=operator)


def _load(connection: Connection, table: Table, given: Sequence[str], lines: Iterable[bytes]) -> None:
    array: Any = tuple
    decoder = msgspec.json.Decoder(array[tuple(_kind(table, table.c[name]) for name in given)])
    batch: list[dict[str, Any]] = []
    batch_bytes = 0
    for line in lines:
        try:
            batch.append(dict(zip(given, decoder.decode(line), strict=True)))
        except (msgspec.MsgspecError, ValueError) as error:
            raise RowsUnfit(f"a row of the backup's table {table.name!r} cannot be read: {error}") from error
        batch_bytes += len(line)
        if len(batch) >= ROWS_AT_ONCE or batch_bytes >= BYTES_AT_ONCE:
            connection.execute(insert(table), batch)
            batch, batch_bytes = [], 0
    if batch:
        connection.execute(insert(table), batch)


def _kind(table: Table, column: Column[Any]) -> Any:
    """What a value of the column may be; bytes are base64 in JSON by the decoder's own rule."""
    name = _OWN_IDS.get(table.name, "") if column.name == "id" else column.name
    kind: Any = column.type.python_type
    if name in _PATTERNS and table is not audit:  # the controller's deeds are no organisation's, and nobody's path
        kind = Annotated[kind, msgspec.Meta(pattern=_PATTERNS[name])]
    return kind | None if column.nullable else kind


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
