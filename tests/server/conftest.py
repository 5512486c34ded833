"""Fixtures of the server tests: ``server`` is a fresh application, on both stores where needed."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Connection, Engine, event

from runyard.store import Store
from runyard.store.tables import metadata
from tests.support.server import MakeServer, TestServer, open_server


class CompiledStatements(dict[Any, Any]):
    """Compiled SQL by statement and kind of database, where SQLAlchemy has it by each engine."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((type(key[0]), *key[1:]), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__((type(key[0]), *key[1:]), compiled)


@pytest.fixture(scope="session", autouse=True)
def compiled_statements() -> Iterator[None]:
    """Compile each statement once: every test has a new engine, which would compile all again."""
    shared = CompiledStatements()

    def share(connection: Connection) -> None:
        connection.execution_options(compiled_cache=shared)

    event.listen(Engine, "engine_connect", share)
    yield
    event.remove(Engine, "engine_connect", share)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database; copying it saves each test the migration."""
    path = tmp_path_factory.mktemp("store") / "server.db"
    Store(path).close()
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: Any) -> str:
    """Return the URL of a migrated database in PostgreSQL."""
    url: str = postgresql.new_database()
    Store(url).close()
    return url


@pytest.fixture
def empty_postgresql(postgresql: Any, migrated_postgresql: str) -> Callable[[], str]:
    """Empty the migrated database and return its URL: like a new one, in a third of the time."""

    def empty() -> str:
        tables = ", ".join(table.name for table in metadata.sorted_tables)
        name = urlsplit(migrated_postgresql).path.removeprefix("/")
        postgresql.execute(f"TRUNCATE {tables} RESTART IDENTITY", database=name)
        return migrated_postgresql

    return empty


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of these modules on both stores."""
    is_about_the_store = metafunc.module.__name__.rpartition(".")[2] in (
        "test_audit",
        "test_reconnects",
        "test_backups",
        "test_bulk_runs",
        "test_conversations",
        "test_datasets",
        "test_deletion",
        "test_key_lifecycle",
        "test_machine_folders",
        "test_leases",
        "test_logs",
        "test_metric_series",
        "test_telemetry",
        "test_resume",
        "test_retention",
        "test_samples",
    )
    if is_about_the_store and "store_kind" in metafunc.fixturenames:
        is_sqlite_only = metafunc.definition.get_closest_marker("sqlite_only") is not None
        metafunc.parametrize(
            "store_kind", ["sqlite"] if is_sqlite_only else ["sqlite", "postgresql"]
        )


@pytest.fixture
def store_kind() -> str:
    return "sqlite"


@pytest.fixture
def make_server(
    tmp_path: Path, empty_database: Path, store_kind: str, request: pytest.FixtureRequest
) -> MakeServer:
    """Open a fresh application: ``async with make_server(log_max_mib=1) as server``."""

    @contextlib.asynccontextmanager
    async def make(**settings: Any) -> AsyncIterator[TestServer]:
        if store_kind == "postgresql":
            settings["database_url"] = request.getfixturevalue("empty_postgresql")()
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copyfile(empty_database, tmp_path / "data" / "server.db")
        async with open_server(tmp_path / "data", **settings) as server:
            yield server

    return make


@pytest.fixture
async def server(
    make_server: MakeServer, request: pytest.FixtureRequest
) -> AsyncIterator[TestServer]:
    """A fresh application with the settings of the mark ``settings``."""
    marker = request.node.get_closest_marker("settings")
    async with make_server(**(marker.kwargs if marker else {})) as server:
        yield server
