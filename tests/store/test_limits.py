"""No value that the limits allow is too long for an index, on either store."""

import asyncio
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    insert,
)
from sqlalchemy.exc import DBAPIError

from runyard import limits
from runyard.store import Store
from runyard.store.tables import metadata

# Limits of indexed text columns with arbitrary characters; other columns have ASCII ids and words
# up to the length of the column.
FREE_TEXTS = {
    "run_attributes.key": limits.ATTRIBUTE_KEY,
    "run_attributes.value": limits.ATTRIBUTE_VALUE,
    "run_list.name_key": limits.RUN_NAME,
    "run_list.flow_name": limits.RUN_NAME,
    "run_metrics.key": limits.METRIC_NAME,
    "metric_keys.key": limits.METRIC_NAME,
    "assets.filename": limits.FILE_NAME,
    "output_files.path": limits.FILE_NAME,
    "resume_files.path": limits.FILE_NAME,
    "import_files.name": limits.FILE_NAME,
    "records.id": limits.RECORD_ID,
    "attempts.claim_id": limits.ID,
    "attempts.machine_id": limits.ID,
    "outputs.id": limits.ID,
    "output_files.output_id": limits.ID,
}
# Each entry has a header of 8 bytes; each text up to 4 bytes for its length and 7 for its
# alignment.
ENTRY_OVERHEAD, TEXT_OVERHEAD = 8, 11
chance = random.Random(1)  # noqa: S311


def longest(column: Column[Any]) -> str:
    """Return the longest text that the limits allow in a column, without compressible parts."""
    limit = FREE_TEXTS.get(f"{column.table.name}.{column.name}")
    if limit is not None:
        assert limit.unit == "bytes"
        text = "".join(chr(chance.randrange(0x10000, 0x110000)) for _ in range(limit.value // 4))
        text += "x" * (limit.value % 4)
        assert limit.find_problem(text) is None
        assert limit.find_problem(text + "x") is not None
        return text
    assert isinstance(column.type, String)
    assert column.type.length is not None, (
        f"{column.table.name}.{column.name} is in an index and has no limit"
    )
    return "".join(
        chance.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(column.type.length)
    )


def indexes(table: Table) -> Iterator[tuple[str, list[Column[Any]]]]:
    """Return the columns of each index of a table."""
    yield "primary key", list(table.primary_key.columns)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield str(constraint.name), list(constraint.columns)
    for index in table.indexes:
        assert isinstance(index, Index)
        yield str(index.name), list(index.columns)


def longest_row(table: Table) -> dict[str, Any]:
    indexed = {column.name for _, columns in indexes(table) for column in columns}
    row: dict[str, Any] = {}
    for column in table.columns:
        if isinstance(column.type, String):
            row[column.name] = longest(column) if column.name in indexed else "x"
        elif isinstance(column.type, LargeBinary):
            row[column.name] = b"{}"
        else:
            row[column.name] = (
                True
                if isinstance(column.type, Boolean)
                else 1.0
                if isinstance(column.type, Float)
                else 1
            )
    return row


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_the_longest_entry_of_each_index_fits(table: Table) -> None:
    row = longest_row(table)
    for name, columns in indexes(table):
        texts = [row[column.name].encode() for column in columns if isinstance(column.type, String)]
        others = 16 * (len(columns) - len(texts))
        size_bytes = ENTRY_OVERHEAD + others + sum(len(text) + TEXT_OVERHEAD for text in texts)
        assert size_bytes <= limits.INDEX_ENTRY, (name, size_bytes)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_longest_row_of_each_table_is_stored(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = (
        tmp_path / "a.db"
        if kind == "sqlite"
        else request.getfixturevalue("postgresql").new_database()
    )
    store = Store(database)

    async def scenario() -> None:
        for table in metadata.sorted_tables:
            # These contain only built-in words, and have rows already.
            if table.name not in ("meta", "pulse"):
                await store.write(partial(add, table=table, row=longest_row(table)))
        if kind == "postgresql":  # the test would notice
            attributes = metadata.tables["run_attributes"]
            value = "".join(chr(chance.randrange(0x10000, 0x110000)) for _ in range(700))
            with pytest.raises(DBAPIError, match="index row size"):
                await store.write(
                    lambda connection: add(
                        connection, attributes, {**longest_row(attributes), "value": value}
                    )
                )

    def add(connection: Connection, table: Table, row: dict[str, Any]) -> None:
        connection.execute(insert(table), row)

    try:
        asyncio.run(scenario())
    finally:
        store.close()
