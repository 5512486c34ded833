"""The list of runs on both stores: filters, orders, pages, counters, upgrade."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.command import upgrade
from alembic.config import Config
from sqlalchemy import Connection, create_engine
from sqlalchemy import text as sql

from runyard.server.services.runs.filters import parse_filter
from runyard.store import Store, migrate, runs
from runyard.store.lists import run_list, run_metrics, run_query
from runyard.store.lists.duration import UNENDED, encode_duration
from runyard.store.lists.run_query import RunOrder
from runyard.store.tables import metadata

NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
CONDITIONS = ("Pending", "Running", "Succeeded", "Failed", "Error", "Cancelled")
OWNERS = ("kim", "lee", "Ünal")


@pytest.fixture(params=["sqlite", "sqlite, indexed", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "postgresql":
        opened = Store(request.getfixturevalue("postgresql").new_database())
    else:
        opened = Store(tmp_path / "a.db")
    opened.is_indexed = request.param.endswith("indexed")  # type: ignore[attr-defined]
    yield opened
    opened.close()


def make_runs(count: int = 60) -> list[dict[str, Any]]:
    chance = random.Random(7)  # noqa: S311
    made = []
    for number in range(count):
        created_ms = NOW_MS - (count - number // 2) * HOUR_MS  # two in each millisecond
        condition = chance.choice(CONDITIONS)
        has_begun = condition != "Pending"
        ended_ms = created_ms + chance.randrange(1, 5) * HOUR_MS
        made.append(
            {
                "id": f"r{number:02d}",
                "created": created_ms,
                "condition": condition,
                "flow": f"f{number % 3}",
                "flow name": f"Flow {number % 3}",
                "name": chance.choice(
                    ("Alpha run", "beta-run", "Gamma_%", "日本語 x", " alpha\t\ttwo")
                ),
                "attributes": {"owner": chance.choice(OWNERS)}
                | ({"baseline": ""} if number % 7 == 0 else {})
                | ({"note": "not alpha"} if number % 20 == 0 else {}),
                "metrics": {"loss": round(chance.random(), 1), "validation/iou": chance.random()}
                if number % 5
                else {},
                "duration": encode_duration(
                    started_ms=created_ms if has_begun else None,
                    ended_ms=None if condition == "Running" else ended_ms,
                ),
            }
        )
    return made


def insert_runs(connection: Connection, made: list[dict[str, Any]]) -> None:
    for run in made:
        row = {
            "org": "o",
            "id": run["id"],
            "document": b"{}",
            "etag": "e",
            "body_sha256": b"h",
            "condition": run["condition"],
            "flow_id": run["flow"],
            "training_project": None,
            "priority": 0,
            "time_created": run["created"],
            "duration": run["duration"],
        }
        listed = run_list.build_row(
            row, name=run["name"], flow_name=run["flow name"], attributes=run["attributes"]
        )
        runs.add(connection, row, attributes=run["attributes"], listed=listed)
        run_metrics.record(connection, org="o", run_id=run["id"], points=[run["metrics"]])


Test = Callable[[dict[str, Any]], bool]


def contains(run: dict[str, Any], text: str) -> bool:
    attributes = [f"{key}={value}" for key, value in run["attributes"].items()]
    texts = [run["name"], run["flow name"], run["id"], *attributes]
    return any(text in each.casefold() for each in texts)


def took(run: dict[str, Any]) -> int:
    """Return the milliseconds that a run has taken until now, 0 if it has not begun."""
    duration = int(run["duration"])
    return duration if duration < UNENDED // 2 else NOW_MS - (UNENDED - duration)


def iou(run: dict[str, Any]) -> float | None:
    value: float | None = run["metrics"].get("validation/iou")
    return value


TESTS: dict[str, Test] = {
    "": lambda run: True,
    "condition:failed": lambda run: run["condition"] == "Failed",
    "condition:Pending,Running": lambda run: run["condition"] in ("Pending", "Running"),
    "-condition:Failed": lambda run: run["condition"] != "Failed",
    "flow:f1": lambda run: run["flow"] == "f1",
    'flow:"Flow 2"': lambda run: run["flow"] == "f2",
    "-flow:f1 condition:Error": lambda run: run["flow"] != "f1" and run["condition"] == "Error",
    "owner=kim": lambda run: run["attributes"]["owner"] == "kim",
    "owner!=kim": lambda run: run["attributes"]["owner"] != "kim",
    "tag:baseline": lambda run: "baseline" in run["attributes"],
    "-tag:baseline owner=Ünal": lambda run: (
        "baseline" not in run["attributes"] and run["attributes"]["owner"] == "Ünal"
    ),
    "metric.iou>0.6": lambda run: (iou(run) or 0) > 0.6,
    "-metric.iou>0.6": lambda run: not (iou(run) or 0) > 0.6,
    "metric.loss<=0.2 metric.iou<0.9": lambda run: (
        run["metrics"].get("loss", 1) <= 0.2 and (iou(run) or 1) < 0.9
    ),
    "alpha": lambda run: contains(run, "alpha"),
    "pha": lambda run: contains(run, "pha"),
    '"beta-run"': lambda run: contains(run, "beta-run"),
    'name:"_%"': lambda run: "_%" in run["name"],
    "ÜNAL flow:f0": lambda run: contains(run, "ünal") and run["flow"] == "f0",
    "日本語": lambda run: contains(run, "日本語"),
    "name:x": lambda run: run["name"].endswith(" x"),  # short: at the beginning of a word
    "be condition:Succeeded": lambda run: (
        run["name"].startswith("beta") and run["condition"] == "Succeeded"
    ),
    '"alpha two" -tag:note': lambda run: "two" in run["name"] and "note" not in run["attributes"],
    "alpha condition:Failed,Succeeded": lambda run: (
        contains(run, "alpha") and run["condition"] in ("Failed", "Succeeded")
    ),
    "-alpha": lambda run: not contains(run, "alpha"),
    "id:r07": lambda run: run["id"] == "r07",
    "created>40h": lambda run: run["created"] > NOW_MS - 40 * HOUR_MS,
    "created>50h created<=40h owner=lee": lambda run: (
        NOW_MS - 50 * HOUR_MS < run["created"] <= NOW_MS - 40 * HOUR_MS
        and run["attributes"]["owner"] == "lee"
    ),
    "duration>2h": lambda run: took(run) > 2 * HOUR_MS,
    "duration<=2h": lambda run: 0 < took(run) <= 2 * HOUR_MS,
    "nothing-has-this": lambda run: False,
}
ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "created": lambda run: run["created"],
    "name": lambda run: run["name"].casefold(),
    "duration": lambda run: run["duration"],
    "metric": iou,
}


def read_all(store: Store, text: str, order: RunOrder, size: int) -> list[str]:
    query: Any = {"org": "o", "filter": parse_filter(text), "order": order, "now_ms": NOW_MS}
    after: Any = None
    found: list[str] = []
    while True:
        rows = store.read(partial(run_query.read_page, **query, after=after, limit=size))
        if not rows:
            return found
        found += [row.id for row in rows]
        after = (rows[-1].sort_value, rows[-1].number)


@pytest.mark.parametrize("rare", [3, 5_000])
def test_each_filter_and_order_finds_what_a_search_of_all_runs_finds(
    store: Store, rare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rare != 3 and not store.is_indexed:  # type: ignore[attr-defined]
        pytest.skip("one kind of store suffices")
    monkeypatch.setattr(run_query, "RARE", rare)
    monkeypatch.setattr(run_query, "READ_IN_ORDER", rare + 1)
    monkeypatch.setattr(run_query, "SEARCHED_IN_ORDER", rare)
    made = make_runs()
    asyncio.run(store.write(lambda connection: insert_runs(connection, made)))
    if store.is_indexed:  # type: ignore[attr-defined]
        asyncio.run(store.write(lambda connection: run_list.index_texts(connection, limit=40)))
    numbers = {run["id"]: number for number, run in enumerate(made)}
    for (text, test), (field, key) in itertools.product(TESTS.items(), ORDERS.items()):
        matching = [run for run in made if test(run) and key(run) is not None]
        for is_descending in (True, False):
            order = RunOrder(field=field, is_descending=is_descending, metric="iou")  # type: ignore[arg-type]
            found = read_all(store, text, order, 13)
            assert sorted(found) == sorted(run["id"] for run in matching), (text, order)
            by_id = {run["id"]: run for run in matching}
            if field == "name":  # each database sorts texts in its own way
                names = [by_id[id]["name"] for id in found]
                assert len(list(itertools.groupby(names))) == len(set(names))
            else:
                keys = [(key(by_id[id]), numbers[id]) for id in found]
                assert keys == sorted(keys, reverse=is_descending), (text, order)
    for text, test in TESTS.items():
        counts, more = store.read(
            partial(run_query.count, org="o", filter=parse_filter(text), now_ms=NOW_MS)
        )
        assert counts == Counter(run["condition"] for run in made if test(run)), text
        assert not more


def read_tables(connection: Connection) -> dict[str, list[Any]]:
    """Return the counters, and the rows of the list without their numbers."""
    return {
        "counts": sorted(
            (row.condition, row.runs)
            for row in connection.execute(metadata.tables["run_counts"].select())
            if row.runs
        ),
        "list": sorted(
            (row.run_id, row.condition, row.flow_name, row.name_key, row.duration, row.text)
            for row in connection.execute(metadata.tables["run_list"].select())
        ),
    }


def recount(connection: Connection) -> list[tuple[str, int]]:
    rows = connection.execute(metadata.tables["runs"].select()).all()
    return sorted(Counter(row.condition for row in rows if not row.deleted).items())


def build_document(run: dict[str, Any], attributes: dict[str, str], name: str) -> bytes:
    return msgspec.json.encode(
        {
            "spec": {"flow": {"name": run["flow name"]}},
            "metadata": {"name": name, "attributes": attributes},
        }
    )


def test_counters_and_rows_are_those_of_the_runs_after_any_changes(store: Store) -> None:
    chance, made = random.Random(3), make_runs(40)  # noqa: S311

    def change_randomly(connection: Connection) -> None:
        insert_runs(connection, made)
        for run in made:
            document = build_document(run, run["attributes"], run["name"])
            values = {"document": document, "duration": 0}
            runs.change(connection, org="o", run_id=run["id"], values=values)
        for _ in range(150):
            run = chance.choice(made)
            key: Any = {"org": "o", "run_id": run["id"]}
            action = chance.randrange(5)
            row = runs.get(connection, **key)
            if row is None:
                continue
            if action < 3:
                runs.change(connection, **key, values={"condition": chance.choice(CONDITIONS)})
            elif action == 3 and not row.deleted:
                attributes, name = {"owner": chance.choice(OWNERS)}, chance.choice(OWNERS)
                document = build_document(run, attributes, name)
                runs.change(connection, **key, values={"document": document})
                run_list.describe(
                    connection,
                    **key,
                    name=name,
                    flow_name=run["flow name"],
                    attributes=attributes,
                )
            elif chance.random() < 0.3:
                runs.change(connection, **key, values={"deleted": True})
                if chance.random() < 0.5:
                    runs.remove(connection, **key)

    asyncio.run(store.write(change_randomly))
    kept = store.read(read_tables)
    assert kept["counts"] == store.read(recount)
    assert kept["list"]
    asyncio.run(store.write(run_list.rebuild))
    assert store.read(read_tables) == kept
    # Everything still follows after a rebuild.

    def fail_all(connection: Connection) -> None:
        for run in made:
            runs.change(connection, org="o", run_id=run["id"], values={"condition": "Error"})

    asyncio.run(store.write(fail_all))
    assert store.read(read_tables)["counts"] == [("Error", len(kept["list"]))]


def test_metrics_keep_the_best_evaluation_and_the_newest_of_the_rest(store: Store) -> None:
    def record(connection: Connection) -> None:
        insert_runs(connection, make_runs(1))
        for points in (
            [{"loss": 0.5, "validation/loss": 0.5, "validation/iou": 0.5, "system/cpuPercent": 1}],
            [{"loss": 0.3, "validation/loss": 0.3, "validation/iou": 0.9}, {"loss": 0.4}],
            [{"validation/loss": 0.7, "validation/iou": 0.6}, {"loss": 0.6}],
        ):
            run_metrics.record(connection, org="o", run_id="r00", points=points)
        run_metrics.record(connection, org="o", run_id="unknown", points=[{"loss": 1.0}])

    asyncio.run(store.write(record))
    rows = store.read(
        lambda connection: connection.execute(metadata.tables["run_metrics"].select()).all()
    )
    assert {row.key: (row.value, row.last) for row in rows} == {
        "loss": (0.6, 0.6),
        "validation/loss": (0.3, 0.7),
        "validation/iou": (0.9, 0.6),
    }
    listed = store.read(
        lambda connection: connection.execute(metadata.tables["run_list"].select()).one()
    )
    assert {row.number for row in rows} == {listed.number}


def test_a_count_stops_at_its_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_query, "MOST_COUNTED", 10)
    asyncio.run(store.write(lambda connection: insert_runs(connection, make_runs())))

    def count(text: str) -> tuple[int, bool]:
        counts, more = store.read(
            lambda connection: run_query.count(
                connection, org="o", filter=parse_filter(text), now_ms=NOW_MS
            )
        )
        return sum(counts.values()), more

    assert count("flow:f1") == (10, True)
    assert count("") == (60, False)
    assert count("id:r01") == (1, False)


def test_runs_of_an_older_database_are_listed_with_their_names_and_metrics(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    for database in (tmp_path / "a.db", request.getfixturevalue("postgresql").new_database()):
        url = database if isinstance(database, str) else f"sqlite:///{database}"
        engine, config = create_engine(url), Config()
        config.set_main_option("script_location", str(migrate._migrations_dir()).replace("%", "%%"))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            upgrade(config, "0008")
            insert_older_runs(connection)
        engine.dispose()
        store = Store(database)
        check_older_runs(store)
        store.close()


def insert_older_runs(connection: Connection) -> None:
    status = {
        "attempts": [{"attempt": 1, "timeStarted": 1_000}],
        "conditions": [{"condition": "Failed", "lastTransitionTime": 5_000}],
    }
    metadata = {"timeCreated": 1, "attributes": {"owner": "kim"}}
    for run_id, document in (
        ("named", {"spec": {"flow": {"name": "Old"}}, "status": status, "metadata": metadata}),
        ("odd", {"spec": {"flow": {"name": None}}}),
        ("gone", {}),
    ):
        connection.execute(
            sql(
                "INSERT INTO runs (org, id, document, etag, body_sha256, condition, priority, "
                "time_created, killed, deleted, log_count, metric_count) VALUES ('o', :id, "
                ":document, 'e', :document, 'Failed', 0, 1, false, :gone, 0, 0)"
            ),
            {"id": run_id, "document": msgspec.json.encode(document), "gone": run_id == "gone"},
        )
    connection.execute(sql("INSERT INTO run_attributes VALUES ('o', 'named', 'owner', 'kim')"))
    for number, measured in enumerate(({"validation/iou": 0.9, "loss": 2.0}, {"loss": 1.5})):
        connection.execute(
            sql("INSERT INTO metrics VALUES ('o', 'named', :number, 1, 1.0, 1, 1, :measured)"),
            {"number": number + 1, "measured": msgspec.json.encode(measured)},
        )


def check_older_runs(store: Store) -> None:
    newest_first = RunOrder()
    assert read_all(store, "", newest_first, 5) == ["odd", "named"]
    for filter in (
        "name:old",
        "owner=kim",
        "metric.iou>0.8",
        "metric.loss=1.5",
        "duration>3s duration<5s",
    ):
        assert read_all(store, filter, newest_first, 5) == ["named"], filter
    counts, _ = store.read(
        partial(run_query.count, org="o", filter=parse_filter(""), now_ms=NOW_MS)
    )
    assert counts == {"Failed": 2}
