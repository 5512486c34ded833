"""Models over HTTP: registered after their bytes, listed oldest first, signed downloads."""

import hashlib
import io
import tarfile
from typing import Any

import httpx2
import pytest

from tests.support import attempts
from tests.support.server import TestServer

HOUR_S = 3600.0


async def outputs(server: TestServer, rest: str = "", run_id: str = "r1") -> Any:
    return (await (await server.api()).get(server.path(f"runs/{run_id}/outputs{rest}"))).json()


async def link(server: TestServer, checkpoint: str = "latest") -> str:
    answer = await outputs(server, f"/{checkpoint}?intent=sdkLocalDeploy&contents=y")
    url: str = answer["status"]["contents"]["downloadUrl"]["url"]
    return url


async def raw_get(server: TestServer, url: str, **headers: bytes) -> tuple[int, int, int]:
    """(status, bytes promised, bytes sent) as a web server sees them.

    A body that is too short closes the connection.
    """
    status, promised, sent = 0, 0, 0

    async def send(message: Any) -> None:
        nonlocal status, promised, sent
        if message["type"] == "http.response.start":
            status, promised = message["status"], int(dict(message["headers"])[b"content-length"])
        else:
            sent += len(message["body"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    path = url.removeprefix("http://127.0.0.1:7878")
    given = [
        (b"host", b"127.0.0.1:7878"),
        *((name.encode(), value) for name, value in headers.items()),
    ]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": given,
        "client": None,
    }
    await server.gateway(scope, receive, send)
    return status, promised, sent


async def finished(server: TestServer, *, content: bytes = b"weights" * 1000) -> Any:
    attempt = await attempts.start(server)
    await attempt.checkpoint("epoch-1", content=content, best=True)
    await attempt.checkpoint("epoch-2", content=content + b"2", best=False)
    await attempt.finish(0, outcome="Succeeded", reason="Completed", message="")
    return attempt


async def test_models_are_listed_latest_last_and_found_by_name_latest_and_best(
    server: TestServer,
) -> None:
    await finished(server)
    page = await outputs(server, "?intent=sdkLocalDeploy")
    assert [model["runOutputId"] for model in page["items"]] == ["epoch-1", "epoch-2"]
    model = page["items"][0]
    assert model["spec"] == {
        "kind": "Checkpoint",
        "epoch": 1,
        "step": 1,
        "evaluationMetrics": {"exactMatch": 0.5},
        "isBest": True,
    }
    assert model["status"]["contents"] is None
    for name, expected in (("latest", "epoch-2"), ("best", "epoch-1"), ("epoch-1", "epoch-1")):
        got = await outputs(server, f"/{name}")
        assert got["runOutputId"] == expected
        # A model and a page of it at once.
        assert [item["runOutputId"] for item in got["items"]] == [expected]
    assert (await outputs(server, "/epoch-9"))["code"] == "NotFound"
    assert (await outputs(server, "", "r9"))["code"] == "NotFound"


def keeping(count: int) -> dict[str, Any]:
    return {"blocks": [{"block": "vi-model", "settings": {"checkpoint": {"keep": count}}}]}


async def test_there_is_one_best_model(server: TestServer) -> None:
    attempt = await attempts.start(server, flow=keeping(4))
    for number, best in ((1, True), (2, False), (3, True), (4, False)):
        await attempt.checkpoint(f"epoch-{number}", content=b"%d" % number, best=best)
    assert [model["spec"]["isBest"] for model in (await outputs(server))["items"]] == [
        False,
        False,
        True,
        False,
    ]
    assert (await outputs(server, "/best"))["runOutputId"] == "epoch-3"


async def test_a_query_with_two_question_marks_is_paged(server: TestServer) -> None:
    await finished(server)
    page = await outputs(server, "?intent=sdkLocalDeploy?s=1")
    assert [model["runOutputId"] for model in page["items"]] == ["epoch-1"]
    page = await outputs(server, f"?intent=sdkLocalDeploy?p={page['nextPage']}&s=1")
    assert [model["runOutputId"] for model in page["items"]] == ["epoch-2"]
    assert page["nextPage"] is None
    assert (await outputs(server, "?intent=sdkLocalDeploy?p=abc&s=1"))["code"] == "InvalidPageToken"


async def test_a_checkpoint_is_listed_only_when_all_its_bytes_are_stored(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    digest = hashlib.sha256(b"abc").hexdigest()
    report = {
        "checkpoint_id": "epoch-1",
        "step": 1,
        "epoch": 1,
        "metrics": {},
        "is_best": False,
        "time": 1,
        "files": [{"path": "model_full/w", "size_bytes": 3, "sha256": digest}],
    }
    early = await attempt.post("checkpoints", **report)
    assert (early.status_code, early.json()["code"]) == (409, "BlobMissing")
    assert "model_full/w" in early.json()["message"]
    url = f"/internal/v1/attempt/blobs/{digest}"
    assert (await attempt.client.head(url)).status_code == 404
    wrong = await attempt.client.put(url, content=b"abd")
    assert (wrong.status_code, wrong.json()["code"]) == (400, "InvalidBody")
    assert (await attempt.client.head(url)).status_code == 404
    assert (await attempt.client.put(url, content=b"abc")).status_code == 201
    assert (await attempt.client.head(url)).status_code == 200
    assert [(await attempt.post("checkpoints", **report)).status_code for _ in range(2)] == [
        201,
        201,
    ]
    assert [model["runOutputId"] for model in (await outputs(server))["items"]] == ["epoch-1"]
    for path in ("../x", "/etc/passwd", "model_full/../../x"):
        bad = await attempt.post(
            "checkpoints", **report | {"files": [{"path": path, "size_bytes": 3, "sha256": digest}]}
        )
        assert (bad.status_code, bad.json()["code"]) == (400, "InvalidBody"), path
    assert (await attempt.client.put("/internal/v1/attempt/blobs/XYZ", content=b"")).json()[
        "code"
    ] == "InvalidId"


async def test_success_without_a_checkpoint_is_not_success(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.finish(0, outcome="Succeeded", reason="Completed", message="")
    assert (await attempts.read_condition(server))[:2] == ("Error", "StorageUnavailable")


async def test_the_archive_is_a_tar_of_the_model_with_the_announced_length_and_hash(
    server: TestServer,
) -> None:
    content = bytes(range(256)) * 500
    await finished(server, content=content)
    contents = (await outputs(server, "/epoch-1?contents=y"))["status"]["contents"]
    anyone = await server.client(None)
    head = await anyone.head(contents["downloadUrl"]["url"])
    assert head.status_code == 200
    assert int(head.headers["content-length"]) == contents["sizeBytes"]
    assert head.headers["accept-ranges"] == "bytes"
    whole = (await anyone.get(contents["downloadUrl"]["url"])).content
    assert len(whole) == contents["sizeBytes"]
    assert hashlib.sha256(whole).hexdigest() == contents["sha256"]
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        assert archive.getnames() == ["model_full/model.safetensors"]  # no training state
        member = archive.extractfile("model_full/model.safetensors")
        assert member is not None
        assert member.read() == content


async def test_ranges_are_exact(server: TestServer) -> None:
    await finished(server, content=b"0123456789" * 3000)
    url = await link(server)
    anyone = await server.client(None)
    whole = (await anyone.get(url)).content
    size = len(whole)
    for given, start, end in (
        ("0-0", 0, 1),
        ("100-199", 100, 200),
        (f"{size - 10}-", size - 10, size),
        ("-10", size - 10, size),
        (f"500-{size + 999}", 500, size),
        (f"-{size + 5}", 0, size),
        ("-" + "9" * 5000, 0, size),  # more digits than Python reads as a number
        ("7-" + "9" * 5000, 7, size),
        ("0" * 5000 + "7-" + "0" * 5000 + "9", 7, 10),
    ):
        part = await anyone.get(url, headers={"range": f"bytes={given}"})
        assert part.status_code == 206, given
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert part.content == whole[start:end]
    # Not ours to serve in parts.
    for given in ("bytes=0-1,5-6", "lines=1-2", "bytes=-", "bytes=a-b"):  # not served in parts
        assert (await anyone.get(url, headers={"range": given})).content == whole
    for given in (f"{size}-", "9" * 5000 + "-", "-0", "-" + "0" * 5000):
        outside = await anyone.get(url, headers={"range": f"bytes={given}"})
        assert (outside.status_code, outside.json()["code"]) == (416, "RangeNotSatisfiable"), given


async def test_links_are_equal_for_an_hour_and_expire_as_announced(server: TestServer) -> None:
    await finished(server)
    server.clock.epoch_ms = 480_000 * 3_600_000
    url = await link(server)
    server.clock.forward(HOUR_S - 1)
    assert await link(server) == url
    server.clock.forward(1)
    assert await link(server) != url
    anyone = await server.client(None)
    server.clock.forward(24 * HOUR_S - 1)
    assert (await anyone.head(url)).status_code == 200
    server.clock.forward(1)
    assert (await anyone.head(url)).status_code == 404


async def test_a_range_request_on_an_expired_link_is_cut_short_not_refused(
    server: TestServer,
) -> None:
    """The published client takes an error status for zero bytes.

    Every client notices a body that is too short.
    """
    await finished(server)
    url = await link(server)
    anyone = await server.client(None)
    ranged = {"range": "bytes=0-99"}

    async def is_cut_off() -> bool:
        status, promised, sent = await raw_get(server, url, range=b"bytes=0-99")
        return status == 206 and sent < promised

    server.clock.forward(26 * HOUR_S)
    assert await is_cut_off()
    server.clock.forward(-26 * HOUR_S)
    assert (await anyone.get(url, headers=ranged)).status_code == 206
    await (await server.api()).delete(server.path("runs/r1"))
    assert await is_cut_off()
    assert (await anyone.get(url)).status_code == 404
    assert (await anyone.get(url[:-3] + "abc", headers=ranged)).status_code == 404


async def test_every_altered_link_is_refused(server: TestServer) -> None:
    await finished(server)
    url = await link(server)
    anyone = await server.client(None)
    start = url.rindex("/") + 1
    for position in range(start, len(url), 7):
        other = "A" if url[position] != "A" else "B"
        altered = url[:position] + other + url[position + 1 :]
        assert (await anyone.get(altered)).status_code == 404, position
    assert (await anyone.put(url, content=b"x")).status_code == 405


async def test_a_blob_that_changed_on_disk_aborts_the_download(server: TestServer) -> None:
    await finished(server, content=b"z" * 200_000)
    url = await link(server, "epoch-1")
    digest = hashlib.sha256(b"z" * 200_000).hexdigest()
    path = next(server.settings.blobs_dir.rglob(digest))
    damaged = bytearray(path.read_bytes())
    damaged[150_000] ^= 1
    path.write_bytes(damaged)
    status, promised, sent = await raw_get(server, url)
    assert status == 200
    assert 0 < sent < promised


async def test_a_blob_that_two_runs_share_outlives_the_first(server: TestServer) -> None:
    api = await server.api()
    for run_id in ("r1", "r2"):
        attempt = await attempts.start(server, run_id)
        await attempt.checkpoint(content=b"shared")
        await attempt.finish(64)
    blobs = server.services.blobs(server.org)
    digest = hashlib.sha256(b"shared").hexdigest()
    await api.delete(server.path("runs/r1"))
    assert blobs.has(digest)
    await api.delete(server.path("runs/r2"))
    assert not blobs.has(digest)


async def test_uploads_need_their_length(server: TestServer) -> None:
    attempt = await attempts.start(server)

    async def pieces() -> Any:
        yield b"abc"

    digest = hashlib.sha256(b"abc").hexdigest()
    answer: httpx2.Response = await attempt.client.put(
        f"/internal/v1/attempt/blobs/{digest}", content=pieces()
    )
    assert (answer.status_code, "Content-Length" in answer.json()["message"]) == (400, True)


@pytest.mark.parametrize("route", ["blobs", "checkpoints", "lines", "renew", "process"])
async def test_a_closed_attempt_may_not_write(server: TestServer, route: str) -> None:
    attempt = await attempts.start(server)
    await attempt.finish(64)
    messages: dict[str, dict[str, Any]] = {
        "checkpoints": {
            "checkpoint_id": "epoch-1",
            "step": 1,
            "epoch": 1,
            "metrics": {},
            "is_best": False,
            "time": 1,
            "files": [{"path": "model.safetensors", "size_bytes": 1, "sha256": "0" * 64}],
        },
        "lines": {"stream": "stdout", "offset": 0, "next_offset": 2, "lines": ["x"]},
        "renew": {},
        "process": {"machine_id": "m", "boot_id": "b", "pid": 1, "start_ticks": 1},
    }
    if route == "blobs":
        digest = hashlib.sha256(b"x").hexdigest()
        answer = await attempt.client.put(f"/internal/v1/attempt/blobs/{digest}", content=b"x")
    else:
        answer = await attempt.post(route, **messages[route])
    assert (answer.status_code, answer.json()["code"]) == (409, "LeaseLost")
