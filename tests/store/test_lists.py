"""Every list costs the same on a deep page as on the first one."""

import ast
import asyncio
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Table, insert

import runyard.store
from runyard.server.services.runs.filters import parse_filter
from runyard.store import Store, audit, documents, outputs
from runyard.store.access import keys
from runyard.store.datasets import assets, datasets, imports, versions
from runyard.store.lists import run_query
from runyard.store.lists.run_filter import RunFilter
from runyard.store.lists.run_query import RunOrder
from runyard.store.tables import metadata
from tests.support.many_runs import NEWEST_MS, insert_runs
from tests.support.vm_steps import count_steps

COUNT, SIZE = 4_000, 50
PLACE = {"org": "o", "dataset_id": "d"}


def fill_columns(table: Table, **values: Any) -> dict[str, Any]:
    """Return a row with a value in every column."""
    kinds = {int: 1, str: "x", bytes: b"{}", bool: False, float: 1.0}
    return {column.name: kinds[column.type.python_type] for column in table.columns} | values


TABLES = (
    *("flows", "training_projects", "datasets", "imports", "dataset_versions", "dataset_exports"),
    *("bulk_deletions", "assets", "keys", "outputs", "audit"),
)


def insert_rows(connection: Connection) -> None:
    for name in TABLES:
        table = metadata.tables[name]
        rows = []
        for number in range(COUNT):
            id = f"{number:08d}"
            own = {"id": id, "time_created": number // 3, "number": number + 1, "filename": id}
            given = {**PLACE, "run_id": "r", "kind": "k", **own}
            known = {key: value for key, value in given.items() if key in table.c}
            rows.append(fill_columns(table, **known))
        connection.execute(insert(table), rows)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("lists") / "a.db")
    asyncio.run(opened.write(insert_rows))
    yield opened
    opened.close()


def list_assets(sorting: str, *, descending: bool) -> Any:
    def page(connection: Connection, after: Any, limit: int) -> Sequence[Any]:
        return assets.page(
            connection,
            **PLACE,
            sorting=sorting,
            descending=descending,
            like=(),
            after=after,
            limit=limit,
        )

    return page, lambda row: (assets.get_sort_value(row, sorting), row.id)


def by_time(function: Any, *arguments: Any, **key: Any) -> Any:
    def page(connection: Connection, after: Any, limit: int) -> Sequence[Any]:
        return function(connection, *arguments, **key, after=after, limit=limit)  # type: ignore[no-any-return]

    return page, lambda row: (row.time_created, row.id)


def list_versions(connection: Connection, after: Any, limit: int) -> Sequence[Any]:
    return versions.page(connection, **PLACE, after=after, limit=limit)


def list_audit(connection: Connection, after: Any, limit: int) -> Sequence[Any]:
    return audit.page(connection, orgs=["o"], before=after, limit=limit)


def list_outputs(connection: Connection, after: Any, limit: int) -> Sequence[Any]:
    return outputs.page(connection, org="o", run_id="r", after=after or 0, limit=limit)


