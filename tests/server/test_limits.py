"""Limits apply before any store is queried: both stores give the same answer.

The requests are made from the structs of the routes: every text field that has a limit, at the
limit, beyond it, with characters of four bytes, with NUL and with half a character.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from runyard import limits, protocol
from runyard.limits import Limit
from runyard.server.http.route import Route
from runyard.server.http.routes import ROUTES
from runyard.server.services.imports.commit import RECORD_ROWS
from tests.support import attempts
from tests.support.server import MakeServer, TestServer
from vi.api.resources.runs.responses import Run

ROOT = Path(__file__).parents[2]
WIDE = "\U0001f98a"
# Required fields of each route's body, apart from the tested one.
BASES: dict[str, Any] = {
    "NewFlow": {"spec": {}},
    "NewDataset": {"name": "a"},
    "NewName": {"filename": "a.png"},
    "NewBulkDeletion": {"spec": {"filter": "a"}},
    "NewIngestion": {"spec": {"assets": [{"filename": "a.png", "size": 1}]}},
    "NewMultipart": {"spec": {"ingestionId": "i", "filename": "a.png", "sizeBytes": 1}},
    "NewAnnotationImport": {"spec": {"uploadBefore": 2**45}},
    "NewFiles": {"files": {"a.jsonl": {"sizeBytes": 1}}},
    "FinishedImport": {"packs": []},
}


def unwrap_types(hint: Any) -> Iterator[Any]:
    """Return the types in an annotation, without Annotated and unions."""
    if hasattr(hint, "__metadata__"):
        yield from unwrap_types(hint.__origin__)
    elif isinstance(hint, type) and not get_args(hint):
        yield hint
    elif get_args(hint) and getattr(hint, "__origin__", None) not in (dict, list, tuple):
        for part in get_args(hint):
            yield from unwrap_types(part)


def limit_of(hint: Any) -> Limit | None:
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.extra and "limit" in meta.extra:
            return meta.extra["limit"]  # type: ignore[no-any-return]
    if getattr(hint, "__origin__", None) in (dict, list, tuple):
        return None
    return next((found for part in get_args(hint) if (found := limit_of(part))), None)


def list_limited_fields(
    kind: type, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Limit]]:
    """Yield every limited text field of a struct and its nested structs, with its path."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        here = (*path, field.encode_name)
        if field.name == "attributes":
            yield (*here, "a"), limits.ATTRIBUTE_VALUE
        elif limit := limit_of(hints[field.name]):
            yield here, limit
        for inner in unwrap_types(hints[field.name]):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and inner is not Run:
                yield from list_limited_fields(inner, here)


def make_texts(limit: Limit) -> dict[str, str]:
    """Return texts around a limit, by name.

    Those whose names begin with ``good`` must not be rejected for its length or its characters.
    """
    wide = limit.value // (4 if limit.unit == "bytes" else 1)
    return {
        "good, of one byte each": "x" * limit.value,
        "good, of four bytes each": WIDE * wide,
        "bad, one too long": "x" * (limit.value + 1),
        "bad, of four bytes each": WIDE * (wide + 1),
        "bad, with NUL": "x\0y",
        "bad, with half a character": "x\ud800",
    }


def replace_text(base: Any, path: tuple[str, ...], text: str) -> Any:
    """Return a copy of a body with a text at a path; lists are entered at their first item."""
    if not path:
        return text
    if isinstance(base, list):
        return [replace_text(base[0] if base else {}, path, text)]
    name, *rest = path
    inner = base.get(name, {}) if isinstance(base, dict) else {}
    return {
        **(base if isinstance(base, dict) else {}),
        name: replace_text(inner or {}, tuple(rest), text),
    }


def url_of(route: Route, server: TestServer, dataset: str, number: int) -> str:
    ids = {
        "org": server.org,
        "dataset": dataset,
        "import_id": "none:finish",
        "flow_id": "f1",
        "project_id": "p1",
        "view_id": f"v{number}",
    }
    ids |= {"run_id": f"n{number}" if route.method == "PUT" else "r1"}
    return re.sub(r"\{(\w+):str\}", lambda found: ids.get(found[1], "none"), route.path)


BODIES = [
    (route, path, limit)
    for route in ROUTES
    if isinstance(route.body, type)
    and issubclass(route.body, msgspec.Struct)
    and "/internal/" not in route.path
    for path, limit in list_limited_fields(route.body)
]


