"""The queue on both stores: lookup by requirement, order, and cost with many unfit runs."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.command import upgrade
from alembic.config import Config
from sqlalchemy import Connection, create_engine, insert, text

from runyard.store import Store, migrate, queue, runs
from runyard.store.requirements import (
    MAX_KEY_LENGTH,
    NOTHING,
    Requirements,
    build_key,
    fill,
    parse_key,
)
from runyard.store.tables import attempts
from runyard.store.tables import runs as runs_table
from tests.support.vm_steps import count_steps


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    if request.param == "sqlite":
        return tmp_path / "server.db"
    return str(request.getfixturevalue("postgresql").new_database())


@pytest.fixture
def store(database: Path | str) -> Iterator[Store]:
    opened = Store(database)
    yield opened
    opened.close()


def run_row(name: str, key: str, *, priority: int = 0, time_created: int = 0) -> dict[str, Any]:
    fixed = {
        "org": "o",
        "document": b"{}",
        "etag": "e",
        "body_sha256": b"h",
        "condition": "Pending",
    }
    place = {"id": name, "requirements": key, "priority": priority, "time_created": time_created}
    return fixed | place | {"deleted": False, "killed": False, "log_count": 0, "metric_count": 0}


def add(store: Store, *rows: dict[str, Any]) -> None:
    asyncio.run(store.write(lambda connection: connection.execute(insert(runs_table), list(rows))))


def attempt_row(run_id: str, number: int = 1, **values: Any) -> dict[str, Any]:
    fixed = {
        "org": "o",
        "run_id": run_id,
        "number": number,
        "epoch": run_id,
        "token_number": number,
        "host": "h",
    }
    numbers = {
        "expires_pulse": 1,
        "lost_pulse": None,
        "time_claimed": 1,
        "boot_id": "",
        "pid": 0,
        "start_ticks": 0,
    }
    state = {
        "started": True,
        "charged": True,
        "closed": False,
        "machine_id": "m1",
        "claim_id": f"{run_id}/{number}",
    }
    return fixed | numbers | state | values


def in_turn(store: Store, keys: list[str], machine_id: str = "m1") -> list[str]:
    return [
        row.id
        for row in store.read(partial(queue.list_first_runs, keys=keys, machine_id=machine_id))
    ]


def test_equal_requirements_have_equal_keys() -> None:
    assert build_key({}) == build_key({"accelerator": []}) == NOTHING
    assert build_key({"b": ["2", "1", "1"], "a": ["x"]}) == build_key({"a": ["x"], "b": ["1", "2"]})
    assert parse_key(build_key({"a": ["x"]})) == Requirements({"a": ["x"]})
    assert parse_key(build_key({}, accelerators=2)) == Requirements(accelerators=2)
    assert build_key({"a": ["x"]}) != build_key({"a": ["y"]}) != build_key({"b": ["y"]})
    long = {"a": [f"{number:0100}" for number in range(100)]}
    assert len(build_key(long)) <= MAX_KEY_LENGTH and parse_key(build_key(long)) is None
    assert build_key({"a\0": ["\ud800"]}).isascii()


def test_distinct_requirements_are_found_in_order_and_page_by_page(store: Store) -> None:
    names = ["a", "b", "c", "d"]
    add(store, *(run_row(f"{name}{number}", name) for name in names for number in range(3)))
    add(
        store,
        {**run_row("ended", "e"), "condition": "Failed"},
        {**run_row("killed", "f"), "killed": True},
    )
    add(store, {**run_row("deleted", "g"), "deleted": True})
    assert store.read(queue.list_requirements) == names
    assert store.read(partial(queue.list_requirements, after="a", limit=2)) == ["b", "c"]
    assert store.read(partial(queue.list_requirements, after="d", limit=2)) == []


def test_runs_come_by_priority_then_age_whatever_they_require(store: Store) -> None:
    add(
        store,
        run_row("old", "a", time_created=1),
        run_row("new", "b", time_created=2),
        run_row("urgent", "b", priority=5, time_created=9),
        run_row("other", "c", priority=9),
    )
    assert in_turn(store, ["a", "b"]) == ["urgent", "old"]
    assert in_turn(store, ["a", "b", "c"]) == ["other", "urgent", "old"]
    many = [f"none-{number}" for number in range(2 * queue.KEYS_PER_QUERY)]
    assert in_turn(store, ["b", *many, "a"])[0] == "urgent"


def test_runs_with_an_open_or_unsettled_attempt_here_are_skipped(store: Store) -> None:
    add(
        store,
        *(
            run_row(name, "a", time_created=number)
            for number, name in enumerate(("held", "silent", "free"))
        ),
    )
    rows = [
        attempt_row("held"),
        attempt_row("silent", 1, closed=True, lost_pulse=5),
    ]
    asyncio.run(store.write(lambda connection: connection.execute(insert(attempts), rows)))
    assert in_turn(store, ["a"]) == ["free"]
    assert in_turn(store, ["a"], "m2") == ["silent"]
    newer = attempt_row("silent", 2, closed=True, machine_id="m2")
    asyncio.run(store.write(lambda connection: connection.execute(insert(attempts), [newer])))
    assert in_turn(store, ["a"]) == ["silent"]


def test_runs_that_fit_no_machine_do_not_slow_down_a_claim(tmp_path: Path) -> None:
    store = Store(tmp_path / "server.db")

    def read_state(connection: Connection) -> None:
        assert queue.list_requirements(connection) == ["fit", "unfit"]
        assert queue.list_first_runs(connection, keys=["fit"], machine_id="m")[0].id == "fit"
        queue.list_outdated_reasons(
            connection, key="unfit", code="code", with_unexplained=True, limit=200
        )

    add(
        store,
        run_row("fit", "fit", time_created=10**9),
        run_row("u", "unfit", priority=5) | {"waits": "code"},
    )
    few = count_steps(store, read_state)
    add(
        store,
        *(
            run_row(f"u{n}", "unfit", priority=5, time_created=n) | {"waits": "code"}
            for n in range(20_000)
        ),
    )
    assert count_steps(store, read_state) <= 2 * few + 2
    store.close()


def test_rows_of_an_older_database_get_their_requirements(database: Path | str) -> None:
    url = database if isinstance(database, str) else f"sqlite:///{database}"
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(migrate._migrations_dir()).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        upgrade(config, "0003")
        for name, condition, flow in (
            ("picky", "Pending", {"tolerations": {"accelerator": ["h100"]}}),
            ("running", "Running", {"tolerations": {"accelerator": ["a10"]}}),
            ("any", "Pending", {}),
            ("odd", "Pending", {"tolerations": None}),
            ("ended", "Failed", {"tolerations": {"accelerator": ["h100"]}}),
        ):
            document = json.dumps({"spec": {"flow": flow}}).encode()
            connection.execute(
                text(
                    "INSERT INTO runs (org, id, document, etag, body_sha256, condition, priority, "
                    "time_created, killed, deleted, log_count, metric_count) VALUES ('o', :id, "
                    ":document, 'e', :document, :condition, 0, 1, false, false, 0, 0)"
                ),
                {"id": name, "document": document, "condition": condition},
            )
    engine.dispose()
    store = Store(database)
    found = {
        row.id: row.requirements
        for row in store.read(lambda connection: connection.execute(runs_table.select()).all())
    }
    assert found == {
        "picky": build_key({"accelerator": ["h100"]}),
        "running": build_key({"accelerator": ["a10"]}),
        "any": NOTHING,
        "odd": NOTHING,
        "ended": None,
    }
    asyncio.run(store.write(fill))  # as after the restore of an older backup: nothing is left to do
    ended = store.read(lambda connection: runs.get(connection, org="o", run_id="ended"))
    assert ended is not None and ended.requirements is None
    store.close()
