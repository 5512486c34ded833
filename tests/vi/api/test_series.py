"""Metric series as the SDK returns them: arrays, dictionaries, data frames and plots."""

import sys
from array import array
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

import vi
from vi.api.resources.runs.series import MetricSeriesList, SeriesAnswer


def pack(kind: str, *numbers: float) -> str:
    return b64encode(array(kind, numbers).tobytes()).decode()


def describe(key: str, *, run_id: str = "r-1", bucket_steps: int = 64) -> dict[str, Any]:
    """Return a series as the server sends it."""
    return {
        "runId": run_id,
        "key": key,
        "bucketSteps": bucket_steps,
        "count": 2,
        "total": 100,
        "firstStep": 1,
        "lastStep": 100,
        "fromStep": 0,
        "next": 100,
        "timeStart": 1_700_000_000_500,
        "columns": {
            "step": pack("d", 63, 100),
            "time": pack("f", 0, 2.5),
            "epoch": pack("f", 0.5, 1),
            "min": pack("f", 1, -2),
            "max": pack("f", 8, 4),
            "last": pack("f", 2, 3),
        },
    }


@pytest.fixture
def client(server: Any, key: str) -> Iterator[vi.Client]:
    """A client of the scripted server."""
    with vi.Client(key, "lab", transport=server.transport) as client:
        yield client


@pytest.fixture
def series() -> MetricSeriesList:
    """Two metrics of two runs."""
    items = [describe("loss"), describe("rate", bucket_steps=1), describe("loss", run_id="r-2")]
    answer = msgspec.convert({"items": items, "keys": ["loss", "rate"]}, SeriesAnswer)
    return MetricSeriesList(answer.items, answer.keys)


def test_columns_are_arrays(series: MetricSeriesList) -> None:
    loss = series["loss"]
    assert (loss.run_id, loss.bucket_steps, loss.total, len(loss)) == ("r-1", 64, 100, 2)
    assert loss.step == array("d", [63, 100])
    assert loss.time == array("d", [1_700_000_000.5, 1_700_000_003.0])
    assert loss.min == array("f", [1, -2])
    assert memoryview(loss.last).tolist() == [2, 3]
    assert [item.key for item in series] == ["loss", "rate", "loss"]
    assert series[2].run_id == "r-2"
    with pytest.raises(KeyError, match="loss, rate"):
        series["los"]


def test_series_become_dictionaries(series: MetricSeriesList) -> None:
    assert series["loss"].to_dict() == {
        "step": [63, 100],
        "time": [1_700_000_000.5, 1_700_000_003.0],
        "epoch": [0.5, 1],
        "min": [1, -2],
        "max": [8, 4],
        "last": [2, 3],
    }
    assert sorted(series.to_dict()) == ["r-1", "r-2"]
    assert sorted(series.to_dict()["r-1"]) == ["loss", "rate"]


def test_series_become_a_data_frame(series: MetricSeriesList) -> None:
    pytest.importorskip("pandas")
    frame = series.to_pandas()
    assert list(frame.columns) == ["run_id", "key", "step", "time", "epoch", "min", "max", "last"]
    assert frame.groupby(["run_id", "key"])["last"].max().to_dict() == {
        ("r-1", "loss"): 3,
        ("r-1", "rate"): 3,
        ("r-2", "loss"): 3,
    }
    assert frame["time"][0].to_pydatetime() == datetime(2023, 11, 14, 22, 13, 20, 500_000, UTC)
    assert series["rate"].to_pandas()["step"].tolist() == [63, 100]


def test_a_missing_library_is_named(
    series: MetricSeriesList, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match="polars"):
        series.to_polars()


def test_series_are_drawn_on_axes_and_not_shown(series: MetricSeriesList) -> None:
    pytest.importorskip("matplotlib")
    axes = series.plot()
    assert [line.get_label() for line in axes.get_lines()] == [
        "loss, r-1",
        "rate, r-1",
        "loss, r-2",
    ]
    assert len(axes.collections) == 2  # the ranges of the buckets of several steps
    assert series["rate"].plot(axes, x="time") is axes
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_arguments_become_one_request(client: vi.Client, server: Any) -> None:
    for _ in range(3):
        server.answers({"items": [describe("loss")], "keys": ["loss"]})
    found = client.runs.metrics("r-1", points=100, keys=["loss", "rate"], from_step=5)
    assert found["loss"].last.tolist() == [2, 3]
    client.runs.metrics(ids=["r-1", "r-2"])
    client.runs.series("r-1", keys="loss", bucket_steps=64, since=7)
    assert [request.url.path.rpartition("/")[2] for request in server.requests] == [
        "metrics:series",
        "runs:series",
        "metrics:series",
    ]
    assert [request.url.params.multi_items() for request in server.requests] == [
        [("keys", "loss,rate"), ("points", "100"), ("from", "5")],
        [("id", "r-1"), ("id", "r-2")],
        [("keys", "loss"), ("bucketSteps", "64"), ("since", "7")],
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"run_id": "r-1", "ids": ["r-2"]},
        {"ids": "r-1"},
        {"ids": []},
        {"ids": ["r"] * 21},
        {"run_id": "r-1", "keys": []},
        {"run_id": "r-1", "keys": ["a,b"]},
        {"run_id": "r-1", "points": 0},
        {"run_id": "r-1", "from_step": -1},
        {"run_id": "r-1", "points": 1.5},
    ],
)
def test_malformed_arguments_are_refused_before_a_request(
    client: vi.Client, server: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(vi.ViInvalidParameterError):
        client.runs.metrics(**arguments)
    assert not server.requests