async def collect_answers(server: TestServer) -> list[tuple[str, int, str]]:
    """Return the response to each request: its name, the status, and the problem's code."""
    api, found, number = await server.api(), [], 0
    for place in ("runs/r1", "flows/f1", "trainingProjects/p1"):
        assert (await api.put(server.path(place), json={"spec": {}})).status_code == 201
    made = await api.post(server.path("datasets"), json={"name": "d"})
    for route, path, limit in BODIES:
        for name, text in make_texts(limit).items():
            number += 1
            body = json.dumps(replace_text(BASES.get(route.body.__name__, {}), path, text))
            url = url_of(route, server, made.json()["datasetId"], number)
            answer = await api.request(route.method, url, content=body)
            code = answer.json().get("code", "") if answer.content else ""
            label = f"{route.method} {route.path} {'/'.join(path)}: {name}"
            found.append((label, answer.status_code, code))
            if name.startswith("bad"):
                assert (answer.status_code, code) == (400, "InvalidBody"), (label, answer.text)
            else:
                assert answer.status_code < 500, (label, answer.text)
                assert not re.search(r"try: (shorten|remove) it", answer.text), (label, answer.text)
    return found


async def test_limits_on_text_in_bodies_are_the_same_on_both_stores(
    make_server: MakeServer, empty_postgresql: Callable[[], str], tmp_path: Path
) -> None:
    found: dict[str, list[tuple[str, int, str]]] = {}
    for store, settings in (("sqlite", {}), ("postgresql", {"database_url": empty_postgresql()})):
        async with make_server(**settings) as server:
            found[store] = await collect_answers(server)
        shutil.rmtree(tmp_path / "data")
    assert found["sqlite"] == found["postgresql"]
    stored = [
        label
        for label, status, _ in found["postgresql"]
        if "good" in label and status in (200, 201)
    ]
    assert len(BODIES) > 40
    for noun in (
        "runs/{run_id:str} metadata/attributes/a",
        "flows/{flow_id:str} metadata",
        "datasets name",
    ):
        assert any(noun in label for label in stored), noun


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"])
async def test_text_in_queries_is_validated_before_the_lookup(
    server: TestServer, store_kind: str
) -> None:
    api = await server.api()
    dataset = (await api.post(server.path("datasets"), json={"name": "d"})).json()["datasetId"]
    for route in ROUTES:
        if route.method != "GET" or "/internal/" in route.path:
            continue
        for name in route.query:
            url = url_of(route, server, dataset, 0)
            escaped = ("%7B%22filename%22%3A%22%5Cu0000%22%7D",) if name == "filter" else ()
            for given in ("%00", "k:%00", "k:" + "x" * 5000, *escaped):
                answer = await api.get(f"{url}?{name}={given}")
                assert answer.status_code in (400, 404), (url, name, given, answer.text)
                if route.path.endswith(("/runs", "/assets", "/flows")):
                    codes = ("InvalidQuery", "InvalidFilter" if name == "filter" else "")
                    assert answer.json()["code"] in codes, (url, name, given, answer.text)


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"])
async def test_attributes_are_limited_in_number_and_together(
    server: TestServer, store_kind: str
) -> None:
    api = await server.api()

    async def put(
        number: int, attributes: dict[str, str | None], path: str = "flows/f"
    ) -> tuple[int, str]:
        body = {"spec": {}, "metadata": {"attributes": attributes}}
        answer = await api.put(server.path(f"{path}{number}"), json=body)
        return answer.status_code, answer.json().get("code", "")

    most, value = limits.ATTRIBUTES.value, "x" * limits.ATTRIBUTE_VALUE.value
    assert await put(1, {f"k{number}": "v" for number in range(most)}) == (201, "")
    assert await put(2, {f"k{number}": "v" for number in range(most + 1)}) == (400, "InvalidBody")
    assert await put(3, {f"k{number}": value for number in range(15)}) == (201, "")
    assert await put(4, {f"k{number}": value for number in range(17)}) == (400, "InvalidBody")
    assert await put(5, {"": "v"}) == (400, "InvalidBody")
    assert await put(6, {"k" * 256: "v"}) == (400, "InvalidBody")
    assert await put(7, {WIDE * 64: "v"}, "runs/r") == (400, "InvalidBody")
    assert await put(8, {WIDE * 63 + "k": value}, "runs/r") == (201, "")
    # A change adds to what is there.
    for flow, attributes in (("f1", {"more": "v"}), ("f3", {"a": value, "b": value})):
        body = {"metadata": {"attributes": attributes}}
        answer = await api.patch(server.path(f"flows/{flow}"), json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody")
        assert answer.json()["problems"][0]["path"] == "/metadata/attributes"
    swapped = await api.patch(
        server.path("flows/f1"), json={"metadata": {"attributes": {"k0": None, "more": "v"}}}
    )
    assert swapped.status_code == 200
    found = await api.get(server.path("runs"), params={"attribute": f"{WIDE * 63}k:{value}"})
    assert [run["runId"] for run in found.json()["items"]] == ["r8"]
    longer = await api.get(server.path("runs"), params={"attribute": f"k:{'x' * 4000}"})
    assert (longer.status_code, longer.json()["items"]) == (200, [])


async def test_a_style_and_a_flow_are_limited_and_named(server: TestServer) -> None:
    api = await server.api()

    async def put(number: int, flow: dict[str, Any]) -> Any:
        return await api.put(server.path(f"runs/r{number}"), json={"spec": {"flow": flow}})

    def styled(size: int) -> dict[str, Any]:
        return {
            "blocks": [
                {"block": "vi-dataset"},
                {"block": "vi-model", "style": {"x": "y" * (size - 8)}},
            ]
        }

    most = limits.FLOW_STYLE.value
    assert (await put(1, styled(most))).status_code == 201
    answer = await put(2, styled(most + 1))
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFlow")
    assert answer.json()["problems"][0]["path"] == "/blocks/1/style"
    wide = {"tolerations": {f"label{number}": ["x" * 256] * 100 for number in range(12)}}
    answer = await put(3, wide)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFlow")
    assert f"{limits.FLOW.value:,}" in answer.json()["message"]
    saved = await api.put(server.path("flows/f1"), json={"spec": styled(most + 1)})
    assert saved.json()["problems"][0]["path"] == "/blocks/1/style"


async def test_sixteen_attribute_filters_are_answered_and_seventeen_rejected(
    server: TestServer,
) -> None:
    api = await server.api()
    attributes = {f"k{number}": "v" for number in range(16)}
    for name, more in (("r1", {}), ("r2", {"k7": "w"}), ("r3", {"rare": "v"})):
        body = {"spec": {}, "metadata": {"attributes": attributes | more}}
        assert (await api.put(server.path(f"runs/{name}"), json=body)).status_code == 201

    async def found(*filters: str) -> Any:
        return await api.get(server.path("runs"), params=[("attribute", one) for one in filters])

    every = [f"k{number}:v" for number in range(16)]
    listed = await found(*every)
    assert sorted(run["runId"] for run in listed.json()["items"]) == ["r1", "r3"]
    listed = await found(*every[:15], "rare:v")
    assert [run["runId"] for run in listed.json()["items"]] == ["r3"]
    assert (await found(*every[:15], "k7:w")).json()["items"] == []
    answer = await found(*every, "k1:w")
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidQuery")
    assert "at most 16" in answer.json()["message"]


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"])
async def test_text_from_a_supervisor_is_truncated_and_cleaned_not_refused(
    server: TestServer, store_kind: str
) -> None:
    attempt, api = await attempts.start(server), await server.api()
    long = WIDE * 20_000
    names = {f"m{number}": 1.0 for number in range(1000)}
    event = {"ev": "step", "n": 1, "t": 1, "step": 1, "values": {"a\0b": 0.5, long: 0.25, **names}}
    lines = f'["a\\u0000b","c\\ud800d","{long}"]'
    raw = f'{{"stream":"stdout","offset":0,"next_offset":9,"lines":{lines}}}'
    assert (
        await attempt.client.post("/internal/v1/attempt/lines", content=raw.encode())
    ).status_code == 200
    assert (await attempt.ship(json.dumps(event))).status_code == 200
    assert (await attempt.event("plan", plan={"x": "y" * limits.PLAN.value})).status_code == 200
    assert (await attempt.event("phase", phase="Saving", message=f"\0{long}")).status_code == 200
    lines = (await api.get(server.path("runs/r1/logs"))).json()["items"]
    assert [line["text"] for line in lines[:2]] == ["a\ufffdb", "c\ufffdd"]
    assert all(len(line["text"].encode()) <= limits.LOG_LINE.value for line in lines)
    assert lines[2]["text"] == WIDE * (limits.LOG_LINE.value // 4)
    point = (await api.get(server.path("runs/r1/metrics"))).json()["items"][0]
    assert len(point["values"]) == limits.METRICS.value
    assert point["values"]["a\ufffdb"] == 0.5
    assert max(len(name.encode()) for name in point["values"]) <= limits.METRIC_NAME.value
    run = (await api.get(server.path("runs/r1"))).json()
    assert run["status"]["plan"] is None
    assert len(run["status"]["conditions"][-1]["message"].encode()) <= limits.MESSAGE.value
    end = {
        "exit_code": 1,
        "signal": f"\0{long}",
        "group_empty": True,
        "cause": f"x\0{long}",
        "time": 5,
    }
    assert (await attempt.post("finish", **end, result={"message": f"\0{long}"})).status_code == 204
    attempt_status = (await api.get(server.path("runs/r1"))).json()["status"]["attempts"][0]
    assert attempt_status["cause"].startswith("x\ufffd")
    assert len(attempt_status["cause"].encode()) <= limits.MESSAGE.value


MESSAGES = {
    "process": (
        {"machine_id": "m", "boot_id": "b", "pid": 1, "start_ticks": 1},
        protocol.ProcessReport,
    ),
    "checkpoints": (
        {
            "checkpoint_id": "c-1",
            "step": 1,
            "epoch": 1,
            "metrics": {},
            "is_best": True,
            "time": 1,
            "files": [],
        },
        protocol.CheckpointReport,
    ),
}


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"])
async def test_ids_and_numbers_of_messages_are_limited_alike(
    server: TestServer, store_kind: str
) -> None:
    attempt = await attempts.start(server)
    digest = await attempt.upload(b"x")
    MESSAGES["checkpoints"][0]["files"] = [
        {"path": "model.safetensors", "size_bytes": 1, "sha256": digest}
    ]
    for name, (base, kind) in MESSAGES.items():
        for path, limit in list_limited_fields(kind):
            if path[0] == "files" or path[-1].endswith("_id"):
                continue  # ids and paths have forms of their own, see test_ids
            for label, text in make_texts(limit).items():
                if "half" in label or "NUL" in label:  # replaced, see above
                    continue
                answer = await attempt.post(name, **replace_text(base, path, text))
                is_good = (
                    answer.status_code < 300
                    if label.startswith("good")
                    else answer.status_code == 400
                )
                assert is_good, (name, path, label, answer.text)
        for field, value in base.items():
            if isinstance(value, int) and not isinstance(value, bool):
                for number in (-1, 2**63, 2**70, 1e30):
                    answer = await attempt.post(name, **{**base, field: number})
                    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody"), (
                        name,
                        field,
                        number,
                    )
    claimed = await (await server.client(server.controller_key)).post(
        "/internal/v1/claims",
        json={"claim_id": "c" * 256, "machine_id": "m", "host": "h", "slots": 1, "wait_s": 0},
    )
    assert (claimed.status_code, claimed.json()["code"]) == (400, "InvalidBody")


def test_ids_of_records_can_be_stored_and_stay_distinct() -> None:
    ids = [
        "plain",
        "a\0b",
        "a\ufffdb",
        *("x" * 600 + str(number) for number in range(5)),
        WIDE * 400,
        WIDE * 401,
    ]
    lines = [
        json.dumps(
            {"id": id, "asset": {"filename": "a.png"}, "contents": {"number": number}}
        ).encode()
        for number, id in enumerate(ids)
    ]
    read = RECORD_ROWS.parse(lines)
    assert len(read) == len(ids)
    assert "plain" in read
    assert all(limits.RECORD_ID.find_problem(id) is None for id in read)
    assert list(read) == [RECORD_ROWS.parse_id(line) for line in lines]


def test_the_table_of_limits_in_the_docs_is_the_one_of_the_code() -> None:
    page = (ROOT / "docs/security.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([\d,]+ \w+ \| .+) \|$", page, flags=re.M))
    assert rows == {
        name: f"{limit.value:,} {limit.unit} | {limit.applies_to}"
        for name, limit in limits.list_limits().items()
    }
