"""The store keeps committed data, failed transactions leave nothing, one writer writes."""

import asyncio
import sqlite3
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DatabaseError, OperationalError

from runyard.store import Store, StoreUnavailable, organizations
from runyard.store.migrate import StoreTooNew
from runyard.store.tables import metadata


def is_of_metadata(_object: Any, name: str, *_: Any) -> bool:
    """Return False for the search index of texts, which each database makes in its own way."""
    return not name.startswith(("run_search", "run_list_trigrams"))


def test_the_migrations_make_exactly_the_tables_that_the_code_knows(tmp_path: Path) -> None:
    Store(tmp_path / "a.db").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_of_metadata})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_database_newer_than_the_code_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreTooNew, match="9999"):
        Store(tmp_path / "a.db")


def test_a_completed_write_survives_the_death_of_the_process(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    asyncio.run(
        store.write(lambda connection: organizations.add(connection, org="o", name="n", time_ms=1))
    )
    # A second, independent connection sees it before the store is closed: it was committed, not
    # only cached.
    with sqlite3.connect(f"file:{tmp_path / 'a.db'}?mode=ro", uri=True) as other:
        assert other.execute("SELECT id FROM organizations").fetchall() == [("o",)]
    other.close()
    store.close()


def test_a_failing_transaction_is_rolled_back_and_others_of_its_group_are_committed(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "a.db")

    def fail(connection: Connection) -> None:
        organizations.add(connection, org="bad", name="n", time_ms=1)
        raise KeyError("no")

    async def scenario() -> None:
        good = [
            store.write(partial(organizations.add, org=f"o{number}", name="n", time_ms=number))
            for number in range(20)
        ]
        outcomes = await asyncio.gather(
            *good[:10], store.write(fail), *good[10:], return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes if outcome is not None] == [KeyError]

    asyncio.run(scenario())
    assert list(store.read(organizations.list_ids)) == [f"o{n}" for n in range(20)]
    store.close()


def test_a_reading_connection_cannot_write(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    with pytest.raises(StoreUnavailable, match="readonly"):
        store.read(lambda connection: organizations.add(connection, org="o", name="n", time_ms=1))
    store.close()


def test_the_writing_connection_is_durable(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")

    async def pragma(name: str) -> object:
        return await store.write(
            lambda connection: connection.execute(text(f"PRAGMA {name}")).scalar()
        )

    assert asyncio.run(pragma("journal_mode")) == "wal"
    assert asyncio.run(pragma("synchronous")) == 2  # FULL
    store.close()


def test_a_full_disk_commits_nothing_and_writes_succeed_once_space_is_free(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")

    async def limit(pages: int) -> None:
        await store.write(
            lambda connection: connection.execute(text(f"PRAGMA max_page_count = {pages}")).scalar()
        )

    def add_much(connection: Connection) -> None:
        organizations.add(connection, org="big", name="n" * 500_000, time_ms=1)

    async def scenario() -> None:
        await limit(60)
        with pytest.raises(StoreUnavailable, match="full"):
            await store.write(add_much)
        assert list(store.read(organizations.list_ids)) == []
        await limit(10_000)
        await store.write(add_much)
        assert list(store.read(organizations.list_ids)) == ["big"]

    asyncio.run(scenario())
    store.close()


def test_a_disk_error_fails_every_transaction_of_its_group(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "a.db")

    def break_down(connection: Connection) -> None:
        raise OperationalError("commit", {}, sqlite3.OperationalError("disk I/O error"))

    async def scenario() -> None:
        has_begun, gate = threading.Event(), threading.Event()

        def hold_up(connection: Connection) -> bool:
            has_begun.set()
            return gate.wait(10)

        first = asyncio.create_task(store.write(hold_up))
        await asyncio.to_thread(has_begun.wait, 10)
        work: list[Callable[[Connection], None]] = [
            partial(organizations.add, org="a", name="n", time_ms=1),
            break_down,
        ]
        together = [asyncio.create_task(store.write(piece)) for piece in work]
        await asyncio.sleep(0)
        gate.set()
        outcomes = await asyncio.gather(first, *together, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [bool, StoreUnavailable, StoreUnavailable]

    asyncio.run(scenario())
    assert list(store.read(organizations.list_ids)) == []
    store.close()


def test_closing_checkpoints_the_wal_into_the_database(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    store.read(organizations.list_ids)
    asyncio.run(
        store.write(lambda connection: organizations.add(connection, org="o", name="n", time_ms=1))
    )
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def test_an_invalid_statement_fails_its_caller_and_not_the_writer(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")

    async def scenario() -> None:
        await store.write(
            lambda connection: organizations.add(connection, org="o", name="n", time_ms=1)
        )
        with pytest.raises(DatabaseError):  # the same primary key again
            await store.write(
                lambda connection: organizations.add(connection, org="o", name="n", time_ms=1)
            )
        await store.write(
            lambda connection: organizations.add(connection, org="p", name="n", time_ms=2)
        )

    asyncio.run(scenario())
    assert list(store.read(organizations.list_ids)) == ["o", "p"]
    store.close()


def test_only_the_owner_can_read_database_files_even_of_an_older_version(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.db").touch(0o644)
    store = Store(tmp_path / "a.db")
    asyncio.run(
        store.write(lambda connection: organizations.add(connection, org="o", name="n", time_ms=1))
    )
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}
    store.close()
