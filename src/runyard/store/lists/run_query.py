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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from sqlalchemy import (
    Connection,
    bindparam,
    select,
)

from runyard import limits
from runyard.limits import clean_text
from runyard.store.lists.duration import encode_running
from runyard.store.lists.run_filter import RunFilter, Term
from runyard.store.lists.run_list import MAX_TIME_MS, get_first_number
from runyard.store.lists.run_metrics import EVALUATION
from runyard.store.lists.run_statements import (
    COUNT_FOUND,
    COUNT_NAMES,
    COUNT_UNINDEXED_NAMES,
    Driver,
    RowSource,
    TermShape,
    build_count,
    build_end,
    build_numbers,
    prepare_page,
)
from runyard.store.lists.texts import (
    AFTER_TEXTS,
    build_pattern,
    fold,
    quote_like,
    quote_match,
    quote_others,
)
from runyard.store.tables import AnyRow, run_counts, run_list, run_metrics

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


@dataclass(frozen=True)
class _Plan:
    """The terms of a filter, ready to be compiled and run."""

    shapes: tuple[TermShape, ...]
    values: Mapping[str, Any]
    drivers: tuple[Driver, ...]
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
    statement = build_count(driver, plan.shapes, plan.has_low, plan.has_high, plan.is_sqlite)
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
    shapes: list[TermShape] = []
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
        drivers.append(Driver((RowSource(kind),)))
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
) -> TermShape:
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
    return TermShape(term.field, term.operator, term.is_negated, count)


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


def _list_drivers(shapes: Sequence[TermShape], values: Mapping[str, Any]) -> list[Driver]:
    """Return what may drive the query besides the index of the order."""
    drivers: list[Driver] = []
    texts = [index for index, shape in enumerate(shapes) if _is_indexed_text(shape)]
    if texts:
        drivers.append(Driver((RowSource("search", texts[0]), RowSource("unindexed", texts[0]))))
    for index, shape in enumerate(shapes):
        if shape.is_negated or shape.is_alternative:
            continue
        if shape.field == "flow":
            kinds = {1: ("flow id",), 2: ("flow name",), 3: ("flow id", "flow name")}[shape.values]
            drivers.append(Driver(tuple(RowSource(kind, index) for kind in kinds)))
        elif shape.field in ("flow id", "project", "id"):
            drivers.append(Driver((RowSource(shape.field, index),)))
        elif shape.field == "condition":
            some = tuple(RowSource(f"condition {n}", index) for n in range(shape.values))
            drivers.append(Driver(some))
        elif shape.field == "attribute":
            kind = "attribute" if shape.values else "tag"
            drivers.append(Driver((RowSource(kind, index, is_ordered=bool(shape.values)),)))
        elif shape.field == "metric":
            is_of_order = values[f"k{index}"] == values.get("order_metric")
            kind = "metric of order" if is_of_order else "metric"
            drivers.append(Driver((RowSource(kind, index, is_ordered=False),)))
        elif shape.field == "duration":
            kinds = ("duration ended", "duration running")
            drivers.append(
                Driver(tuple(RowSource(each, index, is_ordered=False) for each in kinds))
            )
    return drivers


def _is_indexed_text(shape: TermShape) -> bool:
    return shape.field in ("text", "name") and not shape.is_negated and shape.values == 1


def _choose_driver(
    connection: Connection, plan: _Plan, order: RunOrder
) -> tuple[Driver, Driver | None]:
    """Return a driver with few matches, or else one whose matches come in the order of the list.

    If that order may be correlated with another term, the second one is the driver with the fewest
    matches, which would have to be sorted.
    """
    default = Driver((RowSource("order"),))
    if not plan.drivers:
        return default, None
    if len(plan.drivers) == 1 and plan.drivers[0].is_in_order(order.field):
        return plan.drivers[0], None
    in_order, others = list[tuple[int, Driver]](), list[tuple[int, Driver]]()
    for driver in plan.drivers:
        reach = _probe(connection, plan, driver)
        if reach is None:
            return driver, None
        if driver.is_in_order(order.field):
            in_order.append((reach, driver))
        elif all(source.is_ordered for source in driver.sources):
            others.append((reach, driver))
    best = min(in_order, key=_get_reach)[1] if in_order else default
    return best, min(others, key=_get_reach)[1] if others else None


def _get_reach(probed: tuple[int, Driver]) -> int:
    return probed[0]


def _probe(connection: Connection, plan: _Plan, driver: Driver) -> int | None:
    """Return the number of the match after the ``RARE`` newest ones of a driver.

    None if it has no more than that.
    """
    found = [
        _list_numbers(connection, plan, source, limit=1, skipped=RARE) for source in driver.sources
    ]
    reached = [numbers[0] for numbers in found if numbers]
    return max(reached) if reached else None


def _list_numbers(
    connection: Connection, plan: _Plan, source: RowSource, *, limit: int, skipped: int = 0
) -> Sequence[int]:
    """Return the numbers of a source, newest first."""
    values = {**plan.values, "skipped": skipped, "max_rows": limit}
    return connection.execute(build_numbers(source, plan.shapes), values).scalars().all()


# Statements.


def _run(
    connection: Connection,
    plan: _Plan,
    driver: Driver,
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
        statement = prepare_page(
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
    source: RowSource,
    order: RunOrder,
    after: _Position | None,
    skipped: int,
) -> _Position | None:
    """Return the position of the run that many further, None if the source has fewer."""
    statement = build_end(
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
    driver: Driver,
    search: Driver,
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
    among_names = Driver((RowSource("order of found", found.term), unindexed))
    if others is None:
        return _run(connection, plan, among_names, order, after, limit)
    other_plan = dataclasses.replace(plan, values={**plan.values, f"m{found.term}": others})
    other_count = _count_others(connection, plan, found, text)
    if other_count > RARE:
        return _run(connection, plan, among_names, order, after, limit)
    rest = search if other_count else Driver((unindexed,))
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


def _count_others(connection: Connection, plan: _Plan, found: RowSource, text: str) -> int:
    """Count what the search index finds besides names that begin with the text.

    All of those are found, so numbers suffice. More than ``RARE`` are not counted.
    """
    values = {"org": plan.values["org"], "first": text, "last": text + AFTER_TEXTS}
    names, unindexed = (
        int(connection.execute(statement, values).scalar_one())
        for statement in (COUNT_NAMES, COUNT_UNINDEXED_NAMES)
    )
    most = names - unindexed + RARE + 1
    matches = {"match": plan.values[f"m{found.term}"], "most": most}
    return int(connection.execute(COUNT_FOUND, matches).scalar_one()) - (names - unindexed)
