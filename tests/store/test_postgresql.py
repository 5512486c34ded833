"""The store on PostgreSQL: the same guarantees, and concurrent writers."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DatabaseError

from runyard.settings import SettingError, read_settings
from runyard.store import Store, StoreUnavailable, lease_clock, organizations, queue, runs
from runyard.store.migrate import StoreTooNew
from runyard.store.requirements import NOTHING
from runyard.store.tables import metadata


@pytest.fixture
def url(postgresql: Any) -> str:
    return str(postgresql.new_database())


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


def add(name: str) -> Any:
    return partial(organizations.add, org=name, name="n", time_ms=len(name))


def is_of_metadata(_object: Any, name: str, *_: Any) -> bool:
    """Return False for the search index of texts, which each database makes in its own way."""
    return not name.startswith(("run_search", "run_list_trigrams"))


def test_the_migrations_make_exactly_the_tables_that_the_code_knows(url: str) -> None:
    Store(url).close()
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_of_metadata})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_servers_that_start_at_once_migrate_once(url: str) -> None:
    errors: list[Exception] = []

    def start() -> None:
        try:
            Store(url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_database_newer_than_the_code_is_refused(url: str) -> None:
    store = Store(url)
    asyncio.run(
        store.write(
            lambda connection: connection.execute(
                text("UPDATE alembic_version SET version_num='99'")
            )
        )
    )
    store.close()
    with pytest.raises(StoreTooNew, match="99"):
        Store(url)


def test_a_failing_transaction_is_rolled_back_and_others_of_its_group_are_committed(
    store: Store,
) -> None:
    def fail(connection: Connection) -> None:
        add("bad")(connection)
        raise KeyError("no")

    async def scenario() -> None:
        outcomes = await asyncio.gather(
            *(store.write(work) for work in (add("a"), fail, add("bb"), add("a"))),
            return_exceptions=True,
        )
        assert [outcome is None for outcome in outcomes] == [True, False, True, False]
        assert isinstance(outcomes[3], DatabaseError)  # the same primary key again

    asyncio.run(scenario())
    assert list(store.read(organizations.list_ids)) == ["a", "bb"]


def test_a_reading_connection_cannot_write(store: Store) -> None:
    with pytest.raises(DatabaseError, match="read-only"):
        store.read(add("a"))
    assert list(store.read(organizations.list_ids)) == []


def test_a_lost_connection_fails_its_transaction_and_the_next_one_succeeds(
    store: Store,
) -> None:
    def cut(connection: Connection) -> None:
        add("half")(connection)
        mine = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        connection.execute(text(f"SELECT pg_terminate_backend({mine})"))

    async def scenario() -> None:
        with pytest.raises(StoreUnavailable):
            await store.write(cut)
        await store.write(add("whole"))

    asyncio.run(scenario())
    assert list(store.read(organizations.list_ids)) == ["whole"]


def test_an_unreachable_database_is_unavailable_until_it_is_back(
    store: Store, postgresql: Any
) -> None:
    async def scenario() -> None:
        await store.write(add("before"))
        assert list(store.read(organizations.list_ids)) == ["before"]
        postgresql.stop()
        try:
            with pytest.raises(StoreUnavailable):
                await store.write(add("lost"))
            with pytest.raises(StoreUnavailable):
                store.read(organizations.list_ids)
        finally:
            postgresql.start()
        await store.write(add("after"))

    asyncio.run(scenario())
    assert sorted(store.read(organizations.list_ids)) == ["after", "before"]


def test_a_reader_reconnects_after_its_connection_broke(store: Store, postgresql: Any) -> None:
    asyncio.run(store.write(add("a")))
    store.read(organizations.list_ids)
    postgresql.stop()
    postgresql.start()
    assert list(store.read(organizations.list_ids)) == ["a"]


def test_two_servers_that_write_concurrently_lose_no_number(store: Store, url: str) -> None:
    other = Store(url)

    async def scenario() -> list[int]:
        await store.write(lease_clock.insert_clock)
        takers = [each.write(lease_clock.next_token_number) for each in (store, other) * 20]
        return list(await asyncio.gather(*takers))

    assert sorted(asyncio.run(scenario())) == list(range(1, 41))
    other.close()


def test_a_run_that_is_being_claimed_is_skipped_without_waiting(store: Store, url: str) -> None:
    def add_run(connection: Connection, name: str, time_created: int) -> None:
        fixed = {
            "org": "o",
            "document": b"{}",
            "etag": "e",
            "body_sha256": b"h",
            "condition": "Pending",
            "priority": 0,
        }
        runs.add(connection, {**fixed, "id": name, "time_created": time_created}, attributes={})

    def claim(connection: Connection) -> str | None:
        row = queue.lock_first(connection, key=NOTHING, machine_id="m")
        return None if row is None else row.id

    asyncio.run(store.write(partial(add_run, name="r1", time_created=1)))
    other = create_engine(url)
    with other.connect() as claiming:
        assert claim(claiming) == "r1"
        assert asyncio.run(store.write(claim)) is None
        asyncio.run(store.write(partial(add_run, name="r2", time_created=2)))
        assert asyncio.run(store.write(claim)) == "r2"
        claiming.rollback()
        assert asyncio.run(store.write(claim)) == "r1"
    other.dispose()


def test_a_database_that_was_never_there_is_unavailable_at_the_start() -> None:
    with pytest.raises(StoreUnavailable):
        Store("postgresql+psycopg://nobody@/none?host=/nowhere")


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:secret@h/n", "postgresql+psycopg://h/n?password=secret"]
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingError, match="passfile") as refused:
        read_settings({}, database_url=url)
    assert "secret" not in str(refused.value)


def test_only_supported_database_urls_are_accepted() -> None:
    with pytest.raises(SettingError, match="mysql"):
        read_settings({}, database_url="mysql://h/n")
