"""Metric series: what is stored equals a simple reference, and what charts read equals it too."""

import base64
import json
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from runyard import limits
from runyard.server.services.operations import housekeeping
from runyard.server.services.runs.telemetry import series
from runyard.store.tables import metrics as metric_rows
from runyard.store.tables import runs
from runyard.store.telemetry import metrics, packing
from tests.support import attempts
from tests.support.attempts import Attempt
from tests.support.server import TestServer

KINDS = {"step": "d", "time": "f", "epoch": "f", "min": "f", "max": "f", "last": "f"}
START_MS = 1_700_000_000_000


@dataclass
class Curve:
    """One series as a chart has it: columns by name, and what the answer says of it."""

    bucket_steps: int
    total: int
    columns: dict[str, list[Any]]
    item: dict[str, Any]

    @classmethod
    def decode(cls, item: dict[str, Any]) -> "Curve":
        columns: dict[str, list[Any]] = {}
        for name, kind in KINDS.items():
            numbers = array(kind)
            numbers.frombytes(base64.b64decode(item["columns"][name]))
            assert len(numbers) == item["count"]
            columns[name] = numbers.tolist()
        start_s = item["timeStart"] - START_MS
        columns["time"] = [round(start_s + 1000 * offset) for offset in columns["time"]]
        return cls(item["bucketSteps"], item["total"], columns, item)

    def add(self, newer: "Curve") -> None:
        """Replace what follows the first step of a newer answer, as a live chart does."""
        keep = sum(step < newer.item["fromStep"] for step in self.columns["step"])
        for name, column in self.columns.items():
            self.columns[name] = column[:keep] + newer.columns[name]
        self.total = newer.total


