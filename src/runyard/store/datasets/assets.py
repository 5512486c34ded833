"""Rows of images, their annotation records, and their bytes.

Callers keep the inserted batches short.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    func,
    join,
    or_,
    select,
    update,
)

from runyard.store.engines.bulk_insert import insert_many
from runyard.store.lists import keyset
from runyard.store.tables import AnyRow, assets, contents, records

BATCH_SIZE = 500  # values in one query: databases limit their number

Sorting = Literal["default", "assetId", "filename", "lastModified.contents", "metadata.fileSize"]
_SORT_COLUMNS = {
    "default": assets.c.id,
    "assetId": assets.c.id,
    "filename": assets.c.filename,
    "lastModified.contents": assets.c.contents_updated,
    "metadata.fileSize": assets.c.size_bytes,
}
SORTINGS = tuple(_SORT_COLUMNS)


def get(connection: Connection, *, org: str, dataset_id: str, asset_id: str) -> AnyRow | None:
    return connection.execute(
        select(assets).where(*_match_asset(org, dataset_id, asset_id))
    ).one_or_none()


def find_by_name(
    connection: Connection, *, org: str, dataset_id: str, names: Collection[str]
) -> dict[str, AnyRow]:
    """Find assets by file name.

    Columns filename, id, content, size_bytes, record_count, generation, width, height, mime,
    split.
    """
    found: dict[str, AnyRow] = {}
    table = assets.c
    columns = (
        table.filename,
        table.id,
        table.content,
        table.size_bytes,
        table.record_count,
        table.generation,
        table.width,
        table.height,
        table.mime,
        table.split,
    )
    for some in _split_batches(names):
        query = select(*columns).where(
            assets.c.org == org, assets.c.dataset_id == dataset_id, assets.c.filename.in_(some)
        )
        found |= {row.filename: row for row in connection.execute(query)}
    return found


def page(
    connection: Connection,
    *,
    org: str,
    dataset_id: str,
    sorting: str,
    descending: bool,
    like: Sequence[str],
    after: tuple[Any, str] | None,
    limit: int,
) -> Sequence[AnyRow]:
    """Return a page in the given order, after (sort value, id).

    ``like``: texts that the file name contains.
    """
    column = _SORT_COLUMNS[sorting]
    query = select(assets).where(*_match_filenames(org, dataset_id, like))
    order = (column,) if column is assets.c.id else (column, assets.c.id)
    position = None if after is None else (after[1],) if len(order) == 1 else after
    return keyset.read_page(
        connection, query, order, after=position, limit=limit, is_descending=descending
    )


def get_sort_value(row: AnyRow, sorting: str) -> Any:
    """Return the value of a row by which a page is sorted."""
    return row._mapping[_SORT_COLUMNS[sorting].name]


def count(connection: Connection, *, org: str, dataset_id: str, like: Sequence[str]) -> int:
    query = select(func.count()).select_from(assets).where(*_match_filenames(org, dataset_id, like))
    return int(connection.execute(query).scalar_one())


def list_ids(
    connection: Connection,
    *,
    org: str,
    dataset_id: str,
    named: Sequence[str] | None,
    like: Sequence[str],
    limit: int,
) -> list[str]:
    """Return ids of assets, filtered by names or ids and by texts that the file name contains."""
    where = list(_match_filenames(org, dataset_id, like))
    if named is not None:
        some = list(named)  # at most AT_ONCE
        where.append(or_(assets.c.id.in_(some), assets.c.filename.in_(some)))
    return list(
        connection.execute(
            select(assets.c.id).where(*where).order_by(assets.c.id).limit(limit)
        ).scalars()
    )


def list_by_filename(
    connection: Connection,
    *,
    org: str,
    dataset_id: str,
    after: str,
    limit: int,
    with_bytes: bool = False,
) -> Sequence[AnyRow]:
    """Return assets by file name, after a name.

    ``with_bytes`` adds the location of their bytes (blob, offset).
    """
    query = select(assets)
    if with_bytes:
        query = select(assets, contents.c.sha256.label("blob"), contents.c.offset).join(
            contents, and_(contents.c.org == assets.c.org, contents.c.content == assets.c.content)
        )
    query = query.where(
        assets.c.org == org, assets.c.dataset_id == dataset_id, assets.c.filename > after
    )
    return connection.execute(query.order_by(assets.c.filename).limit(limit)).all()


def iter_records(connection: Connection, *, org: str, dataset_id: str) -> Iterator[AnyRow]:
    """Yield every record of a dataset with its image, by file name and then in insertion order.

    Rows are streamed. Columns filename, content, size_bytes, width, height, mime, split, contents.
    """
    table = assets.c
    columns = (
        table.filename,
        table.content,
        table.size_bytes,
        table.width,
        table.height,
        table.mime,
        table.split,
    )
    is_of = and_(
        records.c.org == table.org,
        records.c.dataset_id == table.dataset_id,
        records.c.asset_id == table.id,
    )
    query = (
        select(*columns, records.c.contents)
        .select_from(join(assets, records, is_of))
        .where(table.org == org, table.dataset_id == dataset_id)
        .order_by(table.filename, records.c.number)
    )
    with connection.execute(
        query, execution_options={"stream_results": True, "yield_per": BATCH_SIZE}
    ) as result:
        yield from result


def find_blob_span(connection: Connection, *, org: str, content: str) -> AnyRow | None:
    """Return the location of an image's bytes; columns of ``contents``."""
    return connection.execute(
        select(contents).where(contents.c.org == org, contents.c.content == content)
    ).one_or_none()


