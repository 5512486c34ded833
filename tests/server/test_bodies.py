"""Invalid request bodies: each problem is reported with its path and a fix."""

import json
from typing import Any

import msgspec
import pytest

from tests.support import attempts
from tests.support.server import TestServer


def blocks(*given: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "spec": {
            "flow": {"blocks": [{"block": name, "settings": settings} for name, settings in given]}
        }
    }


async def test_all_problems_of_a_flow_are_reported_together_with_their_paths(
    server: TestServer,
) -> None:
    api = await server.api()
    body = blocks(
        ("vi-dataset", {"datasetId": "shelves"}),
        ("vi-model", {"hyperparameters": {"epochs": "three", "batchSize": 0}}),
        ("vi-modle", {}),
    )
    body["spec"]["trainingProject"] = "p9"
    answer = await api.put(server.path("runs/r1"), json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFlow")
    assert answer.headers["content-type"] == "application/problem+json"
    problems = {problem["path"]: problem for problem in answer.json()["problems"]}
    assert set(problems) == {
        "/blocks/0/settings/datasetId",
        "/blocks/1/settings/hyperparameters/epochs",
        "/blocks/1/settings/hyperparameters/batchSize",
        "/blocks/2/block",
        "/trainingProject",
    }
    assert problems["/blocks/0/settings/datasetId"]["given"] == "shelves"
    assert "digits" in problems["/blocks/0/settings/datasetId"]["allowed"]
    assert problems["/blocks/1/settings/hyperparameters/epochs"]["given"] == "three"
    assert "integer" in problems["/blocks/1/settings/hyperparameters/epochs"]["allowed"]
    assert problems["/trainingProject"]["given"] == "p9"
    for problem in problems.values():
        assert problem["message"] in answer.json()["message"]
    assert (await api.get(server.path("runs/r1"))).status_code == 404


async def test_weights_of_a_run_must_exist(server: TestServer) -> None:
    attempt = await attempts.start(server, "r1")
    await attempt.checkpoint("epoch-1")
    api = await server.api()

    async def code(run_id: str, weights: str) -> tuple[int, str]:
        body = blocks(("vi-model", {"architecture": {"name": "idefics3", "weights": weights}}))
        answer = await api.put(server.path(f"runs/{run_id}"), json=body)
        return answer.status_code, answer.text

    assert (await code("r2", "run:r1/epoch-1"))[0] == 201
    status, text = await code("r3", "run:r1/epoch-2")
    assert status == 400
    assert "run:r1/epoch-2" in text
    assert "/blocks/0/settings/architecture/weights" in text


async def test_bodies_that_are_not_json_or_have_the_wrong_shape_are_refused(
    server: TestServer,
) -> None:
    api = await server.api()
    for body in (b"", b"{", b"{flow: 1}", b"\xff\xfe", b'{"a": NaN}', b"{} {}", b'"\\ud800"'):
        answer = await api.put(server.path("runs/r1"), content=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody"), body
        assert "JSON" in answer.json()["message"]
    for body in (
        b"[]",
        b"null",
        b"3",
        b'{"spec": []}',
        b'{"spec": {"flow": 3}}',
        b'{"spec": {"flowId": 3}}',
    ):
        for noun in ("runs", "flows", "trainingProjects"):
            answer = await api.put(server.path(f"{noun}/x"), content=body)
            assert answer.status_code == 400, (noun, body)
            assert answer.json()["message"]


async def test_an_unknown_field_is_reported_with_its_path(server: TestServer) -> None:
    api = await server.api()
    answer = await api.put(server.path("runs/r1"), json={"spec": {"colour": "red"}})
    assert answer.json()["code"] == "InvalidBody"
    assert "colour" in answer.json()["message"]
    assert "/spec" in answer.json()["message"]
    wrong = await api.put(
        server.path("runs/r1"), json={"spec": {}, "metadata": {"attributes": {"n": 3}}}
    )
    assert wrong.json()["problems"][0]["path"] == "/metadata/attributes"


async def test_json_limits_are_exact(server: TestServer) -> None:
    api = await server.api()

    async def message(filter: Any) -> tuple[int, str]:
        body = {"spec": {"filter": filter}}
        answer = await api.post(server.path("datasets/none/deleteManyAssetsSessions"), json=body)
        return answer.status_code, answer.json().get("message", "")

    assert "the filter is not understood" in (await message({"a": "x" * 65_536}))[1]
    assert "longer than 65536" in (await message({"a": "x" * 65_537}))[1]
    assert "longer than 65536" in (await message({"x" * 65_537: "a"}))[1]
    assert (
        "the filter is not understood"
        in (await message({str(number): "" for number in range(9_997)}))[1]
    )
    assert "more than 10000" in (await message({str(number): "" for number in range(10_001)}))[1]
    for depth in (33, 900, 100_000):
        nested = b'{"spec": {"flow": ' + b"[" * depth + b"]" * depth + b"}}"
        answer = await api.put(server.path("runs/r5"), content=nested)
        assert (answer.status_code, "32 levels" in answer.json()["message"]) == (400, True), depth


async def test_unknown_routes_and_methods_are_problems_too(server: TestServer) -> None:
    api = await server.api()
    assert (await api.get("/nowhere")).json()["code"] == "NotFound"
    wrong = await api.post(server.path("runs"), json={})
    assert (wrong.status_code, wrong.json()["code"]) == (405, "MethodNotAllowed")
    keys = {"type", "title", "status", "detail", "message", "code", "problems"}
    assert set(wrong.json()) <= keys


async def test_an_internal_error_reveals_no_internals(
    server: TestServer, monkeypatch: Any, caplog: Any
) -> None:
    api = await server.api()

    def fail(*_: Any) -> None:
        raise RuntimeError(f"secret {server.settings.data_dir}")

    monkeypatch.setattr(server.services.store, "read", fail)
    answer = await api.get(server.path("runs/r1"))
    assert (answer.status_code, answer.json()["code"]) == (500, "Internal")
    assert "secret" not in answer.text
    assert "secret" in caplog.text


async def test_an_unavailable_store_is_reported_with_a_retry_time(
    server: TestServer, monkeypatch: Any
) -> None:
    from runyard.store import StoreUnavailable

    api = await server.api()

    def fail(*_: Any) -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(server.services.store, "read", fail)
    answer = await api.get(server.path("runs/r1"))
    assert (answer.status_code, answer.json()["code"]) == (503, "StorageUnavailable")
    assert answer.headers["retry-after"] == "2"
    assert msgspec.json.decode(answer.content)["status"] == 503


# A lenient parser accepts each of these; none may be read as a different value.
NOT_EXACT = [
    (b'{"spec": {"flow": {"blocks": [], "settings": {"seed": %s}}}}' % word, code)
    for word, code in [
        (b"NaN", "InvalidBody"),
        (b"Infinity", "InvalidBody"),
        (b"-Infinity", "InvalidBody"),
        (b"1e999", "InvalidBody"),
        (b"-1e999", "InvalidBody"),
        (b"9223372036854775808", "InvalidBody"),
        (b"-9223372036854775809", "InvalidBody"),
        (b"1" * 400, "InvalidBody"),
        (b'1, "seed": 2', "InvalidBody"),
        (b'1, "\\u0073eed": 1', "InvalidBody"),
        (b"true", "InvalidFlow"),
        (b"1.5", "InvalidFlow"),
        (b'"1"', "InvalidFlow"),
    ]
]


@pytest.mark.parametrize("noun", ["runs", "flows"])
async def test_ambiguous_numbers_and_duplicate_keys_in_a_body_are_refused(
    noun: str, server: TestServer
) -> None:
    api = await server.api()
    url = server.path(f"{noun}/x1")
    for body, code in NOT_EXACT:
        sent = body if noun == "runs" else body.replace(b'{"flow": ', b"").replace(b"}}}}", b"}}}")
        answer = await api.put(url, content=sent, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, code), sent[:200]
        assert (await api.get(url)).status_code == 404
    (problem,) = (await api.put(url, content=NOT_EXACT[5][0])).json()["problems"]
    assert problem["path"] == "/spec/flow/settings/seed"
    (problem,) = (await api.put(url, content=NOT_EXACT[8][0])).json()["problems"]
    assert (problem["path"], problem["given"]) == ("/seed", "seed")


async def test_colons_and_quotes_in_strings_are_not_taken_for_keys(server: TestServer) -> None:
    api = await server.api()
    attributes = {'a:"b\\': '::"{}\\"', "\\": "\\\\", "é": "\u2028:"}
    for number, ascii in enumerate((True, False)):
        body = json.dumps(
            {"spec": {}, "metadata": {"attributes": attributes}}, ensure_ascii=ascii
        ).encode()
        answer = await api.put(server.path(f"runs/r{number}"), content=body)
        assert answer.status_code == 201, answer.text
        assert answer.json()["metadata"]["attributes"] == attributes


async def test_a_field_in_both_spellings_is_refused(server: TestServer) -> None:
    api = await server.api()
    answer = await api.put(server.path("runs/r1"), json={"spec": {"flow_id": "a", "flowId": "b"}})
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody")
    assert "'flow_id' and 'flowId'" in answer.json()["message"]
