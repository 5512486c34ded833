"""Statements of the list of runs: pages, ends, numbers and counts, from one source of rows.

Columns that may not drive are hidden from SQLite's planner, see ``run_query``.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    column,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    table,
    tuple_,
)

from runyard.store.engines.prepared import Prepared
from runyard.store.lists.duration import SPLIT
from runyard.store.tables import run_attributes, run_list, run_metrics, runs

_SORT_COLUMNS = {
    "created": run_list.c.number,
    "name": run_list.c.name_key,
    "duration": run_list.c.duration,
    "metric": run_metrics.c.value,
}
_search = table("run_search", column("rowid"), column("run_search"))


@dataclass(frozen=True)
class TermShape:
    """A term without its values: what decides the text of its statement."""

    field: str
    operator: str
    is_negated: bool
    values: int  # number of conditions; 0 for an attribute with any value
    is_alternative: bool = False  # one of these terms must match


@dataclass(frozen=True)
class RowSource:
    """What a query reads rows from: the index of the order, or one of a term.

    ``term`` is the index of the term, -1 for none.
    """

    kind: str
    term: int = -1
    is_ordered: bool = True  # by number


@dataclass(frozen=True)
class Driver:
    """One or more sources that together contain every match."""

    sources: tuple[RowSource, ...]

    def is_in_order(self, order: str) -> bool:
        """Return whether the indexes have the order of the list."""
        return all(_is_in_order(source, order) for source in self.sources)


@functools.lru_cache(maxsize=512)
def prepare_page(
    source: RowSource, shapes: tuple[TermShape, ...], order: tuple[str, bool], **variant: bool
) -> Prepared:
    return Prepared(_build_page(source, shapes, order, **variant))


def _build_page(
    source: RowSource,
    shapes: tuple[TermShape, ...],
    order: tuple[str, bool],
    *,
    is_after: bool,
    is_until: bool,
    has_low: bool,
    has_high: bool,
    is_document: bool,
    is_sqlite: bool,
) -> Select[Any]:
    builder = _Builder(source, shapes, order[0], is_sqlite=is_sqlite)
    number, value = builder.number, builder.sort_value
    query = builder.select(value.label("sort_value"), number.label("number"), run_list.c.run_id)
    query = query.where(*builder.list_conditions(has_low=has_low, has_high=has_high))
    by: tuple[ColumnElement[Any], ...] = (number,) if order[0] == "created" else (value, number)
    if not builder.is_in_order:  # else SQLite might read the index of the order
        by = tuple(map(builder.hide, by))
    if is_after:
        query = query.where(_compare(by, "after", is_further=True, is_descending=order[1]))
    if is_until:
        query = query.where(_compare(by, "until", is_further=False, is_descending=order[1]))
    query = query.order_by(*(each.desc() if order[1] else each for each in by))
    page = query.limit(bindparam("max_rows"))
    if not is_document:
        return page
    found = page.subquery("page")
    by_found = (found.c.sort_value, found.c.number)
    return (
        select(runs.c.document, runs.c.time_created, runs.c.id, found.c.number, found.c.sort_value)
        .join_from(found, runs, and_(runs.c.org == bindparam("org"), runs.c.id == found.c.run_id))
        .order_by(*(each.desc() if order[1] else each for each in by_found))
    )


def _compare(
    by: tuple[ColumnElement[Any], ...], position: str, *, is_further: bool, is_descending: bool
) -> ColumnElement[bool]:
    """Return the condition of rows after a position, or of those up to it, as a row value."""
    number = _bind_name(f"{position}_number")
    row: Any = by[0] if len(by) == 1 else tuple_(*by)
    given: Any = number if len(by) == 1 else tuple_(bindparam(f"{position}_value"), number)
    if is_further:
        found: ColumnElement[bool] = row < given if is_descending else row > given
    else:
        found = row >= given if is_descending else row <= given
    return found


@functools.lru_cache(maxsize=512)
def build_end(
    source: RowSource, shapes: tuple[TermShape, ...], order: tuple[str, bool], *, is_after: bool
) -> Select[Any]:
    builder, is_descending = _Builder(source, shapes, order[0], is_sqlite=True), order[1]
    by = (builder.sort_value, builder.number)
    query = select(*by).where(*builder.list_source_conditions())
    if is_after:
        query = query.where(_compare(by, "after", is_further=True, is_descending=is_descending))
    query = query.order_by(*(each.desc() if is_descending else each for each in by))
    return query.limit(1).offset(bindparam("skipped"))


@functools.lru_cache(maxsize=512)
def build_numbers(source: RowSource, shapes: tuple[TermShape, ...]) -> Select[Any]:
    builder = _Builder(source, shapes, "created", is_sqlite=True)
    query = builder.select_source()
    if source.is_ordered:
        query = query.order_by(builder.number.desc())
    return query.limit(bindparam("max_rows")).offset(bindparam("skipped"))


@functools.lru_cache(maxsize=512)
def build_count(
    driver: Driver, shapes: tuple[TermShape, ...], has_low: bool, has_high: bool, is_sqlite: bool
) -> Select[Any]:
    parts = []
    for source in driver.sources:
        builder = _Builder(source, shapes, "created", is_sqlite=is_sqlite)
        part = builder.select_source().where(*builder.list_bounds(has_low, has_high))
        if source.is_ordered:
            part = part.order_by(builder.number.desc())
        parts.append(select(part.limit(bindparam("max_scanned")).subquery().c.number))
    scanned = (parts[0] if len(parts) == 1 else parts[0].union(*parts[1:])).cte("scanned")
    rest = _Builder(RowSource("order"), shapes, "created", is_sqlite=is_sqlite)
    rest.listed_number = scanned.c.number
    matching = (
        select(run_list.c.condition)
        .join_from(scanned, run_list, run_list.c.number == scanned.c.number)
        .where(rest.hide(run_list.c.org) == bindparam("org"), *rest.list_terms())
        .limit(bindparam("max_rows"))
        .subquery("matching")
    )
    total = select(func.count()).select_from(scanned).scalar_subquery()
    return select(
        matching.c.condition, func.count().label("found"), total.label("scanned")
    ).group_by(matching.c.condition)


class _Builder:
    """Parts of a statement with one source."""

    def __init__(
        self, source: RowSource, shapes: tuple[TermShape, ...], order: str, *, is_sqlite: bool
    ) -> None:
        self.source, self.shapes, self.order, self.is_sqlite = source, shapes, order, is_sqlite
        self.is_metric_order = order == "metric" and source.kind == "order"
        # Whether the source yields rows in the order of the list.
        self.is_in_order = _is_in_order(source, order)
        numbers: Mapping[str, ColumnElement[Any]] = {
            "search": _search.c.rowid,
            "attribute": run_attributes.c.number,
            "tag": run_attributes.c.number,
            "metric": _driving_metrics.c.number,
            "metric of order": _driving_metrics.c.number,
        }
        self.number: ColumnElement[Any] = numbers.get(source.kind, run_list.c.number)
        if self.is_metric_order:
            self.number = run_metrics.c.number
        self.listed_number = self.number  # equal to that of the list, and often read before it
        self.sort_value: ColumnElement[Any] = (
            self.number if order == "created" else _SORT_COLUMNS[order]
        )
        if source.kind == "metric of order" and order == "metric":
            self.sort_value = _driving_metrics.c.value

    def hide(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return a column so that SQLite does not look it up in an index."""
        return _hide(column) if self.is_sqlite else column

    def select(self, *columns: ColumnElement[Any]) -> Select[Any]:
        """Return the query over the source, the list, and the metric of the order."""
        is_from_list = self.number is run_list.c.number
        is_joined = not self.is_metric_order
        query = select(*columns)
        if is_from_list:
            query = query.select_from(run_list)
        else:
            other: Any = self.number.table
            query = query.select_from(other).join(run_list, run_list.c.number == self.number)
        if self.order == "metric" and self.sort_value is run_metrics.c.value and is_joined:
            query = query.join(
                run_metrics,
                and_(
                    run_metrics.c.org == self.hide(run_list.c.org),
                    run_metrics.c.run_id == self.hide(run_list.c.run_id),
                    run_metrics.c.key == bindparam("order_metric"),
                ),
            )
        return query

    def select_source(self) -> Select[Any]:
        """Return the numbers of the source alone."""
        return select(self.number.label("number")).where(*self.list_source_conditions())

    def list_conditions(self, *, has_low: bool, has_high: bool) -> list[ColumnElement[bool]]:
        """Return every condition: those of the source, the times, and the other terms."""
        conditions = self.list_source_conditions()
        if self.number is not run_list.c.number:
            conditions.append(self.hide(run_list.c.org) == bindparam("org"))
        return [*conditions, *self.list_bounds(has_low, has_high), *self.list_terms()]

    def list_bounds(self, has_low: bool, has_high: bool) -> list[ColumnElement[bool]]:
        """Return the conditions of the time of creation."""
        if self.source.kind.startswith("created"):
            return []
        is_sought = self.source.is_ordered and self.order == "created"
        number = self.number if is_sought else self.hide(self.number)
        bounds = []
        if has_low:
            bounds.append(number >= bindparam("low"))
        if has_high:
            bounds.append(number < bindparam("high"))
        return bounds

    def list_terms(self) -> list[ColumnElement[bool]]:
        """Return the condition of each term that is not the source."""
        is_exact = self.source.kind not in ("search", "unindexed", "order of found")
        terms, alternatives = list[ColumnElement[bool]](), list[ColumnElement[bool]]()
        for index, shape in enumerate(self.shapes):
            if not (is_exact and index == self.source.term):
                term = _negate(self._build_term(index, shape), shape)
                (alternatives if shape.is_alternative else terms).append(term)
        return [*terms, or_(*alternatives)] if alternatives else terms

    def list_source_conditions(self) -> list[ColumnElement[bool]]:
        """Return what a row of the source fulfils."""
        kind, term = self.source.kind, self.source.term
        value, key, org = _bind_name(f"v{term}"), _bind_name(f"k{term}"), _bind_name("org")
        of_list = run_list.c.org == org
        if kind == "order":
            if not self.is_metric_order:
                return [of_list]
            return [run_metrics.c.org == org, run_metrics.c.key == bindparam("order_metric")]
        if kind.startswith("created"):
            low, high = run_list.c.number >= bindparam("low"), run_list.c.number < bindparam("high")
            return [
                of_list,
                *([low] if " low" in kind else []),
                *([high] if " high" in kind else []),
            ]
        if kind == "search":
            return [_search.c.run_search.op("MATCH")(bindparam(f"m{term}"))]
        if kind == "order of found":
            is_found = _search.c.run_search.op("MATCH")(bindparam(f"m{term}"))
            return [of_list, run_list.c.number.in_(select(_search.c.rowid).where(is_found))]
        if kind == "unindexed":
            return [run_list.c.is_indexed.is_(False), self.hide(run_list.c.org) == org]
        if kind in ("attribute", "tag"):
            attributes = run_attributes.c
            of_key = [attributes.org == org, attributes.key == key]
            return [*of_key, attributes.value == value] if kind == "attribute" else of_key
        if kind in ("metric", "metric of order"):
            metric = _driving_metrics.c
            compared = _apply_operator(metric.value, self.shapes[term].operator, value)
            return [metric.org == org, metric.key == key, compared]
        if kind.startswith("duration "):
            return [of_list, *self._list_duration_conditions(kind, term)]
        if kind.startswith("condition "):
            number = kind.rpartition(" ")[2]
            return [of_list, run_list.c.condition == bindparam(f"v{term}_{number}")]
        columns: Mapping[str, tuple[ColumnElement[Any], str]] = {
            "flow id": (run_list.c.flow_id, "v"),
            "flow name": (run_list.c.flow_name, "n" if self._is_flow(term) else "v"),
            "project": (run_list.c.training_project, "v"),
            "id": (run_list.c.run_id, "v"),
        }
        column, prefix = columns[kind]
        return [of_list, column == bindparam(f"{prefix}{term}")]

    def _list_duration_conditions(self, kind: str, term: int) -> list[ColumnElement[bool]]:
        duration, operator = run_list.c.duration, self.shapes[term].operator
        is_running, is_lower_bound = kind == "duration running", operator.startswith(">")
        value = _bind_name(f"{'r' if is_running else 'v'}{term}")
        conditions = [_apply_operator(duration, operator, value)]
        # One bound on each side: of two, SQLite may use the one farther away.
        if is_running and not is_lower_bound:
            conditions.append(duration > SPLIT)
        elif not is_running:
            conditions.append(duration < SPLIT if is_lower_bound else duration > 0)
        return conditions

    def _is_flow(self, term: int) -> bool:
        return self.shapes[term].field == "flow"

    def _build_term(self, index: int, shape: TermShape) -> ColumnElement[bool]:
        """Return the condition of a term on a row of the list, without its negation."""
        value, key = _bind_name(f"v{index}"), _bind_name(f"k{index}")
        if shape.field == "condition":
            return self._build_condition(index, shape)
        if shape.field == "killed":
            return exists().where(
                runs.c.org == bindparam("org"),
                runs.c.id == run_list.c.run_id,
                runs.c.killed.is_(True),
            )
        if shape.field in ("text", "name"):
            like = run_list.c.name_text.like(value, escape="\\")
            if shape.field == "name":
                return like
            return or_(like, run_list.c.text.like(value, escape="\\"))
        if shape.field == "flow":
            return or_(
                func.coalesce(run_list.c.flow_id, "") == value,
                self.hide(run_list.c.flow_name) == bindparam(f"n{index}"),
            )
        if shape.field == "duration":
            return self._build_duration(index, shape.operator)
        if shape.field in ("attribute", "metric"):
            return self._build_lookup(shape, value, key)
        columns: Mapping[str, ColumnElement[Any]] = {
            "flow id": run_list.c.flow_id,
            "project": run_list.c.training_project,
            "id": run_list.c.run_id,
        }
        return func.coalesce(columns[shape.field], "") == value

    def _build_condition(self, index: int, shape: TermShape) -> ColumnElement[bool]:
        condition = self.hide(run_list.c.condition)
        return or_(*(condition == bindparam(f"v{index}_{n}") for n in range(shape.values)))

    def _build_duration(self, index: int, operator: str) -> ColumnElement[bool]:
        duration = self.hide(run_list.c.duration)
        ended, running = _bind_name(f"v{index}"), _bind_name(f"r{index}")
        return or_(
            and_(duration > 0, duration < SPLIT, _apply_operator(duration, operator, ended)),
            and_(duration > SPLIT, _apply_operator(duration, operator, running)),
        )

    def _build_lookup(
        self, shape: TermShape, value: ColumnElement[Any], key: ColumnElement[Any]
    ) -> ColumnElement[bool]:
        """Return the condition of an attribute or a metric: a look-up in an index.

        Numbers of runs that are listed together are near each other, other than their ids.
        """
        other: Any = (run_attributes if shape.field == "attribute" else run_metrics).alias()
        conditions = [other.c.org == bindparam("org"), other.c.key == key]
        if shape.field == "attribute" and shape.values:
            return exists().where(
                *conditions, other.c.value == value, other.c.number == self.listed_number
            )
        conditions.append(other.c.run_id == run_list.c.run_id)
        if shape.field == "metric":
            conditions.append(_apply_operator(other.c.value, shape.operator, value))
        return exists().where(*conditions)


