"""Hundreds of thousands of runs in a store within seconds, by bulk insert."""

import asyncio
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.store import Store
from runyard.store.engines.bulk_insert import insert_many
from runyard.store.lists import run_list, triggers
from runyard.store.tables import run_attributes, run_metrics, runs
from runyard.store.tables import run_list as run_list_table
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import (
    Run,
    RunAttempt,
    RunMetadata,
    RunProgress,
    RunSpec,
    RunStatus,
)
from vi.api.responses import ConditionKind, ResourceCondition

BATCH = 5_000
CACHE_KIB, LARGE_CACHE_KIB = 2_000, 4_000_000  # the default of SQLite, and an upper limit
FLOWS = ("detect", "caption", "answer", "ground", "baseline", "ablation", "sweep", "tiny")
WORDS = ("lora", "full", "warm", "cold", "small", "large", "early", "late", "plain", "mixed")
OWNERS = ("kim", "lee", "maria", "omar", "zoe")
# Few runs are pending or running; of the others, most succeeded.
CONDITIONS = {"Succeeded": 80, "Failed": 12, "Cancelled": 6, "Error": 1, "Running": 1}
NEWEST_MS = 1_790_000_000_000
STEP_MS = 20_000  # between two runs


def insert_runs(
    store: Store, count: int, *, org: str, first: int = 0, newest_ms: int = NEWEST_MS
) -> None:
    """Insert runs with names, flows, conditions, tags and metrics, the last one newest.

    Their ids are ``run-0000001`` and so on, after ``first``. Every list, filter, sort and counter
    finds them. Run it where no event loop runs; elsewhere use ``insert_runs_async``.
    """
    asyncio.run(insert_runs_async(store, count, org=org, first=first, newest_ms=newest_ms))


async def insert_runs_async(
    store: Store, count: int, *, org: str, first: int = 0, newest_ms: int = NEWEST_MS
) -> None:
    """Insert runs on the writer's thread."""
    await store.write(lambda tx: _insert_all(tx, count, org, first, newest_ms))


def _insert_all(tx: Connection, count: int, org: str, first: int, newest_ms: int) -> None:
    triggers.drop(tx)  # for each row they would cost more than the row
    set_cache(tx, LARGE_CACHE_KIB)
    rows = _build_rows(org, count, first, newest_ms, random.Random(first))  # noqa: S311
    while batch := list(islice(rows, BATCH)):
        insert_many(tx, runs, [row["run"] for row in batch])
        insert_many(tx, run_list_table, [row["listed"] for row in batch])
        insert_many(tx, run_attributes, [each for row in batch for each in row["attributes"]])
        insert_many(tx, run_metrics, [each for row in batch for each in row["metrics"]])
    run_list.recount(tx)
    triggers.create(tx)
    triggers.fill_search(tx)
    set_cache(tx, CACHE_KIB)


def set_cache(tx: Connection, kib: int) -> None:
    """Set the cache of SQLite: pages of indexes that do not fit are written again and again."""
    if tx.dialect.name == "sqlite":
        tx.exec_driver_sql(f"PRAGMA cache_size=-{kib}").close()


def _build_rows(
    org: str, count: int, first: int, newest_ms: int, chance: random.Random
) -> Iterator[dict[str, Any]]:
    kinds = chance.choices(list(CONDITIONS), list(CONDITIONS.values()), k=count)
    # The newest few wait for a machine.
    kinds[max(0, count - 5) :] = ["Pending"] * min(5, count)
    templates = {
        (flow, kind): _build_template(org, flow, kind)
        for flow in FLOWS
        for kind in {*CONDITIONS, "Pending"}
    }
    for index, kind in enumerate(kinds):
        number = first + 1 + index
        run_id, created_ms = f"run-{number:07d}", newest_ms - (count - 1 - index) * STEP_MS
        draw = chance.getrandbits(60)
        flow = FLOWS[draw % 8]
        attributes = {"owner": OWNERS[(draw >> 3) % 5], "seed": str((draw >> 8) % 100)}
        if number % 1_000 == 0:
            attributes["release"] = str(number // 1_000)
        name = f"{flow} {WORDS[(draw >> 16) % 10]} {run_id[-4:]}"
        document = templates[flow, kind]
        for old, new in (
            (_RUN_ID, run_id),
            (_NAME, name),
            (_OWNER, attributes["owner"]),
            (_SEED, attributes["seed"]),
            (str(_TIME_MS), str(created_ms)),
        ):
            document = document.replace(old.encode(), new.encode())
        row = {
            **_ROW,
            "org": org,
            "id": run_id,
            "document": document,
            "condition": kind,
            "flow_id": f"flow-{flow}",
            "time_created": created_ms,
            "killed": kind == "Cancelled",
            "duration": 0 if kind == "Pending" else (draw >> 24) % 36_000_000 + 60_000,
        }
        listed = run_list.build_row(row, name=name, flow_name=flow, attributes=attributes)
        place = {"org": org, "run_id": run_id, "number": run_list.get_first_number(created_ms)}
        yield {
            "run": row,
            "listed": {**listed, "number": place["number"], "is_indexed": True},
            "attributes": [{**place, "key": key, "value": attributes[key]} for key in attributes],
            "metrics": [
                {**place, "key": key, "value": value, "last": value}
                for key, value in _measure(chance if kind != "Pending" else None)
            ],
        }


_RUN_ID, _NAME, _OWNER, _SEED, _TIME_MS = "<run>", "<name>", "<owner>", "<seed>", 1_234_567_890_123
_ZEROS = {int: 0, bool: False, str: "", bytes: b""}
_ROW = {
    **{
        column.name: None if column.nullable else _ZEROS[column.type.python_type]
        for column in runs.columns
    },
    "etag": "0" * 16,
    "body_sha256": b"\0" * 32,
}


def _measure(chance: random.Random | None) -> list[tuple[str, float]]:
    if chance is None:
        return []
    return [
        ("loss", round(chance.expovariate(2), 4)),
        ("validation/loss", round(chance.expovariate(2), 4)),
        ("validation/iou", round(chance.random(), 4)),
    ]


def _build_template(org: str, flow: str, kind: str) -> bytes:
    """Return the document of a run with placeholders."""
    conditions = [
        ResourceCondition(
            condition=ConditionKind.PENDING, reason="Queued", last_transition_time=_TIME_MS
        )
    ]
    progress, tries = None, []
    if kind != "Pending":
        conditions.append(
            ResourceCondition(condition=ConditionKind(kind), last_transition_time=_TIME_MS)
        )
        progress = RunProgress(step=500, total_steps=1000, loss=0.5, metric_name="iou", metric=0.5)
        tries = [RunAttempt(attempt=1, machine="m1", time_started=_TIME_MS)]
    link = f"/workspaces/{org}/runs/{_RUN_ID}"
    run = Run(
        organization_id=org,
        run_id=_RUN_ID,
        spec=RunSpec(flow=FlowSpec(name=flow, settings={"flow": {"id": f"flow-{flow}"}})),
        status=RunStatus(
            log=f"{link}/logs", conditions=conditions, progress=progress, attempts=tries
        ),
        metadata=RunMetadata(
            time_created=_TIME_MS,
            last_updated=_TIME_MS,
            attributes={"owner": _OWNER, "seed": _SEED},
            name=_NAME,
        ),
        self_link=link,
        etag="0" * 16,
    )
    return msgspec.json.encode(run)
