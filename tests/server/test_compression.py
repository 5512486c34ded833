"""JSON of 1 KiB or more is compressed for clients that accept gzip."""

import gzip
import json
from typing import Any

import pytest

from runyard.server.http import responses
from tests.support.server import TestServer

RUN = {"spec": {}, "metadata": {"attributes": {"note": "n" * 2000}}}


async def get_raw(server: TestServer, path: str, **headers: str) -> tuple[Any, bytes]:
    """Return a response and its body as it was sent."""
    api = await server.api()
    async with api.stream("GET", path, headers=headers) as answer:
        return answer, b"".join([chunk async for chunk in answer.aiter_raw()])


@pytest.mark.parametrize("accepted", ["gzip", "br, gzip;q=0.5", "*", "deflate,GZIP"])
async def test_a_client_that_accepts_gzip_gets_less_bytes(
    server: TestServer, accepted: str
) -> None:
    path = server.path("runs/r1")
    created = await (await server.api()).put(path, json=RUN)
    answer, body = await get_raw(server, path, **{"accept-encoding": accepted})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "accept-encoding"
    assert int(answer.headers["content-length"]) == len(body) < 1024
    assert json.loads(gzip.decompress(body)) == created.json()
    assert answer.headers["etag"] == f'"{created.json()["etag"]}"'
    changed = await (await server.api()).patch(
        path,
        json={"metadata": {"attributes": {"a": "b"}}},
        headers={"if-match": answer.headers["etag"]},
    )
    assert changed.status_code == 200


@pytest.mark.parametrize("accepted", ["identity", "gzip;q=0", "br, gzip; q=0.0", "gzipped-not"])
async def test_a_client_that_does_not_accept_gzip_gets_plain_json(
    server: TestServer, accepted: str
) -> None:
    path = server.path("runs/r1")
    created = await (await server.api()).put(path, json=RUN)
    answer, body = await get_raw(server, path, **{"accept-encoding": accepted})
    assert "content-encoding" not in answer.headers
    assert answer.headers["vary"] == "accept-encoding"
    assert json.loads(body) == created.json()


async def test_short_responses_and_files_are_never_compressed(server: TestServer) -> None:
    for path in ("/health", server.path("runs")):
        answer, _ = await get_raw(server, path, **{"accept-encoding": "gzip"})
        assert "content-encoding" not in answer.headers
        assert "vary" not in answer.headers
    backup = await (await server.api()).post(server.path("storage/backups"))
    assert "content-encoding" not in backup.headers
    assert backup.content[257:262] == b"ustar"


async def test_a_large_response_is_compressed_on_a_thread(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MIN_THREAD_BYTES", 2000)
    answer, body = await get_raw(server, "/openapi.json", **{"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(body))["openapi"] == "3.1.0"
