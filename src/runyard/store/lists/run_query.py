"""Queries of the list of runs: pages in any order, ids of matching runs, counts.

A query has one *driver*: the index that it reads rows from, either that of the order or that of one
term. The other terms are checked for each of these rows. A term that at most ``RARE`` runs match is
the best driver, and its matches are sorted. If every term is frequent, the index of the order soon
fills a page; of the terms whose index has the same order, the one whose matches are farthest apart
drives. SQLite keeps no statistics, so columns that may not drive are hidden from its planner.
PostgreSQL has statistics and decides by itself.

Statements are cached by their shape, since building one costs more than running it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
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

from runyard import limits
from runyard.limits import clean_text
from runyard.store.engines.prepared import Prepared
from runyard.store.lists.duration import SPLIT, encode_running
from runyard.store.lists.run_filter import RunFilter, Term
from runyard.store.lists.run_list import MAX_TIME_MS, get_first_number
from runyard.store.lists.run_metrics import EVALUATION
from runyard.store.lists.texts import build_pattern, quote_like, quote_match
from runyard.store.tables import AnyRow, run_attributes, run_counts, run_list, run_metrics, runs

RARE = 5_000  # runs that a term may match to be the best driver
MOST_COUNTED = 10_000
SCANNED = 20_000  # runs of the driver that a count examines

OrderField = Literal["created", "name", "duration", "metric"]


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """The order of a list: a field, and the key of a metric."""

    field: OrderField = "created"
    is_descending: bool = True
    metric: str = ""


NEWEST_FIRST = RunOrder()
_SORT_COLUMNS = {
    "created": run_list.c.number,
    "name": run_list.c.name_key,
    "duration": run_list.c.duration,
    "metric": run_metrics.c.value,
}
_search = table("run_search", column("rowid"), column("run_search"))


@dataclass(frozen=True)
class _Shape:
    """A term without its values: what decides the text of its statement."""

    field: str
    operator: str
    is_negated: bool
    values: int  # number of conditions; 0 for an attribute with any value
    is_alternative: bool = False  # one of these terms must match


@dataclass(frozen=True)
class _Source:
    """What a query reads rows from: the index of the order, or one of a term.

    ``term`` is the index of the term, -1 for none.
    """

    kind: str
    term: int = -1
    is_ordered: bool = True  # by number


@dataclass(frozen=True)
class _Driver:
    """One or more sources that together contain every match."""

    sources: tuple[_Source, ...]

    def is_in_order(self, order: RunOrder) -> bool:
        """Return whether the indexes have the order of the list."""
        return all(_is_in_order(source, order.field) for source in self.sources)


@dataclass(frozen=True)
class _Plan:
    """The terms of a filter, ready to be compiled and run."""

    shapes: tuple[_Shape, ...]
    values: Mapping[str, Any]
    drivers: tuple[_Driver, ...]
    has_low: bool
    has_high: bool
    is_sqlite: bool


def read_page(
    connection: Connection,
    *,
    org: str,
    filter: RunFilter,
    order: RunOrder = NEWEST_FIRST,
    after: tuple[Any, int] | None,
    limit: int,
    now_ms: int,
) -> Sequence[AnyRow]:
    """Return a page of runs after the position (sort value, number).

    Columns document, time_created, id, number, sort_value.
    """
    plan = _make_plan(connection, org, filter, order, now_ms)
    driver = _choose_driver(connection, plan, order)
    found = _run(connection, plan, driver, order, after, limit, is_document=True)
    return found


def list_ids(
    connection: Connection,
    *,
    org: str,
    filter: RunFilter,
    only_killable: bool,
    untagged: Mapping[str, str | None] = MappingProxyType({}),
    limit: int,
    now_ms: int,
) -> list[str]:
    """Return ids of matching runs, newest first.

    Optionally only of those that can be killed, or that differ from these attributes.
    """
    more: list[Term] = []
    if only_killable:
        more = [
            Term(field="condition", value=("Pending", "Running")),
            Term(field="killed", value=None, is_negated=True),
        ]
    more += [
        Term(field="attribute", key=key, value=value, is_negated=value is not None)
        for key, value in untagged.items()
    ]
    plan = _make_plan(
        connection, org, filter, NEWEST_FIRST, now_ms, more=more, alternatives=len(untagged)
    )
    driver = _choose_driver(connection, plan, NEWEST_FIRST)
    found = _run(connection, plan, driver, NEWEST_FIRST, None, limit, is_document=False)
    return [row.run_id for row in found]


def count(
    connection: Connection, *, org: str, filter: RunFilter, now_ms: int
) -> tuple[dict[str, int], bool]:
    """Count the matching runs by condition; return that and whether there may be more.

    Exact without terms and for conditions alone. Otherwise at most ``MOST_COUNTED`` runs are
    counted, out of at most ``SCANNED`` of the best driver.
    """
    terms = filter.list_terms(now_ms=now_ms)
    if all(term.field == "condition" for term in terms):
        counts = {row.condition: int(row.runs) for row in _read_counts(connection, org) if row.runs}
        wanted = [(set(term.value or ()), term.is_negated) for term in terms]  # type: ignore[arg-type]
        matching = {
            name: number
            for name, number in counts.items()
            if all((name in names) is not is_negated for names, is_negated in wanted)
        }
        return matching, False
    plan = _make_plan(connection, org, filter, NEWEST_FIRST, now_ms)
    driver = _choose_driver(connection, plan, NEWEST_FIRST)
    statement = _build_count(driver, plan.shapes, plan.has_low, plan.has_high, plan.is_sqlite)
    values = {**plan.values, "max_rows": MOST_COUNTED + 1, "max_scanned": SCANNED}
    rows = connection.execute(statement, values).all()
    found = {row.condition: int(row.found) for row in rows}
    if sum(found.values()) > MOST_COUNTED:
        last = max(found, key=lambda name: found[name])
        found[last] -= sum(found.values()) - MOST_COUNTED
        return found, True
    return found, bool(rows) and int(rows[0].scanned) >= SCANNED


def _read_counts(connection: Connection, org: str) -> Sequence[AnyRow]:
    return connection.execute(_COUNTS, {"org": org}).all()


_COUNTS = select(run_counts.c.condition, run_counts.c.runs).where(
    run_counts.c.org == bindparam("org")
)


# From a filter to a plan.


def _make_plan(
    connection: Connection,
    org: str,
    filter: RunFilter,
    order: RunOrder,
    now_ms: int,
    *,
    more: Sequence[Term] = (),
    alternatives: int = 0,
) -> _Plan:
    is_sqlite = connection.dialect.name == "sqlite"
    shapes: list[_Shape] = []
    values: dict[str, Any] = {"org": org}
    low, high = 0, get_first_number(MAX_TIME_MS)
    for term in (*filter.list_terms(now_ms=now_ms), *more):
        if term.field == "created":
            low, high = _narrow(term, low, high)
            continue
        shapes.append(_bind(connection, org, term, len(shapes), values, now_ms))
    for index in range(len(shapes) - alternatives, len(shapes)):
        shapes[index] = dataclasses.replace(shapes[index], is_alternative=True)
    if order.field == "metric":
        values["order_metric"] = _find_metric(connection, org, order.metric)
    has_low, has_high = low > 0, high < get_first_number(MAX_TIME_MS)
    values |= {"low": low} if has_low else {}
    values |= {"high": high} if has_high else {}
    drivers = _list_drivers(shapes, values)
    if order.field != "created" and (has_low or has_high):
        kind = f"created{' low' if has_low else ''}{' high' if has_high else ''}"
        drivers.append(_Driver((_Source(kind),)))
    return _Plan(
        shapes=tuple(shapes),
        values=values,
        drivers=tuple(drivers) if is_sqlite else (),
        has_low=has_low,
        has_high=has_high,
        is_sqlite=is_sqlite,
    )


def _narrow(term: Term, low: int, high: int) -> tuple[int, int]:
    """Narrow a range of numbers, the end excluded, by a time of creation."""
    time_ms = int(term.value) if isinstance(term.value, int | float) else 0
    first, next_first = get_first_number(time_ms), get_first_number(time_ms + 1)
    if term.operator == ">":
        return max(low, next_first), high
    if term.operator == ">=":
        return max(low, first), high
    return low, min(high, first if term.operator == "<" else next_first)


def _bind(
    connection: Connection,
    org: str,
    term: Term,
    index: int,
    values: dict[str, Any],
    now_ms: int,
) -> _Shape:
    """Add the values of a term to those of the statement; return its shape."""
    name, count, value = f"v{index}", 1, term.value
    if isinstance(value, tuple):
        count = len(value)
        values |= {f"{name}_{place}": each for place, each in enumerate(value)}
    elif term.field in ("text", "name"):
        pattern = build_pattern(str(value))
        values[name] = quote_like(pattern)
        match = quote_match(pattern, column="name_text" if term.field == "name" else None)
        count = 0 if match is None else 1
        values |= {} if match is None else {f"m{index}": match}
    elif term.field == "flow":
        values[name] = value
        values[f"n{index}"] = clean_text(str(value), limits.RUN_NAME)
        count = _find_flow(connection, org, values[name], values[f"n{index}"])
    elif term.field == "duration":
        assert isinstance(value, int)  # noqa: S101 - the parser makes no other
        value = max(value, 1)  # a run that never started has none
        values[name], values[f"r{index}"] = value, encode_running(value, now_ms=now_ms)
    elif term.field == "metric":
        values[name], values[f"k{index}"] = value, _find_metric(connection, org, term.key)
    elif term.field == "attribute":
        values[f"k{index}"] = term.key
        count = 0 if value is None else 1
        values |= {} if value is None else {name: value}
    elif value is None:
        count = 0
    else:
        values[name] = value
    return _Shape(term.field, term.operator, term.is_negated, count)


def _find_flow(connection: Connection, org: str, id: object, name: object) -> int:
    """Return 1 if runs have this flow by id, 2 if by name, 3 if both or none."""
    by_id, by_name = (
        connection.execute(statement, {"org": org, "value": value}).first() is not None
        for statement, value in ((_ANY_FLOW, id), (_ANY_FLOW_NAME, name))
    )
    return 3 if by_id == by_name else 1 if by_id else 2


_ANY_FLOW, _ANY_FLOW_NAME = (
    select(run_list.c.number)
    .where(run_list.c.org == bindparam("org"), named == bindparam("value"))
    .limit(1)
    for named in (run_list.c.flow_id, run_list.c.flow_name)
)
_ANY_METRIC = (
    select(run_metrics.c.number)
    .where(run_metrics.c.org == bindparam("org"), run_metrics.c.key == bindparam("key"))
    .limit(1)
)


def _find_metric(connection: Connection, org: str, key: str) -> str:
    """Return the key of a metric that was named with or without ``validation/``."""
    found = connection.execute(_ANY_METRIC, {"org": org, "key": key}).first()
    if found is not None or key.startswith(EVALUATION):
        return key
    other = EVALUATION + key
    found = connection.execute(_ANY_METRIC, {"org": org, "key": other}).first()
    return key if found is None else other


# Drivers, for SQLite.


def _list_drivers(shapes: Sequence[_Shape], values: Mapping[str, Any]) -> list[_Driver]:
    """Return what may drive the query besides the index of the order."""
    drivers: list[_Driver] = []
    texts = [index for index, shape in enumerate(shapes) if _is_indexed_text(shape)]
    if texts:
        drivers.append(_Driver((_Source("search", texts[0]), _Source("unindexed", texts[0]))))
    for index, shape in enumerate(shapes):
        if shape.is_negated or shape.is_alternative:
            continue
        if shape.field == "flow":
            kinds = {1: ("flow id",), 2: ("flow name",), 3: ("flow id", "flow name")}[shape.values]
            drivers.append(_Driver(tuple(_Source(kind, index) for kind in kinds)))
        elif shape.field in ("flow id", "project", "id"):
            drivers.append(_Driver((_Source(shape.field, index),)))
        elif shape.field == "condition":
            some = tuple(_Source(f"condition {n}", index) for n in range(shape.values))
            drivers.append(_Driver(some))
        elif shape.field == "attribute":
            kind = "attribute" if shape.values else "tag"
            drivers.append(_Driver((_Source(kind, index, is_ordered=bool(shape.values)),)))
        elif shape.field == "metric":
            is_of_order = values[f"k{index}"] == values.get("order_metric")
            kind = "metric of order" if is_of_order else "metric"
            drivers.append(_Driver((_Source(kind, index, is_ordered=False),)))
        elif shape.field == "duration":
            kinds = ("duration ended", "duration running")
            drivers.append(_Driver(tuple(_Source(each, index, is_ordered=False) for each in kinds)))
    return drivers


def _is_indexed_text(shape: _Shape) -> bool:
    return shape.field in ("text", "name") and not shape.is_negated and shape.values == 1


def _choose_driver(connection: Connection, plan: _Plan, order: RunOrder) -> _Driver:
    """Return a driver with few matches, or else one whose matches come in the order of the list."""
    default = _Driver((_Source("order"),))
    if not plan.drivers:
        return default
    if len(plan.drivers) == 1 and plan.drivers[0].is_in_order(order):
        return plan.drivers[0]
    best, farthest = default, -1
    for driver in plan.drivers:
        reach = _probe(connection, plan, driver)
        if reach is None:
            return driver
        if driver.is_in_order(order) and (farthest < 0 or reach < farthest):
            best, farthest = driver, reach
    return best


def _probe(connection: Connection, plan: _Plan, driver: _Driver) -> int | None:
    """Return the number of the match after the ``RARE`` newest ones of a driver.

    None if it has no more than that.
    """
    found = [
        connection.execute(_build_probe(source, plan.shapes), {**plan.values, "skipped": RARE})
        .scalars()
        .first()
        for source in driver.sources
    ]
    reached = [int(number) for number in found if number is not None]
    return max(reached) if reached else None


# Statements.


def _run(
    connection: Connection,
    plan: _Plan,
    driver: _Driver,
    order: RunOrder,
    after: tuple[Any, int] | None,
    limit: int,
    *,
    is_document: bool,
) -> Sequence[AnyRow]:
    values = {**plan.values, "max_rows": limit}
    if after is not None:
        values |= {"after_value": after[0], "after_number": after[1]}
    found: dict[int, AnyRow] = {}
    for source in driver.sources:
        statement = _prepare_page(
            source,
            plan.shapes,
            (order.field, order.is_descending),
            is_after=after is not None,
            has_low=plan.has_low,
            has_high=plan.has_high,
            is_document=is_document,
            is_sqlite=plan.is_sqlite,
        )
        rows = statement.list_rows(connection, values)
        if len(driver.sources) == 1:
            return rows
        found |= {row.number: row for row in rows}
    ordered = sorted(
        found.values(), key=lambda row: (row.sort_value, row.number), reverse=order.is_descending
    )
    return ordered[:limit]


@functools.lru_cache(maxsize=512)
def _prepare_page(
    source: _Source, shapes: tuple[_Shape, ...], order: tuple[str, bool], **variant: bool
) -> Prepared:
    return Prepared(_build_page(source, shapes, order, **variant))


def _build_page(
    source: _Source,
    shapes: tuple[_Shape, ...],
    order: tuple[str, bool],
    *,
    is_after: bool,
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
        query = query.where(_compare(by, is_descending=order[1]))
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


def _compare(by: tuple[ColumnElement[Any], ...], *, is_descending: bool) -> ColumnElement[bool]:
    """Return the condition of rows after the position, as a row value."""
    number = _bind_name("after_number")
    if len(by) == 1:
        return by[0] < number if is_descending else by[0] > number
    position = tuple_(bindparam("after_value"), number)
    return tuple_(*by) < position if is_descending else tuple_(*by) > position


@functools.lru_cache(maxsize=512)
def _build_probe(source: _Source, shapes: tuple[_Shape, ...]) -> Select[Any]:
    builder = _Builder(source, shapes, "created", is_sqlite=True)
    query = builder.select_source()
    if source.is_ordered:
        query = query.order_by(builder.number.desc())
    return query.limit(1).offset(bindparam("skipped"))


@functools.lru_cache(maxsize=512)
def _build_count(
    driver: _Driver, shapes: tuple[_Shape, ...], has_low: bool, has_high: bool, is_sqlite: bool
) -> Select[Any]:
    parts = []
    for source in driver.sources:
        builder = _Builder(source, shapes, "created", is_sqlite=is_sqlite)
        part = builder.select_source().where(*builder.list_bounds(has_low, has_high))
        if source.is_ordered:
            part = part.order_by(builder.number.desc())
        parts.append(select(part.limit(bindparam("max_scanned")).subquery().c.number))
    scanned = (parts[0] if len(parts) == 1 else parts[0].union(*parts[1:])).cte("scanned")
    rest = _Builder(_Source("order"), shapes, "created", is_sqlite=is_sqlite)
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
        self, source: _Source, shapes: tuple[_Shape, ...], order: str, *, is_sqlite: bool
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
        self.sort_value: ColumnElement[Any] = (
            self.number if order == "created" else _SORT_COLUMNS[order]
        )
        if source.kind == "metric of order" and order == "metric":
            self.sort_value = _driving_metrics.c.value

    def hide(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return a column as an expression, which SQLite does not look up in an index."""
        if not self.is_sqlite:
            return column
        is_text = column.type.python_type is str
        return column.op("||")(literal_column("''")) if is_text else column + literal_column("0")

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
        return select(self.number.label("number")).where(*self._list_source_conditions())

    def list_conditions(self, *, has_low: bool, has_high: bool) -> list[ColumnElement[bool]]:
        """Return every condition: those of the source, the times, and the other terms."""
        conditions = self._list_source_conditions()
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
        is_exact = self.source.kind not in ("search", "unindexed")
        terms, alternatives = list[ColumnElement[bool]](), list[ColumnElement[bool]]()
        for index, shape in enumerate(self.shapes):
            if not (is_exact and index == self.source.term):
                term = _negate(self._build_term(index, shape), shape)
                (alternatives if shape.is_alternative else terms).append(term)
        return [*terms, or_(*alternatives)] if alternatives else terms

    def _list_source_conditions(self) -> list[ColumnElement[bool]]:
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

    def _build_term(self, index: int, shape: _Shape) -> ColumnElement[bool]:
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

    def _build_condition(self, index: int, shape: _Shape) -> ColumnElement[bool]:
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
        self, shape: _Shape, value: ColumnElement[Any], key: ColumnElement[Any]
    ) -> ColumnElement[bool]:
        """Return the condition of an attribute or a metric: a look-up by primary key."""
        other: Any = (run_attributes if shape.field == "attribute" else run_metrics).alias()
        conditions = [
            other.c.org == bindparam("org"),
            other.c.run_id == run_list.c.run_id,
            other.c.key == key,
        ]
        if shape.field == "metric":
            conditions.append(_apply_operator(other.c.value, shape.operator, value))
        elif shape.values:
            conditions.append(self.hide(other.c.value) == value)
        return exists().where(*conditions)


def _is_in_order(source: _Source, order: str) -> bool:
    """Return whether the index of a source has the order of the list."""
    if order == "created":
        return source.is_ordered
    return (
        source.kind == "order"
        or (order == "name" and source.kind.startswith("flow "))
        or (order == "duration" and source.kind.startswith(("condition ", "duration ")))
        or (order == "metric" and source.kind == "metric of order")
    )


def _bind_name(name: str) -> ColumnElement[Any]:
    return bindparam(name)


_driving_metrics = run_metrics.alias("driving_metrics")


def _negate(condition: ColumnElement[bool], shape: _Shape) -> ColumnElement[bool]:
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