def find_blob_spans(
    connection: Connection, *, org: str, hashes: Collection[str]
) -> dict[str, AnyRow]:
    """Return the locations of the bytes of those images that are stored, by content hash."""
    found: dict[str, AnyRow] = {}
    for some in _split_batches(hashes):
        query = select(contents).where(contents.c.org == org, contents.c.content.in_(some))
        found |= {row.content: row for row in connection.execute(query)}
    return found


def find_used_contents(connection: Connection, *, org: str, hashes: Collection[str]) -> set[str]:
    """Return the content hashes that an asset of any dataset uses."""
    found = set[str]()
    for some in _split_batches(hashes):
        query = (
            select(assets.c.content)
            .where(assets.c.org == org, assets.c.content.in_(some))
            .distinct()
        )
        found |= set(connection.execute(query).scalars())
    return found


def add_blob_spans(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    insert_many(connection, contents, rows)


def add(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    insert_many(connection, assets, rows)


def change(
    connection: Connection, *, org: str, dataset_id: str, asset_id: str, values: Mapping[str, Any]
) -> None:
    connection.execute(
        update(assets).where(*_match_asset(org, dataset_id, asset_id)).values(**values)
    )


def set_split(
    connection: Connection,
    *,
    org: str,
    dataset_id: str,
    names: Collection[str],
    split: str | None,
) -> None:
    """Set the split of assets, by file name; None for no split."""
    for some in _split_batches(names):
        connection.execute(
            update(assets)
            .where(
                assets.c.org == org, assets.c.dataset_id == dataset_id, assets.c.filename.in_(some)
            )
            .values(split=split)
        )


def remove(
    connection: Connection, *, org: str, dataset_id: str, ids: Collection[str]
) -> Sequence[AnyRow]:
    """Remove assets and their records; return the removed rows of assets."""
    removed: list[AnyRow] = []
    for some in _split_batches(ids):
        where = (assets.c.org == org, assets.c.dataset_id == dataset_id, assets.c.id.in_(some))
        removed += connection.execute(select(assets).where(*where)).all()
        connection.execute(
            delete(records).where(
                records.c.org == org,
                records.c.dataset_id == dataset_id,
                records.c.asset_id.in_(some),
            )
        )
        connection.execute(delete(assets).where(*where))
    return removed


def add_records(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    insert_many(connection, records, rows)


_CHANGE_RECORD = update(records).where(
    records.c.org == bindparam("of_org"),
    records.c.dataset_id == bindparam("of_dataset"),
    records.c.number == bindparam("of_number"),
)


def change_records(
    connection: Connection,
    *,
    org: str,
    dataset_id: str,
    changes: Iterable[tuple[int, Mapping[str, Any]]],
) -> None:
    """Change records by number; each change names the same columns."""
    rows = [
        {"of_org": org, "of_dataset": dataset_id, "of_number": number, **values}
        for number, values in changes
    ]
    if rows:
        connection.execute(_CHANGE_RECORD, rows)


def add_record_counts(
    connection: Connection, *, org: str, dataset_id: str, more: Mapping[str, int], time_ms: int
) -> None:
    """Add to the record counts of assets, by asset id."""
    by_number: dict[int, list[str]] = {}
    for asset_id, number in more.items():
        by_number.setdefault(number, []).append(asset_id)
    for number, ids in by_number.items():  # nearly always one number
        for some in _split_batches(ids):
            connection.execute(
                update(assets)
                .where(
                    assets.c.org == org, assets.c.dataset_id == dataset_id, assets.c.id.in_(some)
                )
                .values(record_count=assets.c.record_count + number, last_updated=time_ms)
            )


def remove_records(
    connection: Connection, *, org: str, dataset_id: str, numbers: Collection[int]
) -> None:
    for some in _split_batches(numbers):
        connection.execute(
            delete(records).where(
                records.c.org == org, records.c.dataset_id == dataset_id, records.c.number.in_(some)
            )
        )


def get_record(connection: Connection, *, org: str, dataset_id: str, number: int) -> AnyRow | None:
    query = select(records).where(
        records.c.org == org, records.c.dataset_id == dataset_id, records.c.number == number
    )
    return connection.execute(query).one_or_none()


def find_records(
    connection: Connection, *, org: str, dataset_id: str, ids: Collection[str]
) -> dict[str, AnyRow]:
    """Find records by id, without their contents; columns id, number, asset_id, generation."""
    found: dict[str, AnyRow] = {}
    for some in _split_batches(ids):
        query = select(
            records.c.id, records.c.number, records.c.asset_id, records.c.generation
        ).where(records.c.org == org, records.c.dataset_id == dataset_id, records.c.id.in_(some))
        found |= {row.id: row for row in connection.execute(query)}
    return found


def list_records_from(
    connection: Connection, *, org: str, dataset_id: str, asset_id: str, number: int, limit: int
) -> Sequence[AnyRow]:
    """Return records of an asset from a number on, in insertion order."""
    query = select(records).where(
        records.c.org == org,
        records.c.dataset_id == dataset_id,
        records.c.asset_id == asset_id,
        records.c.number >= number,
    )
    return connection.execute(query.order_by(records.c.number).limit(limit)).all()


def list_records_that_begin(
    connection: Connection, *, org: str, dataset_id: str, prefix: bytes
) -> Sequence[AnyRow]:
    """Return the records whose contents begin with these bytes.

    Columns number, asset_id, generation, contents.
    """
    table = records.c
    beginning = func.substr(table.contents, 1, len(prefix), type_=table.contents.type)
    query = select(table.number, table.asset_id, table.generation, table.contents).where(
        table.org == org, table.dataset_id == dataset_id, beginning == prefix
    )
    return connection.execute(query.order_by(table.number)).all()


def list_records(
    connection: Connection, *, org: str, dataset_id: str, asset_ids: Collection[str]
) -> Sequence[AnyRow]:
    """Return every record of some assets, in insertion order."""
    found: list[AnyRow] = []
    for some in _split_batches(asset_ids):
        query = select(records).where(
            records.c.org == org, records.c.dataset_id == dataset_id, records.c.asset_id.in_(some)
        )
        found += connection.execute(query).all()
    return sorted(found, key=lambda row: int(row.number))


def _match_asset(org: str, dataset_id: str, asset_id: str) -> tuple[ColumnElement[bool], ...]:
    return assets.c.org == org, assets.c.dataset_id == dataset_id, assets.c.id == asset_id


def _match_filenames(
    org: str, dataset_id: str, like: Sequence[str]
) -> tuple[ColumnElement[bool], ...]:
    return (
        assets.c.org == org,
        assets.c.dataset_id == dataset_id,
        *(assets.c.filename.contains(text, autoescape=True) for text in like),
    )


def _split_batches(values: Collection[Any]) -> Iterable[list[Any]]:
    ordered = sorted(values)
    return (ordered[start : start + BATCH_SIZE] for start in range(0, len(ordered), BATCH_SIZE))
