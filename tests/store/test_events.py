"""Rows of events: numbers follow the order of commits, with several writers, and never go back."""

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from runyard.store import Store
from runyard.store import events as rows

WRITERS, WRITES = 3, 40
OpenStore = Callable[[], Store]


@pytest.fixture(params=["sqlite", "postgresql"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Open the same database again and again, as several servers do."""
    database: Path | str = tmp_path / "server.db"
    if request.param == "postgresql":
        database = request.getfixturevalue("postgresql").new_database()
    opened: list[Store] = []

    def open_it() -> Store:
        opened.append(Store(database))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


def record(connection: Connection, name: str, *, org: str = "o", time_ms: int = 1) -> None:
    event = {"org": org, "time": time_ms, "kind": "run", "target": name, "what": "created"}
    rows.record(connection, {**event, "actor": "", "details": b"{}"})


def list_events(store: Store, org: str = "o", after: int = 0) -> list[tuple[int, str]]:
    found = store.read(partial(rows.page, org=org, after=after, limit=100_000))
    return [(row.number, row.target) for row in found]


def get_counter(store: Store, org: str = "o") -> tuple[int, int]:
    return store.read(partial(rows.get_counter, org=org))


def write(store: Store, *functions: Callable[[Connection], Any]) -> list[Any]:
    """Write at once, so that the transactions may be committed together; return the results."""

    async def write_all() -> list[Any]:
        return await asyncio.gather(
            *(store.write(function) for function in functions), return_exceptions=True
        )

    return asyncio.run(write_all())


def test_a_reader_by_number_misses_nothing_that_several_writers_commit(
    open_store: OpenStore,
) -> None:
    """A writer that took its number first and committed last would leave a gap behind a reader."""
    stores = [open_store() for _ in range(WRITERS)]
    reader, is_over, seen = open_store(), threading.Event(), list[tuple[int, str]]()

    async def write_many(writer: int) -> None:
        for number in range(0, WRITES, 4):
            tasks = [
                stores[writer].write(partial(record, name=f"{writer}-{each}"))
                for each in range(number, number + 4)
            ]
            await asyncio.gather(*tasks)

    def read_all() -> None:
        while True:
            was_over = is_over.is_set()
            seen.extend(list_events(reader, after=seen[-1][0] if seen else 0))
            if was_over:
                return

    errors: list[BaseException] = []

    def run_writer(writer: int) -> None:
        try:
            asyncio.run(write_many(writer))
        except BaseException as error:
            errors.append(error)

    reading = threading.Thread(target=read_all)
    writing = [threading.Thread(target=run_writer, args=(writer,)) for writer in range(WRITERS)]
    for thread in (reading, *writing):
        thread.start()
    for thread in writing:
        thread.join()
    is_over.set()
    reading.join()
    assert errors == []
    assert [number for number, _ in seen] == list(range(1, WRITERS * WRITES + 1))
    for writer in range(WRITERS):
        own = [name for _, name in seen if name.startswith(f"{writer}-")]
        assert own == [f"{writer}-{each}" for each in range(WRITES)]


def test_a_transaction_that_fails_leaves_no_event_and_others_of_its_group_do(
    open_store: OpenStore,
) -> None:
    store = open_store()

    def fail(connection: Connection) -> None:
        record(connection, "failed")
        raise ValueError("no")

    results = write(store, partial(record, name="a"), fail, partial(record, name="b"))
    assert isinstance(results[1], ValueError)
    assert list_events(store) == [(1, "a"), (2, "b")]


def test_each_organization_has_its_own_numbers(open_store: OpenStore) -> None:
    store = open_store()
    write(store, partial(record, name="a"), partial(record, name="b", org="p"))
    write(store, partial(record, name="c", org="p"))
    assert (list_events(store), list_events(store, "p")) == ([(1, "a")], [(1, "b"), (2, "c")])
    assert (get_counter(store, "p"), get_counter(store, "q")) == ((2, 0), (0, 0))


def test_whoever_listens_is_called_after_the_commit(open_store: OpenStore) -> None:
    store, other, found = open_store(), open_store(), list[Any]()
    is_called = threading.Event()

    def look(orgs: Collection[str]) -> None:
        found.append((sorted(orgs), list_events(other)))
        is_called.set()

    store.announce_events = look
    write(store, partial(record, name="a"))
    assert is_called.wait(30)
    assert found == [(["o"], [(1, "a")])]


def test_events_that_are_too_old_or_too_many_are_removed_and_numbers_go_on(
    open_store: OpenStore,
) -> None:
    store = open_store()

    def prune(before_ms: int, most: int) -> bool:
        arguments: Any = {"org": "o", "before_ms": before_ms, "most": most}
        has_prunable = store.read(partial(rows.has_prunable, **arguments))
        [has_more] = write(store, partial(rows.prune, **arguments, limit=3))
        while has_more:
            [has_more] = write(store, partial(rows.prune, **arguments, limit=3))
        return has_prunable

    for number in range(10):
        write(store, partial(record, name=str(number), time_ms=number))
    assert not prune(0, 10)
    assert (len(list_events(store)), get_counter(store)) == (10, (10, 0))
    assert prune(0, 6)
    assert (list_events(store)[0], get_counter(store)) == ((5, "4"), (10, 4))
    assert prune(8, 6)
    assert (list_events(store), get_counter(store)) == ([(9, "8"), (10, "9")], (10, 8))
    write(store, partial(record, name="new"))
    assert list_events(store)[-1] == (11, "new")


def test_numbers_after_a_restore_are_above_those_of_both_states(open_store: OpenStore) -> None:
    store = open_store()
    write(store, *(partial(record, name=str(number)) for number in range(3)))
    own = store.read(rows.list_counters)
    [_] = write(store, partial(rows.skip_numbers, own=own, orgs=["o", "p"]))
    number, kept_after = get_counter(store)
    assert number == kept_after == 3 + rows.RESTORE_GAP
    assert get_counter(store, "p") == (rows.RESTORE_GAP, rows.RESTORE_GAP)
    write(store, partial(record, name="new"))
    assert list_events(store)[-1] == (number + 1, "new")