@dataclass
class Reference:
    """All values of each key by step; the one that arrived last counts."""

    steps: dict[str, dict[int, tuple[int, float, float]]] = field(default_factory=dict)

    def add(self, event: dict[str, Any]) -> None:
        for key, value in event["values"].items():
            self.steps.setdefault(key, {})[event["step"]] = (event["t"], event["epoch"], value)

    def draw(self, key: str, bucket_steps: int, first: int, last: int) -> dict[str, list[float]]:
        """Return the columns that buckets with a step from ``first`` to ``last`` must have."""
        buckets: dict[int, list[int]] = {}
        for step in sorted(self.steps[key]):
            if first // bucket_steps <= step // bucket_steps <= last // bucket_steps:
                buckets.setdefault(step // bucket_steps, []).append(step)
        found = [[self.steps[key][step] for step in steps] for steps in buckets.values()]
        return {
            "step": [steps[-1] for steps in buckets.values()],
            "time": [points[-1][0] - START_MS for points in found],
            "epoch": to_float32([points[-1][1] for points in found]),
            "min": to_float32([min(value for _, _, value in points) for points in found]),
            "max": to_float32([max(value for _, _, value in points) for points in found]),
            "last": to_float32([points[-1][2] for points in found]),
        }


def to_float32(values: list[float]) -> list[float]:
    return array("f", values).tolist()


def make_event(step: int, **values: float) -> dict[str, Any]:
    """Return a step event; times are whole seconds of low precision, exact as float32."""
    return {
        "ev": "step",
        "t": START_MS + 1000 * (step % 4096),
        "step": step,
        "epoch": step / 64,
        "values": values,
    }


async def ship(attempt: Attempt, events: list[dict[str, Any]]) -> None:
    answer = await attempt.ship(*map(json.dumps, events))
    assert answer.status_code == 200, answer.text


async def read(server: TestServer, run_id: str = "r1", **query: Any) -> Any:
    api = await server.api()
    answer = await api.get(server.path(f"runs/{run_id}/metrics:series"), params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def read_curve(server: TestServer, wanted: str = "loss", /, **query: Any) -> Curve:
    [item] = (await read(server, keys=wanted, **query))["items"]
    return Curve.decode(item)


def generate_events(chance: random.Random, *, count: int) -> Iterator[list[dict[str, Any]]]:
    """Yield batches of events: steps with gaps, evaluations, and resumes that repeat steps."""
    step, produced = chance.randrange(100), 0
    while produced < count:
        size = chance.choice([1, 1, 3, 40, 200, 700])
        batch = []
        for _ in range(size):
            if chance.random() < 0.004:
                step = max(0, step - chance.randrange(900))
            step += chance.choice([1, 1, 1, 1, 2, 17])
            values = {"loss": chance.gauss(0, 1), "rate": 0.5}
            if chance.random() < 0.01:
                values["validation/loss"] = chance.random()
            if chance.random() < 0.02:
                del values["rate"]
            batch.append(make_event(step, **values))
        produced += size
        yield batch


@pytest.mark.parametrize("seed", range(3))
async def test_random_streams_are_read_as_a_simple_reference_has_them(
    server: TestServer, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    attempt = await attempts.start(server)
    reference = Reference()
    arrived = 0
    live = Curve(64, 0, {name: [] for name in KINDS}, {})
    since = 0
    for number, batch in enumerate(generate_events(chance, count=2500)):
        await ship(attempt, batch)
        arrived += len(batch)
        for event in batch:
            reference.add(event)
        if number % 3:
            continue
        newer = await read_curve(server, bucketSteps=64, since=since)
        live.add(newer)
        since = newer.item["next"]
        key = chance.choice(sorted(reference.steps))
        steps = reference.steps[key]
        first = chance.randrange(max(steps) + 1)
        last = first + chance.randrange(1, max(steps) + 2)
        found = await read_curve(
            server, key, **{"from": first, "to": last}, points=chance.choice([5, 60, 500])
        )
        low, high = max(first, min(steps)), min(last, max(steps))
        assert found.columns == reference.draw(key, found.bucket_steps, low, high)
        assert found.total == len(steps)
        assert found.item["firstStep"] == min(steps)
        assert found.item["lastStep"] == max(steps)
    reloaded = await read_curve(server, bucketSteps=64)
    newer = await read_curve(server, bucketSteps=64, since=since)
    live.add(newer)
    assert live.columns == reloaded.columns
    assert live.total == reloaded.total == len(reference.steps["loss"])
    for bucket_steps in (1, 2, 8, 64, 128, 512, 1024, 4096, 32768, 1 << 40):
        for key, steps in reference.steps.items():
            found = await read_curve(server, key, bucketSteps=bucket_steps)
            assert found.columns == reference.draw(key, bucket_steps, min(steps), max(steps))
    points = await read_points(server)
    assert len(points) == arrived


async def read_points(server: TestServer) -> list[dict[str, Any]]:
    """Return every point by the route of old clients, in the order of arrival."""
    api, since = await server.api(), 0
    points: list[dict[str, Any]] = []
    while True:
        answer = await api.get(
            server.path("runs/r1/metrics"), params={"since": since, "limit": 777}
        )
        page = answer.json()
        if not page["items"]:
            return points
        points += page["items"]
        since = page["next"]


async def test_old_clients_read_every_point_in_order_of_arrival(server: TestServer) -> None:
    attempt = await attempts.start(server)
    events = [make_event(step, loss=step / 3, rate=1.0) for step in range(1, 1500)]
    events[700:700] = [make_event(step, loss=-1.0) for step in range(650, 660)]
    begin = 0
    for size in (1, 600, 30, 500, 300, 1000):
        await ship(attempt, events[begin : begin + size])
        begin += size
    points = await read_points(server)
    assert [point["step"] for point in points] == [event["step"] for event in events]
    assert [point["values"] for point in points] == [event["values"] for event in events]
    assert [point["epoch"] for point in points] == [event["epoch"] for event in events]
    assert [point["time"] for point in points] == [event["t"] for event in events]
    assert {point["attempt"] for point in points} == {1}


async def test_a_live_curve_by_steps_equals_the_reloaded_curve(server: TestServer) -> None:
    attempt = await attempts.start(server)
    chance = random.Random(5)  # noqa: S311
    live: Curve | None = None
    step = 0
    for _ in range(60):
        size = chance.choice([1, 2, 5, 50, 150])
        await ship(
            attempt,
            [make_event(number, loss=chance.random()) for number in range(step, step + size)],
        )
        step += size
        if live is None:
            live = await read_curve(server, bucketSteps=32)
        else:
            newest = int(live.columns["step"][-1])
            live.add(await read_curve(server, bucketSteps=32, **{"from": newest}))
    assert live is not None
    assert live.columns == (await read_curve(server, bucketSteps=32)).columns


async def test_a_spike_is_visible_at_every_zoom_and_boundaries_never_move(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    count, spike = 20_000, 14_123
    for begin in range(0, count, 5000):
        await ship(
            attempt,
            [
                make_event(step, loss=50.0 if step == spike else step / count)
                for step in range(begin, begin + 5000)
            ],
        )
    chance = random.Random(9)  # noqa: S311
    for _ in range(50):
        width = chance.randrange(1, count)
        first = max(0, spike - chance.randrange(width))
        curve = await read_curve(server, **{"from": first, "to": first + width}, points=300)
        assert max(curve.columns["max"]) == 50
        # A bucket covers the same steps whatever part of the series was requested.
        size = curve.bucket_steps
        [at] = [i for i, high in enumerate(curve.columns["max"]) if high == 50]
        assert curve.columns["step"][at] == min(spike // size * size + size - 1, count - 1)
        assert len(curve.columns["step"]) <= 300


async def test_several_runs_and_keys_come_in_one_answer(server: TestServer) -> None:
    for name in ("r1", "r2"):
        attempt = await attempts.start(server, name)
        await ship(attempt, [make_event(step, loss=step, rate=1.0) for step in range(5)])
        await attempt.finish(64)
    api = await server.api()
    answer = await api.get(
        server.path("runs:series"), params={"id": ["r1", "r2"], "keys": "loss,absent"}
    )
    document = answer.json()
    assert [(item["runId"], item["key"]) for item in document["items"]] == [
        ("r1", "loss"),
        ("r2", "loss"),
    ]
    assert document["keys"] == ["loss", "rate"]
    assert [item["key"] for item in (await read(server, "r2"))["items"]] == ["loss", "rate"]
    many_keys = ",".join(map(str, range(101)))
    many = "&".join(f"id=r{number}" for number in range(21))
    for query in ("", many, "id=r1&points=0"):
        answer = await api.get(server.path("runs:series"), params=query)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidQuery")
    answer = await api.get(server.path("runs:series"), params={"id": ["r1", "gone"]})
    assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")
    for query in ("bucketSteps=3", f"keys={many_keys}", "from=x", "points=5001"):
        answer = await api.get(server.path("runs/r1/metrics:series"), params=query)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidQuery"), query


async def test_too_many_buckets_are_refused_with_a_remedy(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await attempts.start(server)
    await ship(attempt, [make_event(step, loss=step, rate=1.0) for step in range(200)])
    api, path = await server.api(), server.path("runs/r1/metrics:series")
    monkeypatch.setattr(series, "MOST_POINTS", 100)
    answer = await api.get(path, params={"bucketSteps": 1})
    assert answer.json()["code"] == "InvalidQuery"
    assert "larger bucketSteps" in answer.json()["detail"]
    monkeypatch.setattr(series, "MOST_BUCKETS", 150)
    answer = await api.get(path, params={"points": 100})
    assert "fewer points" in answer.json()["detail"]


async def test_samples_of_the_machine_are_series_by_seconds_and_nothing_else(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    api = await server.api()
    created = (await api.get(server.path("runs/r1"))).json()["metadata"]["timeCreated"]
    samples = [
        json.dumps({"t": created + 5000 * number + 1, "values": {"system/cpuPercent": number}})
        for number in range(1, 400)
    ]
    torn = ["", "[dropped]", '{"t": 5, "values": {"loss": 1}}', '{"t": -1, "values": {}}']
    await ship(attempt, [make_event(step, loss=step) for step in range(300)])
    answer = await attempt.ship(*samples[:100], *torn, *samples[100:], stream="system")
    assert answer.status_code == 200
    await ship(attempt, [make_event(1000, loss=3, **{"system/cpuPercent": 7.0})])
    curve = await read_curve(server, "system/cpuPercent", bucketSteps=1)
    assert curve.columns["step"] == list(range(5, 2000, 5))
    assert curve.columns["last"] == list(range(1, 400))
    keys = (await read(server))["keys"]
    assert keys == ["loss", "system/cpuPercent", "trainer/system/cpuPercent"]
    assert [point["step"] for point in await read_points(server)] == [*range(300), 1000]
    assert (await api.get(server.path("runs/r1/logs"))).json()["items"] == []


async def test_a_run_without_metrics_has_an_empty_answer(server: TestServer) -> None:
    await attempts.start(server)
    assert await read(server) == {"items": [], "keys": []}


async def test_values_beyond_float32_and_huge_steps_are_kept(server: TestServer) -> None:
    attempt = await attempts.start(server)
    far = limits.MAX_INTEGER
    await ship(
        attempt,
        [make_event(0, loss=1e300), make_event(far, loss=-1e300), make_event(far - 1, loss=0.5)],
    )
    curve = await read_curve(server)
    assert curve.columns["step"] == [0, far - 1, far]
    assert curve.columns["last"] == to_float32([3.4028234663852886e38, 0.5, -3.4028234663852886e38])
    whole = await read_curve(server, points=1)
    assert whole.item["count"] == 1
    assert [point["values"]["loss"] for point in await read_points(server)] == [1e300, -1e300, 0.5]


async def test_metrics_beyond_the_limit_are_counted_and_reported_once(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = limits.Limit(3, "items", "test")
    monkeypatch.setattr(limits, "METRIC_KEYS", few)
    attempt = await attempts.start(server)
    for step in range(3):
        await ship(attempt, [make_event(step, **dict.fromkeys("abcde", 1.0))])
    assert (await read(server))["keys"] == ["a", "b", "c"]
    api = await server.api()
    status = (await api.get(server.path("runs/r1"))).json()["status"]
    assert status["metricValuesLeftOut"] == 6
    lines = (await api.get(server.path("runs/r1/logs"))).json()["items"]
    assert [line["stream"] for line in lines] == ["events"]


async def test_rows_of_an_older_server_are_read_and_then_packed(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await attempts.start(server)
    events = [make_event(step, loss=float(step)) for step in range(2000)]
    # What resumes at step 1500 repeats the steps after it, with other values.
    events += [make_event(step, loss=-float(step)) for step in range(1500, 2100)]
    reference = Reference()
    for event in events:
        reference.add(event)
    await add_old_rows(server, events)
    expected = reference.draw("loss", 64, 0, 2099)
    assert (await read_curve(server, bucketSteps=64)).columns == expected
    monkeypatch.setattr(packing, "MOST_ROWS", 1700)  # less than there are
    await ship(attempt, [make_event(2100, loss=7.0)])
    curve = await read_curve(server, bucketSteps=64, to=2047)
    assert curve.columns == reference.draw("loss", 64, 0, 2047)
    await housekeeping.sweep(server.services)
    rest = await server.services.store.read_in_thread(
        partial(metrics.list_rows, org=server.org, run_id="r1", after=0, limit=9999)
    )
    assert len(rest) < 512
    curve = await read_curve(server, bucketSteps=64)
    assert curve.columns["last"][-1] == 7.0
    assert curve.total == 2101
    assert len(await read_points(server)) == len(events) + 1


async def add_old_rows(server: TestServer, events: list[dict[str, Any]]) -> None:
    """Add points as rows only, as in a database from before points were packed."""
    rows = [
        {
            "org": server.org,
            "run_id": "r1",
            "number": number,
            "step": event["step"],
            "epoch": event["epoch"],
            "time": event["t"],
            "attempt": 1,
            "measured": json.dumps(event["values"]).encode(),
        }
        for number, event in enumerate(events, 1)
    ]

    def add(tx: Any) -> None:
        tx.execute(metric_rows.insert(), rows)
        tx.execute(runs.update().values(metric_count=len(rows)))

    await server.services.store.write(add)