def _is_in_order(source: RowSource, order: str) -> bool:
    """Return whether the index of a source has the order of the list."""
    if order == "created":
        return source.is_ordered
    return (
        source.kind in ("order", "order of found")
        or (order == "name" and source.kind.startswith(("flow ", "condition ")))
        or (order == "duration" and source.kind.startswith(("condition ", "duration ")))
        or (order == "metric" and source.kind == "metric of order")
    )


def _hide(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column as an expression, which SQLite does not look up in an index."""
    is_text = column.type.python_type is str
    return column.op("||")(literal_column("''")) if is_text else column + literal_column("0")


def _bind_name(name: str) -> ColumnElement[Any]:
    return bindparam(name)


_driving_metrics = run_metrics.alias("driving_metrics")


def _negate(condition: ColumnElement[bool], shape: TermShape) -> ColumnElement[bool]:
    return not_(condition) if shape.is_negated else condition


def _apply_operator(
    column: ColumnElement[Any], operator: str, value: ColumnElement[Any]
) -> ColumnElement[bool]:
    compared: Mapping[str, ColumnElement[bool]] = {
        "=": column == value,
        "<": column < value,
        "<=": column <= value,
        ">": column > value,
        ">=": column >= value,
    }
    return compared[operator]


COUNT_NAMES = select(func.count()).where(
    run_list.c.org == bindparam("org"),
    run_list.c.name_key >= bindparam("first"),
    run_list.c.name_key < bindparam("last"),
)
COUNT_UNINDEXED_NAMES = select(func.count()).where(
    run_list.c.is_indexed.is_(False),
    _hide(run_list.c.org) == bindparam("org"),
    _hide(run_list.c.name_key) >= bindparam("first"),
    _hide(run_list.c.name_key) < bindparam("last"),
)
COUNT_FOUND = select(func.count()).select_from(
    select(_search.c.rowid)
    .where(_search.c.run_search.op("MATCH")(bindparam("match")))
    .limit(bindparam("most"))
    .subquery()
)
