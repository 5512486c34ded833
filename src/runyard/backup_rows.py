"""Rows of a backup, and their check when a backup is written, verified and restored.

A row is a JSON array in the order of its table's columns; bytes are base64. Plain data describes
the columns, so that ``runyard backup --verify`` needs neither the server nor its database.
``runyard.backup_schema`` describes the tables of this version, ``runyard.store.backup`` generates
the same description from the tables, and a test compares the two.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from runyard import ids
from runyard.backup_file import BackupFileError, BackupManifest, BackupMember, BlobPart, Sink, Write

# Columns that become part of a path or of a URL, by table and column; None stands for every other
# table.
_KINDS: Mapping[tuple[str | None, str], str] = {
    ("organizations", "id"): "organization",
    ("runs", "id"): "run",
    ("flows", "id"): "flow",
    ("training_projects", "id"): "training project",
    ("saved_views", "id"): "view",
    ("outputs", "id"): "checkpoint",
    ("datasets", "id"): "dataset",
    ("assets", "id"): "asset",
    ("imports", "id"): "import",
    ("dataset_versions", "id"): "version",
    ("dataset_exports", "id"): "export",
    ("bulk_deletions", "id"): "bulk deletion",
    (None, "org"): "organization",
    (None, "run_id"): "run",
    (None, "output_id"): "checkpoint",
    (None, "dataset_id"): "dataset",
    (None, "asset_id"): "asset",
    (None, "import_id"): "import",
    (None, "sha256"): "blob",
    (None, "content"): "blob",
}
_PATHS = ("path", "filename")
# Rows of the controller have no organization, and no path is made from audit rows.
_UNCHECKED = ("audit",)
_TYPES: Mapping[str, Any] = {
    "str": str,
    "bytes": bytes,
    "bool": bool,
    "float": float,
    "int32": int,
    "int64": int,
}
_NOTATION = re.compile(r"(\*?)([a-z_0-9]+):([a-z]+(?:32|64)?)(?:\((\d+)\))?(\??)(=?)")


class InvalidRows(BackupFileError):
    """Rows cannot be inserted into a store; the message has the row and the reason.

    ``table`` and ``row`` identify the row, if there is one, and ``column`` the invalid value.
    """

    def __init__(
        self,
        message: str,
        *,
        table: str = "",
        column: str = "",
        row: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.table, self.column, self.row = table, column, row or {}


@dataclass(frozen=True)
class Column:
    """The allowed values of one column.

    ``is_optional``: older files without the column can be restored.
    """

    name: str
    type: str
    max_length: int | None = None
    is_key: bool = False
    is_nullable: bool = False
    is_optional: bool = False

    def __str__(self) -> str:
        """Return the notation of ``runyard.backup_schema``, such as ``*run_id:str(255)``."""
        length = f"({self.max_length})" if self.max_length else ""
        marks = f"{'?' if self.is_nullable else ''}{'=' if self.is_optional else ''}"
        return f"{'*' if self.is_key else ''}{self.name}:{self.type}{length}{marks}"


def parse_columns(notation: str) -> Mapping[str, Column]:
    """Return the columns that a line of ``runyard.backup_schema`` describes, in their order."""
    columns = {}
    for word in notation.split():
        found = _NOTATION.fullmatch(word)
        assert found is not None, word  # noqa: S101 - a file of ours
        key, name, type, length, nullable, optional = found.groups()
        columns[name] = Column(
            name, type, int(length) if length else None, bool(key), bool(nullable), bool(optional)
        )
    return columns


class TableRows:
    """The rows of one table, with columns in the order ``given``."""

    def __init__(self, table: str, given: Sequence[str], columns: Mapping[str, Column]) -> None:
        self._table, self._given = table, tuple(given)
        self._keys = [name for name in given if columns[name].is_key]
        self._types = [_build_type(table, columns[name]) for name in given]
        array: Any = tuple
        self._decoder = msgspec.json.Decoder(array[tuple(self._types)])

    def decode(self, line: bytes) -> dict[str, Any]:
        """Return the values of a row by column.

        Raises:
            InvalidRows: it is not a row of this table, or an id or a path in it is invalid.
        """
        try:
            return dict(zip(self._given, self._decoder.decode(line), strict=True))
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._explain(line, error) from error

    def _explain(self, line: bytes, error: Exception) -> InvalidRows:
        """Return the error with the row and the invalid value."""
        try:
            values = msgspec.json.decode(line, type=list[Any])
        except (msgspec.MsgspecError, ValueError):
            values = []
        if len(values) != len(self._given):
            return InvalidRows(
                f"a row of table {self._table!r} cannot be read: {error}", table=self._table
            )
        row = dict(zip(self._given, values, strict=True))
        key = ", ".join(f"{name} {ids.shorten(row[name])}" for name in self._keys)
        for name, type in zip(self._given, self._types, strict=True):
            try:
                msgspec.json.decode(msgspec.json.encode(row[name]), type=type)
            except (msgspec.MsgspecError, ValueError) as reason:
                cause = f"column {name!r} is {ids.shorten(row[name])}: {reason}"
                message = f"a row of table {self._table!r} ({key}) is not valid: {cause}"
                return InvalidRows(message, table=self._table, column=name, row=row)
        return InvalidRows(
            f"a row of table {self._table!r} ({key}) is not valid: {error}",
            table=self._table,
            row=row,
        )


def check_columns(
    table: str, given: Sequence[str], tables: Mapping[str, Mapping[str, Column]]
) -> None:
    """Check that rows with these columns can be inserted into a table.

    Raises:
        InvalidRows: the table or a column is unknown, or a required column is missing.
    """
    columns = tables.get(table)
    if columns is None or set(given) - set(columns) or len(set(given)) != len(given):
        raise InvalidRows(
            f"the backup has a table {table!r} whose columns this Runyard does not know",
            table=table,
        )
    for column in columns.values():
        if column.name not in given and not column.is_optional:
            raise InvalidRows(
                f"the backup's table {table!r} has no column {column.name!r}, which this Runyard "
                "needs",
                table=table,
            )


def check_revision(revision: str, known: str) -> None:
    """Raise InvalidRows for the schema of a later Runyard."""
    if revision > known:
        raise InvalidRows(
            f"the backup is at schema {revision}, newer than {known} here; "
            "try: the Runyard that wrote it, or a later one"
        )


@dataclass
class Verifier(Sink):
    """A sink that makes all checks of a restore, and keeps only the names of blobs."""

    revision: str
    tables: Mapping[str, Mapping[str, Column]]
    _missing_blobs: int = 0
    _columns: dict[str, Sequence[str]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _operator: str = ""
    _organizations: list[tuple[Any, Any]] = field(default_factory=list)
    _needed: set[tuple[str, str]] = field(default_factory=set)

    def begin(self, manifest: BackupManifest) -> None:
        """Check the schema that the manifest names."""
        check_revision(manifest.schema_revision, self.revision)
        for part in manifest.tables:
            check_columns(part.name, part.columns, self.tables)
            if part.name in self._columns:
                raise InvalidRows(f"the backup has table {part.name!r} twice", table=part.name)
            self._columns[part.name] = part.columns
            self._counts[part.name] = part.rows
        self._operator, self._missing_blobs = manifest.operator, manifest.missing_blobs

    def receive(self, member: BackupMember) -> AbstractContextManager[Write]:
        """Check the rows of a table; for a blob its hash is enough."""
        return super().receive(member) if member.table is None else self._read_table(member.table)

    def list_blobs(self, blobs: Sequence[BlobPart]) -> None:
        """Compare the blobs with those that the rows need, and check conditions across rows."""
        if self._counts.get("pulse", 0) != 1:
            raise InvalidRows("the backup has no row for its lease clock", table="pulse")
        first = min(self._organizations, default=(0, ""))[1]
        if first != self._operator:
            raise InvalidRows(
                f"the backup names {self._operator!r} as its first organization, but its rows "
                "begin with another one"
            )
        missing = len(self._needed - {(blob.org, blob.sha256) for blob in blobs})
        self._needed.clear()
        if missing != self._missing_blobs:
            raise InvalidRows(
                f"rows of the backup need {missing} blobs that are not in it; its manifest says "
                f"{self._missing_blobs}"
            )

    @contextmanager
    def _read_table(self, table: str) -> Iterator[Write]:
        rows = TableRows(table, self._columns[table], self.tables[table])
        count, rest = 0, b""

        def check(lines: Iterable[bytes]) -> None:
            nonlocal count
            for line in lines:
                self._record_row(table, rows.decode(line))
                count += 1

        def write(chunk: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + chunk).split(b"\n")
            check(lines)

        yield write
        if rest:
            check([rest])
        if count != self._counts[table]:
            raise InvalidRows(
                f"table {table!r} has {count} rows, and the manifest says {self._counts[table]}"
            )

    def _record_row(self, table: str, row: Mapping[str, Any]) -> None:
        if table == "organizations":
            self._organizations.append((row["time_created"], row["id"]))
        elif table != "unneeded_blobs" and row.get("sha256") is not None:
            self._needed.add((row["org"], row["sha256"]))


def _build_type(table: str, column: Column) -> Any:
    """Return the type that a value of the column is decoded as."""
    type = _TYPES[column.type]
    limits: dict[str, Any] = {}
    if column.max_length is not None and column.type == "str":
        limits["max_length"] = column.max_length
    if column.type in ("int32", "int64"):
        bits = int(column.type[3:]) - 1
        limits |= {"ge": -(2**bits), "le": 2**bits - 1}
    if table not in _UNCHECKED:
        kind = _KINDS.get((table, column.name)) or _KINDS.get((None, column.name))
        if kind is not None:
            limits["pattern"] = ids.PATTERNS[kind]
        elif column.name in _PATHS:
            limits["pattern"] = ids.PATH_PATTERN if column.name == "path" else ids.FILENAME_PATTERN
    if limits:
        type = Annotated[type, msgspec.Meta(**limits)]
    return type | None if column.is_nullable else type
