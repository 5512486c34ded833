"""Queries of the list of runs: pages in any order, ids of matching runs, counts.

A query has one *driver*: the index that it reads rows from, either that of the order or that of one
term. The other terms are checked for each of these rows. A term that at most ``RARE`` runs match is
the best driver, and its matches are sorted. If every term is frequent, the index of the order soon
fills a page; of the terms whose index has the same order, the one whose matches are farthest apart
drives. An order that is correlated with the terms might not fill a page for long: after
``READ_IN_ORDER`` runs of it, all matches of the rarest term are sorted. SQLite keeps no statistics,
so columns that may not drive are hidden from its planner. PostgreSQL has statistics and decides by
itself.

Statements are cached by their shape, since building one costs more than running it.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
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
from runyard.store.lists.texts import (
    AFTER_TEXTS,
    build_pattern,
    fold,
    quote_like,
    quote_match,
    quote_others,
)
from runyard.store.tables import AnyRow, run_attributes, run_counts, run_list, run_metrics, runs

RARE = 5_000  # runs that a term may match to be the best driver
READ_IN_ORDER = 20_000  # runs of the order before the matches of a frequent term are sorted instead
SEARCHED_IN_ORDER = 500  # of the order of names, with a text
MOST_COUNTED = 10_000
SCANNED = 20_000  # runs of the driver that a count examines

OrderField = Literal["created", "name", "duration", "metric"]
_Position = tuple[Any, int]  # the value that a list is sorted by, and the number


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
    after: _Position | None,
    limit: int,
    now_ms: int,
) -> Sequence[AnyRow]:
    """Return a page of runs after the position (sort value, number).

    Columns document, time_created, id, number, sort_value.
    """
    plan = _make_plan(connection, org, filter, order, now_ms)
    driver, other = _choose_driver(connection, plan, order)
    if other is None:
        return _run(connection, plan, driver, order, after, limit)
    search = next((each for each in plan.drivers if each.sources[0].kind == "search"), None)
    is_search = order.field == "name" and search is not None
    skipped = SEARCHED_IN_ORDER if is_search else READ_IN_ORDER
    ends = [_find_end(connection, plan, each, order, after, skipped) for each in driver.sources]
    found = _run(connection, plan, driver, order, after, limit, ends=ends)
    if _is_complete(found, ends, order, limit):
        return found
    if is_search and search is not None:
        return _search_by_name(connection, plan, driver, search, order, after, limit)
    return _run(connection, plan, other, order, after, limit)


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
    driver, _ = _choose_driver(connection, plan, NEWEST_FIRST)
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
    driver, _ = _choose_driver(connection, plan, NEWEST_FIRST)
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
        values |= {} if match is None else {f"m{index}": match, f"t{index}": fold(str(value))}
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


def _choose_driver(
    connection: Connection, plan: _Plan, order: RunOrder
) -> tuple[_Driver, _Driver | None]:
    """Return a driver with few matches, or else one whose matches come in the order of the list.

    If that order may be correlated with another term, the second one is the driver with the fewest
    matches, which would have to be sorted.
    """
    default = _Driver((_Source("order"),))
    if not plan.drivers:
        return default, None
    if len(plan.drivers) == 1 and plan.drivers[0].is_in_order(order):
        return plan.drivers[0], None
    in_order, others = list[tuple[int, _Driver]](), list[tuple[int, _Driver]]()
    for driver in plan.drivers:
        reach = _probe(connection, plan, driver)
        if reach is None:
            return driver, None
        if driver.is_in_order(order):
            in_order.append((reach, driver))
        elif all(source.is_ordered for source in driver.sources):
            others.append((reach, driver))
    best = min(in_order, key=_get_reach)[1] if in_order else default
    return best, min(others, key=_get_reach)[1] if others else None


def _get_reach(probed: tuple[int, _Driver]) -> int:
    return probed[0]


def _probe(connection: Connection, plan: _Plan, driver: _Driver) -> int | None:
    """Return the number of the match after the ``RARE`` newest ones of a driver.

    None if it has no more than that.
    """
    found = [
        _list_numbers(connection, plan, source, limit=1, skipped=RARE) for source in driver.sources
    ]
    reached = [numbers[0] for numbers in found if numbers]
    return max(reached) if reached else None


def _list_numbers(
    connection: Connection, plan: _Plan, source: _Source, *, limit: int, skipped: int = 0
) -> Sequence[int]:
    """Return the numbers of a source, newest first."""
    values = {**plan.values, "skipped": skipped, "max_rows": limit}
    return connection.execute(_build_numbers(source, plan.shapes), values).scalars().all()


# Statements.


def _run(
    connection: Connection,
    plan: _Plan,
    driver: _Driver,
    order: RunOrder,
    after: _Position | None,
    limit: int,
    *,
    is_document: bool = True,
    ends: Sequence[_Position | None] = (),
) -> list[AnyRow]:
    """Return the first matches after a position, of each source only those up to its end."""
    values = {**plan.values, "max_rows": limit, **_bind_position("after", after)}
    found: dict[int, AnyRow] = {}
    for index, source in enumerate(driver.sources):
        end = ends[index] if ends else None
        statement = _prepare_page(
            source,
            plan.shapes,
            (order.field, order.is_descending),
            is_after=after is not None,
            is_until=end is not None,
            has_low=plan.has_low,
            has_high=plan.has_high,
            is_document=is_document,
            is_sqlite=plan.is_sqlite,
        )
        rows = statement.list_rows(connection, {**values, **_bind_position("until", end)})
        if len(driver.sources) == 1:
            return list(rows)
        found |= {row.number: row for row in rows}
    return _sort(found.values(), order)[:limit]


def _sort(rows: Iterable[AnyRow], order: RunOrder) -> list[AnyRow]:
    return sorted(rows, key=_get_position, reverse=order.is_descending)


def _get_position(row: AnyRow) -> _Position:
    return row.sort_value, row.number


def _bind_position(name: str, position: _Position | None) -> dict[str, Any]:
    if position is None:
        return {}
    return {f"{name}_value": position[0], f"{name}_number": position[1]}


def _find_end(
    connection: Connection,
    plan: _Plan,
    source: _Source,
    order: RunOrder,
    after: _Position | None,
    skipped: int,
) -> _Position | None:
    """Return the position of the run that many further, None if the source has fewer."""
    statement = _build_end(
        source,
        plan.shapes if source.term >= 0 else (),
        (order.field, order.is_descending),
        is_after=after is not None,
    )
    values = {**plan.values, "skipped": skipped, **_bind_position("after", after)}
    row = connection.execute(statement, values).first()
    return None if row is None else (row[0], row[1])


def _is_complete(
    found: Sequence[AnyRow], ends: Sequence[_Position | None], order: RunOrder, limit: int
) -> bool:
    """Return whether rows up to the ends of their sources are all that belong on the page."""
    reached = [end for end in ends if end is not None]
    if not reached:
        return True
    if len(found) < limit:
        return False
    last = _get_position(found[-1])
    return last >= max(reached) if order.is_descending else last <= min(reached)


def _search_by_name(
    connection: Connection,
    plan: _Plan,
    driver: _Driver,
    search: _Driver,
    order: RunOrder,
    after: _Position | None,
    limit: int,
) -> list[AnyRow]:
    """Return a page of runs that contain a frequent text, in the order of names.

    Names that begin with the text are together in this order. Before them, there may be nothing for
    long, so the search index is asked for the others. If they are few, they are sorted.
    """
    found, unindexed = search.sources
    text = plan.values[f"t{found.term}"]
    others = quote_others(plan.values[f"m{found.term}"], text)
    among_names = _Driver((_Source("order of found", found.term), unindexed))
    if others is None:
        return _run(connection, plan, among_names, order, after, limit)
    other_plan = dataclasses.replace(plan, values={**plan.values, f"m{found.term}": others})
    other_count = _count_others(connection, plan, found, text)
    if other_count > RARE:
        return _run(connection, plan, among_names, order, after, limit)
    rest = search if other_count else _Driver((unindexed,))
    rows = _run(connection, other_plan, rest, order, after, limit)
    first, last = (text, -1), (text + AFTER_TEXTS, -1)
    if order.is_descending:
        begin = last if after is None else min(after, last)
        end, is_left = first, begin > first
    else:
        begin = first if after is None else max(after, first)
        end, is_left = last, begin < last
    if is_left:
        ends = [end] * len(driver.sources)
        rows += _run(connection, plan, driver, order, begin, limit, ends=ends)
    return _sort({row.number: row for row in rows}.values(), order)[:limit]


def _count_others(connection: Connection, plan: _Plan, found: _Source, text: str) -> int:
    """Count what the search index finds besides names that begin with the text.

    All of those are found, so numbers suffice. More than ``RARE`` are not counted.
    """
    values = {"org": plan.values["org"], "first": text, "last": text + AFTER_TEXTS}
    names, unindexed = (
        int(connection.execute(statement, values).scalar_one())
        for statement in (_COUNT_NAMES, _COUNT_UNINDEXED_NAMES)
    )
    most = names - unindexed + RARE + 1
    matches = {"match": plan.values[f"m{found.term}"], "most": most}
    return int(connection.execute(_COUNT_FOUND, matches).scalar_one()) - (names - unindexed)


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
def _build_end(
    source: _Source, shapes: tuple[_Shape, ...], order: tuple[str, bool], *, is_after: bool
) -> Select[Any]:
    builder, is_descending = _Builder(source, shapes, order[0], is_sqlite=True), order[1]
    by = (builder.sort_value, builder.number)
    query = select(*by).where(*builder.list_source_conditions())
    if is_after:
        query = query.where(_compare(by, "after", is_further=True, is_descending=is_descending))
    query = query.order_by(*(each.desc() if is_descending else each for each in by))
    return query.limit(1).offset(bindparam("skipped"))


@functools.lru_cache(maxsize=512)
def _build_numbers(source: _Source, shapes: tuple[_Shape, ...]) -> Select[Any]:
    builder = _Builder(source, shapes, "created", is_sqlite=True)
    query = builder.select_source()
    if source.is_ordered:
        query = query.order_by(builder.number.desc())
    return query.limit(bindparam("max_rows")).offset(bindparam("skipped"))


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


def _is_in_order(source: _Source, order: str) -> bool:
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


_COUNT_NAMES = select(func.count()).where(
    run_list.c.org == bindparam("org"),
    run_list.c.name_key >= bindparam("first"),
    run_list.c.name_key < bindparam("last"),
)
_COUNT_UNINDEXED_NAMES = select(func.count()).where(
    run_list.c.is_indexed.is_(False),
    _hide(run_list.c.org) == bindparam("org"),
    _hide(run_list.c.name_key) >= bindparam("first"),
    _hide(run_list.c.name_key) < bindparam("last"),
)
_COUNT_FOUND = select(func.count()).select_from(
    select(_search.c.rowid)
    .where(_search.c.run_search.op("MATCH")(bindparam("match")))
    .limit(bindparam("most"))
    .subquery()
)