LISTS = {
    "flows": by_time(documents.page, metadata.tables["flows"], org="o"),
    "training projects": by_time(documents.page, metadata.tables["training_projects"], org="o"),
    "datasets": by_time(datasets.page, org="o"),
    "imports": by_time(imports.page, **PLACE, kind="k"),
    "exports": by_time(versions.job_page, metadata.tables["dataset_exports"], **PLACE),
    "bulk deletions": by_time(versions.job_page, metadata.tables["bulk_deletions"], **PLACE),
    "keys": by_time(keys.page, org="o"),
    "versions": (list_versions, lambda row: (row.number, row.id)),
    "audit": (list_audit, lambda row: row.number),
    "outputs": (list_outputs, lambda row: row.number),
    "assets": list_assets("assetId", descending=False),
    "assets, last first": list_assets("assetId", descending=True),
    "assets by name": list_assets("filename", descending=False),
    "assets by name, last first": list_assets("filename", descending=True),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_deep_page_costs_as_much_as_the_first(store: Store, name: str) -> None:
    page, get_position = LISTS[name]
    rows = store.read(lambda connection: page(connection, None, COUNT))
    assert len(rows) == COUNT
    first = count_steps(store, lambda connection: page(connection, None, SIZE))
    deep = get_position(rows[-SIZE - 1])
    assert store.read(lambda connection: page(connection, deep, SIZE)) == rows[-SIZE:]
    # The comparison itself takes a few instructions for each row.
    assert count_steps(store, lambda connection: page(connection, deep, SIZE)) <= 2 * first


def test_no_list_compares_positions_with_or() -> None:
    """Such a condition is evaluated for each row from the first one; see ``keyset``."""
    for path in Path(runyard.store.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "or_":
                parts = [ast.unparse(argument) for argument in node.args]
                assert not any("id < " in part or "id > " in part for part in parts), (
                    f"{path}:{node.lineno}"
                )


RUNS, FEW = 12_000, 1_000
# What the page of runs can ask for, in any order.
FILTERS = [
    "", "condition:Failed", "condition:Pending,Running", "flow:flow-detect", "flow:detect",
    "owner=kim", "owner!=kim", "release=1", "metric.iou>0.6", "metric.iou>0.999", "detect", "lora",
    "condition:Failed owner=kim", "detect condition:Failed", "-lora", "duration>9h", "created>1h",
]  # fmt: skip
ORDERS = [
    RunOrder(field=field, is_descending=is_descending, metric="iou")
    for field in ("created", "name", "duration", "metric")
    for is_descending in (True, False)
]


@pytest.fixture(scope="module")
def run_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Store]]:
    few, many = (Store(tmp_path_factory.mktemp("runs") / f"{name}.db") for name in ("few", "many"))
    insert_runs(few, FEW, org="o")
    insert_runs(many, RUNS, org="o")
    yield few, many
    few.close()
    many.close()


def count_run_steps(store: Store, filter: RunFilter, order: RunOrder, after: Any) -> int:
    return count_steps(store, lambda connection: read_runs(connection, filter, order, after))


def read_runs(connection: Connection, filter: RunFilter, order: RunOrder, after: Any) -> Any:
    return run_query.read_page(
        connection, org="o", filter=filter, order=order, after=after, limit=SIZE, now_ms=NEWEST_MS
    )


@pytest.mark.parametrize("rare", [100, run_query.RARE])  # 100: as if there were a million runs
def test_a_page_of_runs_costs_the_same_with_many_runs_and_deep_in_the_list(
    run_stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch, rare: int
) -> None:
    few, many = run_stores
    monkeypatch.setattr(run_query, "RARE", rare)
    monkeypatch.setattr(run_query, "READ_IN_ORDER", 15 * rare)
    monkeypatch.setattr(run_query, "SEARCHED_IN_ORDER", 3 * rare)
    for text, order in itertools.product(FILTERS, ORDERS):
        filter = parse_filter(text)
        rows = many.read(partial(read_runs, filter=filter, order=order, after=None))
        after = (rows[-1].sort_value, rows[-1].number) if rows else None
        small = count_run_steps(few, filter, order, None)
        large = count_run_steps(many, filter, order, None)
        further = count_run_steps(many, filter, order, after)
        # Either the few matches are sorted, or one of so many runs of the order matches.
        examined = rare + SIZE * RUNS // rare
        most = 6 * max(small, 20) + 2 * SIZE + examined * 16 // 100
        assert large <= most and further <= most, (text, order, small, large, further)


@pytest.mark.parametrize("order", ORDERS[:4], ids=lambda order: f"{order.field}")
def test_a_page_deep_in_the_list_of_runs_costs_as_much_as_the_first(
    run_stores: tuple[Store, Store], order: RunOrder
) -> None:
    _, many = run_stores
    first = count_run_steps(many, RunFilter(), order, None)
    read = partial(read_runs, filter=RunFilter(), order=order)
    rows = many.read(
        lambda connection: run_query.read_page(
            connection,
            org="o",
            filter=RunFilter(),
            order=order,
            after=None,
            limit=RUNS,
            now_ms=NEWEST_MS,
        )
    )
    last = rows[-SIZE - 1]
    after = (last.sort_value, last.number)
    assert [row.id for row in many.read(partial(read, after=after))] == [
        row.id for row in rows[-SIZE:]
    ]
    assert count_run_steps(many, RunFilter(), order, after) <= 1.2 * first + 2
