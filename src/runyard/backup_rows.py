"""Rows of a backup: the one check that they pass when they are written, verified and restored.

A row is a JSON array in the order of its table's columns; bytes are base64. What a value may be is described by plain
data, so that ``runyard backup --verify`` needs neither the server nor its database: ``runyard.backup_schema`` has the
description of this version's tables, ``runyard.store.backup`` makes the same one from the tables themselves, and a test
compares the two.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from runyard import ids
from runyard.backup_file import BackupFileError, BlobPart, Manifest, Member, Sink, Write

# Columns that become part of a path or of a URL, by table and column; None stands for every other table.
_KINDS: Mapping[tuple[str | None, str], str] = {
    ("organizations", "id"): "organization",
    ("runs", "id"): "run",
    ("flows", "id"): "flow",
    ("training_projects", "id"): "training project",
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
_UNCHECKED = ("audit",)  # actions of the controller belong to no organization, and no path is made from any of them
_TYPES: Mapping[str, Any] = {"str": str, "bytes": bytes, "bool": bool, "float": float, "int32": int, "int64": int}
_NOTATION = re.compile(r"(\*?)([a-z_0-9]+):([a-z]+(?:32|64)?)(?:\((\d+)\))?(\??)(=?)")


class RowsUnfit(BackupFileError):
    """Rows cannot be put into a store; the message says which row and why.

    ``table`` and ``row`` name the row, if it is one, and ``column`` the value that is not accepted.
    """

    def __init__(self, message: str, *, table: str = "", column: str = "", row: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.table, self.column, self.row = table, column, row or {}


@dataclass(frozen=True)
class Column:
    """What a value of one column may be. ``may_lack`` says that older files without it can be restored."""

    name: str
    type: str
    max_length: int | None = None
    is_key: bool = False
    is_nullable: bool = False
    may_lack: bool = False

    def __str__(self) -> str:
        """Return the notation of ``runyard.backup_schema``, such as ``*run_id:str(255)``."""
        length = f"({self.max_length})" if self.max_length else ""
        marks = f"{'?' if self.is_nullable else ''}{'=' if self.may_lack else ''}"
        return f"{'*' if self.is_key else ''}{self.name}:{self.type}{length}{marks}"


def parse_columns(notation: str) -> Mapping[str, Column]:
    """Return the columns that a line of ``runyard.backup_schema`` describes, in their order."""
    columns = {}
    for word in notation.split():
        found = _NOTATION.fullmatch(word)
        assert found is not None, word  # noqa: S101 - a file of ours
        key, name, type, length, nullable, lack = found.groups()
        columns[name] = Column(name, type, int(length) if length else None, bool(key), bool(nullable), bool(lack))
    return columns


class TableRows:
    """The rows of one table, whose columns stand in the order ``given``."""

    def __init__(self, table: str, given: Sequence[str], columns: Mapping[str, Column]) -> None:
        self._table, self._given = table, tuple(given)
        self._keys = [name for name in given if columns[name].is_key]
        self._types = [_type_of(table, columns[name]) for name in given]
        array: Any = tuple
        self._decoder = msgspec.json.Decoder(array[tuple(self._types)])

    def decode(self, line: bytes) -> dict[str, Any]:
        """Return the values of a row by column.

        Raises:
            RowsUnfit: it is not a row of this table, or an id or a path in it is not valid.
        """
        try:
            return dict(zip(self._given, self._decoder.decode(line), strict=True))
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._explain(line, error) from error

    def _explain(self, line: bytes, error: Exception) -> RowsUnfit:
        """Return the error with the row and the value that it is about."""
        try:
            values = msgspec.json.decode(line, type=list[Any])
        except (msgspec.MsgspecError, ValueError):
            values = []
        if len(values) != len(self._given):
            return RowsUnfit(f"a row of table {self._table!r} cannot be read: {error}", table=self._table)
        row = dict(zip(self._given, values, strict=True))
        key = ", ".join(f"{name} {ids.shorten(row[name])}" for name in self._keys)
        for name, type in zip(self._given, self._types, strict=True):
            try:
                msgspec.json.decode(msgspec.json.encode(row[name]), type=type)
            except (msgspec.MsgspecError, ValueError) as reason:
                what = f"column {name!r} is {ids.shorten(row[name])}: {reason}"
                message = f"a row of table {self._table!r} ({key}) is not valid: {what}"
                return RowsUnfit(message, table=self._table, column=name, row=row)
        return RowsUnfit(f"a row of table {self._table!r} ({key}) is not valid: {error}", table=self._table, row=row)


def check_columns(table: str, given: Sequence[str], tables: Mapping[str, Mapping[str, Column]]) -> None:
    """Check that rows with these columns can be put into a table.

    Raises:
        RowsUnfit: the table or a column is not known, or one that cannot be empty is missing.
    """
    columns = tables.get(table)
    if columns is None or set(given) - set(columns) or len(set(given)) != len(given):
        raise RowsUnfit(f"the backup has a table {table!r} whose columns this Runyard does not know", table=table)
    for column in columns.values():
        if column.name not in given and not column.may_lack:
            raise RowsUnfit(
                f"the backup's table {table!r} has no column {column.name!r}, which this Runyard needs", table=table
            )


def check_revision(revision: str, known: str) -> None:
    """Raise RowsUnfit for a schema that a later Runyard made."""
    if revision > known:
        raise RowsUnfit(
            f"the backup is at schema {revision}, newer than {known} here; "
            "use the Runyard that wrote it, or a later one"
        )


@dataclass
class Verifier(Sink):
    """Checks all that a restore would check, and keeps nothing but the names of blobs."""

    revision: str
    tables: Mapping[str, Mapping[str, Column]]
    _missing_blobs: int = 0
    _columns: dict[str, Sequence[str]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _operator: str = ""
    _organizations: list[tuple[Any, Any]] = field(default_factory=list)
    _needed: set[tuple[str, str]] = field(default_factory=set)

    def begin(self, manifest: Manifest) -> None:
        """Check the schema that the manifest names."""
        check_revision(manifest.schema_revision, self.revision)
        for part in manifest.tables:
            check_columns(part.name, part.columns, self.tables)
            if part.name in self._columns:
                raise RowsUnfit(f"the backup has table {part.name!r} twice", table=part.name)
            self._columns[part.name] = part.columns
            self._counts[part.name] = part.rows
        self._operator, self._missing_blobs = manifest.operator, manifest.missing_blobs

    def receive(self, member: Member) -> AbstractContextManager[Write]:
        """Check the rows of a table; a blob is checked by its hash alone."""
        return super().receive(member) if member.table is None else self._read_table(member.table)

    def list_blobs(self, blobs: Sequence[BlobPart]) -> None:
        """Compare the blobs that follow with those that the rows need, and check what the rows say together."""
        if self._counts.get("pulse", 0) != 1:
            raise RowsUnfit("the backup does not say how long its server has lived", table="pulse")
        first = min(self._organizations, default=(0, ""))[1]
        if first != self._operator:
            raise RowsUnfit(f"the backup is of the organization {self._operator!r}, and it is not the first in it")
        missing = len(self._needed - {(blob.org, blob.sha256) for blob in blobs})
        self._needed.clear()
        if missing != self._missing_blobs:
            raise RowsUnfit(
                f"rows of the backup need {missing} blobs that are not in it; its manifest says {self._missing_blobs}"
            )

    @contextmanager
    def _read_table(self, table: str) -> Iterator[Write]:
        rows = TableRows(table, self._columns[table], self.tables[table])
        count, rest = 0, b""

        def take(lines: Iterable[bytes]) -> None:
            nonlocal count
            for line in lines:
                self._take_row(table, rows.decode(line))
                count += 1

        def write(chunk: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + chunk).split(b"\n")
            take(lines)

        yield write
        if rest:
            take([rest])
        if count != self._counts[table]:
            raise RowsUnfit(f"table {table!r} has {count} rows, and the manifest says {self._counts[table]}")

    def _take_row(self, table: str, row: Mapping[str, Any]) -> None:
        if table == "organizations":
            self._organizations.append((row["time_created"], row["id"]))
        elif table != "unneeded_blobs" and row.get("sha256") is not None:
            self._needed.add((row["org"], row["sha256"]))


def _type_of(table: str, column: Column) -> Any:
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
