"""Disk space is freed: logs are limited and expire, and the database file shrinks."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic.command import upgrade
from alembic.config import Config
from sqlalchemy import create_engine

from runyard.server.clock import AsyncSystemClock
from runyard.server.http.app import open_services
from runyard.server.services.context import Actor
from runyard.server.services.operations import housekeeping, storage
from runyard.server.services.runs import deletion
from runyard.settings import Settings
from runyard.store import Store, StoreUnavailable, migrate
from runyard.store.engines import sqlite
from runyard.store.telemetry.logs import LINE_BYTES, count_log_bytes
from tests.support import attempts
from tests.support.server import TestServer

MIB = 1 << 20
LINES = ["x" * 9_900] * 100  # a shipment of almost a megabyte


def stored_bytes(server: TestServer) -> int:
    return sum(path.stat().st_size for path in server.settings.data_dir.glob("server.db*"))


async def log_of(server: TestServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    api = await server.api()
    while True:
        query = {"since": found[-1]["number"] if found else 0}
        page = (await api.get(server.path("runs/r1/logs"), params=query)).json()
        if not page["items"]:
            return found
        found += page["items"]


async def status_of(server: TestServer) -> dict[str, Any]:
    document = (await (await server.api()).get(server.path("runs/r1"))).json()
    return dict(document["status"])


async def test_a_deleted_runs_rows_are_erased_from_the_database_file(
    server: TestServer, monkeypatch: Any, store_kind: str
) -> None:
    """Removed in several transactions, like a longer log."""
    if store_kind == "postgresql":
        pytest.skip("PostgreSQL uses its free space again by itself")
    monkeypatch.setattr(deletion, "LINES_AT_ONCE", 300)
    attempt = await attempts.start(server)
    before = stored_bytes(server)
    for _ in range(8):
        assert (await attempt.ship(*LINES, stream="stdout")).status_code == 200
    await housekeeping.sweep(server.services)
    assert stored_bytes(server) - before > 7 * MIB
    await attempt.finish(64, outcome="Failed", reason="InvalidData", message="bad")
    assert (await (await server.api()).delete(server.path("runs/r1"))).status_code == 204
    await deletion.sweep(server.services)
    await housekeeping.sweep(server.services)
    assert stored_bytes(server) - before < 2 * MIB


@pytest.mark.settings(log_max_mib=1)
@pytest.mark.parametrize("line", ["x" * 5_000, "", "\u00e4" * 2_000, "50%|#####     | 1/2\r" * 200])
async def test_a_log_ends_at_its_limit_with_a_note_and_a_count_of_omitted_lines(
    line: str, server: TestServer
) -> None:
    attempt = await attempts.start(server)
    each = LINE_BYTES + len(line.encode())
    shipped = MIB // each + 500
    for begin in range(0, shipped, 500):
        await attempt.ship(*[line] * min(500, shipped - begin), stream="stdout")
    kept = await log_of(server)
    limit = [entry for entry in kept if "RUNYARD_LOG_MAX_MIB" in entry["text"]]
    assert [entry["number"] for entry in limit] == [kept[-1]["number"]]
    assert sum(LINE_BYTES + len(entry["text"].encode()) for entry in kept[:-1]) <= MIB
    left_out = (await status_of(server))["logLinesLeftOut"]
    assert left_out + len(kept) - 1 == shipped
    assert [entry["number"] for entry in kept] == list(range(1, len(kept) + 1))


@pytest.mark.settings(log_max_mib=1)
async def test_metrics_and_conditions_are_kept_beyond_the_limit_of_the_log(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    await attempt.ship(*LINES, *LINES, stream="stderr")
    for number in range(1, 21):
        await attempt.event(
            "step", n=number, t=number, step=number, epoch=0.1, values={"loss": 1 / number}
        )
    await attempt.event("phase", phase="Saving", message="the last one")
    await attempt.event("warning", message="the loss grows")
    points = (await (await server.api()).get(server.path("runs/r1/metrics"))).json()["items"]
    assert [point["step"] for point in points] == list(range(1, 21))
    status = await status_of(server)
    assert (status["conditions"][-1]["reason"], status["progress"]["step"]) == ("Saving", 20)
    texts = [entry["text"] for entry in await log_of(server)]
    assert texts[-2:] == ["Saving: the last one", "warning: the loss grows"]
    assert not [text for text in texts if text.startswith("step")]


@pytest.mark.settings(log_max_mib=1)
async def test_events_cannot_fill_the_disk_either(server: TestServer) -> None:
    attempt = await attempts.start(server)
    for _ in range(40):
        await attempt.ship(
            *[json.dumps({"ev": "warning", "message": "w" * 9_000})] * 10, stream="events"
        )
    for _ in range(40):
        await attempt.ship(*["no event " * 1_000] * 10, stream="events")
    assert sum(len(entry["text"]) for entry in await log_of(server)) < 2.1 * MIB


@pytest.mark.settings(log_max_mib=0)
async def test_without_a_limit_everything_is_kept(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.ship(*LINES, *LINES, stream="stdout")
    assert len(await log_of(server)) == 200
    assert (await status_of(server)).get("logLinesLeftOut") is None


@pytest.mark.settings(keep_logs_days=2.0)
async def test_logs_are_removed_some_days_after_the_end_and_metrics_are_not(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    server.clock.forward(3 * 24 * 3600)  # a long run: only its end counts
    await attempt.event("step", n=1, t=1, step=1, epoch=0.1, values={"loss": 1.0})
    await attempt.ship("a line", stream="stdout")
    await housekeeping.sweep(server.services)
    await attempt.finish(64, outcome="Failed", reason="InvalidData", message="bad")
    server.clock.forward(1.9 * 24 * 3600)
    await housekeeping.sweep(server.services)
    before = await log_of(server)
    assert "a line" in [entry["text"] for entry in before]
    server.clock.forward(0.2 * 24 * 3600)
    for _ in range(2):
        await housekeeping.sweep(server.services)
    after = await log_of(server)
    assert [entry["number"] for entry in after] == [before[-1]["number"] + 1]
    assert "RUNYARD_KEEP_LOGS_DAYS" in after[0]["text"]
    points = (await (await server.api()).get(server.path("runs/r1/metrics"))).json()["items"]
    assert len(points) == 1


async def test_logs_are_kept_forever_unless_a_setting_says_otherwise(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.ship("a line", stream="stdout")
    await attempt.finish(64, outcome="Failed", reason="InvalidData", message="bad")
    server.clock.forward(10 * 365 * 24 * 3600)
    await housekeeping.sweep(server.services)
    assert "a line" in [entry["text"] for entry in await log_of(server)]


def at_revision(path: Path, revision: str) -> None:
    """Create a database of an earlier schema, with a log in it."""
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        upgrade(config, revision)
    engine.dispose()
    with sqlite3.connect(path) as old:
        old.execute("PRAGMA journal_mode=WAL")
        old.execute(
            "INSERT INTO runs (org, id, document, etag, body_sha256, condition, priority, "
            "time_created, killed, deleted, log_count, metric_count) VALUES ('o', 'r', '{}', 'e', "
            "'b', 'Succeeded', 0, 1, 0, 0, 1, 0)"
        )
        for number in range(600):
            old.execute(
                "INSERT INTO log_lines VALUES ('o', 'r', ?, 1, 1, 'stdout', ?)",
                (number, "x" * 10_000),
            )
    old.close()


COUNTS_LOG_BYTES = "0007"  # the revision whose upgrade counts the stored log lines


def earlier_revisions() -> list[str]:
    files = (Path(migrate.__file__).parent / "migrations" / "versions").glob("*.py")
    return sorted(
        path.name.partition("_")[0] for path in files if not path.name.startswith(migrate.HEAD)
    )


@pytest.mark.parametrize("revision", earlier_revisions())
def test_a_database_is_copied_before_its_upgrade(
    revision: str, tmp_path: Path, caplog: Any
) -> None:
    path = tmp_path / "server.db"
    at_revision(path, revision)
    with caplog.at_level("INFO", logger="runyard"):
        Store(path).close()
        Store(path).close()  # nothing is left to upgrade, so nothing is copied
    (copy,) = (tmp_path / "backups").iterdir()
    assert copy.name == f"server-schema-{revision}.db"
    assert copy.stat().st_mode & 0o077 == 0
    assert [record.getMessage() for record in caplog.records if str(copy) in record.getMessage()]
    with sqlite3.connect(copy) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (
            revision,
        )
        assert connection.execute("SELECT COUNT(*) FROM log_lines").fetchone() == (600,)
    connection.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (
            migrate.HEAD,
        )
        if revision < COUNTS_LOG_BYTES:
            assert connection.execute("SELECT log_bytes FROM runs").fetchone() == (
                600 * (10_000 + LINE_BYTES),
            )
        connection.execute("UPDATE runs SET log_bytes = 0")
    connection.close()
    store = Store(path)
    # as a restore does with the rows of an earlier version.
    asyncio.run(store.write(count_log_bytes))
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT log_bytes FROM runs").fetchone() == (
            600 * (10_000 + LINE_BYTES),
        )
    connection.close()


def test_a_copy_replaces_no_other_and_the_oldest_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    at_revision(path, "0003")
    before = path.read_bytes()
    for _ in range(sqlite.MAX_COPIES + 2):
        path.write_bytes(before)
        Store(path).close()
    names = sorted(copy.name for copy in (tmp_path / "backups").iterdir())
    assert len(names) == sqlite.MAX_COPIES


@pytest.mark.parametrize("lacks", ["room", "health"])
def test_nothing_is_upgraded_without_a_copy(lacks: str, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "server.db"
    at_revision(path, "0002")
    if lacks == "room":
        monkeypatch.setattr(sqlite, "free_bytes", lambda folder: 1000)
    else:
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2 & ~4095)
            file.write(b"\xa5" * 4096)
    with pytest.raises(StoreUnavailable, match=r"MiB are free|damaged") as caught:
        Store(path)
    assert not caught.value.may_pass
    assert not list((tmp_path / "backups").glob("*.db"))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)
    connection.close()


def test_copies_survive_a_restart_and_incomplete_ones_are_removed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    folder = settings.data_dir / "backups"
    (folder / "tmpx").mkdir(parents=True)
    (folder / "tmpx" / "rows").write_text("")
    (folder / ".server-schema-0003.db.part").write_text("")
    (folder / "server-schema-0003.db").write_text("a copy")

    async def start() -> None:
        async with open_services(settings, AsyncSystemClock(), run_ticker=False):
            pass

    asyncio.run(start())
    assert [path.name for path in folder.iterdir()] == ["server-schema-0003.db"]


def test_a_collection_rebuilds_an_older_database_once_and_reports_freed_bytes(
    tmp_path: Path, monkeypatch: Any
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    path = settings.data_dir / "server.db"
    at_revision(path, "0003")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM log_lines")
        connection.execute("DELETE FROM runs")
    connection.close()

    async def scenario() -> None:
        async with open_services(settings, AsyncSystemClock(), run_ticker=False) as services:
            org = json.loads(settings.credentials_file.read_text())["organization_id"]
            actor = Actor(org=org, name="n", role="admin", address="")
            stray = settings.runs_dir / org / "stray"
            stray.mkdir(parents=True)
            (stray / "file").write_bytes(b"x" * 100_000)
            large = path.stat().st_size
            await services.store.reclaim()
            assert path.stat().st_size == large > 5 * MIB  # it was created without auto-vacuum
            checked = await storage.check(services, org=org)
            assert checked.left_over_bytes is not None
            assert checked.left_over_bytes.run_folders >= 100_000
            assert (checked.left_over_bytes.database or 0) > 4 * MIB
            with (
                monkeypatch.context() as patch,
                pytest.raises(StoreUnavailable, match="MiB, 0 are free"),
            ):
                patch.setattr(sqlite, "free_bytes", lambda folder: 0)
                await services.store.compact()
            freed = (await storage.collect(services, actor)).freed_bytes
            assert freed is not None
            assert freed.run_folders == checked.left_over_bytes.run_folders
            assert (freed.database or 0) > 4 * MIB
            assert path.stat().st_size < MIB
            again = (await storage.collect(services, actor)).freed_bytes
            assert again == storage.Space(
                database=0, blobs=0, run_folders=0, import_folders=0, other_folders=0
            )

    asyncio.run(scenario())
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (
            sqlite.AUTO_VACUUM_INCREMENTAL,
        )
    connection.close()


def test_postgresql_reclaims_by_itself_and_says_so(
    tmp_path: Path, postgresql: Any, caplog: Any
) -> None:
    settings = Settings(data_dir=tmp_path / "data", database_url=str(postgresql.new_database()))

    async def scenario() -> None:
        async with open_services(settings, AsyncSystemClock(), run_ticker=False) as services:
            org = json.loads(settings.credentials_file.read_text())["organization_id"]
            actor = Actor(org=org, name="n", role="admin", address="")
            freed = (await storage.collect(services, actor)).freed_bytes
            assert freed is not None
            assert freed.database is None
            await housekeeping.sweep(services)

    asyncio.run(scenario())
