# Generated from test_hostile_async.py by scripts/unasync: change that file, then run the script.
"""Any argument of any public call works, or raises a ViError, TypeError or ValueError."""

import inspect
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import numpy
import pytest

import vi
from vi._text import shorten_repr
from vi.api.pagination import PaginatedResponse
from vi.api.types import PaginationParams

LOOP: list[Any] = []
LOOP.append(LOOP)


EARLIEST = datetime.fromisoformat("0001-01-01T00:00:00")


class Rude:
    """An object whose comparisons and conversions all fail."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("not comparable")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Rude(\ud800)"


VALUES: list[Any] = [
    *(None, True, 0, -1, 10**30, math.nan, math.inf, -math.inf, -0.5, Decimal("0.1"), 1j),
    *(
        "",
        "\ud800",
        "a\ud800b",
        "a\0b",
        "a/b",
        "..",
        "x" * 100_000,
        "é",
        "\n",
        b"bytes",
        b"\xff",
        bytearray(b"x"),
    ),
    *([], ["\ud800"], [None], ("a",), ("a", "\ud800"), [("a", "b")], LOOP, {"a"}, frozenset()),
    *(
        {},
        {"\ud800": "\ud800"},
        {1: 2},
        {"a": math.nan},
        {"a": b"x"},
        {"flow": {1: 2}},
        {"page_size": "\ud800"},
    ),
    *(
        Path("\ud800"),
        Path("a\0b"),
        EARLIEST,
        EARLIEST.replace(year=9999),
        object(),
        Rude(),
        lambda: None,
        int,
        iter("ab"),
    ),
    *(
        numpy.float32("nan"),
        numpy.arange(3),
        PaginationParams(page_size=-1),
        PaginationParams(page_token="\ud800"),
    ),
]

# A document that every call can read: a finished run or session, or an empty page.
ANSWER = {
    "runId": "r1",
    "datasetId": "d1",
    "datasetImportId": "i1",
    "runOutputId": "m1",
    "status": {"conditions": [{"condition": "Succeeded", "status": "Reached"}]},
    "items": [],
    "files": {},
    "ended": True,
    "count": 0,
}
GOOD = {
    "run_id": "r1",
    "flow": {"blocks": []},
    "flow_id": "f1",
    "dataset_id": "d1",
    "asset_id": "a1",
    "annotation_id": "n1",
    "training_project_id": "p1",
    "view_id": "v1",
    "spec": {},
    "body": {},
    "name": "n",
    "import_id": "i1",
    "version_id": "v1",
    "new_name": "b.png",
    "packs": [],
    "of": "d1",
    "dataset_export_id": "e1",
    "show_progress": False,
    "imported": None,
    "files": [],
}
ENDLESS = ("runs.events", "runs.watch")  # they follow what changes
NOUNS = (
    *("runs", "flows", "models", "datasets", "assets", "annotations", "training_projects", "views"),
)
INNER = ("datasets.imports", "datasets.versions")


def calls() -> Iterator[tuple[str, str]]:
    """Return every public method with each of its parameters."""
    client = vi.Client("dtvi_" + "k" * 98, "lab")
    for noun in ("", *NOUNS, *INNER):
        owner = find(client, noun)
        for name, method in inspect.getmembers(owner, callable):
            if name.startswith("_") or inspect.isclass(method) or name == "close":
                continue
            for parameter in inspect.signature(method).parameters:
                yield f"{noun}.{name}".lstrip("."), parameter


def find(client: Any, dotted: str) -> Any:
    for name in filter(None, dotted.split(".")):
        client = getattr(client, name)
    return client


CALLS = list(calls())


@pytest.fixture
def client(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[vi.Client]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=ANSWER))
    with vi.Client(key, "lab", transport=transport, max_retries=0) as client:
        client._http.sleep = forbid_sleep
        yield client


class WaitsForMore(AssertionError):
    """A call waits although the answer was not one to wait for."""


def forbid_sleep(duration_s: float) -> None:
    raise WaitsForMore


def consume(answer: Any) -> None:
    if inspect.isawaitable(answer):
        answer = answer
    if isinstance(answer, PaginatedResponse):
        answer = answer.all_items()
    if isinstance(answer, Iterator):
        for _ in answer:
            pass


def arguments(
    method: Callable[..., Any], changed: str, value: Any, tmp_path: Path
) -> tuple[list[Any], dict[str, Any]]:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    good = {
        **GOOD,
        "path": tmp_path / "a.png",
        "paths": tmp_path / "a.png",
        "save_dir": tmp_path,
        "save_path": tmp_path,
    }
    for name, parameter in inspect.signature(method).parameters.items():
        if name == changed:
            given = value
        elif name in good and (
            parameter.default is parameter.empty or name in ("show_progress", "save_dir")
        ):
            given = good[name]
        elif parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
            continue
        else:
            given = "x1"
        if parameter.kind is parameter.VAR_KEYWORD:
            named["hostile"] = given
        else:
            named[name] = given
    return positional, named


def test_all_public_methods_are_among_the_calls() -> None:
    named = {name for name, _ in CALLS}
    assert {
        "runs.kill",
        "runs.wait",
        "runs.logs",
        "get_model",
        "models.download",
        "datasets.imports.send",
    } <= named
    assert len(named) > 60


@pytest.mark.parametrize(("name", "parameter"), CALLS, ids=lambda part: part)
def test_no_argument_raises_a_foreign_exception(
    name: str, parameter: str, client: vi.Client, tmp_path: Path
) -> None:
    noun, _, verb = name.rpartition(".")
    method = getattr(find(client, noun), verb)
    for value in VALUES:
        positional, named = arguments(method, parameter, value, tmp_path)
        try:
            consume(method(*positional, **named))
        except vi.ViError as error:
            str(error).encode()
            repr(error.to_dict())
        except (TypeError, ValueError) as error:
            assert type(error) in (TypeError, ValueError), (
                f"{error!r:.200} for {parameter}={shorten_repr(value)}"
            )
        except WaitsForMore:
            assert name in ENDLESS
        except Exception as error:
            raise AssertionError(f"{error!r:.200} for {parameter}={shorten_repr(value)}") from error


CLIENT_ARGUMENTS = (
    "secret_key",
    "organization_id",
    "config_file",
    "endpoint",
    "timeout",
    "max_retries",
)


@pytest.mark.parametrize("parameter", CLIENT_ARGUMENTS)
def test_no_argument_of_the_client_raises_a_foreign_exception(parameter: str, key: str) -> None:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=ANSWER))
    for value in VALUES:
        given: dict[str, Any] = {"secret_key": key, "organization_id": "lab", parameter: value}
        try:
            with vi.Client(**given, transport=transport) as client:
                client.runs.get("r1")
        except vi.ViError as error:
            str(error).encode()
        except Exception as error:
            assert type(error) in (TypeError, ValueError), (
                f"{error!r:.200} for {parameter}={shorten_repr(value)}"
            )


@pytest.mark.parametrize("timeout", ["5", -1, math.nan, True, [5], b"5"])
def test_an_invalid_timeout_is_rejected_before_anything_is_sent(
    timeout: Any, key: str, server: Any
) -> None:
    with vi.Client(key, "lab", transport=server.transport) as client:
        for call in (
            client.runs.wait,
            lambda *_, **given: client.datasets.imports.wait("d1", "i1", **given),
        ):
            with pytest.raises(vi.ViInvalidParameterError, match="timeout is"):
                call("r1", timeout=timeout)
    assert server.asked == []
